"""Windows without copies for each of their places: lines that share strips of memory.

Line (c, u, v) of `x[b, c, i + u, j + v]` at row i holds what line (c, u - 1, v) holds at row i + 1.
So a block of the right operand is copied as *strips* over (c, v): one for all u, over the positions
of the columns and of the rows that u adds at the end (of each picture b). The micro-kernels
`nnrt_lines_...` take each line's place from a table of offsets in bytes (i32): that of its strip,
and u rows further on. At stride s there is a strip for each phase u % s.

The columns stay as they are: a panel within one picture lies in its strips at successive
positions. Where there are several row tiles, the kernels of the first also copy such panels, and
the others read the copies: aligned, without a table. Where a panel holds the end of a picture it is
put together from the strips, as it would have been packed, by

    void nnrt_join_<dtype>(from, gap, split, count, period, table, kc, to)

    from    ptr  the first column's place, without a line's offset
    gap     i64  bytes between the pictures in a strip
    split   i64  columns of the panel that belong to the first picture (or more)
    count   i64  columns of the panel
    period  i64  columns of a picture, at least the lanes of a vector
    table   ptr  offsets of kc lines
    to      ptr  the panel
"""

from __future__ import annotations

from dataclasses import dataclass

from nnc.codegen import flow, pack_tables, tile_kernels
from nnc.codegen.emit import Emitter
from nnc.codegen.operands import OVERSHOOT, Tabled
from nnc.codegen.registers import splat
from nnc.codegen.target import Target
from nnc.codegen.tiles import Tile
from nnc.codegen.vectors import lane_mask, load_more, load_vector, put

_WORTH = "7", "10"  # copies of what packing would take: reading by a table costs 1-2 %
MOST_PANELS = 32  # of a block
_TABLE = 4 * 1024  # bytes of a table of offsets
_NEXT = _TABLE + 16 * MOST_PANELS
AREA = _NEXT + 64  # bytes of a table, of the panels' places, and of where the next one goes


@dataclass(frozen=True)
class Strips:
    """What lines share; line number (o * window + u) * inner + w reads strip (o * phases + u %
    phases) * inner + w, `shift(u)` steps of `run` columns further on.

    `operand`: the strips, over their lines and positions. `period`: columns of a picture. `gap`:
    positions that the strips have more for each of them.
    """

    operand: Tabled
    window: int
    inner: int
    phases: int
    step: int  # for each `phases` of u; may be negative
    run: str
    period: str
    gap: str

    @property
    def least(self) -> int:
        """Of the shifts: they count from there."""
        return min(0, self.step * ((self.window - 1) // self.phases))


@dataclass(frozen=True)
class Block:
    """A block of the right operand: its lines, its columns, and where it goes."""

    k0: str
    kc: str
    start: str
    size: str
    to: str
    room: int  # elements
    area: str  # of AREA bytes
    packed_gap: str  # elements between packed panels


@dataclass(frozen=True)
class Shape:
    """Of a block's strips: the first one and how many, their positions, elements between them."""

    fits: str  # i1: whether they are to be used
    first: str
    lines: str
    start: str
    used: str
    width: str


def shape(em: Emitter, t: Tile, s: Strips, b: Block) -> Shape:
    per, each = str(s.window * s.inner), str(s.phases * s.inner)
    o0 = flow.div(em, b.k0, per)
    o1 = flow.add(em, flow.div(em, flow.sub(em, flow.add(em, b.k0, b.kc), "1"), per), "1")
    lines = flow.mul(em, flow.sub(em, o1, o0), each)
    last = flow.sub(em, flow.add(em, b.start, b.size), "1")
    start, end = position(em, s, b.start), flow.add(em, position(em, s, last), s.gap)
    used = flow.add(em, flow.sub(em, end, start), "1")
    # An odd number of vectors: strips that are a power of two apart share sets of the cache.
    width = flow.add(em, flow.round_up(em, used, str(t.panel)), str(t.lanes))
    ends = flow.sub(em, flow.div(em, last, s.period), flow.div(em, b.start, s.period))
    joined = flow.mul(em, ends, flow.mul(em, flow.round_up(em, b.kc, str(OVERSHOOT)), str(t.panel)))
    need = flow.add(em, flow.mul(em, lines, width), joined)
    room = str(b.room - 4 * t.panel)
    fits = flow.compare(em, "sle", need, room)
    copies = flow.add(em, flow.mul(em, lines, used), joined)
    packed = flow.mul(em, b.kc, b.size)
    gain, of = _WORTH
    fewer = flow.compare(em, "sle", flow.mul(em, copies, of), flow.mul(em, packed, gain))
    long = flow.compare(em, "sge", s.period, str(t.lanes))
    fits = flow.conjunction(em, fits, flow.conjunction(em, fewer, long))
    return Shape(fits, flow.mul(em, o0, each), lines, start, used, width)


def position(em: Emitter, s: Strips, column: str) -> str:
    """Of a column in the strips."""
    return flow.add(em, column, flow.mul(em, flow.div(em, column, s.period), s.gap))


def fill(em: Emitter, t: Tile, s: Strips, b: Block, shape: Shape, stage: str) -> None:
    """Writes the strips, the table and the panels' places."""
    width = shape.width

    def place(j: str) -> pack_tables.Place:
        return lambda line: flow.add(em, flow.mul(em, line, width), j)

    lines, positions = (shape.first, shape.lines), (shape.start, shape.used)
    together = t.panel // t.lanes
    pack_tables.pack_tabled(em, t, s.operand, stage, lines, positions, together, b.to, place)
    # What kernels read past the last column must not be slow to multiply.
    end = flow.round_up(em, shape.used, str(t.panel))
    with flow.loop(em, "0", shape.lines) as line:
        at = flow.add(em, flow.mul(em, line, width), end)
        put(em, t, "zeroinitializer", b.to, at, t.vector)
    after = flow.mul(em, shape.lines, width)
    for v in range(t.panel // t.lanes):
        put(em, t, "zeroinitializer", b.to, flow.add(em, after, str(v * t.lanes)), t.vector)
    _offsets(em, t, s, b, shape)
    _places(em, t, s, b, shape, flow.add(em, after, str(2 * t.panel)))


def _offsets(em: Emitter, t: Tile, s: Strips, b: Block, shape: Shape) -> None:
    """The table. Lines past the last are those of the next panel, which are fetched ahead."""
    n = 16
    v = f"<{n} x i32>"
    ramp = "<" + ", ".join(f"i32 {i}" for i in range(n)) + ">"

    def narrow(x: str) -> str:
        if flow.const(x) is None:
            return splat(em, "i32", em.op(f"trunc i64 {x} to i32", "narrow"), n)
        return splat(em, "i32", x, n)

    def op(name: str, x: str, y: str) -> str:
        return em.op(f"{name} {v} {x}, {y}", name)

    def const(x: int) -> str:
        return splat(em, "i32", str(x), n)

    begin = flow.rem(em, b.k0, str(s.window * s.inner))  # of the lines of the first strip
    width = narrow(flow.mul(em, shape.width, str(t.size)))
    run = narrow(flow.mul(em, s.run, str(t.size)))
    with flow.loop(em, "0", b.kc, str(n)) as i:
        k = op("add", narrow(flow.add(em, begin, i)), ramp)
        w = op("urem", k, const(s.inner))
        k = op("udiv", k, const(s.inner))
        u = op("urem", k, const(s.window))
        o = op("udiv", k, const(s.window))
        strip = op("add", op("mul", o, const(s.phases)), op("urem", u, const(s.phases)))
        strip = op("add", op("mul", strip, const(s.inner)), w)
        shift = op("mul", op("udiv", u, const(s.phases)), const(s.step))
        shift = op("sub", shift, const(s.least))
        at = op("add", op("mul", strip, width), op("mul", shift, run))
        em.line(f"store {v} {at}, ptr {flow.offset(em, b.area, i, 'i32')}, align 4")
    first = em.op(f"load {v}, ptr {b.area}, align 4", "first")
    next_ = op("add", first, const(t.panel * t.size))
    em.line(f"store {v} {next_}, ptr {flow.offset(em, b.area, b.kc, 'i32')}, align 4")


def _places(em: Emitter, t: Tile, s: Strips, b: Block, shape: Shape, spare: str) -> None:
    """Where each panel lies; those with the end of a picture are put together from `spare` on."""
    next_ = flow.offset(em, b.area, str(_NEXT), "i8")
    em.line(f"store i64 {spare}, ptr {next_}")
    panel = str(t.panel)
    table = em.op(f"ptrtoint ptr {b.area} to i64", "table")
    with flow.loop(em, "0", b.size, panel) as j:
        first = flow.add(em, b.start, j)
        count = flow.minimum(em, panel, flow.sub(em, b.size, j))
        at = flow.sub(em, position(em, s, first), shape.start)
        split = flow.sub(em, s.period, flow.rem(em, first, s.period))
        here = flow.offset(em, b.to, at, t.type)
        one = flow.compare(em, "sge", split, count)
        with flow.when(em, one):
            put_place(em, t, b.area, j, here, table)
        with flow.when(em, flow.negate(em, one)):
            at = em.op(f"load i64, ptr {next_}", "next")
            to = flow.offset(em, b.to, at, t.type)
            gap = flow.mul(em, s.gap, str(t.size))
            em.line(
                f"call void {join_name(t)}(ptr {here}, i64 {gap}, i64 {split}, i64 {count}, "
                f"i64 {s.period}, ptr {b.area}, i64 {b.kc}, ptr {to})"
            )
            put_place(em, t, b.area, j, to, str(t.panel * t.size))
            em.line(f"store i64 {flow.add(em, at, b.packed_gap)}, ptr {next_}")


def put_place(em: Emitter, t: Tile, area: str, j: str, ptr: str, step: str) -> None:
    """Of the panel from column j of the block on; `step`: bytes between lines, or the table."""
    entry = _entry(em, t, area, j)
    em.line(f"store ptr {ptr}, ptr {entry}")
    em.line(f"store i64 {step}, ptr {flow.offset(em, entry, '8', 'i8')}")


def packed_places(em: Emitter, t: Tile, b: Block) -> None:
    """Of panels that were packed."""
    panel = str(t.panel)
    with flow.loop(em, "0", b.size, panel) as j:
        at = flow.mul(em, flow.div(em, j, panel), b.packed_gap)
        put_place(em, t, b.area, j, flow.offset(em, b.to, at, t.type), str(t.panel * t.size))


def place_of(em: Emitter, t: Tile, area: str, j: str) -> tuple[str, str]:
    """Pointer and step (i64) of the panel from column j on."""
    entry = _entry(em, t, area, j)
    ptr = em.op(f"load ptr, ptr {entry}", "ptr")
    return ptr, em.op(f"load i64, ptr {flow.offset(em, entry, '8', 'i8')}", "step")


def _entry(em: Emitter, t: Tile, area: str, j: str) -> str:
    number = flow.div(em, j, str(t.panel))
    return flow.offset(em, area, flow.add(em, str(_TABLE), flow.mul(em, number, "16")), "i8")


# ---- shared code ------------------------------------------------------------------------------


def join_name(t: Tile) -> str:
    return f"@nnrt_join_{t.dtype}"


_JOIN = "ptr, i64, i64, i64, i64, ptr, i64, ptr"


def declarations(t: Tile) -> tuple[str, ...]:
    """Lines for a module that refers to them."""
    kernels = f"@nnrt_lines_{t.dtype} = external constant [{t.rows} x [3 x ptr]]"
    copies = f"@nnrt_linecopies_{t.dtype} = external constant [{t.rows} x ptr]"
    return kernels, copies, f"declare void {join_name(t)}({_JOIN})"


def definitions(t: Tile, target: Target) -> str:
    """The micro-kernels that read by tables, and what joins panels."""
    return "\n".join((tile_kernels.line_definitions(t, target), _join(t)))


def _join(t: Tile) -> str:
    em = Emitter()
    em.label("entry")
    parts = []
    for v in range(t.panel // t.lanes):
        first = str(v * t.lanes)
        end, past = "%split", "0"
        for _ in range(v + 1):
            beyond = flow.compare(em, "sle", end, first)
            next_ = flow.add(em, end, "%period")
            end = flow.select(em, beyond, "i64", next_, end)
            past = flow.select(em, beyond, "i64", flow.add(em, past, "%gap"), past)
        base = flow.offset(em, flow.offset(em, "%from", first, t.type), past, "i8")
        all_ = lane_mask(em, t, flow.sub(em, "%count", first))
        mine = lane_mask(em, t, flow.sub(em, flow.minimum(em, end, "%count"), first))
        others = em.op(f"xor <{t.lanes} x i1> {all_}, {mine}", "others")
        parts.append((base, mine, flow.offset(em, base, "%gap", "i8"), others))
    with flow.loop(em, "0", "%kc") as k:
        line = em.op(f"load i32, ptr {flow.offset(em, '%table', k, 'i32')}, align 4", "line")
        line = em.op(f"sext i32 {line} to i64", "line")
        for v, (base, mine, next_, others) in enumerate(parts):
            x = load_vector(em, t, flow.offset(em, base, line, "i8"), mine)
            x = load_more(em, t, flow.offset(em, next_, line, "i8"), others, x)
            at = flow.add(em, flow.mul(em, k, str(t.panel)), str(v * t.lanes))
            put(em, t, x, "%to", at, t.vector)
    em.line("ret void")
    head = (
        f"define void {join_name(t)}(ptr %from, i64 %gap, i64 %split, i64 %count, i64 %period, "
        "ptr %table, i64 %kc, ptr %to)"
    )
    return f"{head} nounwind {{\n{em.text()}\n}}\n"
