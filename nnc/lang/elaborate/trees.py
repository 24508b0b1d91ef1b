"""Functions of trees: `total`, `norm`, `finite`, `rank`, `size`."""

from __future__ import annotations

from collections.abc import Sequence

from nnc.diagnostics import Span
from nnc.ir.expr import Const, Op, Select
from nnc.lang import ast
from nnc.lang.dims import ONE, Dim, dim_prod
from nnc.lang.elaborate.arguments import take
from nnc.lang.elaborate.arith import as_tensor, elementwise, lift, settle
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.mistakes import Poisoned
from nnc.lang.elaborate.reductions import reduce_whole
from nnc.lang.elaborate.values import (
    Operand,
    Pack,
    Tensor,
    Tree,
    Value,
    Weak,
    WeakTensor,
    integer,
    number,
)
from nnc.lang.types import is_float


def _leaves(cx: Context, e: ast.Call, name: str) -> list[Tensor]:
    (arg,) = take(e, name, ["t"])
    value = settle(cx, Operand(cx.eval(arg), arg.span), "a tree")
    items = list(value.leaves.values()) if isinstance(value, Tree) else [value]
    out: list[Tensor] = []
    for item in items:
        t = settle(cx, Operand(item, arg.span))
        if isinstance(t, Weak | WeakTensor):
            t = as_tensor(cx, t, arg.span)
        if isinstance(t, Tensor):
            out.append(t)
    if not out and cx.generic:
        raise Poisoned
    return out or [as_tensor(cx, number(0.0), e.span)]


def _fold(cx: Context, fn: str, parts: Sequence[Value], span: Span) -> Value:
    out = parts[0]
    for p in parts[1:]:
        out = elementwise(cx, fn, [Operand(out, span), Operand(p, span)], span)
    return out


def total(cx: Context, e: ast.Call) -> Value:
    """Sum of all elements of all leaves."""
    sums = [_sum(cx, t, e.span) for t in _leaves(cx, e, "total")]
    return _fold(cx, "add", sums, e.span)


def _sum(cx: Context, t: Tensor, span: Span) -> Value:
    return reduce_whole(cx, "sum", Operand(t, span), None, False, span)


def norm(cx: Context, e: ast.Call) -> Value:
    """Square root of the sum of squares over all leaves. Its gradient at zero is zero."""
    squares: list[Value] = []
    for t in _leaves(cx, e, "norm"):
        o = Operand(t, e.span)
        squares.append(_sum_of(cx, elementwise(cx, "mul", [o, o], e.span), e.span))
    total = _fold(cx, "add", squares, e.span)
    if not isinstance(total, Tensor) or not is_float(total.dtype):
        return elementwise(cx, "sqrt", [Operand(total, e.span)], e.span)
    square = total.at(())
    away = Op("bool", "ne", (square, Const(total.dtype, 0.0)))
    # At zero the square itself, whose slope is zero (one expression: the root is not looked at).
    body = Select(total.dtype, away, Op(total.dtype, "sqrt", (square,)), square)
    return cx.compute((), lambda _: body, e.span)


def _sum_of(cx: Context, value: Value, span: Span) -> Value:
    assert isinstance(value, Tensor)
    return _sum(cx, value, span)


def finite(cx: Context, e: ast.Call) -> Value:
    """Whether every element of every leaf is finite."""
    flags: list[Value] = []
    for t in _leaves(cx, e, "finite"):
        ok = elementwise(cx, "isfinite", [Operand(t, e.span)], e.span)
        flags.append(reduce_whole(cx, "all", Operand(ok, e.span), None, False, e.span))
    return _fold(cx, "and", flags, e.span)


def rank(cx: Context, e: ast.Call) -> Value:
    (arg,) = take(e, "rank", ["t"])
    value = settle(cx, Operand(cx.eval(arg), arg.span))

    def one(o: Operand) -> Value:
        t = settle(cx, o)
        if (
            cx.generic
            and isinstance(t, Tensor)
            and any(n.startswith("..") for d in t.shape for n in d.names)
        ):
            return integer(Dim.of("rank"))
        return integer(len(t.shape) if isinstance(t, Tensor | WeakTensor) else 0)

    lifted = lift(cx, one, [Operand(value, arg.span)], e.span)
    return lifted if lifted is not None else one(Operand(value, arg.span))


def size(cx: Context, e: ast.Call) -> Value:
    (arg,) = take(e, "size", ["t"])
    raw = cx.eval(arg)
    if isinstance(raw, Pack):
        return integer(dim_prod(raw.dims))
    value = settle(cx, Operand(raw, arg.span))

    def one(o: Operand) -> Value:
        t = settle(cx, o)
        return integer(dim_prod(t.shape) if isinstance(t, Tensor | WeakTensor) else ONE)

    lifted = lift(cx, one, [Operand(value, arg.span)], e.span)
    return lifted if lifted is not None else one(Operand(value, arg.span))
