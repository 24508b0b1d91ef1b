"""`--nan-trap`: where the first value that is not finite was made.

Calls run a variant of the export with one more result: whether a watched value was NaN or infinite.
When it was, the call is repeated twice from the same inputs, in variants that show more: first a
flag for every value, then the elements of the value at fault and of what it was made from. Numbers
are those of native code; only the last expression is evaluated here, at one element.

An infinity that the program writes down (`-inf` in a mask) is no fault, nor is what follows from it
as long as it is no NaN: such values are watched for NaN only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from nnc import compiler
from nnc.codegen.target import host
from nnc.codegen.workers import Cache
from nnc.diagnostics import Span
from nnc.ir.expr import Const, Expr, Idx, Load, Op, Select, as_dtype, walk
from nnc.ir.graph import (
    Axis,
    Compute,
    Grad,
    Graph,
    Input,
    Loop,
    Node,
    Part,
    Update,
    all_nodes,
    operands,
    toposort,
)
from nnc.ir.signature import Variant
from nnc.lang.dims import Dim
from nnc.lang.elaborate.elaborated import Built
from nnc.lang.types import TensorType, is_float
from nnc.nantrap.message import Fault, message, turns_of
from nnc.passes.observe import Sight, copied, observed

Array = np.ndarray[Any, np.dtype[Any]]
Run = Callable[[Variant], tuple[Array, ...]]  # repeats the call: the further results

NAN, ANY = "nan", "any"  # what a value is watched for

# Operations whose result is not finite (or NaN) whenever that operand is.
_KEEPS = {"add", "sub", "mul", "neg", "abs", "cast", "fma"}
_KEEPS_NAN = _KEEPS | {"div", "exp", "log", "sqrt", "tanh", "max", "min", "sigmoid", "rsqrt"}


@dataclass(frozen=True)
class _Raised:
    """A flag (stacked by turn): whether a value was NAN, or ANY of NaN and infinite."""

    sight: Sight
    how: str
    array: Array


@dataclass(frozen=True)
class _Level:
    """How bad a value is (stacked by turn): 1 infinite, 2 NaN."""

    sight: Sight
    array: Array

    def at(self, how: str) -> _Raised:
        return _Raised(self.sight, how, self.array >= (2 if how == NAN else 1))


class Trap:
    """One export with its watch."""

    def __init__(self, built: Built, cache: Cache | None) -> None:
        self.built, self._cache = built, cache
        self.graph = compiler.optimise(built.graph)

    @cached_property
    def gradients(self) -> dict[str, Node]:
        """|gradient| by the inputs, where the program asks for it: name -> norm."""
        return gradient_norms(self.built.graph)

    @cached_property
    def variant(self) -> Variant:
        """Its further results: whether anything watched is not finite, then the `gradients`."""
        n = len(self.built.graph.results)
        norms = (*self.built.graph.results, *self.gradients.values())
        whole = compiler.optimise(replace(self.built.graph, results=norms))
        plain = replace(whole, results=whole.results[:n])
        tainted, last, own = _tainted(plain), _last(plain), {*all_nodes(plain)}

        def look(node: Node, made: Node) -> list[Node]:
            how = NAN if node in tainted else ANY
            seen = _float(node) and how in last.get(node, (NAN, ANY)) and node in own
            return [_flag(made, how)] if seen else []

        graph, sights = observed(whole, look)
        norms = graph.results[n : n + len(self.gradients)]
        more = [_either([_any(s.shown) for s in sights]), *norms]
        return self._compiled(replace(graph, results=graph.results[:n]), more, "trap")

    def fault(self, run: Run, dims: Mapping[str, int], before: Sequence[float] = ()) -> str | None:
        """What happened, as text. None when nothing was made that is not finite.

        `before`: the `gradients` of the call before.
        """
        found = self._first(run)
        if found is None:
            return None
        sight, turns, how = found
        values = self._values(run, sight)
        array = np.asarray(values[sight.node][turns], np.float64)
        bad = np.isnan(array) if how == NAN else ~np.isfinite(array)
        index = tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), array.shape))
        here = {n: a[turns[: a.ndim - n.type.rank]] for n, a in values.items()}
        fault = Fault(sight, turns, index, float(array[index]))
        sizes = {**dims, **turns_of(sight, turns)}
        return message(fault, here, sizes, self._blown(sight.node, before))

    def _blown(self, node: Node, before: Sequence[float]) -> list[str]:
        """The gradient that the nearest parameters had on the call before."""
        known = dict(zip(self.gradients, before, strict=False))
        near = _nearest(node, set(known))
        layer = near.rpartition(".")[0] if near else ""
        some = [n for n in known if near and n.rpartition(".")[0] == layer]
        name = max(some, key=lambda n: known[n], default=None)
        return [f"|grad| of {name} was {known[name]:.2g} on the step before"] if name else []

    def _first(self, run: Run) -> tuple[Sight, tuple[int, ...], str] | None:
        """The value that was first not finite: value, turns of the loops around, what it is.

        First among the landmarks (few, so that the variant is soon compiled), then among what the
        landmark is made from.
        """
        tainted, before = _tainted(self.graph), _turned(self.graph)
        marks = _landmarks(self.graph)
        levels = self._levels(run, marks)
        raised = [s.at(NAN if s.sight.node in tainted else ANY) for s in levels]
        found = _start([f for f in raised if f.array.any()], set(), before)
        if found is None:
            return None
        good = {s.sight.node for s in levels if not s.at(ANY).array.any()}
        between = _behind(found.sight.node, good, before)
        levels = self._levels(run, {n for n in between if _float(n)})
        hidden = {n for n in between if _writes_infinity(n)}
        for how in (ANY, NAN):
            raised = [f for f in (s.at(how) for s in levels) if f.array.any()]
            first = _start(raised, hidden if how == ANY else set(), before, strict=how == ANY)
            if first is not None:
                return first.sight, _turn(first.array), how
        return found.sight, _turn(found.array), found.how

    def _levels(self, run: Run, wanted: set[Node]) -> list[_Level]:
        """How bad these values are, in the order of execution."""

        def look(node: Node, made: Node) -> list[Node]:
            return [_level(made)] if node in wanted else []

        graph, sights = observed(self.graph, look)
        arrays = run(self._all(graph, sights, "levels"))
        return [_Level(s, a) for s, a in zip(sights, arrays, strict=True)]

    def _values(self, run: Run, fault: Sight) -> dict[Node, Array]:
        """The elements of a value and of what it is computed from (stacked by turn)."""
        wanted = {fault.node, *_sources(fault.node)}

        def look(node: Node, made: Node) -> list[Node]:
            return [copied(made)] if node in wanted and not isinstance(node, Loop) else []

        graph, sights = observed(self.graph, look)
        arrays = run(self._all(graph, sights, "values"))
        return {s.node: _readable(a, s.node) for s, a in zip(sights, arrays, strict=True)}

    def _all(self, graph: Graph, sights: Sequence[Sight], what: str) -> Variant:
        n = len(self.graph.results)
        plain = replace(graph, results=graph.results[:n])
        return self._compiled(plain, [s.shown for s in sights], what)

    def _compiled(self, graph: Graph, more: Sequence[Node], what: str) -> Variant:
        return compiler.widened(self.built, graph, more, what, host(), self._cache)


# ---- gradients of the step before ---------------------------------------------------------------


def gradient_norms(graph: Graph) -> dict[str, Node]:
    """The norms of the gradients by inputs that a graph takes (outside of loops)."""
    out: dict[str, Node] = {}
    for part in toposort(graph.roots):
        if isinstance(part, Part) and isinstance(part.source, Grad):
            by = part.source.wrt[part.index]
            if isinstance(by, Input):
                out[by.name] = _norm(part)
    return out


def _norm(node: Node) -> Node:
    axes = tuple(Axis(f"$n{k}", n) for k, n in enumerate(node.type.shape))
    load = Load(node.type.dtype, node, tuple(Idx(Dim.of(a.var)) for a in axes))
    wide = as_dtype(load, "f64")
    kind = TensorType("f64")
    square = Op("f64", "mul", (wide, wide))
    total = Compute(type=kind, span=node.span, axes=(), raxes=axes, op="sum", body=square)
    return Compute(
        type=kind, span=node.span, axes=(), body=Op("f64", "sqrt", (Load("f64", total, ()),))
    )


def _nearest(node: Node, names: set[str]) -> str | None:
    """The first of these inputs on the way back from a value."""
    seen, row = {node}, [node]
    while row:
        for n in row:
            if isinstance(n, Input) and n.name in names:
                return n.name
        row = [s for s in dict.fromkeys(s for n in row for s in _sources(n)) if s not in seen]
        seen.update(row)
    return None


# ---- what is watched ----------------------------------------------------------------------------


def _float(node: Node) -> bool:
    return is_float(node.type.dtype)


def _sources(node: Node) -> tuple[Node, ...]:
    """What a value is computed from; of a loop's result: what enters the loop."""
    if isinstance(node, Part) and isinstance(node.source, Loop):
        return operands(node.source)
    return operands(node)


def _landmarks(graph: Graph) -> set[Node]:
    """Values that show most of what happens: sums, what is written, what nothing else shows."""
    shown = _last(graph)
    return {
        n
        for n in (
            *all_nodes(graph),
            *(c for x in all_nodes(graph) if isinstance(x, Loop) for c in x.carries),
        )
        if _float(n)
        and (not isinstance(n, Compute) or n.op or n in graph.roots or shown.get(n, {NAN, ANY}))
    }


def _behind(node: Node, good: set[Node], before: Mapping[Node, tuple[Node, ...]]) -> set[Node]:
    """What a value is made from, back to values that were good (all of a loop it comes from)."""
    out, stack = {node}, [node]
    while stack:
        here = stack.pop()
        for source in (*_sources(here), *before.get(here, ())):
            if source not in out and source not in good:
                out.add(source)
                stack.append(source)
    return out


def _start(
    raised: Sequence[_Raised],
    hidden: set[Node],
    before: Mapping[Node, tuple[Node, ...]],
    strict: bool = False,
) -> _Raised | None:
    """The first flag in the order of execution that follows from none before it.

    `hidden`: values that are infinite because they say so; `strict`: None rather than a guess when
    every flag follows from another (round a loop).
    """
    bad = {f.sight.node for f in raised}
    starts = [
        f
        for f in raised
        if f.sight.node not in hidden
        and not any(o in bad for o in (*_sources(f.sight.node), *before.get(f.sight.node, ())))
    ]
    around = [] if strict else list(raised)
    return min(
        starts or around,
        key=lambda f: (_when(f.sight, f.array), _trail(f.sight.node.span)),
        default=None,
    )


def _writes_infinity(node: Node) -> bool:
    return any(
        isinstance(e, Const) and is_float(e.dtype) and not np.isfinite(e.value)
        for e in walk(*_bodies(node))
    )


def _turned(graph: Graph) -> dict[Node, tuple[Node, ...]]:
    """What else a value comes from: a carried one from the turn before, a loop's from its turns."""
    out: dict[Node, tuple[Node, ...]] = {}
    for node in all_nodes(graph):
        if isinstance(node, Loop):
            rows = zip(node.carries, node.init, node.next, strict=True)
            out |= {c: (start, end) for c, start, end in rows}
        elif isinstance(node, Part) and isinstance(node.source, Loop):
            out[node] = node.source.outs
    return out


def _bodies(node: Node) -> tuple[Expr, ...]:
    match node:
        case Compute(body=body):
            return (body,)
        case Update(value=value):
            return (value,)
    return ()


def _tainted(graph: Graph) -> set[Node]:
    """What may be infinite because the program says so."""
    out: set[Node] = set()
    for _ in range(2):  # once more for what loops carry around
        for node in all_nodes(graph):
            if _writes_infinity(node) or any(o in out for o in _sources(node)):
                out.add(node)
            if isinstance(node, Loop):
                pairs = zip(node.carries, node.init, node.next, strict=True)
                out |= {c for c, a, b in pairs if a in out or b in out}
    return out


def _last(graph: Graph) -> dict[Node, set[str]]:
    """What must be watched for itself: nothing else shows it. Absent: everything."""
    out: dict[Node, set[str]] = {}
    for node in all_nodes(graph):
        for loaded, keeps in _kept(node):
            out.setdefault(loaded, {NAN, ANY}).difference_update(keeps)
    return out


def _kept(node: Node) -> Iterator[tuple[Node, set[str]]]:
    """The tensors of which a node reads every element so that the result tells."""
    if not isinstance(node, Compute) or node.op not in ("", "sum", "max", "min"):
        return
    if not _float(node):
        return
    stack: list[tuple[Expr, set[str]]] = [(node.body, {NAN} if node.op[:1] == "m" else {NAN, ANY})]
    axes = {a.var: a.extent for a in (*node.axes, *node.raxes)}
    while stack:
        e, keeps = stack.pop()
        match e:
            case Load(tensor=tensor, index=index) if _whole(index, axes, tensor.type):
                yield tensor, keeps  # type: ignore[misc]
            case Op(fn=fn, args=args):
                kept = keeps & (
                    {NAN, ANY} if fn in _KEEPS else {NAN} if fn in _KEEPS_NAN else set()
                )
                stack += [(a, kept) for a in args if kept]


def _whole(index: Sequence[Expr], axes: Mapping[str, Dim], type_: TensorType) -> bool:
    """Whether a read at `index` over these axes reads every element."""
    seen = [e.dim.name if isinstance(e, Idx) else None for e in index]
    pairs = zip(seen, type_.shape, strict=True)
    return len(set(seen)) == len(seen) and all(v and axes.get(v) == n for v, n in pairs)


def _flag(node: Node, how: str) -> Node:
    """Whether any element is NaN (or infinite)."""
    axes = tuple(Axis(f"$i{k}", n) for k, n in enumerate(node.type.shape))
    x = Load(node.type.dtype, node, tuple(Idx(Dim.of(a.var)) for a in axes))
    body = Op("bool", "ne", (x, x))
    if how == ANY:
        body = Op("bool", "not", (Op("bool", "isfinite", (x,)),))
    op = "any" if axes else ""
    return Compute(type=_BOOL, span=node.span, axes=(), raxes=axes, op=op, body=body)


def _level(node: Node) -> Node:
    """How bad the worst element is, as in `_Level`."""
    axes = tuple(Axis(f"$i{k}", n) for k, n in enumerate(node.type.shape))
    x = Load(node.type.dtype, node, tuple(Idx(Dim.of(a.var)) for a in axes))
    infinite = Select("i32", Op("bool", "isfinite", (x,)), Const("i32", 0), Const("i32", 1))
    body = Select("i32", Op("bool", "ne", (x, x)), Const("i32", 2), infinite)
    op = "max" if axes else ""
    kind = TensorType("i32", ())
    return Compute(type=kind, span=node.span, axes=(), raxes=axes, op=op, body=body)


def _any(flag: Node) -> Node:
    """One bool of flags stacked by turn."""
    if not flag.type.shape:
        return flag
    axes = tuple(Axis(f"$i{k}", n) for k, n in enumerate(flag.type.shape))
    body = Load("bool", flag, tuple(Idx(Dim.of(a.var)) for a in axes))
    return Compute(type=_BOOL, span=flag.span, axes=(), raxes=axes, op="any", body=body)


def _either(flags: Sequence[Node]) -> Node:
    body: Expr = Const("bool", False)
    for flag in flags:
        body = Op("bool", "or", (body, Load("bool", flag, ())))
    return Compute(type=_BOOL, axes=(), body=body)


_BOOL = TensorType("bool", ())


# ---- which was first ----------------------------------------------------------------------------


def _turn(flag: Array) -> tuple[int, ...]:
    """The first turns of the loops around in which a flag is up."""
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(flag)), flag.shape))


def _when(sight: Sight, flag: Array) -> tuple[int, ...]:
    turns = _turn(flag)
    backwards = [loop.reverse for loop in sight.loops]
    return tuple(-t if b else t for t, b in zip(turns, backwards, strict=True))


def _trail(span: Span) -> list[tuple[int, int]]:
    """Orders places as the program runs, from the outermost call inwards."""
    return [(s.line, s.column) for s in reversed(span.trail)]


def _readable(array: Array, node: Node) -> Array:
    """bf16 comes as its bits."""
    if node.type.dtype == "bf16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array
