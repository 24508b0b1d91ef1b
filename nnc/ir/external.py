"""Calls of C functions (`extern`) with NumPy arrays: for the interpreters.

The functions are looked for in this process, and in the libraries opened with mode RTLD_GLOBAL.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from nnc.lang.types import DTYPES, DType

Array = np.ndarray[Any, np.dtype[Any]]
_C = {"f32": ctypes.c_float, "f64": ctypes.c_double, "i8": ctypes.c_int8, "u8": ctypes.c_uint8}
_C |= {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "bool": ctypes.c_bool}


def call(
    symbol: str,
    sizes: Sequence[int],
    inputs: Sequence[tuple[DType, Array]],
    dtype: DType,
    shape: tuple[int, ...],
) -> Array:
    """`void symbol(sizes, inputs..., result)`: rank 0 by value."""
    function = ctypes.CDLL(None)[symbol]
    function.restype = None
    numbers = (ctypes.c_int64 * max(len(sizes), 1))(*sizes)
    result = np.zeros(shape, _stored(dtype))
    given: list[Any] = [numbers]
    alive = []
    for kind, value in inputs:
        if value.ndim:
            alive.append(_in_memory(kind, value))
            given.append(ctypes.c_void_p(alive[-1].ctypes.data))
        else:
            given.append(_C[kind](value.item()))
    function(*given, ctypes.c_void_p(result.ctypes.data))
    return _computed(dtype, result)


def call_each(
    symbol: str, inputs: Sequence[tuple[DType, Array]], dtype: DType, shape: tuple[int, ...]
) -> Array:
    """`T symbol(inputs...)` for every element."""
    function = ctypes.CDLL(None)[symbol]
    function.restype = _C[dtype]
    result = np.zeros(shape, _stored(dtype))
    for at in np.ndindex(*shape):
        result[at] = function(*(_C[kind](value[at].item()) for kind, value in inputs))
    return _computed(dtype, result)


def _stored(dtype: DType) -> np.dtype[Any]:
    """bf16 is kept in NumPy as its 16 bits."""
    return np.dtype(np.uint16 if dtype == "bf16" else DTYPES[dtype].numpy)


def _in_memory(dtype: DType, value: Array) -> Array:
    if dtype == "bf16":
        bits = value.astype(np.float32).view(np.uint32)
        return np.ascontiguousarray((bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype(np.uint16))
    return np.ascontiguousarray(value.astype(_stored(dtype)))


def _computed(dtype: DType, stored: Array) -> Array:
    if dtype == "bf16":
        return (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return stored.astype(np.float64) if stored.dtype.kind == "f" else stored
