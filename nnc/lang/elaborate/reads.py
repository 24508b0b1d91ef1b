"""Reading elements and slices of tensors, with bounds obligations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nnc.diagnostics import Label, Span
from nnc.ir.expr import Expr, Idx, Load, Op
from nnc.ir.scalar import cast
from nnc.lang import ast
from nnc.lang.dims import ONE, ZERO, Dim, Facts, dim_prod, exact_div, extremes
from nnc.lang.elaborate.arith import adapt
from nnc.lang.elaborate.binders import size_of, unbound
from nnc.lang.elaborate.context import Context, Mistake, Poisoned, fail
from nnc.lang.elaborate.values import Origin, Tensor, Unknown, Value, Weak, describe, named
from nnc.lang.types import is_int


@dataclass
class Plan:
    """How a result index maps to source indices: one entry for each source axis, made as items are read."""

    source: list[Expr | int | tuple[int, Dim]] = field(default_factory=list)
    shape: list[Dim] = field(default_factory=list)
    origins: list[Origin | None] = field(default_factory=list)
    letters: list[str] = field(default_factory=list)
    check: Span | None = None
    gather: Tensor | None = None
    gather_axis: int = 0


def read(cx: Context, base: Tensor, node: ast.Index) -> Value:
    """`x[items]` and `x[items else v]`."""
    plan = Plan()
    other = _otherwise(cx, base, node)
    rank = len(base.shape)
    count = sum(1 for i in node.items if not isinstance(i, ast.NoneLit | ast.Rest))
    for item in node.items:
        if isinstance(item, ast.Rest) and item.name in cx.frame.binders:
            count += len(cx.frame.binders[item.name].vars)
    if count > rank:
        raise fail(
            "E0405",
            f"{count} indices for a tensor of rank {rank}",
            node.span,
            labels=(Label(node.value.span, str(base.type)),),
        )
    for item in node.items:
        read_item(cx, base, item, plan, rank - count, node, other is not None)
    for axis in range(len(plan.source), rank):
        keep(base, axis, plan)
    return _finish(cx, base, node, plan, other)


def _otherwise(cx: Context, base: Tensor, node: ast.Index) -> Tensor | None:
    if node.orelse is None:
        return None
    value = adapt(cx, cx.eval(node.orelse), base.dtype, node.orelse.span)
    if not isinstance(value, Tensor) or value.shape:
        raise fail("E0407", "`else` takes one number", node.orelse.span)
    return value


def keep(base: Tensor, axis: int, plan: Plan) -> None:
    plan.source.append(len(plan.shape))
    plan.shape.append(base.shape[axis])
    plan.origins.append(base.origin(axis))
    plan.letters.append(base.letters[axis] if axis < len(base.letters) else "")


def read_item(
    cx: Context,
    base: Tensor,
    item: ast.Expr,
    plan: Plan,
    free: int,
    node: ast.Index,
    guarded: bool,
) -> None:
    axis = len(plan.source)
    match item:
        case ast.NoneLit():
            plan.shape.append(ONE)
            plan.origins.append(None)
            plan.letters.append("")
        case ast.Rest(name=name):
            bound = cx.frame.binders.get(name)
            if bound is not None:
                for k, var in enumerate(bound.vars):
                    where = (base, axis + k, node, item.span)
                    scalar_index(cx, where, Idx(Dim.of(var)), plan, guarded)
            elif name == "...":
                for k in range(free):
                    keep(base, axis + k, plan)
            else:
                raise unbound(cx, f"..{name}", item.span)
        case ast.Slice(lower=lower, upper=upper):
            _slice(cx, base, axis, lower, upper, plan, item)
        case ast.Tuple(items=digits):
            index = _radix(cx, base, axis, digits, item)
            plan.source.append(index)
        case _:
            value = _index_value(cx, item, base.shape[axis])
            if isinstance(value, Tensor):
                _gather(base, axis, value, plan, item)
            else:
                scalar_index(cx, (base, axis, node, item.span), value, plan, guarded)


def _index_value(cx: Context, item: ast.Expr, size: Dim) -> Expr | Tensor:
    """An index: an integer expression, or an integer tensor (a gather). `-1` counts from the end."""
    match item:
        case ast.Unary(op="-", operand=ast.Num(value=int(n))):
            return Idx(size - n)
        case ast.Name(id=name) if name not in cx.frame.binders and is_loose(cx, name):
            raise (
                unbound(cx, name, item.span)
                if cx.ranges
                else fail(
                    "E0801",
                    f"`{name}` is not defined",
                    item.span,
                    help=f"`{name}` is no size, variable or index here",
                )
            )
    value = cx.tensor(cx.eval(item))
    match value:
        case Weak(kind="int", dim=dim) if dim is not None:
            return Idx(dim)
        case Weak(kind="int"):
            return value.make("i64")
        case Tensor(dtype=dtype) if is_int(dtype):
            return value if value.shape else value.at(())
        case Unknown():
            raise Poisoned
    raise fail(
        "E0405",
        "an index must be an integer",
        item.span,
        describe(value),
        help="`i32(...)` converts",
    )


def is_loose(cx: Context, name: str) -> bool:
    return cx.lookup(name) is None


def scalar_index(
    cx: Context,
    where: tuple[Tensor, int, ast.Index, Span],
    index: Expr,
    plan: Plan,
    guarded: bool,
) -> None:
    base, axis, node, span = where
    plan.source.append(index)
    if guarded:
        return
    if not isinstance(index, Idx):
        plan.check = span
        return
    size = base.shape[axis]
    if _inside(cx, index.dim, size):
        return
    raise _leaves(cx, base, axis, node, index.dim, span)


def _inside(cx: Context, index: Dim, size: Dim) -> bool:
    name = index.name
    if name in cx.ranges and cx.ranges[name] == size:
        return True
    return cx.proves(index) and cx.proves(size - 1 - index)


def _leaves(
    cx: Context, base: Tensor, axis: int, node: ast.Index, index: Dim, span: Span
) -> Mistake:
    label = node.value.span.text
    box = cx.box()
    ends = extremes(index, cx.facts, box)
    high = base.shape[axis] - 1
    takes = f"takes {ends[0]} ... {_tidy(ends[1], cx.facts)}" if ends else "may lie anywhere"
    if ends and ends[0] == ends[1]:
        takes = f"is {ends[0]}"
    text = f"{takes}, but axis {axis} of {label} has 0 ... {high}"
    items = ", ".join(i.span.text for i in node.items)
    help = f"`{label}[{items} else 0]` reads zeros outside"
    return fail("E0402", f"this index can leave {label}", span, text.replace("$", ""), help=help)


def _tidy(d: Dim, facts: Facts) -> str:
    """The largest value, with `(n//s)*s` bounded by `n` so that it reads well."""
    out = d
    for mono, c in d.terms:
        for atom, _ in mono:
            if not isinstance(atom, str) and atom.kind == "floor":
                whole = Dim(((mono, c),))
                if whole == Dim(((((atom, 1),), 1),)) * atom.b * c:
                    out = out - whole + atom.a * c
    return str(out)


def _radix(
    cx: Context, base: Tensor, axis: int, digits: Sequence[ast.Expr], item: ast.Expr
) -> Expr:
    """`(k:4, u:H)`: one axis of size 4*H seen as two, the first digit most significant."""
    values: list[Dim] = []
    sizes: list[Dim | None] = []
    for digit in digits:
        expr, size = (digit, None)
        if isinstance(digit, ast.Slice):
            assert digit.lower is not None and digit.upper is not None, digit
            expr, size = digit.lower, cx.eval_dim(digit.upper)
        index = _index_value(cx, expr, size or ONE)
        if not isinstance(index, Idx):
            raise fail("E0406", "a digit must be affine in index names", digit.span)
        if size is None and isinstance(digit, ast.Name):
            size = size_of(cx, {}, digit.id)
        values.append(index.dim)
        sizes.append(size)
    total = base.shape[axis]
    if sizes.count(None) == 1:
        known = dim_prod(s for s in sizes if s is not None)
        sizes[sizes.index(None)] = exact_div(total, known)
    if None in sizes:
        raise fail(
            "E0406",
            "at most one size in a tuple may be left open",
            item.span,
            help="write sizes as in `(h:H, e:K)`",
        )
    full = [s for s in sizes if s is not None]
    product = dim_prod(full)
    if product != total:
        raise fail(
            "E0406",
            f"this tuple has {product} positions, the axis has {total}",
            item.span,
            labels=(Label(item.span, " * ".join(map(str, full))),),
        )
    index_dim = ZERO
    for value, size, digit in zip(values, full, digits, strict=True):
        if not _inside(cx, value, size):
            raise fail("E0406", f"this digit can leave 0 ... {size - 1}", digit.span)
        index_dim = index_dim * size + value
    return Idx(index_dim)


def _slice(
    cx: Context,
    base: Tensor,
    axis: int,
    lower: ast.Expr | None,
    upper: ast.Expr | None,
    plan: Plan,
    item: ast.Expr,
) -> None:
    size = base.shape[axis]
    if lower is None and upper is None:
        keep(base, axis, plan)
        return
    low = ZERO if lower is None else _bound(cx, lower, size)
    high = size if upper is None else _bound(cx, upper, size)
    for p, what in (
        (low, "begins before 0"),
        (high - low, "ends before it begins"),
        (size - high, f"ends after {size}"),
    ):
        if not cx.proves(p):
            sure = cx.proves(-p - 1) or p.const is not None
            raise fail(
                "E0402",
                f"this slice {'' if sure else 'may be one that '}{what}",
                item.span,
                f"axis {axis} has {size}",
            )
    plan.source.append((len(plan.shape), low))
    plan.shape.append(high - low)
    plan.letters.append(base.letters[axis] if axis < len(base.letters) else "")
    old = base.origin(axis)
    text = f"{high - low} of the {size} " + (old.text if old else "positions")
    text = ("first " if lower is None else "last " if upper is None else "") + text
    plan.origins.append(Origin(text, old.span if old else item.span))


def _bound(cx: Context, e: ast.Expr, size: Dim) -> Dim:
    match e:
        case ast.Unary(op="-", operand=ast.Num(value=int(n))):
            return size - n
    return cx.eval_dim(e)


def _gather(base: Tensor, axis: int, index: Tensor, plan: Plan, item: ast.Expr) -> None:
    if plan.gather is not None:
        raise fail(
            "E0405",
            "only one tensor may index at a time",
            item.span,
            help="write it with index names: `y[i] = x[a[i], b[i]]`",
        )
    plan.gather, plan.gather_axis = index, len(plan.shape)
    plan.source.append(-1)
    plan.shape.extend(index.shape)
    plan.origins.extend([*index.origins, *([None] * (len(index.shape) - len(index.origins)))])
    plan.letters.extend([""] * len(index.shape))
    plan.check = item.span


def _finish(cx: Context, base: Tensor, node: ast.Index, plan: Plan, other: Tensor | None) -> Tensor:
    gather, start = plan.gather, plan.gather_axis
    width = len(gather.shape) if gather else 0

    def position(k: int) -> int:
        return k

    def body(index: tuple[Expr, ...]) -> Expr:
        source: list[Expr] = []
        for s in plan.source:
            match s:
                case -1:
                    assert gather is not None
                    source.append(gather.at(index[start : start + width]))
                case int(k):
                    source.append(index[position(k)])
                case (k, low):
                    source.append(_shifted(index[position(k)], low))
                case _:
                    assert not isinstance(s, int | tuple)
                    source.append(s)
        e = base.at(tuple(source))
        if isinstance(e, Load):
            return Load(
                e.dtype,
                e.tensor,
                e.index,
                other.at(()) if other else e.other,
                e.check if other else (plan.check or e.check),
            )
        return e

    origins = tuple(plan.origins)
    if not cx.ranges and _is_whole(base, plan):
        return base
    out = cx.compute(tuple(plan.shape), body, node.span, origins=origins, dtype=base.dtype)
    return named(out, tuple(plan.letters)) if any(plan.letters) else out


def _is_whole(base: Tensor, plan: Plan) -> bool:
    return plan.source == list(range(len(base.shape))) and len(plan.shape) == len(base.shape)


def _shifted(index: Expr, low: Dim) -> Expr:
    if low == ZERO:
        return index
    if isinstance(index, Idx):
        return Idx(index.dim + low)
    return Op("i64", "add", (cast(index, "i64"), Idx(low)))
