"""The table by which generated code calls an export from Python: `nnc.codegen.pycall` reads it,
`nnc.runtime.fastcall` writes it.
"""

from __future__ import annotations

from enum import IntEnum

MAX_VALUES = 64  # arguments, and results
RECORD = 16  # words
TENSOR, OBJECT, SIZE, NUMBER = range(4)  # kinds of arguments
NOTHING, RIGHT, MAKE = range(3)  # what an entry is told of what is kept: `nnc.codegen.kept`
ONE = 16  # and a number


class Word(IntEnum):
    """The table, in words."""

    SLOW = 0  # called when this call is not like the last
    FAIL = 1  # called when the entry refuses: raises
    READY = 2  # 0: every call is slow
    ENTRY = 3  # int32 entry(context, dims, args)
    CONTEXT = 4
    DIMS = 5
    ARGS = 6
    INPUTS = 7  # how many
    INPUT = 8  # their records
    OUTPUTS = 9
    OUTPUT = 10
    TUPLE = 11  # 1: the result is a tuple
    WRITES = 12  # 1: some argument is written, so overlaps are looked for
    VERSIONS = 13  # how many
    VERSION = 14  # addresses of counters that go up by 1
    NONE = 15
    ARRAY_TYPE = 16
    FLOAT_TYPE = 17
    LONG_TYPE = 18
    ARRAY_EMPTY = 19  # PyArray_Empty
    ARRAY_RETURN = 20  # PyArray_Return
    VECTORCALL = 21
    TUPLE_NEW = 22
    TUPLE_SET = 23
    LONG_AS_LONG = 24
    ERR_CLEAR = 25
    INCREF = 26
    DECREF = 27
    RELEASE = 28  # 1: other Python threads may run while the entry does,
    BUSY = 29  # as it does now
    SAVE_THREAD = 30
    RESTORE_THREAD = 31
    KEEP = 32  # NOTHING, RIGHT or MAKE


class Input(IntEnum):
    """One argument's record."""

    KIND = 0
    EXPECT = 1  # the dtype (TENSOR), the object itself (OBJECT), the integer (SIZE)
    RANK = 2
    SHAPE = 3  # address of int64s
    FLAGS = 4  # NumPy's flags that must be set
    POSITION = 5  # of its pointer among the entry's args
    NAME = 6  # the interned str
    START = 7  # its memory; of a tensor written by each call
    BYTES = 8
    WRITTEN = 9
    CELL = 10  # where a NUMBER is put
    WIDTH = 11  # of the NUMBER: 4 or 8 bytes
    STATE = 12  # address of two words that must be as they were (0: whatever they are):
    VERSION = 13
    LENDINGS = 14


class Output(IntEnum):
    """One result's record."""

    DTYPE = 0
    RANK = 1
    SHAPE = 2
    POSITION = 3
