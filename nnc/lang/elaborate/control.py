"""Conditions, loops and assertions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from nnc.diagnostics import Span
from nnc.lang import ast
from nnc.lang.dims import Dim, Facts
from nnc.lang.elaborate.assertions import conjuncts
from nnc.lang.elaborate.branches import branch, go_on, restore, returns, snapshot
from nnc.lang.elaborate.clauses import constraint, states_equality, vanishes
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.lists import iteration
from nnc.lang.elaborate.loops import UNLIMITED, run_loop
from nnc.lang.elaborate.mistakes import Mistake, fail
from nnc.lang.elaborate.storage import may_define
from nnc.lang.elaborate.values import (
    UNKNOWN,
    Bool,
    Known,
    Tensor,
    Tuple,
    Unknown,
    Value,
    Weak,
    integer,
)
from nnc.lang.elaborate.walks import always_returns, assigned
from nnc.lang.elaborate.words import describe


def run_if(cx: Context, stmt: ast.If) -> None:
    """`if` on a static condition selects code, on a run-time scalar it selects values."""
    cond = cx.tensor(cx.eval(stmt.cond))
    match cond:
        case Bool(value=True):
            cx.execute(stmt.then)
        case Bool(value=False):
            cx.execute(stmt.orelse)
        case Bool():
            _both(cx, stmt, cond)
        case Unknown():
            _both(cx, stmt, Bool(None))
        case Tensor(dtype="bool", shape=()):
            branch(cx, stmt, cond)
        case _:
            raise no_condition(cx, cond, stmt.cond.span)


def no_condition(cx: Context, value: Value, span: Span) -> Mistake:
    """A condition that is not one bool."""
    help = None
    if isinstance(value, Tensor) and value.dtype == "bool":
        help = f"`all({span.text})` or `any({span.text})`"
    elif isinstance(value, Tensor | Weak):
        help = f"compare it: `{span.text} != 0`"
    return fail("E0203", "a condition is one bool", span, describe(value), help=help)


def _both(cx: Context, stmt: ast.If, cond: Bool) -> None:
    """A static condition that is not known in the generic check: both sides are checked."""
    frame = cx.frame
    before, yields = snapshot(cx), frame.yields if frame.yields is not None else []
    given = len(yields)
    _side(cx, stmt.then, cond.yes)
    yielded, yields[given:] = yields[given:], []
    then_returned, result, after_then = frame.returned, frame.result, snapshot(cx)
    restore(cx, before)
    frame.returned, frame.result = False, None
    _side(cx, stmt.orelse, cond.no, alone=then_returned)
    if not yields[given:]:
        yields += yielded  # a turn yields on one side only
    if then_returned and not frame.returned:
        return  # what follows runs only after the other side
    if frame.returned and not then_returned:
        restore(cx, after_then)
        frame.returned, frame.result = False, None
        _side(cx, (), cond.yes, alone=True)
        return
    if then_returned:
        frame.result = result
        return
    for name in {*after_then.vars, *frame.vars}:
        a, b = after_then.vars.get(name), frame.vars.get(name)
        if a is not b:
            frame.vars[name] = _joined(a, b)


def _side(cx: Context, body: Sequence[ast.Stmt], known: Known, alone: bool = False) -> None:
    """One side. What leans on an equality of sizes is decided by the numbers of each instance.

    `alone`: the other side has returned, so that what follows is part of this one.
    """
    before = len(cx.diagnostics.items)
    with cx.assuming(known.facts):
        cx.execute(body)
        follows = alone and not cx.frame.returned
        if follows and (known.open or states_equality(known.facts)):
            go_on(cx)
        found = cx.diagnostics.items[before:]
        left = [d for d in found if not vanishes(cx, d, known.open)]
    if len(left) < len(found):
        cx.diagnostics.items[before:] = left
        if (follows or (body and always_returns(body[-1]))) and not cx.frame.returned:
            cx.frame.returned, cx.frame.result = True, UNKNOWN


def _joined(a: Value | None, b: Value | None) -> Value:
    if isinstance(a, Tensor) and isinstance(b, Tensor) and a.type == b.type:
        return b
    return UNKNOWN


def run_for(cx: Context, stmt: ast.For) -> None:
    iterable = cx.eval(stmt.iterable)
    size = iterable.dim if isinstance(iterable, Weak) else None
    if size is not None and (stmt.targets or _is_run_time(cx, stmt.iterable, size)):
        var, *more = stmt.vars
        if more:
            help = f"`for {var} in {stmt.iterable.span.text}:` runs over 0 ... {size - 1}"
            raise fail("E0811", f"{len(stmt.vars)} names for one number", stmt.span, help=help)
        may_define(cx, var, stmt.span)
        run_loop(cx, stmt.span, stmt.body, var, size, stmt.iterable.span, stmt.targets)
        _forget(cx, stmt.body)
        return
    items = iteration(cx, iterable, stmt.iterable.span)
    if stmt.targets:
        raise fail("E0319", "a loop that yields runs over a size", stmt.iterable.span)
    if items is None:
        _generic_loop(cx, stmt, iterable)
        return
    _run_items(cx, stmt, items, 0)
    for name in stmt.vars:
        cx.frame.vars.pop(name, None)


def _run_items(cx: Context, stmt: ast.For, items: Sequence[Value], start: int) -> None:
    """The turns from `start` on. A run-time `return` in one is followed by the others."""
    frame, may_return = cx.frame, returns(stmt.body) is not None
    for k in range(start, len(items)):
        _loop_item(cx, stmt, items[k])
        if may_return:
            frame.after.append(partial(_run_items, cx, stmt, items, k + 1))
        cx.execute(stmt.body)
        if may_return:
            frame.after.pop()
        if frame.returned:
            break


def _is_run_time(cx: Context, e: ast.Expr, size: Dim) -> bool:
    """Whether a loop over this size runs at run time: sizes of arguments do, module parameters do
    not."""
    if isinstance(e, ast.Name) and e.id in cx.frame.dims:
        return True
    return size.const is None and not cx.generic


def run_while(cx: Context, stmt: ast.While) -> None:
    """`while c limit N:` looks at c before each of at most N turns."""
    trip = Dim.of(UNLIMITED) if stmt.limit is None else cx.eval_dim(stmt.limit)
    limited = stmt.limit is not None
    size = stmt.cond.span if stmt.limit is None else stmt.limit.span
    run_loop(cx, stmt.span, stmt.body, None, trip, size, (), stmt.cond, limited)
    _forget(cx, stmt.body)


def _forget(cx: Context, body: Sequence[ast.Stmt]) -> None:
    """What only a run-time loop assigns is not there after it: it may have no turns."""
    spans = cx.frame.var_spans
    lost = [n for n in assigned(body) if n not in cx.frame.vars and n in spans]
    cx.frame.looped.update({n: spans[n] for n in lost})


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
    facts = cx.facts
    if isinstance(iterable, Weak) and iterable.dim is not None:
        name = stmt.vars[0]
        item = integer(Dim.of(name))
        cx.facts = Facts(facts.zero | {name}, (*facts.nonneg, iterable.dim - 1 - Dim.of(name)))
    for name in stmt.vars:
        may_define(cx, name, stmt.span)
        cx.frame.vars[name] = item
        cx.frame.used.add(name)
    cx.execute(stmt.body)
    cx.facts = facts
    for name, value in list(cx.frame.vars.items()):
        if value is not before.get(name):
            cx.frame.vars[name] = _joined(before.get(name), value)
    for name in stmt.vars:
        cx.frame.vars.pop(name, None)


def run_assert(cx: Context, stmt: ast.Assert) -> None:
    """A condition on sizes is checked at entry; one on values stands in a test only."""
    if cx.frame.func is not None and _about_sizes(cx, stmt.cond):
        _assert_sizes(cx, stmt)
        return
    value = cx.tensor(cx.eval(stmt.cond))
    match value:
        case Bool(value=False):
            raise fail("E0311", stmt.message or "this assertion does not hold", stmt.cond.span)
        case Bool() | Unknown():
            return
        case Tensor(dtype="bool", shape=()) if cx.frame.func is not None:
            help = "return the condition, or assert it in a `test`"
            text = "a function asserts conditions on sizes only"
            raise fail("E0311", text, stmt.cond.span, "depends on values", help=help)
        case Tensor(dtype="bool", shape=()):
            cx.asserted.append((cx.as_node(value, stmt.cond.span), stmt))
            return
    raise no_condition(cx, value, stmt.cond.span)


def _about_sizes(cx: Context, cond: ast.Expr) -> bool:
    """Whether a condition compares sizes that depend on the arguments."""
    parts = conjuncts(cond)
    if not all(isinstance(p, ast.Compare) for p in parts):
        return False
    compared = [p for p in parts if isinstance(p, ast.Compare)]
    sides = [side for p in compared for side in (p.first, *(right for _, right in p.rest))]
    values = [cx.eval(s) for s in sides]
    dims = [v.dim for v in values if isinstance(v, Weak) and v.dim is not None]
    return len(dims) == len(values) and any(d.const is None for d in dims)


def _assert_sizes(cx: Context, stmt: ast.Assert) -> None:
    inner = cx.turns.keys() | cx.ranges.keys()
    for part in conjuncts(stmt.cond):
        for fact, equal, text in constraint(cx, cx.frame, part):
            failed = cx.proves(-fact - 1) or (equal and cx.proves(fact - 1))
            if failed or fact.names & inner:
                says = stmt.message or "this assertion does not hold"
                says = says if failed else "an assertion cannot depend on the turn of a loop"
                raise fail("E0311", says, part.span, f"here: {fact} {'==' if equal else '>='} 0")
            if not cx.proves(fact) or equal:
                cx.facts = cx.facts.plus(*((fact, -fact) if equal else (fact,)))
                said = f"{text} ({stmt.message})" if stmt.message else text
                cx.require(fact, equal, said, part.span)
