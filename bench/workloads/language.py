"""GPT-2 small (prefill, decoding), a small GPT's and an LSTM's training step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from bench import peers
from bench.workload import Call, Case, Context, load, quantized, weights
from bench.workloads.dense import cross_entropy

LR = 1e-3
MATRICES = 12 * (768 * 2304 + 768 * 768 + 2 * 768 * 3072)  # weights of a GPT-2 small's blocks
HEAD = 50257 * 768


def _tokens(*shape: int, below: int) -> Any:
    return np.random.default_rng(0).integers(0, below, shape).astype(np.int32)


def _gpt2(p: dict[str, Any]) -> Callable[[], Any]:
    def make() -> Any:
        from bench import torch_models

        return torch_models.with_weights(torch_models.GPT2(last=True), p)

    return make


class First:
    """A torch module of which only the first result counts."""

    def __init__(self, made: Callable[[], Any]) -> None:
        self.made = made

    def __call__(self) -> Any:
        torch = peers.need("torch")
        inner = self.made()

        class Wrapped(torch.nn.Module):  # type: ignore[name-defined, misc]
            def __init__(self) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, *xs: Any) -> Any:
                return self.inner(*xs)[0]

        return Wrapped()


def jax_gpt2(
    j: Any, p: Any, tokens: Any, past: Any = None, layers: int = 12, heads: int = 12
) -> Any:
    """Final states [B, T, D] before the head."""
    np_, start = j.numpy, 0 if past is None else past.shape[4]
    x = p["wte.weight"][tokens] + p["wpe.weight"][start : start + tokens.shape[1]]

    def dense(k: str, x: Any) -> Any:
        return x @ p[f"{k}.weight"] + p[f"{k}.bias"]

    def norm(k: str, x: Any) -> Any:
        x = (x - x.mean(-1, keepdims=True)) * j.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * p[f"{k}.weight"] + p[f"{k}.bias"]

    b, t, d = x.shape
    for i in range(layers):
        qkv = dense(f"h.{i}.attn.c_attn", norm(f"h.{i}.ln_1", x))
        q, k, v = qkv.reshape(b, t, 3, heads, d // heads).transpose(2, 0, 3, 1, 4)
        if past is not None:
            k, v = np_.concatenate([past[i, 0], k], 2), np_.concatenate([past[i, 1], v], 2)
        s = np_.einsum("bhte,bhje->bhtj", q, k) / np.float32((d // heads) ** 0.5)
        s = np_.where(np.tri(t, start + t, start, dtype=bool), s, -np.inf)
        a = np_.einsum("bhtj,bhje->bthe", j.nn.softmax(s, -1), v).reshape(b, t, d)
        x = x + dense(f"h.{i}.attn.c_proj", a)
        x = x + dense(
            f"h.{i}.mlp.c_proj", j.nn.gelu(dense(f"h.{i}.mlp.c_fc", norm(f"h.{i}.ln_2", x)))
        )
    return norm("ln_f", x)


def jax_logits(p: dict[str, Any], inputs: list[Any], threads: int) -> Callable[[], Call]:
    def make() -> Call:
        j = peers.jax(threads)
        held = {k: j.numpy.asarray(v) for k, v in p.items()}

        def function(j: Any, q: Any, *xs: Any) -> Any:
            return jax_gpt2(j, q, *xs)[:, -1] @ q["wte.weight"].T

        return peers.jax_inference(threads, function, [held, *inputs])()

    return make


def prefill(length: int, context: Context) -> Case:
    model = load("gpt2_infer.nn", context)
    net = model.GPT2.init(seed=0)
    p = weights(net)
    tokens = _tokens(1, length, below=50257)
    kv = np.zeros((12, 2, 1, 12, length, 64), np.float32)
    return Case(
        f"GPT-2 small, prefill of {length}, logits of the last position",
        {
            "nnc": lambda: partial(model.logits, net, kv, tokens, 0),
            **peers.inference(First(_gpt2(p)), [tokens], context.threads, exported=_gpt2(p)),
            "jax": jax_logits(p, [tokens], context.threads),
        },
        1.1,
        1.3,
        flop=2.0 * (length * MATRICES + HEAD) + 12 * 4.0 * 768 * length * (length + 1) / 2,
        tolerance=2e-3,
    )


def decode(context: Context, past: int = 128, bf16: bool = False) -> Case:
    """`bf16`: nnc's weights are stored as bf16 (its peers have f32)."""
    model = load("gpt2_infer.nn", context)
    net = model.GPT2.init(seed=0)
    p = weights(net)
    rng = np.random.default_rng(1)
    kv = rng.standard_normal((12, 2, 1, 12, past + 1, 64), dtype=np.float32)
    before = np.ascontiguousarray(kv[:, :, :, :, :past])
    token = _tokens(1, 1, below=50257)
    inputs = [token, before]

    def nnc() -> Call:
        if not bf16:
            return partial(model.logits, net, kv, token, past)
        given = {"kv": kv, "tokens": token, "P": past}
        q = quantized("gpt2_infer.nn", context, net, "logits", "bf16", **given)
        return partial(q.model.logits, q.net, kv, token, past)

    return Case(
        f"GPT-2 small, one token after {past}" + (", weights stored as bf16" if bf16 else ""),
        {
            "nnc": nnc,
            **peers.inference(First(_gpt2(p)), inputs, context.threads, exported=_gpt2(p)),
            "jax": jax_logits(p, inputs, context.threads),
        },
        1.0,
        1.8 if bf16 else 1.1,
        read=(2.0 if bf16 else 4.0) * (MATRICES + HEAD) + before.nbytes,
        tolerance=2e-2 if bf16 else 2e-3,
    )


def small_gpt(context: Context) -> Case:
    """6 layers of 384, 6 heads, 96 characters, 4 x 256 tokens."""
    model = load("small_gpt.nn", context)
    net, opt = model.train_step.init("net", seed=0), model.train_step.init("opt")
    p = weights(net)
    tokens = _tokens(4, 257, below=96)

    def module() -> Any:
        from bench import torch_models

        return torch_models.with_weights(torch_models.GPT2(96, 256, 384, 6, 6), p)

    def loss(net: Any) -> Any:
        torch = peers.need("torch")
        ids = torch.from_numpy(tokens).long()
        logits = net(ids[:, :-1])
        return torch.nn.functional.cross_entropy(logits.reshape(-1, 96), ids[:, 1:].reshape(-1))

    def adamw(net: Any) -> Any:
        torch = peers.need("torch")
        decayed = [q for q in net.parameters() if q.dim() > 1]
        others = [q for q in net.parameters() if q.dim() <= 1]
        groups = [
            {"params": decayed, "weight_decay": 0.01},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=LR, fused=True)

    def jax_loss(j: Any, q: Any) -> Any:
        x = jax_gpt2(j, q, tokens[:, :-1], layers=6, heads=6)
        return cross_entropy(j, x @ q["wte.weight"].T, tokens[:, 1:])

    update, state = peers.jax_adam(LR, decay=0.01)
    rows = 4 * 256
    weights_ = 6 * 12 * 384 * 384 + 96 * 384
    return Case(
        "GPT of 6 x 384, step with AdamW, 4 x 256 tokens",
        {
            "nnc": lambda: lambda: model.train_step(net, opt, tokens, LR),
            **peers.training(module, loss, adamw),
            "jax": peers.jax_training(context.threads, p, jax_loss, update, state),
        },
        1.25,
        1.6,
        flop=3 * (2.0 * rows * weights_ + 6 * 4.0 * 384 * 4 * 256 * 257 / 2),
        checks=3,
    )


def lstm(context: Context) -> Case:
    """2 layers of 256, 96 characters, 32 x 64 characters, zero start."""
    model = load("lstm.nn", context)
    net, opt = model.train_step.init("net", seed=0), model.train_step.init("opt")
    p = weights(net)
    text = _tokens(32, 65, below=96)

    def module() -> Any:
        from bench import torch_models

        return torch_models.with_weights(torch_models.CharLSTM(), p)

    def loss(net: Any) -> Any:
        torch = peers.need("torch")
        ids = torch.from_numpy(text).long()
        logits = net(ids[:, :-1])
        return torch.nn.functional.cross_entropy(logits.reshape(-1, 96), ids[:, 1:].reshape(-1))

    def adam(net: Any) -> Any:
        return peers.need("torch").optim.Adam(net.parameters(), lr=LR, fused=True)

    def jax_loss(j: Any, q: Any) -> Any:
        x = q["embed"][text[:, :-1]].transpose(1, 0, 2)
        zero = j.numpy.zeros((2, 32, 256), np.float32)

        def step(carry: Any, x: Any) -> Any:
            hs, cs = [], []
            for i in (0, 1):
                h, c = carry[0][i], carry[1][i]
                z = x @ q[f"l{i}.weight_ih"].T + h @ q[f"l{i}.weight_hh"].T
                z = z + q[f"l{i}.bias_ih"] + q[f"l{i}.bias_hh"]
                a, f, g, o = j.numpy.split(z, 4, axis=1)
                c = j.nn.sigmoid(f) * c + j.nn.sigmoid(a) * j.numpy.tanh(g)
                x = j.nn.sigmoid(o) * j.numpy.tanh(c)
                hs.append(x)
                cs.append(c)
            return (j.numpy.stack(hs), j.numpy.stack(cs)), x

        ys = j.lax.scan(step, (zero, zero), x)[1]
        return cross_entropy(j, ys.transpose(1, 0, 2) @ q["out"].T, text[:, 1:])

    return Case(
        "char-RNN, 2 LSTM layers of 256, step with Adam, 32 x 64",
        {
            "nnc": lambda: lambda: model.train_step(net, opt, text, LR),
            **peers.training(module, loss, adam),
            "jax": peers.jax_training(context.threads, p, jax_loss, *peers.jax_adam(LR)),
        },
        1.4,
        2.0,
        flop=3 * 2.0 * 32 * 64 * (4 * 512 * 512 + 96 * 256),
        checks=3,
    )


WORKLOADS: dict[str, Callable[[Context], Case]] = {
    "prefill_128": partial(prefill, 128),
    "prefill_512": partial(prefill, 512),
    "decode_128": decode,
    "decode_128_bf16": partial(decode, bf16=True),
    "lstm": lstm,
    "small_gpt": small_gpt,
}
