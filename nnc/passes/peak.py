"""What is in the workspace of a call at the moment when it holds most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from nnc.ir.loop import Buffer, Program
from nnc.ir.signature import Use
from nnc.lang.dims import Dim, dim_sum
from nnc.passes.memory import lifetimes

_SIZE = 64  # of every run-time size, where the moment must be known without them


@dataclass(frozen=True)
class Peak:
    """Values that wait to be read later, and values that are being made and read."""

    waiting: tuple[Buffer, ...]
    busy: tuple[Buffer, ...]

    @property
    def alive(self) -> tuple[Buffer, ...]:
        return (*self.waiting, *self.busy)


def peak(
    values: Sequence[Buffer], spans: Mapping[str, tuple[int, int]], env: Mapping[str, int]
) -> Peak:
    """`spans`: of values by name, the first and the last moment of use."""
    change: dict[int, int] = {}
    for b in values:
        first, last = spans[b.name]
        change[first] = change.get(first, 0) + b.bytes.evaluate(env)
        change[last + 1] = change.get(last + 1, 0) - b.bytes.evaluate(env)
    moments = sorted(change)
    sums = list(accumulate(change[m] for m in moments))
    at = moments[sums.index(max(sums))] if sums else 0
    alive = [b for b in values if spans[b.name][0] <= at <= spans[b.name][1]]
    waiting = tuple(b for b in alive if spans[b.name][0] < at < spans[b.name][1])
    return Peak(waiting, tuple(b for b in alive if b not in waiting))


def uses(program: Program) -> tuple[Use, ...]:
    """The split for messages of a program that runs without its compiler."""
    values = [b for b in program.buffers if b.scope == "arena"]
    found = peak(values, lifetimes(program), dict.fromkeys(program.dims, _SIZE))
    rows = (("kept for later", found.waiting), ("being made and read", found.busy))
    return tuple(_use(label, some) for label, some in rows if some)


def _use(label: str, values: Sequence[Buffer]) -> Use:
    env = dict.fromkeys({n for b in values for n in b.bytes.names}, _SIZE)
    top = max(values, key=lambda b: b.bytes.evaluate(env))
    own = top.span.own
    place = f"{own.source.name}:{own.line}"
    return Use(label, bytes_of(values), top.name, place, top.bytes)


def bytes_of(values: Sequence[Buffer]) -> Dim:
    return dim_sum(b.bytes for b in values)
