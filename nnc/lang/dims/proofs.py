"""What is known of sizes, and proofs of `p >= 0` from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import gcd

from nnc.lang.dims.algebra import (
    ZERO,
    Atom,
    Dim,
    Func,
    Mono,
    apply,
    choices,
    make,
    map_functions,
    polynomial_quotient,
)
from nnc.lang.dims.points import holds_at_every_point


@dataclass(frozen=True)
class Facts:
    """What is known of names: `zero` may be 0 (others are at least 1); `nonneg` dims are >= 0."""

    zero: frozenset[str] = frozenset()
    nonneg: tuple[Dim, ...] = ()

    @cached_property
    def _hash(self) -> int:
        return hash((self.zero, self.nonneg))

    def __hash__(self) -> int:
        return self._hash

    def low(self, name: str) -> int:
        return 0 if name in self.zero or name.startswith("$") else 1

    def plus(self, *more: Dim) -> Facts:
        return Facts(self.zero, (*self.nonneg, *more))

    def subst(self, env: Mapping[str, Dim]) -> Facts:
        return Facts(self.zero, tuple(d.subst(env) for d in self.nonneg))


Range = tuple[Dim, Dim]  # inclusive bounds of a loop variable


def prove_nonneg(
    p: Dim, facts: Facts, ranges: Mapping[str, Range] | None = None, depth: int = 2
) -> bool:
    """Whether p >= 0 follows for all sizes (and loop variables in `ranges`); False: not proved."""
    if p.const is not None and p.const >= 0:
        return True
    return _proved(p, facts, tuple(ranges.items()) if ranges else (), depth)


@lru_cache(maxsize=1 << 15)
def _proved(p: Dim, facts: Facts, bounds: tuple[tuple[str, Range], ...], depth: int) -> bool:
    ranges: Mapping[str, Range] = dict(bounds)
    for simpler in (_exact, _whole):
        if found := simpler(p, facts, ranges):
            p, facts, ranges = found
    if _plainly_nonneg(_minimum(p, facts, ranges), facts):
        return True
    if depth > 1 and _divided(p, ranges):
        if _plainly_nonneg(_eliminate(p, facts, ranges, True, True), facts):
            return True
        if _plainly_nonneg(_paired(_minimum(p, facts, ranges)), facts):
            return True
        if cases := _cases(p, ranges):
            return all(_in_case(p, facts, ranges, depth, c) for c in cases)
    if depth == 0:
        return False
    known = (g for f in facts.nonneg for g in dict.fromkeys((f, _reduced(f))))
    rest = [p - f for f in known]
    if any(r.const is not None and r.const >= 0 for r in rest):
        return True
    if any(prove_nonneg(r, facts, ranges, depth - 1) for r in rest):
        return True
    # Each has a quotient less, so they end: no depth is spent.
    if any(prove_nonneg(r, facts, ranges, depth) for r in _without_a_floor(p)):
        return True
    if depth < 2:
        return False
    if _cancelled(p, facts, ranges, _MULTIPLES) or _by_choices(p, facts, ranges, depth):
        return True
    if (end := _at_an_end(p, facts, ranges)) is not None:
        return prove_nonneg(end, facts, ranges, depth)
    return holds_at_every_point(p, facts.nonneg, ranges)


_CHOICES = 4  # of min and max in a claim that is looked at case by case


def _by_choices(p: Dim, facts: Facts, ranges: Mapping[str, Range], depth: int) -> bool:
    """Whether p >= 0 where `min(a, b)` is a, and where it is b."""
    found = list(dict.fromkeys(choices(p)))
    if not found or len(found) > _CHOICES:
        return False
    f = found[0]  # nothing is chosen in it
    less = f.b - f.a if f.kind == "min" else f.a - f.b  # where f is a
    return all(
        prove_nonneg(map_functions(p, {f: value}.get), facts.plus(where), ranges, depth)
        for value, where in ((f.a, less), (f.b, -less))
    )


_MULTIPLES = 4  # facts that are used one after the other


def _at_an_end(p: Dim, facts: Facts, ranges: Mapping[str, Range]) -> Dim | None:
    """The least p over the innermost loop, whose range holds functions of other loops: with them
    p may cancel. None where there is no such loop."""
    name = next(iter(_inner_first(p.names & ranges.keys(), ranges)), "")
    form = p.linear_in(name) if name else None
    if form is None or not any(
        ranges.keys() & (f.a.names | f.b.names) for d in ranges[name] for f in d.functions
    ):
        return None
    rising = _sign(form[0], facts, ranges)
    return None if rising is None else form[0] * ranges[name][not rising] + form[1]


def _cancelled(p: Dim, facts: Facts, ranges: Mapping[str, Range], fuel: int) -> bool:
    """Whether multiples of facts, taken off p, leave what is plainly not negative.

    `7*(i - u) + j - v` where `i - u` and `j - v` are: each fact cancels a loop of p.
    """
    for name in sorted(p.names & ranges.keys()) if fuel else ():
        rests = list(_without(p, name, facts, ranges))
        if any(
            _plainly_nonneg(_minimum(rest, facts, ranges), facts)
            or _cancelled(rest, facts, ranges, fuel - 1)
            for rest in rests
        ):
            return True
        if rests:
            return False
    return False


def _without(p: Dim, name: str, facts: Facts, ranges: Mapping[str, Range]) -> Iterable[Dim]:
    """p less the multiple of a fact that holds as much of a loop."""
    form = p.linear_in(name)
    if form is None:
        return
    for fact in facts.nonneg:
        own = fact.linear_in(name)
        if own is None or not own[0].terms:
            continue
        times = polynomial_quotient(form[0], own[0])
        if times is not None and _sign(times, facts, ranges):
            yield p - times * fact


def _reduced(p: Dim) -> Dim:
    """Not negative exactly where `p` is: `2*a - 1` as `a - 1`."""
    q = gcd(*(c for mono, c in p.terms if mono))
    if q < 2:
        return p
    return make({mono: c // q for mono, c in p.terms})


def _without_a_floor(p: Dim) -> Iterable[Dim]:
    """Claims as good as `p >= 0`: `a//q + r >= 0` is `a + q*r >= 0`, `r - a//q >= 0` is
    `q*r + q - 1 - a >= 0`."""
    for mono, c in p.terms:
        f = _floor(mono)
        if f is not None and abs(c) == 1:
            rest = p - c * Dim.of(f)
            if f not in rest.functions:
                yield f.a + f.b * rest if c > 0 else f.b * rest + f.b - 1 - f.a


_Claim = tuple[Dim, Facts, Mapping[str, Range]]


def _over(
    p: Dim, facts: Facts, ranges: Mapping[str, Range], env: Mapping[str, Dim]
) -> _Claim | None:
    """The claim with other dims for names; None: there are none."""
    if not env:
        return None
    ends = {name: (a.subst(env), b.subst(env)) for name, (a, b) in ranges.items()}
    return p.subst(env), facts.subst(env), ends


def _exact(p: Dim, facts: Facts, ranges: Mapping[str, Range]) -> _Claim | None:
    """Where `T/2` stands, T is `2*(T/2)`; None where no quotient by a number stands."""
    ends = [d for r in ranges.values() for d in r]
    env: dict[str, Dim] = {}
    for f in {f for d in (p, *facts.nonneg, *ends) for f in d.functions if f.kind == "div"}:
        names = sorted(n for n in f.a.names if f.a.linear_in(n) and n not in env)
        form = f.a.linear_in(names[0]) if names and f.b.const is not None else None
        if form is not None and form[0].const == 1:
            env[names[0]] = f.b * f - form[1]
    return _over(p, facts, ranges, env)


def _whole(p: Dim, facts: Facts, ranges: Mapping[str, Range]) -> _Claim | None:
    """K is twice another size where `K % 2` is known to be 0; None where nothing is known so."""
    env: dict[str, Dim] = {}
    zero = set(facts.zero)
    for fact in facts.nonneg:
        match fact.terms:
            case ((((Func(kind="mod", a=a, b=b), 1),), -1),) if (b.const or 0) > 1:
                name = a.name
                if name is not None and not name.startswith("$"):  # loops have ranges
                    part = f"{name}/{b.const}"
                    env[name] = Dim.of(part) * b
                    zero |= {part} if name in facts.zero else set()
    return _over(p, Facts(frozenset(zero), facts.nonneg), ranges, env)


def extremes(p: Dim, facts: Facts, ranges: Mapping[str, Range]) -> tuple[Dim, Dim] | None:
    """Smallest and largest value of an affine p over a box of loop variables, as dims."""
    low, high = _eliminate(p, facts, ranges, True), _eliminate(p, facts, ranges, False)
    return None if low is None or high is None else (low, high)


def _minimum(p: Dim, facts: Facts, ranges: Mapping[str, Range]) -> Dim | None:
    return _eliminate(p, facts, ranges, True)


def _divided(p: Dim, ranges: Mapping[str, Range]) -> bool:
    """Whether a loop in p ends at a quotient."""
    ends = (d for n in p.names for d in ranges.get(n, ()))
    return any(f.kind == "floor" for d in ends for f in d.functions)


def _eliminate(
    p: Dim, facts: Facts, ranges: Mapping[str, Range], low: bool, joined: bool = False
) -> Dim | None:
    """Replaces each loop variable by the end of its range that makes p smallest (or largest).

    `joined`: multiples `n*b*(a//b)` become their bounds `n*a`, from which other terms may cancel.
    """
    for name in _inner_first(p.names & ranges.keys(), ranges):
        if name not in p.names:
            continue
        p = _bound_funcs(_joined(p, name, low) if joined else p, name, facts, ranges, low)
        form = p.linear_in(name)
        if form is None:
            return None
        a, b = form
        lo, hi = ranges[name]
        rising = _sign(a, facts, ranges)
        if rising is None:
            return None
        p = a * (lo if rising == low else hi) + b
    return p


_CASES = 8  # values of a loop that are looked at one by one


def _cases(p: Dim, ranges: Mapping[str, Range]) -> list[dict[str, Dim]]:
    """The values of a short loop on which the end of another one in p depends."""
    for v in sorted(p.names):
        for n in sorted(ranges[v][1].names & ranges.keys() if v in ranges else ()):
            low, high = (d.const for d in ranges[n])
            if low is not None and high is not None and 0 <= high - low < _CASES:
                return [{n: Dim.of(i)} for i in range(low, high + 1)]
    return []


def _in_case(
    p: Dim, facts: Facts, ranges: Mapping[str, Range], depth: int, case: Mapping[str, Dim]
) -> bool:
    inside = {v: (a.subst(case), b.subst(case)) for v, (a, b) in ranges.items() if v not in case}
    return prove_nonneg(p.subst(case), facts.subst(case), inside, depth)


def _inner_first(loops: frozenset[str], ranges: Mapping[str, Range]) -> list[str]:
    """Loops whose ends depend on others before those."""
    order = sorted(loops)
    depends = {v: ranges[v][0].names | ranges[v][1].names for v in order}
    if not any(loops & d for d in depends.values()):
        return order
    out: list[str] = []
    while order:
        free = [v for v in order if not any(v in depends[w] for w in order if w != v)]
        out += free or order
        order = [v for v in order if v not in out]
    return out


def _sign(a: Dim, facts: Facts, ranges: Mapping[str, Range]) -> bool | None:
    """Whether a slope is not negative, or not positive. Facts about loops would lead to claims with
    slopes of their own, without end."""
    if a.const is not None:
        return a.const >= 0
    known = Facts(facts.zero, tuple(f for f in facts.nonneg if not f.names & ranges.keys()))
    if prove_nonneg(a, known, ranges, 1):
        return True
    return False if prove_nonneg(-a, known, ranges, 1) else None


def _bound_funcs(p: Dim, name: str, facts: Facts, ranges: Mapping[str, Range], low: bool) -> Dim:
    """Functions that hold the loop variable are replaced by their bound (floor is monotone)."""
    out = ZERO
    for mono, c in p.terms:
        term = Dim.of(c)
        for atom, n in mono:
            if isinstance(atom, Func) and name in atom.a.names | atom.b.names:
                bound = _func_bound(atom, facts, ranges, low == (c > 0))
                term = term * (bound if bound is not None else Dim(((((atom, n),), 1),)))
            else:
                term = term * Dim(((((atom, n),), 1),))
        out = out + term
    return out


def _joined(p: Dim, name: str, low: bool) -> Dim:
    """A bound of p without the `c * (a // b)` for numbers b that divide c."""
    out = ZERO
    for mono, c in p.terms:
        term = Dim(((mono, c),))
        match mono:
            case ((Func(kind="floor", a=a, b=b), 1),) if b.const and name in a.names:
                if c % b.const == 0:
                    term = c // b.const * (a - b + 1 if low == (c > 0) else a)
        out = out + term
    return out


def _func_bound(f: Func, facts: Facts, ranges: Mapping[str, Range], low: bool) -> Dim | None:
    if f.kind == "mod" and not f.b.names & ranges.keys():
        return ZERO if low else f.b - 1
    a = _eliminate(f.a, facts, ranges, low)
    if f.kind in ("floor", "div"):
        return None if a is None or f.b.names & ranges.keys() else a // f.b
    b = _eliminate(f.b, facts, ranges, low)
    return None if a is None or b is None or f.kind == "mod" else apply(f.kind, a, b)


def _plainly_nonneg(p: Dim | None, facts: Facts, fuel: int = 12) -> bool:
    """Bounds functions one by one, shifts each name to its least value, looks at coefficients."""
    if p is None:
        return False
    if p.const is not None:
        return p.const >= 0
    for mono, c in p.terms:
        for atom, n in mono:
            if isinstance(atom, Func) and atom.kind != "div":
                if n != 1 or fuel == 0:
                    return False
                rest = make({tuple(x for x in mono if x[0] != atom): c})
                others = p - rest * atom
                return _try_bounds(atom, rest, others, facts, fuel - 1)
    return all(c >= 0 for _, c in _shift(p, facts).terms)


def _shift(p: Dim, facts: Facts) -> Dim:
    def one(atom: Atom) -> Dim:
        low = facts.low(atom) if isinstance(atom, str) else _least_quotient(atom, facts)
        return Dim.of(atom) + low

    return p.mapped(one)


def _least_quotient(f: Func, facts: Facts) -> int:
    """An exact quotient of something that is at least 1 is at least 1."""
    return 0 if f.a.names & facts.zero else 1


def _try_bounds(f: Func, rest: Dim, others: Dim, facts: Facts, fuel: int) -> bool:
    """Whether `rest*f + others >= 0`, replacing f by a bound that makes the sum smaller."""

    def good(x: Dim) -> bool:
        return _plainly_nonneg(others + x, facts, fuel)

    rising = _plainly_nonneg(rest, facts, fuel)
    if not rising and not _plainly_nonneg(-rest, facts, fuel):
        return False
    match f.kind:
        case "min":
            tries: Callable[[Iterable[bool]], bool] = all if rising else any
            return tries(good(rest * x) for x in (f.a, f.b))
        case "max":
            tries = any if rising else all
            return tries(good(rest * x) for x in (f.a, f.b))
        case "mod":
            return good(ZERO) if rising else good(rest * (f.b - 1))
    ratio = polynomial_quotient(rest, f.b)
    if ratio is not None:
        return good(ratio * (f.a - f.b + 1 if rising else f.a)) or (
            rising and _plainly_nonneg(f.a, facts, fuel) and good(ZERO)
        )
    if not _plainly_nonneg(f.a, facts, fuel):
        return False
    return good(rest * _least_floor(f, facts)) if rising else good(rest * f.a)


def _paired(p: Dim | None) -> Dim | None:
    """A lower bound of p: `a//q - k*(b//(k*q))` is at least `(a - b)//q`, a number."""
    if p is None:
        return None
    floors = [(f, c) for mono, c in p.terms if (f := _floor(mono)) is not None]
    for f, m in floors:
        for g, n in floors:
            k, rest = divmod(g.b.const or 1, f.b.const or 1)
            apart = (f.a - g.a).const
            if m > 0 > n and not rest and n % k == 0 and apart is not None:
                count = min(m, -n // k)
                return p - count * (Dim.of(f) - k * Dim.of(g)) + count * (apart // (f.b.const or 1))
    return p


def _floor(mono: Mono) -> Func | None:
    match mono:
        case ((Func(kind="floor") as f, 1),) if f.b.const:
            return f
    return None


def _least_floor(f: Func, facts: Facts) -> Dim:
    """A number that `a // q` is at least, for a that is at least 0."""
    terms = dict(_shift(f.a, facts).terms)
    if f.b.const is None or any(isinstance(a, Func) for mono in terms for a, _ in mono):
        return ZERO
    grows = all(c >= 0 for mono, c in terms.items() if mono)
    return Dim.of(max(terms.get((), 0) // f.b.const, 0)) if grows else ZERO
