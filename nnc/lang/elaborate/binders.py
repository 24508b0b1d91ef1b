"""Index names and their ranges: explicit, or the size of the axes they are used on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from nnc.diagnostics import Label, Span
from nnc.lang import ast
from nnc.lang.dims import ONE, ZERO, Dim, Facts, exact_div, extremes, prove_nonneg
from nnc.lang.elaborate.bases import base_shape, indexed, quiet_value
from nnc.lang.elaborate.context import Binder, Context
from nnc.lang.elaborate.mistakes import Mistake, Poisoned, fail
from nnc.lang.elaborate.values import Instance, Tensor, Unknown
from nnc.lang.elaborate.walks import syntax
from nnc.lang.elaborate.words import axes_word, counted
from nnc.lang.units import nearest

LEFT = "left side"
REDUCING = ("sum", "max", "min", "mean", "prod", "any", "all", "argmax", "argmin", "logsumexp")


@dataclass(frozen=True)
class Use:
    """A bare use `x[.., i, ..]`: the sizes of its axes, where, and which axis of what."""

    sizes: tuple[Dim, ...]
    span: Span
    base: ast.Expr
    axis: int


@dataclass
class Range:
    """One index name to bind: an explicit extent, or candidates found at its bare uses."""

    name: str
    span: Span
    pack: bool
    explicit: tuple[Dim, ...] | None = None
    found: list[Use] = field(default_factory=list)

    @property
    def known(self) -> tuple[Dim, ...] | None:
        return (
            self.explicit
            if self.explicit is not None
            else (self.found[0].sizes if self.found else None)
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
                help = "each axis has a letter of its own; the diagonal is `y[i] = x[i, i]`"
                raise fail("E0404", f"index `{name}` stands here twice", span, help=help)
            explicit = None if extent is None else (cx.eval_dim(extent),)
            ranges[name] = Range(name, span, pack, explicit)
    settle_ranges(cx, ranges, scope)
    return ranges


def settle_ranges(cx: Context, ranges: dict[str, Range], scope: Sequence[ast.Expr]) -> None:
    """Infers what is not explicit; every index must have one range."""
    infer_ranges(cx, ranges, scope)
    for r in ranges.values():
        if r.known is None:
            raise no_range(cx, r, scope, ranges)
        if r.explicit is None:
            agree(cx, r)


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
                help="the left side of `=` names an index for each axis, `y[i, j] = ...`; "
                "to write into a tensor that exists, use `:=`",
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
    what = "variable" if name in frame.vars else "size" if name in frame.dims else ""
    where = frame.var_spans.get(name)
    if not what and frame.module is not None:
        what, where = _member_named(frame.module, name)
    if what:
        labels = (Label(where, f"`{name}` is declared here"),) if where else ()
        help = "use another letter"
        if name in frame.vars and any(f"${name}" == v.rstrip("0123456789") for v in cx.turns):
            help = "to write one element in each turn: `:=`; or use another letter"
        text = f"index `{name}` has the name of a {what}"
        raise fail("E0404", text, span, labels=labels, help=help)


def _member_named(inst: Instance, name: str) -> tuple[str, Span | None]:
    """What a module has under a name: `param`, `parameter`, ..., and where."""
    for p in inst.defn.params:
        if p.name == name:
            return f"parameter of {inst.defn.name}", p.name_span
    if name in inst.leaves:
        return inst.leaves[name].storage, inst.leaves[name].decl.name_span
    for m in inst.defn.members:
        if not isinstance(m, ast.Assert) and m.name == name:
            return f"member of {inst.defn.name}", m.name_span
    return "", None


def agree(cx: Context, r: Range) -> None:
    """All bare uses have one size, or one that the `where` clauses say is the least of them."""
    first = r.found[0]
    other = next((use for use in r.found if use.sizes != first.sizes), None)
    if other is None:
        return
    least = _least(cx, r)
    if least is None:
        raise fail(
            "E0403",
            f"index `{r.name}` runs over axes of different sizes",
            other.span,
            _used_on(cx, other),
            (Label(first.span, _used_on(cx, first)),),
            help=f"say which: `{r.name}:{_sizes(first.sizes)}`, or use another letter",
        )
    r.explicit = least


def _used_on(cx: Context, use: Use) -> str:
    """`D   columns of x (line 1)`."""
    value = quiet_value(cx, use.base)
    origin = value.origin(use.axis) if isinstance(value, Tensor) else None
    known = f"   {origin.show(use.span)}" if origin is not None and len(use.sizes) == 1 else ""
    return f"{_sizes(use.sizes)}{known}"


def _least(cx: Context, r: Range) -> tuple[Dim, ...] | None:
    """The size that declared facts make the least; of plain numbers only in a checked function."""
    shapes = list(dict.fromkeys(use.sizes for use in r.found))
    if any(len(shape) != 1 for shape in shapes):
        return None
    sizes = [shape[0] for shape in shapes]
    for size in sizes:
        others = [d - size for d in sizes if d is not size]
        declared = cx.calls or not any(prove_nonneg(d, Facts(cx.facts.zero)) for d in others)
        if declared and all(cx.proves(d) for d in others):
            return (size,)
    return None


def _sizes(shape: tuple[Dim, ...]) -> str:
    return ", ".join(map(str, shape)) if len(shape) != 1 else str(shape[0])


def no_range(
    cx: Context, r: Range, scope: Sequence[ast.Expr], ranges: dict[str, Range] | None = None
) -> Exception:
    """An index name that nothing gives a size. Silent where a tensor is Unknown after a mistake."""
    uses = [n for n in syntax(*scope) if isinstance(n, ast.Index)]
    for n in uses:
        if isinstance(n.value, ast.Name | ast.Attr):
            cx.eval(n.value)  # its own mistake comes first
    if any(isinstance(quiet_value(cx, n.value), Unknown) for n in uses):
        return Poisoned()
    for use in uses:
        shape = base_shape(cx, use.value)
        if shape is not None and _slots_needed(cx, use.items) > len(shape):
            return too_many(use, shape)
    ranges = ranges or {r.name: r}
    loose = _loose(cx, uses, ranges)
    if loose is not None and not any(
        isinstance(n, ast.Name) and n.id == r.name for n in syntax(*scope)
    ):
        help = f"did you mean `{r.name}`?"
        text = f"index `{loose.id}` has no range"
        notes = _bound(cx, [r.name for r in ranges.values()])
        return fail("E0401", text, loose.span, notes=notes, help=help)
    bound = list(cx.frame.binders)
    near = nearest(r.name, bound) if not r.pack else None
    return fail(
        "E0401",
        f"index `{r.name}` has no range",
        r.span,
        notes=_bound(cx),
        help=f"did you mean `{near}`?" if near else _range_help(cx, r, uses, ranges),
    )


def _loose(cx: Context, uses: Sequence[ast.Index], ranges: dict[str, Range]) -> ast.Name | None:
    """A name in the place of an index that means nothing here."""
    inner = {n for n, _ in _all_binders(uses)}
    for use in uses:
        for item in use.items:
            bound = inner | ranges.keys() | cx.frame.binders.keys()
            if isinstance(item, ast.Name) and item.id not in bound and cx.lookup(item.id) is None:
                return item
    return None


def _all_binders(uses: Sequence[ast.Index]) -> Iterator[tuple[str, ast.Expr | None]]:
    """Index names that reductions such as `sum[k]` among the uses bind, with explicit ranges."""
    for use in uses:
        if isinstance(use.value, ast.Name) and use.value.id in REDUCING:
            for item in use.items:
                match item:
                    case ast.Name(id=name):
                        yield name, None
                    case ast.Slice(lower=ast.Name(id=name), upper=upper):
                        yield name, upper


def _slots_needed(cx: Context, items: Sequence[ast.Expr]) -> int:
    """How many axes indices take at least."""
    bound = [cx.frame.binders.get(i.name) for i in items if isinstance(i, ast.Rest)]
    packs = sum(len(b.vars) for b in bound if b is not None)
    return packs + sum(1 for i in items if not isinstance(i, ast.NoneLit | ast.Rest))


def too_many(node: ast.Index, shape: Sequence[Dim]) -> Mistake:
    """More indices than axes."""
    count = sum(1 for i in node.items if not isinstance(i, ast.NoneLit))
    text = f"{counted(count, 'index', 'indices')} for {axes_word(len(shape))}"
    has = f"has [{', '.join(map(str, shape))}]" if shape else "one number, without axes"
    return fail("E0405", text, node.span, labels=(Label(node.value.span, has),))


def _range_help(cx: Context, r: Range, uses: Sequence[ast.Index], ranges: dict[str, Range]) -> str:
    fitting = _fitting(cx, r, uses, ranges)
    if fitting is not None:
        item, size = fitting
        return _say_range(f"{r.name}:{size}", item)
    for use in uses:
        shape = base_shape(cx, use.value)
        for item, axis, _ in _slots(cx, use.items, len(shape or ()), {}):
            found = any(isinstance(n, ast.Name) and n.id == r.name for n in syntax(item))
            if found and not isinstance(item, ast.Name):
                axes = [] if shape is None else list(map(str, shape))
                end = axes[axis] if axis < len(axes) else "N"
                if isinstance(item, ast.Tuple):
                    return f"one size of `{item.span.text}` may be left open: give `{r.name}:N`"
                return _say_range(f"{r.name}:{end}", item)
    sizes = [*cx.frame.dims, *(cx.frame.module.args if cx.frame.module is not None else ())]
    same = [s for s in sizes if s == r.name.upper()]
    word = (same or sizes[-1:] or ["10"])[0]
    return f"it is not used on the right; give it one: `{r.name}:{word}`"


def _say_range(new: str, item: ast.Expr) -> str:
    return f"give it a range, `{new}`: `{item.span.text}` does not say how far it goes"


def _fitting(
    cx: Context, r: Range, uses: Sequence[ast.Index], ranges: dict[str, Range]
) -> tuple[ast.Expr, Dim] | None:
    """The range of `t` with which the affine uses `x[c*t + k]` stay inside, from the largest."""
    inner = {
        n: Range(n, r.span, False, None if size is None else (cx.eval_dim(size),))
        for n, size in _all_binders(uses)
    }
    infer_ranges(cx, inner, uses)
    ranges = ranges | inner
    box = {f"${n}": (ZERO, k.known[0] - 1) for n, k in ranges.items() if k.known and n != r.name}
    best: tuple[ast.Expr, Dim, Dim] | None = None
    for use in uses:
        shape = base_shape(cx, use.value) or ()
        for item, axis, _ in _slots(cx, use.items, len(shape), {}):
            index = _affine(cx, item, ranges)
            form = index.linear_in(f"${r.name}") if index is not None else None
            if form is None or axis >= len(shape) or (form[0].const or 0) < 1:
                continue
            ends = extremes(form[1], cx.facts, cx.box() | box)
            if ends is None or not cx.proves(ends[0]):
                return None
            if best is None or cx.proves(ends[1] - best[1]):
                best = item, ends[1], (shape[axis] - 1 - ends[1]) // form[0] + 1
    return (best[0], best[2]) if best is not None else None


def _affine(cx: Context, e: ast.Expr, ranges: dict[str, Range]) -> Dim | None:
    """An index expression with index names as `$name`."""
    match e:
        case ast.Name(id=name) if name in ranges:
            return Dim.of(f"${name}")
        case ast.Binary(op="+" | "-" | "*" as op, left=left, right=right):
            a, b = _affine(cx, left, ranges), _affine(cx, right, ranges)
            if a is None or b is None:
                return None
            return a + b if op == "+" else a - b if op == "-" else a * b
        case ast.Name() | ast.Num():
            return getattr(quiet_value(cx, e), "dim", None)
    return None


def unbound(cx: Context, name: str, span: Span) -> Mistake:
    """An index name on the right that nothing binds."""
    inner = [n for n, b in cx.frame.binders.items() if b.where != LEFT and len(n) == 1]
    help = f"to sum over {name}, write `sum[{name}](...)`"
    if inner:
        what = cx.frame.binders[inner[-1]].where
        also = f"`{what}[{', '.join(inner)}, {name}](...)`"
        help = f"did you mean `{inner[-1]}`? To reduce over {name} as well, write {also}"
    around = _reduction_around(cx, span)
    if around is not None:
        op, arg = around.func.span.text, around.args[0].span.text
        help = f"`{op}[{name}]({arg})`"
    return fail("E0401", f"index `{name}` has no range", span, notes=_bound(cx), help=help)


def _reduction_around(cx: Context, span: Span) -> ast.Call | None:
    """The call `mean(x[b, c])` without index names around a place."""
    found = None
    for n in syntax(*cx.frame.func.body) if cx.frame.func is not None else ():
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id in REDUCING:
            row = n.span.line == span.line and n.span.source is span.source
            if row and n.span.column <= span.column < n.span.end_column and len(n.args) == 1:
                found = n
    return found


def _bound(cx: Context, more: Sequence[str] = ()) -> tuple[str, ...]:
    """`bound here: b t (left side) and e (sum)`."""
    groups: dict[str, list[str]] = {}
    for name, binder in cx.frame.binders.items():
        groups.setdefault(binder.where, []).append(name)
    if not groups and not more:
        return ()
    parts = [f"{' '.join(names)} ({where})" for where, names in groups.items()]
    parts += [" ".join(more)] if more else []
    return (f"bound here: {' and '.join(parts)}",)


def infer_ranges(cx: Context, ranges: dict[str, Range], scope: Sequence[ast.Expr]) -> None:
    """Every bare use `x[.., i, ..]` in `scope` contributes the size of that axis."""
    uses = [(node, shape) for e in scope for node, shape in indexed(cx, e)]
    for _ in range(2):  # the second round solves tuples whose other sizes the first one found
        for r in ranges.values():
            r.found.clear()
        for node, shape in uses:
            _collect(cx, ranges, node, shape)
        for node, shape in uses:
            _collect_tuples(cx, ranges, node, shape)


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
                ranges[name].found.append(Use((shape[axis],), item.span, node.value, axis))
            case ast.Rest(name=name) if name in ranges:
                sizes = shape[axis : axis + n]
                ranges[name].found.append(Use(sizes, item.span, node.value, axis))
            case ast.Tuple(items=digits):
                for digit in digits:
                    match digit:
                        case ast.Slice(lower=ast.Name(id=name), upper=upper) if (
                            name in ranges and upper is not None
                        ):
                            digits_ = (cx.eval_dim(upper),)
                            use = Use(digits_, digit.span, digit, 0)
                            ranges[name].found.append(use)


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
                    size = size_of(cx, ranges, name)
                    if size is None:
                        open_ = []
                        break
                    rest = rest * size
        if len(open_) == 1:
            name, span = open_[0]
            quotient = (exact_div(shape[axis], rest),)
            ranges[name].found.append(Use(quotient, span, node.value, axis))


def size_of(cx: Context, ranges: dict[str, Range], name: str) -> Dim | None:
    if name in ranges:
        known = ranges[name].known
        return known[0] if known is not None and len(known) == 1 else None
    if name in cx.frame.binders and len(cx.frame.binders[name].vars) == 1:
        return cx.ranges.get(cx.frame.binders[name].vars[0])
    return None


def bind(
    cx: Context, ranges: dict[str, Range], where: str
) -> tuple[dict[str, Binder], dict[str, Dim]]:
    """Loop variables for the index names; `where`: what binds them."""
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
        binders[r.name] = Binder(tuple(loop_vars), r.span, where)
    return binders, extents
