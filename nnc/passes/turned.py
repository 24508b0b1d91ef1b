"""Reductions over all pairs, `sum[k]((q[m, k] - x[n, k])**2)`, read a copy of x turned round.

Both operands lie along k, so vectors along k would end in a sum of lanes for each pair. With
`copy[k, n]` the lanes are n. The copy costs little where many m read it. Contractions pack for
themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from nnc.ir.expr import Expr, Idx, Load, Select, loads, names, rewrite, walk
from nnc.ir.graph import Axis, Compute, Graph, Node
from nnc.ir.rewrite import replace_operands, with_roots
from nnc.ir.share import node_key
from nnc.lang.dims import Dim, dim_prod
from nnc.lang.types import TensorType
from nnc.passes.schedule.contraction import contraction
from nnc.passes.schedule.space import space

MANY = 16  # times an element is read at which a copy pays; lanes that are worth it


def turned(graph: Graph) -> Graph:
    """The same function with such copies."""
    if not any(isinstance(n, Compute) and _may(n) for n in graph.order):
        return graph
    new: dict[Node, Node] = {}
    copies: dict[object, Compute] = {}
    for node in graph.order:
        moved = replace_operands(node, new.__getitem__)
        if isinstance(moved, Compute) and _may(moved):
            found = _along(moved)
            if found and contraction(space(moved, graph.facts)) is None:
                moved = _reading(moved, found, copies)
        new[node] = moved
    return with_roots(graph, [new[r] for r in graph.roots])


def _may(node: Compute) -> bool:
    return bool(node.raxes) and len(node.axes) > 1 and _many([node.axes[-1]])


def _many(axes: Iterable[Axis]) -> bool:
    size = dim_prod(a.extent for a in axes).const
    return size is None or size >= MANY


def _along(node: Compute) -> list[Load]:
    """The reads to turn: those by the last axis that lie along the last reduced one."""
    n, k = node.axes[-1].var, node.raxes[-1].var
    found: list[Load] = []
    for e in loads(node.body):
        used = names([e])
        if n not in used or _ends_in(e, n):
            continue
        rest = [a for a in node.axes if a.var not in used]
        simple = _ends_in(e, k) and k not in names(e.index[:-1]) and _anywhere(e, node)
        if not simple or not _many(rest):
            return []
        found.append(e)
    return found


def _anywhere(e: Load, node: Compute) -> bool:
    """Whether it may be read without the conditions around it."""
    if e.check is not None:
        return False
    if e.other is not None or not any(isinstance(x, Select) for x in walk(node.body)):
        return True
    extents = {a.var: a.extent for a in (*node.axes, *node.raxes)}
    pairs = zip(e.index, e.tensor.type.shape, strict=True)
    return all(isinstance(i, Idx) and extents.get(i.dim.name or "") == size for i, size in pairs)


def _ends_in(e: Load, var: str) -> bool:
    last = e.index[-1] if e.index else None
    return isinstance(last, Idx) and last.dim.name == var


def _reading(node: Compute, found: list[Load], copies: dict[object, Compute]) -> Compute:
    moved: dict[Expr, Expr] = {}
    for e in found:
        used = names([e])
        outer = [a for a in (*node.axes[:-1], *node.raxes[:-1]) if a.var in used]
        axes = (*outer, node.raxes[-1], node.axes[-1])
        kind = TensorType(e.dtype, tuple(a.extent for a in axes))
        made = Compute(type=kind, span=node.span, axes=axes, body=e)
        made = copies.setdefault(node_key(made), made)
        moved[e] = Load(e.dtype, made, tuple(Idx(Dim.of(a.var)) for a in axes))
    return replace(node, body=rewrite(node.body, lambda e: moved.get(e, e)))
