"""Recomputation: what a region computes is not kept for the gradient but computed again there.

A region (`nnc.ir.graph.Region`) is the work of one expression: `recompute(...)`, or a module's call
that was chosen. The sweep of autodiff pulls cotangents through copies of its nodes (`shadows`). The
copies come `after` the cotangents of the region's results, so nothing merges them with the
originals, and they do not run before they are needed. Storage that is written in a region is
written once: its copies read what the original wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from nnc.diagnostics import Span
from nnc.ir.expr import Const
from nnc.ir.graph import (
    Compute,
    Graph,
    Input,
    Loop,
    Node,
    Part,
    Region,
    Update,
    all_nodes,
    operands,
    toposort,
)
from nnc.ir.printer import print_node
from nnc.ir.rewrite import renamed, replace_operands, revised, transform, with_outs, with_roots
from nnc.lang.dims import Dim
from nnc.passes.loops import Fresh

Path = tuple[Region, ...]
NONE: frozenset[Region] = frozenset()


def asked_regions(graph: Graph) -> Graph:
    """The graph with marks of those regions only that are computed again."""
    return _marked_again(graph, lambda r: r if r.asked else None)


def ask(graph: Graph, places: Collection[Span]) -> Graph:
    """The graph with the calls at these places to be computed again too."""
    new: dict[Region, Region] = {}

    def one(r: Region) -> Region:
        return new.setdefault(r, replace(r, asked=r.asked or r.span in places))

    return _marked_again(graph, one)


def _marked_again(graph: Graph, fn: Callable[[Region], Region | None]) -> Graph:
    def one(node: Node) -> Node:
        found = tuple(r for r in map(fn, node.regions) if r is not None)
        return node if found == node.regions else revised(node, regions=found)

    some = any(fn(r) is not r for n in all_nodes(graph) for r in n.regions)
    return transform(graph, one) if some else graph


def path_of(node: Node, around: frozenset[Region] = NONE) -> Path:
    """The regions that a node was made in, outermost first, less those around all."""
    own = node.source if isinstance(node, Part) else node
    return tuple(r for r in own.regions if r not in around)


# ---- order --------------------------------------------------------------------------------


def contiguous(roots: Iterable[Node], around: frozenset[Region]) -> list[Node]:
    """All nodes, operands first, those of a region one behind the other."""
    order = toposort(roots)
    if not any(path_of(n, around) for n in order):
        return order
    return _grouped(order, around, 0)


def _grouped(order: Sequence[Node], around: frozenset[Region], depth: int) -> list[Node]:
    # As deep as regions are nested.
    first: dict[Node | Region, Node] = {}
    unit: dict[Node, Node] = {}
    members: dict[Node, list[Node]] = {}
    for node in order:
        path = path_of(node, around)
        unit[node] = first.setdefault(path[depth] if len(path) > depth else node, node)
        members.setdefault(unit[node], []).append(node)
    if len(members) == len(order):
        return list(order)

    edges: dict[Node, dict[Node, None]] = {at: {} for at in members}
    for node in order:
        found = (unit[o] for o in operands(node) if o in unit)
        edges[unit[node]].update((u, None) for u in found if u is not unit[node])
    left = len(order) + sum(map(len, edges.values()))

    def reads(at: Node) -> tuple[Node, ...]:
        nonlocal left
        left -= 1
        assert left >= 0, f"a region depends on itself: {print_node(at)}"
        return tuple(edges[at])

    out: list[Node] = []
    for at in toposort(members, reads):
        inner = len(path_of(at, around)) > depth
        out += _grouped(members[at], around, depth + 1) if inner else members[at]
    return out


# ---- one sweep ----------------------------------------------------------------------------


@dataclass
class Recomputation:
    """The shadows of the regions of one sweep.

    `seed`: a cotangent that the sweep starts from, if it is given one. `touched` gets the shadows
    of touched nodes.
    """

    order: Sequence[Node]
    around: frozenset[Region]
    touched: set[Node]
    seed: Node | None
    fresh: Fresh
    shadows: dict[Path, dict[Node, Node]] = field(default_factory=dict)
    origin: dict[Node, Node] = field(default_factory=dict)
    members: dict[Path, list[Node]] = field(default_factory=dict)
    readers: dict[Node, list[Node]] = field(default_factory=dict)
    own: dict[tuple[Path, Region], Region] = field(default_factory=dict)
    vars: dict[tuple[Path, str], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in self.order:
            path = path_of(node, self.around)
            for k in range(1, len(path) + 1):
                self.members.setdefault(path[:k], []).append(node)
        if self.members:
            for node in self.order:
                for o in operands(node):
                    self.readers.setdefault(o, []).append(node)

    def entered(self, node: Node) -> list[Path]:
        """The regions whose first node, going backwards, this is; outermost first."""
        path = path_of(node, self.around)
        prefixes = (path[:k] for k in range(1, len(path) + 1))
        return [p for p in prefixes if p not in self.shadows]

    def results(self, path: Path) -> list[Node]:
        """What the region computes for others only."""
        inside = set(self.members[path])
        return [
            n for n in self.members[path] if not any(r in inside for r in self.readers.get(n, ()))
        ]

    def enter(self, path: Path, cotangents: Iterable[Node]) -> None:
        """Makes the shadows of a region, given the cotangents of its results."""
        after = tuple(c for c in cotangents if not _constant(c))
        after = after or ((self.seed,) if self.seed is not None else tuple(self.results(path)))
        known = self.shadows[path] = {}
        for node in self.members[path]:
            self._add(node, self._shadow(path, node, after), known)

    def _add(self, node: Node, made: Node, known: dict[Node, Node]) -> None:
        known[node] = made
        if made is not node:
            self.origin[made] = node
            if node in self.touched:
                self.touched.add(made)

    def _get(self, path: Path, node: Node) -> Node:
        """What a shadow reads instead: the shadow of the innermost region around both."""
        for k in range(len(path), 0, -1):
            known = self.shadows.get(path[:k], {})
            if node in known:
                return known[node]
        return node

    def _shadow(self, path: Path, node: Node, after: tuple[Node, ...]) -> Node:
        def get(n: Node) -> Node:
            return self._get(path, n)

        if isinstance(node, Update) and get(node.base) is node.base:
            return node  # storage: written once
        if isinstance(node, Loop):
            return replace(self._loop(path, node, {}), after=after)
        moved = replace_operands(node, get)
        if isinstance(node, Part):
            return replace(moved) if moved is node else moved
        return revised(moved, regions=self._regions(path, node), after=after)

    def _regions(self, path: Path, node: Node) -> Path:
        """Marks of their own, for the gradient of the gradient."""
        return tuple(
            r if r in self.around else self.own.setdefault((path, r), Region(r.span, r.asked))
            for r in node.regions
        )

    def _loop(self, path: Path, loop: Loop, env: dict[str, Dim]) -> Loop:
        """A copy with a variable and placeholders of its own; as deep as loops are nested."""
        key = path, loop.var
        if key not in self.vars:
            self.vars[key] = self.fresh(loop.var)
        var, known = self.vars[key], self.shadows[path]
        env = {**env, loop.var: Dim.of(var)}

        def get(n: Node) -> Node:
            return self._get(path, n)

        for c in loop.carries:
            if c not in known:
                self._add(c, replace(c), known)
        for node in loop.body:
            if node not in known:
                if isinstance(node, Loop):
                    made: Node = self._loop(path, node, env)
                else:
                    made = renamed(replace_operands(node, get), env)
                regions = self._regions(path, node)
                self._add(node, replace(made, regions=regions), known)
        carries = tuple(c for c in map(get, loop.carries) if isinstance(c, Input))
        init = tuple(map(get, loop.init))
        regions = self._regions(path, loop)
        out = replace(loop, var=var, carries=carries, init=init, regions=regions)
        return with_outs(out, [get(o) for o in loop.outs])

    def pulled(self, node: Node) -> Node:
        """What cotangents are pulled through instead of a node: its shadow, if it has one."""
        path = path_of(node, self.around)
        if not path:
            return node
        known = self.shadows[path]
        if isinstance(node, Loop) and node not in known:  # variants made one
            made = self._loop(path, node, {})
            known[node] = replace(made, after=known[self.members[path][0]].after)
        return known[node]

    def original(self, node: Node) -> Node:
        """The node that a shadow is a copy of."""
        return self.origin.get(node, node)


def _constant(node: Node) -> bool:
    return isinstance(node, Compute) and not node.op and isinstance(node.body, Const)


# ---- after differentiation ----------------------------------------------------------------


def marked(parts: Sequence[Node], regions: Path, known: Iterable[Node]) -> list[Node]:
    """New nodes (all below `parts` that are not known) as part of the regions around a gradient."""
    new: dict[Node, Node] = {n: n for n in toposort(known)}
    for node in toposort(parts, lambda n: () if n in new else operands(n)):
        if node not in new:
            moved = replace_operands(node, new.__getitem__)
            new[node] = revised(moved, regions=(*regions, *moved.regions))
    return [new[p] for p in parts]


def settled(graph: Graph) -> Graph:
    """The graph with `after` naming only what is computed anyhow, in the same scope."""
    if not any(n.after for n in all_nodes(graph)):
        return graph
    new: dict[Node, Node] = {}
    _settle(graph.order, set(toposort(graph.roots, lambda n: n.read)), new)
    return with_roots(graph, [new[r] for r in graph.roots])


def _settle(block: Sequence[Node], real: set[Node], new: dict[Node, Node]) -> None:
    """The nodes of one scope; as deep as loops are nested."""
    for node in block:
        kept = tuple(a for a in node.after if a in real)
        if len(kept) < len(node.after):
            node, old = revised(node, after=kept), node
        else:
            old = node
        if isinstance(node, Loop):
            new.update((c, c) for c in node.carries)
            _settle(node.body, set(node.body), new)
            moved = with_outs(node, [new[o] for o in node.outs])
            init, after = (tuple(new[n] for n in some) for some in (node.init, node.after))
            new[old] = replace(moved, init=init, after=after)
        else:
            new[old] = replace_operands(node, new.__getitem__)
