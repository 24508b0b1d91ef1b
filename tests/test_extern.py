"""Functions of C: bound by `extern`, called from Python, in loops, under gradients."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import nnc
from nnc import compiler
from nnc.ir.interpret import run as interpret
from nnc.ir.interpret_loop import run_program
from tests.endtoend import built, compare, sample

gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")

C = r"""
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
void nt_row_norm(const int64_t *n, const float *x, float eps, float *y) {
    for (int64_t i = 0; i < n[0]; i++) {
        double s = eps;
        for (int64_t j = 0; j < n[1]; j++) s += (double)x[i * n[1] + j] * x[i * n[1] + j];
        y[i] = sqrt(s);
    }
}
void nt_count(const int64_t *n, const uint8_t *x, int8_t k, bool up, int64_t *y) {
    *y = 0;
    for (int64_t i = 0; i < n[0]; i++) *y += up ? x[i] > k : x[i] < k;
}
void nt_pad(const int64_t *n, const double *x, int64_t unused, double *y) {
    for (int64_t i = 0; i < n[1]; i++) y[i] = i < n[0] ? x[i] : -1;
}
int8_t nt_flip(int8_t x, bool no) { return no ? x : -x; }
bool nt_odd(uint8_t x) { return x % 2; }
"""

NORM = """
extern "nt_row_norm" def row_norm(x: f32[B, D], eps: f32) -> f32[B]

adjoint row_norm(x, eps; y, dy):
    dx[b, d] = dy[b] * x[b, d] / y[b]
    deps[b] = dy[b] / (2 * y[b])
    return dx, total(deps)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extern")
    (folder / "fns.c").write_text(C)
    out = folder / "libfns.so"
    command = ["gcc", "-O1", "-shared", "-fPIC", "-o", out, folder / "fns.c", "-lm"]
    subprocess.run(command, check=True)
    return out


def load(folder: Path, text: str, *libraries: Path) -> nnc.Model:
    path = folder / "model.nn"
    path.write_text(text)
    return nnc.load(path, libraries=libraries)


def norm(x: np.ndarray, eps: float) -> np.ndarray:
    return np.sqrt((x.astype(np.float64) ** 2).sum(-1) + eps)


X = np.random.default_rng(0).standard_normal((5, 3, 4)).astype(np.float32)


@gcc
def test_a_c_function_sees_sizes_tensors_and_numbers(tmp_path: Path, library: Path) -> None:
    text = NORM + "export def f(x: f32[B, D]) -> f32[B] = row_norm(2 * x, 1.0)"
    m = load(tmp_path, text, library)
    np.testing.assert_allclose(m.f(X[0]), norm(2 * X[0], 1.0), rtol=1e-6)


@gcc
def test_every_dtype_passes(tmp_path: Path, library: Path) -> None:
    text = """
extern "nt_count" def count(x: u8[N], k: i8, up: bool) -> i64
extern "nt_pad" def pad(x: f64[N], m: dim, unused: i64) -> f64[m]
extern "nt_flip" def flip(x: i8, no: bool) -> i8
extern "nt_odd" def odd(x: u8) -> bool
export def counted(x: u8[N], k: i8, up: bool) -> i64 = count(x, k, up)
export def padded(x: f64[N]) -> f64[5] = pad(x, 5, 7)
export def flipped(x: i8[N], no: bool) -> i8[N]:
    y[i] = flip(x[i], no)
    return y
export def odds(x: u8[N]) -> bool[N]:
    y[i] = odd(x[i])
    return y
"""
    m = load(tmp_path, text, library)
    x = np.array([1, 200, 3, 5], np.uint8)
    assert m.counted(x, -1, True) == 4
    assert m.counted(x, 4, False) == 2
    np.testing.assert_array_equal(m.padded(np.ones(3)), [1, 1, 1, -1, -1])
    np.testing.assert_array_equal(m.flipped(np.array([-7, 7], np.int8), False), [7, -7])
    np.testing.assert_array_equal(m.odds(x), [True, False, True, True])


LOOP = """
export def f(x: f32[T, B, D]) -> (f32[T, B], f32[T, B, D]):
    s = zeros[B]
    ys = for t in T:
        s = 0.5 * s + row_norm(x[t], 1.0)
        yield s
    y = total(s)
    return ys, grad(y, x)
"""


@gcc
def test_in_a_loop_with_an_adjoint(tmp_path: Path, library: Path) -> None:
    ys, g = load(tmp_path, NORM + LOOP, library).f(X)
    want, s = [], np.zeros(3)
    for x in X:
        s = 0.5 * s + norm(x, 1.0)
        want.append(s)
    weight = 0.5 ** np.arange(4, -1, -1)
    np.testing.assert_allclose(ys, want, rtol=1e-6)
    np.testing.assert_allclose(g, (weight[:, None] / norm(X, 1.0))[..., None] * X, rtol=1e-5)


@gcc
def test_the_interpreters_call_the_same_symbol(library: Path) -> None:
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    graph = built(NORM + LOOP)["f"].graph
    dims = {"T": 5, "B": 3, "D": 4}
    result = interpret(compiler.optimise(graph), dims, {"x": X})
    np.testing.assert_allclose(result.results[0][0], norm(X[0], 1.0), rtol=1e-6)
    program = compiler.schedule(compiler.optimise(graph))
    out = run_program(program, dims, [X, np.zeros((5, 3)), np.zeros((5, 3, 4))])
    np.testing.assert_allclose(out[1], result.results[0], rtol=1e-6)
    compare(graph, dims, {"x": X})


@gcc
def test_forward_and_backward_from_python(tmp_path: Path, library: Path) -> None:
    text = NORM + "export def f(x: f32[B, D], e: f32) -> f32[B] = row_norm(x, e)"
    run = load(tmp_path, text, library).f.forward(X[0], 1.0)
    grads = run.backward(np.ones(3, np.float32))
    np.testing.assert_allclose(grads.x, X[0] / run.value[:, None], rtol=1e-5)
    np.testing.assert_allclose(grads.e, (0.5 / run.value).sum(), rtol=1e-5)


@gcc
def test_without_an_adjoint_there_is_no_gradient(tmp_path: Path, library: Path) -> None:
    text = NORM.split("adjoint")[0] + "export def f(x: f32[B, D]) -> f32[B] = row_norm(x, 0.5)"
    m = load(tmp_path, text, library)
    with pytest.raises(nnc.CompileError, match="goes through the extern function `row_norm`"):
        m.f.forward(X[0])


def test_functions_of_the_process_need_no_library() -> None:
    text = """
extern "erff" def erf_c(x: f32) -> f32
adjoint erf_c(x; y, dy):
    return dy * 2 / sqrt(pi) * exp(-x * x)
export def f(x: f32[B, N], on: bool) -> (f32[B], f32[B, N]):
    y[b] = sum[i](erf_c(2 * x[b, i]) if x[b, i] > 0 else 0)
    loss = total(y) + erf_c(0.5)
    return y, grad(loss, x)
"""
    graph = built(text)["f"].graph
    dims = {"B": 3, "N": 5}
    compare(graph, dims, sample(graph, dims, np.random.default_rng(0)))


def test_a_missing_symbol_is_named_when_the_file_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(nnc.LoadError) as caught:
        text = NORM + "export def f(x: f32[B, D]) -> f32[B] = row_norm(x, 0.5)"
        load(tmp_path, text.replace("nt_row_norm", "nt_missing"))
    assert "no library has `nt_missing`" in str(caught.value)
    assert "const int64_t *sizes /* B, D */, const float *x, float eps" in str(caught.value)
    assert "libraries=" in str(caught.value)


def test_a_library_that_cannot_be_loaded(tmp_path: Path) -> None:
    text = "export def f(x: f32) -> f32 = x"
    with pytest.raises(nnc.LoadError, match="cannot load the library"):
        load(tmp_path, text, tmp_path / "no.so")


@gcc
def test_the_artifact_says_what_to_link(tmp_path: Path, library: Path) -> None:
    from nnc.cli import main

    path = tmp_path / "model.nn"
    path.write_text(NORM + "export def f(x: f32[B, D]) -> f32[B] = row_norm(x, 1.0)")
    assert main(["compile", str(path), "-o", str(tmp_path / "out")]) == 0
    assert "void nt_row_norm(const int64_t *sizes" in (tmp_path / "out/model.h").read_text()
    m = nnc.load(tmp_path / "out/model.json", libraries=[library])
    np.testing.assert_allclose(m.f(X[0]), norm(X[0], 1.0), rtol=1e-6)
