"""Structural identity: equal expressions become one object, equal nodes one key."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import lru_cache

from nnc.ir.expr import Const, Expr, Idx, Load, Op, Select, Var, children, walk, with_children
from nnc.ir.form import KEPT, Form, positional
from nnc.ir.graph import Axis, Compute, Constant, External, Node, Part, Update
from nnc.lang.dims import Dim
from nnc.lang.types import TensorType


def _head(e: Expr) -> tuple[object, ...]:
    """What an expression is but for its operands."""
    match e:
        case Const(dtype=dtype, value=value):
            return ("const", dtype, repr(value))
        case Idx(dim=dim):
            return ("idx", dim)
        case Var(name=name):
            return ("var", name)
        case Load(tensor=tensor, other=other, check=check):
            return ("load", tensor, other is None, check is None)
        case Op(dtype=dtype, fn=fn):
            return ("op", dtype, fn)
        case Select():
            return ("select",)


@dataclass
class Interner:
    """Gives for equal expressions one object, if their operands come from it too."""

    first: dict[Hashable, Expr] = field(default_factory=dict)

    def __call__(self, e: Expr) -> Expr:
        key = (*_head(e), *(id(c) for c in children(e)))
        return self.first.setdefault(key, e)


def share(*roots: Expr) -> tuple[Expr, ...]:
    """The same expressions with equal sub-expressions made one object."""
    intern = Interner()
    new: dict[int, Expr] = {}
    for e in walk(*roots):
        new[id(e)] = intern(with_children(e, tuple(new[id(c)] for c in children(e))))
    return tuple(new[id(r)] for r in roots)


def _exprs_key(node: Compute | Update, loops: tuple[Axis, ...]) -> Hashable:
    of = node.formed
    return (positional(of.form, tuple(a.var for a in loops)), of.tensors, of.numbers)


def _compute_key(node: Compute) -> Hashable:
    of = node.formed
    known = ("compute", node.head)
    found = of.form.memo.get(known)
    if found is None:
        loops = (*node.axes, *node.raxes)
        form = positional(of.form, tuple(a.var for a in loops))
        extents = tuple(a.extent for a in loops)
        found = of.form.memo[known] = _shape(node.type, node.op, len(node.axes), extents, form)
    return (found, of.tensors, of.numbers, node.after)


@dataclass(frozen=True, eq=False)
class _Shape:
    """A `Compute` but for names of loops and what it reads. Equal ones are one object."""

    type: TensorType
    op: str
    kept: int
    extents: tuple[Dim, ...]
    form: Form


@lru_cache(maxsize=KEPT)
def _shape(type: TensorType, op: str, kept: int, extents: tuple[Dim, ...], form: Form) -> _Shape:
    return _Shape(type, op, kept, extents, form)


def node_key(node: Node) -> Hashable:
    """Equal for nodes that compute the same from the same operands; loop variables by position."""
    match node:
        case Compute():
            return _compute_key(node)
        case Update(axes=axes, guard=guard):
            extents = tuple(a.extent for a in axes)
            flags = (node.accumulate, guard is None, node.check is None)
            return ("update", node.base, extents, _exprs_key(node, axes), flags, node.after)
        case Constant(data=data):
            return ("constant", node.type, tuple(map(repr, data)))
        case Part(source=source, index=index):
            return ("part", source, index)
        case External(symbol=symbol, sizes=sizes, inputs=inputs):
            return ("external", node.type, symbol, sizes, inputs, node.after)
    return ("node", node)
