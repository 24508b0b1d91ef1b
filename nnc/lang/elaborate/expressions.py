"""Expressions: evaluation by kind."""

from __future__ import annotations

from nnc.ir.expr import Const
from nnc.lang import ast
from nnc.lang.dims import Dim
from nnc.lang.elaborate.attributes import attribute
from nnc.lang.elaborate.conditions import compare, conditional
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.limits import fits_memory
from nnc.lang.elaborate.lists import iteration, read_list
from nnc.lang.elaborate.mistakes import Exhausted, Poisoned, fail
from nnc.lang.elaborate.names import lookup, undefined
from nnc.lang.elaborate.operators import binary_chain, unary
from nnc.lang.elaborate.reads import read
from nnc.lang.elaborate.reductions import REDUCTIONS
from nnc.lang.elaborate.sizes import dims_of
from nnc.lang.elaborate.values import (
    UNKNOWN,
    Bool,
    Builtin,
    Function,
    Module,
    ModuleList,
    ModuleType,
    Nothing,
    Pack,
    Seq,
    Tensor,
    Text,
    Tuple,
    Unknown,
    Value,
    WeakTensor,
    integer,
    number,
)
from nnc.lang.elaborate.walks import syntax
from nnc.lang.elaborate.words import describe
from nnc.lang.types import DType, is_float

DEEPEST = 4000


def evaluate(cx: Context, e: ast.Expr) -> Value:
    """The value of an expression; Unknown operands give Unknown."""
    cx.depth += 1
    if cx.depth > DEEPEST:
        raise Exhausted("E0809", "calls and expressions are nested too deep", e.span)
    try:
        return _evaluate(cx, e)
    except Poisoned:
        return UNKNOWN
    finally:
        cx.depth -= 1


def _evaluate(cx: Context, e: ast.Expr) -> Value:
    match e:
        case ast.Name(id=name):
            value = lookup(cx, name)
            if value is None:
                raise undefined(cx, name, e.span)
            return value
        case ast.Num(value=v):
            return number(v)
        case ast.Bool(value=b):
            return Bool(b)
        case ast.Str(value=s):
            return Text(s)
        case ast.NoneLit():
            return Nothing()
        case ast.Binary():
            return binary_chain(cx, e)
        case ast.Unary():
            return unary(cx, e)
        case ast.Compare():
            return compare(cx, e)
        case ast.IfExpr():
            return conditional(cx, e)
        case ast.Call():
            return cx.call_expr(e)
        case ast.Index():
            return _index(cx, e)
        case ast.Attr():
            return attribute(cx, e)
        case ast.Tuple(items=items):
            if len(items) == 1:
                return cx.eval(items[0])
            return Tuple(tuple(cx.eval(i) for i in items))
        case ast.ListLit(items=items):
            return Seq(tuple(_list_item(cx, i) for i in items))
        case ast.ListComp():
            return _comprehension(cx, e)
    raise fail("E0803", "this cannot stand here", e.span)


def _list_item(cx: Context, item: ast.Expr) -> Value:
    if isinstance(item, ast.Rest):
        if item.name in cx.frame.packs:
            return Pack(cx.frame.packs[item.name])
        raise undefined(cx, item.name, item.span)
    return cx.eval(item)


def _comprehension(cx: Context, e: ast.ListComp) -> Value:
    if isinstance(e.iterable, ast.Name) and e.iterable.id in cx.frame.dims:
        help = f"index it: `y[{e.var}] = {e.element.span.text}`"
        raise fail("E0203", "a list has a length known at compile time", e.iterable.span, help=help)
    items = iteration(cx, cx.eval(e.iterable), e.iterable.span)
    saved = cx.frame.vars.get(e.var)
    out: list[Value] = []
    known = items if items is not None else [integer(Dim.of(e.var))]
    for item in known:
        cx.step(e.span)
        cx.frame.vars[e.var] = item
        out.append(cx.eval(e.element))
    cx.frame.vars.pop(e.var, None)
    if saved is not None:
        cx.frame.vars[e.var] = saved
    if items is not None:
        return Seq(tuple(out))
    own = any(isinstance(n, ast.Name) and n.id == e.var for n in syntax(e.element))
    return Seq(None, None if own and isinstance(out[0], Module) else out[0])  # each is another


def _index(cx: Context, e: ast.Index) -> Value:
    if isinstance(e.value, ast.Name):
        base = lookup(cx, e.value.id)
        if base is None:
            raise undefined(cx, e.value.id, e.value.span)
    else:
        base = cx.eval(e.value)
    if isinstance(base, Builtin) and base.name in ("zeros", "ones", "empty"):
        return _fill(cx, base.name, e)
    base = cx.tensor(base)
    match base:
        case Unknown():
            raise Poisoned
        case Seq() | Tuple() | ModuleList():
            return read_list(cx, base, e)
        case Tensor() | WeakTensor():
            return read(cx, base, e)
        case Builtin(name=name) if name in REDUCTIONS:
            raise fail(
                "E0802",
                f"`{name}[...]` needs an expression in parentheses",
                e.span,
                help=f"`{name}[i](x[i])`",
            )
    inside = ", ".join(i.span.text for i in e.items)
    called = f"`{e.value.span.text}({inside})`" if isinstance(base, CALLABLE) else None
    raise fail("E0803", f"{describe(base)} cannot be indexed", e.value.span, help=called)


CALLABLE = (Builtin, Function, Module, ModuleType)


def _fill(cx: Context, name: str, e: ast.Index) -> Value:
    value = int(name == "ones")
    shape = tuple(dims_of(cx, e.items))
    for d, item in zip(shape, e.items, strict=False):
        if d.const is not None and d.const < 0:
            raise fail("E0309", f"an axis of size {d}", item.span)
    fits_memory(shape, cx.frame.real, e.span)
    return WeakTensor(shape, "any", lambda dt, i: _constant(dt, value))


def _constant(dtype: DType, value: int) -> Const:
    if dtype == "bool":
        return Const(dtype, bool(value))
    return Const(dtype, float(value) if is_float(dtype) else value)
