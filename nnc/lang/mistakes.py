"""What a line that does not parse was probably meant to be: the messages E0100 to E0127.

`explain` asks the rules in `_RULES` one after the other; the first that knows the mistake words
the message. A rule sees the token that the parser refused, what stands around it, and what the
parser would have taken instead.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from re import compile as pattern

from nnc.diagnostics import Diagnostic, Label, Source, Span
from nnc.lang.layout import CLOSER, CLOSES, KEYWORDS, NESTING_LIMIT, Line, Token

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
    "E0126": "a file without declarations",
    "E0127": "a tuple of one",
}

Accepts = Callable[[str], bool]
WATCHED = frozenset(("RETURN", "YIELD", "EDITION", "NUMBER", "STRING"))  # see `forbidden`


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
        return self.line.head in _HEADERS or _collects(self.line)

    def forbidden(self, at: int) -> Diagnostic | None:
        """What the grammar lets through and the place forbids."""
        token = self.line.tokens[at]
        match token.type:
            case "RETURN" if not any(x.head in ("DEF", "ADJOINT") for x in self.open):
                return _outside_function(token)
            case "YIELD" if not any(_collects(x) for x in self.open):
                return _outside_loop(token)
            case "EDITION" if self.previous is not None:
                message = "`edition` comes first in a file"
                return _one("E0124", message, token, help="move this line to the top")
            case "NUMBER" if self.line.head == "EDITION" and token.text != "1":
                message = f"there is no edition {token.text} of the language"
                return _one("E0124", message, token, "this nnc knows edition 1", "edition 1")
            case "STRING" if at == 0 and self.previous and self.previous.head != "EDITION":
                message = "this text says nothing to the program"
                help = "a description comes first; further remarks are comments: `# ...`"
                return _one("E0123", message, token, help=help)
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
        row = self.token.source.text.split("\n", self.token.end_line)[self.token.end_line - 1]
        return row[self.token.end_column - 1 :].strip()


def explain(situation: Situation, at: int, accepts: Accepts) -> Diagnostic:
    """The message for the token `at` of a line; an index of -1: the line's indentation."""
    if at < 0:
        return _unexpected_indentation(situation)
    stop = Stop(situation, at, accepts)
    for rule in _RULES:
        found = rule(stop)
        if found is not None:
            return found
    return _generic(stop)


def _one(
    code: str,
    message: str,
    token: Token,
    text: str = "",
    help: str | None = None,
    labels: tuple[Label, ...] = (),
) -> Diagnostic:
    return Diagnostic(code, message, token.span, text, labels, help=help)


# ---- characters -------------------------------------------------------------------------------

_CONTROL = pattern(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def unprintable(source: Source) -> Diagnostic | None:
    """The first control character, line separator or direction mark, also in comments."""
    match = _CONTROL.search(source.text)
    if match is None:
        return None
    before = source.text[: match.start()].replace("\r\n", "\n").replace("\r", "\n")
    row = before.count("\n") + 1
    column = len(before) - (before.rfind("\n") + 1) + 1
    char = ord(match.group())
    name = "a NUL byte" if char == 0 else _char_name(match.group())
    message = f"{name} does not belong in a source text"
    help = "is this a text file? if so, delete the character"
    return Diagnostic("E0102", message, Span(source, row, column, row, column + 1), help=help)


def _char_name(char: str) -> str:
    name = unicodedata.name(char, "")
    return f"U+{ord(char):04X} {name}".rstrip()


_LOOKALIKES = {
    **dict.fromkeys("“”„‟«»″＂", '"'), **dict.fromkeys("‘’‚‛′`´", '"'),
    **dict.fromkeys("–—−‐‑‒―－", "-"), **dict.fromkeys("×∗·⋅＊", "*"), "÷": "/", "∕": "/",
    "≤": "<=", "≥": ">=", "≠": "!=", "→": "->", "⇒": "->", "←": ":=", "≔": ":=", "…": "...",
    "：": ":", "（": "(", "）": ")", "，": ",", "［": "[", "］": "]", "＝": "=", "＋": "+",
    "；": ";", "．": ".", "∧": "and", "∨": "or", "¬": "not", "²": "**2", "³": "**3", "∞": "inf",
    "π": "pi", "√": "sqrt", "∑": "sum", "Σ": "sum", "∏": "prod",
}  # fmt: skip


def _bad_character(token: Token) -> Diagnostic:
    char = token.text
    meant = _LOOKALIKES.get(char)
    if char.isspace() or unicodedata.category(char) == "Cf":
        help = "replace it by an ordinary space, or delete it"
        return _one("E0101", f"{_char_name(char)} is not an ordinary space", token, help=help)
    message = f"`{char}` ({_char_name(char)}) has no place here"
    if meant is not None:
        return _one("E0101", message, token, help=f"write `{meant}`")
    help = "names are made of a to z, A to Z, digits and `_`"
    words = unicodedata.name(char, "").split()
    if words[:1] == ["GREEK"] and "LETTER" in words:
        spelled = words[words.index("LETTER") + 1].lower()
        help += f": write `{spelled if 'SMALL' in words else spelled.capitalize()}`"
    return _one("E0101", message, token, help=help)


# ---- tokens that no rule of the grammar takes -------------------------------------------------

_OPERATOR_HELP = {
    "^": "powers are written `**`: `x**2`; exclusive or of integers is `bitxor(a, b)`",
    "&&": "write `and`", "||": "write `or`",
    "&": "write `and`; for the bits of integers `bitand(a, b)`",
    "|": "write `or`; for the bits of integers `bitor(a, b)`",
    "~": "write `not`", "<<": "for the bits of integers `shl(a, n)`",
    ">>": "for the bits of integers `shr(a, n)`", "<>": "write `!=`", "===": "write `==`",
    "!==": "write `!=`", "=>": "a result type comes after `->`; at least is `>=`",
    "?": "a choice reads `a if c else b`", "$": "names are made of letters, digits and `_`",
    "`": "names stand without quotes", "\\": "a line goes on after an operator or in brackets",
}  # fmt: skip

_WORD_HELP = {
    "True": ("`True` is written in lower case", "write `true`"),
    "False": ("`False` is written in lower case", "write `false`"),
    "lambda": ("there are no anonymous functions", "define it: `def f(x: real) -> real = 2 * x`"),
    "is": ("`is` does not compare", "write `==`"),
    "break": ("loops run to their end", "bound the loop: `while c limit N:`"),
    "continue": ("loops have no `continue`", "put the rest of the body under an `if`"),
    "with": ("there are no `with` blocks", "write the statements in order"),
    "del": ("names are never deleted", "the compiler plans the memory; delete this line"),
    "try": ("there are no exceptions", "check with `assert`, or choose with `if`"),
    "except": ("there are no exceptions", "check with `assert`, or choose with `if`"),
    "finally": ("there are no exceptions", "write the statements in order"),
    "raise": ("there are no exceptions", "check with `assert c`"),
    "global": ("nothing is global", "pass storage as an `inout` argument"),
    "nonlocal": ("functions have no closures", "pass storage as an `inout` argument"),
    "async": ("everything runs in order", "delete this word"),
    "await": ("everything runs in order", "delete this word"),
}


def _faulty(stop: Stop) -> Diagnostic | None:
    token = stop.token
    match token.type:
        case "FOREIGN" if token.text in ("class", "self"):
            return _class(stop) if token.text == "class" else _self(stop)
        case "FOREIGN" if token.text in _WORD_HELP:
            message, help = _WORD_HELP[token.text]
            return _one("E0116", message, token, help=help)
        case "FOREIGN" if token.text in _OPERATOR_HELP:
            message = f"there is no operator `{token.text}`"
            return _one("E0115", message, token, help=_OPERATOR_HELP[token.text])
        case "FOREIGN":
            return _augmented(stop)
        case "BADCHAR":
            return _bad_character(token)
        case "BADNUMBER":
            return _bad_number(token)
        case "UNTERMINATED":
            help = 'a text is one line between two `"`'
            return _one("E0103", 'this text has no closing `"`', token, help=help)
        case "SINGLE":
            inside = token.text.strip("'")
            return _one("E0103", 'texts stand between `"`', token, help=f'write `"{inside}"`')
        case "TRIPLE":
            help = 'a description is one line between two `"`; longer ones are comments: `# ...`'
            return _one("E0103", 'there are no texts in `"""`', token, help=help)
        case "UNCLOSED":
            return _unclosed(stop, token)
        case "TOODEEP":
            message = f"nested more than {NESTING_LIMIT} deep"
            return _one("E0112", message, token, help="name a part of it: `part = ...`")
    return None


def _class(stop: Stop) -> Diagnostic:
    name = stop.rest.split("(")[0].split(":")[0].strip()
    help = f"a network is `module {name if name.isidentifier() else 'Net'}(D):`"
    return _one("E0116", "there are no classes", stop.token, help=help)


def _self(stop: Stop) -> Diagnostic:
    member = _MEMBER.match(stop.rest)
    if member:
        help = f"members are in scope: write `{member.group(1)}`"
    else:
        help = (
            "members are in scope; declare the other arguments only: `def forward(x: real[B, D])`"
        )
    return _one("E0116", "there is no `self`", stop.token, help=help)


_MEMBER = pattern(r"\.\s*([A-Za-z_]\w*)")


def _augmented(stop: Stop) -> Diagnostic:
    token = stop.token
    op = token.text[:-1]
    target = stop.tokens[0].span.to(stop.tokens[stop.at - 1].span).text if stop.at else "x"
    sign = "=" if stop.at < 2 else ":="
    help = f"write `{target} {sign} {target} {op} ...`"
    return _one("E0115", f"there is no `{token.text}`", token, help=help)


def _bad_number(token: Token) -> Diagnostic:
    text = token.text
    if len(text) > 400:
        return _one("E0104", "this number is too long", token, help="write it as `1e9`")
    if text[:2].lower() in ("0x", "0b", "0o") and text[2:].isalnum():
        try:
            help = f"write {int(text, 0)}"
        except ValueError:
            help = "numbers are decimal"
        return _one("E0104", "numbers are decimal", token, help=help)
    if text.replace("_", "").replace(".", "").lower().lstrip("0123456789")[:1] == "e":
        message = "this number is larger than any float, or its exponent is incomplete"
        return _one("E0104", message, token, help="a float is below 1.8e308; `inf` is infinity")
    help = "a name begins with a letter; a product needs `*`"
    return _one("E0104", f"`{text}` is neither a number nor a name", token, help=help)


def _unclosed(stop: Stop, bracket: Token) -> Diagnostic:
    message = f"this `{bracket.text}` is never closed"
    help = f"add the `{CLOSER[bracket.text]}`"
    return _one("E0110", message, bracket, help=help)


# ---- brackets ---------------------------------------------------------------------------------


def _closing(stop: Stop) -> Diagnostic | None:
    token, opener = stop.token, stop.token.opener
    if token.text not in CLOSES:
        return None
    if opener is None:
        message = f"this `{token.text}` closes nothing"
        return _one("E0111", message, token, help="delete it, or add the opening bracket before")
    if opener.text != CLOSES[token.text]:
        closer = CLOSER[opener.text]
        message = f"`{token.text}` cannot close the `{opener.text}` of line {opener.line}"
        label = Label(opener.span, "opened here")
        return _one("E0111", message, token, f"expected `{closer}`", f"write `{closer}`", (label,))
    if stop.before is opener and opener.text == "(" and stop.accepts("NUMBER"):
        help = "a group or a tuple has at least one expression"
        return _one("E0127", "there is nothing in these brackets", token, help=help)
    return None


def _new_row(stop: Stop) -> Diagnostic | None:
    """A row that begins inside brackets with something that cannot follow: one was not closed."""
    token, opener = stop.token, stop.token.opener
    if opener is None or not token.first or stop.accepts("NUMBER") or token.text in CLOSES:
        return None
    closer = CLOSER[opener.text]
    message = f"this `{opener.text}` is not closed before line {token.line}"
    label = Label(token.span, f"expected `,` or `{closer}` before this")
    help = f"add `{closer}` at the end of line {stop.tokens[stop.at - 1].end_line}"
    return _one("E0110", message, opener, help=help, labels=(label,))


def _brace(stop: Stop) -> Diagnostic | None:
    if stop.token.type not in ("LBRACE", "RBRACE"):
        return None
    if stop.tokens[stop.at - 1].type in ("RPAR", "COLON") or stop.after is None:
        message = "blocks have no braces"
        return _one("E0116", message, stop.token, help="end the line with `:` and indent the block")
    message = "there are no dictionaries or sets"
    help = 'braces stand only in `weights("slot", rename={"norm": "bn"})`'
    return _one("E0116", message, stop.token, help=help)


# ---- words ------------------------------------------------------------------------------------

# Words that a program may well want as a name; the others are better explained by what they do.
_NAMELIKE = frozenset(
    """ADJOINT CONST EDITION EXPORT EXTERN FROM IMPORT INOUT MODULE PARAM PROBE SPECIALIZE STATE
    TEST WHEN AS ASSERT PASS""".split()
)
_BINDING = frozenset(("EQUAL", "ASSIGN", "DOT", "COMMA", "LSQB", "RPAR", "RSQB", "MD", "CMP"))


def _reserved(stop: Stop) -> Diagnostic | None:
    token, before, after = stop.token, stop.before, stop.after
    only_name = stop.accepts("NAME") and not stop.accepts("NUMBER")
    if token.text in KEYWORDS and (only_name or _as_name(stop)):
        return _reserved_word(token)
    if before is not None and before.type in _NAMELIKE and stop.at == 1:
        if token.type in _BINDING or (token.type == "LPAR" and before.type != "IMPORT"):
            return _reserved_word(before)
    if stop.at == 0 and token.type in _NAMELIKE and after and after.type in _BINDING:
        return _reserved_word(token)
    if token.type in ("EQUAL", "ASSIGN") and before and before.type in ("TRUE", "FALSE", "NONE"):
        return _reserved_word(before)
    return None


def _as_name(stop: Stop) -> bool:
    return stop.accepts("NAME") and stop.token.type in _NAMELIKE and stop.at > 0


def _reserved_word(token: Token) -> Diagnostic:
    message = f"`{token.text}` is a word of the language and cannot be a name"
    return _one("E0113", message, token, help=f"choose another name, for example `{token.text}_`")


def _else_if(stop: Stop) -> Diagnostic | None:
    before = stop.before
    if stop.token.type == "IF" and before and before.type == "ELSE" and stop.at == 1:
        both = before.span.to(stop.token.span)
        return Diagnostic("E0116", "`else if` is one word", both, help="write `elif`")
    word = stop.tokens[0]
    if word.text in ("elseif", "elsif") and stop.at == 1:
        return _one("E0116", f"`{word.text}` is no word of the language", word, help="write `elif`")
    return None


_OTHER_DEFS = {
    **dict.fromkeys(("function", "func", "fn", "fun", "proc", "sub"), "def"),
    **dict.fromkeys(("struct", "layer", "network", "model", "record", "object"), "module"),
    **dict.fromkeys(("parameter", "weight", "Parameter"), "param"),
    **dict.fromkeys(("buffer", "register_buffer"), "state"),
    **dict.fromkeys(("constant", "define"), "const"),
    **dict.fromkeys(("foreach", "forall"), "for"),
}


def _other_word(stop: Stop) -> Diagnostic | None:
    """`function f(x)`, `let x = 1`: a first word that other languages have."""
    word, at = stop.tokens[0], 0 if stop.situation.place == "file" else 1
    if word.type != "NAME" or stop.at != at or len(stop.tokens) < 2:
        return None
    if stop.tokens[1].type != "NAME":
        return None
    if word.text in ("let", "var", "val", "auto", "mut"):
        help = f"write `{stop.tokens[1].text} = ...`"
        if stop.situation.place == "file":
            help = f"write `const {stop.tokens[1].text} = ...`"
        return _one("E0116", "names are not declared before their use", word, help=help)
    if word.text in _OTHER_DEFS:
        message = f"`{word.text}` is no word of the language"
        return _one("E0116", message, word, help=f"write `{_OTHER_DEFS[word.text]}`")
    return None


# ---- signs ------------------------------------------------------------------------------------


def _equals(stop: Stop) -> Diagnostic | None:
    token = stop.token
    if token.type != "EQUAL":
        return None
    before = stop.tokens[: stop.at]
    if stop.head in ("IF", "ELIF", "WHILE", "ASSERT") or _open_if(before):
        return _one("E0114", "`=` defines, it does not compare", token, help="compare with `==`")
    if token.opener is None and any(t.type == "EQUAL" and t.opener is None for t in before):
        message = "a statement has one `=`"
        return _one("E0100", message, token, help="write two statements on two lines")
    return None


def _open_if(before: list[Token]) -> bool:
    """Whether a condition `... if` has begun and its `else` has not come yet."""
    words = [t.type for t in before if t.type in ("IF", "ELSE")]
    return words[-1:] == ["IF"]


def _update_inside(stop: Stop) -> Diagnostic | None:
    token = stop.token
    if token.type != "ASSIGN":
        return None
    if token.opener is None and not any(t.type == "EQUAL" for t in stop.tokens[: stop.at]):
        return None
    help = "write storage on a line of its own: `x := ...`"
    return _one("E0121", "`:=` is a statement, not part of an expression", token, help=help)


def _bang(stop: Stop) -> Diagnostic | None:
    token, before = stop.token, stop.before
    if token.type == "BANG" and stop.accepts("NUMBER"):
        return _one("E0115", "there is no operator `!`", token, help="write `not`")
    if before is not None and before.type == "BANG":
        help = "`f!(x)` calls f and lets it write its state; unequal is `!=`"
        return _one("E0100", "after `!` comes the list of arguments", token, help=help)
    return None


def _increment(stop: Stop) -> Diagnostic | None:
    at = stop.at
    if stop.token.type != "_NL" or at < 3 or stop.tokens[at - 1].text not in ("+", "-"):
        return None
    first, second = stop.tokens[at - 2], stop.tokens[at - 1]
    if first.text != second.text or stop.tokens[at - 3].type not in ("NAME", "RSQB"):
        return None
    target = stop.tokens[0].span.to(stop.tokens[at - 3].span).text
    both = first.span.to(second.span)
    help = f"write `{target} = {target} {first.text} 1`"
    return Diagnostic("E0115", f"there is no `{first.text * 2}`", both, help=help)


def _semicolon(stop: Stop) -> Diagnostic | None:
    if stop.token.type != "SEMICOLON":
        return None
    help = "begin a new line; `;` stands only in `adjoint f(inputs; outputs, doutputs)`"
    return _one("E0100", "a line holds one statement", stop.token, help=help)


# ---- definitions ------------------------------------------------------------------------------


def _colon(stop: Stop) -> Diagnostic | None:
    if stop.token.type != "_NL" or not stop.situation.opens_block or not stop.accepts("COLON"):
        return None
    what = "the line that opens a block"
    help = "end the line with `:`"
    if stop.head == "DEF":
        help += ", or give the result: `= e`"
    return _one("E0109", f"`:` is missing at the end of {what}", stop.token, "expected `:`", help)


def _untyped(stop: Stop) -> Diagnostic | None:
    before, opener = stop.before, stop.token.opener
    if before is None or before.type != "NAME" or opener is None or not stop.accepts("COLON"):
        return None
    if stop.head not in ("DEF", "EXTERN") or stop.token.text not in (",", ")", "=", "_NL"):
        return None
    if stop.tokens[stop.tokens.index(opener) - 2].type != "DEF":
        return None
    message = f"the argument `{before.text}` has no type"
    help = "every argument is declared with its shape: "
    return _one("E0117", message, before, help=help + f"`{before.text}: real[B, 10]`")


def _missing_type(stop: Stop) -> Diagnostic | None:
    before = stop.before
    if before is None:
        return None
    wants_type = stop.accepts("NAME") and stop.accepts("LPAR") and not stop.accepts("NUMBER")
    if before.type in ("ARROW", "COLON") and wants_type:
        message = f"a type is missing after `{before.text}`"
        found = f"expected a type, found {_called(stop.token)}"
        return _one("E0118", message, stop.token, found, "for example `real[B, 10]` or `f32`")
    if stop.head in ("PARAM", "STATE") and stop.at == 2 and before.type == "NAME":
        word = stop.tokens[0].text
        message = f"the {word} `{before.text}` has no type"
        return _one("E0118", message, before, help=f"for example `{word} {before.text}: real[D]`")
    return None


# ---- places -----------------------------------------------------------------------------------

_HEADERS = frozenset("DEF MODULE FOR IF ELIF ELSE WHILE TEST ADJOINT".split())
_DECLARATIONS = frozenset(
    "MODULE DEF EXTERN ADJOINT TEST CONST SPECIALIZE FROM IMPORT EDITION EXPORT".split()
)
_STATEMENTS = frozenset("FOR IF WHILE RETURN YIELD ASSERT PROBE".split())


def _place(stop: Stop) -> Diagnostic | None:
    """The first word does not fit where the line stands."""
    token, place = stop.token, stop.situation.place
    if stop.at == 1 and stop.tokens[0].type == "EXPORT":
        return _one("E0123", "`export` stands before `def`", token, help="export def f(x: f32[B])")
    if token.type in ("ELSE", "ELIF") and stop.at == 0:
        message = f"this `{token.text}` has no `if` before it"
        return _one("E0125", message, token, help="align it with the `if` it belongs to")
    if token.type in ("PARAM", "STATE") and stop.at == 0:
        message = f"`{token.text}` is declared in the body of a module"
        help = "move it to a module" if place == "file" else "move it out of the function"
        return _one("E0123", message, token, help=help)
    match place:
        case "file":
            return _in_file(stop)
        case "module":
            return _in_module(stop)
        case _:
            return _in_function(stop)


def _in_file(stop: Stop) -> Diagnostic | None:
    token, after = stop.token, stop.after
    if stop.at:
        return None
    if token.type == "RETURN":
        return _outside_function(token)
    if token.type == "YIELD":
        return _outside_loop(token)
    if token.type == "NAME" and after and after.type == "EQUAL":
        help = f"a constant is `const {token.text} = ...`; steps belong in a function"
        return _one("E0123", "a file holds declarations, not statements", token, help=help)
    if token.type in ("NAME", "PASS") or token.type in _STATEMENTS:
        help = "move it into a function: `def f(x: real[B]) -> real[B]:`"
        return _one("E0123", "a file holds declarations, not statements", token, help=help)
    return None


def _in_module(stop: Stop) -> Diagnostic | None:
    token, first = stop.token, stop.tokens[0]
    if len(stop.situation.open) != 1:
        return None
    if stop.at == 0 and token.type in _DECLARATIONS:
        message = f"`{token.text}` does not stand in a module"
        return _one("E0123", message, token, help="move it to the outermost level of the file")
    if stop.at == 0 and token.type == "IF":
        help = "choose in the value, `[...] if c else []`, or end a `param` with `when c`"
        return _one("E0123", "a module's members do not stand under `if`", token, help=help)
    if stop.at == 0 and token.type in _STATEMENTS:
        message = f"a module's body holds declarations, and `{token.text}` is a statement"
        return _one("E0123", message, token, help="move it into `def forward(...)`")
    if first.type != "NAME" or stop.at != 1:
        return None
    if token.type == "COLON":
        help = f"write `param {first.text}: ...` (trained) or `state {first.text}: ...` (saved)"
        return _one("E0123", "a member with a type says what it is", first, help=help)
    if token.type in ("COMMA", "LPAR", "LSQB", "ASSIGN", "DOT", "BANG", "_NL"):
        help = "a member is `name = Module(...)`; steps belong in `def forward(...)`"
        return _one("E0123", "a module's body holds declarations", token, help=help)
    return None


def _in_function(stop: Stop) -> Diagnostic | None:
    token, first = stop.token, stop.tokens[0]
    if stop.at == 0 and token.type in ("DEF", "EXPORT", "MODULE"):
        kind = "module" if token.type == "MODULE" else "function"
        message = f"a {kind} cannot be defined inside a function"
        return _one("E0123", message, token, help="move it out; functions have no closures")
    if stop.at == 0 and token.type in _DECLARATIONS:
        message = f"`{token.text}` does not stand in a function"
        return _one("E0123", message, token, help="move it to the outermost level of the file")
    if stop.at == 1 and first.type == "NAME" and token.type == "COLON":
        help = f"the type follows from the value: `{first.text} = ...`"
        return _one("E0100", "a variable is not declared with a type", token, help=help)
    return None


def _outside_function(token: Token) -> Diagnostic:
    help = "only the body of a `def` or `adjoint` returns"
    return _one("E0119", "`return` outside a function", token, help=help)


def _outside_loop(token: Token) -> Diagnostic:
    help = "name what the loop collects: `ys = for t in T:`"
    return _one("E0120", "`yield` outside a loop that collects", token, help=help)


def _collects(line: Line) -> bool:
    """Whether the line is `ys = for ...:`."""
    kinds = [t.type for t in line.tokens if t.opener is None]
    return any(a == "EQUAL" and b == "FOR" for a, b in zip(kinds, kinds[1:], strict=False))


# ---- blocks -----------------------------------------------------------------------------------


def missing_block(header: Line, token: Token) -> Diagnostic:
    """After `header` a block must come, and `token` is not indented."""
    last = header.tokens[-2]
    help = "indent the lines of the block by 4 spaces; an empty block is `pass`"
    return _one("E0108", "after this line an indented block must come", last, help=help)


def _unexpected_indentation(situation: Situation) -> Diagnostic:
    token = situation.line.tokens[0]
    help = "begin the line where the line before begins"
    return _one("E0107", "this line is indented, but no block is open here", token, help=help)


# ---- the general case -------------------------------------------------------------------------

_SIGNS = {
    "COMMA": "`,`", "RPAR": "`)`", "RSQB": "`]`", "RBRACE": "`}`", "COLON": "`:`",
    "EQUAL": "`=`", "SEMICOLON": "`;`", "ARROW": "`->`", "IN": "`in`", "IMPORT": "`import`",
    "ELSE": "`else`", "DEF": "`def`", "_NL": "the end of the line",
}  # fmt: skip


def _generic(stop: Stop) -> Diagnostic:
    token, expected = stop.token, _expected(stop.accepts)
    message = f"expected {expected}, found {_called(token)}"
    help = None
    before = stop.before
    if before is not None and before.text in (",", "(") and token.text == ",":
        help = "one comma is enough"
    elif before is not None and before.type in ("NAME", "NUMBER", "RPAR") and token.type in (
        "NAME", "NUMBER", "STRING",
    ):  # fmt: skip
        help = "two values need an operator or a comma between them"
    elif token.type == "_NL" and stop.accepts("NUMBER"):
        help = "complete the line; it goes on after an operator if the next line is indented deeper"
    return _one("E0100", message, token, help=help)


def _called(token: Token) -> str:
    return "the end of the line" if token.type == "_NL" else f"`{token.text}`"


def _expected(accepts: Accepts) -> str:
    """What the parser would have taken, in a reader's words."""
    parts = []
    if accepts("MODULE"):
        parts.append("a declaration")
    elif accepts("PARAM"):
        parts.append("a member of the module")
    elif accepts("RETURN"):
        parts.append("a statement")
    elif accepts("NUMBER") and accepts("LPAR"):
        parts.append("an expression")
    elif accepts("NAME"):
        parts.append("a type" if accepts("LPAR") else "a name")
    elif accepts("STRING"):
        parts.append('a text between `"`')
    elif accepts("NUMBER"):
        parts.append("a number")
    elif accepts("CMP") and accepts("PM"):
        parts.append("an operator")
    parts += [words for type, words in _SIGNS.items() if accepts(type)]
    parts = parts[:5]
    if len(parts) < 2:
        return "".join(parts) or "nothing more"
    return ", ".join(parts[:-1]) + " or " + parts[-1]


_RULES: tuple[Callable[[Stop], Diagnostic | None], ...] = (
    _faulty, _else_if, _other_word, _untyped, _missing_type, _closing, _new_row, _reserved, _place,
    _equals, _update_inside, _bang, _increment, _semicolon, _brace, _colon,
)  # fmt: skip
