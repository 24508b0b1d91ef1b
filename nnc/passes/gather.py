"""Turns a read round: for `T[e(v)]` in loops v, which v read the element `T[m]`?

`solve` answers with a loop nest over m: some variables are functions of m, under conditions, the
others stay loops. Bare components are renamed, radix forms (`c*K + e`) are split into digits, other
affine components (`i*s + u*d - p`) are solved for one variable; a data-dependent one becomes a
condition when nothing else is left to loop over. None: there is no such form: the caller scatters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from nnc.ir.bounds import Ranges, as_dim, axis_ranges, loop_facts, prove, simplify_dim
from nnc.ir.expr import Expr, Idx, Load, as_dtype, rewrite, subst
from nnc.ir.graph import Axis
from nnc.ir.scalar import op
from nnc.lang.dims import ONE, ZERO, Dim, Facts, Func, dim_sum, polynomial_quotient, prove_nonneg


@dataclass(frozen=True)
class Condition:
    """Must hold for the element to be read; `var`: it says that this variable is in range."""

    expr: Expr
    var: str = ""


@dataclass(frozen=True)
class Gather:
    """`axes` run over the elements of T, `raxes` are what remains of the reader's loops.

    `digits` replace loop variables of the reader by sums of digits first, then `solved` gives
    variables as functions of the axes and raxes. `conditions` in the order of evaluation.
    """

    axes: tuple[Axis, ...]
    raxes: tuple[Axis, ...]
    digits: Mapping[str, Dim]
    solved: Mapping[str, Dim]
    conditions: tuple[Condition, ...]
    ranges: Ranges
    facts: Facts
    implied: tuple[Func, ...] = ()  # `a % q` that are 0 in all solutions

    def apply(self, e: Expr) -> Expr:
        """An expression of the reader's loops in terms of the gather's."""
        return subst(into_digits(e, self.digits, self.ranges, self.facts), self.solved)


def solve(
    load: Load, axes: Sequence[Axis], facts: Facts, multiples: Sequence[Func] = ()
) -> Gather | None:
    """The gather for `load` inside `axes`, or None.

    `multiples`: `a % q` that are 0 wherever it reads.
    """
    exact = _divisions(load, multiples)
    split = _split_variables(load, axes, exact)
    digits: dict[str, Dim] = {v: s.value for v, s in split.items()}
    loops = [b for a in axes for b in (split[a.var].axes if a.var in split else (a,))]
    taken = {a.var for a in (*axes, *loops)}
    search = _Search(loops, facts, axis_ranges(loops), taken, exact)
    for v, s in split.items():
        if not s.exact:
            extent = next(a.extent for a in axes if a.var == v)
            search.late.append(Condition(op("lt", Idx(s.value), Idx(extent))))
    index = [into_digits(e, digits, search.ranges, facts) for e in load.index]
    return search.gather(index, load, digits)


def into_digits(e: Expr, digits: Mapping[str, Dim], ranges: Ranges, facts: Facts) -> Expr:
    """Replaces variables by their digits; `//` and `%` of them then vanish."""
    if not digits:
        return e

    def one(x: Expr) -> Expr:
        if isinstance(x, Idx) and x.dim.names & digits.keys():
            return Idx(simplify_dim(x.dim.subst(digits), facts, ranges))
        return x

    return rewrite(e, one)


@dataclass
class _Search:
    """The state of one solution: loops not yet solved, what is solved, under which conditions."""

    loops: list[Axis]
    facts: Facts
    ranges: dict[str, tuple[Dim, Dim]]
    taken: set[str]
    exact: Mapping[Func, Func]  # divisions without a remainder
    late: list[Condition] = field(default_factory=list)
    axes: dict[int, Axis] = field(default_factory=dict)
    solved: dict[str, Dim] = field(default_factory=dict)
    conditions: list[Condition] = field(default_factory=list)

    @property
    def open(self) -> dict[str, Axis]:
        """The variables not yet solved."""
        renamed = {a.var for a in self.axes.values()}
        return {a.var: a for a in self.loops if a.var not in self.solved and a.var not in renamed}

    def gather(self, index: Sequence[Expr], load: Load, digits: Mapping[str, Dim]) -> Gather | None:
        shape = load.tensor.type.shape
        affine = {j: d for j, e in enumerate(index) if (d := as_dim(e)) is not None}
        rest = [j for j in affine if not self._bare(j, affine[j], shape[j])]
        for j in range(len(shape)):
            self.axes.setdefault(j, self._fresh(j, shape[j]))
        extents = {a.var: a.extent for a in self.axes.values()}
        self.ranges |= axis_ranges(self.axes.values())
        self.facts = loop_facts(self.axes.values(), self.facts)
        while rest:
            rest.sort(key=lambda j: len(self._now(affine[j]).names & self.open.keys()))
            j = rest.pop(0)
            scale, d = _cleared(affine[j], self.exact)
            if scale == ONE and self._around(Dim.of(self.axes[j].var), self._now(d), shape[j]):
                continue
            extent = shape[j] if scale == ONE and load.other is None else None
            if not self._affine(scale * Dim.of(self.axes[j].var), self._now(d), extent):
                return None
        data = [j for j in range(len(shape)) if j not in affine]
        if data and self.open:
            return None
        for j in data:
            at, m = subst(index[j], self.solved), Idx(Dim.of(self.axes[j].var))
            self.late.append(Condition(op("eq", as_dtype(at, "i64"), m)))
        both = (*self.conditions, *self.late)  # of variables that may have been solved for since
        conditions = tuple(replace(c, expr=subst(c.expr, self.solved)) for c in both)
        assert len(extents) == len(shape), load
        return Gather(
            tuple(self.axes[j] for j in range(len(shape))),
            tuple(self.open.values()),
            digits,
            self.solved,
            conditions,
            self.ranges,
            self.facts,
            tuple(self.exact.values()),
        )

    def _now(self, d: Dim) -> Dim:
        return d.subst(self.solved)

    def _fresh(self, j: int, extent: Dim) -> Axis:
        name = f"$m{j}"
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return Axis(name, extent)

    def _bare(self, j: int, d: Dim, extent: Dim) -> bool:
        """A component that is a loop variable not met before keeps its name."""
        loop = self.open.get(d.name or "")
        if loop is None:
            return False
        self.axes[j] = Axis(loop.var, extent)
        self.ranges[loop.var] = (ZERO, extent - 1)
        if loop.extent != extent:
            self._require(Dim.of(loop.var), loop)
        return True

    def _require(self, value: Dim, loop: Axis) -> None:
        """The variable `loop` with this value must be in its range."""
        value = simplify_dim(value, self.facts, self.ranges)
        last = loop.extent - 1
        if not prove(value, self.facts, self.ranges):
            self.conditions.append(Condition(op("ge", Idx(value), Idx(ZERO)), loop.var))
        if not prove(last - value, self.facts, self.ranges):
            self.conditions.append(Condition(op("le", Idx(value), Idx(last)), loop.var))

    def _solve_for(self, loop: Axis, value: Dim) -> None:
        value = simplify_dim(value, self.facts, self.ranges)
        self._require(value, loop)
        self.solved = {v: d.subst({loop.var: value}) for v, d in self.solved.items()}
        self.solved[loop.var] = value

    def _affine(self, target: Dim, d: Dim, extent: Dim | None) -> bool:
        """Solves `target == d` for open variables; False when d is not linear in them.

        `extent`: of the axis, if nothing outside of it is read.
        """
        terms: list[tuple[Dim, Axis]] = []
        for name in sorted(d.names & self.open.keys()):
            form = d.linear_in(name)
            if form is None or form[0].names & self.open.keys():
                return False
            terms.append((form[0], self.open[name]))
            d = form[1]
        target = target - d
        if not terms:
            if extent != ONE:
                self.conditions.append(Condition(op("eq", Idx(target), Idx(ZERO))))
            return True
        return self._digits(target, terms)

    def _around(self, target: Dim, d: Dim, extent: Dim) -> bool:
        """Solves `target == (rest + v) % q` for a loop v of q turns: each element is read by one of
        them. (Other loops stay.) False: it is not of that form."""
        match d.terms:
            case ((((Func(kind="mod", a=a, b=q), 1),), 1),) if q == extent:
                forms = ((v, a.linear_in(v.var)) for v in self.open.values() if v.extent == q)
                for v, form in forms:
                    if form is not None and form[0] in (ONE, -ONE):
                        self._solve_for(v, (target - form[1]) * form[0] % q)
                        return True
        return False

    def _digits(self, target: Dim, terms: list[tuple[Dim, Axis]]) -> bool:
        """Peels leading digits off `target == sum a*v`, then solves the rest for one variable."""
        if self._backwards(target, terms):
            return True
        while len(terms) > 1:
            top = next((t for t in terms if self._is_leading(t, terms)), None)
            if top is None:
                break
            self._solve_for(top[1], target // top[0])
            target = target % top[0]
            terms = [t for t in terms if t is not top]
        steps = [self.loops.index(v) for a, v in terms if a == ONE and v.extent.const]
        a, loop = max(terms, key=lambda t: self._rank(t, steps))
        rest = [t for t in terms if t[1] is not loop]
        step = next((v for b, v in rest if b == ONE and v.extent.const), None)
        if step is not None and (a.const or 0) > 1:
            others = dim_sum(b * Dim.of(v.var) for b, v in rest if v is not step)
            self._phases(target - others, a, loop, step)
            return True
        others = dim_sum(b * Dim.of(v.var) for b, v in rest)
        return self._one(target - others, a, loop)

    def _backwards(self, target: Dim, terms: list[tuple[Dim, Axis]]) -> bool:
        """Digits of which some are counted down, `2*u + 1 - p`: solved for those that count up.

        False: there are none, or they are no digits.
        """
        down = {v for a, v in terms if (a.const or 0) < 0}
        if not down or len(terms) < 2:
            return False
        for a, v in terms:
            if v in down:
                target = target - a * (v.extent - 1)
        up = [(-a if v in down else a, v) for a, v in terms]
        values: dict[str, tuple[Axis, Dim]] = {}
        while len(up) > 1:
            top = next((t for t in up if self._is_leading(t, up)), None)
            if top is None:
                return False
            values[top[1].var] = top[1], target // top[0]
            target = target % top[0]
            up = [t for t in up if t is not top]
        if up[0][0] != ONE:
            return False
        values[up[0][1].var] = up[0][1], target
        for loop, value in values.values():
            self._solve_for(loop, loop.extent - 1 - value if loop in down else value)
        return True

    def _phases(self, target: Dim, a: Dim, loop: Axis, step: Axis) -> None:
        """`a * v + u == target`: u is one of each a values, `target % a + a * t`; t stays a loop.

        (A strided window: no element asks the outputs whose windows pass it by.)
        """
        name = f"{step.var}_"
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        t = Axis(name, (step.extent + a - 1) // a)
        self.loops.insert(self.loops.index(step), t)
        self.ranges[name] = (ZERO, t.extent - 1)
        self._solve_for(step, target % a + a * Dim.of(name))
        self._solve_for(loop, target // a - name)

    def _is_leading(self, top: tuple[Dim, Axis], terms: Iterable[tuple[Dim, Axis]]) -> bool:
        """Whether all other terms together stay in 0..a-1."""
        rest = ZERO
        for a, v in terms:
            if v is not top[1]:
                if not prove_nonneg(a, self.facts):
                    return False
                rest = rest + a * (v.extent - 1)
        return prove(top[0] - 1 - rest, self.facts, {})

    def _rank(self, term: tuple[Dim, Axis], steps: Sequence[int]) -> tuple[bool, int, int]:
        """Solving for the longest loop leaves the least work; among equals, for the outermost.
        Solving for a loop of stride a leaves one of a steps inside of it (`_phases`)."""
        a, loop = term
        extent, at = loop.extent.const, self.loops.index(loop)
        stride = max(a.const or 1, 1) if any(s > at for s in steps) else 1
        return extent is None, (extent or 0) * stride, -at

    def _one(self, target: Dim, a: Dim, loop: Axis) -> bool:
        """`a * v == target`."""
        if prove_nonneg(-a, self.facts):
            a, target = -a, -target
        if not prove_nonneg(a - 1, self.facts):
            return False
        if a != ONE:
            rest = simplify_dim(target % a, self.facts, self.ranges)
            if rest != ZERO:
                self.conditions.append(Condition(op("eq", Idx(rest), Idx(ZERO))))
        self._solve_for(loop, target // a)
        return True


# ---- divisions without a remainder ---------------------------------------------------------


def _divisions(load: Load, multiples: Sequence[Func]) -> dict[Func, Func]:
    """The `a // q` in the index for which one of the `multiples` says that nothing remains.

    Only where the index says so too: `t == a//q + rest` has `a == q*(t - rest)`, but `q*t == q*a`
    has solutions with a remainder.
    """
    out: dict[Func, Func] = {}
    for d in filter(None, map(as_dim, load.index)) if multiples else ():
        for f in d.functions:
            said = (m for m in multiples if _same_remainder(f, m))
            apart = _apart(d, f) if f.kind == "floor" else None
            if apart is not None and abs(apart[0]) == 1 and (m := next(said, None)):
                out[f] = m
    return out


def _same_remainder(f: Func, m: Func) -> bool:
    return f.b == m.b and polynomial_quotient(f.a - m.a, f.b) is not None


def _apart(d: Dim, f: Func) -> tuple[int, Dim] | None:
    """(c, rest) with `d == c*f + rest`."""
    c = next((c for mono, c in d.terms if mono == ((f, 1),)), 0)
    rest = d - c * Dim.of(f)
    return None if not c or f in rest.all_functions() else (c, rest)


def _cleared(d: Dim, exact: Mapping[Func, Func]) -> tuple[Dim, Dim]:
    """(q, q*d) without such divisions."""
    scale = ONE
    for f in d.functions:
        found = _apart(d, f) if f in exact else None
        if found is not None:
            scale, d = scale * f.b, found[0] * f.a + f.b * found[1]
    return scale, d


# ---- variables read through // and % -----------------------------------------------------


@dataclass(frozen=True)
class _Digits:
    """A loop variable as a sum of digits; `exact`: the digits run over its range and no more."""

    value: Dim
    axes: tuple[Axis, ...]
    exact: bool


def _split_variables(
    load: Load, axes: Sequence[Axis], exact: Mapping[Func, Func]
) -> dict[str, _Digits]:
    """Digits for the variables that the index reads through `v//Q` and `v%Q`."""
    dims = [d for e in load.index if (d := as_dim(e)) is not None]
    funcs = [f for d in dims for f in d.all_functions() if f not in exact]
    out: dict[str, _Digits] = {}
    for a in axes:
        mine = [f for f in funcs if a.var in f.a.names | f.b.names]
        chain = _chain([q for f in mine for q in _radices(f, a.var)]) if mine else None
        if chain:
            out[a.var] = _digits_of(a, chain)
    return out


def _radices(f: Func, var: str) -> list[Dim]:
    """The radices with which `f` takes digits of the variable."""
    if f.kind not in ("floor", "mod"):
        return []
    if f.a.name == var:
        return [f.b]
    match f.a.functions:
        case [Func(kind="floor") as g] if f.kind == "mod" and g.a.name == var and f.a == Dim.of(g):
            return [g.b, g.b * f.b]
    return []


def _chain(radices: Sequence[Dim]) -> list[Dim] | None:
    """The radices in ascending order when each divides the next."""
    out: list[Dim] = []
    for q in dict.fromkeys(radices):
        if q == ONE:
            continue
        at = sum(polynomial_quotient(q, p) is not None for p in out)
        out.insert(at, q)
    pairs = pairwise(out)
    return out if all(polynomial_quotient(q, p) is not None for p, q in pairs) else None


def _digits_of(axis: Axis, chain: Sequence[Dim]) -> _Digits:
    top = chain[-1]
    whole = polynomial_quotient(axis.extent, top)
    extents = [chain[0]]
    for p, q in pairwise(chain):
        extents.append(polynomial_quotient(q, p) or ONE)
    extents.append((axis.extent + top - 1) // top if whole is None else whole)
    parts = [Axis(f"{axis.var}_{i}", e) for i, e in enumerate(extents)]
    value = dim_sum(q * Dim.of(p.var) for q, p in zip((ONE, *chain), parts, strict=True))
    return _Digits(value, tuple(reversed(parts)), whole is not None)
