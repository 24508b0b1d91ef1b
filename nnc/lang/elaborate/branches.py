"""`if` on a run-time condition: both sides are computed, and what they assign is selected.

A side that ends without `return` beside one that may return is followed by the rest of the
function, so that both sides have a result (decision 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nnc.diagnostics import Label, Span
from nnc.ir.expr import Expr, Op
from nnc.ir.graph import Custom, Node, Update
from nnc.lang import ast
from nnc.lang.elaborate.conditions import select, spelled
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.gates import Gates
from nnc.lang.elaborate.mistakes import Mistake, fail
from nnc.lang.elaborate.values import (
    UNKNOWN,
    Bool,
    Nothing,
    Operand,
    Stored,
    Tensor,
    Tree,
    Tuple,
    Unknown,
    Value,
    Weak,
    of_node,
)
from nnc.lang.elaborate.walks import nested
from nnc.lang.elaborate.words import describe


@dataclass(frozen=True)
class State:
    """What the statements of a branch may change."""

    vars: dict[str, Value]
    store: dict[str, Tensor]


@dataclass(frozen=True)
class _Side:
    """What one side has led to; `spans`: where its variables were assigned last."""

    state: State
    spans: dict[str, Span]
    result: Value | None
    returned: bool


def snapshot(cx: Context) -> State:
    return State(dict(cx.frame.vars), {k: s.now for k, s in cx.store.items()})


def restore(cx: Context, saved: State) -> None:
    cx.frame.vars = dict(saved.vars)
    for key, now in saved.store.items():
        cx.store[key].now = now


def returns(body: Sequence[ast.Stmt]) -> ast.Return | None:
    """The first `return` in it, however deep."""
    return next((s for s in nested(body) if isinstance(s, ast.Return)), None)


def branch(cx: Context, stmt: ast.If, cond: Tensor) -> None:
    """Runs both sides of an `if` on a run-time condition."""
    found = returns([stmt])
    if found is not None and cx.frame.yields is not None:
        help = "assign a variable and return it after the loop"
        raise fail("E0317", "`return` cannot stand in a run-time loop", found.span, help=help)
    whole = cond if cx.ranges else cx.materialized(cond, stmt.cond.span)
    test, before = spelled(whole.at(())), snapshot(cx)
    spans = dict(cx.frame.var_spans)
    a = _side(cx, stmt.then, test, found is not None, before)
    restore(cx, before)
    cx.frame.var_spans = dict(spans)
    b = _side(cx, stmt.orelse, Op("bool", "not", (test,)), found is not None, before)
    if found is not None:
        _join_results(cx, stmt, test, a, b)
    else:
        _join_variables(cx, stmt, test, a, b)
    _join_storage(cx, stmt.span, test, before, a.state, b.state)


def _side(
    cx: Context, body: Sequence[ast.Stmt], test: Expr, returning: bool, before: State
) -> _Side:
    frame = cx.frame
    given = len(frame.yields or ())
    with cx.under(test) if cx.ranges else cx.on_branch(test):
        cx.execute(body)
        if frame.yields and len(frame.yields) > given:
            text = "every turn yields once, whatever the condition"
            help = "assign a variable in both branches, and yield it after the `if`"
            raise fail("E0319", text, frame.yields[given][0][1], help=help)
        if returning:
            go_on(cx)
    side = _Side(snapshot(cx), dict(frame.var_spans), frame.result, frame.returned)
    frame.result, frame.returned = None, False
    return side if cx.generic or cx.ranges else _gated(side, before, test)


def _gated(side: _Side, before: State, test: Expr) -> _Side:
    """The side with gates for gradients, between what it has made and what was there before."""
    known = [n for v in (*before.vars.values(), *before.store.values()) for n in _nodes(v)]
    gates = Gates.of(known, test)
    vars, store = dict(side.state.vars), dict(side.state.store)
    for name, value in vars.items():
        if value is not before.vars.get(name):
            vars[name] = _through(value, gates)
    for key, now in store.items():
        if now is not before.store.get(key) and now.node is not None:
            (made,) = gates.through([now.node])
            store[key] = replace(of_node(made, now.letters, now.origins), place=now.place)
    result = None if side.result is None else _through(side.result, gates)
    return replace(side, state=State(vars, store), result=result)


def _nodes(value: Value) -> list[Node]:
    """The nodes of a value, of all leaves and items."""
    match value:
        case Tensor(node=node) if node is not None:
            return [node]
        case Tuple(items=items):
            return [n for i in items for n in _nodes(i)]
        case Tree(leaves=leaves):
            return [n for v in leaves.values() for n in _nodes(v)]
    return []


def _through(value: Value, gates: Gates) -> Value:
    match value:
        case Tensor(node=node) if node is not None and not gates.is_outside(node):
            (made,) = gates.through([node])
            return value if made is node else replace(value, node=made, at=of_node(made).at)
        case Tuple(items=items):
            return Tuple(tuple(_through(i, gates) for i in items))
        case Tree(leaves=leaves):
            return Tree({k: _through(v, gates) for k, v in leaves.items()}, value.of)
    return value


def go_on(cx: Context) -> None:
    """Runs what follows, from the innermost block out, until there is a `return`."""
    frame = cx.frame
    after = list(frame.after)
    for k in reversed(range(len(after))):
        if frame.returned:
            break
        frame.after = after[:k]
        frame.continued = True
        after[k]()
    frame.after = after


# ---- afterwards ---------------------------------------------------------------------------


def _join_results(cx: Context, stmt: ast.If, test: Expr, a: _Side, b: _Side) -> None:
    """Both sides have come to the end of the function."""
    frame, func = cx.frame, cx.frame.func
    values: list[Value] = []
    for side, holds in ((a, "holds"), (b, "does not hold")):
        value = side.result
        if value is None and func is not None and func.returns is not None and not side.returned:
            label = Label(stmt.cond.span, f"where this {holds}")
            text = f"`{func.name}` ends without `return`"
            raise fail("E0810", text, func.name_span, labels=(label,))
        values.append(Nothing() if value is None else value)
    frame.result, frame.returned = _result(cx, test, values[0], values[1], stmt.span), True


def _result(cx: Context, test: Expr, a: Value, b: Value, span: Span) -> Value:
    if isinstance(a, Unknown) or isinstance(b, Unknown):
        return UNKNOWN
    if isinstance(a, Nothing) or a is b:
        return a
    if isinstance(a, Tuple) and isinstance(b, Tuple):
        pairs = zip(a.items, b.items, strict=True)
        return Tuple(tuple(_result(cx, test, x, y, span) for x, y in pairs))
    if isinstance(a, Weak) and isinstance(b, Weak) and a.dim is not None:
        if a.dim == b.dim:
            return a
        raise fail("E0312", "a size cannot depend on a run-time condition", span)
    value = select(cx, test, Operand(a, span), Operand(b, span), span)
    if isinstance(value, Tree):
        leaves = {k: _whole(cx, v, span) for k, v in value.leaves.items()}
        return Tree(leaves, value.of)
    return _whole(cx, value, span)


def _whole(cx: Context, value: Value, span: Span) -> Value:
    if isinstance(value, Tensor) and not cx.ranges:
        return cx.materialized(value, span)
    return value


def _join_variables(cx: Context, stmt: ast.If, test: Expr, a: _Side, b: _Side) -> None:
    then, other = a.state.vars, b.state.vars
    cx.frame.var_spans = a.spans | b.spans
    for name in dict.fromkeys([*then, *other]):
        x, y = then.get(name), other.get(name)
        if x is None or y is None:  # assigned on one side only: not alive after
            cx.frame.vars.pop(name, None)
            cx.frame.half[name] = cx.frame.var_spans.get(name, stmt.span)
        elif x is not y:
            places = a.spans.get(name, stmt.span), b.spans.get(name, stmt.span)
            cx.frame.vars[name] = _selected(cx, name, test, (x, y), places, stmt.span)


def _selected(
    cx: Context,
    name: str,
    test: Expr,
    values: tuple[Value, Value],
    places: tuple[Span, Span],
    span: Span,
) -> Value:
    a, b = (cx.tensor(v) if isinstance(v, Stored) else v for v in values)
    if isinstance(a, Unknown) or isinstance(b, Unknown):
        return UNKNOWN
    if isinstance(a, Tuple) and isinstance(b, Tuple) and len(a.items) == len(b.items):
        pairs = zip(a.items, b.items, strict=True)
        return Tuple(tuple(_selected(cx, name, test, p, places, span) for p in pairs))
    if isinstance(a, Bool) and isinstance(b, Bool) and a == b:
        return a
    x, y = cx.tensor(a), cx.tensor(b)
    if isinstance(x, Tensor) and isinstance(y, Tensor) and x.type != y.type:
        raise _differ(name, x, y, places)
    if isinstance(a, Tuple) != isinstance(b, Tuple):
        raise _differ(name, x, y, places)
    return select(cx, test, Operand(a, span), Operand(b, span), span)


def _differ(name: str, x: Value, y: Value, places: tuple[Span, Span]) -> Mistake:
    """Two types after the two sides; both places are shown."""
    first, second = (str(v.type) if isinstance(v, Tensor) else describe(v) for v in (x, y))
    help = None
    if isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape == y.shape:
        help = f"cast it in one branch: `{x.dtype}(...)`"
    text = f"`{name}` is {first} after one branch and {second} after the other"
    (one, shown), (last, said) = sorted(
        ((places[0], first), (places[1], second)), key=lambda p: p[0].line
    )
    labels = (Label(one, shown),) if one != last else ()
    return fail("E0312", text, last, said, labels, help=help)


def _join_storage(
    cx: Context, span: Span, test: Expr, before: State, then: State, other: State
) -> None:
    for key, b_now in other.store.items():
        a_now = then.store.get(key, b_now)
        if a_now is b_now:
            continue
        start = before.store.get(key)
        if start is not None and b_now is start and _only_updates(a_now.node, start.node):
            cx.store[key].now = a_now
        elif start is None or a_now is not start or not _only_updates(b_now.node, start.node):
            value = select(cx, test, Operand(a_now, span), Operand(b_now, span), span)
            assert isinstance(value, Tensor)
            cx.store[key].now = cx.materialized(value, span)


def _only_updates(node: Node | None, start: Node | None) -> bool:
    """Whether a version was made by writes that happen only under their condition."""
    while isinstance(node, Custom) or (isinstance(node, Update) and node.guard is not None):
        node = node.source if isinstance(node, Custom) else node.base
    return node is not None and node is start
