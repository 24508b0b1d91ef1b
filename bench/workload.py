"""What a workload is: candidates that compute the same, each made when it is its turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

PROGRAMS = Path(__file__).parent / "programs"

Call = Callable[[], Any]


class Missing(Exception):
    """A candidate that is not there; the text says why."""


@dataclass(frozen=True)
class Context:
    """How a run is made. `threads`: for each candidate; `seconds`: of timing for each workload; `cpu`:
    times are the process's CPU time; `cap`: seconds in which a peer must be ready, 0: any."""

    threads: int
    seconds: float  # 0: prepare only
    cpu: bool = False
    cap: float = 0


@dataclass(frozen=True)
class Case:
    """One workload. A maker prepares (weights, compilation) and returns the call that is timed.

    Results of the first `checks` calls of each candidate must agree within `tolerance` of the
    largest element. `flop` and `read` (bytes) are those of one call, for the share of the roof; 0:
    not a limit worth printing. `demand` and `aim`: ratios against the best peer.
    """

    title: str
    makers: Mapping[str, Callable[[], Call]]
    demand: float = 0.0
    aim: float = 0.0
    flop: float = 0.0
    read: float = 0.0
    checks: int = 1
    tolerance: float = 1e-3
    calls: int = 0  # calls in a sample; 0: as many as take about 2 ms
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure that is not timed in alternation (seconds of a cold start, megabytes)."""

    title: str
    unit: str
    values: Mapping[str, float]
    missing: Mapping[str, str] = field(default_factory=dict)
    demand: str = ""
    note: str = ""


def load(name: str, context: Context, **modules: Any) -> Any:
    """A program of bench/programs with the context's number of threads."""
    import nnc

    read: Any = nnc.load
    return read(PROGRAMS / name, threads=context.threads, **modules)


def quantized(name: str, context: Context, net: Any, function: str, to: str, **data: Any) -> Any:
    """The same program with the weights of `net` in fewer bits (`nnc.quantize`)."""
    import nnc

    make: Any = nnc.quantize
    return make(PROGRAMS / name, net, function, to=to, data=data, threads=context.threads)


def numbers(result: Any) -> Any:
    """Any framework's result as a NumPy array."""
    if hasattr(result, "detach"):
        result = result.detach().numpy()
    return np.asarray(result, dtype=np.float64)


def weights(net: Any) -> dict[str, Any]:
    """Copies of a module's tensors under their keys."""
    return {k: np.array(v) for k, v in net.items()}
