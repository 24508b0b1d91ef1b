"""Axis arguments (`over=`)."""

from __future__ import annotations

from collections.abc import Sequence

from nnc.lang import ast
from nnc.lang.elaborate.broadcasting import typed
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.mistakes import Mistake, Poisoned, fail
from nnc.lang.elaborate.values import AxisRef, Pack, Tensor, Unknown, Weak


def resolve_axes(cx: Context, x: Tensor, e: ast.Expr) -> list[int]:
    """`over=`: one axis or a tuple of them."""
    items = e.items if isinstance(e, ast.Tuple | ast.ListLit) else (e,)
    found = [resolve_axis(cx, x, i) for i in items]
    out = [a for a in found if a is not None]
    if len(out) != len(found):
        raise Poisoned
    if len(set(out)) != len(out):
        raise fail("E0305", "`over` names one axis twice", e.span)
    return out


def resolve_axis(cx: Context, x: Tensor, e: ast.Expr) -> int | None:
    """An axis argument: an index name of the variable, a size that occurs once, or a number."""
    rank = len(x.shape)
    if isinstance(e, ast.Name) and e.id in x.letters:
        return x.letters.index(e.id)
    negative = isinstance(e, ast.Unary) and e.op == "-"
    if isinstance(e, ast.Name) and cx.lookup(e.id) is None:
        raise _no_axis(x, e)
    value = cx.eval(e)
    match value:
        case AxisRef(axis=None) | Unknown():
            return None
        case AxisRef(axis=axis) if axis is not None:
            return axis
        case Weak(number=n) if n is not None and not isinstance(e, ast.Name):
            axis = int(n) + (rank if negative else 0)
            if 0 <= axis < rank:
                return axis
            raise fail("E0306", f"there is no axis {int(n)}", e.span, f"{x.type} has {rank}")
        case Weak(dim=dim) if dim is not None:
            hits = [i for i, d in enumerate(x.shape) if d == dim]
            if len(hits) == 1:
                return hits[0]
            if hits:
                raise _which(x, e, hits)
        case Pack(dims=(one,)):
            hits = [i for i, d in enumerate(x.shape) if d == one]
            if len(hits) == 1:
                return hits[0]
    raise _no_axis(x, e)


def _no_axis(x: Tensor, e: ast.Expr) -> Mistake:
    names = [s for s in x.letters if s]
    sizes = [d.name for d in x.shape if d.name and x.shape.count(d) == 1]
    help = f"say the axis by its number, 0 ... {len(x.shape) - 1}"
    if names:
        help = f"it has the index names {' '.join(names)}"
    elif sizes:
        near = next((s for s in sizes if s == e.span.text.upper()), sizes[-1])
        help = f"say a size, `over={near}`, or the axis by its number"
    text = f"no axis of this tensor is `{e.span.text}`"
    return fail("E0306", text, e.span, typed(x, e.span), help=help)


NUMBERS = {2: "two", 3: "three", 4: "four"}


def _which(x: Tensor, e: ast.Expr, hits: Sequence[int]) -> Mistake:
    names = [x.letters[i] for i in hits if i < len(x.letters) and x.letters[i]]
    if len(names) == len(hits):
        says = " or ".join(f"`over={n}`" for n in names)
        place = x.place.show(e.span) if x.place is not None else "by index names"
        help = f"it was defined as {place}: say {says}"
    else:
        help = "say which by number: " + " or ".join(f"`over={i}`" for i in hits)
    many = NUMBERS.get(len(hits), str(len(hits)))
    text = f"`over={e.span.text}` could mean {many} axes"
    return fail("E0305", text, e.span, typed(x, e.span), help=help)
