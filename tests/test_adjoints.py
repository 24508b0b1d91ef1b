"""Derivatives given by an `adjoint`: of several results, and in index notation."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.endtoend import built, compare, sample

POLAR = """
def polar(x: real[..N], y: real[..N]) -> (real[..N], real[..N]):
    return sqrt(x**2 + y**2), atan2(y, x)
"""
RULE = """
adjoint polar(x, y; r, a, dr, da):
    return dr * cos(a) - da * sin(a) / r, dr * sin(a) + da * cos(a) / r
"""


def results(text: str, name: str = "f", **dims: int) -> list[Any]:
    graph = built(text)[name].graph
    return compare(graph, dims, sample(graph, dims, np.random.default_rng(0)))


def same(text: str, **dims: int) -> None:
    """With and without RULE the results are equal."""
    for a, b in zip(
        results(POLAR + text, **dims), results(POLAR + RULE + text, **dims), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_of_several_results() -> None:
    same(
        """
export def f(x: f32[N], y: f32[N]) -> (f32, f32[N], f32[N]):
    r, a = polar(x, y)
    loss = total(r * 2 + a * r)
    return loss, grad(loss, x), grad(loss, y)
""",
        N=5,
    )


def test_a_result_that_is_not_used_counts_zero() -> None:
    same(
        """
export def f(x: f32[N], y: f32[N]) -> f32[N]:
    r, _a = polar(x, y)
    loss = total(r)
    return grad(loss, y)
""",
        N=5,
    )


def test_of_several_results_in_a_loop() -> None:
    same(
        """
export def f(x: f32[T, N], y: f32[T, N]) -> f32[T, N]:
    s = zeros[N]
    for t in T:
        r, a = polar(x[t], y[t])
        s = 0.5 * s * a + r
    loss = total(s**2)
    return grad(loss, x)
""",
        T=3,
        N=4,
    )


def test_of_several_results_for_each_element() -> None:
    same(
        """
export def f(x: f32[N], y: f32[M]) -> (f32[N], f32[N], f32[M]):
    z[i] = sum[j](polar_sum(x[i], y[j]) if x[i] > y[j] else 0)
    loss = total(z**2)
    return z, grad(loss, x), grad(loss, y)
def polar_sum(x: f32, y: f32) -> f32:
    r, a = polar(x, y)
    return r * a
""",
        N=5,
        M=3,
    )


def test_results_may_be_integers() -> None:
    text = """
def top(x: real[N]) -> (real, i32):
    return max(x), argmax(x)
adjoint top(x; m, k, dm, dk):
    dx[i:N] = 2 * dm if i == k else 0
    return dx
export def f(x: f32[N]) -> (f32[N], i32):
    m, k = top(x)
    loss = 3 * m
    return grad(loss, x), k
"""
    g, k = results(text, N=6)
    want = np.zeros(6)
    want[k] = 6
    np.testing.assert_array_equal(g, want)


BINARIZE = """
def binarize(x: real, width: real) -> real = 1 if x >= 0 else -1
adjoint binarize(x, width; y, dy):
    return dy if abs(x) <= width else 0, dy * x
"""


def test_a_straight_through_estimator_for_each_element() -> None:
    text = (
        BINARIZE
        + """
export def f(x: f32[B, N], w: f32[N]) -> (f32[B, N], f32[B, N], f32):
    width = 0.5
    y[b, n] = binarize(x[b, n], width) * w[n]
    loss = sum(y**2 + y)
    return y, grad(loss, x), grad(loss, width)
"""
    )
    graph = built(text.replace("width = 0.5", "width = 0.5 + 0 * w[0]"))["f"].graph
    inputs = sample(graph, {"B": 3, "N": 4}, np.random.default_rng(1))
    y, gx, gw = compare(graph, {"B": 3, "N": 4}, inputs)
    x, w = inputs["x"], inputs["w"]
    sign = np.where(x >= 0, 1, -1)
    dy = (2 * sign * w + 1) * w
    np.testing.assert_allclose(y, sign * w, rtol=1e-6)
    np.testing.assert_allclose(gx, np.where(np.abs(x) <= 0.5, dy, 0), rtol=1e-5)
    np.testing.assert_allclose(gw, (dy * x).sum(), rtol=1e-4)


def test_rows_in_index_notation() -> None:
    text = """
def unit(x: real[N]) -> real[N]:
    return x / sqrt(total(x**2))
adjoint unit(x; y, dy):
    return (dy - y * total(dy * y)) / sqrt(total(x**2))
export def f(x: f32[B, N], w: f32[N]) -> (f32[B], f32[B, N]):
    y[b] = total(unit(x[b]) * w)
    loss = total(y**2)
    return y, grad(loss, x)
"""
    plain = text[: text.index("adjoint")] + text[text.index("export") :]
    for a, b in zip(results(text, B=3, N=4), results(plain, B=3, N=4), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
