"""The LALR tables of the grammar: made by lark, or read from where they were kept."""

from __future__ import annotations

import hashlib
import importlib.resources
import pickle
from collections.abc import Callable
from functools import cache
from io import BytesIO
from typing import Any

import lark
from lark.lexer import Lexer

from nnc.lang.build import callbacks

Fetch = Callable[[str, Callable[[], bytes]], bytes]  # what is kept under a key, made if it is not


class NoLexer(Lexer):
    """The tokens come from `nnc.lang.layout`."""

    def __init__(self, conf: Any) -> None:
        pass

    def lex(self, *args: Any) -> Any:
        raise AssertionError("tokens are fed, not lexed")


@cache
def text() -> str:
    return importlib.resources.files("nnc").joinpath("grammar.lark").read_text("utf-8")


def made(**more: Any) -> lark.Lark:
    """The parser, from the grammar."""
    return lark.Lark(
        text(),
        parser="lalr",
        lexer=NoLexer,
        keep_all_tokens=True,
        maybe_placeholders=False,
        **more,
    )


def parser(fetch: Fetch | None) -> lark.Lark:
    """The parser with its callbacks; reading kept tables takes a tenth of making them."""
    fresh: list[lark.Lark] = []

    def saved() -> bytes:
        fresh.append(made(transformer=callbacks()))
        out = BytesIO()
        fresh[0].save(out, ["transformer"])
        return out.getvalue()

    key = f"tables {lark.__version__} {hashlib.sha256(text().encode()).hexdigest()}"
    kept = None if fetch is None else fetch(key, saved)
    if kept is None or fresh:
        return fresh[0] if fresh else made(transformer=callbacks())
    found = pickle.loads(kept)
    # As the parsers do that lark generates.
    load: Callable[..., lark.Lark] = lark.Lark._load_from_dict
    return load(found["data"], found["memo"], transformer=callbacks())
