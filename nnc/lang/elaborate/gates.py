"""Gradients leave a side of an `if` only where that side was taken.

What a side reads from outside passes a gate, which is the value itself and hands on its cotangent
where the side was taken, else zero. So what the derivative of the other side would be, NaN or
infinite, never gets out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from nnc.ir.expr import Const, Expr, Idx, Load, Select
from nnc.ir.graph import Axis, Compute, Custom, Grad, Input, Node, toposort
from nnc.ir.rewrite import replace_operands
from nnc.lang.dims import Dim
from nnc.lang.types import is_float


@dataclass
class Gates:
    """`outside`: the values that were there before the side ran; `test`: whether it is taken."""

    outside: set[Node]
    test: Expr
    new: dict[Node, Node] = field(default_factory=dict)

    @staticmethod
    def of(known: Iterable[Node], test: Expr) -> Gates:
        return Gates(set(toposort(known)), test)

    def through(self, roots: Sequence[Node]) -> list[Node]:
        """The results of the side, reading from outside through gates."""
        order = toposort(roots)
        if any(isinstance(n, Grad) for n in order if n not in self.outside):
            return list(roots)
        for node in order:
            if node not in self.new and not self.is_outside(node):
                self.new[node] = replace_operands(node, self.inner)
        return [self.new.get(r, r) for r in roots]

    def is_outside(self, node: Node) -> bool:
        return isinstance(node, Input) or node in self.outside

    def inner(self, node: Node) -> Node:
        if node not in self.new:
            self.new[node] = self.gate(node)
        return self.new[node]

    def gate(self, node: Node) -> Node:
        if not is_float(node.type.dtype) or not self.is_outside(node):
            return node
        dout = Input(type=node.type, span=node.span, name=node.name, kind="cotangent")
        axes = tuple(Axis(f"$g{d}", n) for d, n in enumerate(node.type.shape))
        here = Load(node.type.dtype, dout, tuple(Idx(Dim.of(a.var)) for a in axes))
        body = Select(node.type.dtype, self.test, here, Const(node.type.dtype, 0.0))
        grad = Compute(type=node.type, span=node.span, axes=axes, body=body)
        parts = {"type": node.type, "span": node.span, "name": node.name}
        return Custom(**parts, source=node, inputs=(node,), dout=dout, grads=(grad,))  # type: ignore[arg-type]
