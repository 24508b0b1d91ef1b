"""`nnc profile`: times add up, operations are counted, results stay the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import nnc
from nnc.cli import main, profile
from nnc.cli.inputs import arguments
from nnc.cli.plan import chosen

MODELS = Path(__file__).parents[1] / "models"
DIGITS = str(MODELS / "digits.nn")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "_SECONDS", 0.05)


@pytest.mark.parametrize("threads", [1, 2])
def test_times_and_operations(threads: int) -> None:
    model = nnc.load(DIGITS, threads=threads)
    export = model.exports["logits"]
    values = arguments(export, {"B": 256})
    before = model.logits(**values)
    rows, between, _ = profile.measured(chosen(DIGITS, "logits", {}), model, export, {"B": 256})
    assert [r.kernel.name.split("_")[-1] for r in rows] == ["contract", "contract"]
    assert all(0 < r.seconds < 1 for r in rows) and 0 <= between < 1
    flops = 256 * (2 * 64 * 128)
    assert flops <= rows[0].operations <= 1.1 * flops  # with bias and relu
    assert rows[0].nbytes == 4 * (256 * 64 + 64 * 128 + 128 + 256 * 128)
    assert np.array_equal(model.logits(**values), before)  # by the code that takes times


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", DIGITS, "train_step", "--B", "64"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("train_step --B 64, ") and out[0].endswith(" us")
    assert out[1].startswith("roof: ") and out[2] == ""
    assert out[3].split() == ["us", "%", "GFLOP/s", "GB/s", "%", "roof", "kernel", "line", "in"]
    kernels = out[4 : out.index("", 4)]
    assert "between kernels" in kernels[-1]
    assert "digits.nn:11" in kernels[0] and "std/nn.nn:7" in kernels[0]
    lines = out[out.index("", 4) + 2 :]
    assert any(row.endswith("return fc2(relu(fc1(x)))") for row in lines[:3])
    assert any("digits.nn:24" in row and "opt!" in row for row in lines[:3])
    assert abs(sum(float(row.split()[1]) for row in kernels) - 100) < 1
    times = [float(row.split()[0]) for row in kernels[:-1]]
    assert times == sorted(times, reverse=True)


def test_trace_and_picture(tmp_path: Path) -> None:
    trace, picture = tmp_path / "t.json", tmp_path / "p.png"
    args = ["profile", DIGITS, "logits", "--B", "64", "--trace", str(trace)]
    assert main([*args, "--picture", str(picture)]) == 0
    rows = json.loads(trace.read_text())["traceEvents"]
    kernels = [r for r in rows if r["ph"] == "X" and r["tid"] == 1]
    assert [r["name"] for r in kernels] == ["kernel 0", "kernel 1"]
    assert kernels[1]["ts"] == pytest.approx(kernels[0]["dur"], abs=0.01)
    assert kernels[0]["args"]["line"].endswith("digits.nn:11") and kernels[0]["args"]["FLOP"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main([*args[:-1], str(tmp_path / "none" / "t.json")]) == 1
    assert main(["profile", DIGITS, "logits", "--B", "2", "--picture", "x.what"]) == 2


def test_loops(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "loop.nn"
    path.write_text(
        "export def f(x: f32[N, N]) -> f32[N, N]:\n"
        "    y = x\n"
        "    for i in N:\n"
        "        y = 0.5 * y @ x\n"
        "    return y\n"
    )
    for size in ("4", "300"):
        assert main(["profile", str(path), "f", "--N", size]) == 0
        assert "kernel" in capsys.readouterr().out


def test_short_programs_have_times(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "short.nn"
    path.write_text("export def f(x: f32[N, N]) -> f32[N, N] = x @ x")
    assert main(["profile", str(path), "f", "--N", "50"]) == 0
    assert ": 0.0 us" not in capsys.readouterr().out.splitlines()[0]


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    for args, text in [
        (["nothing"], "exports no 'nothing'"),
        (["logits"], "size of B is missing"),
        (["logits", "--C", "2"], "no size C"),
        (["logits", "--B", "2", "--threads", "0"], "threads"),
    ]:
        assert main(["profile", DIGITS, *args]) == 2
        assert text in capsys.readouterr().err
