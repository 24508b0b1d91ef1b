"""Kernels with contractions inside of loops: blocks of rows that one thread works on in its cache.

    for o parallel                       outer loops
      for b parallel                     blocks of rows; or statements and `for b serial`
        contract ...                     by this thread, from and to local strips
        for i serial ...

Every thread takes as many whole outer iterations as the others. The blocks of those that are left
are dealt out in turns, forth and back, so that blocks whose work grows with their number (a causal
mask) are shared evenly. Who computes a block does not change its result.

A right operand that is the same for all blocks of an outer iteration (`Contract.part`) is packed
once, where that pays, and read by all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nnc.codegen import contract, flow, tiles
from nnc.codegen.leaf_operands import groups_of
from nnc.codegen.registers import computes_in
from nnc.codegen.scopes import Value
from nnc.codegen.windows import group
from nnc.codegen.winograd import Winograd
from nnc.ir.expr import subst
from nnc.ir.graph import Axis
from nnc.ir.loop import Contract, For, Stmt
from nnc.ir.statements import stores_in
from nnc.lang.dims import Dim

_WORTH = "3"  # blocks of a thread from which a right operand is packed for all of them


def contracts(body: Iterable[Stmt]) -> Iterator[Contract]:
    """Contractions among the statements, however deep."""
    stack = list(body)[::-1]
    while stack:
        match stack.pop():
            case Contract() as c:
                yield c
            case For(body=inner):
                stack.extend(reversed(inner))


class Regions(Winograd):
    """Thin leaves too, and contractions inside of loops."""

    def start(self) -> None:
        super().start()
        self.ready: dict[Contract, contract.Ready] = {}

    def nested(self, c: Contract) -> None:
        """A contraction by this thread alone."""
        assert not c.batch and c.m and c.n, c
        for s in stores_in((c,)):
            self.forget(s.buffer.name)
        groups = groups_of(c)
        with self.merged_axes(groups), self.scope():
            self.one(c, groups, "0", "1", self.ready.get(c))
        for s in stores_in((c,)):
            self.forget(s.buffer.name)

    def parallel(self, loop: For) -> None:
        if not any(contracts((loop,))):
            super().parallel(loop)
            return
        nest: list[For] = []
        body: tuple[Stmt, ...] = (loop,)
        while len(body) == 1 and isinstance(body[0], For) and body[0].kind == "parallel":
            nest.append(body[0])
            body = body[0].body
        blocks = nest.pop() if any(isinstance(s, Contract) for s in body) else None
        outer = tuple(f.axis for f in nest)
        if blocks is None:
            self.whole(outer, body)
        else:
            self.shared(outer, blocks.axis, body)

    def whole(self, outer: tuple[Axis, ...], body: tuple[Stmt, ...]) -> None:
        """Outer iterations, each done by one thread."""
        total = self.count(outer)
        lo, hi = self.share(total)
        inner = next(s for s in body if isinstance(s, For) and any(contracts((s,))))
        with (
            self.counted(lo, hi) as turn,
            self.indices(Value(turn, "i64", 1, self.depth), outer),
            self.scope(),
        ):
            self.pack(body, self.uniform(inner.axis.extent).text, "1")
            self.block(body)

    def shared(self, outer: tuple[Axis, ...], axis: Axis, body: tuple[Stmt, ...]) -> None:
        em = self.em
        total = self.count(outer)
        each = flow.div(em, total, self.nt)
        first = flow.mul(em, each, self.tid)
        left = flow.sub(em, total, flow.mul(em, each, self.nt))
        shift = flow.mul(em, each, flow.sub(em, self.nt, "1"))
        with self.counted("0", flow.add(em, each, left)) as turn:
            alone = flow.compare(em, "slt", turn, each)
            start = flow.select(em, alone, "i64", first, shift)
            who = flow.select(em, alone, "i64", "0", self.tid)
            parts = flow.select(em, alone, "i64", "1", self.nt)
            number = Value(flow.add(em, turn, start), "i64", 1, self.depth)
            with self.indices(number, outer), self.scope():
                count = self.uniform(axis.extent).text
                self.pack(body, count, parts)
                self.blocks(axis, count, who, parts, body)

    def count(self, outer: tuple[Axis, ...]) -> str:
        total = "1"
        for a in outer:
            total = flow.mul(self.em, total, self.uniform(a.extent).text)
        return total

    def blocks(self, axis: Axis, n: str, who: str, parts: str, body: tuple[Stmt, ...]) -> None:
        """This thread's blocks: one of each `parts`, every other time from the other end."""
        em = self.em
        for s in stores_in(body):
            self.forget(s.buffer.name)
        back = flow.sub(em, flow.sub(em, parts, "1"), who)
        with self.counted("0", flow.ceil_div(em, n, parts)) as turn:
            odd = em.op(f"trunc i64 {turn} to i1", "odd") if flow.const(turn) is None else "false"
            mine = flow.select(em, odd, "i64", back, who)
            b = flow.add(em, flow.mul(em, turn, parts), mine)
            inside = flow.compare(em, "slt", b, n)
            with flow.when(em, inside), self.scope(), self.bound(axis.var, b, axis.extent):
                self.block(body)

    # ---- operands that all blocks share -------------------------------------------------------

    def pack(self, body: tuple[Stmt, ...], blocks: str, parts: str) -> None:
        for c in contracts(body):
            if c.part is not None:
                worth = flow.mul(self.em, parts, _WORTH)
                self.pack_one(c, flow.compare(self.em, "sge", blocks, worth))

    def pack_one(self, c: Contract, worth: str) -> None:
        part, em = c.part, self.em
        assert part is not None
        dtype = computes_in(c.a.dtype)
        t = tiles.tile(dtype, self.target)
        axes = [tuple(self.longer(a, c) for a in axes) for axes in (c.n, c.k)]
        b = subst(c.b, {part.var: Dim.of(part.var) - part.start})
        n, k = (group(x, a) for x, a in zip("nk", axes, strict=True))
        size = _rounded(n.extent, t.panel) * _rounded(k.extent, contract.OVERSHOOT) * t.size
        to, scratch = self.scratch(size), self.tile_scratch(dtype)
        rows, columns = self.uniform(k.extent).text, self.uniform(n.extent).text
        with flow.when(em, worth), self.merged_axes([n, k]), self.scope():
            operand = self.operand(b, k, n)
            contract.emit_prepack(
                em, dtype, self.target, operand, columns, rows, to, scratch, "0", "1"
            )
        self.ready[c] = contract.Ready(worth, to, rows)

    def longer(self, a: Axis, c: Contract) -> Axis:
        assert c.part is not None
        return Axis(a.var, c.part.extent) if a.var == c.part.var else a

    def starts(self, c: Contract) -> tuple[str, str]:
        """Where a contraction begins in its packed operand: column, k."""
        assert c.part is not None
        at = self.uniform(c.part.start).text
        return ("0", at) if any(a.var == c.part.var for a in c.k) else (at, "0")


def _rounded(d: Dim, to: int) -> Dim:
    return (d + (to - 1)) // to * to
