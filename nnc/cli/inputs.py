"""Arguments for an export that nobody gave: the same numbers on every machine, small sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice, product
from typing import Any

import numpy as np

from nnc.errors import ArgumentError, IndexError, ShapeError, nearest
from nnc.ir.signature import ArgSig
from nnc.lang.types import is_float
from nnc.runtime.export import Export
from nnc.runtime.leaves import Tree
from nnc.runtime.memory import Array, numpy_dtype
from nnc.runtime.model import Model
from nnc.runtime.modules import initialised

_SIZES = (3, 2, 4, 1, 6, 8)  # that are tried
_TRIES = 400


def uniform(count: int, key: int) -> Array:
    """f64 in [-1, 1), a function of position and key (splitmix64)."""
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z += np.uint64(key * 0xD1B54A32D192ED03 % (1 << 64))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**52 - 1.0


def arguments(export: Export, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Floats in [-1, 1), integers 0 or 1, numbers at their defaults, modules of seed 1.

    ArgumentError when a module needs weights from a file.
    """
    modules = export.program.modules
    out: dict[str, Any] = {}
    for key, arg in enumerate(export.args):
        if arg.kind == "module":
            if modules[arg.module].slots:
                raise ArgumentError(f"{export.sig.name}: {arg.name} needs weights from a file")
            out[arg.name] = initialised(export.program, modules[arg.module], 1)
        elif arg.kind == "tree":
            out[arg.name] = tree = Tree(modules[arg.module])
            for i, array in enumerate(tree.arrays.values()):
                array[...] = uniform(array.size, 1000 * key + i).reshape(array.shape)
        else:
            out[arg.name] = _value(arg, sizes, key)
    return out


def _value(arg: ArgSig, sizes: Mapping[str, int], key: int) -> Any:
    if arg.kind == "dim":
        return sizes[arg.name]
    if arg.default is not None:
        return arg.default
    assert arg.type is not None, arg
    shape = tuple(d.evaluate(sizes) for d in arg.type.shape)
    values = uniform(int(np.prod(shape, dtype=np.int64)), key).reshape(shape)
    dtype = numpy_dtype(arg.type.dtype)
    if not is_float(arg.type.dtype):
        return (values > 0).astype(dtype)
    if dtype == np.uint16:  # bf16 as its bits
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(dtype)


def sizes_for(model: Model, export: Export, given: Mapping[str, int]) -> dict[str, int]:
    """`given` and small sizes for the rest that the export accepts; ArgumentError if none are."""
    dims = export.sig.dims
    for name in given:
        if name not in dims:
            known = ", ".join(dims) or "none"
            hint = nearest(name, dims)
            raise ArgumentError(f"{export.sig.name} has no size {name}{hint} (its sizes: {known})")
    refused: Exception | None = None
    for env in islice(_candidates([d for d in dims if d not in given]), _TRIES):
        env |= given
        try:
            model.seed(0)
            export(**arguments(export, env))
        except (ShapeError, IndexError) as error:
            refused = refused or error
            continue
        return {d: env[d] for d in dims}
    first = str(refused).splitlines()[0]
    raise ArgumentError(f"{export.sig.name}: say sizes that it accepts, like --B 8 ({first})")


def _candidates(names: list[str]) -> Iterator[dict[str, int]]:
    for sizes in product(_SIZES, repeat=min(len(names), 4)):
        yield dict.fromkeys(names, 2) | dict(zip(names, sizes, strict=False))
