"""Where values live: which node has which buffer, what is written in place, what is copied."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from nnc.ir.expr import Expr, Idx, Load, index_number, never_meet, walk
from nnc.ir.graph import (
    Compute,
    Constant,
    External,
    Input,
    Loop,
    Node,
    Part,
    Update,
    operands,
)
from nnc.ir.loop import Buffer
from nnc.lang.dims import Dim
from nnc.lang.types import TensorType
from nnc.passes.fuse import Fused, Group
from nnc.passes.regions import Region

STRIP_BYTES = 16384  # largest row strip that is kept beside the kernel
ROWS = 64  # at least the rows of a block of a region


@dataclass(frozen=True, eq=False)
class Place:
    """Memory of a value: a buffer, or the slice of it at the leading indices `lead`."""

    buffer: Buffer
    lead: tuple[Expr, ...] = ()

    @property
    def type(self) -> TensorType:
        whole = self.buffer.type
        return TensorType(whole.dtype, whole.shape[len(self.lead) :])

    def at(self, index: Sequence[Expr]) -> tuple[Expr, ...]:
        """The index in the buffer."""
        return (*self.lead, *index)


Copy = tuple[Place, Place]  # from, to


@dataclass
class Repeated:
    """A loop: where the first carried values must be copied, the memory of a turn."""

    before: list[Copy]
    rest: Storage
    test: Storage | None = None
    cond: Buffer | None = None


@dataclass
class Shared:
    """Of the whole Program: names in use, buffers that are not arguments."""

    names: set[str] = field(default_factory=set)
    buffers: dict[Buffer, None] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)  # by base, the last number given out

    def named(self, name: str, hint: str) -> str:
        base = re.sub(r"[^A-Za-z0-9_.]", "_", name) or hint
        name, n = base, self.last.get(base, 1)
        while name in self.names:
            n += 1
            name = f"{base}_{n}"
        self.names.add(name)
        self.last[base] = n
        return name


@dataclass
class Storage:
    """`places`: nodes with memory. `strips`: row-local arrays. Others are scalars of one kernel.

    `copied`: updates that do not work in place: their base is copied into their memory first.
    `final`: copies at the end, into inputs that could not be overwritten earlier.
    """

    places: dict[Node, Place] = field(default_factory=dict)
    strips: dict[Node, Buffer] = field(default_factory=dict)
    private: set[Node] = field(default_factory=set)  # read by their own kernel only
    copied: set[Node] = field(default_factory=set)
    final: list[Copy] = field(default_factory=list)
    loops: dict[Node, Repeated] = field(default_factory=dict)


def assign(fused: Fused) -> tuple[Storage, tuple[Buffer, ...], tuple[Buffer, ...]]:
    """Memory for all nodes of a fused graph; the arguments, and all other buffers."""
    shared, graph = Shared(), fused.graph
    args = [
        Buffer(shared.named(x.name, "arg"), x.type, "arg", slot=i, span=x.span)
        for i, x in enumerate(graph.inputs)
    ]
    for j, r in enumerate(graph.results):
        name = shared.named(f"result{j}", "result")
        args.append(Buffer(name, r.type, "arg", slot=len(args), span=r.span))
    storage = _Assigner(fused, shared, [Place(b) for b in args]).run()
    return storage, tuple(args), tuple(shared.buffers)


class _Assigner:
    """`places`: of the inputs, then of the results."""

    def __init__(self, fused: Fused, shared: Shared, places: Sequence[Place]) -> None:
        self.fused, self.graph, self.shared = fused, fused.graph, shared
        self.users = fused.users
        self.position: dict[Node, int] = {n: i for i, g in enumerate(fused.groups) for n in g.nodes}
        self.fresh: set[Node] = set()  # values alone in memory of the arena
        self.roots = set(self.graph.roots)
        checks = [self.position[n] for n in fused.checks if n in self.position]
        self.last_check = max(checks, default=-1)
        self.out = Storage(
            dict(zip((*self.graph.inputs, *self.graph.results), places, strict=True))
        )
        self.inputs = {self.out.places[x].buffer for x in self.graph.inputs}

    def run(self) -> Storage:
        out = self.out
        for w in self.graph.writes:
            self.claim(w.target, w.value)
        for loop in self.fused.turns:
            self.first_in_result(loop)
        for group in self.fused.groups:
            for node in group.nodes:
                self.constants(node)
                if isinstance(node, Loop):
                    self.loop(node)
                elif isinstance(node, Update):
                    self.update(node)
                elif isinstance(node, External):
                    if node not in out.places:
                        out.places[node] = self.arena(node)
                        self.fresh.add(node)
                elif node not in out.places:
                    self.compute(node, group)
            if group.kind == "rows":
                self.share(group)
        for w in self.graph.writes:
            home, source = out.places[w.target], out.places[w.value]
            if home is not source:
                out.final.append((source, home))
        return out

    def constants(self, node: Node) -> None:
        for o in operands(node):
            self.constant(o)

    def constant(self, c: Node) -> None:
        if isinstance(c, Constant) and c not in self.out.places:
            name = self.shared.named(c.name, "const")
            buffer = Buffer(name, c.type, "const", data=c.data, span=c.span)
            self.out.places[c] = Place(buffer)
            self.shared.buffers[buffer] = None

    def arena(self, node: Node) -> Place:
        hint = {Update: "updated", Input: "carry"}.get(type(node), "t")
        hint = node.op or hint if isinstance(node, Compute) else hint
        buffer = Buffer(self.shared.named(node.name, hint), node.type, "arena", span=node.span)
        self.shared.buffers[buffer] = None
        return Place(buffer)

    # ---- in place -----------------------------------------------------------------------------

    def claim(self, target: Input, value: Node) -> None:
        """Gives the first node of a written value's chain of updates the input's own memory."""
        node = value
        while isinstance(node, Update):
            if node not in self.fused.inplace or self.position[node] <= self.last_check:
                return
            node = node.base
        if node in self.out.places:
            return
        may = isinstance(node, Compute) and self.may_overwrite(node, target)
        if may or (isinstance(node, Part) and self.may_run_in(node, target)):
            self.out.places[node] = self.out.places[target]

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
            order, own = group.maps[reader], group.maps[writer]
        else:
            # Rows of scalars are stored when all are computed.
            flat = all(len(spaces[n].axes) == group.rows for n in group.nodes)
            if not flat and _after(group, reader, writer):
                return False
            order, own = (
                {a.var: Dim.of(f"${i}") for i, a in enumerate(spaces[n].axes)}
                for n in (reader, writer)
            )
        want = [_positions(i, own) for i in spaces[writer].index]
        return all(
            [_positions(i, order) for i in e.index] == want
            for e in walk(*spaces[reader].exprs)
            if isinstance(e, Load) and e.tensor is target
        )

    def update(self, node: Update) -> None:
        out, base = self.out, node.base
        if node in out.places or not self.in_place(node):
            out.copied.add(node)
            if node not in out.places:
                out.places[node] = self.arena(node)
                self.fresh.add(node)
            return
        out.places[node] = out.places[base]

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
        axes, want = [a.var for a in space.axes], [_positions(i, {}) for i in space.index]
        own = () if node.accumulate else (want,)
        return not axes or all(
            [_positions(i, {}) for i in e.index] in own or never_meet(e.index, space.index, axes)
            for e in reads
        )

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
        written = [index_number(i) for i in self.fused.spaces[node].index]
        loads = (e for e in walk(*self.fused.spaces[reader].exprs) if isinstance(e, Load))
        return all(
            any(
                w is not None and r is not None and w != r
                for w, r in zip(written, map(index_number, e.index), strict=True)
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

    # ---- loops --------------------------------------------------------------------------------

    def may_run_in(self, part: Part, target: Input) -> bool:
        """Whether a loop may work in the memory of an input that its result replaces."""
        loop = part.source
        assert isinstance(loop, Loop), part
        at = self.position[loop]
        if loop not in self.fused.inplace or at <= self.last_check:
            return False
        if any(u is not loop and self.position[u] >= at for u in self.users.get(target, ())):
            return False
        others = (*loop.init[: part.index], *loop.init[part.index + 1 :])
        return target not in others and target not in self.fused.turns[loop].captures

    def first_in_result(self, loop: Node) -> None:
        """The first carried values are computed in the memory of the results that they become."""
        assert isinstance(loop, Loop), loop
        for p in self.users[loop]:
            if isinstance(p, Part) and p in self.graph.results and p.index < len(loop.init):
                first = loop.init[p.index]
                fresh = isinstance(first, Compute) and first not in self.out.places
                if fresh and self.last_reader(first, loop):
                    self.out.places[first] = self.out.places[p]

    def loop(self, node: Loop) -> None:
        """The carried values have one place each, that of the last version."""
        turn, places = self.fused.turns[node], self.out.places
        parts = {p.index: p for p in self.users[node] if isinstance(p, Part)}
        before: list[Copy] = []
        homes: list[Place] = []
        for k, (carry, first) in enumerate(zip(node.carries, node.init, strict=True)):
            part = parts.get(k)
            home = None if part is None else places.get(part)
            if home is None and self.ends_in(first, node) and places[first] not in homes:
                home = places[first]
            home = home or self.arena(carry)
            if home is not places[first]:
                before.append((places[first], home))
            if part is not None and part not in places:
                places[part] = home
                self.fresh.add(part)
            homes.append(home)
        inputs = [*homes, *(places[c] for c in turn.captures)]
        for p in parts.values():
            if p not in places:
                places[p] = self.arena(p)
                self.fresh.add(p)
        turn_index = (Idx(Dim.of(node.var)),)
        results = [places[parts[k + len(node.carries)]] for k in turn.yields]
        if node.reverse:
            turn_index = (Idx(node.trip - 1 - Dim.of(node.var)),)
        results = [Place(r.buffer, (*r.lead, *turn_index)) for r in results]
        rest = _Assigner(turn.rest, self.shared, [*inputs, *results]).run()
        self.out.loops[node] = out = Repeated(before, rest)
        if turn.test is not None:
            test = self.arena(turn.test.graph.results[0])
            out.cond = test.buffer
            out.test = _Assigner(turn.test, self.shared, [*inputs, test]).run()

    def ends_in(self, value: Node, loop: Loop) -> bool:
        """Whether nothing needs the value, or its memory, after the loop has begun."""
        return value in self.fresh and self.last_reader(value, loop)

    def last_reader(self, value: Node, loop: Loop) -> bool:
        """Whether nothing reads the value after the loop has begun."""
        at = self.position[loop]
        if value in self.roots:
            return False
        if value in self.fused.turns[loop].captures:
            return False
        return all(u is loop or self.position[u] < at for u in self.users[value])

    # ---- other values -------------------------------------------------------------------------

    def compute(self, node: Node, group: Group) -> None:
        """No memory for what only its own kernel reads; a strip where that is a row of values."""
        private = node not in self.roots and all(u in group.nodes for u in self.users[node])
        space = self.fused.spaces[node]
        if group.region is not None and self.in_region(node, group.region, private):
            return
        if group.band is not None and self.in_band(node, group):
            return
        rest = space.axes[group.rows :] if group.kind in ("rows", "band") else ()
        if private:
            self.out.private.add(node)
        if private and not rest:
            return
        if private and all(a.var in space.homes() for a in rest):
            shape = tuple(a.extent for a in rest)
            count = TensorType(node.type.dtype, shape).bytes.const
            count = 0 if count is None and group.band is not None else count  # as long as a band's
            if count is not None and count <= STRIP_BYTES:
                name = self.shared.named(node.name, "strip")
                self.out.strips[node] = Buffer(
                    name, TensorType(node.type.dtype, shape), "local", span=node.span
                )
                return
        self.out.places[node] = self.arena(node)
        self.fresh.add(node)

    def in_region(self, node: Node, region: Region, private: bool) -> bool:
        """Strips have memory of their kernel, and so have rows that only it needs."""
        if region.roles[node] == "row" and private:
            kind = TensorType(node.type.dtype, (Dim.of(ROWS),))
            name = self.shared.named(node.name, "row")
            self.out.strips[node] = Buffer(name, kind, "local", span=node.span)
        return region.roles[node] == "strip" or node in self.out.strips

    def in_band(self, node: Node, group: Group) -> bool:
        """What makes a band has no memory, but for the band itself."""
        band = group.band
        assert band is not None, group
        if node is band.node:
            axes = (a for a in self.fused.spaces[node].axes if a.var not in band.outer)
            shape = tuple(Dim.of(band.rows) if a.var == band.row else a.extent for a in axes)
            kind = TensorType(node.type.dtype, shape)
            name = self.shared.named(node.name, "band")
            self.out.strips[node] = Buffer(name, kind, "local", span=node.span)
        return node in group.nodes[: band.count]

    def share(self, group: Group) -> None:
        """A private row takes the memory of the member that reads it last, element by element."""
        order: dict[Node, int] = {n: i for i, n in enumerate(group.nodes)}
        taken: set[Node] = set()
        for node in reversed(group.nodes):
            place = self.out.places.get(node)
            if node not in self.out.private or place is None or not self.users[node]:
                continue
            last = max(self.users[node], key=lambda u: order[u])
            home = self.out.places.get(last)
            if home is None or home.buffer in self.inputs:
                continue
            if last in taken or home.type != place.type:
                continue
            if self.overwrites(last, node):
                taken.add(last)
                self.out.places[node] = home
                del self.shared.buffers[place.buffer]

    def overwrites(self, reader: Node, node: Node) -> bool:
        """Whether a member reads another only at the place where it writes its own value."""
        space = self.fused.spaces[reader]
        want = [_positions(i, {}) for i in space.index]
        reads = [e for e in walk(space.body) if isinstance(e, Load) and e.tensor is node]
        return not space.raxes and all([_positions(i, {}) for i in e.index] == want for e in reads)


def _after(group: Group, a: Node, b: Node) -> bool:
    nodes: list[Node] = list(group.nodes)
    return nodes.index(a) > nodes.index(b)


def _positions(e: object, order: dict[str, Dim]) -> object:
    """An index component in a form that is equal for equal places."""
    return e.dim.subst(order) if isinstance(e, Idx) else e
