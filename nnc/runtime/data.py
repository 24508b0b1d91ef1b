"""Data sets for `nnc train`: named ones, and the user's own arrays in an `.npz` file."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnc.errors import ArgumentError, Error, LoadError
from nnc.runtime.memory import Array

HELD_OUT = 0.2
_SPLIT_SEED = 0  # of the shuffle that holds out the last fifth; fixed for ever


@dataclass(frozen=True)
class Data:
    """Samples along axis 0. `arrays`: x, then y if there is one; `held_out` likewise.

    A file may have others beside or instead of them, `names` is what all are called.
    """

    name: str
    arrays: tuple[Array, ...]
    held_out: tuple[Array, ...]
    names: tuple[str, ...] = ("x", "y")

    @property
    def size(self) -> int:
        return len(self.arrays[0])


def load(name: str) -> Data:
    """`digits`, or the path of an `.npz` file with x, y and, if wanted, x_test, y_test (or arrays
    that are called like the arguments of the training step)."""
    if name == "digits":
        return digits()
    if name.endswith(".npz"):
        return from_npz(Path(name))
    raise ArgumentError(
        f"no data set {name!r}: there are `digits`, and `.npz` files with arrays x and y"
    )


def digits() -> Data:
    """1797 handwritten digits: x f32[n, 64] in 0 ... 1, y i32[n]; 359 of them held out."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise Error("the digits need scikit-learn: pip install 'nnc[train]'") from None
    found = load_digits()
    x = (found.data / 16.0).astype(np.float32)
    return split("digits", (x, found.target.astype(np.int32)))


def split(name: str, arrays: tuple[Array, ...], names: tuple[str, ...] = ("x", "y")) -> Data:
    """Holds out a fifth, chosen by a shuffle that never changes."""
    count = len(arrays[0])
    order = np.random.default_rng(_SPLIT_SEED).permutation(count)
    kept = count - int(count * HELD_OUT)
    train, test = np.sort(order[:kept]), np.sort(order[kept:])
    rows = (tuple(a[train] for a in arrays), tuple(a[test] for a in arrays))
    return Data(name, *rows, names[: len(arrays)])


def from_npz(path: Path) -> Data:
    """Arrays of a file; nothing in it is executed. LoadError when it does not fit."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {k: file[k] for k in file.files}
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, zipfile.BadZipFile, EOFError, AttributeError, TypeError) as error:
        raise LoadError(f"{path} is not an .npz file of plain arrays: {error}") from None
    _same_count(path, found, "x", "y")
    _same_count(path, found, "x_test", "y_test")
    names = _samples(path, found)
    arrays = tuple(found[k] for k in names)
    tests = [k for k in names if f"{k}_test" in found]
    if not tests:
        return split(str(path), arrays, names)
    if len(tests) != len(names):
        lacks = next(k for k in names if k not in tests)
        raise LoadError(f"{path} has {tests[0]}_test without {lacks}_test")
    return Data(str(path), arrays, tuple(found[f"{k}_test"] for k in names), names)


def _samples(path: Path, found: dict[str, Array]) -> tuple[str, ...]:
    """The arrays with a row for each sample, x and y first."""
    rows = [k for k, a in found.items() if a.ndim and len(a) and not k.endswith("_test")]
    if not {*rows} - {"y"}:
        raise LoadError(f"{path} has no array x (it has {', '.join(found) or 'nothing'})")
    order = [*(k for k in ("x", "y") if k in rows), *(k for k in rows if k not in ("x", "y"))]
    count = len(found[order[0]])
    return tuple(k for k in order if len(found[k]) == count)


def _same_count(path: Path, found: dict[str, Array], a: str, b: str) -> None:
    for name in (a, b):
        if name in found and (found[name].ndim == 0 or not len(found[name])):
            raise LoadError(f"{path}: {name} has no samples")
    if a in found and b in found and len(found[a]) != len(found[b]):
        raise LoadError(f"{path}: {a} has {len(found[a])} samples, {b} {len(found[b])}")
