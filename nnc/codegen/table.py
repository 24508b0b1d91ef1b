"""Programs of many kernels: the calls are rows of a table, which one loop walks through.

Code for each call would take LLVM longer than the kernels, of which most are called many times.

A row is a list of i32: the number of the function, that of its signature, where its `small` lies
(a byte: whether it is serial), what it needs (0; 1: a barrier before it; 2: one if the last one was
left out), the number of its values, and two for each value: a base (the table in bits 24 and up,
the place in it below) and which of `starts` (in bytes) is added.
"""

from __future__ import annotations

from collections.abc import Sequence

from nnc.codegen.barriers import Touched, accesses, is_parallel
from nnc.codegen.scopes import FRAME
from nnc.codegen.spmd import Launch, Spmd, all_small, at_most, constant_name
from nnc.ir.loop import Kernel, Step
from nnc.lang.dims import ZERO, Dim
from nnc.lang.types import DTYPES

FEW = 16  # kernels in a row: fewer are called directly
HEAD = 5  # numbers of a row before its values
ARGS, PLACES, CONSTS, NUMBERS = range(4)  # tables of bases
WORD = {name: i for i, name in enumerate(FRAME)}


class Tabled(Spmd):
    """Kernels outside of loops by tables, the rest as `Spmd` does it."""

    def emit(self, steps: tuple[Step, ...], prologue: int = 0) -> str:
        self.tables: list[str] = []
        text = super().emit(steps, prologue)
        return "\n".join([*self.tables, text])

    def steps(self, steps: tuple[Step, ...]) -> None:
        if self.turns:
            super().steps(steps)
            return
        run: list[Kernel] = []
        for step in steps:
            if isinstance(step, Kernel):
                run.append(step)
                continue
            self.run(run)
            run = []
            super().steps((step,))
        self.run(run)

    def run(self, kernels: Sequence[Kernel]) -> None:
        if len(kernels) < FEW:
            super().steps(tuple(kernels))
            return
        table = _Table(self, f"@{self.symbol}.calls{len(self.tables)}")
        for kernel in kernels:
            table.add(kernel, self.launches[self.number])
            self.number += 1
        self.tables.append(table.emit())


class _Table:
    def __init__(self, spmd: Tabled, name: str) -> None:
        self.spmd, self.name = spmd, name
        self.rows: list[int] = []
        self.functions: dict[str, int] = {}
        self.signatures: dict[tuple[int, int], int] = {}  # how many numbers and places they take
        self.starts: dict[Dim, int] = {ZERO: 0}
        self.consts: dict[str, int] = {}
        self.smalls: dict[str, int] = {}
        self.known: dict[tuple[Dim, bool], str] = {}
        plan = spmd.plan
        self.state = plan.alone, plan.skipped  # at the start
        self.alone, self.skipped = _known(plan.alone), _known(plan.skipped)

    # ---- rows -----------------------------------------------------------------------------------

    def add(self, kernel: Kernel, launch: Launch) -> None:
        small = self.small(kernel)
        needs = self.needs(kernel, _known(small))
        signature = (len(launch.numbers), len(launch.places))
        self.rows += (
            self.functions.setdefault(launch.name, len(self.functions)),
            self.signatures.setdefault(signature, len(self.signatures)),
            self.smalls.setdefault(small, len(self.smalls)),
            needs,
            sum(signature),
        )
        for n in launch.numbers:
            self.value(NUMBERS, 0, Dim.of(n))
        for b, start in launch.places:
            match b.scope:
                case "const":
                    name = constant_name(self.spmd.symbol, b)
                    table, at = CONSTS, self.consts.setdefault(name, len(self.consts))
                case "arena":
                    offsets = self.spmd.offsets
                    table, at = PLACES, offsets.setdefault(b.offset, len(offsets))
                case _:
                    assert b.scope == "arg", b
                    table, at = ARGS, b.slot
            self.value(table, at, start * DTYPES[b.type.dtype].bytes)

    def value(self, table: int, at: int, start: Dim) -> None:
        assert at < 1 << 24, at
        self.rows += (table << 24 | at, self.starts.setdefault(start, len(self.starts)))

    def small(self, kernel: Kernel) -> str:
        key = (at_most(kernel.work, set()), is_parallel(kernel))
        if key not in self.known:
            self.known[key] = all_small(self.spmd.s, (kernel,))
        return self.known[key]

    def needs(self, kernel: Kernel, small: bool | None) -> int:
        """What `Plan.barrier_before` emits, as far as it is known; the rest is found on the way."""
        plan = self.spmd.plan
        access = plan.touched(accesses(kernel))
        needs = 1 if plan.conflict(access, plan.recent) else 0
        if not needs and self.skipped is not False and plan.conflict(access, plan.older):
            needs = 2
        if needs:
            wanted = _and(True if needs == 1 else self.skipped, _not(_and(self.alone, small)))
            if wanted:
                plan.older = Touched()
            else:
                plan.older.add(plan.recent)
            plan.recent = Touched()
            self.skipped = _not(wanted)
            self.alone = _not(_and(_not(wanted), _not(self.alone)))
        plan.recent.add(access)
        self.alone = _and(self.alone, small)
        return needs

    # ---- code -----------------------------------------------------------------------------------

    def emit(self) -> str:
        """Emits the call into the driver; gives the table and the loop that walks through it."""
        em, s, plan = self.spmd.em, self.spmd.s, self.spmd.plan
        starts = em.op(f"alloca [{len(self.starts)} x i64]", "starts")
        for start, i in self.starts.items():
            place = em.op(f"getelementptr i64, ptr {starts}, i64 {i}")
            em.line(f"store i64 {s.uniform(start).text}, ptr {place}")
        smalls = em.op(f"alloca [{len(self.smalls)} x i8]", "smalls")
        for small, i in self.smalls.items():
            place = em.op(f"getelementptr i8, ptr {smalls}, i64 {i}")
            em.line(f"store i8 {em.op(f'zext i1 {small} to i8')}, ptr {place}")
        alone, skipped = self.state
        state = em.op(
            f"call {{ i1, i1 }} {self.name}.walk(ptr %own, ptr %team, i32 %nt, ptr {starts}, "
            f"ptr {smalls}, i1 {alone}, i1 {skipped})",
            "state",
        )
        plan.alone = em.op(f"extractvalue {{ i1, i1 }} {state}, 0", "alone")
        plan.skipped = em.op(f"extractvalue {{ i1, i1 }} {state}, 1", "skipped")
        return "\n".join([*self.data(), self.walk()])

    def data(self) -> list[str]:
        name = self.name
        rows = ", ".join([f"i32 {x}" for x in self.rows])
        functions = ", ".join(f"ptr {f}" for f in self.functions)
        consts = ", ".join(f"ptr {c}" for c in self.consts) or "ptr null"
        return [
            f"{name}.rows = internal constant [{len(self.rows)} x i32] [{rows}]",
            f"{name}.functions = internal constant [{len(self.functions)} x ptr] [{functions}]",
            f"{name}.consts = internal constant [{max(len(self.consts), 1)} x ptr] [{consts}]",
            f"{name}.numbers = internal constant [1 x ptr] zeroinitializer",
        ]

    def walk(self) -> str:
        most = max(n + k for n, k in self.signatures)
        cases = "".join(f" i32 {i}, label %call{i}" for i in self.signatures.values())
        calls = "".join(self.call(*signature, i) for signature, i in self.signatures.items())
        text = _WALK
        for word, value in {
            "TABLE": self.name,
            "MOST": str(max(most, 1)),
            "ARGS": str(WORD["args"]),
            "PLACES": str(WORD["places"]),
            "HEAD": str(HEAD),
            "LENGTH": str(len(self.rows)),
            "CASES": cases,
            "CALLS": calls,
        }.items():
            text = text.replace(f"<{word}>", value)
        return text

    def call(self, numbers: int, places: int, i: int) -> str:
        """A call with one signature."""
        lines, given = [f"call{i}:"], ""
        for k in range(numbers + places):
            kind = "i64" if k < numbers else "ptr"
            lines.append(f"  %at{i}.{k} = getelementptr i64, ptr %values, i64 {k}")
            lines.append(f"  %x{i}.{k} = load {kind}, ptr %at{i}.{k}")
            given += f", {kind} %x{i}.{k}"
        lines.append(f"  call void %function(ptr %own, i32 %part, i32 %parts{given})")
        return "\n".join([*lines, "  br label %claim", ""])


_WALK = """\
define internal { i1, i1 } <TABLE>.walk(ptr %own, ptr %team, i32 %nt, ptr %starts, ptr %smalls, \
i1 %alone.0, i1 %skipped.0) nounwind optnone noinline {
entry:
  %values = alloca [<MOST> x i64], align 16
  %tables = alloca [4 x ptr], align 16
  %args.at = getelementptr i64, ptr %own, i64 <ARGS>
  %args = load ptr, ptr %args.at
  store ptr %args, ptr %tables
  %places.at = getelementptr i64, ptr %own, i64 <PLACES>
  %places = load ptr, ptr %places.at
  %table1 = getelementptr ptr, ptr %tables, i64 1
  store ptr %places, ptr %table1
  %table2 = getelementptr ptr, ptr %tables, i64 2
  store ptr <TABLE>.consts, ptr %table2
  %table3 = getelementptr ptr, ptr %tables, i64 3
  store ptr <TABLE>.numbers, ptr %table3
  br label %row
row:
  %at = phi i64 [ 0, %entry ], [ %at.next, %over ]
  %alone = phi i1 [ %alone.0, %entry ], [ %alone.next, %over ]
  %skipped = phi i1 [ %skipped.0, %entry ], [ %skipped.next, %over ]
  %row.at = getelementptr i32, ptr <TABLE>.rows, i64 %at
  %function.i = load i32, ptr %row.at
  %function.p = getelementptr ptr, ptr <TABLE>.functions, i32 %function.i
  %function = load ptr, ptr %function.p
  %signature.at = getelementptr i32, ptr %row.at, i64 1
  %signature = load i32, ptr %signature.at
  %small.at = getelementptr i32, ptr %row.at, i64 2
  %small.i = load i32, ptr %small.at
  %small.p = getelementptr i8, ptr %smalls, i32 %small.i
  %small.byte = load i8, ptr %small.p
  %small = icmp ne i8 %small.byte, 0
  %needs.at = getelementptr i32, ptr %row.at, i64 3
  %needs = load i32, ptr %needs.at
  %count.at = getelementptr i32, ptr %row.at, i64 4
  %count.32 = load i32, ptr %count.at
  %count = zext i32 %count.32 to i64
  %always = icmp eq i32 %needs, 1
  %if.skipped = icmp eq i32 %needs, 2
  %late = and i1 %if.skipped, %skipped
  %needed = or i1 %always, %late
  %serial = and i1 %alone, %small
  %together = xor i1 %serial, true
  %wanted = and i1 %needed, %together
  br i1 %wanted, label %wait, label %ready
wait:
  call void @nnrt_barrier(ptr %team)
  br label %ready
ready:
  %unwanted = xor i1 %wanted, true
  %any = icmp ne i32 %needs, 0
  %skipped.next = select i1 %any, i1 %unwanted, i1 %skipped
  %alone.now = or i1 %wanted, %alone
  %alone.next = and i1 %alone.now, %small
  %parts = select i1 %small, i32 1, i32 %nt
  %none = icmp eq i64 %count, 0
  br i1 %none, label %claim, label %value
value:
  %k = phi i64 [ 0, %ready ], [ %k.next, %value ]
  %twice = shl i64 %k, 1
  %word = add i64 %twice, <HEAD>
  %base.at = getelementptr i32, ptr %row.at, i64 %word
  %base = load i32, ptr %base.at
  %start.at = getelementptr i32, ptr %base.at, i64 1
  %start.i = load i32, ptr %start.at
  %start.p = getelementptr i64, ptr %starts, i32 %start.i
  %start = load i64, ptr %start.p
  %table = lshr i32 %base, 24
  %place = and i32 %base, 16777215
  %table.p = getelementptr ptr, ptr %tables, i32 %table
  %bases = load ptr, ptr %table.p
  %pointer.at = getelementptr ptr, ptr %bases, i32 %place
  %pointer = load ptr, ptr %pointer.at
  %moved = getelementptr i8, ptr %pointer, i64 %start
  %value.at = getelementptr ptr, ptr %values, i64 %k
  store ptr %moved, ptr %value.at
  %k.next = add i64 %k, 1
  %k.more = icmp slt i64 %k.next, %count
  br i1 %k.more, label %value, label %claim
claim:
  %part = call i32 @nnrt_next(ptr %team, i32 %parts)
  %got = icmp sge i32 %part, 0
  br i1 %got, label %run, label %over
run:
  switch i32 %signature, label %over [<CASES> ]
<CALLS>over:
  %pairs = shl i64 %count, 1
  %length = add i64 %pairs, <HEAD>
  %at.next = add i64 %at, %length
  %more = icmp slt i64 %at.next, <LENGTH>
  br i1 %more, label %row, label %end
end:
  %state.1 = insertvalue { i1, i1 } poison, i1 %alone.next, 0
  %state.2 = insertvalue { i1, i1 } %state.1, i1 %skipped.next, 1
  ret { i1, i1 } %state.2
}
"""


def _known(condition: str) -> bool | None:
    return {"true": True, "false": False}.get(condition)


def _not(a: bool | None) -> bool | None:
    return None if a is None else not a


def _and(a: bool | None, b: bool | None) -> bool | None:
    if a is False or b is False:
        return False
    return True if a and b else None
