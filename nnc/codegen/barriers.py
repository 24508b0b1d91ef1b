"""Where the threads of a Program must wait for each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nnc.codegen import flow
from nnc.codegen.emit import Emitter
from nnc.codegen.indices import Indices
from nnc.codegen.loops import stores
from nnc.ir.expr import Expr, Load, walk
from nnc.ir.loop import (
    Buffer,
    Call,
    Contract,
    For,
    Kernel,
    Let,
    Reduce,
    Repeat,
    Stmt,
    Store,
    kernels_of,
)
from nnc.lang.dims import Dim, Facts, prove_nonneg

_MOST = 3  # choices in a proof that is tried; without one, a barrier costs 0.2 us


@dataclass(frozen=True)
class Access:
    reads: tuple[Buffer, ...]
    writes: tuple[Buffer, ...]


class Plan:
    """Decides where a barrier is needed, as far as possible while compiling.

    A barrier is left out at run time when the kernel and all since the last one are serial.
    `recent` are the kernels since the last place for a barrier, `older` those
    before it, which still count when that barrier was left out.
    """

    def __init__(self, s: Indices, facts: Facts) -> None:
        self.s, self.facts = s, facts
        self.recent: list[Access] = []
        self.older: list[Access] = []
        self.alone = "true"  # all kernels since the last barrier were serial
        self.skipped = "false"  # the last place was passed without a barrier
        self.meeting: dict[tuple[tuple[Dim, Dim], tuple[Dim, Dim]], bool] = {}

    def passed(self) -> None:
        self.recent, self.older = [], []
        self.alone, self.skipped = "true", "false"

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Inside of a loop that `barrier_before` was asked about."""
        saved = self.recent, self.older, self.alone, self.skipped
        self.passed()
        yield
        self.recent, self.older, self.alone, self.skipped = saved

    def barrier_before(self, step: Kernel | Repeat, small: str) -> None:
        """Emits what is needed before a step that, if `small`, is serial."""
        em, access = self.s.em, accesses(step)
        needed = "true" if self.conflict(access, self.recent) else "false"
        if needed == "false" and self.skipped != "false" and self.conflict(access, self.older):
            needed = self.skipped
        if needed != "false":
            serial = conjunction(em, self.alone, small)
            wanted = conjunction(em, needed, flow.negate(em, serial))
            if wanted != "false":
                with flow.when(em, wanted):
                    em.line("call void @nnrt_barrier(ptr %team)")
            self.older = [] if wanted == "true" else self.older + self.recent
            self.recent = []
            self.skipped = flow.negate(em, wanted)
            self.alone = disjunction(em, wanted, self.alone)
        self.recent.append(access)
        self.alone = conjunction(em, self.alone, small)

    def conflict(self, a: Access, before: list[Access]) -> bool:
        return any(
            self.overlap(a.reads, b.writes) or self.overlap(a.writes, (*b.writes, *b.reads))
            for b in reversed(before)
        )

    def overlap(self, xs: tuple[Buffer, ...], ys: tuple[Buffer, ...]) -> bool:
        """Whether some of two sets of buffers may share memory; proofs come last."""
        if {x.name for x in xs} & {y.name for y in ys}:
            return True
        ours = {(x.offset, x.bytes) for x in xs if x.scope == "arena"}
        theirs = {(y.offset, y.bytes) for y in ys if y.scope == "arena"}
        return any(self.meet(x, y) for x in ours for y in theirs)

    def meet(self, x: tuple[Dim, Dim], y: tuple[Dim, Dim]) -> bool:
        """Whether two stretches of the arena (start and size) may share bytes."""
        if (x, y) not in self.meeting:
            apart = (y[0] - x[0] - x[1], x[0] - y[0] - y[1])
            self.meeting[x, y] = not any(
                _choices(d) <= _MOST and prove_nonneg(d, self.facts, depth=1) for d in apart
            )
        return self.meeting[x, y]


def _choices(d: Dim) -> int:
    """How many min and max it holds: the time of a proof doubles with each."""
    found, left = 0, d.funcs()
    while left:
        f = left.pop()
        found += f.kind in ("min", "max")
        left += f.a.funcs() + f.b.funcs()
    return found


def conjunction(em: Emitter, a: str, b: str) -> str:
    if "false" in (a, b):
        return "false"
    if a == "true":
        return b
    return a if b == "true" else em.op(f"and i1 {a}, {b}", "and")


def disjunction(em: Emitter, a: str, b: str) -> str:
    return flow.negate(em, conjunction(em, flow.negate(em, a), flow.negate(em, b)))


def is_parallel(kernel: Kernel) -> bool:
    """Whether several threads take part in it."""
    return any(
        isinstance(s, Contract) or (isinstance(s, For) and s.kind == "parallel")
        for s in kernel.body
    )


def accesses(step: Kernel | Repeat) -> Access:
    """The buffers outside of kernels that it reads and writes, each name once."""
    if isinstance(step, Repeat):
        inner = [accesses(k) for k in kernels_of((step,))]
        read = {b.name: b for a in inner for b in a.reads}
        write = {b.name: b for a in inner for b in a.writes}
        return Access(tuple(read.values()), tuple(write.values()))
    kernel, reads = step, dict[str, Buffer]()
    for e in walk(*expressions(kernel.body)):
        if isinstance(e, Load):
            assert isinstance(e.tensor, Buffer), e
            reads.setdefault(e.tensor.name, e.tensor)
    writes: dict[str, Buffer] = {}
    for s in stores(kernel.body):
        writes.setdefault(s.buffer.name, s.buffer)
        if s.accumulate:
            reads.setdefault(s.buffer.name, s.buffer)
    return Access(_outside(reads.values()), _outside(writes.values()))


def _outside(buffers: Iterable[Buffer]) -> tuple[Buffer, ...]:
    return tuple(b for b in buffers if b.scope in ("arg", "arena"))


def expressions(body: Iterable[Stmt]) -> list[Expr]:
    """All expressions of the statements, however deep."""
    out: list[Expr] = []
    stack = list(body)
    while stack:
        match stack.pop():
            case For(body=inner):
                stack.extend(inner)
            case Let(value=value) | Reduce(value=value):
                out.append(value)
            case Store(index=index, value=value, guard=guard):
                out += [*index, value, *([] if guard is None else [guard])]
            case Contract(a=a, b=b, epilogue=epilogue, panels=panels):
                out += [a, b, *([] if panels is None else [panels])]
                stack.extend(epilogue)
            case Call(inputs=inputs):
                out += inputs
    return out
