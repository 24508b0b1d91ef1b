"""`where`, `concat`, `zeros_like`."""

from __future__ import annotations

from nnc.diagnostics import Label
from nnc.ir.expr import Const, Expr, Idx, Op, Select
from nnc.lang import ast
from nnc.lang.dims import Dim, dim_sum
from nnc.lang.elaborate.arguments import take
from nnc.lang.elaborate.arith import adapt, element, lift, settle, weak_kind
from nnc.lang.elaborate.axes import resolve_axis
from nnc.lang.elaborate.broadcasting import broadcast, common_dtype, size_origin
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.mistakes import Mistake, Poisoned, fail
from nnc.lang.elaborate.translation import translated
from nnc.lang.elaborate.values import Bool, Operand, Tensor, Value, WeakTensor, number
from nnc.lang.elaborate.words import describe
from nnc.lang.types import DType


def where(cx: Context, e: ast.Call) -> Value:
    c, a, b = take(e, "where", ["cond", "a", "b"])
    cond = cx.tensor(cx.eval(c))
    x, y = Operand(cx.eval(a), a.span), Operand(cx.eval(b), b.span)
    if isinstance(cond, Bool):
        if cond.value is None:
            raise Poisoned
        return x.value if cond.value else y.value
    test = Operand(cond, c.span)

    def one(t: Operand, p: Operand, q: Operand) -> Value:
        mask = settle(cx, t)
        if not isinstance(mask, Tensor) or mask.dtype != "bool":
            help = f"compare: `{c.span.text} != 0`" if isinstance(mask, Tensor) else None
            raise fail("E0203", "`where` needs a bool condition", c.span, describe(mask), help=help)
        left, right = settle(cx, p), settle(cx, q)
        dtype = common_dtype(cx, [p, q], [left, right], e.span)
        shape, origins = broadcast(cx, [t, p, q], [mask, left, right], e.span, "where")

        def at(as_: DType, i: tuple[Expr, ...]) -> Expr:
            m = element(mask, "bool", shape, i)
            return Select(as_, m, element(left, as_, shape, i), element(right, as_, shape, i))

        if not isinstance(left, Tensor) and not isinstance(right, Tensor):
            return WeakTensor(shape, weak_kind([left, right]), at)
        return cx.compute(shape, lambda i: at(dtype, i), e.span, origins=origins)

    lifted = lift(cx, one, [test, x, y], e.span)
    return lifted if lifted is not None else one(test, x, y)


def concat(cx: Context, e: ast.Call) -> Value:
    over = next((a.value for a in e.args if a.name == "over"), None)
    parts = [a for a in e.args if a.name is None]
    if over is None or len(parts) < 2:
        text = "`concat` takes two or more tensors and `over=`"
        raise fail("E0802", text, e.span, help=translated(cx, e))
    operands = [Operand(settle(cx, Operand(cx.eval(a.value), a.span)), a.span) for a in parts]
    dtype = common_dtype(cx, operands, [o.value for o in operands], e.span)
    tensors: list[Tensor] = []
    for o in operands:
        t = adapt(cx, o.value, dtype, o.span)
        if not isinstance(t, Tensor):
            raise fail("E0203", "`concat` joins tensors", o.span, describe(t))
        tensors.append(t)
    axis = resolve_axis(cx, tensors[0], over)
    if axis is None:
        raise Poisoned
    first = tensors[0]
    for t, o in zip(tensors[1:], operands[1:], strict=True):
        rest = [d for i, d in enumerate(t.shape) if i != axis]
        if rest != [d for i, d in enumerate(first.shape) if i != axis]:
            raise _not_joined(t, first, axis, o, operands[0])
    total = dim_sum(t.shape[axis] for t in tensors)
    shape = (*first.shape[:axis], total, *first.shape[axis + 1 :])

    def body(i: tuple[Expr, ...]) -> Expr:
        at = i[axis]
        assert isinstance(at, Idx)
        end = total - tensors[-1].shape[axis]
        out = _shift(tensors[-1], i, axis, end)
        for t in reversed(tensors[:-1]):
            before = end - t.shape[axis]
            out = Select(dtype, Op("bool", "lt", (at, Idx(end))), _shift(t, i, axis, before), out)
            end = before
        return out

    return cx.compute(shape, body, e.span)


def _not_joined(t: Tensor, first: Tensor, axis: int, o: Operand, beside: Operand) -> Mistake:
    """Tensors whose other axes differ."""
    note, where = f"{len(t.shape)} and {len(first.shape)} axes", 0
    if len(t.shape) == len(first.shape):
        pairs = enumerate(zip(first.shape, t.shape, strict=True))
        where = next(i for i, (a, b) in pairs if i != axis and a != b)
        note = f"axis {where}: {first.shape[where]} is not {t.shape[where]}"
    sides = [f"{x.type}{size_origin(x, min(where, len(x.shape) - 1), o.span)}" for x in (t, first)]
    label = Label(beside.span, sides[1])
    text = "these shapes cannot be joined"
    return fail("E0302", text, o.span, sides[0], [label], [note])


def _shift(t: Tensor, i: tuple[Expr, ...], axis: int, start: Dim) -> Expr:
    at = i[axis]
    assert isinstance(at, Idx)
    return t.at((*i[:axis], Idx(at.dim - start), *i[axis + 1 :]))


def zeros_like(cx: Context, e: ast.Call) -> Value:
    (arg,) = take(e, "zeros_like", ["x"])
    operand = Operand(cx.eval(arg), arg.span)

    def one(o: Operand) -> Value:
        t = settle(cx, o)
        if isinstance(t, Tensor):
            zero = Const(t.dtype, False if t.dtype == "bool" else 0)
            return cx.compute(t.shape, lambda i: zero, e.span)
        return number(0)

    lifted = lift(cx, one, [operand], e.span)
    return lifted if lifted is not None else one(operand)
