"""Finding lines of a window that share memory (see `strips`), by structure.

Where an operand stays the same when its axis i among the columns goes on by `step` and its axis u
among the lines goes back by `phases` (`x[b, c, 2*i + u, j + v]`: 1 and 2), only the first `phases`
of u are needed, at more of i.
"""

from __future__ import annotations

from dataclasses import replace
from math import gcd

from nnc.codegen.scopes import Value
from nnc.codegen.strips import Strips
from nnc.codegen.tiles import Tile
from nnc.codegen.windows import Group, Windows, group
from nnc.ir.expr import Const, Expr, Idx, Load, loads, names, rewrite, subst, walk
from nnc.ir.graph import Axis
from nnc.ir.scalar import const
from nnc.lang.dims import ZERO, Dim, dim_prod


def shared(cx: Windows, e: Expr, lines: Group, columns: Group, t: Tile) -> Strips | None:
    """What the lines of a right operand share, over the first axis of the columns that allows it.

    Adds axes to those of the merged groups.
    """
    for i in columns.axes:
        for u in lines.axes:
            found = _step(e, i.var, u.var)
            window = u.extent.const
            if found is not None and window is not None and window > found[1]:
                return _strips(cx, e, (lines, u), (columns, i), found, t)
    return None


def _step(e: Expr, i: str, u: str) -> tuple[int, int] | None:
    """Steps of i for steps of u."""
    for dim in _dims(e):
        if i in dim.names and u in dim.names:
            forms = dim.linear_in(i), dim.linear_in(u)
            if forms[0] is None or forms[1] is None:
                return None
            a, b = forms[0][0].const, forms[1][0].const
            if not a or not b:
                return None
            common = gcd(a, b)
            step, phases = (b if a > 0 else -b) // common, abs(a) // common
            moved = {i: Dim.of(i) + step, u: Dim.of(u) - phases}
            same = all(d.subst(moved) == d for d in _dims(e))
            return (step, phases) if same else None
    return None


def _dims(e: Expr) -> list[Dim]:
    return [x.dim for x in walk(e) if isinstance(x, Idx)]


def _strips(
    cx: Windows, e: Expr, line: tuple[Group, Axis], column: tuple[Group, Axis],
    step: tuple[int, int], t: Tile,
) -> Strips | None:  # fmt: skip
    (lines, u), (columns, i) = line, column
    by, phases = step
    window = u.extent.const
    assert window is not None
    inner = _behind(lines, u).const
    if inner is None or window * inner > t.block or any(x.check is not None for x in loads(e)):
        return None
    far = by * ((window - 1) // phases)
    strips = (
        group("k.s", _changed(lines, u, Dim.of(phases))),
        group("n.s", _changed(columns, i, i.extent + abs(far))),
    )
    env = {a.var: Dim.of(f"{a.var}.s") for g in (lines, columns) for a in g.axes}
    env[i.var] += _constant(cx, min(0, far))
    cx.merge(strips)
    operand = cx.window(_guarded(subst(e, env), {f"{i.var}.s", f"{u.var}.s"}), *strips, t)
    if operand is None:
        return None
    steps = _behind(columns, i)
    run, period, gap = (cx.uniform(d).text for d in (steps, i.extent * steps, steps * abs(far)))
    return Strips(operand, window, inner, phases, by, run, period, gap)


def _behind(group: Group, axis: Axis) -> Dim:
    """Steps of the group's index in one of the axis."""
    return dim_prod(a.extent for a in group.axes[group.axes.index(axis) + 1 :])


def _constant(cx: Windows, x: int) -> Dim:
    """A number that stays out of the places that kernels are given: what they know does not hold
    it."""
    var = f"$.least{-x}"
    cx.names[var] = Value(str(x), "i64")
    cx.ranges[var] = (Dim.of(x), Dim.of(x))
    return Dim.of(var) if x else ZERO


def _changed(group: Group, axis: Axis, extent: Dim) -> tuple[Axis, ...]:
    """The axes under other names, one with another extent."""
    return tuple(Axis(f"{a.var}.s", extent if a is axis else a.extent) for a in group.axes)


def _guarded(e: Expr, moved: set[str]) -> Expr:
    """Without reads of places that no line and column together has."""

    def guard(x: Expr) -> Expr:
        if not isinstance(x, Load) or x.other is not None:
            return x
        zero = Const("bool", False) if x.dtype == "bool" else const(0, x)
        return replace(x, other=zero) if names(x.index) & moved else x

    return rewrite(e, guard)
