"""Compiling in other processes, and programs whose kernels lie in several objects."""

from __future__ import annotations

import numpy as np
import pytest

import nnc
from nnc.codegen import llvm, objects, workers
from nnc.codegen.target import host
from nnc.runtime import artifact

TEXT = """\
def two(x: f32[N, 5], w: f32[5, 7]) -> f32[N, 7]:
    return exp(x) @ w

export def f(x: f32[N, 5], w: f32[5, 7]) -> (f32[N], f32[N]):
    y = two(x, w)
    return sum(tanh(y), over=1), max(y - sum(y, over=1, keep=true), over=1)
"""
IR = "define i32 @one() {\n  ret i32 1\n}\n"


def load(folder, **options):
    path = folder / "m.nn"
    path.write_text(TEXT)
    return nnc.load(path, **options)


@pytest.fixture
def given():
    rng = np.random.default_rng(0)
    return rng.random((9, 5), np.float32), rng.random((5, 7), np.float32)


def test_objects_are_those_of_this_process():
    assert workers.compiled(IR, host()).result() == objects.compile_object(IR, host())


def test_the_machine_is_the_same():
    assert workers._crew().host() == host()


def test_a_mistake_in_a_text_is_raised():
    with pytest.raises(RuntimeError, match="expected"):
        workers.compiled("define nonsense", host()).result()


def test_a_process_that_has_ended_is_replaced():
    workers.compiled(IR, host()).result()
    for child in workers._crew().children:
        if child.process is not None:
            child.process.kill()
            child.process.wait()
    assert workers.compiled(IR, host()).result() == objects.compile_object(IR, host())


def test_without_processes_this_one_compiles(monkeypatch):
    def refused(self):
        raise OSError("no more processes")

    monkeypatch.setattr(workers._Child, "start", refused)
    assert workers.compiled(IR, host()).result() == objects.compile_object(IR, host())


@pytest.fixture
def parts(monkeypatch):
    monkeypatch.setattr(llvm, "_PART", 1)  # an object for each kernel


def test_parts_compute_the_same(tmp_path, given, monkeypatch):
    want = load(tmp_path, cache=False).f(*given)
    monkeypatch.setattr(llvm, "_PART", 1)
    model = load(tmp_path, cache=False)
    assert len(model.code.objects) > 2
    for x, y in zip(want, model.f(*given), strict=True):
        np.testing.assert_array_equal(x, y)


def test_parts_are_kept_in_a_library(tmp_path, given, parts):
    model = load(tmp_path, cache=False)
    paths = artifact.write(tmp_path, "m", model.manifest, model.code.objects, model.code.support)
    again = nnc.load(next(p for p in paths if p.suffix == ".json"))
    for x, y in zip(model.f(*given), again.f(*given), strict=True):
        np.testing.assert_array_equal(x, y)
    artifact.link(paths[0])  # SaveError if a symbol were missing or there twice
