"""Bodies of the trigonometric functions and their inverses, on f64 unless said.

`single` bodies get an argument that came from f32 and a result that goes back to it: they use
shorter polynomials and drop the low words. Sines and cosines of moderate f32 are computed in f32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nnc.codegen import vecmath_poly as poly
from nnc.codegen.vecmath_vec import (
    Body,
    Vec,
    absolute,
    call,
    constant,
    copysign,
    fast_two_sum,
    fma,
    horner,
    rarely,
    rint,
    select,
    two_sum,
    vector_type,
)

HALF_PI = (1.5707963267948966, 6.123233995736766e-17, -1.4973849048591698e-33)
TWO_OVER_PI = 0.6366197723675814
MODERATE = 2.0**30  # beyond it, arguments are reduced with all the digits of 2/pi that matter

CHUNKS = "@nn.two_over_pi"
CHUNK_SCALE = 256  # arguments are scaled by 2**-256 and the table by 2**256: both stay normal


def tables() -> dict[str, str]:
    """The constant arrays that bodies refer to, by name."""
    values = (math.ldexp(c, CHUNK_SCALE - 26 * (i + 1)) for i, c in enumerate(poly.TWO_OVER_PI))
    digits = ", ".join(f"double {constant('f64', 1, value)}" for value in values)
    return {CHUNKS: f"{CHUNKS} = internal constant [{len(poly.TWO_OVER_PI)} x double] [{digits}]"}


@dataclass(frozen=True)
class Reduced:
    """An argument less `quadrant` times pi/2: |high + low| <= pi/4."""

    high: Vec
    low: Vec
    quadrant: Vec  # i64, only the two lowest bits count


def _reduce(x: Vec, single: bool) -> Reduced:
    magic = x.format.magic
    shifted = fma(x, TWO_OVER_PI, magic)
    n = shifted - magic
    r = fma(n, -HALF_PI[0], x)  # exact
    # n times the second word can exceed r by far: its product is subtracted in double precision.
    step = n * -HALF_PI[1]
    high, error = two_sum(r, step)
    low = fma(n, -HALF_PI[2], error + fma(n, -HALF_PI[1], -step))
    huge = ~absolute(x).lt(MODERATE)
    high, low, shifted = rarely(huge, [high, low, shifted], lambda: _reduce_huge(x, single))
    return Reduced(high, low, shifted.bits())


def _reduce_huge(x: Vec, single: bool) -> list[Vec]:
    """high, low and the shifted quadrant of `_reduce` for any |x| >= 1 (Payne and Hanek).

    x times each 26-bit digit of 2/pi is exact, and so is its remainder modulo 4: the sum of the
    remainders loses nothing but its last rounding, however large x is. NaN for inf and NaN.
    """
    scaled = x * 2.0**-CHUNK_SCALE
    if single:
        parts = [scaled]  # 24 bits
    else:
        front = (scaled.bits() & ~((1 << 26) - 1)).as_float()
        parts = [front, scaled - front]
    count = 10 if single else len(poly.TWO_OVER_PI)
    total, error, turns = _sum_of_remainders(x.body, parts, count)
    total, error = fast_two_sum(total, error)
    high = total * HALF_PI[0]
    low = fma(total, HALF_PI[0], -high) + fma(total, HALF_PI[1], error * HALF_PI[0])
    return [high, low, turns + x.format.magic]


def _sum_of_remainders(body: Body, parts: list[Vec], count: int) -> tuple[Vec, Vec, Vec]:
    """The loop of `_reduce_huge`: sum of parts * 2/pi as fraction, its error, and integer mod 4."""
    emitter, before = body.emitter, body.block
    loop, done = emitter.fresh("digits"), emitter.fresh("summed")
    names = [f"%{emitter.fresh(hint)}" for hint in ("total", "error", "turns")]
    state = [Vec(body, "f64", f"%{emitter.fresh('old')}") for _ in names]
    index, following = f"%{emitter.fresh('index')}", f"%{emitter.fresh('next')}"
    emitter.line(f"br label %{loop}")
    body.label(loop)
    zero = body.number("f64", 0.0)
    emitter.line(f"{index} = phi i64 [ 0, %{before} ], [ {following}, %{loop} ]")
    for old, new in zip(state, names, strict=True):
        emitter.line(f"{old.ref} = phi {old.type} [ {zero.ref}, %{before} ], [ {new}, %{loop} ]")
    digit = _digit(body, index)
    total, error, turns = state
    for part in parts:
        total, error, turns = _add_remainder(part * digit, total, error, turns)
    # A name known before the loop: the phi above refers to it.
    for new, value in zip(names, (total, error, turns), strict=True):
        emitter.line(f"{new} = fadd {value.text}, {body.number('f64', -0.0).ref}")
    emitter.line(f"{following} = add i64 {index}, 1")
    more = emitter.op(f"icmp ult i64 {following}, {count}")
    emitter.line(f"br i1 {more}, label %{loop}, label %{done}")
    body.label(done)
    final = [Vec(body, "f64", name) for name in names]
    return final[0], final[1], final[2]


def _digit(body: Body, index: str) -> Vec:
    """A scaled digit of 2/pi in all lanes."""
    body.tables.add(CHUNKS)
    address = body.emitter.op(f"getelementptr double, ptr {CHUNKS}, i64 {index}")
    digit = Vec(body, "f64", body.emitter.op(f"load double, ptr {address}"))
    if body.lanes == 1:
        return digit
    kind = vector_type("f64", body.lanes)
    one = body.op("f64", f"insertelement {kind} poison, double {digit.ref}, i64 0")
    mask = f"<{body.lanes} x i32> zeroinitializer"
    return body.op("f64", f"shufflevector {one.text}, {kind} poison, {mask}")


def _add_remainder(term: Vec, total: Vec, error: Vec, turns: Vec) -> tuple[Vec, Vec, Vec]:
    whole = rint(term)
    turns = turns + (whole - rint(whole * 0.25) * 4.0)
    total, rounded = two_sum(total, term - whole)
    carry = rint(total)
    return total - carry, error + rounded, turns + carry


def _sin_kernel(r: Reduced, single: bool) -> Vec:
    x = r.high
    z = x * x
    cube = z * x
    if single:
        return fma(cube, horner(z, poly.SIN["single"]), x)
    return x + fma(cube, horner(z, poly.SIN["f64"]), fma(z * -0.5, r.low, r.low))


def _cos_kernel(r: Reduced, single: bool) -> Vec:
    z = r.high * r.high
    if single:
        return fma(z * z, horner(z, poly.COS["single"]), fma(z, -0.5, 1.0))
    half = z * 0.5
    w = 1.0 - half
    rest = fma(z * z, horner(z, poly.COS["f64"]), -(r.high * r.low))
    return w + (((1.0 - w) - half) + rest)


def _sine(r: Reduced, quadrant: Vec, single: bool) -> Vec:
    """The sine of r.high + r.low + quadrant * pi/2."""
    odd = (quadrant & 1).ne(0)
    value = select(odd, _cos_kernel(r, single), _sin_kernel(r, single))
    return (value.bits() ^ ((quadrant << 62) & value.format.sign_bit)).as_float()


def sin(x: Vec, single: bool = False) -> Vec:
    r = _reduce(x, single)
    return select(x.eq(0.0), x, _sine(r, r.quadrant, single))


def cos(x: Vec, single: bool = False) -> Vec:
    r = _reduce(x, single)
    return _sine(r, r.quadrant + 1, single)


HALF_PI_F32 = (1.57079637050628662109375, -4.371139000186241e-08, -1.7151245100059816e-15)
MODERATE_F32 = 2.0**16  # beyond it, f64 is used


def _sine_f32(x: Vec, turns: int) -> Vec:
    """The sine of x + turns * pi/2 for f32 |x| <= MODERATE_F32."""
    magic = x.format.magic
    shifted = fma(x, TWO_OVER_PI, magic)
    n = shifted - magic
    r = fma(n, -HALF_PI_F32[0], x)  # exact, a multiple of 2**-23 where n is not 0
    step = n * -HALF_PI_F32[1]
    high, error = fast_two_sum(r, step)
    low = fma(n, -HALF_PI_F32[2], error + fma(n, -HALF_PI_F32[1], -step))
    z = high * high
    sine = high + fma(z * high, horner(z, poly.SIN["f32"]), low)
    half = fma(z, -0.5, 1.0)
    rest = fma(z, -0.5, 1.0 - half)
    cosine = half + fma(z * z, horner(z, poly.COS["f32"]), fma(-high, low, rest))
    quadrant = shifted.bits() + turns
    value = select((quadrant & 1).ne(0), cosine, sine)
    return (value.bits() ^ ((quadrant << 30) & x.format.sign_bit)).as_float()


def _in_f32(x: Vec, fn: str, turns: int) -> Vec:
    huge = ~absolute(x).lt(MODERATE_F32)
    far = [_sine_f32(x, turns)]
    return rarely(huge, far, lambda: [call(fn, x.to("f64")).to("f32")])[0]


def sin_f32(x: Vec) -> Vec:
    return select(x.eq(0.0), x, _in_f32(x, "sin", 0))


def cos_f32(x: Vec) -> Vec:
    return _in_f32(x, "cos", 1)


def tan(x: Vec, single: bool = False) -> Vec:
    r = _reduce(x, single)
    sine, cosine = _sin_kernel(r, single), _cos_kernel(r, single)
    odd = (r.quadrant & 1).ne(0)
    value = select(odd, cosine, sine) / select(odd, -sine, cosine)
    return select(x.eq(0.0), x, value)


def _arctangent(a: Vec, b: Vec, single: bool) -> Vec:
    """atan(a / b) for a, b >= 0, not both 0 or inf: one division after reduction to tan(pi/8)."""
    steep = a.gt(b * 2.414213562373095)
    middle = a.gt(b * 0.41421356237309503)
    above = select(steep, -b, select(middle, a - b, a))
    below = select(steep, a, select(middle, a + b, b))
    t = above / below
    quarters = select(steep, a.lift(2.0), select(middle, a.lift(1.0), 0.0))
    z = t * t
    rest = fma(t * z, horner(z, poly.ATAN["single" if single else "f64"]), quarters * QUARTER_PI[1])
    return quarters * QUARTER_PI[0] + (t + rest)


QUARTER_PI = (HALF_PI[0] / 2, HALF_PI[1] / 2)


def atan(x: Vec, single: bool = False) -> Vec:
    a = absolute(x)
    value = _arctangent(select(a.gt(2.0**70), 2.0**70, a), a.lift(1.0), single)
    return copysign(value, x)


def atan2(y: Vec, x: Vec, single: bool = False) -> Vec:
    a, b = absolute(y), absolute(x)
    if not single:
        # Sums of a and b must not overflow, nor quotients of denormals lose their digits.
        large = a.gt(2.0**1000) | b.gt(2.0**1000)
        small = a.lt(2.0**-900) & b.lt(2.0**-900)
        factor = select(large, a.lift(2.0**-100), select(small, a.lift(2.0**100), 1.0))
        a, b = a * factor, b * factor
    same = (a.eq(0.0) & b.eq(0.0)) | (a.eq(math.inf) & b.eq(math.inf))
    diagonal = a.eq(math.inf)  # of the two cases of `same`, that of pi/4
    first = select(same, select(diagonal, a.lift(1.0), 0.0), a)
    angle = _arctangent(first, select(same, 1.0, b), single)
    left = x.bits().lt(0)
    value = copysign(select(left, (HALF_PI[0] * 2 - angle) + HALF_PI[1] * 2, angle), y)
    return select(y.unordered(x), math.nan, value)


def _arcsine_rest(z: Vec, single: bool) -> Vec:
    """asin(r)/r - 1 for z = r**2 <= 1/4."""
    return z * horner(z, poly.ASIN["single" if single else "f64"])


def asin(x: Vec, single: bool = False) -> Vec:
    a = absolute(x)
    outer = a.gt(0.5)
    z = select(outer, (1.0 - a) * 0.5, a * a)
    root = x.body.intrinsic("sqrt", z)
    rest = _arcsine_rest(z, single)
    inner_value = fma(a, rest, a)
    # pi/2 - 2 asin(root), with the rounding error of the root put back.
    error = _root_error(root, z, single)
    low = fma(root, rest, error) * 2.0 - HALF_PI[1]
    outer_value = HALF_PI[0] - fma(root, 2.0, low)
    return copysign(select(outer, outer_value, inner_value), x)


def _root_error(root: Vec, z: Vec, single: bool) -> Vec:
    """sqrt(z) - root."""
    if single:
        return z.lift(0.0)
    return fma(-root, root, z) / fma(root, 2.0, 2.0**-1000)


def acos(x: Vec, single: bool = False) -> Vec:
    a = absolute(x)
    outer = a.gt(0.5)
    z = select(outer, (1.0 - a) * 0.5, a * a)
    root = x.body.intrinsic("sqrt", z)
    rest = _arcsine_rest(z, single)
    # |x| > 1/2: 2 asin(sqrt((1-|x|)/2)), reflected at pi/2 for negative x.
    near = fma(root, 2.0, fma(root, rest, _root_error(root, z, single)) * 2.0)
    far = HALF_PI[0] * 2 - (near - HALF_PI[1] * 2)
    middle = HALF_PI[0] - (x - (HALF_PI[1] - x * rest))
    return select(outer, select(x.lt(0.0), far, near), middle)
