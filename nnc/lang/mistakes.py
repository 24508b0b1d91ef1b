"""What a line that does not parse was probably meant to be.

`explain` asks the rules in `_RULES` one after the other; the first that knows the mistake words
the message.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches

from nnc.diagnostics import Diagnostic, Label
from nnc.lang.foreign import faulty, habit
from nnc.lang.layout import CLOSER, CLOSES, KEYWORDS, OPERAND_ENDS, Line, Token, words
from nnc.lang.misplaced import misplaced
from nnc.lang.stop import (
    DECLARATIONS,
    HEADERS,
    STATEMENTS,
    Accepts,
    Situation,
    Stop,
    one,
    reserved_word,
)
from nnc.lang.unexpected import generic, shown


def explain(situation: Situation, at: int, accepts: Accepts) -> Diagnostic:
    """The message for the token `at` of a line; an index of -1: the line's indentation."""
    if at < 0:
        return _unexpected_indentation(situation)
    stop = Stop(situation, at, accepts)
    for rule in _RULES:
        found = rule(stop)
        if found is not None:
            return found
    return generic(stop)


# ---- brackets ---------------------------------------------------------------------------------


def _closing(stop: Stop) -> Diagnostic | None:
    token, opener = stop.token, stop.token.opener
    if token.text not in CLOSES:
        return None
    if opener is None and token.text == "}" and stop.at == 0:
        return _brace(stop)
    if opener is None:
        message = f"this `{token.text}` closes nothing"
        return one("E0111", message, token, help="delete it, or add the opening bracket before")
    if opener.text != CLOSES[token.text]:
        closer = CLOSER[opener.text]
        message = f"`{token.text}` cannot close the `{opener.text}` of line {opener.line}"
        label = Label(opener.span, "opened here")
        return one("E0111", message, token, f"expected `{closer}`", f"write `{closer}`", (label,))
    if stop.before is opener and opener.text == "(" and stop.accepts("NUMBER"):
        help = "a group or a tuple has at least one expression"
        return one("E0127", "there is nothing in these brackets", token, help=help)
    return None


def _new_row(stop: Stop) -> Diagnostic | None:
    """A row that begins inside brackets with something that cannot follow: one was not closed."""
    token, opener = stop.token, stop.token.opener
    if opener is None or not token.first or stop.accepts("NUMBER") or token.text in CLOSES:
        return None
    closer = CLOSER[opener.text]
    if any(t.text == closer and t.opener is opener for t in stop.tokens[stop.at :]):
        message = f"expected `,`, `{closer}` or an operator before this"
        help = f"end line {stop.tokens[stop.at - 1].end_line} with a comma or an operator"
        return one("E0100", message, token, help=help)
    message = f"this `{opener.text}` is not closed before line {token.line}"
    label = Label(token.span, f"expected `,` or `{closer}` before this")
    help = f"add `{closer}` at the end of line {stop.tokens[stop.at - 1].end_line}"
    return one("E0110", message, opener, help=help, labels=(label,))


def _brace(stop: Stop) -> Diagnostic | None:
    if stop.token.type not in ("LBRACE", "RBRACE"):
        return None
    once = ("braces", stop.token.source.name)
    alone = stop.at == 0 or stop.tokens[stop.at + 1].type == "_NL"
    if alone or (stop.situation.opens_block and stop.token.opener is None):
        message = "blocks have no braces"
        wrong = one("E0116", message, stop.token, help="end the line with `:` and indent the block")
        return replace(wrong, once=once)
    message = "there are no dictionaries or sets"
    help = 'braces stand only in `weights("slot", rename={"norm": "bn"})`'
    return one("E0116", message, stop.token, help=help)


# ---- words ------------------------------------------------------------------------------------

# Words that a program may well want as a name; the others are better explained by what they do.
_NAMELIKE = words(
    """ADJOINT AS ASSERT CONST EDITION EXPORT EXTERN FROM IMPORT INOUT MODULE PARAM PASS PROBE
    SPECIALIZE STATE TEST WHEN"""
)
_BINDING = words("EQUAL ASSIGN DOT COMMA LSQB RPAR RSQB MD CMP")


def _reserved(stop: Stop) -> Diagnostic | None:
    token, before, after = stop.token, stop.before, stop.after
    if stop.at == 0 or before is None:
        binds = after is not None and after.type in _BINDING | {"COLON"}
        return reserved_word(token.text, token.span) if token.type in _NAMELIKE and binds else None
    only_name = stop.accepts("NAME") and not stop.accepts("NUMBER") and before.type != "COMMA"
    if token.type in _NAMELIKE and stop.accepts("NAME"):
        return reserved_word(token.text, token.span)
    if token.text in KEYWORDS and only_name:
        return reserved_word(token.text, token.span)
    if token.text in KEYWORDS and token.text == "in" and before.text in ("(", ","):
        return reserved_word(token.text, token.span)
    if token.type == "COLON" and before.type in ("PARAM", "STATE"):
        help = f"it has a name of its own: `{before.text} x: real[D] = 0`"
        wrong = one("E0100", f"`{before.text}` is followed by a name", token, help=help)
        return replace(wrong, once=("reserved", token.source.name, before.text))
    called = token.type == "LPAR" and before.type != "IMPORT"
    if before.type in ("FROM", "IMPORT") and token.type == "DOT":
        help = "a file beside this one is imported by its name: `from gpt2 import GPT2`"
        return one("E0116", "imports have no leading dots", token, help=help)
    if before.type in _NAMELIKE and stop.at == 1 and (token.type in _BINDING or called):
        return reserved_word(before.text, before.span)
    return None


def _else_if(stop: Stop) -> Diagnostic | None:
    before = stop.before
    if stop.token.type == "IF" and before and before.type == "ELSE" and stop.at == 1:
        both = before.span.to(stop.token.span)
        return Diagnostic("E0116", "`else if` is one word", both, help="write `elif`")
    word = stop.tokens[0]
    if word.text in ("elseif", "elsif") and stop.at == 1:
        message = f"`{word.text}` is no word of the language"
        wrong = one("E0116", message, word, help="write `elif`")
        return replace(wrong, once=("elseif", word.source.name))
    return None


_OTHER_DEFS = {
    **dict.fromkeys(("function", "func", "fn", "fun", "proc", "sub"), "def"),
    **dict.fromkeys(("struct", "layer", "network", "model", "record", "object"), "module"),
    **dict.fromkeys(("parameter", "weight", "Parameter"), "param"),
    **dict.fromkeys(("buffer", "register_buffer"), "state"),
    **dict.fromkeys(("constant", "define"), "const"),
    **dict.fromkeys(("foreach", "forall"), "for"),
}


_FIRST = HEADERS | DECLARATIONS | STATEMENTS | {"PARAM", "STATE"}
_FIRST_WORDS = sorted(type.lower() for type in _FIRST)


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
        return one("E0116", "names are not declared before their use", word, help=help)
    if word.text in ("match", "switch", "case", "select"):
        help = "a choice is `if c: ... elif d: ... else: ...`"
        return one("E0116", f"there is no `{word.text}`", word, help=help)
    if word.text == "print":
        help = f"`probe {stop.tokens[1].text}` makes a value visible from outside"
        return one("E0116", "programs do not print", word, help=help)
    close = get_close_matches(word.text, _FIRST_WORDS, 1, 0.75)
    if close:
        message = f"`{word.text}` is no word of the language"
        return one("E0100", message, word, help=f"did you mean `{close[0]}`?")
    if word.text in _OTHER_DEFS:
        message = f"`{word.text}` is no word of the language"
        return one("E0116", message, word, help=f"write `{_OTHER_DEFS[word.text]}`")
    return None


# ---- signs ------------------------------------------------------------------------------------


def _equals(stop: Stop) -> Diagnostic | None:
    token = stop.token
    if token.type != "EQUAL":
        return None
    before = stop.tokens[: stop.at]
    if token.opener and token.opener.text == "(" and before[-1].type in OPERAND_ENDS:
        called = stop.tokens.index(token.opener)
        if called and stop.tokens[called - 1].type in OPERAND_ENDS:
            help = "an argument is named by a single word: `f(name=value)`"
            return one("E0100", "`=` comes after the name of an argument", token, help=help)
        return one("E0114", "`=` defines, it does not compare", token, help="compare with `==`")
    if stop.head in ("IF", "ELIF", "WHILE", "ASSERT") or _open_if(before):
        return one("E0114", "`=` defines, it does not compare", token, help="compare with `==`")
    if token.opener is None and any(t.type == "EQUAL" and t.opener is None for t in before):
        message = "a statement has one `=`"
        return one("E0100", message, token, help="write two statements on two lines")
    return None


def _open_if(before: list[Token]) -> bool:
    """Whether a condition `... if` has begun and its `else` has not come yet."""
    words = [t.type for t in before if t.type in ("IF", "ELSE")]
    return words[-1:] == ["IF"]


def _update_inside(stop: Stop) -> Diagnostic | None:
    token = stop.token
    if token.type != "ASSIGN":
        return None
    earlier = any(t.type in ("EQUAL", "ASSIGN") for t in stop.tokens[: stop.at])
    if token.opener is None and not earlier:
        return None
    help = "write storage on a line of its own: `x := ...`"
    return one("E0121", "`:=` is a statement, not part of an expression", token, help=help)


def _bang(stop: Stop) -> Diagnostic | None:
    token, before = stop.token, stop.before
    if token.type == "BANG" and stop.accepts("NUMBER"):
        return one("E0115", "there is no operator `!`", token, help="write `not`")
    if before is not None and before.type == "BANG":
        help = "`f!(x)` calls f and lets it write its state; unequal is `!=`"
        return one("E0100", "after `!` comes the list of arguments", token, help=help)
    return None


def _increment(stop: Stop) -> Diagnostic | None:
    at = stop.at
    if stop.token.type != "_NL" or at < 3 or stop.tokens[at - 1].text not in ("+", "-"):
        return None
    if any(t.type == "EQUAL" for t in stop.tokens[:at]):
        return None
    first, second = stop.tokens[at - 2], stop.tokens[at - 1]
    if first.text != second.text or stop.tokens[at - 3].type not in ("NAME", "RSQB"):
        return None
    target = stop.tokens[0].span.to(stop.tokens[at - 3].span).text
    both = first.span.to(second.span)
    help = f"write `{target} = {target} {first.text} 1`"
    return Diagnostic("E0115", f"there is no `{first.text * 2}`", both, help=help)


def _semicolon(stop: Stop) -> Diagnostic | None:
    if stop.head == "ADJOINT" and stop.accepts("SEMICOLON"):
        help = "the inputs, then the outputs and their gradients: `adjoint f(x; y, dy):`"
        return one("E0100", "`;` is missing after the inputs", stop.token, help=help)
    if stop.token.type != "SEMICOLON":
        return None
    help = "begin a new line; `;` stands only in `adjoint f(inputs; outputs, doutputs)`"
    return one("E0100", "a line holds one statement", stop.token, help=help)


def _no_else(stop: Stop) -> Diagnostic | None:
    if not stop.accepts("ELSE") or not _open_if(stop.tokens[1 : stop.at]):
        return None
    opener = stop.token.opener
    if opener and any(t.type == "FOR" and t.opener is opener for t in stop.tokens[: stop.at]):
        message = "a list built by `for` has no condition"
        return one("E0100", message, stop.token, help="choose the whole list: `[...] if c else []`")
    help = "a choice has both sides: `a if c else b`"
    if stop.head in ("PARAM", "STATE"):
        help += "; a param that may be missing ends in `when c`"
    return one("E0100", f"expected `else`, found {shown(stop.token)}", stop.token, help=help)


# ---- definitions ------------------------------------------------------------------------------


def _colon(stop: Stop) -> Diagnostic | None:
    if stop.token.type != "_NL" or not stop.situation.opens_block or not stop.accepts("COLON"):
        return None
    help = "end the line with `:`"
    if stop.head == "DEF":
        help += ", or give the result: `= e`"
    return one("E0109", "`:` is missing at the end of this line", stop.token, help=help)


def _where(stop: Stop) -> Diagnostic | None:
    """A clause after `where` is a comparison or a definition."""
    words = [t.type for t in stop.tokens[: stop.at] if t.opener is None]
    if stop.head not in ("DEF", "EXTERN") or "WHERE" not in words or stop.token.opener:
        return None
    message = f"a `where` clause does not go on with {shown(stop.token)}"
    help = "it compares or defines, with commas between: `where P + T <= S, Y = X//2`"
    return one("E0100", message, stop.token, help=help)


def _import(stop: Stop) -> Diagnostic | None:
    if stop.head not in ("FROM", "IMPORT") or stop.token.text not in ("*", "") or stop.at < 2:
        return None
    help = "name what you use: `from std.nn import Linear, relu`"
    return one("E0100", f"expected a name, found {shown(stop.token)}", stop.token, help=help)


def _untyped(stop: Stop) -> Diagnostic | None:
    before, opener = stop.before, stop.token.opener
    if before is None or before.type != "NAME" or opener is None or not stop.accepts("COLON"):
        return None
    if stop.head not in ("DEF", "EXTERN") or stop.token.text not in (",", ")", "=", "_NL"):
        return None
    if stop.tokens[stop.tokens.index(opener) - 2].type != "DEF":
        return None
    message = f"the argument `{before.text}` has no type"
    help = f"every argument is declared with its shape: `{before.text}: real[B, 10]`"
    if stop.token.text == "=":
        help = f"a number is declared `{before.text}: real = ...`"
    return one("E0117", message, before, help=help)


def _missing_type(stop: Stop) -> Diagnostic | None:
    before = stop.before
    if before is None:
        return None
    wants_type = stop.accepts("NAME") and stop.accepts("LPAR") and not stop.accepts("NUMBER")
    if before.type in ("ARROW", "COLON") and wants_type:
        message = f"a type is missing after `{before.text}`"
        found = f"expected a type, found {shown(stop.token)}"
        help = "for example `real[B, 10]` or `f32`"
        if before.type == "ARROW" and stop.token.text == "None":
            help = "a function without a result has no `->`"
        return one("E0118", message, stop.token, found, help)
    if stop.head in ("PARAM", "STATE") and stop.at == 2 and before.type == "NAME":
        word = stop.tokens[0].text
        message = f"the {word} `{before.text}` has no type"
        return one("E0118", message, before, help=f"for example `{word} {before.text}: real[D]`")
    return None


# ---- blocks -----------------------------------------------------------------------------------


def missing_block(header: Line, token: Token) -> Diagnostic:
    """After `header` a block must come, and `token` is not indented."""
    last = header.tokens[-2]
    help = "indent the lines of the block by 4 spaces; an empty block is `pass`"
    return one("E0108", "after this line an indented block must come", last, help=help)


def _unexpected_indentation(situation: Situation) -> Diagnostic:
    token = situation.line.tokens[0]
    help = "begin the line where the line before begins"
    return one("E0107", "this line is indented, but no block is open here", token, help=help)


_RULES: tuple[Callable[[Stop], Diagnostic | None], ...] = (
    faulty, habit, _else_if, _other_word, _untyped, _missing_type, _closing, _new_row, _reserved,
    misplaced, _equals, _update_inside, _bang, _increment, _semicolon, _brace, _colon, _no_else,
    _where, _import,
)  # fmt: skip
