"""Products of rows with matrices that data chooses (`x[n, d] * w[expert[n], f, d]`): rows that
chose the same matrix are rows of one contraction.

Each thread finds them: it writes down what each row chooses, and for the first row of each choice a
list of all that chose it. The sums are those that a row alone would have.
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
    """What each row chooses (-1: it is done), and the rows of one choice, as i64."""

    choices: str
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
        lists = _Lists(self.scratch(m.extent * 8), self.scratch(m.extent * 8))
        with self.merged_axes([m, n, k]):
            count = self.uniform(m.extent).text
            self.write_choices(c.b, at, m, count, lists)
            with self.counted("0", count) as first:
                choice = self.entry(lists.choices, first)
                with flow.when(self.em, flow.compare(self.em, "sge", choice, "0")), self.scope():
                    some = self.alike(first, count, choice, lists)
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
            place = flow.offset(self.em, lists.choices, i, "i64")
            self.em.line(f"store i64 {index.text}, ptr {place}")

    def entry(self, of: str, i: str) -> str:
        return self.em.op(f"load i64, ptr {flow.offset(self.em, of, i, 'i64')}", "entry")

    def alike(self, first: str, count: str, choice: str, lists: _Lists) -> str:
        """Lists the rows from `first` on that choose so, which are done then; how many."""
        em, slot = self.em, self.alloca("i64")
        em.line(f"store i64 0, ptr {slot}")
        with self.counted(first, count) as i:
            place = flow.offset(em, lists.choices, i, "i64")
            own = em.op(f"load i64, ptr {place}", "own")
            same = flow.compare(em, "eq", own, choice)
            found = em.op(f"load i64, ptr {slot}", "found")
            em.line(f"store i64 {i}, ptr {flow.offset(em, lists.rows, found, 'i64')}")
            em.line(f"store i64 {flow.select(em, same, 'i64', '-1', own)}, ptr {place}")
            more = flow.add(em, found, em.op(f"zext i1 {same} to i64", "one"))
            em.line(f"store i64 {more}, ptr {slot}")
        return em.op(f"load i64, ptr {slot}", "some")

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
        )
        contract.emit_contraction(self.em, done)
