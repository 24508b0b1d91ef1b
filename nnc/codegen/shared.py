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
from nnc.codegen.windows import Group, Windows
from nnc.ir.expr import Const, Expr, Idx, Load, loads, rewrite, subst, walk
from nnc.ir.graph import Axis
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
    after = lines.axes[lines.axes.index(u) + 1 :]
    inner = dim_prod(a.extent for a in after).const
    if inner is None or window * inner > t.block:
        return None
    far = by * ((window - 1) // phases)
    env: dict[str, Dim] = {}
    env_lines: list[Axis] = []
    env_columns: list[Axis] = []
    for group, axis, extent, out in (
        (lines, u, Dim.of(phases), env_lines),
        (columns, i, i.extent + abs(far), env_columns),
    ):
        for a in group.axes:
            new = Axis(f"{a.var}.s", extent if a is axis else a.extent)
            env[a.var] = Dim.of(new.var)
            out.append(new)
    env[i.var] = env[i.var] + _constant(cx, min(0, far))
    strips = _group("$.k.s", env_lines), _group("$.n.s", env_columns)
    cx.merge(strips)
    moved = {i.var, u.var}
    at_all = all(load.check is None for load in loads(e))
    if not at_all:
        return None
    operand = cx.window(_guarded(subst(e, env), {f"{v}.s" for v in moved}), *strips, t)
    if operand is None:
        return None
    run = cx.uniform(dim_prod(a.extent for a in columns.axes[columns.axes.index(i) + 1 :]))
    period = cx.uniform(dim_prod(a.extent for a in columns.axes[columns.axes.index(i) :]))
    gap = cx.uniform(
        dim_prod(a.extent for a in columns.axes[columns.axes.index(i) + 1 :]) * abs(far)
    )
    return Strips(operand, window, inner, phases, by, run.text, period.text, gap.text)


def _constant(cx: Windows, x: int) -> Dim:
    """A number that stays out of the places that kernels are given: what they know does not hold
    it."""
    var = f"$.least{-x}"
    cx.names[var] = Value(str(x), "i64")
    cx.ranges[var] = (Dim.of(x), Dim.of(x))
    return Dim.of(var) if x else ZERO


def _group(name: str, axes: list[Axis]) -> Group:
    return Group(axes[0].var if len(axes) == 1 else name, tuple(axes))


def _guarded(e: Expr, moved: set[str]) -> Expr:
    """Without reads of places that no line and column together has."""

    def guard(x: Expr) -> Expr:
        if not isinstance(x, Load) or x.other is not None:
            return x
        names = {n for i in x.index if isinstance(i, Idx) for n in i.dim.names}
        zero = 0.0 if "f" in x.dtype else x.dtype != "bool" and 0
        return replace(x, other=Const(x.dtype, zero)) if names & moved else x

    return rewrite(e, guard)
