"""The function that every thread runs: the kernels in order, run-time loops, barriers, commits."""

from __future__ import annotations

from collections.abc import Iterator

from nnc.codegen import flow
from nnc.codegen.barriers import Plan, is_parallel
from nnc.codegen.indices import Indices
from nnc.ir.loop import Buffer, Commit, Kernel, Repeat, Step
from nnc.lang.dims import ONE, ZERO, Dim

_SMALL = 1 << 15  # scalar operations: kernels of fewer run on one thread


class Spmd:
    """Emits it over `scopes`; `checked`: which kernels have index checks, in order."""

    def __init__(self, scopes: Indices, symbol: str, checked: tuple[bool, ...]) -> None:
        self.s, self.em, self.symbol, self.checked = scopes, scopes.em, symbol, checked
        self.plan = Plan(scopes, scopes.facts)
        self.number = 0  # of the next kernel
        self.turns: tuple[str, ...] = ()  # of the loops around

    def emit(self, steps: tuple[Step, ...]) -> str:
        self.steps(steps)
        return (
            f"define internal void @{self.symbol}.spmd(ptr %frame, i32 %tid, i32 %nt) nounwind {{\n"
            f"entry:\n{self.s.body()}\n  ret void\n}}\n"
        )

    def steps(self, steps: tuple[Step, ...]) -> None:
        for step in steps:
            match step:
                case Commit():
                    self.commit()
                case Repeat():
                    self.repeat(step)
                case Kernel():
                    self.launch(step, f"@{self.symbol}.k{self.number}")
                    self.number += 1

    def launch(self, kernel: Kernel, name: str) -> None:
        em, small = self.em, "true"
        if is_parallel(kernel):
            work = self.s.uniform(kernel.work).text
            small = flow.compare(em, "slt", work, str(_SMALL))
        self.plan.barrier_before(kernel, small)
        turns = "".join(f", i64 {t}" for t in self.turns)
        if small == "false":
            em.line(f"call void {name}(ptr %frame, i32 %tid, i32 %nt{turns})")
            return
        mine = em.op("icmp eq i32 %tid, 0", "mine")
        parts = "1"
        if small != "true":
            all_run = flow.negate(em, small)
            mine = em.op(f"or i1 {mine}, {all_run}", "mine")
            parts = em.op(f"select i1 {small}, i32 1, i32 %nt", "parts")
        with flow.when(em, mine):
            em.line(f"call void {name}(ptr %frame, i32 %tid, i32 {parts}{turns})")

    def barrier(self) -> None:
        self.em.line("call void @nnrt_barrier(i32 %tid, i32 %nt)")
        self.plan.passed()

    def commit(self) -> None:
        """Leaves when an index error was recorded. All threads must see the same."""
        em = self.em
        self.barrier()
        place = em.op(f"getelementptr i64, ptr {self.s.frame_field('ctx')}, i64 2")
        error = em.op(f"load atomic i64, ptr {place} monotonic, align 8", "error")
        if any(self.checked if self.turns else self.checked[self.number :]):
            self.barrier()
        leave, go_on = em.fresh("leave"), em.fresh("commit")
        failed = em.op(f"icmp ne i64 {error}, 0", "failed")
        em.line(f"br i1 {failed}, label %{leave}, label %{go_on}, !prof !0")
        em.label(leave)
        em.line("ret void")
        em.label(go_on)

    def repeat(self, loop: Repeat) -> None:
        """Barriers around every turn, and around the reading of its condition."""
        em, s, outside = self.em, self.s, self.turns
        done = em.fresh("repeated")
        self.barrier()
        with s.counted("0", s.uniform(loop.trip).text) as turn, s.bound(loop.var, turn, loop.trip):
            self.turns = (*outside, turn)
            self.steps(loop.before)
            if loop.cond is not None:
                self.barrier()
                more = self.condition(loop.cond)
                self.barrier()
                go_on = em.fresh("turn")
                em.line(f"br i1 {more}, label %{go_on}, label %{done}")
                em.label(go_on)
            self.steps(loop.steps)
            self.barrier()
        em.line(f"br label %{done}")
        em.label(done)
        self.turns = outside

    def condition(self, b: Buffer) -> str:
        """The bool scalar in a buffer."""
        em, s = self.em, self.s
        assert b.scope in ("arena", "arg"), b
        if b.scope == "arg":
            place = s.frame_item("args", b.slot, "ptr")
        else:
            place = flow.offset(em, s.frame_field("arena"), s.uniform(b.offset).text, "i8")
        byte = em.op(f"load i8, ptr {place}", "cond")
        return em.op(f"icmp ne i8 {byte}, 0", "more")


def enclosing(steps: tuple[Step, ...]) -> list[tuple[Repeat, ...]]:
    """For each kernel, in order, the loops around it, outermost first."""
    return [turns for _, turns in _kernels(steps, ())]


def _kernels(
    steps: tuple[Step, ...], turns: tuple[Repeat, ...]
) -> Iterator[tuple[Kernel, tuple[Repeat, ...]]]:
    for step in steps:
        match step:
            case Kernel():
                yield step, turns
            case Repeat(before=before, steps=inner):
                yield from _kernels((*before, *inner), (*turns, step))


def total_work(steps: tuple[Step, ...]) -> Dim:
    """Scalar operations of a whole run, at most."""
    out = ZERO
    for kernel, turns in _kernels(steps, ()):
        work, times = kernel.work, ONE
        for t in reversed(turns):
            work, times = work.subst({t.var: t.trip - 1}), times.subst({t.var: t.trip - 1}) * t.trip
        out = out + work * times
    return out
