"""Launch order: operands first, values that overwrite storage as late as they must be.

Nodes are sorted by level (the longest path from the inputs). On one level those with more work
after them come first: the input gradient of a layer before its weight gradient, so that the weight
may then be overwritten in the kernel that computes its gradient. Writers come after all run-time
index checks that do not depend on them, so that an index error leaves all storage untouched.
"""

from __future__ import annotations

from nnc.ir.expr import Expr, Idx, Load, Op, Select, walk
from nnc.ir.graph import Compute, Graph, Node, Update, operands, toposort, users
from nnc.lang.dims import ONE, Dim


def launch_order(graph: Graph) -> list[Node]:
    """All computed nodes, in an order in which they may run."""
    order: list[Node] = [n for n in toposort(graph.roots) if isinstance(n, Compute | Update)]
    late = writers(graph)
    checks = checking(order)
    height = _heights(order)
    level = _levels(graph, order, late, checks)
    index = {n: i for i, n in enumerate(order)}
    return sorted(order, key=lambda n: (level[n], -height[n], index[n]))


def writers(graph: Graph) -> set[Node]:
    """Nodes that may store into an input's memory: written values and the updates they are made of.

    Those on which a run-time index check depends are left out: they must not write before it.
    """
    out: set[Node] = set()
    for w in graph.writes:
        node: Node = w.value
        while isinstance(node, Update):
            out.add(node)
            node = node.base
        if isinstance(node, Compute):
            out.add(node)
    return out - _before(checking(toposort(graph.roots)))


def _before(nodes: list[Node]) -> set[Node]:
    """The nodes and everything they depend on."""
    return set(toposort(nodes))


def checking(order: list[Node]) -> list[Node]:
    """Nodes with a run-time index check that no node before it has made already."""
    done: set[object] = set()
    out: list[Node] = []
    for node in order:
        if not isinstance(node, Compute | Update):
            continue
        raxes = node.raxes if isinstance(node, Compute) else ()
        extents = {a.var: a.extent for a in (*node.axes, *raxes)}
        keys = [k for e in exprs_of(node) for k in _check_keys(e, extents)]
        if isinstance(node, Update) and node.check is not None:
            keys += _index_keys(node.target, node.type.shape, extents)
        fresh = [k for k, complete in keys if k not in done]
        done |= {k for k, complete in keys if complete and not _conditional(node)}
        if fresh:
            out.append(node)
    return out


def exprs_of(node: Node) -> tuple[Expr, ...]:
    match node:
        case Compute(body=body):
            return (body,)
        case Update(target=target, value=value, guard=guard):
            return (*target, value, *(() if guard is None else (guard,)))
    return ()


def _conditional(node: Node) -> bool:
    """Whether some loads of it may not happen."""
    lazy = any(isinstance(e, Select) for e in walk(*exprs_of(node)))
    return lazy or (isinstance(node, Update) and node.guard is not None)


Extents = dict[str, Dim]


def _check_keys(root: Expr, extents: Extents) -> list[tuple[object, bool]]:
    out: list[tuple[object, bool]] = []
    for e in walk(root):
        if isinstance(e, Load) and e.check is not None:
            out += _index_keys(e.index, e.tensor.type.shape, extents)
    return out


def _index_keys(
    index: tuple[Expr, ...], shape: tuple[Dim, ...], extents: Extents
) -> list[tuple[object, bool]]:
    """What is compared: `(tensor of indices, extent)`, and whether all of its elements are."""
    out: list[tuple[object, bool]] = []
    for i, extent in zip(index, shape, strict=True):
        while isinstance(i, Op) and i.fn == "cast":
            i = i.args[0]
        if isinstance(i, Load):
            out.append(((i.tensor, extent), i.check is None and _whole(i, extents)))
        elif not isinstance(i, Idx):
            out.append(((i, extent), False))
    return out


def _whole(load: Load, extents: Extents) -> bool:
    """Whether the loops read every element of the tensor."""
    names = set()
    for i, size in zip(load.index, load.tensor.type.shape, strict=True):
        if size != ONE:
            name = i.dim.name if isinstance(i, Idx) else None
            if name is None or name in names or extents.get(name) != size:
                return False
            names.add(name)
    return True


def _heights(order: list[Node]) -> dict[Node, int]:
    """The longest path from each node to a root."""
    out = dict.fromkeys(order, 0)
    for node in reversed(order):
        for o in operands(node):
            if o in out:
                out[o] = max(out[o], out[node] + 1)
    return out


def _levels(
    graph: Graph, order: list[Node], late: set[Node], checks: list[Node]
) -> dict[Node, int]:
    """Longest paths; late writers also come after checks and after readers of the old version."""
    plain: dict[Node, int] = {}
    for node in order:
        plain[node] = _level(node, plain)
    out: dict[Node, int] = {}
    waiting = set(checks)
    floor = 0
    # Checks depend on no late writer (see `writers`): their levels are known first.
    for node in toposort(checks):
        if isinstance(node, Compute | Update):
            out[node] = _level(node, out)
            floor = max(floor, out[node] + 1) if node in waiting else floor
    old = replaced(graph)
    readers = users(graph.roots)
    for node in order:
        if node not in out:
            least = max(floor, _after_readers(node, old, readers, plain)) if node in late else 0
            out[node] = max(_level(node, out), least)
    return _sink(order, out, waiting)


def replaced(graph: Graph) -> dict[Node, Node]:
    """For each node that may write into a storage the version that is lost by it."""
    out: dict[Node, Node] = {}
    for w in graph.writes:
        node: Node = w.value
        while isinstance(node, Update):
            out[node] = node.base
            node = node.base
        if isinstance(node, Compute):
            out[node] = w.target
    return out


def _after_readers(
    node: Node, old: dict[Node, Node], readers: dict[Node, list[Node]], level: dict[Node, int]
) -> int:
    """The level after readers of the old version, less those that may depend on the writer."""
    others = (r for r in readers.get(old.get(node, node), ()) if r is not node)
    return max((level[r] + 1 for r in others if level[r] <= level[node]), default=0)


def _level(node: Node, level: dict[Node, int]) -> int:
    return max((level[o] + 1 for o in operands(node) if o in level), default=0)


def _sink(order: list[Node], level: dict[Node, int], fixed: set[Node]) -> dict[Node, int]:
    """Tensors made of inputs only move down to where they are first needed."""
    need: dict[Node, int] = {}
    for node in order:
        for o in operands(node):
            if o in level:
                need[o] = min(need.get(o, level[node]), level[node])

    def sinks(n: Node) -> bool:
        return level[n] == 0 and n in need and n.type.rank > 0 and n not in fixed

    return {n: need[n] - 1 if sinks(n) else level[n] for n in order}
