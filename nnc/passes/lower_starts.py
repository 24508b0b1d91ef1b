"""Fixed leading indices: code that reads `kv[3, b, h]` and code that reads `kv[5, b, h]` are alike
but for the place where the tensor begins."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from itertools import takewhile

from nnc.ir.expr import Expr, index_number
from nnc.ir.form import KEPT, Form

Start = tuple[int, ...]
TARGET = -1  # stands for what an update writes, among the numbers of tensors


def start_of(index: Sequence[Expr]) -> Start:
    """The fixed components that an index begins with."""
    numbers = map(index_number, index)
    return tuple(n for n in takewhile(lambda n: n is not None, numbers) if n is not None)


def common(a: Start, b: Start) -> Start:
    return tuple(x for x, _ in takewhile(lambda p: p[0] == p[1], zip(a, b, strict=False)))


def starts(form: Form, rank: int) -> Mapping[int, Start]:
    """For each tensor of a form the start of all its loads; `rank`: of the target of an update."""
    key = ("starts", rank)
    found = form.memo.get(key)
    if found is None:
        found = form.memo[key] = _starts(form.key, rank)
    assert isinstance(found, dict), found
    return found


def _starts(key: Sequence[Hashable], rank: int) -> dict[int, Start]:
    fixed = {i: n for i, t in enumerate(key) if (n := _fixed(t)) is not None}
    out: dict[int, Start] = {}

    def start(index: Sequence[Hashable]) -> Start:
        return tuple(fixed[i] for i in takewhile(lambda i: i in fixed, index))  # type: ignore[index]

    for token in key:
        match token:
            case ("load", _, int(number), _, tuple(index), other, check):
                own = start(index) if other is None and check is None else ()
                out[number] = common(out.get(number, own), own)
    if rank:
        roots = [t for t in key if isinstance(t, int)]
        out[TARGET] = start(roots[:rank])
    return out


def _fixed(token: Hashable) -> int | None:
    match token:
        case ("idx", _, dim):
            return dim.const  # type: ignore[attr-defined, no-any-return]
    return None


def without(form: Form, lengths: tuple[int, ...], target: int) -> Hashable:
    """Equal for forms that differ only in so many components that loads from each tensor, and the
    target of an update, begin with."""
    key = ("without", lengths, target)
    found = form.memo.get(key)
    if found is None:
        plain = not target and not any(lengths)
        found = form if plain else _unique(_without(form.key, lengths, target))
        form.memo[key] = found
    return found


@lru_cache(maxsize=KEPT)
def _unique(key: tuple[Hashable, ...]) -> object:
    return object()


def _without(
    key: Sequence[Hashable], lengths: tuple[int, ...], target: int
) -> tuple[Hashable, ...]:
    new: dict[Hashable, Hashable] = {}  # references: numbers of expressions, or fixed indices
    out: list[Hashable] = []
    roots = 0
    for i, token in enumerate(key):
        if _fixed(token) is not None:
            new[i] = token
            continue
        match token:
            case int():
                out.append("any" if roots < target else new[token])
                roots += 1
                continue
            case ("load", dtype, int(number), kind, tuple(index), other, check):
                at = [new[j] for j in index]
                at[: lengths[number]] = ["any"] * lengths[number]
                rest = None if other is None else new[other]
                token = ("load", dtype, number, kind, tuple(at), rest, check)
            case ("idx" | "const" | "var" | "number", *_):
                pass
            case (head, fn, *operands):
                token = (head, fn, *(new[j] for j in operands))
        new[i] = len(out)
        out.append(token)
    return tuple(out)
