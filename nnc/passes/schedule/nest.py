"""Loop nests: which axis runs over the lanes, which over the threads, how long loops are cut."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from nnc.ir.expr import Load, names, walk
from nnc.ir.graph import Axis
from nnc.ir.loop import For, Let, Reduce, Stmt, Store
from nnc.ir.statements import Stmts, exprs_in, substitute
from nnc.lang.dims import Dim, dim_min, dim_prod
from nnc.passes.schedule.contraction import unit_stride
from nnc.passes.schedule.merge import Views, merge
from nnc.passes.schedule.space import told_apart

CHUNK = 1024  # elements of a long vector loop that one thread takes at a time
REDUCED_CHUNK = 64  # the same where every element is a reduction or a serial loop
SHORT = 8  # a reduced axis of fewer elements does not run over the lanes
FEW = 4  # a last axis of so many elements is unrolled rather than run over the lanes
TILE = 16  # rows and columns of the tiles of a transposed read
ENOUGH = 64  # iterations of parallel loops that need no more


def nest(
    axes: Sequence[Axis],
    stmts: Stmts,
    views: Views,
    parallel: bool = True,
    serial: tuple[Axis, ...] = (),
    taken: set[str] | None = None,
) -> Stmts:
    """Loops over `axes` around statements that are independent for different axes.

    `parallel`: these are the outer loops of the kernel. `serial`: loops in this order inside the
    parallel ones and around the lanes (accumulation). `taken`: names in use, which grows.
    """
    used = set() if taken is None else taken
    used |= {a.var for a in (*axes, *serial)}
    sums = bool(serial) or any(isinstance(s, Reduce) for s in stmts)
    turns = () if sums else told_apart(axes, exprs_in(stmts))
    if len(turns) < len(axes) or not parallel:
        axes = [a for a in axes if a not in turns]
        for a in reversed(turns):
            stmts = (For(a, "unroll", stmts),)
    axes, stmts, _ = merge(axes, stmts, (), views, used)
    used |= {a.var for a in axes}
    stmts = tuple(_reduction(s, axes, views, used) for s in stmts)
    if _apart(axes, stmts):
        *axes, last = axes
        stmts = (For(last, "unroll", stmts),)
    lane = _lane(axes, stmts)
    outer = [a for a in axes if a is not lane]
    heavy = bool(serial) or any(isinstance(s, Reduce) for s in stmts)
    across = None if heavy or lane is None else _across(lane, outer, stmts)
    if lane is not None and parallel and across is not None:
        outer.remove(across)
        inner, rows, stmts = _pieces(across, TILE, stmts, used)
        lane, columns, stmts = _pieces(lane, TILE, stmts, used)
        outer, serial = [*outer, rows, columns], (inner,)
    elif lane is not None and parallel:
        lane, chunk, stmts = _cut(lane, outer, stmts, heavy, used)
        outer += [] if chunk is None else [chunk]
    if lane is not None:
        stmts = (For(lane, "vector", stmts),)
    else:
        stmts = tuple(replace(s, vector=row_lane(s)) if isinstance(s, Reduce) else s for s in stmts)
    for a in reversed(serial):
        stmts = (For(a, "serial", stmts),)
    for a in reversed(outer):
        stmts = (For(a, "parallel" if parallel else "serial", stmts),)
    return stmts


def _reduction(s: Stmt, axes: Sequence[Axis], views: Views, used: set[str]) -> Stmt:
    """A reduction with its axes merged."""
    if not isinstance(s, Reduce):
        return s
    merged, _, (value,) = merge(s.axes, (), (s.value,), views, used)
    used |= {a.var for a in merged}
    return replace(s, axes=merged, value=value)


# ---- lanes --------------------------------------------------------------------------------------


def _lane(axes: Sequence[Axis], stmts: Stmts) -> Axis | None:
    """The loop that runs over the lanes: the last one, unless there are loops or long rows inside.

    (Then reductions run over the lanes along an axis of their own: `row_lane`.)
    """
    if not axes or any(isinstance(s, For) and s.kind != "unroll" for s in stmts):
        return None
    reductions = [s for s in stmts if isinstance(s, Reduce)]
    if any(axes[-1].var in a.extent.names for r in reductions for a in r.axes):
        return None
    if any(_row_wise(r, axes[-1]) for r in reductions):
        return None
    return axes[-1]


def _apart(axes: Sequence[Axis], stmts: Stmts) -> bool:
    """Whether the last axis is too short for lanes, and the one before is not: its digits, or the
    channels of a picture. The lanes are a few elements apart then."""
    if len(axes) < 2 or any(not isinstance(s, Let | Store) for s in stmts):
        return False
    size = axes[-1].extent.const
    return size is not None and 1 < size <= FEW and _longer(axes[-2], SHORT)


def _row_wise(r: Reduce, last: Axis) -> bool:
    """Whether a reduction reads memory better along its own axes than along the last kept one."""
    along = row_lane(r)
    if along is None:
        return False
    reduced = {a.var for a in r.axes}
    return _units(r, along) > _units(r, last.var, reduced)


def row_lane(r: Reduce) -> str | None:
    """The reduced axis that can run over the lanes: long, with unit stride in some load."""
    best, count = None, 0
    for a in r.axes:
        long = a.extent.const is None or a.extent.const >= SHORT
        if long and _units(r, a.var) > count:
            best, count = a.var, _units(r, a.var)
    return best


def _units(r: Reduce, var: str, among: Collection[str] = ()) -> int:
    """How many loads walk with unit stride along a variable (of those that vary with `among`)."""
    loads = (e for e in walk(r.value) if isinstance(e, Load))
    if among:
        loads = (e for e in loads if not names(e.index).isdisjoint(among))
    return sum(unit_stride(e, var) is True for e in loads)


# ---- cutting ------------------------------------------------------------------------------------


def _cut(
    lane: Axis, outer: Sequence[Axis], stmts: Stmts, heavy: bool, used: set[str]
) -> tuple[Axis, Axis | None, Stmts]:
    """Cuts a long loop into pieces for the threads: `lane = chunk*$o + lane'`."""
    chunk = REDUCED_CHUNK if heavy else CHUNK
    outside = dim_prod(a.extent for a in outer).const
    length = lane.extent.const
    if length is not None and (length <= chunk or (outside is not None and outside >= ENOUGH)):
        return lane, None, stmts
    if length is not None and outer and outside is None and length <= 4 * chunk:
        return lane, None, stmts
    return _pieces(lane, chunk, stmts, used)


def _pieces(axis: Axis, size: int, stmts: Stmts, used: set[str]) -> tuple[Axis, Axis, Stmts]:
    """`(inner, outer)` loops of an axis cut into pieces, and the code over both."""
    name = f"{axis.var}o"
    while name in used:
        name += "o"
    used.add(name)
    length = axis.extent.const
    pieces = Axis(name, (axis.extent + (size - 1)) // size)
    start = Dim.of(name) * size
    whole = length is not None and length % size == 0
    left = Dim.of(size) if whole else dim_min(Dim.of(size), axis.extent - start)
    stmts = substitute(stmts, {axis.var: start + axis.var})
    return Axis(axis.var, left), pieces, stmts


def _across(lane: Axis, outer: Sequence[Axis], stmts: Stmts) -> Axis | None:
    """A loop along which some load walks with unit stride and jumps along the lanes (transposed).

    Then both loops are cut into square tiles that stay in the cache.
    """
    if not _longer(lane, TILE):
        return None
    for e in walk(*exprs_in(stmts)):
        if isinstance(e, Load) and unit_stride(e, lane.var) is False:
            for a in outer:
                if unit_stride(e, a.var) and _longer(a, TILE):
                    return a
    return None


def _longer(a: Axis, size: int) -> bool:
    return a.extent.const is None or a.extent.const >= size
