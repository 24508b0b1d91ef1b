"""What the assertions of a module say of its parameters, for the check of its definition."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from nnc.lang import ast
from nnc.lang.dims import ONE, Dim
from nnc.lang.dims.algebra import Func
from nnc.lang.elaborate.clauses import comparison_facts
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.values import Value, Weak, integer
from nnc.lang.elaborate.walks import syntax


def conjuncts(e: ast.Expr) -> list[ast.Expr]:
    """The parts of `a and b and c`."""
    out: list[ast.Expr] = []
    while isinstance(e, ast.Binary) and e.op == "and":
        out.append(e.right)
        e = e.left
    return [e, *reversed(out)]


def comparisons(cx: Context, cond: ast.Expr) -> Iterator[tuple[str, Dim, Dim]]:
    """The comparisons of sizes that a condition consists of."""
    for part in conjuncts(cond):
        if isinstance(part, ast.Compare):
            left = cx.eval(part.first)
            for op, right_ast in part.rest:
                right = cx.eval(right_ast)
                sizes = [v.dim for v in (left, right) if isinstance(v, Weak)]
                if len(sizes) == 2 and sizes[0] is not None and sizes[1] is not None:
                    yield op, sizes[0], sizes[1]
                left = right


def asserted_facts(cx: Context, cond: ast.Expr) -> list[Dim]:
    """Sizes that are >= 0 where it holds."""
    return [f for op, a, b in comparisons(cx, cond) for f in comparison_facts(op, a, b)]


def apply_equations(cx: Context, defn: ast.ModuleDef, values: dict[str, Value]) -> None:
    """Where assertions say that `k == 2*p + 1` or `k % 2 == 1`, k is that for the definition."""
    for m in defn.members:
        if isinstance(m, ast.Assert) and _of_sizes(m.cond, values):
            for op, a, b in list(comparisons(cx, m.cond)):
                env = _solved(a - b, values) if op == "==" else {}
                for name, value in values.items():
                    if isinstance(value, Weak) and value.dim is not None and env:
                        values[name] = integer(value.dim.subst(env))


def _of_sizes(cond: ast.Expr, values: dict[str, Value]) -> bool:
    """Whether a condition can be evaluated before the members are there."""
    names = [n.id for n in syntax(cond) if isinstance(n, ast.Name)]
    calls = any(isinstance(n, ast.Call | ast.Attr | ast.Index) for n in syntax(cond))
    return not calls and all(isinstance(values.get(n), Weak) for n in names)


def _solved(d: Dim, names: Collection[str]) -> dict[str, Dim]:
    """A parameter for which another size stands where d is 0."""
    for name in reversed(list(names)):
        form = d.linear_in(name)
        if form is not None and form[0] in (ONE, -ONE):
            return {name: -form[1] * form[0]}
    match [(mono[0][0], c) for mono, c in d.terms if mono]:
        case [(Func(kind="mod", a=a, b=b), 1)] if a.name and (b.const or b.name):
            rest = -dict(d.terms).get((), 0)  # `k % 2 - 1`
            return {a.name: (a // b) * b + rest} if 0 <= rest < (b.const or 1) else {}
    return {}


def wanted(p: Dim, q: Dim, names: Collection[str]) -> str | None:
    """What to assert of parameters so that two sizes are equal: `k % 2 == 1`, `k == 2*p + 1`."""
    apart, own = p - q, sorted((p - q).names & set(names))
    for name, value in _solved(apart, own).items() if apart.names <= set(names) else ():
        return f"{name} == {value}"
    for name in own:
        odd = Dim.of(name) // 2 * 2 + 1
        if p.subst({name: odd}) == q.subst({name: odd}):
            return f"{name} % 2 == 1"
    return None
