"""A region grows from the contraction that ends it: up to what its strip is made of, then down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heappop, heappush

from nnc.ir.expr import Expr, Idx, Load, walk
from nnc.ir.graph import Compute, Input, Node, operands
from nnc.lang.dims import dim_prod
from nnc.passes.regions.region import Side
from nnc.passes.regions.view import View, extents_of, is_short, loads_of, name_of, where
from nnc.passes.schedule.contraction import Contraction
from nnc.passes.schedule.space import Space

MOST = 64  # nodes that a strip is made of: more are no attention, but the stem of a network
FEW = 32  # columns: a matrix with fewer is not worth it
LARGE = 1 << 18  # elements that all blocks of rows would read again


class Refused(Exception):
    """A region that is none, and why."""


class _Front:
    """Nodes to look at, in topological order, until none that touches a member is left (`near`)."""

    def __init__(self, view: View) -> None:
        self.s, self.at = view, -1
        self.nodes = list(view.readers)
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


class Growth:
    """A region from the contraction over the columns that ends it."""

    def __init__(self, view: View, end: Compute) -> None:
        self.s, self.end = view, end
        self.env: dict[Node, dict[str, str]] = {}
        self.roles: dict[Node, str] = {}
        self.sides: dict[Node, Side] = {}
        self.values: dict[Node, Node] = {}
        self.splits: dict[Node, frozenset[str]] = {}

    def run(self) -> tuple[Compute, ...] | None:
        """The nodes of the region; None: there is nothing like one. Raises Refused."""
        if not self.frame() or not self.upward():
            return None
        if self.turned():
            return None
        self.downward()
        self.drop_unrelated()
        nodes = self.members()
        self.check(nodes)
        return nodes

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
                    names = {a.var: name_of(e.index[homes[a.var]]) for a in self.s.space(p).axes}
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
        return {name_of(e.index[homes[a.var]]) for a in s.axes} == frame

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
                    found = [self.from_load(e, s) for e in loads_of(s.body) if e.tensor is n]
                    over = {f.get(a.var) for f in found if f is not None for a in s.raxes}
                    if over == {self.row.var}:
                        return True
        return False

    # ---- growing ------------------------------------------------------------------------------

    def upward(self) -> bool:
        """Everything that the first strip is made of; whether a contraction is among it."""
        if extents_of(self.s.space(self.start).axes, self.row, self.col) not in self.s.frames:
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
        if not is_short(c):
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
                inside = [e for e in loads_of(other) if e.tensor in self.roles]
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
                    raise Refused(f"{where(node)} needs a result of the pass")
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
            for e in loads_of(self.s.space(reader).body):
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
        loads = loads_of(s.body)
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
            name = name_of(e.index[homes[a.var]]) if a.var in homes else None
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
            raise Refused("its other factor depends on the scores")
        tiles = [n for n in nodes if self.roles[n] == "strip" and n in self.sides]
        if not tiles:
            raise Refused("no contraction makes its rows")
        if any(n.type.dtype not in ("f32", "f64", "bool", "i32") for n in nodes):
            raise Refused("its numbers are halves")
        extent = self.col.extent.const
        if extent is not None and extent < FEW:
            raise Refused(f"rows of {extent} elements are short")
        batched = any(self.depends_on_outer(self.sides[n].other, n) for n in tiles)
        if not batched and not self.normalises(nodes):
            raise Refused("the second factors are the same for everything")
        for n in tiles:
            other = self.sides[n].other
            size = dim_prod((self.col.extent, *(a.extent for a in self.sides[n].rest))).const
            if size is not None and size > LARGE:
                raise Refused(f"{size} elements would be read again for each block of rows")
            factors = (*loads_of(self.sides[n].strip), *loads_of(other))
            params = any(isinstance(e.tensor, Input) and e.tensor.kind == "param" for e in factors)
            if params and not batched:
                raise Refused("it multiplies by a parameter")

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
