"""Messages for arguments that do not fit."""

from __future__ import annotations

from nnc.diagnostics import Label, Span
from nnc.lang import ast
from nnc.lang.dims import Dim
from nnc.lang.elaborate.binding import Binding
from nnc.lang.elaborate.context import Context, Mistake, fail
from nnc.lang.elaborate.values import Tensor
from nnc.lang.types import DType


def wrong_dtype(b: Binding, p: ast.Param, v: Tensor, dtype: DType, span: Span) -> Mistake:
    origin = v.origin(0)
    text = str(v.type) + (f"   {origin.show(span)}" if origin else "")
    return fail(
        "E0201",
        f"`{b.shown}` takes {dtype}, this is {v.dtype}",
        span,
        text,
        (Label(p.span, f"declared {written(p)}"),),
        help=f"`{dtype}({span.text})`",
    )


def written(p: ast.Param) -> str:
    return p.type.span.text if p.type is not None else ""


def wrong_rank(b: Binding, p: ast.Param, t: ast.TensorTypeExpr, v: Tensor, span: Span) -> Mistake:
    want = len([d for d in t.dims or () if not isinstance(d, ast.Rest)])
    help = None
    if len(v.shape) == want + 1 and want >= 1:
        help = None
    more = "at least " if any(isinstance(d, ast.Rest) for d in t.dims or ()) else ""
    axes = f"{more}{want} ax{'is' if want == 1 else 'es'}"
    return fail(
        "E0308",
        f"`{b.shown}` takes {axes}, this has {len(v.shape)}",
        span,
        typed(v, span),
        (Label(p.span, f"takes {t.span.text}"),),
        help=help or _flatten_help(v, want, span),
    )


def _flatten_help(v: Tensor, want: int, span: Span) -> str | None:
    if want == 2 and len(v.shape) > 2:
        letters = "bcijkl"[: len(v.shape)]
        rest = ", ".join(letters[1:])
        return f"flatten first: `y[{letters[0]}, ({rest})] = x[{', '.join(letters)}]`"
    return None


def typed(v: Tensor, seen: Span) -> str:
    origin = v.origin(len(v.shape) - 1) if v.shape else None
    return str(v.type) + (f"   {origin.show(seen)}" if origin else "")


def wrong_size(
    b: Binding,
    p: ast.Param,
    pattern: ast.Expr,
    want: Dim,
    size: Dim,
    span: Span,
    v: Tensor,
    axis: int,
) -> Mistake:
    cx = b.cx
    given, takes = _number(cx, size), _number(cx, want)
    if given == takes:
        given, takes = str(size), str(want)
    last = axis == len(v.shape) - 1
    noun = "features" if last and b.frame.owner is not None else f"on axis {axis}"
    message = f"`{b.shown}` is given {given} {noun} but takes {takes}"
    labels = [Label(p.span, f"takes {written(p)}" + _where_size(cx, pattern, want, b))]
    made = _made_at(cx, b)
    if made is not None:
        labels.append(
            Label(
                made,
                f"takes {written(p)}, {pattern.span.text} = {want}" + _declared_at(cx, want, made),
            )
        )
        labels = labels[1:]
    origin = v.origin(axis)
    text = f"{v.type}"
    known = _declared_at(cx, size, span)
    if known:
        text += f"   {known.lstrip(', ')}"
    elif origin is not None:
        text += f"   {size} = {origin.show(span)}"
    return fail("E0301", message, span, text, labels, help=_suggestion(cx, b, want, size))


def _where_size(cx: Context, pattern: ast.Expr, want: Dim, b: Binding) -> str:
    if pattern.span.text == str(want):
        return ""
    origin = b.frame.dim_spans.get(pattern.span.text)
    place = f" from {origin.show(b.call.span)}" if origin is not None else ""
    return f", {pattern.span.text} = {want}{place}"


def _number(cx: Context, d: Dim) -> str:
    """The size with the module's defaults put in, when that gives a number."""
    inst = cx.frame.module
    if inst is None or d.const is not None:
        return str(d)
    env: dict[str, Dim] = {}
    for p in inst.defn.params:
        match p.default:
            case ast.Num(value=int(n)):
                env[p.name] = Dim.of(n)
    return str(d.subst(env))


def _declared_at(cx: Context, d: Dim, seen: Span) -> str:
    inst = cx.frame.module
    if inst is None or d.name is None:
        return ""
    for p in inst.defn.params:
        if p.name == d.name:
            value = _number(cx, d)
            shown = f"{d} = {value}" if value != str(d) else str(d)
            return f", {shown}, declared on {p.name_span.line_in(seen)}"
    return ""


def _made_at(cx: Context, b: Binding) -> Span | None:
    """Where the sub-module that is called was made, in the module that is being checked."""
    inst = cx.frame.module
    owner = b.frame.owner
    if inst is None or owner is None:
        return None
    for m in inst.defn.members:
        if isinstance(m, ast.MemberDecl) and m.name == owner.name:
            return m.value.span
    return None


def _suggestion(cx: Context, b: Binding, want: Dim, size: Dim) -> str | None:
    """`fc2 = Linear(H, C)`: the declaration with the wrong size replaced, when that is one word."""
    inst, owner = cx.frame.module, b.frame.owner
    if inst is None or owner is None or size.name is None:
        return None
    for m in inst.defn.members:
        if isinstance(m, ast.MemberDecl) and m.name == owner.name and isinstance(m.value, ast.Call):
            words = [a.span.text for a in m.value.args]
            hits = [i for i, w in enumerate(words) if w == str(want)]
            if len(hits) >= 1:
                words[hits[0]] = str(size)
                return f"did you mean `{m.name} = {m.value.func.span.text}({', '.join(words)})`?"
    return None
