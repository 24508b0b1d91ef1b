"""Source text to syntax tree: lark's LALR parser fed line by line, so that it recovers by lines."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from lark import UnexpectedToken
from lark.parsers.lalr_analysis import Shift

from nnc.diagnostics import Diagnostic, Diagnostics, Source, Span
from nnc.lang import ast, tables
from nnc.lang.build import Fault
from nnc.lang.foreign import unprintable
from nnc.lang.layout import Line, Token, logical_lines
from nnc.lang.mistakes import explain, missing_block
from nnc.lang.stop import WATCHED, Situation

ERROR_LIMIT = 20  # a file with more mistakes than this gets no further messages
SKIP_LIMIT = 10_000  # a file is given up where a mistake takes more lines than this with it


def parse(source: Source, diagnostics: Diagnostics) -> ast.File | None:
    """The syntax tree of `source`, or None after adding at least one error to `diagnostics`."""
    before = len(diagnostics.errors)
    bad = unprintable(source)
    if bad is not None:
        diagnostics.add(bad)
        return None
    decls = _Driver(source, diagnostics).run()
    if len(diagnostics.errors) > before:
        return None
    return _file(source, decls, diagnostics)


def _file(source: Source, decls: tuple[Any, ...], diagnostics: Diagnostics) -> ast.File | None:
    """Separates the description of a file from its declarations; a file of comments has none."""
    rest = list(decls)
    edition = [rest.pop(0)] if rest and isinstance(rest[0], ast.Edition) else []
    doc = rest.pop(0).value if rest and isinstance(rest[0], ast.Str) else None
    if not source.text.strip("\ufeff \t\r\n"):
        diagnostics.add(_empty(source))
        return None
    last = max(len(source.lines), 1)
    end = len(source.lines[last - 1]) + 1 if source.lines else 1
    return ast.File(source, tuple(edition + rest), doc, span=Span(source, 1, 1, last, end))


def _empty(source: Source) -> Diagnostic:
    span = Span(source, 1, 1, 1, 2)
    help = "a first declaration: `def double(x: real[..N]) -> real[..N] = 2 * x`"
    return Diagnostic("E0126", "this file is empty", span, help=help)


# ---- the parser -------------------------------------------------------------------------------


_kept: list[tables.Fetch] = []  # where tables are, at most one


def keep_tables(fetch: tables.Fetch) -> None:
    """Where this process keeps the tables of the grammar, if it has not made them yet."""
    _kept[:] = [fetch]


@cache
def _lark() -> Any:
    """The parser; made once a process, on first use."""
    return tables.parser(_kept[0] if _kept else None)


@dataclass
class _Driver:
    """Feeds lines to the parser; a line that fails is explained, then replaced by `pass`.

    Snapshots of the parser's stacks share their values with the live ones, so a restored parse
    may hold a statement twice: the tree of a file with an error is never used.
    """

    source: Source
    diagnostics: Diagnostics
    state: Any = None
    level: int = 0
    open: list[Line] = field(default_factory=list)  # the last line at each level
    undo: list[tuple[list[Any], list[Any]]] = field(default_factory=list)  # before each of them
    completed: Line | None = None  # the last line whose `:` was missing
    orphans: int | None = None  # after a missing block: the level of lines that may belong to it

    def run(self) -> tuple[Any, ...]:
        """The declarations of the file; meaningless after an error."""
        self.state = _lark().parse_interactive().parser_state
        before = len(self.diagnostics.errors)
        skip: Line | None = None
        skipped = 0
        for line in logical_lines(self.source, self.diagnostics):
            if skip is not None and _belongs(line, skip):
                skipped += 1
            else:
                skip, skipped = self.line(line), 0
            if skipped > SKIP_LIMIT or len(self.diagnostics.errors) - before >= ERROR_LIMIT:
                self.give_up()
                return ()
        return self.end()

    def give_up(self) -> None:
        last = self.diagnostics.items[-1]
        note = "the rest of the file was not read"
        self.diagnostics.items[-1] = replace(last, notes=(*last.notes, note))

    def line(self, line: Line) -> Line | None:
        """Parses one line; if it fails, the line whose block and branches are to be skipped."""
        if not self.enter(line):
            return Line(line.level - 1, [line.tokens[-1]])
        previous = self.open[line.level] if line.level < len(self.open) else None
        del self.open[line.level :], self.undo[line.level :]
        situation = Situation(tuple(self.open), line, previous)
        self.open.append(line)
        self.undo.append(self.save())
        problem = self.feed(line, situation)
        if problem is None:
            self.orphans = None
            return None
        if self.orphans != line.level:
            self.diagnostics.add(problem)
        self.replace(line.level)
        return line

    def enter(self, line: Line) -> bool:
        """Opens or closes blocks before a line; False: the line is indented without reason."""
        first = line.tokens[0]
        if line.level > self.level:
            if not self.accepts("_INDENT"):
                situation = Situation(tuple(self.open), line, None)
                self.diagnostics.add(explain(situation, -1, self.accepts))
                return False
            self.put(_mark("_INDENT", first))
            self.level += 1
        elif self.accepts("_INDENT"):
            if self.open[-1] is not self.completed:
                self.diagnostics.add(missing_block(self.open[-1], first))
            self.orphans = self.open[-1].level
            self.replace(len(self.open) - 1)
        while line.level < self.level:
            self.put(_mark("_DEDENT", first))
            self.level -= 1
        return True

    def feed(self, line: Line, situation: Situation) -> Diagnostic | None:
        """Feeds the tokens of a line; the message if one of them cannot come there."""
        for at, token in enumerate(line.tokens):
            problem = situation.forbidden(at) if token.type in WATCHED else None
            if problem is not None:
                return problem
            try:
                self.state.feed_token(token)
            except Fault as error:
                return error.diagnostic
            except UnexpectedToken:
                self.rewind(line, at)
                problem = explain(situation, at, self.accepts)
                if problem.code != "E0109":
                    return problem
                self.complete(line, problem)
        return None

    def complete(self, line: Line, problem: Diagnostic) -> None:
        """Goes on as if the `:` at the end of a line were there."""
        self.diagnostics.add(problem)
        self.completed = line
        self.put(_mark("COLON", line.tokens[-1]))
        self.put(line.tokens[-1])

    def rewind(self, line: Line, at: int) -> None:
        """Back to before the last token: what it was refused after shows what is expected."""
        self.restore(self.undo[-1])
        for token in line.tokens[:at]:
            self.state.feed_token(token)

    def replace(self, level: int) -> None:
        """Takes the last line at `level` back; a block keeps a `pass` in its place."""
        first = self.open[level].tokens[0]
        self.restore(self.undo[level])
        del self.open[level:], self.undo[level:]
        self.level = level
        if level:
            self.put(_mark("PASS", first))
            self.put(_mark("_NL", first))

    def end(self) -> tuple[Any, ...]:
        if self.open and self.accepts("_INDENT"):
            end = self.open[-1].tokens[-1]
            self.diagnostics.add(missing_block(self.open[-1], end))
            return ()
        mark = Token("$END", "", self.source, 1, 1, 1, 1)
        while self.level:
            self.put(_mark("_DEDENT", mark))
            self.level -= 1
        result: tuple[Any, ...] = self.state.feed_token(mark, True).items
        return result

    # ---- the parser's state -------------------------------------------------------------------

    def put(self, token: Token) -> None:
        self.state.feed_token(token)

    def save(self) -> tuple[list[Any], list[Any]]:
        return self.state.state_stack[:], self.state.value_stack[:]

    def restore(self, saved: tuple[list[Any], list[Any]]) -> None:
        self.state.state_stack[:], self.state.value_stack[:] = saved

    def accepts(self, type: str) -> bool:
        """Whether a token of this type may come next."""
        table = self.state.parse_conf.states
        stack = self.state.state_stack[:]
        while type in table[stack[-1]]:
            action, arg = table[stack[-1]][type]
            if action is Shift:
                return True
            if arg.expansion:
                del stack[-len(arg.expansion) :]
            stack.append(table[stack[-1]][arg.origin.name][1])
        return False


def _mark(type: str, at: Token) -> Token:
    """A token without text, in front of another."""
    return Token(type, "", at.source, at.line, at.column, at.line, at.column)


def _belongs(line: Line, failed: Line) -> bool:
    """Whether a line is part of a statement that failed: its block or its `elif` and `else`."""
    if line.level == failed.level:
        return line.head in ("ELIF", "ELSE") and failed.head in ("IF", "ELIF", "ELSE")
    return line.level > failed.level
