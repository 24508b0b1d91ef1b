"""The support modules: functions and tables that all contractions of a process share.

A kind of support is a dtype of sums, a `support_kind` (operands stored otherwise, or in strips), or
what `points` names. Modules that contract hold the `declarations` of each kind they use, and are
linked with its `support_module`.
"""

from __future__ import annotations

import re

from nnc.codegen import pack, points, strips, tile_kernels, tiles, vectors
from nnc.codegen import row as single
from nnc.codegen.target import Target

LINES = "lines"  # in a support kind


def support_kind(dtype: str, stored: str) -> str:
    """Names the support module that operands of `dtype` need which are `stored` as another, or in
    strips ("lines")."""
    return f"{dtype} {stored}" if stored else dtype


def declarations(kind: str, target: Target) -> tuple[str, ...]:
    """Lines that the module must hold, each once. `kind`: a dtype, or a `support_kind`."""
    dtype, _, stored = kind.partition(" ")
    t = tiles.tile(dtype, target)
    if stored == LINES:
        return strips.declarations(t)
    if (m := points.side_of(kind)) is not None:
        return points.declarations(t, m)
    shared = (*pack.shared_declarations(t, stored), *single.declarations(t, stored))
    if stored:
        return (*vectors.stored_declarations(t), *shared)
    return (*tile_kernels.declarations(t), *vectors.declarations(t), *shared)


def support_module(kind: str, target: Target) -> str:
    """The IR text of the micro-kernels and packing functions of a dtype.

    Of a `support_kind`, the packing functions and those for one row.
    """
    dtype, _, stored = kind.partition(" ")
    t = tiles.tile(dtype, target)
    if (m := points.side_of(kind)) is not None:
        return points.module(t, target, m)
    lines = (*tile_kernels.kernel_declarations(t, target), *vectors.declarations(t))
    triple = f'target triple = "{target.triple}"'
    if stored == LINES:
        return "\n".join((triple, *lines, strips.definitions(t, target)))
    functions = (pack.definitions(t, stored), single.definitions(t, target, stored))
    if stored:
        return "\n".join((triple, *lines, *vectors.stored_declarations(t), *functions))
    return "\n".join((triple, *lines, *functions, tile_kernels.definitions(t, target)))


def support_symbols(kind: str, target: Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names that `support_module` defines and contractions refer to: functions, and data."""
    declared = declarations(kind, target)
    names = [re.search(r"@(nnrt_\w+)", line) for line in declared]
    found = [(m[1], line.startswith("@")) for m, line in zip(names, declared, strict=True) if m]
    return tuple(n for n, data in found if not data), tuple(n for n, data in found if data)
