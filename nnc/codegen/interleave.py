"""Elements that lanes take in turn: whole vectors and shuffles in place of vectors with gaps.

Lane l of the loads `x[2*j + v]`, v = 0 and 1, has elements 2*l and 2*l + 1: two whole vectors are
read once, and sorted. Stores of all turns of an unrolled loop are sorted and written likewise.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from nnc.codegen import flow
from nnc.codegen.guards import Guard
from nnc.codegen.held import HeldRows
from nnc.codegen.memory import Place
from nnc.codegen.registers import MEMORY, REGISTER, wide
from nnc.codegen.scopes import Value
from nnc.codegen.target import Target
from nnc.ir.expr import Expr, Idx
from nnc.ir.loop import Buffer, Store
from nnc.lang.dims import ONE, Dim, Facts
from nnc.lang.types import DType


@dataclass
class Turns:
    """The `size` turns of an unrolled loop over `var`; of each store that waits for all of them
    the first place and the values so far."""

    var: str
    size: int
    waiting: frozenset[int]  # ids of the stores that may
    places: dict[int, tuple[Buffer, Place]] = field(default_factory=dict)
    values: dict[int, list[str]] = field(default_factory=dict)


class Interleaved(HeldRows):
    """Memory, rows held, and accesses some elements apart that fill the gaps of each other."""

    turns_of: Turns | None = None

    def __init__(self, target: Target, facts: Facts, sizes: tuple[str, ...]) -> None:
        super().__init__(target, facts, sizes)
        # By buffer: vectors that were read, and in which branches.
        self.vectors_read: dict[str, dict[Hashable, tuple[str, tuple[int, ...]]]] = {}

    # ---- reading --------------------------------------------------------------------------------

    def read_sorted(
        self, buffer: Buffer, index: tuple[Expr, ...], affine: Dim, place: Place, guard: Guard
    ) -> Value | None:
        """What `read` gives, where all elements between those of the lanes may be read."""
        last, step = index[-1] if index else None, place.step
        if not step or not isinstance(last, Idx) or self.vector is None or guard.scalar is not None:
            return None
        known = {n: Dim.of(c) for n in affine.names if (c := self._number(n)) is not None}
        at, affine = self.merged(last.dim).subst(known), self.merged(affine).subst(known)
        form = at.linear_in(self.vector)
        if form is None or form[0].const != step:
            return None
        turn = dict(form[1].terms).get((), 0) % step
        first = at - turn
        if not self.nonneg(first) or not self.nonneg(buffer.type.shape[-1] - step - first):
            return None
        reads = place.pointer.reads | guard.reads | (frozenset({buffer.name}) & self.stored)
        pointer = flow.offset(self.em, place.pointer.text, str(-turn), MEMORY[buffer.type.dtype])
        start = affine - turn
        whole = [self._whole(buffer, pointer, start, i, step, guard) for i in range(step)]
        dtype = buffer.type.dtype
        text = self._sorted(dtype, whole, [lane * step + turn for lane in range(self.lanes)])
        return Value(text, dtype, self.lanes, self.depth, reads)

    def _number(self, name: str) -> int | None:
        found = self.names.get(name)
        return None if found is None or name == self.vector else flow.const(found.text)

    def _whole(
        self, buffer: Buffer, pointer: str, start: Dim, i: int, step: int, guard: Guard
    ) -> str:
        """Vector number i from the element `start` on, where the pointer points."""
        places = tuple((n, self.name(n).text) for n in sorted(start.names))
        key = (start, places, i, step, self.lanes, guard)
        known = self.vectors_read.setdefault(buffer.name, {})
        if key in known and self._here(known[key][1]):
            return known[key][0]
        dtype = buffer.type.dtype
        at = flow.offset(self.em, pointer, str(i * self.lanes), MEMORY[dtype])
        text = self._load_vector(dtype, at, self._repeated(guard.mask, i, step))
        known[key] = (text, self.em.branches)
        return text

    def forget(self, buffer: str) -> None:
        super().forget(buffer)
        self.vectors_read.pop(buffer, None)

    # ---- writing --------------------------------------------------------------------------------

    def waits(self, s: Store, affine: Dim, place: Place, value: Value) -> bool:
        """Whether a store is written together with those of the other turns; if so takes it."""
        turns = self.turns_of
        if turns is None or id(s) not in turns.waiting or place.step != turns.size:
            return False
        form = affine.linear_in(turns.var)
        if form is None or form[0] != ONE or self.guard.scalar is not None:
            return False
        turns.places.setdefault(id(s), (s.buffer, place))
        turns.values.setdefault(id(s), []).append(self.spread(value, self.lanes))
        return True

    def write_waiting(self, turns: Turns) -> None:
        for which, (buffer, place) in turns.places.items():
            values, dtype = turns.values[which], buffer.type.dtype
            assert len(values) == turns.size, (buffer, values)
            element, lanes = MEMORY[dtype], self.lanes
            for i in range(turns.size):
                each = range(i * lanes, (i + 1) * lanes)
                order = [e % turns.size * lanes + e // turns.size for e in each]
                text = self._sorted(dtype, values, order)
                at = flow.offset(self.em, place.pointer.text, str(i * lanes), element)
                mask = self._repeated(self.guard.mask, i, turns.size)
                self._write_unit(dtype, at, text, mask, "")
            self.forget(buffer.name)

    # ---- sorting --------------------------------------------------------------------------------

    def _repeated(self, mask: Value | None, i: int, step: int) -> str | None:
        """Vector number i of a mask whose bits are there `step` times each."""
        if mask is None:
            return None
        lanes, ty = self.lanes, wide("i1", self.lanes)
        which = ", ".join(f"i32 {(i * lanes + k) // step}" for k in range(lanes))
        return self.em.op(
            f"shufflevector {ty} {mask.text}, {ty} poison, <{lanes} x i32> <{which}>", "each"
        )

    def _sorted(self, dtype: DType, vectors: list[str], order: list[int]) -> str:
        """The lanes with some numbers, of vectors that lie one behind the other."""
        lanes, ty = self.lanes, wide(REGISTER[dtype], self.lanes)
        out = ""
        for i, x in enumerate(vectors):
            own = range(i * lanes, (i + 1) * lanes)
            if own.start not in order and not any(n in own for n in order):
                continue
            if out:
                pick = [lanes + n - own.start if n in own else k for k, n in enumerate(order)]
                pair = f"{ty} {out}, {ty} {x}"
            else:
                pick = [n - own.start if n in own else -1 for n in order]
                pair = f"{ty} {x}, {ty} poison"
            which = ", ".join(f"i32 {p}" if p >= 0 else "i32 poison" for p in pick)
            out = self.em.op(f"shufflevector {pair}, <{lanes} x i32> <{which}>", "sorted")
        return out
