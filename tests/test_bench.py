"""The benchmarks' own arithmetic, and that their programs are accepted."""

from __future__ import annotations

import time

import numpy as np
import pytest

from bench import measure
from bench.workload import PROGRAMS, Case, Missing
from bench.workloads import FIGURES, WORKLOADS
from nnc import driver

ROOF = measure.Roof(flop=1e9, read=1e9)


OWN = [p for p in sorted(PROGRAMS.glob("*.nn")) if not p.is_symlink()]


@pytest.mark.parametrize("path", OWN, ids=lambda p: p.stem)
def test_programs_are_accepted(path):
    assert not driver.check_file(path).diagnostics


def test_ratios_are_medians_of_rounds():
    samples = {"nnc": [1.0, 2.0, 4.0], "torch": [2.0, 4.0, 8.0], "ort": [3.0, 3.0, 3.0]}
    result = measure.summarise("x", Case("x", {}, flop=1e9), 1, samples, measure.Prepared(), ROOF)
    assert [r.ratio for r in result.rows] == [1.0, 2.0, 1.5]
    assert (result.best, result.quiet, result.roof) == (1.5, 2.0, 0.5)


def test_a_missing_peer_is_a_line():
    def missing():
        raise Missing("it is not installed")

    case = Case("x", {"nnc": lambda: lambda: np.ones(3), "torch": missing})
    found = measure.prepare(case, ["torch"])
    assert (list(found.calls), found.missing) == (["nnc"], {"torch": "it is not installed"})
    assert not found.notes


def test_a_peer_that_takes_too_long_is_a_line():
    makers = {"nnc": lambda: lambda: np.ones(3), "compile": lambda: time.sleep(10)}
    found = measure.prepare(Case("x", makers), ["compile"], cap=0.05)
    assert (list(found.calls), found.missing) == (["nnc"], {"compile": "not ready after 0.05 s"})


def test_different_results_are_told():
    makers = {"nnc": lambda: lambda: np.ones(3), "ort": lambda: lambda: np.array([1.0, 1.1, 1.0])}
    assert "DIFFERS" in measure.prepare(Case("x", makers), ["ort"]).notes["ort"]


def test_names_are_distinct():
    assert not WORKLOADS.keys() & FIGURES.keys()
