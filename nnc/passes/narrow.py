"""Of a tensor that is read at one index of an axis only, nothing else is computed.

`net(tokens)[:, -1]` asks for the logits of the last position: neither they nor, further up, the
last layer's rows are computed for the others. Users come first: what is fixed for one is fixed for
what it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from nnc.ir.expr import Expr, Idx, Load, rewrite, subst
from nnc.ir.graph import Compute, Formula, Graph, Loop, Node, Update, all_nodes, exprs_of, operands
from nnc.ir.rewrite import reads_of, replace_operands, with_exprs, with_outs, with_roots
from nnc.lang.dims import ONE, Dim
from nnc.lang.types import TensorType

Fixed = Mapping[int, Dim]  # axis -> the only index at which it is read


def narrow(graph: Graph) -> Graph:
    """The same function over smaller tensors."""
    fixed = _fixed(graph)
    if not fixed:
        return graph
    work = _Narrowing(fixed)
    work.block(graph.order)
    return with_roots(graph, [work.new[r] for r in graph.roots])


def _fixed(graph: Graph) -> dict[Node, Fixed]:
    """What can be narrowed."""
    out: dict[Node, Fixed] = {}
    whole: set[Node] = set(graph.roots)
    reads: dict[Node, list[tuple[Expr, ...] | None]] = {}
    for node in reversed(all_nodes(graph)):
        if isinstance(node, Compute) and node not in whole and node in reads:
            found = _common(node, reads[node])
            if found:
                out[node] = found
        env = _env(node, out.get(node, {}))
        whole |= _read_whole(node)
        for tensor, load in reads_of(node):
            plain = load.other is None and load.check is None
            if not plain or not (env or _is_fixed(load)):
                reads[tensor] = [None]
                continue
            index = tuple(subst(i, env) for i in load.index)
            reads.setdefault(tensor, []).append(index)
    return out


def _is_fixed(load: Load) -> bool:
    """Whether it is at one index of an axis."""
    free = (i.dim.names for i in load.index if isinstance(i, Idx))
    return any(not any(n.startswith("$") for n in names) for names in free)


def _common(node: Compute, reads: Sequence[tuple[Expr, ...] | None]) -> Fixed:
    """The axes with one index in all reads, a function of the sizes."""
    first = reads[0]
    if first is None or any(r is None for r in reads):
        return {}
    out = {}
    for i, (axis, e) in enumerate(zip(node.axes, first, strict=True)):
        if not isinstance(e, Idx) or axis.extent == ONE:
            continue
        if any(name.startswith("$") for name in e.dim.names):
            continue
        if all(r and isinstance(got := r[i], Idx) and got.dim == e.dim for r in reads):
            out[i] = e.dim
    return out


def _read_whole(node: Node) -> set[Node]:
    """Operands that are needed as they are."""
    match node:
        case Compute():
            return set()
        case Update(base=base):
            return {base}
        case Loop(init=init):
            return {*init, *node.outs}
    return set(operands(node))


def _env(node: Node, fixed: Fixed) -> dict[str, Dim]:
    return {node.axes[i].var: d for i, d in fixed.items()} if isinstance(node, Compute) else {}


class _Narrowing:
    def __init__(self, fixed: Mapping[Node, Fixed]) -> None:
        self.fixed = fixed
        self.new: dict[Node, Node] = {}
        self.dropped: dict[Node, Fixed] = {}  # by new node

    def block(self, order: Sequence[Node]) -> None:
        """The nodes of one scope; as deep as loops are nested."""
        for node in order:
            if isinstance(node, Loop):
                self.new |= {c: c for c in node.carries}
                self.block(node.body)
                init, after = (tuple(map(self.get, some)) for some in (node.init, node.after))
                loop = replace(node, init=init, after=after)
                moved: Node = with_outs(loop, [self.get(o) for o in node.outs])
            else:
                moved = self.reread(replace_operands(node, self.get))
            found = self.fixed.get(node)
            if found:
                assert isinstance(moved, Compute), moved
                moved = _narrowed(moved, found)
                self.dropped[moved] = found
            self.new[node] = moved

    def get(self, node: Node) -> Node:
        return self.new.get(node, node)

    def reread(self, node: Node) -> Node:
        """Loads of narrowed tensors without the indices that are gone."""
        if not any(o in self.dropped for o in operands(node)) or not isinstance(node, Formula):
            return node
        drop = _drop(self.dropped)
        return with_exprs(node, [rewrite(e, drop) for e in exprs_of(node)], None)


def _drop(dropped: Mapping[Node, Fixed]) -> Callable[[Expr], Expr]:
    def one(e: Expr) -> Expr:
        if isinstance(e, Load) and e.tensor in dropped:
            gone = dropped[e.tensor]  # type: ignore[index]
            return replace(e, index=tuple(x for i, x in enumerate(e.index) if i not in gone))
        return e

    return one


def _narrowed(node: Compute, fixed: Fixed) -> Compute:
    kept = [i for i in range(len(node.axes)) if i not in fixed]
    shape = tuple(node.type.shape[i] for i in kept)
    return replace(
        node,
        type=TensorType(node.type.dtype, shape),
        axes=tuple(node.axes[i] for i in kept),
        body=subst(node.body, _env(node, fixed)),
    )
