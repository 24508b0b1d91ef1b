"""The machine's limits, measured: multiply-adds in registers, and reading a working set."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm
import numpy as np

from nnc.codegen.target import Target, host

_CHAINS = 24  # independent accumulators: more than latency times ports
_STREAMS = 8  # vectors read in one turn
_TURNS = 200_000
_WINDOWS = 8  # the best one counts
_LEAST, _MOST = 4096, 24  # floats that a thread reads again and again; their logarithm


@dataclass(frozen=True)
class Roof:
    """Operations and bytes a second that the machine can do; what a kernel needs at least."""

    flops: float  # f32, a multiply-add is two
    bandwidth: float  # bytes read, from wherever a working set of `size` bytes lies
    size: int

    def seconds(self, operations: float, nbytes: float) -> float:
        return max(operations / self.flops, nbytes / self.bandwidth)


def measured(threads: int, size: int) -> Roof:
    """The roof of this many threads over a working set of so many bytes, in some 0.1 s."""
    return Roof(flops(threads), _bandwidth(threads, size), size)


def flops(threads: int, windows: int = _WINDOWS) -> float:
    """Multiply-adds in registers, twice their number a second: the best of short windows."""
    run = function(_multiply_adds(host()), "peak", ctypes.c_float, ctypes.c_int64, ctypes.c_float)
    once = 2.0 * _TURNS * _CHAINS * host().vector_bytes / 4
    best = min(together(lambda _: run(_TURNS, 1e-30), threads) for _ in range(windows))
    return threads * once / best


def _bandwidth(threads: int, size: int) -> float:
    kinds = (ctypes.c_float, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    run = function(sweep(host()), "sweep", *kinds)
    each = 1 << min(max(size // (4 * threads), _LEAST).bit_length() - 1, _MOST)  # floats
    data = np.ones(each * threads + 16, np.float32)
    start = -(-data.ctypes.data // 64) * 64
    count = max(each, 1 << 22)
    work = lambda i: run(start + 4 * each * i, count, each - 1)  # noqa: E731
    best = min(together(work, threads) for _ in range(_WINDOWS))
    return 4.0 * count * threads / best


def together(work: Callable[[int], object], threads: int) -> float:
    """Seconds until all threads are done (native calls run beside each other)."""
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


def function(text: str, name: str, *kinds: Any) -> Any:
    """A function of a module, with the engine that holds its code."""
    module = llvm.parse_assembly(text)
    module.verify()
    engine = llvm.create_mcjit_compiler(module, host().machine(jit=True))
    engine.finalize_object()
    run: Any = ctypes.CFUNCTYPE(*kinds)(engine.get_function_address(name))
    run.engine = engine
    return run


def _multiply_adds(target: Target) -> str:
    lanes = target.vector_bytes // 4
    v = f"<{lanes} x float>"
    turn = [
        f"  %b{i} = call {v} @llvm.fma.v{lanes}f32({v} %a{i}, {v} %x, {v} %x)"
        for i in range(_CHAINS)
    ]
    return f"""target triple = "{target.triple}"
declare {v} @llvm.fma.v{lanes}f32({v}, {v}, {v})
define float @peak(i64 %n, float %seed) {{
entry:
  %one = insertelement {v} zeroinitializer, float %seed, i32 0
  %x = shufflevector {v} %one, {v} zeroinitializer, <{lanes} x i32> zeroinitializer
  br label %loop
{loop(v, _CHAINS, turn, 1)}
}}
"""


def sweep(target: Target, ahead: int = 0) -> str:
    """Reads n floats at their places in x under a mask; `ahead`: bytes by which it prefetches."""
    lanes = target.vector_bytes // 4
    v = f"<{lanes} x float>"
    turn = []
    for i in range(_STREAMS):
        turn += [
            f"  %j{i} = add i64 %i, {i * lanes}",
            f"  %k{i} = and i64 %j{i}, %mask",
            f"  %p{i} = getelementptr float, ptr %x, i64 %k{i}",
            f"  %v{i} = load {v}, ptr %p{i}, align 4",
            f"  %b{i} = fadd {v} %a{i}, %v{i}",
        ]
    if ahead:
        turn.append(f"  %ahead = getelementptr i8, ptr %p0, i64 {ahead}")
        turn.append("  call void @llvm.prefetch.p0(ptr %ahead, i32 0, i32 3, i32 1)")
    return f"""target triple = "{target.triple}"
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
define float @sweep(ptr %x, i64 %n, i64 %mask) {{
entry:
  br label %loop
{loop(v, _STREAMS, turn, _STREAMS * lanes)}
}}
"""


def loop(v: str, count: int, turn: list[str], step: int) -> str:
    """A loop over `count` accumulators `%a` that gives `%b`, and an element of their sum."""
    phis = [
        f"  %a{i} = phi {v} [ zeroinitializer, %entry ], [ %b{i}, %loop ]" for i in range(count)
    ]
    sums, total = [], "%b0"
    for i in range(1, count):
        sums.append(f"  %s{i} = fadd {v} {total}, %b{i}")
        total = f"%s{i}"
    head = ["loop:", "  %i = phi i64 [ 0, %entry ], [ %j, %loop ]", *phis, *turn]
    tail = [f"  %j = add i64 %i, {step}", "  %more = icmp ult i64 %j, %n"]
    tail += ["  br i1 %more, label %loop, label %done", "done:", *sums]
    tail += [f"  %r = extractelement {v} {total}, i32 0", "  ret float %r"]
    return "\n".join([*head, *tail])
