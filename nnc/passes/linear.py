"""Linear functions of sums of bytes: one multiply-add for each value that they are made of.

What stands between a sum of bytes and the next bytes is often `(f32(s - offset[o]) * scale[o] -
mean[o]) * factor[o] + bias[o]`, a residual, and `round(max(0, y) * input[0] + input[1])`. All of it
but the maximum is linear, with numbers that depend on the channel alone:

    round(max(z, fma(f32(s), p[o], fma(f32(byte), q, r[o]))))

A maximum or minimum with a number moves outwards past a factor that is known to be positive. What
p, q, r and z are computed from stays in the expression: code generation takes it out of the loops.
Results are rounded differently than the program says; this is only done to contractions on bytes,
which round more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import inf

from nnc.ir.expr import (
    Const,
    Expr,
    Idx,
    Load,
    Op,
    children,
    joined_by,
    loads,
    names,
    rewrite,
    subst_exprs,
    walk,
    with_children,
)
from nnc.ir.graph import Compute, Graph, Node, users
from nnc.ir.rewrite import replace_operands, with_roots
from nnc.ir.scalar import add, is_const, mul, op, sub

Positive = Callable[[Load], bool]


def folded(graph: Graph, starts: Mapping[Node, frozenset[int]], positive: Positive) -> Graph:
    """The graph with what is computed from some integers as multiply-adds.

    `starts`: sums of words, with their axes that are channels, and bytes; `positive`: whether a
    load is known to be a number above zero.
    """
    readers, roots = users(graph.roots), set(graph.roots)
    new: dict[Node, Node] = {}
    channels: dict[Node, frozenset[int]] = {}
    joined: set[Node] = set()  # those that become part of what reads them
    for node in graph.order:
        made = replace_operands(node, new.__getitem__)
        if isinstance(made, Compute) and not made.raxes:
            inner = [o for o in made.read if o in joined]
            if inner or any(o in channels for o in made.read):
                made = replace(made, body=rewrite(made.body, lambda e: _inside(e, joined)))
                if node not in roots and _once(node, readers[node]):
                    joined.add(made)
                else:
                    made = _multiplied_out(made, channels, positive)
        if node in starts:
            channels[made] = starts[node]
        new[node] = made
    return with_roots(graph, [new[r] for r in graph.roots])


def _once(node: Node, readers: Iterable[Node]) -> bool:
    """Whether one value reads the node, f32, each element once."""
    match list(readers):
        case [Compute(raxes=()) as reader] if not node.after and node.type.dtype == "f32":
            found = [e for e in loads(reader.body) if e.tensor is node]
            used = [i.dim.name for e in found for i in e.index if isinstance(i, Idx)]
            plain = all(e.other is None and e.check is None for e in found)
            return (
                len(found) == 1
                and plain
                and sorted(map(str, used)) == sorted(a.var for a in reader.axes)
            )
    return False


def _inside(e: Expr, joined: set[Node]) -> Expr:
    if not isinstance(e, Load) or e.tensor not in joined:
        return e
    assert isinstance(e.tensor, Compute), e
    return subst_exprs(
        e.tensor.body, dict(zip((a.var for a in e.tensor.axes), e.index, strict=True))
    )


# ---- forms -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Form:
    """min or max with numbers, in order, of a number and the sum of terms with their factors (None:
    1). Numbers do not depend on more than the channel."""

    terms: tuple[tuple[Expr, Expr | None], ...]
    number: Expr | None
    clamps: tuple[tuple[str, Expr], ...] = ()

    @property
    def is_number(self) -> bool:
        return not self.terms and not self.clamps


def _multiplied_out(
    node: Compute, channels: Mapping[Node, frozenset[int]], positive: Positive
) -> Compute:
    found = [e for e in loads(node.body) if e.tensor in channels]
    mine = names(e.index[d] for e in found for d in channels[e.tensor])  # type: ignore[index]
    work = _Work({a.var for a in node.axes} - mine, positive)
    return replace(node, body=work.whole(node.body))


class _Work:
    """Forms of the parts of one expression. `other`: the variables that numbers do not have."""

    def __init__(self, other: set[str], positive: Positive) -> None:
        self.other, self.positive = other, positive
        self.forms: dict[int, _Form] = {}

    def whole(self, root: Expr) -> Expr:
        inside = {id(i) for e in loads(root) for i in walk(*children(e))}
        parts = [e for e in walk(root) if id(e) not in inside]
        for e in parts:
            self.forms[id(e)] = self.form(e)
        return self.expr(self.forms[id(root)])

    def form(self, e: Expr) -> _Form:
        match e:
            case Const() | Load():
                return _number(e) if self.is_number(e) else _term(e)
            case Op("f32", "cast", (Op("i32", "sub", (s, n)),)) if self.is_number(n):
                return _Form(((Op("f32", "cast", (s,)), None),), op("neg", Op("f32", "cast", (n,))))
            case Op("f32", "add" | "sub" | "mul" | "max" | "min", (a, b)):
                return self.two(e.fn, self.forms[id(a)], self.forms[id(b)])
        below = [self.forms[id(c)] for c in children(e)]
        made = with_children(e, tuple(map(self.expr, below)))
        return _number(made) if all(f.is_number for f in below) else _term(made)

    def is_number(self, e: Expr) -> bool:
        return not names([e]) & self.other

    def two(self, fn: str, a: _Form, b: _Form) -> _Form:
        if a.is_number and b.is_number:
            return _number(_FUNCTIONS[fn](self.expr(a), self.expr(b)))
        if a.is_number and fn != "sub":
            a, b = b, a
        match fn:
            case "max" | "min" if b.is_number:
                return replace(a, clamps=(*a.clamps, (fn, self.expr(b))))
            case "mul" if b.is_number:
                return self.times(a, self.expr(b))
            case "add" if b.is_number:
                return _plus(a, self.expr(b))
            case "sub" if b.is_number:
                return _plus(a, op("neg", self.expr(b)))
            case "add":
                return self.sum(a, b)
            case "sub":
                return self.sum(a, self.times(self.plain(b), Const("f32", -1.0)))
        return _term(op(fn, self.expr(a), self.expr(b)))

    def sum(self, a: _Form, b: _Form) -> _Form:
        a, b = self.plain(a), self.plain(b)
        n = (
            a.number
            if b.number is None
            else b.number
            if a.number is None
            else add(a.number, b.number)
        )
        return _Form((*a.terms, *b.terms), n)

    def times(self, a: _Form, by: Expr) -> _Form:
        if not self.is_positive(by):
            a = self.plain(a)
        terms = tuple((x, by if p is None else mul(p, by)) for x, p in a.terms)
        number = None if a.number is None else self.scaled(a.number, by)
        return _Form(terms, number, tuple((fn, self.scaled(n, by)) for fn, n in a.clamps))

    def scaled(self, number: Expr, by: Expr) -> Expr:
        return number if is_const(number, 0) and self.is_positive(by) else mul(number, by)

    def plain(self, a: _Form) -> _Form:
        """Without minima and maxima."""
        return _term(self.expr(a)) if a.clamps else a

    def is_positive(self, e: Expr) -> bool:
        for x in joined_by("mul", e):
            known = isinstance(x, Const) and 0 < x.value < inf
            if not known and not (isinstance(x, Load) and self.positive(x)):
                return False
        return True

    def expr(self, a: _Form) -> Expr:
        """Multiply-adds from the last term on."""
        out = a.number
        for x, by in reversed(a.terms):
            if out is None or is_const(out, 0):
                out = x if by is None else mul(x, by)
            else:
                out = op("add", x, out) if by is None else op("fma", x, by, out)
        assert out is not None
        for fn, n in a.clamps:
            out = op(fn, n, out)
        return out


_FUNCTIONS = {fn: partial(op, fn) for fn in ("max", "min")} | {"add": add, "sub": sub, "mul": mul}


def _number(e: Expr) -> _Form:
    return _Form((), e)


def _term(e: Expr) -> _Form:
    return _Form(((e, None),), None)


def _plus(a: _Form, n: Expr) -> _Form:
    number = n if a.number is None else add(a.number, n)
    return _Form(a.terms, number, tuple((fn, add(k, n)) for fn, k in a.clamps))
