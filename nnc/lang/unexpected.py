"""The general case of a line that does not parse: what was expected, what stands there."""

from __future__ import annotations

from nnc.diagnostics import Diagnostic
from nnc.lang.layout import OPERAND_ENDS, Token
from nnc.lang.stop import STATEMENTS, Accepts, Stop, one

_SIGNS = {
    "COMMA": "`,`", "RPAR": "`)`", "RSQB": "`]`", "RBRACE": "`}`", "COLON": "`:`",
    "EQUAL": "`=`", "SEMICOLON": "`;`", "ARROW": "`->`", "IN": "`in`", "IMPORT": "`import`",
    "ELSE": "`else`", "DEF": "`def`", "_NL": "the end of the line",
}  # fmt: skip


_REDUCING = {"sum", "max", "min", "mean", "prod", "any", "all", "argmax", "argmin", "logsumexp"}


def generic(stop: Stop) -> Diagnostic:
    message = f"expected {_expected(stop.accepts)}, found {shown(stop.token)}"
    return one("E0100", message, stop.token, help=_general_help(stop))


def _general_help(stop: Stop) -> str | None:
    token, before = stop.token, stop.before
    other = _other_syntax(stop)
    if other is not None:
        return other
    marked = token.type == "STRING" or (before is not None and before.text == "test")
    if stop.head == "ADJOINT" and marked:
        return 'one that is meant to differ says why: `adjoint f(x; y, dy) test "why":`'
    ends = before is not None and before.type in OPERAND_ENDS and stop.accepts("CMP")
    if before is not None and before.text == "," == token.text:
        return "one comma is enough"
    reduced = before is not None and before.opener is None and stop.at > 3
    names = [t.text for t in stop.tokens[: stop.at] if t.type == "NAME"]
    if before is not None and before.text == "]" and token.text == "else":
        return "the `else` of a read stands in its brackets: `x[i + 1 else 0]`"
    if reduced and before is not None and before.text == "]" and ends and set(names) & _REDUCING:
        return "what is reduced stands in brackets: `sum[i](x[i])`"
    if ends and token.type in ("NAME", "NUMBER", "STRING"):
        return "two values need an operator or a comma between them"
    if token.text == ":" and token.opener and token.opener.text == "[":
        return "slices have no steps; index it: `y[i:N//2] = x[2*i]`"
    if token.text in ("*", "**") and before is not None and before.text in ("(", ","):
        return "lists are not unpacked into arguments"
    if before is not None and before.text == ":" and token.type in STATEMENTS:
        return "begin a new line, indented deeper"
    if token.type == "NAME" and stop.accepts("STRING") and not stop.accepts("NUMBER"):
        dotted = stop.rest.split(" ")[0] if stop.rest.startswith(".") else ""
        return f'write `"{token.text}{dotted}"`'
    if token.type == "_NL" and stop.accepts("NUMBER"):
        return "complete the line; it goes on after an operator if the next line is indented deeper"
    return None


def _other_syntax(stop: Stop) -> str | None:
    """Results, generators, decimals, choices and remarks as other languages write them."""
    token, before, after = stop.token, stop.before, stop.after
    outer = [t.type for t in stop.tokens[: stop.at] if t.opener is None]
    if stop.head == "DEF" and token.text == "," and token.opener is None and "EQUAL" in outer:
        return "several values stand in brackets: `= (a, b)`"
    if stop.head == "DEF" and token.text == "," and token.opener is None and "ARROW" in outer:
        return "several results stand in brackets: `-> (real[B], real[B])`"
    if stop.head == "DEF" and token.type == "ARROW" and token.opener is not None:
        return f"close the `{token.opener.text}` before `->`"
    if stop.head == "DEF" and token.type == "COLON" and "COLON" in outer:
        return "the type of a result comes after `->`"
    if token.type == "FOR" and token.opener is not None and token.opener.text == "(":
        return "index notation goes over elements: `sum[i](x[i])`"
    if token.text == "," and "ELSE" in [t.type for t in stop.tokens if t.opener is token.opener]:
        return "`else` stands last, for all the indices: `x[i + 1, j - 1 else 0]`"
    numbers = before is not None and after is not None and before.type == after.type == "NUMBER"
    close = after is not None and (after.line, after.column) == (token.line, token.column + 1)
    if numbers and close and token.text == "," and before is not None and after is not None:
        return f"a decimal point: `{before.text}.{after.text}`"
    value = before is not None and before.type != "COLON" and stop.accepts("NUMBER")
    if token.type == "IF" and value:
        return "a choice reads `a if c else b`"
    if before is not None and before.text == "/" and token.text == "*":
        return "a remark begins with `#`"
    if token.type == "RETURN" and before is not None and before.type == "EQUAL":
        return "what follows `=` is the result: delete `return`"
    return None


def shown(token: Token) -> str:
    return "the end of the line" if token.type == "_NL" else f"`{token.text}`"


def _expected(accepts: Accepts) -> str:
    """What the parser would have taken, in a reader's words."""
    for word, what in (("MODULE", "declaration"), ("PARAM", "member"), ("RETURN", "statement")):
        if accepts(word):
            return f"a {what}"
    parts = []
    if accepts("NUMBER") and accepts("LPAR"):
        parts.append("an expression")
    elif accepts("NAME"):
        parts.append("a type" if accepts("LPAR") else "a name")
    elif accepts("STRING"):
        parts.append('a text between `"`')
    elif accepts("NUMBER"):
        parts.append("a number")
    elif accepts("CMP") and accepts("PM"):
        parts.append("an operator")
    if not parts and accepts("LPAR"):
        parts.append("`(`")
    parts += [words for type, words in _SIGNS.items() if accepts(type)]
    parts = parts[:5]
    if len(parts) < 2:
        return "".join(parts) or "nothing more"
    return ", ".join(parts[:-1]) + " or " + parts[-1]
