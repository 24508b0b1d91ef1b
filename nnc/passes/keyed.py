"""Sums and extrema over what has a key do not look at every key.

`sum[e](h[e, o] if target[e] == n else 0)` adds each h[e] at the place target[e], instead of
asking for each n which e have it; `sum[n](h[n, o] if n == source[e] else 0)` is the one element
h[source[e], o]. Extrema, `max[e](h[e, o] if target[e] == n else -inf)`, are treated alike. It is
done before gradients are made, so that theirs are of this form, too.
Only a condition says that nothing is added: `hot[e, n] * h[e]` multiplies (0 times inf is NaN).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nnc.ir.expr import Const, Expr, Idx, Load, Op, as_dtype, guards, names, subst_exprs, walk
from nnc.ir.form import functions_of
from nnc.ir.graph import Axis, Compute, Graph, Node, Update, all_nodes
from nnc.ir.rewrite import transform
from nnc.ir.scalar import op, select, under
from nnc.lang.dims import ZERO, Dim
from nnc.lang.types import is_int
from nnc.passes.partials import neutral
from nnc.passes.vjp import fill

JOINS = {"sum": "add", "max": "max", "min": "min"}  # reductions, and how a term joins its place
FEW = 16  # keys up to which a vector of comparisons is cheaper than places from data


def keyed(graph: Graph) -> Graph:
    """The same function with such sums by their keys."""
    if not any(isinstance(n, Compute) and _may(n) for n in all_nodes(graph)):
        return graph
    return transform(graph, _by_key)


def _may(node: Compute) -> bool:
    return node.op in JOINS and "eq" in functions_of(node.formed.form)


def _by_key(node: Node) -> Node:
    while isinstance(node, Compute) and node.op in JOINS:
        nothing = neutral(node.op, node.type.dtype).value
        conds, value = guards(node.body, nothing)
        found = next((f for c in conds if (f := _key(c, node)) is not None), None)
        if found is None:
            return node
        cond, axis, key = found
        rest = [c for c in conds if c is not cond]
        if axis in node.axes:
            return _scattered(node, axis, key, rest, value, nothing)
        node = _picked(node, axis, key, rest, value, nothing)
    return node


def _key(cond: Expr, node: Compute) -> tuple[Expr, Axis, Expr] | None:
    """The condition that an axis equals a key from data, the axis, the key."""
    match cond:
        case Op(fn="eq", args=(a, b)):
            for bare, key in ((a, b), (b, a)):
                axis = _bare(bare, (*node.axes, *node.raxes))
                if axis is not None and _is_key(key, axis, node):
                    return cond, axis, key
    return None


def _bare(e: Expr, axes: Sequence[Axis]) -> Axis | None:
    """The axis whose variable this is, as an integer of any type."""
    while isinstance(e, Op) and e.fn == "cast" and is_int(e.dtype):
        (e,) = e.args
    return next((a for a in axes if isinstance(e, Idx) and e.dim.name == a.var), None)


def _is_key(key: Expr, axis: Axis, node: Compute) -> bool:
    """Whether the elements differ in it, and there are many places."""
    used = names([key])
    if axis.var in used or not is_int(key.dtype) or not any(isinstance(e, Load) for e in walk(key)):
        return False
    if axis in node.raxes:
        return True
    few = axis.extent.const is not None and axis.extent.const <= FEW
    return not few and any(a.var in used for a in node.raxes)


def _inside(key: Expr, axis: Axis) -> list[Expr]:
    at = as_dtype(key, "i64")
    return [op("ge", at, Idx(ZERO)), op("lt", at, Idx(axis.extent))]


def _all(conds: Sequence[Expr]) -> Expr:
    """All of them, each looked at only where those before hold."""
    out = conds[-1]
    for c in reversed(conds[:-1]):
        out = select(c, out, Const("bool", False))
    return out


def _scattered(
    node: Compute, axis: Axis, key: Expr, rest: list[Expr], value: Expr, nothing: float
) -> Update:
    """Joins each value with the place that its key says: the elements in order for each place."""
    at, env = node.axes.index(axis), {axis.var: key}
    target = tuple(as_dtype(key, "i64") if a is axis else Idx(Dim.of(a.var)) for a in node.axes)
    conds = [*_inside(key, axis), *(subst_exprs(c, env) for c in rest)]
    return Update(
        type=node.type,
        base=fill(node, nothing),
        axes=(*node.axes[:at], *node.raxes, *node.axes[at + 1 :]),
        target=target,
        value=subst_exprs(value, env),
        accumulate=JOINS[node.op],
        guard=_all(conds),
        span=node.span,
        name=node.name,
        regions=node.regions,
    )


def _picked(
    node: Compute, axis: Axis, key: Expr, rest: list[Expr], value: Expr, nothing: float
) -> Compute:
    """The one term whose index is the key."""
    env = {axis.var: key}
    conds = [_all(_inside(key, axis)), *(subst_exprs(c, env) for c in rest)]
    raxes = tuple(a for a in node.raxes if a is not axis)
    body = under(conds, subst_exprs(value, env), nothing)
    return replace(node, raxes=raxes, op=node.op if raxes else "", body=body)
