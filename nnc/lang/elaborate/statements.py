"""Statements: assignment, index statements, storage updates, static and run-time conditions, static loops."""

from __future__ import annotations

from collections.abc import Sequence

from nnc.diagnostics import Label, Span
from nnc.ir.expr import Op
from nnc.lang import ast
from nnc.lang.dims import Dim
from nnc.lang.elaborate import index as indexing
from nnc.lang.elaborate.arith import Operand, adapt, module_tree
from nnc.lang.elaborate.context import Context, Mistake, Poisoned, fail
from nnc.lang.elaborate.expressions import iteration, select
from nnc.lang.elaborate.values import (
    UNKNOWN,
    Bool,
    Fill,
    Module,
    Stored,
    Tensor,
    Tree,
    Tuple,
    Unknown,
    Value,
    Weak,
    describe,
    integer,
)


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
            _update(cx, stmt)
        case ast.If():
            _if(cx, stmt)
        case ast.For():
            _for(cx, stmt)
        case ast.Return(values=values):
            result = tuple(cx.eval(v) for v in values)
            cx.frame.result = result[0] if len(result) == 1 else Tuple(result)
            cx.frame.returned = True
        case ast.Assert():
            _assert(cx, stmt)
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


# ---- assignment -----------------------------------------------------------------------------------


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
        _may_define(cx, name, target.value.span)
        cx.frame.vars[name] = indexing.define(cx, target, value)
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
    _may_define(cx, target.id, target.span)
    if isinstance(value, Stored):  # `mu = running_mean` keeps this version
        value = cx.tensor(value)
    cx.frame.vars[target.id] = value
    cx.frame.var_spans[target.id] = target.span


def _may_define(cx: Context, name: str, span: Span) -> None:
    frame = cx.frame
    if name in frame.dims:
        raise fail("E0811", f"`{name}` is a size here", span, help="use another name")
    if isinstance(frame.vars.get(name), Stored):
        raise fail(
            "E0503", f"`{name}` is `inout`: it is written with `:=`", span, help=f"`{name} := ...`"
        )
    if frame.module is not None and name in frame.module.leaves and name not in frame.vars:
        raise fail(
            "E0503",
            f"`{name}` is a {frame.module.leaves[name].storage} of the module",
            span,
            help=f"`{name} := ...` writes it; use another name for a local value",
        )


# ---- storage updates ------------------------------------------------------------------------------


def _update(cx: Context, stmt: ast.Update) -> None:
    if len(stmt.targets) != len(stmt.values):
        if len(stmt.values) == 1:
            value = cx.eval(stmt.values[0])
            if isinstance(value, Tuple) and len(value.items) == len(stmt.targets):
                for t, v in zip(stmt.targets, value.items, strict=True):
                    _write_whole(cx, t, v, stmt.values[0].span)
                return
        raise fail("E0811", f"{len(stmt.targets)} targets for {len(stmt.values)} values", stmt.span)
    pairs = list(zip(stmt.targets, stmt.values, strict=True))
    whole = [(t, v) for t, v in pairs if not isinstance(t, ast.Index)]
    values = [(t, cx.eval(v), v.span) for t, v in whole]
    for t, value, span in values:
        _write_whole(cx, t, value, span)
    for place, rhs in pairs:
        if isinstance(place, ast.Index):
            _write_part(cx, place, rhs)


def _write_whole(cx: Context, target: ast.Expr, value: Value, span: Span) -> None:
    if isinstance(value, Unknown):
        raise Poisoned
    place = _target(cx, target)
    match place:
        case Stored(key=key):
            _write(cx, key, value, target.span, span)
        case Module():
            _write_module(cx, place, value, target.span, span)
        case Tree():
            _write_tree(cx, place, value, target, span)
        case Tensor() if isinstance(target, ast.Name) and target.id in cx.frame.vars:
            new = adapt(cx, value, place.dtype, span)
            if isinstance(new, Tensor):
                _same_shape(place, new, target.span, span)
                cx.frame.vars[target.id] = new
        case Unknown():
            raise Poisoned
        case _:
            raise fail("E0503", f"{describe(place)} cannot be written", target.span)


def _target(cx: Context, target: ast.Expr) -> Value:
    value = cx.eval(target)
    name = target.id if isinstance(target, ast.Name) else ""
    if isinstance(value, Tensor) and name in cx.frame.read_only:
        raise fail(
            "E0503",
            f"`{name}` is an argument and not `inout`",
            target.span,
            labels=(Label(cx.frame.read_only[name], "declared here"),),
            help=f"`inout {name}: ...`",
        )
    return value


def _write(cx: Context, key: str, value: Value, target: Span, span: Span) -> None:
    slot = cx.store[key]
    _writable(cx, key, target)
    new = adapt(cx, value, slot.now.dtype, span)
    if isinstance(new, Tree):
        raise fail("E0303", "a tree is written to a tensor", span)
    old = slot.now
    if new.shape == () and old.shape:
        scalar = new
        new = cx.compute(old.shape, lambda i: scalar.at(()), span)
    _same_shape(old, new, target, span)
    slot.now = Tensor(new.type, new.at, new.node, old.letters, old.origins)
    cx.written_at.setdefault(key, target)


def _same_shape(old: Tensor, new: Tensor, target: Span, span: Span) -> None:
    if old.shape != new.shape:
        raise fail(
            "E0303",
            "this has not the shape of what it is written to",
            span,
            str(new.type),
            (Label(target, str(old.type)),),
        )


def _writable(cx: Context, key: str, target: Span) -> None:
    slot = cx.store[key]
    frame = cx.frame
    if slot.writable and (
        frame.train is not False or frame.exported or slot.kind in ("arg", "local")
    ):
        return
    if slot.writable:
        raise fail(
            "E0502",
            f"this writes `{key}` in a function that was called without `!`",
            target,
            help="call it with `!`",
        )
    span = cx.calls[0][1] if cx.calls else target
    place = f"{target.source.name}:{target.line}"
    raise fail(
        "E0501",
        f"this call would write to `{slot.root}`, which is read-only here",
        span,
        f"updates {key} ({place})" if span is not target else "",
        help="without `!` the stored values are used and kept"
        if cx.calls
        else f"declare it `inout {slot.root}: ...`",
    )


def _write_module(cx: Context, module: Module, value: Value, target: Span, span: Span) -> None:
    new = module_tree(cx, value) if isinstance(value, Module) else value
    if isinstance(new, Weak | Fill):
        old = module_tree(cx, module)
        new = Tree(dict.fromkeys(old.leaves, new), old.of)
    if not isinstance(new, Tree):
        raise fail(
            "E0303", f"a module is written from a tree of its params, this is {describe(new)}", span
        )
    if cx.generic:
        return
    prefix = module.path + "."
    mine = [k for k, s in cx.store.items() if k.startswith(prefix) and s.kind == "param"]
    if [k[len(prefix) :] for k in mine] != list(new.leaves):
        raise fail("E0303", f"this tree does not have the leaves of {module.inst.id}", span)
    for key in mine:
        _write(cx, key, new.leaves[key[len(prefix) :]], target, span)


def _write_tree(cx: Context, place: Tree, value: Value, target: ast.Expr, span: Span) -> None:
    """A state tree: `m := b1 * m + ...`."""
    frame = cx.frame
    owner = frame.owner
    if not isinstance(target, ast.Name | ast.Attr):
        raise fail("E0503", "a tree is written as a whole", target.span)
    if isinstance(target, ast.Name) and target.id in frame.vars:
        raise fail("E0503", f"`{target.id}` is an argument and not `inout`", target.span)
    new: Value = module_tree(cx, value) if isinstance(value, Module) else value
    if isinstance(new, Weak | Fill):
        new = Tree(dict.fromkeys(place.leaves, new), place.of)
    if not isinstance(new, Tree):
        raise fail("E0303", f"{describe(new)} is written to a tree", span)
    if isinstance(target, ast.Attr):
        base = cx.eval(target.value)
        owner = base if isinstance(base, Module) else owner
    name = target.id if isinstance(target, ast.Name) else target.name
    prefix = f"{owner.path}.{name}." if owner is not None and owner.path else f"{name}."
    if cx.generic:
        return
    if list(new.leaves) != list(place.leaves):
        raise fail("E0313", "these trees have different leaves", span)
    for key, leaf in new.leaves.items():
        _write(cx, prefix + key, leaf, target.span, span)


def _write_part(cx: Context, target: ast.Index, rhs: ast.Expr) -> None:
    """`x[...] := e` on storage or a local tensor."""
    place = _target(cx, target.value)
    if isinstance(place, Stored):
        _writable(cx, place.key, target.value.span)
        base = cx.store[place.key].now
        cx.store[place.key].now = indexing.update(cx, base, target, rhs)
        cx.written_at.setdefault(place.key, target.span)
        return
    if isinstance(place, Fill):
        tensor = adapt(cx, place, cx.frame.real, target.span)
        assert isinstance(tensor, Tensor)
        place = tensor
    if isinstance(place, Tensor) and isinstance(target.value, ast.Name):
        if target.value.id not in cx.frame.vars:
            raise fail("E0503", f"`{target.value.id}` cannot be written", target.value.span)
        cx.frame.vars[target.value.id] = indexing.update(cx, place, target, rhs)
        return
    if isinstance(place, Unknown):
        raise Poisoned
    raise fail("E0503", f"{describe(place)} cannot be written by index", target.span)


# ---- control flow -----------------------------------------------------------------------------------


def _if(cx: Context, stmt: ast.If) -> None:
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


def _for(cx: Context, stmt: ast.For) -> None:
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
        _may_define(cx, stmt.vars[0], stmt.span)
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


def _assert(cx: Context, stmt: ast.Assert) -> None:
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


__all__ = ["execute"]
