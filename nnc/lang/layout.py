"""Source text to tokens in logical lines: words, operators, brackets, line joining, indentation.

A logical line ends at a line break outside brackets. It goes on if the next line is indented
deeper than this one began, and its last token asks for more (an operator, `=`, `->`, `where`, a
comma of a `where` clause) or the next line begins with the `->` or `where` of a signature.

What can never be part of a program (a stray character, a string without an end) becomes a token
of a type of `FAULTY`, which no grammar rule accepts: the parser then stops exactly there, and one
mistake gives one message (nnc/lang/mistakes.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import isinf

from nnc.diagnostics import Diagnostic, Diagnostics, Source, Span

NESTING_LIMIT = 256
STATEMENT_LIMIT = 50_000


def words(text: str) -> frozenset[str]:
    """The set of the words of a text."""
    return frozenset(text.split())


# The words of the grammar. They are reserved everywhere, but `where` is also a function's name;
# `limit` (after `while c`) and `weights` (after `from`) are ordinary names.
KEYWORDS = words(
    """adjoint and as assert const def edition elif else export extern false for from if import in
    inout module None not or param pass probe return specialize state test true when where
    while yield"""
)
# Words of other languages, reserved so that a program that uses them gets a message of its own.
FOREIGN_WORDS = words(
    """True False async await break class continue del except finally global is lambda nonlocal
    raise self try with"""
)
RESERVED = KEYWORDS | FOREIGN_WORDS

OPERATORS = {
    "(": "LPAR", ")": "RPAR", "[": "LSQB", "]": "RSQB", "{": "LBRACE", "}": "RBRACE",
    ",": "COMMA", ":": "COLON", ";": "SEMICOLON", ".": "DOT", "=": "EQUAL", "!": "BANG",
    ":=": "ASSIGN", "->": "ARROW", "..": "PACK", "...": "ELLIPSIS", "+": "PM", "-": "PM",
    "*": "MD", "/": "MD", "//": "MD", "%": "MD", "@": "MD", "**": "POW", "==": "CMP", "!=": "CMP",
    "<=": "CMP", ">=": "CMP", "<": "CMP", ">": "CMP",
}  # fmt: skip
TYPES = {**OPERATORS, **{word: word.upper() for word in KEYWORDS}}
FAULTY = words("FOREIGN BADCHAR BADNUMBER UNTERMINATED TRIPLE SINGLE UNCLOSED TOODEEP TOOLONG")

CLOSES = {")": "(", "]": "[", "}": "{"}
CLOSER = {opening: closing for closing, opening in CLOSES.items()}
OPERAND_ENDS = words("NAME NUMBER STRING RPAR RSQB TRUE FALSE NONE WHERE BANG")
_JOINING = words("PM MD POW CMP AND OR NOT IN EQUAL ASSIGN ARROW")

_TOKEN = re.compile(
    r"""[ \t]*(?:
      (?P<NAME>[A-Za-z_][A-Za-z_0-9]*)
    | (?P<NUMBER>(?:[0-9]+(?:_[0-9]+)*(?:\.(?!\.)[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
    | (?P<BREAK>\r\n|\n|\r)
    | (?P<COMMENT>\#[^\r\n]*)
    | (?P<TRIPLE>\"{3}(?:[\s\S]*?\"{3})?)
    | (?P<STRING>"[^"\r\n]*")
    | (?P<UNTERMINATED>"[^"\r\n]*)
    | (?P<SINGLE>'[^'\r\n]*'?)
    | (?P<FOREIGN>\*\*=|//=|[-+*/%@&|^]=|===|!==|&&|\|\||<<|>>|=>|<>|[&|^~?$\\`])
    | (?P<OP>\*\*|//|:=|->|==|!=|<=|>=|\.\.\.|\.\.|[-+*/%@<>=()\[\]{},:;.!])
    | (?P<END>\Z)
    | (?P<BADCHAR>.)
    )""",
    re.VERBOSE | re.DOTALL,
)
# The same text after a faulty token: only what decides where the logical line ends.
_SKIM = re.compile(
    r"""[^()\[\]{}"'\#\r\n]*(?:
      (?P<BREAK>\r\n|\n|\r)
    | (?P<COMMENT>\#[^\r\n]*)
    | (?P<STRING>\"{3}(?:[\s\S]*?\"{3})?|"[^"\r\n]*"?|'[^'\r\n]*'?)
    | (?P<OP>[()\[\]{}]+)
    | (?P<END>\Z)
    )""",
    re.VERBOSE,
)
_BLANK = re.compile(r"(?:[ \t]*(?:#[^\r\n]*)?(?:\r\n|\n|\r))*(?:[ \t]*(?:#[^\r\n]*)?\Z)?")
_BREAK = re.compile(r"\r\n|\n|\r")
_INDENT = re.compile(r"[ \t]*")
_SIGNATURES = frozenset(("DEF", "EXPORT", "EXTERN"))
_SIGNATURE_ROW = re.compile(r"->|where\b")
_WORD_END = re.compile(r"[A-Za-z_0-9]+")
# A line that begins so cannot be inside brackets: one before it was not closed.
_STATEMENT = re.compile(
    r"(?:adjoint|assert|const|def|edition|elif|export|extern|from|import|module|param|pass|probe"
    r"|return|specialize|state|test|while|yield)\b(?![ \t]*[=,)\].:])"
)


@dataclass(slots=True, eq=False)
class Token:
    """One word or sign. `opener` is the innermost bracket open before it; `first`: of its row."""

    type: str
    text: str
    source: Source
    line: int
    column: int
    end_line: int
    end_column: int
    opener: Token | None = None
    first: bool = False

    @property
    def span(self) -> Span:
        return Span(self.source, self.line, self.column, self.end_line, self.end_column)

    def __repr__(self) -> str:
        return f"{self.type} {self.text!r} at {self.line}:{self.column}"


@dataclass(slots=True, eq=False)
class Line:
    """A logical line: its depth of indentation (0 outermost) and its tokens, the last `_NL`."""

    level: int
    tokens: list[Token]

    @property
    def head(self) -> str:
        """The type of the word that says what the line is: `DEF` also for `export def`."""
        at = 1 if self.tokens[0].type == "EXPORT" and len(self.tokens) > 1 else 0
        return TYPES.get(self.tokens[at].text, self.tokens[at].type)


def logical_lines(source: Source, diagnostics: Diagnostics) -> Iterator[Line]:
    """The lines of a file, one at a time; mistakes of indentation go to `diagnostics`."""
    return _Scanner(source, diagnostics).lines()


@dataclass
class _Scanner:
    source: Source
    diagnostics: Diagnostics
    pos: int = 0
    row: int = 1
    row_start: int = 0
    indents: list[int] = field(default_factory=lambda: [0])
    brackets: list[Token] = field(default_factory=list)
    elifs: dict[int, int] = field(default_factory=dict)
    tab_seen: bool = False

    def lines(self) -> Iterator[Line]:
        if self.source.text.startswith("\ufeff"):
            self.pos = 1
        while True:
            self.skip_blank()
            width = self.indentation()
            if self.pos >= len(self.source.text):
                return
            line = Line(self.level(width), self.scan(width))
            self.limit_depth(line)
            yield line

    # ---- rows and indentation -----------------------------------------------------------------

    def skip_blank(self) -> None:
        """Moves over rows that hold nothing or only a comment."""
        blank = _BLANK.match(self.source.text, self.pos)
        assert blank is not None
        if blank.end() > self.pos:
            self.advance(blank.end())

    def advance(self, end: int) -> None:
        """Moves to `end`, counting the rows on the way."""
        for match in _BREAK.finditer(self.source.text, self.pos, end):
            self.row += 1
            self.row_start = match.end()
        self.pos = end

    def indentation(self) -> int:
        """Moves over the indentation of a row; its width with a tab as 4 columns."""
        match = _INDENT.match(self.source.text, self.pos)
        assert match is not None
        self.pos = match.end()
        text = match.group()
        rest = self.source.text[self.pos : self.pos + 1]
        if "\t" in text and rest not in ("", "#") and not self.tab_seen:
            self.tab_seen = True
            self.complain("E0105", "a tab in the indentation", len(text), *_TAB_ADVICE)
        return len(text.expandtabs(4))

    def level(self, width: int) -> int:
        """The depth of a line that begins after `width` columns; opens or closes blocks."""
        if width > self.indents[-1]:
            self.indents.append(width)
        while width < self.indents[-1]:
            last = self.indents.pop()
            if width > self.indents[-1]:
                self.uneven(width, last)
                self.indents.append(width)
                break
        return len(self.indents) - 1

    def uneven(self, width: int, last: int) -> None:
        options = [str(n) for n in [*self.indents, last]]
        text = f"{width} columns; the blocks open here begin after {' or '.join(options)}"
        message = "this indentation matches no block above"
        self.complain("E0106", message, width, text, "align the line with the block it belongs to")

    def complain(self, code: str, message: str, width: int, text: str, help: str) -> None:
        span = Span(self.source, self.row, 1, self.row, max(width, 1) + 1)
        self.diagnostics.add(Diagnostic(code, message, span, text, help=help))

    # ---- tokens -------------------------------------------------------------------------------

    def scan(self, width: int) -> list[Token]:
        """The tokens of the logical line that begins here; leaves `pos` after its line break."""
        tokens: list[Token] = []
        first = True
        self.brackets.clear()
        while True:
            match = _TOKEN.match(self.source.text, self.pos)
            assert match is not None and match.lastgroup is not None
            kind = match.lastgroup
            if kind == "COMMENT":
                self.pos = match.end()
            elif kind == "BREAK" or kind == "END":
                if not self.joins(tokens, match, width, bool(self.brackets)):
                    self.finish(tokens, match)
                    return tokens
                first = True
            else:
                token = self.token(kind, match.start(kind), match.end(), first)
                first = False
                if len(tokens) == STATEMENT_LIMIT or len(self.brackets) > NESTING_LIMIT:
                    token.type = "TOODEEP" if self.brackets else "TOOLONG"
                tokens.append(token)
                if token.type in FAULTY or not self.track(token):
                    self.skim(tokens, width)
                    return tokens

    def skim(self, tokens: list[Token], width: int) -> None:
        """Moves to the end of a logical line that is refused at its last token anyway."""
        depth = len(self.brackets)
        last = tokens[-1]
        if last.type == "UNTERMINATED" or (last.type == "SINGLE" and last.text[-1:] != "'"):
            depth = 0  # it may have swallowed the closing ones
        self.brackets.clear()
        while True:
            match = _SKIM.match(self.source.text, self.pos)
            assert match is not None and match.lastgroup is not None
            kind = match.lastgroup
            if kind == "OP":
                self.pos = match.end()
                signs = match.group(kind)
                opened = sum(signs.count(sign) for sign in CLOSER)
                depth = max(0, depth + 2 * opened - len(signs))
            elif kind == "COMMENT":
                self.pos = match.end()
            elif kind == "STRING":
                self.advance(match.end())
            elif not self.joins(tokens, match, width, depth > 0):
                self.finish(tokens, match)
                return

    def token(self, kind: str, start: int, end: int, first: bool) -> Token:
        text = self.source.text[start:end]
        if kind == "NAME":
            kind = TYPES.get(text, "FOREIGN" if text in FOREIGN_WORDS else "NAME")
        elif kind == "OP":
            kind = OPERATORS[text]
        elif kind == "NUMBER":
            tail = _WORD_END.match(self.source.text, end)
            if tail or _unreadable(text):
                kind, end = "BADNUMBER", tail.end() if tail else end
                text = self.source.text[start:end]
        row, column = self.row, start - self.row_start + 1
        self.advance(end) if kind == "TRIPLE" else setattr(self, "pos", end)
        opener = self.brackets[-1] if self.brackets else None
        last = end - self.row_start + 1
        return Token(kind, text, self.source, row, column, self.row, last, opener, first)

    def track(self, token: Token) -> bool:
        """Opens and closes brackets; False if the token closes what is not open.

        A closing bracket that fits one of the innermost open ones closes up to it.
        """
        if token.text in CLOSER:
            self.brackets.append(token)
        elif token.text in CLOSES:
            wanted = CLOSES[token.text]
            if self.brackets and self.brackets[-1].text == wanted:
                self.brackets.pop()
                return True
            if any(b.text == wanted for b in self.brackets[-8:]):
                while self.brackets.pop().text != wanted:
                    pass
            return False
        return True

    def joins(self, tokens: list[Token], match: re.Match[str], width: int, inside: bool) -> bool:
        """Whether the logical line goes on after this line break; if so, moves past it."""
        text = self.source.text
        if match.lastgroup == "END":
            return False
        blank = _BLANK.match(text, match.start(match.lastgroup or 0))
        assert blank is not None
        indent = _INDENT.match(text, blank.end())
        assert indent is not None
        deeper = len(indent.group().expandtabs(4)) > width
        if indent.end() == len(text) or not (inside or deeper):
            return False
        if inside and _STATEMENT.match(text, indent.end()):
            return False
        signature = tokens[0].type in _SIGNATURES and tokens[-1].type != "COLON"
        goes_on = signature and _SIGNATURE_ROW.match(text, indent.end())
        if not (inside or goes_on or _asks_for_more(tokens)):
            return False
        self.advance(indent.end())
        return True

    def finish(self, tokens: list[Token], match: re.Match[str]) -> None:
        """Ends the logical line: a bracket still open is a fault of its own."""
        if self.brackets:
            bracket = self.brackets[-1]
            tokens.append(replace(bracket, type="UNCLOSED", opener=bracket))
        last = tokens[-1]
        row, column = last.end_line, last.end_column
        tokens.append(Token("_NL", "", self.source, row, column, row, column + 1))
        self.pos = match.end()
        if match.lastgroup == "BREAK":
            self.row += 1
            self.row_start = self.pos

    # ---- nesting ------------------------------------------------------------------------------

    def limit_depth(self, line: Line) -> None:
        """Cuts the line where brackets, blocks and chains nest deeper than the limit."""
        self.elifs = {k: n for k, n in self.elifs.items() if k <= line.level}
        if line.tokens[0].type == "ELIF":
            self.elifs[line.level] = self.elifs.get(line.level, 0) + 1
        elif line.tokens[0].type != "ELSE":
            self.elifs.pop(line.level, None)
        outer = line.level + sum(self.elifs.values())
        outer += line.tokens[-2].type == "COLON"  # the block that it opens
        if outer + len(line.tokens) <= NESTING_LIMIT:
            return
        at = _too_deep(line.tokens, outer)
        if at is not None:
            line.tokens[at].type = "TOODEEP"
            line.tokens[at + 1 : -1] = []


_TAB_ADVICE = ("", "indent with spaces, 4 for each block")


def _unreadable(number: str) -> bool:
    """Longer than any number that a program needs, or a float that is infinite."""
    return len(number) > 400 or (not number.replace("_", "").isdigit() and isinf(float(number)))


def _asks_for_more(tokens: list[Token]) -> bool:
    if not tokens:
        return False
    last = tokens[-1].type
    if last in _JOINING:
        return True
    if last in ("IF", "ELSE"):
        return len(tokens) > 1
    if last not in ("WHERE", "COMMA") or tokens[0].type not in _SIGNATURES:
        return False
    return last == "WHERE" or any(t.type == "WHERE" and t.opener is None for t in tokens)


def _too_deep(tokens: list[Token], outer: int) -> int | None:
    """The first token nested deeper than the limit: in brackets, prefixes, `**`, `else` or links.

    Chains of binary operators of one kind of line are flat for this count: they nest to the left.
    """
    stack: list[int] = []  # the depth around each open bracket
    base, prefix, branch, link = outer, 0, 0, 0
    after_operand = False
    for at, token in enumerate(tokens):
        match token.type:
            case "LPAR" | "LSQB" | "LBRACE":
                stack += [base, prefix, branch, link + after_operand]
                base, prefix, branch, link = base + prefix + branch + 1, 0, 0, 0
            case "RPAR" | "RSQB" | "RBRACE" if stack:
                link, branch, prefix, base = stack.pop(), stack.pop(), stack.pop(), stack.pop()
            case "DOT":
                link += 1
            case "POW" | "NOT":
                prefix, link = prefix + 1, 0
            case "PM" if not after_operand:
                prefix += 1
            case "PM" | "MD" | "CMP" | "AND" | "OR" | "IF":
                prefix, link = 0, 0
            case "ELSE":
                prefix, link, branch = 0, 0, branch + 1
            case "COMMA" | "COLON" | "EQUAL" | "ASSIGN":
                prefix, branch, link = 0, 0, 0
        after_operand = token.type in OPERAND_ENDS
        if base + prefix + branch + link > NESTING_LIMIT:
            return at
    return None
