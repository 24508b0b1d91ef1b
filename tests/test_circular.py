"""Reads round a circle, `x[(i + k - 1) % N]`, and their gradients."""

from __future__ import annotations

import numpy as np
import pytest

from nnc import compiler
from nnc.ir.expr import Idx, walk
from nnc.ir.statements import exprs_in
from nnc.lang.dims import Dim
from tests.endtoend import built, compare, sample

RNG = np.random.default_rng(8)


def remainders(graph) -> int:
    """How many indices of the kernels are remainders."""
    program = compiler.schedule(compiler.optimise(graph))
    exprs = (e for k in program.kernels for e in walk(*exprs_in(k.body)))
    return sum(isinstance(e, Idx) and any(f.kind == "mod" for f in e.dim.functions) for e in exprs)


SHIFTED = """
export def f(x: f32[T]) -> (f32[T], f32[T]):
    y[i:T] = x[{index}] ** 2
    return y, grad(sum(y**2), x)
"""


@pytest.mark.parametrize("index", ["(i + T - 1) % T", "(i + 1) % T", "(T - 1 - i) % T"])
def test_shifts(index):
    graph = built(SHIFTED.format(index=index))["f"].graph
    assert remainders(graph) == 0
    for t in (1, 2, 3, 16, 17, 1025):
        compare(graph, {"T": t}, sample(graph, {"T": t}, RNG))


def test_far_shifts_keep_the_remainder():
    graph = built(SHIFTED.format(index="(i + 5) % T"))["f"].graph
    for t in (1, 2, 4, 5, 6, 37):
        compare(graph, {"T": t}, sample(graph, {"T": t}, RNG))


@pytest.mark.parametrize("k,p", [(3, 1), (3, 0), (2, 1), (1, 0)])
def test_sums_round_a_circle(k, p):
    text = f"""
export def f(x: f32[T], w: f32[{k}]) -> (f32[T], f32[T], f32[{k}]):
    y[i:T] = sum[k](x[(i + k + T - {p}) % T] * w[k])
    gx, gw = grad(sum(y**2), [x, w])
    return y, gx, gw
"""
    graph = built(text)["f"].graph
    for t in (2, 3, 5, 64, 97):
        compare(graph, {"T": t}, sample(graph, {"T": t}, RNG))


def test_windows_round_a_torus():
    text = """
export def f(x: f32[B, 3, H, W], w: f32[5, 3, 3, 3]) -> (f32[B, 5, H, W], f32[B, 3, H, W], f32[5, 3, 3, 3]):
    y[b, o, i:H, j:W] = sum[c, u, v](x[b, c, (i + u + H - 1) % H, (j + v + W - 1) % W] * w[o, c, u, v])
    gx, gw = grad(sum(y**2), [x, w])
    return y, gx, gw
"""
    graph = built(text)["f"].graph
    assert remainders(graph) == 0
    for h, w in ((2, 3), (3, 2), (7, 17), (5, 33)):
        dims = {"B": 2, "H": h, "W": w}
        compare(graph, dims, sample(graph, dims, RNG))


def test_sums_read_a_longer_copy():
    """Backwards, of one plane of many, of a size that may be 0, all the way round."""
    text = """
export def f(x: f32[2, H, W], k: f32[5, 3], z: f32[H - 3], n: i32[H]) -> (f32[H, W], f32[H], i32[H])
        where H >= 3, W >= 2:
    y[i:H, j:W] = sum[a, b](x[1, (i - a + 2) % H, (j + b - 1) % W] * k[a, b]) - x[0, i, j]
    s[i:H] = sum[a:4](z[(i + a) % (H - 3)]) if i + 4 < H - 3 else 0
    r[i:H] = sum[a:H](n[(i + a) % H] * n[a])
    return y, s, r
"""
    graph = built(text)["f"].graph
    for h, w in ((3, 3), (4, 2), (9, 37)):
        compare(graph, {"H": h, "W": w}, sample(graph, {"H": h, "W": w}, RNG))


def test_reads_held_at_the_ends():
    """By themselves (a bilinear map, ends in the middle) and in sums, beside reads that go round."""
    text = """
export def f(x: f32[H, W], k: f32[3, 3]) -> (f32[H, 2*W], f32[H, W], f32[H, W], f32[H, W], f32[H, W])
        where H >= 2, W >= 5:
    p[i, j:2*W] = 0.75 * x[i, j//2] + 0.25 * x[i, min(max(j//2 + 2*(j % 2) - 1, 0), W - 1)]
    m[i, j] = x[i, min(max(j - 3, 2), W - 2)] + x[i, max(j - 1, W//2)] + x[max(i - 1, 0), j]
    e[i:H, j:W] = sum[a, b](x[min(max(i + a - 1, 0), H - 1), max(min(j + b - 1, W - 1), 0)] * k[a, b])
    r[i:H, j:W] = sum[a, b](x[(i + a - 1) % H, (j + b - 1) % W] * k[a, b])
    return p, m, e, r, grad(sum(e**2 + m**2), x)
"""
    graph = built(text)["f"].graph
    for h, w in ((2, 5), (3, 16), (7, 37)):
        compare(graph, {"H": h, "W": w}, sample(graph, {"H": h, "W": w}, RNG))


def test_a_neighbourhood():
    text = """
export def f(x: f32[H, W]) -> (f32[H, W], f32[H, W]):
    y[i:H, j:W] = x[(i + 1) % H, j] * x[(i + H - 1) % H, j] + x[i, (j + 1) % W] - x[i, (j + W - 1) % W]
    return y, grad(sum(y**2), x)
"""
    graph = built(text)["f"].graph
    for h, w in ((1, 1), (1, 5), (4, 1), (6, 33)):
        compare(graph, {"H": h, "W": w}, sample(graph, {"H": h, "W": w}, RNG))


def test_a_remainder_of_a_remainder():
    i, t = Dim.of("$i"), Dim.of("T")
    assert ((i + 1) % t - 1) % t == i % t
    assert (2 * ((i + 1) % t)) % t == (2 * i + 2) % t
    assert ((i + 1) % 4 - 1) % t != i % t
