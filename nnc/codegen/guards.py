"""Conditions under which memory is touched, and run-time index checks."""

from __future__ import annotations

from dataclasses import dataclass

from nnc.codegen.indices import Indices
from nnc.codegen.registers import any_lane, invert, wide
from nnc.codegen.scopes import Value
from nnc.diagnostics import Span


@dataclass(frozen=True, eq=False)
class Guard:
    """What must hold for memory to be touched: a uniform condition and a mask (None: always).

    `live`: at least one lane of the mask is known to be active (the edge of a vector loop).
    """

    scalar: Value | None = None
    mask: Value | None = None
    live: bool = True
    parent: Guard | None = None

    @property
    def depth(self) -> int:
        return max((v.depth for v in (self.scalar, self.mask) if v is not None), default=0)

    @property
    def reads(self) -> frozenset[str]:
        return frozenset().union(*(v.reads for v in (self.scalar, self.mask) if v is not None))


ALWAYS = Guard()


class Guards(Indices):
    """Indices, and the conditions of the code being emitted."""

    guard: Guard = ALWAYS  # of the statement being emitted

    def site(self, span: Span) -> int:
        """The number of an index check."""
        raise NotImplementedError

    def under(self, guard: Guard, cond: Value, holds: bool = True) -> Guard:
        """`guard` and that `cond` is true (or false)."""
        if not holds:
            with self.at(cond.depth):
                text = invert(self.em, cond.text, cond.lanes)
            cond = Value(text, "bool", cond.lanes, cond.depth, cond.reads)
        if cond.lanes == 1:
            scalar = cond if guard.scalar is None else self.conjunction(guard.scalar, cond)
            return Guard(scalar, guard.mask, guard.live, guard)
        mask = cond if guard.mask is None else self.conjunction(guard.mask, cond)
        return Guard(guard.scalar, mask, False, guard)

    def conjunction(self, *conds: Value) -> Value:
        out = conds[0]
        for c in conds[1:]:
            out = self.compute("and", "bool", "bool", (out, c))
        return out

    def some(self, guard: Guard) -> Value | None:
        """Whether a lane is active; None: certainly."""
        if guard.mask is None or guard.live:
            return guard.scalar
        with self.at(guard.mask.depth):
            text = any_lane(self.em, guard.mask.text, guard.mask.lanes)
        found = Value(text, "bool", 1, guard.mask.depth, guard.mask.reads)
        return found if guard.scalar is None else self.conjunction(guard.scalar, found)

    def inside(self, index: Value, extent: Value) -> Value:
        """0 <= index < extent: one unsigned comparison."""
        lanes, depth, reads = self.join(index, extent)
        a, b = self.spread(index, lanes), self.spread(extent, lanes)
        with self.at(depth):
            text = self.em.op(f"icmp ult {wide('i64', lanes)} {a}, {b}", "inside")
        return Value(text, "bool", lanes, depth, reads)

    def report(self, ok: Value, index: Value, extent: Value, guard: Guard, span: Span) -> None:
        """Records an index error when an active lane is not `ok`."""
        bad = self.under(guard, ok, False)
        some = self.some(bad)
        assert some is not None
        depth = max(some.depth, index.depth, extent.depth, bad.depth)
        with self.at(depth):
            em = self.em
            fail, go_on = em.fresh("fail"), em.fresh("inside")
            ctx = self.frame_field("ctx")
            em.line(f"br i1 {some.text}, label %{fail}, label %{go_on}, !prof !0")
            em.label(fail)
            value = index.text
            if index.lanes > 1:
                assert bad.mask is not None
                lanes = index.lanes
                bits = em.op(f"bitcast <{lanes} x i1> {bad.mask.text} to i{lanes}")
                first = em.op(f"call i{lanes} @llvm.cttz.i{lanes}(i{lanes} {bits}, i1 false)")
                value = em.op(f"extractelement {wide('i64', lanes)} {index.text}, i{lanes} {first}")
            em.line(
                f"call void @nn_index_error(ptr {ctx}, i64 {self.site(span)}, i64 {value}, "
                f"i64 {extent.text})"
            )
            em.line(f"br label %{go_on}")
            em.label(go_on)
