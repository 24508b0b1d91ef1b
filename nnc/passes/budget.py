"""What may be computed again for a gradient, and in which order that is worth it.

Candidates are the calls of modules, all calls of one source line together (a loop over layers).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nnc.diagnostics import Span
from nnc.ir.graph import (
    Compute,
    Grad,
    Graph,
    Loop,
    Node,
    Part,
    Update,
    all_nodes,
    operands,
)
from nnc.lang.dims import Dim, dim_prod
from nnc.passes.turns import is_dear


@dataclass(frozen=True)
class Candidate:
    """All calls at one place. `saved`: bytes that are not kept; `cost`: operations done again."""

    span: Span
    outside: frozenset[Span]  # candidates that all of it lies in
    saved: int
    cost: int


def candidates(graph: Graph, sizes: Mapping[str, int]) -> list[Candidate]:
    """Calls of modules below a gradient, most bytes saved per operation first."""
    nodes = all_nodes(graph)
    if not any(isinstance(n, Grad) for n in nodes):
        return []
    readers: dict[Node, list[Node]] = {}
    for node in nodes:
        for o in operands(node):
            readers.setdefault(o, []).append(node)
    inside: dict[Span, list[Node]] = {}
    outside: dict[Span, frozenset[Span]] = {}
    for node in nodes:
        around: list[Span] = []
        for region in node.regions:
            if region.asked:
                break  # it is computed again already
            inside.setdefault(region.span, []).append(node)
            known = outside.get(region.span, frozenset(around))
            outside[region.span] = known & frozenset(around)
            around.append(region.span)
    env = {d: sizes[d] for d in graph.dims}
    out = [_candidate(s, some, outside[s], readers, env) for s, some in inside.items()]
    return sorted((c for c in out if c.saved > 0), key=lambda c: -c.saved / max(c.cost, 1))


def _candidate(
    span: Span,
    nodes: Sequence[Node],
    outside: frozenset[Span],
    readers: Mapping[Node, Sequence[Node]],
    env: Mapping[str, int],
) -> Candidate:
    own = set(nodes)
    kept = [n for n in nodes if is_dear(n) and not isinstance(n, Update | Loop)]
    ends = [n for n in kept if any(r not in own for r in readers.get(n, ()))]
    saved = sum(_number(n.type.bytes, env) for n in kept) - sum(
        _number(n.type.bytes, env) for n in ends
    )
    return Candidate(span, outside, saved, sum(_operations(n, env) for n in nodes))


def _operations(node: Node, env: Mapping[str, int]) -> int:
    if isinstance(node, Compute):
        return _number(dim_prod(a.extent for a in (*node.axes, *node.raxes)), env)
    return 0 if isinstance(node, Part) else _number(node.type.elements, env)


def _number(dim: Dim, env: Mapping[str, int]) -> int:
    """The size; variables of run-time loops count as 0."""
    return dim.evaluate({**dict.fromkeys(dim.names, 0), **env})


def outermost(chosen: Iterable[Candidate]) -> frozenset[Span]:
    """The places of candidates but for those that lie in another one."""
    some = list(chosen)
    spans = frozenset(c.span for c in some)
    return frozenset(c.span for c in some if not c.outside & spans)
