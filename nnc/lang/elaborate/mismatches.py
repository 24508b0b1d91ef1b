"""Messages for arguments that do not fit."""

from __future__ import annotations

from collections.abc import Iterator

from nnc.diagnostics import Label, Span
from nnc.lang import ast
from nnc.lang.dims import ONE, Dim, dim_prod
from nnc.lang.elaborate.bases import quiet_value
from nnc.lang.elaborate.binding import Binding
from nnc.lang.elaborate.broadcasting import cast_help, grouped, same_dtype, size_origin, typed
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.mistakes import Mistake, Poisoned, fail
from nnc.lang.elaborate.values import Tensor
from nnc.lang.elaborate.words import axes_word
from nnc.lang.types import DType, is_float


def wrong_dtype(b: Binding, p: ast.Param, v: Tensor, dtype: DType, span: Span) -> Mistake:
    """An argument of another dtype than the declared one."""
    first = _first_real(b, p)
    if first is not None and is_float(v.dtype):
        return _two_reals(b, *first, v, span)
    shown = "real (f32 unless said)" if dtype == "real" else dtype
    help = _swapped(b, p, v, dtype) or _classes(b, p, v, dtype, span) or f"`{dtype}({span.text})`"
    return fail(
        "E0201",
        f"`{b.shown}` takes {shown}, this is {v.dtype}",
        span,
        typed(v, span),
        (declared(p),),
        help=help,
    )


def _swapped(b: Binding, p: ast.Param, v: Tensor, dtype: DType) -> str | None:
    """The call with two arguments the other way round, when their dtypes fit then."""
    args = [a for a in b.call.args if a.name is None]
    names = [q.name for q in b.func.params]
    if p.name not in names[: len(args)]:
        return None
    here = names.index(p.name)
    for i, (q, arg) in enumerate(zip(b.func.params, args, strict=False)):
        value = quiet_value(b.cx, arg.value)
        other = b.cx.tensor(value) if value is not None else None
        takes = q.type.name if isinstance(q.type, ast.TensorTypeExpr) else ""
        fits = takes == v.dtype or (takes == "real" and is_float(v.dtype))
        if i != here and fits and isinstance(other, Tensor) and same_dtype(other.dtype, dtype):
            words = [a.span.text for a in b.call.args]
            words[here], words[i] = words[i], words[here]
            return f"the other way round: `{b.call.func.span.text}({', '.join(words)})`"
    return None


def _classes(b: Binding, p: ast.Param, v: Tensor, dtype: DType, span: Span) -> str | None:
    """Floats with a last axis, where integers without one are taken: one-hot labels."""
    dims = p.type.dims or () if isinstance(p.type, ast.TensorTypeExpr) else ()
    pack = dims[0] if len(dims) == 1 else None
    bound = b.frame.packs.get(pack.name) if isinstance(pack, ast.Rest) else None
    if dtype != "i32" or not is_float(v.dtype) or bound is None or v.shape[:-1] != bound:
        return None
    return f"the numbers of the classes: `argmax({span.text}, over=-1)`"


def _first_real(b: Binding, p: ast.Param) -> tuple[ast.Arg, Tensor] | None:
    """The argument that decided what `real` is in this call, when `p` is `real` too."""
    if b.real_from is None or not isinstance(p.type, ast.TensorTypeExpr) or p.type.name != "real":
        return None
    name, value = b.real_from
    names = [q.name for q in b.func.params]
    for i, arg in enumerate(b.call.args):
        if (arg.name or names[i]) == name and name != p.name:
            return arg, value
    return None


def _two_reals(b: Binding, first: ast.Arg, fv: Tensor, v: Tensor, span: Span) -> Mistake:
    """`mse(low, y)` with bf16 and f32: the call with the cast to write."""
    text = first.value.span.text
    cast = cast_help(text, fv, span.text, v)
    words = [a.span.text for a in b.call.args]
    at = [a.value.span for a in b.call.args]
    which = at.index(first.value.span if text in cast else span)
    words[which] = words[which].replace(at[which].text, cast)
    return fail(
        "E0201",
        f"{v.dtype} and {fv.dtype} do not mix",
        span,
        typed(v, span),
        (Label(first.value.span, typed(fv, span)),),
        help=f"`{b.call.func.span.text}({', '.join(words)})`",
    )


def declared(p: ast.Param, text: str = "") -> Label:
    """The declaration of a parameter."""
    return Label(p.span, text or "declared here")


def written(p: ast.Param) -> str:
    return p.type.span.text if p.type is not None else ""


def wrong_rank(b: Binding, p: ast.Param, t: ast.TensorTypeExpr, v: Tensor, span: Span) -> Mistake:
    """An argument with too few or too many axes."""
    want = len([d for d in t.dims or () if not isinstance(d, ast.Rest)])
    more = "at least " if any(isinstance(d, ast.Rest) for d in t.dims or ()) else ""
    return fail(
        "E0308",
        f"`{b.shown}` takes {more}{axes_word(want)}, this has {len(v.shape)}",
        span,
        typed(v, span),
        (declared(p),),
        help=_rank_help(t, v, want, span) if span != b.call.func.span else None,
    )


def _rank_help(t: ast.TensorTypeExpr, v: Tensor, want: int, span: Span) -> str | None:
    have, text = len(v.shape), grouped(span.text)
    packed = any(isinstance(d, ast.Rest) for d in t.dims or ())
    if want == 0 and not packed:
        return f"`mean({span.text})` or `total({span.text})` is one number"
    if have == want + 1 and v.shape[-1] == ONE:
        return f"`{text}[..., 0]` drops the last axis"
    if have == want + 1 and v.shape[0] == ONE:
        return f"`{text}[0]` drops the first axis"
    if want == 2 and have > 2:
        letters = [c for c in "bijkluvw" if c != span.text][:have]
        rest = ", ".join(letters[1:])
        return f"flatten first: `flat[{letters[0]}, ({rest})] = {text}[{', '.join(letters)}]`"
    if have == want - 1 and have > 0:
        hit = _one_missing(t, v)
        if hit is not None:
            at = ", ".join([":"] * hit + ["None"])
            return f"`{text}[{at}]` adds the axis of 1"
        nth = f"`{text}[None]` adds an axis of 1 in front"
        return f"{nth}, `{text}[..., None]` one at the end"
    return None


def _one_missing(t: ast.TensorTypeExpr, v: Tensor) -> int | None:
    """Where an axis of 1 makes the shape fit what is declared as plain numbers."""
    want = [d.value if isinstance(d, ast.Num) else None for d in t.dims or ()]
    for i in range(1, len(want)):
        sizes = [d.const for d in v.shape]
        sizes.insert(i, 1)
        if want[i] == 1 and all(w is None or w == s for w, s in zip(want, sizes, strict=True)):
            return i
    return 1 if not any(isinstance(w, int) for w in want) and len(want) == 4 else None


def wrong_size(
    b: Binding, p: ast.Param, pattern: ast.Expr, want: Dim, v: Tensor, axis: int, span: Span
) -> Mistake:
    """One axis of an argument has another size than the callee's declaration says."""
    cx, size = b.cx, v.shape[axis]
    if want.const is not None and want.const < 0:  # reported where it is made
        raise Poisoned
    given, takes = _number(cx, size), _number(cx, want)
    if given == takes:
        given, takes = str(size), str(want)
    last = axis == len(v.shape) - 1 and b.frame.owner is not None
    where = f"{given} features" if last else f"{given} on axis {axis}"
    text = f"{v.type}{_size_text(cx, v, axis, span)}"
    label, replacement = _takes(b, p, pattern, want, size)
    replacement = _other_axes(p, v, want, axis, span) or replacement
    message = f"`{b.shown}` is given {where} but takes {takes}"
    return fail("E0301", message, span, text, (label,), help=replacement, sizes=((size, want),))


def _other_axes(p: ast.Param, v: Tensor, want: Dim, axis: int, span: Span) -> str | None:
    """Help when the axes are not flattened, or stand in another order."""
    text = grouped(span.text)
    rank = len(v.shape)
    letters = [c for c in "bijkluvw" if c != span.text][:rank]
    dims = p.type.dims or () if isinstance(p.type, ast.TensorTypeExpr) else ()
    packed = any(isinstance(d, ast.Rest) for d in dims)
    if packed and axis == rank - 1:
        for start in range(1, axis):
            if dim_prod(v.shape[start:]) == want:
                left = ", ".join([*letters[:start], f"({', '.join(letters[start:])})"])
                return f"flatten first: `flat[{left}] = {text}[{', '.join(letters)}]`"
    hits = [i for i, d in enumerate(v.shape) if d == want and i > 0]
    if len(hits) == 1 and axis > 0 and not packed:
        order = [i for i in range(rank) if i != hits[0]]
        order.insert(axis, hits[0])
        left = ", ".join(letters[i] for i in order)
        return f"axis {hits[0]} has {want}: `y[{left}] = {text}[{', '.join(letters)}]` reorders"
    return None


def _size_text(cx: Context, v: Tensor, axis: int, span: Span) -> str:
    known = _declared_at(cx, v.shape[axis], span)
    return f"   {known}" if known else size_origin(v, axis, span)


def _takes(
    b: Binding, p: ast.Param, pattern: ast.Expr, want: Dim, size: Dim
) -> tuple[Label, str | None]:
    """Where the size that is taken was said, and the line with the other size."""
    cx, word = b.cx, pattern.span.text
    member = _member(b)
    if member is not None and isinstance(member.value, ast.Call):
        arg = _argument(b, member.value, word)
        place = arg.value.span if arg is not None else member.value.span
        known = _declared_at(cx, want, b.call.span)
        if known.startswith("declared") and word != str(want):
            known = f"{want}, {known}"
        size_text = known if word == str(want) and known else f"{word} = {known or want}"
        label = Label(place, f"takes {written(p)}   {size_text}", aside=True)
        params = {q.name for q in cx.frame.module.defn.params} if cx.frame.module else set()
        if arg is None or not size.names <= params:
            return label, None
        words = [str(size) if a is arg else a.span.text for a in member.value.args]
        if arg.name is not None:
            i = member.value.args.index(arg)
            words[i] = f"{arg.name}={size}"
        made = f"{member.value.func.span.text}({', '.join(words)})"
        return label, f"did you mean `{member.name} = {made}`?"
    if member is not None and isinstance(member.value, ast.ListComp | ast.ListLit):
        return _takes_in_list(b, p, member.value, want, word), None
    origin = b.frame.dim_spans.get(word)
    text = f"takes {written(p)}"
    if word != str(want):
        text += f"   {word} = {want}"
        text += f" = {origin.show(b.call.span)}" if origin is not None else ""
        inst = b.frame.module
        if inst is not None and word in cx.overrides.get(inst.defn.name, {}):
            text += ", set from outside (`-D`, `nnc.load`)"
    return declared(p, text), None


def _takes_in_list(
    b: Binding, p: ast.Param, made: ast.ListComp | ast.ListLit, want: Dim, word: str
) -> Label:
    """Where one module of a list is given its size."""
    assert b.frame.owner is not None
    turn = b.frame.owner.name.partition("[")[2].rstrip("]")
    text = f"takes {written(p)}   {word} = {want}"
    if isinstance(made, ast.ListComp):
        item, text = made.element, f"{text} for {made.var} = {turn}"
    else:
        item = made.items[int(turn)] if turn.isdigit() else made
    arg = _argument(b, item, word) if isinstance(item, ast.Call) else None
    return Label((arg.value if arg is not None else item).span, text, aside=True)


def _member(b: Binding) -> ast.MemberDecl | None:
    """The declaration of the sub-module that is called, in the module that is being checked."""
    inst, owner = b.cx.frame.module, b.frame.owner
    if inst is None or owner is None:
        return None
    found = (m for m in inst.defn.members if isinstance(m, ast.MemberDecl))
    name = owner.name.partition("[")[0]
    return next((m for m in found if m.name == name), None)


def _argument(b: Binding, call: ast.Call, word: str) -> ast.Arg | None:
    """The argument of `fc = Linear(I, O)` that gives the parameter `word`."""
    owner = b.frame.owner
    assert owner is not None
    names = [p.name for p in owner.inst.defn.params]
    for i, arg in enumerate(call.args):
        name = arg.name if arg.name is not None else names[i] if i < len(names) else None
        if name == word:
            return arg
    return None


def _defaults(cx: Context) -> Iterator[tuple[ast.Param, int]]:
    for p in cx.frame.module.defn.params if cx.frame.module is not None else ():
        match p.default:
            case ast.Num(value=int(n)):
                yield p, n


def _number(cx: Context, d: Dim) -> str:
    """The size with the module's defaults put in, when that gives a number."""
    return str(d.subst({p.name: Dim.of(n) for p, n in _defaults(cx)}))


def _declared_at(cx: Context, d: Dim, seen: Span) -> str:
    """`H = 128, declared on line 5`."""
    params = cx.frame.module.defn.params if cx.frame.module is not None else ()
    for p in params:
        if p.name == d.name:
            value = _number(cx, d)
            shown = f"{d} = {value}, " if value != str(d) else ""
            return f"{shown}declared on {p.name_span.line_in(seen)}"
    return ""
