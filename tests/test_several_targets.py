"""Statements with several targets: all values are computed before any name has a new one."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.endtoend import built, compare, sample

TEXT = """
def both(x: real, y: real) -> (real, real):
    z = x * y
    return z + x, z - y

export def swapped(x: f32[N], y: f32[N]) -> (f32[N], f32[N]):
    x[i], y[i] = y[i], 2 * x[i]
    return x, y

export def carried(x: f32[N], y: f32[N], n: dim) -> (f32[N], f32[N]):
    for t in n:
        x[i], y[i] = y[i] + 1, x[i]
    return x, y

export def parts(x: f32[N], y: f32[M]) -> (f32[N, M], f32[N, M], f32[N]):
    a[i, j], b[i, j] = both(x[i], y[j])
    return a, b, grad(total(a * b), x)
"""


def run(name: str, dims: dict[str, int]) -> tuple[dict[str, Any], list[Any]]:
    graph = built(TEXT)[name].graph
    given = sample(graph, dims, np.random.default_rng(0))
    return given, compare(graph, dims, given)


def test_elements_change_places() -> None:
    given, (x, y) = run("swapped", {"N": 5})
    np.testing.assert_array_equal(x, given["y"])
    np.testing.assert_array_equal(y, 2 * given["x"])


def test_in_a_loop() -> None:
    given, (x, y) = run("carried", {"N": 3, "n": 3})
    np.testing.assert_allclose(x, given["y"] + 2, rtol=1e-6)
    np.testing.assert_allclose(y, given["x"] + 1, rtol=1e-6)


def test_parts_of_a_tuple_for_each_element() -> None:
    given, (a, b, g) = run("parts", {"N": 3, "M": 4})
    x, y = given["x"][:, None].astype(np.float64), given["y"].astype(np.float64)
    np.testing.assert_allclose(a, x * y + x, rtol=1e-5)
    np.testing.assert_allclose(b, x * y - y, rtol=1e-5, atol=1e-6)
    slope = (y + 1) * (x * y - y) + (x * y + x) * y
    np.testing.assert_allclose(g, slope.sum(1), rtol=1e-4, atol=1e-4)
