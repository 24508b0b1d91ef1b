"""Messages for index names without a range, or without a meaning."""

from __future__ import annotations

from collections.abc import Sequence

from nnc.diagnostics import Label, Span
from nnc.lang import ast
from nnc.lang.dims import ZERO, Dim, extremes
from nnc.lang.elaborate.bases import base_shape, quiet_value
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.mistakes import Mistake, Poisoned, fail
from nnc.lang.elaborate.ranges import REDUCING, Range, infer_ranges, reduced_names, slots
from nnc.lang.elaborate.values import Unknown
from nnc.lang.elaborate.walks import syntax
from nnc.lang.elaborate.words import axes_word, counted
from nnc.lang.units import nearest

LEFT = "left side"


def no_range(
    cx: Context, r: Range, scope: Sequence[ast.Expr], ranges: dict[str, Range] | None = None
) -> Exception:
    """An index name that nothing gives a size. Silent where a tensor is Unknown after a mistake."""
    uses = [n for n in syntax(*scope) if isinstance(n, ast.Index)]
    for e in scope if not uses else ():
        if not any(isinstance(n, ast.Name) and n.id in (ranges or {}) for n in syntax(e)):
            cx.eval(e)
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
        help=f"did you mean `{near}`?" if near else _range_help(cx, r, scope, uses, ranges),
    )


def _loose(cx: Context, uses: Sequence[ast.Index], ranges: dict[str, Range]) -> ast.Name | None:
    """A name in the place of an index that means nothing here."""
    inner = {n for n, _, _ in reduced_names(uses)}
    for use in uses:
        for item in use.items:
            bound = inner | ranges.keys() | cx.frame.binders.keys()
            if isinstance(item, ast.Name) and item.id not in bound and cx.lookup(item.id) is None:
                return item
    return None


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


def _range_help(
    cx: Context,
    r: Range,
    scope: Sequence[ast.Expr],
    uses: Sequence[ast.Index],
    ranges: dict[str, Range],
) -> str:
    fitting = _fitting(cx, r, uses, ranges)
    if fitting is not None:
        item, size = fitting
        return _say_range(f"{r.name}:{size}", item)
    for use in uses:
        shape = base_shape(cx, use.value)
        for item, axis, _ in slots(cx, use.items, len(shape or ()), {}):
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
    for use in uses:
        if any(isinstance(i, ast.Name) and i.id == r.name for i in use.items):
            return f"`{use.value.span.text}` has its size only later; say it: `{r.name}:{word}`"
    if any(isinstance(n, ast.Name) and n.id == r.name for n in syntax(*scope)):
        return f"only a tensor that it indexes says how far it goes; give it one: `{r.name}:{word}`"
    return f"it is not used on the right; give it one: `{r.name}:{word}`"


def _fitting(
    cx: Context, r: Range, uses: Sequence[ast.Index], ranges: dict[str, Range]
) -> tuple[ast.Expr, Dim] | None:
    """The range of `t` with which the affine uses `x[c*t + k]` stay inside, from the largest."""
    inner = {
        n: Range(n, r.span, False, None if size is None else (cx.eval_dim(size),))
        for n, _, size in reduced_names(uses)
    }
    infer_ranges(cx, inner, uses)
    ranges = ranges | inner
    box = {f"${n}": (ZERO, k.known[0] - 1) for n, k in ranges.items() if k.known and n != r.name}
    best: tuple[ast.Expr, Dim, Dim] | None = None
    for use in uses:
        shape = base_shape(cx, use.value) or ()
        for item, axis, _ in slots(cx, use.items, len(shape), {}):
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


def _say_range(new: str, item: ast.Expr) -> str:
    return f"give it a range, `{new}`: `{item.span.text}` does not say how far it goes"


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
