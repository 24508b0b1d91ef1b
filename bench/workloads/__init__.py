"""All workloads by name, in the order of the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.workload import Case, Context, Figure
from bench.workloads import contraction, dense, language, pointwise, startup, vision

WORKLOADS: dict[str, Callable[[Context], Case]] = {
    **dense.WORKLOADS,
    **contraction.WORKLOADS,
    **pointwise.WORKLOADS,
    **language.WORKLOADS,
    **vision.WORKLOADS,
}
FIGURES: dict[str, Callable[[Context, Sequence[str]], Figure]] = startup.FIGURES
