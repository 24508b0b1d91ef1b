"""The programs of models/ as PyTorch functions of a table of tensors under the same keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

Table = dict[str, Any]
STATISTICS = ("running_mean", "running_var")


def table(net: Any, dtype: Any = torch.float64) -> Table:
    """The tensors of a module, as leaves that torch differentiates (but for statistics)."""
    return {
        k: torch.tensor(v, dtype=dtype, requires_grad=not k.endswith(STATISTICS))
        for k, v in net.items()
    }


def part(p: Mapping[str, Any], prefix: str) -> Table:
    return {k.removeprefix(prefix): v for k, v in p.items() if k.startswith(prefix)}


def trained(p: Mapping[str, Any]) -> Table:
    return {k: v for k, v in p.items() if v.requires_grad}


# ---- optimizers -----------------------------------------------------------------------------------


def adam(p: Mapping[str, Any], lr: float, decay: float = 0.0) -> Any:
    """AdamW with `decay` on what has two or more axes."""
    groups: list[dict[str, Any]] = [
        {"params": [v for v in p.values() if v.requires_grad and v.ndim >= 2]},
        {"params": [v for v in p.values() if v.requires_grad and v.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, weight_decay=decay)


def clip(p: Mapping[str, Any], limit: float) -> None:
    torch.nn.utils.clip_grad_norm_(trained(p).values(), limit)


def descend(optimizer: Any, loss: Any, before: Callable[[], None] = lambda: None) -> float:
    """One step on a loss; returns it."""
    optimizer.zero_grad()
    loss.backward()
    before()
    optimizer.step()
    return float(loss.item())


# ---- GPT-2 ----------------------------------------------------------------------------------------


def gpt2(p: Table, tokens: Any, heads: int) -> Any:
    """Logits [B, T, V] of the whole sequence."""
    layers = 1 + max(int(k.split(".")[1]) for k in p if k.startswith("h."))
    x = p["wte.weight"][tokens] + p["wpe.weight"][: tokens.shape[1]]
    for i in range(layers):
        b = part(p, f"h.{i}.")
        x = x + _attention(part(b, "attn."), _norm(part(b, "ln_1."), x), heads)
        x = x + _mlp(part(b, "mlp."), _norm(part(b, "ln_2."), x))
    return _norm(part(p, "ln_f."), x) @ p["wte.weight"].T


def _norm(p: Table, x: Any) -> Any:
    return F.layer_norm(x, x.shape[-1:], p["weight"], p["bias"])


def _attention(p: Table, x: Any, heads: int) -> Any:
    n, t, d = x.shape
    qkv = x @ p["c_attn.weight"] + p["c_attn.bias"]
    q, k, v = (a.view(n, t, heads, d // heads).transpose(1, 2) for a in qkv.split(d, 2))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return y.transpose(1, 2).reshape(n, t, d) @ p["c_proj.weight"] + p["c_proj.bias"]


def _mlp(p: Table, x: Any) -> Any:
    h = F.gelu(x @ p["c_fc.weight"] + p["c_fc.bias"], approximate="tanh")
    return h @ p["c_proj.weight"] + p["c_proj.bias"]


# ---- ResNet-18 ------------------------------------------------------------------------------------


def resnet_features(p: Table, x: Any, train: bool) -> Any:
    x = F.relu(_batch_norm(part(p, "bn1."), F.conv2d(x, p["conv1.weight"], None, 2, 3), train))
    x = F.max_pool2d(x, 3, 2, 1)
    for layer in range(1, 5):
        for block in range(2):
            stride = 2 if layer > 1 and block == 0 else 1
            x = _block(part(p, f"layer{layer}.{block}."), x, stride, train)
    return x.mean((2, 3))


def resnet(p: Table, x: Any, train: bool) -> Any:
    return F.linear(resnet_features(p, x, train), p["fc.weight"], p["fc.bias"])


def _batch_norm(p: Table, x: Any, train: bool) -> Any:
    mean, var = p["running_mean"], p["running_var"]
    return F.batch_norm(x, mean, var, p["weight"], p["bias"], train, 0.1, 1e-5)


def _block(p: Table, x: Any, stride: int, train: bool) -> Any:
    y = F.relu(_batch_norm(part(p, "bn1."), F.conv2d(x, p["conv1.weight"], None, stride, 1), train))
    y = _batch_norm(part(p, "bn2."), F.conv2d(y, p["conv2.weight"], None, 1, 1), train)
    if "downsample.0.weight" in p:
        x = F.conv2d(x, p["downsample.0.weight"], None, stride)
        x = _batch_norm(part(p, "downsample.1."), x, train)
    return F.relu(y + x)


# ---- VAE, WGAN-GP -----------------------------------------------------------------------------------


def linear(p: Table, name: str, x: Any) -> Any:
    return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])


def elbo(p: Table, x: Any, noise: Any) -> Any:
    h = F.relu(linear(p, "enc", x))
    m, lv = linear(p, "mu", h), linear(p, "logvar", h)
    y = linear(p, "dec2", F.relu(linear(p, "dec1", m + torch.exp(0.5 * lv) * noise)))
    rec = F.binary_cross_entropy_with_logits(y, x, reduction="sum")
    return (rec - 0.5 * (1 + lv - m**2 - torch.exp(lv)).sum()) / len(x)


def generator(p: Table, z: Any) -> Any:
    return torch.tanh(linear(p, "fc2", F.leaky_relu(linear(p, "fc1", z), 0.2)))


def critic(p: Table, x: Any) -> Any:
    return linear(p, "fc2", F.leaky_relu(linear(p, "fc1", x), 0.2))[:, 0]


def critic_loss(gen: Table, d: Table, x: Any, noise: Any, eps: Any) -> Any:
    fake = generator(gen, noise).detach()
    mix = (eps * x + (1 - eps) * fake).requires_grad_()
    (slope,) = torch.autograd.grad(critic(d, mix).sum(), mix, create_graph=True)
    r = torch.sqrt((slope**2).sum(1) + 1e-12)
    return critic(d, fake).mean() - critic(d, x).mean() + 10 * ((r - 1) ** 2).mean()


# ---- novel_ops --------------------------------------------------------------------------------------


def deform_conv(x: Any, off: Any, w: Any) -> Any:
    """Deformable convolution by four gathers, zeros outside."""
    n, _, height, width = x.shape
    _, _, u, v = w.shape
    rows = torch.arange(height)[:, None] + (torch.arange(u) - u // 2)[:, None, None, None]
    cols = torch.arange(width)[None, :] + (torch.arange(v) - v // 2)[:, None, None]
    py, px = off[:, 0] + rows, off[:, 1] + cols
    y0, x0 = torch.floor(py), torch.floor(px)
    fy, fx = py - y0, px - x0

    def pick(i: Any, j: Any) -> Any:
        inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
        i, j = i.clamp(0, height - 1).long(), j.clamp(0, width - 1).long()
        found = x[torch.arange(n)[:, None, None, None, None], :, i, j]
        return found * inside[..., None]

    fy, fx = fy[..., None], fx[..., None]
    top = (1 - fx) * pick(y0, x0) + fx * pick(y0, x0 + 1)
    low = (1 - fx) * pick(y0 + 1, x0) + fx * pick(y0 + 1, x0 + 1)
    return torch.einsum("buvijc,ocuv->boij", (1 - fy) * top + fy * low, w)


def local_attention(q: Any, k: Any, v: Any, bias: Any) -> Any:
    """Each position looks at itself and the R - 1 positions before it."""
    t, window = q.shape[2], bias.shape[1]
    back = torch.arange(t)[:, None] - torch.arange(t)[None, :]
    seen = (back >= 0) & (back < window)
    s = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
    s = s + bias[:, back.clamp(0, window - 1)]
    return torch.softmax(s.masked_fill(~seen, -math.inf), -1) @ v


# ---- char_rnn ---------------------------------------------------------------------------------------


def char_rnn(p: Table, text: Any, h: Any, c: Any) -> tuple[Any, Any, Any]:
    """Logits [B, T, V] and the last h and c, by torch.nn.LSTMCell's kernel."""
    cell = part(p, "cell.")
    none = torch.zeros_like(cell["bias"])
    out = []
    for t in range(text.shape[1]):
        h, c = torch.lstm_cell(
            p["embed"][text[:, t]],
            (h, c),
            cell["weight_ih"],
            cell["weight_hh"],
            cell["bias"],
            none,
        )
        out.append(h)
    return torch.stack(out, 1) @ p["out"], h, c


# ---- transfer ---------------------------------------------------------------------------------------


def flowers(p: Table, x: Any, train: bool) -> Any:
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64)
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64)
    n = ((x / 255 - mean) / std).permute(0, 3, 1, 2)
    return linear(p, "head", resnet_features(part(p, "body."), n, train))
