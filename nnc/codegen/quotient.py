"""Vectors divided by one number, without a division for each vector: with the very same bits.

With r = 1/c rounded, q = x*r is within one unit in the last place of x/c, the rest x - q*c is
exact, and q + rest*r, rounded once, is x/c rounded correctly (Markstein 1990), unless the bits of
c's significand are all ones. The numbers must be far from the ends of the range of exponents; for
vectors where some are not there is the division. (+0 is fine; -0 would lose its sign.)
"""

from __future__ import annotations

import struct

from nnc.codegen.emit import Emitter
from nnc.codegen.instructions import Instructions
from nnc.codegen.registers import REGISTER, splat, wide
from nnc.lang.types import DType

_FORMATS = {"f32": ("i32", 32, 23, 127), "f64": ("i64", 64, 52, 1023)}
_RANGE = {"f32": 60, "f64": 450}  # exponents of x and c lie between minus and plus this


def power_of_two(text: str) -> float | None:
    """1/c for a literal c whose reciprocal is exact."""
    if not text.startswith("0x"):
        return None
    (value,) = struct.unpack(">d", bytes.fromhex(text[2:]))
    bits = struct.unpack(">Q", struct.pack(">d", value))[0]
    exponent = (bits >> 52 & 2047) - 1023
    exact = bits & ((1 << 52) - 1) == 0 and abs(exponent) < 100
    return float(1 / value) if exact else None


def divisor(em: Emitter, dtype: DType, c: str) -> tuple[str, str]:
    """Of a number: its reciprocal, and whether `quotient` may use it (an i1)."""
    ty, (bits, _, mantissa, _) = REGISTER[dtype], _FORMATS[dtype]
    r = em.op(f"fdiv {ty} 1.0, {c}", "r")
    ones = (1 << mantissa) - 1
    low = em.op(f"and {bits} {em.op(f'bitcast {ty} {c} to {bits}', 'c')}, {ones}", "c")
    odd = em.op(f"icmp ne {bits} {low}, {ones}", "ok")
    return r, em.op(f"and i1 {odd}, {_inside(em, dtype, c, 1)}", "ok")


def quotient(ops: Instructions, dtype: DType, x: str, by: tuple[str, str, str], lanes: int) -> str:
    """x / c; `by`: c and 1/c (as vectors), and whether that may be used (an i1)."""
    em, (c, r, ok) = ops.em, by
    v, number = wide(REGISTER[dtype], lanes), wide(_FORMATS[dtype][0], lanes)
    bits = em.op(f"bitcast {v} {x} to {number}", "x")
    zero = em.op(f"icmp eq {number} {bits}, zeroinitializer", "zero")
    good = em.op(f"or <{lanes} x i1> {_inside(em, dtype, x, lanes)}, {zero}", "good")
    good = em.op(f"bitcast <{lanes} x i1> {good} to i{lanes}", "good")
    all_ = em.op(f"and i1 {em.op(f'icmp eq i{lanes} {good}, -1', 'all')}, {ok}", "all")
    fast, slow, done = (em.fresh(t) for t in ("near", "far", "divided"))
    em.line(f"br i1 {all_}, label %{fast}, label %{slow}")
    em.label(fast)
    q = em.op(f"fmul {v} {x}, {r}", "q")
    rest = ops.intrinsic("fma", dtype, lanes, em.op(f"fneg {v} {q}", "q"), c, x)
    exact = ops.intrinsic("fma", dtype, lanes, rest, r, q)
    em.line(f"br label %{done}")
    em.label(slow)
    other = em.op(f"fdiv {v} {x}, {c}", "q")
    em.line(f"br label %{done}")
    em.label(done)
    return em.op(f"phi {v} [ {exact}, %{fast} ], [ {other}, %{slow} ]", "q")


def _inside(em: Emitter, dtype: DType, x: str, lanes: int) -> str:
    """Whether the magnitude is 2**-n ... 2**n."""
    bits, width, mantissa, bias = _FORMATS[dtype]
    n, ty = _RANGE[dtype], wide(bits, lanes)

    def of(value: int) -> str:
        return splat(em, bits, str(value), lanes)

    number = em.op(f"bitcast {wide(REGISTER[dtype], lanes)} {x} to {ty}", "x")
    size = em.op(f"and {ty} {number}, {of((1 << width - 1) - 1)}", "size")
    above = em.op(f"sub {ty} {size}, {of((bias - n) << mantissa)}", "size")
    return em.op(f"icmp ult {ty} {above}, {of((2 * n) << mantissa)}", "inside")
