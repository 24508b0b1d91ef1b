"""What is paid before the first result: compiling from cold, memory, imports. Each candidate runs in
a process of its own, with empty caches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

from bench import peers
from bench.workload import Context, Figure, Missing

ROOT = Path(__file__).parents[2]
WHO = ("nnc", "torch", "compile", "jax", "ort", "openvino")  # tuning takes longer still
MODULES = {
    "nnc": "nnc",
    "torch": "torch",
    "jax": "jax",
    "ort": "onnxruntime",
    "openvino": "openvino",
}


@cache
def onnx(model: str) -> str:
    from bench.probe import inputs, torch_module

    return str(peers.export(torch_module(model), inputs(model)))


def child(arguments: list[str], caches: str) -> dict[str, float]:
    env = {
        **os.environ,
        "XDG_CACHE_HOME": caches,
        "TORCHINDUCTOR_CACHE_DIR": f"{caches}/inductor",
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
        "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]),
    }
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "bench.probe", *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        raise Missing(last[0] if last else f"exit status {done.returncode}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@cache
def bytecode() -> None:
    """Python's bytecode of nnc, which an installed package (all peers) brings with it."""
    command = [sys.executable, "-m", "compileall", "-q", str(ROOT / "nnc"), str(ROOT / "bench")]
    subprocess.run(command, check=False)


def measured(
    model: str, key: str, context: Context, wanted: Sequence[str], training: bool
) -> tuple[dict[str, float], dict[str, str]]:
    values: dict[str, float] = {}
    missing: dict[str, str] = {}
    bytecode()
    for who in WHO:
        if (who != "nnc" and who not in wanted) or (training and who in ("ort", "openvino")):
            continue
        try:
            path = [onnx(model)] if who in ("ort", "openvino") else []
            arguments = [model, who, str(context.threads), *path]
            with tempfile.TemporaryDirectory() as caches:
                values[who] = child(arguments, caches)[key]
                if who == "nnc":
                    values["nnc, cached"] = child(arguments, caches)[key]
        except Missing as e:
            missing[who] = str(e)
    return values, missing


def cold(model: str, training: bool, context: Context, wanted: Sequence[str]) -> Figure:
    values, missing = measured(model, "seconds", context, wanted, training)
    title = f"from the definition to the first result, {model}{' step' * training}"
    return Figure(title, "s", values, missing, "0.2x compile, aim: below jax")


def memory(model: str, training: bool, context: Context, wanted: Sequence[str]) -> Figure:
    values, missing = measured(model, "megabytes", context, wanted, training)
    title = f"peak resident memory of the process, {model}{' step' * training}"
    return Figure(title, "MB", values, missing, "0.6x the best peer, aim 0.4x")


def imports(context: Context, wanted: Sequence[str], repeats: int = 5) -> Figure:
    values: dict[str, float] = {}
    missing: dict[str, str] = {}
    bare = min(_python("pass") for _ in range(repeats))
    for who, module in MODULES.items():
        if who != "nnc" and who not in wanted:
            continue
        try:
            peers.found(module)
            values[who] = min(_python(f"import {module}") for _ in range(repeats)) - bare
        except Missing as e:
            missing[who] = str(e)
    return Figure("import, without starting Python", "s", values, missing, "0.15 s, aim 0.1 s")


def _python(text: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-W", "ignore", "-c", text], check=True, capture_output=True)
    return time.perf_counter() - start


FIGURES: dict[str, Callable[[Context, Sequence[str]], Figure]] = {
    "cold_mlp": partial(cold, "mlp", True),
    "cold_resnet18": partial(cold, "resnet18", False),
    "cold_gpt2": partial(cold, "gpt2", False),
    "rss_small_gpt": partial(memory, "small_gpt", True),
    "rss_resnet50": partial(memory, "resnet50", False),
    "import": imports,
}
