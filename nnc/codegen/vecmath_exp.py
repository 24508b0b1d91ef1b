"""Bodies of the exponential and logarithmic functions; generic over f32 and f64 unless said."""

from __future__ import annotations

import math

from nnc.codegen import vecmath_poly as poly
from nnc.codegen.vecmath_vec import (
    Vec,
    absolute,
    call,
    clamp,
    copysign,
    fast_two_sum,
    fma,
    horner,
    rarely,
    rint,
    select,
)


def exp_parts(x: Vec, tail: Vec | None = None, single: bool = False) -> tuple[Vec, Vec]:
    """exp(x + tail) = (1 + q) * 2**n as q and an integer whose low bits hold n.

    |q| < 0.42; x must be clamped to where n fits the exponent. `single`: an f64 x whose result is
    rounded to f32.
    """
    q, _, n_bits = _exp_parts(x, tail, single)
    return q, n_bits


def _exp_parts(x: Vec, tail: Vec | None = None, single: bool = False) -> tuple[Vec, Vec, Vec]:
    """`exp_parts` with n as a float too."""
    form = x.format
    shifted = fma(x, form.log2e[0], form.magic)
    n = shifted - form.magic
    r = fma(n, -form.ln2[1], fma(n, -form.ln2[0], x))
    if tail is not None:
        r = r + tail
    q = fma(r * r, horner(r, poly.EXP["single" if single else x.kind]), r)
    return q, n, shifted.bits()


def power_of_two(n_bits: Vec, offset: int) -> Vec:
    """2**(n + offset) for the integer of `exp_parts`; the result must be a normal number."""
    form = {"i32": "f32", "i64": "f64"}[n_bits.kind]
    fmt = n_bits.body.number(form, 0.0).format
    return ((n_bits + (fmt.bias + offset)) << fmt.mantissa).as_float()


def scale(p: Vec, n_bits: Vec) -> Vec:
    """p * 2**n in two steps, so that overflow and gradual underflow round once."""
    form = p.format
    magic_bits = ((form.bias + form.mantissa) << form.mantissa) | (1 << form.mantissa - 1)
    biased = n_bits - (magic_bits - 2 * form.bias)  # n + 2 bias > 0
    first = biased >> 1
    second = biased - first
    m = form.mantissa
    return p * (first << m).as_float() * (second << m).as_float()


def _limits(x: Vec) -> tuple[float, float]:
    """Arguments below and above which exp is 0 and inf after rounding."""
    return (-104.0, 89.0) if x.kind == "f32" else (-746.0, 710.0)


def exp(x: Vec) -> Vec:
    q, n, n_bits = _exp_parts(clamp(x, *_limits(x)))
    if x.body.scalef and x.body.lanes * (4 if x.kind == "f32" else 8) in (32, 64):
        return x.body.scaled(q + 1.0, n)  # the same bits as `scale`
    return scale(q + 1.0, n_bits)


def expm1(x: Vec) -> Vec:
    low = -20.0 if x.kind == "f32" else -40.0
    q, n = exp_parts(clamp(x, low, _limits(x)[1]))
    power = power_of_two(n, -1)  # 2**n itself may overflow
    half = fma(power, q, power - 0.5)
    tiny = 2.0 ** -(x.format.mantissa + 2)  # below it expm1(x) = x, also for denormals and -0
    return select(absolute(x).lt(tiny), x, half + half)


def tanh(x: Vec) -> Vec:
    saturated = 10.0 if x.kind == "f32" else 20.0
    a = clamp(absolute(x), None, saturated)
    q, n = exp_parts(a + a)
    power = power_of_two(n, 0)
    e = fma(power, q, power - 1.0)  # exp(2a) - 1
    z = a * a
    inner = fma(a * z, horner(z, poly.TANH[x.kind]), a)  # here the quotient is up to 3 ulp off
    return copysign(select(a.lt(0.4), inner, e / (e + 2.0)), x)


def sigmoid(x: Vec) -> Vec:
    """1 / (1 + exp(-x)), both sides scaled so that exp does not overflow before the result is 0."""
    down, up, shift = (20.0, 104.0, 32) if x.kind == "f32" else (40.0, 746.0, 128)
    q, n = exp_parts(-clamp(x, -up, down))
    power = power_of_two(n, -shift)
    return 2.0**-shift / (fma(power, q, 2.0**-shift) + power)


def _quarter_exp(x: Vec) -> tuple[Vec, Vec]:
    """q and 2**n / 4 of `exp_parts` for |x|, which is held to just above where cosh overflows."""
    q, n = exp_parts(clamp(absolute(x), None, 89.7 if x.kind == "f32" else 710.7))
    return q, power_of_two(n, -2)


def sinh(x: Vec) -> Vec:
    q, power = _quarter_exp(x)
    e = fma(power, q, power - 0.25)  # (exp(|x|) - 1) / 4
    value = fma(e, 2.0, e / fma(e, 2.0, 0.5))
    tiny = 2.0 ** -(x.format.mantissa // 2 + 2)  # below it sinh(x) = x
    return select(absolute(x).lt(tiny), x, copysign(value, x))


def cosh(x: Vec) -> Vec:
    q, power = _quarter_exp(x)
    e = fma(power, q, power)  # exp(|x|) / 4
    return fma(e, 2.0, 0.125 / e)


def split(x: Vec) -> tuple[Vec, Vec]:
    """x = 2**k (1 + f) with sqrt(1/2) <= 1 + f < sqrt(2), for finite x > 0, as floats k and f."""
    form = x.format
    m = form.mantissa
    denormal = x.lt(form.tiny)
    bits = select(denormal, x * 2.0 ** (m + 1), x).bits()
    biased_k, fraction = split_bits(bits)
    anchor = 2.0**m
    k = (biased_k | x.lift(anchor).bits()).as_float()
    k = k - select(denormal, x.lift(anchor + form.bias + m + 1), anchor + form.bias)
    return k, fraction - 1.0


def split_bits(bits: Vec) -> tuple[Vec, Vec]:
    """The bits of a positive normal number as k + bias (an integer) and 1 + f (a float)."""
    m, bias, root = _anchor_of(bits)
    offset = bits + ((bias << m) - root)
    return offset >> m, ((offset & ((1 << m) - 1)) + root).as_float()


def _anchor_of(bits: Vec) -> tuple[int, int, int]:
    """Mantissa width, bias and the bits of sqrt(1/2) of the float kind of this width."""
    return (23, 127, 0x3F3504F3) if bits.kind == "i32" else (52, 1023, 0x3FE6A09E667F3BCD)


def _log_f32(f: Vec) -> Vec:
    """log(1 + f) - f for f32."""
    square = f * f
    return fma(square, -0.5, square * f * horner(f, poly.LOG_F32))


def _log_f64(f: Vec, single: bool = False) -> tuple[Vec, Vec]:
    """f**2/2 and y with log(1 + f) = f - (f**2/2 - y) for f64."""
    s = f / (f + 2.0)
    z = s * s
    half = f * f * 0.5
    return half, s * fma(z, horner(z, poly.LOG["single" if single else "f64"]), half)


def log_of_parts(k: Vec, f: Vec, single: bool = False) -> Vec:
    """k ln 2 + log(1 + f)."""
    high, low = f.format.ln2
    if f.kind == "f32":
        square = f * f
        y = fma(k, low, square * f * horner(f, poly.LOG_F32))
        return fma(k, high, f + fma(square, -0.5, y))
    half, y = _log_f64(f, single)
    return fma(k, high, f - (half - fma(k, low, y)))


def _log_special(x: Vec, value: Vec, zero: float) -> Vec:
    """`value` with the right results for x at and below `zero`, at inf and for NaN."""
    pole = select(x.eq(zero), x.lift(-math.inf), math.nan)
    return select(x.gt(zero), select(x.lt(math.inf), value, x), pole)


def log(x: Vec) -> Vec:
    return _log_special(x, log_of_parts(*split(x)), 0.0)


def log1p(x: Vec) -> Vec:
    m, bias = x.format.mantissa, x.format.bias
    biased_k, _ = split_bits((x + 1.0).bits())
    k = (biased_k | x.lift(2.0**m).bits()).as_float() - (2.0**m + bias)
    # f = (1 + x) 2**-k - 1 with one rounding: no correction term is needed. Four times 2**-k, since
    # 2**-(bias+1) itself is denormal; x/4 is inexact only where x itself is returned.
    power4 = ((2 * bias + 2 - biased_k) << m).as_float()
    f = fma(x * 0.25, power4, fma(power4, 0.25, -1.0))
    value = _log_special(x, log_of_parts(k, f), -1.0)
    return select(absolute(x).lt(2.0 ** -(m + 2)), x, value)


def log2(x: Vec) -> Vec:
    k, f = split(x)
    if x.kind == "f32":
        high, low = fast_two_sum(f, _log_f32(f))
    else:
        half, y = _log_f64(f)
        high, low = fast_two_sum(f, y - half)
    big, small = x.format.log2e
    value = k + fma(high, big, fma(high, small, low * big))
    return _log_special(x, value, 0.0)


def _log_double(a: Vec) -> tuple[Vec, Vec]:
    """log(a) of a finite f64 a > 0 as an unevaluated sum, to about 2**-64 relative."""
    k, f = split(a)
    # log(1 + f) = 2 atanh(s) with s = f / (2 + f) carried to twice the precision.
    d = f + 2.0
    d_low = f - (d - 2.0)
    inverse = 1.0 / d
    s = f * inverse
    s_low = fma(-s, d_low, fma(-s, d, f)) * inverse
    z = s * s
    z_low = fma(s, s, -z) + s * s_low * 2.0
    w, w_low = fast_two_sum(z.lift(0.6666666666666666), z * horner(z, poly.POW_LOG))
    w_low = w_low + 3.700743415417188e-17
    cube = s * z
    cube_low = fma(s, z, -cube) + fma(s, z_low, s_low * z)
    t = cube * w
    t_low = fma(cube, w, -t) + fma(cube, w_low, cube_low * w)
    high, low = fast_two_sum(s * 2.0, t)
    low = low + fma(s_low, 2.0, t_low)
    total, error = fast_two_sum(k * LN2_SHORT, high)
    return total, error + fma(k, LN2_REST, low)


LN2_SHORT = 0.6931471805592082  # 40 bits, so that its product with an exponent is exact
LN2_REST = 7.371002565167799e-13


def _power_magnitude(a: Vec, y: Vec) -> Vec:
    """a**y for f64 a > 0 and y of ordinary size; other lanes are unspecified or NaN."""
    log_high, log_low = _log_double(a)
    e = y * log_high
    e_low = fma(y, log_high, -e) + y * log_low
    q, n = exp_parts(clamp(e, -800.0, 800.0), tail=select(absolute(e).lt(800.0), e_low, 0.0))
    return scale(q + 1.0, n)


def _power_magnitude_single(a: Vec, y: Vec) -> Vec:
    e = y * log_of_parts(*split(a), single=True)
    q, n = exp_parts(clamp(e, -200.0, 200.0), single=True)
    return (q + 1.0) * power_of_two(n, 0)


def pow_(x: Vec, y: Vec, single: bool = False) -> Vec:
    """C's pow on f64; `single`: both come from f32 and the result goes back to it."""
    a = absolute(x)
    value = _power_magnitude_single(a, y) if single else _power_magnitude(a, y)
    # 0, inf as base or exponent: the result is 0 or inf by whether |x| and y are large.
    edge = a.eq(0.0) | a.eq(math.inf) | absolute(y).eq(math.inf)
    shrinks = a.lt(1.0) ^ y.lt(0.0)
    value = select(edge, select(shrinks, y.lift(0.0), math.inf), value)
    value = select(a.eq(1.0), 1.0, value)
    half = y * 0.5
    whole = rint(y).eq(y)
    odd = whole & rint(half).ne(half)
    negative = x.bits().lt(0)
    value = select(negative & odd, -value, value)
    invalid = x.lt(0.0) & a.lt(math.inf) & ~whole
    value = select(invalid | x.unordered(y), math.nan, value)
    return select(x.eq(1.0) | y.eq(0.0), 1.0, value)


def powi(x: Vec, n: Vec, single: bool = False) -> Vec:
    """x**n for f64 x, 1/x**|n| for n < 0: short products for small |n|, else `pow`."""
    exponent = n.to("f64")
    longest = 8 if single else 4  # longer products would exceed 4 ulp
    count = select(n.lt(0), -n, n)
    product, square = select((count & 1).ne(0), x, 1.0), x
    for bit in range(1, longest.bit_length()):
        square = square * square
        product = select((count & 1 << bit).ne(0), product * square, product)
    value = select(n.lt(0), 1.0 / product, product)
    slow = absolute(exponent).gt(float(longest))
    if not single:
        # The reciprocal of a product that over- or underflowed has lost its digits.
        size = absolute(product)
        slow = slow | (n.lt(0) & ~(size.gt(2.0**-1000) & size.lt(2.0**1000)))
    return rarely(slow, [value], lambda: [call("pow", x, exponent)])[0]
