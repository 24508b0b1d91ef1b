"""Functions that find sizes from the modules that they are given: `net: Linear(D, D)`."""

from __future__ import annotations

import numpy as np
import pytest

from nnc import compiler
from nnc.diagnostics import Source
from tests.endtoend import built, compare, sample

TEXT = """
from std.nn import Linear
from std.optim import SGD
module Net(D, L, wide=2):
    blocks = [Linear(D, D) for l in L]
    up = Linear(D, wide*D)
    def forward(x: real[B, D]) -> real[B, wide*D]:
        for b in blocks: x = x + tanh(b(x))
        return up(x)
def twice(net: Linear(D, D), x: real[B, D]) -> real[B, D] = net(net(x))
def after(x: real[B, D], net: Linear(D + 1, 3*K)) -> real[K]:
    y[b, i:D + 1] = x[b, i else 1]
    z = net(y)
    s[k:K] = sum[b](z[b, k])
    return s
def size(net: params(Linear(I, O))) -> real = total(net**2) * (I + 10*O)
def loss(net: Net(D, L, W), x: real[B, D], y: real[B, W*D]) -> real = mean((net(x) - y)**2) + L
def step(inout net: Net(D, L), inout opt: SGD(Net(D, L)), x: real[B, D], y: real[B, 2*D]) -> real:
    l = loss(net, x, y)
    net := opt!(net, grad(l, net), 0.1)
    return l
export def f(net: Linear(4, 4), wide: Linear(5, 6), x: f32[B, 4]) -> (f32[B, 4], f32[2], f32):
    return twice(net, x), after(x, wide), size(net) + size(wide)
export def g(inout net: Net(4, 2), inout opt: SGD(Net(4, 2)), x: f32[B, 4], y: f32[B, 8]) -> f32:
    return step!(net, opt, x, y)
export def h(inout net: Net(3, 0), inout opt: SGD(Net(3, 0)), x: f32[B, 3], y: f32[B, 6]) -> f32:
    return step!(net, opt, x, y)
"""


@pytest.mark.parametrize("name", ["f", "g", "h"])
def test_values(name: str) -> None:
    graph = built(TEXT)[name].graph
    compare(graph, {"B": 3}, sample(graph, {"B": 3}, np.random.default_rng(0)))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("twice(wide, x)", "`twice` takes Linear(I=4, O=4), this is Linear(I=4, O=8)"),
        ("twice(net, y)", "`twice` is given 5 on axis 1 but takes 4"),
        ("late(z, net)", "`late` takes a module with D = N here, this has 4"),
        ("late(y, net)", "`late` takes Linear(I=5, O=5), this is Linear(I=4, O=4)"),
        ("odd(net, x)", "K"),
    ],
)
def test_mistakes(call: str, text: str) -> None:
    program = f"""
from std.nn import Linear
def twice(net: Linear(D, D), x: real[B, D]) -> real[B, D] = net(net(x))
def late(x: real[B, D], net: Linear(D, D)) -> real[B, D] = net(net(x))
def odd(net: Linear(D, 3*K), x: real[B, D]) -> real[B, 3*K] = net(x)
export def f(net: Linear(4, 4), wide: Linear(4, 8), x: f32[B, 4], y: f32[B, 5], z: f32[B, N]) -> f32[B, 4] = {call}
"""
    (error,) = compiler.check("t.nn", source=Source("t.nn", program)).errors
    assert text in error.message or text in str(error)
