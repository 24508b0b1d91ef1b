"""Matrices of a stack that data chooses: `w[expert[n], f, d]`."""

from __future__ import annotations

from collections.abc import Iterable

from nnc.ir.expr import Expr, Idx, Load, names


def chosen(e: Expr, rows: Iterable[str]) -> int | None:
    """Which index of a load chooses a part of the tensor for each of the rows (variables), if all
    rows that choose alike read the same."""
    if not isinstance(e, Load) or e.other is not None:
        return None
    mine = frozenset(rows)
    found = [i for i, x in enumerate(e.index) if mine & names([x])]
    if len(found) != 1 or isinstance(e.index[found[0]], Idx):
        return None
    plain = all(isinstance(x, Idx) for i, x in enumerate(e.index) if i != found[0])
    own = frozenset(n for n in names([e.index[found[0]]]) if n.startswith("$") and "." not in n)
    return found[0] if plain and own == mine else None
