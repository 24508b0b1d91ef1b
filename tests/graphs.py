"""Small Graphs by hand, and random ones: the alphabet of the tests of Graph passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nnc.diagnostics import NOWHERE
from nnc.ir.expr import Const, Expr, Idx, Load, Op
from nnc.ir.graph import Axis, Compute, Grad, Graph, Input, Node, Part, Update, Write
from nnc.ir.interpret import run
from nnc.ir.scalar import op
from nnc.lang.dims import Dim, DimLike, Facts
from nnc.lang.types import TensorType
from nnc.passes.autodiff import autodiff
from nnc.passes.verify import verify


def d(text: DimLike) -> Dim:
    """`d("B")`; loop variables are written `$i`."""
    return Dim.of(text)


def idx(x: DimLike) -> Idx:
    return Idx(Dim.of(x))


def inp(name: str, *shape: DimLike, dtype: str = "f64", kind: str = "arg") -> Input:
    return Input(type=TensorType(dtype, tuple(map(Dim.of, shape))), name=name, kind=kind)


def load(
    t: Node, *index: DimLike | Expr, other: float | Expr | None = None, check: bool = False
) -> Load:
    """`t[index]`; strings and dims become `Idx`."""
    index_ = tuple(i if not isinstance(i, int | str | Dim) else idx(i) for i in index)
    dtype = t.type.dtype
    if isinstance(other, int | float):
        other = Const(dtype, float(other) if dtype.startswith("f") else int(other))
    return Load(dtype, t, index_, other, NOWHERE if check else None)


def axes(**extents: DimLike) -> tuple[Axis, ...]:
    """`axes(i="B")`: the loop variable `$i` over B."""
    return tuple(Axis(f"${k}", Dim.of(v)) for k, v in extents.items())


def comp(
    body: Expr,
    over: Sequence[Axis] = (),
    reduce: str = "",
    raxes: Sequence[Axis] = (),
    name: str = "",
) -> Compute:
    dtype = "i32" if reduce in ("argmax", "argmin") else body.dtype
    shape = tuple(a.extent for a in over)
    return Compute(
        type=TensorType(dtype, shape),
        axes=tuple(over),
        raxes=tuple(raxes),
        op=reduce,
        body=body,
        name=name,
    )


def update(
    base: Node, over: Sequence[Axis], target: Sequence[DimLike | Expr], value: Expr, **more: Any
) -> Update:
    target_ = tuple(t if not isinstance(t, int | str | Dim) else idx(t) for t in target)
    return Update(type=base.type, base=base, axes=tuple(over), target=target_, value=value, **more)


def total(t: Node, weights: bool = True) -> Compute:
    """A scalar that depends on every element of t: `sum t * w` with fixed uneven weights."""
    over = tuple(Axis(f"$s{i}", e) for i, e in enumerate(t.type.shape))
    body: Expr = load(t, *(a.var for a in over))
    if weights:
        at = Dim.of(1)
        for i, a in enumerate(over):
            at = at + Dim.of(a.var) * (2 * i + 3)
        w = op("sin", Op(t.type.dtype, "cast", (Idx(at),)))
        body = op("mul", body, w)
    return comp(body, (), "sum", over) if over else comp(body)


def grads(y: Node, *wrt: Node) -> tuple[Part, ...]:
    g = Grad(type=y.type, y=y, wrt=tuple(wrt))
    return tuple(Part(type=w.type, source=g, index=i) for i, w in enumerate(wrt))


def graph(
    results: Sequence[Node],
    inputs: Sequence[Input] = (),
    dims: Sequence[str] = (),
    writes: Sequence[Write] = (),
    facts: Facts = Facts(),  # noqa: B008
    name: str = "f",
) -> Graph:
    return Graph(name, tuple(dims), tuple(inputs), tuple(results), tuple(writes), facts)


def sample(
    inputs: Sequence[Input], dims: Mapping[str, int], seed: int = 0
) -> dict[str, np.ndarray]:
    """Random values for inputs; integers are small and not negative."""
    rng = np.random.default_rng(seed)
    out = {}
    for i in inputs:
        shape = tuple(s.evaluate(dims) for s in i.type.shape)
        small = i.type.dtype.startswith(("i", "u"))
        out[i.name] = rng.integers(0, 3, shape) if small else rng.uniform(-1.5, 1.5, shape)
    return out


def numeric_gradient(
    y: Node, wrt: Input, dims: Mapping[str, int], values: Mapping[str, np.ndarray], h: float = 1e-6
) -> np.ndarray:
    """Central differences of the scalar y through the oracle."""
    base = np.asarray(values[wrt.name], dtype=np.float64)
    out = np.zeros(base.shape)
    g = graph([y], [], list(dims))
    for at in np.ndindex(base.shape):
        ends = []
        for step in (h, -h):
            moved = base.copy()
            moved[at] += step
            ends.append(float(run(g, dims, {**values, wrt.name: moved}).results[0]))
        out[at] = (ends[0] - ends[1]) / (2 * h)
    return out


def check_gradients(
    y: Node,
    wrt: Sequence[Input],
    inputs: Sequence[Input],
    dims: Mapping[str, int] | None = None,
    values: Mapping[str, Any] | None = None,
    facts: Facts = Facts(),  # noqa: B008
    tolerance: float = 1e-6,
) -> Graph:
    """Compares the gradient of a weighted sum of y with finite differences; verifies both."""
    dims = dims or {}
    values = {**sample(inputs, dims), **(values or {})}
    scalar = total(y)
    before = graph(grads(scalar, *wrt), inputs, list(dims), facts=facts)
    verify(before, "building")
    after = autodiff(before)
    verify(after, "autodiff")
    found = run(after, dims, values).results
    for w, got in zip(wrt, found, strict=True):
        want = numeric_gradient(scalar, w, dims, values)
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance, err_msg=w.name)
    return after
