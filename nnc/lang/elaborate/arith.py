"""Whole-tensor arithmetic: dtype rules, the broadcasting rule, lifting over trees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nnc.diagnostics import Label, Span
from nnc.ir.expr import Const, Expr, Idx, Op, Select
from nnc.ir.scalar import SCALARS, cast
from nnc.lang.dims import ONE, ZERO, Dim
from nnc.lang.elaborate.context import Context, Poisoned, fail
from nnc.lang.elaborate.values import (
    AxisRef,
    Bool,
    Fill,
    Module,
    Origin,
    Origins,
    Seq,
    Tensor,
    Tree,
    Unknown,
    Value,
    Weak,
    describe,
)
from nnc.lang.types import DTYPES, DType, TensorType, is_float, is_int

SIGNS = {
    "add": "added",
    "sub": "subtracted",
    "mul": "multiplied",
    "div": "divided",
    "pow": "raised",
}


@dataclass(frozen=True)
class Operand:
    """A value with its place in the text."""

    value: Value
    span: Span


def settle(cx: Context, operand: Operand, what: str = "a number") -> Tensor | Weak | Tree | Fill:
    """The operand as something that arithmetic takes."""
    value = cx.tensor(operand.value)
    match value:
        case Tensor() | Weak() | Tree() | Fill():
            return value
        case Module():
            return module_tree(cx, value)
        case Unknown() | AxisRef(axis=None):
            raise Poisoned
        case Bool(value=None):
            raise Poisoned
        case Bool(value=b):
            return Tensor(TensorType("bool"), lambda i: Const("bool", bool(b)))
        case Seq(items=items) if items is not None:
            return literal_tensor(cx, items, operand.span)
    raise fail("E0203", f"{describe(value)} is not {what}", operand.span)


def module_tree(cx: Context, module: Module) -> Tree:
    """The params of a module as a tree, in their current versions."""
    prefix = module.path + "."
    leaves: dict[str, Value] = {
        key[len(prefix) :]: s.now
        for key, s in cx.store.items()
        if key.startswith(prefix) and s.kind == "param"
    }
    return Tree(leaves, module.inst)


def literal_tensor(cx: Context, items: Sequence[Value], span: Span) -> Tensor:
    """`[0.1, 0.2]` as a rank-1 tensor of `real` or i32."""
    weak = [i for i in items if isinstance(i, Weak)]
    if len(weak) != len(items) or not items:
        raise fail("E0203", "a list of numbers is expected here", span)
    dtype = cx.frame.real if any(w.kind == "float" for w in weak) else "i32"

    def body(index: tuple[Expr, ...]) -> Expr:
        out = weak[-1].make(dtype)
        for i in reversed(range(len(weak) - 1)):
            here = Op("bool", "eq", (index[0], Idx(Dim.of(i))))
            out = Select(dtype, here, weak[i].make(dtype), out)
        return out

    return cx.compute((Dim.of(len(weak)),), body, span)


def lift(
    cx: Context, fn: Callable[..., Value], operands: Sequence[Operand], span: Span
) -> Value | None:
    """Applies `fn` leaf by leaf when an operand is a tree (all trees alike); None when there is none."""
    settled = [
        module_tree(cx, v) if isinstance(v := cx.tensor(o.value), Module) else v for o in operands
    ]
    trees = [v for v in settled if isinstance(v, Tree)]
    if not trees:
        return None
    keys = list(trees[0].leaves)
    for other, operand in zip(settled, operands, strict=True):
        if isinstance(other, Tree) and list(other.leaves) != keys:
            raise fail("E0313", "these trees have different leaves", operand.span)
    leaves: dict[str, Value] = {}
    for key in keys:
        row = [
            Operand(v.leaves[key] if isinstance(v, Tree) else v, o.span)
            for v, o in zip(settled, operands, strict=True)
        ]
        leaves[key] = fn(*row)
    return Tree(leaves, trees[0].of)


# ---- dtypes -----------------------------------------------------------------------------------


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
        _typed(vb, b.span),
        [Label(a.span, _typed(va, b.span))],
        help=f"`{wide[1].dtype}({low[0].span.text})`",
    )


def _typed(value: Tensor, seen: Span) -> str:
    origin = value.origin(len(value.shape) - 1) or value.origin(0)
    text = f"{value.type}"
    return f"{text}   {origin.show(seen)}" if origin else text


# ---- broadcasting -----------------------------------------------------------------------------


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


# ---- element-wise application -----------------------------------------------------------------


def element(value: Value, dtype: DType, shape: tuple[Dim, ...], index: tuple[Expr, ...]) -> Expr:
    """The operand's element for a result index, under broadcasting."""
    match value:
        case Weak():
            return value.make(dtype)
        case Fill(number=x):
            return Const(dtype, x if is_float(dtype) else int(x))
        case Tensor():
            own = index[len(index) - len(value.shape) :] if value.shape else ()
            offset = len(shape) - len(value.shape)
            own = tuple(
                Idx(ZERO) if d == ONE and shape[offset + i] != ONE else x
                for i, (d, x) in enumerate(zip(value.shape, own, strict=True))
            )
            return value.at(own)
    raise AssertionError(value)


def elementwise(
    cx: Context,
    fn: str,
    operands: Sequence[Operand],
    span: Span,
    make: Callable[[DType, tuple[Expr, ...]], Expr] | None = None,
    result: Callable[[DType], DType] | None = None,
) -> Value:
    """`fn` of the scalar table (or `make`) applied to operands of one dtype under broadcasting."""

    def again(*row: Operand) -> Value:
        return elementwise(cx, fn, row, span, make, result)

    lifted = lift(cx, again, operands, span)
    if lifted is not None:
        return lifted
    values = [settle(cx, o) for o in operands]
    dtype = common_dtype(cx, operands, values, span, fn)
    check_rule(fn, dtype, operands, values, span, cx.frame.real)
    if any(isinstance(v, Tree) for v in values):
        raise Poisoned
    shape, origins = broadcast(cx, operands, values, span, fn)

    def body(index: tuple[Expr, ...]) -> Expr:
        row = tuple(element(v, dtype, shape, index) for v in values)
        if make is not None:
            return make(dtype, row)
        rule = SCALARS[fn].rule
        return Op("bool" if rule in ("compare", "logic") else dtype, fn, row)

    return cx.compute(shape, body, span, origins=origins)


def check_rule(
    fn: str,
    dtype: DType,
    operands: Sequence[Operand],
    values: Sequence[Value],
    span: Span,
    real: DType,
) -> None:
    """The function's dtype rule: float functions want floats, and so on."""
    rule = SCALARS[fn].rule
    name = {"div": "/", "floordiv": "//", "mod": "%"}.get(fn, fn)
    at = next((o for o, v in zip(operands, values, strict=True) if isinstance(v, Tensor)), None)
    place = at or operands[0]
    if rule == "float" and not is_float(dtype):
        help = f"`{real}({place.span.text})`"
        if fn == "div":
            help += ", or `//` for the integer quotient"
        raise fail(
            "E0203", f"`{name}` needs a float, this is {dtype}", place.span, dtype, help=help
        )
    if rule == "integer" and not is_int(dtype):
        raise fail("E0203", f"`{name}` needs integers, this is {dtype}", place.span, dtype)
    if rule == "logic" and dtype != "bool":
        raise fail("E0203", f"`{name}` needs a bool, this is {dtype}", place.span, dtype)
    if rule == "number" and dtype == "bool":
        help = f"count with `{real}({place.span.text})`"
        raise fail("E0203", f"`{name}` needs numbers, this is bool", place.span, "bool", help=help)


def adapt(cx: Context, value: Value, dtype: DType, span: Span) -> Tensor | Tree:
    """A value as a tensor of the given dtype (weak numbers and fills adapt; others must have it)."""
    settled = settle(cx, Operand(value, span))
    match settled:
        case Tree():
            return settled
        case Tensor():
            if settled.dtype == dtype:
                return settled
            raise fail(
                "E0204",
                f"this is {settled.dtype}, {dtype} is needed here",
                span,
                str(settled.type),
                help=f"`{dtype}({span.text})`",
            )
        case Weak():
            if settled.kind == "float" and not is_float(dtype):
                raise fail("E0202", f"a real number cannot become {dtype}", span)
            if dtype == "bool":
                raise fail("E0202", "a number is not a bool", span)
            weak = settled
            return cx.compute((), lambda i: weak.make(dtype), span)
    fill = settled
    x = fill.number if is_float(dtype) else int(fill.number)
    return cx.compute(fill.shape, lambda i: Const(dtype, x), span)


def convert(cx: Context, operand: Operand, dtype: DType, span: Span) -> Value:
    """`f32(x)`: the cast by dtype name."""
    lifted = lift(cx, lambda o: convert(cx, o, dtype, span), [operand], span)
    if lifted is not None:
        return lifted
    value = settle(cx, operand)
    if isinstance(value, Weak):
        weak = value
        if weak.kind == "float" and not is_float(dtype):
            real = cx.frame.real
            return cx.compute((), lambda i: cast(weak.make(real), dtype), span)
        return cx.compute((), lambda i: weak.make(dtype), span)
    if isinstance(value, Fill):
        return adapt(cx, value, dtype, span)
    assert isinstance(value, Tensor)
    if value.dtype == dtype:
        return value
    source = value
    return cx.compute(
        source.shape, lambda i: cast(source.at(i), dtype), span, origins=source.origins
    )


def axis_word(rank: int, axis: int, name: str) -> str:
    """`columns of w`, `axis 2 of x`."""
    if rank == 2:
        return f"{'rows' if axis == 0 else 'columns'} of {name}"
    return f"the length of {name}" if rank == 1 else f"axis {axis} of {name}"


def declared_origins(name: str, shape: tuple[Dim, ...], span: Span) -> Origins:
    return tuple(Origin(axis_word(len(shape), i, name), span) for i in range(len(shape)))
