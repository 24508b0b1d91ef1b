"""Sums of windows that go round a circle, `sum[u](x[(i + u - 1) % N] * w[u])`, read a longer copy.

The copy holds what lies before the first element and behind the last once more. So the sum reads
plain windows; a choice of reads for each of its terms would cost more than all products. So do sums
of windows that are held at the ends, `x[min(max(i + u - 1, 0), N - 1)]`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nnc.ir.bounds import Ranges, axis_ranges, loop_facts, prove
from nnc.ir.expr import Const, Expr, Idx, Load, rewrite, walk
from nnc.ir.graph import Axis, Compute, Graph, Node
from nnc.ir.rewrite import replace_operands, with_roots
from nnc.ir.scalar import const, op
from nnc.lang.dims import ZERO, Dim, Facts, dim_max, dim_min, dim_prod
from nnc.lang.types import TensorType
from nnc.passes.schedule.circular import Choice, clamped, either, remainder

LEAST = 4  # terms of a sum that are worth a copy

Span = tuple[Dim, Dim]  # the first and the last place of an index before the remainder is taken


def around(graph: Graph) -> Graph:
    """The same function with such copies."""
    if not any(_may(n) for n in graph.order):
        return graph
    copies: dict[object, Node] = {}
    new: dict[Node, Node] = {}
    for node in graph.order:
        moved = replace_operands(node, new.__getitem__)
        if isinstance(moved, Compute) and _may(moved):
            axes = (*moved.axes, *moved.raxes)
            facts = loop_facts(axes, graph.facts)
            moved = _Sum(moved, axis_ranges(axes), facts, graph.facts).plain(copies)
        new[node] = moved
    return with_roots(graph, [new[r] for r in graph.roots])


def _may(node: Node) -> bool:
    if not isinstance(node, Compute) or not node.raxes:
        return False
    terms = dim_prod(a.extent for a in node.raxes).const
    few = terms is not None and terms < LEAST
    return not few and any(remainder(e) or clamped(e) for e in walk(node.body))


def _inner(e: Expr) -> Dim:
    """What an index is before the remainder is taken, or before it is held."""
    f, held = remainder(e), clamped(e)
    assert f is not None or held is not None, e
    return f.a if f is not None else held[0] if held is not None else ZERO


@dataclass(frozen=True)
class _Sum:
    node: Compute
    ranges: Ranges
    facts: Facts  # inside its loops
    given: Facts  # everywhere

    def plain(self, copies: dict[object, Node]) -> Compute:
        def one(e: Expr) -> Expr:
            return self.moved(e, copies) if isinstance(e, Load) else e

        return replace(self.node, body=rewrite(self.node.body, one))

    def moved(self, e: Load, copies: dict[object, Node]) -> Expr:
        """The load from a copy, if that is worth one."""
        if e.other is not None or e.check is not None:
            return e
        pairs = list(zip(e.index, e.tensor.type.shape, strict=True))
        spans = [self.span(i, n) for i, n in pairs]
        others = [p for s, p in zip(spans, pairs, strict=True) if s is None]
        if len(others) == len(pairs) or not all(self.whole(*p) for p in others):
            return e
        held = [h and h[1:] for h in map(clamped, e.index)]
        parts = zip(spans, e.index, held, strict=True)
        key = (e.tensor, *(i if s is None else (s, h) for s, i, h in parts))
        if key not in copies:
            copies[key] = self.copy(e, spans)
        index = []
        for i, s in zip(e.index, spans, strict=True):
            if s is not None:
                index.append(Idx(_inner(i) - s[0]))
            elif isinstance(i, Idx) and i.dim.names & self.ranges.keys():
                index.append(i)
        return Load(e.dtype, copies[key], tuple(index))

    def slides(self, inner: Dim) -> bool:
        """Whether elements are read again and again: for several results, or terms of one."""
        kept, summed = ({a.var for a in axes} for axes in (self.node.axes, self.node.raxes))
        return bool(inner.names & kept and inner.names & summed)

    def whole(self, i: Expr, size: Dim) -> bool:
        """Whether an index is one place, or runs over all of them."""
        if not isinstance(i, Idx):
            return False
        if not i.dim.names & self.ranges.keys():
            return True
        first_last = self.ranges.get(i.dim.name or "")
        return first_last is not None and first_last[1] == size - 1

    def span(self, i: Expr, size: Dim) -> Span | None:
        """Where an index goes, of a remainder by the size that goes round once at most or one that
        is held."""
        f, held = remainder(i), clamped(i)
        if (f is None and held is None) or not self.slides(_inner(i)):
            return None
        if size.names & self.ranges.keys() or (f is not None and f.b != size):
            return None
        first = last = inner = _inner(i)
        for name in sorted(inner.names & self.ranges.keys()):
            form = inner.linear_in(name)
            if form is None or form[0].const is None:
                return None
            low, high = (form[0] * end for end in self.ranges[name])
            if form[0].const < 0:
                low, high = high, low
            zero = {name: ZERO}
            first, last = first.subst(zero) + low, last.subst(zero) + high
        if (first.names | last.names) & self.ranges.keys():
            return None
        inside = () if f is None else (first + size, 2 * size - 1 - last)
        return (first, last) if all(prove(d, self.facts, {}) for d in inside) else None

    def copy(self, e: Load, spans: list[Span | None]) -> Compute:
        axes: list[Axis] = []
        places: list[list[Choice]] = []
        for d, (i, size, s) in enumerate(zip(e.index, e.tensor.type.shape, spans, strict=True)):
            assert isinstance(i, Idx), e
            axis = Axis(f"$w{d}", size if s is None else s[1] - s[0] + 1)
            at = Dim.of(axis.var)
            if s is not None:
                axes.append(axis)
                places.append(_places(i, at + s[0], size))
            elif i.dim.names & self.ranges.keys():
                axes.append(axis)
                places.append([(None, Idx(at))])
            else:
                places.append([(None, i)])
        sure = all(prove(n - 1, self.given, {}) for n in e.tensor.type.shape)
        zero = Const("bool", False) if e.dtype == "bool" else const(0, e.dtype)
        body = either(replace(e, other=None if sure else zero), places)
        kind = TensorType(e.dtype, tuple(a.extent for a in axes))
        return Compute(type=kind, span=self.node.span, axes=tuple(axes), body=body)


def _places(i: Expr, at: Dim, size: Dim) -> list[Choice]:
    """An index with another inner part."""
    held = clamped(i)
    if held is not None:
        _, low, high = held
        at = at if low is None else dim_max(at, low)
        return [(None, Idx(at if high is None else dim_min(at, high)))]
    before, behind = op("lt", Idx(at), Idx(ZERO)), op("ge", Idx(at), Idx(size))
    return [(before, Idx(at + size)), (behind, Idx(at - size)), (None, Idx(at))]
