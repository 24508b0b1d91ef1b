"""Index notation: binders and their ranges, reads with bounds obligations, index statements, reductions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields

from nnc.diagnostics import Label, Span
from nnc.ir.expr import Expr, Idx, Load, Op
from nnc.ir.graph import Axis, Compute, Node, Update
from nnc.ir.scalar import cast
from nnc.lang import ast
from nnc.lang.dims import ONE, ZERO, Dim, Facts, dim_prod, exact_div, extremes
from nnc.lang.elaborate.arith import Operand, adapt, elementwise
from nnc.lang.elaborate.context import Binder, Context, Mistake, Poisoned, fail
from nnc.lang.elaborate.values import (
    Bool,
    ModuleList,
    Nothing,
    Origin,
    Origins,
    Seq,
    Tensor,
    Tuple,
    Unknown,
    Value,
    Weak,
    describe,
    integer,
    named,
    of_node,
    scalar,
)
from nnc.lang.types import TensorType, is_float, is_int
from nnc.lang.units import nearest

# ---- binders ----------------------------------------------------------------------------------


@dataclass
class Range:
    """One index name to bind: an explicit extent, or candidates found at its bare uses."""

    name: str
    span: Span
    pack: bool
    explicit: tuple[Dim, ...] | None = None
    found: list[tuple[tuple[Dim, ...], Span]] = field(default_factory=list)

    @property
    def known(self) -> tuple[Dim, ...] | None:
        return (
            self.explicit
            if self.explicit is not None
            else (self.found[0][0] if self.found else None)
        )


def declare_binders(
    cx: Context, items: Sequence[ast.Expr], scope: Sequence[ast.Expr]
) -> dict[str, Range]:
    """The index names that `items` bind, with ranges: explicit, or from bare uses in `scope`."""
    ranges: dict[str, Range] = {}
    for item in items:
        for name, span, pack, extent in _binders(item):
            _check_free(cx, name, span)
            if name in ranges:
                raise fail("E0404", f"index `{name}` stands here twice", span)
            explicit = None if extent is None else (cx.eval_dim(extent),)
            ranges[name] = Range(name, span, pack, explicit)
    infer_ranges(cx, ranges, scope)
    for r in ranges.values():
        if r.known is None:
            raise _no_range(cx, r.name, r.span)
        if r.explicit is None:
            _agree(r)
    return ranges


def _binders(item: ast.Expr) -> Iterator[tuple[str, Span, bool, ast.Expr | None]]:
    match item:
        case ast.Name(id=name):
            yield name, item.span, False, None
        case ast.Slice(lower=ast.Name(id=name), upper=upper) if upper is not None:
            yield name, item.span, False, upper
        case ast.Rest(name=name):
            yield name, item.span, True, None
        case ast.Tuple(items=items):
            for x in items:
                yield from _binders(x)
        case _:
            raise fail(
                "E0407",
                "an index name is expected here",
                item.span,
                help="the left side names one index for each axis: `y[i, j] = ...`; "
                "`y[...] := ...` writes into a tensor that exists",
            )


def _check_free(cx: Context, name: str, span: Span) -> None:
    frame = cx.frame
    if name in frame.binders:
        label = Label(frame.binders[name].span, "bound here")
        raise fail(
            "E0404",
            f"index `{name}` is already bound",
            span,
            labels=(label,),
            help="use another letter",
        )
    if name in frame.vars or name in frame.dims:
        where = frame.var_spans.get(name)
        labels = (Label(where, f"`{name}` is defined here"),) if where else ()
        raise fail(
            "E0404",
            f"index `{name}` has the name of a {'variable' if name in frame.vars else 'size'}",
            span,
            labels=labels,
            help="use another letter",
        )


def _agree(r: Range) -> None:
    first, where = r.found[0]
    for other, span in r.found[1:]:
        if other != first:
            raise fail(
                "E0403",
                f"index `{r.name}` runs over axes of different sizes",
                span,
                _sizes(other),
                (Label(where, _sizes(first)),),
                help=f"say which: `{r.name}:{_sizes(first)}`, or use another letter",
            )


def _sizes(shape: tuple[Dim, ...]) -> str:
    return ", ".join(map(str, shape)) if len(shape) != 1 else str(shape[0])


def _no_range(cx: Context, name: str, span: Span) -> Mistake:
    bound = [*cx.frame.binders]
    notes = (f"bound here: {' '.join(bound)}",) if bound else ()
    near = nearest(name, bound)
    return fail(
        "E0401",
        f"index `{name}` has no range",
        span,
        notes=notes,
        help=f"did you mean `{near}`?" if near else f"give it one: `{name}:N`",
    )


def unbound(cx: Context, name: str, span: Span) -> Mistake:
    """An index name on the right that nothing binds."""
    binders = cx.frame.binders
    bound = [n for n in binders]
    letter = next((n for n in reversed(bound) if len(n) == 1), bound[-1] if bound else "")
    return fail(
        "E0401",
        f"index `{name}` has no range",
        span,
        notes=(f"bound here: {' '.join(bound)}",) if bound else (),
        help=f"did you mean `{letter}`? To sum over {name} as well, write `sum[{letter}, {name}](...)`"
        if letter
        else None,
    )


def infer_ranges(cx: Context, ranges: dict[str, Range], scope: Sequence[ast.Expr]) -> None:
    """Every bare use `x[.., i, ..]` in `scope` contributes the size of that axis."""
    uses = [(node, shape) for e in scope for node, shape in _indexed(cx, e)]
    for _ in range(2):  # the second round solves tuples whose other sizes the first one found
        for r in ranges.values():
            r.found.clear()
        for node, shape in uses:
            _collect(cx, ranges, node, shape)
        for node, shape in uses:
            _collect_tuples(cx, ranges, node, shape)


def _indexed(cx: Context, root: ast.Expr) -> Iterator[tuple[ast.Index, tuple[Dim, ...]]]:
    """All tensor reads below `root` whose base has a known shape."""
    stack: list[object] = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, tuple):
            stack.extend(node)
        elif isinstance(node, ast.Syntax):
            if isinstance(node, ast.Index):
                shape = _base_shape(cx, node.value)
                if shape is not None:
                    yield node, shape
            stack.extend(getattr(node, f.name) for f in reversed(fields(node)) if f.name != "span")


def _base_shape(cx: Context, base: ast.Expr) -> tuple[Dim, ...] | None:
    match base:
        case ast.Name(id=name) if name in cx.frame.binders:
            return None
        case ast.Name() | ast.Attr():
            return _quiet_shape(cx, base)
        case ast.Index(value=inner, items=items):
            shape = _base_shape(cx, inner)
            simple = all(isinstance(i, ast.Name | ast.Num | ast.Binary) for i in items)
            return None if shape is None or not simple else shape[len(items) :]
        case ast.Call(func=ast.Name()) if not _mentions_index(cx, base):
            return _quiet_shape(cx, base)
    return None


def _mentions_index(cx: Context, e: ast.Expr) -> bool:
    stack: list[object] = [e]
    while stack:
        node = stack.pop()
        if isinstance(node, tuple):
            stack.extend(node)
        elif isinstance(node, ast.Name):
            known = node.id in cx.frame.vars or node.id in cx.frame.dims
            if node.id in cx.frame.binders or (not known and len(node.id) == 1):
                return True
        elif isinstance(node, ast.Syntax):
            stack.extend(getattr(node, f.name) for f in fields(node) if f.name != "span")
    return False


def _quiet_shape(cx: Context, e: ast.Expr) -> tuple[Dim, ...] | None:
    try:
        value = cx.tensor(cx.eval(e))
    except (Mistake, Poisoned):
        return None
    return value.shape if isinstance(value, Tensor) else None


def _slots(
    cx: Context, items: Sequence[ast.Expr], rank: int, ranges: dict[str, Range]
) -> Iterator[tuple[ast.Expr, int, int]]:
    """Each item with the first axis and the number of axes that it covers."""
    fixed = sum(1 for i in items if not isinstance(i, ast.Rest | ast.NoneLit))
    for i in items:
        if isinstance(i, ast.Rest) and i.name in cx.frame.binders:
            fixed += len(cx.frame.binders[i.name].vars)
    free = max(rank - fixed, 0)
    axis = 0
    for item in items:
        if isinstance(item, ast.NoneLit):
            continue
        n = 1
        if isinstance(item, ast.Rest):
            bound = cx.frame.binders.get(item.name)
            n = len(bound.vars) if bound else free
        yield item, axis, n
        axis += n


def _collect(
    cx: Context, ranges: dict[str, Range], node: ast.Index, shape: tuple[Dim, ...]
) -> None:
    for item, axis, n in _slots(cx, node.items, len(shape), ranges):
        match item:
            case ast.Name(id=name) if name in ranges and axis < len(shape):
                ranges[name].found.append(((shape[axis],), item.span))
            case ast.Rest(name=name) if name in ranges:
                ranges[name].found.append((shape[axis : axis + n], item.span))
            case ast.Tuple(items=digits):
                for digit in digits:
                    match digit:
                        case ast.Slice(lower=ast.Name(id=name), upper=upper) if (
                            name in ranges and upper is not None
                        ):
                            ranges[name].found.append(((cx.eval_dim(upper),), digit.span))


def _collect_tuples(
    cx: Context, ranges: dict[str, Range], node: ast.Index, shape: tuple[Dim, ...]
) -> None:
    """`x[b, (h, e)]`: the one size left is the quotient of the axis by the others."""
    for item, axis, _ in _slots(cx, node.items, len(shape), ranges):
        if not isinstance(item, ast.Tuple) or axis >= len(shape):
            continue
        open_: list[tuple[str, Span]] = []
        rest = ONE
        for digit in item.items:
            match digit:
                case ast.Slice(upper=upper) if upper is not None:
                    rest = rest * cx.eval_dim(upper)
                case ast.Name(id=name) if name in ranges and ranges[name].known is None:
                    open_.append((name, digit.span))
                case ast.Name(id=name):
                    size = _size_of(cx, ranges, name)
                    if size is None:
                        open_ = []
                        break
                    rest = rest * size
        if len(open_) == 1:
            name, span = open_[0]
            ranges[name].found.append(((exact_div(shape[axis], rest),), span))


def _size_of(cx: Context, ranges: dict[str, Range], name: str) -> Dim | None:
    if name in ranges:
        known = ranges[name].known
        return known[0] if known is not None and len(known) == 1 else None
    if name in cx.frame.binders and len(cx.frame.binders[name].vars) == 1:
        return cx.ranges.get(cx.frame.binders[name].vars[0])
    return None


def bind(cx: Context, ranges: dict[str, Range]) -> tuple[dict[str, Binder], dict[str, Dim]]:
    """Loop variables for the index names."""
    binders: dict[str, Binder] = {}
    extents: dict[str, Dim] = {}
    for r in ranges.values():
        assert r.known is not None
        loop_vars = []
        for k, extent in enumerate(r.known):
            stem = r.name if len(r.known) == 1 else f"{r.name}{k}"
            var = cx.fresh_var(stem, list(extents))
            extents[var] = extent
            loop_vars.append(var)
        binders[r.name] = Binder(tuple(loop_vars), r.span, r.explicit is not None)
    return binders, extents


# ---- reads ------------------------------------------------------------------------------------


@dataclass
class _Plan:
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
    plan = _Plan()
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
        _item(cx, base, item, plan, rank - count, node, other is not None)
    for axis in range(len(plan.source), rank):
        _keep(base, axis, plan)
    return _finish(cx, base, node, plan, other)


def _otherwise(cx: Context, base: Tensor, node: ast.Index) -> Tensor | None:
    if node.orelse is None:
        return None
    value = adapt(cx, cx.eval(node.orelse), base.dtype, node.orelse.span)
    if not isinstance(value, Tensor) or value.shape:
        raise fail("E0407", "`else` takes one number", node.orelse.span)
    return value


def _keep(base: Tensor, axis: int, plan: _Plan) -> None:
    plan.source.append(len(plan.shape))
    plan.shape.append(base.shape[axis])
    plan.origins.append(base.origin(axis))
    plan.letters.append(base.letters[axis] if axis < len(base.letters) else "")


def _item(
    cx: Context,
    base: Tensor,
    item: ast.Expr,
    plan: _Plan,
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
                    _scalar_index(cx, where, Idx(Dim.of(var)), plan, guarded)
            elif name == "...":
                for k in range(free):
                    _keep(base, axis + k, plan)
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
                _scalar_index(cx, (base, axis, node, item.span), value, plan, guarded)


def _index_value(cx: Context, item: ast.Expr, size: Dim) -> Expr | Tensor:
    """An index: an integer expression, or an integer tensor (a gather). `-1` counts from the end."""
    match item:
        case ast.Unary(op="-", operand=ast.Num(value=int(n))):
            return Idx(size - n)
        case ast.Name(id=name) if name not in cx.frame.binders and _is_loose(cx, name):
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


def _is_loose(cx: Context, name: str) -> bool:
    return cx.lookup(name) is None


def _scalar_index(
    cx: Context,
    where: tuple[Tensor, int, ast.Index, Span],
    index: Expr,
    plan: _Plan,
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
            size = _size_of(cx, {}, digit.id)
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
    plan: _Plan,
    item: ast.Expr,
) -> None:
    size = base.shape[axis]
    if lower is None and upper is None:
        _keep(base, axis, plan)
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


def _gather(base: Tensor, axis: int, index: Tensor, plan: _Plan, item: ast.Expr) -> None:
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


def _finish(
    cx: Context, base: Tensor, node: ast.Index, plan: _Plan, other: Tensor | None
) -> Tensor:
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


def _is_whole(base: Tensor, plan: _Plan) -> bool:
    return plan.source == list(range(len(base.shape))) and len(plan.shape) == len(base.shape)


def _shifted(index: Expr, low: Dim) -> Expr:
    if low == ZERO:
        return index
    if isinstance(index, Idx):
        return Idx(index.dim + low)
    return Op("i64", "add", (cast(index, "i64"), Idx(low)))


# ---- static lists -----------------------------------------------------------------------------


def read_list(cx: Context, base: Value, node: ast.Index) -> Value:
    """`blocks[l]`, `pair[0]`: a static list or tuple at a static position."""
    if len(node.items) != 1:
        raise fail("E0405", "a list takes one index", node.span)
    item = node.items[0]
    if isinstance(item, ast.Slice):
        return _list_slice(cx, base, item)
    value = cx.eval(item)
    if isinstance(value, Unknown):
        raise Poisoned
    if not isinstance(value, Weak) or value.dim is None:
        raise fail("E0405", "a list is indexed by a static integer", item.span, describe(value))
    items = base.items if isinstance(base, Seq | Tuple | ModuleList) else None
    if items is None:
        like = base.like if isinstance(base, Seq | ModuleList) else None
        if like is None:
            raise Poisoned
        return like
    n = value.dim.const
    if n is None:
        if items and cx.generic:
            return items[0]
        raise fail("E0405", "this list needs an index known at compile time", item.span)
    if not -len(items) <= n < len(items):
        raise fail("E0402", f"index {n} leaves a list of {len(items)}", item.span)
    return items[n]


def _list_slice(cx: Context, base: Value, item: ast.Slice) -> Value:
    items = base.items if isinstance(base, Seq | Tuple | ModuleList) else None
    if items is None:
        return base
    low = 0 if item.lower is None else cx.eval_dim(item.lower).const
    high = len(items) if item.upper is None else cx.eval_dim(item.upper).const
    if low is None or high is None:
        raise fail("E0405", "this list needs bounds known at compile time", item.span)
    part = items[low:high]
    if isinstance(base, ModuleList):
        assert base.items is not None
        return ModuleList(base.items[low:high], base.like)
    return Seq(part) if isinstance(base, Seq) else Tuple(part)


# ---- index statements -------------------------------------------------------------------------


def define(cx: Context, target: ast.Index, rhs: ast.Expr) -> Tensor:
    """`y[i, j] = e`: a new tensor for all i, j."""
    ranges = declare_binders(cx, target.items, [rhs])
    binders, extents = bind(cx, ranges)
    with cx.bound(binders, extents):
        value = element_value(cx, rhs)
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
    out = Tensor(out.type, out.at, out.node, out.letters, origins)
    if any(isinstance(i, ast.Tuple) for i in target.items):
        out = _merged(cx, out, target, binders)
    return out


def element_value(cx: Context, rhs: ast.Expr) -> Expr:
    """The right side of an index statement: one number."""
    value = cx.tensor(cx.eval(rhs))
    match value:
        case Tensor(shape=()):
            return value.at(())
        case Tensor():
            raise fail(
                "E0405",
                "the right side of an index statement must be a single number",
                rhs.span,
                str(value.type),
                help="index every axis of it",
            )
        case Weak():
            return value.make(cx.frame.real if value.kind == "float" else "i32")
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
        shape.append(dim_prod(split.shape[axis : axis + width]))
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


def update(cx: Context, base: Tensor, target: ast.Index, rhs: ast.Expr) -> Tensor:
    """`x[...] := e`: a new version of x with those elements written."""
    loose = [
        (n.id, n.span)
        for item in target.items
        for n in _names_in(item)
        if n.id not in cx.frame.binders and _is_loose(cx, n.id)
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
            raise _no_range(cx, r.name, r.span)
        if r.explicit is None:
            _agree(r)
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


def _target_index(cx: Context, base: Tensor, target: ast.Index) -> _Plan:
    plan = _Plan()
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
                _scalar_index(cx, where, var, plan, False)
            case _:
                _item(cx, base, item, plan, rank - count, target, False)
    for axis in range(len(plan.source), rank):
        _keep(base, axis, plan)
    if plan.gather is not None:
        raise fail("E0405", "index the written positions by index names", target.span)
    return plan


def _update_value(
    cx: Context, rhs: ast.Expr, base: Tensor, extra: list[tuple[str, Dim]], plan: _Plan
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


# ---- reductions -------------------------------------------------------------------------------

COMPOSITE = ("mean", "var", "logsumexp")
NAMES = ("sum", "mean", "max", "min", "prod", "any", "all", "argmax", "argmin", "logsumexp", "var")


def reduce_indexed(cx: Context, op: str, node: ast.Call, items: Sequence[ast.Expr]) -> Value:
    """`sum[i, j](e)`."""
    if len(node.args) != 1 or node.args[0].name is not None:
        raise fail("E0802", f"`{op}[...]` takes one expression", node.span)
    body_ast = node.args[0].value
    ranges = declare_binders(cx, items, [body_ast])
    binders, extents = bind(cx, ranges)
    with cx.bound(binders, extents):
        body = element_value(cx, body_ast)
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
    top = cx.node((), raxes, "max", body, span)
    shifted = Op(body.dtype, "exp", (Op(body.dtype, "sub", (body, top.at(()))),))
    total_ = Operand(cx.node((), raxes, "sum", shifted, span), span)
    log = elementwise(cx, "log", [total_], span)
    return elementwise(cx, "add", [Operand(log, span), Operand(top, span)], span)


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
            help=f"count with `{cx.frame.real}({at.text})`",
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
        raise fail(
            "E0407",
            f"`{op}` reduces over one axis of {x.type}",
            span,
            help=f"say which: `{op}({operand.span.text}, over=...)`",
        )
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
    top = reduce_whole(cx, "max", operand, chosen, True, span)
    shifted = elementwise(cx, "sub", [operand, Operand(top, span)], span)
    e = Operand(elementwise(cx, "exp", [Operand(shifted, span)], span), span)
    total = Operand(reduce_whole(cx, "sum", e, chosen, keep, span), span)
    log = elementwise(cx, "log", [total], span)
    last = top if keep else reduce_whole(cx, "max", operand, chosen, False, span)
    return elementwise(cx, "add", [Operand(log, span), Operand(last, span)], span)


def _plain(
    cx: Context, op: str, x: Tensor, chosen: Sequence[int], keep: bool, span: Span
) -> Tensor:
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


__all__ = ["define", "read", "read_list", "reduce_indexed", "reduce_whole", "unbound", "update"]
