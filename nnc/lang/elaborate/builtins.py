"""The prelude: dispatch, scalar functions, reductions of whole tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from nnc.diagnostics import Span
from nnc.ir.scalar import SCALARS
from nnc.lang import ast
from nnc.lang.dims import apply
from nnc.lang.elaborate.arguments import take
from nnc.lang.elaborate.arith import adapt, as_tensor, convert, elementwise, module_tree, settle
from nnc.lang.elaborate.axes import resolve_axes
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.gradients import grad, stop
from nnc.lang.elaborate.mistakes import Poisoned, fail
from nnc.lang.elaborate.randoms import random_tensor
from nnc.lang.elaborate.reductions import COMPOSITE, REDUCTIONS, reduce_whole
from nnc.lang.elaborate.tensors import concat, where, zeros_like
from nnc.lang.elaborate.translation import translated
from nnc.lang.elaborate.trees import finite, norm, rank, size, total
from nnc.lang.elaborate.values import (
    Bool,
    Module,
    Operand,
    Tensor,
    Tree,
    Tuple,
    Value,
    Weak,
    WeakTensor,
    integer,
    number,
    weak_op,
)
from nnc.lang.types import DTYPES, is_float

RANDOM = ("uniform", "normal")


CASTS = tuple(d for d in DTYPES)


SHAPES = ("zeros", "ones", "empty", "zeros_like")


TREES = ("total", "norm", "finite", "rank", "size")


OTHERS = ("where", "concat", "grad", "stop", "cast", "recompute", "softmax")


SCALAR_NAMES = tuple(n for n, s in SCALARS.items() if s.user)


NAMES = frozenset(
    (*SCALAR_NAMES, *REDUCTIONS, *RANDOM, *CASTS, *SHAPES, *TREES, *OTHERS, "isnan")
) - {"softmax"}


def call(cx: Context, name: str, e: ast.Call) -> Value:
    """A built-in applied."""
    if e.bang and name not in RANDOM:
        args = ", ".join(a.span.text for a in e.args)
        text = f"`{name}` neither writes state nor draws random numbers"
        raise fail("E0504", text, e.func.span, help=f"`{name}({args})`")
    if name in ("max", "min") and sum(a.name is None for a in e.args) == 2:
        return _scalar(cx, name, e)
    if name in REDUCTIONS:
        return _reduction(cx, name, e)
    if name in SCALAR_NAMES:
        return _scalar(cx, name, e)
    if name in CASTS:
        (arg,) = take(e, name, ["x"])
        dtype = cx.frame.real if name == "real" else name
        return convert(cx, Operand(cx.eval(arg), arg.span), dtype, e.span)
    table: dict[str, Callable[[Context, ast.Call], Value]] = {
        "where": where,
        "concat": concat,
        "grad": grad,
        "stop": stop,
        "total": total,
        "norm": norm,
        "finite": finite,
        "rank": rank,
        "size": size,
        "zeros_like": zeros_like,
        "cast": _cast,
        "recompute": _recompute,
    }
    if name in table:
        return table[name](cx, e)
    if name in ("uniform", "normal"):
        return random_tensor(cx, name, e)
    if name in ("zeros", "ones", "empty"):
        raise fail(
            "E0802",
            f"`{name}` takes its sizes in brackets",
            e.span,
            help=translated(cx, e),
        )
    raise fail("E0901", f"`{name}` is not compiled yet", e.func.span)


def _cast(cx: Context, e: ast.Call) -> Value:
    """`cast(net, bf16)`: a module with its `real` leaves read as bf16; also a tree or tensor."""
    x, to = take(e, "cast", ["x", "dtype"])
    if not isinstance(to, ast.Name) or to.id not in DTYPES or not is_float(to.id):
        floats = ", ".join(d for d in DTYPES if is_float(d) and d != "real")
        raise fail("E0203", "`cast` takes a float dtype", to.span, help=f"one of {floats}")
    value = cx.tensor(cx.eval(x))
    if isinstance(value, Module):
        return Module(replace(value.inst, real=to.id), value.path, value.name, to.id)
    return convert(cx, Operand(value, x.span), to.id, e.span)


def _recompute(cx: Context, e: ast.Call) -> Value:
    """`recompute(f(x))`: the same value; what it computes is computed again for a gradient."""
    (x,) = take(e, "recompute", ["x"])
    if isinstance(x, ast.Name | ast.Attr):
        what = f"`recompute({x.span.text})` has no effect: the value is there already"
        help = "write inside what computes it: `y = recompute(f(x))`"
        cx.warn("W0005", what, e.span, help)
    with cx.in_region(e.span, asked=True):
        return _computed(cx, cx.eval(x), x.span)


def _computed(cx: Context, value: Value, span: Span) -> Value:
    """The value with its tensors computed here, and not where they are read."""
    match value:
        case Tensor() if not cx.ranges:
            return cx.materialized(value, span)
        case Tuple(items=items):
            return Tuple(tuple(_computed(cx, v, span) for v in items))
        case Tree(leaves=leaves, of=of):
            return Tree({k: _computed(cx, v, span) for k, v in leaves.items()}, of)
    return value


def _scalar(cx: Context, name: str, e: ast.Call) -> Value:
    entry = SCALARS[name]
    for a in e.args:
        if a.name is not None:
            raise fail("E0802", f"`{name}` has no argument `{a.name}`", a.span)
    if len(e.args) != entry.arity:
        plural = "s" if entry.arity != 1 else ""
        text = f"`{name}` takes {entry.arity} number{plural}, {len(e.args)} given"
        raise fail("E0802", text, e.span)
    operands = [Operand(cx.eval(a.value), a.value.span) for a in e.args]
    if all(isinstance(o.value, Weak) for o in operands):
        return _weak_scalar(name, [o.value for o in operands if isinstance(o.value, Weak)])
    return elementwise(cx, name, operands, e.span)


def _weak_scalar(name: str, args: list[Weak]) -> Weak:
    known = [a.number for a in args]
    kind = (
        "float" if SCALARS[name].rule == "float" or any(a.kind == "float" for a in args) else "int"
    )
    dims = [a.dim for a in args]
    if name in ("min", "max") and all(d is not None for d in dims):
        return integer(apply(name, *[d for d in dims if d is not None]))
    if all(n is not None for n in known):
        with np.errstate(all="ignore"):
            result = float(SCALARS[name].numpy(*[np.float64(n) for n in known if n is not None]))
        if kind == "int":
            return integer(int(result))
        return number(result)
    return weak_op(name, *args, kind=kind)


def _reduction(cx: Context, name: str, e: ast.Call) -> Value:
    args = take(e, name, ["x", "over", "keep"], 2)
    named = {a.name: a.value for a in e.args if a.name}
    x = cx.tensor(cx.eval(args[0]))
    over = named.get("over") or (args[1] if len(args) > 1 and "keep" not in named else None)
    if len(args) == 3:
        over = args[1]
    keep_ast = named.get("keep") or (args[2] if len(args) == 3 else None)
    keep = cx.eval(keep_ast) if keep_ast is not None else Bool(False)
    if isinstance(x, Module):
        x = module_tree(cx, x)
    if isinstance(x, Tree):
        raise fail(
            "E0203",
            f"`{name}` reduces one tensor, this is a tree",
            args[0].span,
            help="`total(t)`, `norm(t)` and `finite(t)` reduce all leaves",
        )
    tensor = settle(cx, Operand(x, args[0].span), "a tensor")
    if isinstance(tensor, Weak | WeakTensor):
        if name in COMPOSITE:  # their results are real
            tensor = adapt(cx, tensor, cx.frame.real, args[0].span)
        else:
            tensor = as_tensor(cx, tensor, args[0].span)
    if not isinstance(tensor, Tensor) or not isinstance(keep, Bool):
        raise Poisoned
    axes = None if over is None else resolve_axes(cx, tensor, over)
    operand = Operand(tensor, args[0].span)
    return reduce_whole(cx, name, operand, axes, bool(keep.value), e.span)
