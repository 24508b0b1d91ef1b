"""Dtypes and tensor types."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nnc.lang.dims import Dim, dim_prod

DType = str  # a key of DTYPES; `real` only while a definition is checked generically


@dataclass(frozen=True)
class DTypeInfo:
    kind: str  # "f" float, "i" signed, "u" unsigned, "b" bool
    bits: int
    numpy: str  # NumPy's name ("" when NumPy has none)
    llvm: str  # register type
    safetensors: str

    @property
    def bytes(self) -> int:
        return self.bits // 8


DTYPES: dict[DType, DTypeInfo] = {
    "f32": DTypeInfo("f", 32, "float32", "float", "F32"),
    "f64": DTypeInfo("f", 64, "float64", "double", "F64"),
    "f16": DTypeInfo("f", 16, "float16", "half", "F16"),
    "bf16": DTypeInfo("f", 16, "", "bfloat", "BF16"),
    "i8": DTypeInfo("i", 8, "int8", "i8", "I8"),
    "u8": DTypeInfo("u", 8, "uint8", "i8", "U8"),
    "i32": DTypeInfo("i", 32, "int32", "i32", "I32"),
    "i64": DTypeInfo("i", 64, "int64", "i64", "I64"),
    "bool": DTypeInfo("b", 8, "bool", "i1", "BOOL"),
    "real": DTypeInfo("f", 32, "float32", "float", "F32"),
}


# Where rounding to nearest gives an infinity: half a step above the largest number.
INFINITE_FROM: dict[DType, float] = {
    "f16": 65520.0,
    "bf16": math.ldexp(2 - 2**-8, 127),
    "f32": math.ldexp(2 - 2**-24, 127),
}


def is_float(dtype: DType) -> bool:
    return DTYPES[dtype].kind == "f"


def is_int(dtype: DType) -> bool:
    return DTYPES[dtype].kind in "iu"


@dataclass(frozen=True)
class TensorType:
    """`dtype[shape]`; a scalar has the empty shape."""

    dtype: DType
    shape: tuple[Dim, ...] = ()

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def elements(self) -> Dim:
        return dim_prod(self.shape)

    @property
    def bytes(self) -> Dim:
        return self.elements * DTYPES[self.dtype].bytes

    def with_dtype(self, dtype: DType) -> TensorType:
        return TensorType(dtype, self.shape)

    def stacked(self, n: Dim) -> TensorType:
        """n of these along a new first axis."""
        return TensorType(self.dtype, (n, *self.shape))

    def __str__(self) -> str:
        return self.dtype + (f"[{', '.join(map(str, self.shape))}]" if self.shape else "")
