"""What is not read is not computed."""

from __future__ import annotations

from textwrap import dedent

import numpy as np

from nnc import compiler
from nnc.ir.graph import Compute, Graph, all_nodes
from nnc.passes.narrow import narrow
from tests.endtoend import built, compare, sample


def graph_of(text: str) -> Graph:
    return next(iter(built(dedent(text)).values())).graph


def biggest(graph: Graph) -> int:
    """Elements of the biggest product, at sizes that differ."""
    env = {"B": 2, "T": 101, "D": 3, "V": 7}
    nodes = [n for n in all_nodes(compiler.optimise(graph)) if isinstance(n, Compute)]
    return max((n.type.elements.evaluate(env) for n in nodes if n.raxes), default=0)


LAST = """
def layer(x: f32[B, T, D], w: f32[D, V]) -> f32[B, T, V]:
    return tanh(x @ w)

export def f(x: f32[B, T, D], w: f32[D, V], u: f32[V, V]) -> f32[B, V]:
    return layer(layer(x, w), u)[:, -1]
"""


def test_the_last_position_only() -> None:
    graph = graph_of(LAST)
    assert biggest(graph) == 2 * 7
    dims = {"B": 2, "T": 5, "D": 3, "V": 7}
    compare(graph, dims, sample(graph, dims, np.random.default_rng(0)))


def test_two_positions_need_both() -> None:
    text = LAST.replace("[:, -1]\n", "[:, -1] + layer(layer(x, w), u)[:, 0]\n")
    graph = graph_of(text)
    assert biggest(graph) == 2 * 101 * 7
    dims = {"B": 2, "T": 5, "D": 3, "V": 7}
    compare(graph, dims, sample(graph, dims, np.random.default_rng(0)))


def test_results_stay_whole() -> None:
    text = """
    export def f(x: f32[B, T, D], w: f32[D, V]) -> (f32[B, T, V], f32[B, V]):
        y = x @ w
        return y, y[:, -1]
    """
    graph = graph_of(text)
    assert biggest(graph) == 2 * 101 * 7
    dims = {"B": 2, "T": 5, "D": 3, "V": 7}
    compare(graph, dims, sample(graph, dims, np.random.default_rng(0)))


def test_inside_loops() -> None:
    """What a turn reads of what it computes; what depends on the turn stays."""
    text = """
    export def f(x: f32[B, T, D], w: f32[D, D]) -> f32[B, D]:
        h = x[:, 0]
        for t in T:
            y = tanh(x @ w + h[:, None])
            h = y[:, -1] + y[:, -1] * x[:, t]
        return h
    """
    graph = graph_of(text)
    assert biggest(graph) == 2 * 3
    dims = {"B": 2, "T": 5, "D": 3}
    compare(graph, dims, sample(graph, dims, np.random.default_rng(0)))


def test_it_changes_nothing_twice() -> None:
    graph = narrow(compiler.optimise(graph_of(LAST)))
    assert narrow(graph) is graph
