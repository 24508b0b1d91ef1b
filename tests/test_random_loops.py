"""Random graphs with run-time loops, nested too, through lowering and code generation."""

from __future__ import annotations

import random

import numpy as np
import pytest

from nnc.ir.expr import Const, Load
from nnc.ir.graph import Graph, Input, Node, Part, Write
from nnc.ir.interpret import run as oracle
from nnc.ir.print_loop import print_program
from nnc.ir.scalar import add, cast, mul, op
from nnc.lang.dims import Dim
from nnc.passes import partials, storage
from nnc.passes.schedule import nest as schedule_nest
from tests.graphs import comp, d, graph, idx, inp, load, sample, update
from tests.lowering import check
from tests.native import NUMPY, native
from tests.test_lower import EXTENTS, Maker
from tests.turns import carry, loop


class LoopMaker(Maker):
    """Random graphs with loops. `turns`: the variables of the loops around, with their trips."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.turns: list[tuple[str, Dim]] = []
        self.count = 0
        self.outside: list[Node] = []

    def step(self) -> None:
        if self.turns and self.rng.random() < 0.35:
            self.values.append(self.rng.choice((self.slice, self.updated, self.numbered))())
        elif len(self.turns) < 2 and self.rng.random() < (0.1 if self.turns else 0.3):
            self.values += self.loop()
        else:
            super().step()

    def special(self) -> Node:
        return self.gathered() if self.turns else super().special()

    def gathered(self) -> Node:
        if self.ids is None:
            self.ids = inp("ids", "B", dtype="i32")
            self.inputs.append(self.ids)
        t = self.pick(1)
        over = self.over(t)
        row = load(self.ids, 0)
        body = Load("f64", t, (row, *(idx(a.var) for a in over[1:])), Const("f64", 0.5))
        return comp(body, over[1:])

    def slice(self) -> Node:
        """What a turn reads of something stacked."""
        var, trip = self.rng.choice(self.turns)
        t = self.input(trip, self.rng.choice(EXTENTS))
        over = self.over(t)[1:]
        return comp(op("sin", load(t, var, *(a.var for a in over))), over)

    def numbered(self) -> Node:
        over = self.over(self.pick())
        turn = cast(idx(self.rng.choice(self.turns)[0]), "f64")
        return comp(op("cos", add(turn, self.mixed(over))), over)

    def updated(self) -> Node:
        """A value with one row, or some, replaced or added to."""
        t = self.pick(1)
        var, trip = self.turns[-1]
        over = self.over(t)
        value = self.mixed(over)
        if t.type.shape[0] == trip and self.rng.random() < 0.6:
            target = [d(var), *(a.var for a in over[1:])]
            return update(t, over[1:], target, self.mixed(over[1:]))
        guard = op("ge", idx(over[0].var), idx(1)) if self.rng.random() < 0.5 else None
        more = {"accumulate": self.rng.choice(["", "", "add", "max", "min"]), "guard": guard}
        return update(t, over, [a.var for a in over], value, **more)

    # ---- loops ----------------------------------------------------------------------------------

    def loop(self) -> tuple[Part, ...]:
        self.count += 1
        var = f"$t.{self.count}"
        trip = Dim.of(self.rng.choice(("T", "B", 3, 1)))
        init = [self.pick() for _ in range(self.rng.randint(1, 3))]
        carries = [carry(f"c{self.count}", *x.type.shape) for x in init]
        around, self.values = self.values, [*self.rng.sample(self.values, 2), *carries]
        self.turns.append((var, trip))
        for _ in range(self.rng.randint(1, 6)):
            self.step()
        nexts = [self.next(c, carries) for c in carries]
        yields = [self.pick() for _ in range(self.rng.randint(0, 2))]
        more: dict[str, object] = {"reverse": self.rng.random() < 0.2}
        if self.rng.random() < 0.2:
            yields, more = [], {"cond": self.condition(carries[0])}
        self.turns.pop()
        self.values = around
        triples = list(zip(carries, init, nexts, strict=True))
        return loop(var, trip, triples, yields, **more)

    def condition(self, c: Input) -> Node:
        over = self.over(c)
        least = comp(self.read(c, over), (), "min", over) if over else c
        return comp(op("lt", load(least), Const("f64", self.rng.choice((-0.5, 0.5, 5.0)))))

    def next(self, c: Input, carries: list[Input]) -> Node:
        """A value of the body, another carry, a capture; mostly one of modest size."""
        like = [v for v in self.values if v.type == c.type]
        match self.rng.randint(0, 5):
            case 0:
                return self.rng.choice([k for k in carries if k.type == c.type])
            case 1:
                return self.rng.choice(like)
        over = self.over(c)
        fresh = add(self.read(self.rng.choice(like), over), self.mixed(over))
        if self.rng.random() < 0.3 and over:
            turned = (*(a.var for a in over[:-1]), over[-1].extent - 1 - d(over[-1].var))
            fresh = mul(fresh, load(c, *turned))
        return comp(op("tanh", mul(fresh, Const("f64", 0.05))), over)  # no chaos

    def storage(self) -> None:
        if self.turns:
            return
        if self.rng.random() < 0.5:
            super().storage()
            return
        t = self.pick()
        state = self.input(*t.type.shape, kind="state")
        self.values.append(state)
        parts = self.loop()
        self.values += parts
        fits = [p for p in parts if p.type == state.type]
        if fits:
            self.writes.append(Write(state, fits[0]))

    def make(self, steps: int) -> Graph:
        self.values = [self.input("B", "T"), self.input("T", 5), self.input("B", 5, "T")]
        for _ in range(steps):
            self.step()
            if self.rng.random() < 0.2:
                self.storage()
        self.values += self.loop()
        results = [*self.rng.sample(self.values, 2), self.values[-1]]
        return graph(results, self.inputs, ["B", "T"], self.writes)


def maps(seed: int) -> tuple[Graph, dict[str, int]]:
    sizes = {"B": 1 + seed % 4, "T": 1 + seed // 4 % 5}
    return LoopMaker(seed).make(random.Random(seed).randint(0, 5)), sizes


def differ(seed: int) -> None:
    g, sizes = maps(seed)
    check(g, sizes, inputs=sample(g.inputs, sizes, seed))


def differ_native(seed: int) -> None:
    g, sizes = maps(seed)
    values = sample(g.inputs, sizes, seed)
    p = check(g, sizes, inputs=values)
    compiled = native(p)
    for dims in (sizes, {"B": 40 + seed % 5, "T": 5 + seed % 7}):
        values = sample(g.inputs, dims, seed)
        want = oracle(g, dims, values)
        arrays = [np.asarray(values[i.name]).astype(NUMPY[i.type.dtype]) for i in g.inputs]
        arrays += [np.zeros([n.evaluate(dims) for n in r.type.shape]) for r in g.results]
        for threads in (1, 2, 3):
            got = compiled.run(arrays, dims, threads=threads)
            after = [want.writes.get(i.name, values[i.name]) for i in g.inputs]
            for x, y in zip(got, (*after, *want.results), strict=True):
                np.testing.assert_allclose(
                    x, y, rtol=1e-8, atol=1e-8, err_msg=f"{dims} {threads}\n{print_program(p)}"
                )


@pytest.mark.parametrize("seed", range(20))
def test_random_loops(seed: int) -> None:
    differ(seed)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """All loops of kernels are long: they are cut, and reductions are split."""
    for name, value in {"LONG": 4, "PIECE": 4, "ROWS": 2, "FEW": 100, "LANES": 2}.items():
        monkeypatch.setattr(partials, name, value)
    for name, value in {"CHUNK": 3, "REDUCED_CHUNK": 2, "SHORT": 2, "TILE": 2}.items():
        monkeypatch.setattr(schedule_nest, name, value)
    monkeypatch.setattr(storage, "STRIP_BYTES", 16)


@pytest.mark.parametrize("seed", range(20, 30))
def test_random_loops_in_short_pieces(seed: int, short: None) -> None:
    differ(seed)


@pytest.mark.parametrize("seed", range(30, 38))
def test_random_loops_native(seed: int) -> None:
    differ_native(seed)


@pytest.mark.parametrize("seed", range(38, 44))
def test_random_loops_native_on_threads(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel counts as small."""
    for name in ("spmd._SMALL", "spmd._SMALL_TURN", "entry._SMALL_PROGRAM"):
        monkeypatch.setattr(f"nnc.codegen.{name}", 1)
    differ_native(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 2000))
def test_many_random_loops(seed: int) -> None:
    differ(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2000, 2300))
def test_many_random_loops_native(seed: int) -> None:
    differ_native(seed)
