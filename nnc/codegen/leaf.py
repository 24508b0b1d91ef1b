"""The contraction leaf of a Program, given to the generator of register tiles.

Groups of several axes become one index each. An operand that is a plain load with one stride for
each group is read by strides; any other is computed where it is packed, the indices taken apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from nnc.codegen import contract, flow, kept, tiles
from nnc.codegen.emit import Emitter
from nnc.codegen.guards import ALWAYS, Guard
from nnc.codegen.memory import flat, strides
from nnc.codegen.operands import Operand, Runs
from nnc.codegen.registers import computes_in
from nnc.codegen.scopes import Value
from nnc.codegen.shared import shared
from nnc.codegen.strips import Strips
from nnc.codegen.sweeps import Sweeps
from nnc.codegen.windows import Group, Windows, digits, group, parted
from nnc.ir.expr import Expr, Idx, Load, Op, Var, loads
from nnc.ir.graph import Axis
from nnc.ir.loop import FEW, REVERSED, SLAB, Buffer, Contract, For, Reduce, Stmt, Store
from nnc.lang.dims import ONE, ZERO, Dim, dim_prod
from nnc.lang.types import DType

_Rows = Callable[[contract.StoreRow], None]
_LONG = 1024  # assumed for sizes known at run time only
_NEXT_TILE = 128  # bytes of a row to the columns of the next tile
_PICTURE = 256  # columns that are a batch of their own if they are whole panels, else twice so many
_TINY = 1 << 12  # multiplications: fewer are done by plain loops


def kind(c: Contract) -> str:
    """Which tiles: a dtype, or what multiplies its words."""
    return c.a.dtype if c.fn == "mul" else c.fn


class Leaves(Sweeps, Windows):
    """Sweeps, and the contraction leaf."""

    contractions: frozenset[str] = frozenset()

    def start(self) -> None:
        super().start()
        self.rooms: dict[DType, str] = {}

    def contraction(self, c: Contract) -> None:
        """The whole body of a kernel."""
        if not c.n:
            c = replace(c, m=c.n, n=c.m, a=c.b, b=c.a, fn=REVERSED[c.fn])
        tiny = self.tiny(c)
        if tiny != "true":
            with flow.when(self.em, flow.negate(self.em, tiny)), self.scope():
                self.tiled(c)
        if tiny != "false":
            only = flow.compare(self.em, "eq", self.tid, "0")
            with flow.when(self.em, tiny), flow.when(self.em, only), self.scope():
                self.block((self.plain(c),))

    def tiny(self, c: Contract) -> str:
        """Whether (an i1) plain loops are faster than tiles."""
        if c.points is not None:
            return "false"
        constant = dim_prod(d for a in (*c.n, *c.k) if (d := a.extent).const is not None)
        if (constant.const or 0) > _TINY or not self.one_chain(c) or _uneven(c):
            return "false"
        size = self.uniform(dim_prod(a.extent for a in (*c.batch, *c.m, *c.n, *c.k))).text
        return flow.compare(self.em, "sle", size, str(_TINY))

    def one_chain(self, c: Contract) -> bool:
        """Whether the tiles sum over k in one block, so that plain loops give the same bits."""
        k = dim_prod(a.extent for a in c.k).const
        return k is not None and k <= tiles.tile(kind(c), self.target).block

    def plain(self, c: Contract) -> Stmt:
        """Loops without tiles or packing, for sizes at which those cost more than they save."""
        sum_ = Reduce(c.name, "dot" if c.fn == "mul" else "sum", c.k, c.product, None)
        body: tuple[Stmt, ...] = (sum_, *c.epilogue)
        axes = (*c.batch, *c.m, *c.n)
        for axis in reversed(axes):
            body = (For(axis, "vector" if axis is axes[-1] else "serial", body),)
        return body[0] if axes else For(Axis("$.one", ONE), "serial", body)

    def tiled(self, c: Contract) -> None:
        """Batches outside, each one contraction by register tiles."""
        if c.points is not None:
            self.by_points(c, c.points)
            return
        if self.direct(c):
            return
        if c.turned is not None:
            self.either_way(c)
            return
        if c.part is None and not _uneven(c) and self.by_pictures(c):
            return
        self.every(c)

    def every(self, c: Contract) -> None:
        self.contractions |= {kind(c)}
        groups = self.three(c)
        with self.merged_axes(groups):
            if not c.batch:
                with self.scope():
                    self.one(c, groups, "%tid", "%nt", self.packed(c))
                return
            self.batches(c, groups)

    def three(self, c: Contract) -> list[Group]:
        return [group(x, axes) for x, axes in zip("mnk", (c.m, c.n, c.k), strict=True)]

    def by_pictures(self, c: Contract) -> bool:
        """Emits a contraction with an operand that is a matrix only for each picture (the first
        axes of n, or of m: `x[b, c, i, j]` over (b, i, j) and c): with batches where there is one
        picture, or where that leaves few lanes idle."""
        for side, axes in (("n", c.n), ("m", c.m)):
            if self.is_matrix(c, side):
                continue
            for first in range(1, len(axes)):
                batch = (*c.batch, *axes[:first])
                rest = axes[first:]
                part = (
                    replace(c, batch=batch, n=rest)
                    if side == "n"
                    else replace(c, batch=batch, m=rest)
                )
                if not _uneven(part) and self.is_matrix(part, side):
                    few = self.few_idle(axes[:first], rest, side)
                    with flow.when(self.em, few), self.scope():
                        self.every(part)
                    with flow.when(self.em, flow.negate(self.em, few)), self.scope():
                        self.every(c)
                    return True
        return False

    def is_matrix(self, c: Contract, side: str) -> bool:
        """Whether the operand with those axes has runs along them, at a stride for k."""
        groups = self.three(c)
        with self.merged_axes(groups):
            m, n, k = groups
            e, mine = (c.b, n) if side == "n" else (c.a, m)
            if not isinstance(e, Load) or e.dtype != kind(c):
                return False
            slopes = self.slopes(e, k, mine)
            return slopes is not None and slopes[1] == ONE

    def few_idle(self, pictures: tuple[Axis, ...], axes: tuple[Axis, ...], side: str) -> str:
        em = self.em
        count, size = (
            self.uniform(dim_prod(a.extent for a in part)).text for part in (pictures, axes)
        )
        one = flow.compare(em, "eq", count, "1")
        if side == "m" or one == "true":
            return one
        whole = flow.compare(em, "eq", flow.rem(em, size, str(SLAB)), "0")
        least = flow.select(em, whole, "i64", str(_PICTURE), str(2 * _PICTURE))
        large = flow.compare(em, "sge", size, least)
        return flow.select(em, one, "i1", "true", large)

    @contextmanager
    def merged_axes(self, groups: list[Group]) -> Iterator[None]:
        outer = self.groups, self.split, dict(self.ranges)
        self.merge(groups)
        yield
        self.groups, self.split, self.ranges = outer

    def batches(self, c: Contract, groups: list[Group]) -> None:
        """Each thread takes as many whole batches as the others; all share those that are left.

        All share all batches that differ in size.
        """
        em = self.em
        total = self.uniform(dim_prod(a.extent for a in c.batch)).text
        each = "0" if _uneven(c) else flow.div(em, total, self.nt)
        first = flow.mul(em, each, self.tid)
        left = flow.sub(em, total, flow.mul(em, each, self.nt))
        shift = flow.mul(em, each, flow.sub(em, self.nt, "1"))
        with self.counted("0", flow.add(em, each, left)) as turn:
            alone = flow.compare(em, "slt", turn, each)
            start = flow.select(em, alone, "i64", first, shift)
            batch = Value(flow.add(em, turn, start), "i64", 1, self.depth)
            tid = em.op(f"select i1 {alone}, i32 0, i32 %tid", "tid")
            nt = em.op(f"select i1 {alone}, i32 1, i32 %nt", "nt")
            with self.indices(batch, c.batch), self.scope():
                self.one(c, groups, tid, nt, self.packed(c))

    def packed(self, c: Contract) -> contract.Ready | None:
        """The right operand as it was packed before the loop around, if it fits the tiles."""
        if c.panels is None or tiles.tile(kind(c), self.target).panel != SLAB:
            return None
        assert isinstance(c.panels.tensor, Buffer), c
        k = self.uniform(dim_prod(a.extent for a in c.k)).text
        there = self.has_copies() if c.copied else "true"
        return contract.Ready(there, self.pointer(c.panels.tensor, ZERO, ()).text, k)

    def has_copies(self) -> str:
        """Whether this call has the kept copies (an i1)."""
        with self.in_prologue():
            return kept.state(self.em, self.frame_field("ctx")).copies

    @contextmanager
    def indices(self, number: Value, axes: tuple[Axis, ...]) -> Iterator[None]:
        """Binds axes to the digits of a number."""
        x = number.text
        for i, axis in reversed(list(enumerate(axes))):
            n = self.uniform(axis.extent).text
            digit = flow.rem(self.em, x, n) if i else x
            x = flow.div(self.em, x, n) if i else x
            self.names[axis.var] = Value(digit, "i64", 1, self.depth)
            self.ranges[axis.var] = (ZERO, axis.extent - 1)
        yield
        for axis in axes:
            del self.names[axis.var], self.ranges[axis.var]

    def one(
        self,
        c: Contract,
        groups: list[Group],
        tid: str,
        nt: str,
        ready: contract.Ready | None = None,
    ) -> None:
        m, n, k = groups
        dtype = kind(c)
        done = contract.Contraction(
            dtype,
            self.target,
            self.uniform(m.extent).text,
            self.uniform(n.extent).text,
            self.uniform(k.extent).text,
            self.operand(c.a, m, k),
            self.operand(c.b, k, n),
            self.epilogue(c, m, n),
            self.tile_scratch(dtype),
            tid,
            nt,
            ready,
            ("0", "0") if c.part is None else self.starts(c),
            self.columns(c, m, n),
            self.follow(c),
            self.result(c, m, n),
            None if ready is not None else self.strips_of(c, k, n),
        )
        contract.emit_contraction(self.em, done)

    def result(self, c: Contract, m: Group, n: Group) -> contract.Strided | None:
        """Where the sums go that are only stored, along whole rows."""
        if len(c.epilogue) != 1 or not isinstance(store := c.epilogue[0], Store):
            return None
        plain = isinstance(store.value, Var) and store.value.name == c.name
        if not plain or store.accumulate or store.guard is not None or store.check is not None:
            return None
        found = self.strided(Load(kind(c), store.buffer, store.index), m, n)
        return found if found is not None and found.col_stride == "1" else None

    def strips_of(self, c: Contract, k: Group, n: Group) -> Strips | None:
        """How the right operand's lines share memory, if they do."""
        tile = tiles.tile(kind(c), self.target)
        if tile.dtype not in ("f32", "f64") or self.run(c.b, k) > self.run(c.b, n):
            return None
        found = shared(self, c.b, k, n, tile)
        if found is not None:
            self.contractions |= {contract.support_kind(tile.dtype, contract.LINES)}
        return found

    def follow(self, c: Contract) -> str:
        """How many batches there are whose left operands lie one behind the other; else 1."""
        if not c.batch or not isinstance(c.a, Load) or not isinstance(c.a.tensor, Buffer):
            return "1"
        form = self.affine(c.a, c.a.tensor).linear_in(c.batch[-1].var)
        if form is None or form[0] != dim_prod(a.extent for a in (*c.m, *c.k)):
            return "1"
        return self.uniform(dim_prod(a.extent for a in c.batch)).text

    def either_way(self, c: Contract) -> None:
        """With few columns the roles are exchanged, where there are copies for that."""
        other = replace(c, m=c.n, n=c.m, a=c.b, b=c.a, panels=c.turned, turned=None)
        columns = self.uniform(dim_prod(a.extent for a in c.n)).text
        few = flow.compare(self.em, "sle", columns, str(FEW))
        few = flow.select(self.em, few, "i1", self.has_copies(), "false")
        with flow.when(self.em, few), self.scope():
            self.tiled(other)
        with flow.when(self.em, flow.negate(self.em, few)), self.scope():
            self.tiled(replace(c, turned=None))

    def by_points(self, c: Contract, weights: Load) -> None:
        raise NotImplementedError

    def direct(self, c: Contract) -> bool:
        raise NotImplementedError

    def starts(self, c: Contract) -> tuple[str, str]:
        raise NotImplementedError

    def tile_scratch(self, dtype: DType) -> str:
        """Room for the tiles: all contractions of a kernel use the same."""
        if dtype not in self.rooms:
            self.rooms[dtype] = self.scratch(Dim.of(contract.scratch_bytes(dtype, self.target)))
        return self.rooms[dtype]

    def scratch(self, size: Dim) -> str:
        raise NotImplementedError

    # ---- operands -------------------------------------------------------------------------------

    def operand(self, e: Expr, row: Group, col: Group) -> Operand:
        return self.strided(e, row, col) or self.computed(e, row, col)

    def strided(self, e: Expr, row: Group, col: Group) -> contract.Strided | None:
        stored = ""
        if isinstance(e, Op) and e.fn == "cast" and e.dtype == "f32":
            (e,), stored = e.args, "bf16"
        if not isinstance(e, Load) or e.dtype != (stored or computes_in(e.dtype)) or row.places:
            return None
        slopes = self.slopes(e, row, col)
        if slopes is None:
            return None
        buffer = e.tensor
        assert isinstance(buffer, Buffer)
        affine = self.collapsed(self.affine(e, buffer))
        pointer = self.pointer(buffer, affine.subst({row.var: ZERO, col.var: ZERO}), ())
        if stored:
            self.contractions |= {contract.support_kind(computes_in(stored), stored)}
        down, across = (self.uniform(s).text for s in slopes)
        return contract.Strided(pointer.text, down, across, stored)

    def slopes(self, e: Load, row: Group, col: Group) -> tuple[Dim, Dim] | None:
        """Elements between successive rows and columns, where that is so for all."""
        if e.other is not None or e.check is not None:
            return None
        if not all(isinstance(i, Idx) for i in e.index):
            return None
        buffer = e.tensor
        assert isinstance(buffer, Buffer)
        affine = self.collapsed(self.affine(e, buffer))
        forms = affine.linear_in(row.var), affine.linear_in(col.var)
        if forms[0] is None or forms[1] is None:
            return None
        slopes = forms[0][0], forms[1][0]
        rest = affine.subst({row.var: ZERO, col.var: ZERO})
        inner = {a.var for g in (row, col) for a in g.axes} | {row.var, col.var}
        return None if inner & (rest.names | slopes[0].names | slopes[1].names) else slopes

    def affine(self, e: Load, buffer: Buffer) -> Dim:
        out = ZERO
        for i, stride in zip(e.index, strides(buffer), strict=True):
            if isinstance(i, Idx):
                out = out + i.dim * stride
        return out

    def computed(self, e: Expr, row: Group, col: Group) -> contract.Computed:
        lanes = self.target.lanes(computes_in(e.dtype))
        axis = 0 if not row.places and self.run(e, row) > self.run(e, col) else 1

        def load(em: Emitter, i: str, j: str) -> str:
            with self.inside_tile(row, i), self.bound(col.var, j, col.extent):
                return self.spread(self.value(e), 1)

        def vector(em: Emitter, i: str, j: str, mask: str | None) -> str:
            along = (row, col)[axis]
            with (
                self.inside_tile(row, i),
                self.bound(col.var, j, col.extent),
                self.along(along, lanes, mask),
            ):
                return self.spread(self.value(e), lanes)

        line, across = (row, col) if axis else (col, row)
        if row.places:
            return contract.Computed(load, vector, axis)
        tile = tiles.tile(computes_in(e.dtype), self.target)
        table = self.window(e, line, across, tile)
        return contract.Computed(load, vector, axis, table, self.runs(e, row, col, lanes))

    def runs(self, e: Expr, row: Group, col: Group, lanes: int) -> Runs | None:
        """Words, of which whole vectors along a row lie together in memory."""
        if not isinstance(e, Load) or e.dtype != "i32" or e.other is not None:
            return None
        if e.check is not None or not all(isinstance(i, Idx) for i in e.index) or not col.axes:
            return None
        buffer = e.tensor
        assert isinstance(buffer, Buffer)
        parts = parted(self.affine(e, buffer), row.names, col.names)
        last = col.axes[-1]
        form = None if parts is None else parts[1].linear_in(last.var)
        whole = last.extent.const is not None and last.extent.const % lanes == 0
        if parts is None or form is None or form[0] != ONE or not whole:
            return None
        down, across, rest = (self.collapsed(d) for d in parts)

        def rows(em: Emitter, first: str, to: str) -> None:
            with self.inside_tile(row, first), self.along(row, lanes, None):
                offsets = self.spread(self.dim(down), lanes)
                em.line(f"store <{lanes} x i64> {offsets}, ptr {to}, align 8")

        def column(em: Emitter, first: str) -> str:
            with self.inside_tile(col, first):
                return self.uniform(self.merged(across)).text

        return Runs(self.pointer(buffer, rest, ()).text, rows, column)

    def run(self, e: Expr, g: Group) -> float:
        """About how many successive elements along a group lie together in memory."""
        most = max(loads(e), key=lambda load: len(load.index), default=None)
        if most is None or not g.axes or not isinstance(most.tensor, Buffer):
            return 0
        last = g.axes[-1]
        affine = self.collapsed(self.affine(most, most.tensor))
        merged = g.var != last.var and g.var in affine.names
        form = affine.linear_in(g.var if merged else last.var)
        if form is None or form[0] == ZERO:
            return 0
        length = (g.extent if merged else last.extent).const or _LONG
        return length if form[0] == ONE else length / 4

    @contextmanager
    def inside_tile(self, g: Group, index: str) -> Iterator[None]:
        if g.places:
            index = self.em.op(f"load i64, ptr {flow.offset(self.em, g.places, index, 'i64')}")
        with self.scope(), self.bound(g.var, index, g.extent):
            yield

    @contextmanager
    def along(self, g: Group, lanes: int, mask: str | None) -> Iterator[None]:
        """Code inside is for `lanes` successive values of a group's index, under a mask."""
        self.vector, self.lanes = g.var, lanes
        if mask is not None:
            self.guard = Guard(None, Value(mask, "bool", lanes, self.depth))
        yield
        self.vector, self.lanes, self.guard = None, 1, ALWAYS

    # ---- epilogue -------------------------------------------------------------------------------

    def epilogue(self, c: Contract, m: Group, n: Group) -> contract.Store:
        def store(em: Emitter, i: str, j: str, value: str, mask: str | None) -> None:
            with self.scope(), self.bound(n.var, j, n.extent):
                self.store_row(c, m, n, i, value, mask)

        return store

    def store_row(
        self, c: Contract, m: Group, n: Group, i: str, value: str, mask: str | None
    ) -> None:
        """The epilogue for a vector along n, whose first index is bound."""
        dtype = c.a.dtype
        lanes = self.target.lanes(dtype)
        with self.inside_tile(m, i), self.along(n, lanes, mask):
            self.variables[c.name] = Value(value, dtype, lanes, self.depth)
            self.ahead = _NEXT_TILE
            if c.fn != "mul":  # bytes: a line holds those of several tiles
                self.beyond = m.var, tiles.tile(kind(c), self.target).rows
            self.block(c.epilogue)
            self.ahead, self.beyond = 0, None

    def columns(self, c: Contract, m: Group, n: Group) -> contract.Columns:
        """What depends on the columns alone stands before the rows. Vectors that are within a run
        of the result's memory (the map of one picture) have code of their own."""
        run = self.longest_run(c, n)

        def version(em: Emitter, g: Group, mask: str | None, body: _Rows) -> None:
            with self.scope():
                body(lambda em, i, value: self.store_row(c, m, g, i, value, mask))

        def columns(em: Emitter, j: str, count: str, mask: str | None, body: _Rows) -> None:
            if run is None:
                with self.scope(), self.bound(n.var, j, n.extent):
                    version(em, n, mask, body)
                return
            length = self.uniform(run.extent).text
            at = flow.rem(em, j, length)
            within = flow.compare(em, "sle", flow.add(em, at, count), length)
            number = flow.div(em, j, length)
            with (
                flow.when(em, within),
                self.scope(),
                self.within(n, run, number),
                self.bound(run.var, at, run.extent),
            ):
                version(em, run, mask, body)
            beyond = flow.negate(em, within)
            with flow.when(em, beyond), self.scope(), self.bound(n.var, j, n.extent):
                version(em, n, mask, body)

        return columns

    def longest_run(self, c: Contract, n: Group) -> Group | None:
        """The last axes of n along which all results lie one after the other, if not all of n."""
        stores = [s for s in c.epilogue if isinstance(s, Store)]
        for first in range(len(n.axes)):
            run = n if not first else Group(f"{n.var}.run", n.axes[first:])
            with self.within(n, run, "0"):
                if all(self.is_run(s, run) for s in stores):
                    return run if first else None
        return None

    def is_run(self, s: Store, run: Group) -> bool:
        return self.apart(s, run) == ONE

    def is_even(self, s: Store, run: Group) -> bool:
        """Whether all results along a group are equally far apart."""
        apart = self.apart(s, run)
        return apart is not None and not any(n.startswith("$") for n in apart.names)

    def apart(self, s: Store, run: Group) -> Dim | None:
        affine = self.merged(self.collapsed(flat(s.buffer, s.index)))
        form = affine.linear_in(run.var)
        return None if form is None else form[0]

    @contextmanager
    def within(self, n: Group, run: Group, number: str) -> Iterator[None]:
        """Axes of n before those of the run are the digits of a number, those of the run its."""
        if run is n:
            yield
            return
        before = self.groups, self.split
        outer = n.axes[: len(n.axes) - len(run.axes)]
        self.groups = {k: v for k, v in self.groups.items() if k != n.var} | {run.var: run.axes}
        self.split = {k: v for k, v in self.split.items() if all(k != a.var for a in n.axes)}
        self.split = self.split | digits(Dim.of(run.var), run.axes)
        ranges = {a.var: self.ranges[a.var] for a in outer}
        with self.indices(Value(number, "i64", 1, self.depth), outer):
            yield
        self.ranges |= ranges
        self.groups, self.split = before


def _uneven(c: Contract) -> bool:
    """Whether the sizes of batches differ."""
    batch = {a.var for a in c.batch}
    return any(batch & a.extent.names for a in (*c.m, *c.n, *c.k))
