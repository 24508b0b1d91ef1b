"""Reverse-mode differentiation: every `Grad` becomes explicit `Compute`s, `Update`s and `Loop`s.

One sweep from the results to the operands; the rule of one node is in `nnc.passes.vjp`, that of a
run-time loop in `nnc.passes.reverse`. Grads of grads work because inner ones are replaced first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    Region,
    Stop,
    all_nodes,
    operands,
    toposort,
    with_bodies,
)
from nnc.ir.rewrite import renamed, replace_operands, transform, with_outs, with_roots
from nnc.lang.dims import Dim, Facts
from nnc.passes.distribute import distribute
from nnc.passes.hoist import hoist
from nnc.passes.loops import Fresh, copied, index_in, tidy, union
from nnc.passes.recompute import NONE, Recomputation, asked_regions, contiguous, marked
from nnc.passes.reverse import pull_loop
from nnc.passes.tables import parts_of_tables
from nnc.passes.vjp import Share, fill, is_zero, node_of, pull, total


def autodiff(graph: Graph) -> Graph:
    """The graph without Grad, Part of a Grad, Stop and Custom; every loop has its own variable."""
    if any(isinstance(n, Grad | Loop) for n in graph.order):
        graph = expanded(graph)
    return without_stops(graph)  # marks of regions mean nothing to the passes that follow


def expanded(graph: Graph) -> Graph:
    """The graph without Grad: it can be differentiated again, `Stop` and `Custom` still stand."""
    if any(isinstance(n, Grad) for n in all_nodes(graph)):
        graph = parts_of_tables(graph)
    graph = asked_regions(graph)
    expansion = _Expansion(Fresh())
    expansion.block(graph.order, graph.facts, {})
    return tidy(with_roots(graph, [expansion.new[r] for r in graph.roots]))


def without_stops(graph: Graph) -> Graph:
    return transform(graph, _bare)


def _bare(node: Node) -> Node:
    match node:
        case Part(source=Custom() as custom, index=index):
            return custom.sources[index]
        case Custom(others=others) if others:  # read through its parts
            return node
        case Stop(source=source) | Custom(source=source):
            return source
    return node


@dataclass
class _Expansion:
    """Replaces the Grads of a graph, operands first."""

    fresh: Fresh
    new: dict[Node, Node] = field(default_factory=dict)
    found: dict[Node, list[Node]] = field(default_factory=dict)
    parts: dict[Loop, list[Node]] = field(default_factory=dict)  # the results of loops

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
                case Part(source=Loop() as source, index=index):
                    new[node] = replace(self.parts[source][index], name=node.name)
                case Loop():
                    new[node] = self._loop(node, facts, env)
                case _:
                    new[node] = renamed(replace_operands(node, new.__getitem__), env)

    def _sweep(self, first: Grad, same: Sequence[Grad], facts: Facts) -> None:
        """One sweep for all gradients of one y; what y cannot depend on may not be there yet."""
        start = None if first.seed is None else self.new[first.seed]
        some = [g for g in same if g is first or all(w in self.new for w in g.wrt)]
        wanted = [self.new[w] for g in some for w in g.wrt]
        found = gradients([(self.new[first.y], start)], wanted, facts, self.fresh)
        if first.regions:
            known = (self.new[first.y], *wanted, *(() if start is None else (start,)))
            found = marked(found, first.regions, known)
        parts = iter(found)
        for g in some:
            self.found[g] = [next(parts) for _ in g.wrt]

    def _loop(self, node: Loop, facts: Facts, env: Mapping[str, Dim]) -> Loop:
        """The loop over a variable of its own, the last one where it becomes several; what need not
        be computed in turn stands before."""
        loop = replace(node, var=self.fresh(node.var))
        self.new.update((c, c) for c in node.carries)
        env = {**env, node.var: Dim.of(loop.var)}
        self.block(node.body, turn_facts(loop, facts), env)
        moved = with_outs(loop, [self.new[o] for o in node.outs])
        init, after = (tuple(self.new[n] for n in some) for some in (node.init, node.after))
        last, self.parts[node] = distribute(
            hoist(replace(moved, init=init, after=after)), self.fresh
        )
        return last


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
    around: frozenset[Region] = NONE,
) -> tuple[dict[Node, Node], dict[Node, list[Node | Share]]]:
    """From the results down: the cotangents of touched nodes, and the contributions to `leaves`.

    `around`: the regions of the loop whose turn this is; its nodes are shadows already.
    """
    pending: dict[Node, list[Node | Share]] = {}
    for y, seed in ys:
        pending.setdefault(y, []).append(seed or fill(y, 1))
    done: dict[Node, Node] = {}
    order = contiguous([y for y, _ in ys], around)
    results = Results(n for n in order if isinstance(n, Loop))
    seed = next((s for _, s in ys if s is not None), None)
    again = Recomputation(order, around, touched, seed, fresh)

    several: dict[Node, dict[int, Node]] = {}  # cotangents of the values of a Custom

    def summed(node: Node) -> None:
        if node in touched and node in pending and node not in leaves:
            done[node] = total(node, [node_of(p) for p in pending.pop(node)])

    for node in reversed(order):
        for path in again.entered(node):
            ends = again.results(path)
            for end in ends:
                summed(end)
            again.enter(path, [done[e] for e in ends if e in done])
        if isinstance(node, Loop):
            loop, parts = results.of(node)
            if parts:
                shadow = again.pulled(loop)
                assert isinstance(shadow, Loop), shadow
                for operand, part in pull_loop(shadow, parts, touched, facts, fresh, sweep):
                    pending.setdefault(again.original(operand), []).append(part)
            continue
        if isinstance(node, Custom) and node in several:
            for operand, grad in _all_given(again, node, several[node], fresh):
                pending.setdefault(operand, []).append(grad)
            continue
        summed(node)
        if node not in done or is_zero(done[node]):
            continue
        if isinstance(node, Part) and isinstance(node.source, Custom):
            known = several.setdefault(node.source, {})
            before = [known[node.index]] if node.index in known else []
            known[node.index] = total(node, [*before, done[node]])
            continue
        if isinstance(node, Part):
            results.add(node, done[node])
            continue
        shadow = again.pulled(node)
        if isinstance(node, Custom) and isinstance(shadow, Custom):
            for operand, grad in zip(node.inputs, shadow.grads, strict=True):
                pending.setdefault(operand, []).append(
                    _given(grad, {shadow.dout: done[node]}, fresh)
                )
            continue
        for operand, share in pull(shadow, done[node], touched, facts):
            pending.setdefault(again.original(operand), []).append(share)
    return done, {n: pending[n] for n in leaves if n in pending and n in touched}


class Results:
    """The cotangents of the results of loops; variants of one loop are pulled through as one."""

    def __init__(self, loops: Iterable[Loop]) -> None:
        first: dict[str, Loop] = {}
        groups: dict[Loop, list[Loop]] = {}
        for loop in loops:
            at = first.setdefault(loop.var, loop)
            # What a variant reads must still be ahead of the sweep when it comes to the first.
            at = at if set(operands(loop)) <= set(operands(at)) else loop
            groups.setdefault(at, []).append(loop)
        self.first = {loop: at for at, group in groups.items() for loop in group}
        self.union = {at: union(group) for at, group in groups.items()}
        self.found: dict[Loop, dict[int, Node]] = {}

    def add(self, part: Part, cotangent: Node) -> None:
        assert isinstance(part.source, Loop), part
        at = self.first[part.source]
        index = index_in(self.union[at], part)
        known = self.found.setdefault(at, {})
        before = [known[index]] if index in known else []
        known[index] = total(part, [*before, cotangent])

    def of(self, loop: Loop) -> tuple[Loop, dict[int, Node]]:
        """All variants as one loop, with the cotangents of its results by index."""
        return self.union.get(loop, loop), self.found.get(loop, {})


def _all_given(
    again: Recomputation, node: Custom, known: Mapping[int, Node], fresh: Fresh
) -> Iterator[tuple[Node, Node]]:
    """The contributions of a Custom of several values; a value that is not used counts zero."""
    shadow = again.pulled(node)
    assert isinstance(shadow, Custom), shadow
    cotangents: dict[Node, Node] = {
        d: known[i] if i in known else fill(d, 0) for i, d in enumerate(shadow.douts)
    }
    for operand, grad in zip(node.inputs, shadow.grads, strict=True):
        yield operand, _given(grad, cotangents, fresh)


def _given(root: Node, cotangents: Mapping[Node, Node], fresh: Fresh) -> Node:
    """A custom derivative for actual cotangents; a loop in it becomes one of its own."""
    new: dict[Node, Node] = dict(cotangents)
    for node in toposort([root]):
        if node not in new:
            made = replace_operands(node, new.__getitem__)
            made = made if made is node else replace(made, regions=())
            again = isinstance(made, Loop) and made is not node
            new[node] = copied(made, fresh) if again and isinstance(made, Loop) else made
    return new[root]
