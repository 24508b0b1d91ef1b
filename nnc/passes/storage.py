"""Where values live: which node has which buffer, what is written in place, what is copied."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from nnc.ir.expr import Idx, Load, walk
from nnc.ir.graph import Compute, Constant, Input, Node, Update
from nnc.ir.loop import Buffer
from nnc.lang.dims import Dim
from nnc.lang.types import TensorType
from nnc.passes.fuse import Fused, Group
from nnc.passes.order import exprs_of

STRIP_BYTES = 16384  # largest row strip that is kept beside the kernel


@dataclass
class Storage:
    """`buffers`: nodes with memory. `strips`: row-local arrays. Others are scalars of one kernel.

    `copied`: updates that do not work in place: their base is copied into their buffer first.
    `final`: (from, to) copies at the end, into inputs that could not be overwritten earlier.
    """

    args: tuple[Buffer, ...]
    buffers: dict[Node, Buffer] = field(default_factory=dict)
    strips: dict[Node, Buffer] = field(default_factory=dict)
    private: set[Node] = field(default_factory=set)  # read by their own kernel only
    copied: set[Node] = field(default_factory=set)
    final: list[tuple[Buffer, Buffer]] = field(default_factory=list)
    others: dict[Buffer, None] = field(default_factory=dict)


def assign(fused: Fused) -> Storage:
    """Buffers for all nodes of a fused graph."""
    return _Assigner(fused).run()


class _Assigner:
    def __init__(self, fused: Fused) -> None:
        self.fused, self.graph = fused, fused.graph
        self.users = fused.users
        self.position: dict[Node, int] = {n: i for i, g in enumerate(fused.groups) for n in g.nodes}
        self.names: set[str] = set()
        self.roots = set(self.graph.roots)
        checks = [self.position[n] for n in fused.checks if n in self.position]
        self.last_check = max(checks, default=-1)
        args = [
            Buffer(self.named(x.name, "arg"), x.type, "arg", slot=i, span=x.span)
            for i, x in enumerate(self.graph.inputs)
        ]
        for j, r in enumerate(self.graph.results):
            name = self.named(f"result{j}", "result")
            args.append(Buffer(name, r.type, "arg", slot=len(args), span=r.span))
        self.out = Storage(tuple(args))

    def run(self) -> Storage:
        out, n = self.out, len(self.graph.inputs)
        out.buffers |= zip(self.graph.inputs, out.args[:n], strict=True)
        out.buffers |= zip(self.graph.results, out.args[n:], strict=True)
        for w in self.graph.writes:
            self.claim(w.target, w.value)
        for group in self.fused.groups:
            for node in group.nodes:
                self.constants(node)
                if isinstance(node, Update):
                    self.update(node)
                elif node not in out.buffers:
                    self.compute(node, group)
            if group.kind == "rows":
                self.share(group)
        for w in self.graph.writes:
            home, source = out.buffers[w.target], out.buffers[w.value]
            if home is not source:
                out.final.append((source, home))
        return out

    def named(self, name: str, hint: str) -> str:
        base = re.sub(r"[^A-Za-z0-9_.]", "_", name) or hint
        name, n = base, 1
        while name in self.names:
            n += 1
            name = f"{base}_{n}"
        self.names.add(name)
        return name

    def constants(self, node: Node) -> None:
        for e in walk(*exprs_of(node)):
            if isinstance(e, Load) and isinstance(e.tensor, Constant):
                self.constant(e.tensor)
        if isinstance(node, Update) and isinstance(node.base, Constant):
            self.constant(node.base)

    def constant(self, c: Constant) -> None:
        if c not in self.out.buffers:
            name = self.named(c.name, "const")
            self.out.buffers[c] = Buffer(name, c.type, "const", data=c.data, span=c.span)
            self.out.others[self.out.buffers[c]] = None

    def arena(self, node: Node) -> Buffer:
        hint = (node.op or "t") if isinstance(node, Compute) else "updated"
        buffer = Buffer(self.named(node.name, hint), node.type, "arena", span=node.span)
        self.out.others[buffer] = None
        return buffer

    # ---- in place -----------------------------------------------------------------------------

    def claim(self, target: Input, value: Node) -> None:
        """Gives the first node of a written value's chain of updates the input's own memory."""
        node = value
        while isinstance(node, Update):
            if node not in self.fused.inplace or self.position[node] <= self.last_check:
                return
            node = node.base
        if (
            isinstance(node, Compute)
            and node not in self.out.buffers
            and self.may_overwrite(node, target)
        ):
            self.out.buffers[node] = self.out.buffers[target]

    def may_overwrite(self, node: Compute, target: Input) -> bool:
        at = self.position[node]
        if node not in self.fused.inplace or at <= self.last_check:
            return False
        return all(
            self.position[u] < at or (self.position[u] == at and self.same_element(u, node, target))
            for u in self.users.get(target, ())
        )

    def same_element(self, reader: Node, writer: Compute, target: Node) -> bool:
        """Whether a node of the writer's kernel reads `target` only where it writes next."""
        group = self.fused.groups[self.position[writer]]
        spaces = self.fused.spaces
        if len(spaces[reader].axes) != len(spaces[writer].axes):
            return False
        if group.kind == "contraction":
            if reader is group.nodes[0]:
                return False
            maps: dict[Node, dict[str, str]] = group.maps
            first = {v: i for i, v in enumerate(maps[group.nodes[0]])}
            order, own = ({v: first[w] for v, w in maps[n].items()} for n in (reader, writer))
        else:
            # Rows of scalars are stored when all are computed.
            flat = all(len(spaces[n].axes) == group.rows for n in group.nodes)
            if not flat and _after(group, reader, writer):
                return False
            order, own = (
                {a.var: i for i, a in enumerate(spaces[n].axes)} for n in (reader, writer)
            )
        want = [_positions(i, own) for i in spaces[writer].index]
        return all(
            [_positions(i, order) for i in e.index] == want
            for e in walk(*spaces[reader].exprs)
            if isinstance(e, Load) and e.tensor is target
        )

    def update(self, node: Update) -> None:
        out, base = self.out, node.base
        if node in out.buffers or not self.in_place(node):
            out.copied.add(node)
            if node not in out.buffers:
                out.buffers[node] = self.arena(node)
            return
        out.buffers[node] = out.buffers[base]

    def in_place(self, node: Update) -> bool:
        base = node.base
        if isinstance(base, Constant) or base in self.roots:
            return False
        if isinstance(base, Input) and not self.writes_to(node, base):
            return False
        if not all(self.apart(node, u, version) for u, version in self.later(node)):
            return False
        space = self.fused.spaces[node]
        reads = [e for e in walk(*space.exprs) if isinstance(e, Load) and e.tensor is base]
        want = [_positions(i, {}) for i in space.index]
        same = all([_positions(i, {}) for i in e.index] == want for e in reads)
        return same and not (reads and node.accumulate)

    def later(self, node: Update) -> Iterator[tuple[Node, Node]]:
        """Reads after `node` of versions whose memory it would write to: `(reader, version)`."""
        at, after, version = self.position[node], node, node.base
        while True:
            for u in self.users[version]:
                if u is not after and self.position[u] >= at:
                    yield u, version
            if not isinstance(version, Update) or version in self.out.copied:
                return
            after, version = version, version.base

    def apart(self, node: Update, reader: Node, version: Node) -> bool:
        """Whether a node reads only elements of a version that the update does not write."""
        if not isinstance(reader, Compute | Update):
            return False
        if isinstance(reader, Update) and reader.base is version:
            return False
        written = [_number(i) for i in self.fused.spaces[node].index]
        loads = (e for e in walk(*self.fused.spaces[reader].exprs) if isinstance(e, Load))
        return all(
            any(
                w is not None and r is not None and w != r
                for w, r in zip(written, map(_number, e.index), strict=True)
            )
            for e in loads
            if e.tensor is version
        )

    def writes_to(self, node: Update, target: Input) -> bool:
        """Whether the node is a version of the input that ends in a write to it."""
        for w in self.graph.writes:
            value = w.value
            while isinstance(value, Update) and value is not node:
                value = value.base
            if value is node:
                late = node in self.fused.inplace and self.position[node] > self.last_check
                return w.target is target and late
        return False

    # ---- other values -------------------------------------------------------------------------

    def compute(self, node: Node, group: Group) -> None:
        """No memory for what only its own kernel reads; a strip where that is a row of values."""
        private = node not in self.roots and all(u in group.nodes for u in self.users[node])
        space = self.fused.spaces[node]
        rest = space.axes[group.rows :] if group.kind == "rows" else ()
        if private:
            self.out.private.add(node)
        if private and not rest:
            return
        if private and all(a.var in space.homes() for a in rest):
            shape = tuple(a.extent for a in rest)
            count = TensorType(node.type.dtype, shape).bytes.const
            if count is not None and count <= STRIP_BYTES:
                name = self.named(node.name, "strip")
                self.out.strips[node] = Buffer(
                    name, TensorType(node.type.dtype, shape), "local", span=node.span
                )
                return
        self.out.buffers[node] = self.arena(node)

    def share(self, group: Group) -> None:
        """A private row takes the memory of the member that reads it last, element by element."""
        inputs = {self.out.buffers[x].name for x in self.graph.inputs}
        order: dict[Node, int] = {n: i for i, n in enumerate(group.nodes)}
        taken: set[Node] = set()
        for node in reversed(group.nodes):
            buffer = self.out.buffers.get(node)
            if node not in self.out.private or buffer is None or not self.users[node]:
                continue
            last = max(self.users[node], key=lambda u: order[u])
            home = self.out.buffers.get(last)
            if home is None or home.name in inputs or last in taken or home.type != buffer.type:
                continue
            if self.overwrites(last, node):
                taken.add(last)
                self.out.buffers[node] = home
                del self.out.others[buffer]

    def overwrites(self, reader: Node, node: Node) -> bool:
        """Whether a member reads another only at the place where it writes its own value."""
        space = self.fused.spaces[reader]
        want = [_positions(i, {}) for i in space.index]
        reads = [e for e in walk(space.body) if isinstance(e, Load) and e.tensor is node]
        return not space.raxes and all([_positions(i, {}) for i in e.index] == want for e in reads)


def _number(e: object) -> int | None:
    return e.dim.const if isinstance(e, Idx) else None


def _after(group: Group, a: Node, b: Node) -> bool:
    nodes: list[Node] = list(group.nodes)
    return nodes.index(a) > nodes.index(b)


def _positions(e: object, order: dict[str, int]) -> object:
    """An index component in a form that is equal for equal places."""
    if isinstance(e, Idx):
        env = {v: Dim.of(f"${i}") for v, i in order.items()}
        return e.dim.subst(env)
    return e
