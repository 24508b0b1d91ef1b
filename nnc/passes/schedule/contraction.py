"""Recognising contractions by structure: a sum of products of two factors that share variables.

A product is `mul`, or `dot4` of words that hold four bytes each.

Variables that are kept and in one factor are m (or n), kept and in both (or in the size of another
axis) batch, reduced and in both k. No name of an operation occurs here.
"""

from __future__ import annotations

from dataclasses import dataclass

from nnc.ir.chosen import chosen
from nnc.ir.expr import Const, Expr, Idx, Load, Op, Select, loads, names, walk
from nnc.ir.graph import Axis
from nnc.ir.loop import REVERSED
from nnc.ir.scalar import const
from nnc.lang.dims import dim_prod
from nnc.passes.schedule.space import Space

DTYPES = ("f32", "f64", "f16", "bf16")
SHORT = 3  # sums of so many products are not worth a register tile
LONG = 384  # more products by a window that all results share: plain reductions
DIGIT = 4  # values of a last digit at which results lie apart
TURNS = 8  # of a last axis that is not worth vectors of its own
PROLOGUE = 64  # expressions of an operand


@dataclass(frozen=True)
class Contraction:
    """The parts of a sum of products. `a` is over (batch, m, k), `b` over (batch, n, k).

    `n` holds the last kept axis, so that stores have unit stride along it (not where `m` is empty
    and `b` is a window that lies in memory along another one). Where one of `masks`
    (conditions over kept axes) is false the result is zero.
    """

    batch: tuple[Axis, ...]
    m: tuple[Axis, ...]
    n: tuple[Axis, ...]
    k: tuple[Axis, ...]
    a: Expr
    b: Expr
    masks: tuple[Expr, ...] = ()
    fn: str = "mul"  # as `Contract.fn`


def contraction(s: Space) -> Contraction | None:
    """The contraction that a space computes, or None."""
    if "_contraction" not in s.__dict__:
        s.__dict__["_contraction"] = _contraction(s)
    found: Contraction | None = s.__dict__["_contraction"]
    return found


def _contraction(s: Space) -> Contraction | None:
    if s.op != "sum" or not s.axes:
        return None
    fn = "mul"
    pair: Pair | None = None
    match s.body:
        case Op(fn="dot4", args=(a, b)):
            fn, pair = "dot4", (a, b, ())
        case e if e.dtype in DTYPES:
            pair = _pair(e, frozenset(a.var for a in s.raxes))
    if pair is None:
        return None
    f, g, masks = pair
    in_f, in_g = _vars(f), _vars(g)
    in_both = [a for a in s.raxes if a.var in in_f & in_g]
    if not in_both or any(a.var not in in_f | in_g for a in s.raxes):
        return None
    sizing = {n for a in (*s.axes, *s.raxes) for n in a.extent.names}
    apart = (in_f & in_g) | sizing
    m = tuple(a for a in s.axes if a.var in in_f - apart)
    n = tuple(a for a in s.axes if a.var in in_g - apart)
    batch = tuple(a for a in s.axes if a.var in apart)
    if len(batch) + len(m) + len(n) < len(s.axes):
        if not m or not n:
            return None
        m, n = _repeated(m, n, batch, s)
    if len(in_both) < len(s.raxes) and (not m or not n):
        return None
    length = dim_prod(a.extent for a in s.raxes).const
    if length is not None and length <= SHORT:
        return None
    if not m or not n:
        f, g, n = (f, g, n) if n else (g, f, m)
        if _chooses(g, batch, n, s):
            return Contraction(batch, (), n, s.raxes, f, g, masks, fn)
        windows = length is not None and length <= LONG and bool(n) and _slides(g, n, s.raxes)
        along = windows and (n[-1] is s.axes[-1] or _walks(g, n[-1], s.axes[-1]))
        return Contraction(batch, (), n, s.raxes, f, g, masks, fn) if along else None
    place = {a.var: i for i, a in enumerate(s.axes)}
    if place[m[-1].var] > place[n[-1].var]:
        m, n, f, g, fn = n, m, g, f, REVERSED[fn]
    if _is_digit(n, m, s):
        m, n, f, g, fn = n, m, g, f, REVERSED[fn]
    return Contraction(batch, m, n, s.raxes, f, g, masks, fn)


Axes = tuple[Axis, ...]


def _repeated(m: Axes, n: Axes, batch: Axes, s: Space) -> tuple[Axes, Axes]:
    """m and n with the axes along which results are the same (those of elements that were pooled),
    each beside the one before it."""
    sides = {a: side for side, axes in enumerate((m, n)) for a in axes}
    held = next(sides[a] for a in s.axes if a in sides)
    found: tuple[list[Axis], list[Axis]] = ([], [])
    for a in s.axes:
        held = sides.get(a, held)
        if a not in batch:
            found[held].append(a)
    return tuple(found[0]), tuple(found[1])


def _is_digit(n: tuple[Axis, ...], m: tuple[Axis, ...], s: Space) -> bool:
    """Whether the last axis is a digit of a few values below one that runs along memory: `y[o, (i,
    u), (j, v)]` over (o, u, v) and (i, j). Results along j are then a few elements apart."""
    few = (n[-1].extent.const or DIGIT + 1) <= DIGIT and len(n) > 1
    return few and m[-1] is s.axes[-2] and (m[-1].extent.const or TURNS + 1) > TURNS


def _chooses(g: Expr, rows: tuple[Axis, ...], n: tuple[Axis, ...], s: Space) -> bool:
    """Whether each row is multiplied by a matrix that data chooses."""
    even = not {x for a in (*s.axes, *s.raxes) for x in a.extent.names if x.startswith("$")}
    along = even and g.dtype in ("f32", "f64") and bool(n) and n[-1] is s.axes[-1]
    return along and chosen(g, (a.var for a in rows)) is not None


def _slides(e: Expr, kept: tuple[Axis, ...], reduced: tuple[Axis, ...]) -> bool:
    """Whether it holds loads through a window: at indices of kept and of reduced variables."""
    return any(
        {a.var for a in kept} & i.dim.names and {a.var for a in reduced} & i.dim.names
        for load in walk(e)
        if isinstance(load, Load) and load.dtype in ("f32", "f64") and load.dtype == e.dtype
        for i in load.index
        if isinstance(i, Idx)
    )


def _walks(e: Expr, along: Axis, last: Axis) -> bool:
    """Whether memory is read along an axis, and not along the last one of the result (of more than
    a few turns)."""
    steps = [(unit_stride(x, along.var), unit_stride(x, last.var)) for x in loads(e)]
    few = (last.extent.const or TURNS + 1) <= TURNS
    return any(a for a, _ in steps) and (few or not any(b for _, b in steps))


def _vars(e: Expr) -> frozenset[str]:
    """Variables of the loops; those of run-time loops (they hold a dot) are like sizes."""
    return frozenset(n for n in names([e]) if n.startswith("$") and "." not in n)


Pair = tuple[Expr, Expr, tuple[Expr, ...]]


def _pair(body: Expr, reduced: frozenset[str]) -> Pair | None:
    """Two factors whose product the body is; further factors join one that has their variables.

    The third part are conditions without reduced variables, which stay outside.
    """
    conditions: list[Expr] = []
    while isinstance(body, Select) and isinstance(body.b, Const) and body.b.value == 0:
        conditions.append(body.cond)
        body = body.a
    parts = [(e, _vars(e)) for e in factors(body)]
    sets = {v for _, v in parts}
    maximal = [v for v in sets if not any(v < w for w in sets)]
    nested = len(maximal) == 1  # m is empty: the others are one factor
    if nested:
        maximal.append(frozenset[str]().union(*sets - {*maximal}))
    if len(maximal) != 2:
        return None
    if not nested:
        maximal.sort(key=lambda v: next(i for i, (_, w) in enumerate(parts) if w == v))
    sides: list[Expr | None] = [None, None]
    for e, v in parts:
        side = 0 if v <= maximal[0] and not (nested and v < maximal[0]) else 1
        old = sides[side]
        sides[side] = e if old is None else Op(e.dtype, "mul", (old, e))
    f, g = sides
    if nested and g is None:
        return None
    assert f is not None and g is not None
    return _guarded((f, maximal[0]), (g, maximal[1]), conditions, reduced)


def _guarded(
    f: tuple[Expr, frozenset[str]],
    g: tuple[Expr, frozenset[str]],
    conditions: list[Expr],
    reduced: frozenset[str],
) -> Pair | None:
    """Conditions move to the factors that have their variables (both, if both have).

    One with variables of its own goes to the factor that has the others.
    """
    (x, xs), (y, ys) = f, g
    masks: list[Expr] = []
    for c in reversed(conditions):
        v = _vars(c)
        if not v & reduced and v <= xs | ys and not v <= xs and not v <= ys:
            masks.append(c)
            continue
        if not v <= xs and not v <= ys:
            if not v & ys <= xs:
                (x, xs), (y, ys) = (y, ys), (x, xs)
            if not v & ys <= xs:
                return None
            xs = xs | v
        x = Select(x.dtype, c, x, const(0, x)) if v <= xs else x
        y = Select(y.dtype, c, y, const(0, y)) if v <= ys else y
    if any(sum(1 for _ in walk(e)) > PROLOGUE for e in (x, y)):
        return None
    return x, y, tuple(masks)


def factors(body: Expr) -> list[Expr]:
    """The factors of a product tree (signs become factors)."""
    out: list[Expr] = []
    stack = [body]
    while stack:
        e = stack.pop()
        match e:
            case Op(fn="mul", args=(a, b)):
                stack += [b, a]
            case Op(fn="neg", args=(a,)):
                out.append(const(-1, e))
                stack.append(a)
            case _:
                out.append(e)
    return out


def unit_stride(e: Load, var: str) -> bool | None:
    """Whether a load walks along memory by 1 with `var`; None when it does not depend on it."""
    if not any(var in names([i]) for i in e.index):
        return None
    *rest, last = e.index
    if any(var in names([i]) for i in rest) or not isinstance(last, Idx):
        return False
    form = last.dim.linear_in(var)
    return form is not None and form[0].const == 1
