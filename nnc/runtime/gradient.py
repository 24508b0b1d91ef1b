"""`run = m.f.forward(...)`, `run.backward(dy)`: any export with a float result, differentiated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nnc.errors import ArgumentError, AttributeError, Error, nearest
from nnc.ir.signature import ArgSig, Differentiated
from nnc.lang.types import TensorType, is_float
from nnc.runtime.arrays import tensor_argument
from nnc.runtime.boundary import boundary
from nnc.runtime.cpu import Code, Entry, find_externs
from nnc.runtime.export import Call, Export, put_results
from nnc.runtime.leaves import Module, Store, Tree, Witness
from nnc.runtime.memory import Array, empty, numpy_dtype, pointer
from nnc.runtime.modules import native_threads


class Gradients:
    """Gradients by argument name: `grads.x`, `grads.net["fc1.weight"]`; also `grads["x"]`."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    @boundary
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]

    @boundary
    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            hint = nearest(name, self._values) or f"; there are {', '.join(self._values)}"
            raise AttributeError(f"no gradient for {name!r}{hint}")
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._values]

    def __repr__(self) -> str:
        return f"<gradients of {', '.join(self._values)}>"


class Differentiable:
    """The two natives of one export, loaded."""

    def __init__(self, export: Export, native: Differentiated, code: Code) -> None:
        self.export = export
        self.native = native
        find_externs((native.forward, native.backward), code.libraries)
        own = Code(native.objects, native.support, code.libraries)
        self.code = own if native.objects else code
        count = export.pointer_count() + len(native.saved)
        self.entry = Entry(native.forward, self.code, count)
        inputs = len(native.inputs) + len(native.gradients)
        self.back = Entry(native.backward, self.code, inputs)

    def forward(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Run:
        export, entry = self.export, self.entry
        call = export.bind(args, kwargs)
        plan = export.plan_for(self.native.forward, call.plan.sizes)
        results = export.new_results(plan)
        saved = [_new(t, plan.sizes.env) for t in self.native.saved]
        with entry.lock:
            entry.set_dims(plan.dims)
            entry.prepare(plan.arena, plan.threads)  # refused: nothing has changed
            rng = export.program.draw() if export.draws else None
            at = export.fill(entry, call.values, rng)
            at = put_results(entry, at, [*results, *saved])
            try:
                entry.run(plan.arena, plan.threads)
            except Error:
                export.program.take_back(rng)
                raise
            finally:
                export.mark_written(call.values)
        return Run(self, Call(call.values, plan), results, saved, rng)


class Run:
    """One forward call and what its backward needs.

    `value`: the result (a tuple for tuples); `backward(dy)`, `backward(dy1, dy2)` or
    `backward((dy1, dy2))`: gradients for every float argument that is not `inout`. Scalar results
    need no `dy` (it is 1). The arrays that were given must not have changed in between; a module
    that has is an error.
    """

    def __init__(
        self,
        made_by: Differentiable,
        call: Call,
        results: list[Any],
        saved: list[Array],
        rng: tuple[int, int] | None,
    ) -> None:
        self._by = made_by
        self._call = call
        self._results = results
        named = zip(made_by.export.names, call.values, strict=True)
        self._witnesses = [(name, Witness(v)) for name, v in named if isinstance(v, Store)]
        self._arrays = {f"saved.{i}": a for i, a in enumerate(saved)}
        self._arrays |= dict(
            zip(("seed", "step"), np.array(rng or (0, 0), np.int64)[:, None], strict=True)
        )
        self.value = made_by.export.wrap(results, call.plan)

    def __repr__(self) -> str:
        return f"<run of {self._by.export.sig.name}>"

    @boundary
    def backward(self, *derivatives: Any) -> Gradients:
        export, native, entry = self._by.export, self._by.native, self._by.back
        self._refuse_changed()
        arrays = {**self._arrays, **self._derivatives(derivatives)}
        gradients = self._new_gradients()
        env = self._call.plan.sizes.env
        pointers = self._argument_pointers() | {k: pointer(a) for k, a in arrays.items()}
        with entry.lock:
            names = [*(pointers[n] for n in native.inputs)]
            targets = [_gradient_pointer(gradients, n) for n in native.gradients]
            entry.args[: len(names) + len(targets)] = names + targets
            dims = [env[n] for n in native.backward.dims]
            entry.dims[: len(dims)] = dims
            threads = native_threads(native.backward, env, export.program.threads)
            entry.run(native.backward.arena.evaluate(env), threads)
        return Gradients({n: self._wrapped(n, g) for n, g in gradients.items()})

    def _refuse_changed(self) -> None:
        for name, witness in self._witnesses:
            if witness.changed:
                raise Error(
                    f"{name} was changed after this forward call: its backward no longer fits\n"
                    "  help: call backward before the update, or forward again"
                )

    def _derivatives(self, given: Sequence[Any]) -> dict[str, Array]:
        """`d.N` of every native float result."""
        rows = self._float_results()
        if len(given) == 1 and isinstance(given[0], tuple | list):
            given = given[0]
        if not given and all(isinstance(r, np.ndarray) and r.ndim == 0 for _, _, r in rows):
            given = [1.0] * len(rows)
        if len(given) != len(rows):
            name = self._by.export.sig.name
            need = f"{len(rows)} derivative" + ("s" if len(rows) != 1 else "")
            raise ArgumentError(f"backward of {name} takes {need}, got {len(given)}")
        out: dict[str, Array] = {}
        for (first, position, result), value in zip(rows, given, strict=True):
            out |= self._derivative(first, position, result, value)
        return out

    def _float_results(self) -> list[tuple[int, int, Any]]:
        """(first native number, position, memory) of every result that has a derivative."""
        rows = []
        number = 0
        for i, (sig, result) in enumerate(
            zip(self._by.export.sig.results, self._results, strict=True)
        ):
            if sig.type is None or is_float(sig.type.dtype):
                rows.append((number, i, result))
            number += len(result) if isinstance(result, Tree) else 1
        return rows

    def _derivative(self, first: int, position: int, result: Any, value: Any) -> dict[str, Array]:
        where = f"backward of {self._by.export.sig.name}"
        if isinstance(result, Tree):
            if not isinstance(value, Tree) or value.sig is not result.sig:
                raise ArgumentError(f"{where}: d{position} must be a params({result.sig.id})")
            return {f"d.{first + i}": a for i, a in enumerate(value.arrays.values())}
        sig = self._by.export.sig.results[position]
        arg = ArgSig(f"dy{position}" if len(self._results) > 1 else "dy", "tensor", sig.type)
        array = tensor_argument(where, arg, value)
        shape = self._call.plan.results[position]
        assert shape is not None
        if array.shape != shape[1]:
            raise ArgumentError(
                f"{where}: {arg.name} needs the shape of the result, {shape[1]}, got {array.shape}"
            )
        return {f"d.{first}": array}

    def _argument_pointers(self) -> dict[str, int]:
        out: dict[str, int] = {}
        for arg, value in zip(self._by.export.args, self._call.values, strict=True):
            names = self._by.export.leaf_names(arg)
            if isinstance(value, Module | Tree):
                stored = value.pointers if arg.kind == "module" else value.param_pointers
                out |= dict(zip(names, (int(p) for p in stored), strict=True))
            elif names:
                out[arg.name] = pointer(value)
        return out

    def _new_gradients(self) -> dict[str, Any]:
        """Memory for each argument's gradient: an array or a tree."""
        out: dict[str, Any] = {}
        wanted = self._by.native.gradients
        for arg, value in zip(self._by.export.args, self._call.values, strict=True):
            if isinstance(value, Store):
                if any(n.startswith(f"{arg.name}.") for n in wanted):
                    out[arg.name] = Tree(self._by.export.program.modules[arg.module])
            elif arg.name in wanted:
                out[arg.name] = empty(value.shape, value.dtype)
        return out

    def _wrapped(self, name: str, gradient: Any) -> Any:
        return gradient if isinstance(gradient, Tree) or gradient.ndim else gradient[()]


def _gradient_pointer(gradients: dict[str, Any], name: str) -> int:
    argument, _, key = name.partition(".")
    value = gradients[argument]
    return pointer(value.arrays[key] if key else value)


def _new(type_: TensorType, env: dict[str, int]) -> Array:
    return empty(tuple(d.evaluate(env) for d in type_.shape), numpy_dtype(type_.dtype))
