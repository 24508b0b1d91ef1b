"""Sums of which every Q-th term counts: `sum[u] (x[...] if (i + u) % Q == 0 else 0)`.

So is a transposed convolution written, or a window over values with zeros between them. The loop
then runs over the terms that count: `u = Q*u' + -i % Q`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

from nnc.ir.bounds import as_dim
from nnc.ir.expr import Const, Expr, Idx, Op, Select, guards, subst
from nnc.ir.graph import Axis
from nnc.ir.scalar import op
from nnc.lang.dims import Dim, Func, polynomial_quotient

MOST = 8  # Q up to this one: as many cases for a kept axis (see `_phases` of `space`)


def every(axes: Sequence[Axis], body: Expr) -> tuple[tuple[Axis, ...], Expr] | None:
    """The loops `axes` of a sum over `body` and its body, without the terms that never count.

    None: all may count.
    """
    conditions, value = guards(body)
    raxes, changed = list(axes), False
    for n, c in enumerate(conditions):
        for at, axis in enumerate(raxes):
            chosen = _chosen(c, axis, raxes)
            if chosen is None:
                continue
            q, first = chosen
            raxes[at], env = Axis(axis.var, (axis.extent + q - 1) // q), {axis.var: first}
            value, conditions = subst(value, env), [subst(e, env) for e in conditions]
            whole = polynomial_quotient(axis.extent, Dim.of(q)) is not None
            conditions[n] = Const("bool", True) if whole else op("lt", Idx(first), Idx(axis.extent))
            changed = True
            break
    if not changed:
        return None
    for c in reversed(conditions):
        if not isinstance(c, Const):
            value = Select(value.dtype, c, value, Const(value.dtype, 0.0))
    return tuple(raxes), value


def multiple(cond: Expr) -> Func | None:
    """The `a % q` of a condition `a % q == 0`, which may say `<= 0` or `< 1` for it."""
    match cond:
        case Op(fn="eq" | "le" | "lt" as fn, args=(Idx(dim=p), end)):
            match p.functions, as_dim(end):
                case [Func(kind="mod") as f], Dim() as d if d.const == (fn == "lt"):
                    return f if p == Dim.of(f) else None
    return None


def _chosen(cond: Expr, axis: Axis, raxes: Sequence[Axis]) -> tuple[int, Dim] | None:
    """(Q, what stands for the variable) where the condition chooses every Q-th of the axis.

    Besides it, one other loop at most may decide.
    """
    f = multiple(cond)
    form = None if f is None else f.a.linear_in(axis.var)
    if f is None or form is None or form[0].const is None:
        return None
    q, (a, rest) = f.b.const or 0, (form[0].const, form[1])
    loops = {n for n in rest.names if n.startswith("$")}
    if not 1 < q <= MOST or gcd(a, q) != 1 or len(loops) > 1 or rest.functions:
        return None
    if loops & {r.var for r in raxes}:
        return None
    return q, q * Dim.of(axis.var) + (-rest * pow(a, -1, q)) % Dim.of(q)
