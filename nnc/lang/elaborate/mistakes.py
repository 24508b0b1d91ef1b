"""Mistakes in the program, as exceptions."""

from __future__ import annotations

from collections.abc import Sequence

from nnc.diagnostics import Diagnostic, Label, Span
from nnc.lang.dims import Dim


class Mistake(Exception):
    """A diagnosed mistake; unwinds to the statement, whose results become Unknown."""

    def __init__(self, diagnostic: Diagnostic) -> None:
        super().__init__(diagnostic.message)
        self.diagnostic = diagnostic


class Poisoned(Exception):
    """An operand is Unknown: the result is too; nothing is reported."""


class Exhausted(Exception):
    """The program unrolls into more than is reasonable: the whole definition is given up."""

    def __init__(self, code: str, message: str, span: Span) -> None:
        super().__init__(message)
        self.diagnostic = Diagnostic(code, message, span, once=(code, message))


def fail(
    code: str,
    message: str,
    span: Span,
    text: str = "",
    labels: Sequence[Label] = (),
    notes: Sequence[str] = (),
    help: str | None = None,
    whole: Span | None = None,
    once: tuple[str, ...] = (),
    sizes: Sequence[tuple[Dim, Dim]] = (),
) -> Mistake:
    """The exception to raise for a mistake in the program."""
    rows = tuple(labels), tuple(notes), help
    made = Diagnostic(code, message, span, text, *rows, whole=whole, once=once, sizes=tuple(sizes))
    return Mistake(made)
