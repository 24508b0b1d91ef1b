"""Structural identity: equal expressions become one object, equal nodes one key."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from nnc.ir.expr import Const, Expr, Idx, Load, Op, Select, Var, children, walk, with_children
from nnc.ir.graph import Compute, Constant, External, Node, Part, Update
from nnc.lang.dims import Dim


@dataclass
class Numbering:
    """Numbers expressions by structure: two get one number exactly when they are equal in text.

    Tensors are equal when they are the same object. `Idx` is read with the loop variables renamed.
    """

    numbers: dict[Hashable, int] = field(default_factory=dict)

    def of(self, key: Hashable) -> int:
        return self.numbers.setdefault(key, len(self.numbers))

    def exprs(self, roots: Sequence[Expr], rename: Mapping[str, Dim]) -> tuple[int, ...]:
        done: dict[int, int] = {}
        for e in walk(*roots):
            operands = tuple(done[id(c)] for c in children(e))
            done[id(e)] = self.of((*_head(e, rename), operands))
        return tuple(done[id(r)] for r in roots)


def _head(e: Expr, rename: Mapping[str, Dim]) -> tuple[object, ...]:
    """What an expression is but for its operands."""
    match e:
        case Const(dtype=dtype, value=value):
            return ("const", dtype, repr(value))
        case Idx(dim=dim):
            return ("idx", dim.subst(rename))
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
        key = (*_head(e, {}), *(id(c) for c in children(e)))
        return self.first.setdefault(key, e)


def share(*roots: Expr) -> tuple[Expr, ...]:
    """The same expressions with equal sub-expressions made one object."""
    intern = Interner()
    new: dict[int, Expr] = {}
    for e in walk(*roots):
        new[id(e)] = intern(with_children(e, tuple(new[id(c)] for c in children(e))))
    return tuple(new[id(r)] for r in roots)


def node_key(node: Node, numbering: Numbering) -> Hashable:
    """Equal for nodes that compute the same from the same operands; loop variables by position."""
    match node:
        case Compute(axes=axes, raxes=raxes):
            loops = (*axes, *raxes)
            rename = {a.var: Dim.of(f"$#{i}") for i, a in enumerate(loops)}
            extents = tuple(a.extent for a in loops)
            body = numbering.exprs((node.body,), rename)
            return ("compute", node.type, node.op, len(axes), extents, body, node.after)
        case Update(axes=axes, target=target, guard=guard):
            rename = {a.var: Dim.of(f"$#{i}") for i, a in enumerate(axes)}
            guards = () if guard is None else (guard,)
            exprs = numbering.exprs((*target, node.value, *guards), rename)
            extents = tuple(a.extent for a in axes)
            flags = (node.accumulate, guard is None, node.check is None)
            return ("update", node.base, extents, exprs, flags, node.after)
        case Constant(data=data):
            return ("constant", node.type, tuple(map(repr, data)))
        case Part(source=source, index=index):
            return ("part", source, index)
        case External(symbol=symbol, sizes=sizes, inputs=inputs):
            return ("external", node.type, symbol, sizes, inputs, node.after)
    return ("node", node)
