"""Index names and their ranges: explicit, or the size of the axes they are used on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nnc.diagnostics import Label, Span
from nnc.lang import ast
from nnc.lang.dims import Dim, Facts, prove_nonneg
from nnc.lang.elaborate.bases import quiet_value
from nnc.lang.elaborate.context import Binder, Context
from nnc.lang.elaborate.mistakes import fail
from nnc.lang.elaborate.ranges import Range, Use, infer_ranges
from nnc.lang.elaborate.unbound import no_range
from nnc.lang.elaborate.values import Instance, Tensor


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
            help=f"say which: `{r.name}:{_sizes(_inside(cx, r))}`, or use another letter",
        )
    r.explicit = least


def _inside(cx: Context, r: Range) -> tuple[Dim, ...]:
    """The sizes to propose: those of a use that stays inside all others, else of the first."""
    for a in (use.sizes for use in r.found):
        pairs = [zip(a, use.sizes, strict=True) for use in r.found if len(use.sizes) == len(a)]
        if len(pairs) == len(r.found) and all(cx.proves(q - p) for z in pairs for p, q in z):
            return a
    return r.found[0].sizes


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
