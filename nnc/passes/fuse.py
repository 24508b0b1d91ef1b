"""Fusion: which values own a buffer (`inline`) and which of them one kernel computes (groups).

Groups are formed in launch order. A node joins a group only if everything else that it reads comes
from groups launched before, so the order of groups is always a valid order of launches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import UnionType

from nnc.ir.expr import Idx, Load, Op, Tensor, names, walk
from nnc.ir.graph import (
    Axis,
    Compute,
    External,
    Graph,
    Loop,
    Node,
    Part,
    Update,
    Write,
    operands,
)
from nnc.ir.printer import node_names, print_graph
from nnc.lang.dims import ONE, ZERO, Dim, dim_prod
from nnc.passes.around import around
from nnc.passes.bands import Band, find_band
from nnc.passes.factor import factor
from nnc.passes.forward import forward
from nnc.passes.inline import inline
from nnc.passes.loop_body import joined_parts, turns
from nnc.passes.order import Launch, feeds, launch, together
from nnc.passes.partials import split_reductions
from nnc.passes.recompute import settled
from nnc.passes.regions import Found, Region, find_regions
from nnc.passes.schedule.contraction import Contraction, contraction
from nnc.passes.schedule.space import Space, matched, space
from nnc.passes.separate import separate
from nnc.passes.slices import slices
from nnc.passes.turned import turned

MAX_MEMBERS = 24  # nodes of a group
MAX_EXPRS = 600  # expressions of a group


@dataclass(frozen=True)
class Group:
    """Nodes computed by one kernel, operands first.

    `kind`: "contraction" (the first node, then an element-wise epilogue), "rows" (all share their
    first `rows` axes), "band" (one behind the other), "region", "update", "loop" or "external".
    `reason`: one line for `nnc explain`.
    """

    kind: str
    nodes: tuple[Compute | Update | Loop | External, ...]
    rows: int = 0
    reason: str = ""
    maps: dict[Node, dict[str, Dim]] = field(default_factory=dict)  # see `_Open`
    region: Region | None = None
    band: Band | None = None


@dataclass(frozen=True)
class Fused:
    """The graph of values that own a buffer, and its kernels in launch order.

    `inplace`: written values that, as far as index checks are concerned, may be stored over the
    input they replace. `checks`: nodes with a run-time index check that is not a repetition.
    """

    graph: Graph
    groups: tuple[Group, ...]
    spaces: dict[Node, Space]
    users: dict[Node, list[Node]]
    inplace: frozenset[Node]
    checks: frozenset[Node]
    turns: dict[Node, Turn] = field(default_factory=dict)


@dataclass(frozen=True)
class Turn:
    """The fused `Turns` of a loop."""

    captures: tuple[Node, ...]
    yields: tuple[int, ...]
    rest: Fused
    test: Fused | None


def fuse(graph: Graph, body: bool = False, winograd: bool = False) -> Fused:
    """Decides buffers and kernels. `body`: of a turn of a loop; `winograd`: windows of 3 x 3 may be
    computed in that form."""
    graph = inline(own_roots(separate(forward(slices(joined_parts(graph))))))
    graph = split_reductions(factor(settled(turned(around(graph)))))
    found = find_regions(graph)
    graph = found.graph
    first = launch(graph, body)
    fuser = _Fuser(graph, first, found, body)
    for node in together(first.order, [r.nodes for r in found.regions]):
        fuser.place(node)
    return Fused(
        graph,
        tuple(fuser.close(winograd)),
        fuser.spaces,
        first.users,
        first.writers,
        first.checks,
        {n: _turn(n, graph, first.users[n]) for n in first.order if isinstance(n, Loop)},
    )


def _turn(loop: Loop, graph: Graph, users: list[Node]) -> Turn:
    # As deep as loops are nested.
    parts = turns(loop, graph, users)
    test = None if parts.test is None else fuse(parts.test, body=True)
    return Turn(parts.captures, parts.yields, fuse(parts.rest, body=True), test)


def own_roots(graph: Graph) -> Graph:
    """Every result and written value becomes a node of its own (a copy where needed)."""
    seen: set[Node] = set()

    def own(node: Node, kinds: type | UnionType = Compute | Update | Part) -> Node:
        if isinstance(node, kinds) and node not in seen:
            seen.add(node)
            return node
        return copy_of(node)

    writes = [w for w in graph.writes if w.value is not w.target]
    # Written values first: they are stored in place, results are copies of them.
    written = tuple(Write(w.target, own(w.value)) for w in writes)
    return replace(
        graph,
        results=tuple(own(r, Compute | Update | Part | External) for r in graph.results),
        writes=written,
    )


def copy_of(node: Node) -> Compute:
    """The same values in other memory."""
    axes = tuple(Axis(f"$i{d}", n) for d, n in enumerate(node.type.shape))
    body = Load(node.type.dtype, node, tuple(Idx(Dim.of(a.var)) for a in axes))
    return Compute(type=node.type, span=node.span, name=node.name, axes=axes, body=body)


def print_fused(fused: Fused) -> str:
    """The graph and its kernels: for dumps."""
    return "\n".join(_lines(fused)) + "\n"


def _lines(fused: Fused) -> list[str]:
    # As deep as loops are nested.
    names = node_names(fused.graph)
    lines = [print_graph(fused.graph).rstrip("\n")]
    for i, g in enumerate(fused.groups):
        turn = fused.turns.get(g.nodes[0])
        if turn is None:
            lines.append(f"  kernel {i}: {', '.join(names[n] for n in g.nodes)}  # {g.reason}")
            continue
        lines.append(f"  loop {i}  # {g.reason}")
        for part in (turn.test, turn.rest):
            if part is not None:
                lines += [f"    {text}" for chunk in _lines(part) for text in chunk.split("\n")]
    return lines


# ---- groups -------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Open:
    """A group that may still grow. `maps`: each member's variables in those of a contraction."""

    kind: str
    number: int
    nodes: list[Compute | Update | Loop | External]
    rows: int
    exprs: int
    found: Contraction | None = None
    maps: dict[Node, dict[str, Dim]] = field(default_factory=dict)
    region: Region | None = None
    refused: str = ""

    def close(self) -> Group:
        reason = _reason(self)
        return Group(self.kind, tuple(self.nodes), self.rows, reason, self.maps, self.region)


class _Fuser:
    def __init__(self, graph: Graph, first: Launch, found: Found, body: bool) -> None:
        self.graph, self.refused, self.body = graph, found.refused, body
        self.region: dict[Node, Region] = {n: r for r in found.regions for n in r.nodes}
        self.region_group: dict[Region, _Open] = {}
        self.groups: list[_Open] = []
        self.group_of: dict[Node, _Open] = {}
        self.spaces: dict[Node, Space] = {}
        self.users, self.late, self.checks = first.users, first.writers, first.checks
        self.unchecked = len(self.checks)  # checks not yet placed
        self.last_check = -1
        self.target = {w.value: w.target for w in graph.writes}
        self.reader: dict[Node, _Open] = {}  # the latest group of rows that reads a tensor
        self.alike: dict[tuple[Dim, ...], _Open] = {}  # the latest group of rows of such extents

    def close(self, winograd: bool) -> Iterator[Group]:
        """The groups; a contraction and the rows behind it are one where they work in bands."""
        made: dict[int, tuple[_Open, Band]] = {}  # by the number of the rows
        for g in self.groups:
            found = None if winograd and _is_three_by_three(g) else self.band(g)
            if found is not None:
                made.setdefault(found[0].number, (g, found[1]))
        early = {g.number for g, _ in made.values()}
        for rows in self.groups:
            if rows.number in made:
                g, band = made[rows.number]
                axis = self.spaces[rows.nodes[0]].axes[band.position].var[1:]
                reason = f"in bands of {axis}: {_reason(g)}; then {_reason(rows)}"
                nodes = (*g.nodes, *rows.nodes)
                yield Group("band", nodes, rows.rows, reason, g.maps, band=band)
            elif rows.number not in early:
                yield rows.close()

    def band(self, g: _Open) -> tuple[_Open, Band] | None:
        """The rows that alone read a contraction, and the band between them."""
        if self.body or g.found is None or g.found.fn != "mul":
            return None
        of, roots = g.nodes[-1], set(self.graph.roots)
        groups = {n: {self.group_of.get(u) for u in self.users[n]} for n in g.nodes}
        rows = next(iter(groups[of]), None)
        if rows is None or rows.kind != "rows" or not roots.isdisjoint(g.nodes):
            return None
        if any(groups[n] != {rows if n is of else g} for n in g.nodes):
            return None
        # The contraction moves behind what stands between them.
        between = [n for x in self.groups[g.number : rows.number + 1] for n in x.nodes]
        inside = {*g.nodes, *rows.nodes}
        if not inside.isdisjoint(self.checks) or not self.late.isdisjoint(between):
            return None
        made, readers = ([n for n in x.nodes if isinstance(n, Compute)] for x in (g, rows))
        if any(n.type.dtype not in ("f32", "f64") for n in made):
            return None
        facts = self.graph.facts
        band = find_band(made, readers, rows.rows, self.spaces, g.found, g.maps, facts)
        return None if band is None else (rows, band)

    def place(self, node: Node) -> None:
        """Puts a node into the best group, or into one of its own."""
        if isinstance(node, Loop | External):
            self.place_alone(node)
            return
        assert isinstance(node, Compute | Update), node
        s = self.spaces[node] = space(node, self.graph.facts)
        if (region := self.region.get(node)) is not None:
            self.place_member(node, region)
            return
        size = sum(1 for _ in walk(*s.exprs))
        before = [self.group_of[o] for o in feeds(node) if o in self.group_of]
        first = max((g.number for g in before), default=-1)
        found = contraction(s) if isinstance(node, Compute) else None
        group = None
        if isinstance(node, Compute) and found is None:
            group = self.choose(node, s, size, first)
        if group is None:
            kind = "update" if isinstance(node, Update) else "contraction" if found else "rows"
            group = _Open(kind, len(self.groups), [], len(s.axes), 0, found)
            group.maps[node] = {a.var: Dim.of(a.var) for a in s.axes}
            group.refused = self.refused.get(node, "")
            self.groups.append(group)
        group.nodes.append(node)
        group.exprs += size
        self.group_of[node] = group
        self.note_check(node, group)
        if group.kind == "rows":
            self.reader |= {o: group for o in operands(node) if o.type.elements != ONE}
            if not s.raxes:
                self.alike[_extents(s)] = group

    def place_alone(self, node: Loop | External) -> None:
        kind = "loop" if isinstance(node, Loop) else "external"
        group = _Open(kind, len(self.groups), [node], 0, 0)
        self.groups.append(group)
        self.group_of[node] = group
        self.note_check(node, group)

    def place_member(self, node: Compute | Update, region: Region) -> None:
        group = self.region_group.get(region)
        if group is None:
            group = _Open("region", len(self.groups), [], 0, 0, region=region)
            self.region_group[region] = group
            self.groups.append(group)
        group.nodes.append(node)
        self.group_of[node] = group

    def note_check(self, node: Node, group: _Open) -> None:
        if node in self.checks:
            self.unchecked -= 1
            self.last_check = max(self.last_check, group.number)

    def choose(self, node: Compute, s: Space, size: int, first: int) -> _Open | None:
        candidates = [self.groups[first]] if first >= 0 else []
        near = {g.number: g for o in operands(node) if (g := self.reader.get(o)) is not None}
        candidates += [near[n] for n in sorted(near, reverse=True) if n > first]
        if self.body and (g := self.alike.get(_extents(s))) is not None and g.number > first:
            candidates.append(g)  # every turn would pay for another kernel
        for g in candidates:
            if (
                len(g.nodes) >= MAX_MEMBERS
                or g.exprs + size > MAX_EXPRS
                or g.kind in ("update", "loop", "external", "region")
            ):
                continue
            if self.may_write(node, g) and self.joins(node, s, g):
                return g
        return None

    def may_write(self, node: Compute, g: _Open) -> bool:
        """Whether joining does not keep a written value from being stored in place."""
        target = self.target.get(node)
        if target is None or node not in self.late:
            return True
        if self.unchecked or self.last_check >= g.number:
            return False
        for user in self.users.get(target, ()):
            other = self.group_of.get(user)
            if user is not node and (other is None or other.number > g.number):
                return False
            if other is g and (user.raxes or not self.reads_own(user, target, g)):  # type: ignore[union-attr]
                return False
        return True

    def reads_own(self, user: Node, target: Node, g: _Open) -> bool:
        """Whether a member of a group reads a tensor at the element that it computes only."""
        if user is not g.nodes[0]:
            return True
        s = self.spaces[user]
        own = [Dim.of(a.var) for a in s.axes]
        reads = (e for e in walk(*s.exprs) if isinstance(e, Load) and e.tensor is target)
        return g.kind == "rows" and all(
            [i.dim for i in e.index if isinstance(i, Idx) and i.dim != ZERO] == own for e in reads
        )

    def joins(self, node: Compute, s: Space, g: _Open) -> bool:
        if g.kind == "contraction":
            return self.joins_epilogue(node, s, g)
        rows = self.common_rows(s, g)
        if rows is None or (node in self.checks and rows == 0):
            return False
        g.rows = rows
        return True

    # ---- epilogues ----------------------------------------------------------------------------

    def joins_epilogue(self, node: Compute, s: Space, g: _Open) -> bool:
        """Element-wise over exactly the kept axes of the contraction."""
        if s.raxes or any(not _static(e) for e in walk(s.body) if isinstance(e, Load)):
            return False
        names: dict[str, Dim] | None = None
        for e in walk(s.body):
            if isinstance(e, Load) and e.tensor in g.maps:
                found = matched(e, self.spaces[e.tensor], s)
                if found is None:
                    return False
                mapping = g.maps[e.tensor]
                found = {v: d.subst(mapping) for v, d in found.items()}
                if names is not None and found != names:
                    return False
                names = found
        if names is None:
            return False
        g.maps[node] = names
        return True

    # ---- rows ---------------------------------------------------------------------------------

    def common_rows(self, s: Space, g: _Open) -> int | None:
        """How many leading axes the group shares when this space joins; None: it does not."""
        first = self.spaces[g.nodes[0]]
        rows = _equal_prefix(s.axes, first.axes[: g.rows])
        related = False
        for e in walk(s.body):
            if isinstance(e, Load) and self.group_of.get(e.tensor) is g:  # type: ignore[call-overload]
                if not _sure_units(e):
                    return None
                related = True
                rows = min(rows, self.prefix(e, s))
        spaces = [self.spaces[n] for n in g.nodes] + [s]
        if not any(x.axes for x in spaces):
            return 0 if related and not s.raxes else None
        if not related:
            flat = all(len(x.axes) == rows and not x.raxes for x in spaces)
            alike = rows == len(s.axes) and self.same_windows(s, spaces)
            joined = flat or self.same_rows(s, g) or alike
            return rows if rows and joined else None
        return rows if _worthwhile(rows, spaces) else None

    def same_rows(self, s: Space, g: _Open) -> bool:
        """Whether the space reduces rows of a tensor that another member reduces too."""
        if not s.raxes or len(s.axes) != g.rows:
            return False
        mine = _row_reads(s)
        others = (self.spaces[n] for n in g.nodes)
        return any(x.raxes and len(x.axes) == g.rows and mine & _row_reads(x) for x in others)

    def same_windows(self, s: Space, spaces: list[Space]) -> bool:
        """Whether all reduce as many elements, some of a tensor in common: a maximum and its place,
        sums over all pictures."""
        if not s.raxes or not all(len(x.axes) == len(s.axes) for x in spaces):
            return False
        mine, count = _sources(s), dim_prod(a.extent for a in s.raxes)
        others = [x for x in spaces if x is not s and x.raxes]
        alike = all(dim_prod(a.extent for a in x.raxes) == count for x in others)
        return alike and any(mine & _sources(x) for x in others)

    def prefix(self, e: Load, s: Space) -> int:
        """How many leading axes of `s` are, bare, the leading axes of the member that is read."""
        member = self.spaces[e.tensor]  # type: ignore[index]
        homes = member.homes()
        for r, (a, b) in enumerate(zip(s.axes, member.axes, strict=False)):
            i = e.index[homes[b.var]] if b.var in homes else None
            if not (isinstance(i, Idx) and i.dim.name == a.var and a.extent == b.extent):
                return r
        return min(len(s.axes), len(member.axes))


def _is_three_by_three(g: _Open) -> bool:
    return g.found is not None and [a.extent.const for a in g.found.k].count(3) > 1


def _extents(s: Space) -> tuple[Dim, ...]:
    return tuple(a.extent for a in s.axes)


def _sources(s: Space) -> set[Tensor]:
    """Tensors read at reduced indices."""
    inner = {a.var for a in s.raxes}
    read = (e for e in walk(s.body) if isinstance(e, Load))
    return {e.tensor for e in read if not names(e.index).isdisjoint(inner)}


def _row_reads(s: Space) -> set[Tensor]:
    """Tensors read at the kept axes first, in order."""
    names = [a.var for a in s.axes]
    out: set[Tensor] = set()
    for e in walk(s.body):
        if isinstance(e, Load) and len(e.index) > len(names):
            head = [i.dim.name if isinstance(i, Idx) else None for i in e.index[: len(names)]]
            if head == names:
                out.add(e.tensor)
    return out


def _sure_units(e: Load) -> bool:
    """Whether no run-time index of an axis of one element may miss it."""
    if e.other is None and e.check is None:
        return True
    pairs = zip(e.index, e.tensor.type.shape, strict=True)
    return all(n != ONE or (isinstance(i, Idx) and i.dim == ZERO) for i, n in pairs)


def _static(e: Load) -> bool:
    return e.check is None and all(isinstance(i, Idx) for i in e.index)


def _equal_prefix(a: tuple[Axis, ...], b: tuple[Axis, ...]) -> int:
    for r, (x, y) in enumerate(zip(a, b, strict=False)):
        if x.extent != y.extent:
            return r
    return min(len(a), len(b))


def _worthwhile(rows: int, spaces: list[Space]) -> bool:
    """Enough rows for the threads, and no member that would lose its parallel axes."""
    if rows == 0:
        return False
    count = dim_prod(a.extent for a in spaces[0].axes[:rows]).const
    rest = max(len(x.axes) - rows for x in spaces)
    sums = any(x.raxes and len(x.axes) == rows for x in spaces)  # a norm over groups of channels
    return rest <= (1 if rows == 1 else 3 if sums else 2) and (
        rest == 0 or count is None or count >= 8
    )


# ---- reasons ------------------------------------------------------------------------------------


def _reason(g: _Open) -> str:
    if isinstance(loop := g.nodes[0], Loop):
        return f"run-time loop over {loop.var[1:]}"
    if isinstance(external := g.nodes[0], External):
        return f"calls {external.symbol}"
    if g.kind == "update":
        node = g.nodes[0]
        assert isinstance(node, Update)
        return "indexed accumulation" if node.accumulate else "indexed write"
    if g.region is not None:
        return _region_reason(g.region)
    if g.found is not None:
        c = g.found
        kinds = {"batch": c.batch, "m": c.m, "n": c.n, "k": c.k}
        text = "contraction " + " ".join(f"{n}=[{_vars(x)}]" for n, x in kinds.items() if x)
        rest = [_label(n) for n in g.nodes[1:]]
        text += f", epilogue: {', '.join(rest)}" if rest else ""
        return text + (f"; not in one pass with its rows: {g.refused}" if g.refused else "")
    labels = [_label(n) for n in g.nodes]
    if len(g.nodes) == 1:
        return labels[0]
    first = g.nodes[0]
    assert isinstance(first, Compute)
    axes = ", ".join(a.var[1:] for a in first.axes[: g.rows])
    return (
        f"row-fused over {axes}: {', '.join(labels)}" if axes else f"scalars: {', '.join(labels)}"
    )


def _region_reason(r: Region) -> str:
    roles = ", ".join(_label(n) for n in r.nodes)
    mask = f", only where {' and '.join(f'{_readable(f)} >= 0' for f in r.mask)}" if r.mask else ""
    return f"one pass over blocks of {r.row.var[1:]}{mask}: {roles}"


def _readable(d: Dim) -> str:
    return str(d).replace("$", "")


def _vars(axes: tuple[Axis, ...]) -> str:
    return ", ".join(a.var[1:] for a in axes)


def _label(node: Node) -> str:
    """What a node does, in a word or two."""
    if isinstance(node, Compute):
        if node.raxes:
            return f"{node.op} over {_vars(node.raxes)}"
        names = dict.fromkeys(e.fn for e in walk(node.body) if isinstance(e, Op))
        return f"{node.name + ': ' if node.name else ''}{' '.join(names) or 'copy'}"
    return "update"
