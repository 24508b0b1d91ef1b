"""How a training run is shown: progress, log lines, a picture of the curves."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from nnc.errors import SaveError
from nnc.runtime.tensorfile import atomic


class Reporter:
    """Plain lines; `Bar` adds a moving bar on a terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout

    @contextlib.contextmanager
    def running(self, steps: int) -> Iterator[None]:
        yield

    def advance(self, steps: int) -> None:
        """Steps that were done before."""

    def step(self, epoch: int, loss: float) -> None:
        """After each step."""

    def epoch(self, row: Mapping[str, Any], epochs: int) -> None:
        words = [f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}"]
        for name, value in row.items():
            if name not in ("epoch", "lr", "step", "seconds"):
                words.append(f"{name} {value:.4f}")
        words += [f"lr {row['lr']:.3g}", f"{row['seconds']:.1f} s"]
        self.line("  ".join(words))

    def line(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


class Bar(Reporter):
    """A bar by `rich`."""

    def __init__(self) -> None:
        super().__init__()
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), transient=True
        )
        self._task = self._progress.add_task("training")

    @contextlib.contextmanager
    def running(self, steps: int) -> Iterator[None]:
        self._progress.update(self._task, total=steps)
        with self._progress:
            yield

    def advance(self, steps: int) -> None:
        self._progress.advance(self._task, steps)

    def step(self, epoch: int, loss: float) -> None:
        text = f"epoch {epoch}  loss {loss:.4f}"
        self._progress.update(self._task, advance=1, description=text)

    def line(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)


def reporter() -> Reporter:
    """A bar where there is a terminal and `rich`, else plain lines."""
    if not sys.stdout.isatty():
        return Reporter()
    try:
        return Bar()
    except ImportError:
        return Reporter()


class Log:
    """One JSON object a line and epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Begins the file with the epochs that are already done."""
        atomic(self.path, [(json.dumps(row) + "\n").encode() for row in rows])

    def add(self, row: Mapping[str, Any]) -> None:
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise SaveError(f"cannot write {self.path}: {error.strerror}") from None


def picture(path: Path, rows: Sequence[Mapping[str, Any]], metric: str | None, title: str) -> None:
    """Loss and metric over the epochs, as PNG. ImportError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    epochs = [row["epoch"] for row in rows]
    axes.plot(epochs, [row["loss"] for row in rows], color="tab:blue", label="loss")
    axes.set(xlabel="epoch", ylabel="loss", title=Path(title).name)
    lines = axes.lines[:]
    values = [row[metric] for row in rows if metric in row] if metric else []
    if metric and len(values) == len(rows):
        other = axes if metric.endswith("loss") else axes.twinx()
        label = metric if other is axes else f"{metric} (held out)"
        lines += other.plot(epochs, values, color="tab:orange", label=label)
        if other is not axes:
            other.set_ylabel(metric)
    axes.legend(handles=list(lines), loc="center right")
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise SaveError(f"cannot write {path}: {error.strerror}") from None
