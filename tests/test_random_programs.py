"""Random programs: native code, interpreter and finite differences agree."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nnc import compiler
from nnc.ir.interpret import run as interpret
from tests.endtoend import built, compare, sample
from tests.random_programs import generate


def check(seed: int) -> None:
    rng = random.Random(seed)
    text = generate(rng)
    graph = built(text)["f"].graph
    dims = {d: rng.choice((1, 2, 3, 5, 8, 17)) for d in "ABC"}
    inputs = sample(graph, dims, np.random.default_rng(seed))
    try:
        compare(graph, dims, inputs)
        differences(graph, dims, inputs, seed)
    except AssertionError as error:
        raise AssertionError(f"seed {seed}, {dims}\n{text}\n{error}") from None


def differences(graph: Any, dims: Any, inputs: Any, seed: int) -> None:
    """The gradient along a random direction against a central difference, in float64. Kinks are allowed
    for: two step sizes must both disagree before it counts."""
    ready = compiler.optimise(graph)
    values = {k: np.asarray(v, np.float64) for k, v in inputs.items()}
    result = interpret(ready, dims, values).results
    rng = np.random.default_rng(seed + 1)
    direction = {k: rng.standard_normal(v.shape) for k, v in values.items()}
    slope = sum(float((g * direction[k]).sum()) for k, g in zip("xyz", result[1:4], strict=True))
    errors = []
    for h in (1e-5, 1e-7):
        ends = [
            float(
                interpret(
                    ready, dims, {k: v + s * h * direction[k] for k, v in values.items()}
                ).results[0]
            )
            for s in (1, -1)
        ]
        errors.append(abs((ends[0] - ends[1]) / (2 * h) - slope))
    assert min(errors) <= 1e-3 * max(1.0, abs(slope)), (slope, errors)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
@example(4734)  # two index components that share variables, one solved for after its condition
def test_random_programs_agree(seed: int) -> None:
    check(seed)


@pytest.mark.slow
def test_two_thousand_random_programs_agree() -> None:
    for seed in range(2000):
        check(seed)
