"""Source places, diagnostics as values, and how they are shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True, eq=False)
class Source:
    """One source text; `name` is how messages call it (a path as the user gave it, or `std/nn.nn`)."""

    name: str
    text: str

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()


@dataclass(frozen=True)
class Span:
    """A stretch of source; lines and columns are 1-based, the end column is exclusive."""

    source: Source
    line: int
    column: int
    end_line: int
    end_column: int

    @property
    def place(self) -> str:
        """`file:line:column`."""
        return f"{self.source.name}:{self.line}:{self.column}"

    def line_in(self, other: Span | None) -> str:
        """`line 4`, or `std/nn.nn:4` seen from another file."""
        if other is not None and other.source is self.source:
            return f"line {self.line}"
        return f"{self.source.name}:{self.line}"

    def to(self, end: Span) -> Span:
        return Span(self.source, self.line, self.column, end.end_line, end.end_column)

    @property
    def text(self) -> str:
        """The spanned text when it lies on one line, else its first line."""
        lines = self.source.lines
        if not 1 <= self.line <= len(lines):
            return ""
        row = lines[self.line - 1]
        end = self.end_column if self.end_line == self.line else len(row) + 1
        return row[self.column - 1 : end - 1]

    def __repr__(self) -> str:
        return self.place


NOWHERE = Span(Source("<built-in>", ""), 1, 1, 1, 1)


@dataclass(frozen=True)
class Label:
    """A note attached to a place: underlined with `^` (primary) or `-`."""

    span: Span
    text: str = ""


@dataclass(frozen=True)
class Diagnostic:
    """One mistake: a stable code, what is wrong, where, where each size came from, one thing to try."""

    code: str
    message: str
    span: Span
    text: str = ""  # beside the primary underline
    labels: tuple[Label, ...] = ()
    notes: tuple[str, ...] = ()
    help: str | None = None
    severity: str = "error"

    def json(self) -> dict[str, object]:
        notes = [f"{label.span.place}: {label.text}" for label in self.labels if label.text]
        return {
            "code": self.code,
            "severity": self.severity,
            "message": self.message,
            "file": self.span.source.name,
            "line": self.span.line,
            "column": self.span.column,
            "end_line": self.span.end_line,
            "end_column": self.span.end_column,
            "notes": ([self.text] if self.text else []) + notes + list(self.notes),
            "help": self.help,
        }

    def __str__(self) -> str:
        return render(self)


@dataclass
class Diagnostics:
    """Collects diagnostics during one run; one report a place and code."""

    items: list[Diagnostic] = field(default_factory=list)

    def add(self, diagnostic: Diagnostic) -> None:
        same = (diagnostic.code, diagnostic.span, diagnostic.message)
        if all((d.code, d.span, d.message) != same for d in self.items):
            self.items.append(diagnostic)

    @property
    def errors(self) -> list[Diagnostic]:
        return [d for d in self.items if d.severity == "error"]


def render(d: Diagnostic) -> str:
    """The message as a person reads it: header, quoted lines with underlines, notes, help."""
    labels = [Label(d.span, d.text), *d.labels]
    width = max(len(str(label.span.line)) for label in labels)
    pad = " " * width
    out = [f"{d.severity}[{d.code}]: {d.message}", f"{pad}--> {d.span.place}"]
    out.append(f"{pad} |")
    out += _quote(d.span.source, [x for x in labels if x.span.source is d.span.source], d, width)
    for source in _others(d.span.source, labels):
        rows = [x for x in labels if x.span.source is source]
        out.append(f"{pad}::: {rows[0].span.place}")
        out += _quote(source, rows, d, width)
    out += [f"{pad} = {note}" for note in d.notes]
    if d.help:
        out.append(f"{pad} help: {d.help}")
    return "\n".join(out)


def render_all(diagnostics: Iterable[Diagnostic]) -> str:
    return "\n\n".join(render(d) for d in diagnostics)


def _others(main: Source, labels: Sequence[Label]) -> list[Source]:
    seen: list[Source] = []
    for label in labels:
        source = label.span.source
        if source is not main and all(s is not source for s in seen):
            seen.append(source)
    return seen


def _quote(source: Source, labels: list[Label], d: Diagnostic, width: int) -> list[str]:
    out: list[str] = []
    rows = sorted({label.span.line for label in labels})
    previous: int | None = None
    for row in rows:
        if previous is not None and row > previous + 1:
            out.append("..." if row > previous + 2 else _source_row(source, row - 1, width))
        out.append(_source_row(source, row, width))
        here = [label for label in labels if label.span.line == row]
        out += [f"{' ' * width} | {line}" for line in _underlines(source, here, d)]
        previous = row
    return out


def _source_row(source: Source, row: int, width: int) -> str:
    text = source.lines[row - 1] if 1 <= row <= len(source.lines) else ""
    return f"{row:>{width}} | {text.expandtabs(1)}".rstrip()


def _underlines(source: Source, labels: list[Label], d: Diagnostic) -> list[str]:
    """One row of marks; the rightmost label's text beside it, the others' texts below their marks."""
    text = source.lines[labels[0].span.line - 1] if labels[0].span.line <= len(source.lines) else ""
    marks = [" "] * (len(text) + 2)
    for label in sorted(labels, key=lambda x: x.span == d.span):
        start = label.span.column - 1
        same = label.span.end_line == label.span.line
        end = max(label.span.end_column - 1 if same else len(text), start + 1)
        marks += [" "] * (end - len(marks))
        marks[start:end] = ("^" if label.span == d.span else "-") * (end - start)
    ordered = sorted(labels, key=lambda x: x.span.column, reverse=True)
    first = "".join(marks).rstrip()
    out = [f"{first} {ordered[0].text}".rstrip()]
    for label in ordered[1:]:
        if label.text:
            out.append(" " * (label.span.column - 1) + label.text)
    return out
