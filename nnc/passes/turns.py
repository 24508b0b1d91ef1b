"""Between one turn of a run-time loop and all turns: slices of stacks, and turns as an axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from nnc.ir.expr import Const, Expr, Idx, Load, children, subst_exprs, walk, with_children
from nnc.ir.graph import Axis, Compute, Input, Loop, Node
from nnc.lang.dims import Dim
from nnc.lang.types import TensorType


def slice_of(stack: Node, var: str) -> Compute:
    """`stack[var, ...]` as a tensor; of a stack of one number that number."""
    axes = tuple(Axis(f"$i{j}", e) for j, e in enumerate(stack.type.shape[1:]))
    index = (Idx(Dim.of(var)), *(Idx(Dim.of(a.var)) for a in axes))
    body: Expr = Load(stack.type.dtype, stack, index)
    if isinstance(stack, Compute) and not stack.op and isinstance(stack.body, Const):
        body = stack.body
    kind = TensorType(stack.type.dtype, stack.type.shape[1:])
    return Compute(type=kind, axes=axes, body=body, span=stack.span)


def is_dear(node: Node) -> bool:
    """Whether a value is rather kept than computed again."""
    match node:
        case Compute(op=op):
            return bool(op)
        case Input():
            return False
    return True


def is_view(node: Node) -> bool:
    """Whether a value is another one in another order."""
    return isinstance(node, Compute) and not node.op and isinstance(node.body, Load)


def direct(node: Node, inside: set[Node]) -> Load | None:
    """The read of an outside tensor that a node of the turn is, element by element."""
    match node:
        case Compute(op="", body=Load(tensor=tensor, other=None, check=None) as body):
            if tensor not in inside and all(isinstance(i, Idx) for i in body.index):
                return body
    return None


def axis_of(loop: Loop, axes: Sequence[Axis]) -> Axis:
    """The turns as an axis beside others."""
    name, taken = loop.var.split(".")[0], {a.var for a in axes}
    while name in taken:
        name += "_"
    return Axis(name, loop.trip)


@dataclass
class Outward:
    """Rewrites expressions of a turn for outside of the loop: the turn becomes the axis `axis`.

    `inside`: the values that depend on the turn; `stack` gives for one the tensor of all turns.
    """

    var: str
    axis: Axis
    inside: set[Node]
    stack: Callable[[Node], Node]
    done: dict[int, tuple[Expr, Expr]] = field(default_factory=dict)

    def __call__(self, root: Expr) -> Expr:
        for e in walk(root):
            if id(e) not in self.done:
                new = with_children(e, tuple(self.done[id(c)][1] for c in children(e)))
                self.done[id(e)] = e, self._one(new)
        return self.done[id(root)][1]

    def _one(self, e: Expr) -> Expr:
        at = Dim.of(self.axis.var)
        match e:
            case Idx(dim=dim) if self.var in dim.names:
                return Idx(dim.subst({self.var: at}))
            case Load(tensor=tensor, index=index) if tensor in self.inside:
                node: Node = tensor
                whole = direct(node, self.inside)
                if whole is None:
                    return replace(e, tensor=self.stack(node), index=(Idx(at), *index))
                assert isinstance(node, Compute)
                env = {a.var: i for a, i in zip(node.axes, index, strict=True)}
                there = tuple(self(subst_exprs(i, env)) for i in whole.index)
                return replace(e, tensor=whole.tensor, index=there)
        return e
