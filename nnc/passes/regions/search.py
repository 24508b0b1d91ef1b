"""The regions of one graph."""

from __future__ import annotations

from collections.abc import Mapping

from nnc.ir.graph import Compute, Graph, Node
from nnc.passes.regions.division import late_division
from nnc.passes.regions.growth import Growth, Refused
from nnc.passes.regions.mask import mask
from nnc.passes.regions.region import Region
from nnc.passes.regions.view import View


class Search:
    """The regions of a graph; `banned`: contractions that end none, and why."""

    def __init__(self, graph: Graph, banned: Mapping[Node, str]) -> None:
        self.view = View(graph, banned)
        self.regions: list[Region] = []
        self.open: dict[Region, list[Node]] = {}  # strips with readers outside
        self.end: dict[Region, Node] = {}
        self.refused: dict[Node, str] = {}
        self.splits: dict[Node, frozenset[str]] = {}  # see `copies.split`

    def run(self) -> Search:
        for node in self.view.order:
            if node in self.view.taken or node in self.view.banned or not self.view.ends(node):
                continue
            growth = Growth(self.view, node)
            try:
                nodes = growth.run()
            except Refused as why:
                if growth.plausible():
                    self.refused[node] = str(why)
                continue
            if nodes is None:
                continue
            region = _region(growth, nodes)
            self.regions.append(region)
            self.end[region] = node
            self.splits |= growth.splits
            self.view.taken |= set(region.nodes)
            outside: list[Node] = [
                s for s in region.nodes if region.roles[s] == "strip" and self.leaves(s, region)
            ]
            if outside:
                self.open[region] = outside
        return self

    def leaves(self, strip: Node, region: Region) -> bool:
        inside = set(region.nodes)
        return strip in self.view.roots or any(u not in inside for u in self.view.readers[strip])


def _region(g: Growth, nodes: tuple[Compute, ...]) -> Region:
    late = {n: late_division(g, n) for n in nodes if g.roles[n] == "value"}
    sides = g.sides | {n: side for n, side in late.items() if side is not None}
    found = mask(g, nodes)
    return Region(g.outer, g.row, g.col, nodes, g.roles, g.env, sides, g.values, found)
