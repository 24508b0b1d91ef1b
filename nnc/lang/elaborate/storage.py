"""`:=`: writing arguments, state, modules and trees."""

from __future__ import annotations

from nnc.diagnostics import Label, Span
from nnc.lang import ast
from nnc.lang.elaborate.arith import adapt, module_tree
from nnc.lang.elaborate.context import Context, Poisoned, fail
from nnc.lang.elaborate.updates import update
from nnc.lang.elaborate.values import (
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
)


def may_define(cx: Context, name: str, span: Span) -> None:
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


def write_storage(cx: Context, stmt: ast.Update) -> None:
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
        cx.store[place.key].now = update(cx, base, target, rhs)
        cx.written_at.setdefault(place.key, target.span)
        return
    if isinstance(place, Fill):
        tensor = adapt(cx, place, cx.frame.real, target.span)
        assert isinstance(tensor, Tensor)
        place = tensor
    if isinstance(place, Tensor) and isinstance(target.value, ast.Name):
        if target.value.id not in cx.frame.vars:
            raise fail("E0503", f"`{target.value.id}` cannot be written", target.value.span)
        cx.frame.vars[target.value.id] = update(cx, place, target, rhs)
        return
    if isinstance(place, Unknown):
        raise Poisoned
    raise fail("E0503", f"{describe(place)} cannot be written by index", target.span)
