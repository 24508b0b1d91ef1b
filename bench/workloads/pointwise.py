"""Rows of normalisation, a chain of element-wise work, causal attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from bench import peers
from bench.workload import Case, Context, load


def _module(function: Callable[..., Any], held: tuple[Any, ...] = ()) -> Any:
    torch = peers.need("torch")

    class Wrapped(torch.nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            for i, x in enumerate(held):
                self.register_buffer(f"held{i}", torch.from_numpy(x))

        def forward(self, *xs: Any) -> Any:
            return function(torch, *xs, *(getattr(self, f"held{i}") for i in range(len(held))))

    return Wrapped()


def _rows(n: int, m: int) -> Any:
    return np.random.default_rng(0).standard_normal((n, m), dtype=np.float32)


def layer_norm(context: Context) -> Case:
    model = load("pointwise.nn", context)
    net = model.LayerNorm.init(seed=0)
    x = _rows(4096, 1024)
    w, b = np.array(net["weight"]), np.array(net["bias"])
    norm = lambda t, x, w, b: t.nn.functional.layer_norm(x, (1024,), w, b)  # noqa: E731

    def jax(j: Any, x: Any) -> Any:
        u = x.mean(1, keepdims=True)
        return (x - u) * j.lax.rsqrt(((x - u) ** 2).mean(1, keepdims=True) + 1e-5) * w + b

    return Case(
        "layer norm, 4096 x 1024",
        {
            "nnc": lambda: partial(model.layer_norm, net, x),
            **peers.inference(lambda: _module(norm, (w, b)), [x], context.threads),
            "jax": peers.jax_inference(context.threads, jax, [x]),
        },
        1.0,
        1.15,
        read=2.0 * x.nbytes,
    )


def softmax(context: Context) -> Case:
    model = load("pointwise.nn", context)
    x = _rows(4096, 1024)
    return Case(
        "softmax, 4096 x 1024",
        {
            "nnc": lambda: partial(model.row_softmax, x),
            **peers.inference(lambda: _module(lambda t, x: t.softmax(x, 1)), [x], context.threads),
            "jax": peers.jax_inference(context.threads, lambda j, x: j.nn.softmax(x, 1), [x]),
        },
        1.0,
        1.15,
        read=2.0 * x.nbytes,
        tolerance=1e-4,
    )


def gelu(context: Context) -> Case:
    model = load("pointwise.nn", context)
    x, b, s = _rows(4096, 4096), _rows(1, 4096)[0], _rows(2, 4096)[1]

    def torch(t: Any, x: Any, b: Any, s: Any) -> Any:
        return t.nn.functional.gelu(x + b, approximate="tanh") * s

    return Case(
        "gelu(x + b) * s, 4096 x 4096",
        {
            "nnc": lambda: partial(model.gelu_scale, x, b, s),
            **peers.inference(lambda: _module(torch, (b, s)), [x], context.threads),
            "jax": peers.jax_inference(
                context.threads, lambda j, x, b, s: j.nn.gelu(x + b) * s, [x, b, s]
            ),
        },
        1.3,
        2.0,
        read=2.0 * x.nbytes,
    )


def attention(context: Context, heads: int = 12, length: int = 1024, width: int = 64) -> Case:
    model = load("attention.nn", context)
    rng = np.random.default_rng(0)
    qkv = [rng.standard_normal((heads, length, width), dtype=np.float32) for _ in range(3)]

    def torch(t: Any, q: Any, k: Any, v: Any) -> Any:
        sdpa = t.nn.functional.scaled_dot_product_attention
        return sdpa(q[None], k[None], v[None], is_causal=True)[0]

    def jax(j: Any, q: Any, k: Any, v: Any) -> Any:
        s = j.numpy.einsum("hte,hje->htj", q, k) / np.float32(width**0.5)
        s = j.numpy.where(np.tril(np.ones((length, length), bool)), s, -np.inf)
        return j.numpy.einsum("htj,hje->hte", j.nn.softmax(s, -1), v)

    return Case(
        f"causal attention, {heads} heads x {length} x {width}",
        {
            "nnc": lambda: partial(model.causal, *qkv),
            **peers.inference(lambda: _module(torch), qkv, context.threads),
            "jax": peers.jax_inference(context.threads, jax, qkv),
        },
        1.3,
        2.0,
        flop=2.0 * heads * length * (length + 1) * width,
    )


WORKLOADS: dict[str, Callable[[Context], Case]] = {
    "layer_norm": layer_norm,
    "softmax": softmax,
    "gelu": gelu,
    "attention": attention,
}
