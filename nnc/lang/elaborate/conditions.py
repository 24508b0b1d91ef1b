"""Comparisons and `a if c else b`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from nnc.diagnostics import Label, Span
from nnc.ir.bounds import condition_facts
from nnc.ir.expr import Expr, Load, Op, Select, rewrite, walk
from nnc.ir.graph import Compute, Node, exprs_of, toposort
from nnc.lang import ast
from nnc.lang.dims import Dim, dim_max, dim_min
from nnc.lang.elaborate.arith import element, elementwise, lift, settle, weak_kind
from nnc.lang.elaborate.broadcasting import broadcast, common_dtype
from nnc.lang.elaborate.clauses import (
    comparison_facts,
    states_equality,
    static_sizes,
    vanishes,
)
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.mistakes import Mistake, fail
from nnc.lang.elaborate.values import (
    UNKNOWN,
    Bool,
    Known,
    Nothing,
    Operand,
    Seq,
    Tensor,
    Text,
    Tree,
    Tuple,
    Unknown,
    Value,
    Weak,
    WeakTensor,
    integer,
)
from nnc.lang.elaborate.words import describe
from nnc.lang.types import DType

COMPARISONS = {"==": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}


def compare(cx: Context, e: ast.Compare) -> Value:
    left, out = Operand(cx.eval(e.first), e.first.span), None
    for op, right_ast in e.rest:
        right = Operand(cx.eval(right_ast), right_ast.span)
        one = comparison(cx, op, left, right, e.span)
        out = one if out is None else _both(cx, out, one, e.span)
        left = right
    assert out is not None
    return out


def _both(cx: Context, a: Value, b: Value, span: Span) -> Value:
    if isinstance(a, Bool) and isinstance(b, Bool):
        if a.value is False or b.value is False:
            return Bool(False)
        return conjunction(a, b)
    if isinstance(a, Bool) and a.value is not None:
        return b if a.value else a
    if isinstance(b, Bool) and b.value is not None:
        return a if b.value else b
    return elementwise(cx, "and", [Operand(a, span), Operand(b, span)], span)


def conjunction(a: Bool, b: Bool) -> Bool:
    """`a and b` where one is not known and none is false: what both state holds."""
    if a.value and b.value:
        return a
    return Bool(None, every(a, b, True), some(a, b, False))


def disjunction(a: Bool, b: Bool) -> Bool:
    """`a or b` where one is not known and none is true: both are false where it does not hold."""
    return Bool(None, some(a, b, True), every(a, b, False))


def every(a: Bool, b: Bool, holds: bool) -> Known:
    """Where both hold, or neither."""
    sides = _sides(a, b, holds)
    return Known(tuple(f for k in sides for f in k.facts), any(k.open for k in sides))


def some(a: Bool, b: Bool, holds: bool) -> Known:
    """Where one of them holds, or does not: it may be the one that states an equality."""
    return Known((), any(k.open or states_equality(k.facts) for k in _sides(a, b, holds)))


def _sides(a: Bool, b: Bool, holds: bool) -> list[Known]:
    return [x.yes if holds else x.no for x in (a, b) if x.value is None]


def comparison(cx: Context, op: str, a: Operand, b: Operand, span: Span) -> Value:
    lifted = lift(cx, lambda p, q: comparison(cx, op, p, q, span), [a, b], span)
    if lifted is not None:
        return lifted
    x, y = cx.tensor(a.value), cx.tensor(b.value)
    match x, y:
        case Weak(), Weak():
            return _compare_weak(cx, op, x, y, span)
        case (Text(value=p), Text(value=q)):
            return Bool((p == q) == (op == "=="))
        case (Nothing(), _) | (_, Nothing()):
            same = isinstance(x, Nothing) and isinstance(y, Nothing)
            return Bool(same == (op == "=="))
        case (Unknown(), _) | (_, Unknown()):
            return Bool(None)
        case (Bool(value=p), Bool(value=q)):
            return Bool(None if p is None or q is None else (p == q) == (op == "=="))
    return elementwise(cx, COMPARISONS[op], [a, b], span)


def _compare_weak(cx: Context, op: str, x: Weak, y: Weak, span: Span) -> Value:
    if x.number is not None and y.number is not None:
        table: dict[str, bool] = {
            "==": x.number == y.number,
            "!=": x.number != y.number,
            "<": x.number < y.number,
            "<=": x.number <= y.number,
            ">": x.number > y.number,
            ">=": x.number >= y.number,
        }
        return Bool(table[op])
    if x.dim is not None and y.dim is not None:
        static = static_sizes(cx.frame)
        if cx.generic and (not cx.ranges or (x.dim.names | y.dim.names) <= static):
            return _undecided(cx, op, x.dim, y.dim)
        fn = _one_sided(cx, op, x.dim, y.dim)
        dx, dy = x, y
        return cx.compute((), lambda i: Op("bool", fn, (dx.make("i64"), dy.make("i64"))), span)
    fn = COMPARISONS[op]
    dtype = "i64" if x.kind == y.kind == "int" else cx.frame.real
    if cx.generic and not cx.ranges:
        return Bool(None)
    return cx.compute((), lambda i: Op("bool", fn, (x.make(dtype), y.make(dtype))), span)


def _one_sided(cx: Context, op: str, a: Dim, b: Dim) -> str:
    """`==` and `!=` at the end of a range are inequalities: their negations say where one is."""
    if op not in ("==", "!="):
        return COMPARISONS[op]
    if cx.proves(b - a):
        return "ge" if op == "==" else "lt"
    if cx.proves(a - b):
        return "le" if op == "==" else "gt"
    return COMPARISONS[op]


OPPOSITE = {"==": "!=", "!=": "==", "<": ">=", "<=": ">", ">": "<=", ">=": "<"}


def _undecided(cx: Context, op: str, a: Dim, b: Dim) -> Bool:
    """A comparison of sizes in the generic check: what each branch may assume."""
    if a == b:
        return Bool(op in ("==", "<=", ">="))
    yes, no = (tuple(comparison_facts(o, a, b)) for o in (op, OPPOSITE[op]))
    for facts, holds in ((yes, True), (no, False)):
        if facts and all(map(cx.proves, facts)):
            return Bool(holds)
    return Bool(None, Known(yes, False), Known(no, False))


def conditional(cx: Context, e: ast.IfExpr) -> Value:
    cond = cx.tensor(cx.eval(e.cond))
    match cond:
        case Bool(value=True):
            return cx.eval(e.then)
        case Bool(value=False):
            return cx.eval(e.orelse)
        case Bool():
            return _either(cx, e, cond)
        case Unknown():
            return _either(cx, e, Bool(None))
        case Tree():
            return _per_leaf(cx, e, cond)
        case Tensor(dtype="bool", shape=()):
            return _select(cx, e, cond)
        case Tensor(dtype="bool"):
            raise fail(
                "E0203",
                "`if` takes one condition, this is a tensor of them",
                e.cond.span,
                str(cond.type),
                help=_of_elements(cx, e) if cx.frame.binders else _of_tensors(e),
            )
    raise fail("E0203", "a condition must be a bool", e.cond.span, describe(cond))


def _of_tensors(e: ast.IfExpr) -> str:
    return f"`where({e.cond.span.text}, {e.then.span.text}, {e.orelse.span.text})`"


def _of_elements(cx: Context, e: ast.IfExpr) -> str | None:
    """The condition `x > 0` with the indices that its tensor has here."""
    words = sorted(set(re.findall(r"\b[a-z_]\w*\b(?![\w.(\[])", e.cond.span.text)))
    values = {w: cx.frame.vars.get(w) for w in words}
    tensors = [(w, v) for w, v in values.items() if isinstance(v, Tensor) and v.shape]
    if len(tensors) != 1:
        return None
    (name, tensor), indices = tensors[0], []
    for size in tensor.shape:
        names = [
            n for n, b in cx.frame.binders.items() if [cx.ranges.get(v) for v in b.vars] == [size]
        ]
        if len(names) != 1:
            return None
        indices.append(names[0])
    element = f"{name}[{', '.join(indices)}]"
    indexed = re.sub(rf"\b{name}\b(?![\w.(\[])", element, e.cond.span.text)
    return f"its elements: `{indexed}`"


def _either(cx: Context, e: ast.IfExpr, cond: Bool) -> Value:
    """A static condition that is not known yet: both sides are checked; they may differ in type."""
    a, b = _side(cx, e.then, cond.yes), _side(cx, e.orelse, cond.no)
    match a, b:
        case Tensor(), Tensor():
            return a if a.type == b.type else UNKNOWN
        case Tensor(), Weak() | WeakTensor():
            return a
        case Weak() | WeakTensor(), Tensor():
            return b
        case Weak(), Weak():
            if (size := _either_size(cx, e, a, b)) is not None:
                return integer(size)
            kind = "float" if "float" in (a.kind, b.kind) else "int"
            return Weak(kind, a.make)
        case Seq(), Seq():
            return Seq(None, None)
    return UNKNOWN


def _either_size(cx: Context, e: ast.IfExpr, a: Weak, b: Weak) -> Dim | None:
    """`I if i == 0 else O`: a size of its own, which is a number in each instance."""
    if a.dim is None or b.dim is None or any(n[0] == "$" for n in a.dim.names | b.dim.names):
        return None
    if a.dim == b.dim:
        return a.dim
    name = f"({a.dim} if {e.cond.span.text} else {b.dim})"
    size = Dim.of(name)
    if not (cx.proves(a.dim - 1) and cx.proves(b.dim - 1)):
        cx.facts = replace(cx.facts, zero=cx.facts.zero | {name})
    low, high = dim_min(a.dim, b.dim), dim_max(a.dim, b.dim)
    for less, more in ((a.dim, b.dim), (b.dim, a.dim)):
        low, high = (less, more) if cx.proves(more - less) else (low, high)
    cx.facts = cx.facts.plus(size - low, high - size)
    return size


def _side(cx: Context, e: ast.Expr, known: Known) -> Value:
    """One side; Unknown where it leans on an equality of sizes, which numbers will decide."""
    with cx.assuming(known.facts):
        try:
            return cx.tensor(cx.eval(e))
        except Mistake as mistake:
            if vanishes(cx, mistake.diagnostic, known.open):
                return UNKNOWN
            raise


def _per_leaf(cx: Context, e: ast.IfExpr, cond: Tree) -> Value:
    a, b = cx.eval(e.then), cx.eval(e.orelse)
    out: dict[str, Value] = {}
    for key, c in cond.leaves.items():
        side_a = a.leaves[key] if isinstance(a, Tree) else a
        side_b = b.leaves[key] if isinstance(b, Tree) else b
        match c:
            case Bool(value=None) | Unknown():
                out[key] = side_a if isinstance(side_a, Weak) else UNKNOWN
            case Bool(value=v):
                out[key] = side_a if v else side_b
            case _:
                raise fail("E0203", "this condition differs from leaf to leaf", e.cond.span)
    return Tree(out, cond.of)


def _select(cx: Context, e: ast.IfExpr, cond: Tensor) -> Value:
    """`a if c else b`: in index notation each side is evaluated only where it is taken; elsewhere
    both are, but for reads that lie inside only where their side is taken."""
    test = cond.at(()) if cx.ranges else spelled(cond.at(()))
    side = cx.under if cx.ranges else cx.on_branch
    with side(test):
        a = cx.eval(e.then)
    with side(Op("bool", "not", (test,))):
        b = cx.eval(e.orelse)
    return select(cx, test, Operand(a, e.then.span), Operand(b, e.orelse.span), e.span)


def spelled(test: Expr) -> Expr:
    """The condition with what it says of sizes and turns of loops, on which reads may lean."""
    said: dict[Node, Expr] = {}

    def one(e: Expr) -> Expr:
        return said.get(e.tensor, e) if isinstance(e, Load) and isinstance(e.tensor, Node) else e

    for node in toposort(_conditions(test), lambda n: _conditions(*exprs_of(n))):
        inner = rewrite(exprs_of(node)[0], one)
        if any(condition_facts(inner, holds) for holds in (True, False)):
            said[node] = inner
    return rewrite(test, one)


def _conditions(*exprs: Expr) -> list[Node]:
    """The scalar conditions that these read."""
    found = (e.tensor for e in walk(*exprs) if isinstance(e, Load) and e.dtype == "bool")
    return [n for n in found if isinstance(n, Compute) and not n.axes and not n.op]


def _tuple(
    again: Callable[[Operand, Operand], Value], a: Operand, b: Operand, x: Tuple, y: Tuple
) -> Tuple:
    """Part by part."""
    if len(x.items) != len(y.items):
        text = f"the sides have {len(x.items)} and {len(y.items)} values"
        raise fail("E0312", text, b.span, describe(y), (Label(a.span, describe(x)),))
    rows = zip(x.items, y.items, strict=True)
    return Tuple(tuple(again(Operand(p, a.span), Operand(q, b.span)) for p, q in rows))


def select(cx: Context, test: Expr, a: Operand, b: Operand, span: Span) -> Value:
    """One of two values by a scalar run-time condition."""

    def again(p: Operand, q: Operand) -> Value:
        return select(cx, test, p, q, span)

    if isinstance(a.value, Tuple) and isinstance(b.value, Tuple):
        return _tuple(again, a, b, a.value, b.value)
    lifted = lift(cx, again, [a, b], span)
    if lifted is not None:
        return lifted
    x, y = settle(cx, a), settle(cx, b)
    dtype = common_dtype(cx, [a, b], [x, y], span)
    shape, origins = broadcast(cx, [a, b], [x, y], span, "if")

    def at(as_: DType, i: tuple[Expr, ...]) -> Expr:
        return Select(as_, test, element(x, as_, shape, i), element(y, as_, shape, i))

    if not isinstance(x, Tensor) and not isinstance(y, Tensor):
        return WeakTensor(shape, weak_kind([x, y]), at)
    return cx.compute(shape, lambda i: at(dtype, i), span, origins=origins)
