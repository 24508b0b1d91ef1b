"""The function that every thread runs: the kernels in order, run-time loops, barriers, commits.

Threads claim the parts of a kernel one by one (`nnc.codegen.pool`): part p of n computes
the same whoever runs it, and nobody waits for a thread that the system has put aside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from nnc.codegen import flow, kept
from nnc.codegen.barriers import Plan, is_parallel
from nnc.codegen.emit import Emitter
from nnc.codegen.indices import Indices
from nnc.codegen.registers import MEMORY
from nnc.codegen.scopes import FRAME
from nnc.ir.loop import Buffer, Commit, Kernel, Repeat, Step
from nnc.lang.dims import ONE, ZERO, Dim, dim_sum

_SMALL = 1 << 15  # scalar operations: kernels of fewer are serial
MANY = 32  # kernels: more are launched by code that LLVM does not optimise
_SMALL_TURN = 1 << 18  # and all turns of a loop of so few: every turn would need barriers


@dataclass(frozen=True)
class Launch:
    """How to call a kernel: its function, the numbers and places (elements of buffers) it takes."""

    name: str
    places: tuple[tuple[Buffer, Dim], ...]
    checks: bool
    numbers: tuple[int, ...] = ()


class Spmd:
    """Emits it over `scopes`; `launches`: of the kernels, in order."""

    def __init__(
        self,
        scopes: Indices,
        symbol: str,
        launches: Sequence[Launch],
        buffers: Sequence[Buffer],
    ) -> None:
        self.s, self.em, self.symbol, self.launches = scopes, scopes.em, symbol, launches
        self.offsets: dict[Dim, int] = {}  # of the arena, by their number in the frame's places
        self.plan = Plan(scopes, scopes.facts, buffers)
        self.number = 0  # of the next kernel
        self.loops: tuple[Repeat, ...] = ()  # around
        self.turns: tuple[str, ...] = ()  # their variables

    def emit(self, steps: tuple[Step, ...], prologue: int = 0) -> str:
        """All steps; the first `prologue` of them only where the caller does not keep them."""
        if prologue:
            self.prologue(steps[:prologue])
        self.steps(steps[prologue:])
        return (
            f"define internal void @{self.symbol}.spmd(ptr %frame, i32 %tid, i32 %nt) "
            f"{attributes(len(self.launches))} {{\n"
            f"entry:\n{self.own()}{self.s.body()}\n  ret void\n}}\n"
        )

    def own(self) -> str:
        """Lines that make this thread's team and its frame, whose scratch is the thread's alone."""
        em = Emitter()
        em.line("%team = alloca [8 x i64], align 64")
        em.line("call void @nnrt_team(ptr %team, i32 %tid, i32 %nt)")
        em.line(f"%own = alloca [{len(FRAME)} x i64], align 16")
        words = {}
        for i, name in enumerate(FRAME):
            place = em.op(f"getelementptr i64, ptr %frame, i64 {i}", f"of.{name}")
            words[name] = em.op(f"load i64, ptr {place}", f"own.{name}")
        who = em.op("zext i32 %tid to i64", "own.tid")
        skip = em.op(f"mul i64 {who}, {words['each']}", "own.skip")
        words["scratch"] = em.op(f"add i64 {words['scratch']}, {skip}", "own.scratch")
        for i, word in enumerate(words.values()):
            place = em.op(f"getelementptr i64, ptr %own, i64 {i}", "own.to")
            em.line(f"store i64 {word}, ptr {place}")
        return em.text() + "\n"

    def steps(self, steps: tuple[Step, ...]) -> None:
        for step in steps:
            match step:
                case Commit():
                    self.commit()
                case Repeat():
                    self.repeat(step)
                case Kernel():
                    self.launch(step)

    def prologue(self, steps: tuple[Step, ...]) -> None:
        em, state = self.em, kept.state(self.em, self.s.frame_field("ctx"))
        for kind, some in kept.stretches(steps):
            with flow.when(em, state.make[kind]), self.s.scope(), self.plan.turn():
                for number, made in some:
                    wanted = kept.wanted(em, state, number)
                    with flow.when(em, wanted), self.s.scope(), self.plan.turn():
                        self.steps(made)
                        self.barrier()
        leave, go_on = em.fresh("made"), em.fresh("call")
        em.line(f"br i1 {state.one}, label %{leave}, label %{go_on}, !prof !0")
        em.label(leave)
        em.line("ret void")
        em.label(go_on)

    def launch(self, kernel: Kernel) -> None:
        em, small = self.em, all_small(self.s, (kernel,), self.loops)
        self.plan.barrier_before(kernel, small)
        name, rest = self.next_call()
        parts = {"true": "1", "false": "%nt"}.get(small)
        parts = parts or em.op(f"select i1 {small}, i32 1, i32 %nt", "parts")
        with self.claimed(parts) as part:
            em.line(f"call void {name}(ptr %own, i32 {part}, i32 {parts}{rest})")

    @contextmanager
    def claimed(self, parts: str) -> Iterator[str]:
        """Around what is done for each part that this thread gets; one part: serial."""
        em = self.em
        again, run, over = (em.fresh(x) for x in ("claim", "part", "claimed"))
        em.line(f"br label %{again}")
        em.label(again)
        part = em.op(f"call i32 @nnrt_next(ptr %team, i32 {parts})", "part")
        got = em.op(f"icmp sge i32 {part}, 0", "got")
        em.line(f"br i1 {got}, label %{run}, label %{over}")
        em.label(run)
        yield part
        em.line(f"br label %{again}")
        em.label(over)

    def next_call(self) -> tuple[str, str]:
        """Name of the next kernel's function, and its arguments behind the first three."""
        launch = self.launches[self.number]
        self.number += 1
        turns = [f", i64 {t}" for t in self.turns]
        numbers = [f", i64 {n}" for n in launch.numbers]
        places = [f", ptr {self.place(*b)}" for b in launch.places]
        return launch.name, "".join((*turns, *numbers, *places))

    def place(self, b: Buffer, start: Dim = ZERO) -> str:
        at = self.s.uniform(start).text
        return flow.offset(self.em, self.base(b), at, MEMORY[b.type.dtype])

    def base(self, b: Buffer) -> str:
        """Loaded from a table where it is needed: a function of many calls is compiled quickly."""
        match b.scope:
            case "const":
                return constant_name(self.symbol, b)
            case "arena":
                number = self.offsets.setdefault(b.offset, len(self.offsets))
                return self.item("places", number)
        assert b.scope == "arg", b
        return self.item("args", b.slot)

    def item(self, table: str, number: int) -> str:
        place = self.em.op(f"getelementptr ptr, ptr {self.s.frame_field(table)}, i64 {number}")
        return self.em.op(f"load ptr, ptr {place}", table)

    def barrier(self) -> None:
        self.em.line("call void @nnrt_barrier(ptr %team)")
        self.plan.passed()

    def commit(self) -> None:
        """Leaves when an index error was recorded. All threads must see the same.

        (Who is late may see an error of later kernels: the others leave at the next commit then.)
        """
        em = self.em
        self.barrier()
        place = em.op(f"getelementptr i64, ptr {self.s.frame_field('ctx')}, i64 2")
        error = em.op(f"load atomic i64, ptr {place} monotonic, align 8", "error")
        follow = self.launches if self.turns else self.launches[self.number :]
        if any(k.checks for k in follow):
            self.barrier()
        leave, go_on = em.fresh("leave"), em.fresh("commit")
        failed = em.op(f"icmp ne i64 {error}, 0", "failed")
        em.line(f"br i1 {failed}, label %{leave}, label %{go_on}, !prof !0")
        em.label(leave)
        em.line("ret void")
        em.label(go_on)

    def repeat(self, loop: Repeat) -> None:
        """A loop of small kernels is serial, without barriers; any other runs on all threads."""
        em, first = self.em, self.number
        small = all_small(self.s, (loop,), self.loops)
        self.plan.barrier_before(loop, small)
        if small != "false":
            with self.if_(small), self.claimed("1"), self.s.scope():
                self.alone(loop)
        if small != "true":
            self.number = first
            with flow.when(em, flow.negate(em, small)), self.s.scope(), self.plan.turn():
                self.together(loop)

    def alone(self, loop: Repeat) -> None:
        with self.turn(loop) as done:
            self.steps_alone(loop.before)
            if loop.cond is not None:
                self.go_on(self.condition(loop.cond), done)
            self.steps_alone(loop.steps)

    def steps_alone(self, steps: tuple[Step, ...]) -> None:
        for step in steps:
            if isinstance(step, Repeat):
                self.alone(step)
            elif isinstance(step, Kernel):
                name, rest = self.next_call()
                self.em.line(f"call void {name}(ptr %own, i32 0, i32 1{rest})")

    def together(self, loop: Repeat) -> None:
        """Barriers between the turns, and around the reading of the condition."""
        with self.turn(loop) as done:
            self.steps(loop.before)
            if loop.cond is not None:
                self.barrier()
                more = self.condition(loop.cond)
                self.leave_if_late()
                self.barrier()
                self.go_on(more, done)
            self.steps(loop.steps)
            self.barrier()

    def leave_if_late(self) -> None:
        em, late, on_time = self.em, self.em.fresh("late"), self.em.fresh("on.time")
        found = em.op("call i1 @nnrt_late(ptr %team)", "late")
        em.line(f"br i1 {found}, label %{late}, label %{on_time}, !prof !0")
        em.label(late)
        em.line("ret void")
        em.label(on_time)

    @contextmanager
    def if_(self, cond: str) -> Iterator[None]:
        if cond == "true":
            yield
            return
        with flow.when(self.em, cond):
            yield

    @contextmanager
    def turn(self, loop: Repeat) -> Iterator[str]:
        """Around the steps of one turn; gives the label behind the loop."""
        em, s, outside = self.em, self.s, (self.loops, self.turns)
        done = em.fresh("repeated")
        with s.counted("0", s.uniform(loop.trip).text) as turn, s.bound(loop.var, turn, loop.trip):
            self.loops, self.turns = (*self.loops, loop), (*self.turns, turn)
            yield done
        em.line(f"br label %{done}")
        em.label(done)
        self.loops, self.turns = outside

    def go_on(self, more: str, done: str) -> None:
        """Leaves the loop where the condition does not hold."""
        em, inside = self.em, self.em.fresh("turn")
        em.line(f"br i1 {more}, label %{inside}, label %{done}")
        em.label(inside)

    def condition(self, b: Buffer) -> str:
        """The bool scalar in a buffer."""
        em, place = self.em, self.place(b)
        byte = em.op(f"load i8, ptr {place}", "cond")
        return em.op(f"icmp ne i8 {byte}, 0", "more")


def attributes(kernels: int) -> str:
    """Of the functions around so many kernels: where they are many, their own time does not count,
    but that of compiling them does."""
    return "nounwind" if kernels <= MANY else "nounwind optnone noinline"


def constant_name(symbol: str, b: Buffer) -> str:
    return f'@"{symbol}.const.{b.name}"'


def all_small(
    s: Indices,
    steps: Sequence[Step],
    loops: tuple[Repeat, ...] = (),
    inner: tuple[Repeat, ...] = (),
) -> str:
    """Whether these steps, inside of the loops, are serial: an i1 operand.

    `inner`: loops further inside, in which the steps stand: for their last turn.
    """
    # As deep as loops are nested.
    out, known = "true", {t.var for t in (*loops, *inner)}

    def below(work: Dim, limit: int) -> str:
        for t in reversed(inner):
            work = work.subst({t.var: t.trip - 1})
        return flow.compare(s.em, "slt", s.uniform(work).text, str(limit))

    kernels = (k for k in steps if isinstance(k, Kernel) and is_parallel(k))
    for work in dict.fromkeys(at_most(k.work, known) for k in kernels):
        out = flow.conjunction(s.em, out, below(work, _SMALL))
    for loop in steps:
        if isinstance(loop, Repeat):
            turn = (*loop.before, *loop.steps)
            small = all_small(s, turn, loops, (*inner, loop))
            if small != "true":
                last = total_work(turn).subst({loop.var: loop.trip - 1})
                small = flow.disjunction(s.em, small, below(last, _SMALL_TURN))
            out = flow.conjunction(s.em, out, small)
    return out


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


def at_most(work: Dim, known: set[str]) -> Dim:
    """Work without a kernel's own loop variables: where inner loops shrink, their longest."""
    inner = {n for n in work.names if n.startswith("$")} - known
    return work.subst(dict.fromkeys(inner, ZERO))


def total_work(steps: tuple[Step, ...]) -> Dim:
    """Scalar operations of a whole run, at most."""
    count: Counter[Dim] = Counter()
    for kernel, turns in _kernels(steps, ()):
        work, times = at_most(kernel.work, {t.var for t in turns}), ONE
        for t in reversed(turns):
            work, times = work.subst({t.var: t.trip - 1}), times.subst({t.var: t.trip - 1}) * t.trip
        count[work * times] += 1
    return dim_sum(work * n for work, n in count.items())
