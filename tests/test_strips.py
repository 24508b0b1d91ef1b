"""Lines of windows that share strips of memory: every layout gives the bits of packed panels."""

from __future__ import annotations

from textwrap import dedent

import numpy as np
import pytest

from nnc.codegen import strips
from tests.endtoend import built, compare, run_native, sample

PLANE = """
export def f(x: {t}[B, C, H, W], w: {t}[O, C, {k}, {k}]) -> {t}[B, O, Y, X]
        where Y = (H + 2*{p} - {d}*({k} - 1) - 1)//{s} + 1, X = (W + 2*{p} - {d}*({k} - 1) - 1)//{s} + 1:
    y[b, o, i:Y, j:X] = sum[c, u, v](
        x[b, c, i*{s} + u*{d} - {p}, j*{s} + v*{d} - {p} else {other}] * w[o, c, u, v])
    return y
"""
LINE = """
export def f(x: f32[B, C, W], w: f32[O, C, 5]) -> f32[B, O, W - 4] where W > 4:
    y[b, o, i:W-4] = sum[c, u](x[b, c, i + u] * w[o, c, u])
    return y
"""
ROW = """
export def f(x: f32[W], w: f32[O, 9]) -> f32[O, W - 8] where W > 8:
    y[o, i:W-8] = sum[u](x[i + u] * w[o, u])
    return y
"""
SPACE = """
export def f(x: f32[B, C, D, H, W], w: f32[O, C, 3, 3, 3]) -> f32[B, O, D, H, W]:
    y[b, o, h:D, i:H, j:W] = sum[c, s, u, v](
        relu(x[b, c, h + s - 1, i + u - 1, j + v - 1 else 0.5] + 1) * w[o, c, s, u, v])
    return y
"""
BACK = """
export def f(x: f32[B, C, H, W], w: f32[O, C, 3, 3], g: f32[B, O, H, W]) -> f32[B, C, H, W]:
    y[b, o, i:H, j:W] = sum[c, u, v](x[b, c, i + u - 1, j + v - 1 else 0] * w[o, c, u, v])
    return grad(sum(y * g), x)
"""


def plane(t: str = "f32", k: int = 3, s: int = 1, p: int = 1, d: int = 1, other: str = "0") -> str:
    return PLANE.format(t=t, k=k, s=s, p=p, d=d, other=other)


CASES = {
    "one picture": (plane(), {"B": 1, "C": 33, "H": 23, "W": 29, "O": 17}),
    "panels joined": (plane(), {"B": 5, "C": 50, "H": 9, "W": 11, "O": 9}),
    "pictures of 17": (plane(), {"B": 9, "C": 8, "H": 17, "W": 1, "O": 30}),
    "wide tiles": (plane(k=5, p=2), {"B": 2, "C": 11, "H": 19, "W": 31, "O": 3}),
    "half tiles": (plane(), {"B": 3, "C": 44, "H": 17, "W": 21, "O": 6}),
    "padded with a number": (plane(other="1.5"), {"B": 2, "C": 20, "H": 20, "W": 20, "O": 14}),
    "tiles that copy": (plane(), {"B": 3, "C": 60, "H": 17, "W": 19, "O": 33}),
    "tiles that copy, f64": (plane(t="f64"), {"B": 1, "C": 40, "H": 13, "W": 17, "O": 25}),
    "one channel": (ROW, {"W": 700, "O": 40}),
    "f64": (plane(t="f64"), {"B": 3, "C": 30, "H": 13, "W": 17, "O": 15}),
    "dilated": (plane(d=2, p=2), {"B": 2, "C": 20, "H": 24, "W": 19, "O": 15}),
    "phases": (plane(k=7, s=2, p=3), {"B": 2, "C": 9, "H": 33, "W": 35, "O": 15}),
    "phases, dilated": (plane(k=7, s=3, p=3, d=2), {"B": 1, "C": 7, "H": 50, "W": 61, "O": 15}),
    "blocks of columns": (plane(), {"B": 1, "C": 6, "H": 41, "W": 47, "O": 15}),
    "sequences": (LINE, {"B": 7, "C": 90, "W": 61, "O": 21}),
    "three dimensions": (SPACE, {"B": 2, "C": 17, "D": 9, "H": 7, "W": 6, "O": 19}),
    "backwards": (BACK, {"B": 2, "C": 17, "H": 15, "W": 22, "O": 45}),
}


@pytest.mark.parametrize("name", CASES)
def test_strips(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, dims = CASES[name]
    graph = built("from std.nn import relu\n" + dedent(text))["f"].graph
    inputs = sample(graph, dims, np.random.default_rng(0))
    monkeypatch.setattr(strips, "_WORTH", ("9", "1"))
    compare(graph, dims, inputs)
    in_strips, _ = run_native(graph, dims, inputs)
    monkeypatch.setattr(strips, "_WORTH", ("0", "1"))
    packed, _ = run_native(graph, dims, inputs)
    assert in_strips[0].tobytes() == packed[0].tobytes()
