"""Tables that a loop fills, each entry from others: written where they lie."""

from __future__ import annotations

from textwrap import dedent

import numpy as np
import pytest

from nnc import compiler
from nnc.ir.graph import Graph
from nnc.ir.print_loop import print_program
from tests.endtoend import built, compare, sample

TABLES = {
    "cell by cell": """
    export def f(c: f32[N, M]) -> f32[N+1, M+1]:
        R[i:N+1, j:M+1] = 0.0 if i == 0 and j == 0 else 100
        for i in N:
            for j in M:
                R[i + 1, j + 1] := c[i, j] + min(R[i, j], min(R[i, j + 1], R[i + 1, j]))
        return R
    """,
    "row by row": """
    export def f(c: f32[N, M]) -> f32[N+1, M+1]:
        R[i:N+1, j:M+1] = 1.0 * j
        for i in N:
            R[i + 1, j:M+1] := min(R[i, j], R[i, j - 1 else 100] + c[i, j - 1 else 0])
        return R
    """,
    "two rows before": """
    export def f(x: f32[N + 2, M]) -> f32[N + 2, M]:
        y = 1 * x
        for i in N:
            y[i + 2, j] := y[i, M - 1 - j] + 0.5 * y[i + 1, j]
        return y
    """,
}


def graph_of(text: str) -> Graph:
    return next(iter(built(dedent(text)).values())).graph


def loops_of(text: str) -> str:
    return print_program(compiler.schedule(compiler.optimise(graph_of(text))))


@pytest.mark.parametrize("name", TABLES)
def test_no_copies_in_turns(name: str) -> None:
    graph = graph_of(TABLES[name])
    dims = {"N": 6, "M": 37}
    compare(graph, dims, sample(graph, dims, np.random.default_rng(0)))
    assert "copy of" not in loops_of(TABLES[name]).split("repeat", 1)[1]


def test_a_write_over_what_others_read_is_copied() -> None:
    text = """
    export def f(x: f32[N, M], k: f32[T]) -> f32[N, M]:
        y = 1 * x
        for t in T:
            y[i, j] := y[i, M - 1 - j] * k[t]
        return y
    """
    graph = graph_of(text)
    dims = {"N": 5, "M": 37, "T": 3}
    compare(graph, dims, sample(graph, dims, np.random.default_rng(0)))
