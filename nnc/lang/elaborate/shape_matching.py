"""Declared shapes matched with given ones: sizes and packs are solved."""

from __future__ import annotations

from nnc.diagnostics import Label, Span
from nnc.lang import ast
from nnc.lang.dims import ONE, Dim, exact_div
from nnc.lang.elaborate.binding import Binding
from nnc.lang.elaborate.broadcasting import grouped, typed
from nnc.lang.elaborate.mismatches import declared, written, wrong_rank, wrong_size
from nnc.lang.elaborate.mistakes import Mistake, fail
from nnc.lang.elaborate.sizes import quantified
from nnc.lang.elaborate.values import Tensor


def match_shape(b: Binding, p: ast.Param, t: ast.TensorTypeExpr, v: Tensor, span: Span) -> None:
    patterns = t.dims or ()
    packs = [i for i, d in enumerate(patterns) if isinstance(d, ast.Rest)]
    fixed = len(patterns) - len(packs)
    rank = len(v.shape)
    if (not packs and rank != fixed) or rank < fixed:
        raise wrong_rank(b, p, t, v, span)
    axis = 0
    for pattern in patterns:
        if isinstance(pattern, ast.Rest):
            n = rank - fixed
            _match_pack(b, p, pattern, v, axis, n, span)
            axis += n
            continue
        _match_axis(b, p, pattern, v.shape[axis], span, v, axis)
        axis += 1


def _match_pack(
    b: Binding, p: ast.Param, pattern: ast.Rest, v: Tensor, axis: int, n: int, span: Span
) -> None:
    mine = v.shape[axis : axis + n]
    bound = b.frame.packs.get(pattern.name)
    if bound is None:
        b.frame.packs[pattern.name] = mine
        b.frame.pack_origins[pattern.name] = tuple(v.origin(axis + k) or v.place for k in range(n))
        return
    if bound != mine:
        raise _other_axes(b, p, pattern, v, bound, mine, span)


def _other_axes(
    b: Binding,
    p: ast.Param,
    pattern: ast.Rest,
    v: Tensor,
    bound: tuple[Dim, ...],
    mine: tuple[Dim, ...],
    span: Span,
) -> Mistake:
    """Two arguments that share `..N` have other axes there."""
    names = [q.name for q in b.func.params]
    args = {a.name or names[i]: a for i, a in enumerate(b.call.args) if i < len(names)}
    first = next((q for q in b.func.params if f"..{pattern.name}" in written(q)), p)
    given = args.get(first.name)
    before = f"[{', '.join(map(str, bound))}]"
    help = None
    labels = [declared(p, f"`..{pattern.name}` is {before} before")]
    if given is not None and first is not p:
        other = b.frame.vars.get(first.name)
        shown = typed(other, span) if isinstance(other, Tensor) else before
        labels.insert(0, Label(given.value.span, shown))
        one, two = grouped(given.value.span.text), grouped(span.text)
        if bound[:-1] == mine and bound[-1] == ONE:
            help = f"drop the axis of 1: `{one}[..., 0]`"
        elif mine[:-1] == bound and mine[-1] == ONE:
            help = f"drop the axis of 1: `{two}[..., 0]`"
    what = f"`{b.shown}` needs the same axes for `..{pattern.name}`"
    return fail("E0301", what, span, typed(v, span), labels, help=help)


def _match_axis(
    b: Binding, p: ast.Param, pattern: ast.Expr, size: Dim, span: Span, v: Tensor, axis: int
) -> None:
    frame = b.frame
    if isinstance(pattern, ast.Name) and pattern.id not in frame.dims:
        with b.cx.in_frame(frame):
            known = b.cx.lookup(pattern.id)
        if known is None:
            frame.dims[pattern.id] = size
            origin = v.origin(axis) or v.place
            if origin is not None:
                frame.dim_spans[pattern.id] = origin
            return
    open_ = quantified(b.cx, frame, pattern)
    if len(open_) > 1:
        b.pending.append((size, pattern, span, p))
        return
    if open_:
        solve_size(b, open_[0], pattern, size, span)
        return
    with b.cx.in_frame(frame):
        want = b.cx.eval_dim(pattern)
    if want != size:
        raise wrong_size(b, p, pattern, want, v, axis, span)


def solve_size(b: Binding, name: str, pattern: ast.Expr, size: Dim, span: Span) -> None:
    """`T + 1`, `4*H`: the name from a linear form."""
    probe = "?" + name
    b.frame.dims[name] = Dim.of(probe)
    with b.cx.in_frame(b.frame):
        form = b.cx.eval_dim(pattern).linear_in(probe)
    del b.frame.dims[name]
    if form is None or not form[0].terms:
        raise fail(
            "E0309",
            f"`{name}` cannot be found from this size",
            pattern.span,
            help=f"some argument needs an axis that is `{name}` alone",
        )
    a, rest = form
    if a != ONE:
        from_size = size - rest
        if from_size.const is not None and a.const is not None and from_size.const % a.const:
            raise fail(
                "E0301",
                f"`{b.shown}` needs an axis that is a multiple of {a}",
                span,
                str(size),
                (Label(pattern.span, "declared here"),),
            )
        if from_size.const is None:
            b.cx.require(from_size % a, True, f"{from_size} % {a} == 0", span)
    b.frame.dims[name] = exact_div(size - rest, a)


def solve_pending(b: Binding) -> None:
    for _ in range(2):
        waiting, b.pending = b.pending, []
        for size, pattern, span, p in waiting:
            open_ = quantified(b.cx, b.frame, pattern)
            if len(open_) > 1:
                b.pending.append((size, pattern, span, p))
            elif open_:
                solve_size(b, open_[0], pattern, size, span)
            else:
                with b.cx.in_frame(b.frame):
                    want = b.cx.eval_dim(pattern)
                if want != size:
                    what = f"`{b.shown}` needs {want} here, this is {size}"
                    raise fail("E0301", what, span, labels=(declared(p),))
    if b.pending:
        _, pattern, _, _ = b.pending[0]
        names = quantified(b.cx, b.frame, pattern)
        raise fail("E0309", f"`{names[0]}` is not determined by the arguments", pattern.span)
