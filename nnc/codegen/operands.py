"""Operands of a contraction: where their elements lie, or the code that makes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nnc.codegen import flow
from nnc.codegen.emit import Emitter
from nnc.codegen.tiles import Tile
from nnc.codegen.vectors import load_element, load_stored, stored_type

OVERSHOOT = 16  # at least the lanes of any target

Load = Callable[[Emitter, str, str], str]
VectorLoad = Callable[[Emitter, str, str, str | None], str]


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
    """Elements of which `length` along a row lie together: at ptr[down + across].

    rows(em, row, to) writes `down` of a vector of rows to memory (i64); across(em, col) gives that
    of a column that is a multiple of the length. If that is no multiple of the lanes, k is one
    block.
    """

    ptr: str
    rows: Callable[[Emitter, str, str], None]
    across: Callable[[Emitter, str], str]
    length: int


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
