"""Bytes are made before a maximum over windows, not after it: a quarter of the memory.

`u8(round(max[u, v](x[2*i + u, 2*j + v]) * p + z))` with p > 0 never falls when x grows, so that it
is the maximum of the bytes of x: the sum that x is made of then writes bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf

from nnc.ir.expr import Const, Expr, Idx, Load, Op, loads, rewrite, subst_exprs
from nnc.ir.graph import Axis, Compute, Graph, Node, users
from nnc.ir.rewrite import replace_operands, with_roots
from nnc.lang.dims import Dim
from nnc.lang.types import TensorType


def before_maxima(graph: Graph, positive: Callable[[Load], bool]) -> Graph:
    """The graph with the bytes of maxima as maxima of bytes; `positive`: as in `linear.folded`."""
    readers, roots = users(graph.roots), set(graph.roots)
    new: dict[Node, Node] = {}
    for node in graph.order:
        made = replace_operands(node, new.__getitem__)
        source = _source(node, positive)
        if source is not None and source not in roots and readers[source] == [node]:
            made = _exchanged(made, new[source])
        new[node] = made
    return with_roots(graph, [new[r] for r in graph.roots])


def _source(node: Node, positive: Callable[[Load], bool]) -> Node | None:
    """The maximum that the bytes are of."""
    match node:
        case Compute(raxes=(), body=Op("u8", "cast", (Op("f32", "round", (sum_,)),))):
            pass
        case _:
            return None
    match sum_:
        case Op("f32", "add", (Op("f32", "mul", (Load() as y, Load() as p)), Load())):
            of = y.tensor
            if positive(p) and isinstance(of, Compute) and of.op == "max" and _is_window(of):
                names = [_name(i) for i in y.index]
                return of if sorted(map(str, names)) == sorted(a.var for a in node.axes) else None
    return None


def _is_window(of: Compute) -> bool:
    """Whether elements of a tensor with the same axes are compared."""
    match of.body:
        case Load("f32", x, index, other, None):
            least = other is None or (isinstance(other, Const) and other.value == -inf)
            plain = all(isinstance(i, Idx) for i in index)
            return least and plain and x.type.rank == of.type.rank
    return False


def _exchanged(node: Node, source: Node) -> Compute:
    assert isinstance(node, Compute) and isinstance(source, Compute), node
    x = source.body
    assert isinstance(x, Load), source
    (y,) = (e for e in loads(node.body) if e.tensor is source)
    # Axes of x in the order in which those of the maximum have become the node's.
    order = [next(d for d, i in enumerate(y.index) if _name(i) == a.var) for a in node.axes]
    axes = tuple(Axis(f"$m{d}", x.tensor.type.shape[d]) for d in order)
    here = Load("f32", x.tensor, tuple(Idx(Dim.of(f"$m{d}")) for d in range(len(order))))
    inner = replace(
        node,
        type=TensorType("u8", tuple(a.extent for a in axes)),
        axes=axes,
        body=rewrite(node.body, lambda e: here if e is y else e),
    )
    at = dict(zip((a.var for a in source.axes), y.index, strict=True))
    index = [subst_exprs(i, at) for i in x.index]
    other: Expr | None = None if x.other is None else Const("u8", 0)
    body = Load("u8", inner, tuple(index[d] for d in order), other)
    return replace(node, raxes=source.raxes, op="max", body=body)


def _name(i: Expr) -> str | None:
    return i.dim.name if isinstance(i, Idx) else None
