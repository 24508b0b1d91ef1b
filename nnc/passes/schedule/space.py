"""The loop space of a node: no axes of size 1, axes that stand for a tuple split into its parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

from nnc.ir.bounds import axis_ranges, demands, loop_facts, obligations, prove, simplify_dim
from nnc.ir.expr import Const, Expr, Idx, Load, Op, Select, conjuncts, rewrite, walk
from nnc.ir.form import Result, instance
from nnc.ir.graph import Axis, Compute, Update
from nnc.lang.dims import (
    ONE,
    ZERO,
    Dim,
    Facts,
    dim_max,
    dim_min,
    map_functions,
    polynomial_quotient,
)
from nnc.passes.schedule.circular import plain_reads
from nnc.passes.schedule.every import every

# By reduction: what changes no result.
NEUTRAL = {"sum": 0.0, "prod": 1.0, "max": -math.inf, "min": math.inf, "any": 0.0, "all": 1.0}
SHORT = 8  # a constant extent of so many: loops whose turns differ are unrolled


@dataclass(frozen=True, eq=False)
class Space:
    """A `Compute` or `Update` as loops.

    `index`: for each axis of the node's type (Update: of its target) where iteration `axes` writes.
    `body`: what is evaluated there; `guard`: where an Update writes.
    """

    axes: tuple[Axis, ...]
    raxes: tuple[Axis, ...]
    op: str
    index: tuple[Expr, ...]
    body: Expr
    guard: Expr | None = None

    @property
    def exprs(self) -> tuple[Expr, ...]:
        more = () if self.guard is None else (self.guard,)
        return (self.body, *self.index, *more)

    def homes(self) -> Mapping[str, int]:
        """For each axis variable that is, bare, a component of the index: which one."""
        return self._homes

    @cached_property
    def _homes(self) -> Mapping[str, int]:
        return {
            e.dim.name: d
            for d, e in enumerate(self.index)
            if isinstance(e, Idx) and e.dim.name is not None and e.dim.name.startswith("$")
        }


def space(node: Compute | Update, facts: Facts) -> Space:
    """The loops of a node: found once for all nodes of one form."""
    old: tuple[Facts, Space] | None = node.__dict__.get("_space")
    if old is not None and old[0] is facts:
        return old[1]
    of = node.formed
    head = node.head if isinstance(node, Compute) else node.axes
    key = ("space", head, facts, of.telling)
    found = of.form.memo.get(key)
    if not isinstance(found, _Made):
        made = _space(node, facts)
        found = _Made(made.axes, made.raxes, made.op, Result.over(made.exprs, of))
        of.form.memo[key] = found
    body, *rest = instance(found.exprs.at(of))
    guard = rest.pop() if isinstance(node, Update) and node.guard is not None else None
    made = Space(found.axes, found.raxes, found.op, tuple(rest), body, guard)
    node.__dict__["_space"] = (facts, made)
    return made


@dataclass(frozen=True)
class _Made:
    """The space of a form; `exprs`: those of `Space.exprs`."""

    axes: tuple[Axis, ...]
    raxes: tuple[Axis, ...]
    op: str
    exprs: Result


def _space(node: Compute | Update, facts: Facts) -> Space:
    if isinstance(node, Update):
        raw = Space(node.axes, (), "", node.target, node.value, node.guard)
    else:
        index = tuple(Idx(Dim.of(a.var)) for a in node.axes)
        raw = Space(node.axes, node.raxes, node.op, index, node.body)
    raw = _counted(simplify(raw, facts), node, facts)
    first = _drop_units(_first_only(_shortened(raw, facts)))
    made = _split(first, facts)
    if (phased := _phases(first)) is not first:
        phased = _exact(_split(phased, facts))
        made = phased if _is_inside(phased, node, facts) else made
    made = replace(made, body=plain_reads(made.body, (*made.axes, *made.raxes), facts))
    return made if made.raxes or isinstance(node, Update) else _told_apart_last(made)


def _counted(s: Space, node: Compute | Update, facts: Facts) -> Space:
    """Of a sum of which every Q-th term counts, those."""
    found = every(s.raxes, s.body) if s.op == "sum" else None
    if found is None:
        return s
    made = simplify(replace(s, raxes=found[0], body=found[1]), facts)
    return made if _is_inside(made, node, facts) else s


def told_apart(axes: Sequence[Axis], exprs: Iterable[Expr]) -> list[Axis]:
    """The short axes at whose indices different things are computed: `a if k == 0 else b`.

    Not those on which the length of another one depends.
    """
    lengths = {n for a in axes for n in a.extent.names}
    short = {
        a.var: a for a in axes if (a.extent.const or SHORT + 1) <= SHORT and a.var not in lengths
    }
    out: dict[Axis, None] = {}
    for e in walk(*exprs) if short else ():
        match e:
            case Select(cond=Op(fn="eq", args=(Idx(dim=p), Idx(dim=q)))):
                name = next(iter(p.names | q.names), "")
                if name in short and (p.is_const or q.is_const) and not (p - q - name).names:
                    out[short[name]] = None
    return list(out)


def _told_apart_last(s: Space) -> Space:
    """Such axes inside all others: the values that they choose from are computed once."""
    last = told_apart(s.axes, (s.body,))
    if not last or len(last) == len(s.axes):
        return s
    return replace(s, axes=(*(a for a in s.axes if a not in last), *last))


def _first_only(s: Space) -> Space:
    """The only index inside an axis of size 1 is 0."""

    def one(e: Expr) -> Expr:
        if not isinstance(e, Load) or e.other is not None or e.check is not None:
            return e
        sizes = e.tensor.type.shape
        if ONE not in sizes:
            return e
        pairs = zip(e.index, sizes, strict=True)
        return replace(
            e, index=tuple(Idx(ZERO) if n == ONE and isinstance(i, Idx) else i for i, n in pairs)
        )

    return replace(s, body=rewrite(s.body, one))


def _shortened(s: Space, facts: Facts) -> Space:
    """A reduction of nothing beyond `k*$p + $r < n` ends there: `$r:min(size, n - k*$p)`.

    Where that may be negative it is 0 instead.
    """
    match s.body:
        case Select(cond=Op(fn="lt", args=(Idx(dim=at), Idx(dim=end))), a=body, b=Const(value=v)):
            r = s.raxes[0] if s.raxes else None
            form = at.linear_in(r.var) if r is not None else None
            if r is None or form is None or form[0] != ONE or NEUTRAL.get(s.op) != v:
                return s
            if (end - form[1]).names & {a.var for a in s.raxes}:  # loops further inside
                return s
            extent = dim_min(r.extent, end - form[1])
            outer = axis_ranges(s.axes)
            if not prove(end - form[1], loop_facts(s.axes, facts), outer):
                extent = dim_max(ZERO, extent)
            return replace(s, raxes=(Axis(r.var, extent), *s.raxes[1:]), body=body)
    return s


def _drop_units(s: Space) -> Space:
    env = {a.var: ZERO for a in (*s.axes, *s.raxes) if a.extent == ONE}
    raxes = tuple(a for a in s.raxes if a.extent != ONE)
    if s.raxes and not raxes:
        body = Const("i32", 0) if s.op in ("argmax", "argmin") else s.body
        s = Space(s.axes, (), "", s.index, body, s.guard)
    if not env:
        return s
    axes = tuple(a for a in s.axes if a.extent != ONE)
    s = Space(axes, raxes, s.op, s.index, s.body, s.guard)
    return map_idx(s, lambda d: d.subst(env))


def map_idx(s: Space, fn: Callable[[Dim], Dim]) -> Space:
    """Every index polynomial of the space replaced by `fn` of it."""
    memo: dict[Dim, Dim] = {}

    def one(e: Expr) -> Expr:
        if not isinstance(e, Idx) or e.dim.is_const:
            return e
        if e.dim not in memo:
            memo[e.dim] = fn(e.dim)
        return e if memo[e.dim] is e.dim else Idx(memo[e.dim], e.dtype)

    def go(e: Expr) -> Expr:
        return rewrite(e, one)

    guard = None if s.guard is None else go(s.guard)
    return Space(s.axes, s.raxes, s.op, tuple(map(go, s.index)), go(s.body), guard)


def matched(e: Load, member: Space, s: Space) -> dict[str, Dim] | None:
    """The variables of `s` in those of a member that it reads, if that is one to one."""
    extents = {a.var: a.extent for a in s.axes}
    out: dict[str, Dim] = {}
    for i, place, size in zip(e.index, member.index, e.tensor.type.shape, strict=True):
        if size == ONE:
            continue
        name = i.dim.name if isinstance(i, Idx) else None
        if name is None or extents.get(name) != size or name in out or not isinstance(place, Idx):
            return None
        out[name] = place.dim
    return out if len(out) == len(s.axes) and e.other is None else None


# ---- phases -------------------------------------------------------------------------------------

_NOTHING = Facts()
_PHASES = 8  # strides up to this one


def _phases(s: Space) -> Space:
    """Splits the kept axes `$x` of a sum that is read at `($x + p) // Q` and `($x + p) % Q`.

    `$xl:Q`, which comes first, is the phase; `$xh` counts the elements of that phase, which may be
    one less for the last ones.
    """
    if s.op != "sum":
        return s
    for axis in s.axes:
        q = _stride(s, axis)
        if q is not None:
            s = _cut_phases(s, axis, q)
    return s


def _is_inside(s: Space, node: Compute | Update, facts: Facts) -> bool:
    """Whether all that is read and written can be shown to lie inside."""
    place = Load(node.type.dtype, node, s.index)
    found = obligations((place, s.body), (*s.axes, *s.raxes), facts)
    return all(o.ok or o.load.check is not None for o in found)


def _stride(s: Space, axis: Axis) -> Dim | None:
    """Q: where no plain digits would do."""
    for e in walk(*s.exprs):
        for f in e.dim.all_functions() if isinstance(e, Idx) and axis.var in e.dim.names else ():
            form = f.a.linear_in(axis.var) if f.kind in ("floor", "mod") else None
            if form is None or form[0] != ONE or not 1 < (f.b.const or 0) <= _PHASES:
                continue
            if form[1] != ZERO or polynomial_quotient(axis.extent, f.b) is None:
                return None if _has_var(form[1]) else f.b
    return None


def _cut_phases(s: Space, axis: Axis, q: Dim) -> Space:
    hi, lo = f"{axis.var}h", f"{axis.var}l"
    whole = polynomial_quotient(axis.extent, q)
    count = (axis.extent - lo + q - 1) // q if whole is None else whole
    parts = (Axis(lo, q), Axis(hi, count))
    axes = tuple(p for a in s.axes for p in (parts if a is axis else (a,)))
    return map_idx(replace(s, axes=axes), lambda d: d.subst({axis.var: q * Dim.of(hi) + lo}))


def _exact(s: Space) -> Space:
    """Terms of a sum that a phase does not have: the loops over the others end before them."""
    small = {a.var: a.extent.const or 99 for a in s.axes if a.var.endswith("l")}
    phases = {v: n for v, n in small.items() if n <= _PHASES}
    match s.body:
        case Select(cond=cond, a=body, b=Const(value=0)) if s.op == "sum" and phases:
            pass
        case _:
            return s
    raxes, left = list(s.raxes), list[Expr]()
    for c in conjuncts(cond):
        slack = _slack(c)
        if slack is None or not _shorten(raxes, s.raxes, slack, phases):
            left.append(c)
    for c in reversed(left):
        body = Select(body.dtype, c, body, Const(body.dtype, 0.0))
    return replace(s, raxes=tuple(raxes), body=body)


def _slack(cond: Expr) -> Dim | None:
    """A dim that is not negative exactly where the condition holds."""
    match cond:
        case (
            Op(fn="le", args=(Idx(dim=a), Idx(dim=b))) | Op(fn="ge", args=(Idx(dim=b), Idx(dim=a)))
        ):
            return b - a
        case (
            Op(fn="lt", args=(Idx(dim=a), Idx(dim=b))) | Op(fn="gt", args=(Idx(dim=b), Idx(dim=a)))
        ):
            return b - a - 1
    return None


def _shorten(
    raxes: list[Axis], whole: tuple[Axis, ...], slack: Dim, phases: dict[str, int]
) -> bool:
    """Ends a loop where `slack`, which depends on phases else, gets negative.

    `raxes`: the loops, which were `whole` before.
    """
    inner = [i for i, a in enumerate(raxes) if a.var in slack.names]
    at = inner[0] if inner else 0
    r = raxes[at]
    form = slack.linear_in(r.var)
    if len(inner) > 1 or form is None or not form[1].names <= phases.keys():
        return False
    step = form[0].const
    if step is None or step > 0 or (step == 0) != (not inner):
        return False
    count = form[1] // -step + 1 if step else slack + 1
    count, values = _over(count, phases)
    most = r.extent.const if step else 1
    if most is None or max(values) > most:
        count = dim_min(count, r.extent if step else ONE)
    if min(values) < 0:
        count = dim_max(count, ZERO)
    if not step:  # all of it, or nothing
        count = dim_min(r.extent, count * whole[at].extent)
    elif min(values) <= 0 and at > 0:  # only the outermost loop may be empty: others are divided by
        some = whole[0].extent * dim_min(count, ONE)
        raxes[0] = Axis(raxes[0].var, dim_min(raxes[0].extent, some))
        count = dim_max(count, ONE)
    raxes[at] = Axis(r.var, count)
    return True


def _over(d: Dim, phases: dict[str, int]) -> tuple[Dim, list[int]]:
    """A dim of phases in simpler words, and its values."""
    ranges = {v: (ZERO, Dim.of(n - 1)) for v, n in phases.items()}
    points = product(*(range(n) for n in phases.values()))
    values = [d.evaluate(dict(zip(phases, p, strict=True))) for p in points]
    return simplify_dim(d, _NOTHING, ranges), values


# ---- radix axes ---------------------------------------------------------------------------------


def _split(s: Space, facts: Facts) -> Space:
    """Splits every axis `$x` of size P*Q that is used as `$x // Q` and `$x % Q`."""
    for _ in range(16):
        s = simplify(s, facts)
        found = _radix(s)
        if found is None:
            return s
        s = _split_one(s, *found)
    return s


def _radix(s: Space) -> tuple[Axis, Dim] | None:
    extents = {a.var: a for a in (*s.axes, *s.raxes)}
    for e in walk(*s.exprs):
        for f in e.dim.all_functions() if isinstance(e, Idx) else ():
            axis = extents.get(f.a.name or "")
            if f.kind in ("floor", "mod") and axis is not None and not _has_var(f.b):
                outer = polynomial_quotient(axis.extent, f.b)
                if outer is not None and outer != ONE and f.b != ONE:
                    return axis, f.b
    return None


def _has_var(d: Dim) -> bool:
    return any(n.startswith("$") for n in d.names)


def _split_one(s: Space, axis: Axis, inner: Dim) -> Space:
    outer = polynomial_quotient(axis.extent, inner)
    assert outer is not None
    hi, lo = f"{axis.var}h", f"{axis.var}l"
    parts = (Axis(hi, outer), Axis(lo, inner))

    def cut(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return tuple(p for a in axes for p in (parts if a.var == axis.var else (a,)))

    whole = inner * Dim.of(hi) + lo
    exact = {("floor", inner): Dim.of(hi), ("mod", inner): Dim.of(lo)}

    def one(d: Dim) -> Dim:
        if axis.var not in d.names:
            return d
        return map_functions(
            d, lambda f: exact.get((f.kind, f.b)) if f.a.name == axis.var else None
        ).subst({axis.var: whole})

    s = Space(cut(s.axes), cut(s.raxes), s.op, s.index, s.body, s.guard)
    return map_idx(s, one)


def simplify(s: Space, facts: Facts) -> Space:
    """`//` and `%` that follow from ranges of loops, and conditions around, are removed."""
    if not any(isinstance(e, Idx) and e.dim.functions for e in walk(*s.exprs)):
        return s
    axes = (*s.axes, *s.raxes)
    ranges, inside, known = axis_ranges(axes), loop_facts(axes, facts), demands(s.exprs)

    def one(e: Expr) -> Expr:
        if not isinstance(e, Idx) or not e.dim.functions:
            return e
        dim = simplify_dim(e.dim, inside.plus(*known[id(e)]), ranges)
        return e if dim == e.dim else Idx(dim, e.dtype)

    def go(e: Expr) -> Expr:
        return rewrite(e, one)

    guard = None if s.guard is None else go(s.guard)
    return replace(s, index=tuple(map(go, s.index)), body=go(s.body), guard=guard)
