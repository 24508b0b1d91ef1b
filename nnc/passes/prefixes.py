"""Sums over all elements up to the one asked for are carried along, not begun anew for each.

`sum[j](x[j] if j <= i else 0)` for all i is a loop that adds one element and keeps every sum; so
are `j < i`, and from the other end `j >= i` and `j > i`, which are its gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce

from nnc.ir.bounds import condition_facts, node_obligations
from nnc.ir.expr import Const, Expr, Idx, Load, guards, joined_by, loads, names, subst
from nnc.ir.form import functions_of
from nnc.ir.graph import Axis, Compute, Graph, Input, Loop, Node, Part, all_nodes
from nnc.ir.rewrite import transform
from nnc.ir.scalar import op, select, under
from nnc.lang.dims import Dim, Facts
from nnc.lang.types import TensorType
from nnc.passes.loops import Fresh
from nnc.passes.vjp import fill

SHORT = 32  # elements up to which each sum is made alone


def prefixes(graph: Graph) -> Graph:
    """The same function with such sums as loops."""
    every = all_nodes(graph)
    if not any(isinstance(n, Compute) and _may(n) for n in every):
        return graph
    fresh = Fresh(n.var for n in every if isinstance(n, Loop))

    def one(node: Node) -> Node:
        found = _prefix(node, graph.facts) if isinstance(node, Compute) and _may(node) else None
        return node if found is None else found.node(fresh)

    return transform(graph, one)


def _may(node: Compute) -> bool:
    if node.op != "sum" or node.type.dtype not in ("f32", "f64", "i32", "i64"):
        return False
    return not functions_of(node.formed.form).isdisjoint(("le", "lt", "ge", "gt"))


@dataclass(frozen=True)
class _Prefix:
    """The sum of `value` over `along` up to the place `at` (or from there: `reverse`).

    `own`: whether the element at the place itself belongs to it; `rest`: the other axes of the
    value; `times`: factors that do not depend on what is summed over.
    """

    whole: Compute
    at: Axis
    along: Axis
    own: bool
    reverse: bool
    rest: tuple[Axis, ...]
    value: Expr
    times: tuple[Expr, ...]

    def node(self, fresh: Fresh) -> Compute:
        whole, dtype = self.whole, self.whole.type.dtype
        kind = TensorType(dtype, tuple(a.extent for a in self.rest))
        carry = Input(type=kind, span=whole.span, name=whole.name, kind="carry")
        bare = tuple(Idx(Dim.of(a.var)) for a in self.rest)
        var = fresh("$prefix")
        value = subst(self.value, {self.along.var: Dim.of(var)})
        body = op("add", Load(dtype, carry, bare), value)
        step = replace(whole, type=kind, axes=self.rest, raxes=(), op="", body=body)
        loop = Loop(
            type=kind,
            span=whole.span,
            name=whole.name,
            regions=whole.regions,
            var=var,
            trip=self.along.extent,
            carries=(carry,),
            init=(fill(carry, 0),),
            next=(step,),
            yields=(step,),
            reverse=self.reverse,
        )
        out = self._read(Part.of(loop, 1), bare)
        return replace(whole, raxes=(), op="", body=out)

    def _read(self, sums: Node, bare: Sequence[Expr]) -> Expr:
        dtype, i = self.whole.type.dtype, Dim.of(self.at.var)
        if self.own:
            return self._times(Load(dtype, sums, (Idx(i), *bare)))
        near = i + 1 if self.reverse else i - 1
        last = Idx(self.at.extent)
        inside = op("lt", Idx(near), last) if self.reverse else op("ge", Idx(near), Idx(Dim.of(0)))
        there = self._times(Load(dtype, sums, (Idx(near), *bare)))
        return select(inside, there, Const(dtype, 0))

    def _times(self, e: Expr) -> Expr:
        return reduce(lambda a, b: op("mul", b, a), self.times, e)


def _prefix(node: Compute, facts: Facts) -> _Prefix | None:
    """What the sum is, if it is one of these."""
    if len(node.raxes) != 1:
        return None
    (along,) = node.raxes
    conds, value = guards(node.body)
    for cond in conds:
        for at, own, reverse in _orders(cond, node.axes, along):
            kept = [c for c in conds if c is not cond]
            # Under conditions factors stay inside: 0 times inf where no element counts.
            times, left = ((), value) if kept else _apart(value, along.var)
            used = names([left, *kept])
            if at.var in used or (along.extent.const or SHORT + 1) <= SHORT:
                continue
            left = under(kept, left)
            rest = tuple(a for a in node.axes if a.var in used)
            if not _everywhere(node, left, (along, *rest), own, facts):
                continue
            return _Prefix(node, at, along, own, reverse, rest, left, times)
    return None


def _everywhere(
    node: Compute, value: Expr, axes: tuple[Axis, ...], own: bool, facts: Facts
) -> bool:
    """Whether the value may be read at every place: the last one counts nowhere if not `own`."""
    if not own and any(e.check is not None for e in loads(value)):
        return False
    kind = TensorType(node.type.dtype, tuple(a.extent for a in axes))
    alone = replace(node, type=kind, axes=axes, raxes=(), op="", body=value)
    return all(o.ok for o in node_obligations(alone, facts))


def _orders(cond: Expr, axes: Sequence[Axis], along: Axis) -> Iterator[tuple[Axis, bool, bool]]:
    """(place, own, reverse) if it compares the place with what is summed over."""
    facts = condition_facts(cond, True)
    for at in axes if len(facts) == 1 else ():
        apart = facts[0] - (Dim.of(at.var) - Dim.of(along.var))
        back = facts[0] - (Dim.of(along.var) - Dim.of(at.var))
        for distance, reverse in ((apart, False), (back, True)):
            if at.extent == along.extent and distance.const in (0, -1):
                yield at, distance.const == 0, reverse


def _apart(root: Expr, var: str) -> tuple[tuple[Expr, ...], Expr]:
    """The factors without the variable, and what is left."""
    factors = joined_by("mul", root)
    left = [f for f in factors if var in names([f])]
    if not left or len(left) == len(factors):
        return (), root
    return tuple(f for f in factors if f not in left), reduce(lambda a, b: op("mul", a, b), left)
