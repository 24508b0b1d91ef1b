"""Reads round a circle, `x[(i + k - 1) % N]`: plain reads, one for each time round.

A remainder takes a division for every element, and what is read at it is gathered one by one.
`x[i + k - 1 + N]` before the first element, `x[i + k - 1 - N]` behind the last and `x[i + k - 1]`
between them are read by whole vectors. So are reads held at the ends, `x[min(max(i - 1, 0), N -
1)]`: `x[0]`, `x[N - 1]` and what is between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from nnc.ir.bounds import Ranges, axis_ranges, loop_facts, prove
from nnc.ir.expr import Expr, Idx, Load, Select, rewrite, walk
from nnc.ir.graph import Axis
from nnc.ir.scalar import op
from nnc.lang.dims import ZERO, Dim, Facts, Func

MOST = 9  # reads in place of one


def plain_reads(body: Expr, axes: Sequence[Axis], facts: Facts) -> Expr:
    """The body of loops over `axes` without such reads, where none goes round more than once."""
    if not any(isinstance(e, Idx) and (remainder(e) or clamped(e)) for e in walk(body)):
        return body
    known = _Known(axis_ranges(axes), loop_facts(axes, facts))
    return rewrite(body, lambda e: known.plain(e) if isinstance(e, Load) else e)


def remainder(e: Expr) -> Func | None:
    """The `a % q` that an index is."""
    match e:
        case Idx(dim=Dim(terms=(((((Func(kind="mod") as f), 1),), 1),))):
            return f
    return None


def clamped(e: Expr) -> tuple[Dim, Dim | None, Dim | None] | None:
    """(a, low, high) of an index that is a, but `low` at least and `high` at most."""
    held: dict[str, Dim] = {}
    dim = e.dim if isinstance(e, Idx) else ZERO
    while True:
        match dim:
            case Dim(terms=(((((Func(kind="min" | "max") as f), 1),), 1),)) if f.kind not in held:
                fixed, moving = (f.a, f.b) if _is_size(f.a) else (f.b, f.a)
                if not _is_size(fixed) or _is_size(moving):
                    return None
                held[f.kind], dim = fixed, moving
            case _:
                return (dim, held.get("max"), held.get("min")) if held else None


def _is_size(d: Dim) -> bool:
    return not any(n.startswith("$") for n in d.names)


Choice = tuple[Expr | None, Expr]  # where an index is the one (None: else), and the index


@dataclass(frozen=True)
class _Known:
    ranges: Ranges
    facts: Facts

    def plain(self, e: Load) -> Expr:
        """A load as a choice of loads."""
        if e.other is not None or e.check is not None:
            return e
        pairs = zip(e.index, e.tensor.type.shape, strict=True)
        found = [self.choices(i, n) for i, n in pairs]
        if found and (held := clamped(e.index[-1])) is not None:  # along others, rows are read
            found[-1] = self.ends(e.index[-1], *held)
        return either(e, found) if 1 < prod(map(len, found)) <= MOST else e

    def choices(self, e: Expr, extent: Dim) -> list[Choice]:
        f = remainder(e)
        if f is None or f.b != extent or f.b.names & self.ranges.keys():
            return [(None, e)]
        a, n, out = f.a, f.b, list[Choice]()
        if not self.sure(a):
            if not self.sure(a + n):
                return [(None, e)]
            out.append((op("lt", Idx(a), Idx(ZERO)), Idx(a + n)))
        if not self.sure(n - 1 - a):
            if not self.sure(2 * n - 1 - a):
                return [(None, e)]
            out.append((op("ge", Idx(a), Idx(n)), Idx(a - n)))
        return [*out, (None, Idx(a))]

    def ends(self, e: Expr, a: Dim, low: Dim | None, high: Dim | None) -> list[Choice]:
        """Between the ends, at which it is held: a low one that is not above the high one."""
        if low is not None and high is not None and not self.sure(high - low):
            return [(None, e)]
        out: list[Choice] = []
        if low is not None:
            out.append((op("lt", Idx(a), Idx(low)), Idx(low)))
        if high is not None:
            out.append((op("gt", Idx(a), Idx(high)), Idx(high)))
        return [*out, (None, Idx(a))]

    def sure(self, p: Dim) -> bool:
        return prove(p, self.facts, self.ranges)


def either(e: Load, places: Sequence[list[Choice]], index: tuple[Expr, ...] = ()) -> Expr:
    """The load with each component of its index one of its places (the first are `index`)."""
    if not places:
        return replace(e, index=index)
    out: Expr | None = None
    for cond, i in reversed(places[0]):
        inner = either(e, places[1:], (*index, i))
        out = inner if cond is None or out is None else Select(e.dtype, cond, inner, out)
    assert out is not None, e
    return out
