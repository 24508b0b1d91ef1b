"""Reverse-mode differentiation: every `Grad` becomes explicit `Compute`s, `Update`s and `Loop`s.

One sweep from the results to the operands; the rule of one node is in `nnc.passes.vjp`, that of a
run-time loop in `nnc.passes.reverse`. Grads of grads work because inner ones are replaced first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nnc.ir.bounds import turn_facts
from nnc.ir.dependence import active
from nnc.ir.graph import (
    Custom,
    Grad,
    Graph,
    Loop,
    Node,
    Part,
    Stop,
    renamed,
    replace_operands,
    toposort,
    transform,
    with_bodies,
    with_outs,
    with_roots,
)
from nnc.lang.dims import Dim, Facts
from nnc.passes.hoist import hoist
from nnc.passes.loops import Fresh, tidy
from nnc.passes.reverse import pull_loop
from nnc.passes.vjp import Share, fill, is_zero, node_of, pull, total


def autodiff(graph: Graph) -> Graph:
    """The graph without Grad, Part of a Grad, and Stop; every loop has a variable of its own."""
    expansion = _Expansion(Fresh())
    expansion.block(toposort(graph.roots), graph.facts, {})
    graph = with_roots(graph, [expansion.new[r] for r in graph.roots])
    return without_stops(tidy(graph))


def without_stops(graph: Graph) -> Graph:
    return transform(graph, lambda n: n.source if isinstance(n, Stop | Custom) else n)


@dataclass
class _Expansion:
    """Replaces the Grads of a graph, operands first."""

    fresh: Fresh
    new: dict[Node, Node] = field(default_factory=dict)
    found: dict[Node, list[Node]] = field(default_factory=dict)

    def block(self, order: Iterable[Node], facts: Facts, env: Mapping[str, Dim]) -> None:
        """The nodes of one scope; as deep as loops are nested. `env`: new names of turns."""
        new, order = self.new, list(order)
        grads: dict[tuple[Node, Node | None], list[Grad]] = {}
        for node in order:
            if isinstance(node, Grad):
                grads.setdefault((node.y, node.seed), []).append(node)
        for node in order:
            match node:
                case Grad():
                    if node not in self.found:
                        self._sweep(node, grads[node.y, node.seed], facts)
                case Part(source=Grad() as source, index=index):
                    new[node] = self.found[source][index]
                case Loop():
                    new[node] = self._loop(node, facts, env)
                case _:
                    new[node] = renamed(replace_operands(node, new.__getitem__), env)

    def _sweep(self, first: Grad, same: Sequence[Grad], facts: Facts) -> None:
        """One sweep for all gradients of one y; what y cannot depend on may not be there yet."""
        start = None if first.seed is None else self.new[first.seed]
        some = [g for g in same if g is first or all(w in self.new for w in g.wrt)]
        wanted = [self.new[w] for g in some for w in g.wrt]
        parts = iter(gradients([(self.new[first.y], start)], wanted, facts, self.fresh))
        for g in some:
            self.found[g] = [next(parts) for _ in g.wrt]

    def _loop(self, node: Loop, facts: Facts, env: Mapping[str, Dim]) -> Loop:
        """The loop over a variable of its own; what it need not compute in turn before it."""
        loop = replace(node, var=self.fresh(node.var))
        self.new.update((c, c) for c in node.carries)
        env = {**env, node.var: Dim.of(loop.var)}
        self.block(node.body, turn_facts(loop, facts), env)
        moved = with_outs(loop, [self.new[o] for o in node.outs])
        return hoist(replace(moved, init=tuple(self.new[i] for i in node.init)))


def gradients(
    ys: Sequence[tuple[Node, Node | None]],
    wrt: Sequence[Node],
    facts: Facts,
    fresh: Fresh | None = None,
) -> list[Node]:
    """For each of `wrt` its cotangent, given (y, cotangent of y); None stands for ones.

    `fresh`: gives the variables of new loops; the caller tidies the graph at the end.
    """
    roots = [y for y, _ in ys]
    if fresh is None:
        fresh = Fresh(n.var for n in with_bodies(toposort(roots)) if isinstance(n, Loop))
    done, _ = sweep(ys, active(roots, wrt), frozenset(), facts, fresh)
    return [done[w] if w in done else fill(w, 0) for w in wrt]


def sweep(
    ys: Sequence[tuple[Node, Node | None]],
    touched: set[Node],
    leaves: frozenset[Node],
    facts: Facts,
    fresh: Fresh,
) -> tuple[dict[Node, Node], dict[Node, list[Node | Share]]]:
    """From the results down: the cotangents of touched nodes, and the contributions to `leaves`."""
    pending: dict[Node, list[Node | Share]] = {}
    for y, seed in ys:
        pending.setdefault(y, []).append(seed or fill(y, 1))
    done: dict[Node, Node] = {}
    results: dict[Node, dict[int, Node]] = {}  # of loops
    for node in reversed(toposort([y for y, _ in ys])):
        if isinstance(node, Loop):
            parts = results.get(node)
            if parts:
                for operand, part in pull_loop(node, parts, touched, facts, fresh, sweep):
                    pending.setdefault(operand, []).append(part)
            continue
        if node not in touched or node not in pending or node in leaves:
            continue
        done[node] = total(node, [node_of(p) for p in pending.pop(node)])
        if is_zero(done[node]):
            continue
        if isinstance(node, Part) and isinstance(node.source, Loop):
            known = results.setdefault(node.source, {})
            before = [known[node.index]] if node.index in known else []
            known[node.index] = total(node, [*before, done[node]])
            continue
        if isinstance(node, Custom):
            for operand, grad in zip(node.inputs, node.grads, strict=True):
                pending.setdefault(operand, []).append(_given(grad, node.dout, done[node]))
            continue
        for operand, share in pull(node, done[node], touched, facts):
            pending.setdefault(operand, []).append(share)
    return done, {n: pending[n] for n in leaves if n in pending and n in touched}


def _given(root: Node, placeholder: Node, cotangent: Node) -> Node:
    """A custom derivative for an actual cotangent."""
    new: dict[Node, Node] = {placeholder: cotangent}
    for node in toposort([root]):
        if node not in new:
            new[node] = replace_operands(node, new.__getitem__)
    return new[root]
