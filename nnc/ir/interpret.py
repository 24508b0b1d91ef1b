"""The oracle: evaluates a Graph with NumPy, floats in float64, integers wrapping in their dtype.

Each `Compute` is evaluated over its whole iteration space at once (in blocks when that is large).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from nnc.diagnostics import Span
from nnc.ir import external
from nnc.ir.expr import Const, Expr, Idx, Load, Op, Select, Var, children, walk
from nnc.ir.graph import (
    Axis,
    Compute,
    Constant,
    Custom,
    External,
    Graph,
    Input,
    Loop,
    Node,
    Part,
    Stop,
    Update,
    toposort,
)
from nnc.ir.scalar import SCALARS
from nnc.lang.dims import Dim, Func
from nnc.lang.types import DTYPES, DType, is_float

Array = np.ndarray[Any, np.dtype[Any]]
BLOCK = 4_000_000  # elements of an iteration space evaluated at once


class IndexFault(Exception):
    """A data-dependent index is outside its tensor; the first in row-major order of the loops."""

    def __init__(self, span: Span, axis: int, index: int, extent: int) -> None:
        super().__init__(f"{span.place}: index {index} of axis {axis} is outside 0..{extent - 1}")
        self.span, self.axis, self.index, self.extent = span, axis, index, extent


@dataclass(frozen=True)
class Result:
    """One run: `results` in order, `writes` by name of the storage, `values` of all nodes."""

    results: tuple[Array, ...]
    writes: dict[str, Array]
    values: dict[Node, Array]


def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    """What the oracle computes a dtype in."""
    return np.dtype(np.float64 if is_float(dtype) else DTYPES[dtype].numpy)


def run(graph: Graph, dims: Mapping[str, int], inputs: Mapping[str, Any]) -> Result:
    """Evaluates the graph; `inputs` by name. Raises IndexFault."""
    values: dict[Node, Array] = {}
    with np.errstate(all="ignore"):
        _block(toposort(graph.roots), dims, inputs, values, {})
    return Result(
        tuple(values[r] for r in graph.results),
        {w.target.name: values[w.value] for w in graph.writes},
        values,
    )


Parts = dict[Node, tuple[Array, ...]]


def _block(
    order: Sequence[Node],
    dims: Mapping[str, int],
    inputs: Mapping[str, Any],
    values: dict[Node, Array],
    parts: Parts,
) -> None:
    for node in order:
        match node:
            case Loop():
                parts[node] = _loop(node, dims, inputs, values, parts)
            case Part(source=Custom() as source, index=index):
                values[node] = values[source.sources[index]]
            case Part(source=source, index=index):
                values[node] = parts[source][index]
            case _:
                values[node] = _node(node, dims, inputs, values)


def _loop(
    loop: Loop,
    dims: Mapping[str, int],
    inputs: Mapping[str, Any],
    values: dict[Node, Array],
    parts: Parts,
) -> tuple[Array, ...]:
    """The final carried values and the stacked yields."""
    trip = loop.trip.evaluate(dims)
    rest = loop.body[len(loop.test) :]
    carried = [values[i] for i in loop.init]
    kinds = loop.results[len(carried) :]
    stacks = [np.zeros([d.evaluate(dims) for d in t.shape], numpy_dtype(t.dtype)) for t in kinds]
    for t in reversed(range(trip)) if loop.reverse else range(trip):
        now = {**dims, loop.var: t}
        values.update(zip(loop.carries, carried, strict=True))
        _block(loop.test, now, inputs, values, parts)
        if loop.cond is not None and not values[loop.cond]:
            break
        _block(rest, now, inputs, values, parts)
        carried = [values[n] for n in loop.next]
        for stack, node in zip(stacks, loop.yields, strict=True):
            stack[t] = values[node]
    return (*carried, *stacks)


def _node(
    node: Node, dims: Mapping[str, int], inputs: Mapping[str, Any], values: Mapping[Node, Array]
) -> Array:
    shape = tuple(d.evaluate(dims) for d in node.type.shape)
    dtype = numpy_dtype(node.type.dtype)
    match node:
        case Input():
            array = np.asarray(inputs[node.name]).astype(dtype)
            assert array.shape == shape, (node, array.shape, shape)
            return array
        case Constant(data=data):
            return np.array(data, dtype=dtype).reshape(shape)
        case Stop(source=source) | Custom(source=source):
            return values[source]
        case External():
            return _external(node, dims, values, shape)
        case Compute():
            return _compute(node, dims, values)
        case Update():
            return _update(node, dims, values)
    raise AssertionError(f"not to be interpreted before autodiff: {node}")


def _external(
    node: External, dims: Mapping[str, int], values: Mapping[Node, Array], shape: tuple[int, ...]
) -> Array:
    inputs = [(i.type.dtype, values[i]) for i in node.inputs]
    if node.each:
        return external.call_each(node.symbol, inputs, node.type.dtype, shape)
    sizes = [d.evaluate(dims) for d in node.sizes]
    return external.call(node.symbol, sizes, inputs, node.type.dtype, shape)


def _extents(axes: Sequence[Axis], dims: Mapping[str, int]) -> tuple[int, ...]:
    sizes = tuple(a.extent.evaluate(dims) for a in axes)
    assert all(n >= 0 for n in sizes), (axes, sizes)
    return sizes


def _compute(node: Compute, dims: Mapping[str, int], values: Mapping[Node, Array]) -> Array:
    kept, reduced = _extents(node.axes, dims), _extents(node.raxes, dims)
    out = np.empty(kept, numpy_dtype(node.type.dtype))
    axes = (*node.axes, *node.raxes)
    for box in _blocks(kept, int(np.prod(reduced, dtype=np.int64))):
        sizes = (*(s.stop - s.start for s in box), *reduced)
        loops = _loops(axes, (*box, *(slice(0, n) for n in reduced)))
        value = _Evaluation((node.body,), loops, dims, values, sizes)[node.body]
        value = np.broadcast_to(value, sizes)
        out[box] = _reduce(node.op, value, len(kept)) if node.op else value
    return out


def evaluated(
    node: Compute, index: Sequence[int], dims: Mapping[str, int], values: Mapping[Node, Array]
) -> dict[Expr, Array]:
    """Every sub-expression of a body at one element, over the box of one by the reduced axes."""
    reduced = _extents(node.raxes, dims)
    box = (*(slice(i, i + 1) for i in index), *(slice(0, n) for n in reduced))
    sizes = tuple(s.stop - s.start for s in box)
    with np.errstate(all="ignore"):
        loops = _loops((*node.axes, *node.raxes), box)
        done = _Evaluation((node.body,), loops, dims, values, sizes)
    return {e: np.broadcast_to(done[e], sizes) for e in walk(node.body)}


def _blocks(kept: Sequence[int], inner: int) -> Iterator[tuple[slice, ...]]:
    """Cuts the box of kept loops so that a piece has at most BLOCK elements where possible."""
    steps: list[int] = []
    for n in reversed(kept):
        steps.append(max(1, min(n, BLOCK // max(inner, 1))))
        inner *= max(n, 1)
    cuts = [
        [slice(i, min(i + step, n)) for i in range(0, n, step)]
        for n, step in zip(kept, reversed(steps), strict=True)
    ]
    return product(*cuts)


def _loops(axes: Sequence[Axis], box: Sequence[slice]) -> dict[str, Array]:
    """Each loop variable as an array that broadcasts over the box."""
    rank = len(axes)
    return {
        a.var: np.arange(s.start, s.stop).reshape([-1 if j == i else 1 for j in range(rank)])
        for i, (a, s) in enumerate(zip(axes, box, strict=True))
    }


def _reduce(op: str, value: Array, kept: int) -> Array:
    """Reduces all axes from `kept` on; an empty reduction gives the neutral element."""
    flat = value.reshape((*value.shape[:kept], int(np.prod(value.shape[kept:], dtype=np.int64))))
    match op:
        case "sum":
            return np.asarray(flat.sum(axis=-1, dtype=value.dtype))
        case "prod":
            return np.asarray(flat.prod(axis=-1, dtype=value.dtype))
        case "any" | "all":
            return np.asarray(getattr(flat, op)(axis=-1))
        case "max" | "min":
            return np.asarray(getattr(flat, op)(axis=-1, initial=lowest(value.dtype, op)))
    if flat.shape[-1] == 0:
        return np.zeros(flat.shape[:-1], np.int32)
    return np.asarray(getattr(np, op)(flat, axis=-1)).astype(np.int32)


JOIN: dict[str, np.ufunc] = {"add": np.add, "max": np.maximum, "min": np.minimum}


def lowest(dtype: np.dtype[Any], op: str) -> Any:
    """The neutral element of max (the least value) or min (the greatest)."""
    if dtype.kind == "f":
        return -np.inf if op == "max" else np.inf
    return np.iinfo(dtype).min if op == "max" else np.iinfo(dtype).max


def _update(node: Update, dims: Mapping[str, int], values: Mapping[Node, Array]) -> Array:
    sizes = _extents(node.axes, dims)
    loops = _loops(node.axes, [slice(0, n) for n in sizes])
    out = values[node.base].copy()
    guards = () if node.guard is None else (node.guard,)
    target = Load(node.type.dtype, node.base, node.target, check=node.check)
    place: Expr = target
    value = node.value
    if node.guard is not None:  # neither side is evaluated where nothing is written
        zero = Const(value.dtype, 0)
        place = Select(value.dtype, node.guard, target, zero)
        value = Select(value.dtype, node.guard, value, zero)
    done = _Evaluation((place, value, *guards), loops, dims, values, sizes)
    where = np.broadcast_to(done[guards[0]], sizes).ravel() if guards else slice(None)
    index = tuple(np.broadcast_to(done[t], sizes).ravel()[where] for t in node.target)
    new = np.broadcast_to(done[value], sizes).ravel()[where]
    if not node.accumulate:
        out[index] = new[-1] if not index and new.size else new
    elif index:
        JOIN[node.accumulate].at(out, index, new)
    elif new.size:
        out = np.asarray(
            JOIN[node.accumulate](out, JOIN[node.accumulate].reduce(new, dtype=out.dtype))
        )
    return out


class _Evaluation:
    """The values of all sub-expressions over one box of loops, by expression.

    Everything is evaluated everywhere, with indices clipped into their tensors; then indices are
    checked where the expression is really needed (in the taken branch of each Select).
    """

    def __init__(
        self,
        roots: Sequence[Expr],
        loops: Mapping[str, Array],
        dims: Mapping[str, int],
        values: Mapping[Node, Array],
        sizes: Sequence[int],
    ) -> None:
        self.loops, self.dims, self.tensors = loops, dims, values
        self.sizes = tuple(sizes)
        self.done: dict[int, Array] = {}
        self.outside: dict[int, list[tuple[int, Array, int]]] = {}
        order = list(walk(*roots))
        for e in order:
            self.done[id(e)] = self._value(e)
        if 0 not in self.sizes:
            self._check(roots, order)

    def __getitem__(self, e: Expr) -> Array:
        return self.done[id(e)]

    def _value(self, e: Expr) -> Array:
        match e:
            case Const(dtype=dtype, value=value):
                return np.asarray(value).astype(numpy_dtype(dtype))
            case Idx(dim=dim):
                return np.asarray(self._dim(dim), dtype=np.int64)
            case Load():
                return self._load(e)
            case Select(cond=c, a=a, b=b):
                return np.where(self[c], self[a], self[b])
            case Op(fn="cast", args=(a,)):
                return convert(self[a], e.dtype)
            case Op(fn=fn, args=args):
                value = SCALARS[fn].numpy(*(self[a] for a in args))
                return np.asarray(value).astype(numpy_dtype(e.dtype))
            case Var():
                raise AssertionError(f"a Program's variable in a Graph: {e}")

    def _load(self, e: Load) -> Array:
        tensor = self.tensors[e.tensor]  # type: ignore[index]
        index: list[Array] = []
        outside: list[tuple[int, Array, int]] = []
        for axis, (i, n) in enumerate(zip(e.index, tensor.shape, strict=True)):
            at = self[i]
            if ((at < 0) | (at >= n)).any():
                outside.append((axis, at, n))
                at = np.clip(at, 0, max(n - 1, 0))
            index.append(at)
        if outside:
            self.outside[id(e)] = outside
        if 0 in tensor.shape:
            return np.zeros((), tensor.dtype)
        value = np.asarray(tensor[tuple(index)])
        if e.other is None or not outside:
            return value
        return np.where(self._is_outside(e), self[e.other], value)

    def _is_outside(self, e: Load) -> Array:
        out: Array = np.zeros((), bool)
        for _, at, n in self.outside.get(id(e), ()):
            out = out | (at < 0) | (at >= n)
        return out

    def _check(self, roots: Sequence[Expr], order: Sequence[Expr]) -> None:
        """Raises for indices outside, at the places where their load is needed."""
        if not self.outside:
            return
        needed = self._needed(roots, order)
        for e in order:
            if isinstance(e, Load) and e.other is None and id(e) in self.outside:
                for axis, at, n in self.outside[id(e)]:
                    self._report(e, axis, at, n, ((at < 0) | (at >= n)) & needed[id(e)])

    def _needed(self, roots: Sequence[Expr], order: Sequence[Expr]) -> dict[int, Array]:
        no, yes = np.zeros((), bool), np.ones((), bool)
        needed = {id(e): no for e in order} | {id(r): yes for r in roots}
        for e in reversed(order):
            here = needed[id(e)]
            for c in children(e):
                needed[id(c)] = needed[id(c)] | (here & self._branch(e, c))
        return needed

    def _branch(self, e: Expr, child: Expr) -> Array:
        """Where `e` evaluates this operand."""
        out: Array = np.zeros((), bool)
        match e:
            case Select(cond=c, a=a, b=b) if child is not c:
                out = out | self[c] if child is a else out
                return out | ~self[c] if child is b else out
            case Load(other=other) if child is other:
                return self._is_outside(e)
        return np.ones((), bool)

    def _report(self, e: Load, axis: int, at: Array, n: int, bad: Array) -> None:
        if not bad.any():
            return
        assert e.check is not None, f"unchecked index outside axis {axis} of {e.tensor}: {e}"
        first = np.argmax(np.broadcast_to(bad, self.sizes).ravel())
        raise IndexFault(e.check, axis, int(np.broadcast_to(at, self.sizes).ravel()[first]), n)

    def _dim(self, d: Dim) -> Any:
        total: Any = 0
        for mono, c in d.terms:
            term: Any = c
            for atom, n in mono:
                value = self._name(atom) if isinstance(atom, str) else self._func(atom)
                term = term * value**n
            total = total + term
        return total

    def _name(self, name: str) -> Any:
        return self.loops[name] if name in self.loops else self.dims[name]

    def _func(self, f: Func) -> Any:
        a, b = self._dim(f.a), self._dim(f.b)
        fn = {"min": np.minimum, "max": np.maximum, "mod": np.mod}.get(f.kind, np.floor_divide)
        return fn(a, b)


def convert(x: Array, dtype: DType) -> Array:
    """`cast`: floats to integers truncate and saturate, NaN is 0; integers wrap."""
    kind = DTYPES[dtype].kind
    if x.dtype.kind != "f" or kind not in "iu":
        return x.astype(numpy_dtype(dtype))
    info = np.iinfo(numpy_dtype(dtype))
    inside = np.nan_to_num(np.trunc(x), nan=0.0, posinf=np.inf, neginf=-np.inf)
    low, high = inside <= float(info.min), inside >= float(info.max)
    out = np.where(low | high, 0.0, inside).astype(info.dtype)
    return np.where(low, info.min, np.where(high, info.max, out)).astype(info.dtype)
