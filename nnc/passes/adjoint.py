"""Reverse mode over one scalar expression: what each load contributes, and where.

A contribution inside a branch of a `Select` is guarded by its condition, never multiplied by zero,
so that nothing of an untaken branch (a log of 0, an index outside) is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from nnc.ir.dependence import flows, live
from nnc.ir.expr import Const, Expr, Idx, Load, Op, Select, as_dtype, walk
from nnc.ir.scalar import SCALARS, add, const, is_const, mul, neg, op, select
from nnc.lang.dims import ZERO, Dim


@dataclass(frozen=True, eq=False)
class Guard:
    """Inside `outer`, where `cond` is `holds`. None stands for everywhere."""

    outer: Guard | None
    cond: Expr
    holds: bool

    def chain(self) -> list[Guard]:
        """This guard and those around it, innermost first."""
        out: list[Guard] = []
        g: Guard | None = self
        while g is not None:
            out.append(g)
            g = g.outer
        return out


@dataclass(frozen=True)
class Term:
    """A cotangent: `value` where `guard` holds, zero elsewhere."""

    guard: Guard | None
    value: Expr


@dataclass(frozen=True)
class Contribution:
    """The cotangent that a load gets from the expression."""

    load: Load
    term: Term


def adjoints(
    root: Expr, seed: Term, wanted: Callable[[Load], bool], result: Expr | None = None
) -> list[Contribution]:
    """The contributions to all wanted loads, given the cotangent of the root.

    `result`: an expression with the value of the root that is cheaper than the root (a load of what
    was computed).
    """
    order = list(walk(root))
    keep = live(root, order, wanted)
    pending: dict[int, list[Term]] = {id(root): [seed]}
    out: list[Contribution] = []
    for e in reversed(order):
        if id(e) not in keep or id(e) not in pending:
            continue
        term = merge(pending.pop(id(e)))
        if isinstance(e, Load) and wanted(e):
            out.append(Contribution(e, term))
        value = result if e is root and result is not None else e
        for operand, part in _pull(e, value, term):
            if id(operand) in keep and not is_const(part.value, 0):
                pending.setdefault(id(operand), []).append(part)
    return out[::-1]


def _pull(e: Expr, value: Expr, term: Term) -> Iterator[tuple[Expr, Term]]:
    """The cotangents of the operands of `e`; `value` stands for its value."""
    match e:
        case Select(cond=c, a=a, b=b):
            yield a, Term(Guard(term.guard, c, True), term.value)
            yield b, Term(Guard(term.guard, c, False), term.value)
        case Load(other=other) if other is not None:
            yield other, Term(Guard(term.guard, inside(e), False), term.value)
        case Op(fn="cast", args=(a,)):
            yield a, Term(term.guard, as_dtype(term.value, a.dtype))
        case Op(fn=fn, args=args):
            rule = SCALARS[fn].partials
            through = {id(c) for c in flows(e)}
            for operand, d in zip(args, rule(args, value) if rule else (), strict=bool(rule)):
                if d is not None and id(operand) in through:
                    yield operand, _times(term, d)


def _times(term: Term, d: Expr) -> Term:
    """Cotangent times derivative; a derivative that is zero in some places becomes a guard."""
    match d:
        case Select(cond=c, a=a, b=b) if is_const(b, 0):
            return _times(Term(Guard(term.guard, c, True), term.value), a)
        case Select(cond=c, a=a, b=b) if is_const(a, 0):
            return _times(Term(Guard(term.guard, c, False), term.value), b)
    if is_const(d, 0):
        return Term(term.guard, d)
    return Term(term.guard, neg(term.value) if is_const(d, -1) else mul(term.value, d))


def inside(load: Load) -> Expr:
    """The condition that every component of the index is inside the tensor."""
    out: Expr | None = None
    for e, extent in zip(load.index, load.tensor.type.shape, strict=True):
        at = e if isinstance(e, Idx) else as_dtype(e, "i64")
        for c in (op("ge", at, Idx(ZERO)), op("lt", at, Idx(extent))):
            out = c if out is None else op("and", out, c)
    return Const("bool", True) if out is None else out


def condition(guard: Guard | None) -> Expr | None:
    """The guard as one lazy condition; None when it always holds."""
    return None if guard is None else _holds(guard.chain())


def guarded(term: Term, outer: Guard | None = None) -> Expr:
    """The cotangent where `outer` holds as one expression, zero outside its guard."""
    value, zero = term.value, const(0, term.value)
    guard = term.guard
    while guard is not outer:
        assert guard is not None
        value = select(guard.cond, *((value, zero) if guard.holds else (zero, value)))
        guard = guard.outer
    return value


def merge(terms: Sequence[Term]) -> Term:
    """The sum of terms under one guard that covers them all."""
    todo = list(terms) if len(terms) == 1 else _both_branches(_same_guards(terms))
    if len(todo) == 1:
        return todo[0]
    outer = _common([t.guard for t in todo])
    value = guarded(todo[0], outer)
    for t in todo[1:]:
        value = add(value, guarded(t, outer))
    if any(t.guard is outer for t in todo):
        return Term(outer, value)
    either: Expr | None = None
    for t in todo:
        assert t.guard is not None
        chain = t.guard.chain()
        c = _holds(chain[: chain.index(outer)] if outer is not None else chain)
        either = c if either is None else op("or", either, c)
    assert either is not None
    return Term(Guard(outer, either, True), value)


def _same_guards(terms: Sequence[Term]) -> list[Term]:
    sums: dict[Guard | None, Expr] = {}
    for t in terms:
        sums[t.guard] = add(sums[t.guard], t.value) if t.guard in sums else t.value
    return [Term(g, v) for g, v in sums.items()]


def _both_branches(terms: list[Term]) -> list[Term]:
    """Two terms under the two branches of one condition become one without it."""
    found: dict[tuple[int, int], Term] = {}
    out: list[Term] = []
    todo = sorted(terms, key=lambda t: -len(t.guard.chain()) if t.guard else 0)
    while todo:
        t = todo.pop(0)
        key = (id(t.guard.outer), id(t.guard.cond)) if t.guard else (0, 0)
        mate = found.pop(key, None) if t.guard else None
        if (
            mate is None
            or mate.guard is None
            or t.guard is None
            or mate.guard.holds == t.guard.holds
        ):
            found[key] = t
            out.append(t)
            continue
        out.remove(mate)
        a, b = (t, mate) if t.guard.holds else (mate, t)
        todo.insert(0, Term(t.guard.outer, select(t.guard.cond, a.value, b.value)))
        todo = _same_guards(todo)
    return _same_guards(out)


def _holds(chain: Sequence[Guard]) -> Expr:
    """All guards of a chain (innermost first), each evaluated only inside those around it."""
    out: Expr | None = None
    for g in chain:
        cond = g.cond if g.holds else op("not", g.cond)
        out = cond if out is None else select(cond, out, Const("bool", False))
    assert out is not None
    return out


def _common(guards: Sequence[Guard | None]) -> Guard | None:
    """The innermost guard around all."""
    chains = [[] if g is None else g.chain()[::-1] for g in guards]
    common: Guard | None = None
    for level in zip(*chains, strict=False):
        if any(g is not level[0] for g in level):
            break
        common = level[0]
    return common


def equal(pairs: Sequence[tuple[Dim, Dim]]) -> Expr:
    """All pairs of indices agree."""
    out: Expr | None = None
    for a, b in pairs:
        c = op("eq", Idx(a), Idx(b))
        out = c if out is None else op("and", out, c)
    return Const("bool", True) if out is None else out
