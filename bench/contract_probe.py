"""Contractions against NumPy's BLAS, with the machine's FMA peak beside them.

    python bench/contract_probe.py [--threads 2] [--dtype f64] [--isa avx2] [--shapes 64x64x64,...]

Columns: layout (nn: A*B, nt: A*B', tn: A'*B, packed: A*B with B packed before), GF/s, share of the
peak, NumPy's GF/s, their ratio (over 1: ours is faster), compile time. Minima over windows.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).parent.parent))
from nnc.codegen import contract as leaf
from nnc.codegen import tiles
from nnc.codegen.emit import Emitter
from nnc.codegen.target import Target, host, x86
from tests.jit import build, pool

NUMPY = {"f32": np.float32, "f64": np.float64}
ADDRESS = ctypes.c_void_p
PART = ctypes.CFUNCTYPE(None, ADDRESS, ctypes.c_int32, ctypes.c_int32)
RUN = ctypes.CFUNCTYPE(None, ADDRESS, ADDRESS, ctypes.c_int32)
SHAPES = (
    "256x256x256,512x512x512,1024x1024x1024,64x512x784,64x128x64,64x10x512,1x3072x768,8x3072x768,"
    "32x3072x768,128x3072x768,128x768x3072,500x500x500,96x96x96,784x512x64"
)


def peak_text(t: tiles.Tile) -> str:
    v, s = t.vector, tiles.suffix(t)
    names = [f"%s{i}" for i in range(12)]
    phis = "\n".join(f"  {x} = phi {v} [ zeroinitializer, %e ], [ {x}n, %l ]" for x in names)
    fmas = "\n".join(f"  {x}n = call {v} @llvm.fma.{s}({v} %x, {v} %x, {v} {x})" for x in names)
    stores = "\n".join(f"  store volatile {v} {x}n, ptr %p" for x in names)
    return f"""
declare {v} @llvm.fma.{s}({v}, {v}, {v})
define void @peak(ptr %p, i32 %tid, i32 %nt) {{
e:
  %x = load volatile {v}, ptr %p
  br label %l
l:
  %i = phi i64 [ 0, %e ], [ %j, %l ]
{phis}
{fmas}
  %j = add i64 %i, 1
  %more = icmp slt i64 %j, 100000
  br i1 %more, label %l, label %d
d:
{stores}
  ret void
}}
"""


def kernel(target: Target, dtype: str, kind: str, m: int, n: int, k: int) -> str:
    """f(args, tid, nt), args: a, b, c, scratch of all threads; prepack likewise, from b to c."""
    bytes_ = leaf.scratch_bytes(dtype, target)
    head = "\n".join(
        f"  %{x}.at = getelementptr ptr, ptr %args, i64 {i}\n  %{x} = load ptr, ptr %{x}.at"
        for i, x in enumerate(("a", "b", "c", "all"))
    )
    head += f"\n  %wide = sext i32 %tid to i64\n  %skip = mul i64 %wide, {bytes_}"
    head += "\n  %scratch = getelementptr i8, ptr %all, i64 %skip\n"
    a = leaf.Strided("%a", "1", str(m)) if kind == "tn" else leaf.Strided("%a", str(k), "1")
    b = leaf.Strided("%b", "1", str(k)) if kind == "nt" else leaf.Strided("%b", str(n), "1")
    store = leaf.strided_store(dtype, target, "%c", str(n))
    sizes = (str(m), str(n), str(k))
    body, pack = Emitter(), Emitter()
    right = leaf.Packed("%b") if kind == "packed" else b
    leaf.emit_contraction(
        body, leaf.Contraction(dtype, target, *sizes, a, right, store, "%scratch")
    )
    leaf.emit_prepack(pack, dtype, target, b, str(n), str(k), "%c")
    lines = list(leaf.declarations(dtype, target))
    for name, em in (("f", body), ("prepack", pack))[: 2 if kind == "packed" else 1]:
        lines.append(f"define void @{name}(ptr %args, i32 %tid, i32 %nt) {{\nentry:\n{head}")
        lines.append(f"{em.text()}\n  ret void\n}}\n")
    return "\n".join(lines)


def aligned(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 64, np.uint8)
    return raw[-raw.ctypes.data % 64 :][:size].view(dtype).reshape(shape)


def best(call: Callable[[], object], seconds: float) -> float:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


class Bench:
    def __init__(self, target: Target, dtype: str, threads: int, level: int) -> None:
        self.target, self.dtype, self.threads, self.level = target, dtype, threads, level
        self.run = RUN(pool())
        begin = time.perf_counter()
        lib = build(leaf.support_module(dtype, target), target=target, level=0)
        took = (time.perf_counter() - begin) * 1e3
        functions, data = leaf.support_symbols(dtype, target)
        for name in functions:
            llvm.add_symbol(name, lib.get_function_address(name))
        for name in data:
            llvm.add_symbol(name, lib.get_global_value_address(name))
        t = tiles.tile(dtype, target)
        spin = build(peak_text(t), target=target).get_function_address("peak")
        x = aligned((16,), np.float32)
        seconds = best(lambda: self.run(spin, x.ctypes.data, threads), 0.3)
        self.peak = 100000 * 24 * t.lanes * threads / seconds / 1e9
        print(f"{target.isa} {dtype}: support {took:.0f} ms, peak {self.peak:.0f} GF/s")
        size = leaf.scratch_bytes(dtype, target) * threads
        self.scratch = aligned((size,), np.uint8)

    def matrix(self, rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
        x = aligned((rows, columns), NUMPY[self.dtype])
        x[...] = rng.standard_normal((rows, columns))
        return x

    def measure(self, kind: str, m: int, n: int, k: int) -> str:
        rng = np.random.default_rng(0)
        a = self.matrix(rng, k, m) if kind == "tn" else self.matrix(rng, m, k)
        b = self.matrix(rng, n, k) if kind == "nt" else self.matrix(rng, k, n)
        c, want = (aligned((m, n), NUMPY[self.dtype]) for _ in range(2))
        begin = time.perf_counter()
        text = kernel(self.target, self.dtype, kind, m, n, k)
        engine = build(text, target=self.target, level=self.level)
        f = engine.get_function_address("f")
        took = time.perf_counter() - begin
        operand = b
        if kind == "packed":
            operand = aligned((leaf.packed_bytes(self.dtype, self.target, n, k),), np.uint8)
            args = (ADDRESS * 4)(0, b.ctypes.data, operand.ctypes.data, self.scratch.ctypes.data)
            self.run(engine.get_function_address("prepack"), ctypes.addressof(args), self.threads)
        arrays = (a, operand, c, self.scratch)
        args = (ADDRESS * 4)(*(x.ctypes.data for x in arrays))
        at = ctypes.addressof(args)
        left, right = a.T if kind == "tn" else a, b.T if kind == "nt" else b
        ours = theirs = 1e9
        for _ in range(4):
            time.sleep(0.01)  # the other's workers must have gone to sleep
            ours = min(ours, best(lambda: self.run(f, at, self.threads), 0.05))
            time.sleep(0.01)
            theirs = min(theirs, best(lambda: np.matmul(left, right, out=want), 0.05))
        error = np.abs(c - want).max() / np.abs(want).max()
        assert error < 1e-5, (kind, m, n, k, error)
        g = 2 * m * n * k / 1e9
        share = g / ours / self.peak * 100
        return (
            f"| {kind} {g / ours:6.1f} {share:3.0f}% np {g / theirs:6.1f} "
            f"{theirs / ours:4.2f}x {took * 1e3:3.0f}ms "
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--isa", default="")
    parser.add_argument("--dtype", default="f32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kinds", default="nn,nt,tn,packed")
    parser.add_argument("--shapes", default=SHAPES)
    parser.add_argument("--level", type=int, default=0)
    args = parser.parse_args()
    target = x86(args.isa) if args.isa else host()
    with threadpool_limits(args.threads):
        bench = Bench(target, args.dtype, args.threads, args.level)
        for shape in args.shapes.split(","):
            m, n, k = map(int, shape.split("x"))
            cells = "".join(bench.measure(kind, m, n, k) for kind in args.kinds.split(","))
            print(f"{m:5}x{n:5}x{k:5} {cells}", flush=True)


if __name__ == "__main__":
    main()
