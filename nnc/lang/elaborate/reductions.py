"""Reductions, in index notation and over whole tensors."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from nnc.diagnostics import Span
from nnc.ir.expr import Const, Expr, Idx, Op, Select
from nnc.ir.graph import Stop
from nnc.lang import ast
from nnc.lang.dims import ONE, ZERO, Dim, dim_prod
from nnc.lang.elaborate.arith import elementwise
from nnc.lang.elaborate.binders import bind, declare_binders
from nnc.lang.elaborate.broadcasting import bare, typed
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.definitions import element_value
from nnc.lang.elaborate.mistakes import fail
from nnc.lang.elaborate.values import Operand, Tensor, Value, integer, of_node
from nnc.lang.elaborate.words import axes_word
from nnc.lang.types import is_float

COMPOSITE = ("mean", "var", "logsumexp")


REDUCTIONS = (
    "sum",
    "mean",
    "max",
    "min",
    "prod",
    "any",
    "all",
    "argmax",
    "argmin",
    "logsumexp",
    "var",
)


def reduce_indexed(cx: Context, op: str, node: ast.Call, items: Sequence[ast.Expr]) -> Value:
    """`sum[i, j](e)`."""
    if len(node.args) != 1 or node.args[0].name is not None:
        raise fail("E0802", f"`{op}[...]` takes one expression", node.span)
    body_ast = node.args[0].value
    ranges = declare_binders(cx, items, [body_ast])
    binders, extents = bind(cx, ranges, op)
    with cx.bound(binders, extents):
        body = element_value(cx, body_ast, op in COMPOSITE)
    raxes = list(extents.items())
    return reduced(cx, op, raxes, body, node.span, body_ast.span)


def reduced(
    cx: Context, op: str, raxes: Sequence[tuple[str, Dim]], body: Expr, span: Span, at: Span
) -> Value:
    """One reduction of an element expression over loop variables."""
    _check_reducible(cx, op, body.dtype, at)
    if op in ("argmax", "argmin") and len(raxes) != 1:
        raise fail("E0407", f"`{op}` reduces over one axis", span)
    if op not in COMPOSITE:
        return cx.node((), raxes, op, body, span)
    n = integer(dim_prod(n for _, n in raxes))
    if op == "mean":
        total = Operand(cx.node((), raxes, "sum", body, span), span)
        return elementwise(cx, "div", [total, Operand(n, span)], span)
    if op == "var":
        mean = reduced(cx, "mean", raxes, body, span, at)
        assert isinstance(mean, Tensor)
        centred = Op(body.dtype, "sub", (body, mean.at(())))
        square = Op(body.dtype, "mul", (centred, centred))
        return reduced(cx, "mean", raxes, square, span, at)
    top = _finite_top(cx, cx.node((), raxes, "max", body, span), span)
    shifted = Op(body.dtype, "exp", (Op(body.dtype, "sub", (body, top.at(()))),))
    log = _log_of_sum(cx, cx.node((), raxes, "sum", shifted, span), span)
    return elementwise(cx, "add", [Operand(log, span), Operand(top, span)], span)


def _finite_top(cx: Context, top: Value, span: Span) -> Tensor:
    """The largest value, or 0 where it is infinite: `inf - inf` would be no number.

    For derivatives it is a constant: a shift changes none.
    """
    assert isinstance(top, Tensor)

    def body(i: tuple[Expr, ...]) -> Expr:
        e = top.at(i)
        return Select(e.dtype, Op("bool", "isfinite", (e,)), e, Const(e.dtype, 0.0))

    found = cx.compute(top.shape, body, span, origins=top.origins)
    if found.node is None:
        return found
    stopped = Stop(type=found.type, span=cx.at(span), source=found.node, regions=cx.regions)
    return of_node(stopped, found.letters, found.origins)


def _log_of_sum(cx: Context, total: Value, span: Span) -> Tensor:
    """`log`, whose derivative is 0 where nothing was summed: no finite change changes -inf."""
    assert isinstance(total, Tensor)

    def body(i: tuple[Expr, ...]) -> Expr:
        e = total.at(i)
        nothing = Op("bool", "eq", (e, Const(e.dtype, 0.0)))
        return Select(e.dtype, nothing, Const(e.dtype, -inf), Op(e.dtype, "log", (e,)))

    return cx.compute(total.shape, body, span, origins=total.origins)


def _check_reducible(cx: Context, op: str, dtype: str, at: Span) -> None:
    if op in ("any", "all") and dtype != "bool":
        raise fail(
            "E0203", f"`{op}` needs a bool, this is {dtype}", at, help=f"compare: `{at.text} != 0`"
        )
    if op in COMPOSITE and not is_float(dtype):
        raise fail(
            "E0203",
            f"`{op}` needs a float, this is {dtype}",
            at,
            help=f"`{cx.frame.real}({at.text})`",
        )
    if op not in ("any", "all") and dtype == "bool":
        raise fail(
            "E0203",
            f"`{op}` needs numbers, this is bool",
            at,
            help=f"count with `{cx.frame.real}({bare(at.text)})`",
        )


def reduce_whole(
    cx: Context, op: str, operand: Operand, axes: Sequence[int] | None, keep: bool, span: Span
) -> Value:
    """`sum(x)`, `sum(x, over=A, keep=true)`."""
    x = operand.value
    assert isinstance(x, Tensor)
    rank = len(x.shape)
    chosen = tuple(range(rank)) if axes is None else tuple(sorted(axes))
    if op in ("argmax", "argmin") and len(chosen) != 1:
        last = x.shape[-1].name if x.shape else None
        axis = last if last and x.shape.count(x.shape[-1]) == 1 else len(x.shape) - 1
        what = f"`{op}` reduces over one axis, this has {axes_word(len(x.shape))}"
        help = f"say which: `{op}({operand.span.text}, over={axis})`" if x.shape else None
        raise fail("E0407", what, operand.span, typed(x, span), help=help)
    _check_reducible(cx, op, x.dtype, operand.span)
    if op == "mean":
        total = reduce_whole(cx, "sum", operand, axes, keep, span)
        n = integer(dim_prod(x.shape[a] for a in chosen))
        return elementwise(cx, "div", [Operand(total, span), Operand(n, span)], span)
    if op == "var":
        mean = reduce_whole(cx, "mean", operand, axes, True, span)
        centred = elementwise(cx, "sub", [operand, Operand(mean, span)], span)
        two = Operand(centred, span)
        square = elementwise(cx, "mul", [two, two], span)
        return reduce_whole(cx, "mean", Operand(square, span), axes, keep, span)
    if op == "logsumexp":
        return _logsumexp(cx, operand, chosen, keep, span)
    return _plain(cx, op, x, chosen, keep, span)


def _logsumexp(
    cx: Context, operand: Operand, chosen: Sequence[int], keep: bool, span: Span
) -> Value:
    top = _finite_top(cx, reduce_whole(cx, "max", operand, chosen, True, span), span)
    shifted = elementwise(cx, "sub", [operand, Operand(top, span)], span)
    e = Operand(elementwise(cx, "exp", [Operand(shifted, span)], span), span)
    log = _log_of_sum(cx, reduce_whole(cx, "sum", e, chosen, keep, span), span)
    if keep:
        return elementwise(cx, "add", [Operand(log, span), Operand(top, span)], span)
    last = Operand(_without(cx, top, chosen, span), span)
    return elementwise(cx, "add", [Operand(log, span), last], span)


def _without(cx: Context, x: Tensor, axes: Sequence[int], span: Span) -> Tensor:
    """Of a tensor, the element 0 of some axes."""
    kept = [a for a in range(len(x.shape)) if a not in axes]

    def body(i: tuple[Expr, ...]) -> Expr:
        own = iter(i)
        return x.at(tuple(next(own) if a in kept else Idx(ZERO) for a in range(len(x.shape))))

    shape, origins = [x.shape[a] for a in kept], tuple(x.origin(a) for a in kept)
    return cx.compute(shape, body, span, origins=origins)


def _plain(
    cx: Context, op: str, x: Tensor, chosen: Sequence[int], keep: bool, span: Span
) -> Tensor:
    if not chosen:
        return x  # over no axes: the value itself
    rank = len(x.shape)
    shape = [ONE if a in chosen else n for a, n in enumerate(x.shape) if keep or a not in chosen]
    origins = tuple(x.origin(a) for a in range(rank) if keep or a not in chosen)

    def body(index: tuple[Expr, ...], inner: tuple[Expr, ...]) -> Expr:
        rest, own = iter(index), iter(inner)
        source: list[Expr] = []
        for a in range(rank):
            if a in chosen:
                source.append(next(own))
                if keep:
                    next(rest)
            else:
                source.append(next(rest))
        return x.at(tuple(source))

    extents = [x.shape[a] for a in chosen]
    return cx.compute(shape, lambda i: i[0], span, reduce=(op, extents, body), origins=origins)
