"""Backward from outside respects what is written inside: `stop` and adjoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import nnc

TEXT = """
def twice(x: real[..N]) -> real[..N]:
    return 2 * x

adjoint twice(x; y, dy):
    return 7 * dy

export def f(x: f32[N], by: f32[N]) -> f32[N] = stop(x) * by + twice(x)
"""


def test_backward_respects_stop_and_adjoints(tmp_path: Path) -> None:
    path = tmp_path / "f.nn"
    path.write_text(TEXT)
    run = nnc.load(path).f.forward(np.float32([1, 2]), np.float32([3, 4]))
    grads = run.backward(np.ones(2, np.float32))
    np.testing.assert_array_equal(run.value, [5, 12])
    np.testing.assert_array_equal(grads.x, [7, 7])
    np.testing.assert_array_equal(grads.by, [1, 2])
