"""Products of rows with matrices that data chooses (`x[n, d] * w[expert[n], f, d]`): rows that
chose the same matrix are rows of one contraction.

Each thread finds them, in time proportional to the rows: it writes down what each row chooses, and
links the rows of each choice. The sums are those that a row alone would have.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nnc.codegen import contract, flow
from nnc.codegen.leaf_operands import groups_of, kind
from nnc.codegen.scopes import Value
from nnc.codegen.thin import Thin
from nnc.codegen.windows import Group
from nnc.ir.chosen import chosen
from nnc.ir.expr import Idx, Load
from nnc.ir.loop import Contract
from nnc.lang.dims import Dim

_CHOICE = "$.choice"


@dataclass(frozen=True)
class _Lists:
    """As i64: what each row chooses, the next row that chooses so, how many there are from a row
    on, the first row of each choice (anything where there is none), and the rows of one choice."""

    choices: str
    next: str
    counts: str
    first: str
    rows: str


class Grouped(Thin):
    """Leaves, contractions of few rows, and of rows that choose their matrix."""

    def direct(self, c: Contract) -> bool:
        return self.grouped(c) or super().direct(c)

    def grouped(self, c: Contract) -> bool:
        """Emits the contraction if it is of this kind."""
        at = chosen(c.b, (a.var for a in c.batch))
        if c.m or at is None or c.fn != "mul":
            return False
        assert isinstance(c.b, Load), c
        self.contractions |= {kind(c)}
        size = c.b.tensor.type.shape[at]
        index = (*c.b.index[:at], Idx(Dim.of(_CHOICE)), *c.b.index[at + 1 :])
        part = replace(c, batch=(), m=c.batch, b=replace(c.b, index=index, check=None))
        m, n, k = groups_of(part)
        lengths = (m.extent, m.extent, m.extent, size, m.extent)
        lists = _Lists(*(self.scratch(n * 8) for n in lengths))
        with self.merged_axes([m, n, k]):
            count = self.uniform(m.extent).text
            self.write_choices(c.b, at, m, count, lists)
            self.link(count, lists)
            with self.counted("0", count) as row:
                choice = self.entry(lists.choices, row)
                is_first = flow.compare(self.em, "eq", self.entry(lists.first, choice), row)
                with flow.when(self.em, is_first), self.scope():
                    some = self.alike(row, lists)
                    with self.bound(_CHOICE, choice, size):
                        self.together(part, (replace(m, places=lists.rows), n, k), some)
        return True

    def write_choices(self, b: Load, at: int, m: Group, count: str, lists: _Lists) -> None:
        with self.counted("0", count) as i, self.bound(m.var, i, m.extent):
            index = self.value(b.index[at])
            index = self.compute("cast", "i64", index.dtype, (index,))
            if b.check is not None:
                extent = self.dim(b.tensor.type.shape[at])
                ok = self.inside(index, extent)
                self.report(ok, index, extent, self.guard, b.check)
                index = self.select(ok, index, Value("0", "i64"))
            self.put(lists.choices, i, index.text)

    def link(self, count: str, lists: _Lists) -> None:
        """From the last row to the first. What stands in `first` is right if a row behind this one
        chooses the same: that row has written it."""
        em = self.em
        with self.counted("0", count) as turn:
            row = flow.sub(em, flow.sub(em, count, "1"), turn)
            choice = self.entry(lists.choices, row)
            next_ = self.entry(lists.first, choice)
            behind = flow.compare(em, "sgt", next_, row)
            behind = flow.conjunction(em, behind, flow.compare(em, "slt", next_, count))
            next_ = flow.select(em, behind, "i64", next_, row)
            same = flow.compare(em, "eq", self.entry(lists.choices, next_), choice)
            more = flow.conjunction(em, behind, same)
            others = flow.select(em, more, "i64", self.entry(lists.counts, next_), "0")
            self.put(lists.next, row, next_)
            self.put(lists.counts, row, flow.add(em, others, "1"))
            self.put(lists.first, choice, row)

    def put(self, of: str, i: str, x: str) -> None:
        self.em.line(f"store i64 {x}, ptr {flow.offset(self.em, of, i, 'i64')}")

    def entry(self, of: str, i: str) -> str:
        return self.em.op(f"load i64, ptr {flow.offset(self.em, of, i, 'i64')}", "entry")

    def alike(self, first: str, lists: _Lists) -> str:
        """Lists the rows that choose as the first one does; how many."""
        em, at, some = self.em, self.alloca("i64"), self.entry(lists.counts, first)
        em.line(f"store i64 {first}, ptr {at}")
        with self.counted("0", some) as i:
            row = em.op(f"load i64, ptr {at}", "row")
            self.put(lists.rows, i, row)
            em.line(f"store i64 {self.entry(lists.next, row)}, ptr {at}")
        return some

    def together(self, c: Contract, groups: tuple[Group, Group, Group], rows: str) -> None:
        m, n, k = groups
        done = contract.Contraction(
            kind(c),
            self.target,
            rows,
            self.uniform(n.extent).text,
            self.uniform(k.extent).text,
            self.operand(c.a, m, k),
            self.operand(c.b, k, n),
            self.epilogue(c, m, n),
            self.tile_scratch(kind(c)),
            columns=self.columns(c, m, n),
            across=self.across(c),
        )
        contract.emit_contraction(self.em, done)
