"""Operands of contractions that the turns of a loop share are packed once before it."""

from __future__ import annotations

import numpy as np
import pytest

from nnc import compiler
from nnc.ir.loop import Contract, Program, Repeat, kernels_of
from tests.endtoend import built, compare, sample

PLAIN = """
export def main(x: {t}[T, B, {k}], w: {t}[{n}, {k}], u: {t}[{n}, {k}]) -> {t}[B, {k}]:
    h = zeros[B, {k}]
    for t in T:
        z = (x[t] + h) @ w.T
        h = 0.5 * h + 0.01 * tanh(z) @ u
    return h
"""
GATES = """
export def main(x: f32[T, B, 48], w: f32[4, 40, 48], u: f32[48, 4, 40]) -> f32[B, 48]:
    h = zeros[B, 48]
    for t in T:
        z[g, b, i] = sum[k]((x[t, b, k] + h[b, k]) * w[g, i, k])
        h[b, k] = 0.01 * sum[g, i](tanh(z[g, b, i]) * u[k, g, i])
    return h
"""
CHANGED = """
export def main(x: f32[T, B, 64], w: f32[64, 64]) -> f32[B, 64]:
    h = zeros[B, 64]
    v = w
    for t in T:
        h = tanh((x[t] + h) @ v.T)
        v = 0.5 * v
    return h
"""
NESTED = """
export def main(x: f32[T, B, 64], w: f32[64, 64]) -> f32[B, 64]:
    h = zeros[B, 64]
    for t in T:
        v = w * (1.0 + t)
        for s in T:
            h = tanh(0.02 * (x[t] + h) @ v.T) + 0.1 * tanh(0.02 * h @ w.T)
    return h
"""


def contracts(program: Program) -> list[Contract]:
    loops = [s for s in program.steps if isinstance(s, Repeat)]
    return [s for k in kernels_of(loops) for s in k.body if isinstance(s, Contract)]


def run(text: str, sizes: dict[str, int]) -> Program:
    graph = built(text)["main"].graph
    compare(graph, sizes, sample(graph, sizes, np.random.default_rng(0)))
    return compiler.schedule(compiler.optimise(graph))


@pytest.mark.parametrize(("n", "k"), [(64, 64), (33, 129), (97, 64), (128, 401), (32, 128)])
def test_every_size(n: int, k: int) -> None:
    program = run(PLAIN.format(t="f32", n=n, k=k), {"T": 3, "B": 5})
    assert all(c.panels is not None for c in contracts(program))


def test_doubles() -> None:
    run(PLAIN.format(t="f64", n=65, k=80), {"T": 2, "B": 3})


def test_one_row() -> None:
    run(PLAIN.format(t="f32", n=65, k=80), {"T": 2, "B": 1})


def test_many_rows() -> None:
    run(PLAIN.format(t="f32", n=65, k=80), {"T": 2, "B": 300})


def test_groups_of_axes() -> None:
    program = run(GATES, {"T": 3, "B": 17})
    assert any(c.panels is not None for c in contracts(program))


def test_what_changes_is_not_packed_before() -> None:
    assert not any(c.panels is not None for c in contracts(run(CHANGED, {"T": 3, "B": 9})))


def test_inner_loops_pack_what_is_theirs() -> None:
    program = run(NESTED, {"T": 3, "B": 9})
    (outer,) = (s for s in program.steps if isinstance(s, Repeat))
    assert any(k.name.endswith("_panels") for k in program.kernels)
    names = [k.name for k in kernels_of([outer])]
    assert sum(n.endswith("_panels") for n in names) == 1, names
    assert sum(k.name.endswith("_panels") for k in program.kernels) == 2
