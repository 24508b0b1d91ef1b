"""`specialize f(T=1)`: variants inside the compiled function, chosen by the sizes of a call."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnc
from nnc import compiler
from nnc.cli import main
from nnc.ir.interpret import run as interpret
from nnc.passes.specialize import specialized
from tests.endtoend import built, close, compare, sample

TEXT = """
def attend(q: f32[T, D], k: f32[S, D]) -> f32[T, S]:
    s = q @ k.T
    e = exp(s - max(s, over=S, keep=true))
    return e / sum(e, over=S, keep=true)

export def f(x: f32[T, D], k: f32[S, D], at: dim, i: i32[T]) -> (f32[T, D], f32[D]):
    a = attend(x, k) @ k
    y[t, d] = a[i[t], d] + at
    h = zeros[D]
    for t in T:
        h = 0.5 * h + y[t]
    loss = total(h**2)
    return y, grad(loss, k)[0]

specialize f(T=1)
specialize f(at=0, S=4, T=1)
specialize f(D=3)
"""
SIZES = [{"T": 1, "D": 5, "S": 3, "at": 2}, {"T": 1, "D": 3, "S": 4, "at": 0}]
SIZES += [{"T": 2, "D": 3, "S": 4, "at": 0}, {"T": 3, "D": 5, "S": 4, "at": 1}]


def load(folder: Path, text: str = TEXT) -> nnc.Model:
    path = folder / "model.nn"
    path.write_text(text)
    return nnc.load(path)


def inputs(dims: dict[str, int]) -> dict[str, Any]:
    graph = built(TEXT)["f"].graph
    out = sample(graph, dims, np.random.default_rng(1))
    return out | {"i": np.zeros(dims["T"], np.int32)}


@pytest.mark.parametrize("dims", SIZES, ids=str)
def test_results_are_those_of_the_general_code(tmp_path: Path, dims: dict[str, int]) -> None:
    given, graph = inputs(dims), built(TEXT)["f"].graph
    want = interpret(compiler.optimise(graph), dims, given).results
    got = load(tmp_path).f(given["x"], given["k"], dims["at"], given["i"])
    for a, b in zip(got, want, strict=True):
        close(a, b, 2e-4, str(dims))


@pytest.mark.parametrize("sizes", [{"T": 1}, {"T": 1, "S": 4, "at": 0}, {"D": 3}], ids=str)
def test_a_variant_is_right_on_guard_pages(sizes: dict[str, int]) -> None:
    graph = specialized(built(TEXT)["f"].graph, "f", sizes)
    dims = SIZES[1] | sizes
    compare(graph, dims, inputs(dims))


def test_variants_are_compiled_with_the_numbers(tmp_path: Path) -> None:
    m = load(tmp_path)
    assert m.exports["f"].variants == ("f(at=0, S=4, T=1)", "f(T=1)", "f(D=3)")
    assert "x: f32[1, D]" in m.ir("f(T=1)")
    assert "k: f32[4, D]" in m.ir("f(at=0, S=4, T=1)")
    text = m.ir("f(T=1)", "loops")
    assert "x: f32[T, D]" not in text and "x: f32[1, D]" in text
    with pytest.raises(nnc.AttributeError, match=r"f\(T=1\)"):
        m.ir("f(T=2)")


def test_a_call_with_the_sizes_takes_the_variant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a variant of another meaning one sees which code has run."""
    other = built("export def f(x: f32[N]) -> f32[N] = x + 2")["f"].graph
    monkeypatch.setattr(compiler, "specialized", lambda _, name, n: specialized(other, name, n))
    path = tmp_path / "model.nn"
    path.write_text("export def f(x: f32[N]) -> f32[N] = x + 1\nspecialize f(N=3)\n")
    m = nnc.load(path, cache=False)
    for n in (2, 3, 3, 4):
        np.testing.assert_array_equal(m.f(np.ones(n, np.float32)), 3 if n == 3 else 2)


def test_an_index_error_names_its_line(tmp_path: Path) -> None:
    m = load(tmp_path)
    given = inputs(SIZES[0])
    with pytest.raises(nnc.IndexError, match=r"model\.nn:9:17"):
        m.f(given["x"], given["k"], 0, np.array([7], np.int32))


def test_plan_and_explain_know_the_variants(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(tmp_path)
    path = str(tmp_path / "model.nn")
    assert main(["explain", path]) == 0
    assert "f(at=0, S=4, T=1) (" in capsys.readouterr().out
    assert main(["dump", path, "f(T=1)", "--stage", "simplify"]) == 0
    assert "def f(T=1)" in capsys.readouterr().out
    sizes = ["--T", "1", "--D", "5", "--S", "3", "--at", "2"]
    assert main(["plan", path, "f", *sizes]) == 0


C = r"""
#include <stdio.h>
#include "model.h"
int64_t nt_bytes(const int64_t *dims, int64_t threads) { return nn_f_bytes(dims, threads); }
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_the_artifact(tmp_path: Path) -> None:
    load(tmp_path)
    out = tmp_path / "out"
    assert main(["compile", str(tmp_path / "model.nn"), "-o", str(out)]) == 0
    (out / "bytes.c").write_text(C)
    command = ["gcc", "-shared", "-fPIC", "-Wno-unused", "-o", out / "bytes.so", out / "bytes.c"]
    subprocess.run(command, check=True)
    header = ctypes.CDLL(str(out / "bytes.so")).nt_bytes
    library = ctypes.CDLL(str(out / "model.so")).nn_f_bytes
    header.restype = library.restype = ctypes.c_int64
    m = nnc.load(out / "model.json")
    native = m.exports["f"].native
    for dims in SIZES:
        given = inputs(dims)
        want = interpret(compiler.optimise(built(TEXT)["f"].graph), dims, given).results
        got = m.f(given["x"], given["k"], dims["at"], given["i"])
        close(got[0], want[0], 2e-4, str(dims))
        values = (ctypes.c_int64 * 4)(*(dims[n] for n in native.dims))
        bytes_ = library(values, ctypes.c_int64(3))
        assert header(values, ctypes.c_int64(3)) == bytes_
        most = -(-native.arena_at(dims) // 64) * 64 + 3 * native.scratch.evaluate(dict(dims))
        assert bytes_ <= most


def test_modules_and_exported_methods(tmp_path: Path) -> None:
    text = """
from std.nn import Linear
module Net(D=4):
    fc = Linear(D, D)
    def forward(x: real[B, D]) -> real[B, D] = fc(x)
specialize forward(B=1)
"""
    m = load(tmp_path, text)
    net = m.Net.init(seed=0)
    x = np.ones((1, 4), np.float32)
    np.testing.assert_allclose(
        m.forward(net, x)[0], m.forward(net, np.ones((2, 4), np.float32))[0], rtol=1e-6
    )
    assert m.exports["forward"].variants == ("forward(B=1)",)
