"""Running a part of the elaboration whose mistakes are reported and do not stop the rest."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from nnc.diagnostics import Diagnostic, Span
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.mistakes import Exhausted, Mistake, Poisoned

T = TypeVar("T")
FRAMES = 60_000  # Python calls: expressions.DEEPEST levels take about eight each


def attempt(cx: Context, job: Callable[[], T], span: Span) -> T | None:
    """The job's result; None after a mistake, which has been reported, or a poisoned value."""
    try:
        return job()
    except (Mistake, Exhausted) as mistake:
        cx.diagnostics.add(mistake.diagnostic)
    except Poisoned:
        pass
    except RecursionError:
        cx.diagnostics.add(Diagnostic("E0809", "this is nested too deep", span))
    return None


@contextmanager
def deep_recursion() -> Iterator[None]:
    """Nested expressions and calls are evaluated recursively, up to limits of their own."""
    old = sys.getrecursionlimit()
    sys.setrecursionlimit(max(old, FRAMES))
    try:
        yield
    finally:
        sys.setrecursionlimit(old)
