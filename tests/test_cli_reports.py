"""`nnc fmt`, `explain` and `plan`: what they say is what the compiler and the runtime do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnc
from nnc import driver
from nnc.cli import main
from nnc.cli.explain import kernels
from nnc.cli.plan import memory_plan
from nnc.runtime import memory

MODELS = Path(__file__).parents[1] / "models"
DIGITS = str(MODELS / "digits.nn")


@pytest.fixture
def nn(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*args: str) -> tuple[int, str, str]:
        try:
            code = main(args)
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return call


# ---- fmt --------------------------------------------------------------------------------------


def test_fmt(nn: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.nn"
    good = "export def f(x: f32[N]) -> f32[N]:\n    return x + 1\n"
    path.write_text(good.replace("    return", "  return") + "\n\n")
    before = path.read_text()
    code, out, _ = nn("fmt", "--check", str(path))
    assert code == 1 and "not formatted" in out and path.read_text() == before
    assert nn("fmt", str(path)) == (0, f"{path}\n", "") and path.read_text() == good
    assert nn("fmt", str(path)) == (0, "", "") and nn("fmt", "--check", str(path))[0] == 0
    path.write_text("export def f(:\n")
    code, _, err = nn("fmt", str(path))
    assert code == 1 and err.startswith("error[E01") and path.read_text() == "export def f(:\n"
    assert nn("fmt", str(tmp_path / "none.nn"))[0] == 1


# ---- explain ----------------------------------------------------------------------------------


def test_explain_a_code(nn: Any) -> None:
    code, out, _ = nn("explain", "e0302")
    assert code == 0 and out.startswith("E0302: ")
    code, _, err = nn("explain", "E0399")
    assert code == 2 and "did you mean E03" in err


def test_explain_a_line(nn: Any) -> None:
    code, out, _ = nn("explain", f"{DIGITS}:14")
    assert code == 0 and out.startswith("predict (") and "argmax(net(x), over=1): kernel 2" in out
    assert "logits" not in out and "work: about 10*B" in out
    code, out, _ = nn("explain", DIGITS, "--at", "std/nn.nn:61")
    assert code == 0 and "epilogue: add max" in out and "max(0, x): kernel" in out
    code, _, err = nn("explain", f"{DIGITS}:1")
    assert code == 2 and "nothing is computed" in err and "11, 13, 14" in err
    assert nn("explain", DIGITS, "--at", "x")[0] == 2 and nn("explain", "none.nn:3")[0] == 1


@pytest.mark.parametrize(
    ("line", "texts"),
    [
        (2, ["imports `Linear`, `relu` from std/nn.nn", "file: 11"]),
        (
            7,
            ["a sub-module", "net.fc1.weight: f32[128, 64], read by kernel 0", "written by kernel"],
        ),
        (11, ["fc1(x)", "in std/nn.nn:7", "in std/nn.nn:61  max(0, x)"]),
        (13, ["begins `predict`", "argmax(net(x), over=1): kernel 2, a result"]),
        (23, ["cross_entropy(net!(x), y)", "in std/loss.nn:5", "contraction"]),
        (24, ["opt!(net, grad(loss, net), lr)", "in std/optim.nn:", "the derivatives of"]),
    ],
)
def test_explain_lines_of_every_kind(nn: Any, line: int, texts: list[str]) -> None:
    code, out, _ = nn("explain", f"{DIGITS}:{line}")
    assert code == 0 and all(text in out for text in texts), out


def test_explain_modules_in_lists(nn: Any) -> None:
    resnet = str(MODELS / "resnet.nn")
    code, out, _ = nn("explain", f"{resnet}:4")
    assert code == 0 and "net.layer1.1.conv1.weight" in out and "net.conv1.weight" not in out
    code, out, _ = nn("explain", f"{resnet}:12")  # the header of a loop
    assert code == 0 and "f(skip)" in out and "conv1" not in out


def test_a_file_without_exports(nn: Any, tmp_path: Path) -> None:
    (tmp_path / "a.nn").write_text("def f(x: f32) -> f32 = x\n")
    assert "exports nothing" in nn("explain", str(tmp_path / "a.nn"))[1]


def test_values_that_are_computed_where_they_are_read(nn: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.nn"
    path.write_text(
        "export def f(x: f32[N]) -> f32:\n"
        "    y = x * 2\n"
        "    z = x - x * 1\n"
        "    return sum(exp(y))\n"
    )
    assert "x * 2: computed where it is read, in kernel 0" in nn("explain", f"{path}:2")[1]
    assert nn("explain", f"{path}:3")[0] in (0, 2)


@pytest.mark.parametrize("name", ["digits", "char_rnn", "vae"])
def test_every_kernel_has_its_values(name: str) -> None:
    for each in driver.schedule_file(MODELS / f"{name}.nn"):
        for kernel, group in kernels(each):
            assert group is not None or kernel.reason.startswith(("copy of", "right operand of"))


# ---- plan -------------------------------------------------------------------------------------


def _number(out: str, name: str) -> int:
    row = next(line for line in out.splitlines() if line.startswith(name))
    return int(row.split(" bytes")[0].split()[-1].replace(",", ""))


@pytest.mark.parametrize("batch", [1, 7, 512])
def test_the_plan_is_what_the_runtime_allocates(nn: Any, batch: int) -> None:
    model = nnc.load(DIGITS)
    net, opt = model.Digits.init(seed=0), None
    opt = model.AdamW(net).init()
    x, y = np.zeros((batch, 64), np.float32), np.zeros(batch, np.int32)
    model.train_step(net, opt, x, y)
    code, out, _ = nn("plan", DIGITS, "train_step", "--B", str(batch))
    entry = model.exports["train_step"]._entry
    assert code == 0 and _number(out, "workspace") == entry._workspace.nbytes
    leaves = sum(a.nbytes for m in (net, opt) for a in m.arrays.values())
    assert _number(out, "arguments") == leaves + x.nbytes + y.nbytes + 4  # lr
    parts = [_number(out, n) for n in ("arguments", "results", "workspace")]
    assert _number(out, "all") == sum(parts) and parts[1] == 4
    table = out.split("share")[1].splitlines()[1:]
    sizes = [int(row.split(" = ")[0].split()[-1].replace(",", "")) for row in table]
    assert sizes and sizes == sorted(sizes, reverse=True)
    assert all("digits.nn:" in row.split()[0] for row in table)
    assert len({row.split()[0] for row in table}) == len(table)  # each line once
    every = nn("plan", DIGITS, "train_step", "--all", "--B", str(batch))[1].split("share")[1]
    assert len(every.splitlines()) > len(table) and "*" in every


def test_the_formulas(nn: Any) -> None:
    code, out, _ = nn("plan", DIGITS, "predict", "--threads", "1")
    (found,) = (s for s in driver.schedule_file(DIGITS) if s.name == "predict")
    assert code == 0 and str(memory_plan(found).workspace(1)) in out
    assert str(memory_plan(found).arguments) in out


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["nothing"], "exports no 'nothing'"),
        (["train_step", "--C", "3"], "no size C (its sizes: B)"),
        (["train_step", "--B", "x"], "whole number"),
        (["train_step", "--B"], "whole number"),
        (["train_step", "--B", "-3"], "whole number"),
        (["train_step", "--B", "0"], "at least 1"),
        (["train_step", "--B", "1", "--B=2"], "twice"),
        (["train_step", "3"], "unrecognized"),
        (["train_step", "--B", "1", "--threads", "0"], "--threads"),
    ],
)
def test_wrong_calls_of_plan(nn: Any, args: list[str], text: str) -> None:
    code, _, err = nn("plan", DIGITS, *args)
    assert code in (1, 2) and text in err


def test_a_call_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nnc.load(DIGITS)
    net = model.Digits.init(seed=0)
    before = {k: a.copy() for k, a in net.arrays.items()}
    monkeypatch.setattr(memory, "physical", lambda: 1 << 20)
    with pytest.raises(nnc.DeviceError) as met:
        model.train_step(net, model.AdamW(net).init(), *_batch(3000))
    assert "this needs" in str(met.value) and "machine has 1.0 MB" in str(met.value)
    assert "nnc plan MODEL.nn train_step --B 3000" in str(met.value)
    assert all(np.array_equal(before[k], net.arrays[k]) for k in before)


def _batch(n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((n, 64), np.float32), np.zeros(n, np.int32)
