"""Where the threads of a Program must wait for each other."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

from nnc.codegen import flow
from nnc.codegen.indices import Indices
from nnc.ir.expr import Load, walk
from nnc.ir.loop import (
    Buffer,
    Contract,
    For,
    Kernel,
    Repeat,
    kernels_of,
)
from nnc.ir.statements import exprs_in, stores_in
from nnc.lang.dims import Dim, Facts, choices, evaluated, prove_nonneg

SAMPLE = 64  # what sizes are taken to be where only an order is needed
# Choices in a proof that is tried: its time doubles with each. Without one, a barrier costs 0.2 us.
_MOST = 3


Stretch = tuple[Dim, Dim]  # of the arena: start and size in bytes


@dataclass(frozen=True)
class Access:
    reads: tuple[Buffer, ...]
    writes: tuple[Buffer, ...]


@dataclass
class Touched:
    """What some kernels read and write: names of buffers, numbers of stretches of the arena."""

    read: set[str] = field(default_factory=set)
    written: set[str] = field(default_factory=set)
    read_at: set[int] = field(default_factory=set)
    written_at: set[int] = field(default_factory=set)

    def add(self, other: Touched) -> None:
        self.read |= other.read
        self.written |= other.written
        self.read_at |= other.read_at
        self.written_at |= other.written_at


class Plan:
    """Decides where a barrier is needed, as far as possible while compiling.

    A barrier is left out at run time when the kernel and all since the last one are serial.
    `recent` is what the kernels since the last place for a barrier touch, `older` what those
    before it did, which still counts when that barrier was left out.
    """

    def __init__(self, s: Indices, facts: Facts, buffers: Sequence[Buffer]) -> None:
        self.s, self.facts = s, facts
        self.order = Order(_arena(buffers), s.sizes, facts)
        self.recent, self.older = Touched(), Touched()
        self.alone = "true"  # all kernels since the last barrier were serial
        self.skipped = "false"  # the last place was passed without a barrier
        self.numbers: dict[Stretch, int] = {}
        self.stretches: list[Stretch] = []  # by their numbers
        self.meeting: dict[tuple[int, int], bool] = {}

    def passed(self) -> None:
        self.recent, self.older = Touched(), Touched()
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
        em, access = self.s.em, self.touched(accesses(step))
        needed = "true" if self.conflict(access, self.recent) else "false"
        if needed == "false" and self.skipped != "false" and self.conflict(access, self.older):
            needed = self.skipped
        if needed != "false":
            serial = flow.conjunction(em, self.alone, small)
            wanted = flow.conjunction(em, needed, flow.negate(em, serial))
            if wanted != "false":
                with flow.when(em, wanted):
                    em.line("call void @nnrt_barrier(ptr %team)")
            if wanted == "true":
                self.older = Touched()
            else:
                self.older.add(self.recent)
            self.recent = Touched()
            self.skipped = flow.negate(em, wanted)
            self.alone = flow.disjunction(em, wanted, self.alone)
        self.recent.add(access)
        self.alone = flow.conjunction(em, self.alone, small)

    def touched(self, a: Access) -> Touched:
        names = [{b.name for b in x} for x in (a.reads, a.writes)]
        places = [set(map(self.stretch, _arena(x))) for x in (a.reads, a.writes)]
        return Touched(names[0], names[1], places[0], places[1])

    def stretch(self, b: Buffer) -> int:
        """The number of the bytes where a buffer of the arena lies."""
        key = (b.offset, b.bytes)
        if key not in self.numbers:
            self.numbers[key] = len(self.stretches)
            self.stretches.append(key)
        return self.numbers[key]

    def conflict(self, a: Touched, before: Touched) -> bool:
        """Whether memory that one of them writes may be memory of the other; proofs come last."""
        if not (a.read | a.written).isdisjoint(before.written):
            return True
        if not a.written.isdisjoint(before.read):
            return True
        pairs = ((a.read_at | a.written_at, before.written_at), (a.written_at, before.read_at))
        return any(self.meet(x, y) for xs, ys in pairs for x in xs for y in ys)

    def meet(self, x: int, y: int) -> bool:
        """Whether two stretches may share bytes."""
        found = self.meeting.get((x, y))
        if found is None:
            found = self.meeting[x, y] = self.meeting[y, x] = self._meet(x, y)
        return found

    def _meet(self, x: int, y: int) -> bool:
        (a, long), (b, wide) = self.stretches[x], self.stretches[y]
        if self.order.apart(a, long, b) or self.order.apart(b, wide, a):
            return False
        return not any(_known(d, self.facts) for d in (b - a - long, a - b - wide))


class Order:
    """The places of the arena, one behind the other: in most pairs each ends where the next begins,
    so that one proof a place tells about all pairs."""

    def __init__(self, buffers: Iterable[Buffer], sizes: Sequence[str], facts: Facts) -> None:
        sample = {d: SAMPLE + i for i, d in enumerate(sizes)}
        longest: dict[Dim, set[Dim]] = {}
        for x in buffers:
            longest.setdefault(x.offset, set()).add(x.bytes)
        place = evaluated(longest, sample)
        starts = sorted(longest, key=lambda d: place[d])
        self.number = {d: i for i, d in enumerate(starts)}
        self.run = [0] * len(starts)  # places of one run follow each other surely
        self.within: set[Stretch] = set()  # stretches that end before the next place
        for i, (a, b) in enumerate(pairwise(starts)):
            room = b - a
            inside = {n for n in longest[a] if _known(room - n, facts)}
            self.within |= {(a, n) for n in inside}
            self.run[i + 1] = self.run[i] + (not inside)

    def apart(self, start: Dim, size: Dim, other: Dim) -> bool:
        """Whether a stretch surely ends before another begins."""
        a, b = self.number.get(start), self.number.get(other)
        if a is None or b is None or a >= b or self.run[a] != self.run[b]:
            return False
        return (start, size) in self.within


@lru_cache(maxsize=1 << 12)
def _known(d: Dim, facts: Facts) -> bool:
    """Whether it is known not to be negative; short proofs only."""
    return len(choices(d)) <= _MOST and prove_nonneg(d, facts, depth=1)


def _arena(buffers: Iterable[Buffer]) -> Iterator[Buffer]:
    return (b for b in buffers if b.scope == "arena")


def is_parallel(kernel: Kernel) -> bool:
    """Whether several threads take part in it."""
    memo: dict[Hashable, object] = {} if kernel.alike is None else kernel.alike.pattern.memo
    if "parallel" not in memo:
        memo["parallel"] = any(
            isinstance(s, Contract) or (isinstance(s, For) and s.kind == "parallel")
            for s in kernel.body
        )
    return bool(memo["parallel"])


def accesses(step: Kernel | Repeat) -> Access:
    """The buffers outside of kernels that it reads and writes, each name once."""
    if isinstance(step, Repeat):
        inner = [accesses(k) for k in kernels_of((step,))]
        read = {b.name: b for a in inner for b in a.reads}
        write = {b.name: b for a in inner for b in a.writes}
        return Access(tuple(read.values()), tuple(write.values()))
    if step.alike is not None:
        return Access(_outside(step.alike.loaded), _outside(step.alike.stored))
    kernel, reads = step, dict[str, Buffer]()
    for e in walk(*exprs_in(kernel.body)):
        if isinstance(e, Load):
            assert isinstance(e.tensor, Buffer), e
            reads.setdefault(e.tensor.name, e.tensor)
    writes: dict[str, Buffer] = {}
    for s in stores_in(kernel.body):
        writes.setdefault(s.buffer.name, s.buffer)
        if s.accumulate:
            reads.setdefault(s.buffer.name, s.buffer)
    return Access(_outside(reads.values()), _outside(writes.values()))


def _outside(buffers: Iterable[Buffer]) -> tuple[Buffer, ...]:
    return tuple(b for b in buffers if b.scope in ("arg", "arena"))
