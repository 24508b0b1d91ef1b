"""Which accesses lie inside their tensors: ranges of loop variables, facts from conditions, proofs.

The front end turns what is not proved into messages for the user, `verify` into assertions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from nnc.ir.expr import Const, Expr, Idx, Load, Op, Select, children, walk
from nnc.ir.graph import Axis, Compute, Loop, Node, Update
from nnc.lang.dims import (
    ONE,
    ZERO,
    Dim,
    Facts,
    Func,
    Range,
    apply,
    extremes,
    polynomial_quotient,
    prove_nonneg,
)
from nnc.lang.types import is_int

Ranges = Mapping[str, Range]


@dataclass(frozen=True)
class Obligation:
    """`0 <= index < extent` for component `axis` of `load`; what is not proved has its extremes.

    `low`, `high`: the least and greatest index over the loops, None when they have no closed form
    (or when the obligation is met).
    """

    load: Load
    axis: int
    index: Dim
    extent: Dim
    low_ok: bool
    high_ok: bool
    low: Dim | None = None
    high: Dim | None = None

    @property
    def ok(self) -> bool:
        return self.low_ok and self.high_ok


def as_dim(e: Expr) -> Dim | None:
    """The dim polynomial that an index is, or None when it depends on data."""
    if isinstance(e, Idx):
        return e.dim
    if isinstance(e, Const) and is_int(e.dtype):
        return Dim.of(int(e.value))
    return None


def axis_ranges(axes: Iterable[Axis]) -> dict[str, Range]:
    return {a.var: (ZERO, a.extent - 1) for a in axes}


def loop_facts(axes: Iterable[Axis], facts: Facts) -> Facts:
    """Inside the loops every extent is at least 1; a loop to min(p, q) ends below both."""
    axes = tuple(axes)
    known = [a.extent - 1 for a in axes if not a.extent.is_const]
    known += [end - 1 - Dim.of(a.var) for a in axes for end in _ends(a.extent)]
    return facts.plus(*dict.fromkeys(d for d in known if not _positive(d, facts)))


def _ends(d: Dim) -> tuple[Dim, ...]:
    """p and q where d is min(p, q), or max(0, min(p, q)): a turn of the latter shows the former."""
    match d.terms:
        case (((((Func(kind="min") as f), 1),), 1),):
            return f.a, f.b
        case (((((Func(kind="max") as f), 1),), 1),) if ZERO in (f.a, f.b):
            inner = f.b if f.a == ZERO else f.a
            return _ends(inner) or (inner,)
    return ()


def turn_facts(loop: Loop, facts: Facts) -> Facts:
    """Inside a run-time loop: there is a turn, and `var` is less than `trip` (and, like every
    loop variable, not negative)."""
    return facts.plus(loop.trip - 1, loop.trip - 1 - Dim.of(loop.var))


@lru_cache(maxsize=4096)
def _positive(d: Dim, facts: Facts) -> bool:
    return prove_nonneg(d, facts, depth=0)


def prove(p: Dim, facts: Facts, ranges: Ranges) -> bool:
    """As `prove_nonneg`, after a look at a few points: most false claims fail at once."""
    return _proved(p, facts, tuple(ranges.items()))


@lru_cache(maxsize=1 << 14)
def _proved(p: Dim, facts: Facts, bounds: tuple[tuple[str, Range], ...]) -> bool:
    ranges = dict(bounds)
    return not _refuted(p, facts, ranges) and prove_nonneg(p, facts, ranges)


def _refuted(p: Dim, facts: Facts, ranges: Ranges) -> bool:
    """Whether p is negative at one of a few points where all facts hold."""
    known, about = p.names, list[Dim]()
    while True:  # all facts about these names, and about the names in those facts
        ends = (d.names for v, r in ranges.items() if v in known for d in r)
        about = [f for f in facts.nonneg if f.names & known]
        more = known.union(*ends, *(f.names for f in about))
        if more == known:
            break
        known = more
    loops = {v: r for v, r in ranges.items() if v in known}
    if any(d.names & loops.keys() for r in loops.values() for d in r):
        return False  # loops whose lengths depend on others have no corners
    for size in SAMPLE_SIZES:
        env = {n: size + i for i, n in enumerate(sorted(known)) if n not in loops}
        for point in _corners(loops, env):
            if all(f.evaluate(point) >= 0 for f in about) and p.evaluate(point) < 0:
                return True
    return False


SAMPLE_SIZES = (40, 3)


def _corners(loops: Ranges, env: dict[str, int]) -> Iterator[dict[str, int]]:
    """All loops at their ends, and each alone at its other end; none where ends are of loops."""
    if any((low.names | high.names) & loops.keys() for low, high in loops.values()):
        return
    ends = {v: (low.evaluate(env), high.evaluate(env)) for v, (low, high) in loops.items()}
    if any(low > high for low, high in ends.values()):
        return
    for side in (0, 1):
        base = {v: e[side] for v, e in ends.items()}
        yield env | base
        for v, e in ends.items():
            yield env | base | {v: e[1 - side]}


def obligations(exprs: Sequence[Expr], axes: Sequence[Axis], facts: Facts) -> list[Obligation]:
    """Every affine component of every load without `other`, proved or not, in order of the text.

    `axes`: all loops around `exprs` (kept and reduced). A condition of an enclosing `Select` counts
    in its branches. Data-dependent components give nothing: they are checked at run time.
    """
    ranges, inside = axis_ranges(axes), loop_facts(axes, facts)
    known = demands(exprs)
    out: list[Obligation] = []
    for e in walk(*exprs):
        if isinstance(e, Load) and e.other is None:
            out += _of_load(e, inside.plus(*known[id(e)]), ranges)
    return out


def node_obligations(node: Node, facts: Facts, outer: Sequence[Axis] = ()) -> list[Obligation]:
    """`obligations` of all expressions of a node; the target of an Update counts as a load.

    `outer`: the run-time loops around the node.
    """
    match node:
        case Compute(axes=axes, raxes=raxes, body=body):
            return obligations((body,), (*outer, *axes, *raxes), facts)
        case Update(axes=axes, base=base, target=target, value=value, guard=guard):
            axes = (*outer, *axes)
            place = Load(base.type.dtype, base, target, check=node.check)
            if guard is None:
                return obligations((place, value), axes, facts)
            zero = Const(value.dtype, 0)
            sides = (Select(value.dtype, guard, s, zero) for s in (place, value))
            return obligations(tuple(sides), axes, facts)
    return []


def _of_load(load: Load, facts: Facts, ranges: Ranges) -> Iterable[Obligation]:
    for axis, (e, extent) in enumerate(zip(load.index, load.tensor.type.shape, strict=True)):
        index = as_dim(e)
        if index is None or _whole_axis(index, extent, ranges):
            continue
        low_ok = prove(index, facts, ranges)
        high_ok = prove(extent - index - 1, facts, ranges)
        if not (low_ok and high_ok) and (plain := simplify_dim(index, facts, ranges)) != index:
            low_ok = low_ok or prove(plain, facts, ranges)
            high_ok = high_ok or prove(extent - plain - 1, facts, ranges)
        ends = None if low_ok and high_ok else extremes(index, facts, ranges)
        low, high = ends or (None, None)
        yield Obligation(load, axis, index, extent, low_ok, high_ok, low, high)


def _whole_axis(index: Dim, extent: Dim, ranges: Ranges) -> bool:
    """The common case: the component is a loop variable that runs over the axis."""
    return index.name is not None and ranges.get(index.name) == (ZERO, extent - 1)


def demands(roots: Sequence[Expr]) -> dict[int, tuple[Dim, ...]]:
    """For each sub-expression (by id) the dims that are >= 0 wherever it is evaluated."""
    order = list(walk(*roots))
    known: dict[int, tuple[Dim, ...]] = {id(r): () for r in roots}

    def meet(e: Expr, facts: tuple[Dim, ...]) -> None:
        old = known.get(id(e))
        known[id(e)] = facts if old is None else _in_both(old, facts)

    for e in reversed(order):
        here = known[id(e)]
        if isinstance(e, Select):
            meet(e.cond, here)
            meet(e.a, (*here, *condition_facts(e.cond, True)))
            meet(e.b, (*here, *condition_facts(e.cond, False)))
        else:
            for c in children(e):
                meet(c, here)
    return known


def _in_both(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """What follows from each of two lists of facts: of `n - i - 1` and `n - i - 2`, the former."""
    if a == b:
        return a
    either = (*(f for f in a if _follows(f, b)), *(f for f in b if _follows(f, a)))
    return tuple(dict.fromkeys(either))


def _follows(f: Dim, facts: tuple[Dim, ...]) -> bool:
    return f in facts or any(f.names == g.names and ((f - g).const or -1) > 0 for g in facts)


def condition_facts(cond: Expr, holds: bool) -> tuple[Dim, ...]:
    """The dims that are >= 0 where `cond` is true (or false), from its affine comparisons."""
    out: list[Dim] = []
    stack, seen = [(cond, holds)], set[tuple[int, bool]]()
    while stack:
        e, want = stack.pop()
        if (id(e), want) in seen:
            continue
        seen.add((id(e), want))
        match e:
            case Op(fn="not", args=(a,)):
                stack.append((a, not want))
            case Op(fn="and" | "or" as fn, args=args) if (fn == "and") == want:
                stack += [(a, want) for a in reversed(args)]
            case Select(cond=c, a=a, b=Const(value=value)) if value is not want:
                stack += [(a, want), (c, True)]  # "and" (or its negation), evaluated lazily
            case Select(cond=c, a=Const(value=value), b=b) if value is not want:
                stack += [(b, want), (c, False)]
            case Op(fn=fn, args=(a, b)):
                p, q = as_dim(a), as_dim(b)
                if p is not None and q is not None:
                    out += _comparison(fn if want else _NEGATED.get(fn, ""), p, q)
    return tuple(dict.fromkeys(out))


_NEGATED = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt", "eq": "ne", "ne": "eq"}


def _comparison(fn: str, p: Dim, q: Dim) -> tuple[Dim, ...]:
    match fn:
        case "lt":
            return (q - p - 1,)
        case "le":
            return (q - p,)
        case "gt":
            return (p - q - 1,)
        case "ge":
            return (p - q,)
        case "eq":
            return (p - q, q - p)
    return ()


def decide(cond: Expr, facts: Facts, ranges: Ranges) -> bool | None:
    """The value of an affine comparison when it is the same everywhere in the box, else None."""
    match cond:
        case Op(fn=fn, args=(a, b)) if fn in _NEGATED:
            p, q = as_dim(a), as_dim(b)
            if p is None or q is None:
                return None
            for value, name in ((True, fn), (False, _NEGATED[fn])):
                if any(all(prove(d, facts, ranges) for d in way) for way in _ways(name, p, q)):
                    return value
    return None


def _ways(fn: str, p: Dim, q: Dim) -> tuple[tuple[Dim, ...], ...]:
    """A comparison holds when in one of the ways all dims are >= 0."""
    if fn == "ne":
        return (_comparison("lt", p, q), _comparison("gt", p, q))
    return (_comparison(fn, p, q),)


# ---- simplifying with ranges ------------------------------------------------------------------


def simplify_dim(d: Dim, facts: Facts, ranges: Ranges) -> Dim:
    """Removes `//` and `%` where the ranges of the variables allow it: `(8*c + e)//8` is `c`."""
    if not d.functions:
        return d
    return d.mapped(lambda f: Dim.of(f) if isinstance(f, str) else _simplify_func(f, facts, ranges))


def _simplify_func(f: Func, facts: Facts, ranges: Ranges) -> Dim:
    a, b = simplify_dim(f.a, facts, ranges), simplify_dim(f.b, facts, ranges)
    if f.kind in ("floor", "mod") and not b.names & ranges.keys():
        whole, rest = _multiples(a, b)
        if prove(rest, facts, ranges) and prove(b - rest - 1, facts, ranges):
            return whole if f.kind == "floor" else rest
        if f.kind == "mod":
            return rest % b
    return apply(f.kind, a, b)


def _multiples(a: Dim, q: Dim) -> tuple[Dim, Dim]:
    """`(w, r)` with a = q*w + r, taking whole multiples of q out term by term."""
    whole = ZERO
    for mono, c in a.terms:
        if q.const is not None:
            whole = whole + Dim(((mono, 1),)) * (c // q.const)
        else:
            whole = whole + (polynomial_quotient(Dim(((mono, c),)), q) or ZERO)
    return whole, a - q * whole


def strides(extents: Sequence[Dim]) -> list[Dim]:
    """Row-major strides of a shape."""
    out, stride = [], ONE
    for extent in reversed(extents):
        out.append(stride)
        stride = stride * extent
    return out[::-1]
