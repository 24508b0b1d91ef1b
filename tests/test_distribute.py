"""Loops of several layers become one loop for each layer (`nnc.passes.distribute`)."""

from __future__ import annotations

import numpy as np
import pytest

from nnc import compiler
from nnc.ir.graph import Graph, Loop, all_nodes
from nnc.ir.loop import Kernel, Repeat
from nnc.lang.elaborate.exports import Built
from tests.endtoend import built, compare, sample

SIZES = ({"B": 3, "T": 1}, {"B": 5, "T": 4})

STACK = """
def cell(x: real[B, I], h: real[B, H], w: real[I, H], u: real[H, H]) -> real[B, H]:
    return tanh(x @ w + h @ u)

def layers(x: real[T, B, 6], w: real[2, 6, 6], u: real[2, 6, 6]) -> real[T, B, 6]:
    a, b = zeros[B, 6], zeros[B, 6]
    ys = for t in T:
        a = cell(x[t], a, w[0], u[0])
        b = cell(a * x[t], b, w[1], u[1])
        yield b + a
    return ys

export def forward(x: f32[T, B, 6], w: f32[2, 6, 6], u: f32[2, 6, 6]) -> f32[T, B, 6]:
    return layers(x, w, u)

export def step(x: f32[T, B, 6], w: f32[2, 6, 6], u: f32[2, 6, 6]) -> (f32[2, 6, 6], f32[2, 6, 6]):
    y = layers(x, w, u)
    d = grad(sum[t, b, j](y[t, b, j] * y[t, b, j]), [w, u])
    return d[0], d[1]
"""

PROJECTED = """
export def forward(x: f32[T, B, 6], u: f32[6, 6], out: f32[6, 9]) -> f32[T, B, 9]:
    h = zeros[B, 6]
    ys = for t in T:
        h = tanh(x[t] + h @ u)
        yield tanh(h @ out)
    return ys
"""

FED_BACK = """
export def forward(x: f32[T, B, 6], w: f32[6, 6]) -> f32[T, B, 6]:
    a, b = zeros[B, 6], zeros[B, 6]
    ys = for t in T:
        a = tanh(x[t] + b @ w)
        b = tanh(a @ w)
        yield b
    return ys
"""

SUMMED = """
export def forward(x: f32[T, B, 6], w: f32[6, 6]) -> f32[]:
    h, total = zeros[B, 6], 0.0
    for t in T:
        h = tanh(x[t] + h @ w)
        total = total + sum[b, j](h[b, j] ** 2)
    return total
"""

GATES = """
def cell(x: real[B, 24], h: real[B, 24], c: real[B, 24], w: real[96, 24]) -> (real[B, 24], real[B, 24]):
    z = x @ w.T + h @ w.T
    gate[k, b, u] = z[b, (k:4, u:24)]
    c = sigmoid(gate[1]) * c + sigmoid(gate[0]) * tanh(gate[2])
    return sigmoid(gate[3]) * tanh(c), c

export def step(x: f32[T, B, 24], v: f32[96, 24], w: f32[96, 24]) -> (f32[96, 24], f32[96, 24]):
    a, c, b, d = zeros[B, 24], zeros[B, 24], zeros[B, 24], zeros[B, 24]
    ys = for t in T:
        a, c = cell(x[t], a, c, v)
        b, d = cell(a, b, d, w)
        yield b
    d = grad(sum[t, i, j](ys[t, i, j] ** 2), [v, w])
    return d[0], d[1]
"""

OTHERS = {
    "carry read before and after": """
export def f(x: f32[T, B, 6], w: f32[6, 6], u: f32[6, 6]) -> (f32[6, 6], f32[6, 6], f32[T, B, 6]):
    a, b = ones[B, 6], zeros[B, 6]
    ys = for t in T:
        old = a
        a = tanh(x[t] + a @ u)
        b = tanh(old @ w + b @ u * 0.5 + a)
        yield old - b
    d = grad(sum[t, i, j](ys[t, i, j] ** 2), [w, u])
    return d[0], d[1], ys
""",
    "losses in turns": """
export def f(x: f32[T, B, 6], y: i32[T, B], w: f32[6, 4], u: f32[6, 6]) -> (f32[], f32[6, 4], f32[6, 6]):
    a, loss = zeros[B, 6], 0.0
    for t in T:
        a = tanh(x[t] + a @ u)
        z = a @ w
        p[i, c] = exp(z[i, c]) / sum[k](exp(z[i, k]))
        loss = loss - sum[i](log(p[i, y[t, i]]))
    d = grad(loss, [w, u])
    return loss, d[0], d[1]
""",
    "counter and cache": """
export def f(x: f32[T, B, 6], w: f32[6, 6], u: f32[6, 6]) -> (f32[T, B, 6], i32[]):
    a, b, n, cache = zeros[B, 6], zeros[B, 6], 0, zeros[T, B, 6]
    ys = for t in T:
        a = tanh(x[t] + a @ u)
        cache[t, i, j] := a[i, j]
        b = tanh(a @ w + b @ u + cache[0])
        n = n + 1
        yield b * f32(n)
    return ys, n
""",
    "recompute": """
export def f(x: f32[T, B, 6], w: f32[6, 6], u: f32[6, 6]) -> f32[6, 6]:
    a, b = zeros[B, 6], zeros[B, 6]
    ys = for t in T:
        a = recompute(tanh(x[t] + a @ u))
        b = tanh(a @ w + b @ u)
        yield b
    return grad(sum[t, i, j](ys[t, i, j] ** 2), u)
""",
}


def loops(graph: Graph) -> list[Loop]:
    return [n for n in all_nodes(compiler.optimise(graph)) if isinstance(n, Loop)]


def agree(one: Built) -> None:
    for dims in SIZES:
        compare(one.graph, dims, sample(one.graph, dims, np.random.default_rng(0)))


@pytest.mark.parametrize(("name", "count"), [("forward", 2), ("step", 4)])
def test_a_loop_for_each_layer(name: str, count: int) -> None:
    one = built(STACK)[name]
    assert len(loops(one.graph)) == count
    agree(one)


def test_what_no_turn_needs_is_computed_after_the_loop() -> None:
    one = built(PROJECTED)["forward"]
    (loop,) = loops(one.graph)
    assert len(loop.yields) == 1 and loop.yields[0] is loop.next[0]
    agree(one)


@pytest.mark.parametrize("text", [FED_BACK, SUMMED])
def test_one_loop_where_nothing_is_gained(text: str) -> None:
    one = built(text)["forward"]
    assert len(loops(one.graph)) == 1
    agree(one)


@pytest.mark.parametrize("name", list(OTHERS))
def test_other_loops(name: str) -> None:
    agree(built(OTHERS[name])["f"])


def test_gates_and_their_gradients_are_one_kernel_of_a_turn() -> None:
    one = built(GATES)["step"]
    agree(one)
    program = compiler.schedule(compiler.optimise(one.graph))
    turns = [s.steps for s in program.steps if isinstance(s, Repeat)]
    assert len(turns) == 4
    for turn in turns:
        kernels = [k.name.split("_")[1] for k in turn if isinstance(k, Kernel)]
        assert sorted(kernels) == ["contract", "rows"]
