"""Times of kernels: `emit(..., *profiled)` makes code that adds them up.

`ctx` then has a seventh field, a pointer to a table of i64: the last time stamp (0 before the
first), the nanoseconds between kernels, and those in each kernel of the Program, in order. All
threads wait for each other before and after each kernel, so a kernel's time is that of its slowest
thread.
"""

from __future__ import annotations

from nnc.codegen import flow
from nnc.codegen.spmd import Spmd
from nnc.ir.loop import Kernel, Step

BETWEEN, FIRST = 1, 2  # places in the table

STAMP = """\
declare i32 @clock_gettime(i32, ptr)

; Adds the time since the last stamp to a place of the table.
define internal void @nn_stamp(ptr %ctx, i64 %place) noinline {
  %time = alloca [2 x i64]
  call i32 @clock_gettime(i32 1, ptr %time)
  %seconds = load i64, ptr %time
  %rest.place = getelementptr i64, ptr %time, i64 1
  %rest = load i64, ptr %rest.place
  %whole = mul i64 %seconds, 1000000000
  %now = add i64 %whole, %rest
  %table.place = getelementptr i64, ptr %ctx, i64 6
  %table = load ptr, ptr %table.place
  %last = load i64, ptr %table
  store i64 %now, ptr %table
  %since = sub i64 %now, %last
  %first = icmp eq i64 %last, 0
  %spent = select i1 %first, i64 0, i64 %since
  %sum.place = getelementptr i64, ptr %table, i64 %place
  %before = load i64, ptr %sum.place
  %sum = add i64 %before, %spent
  store i64 %sum, ptr %sum.place
  ret void
}
"""


class Timed(Spmd):
    """Thread 0 takes the time before and after each kernel."""

    def launch(self, kernel: Kernel) -> None:
        place = FIRST + self.number
        self.together_at(BETWEEN)
        super().launch(kernel)
        self.together_at(place)

    def steps_alone(self, steps: tuple[Step, ...]) -> None:
        for step in steps:
            place = FIRST + self.number
            if isinstance(step, Kernel):
                self.stamp(BETWEEN)
            super().steps_alone((step,))
            if isinstance(step, Kernel):
                self.stamp(place)

    def together_at(self, place: int) -> None:
        self.barrier()
        with flow.when(self.em, self.em.op("icmp eq i32 %tid, 0", "first")):
            self.stamp(place)

    def stamp(self, place: int) -> None:
        self.em.line(f"call void @nn_stamp(ptr {self.s.frame_field('ctx')}, i64 {place})")


profiled = (Timed, STAMP)  # the last arguments of `llvm.emit`
