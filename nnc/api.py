"""`nnc.load`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path

import numpy as np

from nnc.errors import ArgumentError, as_path, nearest
from nnc.runtime.boundary import boundary
from nnc.runtime.memory import byte_count
from nnc.runtime.model import Model


@boundary
def load(
    path: str | Path,
    *,
    threads: int | None = None,
    cache: bool = True,
    libraries: Sequence[str | Path] = (),
    nan_trap: bool = False,
    max_memory: int | float | str | None = None,
    sizes: Mapping[str, int] | None = None,
    winograd: bool = False,
    **modules: object,
) -> Model:
    """Checks and compiles a `.nn` file (or loads the `.json` of `nnc compile`).

    `modules` override module parameters: `nnc.load("gpt2.nn", GPT2=dict(L=2, D=128))`. CompileError
    holds the diagnostics of a wrong file, LoadError says why a file cannot be read.

    `libraries`: shared libraries with the C functions that the program calls (`extern`); what they
    lack is looked for in this process (the C and mathematics libraries are there).

    `nan_trap`: a call that makes a value that is NaN or infinite raises NonFiniteError, which names
    the line, the element and what it was made from; nothing is written then. Calls are slower.

    `max_memory`: bytes (or "8 GB", "8 GiB") that an export with a gradient may take at `sizes`
    (`dict(B=8, T=1024)`), arguments included: calls of modules are computed again for the gradient
    until it keeps them, the best first. DeviceError, with the bytes that can be reached.

    `winograd`: windows of 3 x 3 with stride 1 over weights of modules that are only read take a
    quarter of the products, and a little more memory. Results are rounded otherwise: `nnc compile
    --winograd` and `nnc profile --winograd` print by how much.
    """
    limit = _limit(max_memory, sizes)
    if as_path(path).suffix == ".json":
        from nnc.runtime import artifact

        if modules or limit or winograd:
            raise ArgumentError(f"{path} is compiled already: its parameters and form are fixed")
        model = artifact.load(path)
    else:
        from nnc.loading import load_model

        model = load_model(str(path), _overrides(modules), cache, limit, winograd, here=nan_trap)
    model.link(libraries)
    if threads is not None:
        model.threads = threads
    return model.trap() if nan_trap else model


def _limit(
    max_memory: int | float | str | None, sizes: Mapping[str, int] | None
) -> tuple[int, dict[str, int]] | None:
    if max_memory is None:
        if sizes:
            raise ArgumentError("sizes are those of max_memory, which is not given")
        return None
    wrong = [f"{n} = {v!r}" for n, v in (sizes or {}).items() if not _is_size(v)]
    if wrong:
        raise ArgumentError(f"a size is a whole number of at least 1, not {', '.join(wrong)}")
    return byte_count(max_memory), {n: int(v) for n, v in (sizes or {}).items()}


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


_OPTIONS = [n for n, p in signature(load).parameters.items() if p.kind is p.KEYWORD_ONLY]


def _overrides(modules: Mapping[str, object]) -> dict[str, dict[str, object]]:
    out: dict[str, dict[str, object]] = {}
    for name, table in modules.items():
        if not isinstance(table, Mapping):
            raise ArgumentError(
                f"{name}={table!r}: parameters of a module are a table, {name}=dict(...)"
                f"{nearest(name, _OPTIONS)}"
            )
        out[name] = {str(k): _number(f"{name}.{k}", v) for k, v in table.items()}
    return out


def _number(name: str, value: object) -> int | float | bool:
    """A module parameter as a number of Python (NumPy's are too)."""
    plain = value.item() if isinstance(value, np.generic) else value
    if isinstance(plain, int | float):
        return plain
    raise ArgumentError(f"{name} is a number or a bool, got {value!r}")
