"""Matrix products: square ones of two arguments, and with a constant matrix."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from bench import peers
from bench.workload import Call, Case, Context, load


def _module(weight: Any = None) -> Any:
    torch = peers.need("torch")

    class Product(torch.nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            if weight is not None:
                self.weight = torch.nn.Parameter(torch.from_numpy(weight))

        def forward(self, a: Any, *b: Any) -> Any:
            return a @ (b[0] if b else self.weight)

    return Product()


def square(n: int, context: Context) -> Case:
    model = load("contraction.nn", context)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((n, n), dtype=np.float32) for _ in range(2))
    return Case(
        f"a @ b, {n} x {n} x {n}",
        {
            "nnc": lambda: partial(model.product, a, b),
            "numpy": lambda: partial(np.matmul, a, b),
            **peers.inference(_module, [a, b], context.threads),
            "jax": peers.jax_inference(context.threads, lambda j, a, b: a @ b, [a, b]),
        },
        0.95,
        1.05,
        flop=2.0 * n**3,
    )


def constant(rows: int, context: Context) -> Case:
    model = load("dense.nn", context)
    net = model.Dense.init(seed=0)
    w = np.array(net["weight"])
    x = np.random.default_rng(0).standard_normal((rows, 768), dtype=np.float32)

    def jax() -> Call:
        return peers.jax_inference(context.threads, lambda j, x: x @ j.numpy.asarray(w), [x])()

    return Case(
        f"x @ w, {rows} x 768 x 3072, w constant",
        {
            "nnc": lambda: partial(model.apply, net, x),
            "numpy": lambda: partial(np.matmul, x, w),
            **peers.inference(lambda: _module(w), [x], context.threads),
            "jax": jax,
        },
        1.0,
        1.2,
        flop=2.0 * rows * 768 * 3072,
    )


WORKLOADS: dict[str, Callable[[Context], Case]] = {
    **{f"contraction_{n}": partial(square, n) for n in (256, 512, 1024, 2048)},
    **{f"constant_{n}": partial(constant, n) for n in (8, 32, 128)},
}
