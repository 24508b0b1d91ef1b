"""Calls of short programs as a built-in function: the table that `nnrt_call` works by.

An export of not much work is called through generated code (`nnc.codegen.pycall`) when a call is
like the last one: same modules, same shapes and dtypes. All else takes the road through Python,
which also says what is wrong with a call.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, cast

import numpy as np

from nnc.ir.calltable import (
    MAKE,
    MAX_VALUES,
    NOTHING,
    NUMBER,
    OBJECT,
    RECORD,
    SIZE,
    TENSOR,
    Input,
    Output,
    Word,
)
from nnc.ir.signature import ArgSig, ResultSig
from nnc.runtime.cpu import Entry, shared_symbol
from nnc.runtime.leaves import Store
from nnc.runtime.memory import Array, pointer

# Scalar operations. Of fewer than SMALL (10 us of a contraction, about 1 ms of what costs most) the
# interpreter is not released meanwhile; of more than LONG (1 ms of a contraction) the way through
# Python does not count. Bytes of a result: memory of larger ones is worth keeping; and of a
# workspace: this one is another than that of slow calls.
SMALL, LONG, SHORT, ROOM = 1 << 22, 1 << 28, 1 << 20, 1 << 25
_C_CONTIGUOUS, _ALIGNED, _WRITEABLE = 0x1, 0x100, 0x400  # NumPy's flags
_PY = ctypes.pythonapi


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


@cache
def _numpy_interface() -> list[int]:
    """The addresses in NumPy's table of C functions."""
    package: Any = np
    core = package._core if hasattr(package, "_core") else package.core
    get = _PY.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    count = max(_numpy_functions.values()) + 1
    return list((ctypes.c_size_t * count).from_address(get(core.multiarray._ARRAY_API, None)))


class _MethodDef(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


_FASTCALL_KEYWORDS = 0x80 | 0x02
_python_functions = {
    Word.VECTORCALL: "PyObject_Vectorcall",
    Word.TUPLE_NEW: "PyTuple_New",
    Word.TUPLE_SET: "PyTuple_SetItem",
    Word.LONG_AS_LONG: "PyLong_AsLong",
    Word.ERR_CLEAR: "PyErr_Clear",
    Word.INCREF: "Py_IncRef",
    Word.DECREF: "Py_DecRef",
    Word.SAVE_THREAD: "PyEval_SaveThread",
    Word.RESTORE_THREAD: "PyEval_RestoreThread",
}
_numpy_functions = {Word.ARRAY_RETURN: 76, Word.ARRAY_EMPTY: 184}  # places in NumPy's C interface


_Result = tuple[np.dtype[Any], tuple[int, ...]]  # its dtype and shape


class FastCall:
    """A built-in function `call` for one export, and the memory of its last call."""

    def __init__(
        self,
        entry: Entry,
        args: Sequence[ArgSig],
        slow: Callable[..., Any],
        fail: Callable[[], None],
    ) -> None:
        """`slow`: takes every call that is not like the last one; `fail`: says that the entry
        refused the call."""
        self.entry, self.args = entry, tuple(args)
        self._table: Array = np.zeros(len(Word), np.int64)
        self._kept: list[object] = [slow, fail]  # what the table points to
        self._lock = threading.Lock()
        self._write(Word.SLOW, id(self._kept[0]))
        self._write(Word.FAIL, id(self._kept[1]))
        for word, name in _python_functions.items():
            self._write(word, _address(getattr(_PY, name)))
        interface = _numpy_interface()
        for word, place in _numpy_functions.items():
            self._write(word, interface[place])
        for word, value in (
            (Word.NONE, None),
            (Word.ARRAY_TYPE, np.ndarray),
            (Word.FLOAT_TYPE, float),
            (Word.LONG_TYPE, int),
        ):
            self._write(word, id(value))
        self._write(Word.ENTRY, entry.address)
        self._definition = _MethodDef(
            b"call", shared_symbol("nnrt_call"), _FASTCALL_KEYWORDS, b"One export."
        )
        self.call = self._builtin()

    def _builtin(self) -> Callable[..., Any]:
        make = _PY.PyCFunction_NewEx
        make.restype, make.argtypes = (
            ctypes.py_object,
            (
                ctypes.c_void_p,
                ctypes.py_object,
                ctypes.c_void_p,
            ),
        )
        made = make(ctypes.addressof(self._definition), self._table, None)
        return cast(Callable[..., Any], made)

    def _write(self, word: Word, value: int) -> None:
        self._table[word] = value

    def forget(self) -> None:
        self._write(Word.READY, 0)

    @staticmethod
    def fits(args: Sequence[ArgSig], results: Sequence[ResultSig]) -> bool:
        """Whether an export can be called this way: its code is loaded."""
        plain = all(r.kind == "tensor" for r in results) and not any(a.kind == "rng" for a in args)
        few = max(len(args), len(results)) <= MAX_VALUES
        return plain and few and shared_symbol("nnrt_call") is not None

    def remember(
        self,
        values: Sequence[Any],
        dims: Array,
        arena: int,
        outputs: Sequence[_Result],
        *,
        returns_tuple: bool,
        threads: int,
        releases: bool,
        keeps_for: Sequence[Store],
    ) -> None:
        """Writes down what this call is like; `values` as bound, `outputs`: dtypes and shapes.

        `releases`: other threads run meanwhile; `keeps_for`: the modules, if any, for which the
        entry keeps values in its workspace.
        """
        with self._lock:
            if self._table[Word.BUSY]:
                return
            self.forget()
            states = {id(m): m.state() for m in keeps_for}
            if any(m.lent for m in keeps_for):  # whose views somebody may write to at any time
                return
            kept: list[object] = list(self._kept[:2])
            inputs, position = self._inputs(values, states, kept)
            results = _results(outputs, position, kept)
            written = [v for a, v in zip(self.args, values, strict=True) if a.inout]
            counters = np.array([v.counter for v in written if isinstance(v, Store)], np.int64)
            kept += [inputs, results, counters]
            self.entry.set_dims(dims)
            self.entry.prepare(arena, threads)
            for word, value in (
                *zip((Word.CONTEXT, Word.DIMS, Word.ARGS), self.entry.pointers, strict=True),
                (Word.INPUTS, len(self.args)),
                (Word.INPUT, pointer(inputs)),
                (Word.OUTPUTS, len(outputs)),
                (Word.OUTPUT, pointer(results)),
                (Word.TUPLE, int(returns_tuple)),
                (Word.WRITES, int(bool(written))),
                (Word.RELEASE, int(releases)),
                (Word.KEEP, MAKE if keeps_for else NOTHING),
                (Word.VERSIONS, len(counters)),
                (Word.VERSION, pointer(counters)),
            ):
                self._write(word, value)
            self._kept = kept
            self._write(Word.READY, 1)

    def _inputs(
        self, values: Sequence[Any], states: Mapping[int, tuple[int, int]], kept: list[object]
    ) -> tuple[Array, int]:
        """The arguments' records, and how many native arguments they make; `states`: in which
        modules must be found, by their ids."""
        out = np.zeros((max(len(values), 1), RECORD), np.int64)
        position = 0
        for row, arg, value in zip(out, self.args, values, strict=False):
            name = arg.name
            row[Input.NAME], row[Input.POSITION] = id(sys.intern(name)), position
            row[Input.WRITTEN] = arg.inout
            if isinstance(value, Store):
                row[Input.KIND], row[Input.EXPECT] = OBJECT, id(value)
                row[Input.START], row[Input.BYTES] = value.span[0], value.span[1] - value.span[0]
                if id(value) in states:
                    row[Input.STATE] = value.counter
                    row[Input.VERSION], row[Input.LENDINGS] = states[id(value)]
                pointers = value.pointers if arg.kind == "module" else value.param_pointers
                self.entry.set_pointers(position, pointers)
                position += len(pointers)
                # Not kept alive by this: when it dies, so does what is remembered of it.
                kept.append(weakref.ref(value, lambda _: self.forget()))
            elif arg.kind == "dim":
                row[Input.KIND], row[Input.EXPECT] = SIZE, value
            else:
                self._array(row, arg, value, kept)
                position += 1
        return out, position

    def _array(self, row: Array, arg: ArgSig, value: Array, kept: list[object]) -> None:
        dtype = value.dtype
        number = value.ndim == 0 and dtype.kind == "f" and dtype.itemsize >= 4 and not arg.inout
        row[Input.BYTES] = value.nbytes
        if number:
            cell = np.zeros(1, dtype)
            row[Input.KIND], row[Input.CELL], row[Input.WIDTH] = (
                NUMBER,
                pointer(cell),
                dtype.itemsize,
            )
            kept.append(cell)
            return
        shape = np.array(value.shape or (0,), np.int64)
        row[Input.KIND], row[Input.EXPECT], row[Input.RANK] = TENSOR, id(dtype), value.ndim
        row[Input.SHAPE] = pointer(shape)
        row[Input.FLAGS] = _C_CONTIGUOUS | _ALIGNED | (_WRITEABLE if arg.inout else 0)
        kept += [dtype, shape]


def _results(outputs: Sequence[_Result], position: int, kept: list[object]) -> Array:
    """The results' records; `position`: of the first among the native arguments."""
    out = np.zeros((max(len(outputs), 1), RECORD), np.int64)
    for i, (row, (dtype, shape)) in enumerate(zip(out, outputs, strict=False)):
        sizes = np.array(shape or (0,), np.int64)
        row[Output.DTYPE], row[Output.RANK] = id(dtype), len(shape)
        row[Output.SHAPE], row[Output.POSITION] = pointer(sizes), position + i
        kept += [dtype, sizes]
    return out
