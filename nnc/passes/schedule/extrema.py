"""A maximum and its place are found together (`Reduce.best`)."""

from __future__ import annotations

from dataclasses import replace

from nnc.ir.expr import Expr, Idx, rewrite
from nnc.ir.loop import Reduce, Stmt
from nnc.ir.share import share
from nnc.ir.statements import Stmts
from nnc.lang.dims import Dim

_PLACES = {"argmax": "max", "argmin": "min"}


def joined(stmts: Stmts) -> Stmts:
    """The statements with such pairs as one, where the first of them stood."""
    out = list[Stmt](stmts)
    for place in stmts:
        if not isinstance(place, Reduce) or place.op not in _PLACES:
            continue
        found = next((s for s in out if isinstance(s, Reduce) and _belongs(s, place)), None)
        if found is not None:
            first = min(out.index(found), out.index(place))
            out = [s for s in out if s is not found and s is not place]
            out.insert(first, replace(place, best=found.name))
    return tuple(out)


def _belongs(best: Reduce, place: Reduce) -> bool:
    """Whether one is the extreme value whose place the other is."""
    sizes = [a.extent for a in best.axes], [a.extent for a in place.axes]
    if best.op != _PLACES[place.op] or best.value.dtype != place.value.dtype:
        return False
    if sizes[0] != sizes[1]:
        return False
    pairs = zip(best.axes, place.axes, strict=True)
    env = {a.var: Dim.of(b.var) for a, b in pairs}

    def one(e: Expr) -> Expr:
        return Idx(e.dim.subst(env), e.dtype) if isinstance(e, Idx) else e

    a, b = share(rewrite(best.value, one), rewrite(place.value, one))
    return a is b
