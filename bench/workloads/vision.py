"""Convolutional networks: a small one's and ResNet-18's training step, ResNet inference."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bench import peers
from bench.workload import Call, Case, Context, load, quantized, weights
from bench.workloads.dense import cross_entropy

LR = 1e-3


def _pictures(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def cnn(context: Context, batch: int = 64) -> Case:
    model = load("cnn.nn", context)
    net, opt = model.train_step.init("net", seed=0), model.train_step.init("opt")
    p = weights(net)
    x = _pictures(batch, 1, 28, 28)
    y = np.random.default_rng(1).integers(0, 10, batch).astype(np.int32)

    def module() -> Any:
        from bench import torch_models

        return torch_models.with_weights(torch_models.CNN(), p)

    def adam(net: Any) -> Any:
        return peers.need("torch").optim.Adam(net.parameters(), lr=LR, fused=True)

    def jax_loss(j: Any, q: Any) -> Any:
        h = x.transpose(0, 2, 3, 1)
        for i in (1, 2):
            h = j.lax.conv_general_dilated(
                h, q[f"conv{i}.weight"], (1, 1), "VALID", dimension_numbers=("NHWC", "OIHW", "NHWC")
            )
            h = j.nn.relu(h + q[f"conv{i}.bias"])
        h = j.lax.reduce_window(h, -np.inf, j.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        h = h.transpose(0, 3, 1, 2).reshape(batch, -1)
        h = j.nn.relu(h @ q["fc1.weight"].T + q["fc1.bias"])
        return cross_entropy(j, h @ q["fc2.weight"].T + q["fc2.bias"], y)

    first, second = 26 * 26 * 32 * 9, 24 * 24 * 64 * 288
    return Case(
        f"CNN on 28 x 28, step with Adam, batch {batch}",
        {
            "nnc": lambda: lambda: model.train_step(net, opt, x, y, LR),
            **peers.training(module, _loss(x, y), adam, channels_last=True),
            "jax": peers.jax_training(context.threads, p, jax_loss, *peers.jax_adam(LR)),
        },
        1.5,
        2.2,
        flop=2.0 * batch * (3 * (second + 9216 * 128 + 1280) + 2 * first),
        checks=3,
    )


def _loss(x: Any, y: Any) -> Any:
    """The loss of a module on pictures (weights in channels-last order make them follow)."""

    def loss(net: Any) -> Any:
        torch = peers.need("torch")
        logits = net(torch.from_numpy(x))
        return torch.nn.functional.cross_entropy(logits, torch.from_numpy(y).long())

    return loss


BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


def jax_resnet(j: Any, p: Any, x: Any, depth: int, training: bool = False) -> Any:
    """Logits; pictures [B, 3, H, W], inside channels come last."""

    def conv(k: str, x: Any, stride: int = 1) -> Any:
        w = p[f"{k}.weight"]
        n = w.shape[2] // 2
        return j.lax.conv_general_dilated(
            x, w, (stride,) * 2, ((n, n),) * 2, dimension_numbers=("NHWC", "OIHW", "NHWC")
        )

    def norm(k: str, x: Any) -> Any:
        if training:
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        else:
            mean, var = p[f"{k}.running_mean"], p[f"{k}.running_var"]
        return (x - mean) * (j.lax.rsqrt(var + 1e-5) * p[f"{k}.weight"]) + p[f"{k}.bias"]

    def block(k: str, x: Any, stride: int) -> Any:
        skip, y, relu = x, x, j.nn.relu
        if f"{k}.downsample.0.weight" in p:
            skip = norm(f"{k}.downsample.1", conv(f"{k}.downsample.0", x, stride))
        count, strided = (2, 1) if depth == 18 else (3, 2)
        for i in range(1, count + 1):
            y = norm(f"{k}.bn{i}", conv(f"{k}.conv{i}", y, stride if i == strided else 1))
            y = relu(y) if i < count else relu(y + skip)
        return y

    x = j.nn.relu(norm("bn1", conv("conv1", j.numpy.transpose(x, (0, 2, 3, 1)), 2)))
    sides = ((0, 0), (1, 1), (1, 1), (0, 0))
    x = j.lax.reduce_window(x, -np.inf, j.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), sides)
    for n, blocks in enumerate(BLOCKS[depth], 1):
        for i in range(blocks):
            x = block(f"layer{n}.{i}", x, 2 if n > 1 and i == 0 else 1)
    return x.mean((1, 2)) @ p["fc.weight"].T + p["fc.bias"]


def resnet(
    depth: int,
    batch: int,
    demand: float,
    aim: float,
    flop: float,
    context: Context,
    winograd: bool = False,
) -> Case:
    """`flop`: of one picture, of the direct form."""
    model = load(f"resnet{depth}.nn", context, winograd=winograd)
    net = getattr(model, f"ResNet{depth}").init(seed=0)
    p = weights(net)
    x = _pictures(batch, 3, 224, 224)

    def module() -> Any:
        from bench import torch_models

        return torch_models.with_weights(getattr(torch_models, f"resnet{depth}")(), p)

    def jax() -> Call:
        function = lambda j, q, x: jax_resnet(j, q, x, depth)  # noqa: E731
        held = {k: peers.jax(context.threads).numpy.asarray(v) for k, v in p.items()}
        return peers.jax_inference(context.threads, function, [held, x])()

    return Case(
        f"ResNet-{depth}, inference, batch {batch}" + (", winograd=True" if winograd else ""),
        {
            "nnc": lambda: partial(model.predict, net, x),
            **peers.inference(module, [x], context.threads, channels_last=True),
            "jax": jax,
        },
        demand,
        aim,
        flop=flop * batch,
    )


def resnet18_train(context: Context, batch: int = 8) -> Case:
    model = load("resnet18_train.nn", context)
    net, opt = model.train_step.init("net", seed=0), model.train_step.init("opt")
    p = weights(net)
    x = _pictures(batch, 3, 64, 64)
    y = np.random.default_rng(1).integers(0, 1000, batch).astype(np.int32)

    def module() -> Any:
        from bench import torch_models

        return torch_models.with_weights(torch_models.resnet18(), p)

    params = {k: v for k, v in p.items() if "running" not in k}

    def jax_loss(j: Any, q: Any) -> Any:
        return cross_entropy(j, jax_resnet(j, q, x, 18, training=True), y)

    def sgd(net: Any) -> Any:
        return peers.need("torch").optim.SGD(net.parameters(), lr=LR, momentum=0.9, fused=True)

    return Case(
        f"ResNet-18 on 64 x 64, step with momentum, batch {batch}",
        {
            "nnc": lambda: lambda: model.train_step(net, opt, x, y, LR),
            **peers.training(module, _loss(x, y), sgd, channels_last=True),
            "jax": peers.jax_training(
                context.threads, params, jax_loss, *peers.jax_momentum(LR, 0.9)
            ),
        },
        1.3,
        2.2,
        flop=3 * batch * 2.98e8,
        checks=3,
    )


def resnet50_int8(context: Context) -> Case:
    """u8 by s8, weights by channel, calibrated on the input; peers by ONNX Runtime's tool."""
    net = load("resnet50.nn", context).ResNet50.init(seed=0)
    p = weights(net)
    x = _pictures(1, 3, 224, 224)

    def nnc() -> Call:
        q = quantized("resnet50.nn", context, net, "predict", "int8", x=x)
        return partial(q.model.predict, q.net, x)

    def peer(who: str) -> Callable[[], Call]:
        return lambda: peers.onnx_call(who, _quantized(x, p), [x], context.threads)

    makers = {"nnc": nnc, "ort": peer("ort"), "openvino": peer("openvino")}
    return Case("ResNet-50, int8 inference, batch 1", makers, 1.0, 1.3, tolerance=0.2)


def _quantized(x: Any, p: dict[str, Any]) -> Path:
    peers.need("onnxruntime")
    q = peers.need("onnxruntime.quantization")
    prepare = peers.need("onnxruntime.quantization.shape_inference").quant_pre_process
    from bench import torch_models

    given = peers.export(torch_models.with_weights(torch_models.resnet50(), p), [x])
    ready, made = given.with_suffix(".ready.onnx"), given.with_suffix(".int8.onnx")
    prepare(str(given), str(ready))

    class Once(q.CalibrationDataReader):  # type: ignore[name-defined, misc]
        rest: ClassVar[list[Any]] = [{"in0": x}]

        def get_next(self) -> Any:
            return self.rest.pop() if self.rest else None

    kinds = {"activation_type": q.QuantType.QUInt8, "weight_type": q.QuantType.QInt8}
    q.quantize_static(str(ready), str(made), Once(), per_channel=True, **kinds)
    return made


WORKLOADS: dict[str, Callable[[Context], Case]] = {
    "cnn": cnn,
    "resnet18_b1": partial(resnet, 18, 1, 1.2, 1.8, 3.63e9),
    "resnet18_b8": partial(resnet, 18, 8, 1.2, 1.8, 3.63e9),
    "resnet18_b1_winograd": partial(resnet, 18, 1, 1.2, 1.8, 3.63e9, winograd=True),
    "resnet18_b8_winograd": partial(resnet, 18, 8, 1.2, 1.8, 3.63e9, winograd=True),
    "resnet50_b1": partial(resnet, 50, 1, 1.2, 1.6, 8.18e9),
    "resnet50_b8": partial(resnet, 50, 8, 1.2, 1.6, 8.18e9),
    "resnet18_train": resnet18_train,
    "resnet50_int8": resnet50_int8,
}
