"""Positive controls: faults planted in the compiler, which the random programs must find.

A fault is found when a check of `tests.oracle` fails, an assertion of the compiler fails, or the
program crashes; each runs in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import FAULTS

ROOT = Path(__file__).parent.parent
PROGRAMS = range(60)
QUICK = {  # one of each kind, with a program that shows it
    "product_rule": 0,
    "unlimited_gather": 0,
    "shares_of_threads": 3,
    "edge_of_a_contraction": 2,
}

RARE = {  # not seen in some 30 programs on a busy machine; a longer run has to tell
    *("difference_is_zero", "nan_lost_in_max", "truncating_division", "claimed_too_early"),
    *("rows_overwritten", "storage_not_written", "endless_while", "missing_barrier"),
}


def found(name: str, *seeds: int) -> str:
    """What finds the fault in the programs of these seeds; empty when nothing does."""
    command = [sys.executable, "-m", "tests.faults", name, *map(str, seeds)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    if run.returncode < 0:
        return f"signal {-run.returncode}"
    assert run.returncode == 0, run.stderr
    return run.stdout.rpartition("found at")[2].strip()


@pytest.mark.parametrize("name", QUICK)
def test_a_planted_fault_is_found(name: str) -> None:
    assert found(name, QUICK[name])


def test_nothing_is_found_without_a_fault() -> None:
    assert not found("nothing", *sorted(set(QUICK.values())))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_every_planted_fault_is_found(name: str) -> None:
    what = found(name, *PROGRAMS)
    if not what and name in RARE:
        pytest.xfail("rarer than these programs")
    assert what
