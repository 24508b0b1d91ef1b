"""Every scalar function, from the table: dtype rule, value against a reference, gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from nnc.ir.expr import Const, Expr, Load, Op
from nnc.ir.graph import Graph, Node
from nnc.ir.interpret import numpy_dtype, run
from nnc.ir.scalar import SCALARS, op, philox
from nnc.lang.types import DTYPES, is_float, is_int
from nnc.passes.autodiff import autodiff
from nnc.passes.verify import RULES, verify
from tests.graphs import axes, check_gradients, comp, grads, graph, inp, load

N = 24
DTYPES_OF = {
    "float": ["f32", "f64", "f16", "bf16"],
    "number": ["f32", "f64", "i32", "i64", "i8", "u8"],
    "integer": ["i32", "i64", "i8", "u8"],
    "word": ["i32"],
    "compare": ["f32", "i32", "i64", "u8"],
    "logic": ["bool"],
    "power": ["f32", "f64", "i32", "u8"],
    "random": ["i64"],
    "cast": ["f32", "i32", "bool"],
}

# Independent references: the standard library, one number at a time.
REFERENCE: dict[str, Callable[..., float]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "neg": lambda a: -a,
    "fma": lambda a, b, c: a * b + c,
    "powi": lambda a, n: a**n,
    "pow": math.pow,
    "min": min,
    "max": max,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "and": lambda a, b: a and b,
    "or": lambda a, b: a or b,
    "not": lambda a: not a,
    "isfinite": math.isfinite,
    "bitand": lambda a, b: a & b,
    "bitor": lambda a, b: a | b,
    "bitxor": lambda a, b: a ^ b,
    "shl": lambda a, b: a << b,
    "shr": lambda a, b: a >> b,
    "dot4": lambda a, b: sum(
        (a >> s & 255) * ((b >> s & 255) ^ 128) - (a >> s & 255) * 128 for s in (0, 8, 16, 24)
    ),
    "abs": abs,
    "sign": lambda a: (a > 0) - (a < 0),
    "floor": math.floor,
    "ceil": math.ceil,
    "round": round,
    "sqrt": math.sqrt,
    "rsqrt": lambda a: 1 / math.sqrt(a),
    "exp": math.exp,
    "expm1": math.expm1,
    "log": math.log,
    "log1p": math.log1p,
    "log2": math.log2,
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "asin": math.asin,
    "acos": math.acos,
    "atan": math.atan,
    "atan2": math.atan2,
    "sinh": math.sinh,
    "cosh": math.cosh,
    "tanh": math.tanh,
    "sigmoid": lambda a: 1 / (1 + math.exp(-a)),
    "erf": math.erf,
    "erfc": math.erfc,
    "lgamma": math.lgamma,
    "digamma": lambda a: (math.lgamma(a + 1e-5) - math.lgamma(a - 1e-5)) / 2e-5,
    "cast": lambda a: a,
}
POSITIVE = {"sqrt", "rsqrt", "log", "log2", "pow", "lgamma", "digamma"}
UNIT = {"asin", "acos", "log1p"}
NAMES = [n for n in SCALARS if not n.startswith("random")]


def dtype_of(name: str, k: int, dtype: str) -> str:
    return "i32" if SCALARS[name].rule == "power" and k == 1 else dtype


def values_for(name: str, dtype: str, k: int) -> np.ndarray:
    """Numbers inside the domain, away from kinks and overflow."""
    rng = np.random.default_rng(k + 1)
    if dtype == "bool":
        return rng.integers(0, 2, N).astype(bool)
    if name == "powi" and k == 1:
        return rng.integers(0 if is_int(dtype) else -2, 4, N)
    if is_int(dtype):
        low = 1 if name in ("floordiv", "mod", "shl", "shr") and k else 0 if dtype == "u8" else -4
        return rng.integers(low, 4, N)
    if name in POSITIVE:
        return rng.uniform(0.3, 2.5, N)
    return (
        rng.uniform(0.1, 0.8, N)
        * np.where(rng.random(N) < 0.5, -1, 1)
        * (1 if name in UNIT else 2.3)
    )


def build(name: str, dtype: str) -> tuple[Graph, list[np.ndarray]]:
    row = SCALARS[name]
    inputs = [inp(f"a{k}", N, dtype=dtype_of(name, k, dtype)) for k in range(row.arity)]
    args = tuple(load(i, "$i") for i in inputs)
    e = Op("f64", "cast", args) if name == "cast" else op(name, *args)
    arrays = [values_for(name, i.type.dtype, k) for k, i in enumerate(inputs)]
    return graph([comp(e, axes(i=N))], inputs), arrays


CASES = [
    (n, t) for n in NAMES for t in DTYPES_OF[SCALARS[n].rule] if is_float(t) or n != "isfinite"
]


@pytest.mark.parametrize("name, dtype", CASES)
def test_value_and_dtype_rule(name: str, dtype: str) -> None:
    g, arrays = build(name, dtype)
    verify(g, "building")
    got = run(g, {}, {f"a{k}": a for k, a in enumerate(arrays)}).results[0]
    want = [REFERENCE[name](*(x.item() for x in row)) for row in zip(*arrays, strict=True)]
    out = g.results[0].type.dtype
    if is_int(out):
        bits = DTYPES[out].bits
        wrapped = np.array([int(w) % 2**bits for w in want], dtype=object)
        np.testing.assert_array_equal(got.astype(object) % 2**bits, wrapped)
    else:
        tolerance = 1e-6 if name == "digamma" else 1e-13
        np.testing.assert_allclose(got, np.array(want, numpy_dtype(out)), tolerance, 1e-300)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_dtypes_are_caught(name: str) -> None:
    row = SCALARS[name]
    rule = RULES[row.rule]
    if row.rule == "cast":
        assert rule("f32", ("i8",))
        return
    wrong = {"float": "i32", "number": "bool", "integer": "f32", "logic": "i32"}
    bad = wrong.get(row.rule)
    assert not rule(bad, (bad,) * row.arity) if bad else not rule("f16", ("f16", "i64"))


@pytest.mark.parametrize("name", NAMES)
def test_gradient(name: str) -> None:
    row = SCALARS[name]
    if row.partials is None and name != "cast":
        pytest.skip("no derivative")
    g, arrays = build(name, "f64")
    named = {f"a{k}": a for k, a in enumerate(arrays)}
    wrt = [i for i in g.inputs if is_float(i.type.dtype)]
    check_gradients(g.results[0], wrt, g.inputs, {}, named, tolerance=3e-6)


@pytest.mark.parametrize("name", [n for n in NAMES if SCALARS[n].arity == 1])
def test_second_derivative(name: str) -> None:
    """The derivative of the derivative against differences of the derivative."""
    g, arrays = build(name, "f64")
    (x,) = g.inputs
    if SCALARS[name].partials is None or name in ("lgamma",):
        pytest.skip("no second derivative")
    total = comp(load(g.results[0], "$i"), (), "sum", axes(i=N))
    first = grads(total, x)[0]
    again: Node = comp(load(first, "$i"), (), "sum", axes(i=N))
    second = grads(again, x)[0]
    explicit = autodiff(graph([first, second], [x]))
    h, a = 1e-6, arrays[0]
    up, down = (run(explicit, {}, {"a0": a + s}).results[0] for s in (h, -h))
    got = run(explicit, {}, {"a0": a}).results[1]
    np.testing.assert_allclose(got, (up - down) / (2 * h), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("p", [0.0, 1.0, 2.0, 3.0])
def test_pow_at_zero(p: float) -> None:
    """d x**p / dx at 0 is what the polynomial says; the derivative by p is 0 there."""
    x, e = inp("x"), inp("e")
    y = comp(op("pow", load(x), load(e)))
    g = autodiff(graph(grads(y, x, e), [x, e]))
    dx, de = run(g, {}, {"x": 0.0, "e": p}).results
    assert (dx, de) == ({1.0: 1.0}.get(p, 0.0), 0.0)


@pytest.mark.parametrize("n", [0, 1, 2, 3, -1, -2])
def test_integer_powers_by_constants(n: int) -> None:
    x = inp("x", 3)
    y = comp(op("powi", load(x, "$i"), Const("i32", n)), axes(i=3))
    if n == 0:
        (found,) = run(autodiff(graph(grads(_sum(y), x), [x])), {}, {"x": [0, 1, 2]}).results
        np.testing.assert_array_equal(found, 0)
        return
    check_gradients(y, [x], [x], values={"x": np.array([0.5, -1.5, 2.0])})


def _sum(y: Node) -> Node:
    return comp(load(y, "$i"), (), "sum", axes(i=3))


def test_ties_of_max_and_min_give_the_first_operand_everything() -> None:
    a, b = inp("a", 3), inp("b", 3)
    for fn in ("max", "min"):
        y = comp(op(fn, load(a, "$i"), load(b, "$i")), axes(i=3))
        found = run(autodiff(graph(grads(_sum(y), a, b), [a, b])), {}, {"a": [1] * 3, "b": [1] * 3})
        np.testing.assert_array_equal(found.results[0], 1)
        np.testing.assert_array_equal(found.results[1], 0)


def test_nan_goes_through_max_and_min() -> None:
    a, b = inp("a", 2), inp("b", 2)
    for fn in ("max", "min"):
        y = comp(op(fn, load(a, "$i"), load(b, "$i")), axes(i=2))
        got = run(graph([y]), {}, {"a": [np.nan, 1], "b": [1, np.nan]}).results[0]
        assert np.isnan(got).all()


def test_philox_is_the_published_generator() -> None:
    """Known answers of the Random123 library for Philox4x32-10 with counter and key all zero."""
    a, b = philox(0, 0, 0, 0)
    assert (int(a), int(b)) == (0x6627E8D5, 0xE169C58D)


def test_random_numbers_are_uniform_and_normal() -> None:
    n = 20_000
    element = Op("i64", "cast", (load(inp("e", n, dtype="i64"), "$i"),))
    args: tuple[Expr, ...] = (Const("i64", 7), Const("i64", -3), Const("i64", 0), element)
    for name, mean, var in (("random_uniform", 0.5, 1 / 12), ("random_normal", 0.0, 1.0)):
        y = comp(Op("f32", name, args), axes(i=n))
        got = run(graph([y]), {}, {"e": np.arange(n)}).results[0]
        assert abs(got.mean() - mean) < 0.02 and abs(got.var() - var) < 0.03
        assert isinstance(args[3], Op) and isinstance(element.args[0], Load)
