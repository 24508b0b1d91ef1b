"""Random numbers in index notation: one for each element, the same as of whole tensors' laws."""

from __future__ import annotations

import numpy as np

from tests.endtoend import built, compare, sample


def test_one_number_for_each_element() -> None:
    text = """
from std.random import bernoulli
def jitter(x: f32) -> f32 = x + normal!([])
export def f(x: f32[B, N], p: f32) -> (f32[B, N], f32[B, N], f32[B], f32[B, N], f32[B, N]):
    u[i, j] = x[i, j] * 0 + uniform!([])
    v[i, j] = jitter!(x[i, j]) - x[i, j]
    s[i] = sum[j](x[i, j] * 0 + uniform!([]))
    keep[i, j] = 1.0 if bernoulli!(p + 0 * x[i, j]) else 0.0
    rows[i, j] = x[i, j] * 0 + uniform!([N])[j]
    return u, v, s, keep, rows
"""
    graph = built(text)["f"].graph
    dims = {"B": 40, "N": 50}
    inputs = sample(graph, dims, np.random.default_rng(0)) | {"p": np.float32(0.25)}
    u, v, s, keep, rows = compare(graph, dims, inputs)
    assert len(np.unique(u)) > 1990 and len(np.unique(rows)) > 1990
    assert abs(u.mean() - 0.5) < 0.03 and abs(v.mean()) < 0.1 and abs(v.std() - 1) < 0.1
    assert abs(s.mean() - 25) < 1.5 and len(np.unique(s)) == 40
    assert abs(keep.mean() - 0.25) < 0.05


def test_gradients_see_the_same_numbers() -> None:
    text = """
export def f(x: f32[N]) -> (f32[N], f32[N]):
    y[i] = x[i] * uniform!([])
    loss = total(y)
    return y, grad(loss, x)
"""
    graph = built(text)["f"].graph
    inputs = sample(graph, {"N": 20}, np.random.default_rng(0))
    y, g = compare(graph, {"N": 20}, inputs)
    np.testing.assert_allclose(g * inputs["x"], y, rtol=1e-6)
