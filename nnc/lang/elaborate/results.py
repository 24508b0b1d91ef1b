"""Results compared with the declared type."""

from __future__ import annotations

from nnc.diagnostics import Label, Span
from nnc.lang import ast
from nnc.lang.dims import ONE
from nnc.lang.elaborate.arith import adapt, module_tree, settle
from nnc.lang.elaborate.context import Context, Frame, fail
from nnc.lang.elaborate.declared import shape_of
from nnc.lang.elaborate.mismatches import typed
from nnc.lang.elaborate.values import (
    UNKNOWN,
    Fill,
    Module,
    Nothing,
    Operand,
    Origin,
    Tensor,
    Tree,
    Tuple,
    Unknown,
    Value,
    describe,
)
from nnc.lang.types import DTYPES, DType, TensorType


def finish(cx: Context, func: ast.FuncDef, span: Span) -> Value:
    """The function's result, compared with the declared type."""
    frame = cx.frame
    value = frame.result
    if value is None:
        if func.returns is None or (not frame.returned and _poisoned(frame)):
            return Nothing() if func.returns is None else UNKNOWN
        raise fail(
            "E0810",
            f"`{func.name}` ends without `return`",
            func.name_span,
            labels=(Label(func.returns.span, "declared here"),),
        )
    if func.returns is None:
        return value
    return conform(cx, value, func.returns, func, _return_span(func))


def _poisoned(frame: Frame) -> bool:
    return any(isinstance(v, Unknown) for v in frame.vars.values())


def _return_span(func: ast.FuncDef) -> Span:
    for stmt in reversed(func.body):
        if isinstance(stmt, ast.Return):
            if len(stmt.values) == 1:
                return stmt.values[0].span
            return stmt.values[0].span.to(stmt.values[-1].span) if stmt.values else stmt.span
    return func.name_span


def conform(cx: Context, value: Value, t: ast.TypeExpr, func: ast.FuncDef, span: Span) -> Value:
    """A result as its declared type."""
    match t:
        case ast.TupleTypeExpr(items=items):
            if not isinstance(value, Tuple) or len(value.items) != len(items):
                if isinstance(value, Unknown):
                    return value
                n = len(value.items) if isinstance(value, Tuple) else 1
                raise fail(
                    "E0303",
                    f"`{func.name}` returns {n} values, {len(items)} are declared",
                    span,
                    labels=(Label(t.span, "declared here"),),
                )
            spans = _value_spans(func, len(items), span)
            return Tuple(
                tuple(
                    conform(cx, v, i, func, s)
                    for v, i, s in zip(value.items, items, spans, strict=True)
                )
            )
        case ast.TensorTypeExpr(name=dtype, dims=dims) if dtype in DTYPES:
            return _conform_tensor(cx, value, t, dtype, dims, func, span)
        case ast.AppliedTypeExpr() | ast.TensorTypeExpr(name="tree"):
            current = cx.tensor(value)
            if isinstance(current, Module):
                return module_tree(cx, current)
            if isinstance(current, Tree) and list(current.leaves) == [""]:
                return current.leaves[""]
            if isinstance(current, Tree | Unknown):
                return current
            raise fail(
                "E0303",
                f"`{func.name}` returns {describe(current)}, a tree is declared",
                span,
                labels=(Label(t.span, "declared here"),),
            )
        case ast.TensorTypeExpr(name="dim"):
            return value
    raise fail("E0801", f"there is no result type `{t.span.text}`", t.span)


def _value_spans(func: ast.FuncDef, n: int, span: Span) -> list[Span]:
    for stmt in reversed(func.body):
        if isinstance(stmt, ast.Return) and len(stmt.values) == n:
            return [v.span for v in stmt.values]
    return [span] * n


def _conform_tensor(
    cx: Context,
    value: Value,
    t: ast.TensorTypeExpr,
    dtype: DType,
    dims: tuple[ast.Expr, ...] | None,
    func: ast.FuncDef,
    span: Span,
) -> Value:
    if isinstance(value, Unknown):
        return value
    if isinstance(value, Tuple):
        raise fail(
            "E0303",
            f"`{func.name}` returns {len(value.items)} values, one is declared",
            span,
            labels=(Label(t.span, "declared here"),),
        )
    want_dtype = cx.frame.real if dtype == "real" else dtype
    settled = settle(cx, Operand(value, span), "a tensor")
    if isinstance(settled, Tree):
        raise fail("E0303", f"`{func.name}` returns a tree, {t.span.text} is declared", span)
    want = TensorType(want_dtype, shape_of(cx, dims or ()))
    got = (
        settled.type
        if isinstance(settled, Tensor)
        else TensorType(want_dtype, settled.shape if isinstance(settled, Fill) else ())
    )
    label = (Label(t.span, "declared here"),)
    if got.shape != want.shape:
        raise fail(
            "E0303",
            f"`{func.name}` returns {_shown(got)}, {t.span.text} is declared",
            span,
            typed(settled, span) if isinstance(settled, Tensor) else str(got),
            label,
            _axis_notes(got, want),
            help=_return_help(got, want, span),
        )
    if got.dtype != want.dtype:
        raise fail(
            "E0204",
            f"`{func.name}` returns {got.dtype}, {want.dtype} is declared",
            span,
            str(got),
            label,
            help=f"`{want.dtype}({span.text})`",
        )
    tensor = adapt(cx, settled, want_dtype, span)
    assert isinstance(tensor, Tensor)
    origins = tuple(Origin(f"`-> {t.span.text}`", t.span) for _ in want.shape)
    return Tensor(tensor.type, tensor.at, tensor.node, (), origins)


def _shown(t: TensorType) -> str:
    return str(t)


def _axis_notes(got: TensorType, want: TensorType) -> tuple[str, ...]:
    if len(got.shape) != len(want.shape):
        return (f"{len(got.shape)} axes, {len(want.shape)} are declared",)
    pairs = enumerate(zip(got.shape, want.shape, strict=True))
    return tuple(f"axis {i}: {g} is not {w}" for i, (g, w) in pairs if g != w)[:3]


def _return_help(got: TensorType, want: TensorType, span: Span) -> str | None:
    if len(got.shape) == len(want.shape) + 1 and got.shape[-1] == ONE:
        return f"`({span.text})[..., 0]` drops the last axis"
    if len(got.shape) == 2 and got.shape[::-1] == want.shape:
        return f"`({span.text}).T`"
    return None
