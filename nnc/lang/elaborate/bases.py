"""What is indexed in an expression, as far as it has a shape outside the index names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nnc.lang import ast
from nnc.lang.dims import Dim
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.mistakes import Mistake, Poisoned
from nnc.lang.elaborate.names import lookup
from nnc.lang.elaborate.values import Bool, Tensor, Value, WeakTensor
from nnc.lang.elaborate.walks import syntax

Read = tuple[ast.Index, tuple[Dim, ...]]  # with the shape of its base


def indexed(cx: Context, roots: Iterable[ast.Expr]) -> tuple[list[Read], list[Read]]:
    """All tensor reads below the roots whose base has a known shape; in a list of their own those
    that a static condition does not select, or perhaps not."""
    others: list[ast.Expr] = []

    def selected(e: ast.IfExpr) -> tuple[ast.Expr, ...] | None:
        match None if _mentions_index(cx, e.cond) else quiet_value(cx, e.cond):
            case Bool(value=holds):
                sides = {True: e.then, False: e.orelse}
                others.extend(side for taken, side in sides.items() if taken is not holds)
                return () if holds is None else (sides[holds],)
        return None

    def reads(below: Iterable[ast.Expr]) -> Iterator[Read]:
        for root in below:
            for node in syntax(root, selected=selected):
                shape = base_shape(cx, node.value) if isinstance(node, ast.Index) else None
                if isinstance(node, ast.Index) and shape is not None:
                    yield node, shape

    return list(reads(roots)), list(reads(others))


def base_shape(cx: Context, base: ast.Expr) -> tuple[Dim, ...] | None:
    match base:
        case ast.Name(id=name) if name in cx.frame.binders:
            return None
        case ast.Name() | ast.Attr():
            return _shape(quiet_value(cx, base))
        case ast.Index(value=inner, items=items):
            found = None if _mentions_index(cx, base) else _shape(quiet_value(cx, base))
            if found is not None:
                return found
            shape = base_shape(cx, inner)
            simple = all(isinstance(i, ast.Name | ast.Num | ast.Binary) for i in items)
            return None if shape is None or not simple else shape[len(items) :]
        case ast.Call() | ast.Binary() | ast.Unary() if not _mentions_index(cx, base):
            return _shape(quiet_value(cx, base))
    return None


def _mentions_index(cx: Context, e: ast.Expr) -> bool:
    """Whether an index name, bound or to be bound, occurs: then `e` has no value by itself."""
    for node in syntax(e):
        if isinstance(node, ast.Call) and node.bang:
            return True  # its numbers must not be drawn twice
        if isinstance(node, ast.Name) and (
            node.id in cx.frame.binders or lookup(cx, node.id) is None
        ):
            return True
    return False


def quiet_value(cx: Context, e: ast.Expr) -> Value | None:
    """The value of a base, when it has one outside the index names."""
    known = list(cx.diagnostics.items)
    counters = dict(cx.counters)
    try:
        return cx.tensor(cx.eval(e))
    except (Mistake, Poisoned):
        return None
    finally:
        cx.diagnostics.items[:] = known
        cx.counters = counters


def _shape(value: Value | None) -> tuple[Dim, ...] | None:
    return value.shape if isinstance(value, Tensor | WeakTensor) else None
