"""Which argument of an exported step is the network, the samples, the learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt, prod
from typing import Any

import numpy as np

from nnc.errors import ArgumentError, DtypeError
from nnc.ir.signature import ArgSig
from nnc.lang.types import is_float, is_int
from nnc.runtime.data import Data
from nnc.runtime.export import Export
from nnc.runtime.leaves import Module
from nnc.runtime.memory import Array, numpy_dtype
from nnc.runtime.model import Model
from nnc.runtime.modules import initialised


@dataclass(frozen=True)
class Roles:
    """How to call one export: argument names by what they are given."""

    modules: tuple[ArgSig, ...]
    samples: tuple[tuple[ArgSig, int], ...]  # (argument, which of the arrays)
    lr: str | None
    fixed: dict[str, float | int]

    def arguments(
        self, modules: Mapping[str, Module], samples: Sequence[Array], lr: float
    ) -> dict[str, Any]:
        out: dict[str, Any] = {a.name: modules[a.name] for a in self.modules}
        out |= {a.name: samples[i] for a, i in self.samples}
        return out | self.fixed | ({self.lr: lr} if self.lr else {})


def roles(export: Export, data: Data, given: Mapping[str, float | int]) -> Roles:
    """ArgumentError naming what `nnc train` cannot supply."""
    tensors = [a for a in export.args if a.kind == "tensor" and _rank(a) > 0]
    scalars = [a for a in export.args if a.kind == "dim" or (a.kind == "tensor" and _rank(a) == 0)]
    for name in given:
        if all(name != a.name for a in scalars):
            raise ArgumentError(f"{export.sig.name} has no number {name!r} to set\n  {export}")
    lr = _learning_rate(scalars, given)
    fixed: dict[str, float | int] = {}
    for arg in scalars:
        if arg.name == lr:
            continue
        value = given.get(arg.name, arg.default)
        if value is None:
            raise _unknown(export, arg, f"say --arg {arg.name}=VALUE")
        fixed[arg.name] = value
    for arg in [a for a in export.args if a.kind == "tree" or (a in tensors and a.inout)]:
        raise _unknown(export, arg, "keep it inside the module as `state`")
    modules = tuple(a for a in export.args if a.kind == "module")
    return Roles(modules, _samples(export, tensors, data), lr, fixed)


def _rank(arg: ArgSig) -> int:
    assert arg.type is not None, arg
    return arg.type.rank


def _unknown(export: Export, arg: ArgSig, help_: str) -> ArgumentError:
    return ArgumentError(
        f"nnc train does not know what to give `{arg.name}` of {export.sig.name}\n"
        f"  {arg.name}: {arg.text or arg.type}\n  help: {help_}"
    )


def _learning_rate(scalars: Sequence[ArgSig], given: Mapping[str, float | int]) -> str | None:
    free = [a for a in scalars if a.name not in given and a.type and is_float(a.type.dtype)]
    if any(a.name == "lr" for a in free):
        return "lr"
    open_ = [a for a in free if a.default is None]
    return open_[0].name if len(open_) == 1 else None


def declared_rate(model: Model, export: str) -> float:
    """The learning rate that the step itself declares: `lr: f32 = 0.003`; else 0.1."""
    args = model.exports[export].args if export in model.exports else ()
    return next((float(a.default) for a in args if a.name == "lr" and a.default is not None), 0.1)


def _samples(
    export: Export, tensors: Sequence[ArgSig], data: Data
) -> tuple[tuple[ArgSig, int], ...]:
    """By name; x and y also by position, where class numbers find the integer argument."""
    if all(a.name in data.names for a in tensors):
        return tuple((a, data.names.index(a.name)) for a in tensors)
    for arg in tensors:
        if arg.name not in data.names and not {*data.names} <= {"x", "y"}:
            has = ", ".join(data.names)
            raise _unknown(export, arg, f"{data.name} has {has}: give one of them this name")
    if len(tensors) > len(data.arrays):
        raise _unknown(export, tensors[len(data.arrays)], f"{data.name} has no more arrays")
    order = list(range(len(tensors)))
    if len(tensors) == 2 and data.arrays[1].dtype.kind in "iu":
        first, second = (bool(a.type and is_int(a.type.dtype)) for a in tensors)
        if first and not second:
            order = [1, 0]
    return tuple((arg, i) for arg, i in zip(tensors, order, strict=True))


# ---- fitting samples to arguments -------------------------------------------------------------


def fitted(found: Roles, arrays: Sequence[Array]) -> list[Array]:
    """x and y as the arguments want them: dtype and, for images, shape."""
    out = list(arrays)
    for arg, i in found.samples:
        out[i] = _reshaped(arg, _converted(arg, arrays[i]))
    return out


def _converted(arg: ArgSig, array: Array) -> Array:
    assert arg.type is not None, arg
    wanted = numpy_dtype(arg.type.dtype)
    if array.dtype == wanted:
        return np.ascontiguousarray(array)
    if not np.can_cast(array.dtype, wanted, "same_kind"):
        raise DtypeError(f"{arg.name} is {arg.type.dtype}, the data are {array.dtype}")
    if wanted.kind in "iu":
        limits = np.iinfo(wanted)
        if array.min() < limits.min or array.max() > limits.max:
            raise DtypeError(f"{arg.name} is {arg.type.dtype}, the data have larger numbers")
    return np.ascontiguousarray(array.astype(wanted))


def _reshaped(arg: ArgSig, array: Array) -> Array:
    """Samples of 64 numbers become [1, 8, 8] when that is what the argument needs."""
    assert arg.type is not None, arg
    if arg.packs or arg.type.rank == array.ndim or arg.type.rank == 0:
        return array
    tail = [d.const for d in arg.type.shape[1:]]
    size = prod(array.shape[1:])
    free = [i for i, c in enumerate(tail) if c is None]
    rest, exact = divmod(size, max(prod(c for c in tail if c is not None), 1))
    if len(free) == 1:
        tail[free[0]] = rest
    elif len(free) >= 2:
        side = isqrt(rest)
        for i in free:
            tail[i] = 1
        tail[free[-1]] = tail[free[-2]] = side
    if exact == 0 and prod(c or 0 for c in tail) == size:
        return array.reshape(len(array), *(c or 0 for c in tail))
    return array


# ---- modules ----------------------------------------------------------------------------------


def make_modules(
    export: Export, found: Roles, seed: int, files: Mapping[str, str] | None
) -> dict[str, Module]:
    """One module for each argument; a second one of the same type is a copy (an average of it)."""
    out: dict[str, Module] = {}
    for arg in found.modules:
        sig = export.program.modules[arg.module]
        twin = next((m for m in out.values() if m.sig is sig and not sig.trees), None)
        mine = {s.name: (files or {})[s.name] for s in sig.slots if s.name in (files or {})}
        out[arg.name] = twin.copy() if twin else initialised(export.program, sig, seed, mine)
    return out


def modules_for(export: Export, modules: Mapping[str, Module]) -> dict[str, Module] | None:
    """The given modules as arguments of another export, by name, else by type."""
    out: dict[str, Module] = {}
    for arg in export.args:
        if arg.kind != "module":
            continue
        by_name = modules.get(arg.name)
        match = [m for m in modules.values() if m.sig.id == arg.module]
        if by_name is not None and by_name.sig.id == arg.module:
            out[arg.name] = by_name
        elif match:
            out[arg.name] = match[0]
        else:
            return None
    return out
