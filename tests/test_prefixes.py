"""Sums up to a place are loops that carry them along."""

from __future__ import annotations

from textwrap import dedent

import numpy as np
import pytest

from nnc import compiler
from nnc.ir.graph import Graph, Loop, all_nodes
from nnc.ir.interpret import run as interpret
from tests.endtoend import built, close, compare, sample

PROGRAMS = {
    "to and from each place": """
    export def f(x: f32[B, T]) -> (f32[B, T], f32[B, T], f32[T, B], f32[B, T]):
        y[b, i:T] = sum[j:T](x[b, j] if j <= i else 0)
        z[b, i:T] = sum[j:T](x[b, j] if j < i else 0)
        u[i:T, b] = sum[j:T](x[b, j] if j >= i else 0)
        v[b, i:T] = sum[j:T](x[b, j] if i < j else 0)
        return y, z, u, v
    """,
    "with factors and other conditions": """
    export def f(x: f32[B, T], w: f32[T], s: f32[C]) -> (f32[C, B, T], f32[B, T]):
        y[c, b, i:T] = sum[j:T](s[c] * x[b, j] * w[i] * w[j] if j <= i else 0)
        z[b, i:T] = sum[j:T](x[b, j] * w[j] if j <= i and x[b, j] > 0 else 0)
        return y, z
    """,
    "in a loop": """
    export def f(x: f32[T], N: dim) -> f32[T] where N >= 0:
        for n in N:
            x[i:T] = sum[j:T](x[j] if j <= i else 0) / T
        return x
    """,
    "gradients": """
    export def f(s: f32[B, T], c: f32[B, T]) -> (f32[B, T], f32[B]):
        a = 1 - exp(-abs(s))
        t[b, i:T] = exp(-sum[j:T](abs(s[b, j]) if j < i else 0))
        y[b] = sum[i](t[b, i] * a[b, i] * c[b, i])
        loss = sum(y**2)
        return grad(loss, s), y
    """,
}


def graph_of(text: str) -> Graph:
    return next(iter(built(dedent(text)).values())).graph


def loops(graph: Graph) -> int:
    return sum(isinstance(n, Loop) for n in all_nodes(compiler.optimise(graph)))


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_same_sums(name: str) -> None:
    graph = graph_of(PROGRAMS[name])
    for size in (1, 2, 37):
        dims = {d: {"B": 3, "C": 2, "T": size, "N": 2}[d] for d in graph.dims}
        inputs = sample(graph, dims, np.random.default_rng(0))
        inputs |= {"N": np.int64(2)} if "N" in inputs else {}
        got = compare(graph, dims, inputs)
        if name != "gradients":
            for a, b in zip(got, interpret(graph, dims, inputs).results, strict=True):
                close(a, b, 1e-4, name)
    assert loops(graph) >= {
        "to and from each place": 4,
        "with factors and other conditions": 2,
        "in a loop": 2,
        "gradients": 2,
    }.get(name, 1)


def test_what_depends_on_the_place_is_summed_for_each() -> None:
    text = """
    export def f(p: f32[T, T], x: f32[T]) -> f32[T]:
        y[i, ] = sum[j](p[i, j] * x[j] if j <= i else 0)
        return y
    """.replace("[i, ]", "[i]")
    assert loops(graph_of(text)) == 0


def test_what_no_place_counts_is_not_read() -> None:
    """The last element counts nowhere, and a factor only where an element does."""
    text = """
    export def f(x: f32[T], w: f32[T]) -> (f32[T], f32[T]):
        y[i:T] = sum[j:T](x[j + 1] if j < i else 0)
        z[i:T] = sum[j:T](x[j] * w[i - 1] if j < i else 0)
        return y, z
    """
    graph = graph_of(text)
    for size in (1, 2, 37):
        inputs = sample(graph, {"T": size}, np.random.default_rng(0))
        compare(graph, {"T": size}, inputs)
    got = compare(
        graph, {"T": 2}, {"x": np.ones(2, np.float32), "w": np.array([1, np.inf], np.float32)}
    )
    assert np.isfinite(got[1]).all()
