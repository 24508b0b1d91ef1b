"""Elements that lanes take in turn are read and written as whole vectors."""

from __future__ import annotations

import numpy as np
import pytest

from tests.endtoend import built, compare, sample

RNG = np.random.default_rng(11)


def check(text: str, sizes: list[dict[str, int]]) -> None:
    found = built(text)["f"]
    for dims in sizes:
        compare(found.graph, dims, sample(found.graph, dims, RNG))


WIDTHS = [{"H": h, "W": w} for h, w in ((3, 1), (2, 7), (1, 16), (2, 33), (3, 64), (1, 130))]


@pytest.mark.parametrize("q", [2, 3, 4])
@pytest.mark.parametrize("d", ["f32", "f64", "i32"])
def test_upsample(d, q):
    text = f"""
export def f(x: {d}[H, W]) -> {d}[H, {q}*W]:
    y[i, (j, u:{q})] = x[i, j] if u == 0 else x[i, j] * 2 + x[i, W - 1 - j]
    return y
"""
    check(text, WIDTHS)


@pytest.mark.parametrize("q", [2, 3, 4])
def test_sorted_reads(q):
    text = f"""
export def f(x: f32[H, {q}*W]) -> f32[H, W]:
    y[i, j] = max[u:{q}](x[i, (j, u)]) + x[i, (j:W, 0:{q})]
    return y
"""
    check(text, WIDTHS)


@pytest.mark.parametrize("q", [2, 3])
def test_in_place(q):
    text = f"""
export def f(inout x: f32[H, {q}*W], z: f32[H, W]) -> f32:
    x[i, (j, u:{q})] := x[i, (j:W, u:{q})] * z[i, j] + u
    return sum(x)
"""
    check(text, WIDTHS)


def test_pairs_turned():
    text = """
export def f(x: f32[H, 2*W], c: f32[W], s: f32[W]) -> f32[H, 2*W]:
    y[i, (j, u:2)] = x[i, (j:W, 0:2)] * c[j] - x[i, (j:W, 1:2)] * s[j] if u == 0 else x[i, (j:W, 0:2)] * s[j] + x[i, (j:W, 1:2)] * c[j]
    return y
"""
    check(text, WIDTHS)


@pytest.mark.parametrize("h", [7, 14, 15, 16, 30])
def test_pool_and_gradient(h):
    text = f"""
from std.nn import max_pool2d, avg_pool2d
export def f(x: f32[B, {h}, {h}, {h}]) -> (f32[B, {h}, {h // 2}, {h // 2}], f32[B, {h}, {h}, {h}]):
    y = max_pool2d(x, 2)
    return y, grad(sum(y**2) + sum(avg_pool2d(x, 2)**2), x)
"""
    check(text, [{"B": 1}, {"B": 2}])
