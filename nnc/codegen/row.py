"""Contractions with one row: C[0, n] = epilogue(sum over k of A[0, k] * B[k, n]).

Such a product reads B once and is as fast as memory. B is read where it lies, by functions that all
modules share; `depth` is that of the tiles (`contract`), and so are the bits of the sums:

    void nnrt_row_<dtype>_[<stored>_]<axis>(
        ptr a, ptr b, i64 stride, i64 k, i64 depth, i64 n, ptr out)

a and out are contiguous. Axis 1: the columns of B are contiguous, its rows `stride` apart; many
accumulators run down them. Axis 0: k is contiguous, columns are `stride` apart; blocks of as many
columns as lanes are transposed in registers. bf16 (`stored`) becomes f32 in registers; transposed,
two k travel as one word.
"""

from __future__ import annotations

from collections.abc import Callable

from nnc.codegen import flow, vectors
from nnc.codegen.emit import Emitter
from nnc.codegen.operands import Operand, Strided
from nnc.codegen.target import Target
from nnc.codegen.tiles import Tile, add, multiply_add

LONGEST = 128 << 10  # bytes of A's row
_CHUNK = 32 << 10  # bytes of sums between epilogues
_NARROW = 4  # vectors of columns that advance together, at the end; see `_widest`
_AHEAD = 8  # rows of B between use and prefetch
_SOON = 512  # bytes of a column between use and prefetch

Store = Callable[[Emitter, str, str, str, str | None], None]


def fits(b: Operand) -> bool:
    """Whether B is laid out for these functions."""
    return isinstance(b, Strided) and "1" in (b.row_stride, b.col_stride)


def emit_row(
    em: Emitter, t: Tile, a: Operand, b: Strided, sizes: tuple[str, str, str],
    store: Store, scratch: str, thread: tuple[str, str],
) -> None:  # fmt: skip
    """This thread's columns. `sizes`: n, k, depth; `scratch`: LONGEST + 32 KB; `thread`: i64."""
    n, k, depth = sizes
    axis = 1 if b.col_stride == "1" else 0
    stride = b.row_stride if axis else b.col_stride
    row = _row(em, t, a, k, flow.offset(em, scratch, str(_CHUNK), "i8"))
    whole = flow.ceil_div(em, n, str(t.lanes))
    lo = flow.mul(em, flow.share(em, whole, *thread), str(t.lanes))
    end = flow.share(em, whole, flow.add(em, thread[0], "1"), thread[1])
    hi = flow.minimum(em, flow.mul(em, end, str(t.lanes)), n)
    chunk = str(_CHUNK // t.size)
    with flow.loop(em, lo, hi, chunk) as j:
        count = flow.minimum(em, flow.sub(em, hi, j), chunk)
        start = j if axis else flow.mul(em, j, stride)
        at = flow.offset(em, b.ptr, start, vectors.stored_type(t, b.stored))
        em.line(
            f"call void @{_name(t, axis, b.stored)}(ptr {row}, ptr {at}, i64 {stride}, i64 {k}, "
            f"i64 {depth}, i64 {count}, ptr {scratch})"
        )
        _epilogue(em, t, j, count, scratch, store)


def _row(em: Emitter, t: Tile, a: Operand, k: str, to: str) -> str:
    """Pointer to A's row, copied when it is computed or not contiguous."""
    if isinstance(a, Strided) and a.col_stride == "1" and not a.stored:
        return a.ptr
    with flow.loop(em, "0", k) as i:
        if isinstance(a, Strided):
            kind = vectors.stored_type(t, a.stored)
            at = flow.offset(em, a.ptr, flow.mul(em, i, a.col_stride), kind)
            x = vectors.load_element(em, t, a.stored, at)
        else:
            x = a.load(em, "0", i)
        vectors.put(em, t, x, to, i, t.type)
    return to


def _epilogue(em: Emitter, t: Tile, j: str, count: str, sums: str, store: Store) -> None:
    lanes = str(t.lanes)

    def one(at: str, mask: str | None) -> None:
        value = vectors.load_vector(em, t, flow.offset(em, sums, at, t.type), None)
        store(em, "0", flow.add(em, j, at), value, mask)

    rest = flow.rem(em, count, lanes)
    full = flow.sub(em, count, rest)
    with flow.loop(em, "0", full, lanes) as at:
        one(at, None)
    with flow.when(em, flow.compare(em, "ne", rest, "0")):
        one(full, vectors.lane_mask(em, t, rest))


# ---- the shared functions -----------------------------------------------------------------------


def _name(t: Tile, axis: int, stored: str) -> str:
    return f"nnrt_row_{t.dtype}_{stored}_{axis}" if stored else f"nnrt_row_{t.dtype}_{axis}"


def declarations(t: Tile, stored: str = "") -> tuple[str, ...]:
    return tuple(
        f"declare void @{_name(t, axis, stored)}(ptr, ptr, i64, i64, i64, i64, ptr)"
        for axis in (0, 1)
    )


def definitions(t: Tile, target: Target, stored: str = "") -> str:
    return "\n".join(_Row(t, target, axis, stored).text() for axis in (0, 1))


Sums = list[str]


def _widest(t: Tile, target: Target) -> int:
    """Vectors of columns that advance together: what the registers hold beside the operands (words
    of bytes take more of these where no instruction sums up their products)."""
    registers = target.vector_registers
    if t.type == "i32" and not target.vnni:
        return registers // 4
    return min(16, registers * 3 // 4)


class _Row:
    def __init__(self, t: Tile, target: Target, axis: int, stored: str) -> None:
        self.t, self.target, self.axis, self.stored = t, target, axis, stored
        self.kind = vectors.stored_type(t, stored)
        self.size = 2 if stored else t.size  # bytes of an element of B
        self.em = Emitter()

    def text(self) -> str:
        em, t = self.em, self.t
        em.label("entry")
        if self.axis:
            done = "0"
            for width in (_widest(t, self.target), _NARROW):
                step = str(width * t.lanes)
                end = flow.sub(em, "%n", flow.rem(em, flow.sub(em, "%n", done), step))
                with flow.loop(em, done, end, step) as j:
                    self.columns(j, width, None)
                done = end
        else:
            done = "0"
        with flow.loop(em, done, "%n", str(t.lanes)) as j:
            left = flow.sub(em, "%n", j)
            if self.axis:
                self.columns(j, 1, vectors.lane_mask(em, t, left))
            else:
                self.transposed(j, left)
        parameters = "ptr %a, ptr %b, i64 %stride, i64 %k, i64 %depth, i64 %n, ptr %out"
        head = f"define void @{_name(t, self.axis, self.stored)}({parameters}) nounwind"
        return f"{head} {{\n{em.text()}\n  ret void\n}}\n"

    def blocks(self, j: str, block: Callable[[str, str], Sums]) -> None:
        """Adds up the sums of the blocks of k in `out`."""
        em, t = self.em, self.t
        count = flow.maximum(em, flow.ceil_div(em, "%k", "%depth"), "1")
        with flow.loop(em, "0", count) as number:
            k0 = flow.mul(em, number, "%depth")
            k1 = flow.minimum(em, flow.add(em, k0, "%depth"), "%k")
            first = flow.compare(em, "eq", number, "0")
            for v, s in enumerate(block(k0, k1)):
                at = flow.offset(em, "%out", flow.add(em, j, str(v * t.lanes)), t.type)
                old = em.op(f"load {t.vector}, ptr {at}, align {t.size}", "old")
                both = add(em, t, old, s)
                new = em.op(f"select i1 {first}, {t.vector} {s}, {t.vector} {both}", "new")
                em.line(f"store {t.vector} {new}, ptr {at}, align {t.size}")

    def columns(self, j: str, width: int, mask: str | None) -> None:
        em, t = self.em, self.t

        def step(k: str, sums: Sums) -> Sums:
            x = self.broadcast(k)
            at = flow.add(em, flow.mul(em, k, "%stride"), j)
            row = flow.offset(em, "%b", at, self.kind)
            far = flow.offset(em, row, flow.mul(em, "%stride", str(_AHEAD)), self.kind)
            out = []
            for v, s in enumerate(sums):
                place = flow.offset(em, row, str(v * t.lanes), self.kind)
                y = vectors.load_stored(em, t, self.stored, place, mask)
                if v * t.lanes * self.size % 64 == 0:
                    q = flow.offset(em, far, str(v * t.lanes), self.kind)
                    em.line(f"call void @llvm.prefetch.p0(ptr {q}, i32 0, i32 3, i32 1)")
                out.append(self.multiply_add(x, y, s))
            return out

        self.blocks(j, lambda k0, k1: self.chain(k0, k1, "1", self.zeros(width), step))

    def transposed(self, j: str, left: str) -> None:
        """As many columns as lanes; those that are missing repeat the last one."""
        em, t = self.em, self.t
        last = flow.sub(em, left, "1")
        places = []
        for r in range(t.lanes):
            at = flow.add(em, j, flow.minimum(em, str(r), last))
            places.append(flow.offset(em, "%b", flow.mul(em, at, "%stride"), self.kind))

        def square(k: str, sums: Sums) -> Sums:
            self.prefetch(places, k)
            (s,) = sums
            for i, y in enumerate(self.square([flow.offset(em, p, k, self.kind) for p in places])):
                s = self.multiply_add(self.broadcast(flow.add(em, k, str(i))), y, s)
            return [s]

        def single(k: str, sums: Sums) -> Sums:
            y = "poison"
            for i, p in enumerate(places):
                x = vectors.load_element(em, t, self.stored, flow.offset(em, p, k, self.kind))
                y = em.op(f"insertelement {t.vector} {y}, {t.type} {x}, i64 {i}", "y")
            return [self.multiply_add(self.broadcast(k), y, sums[0])]

        def block(k0: str, k1: str) -> Sums:
            step = str(t.lanes * t.size // self.size)
            squares = flow.sub(em, k1, flow.rem(em, flow.sub(em, k1, k0), step))
            sums = self.chain(k0, squares, step, self.zeros(1), square)
            return self.chain(squares, k1, "1", sums, single)

        self.blocks(j, block)

    def square(self, places: list[str]) -> list[str]:
        """Vectors over the columns for as many successive k as a vector register holds."""
        em, t = self.em, self.t
        columns = vectors.transpose(em, t, [self.load(p) for p in places])
        if not self.stored:
            return columns
        words, out = f"<{t.lanes} x i32>", []
        for x in columns:
            pair = em.op(f"bitcast {t.vector} {x} to {words}", "pair")
            for part in (
                f"shl {words} {pair}, splat (i32 16)",
                f"and {words} {pair}, splat (i32 -65536)",
            ):
                out.append(em.op(f"bitcast {words} {em.op(part, 'word')} to {t.vector}", "y"))
        return out

    def load(self, place: str) -> str:
        """A register full of elements as they are in memory."""
        return self.em.op(f"load {self.t.vector}, ptr {place}, align {self.size}", "x")

    def prefetch(self, places: list[str], k: str) -> None:
        """The squares some way on: of these columns, or of those after them."""
        em, t = self.em, self.t
        soon = flow.add(em, k, str(_SOON // self.size))
        over = flow.sub(em, soon, "%k")
        beyond = flow.add(em, flow.mul(em, "%stride", str(t.lanes)), over)
        inside = flow.compare(em, "slt", over, "0")
        at = flow.select(em, inside, "i64", soon, beyond)
        for p in places:
            q = flow.offset(em, p, at, self.kind)
            em.line(f"call void @llvm.prefetch.p0(ptr {q}, i32 0, i32 3, i32 1)")

    def zeros(self, count: int) -> Sums:
        return ["zeroinitializer"] * count

    def chain(
        self, lo: str, hi: str, step: str, start: Sums, body: Callable[[str, Sums], Sums]
    ) -> Sums:
        """A loop that carries sums."""
        em, v = self.em, self.t.vector
        before, loop, latch, done = (em.fresh(x) for x in ("before", "loop", "latch", "done"))
        em.line(f"br label %{before}")
        em.label(before)
        any_ = em.op(f"icmp slt i64 {lo}, {hi}", "any")
        em.line(f"br i1 {any_}, label %{loop}, label %{done}")
        em.label(loop)
        follow = f"%{em.fresh('follow')}"
        i = em.op(f"phi i64 [ {lo}, %{before} ], [ {follow}, %{latch} ]", "k")
        at = len(em.lines)
        held = [f"%{em.fresh('held')}" for _ in start]
        made = body(i, held)
        em.lines[at:at] = [
            f"  {h} = phi {v} [ {s}, %{before} ], [ {m}, %{latch} ]"
            for h, s, m in zip(held, start, made, strict=True)
        ]
        em.line(f"br label %{latch}")
        em.label(latch)
        em.line(f"{follow} = add nsw i64 {i}, {step}")
        more = em.op(f"icmp slt i64 {follow}, {hi}", "more")
        em.line(f"br i1 {more}, label %{loop}, label %{done}")
        em.label(done)
        return [
            em.op(f"phi {v} [ {s}, %{before} ], [ {m}, %{latch} ]", "sum")
            for s, m in zip(start, made, strict=True)
        ]

    def broadcast(self, k: str) -> str:
        em, t = self.em, self.t
        at = flow.offset(em, "%a", k, t.type)
        x = em.op(f"load {t.type}, ptr {at}, align {t.size}", "x")
        x = em.op(f"insertelement {t.vector} poison, {t.type} {x}, i64 0", "x")
        zero = f"<{t.lanes} x i32> zeroinitializer"
        return em.op(f"shufflevector {t.vector} {x}, {t.vector} poison, {zero}", "x")

    def multiply_add(self, x: str, y: str, s: str) -> str:
        return multiply_add(self.em, self.t, self.target, x, y, s)
