"""Loops of a region (`nnc.passes.regions`): blocks of rows, strips in memory of their own.

The members are put into stages: a contraction that makes strips, with the element-wise functions of
it as its epilogue; row by row reductions and element-wise functions; contractions of strips. Strips
that are alive at different times share memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nnc.ir.expr import Const, Expr, Idx, Load, Op, Select, Var, walk
from nnc.ir.graph import Axis, Compute, Node
from nnc.ir.loop import Buffer, Contract, For, Let, Part, Reduce, Stmt, Store
from nnc.ir.statements import Stmts
from nnc.lang.dims import ONE, ZERO, Dim, dim_max, dim_min, prove_nonneg
from nnc.lang.types import DType, TensorType
from nnc.passes.fuse import Fused, Group
from nnc.passes.regions import Divisor, Region
from nnc.passes.schedule.nest import row_lane
from nnc.passes.schedule.space import Space
from nnc.passes.storage import Storage

START = 64  # columns begin at a multiple of it: whole panels of every target


@dataclass(frozen=True, eq=False)
class Operand:
    """The strip that a contraction multiplies, where that is an expression of strips."""

    node: Compute


Key = Node | Operand


@dataclass(frozen=True, eq=False)
class Item:
    """One thing to compute. `kind`: tile, strip, row, value, column."""

    key: Key
    node: Compute
    kind: str
    expr: Expr  # of a contraction: the factor over the strip's axes
    needs: tuple[Key, ...]


@dataclass
class Stage:
    """`kind`: tile (the first item and an epilogue), rows, value or column."""

    kind: str
    items: list[Item] = field(default_factory=list)


@dataclass(frozen=True)
class Local:
    """Loops of a stage: rows of the block and columns of the part."""

    row: Axis
    col: Axis


class RegionLoops:
    """The part of lowering that knows regions; `nnc.passes.lower` has the rest."""

    fused: Fused
    storage: Storage
    group: Group
    number: int
    taken: set[str]
    env: dict[Node, dict[str, Dim]]
    values: dict[Node, Var]

    def rename(self, node: Node, axes: Sequence[Axis], to: Sequence[str] = ()) -> tuple[Axis, ...]:
        raise NotImplementedError

    def free(self, var: str) -> str:
        raise NotImplementedError

    def value_name(self, node: Node) -> str:
        raise NotImplementedError

    def convert(self, node: Node, root: Expr) -> Expr:
        raise NotImplementedError

    # ---- the kernel ---------------------------------------------------------------------------

    def region(self) -> Stmts:
        r = self.r = _found(self.group)
        self.outer = {a.var: Dim.of(self.free(a.var)) for a in r.outer}
        self.size = block_rows(r)
        self.block = self.free(f"{r.row.var}o")
        self.first_row = Dim.of(self.block) * self.size
        self.height = dim_min(Dim.of(self.size), r.row.extent - self.first_row)
        if r.row.extent == Dim.of(self.size):
            self.first_row, self.height = ZERO, r.row.extent
        self.start, self.columns = self.part()
        self.local_values: dict[Key, Var] = {}
        stages = list(_stages(_items(r, self.fused.spaces)))
        self.place_strips(stages)
        body: list[Stmt] = []
        for i, stage in enumerate(stages):
            body += self.stage(
                stage, {k for s in stages[i + 1 :] for x in s.items for k in x.needs}
            )
        count = (r.row.extent + (self.size - 1)) // self.size
        kind = "serial" if r.by_columns else "parallel"
        out: Stmts = (*self.zeros(), For(Axis(self.block, count), kind, tuple(body)))
        for a in reversed(r.outer):
            out = (For(Axis(str(self.outer[a.var].name), a.extent), "parallel", out),)
        if r.by_columns and not r.outer:
            out = (For(Axis(self.free("$all"), ONE), "parallel", out),)
        return out

    def part(self) -> tuple[Dim, Dim]:
        """The first column and the number of columns that a block needs."""
        r, length = self.r, self.r.col.extent
        low, high = ZERO, length
        for f in r.mask:
            over_col = f.subst(self.outer).linear_in(r.col.var)
            over_row = None if over_col is None else over_col[1].linear_in(r.row.var)
            if over_col is None or over_row is None or over_row[0].const is None:
                continue
            last = self.first_row + (self.size - 1 if over_row[0].const > 0 else 0)
            most = over_col[1].subst({r.row.var: last})
            if over_col[0].const == -1:
                high = dim_min(high, most + 1) if high != length else most + 1
            elif over_col[0].const == 1:
                low = dim_max(low, -most)
        if low != ZERO:
            low = dim_max(ZERO, dim_min(low, length - 1)) // START * START
        if high == length:
            return low, length - low
        facts, ranges = self.fused.graph.facts, {self.block: (ZERO, self.r.row.extent)}
        count = high - low
        if not prove_nonneg(count - 1, facts, ranges):
            count = dim_max(count, ONE)
        return low, dim_min(length - low, count)

    def zeros(self) -> Stmts:
        """Sums over rows begin at zero."""
        out: list[Stmt] = []
        for node in self.r.nodes:
            if self.r.roles[node] != "column":
                continue
            space = self.fused.spaces[node]
            own = self.r.env[node]
            env = {
                a.var: self.outer[own[a.var]] for a in space.axes if own.get(a.var) in self.outer
            }
            loops = [a for a in space.axes if a.var not in env]
            axes = self.rename(node, loops)
            self.env[node] |= env
            body: Stmt = self.stored(node, Const(node.type.dtype, 0.0))
            for a in reversed(axes):
                body = For(a, "vector" if a is axes[-1] else "serial", (body,))
            out.append(body)
        return tuple(out)

    def stored(self, node: Compute, value: Expr, add: bool = False) -> Store:
        place, space = self.storage.places[node], self.fused.spaces[node]
        index = place.at([self.convert(node, i) for i in space.index])
        return Store(place.buffer, index, value, "add" if add else "")

    # ---- stages -------------------------------------------------------------------------------

    def loops(self) -> Local:
        r = self.r
        row, col = self.free(r.row.var), self.free(r.col.var)
        return Local(Axis(row, self.height), Axis(col, self.columns))

    def enter(self, item: Item, at: Local) -> None:
        """Gives a member's variables their meaning in a stage's loops."""
        frame = dict(self.outer)
        frame[self.r.row.var] = self.first_row + at.row.var
        frame[self.r.col.var] = self.start + at.col.var
        own = self.r.env[item.node]
        self.at = at
        self.env[item.node] = {v: frame[w] for v, w in own.items()}

    def stage(self, stage: Stage, later: set[Key]) -> list[Stmt]:
        self.local_values = {}
        at = self.loops()
        if stage.kind == "rows":
            return [For(at.row, "serial", tuple(self.row_stage(stage.items, at, later)))]
        first = stage.items[0]
        self.enter(first, at)
        side = self.r.sides[first.node]
        rest = self.rename(first.node, side.rest)
        a, b = self.convert(first.node, first.expr), self.convert(first.node, side.other)
        name = self.value_name(first.node)
        value = Var(first.node.type.dtype, name)
        span = first.node.span
        match stage.kind:
            case "tile":
                body = self.epilogue(stage.items, value, at, later)
                part = Part(at.col.var, self.start, self.r.col.extent)
                return [Contract(name, (), (at.row,), (at.col,), rest, a, b, body, span, part)]
            case "value":
                body = self.finished(first.node, value)
                part = Part(at.col.var, self.start, self.r.col.extent)
                return [Contract(name, (), (at.row,), rest, (at.col,), a, b, body, span, part)]
        body = (self.stored(first.node, value, add=True),)
        return [Contract(name, (), (at.col,), rest, (at.row,), a, b, body, span)]

    def epilogue(self, items: list[Item], value: Var, at: Local, later: set[Key]) -> Stmts:
        out: list[Stmt] = []
        first = items[0]
        self.local_values[first.key] = value
        for mask in self.r.sides[first.node].masks:
            held = self.local_values[first.key]
            zero = Const(held.dtype, 0.0)
            out.append(
                self.hold(first, Select(held.dtype, self.convert(first.node, mask), held, zero))
            )
        for item in items[1:]:
            self.enter(item, at)
            out.append(self.hold(item, self.convert(item.node, item.expr)))
        return (*out, *(self.keep(x, at) for x in items if x.key in later))

    def finished(self, node: Compute, value: Var) -> Stmts:
        """Element-wise functions of a value, and what of them is stored."""
        out: list[Stmt] = []
        self.local_values[node] = value
        divisor = self.r.sides[node].divisor
        if divisor is not None:
            out.append(self.divided(node, value, divisor))
        rest = [n for n in self.r.nodes if self.r.values.get(n) is node]
        for n in rest:
            own = self.r.env[n]
            self.env[n] = {v: self.env[node][w] for v, w in own.items()}
            body = self.convert(n, self.fused.spaces[n].body)
            name = self.value_name(n)
            self.local_values[n] = Var(body.dtype, name)
            out.append(Let(name, body))
        stored = (n for n in (node, *rest) if n in self.storage.places)
        return (*out, *(self.stored(n, self.local_values[n]) for n in stored))

    def divided(self, node: Compute, value: Var, divisor: Divisor) -> Let:
        own = self.r.env[node].items()
        frame = {w: self.env[node][v] for v, w in own}
        self.env[divisor.of] = {v: frame.get(w, ZERO) for v, w in self.r.env[divisor.of].items()}
        by = self.convert(divisor.of, divisor.by)
        name = self.value_name(node)
        self.local_values[node] = Var(value.dtype, name)
        return Let(name, Op(value.dtype, "div", (value, by)))

    def hold(self, item: Item, value: Expr) -> Let:
        name = self.value_name(item.node)
        self.local_values[item.key] = Var(value.dtype, name)
        return Let(name, value)

    def keep(self, item: Item, at: Local) -> Store:
        """Stores an element of a strip."""
        buffer = self.homes[item.key]
        return Store(buffer, (_idx(at.row.var), _idx(at.col.var)), self.local_values[item.key])

    def row_stage(self, items: list[Item], at: Local, later: set[Key]) -> Iterator[Stmt]:
        """What is done for one row; neighbouring element-wise functions share a loop."""
        segment: list[Item] = []
        for i, item in enumerate(items):
            if item.kind == "strip":
                segment.append(item)
                continue
            needed = later | {k for x in items[i:] for k in x.needs}
            if any(x.key in item.needs for x in segment):
                yield from self.segment(segment, at, needed)
                segment = []
            yield from self.row(item, at, later)
        yield from self.segment(segment, at, later)

    def segment(self, items: list[Item], at: Local, needed: set[Key]) -> Iterator[Stmt]:
        if not items:
            return
        at = Local(at.row, Axis(self.free(self.r.col.var), self.columns))
        body: list[Stmt] = []
        for item in items:
            self.enter(item, at)
            body.append(self.hold(item, self.convert(item.node, item.expr)))
        body += [self.keep(x, at) for x in items if x.key in needed]
        for item in items:
            del self.local_values[item.key]
        yield For(at.col, "vector", tuple(body))

    def row(self, item: Item, at: Local, later: set[Key]) -> Iterator[Stmt]:
        space = self.fused.spaces[item.node]
        if space.raxes:
            at = Local(at.row, Axis(self.free(self.r.col.var), self.columns))
        self.enter(item, at)
        value = self.convert(item.node, item.expr)
        if space.raxes:
            yield from self.reduced(item, value, at)
        else:
            yield self.hold(item, value)
        if item.node in self.storage.places:
            yield self.stored(item.node, self.local_values[item.key])
        elif item.key in later:
            buffer = self.storage.strips[item.node]
            yield Store(buffer, (_idx(at.row.var),), self.local_values[item.key])

    def reduced(self, item: Item, value: Expr, at: Local) -> Iterator[Stmt]:
        space = self.fused.spaces[item.node]
        name, position = self.value_name(item.node), space.op in ("argmax", "argmin")
        leaf = Reduce(name, space.op, (at.col,), value, None, item.node.span)
        yield replace(leaf, vector=row_lane(leaf))
        dtype: DType = "i32" if position else value.dtype
        self.local_values[item.key] = Var(dtype, name)
        if position and self.start != ZERO:
            moved = _plus(Var(dtype, name), self.start)
            yield self.hold(item, moved)

    def member(self, e: Load) -> Expr | None:
        """How a member of the region is read: at hand, from a strip, or None: from its place."""
        node: Node = e.tensor  # type: ignore[assignment]
        role = "strip" if isinstance(node, Operand) else self.r.roles.get(node)
        if role is None:
            return None
        if node in self.local_values:
            return self.local_values[node]
        if role == "strip":
            index = (_idx(self.at.row.var), _idx(self.at.col.var))
            return Load(e.dtype, self.homes[node], index)
        if role == "row" and node in self.storage.strips:
            return Load(e.dtype, self.storage.strips[node], (_idx(self.at.row.var),))
        return None

    # ---- memory of strips ---------------------------------------------------------------------

    def place_strips(self, stages: Sequence[Stage]) -> None:
        """A buffer for each strip; one that nobody reads any more is used again."""
        items = [x for s in stages for x in s.items]
        last: dict[Key, int] = {}
        for i, item in enumerate(items):
            last |= dict.fromkeys(item.needs, i)
        self.homes: dict[Key, Buffer] = {}
        holder: dict[Buffer, Key] = {}
        for i, item in enumerate(items):
            dtype = item.expr.dtype if item.kind == "strip" else item.node.type.dtype
            if item.kind not in ("tile", "strip"):
                continue
            free = (b for b, k in holder.items() if b.type.dtype == dtype and last.get(k, -1) <= i)
            home = next(free, None) or self.strip(dtype, len(holder))
            self.homes[item.key] = home
            holder[home] = item.key
            last.setdefault(item.key, i)

    def strip(self, dtype: DType, number: int) -> Buffer:
        shape = (Dim.of(self.size), self.r.col.extent + 16)  # rows not a power of two apart
        name = f"strip{self.number}.{number}"
        return Buffer(name, TensorType(dtype, shape), "local", span=self.r.nodes[0].span)


def _found(group: Group) -> Region:
    assert group.region is not None, group
    return group.region


def block_rows(r: Region) -> int:
    """Rows of a block: two register tiles; more where sums over rows are stored each time."""
    size = 56 if r.by_columns else 28
    length = r.row.extent.const
    return size if length is None else min(size, length)


def _idx(var: str) -> Idx:
    return Idx(Dim.of(var))


def _plus(x: Var, d: Dim) -> Expr:
    return Op(x.dtype, "add", (x, Op(x.dtype, "cast", (Idx(d),))))


# ---- order --------------------------------------------------------------------------------------


def _items(r: Region, spaces: Mapping[Node, Space]) -> list[Item]:
    out: list[Item] = []
    undone = {s.divisor.of for s in r.sides.values() if s.divisor is not None}
    for node in r.nodes:
        role, side = r.roles[node], r.sides.get(node)
        if role == "after" or node in undone:
            continue
        if side is None:
            body = spaces[node].body
            out.append(Item(node, node, role, body, _members(r, body)))
        elif role == "strip":
            out.append(Item(node, node, "tile", side.strip, _members(r, side.strip, side.other)))
        elif isinstance(side.strip, Load):
            needs = _members(r, side.strip, *_after(r, node, spaces))
            out.append(Item(node, node, role, side.strip, needs))
        else:
            key = Operand(node)
            out.append(Item(key, node, "strip", side.strip, _members(r, side.strip)))
            load = Load(side.strip.dtype, key, ())  # type: ignore[arg-type]
            rows = _members(r, *_after(r, node, spaces))
            out.append(Item(node, node, role, load, (key, *rows)))
    return out


def _after(r: Region, value: Node, spaces: Mapping[Node, Space]) -> list[Expr]:
    divisor = r.sides[value].divisor
    late = [] if divisor is None else [divisor.by]
    return late + [spaces[n].body for n in r.nodes if r.values.get(n) is value]


def _members(r: Region, *exprs: Expr) -> tuple[Key, ...]:
    """Strips and rows that are read."""
    found = (e.tensor for e in walk(*exprs) if isinstance(e, Load))
    known = (t for t in found if r.roles.get(t) in ("strip", "row"))  # type: ignore[call-overload]
    return tuple(dict.fromkeys(known))  # type: ignore[arg-type]


def _stages(items: Sequence[Item]) -> Iterator[Stage]:
    """All that can be done in one go together: an epilogue, or a pass over the rows."""
    left, done = list(items), set[Key]()
    while left:
        ready = [x for x in left if done.issuperset(x.needs)]
        tile = next((x for x in ready if x.kind == "tile"), None)
        if tile is not None:
            chosen = _epilogue(tile, left, done)
            yield Stage("tile", chosen)
        elif any(x.kind in ("row", "strip") for x in ready):
            chosen = _rows(left, done)
            yield Stage("rows", chosen)
        else:
            chosen = ready[:1]
            yield Stage(chosen[0].kind, chosen)
        done |= {x.key for x in chosen}
        left = [x for x in left if x not in chosen]


def _epilogue(tile: Item, left: Sequence[Item], done: set[Key]) -> list[Item]:
    chosen, inside = [tile], {tile.key}
    for x in left:
        known = all(k in done or k in inside for k in x.needs)
        if x.kind == "strip" and known and inside & set(x.needs):
            chosen.append(x)
            inside.add(x.key)
    return chosen


def _rows(left: Sequence[Item], done: set[Key]) -> list[Item]:
    chosen: list[Item] = []
    inside: set[Key] = set()
    for x in left:
        if x.kind in ("row", "strip") and all(k in done or k in inside for k in x.needs):
            chosen.append(x)
            inside.add(x.key)
    return chosen
