"""Costly functions of few axes are computed once, not again for every element of the others.

`(x[b, c, i] - mu[c]) * rsqrt(var[c] + eps)`: the root is a tensor over c. Loops do this by
themselves for their outer axes; here it is done for what depends on the innermost axis, and for
epilogues of contractions, whose tiles have no outer axis.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

from nnc.ir.expr import Expr, Idx, Load, Op, Select, children, names, walk, with_children
from nnc.ir.form import functions_of
from nnc.ir.graph import Axis, Compute, Constant, Graph, Input, Node
from nnc.ir.rewrite import replace_operands, with_roots
from nnc.ir.scalar import SCALARS
from nnc.ir.share import node_key
from nnc.lang.dims import ONE, Dim, dim_prod
from nnc.lang.types import TensorType

COSTLY = frozenset(s.name for s in SCALARS.values() if s.costly and s.rule == "float")
FEW = 16  # times an element is used at which storing it begins to pay


def factor(graph: Graph) -> Graph:
    """The same function with such values as tensors of their own. Loop bodies are left alone:
    they come by themselves."""
    new: dict[Node, Node] = {}
    known: dict[Hashable, Compute] = {}
    early: dict[Node, list[Node]] = {}
    for node in graph.order:
        moved = replace_operands(node, new.__getitem__)
        if isinstance(moved, Compute) and not moved.raxes and len(moved.axes) > 1 and _may(moved):
            for e in _costly(moved):
                made = _tensor(e, moved)
                made = known.setdefault(node_key(made), made)
                moved = _reading(moved, e, made)
                if all(isinstance(o, Input | Constant) for o in made.read):
                    for product in _products(moved):
                        early.setdefault(product, []).append(made)
        new[node] = moved
    factored = with_roots(graph, [new[r] for r in graph.roots])
    return _before(factored, early) if early else factored


def _before(graph: Graph, early: dict[Node, list[Node]]) -> Graph:
    """Computes values of inputs alone before the products whose epilogues read them."""
    new: dict[Node, Node] = {}
    for node in graph.order:
        moved = replace_operands(node, new.__getitem__)
        if node in early:
            after = dict.fromkeys((*moved.after, *early[node]))
            moved = replace(moved, after=tuple(after))
        new[node] = moved
    return with_roots(graph, [new[r] for r in graph.roots])


def _may(node: Compute) -> bool:
    return not COSTLY.isdisjoint(functions_of(node.formed.form))


def _costly(node: Compute) -> list[Expr]:
    """The largest sub-expressions that are worth it."""
    used: dict[int, frozenset[str]] = {}
    costly: dict[int, bool] = {}
    lazy = _lazy(node.body)
    for e in walk(node.body):
        inner = children(e)
        own = e.dim.names if isinstance(e, Idx) else frozenset()
        used[id(e)] = frozenset(own).union(*(used[id(c)] for c in inner))
        costly[id(e)] = any(costly[id(c)] for c in inner) or (isinstance(e, Op) and e.fn in COSTLY)
    out: list[Expr] = []
    stack = [node.body]
    while stack:
        e = stack.pop()
        if not costly[id(e)]:
            continue
        if id(e) not in lazy and _pays(node, used[id(e)]):
            out.append(e)
        else:
            stack += reversed(children(e))
    return list({id(e): e for e in out}.values())


def _lazy(body: Expr) -> set[int]:
    """What reads memory under a condition only, or under a check."""
    out: set[int] = set()
    reading: set[int] = set()
    for e in walk(body):
        if isinstance(e, Load) or any(id(c) in reading for c in children(e)):
            reading.add(id(e))
        if isinstance(e, Select):
            out |= {id(x) for x in walk(e.a, e.b) if id(x) in reading}
        if isinstance(e, Load):
            out |= {id(x) for x in walk(*children(e))} | ({id(e)} if e.check else set())
    return out


def _pays(node: Compute, used: frozenset[str]) -> bool:
    axes = [a for a in node.axes if a.extent != ONE]
    mine = [a for a in axes if a.var in used]
    others = dim_prod(a.extent for a in axes if a.var not in used).const
    if not mine or len(mine) == len(axes) or (others is not None and others < FEW):
        return False
    if any("." in n for n in used):  # of a run-time loop
        return False
    return mine[-1] is axes[-1] or bool(_products(node))


def _products(node: Compute) -> list[Node]:
    """The sums of products that it reads, element by element."""
    sums = (o for o in node.read if isinstance(o, Compute) and o.op == "sum" and o.raxes)
    return [o for o in sums if _is_product(o.body)]


def _is_product(e: Expr) -> bool:
    while isinstance(e, Select):
        e = e.a
    return isinstance(e, Op) and e.fn in ("mul", "dot4")


def _axes(e: Expr, node: Compute) -> tuple[Axis, ...]:
    used = names([e])
    return tuple(a for a in node.axes if a.var in used)


def _tensor(e: Expr, node: Compute) -> Compute:
    """The sub-expression over the axes that it uses."""
    axes = _axes(e, node)
    kind = TensorType(e.dtype, tuple(a.extent for a in axes))
    return replace(node, type=kind, axes=axes, body=e)


def _reading(node: Compute, old: Expr, made: Compute) -> Compute:
    index = tuple(Idx(Dim.of(a.var)) for a in _axes(old, node))
    return replace(node, body=_replaced(node.body, old, Load(made.type.dtype, made, index)))


def _replaced(root: Expr, old: Expr, new: Expr) -> Expr:
    done: dict[int, Expr] = {}
    for e in walk(root):
        moved = with_children(e, tuple(done[id(c)] for c in children(e)))
        done[id(e)] = new if e is old else moved
    return done[id(root)]
