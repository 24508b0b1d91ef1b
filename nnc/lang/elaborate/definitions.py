"""Index statements: `y[i, j] = e` defines a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nnc.ir.expr import Expr, Idx, Load
from nnc.ir.graph import Compute
from nnc.ir.scalar import cast
from nnc.lang import ast
from nnc.lang.dims import Dim, dim_prod
from nnc.lang.elaborate.binders import bind, declare_binders
from nnc.lang.elaborate.broadcasting import fits, free_dtype, typed
from nnc.lang.elaborate.context import Binder, Context
from nnc.lang.elaborate.mistakes import Poisoned, fail
from nnc.lang.elaborate.unbound import LEFT
from nnc.lang.elaborate.values import (
    Bool,
    Nothing,
    Origin,
    Origins,
    Tensor,
    Tuple,
    Unknown,
    Weak,
    WeakTensor,
    named,
    of_node,
    scalar,
)
from nnc.lang.elaborate.words import counted, describe


def define(
    cx: Context, target: ast.Index, rhs: ast.Expr, part: tuple[int, int] | None = None
) -> Tensor:
    """`y[i, j] = e`: a new tensor for all i, j. `part`: of a tuple, which and of how many."""
    ranges = declare_binders(cx, target.items, [rhs])
    binders, extents = bind(cx, ranges, LEFT)
    with cx.bound(binders, extents):
        value = element_value(cx, rhs, part=part)
    axes = [(v, extents[v]) for r in ranges.values() for v in binders[r.name].vars]
    name = target.value.id if isinstance(target.value, ast.Name) else ""
    out = _direct(axes, value) or cx.node(axes, (), "", value, target.span.to(rhs.span), name=name)
    letters: list[str] = []
    for item in target.items:
        match item:
            case ast.Name(id=n) | ast.Slice(lower=ast.Name(id=n)):
                letters.append(n)
            case ast.Rest(name=n):
                letters.extend([""] * len(binders[n].vars))
            case _:
                letters.append("")
    out = named(out, tuple(letters))
    origins: Origins = tuple(Origin(f"the range of {v[1:]}", target.span) for v, _ in axes)
    place = Origin(f"`{target.span.text}`", target.span)
    out = replace(out, origins=origins, place=place)
    if any(isinstance(i, ast.Tuple) for i in target.items):
        out = replace(_merged(cx, out, target, binders), place=place)
    return out


def element_value(
    cx: Context, rhs: ast.Expr, real: bool = False, part: tuple[int, int] | None = None
) -> Expr:
    """The right side of an index statement: one number (`real`: literals become real)."""
    value = cx.tensor(cx.eval(rhs))
    if part is not None and not isinstance(value, Unknown):
        k, count = part
        parts = value.items if isinstance(value, Tuple) else ()
        if len(parts) != count:
            what = counted(len(parts), "value") if parts else "one value"
            raise fail("E0811", f"{count} names for {what}", rhs.span, describe(value))
        value = cx.tensor(parts[k])
    match value:
        case Tensor(shape=()):
            return value.at(())
        case Tensor():
            raise fail(
                "E0405",
                "one number is expected here, this still has axes",
                rhs.span,
                typed(value, rhs.span),
                help="index every axis of it",
            )
        case Weak():
            fits(value, free_dtype(cx, [value]), rhs.span)
            return value.make(cx.frame.real if real else free_dtype(cx, [value]))
        case WeakTensor(shape=()):
            return value.at(cx.frame.real if real else free_dtype(cx, [value]), ())
        case Bool(value=b) if b is not None:
            return scalar(cast(Idx(Dim.of(int(b))), "bool")).at(())
        case Unknown() | Nothing():
            raise Poisoned
    raise fail("E0203", f"{describe(value)} is not a number", rhs.span)


def _direct(axes: Sequence[tuple[str, Dim]], value: Expr) -> Tensor | None:
    """A right side that is just a node read at all the indices in order: that node itself."""
    if not isinstance(value, Load) or not isinstance(value.tensor, Compute) or value.other:
        return None
    index = [e.dim.name if isinstance(e, Idx) else None for e in value.index]
    same = index == [v for v, _ in axes] == [a.var for a in value.tensor.axes]
    if not same or not value.tensor.op:
        return None
    return of_node(value.tensor)


def _merged(cx: Context, split: Tensor, target: ast.Index, binders: dict[str, Binder]) -> Tensor:
    """`a[b, t, (h, e)] = ...`: the split value seen with merged axes (row-major)."""
    groups: list[int] = []
    for item in target.items:
        match item:
            case ast.Rest(name=n):
                groups.extend([1] * len(binders[n].vars))
            case ast.Tuple(items=items):
                groups.append(len(items))
            case _:
                groups.append(1)
    shape: list[Dim] = []
    letters: list[str] = []
    axis = 0
    for width in groups:
        shape.append(cx.settled(dim_prod(split.shape[axis : axis + width])))
        letters.append(split.letters[axis] if width == 1 and axis < len(split.letters) else "")
        axis += width

    def body(index: tuple[Expr, ...]) -> Expr:
        source: list[Expr] = []
        at = 0
        for i, n in zip(index, groups, strict=True):
            source.extend(_digits(i, split.shape[at : at + n]))
            at += n
        return split.at(tuple(source))

    return named(cx.compute(tuple(shape), body, target.span), tuple(letters))


def _digits(index: Expr, sizes: Sequence[Dim]) -> list[Expr]:
    if len(sizes) == 1:
        return [index]
    assert isinstance(index, Idx), index
    out: list[Expr] = []
    for k, size in enumerate(sizes):
        below = dim_prod(sizes[k + 1 :])
        digit = index.dim // below
        out.append(Idx(digit if k == 0 else digit % size))
    return out
