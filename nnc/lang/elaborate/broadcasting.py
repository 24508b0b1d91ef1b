"""The dtype rule and the broadcasting rule, with their messages."""

from __future__ import annotations

from collections.abc import Sequence

from nnc.diagnostics import Label, Span
from nnc.lang.dims import ONE, Dim
from nnc.lang.elaborate.context import Context, fail
from nnc.lang.elaborate.values import Fill, Operand, Origins, Tensor, Value, Weak, describe
from nnc.lang.types import DTYPES, DType, TensorType, is_float, is_int

SIGNS = {
    "add": "added",
    "sub": "subtracted",
    "mul": "multiplied",
    "div": "divided",
    "pow": "raised",
}


def common_dtype(
    cx: Context, operands: Sequence[Operand], values: Sequence[Value], span: Span, verb: str
) -> DType:
    """The one dtype of all tensors among the operands; weak numbers adapt to it."""
    strong = [(o, v) for o, v in zip(operands, values, strict=True) if isinstance(v, Tensor)]
    if not strong:
        weak = [v for v in values if isinstance(v, Weak)]
        floating = any(w.kind == "float" for w in weak) or any(isinstance(v, Fill) for v in values)
        return cx.frame.real if floating else "i32"
    first, kept = strong[0]
    for operand, value in strong[1:]:
        if value.dtype != kept.dtype:
            raise _mix(first, kept, operand, value, span, verb)
    for operand, value in zip(operands, values, strict=True):
        if isinstance(value, Weak) and value.kind == "float" and not is_float(kept.dtype):
            whole = value.number is not None and float(value.number).is_integer()
            raise fail(
                "E0202",
                f"{kept.dtype} and a real number do not mix",
                operand.span,
                "a real number",
                [Label(first.span, str(kept.type))],
                help=f"`{int(value.number)}`"
                if whole and value.number is not None
                else f"`{cx.frame.real}({first.span.text})`",
            )
    return kept.dtype


def _mix(a: Operand, va: Tensor, b: Operand, vb: Tensor, span: Span, verb: str) -> Exception:
    narrow = DTYPES[va.dtype].bits < DTYPES[vb.dtype].bits or is_int(va.dtype)
    low, wide = ((a, va), (b, vb)) if narrow else ((b, vb), (a, va))
    return fail(
        "E0201",
        f"{va.dtype} and {vb.dtype} do not mix",
        b.span,
        typed_by_last_axis(vb, b.span),
        [Label(a.span, typed_by_last_axis(va, b.span))],
        help=f"`{wide[1].dtype}({low[0].span.text})`",
    )


def typed_by_last_axis(value: Tensor, seen: Span) -> str:
    origin = value.origin(len(value.shape) - 1) or value.origin(0)
    text = f"{value.type}"
    return f"{text}   {origin.show(seen)}" if origin else text


def broadcast(
    cx: Context, operands: Sequence[Operand], values: Sequence[Value], span: Span, fn: str
) -> tuple[tuple[Dim, ...], Origins]:
    """The common shape: equal, or a literal 1 stretched, or the shorter equal to the trailing axes."""
    shape: tuple[Dim, ...] = ()
    origins: Origins = ()
    holder: tuple[Operand, Value] | None = None
    for operand, value in zip(operands, values, strict=True):
        if isinstance(value, Weak):
            continue
        assert isinstance(value, Tensor | Fill)
        mine = value.shape
        own: Origins = value.origins if isinstance(value, Tensor) else ()
        own = (*own, *([None] * (len(mine) - len(own))))
        if holder is None:
            shape, origins, holder = mine, own, (operand, value)
            continue
        if not mine:
            continue
        if not shape:
            shape, origins, holder = mine, own, (operand, value)
            continue
        joined = _join(shape, mine)
        if joined is None:
            raise _no_join(holder, (operand, value), shape, mine, span, fn)
        origins = own if len(mine) > len(shape) else _merge(origins, own, shape, mine)
        if len(mine) > len(shape):
            holder = (operand, value)
        shape = joined
    return shape, origins


def _merge(a: Origins, b: Origins, sa: tuple[Dim, ...], sb: tuple[Dim, ...]) -> Origins:
    if len(sa) != len(sb):
        return a
    return tuple((y if dx == ONE else x) for x, y, dx in zip(a, b, sa, strict=False))


def _join(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> tuple[Dim, ...] | None:
    if len(a) == len(b):
        if all(x == y or x == ONE or y == ONE for x, y in zip(a, b, strict=True)):
            return tuple(y if x == ONE else x for x, y in zip(a, b, strict=True))
        return None
    long, short = (a, b) if len(a) > len(b) else (b, a)
    return long if long[len(long) - len(short) :] == short else None


def _no_join(
    a: tuple[Operand, Value],
    b: tuple[Operand, Value],
    sa: tuple[Dim, ...],
    sb: tuple[Dim, ...],
    span: Span,
    fn: str,
) -> Exception:
    (oa, va), (ob, vb) = a, b
    seen = ob.span
    if len(sa) != len(sb):
        return _rank_error(oa, va, ob, vb, sa, sb)
    axis = next(
        i for i, (x, y) in enumerate(zip(sa, sb, strict=True)) if x != y and ONE not in (x, y)
    )
    verb = SIGNS.get(fn, "combined")
    note = f"axis {axis}: {sb[axis]} is not {sa[axis]}"
    return fail(
        "E0302",
        f"these two shapes cannot be {verb}",
        seen,
        _axis_text(vb, axis, seen),
        [Label(oa.span, _axis_text(va, axis, seen))],
        [note],
        help=_transpose_help(oa, ob, sa, sb),
    )


def _transpose_help(a: Operand, b: Operand, sa: tuple[Dim, ...], sb: tuple[Dim, ...]) -> str | None:
    if len(sa) == 2 and sa == sb[::-1]:
        return f"`{b.span.text}.T` has the shape of `{a.span.text}`"
    return None


def _rank_error(
    oa: Operand, va: Value, ob: Operand, vb: Value, sa: tuple[Dim, ...], sb: tuple[Dim, ...]
) -> Exception:
    long, short = (sa, sb) if len(sa) > len(sb) else (sb, sa)
    wide = _numpy_broadcast(long, short)
    tail = long[len(long) - len(short) :]
    axis = next(i for i in range(len(short)) if tail[i] != short[i])
    dtype = _dtype_of(va) or _dtype_of(vb) or "f32"
    code, message = "E0302", "these two shapes cannot be combined"
    if wide is not None:
        code = "E0304"
        message = f"this would silently broadcast to {TensorType(dtype, wide)}"
    longer = oa if len(sa) > len(sb) else ob
    help = None
    if len(long) == 2 and long[1] == ONE and len(short) == 1:
        help = f"compare columns with columns: `{longer.span.text}[:, 0]`"
    elif len(short) == 1 and len(long) == 2 and long[0] == short[0]:
        shorter = ob if longer is oa else oa
        help = f"make it a column: `{shorter.span.text}[:, None]`"
    note = (
        f"shapes of different rank match on their last axes only: {tail[axis]} is not {short[axis]}"
    )
    return fail(
        code,
        message,
        ob.span,
        _axis_text(vb, len(sb) - 1, ob.span),
        [Label(oa.span, _axis_text(va, len(sa) - 1, ob.span))],
        [note],
        help=help,
    )


def _numpy_broadcast(long: tuple[Dim, ...], short: tuple[Dim, ...]) -> tuple[Dim, ...] | None:
    tail = long[len(long) - len(short) :]
    if all(x == y or x == ONE or y == ONE for x, y in zip(tail, short, strict=True)):
        head = long[: len(long) - len(short)]
        return (*head, *(y if x == ONE else x for x, y in zip(tail, short, strict=True)))
    return None


def _dtype_of(v: Value) -> DType | None:
    return v.dtype if isinstance(v, Tensor) else None


def _axis_text(value: Value, axis: int, seen: Span) -> str:
    if isinstance(value, Tensor):
        origin = value.origin(axis)
        text = f"{value.type}   "
        if origin is None:
            return text.rstrip()
        size = "" if origin.text[:1].isdigit() or "=" in origin.text else f"{value.shape[axis]} = "
        return text + size + origin.show(seen)
    return describe(value)
