"""Operands of a contraction, and the code that copies their blocks into packed panels.

A panel of A holds the rows of one register tile, k contiguous, `Tile.a_row` apart. A block of B
holds panels of `Tile.panel` columns, each [k][column], `round_up(kc, OVERSHOOT)` rows apart.
Packing may write (never read) up to OVERSHOOT - 1 elements of k past the block.

Strided operands are packed by functions that all contractions of a process share; only `Computed`
ones are packed by code of their own:

    void nnrt_pack_rows_<dtype>_<axis>(src, row_stride, col_stride, height, kc, panel)
    void nnrt_pack_panels_<dtype>_<axis>(src, row_stride, col_stride, kc, columns, to, gap)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nnc.codegen import flow
from nnc.codegen.emit import Emitter
from nnc.codegen.registers import splat
from nnc.codegen.tiles import UNROLL, Tile
from nnc.codegen.vectors import (
    lane_mask,
    load_element,
    load_stored,
    load_vector,
    put,
    stored_type,
    transpose,
)

OVERSHOOT = 16  # at least the lanes of any target
LINES = 512  # of a table
LINE_WORDS = 12
PIECES = 4  # of a vector that is not gathered
_ROOM = (LINES + OVERSHOOT) * 8  # bytes of a word's column of the table
_LINE = 64  # bytes
_AT_ONCE = 8  # addresses
LIST_ROOM = _AT_ONCE * 16  # bytes that may be written behind a list
_RUN = "8"  # successive k copied from one panel's columns before going to the next panel


def stage_bytes(t: Tile) -> int:
    """Bytes of the `stage` of packing: a square to transpose, a table of lines, and masks."""
    return t.lanes**2 * t.size + LINE_WORDS * (_ROOM + 2 * LINES * 4)


def slot_bytes(t: Tile) -> int:
    """Bytes of a panel of A and what stands behind it."""
    return -(-(t.panel_bytes + t.list_bytes + LIST_ROOM) // 64) * 64


def words_of(em: Emitter, table: str, word: int) -> str:
    """The column of a table that holds one word of all lines."""
    return flow.offset(em, table, str(word * _ROOM), "i8")


def masks_of(em: Emitter, table: str, word: int, slot: int) -> str:
    """Room for LINES masks of one vector, as i32; two vectors can be at hand."""
    at = LINE_WORDS * _ROOM + (2 * word + slot) * LINES * 4
    return flow.offset(em, table, str(at), "i8")


Load = Callable[[Emitter, str, str], str]
VectorLoad = Callable[[Emitter, str, str, str | None], str]
Place = Callable[[str], str]


@dataclass(frozen=True)
class Strided:
    """Element (row, col) is at ptr[row * row_stride + col * col_stride].

    Strides count elements: SSA names or constants, 0 allowed. A stride written "1" makes that axis
    the vector axis; one that only happens to be 1 at run time is right, but read by elements.
    `stored`: "bf16" when that is the dtype in memory; "": the dtype of the contraction.
    """

    ptr: str
    row_stride: str
    col_stride: str
    stored: str = ""


@dataclass(frozen=True)
class Lanes:
    """What a Tabled operand knows of one vector: its own states, of how many pieces it consists at
    most (i64), the index of the first lane and the mask of those that count."""

    states: tuple[object, ...]
    pieces: str
    index: str
    mask: str


@dataclass(frozen=True)
class Tabled:
    """A computed operand in two shares: of lines (the other axis) and of lanes (the vector's).

    tabulate(em, line, table, at) writes the words of a vector of lines from that one on to entries
    at, at + 1, ... of a table; prepare(em, index, mask, table, lines, slot) works out a vector of
    lanes (number 0 or 1 of those at hand) for a table of so many lines; fetch(em, lanes, line,
    table, at, pieces) gives the vector at one line, of at most so many pieces (0: any number).
    """

    tabulate: Callable[[Emitter, str, str, str], None]
    prepare: Callable[[Emitter, str, str, str, str, int], Lanes]
    fetch: Callable[[Emitter, Lanes, str, str, str, int], str]


@dataclass(frozen=True)
class Runs:
    """Elements of which whole vectors along a row lie together: at ptr[down + across].

    rows(em, row, to) writes `down` of a vector of rows to memory (i64); across(em, col) gives that
    of a column that is a multiple of the lanes.
    """

    ptr: str
    rows: Callable[[Emitter, str, str], None]
    across: Callable[[Emitter, str], str]


@dataclass(frozen=True)
class Computed:
    """Elements made by emitted code, such as an element-wise prologue or a window.

    load(em, row, col) gives a scalar; it is called within the matrix only. `vector`, if there is
    one, gives the vector of successive elements along `axis` (1: of a row, 0: of a column) that
    starts at (row, col); lanes that the mask excludes must not be read and may hold anything.
    Give `vector` along the axis that is contiguous in memory. Both may emit blocks. `table` gives
    the same vectors, for less where there are many; `runs` rows, for less still.
    """

    load: Load
    vector: VectorLoad | None = None
    axis: int = 1
    table: Tabled | None = None
    runs: Runs | None = None


@dataclass(frozen=True)
class Packed:
    """A right operand that `contract.emit_prepack` wrote to ptr: panels over the whole of k, each
    of `round_up(k, OVERSHOOT)` rows."""

    ptr: str


Operand = Strided | Computed


@dataclass(frozen=True)
class Window:
    """Rows row .. row + rows and columns col .. col + cols of an operand."""

    of: Operand
    row: str
    rows: str
    col: str
    cols: str


def computed(t: Tile, operand: Operand) -> Computed:
    """Any operand as code for its elements."""
    if isinstance(operand, Computed):
        return operand
    ptr, rs, cs = operand.ptr, operand.row_stride, operand.col_stride

    def place(em: Emitter, row: str, col: str) -> str:
        at = flow.add(em, flow.mul(em, row, rs), flow.mul(em, col, cs))
        return flow.offset(em, ptr, at, stored_type(t, operand.stored))

    def load(em: Emitter, row: str, col: str) -> str:
        return load_element(em, t, operand.stored, place(em, row, col))

    def vector(em: Emitter, row: str, col: str, mask: str | None) -> str:
        return load_stored(em, t, operand.stored, place(em, row, col), mask)

    if cs == "1" or rs == "1":
        return Computed(load, vector, 1 if cs == "1" else 0)
    return Computed(load)


def _name(t: Tile, what: str, x: Strided) -> str:
    """The shared function for a layout."""
    axis = "1" if x.col_stride == "1" else "0" if x.row_stride == "1" else "none"
    return f"@nnrt_pack_{what}_{_kind(t, x.stored)}_{axis}"


def _kind(t: Tile, stored: str) -> str:
    return f"{t.dtype}_{stored}" if stored else t.dtype


def _start(em: Emitter, t: Tile, x: Strided, w: Window) -> str:
    """Arguments: the address of the first element, and the strides."""
    at = flow.add(em, flow.mul(em, w.row, x.row_stride), flow.mul(em, w.col, x.col_stride))
    place = flow.offset(em, x.ptr, at, stored_type(t, x.stored))
    return f"ptr {place}, i64 {x.row_stride}, i64 {x.col_stride}"


def pack_rows(em: Emitter, t: Tile, a: Window, panel: str, stage: str) -> None:
    """A window of A (at most `t.rows` rows, `t.block` columns) to a panel of A.

    `stage` is room for `stage_bytes`.
    """
    if isinstance(a.of, Computed):
        _rows(em, t, a, panel, stage)
        return
    start = _start(em, t, a.of, a)
    em.line(f"call void {_name(t, 'rows', a.of)}({start}, i64 {a.rows}, i64 {a.cols}, ptr {panel})")


def pack_panels(em: Emitter, t: Tile, b: Window, to: str, gap: str, stage: str) -> None:
    """A window of B to panels `gap` elements apart; `stage` as above."""
    if isinstance(b.of, Computed):
        _panels(em, t, b, to, gap, stage)
        return
    rest = f"i64 {b.rows}, i64 {b.cols}, ptr {to}, i64 {gap}"
    em.line(f"call void {_name(t, 'panels', b.of)}({_start(em, t, b.of, b)}, {rest})")


_SIGNATURES = {"rows": "i64, i64, ptr", "panels": "i64, i64, ptr, i64"}
_AXES = {"1": ("%rs", "1"), "0": ("1", "%cs"), "none": ("%rs", "%cs")}


def shared_declarations(t: Tile, stored: str = "") -> tuple[str, ...]:
    """Lines for a module that calls the shared functions."""
    lists = (f"declare void {list_name(t)}(ptr, i64, i64, i64, ptr)",)
    return (lists if t.fetches and not stored else ()) + tuple(
        f"declare void @nnrt_pack_{what}_{_kind(t, stored)}_{axis}(ptr, i64, i64, {rest})"
        for what, rest in _SIGNATURES.items()
        for axis in _AXES
    )


def definitions(t: Tile, stored: str = "") -> str:
    """The shared functions."""
    functions = [
        _definition(t, what, Strided("%src", *strides, stored))
        for what in _SIGNATURES
        for strides in _AXES.values()
    ]
    if t.fetches and not stored:
        functions.append(_list_definition(t))
    return "\n".join(functions)


def list_name(t: Tile) -> str:
    return f"@nnrt_list_{t.dtype}"


def list_rows(
    em: Emitter, t: Tile, a: Strided, start: tuple[str, str], rows: str, cols: str, panel: str
) -> None:
    """Lists (see `tiles`) a window of A whose rows are contiguous, as far as there is room."""
    (row, col), bytes_ = start, flow.mul(em, cols, str(t.size))
    apart = flow.mul(em, a.row_stride, str(t.size))
    at = flow.add(em, flow.mul(em, row, a.row_stride), col)
    place = flow.offset(em, a.ptr, at, t.type)
    to = flow.offset(em, panel, str(t.panel_bytes), "i8")
    em.line(
        f"call void {list_name(t)}(ptr {place}, i64 {apart}, i64 {rows}, i64 {bytes_}, ptr {to})"
    )


def list_nothing(em: Emitter, t: Tile, panel: str) -> None:
    """Lists what is at hand."""
    to = flow.offset(em, panel, str(t.panel_bytes), "i8")
    room = t.list_bytes // (UNROLL * t.size) * _LINE
    em.line(f"call void {list_name(t)}(ptr {panel}, i64 0, i64 1, i64 {room}, ptr {to})")


def _list_definition(t: Tile) -> str:
    """Addresses of all cache lines of `rows` runs of `bytes`, `apart` bytes from each other. Each
    run writes some addresses too many, which the next overwrites."""
    em, step = Emitter(), UNROLL * t.size
    em.label("entry")
    ramp = "<" + ", ".join(f"i64 {i * _LINE}" for i in range(_AT_ONCE)) + ">"
    end = str(t.list_bytes // step)
    lines = flow.ceil_div(em, "%bytes", str(_LINE))
    with flow.loop(em, "0", "%rows") as i:
        row = em.op(
            f"ptrtoint ptr {flow.offset(em, '%src', flow.mul(em, i, '%apart'), 'i8')} to i64"
        )
        with flow.loop(em, "0", lines, str(_AT_ONCE)) as j:
            at = flow.add(em, flow.mul(em, i, lines), j)
            at = flow.minimum(em, at, end)
            first = flow.add(em, row, flow.mul(em, j, str(_LINE)))
            there = em.op(f"add <{_AT_ONCE} x i64> {splat(em, 'i64', first, _AT_ONCE)}, {ramp}")
            if step == 8:
                to = flow.offset(em, "%to", at, "i64")
                em.line(f"store <{_AT_ONCE} x i64> {there}, ptr {to}, align 8")
            else:
                for q in range(_AT_ONCE):
                    one = em.op(f"extractelement <{_AT_ONCE} x i64> {there}, i64 {q}")
                    to = flow.offset(
                        em, "%to", flow.mul(em, flow.add(em, at, str(q)), str(step)), "i8"
                    )
                    em.line(f"store i64 {one}, ptr {to}, align 8")
    em.line("ret void")
    head = f"define void {list_name(t)}(ptr %src, i64 %apart, i64 %rows, i64 %bytes, ptr %to)"
    return f"{head} nounwind {{\n{em.text()}\n}}\n"


def _definition(t: Tile, what: str, source: Strided) -> str:
    em = Emitter()
    em.label("entry")
    window = Window(source, "0", "%rows", "0", "%cols")
    rest = "i64 %rows, i64 %cols, ptr %to"
    if what == "rows":
        _rows(em, t, window, "%to", "null")
    else:
        _panels(em, t, window, "%to", "%gap", "null")
        rest += ", i64 %gap"
    em.line("ret void")
    head = f"define void {_name(t, what, source)}(ptr %src, i64 %rs, i64 %cs, {rest})"
    return f"{head} nounwind {{\n{em.text()}\n}}\n"


def _rows(em: Emitter, t: Tile, a: Window, panel: str, stage: str) -> None:
    source = computed(t, a.of)
    if source.runs is not None:
        _copy_runs(em, t, a, source.runs, panel, stage)
    elif source.vector is None:
        with flow.loop(em, "0", a.rows) as i, flow.loop(em, "0", a.cols) as k:
            x = source.load(em, flow.add(em, a.row, i), flow.add(em, a.col, k))
            put(em, t, x, panel, flow.add(em, flow.mul(em, i, str(t.a_row)), k), t.type)
    elif source.axis == 1 and source.table is not None:
        _tabled_rows(em, t, a, source.table, panel, stage)
    elif source.axis == 1:
        _copy_rows(em, t, a, source.vector, panel)
    elif source.table is not None:
        _transpose_tabled_rows(em, t, a, source.table, panel, stage)
    else:
        _transpose_rows(em, t, a, panel, stage)


def _copy_rows(em: Emitter, t: Tile, a: Window, vector: VectorLoad, panel: str) -> None:
    rest = flow.rem(em, a.cols, str(t.lanes))
    whole = flow.sub(em, a.cols, rest)
    mask = lane_mask(em, t, rest)
    with flow.loop(em, "0", a.rows) as i:
        row, to = flow.add(em, a.row, i), flow.mul(em, i, str(t.a_row))
        with flow.loop(em, "0", whole, str(t.lanes)) as k:
            x = vector(em, row, flow.add(em, a.col, k), None)
            put(em, t, x, panel, flow.add(em, to, k), t.vector)
        with flow.when(em, flow.compare(em, "ne", rest, "0")):
            x = vector(em, row, flow.add(em, a.col, whole), mask)
            put(em, t, x, panel, flow.add(em, to, whole), t.vector)


def _copy_runs(em: Emitter, t: Tile, a: Window, x: Runs, panel: str, stage: str) -> None:
    table, lanes = table_of(t, em, stage), str(t.lanes)
    downs, acrosses = words_of(em, table, 0), words_of(em, table, 1)
    with flow.loop(em, "0", a.rows, lanes) as i:
        x.rows(em, flow.add(em, a.row, i), flow.offset(em, downs, i, "i64"))
    with flow.loop(em, "0", a.cols, lanes) as k:
        place = flow.offset(em, acrosses, flow.div(em, k, lanes), "i64")
        em.line(f"store i64 {x.across(em, flow.add(em, a.col, k))}, ptr {place}, align 8")
    count = flow.div(em, a.cols, lanes)
    with flow.loop(em, "0", a.rows) as i:
        down = em.op(f"load i64, ptr {flow.offset(em, downs, i, 'i64')}, align 8", "down")
        row = flow.offset(em, x.ptr, down, t.type)
        to = flow.offset(em, panel, flow.mul(em, i, str(t.a_row)), t.type)
        with flow.loop(em, "0", count) as k:
            at = em.op(f"load i64, ptr {flow.offset(em, acrosses, k, 'i64')}, align 8", "across")
            value = load_vector(em, t, flow.offset(em, row, at, t.type), None)
            put(em, t, value, to, flow.mul(em, k, lanes), t.vector)


def _transpose_rows(em: Emitter, t: Tile, a: Window, panel: str, stage: str) -> None:
    lanes = str(t.lanes)
    with flow.loop(em, "0", a.rows, lanes) as i:
        row = flow.add(em, a.row, i)
        mask = lane_mask(em, t, flow.sub(em, a.rows, i))
        with flow.loop(em, "0", a.cols, lanes) as k:
            lines = _lines(em, t, a.of, a.col, k, a.cols)
            for r, x in enumerate(_transposed(em, t, lines, row, mask, stage)):
                to = flow.mul(em, flow.add(em, i, str(r)), str(t.a_row))
                put(em, t, x, panel, flow.add(em, to, k), t.vector)


def _panels(em: Emitter, t: Tile, b: Window, to: str, gap: str, stage: str) -> None:
    source = computed(t, b.of)
    if source.vector is None:
        _gather_panels(em, t, b, source.load, to, gap)
    elif source.table is not None:
        pack_tabled = _tabled_panels if source.axis == 1 else _transpose_tabled_panels
        pack_tabled(em, t, b, source.table, to, gap, stage)
    elif source.axis == 1:
        _copy_panels(em, t, b, source.vector, to, gap)
    else:
        _transpose_panels(em, t, b, to, gap, stage)


def _gather_panels(em: Emitter, t: Tile, b: Window, load: Load, to: str, gap: str) -> None:
    # Repeats the last column in the lanes past it: whatever was there could be slow to multiply.
    last = flow.sub(em, flow.add(em, b.col, b.cols), "1")
    panel = str(t.panel)
    with flow.loop(em, "0", flow.ceil_div(em, b.cols, panel)) as p:
        base = flow.offset(em, to, flow.mul(em, p, gap), t.type)
        left = flow.add(em, b.col, flow.mul(em, p, panel))
        with flow.loop(em, "0", b.rows) as k, flow.loop(em, "0", panel) as c:
            x = load(em, flow.add(em, b.row, k), flow.minimum(em, flow.add(em, left, c), last))
            put(em, t, x, base, flow.add(em, flow.mul(em, k, panel), c), t.type)


def _copy_panels(em: Emitter, t: Tile, b: Window, vector: VectorLoad, to: str, gap: str) -> None:
    panel = str(t.panel)
    whole = flow.div(em, b.cols, panel)
    rest = flow.rem(em, b.cols, panel)

    def copy(k: str, p: str, masks: list[str | None]) -> None:
        base = flow.offset(em, to, flow.mul(em, p, gap), t.type)
        left = flow.add(em, b.col, flow.mul(em, p, panel))
        for v, mask in enumerate(masks):
            col = flow.add(em, left, str(v * t.lanes))
            x = vector(em, flow.add(em, b.row, k), col, mask)
            at = flow.add(em, flow.mul(em, k, panel), str(v * t.lanes))
            put(em, t, x, base, at, t.vector)

    vectors = range(t.panel // t.lanes)
    with flow.loop(em, "0", b.rows, _RUN) as start:
        stop = flow.minimum(em, flow.add(em, start, _RUN), b.rows)
        with flow.loop(em, "0", whole) as p, flow.loop(em, start, stop) as k:
            copy(k, p, [None for _ in vectors])
    with flow.when(em, flow.compare(em, "ne", rest, "0")):
        masks = [lane_mask(em, t, flow.sub(em, rest, str(v * t.lanes))) for v in vectors]
        with flow.loop(em, "0", b.rows) as k:
            copy(k, whole, list(masks))


def _transpose_panels(em: Emitter, t: Tile, b: Window, to: str, gap: str, stage: str) -> None:
    lanes, panel = str(t.lanes), str(t.panel)
    with flow.loop(em, "0", b.cols, lanes) as j:
        base = flow.add(em, flow.mul(em, flow.div(em, j, panel), gap), flow.rem(em, j, panel))
        lines = _lines(em, t, b.of, b.col, j, b.cols)
        with flow.loop(em, "0", b.rows, lanes) as k:
            mask = lane_mask(em, t, flow.sub(em, b.rows, k))
            rows = _transposed(em, t, lines, flow.add(em, b.row, k), mask, stage)
            for r, x in enumerate(rows):
                at = flow.mul(em, flow.add(em, k, str(r)), panel)
                put(em, t, x, to, flow.add(em, base, at), t.vector)


@dataclass(frozen=True)
class _Lines:
    """Successive columns of an operand whose columns are contiguous.

    Of a strided one the addresses (made outside the loop over rows), of a computed one the vector
    loads with the first and the last column there is.
    """

    places: tuple[str, ...]
    vector: VectorLoad | None
    first: str
    last: str
    stored: str = ""


def _lines(em: Emitter, t: Tile, of: Operand, start: str, at: str, count: str) -> _Lines:
    """The `lanes` columns from start + at. Those past start + count repeat the last one."""
    first = flow.add(em, start, at)
    last = flow.sub(em, flow.add(em, start, count), "1")
    if isinstance(of, Computed):
        return _Lines((), of.vector, first, last)
    columns = [flow.minimum(em, flow.add(em, first, str(o)), last) for o in range(t.lanes)]
    kind = stored_type(t, of.stored)
    places = [flow.offset(em, of.ptr, flow.mul(em, c, of.col_stride), kind) for c in columns]
    return _Lines(tuple(places), None, first, last, of.stored)


def _transposed(em: Emitter, t: Tile, lines: _Lines, row: str, mask: str, stage: str) -> list[str]:
    """`lanes` vectors along columns, from rows row, row + 1, ... of the lines."""
    if lines.vector is None:
        places = [flow.offset(em, p, row, stored_type(t, lines.stored)) for p in lines.places]
        return transpose(em, t, [load_stored(em, t, lines.stored, p, mask) for p in places])
    # A loop, so that the caller's code is there once and not `lanes` times.
    lanes = str(t.lanes)
    with flow.loop(em, "0", lanes) as o:
        col = flow.minimum(em, flow.add(em, lines.first, o), lines.last)
        x = lines.vector(em, row, col, mask)
        put(em, t, x, stage, flow.mul(em, o, lanes), t.vector)
    places = [flow.offset(em, stage, str(o * t.lanes), t.type) for o in range(t.lanes)]
    return transpose(em, t, [load_vector(em, t, p, None) for p in places])


# ---- by tables --------------------------------------------------------------------------------


def table_of(t: Tile, em: Emitter, stage: str) -> str:
    """Room for a table of lines."""
    return flow.offset(em, stage, str(t.lanes**2 * t.size), "i8")


@contextmanager
def lines_of(
    em: Emitter, t: Tile, x: Tabled, table: str, start: str, count: str
) -> Iterator[tuple[str, str]]:
    """Tables of at most LINES lines of start .. start + count: the first (from start), how many."""
    with flow.loop(em, "0", count, str(LINES)) as first:
        some = flow.minimum(em, str(LINES), flow.sub(em, count, first))
        with flow.loop(em, "0", some, str(t.lanes)) as i:
            x.tabulate(em, flow.add(em, start, flow.add(em, first, i)), table, i)
        yield first, some


def either(em: Emitter, most: str, body: Callable[[int], None]) -> None:
    """`body` for vectors of at most one piece, of two, of `PIECES`, of any number."""
    below = "0"
    for pieces in (1, 2, PIECES):
        more = flow.compare(em, "sgt", most, below)
        fits = flow.compare(em, "sle", most, str(pieces))
        with flow.when(em, flow.select(em, fits, "i1", more, "false")):
            body(pieces)
        below = str(pieces)
    with flow.when(em, flow.compare(em, "sgt", most, below)):
        body(0)


def _tabled_rows(em: Emitter, t: Tile, a: Window, x: Tabled, panel: str, stage: str) -> None:
    def place(k: str) -> Place:
        return lambda row: flow.add(em, flow.mul(em, row, str(t.a_row)), k)

    pack_tabled(em, t, x, stage, (a.row, a.rows), (a.col, a.cols), 1, panel, place)


def _tabled_panels(
    em: Emitter, t: Tile, b: Window, x: Tabled, to: str, gap: str, stage: str
) -> None:
    panel = str(t.panel)

    def place(j: str) -> Place:
        base = flow.add(em, flow.mul(em, flow.div(em, j, panel), gap), flow.rem(em, j, panel))
        return lambda k: flow.add(em, base, flow.mul(em, k, panel))

    pack_tabled(em, t, x, stage, (b.row, b.rows), (b.col, b.cols), t.panel // t.lanes, to, place)


def pack_tabled(
    em: Emitter, t: Tile, x: Tabled, stage: str,
    lines: tuple[str, str], lanes: tuple[str, str], together: int,
    to: str, place: Callable[[str], Place],
) -> None:  # fmt: skip
    """Vectors at each line; `lines`, `lanes`: the first one and how many. place(lane)(line), both
    from the first: where `together` vectors go, the last of which may be past all lanes."""
    table = table_of(t, em, stage)

    def vectors(at: str, first: str, some: str) -> None:
        prepared, most = [], "0"
        for v in range(together):
            here = flow.add(em, at, str(v * t.lanes))
            mask = lane_mask(em, t, flow.sub(em, lanes[1], here))
            p = x.prepare(em, flow.add(em, lanes[0], here), mask, table, some, v)
            prepared.append(p)
            most = flow.maximum(em, most, p.pieces)
        where = place(at)

        def each(pieces: int) -> None:
            with flow.loop(em, "0", some) as i:
                line = flow.add(em, first, i)
                of = flow.add(em, lines[0], line)
                values = [x.fetch(em, p, of, table, i, pieces) for p in prepared]
                there = where(line)
                for v, value in enumerate(values):
                    put(em, t, value, to, flow.add(em, there, str(v * t.lanes)), t.vector)

        either(em, most, each)

    with (
        lines_of(em, t, x, table, *lines) as (first, some),
        flow.loop(em, "0", lanes[1], str(together * t.lanes)) as at,
    ):
        vectors(at, first, some)


def _transpose_tabled_rows(
    em: Emitter, t: Tile, a: Window, x: Tabled, panel: str, stage: str
) -> None:
    def place(row: str, col: str) -> str:
        return flow.add(em, flow.mul(em, row, str(t.a_row)), col)

    _transpose_tabled(em, t, x, stage, (a.col, a.cols), (a.row, a.rows), panel, place)


def _transpose_tabled_panels(
    em: Emitter, t: Tile, b: Window, x: Tabled, to: str, gap: str, stage: str
) -> None:
    panel = str(t.panel)

    def place(row: str, col: str) -> str:
        base = flow.add(em, flow.mul(em, flow.div(em, col, panel), gap), flow.rem(em, col, panel))
        return flow.add(em, base, flow.mul(em, row, panel))

    _transpose_tabled(em, t, x, stage, (b.col, b.cols), (b.row, b.rows), to, place)


def _transpose_tabled(
    em: Emitter, t: Tile, x: Tabled, stage: str,
    lines: tuple[str, str], lanes: tuple[str, str], to: str, place: Callable[[str, str], str],
) -> None:  # fmt: skip
    """As `_tabled`, with vectors along the lines: place(lane, line) is where one goes."""
    table, width = table_of(t, em, stage), str(t.lanes)

    def square(prepared: Lanes, k: str, first: str, some: str, j: str) -> None:
        last = flow.sub(em, some, "1")
        with flow.loop(em, "0", width) as o:
            i = flow.minimum(em, flow.add(em, j, o), last)  # lines past the end repeat the last
            line = flow.add(em, lines[0], flow.add(em, first, i))

            def one(pieces: int) -> None:
                value = x.fetch(em, prepared, line, table, i, pieces)
                put(em, t, value, stage, flow.mul(em, o, width), t.vector)

            either(em, prepared.pieces, one)
        places = [flow.offset(em, stage, str(o * t.lanes), t.type) for o in range(t.lanes)]
        rows = transpose(em, t, [load_vector(em, t, p, None) for p in places])
        for r, value in enumerate(rows):
            at = place(flow.add(em, k, str(r)), flow.add(em, first, j))
            put(em, t, value, to, at, t.vector)

    with (
        lines_of(em, t, x, table, *lines) as (first, some),
        flow.loop(em, "0", lanes[1], width) as k,
    ):
        mask = lane_mask(em, t, flow.sub(em, lanes[1], k))
        prepared = x.prepare(em, flow.add(em, lanes[0], k), mask, table, some, 0)
        with flow.loop(em, "0", some, width) as j:
            square(prepared, k, first, some, j)
