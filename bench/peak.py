"""What all threads read of memory together: arrays too big for the caches, each its own part."""

from __future__ import annotations

import ctypes

import numpy as np

from nnc.codegen.roof import function, loop, together
from nnc.codegen.target import Target, host

_STREAMS = 8  # vectors read in one turn


def _read(target: Target) -> str:
    lanes = target.vector_bytes // 4
    v = f"<{lanes} x float>"
    turn = []
    for i in range(_STREAMS):
        turn += [
            f"  %k{i} = add i64 %i, {i * lanes}",
            f"  %p{i} = getelementptr float, ptr %x, i64 %k{i}",
            f"  %v{i} = load {v}, ptr %p{i}, align {target.vector_bytes}",
            f"  %b{i} = fadd {v} %a{i}, %v{i}",
        ]
    turn.append("  %ahead = getelementptr i8, ptr %p0, i64 2048")
    turn.append("  call void @llvm.prefetch.p0(ptr %ahead, i32 0, i32 3, i32 1)")
    return f"""target triple = "{target.triple}"
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
define float @sweep(ptr %x, i64 %n) {{
entry:
  br label %loop
{loop(v, _STREAMS, turn, _STREAMS * lanes)}
}}
"""


def bandwidth(threads: int = 1, megabytes: int = 256, windows: int = 24) -> float:
    """Bytes/s read by all threads together, each from its own part of memory: the best window."""
    run = function(_read(host()), "sweep", ctypes.c_float, ctypes.c_void_p, ctypes.c_int64)
    n = megabytes * (1 << 20) // 4 // threads // 1024 * 1024
    data = np.zeros(n * threads + 16, np.float32)
    data[::512] = 1  # touches every page
    at = -(-data.ctypes.data // 64) * 64
    best = min(together(lambda i: run(at + 4 * n * i, n), threads) for _ in range(windows))
    return 4.0 * n * threads / best
