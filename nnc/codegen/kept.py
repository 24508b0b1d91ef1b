"""Kept values: what a call finds in its workspace from an earlier one (`Buffer.kept`).

The sixth word of `ctx` says what the caller knows of the start of the workspace:

    NOTHING  values are computed, copies are not there (what they are copies of is read)
    RIGHT    it is as a call with RIGHT or MAKE left it, and no module that it was computed from has
             changed
    MAKE     nothing, but it is worth computing all of it
    ONE + n  nothing; kept buffer number n is computed, and that is all
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from nnc.codegen import flow
from nnc.codegen.emit import Emitter
from nnc.ir.calltable import MAKE, NOTHING, ONE, RIGHT
from nnc.ir.expr import Load
from nnc.ir.loop import Buffer, Contract, Kernel, Program, Step
from nnc.ir.statements import stores_in
from nnc.lang.dims import ZERO, Dim, dim_max, dim_prod

WORD = 5  # of ctx; the next is the profiler's


@dataclass(frozen=True)
class State:
    """Conditions (i1): copies are there (or will be); values, copies are to be computed; only one
    of them is. The word itself."""

    copies: str
    make: dict[str, str]
    one: str
    word: str


def state(em: Emitter, ctx: str) -> State:
    """Reads the word."""
    place = em.op(f"getelementptr i64, ptr {ctx}, i64 {WORD}", "kept")
    word = em.op(f"load i64, ptr {place}", "kept")
    make = {
        "value": flow.compare(em, "ne", word, str(RIGHT)),
        "copy": flow.compare(em, "sge", word, str(MAKE)),
    }
    one = flow.compare(em, "sge", word, str(ONE))
    return State(flow.compare(em, "ne", word, str(NOTHING)), make, one, word)


def wanted(em: Emitter, state: State, number: int) -> str:
    """Whether (an i1) this buffer is to be made where some of its kind are."""
    this = flow.compare(em, "eq", state.word, str(ONE + number))
    return flow.select(em, state.one, "i1", this, "true")


def rows(program: Program) -> Dim:
    """With how many rows, at most, kept copies are multiplied: one row does not read them."""
    steps = program.steps[: program.prologue]
    out = Dim.of(2) if any(target(s).kept == "value" for s in steps) else ZERO
    for kernel in program.kernels:
        if kernel.alike is not None:  # as it was lowered
            continue
        match kernel.body:
            case (Contract(copied=True) as c,):
                out = dim_max(out, dim_prod(a.extent for a in (*c.batch, *c.m)))
            case (Contract(turned=Load()) as c,):
                out = dim_max(out, dim_prod(a.extent for a in (*c.batch, *c.n)))
    return out


def stretches(
    prologue: Sequence[Step],
) -> Iterator[tuple[str, tuple[tuple[int, tuple[Step, ...]], ...]]]:
    """The kernels for values, those for copies, as long as there are some; of each kind those of
    every buffer, with its number."""
    made = [(target(steps[0]), steps) for steps in buffers(prologue)]
    for kind in dict.fromkeys(b.kept for b, _ in made):
        yield kind, tuple((i, s) for i, (b, s) in enumerate(made) if b.kept == kind)


def buffers(prologue: Sequence[Step]) -> list[tuple[Step, ...]]:
    """The kernels that make each kept buffer."""
    return [tuple(steps) for _, steps in groupby(prologue, lambda s: target(s).name)]


def target(step: Step) -> Buffer:
    """What a kernel of the prologue makes."""
    assert isinstance(step, Kernel), step
    (buffer,) = {s.buffer for s in stores_in(step.body) if s.buffer.scope != "local"}
    return buffer
