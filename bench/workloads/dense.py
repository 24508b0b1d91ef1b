"""A tiny network's call, and a training step of a multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from bench import peers
from bench.workload import Call, Case, Context, Missing, load, weights

LR = 1e-3


def torch_mlp(sizes: tuple[int, ...], p: dict[str, Any]) -> Any:
    """Linear layers fc1, fc2, ... with relu between."""
    torch = peers.need("torch")
    layers: list[Any] = []
    for i, (a, b) in enumerate(pairwise(sizes), 1):
        layer = torch.nn.Linear(a, b)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(p[f"fc{i}.weight"]))
            layer.bias.copy_(torch.from_numpy(p[f"fc{i}.bias"]))
        layers += [layer, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def jax_mlp(j: Any, p: Any, x: Any, depth: int) -> Any:
    for i in range(1, depth + 1):
        x = x @ p[f"fc{i}.weight"].T + p[f"fc{i}.bias"]
        x = j.nn.relu(x) if i < depth else x
    return x


def cross_entropy(j: Any, logits: Any, y: Any) -> Any:
    picked = j.numpy.take_along_axis(j.nn.log_softmax(logits), y[..., None], axis=-1)
    return -picked.mean()


def tiny(context: Context) -> Case:
    model = load("tiny.nn", context)
    net = model.Tiny.init(seed=0)
    p = weights(net)
    x = np.random.default_rng(0).random((1, 4), dtype=np.float32)

    def numpy() -> Call:
        w1, b1, w2, b2 = (
            np.ascontiguousarray(p[k].T)
            for k in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
        )
        return lambda: np.maximum(x @ w1 + b1, 0) @ w2 + b2

    mlp: Callable[[Any, Any, Any], Any] = lambda j, q, a: jax_mlp(j, q, a, 2)  # noqa: E731
    return Case(
        "MLP 4-16-3, 1 row, NumPy in and out",
        {
            "nnc": lambda: partial(model.predict, net, x),
            "numpy": numpy,
            **peers.inference(
                lambda: torch_mlp((4, 16, 3), p), [x], context.threads, numpy_io=True
            ),
            "jax": peers.jax_inference(context.threads, mlp, [p, x], numpy_io=True),
        },
        10.0,
        50.0,
        note="demand and aim are against ONNX Runtime",
    )


def mlp(batch: int, demand: float, aim: float, context: Context) -> Case:
    model = load("mlp_adam.nn", context)
    net = model.MLP.init(seed=0)
    opt = model.train_step.init("opt")
    p = weights(net)
    rng = np.random.default_rng(0)
    x = rng.random((batch, 784), dtype=np.float32)
    y = rng.integers(0, 10, batch).astype(np.int32)

    def loss(m: Any) -> Any:
        return torch.nn.functional.cross_entropy(m(tx), ty)

    try:
        torch = peers.need("torch")
        tx, ty = torch.from_numpy(x), torch.from_numpy(y).long()
    except Missing:
        pass
    jax_loss = lambda j, q: cross_entropy(j, jax_mlp(j, q, x, 3), y)  # noqa: E731
    size = 784 * 512 + 512 * 512 + 512 * 10
    return Case(
        f"MLP 784-512-512-10, step with Adam, batch {batch}",
        {
            "nnc": lambda: lambda: model.train_step(net, opt, x, y, LR),
            **peers.training(
                lambda: torch_mlp((784, 512, 512, 10), p),
                loss,
                lambda m: torch.optim.Adam(m.parameters(), lr=LR, fused=True),
            ),
            "jax": peers.jax_training(context.threads, p, jax_loss, *peers.jax_adam(LR)),
        },
        demand,
        aim,
        flop=2.0 * batch * (3 * size - 784 * 512),
        checks=3,
    )


WORKLOADS: dict[str, Callable[[Context], Case]] = {
    "tiny": tiny,
    "mlp_b64": partial(mlp, 64, 1.5, 2.2),
    "mlp_b256": partial(mlp, 256, 1.3, 1.8),
}
