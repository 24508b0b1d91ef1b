"""Messages for what no grammar rule takes: characters, quotes, and signs of other languages."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from re import compile as pattern

from nnc.diagnostics import Diagnostic, Source, Span
from nnc.lang.layout import CLOSER, NESTING_LIMIT, STATEMENT_LIMIT, Token
from nnc.lang.stop import Stop, one, reserved_word

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
        return one("E0101", f"{_char_name(char)} is not an ordinary space", token, help=help)
    message = f"`{char}` ({_char_name(char)}) has no place here"
    if meant is not None:
        return one("E0101", message, token, help=f"write `{meant}`")
    help = "names are made of a to z, A to Z, digits and `_`"
    words = unicodedata.name(char, "").split()
    if words[:1] == ["GREEK"] and "LETTER" in words:
        spelled = words[words.index("LETTER") + 1].lower()
        help += f": write `{spelled if 'SMALL' in words else spelled.capitalize()}`"
    return one("E0101", message, token, help=help)


# ---- tokens that no rule of the grammar takes -------------------------------------------------

_OPERATOR_HELP = {
    "^": "powers are written `**`: `x**2`; exclusive or of integers is `bitxor(a, b)`",
    "&&": "write `and`", "||": "write `or`",
    "&": "write `and`; for the bits of integers `bitand(a, b)`",
    "|": "write `or`; for the bits of integers `bitor(a, b)`",
    "~": "write `not`", "<<": "for the bits of integers `shl(a, n)`",
    ">>": "for the bits of integers `shr(a, n)`", "<>": "write `!=`", "===": "write `==`",
    "!==": "write `!=`", "=>": "a result type comes after `->`; at least is `>=`",
    "?": "a choice reads `a if c else b`; any size has a name",
    "$": "names are made of letters, digits and `_`",
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


def faulty(stop: Stop) -> Diagnostic | None:
    token = stop.token
    match token.type:
        case "FOREIGN" if token.text in ("class", "self"):
            return _class(stop) if token.text == "class" else _self(stop)
        case "FOREIGN" if token.text in _WORD_HELP:
            if _defined(stop) or token.text in _named(stop):
                return reserved_word(token.text, token.span)
            message, help = _WORD_HELP[token.text]
            if token.text == "is" and stop.rest.removeprefix("not ").startswith("None"):
                help = "every argument is there: delete the question"
            once = ("foreign", token.source.name, message) if token.text in _EXCEPTIONS else ()
            return replace(one("E0116", message, token, help=help), once=once)
        case "FOREIGN" if token.text in _OPERATOR_HELP:
            message = f"there is no operator `{token.text}`"
            return one("E0115", message, token, help=_OPERATOR_HELP[token.text])
        case "FOREIGN":
            return _augmented(stop)
        case "BADCHAR":
            return _bad_character(token)
        case "BADNUMBER":
            return _bad_number(token)
        case "UNTERMINATED":
            help = 'a text is one line between two `"`'
            return one("E0103", 'this text has no closing `"`', token, help=help)
        case "SINGLE":
            inside = token.text.strip("'")
            return one("E0103", 'texts stand between `"`', token, help=f'write `"{inside}"`')
        case "TRIPLE":
            help = 'a description is one line between two `"`; longer ones are comments: `# ...`'
            return one("E0103", 'there are no texts in `"""`', token, help=help)
        case "UNCLOSED":
            return _unclosed(stop, token)
        case "TOOLONG":
            message = f"this statement has more than {STATEMENT_LIMIT} words and signs"
            return one("E0128", message, token, help="write it as several statements")
        case "TOODEEP":
            message = f"nested more than {NESTING_LIMIT} deep"
            return one("E0112", message, token, help="name a part of it: `part = ...`")
    return None


_EXCEPTIONS = ("try", "except", "finally")


def _defined(stop: Stop) -> bool:
    """Whether the word stands where a name is defined: `lambda = 0.1`."""
    return stop.at == 0 and stop.rest[:1] == "=" and stop.rest[:2] != "=="


def _named(stop: Stop) -> set[str]:
    """Words of other languages that an earlier line of the file took for a name."""
    rows = stop.token.source.lines[: stop.token.line - 1]
    return {m.group(1) for row in rows if (m := _ASSIGNED.match(row))}


_ASSIGNED = pattern(r"\s*([a-z]+)\s*=[^=]")


def habit(stop: Stop) -> Diagnostic | None:
    """Decorators, formatted texts, comments and ranges of other languages."""
    token, before, after = stop.token, stop.before, stop.after
    if token.text == "@" and stop.at == 0:
        help = "delete the line; `export` stands before `def`"
        return one("E0116", "there are no decorators", token, help=help)
    if token.text == "//" and stop.at == 0:
        help = "a remark begins with `#`"
        return one("E0115", "`//` is the quotient of integers", token, help=help)
    if token.type == "STRING" and before is not None and before.text in ("f", "r", "b", "F"):
        help = f"texts are not put together; a plain one is `{token.text}`"
        return one("E0116", "there are no formatted texts", before, help=help)
    if stop.head != "FOR" or token.opener is not None or stop.at < 4 or before is None:
        return None
    end = after if token.text in ("..", "...") else before
    colons = [t for t in stop.tokens[: stop.at] if t.type == "COLON" and t.opener is None]
    if end is None or (end is before and not (colons and token.type == "COLON")):
        return None
    sign = token if end is after else colons[0]
    help = f"a size counts by itself, from 0: `for {stop.tokens[1].text} in {end.text}:`"
    return one("E0116", "there are no ranges", sign, help=help)


def _class(stop: Stop) -> Diagnostic:
    name = stop.rest.split("(")[0].split(":")[0].strip()
    help = f"a network is `module {name if name.isidentifier() else 'Net'}(D):`"
    return one("E0116", "there are no classes", stop.token, help=help)


def _self(stop: Stop) -> Diagnostic:
    member = _MEMBER.match(stop.rest)
    if member:
        help = f"members are in scope: write `{member.group(1)}`"
    else:
        help = (
            "members are in scope; declare the other arguments only: `def forward(x: real[B, D])`"
        )
    return one("E0116", "there is no `self`", stop.token, help=help)


_MEMBER = pattern(r"\.\s*([A-Za-z_]\w*)")


def _augmented(stop: Stop) -> Diagnostic:
    token = stop.token
    op = token.text[:-1]
    target = stop.tokens[0].span.to(stop.tokens[stop.at - 1].span).text if stop.at else "x"
    sign = "=" if stop.at < 2 else ":="
    value = stop.rest.split("#")[0].strip()
    plain = value and "`" not in value and (op in "+-" or value.replace(".", "").isalnum())
    help = f"write `{target} {sign} {target} {op} {value if plain else '...'}`"
    return one("E0115", f"there is no `{token.text}`", token, help=help)


def _bad_number(token: Token) -> Diagnostic:
    text = token.text
    if len(text) > 400:
        return one("E0104", "this number is too long", token, help="write it as `1e9`")
    if text[:2].lower() in ("0x", "0b", "0o") and text[2:].isalnum():
        try:
            help = f"write {int(text, 0)}"
        except ValueError:
            help = "numbers are decimal"
        return one("E0104", "numbers are decimal", token, help=help)
    if text.replace("_", "").replace(".", "").lower().lstrip("0123456789")[:1] == "e":
        message = "this number is larger than any float, or its exponent is incomplete"
        return one("E0104", message, token, help="a float is below 1.8e308; `inf` is infinity")
    help = "a name begins with a letter; a product needs `*`"
    return one("E0104", f"`{text}` is neither a number nor a name", token, help=help)


def _unclosed(stop: Stop, bracket: Token) -> Diagnostic:
    message = f"this `{bracket.text}` is never closed"
    help = f"add the `{CLOSER[bracket.text]}`"
    return one("E0110", message, bracket, help=help)
