"""Exported functions as Python callables: bind, convert, solve sizes, call, wrap results."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations
from math import prod
from types import MethodType
from typing import Any, NoReturn

import numpy as np

from nnc.errors import ArgumentError, Error, ShapeError, nearest
from nnc.ir.signature import ArgSig, ExportSig, ModuleSig, Native, ResultSig
from nnc.runtime.arrays import dim_argument, tensor_argument
from nnc.runtime.away import Slabs
from nnc.runtime.boundary import boundary, split_place
from nnc.runtime.cpu import Entry
from nnc.runtime.fastcall import LONG, ROOM, SHORT, SMALL, FastCall
from nnc.runtime.kept import Keeps, Replaced
from nnc.runtime.leaves import Module, Store, Tree
from nnc.runtime.memory import Array, empty, numpy_dtype, pointer
from nnc.runtime.modules import Program, initialised, native_threads
from nnc.runtime.sizes import Sizes, result_shapes, solve

_PLANS = 256  # shapes remembered for each export
_PATIENCE = 32  # calls that are alike before calls like them are made fast, at most
_BIG = 1 << 20  # bytes of a result whose memory is kept,
_SPARE = 2  # so many for a shape,
_SHAPES = 4  # for the last shapes
_HELD = 3  # references to memory that only the list, the loop and the question hold


@dataclass(frozen=True)
class Plan:
    """All that follows from the shapes of one call."""

    sizes: Sizes
    dims: Array  # ABI order
    results: tuple[tuple[tuple[int, ...], tuple[int, ...]] | None, ...]  # native, seen; None: tree
    arena: int  # bytes
    threads: int
    small: bool  # so little work that keeping values does not pay, nor releasing the interpreter
    fast: bool  # work for a FastCall
    keeps: Keeps | None = None  # if it is to keep values


@dataclass
class Call:
    """One call's values: `values[i]` belongs to `args[i]`; arrays, modules, trees, integers."""

    values: list[Any]
    plan: Plan


class Export:
    """One exported function. Call it like a Python function with the declared argument names."""

    def __init__(self, sig: ExportSig, program: Program) -> None:
        self.sig = sig
        self.program = program
        self.args = tuple(a for a in sig.args if a.kind != "rng")
        self.names = tuple(a.name for a in self.args)
        self.draws = any(a.kind == "rng" for a in sig.args)
        self.writes = any(a.inout for a in sig.args)
        self._kept_for = [a.kind == "module" and not a.inout for a in self.args]
        self.native = program.natives[sig.symbol]
        self._entry: Entry | None = None
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._fast: FastCall | None = None
        # Calls like the last that came this way, and how many make them worth remembering.
        self._last: Plan | None = None
        self._calls, self._patience = 0, 2
        self._kept: dict[tuple[Any, ...], list[Array]] = {}
        self.__doc__ = f"{sig.text}\n\n{sig.doc}".strip()
        self.__name__ = self.__qualname__ = sig.name

    def __new__(cls, sig: ExportSig, *rest: Any) -> Export:
        """Each export has its own class: tracebacks point at its line in the `.nn` file."""
        file, line = split_place(sig.place)
        call = boundary(cls.call, file, line, sig.name)
        init = boundary(cls.init, file, line, sig.name)
        own = type("Export", (cls,), {"__call__": call, "init": init})
        made: Export = super().__new__(own)
        return made

    def __repr__(self) -> str:
        return self.sig.text or f"export def {self.sig.name}"

    def __copy__(self) -> Export:
        return self  # as functions do

    def __deepcopy__(self, memo: dict[int, object]) -> Export:
        return self

    @boundary
    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise ArgumentError(f"{self.sig.name} cannot be pickled\n  help: nnc.load(...) makes it")

    def forget_plans(self) -> None:
        """For when the number of threads changed."""
        with self.program.lock:
            self._plans.clear()
        if self._fast is not None:
            self._fast.forget()

    def takes_first(self, module: str) -> bool:
        """Whether the first argument is a module of this type."""
        return bool(self.args) and (self.args[0].kind, self.args[0].module) == ("module", module)

    # ---- a call ---------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        call = self.bind(args, kwargs)
        if self._entry is None:
            self._entry = Entry(self.native, self.program.code, self.pointer_count())
        results = self.new_results(call.plan)
        entry = self._entry
        with entry.lock:
            entry.set_dims(call.plan.dims)
            entry.prepare(call.plan.arena, call.plan.threads)  # refused: nothing has changed
            drawn = self.program.draw() if self.draws else None
            at = self.fill(entry, call.values, drawn)
            put_results(entry, at, results)
            try:
                with entry.keeping(call.plan.keeps, self._read(call)):
                    entry.run(call.plan.arena, call.plan.threads)
            except Error:
                self.program.take_back(drawn)
                raise
            finally:
                if self.writes:
                    self.mark_written(call.values)
        if call.plan.fast:
            self._remember(call)
        return self.wrap(results, call.plan)

    def _read(self, call: Call) -> list[Store]:
        """The modules on which what is kept depends."""
        if call.plan.keeps is None:
            return []
        return [v for i, v in zip(self._kept_for, call.values, strict=True) if i]

    def _remember(self, call: Call) -> None:
        """From now on calls like this one are fast, if those before were like it: the more of them,
        the oftener that was so (for calls that alternate)."""
        same = call.plan is self._last
        self._last, self._calls = call.plan, self._calls + 1 if same else 1
        if self._calls < self._patience:
            return
        self._calls, self._patience = 0, min(2 * self._patience, _PATIENCE)
        if self._fast is None:
            if not FastCall.fits(self.sig.args, self.sig.results):
                return
            entry = Entry(self.native, self.program.code, self.pointer_count())
            slow = MethodType(type(self).__call__, self)

            def refused() -> None:
                raise entry.index_error()

            fail = boundary(refused, *split_place(self.sig.place), self.sig.name)
            self._fast = FastCall(entry, self.args, slow, fail)
            type.__setattr__(type(self), "__call__", self._fast.call)
        shapes = [shape[1] for shape in call.plan.results if shape is not None]
        dtypes = [numpy_dtype(r.type.dtype) for r in self.sig.results if r.type is not None]
        plan = call.plan
        many = plan.keeps is not None and plan.keeps.rows > 1  # one row does not read copies
        self._fast.remember(
            call.values,
            plan.dims,
            plan.arena,
            list(zip(dtypes, shapes, strict=True)),
            returns_tuple=self.sig.returns_tuple,
            threads=plan.threads,
            releases=not plan.small,
            keeps_for=self._read(call) if many else [],
        )

    def init(self, argument: str, *like: Any, seed: int = 0, files: Any = None) -> Module:
        """A new module of the type that the argument is declared with."""
        arg = next((a for a in self.args if a.name == argument), None)
        if arg is None:
            raise ArgumentError(f"{self.sig.name} has no argument {argument!r}{self._declared()}")
        if arg.kind != "module":
            raise ArgumentError(f"{self.sig.name}: {argument} is no module: {arg.text}")
        return initialised(self.program, self.program.modules[arg.module], seed, files)

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """Arguments in declared order, converted, with the plan for their shapes."""
        if kwargs or len(args) != len(self.args):
            args = self._ordered(args, kwargs)
        values = [self._convert(a, v) for a, v in zip(self.args, args, strict=True)]
        key = tuple([_given(v) for v in values])
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plan(key)
        if self.writes:
            self._refuse_overlap(values)
        return Call(values, plan)

    def _convert(self, arg: ArgSig, value: Any) -> Any:
        match arg.kind:
            case "tensor":
                return tensor_argument(self.sig.name, arg, value)
            case "dim":
                return dim_argument(self.sig.name, arg, value)
            case "module":
                return self._module(arg, value)
        return self._tree(arg, value)

    def _ordered(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        name = self.sig.name
        if len(args) > len(self.args):
            few = f"{len(self.args)} argument" + ("s" if len(self.args) != 1 else "")
            raise ArgumentError(f"{name} takes {few}, got {len(args)}{self._declared()}")
        given = dict(zip(self.names, args, strict=False))
        for key, value in kwargs.items():
            if key not in self.names:
                hint = nearest(key, self.names)
                raise ArgumentError(f"{name} has no argument {key!r}{hint}{self._declared()}")
            if key in given:
                raise ArgumentError(f"{name} got {key!r} twice{self._declared()}")
            given[key] = value
        missing = [a.name for a in self.args if a.name not in given and a.default is None]
        if missing:
            raise ArgumentError(f"{name} is missing {', '.join(missing)}{self._declared()}")
        return [given.get(a.name, a.default) for a in self.args]

    def _declared(self) -> str:
        text = f"\n  {self.sig.text}" if self.sig.text else ""
        return text + (f" ({self.sig.place})" if self.sig.place else "")

    def _module(self, arg: ArgSig, value: Any) -> Module:
        sig = self.program.modules[arg.module]
        if isinstance(value, Module) and (value.sig is sig or value.sig.leaves == sig.leaves):
            return value
        lines = [f"{self.sig.name}: {arg.name} must be a {sig.id}, got {_named(value)}"]
        lines.append(
            f"  {arg.name}: {arg.text or sig.id}" + (f" ({arg.place})" if arg.place else "")
        )
        if isinstance(value, Module):
            lines.append(_first_difference(sig, value.sig))
        elif isinstance(value, Mapping):
            lines.append(f"  help: a module is made by m.{sig.name}.init(), then net[key] = array")
        raise ArgumentError("\n".join(lines))

    def _tree(self, arg: ArgSig, value: Any) -> Store:
        sig = self.program.modules[arg.module]
        if isinstance(value, Tree | Module) and value.sig.leaves == sig.leaves:
            return value
        raise ArgumentError(
            f"{self.sig.name}: {arg.name} must be a params({sig.id}), got {_named(value)}\n"
            f"  help: a {sig.id} (its params), or what a function returned as params({sig.id})"
        )

    def _refuse_overlap(self, values: Sequence[Any]) -> None:
        """Memory that is written may be named once only."""
        spans = []
        for arg, value in zip(self.args, values, strict=True):
            if not isinstance(value, int):
                start = 0 if isinstance(value, Store) else pointer(value)
                span = value.span if isinstance(value, Store) else (start, start + value.nbytes)
                spans.append((arg, value, *span))
        for (a, x, a0, a1), (b, y, b0, b1) in combinations(spans, 2):
            if (a.inout or b.inout) and a0 < b1 and b0 < a1:
                modules = isinstance(x, Module) and isinstance(y, Module)
                spare = a if b.inout and not a.inout else b
                fix = f"{spare.name}.copy()" if modules else f"np.copy({spare.name})"
                raise ArgumentError(
                    f"{self.sig.name}: {a.name} and {b.name} share memory, and "
                    f"{a.name if a.inout else b.name} is written in place\n  help: {fix}"
                )

    @property
    def variants(self) -> tuple[str, ...]:
        """What `specialize` has made of it: `f(T=1)`, in the order in which they are tried."""
        return tuple(f"{self.sig.name}({s.text})" for s in self.native.specials)

    # ---- sizes ----------------------------------------------------------------------------------

    def _plan(self, key: tuple[Any, ...]) -> Plan:
        given = [g for g in key if g is not None]
        sizes = solve(self.sig, given)
        try:
            plan = self.plan_for(self.native, sizes)
        except OverflowError:
            raise ShapeError(f"{self.sig.name}: sizes {sizes.env} are beyond 2^63 bytes") from None
        with self.program.lock:
            if len(self._plans) >= _PLANS:
                self._plans.pop(next(iter(self._plans)))
            self._plans[key] = plan
        return plan

    def plan_for(self, native: Native, sizes: Sizes) -> Plan:
        env = sizes.env
        arena = native.arena_at(env)
        shapes = tuple(self._result_shape(r, sizes) for r in self.sig.results)
        if arena >= 1 << 62:
            raise OverflowError
        short = all(r.type.bytes.evaluate(env) < SHORT for r in self.sig.results if r.type)
        work = native.work.evaluate(env)
        small = short and work < SMALL
        fast = short and work < LONG and (small or arena < ROOM)
        keeps = self._keeps(native, env, gives_back=not fast)
        return Plan(
            sizes=sizes,
            dims=np.array([env[n] for n in native.dims], np.int64),
            results=shapes,
            arena=arena,
            threads=native_threads(native, env, self.program.threads),
            small=small,
            fast=fast,
            keeps=None if small or not keeps.rows else keeps,
        )

    def _keeps(self, native: Native, env: Mapping[str, int], gives_back: bool) -> Keeps:
        """`gives_back`: whether leaves need not be in memory where their copies are."""
        variant, rows = native.keeps(env)
        needed, replaced = [], []
        for number, copy in enumerate(native.copies_at(env)):
            if copy.needed(env):
                needed.append(number)
                if gives_back and copy.replaces(env) and copy.leaf in self._leaves:
                    slabs = partial(Slabs, copy=copy)
                    replaced.append(Replaced(number, *self._leaves[copy.leaf], slabs))
        return Keeps(variant, rows, tuple(needed), tuple(replaced))

    @cached_property
    def _leaves(self) -> dict[int, tuple[int, int]]:
        """Of native arguments that are leaves of modules which are only read: the number of the
        module among these, and of the leaf."""
        out: dict[int, tuple[int, int]] = {}
        position = modules = 0
        for arg in self.sig.args:
            count = len(self.leaf_names(arg))
            if arg.kind == "module" and not arg.inout:
                out |= {position + i: (modules, i) for i in range(count)}
                modules += 1
            position += count
        return out

    def _result_shape(
        self, result: ResultSig, sizes: Sizes
    ) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        if result.type is None:
            return None
        native, seen = result_shapes(result.type, result.packs, sizes)
        if result.type.bytes.evaluate(sizes.env) >= 1 << 62:
            raise OverflowError
        return native, seen

    # ---- pointers -------------------------------------------------------------------------------

    def pointer_count(self) -> int:
        """Native arguments and results."""
        return sum(len(self.leaf_names(a)) for a in self.sig.args) + sum(
            1 if r.kind == "tensor" else len(_params(self.program.modules[r.module]))
            for r in self.sig.results
        )

    def leaf_names(self, arg: ArgSig) -> list[str]:
        """Native names of one argument: `x`, `net.fc1.weight`; none for a dim."""
        match arg.kind:
            case "dim":
                return []
            case "module":
                return [
                    f"{arg.name}.{leaf.key}" for leaf in self.program.modules[arg.module].leaves
                ]
            case "tree":
                return [f"{arg.name}.{k}" for k in _params(self.program.modules[arg.module])]
        return [arg.name]

    def fill(self, entry: Entry, values: Sequence[Any], rng: tuple[int, int] | None) -> int:
        """Writes the argument pointers; returns the position after them."""
        if rng is not None:
            entry.rng[:] = rng
        position = 0
        rest = iter(values)
        for arg in self.sig.args:
            if arg.kind == "rng":
                entry.args[position] = entry.rng_pointers[arg.name != "seed"]
                position += 1
                continue
            position = put(entry, position, arg.kind, next(rest))
        return position

    def new_results(self, plan: Plan) -> list[Any]:
        """Fresh memory for each result: arrays of the native shape, or trees."""
        out: list[Any] = []
        for result, shape in zip(self.sig.results, plan.results, strict=True):
            if shape is None or result.type is None:
                out.append(Tree(self.program.modules[result.module]))
            else:
                out.append(self._array(shape[0], numpy_dtype(result.type.dtype)))
        return out

    def _array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Memory for a result. What big results of earlier calls lay in is used again when nobody
        holds it any more: fresh pages cost the system more than most kernels do with them."""
        if prod(shape) * dtype.itemsize < _BIG:
            return empty(shape, dtype)
        with self.program.lock:
            kept = self._kept.get((shape, dtype), [])
            for buffer in kept:
                if sys.getrefcount(buffer) == _HELD:
                    return buffer.view()
            fresh = empty(shape, dtype)
            if len(self._kept) >= _SHAPES:
                self._kept.clear()
            self._kept[(shape, dtype)] = [*kept, fresh][-_SPARE:]
        return fresh.view()

    def wrap(self, results: Sequence[Any], plan: Plan) -> Any:
        """The results as the caller sees them."""
        seen = [_seen(r, s) for r, s in zip(results, plan.results, strict=True)]
        if self.sig.returns_tuple:
            return tuple(seen)
        return seen[0] if seen else None

    def mark_written(self, values: Sequence[Any]) -> None:
        for arg, value in zip(self.args, values, strict=True):
            if arg.inout and isinstance(value, Store):
                value.version += 1


def put(entry: Entry, position: int, kind: str, value: Any) -> int:
    if kind == "tensor":
        entry.args[position] = pointer(value)
        return position + 1
    if kind == "dim":
        return position
    pointers = value.addresses_for(entry) if kind == "module" else value.param_pointers
    return entry.set_pointers(position, pointers)


def put_results(entry: Entry, position: int, results: Sequence[Any]) -> int:
    for result in results:
        position = put(entry, position, "tree" if isinstance(result, Tree) else "tensor", result)
    return position


def _params(sig: ModuleSig) -> list[str]:
    return [leaf.key for leaf in sig.leaves if leaf.storage == "param"]


def _given(value: Any) -> Any:
    """The part of a value that sizes depend on."""
    if isinstance(value, Store):
        return None
    return value if isinstance(value, int) else value.shape


def _seen(result: Any, shape: tuple[tuple[int, ...], tuple[int, ...]] | None) -> Any:
    if shape is None:
        return result
    if shape[0] != shape[1]:
        result = result.reshape(shape[1])
    return result if result.ndim else result[()]


def _named(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return "an array"
    return value.sig.id if isinstance(value, Store) else f"a {type(value).__name__}"


def _first_difference(sig: ModuleSig, other: ModuleSig) -> str:
    have = {leaf.key: leaf for leaf in other.leaves}
    for leaf in sig.leaves:
        if leaf.key not in have:
            return f"  it has no {leaf.key} {leaf.type}"
        if have[leaf.key].type != leaf.type:
            return f"  {leaf.key} is {have[leaf.key].type} there, {leaf.type} here"
    return "  their leaves differ"
