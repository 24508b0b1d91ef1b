"""Graph, the tensor IR: SSA values with symbolic shapes and source spans; very few node kinds.

Nodes form a DAG by reference and are compared by identity. A `Graph` is one exported function: its
inputs in ABI order, its results, and the final versions of the storage it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from nnc.diagnostics import NOWHERE, Span
from nnc.ir.expr import Expr
from nnc.ir.form import (
    KEPT,
    Formed,
    formed,
    instance,
    names_of,
)
from nnc.lang.dims import Dim, Facts
from nnc.lang.types import TensorType

REDUCTIONS = ("sum", "prod", "max", "min", "any", "all", "argmax", "argmin")


@dataclass(frozen=True)
class Axis:
    """A loop variable (its name starts with `$`, unique inside its node) and its extent."""

    var: str
    extent: Dim


@dataclass(frozen=True, eq=False)
class Region:
    """What one expression computes: the unit of recomputation (`nnc.passes.recompute`).

    `asked`: by `recompute(...)`; else it is a call of a module that may be chosen.
    """

    span: Span
    asked: bool


@dataclass(frozen=True, eq=False, kw_only=True)
class Value:
    """What every node has: its type, its source place, and a name for dumps and profiles.

    `regions`: those it was made in, outermost first. `after`: values that it does not read, but
    that are computed before it.
    """

    type: TensorType
    span: Span = NOWHERE
    name: str = ""
    regions: tuple[Region, ...] = ()
    after: tuple[Node, ...] = ()

    @cached_property
    def read(self) -> tuple[Node, ...]:
        """The nodes this node reads, each once, in order of first use."""
        return _read(self)  # type: ignore[arg-type]

    @cached_property
    def formed(self) -> Formed:
        """The form of its expressions, and what stands in it."""
        return formed(exprs_of(self))  # type: ignore[arg-type]

    @cached_property
    def needs(self) -> tuple[Node, ...]:
        """The nodes that are computed before this one: those it reads, then `after`."""
        return tuple(dict.fromkeys((*self.read, *self.after))) if self.after else self.read

    @cached_property
    def used(self) -> frozenset[str]:
        """Dims and free loop variables in the shape and the expressions."""
        return _used_names(self)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False, kw_only=True)
class Input(Value):
    """A leaf that the caller supplies: an argument, or a param or state tensor of a module.

    `kind`: arg, param, state, rng. `name` is its path in the signature (`net.fc1.weight`, `x`,
    `lr`).
    """

    kind: str = "arg"


@dataclass(frozen=True, eq=False, kw_only=True)
class Constant(Value):
    """A constant tensor; `data` in row-major order. (Scalars are `Compute` with a `Const` body.)"""

    data: tuple[float | int | bool, ...]


@dataclass(frozen=True, eq=False)
class Head:
    """What a `Compute` is but for its expressions. Equal ones are one object, while in use."""

    type: TensorType
    axes: tuple[Axis, ...]
    raxes: tuple[Axis, ...]
    op: str


@lru_cache(maxsize=KEPT)
def _head(type: TensorType, axes: tuple[Axis, ...], raxes: tuple[Axis, ...], op: str) -> Head:
    return Head(type, axes, raxes, op)


class _Body:
    """The body of a node that was made from its form: found when somebody looks at it."""

    def __get__(self, node: Compute | None, owner: type[Compute]) -> Expr:
        if node is None:
            raise AttributeError  # so that the field has no default
        (body,) = instance(node.formed)
        node.__dict__["body"] = body
        return body


@dataclass(frozen=True, eq=False, kw_only=True)
class Compute(Value):
    """The one tensor operation: `out[axes] = op over raxes of body` (op "": nothing is reduced).

    The type's shape is the axes' extents. `max`, `min`, `argmax`, `argmin` take the first extremal
    position in row-major order of raxes and propagate NaN; arg reductions have exactly one reduced
    axis and an i32 result. sum/prod of f16/bf16 accumulate in f32; any/all take and give bool.
    """

    axes: tuple[Axis, ...]
    raxes: tuple[Axis, ...] = ()
    op: str = ""
    body: Expr = _Body()  # type: ignore[assignment]

    @cached_property
    def head(self) -> Head:
        return _head(self.type, self.axes, self.raxes, self.op)


@dataclass(frozen=True, eq=False, kw_only=True)
class Update(Value):
    """A new version of `base` (same type): for all axes, `base[target(axes)] (op)= value(axes)`.

    `accumulate` ("add", "max", "min") joins with what is there, in row-major order of the axes for
    each element (deterministic); without it the targets are distinct and replace. Where `guard`
    (bool) is false nothing is written; `check` as in `Load`.
    """

    base: Node
    axes: tuple[Axis, ...]
    target: tuple[Expr, ...]
    value: Expr
    accumulate: str = ""
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
class Loop(Value):
    """`trip` turns in order. Its results, read through `Part`s: final carried values, then yields.

    The body is the DAG below `next`, `yields` and `cond`. In it stand the placeholders `carries`
    (Inputs of kind "carry": the values at the start of a turn) and the loop variable `var` (free in
    expressions, never in shapes or extents). Whatever does not depend on these is outside of the
    loop (`captures`).

    `var` is 0, 1, ... trip - 1, or with `reverse` trip - 1, ... 1, 0. Yield k is stacked: its Part
    has the type [trip, *yields[k].type.shape] and holds at index `var` what that turn yields.
    `cond` (a bool scalar): the loop ends before the first turn at which it is false; then there are
    no yields. `type` is that of the first result. From autodiff on `var` is unique in the graph and
    holds a dot (`$t.0`), which names of axes never do.
    """

    var: str
    trip: Dim
    carries: tuple[Input, ...] = ()
    init: tuple[Node, ...] = ()
    next: tuple[Node, ...] = ()
    yields: tuple[Node, ...] = ()
    cond: Node | None = None
    reverse: bool = False

    @property
    def outs(self) -> tuple[Node, ...]:
        """The roots of the body."""
        return (*self.next, *self.yields, *(() if self.cond is None else (self.cond,)))

    @property
    def results(self) -> tuple[TensorType, ...]:
        """The types of the parts."""
        stacked = (y.type.stacked(self.trip) for y in self.yields)
        return (*(c.type for c in self.carries), *stacked)

    @cached_property
    def body(self) -> tuple[Node, ...]:
        """The nodes that depend on a turn, operands first (`test` before all others).

        The placeholders are not among them.
        """
        inside: set[Node] = set(self.carries)
        order: list[Node] = []
        first = () if self.cond is None else (self.cond,)
        for node in toposort((*first, *self.outs)):
            depends = any(o in inside for o in operands(node)) or self.var in used_names(node)
            if depends and node not in inside:
                inside.add(node)
                order.append(node)
        return tuple(order)

    @cached_property
    def test(self) -> tuple[Node, ...]:
        """The nodes of the body that `cond` needs."""
        if self.cond is None:
            return ()
        needed = set(toposort((self.cond,)))
        return tuple(n for n in self.body if n in needed)

    @cached_property
    def captures(self) -> tuple[Node, ...]:
        """Outside nodes that the body reads, or that are themselves a next value or a yield."""
        inside = {*self.body, *self.carries}
        read = [o for n in self.body for o in operands(n) if o not in inside]
        return tuple(dict.fromkeys([*read, *(n for n in self.outs if n not in inside)]))


@dataclass(frozen=True, eq=False, kw_only=True)
class Part(Value):
    """Result `index` of a multi-result node."""

    source: Grad | Loop | Custom
    index: int

    @staticmethod
    def of(loop: Loop, index: int, name: str = "") -> Part:
        """Result `index` of a loop."""
        return Part(
            type=loop.results[index],
            span=loop.span,
            source=loop,
            index=index,
            name=name or loop.name,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Stop(Value):
    """The same value, a constant for differentiation. Removed after autodiff."""

    source: Node


@dataclass(frozen=True, eq=False, kw_only=True)
class Custom(Value):
    """The value of `source` with derivatives of its own (an `adjoint`). Removed by autodiff.

    `grads[i]` is the cotangent of `inputs[i]`, an expression of the placeholder `dout` (an Input of
    kind "cotangent", the cotangent of this value). With `others`, further values and their
    placeholders, it stands for several values, which are read through `Part`s. `meant`: why the
    derivatives are not those of the value; "": an adjoint says that they are; None: they are.
    """

    source: Node
    inputs: tuple[Node, ...]
    dout: Input
    grads: tuple[Node, ...]
    others: tuple[tuple[Node, Input], ...] = ()
    meant: str | None = None

    @property
    def sources(self) -> tuple[Node, ...]:
        """The values, in order."""
        return (self.source, *(s for s, _ in self.others))

    @property
    def douts(self) -> tuple[Input, ...]:
        """The placeholders of their cotangents."""
        return (self.dout, *(d for _, d in self.others))


@dataclass(frozen=True, eq=False, kw_only=True)
class External(Value):
    """What the C function `symbol` makes of tensors; it has no derivative of its own.

    One call, `void symbol(const int64_t *sizes, inputs..., T *result)`, tensors as pointers,
    inputs of rank 0 by value. `each`: the inputs have the shape of the result and the function is
    called for every element, `T symbol(inputs...)`.
    """

    symbol: str
    prototype: str  # in C
    sizes: tuple[Dim, ...]
    inputs: tuple[Node, ...]
    each: bool = False


Node = Input | Constant | Compute | Update | Grad | Loop | Part | Stop | Custom | External


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
    facts: Facts = Facts()  # noqa: RUF009
    span: Span = NOWHERE

    @property
    def roots(self) -> tuple[Node, ...]:
        return (*self.results, *(w.value for w in self.writes))

    @cached_property
    def order(self) -> tuple[Node, ...]:
        """All nodes but those of the bodies of loops, operands first."""
        return tuple(toposort(self.roots))


def operands(node: Node) -> tuple[Node, ...]:
    """The nodes that are computed before this one: those it reads, then `after`; each once."""
    return node.needs


def _read(node: Node) -> tuple[Node, ...]:
    match node:
        case Compute():
            return node.formed.tensors  # type: ignore[return-value]
        case Update(base=base):
            return tuple(dict.fromkeys((base, *node.formed.tensors)))  # type: ignore[arg-type]
        case Grad(y=y, wrt=wrt, seed=seed):
            return tuple(dict.fromkeys((y, *wrt, *(() if seed is None else (seed,)))))
        case Loop(init=init):
            return tuple(dict.fromkeys((*init, *node.captures)))
        case Part(source=source) | Stop(source=source):
            return (source,)
        case Custom(inputs=inputs, grads=grads):
            return tuple(dict.fromkeys((*node.sources, *inputs, *grads)))
        case External(inputs=inputs):
            return tuple(dict.fromkeys(inputs))
    return ()


Formula = Compute | Update


def exprs_of(node: Node) -> tuple[Expr, ...]:
    """The expressions of a node."""
    match node:
        case Compute(body=body):
            return (body,)
        case Update(target=target, value=value, guard=guard):
            return (*target, value, *(() if guard is None else (guard,)))
    return ()


def used_names(node: Node) -> frozenset[str]:
    """Dims and free loop variables in a node's expressions and shape."""
    return node.used


def _used_names(node: Node) -> frozenset[str]:
    out: set[str] = set()
    for d in node.type.shape:
        out |= d.names
    bound: tuple[Axis, ...] = ()
    match node:
        case Compute(axes=axes, raxes=raxes):
            out |= names_of(node.formed.form)
            bound = (*axes, *raxes)
        case Update(axes=bound):
            out |= names_of(node.formed.form)
        case External(sizes=sizes):
            out = out.union(*(d.names for d in sizes))
        case Loop(var=var, trip=trip):
            return frozenset(out.union(trip.names, *(n.used for n in node.body)) - {var})
    for a in bound:
        out |= a.extent.names
    return frozenset(out - {a.var for a in bound})


class Cycle(Exception):
    """A node that depends on itself: never so in a Graph that has been verified."""

    def __init__(self, node: Node) -> None:
        super().__init__("a cycle")
        self.node = node


def toposort(
    roots: Iterable[Node], reads: Callable[[Node], Sequence[Node]] | None = None
) -> list[Node]:
    """All nodes reachable from the roots, operands first (deterministic, explicit stack).

    `reads`: the operands of a node, if they are others than `operands`. Raises Cycle.
    """
    done: set[Node] = set()
    open_: set[Node] = set()  # its operands are being visited
    order: list[Node] = []
    stack = list(roots)
    stack.reverse()
    while stack:
        node = stack[-1]
        if node not in done:
            before = node.needs if reads is None else reads(node)
            if missing := [o for o in before if o not in done]:
                if node in open_:
                    raise Cycle(node)
                open_.add(node)
                missing.reverse()
                stack += missing
                continue
            done.add(node)
            order.append(node)
        stack.pop()
    return order


def users(roots: Iterable[Node]) -> dict[Node, list[Node]]:
    """For each reachable node, the nodes that read it (not those that only come after it)."""
    out: dict[Node, list[Node]] = {}
    for node in toposort(roots):
        out.setdefault(node, [])
        for operand in node.read:
            out[operand].append(node)
    return out


def nodes(graph: Graph) -> Iterator[Node]:
    yield from graph.order


def all_nodes(graph: Graph) -> list[Node]:
    """The nodes of the graph and of the bodies of its loops; a body stands before its loop."""
    return with_bodies(graph.order)


def with_bodies(order: Iterable[Node]) -> list[Node]:
    """The nodes and those of the bodies of loops among them; a body stands before its loop."""
    # As deep as loops are nested.
    out: list[Node] = []
    for node in order:
        if isinstance(node, Loop):
            out += with_bodies(node.body)
        out.append(node)
    return out
