"""What programs mean: small exports, elaborated, verified, interpreted in float64, beside NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from textwrap import dedent
from typing import Any

import numpy as np
import pytest

from nnc.ir.graph import Graph
from nnc.ir.interpret import run as interpret
from nnc.passes.autodiff import autodiff
from nnc.passes.verify import verify
from tests.frontend import Front, front

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Outcome:
    """The results of one export, and what it wrote, by name."""

    results: tuple[Array, ...]
    writes: dict[str, Array]


def checked(text: str) -> Front:
    done = front(dedent(text))
    assert not done.diagnostics.errors, done.text
    for graph in done.graphs:
        verify(graph, "elaborate")
    return done


def graph_of(done: Front, name: str | None = None) -> Graph:
    assert done.elaborated is not None
    exports = done.elaborated.exports
    return next(e.graph for e in exports if name is None or e.graph.name == name)


def run(text: str, name: str | None = None, /, **inputs: Any) -> Outcome:
    """Runs the first export, or the one called `name`; sizes come from the arrays' shapes.

    Inputs by name with `_` for `.`; what is not given of a module is zero, sizes are integers.
    """
    graph = graph_of(checked(text), name)
    arrays: dict[str, Any] = {}
    dims = {k: v for k, v in inputs.items() if k in graph.dims}
    for node in graph.inputs:
        given = inputs.get(node.name.replace(".", "_"))
        if given is not None:
            arrays[node.name] = np.asarray(given)
            for d, n in zip(node.type.shape, arrays[node.name].shape, strict=True):
                form = d.linear_in(min(d.names)) if d.names else None
                if form is not None and form[0].const and form[1].const is not None:
                    dims[min(d.names)] = (n - form[1].const) // form[0].const
    for node in graph.inputs:
        if node.name not in arrays:
            arrays[node.name] = np.zeros([d.evaluate(dims) for d in node.type.shape])
    out = interpret(verified(autodiff(graph)), dims, arrays)
    return Outcome(out.results, out.writes)


def verified(graph: Graph) -> Graph:
    verify(graph, "autodiff")
    return graph


def array(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


X, Y, W = array(3, 4), array(3, 4, seed=1), array(4, 5, seed=2)
V, U = array(4, seed=3), array(3, seed=4)
CUBE = array(2, 3, 4, seed=5)
POSITIVE = np.abs(X) + 0.1
N = np.array([3, -4, 7, 0], np.int32)
M = np.array([2, 3, -2, 5], np.int32)
MASK = X > 0


@dataclass(frozen=True)
class Case:
    """One program of one expression or body, its inputs, what NumPy says."""

    name: str
    text: str
    inputs: dict[str, Any]
    expected: Any


def expr(
    name: str, args: str, result: str, body: str, expected: Callable[..., Any], **inputs: Any
) -> Case:
    """`export def f(args) -> result = body`, or with statements when `body` has several rows."""
    if "\n" in body or "return" in body:
        rows = "\n".join("    " + row for row in dedent(body).strip().splitlines())
        text = f"export def f({args}) -> {result}:\n{rows}\n"
    else:
        text = f"export def f({args}) -> {result} = {body}\n"
    return Case(name, text, inputs, expected(**inputs))


EXPRESSIONS = [
    expr("arithmetic", "x: f32[B, D], y: f32[B, D]", "f32[B, D]", "2 * x - y / 3 + x * y",
         lambda x, y: 2 * x - y / 3 + x * y, x=X, y=Y),
    expr("precedence", "x: f32[B, D]", "f32[B, D]", "-x**2 + 1", lambda x: -(x**2) + 1, x=X),
    expr("integer power of zero", "x: f32[N]", "f32[N]", "x**0 + x**3", lambda x: x**0 + x**3,
         x=np.array([0.0, 2.0, -1.0])),
    expr("real power", "x: f32[B, D]", "f32[B, D]", "x**2.5", lambda x: x**2.5, x=POSITIVE),
    expr("power of a number", "x: f32[B, D]", "f32[B, D]", "2.0**x", lambda x: 2.0**x, x=X),
    expr("integer tensor as exponent", "x: f32[N], n: i32[N]", "f32[N]", "x**n",
         lambda x, n: x**n.astype(float), x=np.array([2.0, 3.0]), n=np.array([3, 2], np.int32)),
    expr("scalar functions", "x: f32[B, D]", "f32[B, D]",
         "sqrt(abs(x)) + exp(-x) * tanh(x) + log1p(abs(x)) - sigmoid(x)",
         lambda x: np.sqrt(abs(x)) + np.exp(-x) * np.tanh(x) + np.log1p(abs(x)) - 1 / (1 + np.exp(-x)),
         x=X),
    expr("two-argument functions", "x: f32[B, D], y: f32[B, D]", "f32[B, D]",
         "max(x, y) + min(x, 0) + atan2(y, x)",
         lambda x, y: np.maximum(x, y) + np.minimum(x, 0) + np.arctan2(y, x), x=X, y=Y),
    expr("comparisons and logic", "x: f32[B, D], y: f32[B, D]", "bool[B, D]",
         "x < y and not x >= 0 or y == y", lambda x, y: ((x < y) & ~(x >= 0)) | (y == y), x=X, y=Y),
    expr("chained comparison", "x: f32[B, D]", "bool[B, D]", "-1 < x < 1",
         lambda x: (x > -1) & (x < 1), x=X),
    expr("constants", "x: f32[D]", "f32[D]", "pi * x + where(x < inf, 1, nan)",
         lambda x: np.pi * x + 1, x=V),
    expr("integer division and remainder", "n: i32[K], m: i32[K]", "i32[K]", "n // m + n % m",
         lambda n, m: n // m + n % m, n=N, m=M),
    expr("real division of integers", "n: i32[K], m: i32[K]", "f32[K]", "n / m + n / 2",
         lambda n, m: n / m + n / 2, n=N, m=M),
    expr("real division of bytes", "x: u8[K]", "f32[K]", "x / 255 - 0.5",
         lambda x: x / 255 - 0.5, x=np.array([0, 7, 255], np.uint8)),
    expr("bits", "n: i32[K], m: i32[K]", "i32[K]", "bitand(n, 6) + bitor(m, 1) + shl(bitxor(m, n), 1)",
         lambda n, m: (n & 6) + (m | 1) + ((m ^ n) << 1), n=N, m=M),
    expr("casts", "x: f32[B, D], n: i32[K]", "(i32[B, D], f32[K])", "return i32(floor(x)), f32(n)",
         lambda x, n: (np.floor(x).astype(int), n), x=X, n=N),
    expr("bool as number", "x: f32[B, D]", "f32", "mean(f32(x > 0))", lambda x: (x > 0).mean(), x=X),
    expr("literals adapt", "n: i32[K]", "i32[K]", "2 * n + 1", lambda n: 2 * n + 1, n=N),
    expr("a list of numbers", "x: f32[3]", "f32[3]", "x * [1, 2, 3]",
         lambda x: x * [1, 2, 3], x=array(3)),
    expr("where", "x: f32[B, D], y: f32[B, D]", "f32[B, D]", "where(x > 0, x, y)",
         lambda x, y: np.where(x > 0, x, y), x=X, y=Y),
    expr("where of literals adapts", "x: f32[B, D]", "f32[B, D]", "where(x >= 0, 1, -1)",
         lambda x: np.where(x >= 0, 1, -1), x=X),
    expr("where of literals in arithmetic", "x: f32[B, D]", "f32[B, D]",
         "s = where(x >= 0, 1, -1)\nreturn s * x + s", lambda x: abs(x) + np.where(x >= 0, 1, -1), x=X),
    expr("sizes as numbers", "x: f32[B, D]", "f32[B, D]", "x * B / D",
         lambda x: x * 3 / 4, x=X),
    expr("concat", "x: f32[B, D], y: f32[B, D]", "f32[B, 2*D]", "concat(x, y, over=D)",
         lambda x, y: np.concatenate([x, y], 1), x=X, y=Y),
    expr("concat of three", "x: f32[B, D]", "f32[B + 3, D]", "concat(x, zeros[1, D], ones[2, D], over=0)",
         lambda x: np.concatenate([x, np.zeros((1, 4)), np.ones((2, 4))], 0), x=X),
    expr("zeros_like", "n: i32[K]", "i32[K]", "zeros_like(n) + 1", lambda n: 0 * n + 1, n=N),
    expr("ones take their dtype from use", "n: i32[K]", "i32[K]", "n + ones[K]",
         lambda n: n + 1, n=N),
    expr("matrix product", "x: f32[B, D], w: f32[D, O]", "f32[B, O]", "x @ w", lambda x, w: x @ w, x=X, w=W),
    expr("matrix product with a vector", "x: f32[B, D], v: f32[D]", "f32[B]", "x @ v",
         lambda x, v: x @ v, x=X, v=V),
    expr("matrix product with leading axes", "x: f32[A, B, D], w: f32[D, O]", "f32[A, B, O]", "x @ w",
         lambda x, w: x @ w, x=CUBE, w=W),
    expr("batched matrix product", "x: f32[A, B, D], y: f32[A, D, O]", "f32[A, B, O]", "x @ y",
         lambda x, y: x @ y, x=CUBE, y=array(2, 4, 2, seed=9)),
    expr("transpose", "x: f32[B, D]", "f32[D, B]", "x.T", lambda x: x.T, x=X),
]  # fmt: skip

BROADCASTING = [
    expr("scalar", "x: f32[B, D], s: f32", "f32[B, D]", "x * s", lambda x, s: x * s, x=X, s=2.5),
    expr("trailing axes", "x: f32[B, D], v: f32[D]", "f32[B, D]", "x + v", lambda x, v: x + v, x=X, v=V),
    expr("literal 1", "x: f32[B, D], u: f32[B, 1]", "f32[B, D]", "x * u",
         lambda x, u: x * u, x=X, u=U[:, None]),
    expr("None axis", "x: f32[B, D], u: f32[B]", "f32[B, D]", "x * u[:, None]",
         lambda x, u: x * u[:, None], x=X, u=U),
    expr("both stretch", "u: f32[B], v: f32[D]", "f32[B, D]", "u[:, None] + v[None, :]",
         lambda u, v: u[:, None] + v, u=U, v=V),
    expr("kept axis", "x: f32[B, D]", "f32[B, D]", "x - mean(x, over=D, keep=true)",
         lambda x: x - x.mean(1, keepdims=True), x=X),
]  # fmt: skip

SLICES = [
    expr("position", "x: f32[2, B, D]", "f32[B, D]", "x[1]", lambda x: x[1], x=CUBE),
    expr("last", "x: f32[B, D]", "f32[B]", "x[:, -1]", lambda x: x[:, -1], x=X),
    expr("range", "x: f32[B, 4]", "f32[B, 2]", "x[:, 1:3]", lambda x: x[:, 1:3], x=X),
    expr("to the last but one", "x: f32[B, T + 1]", "f32[B, T]", "x[:, :-1] + x[:, 1:]",
         lambda x: x[:, :-1] + x[:, 1:], x=X),
    expr("ellipsis", "x: f32[A, B, D]", "f32[A, B]", "x[..., -1]", lambda x: x[..., -1], x=CUBE),
    expr("partial from the left", "x: f32[2, 3, D]", "f32[D]", "x[1, 2]", lambda x: x[1, 2], x=CUBE),
    expr("slice of a slice", "x: f32[B, 4]", "f32[B]", "x[:, 1:][:, 1]", lambda x: x[:, 2], x=X),
    expr("gather of rows", "x: f32[V, D], n: i32[A, B]", "f32[A, B, D]", "x[n]",
         lambda x, n: x[n], x=X, n=np.array([[0, 2], [1, 1]], np.int32)),
    expr("gather on a later axis", "x: f32[B, D], n: i32[K]", "f32[B, K]", "x[:, n]",
         lambda x, n: x[:, n], x=X, n=np.array([3, 0], np.int32)),
    expr("slice of literals", "x: f32[2]", "f32[2]", "x * ones[5][1:3]", lambda x: x, x=array(2)),
]  # fmt: skip

INDEX = [
    expr("copy with axes exchanged", "x: f32[A, B, D]", "f32[A, D, B]", "y[a, d, b] = x[a, b, d]\nreturn y",
         lambda x: x.transpose(0, 2, 1), x=CUBE),
    expr("outer product", "u: f32[B], v: f32[D]", "f32[B, D]", "y[b, d] = u[b] * v[d]\nreturn y",
         lambda u, v: np.outer(u, v), u=U, v=V),
    expr("contraction", "x: f32[B, D], w: f32[D, O]", "f32[B, O]",
         "y[b, o] = sum[d](x[b, d] * w[d, o])\nreturn y", lambda x, w: x @ w, x=X, w=W),
    expr("two reductions in one statement", "x: f32[B, D]", "f32[B]",
         "y[b] = sum[d](x[b, d]) / (1 + max[e](x[b, e])**2)\nreturn y",
         lambda x: x.sum(1) / (1 + x.max(1) ** 2), x=X),
    expr("nested reductions", "x: f32[A, B, D]", "f32[A]", "y[a] = max[b](sum[d](x[a, b, d]))\nreturn y",
         lambda x: x.sum(2).max(1), x=CUBE),
    expr("reduction over several", "x: f32[A, B, D]", "f32[A]", "y[a] = sum[b, d](x[a, b, d]**2)\nreturn y",
         lambda x: (x**2).sum((1, 2)), x=CUBE),
    expr("every reduction", "x: f32[B, D]", "f32[B]",
         """
         y[b] = mean[d](x[b, d]) + min[d](x[b, d]) + prod[d](x[b, d]) + var[d](x[b, d])
         z[b] = y[b] + logsumexp[d](x[b, d])
         return z
         """,
         lambda x: x.mean(1) + x.min(1) + x.prod(1) + x.var(1) + np.log(np.exp(x).sum(1)), x=X),
    expr("any and all", "x: f32[B, D]", "(bool[B], bool[B])",
         "a[b] = any[d](x[b, d] > 1)\nc[b] = all[d](x[b, d] > -1)\nreturn a, c",
         lambda x: ((x > 1).any(1), (x > -1).all(1)), x=X),
    expr("argmax", "x: f32[B, D]", "(i32[B], i32[D])", "k[b] = argmax[d](x[b, d])\nreturn k, argmin(x, over=B)",
         lambda x: (x.argmax(1), x.argmin(0)), x=X),
    expr("explicit range", "x: f32[B, 4]", "f32[B, 3]", "y[b, i:3] = x[b, i + 1] - x[b, i]\nreturn y",
         lambda x: np.diff(x), x=X),
    expr("index values", "x: f32[B, D]", "f32[B, D]", "y[b, d] = x[b, d] * d + b\nreturn y",
         lambda x: x * np.arange(4) + np.arange(3)[:, None], x=X),
    expr("window with zeros outside", "x: f32[B, D]", "f32[B, D]",
         "y[b, d:D] = x[b, d - 1 else 0] + x[b, d + 1 else 0]\nreturn y",
         lambda x: np.pad(x, ((0, 0), (1, 1)))[:, :-2] + np.pad(x, ((0, 0), (1, 1)))[:, 2:], x=X),
    expr("reversed", "x: f32[B, D]", "f32[B, D]", "y[b, d:D] = x[b, D - 1 - d]\nreturn y",
         lambda x: x[:, ::-1], x=X),
    expr("strided window", "x: f32[B, 4]", "f32[B, 2]", "y[b, k:2] = max[u:2](x[b, 2*k + u])\nreturn y",
         lambda x: x.reshape(3, 2, 2).max(2), x=X),
    expr("data-dependent read", "x: f32[B, D], n: i32[B]", "f32[B]", "y[b] = x[b, n[b]]\nreturn y",
         lambda x, n: x[np.arange(3), n], x=X, n=np.array([1, 3, 0], np.int32)),
    expr("data-dependent read with else", "x: f32[B, D], n: i32[B]", "f32[B]",
         "y[b] = x[b, n[b] else -1]\nreturn y",
         lambda x, n: np.array([x[0, 1], -1, -1]), x=X, n=np.array([1, 4, -1], np.int32)),
    expr("split axis", "x: f32[B, 12]", "f32[B, 3, 4]", "y[b, h, e] = x[b, (h:3, e)]\nreturn y",
         lambda x: x.reshape(2, 3, 4), x=CUBE.reshape(2, 12)),
    expr("constant digit", "x: f32[B, 12]", "f32[B, 4]", "y[b, e] = x[b, (1:3, e:4)]\nreturn y",
         lambda x: x.reshape(2, 3, 4)[:, 1], x=CUBE.reshape(2, 12)),
    expr("merged axis", "x: f32[A, B, D]", "f32[A, B*D]", "y[a, (b, d)] = x[a, b, d]\nreturn y",
         lambda x: x.reshape(2, 12), x=CUBE),
    expr("merged in another order", "x: f32[A, B, D]", "f32[D*A, B]", "y[(d, a), b] = x[a, b, d]\nreturn y",
         lambda x: x.transpose(2, 0, 1).reshape(8, 3), x=CUBE),
    expr("lazy branch", "x: f32[B, D]", "f32[B, D]", "y[b, d:D] = x[b, d - 1] if d > 0 else 0\nreturn y",
         lambda x: np.pad(x, ((0, 0), (1, 0)))[:, :-1], x=X),
    expr("triangle", "x: f32[D, D]", "f32[D, D]", "y[i, j] = x[i, j] if j <= i else -inf\nreturn y",
         lambda x: np.where(np.tri(4, dtype=bool), x, -np.inf), x=array(4, 4)),
    expr("lazy branch around a reduction", "x: f32[B, D]", "f32[B]",
         "y[b] = sum[d](x[b, d]) if b > 0 else 0\nreturn y", lambda x: np.where(np.arange(3) > 0, x.sum(1), 0), x=X),
    expr("literals in branches adapt", "x: f32[B]", "f32[B]", "y[b] = x[b] * (1 if x[b] > 0 else -1)\nreturn y",
         lambda x: abs(x), x=U),
    expr("any number of axes", "x: f32[..N, D]", "f32[..N]", "m[..n] = max[d](x[..n, d])\nreturn m",
         lambda x: x.max(-1), x=X),
    expr("a name defined again", "x: f32[B, D]", "f32[B, D]", "y[b, d] = 2 * x[b, d]\ny[b, d] = y[b, d] + 1\nreturn y",
         lambda x: 2 * x + 1, x=X),
    expr("function of elements", "x: f32[B, D]", "f32[B, D]", "y[b, d] = tanh(x[b, d]) * sum(x[b])\nreturn y",
         lambda x: np.tanh(x) * x.sum(1)[:, None], x=X),
    expr("over an index name", "x: f32[D, D]", "f32[D]", "s[i, j] = x[i, j]**2\nreturn sum(s, over=i)",
         lambda x: (x**2).sum(0), x=array(4, 4)),
    expr("over a size", "x: f32[A, B, D]", "f32[A, D]", "sum(x, over=B)", lambda x: x.sum(1), x=CUBE),
    expr("over several axes", "x: f32[A, B, D]", "f32[B]", "sum(x, over=(A, D))", lambda x: x.sum((0, 2)), x=CUBE),
    expr("softmax", "x: f32[B, D]", "f32[B, D]", "softmax(x, over=1)",
         lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True), x=X),
    expr("logsumexp of nothing but -inf", "x: f32[B, D]", "f32[B]", "logsumexp(x, over=1)",
         lambda x: np.array([-np.inf, np.log(4)]), x=np.array([[-np.inf] * 4, [0.0] * 4])),
]  # fmt: skip

CASES = [*EXPRESSIONS, *BROADCASTING, *SLICES, *INDEX]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_expressions(case: Case) -> None:
    results = run(case.text, **case.inputs).results
    expected = case.expected if isinstance(case.expected, tuple) else (case.expected,)
    assert len(results) == len(expected)
    for got, want in zip(results, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def same(got: Outcome, *expected: Any) -> None:
    assert len(got.results) == len(expected)
    for g, e in zip(got.results, expected, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-9, atol=1e-12)


# ---- functions ------------------------------------------------------------------------------------


def test_functions_call_functions_with_defaults_and_names() -> None:
    text = """
    def scaled(x: real[..N], by: real = 2.0, plus: real = 0.0) -> real[..N] = by * x + plus
    export def f(x: f32[B, D]) -> f32[B, D] = scaled(x, plus=1) + scaled(x, 3)
    """
    same(run(text, x=X), 5 * X + 1)


def test_functions_return_several_values() -> None:
    text = """
    def parts(x: real[..N]) -> (real[..N], real):
        return x - mean(x), mean(x)
    export def f(x: f32[B, D]) -> (f32[B, D], f32):
        y, m = parts(x)
        return 2 * y, m
    """
    same(run(text, x=X), 2 * (X - X.mean()), X.mean())


def test_sizes_are_found_from_arguments() -> None:
    text = """
    def pairs(x: real[2*N, T + 1]) -> real[N, T]:
        y[n, t:T] = x[2*n, t] + x[2*n + 1, t + 1]
        return y
    export def f(x: f32[4, 3]) -> f32[2, 2] = pairs(x)
    """
    text = text.replace("y[n, t:T]", "y[n:N, t:T]")
    x = array(4, 3)
    same(run(text, x=x), x[::2, :2] + x[1::2, 1:])


def test_where_defines_sizes() -> None:
    text = """
    def pool(x: real[B, T], k: dim) -> real[B, Y] where 1 <= k, Y = T//k:
        y[b, i:Y] = mean[u:k](x[b, i*k + u])
        return y
    export def f(x: f32[B, 6]) -> (f32[B, 3], f32[B, 1]):
        return pool(x, 2), pool(x, 4)
    """
    x = array(2, 6)
    same(run(text, x=x), x.reshape(2, 3, 2).mean(2), x[:, :4].mean(1, keepdims=True))


def test_size_arguments_at_run_time() -> None:
    text = """
    export def f(x: f32[B], n: dim) -> f32[B, n]:
        y[b, i:n] = x[b] * i
        return y
    """
    same(run(text, x=U, n=5), np.outer(U, np.arange(5)))


def test_axis_arguments() -> None:
    text = """
    def centred(x: real[..N], over: axis) -> real[..N] = x - mean(x, over=over, keep=true)
    export def f(x: f32[B, D]) -> f32[B, D]:
        y[b, d] = x[b, d] + 1
        return centred(x, over=D) + centred(y, b) + centred(x, over=-1)
    """
    rows, columns = X - X.mean(1, keepdims=True), X - X.mean(0)
    same(run(text, x=X), 2 * rows + columns)


def test_packs_match_as_a_unit() -> None:
    text = """
    def mix(x: real[..N, D], w: real[D, O], y: real[..N, O]) -> real[..N, O] = x @ w + y
    export def f(x: f32[A, B, 4], w: f32[4, 5]) -> f32[A, B, 5] = mix(x, w, zeros[A, B, 5])
    """
    same(run(text, x=CUBE, w=W), CUBE @ W)


def test_functions_are_called_inside_index_notation() -> None:
    text = """
    def pick(row: real[D], at: real) -> real:
        i = i32(floor(at))
        return row[i else 0] * (1 - at + floor(at))
    export def f(x: f32[B, D], at: f32[B]) -> f32[B]:
        y[b] = pick(x[b], at[b])
        return y
    """
    at = np.array([0.25, 3.5, 7.0])
    want = [X[0, 0] * 0.75, X[1, 3] * 0.5, 0]
    same(run(text, x=X, at=at), want)


# ---- modules --------------------------------------------------------------------------------------

LINEAR = """
module Linear(I, O, use_bias=true):
    param weight: real[O, I] = 0
    param bias: real[O] = 0 when use_bias
    def forward(x: real[..N, I]) -> real[..N, O]:
        y[..n, o] = sum[i](x[..n, i] * weight[o, i]) + (bias[o] if use_bias else 0)
        return y
"""


def test_modules_with_parameters() -> None:
    text = f"{LINEAR}\nexport def f(net: Linear(4, 5), x: f32[B, 4]) -> f32[B, 5] = net(x)\n"
    b = array(5)
    same(run(text, net_weight=W.T, net_bias=b, x=X), X @ W + b)


def test_params_that_are_not_there() -> None:
    text = f"{LINEAR}\nexport def f(net: Linear(4, 5, use_bias=false), x: f32[B, 4]) -> f32[B, 5] = net(x)\n"
    graph = graph_of(checked(text))
    assert [i.name for i in graph.inputs] == ["net.weight", "x"]
    same(run(text, net_weight=W.T, x=X), X @ W)


def test_sub_modules_lists_and_functions_as_parameters() -> None:
    text = f"""{LINEAR}
def twice(x: real[..N]) -> real[..N] = 2 * x

module Net(D=4, L=3, act=tanh):
    layers = [Linear(D, D) for l in L]
    last = [Linear(D, D)] if L > 2 else []
    def forward(x: real[B, D]) -> real[B, D]:
        for layer in layers + last: x = act(layer(x))
        return x
    def first(x: real[B, D]) -> real[B, D] = layers[0](x)

export def f(net: Net(L=2), x: f32[B, 4]) -> f32[B, 4] = net(x) + net.first(x)
export def g(net: Net(act=twice), x: f32[B, 4]) -> f32[B, 4] = net(x)
"""
    w0, w1 = array(4, 4, seed=1), array(4, 4, seed=2)
    want = np.tanh(np.tanh(X @ w0.T) @ w1.T) + X @ w0.T
    same(run(text, "f", net_layers_0_weight=w0, net_layers_1_weight=w1, x=X), want)
    eye = {f"net_layers_{i}_weight": np.eye(4) for i in range(3)}
    same(run(text, "g", net_last_0_weight=np.eye(4), x=X, **eye), 16 * X)


def test_using_a_module_twice_shares_its_weights() -> None:
    text = f"""{LINEAR}
module Net(D):
    fc = Linear(D, D)
    def forward(x: real[B, D]) -> real[B, D] = fc(fc(x)) @ fc.weight
export def f(net: Net(4), x: f32[B, 4]) -> f32[B, 4] = net(x)
"""
    w = array(4, 4)
    same(run(text, net_fc_weight=w, x=X), X @ w.T @ w.T @ w)


def test_methods_call_each_other_by_name() -> None:
    text = """
    module M(D):
        param w: real[D] = 1
        def encode(x: real[B, D]) -> real[B, D] = x * w
        def forward(x: real[B, D]) -> real[B, D] = encode(x) + encode(2 * x)
    export def f(m: M(4), x: f32[B, 4]) -> f32[B, 4] = m(x) + m.encode(x)
    """
    same(run(text, m_w=V, x=X), 4 * X * V)


def test_a_file_without_exports_offers_the_methods_of_its_module() -> None:
    text = "module M(D=4):\n    param w: real[D] = 1\n    def forward(x: real[B, D]) -> real[B, D] = x * w\n"
    text += "    def other(x: real[B, D]) -> real[B, D] = x + w\n"
    done = checked(text)
    assert done.elaborated is not None
    assert [e.graph.name for e in done.elaborated.exports] == ["forward", "other"]
    same(run(text, "other", net_w=V, x=X), X + V)


def test_keys_are_paths_and_as_replaces_the_last_segment() -> None:
    text = f"""{LINEAR}
module Net:
    param wte: real[3, 4] = 0 as "wte.weight"
    blocks = [Linear(4, 4) for l in 2]
    def forward(x: real[B, 4]) -> real[B, 3] = blocks[1](blocks[0](x)) @ wte.T
export def f(net: Net, x: f32[B, 4]) -> f32[B, 3] = net(x)
"""
    names = [i.name for i in graph_of(checked(text)).inputs]
    assert names[:3] == ["net.wte.weight", "net.blocks.0.weight", "net.blocks.0.bias"]


def test_defaults_of_parameters_from_others_and_assertions() -> None:
    text = """
    module Heads(D, H=2, K=D/H):
        assert K % 2 == 0
        param w: real[H, K] = 0
        def forward(x: real[B, D]) -> real[B, H]:
            y[b, h] = sum[k](x[b, (h, k)] * w[h, k])
            return y
    export def f(m: Heads(4), x: f32[B, 4]) -> f32[B, 2] = m(x)
    """
    w = array(2, 2)
    same(run(text, m_w=w, x=X), (X.reshape(3, 2, 2) * w).sum(2))


def test_initial_values() -> None:
    text = """
    module M(D=3):
        param a: real[D, 2] = 1.5
        param b: real[3] = [1, 2, 3]
        state n: i32 = 7
        param c: f32[D] = 0
        def forward(x: real[B, D]) -> real[B, D] = x * b[0] + c + a[:, 0] + f32(n)
    """
    done = checked(text)
    (graph,) = [g for g in done.graphs if g.name.startswith("init")]
    a, b, n, c = interpret(graph, {}, {"seed": 0, "step": 0}).results
    assert (a == 1.5).all() and b.tolist() == [1, 2, 3] and n == 7 and c.tolist() == [0, 0, 0]


def test_imports_and_constants() -> None:
    text = """
    from std.nn import relu, softplus as _soft
    import std.nn as layers
    const scale: f32[4] = [1, 2, 3, 4]
    const table: f32[2, 2] = [[1, 2], [3, 4]]
    const K: dim = 4
    const half = 0.5
    export def f(x: f32[B, K]) -> (f32[B, K], f32[2]):
        return half * relu(x) * scale + layers.relu(-x), table[1]
    """
    text = text.replace(", softplus as _soft", "")
    same(run(text, x=X), 0.5 * np.maximum(X, 0) * [1, 2, 3, 4] + np.maximum(-X, 0), [3, 4])


# ---- storage --------------------------------------------------------------------------------------


def test_inout_arguments_are_written() -> None:
    text = """
    export def f(inout x: f32[B, D], y: f32[B, D]) -> f32:
        before = sum(x)
        x := x + y
        x := 2 * x
        return sum(x) - before
    """
    out = run(text, x=X, y=Y)
    np.testing.assert_allclose(out.writes["x"], 2 * (X + Y))
    same(out, (2 * (X + Y)).sum() - X.sum())


def test_elements_are_written_others_stay() -> None:
    text = """
    export def f(inout x: f32[B, 4], y: f32[B]) -> f32:
        x[b, 1] := y[b]
        x[:, 2] := y
        x[0] := 7
        x[1:, 0] := 9
        return 0
    """
    want = X.copy()
    want[:, 1] = want[:, 2] = U
    want[0] = 7
    want[1:, 0] = 9
    np.testing.assert_allclose(run(text, x=X, y=U).writes["x"], want)


def test_elements_are_accumulated() -> None:
    text = """
    export def f(k: i32[N], x: f32[N]) -> (f32[4], i32[4]):
        h = zeros[4]
        h[k[i]] := h[k[i]] + x[i]
        n = zeros[4]
        n[k[i]] := n[k[i]] + 1
        h[k[i]] := h[k[i]] - 2 * x[i]
        return h, n
    """
    k = np.array([0, 2, 2, 0, 1], np.int32)
    x = array(5)
    h = np.zeros(4)
    np.add.at(h, k, -x)
    text = text.replace("(f32[4], i32[4])", "(f32[4], f32[4])").replace("+ 1\n", "+ 1.0\n")
    same(run(text, k=k, x=x), h, np.bincount(k, minlength=4))


def test_merged_axes_are_written_through() -> None:
    text = """
    export def f(inout x: f32[B, 12], y: f32[B, 3]) -> f32:
        x[b, (h, 2:4)] := y[b, h]
        return 0
    """
    x, y = CUBE.reshape(2, 12).copy(), array(2, 3)
    want = CUBE.copy()
    want[:, :, 2] = y
    np.testing.assert_allclose(run(text, x=x, y=y).writes["x"], want.reshape(2, 12))


def test_functions_write_inout_arguments_and_parts_of_them() -> None:
    text = """
    def push(inout row: real[D], v: real) -> real:
        old = row[0]
        row[0] := v
        row := 2 * row
        return old
    def both(inout x: real[2, D]) -> real:
        return push(x[1], 5) + push(x[0], 6)
    export def f(inout x: f32[3, 2, D]) -> f32 = both(x[1])
    """
    x = array(3, 2, 4)
    want = x.copy()
    want[1, 1, 0], want[1, 0, 0] = 5, 6
    want[1] *= 2
    out = run(text, x=x)
    np.testing.assert_allclose(out.writes["x"], want)
    same(out, x[1, 1, 0] + x[1, 0, 0])


def test_local_variables_are_passed_as_inout() -> None:
    text = """
    def fill(inout cache: real[N, D], at: dim, v: real[D]) -> real where at < N:
        cache[at] := v
        return sum(cache)
    export def f(x: f32[D]) -> (f32[3, D], f32):
        cache = zeros[3, D]
        first = fill(cache, 1, x)
        second = fill(cache, 2, 2 * x)
        return cache, second - first
    """
    same(run(text, x=V), np.array([0 * V, V, 2 * V]), 2 * V.sum())


def test_a_copy_keeps_its_version() -> None:
    text = """
    export def f(inout x: f32[D]) -> f32[D]:
        old = x
        x := 0
        return old
    """
    out = run(text, x=V)
    same(out, V)
    assert not out.writes["x"].any()


def test_state_is_written_in_calls_with_bang() -> None:
    text = """
    module Mean(D):
        state m: f32[D] = 0
        state n: i32 = 0
        def forward(x: real[D]) -> real[D]:
            if train:
                n := n + 1
                m := m + (x - m) / f32(n)
            return m
    export def observe(inout s: Mean(4), x: f32[4]) -> f32[4] = s!(x)
    export def read(s: Mean(4), x: f32[4]) -> f32[4] = s(x)
    """
    out = run(text, "observe", s_m=U.sum() * np.ones(4), s_n=3, x=V)
    same(out, U.sum() + (V - U.sum()) / 4)
    assert out.writes["s.n"] == 4
    assert not run(text, "read", s_m=V, x=X[0]).writes


def test_two_values_are_written_at_once() -> None:
    text = """
    export def f(inout x: f32[D], inout y: f32[D]) -> f32:
        x, y := y, x
        return 0
    """
    out = run(text, x=V, y=2 * V)
    np.testing.assert_allclose(out.writes["x"], 2 * V)
    np.testing.assert_allclose(out.writes["y"], V)


# ---- trees ----------------------------------------------------------------------------------------

PAIR = """
module Pair:
    param a: real[2] = 0
    param b: real[2, 3] = 0
    def forward(x: real[2]) -> real[3] = (x + a) @ b
"""
A, BB = array(2, seed=7), array(2, 3, seed=8)


def test_arithmetic_lifts_over_trees() -> None:
    text = f"""{PAIR}
export def f(inout p: Pair, q: Pair, s: f32) -> f32:
    p := s * p + 0.5 * q**2 - 1
    return total(p * q)
"""
    out = run(text, p_a=A, p_b=BB, q_a=2 * A, q_b=BB, s=3.0)
    a, b = 3 * A + 2 * A**2 - 1, 3 * BB + 0.5 * BB**2 - 1
    np.testing.assert_allclose(out.writes["p.a"], a)
    same(out, (a * 2 * A).sum() + (b * BB).sum())


def test_reductions_of_trees() -> None:
    text = (
        f"{PAIR}\nexport def f(p: Pair) -> (f32, f32, bool) = (total(p), norm(p), finite(p / 2))\n"
    )
    text = f"{PAIR}\nexport def f(p: Pair) -> (f32, f32, bool):\n    return total(p), norm(p), finite(p / 2)\n"
    flat = np.concatenate([A, BB.ravel()])
    same(run(text, p_a=A, p_b=BB), flat.sum(), np.sqrt((flat**2).sum()), True)


def test_equalities_of_nested_conditions_hold_together() -> None:
    text = """
module Block(I, O, s=1):
    param w: real[I, O] = 1
    def forward(x: real[B, I, H*s]) -> real[B, O, H]:
        y[b, o, h:H] = sum[i](w[i, o] * x[b, i, h*s])
        if s == 1:
            if I == O:
                y = y + x
        return y
export def f(net: Block(2, 2), x: f32[B, 2, H]) -> f32[B, 2, H] = net(x)
"""
    out = run(text, net_w=np.eye(2), x=np.ones((1, 2, 3)))
    same(out, 2 * np.ones((1, 2, 3)))


def test_the_gradient_of_a_norm_of_zeros_is_zero() -> None:
    text = "export def f(x: f32[N]) -> f32[N]:\n    n = norm(x)\n    return grad(n, x)\n"
    same(run(text, x=np.zeros(3)), np.zeros(3))
    same(run(text, x=np.array([3.0, 0.0, 4.0])), np.array([0.6, 0.0, 0.8]))


def test_rank_and_size_are_static_for_each_leaf() -> None:
    text = f"""{PAIR}
def decayed(p: tree) -> tree:
    w = 0.5 if rank(p) >= 2 else 1.0
    return p * w / size(p)
export def f(p: Pair) -> params(Pair) = decayed(p)
"""
    same(run(text, p_a=A, p_b=BB), A / 2, BB * 0.5 / 6)


def test_optimizers_keep_trees_as_state() -> None:
    text = f"""from std.optim import SGD
{PAIR}
export def step(inout p: Pair, inout opt: SGD(Pair, momentum=0.5), x: f32[2], lr: f32) -> f32:
    loss = sum(p(x)**2)
    p := opt!(p, grad(loss, p), lr)
    return loss
"""
    m = np.ones(2)
    out = run(text, p_a=A, p_b=BB, opt_m_a=m, x=A, lr=0.1)
    y = 2 * A @ BB
    ga, gb = BB @ (2 * y), np.outer(2 * A, 2 * y)
    np.testing.assert_allclose(out.writes["opt.m.a"], 0.5 * m + ga)
    np.testing.assert_allclose(out.writes["p.a"], A - 0.1 * (0.5 * m + ga))
    np.testing.assert_allclose(out.writes["p.b"], BB - 0.1 * gb)


def test_tree_arguments() -> None:
    text = f"{PAIR}\nexport def f(p: Pair, g: params(Pair)) -> params(Pair) = p - 0.1 * g\n"
    same(run(text, p_a=A, p_b=BB, g_a=A, g_b=BB), 0.9 * A, 0.9 * BB)


# ---- gradients ------------------------------------------------------------------------------------


def test_gradients_of_variables_and_intermediates() -> None:
    text = """
    export def f(x: f32[B, D]) -> (f32[B, D], f32[B, D]):
        y = x**2
        loss = sum(exp(y))
        return grad(loss, x), grad(loss, y)
    """
    same(run(text, x=X), np.exp(X**2) * 2 * X, np.exp(X**2))


def test_gradients_of_gradients() -> None:
    text = """
    export def f(x: f32[D]) -> f32[D]:
        slope = grad(sum(x**3), x)
        return grad(sum(slope**2), x)
    """
    same(run(text, x=V), 36 * V**3)


def test_stop_cuts() -> None:
    text = """
    export def f(x: f32[D]) -> f32[D]:
        loss = sum(x * stop(x**2))
        return grad(loss, x)
    """
    same(run(text, x=V), V**2)


def test_gradients_of_lists_and_members_and_missing_ones() -> None:
    text = f"""{PAIR}
export def f(p: Pair, q: Pair, x: f32[2]) -> (params(Pair), f32[2], f32[2, 3], f32[2]):
    loss = sum(p(x))
    gp, ga = grad(loss, [p, p.a])
    return gp, ga, grad(loss, p.b), grad(loss, q.a, missing=zero)
"""
    gb = np.repeat((A + A)[:, None], 3, 1)
    out = run(text, p_a=A, p_b=BB, x=A)
    same(out, BB.sum(1), gb, BB.sum(1), gb, 0 * A)


def test_gradient_of_a_lazy_branch_is_zero_where_it_is_not_taken() -> None:
    text = """
    export def f(x: f32[D]) -> f32[D]:
        y[i] = sqrt(x[i]) if x[i] > 0 else 0
        return grad(sum(y), x)
    """
    x = np.array([4.0, -1.0, 0.0])
    same(run(text, x=x), [0.25, 0, 0])


# ---- control --------------------------------------------------------------------------------------


def test_static_conditions_select_code() -> None:
    text = """
    module M(k=2, wide=false):
        def forward(x: real[B]) -> real[B]:
            if k > 2 and not wide:
                y = x * k
            elif wide:
                y = x + 100
            else:
                y = x - k
            return y
    export def f(a: M, b: M(k=3), c: M(3, wide=true), x: f32[B]) -> (f32[B], f32[B], f32[B]):
        return a(x), b(x), c(x)
    """
    same(run(text, x=U), U - 2, U * 3, U + 100)


def test_run_time_conditions_select_values_and_storage() -> None:
    text = """
    export def f(inout x: f32[D], limit: f32) -> f32:
        scale = 1.0
        if norm(x) > limit:
            scale = limit / norm(x)
            x := x * scale
        else:
            x[0] := 0
        return scale
    """
    n = np.sqrt((V**2).sum())
    out = run(text, x=V, limit=0.1)
    same(out, 0.1 / n)
    np.testing.assert_allclose(out.writes["x"], V * 0.1 / n)
    out = run(text, x=V, limit=100.0)
    same(out, 1.0)
    np.testing.assert_allclose(out.writes["x"], np.array([0, *V[1:]]))


def test_static_loops() -> None:
    text = """
    export def f(x: f32[B, 3]) -> f32[B]:
        y = zeros[B]
        for i in 3:
            if i % 2 == 0: y = y + x[:, i]
        return y
    """
    x = array(2, 3)
    same(run(text, x=x), x[:, 0] + x[:, 2])


def test_loops_over_run_time_sizes() -> None:
    text = """
    export def f(x: f32[T, D]) -> (f32[T, D], f32[D]):
        h = zeros[D]
        hs = for t in T:
            h = 0.5 * h + x[t]
            yield h
        return hs, h
    """
    h, hs = np.zeros(4), []
    for row in X:
        h = 0.5 * h + row
        hs.append(h)
    same(run(text, x=X), np.array(hs), h)


def test_early_returns_of_static_branches() -> None:
    text = """
    module M(deep=true):
        def forward(x: real[B]) -> real[B]:
            if deep:
                return 2 * x
            return x
    export def f(a: M, b: M(deep=false), x: f32[B]) -> f32[B] = a(x) + b(x)
    """
    same(run(text, x=U), 3 * U)


# ---- sizes ----------------------------------------------------------------------------------------


def test_ranges_agree_by_where_clauses() -> None:
    text = """
    def first(x: real[T], y: real[S]) -> real where T <= S:
        return sum[i](x[i] * y[i])
    export def f(x: f32[T], y: f32[S]) -> f32 where T <= S:
        return first(x, y) + first(x[0:1], y) if true else 0
    """
    text = text.replace(" + first(x[0:1], y) if true else 0", "")
    same(run(text, x=U, y=V), U @ V[:3])


def test_equations_of_where_clauses_hold_everywhere() -> None:
    text = """
    def diagonal(x: real[S, T]) -> real[S] where S == T:
        y[i] = x[i, i]
        return y
    export def f(x: f32[B, T], y: f32[Y, B]) -> (f32[B, B], f32[B]) where B == T, Y = B + 1:
        z[b] = y[b + 1, b]
        return x + y[1:], z + diagonal(x)
    """
    x, y = array(3, 3), array(4, 3)
    same(run(text, x=x, y=y), x + y[1:], np.diag(y[1:]) + np.diag(x))


def test_quotients_of_sizes_are_exact_in_an_index() -> None:
    text = """
    export def f(x: f32[B, D]) -> f32[B, D]:
        lo[b, i:D/2] = x[b, i + D/2] - x[b, D - D/2 - 1 - i]
        hi[b, i:D/2] = x[b, i] + x[b, 2*(D/2) - 1 - i]
        return concat(lo, hi, over=1)
    """
    x = array(3, 6)
    low, high = x[:, 3:] - x[:, 2::-1], x[:, :3] + x[:, :2:-1]
    same(run(text, x=x), np.concatenate([low, high], 1))


def test_exact_quotients_cancel() -> None:
    text = """
    def heads(x: real[B, D], H: dim) -> real[B, D] where 1 <= H:
        y[b, h, e] = x[b, (h:H, e:D/H)] * h
        z[b, (h, e)] = y[b, h, e]
        return z
    export def f(x: f32[B, 4]) -> f32[B, 4] = heads(x, 2)
    """
    text = text.replace("def heads(x: real[B, D], H: dim)", "def heads(x: real[B, H*K], H: dim)")
    text = text.replace("real[B, D] where", "real[B, H*K] where").replace("D/H", "K")
    same(run(text, x=X), X * [0, 0, 1, 1])


def test_least_and_greatest_sizes() -> None:
    text = """
    export def f(x: f32[A], y: f32[B]) -> f32[min(A, B)]:
        z[i:min(A, B)] = x[i] * y[i]
        return z
    """
    same(run(text, x=U, y=V), U * V[:3])


def test_conditions_prove_bounds() -> None:
    text = """
    export def f(x: f32[A], y: f32[B]) -> f32[A + B]:
        z[i:A+B] = x[i] if i < A else y[i - A]
        return z
    """
    same(run(text, x=U, y=V), np.concatenate([U, V]))


# ---- programs of the library ------------------------------------------------------------------------


def test_cross_entropy_and_linear() -> None:
    text = """
    from std.loss import cross_entropy
    export def f(x: f32[B, C], t: i32[B]) -> f32 = cross_entropy(x, t)
    """
    t = np.array([0, 3, 1], np.int32)
    logp = X - np.log(np.exp(X).sum(1, keepdims=True))
    same(run(text, x=X, t=t), -logp[np.arange(3), t].mean())


def test_convolution_of_the_library() -> None:
    text = """
    from std.nn import Conv2d
    export def f(c: Conv2d(2, 3, 3, stride=2, pad=1), x: f32[B, 2, H, W]) -> f32[B, 3, (H-1)//2+1, (W-1)//2+1]:
        return c(x)
    """
    x, w = array(1, 2, 5, 4), array(3, 2, 3, 3)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    want = np.zeros((1, 3, 3, 2))
    for i in range(3):
        for j in range(2):
            patch = padded[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            want[:, :, i, j] = np.einsum("bcuv,ocuv->bo", patch, w)
    same(run(text, c_weight=w, x=x), want)


def test_batch_norm_keeps_statistics() -> None:
    text = """
    from std.nn import BatchNorm
    export def train(inout n: BatchNorm(3), x: f32[B, 3, T]) -> f32[B, 3, T] = n!(x)
    """
    x = array(4, 3, 5)
    mean, var = x.mean((0, 2)), x.var((0, 2))
    out = run(text, n_weight=np.ones(3), n_running_var=np.ones(3), x=x)
    shape = (1, 3, 1)
    same(out, (x - mean.reshape(shape)) / np.sqrt(var + 1e-5).reshape(shape))
    np.testing.assert_allclose(out.writes["n.running_mean"], 0.1 * mean)
    np.testing.assert_allclose(out.writes["n.running_var"], 0.9 + 0.1 * var * 20 / 19)


def test_random_numbers_depend_on_the_path_and_nothing_else() -> None:
    text = """
    def noise(n: dim) -> real[n] = normal!([n])
    export def f(n: dim) -> (f32[n], f32[n], f32[n]):
        return noise!(n), noise!(n), uniform!([n])
    """
    a, b, u = run(text, n=64).results
    again = run(text, n=64).results
    assert (a == again[0]).all() and (a != b).all() and (u >= 0).all() and (u < 1).all()


def test_tests_become_graphs() -> None:
    text = """
    def f(x: real[..N]) -> real[..N] = 2 * x
    test "doubles":
        x = ones[3]
        assert all(f(x) == 2)
        assert sum(f(x)) > 5
    """
    done = checked(text)
    assert done.elaborated is not None
    ((title, graph, asserts),) = done.elaborated.tests
    assert title == "doubles" and len(asserts) == 2
    assert all(interpret(graph, {}, {}).results)


# ---- corners --------------------------------------------------------------------------------------


def test_bounds_are_those_of_the_slice_that_is_read() -> None:
    text = """
    def at(row: real[K], i: i32) -> real = row[i else 9]
    export def f(x: f32[B, 4], n: i32[B]) -> f32[B]:
        y[b] = at(x[b, 1:3], n[b])
        return y
    """
    n = np.array([0, 2, -1], np.int32)
    same(run(text, x=X, n=n), [X[0, 1], 9, 9])


def test_else_of_a_part_and_else_of_an_element() -> None:
    text = """
    def at(row: real[K], i: dim) -> real = row[i else 2]
    export def f(x: f32[2, 3]) -> f32[3, 4]:
        y[a:3, b:4] = at(x[a else 1], b)
        return y
    """
    x = array(2, 3)
    want = np.full((3, 4), 2.0)
    want[:2, :3], want[2, :3] = x, 1
    same(run(text, x=x), want)


def test_a_branch_that_is_not_taken_reads_nothing() -> None:
    text = """
    export def f(x: f32[D], n: i32[N]) -> (f32[N], f32[N]):
        y[i] = x[n[i]] if n[i] >= 0 else 0
        z[i] = sum[k:2](x[n[i] + k]) if n[i] >= 0 else 0
        return y, z
    """
    n = np.array([1, -7, 2], np.int32)
    same(run(text, x=V, n=n), [V[1], 0, V[2]], [V[1] + V[2], 0, V[2] + V[3]])


def test_index_statements_inside_functions_of_elements() -> None:
    text = """
    def energy(row: real[D], scale: real) -> real:
        z[i] = row[i] * scale
        s = sum(z * z)
        return s / (1 + s)
    export def f(x: f32[B, D], c: f32[B]) -> f32[B]:
        y[b] = energy(x[b], c[b]) if c[b] > 0 else -1
        return y
    """
    s = ((X * U[:, None]) ** 2).sum(1)
    same(run(text, x=X, c=U), np.where(U > 0, s / (1 + s), -1))


def test_gathers_of_computed_tensors() -> None:
    text = """
    export def f(x: f32[B, D], n: i32[K]) -> (f32[K, D], f32[K]):
        return (x + 1)[n], concat(x, 2 * x, over=0)[n, 0] + sum(x, over=1)[n]
    """
    n = np.array([2, 0], np.int32)
    both = np.concatenate([X, 2 * X])
    same(run(text, x=X, n=n), (X + 1)[n], both[n, 0] + X.sum(1)[n])


def test_a_local_that_one_branch_writes() -> None:
    text = """
    def bump(inout a: real[D], v: real) -> real:
        a[0] := v
        return v
    export def f(x: f32[4], limit: f32) -> (f32[4], f32):
        y = x
        r = 0.0
        if limit > 0:
            r = bump(y, limit)
        y[1] := 5
        return y, r
    """
    yes, no = V.copy(), V.copy()
    yes[0], yes[1], no[1] = 2, 5, 5
    same(run(text, x=V, limit=2.0), yes, 2)
    same(run(text, x=V, limit=-1.0), no, 0)


def test_reductions_of_literals() -> None:
    text = """
    export def f(x: f32[B, D]) -> (f32, i32, f32[B]):
        part = where(x > 0, 1, 0)
        y[b] = mean[d](1 if x[b, d] > 0 else 0)
        return mean(part), sum(part), y
    """
    same(run(text, x=X), (X > 0).mean(), (X > 0).sum(), (X > 0).mean(1))


def test_bytes_wrap_and_shifts_of_indices() -> None:
    text = """
    export def f(x: u8[K], m: bool[K]) -> (u8[K], bool[K], i32):
        y[k:K] = x[(k + 1) % K]
        return x + y, m and not m, sum(i32(x))
    """
    x = np.array([200, 100, 7], np.uint8)
    y = np.roll(x, -1)
    same(run(text, x=x, m=np.array([True, False, True])), x + y, [False] * 3, x.astype(int).sum())


def test_static_lists_of_modules_and_their_slices() -> None:
    text = f"""{LINEAR}
module Net(D=4):
    layers = [Linear(D, D) for l in 3]
    def forward(x: real[B, D]) -> real[B, D]:
        for layer in layers[1:]: x = layer(x)
        return x + layers[0].bias
export def f(net: Net, x: f32[B, 4]) -> f32[B, 4] = net(x)
"""
    w1, w2 = array(4, 4, seed=1), array(4, 4, seed=2)
    got = run(text, net_layers_1_weight=w1, net_layers_2_weight=w2, net_layers_0_bias=V, x=X)
    same(got, X @ w1.T @ w2.T + V)


def test_an_inout_module_is_written_by_a_function() -> None:
    text = f"""{PAIR}
def decay(inout p: Pair, by: real) -> real:
    p := by * p
    p.a[0] := 3
    return norm(p)
export def f(inout p: Pair) -> f32 = decay(p, 0.5)
"""
    out = run(text, p_a=A, p_b=BB)
    np.testing.assert_allclose(out.writes["p.a"], [3, A[1] / 2])
    np.testing.assert_allclose(out.writes["p.b"], BB / 2)
    same(out, np.sqrt(9 + (A[1] / 2) ** 2 + (BB**2).sum() / 4))


# ---- what is checked at entry -----------------------------------------------------------------------


def entry_checks(text: str) -> list[str]:
    done = checked(text)
    assert done.elaborated is not None
    return [c.text for c in done.elaborated.exports[0].signature.checks]


def test_where_clauses_and_exact_quotients_are_checked_at_entry() -> None:
    text = "export def f(x: f32[B, T], H: dim) -> f32[B, T/H, H] where 2 <= T:\n"
    text += "    y[b, i, h] = x[b, (i, h:H)]\n    return y\n"
    assert entry_checks(text) == ["2 <= T", "H >= 1", "T % H == 0"]


def test_assertions_on_sizes_are_checked_at_entry() -> None:
    text = """
    def g(x: real[N]) -> real[N]:
        assert N < 9
        return x
    export def f(x: f32[B], n: dim) -> f32[n]:
        assert n >= 2 and n <= B, "too few"
        return g(x[:n])
    """
    assert entry_checks(text) == ["n >= 2 (too few)", "n <= B (too few)", "N < 9"]


def test_an_exact_half_is_half() -> None:
    text = """
    export def f(x: f32[T]) -> f32[T/2]:
        y[t:T/2] = x[2*t] - x[2*t + 1]
        return y
    """
    assert set(entry_checks(text)) == {"T % 2 == 0"}


def test_sizes_that_may_be_negative_are_checked_at_entry() -> None:
    text = "export def f(x: f32[B]) -> f32[B - 5]:\n    y[i:B-5] = x[i + 5]\n    return y\n"
    assert entry_checks(text) == ["B-5 >= 0"]


def test_divisors_are_checked_at_entry() -> None:
    text = "export def f(x: f32[B], n: dim) -> f32[B]:\n    y[b:B] = x[b // n]\n    return y\n"
    assert "n >= 1" in entry_checks(text.replace("x[b // n]", "x[b] * (B // n)"))


def test_any_expression_can_be_read_at_indices() -> None:
    text = """
    module Lin(I, O):
        param w: real[O, I] = 1
        def forward(x: real[B, I]) -> real[B, O]:
            y[n, o] = sum[i](x[n, i] * w[o, i])
            return y
        def twice(x: real[B, I]) -> real[B, O] = 2 * forward(x)
    module A(D):
        q = Lin(D, D)
        l = [Lin(D, D) for i in 2]
        def forward(x: real[B, D]) -> real[D, B]:
            y[e, b] = q(x)[b, e] + l[0](x)[b, e] + q.twice(x)[b, e]
            z[e, b] = (x + 1)[b, e] - (-x)[b, e]
            return y + z
    export def f(net: A(2), x: f32[B, 2]) -> f32[2, B] = net(x)
    """
    x = np.array([[1.0, 2.0], [3.0, 4.0], [0.5, 0.25]])
    weights = {"net_q_w": np.eye(2), "net_l_0_w": np.eye(2), "net_l_1_w": np.eye(2)}
    assert np.allclose(run(text, x=x, **weights).results[0], 6 * x.T + 1)


def test_half_of_an_assertedly_even_size() -> None:
    checked("""
    def turned(x: real[B, 2*K]) -> real[B, 2*K] = concat(-x[:, K:], x[:, :K], over=1)
    module A(D, H, K=D/H):
        assert K % 2 == 0
        param w: real[K] = 1
        def forward(x: real[B, K]) -> real[B, K]:
            return turned(x) * w + concat(x[:, K/2:], x[:, :K/2], over=1)
    export def f(net: A(8, 2), x: f32[B, 4]) -> f32[B, 4] = net(x)
    """)


def test_what_is_built_in_may_be_imported_with_its_family() -> None:
    checked("""
    from std.random import bernoulli, uniform, normal
    export def f(x: f32[B]) -> f32[B] = x * f32(bernoulli!(x)) + uniform!([B]) + normal!([B])
    """)


def test_a_return_while_training_does_not_hide_what_follows() -> None:
    done = checked("""
    module Centre(D):
        state mu: real[D] = 0
        def forward(x: real[B, D]) -> real[B, D]:
            if train:
                mu := mean(x, over=0)
                return x - mean(x, over=0)
            return x - mu
    export def f(net: Centre(3), x: f32[B, 3]) -> f32[B, 3] = net(x)
    export def g(inout net: Centre(3), x: f32[B, 3]) -> f32[B, 3] = net!(x)
    """)
    assert not done.text


def test_rows_of_a_hessian() -> None:
    text = """
    export def hessian(x: f32[N]) -> f32[N, N]:
        y = total(x**3)
        g = grad(y, x)
        rows = for i in N:
            yield grad(g[i], x)
        return rows
    """
    assert np.allclose(run(text, x=[1.0, -2.0]).results[0], [[6, 0], [0, -12]])


def test_a_sum_of_no_probability_has_no_gradient() -> None:
    text = """
    export def f(x: f32[N, C]) -> f32[N, C]:
        l[n] = logsumexp[c](x[n, c])
        kept = total(where(l > -inf, l, 0)) + total(where(l > -inf, logsumexp(x, over=C), 0))
        return grad(kept, x)
    """
    x = [[0.0, 0.0], [-np.inf, -np.inf], [-np.inf, 5.0]]
    assert np.allclose(run(text, x=x).results[0], [[1, 1], [0, 0], [0, 2]])


def test_where_two_sizes_are_equal_the_numbers_decide() -> None:
    text = """
    module R(I, O, s=1):
        param w: real[O, I] = 1
        def forward(x: real[B, I]) -> real[B, O]:
            y = x @ w.T
            if s == 1 and I == O:
                y = y + x
            return y
    module S(I, O):
        param w: real[O, I] = 1
        def forward(x: real[B, I]) -> real[B, O]:
            return x if I == O else x @ w.T
        def same(x: real[B, I]) -> real[B, O]:
            if not (I != O):
                return x
            else:
                return x @ w.T
    export def f(a: R(2, 2), b: S(2, 3), c: S(3, 3), x: f32[B, 2]) -> f32[B, 3]:
        return c.same(c(b(a(x))))
    """
    x = np.array([[1.0, 2.0]])
    out = run(text, x=x, a_w=np.eye(2), b_w=np.ones((3, 2)), c_w=np.zeros((3, 3)))
    assert np.allclose(out.results[0], [[6, 6, 6]])


def test_a_tensor_made_in_a_turn_is_written_by_an_inner_loop() -> None:
    text = """
    export def f(x: f32[K], T: dim) -> f32[K]:
        s = 1 * x
        for t in T:
            new = zeros[K]
            count = i32(new)
            for j in K:
                new[j] := new[j] + s[j] + 1
                count[j] := 1
            s = new + f32(count)
        return s
    """
    assert np.allclose(run(text, x=[1.0, 5.0], T=3).results[0], [7, 11])


def test_the_ends_of_a_range_tell_where_an_index_is_elsewhere() -> None:
    text = """
    export def f(x: f32[T]) -> (f32[T], f32[T]):
        y[t] = x[t] if t == 0 else x[t] - x[t - 1]
        z[t] = x[t + 1] if t != T - 1 else x[t]
        return y, z
    """
    y, z = run(text, x=[1.0, 4.0, 9.0]).results
    assert np.allclose(y, [1, 3, 5]) and np.allclose(z, [4, 9, 9])


def test_either_side_of_a_static_condition_yields() -> None:
    text = """
    module M(k=true, D=1):
        def forward(x: real[T, D]) -> real[T, D]:
            ys = for t in T:
                if k:
                    yield 2 * x[t]
                else:
                    yield x[t]
            return ys
    export def f(a: M, b: M(k=false), x: f32[T, 1]) -> f32[T, 1]:
        return a(x) + b(x)
    """
    assert np.allclose(run(text, x=[[1.0], [2.0]]).results[0], [[3], [6]])
