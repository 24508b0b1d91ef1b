"""`nnc golden`: what each export computes and what it became, recorded beside the model.

`model.golden/f.json` holds sizes, results, what was written, and gradients of inputs that are the
same on every machine (`inputs`); large arrays as a sample and two sums. `f.graph.txt` and
`f.loops.txt` are dumps. Numbers are compared within the rounding of their dtype, dumps exactly.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nnc import driver
from nnc.cli.inputs import arguments, sizes_for, uniform
from nnc.cli.options import overrides, sizes
from nnc.errors import ArgumentError, Error, LoadError
from nnc.runtime.export import Export
from nnc.runtime.leaves import Store, Tree
from nnc.runtime.memory import Array
from nnc.runtime.model import Model
from nnc.runtime.tensorfile import atomic

SUFFIXES = (".json", ".graph.txt", ".loops.txt")
_WHOLE = 256  # elements: of larger arrays as many are recorded
# Of the largest element of an array: room for another order of summation.
_TOLERANCE = {"float64": 1e-11, "float32": 2e-5, "float16": 1e-2, "bfloat16": 6e-2}


def golden(args: argparse.Namespace) -> int:
    """Compares, or with `--update` records and prints what changed; 1 when something differs."""
    if args.update and os.environ.get("CI"):
        raise ArgumentError("--update is refused where CI is set: accept goldens by hand")
    path, given = Path(args.model), sizes(args.sizes)
    if args.update:
        print("\n".join(update(path, given, overrides(args.define))))
        return 0
    if given:
        raise ArgumentError("sizes are those that were recorded: --update takes new ones")
    differences = compare(path, overrides(args.define))
    for name, lines in differences.items():
        print(f"{'FAIL' if lines else 'ok'}    {name}")
        for line in lines:
            print(f"      {line}")
    return 1 if any(differences.values()) else 0


def folder_of(path: Path) -> Path:
    return path.parent / f"{path.stem}.golden"


def compare(
    path: Path, given: Mapping[str, Mapping[str, object]] | None = None
) -> dict[str, list[str]]:
    """For each export that is or was there the lines that say what differs."""
    folder = folder_of(path)
    if not folder.is_dir():
        raise LoadError(f"there is no {folder}: nnc golden {path} --update records it")
    model = driver.model_of(driver.compile_file(path, given))
    recorded = {f.name.removesuffix(".graph.txt") for f in folder.glob("*.graph.txt")}
    out = {name: _differences(model, path, name) for name in model.exports}
    gone = sorted(recorded - out.keys())
    return out | {name: ["recorded, but no longer exported"] for name in gone}


def update(
    path: Path, given: Mapping[str, int], define: Mapping[str, Mapping[str, object]] | None = None
) -> list[str]:
    """Writes the files of every export; what changed as a diff."""
    model = driver.model_of(driver.compile_file(path, define))
    folder, lines = folder_of(path), []
    folder.mkdir(exist_ok=True)
    wanted: dict[Path, str] = {}
    for name, export in model.exports.items():
        old = _read(folder / f"{name}.json")
        chosen = {d: n for d, n in given.items() if d in export.sig.dims} or old.get("sizes", {})
        chosen = {d: n for d, n in chosen.items() if d in export.sig.dims}
        try:
            table = record(model, export, sizes_for(model, export, chosen))
        except ArgumentError as error:
            table = {"skipped": str(error).splitlines()[0]}
            lines.append(f"{name}: only dumps ({table['skipped']})")
        texts = (_text(table), *_dumps(model, path, name))
        wanted |= {folder / f"{name}{s}": t for s, t in zip(SUFFIXES, texts, strict=True)}
    for file in sorted({*wanted, *(f for s in SUFFIXES for f in folder.glob(f"*{s}"))}):
        before = file.read_text("utf-8") if file.exists() else ""
        lines += _diff(before, wanted.get(file, ""), file.name)
        if file not in wanted:
            file.unlink()
        elif before != wanted[file]:
            atomic(file, [wanted[file].encode()])
    return lines or [f"{folder}: nothing changed"]


# ---- one export -------------------------------------------------------------------------------


def record(model: Model, export: Export, env: Mapping[str, int]) -> dict[str, Any]:
    """Sizes, results, written modules and gradients of one call."""
    model.seed(0)
    values = arguments(export, env)
    arrays = _named("result", export(**values))
    for arg in export.args:
        if arg.inout:
            arrays |= _named(f"after.{arg.name}", values[arg.name])
    table: dict[str, Any] = {"sizes": dict(env)}
    table["arrays"] = {name: _summary(array) for name, array in arrays.items()}
    table["gradients"] = {n: _summary(a) for n, a in _gradients(model, export, env).items()}
    return table


def _gradients(model: Model, export: Export, env: Mapping[str, int]) -> dict[str, Array]:
    """Of exports that write nothing and have float results."""
    values = arguments(export, env)
    if export.writes or any(r.type is None for r in export.sig.results):
        return {}
    model.seed(0)
    try:
        run: Any = export.forward(**values)  # type: ignore[attr-defined]
    except Error:
        return {}  # nothing to differentiate
    results = [np.asarray(r) for r in (run.value if isinstance(run.value, tuple) else (run.value,))]
    floats = [r for r in results if r.dtype.kind == "f"]
    seeds = [uniform(r.size, 77 + i).reshape(r.shape) for i, r in enumerate(floats)]
    found = run.backward(*(s.astype(r.dtype) for s, r in zip(seeds, floats, strict=True)))
    out: dict[str, Array] = {}
    for name in found:
        out |= _named(name, found[name])
    return out


def _named(name: str, value: Any) -> dict[str, Array]:
    if isinstance(value, tuple):
        return {k: a for i, v in enumerate(value) for k, a in _named(f"{name}{i}", v).items()}
    if isinstance(value, Store):
        return {f"{name}.{k}": a for k, a in value.arrays.items()}
    if isinstance(value, Mapping | Tree):
        return {f"{name}.{k}": value[k] for k in value}
    return {} if value is None else {name: np.asarray(value)}


def _summary(array: Array) -> dict[str, Any]:
    """All elements, or `_WHOLE` of them and two sums that every element is part of."""
    flat = array.reshape(-1)
    out: dict[str, Any] = {"dtype": array.dtype.name, "shape": list(array.shape)}
    if flat.size <= _WHOLE:
        return out | {"values": _numbers(flat)}
    at = np.arange(_WHOLE, dtype=np.int64) * flat.size // _WHOLE
    weighed = flat.astype(np.float64) * uniform(flat.size, 5)
    sums = [float(weighed.sum()), float(np.abs(flat.astype(np.float64)).sum())]
    return out | {"sample": _numbers(flat[at]), "sums": sums}


def _numbers(flat: Array) -> list[Any]:
    """As short as they can be read back; NaN and infinity as texts."""
    if flat.dtype.kind in "iub":
        return [int(x) for x in flat]
    texts = [str(x) for x in flat]
    return [t if t in ("nan", "inf", "-inf") else float(t) for t in texts]


def _text(table: Mapping[str, Any]) -> str:
    """One line for each array."""
    rows = []
    for key, value in table.items():
        if key in ("arrays", "gradients"):
            inner = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            rows.append(f"{json.dumps(key)}: {{\n{inner}\n }}")
        else:
            rows.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n " + ",\n ".join(rows) + "\n}\n"


def _dumps(model: Model, path: Path, name: str) -> tuple[str, str]:
    graph, loops = (model.ir(name, s).replace(str(path), path.name) for s in ("graph", "loops"))
    return graph.rstrip() + "\n", loops.rstrip() + "\n"


# ---- comparing ----------------------------------------------------------------------------------


def _differences(model: Model, path: Path, name: str) -> list[str]:
    folder, export = folder_of(path), model.exports[name]
    old = _read(folder / f"{name}.json")
    if not old:
        return [f"not recorded: nnc golden {path} --update"]
    lines: list[str] = []
    if "skipped" not in old:
        try:
            now = json.loads(_text(record(model, export, old["sizes"])))
        except (Error, KeyError) as error:
            return [f"it cannot be called with the sizes {old.get('sizes')}: {error}"]
        for part in ("arrays", "gradients"):
            lines += _compare_tables(part, old.get(part, {}), now[part])
    for suffix, text in zip(SUFFIXES[1:], _dumps(model, path, name), strict=True):
        file = folder / f"{name}{suffix}"
        lines += _diff(file.read_text("utf-8") if file.exists() else "", text, file.name)
    return lines


def _compare_tables(part: str, old: Mapping[str, Any], now: Mapping[str, Any]) -> Iterable[str]:
    what = "gradient by " if part == "gradients" else ""
    for name in sorted(old.keys() | now.keys()):
        if name not in old or name not in now:
            yield f"{what}{name} is {'new' if name in now else 'gone'}"
        elif difference := _compare(old[name], now[name]):
            yield f"{what}{name}{difference}"


def _compare(old: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """How the arrays differ; "" when they agree."""
    kinds = [f"{x['dtype']}{x['shape']}" for x in (old, now)]
    if kinds[0] != kinds[1] or old.keys() != now.keys():
        return f" is {kinds[1]}, recorded {kinds[0]}"
    tolerance = _TOLERANCE.get(old["dtype"], 0.0)
    key = "values" if "values" in old else "sample"
    a, b = (np.array([float(v) for v in x[key]], np.float64) for x in (old, now))
    if len(a) != len(b):
        return f" has {len(b)} recorded elements, not {len(a)}"
    finite = np.abs(a[np.isfinite(a)])
    allowed = tolerance * float(finite.max(initial=0.0))
    with np.errstate(invalid="ignore"):
        same = (a == b) | (np.isnan(a) & np.isnan(b)) | (np.abs(a - b) <= allowed)
    if not same.all():
        i = int(np.argmin(same))
        where = i if key == "values" else i * int(np.prod(old["shape"])) // len(a)
        return f" at element {where}: {b[i]:.9g}, recorded {a[i]:.9g} (tolerance {allowed:.2g})"
    if "sums" in old:
        room = tolerance * abs(old["sums"][1])
        for x, y in zip(old["sums"], now["sums"], strict=True):
            if not (x == y or abs(x - y) <= room or (x != x and y != y)):
                return f" outside the sample: sum {y:.9g}, recorded {x:.9g}"
    return ""


def _diff(old: str, new: str, name: str) -> list[str]:
    names = (f"{name} (recorded)", f"{name} (now)")
    return list(difflib.unified_diff(old.splitlines(), new.splitlines(), *names, "", "", 1, ""))


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise LoadError(f"cannot read {file}: {error}") from None
    if not isinstance(found, dict):
        raise LoadError(f"{file} was not written by nnc golden")
    return found
