"""Graph, the tensor IR: SSA values with symbolic shapes, each with its source span. Very few node kinds.

Nodes form a DAG by reference and are compared by identity. A `Graph` is one exported function: its inputs
in ABI order, its results, and the final versions of the storage it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from nnc.diagnostics import NOWHERE, Span
from nnc.ir.expr import Expr, Load, rewrite, walk
from nnc.lang.dims import Dim, Facts
from nnc.lang.types import TensorType

REDUCTIONS = ("sum", "prod", "max", "min", "any", "all", "argmax", "argmin")


@dataclass(frozen=True)
class Axis:
    """A loop variable (its name starts with `$`, unique inside its node) and its extent."""

    var: str
    extent: Dim


@dataclass(frozen=True, eq=False, kw_only=True)
class Value:
    """What every node has: its type, its source place, and a name for dumps and profiles."""

    type: TensorType
    span: Span = NOWHERE
    name: str = ""


@dataclass(frozen=True, eq=False, kw_only=True)
class Input(Value):
    """A leaf that the caller supplies: an argument, or one param or state tensor of a module argument.

    `kind`: arg, param, state, rng. `name` is its path in the signature (`net.fc1.weight`, `x`, `lr`).
    """

    kind: str = "arg"


@dataclass(frozen=True, eq=False, kw_only=True)
class Constant(Value):
    """A constant tensor; `data` in row-major order. (Scalars are `Compute` with a `Const` body.)"""

    data: tuple[float | int | bool, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Compute(Value):
    """The one tensor operation: `out[axes] = op over raxes of body` (no reduction: op "" and no raxes).

    The type's shape is the axes' extents. `max`, `min`, `argmax`, `argmin` take the first extremal position
    in row-major order of raxes and propagate NaN; arg reductions have exactly one reduced axis and an i32 result.
    sum/prod of f16/bf16 accumulate in f32; any/all take and give bool.
    """

    axes: tuple[Axis, ...]
    raxes: tuple[Axis, ...] = ()
    op: str = ""
    body: Expr


@dataclass(frozen=True, eq=False, kw_only=True)
class Update(Value):
    """A new version of `base` (same type): for all axes, `base[target(axes)] (op)= value(axes)`.

    `accumulate` adds, in row-major order of the axes for each element (deterministic), else the targets are
    distinct and replace. Where `guard` (bool) is false nothing is written; `check` as in `Load`.
    """

    base: Node
    axes: tuple[Axis, ...]
    target: tuple[Expr, ...]
    value: Expr
    accumulate: bool = False
    guard: Expr | None = None
    check: Span | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Grad(Value):
    """d y / d wrt[i] for a scalar float y; read through `Part`s. Removed by the autodiff pass.

    `type` is that of y. `seed`: cotangent of y (None: 1); then y may have any shape.
    """

    y: Node
    wrt: tuple[Node, ...]
    seed: Node | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Part(Value):
    """Result `index` of a multi-result node."""

    source: Grad
    index: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Stop(Value):
    """The same value, a constant for differentiation. Removed after autodiff."""

    source: Node


Node = Input | Constant | Compute | Update | Grad | Part | Stop


@dataclass(frozen=True)
class Write:
    """The final version of a storage input: on success its bytes are replaced by `value`'s."""

    target: Input
    value: Node


@dataclass(frozen=True)
class Graph:
    """One exported function."""

    name: str
    dims: tuple[str, ...]  # run-time sizes, in ABI order
    inputs: tuple[Input, ...]  # in ABI order
    results: tuple[Node, ...]
    writes: tuple[Write, ...] = ()
    facts: Facts = Facts()
    span: Span = NOWHERE

    @property
    def roots(self) -> tuple[Node, ...]:
        return (*self.results, *(w.value for w in self.writes))


def operands(node: Node) -> tuple[Node, ...]:
    """The nodes this node reads, each once, in order of first use."""
    match node:
        case Compute(body=body):
            return _loaded(body)
        case Update(base=base, target=target, value=value, guard=guard):
            exprs = (*target, value, *(() if guard is None else (guard,)))
            return tuple(dict.fromkeys((base, *_loaded(*exprs))))
        case Grad(y=y, wrt=wrt, seed=seed):
            return tuple(dict.fromkeys((y, *wrt, *(() if seed is None else (seed,)))))
        case Part(source=source) | Stop(source=source):
            return (source,)
    return ()


def _loaded(*bodies: Expr) -> tuple[Node, ...]:
    found = (e.tensor for e in walk(*bodies) if isinstance(e, Load))
    return tuple(dict.fromkeys(found))  # type: ignore[arg-type]


def toposort(roots: Iterable[Node]) -> list[Node]:
    """All nodes reachable from the roots, operands first (deterministic, explicit stack)."""
    done: set[Node] = set()
    order: list[Node] = []
    stack: list[tuple[Node, bool]] = [(r, False) for r in reversed(list(roots))]
    while stack:
        node, ready = stack.pop()
        if node in done:
            continue
        if ready:
            done.add(node)
            order.append(node)
        else:
            stack.append((node, True))
            stack.extend((o, False) for o in reversed(operands(node)) if o not in done)
    return order


def users(roots: Iterable[Node]) -> dict[Node, list[Node]]:
    """For each reachable node, the nodes that read it."""
    out: dict[Node, list[Node]] = {}
    for node in toposort(roots):
        out.setdefault(node, [])
        for operand in operands(node):
            out[operand].append(node)
    return out


def replace_operands(node: Node, new: Callable[[Node], Node]) -> Node:
    """The node over other operands (itself when nothing changed)."""
    if all(new(o) is o for o in operands(node)):
        return node
    match node:
        case Compute(body=body):
            return replace(node, body=_reload(body, new))
        case Update(base=base, target=target, value=value, guard=guard):
            return replace(
                node,
                base=new(base),
                target=tuple(_reload(t, new) for t in target),
                value=_reload(value, new),
                guard=None if guard is None else _reload(guard, new),
            )
        case Grad(y=y, wrt=wrt, seed=seed):
            seed = None if seed is None else new(seed)
            return replace(node, y=new(y), wrt=tuple(new(w) for w in wrt), seed=seed)
        case Part(source=source):
            moved = new(source)
            assert isinstance(moved, Grad), moved
            return replace(node, source=moved)
        case Stop(source=source):
            return replace(node, source=new(source))
    return node


def _reload(body: Expr, new: Callable[[Node], Node]) -> Expr:
    def one(e: Expr) -> Expr:
        if isinstance(e, Load):
            tensor = new(e.tensor)  # type: ignore[arg-type]
            return e if tensor is e.tensor else replace(e, tensor=tensor)
        return e

    return rewrite(body, one)


def transform(graph: Graph, fn: Callable[[Node], Node]) -> Graph:
    """Rebuilds the graph operands first; `fn` sees each node with its operands already rebuilt."""
    new: dict[Node, Node] = {}
    for node in toposort(graph.roots):
        new[node] = fn(replace_operands(node, lambda o: new[o]))
    return with_roots(graph, [new[r] for r in graph.roots])


def with_roots(graph: Graph, roots: list[Node]) -> Graph:
    """The same function with other result and write values (in the order of `graph.roots`)."""
    n = len(graph.results)
    writes = tuple(replace(w, value=v) for w, v in zip(graph.writes, roots[n:], strict=True))
    return replace(graph, results=tuple(roots[:n]), writes=writes)


def nodes(graph: Graph) -> Iterator[Node]:
    yield from toposort(graph.roots)
