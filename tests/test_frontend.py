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
