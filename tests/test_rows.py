"""Kernels that walk along rows several times, and loops cut where a condition changes."""

from __future__ import annotations

import numpy as np
import pytest

from nnc import compiler
from nnc.ir.loop import For
from tests.endtoend import built, compare, run_native, sample

SOFTMAX = """
export def f(x: f32[N, M]) -> (f32[N, M], f32[N], f32[N]):
    e[i, j] = exp(x[i, j] - max[k](x[i, k]))
    s[i] = sum[j](e[i, j])
    q[i] = sum[j](e[i, j] * e[i, j])
    y[i, j] = e[i, j] / s[i]
    return y, s, q
"""


@pytest.mark.parametrize("width", [1, 15, 16, 17, 33, 64, 65, 130])
def test_rows_of_any_width(width: int) -> None:
    graph = built(SOFTMAX)["f"].graph
    dims = {"N": 5, "M": width}
    compare(graph, dims, sample(graph, dims, np.random.default_rng(width)))


def test_what_is_not_finite_goes_through_a_row() -> None:
    graph = built("export def f(x: f32[N, M]) -> f32[N] = max(x, over=1)")["f"].graph
    x = np.zeros((4, 200), np.float32)
    x[0, 3], x[1, 199], x[2] = np.nan, np.inf, -np.inf
    x[1, 100] = -np.inf
    (got,), _ = run_native(graph, {"N": 4, "M": 200}, {"x": x})
    assert np.isnan(got[0]) and np.array_equal(got[1:], [np.inf, -np.inf, 0])


@pytest.mark.parametrize("at", [0, 3, 64, 77, 199])
def test_a_nan_anywhere_is_the_largest(at: int) -> None:
    graph = built("export def f(x: f32[M]) -> f32 = max(x)")["f"].graph
    x = np.arange(200, dtype=np.float32)
    x[at] = np.nan
    (got,), _ = run_native(graph, {"M": 200}, {"x": x})
    assert np.isnan(got)


CONCAT = """
export def f(x: f32[N, M], y: f32[N, M], z: f32[3, M]) -> f32[2*N + 3, M]:
    return max(concat(x, concat(y, z, over=0), over=0), 0)
"""


def test_joined_rows_are_loops_of_their_own() -> None:
    graph = built(CONCAT)["f"].graph
    dims = {"N": 7, "M": 21}
    compare(graph, dims, sample(graph, dims, np.random.default_rng(0)))
    program = compiler.schedule(compiler.optimise(graph))
    assert [[type(s) for s in k.body] for k in program.kernels] == [[For, For]] * 2


def test_a_reduction_that_ends_at_the_index_of_its_row() -> None:
    """Weights of volume rendering: the loop of the row is renamed, and with it the end."""
    graph = built("""
export def f(x: f32[N, M], c: f32[N, M]) -> f32[N]:
    a[i, s] = 1 - exp(-abs(x[i, s]))
    t[i, s:M] = prod[j:M](1 - a[i, j] if j < s else 1)
    w = t * a
    y[i] = sum[s](w[i, s] * c[i, s])
    return y
""")["f"].graph
    dims = {"N": 5, "M": 19}
    compare(graph, dims, sample(graph, dims, np.random.default_rng(0)))


def test_a_maximum_found_with_its_place_is_known_after_its_walk() -> None:
    """The gradient of a logsumexp: the sum after the maximum and its place reads the maximum."""
    graph = built("""
export def f(x: f32[B, 3], y: f32[T, 3]) -> f32[B, 3]:
    t[j:3, w:B] = logsumexp[v:3, k:T](sum[i:3](x[w, j] * y[k, v + w else 1.5])) if w <= w + 1 else x[0, 2 - j]
    loss = mean(t * t)
    return grad(loss, x)
""")["f"].graph
    for dims in ({"B": 2, "T": 6}, {"B": 7, "T": 17}):
        compare(graph, dims, sample(graph, dims, np.random.default_rng(0)))
