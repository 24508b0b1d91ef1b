"""The dtype rule and the broadcasting rule, with their messages."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nnc.diagnostics import Label, Span
from nnc.lang.dims import ONE, Dim
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.mistakes import fail
from nnc.lang.elaborate.strides import stride_help
from nnc.lang.elaborate.unequal import assert_help, equal_help, unequal
from nnc.lang.elaborate.values import (
    Operand,
    Origins,
    Tensor,
    Value,
    Weak,
    WeakTensor,
)
from nnc.lang.elaborate.words import describe
from nnc.lang.types import DTYPES, INFINITE_FROM, DType, TensorType, is_float

SIGNS = {
    "add": "added",
    "sub": "subtracted",
    "mul": "multiplied",
    "div": "divided",
    "pow": "raised",
    "eq": "compared",
    "ne": "compared",
    "lt": "compared",
    "le": "compared",
    "gt": "compared",
    "ge": "compared",
}
SYMBOLS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "neg": "-"}
RANGES = {
    "i8": (-(2**7), 2**7),
    "u8": (0, 2**8),
    "i32": (-(2**31), 2**31),
    "i64": (-(2**63), 2**63),
}


# ---- dtypes -----------------------------------------------------------------------------------


def same_dtype(a: DType, b: DType) -> bool:
    """Equal; in the generic check `real` also stands for its default, f32."""
    return a == b or {a, b} == {"real", "f32"}


def free_dtype(cx: Context, values: Sequence[Value]) -> DType:
    """The dtype of literals among themselves: i32 for integers, else `real`."""
    weak = [v for v in values if isinstance(v, Weak | WeakTensor)]
    return "i32" if all(w.kind == "int" for w in weak) else cx.frame.real


def common_dtype(
    cx: Context, operands: Sequence[Operand], values: Sequence[Value], span: Span
) -> DType:
    """The one dtype of all tensors among the operands; weak ones adapt to it."""
    strong = [(o, v) for o, v in zip(operands, values, strict=True) if isinstance(v, Tensor)]
    if not strong:
        return free_dtype(cx, values)
    first, kept = strong[0]
    for place, other in strong[1:]:
        if not same_dtype(other.dtype, kept.dtype):
            raise _mix(first, kept, place, other, span)
    for operand, value in zip(operands, values, strict=True):
        if isinstance(value, Weak | WeakTensor):
            _fits_beside(cx, value, operand, kept, first)
    return kept.dtype


def _fits_beside(
    cx: Context, value: Weak | WeakTensor, operand: Operand, kept: Tensor, beside: Operand
) -> None:
    label = [Label(beside.span, typed(kept, operand.span))]
    real = cx.frame.real
    if value.kind == "float" and not is_float(kept.dtype):
        known = value.number if isinstance(value, Weak) else None
        whole = known is not None and float(known).is_integer()
        help = f"`{real}({beside.span.text})`"
        if whole and known is not None and operand.span.text.replace(".", "").isdigit():
            help = f"`{int(known)}`, or {help}"
        message = f"{kept.dtype} and a real number do not mix"
        raise fail("E0202", message, operand.span, "a real number", label, help=help)
    if kept.dtype == "bool":
        help = f"count with `{real}({bare(beside.span.text)})`"
        raise fail("E0202", "bool and a number do not mix", operand.span, "", label, help=help)
    fits(value, kept.dtype, operand.span, label)


def fits(value: Weak | WeakTensor, dtype: DType, span: Span, labels: Sequence[Label] = ()) -> None:
    """A literal must be a number of the dtype that it becomes."""
    if dtype == "bool" and value.kind != "any":
        raise fail("E0202", "a number is not a bool", span, help=f"`{span.text} != 0`")
    if value.kind == "float" and not is_float(dtype):
        help = f"`{dtype}({span.text})` cuts off the fraction"
        raise fail("E0202", f"a real number cannot become {dtype}", span, labels=labels, help=help)
    known = value.number if isinstance(value, Weak) else None
    if known is not None and INFINITE_FROM.get(dtype, math.inf) <= abs(known) < math.inf:
        raise fail("E0202", f"{known} does not fit {dtype}", span, labels=labels)
    n = value.dim.const if isinstance(value, Weak) and value.dim is not None else None
    low, high = RANGES.get(dtype, (0, 0))
    if n is not None and dtype in RANGES and not low <= n < high:
        text = f"{dtype} holds {low} ... {high - 1}"
        raise fail("E0202", f"{n} does not fit {dtype}", span, text, labels)


def _mix(a: Operand, va: Tensor, b: Operand, vb: Tensor, span: Span) -> Exception:
    return fail(
        "E0201",
        f"{va.dtype} and {vb.dtype} do not mix",
        b.span,
        typed(vb, b.span),
        [Label(a.span, typed(va, b.span))],
        help=f"`{cast_help(a.span.text, va, b.span.text, vb)}`",
        whole=_around(a.span, b.span, span),
    )


def _around(a: Span, b: Span, span: Span) -> Span:
    """The expression of both operands, without brackets around it."""
    ordered = (a.line, a.column) < (b.line, b.column) and a.source is b.source
    return a.to(b) if ordered else span


def cast_help(a: str, va: Tensor, b: str, vb: Tensor) -> str:
    """The cast of the narrower operand, or of the integer one, in words."""
    ka, kb = DTYPES[va.dtype], DTYPES[vb.dtype]
    rank = {"b": 0, "u": 1, "i": 1, "f": 2}
    first = (rank[ka.kind], ka.bits) <= (rank[kb.kind], kb.bits)
    return f"{vb.dtype}({bare(a)})" if first else f"{va.dtype}({bare(b)})"


def bare(text: str) -> str:
    """A text without brackets around all of it."""
    depth = 0
    for c in text[:-1]:
        depth += (c == "(") - (c == ")")
        if depth == 0:
            return text
    return text[1:-1] if len(text) > 2 else text


def typed(value: Tensor, seen: Span) -> str:
    """`f32[B, 10]   argument x, line 3`: the type and where it comes from."""
    place = f"   {value.place.at(seen)}" if value.place is not None else ""
    return f"{value.type}{place}"


# ---- shapes -----------------------------------------------------------------------------------


def broadcast(
    cx: Context, operands: Sequence[Operand], values: Sequence[Value], span: Span, fn: str
) -> tuple[tuple[Dim, ...], Origins]:
    """The common shape: equal, a literal 1 stretched, or the shorter equal to the trailing axes."""
    shape: tuple[Dim, ...] = ()
    origins: Origins = ()
    holder: tuple[Operand, Value] | None = None
    for operand, value in zip(operands, values, strict=True):
        if not isinstance(value, Tensor | WeakTensor) or not value.shape:
            continue
        mine = value.shape
        own: Origins = value.origins if isinstance(value, Tensor) else ()
        own = (*own, *([None] * (len(mine) - len(own))))
        if holder is None:
            shape, origins, holder = mine, own, (operand, value)
            continue
        joined = _join(shape, mine)
        if joined is None:
            raise _no_join(cx, holder, (operand, value), shape, mine, span, fn)
        origins = own if len(mine) > len(shape) else _merge(origins, own, shape, mine)
        if len(mine) > len(shape):
            holder = (operand, value)
        shape = joined
    return shape, origins


def _merge(a: Origins, b: Origins, sa: tuple[Dim, ...], sb: tuple[Dim, ...]) -> Origins:
    if len(sa) != len(sb):
        return a
    return tuple((y if dx == ONE else x) for x, y, dx in zip(a, b, sa, strict=False))


def _fit(x: Dim, y: Dim) -> bool:
    return x == y or ONE in (x, y)


def _join(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> tuple[Dim, ...] | None:
    if len(a) == len(b):
        if all(_fit(x, y) for x, y in zip(a, b, strict=True)):
            return tuple(y if x == ONE else x for x, y in zip(a, b, strict=True))
        return None
    long, short = (a, b) if len(a) > len(b) else (b, a)
    return long if long[len(long) - len(short) :] == short else None


Side = tuple[Operand, Value]


def _no_join(
    cx: Context,
    a: Side,
    b: Side,
    sa: tuple[Dim, ...],
    sb: tuple[Dim, ...],
    span: Span,
    fn: str,
) -> Exception:
    (oa, va), (ob, vb) = a, b
    verb = SIGNS.get(fn, "combined")
    if len(sa) != len(sb):
        return _rank_error(oa, va, ob, vb, sa, sb, verb, span, fn)
    axis = next(i for i, (x, y) in enumerate(zip(sa, sb, strict=True)) if not _fit(x, y))
    apart = [(x, y) for x, y in zip(sa, sb, strict=True) if not _fit(x, y)]
    return fail(
        "E0302",
        f"these two shapes cannot be {verb}",
        ob.span,
        _axis_text(vb, axis, ob.span),
        [Label(oa.span, _axis_text(va, axis, ob.span))],
        [f"axis {axis}: {unequal(cx, sa[axis], sb[axis])}"],
        help=_transpose_help(oa, ob, sa, sb)
        or _product_help(fn, oa, ob, sa, sb)
        or assert_help(cx, apart)
        or stride_help(cx, va, vb, axis)
        or equal_help(cx, apart),
        sizes=apart,
        whole=_around(oa.span, ob.span, span),
    )


def _transpose_help(a: Operand, b: Operand, sa: tuple[Dim, ...], sb: tuple[Dim, ...]) -> str | None:
    if len(sa) == 2 and sa == sb[::-1]:
        return f"`{grouped(b.span.text)}.T` has the shape of `{a.span.text}`"
    return None


def _product_help(
    fn: str, a: Operand, b: Operand, sa: tuple[Dim, ...], sb: tuple[Dim, ...]
) -> str | None:
    if fn == "mul" and len(sa) == len(sb) == 2 and sa[1] == sb[0]:
        return f"the product of matrices is `{grouped(a.span.text)} @ {grouped(b.span.text)}`"
    return None


def grouped(text: str) -> str:
    """An expression's text, in brackets unless a suffix binds to all of it."""
    depth = 0
    for i, c in enumerate(text):
        depth += (c in "([") - (c in ")]")
        word = c.isalnum() or c in "_.!([])"
        closes = c in ")]" and depth == 0 and i + 1 < len(text) and text[i + 1] not in "([."
        if (depth == 0 and not word) or closes or (i == 0 and c in "(["):
            return f"({text})"
    return text


def _rank_error(
    oa: Operand,
    va: Value,
    ob: Operand,
    vb: Value,
    sa: tuple[Dim, ...],
    sb: tuple[Dim, ...],
    verb: str,
    span: Span,
    fn: str,
) -> Exception:
    long, short = (sa, sb) if len(sa) > len(sb) else (sb, sa)
    wide = _numpy_broadcast(long, short)
    tail = long[len(long) - len(short) :]
    axis = next(i for i in range(len(short)) if tail[i] != short[i])
    dtype = _dtype_of(va) or _dtype_of(vb) or "f32"
    code, message = "E0302", f"these two shapes cannot be {verb}"
    if wide is not None:
        code = "E0304"
        message = f"this would silently broadcast to {TensorType(dtype, wide)}"
    note = "shapes of different rank match on their last axes only"
    return fail(
        code,
        message,
        ob.span,
        _place_text(vb, ob.span),
        [Label(oa.span, _place_text(va, ob.span))],
        [f"{note}: {tail[axis]} is not {short[axis]}"],
        sizes=list(zip(tail, short, strict=True)),
        help=_rank_help(*((oa, ob) if len(sa) > len(sb) else (ob, oa)), long, short, oa, ob, fn),
        whole=_around(oa.span, ob.span, span),
    )


def _rank_help(
    longer: Operand,
    shorter: Operand,
    long: tuple[Dim, ...],
    short: tuple[Dim, ...],
    first: Operand,
    second: Operand,
    fn: str,
) -> str | None:
    if len(long) == 2 and long[1] == ONE and len(short) == 1:
        column = f"{grouped(longer.span.text)}[:, 0]"
        if fn in SYMBOLS:
            words = [column if o is longer else o.span.text for o in (first, second)]
            column = f" {SYMBOLS[fn]} ".join(words)
        return f"compare columns with columns: `{column}`"
    if short == long[: len(short)]:
        axes = [":"] * len(short) + ["None"] * (len(long) - len(short))
        return f"give it the axes it lacks: `{grouped(shorter.span.text)}[{', '.join(axes)}]`"
    return None


def _numpy_broadcast(long: tuple[Dim, ...], short: tuple[Dim, ...]) -> tuple[Dim, ...] | None:
    tail = long[len(long) - len(short) :]
    if all(_fit(x, y) for x, y in zip(tail, short, strict=True)):
        head = long[: len(long) - len(short)]
        return (*head, *(y if x == ONE else x for x, y in zip(tail, short, strict=True)))
    return None


def _dtype_of(v: Value) -> DType | None:
    return v.dtype if isinstance(v, Tensor) else None


def _axis_text(value: Value, axis: int, seen: Span) -> str:
    """The type, then where the size of one axis comes from."""
    if not isinstance(value, Tensor):
        return describe(value)
    return f"{value.type}{size_origin(value, axis, seen)}"


def size_origin(value: Tensor, axis: int, seen: Span) -> str:
    """`   5 = columns of w (line 3)`, or where the tensor comes from, or nothing."""
    origin = value.origin(axis)
    if origin is None:
        return f"   {value.place.at(seen)}" if value.place is not None else ""
    size = "" if origin.whole else f"{value.shape[axis]} = "
    return f"   {size}{origin.show(seen)}"


def _place_text(value: Value, seen: Span) -> str:
    """The type, then where the tensor comes from."""
    if not isinstance(value, Tensor):
        return describe(value)
    if value.place is None and value.shape:
        return _axis_text(value, len(value.shape) - 1, seen)
    return typed(value, seen)
