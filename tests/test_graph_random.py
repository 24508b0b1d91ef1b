"""Random well-typed Graphs: gradients against finite differences, passes against the oracle."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnc.ir.graph import Graph, Input, Node
from nnc.ir.interpret import run
from nnc.ir.printer import print_graph
from nnc.ir.scalar import SCALARS, const, mul
from nnc.lang.types import is_float
from nnc.passes.autodiff import autodiff
from nnc.passes.simplify import simplify
from nnc.passes.split import forward_backward
from nnc.passes.verify import verify
from tests.graphs import SIZES, grads, graph, random_graph, sample, total

randoms = st.randoms(use_true_random=False)
lengths = st.integers(1, 7)
quick = settings(
    max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


def floats(g: Graph) -> list[Input]:
    return [i for i in g.inputs if is_float(i.type.dtype)]


def along(y: Node, values: dict[str, np.ndarray], step: dict[str, np.ndarray], h: float) -> float:
    """The scalar at `values + h * step`."""
    moved = {k: v + h * step[k] if k in step else v for k, v in values.items()}
    return float(run(graph([y], [], list(SIZES)), SIZES, moved).results[0])


def slope_of_differences(
    y: Node, values: dict[str, np.ndarray], step: dict[str, np.ndarray]
) -> tuple[float, bool]:
    """The directional derivative, and whether two step sizes agree on it (no kink is near)."""
    far, near = (
        (along(y, values, step, h) - along(y, values, step, -h)) / (2 * h) for h in (1e-5, 1e-6)
    )
    one_sided = (along(y, values, step, 1e-6) - along(y, values, step, 0)) / 1e-6
    scale = 1 + abs(near)
    return near, abs(far - near) < 1e-4 * scale and abs(one_sided - near) < 1e-3 * scale


def check_slope(g: Graph, y: Node, seed: int) -> bool:
    """Gradients along a random direction; False when a kink is too near to tell."""
    wrt = floats(g)
    before = graph(grads(y, *wrt), g.inputs, g.dims)
    verify(before, "building")
    after = autodiff(before)
    verify(after, "autodiff")
    values = sample(g.inputs, SIZES, seed)
    step = sample(wrt, SIZES, seed + 1000)
    found = run(after, SIZES, values).results
    slope = sum(float((d * step[w.name]).sum()) for w, d in zip(wrt, found, strict=True))
    want, smooth = slope_of_differences(y, values, step)
    if smooth:
        assert abs(slope - want) < 2e-4 * (1 + abs(want)), (slope, want, print_graph(before))
    return smooth


@quick
@given(randoms, lengths, st.integers(0, 99))
def test_gradients(random: Random, length: int, seed: int) -> None:
    check_slope(*random_graph(random, length), seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3000))
def test_many_gradients(seed: int) -> None:
    check_slope(*random_graph(Random(seed), 1 + seed % 9), seed)


def test_most_random_graphs_can_be_checked() -> None:
    told = [check_slope(*random_graph(Random(seed), 4), seed) for seed in range(40)]
    assert sum(told) >= 30


@quick
@given(randoms, lengths)
def test_simplify_changes_no_bit(random: Random, length: int) -> None:
    g, y = random_graph(random, length)
    after = autodiff(graph([y, *grads(y, *floats(g))], g.inputs, g.dims))
    simple = simplify(after)
    verify(simple, "simplify")
    values = sample(g.inputs, SIZES)
    for a, b in zip(
        run(after, SIZES, values).results, run(simple, SIZES, values).results, strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert print_graph(simplify(simple)) == print_graph(simple)


@settings(quick, max_examples=25)
@given(randoms, lengths)
def test_second_derivatives(random: Random, length: int) -> None:
    g, y = random_graph(random, min(length, 4))
    x = g.inputs[0]
    (dx,) = grads(y, x)
    check_slope(g, autodiff(graph([total(dx)], g.inputs, g.dims)).results[0], 5)


@settings(quick, max_examples=25)
@given(randoms, lengths)
def test_forward_and_backward_make_the_gradient(random: Random, length: int) -> None:
    g, y = random_graph(random, length)
    forward, backward, wrt = forward_backward(g)
    verify(forward, "split")
    verify(backward, "split")
    values = sample(g.inputs, SIZES)
    done = run(forward, SIZES, values).results
    later = {**values, "d.0": np.ones(()), **{f"saved.{i}": v for i, v in enumerate(done[1:])}}
    got = run(backward, SIZES, {i.name: later[i.name] for i in backward.inputs}).results
    parts = grads(y, *(i for i in g.inputs if i.name in wrt))
    want = run(autodiff(graph(parts, g.inputs, g.dims)), SIZES, values).results
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


# ---- positive controls: a wrong derivative must be found

PLANTED = ("sin", "cos", "tanh", "sigmoid", "mul", "sub", "neg", "max", "log", "div", "add")


@pytest.mark.parametrize("fn", PLANTED)
def test_wrong_derivative_is_found(fn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = SCALARS[fn]
    assert row.partials is not None
    right = row.partials

    def wrong(a, y):  # type: ignore[no-untyped-def]
        first, *rest = right(a, y)
        return (None if first is None else mul(const(1.01, y), first), *rest)

    monkeypatch.setitem(SCALARS, fn, replace(row, partials=wrong))
    with pytest.raises(AssertionError):
        for seed in range(200):
            check_slope(*random_graph(Random(seed), 6), seed)
