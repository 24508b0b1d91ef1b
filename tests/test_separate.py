"""Extreme values over windows, found along one axis after the other; short rows in registers."""

from __future__ import annotations

import numpy as np
import pytest

from nnc.compiler import optimise
from nnc.passes.fuse import fuse
from tests.endtoend import built, compare, sample

RNG = np.random.default_rng(7)

POOL = """
export def f(x: {d}[B, H, W]) -> {d}[B, (H + {p2} - {k})//{s} + 1, (W + {p2} - {k})//{s} + 1]:
    y[b, i:(H + {p2} - {k})//{s} + 1, j:(W + {p2} - {k})//{s} + 1] = {op}[u:{k}, v:{k}](x[b, i*{s} + u - {p}, j*{s} + v - {p} else {e}])
    return y
"""
KINDS = [(3, 2, 1), (3, 1, 1), (5, 1, 2), (3, 2, 0), (4, 3, 1)]


def pool(op: str, k: int, s: int, p: int, d: str = "f32"):
    other = {"max": "-inf", "min": "inf"}[op]
    return built(POOL.format(op=op, k=k, s=s, p=p, p2=2 * p, d=d, e=other))["f"]


@pytest.mark.parametrize("k,s,p", KINDS)
@pytest.mark.parametrize("op,d", [("max", "f32"), ("min", "f64")])
def test_windows(op, d, k, s, p):
    found = pool(op, k, s, p, d)
    for h, w in ((7, 7), (14, 14), (9, 31), (33, 70)):
        dims = {"B": 2, "H": h, "W": w}
        args = sample(found.graph, dims, RNG)
        compare(found.graph, dims, args)
        x = args["x"].reshape(-1)
        x[RNG.integers(0, x.size, 9)] = [np.nan, -np.inf, np.inf, np.nan, 0.0, -0.0, 1, 1, np.nan]
        compare(found.graph, dims, args)


@pytest.mark.parametrize("w", [5, 7, 14, 16, 17, 28, 32, 33, 56, 64, 65])
def test_rows_of_known_length(w):
    text = POOL.format(op="max", k=3, s=2, p=1, p2=2, d="f32", e="-inf")
    found = built(text.replace("W", str(w)))["f"]
    dims = {"B": 3, "H": w}
    compare(found.graph, dims, sample(found.graph, dims, RNG))


def two(text: str) -> bool:
    graph = fuse(optimise(built(text)["f"].graph)).graph
    return sum(getattr(n, "op", "") in ("max", "min") for n in graph.order) == 2


def test_where_it_pays():
    def text(**with_: object) -> str:
        known = {"op": "max", "k": 3, "s": 2, "p": 1, "d": "f32", "e": "-inf"}
        made = {**known, **with_}
        return POOL.format(**made, p2=2 * int(str(made["p"])))

    assert two(text())
    assert not two(text(k=2, p=0))  # each element once: nothing to share
    assert not two(text(e="0"))  # zeros around the map are elements like others


SOFTMAX = """
export def f(x: f32[B, {n}]) -> f32[B, {n}]:
    return softmax(x, over=1)
"""


@pytest.mark.parametrize("n", [1, 2, 7, 10, 16, 31, 32, 48, 64])
def test_short_rows(n):
    found = built(SOFTMAX.format(n=n))["f"]
    for b in (1, 5, 40):
        compare(found.graph, {"B": b}, sample(found.graph, {"B": b}, RNG))


SHIFTED = """
export def f(x: f32[B, {n}]) -> f32[B, {n}]:
    t[b, i] = exp(x[b, i])
    s[b] = sum[i](t[b, i])
    y[b, i:{n}] = t[b, {n} - 1 - i] / s[b] + (t[b, i + 3 else 1] if i % 2 == 0 else t[b, 0])
    return y
"""


@pytest.mark.parametrize("n", [4, 9, 16, 20, 32, 33, 60])
def test_rows_read_elsewhere(n):
    found = built(SHIFTED.format(n=n))["f"]
    compare(found.graph, {"B": 9}, sample(found.graph, {"B": 9}, RNG))
