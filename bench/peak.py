"""The machine's limits: independent multiply-adds in registers, and reading memory."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numpy as np

from nnc.codegen.target import Target, host

CHAINS = 24  # independent accumulators: more than latency times ports


def _loop(target: Target) -> str:
    lanes = target.vector_bytes // 4
    v = f"<{lanes} x float>"
    phis = "\n".join(
        f"  %a{i} = phi {v} [ zeroinitializer, %entry ], [ %b{i}, %loop ]" for i in range(CHAINS)
    )
    body = "\n".join(
        f"  %b{i} = call {v} @llvm.fma.v{lanes}f32({v} %a{i}, {v} %x, {v} %x)"
        for i in range(CHAINS)
    )
    total, sums = "%b0", []
    for i in range(1, CHAINS):
        sums.append(f"  %s{i} = fadd {v} {total}, %b{i}")
        total = f"%s{i}"
    return f"""target triple = "{target.triple}"
declare {v} @llvm.fma.v{lanes}f32({v}, {v}, {v})
define float @peak(i64 %n, float %seed) {{
entry:
  %one = insertelement {v} zeroinitializer, float %seed, i32 0
  %x = shufflevector {v} %one, {v} zeroinitializer, <{lanes} x i32> zeroinitializer
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %j, %loop ]
{phis}
{body}
  %j = add i64 %i, 1
  %more = icmp ult i64 %j, %n
  br i1 %more, label %loop, label %done
done:
{chr(10).join(sums)}
  %r = extractelement {v} {total}, i32 0
  ret float %r
}}
"""


def _run(text: str, name: str, *kinds: Any) -> Any:
    """A function of an LLVM module, as a ctypes function that keeps its engine alive."""
    target = host()
    module = llvm.parse_assembly(text)
    module.verify()
    engine = llvm.create_mcjit_compiler(module, target.machine(jit=True))
    engine.finalize_object()
    run = ctypes.CFUNCTYPE(*kinds)(engine.get_function_address(name))
    run.engine = engine  # type: ignore[attr-defined]
    return run


def _together(work: Callable[[int], object], threads: int) -> float:
    """Seconds until all threads are done; ctypes calls run beside each other."""
    gate = threading.Barrier(threads + 1)

    def one(i: int) -> None:
        gate.wait()
        work(i)
        gate.wait()

    pool = [threading.Thread(target=one, args=(i,)) for i in range(threads)]
    for t in pool:
        t.start()
    gate.wait()
    start = time.perf_counter()
    gate.wait()
    seconds = time.perf_counter() - start
    for t in pool:
        t.join()
    return seconds


def flops(threads: int = 1, windows: int = 30) -> float:
    """FLOP/s of all threads: the best of short windows."""
    target = host()
    run = _run(_loop(target), "peak", ctypes.c_float, ctypes.c_int64, ctypes.c_float)
    n = 500_000
    flop = 2.0 * n * CHAINS * target.vector_bytes / 4
    best = min(_together(lambda _: run(n, 1e-30), threads) for _ in range(windows))
    return threads * flop / best


def _read(target: Target) -> str:
    lanes = target.vector_bytes // 4
    v = f"<{lanes} x float>"
    phis = "\n".join(
        f"  %a{i} = phi {v} [ zeroinitializer, %entry ], [ %b{i}, %loop ]" for i in range(8)
    )
    body = "\n".join(
        f"""  %k{i} = add i64 %i, {i * lanes}
  %p{i} = getelementptr float, ptr %x, i64 %k{i}
  %v{i} = load {v}, ptr %p{i}, align {target.vector_bytes}
  %b{i} = fadd {v} %a{i}, %v{i}"""
        for i in range(8)
    )
    total, sums = "%b0", []
    for i in range(1, 8):
        sums.append(f"  %s{i} = fadd {v} {total}, %b{i}")
        total = f"%s{i}"
    return f"""target triple = "{target.triple}"
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
define float @sweep(ptr %x, i64 %n) {{
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %j, %loop ]
{phis}
{body}
  %ahead = getelementptr i8, ptr %p0, i64 2048
  call void @llvm.prefetch.p0(ptr %ahead, i32 0, i32 3, i32 1)
  %j = add i64 %i, {8 * lanes}
  %more = icmp ult i64 %j, %n
  br i1 %more, label %loop, label %done
done:
{chr(10).join(sums)}
  %r = extractelement {v} {total}, i32 0
  ret float %r
}}
"""


def bandwidth(threads: int = 1, megabytes: int = 256, windows: int = 24) -> float:
    """Bytes/s read by all threads together, each from its own part of memory: the best window."""
    run = _run(_read(host()), "sweep", ctypes.c_float, ctypes.c_void_p, ctypes.c_int64)
    n = megabytes * (1 << 20) // 4 // threads // 1024 * 1024
    data = np.zeros(n * threads + 16, np.float32)
    data[::512] = 1  # touches every page
    at = -(-data.ctypes.data // 64) * 64
    best = min(_together(lambda i: run(at + 4 * n * i, n), threads) for _ in range(windows))
    return 4.0 * n * threads / best
