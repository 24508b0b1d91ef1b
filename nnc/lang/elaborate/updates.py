"""`x[...] := e`: a new version of a tensor with some elements written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from nnc.diagnostics import Span
from nnc.ir.expr import Expr, Idx, Op
from nnc.ir.graph import Axis, Update
from nnc.lang import ast
from nnc.lang.dims import ONE, ZERO, Dim
from nnc.lang.elaborate.arith import adapt, settle
from nnc.lang.elaborate.binders import bind, settle_ranges
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.mistakes import fail
from nnc.lang.elaborate.ranges import Range
from nnc.lang.elaborate.reads import Plan, is_loose, planned
from nnc.lang.elaborate.unbound import LEFT
from nnc.lang.elaborate.values import Operand, Tensor, Tree, Value, WeakTensor, of_node
from nnc.lang.elaborate.words import describe
from nnc.lang.types import TensorType


@dataclass(frozen=True, eq=False)
class Writing:
    """`x[...] := e` evaluated: where, over `axes`, each value goes. `sign`: "", or "+", "-"."""

    axes: tuple[Axis, ...]
    index: tuple[Expr, ...]
    value: Value
    value_index: tuple[Expr, ...]
    sign: str
    check: Span | None


def writing(cx: Context, base: Tensor, target: ast.Index, rhs: ast.Expr) -> Writing:
    """Binds the index names of the left side, plans the positions and evaluates the right side."""
    sign, added = _accumulates(target, rhs)
    ranges = _target_ranges(cx, target, added)
    binders, extents = bind(cx, ranges, LEFT)
    with cx.bound(binders, extents):
        plan = _target_index(cx, base, target)
        taken = list(extents)
        extra: list[tuple[str, Dim]] = []
        for n in plan.shape:
            extra.append((cx.fresh_var("s", taken), n))
            taken.append(extra[-1][0])
        value = settle(cx, Operand(cx.eval(added), added.span), "a tensor")
    _fits_part(value, base, plan, added.span)
    axes = [*extents.items(), *extra]
    own = tuple(Idx(Dim.of(v)) for v, _ in extra)
    index = plan.at(own)
    if not sign and not _injective(index, [v for v, _ in axes], dict(axes)):
        raise fail(
            "E0408",
            "this may write one element twice",
            target.span,
            help=f"to add them up write `{target.span.text} := {target.span.text} + ...`",
        )
    loops = tuple(Axis(v, n) for v, n in axes)
    return Writing(loops, index, value, own, sign, plan.check)


def updated(
    cx: Context, root: Tensor, w: Writing, index: tuple[Expr, ...], span: Span, at: Span
) -> Tensor:
    """The new version of `root` with the elements of `w` written at `index`."""
    with cx.bound({}, {a.var: a.extent for a in w.axes}):
        tensor = adapt(cx, w.value, root.dtype, at)
        assert isinstance(tensor, Tensor)
        value = tensor.at(w.value_index if tensor.shape else ())
    if w.sign == "-":
        value = Op(value.dtype, "neg", (value,))
    node = Update(
        type=root.type,
        span=cx.at(span),
        base=cx.as_node(root, span),
        axes=w.axes,
        target=index,
        value=value,
        accumulate="add" if w.sign else "",
        guard=cx.branch,
        check=w.check,
        regions=cx.regions,
    )
    return of_node(node, root.letters, root.origins)


def _target_ranges(cx: Context, target: ast.Index, added: ast.Expr) -> dict[str, Range]:
    """The index names that the left side binds: those that mean nothing yet."""
    loose = [
        (n.id, n.span)
        for item in target.items
        for n in _names_in(item)
        if n.id not in cx.frame.binders and is_loose(cx, n.id)
    ]
    rests = [(i.name, i.span) for i in target.items if isinstance(i, ast.Rest) and i.name != "..."]
    ranges = {n: Range(n, s, False) for n, s in loose} | {n: Range(n, s, True) for n, s in rests}
    for item in target.items:
        match item:
            case ast.Slice(lower=ast.Name(id=n), upper=upper) if n in ranges and upper is not None:
                ranges[n].explicit = (cx.eval_dim(upper),)
    settle_ranges(cx, ranges, [target, added])
    return ranges


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
    """Positions; `i:N` with a bound name is that index."""
    if target.orelse is not None:
        raise fail("E0407", "`else` has no place on the left side", target.orelse.span)
    items: list[ast.Expr] = []
    for item in target.items:
        match item:
            case ast.Slice(lower=ast.Name(id=n) as name) if n in cx.frame.binders:
                items.append(name)
            case ast.NoneLit():
                raise fail("E0407", "`None` has no place on the left side", item.span)
            case _:
                items.append(item)
    plan = planned(cx, base, target, items, writing=True)
    if plan.gather is not None:
        raise fail("E0405", "index the written positions by index names", target.span)
    return plan


def _fits_part(value: Value, base: Tensor, plan: Plan, span: Span) -> None:
    shape = value.shape if isinstance(value, Tensor | WeakTensor) else ()
    if isinstance(value, Tree):
        raise fail("E0303", "a tree is written to a tensor", span)
    if shape and shape != tuple(plan.shape):
        part = TensorType(base.dtype, tuple(plan.shape))
        text = str(value.type) if isinstance(value, Tensor) else describe(value)
        raise fail(
            "E0303",
            "the right side does not have the shape of what it is written to",
            span,
            text,
            notes=(f"written: {part}",),
        )


def _injective(index: Sequence[Expr], variables: list[str], extents: dict[str, Dim]) -> bool:
    """Whether different loop positions write different elements: each variable decides one."""
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
    while coefficients:
        hit = next((v for v, c in coefficients.items() if c == scale), None)
        if hit is None:
            return False
        scale = scale * extents[hit]
        del coefficients[hit]
    return True
