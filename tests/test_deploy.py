"""Compiled models in C programs: the program of docs/deploy.md, the shared library, the header."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nnc
from nnc.cli import main
from nnc.runtime import artifact
from nnc.runtime.c_header import c_text

ROOT = Path(__file__).parents[1]
GCC = shutil.which("gcc")
needs_gcc = pytest.mark.skipif(GCC is None, reason="gcc is not installed: apt install gcc")
PROGRAM = re.search(r"```c\n(#include.*?)```", (ROOT / "docs/deploy.md").read_text(), re.S)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build")
    assert main(["compile", str(ROOT / "models/digits.nn"), "-o", str(folder)]) == 0
    (folder / "pick.nn").write_text(
        "export def pick(x: f32[N], i: i32[M]) -> f32[M] = x[i]\n"
        "export def noise(x: f32[N]) -> f32[N] = x + normal!([N])\n"
    )
    return folder


@pytest.fixture(scope="module")
def expected() -> list[str]:
    """What Python gets for the program of the manual."""
    model = nnc.load(ROOT / "models/digits.nn")
    net = model.Digits.init(seed=7)
    opt = model.AdamW(net).init()
    x = (np.arange(32 * 64) * 37 % 17).astype(np.float32).reshape(32, 64) / np.float32(16)
    y = (np.arange(32) % 10).astype(np.int32)
    losses = [float(model.train_step(net, opt, x, y, lr=0.003)) for _ in range(5)]
    return [*(_hex(v) for v in losses), *map(str, model.predict(net, x))]


def _hex(value: float) -> str:
    """C's `%a`: without the zeros at the end."""
    head, _, power = value.hex().partition("p")
    return f"{head.rstrip('0').rstrip('.')}p{power}"


def _compiled(build: Path, name: str, text: str, *libraries: str) -> list[str]:
    assert GCC is not None
    (build / f"{name}.c").write_text(text)
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers"]
    command = [GCC, *flags, f"{name}.c", *libraries, "-o", name]
    done = subprocess.run(command, cwd=build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([f"./{name}"], cwd=build, capture_output=True, text=True, env={})
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout.split("\n")[:-1]


@needs_gcc
@pytest.mark.parametrize("library", [["digits.a"], ["-L.", "-l:digits.so", "-Wl,-rpath,."]])
def test_the_program_of_the_manual(build: Path, expected: list[str], library: list[str]) -> None:
    assert PROGRAM is not None
    rows = _compiled(build, "main" + str(len(library)), PROGRAM[1], *library)
    assert [r.split(".")[-1] for r in rows] == [r.split(".")[-1] for r in expected]
    assert len(rows) == 37 and rows[:5] == expected[:5] and rows[5:] == expected[5:]


def test_the_shared_library(build: Path) -> None:
    """It loads with nothing else, and calls have the bits of Python."""
    if not (build / "digits.so").exists():
        pytest.skip("no linker is installed: apt install binutils")
    code = ctypes.CDLL(str(build / "digits.so"))
    model = nnc.load(build / "digits.json")
    net = model.Digits.init(seed=3)
    x = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    y = np.empty((5, 10), np.float32)
    code.nn_logits_bytes.restype = ctypes.c_int64
    dims = (ctypes.c_int64 * 1)(5)
    size = code.nn_logits_bytes(dims, ctypes.c_int64(1))
    work = np.empty(size + 64, np.uint8)
    start = -(-work.ctypes.data // 64) * 64
    context = (ctypes.c_int64 * 6)(start, 1)
    pointers = [*(a.ctypes.data for a in net.arrays.values()), x.ctypes.data, y.ctypes.data]
    args = (ctypes.c_void_p * len(pointers))(*pointers)
    assert code.nn_logits(context, dims, args) == 0
    assert np.array_equal(y, model.logits(net, x))


def test_without_a_linker_a_line_says_so(
    build: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert main(["compile", str(build / "pick.nn"), "-o", str(build / "none")]) == 0
    out, err = capsys.readouterr()
    assert "no pick.so" in err and "apt install binutils" in err and ".so" not in out


def test_a_linker_that_fails_is_named(build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (build / "bad.a").write_bytes(b"!<arch>\nrubbish")
    with pytest.raises(nnc.Error, match=r"cannot make .*bad.so"):
        artifact.link(build / "bad.a")
    assert not (build / "bad.so").exists()


INDEX = """
#include <stdio.h>
#include "pick.h"
int main(void) {
    _Alignas(64) static char work[1 << 16];
    int64_t dims[2], out_of = 0;
    for (int i = 0; i < nn_pick_dims; i++) dims[i] = 3;
    if (nn_pick_bytes(dims, 1) > (int64_t)sizeof work) return 2;
    nn_ctx ctx = {work, 1};
    float x[3] = {1, 2, 3}, y[3];
    int32_t at[3] = {0, 5, 1};
    void *args[] = {x, at, y};
    out_of = nn_pick(&ctx, dims, args);
    printf("%d %d %d %s\\n", (int)out_of, (int)ctx.value, (int)ctx.extent, nn_pick_site(ctx.site));
    for (int i = 0; i < nn_pick_args; i++)
        printf("%s %d\\n", nn_pick_arg_name(i), (int)nn_pick_arg_bytes(dims, i));
    for (int i = 0; i < nn_noise_args; i++) puts(nn_noise_arg_name(i));
}
"""


@needs_gcc
def test_names_sizes_and_index_errors(build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(build)
    assert main(["compile", "pick.nn"]) == 0
    error, *rows = _compiled(build, "index", INDEX, "pick.a")
    assert error.startswith("1 5 3 pick.nn:1:") and error.endswith(": i")
    assert rows[:3] == ["x 12", "i 12", "result 0 12"]
    assert set(rows[3:]) == {"seed", "step", "x", "result 0"}


def test_no_python_in_the_library(build: Path) -> None:
    for suffix in (".a", ".so"):
        path = build / f"digits{suffix}"
        if path.exists():
            data = path.read_bytes()
            assert b"libpython" not in data and b"llvmlite" not in data


def test_c_texts() -> None:
    assert c_text('a"b\\?\n€') == '"a\\042b\\134\\077\\012\\342\\202\\254"'
    assert sys.byteorder == "little"
