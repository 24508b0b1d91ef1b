"""Index names and their ranges: explicit, or the size of the axes they are used on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields

from nnc.diagnostics import Label, Span
from nnc.lang import ast
from nnc.lang.dims import ONE, Dim, exact_div
from nnc.lang.elaborate.context import Binder, Context, Mistake, Poisoned, fail
from nnc.lang.elaborate.values import Tensor
from nnc.lang.units import nearest


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
            raise no_range(cx, r.name, r.span)
        if r.explicit is None:
            agree(r)
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


def agree(r: Range) -> None:
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


def no_range(cx: Context, name: str, span: Span) -> Mistake:
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
                    size = size_of(cx, ranges, name)
                    if size is None:
                        open_ = []
                        break
                    rest = rest * size
        if len(open_) == 1:
            name, span = open_[0]
            ranges[name].found.append(((exact_div(shape[axis], rest),), span))


def size_of(cx: Context, ranges: dict[str, Range], name: str) -> Dim | None:
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
