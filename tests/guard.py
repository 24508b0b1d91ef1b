"""Arrays that end or start exactly at a protected page: an access outside them is a fault.

The rest of the array's own pages is poisoned with NaN, so that a read of it shows in the result.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

_PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def _protect(address: int, size: int, rights: int) -> None:
    if _libc.mprotect(address, size, rights):
        raise OSError(ctypes.get_errno(), "mprotect")


class Guarded:
    """A NumPy array with a protected page behind it ("end") or before it ("start").

    The array is filled with NaN (integers: the largest value). An empty array has no address to
    speak of: it points at the protected page. Keep the object as long as the array.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any, side: str = "end") -> None:
        dtype = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        inner = max(-(-size // _PAGE), 1) * _PAGE
        self._map = mmap.mmap(-1, inner + 2 * _PAGE)
        whole = np.frombuffer(self._map, np.uint8)
        self._base = whole.ctypes.data
        self._inner = inner
        poison = np.nan if dtype.kind == "f" else np.iinfo(dtype).max
        room = whole[_PAGE : _PAGE + inner]
        spare = inner % dtype.itemsize
        start = _PAGE + inner - size if side == "end" else _PAGE
        room[: inner - spare].view(dtype)[:] = poison
        self.array = whole[start : start + size].view(dtype).reshape(shape)
        _protect(self._base, _PAGE, 0)
        _protect(self._base + _PAGE + inner, _PAGE, 0)

    def fill(self, values: Any, *, read_only: bool = True) -> np.ndarray:
        """Writes the values; then makes the pages read-only unless told otherwise."""
        self.array[...] = values
        if read_only:
            _protect(self._base + _PAGE, self._inner, mmap.PROT_READ)
        return self.array

    def release(self) -> None:
        """Makes the pages ordinary again, so that the mapping can go."""
        _protect(self._base, self._inner + 2 * _PAGE, mmap.PROT_READ | mmap.PROT_WRITE)


@contextmanager
def guarded(side: str = "end") -> Iterator[Any]:
    """Gives a function alloc(shape, dtype, values=None) -> array; all go at the end."""
    arrays: list[Guarded] = []

    def alloc(shape: tuple[int, ...], dtype: Any, values: Any = None) -> np.ndarray:
        arrays.append(Guarded(shape, dtype, side))
        return arrays[-1].array if values is None else arrays[-1].fill(values)

    try:
        yield alloc
    finally:
        for a in arrays:
            a.release()
