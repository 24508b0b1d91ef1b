"""Makes values inside a graph visible: further results, those in loops stacked by turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from nnc.ir.expr import Idx, Load
from nnc.ir.graph import Axis, Compute, Graph, Loop, Node, Part, toposort
from nnc.ir.rewrite import replace_operands
from nnc.lang.dims import Dim


@dataclass(frozen=True)
class Sight:
    """A value of the graph as it was, the loops around it (outer first), and what shows of it.

    The result's leading axes are the turns of the loops.
    """

    node: Node
    loops: tuple[Loop, ...]
    shown: Node


Look = Callable[[Node, Node], Sequence[Node]]  # (as it was, rebuilt) -> what is shown of it


def observed(graph: Graph, look: Look) -> tuple[Graph, list[Sight]]:
    """The graph with further results for every node of which `look` shows something.

    Sights are in the order of execution. Nothing inside a `while` without a limit is seen.
    """
    new: dict[Node, Node] = {}
    sights = _scope(toposort(graph.roots), new, look)
    writes = tuple(replace(w, value=new[w.value]) for w in graph.writes)
    results = (*(new[r] for r in graph.results), *(s.shown for s in sights))
    return replace(graph, results=results, writes=writes), sights


def _scope(order: Iterable[Node], new: dict[Node, Node], look: Look) -> list[Sight]:
    """Rebuilds the nodes of one scope; as deep as loops are nested."""
    out: list[Sight] = []
    for node in order:
        if isinstance(node, Loop):
            out += _loop(node, new, look)
            continue
        new[node] = replace_operands(node, new.__getitem__)
        out += [Sight(node, (), shown) for shown in look(node, new[node])]
    return out


def _loop(loop: Loop, new: dict[Node, Node], look: Look) -> list[Sight]:
    hidden = loop.cond is not None
    inside: list[Sight] = []
    for carry in loop.carries:
        new[carry] = carry
        inside += [] if hidden else [Sight(carry, (), s) for s in look(carry, carry)]
    inside += _scope(loop.body, new, (lambda _, __: ()) if hidden else look)
    made = replace(
        loop,
        init=tuple(new[i] for i in loop.init),
        next=tuple(new[n] for n in loop.next),
        yields=(*(new[y] for y in loop.yields), *(s.shown for s in inside)),
        cond=None if loop.cond is None else new[loop.cond],
    )
    new[loop] = made
    first = len(loop.carries) + len(loop.yields)
    return [Sight(s.node, (loop, *s.loops), Part.of(made, first + k)) for k, s in enumerate(inside)]


def copied(node: Node) -> Node:
    """The same value as a node of its own (a placeholder cannot be a result)."""
    axes = tuple(Axis(f"$i{k}", n) for k, n in enumerate(node.type.shape))
    body = Load(node.type.dtype, node, tuple(Idx(Dim.of(a.var)) for a in axes))
    return Compute(type=node.type, span=node.span, axes=axes, body=body)
