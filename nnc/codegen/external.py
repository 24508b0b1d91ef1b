"""Calls of C functions that the program names (`extern`)."""

from __future__ import annotations

from nnc.codegen import flow
from nnc.codegen.memory import Memory
from nnc.codegen.registers import MEMORY
from nnc.ir.expr import Idx, Load
from nnc.ir.loop import Call
from nnc.lang.dims import ZERO, Dim
from nnc.lang.types import DTYPES, DType

# Numbers of fewer than 32 bits are widened by the caller.
_WIDENED: dict[DType, str] = {"i8": " signext", "u8": " zeroext", "bool": " zeroext"}


def declaration(c: Call) -> str:
    """The function as LLVM declares it."""
    if c.each is not None:
        dtype = c.result.buffer.type.dtype
        kinds = [_number(e) for e in c.inputs]
        return f'declare{_WIDENED.get(dtype, "")} {MEMORY[dtype]} @"{c.symbol}"({", ".join(kinds)})'
    kinds = [_number(e) if s else "ptr" for e, s in zip(c.inputs, c.scalars, strict=True)]
    return f'declare void @"{c.symbol}"({", ".join(["ptr", *kinds, "ptr"])})'


def emit(k: Memory, c: Call) -> None:
    """The whole body of its kernel."""
    places = [_place(k, e) for e in c.inputs]
    result = _place(k, Load(c.result.buffer.type.dtype, c.result.buffer, c.result.index))
    if c.each is not None:
        _emit_each(k, c, places, result)
        return
    sizes = k.alloca(f"[{max(len(c.sizes), 1)} x i64]")
    for i, d in enumerate(c.sizes):
        at = flow.offset(k.em, sizes, str(i), "i64")
        k.em.line(f"store i64 {k.uniform(d).text}, ptr {at}")
    given = [f"ptr {sizes}"]
    for e, place, scalar in zip(c.inputs, places, c.scalars, strict=True):
        given.append(f"{_number(e)} {_element(k, e, place)}" if scalar else f"ptr {place}")
    k.em.line(f'call void @"{c.symbol}"({", ".join([*given, f"ptr {result}"])})')


def _emit_each(k: Memory, c: Call, places: list[str], result: str) -> None:
    assert c.each is not None
    dtype = c.result.buffer.type.dtype
    kind = MEMORY[dtype]
    with flow.loop(k.em, "0", k.uniform(c.each).text) as i:
        here = [
            flow.offset(k.em, p, i, MEMORY[e.dtype]) for e, p in zip(c.inputs, places, strict=True)
        ]
        given = [f"{_number(e)} {_element(k, e, p)}" for e, p in zip(c.inputs, here, strict=True)]
        widened = _WIDENED.get(dtype, "").strip()
        call = f'call {widened} {kind} @"{c.symbol}"({", ".join(given)})'
        value = k.em.op(" ".join(call.split()), "x")
        at = flow.offset(k.em, result, i, kind)
        k.em.line(f"store {kind} {value}, ptr {at}, align {DTYPES[dtype].bytes}")


def _number(e: Load) -> str:
    """The type of a number passed by value."""
    return MEMORY[e.dtype] + _WIDENED.get(e.dtype, "")


def _element(k: Memory, e: Load, place: str) -> str:
    return k.em.op(f"load {MEMORY[e.dtype]}, ptr {place}, align {DTYPES[e.dtype].bytes}", "x")


def _place(k: Memory, e: Load) -> str:
    """The address of an element at affine indices."""
    start = ZERO
    for i, n in zip(e.index, e.tensor.type.shape, strict=True):
        assert isinstance(i, Idx), e
        start = start * n + i.dim
    start = Dim.of(0) + start
    return k.base(e.tensor, start)  # type: ignore[arg-type]
