"""Values, numbers and axes in the reader's words."""

from __future__ import annotations

from nnc.diagnostics import Span
from nnc.lang.dims import Dim
from nnc.lang.elaborate.values import (
    Bool,
    Builtin,
    Function,
    Module,
    ModuleList,
    ModuleType,
    Nothing,
    Origin,
    Origins,
    Pack,
    Seq,
    Tensor,
    Text,
    Tree,
    Tuple,
    UnitRef,
    Value,
    Weak,
    WeakTensor,
)


def describe(value: Value) -> str:
    """The value's type in the reader's words."""
    match value:
        case Tensor(type=t):
            return str(t)
        case Weak(kind="int"):
            return "an integer"
        case Weak():
            return "a number"
        case Bool():
            return "a bool"
        case Text():
            return "a string"
        case Nothing():
            return "None"
        case WeakTensor(shape=shape):
            return f"a tensor [{', '.join(map(str, shape))}]" if shape else "a number"
        case Tuple(items=items):
            return f"a tuple ({', '.join(describe(i) for i in items)})"
        case Seq() | ModuleList():
            return "a list"
        case Function(defn=defn):
            return f"the function `{defn.name}`"
        case Builtin(name=name):
            return f"the built-in `{name}`"
        case ModuleType(defn=d):
            return f"the module type `{d.name}`"
        case Module(inst=inst):
            return f"a module {inst.id}"
        case Tree():
            return "a tree of tensors"
        case UnitRef(unit=unit):
            return f"the file `{unit.name}`"
        case Pack():
            return "some axes"
    return "a value"


def axes_word(rank: int) -> str:
    """`a number`, `1 axis`, `3 axes`."""
    return "a number" if rank == 0 else "1 axis" if rank == 1 else f"{rank} axes"


def counted(n: int, noun: str, many: str = "") -> str:
    """`1 value`, `2 values`."""
    return f"{n} {noun if n == 1 else many or noun + 's'}"


def axis_word(rank: int, axis: int, name: str) -> str:
    """`columns of w`, `axis 2 of x`."""
    if rank == 2:
        return f"{'rows' if axis == 0 else 'columns'} of {name}"
    return f"length of {name}" if rank == 1 else f"axis {axis} of {name}"


def declared_origins(name: str, shape: tuple[Dim, ...], span: Span) -> Origins:
    return tuple(Origin(axis_word(len(shape), i, name), span) for i in range(len(shape)))
