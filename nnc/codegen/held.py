"""Rows of a thread's own memory that registers still hold: reads of them are not loads."""

from __future__ import annotations

from nnc.codegen import flow
from nnc.codegen.memory import Memory
from nnc.codegen.registers import REGISTER, wide
from nnc.codegen.scopes import Held, Value
from nnc.ir.loop import Buffer
from nnc.lang.dims import ONE, ZERO, Dim


class HeldRows(Memory):
    """Memory, and what was stored last in rows of known place."""

    def hold(self, buffer: Buffer, affine: Dim, value: Value, before: tuple[Held, ...]) -> None:
        """Remembers what was stored in a row of this thread; `before`: what else is there."""
        text = self.uniform(affine).text
        form = affine.linear_in(self.vector) if self.vector is not None else None
        if form is None or form[0] != ONE or value.lanes == 1 or (at := flow.const(text)) is None:
            return
        new = Held(at, value, self.em.branches)
        kept = (h for h in before if not set(h.places) & set(new.places))
        self.held[buffer.name] = (*kept, new)

    def from_registers(self, buffer: Buffer, affine: Dim) -> Value | None:
        """Elements of such a row that one or two of its registers hold."""
        held = [h for h in self.held.get(buffer.name, ()) if self._here(h.branches)]
        size = buffer.type.elements.const
        first = flow.const(self.uniform(affine).text) if held else None
        if size is None or first is None:
            return None
        varies = self.vector is not None and self.vector in affine.names
        form = affine.linear_in(self.vector) if varies and self.vector is not None else (ZERO, ZERO)
        step = None if form is None else form[0].const
        if step is None:
            return None
        lanes = self.lanes if varies else 1
        wanted = [first + step * i for i in range(lanes)]
        inside = {p for p in wanted if 0 <= p < size}
        used = [h for h in held if not inside.isdisjoint(h.places)]
        if not 1 <= len(used) <= 2 or len({h.value.lanes for h in used}) > 1:
            return None
        if not inside <= {p for h in used for p in h.places}:
            return None
        return self._picked(used, wanted, buffer)

    def _here(self, branches: tuple[int, ...]) -> bool:
        """Whether what was emitted inside of these runs before this place does."""
        return self.em.branches[: len(branches)] == branches

    def _picked(self, used: list[Held], wanted: list[int], buffer: Buffer) -> Value:
        a, b = used[0].value, used[-1].value
        lanes, reads = len(wanted), frozenset({buffer.name})
        ty = wide(REGISTER[a.dtype], a.lanes)
        if lanes == 1:
            own = next(h for h in used if wanted[0] in h.places)
            text = self.em.op(f"extractelement {ty} {own.value.text}, i64 {wanted[0] - own.start}")
        elif wanted == list(used[0].places):
            text = a.text
        else:
            number = {p: i + a.lanes for i, p in enumerate(used[-1].places)} if a is not b else {}
            number |= {p: i for i, p in enumerate(used[0].places)}
            which = ", ".join(f"i32 {number[p]}" if p in number else "i32 poison" for p in wanted)
            more = b.text if a is not b else "poison"
            text = self.em.op(
                f"shufflevector {ty} {a.text}, {ty} {more}, <{lanes} x i32> <{which}>", "row"
            )
        return Value(text, a.dtype, lanes, self.depth, reads)
