"""`nnc.load`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nnc.errors import ArgumentError
from nnc.runtime.boundary import boundary
from nnc.runtime.model import Model


@boundary
def load(
    path: str | Path,
    *,
    threads: int | None = None,
    cache: bool = True,
    libraries: Sequence[str | Path] = (),
    nan_trap: bool = False,
    **modules: object,
) -> Model:
    """Checks and compiles a `.nn` file (or loads the `.json` of `nnc compile`).

    `modules` override module parameters: `nnc.load("gpt2.nn", GPT2=dict(L=2, D=128))`. CompileError
    holds the diagnostics of a wrong file, LoadError says why a file cannot be read.

    `libraries`: shared libraries with the C functions that the program calls (`extern`); what they
    lack is looked for in this process (the C and mathematics libraries are there).

    `nan_trap`: a call that makes a value that is NaN or infinite raises NonFiniteError, which names
    the line, the element and what it was made from; nothing is written then. Calls are slower.
    """
    if Path(path).suffix == ".json":
        from nnc.runtime import artifact

        if modules:
            raise ArgumentError(f"{path} is compiled already: its parameters are fixed")
        model = artifact.load(path)
    else:
        from nnc.loading import load_model

        model = load_model(str(path), _overrides(modules), cache)
    model.link(libraries)
    if threads is not None:
        model.threads = threads
    return model.trap() if nan_trap else model


def _overrides(modules: Mapping[str, object]) -> dict[str, dict[str, object]]:
    out: dict[str, dict[str, object]] = {}
    for name, table in modules.items():
        if not isinstance(table, Mapping):
            raise ArgumentError(
                f"{name}={table!r}: parameters of a module are a table, {name}=dict(...)"
            )
        out[name] = {str(k): v for k, v in table.items()}
    return out
