"""`x[...] := e`: a new version of a tensor with some elements written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

from nnc.diagnostics import Span
from nnc.ir.expr import Expr, Idx, Op
from nnc.ir.graph import Axis, Node, Update
from nnc.lang import ast
from nnc.lang.dims import ONE, ZERO, Dim
from nnc.lang.elaborate.arith import adapt
from nnc.lang.elaborate.binders import Range, agree, bind, infer_ranges, no_range
from nnc.lang.elaborate.context import Context, fail
from nnc.lang.elaborate.reads import Plan, is_loose, keep, read_item, scalar_index
from nnc.lang.elaborate.values import Tensor, of_node
from nnc.lang.types import TensorType


def update(cx: Context, base: Tensor, target: ast.Index, rhs: ast.Expr) -> Tensor:
    """`x[...] := e`: a new version of x with those elements written."""
    loose = [
        (n.id, n.span)
        for item in target.items
        for n in _names_in(item)
        if n.id not in cx.frame.binders and is_loose(cx, n.id)
    ]
    rests = [(i.name, i.span) for i in target.items if isinstance(i, ast.Rest) and i.name != "..."]
    accumulate, rest_of_value = _accumulates(target, rhs)
    ranges = {n: Range(n, s, False) for n, s in loose} | {n: Range(n, s, True) for n, s in rests}
    for item in target.items:
        match item:
            case ast.Slice(lower=ast.Name(id=n), upper=upper) if n in ranges and upper is not None:
                ranges[n].explicit = (cx.eval_dim(upper),)
    infer_ranges(cx, ranges, [target, rest_of_value])
    for r in ranges.values():
        if r.known is None:
            raise no_range(cx, r.name, r.span)
        if r.explicit is None:
            agree(r)
    binders, extents = bind(cx, ranges)
    with cx.bound(binders, extents):
        plan = _target_index(cx, base, target)
        extra = [(cx.fresh_var("s", list(extents)), n) for n in plan.shape]
        value = _update_value(cx, rest_of_value, base, extra, plan)
    if accumulate == "-":
        value = Op(value.dtype, "neg", (value,))
    axes = [(v, n) for v, n in extents.items()] + extra
    index = tuple(_resolve(s, extra) for s in plan.source)
    node = Update(
        type=base.type,
        span=target.span.to(rhs.span),
        base=_as_node(cx, base, target.span),
        axes=tuple(Axis(v, n) for v, n in axes),
        target=index,
        value=value,
        accumulate=bool(accumulate),
        check=plan.check,
    )
    if not accumulate and not _injective(cx, index, [v for v, _ in axes], dict(axes)):
        raise fail(
            "E0408",
            "this may write one element twice",
            target.span,
            help=f"to add them up write `{target.span.text} := {target.span.text} + ...`",
        )
    return of_node(node, base.letters, base.origins)


def _names_in(item: ast.Expr) -> Iterator[ast.Name]:
    stack: list[object] = [item]
    while stack:
        node = stack.pop()
        if isinstance(node, tuple):
            stack.extend(node)
        elif isinstance(node, ast.Name):
            yield node
        elif isinstance(node, ast.Slice):
            stack.append(node.lower)
        elif isinstance(node, ast.Index):
            stack.append(node.items)
        elif isinstance(node, ast.Call):
            stack.append(tuple(a.value for a in node.args))
        elif isinstance(node, ast.Syntax):
            stack.extend(getattr(node, f.name) for f in fields(node) if f.name != "span")


def _accumulates(target: ast.Index, rhs: ast.Expr) -> tuple[str, ast.Expr]:
    """`x[i] := x[i] + e` (either order) or `x[i] - e`: the sign and the added part."""
    same = " ".join(target.span.text.split())
    match rhs:
        case ast.Binary(op="+", left=left, right=right):
            if " ".join(left.span.text.split()) == same:
                return "+", right
            if " ".join(right.span.text.split()) == same:
                return "+", left
        case ast.Binary(op="-", left=left, right=right):
            if " ".join(left.span.text.split()) == same:
                return "-", right
    return "", rhs


def _target_index(cx: Context, base: Tensor, target: ast.Index) -> Plan:
    plan = Plan()
    rank = len(base.shape)
    count = sum(1 for i in target.items if not isinstance(i, ast.Rest))
    for item in target.items:
        if isinstance(item, ast.Rest) and item.name in cx.frame.binders:
            count += len(cx.frame.binders[item.name].vars)
    if count > rank:
        raise fail("E0405", f"{count} indices for a tensor of rank {rank}", target.span)
    for item in target.items:
        match item:
            case ast.Slice(lower=ast.Name(id=n)) if n in cx.frame.binders:
                var = Idx(Dim.of(cx.frame.binders[n].vars[0]))
                where = (base, len(plan.source), target, item.span)
                scalar_index(cx, where, var, plan, False)
            case _:
                read_item(cx, base, item, plan, rank - count, target, False)
    for axis in range(len(plan.source), rank):
        keep(base, axis, plan)
    if plan.gather is not None:
        raise fail("E0405", "index the written positions by index names", target.span)
    return plan


def _update_value(
    cx: Context, rhs: ast.Expr, base: Tensor, extra: list[tuple[str, Dim]], plan: Plan
) -> Expr:
    value = adapt(cx, cx.eval(rhs), base.dtype, rhs.span)
    assert isinstance(value, Tensor), value
    if value.shape and value.shape != tuple(plan.shape):
        raise fail(
            "E0303",
            "the right side does not have the shape of what it is written to",
            rhs.span,
            str(value.type),
            notes=(f"written: {TensorType(base.dtype, tuple(plan.shape))}",),
        )
    return value.at(tuple(Idx(Dim.of(v)) for v, _ in extra) if value.shape else ())


def _resolve(s: Expr | int | tuple[int, Dim], extra: list[tuple[str, Dim]]) -> Expr:
    match s:
        case int(k):
            return Idx(Dim.of(extra[k][0]))
        case (k, low):
            assert isinstance(k, int)
            return Idx(Dim.of(extra[k][0]) + low)
    assert not isinstance(s, tuple)
    return s


def _as_node(cx: Context, base: Tensor, span: Span) -> Node:
    if base.node is None:
        raise fail("E0901", "writing into a part of a tensor is not compiled here", span)
    return base.node


def _injective(
    cx: Context, index: Sequence[Expr], variables: list[str], extents: dict[str, Dim]
) -> bool:
    """Whether different loop positions write different elements (each variable decides a component)."""
    left = set(variables)
    for _ in variables:
        for e in index:
            if not isinstance(e, Idx):
                continue
            mine = e.dim.names & left
            if len(mine) == 1:
                form = e.dim.linear_in(next(iter(mine)))
                if form is not None and form[0] != ZERO:
                    left -= mine
            elif mine and _radix_form(e.dim, mine, extents):
                left -= mine
    return not {v for v in left if extents[v] != ONE}


def _radix_form(d: Dim, mine: frozenset[str] | set[str], extents: dict[str, Dim]) -> bool:
    """Whether d is a mixed-radix number in these variables: coefficients 1, n1, n1*n2, ..."""
    coefficients: dict[str, Dim] = {}
    for v in mine:
        form = d.linear_in(v)
        if form is None:
            return False
        coefficients[v] = form[0]
    scale = ONE
    for _ in coefficients:
        hit = next((v for v, c in coefficients.items() if c == scale), None)
        if hit is None:
            return False
        scale = scale * extents[hit]
        del coefficients[hit]
    return True
