"""What `nnc profile` writes beside its tables: a Chrome trace and a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnc.codegen.roof import Roof
from nnc.errors import ArgumentError, SaveError

MOST_LINES = 14  # of a picture


@dataclass(frozen=True)
class Line:
    """One source line in one call; `share`: of the machine's limit, 0 to 1."""

    place: str
    text: str
    seconds: float
    operations: float
    nbytes: float
    share: float


@dataclass(frozen=True)
class Event:
    """One kernel in one call (all turns of its loops together), in program order."""

    name: str
    place: str
    detail: str
    reason: str
    seconds: float
    operations: int
    nbytes: int
    share: float


def write_trace(path: Path, title: str, events: Sequence[Event]) -> None:
    """Chrome's trace format (chrome://tracing, ui.perfetto.dev): kernels one after the other.

    Times are medians of many calls, so gaps between kernels are left out.
    """
    rows: list[dict[str, Any]] = [
        {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": title}},
        {"ph": "M", "pid": 1, "tid": 1, "name": "thread_name", "args": {"name": "kernels"}},
        {"ph": "M", "pid": 1, "tid": 2, "name": "thread_name", "args": {"name": "source lines"}},
    ]
    at = 0.0
    for e in events:
        micro = e.seconds * 1e6
        about = {
            "line": e.place,
            "library": e.detail,
            "reason": e.reason,
            "FLOP": e.operations,
            "bytes": e.nbytes,
            "% of roof": round(100 * e.share, 1),
        }
        for tid, name in ((1, e.name), (2, e.place)):
            row = {"ph": "X", "pid": 1, "tid": tid, "name": name, "cat": "nnc", "args": about}
            rows.append(row | {"ts": round(at, 3), "dur": round(micro, 3)})
        at += micro
    _save(path, lambda: path.write_text(json.dumps({"traceEvents": rows}, indent=0) + "\n"))


def _save(path: Path, write: Any) -> None:
    try:
        write()
    except OSError as error:
        raise SaveError(f"cannot write {path}: {error.strerror or error}") from None


def write_picture(
    path: Path, title: str, lines: Sequence[Line], events: Sequence[Event], roof: Roof
) -> None:
    """Time by line, and each kernel under the machine's roof. ArgumentError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ArgumentError("--picture needs matplotlib (pip install 'nnc[train]')") from None
    figure = Figure(figsize=(15, 1.6 + 0.42 * max(8, min(len(lines), MOST_LINES))))
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _bars(left, lines)
    _roofline(right, events, roof)
    figure.suptitle(title)
    figure.tight_layout()
    try:
        _save(path, lambda: figure.savefig(path, dpi=110))
    except ValueError as error:
        raise ArgumentError(f"--picture {path}: {error}") from None


def _bars(axes: Any, lines: Sequence[Line]) -> None:
    shown = list(lines[:MOST_LINES])
    total = sum(x.seconds for x in lines) or 1.0
    micro = [x.seconds * 1e6 for x in shown]
    places = list(range(len(shown)))
    axes.barh(places, micro, color=[_color(x.share) if x.operations else "0.7" for x in shown])
    axes.set_yticks(places, [f"{x.place}\n{_clipped(x.text)}" for x in shown], fontsize=7)
    for i, x in enumerate(shown):
        note = f" {100 * x.seconds / total:.0f} % of time"
        if x.operations:
            note += f", {100 * x.share:.0f} % of roof"
        axes.text(micro[i], i, note, va="center", fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.35 * max(micro, default=1.0))
    axes.set_xlabel("microseconds a call")
    more = f" (the first {MOST_LINES} of {len(lines)})" if len(lines) > MOST_LINES else ""
    axes.set_title(f"time by source line{more}", fontsize=10)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _color(share: float) -> tuple[float, float, float]:
    """From red (far below the roof) to green."""
    s = min(max(share, 0.0), 1.0)
    return (0.85 - 0.6 * s, 0.3 + 0.4 * s, 0.3)


def _clipped(text: str) -> str:
    text = text.replace("$", r"\$")
    return text if len(text) <= 56 else f"{text[:53]}..."


def _roofline(axes: Any, events: Sequence[Event], roof: Roof) -> None:
    shown = [e for e in events if e.operations and e.nbytes and e.seconds]
    ridge = roof.flops / roof.bandwidth
    intensity = [e.operations / e.nbytes for e in shown]
    low, high = min([0.1, *intensity]) / 2, max([10 * ridge, *intensity]) * 2
    corners = [low, ridge, high]
    axes.plot(corners, [min(x * roof.bandwidth, roof.flops) / 1e9 for x in corners], color="black")
    longest = max((e.seconds for e in shown), default=1.0)
    speeds = [e.operations / e.seconds / 1e9 for e in shown]
    axes.scatter(
        intensity,
        speeds,
        s=[20 + 400 * e.seconds / longest for e in shown],
        c=[_color(e.share) for e in shown],
        alpha=0.7,
        edgecolors="black",
        linewidths=0.5,
    )
    for e, x, y in sorted(zip(shown, intensity, speeds, strict=True), key=lambda r: -r[0].seconds)[
        :6
    ]:
        axes.annotate(e.name, (x, y), fontsize=7, xytext=(4, 6), textcoords="offset points")
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    axes.set_xlabel("FLOP for each byte")
    axes.set_ylabel("GFLOP/s")
    rates = f"{roof.flops / 1e9:.0f} GFLOP/s, {roof.bandwidth / 1e9:.1f} GB/s"
    axes.set_title(f"kernels under the roof ({rates})", fontsize=10)
    axes.grid(True, which="major", alpha=0.3)
