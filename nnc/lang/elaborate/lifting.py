"""From one element in index notation to all of them: tensors over the index names in force.

A scalar of index notation is an expression of the index names. Where a value of the Graph is needed
(for a gradient, a loop, a C function), it becomes a tensor with these names as first axes, which
is then read at them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nnc.diagnostics import Span
from nnc.ir.expr import Expr, Idx, Load, loads, names
from nnc.ir.graph import Axis, Compute, Node
from nnc.lang.dims import Dim
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.values import Over, Tensor, Value, of_node
from nnc.lang.types import DType, TensorType


def used_ranges(cx: Context, bodies: Sequence[Expr]) -> tuple[Axis, ...]:
    """The index names in force that expressions use, as axes; with checked reads also those of the
    lazy branches that they stand in."""
    used = names(bodies)
    if cx.conds and any(e.check is not None for b in bodies for e in loads(b)):
        used |= names(cx.conds)
    return tuple(Axis(v, n) for v, n in cx.ranges.items() if v in used)


def over_ranges(cx: Context, body: Expr, outer: tuple[Axis, ...], span: Span) -> Compute:
    """An expression in index notation as a tensor over the index names."""
    kind = TensorType(body.dtype, tuple(a.extent for a in outer))
    guarded = cx.guarded(body, {a.var for a in outer})
    assert not cx.ranges.keys() & names([guarded]) - {a.var for a in outer}, (body, outer)
    return Compute(type=kind, span=cx.at(span), axes=outer, body=guarded, regions=cx.regions)


def at_ranges(node: Node, outer: tuple[Axis, ...]) -> Tensor:
    """A tensor over index names, read at these."""
    prefix = tuple(Idx(Dim.of(a.var)) for a in outer)
    shape = node.type.shape[len(outer) :]
    dtype: DType = node.type.dtype

    def at(index: tuple[Expr, ...]) -> Expr:
        return Load(dtype, node, (*prefix, *index))

    return replace(Tensor(TensorType(dtype, shape), at), over=Over(node, outer))


def own_index(cx: Context, shape: Sequence[Dim]) -> tuple[Idx, ...]:
    """Fresh loop variables for axes."""
    taken: list[str] = []
    for _ in shape:
        taken.append(cx.fresh_var("a", taken))
    return tuple(Idx(Dim.of(v)) for v in taken)


def ranges_of(cx: Context, tensors: list[Tensor]) -> tuple[Axis, ...]:
    """The index names in force that elements of these tensors use."""
    return used_ranges(cx, [t.at(own_index(cx, t.shape)) for t in tensors])


def ranges_of_call(
    cx: Context, given: Mapping[str, Value], dims: Mapping[str, Dim]
) -> tuple[Axis, ...]:
    """The index names that a call in index notation depends on, by its arguments."""
    tensors = [t for v in given.values() if isinstance(t := cx.tensor(v), Tensor)]
    bodies: list[Expr] = [Idx(d) for d in dims.values()]
    return used_ranges(cx, [*bodies, *(t.at(own_index(cx, t.shape)) for t in tensors)])


@dataclass(frozen=True)
class Lifted:
    """Tensors over the index names `outer`, as their first axes (none: as they are)."""

    cx: Context
    outer: tuple[Axis, ...]
    span: Span

    def node(self, t: Tensor) -> Node:
        """A tensor as a node over the index names and its own axes."""
        if not self.outer:
            with self.cx.outside_loops():
                node = self.cx.materialized(t, self.span).node
            assert node is not None
            return node
        if t.over is not None and t.over.outer == self.outer and not self.cx.conds:
            return t.over.node
        own = own_index(self.cx, t.shape)
        axes = tuple(Axis(str(i.dim.name), n) for i, n in zip(own, t.shape, strict=True))
        return over_ranges(self.cx, t.at(own), (*self.outer, *axes), self.span)

    def read(self, node: Node) -> Tensor:
        return at_ranges(node, self.outer) if self.outer else of_node(node)

    def stacked(self, node: Node) -> Tensor:
        """What a loop over the index names has stacked: the turns are the first axis."""
        if not self.outer:
            return of_node(node)
        prefix = tuple(Idx(Dim.of(a.var)) for a in self.outer)
        shape = (node.type.shape[0], *node.type.shape[1 + len(prefix) :])
        dtype: DType = node.type.dtype

        def at(index: tuple[Expr, ...]) -> Expr:
            return Load(dtype, node, (index[0], *prefix, *index[1:]))

        return Tensor(TensorType(dtype, shape), at)

    def result(self, node: Node, like: Tensor) -> Tensor:
        read = self.read(node)
        return replace(read, letters=like.letters, origins=like.origins, place=like.place)

    def of(self, t: Tensor) -> Tensor:
        """The same value, read from a node over the index names."""
        if t.over is not None and t.over.outer == self.outer:
            return t
        return self.result(self.node(t), t)
