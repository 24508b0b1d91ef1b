"""Splits a differentiated function into a forward part, which saves values, and a backward part.

It lets another program (a training loop in PyTorch, say) call the two halves of one derivative.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from nnc.ir.expr import walk
from nnc.ir.graph import Compute, Constant, Graph, Input, Loop, Node, all_nodes, operands, toposort
from nnc.ir.rewrite import replace_operands
from nnc.lang.types import is_float
from nnc.passes.autodiff import expanded, gradients, without_stops
from nnc.passes.loops import Fresh
from nnc.passes.simplify import simplify

SMALL = 16  # expressions of a body that is computed again rather than saved


def forward_backward(
    graph: Graph, result_index: int | None = None
) -> tuple[Graph, Graph, tuple[str, ...]]:
    """The forward graph, the backward graph, and the inputs whose gradients are its results.

    The results of forward are those of the graph, then the saved values. The inputs of backward
    are the original inputs that it reads (never one that forward overwrites), `saved.N` and one
    cotangent `d.N` for each float result (or for `result_index` only). Gradients are those of the
    float arguments and params that are not written.
    """
    graph = expanded(graph)
    wrt = differentiable_inputs(graph)
    starts = _cotangents(graph, result_index)
    ys: list[tuple[Node, Node | None]] = [(graph.results[n], d) for n, d in starts.items()]
    fresh = Fresh(n.var for n in all_nodes(graph) if isinstance(n, Loop))
    parts = gradients(ys, wrt, graph.facts, fresh)
    joint = replace(
        graph,
        inputs=(*graph.inputs, *starts.values()),
        results=(*graph.results, *parts),
    )
    joint = simplify(without_stops(joint))
    n = len(graph.results)
    written = {w.target for w in graph.writes}
    backward = _Backward(set(starts.values()), written)
    results = backward.rebuild(joint.results[n:])
    return (
        replace(joint, inputs=graph.inputs, results=(*joint.results[:n], *backward.saved)),
        replace(
            graph,
            name=f"{graph.name}.backward",
            inputs=(*_read(results, graph.inputs), *backward.saved.values(), *starts.values()),
            results=results,
            writes=(),
        ),
        tuple(w.name for w in wrt),
    )


def differentiable_inputs(graph: Graph) -> list[Input]:
    """Float arguments and params that the function does not write."""
    written = {w.target for w in graph.writes}
    return [
        i
        for i in graph.inputs
        if i.kind in ("arg", "param") and is_float(i.type.dtype) and i not in written
    ]


def _cotangents(graph: Graph, only: int | None) -> dict[int, Input]:
    return {
        n: Input(type=r.type, span=r.span, name=f"d.{n}")
        for n, r in enumerate(graph.results)
        if is_float(r.type.dtype) and only in (None, n)
    }


def _read(results: Iterable[Node], inputs: Iterable[Input]) -> list[Input]:
    """The inputs that the results depend on, in their order."""
    reached = set(toposort(results))
    return [i for i in inputs if i in reached]


@dataclass
class _Backward:
    """Rebuilds the gradients over saved values: what does not depend on a cotangent is saved."""

    cotangents: set[Input]
    written: set[Input]
    saved: dict[Node, Input] = field(default_factory=dict)

    def rebuild(self, roots: tuple[Node, ...]) -> tuple[Node, ...]:
        order = toposort(roots)
        late: set[Node] = set()
        for node in order:
            if node in self.cotangents or any(o in late for o in operands(node)):
                late.add(node)
        again = self._computed_again(order)
        needed = self._needed(roots, late, again)
        new: dict[Node, Node] = {}
        for node in order:
            if node in late or (node in needed and (node in again or self._available(node))):
                new[node] = replace_operands(node, new.__getitem__)
            elif node in needed:
                new[node] = self._save(node)
        return tuple(new[r] for r in roots)

    def _available(self, node: Node) -> bool:
        return isinstance(node, Input) and node not in self.written

    def _save(self, node: Node) -> Input:
        name = f"saved.{len(self.saved)}"
        return self.saved.setdefault(node, Input(type=node.type, span=node.span, name=name))

    def _computed_again(self, order: list[Node]) -> set[Node]:
        """Values that are cheaper to compute than to keep: small bodies over what is at hand."""
        again: set[Node] = set()
        for node in order:
            match node:
                case Constant():
                    again.add(node)
                case Compute(op="", body=body) if all(
                    o in again or self._available(o) or not o.type.rank for o in operands(node)
                ):
                    if sum(1 for _ in walk(body)) <= SMALL:
                        again.add(node)
        return again

    def _needed(self, roots: tuple[Node, ...], late: set[Node], again: set[Node]) -> set[Node]:
        """What is read by late nodes and by those computed again."""
        needed: set[Node] = set()
        stack: list[Node] = list(roots)
        seen: set[Node] = set()
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if node not in late:
                needed.add(node)
            if node in late or node in again:
                stack += operands(node)
        return needed
