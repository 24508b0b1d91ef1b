"""What all threads read of memory together: arrays too big for the caches, each its own part."""

from __future__ import annotations

import ctypes

import numpy as np

from nnc.codegen.roof import function, sweep, together
from nnc.codegen.target import host


def bandwidth(threads: int = 1, megabytes: int = 256, windows: int = 24) -> float:
    """Bytes/s read by all threads together, each from its own part of memory: the best window."""
    kinds = (ctypes.c_float, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    run = function(sweep(host(), ahead=2048), "sweep", *kinds)
    n = megabytes * (1 << 20) // 4 // threads // 1024 * 1024
    data = np.zeros(n * threads + 16, np.float32)
    data[::512] = 1  # touches every page
    at = -(-data.ctypes.data // 64) * 64
    best = min(together(lambda i: run(at + 4 * n * i, n, -1), threads) for _ in range(windows))
    return 4.0 * n * threads / best
