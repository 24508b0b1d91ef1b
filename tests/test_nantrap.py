"""`nan_trap`: the first line that makes a value which is not finite, and nothing lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nnc
from nnc.cli import main

TEXT = """\
from std.nn import Linear, relu
from std.loss import cross_entropy
from std.optim import SGD

module VAE(I=6, Z=4):
    enc = Linear(I, Z)
    logvar = Linear(Z, Z)

    def forward(x: real[B, I]) -> real[B, Z]:
        h = relu(enc(x))
        lv = logvar(h)
        return 1 + lv - h**2 - exp(lv)

export def loss(net: VAE, x: f32[B, 6]) -> f32:
    return mean(net(x))

export def train_step(inout net: VAE, inout opt: SGD(VAE), x: f32[B, 6], y: i32[B], lr: f32 = 0.1) -> f32:
    loss = cross_entropy(net!(x), y)
    net := opt!(net, grad(loss, net), lr)
    return loss

export def attend(x: f32[T, 4]) -> f32[T, T]:
    s[i, j] = sum[d](x[i, d] * x[j, d]) if j <= i else -inf
    return softmax(s, over=j)

export def rooted(x: f32[N]) -> f32:
    s = 0.0
    for t in N:
        r = sqrt(x[t] - 3.0)
        s = s * 2.0 + r
    return s

export def picked(x: f32[N, 4]) -> i32[N]:
    p = log(x)
    return argmax(p, over=1)

export def rooted_gradient(x: f32[N]) -> f32[N]:
    y = sum(sqrt(x))
    return grad(y, x)

export def saturated(x: f32[N]) -> f32[N]:
    return tanh(exp(x))
"""
X = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trap") / "vae.nn"
    out.write_text(TEXT)
    return out


@pytest.fixture(scope="module")
def m(path: Path) -> nnc.Model:
    return nnc.load(path, nan_trap=True)


def trapped(call: object, *args: object) -> str:
    with pytest.raises(nnc.NonFiniteError) as raised:
        call(*args)  # type: ignore[operator]
    return str(raised.value)


def test_an_overflow_is_underlined(m: nnc.Model) -> None:
    net = m.VAE.init(seed=0)
    assert np.isfinite(m.loss(net, X))
    net["logvar.weight"][...] *= 400
    rows = trapped(m.loss, net, X).splitlines()
    assert rows[0].startswith("nan-trap: loss") and rows[0].endswith("first non-finite value")
    assert rows[1].endswith("vae.nn:12:32") and rows[3].endswith("- exp(lv)")
    assert rows[4].split("|")[1].strip().startswith("^^^^^^^ inf at [b=")
    assert "= lv[" in rows[5] and rows[5].endswith(", from logvar(h) (line 11)")


def test_nothing_is_written(m: nnc.Model) -> None:
    net = m.VAE.init(seed=0)
    opt = m.SGD(net).init()
    before = {k: v.copy() for k, v in net.items()}
    text = trapped(m.train_step, net, opt, X * 1e20, np.zeros(20, np.int32), 1.0)
    assert "h**2" in text and "as before it" in text
    assert all(np.array_equal(net[k], v) for k, v in before.items())
    assert np.isfinite(m.train_step(net, opt, X, np.zeros(20, np.int32)))
    assert not np.array_equal(net["enc.weight"], before["enc.weight"])


def test_the_gradient_of_the_step_before(m: nnc.Model) -> None:
    net = m.VAE.init(seed=0)
    opt = m.SGD(net).init()
    y = np.zeros(20, np.int32)
    m.train_step(net, opt, X, y, 0.0)
    net["logvar.weight"][...] *= 400
    text = trapped(m.train_step, net, opt, X, y, 0.0)
    net["logvar.weight"][...] /= 400
    grads = m.VAE.init(seed=0)
    moved = m.SGD(grads).init()
    m.train_step(grads, moved, X, y, 1.0)
    names = ("logvar.weight", "logvar.bias")
    size = max((float(np.linalg.norm(net[n] - grads[n])), n) for n in names)
    assert f"|grad| of net.{size[1]} was {size[0]:.2g} on the step before" in text


def test_infinities_that_are_meant(m: nnc.Model) -> None:
    x = X[:5, :4].copy()
    assert np.allclose(m.attend(x).sum(1), 1)
    assert "sum[d](x[i, d] * x[j, d])" in trapped(m.attend, x * np.float32(1e30))


def test_in_a_loop(m: nnc.Model) -> None:
    text = trapped(m.rooted, np.array([5, 4, 3.5, 2, 1, 5], np.float32))
    assert "sqrt(x[t] - 3.0)" in text and "nan in turn t = 3" in text and "= -1" in text
    assert m.rooted(np.array([5, 4, 3.5], np.float32)) > 0


def test_behind_an_integer(m: nnc.Model) -> None:
    assert list(m.picked(np.eye(4, dtype=np.float32) + 1)) == [0, 1, 2, 3]
    text = trapped(m.picked, X[:3, :4])
    assert "p = log(x)" in text and "nan at [n=0, j=1]" in text and "x[0, 1] = -0.13" in text


def test_what_would_vanish(m: nnc.Model) -> None:
    assert "inf at [n=1]" in trapped(m.saturated, np.array([1, 90], np.float32))


def test_in_a_gradient(m: nnc.Model) -> None:
    assert "sqrt(x)" in trapped(m.rooted_gradient, np.array([1, 0], np.float32))


def test_arguments_that_were_given_so(m: nnc.Model) -> None:
    x = X.copy()
    x[3, 2] = np.nan
    assert "x[3, 2] is nan: it was given so" in trapped(m.loss, m.VAE.init(seed=0), x)


def test_other_uses_are_refused(m: nnc.Model) -> None:
    with pytest.raises(nnc.Error, match="nan_trap"):
        m.loss.forward(m.VAE.init(seed=0), X)
    with pytest.raises(nnc.Error, match="nan_trap"):
        m.probe("x")


def test_the_command_line(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", -np.ones((2, 4), np.float32))
    args = ["run", str(path), "picked", "--arg", f"x={tmp_path / 'x.npy'}"]
    assert main(args) == 0
    assert main([*args, "--nan-trap"]) == 1
    assert "p = log(x)" in capsys.readouterr().err
    digits = str(ROOT / "models" / "mlp.nn")
    out = ["--epochs", "1", "--lr", "1e38", "--nan-trap", "--out", str(tmp_path)]
    assert main(["train", digits, *out]) == 1
    err = capsys.readouterr().err
    assert "nan-trap: train_step, call 2" in err or "nan-trap: train_step, call 1" in err
    assert (tmp_path / "mlp.ckpt.safetensors").exists() and "mlp.ckpt.safetensors" in err
