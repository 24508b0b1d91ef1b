"""Golden files: `golden(path, text)` compares, `pytest --bless` accepts what is printed now."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

Golden = Callable[[Path, str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bless", action="store_true", help="rewrite golden files, print the diff")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--bless") and os.environ.get("CI"):
        raise pytest.UsageError("--bless is refused where CI is set: accept goldens by hand")


@pytest.fixture
def golden(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Golden:
    """Compares `text` with the file at `path`; under --bless writes it and prints what changed."""

    def compare(path: Path, text: str) -> None:
        text = text.rstrip("\n") + "\n"
        old = path.read_text("utf-8") if path.exists() else ""
        if old == text:
            return
        diff = _diff(old, text, path)
        if not request.config.getoption("--bless"):
            pytest.fail(f"{path.name} differs (pytest --bless accepts):\n{diff}", pytrace=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        with capsys.disabled():
            print(f"\n{diff}")

    return compare


def _diff(old: str, new: str, path: Path) -> str:
    names = (f"{path.name} (file)", f"{path.name} (now)")
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), *names, lineterm="")
    return "\n".join(lines)
