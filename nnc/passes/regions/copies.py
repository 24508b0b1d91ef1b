"""Graphs that hold more regions: sums in two steps, and strips that are computed again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from nnc.ir.expr import Idx, Load
from nnc.ir.graph import Compute, Graph, Node, toposort
from nnc.ir.rewrite import replace_operands, with_roots
from nnc.lang.dims import Dim
from nnc.passes.regions.region import Region
from nnc.passes.regions.search import Search
from nnc.passes.regions.view import where


def split(graph: Graph, splits: Mapping[Node, frozenset[str]]) -> tuple[Graph, dict[Node, Node]]:
    """The graph where these sums keep some of their axes at first, and add those up afterwards.

    Also: what the old nodes have become.
    """
    new: dict[Node, Node] = {}
    for node in toposort(graph.roots):
        made = replace_operands(node, new.__getitem__)
        if node in splits:
            assert isinstance(made, Compute), made
            made = _in_two(made, splits[node])
        new[node] = made
    return with_roots(graph, [new[r] for r in graph.roots]), new


def _in_two(node: Compute, later: frozenset[str]) -> Compute:
    kept = tuple(a for a in node.raxes if a.var in later)
    axes = (*kept, *node.axes)
    kind = replace(node.type, shape=tuple(a.extent for a in axes))
    rest = tuple(a for a in node.raxes if a.var not in later)
    part = replace(node, type=kind, axes=axes, raxes=rest)
    load = Load(node.type.dtype, part, tuple(Idx(Dim.of(a.var)) for a in axes))
    return replace(node, raxes=kept, body=load)


@dataclass
class Copies:
    graph: Graph
    old: dict[Node, Node]  # nodes of the new graph: what they were
    copied: set[Node]  # new nodes that are copies


def with_copies(graph: Graph, search: Search) -> Copies:
    """The graph where readers outside of a region have strips of their own."""
    member: dict[Node, Region] = {n: r for r in search.open for n in r.nodes}
    home = {n: r for n, r in member.items() if r.roles[n] == "strip"}
    new: dict[Node, Node] = {}
    copies: dict[Node, Node] = {}
    for node in toposort(graph.roots):
        own = member.get(node)

        def outer(o: Node, own: Region | None = own) -> Node:
            return copies[o] if o in home and home[o] is not own else new[o]

        def again(o: Node) -> Node:
            return copies[o] if o in home else new[o]

        new[node] = replace_operands(node, outer)
        if node in home:
            copies[node] = replace(replace_operands(node, again))
    old = {v: k for k, v in new.items()} | {v: k for k, v in copies.items()}
    return Copies(with_roots(graph, [new[r] for r in graph.roots]), old, set(copies.values()))


def failed_ends(first: Search, second: Search, made: Copies) -> dict[Node, str]:
    """Ends of regions that leave strips to others, in the old graph."""
    bad: dict[Node, str] = {}
    lost: set[Node] = set()
    for region, strips in second.open.items():
        bad[made.old[second.end[region]]] = f"{where(strips[0])} is needed elsewhere"
        lost |= {made.old[s] for s in strips}
    strips_of = {n for r in second.regions for n in r.nodes if r.roles[n] == "strip"}
    lost |= {made.old[n] for n in second.view.readers if n in made.copied and n not in strips_of}
    for region, strips in first.open.items():
        for s in strips:
            if s in lost:
                bad[first.end[region]] = f"{where(s)} is needed elsewhere"
    return bad
