"""Calls: dispatch, inlining (or typing by signature in the generic check)."""

from __future__ import annotations

from collections.abc import Sequence

from nnc.diagnostics import Label
from nnc.lang import ast
from nnc.lang.elaborate.arguments import Given, arguments
from nnc.lang.elaborate.binding import Binding
from nnc.lang.elaborate.builtins import call
from nnc.lang.elaborate.clauses import where_clauses
from nnc.lang.elaborate.context import Context, Frame, Mistake, Poisoned, fail
from nnc.lang.elaborate.declared import kind_of, opaque_type
from nnc.lang.elaborate.matching import bind_argument
from nnc.lang.elaborate.reductions import REDUCTIONS, reduce_indexed
from nnc.lang.elaborate.results import finish
from nnc.lang.elaborate.shape_matching import solve_pending
from nnc.lang.elaborate.values import (
    UNKNOWN,
    Builtin,
    Function,
    Module,
    ModuleType,
    Nothing,
    Tensor,
    Unknown,
    Value,
    describe,
)
from nnc.lang.types import DType, is_float
from nnc.lang.units import nearest


def call_expr(cx: Context, e: ast.Call) -> Value:
    """`f(...)`, `f!(...)`, `M(...)`, `sum[i](...)`."""
    if id(e) in cx.memo:
        return cx.memo[id(e)]
    if isinstance(e.func, ast.Index) and isinstance(e.func.value, ast.Name):
        base = cx.lookup(e.func.value.id)
        if isinstance(base, Builtin) and base.name in REDUCTIONS:
            return reduce_indexed(cx, base.name, e, e.func.items)
    func = cx.eval(e.func)
    match func:
        case Unknown():
            for arg in e.args:
                _ignore(cx, arg.value)
            raise Poisoned
        case Builtin(name=name):
            return call(cx, name, e)
        case Function():
            return call_function(cx, func, e, arguments(cx, e))
        case Module():
            forward = func.inst.methods.get("forward")
            if forward is None:
                raise fail("E0803", f"{func.inst.id} has no `forward`", e.func.span)
            method = Function(func.inst.unit, forward, func)
            return call_function(cx, method, e, arguments(cx, e))
        case ModuleType():
            inst = cx.instantiate(func, e.args, e.span)
            return Module(inst, "")
    help = "did you forget an operator, or brackets `[...]`?" if isinstance(func, Tensor) else None
    raise fail("E0803", f"{describe(func)} cannot be called", e.func.span, help=help)


def _ignore(cx: Context, e: ast.Expr) -> None:
    """Arguments of an unknown function are still checked, for their own mistakes."""
    try:
        cx.eval(e)
    except (Mistake, Poisoned):
        return


def call_function(cx: Context, fn: Function, e: ast.Call, given: Sequence[Given]) -> Value:
    """A user's function: types are matched, then its body is inlined (generic: typed by signature)."""
    func = fn.defn
    paired = _pair(fn, e, given)
    owner = fn.owner
    name = (owner.name or owner.inst.id) if owner is not None else func.name
    bang = bool(e.bang)
    if bang and not (cx.generic or cx.frame.train or cx.frame.exported or cx.frame.train is None):
        raise fail(
            "E0502",
            "`!` inside a function that was called without `!`",
            e.span,
            help="call it with `!` as well",
        )
    frame = Frame(
        fn.unit,
        func,
        owner,
        train=None if cx.generic else bool(cx.frame.train or bang),
        path=_path(cx, e, fn),
        real=owner.inst.real if owner is not None else cx.frame.real,
    )
    b = Binding(cx, func, frame, e, [], name)
    values = [(p, _evaluate(cx, p, g)) for p, g in paired]
    if owner is None:
        frame.real = _real_of(cx, func, values)
    for p, value in values:
        bind_argument(b, p, value, dict((q.name, g) for q, g in paired).get(p.name))
    solve_pending(b)
    where_clauses(b)
    if cx.generic:
        return _opaque(b)
    return _inline(b, fn)


def _path(cx: Context, e: ast.Call, fn: Function) -> str:
    label = (fn.owner.name or fn.owner.inst.id) if fn.owner else fn.defn.name
    stem = f"{cx.frame.path}/{label}"
    n = cx.counters.get(stem, 0)
    cx.counters[stem] = n + 1
    return stem if n == 0 else f"{stem}#{n}"


def _pair(
    fn: Function, e: ast.Call, given: Sequence[Given]
) -> list[tuple[ast.Param, Given | None]]:
    params = list(fn.defn.params)
    names = [p.name for p in params]
    place = (Label(fn.defn.name_span, "declared here"),)
    by: dict[str, Given] = {}
    for i, g in enumerate(given):
        if g.name is None and i >= len(names):
            what = f"`{fn.defn.name}` takes {len(names)} argument{'s' * (len(names) != 1)}"
            raise fail("E0802", f"{what}, {len(given)} are given", g.span, labels=place)
        name = g.name or names[i]
        if name not in names:
            near = nearest(name, names)
            raise fail(
                "E0802",
                f"`{fn.defn.name}` has no argument `{name}`",
                g.name_span or g.span,
                labels=place,
                help=f"did you mean `{near}`?" if near else None,
            )
        if name in by:
            raise fail("E0802", f"`{name}` is given twice", g.span)
        by[name] = g
    missing = [p.name for p in params if p.name not in by and p.default is None]
    if missing:
        what = ", ".join(f"`{m}`" for m in missing)
        raise fail("E0802", f"`{fn.defn.name}` needs {what}", e.span, labels=place)
    return [(p, by.get(p.name)) for p in params]


def _evaluate(cx: Context, p: ast.Param, g: Given | None) -> Value | None:
    """The argument's value; None: the default, which is evaluated in the callee."""
    if g is None:
        return None
    if kind_of(p) == "axis":
        return UNKNOWN  # resolved against the tensor argument, by _bind
    value = cx.eval(g.value)
    if isinstance(value, Unknown):
        raise Poisoned
    return value


def _real_of(
    cx: Context, func: ast.FuncDef, values: Sequence[tuple[ast.Param, Value | None]]
) -> DType:
    """`real` of a function call: the float dtype of the first argument declared `real`."""
    for p, value in values:
        if isinstance(p.type, ast.TensorTypeExpr) and p.type.name == "real" and value is not None:
            v = cx.tensor(value)
            if isinstance(v, Tensor) and is_float(v.dtype):
                return v.dtype
    return "real" if cx.generic and cx.frame.real == "real" else cx.frame.real


def _opaque(b: Binding) -> Value:
    """Generic check: a value of the declared result type."""
    cx = b.cx
    if b.func.returns is None:
        return Nothing()
    with cx.in_frame(b.frame):
        return opaque_type(cx, b.func.returns, b.call.span, b.func.name)


def _inline(b: Binding, fn: Function) -> Value:
    cx, func = b.cx, b.func
    if any(f is func for f, _ in cx.calls) and len(cx.calls) > 200:
        raise fail(
            "E0809",
            f"`{func.name}` calls itself",
            b.call.span,
            help="there is no recursion; `for` and lists of modules repeat",
        )
    if func.name in fn.unit.adjoints and fn.owner is None:
        raise fail("E0901", f"the adjoint of `{func.name}` is not compiled yet", b.call.span)
    cx.calls.append((func, b.call.span))
    try:
        with cx.in_frame(b.frame):
            cx.execute(func.body)
            return finish(cx, func, b.call.span)
    finally:
        cx.calls.pop()
