"""A small emitter of LLVM IR text: lines of one function with fresh value names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Emitter:
    """Collects the body of one LLVM function; every value gets a fresh name.

    `branches`: those that the code being emitted stands in, outermost first.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.branches: tuple[int, ...] = ()
        self._count = self._branches = 0

    @contextmanager
    def branch(self) -> Iterator[None]:
        """What is emitted inside may not run, or more than once."""
        self._branches += 1
        outer, self.branches = self.branches, (*self.branches, self._branches)
        yield
        self.branches = outer

    def fresh(self, hint: str = "v") -> str:
        """A name not used before, without the leading '%'."""
        self._count += 1
        return f"{hint}.{self._count}"

    def op(self, text: str, hint: str = "v") -> str:
        """Emits `%name = text` and returns `%name`."""
        name = f"%{self.fresh(hint)}"
        self.lines.append(f"  {name} = {text}")
        return name

    def line(self, text: str) -> None:
        """Emits an instruction without a result (store, br, ret, call void)."""
        self.lines.append(f"  {text}")

    def label(self, name: str) -> None:
        """Starts a basic block."""
        self.lines.append(f"{name}:")

    def text(self) -> str:
        return "\n".join(self.lines)
