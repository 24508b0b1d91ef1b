"""pytest plugin: `pytest models` compares every model that has golden files beside it.

For `model.nn` with `model.golden/` (made by `nnc golden model.nn --update`) there is one test for
each export.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Models with recordings are test files."""
    if file_path.suffix != ".nn" or not file_path.with_suffix(".golden").is_dir():
        return None
    return Model.from_parent(parent, path=file_path)


class Model(pytest.File):
    """One `.nn` file; compiled when its tests are collected."""

    def collect(self) -> Iterator[pytest.Item]:
        for name in self.differences:
            yield Recording.from_parent(self, name=name)

    @cached_property
    def differences(self) -> dict[str, list[str]]:
        from nnc.cli.golden import compare

        return compare(self.path)


class Recording(pytest.Item):
    """One export against its files."""

    def runtest(self) -> None:
        assert isinstance(self.parent, Model), self.parent
        lines = self.parent.differences[self.name]
        if lines:
            pytest.fail("\n".join(lines), pytrace=False)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, f"golden: {self.name}"

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        return str(excinfo.value)
