"""The generic check of every definition of a file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from nnc.diagnostics import Diagnostics, Span
from nnc.lang import ast
from nnc.lang.dims import Facts
from nnc.lang.elaborate.abi import determined
from nnc.lang.elaborate.adjoints import check_adjoint
from nnc.lang.elaborate.attempts import attempt
from nnc.lang.elaborate.constants import constant
from nnc.lang.elaborate.context import Context, Frame
from nnc.lang.elaborate.engine import context
from nnc.lang.elaborate.externs import check_extern
from nnc.lang.elaborate.initial import initial
from nnc.lang.elaborate.instances import generic_instance
from nnc.lang.elaborate.members import leaves
from nnc.lang.elaborate.mistakes import fail
from nnc.lang.elaborate.recursion import doubled_names, recursive_functions
from nnc.lang.elaborate.results import finish
from nnc.lang.elaborate.signatures import (
    add_leaves,
    check_defaults,
    equations,
    symbolic_param,
    symbolic_where,
)
from nnc.lang.elaborate.sizes import quantified
from nnc.lang.elaborate.values import Module, ModuleType
from nnc.lang.types import DTYPES
from nnc.lang.units import Loader, Unit


def check_unit(loader: Loader, unit: Unit) -> None:
    """Checks every module and every function that is not exported, with sizes as names."""
    for cycle, recursive in recursive_functions(unit):
        loader.cyclic |= set(cycle)
        loader.diagnostics.add(recursive)
    for twice in doubled_names(unit):
        loader.diagnostics.add(twice)
    for defn in unit.defs.values():
        span = defn.name_span
        match defn:
            case ast.ModuleDef():
                _guarded(loader, unit, span, partial(_check_module, unit=unit, defn=defn))
            case ast.ExternDef():
                _guarded(loader, unit, span, partial(_check_extern, unit=unit, defn=defn))
            case ast.FuncDef(exported=False):
                _guarded(loader, unit, span, partial(check_function, func=defn, owner=None))
            case ast.ConstDef():
                _guarded(loader, unit, span, partial(constant, where=unit, d=defn))
    for adjoint in unit.adjoints.values():
        _guarded(loader, unit, adjoint.span, partial(check_adjoint, d=adjoint))


def _guarded(loader: Loader, unit: Unit, span: Span, job: Callable[[Context], object]) -> None:
    cx = context(loader, unit, True)
    attempt(cx, lambda: job(cx), span)


def _check_extern(cx: Context, unit: Unit, defn: ast.ExternDef) -> None:
    check_extern(cx, unit, defn)
    frame = Frame(unit, defn, None, train=None, real="real")
    with cx.in_frame(frame):
        equations(cx, frame, defn)
        for p in defn.params:
            symbolic_param(cx, frame, p)
        symbolic_where(cx, frame, defn)
        _check_result_names(cx, frame, defn)


def _check_module(cx: Context, unit: Unit, defn: ast.ModuleDef) -> None:
    inst = generic_instance(cx, ModuleType(unit, defn))
    cx.facts = Facts(cx.facts.zero, (*cx.facts.nonneg, *inst.facts))
    base = cx.facts
    self_ = Module(inst, "self", "self")
    add_leaves(cx, inst, "self", True)
    for leaf in leaves(inst):
        if leaf.inst is inst and leaf.type is not None and leaf.decl.init is not None:
            attempt(cx, partial(initial, cx, leaf), leaf.decl.span)
    for method in inst.methods.values():
        cx.facts = base
        saved = {k: s.now for k, s in cx.store.items()}
        attempt(cx, partial(check_function, cx, method, self_), method.name_span)
        for k, now in saved.items():
            cx.store[k].now = now


def check_function(cx: Context, func: ast.FuncDef, owner: Module | None) -> None:
    """One function with its declared types, sizes as names, calls typed by signature."""
    frame = Frame(cx.frame.unit, func, owner, train=None, real="real")
    with cx.in_frame(frame):
        equations(cx, frame, func)
        for p in func.params:
            symbolic_param(cx, frame, p)
        symbolic_where(cx, frame, func)
        determined(cx, frame, func)
        check_defaults(cx, func)
        if func.returns is not None:
            _check_result_names(cx, frame, func)
        cx.execute(func.body)
        finish(cx, func)
        warn_unused(cx, func)


def _check_result_names(cx: Context, frame: Frame, func: ast.FuncDef) -> None:
    stack = [func.returns]
    while stack:
        t = stack.pop()
        if isinstance(t, ast.TupleTypeExpr):
            stack.extend(t.items)
        elif isinstance(t, ast.TensorTypeExpr):
            if t.name not in DTYPES and t.name not in ("dim", "tree") and t.dims is not None:
                help = "several results stand in brackets: `-> (real[B], real[B])`"
                help = help if t.name.lower() == "tuple" else f"the dtypes are {' '.join(DTYPES)}"
                raise fail("E0801", f"there is no dtype `{t.name}`", t.name_span, help=help)
            for d in t.dims or ():
                if not isinstance(d, ast.Rest):
                    for name in quantified(cx, frame, d):
                        text = f"`{name}` is not determined by the arguments"
                        help = f"`where {name} = ...` defines it, or take it from an argument"
                        once = ("undefined", d.span.source.name, name)
                        raise fail("E0309", text, d.span, help=help, once=once)


def warn_unused(cx: Context, func: ast.FuncDef) -> None:
    """Arguments and variables that nothing reads."""
    frame = cx.frame
    params = {p.name for p in func.params}
    for name, span in frame.var_spans.items():
        if name in frame.used or name.startswith("_"):
            continue
        if name in params:
            cx.warn("W0002", f"argument `{name}` is not used", span)
        elif name in frame.vars:
            cx.warn("W0002", f"`{name}` is not used", span)


def warn_imports(diagnostics: Diagnostics, unit: Unit) -> None:
    for name, (_, _, place) in unit.imports.items():
        if name not in unit.used:
            d = fail("W0001", f"`{name}` is imported and not used", place.span).diagnostic
            diagnostics.add(type(d)(d.code, d.message, d.span, severity="warning"))
