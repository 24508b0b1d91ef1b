"""Weights stored in fewer bits: reads of chosen inputs become conversions of narrower ones.

The arithmetic does not change: `x[n, i] * w[o, i]` with `w` stored as bf16 is
`x[n, i] * f32(w[o, i])`, and kernels convert in registers (`nnc.codegen.vectors`).
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import replace

from nnc.ir.expr import Expr, Load, Op, Select, loads, rewrite
from nnc.ir.graph import (
    Compute,
    Formula,
    Graph,
    Input,
    Loop,
    Node,
    Update,
    all_nodes,
    exprs_of,
    operands,
)
from nnc.ir.rewrite import transform, with_exprs
from nnc.lang.types import DType
from nnc.passes.schedule.contraction import factors


def weights(graph: Graph) -> set[str]:
    """Names of f32 parameters of two or more axes that are factors in sums of products, directly
    or through views."""
    views: dict[Node, Input] = {}
    found: set[str] = set()
    for node in all_nodes(graph):
        if isinstance(node, Input) and node.kind == "param" and node.type.dtype == "f32":
            if node.type.rank > 1:
                views[node] = node
        elif isinstance(node, Compute):
            if not node.raxes and isinstance(node.body, Load) and node.body.tensor in views:
                views[node] = views[node.body.tensor]
            elif node.op == "sum":
                found |= {views[t].name for t in _factors(node.body) if t in views}
    return found


def _factors(body: Expr) -> Iterator[Node]:
    """The tensors whose elements are factors of a product of two or more."""
    while isinstance(body, Select):
        body = body.a
    every = factors(body)
    for e in every if len(every) > 1 else ():
        if isinstance(e, Load):
            yield e.tensor  # type: ignore[misc]


def held(graph: Graph) -> Iterator[str]:
    """Inputs that must stay as they are: used as whole tensors, written, or read with `else`."""
    yield from (r.name for r in graph.roots if isinstance(r, Input))
    yield from (w.target.name for w in graph.writes)
    for node in all_nodes(graph):
        if isinstance(node, Compute | Update):
            some = (e for root in exprs_of(node) for e in loads(root) if e.other is not None)
            yield from (e.tensor.name for e in some if isinstance(e.tensor, Input))
            whole: tuple[Node, ...] = (node.base,) if isinstance(node, Update) else ()
        elif isinstance(node, Loop):
            whole = (*node.init, *node.outs)
        else:
            whole = operands(node)
        yield from (n.name for n in whole if isinstance(n, Input))


def stored_as(graph: Graph, names: Set[str], dtype: DType) -> Graph:
    """The graph with these inputs (none of them `held`) of another dtype, converted where read."""
    new = {
        i: replace(i, type=i.type.with_dtype(dtype)) if i.name in names else i for i in graph.inputs
    }
    narrowed = {n for i, n in new.items() if n is not i}

    def one(e: Expr) -> Expr:
        if isinstance(e, Load) and e.tensor in narrowed:
            return Op(e.dtype, "cast", (replace(e, dtype=dtype),))
        return e

    def convert(node: Node) -> Node:
        if isinstance(node, Input):
            return new.get(node, node)
        if isinstance(node, Formula) and any(o in narrowed for o in node.read):
            return with_exprs(node, [rewrite(e, one) for e in exprs_of(node)], None)
        return node

    made = transform(graph, convert)
    return replace(made, inputs=tuple(new[i] for i in graph.inputs))
