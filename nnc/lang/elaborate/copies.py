"""Copies of parts of a Graph: with other operands, regions and streams of random numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nnc.ir.graph import Compute, Constant, Input, Node, Region, Stop, Update, toposort
from nnc.ir.rewrite import renamed, reread, revised, with_base
from nnc.lang.dims import Dim
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.randoms import stream_of

COPIED = Compute | Update | Stop | Constant
NONE: Mapping[Any, Any] = {}


class Part:
    """What lies between some nodes, `given`, and those computed from them, `roots`."""

    def __init__(self, given: Sequence[Node], roots: Iterable[Node]) -> None:
        known = set(given)
        order = toposort(roots, lambda n: () if n in known else n.needs)
        self.nodes = [n for n in order if n not in known and not _draws(n)]
        forms = [n.formed for n in self.nodes if isinstance(n, Compute | Update)]
        self.numbers = {x for f in forms for x in f.numbers}

    @property
    def possible(self) -> bool:
        """Whether there is nothing that must not be copied."""
        return all(isinstance(n, COPIED) for n in self.nodes)

    def copied(
        self,
        new: dict[Node, Node],
        around: tuple[Region, ...] = (),
        depth: int = 0,
        fixed: Mapping[str, Dim] = NONE,
        numbers: Mapping[int, int] = NONE,
    ) -> None:
        """Adds copies to `new`, where the given nodes have theirs.

        `around`: stands for the first `depth` regions; `fixed`: for names; `numbers`: for others.
        """
        regions: dict[Region, Region] = {}
        for node in self.nodes:
            own = node.regions[depth:]
            regions |= {r: Region(r.span, r.asked) for r in own if r not in regions}
            marks = (*around, *(regions[r] for r in own))
            new[node] = _copied(node, new, marks, fixed, numbers)

    def streams(self, cx: Context, path: str, other: str) -> dict[int, int]:
        """The streams of random numbers drawn below one path for another."""
        found = {n: cx.streams[n] for n in self.numbers if n in cx.streams}
        assert all(p.startswith(f"{path}/") for p in found.values()), found
        own = {n: f"{other}{p[len(path) :]}" for n, p in found.items()}
        cx.streams |= {stream_of(p): p for p in own.values()}
        return {n: stream_of(p) for n, p in own.items()}


def _draws(node: Node) -> bool:
    """Whether it is the seed or the step of random numbers, which all share."""
    return isinstance(node, Input) and node.kind == "rng"


def _copied(
    node: Node,
    new: Mapping[Node, Node],
    regions: tuple[Region, ...],
    fixed: Mapping[str, Dim],
    numbers: Mapping[int, int],
) -> Node:
    if isinstance(node, Compute | Update):
        made = reread(node, lambda n: new.get(n, n), numbers)
        if isinstance(node, Update):
            made = with_base(made, new[node.base])
        out = revised(made, regions=regions)
        return renamed(out, fixed) if fixed else out
    if isinstance(node, Stop):
        return replace(node, source=new[node.source], regions=regions)
    return replace(node, regions=regions)
