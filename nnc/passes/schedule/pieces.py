"""Loops cut where a condition on an outer index changes.

`x[i] if i < N else y[i - N]` (`concat`) is one loop over the first N rows and one over the others,
each without the condition.
"""

from __future__ import annotations

from collections.abc import Sequence

from nnc.ir.expr import Expr, Idx, Op, Select, rewrite, walk
from nnc.ir.graph import Axis
from nnc.ir.loop import Let
from nnc.ir.statements import Stmts, map_stmts, substitute
from nnc.lang.dims import ONE, Dim, Facts, prove_nonneg

_MOST = 8  # pieces
_SHORT = 64  # nodes of an expression that may be there twice

Piece = tuple[tuple[Axis, ...], Stmts]


def pieces(axes: Sequence[Axis], stmts: Stmts, facts: Facts) -> list[Piece]:
    """The loops over `axes` that together do what one around the statements does."""
    done: list[Piece] = []
    pending: list[Piece] = [(tuple(axes), stmts)]
    while pending:
        own, body = pending.pop()
        found = _threshold(own, body, facts) if len(done) + len(pending) < _MOST else None
        if found is None:
            done.append((own, body))
            continue
        left, at, start = found
        axis = own[at]
        low = _known(body, left, True)
        high = substitute(_known(body, left, False), {axis.var: Dim.of(axis.var) + start})
        for extent, part in ((axis.extent - start, high), (start, low)):
            pending.append(((*own[:at], Axis(axis.var, extent), *own[at + 1 :]), part))
    return done


def _threshold(axes: Sequence[Axis], stmts: Stmts, facts: Facts) -> tuple[Dim, int, Dim] | None:
    """A condition `i < n` on an axis but the last: n - i, the axis, and n."""
    names = {a.var for a in axes}
    values = [s.value for s in stmts if isinstance(s, Let)]
    nodes = list(walk(*values))
    if len(nodes) > _SHORT:
        return None
    limits = [_limit(e.cond) for e in nodes if isinstance(e, Select)]
    for left in (x for x in limits if x is not None):
        for at, axis in enumerate(axes[:-1]):
            form = left.linear_in(axis.var)
            if form is None or form[0] != -ONE or form[1].names & names:
                continue
            n = form[1]
            if prove_nonneg(n, facts) and prove_nonneg(axis.extent - n, facts):
                return left, at, n
    return None


def _limit(cond: Expr) -> Dim | None:
    """b - a of a condition `a < b` on sizes and indices."""
    match cond:
        case Op(fn="lt", args=(Idx(dim=a), Idx(dim=b))):
            return b - a
    return None


def _known(stmts: Stmts, left: Dim, holds: bool) -> Stmts:
    """The statements where it is known whether `left` is above 0."""

    def one(e: Expr) -> Expr:
        if isinstance(e, Select) and _limit(e.cond) == left:
            return e.a if holds else e.b
        return e

    return map_stmts(stmts, lambda root: rewrite(root, one))
