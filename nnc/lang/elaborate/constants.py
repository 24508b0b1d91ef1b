"""`const` definitions."""

from __future__ import annotations

from nnc.ir.graph import Constant
from nnc.lang import ast
from nnc.lang.dims import Dim
from nnc.lang.elaborate.broadcasting import fits
from nnc.lang.elaborate.context import Context, Frame
from nnc.lang.elaborate.mistakes import fail
from nnc.lang.elaborate.results import conform
from nnc.lang.elaborate.values import Bool, Seq, Unknown, Value, Weak, of_node
from nnc.lang.elaborate.words import declared_origins
from nnc.lang.types import DTYPES, TensorType, is_float
from nnc.lang.units import Unit


def constant(cx: Context, where: Unit, d: ast.ConstDef) -> Value:
    """`const name: T = value`: a number, a size, or a tensor of literals."""
    if d in cx.constants:
        names = [c.name for c in cx.constants[cx.constants.index(d) :]]
        note = " is made of ".join([*names, d.name])
        once = ("constants", d.span.source.name, *sorted(names))
        raise fail("E0809", f"`{d.name}` is made of itself", d.span, notes=(note,), once=once)
    with cx.in_frame(Frame(where, real=cx.frame.real)), cx.outside_loops():
        cx.constants.append(d)
        try:
            value = cx.eval(d.value)
        finally:
            cx.constants.pop()
        if d.type is None or isinstance(value, Unknown):
            return value
        if isinstance(value, Seq):
            value = _table(cx, value, d)
        return conform(cx, value, d.type, f"`{d.name}` is", d.value.span)


def _table(cx: Context, value: Seq, d: ast.ConstDef) -> Value:
    """Nested lists of literals as a constant tensor."""
    if not isinstance(d.type, ast.TensorTypeExpr) or d.type.name not in DTYPES:
        assert d.type is not None
        raise fail("E0308", "a constant table is a tensor", d.type.span, help="`f32[3]`")
    dtype = cx.frame.real if d.type.name == "real" else d.type.name
    data: list[float | int | bool] = []
    shape: list[int] = []

    def walk(v: Value, depth: int) -> None:
        match v:
            case Seq(items=items) if items is not None:
                if depth == len(shape):
                    shape.append(len(items))
                if shape[depth] != len(items):
                    raise fail("E0203", "the rows of this table differ in length", d.value.span)
                for item in items:
                    walk(item, depth + 1)
            case Weak(number=n) if n is not None:
                if not is_float(dtype) and isinstance(n, float) and not n.is_integer():
                    raise fail("E0202", f"{n} cannot become {dtype}", d.value.span)
                fits(v, dtype, d.value.span)
                data.append(float(n) if DTYPES[dtype].kind == "f" else int(n))
            case Bool(value=b) if b is not None:
                if dtype != "bool":
                    raise fail("E0202", "a bool is not a number", d.value.span)
                data.append(b)
            case _:
                raise fail("E0203", "a constant holds numbers", d.value.span)

    walk(value, 0)
    kind = TensorType(dtype, tuple(Dim.of(n) for n in shape))
    node = Constant(type=kind, span=d.span, name=d.name, data=tuple(data))
    return of_node(node, (), declared_origins(d.name, kind.shape, d.name_span))
