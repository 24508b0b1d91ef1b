"""Run-time loops through lowering and code generation, against the oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nnc.ir.expr import Const
from nnc.ir.graph import Graph, Node, Write
from nnc.ir.interpret import run as oracle
from nnc.ir.loop import Commit, Kernel, Program, Repeat, Step
from nnc.ir.print_loop import print_program
from nnc.ir.scalar import add, cast, mul, op, sub
from nnc.lang.dims import Dim
from nnc.passes.fuse import fuse, print_fused
from nnc.passes.verify_loop import verify
from tests.graphs import axes, comp, graph, idx, inp, load, sample, update
from tests.lowering import check, compile_graph
from tests.native import NUMPY, IndexFailure, native
from tests.turns import carry, loop

SIZES = ({"B": 3, "T": 1}, {"B": 5, "T": 4}, {"B": 33, "T": 7})


def agree(
    g: Graph,
    sizes: Sequence[Mapping[str, int]] = SIZES,
    inputs: Mapping[str, Any] | None = None,
    few: int = 1,
) -> Program:
    """Asserts that the Program and the native code compute what the Graph means.

    `few`: so many of the sizes are run on the slow interpreter of Programs.
    """
    for dims in sizes[:few]:
        p = check(g, dims, inputs=inputs)
    compiled = native(p)
    for dims in sizes:
        values = dict(inputs or sample(g.inputs, dims))
        want = oracle(g, dims, values)
        arrays = [np.asarray(values[i.name]).astype(NUMPY[i.type.dtype]) for i in g.inputs]
        for r in g.results:
            shape = [d.evaluate(dims) for d in r.type.shape]
            arrays.append(np.zeros(shape, NUMPY[r.type.dtype]))
        after = {i.name: want.writes.get(i.name, a) for i, a in zip(g.inputs, arrays, strict=False)}
        for threads in (1, 2, 3):
            got = compiled.run(arrays, dims, threads=threads)
            for x, y in zip(got, (*after.values(), *want.results), strict=True):
                tolerance = 1e-5 if x.dtype == np.float32 else 1e-9
                note = f"{dims}, {threads} threads\n{print_program(p)}"
                np.testing.assert_allclose(x, y, rtol=1e-9, atol=tolerance, err_msg=note)
    return p


def kinds(steps: Sequence[Step]) -> list[object]:
    """The steps in short: names of kernels less their numbers, loops as lists."""
    out: list[object] = []
    for s in steps:
        match s:
            case Kernel():
                out.append(s.name.split("_", 1)[1])
            case Repeat():
                out.append(kinds((*s.before, *s.steps)))
            case Commit():
                out.append("commit")
    return out


def zeros(*shape: Any, dtype: str = "f64") -> Node:
    over = axes(**{f"z{k}": n for k, n in enumerate(shape)})
    return comp(Const(dtype, 0.0 if dtype.startswith("f") else 0), over)


# ---- carried values -----------------------------------------------------------------------------


def test_sum_over_turns() -> None:
    x = inp("x", "T", "B")
    (i,) = over = axes(i="B")
    s = carry("s", "B")
    new = comp(add(load(s, "$i"), load(x, "$t.0", i.var)), over)
    (end,) = loop("$t.0", "T", [(s, zeros("B"), new)])
    p = agree(graph([end], [x], ["B", "T"]))
    assert kinds(p.steps) == ["map", ["map"]], print_program(p)


def test_no_turn() -> None:
    x, y = inp("x", "T", "B"), inp("y", "B")
    over = axes(i="B")
    s = carry("s", "B")
    new = comp(add(load(s, "$i"), load(x, "$t.0", "$i")), over)
    end, so_far = loop("$t.0", "T", [(s, y, new)], [new])
    agree(graph([end, so_far], [x, y], ["B", "T"]), [{"B": 4, "T": 2}, {"B": 4, "T": 0}])


def test_two_carries_swap() -> None:
    x, y = inp("x", "B"), inp("y", "B")
    a, b = carry("a", "B"), carry("b", "B")
    ends = loop("$t.0", "T", [(a, x, b), (b, y, a)])
    agree(graph(ends, [x, y], ["B", "T"]))


def test_fibonacci_swaps_with_arithmetic() -> None:
    x, y = inp("x", "B"), inp("y", "B")
    a, b = carry("a", "B"), carry("b", "B")
    new = comp(add(load(a, "$i"), load(b, "$i")), axes(i="B"))
    agree(graph(loop("$t.0", "T", [(a, x, b), (b, y, new)]), [x, y], ["B", "T"]))


def test_turned_round_in_place() -> None:
    """The next value reads the old one at other places: it cannot be stored over it at once."""
    x = inp("x", "B")
    a = carry("a", "B")
    last = idx("B").dim - 1 - idx("$i").dim
    new = comp(add(load(a, last), op("cos", load(a, "$i"))), axes(i="B"))
    agree(graph(loop("$t.0", "T", [(a, x, new)]), [x], ["B", "T"]))


def test_carries_of_several_types() -> None:
    x = inp("x", "T", "B", dtype="f32")
    n, s, hit = carry("n", dtype="i32"), carry("s", "B", dtype="f32"), carry("hit", dtype="bool")
    new_n = comp(add(load(n), Const("i32", 3)))
    new_s = comp(add(load(s, "$i"), load(x, "$t.0", "$i")), axes(i="B"))
    new_hit = comp(op("or", load(hit), op("gt", load(new_s, 0), Const("f32", 1.0))))
    ends = loop(
        "$t.0",
        "T",
        [
            (n, zeros(dtype="i32"), new_n),
            (s, zeros("B", dtype="f32"), new_s),
            (hit, comp(Const("bool", False)), new_hit),
        ],
        [new_n],
    )
    agree(graph(ends, [x], ["B", "T"]))


# ---- yields -------------------------------------------------------------------------------------


def test_sums_so_far() -> None:
    x = inp("x", "T", "B")
    s = carry("s", "B")
    new = comp(add(load(s, "$i"), load(x, "$t.0", "$i")), axes(i="B"))
    _, so_far = loop("$t.0", "T", [(s, zeros("B"), new)], [new])
    p = agree(graph([so_far], [x], ["B", "T"]))
    assert kinds(p.steps)[-1] == ["rows"], print_program(p)


def test_yields_of_a_carry_a_capture_and_the_variable() -> None:
    x, y = inp("x", "B"), inp("y", "B")
    s = carry("s", "B")
    new = comp(mul(load(s, "$i"), load(y, "$i")), axes(i="B"))
    turn = comp(cast(idx("$t.0"), "f64"))
    out = loop("$t.0", "T", [(s, x, new)], [s, y, new, turn])
    agree(graph(out, [x, y], ["B", "T"]))


def test_without_carries() -> None:
    x = inp("x", "T", "B")
    (end,) = loop("$t.0", "T", [], [comp(op("sin", load(x, "$t.0", "$i")), axes(i="B"))])
    agree(graph([end], [x], ["B", "T"]))


def test_backwards() -> None:
    x = inp("x", "T", "B")
    s = carry("s", "B")
    old = mul(load(s, "$i"), Const("f64", 0.5))
    new = comp(add(old, load(x, "$t.0", "$i")), axes(i="B"))
    out = loop("$t.0", "T", [(s, zeros("B"), new)], [new], reverse=True)
    agree(graph(out, [x], ["B", "T"]))


def test_results_read_by_what_follows() -> None:
    x = inp("x", "T", "B")
    s = carry("s", "B")
    new = comp(add(load(s, "$i"), load(x, "$t.0", "$i")), axes(i="B"))
    end, so_far = loop("$t.0", "T", [(s, zeros("B"), new)], [new])
    i, t = axes(i="B", t="T")
    both = comp(mul(load(end, "$i"), load(so_far, "$t", "$i")), (i,), "sum", (t,))
    agree(graph([both, end], [x], ["B", "T"]))


# ---- recurrent cells ----------------------------------------------------------------------------


def rnn(hidden: int = 8) -> tuple[Graph, list[Node]]:
    x, w, u = inp("x", "T", "B", 6), inp("w", 6, hidden), inp("u", hidden, hidden)
    h = carry("h", "B", hidden)
    b, j, k, m = axes(b="B", j=hidden, k=6, m=hidden)
    left = comp(mul(load(x, "$t.0", "$b", "$k"), load(w, "$k", "$j")), (b, j), "sum", (k,))
    right = comp(mul(load(h, "$b", "$m"), load(u, "$m", "$j")), (b, j), "sum", (m,))
    both = add(load(left, "$b", "$j"), load(right, "$b", "$j"))
    new = comp(op("tanh", both), (b, j))
    out = loop("$t.0", "T", [(h, zeros("B", hidden), new)], [new])
    return graph(out, [x, w, u], ["B", "T"]), list(out)


@pytest.mark.parametrize("hidden", [8, 40])
def test_recurrent_cell(hidden: int) -> None:
    g, _ = rnn(hidden)
    p = agree(g, [{"B": 2, "T": 2}, {"B": 17, "T": 9}])
    assert sum("contract" in k.name for k in p.kernels) == 2


def test_view_of_a_weight_is_read_in_place() -> None:
    """A transposed capture is not stored, a costly one is computed once."""
    x, w = inp("x", "B"), inp("w", "B", "B")
    i, j = axes(i="B", j="B")
    turned = comp(load(w, "$j", "$i"), (i, j))
    costly = comp(op("exp", load(w, "$i", "$j")), (i, j))
    s = carry("s", "B")
    weight = mul(load(turned, "$i", "$j"), load(costly, "$i", "$j"))
    new = comp(mul(weight, load(s, "$j")), (i,), "sum", (j,))
    soft = comp(op("tanh", load(new, "$i")), (i,))
    p = agree(graph(loop("$t.0", "T", [(s, x, soft)]), [x, w], ["B", "T"]))
    outside = [s for s in p.steps if isinstance(s, Kernel)]
    assert sum("exp" in k.reason for k in outside) == 1
    assert not any(k.reason == "copy" for k in outside)


# ---- loops in loops -----------------------------------------------------------------------------


def nested() -> Graph:
    """s over the outer loop; the inner one adds x[t, u] * s to a sum that starts with s."""
    x, y = inp("x", "T", "U", "B"), inp("y", "B")
    over = axes(i="B")
    s, r = carry("s", "B"), carry("r", "B")
    start = comp(op("tanh", load(s, "$i")), over)
    term = mul(load(x, "$t.0", "$u.0", "$i"), op("sin", load(s, "$i")))
    step = comp(add(load(r, "$i"), term), over)
    inner_end, inner_all = loop("$u.0", "U", [(r, start, step)], [step])
    out = loop("$t.0", "T", [(s, y, inner_end)], [inner_all, start])
    return graph(out, [x, y], ["B", "T", "U"])


NESTED = [{"B": 3, "T": 2, "U": 3}, {"B": 4, "T": 1, "U": 1}, {"B": 20, "T": 5, "U": 4}]


def test_nested() -> None:
    agree(nested(), NESTED)


def test_carry_handed_to_the_inner_loop() -> None:
    y = inp("y", "B")
    over = axes(i="B")
    s, r = carry("s", "B"), carry("r", "B")
    step = comp(add(load(r, "$i"), cast(idx("$t.0"), "f64")), over)
    (inner,) = loop("$u.0", "U", [(r, s, step)])
    p = agree(graph(loop("$t.0", "T", [(s, y, inner)]), [y], ["B", "T", "U"]), NESTED)
    assert kinds(p.steps) == ["copy", [["map"]]], print_program(p)


def test_loop_after_loop() -> None:
    x = inp("x", "T", "B")
    over = axes(i="B")
    a, b = carry("a", "B"), carry("b", "B")
    first = comp(add(load(a, "$i"), load(x, "$t.0", "$i")), over)
    (half,) = loop("$t.0", "T", [(a, zeros("B"), first)])
    second = comp(sub(mul(load(b, "$i"), Const("f64", 0.5)), load(x, "$u.0", "$i")), over)
    (end,) = loop("$u.0", "T", [(b, half, second)])
    p = agree(graph([end], [x], ["B", "T"]))
    agree(graph([end, half], [x], ["B", "T"]))
    assert kinds(p.steps) == ["map", ["map"], "copy", ["map"]], print_program(p)


# ---- conditions ---------------------------------------------------------------------------------


def test_while() -> None:
    """Doubles until something is large."""
    x = inp("x", "B")
    over = axes(i="B")
    s, n = carry("s", "B"), carry("n", dtype="i32")
    top = comp(op("abs", load(s, "$i")), (), "max", over)
    small = comp(op("lt", load(top), Const("f64", 40.0)))
    double = comp(mul(load(s, "$i"), Const("f64", 2.0)), over)
    count = comp(add(load(n), Const("i32", 1)))
    out = loop("$t.0", "T", [(s, x, double), (n, zeros(dtype="i32"), count)], cond=small)
    g = graph(out, [x], ["B", "T"])
    agree(g, [{"B": 3, "T": 9}, {"B": 4, "T": 2}, {"B": 40, "T": 100}, {"B": 2, "T": 0}])
    for go in (False, True):
        out = loop("$t.0", "T", [(s, x, double)], cond=comp(Const("bool", go)))
        agree(graph(out, [x], ["B", "T"]))


def test_while_a_carry_holds() -> None:
    x = inp("x", "B")
    s, go = carry("s", "B"), carry("go", dtype="bool")
    new = comp(add(load(s, "$i"), Const("f64", 1.0)), axes(i="B"))
    more = comp(op("lt", load(new, 0), Const("f64", 3.0)))
    out = loop("$t.0", "T", [(s, x, new), (go, comp(Const("bool", True)), more)], cond=go)
    agree(graph(out, [x], ["B", "T"]))


# ---- storage ------------------------------------------------------------------------------------


def test_storage_is_updated_in_place() -> None:
    """A row of storage for each turn: no copy of the storage."""
    x, cache = inp("x", "T", "B"), inp("cache", "T", "B", kind="state")
    c = carry("c", "T", "B")
    new = update(c, axes(i="B"), ["$t.0", "$i"], add(load(x, "$t.0", "$i"), load(c, "$t.0", "$i")))
    (end,) = loop("$t.0", "T", [(c, cache, new)])
    p = agree(graph([], [x, cache], ["B", "T"], [Write(cache, end)]))
    assert kinds(p.steps) == [["update"]], print_program(p)


def test_storage_read_by_others() -> None:
    """The old version is read in the loop: it works on a copy."""
    w = inp("w", "B", kind="param")
    s = carry("s", "B")
    new = comp(add(mul(load(s, "$i"), Const("f64", 0.5)), load(w, "$i")), axes(i="B"))
    (end,) = loop("$t.0", "T", [(s, w, new)])
    p = agree(graph([], [w], ["B", "T"], [Write(w, end)]))
    assert kinds(p.steps) == ["copy", ["map"], "copy"], print_program(p)


def test_an_index_error_in_a_loop_leaves_storage_alone() -> None:
    table, ids = inp("table", 5, "B"), inp("ids", "T", dtype="i32")
    w = inp("w", "B", kind="param")
    s = carry("s", "B")
    row = load(table, load(ids, "$t.0"), "$i", check=True)
    new = comp(add(load(s, "$i"), row), axes(i="B"))
    end, seen = loop("$t.0", "T", [(s, w, new)], [new])
    g = graph([seen], [table, ids, w], ["B", "T"], [Write(w, end)])
    sizes = {"B": 9, "T": 6}
    good = {**sample(g.inputs, sizes), "ids": np.array([0, 4, 2, 3, 1, 1])}
    p = agree(g, [sizes], good)
    assert kinds(p.steps).count("commit") == 1
    bad = {**good, "ids": np.array([0, 4, 2, 5, 1, 7])}
    arrays = [bad[i.name].astype(NUMPY[i.type.dtype]) for i in g.inputs]
    held = [*arrays, np.zeros((6, 9))]
    compiled = native(p)
    for threads in (1, 2, 3):
        with pytest.raises(IndexFailure) as failure:
            compiled.run(held, sizes, threads=threads)
        assert failure.value.value == 5 and failure.value.extent == 5


# ---- many turns, large turns --------------------------------------------------------------------


def test_many_small_turns() -> None:
    g, _ = rnn()
    agree(g, [{"B": 2, "T": 2}, {"B": 2, "T": 3000}])


def test_turns_on_all_threads() -> None:
    """Kernels large enough for several threads, and small ones that depend on them."""
    x = inp("x", "T", "B")
    over = axes(i="B")
    s, m = carry("s", "B"), carry("m")
    last = idx("B").dim - 1 - idx("$i").dim
    turned = add(mul(load(s, last), load(m)), load(x, "$t.0", "$i"))
    new = comp(op("sin", turned), over)
    mean = comp(op("div", load(comp(load(new, "$i"), (), "max", over)), Const("f64", 2.0)))
    out = loop("$t.0", "T", [(s, zeros("B"), new), (m, zeros(), mean)], [new, mean])
    sizes = [{"B": 5, "T": 3}, {"B": 50_000, "T": 1}, {"B": 50_000, "T": 6}, {"B": 900, "T": 60}]
    agree(graph(out, [x], ["B", "T"]), sizes)
    agree(rnn(40)[0], [{"B": 2, "T": 2}, {"B": 64, "T": 7}])


def test_nested_turns_on_all_threads() -> None:
    agree(nested(), [NESTED[0], {"B": 60_000, "T": 3, "U": 3}])


def test_while_on_all_threads() -> None:
    x = inp("x", "B")
    over = axes(i="B")
    s = carry("s", "B")
    top = comp(op("abs", load(s, "$i")), (), "max", over)
    small = comp(op("lt", load(top), Const("f64", 40.0)))
    double = comp(mul(load(s, "$i"), Const("f64", 1.5)), over)
    g = graph(loop("$t.0", "T", [(s, x, double)], cond=small), [x], ["B", "T"])
    agree(g, [{"B": 5, "T": 30}, {"B": 90_000, "T": 30}, {"B": 90_000, "T": 2}])


def test_dump_of_a_loop() -> None:
    text = print_fused(fuse(nested()))
    assert text.count("# run-time loop over") == 2 and "write" in text


# ---- memory, mistakes ---------------------------------------------------------------------------


def test_memory_of_turns() -> None:
    """Values of one turn share places; what is carried or read in every turn keeps its own."""
    x = inp("x", "B", "B")
    over = axes(i="B", j="B")
    s = carry("s", "B", "B")
    outside = comp(op("exp", load(x, "$i", "$j")), over)
    value: Node = s
    (k,) = axes(k="B")
    for _ in range(6):
        product = mul(load(value, "$i", "$k"), load(outside, "$k", "$j"))
        total = load(comp(product, over, "sum", (k,)), "$i", "$j")
        value = comp(op("tanh", mul(total, Const("f64", 0.01))), over)
    (end,) = loop("$t.0", "T", [(s, outside, value)])
    p = agree(graph([end], [x], ["B", "T"]), [{"B": 3, "T": 2}, {"B": 70, "T": 3}])
    places = {str(b.offset) for b in p.buffers}
    assert len(p.buffers) > 5 and len(places) <= 4, print_program(p)


def broken(p: Program, text: str, **changes: Any) -> None:
    """Asserts what is said about a program whose loop is changed."""
    steps = tuple(replace(s, **changes) if isinstance(s, Repeat) else s for s in p.steps)
    with pytest.raises(AssertionError, match=text):
        verify(replace(p, steps=steps), "test")


def test_mistakes_are_found() -> None:
    x = inp("x", "T", "B")
    s = carry("s", "B")
    new = comp(add(load(s, "$i"), load(x, "$t.0", "$i")), axes(i="B"))
    outs = loop("$t.0", "T", [(s, zeros("B"), new)], [new])
    p = compile_graph(graph(outs, [x], ["B", "T"]))
    broken(p, "unbound", var="$u.0")
    broken(p, "may leave 0..T-1", trip=Dim.of("B"))
    broken(p, "repeat", trip=Dim.of("N"))
    broken(p, "nothing writes result1", steps=())
    with pytest.raises(AssertionError, match="read before it is written"):
        verify(replace(p, steps=p.steps[1:]), "test")
