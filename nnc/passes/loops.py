"""Housekeeping of run-time loops: names, variants of one loop made one, results nobody reads.

Differentiation asks one loop for more yields than it has: it makes variants with the same variable,
placeholders and next values. Two loops over one variable are one loop, but for their yields.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from nnc.ir.graph import Graph, Input, Loop, Node, Part, all_nodes, operands, toposort
from nnc.ir.rewrite import renamed, replace_operands, with_outs, with_roots
from nnc.lang.dims import Dim


class Fresh:
    """Gives names of loop variables, each once: `$t.0`, `$t.1`. No axis has a name with a dot."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self.taken = set(taken)

    def __call__(self, name: str) -> str:
        base = name.split(".")[0]
        n = 0
        while f"{base}.{n}" in self.taken:
            n += 1
        self.taken.add(f"{base}.{n}")
        return f"{base}.{n}"


def tidy(graph: Graph) -> Graph:
    """One loop for each variable; results, carried values and yields that matter only."""
    loops = [n for n in all_nodes(graph) if isinstance(n, Loop)]
    if not loops:
        return graph
    named = [loop.var for loop in loops if _is_own(loop)]
    if len(set(named)) < len(named):
        graph = _merged(graph)
    return _pruned(graph)


# ---- variants -----------------------------------------------------------------------------


def _is_own(loop: Loop) -> bool:
    """Whether its variable is of no other loop (not so before autodiff)."""
    return "." in loop.var


def _merged(graph: Graph) -> Graph:
    new: dict[Node, Node] = {}
    _merge_block(graph.roots, toposort(graph.roots), new)
    return with_roots(graph, [new[r] for r in graph.roots])


def _merge_block(roots: Sequence[Node], block: Sequence[Node], new: dict[Node, Node]) -> None:
    """Rebuilds the nodes of one scope, all of them in `block`; as deep as loops are nested."""
    groups: dict[str | Loop, list[Loop]] = {}
    for node in block:
        if isinstance(node, Loop):
            groups.setdefault(node.var if _is_own(node) else node, []).append(node)
    merged = {key: union(group) for key, group in groups.items()}
    unions = {loop: merged[key] for key, group in groups.items() for loop in group}
    inside = {*block, *unions.values()}

    def reads(node: Node) -> Sequence[Node]:
        if isinstance(node, Part) and isinstance(node.source, Loop):
            return (unions.get(node.source, node.source),)
        return operands(node)

    for node in toposort(roots, reads):
        match node:
            case _ if node not in inside:
                new.setdefault(node, node)
            case Loop(init=init):
                new.update((c, c) for c in node.carries)
                _merge_block(node.outs, node.body, new)
                moved = with_outs(node, [new[o] for o in node.outs])
                after = tuple(new[a] for a in node.after)
                new[node] = replace(moved, init=tuple(new[i] for i in init), after=after)
            case Part(source=Loop() as old):
                loop = new[unions[old]]
                assert isinstance(loop, Loop)
                new[node] = replace(node, source=loop, index=index_in(unions[old], node))
            case _:
                new[node] = replace_operands(node, new.__getitem__)


def index_in(union: Loop, part: Part) -> int:
    """Which result of the union a result of a variant is."""
    old, n = part.source, len(union.carries)
    if part.index < n or old is union:
        return part.index
    assert isinstance(old, Loop)
    return n + union.yields.index(old.yields[part.index - n])


def union(variants: Sequence[Loop]) -> Loop:
    """One loop with the yields of all."""
    if len(variants) == 1:
        return variants[0]
    yields = dict.fromkeys(y for loop in variants for y in loop.yields)
    loop = replace(variants[0], yields=tuple(yields))
    return replace(loop, type=loop.results[0])


def copied(loop: Loop, fresh: Fresh) -> Loop:
    """The same loop with a variable and placeholders of its own; as deep as loops are nested."""
    var = fresh(loop.var)
    new: dict[Node, Node] = {c: replace(c) for c in loop.carries}

    def get(node: Node) -> Node:
        return new.get(node, node)

    for node in loop.body:
        moved = renamed(replace_operands(node, get), {loop.var: Dim.of(var)})
        new[node] = copied(moved, fresh) if isinstance(moved, Loop) else moved
    carries = tuple(c for c in map(get, loop.carries) if isinstance(c, Input))
    return with_outs(replace(loop, var=var, carries=carries), [get(o) for o in loop.outs])


# ---- dead results -------------------------------------------------------------------------


@dataclass
class _Live:
    """What the roots need: nodes, and results of loops by index."""

    nodes: set[Node] = field(default_factory=set)
    results: set[tuple[Loop, int]] = field(default_factory=set)

    def mark(self, roots: Iterable[Node]) -> None:
        places: dict[Input, tuple[Loop, int]] = {}
        stack = list(roots)
        while stack:
            node = stack.pop()
            if node in self.nodes:
                continue
            self.nodes.add(node)
            match node:
                case Part(source=Loop() as loop, index=index):
                    if loop not in self.nodes:
                        self.nodes.add(loop)
                        places.update((c, (loop, i)) for i, c in enumerate(loop.carries))
                        stack += [] if loop.cond is None else [loop.cond]
                    self._need(loop, index, stack)
                case Input() if node in places:
                    self._need(*places[node], stack)
                case _:
                    stack += operands(node)

    def _need(self, loop: Loop, index: int, stack: list[Node]) -> None:
        self.results.add((loop, index))
        n = len(loop.carries)
        stack.append(loop.next[index] if index < n else loop.yields[index - n])
        if index < n:
            stack += [loop.init[index], loop.carries[index]]


def _pruned(graph: Graph) -> Graph:
    live = _Live()
    live.mark(graph.roots)
    new: dict[Node, Node] = {}
    _prune_block(toposort(graph.roots), live, new)
    return with_roots(graph, [new[r] for r in graph.roots])


def _prune_block(block: Iterable[Node], live: _Live, new: dict[Node, Node]) -> None:
    """Rebuilds the live nodes of one scope; as deep as loops are nested."""
    for node in block:
        match node:
            case _ if node not in live.nodes:
                continue
            case Loop():
                new.update((c, c) for c in node.carries)
                _prune_block(node.body, live, new)
                new[node] = _kept(node, live, new)
            case Part(source=Loop() as old, index=index):
                loop = new[old]
                assert isinstance(loop, Loop)
                before = sum((old, i) in live.results for i in range(index))
                new[node] = replace(node, source=loop, index=before)
            case _:
                new[node] = replace_operands(node, new.__getitem__)


def _kept(loop: Loop, live: _Live, new: dict[Node, Node]) -> Loop:
    n = len(loop.carries)
    carried = [i for i in range(n) if (loop, i) in live.results]
    yielded = [y for k, y in enumerate(loop.yields) if (loop, n + k) in live.results]
    out = replace(
        loop,
        carries=tuple(loop.carries[i] for i in carried),
        init=tuple(new[loop.init[i]] for i in carried),
        next=tuple(new[loop.next[i]] for i in carried),
        yields=tuple(new[y] for y in yielded),
        cond=None if loop.cond is None else new[loop.cond],
        after=tuple(new[a] for a in loop.after),
    )
    return replace(out, type=out.results[0])
