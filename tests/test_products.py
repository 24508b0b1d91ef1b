"""Sums of products of many as sums of sums."""

from __future__ import annotations

from textwrap import dedent

import numpy as np
import pytest

from nnc import compiler
from nnc.ir.graph import Compute, Graph, all_nodes
from tests.endtoend import built, compare, sample

PROGRAMS = {
    "a chain": """
    export def f(x: f32[M, K], w: f32[K, L], z: f32[L, N]) -> f32[M, N]:
        y[m, n] = sum[k, l](x[m, k] * w[k, l] * z[l, n])
        return y
    """,
    "under a mask": """
    export def f(q: f32[B, T, D], k: f32[B, T, D], v: f32[B, T, E]) -> f32[B, T, E]:
        y[b, i, e] = sum[j, d](q[b, i, d] * k[b, j, d] * v[b, j, e] if j <= i else 0)
        return y
    """,
    "a bag of rows": """
    export def f(table: f32[V, D], ids: i32[B, M], w: f32[D, N]) -> f32[B, N]:
        y[b, n] = sum[m, d](table[ids[b, m], d] * w[d, n])
        return y
    """,
    "with a common factor": """
    export def f(x: f32[M, K], w: f32[K, N], z: f32[M, N]) -> f32[M, N]:
        y[m, n] = sum[k](x[m, k] * w[k, n] * exp(z[m, n]) - w[k, n] * z[m, n] * x[m, k])
        return y
    """,
    "gradients of a mixture": """
    export def f(p: f32[N, M], h: f32[M, N, K], w: f32[M, D, K]) -> (f32[N, M], f32[M, N, K], f32[M, D, K]):
        y[n, d] = sum[m, k](p[n, m] * tanh(h[m, n, k]) * w[m, d, k])
        loss = sum(y**2)
        return grad(loss, p), grad(loss, h), grad(loss, w)
    """,
    "in a loop": """
    export def f(P: f32[K, K], w: f32[K, K], T: dim) -> f32[K, K] where T >= 0:
        for t in T:
            P[i, j] = sum[k, l](w[i, k] * P[k, l] * w[j, l]) / 20
        return P
    """,
}


def graph_of(text: str) -> Graph:
    return next(iter(built(dedent(text)).values())).graph


def work(graph: Graph) -> int:
    """Products of the biggest sum, at sizes that differ."""
    env = dict.fromkeys(graph.dims, 50)
    nodes = [n for n in all_nodes(compiler.optimise(graph)) if isinstance(n, Compute) and n.raxes]
    counts = []
    for n in nodes:
        count = n.type.elements.evaluate(env)
        for a in n.raxes:
            count *= a.extent.evaluate(env)
        counts.append(count)
    return max(counts)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_same_result_by_less_work(name: str) -> None:
    graph = graph_of(PROGRAMS[name])
    assert work(graph) <= 50 ** (4 if name in ("under a mask", "gradients of a mixture") else 3)
    sizes = {"B": 2, "D": 9, "E": 5, "K": 17, "L": 6, "M": 3, "N": 11, "T": 8, "V": 3}
    dims = {d: sizes[d] for d in graph.dims}
    inputs = sample(graph, dims, np.random.default_rng(0))
    inputs |= {"T": np.int64(8)} if "T" in inputs else {}
    compare(graph, dims, inputs)


def test_equal_inner_sums_are_one() -> None:
    graph = compiler.optimise(graph_of(PROGRAMS["gradients of a mixture"]))
    sums = [n for n in all_nodes(graph) if isinstance(n, Compute) and n.raxes]
    assert len(sums) == 4  # y, dy . w for both p and h, p, w


def test_what_a_condition_excludes_is_not_read() -> None:
    """The first sum may not stand without the condition that keeps its index inside."""
    text = """
    export def f(x: f32[M, K], w: f32[K, L], z: f32[L, N]) -> f32[M, N]:
        y[m:M, n] = sum[k, l](x[m - 1, k] * w[k, l] * z[l, n] if m >= 1 else 0)
        return y
    """
    graph = graph_of(text)
    dims = {"M": 3, "K": 5, "L": 6, "N": 7}
    compare(graph, dims, sample(graph, dims, np.random.default_rng(0)))


def test_a_condition_keeps_all_its_factors() -> None:
    """What is not summed over may be infinite, or outside, where no term counts."""
    text = """
    export def f(a: f32[N, M], x: f32[M, K], w: f32[K, L]) -> (f32[N, L], f32[N, L]):
        d[n] = sum[m](1.0 if a[n, m] > 0.5 else 0.0)
        y[n, l] = sum[m, k](x[m, k] * w[k, l] * rsqrt(d[n]) if a[n, m] > 0.5 else 0)
        z[n:N, l] = sum[m, k](x[m, k] * w[k, l] * d[n - 1] if m + 1 <= n else 0)
        return y, z
    """
    graph = graph_of(text)
    dims = {"M": 5, "N": 7, "K": 6, "L": 9}
    inputs = sample(graph, dims, np.random.default_rng(0))
    inputs["a"][2] = 0
    y, _ = compare(graph, dims, inputs)
    assert not np.any(y[2])
