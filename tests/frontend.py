"""The whole front end on one text: load, link, elaborate, verify every Graph without mistakes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from nnc.diagnostics import Diagnostics, Source, render_all
from nnc.ir.graph import Graph
from nnc.lang.elaborate.elaborated import Elaborated
from nnc.lang.elaborate.exports import elaborate
from nnc.lang.units import Loader
from nnc.passes.verify import verify

MODELS = Path(__file__).parent.parent / "models"


@dataclass(frozen=True)
class Front:
    """What the front end says of one text."""

    diagnostics: Diagnostics
    elaborated: Elaborated | None

    @property
    def text(self) -> str:
        """All messages as a person reads them."""
        return render_all(self.diagnostics.items)

    @property
    def codes(self) -> list[str]:
        return [d.code for d in self.diagnostics.items]

    @property
    def graphs(self) -> list[Graph]:
        """Every Graph: exports, initializers, tests."""
        assert self.elaborated is not None
        out = [e.graph for e in self.elaborated.exports]
        out += [g for _, g in self.elaborated.modules if g is not None]
        return out + [g for _, g, _ in self.elaborated.tests]


def front(text: str, path: Path = MODELS / "test.nn") -> Front:
    """Loads and elaborates `text` as if it stood at `path` (imports are found beside it)."""
    diagnostics = Diagnostics()
    loader = Loader(diagnostics)
    unit = loader.load(path, path.stem, Source(path.name, text))
    return Front(diagnostics, elaborate(loader, unit) if unit is not None else None)


def timed(text: str) -> tuple[Front, float]:
    """What becomes of a text, and the CPU time that it took."""
    start = time.process_time()
    return front(text), time.process_time() - start


def check(text: str) -> None:
    """Graphs that verify, or an error, within 10 s of CPU time; messages can be shown and point into a text.

    It is 2 to 4 s at most; CPUs that others share are at times half as fast. What has no bound takes minutes.
    """
    done, took = timed(text)
    took = took if took < 10.0 else timed(text)[1]
    assert took < 10.0, f"took {took:.1f} s"
    assert done.text or not done.diagnostics.items
    for d in done.diagnostics.items:
        assert d.json()
        for span in (d.span, *(label.span for label in d.labels)):
            rows = span.source.text.split("\n") or [""]
            assert 1 <= span.line <= span.end_line <= max(len(span.source.lines), len(rows))
    if not done.diagnostics.errors:
        for graph in done.graphs:
            verify(graph, "elaborate")
