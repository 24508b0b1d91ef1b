"""Reads of a tensor that is written slice by slice come from what was written there.

`kv[1] := a; kv[2] := b; f(kv[2])` reads b, not kv; `grad` of reads of slices likewise. Tensors that
nobody reads as a whole are then not made at all. Only what was itself read from a tensor (or is a
constant) is passed on: nothing is computed twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nnc.ir.bounds import axis_ranges
from nnc.ir.expr import (
    Const,
    Expr,
    Idx,
    Load,
    Op,
    Select,
    index_number,
    loads,
    rewrite,
    subst_exprs,
)
from nnc.ir.graph import Axis, Compute, Graph, Node, Update, exprs_of, toposort
from nnc.ir.rewrite import replace_operands, with_exprs, with_roots
from nnc.ir.scalar import add, select
from nnc.lang.dims import Dim, Facts, prove_nonneg
from nnc.passes.schedule.space import SHORT


def forward(graph: Graph) -> Graph:
    """The same function with such reads replaced."""
    order = toposort(graph.roots)
    if not any(isinstance(n, Update) for n in order):
        return graph
    state = _Forward(graph.facts)
    for node in order:
        state.visit(node)
    return with_roots(graph, [state.new[r] for r in graph.roots])


@dataclass
class _Forward:
    facts: Facts
    new: dict[Node, Node] = field(default_factory=dict)
    slices: dict[Node, dict[int, int]] = field(default_factory=dict)  # of updates: fixed indices

    def visit(self, node: Node) -> None:
        made = replace_operands(node, self.new.__getitem__)
        if isinstance(made, Compute | Update):
            axes = (*made.axes, *(made.raxes if isinstance(made, Compute) else ()))
            if any(e.tensor in self.slices for root in exprs_of(made) for e in loads(root)):
                roots = [rewrite(root, lambda e: self.one(e, axes)) for root in exprs_of(made)]
                made = with_exprs(made, roots, None)
        if isinstance(made, Update) and (fixed := _slice(made)) is not None:
            self.slices[made] = fixed
        self.new[node] = made

    def one(self, e: Expr, axes: tuple[Axis, ...]) -> Expr:
        if isinstance(e, Op) and e.fn == "add":
            return add(*e.args)  # to what was zero
        if not isinstance(e, Load) or e.tensor not in self.slices or e.check is not None:
            return e
        value = self.read(e)
        if value is None or e.other is None:
            return e if value is None else value
        for cond in reversed(self.inside(e, axes)):
            value = select(cond, value, e.other)
        return value

    def read(self, e: Load) -> Expr | None:
        """What the load finds, if that is at hand."""
        tensor: Node = e.tensor  # type: ignore[assignment]
        arms: dict[tuple[int, int], Expr] = {}  # by axis and index: what is found there
        found: Expr | None = None
        while found is None and isinstance(tensor, Update) and tensor in self.slices:
            fixed = self.slices[tensor]
            open_ = [d for d in fixed if index_number(e.index[d]) != fixed[d]]
            if all(index_number(e.index[d]) is None for d in open_):
                value = _value(tensor, e.index)
                if value is None or len(open_) > 1:
                    return None
                for d in open_:
                    arms.setdefault((d, fixed[d]), value)
                if not open_ or self.are_all(arms, tensor, open_[0]):
                    found = value
            tensor = tensor.base
        if any((tensor.type.shape[d].const or SHORT + 1) > SHORT for d, _ in arms):
            return None
        found = found or _filled(tensor)
        if found is None:  # an older version would have to be kept
            return None
        for (d, at), value in reversed(arms.items()):
            here = Op("bool", "eq", (e.index[d], Idx(Dim.of(at))))
            found = found if value is found else Select(e.dtype, here, value, found)
        return found

    def are_all(self, arms: dict[tuple[int, int], Expr], node: Node, axis: int) -> bool:
        """Whether there is no other index of the axis."""
        return len([d for d, _ in arms if d == axis]) == node.type.shape[axis].const

    def inside(self, e: Load, axes: tuple[Axis, ...]) -> list[Expr]:
        """The conditions under which the index lies inside, as far as they are not known."""
        ranges, out = axis_ranges(axes), list[Expr]()
        for i, n in zip(e.index, e.tensor.type.shape, strict=True):
            assert isinstance(i, Idx), e
            if not prove_nonneg(i.dim, self.facts, ranges, depth=1):
                out.append(Op("bool", "ge", (i, Idx(Dim.of(0)))))
            if not prove_nonneg(n - 1 - i.dim, self.facts, ranges, depth=1):
                out.append(Op("bool", "lt", (i, Idx(n))))
        return out


def _slice(node: Update) -> dict[int, int] | None:
    """The fixed indices of an update that writes all elements there are at these."""
    if node.accumulate or node.guard is not None or node.check is not None:
        return None
    extents = {a.var: a.extent for a in node.axes}
    fixed: dict[int, int] = {}
    for d, (i, n) in enumerate(zip(node.target, node.type.shape, strict=True)):
        name = i.dim.name if isinstance(i, Idx) else None
        if (at := index_number(i)) is not None:
            fixed[d] = at
        elif name is None or extents.pop(name, None) != n:
            return None
    return None if extents else fixed


def _value(node: Update, index: tuple[Expr, ...]) -> Expr | None:
    """What an update wrote there, if it was at hand."""
    match node.value:
        case Const() as value:
            return value
        case Load(other=None, check=None) as value if all(isinstance(i, Idx) for i in index):
            names = [i.dim.name for i in node.target if isinstance(i, Idx)]
            pairs = zip(names, index, strict=True)
            return subst_exprs(value, {n: i for n, i in pairs if n is not None})
    return None


def _filled(node: Node) -> Const | None:
    match node:
        case Compute(op="", body=Const() as value):
            return value
    return None
