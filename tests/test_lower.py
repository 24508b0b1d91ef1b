"""Lowering against the interpreter on random graphs; what the checker of Programs catches."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from nnc.ir.expr import Expr, Idx, Load, Select, Var, rewrite
from nnc.ir.graph import Axis, Compute, Graph, Input, Node, Write, toposort
from nnc.ir.loop import Buffer, Program, Store
from nnc.ir.scalar import add, cast, const, mul, op, sub
from nnc.ir.statements import map_stmts
from nnc.lang.dims import Dim
from nnc.passes import partials, storage
from nnc.passes.autodiff import autodiff
from nnc.passes.schedule import nest as schedule_nest
from nnc.passes.simplify import simplify
from nnc.passes.verify_loop import verify
from tests.graphs import axes, comp, d, grads, graph, inp, load, sample, total, update
from tests.lowering import check, compile_graph, loops

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
        new = update(table, axes(b="B", t="T"), (cast(row, "i64"), "$t"), value, accumulate="add")
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
    return x in toposort([y])


def differ(seed: int) -> None:
    g = Maker(seed).make(random.Random(seed).randint(1, 14))
    sizes = {"B": 1 + seed % 4, "T": 1 + seed // 4 % 5}
    check(g, sizes, inputs=sample(g.inputs, sizes, seed))


@pytest.mark.parametrize("seed", range(30))
def test_random_graphs(seed: int) -> None:
    differ(seed)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """All loops are long: they are cut, and reductions are split."""
    for name, value in {"LONG": 4, "PIECE": 4, "ROWS": 2, "FEW": 100, "LANES": 2}.items():
        monkeypatch.setattr(partials, name, value)
    for name, value in {"CHUNK": 3, "REDUCED_CHUNK": 2, "SHORT": 2, "TILE": 2}.items():
        monkeypatch.setattr(schedule_nest, name, value)
    monkeypatch.setattr(storage, "STRIP_BYTES", 16)


@pytest.mark.parametrize("seed", range(30, 60))
def test_random_graphs_in_short_pieces(seed: int, short: None) -> None:
    differ(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 2100))
def test_many_random_graphs(seed: int) -> None:
    differ(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2100, 4100))
def test_many_random_graphs_in_short_pieces(seed: int, short: None) -> None:
    differ(seed)


# ---- splitting ----------------------------------------------------------------------------------


def whole(t: Node, fn: str = "sum") -> Compute:
    over = tuple(Axis(f"$i{j}", n) for j, n in enumerate(t.type.shape))
    return comp(load(t, *(a.var for a in over)), (), fn, over)


@pytest.mark.parametrize("shape", [("B", "T"), (20000,), (150, 130), ("B", 33, "T")])
def test_long_reductions_have_two_kernels(shape: tuple[object, ...]) -> None:
    x = inp("x", *shape)  # type: ignore[arg-type]
    s = whole(x)
    mean = comp(op("div", load(s), const(3, s.body)))
    p = check(graph([mean], [x], ["B", "T"]), SIZES, kernels=2)
    assert loops(p.kernels[0]) == [("parallel", "$piece")]


def test_column_sums_in_pieces() -> None:
    x = inp("x", "B", "T", 10)
    s = comp(load(x, "$b", "$t", "$o"), axes(o=10), "sum", axes(b="B", t="T"))
    check(graph([s], [x], ["B", "T"]), SIZES, kernels=2)
    x = inp("x", "B", 10)
    s = comp(load(x, "$b", "$o"), axes(o=10), "sum", axes(b="B"))
    check(graph([s], [x], ["B", "T"]), SIZES, kernels=1)


def test_half_precision_accumulates_in_f32() -> None:
    x = inp("x", "B", "T", dtype="f16")
    p = check(graph([whole(x)], [x], ["B", "T"]), SIZES, kernels=2)
    assert [b.type.dtype for b in p.buffers] == ["f32"]


def test_transposed_reads_are_tiled() -> None:
    x, y = inp("x", "B", "T"), inp("y", "T", "B")
    turned = comp(add(load(x, "$j", "$i"), load(y, "$i", "$j")), axes(i="T", j="B"))
    p = check(graph([turned], [x, y], ["B", "T"]), {"B": 35, "T": 18}, kernels=1)
    kinds = [kind for kind, _ in loops(p.kernels[0])]
    assert kinds == ["parallel", "parallel", "serial", "vector"]


# ---- what the checker catches -------------------------------------------------------------------


def softmax_program() -> Program:
    x = inp("x", "B", "T")
    m = comp(load(x, "$b", "$t"), axes(b="B"), "max", axes(t="T"))
    e = comp(op("exp", sub(load(x, "$b", "$t"), load(m, "$b"))), axes(b="B", t="T"))
    s = comp(load(e, "$b", "$t"), axes(b="B"), "sum", axes(t="T"))
    y = comp(op("div", load(e, "$b", "$t"), load(s, "$b")), axes(b="B", t="T"))
    return compile_graph(graph([y], [x], ["B", "T"]))


def mutated(p: Program, fn: Callable[[Expr], Expr]) -> Program:
    steps = tuple(replace(k, body=map_stmts(k.body, lambda e: rewrite(e, fn))) for k in p.kernels)
    return replace(p, steps=steps)


def caught(p: Program, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        verify(p, "planting")


def test_an_index_off_by_one_is_caught() -> None:
    def fn(e: Expr) -> Expr:
        if isinstance(e, Load) and e.tensor.type.rank == 2:
            assert isinstance(e.index[1], Idx)
            return replace(e, index=(e.index[0], Idx(e.index[1].dim + 1)))
        return e

    caught(mutated(softmax_program(), fn), "may leave 0..T-1")


def test_a_read_of_another_row_is_caught() -> None:
    def fn(e: Expr) -> Expr:
        if isinstance(e, Load) and isinstance(e.tensor, Buffer) and e.tensor.name == "result0":
            return replace(e, index=(Idx(d(0)), e.index[1]))
        return e

    caught(mutated(softmax_program(), fn), "may be written by another iteration")


def test_a_race_is_caught() -> None:
    p = softmax_program()

    def place(s: Store) -> tuple[Buffer, tuple[Expr, ...]]:
        return s.buffer, (Idx(d(0)), s.index[1])

    k = replace(p.kernels[0], body=map_stmts(p.kernels[0].body, lambda e: e, place))
    caught(replace(p, steps=(k,)), "iterations may store to one element")


def test_a_missing_kernel_is_caught() -> None:
    x = inp("x", "B", "T")
    p = compile_graph(graph([whole(x)], [x], ["B", "T"]))
    caught(replace(p, steps=p.steps[1:]), "sum is read before it is written")
    caught(replace(p, steps=p.steps[:1]), "nothing writes result0")


def test_unbound_names_are_caught() -> None:
    p = mutated(softmax_program(), lambda e: Var(e.dtype, "lost") if isinstance(e, Load) else e)
    caught(p, "unbound scalar lost")
    p = mutated(softmax_program(), lambda e: Idx(d("$q")) if isinstance(e, Idx) else e)
    caught(p, "unbound .q")
