"""Places: expressions that name storage which can be written, whole or in part."""

from __future__ import annotations

from dataclasses import replace

from nnc.diagnostics import Label, Span
from nnc.ir.graph import Input
from nnc.lang import ast
from nnc.lang.elaborate.arguments import bang_text
from nnc.lang.elaborate.arith import adapt, module_tree
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.mistakes import Mistake, Poisoned, fail
from nnc.lang.elaborate.names import undefined
from nnc.lang.elaborate.reads import planned
from nnc.lang.elaborate.values import (
    Module,
    Stored,
    Tensor,
    Tree,
    Unknown,
    Value,
    View,
    WeakTensor,
)
from nnc.lang.elaborate.words import describe
from nnc.lang.types import DType


def defined(cx: Context, e: ast.Expr) -> None:
    """A name that `:=` writes is there already."""
    if isinstance(e, ast.Name) and cx.lookup(e.id) is None:
        d = undefined(cx, e.id, e.span).diagnostic
        new = f"`:=` writes what is there; `{e.id} = ...`, `{e.id}[i] = ...` define it"
        raise Mistake(replace(d, help=d.help or new))


def place(cx: Context, e: ast.Expr, free: DType) -> Stored:
    """The storage that `e` names. A local variable becomes storage; `free`: dtype of literals."""
    match e:
        case ast.Name(id=name) if name in cx.frame.vars:
            return _variable(cx, name, e.span, free)
        case ast.Index(value=base, items=items, orelse=None):
            return _part(cx, place(cx, base, free), e, items)
        case ast.Tuple(items=(inner,)):
            return place(cx, inner, free)
    value = cx.eval(e)
    if isinstance(value, Unknown):
        raise Poisoned
    if isinstance(value, Stored):
        return value
    raise fail("E0503", f"this is {describe(value)}, which cannot be written", e.span)


def _variable(cx: Context, name: str, span: Span, free: DType) -> Stored:
    value = cx.frame.vars[name]
    cx.frame.used.add(name)
    match value:
        case Stored():
            return value
        case Unknown():
            raise Poisoned
        case Tensor() | WeakTensor() if name not in cx.frame.read_only:
            return _promoted(cx, name, value, span, free)
    if name in cx.frame.read_only:
        raise read_only(cx, name, span)
    raise fail("E0503", f"`{name}` is {describe(value)}, which cannot be written", span)


def read_only(cx: Context, name: str, span: Span) -> Mistake:
    """An argument that is not `inout` is written."""
    declared = cx.frame.read_only[name]
    return fail(
        "E0503",
        f"`{name}` is an argument and not `inout`",
        span,
        labels=(Label(declared, "declared here"),),
        help=f"declare it `inout {declared.text}`",
    )


def _promoted(
    cx: Context, name: str, value: Tensor | WeakTensor, span: Span, free: DType
) -> Stored:
    """A local tensor as storage of its own: its variable now names that."""
    if cx.ranges:
        raise fail("E0901", "writing inside index notation is not compiled yet", span)
    dtype = value.dtype if isinstance(value, Tensor) else free
    tensor = adapt(cx, value, dtype, span)
    assert isinstance(tensor, Tensor)
    key = f"{cx.frame.path}%{name}"
    n = cx.counters[key] = cx.counters.get(key, 0) + 1
    key = f"{key}{n}"
    cx.add_storage(Input(type=tensor.type, name=key, span=span, kind="local"), True, name)
    cx.store[key].now = tensor
    cx.frame.vars[name] = Stored(key)
    return Stored(key)


def _part(cx: Context, whole: Stored, e: ast.Index, items: tuple[ast.Expr, ...]) -> Stored:
    base = cx.tensor(whole)
    assert isinstance(base, Tensor)
    plan = planned(cx, base, e, items)
    if plan.check is not None:
        raise fail("E0503", "only a part at a known position can be passed as `inout`", e.span)
    above = whole.view
    view = View(
        tuple(plan.shape),
        plan.at if above is None else lambda i: above.at(plan.at(i)),
        tuple(plan.origins),
    )
    return Stored(whole.key, view)


def without_bang(cx: Context, what: str, span: Span) -> Mistake:
    """An effect in a function that was called without `!`: the reader's call is at fault."""
    if cx.constants:
        return fail("E0502", f"a constant cannot be what {what}", span, help="do it in a function")
    if not cx.calls:
        return fail("E0502", f"this {what}: it needs `!`", span, help="call the function with `!`")
    own = [c.call for c in cx.calls if not c.span.source.name.startswith("std/")]
    call = own[-1] if own else cx.calls[-1].call
    func = call.func.span
    labels = (Label(span, what, aside=True),)
    does = what.split(" `")[0] if what.startswith("writes") else what
    message = f"`{func.text}` {does}: the call needs `!`"
    once = ("no bang", call.span.place)
    help = f"`{bang_text(call)}`"
    return fail("E0502", message, func, "called without `!`", labels, help=help, once=once)


def stored_tree(cx: Context, e: ast.Expr) -> Value:
    """An argument for an `inout` tree: a tree whose leaves are storage that may be written."""
    frame = cx.frame
    if isinstance(e, ast.Name) and e.id in frame.trees:
        return frame.trees[e.id]
    value = cx.eval(e)
    match value:
        case Unknown():
            raise Poisoned
        case Module(path=path):
            leaves = module_tree(cx, value).leaves
        case Tree(leaves=leaves):
            path = _tree_path(cx, e) or ""
        case _:
            path, leaves = "", {}
    keys = {k: f"{path}.{k}" for k in leaves}
    if not leaves or not path or not all(k in cx.store for k in keys.values()):
        text = "`inout` needs a tree that can be written"
        help = "pass a module, an `inout` tree, or a state of a module"
        raise fail("E0503", text, e.span, describe(value), help=help)
    for key in keys.values():
        slot = cx.store[key]
        if not slot.writable:
            text = f"this call would write to `{slot.root}`, which is read-only here"
            raise fail("E0501", text, e.span, help=f"declare `{slot.root}` as `inout`")
    of = value.inst if isinstance(value, Module) else value.of if isinstance(value, Tree) else None
    return Tree({k: Stored(key) for k, key in keys.items()}, of)


def _tree_path(cx: Context, e: ast.Expr) -> str | None:
    """Where the state tree that an expression names lies."""
    owner: Value | None = cx.frame.owner
    name = e.id if isinstance(e, ast.Name) and e.id not in cx.frame.vars else None
    if isinstance(e, ast.Attr):
        owner, name = cx.eval(e.value), e.name
    return f"{owner.path}.{name}" if isinstance(owner, Module) and name is not None else None
