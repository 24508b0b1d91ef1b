"""The command line: every command, exit codes, and no traceback for any mistake of a user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import nnc
from nnc.cli import main
from nnc.cli.library import STD, definition, shown

MODEL = """\
from std.nn import Linear

module Net(I=4, O=2):
    fc = Linear(I, O)

    def forward(x: real[B, I]) -> real[B, O]:
        return fc(x)

# doubles
export def twice(x: f32[N], by: f32 = 2.0) -> f32[N]:
    return x * by

export def predict(net: Net, x: f32[B, 4]) -> f32[B, 2]:
    return net(x)

export def both(x: f32[N]) -> (f32[N], f32):
    return x + 1, sum(x)

test "twice":
    x = ones[3]
    assert sum(x * 2) == 6
"""
BROKEN = "export def f(x: f32[N]) -> f32[N]:\n    return x + yy\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("cli")
    (place / "net.nn").write_text(MODEL)
    (place / "broken.nn").write_text(BROKEN)
    (place / "failing.nn").write_text('test "no":\n    x = ones[3]\n    assert sum(x) == 4\n')
    (place / "latin.nn").write_bytes("# caf\xe9\n".encode("latin-1"))
    (place / "dir.nn").mkdir()
    np.save(place / "x.npy", np.arange(3, dtype=np.float32))
    np.save(place / "x4.npy", np.ones((5, 4), np.float32))
    np.save(place / "pickle.npy", np.array([{}], dtype=object))
    (place / "junk.npy").write_bytes(b"junk")
    return place


@pytest.fixture
def nn(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs one command in the directory: (exit code, stdout, stderr)."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("CI", raising=False)  # `golden --update` is refused there

    def call(*args: str) -> tuple[int, str, str]:
        try:
            code = main(args)
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return call


# ---- commands ---------------------------------------------------------------------------------


def test_check(nn: Any) -> None:
    assert nn("check", "net.nn") == (0, "", "")
    code, out, err = nn("check", "broken.nn")
    assert code == 1 and out == "" and "error[E" in err and "broken.nn:2:16" in err
    code, out, _ = nn("check", "broken.nn", "--json")
    row = json.loads(out.splitlines()[0])
    assert code == 1 and (row["line"], row["column"], row["severity"]) == (2, 16, "error")
    assert set(row) >= {"code", "message", "file", "end_line", "end_column", "notes", "help"}


def test_dump(nn: Any) -> None:
    code, out, _ = nn("dump", "net.nn", "twice", "--stage", "graph")
    assert code == 0 and "f32" in out
    for stage in ("syntax", "loops", "llvm", "asm"):
        code, out, _ = nn("dump", "net.nn", "twice", "--stage", stage)
        assert code == 0 and out.strip()
    assert nn("dump", "net.nn", "nothing")[0] == 2
    assert nn("dump", "net.nn", "twice", "--stage", "magic")[0] == 2
    assert nn("dump", "broken.nn", "f")[0] == 1


def test_names(nn: Any) -> None:
    code, out, _ = nn("names", "net.nn")
    assert code == 0 and out.startswith("Net: 10 parameters")
    assert out.splitlines()[1].split()[:5] == ["fc.weight", "f32", "[2,", "4]", "param"]
    assert "10 parameters" in nn("names", "net.nn", "-D", "Net.O=2")[1]
    assert nn("names", "net.nn", "-D", "Net.X=2")[0] == 1


def test_run(nn: Any, folder: Path) -> None:
    assert nn("run", "net.nn", "twice", "--arg", "x=x.npy")[1] == "result float32[3]\n[0. 2. 4.]\n"
    code, out, _ = nn("run", "net.nn", "both", "--arg", "x=x.npy", "--save", "out.npz")
    assert code == 0 and out == ""
    saved = np.load(folder / "out.npz")
    assert saved["result0"].tolist() == [1, 2, 3] and saved["result1"] == 3
    nn("run", "net.nn", "twice", "--arg", "x=x.npy", "--arg", "by=-1.5", "--save", "out.npy")
    assert np.load(folder / "out.npy").tolist() == [0, -1.5, -3]


def test_run_with_weights(nn: Any, folder: Path) -> None:
    call = ["run", "net.nn", "predict", "--arg", "x=x4.npy", "--save", "y.npy"]
    assert nn(*call, "--seed", "3", "--save-weights", "net=w.safetensors")[0] == 0
    first = np.load(folder / "y.npy")
    assert nn(*call, "--weights", "net=w.safetensors")[0] == 0
    assert np.array_equal(first, np.load(folder / "y.npy"))
    assert set(load_file(folder / "w.safetensors")) == {"fc.weight", "fc.bias"}


def test_compile_and_run_without_the_source(nn: Any, folder: Path) -> None:
    code, out, _ = nn("compile", "net.nn", "-o", "build/x")
    written = [f"build/x/net{s}" for s in (".a", ".h", ".json", ".so")]
    assert code == 0 and out.split() in (written, written[:3])
    assert nn("run", "build/x/net.json", "twice", "--arg", "x=x.npy")[1].endswith("[0. 2. 4.]\n")
    assert nn("names", "build/x/net.json")[1].startswith("Net: 10")
    model = nnc.load(folder / "build/x/net.json")
    with pytest.raises(nnc.Error, match="needs its source"):
        model.twice.forward(np.ones(3, np.float32))
    with pytest.raises(nnc.ArgumentError, match="fixed"):
        nnc.load(folder / "build/x/net.json", Net={"I": 3})
    assert nn("compile", "net.nn", "--target", "cuda")[0] == 1
    assert nn("compile", "net.nn", "-o", "net.nn/x")[0] == 2


def test_test(nn: Any) -> None:
    code, out, _ = nn("test", "net.nn")
    assert (
        code == 0 and "ok    test 'twice'" in out and "gradient of predict by net.fc.weight" in out
    )
    code, out, _ = nn("test", "failing.nn")
    assert code == 1 and "FAIL    test 'no'" in out and "failing.nn:3" in out


def test_test_takes_the_slope_of_one_side_at_a_kink(nn: Any, folder: Path) -> None:
    text = """module Bias(D=3):
    param b: real[D] = 0
    def forward(x: real[D]) -> real[D] = max(0 * x + b, 0)
export def f(net: Bias, x: f32[3]) -> f32[3] = net(x)
"""
    (folder / "kink.nn").write_text(text)
    assert nn("test", "kink.nn")[0] == 0
    adjoint = "def f(x: real) -> real = x**2\nadjoint f(x; y, dy):\n    return 2.2 * x * dy\n"
    adjoint += "export def g(x: f32[N]) -> f32[N]:\n    y[n] = f(x[n])\n    return y\n"
    (folder / "wrong.nn").write_text(adjoint)
    assert nn("test", "wrong.nn")[0] == 1


def test_test_leaves_halves_out(nn: Any, folder: Path) -> None:
    (folder / "half.nn").write_text("export def f(x: bf16[N]) -> bf16[N] = x * x\n")
    code, out, _ = nn("test", "half.nn")
    assert code == 0 and "not checked" in out


def test_rounding_inside_is_no_wrong_gradient(nn: Any, folder: Path) -> None:
    text = "export def f(x: f32[8], w: f32[8, 8]) -> f32[8] = f32(bf16(x) @ bf16(w))**2\n"
    (folder / "rounded.nn").write_text(text)
    code, out, _ = nn("test", "rounded.nn")
    assert code == 0 and "0 failed" in out


def test_test_knows_what_stop_means(nn: Any, folder: Path) -> None:
    text = "export def f(x: f32[N]) -> f32:\n    return mean((x - stop(x**2))**2)\n"
    (folder / "cut.nn").write_text(text)
    code, out, _ = nn("test", "cut.nn")
    assert code == 0 and "they differ by the `stop` at cut.nn:2" in out


def test_test_takes_an_adjoint_that_is_meant_to_differ(nn: Any, folder: Path) -> None:
    text = """def reverse(x: real[..N]) -> real[..N] = x
adjoint reverse(x; y, dy){mark}:
    return -dy
export def f(x: f32[N], w: f32[N]) -> f32 = total(w * reverse(x)**2)
"""
    (folder / "reverse.nn").write_text(text.format(mark=""))
    code, out, _ = nn("test", "reverse.nn")
    assert code == 1 and "is the adjoint meant to differ?" in out
    (folder / "reverse.nn").write_text(text.format(mark=' test "the gradient is reversed"'))
    code, out, _ = nn("test", "reverse.nn")
    assert code == 0 and "by the adjoint used at reverse.nn:4" in out
    assert "the gradient is reversed" in out


def test_train_from_the_command_line(nn: Any, folder: Path) -> None:
    code, _, err = nn("train", "net.nn")
    assert code == 2 and "train_step" in err


@pytest.mark.parametrize(
    "name", ["Linear", "BatchNorm", "relu", "cross_entropy", "AdamW", "uniform"]
)
def test_show_prints_whole_definitions(nn: Any, name: str) -> None:
    """What is shown stands in the file as it is, and begins and ends with a definition."""
    path = next(p for p in STD.glob("*.nn") if definition(p.read_text().splitlines(), name))
    code, out, _ = nn("show", f"std.{path.stem}.{name}")
    head, _, body = out.partition("\n")
    place, line = head.removeprefix("# ").split(":")
    assert code == 0 and place == f"std/{path.name}"
    assert body.rstrip("\n") in path.read_text()
    assert name in path.read_text().splitlines()[int(line) - 1]


def test_show_files_lists_and_mistakes(nn: Any) -> None:
    assert nn("show", "std.optim")[1].startswith("# std/optim.nn")
    assert "Linear" in shown("std") and "std.loss" in shown("std")
    for name, hint in [
        ("std.nn.Linea", "Linear"),
        ("std.nnn", "nn"),
        ("numpy", "std.nn.Linear"),
        ("std.nn.Linear.x", "no Linear.x"),
        ("", "std"),
    ]:
        code, _, err = nn("show", name)
        assert code == 2 and hint in err


def test_blocks_end_where_the_next_definition_begins() -> None:
    lines = [
        "def a(x: f32[N],",
        "      y: f32[N]) -> f32:",
        "    return 1",
        "",
        "# about b",
        "def b(x: f32) -> f32 = x",
        "module C:",
        "    pass",
        "",
        "    def m() -> f32:",
        "        return 2",
        "",
    ]
    assert [definition(lines, n) for n in ("a", "b", "C", "d")] == [
        [(0, 2)],
        [(5, 5)],
        [(6, 10)],
        [],
    ]


# ---- mistakes ---------------------------------------------------------------------------------

FILES = ["missing.nn", "dir.nn", "latin.nn", "a\0b", ""]
COMMANDS = {
    "check": [],
    "compile": [],
    "names": [],
    "dump": ["f"],
    "run": ["f"],
    "train": [],
    "test": [],
    "explain": [],
    "plan": ["f"],
    "profile": ["f"],
    "golden": ["--update"],
    "fmt": [],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("file", FILES)
def test_files_that_cannot_be_read(nn: Any, command: str, file: str) -> None:
    code, out, err = nn(command, file, *COMMANDS[command])
    assert code == 1 and out == "" and err.startswith(f"nnc {command}: ")


def test_a_file_without_permission(nn: Any, folder: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (folder / "secret.nn").write_text(MODEL)
    (folder / "secret.nn").chmod(0)
    assert "ermission" in nn("check", "secret.nn")[2]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in ("check", "fmt")])
def test_a_broken_model(nn: Any, command: str) -> None:
    code, _, err = nn(command, "broken.nn", *COMMANDS[command])
    assert code == 1 and err.startswith("error[E") and "yy" in err


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["nothing"], "exports no 'nothing'"),
        (["twice"], "missing x"),
        (["twice", "--arg", "x"], "--arg NAME=VALUE"),
        (["twice", "--arg", "x=abc"], "no number"),
        (["twice", "--arg", "x=1"], "needs 1 axis, got 0"),
        (["twice", "--arg", "z=1"], "no such argument"),
        (["twice", "--arg", "x=none.npy"], "cannot read none.npy"),
        (["twice", "--arg", "x=pickle.npy"], "not an .npy file"),
        (["twice", "--arg", "x=junk.npy"], "not an .npy file"),
        (["twice", "--arg", "x=x.npy", "--arg", "x=x.npy"], "given twice"),
        (["twice", "--arg", "x=x.npy", "--save", "a.txt"], "npz"),
        (["twice", "--arg", "x=x.npy", "--save", "no/a.npy"], "cannot write no/a.npy"),
        (["both", "--arg", "x=x.npy", "--save", "a.npy"], "use .npz"),
        (["predict", "--arg", "x=x4.npy", "--weights", "net=none"], "cannot read none"),
        (["predict", "--arg", "x=x4.npy", "--weights", "nett=a"], 'did you mean "net"'),
        (["predict", "--arg", "x=x4.npy", "--weights", "net=net.nn"], "safetensors"),
        (["twice", "--arg", "x=x.npy", "--threads", "0"], "--threads"),
        (["twice", "--threads", "x"], "invalid int"),
        (["twice", "-D", "x"], "-D MODULE.PARAMETER=VALUE"),
        (["twice", "-D", "Net.I=x"], "no number"),
    ],
)
def test_wrong_calls_of_run(nn: Any, args: list[str], text: str) -> None:
    code, _, err = nn("run", "net.nn", *args)
    assert code in (1, 2) and text in err


def test_no_command_and_unknown_command(nn: Any) -> None:
    assert nn()[0] == 2 and nn("frobnicate")[0] == 2
    assert nn("--help")[0] == 0 and nn("--version")[1] == f"nnc {nnc.__version__}\n"
    for command in [*COMMANDS, "show"]:
        code, out, _ = nn(command, "--help")
        assert code == 0 and out.startswith("usage: nnc " + command)


# ---- the process --------------------------------------------------------------------------------


def test_a_closed_pipe_is_silent(folder: Path) -> None:
    command = [sys.executable, "-m", "nnc", "show", "std.nn"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.returncode in (0, 1)


def test_import_and_help_are_quick() -> None:
    """The budget is 150 ms of the process's own time; nothing heavy may be imported."""
    code = (
        "import sys, nnc; from nnc.cli import _parser; _parser().format_help()\n"
        "heavy = {'numpy', 'llvmlite', 'lark', 'rich', 'matplotlib', 'sklearn'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert time.perf_counter() - began < 2  # loosely: the machine may be busy


def test_the_public_names() -> None:
    for name in dir(nnc):
        assert getattr(nnc, name) is not None
    with pytest.raises(AttributeError):
        nnc.nothing  # noqa: B018


def test_load_names_its_mistakes(folder: Path) -> None:
    with pytest.raises(nnc.CompileError) as met:
        nnc.load(folder / "broken.nn")
    assert met.value.diagnostics[0].span.line == 2 and "yy" in str(met.value)
    with pytest.raises(nnc.LoadError, match="cannot read"):
        nnc.load(folder / "missing.nn")
    with pytest.raises(nnc.ArgumentError, match=r"Net=dict\("):
        nnc.load(folder / "net.nn", Net=3)
    with pytest.raises(nnc.ArgumentError, match="threads"):
        nnc.load(folder / "net.nn", threads=0)
    model = nnc.load(folder / "net.nn", threads=1, Net={"I": 4})
    assert model.threads == 1 and "f32" in model.ir("twice", stage="graph")
    with pytest.raises(nnc.ArgumentError, match="no stage"):
        model.ir("twice", stage="magic")
    with pytest.raises(nnc.AttributeError, match="exports no"):
        model.ir("nothing")


QUICK = """
import sys, nnc
import numpy as np
model = nnc.load("net.nn")
print(model.twice(np.ones(2, np.float32)).tolist(), "nnc.compiler" in sys.modules)
if len(sys.argv) > 1:
    print(model.twice.forward(np.ones(2, np.float32)).backward(np.ones(2, np.float32)).by)
print(model.ir("twice", "graph").count("f32") > 0)
"""


def _fresh(folder: Path, cache: Path, *args: str) -> list[str]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(STD.parent.parent)}
    command = [sys.executable, "-c", QUICK, *args]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=True)
    return done.stdout.decode().splitlines()


def test_an_unchanged_file_loads_without_the_compiler(folder: Path, tmp_path: Path) -> None:
    first = _fresh(folder, tmp_path, "grad")
    again = _fresh(folder, tmp_path, "grad")
    assert first[0] == again[0] == "[2.0, 2.0] False"
    assert first[1:] == again[1:] == ["2.0", "True"]
    (folder / "net.nn").write_text(MODEL.replace("x * by", "x * by + 1"))
    try:
        assert _fresh(folder, tmp_path)[0] == "[3.0, 3.0] False"
    finally:
        (folder / "net.nn").write_text(MODEL)
    assert _fresh(folder, tmp_path)[0] == "[2.0, 2.0] False"


def test_a_file_that_changed_meanwhile_is_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "net.nn"
    path.write_text(MODEL)
    nnc.load(path)
    model = nnc.load(path)
    path.write_text(MODEL.replace("2.0", "3.0"))
    with pytest.raises(nnc.Error, match="has changed since"):
        model.ir("twice")


def test_imported_files_are_part_of_the_key(tmp_path: Path) -> None:
    (tmp_path / "a.nn").write_text("const K: f32 = 2.0\n")
    (tmp_path / "b.nn").write_text("from a import K\nexport def f(x: f32[N]) -> f32[N] = K * x\n")
    x = np.ones(1, np.float32)
    assert nnc.load(tmp_path / "b.nn").f(x) == 2
    (tmp_path / "a.nn").write_text("const K: f32 = 5.0\n")
    assert nnc.load(tmp_path / "b.nn").f(x) == 5
