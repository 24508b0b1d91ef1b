"""Costly functions of few axes become tensors of their own."""

from __future__ import annotations

from textwrap import dedent

import numpy as np
import pytest

from nnc import compiler
from nnc.ir.expr import Op, walk
from nnc.ir.graph import Compute, Graph, all_nodes
from nnc.passes.fuse import fuse
from tests.endtoend import built, compare, sample

DIMS = {"B": 3, "C": 19, "N": 40, "K": 17}
CASES = {
    # text, functions that are computed for so many axes
    "innermost": ("y[b, c] = x[b, c] / sqrt(v[c] + 1)", {"sqrt": 1, "div": 2}),
    "outer": ("y[b, c] = x[b, c] * rsqrt(v[c]**2 + 1) * exp(u[b])", {"rsqrt": 1, "exp": 2}),
    "lazy": ("y[b, c] = x[b, c] * sqrt(v[c]) if x[b, c] > 0 else 1", {"sqrt": 2}),
    "angles": (
        "y[b, c] = x[b, c] * cos(0.1 * c) if x[b, c] > 0 else v[c]",
        {"cos": 1},
    ),
    "product": (
        "z[c, b] = sum[k](a[c, k] * w[k, b])\n    y[b, c] = z[c, b]\n    y = y + x",
        {},
    ),
}


def graph_of(body: str) -> Graph:
    text = f"""
    export def f(x: f32[B, C], v: f32[C], u: f32[B], a: f32[C, K], w: f32[K, B]) -> f32[B, C]:
        {body}
        return y + 0 * (v + total(u) + total(a) + total(w))
    """
    return built(dedent(text))["f"].graph


def ranks(graph: Graph) -> dict[str, int]:
    """The rank of the nodes in which each function stands."""
    fused = fuse(compiler.optimise(graph)).graph
    return {
        e.fn: len(n.axes)
        for n in all_nodes(fused)
        if isinstance(n, Compute)
        for e in walk(n.body)
        if isinstance(e, Op)
    }


@pytest.mark.parametrize("name", ["innermost", "outer", "lazy", "angles"])
def test_where_they_are_computed(name: str) -> None:
    body, wanted = CASES[name]
    graph = graph_of(body)
    found = ranks(graph)
    assert {k: found[k] for k in wanted} == wanted
    compare(graph, DIMS, sample(graph, DIMS, np.random.default_rng(0)))


def test_epilogues_of_contractions() -> None:
    text = """
    export def f(x: f32[B, K], w: f32[O, K], v: f32[O], m: f32[B]) -> f32[O, B]:
        y[o, b] = sum[k](x[b, k] * w[o, k]) * rsqrt(v[o]**2 + 1) / exp(m[b])
        return y
    """
    graph = built(dedent(text))["f"].graph
    assert ranks(graph)["rsqrt"] == ranks(graph)["exp"] == 1
    dims = {"B": 33, "O": 40, "K": 50}
    compare(graph, dims, sample(graph, dims, np.random.default_rng(0)))
