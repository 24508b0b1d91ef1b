"""Tables that a loop fills, each entry from others: written where they lie."""

from __future__ import annotations

from textwrap import dedent

import numpy as np
import pytest

from nnc import compiler
from nnc.ir.graph import Graph, Loop, all_nodes
from nnc.ir.interpret import run as interpret
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


GRADIENTS = {
    "cell by cell": """
    export def f(c: f32[N, M]) -> (f32, f32[N, M]):
        R[i:N+1, j:M+1] = 0.0 if i == 0 and j == 0 else 8.0
        for i in N:
            for j in M:
                R[i + 1, j + 1] := sin(c[i, j] + R[i, j]) + 0.125 * R[i, j + 1] * tanh(R[i + 1, j])
        loss = R[N, M] + total(R) / 8
        return loss, grad(loss, c)
    """,
    "row by row": """
    export def f(c: f32[N, M]) -> (f32, f32[N, M]):
        R[i:N+1, j:M] = 0.125 * j
        for i in N:
            R[i + 1, j] := tanh(R[i, M - 1 - j] + c[i, j])
        loss = total(R**2)
        return loss, grad(loss, c)
    """,
    "a row and the whole": """
    export def f(c: f32[N, M]) -> (f32, f32[N, M]):
        R = 1 * c
        for i in N:
            w[k:N] = sum[j](R[k, j] * R[i, j])
            R[i, j] := tanh(R[i, j] + sum[k](w[k] * c[k, j]) / N)
        loss = total(R**2)
        return loss, grad(loss, c)
    """,
    "what may lie outside": """
    export def f(c: f32[N, M]) -> (f32, f32[N, M]):
        R = 1 * c
        for i in N:
            R[i, j] := sin(R[i, j]) * (R[i - 1, j] if i > 0 else 2) + (R[i + 1, j] if i + 1 < N else 0)
        loss = total(R**2)
        return loss, grad(loss, c)
    """,
    "captured": """
    export def f(c: f32[N, M]) -> (f32, f32[N, M]):
        h = zeros[M]
        for i in N:
            h[j] = tanh(h[j] * c[i, j] + sum[k](c[N - 1 - i, k] * c[k % N, j]))
        loss = total(h**2)
        return loss, grad(loss, c)
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


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("n", [1, 4])
def test_gradients(name: str, n: int) -> None:
    """Against a central difference along a random direction."""
    graph, rng = graph_of(GRADIENTS[name]), np.random.default_rng(n)
    dims = {"N": n, "M": 5}
    compare(graph, dims, sample(graph, dims, rng))
    ready = compiler.optimise(graph)
    c, d = rng.standard_normal((2, n, 5)) / 2

    def at(x: float) -> list[np.ndarray]:
        return interpret(ready, dims, {"c": c + x * d}).results

    up, down = (float(at(x)[0]) for x in (1e-5, -1e-5))
    np.testing.assert_allclose((at(0)[1] * d).sum(), (up - down) / 2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["cell by cell", "row by row"])
def test_of_a_table_turns_keep_what_they_read(name: str) -> None:
    ready = compiler.optimise(graph_of(GRADIENTS[name]))
    sizes = [p.shape for n in all_nodes(ready) if isinstance(n, Loop) for p in n.results]
    assert max(map(len, sizes)) == 2
