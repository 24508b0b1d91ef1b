"""Division of the elements of a strip, moved to the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nnc.ir.expr import Const, Expr, Idx, Load, Op, children, walk
from nnc.ir.graph import Compute
from nnc.lang.dims import Dim
from nnc.passes.regions.growth import Growth
from nnc.passes.regions.region import Divisor, Side


def late_division(g: Growth, value: Compute) -> Side | None:
    """`sum[j](e[i, j] / l[i] * v[j])` is `sum[j](e[i, j] * v[j]) / l[i]`, where e is at most 1:
    then nothing overflows that did not before. None: nothing to move.
    """
    side = g.sides[value]
    strip = side.strip.tensor if isinstance(side.strip, Load) else None
    if not isinstance(strip, Compute) or g.s.readers[strip] != [value] or strip in g.sides:
        return None
    if strip in g.s.roots or g.roles.get(strip) != "strip":
        return None
    match g.s.space(strip).body:
        case Op(fn="div", args=(Load(tensor=Compute() as e) as x, Load(tensor=l) as by)):
            if g.roles.get(l) == "row" and g.roles.get(e) == "strip" and _at_most_one(g, e):  # type: ignore[call-overload]
                return replace(side, strip=x, divisor=Divisor(strip, by))
    return None


def _at_most_one(g: Growth, e: Compute) -> bool:
    """Whether a strip is `exp(x - max over the columns of x)`."""
    match g.s.space(e).body:
        case Op(fn="exp", args=(Op(fn="sub", args=(x, Load(tensor=Compute() as m))),)):
            top = g.s.space(m)
            same = g.roles.get(m) == "row" and top.op == "max"
            return same and _form(x, g.env[e]) == _form(top.body, g.env[m])
    return False


def _form(root: Expr, env: Mapping[str, str]) -> tuple[object, ...]:
    """Equal for equal expressions: their parts by number, in order."""
    names = {v: Dim.of(w) for v, w in env.items()}
    known: dict[object, int] = {}
    number: dict[int, int] = {}
    for e in walk(root):
        parts = tuple(number[id(c)] for c in children(e))
        match e:
            case Const(dtype=dtype, value=value):
                own: object = (dtype, repr(value))
            case Idx(dim=d):
                own = d.subst(names)
            case Load(tensor=t, other=other, check=check):
                own = (t, other is None, check is None)
            case Op(dtype=dtype, fn=fn):
                own = (dtype, fn)
            case _:
                own = ()
        number[id(e)] = known.setdefault((type(e), own, parts), len(known))
    return (*known,)
