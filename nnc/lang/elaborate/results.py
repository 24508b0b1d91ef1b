"""Results compared with the declared type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nnc.diagnostics import Label, Span
from nnc.lang import ast
from nnc.lang.dims import ONE, Dim
from nnc.lang.elaborate.arith import adapt, module_tree, settle
from nnc.lang.elaborate.broadcasting import grouped, same_dtype, typed
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.declared import module_type, result_origins, result_place, shape_of
from nnc.lang.elaborate.members import same_tree, tree_argument
from nnc.lang.elaborate.mistakes import Mistake, fail
from nnc.lang.elaborate.unequal import assert_help, unequal
from nnc.lang.elaborate.values import (
    UNKNOWN,
    Instance,
    Module,
    Nothing,
    Operand,
    Tensor,
    Tree,
    Tuple,
    Unknown,
    Value,
    Weak,
    WeakTensor,
)
from nnc.lang.elaborate.words import axes_word, counted, describe
from nnc.lang.types import DTYPES, DType, TensorType, is_float, is_int


def returned(cx: Context, stmt: ast.Return) -> Value:
    """The value of `return`, as the function's declared type."""
    func = cx.frame.func
    if func is None:
        raise fail("E0803", "`return` stands in a function", stmt.span)
    values = [cx.eval(v) for v in stmt.values]
    span = stmt.values[0].span.to(stmt.values[-1].span) if stmt.values else stmt.span
    value = values[0] if len(values) == 1 else Tuple(tuple(values)) if values else Nothing()
    says = f"`{func.name}` returns"
    if func.returns is None:
        if isinstance(value, Nothing | Unknown):
            return value
        shown = describe(cx.tensor(value))
        help = f"declare it: `-> {shown}`" if isinstance(cx.tensor(value), Tensor) else None
        raise fail("E0303", f"{says} {shown}, no result is declared", span, help=help)
    if isinstance(value, Nothing):
        what = f"{says} nothing, {func.returns.span.text} is declared"
        raise fail("E0303", what, span, labels=(Label(func.returns.span, "declared here"),))
    return conform(cx, value, func.returns, says, span, [v.span for v in stmt.values])


def finish(cx: Context, func: ast.FuncDef) -> Value:
    """The result of a function whose body has run."""
    frame = cx.frame
    if frame.result is not None:
        return frame.result
    if func.returns is None:
        return Nothing()
    if frame.returned:
        return UNKNOWN
    labels = (Label(func.returns.span, "declared here"),)
    text = f"`{func.name}` ends without `return`"
    raise fail("E0810", text, func.name_span, labels=labels, help=_return_help(func))


def _return_help(func: ast.FuncDef) -> str | None:
    match func.body[-1] if func.body else None:
        case ast.ExprStmt(value=value):
            return f"`return {value.span.text}`"
        case (
            ast.Assign(targets=(ast.Name(id=name),))
            | ast.Assign(targets=(ast.Index(value=ast.Name(id=name)),))
        ):
            return f"end it with `return {name}`"
    return None


def conform(
    cx: Context,
    value: Value,
    t: ast.TypeExpr,
    says: str,
    span: Span,
    spans: Sequence[Span] = (),
) -> Value:
    """A value as a declared type; `says`: how messages begin (`` `f` returns``)."""
    if isinstance(value, Unknown):
        return value
    declared = (Label(t.span, "declared here"),)
    match t:
        case ast.TupleTypeExpr(items=items):
            n = len(value.items) if isinstance(value, Tuple) else 1
            if not isinstance(value, Tuple) or n != len(items):
                what = f"{says} {counted(n, 'value')}, {len(items)} are declared"
                raise fail("E0303", what, span, labels=declared)
            places = spans if len(spans) == n else [span] * n
            rows = zip(value.items, items, places, strict=True)
            return Tuple(tuple(conform(cx, v, i, says, s) for v, i, s in rows))
        case ast.TensorTypeExpr(name=dtype) if dtype in DTYPES:
            return _tensor(cx, value, t, says, span)
        case ast.AppliedTypeExpr(name="params"):
            return _params(cx, _tree(cx, value, says, span, declared), t, says, span)
        case ast.TensorTypeExpr(name="tree"):
            return _tree(cx, value, says, span, declared)
        case ast.TensorTypeExpr(name="dim"):
            if isinstance(value, Weak) and value.kind == "int":
                return value
            what = f"{says} {describe(cx.tensor(value))}, a size is declared"
            raise fail("E0303", what, span, labels=declared)
    help = None
    if isinstance(t, ast.AppliedTypeExpr | ast.TensorTypeExpr) and module_type(cx, t) is not None:
        help = f"its parameters are a result: `params({t.span.text})`"
    raise fail("E0801", f"there is no result type `{t.span.text}`", t.span, help=help)


def _tree(cx: Context, value: Value, says: str, span: Span, declared: tuple[Label, ...]) -> Value:
    current = cx.tensor(value)
    if isinstance(current, Module):
        return module_tree(cx, current)
    if isinstance(current, Tree) and list(current.leaves) == [""]:
        return current.leaves[""]
    if isinstance(current, Tree | Unknown):
        return current
    what = f"{says} {describe(current)}, a tree is declared"
    raise fail("E0303", what, span, labels=declared)


def _params(cx: Context, value: Value, t: ast.AppliedTypeExpr, says: str, span: Span) -> Value:
    """A tree of the declared module's parameters."""
    want = tree_argument(cx, t)
    known = isinstance(value, Tree) and isinstance(value.of, Instance) and not value.of.generic
    if not known or not isinstance(want, Instance) or want.generic:
        return value
    assert isinstance(value, Tree) and isinstance(value.of, Instance), value
    if not same_tree(want, value):
        what = f"{says} params({value.of.id}), params({want.id}) is declared"
        raise fail("E0303", what, span, labels=(Label(t.span, "declared here"),))
    return value


def _tensor(cx: Context, value: Value, t: ast.TensorTypeExpr, says: str, span: Span) -> Value:
    if isinstance(value, Tuple):
        what = f"{says} {counted(len(value.items), 'value')}, one is declared"
        types = ", ".join(describe(cx.tensor(v)) for v in value.items)
        help = f"declare them: `-> ({types})`"
        raise fail("E0303", what, span, labels=(Label(t.span, "declared here"),), help=help)
    dtype = cx.frame.real if t.name == "real" else t.name
    settled = settle(cx, Operand(value, span), "a tensor")
    if isinstance(settled, Tree):
        raise fail("E0303", f"{says} a tree, {t.span.text} is declared", span)
    want = TensorType(dtype, shape_of(cx, t.dims or ()))
    _check_shape(cx, settled, want, t, says, span)
    if isinstance(settled, Tensor) and not same_dtype(settled.dtype, dtype):
        raise fail(
            "E0204",
            f"{says} {settled.dtype}, {t.name} is declared",
            span,
            typed(settled, span),
            (Label(t.span, "declared here"),),
            help=f"`{t.name}({span.text})`" + _quotient(settled, dtype, span),
        )
    tensor = adapt(cx, settled, dtype, span)
    assert isinstance(tensor, Tensor)
    if not cx.ranges:
        tensor = cx.materialized(tensor, span)
    place = result_place(t, cx.calls[-1].span if cx.calls else t.span, cx.frame)
    origins = result_origins(cx.frame, t.dims or (), tensor.shape)
    return replace(tensor, letters=(), origins=origins, place=place)


def _quotient(value: Tensor, dtype: DType, span: Span) -> str:
    divided = is_int(dtype) and is_float(value.dtype) and " / " in span.text
    return "; `//` is the quotient of integers" if divided else ""


def _check_shape(
    cx: Context,
    value: Tensor | Weak | WeakTensor,
    want: TensorType,
    t: ast.TensorTypeExpr,
    says: str,
    span: Span,
) -> None:
    shape = () if isinstance(value, Weak) else value.shape
    if shape == want.shape:
        return
    raise _wrong_shape(cx, value, shape, want, t, says, span)


def _wrong_shape(
    cx: Context,
    value: Tensor | Weak | WeakTensor,
    shape: Sequence[object],
    want: TensorType,
    t: ast.TensorTypeExpr,
    says: str,
    span: Span,
) -> Mistake:
    got = value.type if isinstance(value, Tensor) else None
    pairs = _pairs(got, want) if got is not None else []
    notes: tuple[str, ...] = (f"{axes_word(len(shape))} here, {axes_word(want.rank)} declared",)
    if len(shape) == want.rank and not isinstance(value, Weak):
        axes = enumerate(zip(value.shape, want.shape, strict=True))
        notes = tuple(f"axis {i}: {unequal(cx, g, w)}" for i, (g, w) in axes if g != w)[:3]
    return fail(
        "E0303",
        f"{says} {got or describe(value)}, {t.span.text} is declared",
        span,
        typed(value, span) if isinstance(value, Tensor) else "",
        (Label(t.span, "declared here"),),
        notes,
        help=_help(got, want, span) or assert_help(cx, pairs) if got is not None else None,
        sizes=pairs,
        once=("not a scalar", span.source.name, span.text) if want.rank == 0 else (),
    )


def _pairs(got: TensorType, want: TensorType) -> list[tuple[Dim, Dim]]:
    same = got.rank == want.rank
    return [(a, b) for a, b in zip(got.shape, want.shape, strict=True) if a != b] if same else []


def _help(got: TensorType, want: TensorType, span: Span) -> str | None:
    text = grouped(span.text)
    if got.rank == want.rank + 1 and got.shape[-1] == ONE:
        return f"`{text}[..., 0]` drops the last axis"
    if got.rank == want.rank - 1 and want.shape[-1] == ONE:
        return f"`{text}[..., None]` adds an axis of 1"
    if got.rank == 2 and got.shape[::-1] == want.shape:
        return f"`{text}.T`"
    if want.rank == 0 and got.rank:
        return f"`mean({span.text})` or `total({span.text})` is one number"
    return None
