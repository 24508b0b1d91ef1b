"""A line that does not stand where such lines stand: file, module or function."""

from __future__ import annotations

from dataclasses import replace

from nnc.diagnostics import Diagnostic
from nnc.lang.stop import DECLARATIONS, STATEMENTS, Stop, one, outside_function, outside_loop


def misplaced(stop: Stop) -> Diagnostic | None:
    """The first word does not fit where the line stands."""
    token, place = stop.token, stop.situation.place
    if stop.at == 1 and stop.tokens[0].type == "EXPORT":
        help = "export def f(x: f32[B])"
        if token.type == "MODULE" and stop.after is not None:
            help = f"export a function that takes it: `export def f(net: {stop.after.text}, ...)`"
        return one("E0123", "`export` stands before `def`", token, help=help)
    if token.type in ("ELSE", "ELIF") and stop.at == 0:
        message = f"this `{token.text}` has no `if` before it"
        wrong = one("E0125", message, token, help="align it with the `if` it belongs to")
        other = "elseif" in token.source.text or "elsif" in token.source.text
        return replace(wrong, once=("elseif", token.source.name)) if other else wrong
    if token.type in ("PARAM", "STATE") and stop.at == 0:
        message = f"`{token.text}` is declared in the body of a module"
        help = "move it to a module" if place == "file" else "move it out of the function"
        return one("E0123", message, token, help=help)
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
        return outside_function(token)
    if token.type == "YIELD":
        return outside_loop(token)
    if token.type == "NAME" and after and after.type == "EQUAL":
        help = f"a constant is `const {token.text} = ...`; steps belong in a function"
        return one("E0123", "a file holds declarations, not statements", token, help=help)
    if token.text in ("end", "endif", "endfunction") and after and after.type == "_NL":
        help = "a block ends where its indentation ends; delete the line"
        return one("E0116", f"there is no `{token.text}`", token, help=help)
    if token.type in ("NAME", "PASS") or token.type in STATEMENTS:
        help = "move it into a function: `def f(x: real[B]) -> real[B]:`"
        return one("E0123", "a file holds declarations, not statements", token, help=help)
    return None


def _in_module(stop: Stop) -> Diagnostic | None:
    token, first = stop.token, stop.tokens[0]
    if len(stop.situation.open) != 1:
        return None
    if stop.at == 0 and token.type in DECLARATIONS:
        message = f"`{token.text}` does not stand in a module"
        return one("E0123", message, token, help="move it to the outermost level of the file")
    if stop.at == 0 and token.type == "IF":
        help = "choose in the value, `[...] if c else []`, or end a `param` with `when c`"
        return one("E0123", "a module's members do not stand under `if`", token, help=help)
    if stop.at == 0 and token.type in STATEMENTS:
        message = f"a module's body holds declarations, and `{token.text}` is a statement"
        return one("E0123", message, token, help="move it into `def forward(...)`")
    if first.type != "NAME" or stop.at != 1:
        return None
    if token.type == "COLON":
        help = f"write `param {first.text}: ...` (trained) or `state {first.text}: ...` (saved)"
        return one("E0123", "a member with a type says what it is", first, help=help)
    if token.type in ("COMMA", "LPAR", "LSQB", "ASSIGN", "DOT", "BANG", "_NL"):
        help = "a member is `name = Module(...)`; steps belong in `def forward(...)`"
        return one("E0123", "a module's body holds declarations", token, help=help)
    return None


def _in_function(stop: Stop) -> Diagnostic | None:
    token, first = stop.token, stop.tokens[0]
    if stop.at == 0 and token.type in ("DEF", "EXPORT", "MODULE"):
        kind = "module" if token.type == "MODULE" else "function"
        message = f"a {kind} cannot be defined inside a function"
        return one("E0123", message, token, help="move it out; functions have no closures")
    if stop.at == 0 and token.type in DECLARATIONS:
        message = f"`{token.text}` does not stand in a function"
        return one("E0123", message, token, help="move it to the outermost level of the file")
    if stop.at == 1 and first.type == "NAME" and token.type == "COLON":
        help = f"the type follows from the value: `{first.text} = ...`"
        return one("E0100", "a variable is not declared with a type", token, help=help)
    return None
