"""Calls: dispatch, inlining (or typing by signature in the generic check)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from nnc.diagnostics import Label, Span
from nnc.lang import ast
from nnc.lang.elaborate.adjoints import with_adjoint
from nnc.lang.elaborate.arguments import Given, arguments, paired
from nnc.lang.elaborate.binding import Binding
from nnc.lang.elaborate.broadcasting import grouped
from nnc.lang.elaborate.builtins import call
from nnc.lang.elaborate.clauses import where_clauses
from nnc.lang.elaborate.context import Active, Context, Frame
from nnc.lang.elaborate.declared import kind_of, opaque_type
from nnc.lang.elaborate.element_gradients import prepare
from nnc.lang.elaborate.externs import call_extern
from nnc.lang.elaborate.matching import bind_argument
from nnc.lang.elaborate.mistakes import Mistake, Poisoned, fail
from nnc.lang.elaborate.places import place, stored_tree, without_bang
from nnc.lang.elaborate.reductions import REDUCTIONS, reduce_indexed
from nnc.lang.elaborate.replay import replayed
from nnc.lang.elaborate.results import finish
from nnc.lang.elaborate.shape_matching import solve_pending
from nnc.lang.elaborate.translation import translated
from nnc.lang.elaborate.values import (
    UNKNOWN,
    Builtin,
    Function,
    Module,
    ModuleList,
    ModuleType,
    Nothing,
    Seq,
    Stored,
    Tensor,
    Unknown,
    Value,
    Weak,
)
from nnc.lang.elaborate.walks import nested
from nnc.lang.elaborate.words import describe
from nnc.lang.types import DTYPES, DType, is_float


def call_expr(cx: Context, e: ast.Call) -> Value:
    """`f(...)`, `f!(...)`, `M(...)`, `sum[i](...)`."""
    if isinstance(e.func, ast.Index) and isinstance(e.func.value, ast.Name):
        base = cx.lookup(e.func.value.id)
        if isinstance(base, Builtin) and base.name in REDUCTIONS:
            return reduce_indexed(cx, base.name, e, e.func.items)
    func = _callee(cx, e)
    match func:
        case Unknown():
            for arg in e.args:
                _ignore(cx, arg.value)
            raise Poisoned
        case Builtin(name=name):
            return call(cx, name, e)
        case Function():
            return call_function(cx, func, e, arguments(e))
        case Module():
            forward = func.inst.methods.get("forward")
            if forward is None:
                methods = [f"`{e.func.span.text}.{name}(...)`" for name in func.inst.methods]
                help = f"it has {', '.join(methods)}" if methods else None
                if "__call__" in func.inst.methods or not methods:
                    help = "a call means `forward`: `def forward(x: real[B, D]) -> real[B, D]:`"
                text = f"{func.inst.id} has no `forward`"
                label = (Label(func.inst.defn.name_span, "declared here"),)
                raise fail("E0803", text, e.func.span, labels=label, help=help)
            method = Function(func.inst.unit, forward, func)
            with cx.in_region(e.span, asked=False):
                return call_function(cx, method, e, arguments(e))
        case ModuleType(defn=defn):
            if cx.frame.func is not None and not cx.static_depth:
                raise _made_here(cx, defn, e)
            return Module(cx.instantiate(func, e.args, e.span), "")
    raise _not_callable(cx, func, e)


def _callee(cx: Context, e: ast.Call) -> Value:
    """What is called; for a function of another library the help spells the whole call."""
    try:
        return cx.eval(e.func)
    except Mistake as mistake:
        d = mistake.diagnostic
        own = d.span in (e.func.span, getattr(e.func, "name_span", None))
        own = own or (isinstance(e.func, ast.Attr) and d.span == e.func.value.span)
        if d.code not in ("E0801", "E0804") or not own:
            raise
        values = [cx.lookup(a.value.id) for a in e.args if isinstance(a.value, ast.Name)]
        if any(isinstance(v, Unknown) for v in values):
            raise Poisoned from None  # it follows from another mistake
        help = translated(cx, e)
        raise Mistake(replace(d, help=help)) if help is not None else mistake from None


def _made_here(cx: Context, defn: ast.ModuleDef, e: ast.Call) -> Mistake:
    """A module with parameters made inside a function has nowhere to keep them."""
    body = cx.frame.func.body if cx.frame.func is not None else ()
    made = [s for s in nested(body) if isinstance(s, ast.Assign) and e in s.values]
    target = made[0].targets[0] if made else None
    name = target.id if isinstance(target, ast.Name) else defn.name.lower()
    help = f"declare `{name} = {e.span.text}` in the module, and call `{name}(...)` here"
    if cx.frame.module is None:
        args = [_as_type(cx, a) for a in e.args]
        if any(isinstance(cx.tensor(_quiet(cx, a.value)), Tensor) for a in e.args):
            call = f"net({', '.join(a.span.text for a in e.args)})"
            help = f"take one as an argument, `net: {defn.name}`, and call it: `{call}`"
            text = f"`{defn.name}` is a module type, not a module"
            return fail("E0803", text, e.func.span, help=help)
        word = "inout " if any("tree" in p.span.text for p in defn.params) else ""
        help = f"take it as an argument: `{word}{name}: {e.func.span.text}({', '.join(args)})`"
    text = f"`{defn.name}` is a module type; modules are declared, not made in functions"
    once = ("undefined", e.span.source.name, name)
    return fail("E0803", text, e.span, help=help, once=once)


def _as_type(cx: Context, a: ast.Arg) -> str:
    """The argument of a module type: for a module that is at hand its type."""
    value = _quiet(cx, a.value)
    return value.inst.id if isinstance(value, Module) else a.span.text


def _not_callable(cx: Context, func: Value, e: ast.Call) -> Mistake:
    help = None
    inside = ", ".join(a.span.text for a in e.args)
    product = f"did you forget an operator: `{e.func.span.text} * {grouped(inside)}`?"
    if isinstance(func, Seq | ModuleList):
        help = f"call one after the other: `for f in {e.func.span.text}: x = f(x)`"
    if isinstance(func, Weak) and len(e.args) == 1:
        help = product
    if isinstance(func, Tensor) and func.shape:
        help = f"an index stands in brackets: `{e.func.span.text}[{inside}]`"
        if len(e.args) == 1 and isinstance(cx.tensor(_quiet(cx, e.args[0].value)), Tensor):
            help = product
    return fail("E0803", f"{describe(func)} cannot be called", e.func.span, help=help)


def _quiet(cx: Context, e: ast.Expr) -> Value:
    try:
        return cx.eval(e)
    except (Mistake, Poisoned):
        return UNKNOWN


def _ignore(cx: Context, e: ast.Expr) -> None:
    """Arguments of an unknown function count as used."""
    _quiet(cx, e)


def call_function(cx: Context, fn: Function, e: ast.Call, given: Sequence[Given]) -> Value:
    """A user's function: types are matched, then its body is inlined (generic: by signature)."""
    func, owner = fn.defn, fn.owner
    if func in cx.loader.cyclic:
        raise Poisoned
    name = (owner.name or owner.inst.id) if owner is not None and func.name == "forward" else ""
    if name and isinstance(e.func, ast.Name) and "[" not in name:
        name = e.func.id
    pairs = paired(func, name or func.name, e, given)
    _may_bang(cx, e)
    frame = Frame(
        fn.unit,
        func,
        owner,
        train=None if cx.generic else bool(cx.frame.train or e.bang),
        path=_path(cx, fn),
        real=owner.inst.real if owner is not None else cx.frame.real,
        made=_made_at(cx, owner),
    )
    b = Binding(cx, func, frame, e, [], name)
    try:
        _match(b, pairs)
    except Mistake:
        if _is_broken(cx, func):  # reported there; this may only follow from it
            raise Poisoned from None
        raise
    return _opaque(b) if cx.generic else _inline(b, fn)


def _made_at(cx: Context, owner: Module | None) -> Span | None:
    """The declaration of a sub-module in the module that is being checked."""
    inst = cx.frame.module
    if inst is None or owner is None:
        return None
    found = (m for m in inst.defn.members if isinstance(m, ast.MemberDecl))
    return next((m.name_span for m in found if m.name == owner.name), None)


def _match(b: Binding, pairs: Sequence[tuple[ast.Param, Given | None]]) -> None:
    """Evaluates the arguments in the caller and binds them to the callee's names."""
    cx, frame = b.cx, b.frame
    by = {p.name: g for p, g in pairs if g is not None}
    values = [(p, _evaluate(cx, p, g, frame.real)) for p, g in pairs]
    if any(isinstance(v, Unknown) and kind_of(p) != "axis" for p, v in values):
        raise Poisoned
    if frame.owner is None:
        frame.real = _real_of(b, values)
    for p, value in values:
        bind_argument(b, p, value, by.get(p.name))
    _overlaps(cx, frame, by)
    solve_pending(b)
    where_clauses(b)


def _is_broken(cx: Context, func: ast.FuncDef) -> bool:
    """Whether a mistake has been reported inside a definition."""
    span = func.span
    return any(
        d.span.source is span.source and span.line <= d.span.line <= span.end_line
        for d in cx.diagnostics.errors
    )


def _may_bang(cx: Context, e: ast.Call) -> None:
    frame = cx.frame
    if e.bang and not (cx.generic or frame.train or frame.exported or frame.train is None):
        raise without_bang(cx, f"calls `{e.func.span.text}!`", e.func.span)


def _path(cx: Context, fn: Function) -> str:
    label = (fn.owner.name or fn.owner.inst.id) if fn.owner else fn.defn.name
    stem = f"{cx.frame.path}/{label}"
    n = cx.counters.get(stem, 0)
    cx.counters[stem] = n + 1
    return stem if n == 0 else f"{stem}#{n}"


def _evaluate(cx: Context, p: ast.Param, g: Given | None, real: DType) -> Value | None:
    """The argument's value; None: the default, which is evaluated in the callee."""
    if g is None:
        return None
    if kind_of(p) == "axis":
        return UNKNOWN  # resolved against the tensor argument, by `bind_argument`
    if p.inout and kind_of(p) == "tensor":
        assert isinstance(p.type, ast.TensorTypeExpr)
        named = p.type.name if p.type.name in DTYPES else "real"
        return place(cx, g.value, real if named == "real" else named)
    if p.inout and kind_of(p) in ("params", "tree") and not cx.generic:
        return stored_tree(cx, g.value)
    return cx.eval(g.value)


def _overlaps(cx: Context, frame: Frame, by: Mapping[str, Given]) -> None:
    """Two `inout` arguments must not name the same elements."""
    seen: dict[str, tuple[str, Stored | Module]] = {}
    every = [(n, frame.vars.get(n)) for n in frame.inout]
    every += [(n, leaf) for n, tree in frame.trees.items() for leaf in tree.leaves.values()]
    every += [
        (n, Stored(key))
        for n, v in every
        if isinstance(v, Module) and frame.trees
        for key in cx.store
        if key.startswith(f"{v.path}.")
    ]
    for name, value in every:
        if not isinstance(value, Stored | Module):
            continue
        key = value.key if isinstance(value, Stored) else value.path
        other, first = seen.setdefault(key, (name, value))
        views = [v.view for v in (value, first) if isinstance(v, Stored) and v.view is not None]
        if other != name and not (len(views) == 2 and views[0].apart(views[1])):
            raise fail(
                "E0503",
                f"`{name}` and `{other}` are both written, and overlap",
                by[name].span,
                labels=(Label(by[other].span, "the same storage"),),
            )


def _real_of(b: Binding, values: Sequence[tuple[ast.Param, Value | None]]) -> DType:
    """`real` of a function call: the float dtype of the first argument declared `real`."""
    for p, value in values:
        if isinstance(p.type, ast.TensorTypeExpr) and p.type.name == "real" and value is not None:
            v = b.cx.tensor(value)
            if isinstance(v, Tensor) and is_float(v.dtype):
                b.real_from = (p.name, v)
                return v.dtype
    return b.cx.frame.real


def _opaque(b: Binding) -> Value:
    """Generic check: a value of the declared result type."""
    cx = b.cx
    if b.func.returns is None:
        return Nothing()
    if _is_broken(cx, b.func):
        raise Poisoned
    with cx.in_frame(b.frame):
        return opaque_type(cx, b.func.returns, b.call.span, b.func.name)


def _inline(b: Binding, fn: Function) -> Value:
    cx, func = b.cx, b.func
    path = fn.owner.path if fn.owner is not None else None
    if any(c.func is func and c.path == path for c in cx.calls):
        raise recursive(func, b.call.span)
    cx.step(b.call.span)
    cx.calls.append(Active(func, path, b.call, cx.at(b.call.span)))
    try:
        with cx.in_frame(b.frame):
            adjoint = fn.unit.adjoints.get(func.name) if fn.owner is None else None
            run = partial(_result, cx, func, b)
            if adjoint is None:
                return replayed(b, run)
            return with_adjoint(cx, b.frame, adjoint, run, b.call.span)
    finally:
        cx.calls.pop()


def _result(cx: Context, func: ast.FuncDef, b: Binding) -> Value:
    if isinstance(func, ast.ExternDef):
        return call_extern(cx, b.frame, func, b.call.span)
    if cx.ranges:
        prepare(cx, b.frame, func, b.call.bang)
    cx.execute(func.body)
    return finish(cx, func)


def recursive(func: ast.FuncDef, span: Span) -> Mistake:
    return fail(
        "E0809",
        f"`{func.name}` calls itself",
        span,
        help="there is no recursion; `for` and lists of modules repeat",
    )
