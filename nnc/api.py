"""`nnc.load`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nnc.errors import ArgumentError
from nnc.runtime.boundary import boundary
from nnc.runtime.model import Model


@boundary
def load(
    path: str | Path, *, threads: int | None = None, cache: bool = True, **modules: object
) -> Model:
    """Checks and compiles a `.nn` file (or loads the `.json` of `nnc compile`).

    `modules` override module parameters: `nnc.load("gpt2.nn", GPT2=dict(L=2, D=128))`. CompileError
    holds the diagnostics of a wrong file, LoadError says why a file cannot be read.
    """
    if Path(path).suffix == ".json":
        from nnc.runtime import artifact

        if modules:
            raise ArgumentError(f"{path} is compiled already: its parameters are fixed")
        model = artifact.load(path)
    else:
        from nnc.loading import load_model

        model = load_model(str(path), _overrides(modules), cache)
    if threads is not None:
        model.threads = threads
    return model


def _overrides(modules: Mapping[str, object]) -> dict[str, dict[str, object]]:
    out: dict[str, dict[str, object]] = {}
    for name, table in modules.items():
        if not isinstance(table, Mapping):
            raise ArgumentError(
                f"{name}={table!r}: parameters of a module are a table, {name}=dict(...)"
            )
        out[name] = {str(k): v for k, v in table.items()}
    return out
