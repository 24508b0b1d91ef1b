"""Long reductions to few elements become two: pieces in parallel, then the results of the pieces.

The pieces depend on the sizes only, so the order of a sum does not depend on the number of threads.
"""

from __future__ import annotations

from dataclasses import replace

from nnc.ir.expr import Const, Expr, Idx, Load, Op, Select, subst, walk
from nnc.ir.graph import Axis, Compute, Graph, Node
from nnc.ir.rewrite import transform
from nnc.ir.scalar import cast
from nnc.lang.dims import ONE, Dim, dim_prod
from nnc.lang.types import DTYPES, DType, TensorType, is_float
from nnc.passes.schedule.contraction import contraction, unit_stride
from nnc.passes.schedule.space import space

PIECE = 4096  # elements of a piece of contiguous memory
ROWS = 256  # rows of a piece when whole rows are added up
LONG = 16384  # shorter reductions are not split
FEW = 8  # parallel iterations that are enough without splitting
PIECES = "$piece"  # the axis of pieces
LANES = 64  # columns that one thread takes at a time


def split_reductions(graph: Graph) -> Graph:
    """The same function with long reductions in two steps."""

    def one(node: Node) -> Node:
        if isinstance(node, Compute) and node.op in ("sum", "prod", "max", "min", "any", "all"):
            pieces = any(a.var == PIECES for a in (*node.axes, *node.raxes))
            return node if pieces else _split(node, graph)
        return node

    return transform(graph, one)


def _split(node: Compute, graph: Graph) -> Compute:
    size = _piece(node)
    if size is None or contraction(space(node, graph.facts)) is not None:
        return node
    first, *rest = node.raxes
    dtype = "f32" if node.type.dtype in ("f16", "bf16") else node.type.dtype
    pieces = Axis(PIECES, (first.extent + (size - 1)) // size)
    body = cast(node.body, dtype)
    raxes = tuple(rest)
    if size == 1:
        body = subst(body, {first.var: Dim.of(pieces.var)})
    else:
        at = Dim.of(pieces.var) * size + first.var
        raxes = (Axis(first.var, Dim.of(size)), *rest)
        body = _guarded(subst(body, {first.var: at}), at, first.extent, size, node.op)
    axes = (pieces, *node.axes)
    kind = TensorType(dtype, tuple(a.extent for a in axes))
    partial = replace(node, type=kind, axes=axes, raxes=raxes, body=body)
    load = Load(dtype, partial, tuple(Idx(Dim.of(a.var)) for a in axes))
    total = replace(node, type=node.type.with_dtype(dtype), raxes=(pieces,), body=load)
    if dtype == node.type.dtype:
        return total
    own = Load(dtype, total, tuple(Idx(Dim.of(a.var)) for a in node.axes))
    return replace(node, op="", raxes=(), body=cast(own, node.type.dtype))


def _guarded(body: Expr, at: Dim, end: Dim, size: int, fn: str) -> Expr:
    """The last piece may be shorter (`space` makes this the end of the loop)."""
    if end.const is not None and end.const % size == 0:
        return body
    inside = Op("bool", "lt", (Idx(at), Idx(end)))
    return Select(body.dtype, inside, body, neutral(fn, body.dtype))


def neutral(fn: str, dtype: DType) -> Const:
    """The result of reducing nothing."""
    if dtype == "bool":
        return Const(dtype, fn == "all")
    if fn in ("sum", "prod"):
        return Const(dtype, float(fn == "prod") if is_float(dtype) else int(fn == "prod"))
    info = DTYPES[dtype]
    if info.kind == "f":
        return Const(dtype, float("-inf" if fn == "max" else "inf"))
    low = -(2 ** (info.bits - 1)) if info.kind == "i" else 0
    return Const(dtype, low if fn == "max" else low + 2**info.bits - 1)


def _piece(node: Compute) -> int | None:
    """How many steps of the first reduced axis one piece takes; None: not worth it."""
    kept = dim_prod(a.extent for a in node.axes).const
    raxes = [a for a in node.raxes if a.extent != ONE]
    if kept is None or not raxes or raxes[0] is not node.raxes[0]:
        return None
    along = any(
        unit_stride(e, a.var) for e in walk(node.body) if isinstance(e, Load) for a in raxes
    )
    threads = kept if along or not kept else kept // LANES
    if threads > FEW or not _long(dim_prod(a.extent for a in raxes)):
        return None
    inner = dim_prod(a.extent for a in raxes[1:]).const
    size = 1 if inner is None else max(1, (PIECE if along else ROWS) // max(inner, 1))
    length = raxes[0].extent.const
    if (size == 1 and len(raxes) == 1) or (length is not None and length < 2 * size):
        return None
    return size


def _long(d: Dim) -> bool:
    """Whether a reduced size is large, or likely to be: a product of sizes."""
    if d.const is not None:
        return d.const >= LONG
    return any(sum(n for _, n in mono) >= 2 or abs(c) >= 32 for mono, c in d.terms)
