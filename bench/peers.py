"""The peers that are installed, each set up in its own best way; a missing one raises `Missing`."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import os
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from bench.workload import Call, Missing

NAMES = ("numpy", "torch", "compile", "max-autotune", "jax", "ort", "openvino")
SLOW = ("max-autotune",)  # only where it is named
_PACKAGES = ("numpy", "torch", "jax", "onnxruntime", "openvino", "llvmlite", "onnx")


def cores() -> int:
    return len(os.sched_getaffinity(0))


def found(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise Missing(f"{module} is not installed")


def need(module: str) -> Any:
    found(module)
    return importlib.import_module(module)


def versions() -> dict[str, str]:
    out = {}
    for name in _PACKAGES:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out


# ---- threads ------------------------------------------------------------------------------------


def limit_environment(count: int) -> None:
    """Thread counts that libraries read when they are loaded."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(count)


def limit_threads(count: int) -> None:
    """PyTorch and BLAS to `count` threads; the others are told when their sessions are made."""
    if importlib.util.find_spec("torch"):
        need("torch").set_num_threads(count)
    if importlib.util.find_spec("threadpoolctl"):
        need("threadpoolctl").threadpool_limits(count)


@cache
def jax(threads: int) -> Any:
    """JAX has no setting for threads: it counts the CPUs that the process may use when it starts."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(allowed)[:threads]))
    try:
        module = need("jax")
        module.config.update("jax_platforms", "cpu")
        module.numpy.zeros(8).block_until_ready()
    finally:
        for task in Path("/proc/self/task").iterdir():
            os.sched_setaffinity(int(task.name), allowed)
    return module


# ---- inference ----------------------------------------------------------------------------------


def inference(
    module: Callable[[], Any],
    inputs: Sequence[Any],
    threads: int,
    *,
    channels_last: bool = False,
    numpy_io: bool = False,
    exported: Callable[[], Any] | None = None,
) -> dict[str, Callable[[], Call]]:
    """Makers of torch, compile, max-autotune, ort and openvino from one PyTorch module.

    `module` makes it with its weights, on first use; `inputs` are NumPy arrays; `exported`: another
    module for ONNX; `numpy_io`: torch is given NumPy arrays and gives them back, as in a service.
    """
    made = cache(module)
    onnx = cache(lambda: export((exported or made)(), inputs))

    def torch_call(mode: str, last: bool) -> Call:
        return _torch(made, inputs, mode, last, numpy_io)

    def eager() -> Call:
        layouts = (True, False) if channels_last else (False,)
        return fastest([torch_call("", last) for last in layouts])

    return {
        "torch": eager,
        "compile": lambda: torch_call("default", channels_last),
        "max-autotune": lambda: torch_call("max-autotune-no-cudagraphs", channels_last),
        "ort": lambda: _ort(onnx(), inputs, threads, numpy_io),
        "openvino": lambda: _openvino(onnx(), inputs, threads),
    }


def fastest(calls: Sequence[Call], tries: int = 5) -> Call:
    """The set-up of a peer that is the fastest here and now."""
    if len(calls) == 1:
        return calls[0]

    def shortest(call: Call) -> float:
        times = []
        for _ in range(tries):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return min(times[1:])

    return min(calls, key=shortest)


def _torch(
    made: Callable[[], Any], inputs: Sequence[Any], mode: str, channels_last: bool, numpy_io: bool
) -> Call:
    """PyTorch in inference mode: eager, or compiled (`mode`) with constant weights packed once."""
    torch = need("torch")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    module = made().eval()
    if channels_last:
        module = copy.deepcopy(module).to(memory_format=layout)
    run = _compiled(module, mode, constant=True) if mode else module
    given = [torch.from_numpy(x).contiguous(memory_format=layout) for x in inputs]

    def call() -> Any:
        with torch.inference_mode():
            return run(*given)

    def through_numpy() -> Any:
        with torch.inference_mode():
            return run(*[torch.from_numpy(x) for x in inputs]).numpy()

    out = through_numpy if numpy_io else call
    out.how = "inference mode" + ", channels-last" * channels_last  # type: ignore[attr-defined]
    return out


def _compiled(function: Any, mode: str, constant: bool = False) -> Any:
    """`torch.compile`; `constant`: weights become constants of the code ("freezing")."""
    torch = need("torch")
    _compiler()
    import torch._inductor.config as inductor
    from torch._inductor import select_algorithm

    select_algorithm.PRINT_AUTOTUNE = False
    inductor.freezing = constant
    return torch.compile(function, mode=mode, fullgraph=constant)


def _compiler() -> None:
    """Missing, unless there is what `torch.compile` makes its C++ code with."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        raise Missing("torch.compile needs a C++ compiler: there is no g++")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        raise Missing("torch.compile needs Python.h (the headers of this Python)")


def forget_compiled() -> None:
    """Before a workload: what `torch.compile` has made for others."""
    if "torch" in sys.modules:
        need("torch").compiler.reset()


def export(module: Any, inputs: Sequence[Any]) -> Path:
    """A PyTorch module as an ONNX file, opset 20."""
    torch = need("torch")
    need("onnx")
    need("onnxscript")
    import logging

    for name in ("onnxscript", "onnx_ir", "torch.onnx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    path = _folder() / f"{len(list(_folder().iterdir()))}.onnx"
    names = [f"in{i}" for i in range(len(inputs))]
    given = tuple(torch.from_numpy(x) for x in inputs)
    with torch.inference_mode(False), torch.no_grad():
        torch.onnx.export(
            module.eval().to(memory_format=torch.contiguous_format),
            given,
            str(path),
            input_names=names,
            dynamo=True,
            opset_version=20,
            external_data=False,
            verbose=False,
        )
    return path


_kept: list[Any] = []


@cache
def _folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="nnc-bench-")
    _kept.append(folder)
    return Path(folder.name)


def onnx_call(who: str, path: Path, inputs: Sequence[Any], threads: int) -> Call:
    """An ONNX file in "ort" or "openvino"."""
    return _ort(path, inputs, threads, False) if who == "ort" else _openvino(path, inputs, threads)


def _ort(path: Path, inputs: Sequence[Any], threads: int, numpy_io: bool) -> Call:
    ort = need("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {i.name: x for i, x in zip(session.get_inputs(), inputs, strict=True)}
    names = [o.name for o in session.get_outputs()][:1]
    if numpy_io:
        return lambda: session.run(names, feed)[0]
    binding = session.io_binding()
    for name, x in feed.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(x))
    first = session.run(None, feed)
    held = [ort.OrtValue.ortvalue_from_numpy(y) for y in first]
    for output, value in zip(session.get_outputs(), held, strict=True):
        binding.bind_ortvalue_output(output.name, value)

    def call() -> Any:
        session.run_with_iobinding(binding)
        return held[0]

    return call


def _openvino(path: Path, inputs: Sequence[Any], threads: int) -> Call:
    ov = need("openvino")
    core = ov.Core()
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(core.read_model(str(path)), "CPU", config).create_infer_request()
    given = [(x, ov.Tensor(x, shared_memory=True)) for x in inputs]

    def call() -> Any:
        for i, (_, tensor) in enumerate(given):  # keeps the arrays, too
            request.set_input_tensor(i, tensor)
        request.infer()
        return request.get_output_tensor(0).data

    return call


# ---- training -----------------------------------------------------------------------------------


def training(
    module: Callable[[], Any],
    loss: Callable[[Any], Any],
    optimizer: Callable[[Any], Any],
    *,
    channels_last: bool = False,
) -> dict[str, Callable[[], Call]]:
    """Makers of torch, compile and max-autotune. `module` makes a fresh one with the start weights;
    `loss` takes the (compiled) module; a call returns the loss of one step."""

    def step_of(mode: str, last: bool) -> Call:
        torch = need("torch")
        net = module()
        net.train()
        if last:
            net = net.to(memory_format=torch.channels_last)
        opt = optimizer(net)
        run = _compiled(lambda: loss(net), mode) if mode else lambda: loss(net)

        def step() -> Any:
            opt.zero_grad(set_to_none=True)
            value = run()
            value.backward()
            opt.step()
            return value

        step.how = "channels-last" * last  # type: ignore[attr-defined]
        return step

    def eager() -> Call:
        if not channels_last:
            return step_of("", False)
        best: Any = fastest([step_of("", last) for last in (True, False)])
        return step_of("", bool(best.how))  # with the start weights again

    return {
        "torch": eager,
        "compile": lambda: step_of("default", channels_last),
        "max-autotune": lambda: step_of("max-autotune-no-cudagraphs", channels_last),
    }


def jax_training(
    threads: int,
    params: Mapping[str, Any],
    loss: Callable[[Any, Any], Any],
    update: Callable[[Any, Any, Any, Any], Any],
    state: Callable[[Any, Any], Any],
) -> Callable[[], Call]:
    """A jitted step with donated arguments. `loss(jax, p)`; `update(jax, p, gradients, state)` gives
    (p, state)."""

    def make() -> Call:
        j = jax(threads)
        p = {k: j.numpy.array(v) for k, v in params.items()}
        s = state(j, p)

        def step(p: Any, s: Any) -> Any:
            value, g = j.value_and_grad(lambda q: loss(j, q))(p)
            return value, *update(j, p, g, s)

        compiled = j.jit(step, donate_argnums=(0, 1))

        def call() -> Any:
            nonlocal p, s
            value, p, s = compiled(p, s)
            return value.block_until_ready()

        return call

    return make


def jax_adam(lr: float, decay: float = 0.0) -> tuple[Any, Any]:
    """(update, state) of AdamW for `jax_training`; only matrices decay."""

    def state(j: Any, p: Any) -> Any:
        m, v = ({k: j.numpy.zeros_like(x) for k, x in p.items()} for _ in range(2))
        return m, v, j.numpy.array(0, np.int32)

    def update(j: Any, p: Any, g: Any, s: Any) -> Any:
        m, v, t = s
        t = t + 1
        m = {k: 0.9 * m[k] + 0.1 * g[k] for k in p}
        v = {k: 0.999 * v[k] + 0.001 * g[k] ** 2 for k in p}
        c1, c2 = 1 - 0.9**t, 1 - 0.999**t
        up = {k: m[k] / c1 / (j.numpy.sqrt(v[k] / c2) + 1e-8) for k in p}
        kept = {k: 1 - lr * decay if p[k].ndim > 1 else 1.0 for k in p}
        return {k: kept[k] * p[k] - lr * up[k] for k in p}, (m, v, t)

    return update, state


def jax_momentum(lr: float, momentum: float) -> tuple[Any, Any]:
    """(update, state) of SGD for `jax_training`."""

    def state(j: Any, p: Any) -> Any:
        return {k: j.numpy.zeros_like(x) for k, x in p.items()}

    def update(j: Any, p: Any, g: Any, s: Any) -> Any:
        s = {k: momentum * s[k] + g[k] for k in p}
        return {k: p[k] - lr * s[k] for k in p}, s

    return update, state


def jax_inference(
    threads: int, function: Callable[..., Any], inputs: Sequence[Any], numpy_io: bool = False
) -> Callable[[], Call]:
    """`function(jax, *arrays)`, jitted."""

    def make() -> Call:
        j = jax(threads)
        compiled = j.jit(lambda *xs: function(j, *xs))
        given = [j.tree.map(j.numpy.asarray, x) for x in inputs]
        if numpy_io:
            return lambda: np.asarray(compiled(*inputs))
        return lambda: compiled(*given).block_until_ready()

    return make
