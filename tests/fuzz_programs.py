"""Programs with mistakes that still parse, mostly: names, numbers, operators and rows exchanged.

`fuzz_source` damages the text; here the damage is to the meaning, so that the checker is reached.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from nnc.diagnostics import Diagnostics, Source
from nnc.lang.layout import KEYWORDS
from nnc.lang.syntax import parse
from tests import fuzz_source

STD = Path(__file__).parent.parent / "nnc" / "std"
_COMMENT = re.compile(r" *#.*")
_WORD = re.compile(rf"\b(?!(?:{'|'.join(sorted(KEYWORDS))})\b)(?<![\d\".])[A-Za-z_]\w*\b(?!\")")
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?")
_OPERATOR = re.compile(r"(?<=[\w\])] )(?:\*\*|//|:=|[-+*/%@=]|<=|>=|==|!=|<|>)(?= [\w(\[-])")
_OPERATORS = ("+", "-", "*", "/", "//", "%", "@", "**", "<", "<=", "==", "!=", "and", "or")
_NUMBERS = ("0", "1", "2", "3", "7", "9", "1000000", "9223372036854775807", "0.5", "1e30", "-1")
_EXPRESSIONS = [
    *'None true train self [] () [1] "s" x y w h B N T params(M) size(x) rank(x) real(x)'.split(),  # noqa: SIM905
    *"i32(x) x[0] x[-1] x[i] x[x] x.T x@x sum(x) argmax(x) stop(x) zeros[2] zeros[B]".split(),  # noqa: SIM905
    *"empty[0] uniform!([2]) f(f) 1/0 2**63 3//0 5%0 1e999 [..N] sum[i:3](i) x[..n]".split(),  # noqa: SIM905
    *("x[:, None]", "grad(x, x)", "softmax(x, over=0)", "where(x, 1, 0)", "x[..., 0]"),
    *("x if true else y", "[x for x in 3]", "concat(x, x, over=0)", "sum[i](x[i])"),
    *("argmax[i:N](i)", "x[(a:2, b)]", "x[x else 0]", "lambda x: x", "x[i, j else 0]"),
]
_ROWS = """
y = x
x := x
x[i] = x[i]
x[i] := x[i] + 1
x[i, j] = sum[k](x[i, k] * x[k, j])
y[i:3] = i
return x
return x, x
pass
for i in 3: x = x + i
if train: x = 0
if x > 0: x = 1
z = grad(sum(x), x)
a, b = x
assert x > 0
f(x)
""".strip().split("\n")


def programs() -> list[str]:
    """All models and the standard library."""
    paths = [*sorted(fuzz_source.MODELS.glob("*.nn")), *sorted(STD.glob("*.nn"))]
    return [_COMMENT.sub("", path.read_text("utf-8")) for path in paths]


def mutants(count: int, first_seed: int = 0) -> Iterator[tuple[int, str]]:
    """`count` wrong programs with their seeds, every fourth damaged as text too."""
    texts = programs()
    for seed in range(first_seed, first_seed + count):
        rng = random.Random(seed)
        text = fuzz_source.mutant(rng, texts) if seed % 8 == 0 else rng.choice(texts)
        for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
            text = _parsing(rng, text, texts)
        yield seed, text


def _parsing(rng: random.Random, text: str, texts: Sequence[str]) -> str:
    """One mutation, tried again a few times when the result does not parse."""
    for _ in range(4):
        new = rng.choice(_MUTATIONS)(rng, text, texts)
        if new != text and parse(Source("fuzz.nn", new), Diagnostics()) is not None:
            return new
    return text


def _replace(rng: random.Random, text: str, what: re.Pattern[str], new: Sequence[str]) -> str:
    found = list(what.finditer(text))
    if not found:
        return text
    at = rng.choice(found)
    return text[: at.start()] + rng.choice(new) + text[at.end() :]


def _name(rng: random.Random, text: str, texts: Sequence[str]) -> str:
    """One name by another of the file."""
    return _replace(rng, text, _WORD, _WORD.findall(text) or ["x"])


def _foreign_name(rng: random.Random, text: str, texts: Sequence[str]) -> str:
    return _replace(rng, text, _WORD, _WORD.findall(rng.choice(texts)) or ["x"])


def _number(rng: random.Random, text: str, texts: Sequence[str]) -> str:
    return _replace(rng, text, _NUMBER, _NUMBERS)


def _operator(rng: random.Random, text: str, texts: Sequence[str]) -> str:
    return _replace(rng, text, _OPERATOR, _OPERATORS)


def _expression(rng: random.Random, text: str, texts: Sequence[str]) -> str:
    return _replace(rng, text, _WORD, _EXPRESSIONS)


def _drop_item(rng: random.Random, text: str, texts: Sequence[str]) -> str:
    """One of several things between commas goes."""
    return _replace(rng, text, re.compile(r", [^,()\[\]]+(?=[,)\]])"), [""])


def _drop_bang(rng: random.Random, text: str, texts: Sequence[str]) -> str:
    return _replace(rng, text, re.compile(r"!(?=\()|inout "), [""])


def _drop_row(rng: random.Random, text: str, texts: Sequence[str]) -> str:
    rows = text.splitlines(True) or [""]
    del rows[rng.randrange(len(rows))]
    return "".join(rows)


def _add_row(rng: random.Random, text: str, texts: Sequence[str]) -> str:
    """A statement, indented as the row before it."""
    rows = text.splitlines(True) or [""]
    at = rng.randrange(len(rows))
    new = rng.choice(_ROWS)
    if rng.random() < 0.4:
        new = rng.choice(rng.choice(texts).splitlines()).strip()
    indent = rows[at][: len(rows[at]) - len(rows[at].lstrip())]
    rows.insert(at, f"{indent}{new}\n")
    return "".join(rows)


def _swap_rows(rng: random.Random, text: str, texts: Sequence[str]) -> str:
    rows = text.splitlines(True) or [""]
    i, j = rng.randrange(len(rows)), rng.randrange(len(rows))
    rows[i], rows[j] = rows[j], rows[i]
    return "".join(rows)


_MUTATIONS = (
    _name,
    _name,
    _name,
    _foreign_name,
    _number,
    _number,
    _operator,
    _expression,
    _expression,
    _drop_item,
    _drop_bang,
    _drop_row,
    _add_row,
    _add_row,
    _swap_rows,
)
