"""The compiler, the cache and the runtime put together; what the API and the command line call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from nnc import compiler
from nnc.budget import Budget as Budget
from nnc.codegen import workers
from nnc.compiler import Checked, Compiled, Scheduled
from nnc.diagnostics import Source
from nnc.errors import ArgumentError, LoadError
from nnc.lang.syntax import keep_tables
from nnc.nantrap.trap import Trap
from nnc.runtime.cache import fetch
from nnc.runtime.model import Model

Overrides = Mapping[str, Mapping[str, object]]


def check_file(path: str | Path, overrides: Overrides | None = None) -> Checked:
    """The diagnostics of a file. LoadError when it cannot be read."""
    read_file(path)
    keep_tables(fetch)
    return compiler.check(str(path), overrides)


def compile_file(
    path: str | Path,
    overrides: Overrides | None = None,
    *,
    cache: bool = True,
    tests: bool = False,
    budget: Budget | None = None,
    winograd: bool = False,
) -> Compiled:
    """Compiles every export. CompileError or LoadError; DeviceError beyond the budget."""
    read_file(path)
    found = fetch if cache else None
    workers.start(found)
    return compiler.compile_file(
        str(path), overrides, cache=found, tests=tests, budget=budget, winograd=winograd
    )


def model_of(compiled: Compiled, libraries: Sequence[str | Path] = ()) -> Model:
    """The compiled file, ready to be called; `libraries`: with C functions that it calls."""
    manifest, objects, support = compiled.manifest, compiled.objects, compiled.support
    parts = (compiled.lazy, partial(dump, compiled), compiled.probed, watch(compiled))
    return Model(manifest, objects, support, *parts).link(libraries)


def watch(compiled: Compiled) -> Callable[[str], Trap]:
    """What `nan_trap` runs for an export."""
    return lambda name: Trap(compiled.built[name], compiled.cache)


def dump(compiled: Compiled, name: str, stage: str) -> str:
    """The text of one export at one stage. ArgumentError for an unknown stage."""
    _known_stage(stage)
    return compiled.dump(name, stage)


def dump_file(path: str | Path, name: str, stage: str, overrides: Overrides | None = None) -> str:
    """The text of one export at one stage."""
    read_file(path)
    keep_tables(fetch)
    _known_stage(stage)
    try:
        return compiler.dump(str(path), name, stage, overrides)
    except KeyError as error:
        if error.args != (name,):
            raise
        raise ArgumentError(f"{path} exports no {name!r}") from None


def schedule_file(
    path: str | Path,
    overrides: Overrides | None = None,
    budget: Budget | None = None,
    winograd: bool = False,
) -> list[Scheduled]:
    """Every export with its kernels and memory. CompileError or LoadError."""
    read_file(path)
    keep_tables(fetch)
    return compiler.scheduled(str(path), overrides, budget, winograd)


def read_file(path: str | Path) -> Source:
    """The text of a file; LoadError unless it is UTF-8 text."""
    if Path(path).suffix == ".json":
        raise LoadError(f"{path} is compiled already, and only its `.nn` says more")
    try:
        return compiler.read(str(path))
    except UnicodeDecodeError as error:
        raise LoadError(f"{path} is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise LoadError(f"cannot read {path!r}: {error}") from None


def _known_stage(stage: str) -> None:
    if stage not in compiler.STAGES:
        known = " ".join(compiler.STAGES)
        raise ArgumentError(f"there is no stage {stage!r}; there are {known}")
