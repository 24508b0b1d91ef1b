"""Gradients: factors that are the same for all terms of a sum stand outside of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nnc import compiler
from nnc.ir.graph import Compute, Graph, toposort
from nnc.ir.interpret import run as interpret
from tests.endtoend import built, close, run_native, sample

NORM = """
from std.nn import BatchNorm, Conv2d, relu
export def f(inout bn: BatchNorm(5), conv: Conv2d(2, 5, 3, pad=1), x: f32[B, 2, H, 9]) -> (f32, f32[5], f32[5, 2, 3, 3]):
    y = relu(bn!(conv(x)))
    loss = sum(y**2)
    d = grad(loss, [bn.weight, conv.weight])
    return loss, d[0], d[1]
"""
LAYER = """
from std.nn import LayerNorm
export def f(ln: LayerNorm(33), x: f32[B, T, 33]) -> f32[B, T, 33]:
    return grad(sum(ln(x)**3), x)
"""


def check(graph: Graph, dims: Mapping[str, int]) -> None:
    inputs = sample(graph, dims, np.random.default_rng(0))
    wanted = interpret(compiler.optimise(graph), dims, inputs)
    results, _ = run_native(graph, dims, inputs)
    for got, want in zip(results, wanted.results, strict=True):
        close(got, want, 1e-3, "result")


def test_batch_norm() -> None:
    (found,) = built(NORM).values()
    graph = compiler.optimise(found.graph)
    sums = [n for n in toposort(graph.roots) if isinstance(n, Compute) and n.op == "sum"]
    over_pictures = [n for n in sums if len(n.axes) == 1 and len(n.raxes) == 3]
    # mean, variance and its shift; the gradient alone and times x
    assert len(over_pictures) == 5, [str(n.body) for n in over_pictures]
    check(found.graph, {"B": 3, "H": 7})


def test_layer_norm() -> None:
    (found,) = built(LAYER).values()
    check(found.graph, {"B": 3, "T": 5})
