"""Operands of a contraction read through windows: addresses from a row's and a column's share.

Each index of such a load is a sum of a part that depends on the row and one that depends on the
column (`x[b, c, i + u - 1, j + v - 1 else 0]`: rows c, u, v and columns b, i, j). One side, the
lanes, is worked out once for a vector, the other, the lines, once for a block.

* Of a line: the offset of its elements, and for each index that may leave the tensor the number of
  its share. Shares are few where they depend on axes of few values (here u, and v).
* Of a vector: the lanes whose index is inside, for each index and each of its shares, as bits; and
  the *pieces* it consists of: lanes that lie one after the other in memory, or at every second
  element (a map of 28 columns has at most two pieces in a vector of 16 lanes, one of 7 up to four).

A condition around a load (`x[...] if i + u >= 1 and i + u <= H else 0`) counts like such an index:
nothing is read where it is false. What is left for each vector at each line is an `and` for each
such index and a masked load for each piece. Vectors of more than `PIECES` pieces are gathered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from nnc.codegen import flow, vectors
from nnc.codegen.emit import Emitter
from nnc.codegen.expressions import Expressions
from nnc.codegen.guards import ALWAYS, Guard
from nnc.codegen.memory import strides
from nnc.codegen.operands import Lanes, Tabled
from nnc.codegen.pack_tables import LINE_WORDS, PIECES, masks_of, words_of
from nnc.codegen.registers import REGISTER, literal, splat
from nnc.codegen.scopes import Value
from nnc.codegen.tiles import Tile
from nnc.ir.bounds import demands
from nnc.ir.expr import Const, Expr, Idx, Load, loads
from nnc.ir.graph import Axis
from nnc.ir.loop import Buffer
from nnc.lang.dims import ONE, ZERO, Dim, dim_max, dim_prod
from nnc.lang.types import DType

_SOON = 512  # bytes from what is read to what is fetched ahead along a line
_FAR = 1 << 62  # beyond any place
_SHARES = 64  # of an index: more are not numbered, each line has its own


@dataclass(frozen=True)
class Group:
    """Axes that form one index of the contraction, named `var`.

    `places`: where its values stand in memory (i64) if not all count, or not in order."""

    var: str
    axes: tuple[Axis, ...]
    places: str = ""

    @property
    def extent(self) -> Dim:
        return dim_prod(a.extent for a in self.axes)

    @property
    def names(self) -> frozenset[str]:
        return frozenset({self.var, *(a.var for a in self.axes)})


def group(letter: str, axes: tuple[Axis, ...]) -> Group:
    return Group(axes[0].var if len(axes) == 1 else f"$.{letter}", axes)


@dataclass(frozen=True)
class _Check:
    """An index that may leave the tensor: the shares of line and lanes, and the axis's size.

    `axes`: those that the line's share depends on, if its values are few."""

    line: Dim
    lanes: Dim
    size: Dim
    axes: tuple[Axis, ...] | None

    @property
    def number(self) -> Dim:
        """That of a line's share."""
        out = ZERO
        for axis in self.axes or ():
            out = out * axis.extent + Dim.of(axis.var)
        return out


@dataclass(frozen=True)
class _Read:
    """A load by shares of its offset."""

    load: Load
    line: Dim
    lanes: Dim
    moving: Dim  # what depends on variables that are known later
    checks: tuple[_Check, ...]
    base: str  # element that the shares count from
    step: int  # elements from lane to lane within a piece

    @property
    def words(self) -> int:
        return 1 + len(self.checks)


@dataclass(frozen=True)
class _Piece:
    """Lanes (bits) that lie one after the other; where lane 0 were if it belonged to them."""

    lanes: str
    base: str


@dataclass(frozen=True)
class _State:
    """The lanes' side of one load at one vector (SSA names)."""

    offsets: str  # <n x i64>
    pieces: tuple[_Piece, ...]
    masks: tuple[str, ...]  # for each check where the bits for each share are


class Windows(Expressions):
    """Expressions, and operands by tables."""

    def window(
        self, e: Expr, line: Group, lanes: Group, t: Tile, later: frozenset[str] | None = None
    ) -> Tabled | None:
        """The operand with `lanes` along its vectors; None when no load of it is of this kind.

        `later`: variables that are known only where elements are read, for a few lines of which
        nothing is fetched ahead.
        """
        reads, words = [], 0
        known = demands((e,))
        for load in loads(e):
            found = (
                self._shares(load, line, lanes, later or frozenset(), known[id(load)])
                if load.dtype == t.dtype
                else None
            )
            if found is not None and words + found.words <= LINE_WORDS:
                reads.append(found)
                words += found.words
        window = _Window(self, e, tuple(reads), line, lanes, t, later is None)
        return window.operand() if reads else None

    def merge(self, groups: Iterable[Group]) -> None:
        """Makes the axes of each group digits of its index."""
        for g in groups:
            self.ranges |= {a.var: (ZERO, a.extent - 1) for a in g.axes}
            if len(g.axes) > 1:
                self.groups = self.groups | {g.var: g.axes}
                self.split = self.split | digits(Dim.of(g.var), g.axes)

    def each(self, dtype: DType, base: str, offsets: str, mask: str | None, lanes: int) -> str:
        """A vector of elements anywhere; excluded lanes are 0."""
        before, self.lanes = self.lanes, lanes
        x = self._gather(dtype, base, offsets, mask)
        self.lanes = before
        return x

    def has_window(self, e: Expr, line: Group, lanes: Group, t: Tile) -> bool:
        """Whether `window` finds a load of its kind where nothing is known later."""
        known = demands((e,))
        found = (self._parts(x, line, lanes, known[id(x)]) for x in loads(e) if x.dtype == t.dtype)
        return any(p is not None and 1 + len(p[3]) <= LINE_WORDS for p in found)

    def _shares(
        self, e: Load, line: Group, lanes: Group, later: frozenset[str], facts: tuple[Dim, ...]
    ) -> _Read | None:
        """`facts`: dims that are not negative wherever the load is evaluated."""
        parts = self._parts(e, line, lanes, facts)
        if parts is None or any(c.lanes.names & later for c in parts[3]):
            return None
        mine, across, rest, checks = parts
        buffer = e.tensor
        assert isinstance(buffer, Buffer)
        moving, _, rest = parted(rest, later, frozenset()) or (ZERO, ZERO, rest)
        base = self.pointer(buffer, rest, ()).text
        mine, across = self.collapsed(mine), self.collapsed(across)
        return _Read(e, mine, across, moving, tuple(checks), base, _step(e, across, lanes))

    def _parts(
        self, e: Load, line: Group, lanes: Group, facts: tuple[Dim, ...]
    ) -> tuple[Dim, Dim, Dim, list[_Check]] | None:
        """The offset's shares of the line, of the lanes and of neither, and what may be outside."""
        buffer = e.tensor
        assert isinstance(buffer, Buffer)
        if e.check is not None or e.dtype not in ("f32", "f64", "i32"):
            return None
        if not isinstance(e.other, Const | None):
            return None
        mine, across, rest, checks = ZERO, ZERO, ZERO, []
        for i, stride, size in zip(e.index, strides(buffer), buffer.type.shape, strict=True):
            parts = parted(i.dim, line.names, lanes.names) if isinstance(i, Idx) else None
            if parts is None or (line.names | lanes.names) & stride.names:
                return None
            a, b, c = parts
            mine, across, rest = mine + a * stride, across + b * stride, rest + c * stride
            assert isinstance(i, Idx)
            if e.other is not None and not self.always_inside(i, size):
                checks.append(_Check(a, b + c, size, _few(a, line)))
        for d, size in _conditions(facts):
            if not self.always_inside(Idx(d), size):
                parts = parted(d, line.names, lanes.names)
                if parts is None:
                    return None
                size = size if self.nonneg(size) else dim_max(size, ZERO)
                checks.append(_Check(parts[0], parts[1] + parts[2], size, _few(parts[0], line)))
        return mine, across, rest, checks


def _conditions(facts: tuple[Dim, ...]) -> list[tuple[Dim, Dim]]:
    """(d, n) with 0 <= d < n for all of them: two facts about one place make one."""
    out: list[tuple[Dim, Dim]] = []
    left = list(facts)
    while left:
        d = left.pop(0)
        end = next((f for f in left if not any(n.startswith("$") for n in (d + f).names)), None)
        if end is not None:
            left.remove(end)
        out.append((d, Dim.of(_FAR) if end is None else d + end + 1))
    return out


def _few(share: Dim, line: Group) -> tuple[Axis, ...] | None:
    """The axes of the line that a share depends on, if they have few values together."""
    axes = tuple(a for a in line.axes if a.var in share.names)
    values = dim_prod(a.extent for a in axes).const
    return axes if values is not None and values <= _SHARES else None


def _step(e: Load, across: Dim, lanes: Group) -> int:
    """Elements between successive lanes: 2 where that is known and zeros stand outside, else 1."""
    if not _zero_outside(e) or not lanes.axes:
        return 1
    form = across.linear_in(lanes.var if lanes.var in across.names else lanes.axes[-1].var)
    return 2 if form is not None and form[0] == ONE + 1 else 1


def _zero_outside(e: Load) -> bool:
    return e.other is None or (isinstance(e.other, Const) and str(e.other.value) == "0.0")


def parted(d: Dim, line: frozenset[str], lanes: frozenset[str]) -> tuple[Dim, Dim, Dim] | None:
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
    ahead: bool  # whether what comes next along a line is fetched

    def operand(self) -> Tabled:
        return Tabled(self.tabulate, self.prepare, self.fetch)

    # ---- lines ----------------------------------------------------------------------------------

    def tabulate(self, em: Emitter, index: str, table: str, at: str) -> None:
        """Writes the words of a vector of lines."""
        n, word = self.t.lanes, 0
        with self._along(self.line, index):
            for read in self.reads:
                numbers = [c.line if c.axes is None else c.number for c in read.checks]
                for d in (read.line, *numbers):
                    place = flow.offset(em, words_of(em, table, word), at, "i64")
                    em.line(f"store <{n} x i64> {self._vector(d)}, ptr {place}, align 8")
                    word += 1

    # ---- lanes ----------------------------------------------------------------------------------

    def prepare(
        self, em: Emitter, index: str, mask: str, table: str, lines: str, slot: int
    ) -> Lanes:
        """The vector of successive lanes from `index`; `mask`: those that count."""
        states, most, first = [], "0", 0
        with self._along(self.lanes, index):
            vectors_ = [
                (self._vector(r.lanes), [self._vector(c.lanes) for c in r.checks])
                for r in self.reads
            ]
        counted = self._bits(em, mask)
        for read, (offsets, shares) in zip(self.reads, vectors_, strict=True):
            pieces, count = self._pieces(em, read, offsets, counted)
            masks = [
                self._masks(em, read, c, share, table, lines, first + i, slot)
                for i, (c, share) in enumerate(zip(read.checks, shares, strict=True))
            ]
            states.append(_State(offsets, tuple(pieces), tuple(masks)))
            most = flow.maximum(em, most, count)
            first += read.words
        return Lanes(tuple(states), most, index, mask)

    def _vector(self, d: Dim) -> str:
        return self.cx.spread(self.cx.dim(d), self.t.lanes)

    @contextmanager
    def _along(self, g: Group, index: str) -> Iterator[None]:
        """Code inside is for a vector of successive indices of the group."""
        with _bound(self.cx, g, index):
            self.cx.vector, self.cx.lanes = g.var, self.t.lanes
            yield
            self.cx.vector, self.cx.lanes = None, 1

    def _pieces(
        self, em: Emitter, read: _Read, offsets: str, counted: str
    ) -> tuple[list[_Piece], str]:
        """The pieces of the lanes that count (i32), and their number: PIECES + 1 for more."""
        n, wide = self.t.lanes, f"<{self.t.lanes} x i64>"
        slot = self.cx.alloca(f"[{n} x i64]")
        ramp = "<" + ", ".join(f"i64 {i * read.step}" for i in range(n)) + ">"
        starts = em.op(f"sub {wide} {offsets}, {ramp}", "starts")
        em.line(f"store {wide} {starts}, ptr {slot}, align 64")
        left, count, found = counted, "0", []
        for _ in range(PIECES):
            lane = em.op(f"call i32 @llvm.cttz.i32(i32 {left}, i1 false)", "lane")
            lane = em.op(f"and i32 {lane}, {n - 1}", "lane")
            place = em.op(f"getelementptr i64, ptr {slot}, i32 {lane}", "place")
            start = em.op(f"load i64, ptr {place}", "start")
            same = em.op(f"icmp eq {wide} {starts}, {splat(em, 'i64', start, n)}", "same")
            here = em.op(f"and i32 {self._bits(em, same)}, {left}", "here")
            count = flow.add(em, count, self._one_if_any(em, left))
            left = em.op(f"xor i32 {left}, {here}", "left")
            base = flow.offset(em, read.base, start, self.t.type)
            found.append(_Piece(self._spread_bits(em, here, read.step), base))
        return found, flow.add(em, count, self._one_if_any(em, left))

    def _one_if_any(self, em: Emitter, bits: str) -> str:
        return em.op(f"zext i1 {em.op(f'icmp ne i32 {bits}, 0', 'any')} to i64", "any")

    def _bits(self, em: Emitter, mask: str) -> str:
        """A mask as an i32."""
        n = self.t.lanes
        return em.op(f"zext i{n} {em.op(f'bitcast <{n} x i1> {mask} to i{n}', 'bits')} to i32", "b")

    def _spread_bits(self, em: Emitter, bits: str, step: int) -> str:
        """Bit i moved to bit i * step (1 or 2)."""
        halves = ((8, 0x00FF00FF), (4, 0x0F0F0F0F), (2, 0x33333333), (1, 0x55555555))
        return bits if step == 1 else _moved_bits(em, "shl", bits, halves)

    def _gathered_bits(self, em: Emitter, bits: str, step: int) -> str:
        """The other way round."""
        halves = ((1, 0x33333333), (2, 0x0F0F0F0F), (4, 0x00FF00FF), (8, 0x0000FFFF))
        return bits if step == 1 else _moved_bits(em, "lshr", bits, halves)

    def _mask(self, em: Emitter, bits: str, vector: int = 0) -> str:
        """The lanes of an i32's bits from those of that vector on."""
        n = self.t.lanes
        if vector:
            bits = em.op(f"lshr i32 {bits}, {n * vector}", "bits")
        narrow = em.op(f"trunc i32 {bits} to i{n}", "narrow")
        return em.op(f"bitcast i{n} {narrow} to <{n} x i1>", "mask")

    def _masks(
        self, em: Emitter, read: _Read, c: _Check, share: str, table: str, lines: str, word: int,
        slot: int,
    ) -> str:  # fmt: skip
        """Writes the lanes that are inside at each share of the lines; where to."""
        n, to = self.t.lanes, masks_of(em, table, word, slot)
        size = splat(em, "i64", self.cx.uniform(c.size).text, n)
        count = lines if c.axes is None else str(dim_prod(a.extent for a in c.axes).const)
        with flow.loop(em, "0", count) as i:
            if c.axes is None:
                place = flow.offset(em, words_of(em, table, word + 1), i, "i64")
                line = em.op(f"load i64, ptr {place}", "line")
            else:
                line = self._share(em, c.line, c.axes, i)
            index = em.op(f"add <{n} x i64> {share}, {splat(em, 'i64', line, n)}", "index")
            ok = em.op(f"icmp ult <{n} x i64> {index}, {size}", "ok")
            bits = self._spread_bits(em, self._bits(em, ok), read.step)
            em.line(f"store i32 {bits}, ptr {flow.offset(em, to, i, 'i32')}")
        return to

    def _share(self, em: Emitter, share: Dim, axes: tuple[Axis, ...], number: str) -> str:
        """The line's share of that number."""
        cx = self.cx
        with cx.scope():
            before = {a.var: (cx.names.get(a.var), cx.ranges.get(a.var)) for a in axes}
            for i, axis in reversed(list(enumerate(axes))):
                extent = str(axis.extent.const)
                digit = flow.rem(em, number, extent) if i else number
                number = flow.div(em, number, extent)
                cx.names[axis.var] = Value(digit, "i64", 1, cx.depth)
            text = cx.uniform(share).text
            for var, (name, _) in before.items():
                if name is None:
                    del cx.names[var]
                else:
                    cx.names[var] = name
        return text

    # ---- elements -------------------------------------------------------------------------------

    def fetch(self, em: Emitter, lanes: Lanes, line: str, table: str, at: str, pieces: int) -> str:
        """The operand's vector at one line, entry `at` of the table."""
        word, found = 0, []
        for read, state in zip(self.reads, lanes.states, strict=True):
            assert isinstance(state, _State)
            words = [
                em.op(
                    f"load i64, ptr {flow.offset(em, words_of(em, table, word + i), at, 'i64')}",
                    "word",
                )
                for i in range(read.words)
            ]
            found.append(self._load(em, read, state, words, at, lanes.mask, pieces))
            word += read.words
        if self.e is self.reads[0].load:
            return found[0]
        cx = self.cx
        with _bound(cx, self.line, line), cx.bound(self.lanes.var, lanes.index, self.lanes.extent):
            cx.vector, cx.lanes = self.lanes.var, self.t.lanes
            cx.guard = Guard(None, Value(lanes.mask, "bool", self.t.lanes, cx.depth))
            for read, x in zip(self.reads, found, strict=True):
                cx.keep((read.load, cx.guard), Value(x, read.load.dtype, self.t.lanes, cx.depth))
            out = cx.spread(cx.value(self.e), self.t.lanes)
            cx.vector, cx.lanes, cx.guard = None, 1, ALWAYS
        return out

    def _load(
        self, em: Emitter, read: _Read, state: _State, words: list[str], at: str, mask: str,
        pieces: int,
    ) -> str:  # fmt: skip
        n, t = self.t.lanes, self.t
        inside = self._inside(em, read, state, words[1:], at)
        shift = flow.add(em, words[0], self.cx.uniform(self.cx.collapsed(read.moving)).text)
        if pieces:
            x = self._put_together(em, read, state.pieces[:pieces], shift, inside)
        else:
            active = mask
            if inside is not None:
                there = self._mask(em, self._gathered_bits(em, inside, read.step))
                active = em.op(f"and <{n} x i1> {there}, {mask}", "active")
            splatted = splat(em, "i64", shift, n)
            moved = em.op(f"add <{n} x i64> {state.offsets}, {splatted}", "moved")
            x = self.cx.each(read.load.dtype, read.base, moved, active, n)
        if inside is None or _zero_outside(read.load):
            return x
        other = read.load.other
        assert isinstance(other, Const), other
        rest = splat(em, REGISTER[other.dtype], literal(other.dtype, other.value), n)
        ok = self._mask(em, inside)
        return em.op(f"select <{n} x i1> {ok}, {t.vector} {x}, {t.vector} {rest}", "x")

    def _put_together(
        self, em: Emitter, read: _Read, pieces: tuple[_Piece, ...], shift: str, inside: str | None
    ) -> str:
        """A vector from its pieces: `step` vectors of memory, of which every step-th element."""
        t = self.t
        loaded = ["zeroinitializer"] * read.step
        for p in pieces:
            bits = p.lanes
            if inside is not None:
                bits = em.op(f"and i32 {bits}, {inside}", "bits")
            place = flow.offset(em, p.base, shift, t.type)
            if self.ahead and p is pieces[0]:
                soon = flow.offset(em, place, str(_SOON), "i8")
                em.line(f"call void @llvm.prefetch.p0(ptr {soon}, i32 0, i32 2, i32 1)")
            for v in range(read.step):
                there = flow.offset(em, place, str(v * t.lanes), t.type)
                loaded[v] = vectors.load_more(em, t, there, self._mask(em, bits, v), loaded[v])
        if read.step == 1:
            return loaded[0]
        order = ", ".join(f"i32 {i * read.step}" for i in range(t.lanes))
        both = f"{t.vector} {loaded[0]}, {t.vector} {loaded[1]}"
        return em.op(f"shufflevector {both}, <{t.lanes} x i32> <{order}>", "x")

    def _inside(
        self, em: Emitter, read: _Read, state: _State, numbers: list[str], at: str
    ) -> str | None:
        """The lanes (bits) whose indices are in the tensor; None: all are."""
        out = None
        for check, masks, number in zip(read.checks, state.masks, numbers, strict=True):
            place = flow.offset(em, masks, at if check.axes is None else number, "i32")
            bits = em.op(f"load i32, ptr {place}", "bits")
            out = bits if out is None else em.op(f"and i32 {out}, {bits}", "inside")
        return out


@contextmanager
def _bound(cx: Windows, g: Group, index: str) -> Iterator[None]:
    with cx.scope(), cx.bound(g.var, index, g.extent):
        yield


def _moved_bits(em: Emitter, shift: str, bits: str, halves: Sequence[tuple[int, int]]) -> str:
    """`bits` shifted by each number where the mask beside it says so."""
    for n, keep in halves:
        moved = em.op(f"{shift} i32 {bits}, {n}", "moved")
        both = em.op(f"or i32 {bits}, {moved}", "both")
        bits = em.op(f"and i32 {both}, {keep}", "bits")
    return bits


def digits(index: Dim, axes: tuple[Axis, ...]) -> dict[str, Dim]:
    """Each axis as a function of the row-major number."""
    out: dict[str, Dim] = {}
    for axis in reversed(axes[1:]):
        out[axis.var] = index % axis.extent
        index = index // axis.extent
    return out | {axes[0].var: index}
