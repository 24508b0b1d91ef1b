"""Words of four bytes that lie one after the other: what memory holds there, read as an i32."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nnc.ir.expr import Const, Expr, Idx, Load, Op, Tensor
from nnc.ir.graph import Compute
from nnc.ir.loop import Buffer
from nnc.lang.dims import Dim, polynomial_quotient
from nnc.lang.types import TensorType

WORD = 4  # bytes

View = Callable[[Buffer, TensorType], Buffer]


def word(of: Tensor, first: Sequence[Dim]) -> Expr:
    """The bytes from the one at index `first` on, along the last axis, the lowest one first."""
    parts: list[Expr] = []
    for j in range(WORD):
        index = (*first[:-1], first[-1] + j)
        byte = Op("i32", "cast", (Load("u8", of, tuple(map(Idx, index))),))
        parts.append(Op("i32", "shl", (byte, Const("i32", 8 * j))) if j else byte)
    body = parts[0]
    for part in parts[1:]:
        body = Op("i32", "bitor", (body, part))
    return body


def is_words(node: Compute) -> bool:
    """Whether a value's elements are words of another: it needs no memory of its own."""
    return node.type.dtype == "i32" and not node.raxes and first_byte(node.body) is not None


def first_byte(e: Expr) -> Load | None:
    """The load of the lowest byte, if the expression is a word."""
    parts: list[Load] = []
    for shift in (24, 16, 8):
        match e:
            case Op(fn="bitor", args=(rest, Op(fn="shl", args=(x, Const(value=n))))) if n == shift:
                if (found := _byte(x)) is None:
                    return None
                parts.append(found)
                e = rest
            case _:
                return None
    first = _byte(e)
    if first is None or not all(_follows(first, p, 3 - i) for i, p in enumerate(parts)):
        return None
    length = first.tensor.type.shape[-1].const
    return first if length is not None and length % WORD == 0 else None


def _byte(e: Expr) -> Load | None:
    match e:
        case Op(dtype="i32", fn="cast", args=(Load(dtype="u8", other=None, check=None) as x,)):
            return x if x.index and all(isinstance(i, Idx) for i in x.index) else None
    return None


def _follows(first: Load, e: Load, by: int) -> bool:
    at, here = (tuple(i.dim for i in x.index if isinstance(i, Idx)) for x in (first, e))
    return (
        first.tensor is e.tensor
        and here == (*at[:-1], at[-1] + by)
        and _quarter(at[-1]) is not None
    )


def _quarter(d: Dim) -> Dim | None:
    """A quarter of it, if that is whole by its form."""
    return None if d.functions else polynomial_quotient(d, Dim.of(WORD))


def as_word(e: Expr, view: View) -> Expr:
    """A word of a buffer, read as such; `view`: a buffer as one of another type."""
    first = first_byte(e)
    if first is None or not isinstance(buffer := first.tensor, Buffer) or buffer.scope == "local":
        return e
    *rest, last = first.index
    assert isinstance(last, Idx)
    quarter = _quarter(last.dim)
    *outer, length = buffer.type.shape
    assert quarter is not None and length.const is not None
    shape = (*outer, Dim.of(length.const // WORD))
    return Load("i32", view(buffer, TensorType("i32", shape)), (*rest, Idx(quarter)))
