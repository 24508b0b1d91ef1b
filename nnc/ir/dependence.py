"""Differentiable dependence of one node on another."""

from __future__ import annotations

from nnc.ir.expr import Expr, Load, Op, Select
from nnc.ir.graph import Compute, Grad, Input, Node, Part, Stop, Update, operands
from nnc.ir.scalar import SCALARS
from nnc.lang.types import is_float


def depends(y: Node, x: Node) -> bool:
    """Whether a gradient can flow from y to x."""
    seen: set[Node] = set()
    stack = [y]
    while stack:
        node = stack.pop()
        if node is x:
            return True
        if node in seen or not is_float(node.type.dtype):
            continue
        seen.add(node)
        stack.extend(_differentiable(node))
    return False


def _differentiable(node: Node) -> list[Node]:
    match node:
        case Stop() | Input():
            return []
        case Compute(body=body, op=op):
            return [] if op in ("any", "all", "argmax", "argmin") else _loads(body)
        case Update(base=base, value=value):
            return [base, *_loads(value)]
        case Part(source=source):
            return [source]
        case Grad():
            return list(operands(node))
    return []


def _loads(body: Expr) -> list[Node]:
    out: list[Node] = []
    stack: list[Expr] = [body]
    done: set[int] = set()
    while stack:
        e = stack.pop()
        if id(e) in done:
            continue
        done.add(id(e))
        match e:
            case Load(tensor=tensor, other=other):
                out.append(tensor)  # type: ignore[arg-type]
                if other is not None:
                    stack.append(other)
            case Select(a=a, b=b):
                stack += [a, b]
            case Op(fn=fn, args=args):
                if is_float(e.dtype) and (fn == "cast" or SCALARS[fn].partials is not None):
                    stack += args
    return out
