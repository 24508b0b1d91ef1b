"""Everything that must agree about one program: text, graphs, gradients, native code.

`examine(program)` raises `Disagreement`, which names the stage. Native results are compared with the
float64 interpreter within a bound of the oracle's own: the interpreter runs again with every rounding
replaced by a random one of a few units in the last place (Monte Carlo arithmetic), and how far the
results move is how much they may differ, element by element. No tolerance is tuned by hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import numpy as np

from nnc import compiler
from nnc.diagnostics import Diagnostics, Source, Span, render_all
from nnc.ir import interpret
from nnc.ir.expr import Expr, Op
from nnc.ir.graph import Grad, Graph, Input, Node, operands, toposort, with_bodies
from nnc.lang.format import format_source
from nnc.lang.printer import print_file
from nnc.lang.syntax import parse
from nnc.lang.types import is_float
from nnc.passes.autodiff import without_stops
from nnc.passes.fuse import fuse
from nnc.passes.split import forward_backward
from nnc.passes.verify import verify
from tests.native import NUMPY, Native, native
from tests.random_language import Program

Dims = Mapping[str, int]
Values = Mapping[str, Any]
# Distances between neighbouring numbers at 1.
SPACING = {"f64": 2.0**-52, "f32": 2.0**-23, "f16": 2.0**-10, "bf16": 2.0**-7}
# What rounds to zero: half of the smallest denormal number.
VANISHING = {"f64": 0.0, "f32": 2.0**-150, "f16": 2.0**-25, "bf16": 2.0**-134}
EXACT = {"max", "min", "abs", "neg", "floor", "ceil", "round", "sign"}
SAMPLES = 3
SPECIAL = (np.inf, -np.inf, np.nan, -0.0, 1e-40)


class Disagreement(AssertionError):
    """`stage`: front end, print, a pass, gradient, threads or native."""

    def __init__(self, stage: str, what: str) -> None:
        super().__init__(f"{stage}: {what}")
        self.stage = stage


def examine(program: Program, seed: int, run_native: bool = True) -> None:
    """All checks, on inputs drawn from `seed`."""
    printed(program.text)
    graph = accepted(program)
    values = [inputs(graph, program, dims, seed) for dims in program.dims]
    stages = passes(graph)
    agreed = [agree(stages, d, v) for d, v in zip(program.dims, values, strict=True)]
    if program.smooth:
        slopes(graph, program.dims[0], values[0], seed)
    if run_native:
        with small(seed):
            compiled = native(compiler.schedule(stages[-2][1]))
        for dims, value, wanted in zip(program.dims, values, agreed, strict=True):
            compare(compiled, stages[-2][1], dims, value, *wanted)


@contextmanager
def small(seed: int) -> Iterator[None]:
    """With odd seeds nothing is too small for threads, with multiples of 3 for a contraction's tiles."""
    with ExitStack() as stack:
        if seed % 2:
            for name in ("spmd._SMALL", "spmd._SMALL_TURN", "entry._SMALL_PROGRAM"):
                stack.enter_context(patch(f"nnc.codegen.{name}", 1))
        if seed % 3 == 0:
            stack.enter_context(patch("nnc.codegen.leaf._TINY", 1))
        yield


# ---- text ---------------------------------------------------------------------------------------


def accepted(program: Program) -> Graph:
    """The Graph of the export `f`; the program is valid, so a message is a mistake of somebody else."""
    checked = compiler.check("random.nn", source=Source("random.nn", program.text))
    if checked.errors or checked.elaborated is None:
        raise Disagreement("front end", render_all(checked.errors))
    graph = next(b.graph for b in checked.elaborated.exports if b.graph.name == "f")
    verify(graph, "elaborate")
    return graph


def printed(text: str) -> None:
    """Printing and parsing again, and formatting, give the same tree; formatting twice is once."""
    diagnostics = Diagnostics()
    tree = parse(Source("random.nn", text), diagnostics)
    if tree is None:
        raise Disagreement("front end", render_all(diagnostics.items))
    plain = print_file(tree)
    tidy = format_source(Source("random.nn", text), diagnostics)
    if tidy is None or format_source(Source("random.nn", tidy), diagnostics) != tidy:
        raise Disagreement("print", f"formatting twice is not once:\n{tidy}")
    for other in (plain, tidy):
        again = parse(Source("random.nn", other), diagnostics)
        if again is None or shape(again) != shape(tree) or print_file(again) != plain:
            raise Disagreement("print", f"another program after printing:\n{other}")


def shape(tree: Any) -> Any:
    """A syntax tree without its places."""
    if isinstance(tree, tuple):
        return [shape(t) for t in tree]
    if isinstance(tree, Span | Source):
        return None
    if not is_dataclass(tree):
        return tree
    return [type(tree).__name__, *(shape(getattr(tree, f.name)) for f in fields(tree))]


# ---- graphs -------------------------------------------------------------------------------------

Stage = tuple[str, Graph]


def passes(graph: Graph) -> list[Stage]:
    """The Graph before and after every pass."""
    out = [("elaborate", graph)]
    for name, run in compiler.GRAPH_PASSES:
        graph = run(graph)
        verify(graph, name)
        out.append((name, graph))
    fused = fuse(graph).graph
    verify(fused, "fuse")
    return [*out, ("fuse", fused)]


def differentiated(graph: Graph) -> set[Node]:
    """The nodes that need a gradient, directly or not: there is no value before autodiff."""
    out: set[Node] = set()
    for node in toposort(graph.roots):
        inside = with_bodies([node])
        if any(isinstance(n, Grad) or n in out or out & set(operands(n)) for n in inside):
            out.add(node)
    return out


def inputs(graph: Graph, program: Program, dims: Dims, seed: int) -> dict[str, Any]:
    """Floats of a normal distribution, integers below their limits, positive second moments.

    One seed in five also puts a NaN, an infinity or a denormal number into each float argument.
    """
    rng = np.random.default_rng(seed)
    out: dict[str, Any] = {}
    for i in graph.inputs:
        shape = tuple(d.evaluate(dims) for d in i.type.shape)
        out[i.name] = _value(i, shape, program.limits.get(i.name), dims, rng)
        if seed % 5 == 4 and i.kind == "arg" and is_float(i.type.dtype) and out[i.name].size:
            out[i.name].flat[int(rng.integers(out[i.name].size))] = rng.choice(SPECIAL)
    return out


def _value(i: Input, shape: Any, limit: str | None, dims: Dims, rng: Any) -> Any:
    dtype = i.type.dtype
    if i.kind == "rng":
        return np.int64(rng.integers(0, 100))
    if is_float(dtype):
        value = rng.standard_normal(shape)
        if i.name.startswith("opt.v.") or i.name.endswith("running_var"):
            value = np.abs(value) + 0.5
        return rounded(value, dtype)
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(np.bool_)
    top = 5 if limit is None else int(eval(limit, {}, dict(dims)))
    low = -5 if limit is None and dtype != "u8" and not i.name.endswith(".t") else 0
    return rng.integers(low, max(top, 1), shape).astype(NUMPY[dtype])


def rounded(value: Any, dtype: str) -> Any:
    """Numbers of the dtype; bf16, which NumPy lacks, as float64."""
    if dtype != "bf16":
        return np.asarray(value).astype(NUMPY[dtype])
    bits = np.asarray(value, np.float32).view(np.uint32)
    return ((bits + 0x8000) & 0xFFFF0000).astype(np.uint32).view(np.float32).astype(np.float64)


def interpreted(graph: Graph, dims: Dims, values: Values) -> dict[str, Any]:
    """Results and final storage by name; less where gradients stand for themselves."""
    without = differentiated(graph)
    results = {f"result {n}": r for n, r in enumerate(graph.results) if r not in without}
    writes = [w for w in graph.writes if w.value not in without]
    found = interpret.run(
        replace(graph, results=tuple(results.values()), writes=tuple(writes)), dims, values
    )
    out: dict[str, Any] = dict(zip(results, found.results, strict=True))
    return out | {f"write of {k}": a for k, a in found.writes.items()}


def agree(stages: Sequence[Stage], dims: Dims, values: Values) -> tuple[Values, Values]:
    """Compares neighbouring stages; gives the last results and how far native ones may be away.

    The first stage may have fewer results. `simplify` folds constants in their own dtype, so that
    the rounding of those is in its bound; the other passes keep the order of all operations.
    """
    first, *rest = stages
    found = [(first[0], interpreted(without_stops(first[1]), dims, values))]
    found += [(name, interpreted(graph, dims, values)) for name, graph in rest]
    _, simple = stages[-2]
    allowed = bounds(simple, dims, values, found[-2][1])
    for (_, before), (name, after) in pairwise(found):
        for key, a in before.items():
            if key not in after:
                raise Disagreement(name, f"{dims}: {key} is missing")
            limit = allowed[key] if name == "simplify" else 0
            _close(name, f"{dims} {key}", a, after[key], bound(a) + limit)
    return found[-2][1], allowed


def _close(stage: str, what: str, want: Any, got: Any, limit: Any) -> None:
    want, got = np.asarray(want, np.float64), np.asarray(got, np.float64)
    if want.shape != got.shape:
        raise Disagreement(stage, f"{what}: shapes {want.shape} and {got.shape}")
    with np.errstate(all="ignore"):
        same = (want == got) | (np.abs(want - got) <= limit)
        same |= ~np.isfinite(want) & ~np.isfinite(got)  # inf * 1e-50 is NaN where that is 0
    if not same.all():
        at = np.unravel_index(int(np.argmin(same)), same.shape)
        worst = f"{got[at]!r} instead of {want[at]!r} (may differ by {np.broadcast_to(limit, same.shape)[at]:.2e})"
        raise Disagreement(
            stage, f"{what} at {tuple(map(int, at))}: {worst}; {(~same).sum()} of {same.size}"
        )


# ---- the bound ------------------------------------------------------------------------------------


def bound(value: Any) -> Any:
    """What another order of operations may change in float64."""
    finite = np.abs(value[np.isfinite(value)]) if np.size(value) else np.zeros(0)
    return 1e-9 * (float(finite.max()) if finite.size else 0.0) + 1e-12


@contextmanager
def noisy(seed: int) -> Iterator[None]:
    """The interpreter with random roundings; what underflows is zero."""
    rng = np.random.default_rng(seed)
    value, reduce = interpret._Evaluation._value, interpret._reduce

    def shaken(x: Any, dtype: str) -> Any:
        moved = x * (1 + 2 * SPACING[dtype] * rng.uniform(-1, 1, np.shape(x)))
        return np.where(np.abs(x) <= VANISHING[dtype], np.copysign(0.0, x), moved)

    def _value(self: Any, e: Expr) -> Any:
        out = value(self, e)
        exact = not isinstance(e, Op) or e.fn in EXACT or not is_float(e.dtype)
        return out if exact else shaken(out, e.dtype)

    def _reduce(op: str, x: Any, kept: int) -> Any:
        if op not in ("sum", "prod") or x.dtype.kind != "f":
            return reduce(op, x, kept)
        out = reduce(op, shaken(x, "f32"), kept)
        return out + rng.uniform(-1, 1, out.shape) * wandering(x, kept) if op == "sum" else out

    with (
        patch.object(interpret._Evaluation, "_value", _value),
        patch.object(interpret, "_reduce", _reduce),
    ):
        yield


def wandering(x: Any, kept: int) -> Any:
    """How far the roundings of its partial sums, independent of each other, take a sum in f32."""
    partial = np.cumsum(x.reshape((*x.shape[:kept], int(np.prod(x.shape[kept:])))), axis=-1)
    return 2 * SPACING["f32"] * np.sqrt(np.sum(partial**2, axis=-1))


def bounds(graph: Graph, dims: Dims, values: Values, want: Values) -> dict[str, Any]:
    """How far each element of each result may be from the float64 one."""
    moved = {k: np.zeros(np.shape(a)) for k, a in want.items()}
    kinds = {f"result {n}": r.type.dtype for n, r in enumerate(graph.results)}
    kinds |= {f"write of {w.target.name}": w.target.type.dtype for w in graph.writes}
    for seed in range(SAMPLES):
        with noisy(seed):
            found = interpreted(graph, dims, values)
        for k, a in found.items():
            with np.errstate(all="ignore"):
                apart = np.abs(np.asarray(a, np.float64) - np.asarray(want[k], np.float64))
            # Where the noise alone makes a number infinite or NaN nothing can be said.
            lost = np.where(np.isfinite(np.asarray(want[k], np.float64)), np.inf, 0)
            moved[k] = np.maximum(moved[k], np.where(np.isfinite(apart), apart, lost))
    out = {}
    for k, apart in moved.items():
        spread = 20 * apart + 8 * np.sqrt(np.mean(apart**2)) if apart.size else apart
        unit = SPACING.get(kinds[k], 0.0)
        out[k] = (
            spread + 2 * unit * np.abs(np.asarray(want[k], np.float64)) + (1e-37 if unit else 0)
        )
    return out


# ---- gradients ------------------------------------------------------------------------------------


def slopes(graph: Graph, dims: Dims, values: Values, seed: int) -> None:
    """The reverse derivative of all results along a random direction against differences in float64.

    A kink nearby shows in differences that do not agree with each other: then nothing is said, nor
    where an argument is infinite (a step does not move it; zero times it is NaN in a gradient).
    """
    forward, backward, wrt = forward_backward(graph)
    verify(forward, "split")
    verify(backward, "split")
    floats = [n for n, r in enumerate(graph.results) if is_float(r.type.dtype)]
    if not wrt or not floats:
        return
    rng = np.random.default_rng(seed + 1)
    values = {
        k: np.asarray(v, np.float64) if np.asarray(v).dtype.kind == "f" else v
        for k, v in values.items()
    }
    if not all(np.isfinite(values[k]).all() for k in wrt):
        return
    done = interpret.run(forward, dims, values).results
    dy = {n: rng.standard_normal(np.shape(done[n])) for n in floats}
    more = {f"d.{n}": d for n, d in dy.items()}
    more |= {f"saved.{n}": a for n, a in enumerate(done[len(graph.results) :])}
    known = {**values, **more}
    grads = interpret.run(backward, dims, {i.name: known[i.name] for i in backward.inputs}).results
    step = {k: rng.standard_normal(np.shape(values[k])) for k in wrt}
    slope = sum(float((g * step[k]).sum()) for k, g in zip(wrt, grads, strict=True))

    def along(h: float) -> float:
        moved = {k: v + h * step[k] if k in step else v for k, v in values.items()}
        found = interpret.run(forward, dims, moved).results
        return sum(float((dy[n] * found[n]).sum()) for n in floats)

    here = along(0.0)
    ways = [(along(h) - here) / h for h in (1e-5, -1e-5, 1e-6, -1e-6)]
    middle = (ways[2] + ways[3]) / 2
    scale = (
        1
        + abs(here)
        + sum(float(np.abs(g * step[k]).sum()) for k, g in zip(wrt, grads, strict=True))
    )
    if not np.isfinite(here) or max(abs(w - middle) for w in ways) > 1e-4 * scale:
        return
    if not abs(slope - middle) <= 3e-4 * scale:
        raise Disagreement("gradient", f"{dims}: {slope} instead of {middle}, by {wrt}")


# ---- native code ----------------------------------------------------------------------------------


def compare(
    compiled: Native, graph: Graph, dims: Dims, values: Values, want: Values, allowed: Values
) -> None:
    """Native results of 1, 2 and 3 threads and of both sides of the guard pages."""
    arrays = [encoded(values[i.name], i.type.dtype) for i in graph.inputs]
    for r in graph.results:
        shape = tuple(d.evaluate(dims) for d in r.type.shape)
        arrays.append(np.zeros(shape, NUMPY[r.type.dtype]))
    outs = [compiled.run(arrays, dims, threads=n) for n in (1, 2, 3)]
    outs.append(compiled.run(arrays, dims, threads=1, side="start"))
    for threads, other in zip((2, 3, "another place"), outs[1:], strict=True):
        for n, (x, y) in enumerate(zip(outs[0], other, strict=True)):
            if _bits(x) != _bits(y):
                raise Disagreement("threads", f"{dims}: array {n} differs with {threads}")
    _native(graph, dims, arrays, outs[0], want, allowed)


def _bits(x: Any) -> bytes:
    """All bits but the sign and payload of NaN: those are the processor's."""
    if x.dtype.kind == "f" and np.isnan(x).any():
        x = np.where(np.isnan(x), x.dtype.type("nan"), x)
    return bytes(x.tobytes())


def _native(graph: Graph, dims: Dims, before: Any, got: Any, want: Values, allowed: Values) -> None:
    n = len(graph.inputs)
    for k, (r, a) in enumerate(zip(graph.results, got[n:], strict=True)):
        key = f"result {k}"
        _close("native", f"{dims} {key}", want[key], decoded(a, r.type.dtype), allowed[key])
    for i, old, new in zip(graph.inputs, before, got, strict=False):
        key = f"write of {i.name}"
        if key in want:
            _close("native", f"{dims} {key}", want[key], decoded(new, i.type.dtype), allowed[key])
        elif old.tobytes() != new.tobytes():
            raise Disagreement("native", f"{dims}: {i.name} was written")


def encoded(value: Any, dtype: str) -> Any:
    if dtype == "bf16":
        return (np.asarray(value, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return np.asarray(value).astype(NUMPY[dtype])


def decoded(value: Any, dtype: str) -> Any:
    if dtype == "bf16":
        return (value.astype(np.uint32) << 16).view(np.float32)
    return value
