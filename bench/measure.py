"""Timing in alternation: every round times each candidate once, so that drift hits all alike."""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.workload import Call, Case, Missing, numbers

IDLE = 0.2  # seconds before a candidate's turn: the workers of the one before stop spinning
TURN = 3  # samples in a turn
LONG = 0.05  # seconds: a call of this length needs no call before it to wake the workers


@dataclass(frozen=True)
class Row:
    """One candidate of a workload: seconds of a call, the median, the first decile and the longest;
    `ratio`: its time over nnc's (> 1: nnc is faster), the median of the rounds; `how`: its set-up;
    `ready`: seconds until its first result, compilation and the like."""

    candidate: str
    seconds: float
    low: float
    high: float
    ratio: float
    note: str = ""
    how: str = ""
    ready: float = 0.0


@dataclass(frozen=True)
class Prepared:
    """What `prepare` has found, by candidate: its call, its set-up, seconds to its first result; why
    it is missing; in what its result differs."""

    calls: dict[str, Call] = field(default_factory=dict)
    how: dict[str, str] = field(default_factory=dict)
    ready: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


class TooLong(BaseException):
    """A candidate's compilation has run into the cap (no Exception: nobody may catch it inside)."""


@dataclass(frozen=True)
class Roof:
    """What the machine reaches with the threads of the run: FLOP/s on registers, bytes/s read."""

    flop: float
    read: float

    def seconds(self, flop: float, read: float) -> float:
        """What so many operations and bytes take at least."""
        return max(flop / self.flop, read / self.read)


@dataclass(frozen=True)
class Result:
    """One workload with its candidates. `best`: the best peer's time over nnc's, 0 if there is none;
    `quiet`: the same of the shortest samples, which other work on the machine disturbs least;
    `roof`: nnc's share of the machine's limit, 0 if unknown."""

    name: str
    title: str
    threads: int
    rows: tuple[Row, ...]
    missing: Mapping[str, str]
    best: float
    quiet: float
    roof: float
    demand: float
    aim: float
    rounds: int
    note: str = ""


def machine() -> dict[str, str]:
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    flags = set(Path("/proc/cpuinfo").read_text().split())
    isa = {"avx512f": "AVX-512", "amx_tile": "AMX", "avx2": "AVX2", "avx512_vnni": "VNNI"}
    return {
        "cpu": cpu,
        "isa": ", ".join(name for flag, name in isa.items() if flag in flags),
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "command": " ".join(["python -m bench", *sys.argv[1:]]),
        "load": " ".join(f"{x:.1f}" for x in os.getloadavg()),
    }


def prepare(case: Case, wanted: Sequence[str], cap: float = 0) -> Prepared:
    """Makes the candidates and compares their results; none but nnc may take longer than `cap`
    seconds (0: as long as it takes)."""
    out = Prepared()
    reference: list[Any] | None = None
    for name in ("nnc", *(n for n in wanted if n != "nnc")):
        if name not in case.makers:
            continue
        start = time.perf_counter()
        try:
            with at_most(0 if name == "nnc" else cap):
                call = case.makers[name]()
                first = numbers(call())
                out.ready[name] = time.perf_counter() - start
                found = [first, *(numbers(call()) for _ in range(case.checks - 1))]
        except (Exception, TooLong) as e:  # a peer that fails is a line of the table
            out.missing[name] = reason(e)
            continue
        if reference is None:
            reference = found
        elif difference := _difference(found, reference, case.tolerance):
            out.notes[name] = difference
        out.calls[name] = call
        out.how[name] = getattr(call, "how", "")
    return out


def ready(found: Prepared) -> str:
    """When each candidate was ready, or why it is not; what differs."""
    parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in found.ready.items())
    more = {**found.missing, **found.notes}
    lines = [f"  {name:14}{why[:160]}" for name, why in more.items()]
    return "\n".join([f"ready after {parts or 'nothing'}", *lines])


def reason(error: BaseException) -> str:
    """Why a candidate is missing, in one line."""
    if isinstance(error, Missing | TooLong):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join([f"{type(error).__name__}:", *lines[:2]])


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises TooLong inside when its body takes longer; 0: never."""

    def stop(*_: object) -> None:
        raise TooLong(f"not ready after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _difference(found: Sequence[Any], want: Sequence[Any], tolerance: float) -> str:
    for i, (x, y) in enumerate(zip(found, want, strict=True)):
        if x.size != y.size:
            return f"RESULT HAS SHAPE {x.shape}, NOT {y.shape}"
        error = float(np.max(np.abs(x.reshape(y.shape) - y)) / max(1e-9, float(np.max(np.abs(y)))))
        if not error <= tolerance:
            return f"RESULT {i} DIFFERS: {error:.1e} of the largest"
    return ""


def alternate(
    candidates: Mapping[str, Callable[[], object]],
    seconds: float = 3.0,
    inner: int = 0,
    idle: float = IDLE,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Times the candidates in turn for about `seconds`, at least 5 rounds; each sample is the mean
    of `inner` calls (0: as many as take about 2 ms)."""
    loops: dict[str, int] = {}
    once: dict[str, float] = {}
    for name, run in candidates.items():
        for _ in range(2):
            run()
        start = clock()
        run()
        once[name] = clock() - start
        loops[name] = inner or max(1, min(1000, int(2e-3 / max(once[name], 1e-7))))
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(samples.values()))) < 5:
        for name, run in candidates.items():
            n = loops[name]
            time.sleep(idle)
            for _ in range(TURN):
                if once[name] < LONG:
                    run()  # wakes this candidate's workers
                start = clock()
                for _ in range(n):
                    run()
                samples[name].append((clock() - start) / n)
    return samples


def summarise(
    name: str,
    case: Case,
    threads: int,
    samples: Mapping[str, Sequence[float]],
    prepared: Prepared,
    roof: Roof,
) -> Result:
    base = samples.get("nnc")
    rows = []
    for who, times in samples.items():
        ratio = median(t / b for t, b in zip(times, base, strict=True)) if base else 0.0
        about = (prepared.notes.get(who, ""), prepared.how.get(who, ""), prepared.ready.get(who, 0))
        rows.append(Row(who, median(times), _low(times), max(times), ratio, *about))
    best = min((r.ratio for r in rows if r.candidate != "nnc"), default=0.0)
    others = [_low(times) for who, times in samples.items() if who != "nnc"]
    quiet = min(others, default=0.0) / _low(base) if base else 0.0
    share = roof.seconds(case.flop, case.read) / median(base) if base else 0.0
    rounds = len(next(iter(samples.values()))) if samples else 0
    return Result(
        name=name,
        title=case.title,
        threads=threads,
        rows=tuple(rows),
        missing=dict(prepared.missing),
        best=best,
        quiet=quiet,
        roof=share,
        demand=case.demand,
        aim=case.aim,
        rounds=rounds,
        note=case.note,
    )


def _low(times: Sequence[float]) -> float:
    """The first decile: the least is an outlier where clocks tick in steps."""
    return sorted(times)[len(times) // 10]


def show(result: Result) -> str:
    """The table that a person reads."""
    lines = [
        f"{result.name}: {result.title}, {threads_text(result.threads)}, {result.rounds} rounds"
    ]
    lines.append(f"  {'':14}{'median':>12}{'low':>12}{'high':>12}{'time / nnc':>12}")
    for r in result.rows:
        cells = "".join(f"{_time(t):>12}" for t in (r.seconds, r.low, r.high))
        lines.append(f"  {r.candidate:14}{cells}{r.ratio:>12.2f}  {_about(r)}".rstrip())
    lines += [f"  {name:14}{why[:120]}" for name, why in result.missing.items()]
    return "\n".join([*lines, f"  = {verdict(result)}"])


def _about(r: Row) -> str:
    ready = f"ready after {r.ready:.0f} s" if r.ready >= 5 else ""
    return "; ".join(t for t in (r.note, r.how, ready) if t)


def verdict(r: Result) -> str:
    parts = ["nothing to compare"]
    if r.best:
        parts = [f"{r.best:.2f}x the best peer (shortest samples: {r.quiet:.2f}x)"]
    if r.roof:
        parts.append(f"{100 * r.roof:.0f} % of the roof")
    if r.demand:
        parts.append(f"demand {r.demand:g}x, aim {r.aim:g}x")
    if r.note:
        parts.append(r.note)
    return "; ".join(parts)


def threads_text(n: int) -> str:
    return f"{n} thread{'s' * (n != 1)}"


def _time(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.2f} us"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"


def save(document: Mapping[str, Any], results: Sequence[Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {**document, "results": [asdict(r) for r in results]}
    path.write_text(json.dumps(data, indent=1) + "\n")
