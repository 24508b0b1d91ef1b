"""Wrong programs: the whole front end never fails by itself, and what it accepts verifies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nnc.lang.elaborate import context, expressions
from tests import fuzz_programs, fuzz_source
from tests.frontend import MODELS, check, front

STD = Path(__file__).parent.parent / "nnc" / "std"


def _failures(texts: Iterator[tuple[int, str]]) -> list[fuzz_source.Failure]:
    """`check` itself measures the time that its process took; the wall clock may be shared."""
    return fuzz_source.run(check, texts, seconds=60.0)


@pytest.mark.parametrize("path", sorted(STD.glob("*.nn")), ids=lambda p: p.name)
def test_the_library_checks(path: Path) -> None:
    done = front(path.read_text("utf-8"), path)
    assert not done.diagnostics.errors, done.text


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.nn")), ids=lambda p: p.name)
def test_programs_check(path: Path) -> None:
    text = path.read_text("utf-8")
    check(text)
    done = front(text, path)
    assert {d.code for d in done.diagnostics.errors} <= {"E0901"}, done.text


def test_wrong_programs() -> None:
    assert _failures(fuzz_programs.mutants(150)) == []


@pytest.mark.slow
def test_many_wrong_programs() -> None:
    assert _failures(fuzz_programs.mutants(1600, first_seed=1000)) == []
    assert _failures(fuzz_source.mutants(400, first_seed=5000)) == []


def test_the_fuzzer_notices_a_graph_that_does_not_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hoisted values that forget the loop variables they use."""
    monkeypatch.setattr(context, "names", lambda roots: frozenset())
    found = _failures(fuzz_programs.mutants(40))
    assert found and all("unbound" in failure.reason for failure in found)


def test_the_fuzzer_notices_a_planted_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def planted(*args: object) -> str:
        raise KeyError("planted")

    monkeypatch.setattr(expressions, "undefined", planted)
    found = _failures(fuzz_programs.mutants(40))
    assert found and all("planted" in failure.reason for failure in found)


# ---- deep and large programs ------------------------------------------------------------------------

_F = "export def f(x: f32[B, 4], c: bool) -> f32[B, 4] = "
_FN = "def f0(x: real[N]) -> real[N] = x\n"
_END = "export def e(x: f32[B]) -> f32[B] = f{}(x)\n"
DEEP = {
    "calls": f"{_F}{'exp(' * 250}x{')' * 250}\n",
    "signs": f"{_F}{'-' * 250}x\n",
    "branches": f"{_F}{'x if c else ' * 250}x\n",
    "reads": f"{_F}x{'[:]' * 250}\n",
    "powers": f"{_F}x{'**1.5' * 250}\n",
    "sums": f"{_F}{' + '.join(['x'] * 5000)}\n",
    "sizes": f"export def f(x: f32[B]) -> f32[{' + '.join(['B'] * 3000)}]:\n    return x\n",
    "functions": _FN
    + "".join(f"def f{i}(x: real[N]) -> real[N] = f{i - 1}(x)\n" for i in range(1, 300))
    + _END.format(299),
}
LARGE = {
    "doubling": _FN
    + "".join(
        f"def f{i}(x: real[N]) -> real[N] = f{i - 1}(x) + f{i - 1}(x)\n" for i in range(1, 40)
    )
    + _END.format(39),
    "loops": "export def f(x: f32[B]) -> f32[B]:\n    y = x\n"
    + "".join(f"{'    ' * (i + 1)}for i{i} in 100:\n" for i in range(6))
    + f"{'    ' * 7}y = y + 1\n    return y\n",
    "a long loop": "export def f(x: f32[B]) -> f32[B]:\n    for i in 1000000: x = x + 1\n    return x\n",
    "a long list": "module M:\n    a = [[i for i in 1000] for j in 1000]\n"
    "    def forward(x: real[B]) -> real[B] = x\n",
    "a large power": "export def f(x: f32[2**99999999]) -> f32 = x[0]\n",
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_programs(name: str) -> None:
    check(DEEP[name])


@pytest.mark.parametrize("name", LARGE)
def test_programs_that_unroll_too_far_are_refused(name: str) -> None:
    check(LARGE[name])
    assert len(front(LARGE[name]).diagnostics.errors) == 1
