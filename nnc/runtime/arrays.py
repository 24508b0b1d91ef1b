"""From what a caller gives to arrays that native code may read or write."""

from __future__ import annotations

import math
import numbers
import sys
from typing import Any

import numpy as np

from nnc.errors import ArgumentError, DtypeError
from nnc.ir.signature import ArgSig
from nnc.lang.types import DTYPES, INFINITE_FROM, DType
from nnc.runtime.memory import Array, cast_help, numpy_dtype, numpy_name


def tensor_argument(function: str, arg: ArgSig, value: Any) -> Array:
    """A C-contiguous, aligned array of the declared dtype; zero-copy when it can be.

    An `inout` array must be usable as it is. DtypeError and ArgumentError name the cure.
    """
    assert arg.type is not None, arg
    array = value if type(value) is np.ndarray else _to_array(function, arg, value)
    if array.dtype != numpy_dtype(arg.type.dtype):
        raise DtypeError(_wrong_dtype(function, arg, array, value))
    flags = array.flags
    if flags.c_contiguous and flags.aligned and (flags.writeable or not arg.inout):
        return array
    if arg.inout:
        raise ArgumentError(_not_writable(function, arg, array))
    return np.array(array, order="C", copy=True, subok=False)


def dim_argument(function: str, arg: ArgSig, value: Any) -> int:
    """A `dim` argument as a Python integer."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Integral):
        raise ArgumentError(
            f"{function}: {arg.name} is a size, an integer; got {_described(value)}"
        )
    if int(value) >= 1 << 62:
        shown = value if int(value) < 1 << 128 else "a huge number"
        raise ArgumentError(f"{function}: {arg.name} = {shown} is too big")
    return int(value)


def _to_array(function: str, arg: ArgSig, value: Any) -> Array:
    if isinstance(value, numbers.Number | np.generic):
        return _scalar(function, arg, value)
    plain = not isinstance(value, np.ma.MaskedArray | type)
    if plain and hasattr(value, "__array_interface__"):
        return np.asarray(value)
    if plain and hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray):
        return _from_dlpack(function, arg, value)
    assert arg.type is not None, arg
    help_ = _array_help(arg.name, value, arg.type.dtype) if arg.type.shape else ""
    what = "an array" if arg.type.shape else "a number"
    raise ArgumentError(
        f"{function}: {arg.name} needs {what}, got {_described(value)}\n"
        f"  {arg.name}: {arg.text or arg.type}" + (f"\n  help: {help_}" if help_ else "")
    )


def _array_help(name: str, value: Any, dtype: DType) -> str:
    """How a value becomes an array; "" when there is no way that works."""
    if isinstance(value, np.ma.MaskedArray):
        return f"{name}.filled(0): arrays have no missing values"
    if isinstance(value, np.ndarray | type):
        return ""
    if callable(getattr(value, "toarray", None)):
        return f"{name}.toarray(): arrays are dense"
    if not isinstance(value, list | tuple | memoryview) and not hasattr(value, "__array__"):
        return ""
    try:
        np.asarray(value, dtype=numpy_dtype(dtype))
    except (TypeError, ValueError, OverflowError):
        return ""
    return f"np.asarray({name}, dtype={numpy_name(dtype)})"


def _scalar(function: str, arg: ArgSig, value: Any) -> Array:
    """A number for a rank-0 argument."""
    assert arg.type is not None, arg
    if arg.inout:
        raise ArgumentError(
            f"{function}: {arg.name} is inout: give an array that can be written, "
            f"np.array({value}, {numpy_name(arg.type.dtype)})"
        )
    dtype = arg.type.dtype
    kind = DTYPES[dtype].kind
    is_bool = isinstance(value, bool | np.bool_)
    fits = {
        "b": is_bool,
        "f": isinstance(value, numbers.Real | np.floating) and not is_bool,
    }.get(kind, isinstance(value, numbers.Integral) and not is_bool)
    if not fits:
        raise DtypeError(
            f"{function}: {arg.name} is {dtype}, got {_described(value)}\n"
            f"  help: {_python_cast(kind, arg.name, value)}"
        )
    limits = np.iinfo(numpy_dtype(dtype)) if kind in "iu" else None
    if limits is not None and not limits.min <= int(value) <= limits.max:
        raise _too_large(function, arg, value)
    if kind != "f":
        return np.array(value, numpy_dtype(dtype))
    try:
        number = float(value)
    except OverflowError:
        raise _too_large(function, arg, value) from None
    if math.isfinite(number) and abs(number) >= INFINITE_FROM.get(dtype, math.inf):
        raise _too_large(function, arg, value)
    return _bf16(number) if dtype == "bf16" else np.array(number, numpy_dtype(dtype))


def _too_large(function: str, arg: ArgSig, value: Any) -> DtypeError:
    assert arg.type is not None, arg
    whole = isinstance(value, int)  # of so many digits that Python does not print it
    shown = "a huge number" if whole and value.bit_length() > 128 else f"{value}"
    return DtypeError(f"{function}: {arg.name} = {shown} does not fit {arg.type.dtype}")


def _bf16(value: float) -> Array:
    dtype = numpy_dtype("bf16")
    if dtype != np.uint16:
        return np.array(value, dtype)
    bits = int(np.float32(value).view(np.uint32))
    if value != value:
        return np.array(bits >> 16 | 0x40, np.uint16)
    return np.array((bits + 0x7FFF + (bits >> 16 & 1)) >> 16, np.uint16)  # to nearest, ties to even


def _python_cast(kind: str, name: str, value: Any) -> str:
    number = f"{name}.real" if isinstance(value, complex | np.complexfloating) else name
    cast = {"b": "bool", "f": "float"}.get(kind, "int")
    return f"{cast}({number})"


def _from_dlpack(function: str, arg: ArgSig, value: Any) -> Array:
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        bits = _bf16_tensor(value)
        if bits is not None:
            return bits
        raise ArgumentError(
            f"{function}: {arg.name} ({_described(value)}) cannot be read as a CPU array: {error}\n"
            f"  help: for a torch tensor {arg.name}.detach().cpu() (a sparse one: .to_dense())"
        ) from None


def _bf16_tensor(value: Any) -> Array | None:
    """A tensor of bf16 by its bits: NumPy itself knows no such numbers."""
    package = sys.modules.get(type(value).__module__.partition(".")[0])
    named = str(getattr(value, "dtype", "")).rpartition(".")[2]
    if named != "bfloat16" or getattr(value, "requires_grad", False):
        return None
    try:
        return np.from_dlpack(value.view(package.uint16)).view(numpy_dtype("bf16"))  # type: ignore[union-attr]
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError):
        return None


def _described(value: Any) -> str:
    if isinstance(value, bool | int | float):
        return repr(value)
    kind = type(value)
    return (
        f"a {kind.__name__}"
        if kind.__module__ == "builtins"
        else f"a {kind.__module__}.{kind.__name__}"
    )


def _wrong_dtype(function: str, arg: ArgSig, array: Array, given: Any) -> str:
    assert arg.type is not None, arg
    wanted = numpy_dtype(arg.type.dtype)
    what = (
        f"{array.dtype.name} in foreign byte order"
        if wanted == array.dtype.newbyteorder()
        else (array.dtype.name)
    )
    lines = [f"{function}: {arg.name} is {arg.type.dtype}, the given array is {what}"]
    lines.append(f"  {arg.name}: {arg.text or arg.type}" + (f" ({arg.place})" if arg.place else ""))
    cure = cast_help(arg.name, array, arg.type.dtype, given)
    if cure:
        lines.append(f"  help: {cure}")
    return "\n".join(lines)


def _not_writable(function: str, arg: ArgSig, array: Array) -> str:
    if not array.flags.writeable:
        fault, cure = "read-only", f"{arg.name} = {arg.name}.copy()"
    elif not array.flags.c_contiguous:
        fault, cure = "not contiguous", f"{arg.name} = np.ascontiguousarray({arg.name})"
    else:
        fault, cure = "not aligned", f"{arg.name} = {arg.name}.copy()"
    return (
        f"{function} writes {arg.name} in place, but the given array is {fault}\n"
        f"  help: {cure}, and read the result from it"
    )
