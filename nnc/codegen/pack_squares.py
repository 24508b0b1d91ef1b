"""Squares of successive columns, as many as a vector has lanes, transposed in registers."""

from __future__ import annotations

from dataclasses import dataclass

from nnc.codegen import flow
from nnc.codegen.emit import Emitter
from nnc.codegen.operands import Computed, Operand, VectorLoad
from nnc.codegen.tiles import Tile
from nnc.codegen.vectors import load_stored, load_vector, put, stored_type, transpose


@dataclass(frozen=True)
class Lines:
    """Successive columns of an operand whose columns are contiguous.

    Of a strided one the addresses (made outside the loop over rows), of a computed one the vector
    loads with the first and the last column there is.
    """

    places: tuple[str, ...]
    vector: VectorLoad | None
    first: str
    last: str
    stored: str = ""


def lines_from(em: Emitter, t: Tile, of: Operand, start: str, at: str, count: str) -> Lines:
    """The `lanes` columns from start + at. Those past start + count repeat the last one."""
    first = flow.add(em, start, at)
    last = flow.sub(em, flow.add(em, start, count), "1")
    if isinstance(of, Computed):
        return Lines((), of.vector, first, last)
    columns = [flow.minimum(em, flow.add(em, first, str(o)), last) for o in range(t.lanes)]
    kind = stored_type(t, of.stored)
    places = [flow.offset(em, of.ptr, flow.mul(em, c, of.col_stride), kind) for c in columns]
    return Lines(tuple(places), None, first, last, of.stored)


def transposed(em: Emitter, t: Tile, lines: Lines, row: str, mask: str, stage: str) -> list[str]:
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
