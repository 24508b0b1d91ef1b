"""Where nnc's errors leave for the user's code: without the frames in between."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any, TypeVar, cast

from nnc.errors import Error

F = TypeVar("F", bound=Callable[..., Any])


def _template(*args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)  # noqa: F821
    except Error as met:
        error = met
    error.__context__ = None
    raise error.with_traceback(None) from None


def boundary(function: F, file: str = "<nnc>", line: int = 1, name: str | None = None) -> F:
    """`function`, whose `Error`s arrive with one frame of nnc: `file`, `line`, `name`."""
    name = name or function.__name__
    code = _one_line(_template.__code__, file, line, name)
    wrapper = FunctionType(code, {"function": function, "Error": Error}, name)
    return cast(F, functools.update_wrapper(wrapper, function))


def _one_line(code: CodeType, file: str, line: int, name: str) -> CodeType:
    """The code with all of it said to stand on one line (the format of Objects/locations.md)."""
    units = len(code.co_code) // 2
    table = b""
    while units:
        step = min(units, 8)
        table += bytes((0x80 | 13 << 3 | (step - 1), 0))  # "no columns", no change of line
        units -= step
    return code.replace(
        co_filename=file, co_firstlineno=line, co_name=name, co_qualname=name, co_linetable=table
    )


def split_place(place: str, default: str = "<nnc>") -> tuple[str, int]:
    """`mlp.nn:13` or `mlp.nn:13:5` as file and line."""
    parts = place.split(":")
    while len(parts) > 2 and parts[-1].isdigit() and parts[-2].isdigit():
        parts.pop()
    if len(parts) > 1 and parts[-1].isdigit():
        return ":".join(parts[:-1]), int(parts[-1])
    return place or default, 1
