"""NumPy's side of dtypes and memory."""

from __future__ import annotations

import ctypes
import importlib
import re
from functools import cache
from math import prod
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from nnc.errors import ArgumentError, DeviceError
from nnc.lang.types import DTYPES, DType
from nnc.runtime.available import available, fits, physical

Array = NDArray[Any]
ALIGNMENT = 64


@cache
def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    """NumPy's dtype; bf16 is `ml_dtypes.bfloat16` if installed, else its bits as uint16."""
    if dtype != "bf16":
        return np.dtype(DTYPES[dtype].numpy)
    try:
        module = importlib.import_module("ml_dtypes")
    except ImportError:
        return np.dtype(np.uint16)
    bfloat16: np.dtype[Any] = np.dtype(module.bfloat16)
    return bfloat16


def numpy_name(dtype: DType) -> str:
    """How a user writes it: `np.float32`."""
    return "np.bool_" if dtype == "bool" else f"np.{numpy_dtype(dtype).name}"


def cast_help(name: str, array: Array, dtype: DType, given: object = None) -> str:
    """The expression that makes `name` an array of the dtype; "" when there is no plain one.

    `given`: what the user has given and `array` was read from, perhaps no array of NumPy.
    """
    if array.dtype.kind not in "fiub" and array.dtype != numpy_dtype("bf16"):
        return ""
    if not hasattr(given, "astype") and callable(getattr(given, "to", None)):
        package = type(given).__module__.partition(".")[0]  # a tensor: `x.to(torch.float32)`
        return f"{name}.to({package}.{'bfloat16' if dtype == 'bf16' else numpy_dtype(dtype).name})"
    if dtype == "bf16" and numpy_dtype(dtype) == np.uint16:
        bits = f"({name}.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)"
        return f"{bits}: bf16 as its bits; with ml_dtypes {name}.astype(ml_dtypes.bfloat16)"
    return f"{name}.astype({numpy_name(dtype)})"


def raw_bytes(array: Array) -> memoryview:
    """The memory of a C-contiguous array."""
    assert array.flags.c_contiguous, array.flags
    return memoryview(cast(Any, array.reshape(-1).view(np.uint8)))


def rounded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def aligned(nbytes: int, *, zero: bool = True) -> NDArray[np.uint8]:
    """Bytes that begin at a multiple of 64. DeviceError when fewer are free."""
    if nbytes > physical() or not fits(nbytes):
        raise DeviceError(_too_big(nbytes))
    try:
        raw = (np.zeros if zero else np.empty)(nbytes + ALIGNMENT, np.uint8)
    except (MemoryError, ValueError):
        raise DeviceError(_too_big(nbytes)) from None
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + nbytes]


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An array of any contents. DeviceError when fewer bytes are free."""
    nbytes = prod(shape) * dtype.itemsize
    try:
        if fits(nbytes):
            return np.empty(shape, dtype)
    except (MemoryError, ValueError):
        pass
    raise DeviceError(_too_big(nbytes))


def pointer(array: Array) -> int:
    """The address of the first element."""
    try:  # three times as fast as `.ctypes.data`; refuses read-only arrays
        return ctypes.addressof(ctypes.c_char.from_buffer(cast(Any, array)))
    except (TypeError, ValueError, BufferError):
        return int(array.ctypes.data)


def human(nbytes: int) -> str:
    """`38.4 KB`."""
    size = float(nbytes)
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{nbytes} B" if unit == "B" else f"{size:.1f} {unit}"


def byte_count(text: int | float | str) -> int:
    """`8 GB`, `16GiB`, `1e9`: whole bytes of at least 1. ArgumentError."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([KMGT]?)(i?)B?\s*", str(text), re.I)
    try:
        assert match is not None
        unit = (1024 if match[3] else 1000) ** " KMGT".index(match[2].upper() or " ")
        value = int(float(match[1]) * unit)
        assert value > 0
    except (AssertionError, ValueError, OverflowError):
        raise ArgumentError(f"{text!r} is no number of bytes, like 8e9 or '8 GB'") from None
    return value


def _too_big(nbytes: int) -> str:
    most = physical()
    if nbytes > most:
        return f"this needs {human(nbytes)} of memory, the machine has {human(most)}"
    return f"this needs {human(nbytes)} of memory, {human(available())} are free"
