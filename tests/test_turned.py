"""Reductions over all pairs: lanes are the pairs, not what is summed."""

from __future__ import annotations

from textwrap import dedent

import numpy as np
import pytest

from nnc import compiler
from nnc.ir.graph import Compute, Graph
from nnc.passes.fuse import fuse
from tests.endtoend import built, compare, sample

PAIRS = {
    "distances": """
    export def f(q: f32[M, K], x: f32[N, K]) -> f32[M, N]:
        d[m, n] = sum[k]((q[m, k] - x[n, k])**2)
        return d
    """,
    "of one tensor, in batches, the nearest": """
    export def f(x: f32[B, N, 3]) -> (f32[B, N], i32[B, N]):
        d[b, m, n] = sum[k](abs(x[b, m, k] - x[b, n, k])) if m != n else inf
        best[b, m] = argmin[n](d[b, m, n])
        return min(d, over=2), best
    """,
    "largest of sums, under a condition": """
    export def f(q: f32[M, K], x: f32[N, K], z: f32[N]) -> f32[M, N]:
        d[m, n] = max[k](q[m, k] + x[n, k] if q[m, k] > 0 else z[n])
        return d
    """,
    "next to each other, with an end": """
    export def f(q: f32[M, K], x: f32[N, K]) -> f32[M, N]:
        d[m, n:N] = sum[k](abs(q[m, k] - x[n + 1, k else 0]))
        return d
    """,
    "gradients": """
    export def f(q: f32[M, K], x: f32[N, K]) -> (f32[M, K], f32[N, K]):
        d[m, n] = exp(-sum[k]((q[m, k] - x[n, k])**2))
        return grad(total(d), [q, x])
    """,
}


def graph_of(text: str) -> Graph:
    return next(iter(built(dedent(text)).values())).graph


def copies(text: str) -> list[str]:
    """The kernels that only copy."""
    order = fuse(compiler.optimise(graph_of(text))).graph.order
    return [n.name for n in order if isinstance(n, Compute) and not n.raxes and len(n.read) == 1]


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("size", [1, 7, 70])
def test_the_same_results(name: str, size: int) -> None:
    graph = graph_of(PAIRS[name])
    dims = {d: {"B": 2, "M": 5, "N": size, "K": 3 if size > 9 else size + 2}[d] for d in graph.dims}
    compare(graph, dims, sample(graph, dims, np.random.default_rng(0)))


def test_a_copy_is_made() -> None:
    assert len(copies(PAIRS["distances"])) == 1


@pytest.mark.parametrize(
    "text",
    [
        # a contraction packs for itself
        "export def f(q: f32[M, K], x: f32[N, K]) -> f32[M, N] = q @ x.T",
        # each element is read twice
        """
        export def f(q: f32[2, K], x: f32[N, K]) -> f32[2, N]:
            d[b, n] = sum[k](abs(q[b, k] - x[n, k]))
            return d
        """,
        # few lanes
        """
        export def f(q: f32[M, K], x: f32[4, K]) -> f32[M, 4]:
            d[m, n] = sum[k](abs(q[m, k] - x[n, k]))
            return d
        """,
    ],
)
def test_no_copy_where_it_does_not_pay(text: str) -> None:
    assert copies(text) == []
