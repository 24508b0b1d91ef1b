"""`--nan-trap`: where the first value that is not finite was made.

Calls run a variant of the export with one more result: whether a watched value was NaN or infinite.
When it was, the call is repeated twice from the same inputs, in variants that show more: first a
flag for every value, then the elements of the value at fault and of what it was made from. Numbers
are those of native code; only the last expression is evaluated here, at one element.

An infinity that the program writes down (`-inf` in a mask) is no fault, nor is what follows from it
as long as it is no NaN: such values are watched for NaN only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from nnc import compiler
from nnc.codegen.target import host
from nnc.compiler import Cache
from nnc.diagnostics import Diagnostic, Span, quoted
from nnc.ir.expr import Const, Expr, Idx, Load, Op, Select, children, walk
from nnc.ir.graph import Axis, Compute, Graph, Input, Loop, Node, Part, Update, all_nodes, operands
from nnc.ir.interpret import evaluated
from nnc.ir.signature import Variant
from nnc.lang.dims import Dim
from nnc.lang.elaborate.elaborated import Built
from nnc.lang.types import TensorType, is_float
from nnc.passes.observe import Sight, copied, observed
from nnc.runtime.memory import numpy_dtype

Array = np.ndarray[Any, np.dtype[Any]]
Run = Callable[[Variant], tuple[Array, ...]]  # repeats the call: the further results

NAN, ANY = "nan", "any"  # what a value is watched for

# Operations whose result is not finite (or NaN) whenever that operand is.
_KEEPS = {"add", "sub", "mul", "neg", "abs", "cast", "fma"}
_KEEPS_NAN = _KEEPS | {"div", "exp", "log", "sqrt", "tanh", "max", "min", "sigmoid", "rsqrt"}


@dataclass(frozen=True)
class Fault:
    """The first value that is not finite, at one element. `turns`: of the loops around it."""

    sight: Sight
    turns: tuple[int, ...]
    index: tuple[int, ...]
    value: float


class Trap:
    """One export with its watch."""

    def __init__(self, built: Built, cache: Cache | None) -> None:
        self.built, self._cache = built, cache
        self.graph = compiler.optimise(built.graph)

    @cached_property
    def variant(self) -> Variant:
        """Its further result: whether anything watched is not finite."""
        tainted, last = _tainted(self.graph), _last(self.graph)

        def look(node: Node, made: Node) -> Node | None:
            how = NAN if node in tainted else ANY
            return _flag(made, how) if _float(node) and how in last.get(node, (NAN, ANY)) else None

        graph, sights = observed(self.graph, look)
        n = len(self.graph.results)
        flags = [_any(s.shown) for s in sights]
        return self._compiled(replace(graph, results=graph.results[:n]), [_either(flags)], "trap")

    def fault(self, run: Run, dims: Mapping[str, int]) -> str | None:
        """What happened, as text. None when nothing was made that is not finite."""
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
        return _message(fault, here, {**dims, **_turns(sight, turns)})

    def _first(self, run: Run) -> tuple[Sight, tuple[int, ...], str] | None:
        """The value that was first not finite: value, turns of the loops around, what it is."""
        tainted = _tainted(self.graph)

        def look(node: Node, made: Node) -> Node | None:
            how = NAN if node in tainted else ANY
            return _flag(made, how) if _float(node) else None

        graph, sights = observed(self.graph, look)
        flags = dict(zip(map(id, sights), run(self._all(graph, sights, "flags")), strict=True))
        raised = [s for s in sights if flags[id(s)].any()]
        bad = {s.node for s in raised}
        before = _turned(self.graph)
        starts = [
            s
            for s in raised
            if not any(o in bad for o in (*_sources(s.node), *before.get(s.node, ())))
        ] or raised
        if not starts:
            return None
        first = min(starts, key=lambda s: (_when(s, flags[id(s)]), _trail(s.node.span)))
        how = NAN if first.node in tainted else ANY
        return first, _turn(flags[id(first)]), how

    def _values(self, run: Run, fault: Sight) -> dict[Node, Array]:
        """The elements of a value and of what it is computed from (stacked by turn)."""
        wanted = {fault.node, *_sources(fault.node)}

        def look(node: Node, made: Node) -> Node | None:
            return copied(made) if node in wanted and not isinstance(node, Loop) else None

        graph, sights = observed(self.graph, look)
        arrays = run(self._all(graph, sights, "values"))
        return {s.node: _readable(a, s.node) for s, a in zip(sights, arrays, strict=True)}

    def _all(self, graph: Graph, sights: Sequence[Sight], what: str) -> Variant:
        n = len(self.graph.results)
        plain = replace(graph, results=graph.results[:n])
        return self._compiled(plain, [s.shown for s in sights], what)

    def _compiled(self, graph: Graph, more: Sequence[Node], what: str) -> Variant:
        return compiler.widened(self.built, graph, more, what, host(), self._cache)


# ---- what is watched ----------------------------------------------------------------------------


def _float(node: Node) -> bool:
    return is_float(node.type.dtype)


def _sources(node: Node) -> tuple[Node, ...]:
    """What a value is computed from; of a loop's result: what enters the loop."""
    if isinstance(node, Part) and isinstance(node.source, Loop):
        return operands(node.source)
    return operands(node)


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
            written = any(
                isinstance(e, Const) and is_float(e.dtype) and not np.isfinite(e.value)
                for e in walk(*_bodies(node))
            )
            if written or any(o in out for o in _sources(node)):
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


def _turns(sight: Sight, turns: tuple[int, ...]) -> dict[str, int]:
    return {loop.var: t for loop, t in zip(sight.loops, turns, strict=True)}


def _readable(array: Array, node: Node) -> Array:
    """bf16 comes as its bits."""
    if node.type.dtype == "bf16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array


# ---- the message --------------------------------------------------------------------------------


def _message(fault: Fault, values: Mapping[Node, Array], dims: Mapping[str, int]) -> str:
    node, at = fault.sight.node, fault.sight.node.span
    if isinstance(node, Input) and node.kind in ("arg", "param", "state"):
        shown = f"{_number(fault.value)} at {_index(node, fault.index)}"
        return quoted(_diagnostic(at, shown, [f"`{node.name}` was given so"]))
    notes: list[str] = []
    culprit: Op | None = None
    if isinstance(node, Compute):
        culprit, notes = _reasons(node, fault, values, dims)
    places = [f"{_plain(n)} = {t}" for n, t in _turns(fault.sight, fault.turns).items()]
    turns = f" in turn {', '.join(places)}" if places else ""
    here = _narrowed(at, culprit)
    shown = f"{_number(fault.value)} at {_index(node, fault.index)}{turns}".replace(" at []", "")
    if here.own is not here:
        notes.insert(0, f"in {here.place}: {' '.join(here.text.split())}")
    if node.name.startswith("d."):
        notes.insert(0, "in the gradient of this expression")
    return quoted(_diagnostic(here.own, shown, notes))


def _diagnostic(at: Span, shown: str, notes: Sequence[str]) -> Diagnostic:
    return Diagnostic("", "first non-finite value", at, shown, notes=tuple(notes))


def _reasons(
    node: Compute, fault: Fault, values: Mapping[Node, Array], dims: Mapping[str, int]
) -> tuple[Op | None, list[str]]:
    """The operation that made it, and its operands' values at the element."""
    parts = evaluated(node, fault.index, dims, {n: np.asarray(v) for n, v in values.items()})
    if node.op:
        terms = np.asarray(parts[node.body])
        bad = np.argwhere(~np.isfinite(terms.astype(numpy_dtype(node.body.dtype))))
        if not len(bad):
            largest = float(np.abs(terms).max()) if terms.size else 0.0
            return None, [f"{node.op} of {terms.size} terms, the largest of size {largest:.4g}"]
        at = tuple(int(i) for i in bad[0][len(node.axes) :])
    else:
        at = ()
    env = dict(zip((a.var for a in (*node.axes, *node.raxes)), (*fault.index, *at), strict=True))
    notes, culprit = [], None
    for e in _reached(node.body, parts, len(node.axes), at):
        value = _at(parts[e], len(node.axes), at)
        if isinstance(e, Op) and culprit is None and _made(e, parts, len(node.axes), at):
            culprit = e
        if isinstance(e, Load) and is_float(e.dtype):
            notes.append(_operand(e, value, {**dims, **env}, parts, len(node.axes), at, node.span))
    return culprit, list(dict.fromkeys(notes))[:6]


def _reached(body: Expr, parts: Mapping[Expr, Any], kept: int, at: tuple[int, ...]) -> list[Expr]:
    """What is evaluated at this element, operands first."""
    needed, stack = {body}, [body]
    while stack:
        e = stack.pop()
        below = children(e)
        if isinstance(e, Select):
            below = (e.cond, e.a if _at(parts[e.cond], kept, at) else e.b)
        elif isinstance(e, Load):
            below = e.index
        stack += [c for c in below if c not in needed]
        needed.update(below)
    return [e for e in walk(body) if e in needed]


def _at(array: Any, kept: int, at: tuple[int, ...]) -> float:
    array = np.asarray(array)
    if array.ndim == 0:
        return float(array)
    place = [0] * kept + list(at)
    clipped = tuple(min(i, n - 1) for i, n in zip(place, array.shape, strict=True))
    return float(array[clipped])


def _made(e: Op, parts: Mapping[Expr, Any], kept: int, at: tuple[int, ...]) -> bool:
    """Whether this operation gives something not finite from finite operands (or NaN from none)."""
    if not is_float(e.dtype):
        return False
    with np.errstate(all="ignore"):
        result = float(np.float64(_at(parts[e], kept, at)).astype(_like(e)))
    operands_ = [_at(parts[a], kept, at) for a in e.args]
    if np.isnan(result):
        return not np.isnan(operands_).any()
    return bool(np.isinf(result) and np.isfinite(operands_).all())


def _like(e: Expr) -> np.dtype[Any]:
    return np.dtype(np.float32) if e.dtype == "bf16" else numpy_dtype(e.dtype)


def _operand(
    e: Load,
    value: float,
    env: Mapping[str, int],
    parts: Mapping[Expr, Any],
    kept: int,
    at: tuple[int, ...],
    seen_from: Span,
) -> str:
    node: Node = e.tensor  # type: ignore[assignment]
    index = [
        i.dim.evaluate(env) if isinstance(i, Idx) else int(_at(parts[i], kept, at)) for i in e.index
    ]
    where = f"[{', '.join(map(str, index))}]" if index else ""
    if isinstance(node, Input) and node.kind in ("arg", "param", "state"):
        return f"{node.name}{where} = {_number(value)}"
    own = node.span.own
    name, text = _name(node), " ".join(own.text.split())
    text = text if len(text) <= 60 else f"{text[:57]}..."
    origin = f", from {text} ({own.line_in(seen_from.own)})"
    if not name:
        return f"{text}{where} = {_number(value)} ({own.line_in(seen_from.own)})"
    return f"{name}{where} = {_number(value)}" + (origin if text != name else "")


_ASSIGNED = re.compile(r"\s*(\w+)(?:\[[^=]*\])?\s*=\s*")


def _name(node: Node) -> str:
    """The variable that the reader's line gives the value to, if it is all of the line."""
    own = node.span.own
    if own.source.library or own.line != own.end_line or own.line > len(own.source.lines):
        return node.name if node.name.isidentifier() else ""
    row = own.source.lines[own.line - 1]
    match = _ASSIGNED.match(row)
    rest = row[own.end_column - 1 :].split("#")[0].strip()
    if match and own.column - 1 <= match.end() and not rest:
        return match[1]
    return node.name if node.name.isidentifier() else ""


def _narrowed(span: Span, culprit: Op | None) -> Span:
    """The call of a scalar function inside the expression, if that is plain to see."""
    if culprit is None or span.line != span.end_line:
        return span
    row = span.source.lines[span.line - 1]
    found = [
        m
        for m in re.finditer(rf"\b{culprit.fn}\s*\(", row)
        if span.column - 1 <= m.start() < span.end_column - 1
    ]
    if len(found) != 1:
        return span
    depth, end = 0, found[0].end() - 1
    while end < len(row):
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(row[end], 0)
        end += 1
        if depth == 0:
            return replace(span, column=found[0].start() + 1, end_column=end + 1)
    return span


def _index(node: Node, index: Sequence[int]) -> str:
    """`[b=17, z=3]`: the axes by their sizes' or index names."""
    axes = node.axes if isinstance(node, Compute) else ()
    names = []
    for k, dim in enumerate(node.type.shape):
        letter = _plain(axes[k].var) if k < len(axes) else ""
        names.append(dim.name.lower() if dim.name and dim.name.isidentifier() else letter)
    if len(set(names)) < len(names):
        names = [_plain(a.var) for a in axes] or [""] * len(names)
    return (
        "["
        + ", ".join(f"{n}={i}" if n else str(i) for n, i in zip(names, index, strict=True))
        + "]"
    )


def _plain(var: str) -> str:
    """A loop variable as the reader wrote it."""
    return var.lstrip("$").split(".")[0]


def _number(value: float) -> str:
    return f"{value:.4g}"
