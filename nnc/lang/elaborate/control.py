"""Conditions, loops and assertions."""

from __future__ import annotations

from nnc.diagnostics import Span
from nnc.ir.expr import Op
from nnc.lang import ast
from nnc.lang.dims import Dim
from nnc.lang.elaborate.conditions import select
from nnc.lang.elaborate.context import Context, fail
from nnc.lang.elaborate.lists import iteration
from nnc.lang.elaborate.storage import may_define
from nnc.lang.elaborate.values import (
    UNKNOWN,
    Bool,
    Operand,
    Tensor,
    Tuple,
    Unknown,
    Value,
    Weak,
    describe,
    integer,
)


def run_if(cx: Context, stmt: ast.If) -> None:
    cond = cx.tensor(cx.eval(stmt.cond))
    match cond:
        case Bool(value=True):
            cx.execute(stmt.then)
        case Bool(value=False):
            cx.execute(stmt.orelse)
        case Bool() | Unknown():
            _both(cx, stmt)
        case Tensor(dtype="bool", shape=()):
            _branch(cx, stmt, cond)
        case _:
            raise fail(
                "E0203",
                "a condition must be one bool",
                stmt.cond.span,
                describe(cond),
                help="`all(...)` or `any(...)` of a tensor of conditions",
            )


def _snapshot(cx: Context) -> tuple[dict[str, Value], dict[str, Tensor]]:
    return dict(cx.frame.vars), {k: s.now for k, s in cx.store.items()}


def _restore(cx: Context, saved: tuple[dict[str, Value], dict[str, Tensor]]) -> None:
    cx.frame.vars = dict(saved[0])
    for k, now in saved[1].items():
        cx.store[k].now = now


def _both(cx: Context, stmt: ast.If) -> None:
    """A static condition that is not known in the generic check: both sides are checked."""
    before = _snapshot(cx)
    cx.execute(stmt.then)
    returned, result = cx.frame.returned, cx.frame.result
    after_then = dict(cx.frame.vars)
    _restore(cx, before)
    cx.frame.returned, cx.frame.result = False, None
    cx.execute(stmt.orelse)
    both = returned and cx.frame.returned
    for name in {*after_then, *cx.frame.vars}:
        a, b = after_then.get(name), cx.frame.vars.get(name)
        if a is not b:
            cx.frame.vars[name] = _joined(a, b)
    cx.frame.returned = both
    if returned and not both:
        cx.frame.result = None
    elif both:
        cx.frame.result = result if cx.frame.result is None else cx.frame.result


def _joined(a: Value | None, b: Value | None) -> Value:
    if isinstance(a, Tensor) and isinstance(b, Tensor) and a.type == b.type:
        return b
    return UNKNOWN


def _branch(cx: Context, stmt: ast.If, cond: Tensor) -> None:
    """A run-time condition: both sides are computed, what they assign is selected."""
    before = _snapshot(cx)
    cx.execute(stmt.then)
    if cx.frame.returned:
        raise fail(
            "E0901",
            "`return` under a run-time condition is not compiled yet",
            stmt.span,
            help="assign in both branches and return after the `if`",
        )
    then_vars, then_store = _snapshot(cx)
    _restore(cx, before)
    cx.execute(stmt.orelse)
    if cx.frame.returned:
        raise fail("E0901", "`return` under a run-time condition is not compiled yet", stmt.span)
    else_vars, else_store = _snapshot(cx)
    test = cond.at(())
    negated = Op("bool", "not", (test,))
    del negated
    for name in dict.fromkeys([*then_vars, *else_vars]):
        a, b = then_vars.get(name), else_vars.get(name)
        if a is b:
            continue
        if a is None or b is None:
            cx.frame.vars.pop(name, None)  # assigned on one side only: not alive after
            continue
        chosen = select(cx, test, Operand(a, stmt.span), Operand(b, stmt.span), stmt.span)
        _same_type(cx, name, a, b, stmt.span)
        cx.frame.vars[name] = chosen
    for key, b_now in else_store.items():
        a_now = then_store.get(key, b_now)
        if a_now is not b_now:
            value = select(
                cx, test, Operand(a_now, stmt.span), Operand(b_now, stmt.span), stmt.span
            )
            assert isinstance(value, Tensor)
            cx.store[key].now = value


def _same_type(cx: Context, name: str, a: Value, b: Value, span: Span) -> None:
    x, y = cx.tensor(a), cx.tensor(b)
    if isinstance(x, Tensor) and isinstance(y, Tensor) and x.type != y.type:
        raise fail(
            "E0312", f"`{name}` is {x.type} after one branch and {y.type} after the other", span
        )


def run_for(cx: Context, stmt: ast.For) -> None:
    iterable = cx.eval(stmt.iterable)
    if isinstance(iterable, Weak) and iterable.dim is not None and not cx.generic:
        if iterable.dim.const is None:
            raise fail("E0901", "a loop over a run-time size is not compiled yet", stmt.span)
    items = iteration(cx, iterable, stmt.iterable.span)
    if stmt.targets:
        raise fail("E0901", "`for` with `yield` is not compiled yet", stmt.span)
    if items is None:
        _generic_loop(cx, stmt, iterable)
        return
    for item in items:
        _loop_item(cx, stmt, item)
        cx.execute(stmt.body)
        if cx.frame.returned:
            break
    for name in stmt.vars:
        cx.frame.vars.pop(name, None)


def _loop_item(cx: Context, stmt: ast.For, item: Value) -> None:
    if len(stmt.vars) == 1:
        may_define(cx, stmt.vars[0], stmt.span)
        cx.frame.vars[stmt.vars[0]] = item
        cx.frame.used.add(stmt.vars[0])
        return
    if not isinstance(item, Tuple) or len(item.items) != len(stmt.vars):
        raise fail("E0811", f"{len(stmt.vars)} names for {describe(item)}", stmt.span)
    cx.frame.vars.update(zip(stmt.vars, item.items, strict=True))


def _generic_loop(cx: Context, stmt: ast.For, iterable: Value) -> None:
    """A static loop of unknown length: the body is checked once; what changes type is Unknown."""
    like = getattr(iterable, "like", None)
    before = dict(cx.frame.vars)
    item: Value = like if like is not None else UNKNOWN
    if isinstance(iterable, Weak):
        item = integer(Dim.of(stmt.vars[0]))
    for name in stmt.vars:
        cx.frame.vars[name] = item
    cx.execute(stmt.body)
    for name, value in list(cx.frame.vars.items()):
        if value is not before.get(name):
            cx.frame.vars[name] = _joined(before.get(name), value)
    for name in stmt.vars:
        cx.frame.vars.pop(name, None)


def run_assert(cx: Context, stmt: ast.Assert) -> None:
    value = cx.tensor(cx.eval(stmt.cond))
    match value:
        case Bool(value=False):
            raise fail("E0311", stmt.message or "this assertion does not hold", stmt.cond.span)
        case Bool() | Unknown():
            return
        case Tensor(dtype="bool", shape=()) if value.node is not None:
            cx.asserted.append((value.node, stmt))
            return
    raise fail(
        "E0203",
        "an assertion is one bool",
        stmt.cond.span,
        describe(value),
        help="`all(...)` of a tensor of conditions",
    )
