"""`nnc golden` and its pytest plugin: what is recorded, what is found to differ."""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnc.cli import main
from nnc.cli.golden import _compare, _summary, compare
from nnc.cli.inputs import uniform

pytest_plugins = ["pytester"]
MODEL = """\
from std.nn import Linear

module Net(I=4, O=80):
    fc = Linear(I, O)

    def forward(x: real[B, I]) -> real[B, O]:
        return fc(x)

export def predict(net: Net, x: f32[B, 4]) -> f32[B, 80]:
    return net(x)

export def twice(x: f32[N], by: f32 = 2.0) -> f32[N]:
    return x * by

export def first(x: f32[N]) -> i32:
    return argmax(x)

export def step(inout net: Net, x: f32[B, 4]) -> f32:
    net.fc.bias := net.fc.bias + 1
    return sum(net(x))
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.nn").write_text(MODEL)
    return Path("net.nn")


def test_recording_comparing_and_changes(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["golden", "net.nn"]) == 1 and "--update" in capsys.readouterr().err
    assert main(["golden", "net.nn", "--update", "--B", "5"]) == 0
    assert "+" in capsys.readouterr().out
    table = json.loads(Path("net.golden/predict.json").read_text())
    assert table["sizes"] == {"B": 5} and set(table["gradients"]) >= {"x", "net.fc.weight"}
    assert len(table["arrays"]["result"]["sample"]) == 256
    assert "after.net.fc.bias" in Path("net.golden/step.json").read_text()
    assert main(["golden", str(path.resolve())]) == 0  # however the path is written
    assert capsys.readouterr().out.split() == [
        *("ok", "predict", "ok", "twice", "ok", "first", "ok", "step")
    ]
    path.write_text(MODEL.replace("x * by", "x * by + 0.001").replace("first", "begin"))
    assert main(["golden", "net.nn"]) == 1
    out = capsys.readouterr().out
    assert "FAIL    twice\n      result at element 0" in out and "(recorded)" in out
    assert "begin\n      not recorded" in out and "first\n      recorded, but no longer" in out
    assert "ok    predict" in out and "gradient" not in out
    assert main(["golden", "net.nn", "--update"]) == 0
    out = capsys.readouterr().out
    assert "--- twice.json (recorded)" in out and not Path("net.golden/first.json").exists()
    assert main(["golden", "net.nn", "--update"]) == 0
    assert "nothing changed" in capsys.readouterr().out
    assert json.loads(Path("net.golden/predict.json").read_text())["sizes"] == {"B": 5}


def test_ci_refuses_updates(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CI", "1")
    assert main(["golden", "net.nn", "--update"]) == 2
    assert "CI" in capsys.readouterr().err and not Path("net.golden").exists()


def test_a_wrong_derivative_is_found(path: Path) -> None:
    assert main(["golden", "net.nn", "--update"]) == 0
    file = Path("net.golden/twice.json")
    table = json.loads(file.read_text())
    table["gradients"]["x"]["values"][1] *= 1.001
    file.write_text(json.dumps(table))
    (row,) = compare(path)["twice"]
    assert row.startswith("gradient by x at element 1: ")


def _table(array: Any) -> Any:
    return json.loads(json.dumps(_summary(np.asarray(array))))


def test_rounding_is_allowed_and_nothing_else() -> None:
    a = uniform(1000, 1).astype(np.float32)
    assert _compare(_table(a), _table(a * np.float32(1 + 1e-6))) == ""
    b = a.copy()
    b[1] += 3  # not in the sample
    assert "outside the sample" in _compare(_table(a), _table(b))
    assert "element 0" in _compare(_table(a), _table(a + np.float32(1e-3)))
    assert _compare(_table([1, 2]), _table([1, 2])) == ""
    assert "element 1" in _compare(_table([1, 2]), _table([1, 3]))
    nan = np.array([np.nan, np.inf, 1.0])
    assert _compare(_table(nan), _table(nan)) == ""
    assert "element 0" in _compare(_table(nan), _table([1.0, np.inf, 1.0]))
    assert "element 1" in _compare(_table(nan), _table([np.nan, -np.inf, 1.0]))
    assert "recorded float64" in _compare(_table(nan), _table([1.0]))


def test_the_inputs_are_the_same_everywhere() -> None:
    first = 0xE220A8397B1DCDAF  # of splitmix64 with seed 0
    assert uniform(3, 0)[0] == (first >> 11) / 2**52 - 1
    assert abs(uniform(10000, 3).mean()) < 0.02


def test_the_plugin(pytester: pytest.Pytester, path: Path) -> None:
    assert main(["golden", str(path.resolve()), "--update"]) == 0
    target = path.resolve()
    (target.parent / "net.golden/twice.loops.txt").write_text("something else\n")
    installed = any(e.value == "nnc.golden" for e in entry_points(group="pytest11"))
    plugin = () if installed else ("-p", "nnc.golden")
    result = pytester.runpytest_inprocess(*plugin, "-q", str(target.parent))
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*twice.loops.txt (recorded)*"])
