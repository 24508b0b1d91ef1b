"""The scalar functions: one table, one entry each. Back ends, interpreter and autodiff are total
over it.

An entry holds: arity, dtype rule, what it is, its NumPy reference (float64 or integer arrays), its
partial derivatives as expressions of operands and result, and the accuracy promised for f32 (in
ulp).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import erf, erfc, lgamma
from typing import Any

import numpy as np

from nnc.ir.expr import Const, Expr, Idx, Op, Select, as_dtype
from nnc.lang.types import DType, is_float

Partials = Callable[[tuple[Expr, ...], Expr], tuple[Expr | None, ...]]


@dataclass(frozen=True)
class Scalar:
    """One scalar function.

    `rule`: float (one float dtype in and out), number (one dtype in and out), integer, word (i32 in
    and out), compare (one dtype in, bool out), logic (bool in and out), power (any number to an
    i32), random (i64 in, float out), cast. `partials`: None when the derivative is zero or
    undefined everywhere (floor, comparisons, integers).
    """

    name: str
    arity: int
    rule: str
    doc: str
    numpy: Callable[..., Any]
    partials: Partials | None = None
    ulp: float = 0.0  # 0: exactly rounded
    user: bool = True  # callable by this name from the language
    slow: bool = False  # several times as long as an addition, though exactly rounded

    @property
    def costly(self) -> bool:
        """Whether it takes several times as long as an addition."""
        return self.slow or self.ulp > 0


# ---- expression shorthands ----------------------------------------------------------------------


def const(value: float, like: Expr | DType) -> Const:
    dtype = like if isinstance(like, str) else like.dtype
    return Const(dtype, float(value) if is_float(dtype) else int(value))


def op(fn: str, *args: Expr) -> Expr:
    """`fn` applied; the result dtype follows the function's rule."""
    rule = SCALARS[fn].rule
    return Op("bool" if rule in ("compare", "logic") else args[0].dtype, fn, args)


def is_const(e: Expr, value: float) -> bool:
    return isinstance(e, Const) and e.value == value and not isinstance(e.value, bool)


def add(a: Expr, b: Expr) -> Expr:
    return b if is_const(a, 0) else a if is_const(b, 0) else op("add", a, b)


def sub(a: Expr, b: Expr) -> Expr:
    return op("sub", a, b)


def mul(a: Expr, b: Expr) -> Expr:
    return b if is_const(a, 1) else a if is_const(b, 1) else op("mul", a, b)


def div(a: Expr, b: Expr) -> Expr:
    return op("div", a, b)


def neg(a: Expr) -> Expr:
    return op("neg", a)


def select(cond: Expr, a: Expr, b: Expr) -> Expr:
    return Select(a.dtype, cond, a, b)


def under(conds: Sequence[Expr], e: Expr, other: float = 0) -> Expr:
    """A number where all conditions hold, each looked at only where those before do; else zero
    (`other`; `nnc.ir.expr.guards` takes it apart)."""
    for c in reversed(conds):
        e = select(c, e, const(other, e))
    return e


def cast(e: Expr, dtype: DType) -> Expr:
    if isinstance(e, Const):
        return Const(dtype, _const_cast(e.value, dtype))
    if isinstance(e, Idx) and e.dim.const is not None:
        return Const(dtype, _const_cast(e.dim.const, dtype))
    return as_dtype(e, dtype)


def _const_cast(value: float, dtype: DType) -> float | int | bool:
    if dtype == "bool":
        return bool(value)
    return float(value) if is_float(dtype) else int(value)


# ---- NumPy references that NumPy has not ---------------------------------------------------------


def _erf(x: Any) -> Any:
    return np.vectorize(erf, otypes=[np.float64])(x)


def _erfc(x: Any) -> Any:
    return np.vectorize(erfc, otypes=[np.float64])(x)


def _lgamma(x: Any) -> Any:
    def one(v: float) -> float:
        if v != v or v in (float("inf"), float("-inf")):
            return v * v
        return float("inf") if v <= 0 and v == int(v) else lgamma(v)

    return np.vectorize(one, otypes=[np.float64])(x)


def _powi(x: Any, n: Any) -> Any:
    if np.issubdtype(np.asarray(x).dtype, np.floating):
        return np.power(x, np.asarray(n, dtype=np.float64))
    return np.power(x, np.maximum(n, 0))


def _max(a: Any, b: Any) -> Any:
    return np.maximum(a, b)


def _sigmoid(x: Any) -> Any:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def _dot4(a: Any, b: Any) -> Any:
    a, b = np.asarray(a), np.asarray(b)
    total = np.zeros_like(a + b)
    for shift in (0, 8, 16, 24):
        x, y = (a >> shift) & 255, (b >> shift) & 255
        total = total + x * np.where(y > 127, y - 256, y)
    return total.astype(a.dtype)


_MASK = np.uint64(0xFFFFFFFF)


def philox(seed: Any, stream: Any, step: Any, element: Any) -> tuple[Any, Any]:
    """Two 32-bit words of Philox4x32-10 (Salmon et al., 2011), as uint64 arrays.

    The key is the 64-bit number `seed * 0x9E3779B97F4A7C15 + stream` (wrapping; low word first),
    the counter is (element low, element high, step low, step high); words 0 and 1 of the output are
    returned.
    """
    seed, stream, step, element = (
        np.asarray(v).astype(np.int64).astype(np.uint64) for v in (seed, stream, step, element)
    )
    with np.errstate(over="ignore"):
        key = seed * np.uint64(0x9E3779B97F4A7C15) + stream
    shift = np.uint64(32)
    k0, k1 = key & _MASK, key >> shift
    c0, c1, c2, c3 = element & _MASK, element >> shift, step & _MASK, step >> shift
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ k0, p1 & _MASK, (p0 >> shift) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & _MASK, (k1 + np.uint64(0xBB67AE85)) & _MASK
    return c0, c1


def _uniform(seed: Any, stream: Any, step: Any, element: Any) -> Any:
    return (philox(seed, stream, step, element)[0] >> np.uint64(8)).astype(np.float64) * 2.0**-24


def _normal(seed: Any, stream: Any, step: Any, element: Any) -> Any:
    a, b = (w >> np.uint64(8) for w in philox(seed, stream, step, element))
    u1, u2 = (a.astype(np.float64) + 1) * 2.0**-24, b.astype(np.float64) * 2.0**-24
    return np.sqrt(-2 * np.log(u1)) * np.cos(2 * np.pi * u2)


# ---- derivatives ---------------------------------------------------------------------------------


def _d_pow(a: tuple[Expr, ...], y: Expr) -> tuple[Expr | None, ...]:
    x, p = a
    dx = select(op("eq", p, const(0, p)), const(0, p), mul(p, op("pow", x, sub(p, const(1, p)))))
    safe = select(op("gt", x, const(0, x)), x, const(1, x))
    return dx, select(op("gt", x, const(0, x)), mul(y, op("log", safe)), const(0, x))


def _d_powi(a: tuple[Expr, ...], y: Expr) -> tuple[Expr | None, ...]:
    x, n = a
    if isinstance(n, Const):
        k = int(n.value)
        if k == 0:
            return None, None
        return mul(const(k, x), op("powi", x, const(k - 1, n)) if k != 2 else x), None
    less = mul(cast(n, x.dtype), op("powi", x, sub(n, const(1, n))))
    return select(op("eq", n, const(0, n)), const(0, x), less), None


def _extremum(cmp: str) -> Partials:
    """max and min: the gradient goes to the first operand on ties."""

    def partials(a: tuple[Expr, ...], y: Expr) -> tuple[Expr | None, ...]:
        first = op(cmp, a[0], a[1])
        one, zero = const(1, y), const(0, y)
        return select(first, one, zero), select(first, zero, one)

    return partials


def _one(f: Callable[[Expr, Expr], Expr]) -> Partials:
    """Derivative of a function of one operand, from operand and result."""
    return lambda a, y: (f(a[0], y),)


def _c(v: float, x: Expr) -> Const:
    return const(v, x)


_SQRT_PI = 1.772453850905516
_LN2 = 0.6931471805599453


def _d_lgamma(x: Expr, y: Expr) -> Expr:
    return op("digamma", x)


def _digamma(x: Any) -> Any:
    """Digamma by recurrence to x >= 10 and the asymptotic series; reflection below 0."""
    x = np.asarray(x, dtype=np.float64)
    reflect = x < 0.5
    z = np.where(reflect, 1 - x, x)
    out = np.zeros_like(z)
    for _ in range(10):
        small = z < 10
        out = np.where(small, out - 1 / z, out)
        z = np.where(small, z + 1, z)
    i = 1 / (z * z)
    series = i * (1 / 12 - i * (1 / 120 - i * (1 / 252 - i * (1 / 240 - i * (1 / 132)))))
    out = out + np.log(z) - 0.5 / z - series
    return np.where(reflect, out - np.pi / np.tan(np.pi * x), out)


def _table() -> dict[str, Scalar]:
    f, n = "float", "number"
    rows = [
        # arithmetic
        Scalar("add", 2, n, "a + b", np.add, lambda a, y: (_c(1, y), _c(1, y)), user=False),
        Scalar("sub", 2, n, "a - b", np.subtract, lambda a, y: (_c(1, y), _c(-1, y)), user=False),
        Scalar("mul", 2, n, "a * b", np.multiply, lambda a, y: (a[1], a[0]), user=False),
        Scalar(
            "div",
            2,
            f,
            "a / b",
            np.divide,
            lambda a, y: (div(_c(1, y), a[1]), neg(div(y, a[1]))),
            user=False,
            slow=True,
        ),
        Scalar("floordiv", 2, "integer", "floor(a / b)", np.floor_divide, user=False, slow=True),
        Scalar("mod", 2, "integer", "a - b * floor(a / b)", np.mod, user=False, slow=True),
        Scalar("neg", 1, n, "-a", np.negative, lambda a, y: (_c(-1, y),), user=False),
        Scalar(
            "fma",
            3,
            f,
            "a * b + c, rounded once",
            lambda a, b, c: a * b + c,
            lambda a, y: (a[1], a[0], _c(1, y)),
        ),
        Scalar("powi", 2, "power", "a to an integer; 0**0 = 1", _powi, _d_powi, 4.0, user=False),
        Scalar("pow", 2, f, "a to the power b", np.power, _d_pow, 4.0),
        Scalar("min", 2, n, "the smaller; NaN if one is NaN", np.minimum, _extremum("le")),
        Scalar("max", 2, n, "the larger; NaN if one is NaN", _max, _extremum("ge")),
        # comparisons and logic
        Scalar("eq", 2, "compare", "a == b", np.equal, user=False),
        Scalar("ne", 2, "compare", "a != b", np.not_equal, user=False),
        Scalar("lt", 2, "compare", "a < b", np.less, user=False),
        Scalar("le", 2, "compare", "a <= b", np.less_equal, user=False),
        Scalar("gt", 2, "compare", "a > b", np.greater, user=False),
        Scalar("ge", 2, "compare", "a >= b", np.greater_equal, user=False),
        Scalar("and", 2, "logic", "both", np.logical_and, user=False),
        Scalar("or", 2, "logic", "either", np.logical_or, user=False),
        Scalar("not", 1, "logic", "negation", np.logical_not, user=False),
        Scalar("isfinite", 1, "compare", "neither NaN nor infinite", np.isfinite),
        # integers
        Scalar("bitand", 2, "integer", "bitwise and", np.bitwise_and),
        Scalar("bitor", 2, "integer", "bitwise or", np.bitwise_or),
        Scalar("bitxor", 2, "integer", "bitwise exclusive or", np.bitwise_xor),
        Scalar("shl", 2, "integer", "a * 2**b, wrapping", np.left_shift),
        Scalar("shr", 2, "integer", "floor(a / 2**b)", np.right_shift),
        Scalar(
            "dot4",
            2,
            "word",
            "the sum of products of four bytes, those of a unsigned, those of b signed",
            _dot4,
            user=False,
            slow=True,
        ),
        # rounding and sign
        Scalar("abs", 1, n, "absolute value", np.abs, _one(lambda x, y: op("sign", x))),
        Scalar("sign", 1, n, "-1, 0 or 1", np.sign),
        Scalar("floor", 1, f, "largest integer not above", np.floor),
        Scalar("ceil", 1, f, "smallest integer not below", np.ceil),
        Scalar("round", 1, f, "nearest integer, ties to even", np.round),
        # roots, exponentials, logarithms
        Scalar(
            "sqrt", 1, f, "square root", np.sqrt, _one(lambda x, y: div(_c(0.5, x), y)), slow=True
        ),
        Scalar(
            "rsqrt",
            1,
            f,
            "1 / sqrt(x)",
            lambda x: 1 / np.sqrt(x),
            _one(lambda x, y: mul(_c(-0.5, x), div(y, x))),
            2.0,
        ),
        Scalar("exp", 1, f, "e**x", np.exp, _one(lambda x, y: y), 2.0),
        Scalar(
            "expm1",
            1,
            f,
            "e**x - 1, accurate near 0",
            np.expm1,
            _one(lambda x, y: op("exp", x)),
            2.0,
        ),
        Scalar("log", 1, f, "natural logarithm", np.log, _one(lambda x, y: div(_c(1, x), x)), 2.0),
        Scalar(
            "log1p",
            1,
            f,
            "log(1 + x), accurate near 0",
            np.log1p,
            _one(lambda x, y: div(_c(1, x), add(_c(1, x), x))),
            2.0,
        ),
        Scalar(
            "log2",
            1,
            f,
            "logarithm to base 2",
            np.log2,
            _one(lambda x, y: div(_c(1 / _LN2, x), x)),
            4.0,
        ),
        # trigonometry
        Scalar("sin", 1, f, "sine (radians)", np.sin, _one(lambda x, y: op("cos", x)), 2.0),
        Scalar("cos", 1, f, "cosine (radians)", np.cos, _one(lambda x, y: neg(op("sin", x))), 2.0),
        Scalar(
            "tan",
            1,
            f,
            "tangent (radians)",
            np.tan,
            _one(lambda x, y: add(_c(1, x), mul(y, y))),
            4.0,
        ),
        Scalar(
            "asin",
            1,
            f,
            "inverse sine",
            np.arcsin,
            _one(lambda x, y: op("rsqrt", sub(_c(1, x), mul(x, x)))),
            4.0,
        ),
        Scalar(
            "acos",
            1,
            f,
            "inverse cosine",
            np.arccos,
            _one(lambda x, y: neg(op("rsqrt", sub(_c(1, x), mul(x, x))))),
            4.0,
        ),
        Scalar(
            "atan",
            1,
            f,
            "inverse tangent",
            np.arctan,
            _one(lambda x, y: div(_c(1, x), add(_c(1, x), mul(x, x)))),
            4.0,
        ),
        Scalar(
            "atan2",
            2,
            f,
            "angle of the point (b, a)",
            np.arctan2,
            lambda a, y: (
                div(a[1], add(mul(a[0], a[0]), mul(a[1], a[1]))),
                neg(div(a[0], add(mul(a[0], a[0]), mul(a[1], a[1])))),
            ),
            4.0,
        ),
        Scalar("sinh", 1, f, "hyperbolic sine", np.sinh, _one(lambda x, y: op("cosh", x)), 4.0),
        Scalar("cosh", 1, f, "hyperbolic cosine", np.cosh, _one(lambda x, y: op("sinh", x)), 4.0),
        Scalar(
            "tanh",
            1,
            f,
            "hyperbolic tangent",
            np.tanh,
            _one(lambda x, y: sub(_c(1, x), mul(y, y))),
            2.0,
        ),
        # the rest
        Scalar(
            "sigmoid",
            1,
            f,
            "1 / (1 + exp(-x))",
            _sigmoid,
            _one(lambda x, y: mul(y, sub(_c(1, x), y))),
            2.0,
        ),
        Scalar(
            "erf",
            1,
            f,
            "error function",
            _erf,
            _one(lambda x, y: mul(_c(2 / _SQRT_PI, x), op("exp", neg(mul(x, x))))),
            2.0,
        ),
        Scalar(
            "erfc",
            1,
            f,
            "1 - erf(x), accurate for large x",
            _erfc,
            _one(lambda x, y: mul(_c(-2 / _SQRT_PI, x), op("exp", neg(mul(x, x))))),
            4.0,
        ),
        Scalar("lgamma", 1, f, "log |gamma(x)|", _lgamma, _one(_d_lgamma), 4.0),
        Scalar("digamma", 1, f, "derivative of lgamma", _digamma, None, 16.0),
        # randomness and conversion
        Scalar(
            "random_uniform",
            4,
            "random",
            "uniform in [0, 1) of (seed, stream, step, element)",
            _uniform,
            user=False,
            slow=True,
        ),
        Scalar(
            "random_normal",
            4,
            "random",
            "standard normal of (seed, stream, step, element)",
            _normal,
            None,
            16.0,
            user=False,
        ),
        Scalar(
            "cast",
            1,
            "cast",
            "conversion: floats to integers truncate and saturate, NaN is 0",
            lambda x: x,
            user=False,
        ),
    ]
    return {row.name: row for row in rows}


SCALARS: dict[str, Scalar] = _table()


def partials(e: Op) -> tuple[Expr | None, ...]:
    """d e / d operand for each operand; None is zero. (A float cast passes the cotangent, cast
    back.)"""
    entry = SCALARS[e.fn]
    if entry.partials is None or not is_float(e.dtype):
        return (None,) * len(e.args)
    return entry.partials(e.args, e)
