"""Sums over what has a key: by places from data instead of comparisons with every key."""

from __future__ import annotations

from textwrap import dedent

import numpy as np
import pytest

from nnc.ir.graph import Compute, Graph, Update, all_nodes
from nnc.ir.interpret import run as interpret
from nnc.passes.keyed import keyed
from tests.endtoend import built, close, compare, sample

PROGRAMS = {
    "added at keys": """
    export def f(h: f32[S, O], source: i32[E], target: i32[E], w: f32[E], like: f32[N]) -> f32[N, O]:
        y[n:N, o] = sum[e](w[e] * h[source[e], o] if target[e] == n else 0)
        return y + total(like)
    """,
    "counted, under a condition, of pairs": """
    export def f(k: i32[B, E], l: i32[B, E], x: f32[B, E], like: f32[N]) -> f32[B, N, 40]:
        y[b, n:N, m:40] = sum[e](x[b, e] if k[b, e] == n and x[b, e] > 0 and l[b, e] + n == m else 0)
        return y + total(like)
    """,
    "the one of a key": """
    export def f(h: f32[N, O], source: i32[E]) -> f32[E, O]:
        y[e, o] = sum[n](h[n, o] * (n + 1) if n == source[e] else 0)
        return y
    """,
    "the one of two keys": """
    export def f(h: f32[N, S], source: i32[E], other: i32[E]) -> f32[E]:
        y[e] = sum[n, s](h[n, s] if n == source[e] and s == other[e] else 0)
        return y
    """,
    "one of many, inside a loop": """
    export def f(h: f32[N, K], at: i32[T], x: f32[K, O]) -> f32[T, O]:
        s = zeros[O]
        ys = for t in T:
            s[o] = s[o] + sum[n, k](h[n, k] * x[k, o] if n == at[t] else 0)
            yield s
        return ys
    """,
    "largest of a key": """
    export def f(h: f32[E, O], target: i32[E], k: i32[E], like: f32[N]) -> (f32[N, O], i32[N], f32[E]):
        y[n:N, o] = max[e](h[e, o] if target[e] == n else -inf)
        z[n:N] = min[e](k[e] if target[e] == n and k[e] > 1 else 2147483647)
        w[e] = max[n](like[n] if n == target[e] else -inf)
        return y, z, w
    """,
    "gradients of the largest": """
    export def f(h: f32[E, O], target: i32[E], w: f32[O, N]) -> f32[E, O]:
        y[n:N, o] = max[e](h[e, o] if target[e] == n else -inf)
        z[n, o] = w[o, n] * y[n, o] if y[n, o] > -10 else 0
        return grad(sum(z), h)
    """,
    "gradients": """
    export def f(h: f32[S, O], source: i32[E], target: i32[E], w: f32[E], like: f32[N]) -> (f32[S, O], f32[E]):
        y[n:N, o] = sum[e](w[e] * h[source[e], o] if target[e] == n else 0)
        loss = sum(y**2) + total(like)
        return grad(loss, h), grad(loss, w)
    """,
}


def graph_of(text: str) -> Graph:
    return next(iter(built(dedent(text)).values())).graph


@pytest.mark.parametrize("name", PROGRAMS)
def test_keys_inside_and_outside(name: str) -> None:
    graph = graph_of(PROGRAMS[name])
    sizes = {"B": 2, "E": 37, "N": 19, "O": 5, "S": 7, "T": 6, "K": 4}
    dims = {d: sizes[d] for d in graph.dims}
    inputs = sample(graph, dims, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    for key, x in inputs.items():
        if x.dtype == np.int32:
            low, high = (0, 7) if key == "source" and "S" in dims else (-3, 23)
            inputs[key] = rng.integers(low, high, x.shape).astype(np.int32)
    got = compare(graph, dims, inputs)
    if not name.startswith("gradients"):
        for a, b in zip(got, interpret(graph, dims, inputs).results, strict=True):
            close(a, b, 1e-4, name)


def kinds(text: str) -> list[str]:
    found = all_nodes(keyed(graph_of(text)))
    sums = [n.op for n in found if isinstance(n, Compute) and n.op]
    return sums + ["+=" for n in found if isinstance(n, Update) and n.accumulate]


def test_what_becomes_of_them() -> None:
    assert kinds(PROGRAMS["added at keys"])[-1] == "+="
    assert kinds(PROGRAMS["the one of a key"]) == []
    assert kinds(PROGRAMS["the one of two keys"]) == []


def test_the_gradient_of_a_largest_goes_to_the_first() -> None:
    text = """
    export def f(h: f32[E], target: i32[E], w: f32[N]) -> f32[E]:
        y[n:N] = max[e](h[e] if target[e] == n else -inf)
        return grad(sum[n](w[n] * y[n] if y[n] > 0 else 0), h)
    """
    inputs = {
        "h": np.array([1, 3, 3, 2, 9, 5], np.float32),
        "target": np.array([20, 20, 20, 0, 7, 1], np.int32),
        "w": np.arange(10, 40, dtype=np.float32),
    }
    (got,) = compare(graph_of(text), {"E": 6, "N": 30}, inputs)
    assert got.tolist() == [0, 30, 0, 10, 17, 11]


def test_a_largest_of_a_key_is_nan_if_one_is() -> None:
    text = """
    export def f(h: f32[E], target: i32[E], like: f32[N]) -> f32[N]:
        y[n:N] = max[e](h[e] if target[e] == n else -inf)
        return y + 0 * total(like)
    """
    inputs = {
        "h": np.array([np.nan, 3, 2, np.nan], np.float32),
        "target": np.array([1, 1, 2, 3], np.int32),
        "like": np.zeros(20, np.float32),
    }
    (got,) = compare(graph_of(text), {"E": 4, "N": 20}, inputs)
    np.testing.assert_equal(got[:5], [-np.inf, np.nan, 2, np.nan, -np.inf])


def test_a_product_with_zeros_stays() -> None:
    """0 * inf is NaN: only a condition says that nothing is added."""
    text = """
    export def f(h: f32[E, O], target: i32[E], like: f32[N]) -> f32[N, O]:
        y[n:N, o] = sum[e](h[e, o] * (1.0 if target[e] == n else 0.0))
        return y + total(like)
    """
    assert "+=" not in kinds(text)


def test_few_keys_are_compared() -> None:
    text = """
    export def f(x: f32[E], target: i32[E]) -> f32[4]:
        y[n:4] = sum[e](x[e] if target[e] == n else 0)
        return y
    """
    assert kinds(text) == ["sum"]
