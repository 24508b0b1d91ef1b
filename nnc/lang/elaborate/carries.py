"""What a run-time loop carries from turn to turn: variables and storage on placeholders."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nnc.diagnostics import Span
from nnc.ir.graph import Input
from nnc.lang.elaborate.arith import adapt
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.lifting import Lifted
from nnc.lang.elaborate.mistakes import Poisoned, fail
from nnc.lang.elaborate.values import (
    Bool,
    Tensor,
    Tree,
    Tuple,
    Unknown,
    Value,
    Weak,
    WeakTensor,
)
from nnc.lang.elaborate.words import describe
from nnc.lang.types import TensorType, is_float


@dataclass(eq=False)
class _Carry:
    """One carried tensor: `name` for messages, its place (variable and leaf, or storage key)."""

    name: str
    init: Tensor
    slot: Input


def as_carried(cx: Context, value: Value, span: Span, dtype: str | None) -> Tensor:
    """A value as a tensor: literals adapt to `dtype`, or real (whole numbers: i32)."""
    current = cx.tensor(value)
    match current:
        case Unknown():
            raise Poisoned
        case Tensor():
            return made(cx, current, span)
        case Weak(kind="int") if dtype is None:
            dtype = "i32"
    if isinstance(current, Weak | WeakTensor | Bool):
        new = adapt(cx, current, dtype or cx.frame.real, span)
        if isinstance(new, Tensor):
            return made(cx, new, span)
    raise fail("E0316", f"{describe(current)} cannot be carried through a loop", span)


def made(cx: Context, t: Tensor, span: Span) -> Tensor:
    """The tensor as a node, in index notation as it is."""
    return t if cx.ranges else cx.materialized(t, span)


@dataclass(eq=False)
class Carries:
    """The carried tensors in order, with the structure of each variable."""

    lifted: Lifted

    def __post_init__(self) -> None:
        self.items: list[_Carry] = []
        self.shapes: dict[str, Value] = {}
        self.cx, self.span = self.lifted.cx, self.lifted.span

    def slot(self, name: str, init: Tensor) -> Tensor:
        """A placeholder for one tensor."""
        start = made(self.cx, init, self.span)
        shape = (*(a.extent for a in self.lifted.outer), *start.shape)
        kind = TensorType(start.dtype, shape)
        slot = Input(type=kind, span=self.span, name=name, kind="carry")
        self.items.append(_Carry(name, start, slot))
        return replace(self.lifted.read(slot), letters=init.letters, origins=init.origins)

    def place(self, name: str, before: Value, after: Value) -> Value:
        """A variable on placeholders."""
        old, new = self.cx.tensor(before), self.cx.tensor(after)
        if isinstance(old, Unknown) or isinstance(new, Unknown):
            raise Poisoned
        if isinstance(new, Tree) and isinstance(old, Tree):
            out: Value = Tree(
                {k: self._one(f"{name}.{k}", old.leaves[k], v) for k, v in new.leaves.items()},
                new.of,
            )
        elif isinstance(old, Tuple) and isinstance(new, Tuple):
            pairs = zip(old.items, new.items, strict=True)
            out = Tuple(tuple(self._one(f"{name}.{i}", a, b) for i, (a, b) in enumerate(pairs)))
        else:
            out = self._one(name, old, new)
        self.shapes[name] = out
        return out

    def _one(self, name: str, old: Value, new: Value) -> Value:
        dtype = new.dtype if isinstance(new, Tensor) else None
        if dtype is None and isinstance(new, Weak) and new.kind == "float":
            dtype = self.cx.frame.real
        start = as_carried(self.cx, old, self.span, dtype)
        if isinstance(new, Tensor) and new.type != start.type:
            raise _differs(name, start.type, new.type, self.span)
        return self.slot(name, start)

    def end(self, name: str, value: Value) -> list[Tensor]:
        """The next values of a variable, in the order of its placeholders."""
        shape = self.shapes[name]
        current = self.cx.tensor(value)
        if isinstance(current, Unknown):
            raise Poisoned
        match shape, current:
            case Tree(leaves=slots), Tree(leaves=found):
                return [self._next(f"{name}.{k}", s, found[k]) for k, s in slots.items()]
            case Tuple(items=items), Tuple(items=new):
                return [self._next(name, s, v) for s, v in zip(items, new, strict=True)]
        return [self._next(name, shape, current)]

    def _next(self, name: str, slot: Value, value: Value) -> Tensor:
        assert isinstance(slot, Tensor)
        tensor = as_carried(self.cx, value, self.span, slot.dtype)
        if tensor.type != slot.type:
            raise _differs(name, slot.type, tensor.type, self.span)
        return tensor


def _differs(name: str, old: TensorType, new: TensorType, span: Span) -> Exception:
    help = f"what a loop carries keeps its type: give `{name}` its last shape before the loop"
    if not old.shape and new.shape:
        sizes = ", ".join(map(str, new.shape))
        zeros = f"zeros[{sizes}]" if is_float(new.dtype) else f"{new.dtype}(zeros[{sizes}])"
        help = f"what a loop carries keeps its type; before the loop, `{name} = {zeros}`"
    elif len(old.shape) == len(new.shape) and old.shape and old.dtype == new.dtype:
        help = "what the turns make is stacked by `yield`: `ys = for t in T:`, `yield y`"
    return fail(
        "E0316", f"`{name}` is {old} before the loop and {new} after a turn", span, help=help
    )
