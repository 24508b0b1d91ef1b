"""The command line: files of another kind, names without their place, failed tests."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from nnc.cli import main

MODEL = """
module Net(D=2):
    param w: real[D] = 1
    def forward(x: real[B, D]) -> real[B, D] = log(x * w)
export def f(net: Net, x: f32[B, 2]) -> f32[B, 2] = net(x)
test "sums":
    assert total(ones[3]) == 4, "three ones"
"""


@pytest.fixture
def nn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    (tmp_path / "net.nn").write_text(MODEL)
    (tmp_path / "none.nn").write_text("def f(x: real) -> real = x\n")
    monkeypatch.chdir(tmp_path)

    def call(*args: str) -> tuple[int, str]:
        try:
            code = main(args)
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out + err

    return call


def test_a_failed_assertion_says_its_text(nn: Any) -> None:
    assert "total(ones[3]) == 4 is false: three ones" in nn("test", "net.nn")[1]


def test_no_slope_of_what_is_not_finite(nn: Any) -> None:
    """Half of the arguments of this logarithm are negative."""
    code, out = nn("test", "net.nn")
    assert code == 1 and "not checked: the result is nan" in out and "1 failed" in out


@pytest.mark.parametrize("command", ["check", "dump f", "plan f", "explain", "fmt", "compile"])
def test_what_is_compiled_is_no_source(nn: Any, command: str) -> None:
    assert nn("compile", "net.nn")[0] == 0
    name, *rest = command.split()
    code, out = nn(name, "net.json", *rest)
    assert code == 1 and "is compiled already" in out


@pytest.mark.parametrize("command", ["check", "names", "fmt"])
def test_a_pipe_is_no_file(nn: Any, command: str) -> None:
    """It would be empty when it is read again."""
    os.mkfifo("pipe.nn")
    threading.Thread(target=lambda: Path("pipe.nn").write_text(MODEL), daemon=True).start()
    code, out = nn(command, "pipe.nn")
    Path("pipe.nn").read_text()
    assert code == 1 and "it is a pipe" in out


def test_names_without_their_place(nn: Any) -> None:
    assert "std.nn.relu" in nn("show", "relu")[1]
    assert "exports nothing with parameters" in nn("names", "none.nn")[1]
    assert "at most 18 digits" in nn("plan", "net.nn", "f", "--B", "9" * 20)[1]
