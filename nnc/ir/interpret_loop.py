"""A slow, simple interpreter of Programs, one scalar at a time: tests lowering without a back end.

Floats are float64. The arena is one array with a slot for each byte; an element lies at its first
byte, so buffers that wrongly share memory destroy each other. Memory not written yet holds NaN.
Loops that are parallel or vector run in a shuffled order.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from nnc.ir import external
from nnc.ir.expr import Const, Expr, Idx, Load, Op, Select, Var
from nnc.ir.graph import Axis
from nnc.ir.interpret import JOIN, IndexFault, convert, lowest, numpy_dtype
from nnc.ir.loop import (
    Buffer,
    Call,
    Commit,
    Contract,
    For,
    Kernel,
    Let,
    Program,
    Reduce,
    Repeat,
    Step,
    Stmt,
    Store,
)
from nnc.ir.scalar import SCALARS
from nnc.lang.dims import ZERO
from nnc.lang.types import DTYPES

Env = dict[str, Any]


def run_program(
    program: Program, dims: Mapping[str, int], arrays: Sequence[np.ndarray[Any, Any]]
) -> list[np.ndarray[Any, Any]]:
    """Runs it on copies of the inputs (ABI order); gives all arguments after the call, results too.

    Raises ProgramFault at a `Commit` (or the end) when a check failed before.
    """
    machine = _Machine(program, dims, arrays)
    machine.steps(program.steps, dict(dims))
    machine.leave_on_fault()
    return machine.args


class ProgramFault(Exception):
    """An index check failed; `arguments` as they were left."""

    def __init__(self, fault: IndexFault, args: list[np.ndarray[Any, Any]]) -> None:
        super().__init__(str(fault))
        self.fault, self.arguments = fault, args


class _Machine:
    def __init__(self, program: Program, dims: Mapping[str, int], arrays: Sequence[Any]) -> None:
        self.dims = dims
        self.rng = random.Random(1)
        self.fault: IndexFault | None = None
        self.arena = np.full(program.arena.evaluate(dims), np.nan)
        self.args: list[np.ndarray[Any, Any]] = []
        for i, b in enumerate(program.args):
            shape = tuple(d.evaluate(dims) for d in b.type.shape)
            value: Any = np.asarray(arrays[i]) if i < len(arrays) else np.full(shape, np.nan)
            assert value.shape == shape, (b, value.shape, shape)
            kind = numpy_dtype(b.type.dtype) if i < len(arrays) else np.dtype(np.float64)
            self.args.append(np.array(value, dtype=kind))
        self.locals: dict[str, np.ndarray[Any, Any]] = {}
        self.homes = {b.name: b.type.dtype for b in program.buffers}

    def leave_on_fault(self) -> None:
        if self.fault is not None:
            raise ProgramFault(self.fault, self.args)

    def steps(self, steps: Sequence[Step], env: Env) -> None:
        for step in steps:
            match step:
                case Kernel():
                    self.block(step.body, env)
                case Commit():
                    self.leave_on_fault()
                case Repeat():
                    self.repeat(step, env)

    def repeat(self, loop: Repeat, env: Env) -> None:
        for turn in range(loop.trip.evaluate(env)):
            inside = {**env, loop.var: turn}
            self.steps(loop.before, inside)
            if loop.cond is not None and not self.read(loop.cond, (), inside):
                break
            self.steps(loop.steps, inside)

    # ---- memory -------------------------------------------------------------------------------

    def place(self, b: Buffer, index: Sequence[int], env: Env) -> tuple[np.ndarray[Any, Any], int]:
        """The flat memory of a buffer and the position of an element in it."""
        shape = [d.evaluate(env) for d in b.type.shape]
        assert all(0 <= i < n for i, n in zip(index, shape, strict=True)), (b.name, index, shape)
        flat = 0
        for i, n in zip(index, shape, strict=True):
            flat = flat * n + i
        size = DTYPES[b.type.dtype].bytes
        match b.scope:
            case "arg":
                return self.args[b.slot].reshape(-1), flat
            case "const":
                return np.array(b.data), flat
            case "local":
                count = b.bytes.evaluate(env) // size
                return self.locals.setdefault(b.name, np.full(count, np.nan)), flat
        return self.arena, b.offset.evaluate(env) + flat * size

    def read(self, b: Buffer, index: Sequence[int], env: Env) -> Any:
        memory, at = self.place(b, index, env)
        value = memory[at]
        if b.type.dtype == "i32" and self.homes.get(b.name) == "u8":  # a word of four bytes
            value = np.array(memory[at : at + 4]).astype(np.uint8).view(np.int32)[0]
        assert not (value != value and DTYPES[b.type.dtype].kind != "f"), f"{b.name} not written"
        return numpy_dtype(b.type.dtype).type(value)

    def write(self, s: Store, env: Env) -> None:
        if s.guard is not None and not self.value(s.guard, env):
            return
        index = [int(self.value(i, env)) for i in s.index]
        sizes = [d.evaluate(env) for d in s.buffer.type.shape]
        if self.outside(index, sizes, s.check):
            return
        value = self.value(s.value, env)
        memory, at = self.place(s.buffer, index, env)
        if s.accumulate:
            value = numpy_dtype(s.buffer.type.dtype).type(JOIN[s.accumulate](memory[at], value))
        memory[at] = value

    def outside(self, index: Sequence[int], sizes: Sequence[int], check: Any) -> bool:
        """Records a checked index that lies outside."""
        for axis, (i, n) in enumerate(zip(index, sizes, strict=True)):
            if not 0 <= i < n and check is not None:
                self.fault = self.fault or IndexFault(check, axis, i, n)
                return True
        return False

    # ---- statements ---------------------------------------------------------------------------

    def block(self, stmts: Sequence[Stmt], env: Env) -> None:
        """Runs statements in a scope of their own."""
        env = dict(env)
        for s in stmts:
            match s:
                case For():
                    self.loop(s, env)
                case Let(name=name, value=value):
                    env[name] = self.value(value, env)
                case Store():
                    self.write(s, env)
                case Reduce():
                    env[s.name] = self.reduce(s.op, s.axes, s.value, env)
                    if s.best:
                        env[s.best] = self.reduce(s.op.removeprefix("arg"), s.axes, s.value, env)
                case Contract():
                    self.contract(s, env)
                case Call():
                    self.call(s, env)

    def loop(self, s: For, env: Env) -> None:
        order = list(range(s.axis.extent.evaluate(env)))
        if s.kind in ("parallel", "vector"):
            self.rng.shuffle(order)
        for i in order:
            if s.kind == "parallel":
                self.locals = {}
            self.block(s.body, {**env, s.axis.var: i})

    def reduce(self, op: str, axes: Sequence[Axis], value: Expr, env: Env) -> Any:
        values = [self.value(value, {**env, **at}) for at in _points(axes, env)]
        array = np.array(values, numpy_dtype(value.dtype))
        match op:
            case "sum" | "prod":
                return getattr(array, op)(dtype=array.dtype)
            case "any" | "all":
                return getattr(array, op)()
            case "max" | "min":
                return getattr(array, op)(initial=lowest(array.dtype, op))
        return np.int32(getattr(np, op)(array)) if values else np.int32(0)

    def contract(self, s: Contract, env: Env) -> None:
        for at in _points((*s.batch, *s.m, *s.n), env):
            here = {**env, **at}
            terms = [self.value(s.product, {**here, **k}) for k in _points(s.k, here)]
            exact = np.float64 if s.fn == "mul" else np.int32
            here[s.name] = np.sum(np.array(terms, exact), dtype=exact)
            self.block(s.epilogue, here)

    def call(self, s: Call, env: Env) -> None:
        out, index = s.result.buffer, s.result.index
        memory, places = self.region(out, index, env)
        inputs = []
        for e, scalar in zip(s.inputs, s.scalars, strict=True):
            assert isinstance(e.tensor, Buffer), e
            whole, at = self.region(e.tensor, e.index, env)
            value = whole[at].astype(numpy_dtype(e.dtype))
            inputs.append((e.dtype, value[0] if scalar else value))
        dtype, shape = out.type.dtype, (len(places),)
        if s.each is not None:
            memory[places] = external.call_each(s.symbol, inputs, dtype, shape)
            return
        sizes = [d.evaluate(env) for d in s.sizes]
        memory[places] = external.call(s.symbol, sizes, inputs, dtype, shape)

    def region(self, b: Buffer, index: Sequence[Expr], env: Env) -> tuple[Any, Any]:
        """The flat memory of a buffer, and the positions from an element to the buffer's end that
        are one value: behind the indices that are not zero."""
        at = [int(self.value(i, env)) for i in index]
        memory, start = self.place(b, at, env)
        lead = max((d + 1 for d, i in enumerate(index) if not _is_zero(i)), default=0)
        count = math.prod(d.evaluate(env) for d in b.type.shape[lead:])
        step = DTYPES[b.type.dtype].bytes if b.scope == "arena" else 1
        return memory, start + step * np.arange(count)

    # ---- expressions --------------------------------------------------------------------------

    def value(self, root: Expr, env: Env) -> Any:
        """Lazy: only the taken side of a Select is evaluated, `other` only outside."""
        done: dict[int, Any] = {}
        stack = [root]
        while stack:
            e = stack[-1]
            if id(e) in done:
                stack.pop()
                continue
            needed = self.needs(e, done, env)
            missing = [c for c in needed if id(c) not in done]
            if missing:
                stack += missing
                continue
            if isinstance(e, Select):
                missing = [e.a if done[id(e.cond)] else e.b]
            elif isinstance(e, Load) and e.other is not None and not self.inside(e, done, env):
                missing = [e.other]
            if missing and id(missing[0]) not in done:
                stack += missing
                continue
            done[id(e)] = done[id(missing[0])] if missing else self.compute(e, done, env)
        return done[id(root)]

    def needs(self, e: Expr, done: dict[int, Any], env: Env) -> tuple[Expr, ...]:
        match e:
            case Load(index=index):
                return index
            case Op(args=args):
                return args
            case Select(cond=c):
                return (c,)
        return ()

    def inside(self, e: Load, done: dict[int, Any], env: Env) -> bool:
        sizes = (d.evaluate(env) for d in e.tensor.type.shape)
        return all(0 <= done[id(i)] < n for i, n in zip(e.index, sizes, strict=True))

    def compute(self, e: Expr, done: dict[int, Any], env: Env) -> Any:
        match e:
            case Const(dtype=dtype, value=value):
                return numpy_dtype(dtype).type(value)
            case Idx(dim=dim):
                return np.int64(dim.evaluate(env))
            case Var(name=name):
                return env[name]
            case Load(tensor=tensor, index=index, check=check):
                at = [int(done[id(i)]) for i in index]
                sizes = [d.evaluate(env) for d in tensor.type.shape]
                if self.outside(at, sizes, check):
                    return numpy_dtype(e.dtype).type(0)
                assert isinstance(tensor, Buffer), e
                return self.read(tensor, at, env)
            case Op(fn="cast", args=(a,)):
                return convert(np.asarray(done[id(a)]), e.dtype)[()]
            case Op(fn=fn, args=args):
                with np.errstate(all="ignore"):
                    value = SCALARS[fn].numpy(*(done[id(a)] for a in args))
                return np.asarray(value).astype(numpy_dtype(e.dtype))[()]
        raise AssertionError(e)


def _is_zero(e: Expr) -> bool:
    return isinstance(e, Idx) and e.dim == ZERO


def _points(axes: Sequence[Axis], env: Env) -> Iterator[dict[str, int]]:
    """All iterations of loops in row-major order."""
    sizes = [range(a.extent.evaluate(env)) for a in axes]
    for at in product(*sizes):
        yield dict(zip((a.var for a in axes), at, strict=True))
