"""Run-time loops in functions that are called in index notation: one loop for all elements."""

from __future__ import annotations

import numpy as np
import pytest

from tests.endtoend import built, compare, sample

TEXT = """
def escape(cx: real, cy: real) -> i32:
    x, y = 0.0, 0.0
    n = 0
    while x**2 + y**2 <= 4 limit 50:
        x, y = x**2 - y**2 + cx, 2 * x * y + cy
        n = n + 1
    return n

export def mandelbrot(H: dim, W: dim) -> i32[H, W] where H >= 1, W >= 1:
    n[i:H, j:W] = escape(-2 + 3 * j / W, -1.5 + 3 * i / H)
    return n

def root(c: real) -> real:
    y = 1.0
    while abs(y * y - c) > 1e-5 limit 40:
        y = 0.5 * (y + c / y)
    return y

def unlimited(c: real) -> real:
    y = 1.0
    while abs(y * y - c) > 1e-5:
        y = 0.5 * (y + c / y)
    return y

export def roots(x: f32[N, M]) -> (f32[N, M], f32[N, M], f32[N, M]):
    y[i, j] = root(x[i, j]) if x[i, j] > 0 else -1
    z[i, j] = unlimited(x[i, j]) if x[i, j] > 0 else -1
    return y, z, grad(total(y), x)

def power(x: real, n: dim) -> real:
    p = 1.0
    for t in n:
        p = p * x
    return p

export def powers(x: f32[N], w: f32[M], n: dim) -> (f32[N, M], f32[N]) where n >= 1:
    y[i, j] = power(x[i], n) * w[j]
    s = sum[i](power(x[i], n))
    return y, grad(s, x)

def swept(c: real[K], x: real) -> real:
    h = zeros[K]
    hs = for t in K:
        g[k] = tanh(h[k] + c[k] * x + c[t])
        h = g
        yield total(h)
    return max(hs)

export def sweeps(c: f32[B, K], x: f32[N]) -> f32[B, N] where K >= 1:
    y[b, i] = swept(c[b], x[i])
    return y

def walk(x: real[N], start: i32) -> real:
    k = start
    s = 0.0
    while k < N limit 100:
        s = s + x[k]
        k = k + 2
    return s

export def walks(x: f32[N]) -> f32[N]:
    y[i:N] = walk(x, i)
    return y

export def walked(x: f32[N]) -> (f32, f32[N]):
    s = walk(x, 0)
    return s, grad(s, x)

def find(edges: real[E], v: real) -> i32:
    lo, hi = 0, E
    while hi - lo > 1 limit 32:
        mid = (lo + hi) // 2
        if edges[mid] <= v:
            lo = mid
        else:
            hi = mid
    return lo

export def bins(edges: f32[E], v: f32[N]) -> (i32[N], i32) where E >= 1, N >= 1:
    b[i] = find(edges, v[i])
    return b, find(edges, v[0])

def drawn(x: real) -> real:
    for t in 3:
        x = x + uniform!([])
    return x

export def draws(x: f32[N]) -> f32[N]:
    y[i] = drawn!(x[i])
    return y
"""


def run(name: str, dims: dict[str, int], **given: object) -> list[np.ndarray]:
    graph = built(TEXT)[name].graph
    inputs = sample(graph, dims, np.random.default_rng(0))
    inputs |= {k: np.asarray(v, np.float32) for k, v in given.items()}
    return compare(graph, dims, inputs)


def test_each_element_stops_at_its_own_turn() -> None:
    (got,) = run("mandelbrot", {"H": 9, "W": 14})
    i, j = np.mgrid[:9, :14]
    c = (-2 + 3 * j / 14) + 1j * (-1.5 + 3 * i / 9)
    z, n = np.zeros_like(c), np.zeros(c.shape, int)
    for _ in range(50):
        going = abs(z) <= 2
        z = np.where(going, z * z + c, z)
        n += going
    np.testing.assert_array_equal(got, n)


def test_loops_stand_in_lazy_branches() -> None:
    x = np.array([[4.0, -1.0, 2.0], [0.25, -3.0, 9.0]])
    y, z, dx = run("roots", {"N": 2, "M": 3}, x=x)
    want = np.where(x > 0, np.sqrt(abs(x)), -1)
    np.testing.assert_allclose(y, want, rtol=1e-4)
    np.testing.assert_allclose(z, want, rtol=1e-4)
    np.testing.assert_allclose(dx, np.where(x > 0, 0.5 / np.sqrt(abs(x)), 0), rtol=1e-3)


def test_gradients_pass_turns_of_elements() -> None:
    x, w = np.array([0.5, -1.5, 2.0]), np.array([1.0, -2.0])
    y, dx = run("powers", {"N": 3, "M": 2, "n": 4}, x=x, w=w)
    np.testing.assert_allclose(y, x[:, None] ** 4 * w, rtol=1e-5)
    np.testing.assert_allclose(dx, 4 * x**3, rtol=1e-5)


def test_tensors_are_carried_and_stacked_for_each_element() -> None:
    rng = np.random.default_rng(1)
    c, x = rng.standard_normal((2, 4)), rng.standard_normal(3)
    (got,) = run("sweeps", {"B": 2, "K": 4, "N": 3}, c=c, x=x)
    for b in range(2):
        for i in range(3):
            h, sums = np.zeros(4), []
            for t in range(4):
                h = np.tanh(h + c[b] * x[i] + c[b, t])
                sums.append(h.sum())
            assert got[b, i] == pytest.approx(max(sums), rel=1e-4)


def test_ended_elements_read_nothing() -> None:
    x = np.arange(1.0, 6.0)
    (got,) = run("walks", {"N": 5}, x=x)
    np.testing.assert_array_equal(got, [9, 6, 8, 4, 5])
    total, dx = run("walked", {"N": 5}, x=x)
    assert total == 9
    np.testing.assert_array_equal(dx, [1, 0, 1, 0, 1])


def test_numbers_before_a_loop_are_those_of_the_first_turn_only() -> None:
    v = np.array([0.5, 3.2, 7.5, 6.0, 0.0])
    found, first = run("bins", {"E": 8, "N": 5}, edges=np.arange(8.0), v=v)
    np.testing.assert_array_equal(found, [0, 3, 7, 6, 0])
    assert first == 0


def test_each_element_and_turn_draws() -> None:
    (got,) = run("draws", {"N": 4}, x=np.zeros(4))
    assert len(set(got.tolist())) == 4 and (got > 0).all() and (got < 3).all()
