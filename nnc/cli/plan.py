"""`nnc plan`: the memory of one call, as formulas and numbers, by source line.

What the runtime allocates for a call is its workspace (the arena, then each thread's scratch); the
arguments and results are the caller's arrays.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nnc import driver
from nnc.cli.explain import where
from nnc.cli.options import overrides, sizes
from nnc.codegen import llvm
from nnc.codegen.replaced import copies
from nnc.codegen.target import host
from nnc.compiler import Scheduled, work_of
from nnc.errors import ArgumentError, ShapeError, nearest
from nnc.ir.graph import Grad, all_nodes
from nnc.ir.loop import Buffer
from nnc.ir.signature import Copy, ExportSig
from nnc.lang.dims import Dim, dim_sum
from nnc.passes.memory import lifetimes, rounded
from nnc.passes.peak import Peak, bytes_of, peak
from nnc.runtime.available import cpu_count, physical
from nnc.runtime.away import LEAST
from nnc.runtime.cpu import largest_sizes
from nnc.runtime.memory import byte_count, human
from nnc.runtime.modules import SERIAL

_LINES = 20  # of the table


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one call: formulas in the run-time sizes. `values`: what shares the arena."""

    arguments: Dim
    results: Dim
    arena: Dim
    scratch: Dim  # for each thread
    values: tuple[Buffer, ...]
    spans: Mapping[str, tuple[int, int]]  # of values: the first and the last moment of use
    differentiated: bool  # values wait for a gradient
    kept: int = 0  # bytes of the arena that calls keep
    copies: tuple[tuple[Copy, int], ...] = ()  # of it, and the bytes of what each may replace

    def note(self) -> list[str]:
        """What is to be said of the workspace."""
        text = "of read-only modules stay in the workspace from call to call"
        return [f"{self.kept:,} bytes of packed weights and values {text}"] if self.kept else []

    def replaced(self, env: Mapping[str, int]) -> list[str]:
        """Arguments that are not in memory while packed copies of them are."""
        size = sum(n for c, n in self.copies if c.needed(env) and c.replaces(env) and n >= LEAST)
        text = "of arguments are given back while calls like this one use their copies"
        return [f"{size:,} bytes {text}"] if size else []

    def workspace(self, threads: int) -> Dim:
        return self.arena + self.scratch * threads

    def total(self, threads: int) -> Dim:
        return self.arguments + self.results + self.workspace(threads)


def plan(args: argparse.Namespace) -> int:
    """Prints formulas; with sizes also bytes, largest values first."""
    env = sizes(args.sizes)
    limit = None if args.max_memory is None else byte_count(args.max_memory)
    budget = None if limit is None else driver.Budget(limit, env, args.function)
    given = overrides(args.define)
    found = chosen(args.model, args.function, given, env, budget, args.winograd)
    threads = cpu_count() if args.threads is None else args.threads
    if threads < 1:
        raise ArgumentError("--threads must be at least 1")
    if env or not found.program.dims:
        check_sizes(found.built.signature, found.program.dims, env)
        threads = 1 if work_of(found.program).evaluate(env) < SERIAL else threads
        rows = _numbers(memory_plan(found), env, threads, args.all)
    else:
        rows = _formulas(memory_plan(found), threads)
    if found.choice is not None:
        rows = [str(found.choice), "", *rows]
    print("\n".join(rows))
    return 0


def chosen(
    path: str,
    function: str,
    given: Mapping[str, Mapping[str, object]],
    env: Mapping[str, int] | None = None,
    budget: driver.Budget | None = None,
    winograd: bool = False,
) -> Scheduled:
    """One export of a file, or its variant for the sizes `env`.

    ArgumentError when there is none of this name.
    """
    every = driver.schedule_file(path, given, budget, winograd)
    found = {s.name: s for s in every}
    if function not in found:
        raise ArgumentError(f"{path} exports no {function!r}{nearest(function, found)}")
    own = [s for s in every if s.special is not None and s.special.export == function]
    fitting = (s for s in own if s.special and dict(s.special.sizes).items() <= (env or {}).items())
    return next(fitting, found[function])


def memory_plan(found: Scheduled) -> MemoryPlan:
    program = found.program
    count = len(program.args) - program.results
    module = llvm.emit(program, host(), found.built.signature.symbol)
    return MemoryPlan(
        dim_sum(b.bytes for b in program.args[:count]),
        dim_sum(b.bytes for b in program.args[count:]),
        rounded(program.arena),
        module.scratch,
        tuple(b for b in program.buffers if b.scope == "arena"),
        lifetimes(program),
        any(isinstance(n, Grad) for n in all_nodes(found.built.graph)),
        program.kept,
        tuple(
            (c, program.args[c.leaf].bytes.evaluate({}))
            for c in copies(program, host())
            if c.leaf >= 0
        ),
    )


def check_sizes(sig: ExportSig, dims: tuple[str, ...], env: Mapping[str, int]) -> None:
    """ArgumentError for unknown or missing names, ShapeError for sizes that a call would refuse."""
    for name in env:
        if name not in dims:
            known = ", ".join(dims) or "none"
            raise ArgumentError(f"{sig.name} has no size {name} (its sizes: {known})")
    missing = [n for n in dims if n not in env]
    if missing:
        flags = " ".join(f"--{n} 8" for n in missing)
        raise ArgumentError(f"the size of {', '.join(missing)} is missing: add {flags}")
    asked = {a.name for a in sig.args if a.kind == "dim"}  # these may be 0
    for name, size in env.items():
        if size < 1 and name not in asked:
            raise ShapeError(f"{sig.name}: {name} must be at least 1, got {size}")
    for check in sig.checks:
        value = check.dim.evaluate(env)
        if value < 0 or (check.equal and value):
            raise ShapeError(f"{sig.name}: these sizes do not fulfil {check.text} ({check.place})")


def _formulas(found: MemoryPlan, threads: int) -> list[str]:
    rows = [
        ("arguments", found.arguments),
        ("results", found.results),
        (_workspace(threads), found.workspace(threads)),
        ("all", found.total(threads)),
    ]
    width = max(len(name) for name, _ in rows)
    head = [f"{name:{width}}  {formula} bytes" for name, formula in rows] + found.note()
    return [*head, *_table([(*_at(b), b.name, str(b.bytes)) for b in found.values])]


def _numbers(found: MemoryPlan, env: Mapping[str, int], threads: int, every: bool) -> list[str]:
    rows = [
        ("arguments", found.arguments),
        ("results", found.results),
        (_workspace(threads), found.workspace(threads)),
        ("all", found.total(threads)),
    ]
    numbers = [(name, dim.evaluate(env), dim) for name, dim in rows]
    width = max(len(name) for name, _, _ in numbers)
    digits = max(len(f"{n:,}") for _, n, _ in numbers)
    out = [f"{name:{width}}  {n:>{digits},} bytes = {dim}" for name, n, dim in numbers]
    out += [*found.note(), *found.replaced(env)]
    total = numbers[-1][1]
    verdict = "fits" if total <= physical() else "does not fit"
    out.append(f"{human(total)} of {human(physical())}: {verdict}")
    largest = largest_sizes(numbers[-1][2], env, physical()) if total > physical() else []
    if largest:
        out.append("help: fits with " + ", or ".join(f"{n} <= {v}" for n, v in largest))
    if not found.values:
        return out
    arena, most = found.arena.evaluate(env), at_peak(found, env)
    alive = most.alive
    together = sum(b.bytes.evaluate(env) for b in found.values)
    in_use = bytes_of(alive).evaluate(env)
    text = f"values in the workspace: {together:,} bytes share {arena:,} bytes"
    out += _split(found, most, env)
    out += ["", f"{text}; in use at the peak: {in_use:,} bytes, by line:"]
    rows_of = _each if every else _by_line
    return [*out, *_table(rows_of(found, alive, env))[1:]]


def _by_line(
    found: MemoryPlan, alive: Sequence[Buffer], env: Mapping[str, int]
) -> list[tuple[str, ...]]:
    """What is in use at the peak, the reader's lines with most first; then how much the rest is."""
    lines: dict[str, list[Buffer]] = {}
    for b in alive:
        lines.setdefault(where(b.span.own), []).append(b)
    sums = {at: dim_sum(b.bytes for b in values) for at, values in lines.items()}
    order = sorted(sums, key=lambda at: -sums[at].evaluate(env))
    rows: list[tuple[str, ...]] = [
        (at, _named(lines[at], env), f"{sums[at].evaluate(env):,}", f"= {sums[at]}")
        for at in order[:_LINES]
    ]
    rest = order[_LINES:]
    if rest:
        total = sum(sums[at].evaluate(env) for at in rest)
        rows.append((f"{len(rest)} more lines", "--all shows each value", f"{total:,}", ""))
    return rows


def _named(values: Sequence[Buffer], env: Mapping[str, int]) -> str:
    """The largest value by name, and how many more."""
    largest = max(values, key=lambda b: b.bytes.evaluate(env)).name
    return largest if len(values) == 1 else f"{largest} and {len(values) - 1} more"


def _each(
    found: MemoryPlan, alive: Sequence[Buffer], env: Mapping[str, int]
) -> list[tuple[str, ...]]:
    """Every value, largest first; a star: in use at the peak."""
    values = sorted(found.values, key=lambda b: -b.bytes.evaluate(env))
    return [
        (*_at(b), b.name, "*" * (b in alive), f"{b.bytes.evaluate(env):,}", f"= {b.bytes}")
        for b in values
    ]


def _split(found: MemoryPlan, at: Peak, env: Mapping[str, int]) -> list[str]:
    """What waits at the peak to be read later, and what is being made and read."""
    later = "kept for backward" if found.differentiated else "kept for later"
    rows = []
    for label, values in ((later, at.waiting), ("being made and read", at.busy)):
        if values:
            top = max(values, key=lambda b: b.bytes.evaluate(env))
            size = f"{top.bytes.evaluate(env):,}"
            largest = f"largest: {top.name}, {where(top.span.own)}, {size}"
            formula = bytes_of(values)
            rows.append((label, f"{formula.evaluate(env):,}", f"= {formula}; {largest}"))
    return _table(rows)[1:]


def at_peak(found: MemoryPlan, env: Mapping[str, int]) -> Peak:
    """The values in use at the moment when they are most."""
    return peak(found.values, found.spans, env)


def _at(b: Buffer) -> tuple[str, str]:
    """The reader's line, and the library's where that is another."""
    return where(b.span.own), "" if b.span.own is b.span else where(b.span)


def _workspace(threads: int) -> str:
    return "workspace, 1 thread" if threads == 1 else f"workspace, {threads} threads"


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return ["", *(f"  {line.rstrip()}" for line in lines)]
