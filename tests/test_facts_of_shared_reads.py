"""A read that stands under two conditions lies inside where both allow it."""

from __future__ import annotations

import numpy as np

from tests.endtoend import built, compare, sample

TEXT = """
export def f(x: f32[T, N], w: f32[N]) -> (f32, f32[T, N], f32[N]) where N >= 1:
    a = w
    for t in T:
        old = a
        a[i:N] = max(old[i], max(old[i - 1] if i >= 1 else -9, old[i - 2] if i >= 2 else -9)) * exp(x[t, i])
    z = total(a)
    g, h = grad(z, [x, w])
    return z, g, h
"""


def test_reads_at_one_place_under_several_conditions() -> None:
    graph = built(TEXT)["f"].graph
    for sizes in ({"T": 4, "N": 7}, {"T": 1, "N": 1}, {"T": 2, "N": 40}):
        compare(graph, sizes, sample(graph, sizes, np.random.default_rng(1)))
