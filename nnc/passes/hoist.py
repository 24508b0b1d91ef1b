"""What a recurrent loop computes from its inputs alone is computed for all turns before it.

`h = tanh(x[t] @ w + h @ u)`: the products `x[t] @ w` of all turns are one contraction, and so is
their gradient. Only the reductions next to the inputs are taken out (not those that shall be
computed again for the gradient: `recompute`), and only of loops that are slow because of a
reduction over what they carry: elsewhere the stacked values would cost memory for nothing (a loop
that adds up the losses of its turns).
"""

from __future__ import annotations

from dataclasses import replace

from nnc.ir.graph import Compute, Loop, Node, operands
from nnc.ir.rewrite import replace_operands, with_outs
from nnc.lang.types import TensorType
from nnc.passes.turns import Outward, axis_of, slice_of


def hoist(loop: Loop) -> Loop:
    """The same loop over slices of what is computed before it."""
    free = _free(loop)
    near = _element_wise(free)
    dear = [n for n in free if isinstance(n, Compute) and n.op and _only(n, near, free)]
    if not dear or loop.cond is not None or not _is_recurrent(loop, free):
        return loop
    inside = {*loop.body, *loop.carries}
    stacks: dict[Node, Node] = {}
    for node in free:
        if node in near or node in dear:
            assert isinstance(node, Compute), node
            stacks[node] = all_turns(node, loop, inside, stacks)
    new: dict[Node, Node] = {}

    def get(node: Node) -> Node:
        return new.get(node, node)

    for node in loop.body:
        moved = replace_operands(node, get)
        new[node] = slice_of(stacks[node], loop.var) if node in dear else moved
    return with_outs(loop, [get(o) for o in loop.outs])


def _free(loop: Loop) -> dict[Node, None]:
    """The nodes of the body that do not depend on what is carried, and may be kept."""
    bound: set[Node] = set(loop.carries)
    for node in loop.body:
        if any(o in bound for o in operands(node)) or len(node.regions) > len(loop.regions):
            bound.add(node)
    return {n: None for n in loop.body if n not in bound}


def _only(node: Node, some: dict[Node, None], inside: dict[Node, None]) -> bool:
    return all(o in some for o in operands(node) if o in inside)


def _element_wise(free: dict[Node, None]) -> dict[Node, None]:
    """Those that are computed from the inputs without a reduction."""
    out: dict[Node, None] = {}
    for node in free:
        if isinstance(node, Compute) and not node.op and _only(node, out, free):
            out[node] = None
    return out


def _is_recurrent(loop: Loop, free: dict[Node, None]) -> bool:
    """Whether a reduction depends on what is carried."""
    slow = (n for n in loop.body if isinstance(n, Loop) or (isinstance(n, Compute) and n.op))
    return any(n not in free for n in slow)


def all_turns(node: Compute, loop: Loop, inside: set[Node], stacks: dict[Node, Node]) -> Compute:
    """The node with the turns as its first axis."""
    axis = axis_of(loop, (*node.axes, *node.raxes))
    outward = Outward(loop.var, axis, inside, stacks.__getitem__)
    kind = TensorType(node.type.dtype, (loop.trip, *node.type.shape))
    return replace(node, type=kind, axes=(axis, *node.axes), body=outward(node.body))
