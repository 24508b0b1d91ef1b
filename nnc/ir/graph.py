"""Graph, the tensor IR: SSA values with symbolic shapes and source spans; very few node kinds.

Nodes form a DAG by reference and are compared by identity. A `Graph` is one exported function: its
inputs in ABI order, its results, and the final versions of the storage it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from operator import is_

from nnc.diagnostics import NOWHERE, Span
from nnc.ir.expr import Expr, Load, Tensor, subst
from nnc.ir.form import (
    KEPT,
    Formed,
    formed,
    has_sample,
    instance,
    keep_sample,
    names_of,
    reloaded,
    sample,
    sample_loads,
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

    `accumulate` adds, in row-major order of the axes for each element (deterministic), else the
    targets are distinct and replace. Where `guard` (bool) is false nothing is written; `check` as
    in `Load`.
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


def replace_operands(node: Node, new: Callable[[Node], Node]) -> Node:
    """The node over other operands (itself when nothing changed)."""
    if type(node) is Compute and not node.after:
        return reread(node, new)
    if all(new(o) is o for o in operands(node)):
        return node
    if node.after:
        after = tuple(dict.fromkeys(map(new, node.after)))
        node = revised(node, after=after)
    match node:
        case Compute():
            return reread(node, new)
        case Update(base=base):
            made = reread(node, new)
            return made if new(base) is base else with_base(made, new(base))
        case Grad(y=y, wrt=wrt, seed=seed):
            seed = None if seed is None else new(seed)
            return replace(node, y=new(y), wrt=tuple(new(w) for w in wrt), seed=seed)
        case Part(source=source):
            moved = new(source)
            assert isinstance(moved, Grad | Loop | Custom), moved
            return replace(node, source=moved)
        case Stop(source=source):
            return replace(node, source=new(source))
        case Custom(source=source, inputs=inputs, grads=grads, others=others):
            return replace(
                node,
                source=new(source),
                inputs=tuple(new(i) for i in inputs),
                grads=tuple(new(g) for g in grads),
                others=tuple((new(s), d) for s, d in others),
            )
        case External(inputs=inputs):
            return replace(node, inputs=tuple(new(i) for i in inputs))
        case Loop(init=init):
            return rebuilt(replace(node, init=tuple(new(i) for i in init)), new)
    return node


def rebuilt(
    loop: Loop, new: Callable[[Node], Node], fn: Callable[[Node], Node] = lambda n: n
) -> Loop:
    """The loop with its captures replaced by `new` and every body node passed through `fn`."""
    moved: dict[Node, Node] = {c: c for c in loop.carries}

    def get(node: Node) -> Node:
        return moved[node] if node in moved else new(node)

    for node in loop.body:
        moved[node] = fn(replace_operands(node, get))
    return with_outs(loop, [get(o) for o in loop.outs])


def with_outs(loop: Loop, outs: Sequence[Node]) -> Loop:
    """The loop with other roots of the body (in the order of `loop.outs`)."""
    n, m = len(loop.next), len(loop.next) + len(loop.yields)
    cond = None if loop.cond is None else outs[m]
    return replace(loop, next=tuple(outs[:n]), yields=tuple(outs[n:m]), cond=cond)


def renamed(node: Node, env: Mapping[str, Dim]) -> Node:
    """The node with free names replaced in its expressions (those of a loop's body too)."""
    if not node.used & env.keys():
        return node
    match node:
        case Compute(body=body):
            return replace(node, body=subst(body, env))
        case Update(target=target, value=value, guard=guard):
            guard = None if guard is None else subst(guard, env)
            target = tuple(subst(t, env) for t in target)
            return replace(node, target=target, value=subst(value, env), guard=guard)
        case External(sizes=sizes):
            return replace(node, sizes=tuple(d.subst(env) for d in sizes))
        case Loop():
            return rebuilt(node, lambda n: n, lambda n: renamed(n, env))
    return node


Formula = Compute | Update


def exprs_of(node: Node) -> tuple[Expr, ...]:
    """The expressions of a node."""
    match node:
        case Compute(body=body):
            return (body,)
        case Update(target=target, value=value, guard=guard):
            return (*target, value, *(() if guard is None else (guard,)))
    return ()


def with_exprs(node: Formula, roots: Sequence[Expr], form: Formed | None) -> Formula:
    """The node with other expressions (in the order of `exprs_of`); `form`: theirs, if known."""
    made: Formula
    if isinstance(node, Compute):
        made = replace(node, body=roots[0])
    else:
        n = len(node.target)
        guard = None if node.guard is None else roots[n + 1]
        made = replace(node, target=tuple(roots[:n]), value=roots[n], guard=guard)
    if form is not None:
        made.__dict__["formed"] = form
    return made


def pattern(node: Formula) -> tuple[Expr, ...]:
    """As `exprs_of`, over slots instead of tensors: the same for all nodes of one form."""
    if not has_sample(node.formed):
        keep_sample(exprs_of(node), node.formed)
    return sample(node.formed)


def reads_of(node: Node) -> list[tuple[Node, Load]]:
    """What a node loads from, and the loads, of its pattern."""
    if not isinstance(node, Compute | Update):
        return []
    pattern(node)
    tensors = node.formed.tensors
    return [(tensors[k], e) for k, e in sample_loads(node.formed)]  # type: ignore[misc]


def with_form(node: Formula, of: Formed) -> Formula:
    """The node with the expressions of a form of which a sample is kept."""
    if isinstance(node, Compute):
        return _formed_like(node, of)
    return with_exprs(node, instance(of), of)


def with_base(node: Formula, base: Node) -> Update:
    """An update of another tensor."""
    assert isinstance(node, Update), node
    made = replace(node, base=base)
    made.__dict__["formed"] = node.formed
    return made


def revised(node: Node, **fields: object) -> Node:
    """The node with other fields than those that say what it computes."""
    if not isinstance(node, Compute):
        return replace(node, **fields)  # type: ignore[arg-type]
    made: Compute = object.__new__(Compute)
    made.__dict__.update(node.__dict__ | fields)
    made.__dict__.pop("needs", None)
    return made


HEAD = ("type", "span", "name", "regions", "after", "axes", "raxes", "op")


def _formed_like(node: Compute, of: Formed) -> Compute:
    made: Compute = object.__new__(Compute)
    known = node.__dict__
    made.__dict__.update({name: known[name] for name in HEAD})
    made.__dict__["head"] = node.head
    made.__dict__["formed"] = of
    return made


def reread(
    node: Formula, new: Callable[[Node], Node], numbers: Mapping[int, int] | None = None
) -> Formula:
    """The node with loads from other tensors and other large numbers (`base`, `after` stay)."""
    of = node.formed
    tensors: list[Tensor] = [new(t) for t in of.tensors]  # type: ignore[arg-type]
    others = numbers and not numbers.keys().isdisjoint(of.numbers)
    if not others and all(map(is_, of.tensors, tensors)):
        return node
    form = of.over(tensors)
    if form is None:
        assert not others, node
        roots = reloaded(exprs_of(node), dict(zip(of.tensors, tensors, strict=True)))
        return with_exprs(node, roots, None)
    if not has_sample(of):
        keep_sample(exprs_of(node), of)
    if numbers and others:
        form = replace(form, numbers=tuple(numbers.get(n, n) for n in of.numbers))
    made = with_form(node, form)
    if "used" in node.__dict__:
        made.__dict__["used"] = node.used
    return made


def transform(graph: Graph, fn: Callable[[Node], Node]) -> Graph:
    """Rebuilds the graph operands first; `fn` sees each node with its operands already rebuilt.

    The nodes of loop bodies are passed through `fn` too (innermost first), then their loop.
    """
    new: dict[Node, Node] = {}

    for node in graph.order:
        if isinstance(node, Loop):
            init, after = (tuple(new[n] for n in some) for some in (node.init, node.after))
            moved = replace(node, init=init, after=after)
            new[node] = fn(rebuilt(moved, new.__getitem__, deep(fn)))
        else:
            new[node] = fn(replace_operands(node, lambda o: new[o]))
    return with_roots(graph, [new[r] for r in graph.roots])


def deep(fn: Callable[[Node], Node]) -> Callable[[Node], Node]:
    """`fn` that goes into the bodies of loops first."""

    def one(node: Node) -> Node:
        return fn(rebuilt(node, lambda o: o, one) if isinstance(node, Loop) else node)

    return one


def with_roots(graph: Graph, roots: list[Node]) -> Graph:
    """The same function with other result and write values (in the order of `graph.roots`)."""
    n = len(graph.results)
    writes = tuple(replace(w, value=v) for w, v in zip(graph.writes, roots[n:], strict=True))
    return replace(graph, results=tuple(roots[:n]), writes=writes)


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
