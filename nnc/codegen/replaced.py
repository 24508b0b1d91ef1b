"""Which kept copies a call reads, and where it reads nothing else of a module's leaf: the memory
of the leaf can be given back then (`nnc.runtime.away`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from nnc.codegen import kept, thin, tiles
from nnc.codegen.leaf_operands import kind
from nnc.codegen.memory import flat
from nnc.codegen.target import Target
from nnc.ir.expr import Expr, Idx, Load, loads
from nnc.ir.graph import Axis
from nnc.ir.loop import FEW, SLAB, Buffer, Contract, Kernel, Program, kernels_of
from nnc.ir.signature import Copy
from nnc.ir.statements import loaded_from
from nnc.lang.dims import ONE, Dim, dim_prod, dim_sum


@dataclass(frozen=True)
class _Reader:
    """A contraction that may read a copy: of `operand`, which depends on `n` and `k`.

    `reads`: it may read the copy where this is not negative; `alone`: and then not the operand.
    """

    contract: Contract
    operand: Expr
    other: Expr
    n: tuple[Axis, ...]
    k: tuple[Axis, ...]
    reads: Dim
    alone: Dim


def copies(program: Program, target: Target) -> tuple[Copy, ...]:
    """What the prologue makes, in the order of the numbers by which it is asked for."""
    rest = tuple(kernels_of(program.steps[program.prologue :]))
    readers: dict[str, list[_Reader]] = {}
    loaded: dict[str, int] = {}  # by how many kernels
    for kernel in rest:
        for name in _loaded(kernel):
            loaded[name] = loaded.get(name, 0) + 1
        if kernel.alike is None:
            for name, reader in _readers(kernel):
                readers.setdefault(name, []).append(reader)
    made = kept.buffers(program.steps[: program.prologue])
    for steps in made:
        for name in {n for k in kernels_of(steps) for n in _loaded(k)}:
            loaded[name] = loaded.get(name, 0) + 1
    return tuple(_copy(kept.target(s[0]), readers, loaded, target) for s in made)


def _loaded(kernel: Kernel) -> set[str]:
    of = kernel.alike
    return {b.name for b in (loaded_from(kernel.body) if of is None else of.loaded)}


def _readers(kernel: Kernel) -> Iterator[tuple[str, _Reader]]:
    match kernel.body:
        case (Contract() as c,):
            rows, columns = (dim_prod(a.extent for a in axes) for axes in (c.m, c.n))
            if c.copied and c.panels is not None:
                last = c.m[-1].extent if c.m else ONE  # some of m may become batches
                yield _name(c.panels), _Reader(c, c.b, c.a, c.n, c.k, rows - 2, last - 2)
            if c.turned is not None:
                few = FEW - columns
                yield _name(c.turned), _Reader(c, c.a, c.b, c.m, c.k, few, few)


def _name(load: Load) -> str:
    assert isinstance(load.tensor, Buffer), load
    return load.tensor.name


def _copy(
    b: Buffer, readers: dict[str, list[_Reader]], loaded: dict[str, int], target: Target
) -> Copy:
    start = b.offset.const
    assert start is not None, b
    found = readers.get(b.name, [])
    reads = tuple(dict.fromkeys(r.reads for r in found))
    if b.kept != "copy" or not found:
        return Copy(start)
    leaf = found[0].operand
    if not isinstance(leaf, Load) or not isinstance(leaf.tensor, Buffer):
        return Copy(start, reads)
    name = leaf.tensor.name
    only = loaded[name] == len(found) + 1 and all(_only(r, name, target) for r in found)
    places = {_strides(r) for r in found} if only else set()
    if len(places) != 1 or None in places or leaf.tensor.type.dtype != b.type.dtype:
        return Copy(start, reads)
    (strides,) = places
    assert strides is not None and leaf.tensor.scope == "arg", leaf
    extents = tuple(_const(a.extent) for a in (*found[0].n, *found[0].k))
    alone = tuple(dict.fromkeys(r.alone for r in found))
    return Copy(start, reads, alone, leaf.tensor.slot, extents, strides, len(found[0].n))


def _only(r: _Reader, name: str, target: Target) -> bool:
    """Whether it reads the leaf as this operand alone, and not at all where it reads the copy."""
    c = r.contract
    elsewhere = {b.name for b in loaded_from(c.epilogue)} | set(map(_name, loads(r.other)))
    panel = tiles.tile(kind(c), target).panel
    return name not in elsewhere and panel == SLAB and not thin.is_thin(c)


def _strides(r: _Reader) -> tuple[int, ...] | None:
    """How far apart elements of the leaf are along the axes of n and k, if these name each element
    once."""
    assert isinstance(r.operand, Load) and isinstance(r.operand.tensor, Buffer), r
    if r.operand.other is not None or not all(isinstance(i, Idx) for i in r.operand.index):
        return None
    axes = (*r.n, *r.k)
    at = flat(r.operand.tensor, r.operand.index)
    slopes = [dict(at.terms).get(((a.var, 1),), 0) for a in axes]
    extents = [a.extent.const for a in axes]
    size = r.operand.tensor.type.elements.const
    if at != dim_sum(Dim.of(a.var) * s for a, s in zip(axes, slopes, strict=True)):
        return None
    known = [n for n in extents if n is not None]
    if len(known) < len(extents) or prod(known) != size:
        return None
    inner = 1
    for slope, extent in sorted(zip(slopes, known, strict=True)):
        if extent > 1 and slope != inner:
            return None
        inner *= extent
    return tuple(slopes)


def _const(d: Dim) -> int:
    assert d.const is not None, d
    return d.const
