"""`grad` in index notation: a gradient for each element, of functions, of elements, by whole tensors."""

from __future__ import annotations

import numpy as np
import pytest

from nnc.ir.graph import Loop, all_nodes
from tests.endtoend import built, compare

TEXT = """
def f(a: real) -> real = a**3 + sin(a)

def slope(a: real) -> real:
    y = f(a)
    return grad(y, a)

def curve(a: real) -> real:
    y = f(a)
    g = grad(y, a)
    return grad(g, a)

def both(a: real, b: real) -> (real, real):
    z = a * b
    y = sin(z) * a
    return grad(y, [a, b])

def inner(a: real, b: real) -> real:
    z = a * b
    y = sin(z) * a
    return grad(y, z)

def newton(c: real) -> real:
    z = c
    for t in 6:
        y = z**3 - c
        z = z - y / grad(y, z)
    return z

def drawn(a: real) -> real:
    y = a**2 * (1 + 0 * uniform!([]))
    return grad(y, a)

export def slopes(x: f32[N]) -> f32[N]:
    y[i] = slope(x[i])
    return y

export def direct(x: f32[N]) -> f32[N]:
    y[i] = grad(f(x[i]), x[i])
    return y

export def summed(x: f32[N]) -> f32 = sum[i](grad(f(x[i]), x[i]))

export def lazy(x: f32[N], m: f32[N, M]) -> f32[N, M]:
    y[i, j] = slope(x[i]) if m[i, j] > 0 else 0
    return y

export def draws(x: f32[N]) -> f32[N]:
    y[i] = drawn!(x[i])
    return y

export def curves(x: f32[N]) -> f32[N]:
    y[i] = curve(x[i])
    return y

export def again(x: f32[N]) -> f32[N]:
    y[i] = slope(x[i])
    return grad(total(y), x)

export def direct_again(x: f32[N]) -> f32[N]:
    y[i] = grad(f(x[i]), x[i])
    return grad(total(y), x)

export def sides(x: f32[N], w: f32[M]) -> (f32[N, M], f32[N, M], f32[N, M]):
    a[i, j] = both(x[i], w[j])[0]
    b[i, j] = both(x[i], w[j])[1]
    z[i, j] = inner(x[i], w[j])
    return a, b, z

export def roots(x: f32[N]) -> f32[N]:
    y[i] = newton(abs(x[i]) + 1)
    return y

export def neighbours(x: f32[N], w: f32[N, M]) -> f32[N]:
    y[i] = grad(sum[j](w[i, j] * x[i]**2) * x[(i + 1) % N], x[i])
    return y

export def repeated(x: f32[N]) -> f32[N]:
    y[i] = grad(sum[k](x[k] * x[i]), x[i])
    return y

export def chained(x: f32[N]) -> f32[N]:
    h[i] = x[i]**2
    y[i] = grad(f(h[i]), x[i])
    return y

export def rows(x: f32[N, M]) -> f32[N, M]:
    y[i, j:M] = grad(sum[k](x[i, k]**3), x[i])[j]
    return y

export def jacobian(x: f32[N], w: f32[M, N]) -> (f32[M, N], f32[M, N]):
    y[m] = tanh(sum[i](w[m, i] * x[i]))
    J[m, n:N] = grad(y[m], x)[n]
    K[m, n] = grad(y[m], x[n])
    return J, K

export def descended(x: f32[N]) -> f32[N]:
    s = total(x**3)
    y[i] = x[i] - grad(s, x)[i]
    return y

module Net(D):
    param w: real[D] = normal(1.0)
    def forward(x: real[D]) -> real = tanh(sum(w * x))
    def by_input(x: real[D]) -> real[D]:
        y = tanh(sum(w * x))
        return grad(y, x)
    def by_weight(x: real[D]) -> real[D]:
        y = tanh(sum(w * x))
        return grad(y, w)

export def samples(net: Net(4), x: f32[B, 4]) -> (f32[B, 4], f32[B, 4], f32[B, 4], f32[B, 4], f32[B]):
    a[b, d:4] = net.by_input(x[b])[d]
    c[b, d:4] = grad(net(x[b]), x[b])[d]
    g[b, d:4] = net.by_weight(x[b])[d]
    h[b, d:4] = grad(net(x[b]), net.w)[d]
    n[b] = norm(grad(net(x[b]), net))
    return a, c, g, h, n
"""

RNG = np.random.default_rng(0)
X, W = RNG.standard_normal(3), RNG.standard_normal(5)
XW, WX = RNG.standard_normal((3, 5)), RNG.standard_normal((5, 3))


def run(name: str, **given: np.ndarray) -> list[np.ndarray]:
    graph = built(TEXT)[name].graph
    names = {"N": 3, "M": 5, "B": 3}
    dims = {d: names[d] for d in graph.dims}
    inputs = {i.name: np.int64(3) for i in graph.inputs if i.kind == "rng"}
    return compare(graph, dims, inputs | {k: v.astype(np.float32) for k, v in given.items()}, 1e-3)


def near(got: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-3)


def slope(x: np.ndarray) -> np.ndarray:
    return 3 * x**2 + np.cos(x)


@pytest.mark.parametrize("name", ["slopes", "direct"])
def test_one_for_each_element(name: str) -> None:
    near(run(name, x=X)[0], slope(X))
    assert not any(isinstance(n, Loop) for n in all_nodes(built(TEXT)[name].graph))


def test_in_reductions_branches_and_with_random_numbers() -> None:
    near(run("summed", x=X)[0], slope(X).sum())
    near(run("lazy", x=X, m=XW)[0], np.where(XW > 0, slope(X)[:, None], 0))
    near(run("draws", x=X)[0], 2 * X)


@pytest.mark.parametrize("name", ["curves", "again", "direct_again"])
def test_a_gradient_of_gradients(name: str) -> None:
    near(run(name, x=X)[0], 6 * X - np.sin(X))


def test_by_arguments_over_different_indices_and_by_a_value_between() -> None:
    a, b, z = run("sides", x=X, w=W)
    product = X[:, None] * W
    near(a, np.cos(product) * product + np.sin(product))
    near(b, np.cos(product) * X[:, None] ** 2)
    near(z, np.cos(product) * X[:, None])


def test_in_the_turns_of_a_loop() -> None:
    near(run("roots", x=X)[0], np.cbrt(abs(X) + 1))


def test_by_an_element_that_is_read_in_several_places() -> None:
    near(run("neighbours", x=X, w=XW)[0], 2 * XW.sum(1) * X * np.roll(X, -1))
    near(run("repeated", x=X)[0], X.sum() + X)
    near(run("chained", x=X)[0], slope(X**2) * 2 * X)
    near(run("rows", x=XW)[0], 3 * XW**2)


def test_jacobian() -> None:
    want = (1 - np.tanh(WX @ X) ** 2)[:, None] * WX
    for got in run("jacobian", x=X, w=WX):
        near(got, want)


def test_a_gradient_that_is_the_same_for_all_indices() -> None:
    near(run("descended", x=X)[0], X - 3 * X**2)


def test_of_each_sample_by_inputs_and_weights() -> None:
    x, w = RNG.standard_normal((3, 4)), RNG.standard_normal(4)
    a, c, g, h, n = run("samples", **{"x": x, "net.w": w})
    outer = (1 - np.tanh(x @ w) ** 2)[:, None]
    near(a, outer * w)
    near(c, outer * w)
    near(g, outer * x)
    near(h, outer * x)
    near(n, np.linalg.norm(outer * x, axis=1))
