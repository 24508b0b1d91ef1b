"""Static lists and tuples: indexing and iteration."""

from __future__ import annotations

from nnc.diagnostics import Span
from nnc.lang import ast
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.mistakes import Poisoned, fail
from nnc.lang.elaborate.values import ModuleList, Seq, Tuple, Unknown, Value, Weak, integer
from nnc.lang.elaborate.words import describe

LONGEST = 1024  # items of a static list, turns of a static loop


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
        each = f"`for each in {node.value.span.text}:`"
        help = f"loop over the list itself, {each}, or over a module parameter, `for l in L:`"
        text = "this list needs an index known at compile time"
        raise fail("E0405", text, item.span, help=help)
    if not -len(items) <= n < len(items):
        raise fail(
            "E0402", f"index {n} leaves the list, which has 0 ... {len(items) - 1}", item.span
        )
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


def iteration(cx: Context, value: Value, span: Span) -> list[Value] | None:
    """The items of a static iterable; None when their number is not known (generic check)."""
    match value:
        case Weak(kind="int", dim=dim) if dim is not None:
            if dim.const is not None and dim.const > LONGEST:
                text = f"{dim.const} turns: a static loop or list of more than {LONGEST}"
                help = "a size that is an argument, `n: dim`, makes a run-time loop: `for i in n:`"
                raise fail("E0901", f"{text} is not compiled yet", span, help=help)
            return None if dim.const is None else [integer(k) for k in range(dim.const)]
        case Seq(items=items) | ModuleList(items=items):
            return None if items is None else list(items)
        case Tuple(items=items):
            return list(items)
        case Unknown():
            raise Poisoned
    raise fail(
        "E0803",
        f"{describe(value)} cannot be iterated over",
        span,
        help="`for i in N:` runs over 0 ... N-1; `for f in modules:` over a list",
    )
