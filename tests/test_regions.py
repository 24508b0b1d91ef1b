"""Passes over row blocks (`nnc.passes.regions`): attention and what is like it."""

import numpy as np
import pytest

from nnc import compiler
from nnc.passes.fuse import Fused, fuse
from tests.endtoend import built, compare, sample

HEAD = "export def f(q: f32[H, T, D], k: f32[H, S, D], v: f32[H, S, D]) -> f32[H, T, D]"
CAUSAL = HEAD.replace("S", "T")
VALUES = "\n    y[h, i, d] = sum[j](p[h, i, j] * v[h, j, d])\n    return y\n"
SOFTMAX = "\n    p = softmax(s, over=j)" + VALUES
SCORES = "    s[h, i, j] = sum[d](q[h, i, d] * k[h, j, d])"


def variant(text: str, head: str = HEAD) -> str:
    return f"{head}:\n{text}"


VARIANTS = {
    "full": variant(SCORES + " / sqrt(D)" + SOFTMAX),
    "scaled query": variant(SCORES.replace("q[h, i, d] *", "(q[h, i, d] / sqrt(D)) *") + SOFTMAX),
    "causal": variant(SCORES + " / sqrt(D) if j <= i else -inf" + SOFTMAX, CAUSAL),
    "strictly causal": variant(SCORES + " if j < i else -inf" + SOFTMAX, CAUSAL),
    "window": variant(SCORES + " if j <= i and i < j + 5 else -inf" + SOFTMAX, CAUSAL),
    "wide window": variant(SCORES + " if j <= i and i < j + 70 else -inf" + SOFTMAX, CAUSAL),
    "both sides": variant(SCORES + " if j < i + 9 and i < j + 9 else -inf" + SOFTMAX, CAUSAL),
    "bias": variant(
        SCORES + " + bias[h, i, j] if j <= i else -inf" + SOFTMAX,
        CAUSAL.replace("v:", "bias: f32[H, T, T], v:"),
    ),
    "alibi": variant(
        SCORES + " - slope[h] * f32(i - j) if j <= i else -inf" + SOFTMAX,
        CAUSAL.replace("v:", "slope: f32[H], v:"),
    ),
    "lengths": variant(SCORES + " if j < n[h] else -inf" + SOFTMAX, HEAD.replace("v:", "n: i32[H], v:")),
    "by hand": variant(
        SCORES + "\n    m[h, i] = max[j](s[h, i, j])\n    e[h, i, j] = exp(s[h, i, j] - m[h, i])"
        "\n    l[h, i] = sum[j](e[h, i, j])\n    p[h, i, j] = e[h, i, j] / l[h, i]" + VALUES
    ),
    "late division": variant(
        SCORES + "\n    e = exp(s - max(s, over=2, keep=true))"
        "\n    y[h, i, d] = sum[j](e[h, i, j] * v[h, j, d]) / sum[j](e[h, i, j])\n    return y\n"
    ),
    "relu": variant(
        SCORES + " if j <= i else 0\n    p = max(0, s) / f32(T)" + VALUES, CAUSAL
    ),
    "sigmoid": variant(SCORES + " if j <= i else -inf\n    p = sigmoid(s)" + VALUES, CAUSAL),
    "linear": variant(SCORES + " if j <= i else 0\n    p = s" + VALUES, CAUSAL),
    "normalised by a norm": variant(
        SCORES + "\n    p = s / sqrt(sum(s * s, over=2, keep=true) + 1)" + VALUES
    ),
    "grouped heads": variant(
        "    s[g, r, i, j] = sum[d](q[g, r, i, d] * k[g, j, d]) if j <= i else -inf"
        "\n    p = softmax(s, over=j)"
        "\n    y[g, r, i, d] = sum[j](p[g, r, i, j] * v[g, j, d])\n    return y\n",
        "export def f(q: f32[H, 3, T, D], k: f32[H, T, D], v: f32[H, T, D]) -> f32[H, 3, T, D]",
    ),
    "rows of a group": variant(
        "    s[g, r, i, j] = sum[d](q[g, r, i, d] * k[g, j, d]) if j <= i else -inf"
        "\n    p = softmax(s, over=j)"
        "\n    y[i, (g, r, d)] = sum[j](p[g, r, i, j] * v[g, j, d])\n    return y\n",
        "export def f(q: f32[H, 2, T, D], k: f32[H, T, D], v: f32[H, T, D]) -> f32[T, H*2*D]",
    ),
    "one key head": variant(
        SCORES.replace("k[h, j", "k[j") + SOFTMAX.replace("v[h, j", "v[j"),
        HEAD.replace("k: f32[H, S, D], v: f32[H, S, D]", "k: f32[S, D], v: f32[S, D]"),
    ),
    "other axes": variant(
        "    s[i, h, j] = sum[d](q[i, h, d] * k[j, h, d]) / sqrt(D) if j <= i else -inf"
        "\n    p = softmax(s, over=j)"
        "\n    y[i, (h, d)] = sum[j](p[i, h, j] * v[j, h, d])\n    return y\n",
        "export def f(q: f32[T, H, D], k: f32[T, H, D], v: f32[T, H, D]) -> f32[T, H*D]",
    ),
    "columns first": variant(
        "    s[h, j, i] = sum[d](q[h, i, d] * k[h, j, d]) if j <= i else -inf"
        "\n    p = softmax(s, over=j)"
        "\n    y[h, i, d] = sum[j](p[h, j, i] * v[h, j, d])\n    return y\n",
        CAUSAL,
    ),
    "f64": variant(SCORES + " / sqrt(D) if j <= i else -inf" + SOFTMAX, CAUSAL).replace("f32", "f64"),
    "cache": variant(
        SCORES.replace("s[h, i, j]", "s[h, i, j:P+T]").replace("k[h", "kv[0, h")
        + " if j <= P + i else -inf" + SOFTMAX.replace("v[h, j", "kv[1, h, j"),
        "export def f(q: f32[H, T, D], kv: f32[2, H, S, D], P: dim) -> f32[H, T, D] where P + T <= S",
    ),
}  # fmt: skip


def fused(text: str, name: str = "f") -> Fused:
    return fuse(compiler.optimise(built("from std.nn import softmax\n" + text)[name].graph))


def sizes(names: tuple[str, ...], **given: int) -> dict[str, int]:
    all_ = {"H": 2, "T": 13, "S": 29, "D": 5, "P": 0} | given
    return {n: all_[n] for n in names}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_one_kernel(name: str) -> None:
    assert [g.kind for g in fused(VARIANTS[name]).groups] == ["region"]


RAGGED = [(1, 1), (2, 7), (14, 15), (29, 13), (127, 130)]


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_at_ragged_sizes(name: str) -> None:
    graph = built("from std.nn import softmax\n" + VARIANTS[name])["f"].graph
    rng = np.random.default_rng(0)
    for t, s in RAGGED:
        more = {"P": s, "S": t + s} if name == "cache" else {}
        dims = sizes(graph.dims, T=t, **({"S": s} | more))
        tolerance = 1e-9 if name == "f64" else 2e-4
        compare(graph, dims, sample(graph, dims, rng), tolerance)


# ---- gradients ----------------------------------------------------------------------------------

GRADIENTS = ("causal", "full", "wide window", "by hand", "sigmoid", "other axes", "f64")
GRADIENTS += ("one key head", "grouped heads", "rows of a group", "alibi")


def with_gradient(text: str) -> str:
    head = text.split("->")[0].removeprefix("export def f")
    shapes = {p.split(":")[0].strip(): p.split(":")[1].strip() for p in _parameters(head)}
    results = ", ".join(shapes.values())
    call = f"f({', '.join(shapes)})"
    grads = ", ".join(shapes)
    return (
        f"{text}\nexport def g{head.rstrip()} -> ({results}):\n"
        f"    y = {call}\n    l = sum(y * y * y)\n    return grad(l, [{grads}])\n"
    )


def _parameters(head: str) -> list[str]:
    """`name: type` of each, where types hold commas."""
    inner = head.strip()[1:-1]
    parts = inner.split("], ")
    return [p if p.endswith("]") else p + "]" for p in parts]


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_gradient_is_two_passes(name: str) -> None:
    groups = fused(with_gradient(VARIANTS[name]), "g").groups
    big = [n for g in groups if g.kind != "region" for n in g.nodes if n.type.rank == 3]
    assert [g.kind for g in groups].count("region") == 2
    assert not any(n.type.shape[1:] in ((t, t) for t in n.type.shape[1:]) for n in big)


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_at_ragged_sizes(name: str) -> None:
    graph = built("from std.nn import softmax\n" + with_gradient(VARIANTS[name]))["g"].graph
    rng = np.random.default_rng(0)
    for t, s in [(1, 1), (13, 15), (57, 58), (127, 130)]:
        dims = sizes(graph.dims, T=t, S=s)
        tolerance = 1e-8 if name == "f64" else 2e-3
        compare(graph, dims, sample(graph, dims, rng), tolerance)


def test_dropout_is_drawn_again_for_the_gradient() -> None:
    text = """
from std.nn import softmax, dropout
export def g(q: f32[H, T, D], k: f32[H, T, D], v: f32[H, T, D]) -> (f32[H, T, D], f32[H, T, D]):
    s[h, i, j] = sum[d](q[h, i, d] * k[h, j, d]) / sqrt(D) if j <= i else -inf
    p = dropout!(softmax(s, over=j), 0.5)
    y[h, i, d] = sum[j](p[h, i, j] * v[h, j, d])
    l = sum(y * y)
    a, b = grad(l, [q, v])
    return a, b
"""
    groups = fuse(compiler.optimise(built(text)["g"].graph)).groups
    assert [g.kind for g in groups].count("region") == 2
    graph = built(text)["g"].graph
    dims = {"H": 2, "T": 57, "D": 6}
    compare(graph, dims, sample(graph, dims, np.random.default_rng(0)), 1e-3)


BLOCK = """
from std.nn import softmax
module Attention(D=16, H=2, K=D/H):
    param w: real[D, 3*D] = normal(0.1)
    param o: real[D, D] = normal(0.1)
    def forward(x: real[B, T, D]) -> real[B, T, D]:
        qkv = x @ w
        q[b, h, t, e] = qkv[b, t, (0:3, h:H, e:K)]
        k[b, h, t, e] = qkv[b, t, (1:3, h:H, e:K)]
        v[b, h, t, e] = qkv[b, t, (2:3, h:H, e:K)]
        s[b, h, t, j] = sum[e](q[b, h, t, e] * k[b, h, j, e]) / sqrt(K) if j <= t else -inf
        p = softmax(s, over=j)
        a[b, t, (h, e)] = sum[j](p[b, h, t, j] * v[b, h, j, e])
        return a @ o
export def g(inout net: Attention, x: f32[B, T, 16]) -> f32:
    l = sum((x + net(x))**2)
    net := net - 0.001 * grad(l, net)
    return l
"""


def test_a_training_step_has_no_whole_matrix() -> None:
    graph = built(BLOCK)["g"].graph
    program = compiler.schedule(compiler.optimise(graph))
    assert sum("one pass" in k.reason for k in program.kernels) == 2
    sizes = [b.bytes.evaluate({"B": 1, "T": 4096}) for b in program.buffers if b.scope == "arena"]
    assert max(sizes) < 4096 * 4096
    dims = {"B": 2, "T": 61}
    compare(graph, dims, sample(graph, dims, np.random.default_rng(0)), 1e-3)
