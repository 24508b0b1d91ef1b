"""The peers that are installed, and how to give each the same number of threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def cores() -> int:
    return len(os.sched_getaffinity(0))


def torch() -> Any | None:
    try:
        import torch as module
    except ImportError:
        return None
    return module


@contextmanager
def threads(n: int) -> Iterator[bool]:
    """Limits BLAS (through threadpoolctl) and PyTorch; False: NumPy's BLAS could not be limited."""
    module = torch()
    before = module.get_num_threads() if module is not None else 0
    if module is not None:
        module.set_num_threads(n)
    try:
        try:
            from threadpoolctl import threadpool_limits
        except ImportError:
            yield n == cores()
        else:
            with threadpool_limits(n):
                yield True
    finally:
        if module is not None:
            module.set_num_threads(before)
