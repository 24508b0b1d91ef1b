"""Statements: assignment, index statements, expressions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from nnc.diagnostics import Span
from nnc.lang import ast
from nnc.lang.elaborate.branches import returns
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.control import run_assert, run_for, run_if, run_while
from nnc.lang.elaborate.definitions import define
from nnc.lang.elaborate.element_gradients import over_names
from nnc.lang.elaborate.mistakes import Mistake, Poisoned, fail
from nnc.lang.elaborate.probes import run_probe
from nnc.lang.elaborate.results import returned
from nnc.lang.elaborate.storage import may_define, write_storage
from nnc.lang.elaborate.values import (
    UNKNOWN,
    Nothing,
    Origin,
    Stored,
    Tensor,
    Tree,
    Tuple,
    Unknown,
    Value,
)
from nnc.lang.elaborate.walks import always_returns, assigned, nested, syntax
from nnc.lang.elaborate.words import counted, describe


def execute(cx: Context, body: Sequence[ast.Stmt]) -> None:
    """Runs statements in order; after a mistake what the statement defines is Unknown."""
    frame = cx.frame
    for i, stmt in enumerate(body):
        if frame.returned:
            if i and not frame.continued and always_returns(body[i - 1]):
                cx.warn("W0004", "this is never reached", stmt.span)
            return
        cx.step(stmt.span)
        may_return = isinstance(stmt, ast.If | ast.For) and returns([stmt]) is not None
        if may_return:
            frame.after.append(partial(execute, cx, body[i + 1 :]))
        try:
            _statement(cx, stmt)
        except Mistake as mistake:
            cx.report(mistake)
            _poison(cx, stmt)
        except Poisoned:
            _poison(cx, stmt)
        finally:
            if may_return:
                frame.after.pop()


def _poison(cx: Context, stmt: ast.Stmt) -> None:
    for name in assigned([stmt]):
        cx.frame.vars[name] = UNKNOWN
        cx.frame.half.pop(name, None)
    if any(isinstance(s, ast.Return) for s in nested([stmt])):
        cx.frame.result, cx.frame.returned = UNKNOWN, True


def _statement(cx: Context, stmt: ast.Stmt) -> None:
    match stmt:
        case ast.Assign():
            _assign(cx, stmt)
        case ast.Update():
            write_storage(cx, stmt)
        case ast.If():
            run_if(cx, stmt)
        case ast.For():
            run_for(cx, stmt)
        case ast.Return():
            cx.frame.result = returned(cx, stmt)
            cx.frame.returned = True
        case ast.Assert():
            run_assert(cx, stmt)
        case ast.ExprStmt(value=value):
            _expression(cx, value)
        case ast.While():
            run_while(cx, stmt)
        case ast.Probe():
            run_probe(cx, stmt)
        case ast.Yield():
            _yield(cx, stmt)


def _yield(cx: Context, stmt: ast.Yield) -> None:
    if cx.frame.yields is None:
        raise fail("E0319", "`yield` stands in a loop: `ys = for t in T: ...`", stmt.span)
    cx.frame.yields.append([(cx.eval(v), v.span) for v in stmt.values])


def _expression(cx: Context, value: ast.Expr) -> None:
    if isinstance(value, ast.Compare) and value.rest[0][0] == "==":
        first, second = value.first, value.rest[0][1]
        if isinstance(first, ast.Name) and cx.lookup(first.id) is None:
            help = f"`{first.span.text} = {second.span.text}` defines it"
            once = ("undefined", first.span.source.name, first.id)
            what = "`==` compares, it does not define"
            raise fail("E0114", what, value.span, help=help, once=once)
    result = cx.eval(value)
    effect = isinstance(value, ast.Call) and value.bang
    if isinstance(result, Tree) and effect and list(result.leaves) != [""]:
        help = f"`net := {value.span.text}` writes it"
        cx.warn("W0003", "these new parameters are not used", value.span, help)
    elif not effect and not isinstance(result, Unknown | Nothing):
        cx.warn("W0003", "this value is not used", value.span)


def _assign(cx: Context, stmt: ast.Assign) -> None:
    targets, values = stmt.targets, stmt.values
    if len(targets) == 1 and len(values) == 1:
        _define(cx, targets[0], values[0], stmt.span)
        return
    if len(targets) == len(values):
        pairs = list(zip(targets, values, strict=True))
        found = [_tensor(cx, t, v) if isinstance(t, ast.Index) else cx.eval(v) for t, v in pairs]
        _store_all(cx, targets, found)
        return
    if len(values) == 1 and any(isinstance(t, ast.Index) for t in targets):
        _define_parts(cx, targets, values[0])
        return
    if len(values) == 1:
        _unpack(cx, targets, cx.eval(values[0]), values[0].span)
        return
    tuple_ = ", ".join(v.span.text for v in values)
    help = f"a tuple: `{targets[0].span.text} = ({tuple_})`" if len(targets) == 1 else None
    text = f"{counted(len(targets), 'name')} for {counted(len(values), 'value')}"
    raise fail("E0811", text, stmt.span, help=help)


def _store_all(cx: Context, targets: Sequence[ast.Expr], found: Sequence[Value]) -> None:
    """After all values are known: `x[i], y[i] = y[i], x[i]` changes places."""
    for t, value in zip(targets, found, strict=True):
        if isinstance(t, ast.Index) and isinstance(t.value, ast.Name):
            _set(cx, t.value.id, value, t.span)
        else:
            _store(cx, t, value)


def _define_parts(cx: Context, targets: Sequence[ast.Expr], value: ast.Expr) -> None:
    """`a[i], b[i] = f(x[i])`: a tensor of each part of the tuple."""
    if any(isinstance(n, ast.Call) and n.bang for n in syntax(value)):
        text = "the parts of a call with effects are defined one at a time"
        raise fail("E0407", text, value.span)
    found: list[Value] = []
    for k, t in enumerate(targets):
        if not isinstance(t, ast.Index):
            text = "an index statement defines tensors: all names have indices, or none"
            raise fail("E0407", text, t.span)
        found.append(_tensor(cx, t, value, (k, len(targets))))
    _store_all(cx, targets, found)


def _unpack(cx: Context, targets: Sequence[ast.Expr], value: Value, span: Span) -> None:
    if isinstance(value, Unknown):
        raise Poisoned
    items = value.items if isinstance(value, Tuple) else None
    if items is None:
        what = f"{len(targets)} names for one value"
        current = cx.tensor(value)
        raise fail(
            "E0811", what, span, describe(current), help=_unpack_help(current, targets, span)
        )
    if len(items) != len(targets):
        raise fail("E0811", f"{len(targets)} names for {len(items)} values", span)
    for t, item in zip(targets, items, strict=True):
        _store(cx, t, item)


def _unpack_help(value: Value, targets: Sequence[ast.Expr], span: Span) -> str | None:
    text = span.text
    if text.startswith(("max(", "min(")):
        return f"the positions are another value: `arg{text}`"
    if isinstance(value, Tensor) and value.shape and text.isidentifier():
        return f"index it: `{', '.join(f'{text}[{i}]' for i in range(len(targets)))}`"
    return None


def _define(cx: Context, target: ast.Expr, value: ast.Expr, span: Span) -> None:
    if isinstance(target, ast.Index):
        _store_all(cx, [target], [_tensor(cx, target, value)])
        return
    if isinstance(value, ast.ListLit) and not value.items:
        help = "a loop stacks what it yields: `ys = for t in T: ... yield y`"
        raise fail("E0203", "an empty list stays empty", value.span, help=help)
    _store(cx, target, cx.eval(value), span)


def _tensor(
    cx: Context, target: ast.Index, value: ast.Expr, part: tuple[int, int] | None = None
) -> Tensor:
    if not isinstance(target.value, ast.Name):
        raise fail("E0407", "an index statement defines a name", target.value.span)
    may_define(cx, target.value.id, target.value.span)
    return define(cx, target, value, part)


def _store(cx: Context, target: ast.Expr, value: Value, stmt: Span | None = None) -> None:
    if not isinstance(target, ast.Name):
        if isinstance(target, ast.Index):
            raise fail("E0407", "an index statement has one value", target.span)
        raise fail(
            "E0503", "only names are assigned with `=`", target.span, help="`:=` writes storage"
        )
    may_define(cx, target.id, target.span)
    if isinstance(value, Stored):  # `mu = running_mean` keeps this version
        value = cx.tensor(value)
    if isinstance(value, Tensor) and stmt is not None and len(stmt.text) <= 50:
        value = replace(value, place=Origin(f"`{stmt.text}`", stmt))
    _set(cx, target.id, value, target.span)


def _set(cx: Context, name: str, value: Value, span: Span) -> None:
    frame = cx.frame
    if frame.wrt and cx.ranges:
        value = over_names(cx, frame, name, value, span)
    if name in frame.vars:
        frame.older.setdefault(name, []).append(frame.vars[name])
    frame.vars[name] = value
    frame.var_spans[name] = span
    frame.read_only.pop(name, None)  # a new local variable
    frame.half.pop(name, None)
