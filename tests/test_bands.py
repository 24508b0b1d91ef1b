"""Windows over the rows of a contraction, a pool behind a convolution: one kernel, band by band."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from nnc.ir.graph import Graph
from nnc.passes import bands
from nnc.passes.fuse import fuse
from tests.endtoend import built, compare, sample

CONV = """
def conv(x: {t}[B, 6, H, W], w: {t}[5, 6, 3, 3]) -> {t}[B, 5, H, W]:
    y[b, o, i:H, j:W] = sum[c, u, v](x[b, c, i + u - 1, j + v - 1 else 0] * w[o, c, u, v])
    return y

export def f(x: {t}[B, 6, H, W], w: {t}[5, 6, 3, 3], r: {t}[B, 5, H, W]) -> {t}[B, 5, Y, X]
        where Y = (H + 2*{p} - {d}*({k} - 1) - 1)//{s} + 1, X = (W + 2*{p} - {d}*({k} - 1) - 1)//{s} + 1, H > 4, W > 4:
    h = max(0, conv(x, w) + r)
    y[b, o, i:Y, j:X] = {op}[u:{k}, v:{k}](h[b, o, i*{s} + u*{d} - {p}, j*{s} + v*{d} - {p}{other}])
    return y
"""
POOLS = {
    "halves": {"op": "max", "k": 2, "s": 2, "p": 0, "d": 1, "other": ""},
    "overlapping": {"op": "max", "k": 3, "s": 2, "p": 1, "d": 1, "other": " else -inf"},
    "mean": {"op": "mean", "k": 3, "s": 3, "p": 1, "d": 1, "other": " else 0"},
    "apart": {"op": "sum", "k": 2, "s": 3, "p": 0, "d": 1, "other": ""},
    "dilated": {"op": "min", "k": 2, "s": 4, "p": 2, "d": 3, "other": " else 1.5"},
}
SIZES = [{"B": 1, "H": 5, "W": 5}, {"B": 2, "H": 17, "W": 33}, {"B": 3, "H": 48, "W": 16}]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(bands, "LARGE", 0)
    monkeypatch.setattr(bands, "SIZE", 3)
    monkeypatch.setattr(bands, "OVERLAPPING", 3)
    monkeypatch.setattr(bands, "WASTE", 2)
    yield


def kinds(graph: Graph) -> list[str]:
    return [g.kind for g in fuse(graph).groups]


@pytest.mark.parametrize(("pool", "dtype"), [*((p, "f32") for p in POOLS), ("apart", "f64")])
def test_pools(pool: str, dtype: str) -> None:
    graph = built(CONV.format(t=dtype, **POOLS[pool]))["f"].graph
    assert kinds(graph) == ["band"]
    for i, dims in enumerate(SIZES):
        compare(graph, dims, sample(graph, dims, np.random.default_rng(i)))


def test_known_sizes() -> None:
    text = CONV.format(t="f32", **POOLS["overlapping"])
    for name, n in (("B", 2), ("H", 26), ("W", 19)):
        text = text.replace(f"{name},", f"{n},").replace(f"{name}]", f"{n}]")
        text = text.replace(f"{name} ", f"{n} ").replace(f":{name}", f":{n}")
    graph = built(text.replace("H > 4, W > 4", "1 > 0"))["f"].graph
    assert kinds(graph) == ["band"]
    compare(graph, {}, sample(graph, {}, np.random.default_rng(0)))


def test_channels_last_and_groups() -> None:
    """The channels of a group are a batch of the contraction; lanes run over channels."""
    graph = built("""
export def f(x: f32[B, H, W, 2, 8], w: f32[2, 17, 3, 8]) -> f32[B, H//2, W//2, 2, 17]:
    h[b, i:H, j:W, g, o] = sum[u, c](x[b, i + u - 1, j, g, c else 0] * w[g, o, u, c])
    y[b, i:H//2, j:W//2, g, o] = max[u:2, v:2](h[b, 2*i + u, 2*j + v, g, o])
    return y
""")["f"].graph
    assert kinds(graph) == ["band"]
    for i, dims in enumerate([{"B": 1, "H": 2, "W": 2}, {"B": 2, "H": 15, "W": 9}]):
        compare(graph, dims, sample(graph, dims, np.random.default_rng(i)))


@pytest.mark.parametrize("result", ["h * 2", "h", "g"])
def test_what_others_read_is_made_as_a_whole(result: str) -> None:
    graph = built(f"""
export def f(x: f32[B, 6, H, W], w: f32[5, 6]) -> (f32[B, 5, H, W], f32[B, 5, H//2, W//2]):
    h[b, o, i, j] = sum[c](x[b, c, i, j] * w[o, c])
    g[b:B, o:5, i:H, j:W] = 1.0 * w[o, 0]
    y[b, o, i:H//2, j:W//2] = max[u:2, v:2](h[b, o, 2*i + u, 2*j + v])
    return {result}, y
""")["f"].graph
    assert ("band" in kinds(graph)) == (result == "g")


def test_few_rows_are_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "WASTE", 8)
    graph = built(CONV.format(t="f32", **POOLS["overlapping"] | {"k": 5, "p": 2}))["f"].graph
    assert "band" not in kinds(graph)
