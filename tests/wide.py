"""Scalar functions in the widest NumPy float, and errors in units of the last place."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Array = np.ndarray
Reference = Callable[..., Array]

WIDE = np.longdouble  # at least 64 bits of significand wherever these tests run
INF = math.inf


def wide_erfc_times_exp(a: Array) -> Array:
    """exp(a**2) erfc(a) for a >= 0.9, by its continued fraction from the far end."""
    value = np.zeros_like(a)
    for k in range(600, 0, -1):
        value = (k / WIDE(2)) / (a + value)
    return 1 / (np.sqrt(WIDE(math.pi) + WIDE(1.2246467991473532e-16)) * (a + value))


def wide_gauss(x: Array) -> Array:
    """exp(-x**2) without the rounding of the square."""
    front = x.astype(np.float32).astype(WIDE)
    rest = x - front
    return np.exp(-front * front) * np.exp(-(2 * front + rest) * rest)


def wide_erf(x: Array) -> Array:
    inner = np.where(np.abs(x) < 2.5, x, 0).astype(WIDE)
    term, total = inner, inner
    for n in range(1, 80):  # all terms of one sign: no cancellation
        term = term * 2 * inner * inner / (2 * n + 1)
        total = total + term
    root_pi = np.sqrt(WIDE(math.pi) + WIDE(1.2246467991473532e-16))
    series = 2 / root_pi * wide_gauss(inner) * total
    return np.where(np.abs(x) < 2.5, series, np.copysign(1 - wide_erfc_outer(np.abs(x)), x))


def wide_erfc_outer(a: Array) -> Array:
    inside = np.where(a >= 1.5, np.minimum(a, 40), 2).astype(WIDE)
    value = wide_gauss(inside) * wide_erfc_times_exp(inside)
    return np.where(np.isnan(a), a, value)


def wide_erfc(x: Array) -> Array:
    outer = wide_erfc_outer(np.abs(x))
    outer = np.where(x < 0, 2 - outer, outer)
    return np.where(np.abs(x) < 1.5, 1 - wide_erf(x), outer)


def wide_sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


EULER = 0.5772156649015329
ZETA = (1.6449340668482264, 1.2020569031595942, 1.0823232337111381, 1.03692775514337)
ZETA += (1.0173430619844492, 1.008349277381923, 1.0040773561979444, 1.0020083928260821)


def wide_lgamma_near_1(d: Array) -> Array:
    """lgamma(1 + d) for small d, by its Taylor series: full relative accuracy at the zero."""
    total = -EULER * d
    for k, zeta in enumerate(ZETA, 2):
        total = total + zeta * (-d) ** k / k
    return total


def wide_lgamma_positive(a: Array) -> Array:
    y, product = a, np.ones_like(a)
    for _ in range(32):
        below = y < 32
        product = np.where(below, product * y, product)
        y = np.where(below, y + 1, y)
    series, z = np.zeros_like(y), 1 / (y * y)
    for numerator, denominator in [(1, 156), (-691, 360360), (1, 1188), (-1, 1680), (1, 1260)]:
        series = series * z + numerator / WIDE(denominator)
    series = (series * z - 1 / WIDE(360)) * z + 1 / WIDE(12)
    half_log_2pi = WIDE(0.9189385332046728) - WIDE(3.8782941580672414e-17)
    value = (y - 0.5) * np.log(y) - y + half_log_2pi + series / y - np.log(product)
    for zero, also in ((1, 0), (2, 1)):
        d = np.where(np.abs(a - zero) < 2.0**-8, a - zero, 0)
        value = np.where(d != 0, wide_lgamma_near_1(d) + also * np.log1p(d), value)
    return np.where((a == 1) | (a == 2), 0, np.where(np.isinf(a), a, value))


def wide_lgamma(x: Array) -> Array:
    x = x.astype(WIDE)
    a = np.abs(x)
    value = wide_lgamma_positive(a)
    sine = np.sin((WIDE(math.pi) + WIDE(1.2246467991473532e-16)) * np.abs(a - np.rint(a)))
    reflected = np.log(WIDE(math.pi) / (a * sine)) - value
    pole = (sine == 0) | np.isinf(a)
    return np.where(x < 0, np.where(pole, WIDE(INF), reflected), value)


REFERENCE: dict[str, Reference] = {
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "log2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "sigmoid": wide_sigmoid,
    "erf": wide_erf,
    "erfc": wide_erfc,
    "lgamma": wide_lgamma,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "pow": np.power,
    "atan2": np.arctan2,
    "powi": np.power,
}


def ulp_error(got: Array, reference: Array) -> Array:
    """Distance in units of the last place of got's dtype; inf counts as the next power of two.

    The reference has more digits. A NaN on one side only is an infinite error.
    """
    digits, low, high = (24, -125, 128) if got.dtype == np.float32 else (53, -1021, 1024)
    wide = reference.dtype.type
    beyond = np.ldexp(wide(1), high) if high < 1024 or wide is WIDE else wide(INF)
    exponent = np.frexp(np.where(np.isfinite(reference), np.abs(reference), 1))[1]
    unit = np.ldexp(wide(1), np.clip(exponent, low, high) - digits)
    finite = [np.clip(v.astype(wide), -beyond, beyond) for v in (got, reference)]
    error = np.where(finite[0] == finite[1], 0, np.abs(finite[0] - finite[1]) / unit)
    both_nan = np.isnan(got) & np.isnan(reference)
    return np.where(both_nan, 0, np.where(np.isnan(error), INF, error)).astype(np.float64)
