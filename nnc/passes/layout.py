"""The order of an intermediate value's axes in memory, chosen by how its readers walk.

A value whose memory is ours may have its axes in any order. Element-wise chains share one order:
the values of a chain are read at the element that is computed. Who reads a chain otherwise asks for
an axis to be the last, the one along which memory is contiguous: the axis at which it walks itself
(a value that is already in the order it needs, such as bytes that a product takes four at a time
along the channels, reads its operand along them). Where all who ask agree, that axis becomes the
last. Sums of products ask for the order that there is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from nnc.ir.expr import Expr, Idx, Load, Op, rewrite, walk
from nnc.ir.graph import Compute, Graph, Node
from nnc.ir.rewrite import reads_of, replace_operands, with_roots
from nnc.lang.types import TensorType

Reads = dict[Node, list[tuple[Node, Load]]]


def ordered(graph: Graph) -> Graph:
    """The same function with other orders of axes inside; inputs and results stay as they are."""
    orders = _orders(graph)
    new: dict[Node, Node] = {}

    def load(e: Expr) -> Expr:
        if not isinstance(e, Load):
            return e
        order = orders.get(e.tensor)  # type: ignore[call-overload]
        index = e.index if order is None else tuple(e.index[d] for d in order)
        return replace(e, tensor=new[e.tensor], index=index)  # type: ignore[index]

    for node in graph.order:
        if isinstance(node, Compute) and (
            node in orders or any(isinstance(o, Compute) and o in orders for o in node.read)
        ):
            axes = tuple(node.axes[d] for d in orders.get(node, range(len(node.axes))))
            kind = TensorType(node.type.dtype, tuple(a.extent for a in axes))
            after = tuple(new[n] for n in node.after)
            new[node] = replace(
                node, type=kind, axes=axes, body=rewrite(node.body, load), after=after
            )
        else:
            new[node] = replace_operands(node, new.__getitem__)
    return with_roots(graph, [new[r] for r in graph.roots])


def _orders(graph: Graph) -> dict[Node, tuple[int, ...]]:
    """The values that change, and which of their axes come first, second, ..."""
    reads: Reads = {n: [] for n in graph.order}
    fixed: set[Node] = set(graph.roots)
    for node in graph.order:
        for tensor, load in reads_of(node):
            if tensor in reads:
                reads[tensor].append((node, load))
        if not isinstance(node, Compute):
            fixed |= set(node.read)
    chains = _chains(graph, reads)
    out: dict[Node, tuple[int, ...]] = {}
    for chain in chains:
        asked = {a for n in chain for a in _asked(n, chain, reads[n], out)}
        asked = asked or {a for n in chain for a in _made_along(n)}
        first = next(iter(chain))
        rank = first.type.rank
        if len(asked) != 1 or fixed & chain.keys() or not isinstance(first, Compute):
            continue
        (last,) = asked
        if last != rank - 1:
            order = (*(d for d in range(rank) if d != last), last)
            out |= dict.fromkeys(chain, order)
    return out


Chain = dict[Node, None]  # values in one order, those computed last first


def _chains(graph: Graph, reads: Reads) -> list[Chain]:
    """Values that are read at the same element, those read last first."""
    out: dict[Node, Chain] = {}
    for node in reversed(graph.order):
        if not isinstance(node, Compute):
            continue
        chain: Chain = {node: None}
        for user, load in reads[node]:
            if user in out and _is_own_element(user, load) and out[user] is not chain:
                other = out[user]
                other.update(chain)
                for member in chain:
                    out[member] = other
                chain = other
        out[node] = chain
    return list({id(c): c for c in out.values()}.values())


def reads_own_element(user: Node, of: Node) -> bool:
    """Whether it reads a tensor at the element that it computes, and nowhere else."""
    reads = [e for tensor, e in reads_of(user) if tensor is of]
    return bool(reads) and all(_is_own_element(user, e) for e in reads)


def _is_own_element(user: Node, load: Load) -> bool:
    if not isinstance(user, Compute) or user.raxes or load.other is not None:
        return False
    at = [i.dim.name if isinstance(i, Idx) else None for i in load.index]
    return at == [a.var for a in user.axes]


def _asked(
    node: Node, chain: Chain, reads: list[tuple[Node, Load]], orders: dict[Node, tuple[int, ...]]
) -> Iterator[int]:
    """The axes that readers outside of the chain want to be last."""
    rank = node.type.rank
    for user, load in reads:
        if user in chain:
            continue
        if not isinstance(user, Compute) or _is_product(user):
            yield rank - 1
            continue
        order = orders.get(user)
        if user.raxes and order is None:
            continue
        walked = user.axes[-1 if order is None else order[-1]].var if user.axes else ""
        alone = [isinstance(i, Idx) and i.dim.name == walked for i in load.index]
        yield alone.index(True) if True in alone else rank - 1


def _made_along(node: Node) -> Iterator[int]:
    """The axis along which a sum of products of bytes reads its right operand."""
    match node:
        case Compute(op="sum", body=Op(fn="dot4", args=(_, Load(index=(*_, Idx(dim=d)))))):
            yield from (i for i, a in enumerate(node.axes) if a.var == d.name)


def _is_product(user: Compute) -> bool:
    """Whether it sums products."""
    return user.op == "sum" and any(
        isinstance(e, Op) and e.fn in ("mul", "dot4") for e in walk(user.body)
    )
