"""How much a program may unroll to, and how large a tensor may be."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from nnc.diagnostics import Span
from nnc.lang.dims import Dim
from nnc.lang.elaborate.mistakes import fail
from nnc.lang.types import DTYPES, DType, TensorType

MOST_STEPS = 20_000


def fits_memory(sizes: Sequence[Dim], dtype: DType, span: Span) -> None:
    """Sizes above 2^63 - 1 bytes are refused where they are known."""
    known = [n.const for n in sizes]
    if all(n is not None and n < 2**15 for n in known) and len(known) < 5:
        return
    total = prod(n for n in known if n is not None) * DTYPES[dtype].bytes
    if total > 2**63 - 1 and 0 not in known:
        least = "at least " if None in known else ""
        text = f"{TensorType(dtype, tuple(sizes))}, that is {least}{float(total):.2e} bytes"
        raise fail("E0314", "this is larger than 2^63 - 1 bytes", span, text)
