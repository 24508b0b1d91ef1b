"""Random graphs through lowering and code generation, against the interpreter, on guard pages."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from nnc.ir.graph import Graph
from nnc.ir.interpret import run as interpret
from nnc.ir.loop import Kernel, Program
from nnc.ir.print_loop import print_program
from nnc.lang.dims import Dim
from tests.graphs import sample
from tests.lowering import compile_graph
from tests.native import NUMPY, run
from tests.test_lower import Maker


def busy(p: Program) -> Program:
    """The same Program with so much work that every kernel runs on all threads."""
    steps = tuple(replace(s, work=Dim.of(1 << 30)) if isinstance(s, Kernel) else s for s in p.steps)
    return replace(p, steps=steps)


def differ(graph: Graph, dims: Mapping[str, int], seed: int) -> None:
    inputs = sample(graph.inputs, dims, seed)
    with np.errstate(all="ignore"):
        want = interpret(graph, dims, inputs)
    p = compile_graph(graph)
    if seed % 2:
        p = busy(p)
    arrays = [np.asarray(inputs[i.name]).astype(NUMPY[i.type.dtype]) for i in graph.inputs]
    for b in p.args[len(arrays) :]:
        shape = tuple(s.evaluate(dims) for s in b.type.shape)
        arrays.append(np.zeros(shape, NUMPY[b.type.dtype]))
    try:
        got = run(p, arrays, dims)
        n = len(graph.inputs)
        pairs = list(zip(got[n:], want.results, strict=True))
        for i, value in zip(graph.inputs, got, strict=False):
            pairs.append((value, want.writes.get(i.name, np.asarray(inputs[i.name]))))
        for value, expected in pairs:
            finite = np.abs(expected[np.isfinite(expected)])
            scale = float(finite.max()) if finite.size else 0.0
            np.testing.assert_allclose(value, expected, rtol=1e-7, atol=1e-10 * (1 + scale))
    except AssertionError as e:
        e.add_note(print_program(p))
        raise


def one(seed: int) -> None:
    g = Maker(seed).make(random.Random(seed).randint(1, 14))
    r = random.Random(seed)
    differ(g, {"B": r.choice((1, 2, 7, 33)), "T": r.choice((1, 3, 8, 17, 40))}, seed)


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs(seed: int) -> None:
    one(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 400))
def test_many_random_graphs(seed: int) -> None:
    one(seed)
