"""The exported functions of a Program, and the choice among its cases.

    i32 @<symbol>(ptr ctx, ptr dims, ptr args)       0, or 1: an index check failed
    i64 @<symbol>_bytes(ptr dims, i64 nthreads)      workspace for that many threads

    ctx: { ptr workspace; i64 nthreads; i64 err_site; i64 err_value; i64 err_extent; i64 kept }

`dims` are i64, `args` pointers. The workspace (aligned to 64) holds the arena and then each
thread's scratch. err_site is 0 or the 1-based number of the first check that failed in any thread.
`kept`: see `nnc.codegen.kept`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nnc.codegen import flow
from nnc.codegen.barriers import SAMPLE
from nnc.codegen.indices import Indices
from nnc.codegen.scopes import FRAME
from nnc.codegen.spmd import all_small, attributes, total_work
from nnc.codegen.target import Target
from nnc.ir.loop import Program
from nnc.lang.dims import ZERO, Dim, evaluated

_SMALL_PROGRAM = 1 << 21  # scalar operations, about 30 us: fewer run on one thread

Sizes = tuple[tuple[str, int], ...]  # the numbers for some dims


@dataclass(frozen=True)
class Entry:
    """The functions around a Program's kernels. `scratch`: bytes for each thread; `linkage`: of the
    functions, a word or nothing."""

    program: Program
    target: Target
    symbol: str
    scratch: Dim
    linkage: str

    def scopes(self) -> Indices:
        s = Indices(self.target, self.program.facts, self.program.dims)
        s.fields["dims"] = "%dims"
        return s

    def run(self, offsets: Sequence[Dim]) -> str:
        """`offsets`: places in the arena whose addresses the frame holds."""
        s = self.scopes()
        em = s.em
        frame = em.op(f"alloca [{len(FRAME)} x i64], align 16", "frame")
        workspace = em.op("load ptr, ptr %ctx", "workspace")
        place = em.op("getelementptr i64, ptr %ctx, i64 1")
        threads = em.op(f"load i64, ptr {place}", "threads")
        error = em.op("getelementptr i64, ptr %ctx, i64 2", "error")
        em.line(f"store i64 0, ptr {error}")
        scratch = flow.offset(em, workspace, self.arena(s), "i8")
        places = self.places(s, workspace, offsets)
        each = s.uniform(self.scratch).text
        values = ("%ctx", "%dims", "%args", scratch, each, places)
        for i, ((_, type_), value) in enumerate(zip(FRAME.items(), values, strict=True)):
            place = em.op(f"getelementptr i64, ptr {frame}, i64 {i}")
            em.line(f"store {type_} {value}, ptr {place}")
        count = self.threads(s, threads)
        em.line(f"call void @nnrt_run(ptr @{self.symbol}.spmd, ptr {frame}, i32 {count})")
        found = em.op(f"load i64, ptr {error}", "found")
        failed = em.op(f"icmp ne i64 {found}, 0", "failed")
        result = em.op(f"zext i1 {failed} to i32", "result")
        return (
            f"define {self.linkage}i32 @{self.symbol}(ptr %ctx, ptr %dims, ptr %args) "
            f"{attributes(len(self.program.kernels))} {{\n"
            f"entry:\n{s.body()}\n  ret i32 {result}\n}}\n"
        )

    def threads(self, s: Indices, threads: str) -> str:
        """How many (i32) run it: one when there is little work."""
        em, steps = s.em, self.program.steps
        work = s.uniform(total_work(steps[self.program.prologue :])).text
        small = flow.compare(em, "slt", work, str(_SMALL_PROGRAM))
        alone = flow.disjunction(em, all_small(s, steps), small)
        threads = flow.select(em, alone, "i64", "1", threads)
        if flow.const(threads) is not None:
            return threads
        return em.op(f"trunc i64 {threads} to i32", "count")

    def places(self, s: Indices, workspace: str, offsets: Sequence[Dim]) -> str:
        """A table of addresses, each reckoned from the one before it in memory."""
        em, table = s.em, s.em.op(f"alloca [{max(len(offsets), 1)} x ptr], align 16", "places")
        sample = {d: SAMPLE + i for i, d in enumerate(self.program.dims)}
        where = evaluated(offsets, sample)
        order = sorted(enumerate(offsets), key=lambda x: where[x[1]])
        at, here = ZERO, workspace
        for number, offset in order:
            step = offset - at
            whole = len(step.terms) > len(offset.terms)
            start, step = (workspace, offset) if whole else (here, step)
            at, here = offset, flow.offset(em, start, s.uniform(step).text, "i8")
            place = em.op(f"getelementptr ptr, ptr {table}, i64 {number}")
            em.line(f"store ptr {here}, ptr {place}")
        return table

    def arena(self, s: Indices) -> str:
        return flow.round_up(s.em, s.uniform(self.program.arena).text, "64")

    def size(self) -> str:
        s = self.scopes()
        each = flow.mul(s.em, "%nthreads", s.uniform(self.scratch).text)
        total = flow.add(s.em, self.arena(s), each)
        return (
            f"define {self.linkage}i64 @{self.symbol}_bytes(ptr %dims, i64 %nthreads) nounwind {{\n"
            f"entry:\n{s.body()}\n  ret i64 {total}\n}}\n"
        )


def dispatch(symbol: str, dims: Sequence[str], cases: Sequence[Sizes]) -> list[str]:
    """The exported functions: comparisons of the sizes, then the function of the case."""
    given = (("i32", "", "ptr %ctx, ptr %dims, ptr %args"), ("i64", "_bytes", "ptr %dims, i64 %n"))
    out = []
    for kind, suffix, parameters in given:
        lines = [f"define {kind} @{symbol}{suffix}({parameters}) nounwind {{", "entry:"]
        lines.append("  br label %try1")
        for i, sizes in enumerate(cases):
            lines += [f"try{i + 1}:", *_compared(i + 1, dims, sizes)]
            follow = f"try{i + 2}" if i + 1 < len(cases) else "general"
            lines.append(f"  br i1 %fits{i + 1}, label %case{i + 1}, label %{follow}")
        for i in range(len(cases) + 1):
            lines.append(f"case{i}:" if i else "general:")
            lines.append(f"  %r{i} = call {kind} @{symbol}.{i}{suffix}({parameters})")
            lines.append(f"  ret {kind} %r{i}")
        out.append("\n".join([*lines, "}", ""]))
    return out


def _compared(number: int, dims: Sequence[str], sizes: Sizes) -> list[str]:
    """Lines that make %fits: whether all sizes are those of the case."""
    lines, last = [], "true"
    for k, (name, value) in enumerate(sizes):
        at = f"{number}.{k}"
        lines.append(f"  %p{at} = getelementptr i64, ptr %dims, i64 {dims.index(name)}")
        lines.append(f"  %d{at} = load i64, ptr %p{at}")
        lines.append(f"  %e{at} = icmp eq i64 %d{at}, {value}")
        lines.append(f"  %f{at} = and i1 {last}, %e{at}")
        last = f"%f{at}"
    return [*lines, f"  %fits{number} = and i1 {last}, true"]
