"""Loading weights strictly and as a whole, and saving them.

Every wanted tensor must be in the file with its dtype and shape, every tensor of the file must be
wanted, or be matched by `rename` and `skip`; otherwise nothing is loaded (E0701).
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nnc.errors import ArgumentError, LoadError
from nnc.lang.types import DTYPES, DType
from nnc.runtime import tensorfile
from nnc.runtime.memory import Array, numpy_name, raw_bytes
from nnc.runtime.tensorfile import Entry, Header, shown

CHECKSUM = "nnc.sha256"
_ROWS = 6  # of each kind in a message
_MOST_PATTERNS = 6  # in a help


@dataclass(frozen=True)
class Wanted:
    """One tensor to fill or to save."""

    dtype: DType
    array: Array

    @property
    def entry(self) -> Entry:
        return Entry(DTYPES[self.dtype].safetensors, self.array.shape, 0, 0)

    def fits(self, entry: Entry) -> bool:
        return (entry.dtype, entry.shape) == (self.entry.dtype, self.entry.shape)


@dataclass(frozen=True)
class Rules:
    """`rename`: text in the file's keys -> text of the model's (`""` puts it in front);
    `skip`: patterns (`fc.*`) of keys on either side to leave alone."""

    rename: Mapping[str, str]
    skip: Sequence[str]

    def renamed(self, key: str) -> str:
        for old, new in self.rename.items():
            key = key.replace(old, new) if old else new + key
        return key

    def skips(self, key: str) -> bool:
        return any(fnmatch.fnmatchcase(key, pattern) for pattern in self.skip)


@dataclass(frozen=True)
class Fit:
    """Which file key fills which wanted key, and what does not fit (all in the model's keys)."""

    pairs: dict[str, str]
    missing: tuple[str, ...] = ()
    different: tuple[tuple[str, str], ...] = ()  # (key, file key) of another dtype or shape
    unused: tuple[str, ...] = ()  # file keys
    twice: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        return not (self.missing or self.different or self.unused or self.twice)


def fit(entries: Mapping[str, Entry], wanted: Mapping[str, Wanted], rules: Rules) -> Fit:
    found: dict[str, str] = {}
    twice: list[str] = []
    unused: list[str] = []
    for name in entries:
        key = rules.renamed(name)
        if rules.skips(key) or rules.skips(name):
            continue
        if key not in wanted:
            unused.append(name)
        elif key in found:
            twice.append(key)
        else:
            found[key] = name
    missing = tuple(k for k in wanted if k not in found and not rules.skips(k))
    bad = tuple((k, n) for k, n in found.items() if not wanted[k].fits(entries[n]))
    return Fit(found, missing, bad, tuple(unused), tuple(twice))


@dataclass(frozen=True)
class Owner:
    """Whose tensors are loaded, for messages: `` `MLP` (mlp.nn:5)``.

    `call`: how a call that loads it begins, if there is a plain one; `absent`: keys that it does
    not have, and why.
    """

    name: str
    call: str = "load(path"
    absent: Mapping[str, str] = field(default_factory=dict)

    def reason(self, key: str) -> str:
        return f"   {self.absent[key]}" if key in self.absent else ""


def load(
    path: str | Path,
    wanted: Mapping[str, Wanted],
    owner: Owner | str,
    rename: Mapping[str, str] | None = None,
    skip: Sequence[str] = (),
) -> dict[str, str]:
    """Fills the arrays of `wanted` from the file, all or none; returns the file's metadata.

    LoadError E0701 when the file does not fit; there the model is called `owner`.
    """
    owner = owner if isinstance(owner, Owner) else Owner(owner)
    rules = _rules(rename, skip)
    with tensorfile.opened(path) as (file, header):
        match = fit(header.entries, wanted, rules)
        if not match.good:
            raise LoadError(_misfit(path, header.entries, wanted, rules, match, owner))
        staged = {key: np.empty_like(wanted[key].array) for key in match.pairs}
        for key, name in match.pairs.items():
            tensorfile.read_into(file, header, header.entries[name], staged[key], path)
    _verify(path, header, {name: staged[key] for key, name in match.pairs.items()})
    for key, array in staged.items():
        wanted[key].array[...] = array
    return header.metadata


def save(
    path: str | Path,
    tensors: Mapping[str, Wanted],
    metadata: Mapping[str, str] | None = None,
    *,
    checksum: bool = False,
) -> None:
    """Writes one file, as a whole or not at all; `checksum` guards against bit rot."""
    rows = [(key, w.dtype, w.array) for key, w in tensors.items()]
    more = {CHECKSUM: _sha256(array for _, _, array in rows)} if checksum else {}
    tensorfile.write(path, rows, {**(metadata or {}), **more})


def metadata_of(path: str | Path) -> dict[str, str]:
    with tensorfile.opened(path) as (_, header):
        return header.metadata


def _rules(rename: Mapping[str, str] | None, skip: Sequence[str]) -> Rules:
    if isinstance(skip, str):
        skip = (skip,)
    wrong = 'rename is a table of texts ({"old": "new"}), skip a list of patterns'
    if not isinstance(rename or {}, Mapping) or not isinstance(skip, Iterable):
        raise ArgumentError(wrong)
    rules = Rules(dict(rename or {}), tuple(skip))
    if not all(isinstance(x, str) for x in (*rules.rename, *rules.rename.values(), *rules.skip)):
        raise ArgumentError(wrong)
    return rules


def _sha256(arrays: object) -> str:
    digest = hashlib.sha256()
    for array in arrays:  # type: ignore[attr-defined]
        digest.update(raw_bytes(array))
    return digest.hexdigest()


def _verify(path: object, header: Header, arrays: Mapping[str, Array]) -> None:
    expected = header.metadata.get(CHECKSUM)
    if expected is None or arrays.keys() != header.entries.keys():
        return
    ordered = sorted(arrays, key=lambda name: header.entries[name].begin)
    if _sha256(arrays[name] for name in ordered) != expected:
        raise LoadError(f"{path} is damaged: its checksum does not match its data")


# ---- the message ------------------------------------------------------------------------------


def _misfit(
    path: object,
    entries: Mapping[str, Entry],
    wanted: Mapping[str, Wanted],
    rules: Rules,
    match: Fit,
    owner: Owner,
) -> str:
    better = _better(entries, wanted, rules, match)
    rows = [
        *_missing_rows(entries, wanted, match, better),
        *_limited(
            f"{_aspect(entries[n], wanted[k]):8} {k}   file {entries[n]}, model {wanted[k].entry}"
            for k, n in match.different
        ),
        *_limited(
            f"unused   {shown(n)[1:-1]} {entries[n]}{owner.reason(n)}"
            for n in _unexplained(match, better)
        ),
        *_limited(f"twice    {k}   several tensors of the file get this name" for k in match.twice),
    ]
    text = [
        f"E0701: {path} does not fit {owner.name}; nothing was loaded",
        *(f"   {r}" for r in rows),
    ]
    cast = _cast(entries, wanted, match)
    if cast is not None:
        text.append(f"   help: {cast}")
    elif better is not None and owner.call:
        text.append(f"   help: {_spelled(owner, better)}")
    return "\n".join(text)


def _cast(entries: Mapping[str, Entry], wanted: Mapping[str, Wanted], match: Fit) -> str | None:
    """Help when dtypes alone are wrong: the same file in those of the model."""
    others = match.missing or match.unused or match.twice
    if others or any(_aspect(entries[n], wanted[k]) != "dtype" for k, n in match.different):
        return None
    dtypes = {wanted[k].dtype for k, _ in match.different}
    if len(dtypes) != 1:
        return None
    name = numpy_name(dtypes.pop()).removeprefix("np.").removesuffix("_")
    return f"save it again in the model's dtype, with PyTorch `tensor.to(torch.{name})`"


def _missing_rows(
    entries: Mapping[str, Entry], wanted: Mapping[str, Wanted], match: Fit, better: Rules | None
) -> list[str]:
    """Missing leaves; those that a renaming finds are one row and a count."""
    by_rename: dict[str, str] = {}
    if better is not None:
        by_rename = {better.renamed(n): n for n in match.unused}
    explained = [k for k in match.missing if k in by_rename]
    rows = []
    if explained:
        key = explained[0]
        name = by_rename[key]
        row = (
            f"missing  {key} {wanted[key].entry}   the file has {shown(name)[1:-1]} {entries[name]}"
        )
        more = len(explained) - 1
        rows.append(row + (f"; {more} more differ the same way" if more else ""))
    others = [k for k in match.missing if k not in by_rename]
    return rows + _limited(f"missing  {k} {wanted[k].entry}" for k in others)


def _unexplained(match: Fit, better: Rules | None) -> list[str]:
    if better is None:
        return list(match.unused)
    missing = set(match.missing)
    return [n for n in match.unused if better.renamed(n) not in missing]


def _aspect(found: Entry, want: Wanted) -> str:
    return "dtype" if found.shape == want.entry.shape else "shape"


def _limited(rows: object) -> list[str]:
    out = list(rows)  # type: ignore[call-overload]
    more = len(out) - _ROWS
    return [*out[:_ROWS], f"         ... and {more} more"] if more > 0 else out


def _spelled(owner: Owner, rules: Rules) -> str:
    parts = [owner.call]
    if rules.rename:
        parts.append("rename={" + ", ".join(f'"{a}": "{b}"' for a, b in rules.rename.items()) + "}")
    if rules.skip:
        parts.append("skip=[" + ", ".join(f'"{s}"' for s in rules.skip) + "]")
    return f"{', '.join(parts)})"


def _better(
    entries: Mapping[str, Entry], wanted: Mapping[str, Wanted], rules: Rules, match: Fit
) -> Rules | None:
    """Rules under which the file would load, or None; tried before they are offered."""
    rename = dict(rules.rename)
    for _ in range(3):
        found = _rename_for(entries, wanted, match)
        if found is None:
            break
        rename[found[0]] = found[1]
        match = fit(entries, wanted, Rules(rename, rules.skip))
    bad = {*match.missing, *(k for k, _ in match.different), *match.twice}
    bad |= {Rules(rename, ()).renamed(n) for n in match.unused}
    good = [k for k in match.pairs if k not in bad]
    skip = [*rules.skip, *_patterns(bad, good)]
    better = Rules(rename, tuple(skip))
    again = fit(entries, wanted, better)
    if not all(text.isprintable() for text in (*skip, *rename, *rename.values())):
        return None
    useful = again.good and 2 * len(again.pairs) >= len(wanted) and len(skip) <= _MOST_PATTERNS
    return better if useful else None


def _rename_for(
    entries: Mapping[str, Entry], wanted: Mapping[str, Wanted], match: Fit
) -> tuple[str, str] | None:
    """The replacement that finds the most missing leaves among the unused tensors."""
    missing = set(match.missing)
    tried: dict[tuple[str, str], int] = {}
    for key in match.missing[:8]:
        for name in match.unused[:400]:
            swap = _difference(name, key)
            if not wanted[key].fits(entries[name]) or swap in tried:
                continue
            rule = Rules(dict([swap]), ())
            hits = {rule.renamed(n): n for n in match.unused}
            tried[swap] = sum(k in missing and wanted[k].fits(entries[n]) for k, n in hits.items())
            if len(tried) > 64:
                break
    # Of equally good ones the shortest: "norm" -> "bn", not "norm1.w" -> "bn1.w".
    best = max(tried, key=lambda s: (tried[s], -len(s[0]) - len(s[1])), default=None)
    return best if best is not None and tried[best] else None


def _difference(old: str, new: str) -> tuple[str, str]:
    """What is left of both names without their common ends; more when that is nothing."""
    limit = min(len(old), len(new))
    start = next((i for i in range(limit) if old[i] != new[i]), limit)
    rest = limit - start
    end = next((i for i in range(rest) if old[-1 - i] != new[-1 - i]), rest)
    if start == 0 and end == len(old) and new[: len(new) - end].endswith("."):
        return "", new[: len(new) - end]  # in front
    if start + end >= len(old):
        start = old.rfind(".", 0, start) + 1
        end -= (old[len(old) - end :] + ".").index(".")
    return old[start : len(old) - end], new[start : len(new) - end]


def _patterns(bad: set[str], good: Sequence[str]) -> list[str]:
    """Some `prefix.*` (or plain names) that match all of `bad` and none of `good`, if few do."""
    out: list[str] = []
    for key in sorted(bad):
        if len(out) > _MOST_PATTERNS:
            break
        if any(fnmatch.fnmatchcase(key, p) for p in out):
            continue
        parts = key.split(".")
        heads = [".".join(parts[:i]) + "." for i in range(1, len(parts))]
        head = next((h for h in heads if not any(k.startswith(h) for k in good)), None)
        out.append(f"{head}*" if head else key)
    return out
