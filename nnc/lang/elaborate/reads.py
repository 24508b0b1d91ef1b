"""Reading elements and slices of tensors, with bounds obligations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from nnc.diagnostics import Span
from nnc.ir.expr import Const, Expr, Idx, Load, Op, Select, names
from nnc.ir.scalar import cast
from nnc.lang import ast
from nnc.lang.dims import ONE, ZERO, Dim, dim_prod, extremes
from nnc.lang.elaborate.arith import adapt, as_tensor
from nnc.lang.elaborate.broadcasting import free_dtype, grouped, typed
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.mistakes import Mistake, Poisoned, fail
from nnc.lang.elaborate.names import undefined
from nnc.lang.elaborate.ranges import size_of
from nnc.lang.elaborate.sizes import quotient
from nnc.lang.elaborate.unbound import too_many, unbound
from nnc.lang.elaborate.values import Origin, Tensor, Text, Unknown, Value, Weak, WeakTensor
from nnc.lang.elaborate.words import describe
from nnc.lang.types import TensorType, is_int

_INTEGER = ("+", "-", "*", "/", "//", "%")


@dataclass
class Plan:
    """How a result index maps to source indices: an entry for each source axis, in order."""

    source: list[Expr | int | tuple[int, Dim]] = field(default_factory=list)
    shape: list[Dim] = field(default_factory=list)
    origins: list[Origin | None] = field(default_factory=list)
    check: Span | None = None
    gather: Tensor | None = None
    gather_axis: int = 0
    writing: bool = False
    taken: Expr | None = None  # where it is inside: the condition of the `if` around it

    def at(self, index: tuple[Expr, ...]) -> tuple[Expr, ...]:
        """The source index for an index of the result."""
        out: list[Expr] = []
        for s in self.source:
            match s:
                case -1:
                    assert self.gather is not None
                    start = self.gather_axis
                    out.append(self.gather.at(index[start : start + len(self.gather.shape)]))
                case int(k):
                    out.append(index[k])
                case (k, low):
                    out.append(_shifted(index[k], low))
                case _:
                    assert not isinstance(s, int | tuple)
                    out.append(s)
        return tuple(out)


def read(cx: Context, base: Tensor | WeakTensor, node: ast.Index) -> Value:
    """`x[items]` and `x[items else v]`."""
    if isinstance(base, Tensor):
        plan = planned(cx, base, node, node.items, guarded=node.orelse is not None)
        return _finish(cx, base, node, plan)
    dtype = free_dtype(cx, [base])
    shown = Tensor(TensorType(dtype, base.shape), lambda i: base.at(dtype, i))
    plan = planned(cx, shown, node, node.items, guarded=node.orelse is not None)
    if node.orelse is not None or plan.check is not None:
        return _finish(cx, shown, node, plan)
    return WeakTensor(tuple(plan.shape), base.kind, lambda d, i: base.at(d, plan.at(i)))


def planned(
    cx: Context,
    base: Tensor,
    node: ast.Index,
    items: Sequence[ast.Expr],
    guarded: bool = False,
    writing: bool = False,
) -> Plan:
    """The plan of `base[items]`; axes that are not mentioned are kept."""
    plan = Plan(writing=writing)
    rank = len(base.shape)
    count = sum(1 for i in items if not isinstance(i, ast.NoneLit | ast.Rest))
    for item in items:
        if isinstance(item, ast.Rest) and item.name in cx.frame.binders:
            count += len(cx.frame.binders[item.name].vars)
    if sum(isinstance(i, ast.Rest) and i.name == "..." for i in items) > 1:
        raise fail("E0405", "`...` may stand once", node.span)
    if count > rank:
        raise too_many(node, base.shape)
    for item in items:
        _read_item(cx, base, item, plan, rank - count, node, guarded)
    for axis in range(len(plan.source), rank):
        keep(base, axis, plan)
    return plan


def keep(base: Tensor, axis: int, plan: Plan) -> None:
    plan.source.append(len(plan.shape))
    plan.shape.append(base.shape[axis])
    plan.origins.append(base.origin(axis))


def _read_item(
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
                _gather(base, axis, value, plan, item, cx.at(item.span))
            else:
                scalar_index(cx, (base, axis, node, item.span), value, plan, guarded)


def _index_value(cx: Context, item: ast.Expr, size: Dim) -> Expr | Tensor:
    """An index: an integer, or an integer tensor (a gather). `-1` counts from the end."""
    match item:
        case ast.Unary(op="-", operand=ast.Num(value=int(n))):
            return Idx(size - n)
        case ast.Name(id=name) if is_loose(cx, name):
            raise unbound(cx, name, item.span) if cx.ranges else undefined(cx, name, item.span)
        case ast.Tuple():
            raise fail(
                "E0405", "a tuple splits an axis; it cannot stand in an expression", item.span
            )
    value = cx.tensor(cx.eval(_exact(cx, item)))
    match value:
        case Weak(kind="int", dim=dim) if dim is not None:
            return Idx(dim)
        case Weak(kind="int"):
            return value.make("i64")
        case Tensor(dtype=dtype) if is_int(dtype):
            return value if value.shape else value.at(())
        case WeakTensor(kind="int"):
            return as_tensor(cx, value, item.span) if value.shape else value.at("i64", ())
        case Unknown():
            raise Poisoned
    help = None if isinstance(value, Text) else f"`i32({item.span.text})` cuts off the fraction"
    if isinstance(value, Weak) and "/" in item.span.text.replace("//", ""):
        help = "`//` is the quotient of integers"
    if isinstance(value, Tensor) and value.dtype == "bool":
        help = f"there are no masks as indices: `where({item.span.text}, ..., 0)` keeps the shape"
    shown = typed(value, item.span) if isinstance(value, Tensor) else describe(value)
    raise fail("E0405", "an index must be an integer", item.span, shown, help=help)


def _exact(cx: Context, item: ast.Expr) -> ast.Expr:
    """The index with its quotients of sizes worked out: `/` is exact here, as in a size."""
    spine: list[ast.Binary] = []
    e = item
    while isinstance(e, ast.Binary) and e.op in _INTEGER:
        spine.append(e)
        e = e.left
    for node in reversed(spine):
        left = node if e is node.left else replace(node, left=e)
        right = left.right
        if isinstance(right, ast.Binary) and right.op in _INTEGER:
            right = _exact(cx, right)
        e = left if right is left.right else replace(left, right=right)
        size = _quotient(cx, e) if e.op == "/" else None
        if size is not None:
            name = node.span.text
            cx.frame.dims[name] = size  # no name that can be written
            e = ast.Name(name, span=node.span)
    return e


def _quotient(cx: Context, e: ast.Binary) -> Dim | None:
    """`p / q` of two sizes; None when an index or a value stands in it."""
    dims = []
    for side in (e.left, e.right):
        value = cx.tensor(cx.eval(side))
        if not isinstance(value, Weak) or value.dim is None:
            return None
        dims.append(value.dim)
    p, q = dims
    if any(n.startswith("$") for n in p.names | q.names):
        return None
    return quotient(cx, p, q, e)


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
        plan.check = cx.at(span)
        return
    size = base.shape[axis]
    if _inside(cx, index.dim, size):
        return
    if all(cx.proves(p, branches=True) for p in (index.dim, size - 1 - index.dim)):
        plan.taken = cx.branch
        return
    raise _leaves(cx, base, axis, node, index.dim, span, plan)


def _inside(cx: Context, index: Dim, size: Dim) -> bool:
    name = index.name
    if name in cx.ranges and cx.ranges[name] == size:
        return True
    return cx.proves(index) and cx.proves(size - 1 - index)


def _leaves(
    cx: Context, base: Tensor, axis: int, node: ast.Index, index: Dim, span: Span, plan: Plan
) -> Mistake:
    label = node.value.span.text
    ends = extremes(index, cx.facts, cx.box())
    high = base.shape[axis] - 1
    takes = "may lie anywhere"
    if ends is not None:
        first, last = str(ends[0]), _tidy(ends[1])
        takes = f"takes {first} ... {last}" if ends[0] != ends[1] else f"is {first}"
    text = f"{takes}, but axis {axis} of {label} has 0 ... {high}".replace("$", "")
    items = ", ".join(i.span.text for i in node.items)
    help = f"`{label}[{items} else 0]` reads zeros outside" if not plan.writing else None
    if plan.writing and ends is not None and cx.proves(ends[0]) and high.const is None:
        room = str(high - ends[1]).replace("$", "")
        help = f"`where {room} >= 0` in the signature would rule that out"
        if (high - ends[1]).const is not None:
            help = f"positions count from 0: the last is {high}, or -1".replace("$", "")
    if (
        re.fullmatch(r"-\w+", span.text)
        and index.const is None
        and not index.names & cx.ranges.keys()
    ):
        help = f"only a number counts from the end: `{high + 1} - {span.text[1:]}`"
    fixed = index.const if base.shape[axis].const is not None else None
    if fixed is not None and fixed >= 0:
        help = f"positions count from 0: the last is {high}, or -1"
    own = cx.ranges.get(index.name or "")
    sizes = [(own, base.shape[axis])] if own is not None else []
    return fail("E0402", f"this index can leave {label}", span, text, help=help, sizes=sizes)


def _tidy(d: Dim) -> str:
    """The largest value, with `(n//s)*s` bounded by `n` so that it reads well."""
    out = d
    for mono, c in d.terms:
        for atom, _ in mono:
            if not isinstance(atom, str) and atom.kind == "floor":
                whole = Dim(((mono, c),))
                if whole == atom.b * atom * c:
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
            if digit.lower is None or digit.upper is None:
                raise fail("E0406", "a digit is `name:size`", digit.span, help="`(h:H, e:K)`")
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
        sizes[sizes.index(None)] = cx.divided(total, known)
    if None in sizes:
        raise fail(
            "E0406",
            "at most one size in a tuple may be left open",
            item.span,
            help="write sizes as in `(h:H, e:K)`",
        )
    full = [s for s in sizes if s is not None]
    product = cx.settled(dim_prod(full))
    if product != total:
        raise _radix_mistake(full, product, total, axis, item)
    index_dim = ZERO
    for value, size, digit in zip(values, full, digits, strict=True):
        if not _inside(cx, value, size):
            raise fail("E0406", f"this digit can leave 0 ... {size - 1}", digit.span)
        index_dim = index_dim * size + value
    return Idx(index_dim)


def _radix_mistake(
    sizes: Sequence[Dim], product: Dim, total: Dim, axis: int, item: ast.Expr
) -> Mistake:
    shown = " * ".join(str(s) if str(s).isalnum() else f"({s})" for s in sizes)
    text = f"this tuple has {product} positions, the axis has {total}"
    help = f"declare axis {axis} as `{product}`" if total.name else None
    if "//" in shown:
        help = "`/` in a size says that it is exact, `//` that it may leave a rest"
    says, apart = f"{shown}, but axis {axis} has {total}", [(product, total)]
    return fail("E0406", text, item.span, says, help=help, sizes=apart)


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
            if p != high - low and cx.proves(p, branches=True):
                plan.taken = cx.branch
                continue
            raise _slice_mistake(cx, p, what, size, axis, item, (lower, upper))
    plan.source.append((len(plan.shape), low))
    plan.shape.append(cx.settled(high - low))
    old = base.origin(axis)
    text = f"{high - low} of the {size} " + (old.text if old else "positions")
    text = ("first " if lower is None else "last " if upper is None else "") + text
    plan.origins.append(Origin(text, old.span if old else item.span, True))


def _slice_mistake(
    cx: Context,
    p: Dim,
    what: str,
    size: Dim,
    axis: int,
    item: ast.Expr,
    ends: Sequence[ast.Expr | None],
) -> Mistake:
    """A slice that leaves the axis, or may leave it."""
    sure = cx.proves(-p - 1)
    text = f"this slice {what if sure else 'may be one that ' + what}"
    help = None if sure else f"`where {p} >= 0` in the signature would rule that out"
    for end in ends:
        if isinstance(end, ast.Unary) and end.op == "-" and not isinstance(end.operand, ast.Num):
            help = f"only a number counts from the end: `{size} - {grouped(end.operand.span.text)}`"
    return fail("E0402", text, item.span, f"axis {axis} has {size}", help=help)


def _bound(cx: Context, e: ast.Expr, size: Dim) -> Dim:
    match e:
        case ast.Unary(op="-", operand=ast.Num(value=int(n))):
            return size - n
    return cx.eval_dim(e)


def _gather(base: Tensor, axis: int, index: Tensor, plan: Plan, item: ast.Expr, at: Span) -> None:
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
    plan.check = at


def _finish(cx: Context, base: Tensor, node: ast.Index, plan: Plan) -> Tensor:
    whole = list(range(len(base.shape)))
    if not cx.ranges and plan.source == whole and len(plan.shape) == len(whole):
        return base
    other = None
    if node.orelse is not None:
        value = adapt(cx, cx.eval(node.orelse), base.dtype, node.orelse.span)
        if not isinstance(value, Tensor) or value.shape:
            raise fail("E0407", "`else` takes one number", node.orelse.span)
        other = value.at(())
    if (other is not None or plan.check is not None) and not _faithful(base):
        base = cx.materialized(base, node.span)
    source = base

    def body(index: tuple[Expr, ...]) -> Expr:
        e = source.at(plan.at(index))
        if plan.taken is not None:
            zero = Const(e.dtype, False if e.dtype == "bool" else 0)
            e = Select(e.dtype, plan.taken, e, zero)
        if not isinstance(e, Load) or (other is None and plan.check is None):
            return e
        return Load(e.dtype, e.tensor, e.index, other or e.other, None if other else plan.check)

    origins = tuple(plan.origins)
    return cx.compute(tuple(plan.shape), body, node.span, origins=origins, dtype=base.dtype)


def _faithful(base: Tensor) -> bool:
    """Whether an element is one load whose bounds are those of `base` itself (not of a slice)."""
    if base.node is not None:
        return True
    dummies = [f"$?{k}" for k in range(len(base.shape))]
    e = base.at(tuple(Idx(Dim.of(d)) for d in dummies))
    if not isinstance(e, Load) or e.other is not None or e.check is not None:
        return False
    sizes = e.tensor.type.shape
    bare = {i.dim.name: n for i, n in zip(e.index, sizes, strict=True) if isinstance(i, Idx)}
    once = all(sum(d in names([i]) for i in e.index) == 1 for d in dummies)
    return once and all(bare.get(d) == n for d, n in zip(dummies, base.shape, strict=True))


def _shifted(index: Expr, low: Dim) -> Expr:
    if low == ZERO:
        return index
    if isinstance(index, Idx):
        return Idx(index.dim + low)
    return Op("i64", "add", (cast(index, "i64"), Idx(low)))
