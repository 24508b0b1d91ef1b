"""Winograd's transforms of tiles (see `nnc.passes.winograd`), functions that all contractions of a
process share. Lanes are channels; a segment is up to SEGMENT neighbouring tiles of a row of tiles.

    void nnrt_points<m>_read_<dtype>(src, c_stride, row_stride, channels, row, rows, col, cols,
                                     count, other, to)

copies `count` columns of m + 2 rows, `channels` (at most one vector) of them, from `src`, which
lies at (row, col) of a map of rows x cols; `other` stands around it. To [m + 2][columns(m)][lanes].

    void nnrt_points<m>_in_<dtype>(from, to, tile, height, apart, count)

transforms the tiles of a segment, numbers `tile`, `tile` + 1, .. of their block, from there to
panels of A: `height` tiles share a panel, of which (m + 2)^2, one for each point, lie one behind
the other; `apart` bytes from those of `height` tiles to the next.

    void nnrt_points<m>_soon_<dtype>(from, rows, to)

lists (see `tile_kernels`) so many rows of SLAB elements behind a panel of A. (A fetch of one line
brings the one beside it.)

    void nnrt_points<m>_out_<dtype>(from, apart, count, room, to)

transforms back, from [points][tile][panel] with `apart` elements between points, and transposes: to
[lanes][m][row(m)], whose rows are rows of the map. `room` holds as much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nnc.codegen import flow, pack_lists, tile_kernels, tiles, vectors
from nnc.codegen.emit import Emitter
from nnc.codegen.operands import OVERSHOOT
from nnc.codegen.registers import literal, splat
from nnc.codegen.target import Target
from nnc.codegen.tiles import Tile
from nnc.codegen.vectors import load_vector, put, transpose
from nnc.ir.loop import SLAB

SEGMENT = 16
_KIND = "points"


def kind(t: Tile, m: int) -> str:
    """Of the support module that holds the functions (see `contract.support_module`)."""
    return f"{t.dtype} {_KIND}{m}"


def side_of(kind: str) -> int | None:
    """m, of such a kind."""
    _, _, stored = kind.partition(" ")
    return int(stored.removeprefix(_KIND)) if stored.startswith(_KIND) else None


def columns(m: int) -> int:
    """Columns of a row of the tiles that are read."""
    return -(-(m * SEGMENT + 2) // OVERSHOOT) * OVERSHOOT


def row(m: int) -> int:
    """Elements between rows of results; no power of two."""
    return -(-m * SEGMENT // OVERSHOOT) * OVERSHOOT + OVERSHOOT


def read_bytes(t: Tile, m: int) -> int:
    """Room for what `read` makes."""
    return (m + 2) * columns(m) * t.lanes * t.size


def out_bytes(t: Tile, m: int) -> int:
    """Room for what `out` makes."""
    return t.lanes * m * row(m) * t.size


def name(t: Tile, m: int, what: str) -> str:
    return f"@nnrt_points{m}_{what}_{t.dtype}"


_PARAMETERS = {
    "read": "ptr src, i64 c_stride, i64 row_stride, i64 channels, i64 row, i64 rows, i64 col, "
    "i64 cols, i64 count, float other, ptr to",
    "in": "ptr from, ptr to, i64 tile, i64 height, i64 apart, i64 count",
    "soon": "ptr from, i64 rows, ptr to",
    "out": "ptr from, i64 apart, i64 count, ptr room, ptr to",
}


def _types(what: str) -> list[str]:
    return [p.partition(" ")[0] for p in _PARAMETERS[what].split(", ")]


def call(em: Emitter, t: Tile, m: int, what: str, *given: str) -> None:
    """Calls one of the functions."""
    pairs = zip(_types(what), given, strict=True)
    em.line(f"call void {name(t, m, what)}({', '.join(f'{type_} {x}' for type_, x in pairs)})")


def declarations(t: Tile, m: int) -> tuple[str, ...]:
    """Lines for a module that calls them."""
    return tuple(
        f"declare void {name(t, m, what)}({', '.join(_types(what))})" for what in _PARAMETERS
    )


def module(t: Tile, target: Target, m: int) -> str:
    """The IR text of the functions."""
    lines = (
        f'target triple = "{target.triple}"',
        *tile_kernels.kernel_declarations(t, target),
        *vectors.declarations(t),
    )
    made = _Transforms(t, target, m)
    bodies = {"read": made.read, "in": made.in_, "soon": made.soon, "out": made.out}
    return "\n".join((*lines, *(made.function(what, body) for what, body in bodies.items())))


class _Transforms:
    def __init__(self, t: Tile, target: Target, m: int) -> None:
        self.t, self.target, self.m, self.side = t, target, m, m + 2
        self.em = Emitter()

    def function(self, what: str, body: Callable[[], None]) -> str:
        self.em = em = Emitter()
        given = _PARAMETERS[what].replace(" ", " %").replace(", %", ", ")
        em.label("entry")
        body()
        em.line("ret void")
        head = f"define void {name(self.t, self.m, what)}({given}) nounwind"
        return f"{head} {{\n{em.text()}\n}}\n"

    # ---- reading ------------------------------------------------------------------------------

    def read(self) -> None:
        em, t = self.em, self.t
        other = splat(em, t.type, "%other", t.lanes)
        starts = ["0"]
        for i in range(1, t.lanes):
            more = flow.compare(em, "slt", str(i), "%channels")
            step = flow.select(em, more, "i64", "%c_stride", "0")
            starts.append(flow.add(em, starts[-1], step))
        with flow.loop(em, "0", str(self.side)) as p:
            at = flow.add(em, "%row", p)
            inside = em.op(f"icmp ult i64 {at}, %rows", "inside")
            to = flow.offset(em, "%to", flow.mul(em, p, str(columns(self.m) * t.lanes)), t.type)
            with flow.when(em, inside):
                line = flow.offset(em, "%src", flow.mul(em, p, "%row_stride"), t.type)
                with flow.loop(em, "0", "%count", str(t.lanes)) as q:
                    self.square(line, starts, q, other, to)
            with flow.when(em, flow.negate(em, inside)), flow.loop(em, "0", "%count") as q:
                put(em, t, other, to, flow.mul(em, q, str(t.lanes)), t.vector)

    def square(self, line: str, starts: list[str], q: str, other: str, to: str) -> None:
        """A vector of columns of each channel, transposed."""
        em, t = self.em, self.t
        first = flow.add(em, "%col", q)
        left = flow.minimum(em, flow.sub(em, "%count", q), flow.sub(em, "%cols", first))
        low = vectors.lane_mask(em, t, flow.sub(em, "0", first))
        mask = em.op(f"xor <{t.lanes} x i1> {low}, splat (i1 true)", "mask")
        mask = em.op(f"and <{t.lanes} x i1> {mask}, {vectors.lane_mask(em, t, left)}", "mask")
        at = flow.offset(em, line, q, t.type)
        places = [flow.offset(em, at, s, t.type) for s in starts]
        rows = [vectors.load_more(em, t, p, mask, other) for p in places]
        for i, x in enumerate(transpose(em, t, rows)):
            put(em, t, x, to, flow.mul(em, flow.add(em, q, str(i)), str(t.lanes)), t.vector)

    def soon(self) -> None:
        em, t = self.em, self.t
        if not t.fetches:
            return
        step = tiles.UNROLL * t.size
        apart, at_once = SLAB * t.size, 64 // step
        start = em.op("ptrtoint ptr %from to i64", "start")
        ramp = "<" + ", ".join(f"i64 {i * apart}" for i in range(at_once)) + ">"
        with flow.loop(em, "0", "%rows", str(at_once)) as i:
            first = flow.add(em, start, flow.mul(em, i, str(apart)))
            there = em.op(f"add <{at_once} x i64> {splat(em, 'i64', first, at_once)}, {ramp}")
            to = flow.offset(em, "%to", flow.mul(em, i, str(step)), "i8")
            for q in range(at_once):
                one = em.op(f"extractelement <{at_once} x i64> {there}, i64 {q}")
                em.line(f"store i64 {one}, ptr {flow.offset(em, to, str(q * step), 'i8')}, align 8")

    # ---- transforms ---------------------------------------------------------------------------

    def in_(self) -> None:
        em, t, m = self.em, self.t, self.m
        slot = pack_lists.slot_bytes(t)
        with flow.loop(em, "0", "%count") as i:
            number = flow.add(em, "%tile", i)
            panel, own = flow.div(em, number, "%height"), flow.rem(em, number, "%height")
            to = flow.offset(em, "%to", flow.mul(em, panel, "%apart"), "i8")
            to = flow.offset(em, to, flow.mul(em, own, str(t.a_row)), t.type)
            start = flow.offset(em, "%from", flow.mul(em, i, str(m * t.lanes)), t.type)
            square = [
                [
                    self.load(start, (p * columns(m) + q) * t.lanes * t.size)
                    for p in range(self.side)
                ]
                for q in range(self.side)
            ]
            transform = self.b4 if m == 4 else self.b2
            half = [transform(column) for column in square]  # [q][r]
            for r in range(self.side):
                for s, x in enumerate(transform([h[r] for h in half])):
                    place = flow.offset(em, to, str((r * self.side + s) * slot), "i8")
                    em.line(f"store {t.vector} {x}, ptr {place}, align {t.size}")

    def out(self) -> None:
        em, t, m = self.em, self.t, self.m
        apart = flow.mul(em, "%apart", str(t.size))
        with flow.loop(em, "0", "%count") as i:
            start = flow.offset(em, "%from", flow.mul(em, i, str(t.panel)), t.type)
            back = self.a4 if m == 4 else self.a2
            half = []
            for s in range(self.side):
                column = []
                for r in range(self.side):
                    at = flow.mul(em, apart, str(r * self.side + s))
                    column.append(load_vector(em, t, flow.offset(em, start, at, "i8"), None))
                half.append(back(column))
            to = flow.offset(em, "%room", flow.mul(em, i, str(m * t.lanes)), t.type)
            for p in range(m):
                for q, x in enumerate(back([h[p] for h in half])):
                    put(em, t, x, to, str((p * row(m) + q) * t.lanes), t.vector)
        width = flow.mul(em, "%count", str(m))
        with flow.loop(em, "0", str(m)) as y, flow.loop(em, "0", width, str(t.lanes)) as x0:
            at = flow.add(em, flow.mul(em, y, str(row(m))), x0)
            place = flow.offset(em, "%room", flow.mul(em, at, str(t.lanes)), t.type)
            rows = [self.load(place, c * t.lanes * t.size) for c in range(t.lanes)]
            for c, x in enumerate(transpose(em, t, rows)):
                put(em, t, x, "%to", flow.add(em, at, str(c * m * row(m))), t.vector)

    def load(self, start: str, bytes_: int) -> str:
        return load_vector(self.em, self.t, flow.offset(self.em, start, str(bytes_), "i8"), None)

    def b4(self, d: Sequence[str]) -> list[str]:
        """B' of F(4, 3)."""
        a, b = self.more(d[4], -4, d[2]), self.more(d[3], -4, d[1])
        c, e = self.minus(d[4], d[2]), self.minus(d[3], d[1])
        return [
            self.more(self.more(d[4], -5, d[2]), 4, d[0]),
            self.plus(a, b),
            self.minus(a, b),
            self.more(c, 2, e),
            self.more(c, -2, e),
            self.more(self.more(d[5], -5, d[3]), 4, d[1]),
        ]

    def b2(self, d: Sequence[str]) -> list[str]:
        """B' of F(2, 3)."""
        minus = self.minus
        return [minus(d[0], d[2]), self.plus(d[1], d[2]), minus(d[2], d[1]), minus(d[1], d[3])]

    def a4(self, x: Sequence[str]) -> list[str]:
        """A' of F(4, 3)."""
        s, d = self.plus(x[1], x[2]), self.minus(x[1], x[2])
        u, v = self.plus(x[3], x[4]), self.minus(x[3], x[4])
        return [
            self.plus(x[0], self.plus(s, u)),
            self.more(d, 2, v),
            self.more(s, 4, u),
            self.plus(x[5], self.more(d, 8, v)),
        ]

    def a2(self, x: Sequence[str]) -> list[str]:
        """A' of F(2, 3)."""
        s, d = self.plus(x[1], x[2]), self.minus(x[1], x[2])
        return [self.plus(x[0], s), self.minus(d, x[3])]

    def plus(self, x: str, y: str) -> str:
        return self.em.op(f"fadd {self.t.vector} {x}, {y}", "s")

    def minus(self, x: str, y: str) -> str:
        return self.em.op(f"fsub {self.t.vector} {x}, {y}", "d")

    def more(self, s: str, factor: float, x: str) -> str:
        """s + factor * x."""
        t = self.t
        by = f"splat ({t.type} {literal(t.dtype, factor)})"
        return tiles.multiply_add(self.em, t, self.target, x, by, s)
