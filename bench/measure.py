"""Timing in alternation: every round times each candidate once, so that drift hits all alike."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
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
    `ratio`: its time over nnc's (> 1: nnc is faster), the median of the rounds."""

    candidate: str
    seconds: float
    low: float
    high: float
    ratio: float
    note: str = ""


@dataclass(frozen=True)
class Roof:
    """What the machine reaches with the threads of the run: FLOP/s on registers, bytes/s read."""

    flop: float
    read: float


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
    return {
        "cpu": cpu,
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "command": " ".join(["python -m bench", *sys.argv[1:]]),
        "load": " ".join(f"{x:.1f}" for x in os.getloadavg()),
    }


def prepare(
    case: Case, wanted: Sequence[str]
) -> tuple[dict[str, Call], dict[str, str], dict[str, str]]:
    """The calls of the candidates that can be made, why the others cannot, and differing results."""
    calls: dict[str, Call] = {}
    missing: dict[str, str] = {}
    notes: dict[str, str] = {}
    reference: list[Any] | None = None
    for name in ("nnc", *(n for n in wanted if n != "nnc")):
        if name not in case.makers:
            continue
        try:
            call = case.makers[name]()
            found = [numbers(call()) for _ in range(case.checks)]
        except Missing as e:
            missing[name] = str(e)
            continue
        except Exception as e:  # a peer that fails is a line of the table
            missing[name] = (
                f"{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e) else ''}"
            )
            continue
        if reference is None:
            reference = found
        elif difference := _difference(found, reference, case.tolerance):
            notes[name] = difference
        calls[name] = call
    return calls, missing, notes


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
    missing: Mapping[str, str],
    notes: Mapping[str, str],
    roof: Roof,
) -> Result:
    base = samples.get("nnc")
    rows = []
    for who, times in samples.items():
        ratio = median(t / b for t, b in zip(times, base, strict=True)) if base else 0.0
        rows.append(Row(who, median(times), _low(times), max(times), ratio, notes.get(who, "")))
    best = min((r.ratio for r in rows if r.candidate != "nnc"), default=0.0)
    others = [_low(times) for who, times in samples.items() if who != "nnc"]
    quiet = min(others, default=0.0) / _low(base) if base else 0.0
    share = 0.0
    if base:
        limit = max(case.flop / roof.flop, case.read / roof.read)
        share = limit / median(base)
    rounds = len(next(iter(samples.values()))) if samples else 0
    return Result(
        name=name,
        title=case.title,
        threads=threads,
        rows=tuple(rows),
        missing=dict(missing),
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
        lines.append(f"  {r.candidate:14}{cells}{r.ratio:>12.2f}  {r.note}".rstrip())
    lines += [f"  {name:14}{why[:120]}" for name, why in result.missing.items()]
    return "\n".join([*lines, f"  = {verdict(result)}"])


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
