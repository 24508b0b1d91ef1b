"""Contractions that slide a window of 3 x 3 with stride 1 over a map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nnc.ir.expr import Const, Idx, Load, names
from nnc.ir.graph import Axis
from nnc.ir.loop import Buffer, Contract, Let, Stmt, Store
from nnc.lang.dims import Dim

WINDOW = 3


@dataclass(frozen=True)
class Side:
    """One side of the window: the axis `u` of k slides along the axis `i` of n, over index number
    `place` of the map that is read: `i + u + shift`."""

    u: Axis
    i: Axis
    place: int
    shift: int


@dataclass(frozen=True)
class Sliding:
    """`y[o, rest, i, j] = sum[c, u, v] w[o, c, u, v] * x[.. c, rest, i + u + .., j + v + ..]`, the
    columns of x side by side. `sides`: of i and of j; `place`: of c among the indices of x."""

    w: Load
    x: Load
    o: Axis
    c: Axis
    sides: tuple[Side, Side]
    rest: tuple[Axis, ...]
    place: int

    @property
    def map(self) -> tuple[Axis, Axis]:
        """i and j."""
        return self.sides[0].i, self.sides[1].i


def sliding(c: Contract) -> Sliding | None:
    """The contraction as one of this kind, if it is."""
    w, x = c.a, c.b
    if c.batch or len(c.m) != 1 or c.fn != "mul" or w.dtype != "f32" or c.part is not None:
        return None
    if not isinstance(w, Load) or not isinstance(x, Load) or len(c.k) != 3:
        return None
    if not _plain(w) or w.other is not None or not _plain(x):
        return None
    if not (x.other is None or isinstance(x.other, Const)):
        return None
    if not all(isinstance(s, Let) or _simple(s) for s in c.epilogue):
        return None
    sides = [s for k in c.k if (s := _side(x, k, c.n)) is not None]
    rest_k = [k for k in c.k if all(k is not s.u for s in sides)]
    if len(sides) != 2 or len(rest_k) != 1 or sides[0].i is sides[1].i:
        return None
    i, j = sorted(sides, key=lambda s: s.place)
    if j.place != len(x.index) - 1 or names([w]) != {c.m[0].var, *(a.var for a in c.k)}:
        return None
    rest = tuple(a for a in c.n if a is not i.i and a is not j.i)
    channel = _with(x, rest_k[0])
    if len(channel) != 1 or channel[0][1].dim != Dim.of(rest_k[0].var):
        return None
    return Sliding(w, x, c.m[0], rest_k[0], (i, j), rest, channel[0][0])


def _plain(e: Load) -> bool:
    return (
        isinstance(e.tensor, Buffer)
        and e.check is None
        and all(isinstance(i, Idx) for i in e.index)
    )


def _simple(s: Stmt) -> bool:
    return isinstance(s, Store) and not s.accumulate and s.guard is None and s.check is None


def _side(x: Load, k: Axis, n: Sequence[Axis]) -> Side | None:
    found = [(at, i.dim) for at, i in _with(x, k)]
    if k.extent.const != WINDOW or len(found) != 1:
        return None
    place, dim = found[0]
    for a in n:
        shift = (dim - Dim.of(k.var) - Dim.of(a.var)).const
        if shift is not None and len(_with(x, a)) == 1:
            return Side(k, a, place, shift)
    return None


def _with(x: Load, a: Axis) -> list[tuple[int, Idx]]:
    return [(at, i) for at, i in enumerate(x.index) if isinstance(i, Idx) and a.var in i.dim.names]
