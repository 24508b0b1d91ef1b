"""Values in registers: types, literals, lanes, and the way between registers and memory.

Operands are text (an SSA name or a constant). `lanes` 1 means a scalar. f16 and bf16 live in
registers as f32 numbers that are representable in the narrow type; bool is i1 in registers and a
byte 0/1 in memory.
"""

from __future__ import annotations

import struct

import numpy as np

from nnc.codegen.emit import Emitter
from nnc.codegen.target import Target
from nnc.lang.types import DTYPES, DType, is_float

REGISTER = {
    "f32": "float", "f64": "double", "f16": "float", "bf16": "float", "i8": "i8", "u8": "i8",
    "i32": "i32", "i64": "i64", "bool": "i1",
}  # fmt: skip
MEMORY = REGISTER | {"f16": "i16", "bf16": "i16", "bool": "i8"}
_SUFFIX = {"float": "f32", "double": "f64", "ptr": "p0", "half": "f16"}
HALVES = ("f16", "bf16")


def wide(element: str, lanes: int) -> str:
    """The LLVM type of `lanes` elements."""
    return element if lanes == 1 else f"<{lanes} x {element}>"


def vtype(dtype: DType, lanes: int) -> str:
    return wide(REGISTER[dtype], lanes)


def suffix(element: str, lanes: int) -> str:
    """An element type in an intrinsic's name: "f32", "v16i32"."""
    name = _SUFFIX.get(element, element)
    return name if lanes == 1 else f"v{lanes}{name}"


def computes_in(dtype: DType) -> DType:
    """The dtype whose arithmetic a dtype uses."""
    return "f32" if dtype in HALVES else dtype


# ---- literals ---------------------------------------------------------------------------------


def round_bf16(value: float) -> float:
    """The bf16 number nearest to `value` (ties to even)."""
    bits = int(np.float32(value).view(np.uint32))
    if value != value:
        return value
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return float(np.uint32(bits).view(np.float32))


def literal(dtype: DType, value: float | int | bool) -> str:
    """A scalar constant of the dtype's register type."""
    if dtype == "bool":
        return "true" if value else "false"
    if not is_float(dtype):
        bits = DTYPES[dtype].bits
        wrapped = int(value) & ((1 << bits) - 1)
        return str(wrapped - (1 << bits) if wrapped >> (bits - 1) else wrapped)
    return float_literal(narrow(dtype, float(value)))


def narrow(dtype: DType, value: float) -> float:
    """`value` rounded to a float dtype."""
    with np.errstate(over="ignore"):
        match dtype:
            case "f32" | "real":
                return float(np.float32(value))
            case "f16":
                return float(np.float16(value))
            case "bf16":
                return round_bf16(value)
    return value


def float_literal(value: float) -> str:
    """Text for a float or double (which must be exact in the type it is used for)."""
    if value != value:
        return "0x7FF8000000000000"
    return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"


def splat(em: Emitter, element: str, x: str, lanes: int) -> str:
    """A vector with the scalar `x` in every lane."""
    if lanes == 1:
        return x
    if not x.startswith("%"):
        return f"splat ({element} {x})"
    ty = wide(element, lanes)
    one = em.op(f"insertelement {ty} poison, {element} {x}, i64 0", "s")
    return em.op(f"shufflevector {ty} {one}, {ty} poison, <{lanes} x i32> zeroinitializer", "s")


def iota(element: str, lanes: int) -> str:
    """The constant vector 0, 1, 2, ..."""
    return "<" + ", ".join(f"{element} {i}" for i in range(lanes)) + ">"


def tail_mask(em: Emitter, count: str, lanes: int) -> str:
    """A mask of the lanes below the i64 `count` (at least 0; it may exceed the lanes)."""
    few = em.op(f"call i64 @llvm.umin.i64(i64 {count}, i64 {lanes})", "few")
    few = em.op(f"trunc i64 {few} to i32", "few")
    limit = splat(em, "i32", few, lanes)
    return em.op(f"icmp ult <{lanes} x i32> {iota('i32', lanes)}, {limit}", "mask")


# ---- masks -----------------------------------------------


def invert(em: Emitter, mask: str, lanes: int) -> str:
    true = "true" if lanes == 1 else "splat (i1 true)"
    return em.op(f"xor {wide('i1', lanes)} {mask}, {true}", "not")


def any_lane(em: Emitter, mask: str, lanes: int) -> str:
    if lanes == 1:
        return mask
    bits = em.op(f"bitcast <{lanes} x i1> {mask} to i{lanes}", "bits")
    return em.op(f"icmp ne i{lanes} {bits}, 0", "any")


# ---- 16-bit floats ----------------------------------------------------------------------------


class Halves:
    """Conversions of f16 and bf16, in integer arithmetic where the target has no instruction."""

    def __init__(self, em: Emitter, target: Target) -> None:
        self.em = em
        self.native_f16 = target.isa != "portable" or not target.triple.startswith("x86")

    def int_op(self, op: str, a: str, constant: int, lanes: int) -> str:
        ty = wide("i32", lanes)
        c = str(constant) if lanes == 1 else f"splat (i32 {constant})"
        return self.em.op(f"{op} {ty} {a}, {c}", "h")

    def cast(self, op: str, x: str, source: str, to: str, lanes: int) -> str:
        return self.em.op(f"{op} {wide(source, lanes)} {x} to {wide(to, lanes)}", "h")

    def choose(self, cond: str, a: str, b: str, element: str, lanes: int) -> str:
        ty = wide(element, lanes)
        return self.em.op(f"select {wide('i1', lanes)} {cond}, {ty} {a}, {ty} {b}", "h")

    def round(self, dtype: DType, x: str, lanes: int) -> str:
        """A float rounded to the numbers of f16 or bf16."""
        if dtype == "f16":
            if self.native_f16:
                half = self.cast("fptrunc", x, "float", "half", lanes)
                return self.cast("fpext", half, "half", "float", lanes)
            return self.unpack("f16", self.pack("f16", x, lanes), lanes)
        bits = self.cast("bitcast", x, "float", "i32", lanes)
        odd = self.int_op("and", self.int_op("lshr", bits, 16, lanes), 1, lanes)
        up = self.int_op("add", odd, 0x7FFF, lanes)
        rounded = self.em.op(f"add {wide('i32', lanes)} {bits}, {up}", "h")
        quiet = self.int_op("or", bits, 0x400000, lanes)
        nan = self.em.op(f"fcmp uno {wide('float', lanes)} {x}, {x}", "nan")
        kept = self.choose(nan, quiet, rounded, "i32", lanes)
        kept = self.int_op("and", kept, -65536, lanes)
        return self.cast("bitcast", kept, "i32", "float", lanes)

    def unpack(self, dtype: DType, x: str, lanes: int) -> str:
        """16 bits from memory to a float."""
        if dtype == "f16" and self.native_f16:
            return self.cast(
                "fpext", self.cast("bitcast", x, "i16", "half", lanes), "half", "float", lanes
            )
        bits = self.cast("zext", x, "i16", "i32", lanes)
        if dtype == "bf16":
            return self.cast("bitcast", self.int_op("shl", bits, 16, lanes), "i32", "float", lanes)
        return self._unpack_f16(bits, lanes)

    def pack(self, dtype: DType, x: str, lanes: int) -> str:
        """A float (for bf16 an already rounded one) to 16 bits."""
        if dtype == "f16" and self.native_f16:
            return self.cast(
                "bitcast", self.cast("fptrunc", x, "float", "half", lanes), "half", "i16", lanes
            )
        bits = self.cast("bitcast", x, "float", "i32", lanes)
        if dtype == "f16":
            bits = self._pack_f16(bits, lanes)
        else:
            bits = self.int_op("lshr", bits, 16, lanes)
        return self.cast("trunc", bits, "i32", "i16", lanes)

    def _unpack_f16(self, h: str, lanes: int) -> str:
        """Scaling by 2**112 moves the exponent; infinities and NaNs get theirs by hand."""
        sign = self.int_op("shl", self.int_op("and", h, 0x8000, lanes), 16, lanes)
        mag = self.int_op("shl", self.int_op("and", h, 0x7FFF, lanes), 13, lanes)
        x = self.cast("bitcast", mag, "i32", "float", lanes)
        scale = splat(self.em, "float", float_literal(2.0**112), lanes)
        scaled = self.em.op(f"fmul {wide('float', lanes)} {x}, {scale}", "h")
        bits = self.cast("bitcast", scaled, "float", "i32", lanes)
        special = self.int_op("icmp uge", mag, 0x7C00 << 13, lanes)
        bits = self.choose(special, self.int_op("or", mag, 0x7F800000, lanes), bits, "i32", lanes)
        bits = self.em.op(f"or {wide('i32', lanes)} {bits}, {sign}", "h")
        return self.cast("bitcast", bits, "i32", "float", lanes)

    def _pack_f16(self, bits: str, lanes: int) -> str:
        """Rounds to nearest even: small results by the float adder, others by an integer carry."""
        em, ty = self.em, wide("i32", lanes)
        mag = self.int_op("and", bits, 0x7FFFFFFF, lanes)
        sign = self.int_op("lshr", em.op(f"xor {ty} {bits}, {mag}", "h"), 16, lanes)
        x = self.cast("bitcast", mag, "i32", "float", lanes)
        half = splat(em, "float", float_literal(0.5), lanes)
        moved = em.op(f"fadd {wide('float', lanes)} {x}, {half}", "h")
        small = self.int_op(
            "sub", self.cast("bitcast", moved, "float", "i32", lanes), 0x3F000000, lanes
        )
        odd = self.int_op("and", self.int_op("lshr", mag, 13, lanes), 1, lanes)
        up = em.op(f"add {ty} {mag}, {odd}", "h")
        normal = self.int_op(
            "lshr", self.int_op("add", up, 0xC8000FFF - (1 << 32), lanes), 13, lanes
        )
        is_small = self.int_op("icmp ult", mag, 0x38800000, lanes)
        out = self.choose(is_small, small, normal, "i32", lanes)
        is_nan = self.int_op("icmp ugt", mag, 0x7F800000, lanes)
        top = self.choose(is_nan, _const(0x7E00, lanes), _const(0x7C00, lanes), "i32", lanes)
        out = self.choose(self.int_op("icmp uge", mag, 0x47800000, lanes), top, out, "i32", lanes)
        return em.op(f"or {ty} {out}, {sign}", "h")


def _const(value: int, lanes: int) -> str:
    return str(value) if lanes == 1 else f"splat (i32 {value})"
