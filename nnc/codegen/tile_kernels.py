"""The micro-kernels of the contraction leaf, one set for each dtype and target (see `tiles`).

A micro-kernel multiplies `height` rows of A by a few vectors of B over one block of k, and writes
(or adds) the tile to scratch memory. It knows nothing of layouts, edges, epilogues or threads, so
all contractions of a process share one set.

    void nnrt_tile_<dtype>_<height>x<vectors>(a, b, b_k, b_panel, kc, tile, add[, apart])

    a        ptr   rows of A, k contiguous, `Tile.a_row` elements apart: a constant, so that one
                   register addresses all of them, and no power of two, so that they do not meet
                   in one set of the L1 cache
    b        ptr   element (0, 0) of B; the columns of a panel are contiguous
    b_k      i64   bytes between successive k in a panel
    b_panel  i64   bytes between panels
    kc       i64   number of k, 0 or more
    tile     ptr   height x (vectors * lanes) elements, row-major without gaps, vector-aligned
    add      i32   0: the tile is overwritten; 1: the sums are added to it
    apart    i64   (floats only) bytes between rows of the tile, which then may lie anywhere

    void nnrt_copy_<dtype>_<height>(the same)

of floats, for the greater heights, are kernels of one panel that also copy it, without gaps, to
where it is `b_panel` bytes behind b: what the other rows read then is packed, at no cost. So do
`nnrt_linecopy_...` with panels whose lines are found by a table (`strips`).

Behind the panel of A, at `Tile.panel_bytes`, kernels of floats expect a list of addresses: one for
every UNROLL k (as far apart as these are in a row). They are fetched to the second level of the
cache as the sums proceed: what comes next (see `contract_ahead`).

Each element is one chain of fused multiply-adds in order of k from 0.0 (multiply, round, add where
the target has no FMA), whichever kernel computes it.
"""

from __future__ import annotations

from collections.abc import Iterator

from nnc.codegen import matrix
from nnc.codegen.emit import Emitter
from nnc.codegen.target import Target
from nnc.codegen.tiles import UNROLL, VECTORS, Tile, add, multiply_add, pair_products, suffix

# Rows of B between use and prefetch, of low tiles (up to 8 rows) and of others. From the second
# level of the cache 4 to 32 run alike; from further away (B read in place, in short pieces that the
# hardware does not foresee) these do best. Powers of two.
_AHEAD = 8, 32
_LINES_AHEAD = 16  # where they are found by tables: at most what `strips` writes past the end


def kernel_name(t: Tile, height: int, vectors: int, lines: bool = False) -> str:
    return f"nnrt_{'lines' if lines else 'tile'}_{t.dtype}_{height}x{vectors}"


def copying_name(t: Tile, height: int, lines: bool = False) -> str:
    return f"nnrt_{'linecopy' if lines else 'copy'}_{t.dtype}_{height}"


State = list[str]


class _Kernel:
    """Emits one micro-kernel; `State`: a pointer into A, one for each panel of B (and one for the
    copy), the sums.

    With `lines` the pointers of the panels stay where they are, and one goes along the table."""

    def __init__(
        self, t: Tile, target: Target, height: int, vectors: int,
        copies: bool = False, lines: bool = False,
    ) -> None:  # fmt: skip
        self.t, self.target, self.height, self.vectors = t, target, height, vectors
        self.em, self.copies, self.lines = Emitter(), copies, lines
        self.panels = 2 if copies else -(-vectors // VECTORS)

    def text(self) -> str:
        em, t = self.em, self.t
        name = kernel_name(t, self.height, self.vectors, self.lines)
        name = copying_name(t, self.height, self.lines) if self.copies else name
        em.label("entry")
        b = ["%b"]
        for _ in range(1, self.panels):
            b.append(em.op(f"getelementptr i8, ptr {b[-1]}, i64 %b_panel", "b"))
        self.bases = b
        if self.lines:
            em.line("%table = inttoptr i64 %b_k to ptr")
            b = ["%table", *b[1:]] if self.copies else ["%table"]
        self.moving = len(b)
        em.line(f"%turns = udiv i64 %kc, {UNROLL}")
        em.line(f"%rest = urem i64 %kc, {UNROLL}")
        em.line("%fresh = icmp eq i32 %add, 0")
        if t.fetches:
            self.fetch_tile()
        else:
            em.line("br label %start")
        em.label("start")
        zeros = ["zeroinitializer"] * (self.height * self.vectors)
        state = self.loop("main", "start", "%turns", UNROLL, ["%a", *b, *zeros])
        state = self.loop("tail", "main.done", "%rest", 1, state)
        self.finish(state[1 + self.moving :])
        head = f"define void @{name}(ptr %a, ptr %b, i64 %b_k, i64 %b_panel, i64 %kc, "
        apart = ", i64 %apart" if t.fetches else ""
        return f"{head}ptr %tile, i32 %add{apart}) nounwind {{\n{em.text()}\n}}\n"

    def loop(self, name: str, before: str, turns: str, unroll: int, start: State) -> State:
        """`turns` rounds of `unroll` k each; gives the state after it, in block `name`.done."""
        em = self.em
        types = ["ptr"] * (1 + self.moving) + [self.t.vector] * (len(start) - 1 - self.moving)
        inner = [f"%{em.fresh('in')}" for _ in start]
        em.line(f"%{name}.any = icmp ne i64 {turns}, 0")
        em.line(f"br i1 %{name}.any, label %{name}, label %{name}.done")
        em.label(name)
        phis = len(em.lines)
        end = self.step(unroll, inner)
        left = f"%{name}.left"
        em.line(f"{left}.next = sub i64 {left}, 1")
        em.line(f"%{name}.more = icmp ne i64 {left}.next, 0")
        em.line(f"br i1 %{name}.more, label %{name}, label %{name}.done")
        em.label(f"{name}.done")
        paths = [
            f"phi {ty} [ {s}, %{before} ], [ {e}, %{name} ]"
            for ty, s, e in zip(types, start, end, strict=True)
        ]
        after = [em.op(phi, "out") for phi in paths]
        em.lines[phis:phis] = [f"  {x} = {phi}" for x, phi in zip(inner, paths, strict=True)]
        em.lines.insert(
            phis, f"  {left} = phi i64 [ {turns}, %{before} ], [ {left}.next, %{name} ]"
        )
        return after

    def step(self, unroll: int, state: State) -> State:
        """`unroll` successive k of all rows and vectors."""
        em, t = self.em, self.t
        a, b, s = state[0], state[1 : 1 + self.moving], state[1 + self.moving :]
        if unroll == UNROLL and t.fetches:
            self.fetch(a)
        for u in range(unroll):
            row = self.b_line(b) if self.lines else self.b_row(b)
            for i in range(self.height):
                x = self.broadcast(a, i * t.a_row + u)
                for j, y in enumerate(row):
                    at = i * self.vectors + j
                    s[at] = self.multiply_add(x, y, s[at])
            step = "4" if self.lines else "%b_k"
            other = str(t.panel * t.size) if self.copies else step
            b = [
                em.op(f"getelementptr i8, ptr {p}, i64 {other if n else step}", "b")
                for n, p in enumerate(b)
            ]
        return [em.op(f"getelementptr {t.type}, ptr {a}, i64 {unroll}", "a"), *b, *s]

    def fetch(self, a: str) -> None:
        em, t = self.em, self.t
        place = em.op(f"getelementptr i8, ptr {a}, i64 {t.panel_bytes}", "place")
        there = em.op(f"load ptr, ptr {place}, align 8", "there")
        em.line(f"call void @llvm.prefetch.p0(ptr {there}, i32 0, i32 2, i32 1)")

    def fetch_tile(self) -> None:
        """What the sums are added to may lie in a far result."""
        em, t = self.em, self.t
        em.line("br i1 %fresh, label %start, label %fetch")
        em.label("fetch")
        for i, p in enumerate(self.places()):
            if i % self.vectors * t.lanes * t.size % 64 == 0:
                em.line(f"call void @llvm.prefetch.p0(ptr {p}, i32 1, i32 3, i32 1)")
        em.line("br label %start")

    def b_row(self, b: State) -> list[str]:
        em, t = self.em, self.t
        ahead = _AHEAD[self.height > 8 and not self.copies]
        far = em.op(f"shl i64 %b_k, {ahead.bit_length() - 1}", "far")
        row: list[str] = []
        for j in range(self.vectors):
            p, v = b[j // VECTORS], j % VECTORS
            if v:
                p = em.op(f"getelementptr {t.vector}, ptr {p}, i64 {v}", "b")
            row.append(em.op(f"load {t.vector}, ptr {p}, align {t.size}", "y"))
            if self.copies:
                self.copy(row[-1], b[1], v)
            if (j * t.lanes * t.size) % 64 == 0:
                q = em.op(f"getelementptr i8, ptr {p}, i64 {far}", "q")
                em.line(f"call void @llvm.prefetch.p0(ptr {q}, i32 0, i32 3, i32 1)")
        return row

    def copy(self, x: str, to: str, vector: int) -> None:
        em, t = self.em, self.t
        place = em.op(f"getelementptr {t.vector}, ptr {to}, i64 {vector}", "to")
        em.line(f"store {t.vector} {x}, ptr {place}")

    def b_line(self, b: State) -> list[str]:
        """Of the strips' positions: where they lie across three cache lines, all are fetched."""
        em, t, table = self.em, self.t, b[0]
        place = em.op(f"getelementptr i32, ptr {table}, i64 {_LINES_AHEAD}", "place")
        at, far = (em.op(f"load i32, ptr {p}, align 4", "line") for p in (table, place))
        at, far = (em.op(f"sext i32 {x} to i64", "line") for x in (at, far))
        row: list[str] = []
        for j, base in enumerate(self.bases[:1] if self.copies else self.bases):
            p = em.op(f"getelementptr i8, ptr {base}, i64 {at}", "b")
            q = em.op(f"getelementptr i8, ptr {base}, i64 {far}", "q")
            some = min(VECTORS, self.vectors - j * VECTORS) * t.lanes * t.size
            for byte in (*range(0, some, 64), some - 1):
                there = em.op(f"getelementptr i8, ptr {q}, i64 {byte}", "q")
                em.line(f"call void @llvm.prefetch.p0(ptr {there}, i32 0, i32 3, i32 1)")
            for v in range(some // (t.lanes * t.size)):
                x = em.op(f"getelementptr {t.vector}, ptr {p}, i64 {v}", "b")
                row.append(em.op(f"load {t.vector}, ptr {x}, align {t.size}", "y"))
                if self.copies:
                    self.copy(row[-1], b[1], v)
        return row

    def broadcast(self, a: str, element: int) -> str:
        em, t = self.em, self.t
        p = em.op(f"getelementptr {t.type}, ptr {a}, i64 {element}", "a")
        x = em.op(f"load {t.type}, ptr {p}, align {t.size}", "x")
        x = em.op(f"insertelement {t.vector} poison, {t.type} {x}, i64 0", "x")
        mask = f"<{t.lanes} x i32> zeroinitializer"
        return em.op(f"shufflevector {t.vector} {x}, {t.vector} poison, {mask}", "x")

    def multiply_add(self, x: str, y: str, s: str) -> str:
        return multiply_add(self.em, self.t, self.target, x, y, s)

    def finish(self, sums: list[str]) -> None:
        em, t = self.em, self.t
        aligned = f"align {t.size if t.fetches else t.size * t.lanes}"
        em.line("br i1 %fresh, label %store, label %accumulate")
        em.label("store")
        for p, s in zip(self.places(), sums, strict=True):
            em.line(f"store {t.vector} {s}, ptr {p}, {aligned}")
        em.line("ret void")
        em.label("accumulate")
        for p, s in zip(self.places(), sums, strict=True):
            old = em.op(f"load {t.vector}, ptr {p}, {aligned}", "old")
            new = add(em, t, old, s)
            em.line(f"store {t.vector} {new}, ptr {p}, {aligned}")
        em.line("ret void")

    def places(self) -> Iterator[str]:
        """Of the vectors of the tile."""
        em, t = self.em, self.t
        row, apart = "%tile", "%apart" if t.fetches else str(self.vectors * t.lanes * t.size)
        for i in range(self.height):
            if i:
                row = em.op(f"getelementptr i8, ptr {row}, i64 {apart}", "row")
            for j in range(self.vectors):
                yield em.op(f"getelementptr {t.vector}, ptr {row}, i64 {j}", "t") if j else row


def _table(t: Tile, name: str, lines: bool = False) -> str:
    """By height - 1: the three kernels."""
    kernels = ", ".join(
        "[3 x ptr] [" + ", ".join(f"ptr @{kernel_name(t, h, v, lines)}" for v in t.vectors(h)) + "]"
        for h in range(1, t.rows + 1)
    )
    return f"@nnrt_{name}_{t.dtype} = constant [{t.rows} x [3 x ptr]] [{kernels}]\n"


def _copies(t: Tile, name: str, lines: bool = False) -> str:
    """By height - 1: the kernels that copy."""
    copies = ", ".join(
        f"ptr @{copying_name(t, h, lines)}" if h in t.copying else "ptr null"
        for h in range(1, t.rows + 1)
    )
    return f"@nnrt_{name}_{t.dtype} = constant [{t.rows} x ptr] [{copies}]\n"


def _tables(t: Tile) -> str:
    """By height - 1: the three kernels, and the columns of the widest."""
    heights = range(1, t.rows + 1)
    wide = ", ".join(f"i64 {t.wide(h)}" for h in heights)
    return (
        _copies(t, "copies")
        + f"@nnrt_wide_{t.dtype} = constant [{t.rows} x i64] [{wide}]\n"
        + _table(t, "tiles")
    )


# Splits m rows x p strips of columns over n threads: {row parts, strip parts}, whose product is n.
# Tries every divisor of n and takes the least work of the busiest thread: %each for a row of a
# strip, %pack for packing a strip, 2 for packing a row (in eighths of a cycle for each k).
_GRID = """\
define linkonce_odr { i64, i64 } @nnrt_grid(i64 %m, i64 %p, i64 %n, i64 %each, i64 %pack) nounwind {
entry:
  br label %try
try:
  %d = phi i64 [ 1, %entry ], [ %d.next, %next ]
  %best = phi i64 [ 9223372036854775807, %entry ], [ %best.next, %next ]
  %parts = phi i64 [ 1, %entry ], [ %parts.next, %next ]
  %left = urem i64 %n, %d
  %divides = icmp eq i64 %left, 0
  br i1 %divides, label %cost, label %next
cost:
  %e = udiv i64 %n, %d
  %m1 = add i64 %m, %e
  %m2 = sub i64 %m1, 1
  %rows = udiv i64 %m2, %e
  %p1 = add i64 %p, %d
  %p2 = sub i64 %p1, 1
  %panels = udiv i64 %p2, %d
  %area = mul i64 %rows, %panels
  %c1 = mul i64 %area, %each
  %c2 = mul i64 %panels, %pack
  %c3 = mul i64 %rows, 2
  %c4 = add i64 %c1, %c2
  %c = add i64 %c4, %c3
  br label %next
next:
  %cost.now = phi i64 [ 9223372036854775807, %try ], [ %c, %cost ]
  %better = icmp slt i64 %cost.now, %best
  %best.next = select i1 %better, i64 %cost.now, i64 %best
  %parts.next = select i1 %better, i64 %d, i64 %parts
  %d.next = add i64 %d, 1
  %more = icmp sle i64 %d.next, %n
  br i1 %more, label %try, label %done
done:
  %across = udiv i64 %n, %parts.next
  %r0 = insertvalue { i64, i64 } poison, i64 %across, 0
  %r1 = insertvalue { i64, i64 } %r0, i64 %parts.next, 1
  ret { i64, i64 } %r1
}
"""


def grid(
    em: Emitter, rows: str, strips: str, threads: str, each: str, pack: str
) -> tuple[str, str]:
    """In how many parts threads split rows and strips of columns; `each`, `pack`: what a row of a
    strip costs, and packing a strip, where packing a row costs 2."""
    given = ", ".join(f"i64 {x}" for x in (rows, strips, threads, each, pack))
    found = em.op(f"call {{ i64, i64 }} @nnrt_grid({given})", "grid")
    down = em.op(f"extractvalue {{ i64, i64 }} {found}, 0", "down")
    return down, em.op(f"extractvalue {{ i64, i64 }} {found}, 1", "across")


def line_definitions(t: Tile, target: Target) -> str:
    """The micro-kernels that find lines by a table: %b_k is its address, an offset in bytes (i32)
    for each k and for `_LINES_AHEAD` more."""
    kernels = (
        _Kernel(t, target, h, v, lines=True).text()
        for h in range(1, t.rows + 1)
        for v in sorted(set(t.vectors(h)))
    )
    copying = (_Kernel(t, target, h, VECTORS, True, True).text() for h in t.copying)
    tables = _table(t, "lines", lines=True), _copies(t, "linecopies", lines=True)
    return "\n".join((*kernels, *copying, *tables))


def kernel_text(t: Tile, target: Target, height: int, vectors: int) -> str:
    """One micro-kernel, without declarations."""
    if 0 < t.vector_rows < height:
        return matrix.kernel(kernel_name(t, height, vectors), t.dtype, height, vectors)
    return _Kernel(t, target, height, vectors).text()


def definitions(t: Tile, target: Target) -> str:
    """The micro-kernels of a dtype with their tables, and the grid."""
    kernels = (
        kernel_text(t, target, h, v)
        for h in range(1, t.rows + 1)
        for v in sorted(set(t.vectors(h)))
    )
    copying = (_Kernel(t, target, h, VECTORS, True).text() for h in t.copying)
    unit = matrix.definitions(t.dtype, t.a_row, t.vector_rows) if t.vector_rows else ""
    return "\n".join((*kernels, *copying, unit, _tables(t), _GRID))


def kernel_declarations(t: Tile, target: Target) -> tuple[str, ...]:
    """Lines for a module that holds `definitions`."""
    if t.type == "i32":
        quads = f"<{4 * t.lanes} x i8>"
        name = f"@llvm.x86.avx512.vpdpbusd.512({t.vector}, {quads}, {quads})"
        halves, pairs = f"<{2 * t.lanes} x i16>", pair_products(target)
        line: tuple[str, ...] = (f"declare {t.vector} {name}",) if target.vnni else ()
        line += matrix.declarations(t.dtype) if t.vector_rows else ()
        if not target.vnni and pairs is not None:
            line = (f"declare {t.vector} {pairs}({halves}, {halves})",)
    else:
        line = (f"declare {t.vector} @llvm.fma.{suffix(t)}({t.vector}, {t.vector}, {t.vector})",)
    return (
        *line,
        "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)",
    )


def declarations(t: Tile) -> tuple[str, ...]:
    """Lines for a module that refers to them."""
    return (
        *(matrix.outer_declarations(t.dtype) if t.vector_rows else ()),
        f"@nnrt_copies_{t.dtype} = external constant [{t.rows} x ptr]",
        f"@nnrt_tiles_{t.dtype} = external constant [{t.rows} x [3 x ptr]]",
        f"@nnrt_wide_{t.dtype} = external constant [{t.rows} x i64]",
        "declare { i64, i64 } @nnrt_grid(i64, i64, i64, i64, i64)",
    )
