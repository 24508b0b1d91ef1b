"""Strides: gradients in the data of strided windows and transposed windows, as sums by phases
without the terms that pass by; lanes a few elements apart."""

from __future__ import annotations

import numpy as np
import pytest

from nnc import compiler
from nnc.ir.expr import Op, walk
from nnc.ir.graph import Compute, nodes
from nnc.passes.fuse import fuse
from nnc.passes.schedule.space import space
from tests.endtoend import built, compare, sample

RNG = np.random.default_rng(5)


def agree(text, *sizes):
    """The program of one export as native code is what the interpreter says, at all these sizes."""
    (found,) = built(text).values()
    for dims in sizes:
        compare(found.graph, dims, sample(found.graph, dims, RNG))


CONV = """
from std.nn import Conv2d
export def f(conv: Conv2d(3, 5, {k}, stride={s}, pad={p}), x: f32[B, 3, H, W]) -> f32[B, 3, H, W]:
    return grad(sum(conv(x)**2), x)
"""


@pytest.mark.parametrize(
    "k,s,p", [(3, 2, 1), (3, 2, 0), (1, 2, 0), (4, 2, 1), (7, 2, 3), (5, 3, 2)]
)
def test_data_of_a_strided_convolution(k, s, p):
    agree(
        CONV.format(k=k, s=s, p=p),
        *({"B": b, "H": h, "W": w} for b, h, w in ((1, 7, 9), (2, 10, 33), (1, 8, 40), (2, k, k))),
    )


@pytest.mark.parametrize("h", [15, 16, 17, 19])
def test_numbers_for_sizes(h):
    text = CONV.format(k=3, s=2, p=1).replace("H, W", f"{h}, {h}")
    (found,) = built(text).values()
    compare(found.graph, {"B": 2}, sample(found.graph, {"B": 2}, RNG))


POOL = """
from std.nn import max_pool2d, relu
def sum_pool(x: real[B, C, H, W], k: dim, stride: dim, pad: dim) -> real[B, C, Y, X] where Y = (H + 2*pad - k)//stride + 1, X = (W + 2*pad - k)//stride + 1:
    y[b, c, i:Y, j:X] = sum[u:k, v:k](x[b, c, i*stride + u - pad, j*stride + v - pad else 0])
    return y

export def f(x: f32[B, 3, H, W]) -> f32[B, 3, H, W]:
    return grad(sum({f}(relu(x), {k}, stride={s}, pad={p})**2), x)
"""


@pytest.mark.parametrize("f", ["max_pool2d", "sum_pool"])
@pytest.mark.parametrize(
    "k,s,p", [(3, 2, 1), (3, 2, 0), (2, 2, 0), (5, 3, 1), (2, 3, 0), (2, 1, 0)]
)
def test_pools(f, k, s, p):
    agree(
        POOL.format(f=f, k=k, s=s, p=p),
        *({"B": b, "H": h, "W": w} for b, h, w in ((1, 7, 9), (2, 10, 40), (1, 5, 5))),
    )


def test_depthwise_and_dilated():
    text = """
export def f(w: f32[3, 3, 3], v: f32[5, 3, 3, 3], x: f32[B, 3, H, 24]) -> (f32[B, 3, H, 24], f32[3, 3, 3]):
    y[b, c, i:(H-1)//2+1, j:12] = sum[u, t](x[b, c, 2*i+u-1, 2*j+t-1 else 0] * w[c, u, t])
    z[b, o, i:(H-1)//4, j:5] = sum[c, u, t](x[b, c, 2*i+3*u-2, 2*j+2*t else 0] * v[o, c, u, t])
    loss = sum(y**2) + sum(z**2)
    return grad(loss, [x, w])
"""
    agree(text, *({"B": 2, "H": h} for h in (9, 12)))


def test_epilogue_over_phases():
    text = """
from std.nn import Conv2d, relu
export def f(a: Conv2d(2, 6, 3, pad=1), b: Conv2d(6, 4, 3, stride=2, pad=1), x: f32[B, 2, H, 17]) -> f32[B, 2, H, 17]:
    return grad(sum(b(relu(a(x)))**2), x)
"""
    agree(text, *({"B": 2, "H": h} for h in (7, 10)))


def test_a_maximum_and_its_place_in_one_pass():
    text = """
from std.nn import max_pool2d
export def f(x: f32[B, 3, H, W], g: f32[B, 3, H//{k}, W//{k}]) -> (f32[B, 3, H//{k}, W//{k}], f32[B, 3, H, W]):
    y[b, c, i:H//{k}, j:W//{k}] = max[u:{k}, v:{k}](x[b, c, i*{k} + u, j*{k} + v])
    return y, grad(sum(y * g), x)
"""
    for k, sizes in ((2, ((8, 34), (9, 9), (6, 24))), (3, ((9, 50), (7, 8))), (4, ((12, 68),))):
        (found,) = built(text.format(k=k)).values()
        for h, w in sizes:
            dims = {"B": 2, "H": h, "W": w}
            compare(found.graph, dims, sample(found.graph, dims, RNG))


@pytest.mark.parametrize("dtype", ["f32", "f64", "f16", "i32"])
@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_lanes_a_few_elements_apart(dtype, n):
    text = f"""
export def f(x: {dtype}[B, W, {n}], s: {dtype}[{n}]) -> ({dtype}[B, W, {n}], {dtype}[B, W]):
    y[b, w, c] = (x[b, w, c] + s[c]) * s[c]
    z[b, w] = x[b, w, 0] + y[b, w, {n} - 1]
    return y, z
"""
    (found,) = built(text).values()
    for w in (1, 8, 15, 16, 17, 35):
        dims = {"B": 2, "W": w}
        compare(found.graph, dims, sample(found.graph, dims, RNG), 3e-3 if dtype == "f16" else 2e-4)


@pytest.mark.parametrize("op", ["sum", "max", "argmax"])
def test_reductions_of_lanes_at_their_ends(op):
    text = f"""
export def f(x: f32[B, K, W]) -> {"i32" if op == "argmax" else "f32"}[B, W]:
    y[b, w] = {op}[k](x[b, k, w])
    return y
"""
    (found,) = built(text).values()
    for w in (1, 7, 16, 17, 48, 63, 64, 65, 80, 133):
        for k in (1, 3, 40):
            dims = {"B": 2, "K": k, "W": w}
            compare(found.graph, dims, sample(found.graph, dims, RNG))


def test_epilogues_over_digits():
    """The gradient of a flattened layer and its update are one kernel; storage is in place."""
    text = """
from std.nn import Linear
from std.optim import Adam
export def f(inout net: Linear(6*{n}*{n}, 5), inout opt: Adam(Linear(6*{n}*{n}, 5)), x: f32[B, 6, {n}, {n}]) -> f32:
    flat[b, (c, i, j)] = max(0, x[b, c, i, j])
    loss = sum(net(flat)**2)
    net := opt!(net, grad(loss, net), 0.01)
    return loss
"""
    for n in (3, 7):
        (found,) = built(text.format(n=n)).values()
        groups = fuse(compiler.optimise(found.graph)).groups
        assert sum(g.kind == "contraction" for g in groups) == 2
        assert all(len(g.nodes) > 1 for g in groups if g.kind == "contraction")
        inputs = sample(found.graph, {"B": 9}, RNG)
        for name in inputs:
            if name.startswith("opt.v"):
                inputs[name] = abs(inputs[name])
            if name == "opt.t":
                inputs[name] = np.int32(3)
        compare(found.graph, {"B": 9}, inputs)


TRANSPOSED = """
export def f(x: f32[B, 5, H, W], w: f32[5, 3, {k}, {k}], z: f32[B, 3, {s}*H, {s}*W], t: f32[B, 3, {s}*H, {s}*W]) -> (f32[B, 3, {s}*H, {s}*W], f32[B, 5, H, W], f32[5, 3, {k}, {k}], f32[B, 3, {s}*H, {s}*W], f32[B, 5, H, W], f32[5, 3, {k}, {k}]):
    y[b, o, i:{s}*H, j:{s}*W] = sum[c, u, v](x[b, c, (i + {p} - u)//{s}, (j + {p} - v)//{s} else 0] * w[c, o, u, v] if (i + {p} - u) % {s} == 0 and (j + {p} - v) % {s} == 0 else 0)
    dx, dw = grad(sum(y * t), [x, w])
    r[b, c, i:H, j:W] = sum[o, u, v](z[b, o, i*{s} + u - {p}, j*{s} + v - {p} else 0] * w[c, o, u, v])
    a = grad(sum(r * x), z)
    ax, aw = grad(sum(a * t), [x, w])
    return y, dx, dw, a, ax, aw
"""


@pytest.mark.parametrize("k,s,p", [(4, 2, 1), (3, 2, 1), (2, 2, 0), (5, 3, 1), (3, 3, 0)])
def test_transposed_windows(k, s, p):
    """By hand and as the adjoint of a strided window; the gradients are windows again."""
    (found,) = built(TRANSPOSED.format(k=k, s=s, p=p)).values()
    for b, h, w in ((1, 3, 5), (2, 5, 12), (1, 1, 1)):
        dims = {"B": b, "H": h, "W": w}
        out = compare(found.graph, dims, sample(found.graph, dims, RNG))
        for got, want in zip(out[:3], out[3:], strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_digits_that_count_down():
    """Each element of the weights is read by one phase: no sum over the others."""
    text = """
export def f(x: f32[B, 3, H, W], w: f32[3, 2, 4, 4], z: f32[B, 2, 2*H, 2*W]) -> (f32[3, 2, 4, 4], f32[B, 3, H, W]):
    y[b, o, (i:H, p:2), (j:W, r:2)] = sum[c, u:2, v:2](x[b, c, i + p - u, j + r - v else 0] * w[c, o, 1 - p + 2*u, 1 - r + 2*v])
    return grad(sum(y * y * z), [w, x])
"""
    agree(text, {"B": 3, "H": 7, "W": 9}, {"B": 1, "H": 1, "W": 1})
    (found,) = built(text).values()
    dw = compiler.optimise(found.graph).results[0]
    assert isinstance(dw, Compute) and len(dw.raxes) == 3


def test_products_of_elements_that_were_pooled():
    """Gradients of a window of one place before a pool are contractions: results that are the same
    for all elements pooled, terms of which one factor is."""
    text = """
from std.nn import avg_pool2d, relu
def net(x: f32[B, C, H, W], w: f32[6, C]) -> f32[B, 6, H//2, W//2] where H >= 2, W >= 2:
    y[b, o, i, j] = sum[c](relu(x[b, c, i, j]) * w[o, c])
    return avg_pool2d(y, 2)
export def f(x: f32[B, C, H, W], w: f32[6, C], z: f32[B, C, 8, 18]) -> (f32[B, C, H, W], f32[6, C], f32[B, C, 8, 18], f32[6, C]) where H >= 2, W >= 2:
    a, b = net(x, w), net(z, w)
    return grad(sum(a**2), x), grad(sum(a**2), w), grad(sum(b**2), z), grad(sum(b**2), w)
"""
    agree(text, {"B": 3, "C": 5, "H": 8, "W": 18}, {"B": 1, "C": 37, "H": 7, "W": 9})
    (found,) = built(text).values()
    kinds = [g.kind for g in fuse(compiler.optimise(found.graph)).groups]
    assert kinds.count("contraction") >= 4


def test_results_that_are_repeated():
    text = """
export def f(x: f32[M, K], w: f32[N, K]) -> f32[M, 3, N, 5]:
    y[m, a:3, n, b:5] = sum[k](x[m, k] * w[n, k])
    return y
"""
    agree(text, {"M": 7, "K": 40, "N": 9}, {"M": 33, "K": 5, "N": 40})


def test_terms_that_pass_by_are_not_computed():
    text = TRANSPOSED.format(k=4, s=2, p=1)
    (found,) = built(text).values()
    graph = compiler.optimise(found.graph)
    for y in graph.results[:3]:
        assert isinstance(y, Compute) and y.op == "sum"
        assert "%" not in repr(
            [
                c
                for c in walk(space(y, graph.facts).body)
                if isinstance(c, Op) and c.fn in ("eq", "le")
            ]
        )


@pytest.mark.parametrize(
    "condition",
    [
        "(i + 2*u) % 3 == 0",
        "u % 2 == 0",
        "(3*i - u) % 4 == 1",
        "(i + j + u) % 2 == 0",
        "u % 3 == i % 3",
    ],
)
def test_every_so_manieth_term(condition):
    text = f"""
export def f(x: f32[N, M, 7], w: f32[M]) -> (f32[N, M], f32[N, M, 7]):
    y[i, j] = sum[u](x[i, j, u] * w[j] if {condition} else 0)
    return y, grad(sum(y**2), x)
"""
    agree(text, *({"N": n, "M": m} for n, m in ((1, 1), (5, 8), (17, 33))))


def test_values_with_zeros_between():
    text = """
export def f(x: f32[B, N], w: f32[3]) -> (f32[B, 2*N], f32[B, N], f32[3]):
    z[b, i:2*N] = x[b, i//2] if i % 2 == 0 else 0
    y[b, i:2*N] = sum[u](z[b, i + u - 1 else 0] * w[u])
    dx, dw = grad(sum(y**2), [x, w])
    return y, dx, dw
"""
    agree(text, *({"B": 2, "N": n} for n in (1, 4, 19)))


def test_windows_over_values_that_are_repeated():
    text = """
export def f(x: f32[B, N], w: f32[3]) -> (f32[B, 2*N], f32[B, N]):
    z[b, i:2*N] = 2 * x[b, i//2]
    y[b, i:2*N] = sum[u](z[b, i + u - 1 else 0] * w[u])
    return y, grad(sum(y**2), x)
"""
    agree(text, *({"B": 2, "N": n} for n in (1, 4, 19)))


def test_windows_over_quotients_are_stored():
    text = """
export def f(x: f32[B, 3, N], w: f32[4, 3, 3]) -> f32[B, 4, 3*N]:
    z[b, c, i:3*N] = max(0, x[b, c, i//3])
    y[b, o, i:3*N] = sum[c, u](z[b, c, i + u - 1 else 0] * w[o, c, u])
    return y
"""
    (found,) = built(text).values()
    assert len(fuse(compiler.optimise(found.graph)).groups) == 2
    compare(found.graph, {"B": 2, "N": 7}, sample(found.graph, {"B": 2, "N": 7}, RNG))


def test_a_window_longer_than_its_result_goes_by_phases():
    """9 places at stride 2 for 6 results: 5 terms for each element, not 6."""
    text = CONV.format(k=9, s=2, p=0).replace("H, W", "20, 21")
    (found,) = built(text).values()
    compare(found.graph, {"B": 2}, sample(found.graph, {"B": 2}, RNG))
    sums = [n for n in nodes(compiler.optimise(found.graph)) if isinstance(n, Compute) and n.raxes]
    assert [a.extent.const for a in sums[-1].raxes[1:]] == [5, 5]
