"""Launch order: operands first, values that overwrite storage as late as they must be.

Nodes are sorted by level (the longest path from the inputs). On one level those with more work
after them come first: the input gradient of a layer before its weight gradient, so that the weight
may then be overwritten in the kernel that computes its gradient. Writers come after all run-time
index checks that do not depend on them, so that an index error leaves all storage untouched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from nnc.ir.expr import Expr, Idx, Load, Op, Select, walk
from nnc.ir.graph import (
    Compute,
    External,
    Graph,
    Loop,
    Node,
    Part,
    Update,
    exprs_of,
    operands,
    toposort,
    users,
)
from nnc.lang.dims import ONE, ZERO, Dim

MANY = 64  # nodes that depend on a written value, looked at one by one


@dataclass(frozen=True)
class Launch:
    """All computed nodes in an order in which they may run.

    `checks`: nodes with a run-time index check that is no repetition. `writers`: nodes that may
    store into an input's memory (written values, the updates they are made of), but for those on
    which a check depends: they must not write before it.
    """

    order: tuple[Node, ...]
    checks: frozenset[Node]
    writers: frozenset[Node]
    users: dict[Node, list[Node]]


def launch(graph: Graph, body: bool = False) -> Launch:
    """Decides the order of a graph.

    `body`: of a loop; what is written there is not storage, and checks need not come before it.
    """
    readers = users(graph.roots)  # in topological order
    order: list[Node] = [n for n in readers if isinstance(n, Compute | Update | Loop | External)]
    checks = [] if body else _checking(order)
    old = _replaced(graph)
    late = old.keys() - set(toposort(checks))
    height = _heights(order)
    level = _Levels(order, readers, checks, late, old).run()
    index = {n: i for i, n in enumerate(order)}
    order.sort(key=lambda n: (level[n], -height[n], index[n]))
    return Launch(tuple(order), frozenset(checks), frozenset(late), readers)


def _checking(order: list[Node]) -> list[Node]:
    """Nodes with a run-time index check that no node before it has made already."""
    done: set[_Compared] = set()
    out: list[Node] = []
    for node in order:
        if isinstance(node, Loop) and _checks_inside(node):
            out.append(node)
        if not isinstance(node, Compute | Update):
            continue
        if not node.formed.checks and not (isinstance(node, Update) and node.check is not None):
            continue
        raxes = node.raxes if isinstance(node, Compute) else ()
        extents = {a.var: a.extent for a in (*node.axes, *raxes)}
        keys = [k for e in exprs_of(node) for k in _check_keys(e, extents)]
        if isinstance(node, Update) and node.check is not None:
            keys += _index_keys(node.target, node.type.shape, extents)
        fresh = [k for k in keys if not {k, k.of_all()} & done]
        done |= {k for k in keys if k.part is not None and not _conditional(node)}
        if fresh:
            out.append(node)
    return out


def _checks_inside(loop: Loop) -> bool:
    # As deep as loops are nested.
    for node in loop.body:
        loads = [e for e in walk(*exprs_of(node)) if isinstance(e, Load)]
        if any(e.check is not None for e in loads):
            return True
        if isinstance(node, Update) and node.check is not None:
            return True
        if isinstance(node, Loop) and _checks_inside(node):
            return True
    return False


def feeds(node: Node) -> tuple[Node, ...]:
    """The operands; for the part of a loop the loop."""
    return tuple(o.source if isinstance(o, Part) else o for o in operands(node))


def together(order: Sequence[Node], sets: Sequence[Sequence[Node]]) -> list[Node]:
    """The order with the nodes of each set next to each other, as late as the last of them.

    No path may leave a set and come back.
    """
    if not sets:
        return list(order)
    place = {n: i for i, n in enumerate(order)}
    unit: dict[Node, tuple[Node, ...]] = {n: (n,) for n in order}
    for nodes in sets:
        members = tuple(sorted(nodes, key=place.__getitem__))
        unit |= dict.fromkeys(members, members)
    out: list[Node] = []
    done: set[Node] = set()
    stack = [unit[n] for n in reversed(order) if unit[n][-1] is n]
    while stack:
        members = stack[-1]
        missing = [] if members[0] in done else _missing(members, unit, done)
        if missing:
            stack += [unit[o] for o in reversed(missing)]
            continue
        stack.pop()
        if members[0] not in done:
            out += members
            done |= set(members)
    return out


def _missing(
    members: tuple[Node, ...], unit: dict[Node, tuple[Node, ...]], done: set[Node]
) -> list[Node]:
    """What must come before the members and has not."""
    before = (o for n in members for o in feeds(n) if o in unit and o not in done)
    return [o for o in before if unit[o] is not members]


def _conditional(node: Node) -> bool:
    """Whether some loads of it may not happen."""
    lazy = any(isinstance(e, Select) for e in walk(*exprs_of(node)))
    return lazy or (isinstance(node, Update) and node.guard is not None)


Extents = dict[str, Dim]
Box = tuple[tuple[Dim, Dim], ...]


@dataclass(frozen=True)
class _Compared:
    """Indices compared with an extent: an expression, or the elements of a tensor.

    `part`: which of them, for each axis where they begin and how many (None: nobody knows).
    """

    index: object
    extent: Dim
    part: Box | None = None

    def of_all(self) -> _Compared:
        """The same for all elements of the tensor."""
        shape = getattr(getattr(self.index, "type", None), "shape", ())
        return replace(self, part=tuple((ZERO, n) for n in shape))


def _check_keys(root: Expr, extents: Extents) -> list[_Compared]:
    out: list[_Compared] = []
    for e in walk(root):
        if isinstance(e, Load) and e.check is not None:
            out += _index_keys(e.index, e.tensor.type.shape, extents)
    return out


def _index_keys(
    index: tuple[Expr, ...], shape: tuple[Dim, ...], extents: Extents
) -> list[_Compared]:
    """What is compared."""
    out: list[_Compared] = []
    for i, extent in zip(index, shape, strict=True):
        while isinstance(i, Op) and i.fn == "cast":
            i = i.args[0]
        if isinstance(i, Load):
            part = _part(i, extents) if i.check is None else None
            out.append(_Compared(i.tensor, extent, part))
        elif not isinstance(i, Idx):
            out.append(_Compared(i, extent))
    return out


def _part(load: Load, extents: Extents) -> Box | None:
    """The elements that loops read, each with a variable of its own."""
    names, out = set[str](), list[tuple[Dim, Dim]]()
    for i, size in zip(load.index, load.tensor.type.shape, strict=True):
        if size == ONE:
            out.append((ZERO, ONE))
            continue
        found = [n for n in i.dim.names if n in extents] if isinstance(i, Idx) else []
        form = i.dim.linear_in(found[0]) if isinstance(i, Idx) and len(found) == 1 else None
        if form is None or form[0] != ONE or found[0] in names:
            return None
        if any(n.startswith("$") for n in form[1].names | extents[found[0]].names):
            return None
        names.add(found[0])
        out.append((form[1], extents[found[0]]))
    return tuple(out)


def _heights(order: list[Node]) -> dict[Node, int]:
    """The longest path from each node to a root."""
    out = dict.fromkeys(order, 0)
    for node in reversed(order):
        for o in feeds(node):
            if o in out:
                out[o] = max(out[o], out[node] + 1)
    return out


def _replaced(graph: Graph) -> dict[Node, tuple[Node, ...]]:
    """For each node that may write into a storage the versions that are lost by it."""
    out: dict[Node, tuple[Node, ...]] = {}
    for w in graph.writes:
        node: Node = w.value
        while isinstance(node, Update):
            out[node] = (node.base,)
            node = node.base
        if isinstance(node, Part):
            node = node.source
        if isinstance(node, Compute | Loop):
            out[node] = (*out.get(node, ()), w.target)
    return out


@dataclass
class _Levels:
    """Longest paths; late writers also come after checks and after readers of the old version."""

    order: list[Node]
    readers: dict[Node, list[Node]]
    checks: list[Node]
    late: set[Node]
    old: dict[Node, tuple[Node, ...]]
    level: dict[Node, int] = field(default_factory=dict)

    def run(self) -> dict[Node, int]:
        plain: dict[Node, int] = {}
        for node in self.order:
            plain[node] = _level(node, plain)
        # Checks depend on no late writer: their levels are final.
        fixed = set(self.checks)
        floor = max((plain[n] + 1 for n in fixed), default=0)
        for node in self.order:
            least = max(floor, self.after_readers(node, plain)) if node in self.late else 0
            self.level[node] = max(_level(node, self.level), least)
        return self.sink(fixed)

    def after_readers(self, node: Node, plain: dict[Node, int]) -> int:
        """The level after readers of the old version, less those that depend on the writer."""
        others = [r for o in self.old[node] for r in self.readers.get(o, ()) if r is not node]
        below = self.dependent(node) if any(plain[r] > plain[node] for r in others) else set()
        if below is None:
            others = [r for r in others if plain[r] <= plain[node]]
        return max((plain[r] + 1 for r in others if r not in (below or ())), default=0)

    def dependent(self, node: Node) -> set[Node] | None:
        """What depends on a node, unless that is much."""
        found: set[Node] = set()
        stack = [node]
        while stack:
            for user in self.readers[stack.pop()]:
                if user not in found:
                    found.add(user)
                    stack.append(user)
            if len(found) > MANY:
                return None
        return found

    def sink(self, fixed: set[Node]) -> dict[Node, int]:
        """Tensors made of inputs only move down to where they are first needed."""
        level = self.level

        def final(n: Node) -> int:
            if (
                isinstance(n, Loop)
                or level[n]
                or not n.type.rank
                or n in fixed
                or not self.readers[n]
            ):
                return level[n]
            return min(level[u] for u in self.readers[n]) - 1

        return {n: final(n) for n in self.order}


def _level(node: Node, level: dict[Node, int]) -> int:
    return max((level[o] + 1 for o in feeds(node) if o in level), default=0)
