"""Operands of a contraction read through windows: addresses from a row's and a column's share.

Each index of such a load is a sum of a part that depends on the row and one that depends on the
column (`x[b, c, i + u - 1, j + v - 1 else 0]`: rows c, u, v and columns b, i, j). One side, the
lanes, is worked out once for a vector; the other, the lines, once for a block, into a table. What
is left for each vector is an addition and a comparison for each index that may leave the tensor,
and a load: of successive elements where the lanes lie so, of two runs of them (where a line of the
picture ends), else of each.

The words of a line: the offset (elements), then for each index that may leave the tensor its share,
then the same again, within +-2^30, for the comparison of 32 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nnc.codegen import flow, vectors
from nnc.codegen.emit import Emitter
from nnc.codegen.expressions import Expressions
from nnc.codegen.guards import ALWAYS, Guard
from nnc.codegen.memory import strides
from nnc.codegen.pack import LINE_WORDS, Lanes, Tabled
from nnc.codegen.registers import REGISTER, literal, splat
from nnc.codegen.scopes import Value
from nnc.codegen.tiles import Tile
from nnc.ir.expr import Const, Expr, Idx, Load, loads
from nnc.ir.graph import Axis
from nnc.ir.loop import Buffer
from nnc.lang.dims import ZERO, Dim, dim_prod
from nnc.lang.types import DType

_NEAR = 1 << 29  # sizes and shares below it are compared in 32 bits
_FAR = 1 << 30


@dataclass(frozen=True)
class Group:
    """Axes that form one index of the contraction, named `var`."""

    var: str
    axes: tuple[Axis, ...]

    @property
    def extent(self) -> Dim:
        return dim_prod(a.extent for a in self.axes)

    @property
    def names(self) -> frozenset[str]:
        return frozenset({self.var, *(a.var for a in self.axes)})


@dataclass(frozen=True)
class _Check:
    """An index that may leave the tensor: the shares of line and lanes, and the axis's size."""

    line: Dim
    lanes: Dim
    size: Dim


@dataclass(frozen=True)
class _Read:
    """A load by shares of its offset."""

    load: Load
    line: Dim
    lanes: Dim
    checks: tuple[_Check, ...]
    base: str  # element that both shares count from

    @property
    def words(self) -> int:
        return 1 + 2 * len(self.checks)


@dataclass(frozen=True)
class _State:
    """The lanes' side of one load at one vector (SSA names)."""

    offsets: str  # <n x i64>
    first: str  # the first lane's offset
    head: str  # <n x i1>: the lanes that lie behind it in a run
    tail: str  # the others
    second: str  # where the first lane were if the run of the others began with it
    shares: tuple[str, ...]  # <n x i64> for each check
    near: tuple[str, ...]  # the same, <n x i32>


class Windows(Expressions):
    """Expressions, and operands by tables."""

    def window(self, e: Expr, line: Group, lanes: Group, t: Tile) -> Tabled | None:
        """The operand with `lanes` along its vectors; None when no load of it is of this kind."""
        reads, words = [], 0
        for load in loads(e):
            found = self._shares(load, line, lanes) if load.dtype == t.dtype else None
            if found is not None and words + found.words <= LINE_WORDS:
                reads.append(found)
                words += found.words
        return _Window(self, e, tuple(reads), line, lanes, t).operand() if reads else None

    def each(self, dtype: DType, base: str, offsets: str, mask: str | None, lanes: int) -> str:
        """A vector of elements anywhere; excluded lanes are 0."""
        before, self.lanes = self.lanes, lanes
        x = self._gather(dtype, base, offsets, mask)
        self.lanes = before
        return x

    def _shares(self, e: Load, line: Group, lanes: Group) -> _Read | None:
        buffer = e.tensor
        assert isinstance(buffer, Buffer)
        if e.check is not None or e.dtype not in ("f32", "f64", "i32"):
            return None
        if not isinstance(e.other, Const | None):
            return None
        mine, across, rest, checks = ZERO, ZERO, ZERO, []
        for i, stride, size in zip(e.index, strides(buffer), buffer.type.shape, strict=True):
            parts = _parted(i.dim, line.names, lanes.names) if isinstance(i, Idx) else None
            if parts is None or (line.names | lanes.names) & stride.names:
                return None
            a, b, c = parts
            mine, across, rest = mine + a * stride, across + b * stride, rest + c * stride
            assert isinstance(i, Idx)
            if e.other is not None and not self.always_inside(i, size):
                checks.append(_Check(a, b + c, size))
        base = self.pointer(buffer, rest, ()).text
        return _Read(e, self.collapsed(mine), self.collapsed(across), tuple(checks), base)


def _parted(d: Dim, line: frozenset[str], lanes: frozenset[str]) -> tuple[Dim, Dim, Dim] | None:
    """d as a sum: of what depends on the line, on the lanes, on neither."""
    parts = [ZERO, ZERO, ZERO]
    for term in d.terms:
        one = Dim((term,))
        inside = bool(one.names & line), bool(one.names & lanes)
        if all(inside):
            return None
        parts[0 if inside[0] else 1 if inside[1] else 2] += one
    return parts[0], parts[1], parts[2]


@dataclass(frozen=True)
class _Window:
    """Emits the parts of a Tabled operand."""

    cx: Windows
    e: Expr
    reads: tuple[_Read, ...]
    line: Group
    lanes: Group
    t: Tile

    def operand(self) -> Tabled:
        return Tabled(self.tabulate, self.prepare, self.fetch)

    # ---- lines ----------------------------------------------------------------------------------

    def tabulate(self, em: Emitter, index: str, to: str) -> None:
        """Writes the words of one line."""
        with _bound(self.cx, self.line, index):
            at = 0
            for read in self.reads:
                self._word(em, to, at, self.cx.uniform(self.cx.merged(read.line)).text)
                shares = [self.cx.uniform(self.cx.merged(c.line)).text for c in read.checks]
                for i, share in enumerate(shares):
                    self._word(em, to, at + 1 + i, share)
                    near = flow.maximum(em, flow.minimum(em, share, str(_FAR)), str(-_FAR))
                    self._word(em, to, at + 1 + len(shares) + i, near)
                at += read.words

    def _word(self, em: Emitter, to: str, at: int, value: str) -> None:
        em.line(f"store i64 {value}, ptr {flow.offset(em, to, str(at), 'i64')}")

    # ---- lanes ----------------------------------------------------------------------------------

    def prepare(self, em: Emitter, index: str, mask: str | None) -> Lanes:
        """The vector of successive lanes from `index`; `mask`: those that count."""
        with _bound(self.cx, self.lanes, index):
            self.cx.vector, self.cx.lanes = self.lanes.var, self.t.lanes
            states = tuple(self._state(em, r) for r in self.reads)
            self.cx.vector, self.cx.lanes = None, 1
        straight = paired = "true"
        for read, state in zip(self.reads, states, strict=True):
            near = self._near(em, read, state)
            one = _both(em, near, self._all(em, state.head, mask))
            behind = self._run(em, state.offsets, state.second)
            both = em.op(f"or <{self.t.lanes} x i1> {state.head}, {behind}", "both")
            two = _both(em, near, self._all(em, both, mask))
            straight, paired = _both(em, straight, one), _both(em, paired, two)
        return Lanes(states, straight, paired, index, mask)

    def _state(self, em: Emitter, read: _Read) -> _State:
        n = self.t.lanes
        offsets = self._vector(read.lanes)
        shares = tuple(self._vector(c.lanes) for c in read.checks)
        first = em.op(f"extractelement <{n} x i64> {offsets}, i64 0", "first")
        near = tuple(em.op(f"trunc <{n} x i64> {s} to <{n} x i32>", "near") for s in shares)
        lies = self._run(em, offsets, first)
        bits = em.op(f"bitcast <{n} x i1> {lies} to i{n}", "bits")
        wide = em.op(f"zext i{n} {bits} to i64", "bits")
        ends = em.op(f"xor i64 {wide}, -1", "ends")
        count = em.op(f"call i64 @llvm.cttz.i64(i64 {ends}, i1 false)", "count")
        head = vectors.lane_mask(em, self.t, count)
        ones = "<" + ", ".join(["i1 true"] * n) + ">"
        tail = em.op(f"xor <{n} x i1> {head}, {ones}", "tail")
        at = flow.minimum(em, count, str(n - 1))
        there = em.op(f"extractelement <{n} x i64> {offsets}, i64 {at}", "there")
        return _State(offsets, first, head, tail, flow.sub(em, there, at), shares, near)

    def _vector(self, d: Dim) -> str:
        return self.cx.spread(self.cx.dim(d), self.t.lanes)

    def _run(self, em: Emitter, offsets: str, first: str) -> str:
        """The lanes that lie where they do in a run that begins with lane 0 at `first`."""
        n = self.t.lanes
        ramp = "<" + ", ".join(f"i64 {i}" for i in range(n)) + ">"
        at = em.op(f"sub <{n} x i64> {offsets}, {splat(em, 'i64', first, n)}", "at")
        return em.op(f"icmp eq <{n} x i64> {at}, {ramp}", "lies")

    def _all(self, em: Emitter, fine: str, mask: str | None) -> str:
        """Whether all lanes that count are among those."""
        n = self.t.lanes
        if mask is not None:
            ones = "<" + ", ".join(["i1 true"] * n) + ">"
            idle = em.op(f"xor <{n} x i1> {mask}, {ones}", "idle")
            fine = em.op(f"or <{n} x i1> {fine}, {idle}", "fine")
        bits = em.op(f"bitcast <{n} x i1> {fine} to i{n}", "bits")
        return em.op(f"icmp eq i{n} {bits}, -1", "all")

    def _near(self, em: Emitter, read: _Read, state: _State) -> str:
        """Whether 32 bits are enough to compare."""
        n, out = self.t.lanes, "true"
        for share in state.shares:
            moved = em.op(f"add <{n} x i64> {share}, {splat(em, 'i64', str(_NEAR), n)}", "moved")
            limit = splat(em, "i64", str(2 * _NEAR), n)
            near = em.op(f"icmp ult <{n} x i64> {moved}, {limit}", "near")
            out = _both(em, out, self._all(em, near, None))
        for c in read.checks:
            size = self.cx.uniform(c.size).text
            out = _both(em, out, flow.compare(em, "sle", size, str(_NEAR)))
        return out

    # ---- elements -------------------------------------------------------------------------------

    def fetch(self, em: Emitter, lanes: Lanes, line: str, table: str, runs: int) -> str:
        """The operand's vector at one line."""
        at, found = 0, []
        for read, state in zip(self.reads, lanes.states, strict=True):
            assert isinstance(state, _State)
            place = flow.offset(em, table, str(at), "i64")
            found.append(self._load(em, read, state, place, lanes.mask, runs))
            at += read.words
        if self.e is self.reads[0].load:
            return found[0]
        cx = self.cx
        with _bound(cx, self.line, line), cx.bound(self.lanes.var, lanes.index, self.lanes.extent):
            cx.vector, cx.lanes = self.lanes.var, self.t.lanes
            if lanes.mask is not None:
                cx.guard = Guard(None, Value(lanes.mask, "bool", self.t.lanes, cx.depth))
            for read, x in zip(self.reads, found, strict=True):
                cx.keep((read.load, cx.guard), Value(x, read.load.dtype, self.t.lanes, cx.depth))
            out = cx.spread(cx.value(self.e), self.t.lanes)
            cx.vector, cx.lanes, cx.guard = None, 1, ALWAYS
        return out

    def _load(
        self, em: Emitter, read: _Read, state: _State, place: str, mask: str | None, runs: int
    ) -> str:
        n, t = self.t.lanes, self.t
        shift = em.op(f"load i64, ptr {place}", "shift")
        inside = self._inside(em, read, state, place, runs > 0)
        active = mask if inside is None else inside
        if inside is not None and mask is not None:
            active = em.op(f"and <{n} x i1> {inside}, {mask}", "active")
        if runs:
            at = flow.add(em, state.first, shift)
            there = flow.offset(em, read.base, at, t.type)
            x = vectors.load_vector(em, t, there, self._active(em, state.head, active, runs))
        if runs == 2:
            at = flow.add(em, state.second, shift)
            there = flow.offset(em, read.base, at, t.type)
            rest = self._active(em, state.tail, active, runs)
            x = vectors.load_more(em, t, there, rest, x)
        if not runs:
            moved = em.op(f"add <{n} x i64> {state.offsets}, {splat(em, 'i64', shift, n)}", "moved")
            x = self.cx.each(read.load.dtype, read.base, moved, active, n)
        other = read.load.other
        if inside is None or (isinstance(other, Const) and str(other.value) == "0.0"):
            return x
        assert isinstance(other, Const), other
        rest = splat(em, REGISTER[other.dtype], literal(other.dtype, other.value), n)
        return em.op(f"select <{n} x i1> {inside}, {t.vector} {x}, {t.vector} {rest}", "x")

    def _active(self, em: Emitter, some: str, active: str | None, runs: int) -> str | None:
        """The lanes of one of two runs."""
        if runs == 1 or active is None:
            return active if runs == 1 else some
        return em.op(f"and <{self.t.lanes} x i1> {some}, {active}", "some")

    def _inside(
        self, em: Emitter, read: _Read, state: _State, place: str, straight: bool
    ) -> str | None:
        """The lanes whose indices are in the tensor; None: all are."""
        n, out = self.t.lanes, None
        count = len(read.checks)
        for i, check in enumerate(read.checks):
            at = 1 + i + (count if straight else 0)
            word = flow.offset(em, place, str(at), "i64")
            kind, shares = ("i32", state.near) if straight else ("i64", state.shares)
            line = splat(em, kind, em.op(f"load {kind}, ptr {word}", "line"), n)
            size = self.cx.uniform(check.size).text
            if straight and flow.const(size) is None:
                size = em.op(f"trunc i64 {size} to i32", "size")
            index = em.op(f"add <{n} x {kind}> {shares[i]}, {line}", "index")
            ok = em.op(f"icmp ult <{n} x {kind}> {index}, {splat(em, kind, size, n)}", "ok")
            out = ok if out is None else em.op(f"and <{n} x i1> {out}, {ok}", "ok")
        return out


@contextmanager
def _bound(cx: Windows, g: Group, index: str) -> Iterator[None]:
    with cx.scope(), cx.bound(g.var, index, g.extent):
        yield


def _both(em: Emitter, a: str, b: str) -> str:
    if a == "true" or b == "true":
        return b if a == "true" else a
    return em.op(f"and i1 {a}, {b}", "both")
