"""Where the parser stopped: the refused token, what stands around it, what could come instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from nnc.diagnostics import Diagnostic, Label, Span
from nnc.lang.layout import NESTING_LIMIT, Line, Token, words

CODES = {
    "E0100": "the text does not follow the grammar here",
    "E0101": "a character that has no place in a program",
    "E0102": "an invisible control character",
    "E0103": 'a text without its closing quote, or with other quotes than "',
    "E0104": "a number that cannot be read",
    "E0105": "a tab in the indentation",
    "E0106": "an indentation that matches no block",
    "E0107": "a line is indented deeper without a block being opened",
    "E0108": "a block is missing after `:`",
    "E0109": "`:` is missing at the end of a line that opens a block",
    "E0110": "a bracket is not closed",
    "E0111": "a closing bracket does not fit",
    "E0112": f"brackets and blocks are nested deeper than {NESTING_LIMIT}",
    "E0113": "a reserved word used as a name",
    "E0114": "`=` where a comparison is meant",
    "E0115": "an operator of another language",
    "E0116": "a construct of another language",
    "E0117": "an argument without its type",
    "E0118": "a type is missing",
    "E0119": "`return` outside a function",
    "E0120": "`yield` outside a loop that collects",
    "E0121": "`:=` inside an expression",
    "E0122": "something that cannot be assigned to",
    "E0123": "a line in the wrong place",
    "E0124": "a misplaced or unknown edition",
    "E0125": "`else` or `elif` without its `if`",
    "E0126": "an empty file",
    "E0127": "a tuple of one",
    "E0128": "a statement that is too long",
}

Accepts = Callable[[str], bool]
WATCHED = frozenset(("RETURN", "YIELD", "EDITION", "NUMBER", "STRING"))  # see `forbidden`

HEADERS = words("DEF MODULE FOR IF ELIF ELSE WHILE TEST ADJOINT")
DECLARATIONS = words("MODULE DEF EXTERN ADJOINT TEST CONST SPECIALIZE FROM IMPORT EDITION EXPORT")
STATEMENTS = words("FOR IF WHILE RETURN YIELD ASSERT PROBE")


@dataclass(frozen=True)
class Situation:
    """A line, the lines that opened the blocks around it, the line before it in its block."""

    open: tuple[Line, ...]
    line: Line
    previous: Line | None

    @cached_property
    def place(self) -> str:
        """Where the line stands: in a `file`, a `module`, or a `function` (also test, adjoint)."""
        for line in reversed(self.open):
            if line.head in ("DEF", "ADJOINT", "TEST"):
                return "function"
            if line.head == "MODULE":
                return "module"
        return "file"

    @property
    def opens_block(self) -> bool:
        return self.line.head in HEADERS or collects(self.line)

    def forbidden(self, at: int) -> Diagnostic | None:
        """What the grammar lets through and the place forbids."""
        token = self.line.tokens[at]
        starts = at == 0 or self.line.tokens[at - 1].type == "COLON"
        around = (*self.open, self.line) if at else self.open
        match token.type:
            case "RETURN" if starts and not any(x.head in ("DEF", "ADJOINT") for x in around):
                return outside_function(token)
            case "YIELD" if starts and not any(collects(x) for x in around):
                return outside_loop(token)
            case "EDITION" if self.previous is not None:
                message = "`edition` comes first in a file"
                return one("E0124", message, token, help="move this line to the top")
            case "NUMBER" if self.line.head == "EDITION" and token.text != "1":
                message = f"there is no edition {token.text} of the language"
                return one("E0124", message, token, "this nnc knows edition 1", "edition 1")
            case "STRING" if at == 0 and self.previous and self.previous.head != "EDITION":
                message = "this text says nothing to the program"
                help = "a description comes first; further remarks are comments: `# ...`"
                return one("E0123", message, token, help=help)
        return None


@dataclass(frozen=True)
class Stop:
    """Where the parser stopped: `at` is the index of the refused token in the line."""

    situation: Situation
    at: int
    accepts: Accepts

    @property
    def tokens(self) -> list[Token]:
        return self.situation.line.tokens

    @property
    def token(self) -> Token:
        return self.tokens[self.at]

    @property
    def before(self) -> Token | None:
        return self.tokens[self.at - 1] if self.at else None

    @property
    def after(self) -> Token | None:
        return self.tokens[self.at + 1] if self.at + 1 < len(self.tokens) else None

    @property
    def head(self) -> str:
        return self.situation.line.head

    @property
    def rest(self) -> str:
        """The text of the row after the token."""
        return self.token.source.lines[self.token.end_line - 1][self.token.end_column - 1 :].strip()


def one(
    code: str,
    message: str,
    token: Token,
    text: str = "",
    help: str | None = None,
    labels: tuple[Label, ...] = (),
) -> Diagnostic:
    return Diagnostic(code, message, token.span, text, labels, help=help)


def outside_function(token: Token) -> Diagnostic:
    help = "only the body of a `def` or `adjoint` returns"
    return one("E0119", "`return` outside a function", token, help=help)


def outside_loop(token: Token) -> Diagnostic:
    help = "name what the loop collects: `ys = for t in T:`"
    return one("E0120", "`yield` outside a loop that collects", token, help=help)


def collects(line: Line) -> bool:
    """Whether the line is `ys = for ...:`."""
    kinds = [t.type for t in line.tokens if t.opener is None]
    return any(a == "EQUAL" and b == "FOR" for a, b in pairwise(kinds))


def reserved_word(word: str, span: Span) -> Diagnostic:
    message = f"`{word}` is a word of the language and cannot be a name"
    help = f"choose another name, for example `{word.lower()}_`"
    once = ("reserved", span.source.name, word)
    return Diagnostic("E0113", message, span, help=help, once=once)
