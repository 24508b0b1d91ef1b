"""`recompute(e)`: the same gradients to the bit, with less kept for them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnc
from nnc import compiler
from nnc.budget import Budget
from nnc.cli import main
from nnc.codegen import llvm
from nnc.codegen.target import host
from nnc.runtime.available import cpu_count
from tests.endtoend import built, from_file, run_native, sample

HEAD = "from std.nn import Linear, Dropout, BatchNorm, gelu\n"
TAIL = """
export def step(inout net: Net, x: f32[B, 16]) -> (f32, f32, f32[B, 16]):
    loss = mean(net!(x)**2)
    return loss, norm(grad(loss, net)), grad(loss, x)
"""
DEEP = (
    HEAD
    + """
module Block(D):
    fc1 = Linear(D, 4*D)
    fc2 = Linear(4*D, D)
    def forward(x: real[B, D]) -> real[B, D] = x + fc2(gelu(fc1(x)))
module Net(D=16, L=4):
    h = [Block(D) for l in L]
    def forward(x: real[B, D]) -> real[B, D]:
        for l in L: x = CALL
        return x
"""
    + TAIL
)
RANDOM = DEEP.replace("fc2(gelu(fc1(x)))", "fc2(drop(tanh(bn(fc1(x)))))").replace(
    "    fc2 = ", "    bn = BatchNorm(4*D)\n    drop = Dropout(0.5)\n    fc2 = "
)
NESTED = DEEP.replace(
    "        for l in L: x = CALL\n        return x",
    "        return CALL\n    def part(x: real[B, D]) -> real[B, D]:\n"
    "        for l in 2: x = CALL2(h[l](x))\n        return x\n"
    "    def rest(x: real[B, D]) -> real[B, D]:\n"
    "        for l in 2: x = CALL2(h[2 + l](x))\n        return x",
)
CELL = (
    HEAD
    + """
module Net(D=16):
    a = Linear(D, 4*D)
    b = Linear(4*D, D)
    def forward(h: real[B, D], x: real[B, D]) -> real[B, D] = tanh(b(tanh(a(h))) + x)
export def step(net: Net, x: f32[T, B, 16]) -> (f32, f32, f32[T, B, 16]):
    h = zeros[B, 16]
    for t in T:
        h = CALL
    loss = mean(h**2)
    return loss, norm(grad(loss, net)), grad(loss, x)
"""
)
LOOPS = (
    HEAD
    + """
module R(D):
    a = Linear(D, D)
    def forward(x: real[T, B, D]) -> real[T, B, D]:
        h = zeros[B, D]
        ys = for t in T:
            h = tanh(a(h) + x[t])
            yield h
        return ys
module Net(D=16):
    h = [R(D) for l in 4]
    def forward(x: real[T, B, D]) -> real[T, B, D]:
        for l in 4: x = CALL
        return x
export def step(net: Net, x: f32[T, B, 16]) -> (f32, f32, f32[T, B, 16]):
    loss = mean(net(x)**2)
    return loss, norm(grad(loss, net)), grad(loss, x)
"""
)
CACHE = """
export def step(w: f32[8, 8], inout kv: f32[4, B, 8], x: f32[B, 8]) -> (f32, f32[8, 8]):
    for l in 4:
        x = CALL
    loss = mean(x**2)
    return loss, grad(loss, w)
def block(w: real[8, 8], inout kv: real[B, 8], x: real[B, 8]) -> real[B, 8]:
    kv[b, i] := kv[b, i] + tanh(x[b, i])
    y[b, i] = sum[j](kv[b, j] * w[i, j])
    return tanh(y)
"""
PENALTY = (
    HEAD
    + """
module Net(N=8):
    a = Linear(N, N)
    b = Linear(N, 1)
    def forward(x: real[B, N]) -> real[B] = b(tanh(a(x)))[:, 0]
def penalty(d: Net, x: real[B, 8]) -> real:
    g = grad(total(d(x)), x)
    return mean((sqrt(sum(g**2, over=1) + 1e-6) - 1)**2)
export def step(net: Net, x: f32[B, 8]) -> (f32, f32, f32[B, 8]):
    y = tanh(x)
    loss = CALL
    return loss, norm(grad(loss, net)), grad(loss, x)
"""
)
OUTER = PENALTY.replace("total(d(x))", "total(CALL)").replace(
    "loss = CALL", "loss = penalty(net, y)"
)
CASES = {
    "layers": (DEEP, {"CALL": "h[l](x)"}),
    "random numbers and state": (RANDOM, {"CALL": "h[l](x)"}),
    "nested": (NESTED, {"CALL": "rest(part(x))", "CALL2": ""}),
    "turns": (CELL, {"CALL": "net(h, x[t])"}),
    "loops": (LOOPS, {"CALL": "h[l](x)"}),
    "gradient inside": (PENALTY, {"CALL": "penalty(net, y)"}),
    "gradient of the gradient": (OUTER, {"CALL": "d(x)"}),
    "storage": (CACHE, {"CALL": "block(w, kv[l], x)"}),
}
SIZES = {"B": 1024, "T": 100}


def pair(text: str, calls: dict[str, str]) -> tuple[str, str]:
    """The program without and with recomputation."""
    plain = again = text
    for name, call in sorted(calls.items(), reverse=True):
        plain = plain.replace(name, call)
        again = again.replace(name, f"recompute({call})" if call else "recompute")
    return plain, again


def arena(text: str) -> int:
    program = compiler.schedule(compiler.optimise(built(text)["step"].graph))
    return program.arena.evaluate({d: SIZES[d] for d in program.dims})


@pytest.mark.parametrize("case", CASES)
def test_results_keep_their_bits(case: str) -> None:
    plain, again = (built(t)["step"].graph for t in pair(*CASES[case]))
    dims = {"B": 5, "T": 4}
    inputs = sample(plain, dims, np.random.default_rng(0))
    want, stored = run_native(plain, dims, inputs)
    got, written = run_native(again, dims, inputs)
    for a, b in zip(got, want, strict=True):
        assert np.array_equal(a, b)
    assert stored.keys() == written.keys()
    assert all(np.array_equal(written[k], stored[k]) for k in stored)


@pytest.mark.parametrize(
    ("case", "part"),
    [
        ("layers", 0.55),
        ("random numbers and state", 0.45),
        ("nested", 0.55),
        ("turns", 0.3),
        ("loops", 0.7),
    ],
)
def test_less_memory(case: str, part: float) -> None:
    plain, again = (arena(t) for t in pair(*CASES[case]))
    assert again < part * plain


def test_memory_of_depth_is_that_of_the_inputs_of_layers() -> None:
    """One more layer costs its input and the gradients of its weights."""
    texts = [pair(DEEP.replace("L=4", f"L={n}"), {"CALL": "h[l](x)"})[1] for n in (4, 8)]
    few, many = (arena(t) for t in texts)
    weights = 4 * (2 * 16 * 64 + 64 + 16)
    assert many - few <= 4 * (1024 * 16 * 4 + weights + 64 * 8)


def test_gpt2_layers(tmp_path: Path) -> None:
    """A transformer with a cache that is written inside."""
    call = "h[l](x, kv[l], P)"
    sizes = {"12, 2, B, 12": "4, 2, B, 2", "64]": "16]", "50257": "64", "1024": "64"}
    found = []
    for again in (False, True):
        folder = tmp_path / str(again)
        folder.mkdir()
        text = Path("models/gpt2.nn").read_text()
        text = text.replace(f"x = {call}", f"x = recompute({call})") if again else text
        text = text.replace("V=50257, N=1024, D=768, H=12, L=12", "V=64, N=64, D=32, H=2, L=4")
        (folder / "gpt2.nn").write_text(text)
        run = Path("models/gpt2_run.nn").read_text()
        for old, new in sizes.items():
            run = run.replace(old, new)
        (folder / "gpt2_run.nn").write_text(run)
        found.append(from_file(folder / "gpt2_run.nn")["train_step"].graph)
    peaks = [
        compiler.schedule(compiler.optimise(g)).arena.evaluate({"B": 8, "T": 64}) for g in found
    ]
    assert peaks[1] < 0.5 * peaks[0]
    dims = {"B": 2, "T": 5}
    inputs = sample(found[0], dims, np.random.default_rng(1))
    inputs |= {k: np.abs(v) for k, v in inputs.items() if k.startswith("opt.")}
    (want,), stored = run_native(found[0], dims, inputs)
    (got,), written = run_native(found[1], dims, inputs)
    assert got == want
    for key, value in stored.items():
        np.testing.assert_allclose(written[key], value, rtol=1e-4, atol=1e-5, err_msg=key)


def test_forward_keeps_less(tmp_path: Path) -> None:
    kept, grads = [], []
    for text in pair(
        DEEP.split("export")[0] + "export def f(net: Net, x: f32[B, 16]) -> f32[B, 16] = net(x)\n",
        {"CALL": "h[l](x)"},
    ):
        path = tmp_path / "f.nn"
        path.write_text(text)
        m: Any = nnc.load(path)
        net = m.Net.init(seed=1)
        x = np.random.default_rng(0).standard_normal((9, 16)).astype(np.float32)
        run = m.f.forward(net, x)
        kept.append(sum(a.nbytes for a in run._arrays.values()))
        grads.append(run.backward(np.ones((9, 16), np.float32)))
    assert kept[1] < 0.3 * kept[0]
    assert np.array_equal(grads[0].x, grads[1].x)
    key = "h.0.fc1.weight"
    assert np.array_equal(grads[0].net[key], grads[1].net[key])


# ---- a limit of memory ----------------------------------------------------------------------------

PLAIN = pair(DEEP, {"CALL": "h[l](x)"})[0]
AT = {"B": 1024}


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    path = tmp_path / "deep.nn"
    path.write_text(PLAIN.replace("def step(", "def update("))
    return path


def test_limit_of_memory(deep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Calls of modules are chosen, and named by line; results keep their bits."""
    program = compiler.scheduled(str(deep))[0].program
    scratch = llvm.emit(program, host(), "f").scratch.evaluate(AT)
    limit = 2_000_000 + cpu_count() * scratch
    assert main(["plan", str(deep), "update", "--max-memory", str(limit), "--B", "1024"]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"^  recompute\(.*\)  {deep}:\d+:\d+$", out, re.M), out
    found = re.search(r"^all +([0-9,]+) bytes", out, re.M)
    assert found and int(found[1].replace(",", "")) <= limit
    results = []
    for most in (None, limit):
        m: Any = nnc.load(deep, max_memory=most, sizes=AT if most else None)
        x = np.random.default_rng(0).standard_normal((7, 16)).astype(np.float32)
        results.append(m.update(m.Net.init(seed=1), x))
    for a, b in zip(*results, strict=True):
        assert np.array_equal(a, b)


def test_limit_that_cannot_be_kept(deep: Path) -> None:
    with pytest.raises(nnc.DeviceError, match=r"cannot be held to 200.0 KB; reached: \d\.\d MB"):
        nnc.load(deep, max_memory=2e5, sizes=AT)


def test_limit_that_is_kept_anyhow(deep: Path) -> None:
    path = str(deep)
    scheduled = compiler.scheduled(path, budget=Budget(10**9, AT))
    assert scheduled[0].choice is not None and scheduled[0].choice.places == ()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"max_memory": 1e9}, "max_memory needs the sizes of update: B is missing"),
        ({"max_memory": "lots", "sizes": AT}, "'lots' is no number of bytes, like 8e9 or '8 GB'"),
        ({"max_memory": -1, "sizes": AT}, "-1 is no number of bytes"),
        (
            {"max_memory": 1e9, "sizes": {"B": 0}},
            "a size is a whole number of at least 1, not B = 0",
        ),
        ({"sizes": AT}, "sizes are those of max_memory"),
    ],
)
def test_wrong_limits(deep: Path, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(nnc.ArgumentError, match=text):
        nnc.load(deep, **arguments)
