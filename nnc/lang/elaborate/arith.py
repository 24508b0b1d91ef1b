"""Whole-tensor arithmetic: element-wise application, adapting and casting, lifting over trees."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nnc.diagnostics import Span
from nnc.ir.expr import Const, Expr, Idx, Op, Select
from nnc.ir.scalar import SCALARS, cast
from nnc.lang.dims import ONE, ZERO, Dim
from nnc.lang.elaborate.broadcasting import broadcast, common_dtype
from nnc.lang.elaborate.context import Context, Poisoned, fail
from nnc.lang.elaborate.values import (
    AxisRef,
    Bool,
    Fill,
    Module,
    Operand,
    Seq,
    Tensor,
    Tree,
    Unknown,
    Value,
    Weak,
    describe,
)
from nnc.lang.types import DType, TensorType, is_float, is_int


def as_tensor(cx: Context, v: Weak | Fill, span: Span) -> Tensor:
    out = adapt(cx, v, cx.frame.real, span)
    assert isinstance(out, Tensor)
    return out


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
