"""`:=`: writing arguments, state, modules and trees."""

from __future__ import annotations

from collections.abc import Sequence

from nnc.diagnostics import Label, Span
from nnc.ir.expr import Expr, Idx
from nnc.ir.graph import Axis
from nnc.lang import ast
from nnc.lang.dims import Dim
from nnc.lang.elaborate.arith import adapt, as_tensor, module_tree, part_alike
from nnc.lang.elaborate.broadcasting import free_dtype, typed
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.mistakes import Mistake, Poisoned, fail
from nnc.lang.elaborate.places import defined, place, read_only, without_bang
from nnc.lang.elaborate.updates import Writing, updated, writing
from nnc.lang.elaborate.values import (
    Module,
    Stored,
    Tensor,
    Tree,
    Tuple,
    Unknown,
    Value,
    View,
    Weak,
    WeakTensor,
)
from nnc.lang.elaborate.walks import nested, syntax
from nnc.lang.elaborate.words import counted, describe


def may_define(cx: Context, name: str, span: Span) -> None:
    frame = cx.frame
    sizes = frame.module.args if frame.module is not None else {}
    own = name[0].isupper() and name in sizes and name not in frame.vars
    if name in frame.dims or own:
        raise fail("E0811", f"`{name}` is a size here", span, help="use another name")
    if name in frame.inout:
        raise fail(
            "E0503",
            f"`{name}` is `inout`: it is written with `:=`",
            span,
            labels=(Label(frame.inout[name], "declared here"),),
            help=f"`{name} := ...`",
        )
    if frame.module is not None and name in frame.module.leaves and name not in frame.vars:
        leaf = frame.module.leaves[name]
        raise fail(
            "E0503",
            f"`{name}` is a {leaf.storage} of the module",
            span,
            labels=(Label(leaf.decl.name_span, "declared here"),),
            help=f"`{name} := ...` writes it; use another name for a local value",
        )


def write_storage(cx: Context, stmt: ast.Update) -> None:
    """`targets := values`; all values are computed before anything is written."""
    if cx.ranges:
        raise _for_each(cx, stmt)
    parts = [t for t in stmt.targets if isinstance(t, ast.Index)]
    if parts and len(stmt.targets) > 1:
        raise fail("E0811", "parts are written one at a time", parts[0].span)
    if len(stmt.targets) == len(stmt.values):
        if parts:
            _write_part(cx, parts[0], stmt.values[0])
            return
        pairs = zip(stmt.targets, stmt.values, strict=True)
        values = [(t, _now(cx, cx.eval(v)), v.span) for t, v in pairs]
    else:
        values = _unpacked(cx, stmt)
    for t, value, span in values:
        _write_whole(cx, t, value, span)


def _for_each(cx: Context, stmt: ast.Update) -> Mistake:
    """A write in a function that is called in index notation."""
    help = "return the new value, and write it where the function is called"
    base = stmt.targets[0].value if isinstance(stmt.targets[0], ast.Index) else None
    if isinstance(base, ast.Name) and base.id in cx.frame.vars and base.id not in cx.frame.inout:
        help = f"define all of it at once: `{base.id}[k:2] = a if k == 0 else b`"
    text = "writing inside index notation is not compiled yet"
    labels = [Label(c.span, "called for each element") for c in cx.calls[-1:]]
    once = ("write for each", stmt.span.source.name, help)
    return fail("E0901", text, stmt.span, labels=labels, help=help, once=once)


def _now(cx: Context, value: Value) -> Value:
    """The value itself, whatever is written afterwards."""
    return module_tree(cx, value) if isinstance(value, Module) else cx.tensor(value)


def _unpacked(cx: Context, stmt: ast.Update) -> list[tuple[ast.Expr, Value, Span]]:
    value = cx.eval(stmt.values[0]) if len(stmt.values) == 1 else None
    if isinstance(value, Unknown):
        raise Poisoned
    if not isinstance(value, Tuple) or len(value.items) != len(stmt.targets):
        n = len(value.items) if isinstance(value, Tuple) else len(stmt.values)
        text = f"{len(stmt.targets)} targets for {counted(n, 'value')}"
        raise fail("E0811", text, stmt.span)
    span = stmt.values[0].span
    return [(t, v, span) for t, v in zip(stmt.targets, value.items, strict=True)]


def _write_whole(cx: Context, target: ast.Expr, value: Value, span: Span) -> None:
    if isinstance(value, Unknown):
        raise Poisoned
    found = cx.eval(target)
    match found:
        case Stored():
            _write(cx, found, value, target.span, span)
        case Module():
            _write_module(cx, found, value, target.span, span)
        case Tree():
            _write_tree(cx, found, value, target, span)
        case Tensor() | WeakTensor():
            _write(cx, place(cx, target, cx.frame.real), value, target.span, span)
        case Unknown():
            raise Poisoned
        case _:
            raise fail("E0503", f"{describe(found)} cannot be written", target.span)


def _write(cx: Context, stored: Stored, value: Value, target: Span, span: Span) -> None:
    slot = cx.store[stored.key]
    _writable(cx, stored.key, target)
    new = adapt(cx, value, slot.now.dtype, span)
    if isinstance(new, Tree):
        raise fail("E0303", "a tree is written to a tensor", span)
    old = cx.tensor(stored)
    assert isinstance(old, Tensor)
    if new.shape == () and old.shape:
        scalar = new
        new = cx.compute(old.shape, lambda i: scalar.at(()), span)
    if old.shape != new.shape:
        raise fail(
            "E0303",
            "this has not the shape of what it is written to",
            span,
            typed(new, span),
            (Label(target, str(old.type)),),
        )
    if stored.view is not None:
        new = _write_view(cx, slot.now, stored.view, new, target.to(span))
    new = cx.materialized(new, span)
    slot.now = Tensor(new.type, new.at, new.node, slot.now.letters, slot.now.origins)
    cx.written_at.setdefault(stored.key, target)


def _write_view(cx: Context, root: Tensor, view: View, new: Tensor, span: Span) -> Tensor:
    names: list[str] = []
    for _ in view.shape:
        names.append(cx.fresh_var("s", names))
    index: tuple[Expr, ...] = tuple(Idx(Dim.of(n)) for n in names)
    axes = tuple(Axis(v, n) for v, n in zip(names, view.shape, strict=True))
    w = Writing(axes, index, new, index, "", None)
    return updated(cx, root, w, view.at(index), span, span)


def _writable(cx: Context, key: str, target: Span) -> None:
    slot = cx.store[key]
    frame = cx.frame
    given = [v.path for n in frame.inout if isinstance(v := frame.vars.get(n), Module)]
    leaves = [leaf for tree in frame.trees.values() for leaf in tree.leaves.values()]
    trees = [leaf.key for leaf in leaves if isinstance(leaf, Stored)]
    if slot.writable and (
        frame.train is not False
        or frame.exported
        or slot.kind in ("arg", "local")
        or any(key.startswith(f"{path}.") for path in given)
        or key in trees
    ):
        return
    if not slot.writable:
        raise _read_only(cx, key, target)
    raise without_bang(cx, f"writes {slot.kind} `{key}`", target)


def _read_only(cx: Context, key: str, target: Span) -> Mistake:
    slot = cx.store[key]
    labels = (Label(_name(slot.declared), "not `inout`"),) if slot.declared is not None else ()
    message = f"this call would write to `{slot.root}`, which is read-only here"
    if not cx.calls:
        declared = slot.declared.text if slot.declared is not None else f"{slot.root}: ..."
        message = f"this would write to `{slot.root}`, which is read-only here"
        return fail("E0501", message, target, labels=labels, help=f"declare it `inout {declared}`")
    call = cx.calls[0].call
    others = [k for k, s in cx.store.items() if s.root == slot.root and s.kind == "state"]
    more = f" and {len(others) - 1} more" if slot.kind == "state" and len(others) > 1 else ""
    text = f"updates {key} ({target.source.name}:{target.line}){more}"
    args = ", ".join(a.span.text for a in call.args)
    func = call.func.span
    help: str | None = f"`{func.text}({args})` uses the stored values and keeps them"
    if not call.bang or not _only_in_training(cx.calls[-1].func, target):
        help = f"declare it `inout {slot.declared.text}`" if slot.declared is not None else None
    once = ("read-only", func.place)
    return fail("E0501", message, func, text, labels, help=help, once=once)


def _name(declared: Span) -> Span:
    """The name alone of `net: Net`."""
    end = declared.column + len(declared.text.partition(":")[0].rstrip())
    return Span(declared.source, declared.line, declared.column, declared.line, end)


def _only_in_training(func: ast.FuncDef, target: Span) -> bool:
    """Whether a write stands under `if train:`, so that a call without `!` would not do it."""
    ifs = [s for s in nested(func.body) if isinstance(s, ast.If)]
    around = [s for s in ifs if s.span.line < target.line <= _last_line(s.then)]
    return any(isinstance(n, ast.Name) and n.id == "train" for s in around for n in syntax(s.cond))


def _last_line(body: Sequence[ast.Stmt]) -> int:
    return max((s.span.end_line for s in nested(body)), default=0)


def _write_module(cx: Context, module: Module, value: Value, target: Span, span: Span) -> None:
    new = module_tree(cx, value) if isinstance(value, Module) else value
    if isinstance(new, Weak | WeakTensor):
        old = module_tree(cx, module)
        new = Tree(dict.fromkeys(old.leaves, new), old.of)
    if not isinstance(new, Tree):
        message = f"a module is written from a tree of its params, this is {describe(new)}"
        part = part_alike(cx, module, new) if isinstance(new, Tensor) else None
        help = f"one part of it alone: `{target.text}.{part} := ...`" if part else None
        raise fail("E0303", message, span, help=help)
    if cx.generic:
        return
    prefix = module.path + "."
    mine = [k for k, s in cx.store.items() if k.startswith(prefix) and s.kind == "param"]
    if [k[len(prefix) :] for k in mine] != list(new.leaves):
        raise fail("E0303", f"this tree does not have the leaves of {module.inst.id}", span)
    for key in mine:
        _write(cx, Stored(key), new.leaves[key[len(prefix) :]], target, span)


def _write_tree(cx: Context, place_: Tree, value: Value, target: ast.Expr, span: Span) -> None:
    """A state tree: `m := b1 * m + ...`."""
    frame = cx.frame
    owner = frame.owner
    if not isinstance(target, ast.Name | ast.Attr):
        raise fail("E0503", "a tree is written as a whole", target.span)
    if isinstance(target, ast.Name) and target.id in frame.trees:
        new = _same_leaves(cx, place_, value, span)
        for leaf_key, slot in frame.trees[target.id].leaves.items():
            assert isinstance(slot, Stored), slot
            _write(cx, slot, new.leaves[leaf_key], target.span, span)
        return
    if isinstance(target, ast.Name) and target.id in frame.read_only:
        raise read_only(cx, target.id, target.span)
    if isinstance(target, ast.Name) and target.id in frame.vars:
        frame.vars[target.id] = _same_leaves(cx, place_, value, span)
        return
    new = _same_leaves(cx, place_, value, span)
    if isinstance(target, ast.Attr):
        base = cx.eval(target.value)
        owner = base if isinstance(base, Module) else owner
    name = target.id if isinstance(target, ast.Name) else target.name
    prefix = f"{owner.path}.{name}." if owner is not None and owner.path else f"{name}."
    if cx.generic:
        return
    for key, leaf in new.leaves.items():
        _write(cx, Stored(prefix + key), leaf, target.span, span)


def _same_leaves(cx: Context, old: Tree, value: Value, span: Span) -> Tree:
    """A value for a tree: a tree with its leaves, or one number for all."""
    new: Value = module_tree(cx, value) if isinstance(value, Module) else value
    if isinstance(new, Weak | WeakTensor):
        return Tree(dict.fromkeys(old.leaves, new), old.of)
    if not isinstance(new, Tree):
        raise fail("E0303", f"{describe(new)} is written to a tree", span)
    if not cx.generic and list(new.leaves) != list(old.leaves):
        raise fail("E0313", "these trees have different leaves", span)
    return new


def _write_part(cx: Context, target: ast.Index, rhs: ast.Expr) -> None:
    """`x[...] := e` on storage or a local tensor."""
    defined(cx, target.value)
    whole = cx.tensor(cx.eval(target.value))
    if isinstance(whole, Unknown):
        raise Poisoned
    if not isinstance(whole, Tensor | WeakTensor):
        raise fail("E0503", f"{describe(whole)} cannot be written by index", target.value.span)
    if isinstance(whole, Tensor):
        w = writing(cx, whole, target, rhs)
        stored = place(cx, target.value, whole.dtype)
    else:  # its dtype comes from what is written first
        w = writing(cx, as_tensor(cx, whole, target.value.span), target, rhs)
        value = w.value
        free = value.dtype if isinstance(value, Tensor) else free_dtype(cx, [value, whole])
        stored = place(cx, target.value, free)
    _writable(cx, stored.key, target.value.span)
    slot = cx.store[stored.key]
    index = w.index if stored.view is None else stored.view.at(w.index)
    slot.now = updated(cx, slot.now, w, index, target.span.to(rhs.span), rhs.span)
    cx.written_at.setdefault(stored.key, target.span)
