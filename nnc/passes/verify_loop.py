"""Checks a Program after a pass."""

from __future__ import annotations

from nnc.ir.loop import Program


def verify(program: Program, after: str) -> None:
    """Asserts."""
