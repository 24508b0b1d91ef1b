"""`--winograd`: how far results are from those of the direct form."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nnc import driver
from nnc.cli.inputs import arguments
from nnc.compiler import Compiled
from nnc.errors import ArgumentError
from nnc.quantization import Difference, difference
from nnc.runtime.export import Export
from nnc.runtime.model import Model

NONE = "winograd: no contraction of this file has that form (windows of 3 x 3, stride 1, weights"
NONE += " of a module that is only read)"


def errors(
    path: str,
    made: Compiled,
    overrides: driver.Overrides,
    sizes: Mapping[str, int],
    only: str | None = None,
) -> str:
    """For each export with such contractions its results' error, on made arguments.

    Exports of which a size is not given are named, with what to add.
    """
    direct = driver.compile_file(path, overrides)
    ours, theirs = driver.model_of(made), driver.model_of(direct)
    found = [
        e
        for name, e in ours.exports.items()
        if only in (None, name) and _code(e, made) != _code(e, direct)
    ]
    rows = [row for e in found for row in _rows(e, theirs, sizes)]
    return "\n".join(rows) or NONE


def _code(export: Export, compiled: Compiled) -> list[bytes]:
    native = next(n for n in compiled.manifest.natives if n.symbol == export.sig.symbol)
    return [compiled.objects[i] for i in (native.object, *native.parts)]


def _rows(export: Export, direct: Model, sizes: Mapping[str, int]) -> list[str]:
    head = f"{export.sig.name} with winograd"
    missing = [n for n in export.sig.dims if n not in sizes]
    if missing:
        more = " ".join(f"--at {n}=8" for n in missing)
        return [f"{head}: the error is not known without sizes: {more}"]
    try:
        values = arguments(export, {n: sizes[n] for n in export.sig.dims})
    except ArgumentError as error:
        return [f"{head}: the error is not known: {error}"]
    want, got = (_results(e, values) for e in (direct.exports[export.sig.name], export))
    pairs = enumerate(zip(want, got, strict=True))
    return [f"{head}, {_text(difference(f'result {i}', [pair]))}" for i, pair in pairs]


def _text(d: Difference) -> str:
    if not d.floating:
        return str(d)
    share = d.largest / d.scale if d.scale else 0.0
    return (
        f"{d.name}: differs by {d.largest:.2g} at most, {share:.1e} of the largest element; "
        f"rms {d.rms:.1e} (modules as they are declared, made data)"
    )


def _results(export: Export, values: dict[str, object]) -> list[np.ndarray]:
    out = export(**values)
    return [np.asarray(x) for x in (out if isinstance(out, tuple) else (out,))]
