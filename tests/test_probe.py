"""`probe p`: values inside an export by path, and no trace of them when nobody asks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nnc
from nnc import compiler
from nnc.cli import main

TEXT = """\
from std.nn import Linear

def scored(x: real[T, D]) -> real[T, D]:
    s = x * 2
    probe s
    return s

module Attn(D):
    q = Linear(D, D)
    def forward(x: real[T, D]) -> real[T, D]:
        p = softmax(scored(q(x)), over=D)
        probe p
        return p * x

module Net(D=4, L=2):
    h = [Attn(D) for i in L]
    def forward(x: real[T, D]) -> real[T, D]:
        for b in h:
            x = b(x)
        return x

export def predict(net: Net, x: f32[T, 4]) -> f32[T, 4]:
    y = net(x)
    probe y
    return y

export def looped(x: f32[T, 4]) -> f32[4]:
    s = zeros[4]
    for t in T:
        s = s + x[t]
        pair = (s, 1.5)
        probe pair
        for u in T:
            w = s * u
            probe w
            s = s + x[u]
    return s

export def twice(a: Linear(4, 4), b: Linear(4, 4), x: f32[4]) -> f32[4]:
    first = scored(x[None, :])
    return a(scored(first)[0]) + b(x)

export def train(inout net: Net, x: f32[T, 4], lr: f32 = 0.1) -> f32:
    loss = mean(net(x)**2)
    g = grad(loss, net)
    probe g, loss
    net := net - lr * g
    return loss
"""
X = np.linspace(-1, 1, 20, dtype=np.float32).reshape(5, 4)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("probe") / "p.nn"
    out.write_text(TEXT)
    return out


@pytest.fixture(scope="module")
def m(path: Path) -> nnc.Model:
    return nnc.load(path)


def test_paths(m: nnc.Model) -> None:
    assert m.probes["h.1.p"] == ("predict", "train") and m.probes["y"] == ("predict",)
    assert [p for p, e in m.probes.items() if "twice" in e] == ["scored.s", "scored.s#2"]
    assert "h.0.scored.s" in m.probes and "pair.1" in m.probes
    assert "g.h.0.q.weight" in m.probes


def test_values(m: nnc.Model) -> None:
    net = m.Net.init(seed=0)
    plain = m.predict
    before = m.predict(net, X)
    with m.probe("y", "h.1.p") as seen:
        assert len(seen) == 0
        with pytest.raises(nnc.Error, match="no call has computed"):
            _ = seen["y"]
        after = m.predict(net, X)
    assert np.array_equal(after, before) and np.array_equal(seen["y"], before)
    assert np.allclose(seen["h.1.p"].sum(1), 1) and list(seen) == ["y", "h.1.p"]
    assert m.predict is plain and len(seen) == 2


def test_two_watchers(m: nnc.Model) -> None:
    net = m.Net.init(seed=0)
    one, two = m.probe("h.0.p"), m.probe("h.1.p", "h.0.p")
    m.predict(net, X)
    assert np.array_equal(one.value, two["h.0.p"])
    one.close()
    m.predict(net, 2 * X)
    assert not np.array_equal(one.value, two["h.0.p"])
    two.close(), two.close()


def test_loops_are_stacked_by_turn(m: nnc.Model) -> None:
    with m.probe("pair.0", "w") as seen:
        result = m.looped(X)
    sums = X.sum(0) * np.arange(5)[:, None] + X.cumsum(0)
    assert np.allclose(seen["pair.0"], sums, atol=1e-5) and np.allclose(result, 6 * X.sum(0))
    assert seen["w"].shape == (5, 5, 4) and np.allclose(seen["w"][1, 1], sums[1] + X[0], atol=1e-5)


def test_with_gradients_and_writes(m: nnc.Model) -> None:
    net, other = m.Net.init(seed=0), m.Net.init(seed=0)
    with m.probe("loss", "g.h.0.q.weight") as seen:
        loss = m.train(net, X)
    assert loss == m.train(other, X) == seen["loss"]
    assert all(np.array_equal(net[k], other[k]) for k in net)
    start = m.Net.init(seed=0)["h.0.q.weight"]
    want = start - np.float32(0.1) * seen["g.h.0.q.weight"]
    assert np.allclose(net["h.0.q.weight"], want, atol=1e-6)


def test_mistakes(m: nnc.Model) -> None:
    with pytest.raises(nnc.KeyError, match=r'did you mean "h.1.p"'):
        m.probe("h.1.q")
    with pytest.raises(nnc.Error, match="say what to probe"):
        m.probe()
    with m.probe("y", "loss") as seen:
        with pytest.raises(nnc.Error, match="several"):
            _ = seen.value
        with pytest.raises(nnc.Error, match="forward"):
            m.predict.forward(m.Net.init(seed=0), X)
    with pytest.raises(nnc.KeyError):
        _ = seen["h.0.p"]


def test_free_when_not_asked_for(path: Path, tmp_path: Path) -> None:
    bare = tmp_path / "p.nn"  # comments in their place keep the lines
    bare.write_text(TEXT.replace("probe ", "# "))
    for name in ("predict", "looped", "train"):
        texts = [compiler.dump(str(p), name, "loops") for p in (path, bare)]
        assert texts[0].replace(str(path), "") == texts[1].replace(str(bare), "")


def test_run(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", X)
    args = ["run", str(path), "predict", "--arg", f"x={tmp_path / 'x.npy'}", "--probe", "h.0.p"]
    assert main(args) == 0 and "h.0.p float32[5, 4]" in capsys.readouterr().out
    assert main([*args, "--probe", "y", "--save", str(tmp_path / "out.npz")]) == 0
    saved = np.load(tmp_path / "out.npz")
    assert set(saved) == {"result", "h.0.p", "y"} and np.array_equal(saved["y"], saved["result"])
    assert main([*args, "--probe", "loss"]) == 2 and "predict" in capsys.readouterr().err


def test_in_a_function_called_for_each_element(tmp_path: Path) -> None:
    (tmp_path / "each.nn").write_text(
        """
def doubled(x: real) -> real:
    h = x * 2
    probe h
    return h + 1

def iterated(x: real, n: dim) -> real:
    for t in n:
        x = 0.5 * x + 1
        probe x
    return x

export def some(x: f32[M]) -> f32[M]:
    y[i] = doubled(x[i]) if x[i] > 0 else 0
    return y

export def sums(x: f32[M], w: f32[K]) -> f32[M]:
    y[i] = sum[k](doubled(x[i] * w[k]))
    return y

export def loop(x: f32[M], n: dim) -> f32[M] where n >= 1:
    y[i] = iterated(x[i], n)
    return y
"""
    )
    m = nnc.load(tmp_path / "each.nn")
    x, w = np.array([1, 2, -3], np.float32), np.array([1, 10], np.float32)
    with m.probe("doubled.h") as seen:
        m.some(x)
        np.testing.assert_array_equal(seen.value, [2, 4, 0])
        m.sums(x, w)
        np.testing.assert_array_equal(seen.value, 2 * x[:, None] * w)
    with m.probe("iterated.x") as seen:
        m.loop(x, 2)
        np.testing.assert_array_equal(seen.value, [0.5 * x + 1, 0.25 * x + 1.5])
