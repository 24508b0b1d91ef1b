"""Lowering: each group of a fused graph becomes one kernel (an update that copies, two)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nnc.ir.expr import Const, Expr, Idx, Load, Op, Select, Var, rewrite, walk
from nnc.ir.graph import Axis, Compute, External, Loop, Node, Update
from nnc.ir.loop import (
    REVERSED,
    Buffer,
    Call,
    Commit,
    Contract,
    For,
    Kernel,
    Let,
    Program,
    Reduce,
    Repeat,
    Step,
    Stmt,
    Store,
    free_name,
    kernels_of,
)
from nnc.ir.statements import Stmts, loaded_from, stores_in
from nnc.lang.dims import ONE, ZERO, Dim, Func, dim_prod
from nnc.passes.fuse import Fused, Group
from nnc.passes.lower_alike import Kernels
from nnc.passes.lower_bands import BandLoops
from nnc.passes.schedule.contraction import contraction
from nnc.passes.schedule.extrema import joined
from nnc.passes.schedule.merge import Views, merge
from nnc.passes.schedule.nest import nest
from nnc.passes.schedule.pieces import pieces
from nnc.passes.schedule.space import Space, matched
from nnc.passes.schedule.words import as_word
from nnc.passes.storage import Place, Storage, assign


def lower(fused: Fused) -> Program:
    """The Program of a fused graph; buffers of the arena have no place yet (`memory`)."""
    storage, args, others = assign(fused)
    graph = fused.graph
    inputs = {b.name for b in args[: len(graph.inputs)]}
    steps = _Steps(Views()).of(fused, storage)
    first = next((i for i, s in enumerate(steps) if _writes_to(s, inputs)), None)
    if fused.checks and first is not None:
        steps.insert(first, Commit())
    return Program(
        graph.name,
        graph.dims,
        args,
        others,
        tuple(steps),
        facts=graph.facts,
        span=graph.span,
        results=len(graph.results),
    )


def _writes_to(step: Step, buffers: set[str]) -> bool:
    return any(b.name in buffers for k in kernels_of((step,)) for b in _stored(k))


def _stored(kernel: Kernel) -> list[Buffer]:
    of = kernel.alike
    return [s.buffer for s in stores_in(kernel.body)] if of is None else of.stored


class _Steps:
    """The steps of a function, and of the turns of its loops; kernels are numbered through."""

    def __init__(self, views: Views) -> None:
        self.views, self.number = views, 0
        self.known = Kernels()

    def of(self, fused: Fused, storage: Storage, outside: bool = True) -> list[Step]:
        """`outside`: not in a turn of a loop."""
        out: list[Step] = []
        for group in fused.groups:
            if isinstance(loop := group.nodes[0], Loop):
                out += self.loop(loop, fused, storage)
                continue
            made = self.group(fused, storage, group, outside)
            out += made
            self.number += len(made)
        return [*out, *(self.copy(a, b) for a, b in storage.final)]

    def group(self, fused: Fused, storage: Storage, group: Group, outside: bool) -> list[Kernel]:
        key = self.known.key(fused, storage, group) if outside else None
        if key is not None and (same := self.known.like(key, self.number)) is not None:
            return [same]
        made = _Lowering(fused, storage, group, self.views, self.number).kernels()
        return made if key is None else [self.known.keep(key, k) for k in made]

    def loop(self, loop: Loop, fused: Fused, storage: Storage) -> list[Step]:
        # As deep as loops are nested.
        turn, where = fused.turns[loop], storage.loops[loop]
        out: list[Step] = [self.copy(a, b) for a, b in where.before]
        test: list[Step] = []
        if turn.test is not None and where.test is not None:
            test = self.of(turn.test, where.test, outside=False)
        rest = self.of(turn.rest, where.rest, outside=False)
        out.append(Repeat(loop.var, loop.trip, tuple(rest), tuple(test), where.cond, loop.span))
        return out

    def copy(self, source: Place, target: Place) -> Kernel:
        self.number += 1
        return _copy(source, target, self.number - 1, self.views)


def _copy(source: Place, target: Place, number: int, views: Views) -> Kernel:
    """A kernel `target = source`, of one shape."""
    kind, a, b = source.type, source.buffer, target.buffer
    axes = tuple(Axis(f"$i{d}", n) for d, n in enumerate(kind.shape) if n != ONE)
    index = tuple(
        Idx(Dim.of(f"$i{d}") if n != ONE else Dim.of(0)) for d, n in enumerate(kind.shape)
    )
    value = Load(kind.dtype, a, source.at(index))
    body = nest(axes, (Store(b, target.at(index), value),), views)
    reason = f"copy of {a.name} into {b.name}"
    return Kernel(f"k{number}_copy", body, a.span, reason, kind.elements)


class _Lowering(BandLoops):
    """One group. Variables are renamed where two members use the same name for different loops."""

    def __init__(
        self, fused: Fused, storage: Storage, group: Group, views: Views, number: int
    ) -> None:
        self.fused, self.storage, self.group = fused, storage, group
        self.views, self.number = views, number
        self.taken: set[str] = set()
        self.env: dict[Node, dict[str, Dim]] = {}
        self.values: dict[Node, Var] = {}  # members that are at hand as scalars
        self.value_names: set[str] = set()

    def kernels(self) -> list[Kernel]:
        out = []
        node = self.group.nodes[0]
        if isinstance(node, Update):
            target = self.storage.places[node]
            if node in self.storage.copied:
                out.append(_copy(self.storage.places[node.base], target, self.number, self.views))
            body = self.update(node, target)
            kind = "update"
        elif isinstance(node, External):
            return [self.external(node)]
        elif self.group.kind == "region":
            body, kind = self.region(), "region"
        elif self.group.kind == "band":
            body, kind = self.banded(), "band"
        elif self.group.kind == "contraction":
            body, kind = self.contract(), "contract"
        else:
            body, kind = self.rows(), "rows" if len(self.group.nodes) > 1 else _hint(node)
        work = sum((_work(self.fused.spaces[n]) for n in self.group.nodes), Dim.of(0))
        name = f"k{self.number + len(out)}_{kind}"
        out.append(Kernel(name, body, node.span, self.group.reason, work))
        return out

    # ---- names and expressions ----------------------------------------------------------------

    def rename(self, node: Node, axes: Sequence[Axis], to: Sequence[str] = ()) -> tuple[Axis, ...]:
        """Gives a member's axes names free in the kernel (the first ones: those given)."""
        env = self.env.setdefault(node, {})
        out = []
        for i, a in enumerate(axes):
            name = to[i] if i < len(to) else self.free(a.var)
            env[a.var] = Dim.of(name)
            out.append(Axis(name, a.extent.subst(env)))
        return tuple(out)

    def free(self, var: str) -> str:
        return free_name(var, self.taken)

    def value_name(self, node: Node) -> str:
        base = (node.name.rsplit(".", 1)[-1] if node.name else "") or _hint(node)
        return free_name(base, self.value_names)

    def convert(self, node: Node, root: Expr) -> Expr:
        """An expression in the kernel's variables, its loads from buffers or scalars at hand."""
        env = self.env[node]

        def one(e: Expr) -> Expr:
            if isinstance(e, Idx):
                return Idx(e.dim.subst(env), e.dtype) if e.dim.names & env.keys() else e
            if isinstance(e, Op) and e.fn == "bitor":
                return as_word(e, self.views.as_type)
            return self.load(e) if isinstance(e, Load) else e

        return rewrite(root, one)

    def load(self, e: Load) -> Expr:
        tensor: Node = e.tensor  # type: ignore[assignment]
        if self.group.region is not None and (found := self.member(e)) is not None:
            return found
        if tensor in self.values:
            return self.values[tensor]
        if self.group.band is not None and tensor is self.group.band.node:
            return self.from_band(e)
        strip = self.storage.strips.get(tensor)
        if strip is None:
            place = self.storage.places[tensor]
            return replace(e, tensor=place.buffer, index=place.at(e.index))
        space = self.fused.spaces[tensor]
        homes = space.homes()
        index = tuple(e.index[homes[a.var]] for a in space.axes[self.group.rows :])
        return replace(e, tensor=strip, index=index)

    def store(self, node: Node, value: Expr) -> Store | None:
        """The store of a member's element, if it has memory."""
        space = self.fused.spaces[node]
        if (strip := self.storage.strips.get(node)) is not None:
            env = self.env[node]
            own = tuple(Idx(env[a.var]) for a in space.axes[self.group.rows :])
            return Store(strip, own, value)
        place = self.storage.places.get(node)
        if place is None:
            return None
        index = place.at([self.convert(node, i) for i in space.index])
        return Store(place.buffer, index, value)

    def let(self, node: Node, value: Expr) -> Let:
        """Names a member's element; later reads of it are this scalar."""
        name = self.value_name(node)
        self.values[node] = Var(value.dtype, name)
        return Let(name, value)

    # ---- contractions -------------------------------------------------------------------------

    def contract(self) -> Stmts:
        first = self.group.nodes[0]
        space = self.fused.spaces[first]
        self.rename(first, (*space.axes, *space.raxes))
        made = self.product(self.group.nodes)
        stores = [s for n in self.group.nodes if (s := self.store(n, self.values[n])) is not None]
        return (self.tiled(made, tuple(stores)),)

    def product(self, nodes: Sequence[Node]) -> Contract:
        """The contraction of the first node with the others as its epilogue, without stores."""
        first, *epilogue = nodes
        found = contraction(self.fused.spaces[first])
        assert found is not None, first
        a, b = (self.convert(first, e) for e in (found.a, found.b))
        dtype = "f32" if a.dtype in ("f16", "bf16") else a.dtype
        name = self.value_name(first)
        value: Expr = Var(dtype, name)
        stmts: list[Stmt] = []
        if dtype != a.dtype:
            stmts.append(self.let(first, Op(a.dtype, "cast", (value,))))
            a, b = Op(dtype, "cast", (a,)), Op(dtype, "cast", (b,))
        else:
            self.values[first] = Var(dtype, name)
        for mask in found.masks:
            held = self.values[first]
            chosen = Select(held.dtype, self.convert(first, mask), held, Const(held.dtype, 0.0))
            stmts.append(self.let(first, chosen))
        for node in epilogue:
            assert isinstance(node, Compute)
            self.env[node] = self.matched(node)
            stmts.append(self.let(node, self.convert(node, self.fused.spaces[node].body)))
        groups = found.batch, found.m, found.n, found.k
        return Contract(name, *groups, a, b, tuple(stmts), first.span, fn=found.fn)

    def tiled(self, c: Contract, stores: tuple[Store, ...]) -> Contract:
        """With stores of its results, and adjacent axes merged."""
        m, n, a, b, fn = c.m, c.n, c.a, c.b, c.fn
        last = stores[0].index[-1] if stores[0].index else None
        names = last.dim.names if isinstance(last, Idx) else frozenset()
        if any(x.var in names for x in m) and not any(x.var in names for x in n):
            m, n, a, b, fn = n, m, b, a, REVERSED[fn]
        groups: list[tuple[Axis, ...]] = []
        exprs: tuple[Expr, ...] = (a, b)
        body: Stmts = (*c.epilogue, *stores)
        for axes in (c.batch, m, n, c.k):
            merged, body, exprs = merge(axes, body, exprs, self.views, self.taken)
            self.taken |= {x.var for x in merged}
            groups.append(merged)
        batch, m, n, k = groups
        a, b = exprs
        return Contract(c.name, batch, m, n, k, a, b, body, c.span, fn=fn)

    def matched(self, node: Compute) -> dict[str, Dim]:
        """An epilogue member's variables in the contraction's."""
        space = self.fused.spaces[node]
        for e in walk(space.body):
            if not isinstance(e, Load) or e.tensor not in self.env:
                continue
            member: Node = e.tensor
            found = matched(e, self.fused.spaces[member], space)
            assert found is not None, node
            return {v: d.subst(self.env[member]) for v, d in found.items()}
        raise AssertionError(node)

    # ---- functions of C ----

    def external(self, node: External) -> Kernel:
        def first(n: Node) -> Load:
            place = self.storage.places[n]
            zeros = tuple(Idx(Dim.of(0)) for _ in n.type.shape)
            return Load(n.type.dtype, place.buffer, place.at(zeros))

        here = first(node)
        assert isinstance(here.tensor, Buffer)
        result = Store(here.tensor, here.index, Const(node.type.dtype, 0))
        elements = node.type.elements
        call = Call(
            node.symbol,
            node.prototype,
            node.sizes,
            tuple(first(i) for i in node.inputs),
            tuple(not node.each and not i.type.shape for i in node.inputs),
            result,
            elements if node.each else None,
        )
        name = f"k{self.number}_extern"
        return Kernel(name, (call,), node.span, self.group.reason, elements)

    # ---- updates ------------------------------------------------------------------------------

    def update(self, node: Update, target: Place) -> Stmts:
        space = self.fused.spaces[node]
        axes = self.rename(node, space.axes)
        index = tuple(self.convert(node, i) for i in space.index)
        guard = None if space.guard is None else self.convert(node, space.guard)
        value = self.convert(node, space.body)
        store = Store(target.buffer, target.at(index), value, node.accumulate, guard, node.check)
        serial: tuple[Axis, ...] = ()
        if node.accumulate:
            bare = [i.dim.name for i in index if isinstance(i, Idx) and i.dim.name]
            used = [n for i in index for e in walk(i) if isinstance(e, Idx) for n in e.dim.names]
            free = {n for n in bare if used.count(n) == 1}
            serial = tuple(a for a in axes if a.var not in free)
            axes = tuple(a for a in axes if a.var in free)
        return nest(axes, (store,), self.views, serial=serial, taken=self.taken)

    # ---- rows ---------------------------------------------------------------------------------

    def rows(self) -> Stmts:
        first = self.group.nodes[0]
        rows = self.rename(first, self.fused.spaces[first].axes[: self.group.rows])
        stmts = self.each_row(self.group.nodes, [Dim.of(a.var) for a in rows])
        body = self.around(rows, stmts)
        return _without(body, self.unread(body))

    def each_row(self, nodes: Sequence[Node], head: Sequence[Dim]) -> Stmts:
        """What is done for one row, the indices of whose axes are `head`."""
        group, spaces = self.group, self.fused.spaces
        flat = all(len(spaces[n].axes) == group.rows for n in nodes)
        stmts: list[Stmt] = []
        late: list[Stmt] = []
        segment: list[Node] = []
        for node in nodes:
            space = spaces[node]
            own = zip(space.axes[: group.rows], head, strict=True)
            self.env.setdefault(node, {}).update({a.var: d for a, d in own})
            rest = space.axes[group.rows :]
            if segment and not self.continues(segment, space, rest):
                stmts += self.flush(segment)
                segment = []
            if rest:
                segment.append(node)
                continue
            stmts += self.scalar(node, space)
            store = self.store(node, self.values[node])
            (late if flat else stmts).extend([] if store is None else [store])
        stmts += self.flush(segment)
        return joined((*stmts, *late))

    def around(self, rows: tuple[Axis, ...], stmts: Stmts) -> Stmts:
        """Loops over the rows around what is done for each."""
        if not all(isinstance(s, Let | Store) for s in stmts):
            return nest(rows, stmts, self.views, taken=self.taken)
        return tuple(
            s
            for axes, part in pieces(rows, stmts, self.fused.graph.facts)
            for s in nest(axes, part, self.views, taken=self.taken)
        )

    def unread(self, body: Stmts) -> set[str]:
        """Memory of private members that all readers found at hand."""
        out = self.storage
        loaded = {b.name for b in loaded_from(body)}
        members = [n for n in self.group.nodes if n in out.private]
        mine = {out.strips[n].name for n in members if n in out.strips}
        mine |= {out.places[n].buffer.name for n in members if n in out.places}
        public = {out.places[n].buffer.name for n in self.group.nodes if n not in out.private}
        return mine - loaded - public

    def scalar(self, node: Node, space: Space) -> list[Stmt]:
        """A member with one value per row."""
        if not space.raxes:
            return [self.let(node, self.convert(node, space.body))]
        return [self.reduce(node, space)]

    def reduce(self, node: Node, space: Space) -> Reduce:
        raxes = self.rename(node, space.raxes)
        value = self.convert(node, space.body)
        name = self.value_name(node)
        dtype = "i32" if space.op in ("argmax", "argmin") else value.dtype
        self.values[node] = Var(dtype, name)
        return Reduce(name, space.op, raxes, value, None, node.span)

    def continues(self, segment: list[Node], space: Space, rest: tuple[Axis, ...]) -> bool:
        """Whether a member may run in the segment's loops: same sizes, reads its own element."""
        first = self.fused.spaces[segment[0]]
        old = first.axes[self.group.rows :]
        if bool(space.raxes) != bool(first.raxes):
            return False
        if [a.extent for a in old] != [a.extent for a in rest]:
            return False
        if space.raxes and any(
            isinstance(e, Load) and e.tensor in segment for e in walk(space.body)
        ):
            return False
        for e in walk(space.body):
            if isinstance(e, Load) and e.tensor in segment:
                member = self.fused.spaces[e.tensor]
                homes = member.homes()
                for mine, its in zip(rest, member.axes[self.group.rows :], strict=True):
                    i = e.index[homes[its.var]] if its.var in homes else None
                    if not isinstance(i, Idx) or i.dim.name != mine.var:
                        return False
        return True

    def flush(self, segment: list[Node]) -> list[Stmt]:
        """The loops of members with several values per row."""
        if not segment:
            return []
        spaces, rows = self.fused.spaces, self.group.rows
        rest = self.rename(segment[0], spaces[segment[0]].axes[rows:])
        body: list[Stmt] = []
        stores: list[Stmt] = []
        for node in segment:
            self.rename(node, spaces[node].axes[rows:], [a.var for a in rest])
            body += self.scalar(node, spaces[node])
            store = self.store(node, self.values[node])
            stores += [] if store is None else [store]
        for node in segment:
            del self.values[node]
        stmts = joined((*body, *stores))
        return list(nest(rest, stmts, self.views, parallel=False, taken=self.taken))


def _without(stmts: Stmts, names: set[str]) -> Stmts:
    """The statements less the stores to some buffers."""
    if not names:
        return stmts
    kept = (s for s in stmts if not (isinstance(s, Store) and s.buffer.name in names))
    return tuple(
        replace(s, body=_without(s.body, names)) if isinstance(s, For) else s for s in kept
    )


def _hint(node: Node) -> str:
    return (node.op or "map") if isinstance(node, Compute) else "update"


def _work(s: Space) -> Dim:
    ops = sum(1 for e in walk(*s.exprs) if isinstance(e, Load | Op))
    return dim_prod(_most(a.extent) for a in (*s.axes, *s.raxes)) * max(ops, 1)


def _most(extent: Dim) -> Dim:
    """The extent of all pieces of a cut loop but the last; of the first phase of a stride."""
    match extent.functions:
        case [Func(kind="min", a=a, b=b)] if any(n.startswith("$") for n in extent.names):
            return _most(b if any(n.startswith("$") for n in a.names) else a)
        case [Func(kind="max", a=a, b=b)] if ZERO in (a, b):
            return _most(b if a == ZERO else a)
    phases = [n for n in extent.names if n.startswith("$") and "." not in n]
    return extent.subst(dict.fromkeys(phases, ZERO))
