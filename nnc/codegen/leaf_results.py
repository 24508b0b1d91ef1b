"""Results of the contraction leaf of a Program: where they go, and the epilogue on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nnc.codegen import contract, flow, tiles
from nnc.codegen.emit import Emitter
from nnc.codegen.leaf_operands import LeafOperands, kind
from nnc.codegen.memory import flat
from nnc.codegen.scopes import Value
from nnc.codegen.windows import Group, digits
from nnc.ir.expr import Idx, Load, Var
from nnc.ir.graph import Axis
from nnc.ir.loop import Contract, Store
from nnc.lang.dims import ONE, ZERO, Dim, dim_prod
from nnc.lang.types import DTYPES

_Rows = Callable[[contract.StoreRow], None]
_NEXT_TILE = 128  # bytes of a row to the columns of the next tile


class LeafResults(LeafOperands):
    """Operands, and what is done with sums."""

    def epilogue(self, c: Contract, m: Group, n: Group) -> contract.Store:
        def store(em: Emitter, i: str, j: str, value: str, mask: str | None) -> None:
            with self.scope(), self.bound(n.var, j, n.extent):
                self.store_row(c, m, n, i, value, mask)

        return store

    def across(self, c: Contract) -> int:
        """Vectors that the epilogue takes at a time: bytes of a panel are stored together."""
        t = tiles.tile(kind(c), self.target)
        n = dim_prod(a.extent for a in c.n).const
        stores = [s for s in c.epilogue if isinstance(s, Store)]
        small = all(DTYPES[s.buffer.type.dtype].bytes == 1 for s in stores)
        whole = n is not None and n % t.panel == 0
        return t.panel // t.lanes if t.vector_rows and small and whole else 1

    def store_row(
        self, c: Contract, m: Group, n: Group, i: str, value: str, mask: str | None, across: int = 1
    ) -> None:
        """The epilogue for so many vectors along n, whose first index is bound."""
        dtype = c.a.dtype
        lanes = self.target.lanes(dtype) * across
        with self.inside_tile(m, i), self.along(n, lanes, mask):
            self.variables[c.name] = Value(value, dtype, lanes, self.depth)
            self.ahead = _NEXT_TILE
            self.block(c.epilogue)
            self.ahead = 0

    def columns(self, c: Contract, m: Group, n: Group) -> contract.Columns:
        """What depends on the columns alone stands before the rows. Vectors that are within a run
        of the result's memory (the map of one picture) have code of their own."""
        run, across = self.longest_run(c, n), self.across(c)

        def version(em: Emitter, g: Group, mask: str | None, body: _Rows) -> None:
            with self.scope():
                body(lambda em, i, value: self.store_row(c, m, g, i, value, mask, across))

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

    def touch(self, c: Contract, m: Group, n: Group) -> contract.Touch | None:
        """Fetches what a panel's columns of rows are stored to, where they lie together."""
        t = tiles.tile(kind(c), self.target)
        stores = [s for s in c.epilogue if isinstance(s, Store)]
        plain = all(isinstance(i, Idx) for s in stores for i in s.index)
        words = all(DTYPES[s.buffer.type.dtype].bytes == t.size for s in stores)
        if not (t.fetches or (t.vector_rows and words)) or not stores or not plain:
            return None
        if not all(self.is_run(s, n) for s in stores) and self.longest_run(c, n) is None:
            return None

        def touch(em: Emitter, row: str, col: str, rows: str) -> None:
            with (
                flow.loop(em, "0", rows) as i,
                self.inside_tile(m, flow.add(em, row, i)),
                self.bound(n.var, col, n.extent),
            ):
                for s in stores:
                    place = self.pointer(s.buffer, self.merged(flat(s.buffer, s.index)), ()).text
                    for byte in range(0, t.panel * t.size, 64):
                        line = flow.offset(em, place, str(byte), "i8")
                        em.line(f"call void @llvm.prefetch.p0(ptr {line}, i32 1, i32 3, i32 1)")

        return touch

    def result(self, c: Contract, m: Group, n: Group) -> contract.Strided | None:
        """Where the sums go that are only stored, along whole rows."""
        if len(c.epilogue) != 1 or not isinstance(store := c.epilogue[0], Store):
            return None
        plain = isinstance(store.value, Var) and store.value.name == c.name
        if not plain or store.accumulate or store.guard is not None or store.check is not None:
            return None
        found = self.strided(Load(kind(c), store.buffer, store.index), m, n)
        return found if found is not None and found.col_stride == "1" else None

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
