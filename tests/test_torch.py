"""PyTorch as second oracle: values, gradients, and 50 training steps follow the same curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnc

torch = pytest.importorskip("torch", reason="torch==2.13.0 is not installed: second oracle skipped")

ROOT = Path(__file__).parent.parent
MLP = (ROOT / "models" / "mlp.nn").read_text()
RNG = np.random.default_rng(3)
X = RNG.standard_normal((37, 64)).astype(np.float32)
Y = RNG.integers(0, 10, 37).astype(np.int32)


def reference(net: Any) -> dict[str, Any]:
    return {k: torch.tensor(np.array(v), requires_grad=True) for k, v in net.items()}


def forward(p: dict[str, Any], x: Any) -> Any:
    h = torch.relu(torch.nn.functional.linear(x, p["fc1.weight"], p["fc1.bias"]))
    return torch.nn.functional.linear(h, p["fc2.weight"], p["fc2.bias"])


def loss(p: dict[str, Any]) -> Any:
    return torch.nn.functional.cross_entropy(forward(p, torch.tensor(X)), torch.tensor(Y).long())


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("mlp") / "mlp.nn"
    more = """
export def logits(net: MLP, x: f32[B, 64]) -> f32[B, 10] = net(x)

export def loss(net: MLP, x: f32[B, 64], y: i32[B]) -> f32 = cross_entropy(net(x), y)
"""
    path.write_text(MLP + more)
    return nnc.load(path)


def test_values_and_gradients_of_mlp(mlp: Any) -> None:
    net = mlp.MLP.init(seed=1)
    p = reference(net)
    np.testing.assert_allclose(
        mlp.logits(net, X), forward(p, torch.tensor(X)).detach().numpy(), rtol=1e-5, atol=1e-5
    )
    run = mlp.loss.forward(net, X, Y)
    want = loss(p)
    want.backward()
    assert float(run.value) == pytest.approx(want.item(), rel=1e-6)
    grads = run.backward(np.float32(1))
    for key, value in p.items():
        np.testing.assert_allclose(grads.net[key], value.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_gradient_of_an_input(mlp: Any) -> None:
    net = mlp.MLP.init(seed=1)
    x = torch.tensor(X, requires_grad=True)
    dy = RNG.standard_normal((37, 10)).astype(np.float32)
    forward(reference(net), x).backward(torch.tensor(dy))
    grads = mlp.logits.forward(net, X).backward(dy)
    np.testing.assert_allclose(grads.x, x.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_predict_is_the_argmax(mlp: Any) -> None:
    net = mlp.MLP.init(seed=2)
    want = forward(reference(net), torch.tensor(X)).argmax(1).numpy()
    np.testing.assert_array_equal(mlp.predict(net, X), want)


STEP = """
from std.nn import Linear, relu
from std.loss import cross_entropy
from std.optim import {optimizer}

module MLP(I=64, H=128, C=10):
    fc1 = Linear(I, H)
    fc2 = Linear(H, C)
    def forward(x: real[B, I]) -> real[B, C] = fc2(relu(fc1(x)))

export def train_step(inout net: MLP, inout opt: {optimizer}(MLP{args}), x: f32[B, 64], y: i32[B], lr: f32) -> f32:
    loss = cross_entropy(net!(x), y)
    net := opt!(net, grad(loss, net), lr)
    return loss
"""
OPTIMIZERS = {
    "SGD": (", momentum=0.9", 0.05, lambda p: torch.optim.SGD(p.values(), lr=0.05, momentum=0.9)),
    "SGD decay": (
        ", momentum=0.9, decay=0.01",
        0.05,
        lambda p: torch.optim.SGD(p.values(), lr=0.05, momentum=0.9, weight_decay=0.01),
    ),
    "Adam": ("", 0.002, lambda p: torch.optim.Adam(p.values(), lr=0.002)),
    "AdamW": (
        "",
        0.002,
        lambda p: torch.optim.AdamW(
            [
                {"params": [v for k, v in p.items() if k.endswith("weight")], "weight_decay": 0.01},
                {"params": [v for k, v in p.items() if k.endswith("bias")], "weight_decay": 0.0},
            ],
            lr=0.002,
        ),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fifty_steps_follow_the_same_curve(name: str, tmp_path: Path) -> None:
    args, lr, make = OPTIMIZERS[name]
    kind = name.split()[0]
    path = tmp_path / "step.nn"
    path.write_text(STEP.format(optimizer=kind, args=args))
    m = nnc.load(path)
    net = m.MLP.init(seed=5)
    opt = m.train_step.init("opt", net)
    p = reference(net)
    other = make(p)
    for step in range(50):
        mine = float(m.train_step(net, opt, X, Y, lr=lr))
        other.zero_grad()
        theirs = loss(p)
        theirs.backward()
        other.step()
        assert mine == pytest.approx(theirs.item(), rel=2e-4, abs=1e-5), f"step {step}"
    for key, value in p.items():
        # Adam divides by the gradient's size: where it is all rounding error, so is the update.
        apart = np.abs(net[key] - value.detach().numpy())
        assert np.quantile(apart, 0.98) < 5e-5 and apart.max() < 50 * lr / 4
