"""Contractions over windows, packed by tables of lines and lanes, at ragged sizes."""

from __future__ import annotations

from textwrap import dedent

import numpy as np
import pytest

from nnc.ir.graph import Graph
from nnc.passes.fuse import fuse
from tests.endtoend import built, compare, sample

CONV = """
def conv(x: {t}[B, C, H, W], w: {t}[O, C, K, L]) -> {t}[B, O, Y, X]
        where Y = (H + 2*{p} - {d}*(K - 1) - 1)//{s} + 1, X = (W + 2*{p} - {d}*(L - 1) - 1)//{s} + 1:
    y[b, o, i:Y, j:X] = sum[c, u, v](
        x[b, c, i*{s} + u*{d} - {p}, j*{s} + v*{d} - {p} else {other}] * w[o, c, u, v])
    return y

export def forward(x: {t}[B, C, H, W], w: {t}[O, C, {k}, {k}]) -> {t}[B, O, Y, X]
        where Y = (H + 2*{p} - {d}*({k} - 1) - 1)//{s} + 1, X = (W + 2*{p} - {d}*({k} - 1) - 1)//{s} + 1:
    return conv(x, w)

export def gradients(x: {t}[B, C, H, W], w: {t}[O, C, {k}, {k}]) -> ({t}[B, C, H, W], {t}[O, C, {k}, {k}]):
    loss = sum(conv(x, w)**2)
    return grad(loss, x), grad(loss, w)
"""
KINDS = {
    "same": {"k": 3, "s": 1, "p": 1, "d": 1},
    "valid": {"k": 3, "s": 1, "p": 0, "d": 1},
    "strided": {"k": 3, "s": 2, "p": 1, "d": 1},
    "stem": {"k": 7, "s": 2, "p": 3, "d": 1},
    "dilated": {"k": 3, "s": 1, "p": 2, "d": 2},
    "wide": {"k": 5, "s": 1, "p": 4, "d": 1},
}
SIZES = [
    {"B": 1, "C": 3, "H": 7, "W": 7, "O": 5},
    {"B": 2, "C": 9, "H": 17, "W": 33, "O": 16},
    {"B": 3, "C": 17, "H": 9, "W": 16, "O": 15},
    {"B": 1, "C": 64, "H": 8, "W": 31, "O": 29},
]


def exports(kind: str, dtype: str = "f32", other: str = "0") -> dict[str, Graph]:
    text = CONV.format(t=dtype, other=other, **KINDS[kind])
    return {name: b.graph for name, b in built(text).items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", range(len(SIZES)))
def test_convolutions(kind: str, size: int) -> None:
    dims = dict(SIZES[size])
    graph = exports(kind)["forward"]
    compare(graph, dims, sample(graph, dims, np.random.default_rng(size)))


@pytest.mark.parametrize("kind", KINDS)
def test_their_gradients(kind: str) -> None:
    dims = {"B": 2, "C": 7, "H": 13, "W": 18, "O": 19}
    graph = exports(kind)["gradients"]
    compare(graph, dims, sample(graph, dims, np.random.default_rng(7)))


@pytest.mark.parametrize("other", ["1.5", "-0.0", "inf"])
def test_what_stands_outside(other: str) -> None:
    dims = {"B": 1, "C": 20, "H": 9, "W": 19, "O": 14}
    graph = exports("same", other=other)["forward"]
    compare(graph, dims, sample(graph, dims, np.random.default_rng(3)))


def test_double_precision() -> None:
    dims = {"B": 1, "C": 20, "H": 9, "W": 19, "O": 14}
    for graph in exports("same", "f64").values():
        compare(graph, dims, sample(graph, dims, np.random.default_rng(3)), 1e-11)


def test_a_window_far_outside() -> None:
    """Shares beyond 32 bits: nothing is read, and nothing wraps around."""
    text = """
    export def f(x: f32[C, N], w: f32[C, U]) -> f32[40]:
        y[i:40] = sum[c, u](x[c, i*1073741824*3 + u*2147483648 else 0] * w[c, u])
        return y
    """
    graph = built(dedent(text))["f"].graph
    dims = {"C": 80, "N": 70, "U": 90}
    compare(graph, dims, sample(graph, dims, np.random.default_rng(3)))


def test_a_function_of_windows() -> None:
    """Element-wise work is done where the operand is packed."""
    text = """
    export def f(x: f32[C, N], z: f32[C, N], w: f32[O, C, 3]) -> f32[O, N]:
        y[o, i:N] = sum[c, u]((exp(x[c, i + u - 1 else 0]) * z[c, i + u - 1 else 2]) * w[o, c, u])
        return y
    """
    graph = built(dedent(text))["f"].graph
    assert fuse(graph)
    for n in (1, 15, 33, 100):
        dims = {"C": 40, "N": n, "O": 30}
        compare(graph, dims, sample(graph, dims, np.random.default_rng(n)))


def test_groups_and_transposed_windows() -> None:
    text = """
    export def up(x: f32[B, C, H, W], w: f32[C, O, 2, 2]) -> f32[B, O, 2*H, 2*W]:
        y[b, o, (i, u:2), (j, v:2)] = sum[c](x[b, c, i, j] * w[c, o, u, v])
        return y
    export def grouped(x: f32[B, 2*G, H, W], w: f32[2*O, G, 3, 3]) -> f32[B, 2*O, H, W]:
        y[b, (g:2, o:O), i:H, j:W] = sum[c, u, v](
            x[b, g*G + c, i + u - 1, j + v - 1 else 0] * w[g*O + o, c, u, v])
        return y
    """
    found = built(dedent(text))
    for name, dims in (
        ("up", {"B": 2, "C": 30, "H": 7, "W": 9, "O": 16}),
        ("grouped", {"B": 2, "G": 12, "H": 7, "W": 19, "O": 17}),
    ):
        graph = found[name].graph
        compare(graph, dims, sample(graph, dims, np.random.default_rng(1)))


THIN = """
export def depthwise(x: {t}[B, C, H, W], w: {t}[C, {k}, {k}]) -> {t}[B, C, Y, X]
        where Y = (H + 2*{p} - {d}*({k} - 1) - 1)//{s} + 1, X = (W + 2*{p} - {d}*({k} - 1) - 1)//{s} + 1:
    y[b, c, i:Y, j:X] = sum[u, v](
        x[b, c, i*{s} + u*{d} - {p}, j*{s} + v*{d} - {p} else {other}] * w[c, u, v])
    return max(y, 0)

export def few(x: {t}[B, 3*G, H, W], w: {t}[2*G, 3, {k}, {k}]) -> {t}[B, 2*G, Y, X]
        where Y = (H + 2*{p} - {d}*({k} - 1) - 1)//{s} + 1, X = (W + 2*{p} - {d}*({k} - 1) - 1)//{s} + 1:
    y[b, (g:G, o:2), i:Y, j:X] = sum[c:3, u, v](
        x[b, g*3 + c, i*{s} + u*{d} - {p}, j*{s} + v*{d} - {p} else {other}] * w[g*2 + o, c, u, v])
    return y
"""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(2, 5, 7, 7), (1, 37, 9, 18), (3, 2, 20, 33)])
def test_few_rows(kind: str, size: tuple[int, ...]) -> None:
    """One filter, or two, for each channel."""
    text = THIN.format(t="f32", other="0", **KINDS[kind])
    b, c, h, w = size
    for name, graph in ((n, x.graph) for n, x in built(text).items()):
        dims = {"B": b, "H": h, "W": w} | ({"C": c} if name == "depthwise" else {"G": c})
        compare(graph, dims, sample(graph, dims, np.random.default_rng(c)))


@pytest.mark.parametrize("other", ["1.5", "inf"])
def test_few_rows_of_doubles(other: str) -> None:
    for graph in (
        x.graph for x in built(THIN.format(t="f64", other=other, **KINDS["stem"])).values()
    ):
        dims = {"B": 2, "C": 6, "G": 3, "H": 11, "W": 10}
        dims = {n: dims[n] for n in graph.dims}
        compare(graph, dims, sample(graph, dims, np.random.default_rng(5)), 1e-11)


def test_gradients_of_few_rows() -> None:
    text = (
        THIN.format(t="f32", other="0", **KINDS["strided"])
        + """
export def gradients(x: f32[B, C, H, W], w: f32[C, 3, 3]) -> (f32[B, C, H, W], f32[C, 3, 3]):
    loss = sum(depthwise(x, w)**2)
    return grad(loss, x), grad(loss, w)
"""
    )
    graph = built(text)["gradients"].graph
    dims = {"B": 2, "C": 7, "H": 13, "W": 18}
    compare(graph, dims, sample(graph, dims, np.random.default_rng(7)))


def test_one_row_by_phases() -> None:
    """Whose lanes inside depend on the phase; one row of many products; results apart."""
    text = """
    export def up(x: f32[B, 40, H, W], w: f32[40, 4, 4]) -> f32[B, 1, 2*H, 2*W]:
        y[b, o:1, (i:H, p:2), (j:W, r:2)] = sum[c, u:2, v:2](
            x[b, c, i + p - u, j + r - v else 0] * w[c, 1 - p + 2*u, 1 - r + 2*v])
        return max(y, 0)
    export def few(x: f32[B, 7, H, W], w: f32[7, 3, 4, 4]) -> f32[B, 3, 2*H, 2*W]:
        y[b, o, (i:H, p:2), (j:W, r:2)] = sum[c, u:2, v:2](
            x[b, c, i + p - u, j + r - v else 0] * w[c, o, 1 - p + 2*u, 1 - r + 2*v])
        return y
    export def one(x: f64[B, 12, H, W], w: f64[12, 3, 3]) -> f64[B, H, W]:
        y[b, i:H, j:W] = sum[c, u, v](x[b, c, i + 2*u - 2, j + 2*v - 2 else 1] * w[c, u, v])
        return tanh(y)
    export def last(x: f32[B, 12, H, W], w: f32[12, 5, 3]) -> f32[B, H, W, 12]:
        y[b, i:H, j:W, c] = sum[u, v](x[b, c, i + u - 1, j + v - 1 else 0] * w[c, u, v])
        return y
    """
    for b in built(dedent(text)).values():
        for dims in ({"B": 3, "H": 7, "W": 7}, {"B": 2, "H": 3, "W": 21}, {"B": 1, "H": 1, "W": 1}):
            compare(b.graph, dims, sample(b.graph, dims, np.random.default_rng(3)))


def test_filters_of_sequences() -> None:
    text = """
    export def blur(x: f32[N], w: f32[5]) -> f32[N]:
        y[i:N] = sum[u](x[i + u - 2 else 0] * w[u])
        return y
    export def causal(x: f32[B, D, T], w: f32[D, 4], s: f32[B, T]) -> f32[B, D, T]:
        y[b, d, t:T] = sum[u](x[b, d, t + u - 3 else 0] * s[b, t + u - 3 else 0] * w[d, u])
        return exp(y)
    export def last(x: f32[B, T, D], w: f32[4, D]) -> f32[B, T, D]:
        y[b, t:T, d] = sum[u](x[b, t + u - 3, d else 0] * w[u, d])
        return y
    """
    for name, b in built(dedent(text)).items():
        for n in (1, 15, 70, 700):
            dims = {"N": n, "B": 2, "D": 9, "T": n} if name == "blur" else {"B": 2, "D": 9, "T": n}
            dims = {k: dims[k] for k in b.graph.dims}
            compare(b.graph, dims, sample(b.graph, dims, np.random.default_rng(n)))


def test_windows_on_the_left() -> None:
    """Results with channels last: the rows are places."""
    text = """
    export def same(x: f32[B, C, H, W], w: f32[O, C, 3, 3]) -> f32[B, H, W, O]:
        y[b, i:H, j:W, o] = sum[c, u, v](x[b, c, i + u - 1, j + v - 1 else 0] * w[o, c, u, v])
        return y
    export def strided(x: f32[B, C, 2*H, 2*W], w: f32[O, C, 3, 3]) -> f32[B, H, W, O]:
        y[b, i:H, j:W, o] = sum[c, u, v](x[b, c, 2*i + u - 1, 2*j + v - 1 else 0] * w[o, c, u, v])
        return y
    """
    for b in built(dedent(text)).values():
        for dims in SIZES:
            compare(b.graph, dict(dims), sample(b.graph, dict(dims), np.random.default_rng(2)))


def test_windows_of_a_flat_row() -> None:
    """A row read as a map, or a volume, through a window: its places are inside by multiples of
    what the window's conditions say."""
    text = """
    export def up(x: f32[B, 140], w: f32[4, 2, 2]) -> f32[B, 3, 10, 14]:
        g[b, c:4, i:5, j:7] = max(x[b, (c, i, j)], 0)
        y[b, o:3, (i:5, p:2), (j:7, r:2)] = sum[c, u:2, v:2](g[b, c, i + p - u, j + r - v else 0] * w[c, u, v]) + o
        return y
    export def volume(x: f32[B, 2*D*H*W], w: f32[2, 3, 3, 3], D: dim, H: dim, W: dim) -> f32[B, D, H, W]
            where D >= 1, H >= 1, W >= 1:
        g[b, c:2, k:D, i:H, j:W] = x[b, (c, k, i, j)]
        y[b, k:D, i:H, j:W] = sum[c, s, u, v](
            g[b, c, k + s - 1, i + u - 1, j + v - 1 else 0] * w[c, s, u, v])
        return y
    export def guarded(x: f32[B, 35*C], w: f32[O, C, 3, 3], n: f32[N]) -> f32[B, O, 5, 7]:
        y[b, o, i:5, j:7] = sum[c, u, v](
            (x[b, 35*c + 7*(i + u - 1) + j + v - 1] + 1) * w[o, c, u, v]
            if i + u >= 1 and i + u <= 5 and j + v >= 1 and j + v <= 7 and i >= 3 and i < N - 3 else 0)
        return y + total(n)
    """
    for name, b in built(dedent(text)).items():
        if name == "guarded":
            for o, n in ((2, 1), (9, 2), (9, 7)):
                dims = {"B": 2, "C": 3, "O": o, "N": n}
                compare(b.graph, dims, sample(b.graph, dims, np.random.default_rng(1)))
            continue
        dims = {"B": 2} if name == "up" else {"B": 2, "D": 3, "H": 4, "W": 5}
        compare(b.graph, dims, sample(b.graph, dims, np.random.default_rng(1)))


def test_results_along_the_digit_above() -> None:
    """Along j, where the last axis is a digit of two values below it."""
    text = """
    export def f(x: f32[B, C, H, W], w: f32[C, 9, 2, 2], z: f32[9]) -> f32[B, 9, 2*H, 2*W]:
        y[b, o, (i:H, u:2), (j:W, v:2)] = sum[c](x[b, c, i, j] * w[c, o, u, v]) + z[o]
        return tanh(y)
    """
    graph = built(dedent(text))["f"].graph
    for b, h, w, c in ((3, 7, 9, 5), (1, 1, 37, 40), (1, 2, 1, 1)):
        dims = {"B": b, "H": h, "W": w, "C": c}
        compare(graph, dims, sample(graph, dims, np.random.default_rng(3)))


def test_matrices_of_pictures() -> None:
    """Windows of one place: each picture is a matrix, of whole panels or not."""
    text = """
    export def forward(x: f32[B, C, H, W], w: f32[O, C], a: f32[O]) -> f32[B, O, H, W]:
        y[b, o, i, j] = sum[c](x[b, c, i, j] * w[o, c]) + a[o]
        return max(y, 0)
    export def gradients(x: f32[B, C, H, W], w: f32[O, C]) -> (f32[B, C, H, W], f32[O, C]):
        y[b, o, i, j] = sum[c](x[b, c, i, j] * w[o, c])
        loss = sum(y**2)
        return grad(loss, x), grad(loss, w)
    export def grouped(x: f32[B, 3*C, H, W], w: f32[3*O, C]) -> f32[B, 3*O, H, W]:
        y[b, (g:3, o:O), i, j] = sum[c](x[b, g*C + c, i, j] * w[g*O + o, c])
        return y
    export def last(x: f32[B, H, W, C], w: f32[C, O]) -> f32[B, O, H, W]:
        y[b, o, i, j] = sum[c](x[b, i, j, c] * w[c, o])
        return y
    """
    found = built(dedent(text))
    sizes = [(1, 7, 7), (1, 15, 19), (3, 16, 16), (2, 5, 6), (2, 21, 31)]
    for b, h, w in sizes:
        dims = {"B": b, "C": 37, "H": h, "W": w, "O": 29}
        for name in found:
            graph = found[name].graph
            compare(graph, dims, sample(graph, dims, np.random.default_rng(1)))


def test_strided_windows_of_one_place() -> None:
    """Their gradients: batches (phases) that differ in size."""
    text = """
    export def back(x: f32[B, C, H, W], w: f32[O, C]) -> (f32[B, C, H, W], f32[O, C]) where H > 0, W > 0:
        y[b, o, i:(H + 1)//2, j:(W + 1)//2] = sum[c](x[b, c, 2*i, 2*j else 0] * w[o, c])
        loss = sum(y**2)
        return grad(loss, x), grad(loss, w)
    """
    graph = built(dedent(text))["back"].graph
    for b, h, w in ((1, 16, 32), (3, 15, 9)):
        dims = {"B": b, "C": 37, "H": h, "W": w, "O": 29}
        compare(graph, dims, sample(graph, dims, np.random.default_rng(1)))


def test_phases_that_differ_in_size() -> None:
    """Batches of a gradient whose sizes depend on one another are no matrices of pictures."""
    text = """
    from std.nn import Conv2d
    module Down:
        c = Conv2d(64, 128, 1, stride=2, use_bias=false)
    export def back(n: Down, x: f32[B, 64, H, W]) -> f32[B, 64, H, W] where H > 0, W > 0:
        return grad(sum(n.c(x)**2), x)
    """
    graph = built(dedent(text))["back"].graph
    for b, h, w in ((1, 16, 33), (2, 7, 8)):
        dims = {"B": b, "H": h, "W": w}
        compare(graph, dims, sample(graph, dims, np.random.default_rng(1)))
