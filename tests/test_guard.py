"""The guard pages themselves: a planted overrun must die."""

from __future__ import annotations

import ctypes
import faulthandler
import os

import numpy as np
import pytest

from tests.guard import Guarded


def _dies(address: int, *, write: bool = False) -> bool:
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        if write:
            ctypes.memset(address, 1, 1)
        else:
            ctypes.string_at(address, 1)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("side", ["end", "start"])
@pytest.mark.parametrize("shape", [(1,), (7, 13), (1024,), (33, 129)])
def test_one_past_is_a_fault(side: str, shape: tuple[int, ...]) -> None:
    g = Guarded(shape, np.float32, side)
    assert np.isnan(g.array).all()
    address, size = g.array.ctypes.data, g.array.nbytes
    outside = address + size if side == "end" else address - 1
    assert _dies(outside)
    assert not _dies(address)
    g.fill(1.0)
    assert _dies(address, write=True)
    assert (g.array == 1).all()
    g.release()
