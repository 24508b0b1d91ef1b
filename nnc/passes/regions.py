"""Finding passes over row blocks: contractions whose result never needs to exist as a whole.

A *region* computes strips: matrices over (outer axes, row, column) that only live for a block of
rows. It begins with contractions that make strips, goes on with element-wise functions of strips
and reductions over the columns, and ends in contractions over the columns (*values*) or over the
rows (*columns*). Attention is one, with any mask, normalisation, bias or dropout; so is its
gradient. Only structure counts.

What a strip holds where an affine condition excludes a column is followed through the region: if
all sums get zeros from there (and maxima -inf), the columns are left out (`Region.mask`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from heapq import heappop, heappush

import numpy as np

from nnc.ir.bounds import condition_facts
from nnc.ir.expr import Const, Expr, Idx, Load, Op, Select, children, walk
from nnc.ir.graph import (
    Axis,
    Compute,
    Graph,
    Input,
    Node,
    operands,
    replace_operands,
    toposort,
    users,
    with_roots,
)
from nnc.ir.scalar import SCALARS
from nnc.lang.dims import Dim, dim_prod
from nnc.passes.schedule.contraction import Contraction, contraction
from nnc.passes.schedule.space import Space, space

DEEP = 512  # the longest sum that makes an element of a strip
MOST = 64  # nodes that a strip is made of: more are no attention, but the stem of a network
FEW = 32  # columns: a matrix with fewer is not worth it
LARGE = 1 << 18  # elements that all blocks of rows would read again


@dataclass(frozen=True)
class Side:
    """A contraction with a strip: its factor over the strip's axes, and the other one."""

    strip: Expr
    other: Expr
    rest: tuple[Axis, ...]  # kept axes of the other factor only
    masks: tuple[Expr, ...] = ()
    divisor: Divisor | None = None


@dataclass(frozen=True, eq=False)
class Divisor:
    """What a value is divided by at the end, in place of every element of a strip `of` it."""

    of: Node
    by: Expr  # in the variables of that strip


@dataclass(frozen=True, eq=False)
class Region:
    """Nodes (operands first) with their roles.

    `strip`: a matrix; `row`: one value for each row; `value`, `column`: contractions of strips;
    `after`: an element-wise function of a value.
    `env`: the variables of members that are `outer`, `row` and `col`, by the names they have here.
    `mask`: dims of `row`, `col` and sizes that are >= 0 at all columns that count.
    """

    outer: tuple[Axis, ...]
    row: Axis
    col: Axis
    nodes: tuple[Compute, ...]
    roles: Mapping[Node, str]
    env: Mapping[Node, Mapping[str, str]]
    sides: Mapping[Node, Side]
    values: Mapping[Node, Node]  # of each `after`; its `env` has the variables of that value
    mask: tuple[Dim, ...]

    @property
    def by_columns(self) -> bool:
        """Whether it adds up over rows: then one thread does all rows of an outer iteration."""
        return "column" in self.roles.values()


@dataclass(frozen=True)
class Found:
    """The graph, perhaps with strips computed a second time, and its regions.

    `refused`: contractions that looked like the end of a region, and why they are not.
    """

    graph: Graph
    regions: tuple[Region, ...]
    refused: Mapping[Node, str]


def find_regions(graph: Graph) -> Found:
    """Regions; a strip that later nodes (a gradient) read too is computed again there."""
    if not any(isinstance(n, Compute) and n.op == "sum" for n in toposort(graph.roots)):
        return Found(graph, (), {})
    banned: dict[Node, str] = {}
    while True:
        first = _Search(graph, banned).run()
        if first.splits:
            graph, moved = _split(graph, first.splits)
            banned = {moved[n]: why for n, why in banned.items()}
            continue
        if not first.open:
            return Found(graph, tuple(first.regions), banned | first.refused)
        again = _with_copies(graph, first)
        still = {n: banned[o] for n, o in again.old.items() if o in banned}
        second = _Search(again.graph, still).run()
        if second.splits:
            asked = {again.old[n]: later for n, later in second.splits.items()}
            graph, moved = _split(graph, asked)
            banned = {moved[n]: why for n, why in banned.items()}
            continue
        failed = _failed(first, second, again)
        if not failed:
            return Found(again.graph, tuple(second.regions), still | second.refused)
        assert not failed.keys() <= banned.keys(), failed
        banned |= failed


class _Refused(Exception):
    """A region that is none, and why."""


class _Search:
    def __init__(self, graph: Graph, banned: Mapping[Node, str]) -> None:
        self.graph, self.banned = graph, banned
        self.readers = users(graph.roots)
        self.position: dict[Node, int] = {n: i for i, n in enumerate(self.readers)}
        self.order: list[Compute] = [n for n in self.readers if isinstance(n, Compute)]
        self.roots = set(graph.roots)
        self.written = {w.value for w in graph.writes}
        self.spaces: dict[Node, Space] = {}
        self.found: dict[Node, Contraction | None] = {}
        self.known: dict[Node, tuple[Load, ...]] = {}
        self.names: dict[Load, tuple[tuple[Axis, str], ...] | None] = {}
        self.regions: list[Region] = []
        self.taken: set[Node] = set()
        self.open: dict[Region, list[Node]] = {}  # strips with readers outside
        self.end: dict[Region, Node] = {}
        self.refused: dict[Node, str] = {}
        self.splits: dict[Node, frozenset[str]] = {}  # see `_split`

    def run(self) -> _Search:
        for node in self.order:
            if node in self.taken or node in self.banned or not self.ends(node):
                continue
            growth = _Growth(self, node)
            try:
                region = growth.run()
            except _Refused as why:
                if growth.plausible():
                    self.refused[node] = str(why)
                continue
            if region is None:
                continue
            self.regions.append(region)
            self.end[region] = node
            self.splits |= growth.splits
            self.taken |= set(region.nodes)
            outside: list[Node] = [
                s for s in region.nodes if region.roles[s] == "strip" and self.leaves(s, region)
            ]
            if outside:
                self.open[region] = outside
        return self

    def leaves(self, strip: Node, region: Region) -> bool:
        inside = set(region.nodes)
        return strip in self.roots or any(u not in inside for u in self.readers[strip])

    def space(self, node: Compute) -> Space:
        if node not in self.spaces:
            self.spaces[node] = space(node, self.graph.facts)
        return self.spaces[node]

    def loads(self, node: Compute) -> tuple[Load, ...]:
        """The loads of its space."""
        if node not in self.known:
            self.known[node] = tuple(_loads(self.space(node).body))
        return self.known[node]

    def bare(self, e: Load, t: Compute) -> tuple[tuple[Axis, str], ...] | None:
        """Each axis of a node that is read, and the name that stands for it; None: not all have."""
        if e not in self.names:
            s = self.space(t)
            homes = s.homes()
            names = [(a, _name(e.index[homes[a.var]]) if a.var in homes else None) for a in s.axes]
            plain = e.other is None and e.check is None and all(name for _, name in names)
            self.names[e] = tuple((a, n) for a, n in names if n) if plain else None
        return self.names[e]

    def contraction(self, node: Compute) -> Contraction | None:
        if node not in self.found:
            found = contraction(self.space(node)) if node.op == "sum" else None
            self.found[node] = (
                found if found is not None and found.fn == "mul" and found.m else None
            )
        return self.found[node]

    @cached_property
    def frames(self) -> set[tuple[object, ...]]:
        """The extents that frames may have: those of short sums of products, see `makes_strip`."""
        found: set[tuple[object, ...]] = set()
        for node in self.order:
            c = self.contraction(node) if node.op == "sum" else None
            if c is None or not _is_short(c):
                continue
            axes = self.space(node).axes
            for rows, columns in ((c.m, c.n), (c.n, c.m)):
                if len(columns) == 1:
                    found |= {_extents(axes, row, columns[0]) for row in rows}
        return found

    def ends(self, node: Compute) -> bool:
        """Whether it is a contraction over one axis."""
        if node.op != "sum" or node.type.dtype not in ("f32", "f64"):
            return False
        c = self.contraction(node)
        return c is not None and len(c.k) == 1


class _Front:
    """Nodes to look at, in topological order, until none that touches a member is left (`near`)."""

    def __init__(self, search: _Search) -> None:
        self.s, self.at = search, -1
        self.nodes = list(search.readers)
        self.queue: list[int] = []
        self.near: set[int] = set()
        self.known: set[int] = set()

    def add(self, node: Node, near: bool) -> None:
        at = self.s.position[node]
        if at <= self.at:
            return
        if at not in self.known:
            self.known.add(at)
            heappush(self.queue, at)
        if near:
            self.near.add(at)

    def follow(self, node: Node, near: bool) -> None:
        for user in self.s.readers[node]:
            self.add(user, near)

    def next(self) -> Node | None:
        if not self.near:
            return None
        self.at = heappop(self.queue)
        self.near.discard(self.at)
        return self.nodes[self.at]


class _Growth:
    """A region from the contraction over the columns that ends it."""

    def __init__(self, search: _Search, end: Compute) -> None:
        self.s, self.end = search, end
        self.env: dict[Node, dict[str, str]] = {}
        self.roles: dict[Node, str] = {}
        self.sides: dict[Node, Side] = {}
        self.values: dict[Node, Node] = {}
        self.splits: dict[Node, frozenset[str]] = {}

    def run(self) -> Region | None:
        if not self.frame() or not self.upward():
            return None
        if self.turned():
            return None
        self.downward()
        self.drop_unrelated()
        nodes = self.members()
        self.check(nodes)
        mask = _mask(self, nodes)
        late = {n: _late_division(self, n) for n in nodes if self.roles[n] == "value"}
        self.sides |= {n: side for n, side in late.items() if side is not None}
        env, sides, values = self.env, self.sides, self.values
        frame = self.outer, self.row, self.col
        return Region(*frame, nodes, self.roles, env, sides, values, mask)

    # ---- the strip before the end -------------------------------------------------------------

    def frame(self) -> bool:
        """Axes from a factor that is over (outer, row, column) and made here."""
        c = self.s.contraction(self.end)
        assert c is not None
        col = c.k[0]
        for expr, own in ((c.a, c.m), (c.b, c.n)):
            frame = {a.var for a in (*c.batch, *own, col)}
            for e in walk(expr):
                if isinstance(e, Load) and self.is_strip(e, frame):
                    p: Compute = e.tensor  # type: ignore[assignment]
                    homes = self.s.space(p).homes()
                    names = {a.var: _name(e.index[homes[a.var]]) for a in self.s.space(p).axes}
                    rows = [a.var for a in own]
                    mine = {v: k for k, v in names.items()}
                    row = mine[rows[-1]]
                    return self.set_frame(p, row, mine[col.var])
        return False

    def is_strip(self, e: Load, frame: set[str]) -> bool:
        node = e.tensor
        if not isinstance(node, Compute) or node in self.s.taken or e.other is not None:
            return False
        s = self.s.space(node)
        homes = s.homes()
        if any(a.var not in homes for a in s.axes) or len(s.axes) != len(frame):
            return False
        return {_name(e.index[homes[a.var]]) for a in s.axes} == frame

    def set_frame(self, p: Compute, row: str, col: str) -> bool:
        axes = self.s.space(p).axes
        self.outer = tuple(a for a in axes if a.var not in (row, col))
        self.row = next(a for a in axes if a.var == row)
        self.col = next(a for a in axes if a.var == col)
        self.names = {a.var for a in axes}
        self.rows = self.names - {col}
        self.extents = {a.var: a.extent for a in axes}
        self.start = p
        return True

    def turned(self) -> bool:
        """Whether something reduces the rows of the strips: rows here are columns there."""
        strips = {n for n, r in self.roles.items() if r == "strip"}
        for n in strips:
            for u in self.s.readers[n]:
                if isinstance(u, Compute) and u.raxes and self.s.contraction(u) is None:
                    s = self.s.space(u)
                    found = [self.from_load(e, s) for e in _loads(s.body) if e.tensor is n]
                    over = {f.get(a.var) for f in found if f is not None for a in s.raxes}
                    if over == {self.row.var}:
                        return True
        return False

    # ---- growing ------------------------------------------------------------------------------

    def upward(self) -> bool:
        """Everything that the first strip is made of; whether a contraction is among it."""
        if _extents(self.s.space(self.start).axes, self.row, self.col) not in self.s.frames:
            return False
        self.env[self.start] = {v: v for v in self.names}
        stack: list[Compute] = [self.start]
        while stack:
            node = stack.pop()
            if node in self.roles:
                continue
            role = self.role(node, self.env[node])
            if role not in ("strip", "row"):
                if node is self.start:
                    return False
                continue
            self.roles[node] = role
            if len(self.roles) > MOST:
                return False
            if node in self.sides:
                continue
            for e in self.s.loads(node):
                if isinstance(t := e.tensor, Compute):
                    env = self.placed(e, t, self.env[node])
                    if env is not None and self.env.setdefault(t, env) == env:
                        stack.append(t)
        return any(self.roles[n] == "strip" and n in self.sides for n in self.roles)

    def placed(self, e: Load, t: Compute, env: Mapping[str, str]) -> dict[str, str] | None:
        """The variables of a node that is read, by the names of the region."""
        names = None if t in self.s.taken else self.s.bare(e, t)
        if names is None or len(names) < len(self.rows):
            return None
        out: dict[str, str] = {}
        for a, name in names:
            if name not in env or a.extent != self.extents[env[name]]:
                return None
            out[a.var] = env[name]
        if len(set(out.values())) != len(out) or not set(out.values()) >= self.rows:
            return None
        return self.reduced(self.s.space(t), out)

    def reduced(self, s: Space, env: dict[str, str]) -> dict[str, str]:
        """With the reduced axis of a row as the columns."""
        full = set(env.values()) == self.rows and len(s.raxes) == 1
        if full and s.raxes[0].extent == self.col.extent:
            return env | {s.raxes[0].var: self.col.var}
        return env

    def role(self, node: Compute, env: Mapping[str, str]) -> str | None:
        """What a node would be in the region, given its variables."""
        if node in self.s.written or any(e.check for e in self.s.loads(node)):
            return None
        s, c = self.s.space(node), self.s.contraction(node)
        kept = {env[a.var] for a in s.axes if a.var in env}
        rest = [a for a in s.axes if a.var not in env]
        reduced = [env.get(a.var) for a in s.raxes]
        if kept == self.names and not rest:
            if not s.raxes:
                return "strip"
            if c is None or (None not in reduced and reduced):
                return None
            return "strip" if self.makes_strip(node, c, env) else None
        scalar = not s.raxes or reduced == [self.col.var]
        if kept == self.rows and not rest and c is None and scalar:
            return "row"
        if c is None or node.type.dtype not in ("f32", "f64"):
            return None
        if kept == self.rows and reduced == [self.col.var]:
            return "value" if self.uses_strip(node, c, env, self.row.var) else None
        if kept == self.names - {self.row.var} and reduced == [self.row.var]:
            return "column" if self.uses_strip(node, c, env, self.col.var) else None
        return None

    def makes_strip(self, node: Compute, c: Contraction, env: Mapping[str, str]) -> bool:
        """Whether one factor is over rows and the other over columns."""
        m, n = ({env[a.var] for a in axes} for axes in (c.m, c.n))
        if node.type.dtype not in ("f32", "f64"):
            return False
        if not _is_short(c):
            return False
        if self.row.var in m and n == {self.col.var}:
            self.sides[node] = Side(c.a, c.b, c.k, c.masks)
            return True
        if self.row.var in n and m == {self.col.var}:
            self.sides[node] = Side(c.b, c.a, c.k, c.masks)
            return True
        return False

    def uses_strip(self, node: Compute, c: Contraction, env: Mapping[str, str], kept: str) -> bool:
        """Whether one factor is over the region's axes, and the other knows no strip."""
        for strip, other, own, rest in ((c.a, c.b, c.m, c.n), (c.b, c.a, c.n, c.m)):
            if any(env.get(a.var) == kept for a in own) and not any(a.var in env for a in rest):
                inside = [e for e in _loads(other) if e.tensor in self.roles]
                used = {
                    env.get(v)
                    for e in walk(strip)
                    if isinstance(e, Idx)
                    for v in e.dim.names
                    if v.startswith("$") and "." not in v
                }
                if inside or None in used or c.masks:
                    return False
                self.sides[node] = Side(strip, other, rest)
                return True
        return False

    def members(self) -> tuple[Compute, ...]:
        """The nodes of the region, operands first."""
        nodes = sorted(self.roles, key=self.s.position.__getitem__)
        return tuple(n for n in nodes if isinstance(n, Compute))

    def downward(self) -> None:
        """Whatever else can be computed from strips and rows at once, in topological order.

        What depends on nodes outside is followed as long as it may still meet a member.
        """
        outside: set[Node] = set()  # nodes that need a member, but are none
        front = _Front(self.s)
        for n in self.roles:
            front.add(n, near=True)
            front.follow(n, near=True)
        while (node := front.next()) is not None:
            ops = operands(node)
            apart = any(o in outside for o in ops)
            if node in self.roles:
                ends = {self.roles.get(o) for o in ops} & {"value", "after", "column"}
                if apart or (ends and self.roles[node] != "after"):
                    raise _Refused(f"{_where(node)} needs a result of the pass")
                continue
            needs = [o for o in ops if o in self.roles]
            if not needs and not apart:
                continue
            count = len(self.roles)
            if apart or not self.joins(node, outside):
                outside.add(node)
                front.follow(node, near=False)
            for n in list(self.roles)[count:]:
                front.follow(n, near=True)

    def joins(self, node: Node, outside: set[Node]) -> bool:
        if not isinstance(node, Compute) or node in self.s.taken or node in self.s.banned:
            return False
        s = self.s.space(node)
        env: dict[str, str] = {}
        if any(self.roles.get(o) in ("value", "after") for o in operands(node)):
            return self.joins_after(node, s)
        for e in self.s.loads(node):
            if e.tensor not in self.roles:
                continue
            if self.roles[e.tensor] == "column":
                return False
            found = self.from_load(e, s)
            if found is None or any(env.get(k, v) != v for k, v in found.items()):
                return False
            env |= found
        if not env or len(set(env.values())) != len(env):
            return False
        rest = [a for a in s.axes if a.var not in env]
        spread = set(env.values()) == self.rows and len(rest) == 1 and not s.raxes
        if spread and rest[0].extent == self.col.extent:
            env[rest[0].var] = self.col.var  # a row's value for all columns
        role = self.role(node, env)
        if role is None:
            self.ask_to_split(node, env)
            return False
        self.roles[node], self.env[node] = role, env
        self.pull(node, outside)
        return True

    def pull(self, node: Compute, outside: set[Node]) -> None:
        """Strips that a member is made of become members, where they need none."""
        stack = [node]
        while stack:
            reader = stack.pop()
            if reader in self.sides and self.roles[reader] == "strip":
                continue
            for e in _loads(self.s.space(reader).body):
                t = e.tensor
                if not isinstance(t, Compute) or t in self.roles or t in outside:
                    continue
                env = self.placed(e, t, self.env[reader])
                if env is not None and self.role(t, env) in ("strip", "row"):
                    self.roles[t], self.env[t] = self.role(t, env) or "", env
                    stack.append(t)

    def ask_to_split(self, node: Compute, env: Mapping[str, str]) -> None:
        """A sum over rows (or columns) and over more could join with the former alone."""
        s = self.s.space(node)
        reduced = {env[a.var]: a.var for a in s.raxes if a.var in env}
        if node.op != "sum" or len(reduced) < 2 or len(reduced) != len(s.raxes):
            return
        first = self.col.var if self.col.var in reduced else self.row.var
        later = frozenset(v for w, v in reduced.items() if w != first)
        if first in reduced and later <= {a.var for a in node.raxes}:
            self.splits[node] = later

    def joins_after(self, node: Compute, s: Space) -> bool:
        """Element-wise over exactly the axes of one value, perhaps with rows."""
        loads = _loads(s.body)
        if s.raxes or node in self.s.written or any(e.check or e.other for e in loads):
            return False
        env: dict[str, str] = {}
        of: set[Node] = set()
        for e in loads:
            t: Node = e.tensor  # type: ignore[assignment]
            role = self.roles.get(t)
            if role in ("strip", "column"):
                return False
            if role in ("value", "after"):
                found = self.from_load(e, s)
                if found is None or any(env.get(k, v) != v for k, v in found.items()):
                    return False
                env |= found
                of.add(self.values.get(t, t))
        if len(of) != 1 or env.keys() != {a.var for a in s.axes}:
            return False
        value = of.pop()
        own = self.env[value]
        for e in loads:
            if self.roles.get(e.tensor) == "row":  # type: ignore[call-overload]
                found = self.from_load(e, s)
                if found is None or any(own.get(env[k]) != v for k, v in found.items()):
                    return False
        self.roles[node], self.env[node], self.values[node] = "after", env, value
        return True

    def from_load(self, e: Load, s: Space) -> dict[str, str] | None:
        """The variables of a reader, from where it reads a member."""
        if e.other is not None or e.check is not None:
            return None
        t: Compute = e.tensor  # type: ignore[assignment]
        member = self.s.space(t)
        homes, known = member.homes(), {a.var: a.extent for a in (*s.axes, *s.raxes)}
        role = self.roles[t]
        own = {a.var: a.var for a in member.axes} if role == "value" else self.env[t]
        out: dict[str, str] = {}
        for a in member.axes:
            name = _name(e.index[homes[a.var]]) if a.var in homes else None
            if name is None or known.get(name) != a.extent or name in out:
                return None
            out[name] = own[a.var]
        return out

    def drop_unrelated(self) -> None:
        """Rows that need no strip are computed outside; nothing is made that nobody reads."""
        related: set[Node] = set()
        for n in self.members():
            strips = self.roles[n] == "strip"
            if strips or any(o in related for o in operands(n)):
                related.add(n)
        for n in reversed(self.members()):
            if n in related and self.roles[n] == "strip" and not related & set(self.s.readers[n]):
                related.remove(n)
        for lost in [n for n in self.roles if n not in related]:
            del self.roles[lost]

    # ---- is it one ----------------------------------------------------------------------------

    def check(self, nodes: Sequence[Compute]) -> None:
        if self.end not in self.roles or self.roles[self.end] != "value":
            raise _Refused("its other factor depends on the scores")
        tiles = [n for n in nodes if self.roles[n] == "strip" and n in self.sides]
        if not tiles:
            raise _Refused("no contraction makes its rows")
        if any(n.type.dtype not in ("f32", "f64", "bool", "i32") for n in nodes):
            raise _Refused("its numbers are halves")
        extent = self.col.extent.const
        if extent is not None and extent < FEW:
            raise _Refused(f"rows of {extent} elements are short")
        batched = any(self.depends_on_outer(self.sides[n].other, n) for n in tiles)
        if not batched and not self.normalises(nodes):
            raise _Refused("the second factors are the same for everything")
        for n in tiles:
            other = self.sides[n].other
            size = dim_prod((self.col.extent, *(a.extent for a in self.sides[n].rest))).const
            if size is not None and size > LARGE:
                raise _Refused(f"{size} elements would be read again for each block of rows")
            factors = (*_loads(self.sides[n].strip), *_loads(other))
            params = any(isinstance(e.tensor, Input) and e.tensor.kind == "param" for e in factors)
            if params and not batched:
                raise _Refused("it multiplies by a parameter")

    def normalises(self, nodes: Sequence[Compute]) -> bool:
        """Whether a reduction over the columns is read for the elements of its row, or for values.

        (The gradient of a bias is one too, but only a result.)
        """
        read: set[Node] = set()
        for n in reversed(nodes):
            if self.roles[n] != "row" or n in read:
                read.update(operands(n))
        return any(self.roles[n] == "row" and n in read and self.s.space(n).raxes for n in nodes)

    def plausible(self) -> bool:
        """Whether a reader would expect one pass: rows are reduced, and matrices batched."""
        rows = any(r == "row" and self.s.space(n).raxes for n, r in self.roles.items())  # type: ignore[arg-type]
        tiles = [n for n, r in self.roles.items() if r == "strip" and n in self.sides]
        return rows and any(self.depends_on_outer(self.sides[n].other, n) for n in tiles)

    def depends_on_outer(self, e: Expr, node: Node) -> bool:
        env, outer = self.env[node], {a.var for a in self.outer}
        return any(env.get(v) in outer for i in walk(e) if isinstance(i, Idx) for v in i.dim.names)


def _extents(axes: Sequence[Axis], row: Axis, col: Axis) -> tuple[object, ...]:
    return (row.extent, col.extent, *sorted(str(a.extent) for a in axes))


def _is_short(c: Contraction) -> bool:
    length = dim_prod(a.extent for a in c.k).const
    return length is None or length <= DEEP


def _name(e: Expr) -> str | None:
    return e.dim.name if isinstance(e, Idx) else None


def _loads(e: Expr) -> list[Load]:
    return [x for x in walk(e) if isinstance(x, Load)]


def _where(node: Node) -> str:
    return f"`{node.name}`" if node.name else "a value"


# ---- columns that need not be computed ----------------------------------------------------------

NEUTRAL = {"sum": 0.0, "max": -math.inf, "min": math.inf, "argmax": -math.inf, "argmin": math.inf}
NEUTRAL |= {"prod": 1.0, "any": 0.0, "all": 1.0}
Known = Mapping[Node, float | None]


def _mask(g: _Growth, nodes: Sequence[Compute]) -> tuple[Dim, ...]:
    """What holds at all columns that contribute to anything, or () when all may."""
    for facts in dict.fromkeys(_conditions(g, nodes)):
        if _neutral(g, nodes, frozenset(facts)):
            return facts
    return ()


def _conditions(g: _Growth, nodes: Sequence[Compute]) -> Iterator[tuple[Dim, ...]]:
    for n in nodes:
        side = g.sides.get(n)
        conds = [] if side is None else list(side.masks)
        expr = side.strip if side is not None else g.s.space(n).body
        conds += [e.cond for e in walk(expr) if isinstance(e, Select)]
        for c in conds:
            facts = _facts(c, g.env[n])
            if any(g.col.var in f.names for f in facts):
                yield facts


def _facts(cond: Expr, env: Mapping[str, str]) -> tuple[Dim, ...]:
    """Of a condition that holds, in the region's variables; those with others are left out."""
    names = {v: Dim.of(w) for v, w in env.items()}
    free = (f for f in condition_facts(cond, True) if all(_known(v, env) for v in f.names))
    return tuple(f.subst(names) for f in free)


def _known(name: str, env: Mapping[str, str]) -> bool:
    return name in env or not name.startswith("$") or "." in name


def _neutral(g: _Growth, nodes: Sequence[Compute], excluded: frozenset[Dim]) -> bool:
    """Whether nothing comes from columns where one of `excluded` is negative."""
    held: dict[Node, float | None] = {}
    for n in nodes:
        role, side = g.roles[n], g.sides.get(n)
        if role == "strip" and side is not None:
            masked = any(excluded <= frozenset(_facts(m, g.env[n])) for m in side.masks)
            held[n] = 0.0 if masked else None
            continue
        space = g.s.space(n)
        value = _excluded_value(side.strip if side else space.body, held, excluded, g.env[n])
        if role == "strip":
            held[n] = value
        elif role in ("value", "column"):
            if value != 0:
                return False
        elif space.raxes and value != NEUTRAL[space.op]:
            return False
    return True


def _excluded_value(
    root: Expr, held: Known, excluded: frozenset[Dim], env: Mapping[str, str]
) -> float | None:
    """The value of an expression at excluded columns; None: some finite number.

    (Where a row's own numbers are not finite, neither is anything else in the row.)
    """
    known: dict[int, float | None] = {}
    for e in walk(root):
        value: float | None = None
        match e:
            case Const(value=v):
                value = float(v)
            case Load(tensor=t):
                value = held.get(t)  # type: ignore[call-overload]
            case Select(cond=c, a=a, b=b):
                x, y = known[id(a)], known[id(b)]
                value = y if excluded <= frozenset(_facts(c, env)) or x == y else None
            case Op(fn=fn, args=args):
                value = _applied(fn, [known[id(x)] for x in args])
        known[id(e)] = value
    return known[id(root)]


def _applied(fn: str, args: Sequence[float | None]) -> float | None:
    """A scalar function where some operands are unknown but finite."""
    if fn == "cast":
        return args[0]
    given = [x for x in args if x is not None]
    if given and len(given) == len(args):
        with np.errstate(all="ignore"):
            out = float(SCALARS[fn].numpy(*(np.float64(x) for x in given)))
        return None if math.isnan(out) else out
    match fn:
        case "mul" if 0.0 in given:
            return 0.0
        case "div" if args[0] == 0:
            return 0.0
        case "add" | "sub" if given and math.isinf(given[0]):
            return -given[0] if fn == "sub" and args[0] is None else given[0]
    return None


# ---- division at the end ------------------------------------------------------------------------


def _late_division(g: _Growth, value: Compute) -> Side | None:
    """`sum[j](e[i, j] / l[i] * v[j])` is `sum[j](e[i, j] * v[j]) / l[i]`, where e is at most 1:
    then nothing overflows that did not before. None: nothing to move.
    """
    side = g.sides[value]
    strip = side.strip.tensor if isinstance(side.strip, Load) else None
    if not isinstance(strip, Compute) or g.s.readers[strip] != [value] or strip in g.sides:
        return None
    if strip in g.s.roots or g.roles.get(strip) != "strip":
        return None
    match g.s.space(strip).body:
        case Op(fn="div", args=(Load(tensor=Compute() as e) as x, Load(tensor=l) as by)):
            if g.roles.get(l) == "row" and g.roles.get(e) == "strip" and _at_most_one(g, e):  # type: ignore[call-overload]
                return replace(side, strip=x, divisor=Divisor(strip, by))
    return None


def _at_most_one(g: _Growth, e: Compute) -> bool:
    """Whether a strip is `exp(x - max over the columns of x)`."""
    match g.s.space(e).body:
        case Op(fn="exp", args=(Op(fn="sub", args=(x, Load(tensor=Compute() as m))),)):
            top = g.s.space(m)
            same = g.roles.get(m) == "row" and top.op == "max"
            return same and _form(x, g.env[e]) == _form(top.body, g.env[m])
    return False


def _form(root: Expr, env: Mapping[str, str]) -> tuple[object, ...]:
    """Equal for equal expressions: their parts by number, in order."""
    names = {v: Dim.of(w) for v, w in env.items()}
    known: dict[object, int] = {}
    number: dict[int, int] = {}
    for e in walk(root):
        parts = tuple(number[id(c)] for c in children(e))
        match e:
            case Const(dtype=dtype, value=value):
                own: object = (dtype, repr(value))
            case Idx(dim=d):
                own = d.subst(names)
            case Load(tensor=t, other=other, check=check):
                own = (t, other is None, check is None)
            case Op(dtype=dtype, fn=fn):
                own = (dtype, fn)
            case _:
                own = ()
        number[id(e)] = known.setdefault((type(e), own, parts), len(known))
    return (*known,)


# ---- sums in two steps --------------------------------------------------------------------------


def _split(graph: Graph, splits: Mapping[Node, frozenset[str]]) -> tuple[Graph, dict[Node, Node]]:
    """The graph where these sums keep some of their axes at first, and add those up afterwards.

    Also: what the old nodes have become.
    """
    new: dict[Node, Node] = {}
    for node in toposort(graph.roots):
        made = replace_operands(node, new.__getitem__)
        if node in splits:
            assert isinstance(made, Compute), made
            made = _in_two(made, splits[node])
        new[node] = made
    return with_roots(graph, [new[r] for r in graph.roots]), new


def _in_two(node: Compute, later: frozenset[str]) -> Compute:
    kept = tuple(a for a in node.raxes if a.var in later)
    axes = (*kept, *node.axes)
    kind = replace(node.type, shape=tuple(a.extent for a in axes))
    rest = tuple(a for a in node.raxes if a.var not in later)
    part = replace(node, type=kind, axes=axes, raxes=rest)
    load = Load(node.type.dtype, part, tuple(Idx(Dim.of(a.var)) for a in axes))
    return replace(node, raxes=kept, body=load)


# ---- strips that are computed again -------------------------------------------------------------


@dataclass
class _Copies:
    graph: Graph
    old: dict[Node, Node]  # nodes of the new graph: what they were
    copied: set[Node]  # new nodes that are copies


def _with_copies(graph: Graph, search: _Search) -> _Copies:
    """The graph where readers outside of a region have strips of their own."""
    member: dict[Node, Region] = {n: r for r in search.open for n in r.nodes}
    home = {n: r for n, r in member.items() if r.roles[n] == "strip"}
    new: dict[Node, Node] = {}
    copies: dict[Node, Node] = {}
    for node in toposort(graph.roots):
        own = member.get(node)

        def outer(o: Node, own: Region | None = own) -> Node:
            return copies[o] if o in home and home[o] is not own else new[o]

        def again(o: Node) -> Node:
            return copies[o] if o in home else new[o]

        new[node] = replace_operands(node, outer)
        if node in home:
            copies[node] = replace(replace_operands(node, again))
    old = {v: k for k, v in new.items()} | {v: k for k, v in copies.items()}
    return _Copies(with_roots(graph, [new[r] for r in graph.roots]), old, set(copies.values()))


def _failed(first: _Search, second: _Search, made: _Copies) -> dict[Node, str]:
    """Ends of regions that leave strips to others, in the old graph."""
    bad: dict[Node, str] = {}
    lost: set[Node] = set()
    for region, strips in second.open.items():
        bad[made.old[second.end[region]]] = f"{_where(strips[0])} is needed elsewhere"
        lost |= {made.old[s] for s in strips}
    strips_of = {n for r in second.regions for n in r.nodes if r.roles[n] == "strip"}
    lost |= {made.old[n] for n in second.readers if n in made.copied and n not in strips_of}
    for region, strips in first.open.items():
        for s in strips:
            if s in lost:
                bad[first.end[region]] = f"{_where(s)} is needed elsewhere"
    return bad
