"""Philox4x32-10 and the distributions made of it, on scalars and vectors.

The same numbers as `nnc.ir.scalar.philox`: between the rounds words are kept in 64-bit lanes below
2**32, so that one multiplication gives both halves of a product.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log, pi

from nnc.codegen.instructions import Instructions
from nnc.codegen.registers import REGISTER
from nnc.lang.types import DType

_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57


def emit(ops: Instructions, fn: str, dtype: DType, args: Sequence[str], lanes: int) -> str:
    """`random_uniform` or `random_normal` in f32 or f64 of i64 (seed, stream, step, element)."""
    a, b = (_int(ops, "lshr", w, 8, lanes, "i32") for w in philox(ops, args, lanes))
    if fn == "random_uniform":
        return _scaled(ops, dtype, a, 2.0**-24, lanes)
    return _normal(ops, dtype, _int(ops, "add", a, 1, lanes, "i32"), b, lanes)


def philox(ops: Instructions, args: Sequence[str], lanes: int) -> tuple[str, str]:
    """Two words in i32 lanes."""
    seed, stream, step, element = args

    def two(name: str, a: str, b: str, word: DType = "i64") -> str:
        return ops.two(name, word, a, b, lanes)

    def low(x: str) -> str:
        return _int(ops, "and", x, _MASK, lanes)

    def high(x: str) -> str:
        return _int(ops, "lshr", x, 32, lanes)

    key = two("add", _int(ops, "mul", seed, 0x9E3779B97F4A7C15, lanes), stream)
    k0, k1 = low(key), high(key)
    c0, c1, c2, c3 = low(element), high(element), low(step), high(step)
    for _ in range(9):
        p0, p1 = _int(ops, "mul", c0, _M0, lanes), _int(ops, "mul", c2, _M1, lanes)
        last = c2
        c0, c2 = two("xor", two("xor", high(p1), c1), k0), two("xor", two("xor", high(p0), c3), k1)
        c1, c3 = low(p1), low(p0)
        k0 = low(_int(ops, "add", k0, 0x9E3779B9, lanes))
        k1 = low(_int(ops, "add", k1, 0xBB67AE85, lanes))
    product = _int(ops, "mul", c2, _M1, lanes)
    c1 = _int(ops, "mul", _half(ops, last, 0, lanes), _M1, lanes, "i32")
    mixed = two("xor", _half(ops, product, 1, lanes), c1, "i32")
    return two("xor", mixed, _half(ops, k0, 0, lanes), "i32"), _half(ops, product, 0, lanes)


def _half(ops: Instructions, x: str, which: int, lanes: int) -> str:
    """The low (0) or high (1) words of i64 lanes, in i32."""
    if lanes == 1:
        x = _int(ops, "lshr", x, 32, 1) if which else x
        return ops.convert("trunc", x, "i64", "i32", 1)
    # Of two registers at once: LLVM would narrow each by two instructions and join the results.
    half = lanes // 2
    parts = [_picked(ops, f"<{lanes} x i64>", x, "poison", range(i, i + half)) for i in (0, half)]
    a, b = (ops.em.op(f"bitcast <{half} x i64> {p} to <{lanes} x i32>") for p in parts)
    return _picked(ops, f"<{lanes} x i32>", a, b, range(which, 2 * lanes, 2))


def _picked(ops: Instructions, ty: str, a: str, b: str, lanes: Sequence[int]) -> str:
    order = ", ".join(f"i32 {i}" for i in lanes)
    return ops.em.op(f"shufflevector {ty} {a}, {ty} {b}, <{len(lanes)} x i32> <{order}>")


# -2 log(1 + f) = f (-2 + f P(f)), sqrt(1/2) <= 1 + f <= sqrt(2), and sin(pi x / 2) = x P(x**2),
# |x| <= 1: off by less than 2**-25 of -2 log u for every u <= 1, and by 2**-27.
_LOG = (
    -2.0,
    0.9999983370129181,
    -0.6666839569159839,
    0.500114125841053,
    -0.39912954399914125,
    0.3300651982802776,
    -0.29828413284068944,
    0.2936337916247297,
    -0.18284178857893713,
)
_SIN = (
    1.5707963184469849,
    -0.6459637105885683,
    0.07968967890097321,
    -0.004673766541647291,
    0.00015148509560093966,
)


def _normal(ops: Instructions, dtype: DType, a: str, b: str, lanes: int) -> str:
    """Box and Muller: sqrt(-2 log u1) cos(2 pi u2), with u1 = a 2**-24, u2 = b 2**-24 (i32).

    cos(2 pi u2) = sin(pi x / 2) with x = |4 u2 - 2| - 1, which is exact, so that the cosine is
    accurate near its zeros too.
    """
    turn = ops.convert("sitofp", b, "i32", REGISTER[dtype], lanes)
    quarters, two = (ops.lit(dtype, v, lanes) for v in (2.0**-22, -2.0))
    x = _fma(ops, dtype, turn, quarters, two, lanes)
    x = ops.intrinsic("fabs", dtype, lanes, x)
    x = ops.two("fadd", dtype, x, ops.lit(dtype, -1.0, lanes), lanes)
    if dtype == "f32":
        square, wave = _minus_two_log(ops, a, lanes), _sine(ops, x, lanes)
    else:
        u1 = _scaled(ops, dtype, a, 2.0**-24, lanes)
        square = ops.call("log", dtype, lanes, u1)
        square = ops.two("fmul", dtype, square, ops.lit(dtype, -2.0, lanes), lanes)
        angle = ops.two("fmul", dtype, x, ops.lit(dtype, pi / 2, lanes), lanes)
        wave = ops.call("sin", dtype, lanes, angle)
    return ops.two("fmul", dtype, ops.intrinsic("sqrt", dtype, lanes, square), wave, lanes)


def _minus_two_log(ops: Instructions, a: str, lanes: int) -> str:
    """-2 log(a 2**-24) in f32 of an i32 0 < a <= 2**24.

    a = 2**k (1 + f): `shifted` holds k - 24 in its upper bits, and those of f, counted from
    sqrt(1/2), below.
    """
    root = 0x3F3504F3  # the bits of sqrt(1/2)
    a = ops.convert("sitofp", a, "i32", "float", lanes)
    bits = ops.convert("bitcast", a, "float", "i32", lanes)
    shifted = _int(ops, "sub", bits, root + (24 << 23), lanes, "i32")
    k = _int(ops, "ashr", shifted, 23, lanes, "i32")
    k = ops.convert("sitofp", k, "i32", "float", lanes)
    f = _int(ops, "and", shifted, (1 << 23) - 1, lanes, "i32")
    f = ops.convert("bitcast", _int(ops, "add", f, root, lanes, "i32"), "i32", "float", lanes)
    f = ops.two("fadd", "f32", f, ops.lit("f32", -1.0, lanes), lanes)
    k = ops.two("fmul", "f32", k, ops.lit("f32", -2 * log(2), lanes), lanes)
    return _fma(ops, "f32", f, _horner(ops, f, _LOG, lanes), k, lanes)


def _sine(ops: Instructions, x: str, lanes: int) -> str:
    """sin(pi x / 2) in f32 of |x| <= 1."""
    z = ops.two("fmul", "f32", x, x, lanes)
    return ops.two("fmul", "f32", _horner(ops, z, _SIN, lanes), x, lanes)


def _horner(ops: Instructions, x: str, coefficients: Sequence[float], lanes: int) -> str:
    """The polynomial with these coefficients, lowest order first."""
    out, *rest = (ops.lit("f32", c, lanes) for c in reversed(coefficients))
    for c in rest:
        out = _fma(ops, "f32", out, x, c, lanes)
    return out


def _fma(ops: Instructions, dtype: DType, a: str, b: str, c: str, lanes: int) -> str:
    """a * b + c in one rounding where there is an instruction for it."""
    if ops.target.fma:
        return ops.intrinsic("fma", dtype, lanes, a, b, c)
    return ops.two("fadd", dtype, ops.two("fmul", dtype, a, b, lanes), c, lanes)


def _int(ops: Instructions, op: str, x: str, constant: int, lanes: int, word: DType = "i64") -> str:
    return ops.two(op, word, x, ops.lit(word, constant, lanes), lanes)


def _scaled(ops: Instructions, dtype: DType, x: str, scale: float, lanes: int) -> str:
    """A small i32 as a float, times `scale`."""
    number = ops.convert("sitofp", x, "i32", REGISTER[dtype], lanes)
    return ops.two("fmul", dtype, number, ops.lit(dtype, scale, lanes), lanes)
