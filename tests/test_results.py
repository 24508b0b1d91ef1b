"""Memory of big results is used again, but never while somebody holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnc

N = 1 << 19


@pytest.fixture(scope="module")
def m(tmp_path_factory: Any) -> Any:
    path = Path(tmp_path_factory.mktemp("results")) / "twice.nn"
    path.write_text("export def twice(x: f32[N]) -> f32[N] = 2 * x\n")
    return nnc.load(path)


def test_results_that_are_held_stay_as_they_are(m: Any) -> None:
    held = [m.twice(np.full(N, i, np.float32)) for i in range(6)]
    assert [float(r[0]) for r in held] == [0, 2, 4, 6, 8, 10]
    assert len({r.ctypes.data for r in held}) == 6


def test_a_view_holds_its_result(m: Any) -> None:
    part = m.twice(np.full(N, 7, np.float32))[3:5]
    for i in range(4):
        m.twice(np.full(N, i, np.float32))
    assert part.tolist() == [14, 14]


def test_memory_that_nobody_holds_is_used_again(m: Any) -> None:
    x = np.ones(N, np.float32)
    places = {m.twice(x).ctypes.data for _ in range(10)}
    assert len(places) <= 2


def test_small_results_own_their_memory(m: Any) -> None:
    assert m.twice(np.ones(4, np.float32)).flags.owndata
