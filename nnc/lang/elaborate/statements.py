"""Statements: assignment, index statements, expressions."""

from __future__ import annotations

from collections.abc import Sequence

from nnc.diagnostics import Span
from nnc.lang import ast
from nnc.lang.elaborate.context import Context, Mistake, Poisoned, fail
from nnc.lang.elaborate.control import run_assert, run_for, run_if
from nnc.lang.elaborate.definitions import define
from nnc.lang.elaborate.storage import may_define, write_storage
from nnc.lang.elaborate.values import UNKNOWN, Stored, Tuple, Unknown, Value, describe


def execute(cx: Context, body: Sequence[ast.Stmt]) -> None:
    """Runs statements in order; a mistake in one makes what it defines Unknown, the others go on."""
    for stmt in body:
        if cx.frame.returned:
            cx.warn("W0004", "this is never reached", stmt.span)
            return
        try:
            _statement(cx, stmt)
        except Mistake as mistake:
            cx.report(mistake)
            _poison(cx, stmt)
        except Poisoned:
            _poison(cx, stmt)


def _poison(cx: Context, stmt: ast.Stmt) -> None:
    targets: tuple[ast.Expr, ...] = ()
    match stmt:
        case ast.Assign(targets=t) | ast.For(targets=t):
            targets = t
        case ast.Return():
            cx.frame.result, cx.frame.returned = UNKNOWN, True
    for target in targets:
        name = target.value if isinstance(target, ast.Index) else target
        if isinstance(name, ast.Name):
            cx.frame.vars[name.id] = UNKNOWN


def _statement(cx: Context, stmt: ast.Stmt) -> None:
    cx.memo.clear()
    match stmt:
        case ast.Assign():
            _assign(cx, stmt)
        case ast.Update():
            write_storage(cx, stmt)
        case ast.If():
            run_if(cx, stmt)
        case ast.For():
            run_for(cx, stmt)
        case ast.Return(values=values):
            result = tuple(cx.eval(v) for v in values)
            cx.frame.result = result[0] if len(result) == 1 else Tuple(result)
            cx.frame.returned = True
        case ast.Assert():
            run_assert(cx, stmt)
        case ast.ExprStmt(value=value):
            _expression(cx, value)
        case ast.Pass():
            pass
        case ast.While():
            raise fail("E0901", "`while` loops are not compiled yet", stmt.span)
        case ast.Probe():
            raise fail("E0901", "`probe` is not compiled yet", stmt.span)
        case ast.Yield():
            raise fail(
                "E0901", "`yield` stands in a run-time loop, which is not compiled yet", stmt.span
            )


def _expression(cx: Context, value: ast.Expr) -> None:
    cx.eval(value)
    if not (isinstance(value, ast.Call) and value.bang):
        cx.warn("W0003", "this value is not used", value.span)


def _assign(cx: Context, stmt: ast.Assign) -> None:
    targets, values = stmt.targets, stmt.values
    if len(targets) == 1 and len(values) == 1:
        _define(cx, targets[0], values[0], stmt.span)
        return
    if len(targets) == len(values):
        if any(isinstance(t, ast.Index) for t in targets):
            for t, v in zip(targets, values, strict=True):
                _define(cx, t, v, stmt.span)
            return
        found = [cx.eval(v) for v in values]
        for t, value in zip(targets, found, strict=True):
            _store(cx, t, value)
        return
    if len(values) == 1:
        _unpack(cx, targets, cx.eval(values[0]), values[0].span)
        return
    raise fail("E0811", f"{len(targets)} names for {len(values)} values", stmt.span)


def _unpack(cx: Context, targets: Sequence[ast.Expr], value: Value, span: Span) -> None:
    if isinstance(value, Unknown):
        raise Poisoned
    items = value.items if isinstance(value, Tuple) else None
    if items is None:
        raise fail("E0811", f"{len(targets)} names for one value", span, describe(value))
    if len(items) != len(targets):
        raise fail("E0811", f"{len(targets)} names for {len(items)} values", span)
    for t, item in zip(targets, items, strict=True):
        _store(cx, t, item)


def _define(cx: Context, target: ast.Expr, value: ast.Expr, span: Span) -> None:
    if isinstance(target, ast.Index):
        if not isinstance(target.value, ast.Name):
            raise fail("E0407", "an index statement defines a name", target.value.span)
        name = target.value.id
        may_define(cx, name, target.value.span)
        cx.frame.vars[name] = define(cx, target, value)
        cx.frame.var_spans[name] = target.span
        return
    _store(cx, target, cx.eval(value))


def _store(cx: Context, target: ast.Expr, value: Value) -> None:
    if not isinstance(target, ast.Name):
        if isinstance(target, ast.Index):
            raise fail("E0407", "an index statement has one value", target.span)
        raise fail(
            "E0503", "only names are assigned with `=`", target.span, help="`:=` writes storage"
        )
    may_define(cx, target.id, target.span)
    if isinstance(value, Stored):  # `mu = running_mean` keeps this version
        value = cx.tensor(value)
    cx.frame.vars[target.id] = value
    cx.frame.var_spans[target.id] = target.span
