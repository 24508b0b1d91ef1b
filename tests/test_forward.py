"""Reads of slices that were written (`nnc.passes.forward`)."""

from __future__ import annotations

import numpy as np
import pytest

from nnc import compiler
from nnc.ir.graph import Graph, Update, nodes
from nnc.lang.dims import Dim
from nnc.passes.fuse import fuse
from nnc.passes.slices import slices
from tests.endtoend import built, compare, sample

CACHE = """
export def f(x: f32[B, 4], w: f32[3, 4, 4]) -> f32[B, 4]:
    kv = empty[3, 2, B, 4]
    for l in 3:
        y[c:2, b, j] = x[b, j] * (c + 1) + x[b, 0]
        kv[l, c, b, j] := y[c, b, j]
        x[b, j] = x[b, j] + sum[i](kv[l, 0, b, i] * w[l, i, j]) * kv[l, 1, b, j]
    return x

export def g(x: f32[B, 4], w: f32[3, 4, 4]) -> f32[3, 4, 4]:
    y = f(x, w)
    return grad(sum[b, j](y[b, j] ** 2), w)
"""

PARTS = """
export def whole(x: f32[B, 4]) -> (f32[B, 4], f32[2, B, 4]):
    a = zeros[2, B, 4]
    a[1, b, j] := x[b, j]
    return a[1], a

export def beside(x: f32[B, 4]) -> f32[B, 4]:
    a = zeros[2, B, 4]
    a[1, b, j] := x[b, j]
    return a[0]

export def some(x: f32[B, 4]) -> f32[B, 4]:
    a = ones[2, B, 4]
    a[1, b, j:2] := x[b, j]
    return a[1]

export def edge(x: f32[B, 4]) -> f32[4, B, 4]:
    a = zeros[2, B, 4]
    a[1, b, j] := x[b, j]
    y[k:4, b, j] = a[k - 1, b, j else 7]
    return y
"""


def updates(graph: Graph) -> int:
    """Updates of stacks of slices."""
    found = nodes(fuse(compiler.optimise(graph)).graph)
    return sum(isinstance(n, Update) and n.type.shape[1] != Dim.of(4) for n in found)


@pytest.mark.parametrize(
    ("text", "name", "left"),
    [
        (CACHE, "f", 0),
        (CACHE, "g", 2),
        (PARTS, "whole", 1),
        (PARTS, "beside", 0),
        (PARTS, "some", 1),
        (PARTS, "edge", 0),
    ],
)
def test_what_was_written_is_read(text: str, name: str, left: int) -> None:
    graph = built(text)[name].graph
    assert updates(graph) == left
    for size in (1, 5):
        compare(graph, {"B": size}, sample(graph, {"B": size}, np.random.default_rng(1)))


def test_updates_are_there_before() -> None:
    graph = slices(compiler.optimise(built(CACHE)["g"].graph))
    assert any(isinstance(n, Update) for n in nodes(graph))
