"""The compiler in a process of its own: the same code, the same messages, and what is done without it."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

import nnc
from nnc import apart, loading
from nnc.codegen.child import Child

TEXT = "export def f(x: f32[N]) -> f32[N] = K * x\nconst K: f32 = 2.0\n"
BROKEN = "export def f(x: f32[N]) -> f32[N]:\n    return x + yy\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delitem(sys.modules, "nnc.compiler", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("m.nn").write_text(TEXT)
    Path("broken.nn").write_text(BROKEN)
    return tmp_path


class Refused(Child):
    def start(self) -> None:
        raise OSError("no more processes")


class Puzzled(Child):
    def receive(self) -> bytes:
        super().receive()
        return b"\2"


class Interrupted(Child):
    def receive(self) -> bytes:
        raise KeyboardInterrupt


def never(*_: object) -> None:
    raise AssertionError("compiled here")


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process must not compile."""
    monkeypatch.setattr("nnc.driver.compile_file", never)
    monkeypatch.delitem(sys.modules, "nnc.compiler", raising=False)


def call() -> list[float]:
    return nnc.load("m.nn").f(np.arange(3, dtype=np.float32)).tolist()


def test_another_process_compiles(elsewhere: None) -> None:
    assert call() == [0, 2, 4]
    Path("m.nn").write_text(TEXT.replace("2.0", "3.0"))
    assert call() == [0, 3, 6]


def test_gradients_too(elsewhere: None) -> None:
    x = np.arange(3, dtype=np.float32)
    assert nnc.load("m.nn").f.forward(x).backward(np.ones_like(x)).x.tolist() == [2, 2, 2]


def test_the_place_is_that_of_the_request(
    elsewhere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call()
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    Path("m.nn").write_text(TEXT.replace("2.0", "5.0"))
    assert call() == [0, 5, 10]


def test_mistakes_are_told(elsewhere: None) -> None:
    with pytest.raises(nnc.CompileError, match="yy") as met:
        nnc.load("broken.nn")
    assert met.value.diagnostics[0].span.place == "broken.nn:2:16"
    assert str(met.value) == str(pickle.loads(pickle.dumps(met.value)))
    assert call() == [0, 2, 4]


def test_a_process_that_was_killed_is_replaced(elsewhere: None) -> None:
    call()
    _, child = apart._children[0]
    assert child.process is not None
    child.process.kill()
    child.process.wait()
    Path("m.nn").write_text(TEXT.replace("2.0", "3.0"))
    assert call() == [0, 3, 6]


def test_without_a_process_this_one_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "Child", Refused)
    monkeypatch.setattr(apart, "_children", [])
    assert call() == [0, 2, 4]


def test_what_fails_there_fails_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "Child", Puzzled)
    apart._close()
    monkeypatch.setattr(apart, "_children", [])
    assert call() == [0, 2, 4]


def test_an_interrupt_leaves_no_answer_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(apart, "Child", Interrupted)
        patched.setattr(apart, "_children", [])
        with pytest.raises(KeyboardInterrupt):
            call()
    Path("m.nn").write_text(TEXT.replace("2.0", "3.0"))
    assert call() == [0, 3, 6]


def test_both_make_the_same(tmp_path: Path) -> None:
    key = loading.source_key("m.nn", {})
    assert key is not None
    there = apart.compiled(apart.Request(key, "m.nn", {}))
    from nnc import driver
    from nnc.runtime.packed import packed

    here = driver.compile_file("m.nn")
    assert there == packed(here.manifest, here.objects, here.support)
