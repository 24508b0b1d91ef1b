"""The machine's FMA peak: independent multiply-adds in registers, no memory."""

from __future__ import annotations

import ctypes
import time

import llvmlite.binding as llvm

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


def measure(seconds: float = 0.3) -> float:
    """FLOP/s of one thread: the best of short windows."""
    target = host()
    module = llvm.parse_assembly(_loop(target))
    module.verify()
    engine = llvm.create_mcjit_compiler(module, target.machine(jit=True))
    engine.finalize_object()
    kind = ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_int64, ctypes.c_float)
    run = kind(engine.get_function_address("peak"))
    n, best = 200_000, 0.0
    flop = 2.0 * n * CHAINS * target.vector_bytes / 4
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        run(n, 1e-30)
        best = max(best, flop / (time.perf_counter() - start))
    return best
