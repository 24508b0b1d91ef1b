"""`where` clauses and other constraints on sizes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import product

from nnc.diagnostics import Diagnostic, Label, Span
from nnc.lang import ast
from nnc.lang.dims import ONE, Dim
from nnc.lang.elaborate.binding import Binding
from nnc.lang.elaborate.context import Context, Frame
from nnc.lang.elaborate.mistakes import fail
from nnc.lang.elaborate.values import Weak

# Mistakes that may vanish where two sizes are equal.
OF_SIZES = frozenset(
    ("E0301", "E0302", "E0303", "E0304", "E0307", "E0311", "E0312", "E0402", "E0403", "E0406")
)


def states_equality(facts: Sequence[Dim]) -> bool:
    """Whether among facts (`>= 0`) there is a size and its negative, both: it is 0."""
    return any(-f in facts for f in facts)


def vanishes(cx: Context, d: Diagnostic, open_: bool) -> bool:
    """Whether a mistake on one side of a static condition may be none in an instance: where the
    facts in force make its sizes equal, or where numbers may (`open_`: in spite of the facts)."""
    equal = states_equality(cx.facts.nonneg)
    if d.code not in OF_SIZES or not (equal or (open_ and d.sizes)):
        return False
    env = _equalities(cx.facts.nonneg)
    sizes = [(p, q) for p, q in d.sizes if isinstance(p, Dim) and isinstance(q, Dim)]
    pairs = [(p.subst(env), q.subst(env)) for p, q in sizes]
    return all(ONE in (p, q) or _may_be_equal(cx, p, q, open_) for p, q in pairs)


def _equalities(facts: Sequence[Dim]) -> dict[str, Dim]:
    """Names for which other sizes can stand."""
    env: dict[str, Dim] = {}
    for f in facts:
        for name in sorted(f.names) if -f in facts else ():
            form = f.subst(env).linear_in(name)
            if form is not None and form[0] in (ONE, -ONE):
                env[name] = -form[1] * form[0]
                break
    return env


def _may_be_equal(cx: Context, p: Dim, q: Dim, open_: bool) -> bool:
    """Whether two sizes are equal, or are for some numbers that instances have for themselves:
    `H + 2*(k//2) - k + 1` and H, of windows; any sizes where nothing is known of them."""
    apart = p - q
    if cx.proves(apart) and cx.proves(-apart):
        return True
    static = static_sizes(cx.frame)
    plain = (p.names | q.names) <= static and not apart.functions
    return (open_ or not plain) and any(
        p.subst(numbers) == q.subst(numbers) for numbers in _numbers(cx, apart.names & static)
    )


SMALL = 3  # numbers that are tried for each parameter


def _numbers(cx: Context, names: Collection[str]) -> Iterator[dict[str, Dim]]:
    """Small numbers for parameters, of which the facts in force may be true."""
    some = sorted(names)[:4]
    for numbers in product(range(1, SMALL + 1), repeat=len(some)):
        env = dict(zip(some, map(Dim.of, numbers), strict=True))
        if all((f.subst(env).const or 0) >= 0 for f in cx.facts.nonneg):
            yield env


def static_sizes(frame: Frame) -> frozenset[str]:
    """Sizes that are numbers in each instance, or each call: parameters, and `n: dim`."""
    own = frame.module.args.keys() if frame.module is not None else ()
    func = frame.func.params if frame.func is not None else ()
    return frozenset((*own, *(p.name for p in func if getattr(p.type, "name", "") == "dim")))


def where_clauses(b: Binding) -> None:
    """`where Y = ...` defines; `where T <= S` must follow from what the caller knows."""
    for clause in b.func.where:
        if isinstance(clause, ast.WhereDef):
            with b.cx.in_frame(b.frame):
                value = b.cx.eval_dim(clause.value)
            known = b.frame.dims.get(clause.name)
            if known is not None and known != value:
                raise fail(
                    "E0311",
                    f"`{b.shown}` needs {clause.name} = {value}",
                    b.call.span,
                    f"{clause.name} is {known}",
                    (Label(clause.span, "required here"),),
                )
            if value.const is not None and value.const < 0:
                text = f"`{b.shown}` has no room here: {clause.name} = {value}"
                label = (Label(clause.span, "defined here"),)
                raise fail("E0309", text, b.call.span, labels=label)
            b.frame.dims[clause.name] = value
            continue
        for fact, equal, text in constraint(b.cx, b.frame, clause):
            _proved(b, fact, equal, text, clause.span)


def constraint(cx: Context, frame: Frame, clause: ast.Expr) -> Iterator[tuple[Dim, bool, str]]:
    """A where constraint as dims that must be >= 0 (or == 0)."""
    if not isinstance(clause, ast.Compare):
        raise fail("E0311", "a where clause compares or defines sizes", clause.span)
    left = clause.first
    for op, right in clause.rest:
        with cx.in_frame(frame):
            a, c = cx.eval_dim(left), cx.eval_dim(right)
        text = f"{left.span.text} {op} {right.span.text}"
        if op == "==":
            yield a - c, True, text
        elif op == "!=":
            raise fail("E0311", "`!=` cannot be required of sizes", clause.span)
        else:
            for fact in comparison_facts(op, a, c):
                yield fact, False, text
        left = right


def _proved(b: Binding, fact: Dim, equal: bool, text: str, place: Span) -> None:
    cx = b.cx
    fine = cx.proves(fact) and (not equal or cx.proves(-fact))
    if fine:
        return
    false = cx.proves(-fact - 1) or (equal and fact.const is not None)
    says = "does not hold" if false else "does not follow from what is known here"
    clause, inside = in_own_names(cx, f"{fact} {'==' if equal else '>='} 0", fact)
    cure = f"`assert {clause}` in the module" if inside else f"`where {clause}` in the signature"
    raise fail(
        "E0311",
        f"`{b.shown}` needs {text}, which {says}",
        b.call.span,
        f"here: {clause}",
        (Label(place, "required here"),),
        help=None if false else f"{cure} of the caller would say so",
    )


def in_own_names(cx: Context, text: str, fact: Dim) -> tuple[str, bool]:
    """A condition with the caller's own names for quotients and the like (`K` for `D/H`); whether
    it is about parameters of the caller's module only."""
    module = cx.frame.module
    if module is None:
        return text, False
    sizes = {n: v.dim for n, v in module.args.items() if isinstance(v, Weak) and v.dim is not None}
    for name, size in sorted(sizes.items(), key=lambda x: -len(str(x[1]))):
        if size.const is None and size.name is None:
            text = text.replace(f"({size})", name).replace(str(size), name)
    own = {n for size in sizes.values() for n in size.names}
    return text, bool(fact.names) and fact.names <= own


def comparison_facts(op: str, a: Dim, b: Dim) -> list[Dim]:
    """The inequalities (`>= 0`) that `a op b` states."""
    match op:
        case "<=":
            return [b - a]
        case "<":
            return [b - a - 1]
        case ">=":
            return [a - b]
        case ">":
            return [a - b - 1]
        case "==":
            return [a - b, b - a]
    return []
