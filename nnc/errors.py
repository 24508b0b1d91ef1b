"""The exceptions of nnc, all under `Error`; each is also the built-in class a user expects."""

from __future__ import annotations

import builtins
import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nnc.diagnostics import Diagnostic, render_all


class Error(Exception):
    """Anything that a user of nnc did or met; `str()` is the whole message."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class CompileError(Error):
    """A `.nn` file with mistakes; `diagnostics` holds them (errors and warnings)."""

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        self.diagnostics = list(diagnostics)
        super().__init__("\n" + render_all(d for d in self.diagnostics if d.severity == "error"))

    def __reduce__(self) -> tuple[type[CompileError], tuple[list[Diagnostic]]]:
        return type(self), (self.diagnostics,)


class ArgumentError(Error, TypeError):
    """A call that does not fit the declared signature."""


class DtypeError(Error, TypeError):
    """An array of another dtype than declared."""


class ShapeError(Error, ValueError):
    """An array whose axes do not fit the declared sizes."""


class IndexError(Error, builtins.IndexError):
    """A data-dependent index outside its axis, met while running."""


class KeyError(Error, builtins.KeyError):
    """A name that is not there; the nearest one is in the message."""


class AttributeError(Error, builtins.AttributeError):
    """A model or module has no such member."""


class LoadError(Error, ValueError):
    """A file that cannot be read or does not fit; nothing was changed."""


class SaveError(Error, OSError):
    """A file that cannot be written; the old file, if any, is as it was."""


class NonFiniteError(Error, FloatingPointError):
    """A call under `nan_trap` made a value that is NaN or infinite."""


class DeviceError(Error, RuntimeError):
    """The machine lacks what the compiled code or the sizes ask for."""


def as_path(path: Any) -> Path:
    """ArgumentError for what is no path."""
    if isinstance(path, str | os.PathLike):
        return Path(path)
    raise ArgumentError(f"a path is a text or a pathlib.Path, got a {type(path).__name__}")


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean "fc1.weight"?` or nothing."""
    close = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f'; did you mean "{close[0]}"?' if close else ""


for _class in [Error, *Error.__subclasses__()]:
    _class.__module__ = "nnc"  # tracebacks name them as users do: nnc.ShapeError
