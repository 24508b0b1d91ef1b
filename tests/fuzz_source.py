"""Damaged source texts: programs with pieces deleted, doubled, swapped, spliced and scribbled on.

`run` feeds them to any function of a text and reports every exception and every slow answer, so
the same driver tests the parser and the whole checker.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MODELS = Path(__file__).parent.parent / "models"
_ODD_WORDS = """
( ) [ ] { } : , ; = := == -> . .. ... ! != + - * / // % @ ** < > ^ & | ~ ' " \"\"\" \\ #
def module param state if else elif for in while return yield inout export where as when and or not
lambda class self True None 1e999 0x1f 1_0 .5 99999999999999999999 é “ −
"""
ODD = [*_ODD_WORDS.split(), *"\t\n\r\0\u00a0\u202e\ufeff\u2028", "\n\n    ", "\n        "]
_PIECE = re.compile(r"\w+|[^\w\s]|\s+")


@dataclass(frozen=True)
class Failure:
    """What went wrong on one text: an exception, or an answer that took too long."""

    seed: int
    text: str
    reason: str


def programs() -> list[str]:
    """The texts of all models, in a fixed order."""
    return [path.read_text("utf-8") for path in sorted(MODELS.glob("*.nn"))]


def mutants(count: int, first_seed: int = 0) -> Iterator[tuple[int, str]]:
    """`count` damaged texts with their seeds; the same seed gives the same text."""
    texts = programs()
    for seed in range(first_seed, first_seed + count):
        yield seed, mutant(random.Random(seed), texts)


def mutant(rng: random.Random, texts: Sequence[str]) -> str:
    text = rng.choice(texts)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        text = rng.choice(_MUTATIONS)(rng, text, rng.choice(texts))
    return text


def run(
    under_test: Callable[[str], object], texts: Iterator[tuple[int, str]], seconds: float = 2.0
) -> list[Failure]:
    """Calls `under_test` on every text; the failures: any exception, any call over `seconds`."""
    failures = []
    for seed, text in texts:
        start = time.perf_counter()
        try:
            under_test(text)
        except Exception as error:
            failures.append(Failure(seed, text, repr(error)))
        took = time.perf_counter() - start
        if took > seconds:
            failures.append(Failure(seed, text, f"took {took:.1f} s"))
    return failures


# ---- mutations --------------------------------------------------------------------------------


def _pieces(rng: random.Random, text: str) -> tuple[list[str], int]:
    pieces = _PIECE.findall(text) or [""]
    return pieces, rng.randrange(len(pieces))


def _delete(rng: random.Random, text: str, other: str) -> str:
    pieces, at = _pieces(rng, text)
    del pieces[at : at + rng.choice((1, 1, 2, 5))]
    return "".join(pieces)


def _double(rng: random.Random, text: str, other: str) -> str:
    pieces, at = _pieces(rng, text)
    pieces[at:at] = pieces[at : at + rng.choice((1, 2, 5, 20))]
    return "".join(pieces)


def _swap(rng: random.Random, text: str, other: str) -> str:
    pieces, at = _pieces(rng, text)
    to = rng.randrange(len(pieces))
    pieces[at], pieces[to] = pieces[to], pieces[at]
    return "".join(pieces)


def _scribble(rng: random.Random, text: str, other: str) -> str:
    pieces, at = _pieces(rng, text)
    pieces[at : at + rng.randrange(2)] = [rng.choice(ODD)]
    return "".join(pieces)


def _truncate(rng: random.Random, text: str, other: str) -> str:
    return text[: rng.randrange(len(text) + 1)]


def _splice(rng: random.Random, text: str, other: str) -> str:
    rows, others = text.splitlines(True), other.splitlines(True)
    if not rows or not others:
        return text
    return "".join(rows[: rng.randrange(len(rows))] + others[rng.randrange(len(others)) :])


def _shift(rng: random.Random, text: str, other: str) -> str:
    """One row moves right or left."""
    rows = text.splitlines(True) or [""]
    at = rng.randrange(len(rows))
    rows[at] = "  " + rows[at] if rng.random() < 0.5 else rows[at][rng.randrange(5) :]
    return "".join(rows)


def _transplant(rng: random.Random, text: str, other: str) -> str:
    """A stretch of another program replaces a stretch of this one."""
    pieces, at = _pieces(rng, text)
    others, source = _pieces(rng, other)
    pieces[at : at + rng.randrange(8)] = others[source : source + rng.randrange(8)]
    return "".join(pieces)


_MUTATIONS = (
    _delete,
    _double,
    _swap,
    _scribble,
    _scribble,
    _truncate,
    _splice,
    _shift,
    _transplant,
)
