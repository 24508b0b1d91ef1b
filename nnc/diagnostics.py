"""Source places, diagnostics as values, and how they are shown."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property


@dataclass(frozen=True, eq=False)
class Source:
    """One source text; `name` is how messages call it (the path as given, or `std/nn.nn`).

    `library`: whether it comes with nnc.
    """

    name: str
    text: str
    library: bool = False

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()


@dataclass(frozen=True)
class Span:
    """A stretch of source; lines and columns are 1-based, the end column is exclusive.

    `caller`: the call in whose inlined body it stands (shared by all that this call computes).
    Spans are equal when they are the same stretch, through whatever calls.
    """

    source: Source
    line: int
    column: int
    end_line: int
    end_column: int
    caller: Span | None = field(default=None, compare=False)

    @property
    def place(self) -> str:
        """`file:line:column`."""
        return f"{self.source.name}:{self.line}:{self.column}"

    def line_in(self, other: Span | None) -> str:
        """`line 4`, or `std/nn.nn:4` seen from another file."""
        if other is not None and other.source is self.source:
            return f"line {self.line}"
        return f"{self.source.name}:{self.line}"

    def through(self, caller: Span | None) -> Span:
        """This stretch as it is reached through a call."""
        return self if caller is None or self.caller is caller else replace(self, caller=caller)

    @property
    def trail(self) -> tuple[Span, ...]:
        """This place, the call that led to it, the call around that one, ..."""
        out: list[Span] = [self]
        while (caller := out[-1].caller) is not None:
            out.append(caller)
        return tuple(out)

    @property
    def own(self) -> Span:
        """The innermost place of the trail that is not in nnc's library (itself if there is none).

        What a reader takes for the line that computes something.
        """
        return next((s for s in self.trail if not s.source.library), self)

    def to(self, end: Span) -> Span:
        return Span(self.source, self.line, self.column, end.end_line, end.end_column)

    @property
    def text(self) -> str:
        """The spanned text; several rows are joined by spaces (with remarks: the first)."""
        rows = self.source.lines[self.line - 1 : self.end_line]
        if not rows or self.line < 1:
            return ""
        rows[-1] = rows[-1][: self.end_column - 1]
        rows[0] = rows[0][self.column - 1 :]
        if any("#" in row for row in rows[:-1]):
            return rows[0]
        return " ".join(row.strip() for row in rows) if len(rows) > 1 else rows[0]

    def __repr__(self) -> str:
        return self.place


NOWHERE = Span(Source("<built-in>", "", library=True), 1, 1, 1, 1)


@dataclass(frozen=True)
class Label:
    """A note attached to a place: underlined with `^` (primary) or `-`.

    The part of `text` behind three spaces stands in a column of its own. `aside`: a place to be
    shown after the others (where something was declared); `mark`: whether it is underlined.
    """

    span: Span
    text: str = ""
    aside: bool = False
    mark: bool = True


@dataclass(frozen=True)
class Diagnostic:
    """One mistake: a stable code, what is wrong, where, the origin of sizes, one thing to try."""

    code: str
    message: str
    span: Span
    text: str = ""  # beside the primary underline
    labels: tuple[Label, ...] = ()
    notes: tuple[str, ...] = ()
    help: str | None = None
    severity: str = "error"
    whole: Span | None = None  # the expression at fault, when the primary underline is a part of it
    once: tuple[str, ...] = ()  # of several with the same mark only the first is reported
    sizes: tuple[tuple[object, object], ...] = ()  # pairs that should be equal, and are not

    @property
    def at(self) -> Span:
        """The place that the message names."""
        return self.whole or self.span

    def json(self) -> dict[str, object]:
        """What `--json` prints."""
        notes = [f"{label.span.place}: {label.text}" for label in self.labels if label.text]
        return {
            "code": self.code,
            "severity": self.severity,
            "message": self.message,
            "file": self.at.source.name,
            "line": self.at.line,
            "column": self.at.column,
            "end_line": self.at.end_line,
            "end_column": self.at.end_column,
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
        """Keeps it, unless its place and message, or its mistake, have been reported."""
        same = (diagnostic.code, diagnostic.span, diagnostic.message)
        if any((d.code, d.span, d.message) == same for d in self.items):
            return
        if not diagnostic.once or all(d.once != diagnostic.once for d in self.items):
            self.items.append(diagnostic)

    @property
    def errors(self) -> list[Diagnostic]:
        return [d for d in self.items if d.severity == "error"]


def render(d: Diagnostic) -> str:
    """The message as a person reads it: header, quoted lines with underlines, notes, help."""
    labels = [Label(d.span, d.text), *d.labels]
    width = max(len(str(label.span.line)) for label in labels)
    pad = " " * width
    out = [f"{d.severity}[{d.code}]: {escape(d.message)}", f"{pad}--> {d.at.place}", f"{pad} |"]
    blocks = list(_blocks(d.span.source, labels))
    columns = [_tail_column(rows, d) for _, rows in blocks]
    for i, (source, rows) in enumerate(blocks):
        near = [c for c in columns if columns[i] <= c <= columns[i] + 20]
        if source is not d.span.source:
            out.append(f"{pad}::: {rows[0].span.place}")
        elif i:
            out.append(f"{pad} |")
        out += _quote(source, rows, d, width, max(near))
    out += [f"{pad} = {escape(note)}" for note in d.notes]
    if d.help:
        out.append(f"{pad} help: {escape(d.help)}")
    return "\n".join(out)


def quoted(d: Diagnostic) -> str:
    """The message without its first line: place, quoted lines, notes, help."""
    return render(d).partition("\n")[2]


def render_all(diagnostics: Iterable[Diagnostic]) -> str:
    return "\n\n".join(render(d) for d in diagnostics)


def _blocks(main: Source, labels: Sequence[Label]) -> Iterator[tuple[Source, list[Label]]]:
    """Labels that are quoted together: of the main file, asides of it, then of each other file."""
    yield main, [x for x in labels if x.span.source is main and not x.aside]
    if aside := [x for x in labels if x.span.source is main and x.aside]:
        yield main, aside
    others = dict.fromkeys(x.span.source for x in labels if x.span.source is not main)
    for source in others:
        yield source, [x for x in labels if x.span.source is source]


def _quote(
    source: Source, labels: Sequence[Label], d: Diagnostic, width: int, column: int
) -> list[str]:
    out: list[str] = []
    previous: int | None = None
    for line in sorted({label.span.line for label in labels}):
        if previous is not None and line > previous + 1:
            out.append("..." if line > previous + 2 else _source_row(source, line - 1, width))
        out.append(_source_row(source, line, width))
        here = [label for label in labels if label.span.line == line and label.mark]
        out += [f"{' ' * width} | {row}".rstrip() for row in _underlines(here, d, column)]
        previous = line
    return out


def _source_row(source: Source, line: int, width: int) -> str:
    return f"{line:>{width}} | {escape(_row(source, line))}".rstrip()


def _row(source: Source, line: int) -> str:
    return source.lines[line - 1] if 1 <= line <= len(source.lines) else ""


def _underlines(labels: Sequence[Label], d: Diagnostic, column: int) -> list[str]:
    """One row of marks; the rightmost label's text beside it, the others' below their marks."""
    if not labels:
        return []
    ordered = sorted(labels, key=lambda x: x.span.column, reverse=True)
    out = [_with_tail(f"{_marks(labels, d)} {_head(ordered[0])}", ordered[0], column)]
    for label in ordered[1:]:
        if label.text:
            start, _ = _extent(label)
            out.append(_with_tail(" " * start + _head(label), label, column))
    return out


def _marks(labels: Sequence[Label], d: Diagnostic) -> str:
    marks: list[str] = []
    for label in sorted(labels, key=lambda x: x.span == d.span):
        start, end = _extent(label)
        marks += [" "] * (end - len(marks))
        marks[start:end] = ("^" if label.span == d.span else "-") * (end - start)
    return "".join(marks)


def _extent(label: Label) -> tuple[int, int]:
    """Where the marks begin and end, in columns of the screen."""
    row = _row(label.span.source, label.span.line)
    same = label.span.end_line == label.span.line
    start = screen_width(row[: label.span.column - 1])
    end = screen_width(row[: label.span.end_column - 1] if same else row)
    return start, max(end, start + 1)


def _head(label: Label) -> str:
    return escape(label.text).partition("   ")[0]


def _with_tail(row: str, label: Label, column: int) -> str:
    tail = escape(label.text).partition("   ")[2].lstrip()
    return f"{row:<{column}}{tail}".rstrip() if tail else row.rstrip()


def _tail_column(labels: Sequence[Label], d: Diagnostic) -> int:
    """The column at which second parts of label texts can stand, behind all first parts."""
    out = 0
    for line in {label.span.line for label in labels}:
        here = [label for label in labels if label.span.line == line and label.mark]
        ordered = sorted(here, key=lambda x: x.span.column, reverse=True)
        for i, label in enumerate(ordered):
            if "   " in label.text:
                start = len(_marks(here, d)) + 1 if i == 0 else _extent(label)[0]
                out = max(out, start + len(_head(label)) + 3)
    return out


def escape(text: str) -> str:
    """The text with characters that would upset a screen written as escapes; tabs become spaces."""
    return text if text.isascii() and text.isprintable() else "".join(map(_escaped, text))


def _escaped(c: str) -> str:
    if c == "\t":
        return " "
    if c.isprintable():
        return c
    return c.encode("unicode_escape").decode()


def screen_width(text: str) -> int:
    """How many columns an escaped text takes (East Asian letters two, combining marks none)."""
    if text.isascii() and text.isprintable():
        return len(text)
    return sum(map(_char_width, text))


def _char_width(c: str) -> int:
    shown = _escaped(c)
    if len(shown) > 1:
        return len(shown)
    if unicodedata.combining(c):
        return 0
    return 2 if unicodedata.east_asian_width(c) in "WF" else 1
