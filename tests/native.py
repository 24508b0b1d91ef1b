"""Builds and runs Programs: through objects, called by ctypes, on guarded arrays."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np

from nnc.codegen import contract, objects
from nnc.codegen.llvm import Module, emit
from nnc.codegen.target import Target, host
from nnc.diagnostics import NOWHERE, Span
from nnc.ir.expr import Const, Expr, Idx, Load, Op, Select, Var
from nnc.ir.graph import Axis
from nnc.ir.loop import Buffer, For, Kernel, Program, Reduce, Stmt, Store
from nnc.ir.scalar import SCALARS
from nnc.lang.dims import Dim, DimLike
from nnc.lang.types import TensorType
from tests.guard import Guarded
from tests.jit import pool

NUMPY = {"f32": np.float32, "f64": np.float64, "f16": np.float16, "bf16": np.uint16, "i8": np.int8}
NUMPY |= {"u8": np.uint8, "i32": np.int32, "i64": np.int64, "bool": np.uint8}
_alive: list[object] = []
_engines: dict[tuple[bytes, Target], llvm.ExecutionEngine] = {}


class Ctx(ctypes.Structure):
    _fields_ = [
        ("workspace", ctypes.c_void_p),
        ("nthreads", ctypes.c_int64),
        ("err_site", ctypes.c_int64),
        ("err_value", ctypes.c_int64),
        ("err_extent", ctypes.c_int64),
        ("kept", ctypes.c_int64),
    ]


class IndexFailure(Exception):
    def __init__(self, span: Span, value: int, extent: int) -> None:
        super().__init__(f"{span} {value} {extent}")
        self.span, self.value, self.extent = span, value, extent


# ---- building ---------------------------------------------------------------------------------


def buffer(name: str, dtype: str, *shape: DimLike, slot: int = -1, scope: str = "arg", **more: Any):
    return Buffer(name, TensorType(dtype, tuple(map(Dim.of, shape))), scope, slot, **more)


def axis(name: str, extent: DimLike) -> Axis:
    return Axis("$" + name, Dim.of(extent))


def at(*index: DimLike | Expr) -> tuple[Expr, ...]:
    return tuple(Idx(Dim.of(i)) if isinstance(i, Dim | int | str) else i for i in index)


def load(b: Buffer, *index: DimLike | Expr, **more: Any) -> Load:
    return Load(b.type.dtype, b, at(*index), **more)


def op(fn: str, *args: Expr) -> Op:
    rule = SCALARS[fn].rule
    return Op("bool" if rule in ("compare", "logic") else args[0].dtype, fn, args)


def cast(e: Expr, dtype: str) -> Op:
    return Op(dtype, "cast", (e,))


def num(value: float | int | bool, dtype: str = "f32") -> Const:
    return Const(dtype, value)


def idx(d: DimLike) -> Idx:
    return Idx(Dim.of(d))


def pick(cond: Expr, a: Expr, b: Expr) -> Select:
    return Select(a.dtype, cond, a, b)


def store(b: Buffer, index: Sequence[DimLike | Expr], value: Expr, **more: Any) -> Store:
    return Store(b, at(*index), value, **more)


def nest(loops: Sequence[tuple[Axis, str]], *body: Stmt) -> For:
    """Loops, outermost first, around a body."""
    inner: tuple[Stmt, ...] = body
    for a, kind in reversed(loops):
        inner = (For(a, kind, inner),)
    assert isinstance(inner[0], For)
    return inner[0]


def reduce(name: str, fn: str, axes: Sequence[Axis], value: Expr, vector: Axis | None = None):
    return Reduce(name, fn, tuple(axes), value, vector.var if vector else None)


def var(name: str, dtype: str = "f32") -> Var:
    return Var(dtype, name)


def kernel(*body: Stmt, work: DimLike = 1 << 24) -> Kernel:
    return Kernel("k", body, NOWHERE, "test", Dim.of(work))


def program(
    args: Sequence[Buffer],
    *steps: Any,
    dims: Sequence[str] = (),
    buffers: Sequence[Buffer] = (),
    arena: DimLike = 0,
) -> Program:
    """Arguments get their slots by position; they must have been made with them."""
    assert [b.slot for b in args] == list(range(len(args)))
    return Program("test", tuple(dims), tuple(args), tuple(buffers), tuple(steps), Dim.of(arena))


# ---- running ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Native:
    module: Module
    engine: llvm.ExecutionEngine
    program: Program

    def run(
        self,
        arrays: Sequence[np.ndarray],
        dims: Mapping[str, int] | None = None,
        threads: int = 1,
        side: str = "end",
        kept: Sequence[int] = (0,),
    ) -> list[np.ndarray]:
        """Calls with guarded copies of the arrays (all writable) and gives them after the call.

        `kept`: the words of as many calls, one after the other on the same workspace.
        """
        sizes = [int((dims or {})[n]) for n in self.program.dims]
        native_dims = (ctypes.c_int64 * max(len(sizes), 1))(*sizes)
        held = [Guarded(a.shape, a.dtype, side) for a in arrays]
        pointers = (ctypes.c_void_p * len(held))(*(_address(h) for h in held))
        size = self.bytes(native_dims, threads)
        work = Guarded((-(-size // 64) * 64,), np.uint8)
        ctx = Ctx(_address(work), threads)
        failed = 0
        for word in kept:
            for h, a in zip(held, arrays, strict=True):
                h.array[...] = a
            ctx.kept = word
            failed = failed or self.entry(ctypes.byref(ctx), native_dims, pointers)
        out = [h.array.copy() for h in held]
        for h in (*held, work):
            h.release()
        assert failed == (ctx.err_site != 0)
        if failed:
            raise IndexFailure(self.module.sites[ctx.err_site - 1], ctx.err_value, ctx.err_extent)
        return out

    def bytes(self, dims: Any, threads: int) -> int:
        address = self.engine.get_function_address(self.module.symbol + "_bytes")
        call = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)(address)
        return int(call(ctypes.cast(dims, ctypes.c_void_p), threads))

    @property
    def entry(self) -> Any:
        address = self.engine.get_function_address(self.module.symbol)
        pointer = ctypes.c_void_p
        return ctypes.CFUNCTYPE(ctypes.c_int32, pointer, pointer, pointer)(address)


def _address(g: Guarded) -> int:
    return g.array.ctypes.data


def engine_of(code: bytes) -> llvm.ExecutionEngine:
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), host().machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _alive.append(engine)
    return engine


def engine_for(text: str, target: Target) -> llvm.ExecutionEngine:
    """The engine of a module: one text is compiled once, whatever the sizes that it is run with."""
    key = hashlib.sha256(text.encode()).digest(), target
    if key not in _engines:
        _engines[key] = engine_of(objects.compile_object(text, target))
    return _engines[key]


def support(dtype: str, target: Target) -> None:
    """Makes the contraction's shared functions the ones that later modules link to: other tests may
    have named those of another target."""
    for name, address in addresses(dtype, target).items():
        llvm.add_symbol(name, address)


@cache
def addresses(dtype: str, target: Target) -> dict[str, int]:
    engine = engine_of(objects.compile_object(contract.support_module(dtype, target), target))
    functions, data = contract.support_symbols(dtype, target)
    return {n: engine.get_function_address(n) for n in functions} | {
        n: engine.get_global_value_address(n) for n in data
    }


def native(p: Program, target: Target | None = None) -> Native:
    target = target or host()
    pool()
    module = emit(p, target, "nn_test")
    for dtype in module.contractions:
        support(dtype, target)
    return Native(module, engine_for(module.text, target), p)


def run(
    p: Program, arrays: Sequence[np.ndarray], dims: Mapping[str, int] | None = None, **more: Any
) -> list[np.ndarray]:
    """Compiles and runs with 1, 2 and 3 threads, with what is kept and without; the results must
    have the same bits."""
    compiled = native(p, **more)
    outs = [compiled.run(arrays, dims, threads=t) for t in (1, 2, 3)]
    outs.append(compiled.run(arrays, dims, threads=1, side="start"))
    if p.prologue:
        outs += [compiled.run(arrays, dims, threads=t, kept=(2, 1)) for t in (1, 3)]
    for other in outs[1:]:
        for x, y in zip(outs[0], other, strict=True):
            assert x.tobytes() == y.tobytes()
    return outs[0]
