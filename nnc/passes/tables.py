"""What a turn of a loop reads of a table that it carries, as values of their own.

`R[t, j]` of a carried R becomes `row[j]` with `row = R[t]`. So a gradient keeps the rows that turns
read, not the whole table for each turn. (Where nothing is differentiated they are read in place.)
"""

from __future__ import annotations

from dataclasses import replace

from nnc.diagnostics import Span
from nnc.ir.bounds import Ranges, as_dim, prove
from nnc.ir.expr import Expr, Idx, Load, rewrite
from nnc.ir.graph import Axis, Compute, Graph, Input, Loop, Node, Update, all_nodes
from nnc.ir.rewrite import transform
from nnc.lang.dims import ZERO, Dim, Facts
from nnc.lang.types import TensorType

Parts = dict[tuple[object, ...], Compute]


def parts_of_tables(graph: Graph) -> Graph:
    """The same function with such values."""
    turns = _turns(graph)
    if not turns:
        return graph
    made: Parts = {}

    def one(node: Node) -> Node:
        if not isinstance(node, Compute | Update) or is_part(node):
            return node

        def read(e: Expr) -> Expr:
            if not isinstance(e, Load) or not _carried(e):
                return e
            return _read(e, node, turns, graph.facts, made)

        if isinstance(node, Update):
            return replace(node, value=rewrite(node.value, read))
        return replace(node, body=rewrite(node.body, read))

    return transform(graph, one)


def _turns(graph: Graph) -> Ranges:
    """The variables of loops with their ranges, where one name has one."""
    found: dict[str, set[Dim]] = {}
    for n in all_nodes(graph):
        if isinstance(n, Loop):
            found.setdefault(n.var, set()).add(n.trip)
    return {v: (ZERO, next(iter(t)) - 1) for v, t in found.items() if len(t) == 1}


def is_part(node: Node) -> bool:
    """Whether a value is a part of a carried one."""
    if not isinstance(node, Compute) or node.op or not isinstance(node.body, Load):
        return False
    return _carried(node.body) and node.type.rank < len(node.body.index)


def _carried(e: Load) -> bool:
    return isinstance(e.tensor, Input) and e.tensor.kind == "carry"


def _read(e: Load, reader: Compute | Update, turns: Ranges, facts: Facts, made: Parts) -> Expr:
    """The read of a part instead."""
    if e.other is not None or e.check is not None:
        return e
    axes = (*reader.axes, *(reader.raxes if isinstance(reader, Compute) else ()))
    inner, shape = {a.var for a in axes}, e.tensor.type.shape
    places = {j: d for j, i in enumerate(e.index) if (d := as_dim(i)) is not None}
    fixed = {j: d for j, d in places.items() if d.names.isdisjoint(inner)}
    ends = [x for j, d in fixed.items() for x in (d, shape[j] - 1 - d)]
    turn = any(d.names & turns.keys() for d in fixed.values())
    if not turn or not all(prove(x, facts, turns) for x in ends):
        return e
    key = (e.tensor, *fixed.items())
    if key not in made:
        made[key] = _part(e, fixed, reader.span)
    return Load(e.dtype, made[key], tuple(i for j, i in enumerate(e.index) if j not in fixed))


def _part(e: Load, fixed: dict[int, Dim], span: Span) -> Compute:
    axes = {j: Axis(f"$i{j}", s) for j, s in enumerate(e.tensor.type.shape) if j not in fixed}
    rank = range(len(e.index))
    index = tuple(Idx(fixed[j] if j in fixed else Dim.of(axes[j].var)) for j in rank)
    kind = TensorType(e.dtype, tuple(a.extent for a in axes.values()))
    body = Load(e.dtype, e.tensor, index)
    return Compute(type=kind, axes=tuple(axes.values()), body=body, span=span)
