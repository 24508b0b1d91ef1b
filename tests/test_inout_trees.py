"""`inout` arguments that are trees, in exports and in functions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nnc

TEXT = """
from std.nn import Linear

module Two(D=3):
    a = Linear(D, D)
    b = Linear(D, 1)
    def forward(x: real[B, D]) -> real[B, 1] = b(a(x))

def accumulate(inout v: params(Two), g: params(Two), rate: f32):
    before = v
    v := rate * v + g
    v := v + 0 * before

def apply(inout v: params(Two), g: params(Two)):
    v := v - 0.5 * g

module Mean(P: tree):
    state m: params(P) = 0
    def forward(p: params(P)) -> params(P):
        add(m, p)
        return m
    def add(inout t: params(P), p: params(P)):
        t := t + p

export def turn(inout net: Two, inout v: params(Two), x: f32[B, 3]) -> f32:
    loss = total(net(x)**2)
    for t in 2:
        accumulate(v, grad(loss, net), 0.5)
    apply(net, v)
    return loss

export def over(inout v: params(Two), g: params(Two), n: i32[T]):
    for t in T:
        if n[t] > 0:
            v := v + g

export def mean(inout m: Mean(Two), net: Two) -> params(Two):
    return m!(net)
"""


@pytest.fixture(scope="module")
def m(tmp_path_factory: pytest.TempPathFactory) -> nnc.Model:
    path = tmp_path_factory.mktemp("trees") / "model.nn"
    path.write_text(TEXT)
    return nnc.load(path)


def test_writes_are_seen_outside(m: nnc.Model) -> None:
    net, zero = m.Two.init(seed=0), m.Mean(m.Two.init(seed=0)).init()
    tree = m.mean(zero, net)  # a tree of its own
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    old = {k: net[k].copy() for k in net}
    was = {k: tree[k].copy() for k in tree}
    m.turn(net, tree, x)
    y = (x @ old["a.weight"].T + old["a.bias"]) @ old["b.weight"].T + old["b.bias"]
    g = 2 * y.sum()
    want = 0.25 * was["b.bias"] + 1.5 * g
    np.testing.assert_allclose(tree["b.bias"], want, rtol=1e-4)
    np.testing.assert_allclose(net["b.bias"], old["b.bias"] - 0.5 * want, rtol=1e-4)


def test_in_loops_and_branches(m: nnc.Model) -> None:
    net = m.Two.init(seed=0)
    tree = m.mean(m.Mean(net).init(), net)
    want = {k: 3 * net[k] for k in tree}
    m.over(tree, net, np.array([1, 0, 2], np.int32))
    for k, value in want.items():
        np.testing.assert_allclose(tree[k], value, rtol=1e-6)


def test_one_tree_for_two_arguments_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.nn"
    text = TEXT.replace("apply(inout v: params(Two), g", "apply(inout v: params(Two), inout g")
    path.write_text(text.replace("apply(net, v)", "apply(v, v)"))
    with pytest.raises(nnc.CompileError, match="both written, and overlap"):
        nnc.load(path)


def test_a_tree_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "model.nn"
    path.write_text(TEXT.replace("apply(net, v)", "apply(grad(loss, net), v)"))
    with pytest.raises(nnc.CompileError, match="`inout` needs a tree that can be written"):
        nnc.load(path)
