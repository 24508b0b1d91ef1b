"""A function with numbers for some of its run-time sizes (`specialize f(T=1)`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from nnc.ir.expr import Expr, subst
from nnc.ir.graph import (
    Axis,
    Compute,
    Custom,
    External,
    Graph,
    Input,
    Loop,
    Node,
    Update,
    Write,
    toposort,
)
from nnc.ir.rewrite import replace_operands, with_outs
from nnc.lang.dims import Dim, Facts
from nnc.lang.types import TensorType


def specialized(graph: Graph, name: str, sizes: Mapping[str, int]) -> Graph:
    """The same function for these sizes only; it takes the same arguments and sizes."""
    work = _Substitution({n: Dim.of(v) for n, v in sizes.items()})
    inputs = tuple(work.input(i) for i in graph.inputs)
    work.block(toposort(graph.roots))
    new = work.new
    return replace(
        graph,
        name=name,
        inputs=inputs,
        results=tuple(new[r] for r in graph.results),
        writes=tuple(Write(work.input(w.target), new[w.value]) for w in graph.writes),
        facts=_facts(graph.facts, work.env),
    )


def _facts(facts: Facts, env: Mapping[str, Dim]) -> Facts:
    known = (d.subst(env) for d in facts.nonneg)
    return Facts(frozenset(facts.zero - env.keys()), tuple(d for d in known if d.const is None))


@dataclass
class _Substitution:
    """Rebuilds nodes, operands first, with numbers for sizes."""

    env: Mapping[str, Dim]
    new: dict[Node, Node] = field(default_factory=dict)
    inputs: dict[Input, Input] = field(default_factory=dict)  # placeholders too

    def input(self, node: Input) -> Input:
        if node not in self.inputs:
            kind = self.kind(node.type)
            self.inputs[node] = node if kind == node.type else replace(node, type=kind)
            self.new[node] = self.inputs[node]
        return self.inputs[node]

    def block(self, order: Iterable[Node]) -> None:
        # As deep as loops are nested.
        for node in order:
            if node in self.new:
                continue
            if isinstance(node, Input):
                self.input(node)
            elif isinstance(node, Loop):
                self.new[node] = self.loop(node)
            else:
                self.new[node] = self.one(replace_operands(node, self.new.__getitem__))

    def loop(self, node: Loop) -> Loop:
        carries = tuple(self.input(c) for c in node.carries)
        self.block(node.body)
        made = with_outs(node, [self.new[o] for o in node.outs])
        init = tuple(self.new[i] for i in node.init)
        trip = node.trip.subst(self.env)
        return replace(made, type=self.kind(node.type), trip=trip, carries=carries, init=init)

    def one(self, node: Node) -> Node:
        """A node over new operands with new sizes."""
        if not isinstance(node, Input):
            node = replace(node, type=self.kind(node.type))
        match node:
            case Compute(axes=axes, raxes=raxes, body=body):
                loops = self.axes(axes), self.axes(raxes)
                return replace(node, axes=loops[0], raxes=loops[1], body=self.expr(body))
            case Update(axes=axes, target=target, value=value, guard=guard):
                guard = None if guard is None else self.expr(guard)
                target = tuple(map(self.expr, target))
                parts = self.axes(axes), target, self.expr(value), guard
                return replace(node, axes=parts[0], target=parts[1], value=parts[2], guard=parts[3])
            case External(sizes=sizes):
                return replace(node, sizes=tuple(d.subst(self.env) for d in sizes))
            case Custom(dout=dout, others=others):
                others = tuple((s, self.input(d)) for s, d in others)
                return replace(node, dout=self.input(dout), others=others)
        return node

    def kind(self, t: TensorType) -> TensorType:
        return TensorType(t.dtype, tuple(d.subst(self.env) for d in t.shape))

    def axes(self, axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return tuple(Axis(a.var, a.extent.subst(self.env)) for a in axes)

    def expr(self, root: Expr) -> Expr:
        return subst(root, self.env)
