"""One turn of a run-time loop as functions of their own, to be fused and lowered like any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nnc.ir.bounds import turn_facts
from nnc.ir.graph import Graph, Input, Loop, Node, Part, Write, all_nodes
from nnc.ir.rewrite import rebuilt, renamed, transform
from nnc.lang.dims import Dim


@dataclass(frozen=True)
class Turns:
    """The inputs of both graphs stand for the carries and then for the `captures`.

    `rest` gives the next values as writes to the carries, and as results those yields that anything
    reads (`yields`: their numbers). `test` gives the condition. In both, the loop's variable is one
    more size, which counts upwards.
    """

    captures: tuple[Node, ...]
    yields: tuple[int, ...]
    rest: Graph
    test: Graph | None


def turns(loop: Loop, graph: Graph, users: Sequence[Node]) -> Turns:
    """The turns of a loop of the graph; `users`: the parts of it that there are."""
    stand: dict[Node, Node] = {
        c: Input(type=c.type, span=c.span, name=c.name, kind="capture") for c in loop.captures
    }
    inside = _forward(rebuilt(loop, lambda n: stand.get(n, n)))
    inputs = (*loop.carries, *(n for n in stand.values() if isinstance(n, Input)))
    read = {p.index - len(loop.next) for p in users if isinstance(p, Part)}
    yields = tuple(k for k in range(len(loop.yields)) if k in read)
    one = Graph(
        loop.name or graph.name,
        graph.dims,
        inputs,
        (),
        (),
        turn_facts(loop, graph.facts),
        loop.span,
    )
    writes = tuple(Write(c, n) for c, n in zip(loop.carries, inside.next, strict=True))
    rest = replace(one, results=tuple(inside.yields[k] for k in yields), writes=writes)
    test = None if inside.cond is None else replace(one, results=(inside.cond,))
    return Turns(tuple(stand), yields, rest, test)


def _forward(loop: Loop) -> Loop:
    """A reversed loop as one that counts upwards."""
    if not loop.reverse:
        return loop
    env = {loop.var: loop.trip - 1 - Dim.of(loop.var)}
    return rebuilt(replace(loop, reverse=False), lambda n: n, lambda n: renamed(n, env))


def joined_parts(graph: Graph) -> Graph:
    """The same function with one node for each result of a loop."""
    known: dict[tuple[Node, int], Node] = {}

    def one(node: Node) -> Node:
        return known.setdefault((node.source, node.index), node) if isinstance(node, Part) else node

    return transform(graph, one) if any(isinstance(n, Part) for n in all_nodes(graph)) else graph
