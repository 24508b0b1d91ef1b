"""Timing in alternation: every round times each candidate once, so that drift hits all alike."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

IDLE = 0.02  # seconds before a sample: the workers of the candidate before stop spinning


@dataclass(frozen=True)
class Row:
    """One candidate of a workload: median seconds of a call; `ratio`: its time over nnc's (> 1: nnc is faster)."""

    candidate: str
    seconds: float
    low: float
    high: float
    ratio: float
    note: str = ""


@dataclass(frozen=True)
class Result:
    """One workload with its candidates, the first of them nnc."""

    workload: str
    threads: int
    rows: tuple[Row, ...]
    flop: float = 0.0
    roof: float = 0.0  # FLOP/s that the machine reaches on register FMAs, with these threads
    machine: Mapping[str, str] = field(default_factory=dict)


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
        "numpy": np.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def alternate(
    candidates: Mapping[str, Callable[[], object]], seconds: float = 3.0, inner: int = 0
) -> dict[str, list[float]]:
    """Times the candidates in turn for about `seconds`; each sample is the mean of `inner` calls
    (0: as many as take about 2 ms)."""
    loops: dict[str, int] = {}
    for name, run in candidates.items():
        for _ in range(3):
            run()
        start = time.perf_counter()
        run()
        once = time.perf_counter() - start
        loops[name] = inner or max(1, min(1000, int(2e-3 / max(once, 1e-7))))
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(samples.values()))) < 5:
        for name, run in candidates.items():
            n = loops[name]
            time.sleep(IDLE)
            run()  # wakes this candidate's workers
            start = time.perf_counter()
            for _ in range(n):
                run()
            samples[name].append((time.perf_counter() - start) / n)
    return samples


def summarise(
    workload: str,
    samples: Mapping[str, Sequence[float]],
    threads: int,
    flop: float = 0.0,
    roof: float = 0.0,
    notes: Mapping[str, str] | None = None,
) -> Result:
    base = list(samples["nnc"])
    rows = []
    for name, times in samples.items():
        ratio = median(t / b for t, b in zip(times, base, strict=True))
        note = (notes or {}).get(name, "")
        rows.append(Row(name, median(times), min(times), max(times), ratio, note))
    return Result(workload, threads, tuple(rows), flop, roof, machine())


def show(result: Result) -> str:
    """The table that a person reads."""
    lines = [f"{result.workload}, {result.threads} thread{'s' * (result.threads != 1)}"]
    lines.append(f"  {'':14}{'median':>12}{'low':>12}{'high':>12}{'time / nnc':>12}")
    for r in result.rows:
        cells = "".join(f"{t * 1e6:>10.1f}us" for t in (r.seconds, r.low, r.high))
        rate = ""
        if result.flop:
            gflops = result.flop / r.seconds / 1e9
            rate = f"  {gflops:6.1f} GFLOP/s"
            if result.roof:
                rate += f" = {100 * gflops * 1e9 / result.roof:3.0f} % of the FMA peak"
        lines.append(f"  {r.candidate:14}{cells}{r.ratio:>12.2f}{rate}  {r.note}".rstrip())
    return "\n".join(lines)


def save(results: Sequence[Result], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")
