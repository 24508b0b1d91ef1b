"""Bodies of the error functions and the logarithm of the gamma function."""

from __future__ import annotations

import math

from nnc.codegen import vecmath_poly as poly
from nnc.codegen.vecmath_exp import exp_parts, power_of_two, scale
from nnc.codegen.vecmath_vec import (
    Vec,
    absolute,
    call,
    clamp,
    copysign,
    fma,
    horner,
    rarely,
    rint,
    select,
)


def _erf_inner(x: Vec) -> Vec:
    """erf(x) for |x| <= 1."""
    return fma(x, horner(x * x, poly.ERF[x.kind]), x)


def _erfc_parts(a: Vec, single: bool = False) -> tuple[Vec, Vec]:
    """erfc(a) for f64 1/2 <= a <= 27.3 as p * 2**n (see `exp_parts`); `single`: a <= 10.7."""
    coefficients = poly.ERFCX["single" if single else "f64"]
    g = horner((a - 3.75) / (a + 3.75), coefficients) / fma(a, 2.0, 1.0)
    square = a * a
    tail = None if single else -fma(a, a, -square)
    q, n = exp_parts(-square, tail, single)
    return fma(q, g, g), n


def erf_f32(x: Vec) -> Vec:
    a = absolute(x)
    outer = clamp(a, None, 3.93)
    root = horner(outer, poly.ERFC_ROOT4)
    square = root * root
    far = copysign(fma(-square, square, 1.0), x)
    return select(a.gt(1.0), far, _erf_inner(x))


def erf_f64(x: Vec) -> Vec:
    a = absolute(x)
    p, n = _erfc_parts(clamp(a, None, 6.0))
    far = copysign(fma(-p, power_of_two(n, 0), 1.0), x)
    return select(a.gt(1.0), far, _erf_inner(x))


def erfc(x: Vec, single: bool = False) -> Vec:
    a = absolute(x)
    p, n = _erfc_parts(clamp(a, None, 10.7 if single else 28.0), single)
    far = p * power_of_two(n, 0) if single else scale(p, n)
    far = select(x.lt(0.0), 2.0 - far, far)
    return select(a.lt(0.5), 1.0 - _erf_inner(x), far)


def lgamma(x: Vec) -> Vec:
    """log |gamma(x)| on f64; inf at 0 and the negative integers."""
    a = absolute(x)
    value = _lgamma_positive(a)
    reflected = x.lt(-(2.0**-60))  # closer to 0, gamma(-a) = -gamma(a)
    return rarely(reflected, [value], lambda: [_reflect(a, value)])[0]


def _reflect(a: Vec, value: Vec) -> Vec:
    """lgamma(-a) from lgamma(a) = value."""
    fraction = absolute(a - rint(a))
    sine = call("sin", fraction * math.pi)
    reflected = call("log", math.pi / (a * sine)) - value
    return select(fraction.gt(0.0), reflected, select(a.unordered(a), a, math.inf))


def _lgamma_positive(a: Vec) -> Vec:
    """Stirling's series from 8 on; below, gamma(a + 1) = a gamma(a) leads to [3/2, 5/2)."""
    y, product = a, a.lift(1.0)
    for _ in range(6):
        high = y.ge(2.5)
        lower = y - 1.0
        product = select(high, product * lower, product)
        y = select(high, lower, y)
    tiny, low = a.lt(0.5), a.lt(1.5)
    product = select(low, select(tiny, a * (a + 1.0), a), product)
    d = select(tiny, a, select(low, a - 1.0, y - 2.0))
    large = a.ge(8.0)
    logarithm = call("log", select(large, a, product))
    shifted = fma(d, horner(d, poly.LGAMMA2), select(low, -logarithm, logarithm))
    inverse = 1.0 / a
    series = inverse * horner(inverse * inverse, poly.STIRLING) + HALF_LOG_2PI_LESS_HALF
    stirling = fma(a - 0.5, logarithm - 1.0, series)
    return select(large, stirling, shifted)


HALF_LOG_2PI_LESS_HALF = 0.4189385332046727
