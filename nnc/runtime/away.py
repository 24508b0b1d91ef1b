"""Leaves of modules of which only packed copies are in memory, and how they come back.

Native code that has a packed copy of a leaf does not read the leaf. So that weights are not in
memory twice, the system takes the leaf's pages then; whoever needs the leaf again (a view, another
export, other sizes) gets it from the copy first, bit for bit.
"""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass
from math import prod

import numpy as np

from nnc.ir.signature import Copy
from nnc.runtime.memory import Array

SLAB, SLAB_K = 32, 16  # of `nnc.ir.loop`
LEAST = 1 << 18  # bytes of a leaf that is worth it
_DONTNEED = 4
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Slabs:
    """A copy in `memory`, which this holds: [columns/SLAB][rows rounded up to SLAB_K][SLAB]."""

    memory: Array
    copy: Copy

    def write(self, leaf: Array) -> None:
        """Fills the leaf."""
        c = self.copy
        n, k = prod(c.extents[: c.columns]), prod(c.extents[c.columns :])
        shape = (-(-n // SLAB), -(-k // SLAB_K) * SLAB_K, SLAB)
        slabs = np.ndarray(shape, leaf.dtype, self.memory.data, c.start)
        steps = tuple(s * leaf.itemsize for s in c.strides)
        target = np.ndarray(c.extents, leaf.dtype, leaf.data, 0, steps)
        rows = slabs[:, :k].transpose(0, 2, 1).reshape(-1, k)[:n]
        target[...] = rows.reshape(c.extents)


def give_back(memory: Array) -> bool:
    """Lets the system take the whole pages of the memory; they hold zeros when they are touched
    again. False when it does not."""
    begin = memory.ctypes.data
    first, last = -(-begin // mmap.PAGESIZE), (begin + memory.nbytes) // mmap.PAGESIZE
    if last <= first:
        return False
    start, size = first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE
    done = _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), _DONTNEED)
    return bool(done == 0)
