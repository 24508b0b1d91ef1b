"""One candidate in a process of its own: `python -m bench.probe MODEL WHO THREADS [ONNX]`.

Prints JSON: seconds from the definition to the first result (the framework imported, weights at
hand), and the peak of resident memory in MB after three calls.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench import peers
from bench.workload import Call, Context, load

LR = 1e-3


def random(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def integers(*shape: int, below: int) -> Any:
    return np.random.default_rng(0).integers(0, below, shape).astype(np.int32)


def inputs(model: str) -> list[Any]:
    """What the peers' modules are given; the last of a training step's are the targets."""
    match model:
        case "mlp":
            return [random(64, 784), integers(64, below=10)]
        case "resnet18" | "resnet50":
            return [random(1, 3, 224, 224)]
        case "gpt2":
            return [integers(1, 128, below=50257)]
    text = integers(4, 257, below=96)
    return [np.ascontiguousarray(text[:, :-1]), np.ascontiguousarray(text[:, 1:])]


def nnc(model: str, threads: int) -> Callable[[], Call]:
    context, xs = Context(threads, 0), inputs(model)
    import nnc as _  # noqa: F401  (imported before the time is taken)

    def train(name: str, *args: Any) -> Call:
        m = load(name, context)
        net, opt = m.train_step.init("net", seed=0), m.train_step.init("opt")
        return lambda: m.train_step(net, opt, *args, LR)

    def infer(name: str, module: str) -> Call:
        m = load(name, context)
        return partial(m.predict, getattr(m, module).init(seed=0), xs[0])

    def gpt2() -> Call:
        m = load("gpt2_infer.nn", context)
        kv = np.zeros((12, 2, 1, 12, 128, 64), np.float32)
        return partial(m.logits, m.GPT2.init(seed=0), kv, xs[0], 0)

    text = np.concatenate([xs[0], xs[-1][:, -1:]], 1) if model == "small_gpt" else None
    made: dict[str, Callable[[], Call]] = {
        "mlp": partial(train, "mlp_adam.nn", *xs),
        "small_gpt": partial(train, "small_gpt.nn", text),
        "resnet18": partial(infer, "resnet18.nn", "ResNet18"),
        "resnet50": partial(infer, "resnet50.nn", "ResNet50"),
        "gpt2": gpt2,
    }
    return made[model]


def torch_module(model: str) -> Any:
    from bench import torch_models as t

    t.torch.manual_seed(0)
    makers: dict[str, Callable[[], Any]] = {
        "mlp": lambda: t.nn.Sequential(
            t.nn.Linear(784, 512),
            t.nn.ReLU(),
            t.nn.Linear(512, 512),
            t.nn.ReLU(),
            t.nn.Linear(512, 10),
        ),
        "resnet18": t.resnet18,
        "resnet50": t.resnet50,
        "gpt2": lambda: t.GPT2(last=True),
        "small_gpt": lambda: t.GPT2(96, 256, 384, 6, 6),
    }
    made = makers[model]()
    for p in made.parameters():
        if p.dim() == 2 and model in ("gpt2", "small_gpt"):
            t.nn.init.normal_(p, std=0.02)
    return made


def torch(model: str, who: str, threads: int) -> Callable[[], Call]:
    """Its modules are made before the time is taken."""
    module, xs = torch_module(model), inputs(model)
    peers.limit_threads(threads)
    if model not in ("mlp", "small_gpt"):
        from bench.workloads.language import First

        made = First(lambda: module) if model == "gpt2" else lambda: module
        last = "resnet" in model
        return peers.inference(made, xs, threads, channels_last=last)[who]
    t = peers.need("torch")
    x, y = (t.from_numpy(v) for v in xs)
    y = y.long().flatten()

    def loss(net: Any) -> Any:
        return t.nn.functional.cross_entropy(net(x).flatten(0, -2), y)

    return peers.training(
        lambda: module, loss, lambda net: t.optim.Adam(net.parameters(), lr=LR, fused=True)
    )[who]


def jax(model: str, threads: int) -> Callable[[], Call]:
    from bench.workloads.dense import cross_entropy, jax_mlp
    from bench.workloads.language import jax_gpt2, jax_logits
    from bench.workloads.vision import jax_resnet

    xs = inputs(model)
    p = {k: v.detach().numpy() for k, v in torch_module(model).state_dict().items()}
    peers.jax(threads)
    if model == "gpt2":
        return jax_logits(p, xs, threads)

    def loss(j: Any, q: Any) -> Any:
        if model == "mlp":
            named = {
                f"fc{i // 2 + 1}.{k}": q[f"{i}.{k}"] for i in (0, 2, 4) for k in ("weight", "bias")
            }
            return cross_entropy(j, jax_mlp(j, named, xs[0], 3), xs[1])
        x = jax_gpt2(j, q, xs[0], layers=6, heads=6)
        return cross_entropy(j, x @ q["wte.weight"].T, xs[1])

    if model.startswith("resnet"):
        depth, q = int(model.removeprefix("resnet")), p
        return peers.jax_inference(threads, lambda j, q, x: jax_resnet(j, q, x, depth), [q, xs[0]])
    return peers.jax_training(threads, p, loss, *peers.jax_adam(LR))


def session(model: str, who: str, threads: int, path: str) -> Callable[[], Call]:
    peers.need({"ort": "onnxruntime", "openvino": "openvino"}[who])
    return lambda: peers.onnx_call(who, Path(path), inputs(model), threads)


def resident_peak() -> float:
    """MB, of this program alone: `ru_maxrss` would begin with the parent's."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


def candidate(model: str, who: str, threads: int, path: str) -> Callable[[], Call]:
    match who:
        case "nnc":
            return nnc(model, threads)
        case "jax":
            return jax(model, threads)
        case "ort" | "openvino":
            return session(model, who, threads, path)
    return torch(model, who, threads)


def main() -> None:
    model, who, threads, *path = sys.argv[1:]
    peers.limit_environment(int(threads))
    make = candidate(model, who, int(threads), path[0] if path else "")
    start = time.perf_counter()
    call = make()
    call()
    seconds = time.perf_counter() - start
    for _ in range(2):
        call()
    print(json.dumps({"seconds": seconds, "megabytes": resident_peak()}), flush=True)
    os._exit(0)  # some frameworks fail while they are torn down


if __name__ == "__main__":
    main()
