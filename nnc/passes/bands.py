"""Contractions behind which windows over their rows follow: a pool behind a convolution.

What the contraction computes exists for a band of rows at a time, which stays in the cache: a block
of the reader's rows needs `step * (size - 1) + length` of them. Where windows overlap, the rows
between two blocks are computed twice. Only structure counts: any epilogue, any reduction, strides,
padding and dilation of the windows, any axis that rows run along.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nnc.ir.expr import Const, Idx, Load, walk
from nnc.ir.graph import Axis, Compute, Node
from nnc.lang.dims import Dim, Facts, dim_prod, prove_nonneg
from nnc.lang.types import DTYPES
from nnc.passes.schedule.contraction import Contraction
from nnc.passes.schedule.space import Space

BYTES = 1 << 20  # of a band, which should stay in a core's cache
LARGE = 1 << 19  # bytes of all rows; less stays in the cache anyway
WEIGHTS = 1 << 17  # elements of the other factor, which is packed for each block
SIZE, OVERLAPPING = 4, 7  # rows of a block: few, so that many threads have something to do
BLOCKS = 16  # more rows where there are so many blocks nevertheless
WASTE = 8  # of so many rows one may be computed twice


@dataclass(frozen=True)
class Band:
    """`node`: what exists in bands, the last of the group's `count` nodes that make it.

    `places`: for its axes that the reader's first axes stand for, bare, which of those;
    `outer`: those of them that are loops around. Row `i` of the reader (its axis number
    `position`) reads rows `step * i + low` and `length - 1` more of the axis `row`; `size` of them
    are one block. `other`: what is read beside the rows.
    """

    node: Compute
    count: int
    places: Mapping[str, int]
    outer: frozenset[str]
    row: str
    position: int
    step: int
    low: int
    length: int
    size: int
    other: Const | None

    @property
    def rows(self) -> int:
        """Rows of a band."""
        return self.step * (self.size - 1) + self.length


@dataclass
class _Reads:
    """What all reads of a tensor by the members of a group have in common."""

    places: dict[str, int]
    row: str
    position: int
    step: int
    low: int
    high: int
    other: Const | None

    @property
    def beside(self) -> object:
        return None if self.other is None else self.other.value


def find_band(
    made: Sequence[Compute],
    readers: Sequence[Compute],
    rows: int,
    spaces: Mapping[Node, Space],
    found: Contraction,
    maps: Mapping[Node, Mapping[str, Dim]],
    facts: Facts,
) -> Band | None:
    """The band of the last of `made`, nodes of one contraction, that `readers` share `rows` axes
    of; None: there is none, or it is not worth it."""
    node = made[-1]
    reads = _reads(node, readers, rows, spaces)
    if reads is None:
        return None
    own = {a.var: maps[node][a.var].name for a in spaces[node].axes}
    sides = {a.var: side for side in ("batch", "m", "n") for a in getattr(found, side)}
    if None in own.values() or {*own.values()} != sides.keys():
        return None
    side_of = {v: sides[str(name)] for v, name in own.items()}
    side = side_of[reads.row]
    axes = spaces[node].axes
    if side == "batch":
        return None
    at = [a.var for a in axes].index(reads.row)
    outer = {
        a.var
        for i, a in enumerate(axes)
        if a.var in reads.places
        and (side_of[a.var] == "batch" or (side_of[a.var] == side and i < at))
    }
    if any(side_of[a.var] == "batch" and a.var not in outer for a in axes):
        return None
    across = [a for a in axes if side_of[a.var] == side and a.var not in outer | {reads.row}]
    others = [a for a in axes if side_of[a.var] not in ("batch", side)]
    head = spaces[readers[0]].axes
    result = head[reads.position].extent
    last = reads.step * (result - 1) + reads.low  # the first row that the last window reads
    size = _size(node, reads, axes[at], result, across, others, found)
    if size is None or reads.high < 0 or not prove_nonneg(axes[at].extent - 1 - last, facts):
        return None
    return Band(
        node,
        len(made),
        reads.places,
        frozenset(outer),
        reads.row,
        reads.position,
        reads.step,
        reads.low,
        reads.high - reads.low + 1,
        size,
        reads.other,
    )


def _size(
    node: Compute,
    reads: _Reads,
    row: Axis,
    result: Dim,
    across: Sequence[Axis],
    others: Sequence[Axis],
    found: Contraction,
) -> int | None:
    """Rows of the result in a block, None: not worth it."""
    weights = dim_prod(a.extent for a in (*others, *found.k)).const
    length = reads.high - reads.low + 1
    if not across or weights is None or weights > WEIGHTS or not others:
        return None
    each = dim_prod(a.extent for a in (*across, *others)) * DTYPES[node.type.dtype].bytes
    whole, again = (each * row.extent).const, max(length - reads.step, 0)
    if whole is not None and whole < LARGE:
        return None
    size = OVERLAPPING if again else SIZE
    if result.const is not None:
        size = max(size, -(-result.const // BLOCKS))
    if each.const is not None:
        size = min(size, (BYTES // each.const - length) // reads.step + 1)
    return size if size > 1 and again * WASTE <= reads.step * size else None


# ---- reads --------------------------------------------------------------------------------------


def _reads(
    node: Compute, readers: Sequence[Compute], rows: int, spaces: Mapping[Node, Space]
) -> _Reads | None:
    loads = [(e, spaces[r]) for r in readers for e in walk(spaces[r].body) if isinstance(e, Load)]
    found = [_read(e, spaces[node], s, rows) for e, s in loads if e.tensor is node]
    if not found or any(f is None for f in found):
        return None
    known = [f for f in found if f is not None]
    same = {(tuple(f.places.items()), f.row, f.position, f.step, f.beside) for f in known}
    if len(same) > 1:
        return None
    first = known[0]
    first.low, first.high = min(f.low for f in known), max(f.high for f in known)
    return first


def _read(e: Load, member: Space, s: Space, rows: int) -> _Reads | None:
    """How a tensor of the space `member` is read in `s`, whose first axes are `rows`."""
    other = e.other
    if e.check is not None or not (other is None or isinstance(other, Const)):
        return None
    if not all(isinstance(i, Idx) for i in e.index) or len(member.homes()) < len(member.axes):
        return None
    homes = member.homes()
    index = {a.var: e.index[homes[a.var]].dim for a in member.axes}  # type: ignore[union-attr]
    rest = [i for d, i in enumerate(e.index) if d not in homes.values()]
    if any(i.dim.const != 0 for i in rest):  # type: ignore[union-attr]
        return None
    head = {a.var: p for p, a in enumerate(s.axes[:rows])}
    places = {
        a.var: head[name]
        for a in member.axes
        if (name := index[a.var].name) in head and s.axes[head[name]].extent == a.extent
    }
    for a in member.axes:
        if a.var in places:
            continue
        window = _window(index[a.var], head, s)
        if window is not None and window[0] not in places.values():
            return _Reads(places, a.var, *window, other)
    return None


def _window(index: Dim, head: Mapping[str, int], s: Space) -> tuple[int, int, int, int] | None:
    """Which of the first axes moves an index, by how much, and the range of the rest."""
    moving = [v for v in head if v in index.names]
    parts = index.linear_in(moving[0]) if len(moving) == 1 else None
    if parts is None or parts[0].const is None or parts[0].const < 1:
        return None
    step, rest, low, high = parts[0].const, parts[1], 0, 0
    for a in s.raxes:
        if a.var not in rest.names:
            continue
        inner = rest.linear_in(a.var)
        if inner is None or inner[0].const is None or a.extent.const is None:
            return None
        far, rest = inner[0].const * (a.extent.const - 1), inner[1]
        low, high = low + min(far, 0), high + max(far, 0)
    if rest.const is None:
        return None
    return head[moving[0]], step, rest.const + low, rest.const + high
