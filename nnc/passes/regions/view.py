"""A graph as the search for regions sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from nnc.ir.expr import Expr, Idx, Load, walk
from nnc.ir.graph import Axis, Compute, Graph, Node, users
from nnc.lang.dims import dim_prod
from nnc.passes.schedule.contraction import Contraction, contraction
from nnc.passes.schedule.space import Space, space

DEEP = 512  # the longest sum that makes an element of a strip


class View:
    """What the search asks of a graph, found once; `banned`: nodes that end no region, and why."""

    def __init__(self, graph: Graph, banned: Mapping[Node, str]) -> None:
        self.graph, self.banned = graph, banned
        self.readers = users(graph.roots)
        self.position: dict[Node, int] = {n: i for i, n in enumerate(self.readers)}
        self.order: list[Compute] = [n for n in self.readers if isinstance(n, Compute)]
        self.roots = set(graph.roots)
        self.written = {w.value for w in graph.writes}
        self.spaces: dict[Node, Space] = {}
        self.found: dict[Node, Contraction | None] = {}
        self.known: dict[Node, tuple[Load, ...]] = {}
        self.names: dict[Load, tuple[tuple[Axis, str], ...] | None] = {}
        self.taken: set[Node] = set()  # the members of regions

    def space(self, node: Compute) -> Space:
        if node not in self.spaces:
            self.spaces[node] = space(node, self.graph.facts)
        return self.spaces[node]

    def loads(self, node: Compute) -> tuple[Load, ...]:
        """The loads of its space."""
        if node not in self.known:
            self.known[node] = tuple(loads_of(self.space(node).body))
        return self.known[node]

    def bare(self, e: Load, t: Compute) -> tuple[tuple[Axis, str], ...] | None:
        """Each axis of a node that is read, and the name that stands for it; None: not all have."""
        if e not in self.names:
            s = self.space(t)
            homes = s.homes()
            names = [
                (a, name_of(e.index[homes[a.var]]) if a.var in homes else None) for a in s.axes
            ]
            plain = e.other is None and e.check is None and all(name for _, name in names)
            self.names[e] = tuple((a, n) for a, n in names if n) if plain else None
        return self.names[e]

    def contraction(self, node: Compute) -> Contraction | None:
        if node not in self.found:
            found = contraction(self.space(node)) if node.op == "sum" else None
            self.found[node] = (
                found if found is not None and found.fn == "mul" and found.m else None
            )
        return self.found[node]

    @cached_property
    def frames(self) -> set[tuple[object, ...]]:
        """The extents that frames may have: those of short sums of products, see `makes_strip`."""
        found: set[tuple[object, ...]] = set()
        for node in self.order:
            c = self.contraction(node)
            if c is None or not is_short(c):
                continue
            axes = self.space(node).axes
            for rows, columns in ((c.m, c.n), (c.n, c.m)):
                if len(columns) == 1:
                    found |= {extents_of(axes, row, columns[0]) for row in rows}
        return found

    def ends(self, node: Compute) -> bool:
        """Whether it is a contraction over one axis."""
        if node.op != "sum" or node.type.dtype not in ("f32", "f64"):
            return False
        c = self.contraction(node)
        return c is not None and len(c.k) == 1


def extents_of(axes: Sequence[Axis], row: Axis, col: Axis) -> tuple[object, ...]:
    return (row.extent, col.extent, *sorted(str(a.extent) for a in axes))


def is_short(c: Contraction) -> bool:
    length = dim_prod(a.extent for a in c.k).const
    return length is None or length <= DEEP


def name_of(e: Expr) -> str | None:
    return e.dim.name if isinstance(e, Idx) else None


def loads_of(e: Expr) -> list[Load]:
    return [x for x in walk(e) if isinstance(x, Load)]


def where(node: Node) -> str:
    return f"`{node.name}`" if node.name else "a value"
