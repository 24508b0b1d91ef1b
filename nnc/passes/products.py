"""Sums of products of three or more are computed as two sums where that takes less work.

`sum[k, l](a[m, k] * b[k, l] * c[l, n])` is `sum[l](sum[k](a[m, k] * b[k, l]) * c[l, n])`: what does
not depend on k stands outside of the sum over k; so is what only one of two factors is summed over.
Gradients of such sums are of this form, and share their inner sums. Products are rounded in another
order than they are written. Integers are left as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import combinations
from math import prod

from nnc.ir.bounds import node_obligations
from nnc.ir.expr import Const, Expr, Idx, Load, Op, guards, joined_by, names, walk
from nnc.ir.form import functions_of
from nnc.ir.graph import Axis, Compute, Graph, Node, all_nodes
from nnc.ir.rewrite import transform
from nnc.ir.scalar import op, under
from nnc.lang.dims import Dim, Facts
from nnc.lang.types import TensorType

SAMPLE = 64  # what a size is taken to be
GAIN = 2  # the work must become less by this factor
ALONE = 8  # work of a product that no tile reuses, in products of a tile
MOST = 6  # factors that are tried in all ways
GROWTH = 4  # the inner sum may be so many times as big as what is read or made anyway


def products(graph: Graph) -> Graph:
    """The same function with such sums in two."""
    if not any(isinstance(n, Compute) and _may(n) for n in all_nodes(graph)):
        return graph
    return transform(graph, lambda n: _split(n, graph.facts))


def _may(node: Compute) -> bool:
    if node.op != "sum" or node.type.dtype not in ("f32", "f64"):
        return False
    return "mul" in functions_of(node.formed.form)


@dataclass(frozen=True)
class _Factor:
    """A factor, or a condition without which the product is zero; the axes it depends on."""

    e: Expr
    axes: frozenset[str]
    is_cond: bool = False


@dataclass(frozen=True)
class _Sum:
    """A sum of products over some axes."""

    factors: tuple[_Factor, ...]
    axes: tuple[Axis, ...]
    raxes: tuple[Axis, ...]

    @property
    def work(self) -> int:
        whole = _size((*self.axes, *self.raxes))
        return whole if not self.raxes or self.tiled else ALONE * whole

    @property
    def tiled(self) -> bool:
        """Whether it is a contraction with rows and columns."""
        summed = {a.var for a in self.raxes if _size([a]) > 1}
        parts = [f for f in self.factors if f.axes and not f.is_cond]
        kept = {a.var for a in self.axes if _size([a]) > 1}
        for n in range(1, len(parts) // 2 + 1):
            for some in combinations(parts, n):
                a = frozenset[str]().union(*(f.axes for f in some))
                b = frozenset[str]().union(*(f.axes for f in parts if f not in some))
                if a & b & summed and kept & (a - b) and kept & (b - a):
                    return True
        return False


def _size(axes: Sequence[Axis]) -> int:
    return prod(max(0, a.extent.evaluate(dict.fromkeys(a.extent.names, SAMPLE))) for a in axes)


def _split(node: Node, facts: Facts) -> Node:
    if not isinstance(node, Compute) or not _may(node):
        return node
    conds, value = guards(node.body)
    own = {a.var for a in (*node.axes, *node.raxes)}
    parts = [(f, False) for f in _factors(value)] + [(c, True) for c in conds]
    factors = tuple(_Factor(e, names([e]) & own, is_cond) for e, is_cond in parts)
    many = [f for f in factors if f.axes and not f.is_cond]
    if not 2 <= len(many) <= MOST or len(factors) > 2 * MOST:
        return node
    whole = _Sum(factors, node.axes, node.raxes)
    best = min(_ways(whole), key=_price, default=None)
    if best is None or GAIN * (best[0].work + best[1].work) > whole.work:
        return node
    inner, outer = best
    made = _node(node, inner)
    if not _may_stand_alone(made, outer, facts):
        return node
    read = _Factor(_load(made), frozenset(a.var for a in made.axes))
    rest = _node(node, replace(outer, factors=(read, *outer.factors[1:])))
    return _split(rest, facts)


def _price(way: tuple[_Sum, _Sum]) -> int:
    """The work; of ways nearly alike the inner sum of fewer factors, which others may share."""
    inner, outer = way
    return (inner.work + outer.work) * (8 + len(inner.factors))


def _factors(root: Expr) -> list[Expr]:
    """What a product is made of; `a*b + a*c` is `a * (b + c)`."""
    out: list[Expr] = []
    stack = [root]
    while stack:
        e = stack.pop()
        match e:
            case Op(fn="mul", args=args):
                stack += reversed(args)
            case Op(fn="neg", args=(a,)):
                out.append(Const(e.dtype, -1.0))
                stack.append(a)
            case Op(fn="add" | "sub" as fn, args=(a, b)):
                left, right = joined_by("mul", a), joined_by("mul", b)
                common = [x for x in left if any(x is y for y in right)]
                if common:
                    rests = (_product(_less(f, common), e) for f in (left, right))
                    out += [*common, op(fn, *rests)]
                else:
                    out.append(e)
            case _:
                out.append(e)
    return out


def _less(factors: Sequence[Expr], common: Sequence[Expr]) -> list[Expr]:
    """The factors but for one of each of the common ones."""
    out = list(factors)
    for c in common:
        at = next((i for i, x in enumerate(out) if x is c), None)
        if at is not None:
            del out[at]
    return out


def _product(factors: Sequence[Expr], like: Expr) -> Expr:
    return reduce(lambda a, b: op("mul", a, b), factors) if factors else Const(like.dtype, 1.0)


def _ways(s: _Sum) -> Iterator[tuple[_Sum, _Sum]]:
    """All ways to sum over some axes first."""
    room = max(_size([a for a in (*s.axes, *s.raxes) if a.var in f.axes]) for f in s.factors)
    room = GROWTH * max(room, _size(s.axes))
    for n in range(1, len(s.raxes) + 1):
        for first in combinations(s.raxes, n):
            summed = {a.var for a in first}
            inside = tuple(f for f in s.factors if f.axes & summed)
            rest = tuple(f for f in s.factors if not f.axes & summed)
            used = frozenset[str]().union(*(f.axes for f in inside))
            # A condition on what is summed first would not hold for the factors outside any more:
            # they may read outside there, and zero times an infinity is no zero.
            guarded = any(f.is_cond for f in inside)
            if not guarded and summed <= used and any(f.axes and not f.is_cond for f in rest):
                left = tuple(a for a in s.raxes if a not in first)
                axes = _as_read(inside, [a for a in (*s.axes, *left) if a.var in used])
                if _size(axes) <= room:
                    place = _Factor(Const("f32", 0), frozenset(a.var for a in axes))
                    yield _Sum(inside, axes, first), _Sum((place, *rest), s.axes, left)


def _as_read(factors: Sequence[_Factor], axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """In the order in which tensors are read, so that equal sums become one."""
    loads = (e for e in walk(*(f.e for f in factors)) if isinstance(e, Load))
    found = (i.dim.name for load in loads for i in load.index if isinstance(i, Idx))
    order = {name: n for n, name in enumerate(dict.fromkeys(found))}
    return tuple(sorted(axes, key=lambda a: order.get(a.var, len(order))))


def _node(like: Compute, s: _Sum) -> Compute:
    """The sum as a node."""
    factors = [f.e for f in s.factors if not f.is_cond]
    body = under([f.e for f in s.factors if f.is_cond], _product(factors, like.body))
    kind = TensorType(like.type.dtype, tuple(a.extent for a in s.axes))
    operation = "sum" if s.raxes else ""
    return replace(like, type=kind, axes=s.axes, raxes=s.raxes, op=operation, body=body)


def _load(node: Compute) -> Expr:
    return Load(node.type.dtype, node, tuple(Idx(Dim.of(a.var)) for a in node.axes))


def _may_stand_alone(made: Compute, outer: _Sum, facts: Facts) -> bool:
    """Whether nothing is read outside, or checked, that conditions now left out excluded."""
    if not any(f.is_cond for f in outer.factors):
        return True
    if any(isinstance(e, Load) and e.check is not None for e in walk(made.body)):
        return False
    return all(o.ok for o in node_obligations(made, facts))
