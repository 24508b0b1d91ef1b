"""Differentiable dependence: where a derivative flows, and where it is cut.

Integers, conditions, comparisons, indices, `Stop`, and functions without derivative cut it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from nnc.ir.expr import Expr, Load, Op, Select
from nnc.ir.graph import (
    Compute,
    Custom,
    External,
    Grad,
    Loop,
    Node,
    Part,
    Update,
    operands,
    toposort,
)
from nnc.ir.scalar import SCALARS
from nnc.lang.types import is_float


def depends(y: Node, x: Node, without: Node | None = None) -> bool:
    """Whether a derivative of y with respect to x can be other than zero (`without`: by a way that
    does not pass this node)."""
    found = {x} if is_float(x.type.dtype) else set()
    _spread([n for n in toposort([y]) if n is not without], found)
    return y in found


def active(roots: Iterable[Node], wrt: Iterable[Node]) -> set[Node]:
    """The nodes below `roots` that depend differentiably on one of `wrt` (those themselves too).

    Nodes and placeholders of loop bodies are among them.
    """
    found = {w for w in wrt if is_float(w.type.dtype)}
    _spread(toposort(roots), found)
    return found


def _spread(order: Iterable[Node], found: set[Node]) -> None:
    """Adds what depends on found nodes; as deep as loops are nested."""
    for node in order:
        match node:
            case Loop():
                _spread_turns(node, found)
            case Custom(inputs=inputs, others=others) if others:
                if any(i in found for i in inputs):
                    found.add(node)
            case Part(source=Loop() as loop, index=index):
                if (*loop.carries, *loop.yields)[index] in found:
                    found.add(node)
            case _ if is_float(node.type.dtype) and any(s in found for s in sources(node)):
                found.add(node)


def _spread_turns(loop: Loop, found: set[Node]) -> None:
    """Through the turns of a loop: what is carried into a turn may come from the one before."""
    size = -1
    while len(found) > size:
        size = len(found)
        starts = zip(loop.carries, loop.init, loop.next, strict=True)
        found |= {c for c, start, end in starts if start in found or end in found}
        _spread(loop.body, found)


def opaque(y: Node, wrt: Iterable[Node]) -> list[External]:
    """The C functions without a derivative that the derivative of y by `wrt` would pass."""
    known = active([y], wrt)
    out: list[External] = []
    seen: set[Node] = set()
    stack: list[Node] = [y]
    while stack:
        node = stack.pop()
        if node in seen or (node not in known and not isinstance(node, Loop)):
            continue
        seen.add(node)
        if isinstance(node, External):
            out.append(node)
        elif isinstance(node, Loop):
            stack += (*node.init, *node.next, *node.yields)
        else:
            stack += sources(node)
    return out


def sources(node: Node) -> tuple[Node, ...]:
    """The operands through which a derivative flows, each once (of a loop: all it reads)."""
    match node:
        case Compute(op="argmax" | "argmin" | "any" | "all"):
            return ()
        case Compute(body=body):
            return _tensors(body)
        case Update(base=base, value=value):
            return tuple(dict.fromkeys((base, *_tensors(value))))
        case Part(source=source):
            return (source,)
        case Custom(inputs=inputs) | External(inputs=inputs):
            return inputs
        case Loop():
            return operands(node)
        case Grad(y=y, wrt=wrt, seed=seed):
            return (y, *wrt, *(() if seed is None else (seed,)))
    return ()


def _tensors(body: Expr) -> tuple[Node, ...]:
    found = (e.tensor for e in differentiable(body) if isinstance(e, Load))
    return tuple(dict.fromkeys(found))  # type: ignore[arg-type]


def differentiable(root: Expr) -> Iterator[Expr]:
    """The sub-expressions whose value has a derivative with effect on the root, each once."""
    stack, seen = [root], {id(root)}
    while stack:
        e = stack.pop()
        if not is_float(e.dtype):
            continue
        yield e
        for c in flows(e):
            if id(c) not in seen:
                seen.add(id(c))
                stack.append(c)


def flows(e: Expr) -> tuple[Expr, ...]:
    """The operands that a derivative flows to."""
    match e:
        case Load(other=other):
            return () if other is None else (other,)
        case Select(a=a, b=b):
            return (a, b)
        case Op(fn=fn, args=args):
            if fn == "cast" or SCALARS[fn].partials is not None:
                return tuple(a for a in args if is_float(a.dtype))
    return ()


def live(root: Expr, order: Iterable[Expr], wanted: Callable[[Load], bool]) -> set[int]:
    """Ids of the sub-expressions that depend on a wanted load; `order` has operands first."""
    through = {id(e) for e in differentiable(root)}
    out: set[int] = set()
    for e in order:
        if id(e) in through and (
            (isinstance(e, Load) and wanted(e)) or any(id(c) in out for c in flows(e))
        ):
            out.add(id(e))
    return out
