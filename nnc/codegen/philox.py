"""Philox4x32-10 and the distributions made of it, on scalars and vectors.

The same numbers as `nnc.ir.scalar.philox`: words are kept in 64-bit lanes below 2**32, so that one
multiplication gives both halves of a product.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import pi

from nnc.codegen.instructions import Instructions
from nnc.codegen.registers import REGISTER
from nnc.lang.types import DType

_MASK = 0xFFFFFFFF


def emit(ops: Instructions, fn: str, dtype: DType, args: Sequence[str], lanes: int) -> str:
    """`random_uniform` or `random_normal` in f32 or f64 of i64 (seed, stream, step, element)."""
    a, b = philox(ops, args, lanes)
    a = _int(ops, "lshr", a, 8, lanes)
    if fn == "random_uniform":
        return _scaled(ops, dtype, a, 2.0**-24, lanes)
    return _normal(ops, dtype, a, _int(ops, "lshr", b, 8, lanes), lanes)


def philox(ops: Instructions, args: Sequence[str], lanes: int) -> tuple[str, str]:
    """Two 32-bit words in i64 lanes."""
    seed, stream, step, element = args

    def two(name: str, a: str, b: str) -> str:
        return ops.two(name, "i64", a, b, lanes)

    def low(x: str) -> str:
        return _int(ops, "and", x, _MASK, lanes)

    def high(x: str) -> str:
        return _int(ops, "lshr", x, 32, lanes)

    key = two("add", _int(ops, "mul", seed, 0x9E3779B97F4A7C15, lanes), stream)
    k0, k1 = low(key), high(key)
    c0, c1, c2, c3 = low(element), high(element), low(step), high(step)
    for turn in range(10):
        p0, p1 = _int(ops, "mul", c0, 0xD2511F53, lanes), _int(ops, "mul", c2, 0xCD9E8D57, lanes)
        c0, c2 = two("xor", two("xor", high(p1), c1), k0), two("xor", two("xor", high(p0), c3), k1)
        c1, c3 = low(p1), low(p0)
        if turn < 9:
            k0 = low(_int(ops, "add", k0, 0x9E3779B9, lanes))
            k1 = low(_int(ops, "add", k1, 0xBB67AE85, lanes))
    return c0, c1


def _normal(ops: Instructions, dtype: DType, a: str, b: str, lanes: int) -> str:
    """Box and Muller: sqrt(-2 log u1) cos(2 pi u2).

    The angle is reduced in integers, to a quadrant and the exact distance from its middle, so that
    the cosine is accurate near its zeros too.
    """
    u1 = _scaled(ops, dtype, _int(ops, "add", a, 1, lanes), 2.0**-24, lanes)
    log = ops.call("log", dtype, lanes, u1)
    radius = ops.two("fmul", dtype, log, ops.lit(dtype, -2.0, lanes), lanes)
    radius = ops.intrinsic("sqrt", dtype, lanes, radius)
    quadrant = _int(ops, "lshr", _int(ops, "add", b, 1 << 21, lanes), 22, lanes)
    rest = ops.two("sub", "i64", b, _int(ops, "shl", quadrant, 22, lanes), lanes)
    angle = _scaled(ops, dtype, rest, 2 * pi * 2.0**-24, lanes)
    sin, cos = _sin_cos(ops, dtype, angle, lanes)
    odd = ops.convert("trunc", quadrant, "i64", "i1", lanes)
    wave = ops.choose(odd, sin, cos, dtype, lanes)
    turned = _int(ops, "and", _int(ops, "add", quadrant, 1, lanes), 2, lanes)
    negative = ops.two("icmp ne", "i64", turned, ops.lit("i64", 0, lanes), lanes)
    minus = ops.em.op(f"fneg {_vector(dtype, lanes)} {wave}")
    wave = ops.choose(negative, minus, wave, dtype, lanes)
    return ops.two("fmul", dtype, radius, wave, lanes)


# (sin(x) / x - 1) / x**2 and (cos(x) - 1 + x**2 / 2) / x**4 in x**2, |x| <= pi/4: interpolated at
# Chebyshev's points, off by less than 2e-8 and 2e-9.
_SIN = (-0.16666664662314376, 0.008332748270629553, -0.0001958789088038702)
_COS = (0.04166666465950221, -0.0013888303035895359, 2.4547942085150376e-05)


def _sin_cos(ops: Instructions, dtype: DType, x: str, lanes: int) -> tuple[str, str]:
    """Of |x| <= pi/4; in f32 without what other arguments would need."""
    if dtype != "f32":
        return ops.call("sin", dtype, lanes, x), ops.call("cos", dtype, lanes, x)

    def times(a: str, b: str) -> str:
        return ops.two("fmul", dtype, a, b, lanes)

    def add(a: str, b: str, c: str) -> str:
        """a * b + c, in one rounding where there is an instruction for it."""
        if ops.target.fma:
            return ops.intrinsic("fma", dtype, lanes, a, b, c)
        return ops.two("fadd", dtype, times(a, b), c, lanes)

    def polynomial(coefficients: Sequence[float]) -> str:
        out, *rest = (ops.lit(dtype, c, lanes) for c in reversed(coefficients))
        for c in rest:
            out = add(out, z, c)
        return out

    z = times(x, x)
    one, half = ops.lit(dtype, 1.0, lanes), ops.lit(dtype, -0.5, lanes)
    sin = add(times(z, x), polynomial(_SIN), x)
    return sin, add(times(z, z), polynomial(_COS), add(z, half, one))


def _vector(dtype: DType, lanes: int) -> str:
    return REGISTER[dtype] if lanes == 1 else f"<{lanes} x {REGISTER[dtype]}>"


def _int(ops: Instructions, op: str, x: str, constant: int, lanes: int) -> str:
    return ops.two(op, "i64", x, ops.lit("i64", constant, lanes), lanes)


def _scaled(ops: Instructions, dtype: DType, x: str, scale: float, lanes: int) -> str:
    """A small signed i64 as a float, times `scale`."""
    narrow = ops.convert("trunc", x, "i64", "i32", lanes)
    number = ops.convert("sitofp", narrow, "i32", REGISTER[dtype], lanes)
    return ops.two("fmul", dtype, number, ops.lit(dtype, scale, lanes), lanes)
