"""Windows of 3 x 3 by Winograd's form (`nnc.passes.winograd`), in blocks of tiles.

For a block of tiles (of a map, of neighbouring maps too), which stays in the cache of its thread:

    read, transform      all channels, to panels of a contraction's left operand: rows are tiles
    for each panel of output channels
        for each point   the contraction's register tiles, right operand the kept weights
        transform back, to rows of the map; on these the contraction's epilogue

The transforms are functions of `points`, their lanes are channels. Threads split tiles and output
channels (then each transforms what it needs). An element's sum depends on its tile alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isqrt

from nnc.codegen import flow, pack_lists, points, tile_kernels, tiles
from nnc.codegen.emit import Emitter
from nnc.codegen.grouped import Grouped
from nnc.codegen.leaf_operands import kind
from nnc.codegen.memory import flat, strides
from nnc.codegen.operands import OVERSHOOT
from nnc.codegen.registers import literal
from nnc.codegen.scopes import Value
from nnc.codegen.tiles import Tile
from nnc.codegen.vectors import lane_mask
from nnc.codegen.windows import Group
from nnc.ir.expr import Const, Load
from nnc.ir.loop import SLAB, Buffer, Contract
from nnc.ir.sliding import Sliding, sliding
from nnc.lang.dims import ZERO, Dim, dim_prod

_CACHE = 1 << 18  # bytes of a block
_NEAR = 1 << 20  # bytes of weights that are found in the cache too; others are fetched ahead
_COSTS = "8", "48"  # of a tile's sums with a panel, of reading a panel; a tile's transform is 2
_LEAST = 2  # panels of tiles in a block whose weights are not: each block reads all of them


@dataclass(frozen=True)
class _Segment:
    """Neighbouring tiles of a row of tiles: the first one's number in the block, its row and column
    of the map, how many."""

    number: str
    row: str
    col: str
    count: str


@dataclass(frozen=True)
class _Plan:
    """Sizes of one contraction of `c` to `o` channels; `depth`: channels of a panel."""

    t: Tile
    m: int
    c: int
    o: int
    depth: int

    @property
    def points(self) -> int:
        return (self.m + 2) ** 2

    @property
    def deep(self) -> int:
        """Panels of all channels."""
        return -(-self.c // self.depth)

    @property
    def most(self) -> int:
        """Tiles of a block."""
        t = self.t
        each = self.points * (self.c + t.panel) * t.size * t.rows
        return max(_LEAST if self.far else 1, _CACHE // each) * t.rows

    @property
    def apart(self) -> int:
        """Bytes from panels of tiles to the next."""
        return self.deep * self.points * pack_lists.slot_bytes(self.t)

    @property
    def gap(self) -> int:
        """Elements of a panel's products from point to point; points lie in different sets."""
        return (self.most + 1) * self.t.panel

    @property
    def left_bytes(self) -> int:
        return -(-self.most // self.t.rows) * self.apart

    @property
    def far(self) -> bool:
        """Whether the weights come from afar."""
        return self.points * self.c * self.o * self.t.size > _NEAR

    @property
    def rooms(self) -> tuple[int, int, int, int, int]:
        """Bytes of what `_Rooms` names."""
        t, out = self.t, points.out_bytes(self.t, self.m)
        products = self.points * self.gap * t.size
        return points.read_bytes(t, self.m), self.left_bytes, products, out, out

    def worth(self, em: Emitter, total: str, places: str) -> str:
        """Whether (an i1) so many tiles take less than so many sums of the direct form: products,
        transforms, and weights that are read from afar, in multiply-adds."""
        c, o, t = self.c, self.o, self.t
        whole = -(-o // t.panel) * t.panel
        ends = self.points * t.lanes * (2 * c // 3 + o)
        mine = flow.mul(em, total, str(self.points * c * whole + ends))
        direct = flow.mul(em, places, str(9 * c * o))
        if self.far:
            mine = flow.maximum(em, mine, str(self.points * c * o * t.lanes))
            direct = flow.maximum(em, direct, str(9 * c * o * t.lanes))
        return flow.compare(em, "slt", mine, direct)


def _plan(t: Tile, f: Sliding, weights: Load) -> _Plan:
    assert isinstance(weights.tensor, Buffer), weights
    c, o, number = f.c.extent.const, f.o.extent.const, weights.tensor.type.shape[1].const
    assert c is not None and o is not None and number is not None, f
    depth = -(-c // -(-c // t.block) // OVERSHOOT) * OVERSHOOT
    return _Plan(t, isqrt(number) - 2, c, o, depth)


@dataclass(frozen=True)
class _Rooms:
    read: str
    left: str
    products: str
    room: str
    out: str


class Winograd(Grouped):
    """Thin leaves too, and Winograd's form."""

    def by_points(self, c: Contract, weights: Load) -> None:
        """In this form, or directly where that takes less."""
        f, em = sliding(c), self.em
        assert f is not None, c
        t = tiles.tile(kind(c), self.target)
        p = _plan(t, f, weights)
        sizes = [self.uniform(a.extent).text for a in f.map]
        down, across = (flow.ceil_div(em, n, str(p.m)) for n in sizes)
        maps = self.uniform(dim_prod(a.extent for a in f.rest)).text
        total = flow.mul(em, maps, flow.mul(em, down, across))
        places = flow.mul(em, maps, flow.mul(em, *sizes))
        worth = p.worth(em, total, places)
        with flow.when(em, worth), self.scope():
            self.contractions |= {kind(c), points.kind(t, p.m)}
            self.blocks_of_tiles(c, f, p, weights, (total, down, across))
        if worth != "true":
            with flow.when(em, flow.negate(em, worth)), self.scope():
                self.tiled(replace(c, points=None))

    def blocks_of_tiles(
        self, c: Contract, f: Sliding, p: _Plan, weights: Load, counts: tuple[str, str, str]
    ) -> None:
        """`counts`: of all tiles, of the tiles along each side of a map."""
        em, t, (total, down, across) = self.em, p.t, counts
        rooms = _Rooms(*(self.scratch(Dim.of(size)) for size in p.rooms))
        (first, end), (g0, g1) = self.grid(total, str(-(-p.o // t.panel)))
        if t.fetches:
            with self.counted("0", str(p.left_bytes // pack_lists.slot_bytes(t))) as slot:
                at = flow.mul(em, slot, str(pack_lists.slot_bytes(t)))
                pack_lists.list_nothing(em, t, flow.offset(em, rooms.left, at, "i8"))
        size = flow.sub(em, end, first)
        blocks = flow.ceil_div(em, size, str(p.most))
        assert isinstance(weights.tensor, Buffer), weights
        base = self.pointer(weights.tensor, ZERO, ()).text
        with self.counted("0", blocks) as b:
            start = flow.add(em, first, flow.share(em, size, b, blocks))
            after = flow.share(em, size, flow.add(em, b, "1"), blocks)
            block = _Block(self, c, f, p, rooms, (down, across), start, flow.add(em, first, after))
            block.transform()
            with self.counted(g0, g1) as g:
                block.products(base, g)
                with self.counted("0", str(t.panel // t.lanes)) as half:
                    block.results(g, half)

    def grid(self, rows: str, panels: str) -> tuple[tuple[str, str], tuple[str, str]]:
        """This thread's tiles and panels of output channels."""
        em = self.em
        down, across = tile_kernels.grid(em, rows, panels, self.nt, *_COSTS)

        def part(total: str, number: str, parts: str) -> tuple[str, str]:
            after = flow.add(em, number, "1")
            return flow.share(em, total, number, parts), flow.share(em, total, after, parts)

        mine = flow.div(em, self.tid, across), flow.rem(em, self.tid, across)
        return part(rows, mine[0], down), part(panels, mine[1], across)


class _Block:
    """The code of one block: tiles `start` .. `end` - 1."""

    def __init__(
        self,
        code: Winograd,
        c: Contract,
        f: Sliding,
        p: _Plan,
        rooms: _Rooms,
        grid: tuple[str, str],
        start: str,
        end: str,
    ) -> None:
        em = code.em
        self.code, self.em, self.c, self.f, self.p, self.rooms = code, em, c, f, p, rooms
        self.down, self.across = grid
        self.start, self.end = start, end
        self.size = flow.sub(em, end, start)
        panels = flow.ceil_div(em, self.size, str(p.t.rows))
        self.height = flow.ceil_div(em, self.size, panels)
        self.panels = flow.ceil_div(em, self.size, self.height)

    @contextmanager
    def segments(self) -> Iterator[_Segment]:
        """A loop over them; inside, further axes of the result are bound."""
        code, em, m = self.code, self.em, str(self.p.m)
        with flow.stepping(em, self.start, self.end) as step, code.scope():
            col = flow.rem(em, step.index, self.across)
            line = flow.div(em, step.index, self.across)
            row, number = flow.rem(em, line, self.down), flow.div(em, line, self.down)
            left = flow.minimum(em, flow.sub(em, self.across, col), str(points.SEGMENT))
            step.step = flow.minimum(em, left, flow.sub(em, self.end, step.index))
            own = flow.sub(em, step.index, self.start)
            row, col = flow.mul(em, row, m), flow.mul(em, col, m)
            with code.indices(Value(number, "i64", 1, code.depth), self.f.rest):
                yield _Segment(own, row, col, step.step)

    def transform(self) -> None:
        """Reads and transforms the block's tiles."""
        code, em, f, p, x = self.code, self.em, self.f, self.p, self.f.x
        t, m = p.t, p.m
        assert isinstance(x.tensor, Buffer), x
        shape, steps = x.tensor.type.shape, strides(x.tensor)
        inner = {f.c.var, *(s.u.var for s in f.sides), *(s.i.var for s in f.sides)}
        origin = flat(x.tensor, x.index).subst(dict.fromkeys(inner, ZERO))
        rs, cs = code.uniform(steps[f.sides[0].place]).text, code.uniform(steps[f.place]).text
        other = x.other.value if isinstance(x.other, Const) else 0.0
        rows, cols = (code.uniform(shape[s.place]).text for s in f.sides)
        with self.segments() as s:
            base = code.pointer(x.tensor, origin, ()).text
            at = flow.add(em, flow.mul(em, s.row, rs), s.col)
            row, col = (
                flow.add(em, d, str(side.shift))
                for d, side in zip((s.row, s.col), f.sides, strict=True)
            )
            width = flow.add(em, flow.mul(em, s.count, str(m)), "2")
            with flow.loop(em, "0", str(p.c), str(t.lanes)) as k:
                there = flow.offset(em, base, flow.add(em, at, flow.mul(em, k, cs)), t.type)
                channels = flow.minimum(em, flow.sub(em, str(p.c), k), str(t.lanes))
                points.call(
                    em, t, m, "read", there, cs, rs, channels, row, rows, col, cols, width,
                    literal(t.dtype, float(other)), self.rooms.read,
                )  # fmt: skip
                part, inside = flow.div(em, k, str(p.depth)), flow.rem(em, k, str(p.depth))
                part = flow.mul(em, part, str(p.points * pack_lists.slot_bytes(t)))
                to = flow.offset(em, flow.offset(em, self.rooms.left, part, "i8"), inside, t.type)
                points.call(
                    em, t, m, "in", self.rooms.read, to, s.number, self.height, str(p.apart),
                    s.count,
                )  # fmt: skip

    def products(self, weights: str, g: str) -> None:
        """The products of all points with panel `g` of the weights."""
        em, p, t = self.em, self.p, self.p.t
        each = -(-p.c // OVERSHOOT) * OVERSHOOT * SLAB
        col = flow.mul(em, g, str(t.panel))
        at = flow.mul(em, flow.div(em, col, str(SLAB)), str(p.points * each))
        start = flow.offset(em, weights, flow.add(em, at, flow.rem(em, col, str(SLAB))), t.type)
        slot = pack_lists.slot_bytes(t)
        with (
            flow.loop(em, "0", str(p.points)) as point,
            flow.loop(em, "0", str(p.deep)) as part,
            flow.loop(em, "0", self.panels) as panel,
        ):
            first = flow.mul(em, panel, self.height)
            height = flow.minimum(em, self.height, flow.sub(em, self.size, first))
            index = flow.sub(em, height, "1")
            place = f"[3 x ptr], ptr @nnrt_tiles_{t.dtype}, i64 {index}, i64 1"
            kernel = em.op(f"load ptr, ptr {em.op(f'getelementptr {place}')}", "kernel")
            number = flow.add(em, flow.mul(em, part, str(p.points)), point)
            left = flow.add(em, flow.mul(em, panel, str(p.apart)), flow.mul(em, number, str(slot)))
            a = flow.offset(em, self.rooms.left, left, "i8")
            k = flow.mul(em, part, str(p.depth))
            kc = flow.minimum(em, str(p.depth), flow.sub(em, str(p.c), k))
            right = flow.add(em, flow.mul(em, point, str(each)), flow.mul(em, k, str(SLAB)))
            b = flow.offset(em, start, right, t.type)
            if t.fetches and p.far:
                self.fetch(flow.offset(em, b, flow.mul(em, kc, str(SLAB)), t.type), a, panel, kc)
            to = flow.add(em, flow.mul(em, point, str(p.gap)), flow.mul(em, first, str(t.panel)))
            to = flow.offset(em, self.rooms.products, to, t.type)
            again = (
                "0"
                if p.deep == 1
                else em.op(f"zext i1 {flow.compare(em, 'sgt', part, '0')} to i32")
            )
            em.line(
                f"call void {kernel}(ptr {a}, ptr {b}, i64 {SLAB * t.size}, i64 0, i64 {kc}, "
                f"ptr {to}, i32 {again}, i64 {t.panel * t.size})"
            )

    def fetch(self, follow: str, a: str, panel: str, kc: str) -> None:
        """Lists a share of the next panel of weights: the kernels fetch one row for two."""
        em, t = self.em, self.p.t
        share = flow.div(em, kc, str(tiles.UNROLL))
        with flow.when(em, flow.compare(em, "slt", panel, str(tiles.UNROLL))):
            first = flow.mul(em, flow.mul(em, panel, share), str(SLAB))
            to = flow.offset(em, a, str(t.panel_bytes), "i8")
            points.call(em, t, self.p.m, "soon", flow.offset(em, follow, first, t.type), share, to)

    def results(self, g: str, half: str) -> None:
        """Transforms a vector of output channels back, and ends with the epilogue."""
        code, em, p, f, t = self.code, self.em, self.p, self.f, self.p.t
        i, j = f.map
        column = flow.mul(em, half, str(t.lanes))
        first = flow.add(em, flow.mul(em, g, str(t.panel)), column)
        own = flow.minimum(em, flow.sub(em, str(p.o), first), str(t.lanes))
        rows, cols = (code.uniform(a.extent).text for a in f.map)
        with flow.when(em, flow.compare(em, "sgt", own, "0")), self.segments() as s:
            at = flow.add(em, flow.mul(em, s.number, str(t.panel)), column)
            start = flow.offset(em, self.rooms.products, at, t.type)
            points.call(
                em, t, p.m, "out", start, str(p.gap), s.count, self.rooms.room, self.rooms.out
            )
            height = flow.minimum(em, flow.sub(em, rows, s.row), str(p.m))
            width = flow.mul(em, s.count, str(p.m))
            width = flow.minimum(em, flow.sub(em, cols, s.col), width)
            with (
                code.counted("0", own) as o,
                code.bound(f.o.var, flow.add(em, first, o), f.o.extent),
                code.counted("0", height) as y,
                code.bound(i.var, flow.add(em, s.row, y), i.extent),
                code.counted("0", width, str(t.lanes)) as q,
                code.bound(j.var, flow.add(em, s.col, q), j.extent),
            ):
                line = flow.add(em, flow.mul(em, o, str(p.m)), y)
                place = flow.add(em, flow.mul(em, line, str(points.row(p.m))), q)
                place = flow.offset(em, self.rooms.out, place, t.type)
                value = em.op(f"load {t.vector}, ptr {place}, align {t.size}", "sum")
                mask = lane_mask(em, t, flow.sub(em, width, q))
                with code.scope(), code.along(Group(j.var, (j,)), t.lanes, mask):
                    code.variables[self.c.name] = Value(value, t.dtype, t.lanes, code.depth)
                    code.block(self.c.epilogue)
