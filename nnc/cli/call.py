"""`nnc run`: one call of an export, arguments and results as files."""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from nnc.cli.options import load_model, number, pairs
from nnc.errors import ArgumentError, LoadError, SaveError, nearest
from nnc.runtime.export import Export
from nnc.runtime.leaves import Module, Tree
from nnc.runtime.memory import Array
from nnc.runtime.model import Model
from nnc.runtime.modules import initialised


def call(args: argparse.Namespace) -> int:
    """Prints the results, or saves them."""
    model = load_model(args)
    export = model.exports.get(args.function)
    if export is None:
        hint = nearest(args.function, model.exports)
        raise ArgumentError(f"{args.model} exports no {args.function!r}{hint}")
    model.seed(args.seed)
    values = _values(export, pairs("--arg", args.arg))
    modules = _modules(export, args)
    to_save = pairs("--save-weights", args.save_weights)
    _only(export, to_save, "--save-weights", "module")
    rows = _called(model, args, {**values, **modules})
    if args.save is not None:
        _save(args.save, rows)
    else:
        for name, array in rows.items():
            print(f"{name} {array.dtype}{list(array.shape)}\n{array}" if array.ndim else array[()])
    for name, path in to_save.items():
        modules[name].save(path)
    return 0


def _called(model: Model, args: argparse.Namespace, values: dict[str, Any]) -> dict[str, Array]:
    """Results and probed values by name."""
    if not args.probe:
        return _rows(model.exports[args.function](**values))
    for path in args.probe:
        exports = model.probes.get(path)
        if exports is not None and args.function not in exports:
            raise ArgumentError(f"--probe {path}: {args.function} does not compute it")
    with model.probe(*args.probe) as seen:
        rows = _rows(model.exports[args.function](**values))
    return rows | {path: np.asarray(seen[path]) for path in seen}


def _only(export: Export, given: dict[str, str], flag: str, kind: str) -> None:
    names = [a.name for a in export.args if (a.kind == "module") == (kind == "module")]
    for name in given:
        if name in names:
            continue
        if any(a.name == name for a in export.args):
            way = f"--weights {name}=FILE" if kind != "module" else f"--arg {name}=VALUE"
            raise ArgumentError(f"{flag} {name}: it is given by {way}")
        raise ArgumentError(
            f"{flag} {name}: {export.sig.name} has no such argument{nearest(name, names)}\n"
            f"  {export}"
        )


def _values(export: Export, given: dict[str, str]) -> dict[str, Any]:
    _only(export, given, "--arg", "value")
    return {
        n: _array(t) if t.endswith(".npy") else number(t, f"--arg {n}", _FILES)
        for n, t in given.items()
    }


_FILES = " and no .npy file"


def _array(path: str) -> Array:
    try:
        loaded = np.load(path, allow_pickle=False)
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, EOFError, zipfile.BadZipFile):
        raise LoadError(f"{path} is not an .npy file of numbers") from None
    if not isinstance(loaded, np.ndarray):
        raise LoadError(f"{path} is not an .npy file of one array")
    return loaded


def _modules(export: Export, args: argparse.Namespace) -> dict[str, Module]:
    weights = pairs("--weights", args.weights)
    files = pairs("--file", args.file)
    _only(export, weights, "--weights", "module")
    out = {}
    for arg in export.args:
        if arg.kind == "module":
            sig = export.program.modules[arg.module]
            mine = {s.name: files[s.name] for s in sig.slots if s.name in files}
            out[arg.name] = initialised(export.program, sig, args.seed, mine)
            if arg.name in weights:
                out[arg.name].load(weights[arg.name])
    return out


def _rows(result: Any) -> dict[str, Array]:
    """Results by name: `result`, or `result0`, `result1`; trees by key."""
    if result is None:
        return {}
    items = result if isinstance(result, tuple) else (result,)
    out: dict[str, Array] = {}
    for i, item in enumerate(items):
        name = f"result{i}" if isinstance(result, tuple) else "result"
        if isinstance(item, Tree):
            out |= {f"{name}.{key}": array for key, array in item.items()}
        else:
            out[name] = np.asarray(item)
    return out


def _save(path: Path, rows: dict[str, Array]) -> None:
    try:
        if path.suffix == ".npy":
            if len(rows) != 1:
                raise ArgumentError(f"{len(rows)} results do not fit an .npy file: use .npz")
            np.save(path, next(iter(rows.values())))
        elif path.suffix == ".npz":
            np.savez(path, **rows)  # type: ignore[arg-type]
        else:
            raise ArgumentError(f"--save {path}: the file is .npz or .npy")
    except OSError as error:
        raise SaveError(f"cannot write {path}: {error.strerror or error}") from None
