"""Typed instructions on scalars and vectors: the vocabulary of the scalar functions."""

from __future__ import annotations

from nnc.codegen import vecmath
from nnc.codegen.emit import Emitter
from nnc.codegen.registers import REGISTER, computes_in, literal, splat, suffix, vtype, wide
from nnc.codegen.target import Target
from nnc.lang.types import DType

Request = tuple[str, DType, int]


class Instructions:
    """Emits one instruction a call; `calls` collects what is needed from vecmath."""

    def __init__(self, em: Emitter, target: Target) -> None:
        self.em, self.target = em, target
        self.calls: set[Request] = set()

    def lit(self, dtype: DType, value: float, lanes: int) -> str:
        return splat(self.em, REGISTER[dtype], literal(computes_in(dtype), value), lanes)

    def two(self, op: str, dtype: DType, a: str, b: str, lanes: int) -> str:
        return self.em.op(f"{op} {vtype(dtype, lanes)} {a}, {b}")

    def choose(self, cond: str, a: str, b: str, dtype: DType, lanes: int) -> str:
        ty = vtype(dtype, lanes)
        return self.em.op(f"select {wide('i1', lanes)} {cond}, {ty} {a}, {ty} {b}")

    def intrinsic(self, name: str, dtype: DType, lanes: int, *args: str) -> str:
        ty = vtype(dtype, lanes)
        operands = ", ".join(f"{ty} {a}" for a in args)
        return self.em.op(f"call {ty} @llvm.{name}.{suffix(REGISTER[dtype], lanes)}({operands})")

    def convert(self, op: str, x: str, source: str, to: str, lanes: int) -> str:
        """`source` and `to` are LLVM element types."""
        return self.em.op(f"{op} {wide(source, lanes)} {x} to {wide(to, lanes)}")

    def call(self, fn: str, dtype: DType, lanes: int, *args: str) -> str:
        """A function of vecmath."""
        self.calls.add((fn, dtype, lanes))
        ty = vtype(dtype, lanes)
        operands = ", ".join(f"{ty} {a}" for a in args)
        return self.em.op(f"call {ty} {vecmath.symbol(fn, dtype, lanes)}({operands})")
