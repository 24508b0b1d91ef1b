"""Tensors that are zero but for a slice are not computed whole: the slice is written in place.

The gradient of a read at a fixed index, such as `kv[l]`, is zero at all other indices; sums of such
gradients become updates of one tensor, slice by slice. (`-0.0 + 0.0` elsewhere stays `-0.0`.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from nnc.ir.expr import (
    Const,
    Expr,
    Idx,
    Load,
    Op,
    Select,
    guards,
    index_number,
    joined_by,
    loads,
    subst,
)
from nnc.ir.form import head_of
from nnc.ir.graph import Axis, Compute, Graph, Node, Update, users
from nnc.ir.rewrite import replace_operands, with_roots
from nnc.ir.scalar import add, under
from nnc.lang.dims import ONE, Dim, Facts, prove_nonneg
from nnc.lang.types import TensorType
from nnc.passes.schedule.space import SHORT


def slices(graph: Graph) -> Graph:
    """The same function with sparse tensors written slice by slice."""
    state = _Slices(graph)
    for node in state.users:
        state.visit(node)
    return with_roots(graph, [state.new[r] for r in graph.roots])


@dataclass(frozen=True)
class _Slice:
    """`part`: the values at the fixed indices, over the other axes; `target`: where they belong."""

    part: Compute
    target: tuple[Expr, ...]


@dataclass
class _Slices:
    graph: Graph
    new: dict[Node, Node] = field(default_factory=dict)
    waiting: dict[Node, _Slice] = field(default_factory=dict)  # by rebuilt node

    def __post_init__(self) -> None:
        self.users = users(self.graph.roots)
        self.roots = set(self.graph.roots)

    def visit(self, node: Node) -> None:
        new = replace_operands(node, lambda o: self.new.get(o, o))
        if isinstance(new, Compute):
            new = self.sums(new)
        found = _slice(new, self.graph.facts) if isinstance(new, Compute) else None
        if found is not None and self.is_added(node):
            self.waiting[new] = found
        elif found is not None and found.part.op:
            assert isinstance(new, Compute)
            new = _written(_zeros(new), found)
        self.new[node] = new

    def is_added(self, node: Node) -> bool:
        """Whether its only use is as a term of an element-wise sum."""
        readers = self.users[node]
        if node in self.roots or len(readers) != 1 or not isinstance(readers[0], Compute):
            return False
        reader = readers[0]
        reads = [e for e in loads(reader.body) if e.tensor is node]
        terms = [e for e in _terms(reader) if e is reads[0]]
        return len(reads) == len(terms) == 1 and _same_element(reads[0], reader)

    def sums(self, node: Compute) -> Node:
        """`rest + slice + ...` as updates of `rest`."""
        if not any(t in self.waiting for t in node.formed.tensors):
            return node
        terms = _terms(node)
        sparse = [e for e in terms if isinstance(e, Load) and e.tensor in self.waiting]
        if not sparse:
            return node
        rest = [e for e in terms if e not in sparse]
        found = [self.waiting[e.tensor] for e in sparse]  # type: ignore[index]
        if (whole := _whole(node, found)) is not None:
            for e in rest:
                whole = add(e, whole)
            return replace(node, body=whole)
        base: Node = _zeros(node)
        if len(rest) == 1 and _same_element(rest[0], node):
            assert isinstance(rest[0], Load)
            base = rest[0].tensor  # type: ignore[assignment]
        elif rest:
            body = rest[0]
            for e in rest[1:]:
                body = add(body, e)
            base = replace(node, body=body)
        for one in found:
            base = _written(base, one)
        return base


def _terms(node: Compute) -> list[Expr]:
    """The terms of an element-wise sum."""
    return [] if node.raxes else joined_by("add", node.body)


def _same_element(e: Expr, node: Compute) -> bool:
    return (
        isinstance(e, Load)
        and e.other is None
        and e.check is None
        and e.tensor.type == node.type
        and [i.dim if isinstance(i, Idx) else None for i in e.index]
        == [Dim.of(a.var) for a in node.axes]
    )


def _whole(node: Compute, found: Sequence[_Slice]) -> Expr | None:
    """Element-wise slices that are all of a short axis: for each index the value there."""
    if any(one.part.op for one in found):
        return None
    arms: dict[tuple[int, int], Expr] = {}
    for one in found:
        fixed = [(d, k) for d, i in enumerate(one.target) if (k := index_number(i)) is not None]
        if len(fixed) != 1:
            return None
        own = (Idx(Dim.of(a.var)) for d, a in enumerate(node.axes) if d != fixed[0][0])
        value = Load(one.part.type.dtype, one.part, tuple(own))
        arms[fixed[0]] = add(arms[fixed[0]], value) if fixed[0] in arms else value
    ((d, _), *_) = arms
    extent = node.axes[d].extent.const
    if extent is None or extent > SHORT or sorted(arms) != [(d, k) for k in range(extent)]:
        return None
    at, out = Idx(Dim.of(node.axes[d].var)), arms[d, 0]
    for k in range(1, extent):
        here = Op("bool", "eq", (at, Idx(Dim.of(k))))
        out = Select(out.dtype, here, arms[d, k], out)
    return out


def _zeros(node: Compute) -> Compute:
    return replace(node, body=Const(node.type.dtype, 0.0), op="", raxes=())


def _written(base: Node, s: _Slice) -> Update:
    """`base` with the slice added."""
    own = Load(s.part.type.dtype, s.part, tuple(Idx(Dim.of(a.var)) for a in s.part.axes))
    value: Expr = own
    if not (isinstance(base, Compute) and isinstance(base.body, Const) and base.body.value == 0):
        value = add(Load(base.type.dtype, base, s.target), own)
    return Update(
        type=base.type,
        span=s.part.span,
        name=s.part.name,
        base=base,
        axes=s.part.axes,
        target=s.target,
        value=value,
    )


# ---- what is a slice ----------------------------------------------------------------------------


def _slice(node: Compute, facts: Facts) -> _Slice | None:
    """The slice outside of which a sum (or an element-wise value) of floats is zero."""
    if head_of(node.formed.form) != "select":
        return None
    if node.op not in ("", "sum") or not node.type.dtype.startswith(("f", "bf")):
        return None
    conditions, body = guards(node.body)
    fixed: dict[str, Dim] = {}
    rest: list[Expr] = []
    for c in conditions:
        found = _fixes(c, node, facts)
        if found is None or found[0] in fixed:
            rest.append(c)
        else:
            fixed[found[0]] = found[1]
    if not fixed:
        return None
    axes = tuple(a for a in node.axes if a.var not in fixed)
    kind = TensorType(node.type.dtype, tuple(a.extent for a in axes))
    part = replace(node, type=kind, axes=axes, body=subst(under(rest, body), fixed))
    return _Slice(part, tuple(Idx(fixed.get(a.var, Dim.of(a.var))) for a in node.axes))


def _fixes(c: Expr, node: Compute, facts: Facts) -> tuple[str, Dim] | None:
    """The kept axis that a condition pins to one index that it has, and the index."""
    match c:
        case Op(fn="eq", args=(Idx(dim=p), Idx(dim=q))):
            difference = p - q
        case _:
            return None
    for a in node.axes:
        form = difference.linear_in(a.var)
        if form is None or form[0] not in (ONE, -ONE) or a.extent == ONE:
            continue
        at = -form[1] if form[0] == ONE else form[1]
        if not any(n.startswith("$") for n in at.names) and _inside(at, a, facts):
            return a.var, at
    return None


def _inside(at: Dim, a: Axis, facts: Facts) -> bool:
    return prove_nonneg(at, facts) and prove_nonneg(a.extent - 1 - at, facts)
