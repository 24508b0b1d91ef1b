"""One training step of models/digits.nn, batch 64, AdamW: NumPy by hand, PyTorch eager and compiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import nnc
from bench import peers
from bench.measure import Result, alternate, summarise

MODEL = Path(__file__).parent.parent / "models" / "digits.nn"
LR, B1, B2, EPS, DECAY = 1e-3, 0.9, 0.999, 1e-8, 0.01
Arrays = dict[str, Any]


def numpy_step(p: Arrays, x: Any, y: Any) -> Callable[[], float]:
    m = {k: np.zeros_like(v) for k, v in p.items()}
    v = {k: np.zeros_like(v) for k, v in p.items()}
    rows = np.arange(len(y))
    t = 0

    def step() -> float:
        nonlocal t
        h = x @ p["fc1.weight"].T + p["fc1.bias"]
        r = np.maximum(h, 0)
        z = r @ p["fc2.weight"].T + p["fc2.bias"]
        z -= z.max(axis=1, keepdims=True)
        e = np.exp(z)
        s = e.sum(axis=1, keepdims=True)
        loss = float(np.mean(np.log(s[:, 0]) - z[rows, y]))
        dz = e / s
        dz[rows, y] -= 1
        dz /= np.float32(len(y))
        dh = (dz @ p["fc2.weight"]) * (h > 0)
        grads = {
            "fc1.weight": dh.T @ x,
            "fc1.bias": dh.sum(axis=0),
            "fc2.weight": dz.T @ r,
            "fc2.bias": dz.sum(axis=0),
        }
        t += 1
        for k, g in grads.items():
            m[k] = np.float32(B1) * m[k] + np.float32(1 - B1) * g
            v[k] = np.float32(B2) * v[k] + np.float32(1 - B2) * g * g
            up = m[k] / np.float32(1 - B1**t) / (np.sqrt(v[k] / np.float32(1 - B2**t)) + EPS)
            wd = DECAY if p[k].ndim >= 2 else 0
            p[k] = (p[k] - np.float32(LR) * (up + wd * p[k])).astype(np.float32)
        return loss

    return step


def torch_step(torch: Any, p: Arrays, x: Any, y: Any) -> tuple[Callable[[], Any], Any]:
    net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    with torch.no_grad():
        for layer, name in ((net[0], "fc1"), (net[2], "fc2")):
            layer.weight.copy_(torch.from_numpy(p[f"{name}.weight"]))
            layer.bias.copy_(torch.from_numpy(p[f"{name}.bias"]))
    groups = [
        {"params": [net[0].weight, net[2].weight], "weight_decay": DECAY},
        {"params": [net[0].bias, net[2].bias], "weight_decay": 0.0},
    ]
    opt = torch.optim.AdamW(groups, lr=LR, betas=(B1, B2), eps=EPS, fused=True)
    xs, ys = torch.from_numpy(x), torch.from_numpy(y).long()

    def step() -> Any:
        opt.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(net(xs), ys)
        loss.backward()
        opt.step()
        return loss.detach()

    return step, net


def run(batch: int = 64, seconds: float = 4.0) -> list[Result]:
    model = nnc.load(MODEL)
    rng = np.random.default_rng(0)
    x = rng.random((batch, 64), dtype=np.float32)
    y = rng.integers(0, 10, batch).astype(np.int32)
    out = []
    for threads in sorted({1, peers.cores()}):
        model.threads = threads
        net = model.Digits.init(seed=0)
        opt = model.AdamW(net).init()
        start = {k: np.array(v) for k, v in net.items()}
        step = lambda net=net, opt=opt: model.train_step(net, opt, x, y, lr=LR)  # noqa: E731
        candidates: dict[str, Callable[[], Any]] = {
            "nnc": step,
            "numpy": numpy_step({k: v.copy() for k, v in start.items()}, x, y),
        }
        with peers.threads(threads):
            torch = peers.torch()
            if torch is not None:
                candidates["torch"], _ = torch_step(torch, start, x, y)
            first = {name: float(run()) for name, run in candidates.items()}
            assert np.ptp(list(first.values())) < 1e-4, first
            samples = alternate(candidates, seconds)
        out.append(summarise(f"digits train step, batch {batch}", samples, threads))
    return out
