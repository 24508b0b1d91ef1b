"""Sizes: polynomials in normal form (`algebra`), and what follows from what is known (`proofs`)."""

from nnc.lang.dims.algebra import (
    ONE,
    ZERO,
    Atom,
    Dim,
    DimLike,
    Func,
    Mono,
    apply,
    dim_max,
    dim_min,
    dim_prod,
    dim_sum,
    divides,
    exact_div,
    from_json,
    polynomial_quotient,
)
from nnc.lang.dims.proofs import Facts, Range, extremes, prove_nonneg

__all__ = [
    "ONE",
    "ZERO",
    "Atom",
    "Dim",
    "DimLike",
    "Facts",
    "Func",
    "Mono",
    "Range",
    "apply",
    "dim_max",
    "dim_min",
    "dim_prod",
    "dim_sum",
    "divides",
    "exact_div",
    "extremes",
    "from_json",
    "polynomial_quotient",
    "prove_nonneg",
]
