"""Finding passes over row blocks: contractions whose result never needs to exist as a whole.

A *region* computes strips: matrices over (outer axes, row, column) that only live for a block of
rows. It begins with contractions that make strips, goes on with element-wise functions of strips
and reductions over the columns, and ends in contractions over the columns (*values*) or over the
rows (*columns*). Attention is one, with any mask, normalisation, bias or dropout; so is its
gradient. Only structure counts.

What a strip holds where an affine condition excludes a column is followed through the region: if
all sums get zeros from there (and maxima -inf), the columns are left out (`Region.mask`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nnc.ir.graph import Compute, Graph, Node, toposort
from nnc.passes.regions.copies import failed_ends, split, with_copies
from nnc.passes.regions.region import Divisor, Region, Side
from nnc.passes.regions.search import Search

__all__ = ["Divisor", "Found", "Region", "Side", "find_regions"]


@dataclass(frozen=True)
class Found:
    """The graph, perhaps with strips computed a second time, and its regions.

    `refused`: contractions that looked like the end of a region, and why they are not.
    """

    graph: Graph
    regions: tuple[Region, ...]
    refused: Mapping[Node, str]


def find_regions(graph: Graph) -> Found:
    """Regions; a strip that later nodes (a gradient) read too is computed again there."""
    if not any(isinstance(n, Compute) and n.op == "sum" for n in toposort(graph.roots)):
        return Found(graph, (), {})
    banned: dict[Node, str] = {}
    while True:
        first = Search(graph, banned).run()
        if first.splits:
            graph, moved = split(graph, first.splits)
            banned = {moved[n]: why for n, why in banned.items()}
            continue
        if not first.open:
            return Found(graph, tuple(first.regions), banned | first.refused)
        again = with_copies(graph, first)
        still = {n: banned[o] for n, o in again.old.items() if o in banned}
        second = Search(again.graph, still).run()
        if second.splits:
            asked = {again.old[n]: later for n, later in second.splits.items()}
            graph, moved = split(graph, asked)
            banned = {moved[n]: why for n, why in banned.items()}
            continue
        failed = failed_ends(first, second, again)
        if not failed:
            return Found(again.graph, tuple(second.regions), still | second.refused)
        assert not failed.keys() <= banned.keys(), failed
        banned |= failed
