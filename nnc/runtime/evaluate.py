"""The number that tells how good a model is on the held-out samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnc.errors import ArgumentError, nearest
from nnc.ir.signature import ExportSig
from nnc.lang.types import is_float, is_int
from nnc.runtime.data import Data
from nnc.runtime.export import Export
from nnc.runtime.leaves import Module
from nnc.runtime.memory import Array
from nnc.runtime.roles import Roles, fitted, modules_for, roles

METRICS = ("accuracy", "loss", "mse")


@dataclass(frozen=True)
class Evaluator:
    """Calls an export on the held-out samples; `metric` is one of METRICS."""

    export: Export
    roles: Roles
    modules: Mapping[str, Module]
    arrays: Sequence[Array]  # fitted to the export
    target: Array | None  # y as it is in the data
    metric: str
    batch: int

    def __call__(self) -> float:
        """The metric's mean over the held-out samples, in batches."""
        count = len(self.arrays[0])
        total = 0.0
        for at in range(0, count, self.batch):
            stop = min(at + self.batch, count)
            part = [a[at:stop] for a in self.arrays]
            result = self.export(**self.roles.arguments(self.modules, part, 0.0))
            first = result[0] if isinstance(result, tuple) else result
            target = None if self.target is None else self.target[at:stop]
            total += _score(self.metric, np.asarray(first), target) * (stop - at)
        return total / count


def evaluator(
    exports: Mapping[str, Export],
    modules: Mapping[str, Module],
    data: Data,
    batch: int,
    name: str | None = None,
    metric: str | None = None,
) -> Evaluator | None:
    """For the export `name`, or the first of `predict`, `evaluate`, `loss`, `logits` that fits."""
    if name is not None and name not in exports:
        raise ArgumentError(f"there is no export {name!r} to evaluate with{nearest(name, exports)}")
    for candidate in [name] if name else ["predict", "evaluate", "loss", "logits"]:
        if candidate not in exports or not len(data.held_out[0]):
            continue
        try:
            return _evaluator(exports[candidate], modules, data, batch, metric)
        except ArgumentError:
            if name or metric:
                raise
    if metric:
        raise ArgumentError(f"no export gives {metric}: say which with --eval NAME")
    return None


def _evaluator(
    export: Export, modules: Mapping[str, Module], data: Data, batch: int, metric: str | None
) -> Evaluator:
    if export.writes:
        raise ArgumentError(f"{export.sig.name} changes its arguments: not for evaluation")
    own = modules_for(export, modules)
    if own is None:
        raise ArgumentError(f"{export.sig.name} takes modules that the training step does not")
    found = roles(export, data, {})
    target = _target(found, data)
    kind = _metric(export.sig, target)
    if metric and metric != kind:
        raise ArgumentError(f"{export.sig.name} gives {kind or 'no metric'}, not {metric}")
    if kind is None:
        raise ArgumentError(f"{export.sig.name} gives nothing to compare with the data\n  {export}")
    return Evaluator(export, found, own, fitted(found, data.held_out), target, kind, batch)


def _target(found: Roles, data: Data) -> Array | None:
    """What results are compared with: y, or the (classes) array that the export does not take."""
    if "y" in data.names:
        return data.held_out[data.names.index("y")]
    taken = {i for _, i in found.samples}
    free = [a for i, a in enumerate(data.held_out) if i not in taken]
    free = free if len(free) == 1 else [a for a in free if a.dtype.kind in "iu"]
    return free[0] if len(free) == 1 else None


def _metric(sig: ExportSig, target: Array | None) -> str | None:
    type_ = sig.results[0].type if sig.results else None
    if type_ is None:
        return None
    if type_.rank == 0:
        return "loss" if is_float(type_.dtype) else None
    if target is None:
        return None
    if target.dtype.kind in "iu":
        wide = is_float(type_.dtype) and type_.rank == target.ndim + 1
        return "accuracy" if wide or (is_int(type_.dtype) and type_.rank == target.ndim) else None
    return "mse" if is_float(type_.dtype) and type_.rank == target.ndim else None


def _score(metric: str, result: Any, target: Array | None) -> float:
    if metric == "loss":
        return float(result)
    assert target is not None
    if metric == "mse":
        return float(np.mean((result.astype(np.float64) - target) ** 2))
    classes = result.argmax(-1) if result.ndim > target.ndim else result
    return float(np.mean(classes == target))
