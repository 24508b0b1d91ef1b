"""Small Graphs by hand, and random ones: the alphabet of the tests of Graph passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import numpy as np

from nnc.diagnostics import NOWHERE
from nnc.ir.expr import Const, Expr, Idx, Load, Op
from nnc.ir.graph import Axis, Compute, Grad, Graph, Input, Loop, Node, Part, Update, Write
from nnc.ir.interpret import run
from nnc.ir.scalar import mul, op, select
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


# ---- random graphs

SIZES = {"N": 3, "M": 2}
SMOOTH = ("sin", "cos", "tanh", "sigmoid", "erf", "atan", "neg")


def random_inputs() -> list[Input]:
    return [
        inp("x", "N", 4),
        inp("w", 3, 4, kind="param"),
        inp("v", 4, kind="param"),
        inp("s", kind="param"),
        inp("k", "M", "N", 4),
        inp("t", "N", dtype="i32"),  # values 0..2
    ]


class Maker:
    """Draws well-typed nodes over what there is: `pool` holds float tensors, `t` row numbers."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.inputs = random_inputs()
        self.pool: list[Node] = list(self.inputs[:-1])
        self.count = 0
        self.turns: list[Axis] | None = None  # run-time loops around; None: there are none

    def loops(self, shape: Sequence[Dim]) -> tuple[Axis, ...]:
        self.count += 1
        return tuple(Axis(f"${chr(97 + i)}{self.count}", e) for i, e in enumerate(shape))

    def pick(self, least: int = 0) -> Node:
        some = [n for n in self.pool if n.type.rank >= least]
        return self.random.choice(some[-6:] if self.random.random() < 0.7 else some)

    def smooth(self, e: Expr) -> Expr:
        return op(self.random.choice(SMOOTH), e)

    def number(self) -> Const:
        return Const("f64", round(self.random.uniform(-1.5, 1.5), 2))

    def node(self) -> Node:
        makers = (
            (self.elementwise, 3),
            (self.contraction, 3),
            (self.window, 2),
            (self.reduction, 2),
            (self.transposed, 1),
            (self.merged, 1),
            (self.split, 1),
            (self.gathered, 2),
            (self.lazy, 2),
            (self.updated, 2),
            *(() if self.turns is None else ((self.looped, 3),)),
        )
        weights = [w for _, w in makers]
        return self.random.choices([m for m, _ in makers], weights)[0]()

    def at(self, t: Node, over: Sequence[Axis]) -> Load:
        """`t` read along the loops: along axes of equal extent, else the first element."""
        free = list(over)
        index: list[DimLike | Expr] = []
        for e in t.type.shape:
            match = next((a for a in free if a.extent == e), None)
            turn = next((t for t in self.turns or () if t.extent == e), None)
            if turn is not None and (match is None or self.random.random() < 0.5):
                index.append(turn.var)
                continue
            if match is not None:
                free.remove(match)
            index.append(0 if match is None else match.var)
        return load(t, *index)

    def elementwise(self) -> Node:
        a, b = self.pick(), self.pick()
        over = self.loops(a.type.shape)
        x, y = self.at(a, over), self.at(b, over)
        fn = self.random.choice(("add", "sub", "mul", "max", "min", "one", "div"))
        if fn == "one":
            return comp(self.smooth(x), over)
        if fn == "div":
            return comp(op("div", x, op("add", mul(y, y), Const("f64", 1.0))), over)
        return comp(op(fn, x, self.smooth(y)), over)

    def contraction(self) -> Node:
        a, b = self.pick(1), self.pick(1)
        over = self.loops([*a.type.shape, *b.type.shape])
        n = a.type.rank
        left, right = list(over[:n]), list(over[n:])
        shared = [(i, j) for i in left for j in right if i.extent == j.extent]
        reduced: list[Axis] = []
        for i, j in self.random.sample(shared, min(len(shared), 2)):
            if i in left and j in right and i not in reduced and j in right:
                right[right.index(j)] = i
                if self.random.random() < 0.7:
                    reduced.append(i)
        body = mul(load(a, *(i.var for i in left)), load(b, *(j.var for j in right)))
        kept = [i for i in dict.fromkeys((*left, *right)) if i not in reduced][:3]
        lost = [i for i in dict.fromkeys((*left, *right)) if i not in kept]
        self.random.shuffle(kept)
        return self.bounded(comp(body, kept, "sum" if lost else "", lost))

    def bounded(self, t: Node) -> Node:
        over = self.loops(t.type.shape)
        return comp(self.smooth(load(t, *(a.var for a in over))), over)

    def window(self) -> Node:
        a = self.pick(1)
        *outer, size = a.type.shape
        s, dl, p, u = (self.random.randint(*r) for r in ((1, 3), (1, 2), (0, 2), (1, 3)))
        out = (size + 2 * p - dl * (u - 1) - 1) // s + 1
        if (n := out.evaluate(SIZES)) < 1:
            return self.elementwise()
        out = out if size.const is not None else Dim.of(n)
        over = self.loops([*outer, out, Dim.of(u)])
        *rows, i, k = over
        at = Dim.of(i.var) * s + Dim.of(k.var) * dl - p
        other = self.random.choice((0.0, 0.5))
        body: Expr = load(a, *(r.var for r in rows), at, other=other)
        weight = op("sin", Op("f64", "cast", (Idx(Dim.of(k.var) * 2 + 1),)))
        reduce = self.random.choice(("sum", "max", "min", ""))
        if not reduce:
            return comp(self.smooth(body), over)
        return comp(mul(body, weight), (*rows, i), reduce, (k,))

    def reduction(self) -> Node:
        a = self.pick(1)
        over = self.loops(a.type.shape)
        lost = self.random.sample(over, self.random.randint(1, len(over)))
        kept = [x for x in over if x not in lost]
        reduce = self.random.choice(("sum", "prod", "max", "min"))
        return comp(self.smooth(load(a, *(x.var for x in over))), kept, reduce, lost)

    def transposed(self) -> Node:
        a = self.pick(1)
        over = list(self.loops(a.type.shape))
        flip = over[0]
        first = flip.extent - 1 - Dim.of(flip.var)
        body = load(a, first, *(x.var for x in over[1:]))
        self.random.shuffle(over)
        return comp(body, over)

    def merged(self) -> Node:
        a = self.pick(2)
        p, q, *rest = a.type.shape
        m, *others = self.loops([p * q, *rest])
        v = Dim.of(m.var)
        return comp(load(a, v // q, v % q, *(o.var for o in others)), (m, *others))

    def split(self) -> Node:
        a = self.pick(1)
        *outer, size = a.type.shape
        if size.const is None or size.const % 2:
            return self.merged()
        *rows, h, e = self.loops([*outer, Dim.of(size.const // 2), Dim.of(2)])
        over = [*rows, e, h]
        body = load(a, *(r.var for r in rows), Dim.of(h.var) * 2 + Dim.of(e.var))
        return comp(self.smooth(body), over)

    def gathered(self) -> Node:
        a, t = self.random.choice((self.inputs[0], self.inputs[1], self.pick(1))), self.inputs[-1]
        i, *rest = self.loops([Dim.of("N"), *a.type.shape[1:]])
        row = load(t, i.var)
        inside = a.type.shape[0].evaluate(SIZES) >= 3
        body = load(a, row, *(x.var for x in rest), other=None if inside else 0.25, check=inside)
        return comp(self.smooth(body), (i, *rest))

    def lazy(self) -> Node:
        a, b = self.pick(1), self.pick()
        over = self.loops(a.type.shape)
        x, y = load(a, *(i.var for i in over)), self.at(b, over)
        if self.random.random() < 0.5:
            cond = op("gt", y, self.number())
            return comp(select(cond, op("log", op("add", y, self.big())), mul(x, y)), over)
        shift = [Dim.of(over[0].var) - 1, *(i.var for i in over[1:])]
        cond = op("ge", idx(over[0].var), idx(1))
        return comp(select(cond, mul(load(a, *shift), y), self.smooth(x)), over)

    def big(self) -> Const:
        return Const("f64", 2.5)  # not less than what `number` may be, so the log is of a positive

    def updated(self) -> Node:
        base, values = self.pick(1), self.pick(1)
        over = self.loops(base.type.shape)
        value = self.smooth(self.at(values, over))
        if base.type.shape[0].evaluate(SIZES) >= 3 and self.random.random() < 0.5:
            i = Axis(over[0].var, Dim.of("N"))
            value = self.smooth(self.at(values, (i, *over[1:])))
            target = [load(self.inputs[-1], i.var), *(x.var for x in over[1:])]
            return update(base, (i, *over[1:]), target, value, accumulate="add", check=NOWHERE)
        guard = op("ge", idx(over[0].var), idx(1)) if self.random.random() < 0.5 else None
        join = self.random.choice(["", "", "add", "max", "min"])
        more = {"accumulate": join, "guard": guard}
        return update(base, over, [x.var for x in over], value, **more)

    def looped(self) -> Node:
        """A loop with one or two carried values; one of its results."""
        assert self.turns is not None
        self.count += 1
        turn = Axis(f"$t{self.count}.0", self.random.choice((Dim.of("N"), Dim.of("M"), Dim.of(2))))
        starts = [self.pick() for _ in range(self.random.randint(1, 2))]
        carries = [Input(type=s.type, name=f"c{k}", kind="carry") for k, s in enumerate(starts)]
        pool, turns = list(self.pool), self.turns
        self.turns, self.pool = [*turns, turn][-2:], [*pool, *carries]
        for _ in range(self.random.randint(1, 3)):
            made = self.node()
            if made.type.elements.evaluate(SIZES) <= 200:
                self.pool.append(made)
        ends = [self.random.choice((self.stepped(c), self.stepped(c), c)) for c in carries]
        yields = [self.pick() for _ in range(self.random.randint(0, 2))]
        self.turns, self.pool = turns, pool
        loop = Loop(
            type=carries[0].type,
            var=turn.var,
            trip=turn.extent,
            carries=tuple(carries),
            init=tuple(starts),
            next=tuple(ends),
            yields=tuple(yields),
            reverse=self.random.random() < 0.3,
        )
        results = [Part.of(loop, i) for i in range(len(loop.results))]
        self.pool += self.random.sample(results, len(results))[1:]
        return results[0]

    def stepped(self, c: Node) -> Node:
        """A next value for a carried one."""
        over = self.loops(c.type.shape)
        body = op("add", self.at(c, over), self.smooth(self.at(self.pick(), over)))
        return comp(mul(Const("f64", 0.5), body), over)


def random_graph(random: Random, length: int, loops: bool = False) -> tuple[Graph, Node]:
    """A graph of about `length` random nodes and one scalar that depends on the last ones."""
    maker = Maker(random)
    maker.turns = [] if loops else None
    for _ in range(length):
        node = maker.node()
        if node.type.elements.evaluate(SIZES) <= 200:
            maker.pool.append(node)
    ends = [total(n) for n in maker.pool[-3:]]
    body: Expr = load(ends[0])
    for e in ends[1:]:
        body = op("add", body, load(e))
    y = comp(body)
    return graph([y], maker.inputs, list(SIZES)), y
