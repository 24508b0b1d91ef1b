"""The derivative of one node: from its cotangent what it contributes to those of its operands.

Each load `T[e]` in the body of a `Compute` contributes to the cotangent of T a gather
(`nnc.passes.gather`) of the cotangent of the load (`nnc.passes.adjoint`); where the places cannot
be turned round (a table read at data-dependent rows) it is an accumulating `Update`, in a fixed
order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TypeGuard

from nnc.diagnostics import Span
from nnc.ir.bounds import as_dim, node_obligations, strides
from nnc.ir.expr import (
    Const,
    Expr,
    Idx,
    Load,
    Op,
    as_dtype,
    conjuncts,
    loads,
    names,
    rewrite,
    subst,
    walk,
)
from nnc.ir.graph import Axis, Compute, Node, Update
from nnc.ir.scalar import add, const, mul, neg, op, select
from nnc.ir.share import share
from nnc.lang.dims import Dim, Facts, dim_prod, dim_sum
from nnc.lang.types import DType, TensorType, is_float
from nnc.passes.adjoint import Guard, Term, adjoints, condition, equal, guarded, inside
from nnc.passes.gather import Gather, solve
from nnc.passes.schedule.every import multiple


def fill(like: Node, value: float) -> Compute:
    """A tensor of one number with the type of another."""
    axes = tuple(Axis(f"$i{j}", e) for j, e in enumerate(like.type.shape))
    return Compute(type=like.type, axes=axes, body=const(value, like.type.dtype), span=like.span)


def is_zero(node: Node) -> bool:
    return isinstance(node, Compute) and isinstance(node.body, Const) and node.body.value == 0


def total(node: Node, parts: Sequence[Node]) -> Node:
    """The sum of the contributions to one cotangent."""
    some = [p for p in parts if not is_zero(p)]
    if len(some) <= 1:
        return (some or list(parts))[0]
    places = [p for p in some if is_at_turn(p)]
    if places:
        others = [p for p in some if p not in places] or [places.pop(0)]
        return reduce(lambda base, p: replace(p, base=base), places, total(node, others))
    axes = tuple(Axis(f"$i{j}", e) for j, e in enumerate(node.type.shape))
    body = read(some[0], axes)
    for p in some[1:]:
        body = add(body, read(p, axes))
    return Compute(type=node.type, axes=axes, body=body, span=node.span, name=name_of(node))


def is_at_turn(node: Node) -> TypeGuard[Update]:
    """Whether a value is zeros with something added at the place of a turn."""
    if not isinstance(node, Update) or node.accumulate != "add" or not is_zero(node.base):
        return False
    return any("." in n for n in names(node.target))


def name_of(node: Node) -> str:
    return f"d.{node.name}" if node.name else ""


def read(node: Node, axes: Sequence[Axis]) -> Expr:
    """`node[axes]`; a tensor of one number is that number."""
    return read_at(node, tuple(Idx(Dim.of(a.var)) for a in axes))


def read_at(node: Node, index: tuple[Expr, ...], **more: object) -> Expr:
    if isinstance(node, Compute) and not node.op and isinstance(node.body, Const):
        return node.body
    return Load(node.type.dtype, node, index, **more)  # type: ignore[arg-type]


# ---- one node ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """Loops with an expression in them whose loads get contributions."""

    axes: tuple[Axis, ...]
    root: Expr
    seed: Term
    facts: Facts
    span: Span


def pull(
    node: Node, cotangent: Node, touched: set[Node], facts: Facts
) -> Iterator[tuple[Node, Node | Share]]:
    """The contributions of one node to the cotangents of its operands."""
    match node:
        case Compute():
            yield from _pull_compute(node, cotangent, touched, facts)
        case Update():
            yield from _pull_update(node, cotangent, touched, facts)


def _pull_compute(
    node: Compute, cotangent: Node, touched: set[Node], facts: Facts
) -> Iterator[tuple[Node, Node | Share]]:
    (body,) = share(node.body)
    g = read(cotangent, node.axes)
    seed, result = Term(None, g), None
    match node.op:
        case "max" | "min":
            seed = Term(Guard(None, _is_extremum(node), True), g)
        case "prod":
            seed = Term(None, mul(g, read(_others(node), (*node.axes, *node.raxes))))
        case "":
            result = read(node, node.axes)
    reader = Reader((*node.axes, *node.raxes), body, seed, facts, node.span)
    yield from _contributions(reader, result, touched, g)


def _pull_update(
    node: Update, cotangent: Node, touched: set[Node], facts: Facts
) -> Iterator[tuple[Node, Node | Share]]:
    guard = None if node.guard is None else Guard(None, node.guard, True)
    kept = cotangent if node.accumulate else _unwritten(node, cotangent)
    if node.accumulate in ("max", "min"):
        first, place = _winners(node, node.base in touched), Idx(_position(node.axes))
        wins = op("eq", place, read_at(first, node.target, check=node.check))
        guard, kept = Guard(guard, wins, True), _where_base_wins(first, cotangent)
    if node.base in touched:
        yield node.base, kept
    (value,) = share(node.value)
    g = read_at(cotangent, node.target, check=node.check)
    reader = Reader(node.axes, value, Term(guard, g), facts, node.span)
    yield from _contributions(reader, None, touched, g)


def _unwritten(node: Update, cotangent: Node) -> Update:
    zero = const(0, node.type.dtype)
    name = name_of(node.base)
    return replace(node, base=cotangent, value=zero, name=name, regions=(), after=())


def _contributions(
    reader: Reader, result: Expr | None, touched: set[Node], g: Expr
) -> Iterator[tuple[Node, Share]]:
    for c in adjoints(reader.root, reader.seed, lambda e: e.tensor in touched, result):
        yield c.load.tensor, Share(reader, c.load, c.term, g)  # type: ignore[misc]


@dataclass(frozen=True)
class Share:
    """What the reads `load` in the loops of `reader` contribute to the cotangent of their tensor.

    `term`: the cotangent of the load; `g`: that of the reader.
    """

    reader: Reader
    load: Load
    term: Term
    g: Expr

    def node(self) -> Node:
        """The contribution as a tensor."""
        way = self.way()
        if way is None:
            return _scatter(self.reader, self.load, self.term)
        return _gather(self.reader, self.load, self.term, way, self.g)

    def way(self) -> Gather | None:
        guards = [] if self.term.guard is None else self.term.guard.chain()
        said = [m for g in guards if g.holds for c in conjuncts(g.cond) if (m := multiple(c))]
        return solve(self.load, self.reader.axes, self.reader.facts, said)


def node_of(part: Node | Share) -> Node:
    return part.node() if isinstance(part, Share) else part


# ---- gather ------------------------------------------------------------------------------


def _gather(reader: Reader, load: Load, term: Term, way: Gather, g: Expr) -> Node:
    """The contribution as a Compute over the elements of the tensor."""
    tensor: Node = load.tensor  # type: ignore[assignment]
    body, padded = _pad(guarded(_released(term, way)), way, g)
    body = way.apply(body)
    if way.raxes:
        body = rewrite(body, _wide)
    conditions = [c.expr for c in way.conditions if c.var not in padded]
    data = [c for c in conditions if any(True for _ in loads(c))]
    plain = [c for c in conditions if c not in data]
    for c in reversed([*([_all(plain)] if plain else []), *data]):
        body = select(c, body, const(0, body))
    if not way.raxes and (copied := _copied(body, way.axes, tensor.type)):
        return copied
    out = Compute(
        type=tensor.type,
        axes=way.axes,
        raxes=way.raxes,
        op="sum" if way.raxes else "",
        body=body,
        span=reader.span,
        name=name_of(tensor),
    )
    if fixed := turn_places(load, (*reader.axes, *way.raxes)):
        placed = _at_turn(out, fixed)
        if not _may_leave(placed, reader.facts):
            return placed
    return _scaled(out) if way.raxes else out


def turn_places(load: Load, axes: Sequence[Axis]) -> dict[int, Dim]:
    """The components of an index that are one place in each turn of a run-time loop."""
    if load.other is not None or load.check is not None:
        return {}
    inner = {a.var for a in axes}
    places = {j: d for j, e in enumerate(load.index) if (d := as_dim(e)) is not None}
    fixed = {j: d for j, d in places.items() if not d.names & inner}
    return fixed if any("." in n for d in fixed.values() for n in d.names) else {}


def _at_turn(whole: Compute, fixed: dict[int, Dim]) -> Update:
    """The same zeros with the part that is read in a turn added at its place: what other parts
    there are is not looked at."""
    env = {whole.axes[j].var: d for j, d in fixed.items()}
    axes = tuple(a for j, a in enumerate(whole.axes) if j not in fixed)
    kind = TensorType(whole.type.dtype, tuple(a.extent for a in axes))
    part = replace(whole, type=kind, axes=axes, body=subst(whole.body, env))
    places = ((j, fixed.get(j, Dim.of(a.var))) for j, a in enumerate(whole.axes))
    return Update(
        type=whole.type,
        base=fill(whole, 0),
        axes=axes,
        target=tuple(Idx(d) for _, d in places),
        value=read(_scaled(part) if part.raxes else part, axes),
        accumulate="add",
        span=whole.span,
        name=whole.name,
    )


def _released(term: Term, way: Gather) -> Term:
    """Without the conditions that all solutions fulfil."""
    guard = None
    for g in [] if term.guard is None or not way.implied else term.guard.chain()[::-1]:
        parts = conjuncts(g.cond)
        left = [c for c in parts if not g.holds or multiple(c) not in way.implied]
        if left:
            cond = g.cond if len(left) == len(parts) else _all(left)
            guard = Guard(guard, cond, g.holds)
    return Term(guard, term.value) if way.implied else term


def _wide(e: Expr) -> Expr:
    """Terms of a sum that are cast to a wider float are products of wider factors: as in sums of
    16-bit floats, which are kept in 32 bits, nothing is rounded before."""
    match e:
        case Op(fn="cast", dtype=wide, args=(Op(fn="mul" | "neg") as product,)):
            if product.dtype in _NARROWER.get(wide, ()):
                sign, parts = _in_order(product)
                return _product([as_dtype(p, wide) for p in parts], sign)
    return e


_NARROWER: dict[DType, tuple[DType, ...]] = {"f32": ("f16", "bf16"), "f64": ("f16", "bf16", "f32")}


def _scaled(node: Compute) -> Compute:
    """A sum with the factors that are the same for all its terms outside of it: sums that differ in
    them only become one. Products of two tensors are left, they may scale what they read."""
    inner = {a.var for a in node.raxes}
    sign, factors = _in_order(node.body)
    outer = [f for f in factors if not names((f,)) & inner]
    rest = [f for f in factors if names((f,)) & inner]
    if not rest or not any(True for f in outer for _ in loads(f)) or _is_product(node, rest):
        return node
    total = replace(node, body=_product(rest, 1))
    body = mul(_product(outer, sign), read(total, node.axes))
    return replace(node, raxes=(), op="", body=body)


def _in_order(e: Expr) -> tuple[int, list[Expr]]:
    """The factors of a product tree from left to right, and its sign."""
    sign, out, todo = 1, list[Expr](), [e]
    while todo:
        x = todo.pop()
        match x:
            case Op(fn="mul", args=(a, b)):
                todo += (b, a)
            case Op(fn="neg", args=(a,)):
                sign, todo = -sign, [*todo, a]
            case _:
                out.append(x)
    return sign, out


def _product(parts: Sequence[Expr], sign: int) -> Expr:
    out = parts[0]
    for p in parts[1:]:
        out = mul(out, p)
    return neg(out) if sign < 0 else out


def _is_product(node: Compute, parts: Sequence[Expr]) -> bool:
    """Whether two of the factors have kept variables of their own: a contraction."""
    kept = {a.var for a in node.axes}
    used = [names((p,)) & kept for p in parts]
    return any(a - b and b - a for a in used for b in used)


def _all(conditions: Sequence[Expr]) -> Expr:
    out = conditions[0]
    for c in conditions[1:]:
        out = op("and", out, c)
    return out


def _copied(body: Expr, axes: Sequence[Axis], type: TensorType) -> Node | None:
    """The node of which the body is a plain copy."""
    if isinstance(body, Load) and body.other is None and body.tensor.type == type:
        bare = [e.dim.name if isinstance(e, Idx) else None for e in body.index]
        if bare == [a.var for a in axes]:
            return body.tensor  # type: ignore[return-value]
    return None


def _pad(body: Expr, way: Gather, g: Expr) -> tuple[Expr, set[str]]:
    """Reads the cotangent as 0 outside instead of a condition on the solved variables: a window.

    Allowed for variables that occur in nothing else, when the value is a multiple of the cotangent.
    """
    wanted = {c.var for c in way.conditions} - {"", *way.digits}
    if not wanted or not isinstance(g, Load) or g.check or not _is_multiple(body, g):
        return body, set()
    if any(True for c in way.conditions for _ in loads(c.expr)):  # data read where the others hold
        return body, set()
    others: set[str] = set()
    for e in _without(body, g):
        others |= e.dim.names
    padded = {v for v in wanted - others if _reads_bare(g, v)}
    if not padded:
        return body, set()
    zero = const(0, g)
    return rewrite(body, lambda e: replace(e, other=zero) if e is g else e), padded


def _reads_bare(g: Load, var: str) -> bool:
    uses = [e for e in g.index if var in names((e,))]
    return len(uses) == 1 and isinstance(uses[0], Idx) and uses[0].dim.name == var


def _without(body: Expr, g: Load) -> Iterator[Idx]:
    """The indices in `body` that are not those of the load g."""
    hidden = rewrite(body, lambda e: Const(e.dtype, 0.0) if e is g else e)
    return (e for e in walk(hidden) if isinstance(e, Idx))


def _is_multiple(body: Expr, g: Expr) -> bool:
    """Whether the body is g times something (through products, signs and conversions)."""
    e = body
    while e is not g:
        match e:
            case Op(fn="mul", args=(a, b)) if g in _factors(a) or g in _factors(b):
                e = a if g in _factors(a) else b
            case Op(fn="neg" | "cast" | "div", args=(a, *_)):
                e = a
            case _:
                return False
    return True


def _factors(e: Expr) -> list[Expr]:
    """The leaves of a tree of products."""
    out: list[Expr] = []
    todo = [e]
    while todo:
        x = todo.pop()
        match x:
            case Op(fn="mul", args=args):
                todo += args
            case Op(fn="neg" | "cast" | "div", args=(a, *_)):
                todo.append(a)
            case _:
                out.append(x)
    return out


# ---- scatter -----------------------------------------------------------------------------


def _scatter(reader: Reader, load: Load, term: Term) -> Node:
    """The contribution as an accumulating Update of zeros, after summing what shares a target."""
    within = None if load.other is None else inside(load)
    used = names((*load.index, *(() if within is None else (within,))))
    rest = tuple(a for a in reader.axes if a.var not in used)
    outer = _outer_guard(term.guard, frozenset(a.var for a in rest))
    where = outer if within is None else Guard(outer, within, True)
    out = _summed_first(reader, load, Term(where, guarded(term, outer)), rest)
    if outer is term.guard or not (load.check or _may_leave(out, reader.facts)):
        return out
    # the target lies inside only where a condition holds that depends on what would be summed
    return _update(reader, load, term.value, reader.axes, _both(condition(term.guard), within))


def _outer_guard(guard: Guard | None, inner: frozenset[str]) -> Guard | None:
    """The innermost guard such that it and those around it do not depend on `inner`."""
    out: Guard | None = None
    for g in [] if guard is None else guard.chain()[::-1]:
        if names((g.cond,)) & inner:
            break
        out = g
    return out


def _may_leave(update: Update, facts: Facts) -> bool:
    return not all(o.ok for o in node_obligations(update, facts))


def _summed_first(reader: Reader, load: Load, term: Term, rest: tuple[Axis, ...]) -> Update:
    """Sums over `rest`, then writes where the guard, which does not depend on `rest`, holds."""
    guard = condition(term.guard)
    kept = tuple(a for a in reader.axes if a not in rest)
    if not rest:
        return _update(reader, load, term.value, kept, guard)
    inner = Compute(
        type=TensorType(load.dtype, tuple(a.extent for a in kept)),
        axes=kept,
        raxes=rest,
        op="sum",
        body=guarded(term),
        span=reader.span,
    )
    return _update(reader, load, read(inner, kept), kept, guard)


def _update(
    reader: Reader, load: Load, value: Expr, axes: tuple[Axis, ...], guard: Expr | None
) -> Update:
    tensor: Node = load.tensor  # type: ignore[assignment]
    return Update(
        type=tensor.type,
        base=fill(tensor, 0),
        axes=axes,
        target=load.index,
        value=value,
        accumulate="add",
        guard=guard,
        check=load.check,
        span=reader.span,
        name=name_of(tensor),
    )


def _both(a: Expr | None, b: Expr | None) -> Expr | None:
    """`b` is evaluated only where `a` holds."""
    if a is None or b is None:
        return a if b is None else b
    return select(a, b, Const("bool", False))


# ---- reductions that are not sums --------------------------------------------------------


def _position(axes: Sequence[Axis]) -> Dim:
    steps = strides([a.extent for a in axes])
    return dim_sum(s * Dim.of(a.var) for s, a in zip(steps, axes, strict=True))


def _is_extremum(node: Compute) -> Expr:
    """Whether the reduced variables are at the first extremal position."""
    where = node.raxes[0], node.body
    if len(node.raxes) > 1:
        where = _flattened(node)
    first = Compute(
        type=TensorType("i32", node.type.shape),
        axes=node.axes,
        raxes=(where[0],),
        op=f"arg{node.op}",
        body=where[1],
        span=node.span,
    )
    return op("eq", as_dtype(Idx(_position(node.raxes)), "i32"), read(first, node.axes))


def _winners(node: Update, of_base: bool) -> Update:
    """For each element the position, in the axes of the update, of the first value that is the
    extremum; -1 where the base is (asked only `of_base`)."""

    def extremal(e: Expr, best: Expr) -> Expr:
        equal = op("eq", e, best)
        return op("or", equal, op("ne", e, e)) if is_float(best.dtype) else equal

    start, nobody = fill(node, 0), Const("i64", 2**63 - 1)
    base = select(
        extremal(read(node.base, start.axes), read(node, start.axes)), Const("i64", -1), nobody
    )
    like = TensorType("i64", node.type.shape)
    wins = extremal(node.value, read_at(node, node.target, check=node.check))
    return replace(
        node,
        type=like,
        base=replace(start, type=like, body=base if of_base else nobody),
        value=Idx(_position(node.axes)),
        accumulate="min",
        guard=wins if node.guard is None else select(node.guard, wins, Const("bool", False)),
        regions=(),
        after=(),
    )


def _where_base_wins(first: Node, cotangent: Node) -> Node:
    out = fill(cotangent, 0)
    wins = op("eq", read(first, out.axes), Const("i64", -1))
    body = select(wins, read(cotangent, out.axes), const(0, cotangent.type.dtype))
    return replace(out, body=body)


def _flattened(node: Compute) -> tuple[Axis, Expr]:
    """One axis over all reduced positions in row-major order, and the body read along it."""
    flat = Axis("$flat", dim_prod(a.extent for a in node.raxes))
    at: dict[str, Dim] = {}
    for i, (a, step) in enumerate(
        zip(node.raxes, strides([a.extent for a in node.raxes]), strict=True)
    ):
        digit = Dim.of(flat.var) // step
        at[a.var] = digit if i == 0 else digit % a.extent
    return flat, subst(node.body, at)


def _others(node: Compute) -> Compute:
    """For each reduced position the product of the body at all others (zeros are legal)."""
    again = tuple(Axis(f"{a.var}_other", a.extent) for a in node.raxes)
    pairs = [(Dim.of(a.var), Dim.of(b.var)) for a, b in zip(node.raxes, again, strict=True)]
    there = subst(node.body, {a.name or "": b for a, b in pairs})
    axes = (*node.axes, *node.raxes)
    return Compute(
        type=TensorType(node.type.dtype, tuple(a.extent for a in axes)),
        axes=axes,
        raxes=again,
        op="prod",
        body=select(equal(pairs), const(1, there), there),
        span=node.span,
    )
