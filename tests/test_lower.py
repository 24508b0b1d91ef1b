"""Lowering against the interpreter on random graphs; what the checker of Programs catches."""

from __future__ import annotations

import random

import pytest

from nnc.ir.expr import Expr, Idx, Load, Select
from nnc.ir.graph import Axis, Compute, Graph, Input, Node, Write
from nnc.ir.scalar import add, cast, const, mul, op, sub
from nnc.lang.dims import Dim
from nnc.passes.autodiff import autodiff
from nnc.passes.simplify import simplify
from tests.graphs import axes, comp, d, grads, graph, inp, load, sample, total, update
from tests.lowering import check

SIZES = {"B": 3, "T": 4}
EXTENTS = ("B", "T", 2, 1, 5)


class Maker:
    """Random graphs over a few axes."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.inputs: list[Input] = []
        self.values: list[Node] = []
        self.writes: list[Write] = []
        self.ids: Input | None = None

    def input(self, *shape: object, kind: str = "arg") -> Input:
        new = inp(f"x{len(self.inputs)}", *shape, kind=kind)  # type: ignore[arg-type]
        self.inputs.append(new)
        return new

    def shape(self) -> tuple[Dim, ...]:
        return tuple(Dim.of(self.rng.choice(EXTENTS)) for _ in range(self.rng.randint(0, 3)))

    def pick(self, least: int = 0) -> Node:
        fits = [v for v in self.values if v.type.rank >= least]
        return self.rng.choice(fits[-6:]) if fits else self.input("B", "T")

    def over(self, t: Node) -> tuple[Axis, ...]:
        return tuple(Axis(f"$i{j}", n) for j, n in enumerate(t.type.shape))

    def read(self, t: Node, over: tuple[Axis, ...]) -> Expr:
        """An element of t for loops `over`, by equal extents, else at 0."""
        left = list(over)
        index: list[Expr] = []
        for n in t.type.shape:
            found = next((a for a in left if a.extent == n), None)
            left = [a for a in left if a is not found]
            index.append(Idx(Dim.of(found.var) if found else Dim.of(0)))
        return Load(t.type.dtype, t, tuple(index))

    def mixed(self, over: tuple[Axis, ...]) -> Expr:
        e = self.read(self.pick(), over)
        for _ in range(self.rng.randint(0, 2)):
            other = self.read(self.pick(), over)
            e = self.rng.choice((add, sub, mul))(e, other)
        match self.rng.randint(0, 5):
            case 0:
                return op("tanh", e)
            case 1:
                return op("max", e, const(0, e))
            case 2:
                return Select("f64", op("gt", e, const(0, e)), e, self.read(self.pick(), over))
            case 3 if over:
                return mul(e, cast(Idx(Dim.of(over[-1].var) + 1), "f64"))
        return e

    def step(self) -> None:
        match self.rng.randint(0, 9):
            case 0 | 1 | 2:
                over = self.over(self.pick())
                new: Node = comp(self.mixed(over), over)
            case 3 | 4:
                new = self.reduction()
            case 5 | 6:
                new = self.product()
            case 7:
                t = self.pick(2)
                over = self.over(t)
                order = list(over)
                self.rng.shuffle(order)
                new = comp(load(t, *(a.var for a in over)), tuple(order))
            case 8:
                t = self.pick(1)
                over = self.over(t)
                last = over[-1]
                cut = (*(a.var for a in over[:-1]), last.extent - 1 - d(last.var))
                new = comp(load(t, *cut), over)
            case _:
                new = self.special()
        self.values.append(new)

    def reduction(self) -> Compute:
        over = self.over(self.pick(1))
        n = self.rng.randint(1, len(over))
        reduced = self.rng.sample(over, n)
        kept = tuple(a for a in over if a not in reduced)
        fn = self.rng.choice(("sum", "sum", "max", "min"))
        return comp(self.mixed(over), kept, fn, tuple(a for a in over if a in reduced))

    def product(self) -> Compute:
        x, y = self.pick(2), self.pick(2)
        k = self.rng.choice(x.type.shape)
        if k not in y.type.shape:
            y = self.input(k, self.rng.choice(EXTENTS))

        def index(t: Node, name: str) -> tuple[list[str], list[Axis]]:
            names, mine, seen = [], [], False
            for j, n in enumerate(t.type.shape):
                if n == k and not seen:
                    names.append("$k")
                    seen = True
                else:
                    names.append(f"${name}{j}")
                    mine.append(Axis(f"${name}{j}", n))
            return names, mine

        xi, xa = index(x, "m")
        yi, ya = index(y, "n")
        kept = [*xa, *ya][:4]
        if len(xa) + len(ya) > 4:
            return self.reduction()
        if self.rng.random() < 0.3:
            self.rng.shuffle(kept)
        return comp(mul(load(x, *xi), load(y, *yi)), tuple(kept), "sum", axes(k=k))

    def special(self) -> Node:
        if self.ids is None:
            self.ids = inp("ids", "B", dtype="i32")
            self.inputs.append(self.ids)
        row = load(self.ids, "$b")
        table = self.input(6, "T", kind="state")
        if self.rng.random() < 0.5:
            return comp(load(table, row, "$t", check=True), axes(b="B", t="T"))
        value = self.mixed(axes(b="B", t="T"))
        new = update(table, axes(b="B", t="T"), (cast(row, "i64"), "$t"), value, accumulate=True)
        if self.rng.random() < 0.5:
            self.writes.append(Write(table, new))
        return new

    def storage(self) -> None:
        """A state that becomes a function of itself and others."""
        t = self.pick()
        state = self.input(*t.type.shape, kind="state")
        over = self.over(t)
        e = add(self.read(state, over), self.read(t, over))
        if self.rng.random() < 0.3 and over:
            e = add(load(state, *(a.extent - 1 - d(a.var) for a in over)), e)
        new = comp(e, over)
        self.writes.append(Write(state, new))
        if self.rng.random() < 0.5:
            self.values.append(new)
        if self.rng.random() < 0.3:
            self.values.append(state)

    def make(self, steps: int) -> Graph:
        self.values = [self.input("B", "T"), self.input("T", 5), self.input("B", 5, "T")]
        for _ in range(steps):
            self.step()
            if self.rng.random() < 0.15:
                self.storage()
        results = self.rng.sample(self.values, min(2, len(self.values)))
        results.append(self.values[-1])
        if self.rng.random() < 0.3:
            wanted = self.inputs[0], self.inputs[1]
            y = total(self.values[-1])
            if all(_depends(y, w) for w in wanted):
                results += grads(y, *wanted)
        g = graph(results, self.inputs, ["B", "T"], self.writes)
        return simplify(autodiff(g))


def _depends(y: Node, x: Node) -> bool:
    from nnc.ir.graph import toposort

    return x in toposort([y])


def differ(seed: int) -> None:
    g = Maker(seed).make(random.Random(seed).randint(1, 14))
    sizes = {"B": 1 + seed % 4, "T": 1 + seed // 4 % 5}
    check(g, sizes, inputs=sample(g.inputs, sizes, seed))


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs(seed: int) -> None:
    differ(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 2100))
def test_many_random_graphs(seed: int) -> None:
    differ(seed)
