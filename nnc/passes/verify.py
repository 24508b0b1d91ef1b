"""Checks a Graph after a pass; a fault is an assertion that names the pass and prints the node."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import chain

from nnc.ir.bounds import loop_facts, node_obligations
from nnc.ir.expr import Const, Expr, Idx, Load, Op, Select, Var, children, walk
from nnc.ir.graph import (
    REDUCTIONS,
    Axis,
    Compute,
    Constant,
    Custom,
    Cycle,
    Grad,
    Graph,
    Input,
    Loop,
    Node,
    Part,
    Stop,
    Update,
)
from nnc.ir.printer import print_expr, print_node
from nnc.ir.scalar import SCALARS
from nnc.lang.dims import Facts, dim_prod
from nnc.lang.types import DTYPES, TensorType, is_float, is_int

Faults = Iterator[str]


@lru_cache(maxsize=256)
def _known(*what: Hashable) -> object:
    """One object for equal things."""
    return object()


@dataclass(frozen=True)
class _Scope:
    """Where a node stands: the names and facts it may use, the run-time loops around it."""

    graph: Graph
    dims: frozenset[str]
    facts: Facts
    loops: tuple[Axis, ...] = ()
    carries: frozenset[Input] = frozenset()

    def inside(self, loop: Loop) -> _Scope:
        return replace(
            self,
            facts=loop_facts([Axis(loop.var, loop.trip)], self.facts),
            loops=(*self.loops, Axis(loop.var, loop.trip)),
            carries=self.carries | set(loop.carries),
        )

    @property
    def names(self) -> frozenset[str]:
        return self.dims | {a.var for a in self.loops}

    @cached_property
    def known(self) -> object:
        return _known(self.dims, self.facts, self.loops)

    @cached_property
    def inputs(self) -> frozenset[Input]:
        return frozenset(self.graph.inputs)


def verify(graph: Graph, after: str) -> None:
    """Asserts that types and shapes agree, names are bound and affine accesses are inside.

    `after`: the pass that made this graph.
    """
    _assert_acyclic(graph, after)
    for text in _graph_faults(graph):
        raise AssertionError(f"after {after}: {text} in {graph.name}")
    _verify_block(graph.order, _Scope(graph, frozenset(graph.dims), graph.facts), set(), after)


def _verify_block(order: Iterable[Node], scope: _Scope, met: set[Node], after: str) -> None:
    """The nodes of one scope; as deep as loops are nested. `met`: loops and their placeholders."""
    for node in order:
        if isinstance(node, Compute | Update):
            _verify_formula(node, scope, after)
            continue
        faults = _faults(node, scope)
        if isinstance(node, Loop):
            faults = chain(faults, _turn_faults(node, met))
        for text in faults:
            raise AssertionError(f"after {after}: {text}\n  {print_node(node)}")
        if isinstance(node, Loop):
            met |= {node, *node.carries}
            _verify_block(node.body, scope.inside(node), met, after)


def _verify_formula(node: Compute | Update, scope: _Scope, after: str) -> None:
    """One of each form is looked at: what is asked does not depend on which tensors it reads."""
    match node:
        case Compute():
            key: tuple[object, ...] = (node.head,)
        case Update(axes=axes, base=base, target=target, guard=guard):
            key = (node.type, axes, base.type, len(target), guard is None, node.check is None)
    of = node.formed
    memo, key = of.form.memo, ("verified", of.telling, scope.known, *key)
    if key not in memo:
        for text in _faults(node, scope):
            raise AssertionError(f"after {after}: {text}\n  {print_node(node)}")
        memo[key] = True


def _assert_acyclic(graph: Graph, after: str) -> None:
    try:
        assert graph.order or not graph.roots
    except Cycle as cycle:
        text = f"after {after}: a cycle through {print_node(cycle.node)}"
        raise AssertionError(text) from None


def _graph_faults(graph: Graph) -> Faults:
    if len(set(graph.dims)) != len(graph.dims):
        yield "a dim is listed twice"
    names = [i.name for i in graph.inputs]
    if len(set(names)) != len(names):
        yield "two inputs have one name"
    for write in graph.writes:
        if write.target not in graph.inputs:
            yield f"a write to {write.target.name}, which is not an input"
        if write.target.type != write.value.type:
            yield f"a write of {write.value.type} to {write.target.name}: {write.target.type}"
    for d in graph.facts.nonneg:
        if not d.names <= set(graph.dims):
            yield f"a fact about unknown dims: {d}"


def _faults(node: Node, scope: _Scope) -> Faults:
    for d in node.type.shape:
        if not d.names <= scope.dims:
            yield f"unknown dims in the shape {node.type}"
    match node:
        case Input(kind="cotangent"):
            pass
        case Custom(source=source, inputs=inputs, grads=grads):
            pairs = zip(node.sources, node.douts, strict=True)
            if node.type != source.type or any(s.type != d.type for s, d in pairs):
                yield f"a custom derivative changes the type of {source.type}"
            if [i.type for i in inputs] != [g.type for g in grads]:
                yield "a custom derivative has not the types of its inputs"
        case Input(kind="carry"):
            if node not in scope.carries:
                yield f"the placeholder {node.name} outside of its loop"
        case Input():
            if node not in scope.inputs:
                yield f"{node.name} is not an input of the graph"
        case Constant(data=data):
            if dim_prod(node.type.shape).const != len(data):
                yield f"{len(data)} numbers for {node.type}"
        case Compute():
            yield from _compute_faults(node, scope)
        case Update():
            yield from _update_faults(node, scope)
        case Grad(y=y, seed=seed):
            if not is_float(y.type.dtype) or node.type != y.type:
                yield f"a gradient of {y.type}"
            if (y.type if seed is None else seed.type) != y.type or (not seed and y.type.rank):
                yield "the seed has not the type of y"
        case Part(source=Grad() as source, index=index):
            if not 0 <= index < len(source.wrt) or node.type != source.wrt[index].type:
                yield f"part {index} has not the type of what it is the gradient of"
        case Part(source=Custom() as source, index=index):
            if node.type != source.sources[index].type:
                yield f"part {index} has not the type of value {index}"
        case Part(source=Loop() as source, index=index):
            kinds = source.results
            if not 0 <= index < len(kinds) or node.type != kinds[index]:
                yield f"part {index} has not the type of that result of the loop"
        case Stop(source=source):
            if node.type != source.type:
                yield f"stop changes {source.type} to {node.type}"
        case Loop():
            yield from _run_faults(node, scope)


def _run_faults(node: Loop, scope: _Scope) -> Faults:
    """Of a run-time loop alone."""
    if not node.var.startswith("$"):
        yield f"the loop variable {node.var} has no $"
    if node.var in scope.names:
        yield f"the loop variable {node.var} is that of a loop around"
    if not node.trip.names <= scope.dims:
        yield f"unknown dims in the number of turns {node.trip}"
    if not len(node.carries) == len(node.init) == len(node.next):
        yield "not one init and one next value for each carried value"
    for c, start, end in zip(node.carries, node.init, node.next, strict=False):
        if c.kind != "carry":
            yield f"the placeholder {c.name} is of kind {c.kind}"
        if not c.type == start.type == end.type:
            yield f"{c.name}: {c.type} starts as {start.type} and becomes {end.type}"
    if not node.carries and not node.yields:
        yield "a loop without results"
    elif node.type != node.results[0]:
        yield f"a loop of {node.type} whose first result is {node.results[0]}"
    if node.cond is not None:
        if node.cond.type != TensorType("bool", ()):
            yield f"a condition of {node.cond.type}"
        if node.yields or node.reverse:
            yield "a loop with a condition that yields or runs backwards"


def _turn_faults(node: Loop, met: set[Node]) -> Faults:
    """Of a run-time loop among others: its names belong to it alone."""
    if len({*node.carries} - met) < len(node.carries):
        yield "a placeholder of two loops, or twice in one"
    if "." in node.var and any(isinstance(m, Loop) and m.var == node.var for m in met):
        yield f"two loops over {node.var}"


def _loop_faults(axes: Sequence[Axis], scope: _Scope) -> Faults:
    names = [a.var for a in (*scope.loops, *axes)]
    if len(set(names)) != len(names):
        yield "two axes have one name"
    for a in axes:
        if not a.var.startswith("$"):
            yield f"the loop variable {a.var} has no $"
        if not a.extent.names <= scope.dims:
            yield f"unknown dims in the extent {a.extent} of {a.var}"


def _compute_faults(node: Compute, scope: _Scope) -> Faults:
    axes = (*node.axes, *node.raxes)
    yield from _loop_faults(axes, scope)
    if tuple(a.extent for a in node.axes) != node.type.shape:
        yield "the extents are not the shape"
    if node.op and node.op not in REDUCTIONS:
        yield f"unknown reduction {node.op}"
    if bool(node.op) != bool(node.raxes):
        yield "a reduction without reduced axes, or reduced axes without a reduction"
    arg = node.op in ("argmax", "argmin")
    if arg and len(node.raxes) != 1:
        yield f"{node.op} over {len(node.raxes)} axes"
    if node.type.dtype != ("i32" if arg else node.body.dtype):
        yield f"a body of {node.body.dtype} for {node.type.dtype}"
    if node.op in ("any", "all") and node.body.dtype != "bool":
        yield f"{node.op} of {node.body.dtype}"
    yield from _body_faults((node.body,), axes, scope.names)
    yield from _access_faults(node, scope)


def _update_faults(node: Update, scope: _Scope) -> Faults:
    yield from _loop_faults(node.axes, scope)
    if node.type != node.base.type:
        yield f"an update of {node.base.type} gives {node.type}"
    if len(node.target) != node.type.rank:
        yield f"{len(node.target)} target indices for {node.type}"
        return
    if node.value.dtype != node.type.dtype:
        yield f"a value of {node.value.dtype} for {node.type.dtype}"
    if any(not is_int(t.dtype) for t in node.target):
        yield "a target index that is not an integer"
    guards = () if node.guard is None else (node.guard,)
    if any(g.dtype != "bool" for g in guards):
        yield "a guard that is not bool"
    yield from _body_faults((*node.target, node.value, *guards), node.axes, scope.names)
    yield from _access_faults(node, scope)


def _access_faults(node: Compute | Update, scope: _Scope) -> Faults:
    for o in node_obligations(node, scope.facts, scope.loops):
        if not o.ok and o.load.check is None:
            side = "below 0" if not o.low_ok else f"above {o.extent - 1}"
            ends = "" if o.low is None else f" (it is {o.low} to {o.high})"
            yield f"index {o.index} of {print_expr(o.load)} may be {side}{ends}".replace("$", "")


def _body_faults(roots: Sequence[Expr], axes: Sequence[Axis], known: frozenset[str]) -> Faults:
    bound = known | {a.var for a in axes}
    for e in walk(*roots):
        for text in _expr_faults(e, bound):
            yield f"{text} in {print_expr(e)}"


def _expr_faults(e: Expr, bound: frozenset[str]) -> Faults:
    match e:
        case Const(dtype=dtype, value=value):
            if isinstance(value, bool) != (dtype == "bool") or (
                is_int(dtype) and not isinstance(value, int)
            ):
                yield f"a {dtype} constant {value!r}"
        case Idx(dim=dim):
            if e.dtype != "i64":
                yield f"an index of {e.dtype}"
            if not dim.names <= bound:
                yield f"unbound {', '.join(sorted(dim.names - bound))}"
        case Var(name=name):
            yield f"a Program's variable {name}"
        case Load():
            yield from _load_faults(e)
        case Select(dtype=dtype, cond=c, a=a, b=b):
            if c.dtype != "bool" or a.dtype != dtype or b.dtype != dtype:
                yield f"a select of {a.dtype}, {b.dtype} by {c.dtype} as {dtype}"
        case Op():
            yield from _op_faults(e)


def _load_faults(e: Load) -> Faults:
    if len(e.index) != e.tensor.type.rank:
        yield f"{len(e.index)} indices for {e.tensor.type}"
    if e.dtype != e.tensor.type.dtype or (e.other is not None and e.other.dtype != e.dtype):
        yield f"a load of {e.dtype} from {e.tensor.type}"
    if any(not is_int(i.dtype) for i in e.index):
        yield "an index that is not an integer"


def _op_faults(e: Op) -> Faults:
    entry = SCALARS.get(e.fn)
    if entry is None:
        yield f"unknown function {e.fn}"
    elif len(e.args) != entry.arity:
        yield f"{len(e.args)} operands for {e.fn}"
    elif not RULES[entry.rule](e.dtype, tuple(a.dtype for a in children(e))):
        yield f"{e.fn} of {', '.join(a.dtype for a in e.args)} as {e.dtype}"


def _number(dtype: str) -> bool:
    return is_float(dtype) or is_int(dtype)


def _same(dtype: str, args: tuple[str, ...]) -> bool:
    return all(a == dtype for a in args)


RULES: dict[str, Callable[[str, tuple[str, ...]], bool]] = {
    "float": lambda d, a: is_float(d) and _same(d, a),
    "number": lambda d, a: _number(d) and _same(d, a),
    "integer": lambda d, a: is_int(d) and _same(d, a),
    "word": lambda d, a: d == "i32" and _same(d, a),
    "compare": lambda d, a: d == "bool" and len(set(a)) == 1,
    "logic": lambda d, a: d == "bool" and _same(d, a),
    "power": lambda d, a: a[0] == d and _number(d) and a[1] == "i32",
    "random": lambda d, a: is_float(d) and all(x == "i64" for x in a),
    "cast": lambda d, a: d in DTYPES and a[0] in DTYPES,
}
