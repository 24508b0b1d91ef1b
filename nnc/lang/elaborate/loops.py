"""Run-time loops: `for t in T:`, `ys = for ...: yield`, `while c limit N:`.

The body is elaborated twice: a trial finds what it assigns, then it runs on placeholders for these.
In a function called in index notation the loop is one for all elements: what it carries has the
index names that it depends on as first axes; an element whose condition is false stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

from nnc.diagnostics import NOWHERE, Span
from nnc.ir.expr import Expr, Idx, Load, Op, Select
from nnc.ir.graph import Axis, Compute, Input, Loop, Node, Part
from nnc.lang import ast
from nnc.lang.dims import Dim
from nnc.lang.elaborate.carries import Carries, as_carried, made
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.lifting import Lifted, ranges_of
from nnc.lang.elaborate.mistakes import Poisoned, fail
from nnc.lang.elaborate.values import (
    UNKNOWN,
    Bool,
    Stored,
    Tensor,
    Tree,
    Tuple,
    Unknown,
    Value,
    Weak,
    integer,
    of_node,
    scalar,
)
from nnc.lang.elaborate.walks import assigned
from nnc.lang.elaborate.words import describe
from nnc.lang.types import TensorType

UNLIMITED = 2**31 - 1


@dataclass(frozen=True)
class _State:
    """What a body may change."""

    vars: dict[str, Value]
    store: dict[str, Tensor]
    counters: dict[str, int]
    probes: dict[str, Node]


def _state(cx: Context) -> _State:
    store = {k: s.now for k, s in cx.store.items()}
    return _State(dict(cx.frame.vars), store, dict(cx.counters), dict(cx.probes))


def _restore(cx: Context, s: _State) -> None:
    cx.frame.vars = dict(s.vars)
    cx.counters = dict(s.counters)
    cx.probes = dict(s.probes)
    for key, now in s.store.items():
        cx.store[key].now = now
    _forget_locals(cx, s)


def _forget_locals(cx: Context, before: _State) -> None:
    """Drops the storage of tensors that a turn made: it is not there after the turn."""
    for key in [k for k, s in cx.store.items() if s.kind == "local" and k not in before.store]:
        del cx.store[key]


def run_loop(
    cx: Context,
    span: Span,
    body: Sequence[ast.Stmt],
    var: str | None,
    trip: Dim,
    size: Span,
    targets: Sequence[ast.Expr] = (),
    cond: ast.Expr | None = None,
    limited: bool = False,
) -> None:
    """A loop of `trip` turns, written at `size`; `cond` is looked at before each turn.

    `limited`: by selection, all turns are made.
    """
    _same_for_all(cx, trip, size)
    turn = cx.fresh_var(var or "turn", list(cx.turns))
    before, probed = _state(cx), len(cx.probes)
    lifted = Lifted(cx, cx.frame.outer, span)
    with _turning(cx, turn, trip):
        once = partial(_first_turn, cx, body, var, turn, cond, before)
        changed, keys = _trial(cx, body, before, once)
        if changed is None:
            _poison(cx, body, targets)
            return
        while True:
            carries = Carries(lifted)
            for name in changed:
                cx.frame.vars[name] = carries.place(name, before.vars[name], changed[name])
            for key in keys:
                cx.store[key].now = carries.slot(key, before.store[key])
            if var is not None:
                cx.frame.vars[var] = integer(Dim.of(turn))
            test = None if cond is None else _condition(lifted, cond)
            with _while(cx, test, limited):
                yields = _body(cx, body)
            # What was a number in the first turn may choose another side in later ones.
            names, written = _changes(cx, before, var)
            ends = [t for n in changed for t in carries.end(n, cx.frame.vars.get(n, UNKNOWN))]
            tests = [] if test is None else [scalar(test)]
            outer = _wider(lifted, [*(c.init for c in carries.items), *ends, *yields, *tests])
            if names.keys() <= changed.keys() and {*written} <= {*keys} and outer == lifted.outer:
                break
            changed, keys = names | changed, list(dict.fromkeys([*keys, *written]))
            lifted = Lifted(cx, outer, span)
            _restore(cx, before)
            cx.frame.yields = []
        watched = dict(list(cx.probes.items())[probed:])
        ends += [cx.store[key].now for key in keys]
        # With a limit all turns are made; else there are turns while one element needs them.
        keeps = test is not None and (limited or bool(lifted.outer))
        following = [
            lifted.node(_chosen(cx, test, t, lifted.read(c.slot)) if keeps and test else t)
            for t, c in zip(ends, carries.items, strict=True)
        ]
        yielded = [lifted.node(t) for t in yields]
        going = None if limited or test is None else _any(lifted, test)
    _finish(
        lifted,
        carries,
        following,
        yielded,
        turn,
        trip,
        going,
        watched,
        before,
        list(changed),
        keys,
        targets,
        var,
    )
    _forget_locals(cx, before)


def _while(cx: Context, test: Expr | None, limited: bool) -> AbstractContextManager[None]:
    """A turn of which the result is not taken reads nothing that is not there."""
    if test is not None and cx.ranges:
        return cx.under(test)
    return cx.on_branch(test) if test is not None and limited else nullcontext()


def _same_for_all(cx: Context, trip: Dim, size: Span) -> None:
    """All elements of an index statement make the turns of a loop together."""
    if trip.names & cx.ranges.keys():
        text = "this loop has another number of turns for each index"
        help = f"count in a variable: `t = 0`, `while t < {size.text} limit 100:`, `t = t + 1`"
        raise fail("E0321", text, size, help=help)


def _wider(lifted: Lifted, values: Sequence[Tensor]) -> tuple[Axis, ...]:
    """The index names that the loop is over, and those that `values` use, in order."""
    cx = lifted.cx
    used = {*lifted.outer, *ranges_of(cx, list(values))}
    return tuple(a for v, n in cx.ranges.items() if (a := Axis(v, n)) in used)


def _any(lifted: Lifted, test: Expr) -> Node:
    """Whether some element goes on."""
    node = lifted.node(scalar(test))
    if not lifted.outer:
        return node
    load = Load("bool", node, tuple(Idx(Dim.of(a.var)) for a in lifted.outer))
    span = lifted.cx.at(lifted.span)
    kind = TensorType("bool")
    return Compute(
        type=kind,
        span=span,
        axes=(),
        raxes=lifted.outer,
        op="any",
        body=load,
        regions=lifted.cx.regions,
    )


@contextmanager
def _turning(cx: Context, turn: str, trip: Dim) -> Iterator[None]:
    saved, yielding = dict(cx.turns), cx.frame.yields
    cx.turns[turn] = trip
    cx.frame.yields = []
    try:
        yield
    finally:
        cx.turns, cx.frame.yields = saved, yielding


_Changed = tuple[dict[str, Value] | None, list[str]]  # variables (None: a mistake), storage


def _trial(
    cx: Context, body: Sequence[ast.Stmt], before: _State, once: Callable[[], _Changed]
) -> _Changed:
    """What a turn (`once`) assigns of what was alive before, with the new values of variables.

    With the numbers that variables have in the first turn; where these lead to mistakes (`x[k]`
    with k = N before the loop), with integers that are not known.
    """
    known = len(cx.diagnostics.items)
    found = once()
    counts = {n: v for n in assigned(body) if _is_whole(v := before.vars.get(n))}
    if found[0] is not None or not counts:
        return found
    mistakes = cx.diagnostics.items[known:]
    del cx.diagnostics.items[known:]
    for name in counts:
        cx.frame.vars[name] = of_node(Input(type=TensorType("i32"), name=name, kind="carry"))
    again = once()
    if again[0] is None:
        cx.diagnostics.items[known:] = mistakes
    return again


def _is_whole(value: Value | None) -> bool:
    return isinstance(value, Weak) and value.kind == "int"


def _first_turn(
    cx: Context,
    body: Sequence[ast.Stmt],
    var: str | None,
    turn: str,
    cond: ast.Expr | None,
    before: _State,
) -> _Changed:
    errors = len(cx.diagnostics.errors)
    if var is not None:
        cx.frame.vars[var] = integer(Dim.of(turn))
        cx.frame.used.add(var)
    if cond is not None:
        cx.eval(cond)
    cx.execute(body)
    assert cx.frame.yields is not None
    cx.frame.yields.clear()
    changed, keys = _changes(cx, before, var)
    failed = len(cx.diagnostics.errors) > errors
    returned, cx.frame.returned = cx.frame.returned, False
    if returned:
        cx.frame.result = None
    _restore(cx, before)
    if returned and not failed:
        raise fail(
            "E0317",
            "`return` cannot stand in a run-time loop",
            body[-1].span,
            help="assign a variable and return it after the loop",
        )
    return (None if failed else changed), keys


def _changes(cx: Context, before: _State, var: str | None) -> tuple[dict[str, Value], list[str]]:
    """The variables with their new values, and the storage, that are not what they were."""
    names = {
        n: cx.tensor(v) if isinstance(v, Stored) else v
        for n, v in cx.frame.vars.items()
        if n in before.vars and v is not before.vars[n] and n != var
    }
    return names, [k for k, now in before.store.items() if cx.store[k].now is not now]


def _poison(cx: Context, body: Sequence[ast.Stmt], targets: Sequence[ast.Expr]) -> None:
    names = [t.id for t in targets if isinstance(t, ast.Name)]
    for stmt in body:
        if isinstance(stmt, ast.Assign):
            names += [t.id for t in stmt.targets if isinstance(t, ast.Name)]
    for name in names:
        cx.frame.vars[name] = UNKNOWN


def _condition(lifted: Lifted, cond: ast.Expr) -> Expr:
    """Whether there is another turn (of an element), read from a node."""
    cx = lifted.cx
    value = cx.tensor(cx.eval(cond))
    match value:
        case Tensor(dtype="bool", shape=()):
            if (taken := cx.branch) is not None:  # a side that is not taken has no turns
                value = scalar(Op("bool", "and", (taken, value.at(()))))
            outer = _wider(lifted, [value])
            again = Lifted(cx, outer, cond.span)
            return again.read(again.node(value)).at(())
        case Unknown():
            raise Poisoned
        case Bool(value=True):
            help = "say when it goes on: `while c limit N:`, or `for t in N:`"
            raise fail("E0318", "this loop never ends", cond.span, help=help)
    text = cond.span.text
    bools = isinstance(value, Tensor) and value.dtype == "bool"
    shown = f"`any({text})` or `all({text})`" if bools else f"compare it: `{text} != 0`"
    hint = shown if isinstance(value, Tensor | Weak) else None
    raise fail("E0203", "a condition is one bool", cond.span, describe(value), help=hint)


def _body(cx: Context, body: Sequence[ast.Stmt]) -> list[Tensor]:
    """Runs a turn: what it yields."""
    cx.execute(body)
    given = cx.frame.yields or []
    if len(given) > 1:
        help = "assign a variable in both branches, and yield it after the `if`"
        raise fail("E0319", "a turn yields once", given[1][0][1], help=help)
    return [as_carried(cx, value, at, None) for value, at in (given[0] if given else [])]


def _chosen(cx: Context, test: Expr, new: Tensor, old: Tensor) -> Tensor:
    """`new if test else old`, element by element."""

    def at(index: tuple[Expr, ...]) -> Expr:
        return Select(new.dtype, test, new.at(index), old.at(index))

    return made(cx, Tensor(new.type, at), new.node.span if new.node is not None else NOWHERE)


def _finish(
    lifted: Lifted,
    carries: Carries,
    following: list[Node],
    yields: list[Node],
    turn: str,
    trip: Dim,
    cond: Node | None,
    watched: dict[str, Node],
    before: _State,
    names: list[str],
    keys: list[str],
    targets: Sequence[ast.Expr],
    var: str | None,
) -> None:
    """The Loop node, and what its results are called after it."""
    cx, span = lifted.cx, lifted.span
    cx.frame.vars = {n: v for n, v in cx.frame.vars.items() if n in before.vars}
    if var is not None:
        cx.frame.vars.pop(var, None)
    if watched and cond is not None:
        text = "`probe` in a `while` without a limit: nobody knows how many values there will be"
        raise fail("E0320", text, span, help="`while c limit N:` keeps at most N")
    outs = [*yields, *watched.values()]
    if not carries.items and not outs:
        return
    first = carries.items[0].slot.type if carries.items else outs[0].type.stacked(trip)
    loop = Loop(
        type=first,
        span=cx.at(span),
        var=turn,
        trip=trip,
        carries=tuple(c.slot for c in carries.items),
        init=tuple(lifted.node(c.init) for c in carries.items),
        next=tuple(following),
        yields=tuple(outs),
        cond=cond,
        regions=cx.regions,
    )
    ends = iter(
        lifted.read(Part(type=c.slot.type, span=loop.span, source=loop, index=i, name=c.name))
        for i, c in enumerate(carries.items)
    )
    for name in names:
        cx.frame.vars[name] = _refilled(carries.shapes[name], lambda: next(ends))
    for key in keys:
        old = cx.store[key].now
        new = next(ends)
        cx.store[key].now = Tensor(new.type, new.at, new.node, old.letters, old.origins)
    stacked: list[Value] = []
    for k, _ in enumerate(yields):
        stacked.append(lifted.stacked(Part.of(loop, len(carries.items) + k)))
    for k, path in enumerate(watched, len(yields)):
        cx.probes[path] = Part.of(loop, len(carries.items) + k, cx.probes[path].name)
    _assign(cx, targets, stacked, span)


def _refilled(shape: Value, take: Callable[[], Tensor]) -> Value:
    match shape:
        case Tree(leaves=leaves, of=of):
            return Tree({k: take() for k in leaves}, of)
        case Tuple(items=items):
            return Tuple(tuple(take() for _ in items))
    return take()


def _assign(cx: Context, targets: Sequence[ast.Expr], stacked: list[Value], span: Span) -> None:
    if not targets:
        return
    if not stacked:
        raise fail("E0319", "the loop yields nothing", span, help="`yield x` in its body")
    if len(targets) != len(stacked):
        raise fail("E0811", f"{len(targets)} names for {len(stacked)} yielded values", span)
    for target, value in zip(targets, stacked, strict=True):
        if not isinstance(target, ast.Name):
            raise fail("E0503", "the results of a loop are names", target.span)
        cx.frame.vars[target.id] = value
        cx.frame.var_spans[target.id] = target.span
