"""Columns that need not be computed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from nnc.ir.bounds import condition_facts
from nnc.ir.expr import Const, Expr, Load, Op, Select, walk
from nnc.ir.graph import Compute, Node
from nnc.ir.scalar import SCALARS
from nnc.lang.dims import Dim
from nnc.passes.regions.growth import Growth
from nnc.passes.schedule.space import NEUTRAL

_NEUTRAL = NEUTRAL | {"argmax": NEUTRAL["max"], "argmin": NEUTRAL["min"]}
Known = Mapping[Node, float | None]


def mask(g: Growth, nodes: Sequence[Compute]) -> tuple[Dim, ...]:
    """What holds at all columns that contribute to anything, or () when all may."""
    for facts in dict.fromkeys(_conditions(g, nodes)):
        if _neutral(g, nodes, frozenset(facts)):
            return facts
    return ()


def _conditions(g: Growth, nodes: Sequence[Compute]) -> Iterator[tuple[Dim, ...]]:
    for n in nodes:
        side = g.sides.get(n)
        conds = [] if side is None else list(side.masks)
        expr = side.strip if side is not None else g.s.space(n).body
        conds += [e.cond for e in walk(expr) if isinstance(e, Select)]
        for c in conds:
            facts = _facts(c, g.env[n])
            if any(g.col.var in f.names for f in facts):
                yield facts


def _facts(cond: Expr, env: Mapping[str, str]) -> tuple[Dim, ...]:
    """Of a condition that holds, in the region's variables; those with others are left out."""
    names = {v: Dim.of(w) for v, w in env.items()}
    free = (f for f in condition_facts(cond, True) if all(_known(v, env) for v in f.names))
    return tuple(f.subst(names) for f in free)


def _known(name: str, env: Mapping[str, str]) -> bool:
    return name in env or not name.startswith("$") or "." in name


def _neutral(g: Growth, nodes: Sequence[Compute], excluded: frozenset[Dim]) -> bool:
    """Whether nothing comes from columns where one of `excluded` is negative."""
    held: dict[Node, float | None] = {}
    for n in nodes:
        role, side = g.roles[n], g.sides.get(n)
        if role == "strip" and side is not None:
            masked = any(excluded <= frozenset(_facts(m, g.env[n])) for m in side.masks)
            held[n] = 0.0 if masked else None
            continue
        space = g.s.space(n)
        value = _excluded_value(side.strip if side else space.body, held, excluded, g.env[n])
        if role == "strip":
            held[n] = value
        elif role in ("value", "column"):
            if value != 0:
                return False
        elif space.raxes and value != _NEUTRAL[space.op]:
            return False
    return True


def _excluded_value(
    root: Expr, held: Known, excluded: frozenset[Dim], env: Mapping[str, str]
) -> float | None:
    """The value of an expression at excluded columns; None: some finite number.

    (Where a row's own numbers are not finite, neither is anything else in the row.)
    """
    known: dict[int, float | None] = {}
    for e in walk(root):
        value: float | None = None
        match e:
            case Const(value=v):
                value = float(v)
            case Load(tensor=t):
                value = held.get(t)  # type: ignore[call-overload]
            case Select(cond=c, a=a, b=b):
                x, y = known[id(a)], known[id(b)]
                value = y if excluded <= frozenset(_facts(c, env)) or x == y else None
            case Op(fn=fn, args=args):
                value = _applied(fn, [known[id(x)] for x in args])
        known[id(e)] = value
    return known[id(root)]


def _applied(fn: str, args: Sequence[float | None]) -> float | None:
    """A scalar function where some operands are unknown but finite."""
    if fn == "cast":
        return args[0]
    given = [x for x in args if x is not None]
    if given and len(given) == len(args):
        with np.errstate(all="ignore"):
            out = float(SCALARS[fn].numpy(*(np.float64(x) for x in given)))
        return None if math.isnan(out) else out
    match fn:
        case "mul" if 0.0 in given:
            return 0.0
        case "div" if args[0] == 0:
            return 0.0
        case "add" | "sub" if given and math.isinf(given[0]):
            return -given[0] if fn == "sub" and args[0] is None else given[0]
    return None
