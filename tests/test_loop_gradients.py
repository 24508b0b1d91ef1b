"""Gradients through run-time loops, by hand and random, against finite differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnc.ir.expr import Const, Expr, Op
from nnc.ir.graph import Compute, Custom, Input, Part, Update
from nnc.ir.interpret import run
from nnc.ir.printer import print_graph
from nnc.ir.scalar import add, mul, op, select
from nnc.lang.dims import Dim, DimLike, Facts
from nnc.passes.autodiff import autodiff
from nnc.passes.simplify import simplify
from nnc.passes.split import forward_backward
from nnc.passes.verify import verify
from tests.graphs import (
    SIZES,
    axes,
    check_gradients,
    comp,
    grads,
    graph,
    idx,
    inp,
    load,
    numeric_gradient,
    random_graph,
    sample,
    total,
    update,
)
from tests.test_graph_random import check_slope, floats
from tests.turns import (
    carry,
    loop,
    loops_of,
    lstm,
    matrix_sum,
    number,
    rnn,
    source,
    summed,
    together,
)

# ---- gradients ----------------------------------------------------------------------------


def test_gradient_of_sums() -> None:
    x = inp("x", "T")
    for reverse in (False, True):
        y = together(*summed(x, reverse=reverse))
        g = check_gradients(y, [x], [x], {"T": 4})
        assert [n.reverse for n in loops_of(g)] == [not reverse]


def test_gradient_of_a_recurrent_cell() -> None:
    parts, inputs = rnn()
    check_gradients(together(*parts), inputs, inputs, {"B": 2, "T": 3})
    check_gradients(parts[0], inputs, inputs, {"B": 2, "T": 3})
    check_gradients(parts[1], inputs, inputs, {"B": 2, "T": 3})
    check_gradients(parts[0], inputs, inputs, {"B": 2, "T": 1})


@pytest.mark.parametrize("width", [2, 32])
def test_gradient_of_lstm(width: int) -> None:
    parts, params, text = lstm(width)
    some = params if width == 2 else [params[0], *params[3:]]
    check_gradients(together(*parts[1:]), some, [*params, text], {"B": 2, "T": 3})


def test_weights_get_one_contraction_after_the_loop() -> None:
    parts, params, text = lstm(512)
    g = simplify(autodiff(graph(grads(total(parts[2]), *params), [*params, text], ["B", "T"])))
    verify(g, "simplify")
    ahead, back = loops_of(g)
    assert not ahead.reverse and back.reverse
    assert len(ahead.yields) == 3  # h, c, and the sum before the gates
    assert len(back.carries) == 2 and len(back.yields) == 1  # the cotangent of that sum
    for n in (ahead, back):  # the products with the embedded characters are outside
        (product,) = (m for m in n.body if isinstance(m, Compute) and m.op)
        assert [a.extent.const for a in product.raxes] in ([512], [2048])
    embed, w, u, b, h0, c0 = g.results
    assert isinstance(embed, Update) and embed.accumulate
    for n in (w, u, b):
        assert isinstance(n, Compute) and [a.extent for a in n.raxes] == [Dim.of("T"), Dim.of("B")]
    assert isinstance(h0, Part) and isinstance(c0, Part)


def test_gradients_of_one_number_share_a_loop() -> None:
    parts, params, text = lstm(32)
    y = total(parts[2])
    each = [grads(y, p)[0] for p in params]
    g = simplify(autodiff(graph(each, [*params, text], ["B", "T"])))
    assert len(loops_of(g)) == 2


def test_gradient_of_nested_loops() -> None:
    x = inp("x", "N", "M")
    g = check_gradients(matrix_sum(x), [x], [x], {"N": 2, "M": 3})
    assert isinstance(g.results[0], Part)  # the slices of the turns, nothing added
    a, b, w = carry("a", 2), carry("b", 2), inp("w", 2, 2)
    start = inp("s", 2)
    body = mul(load(w, "$i", "$k"), op("sin", add(load(b, "$k"), load(x, "$p.0", "$q.0"))))
    within = comp(body, axes(i=2), "sum", axes(k=2))
    (inner,) = loop("$q.0", "M", [(b, a, within)])
    after = comp(add(load(inner, "$i"), op("cos", load(a, "$i"))), axes(i=2))
    last, every = loop("$p.0", "N", [(a, start, after)], [inner])
    inputs = [x, w, start]
    check_gradients(together(last, every), inputs, inputs, {"N": 3, "M": 2})


READS: dict[str, tuple[Callable[[Input], Expr], tuple[DimLike, ...]]] = {
    "x[t]": (lambda x: load(x, "$t.0"), ("T",)),
    "x[t] of a longer one": (lambda x: load(x, "$t.0"), (Dim.of("T") + 2,)),
    "x[t+1]": (lambda x: load(x, Dim.of("$t.0") + 1), (Dim.of("T") + 1,)),
    "x[T-1-t]": (lambda x: load(x, Dim.of("T") - 1 - Dim.of("$t.0")), ("T",)),
    "x[2*t]": (lambda x: load(x, Dim.of("$t.0") * 2), (Dim.of("T") * 2,)),
    "x[t-1 else 0.5]": (lambda x: load(x, Dim.of("$t.0") - 1, other=0.5), ("T",)),
    "x[t] * x[0]": (lambda x: mul(load(x, "$t.0"), load(x, 0)), ("T",)),
    "x[t, 1]": (lambda x: load(x, "$t.0", 1), ("T", 3)),
    "x[t//2]": (lambda x: load(x, Dim.of("$t.0") // 2), ((Dim.of("T") + 1) // 2,)),
    "x[t, t]": (lambda x: load(x, "$t.0", "$t.0"), ("T", "T")),
    "x": (lambda x: load(x), ()),
    "x[t-1] if t > 0": (
        lambda x: select(op("gt", idx("$t.0"), idx(0)), load(x, Dim.of("$t.0") - 1), load(x, 0)),
        ("T",),
    ),
}


@pytest.mark.parametrize("case", READS)
def test_gradient_of_reads_at_the_turn(case: str) -> None:
    make, shape = READS[case]
    x, s, z = inp("x", *shape), carry("s"), inp("z")
    new = comp(op("sin", add(mul(load(s), op("exp", make(x))), make(x))))
    last, every = loop("$t.0", "T", [(s, z, new)], [new])
    check_gradients(together(last, every), [x, z], [x, z], {"T": 4})
    no_carry = loop("$t.0", "T", [], [comp(op("exp", make(x)))])
    g = check_gradients(no_carry[0], [x], [x], {"T": 4})
    back = [n for n in loops_of(g) if n.reverse]
    assert not back or case in ("x", "x[t//2]"), print_graph(g)


def test_gradient_of_windows_and_tables() -> None:
    x, w, t = inp("x", "T", 3), inp("w", 2, 3), inp("t", "T", dtype="i32")
    s, z = carry("s", 3), inp("z", 3)
    window = load(x, Dim.of("$t.0") - Dim.of("$k"), "$i", other=0.0)
    seen = comp(mul(window, load(w, "$k", "$i")), axes(i=3), "sum", axes(k=2))
    row = comp(load(w, load(t, "$t.0"), "$i", check=True), axes(i=3))
    body = add(mul(load(s, "$i"), load(row, "$i")), load(seen, "$i"))
    new = comp(op("tanh", body), axes(i=3))
    last, every = loop("$t.0", "T", [(s, z, new)], [row])
    values = {"t": np.array([1, 0, 1, 1])}
    inputs = [x, w, z, t]
    check_gradients(together(last, every), inputs[:3], inputs, {"T": 4}, values)


def test_gradient_of_swaps_constants_and_captures() -> None:
    a, b, c = carry("a"), carry("b"), carry("c")
    x, y, z = inp("x"), inp("y"), inp("z")
    product = comp(mul(load(a), load(c)))
    carried = [(a, x, b), (b, y, product), (c, z, z)]
    parts = loop("$t.0", "T", carried, [a, z, product])
    for steps in (0, 1, 2, 3):
        check_gradients(together(*parts), [x, y, z], [x, y, z], {"T": steps}, facts=MAYBE_EMPTY)


MAYBE_EMPTY = Facts(frozenset({"T"}))


def test_gradient_of_updates() -> None:
    x, s, z = inp("x", "T", 2), carry("s", "T", 2), inp("z", "T", 2)
    row = op("sin", add(load(x, "$t.0", "$i"), load(s, 0, "$i")))
    new = update(s, axes(i=2), ["$t.0", "$i"], row)
    parts = loop("$t.0", "T", [(s, z, new)])
    check_gradients(parts[0], [x, z], [x, z], {"T": 3})


def test_integers_are_carried_along() -> None:
    x, n, s = inp("x", "T"), carry("n", dtype="i32"), carry("s")
    more = comp(add(load(n), Const("i32", 1)))
    value = mul(load(s), load(x, load(n), check=True))
    parts = loop(
        "$t.0",
        "T",
        [(n, comp(Const("i32", 0)), more), (s, number(2), comp(op("sin", value)))],
    )
    check_gradients(parts[1], [x], [x], {"T": 3})


def test_second_derivatives() -> None:
    x = inp("x", "T")
    s = carry("s")
    new = comp(op("sin", mul(load(s), load(x, "$t.0"))))
    last, every = loop("$t.0", "T", [(s, number(0.7), new)], [new])
    (dx,) = grads(together(last, every), x)
    once = autodiff(graph([dx], [x], ["T"]))
    check_gradients(once.results[0], [x], [x], {"T": 3}, tolerance=1e-5)
    twice_at_once = grads(total(dx), x)
    got = run(autodiff(graph(twice_at_once, [x], ["T"])), {"T": 3}, sample([x], {"T": 3}))
    again = autodiff(graph(grads(total(once.results[0]), x), [x], ["T"]))
    want = run(again, {"T": 3}, sample([x], {"T": 3}))
    np.testing.assert_allclose(got.results[0], want.results[0])
    both = simplify(autodiff(graph(twice_at_once, [x], ["T"])))
    assert [n.reverse for n in loops_of(both)] == [False, True, False, True]


def test_custom_derivatives_inside_a_loop() -> None:
    x, s = inp("x", "T"), carry("s")
    dout = inp("dout", kind="cotangent")
    z = comp(mul(load(s), load(x, "$t.0")))
    n = carry("n")
    (power,) = loop("$n.0", 2, [(n, dout, comp(mul(load(n), load(z))))])  # dout * z * z
    new = Custom(
        type=z.type, source=comp(op("sin", load(z))), inputs=(z,), dout=dout, grads=(power,)
    )
    last, every = loop("$t.0", "T", [(s, number(0.5), new)], [new])
    both = [*grads(last, x), *grads(total(every), x)]
    after = autodiff(graph(both, [x], ["T"]))
    verify(after, "autodiff")
    values = np.array([0.5, -1.0, 0.8])
    got, got_every = run(after, {"T": 3}, {"x": values}).results
    states = [0.5]
    for v in values:
        states.append(np.sin(states[-1] * v))

    def back(douts: Sequence[float]) -> list[float]:
        d, out = 0.0, []
        for t in reversed(range(3)):
            dz = (d + douts[t]) * (states[t] * values[t]) ** 2
            d, out = dz * values[t], [dz * states[t], *out]
        return out

    np.testing.assert_allclose(got, back([0, 0, 1]))
    np.testing.assert_allclose(got_every, back(np.sin(1 + 3 * np.arange(3.0))))


def test_gradients_inside_a_loop_are_added_up() -> None:
    """As gradient accumulation: the gradient of a turn's loss is carried along."""
    x, w = inp("x", "A", "B", 3), inp("w", 3)
    g, so_far = carry("g", 3), carry("l")
    pre = comp(op("sin", load(w, "$i")), axes(i=3))  # outside of the loop, part of the gradient
    value = mul(load(x, "$a.0", "$b", "$i"), load(pre, "$i"))
    z = comp(value, axes(b="B"), "sum", axes(i=3))
    loss = comp(op("exp", load(z, "$b")), (), "sum", axes(b="B"))
    (dw,) = grads(loss, w)
    more = comp(add(load(g, "$i"), load(dw, "$i")), axes(i=3))
    sums = comp(add(load(so_far), load(loss)))
    zero = comp(Const("f64", 0.0), axes(i=3))
    parts = loop("$a.0", "A", [(g, zero, more), (so_far, number(0), sums)])
    before = graph(parts, [x, w], ["A", "B"])
    verify(before, "building")
    after = autodiff(before)
    verify(after, "autodiff")
    dims = {"A": 3, "B": 2}
    values = sample([x, w], dims)
    got = run(after, dims, values).results[0]
    want = numeric_gradient(after.results[1], w, dims, values)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert "grad" not in print_graph(after)
    # and its derivative: a gradient of a function of gradients through the turns
    check_gradients(after.results[0], [x, w], [x, w], dims, tolerance=1e-5)


def test_gradient_by_values_of_the_turn() -> None:
    """By a carried value and by an intermediate: what the turn does with them, not those before."""
    x, s = inp("x", "T"), carry("s")
    mid = comp(op("sin", mul(load(s), load(x, "$t.0"))))
    y = comp(op("exp", add(load(mid), load(s))))
    ds, dmid = grads(y, s, mid)
    new = comp(mul(Const("f64", 0.1), add(load(y), load(ds))))
    parts = loop("$t.0", "T", [(s, number(0.3), new)], [ds, dmid])
    before = graph(parts, [x], ["T"])
    verify(before, "building")
    after = autodiff(before)
    verify(after, "autodiff")
    values = np.array([0.5, -1.0, 0.8])
    last, got, got_mid = run(after, {"T": 3}, {"x": values}).results
    now = 0.3
    for t, v in enumerate(values):
        m = np.sin(now * v)
        out = np.exp(m + now)
        slope = out * (1 + np.cos(now * v) * v)
        np.testing.assert_allclose([got[t], got_mid[t]], [slope, out])
        now = 0.1 * (out + slope)
    np.testing.assert_allclose(last, now)
    check_gradients(after.results[0], [x], [x], {"T": 3}, tolerance=1e-5)


def test_gradient_of_a_loop_inside_a_loop() -> None:
    """Truncated: each turn of the outer loop differentiates through a loop of its own."""
    parts, inputs = rnn()
    w, u = inputs[1:3]
    (dw, du) = grads(total(parts[1]), w, u)
    g = carry("g", 4, 3)
    scaled = mul(load(dw, "$o", "$i"), Op("f64", "cast", (idx(Dim.of("$n.0") + 1),)))
    more = comp(add(load(g, "$o", "$i"), scaled), axes(o=4, i=3))
    zero = comp(Const("f64", 0.0), axes(o=4, i=3))
    outer = loop("$n.0", 2, [(g, zero, more)], [comp(add(load(du, 0, 0), load(dw, 0, 0)))])
    dims = {"B": 2, "T": 3}
    after = autodiff(graph(outer, inputs, list(dims)))
    verify(after, "autodiff")
    simpler = simplify(after)
    verify(simpler, "simplify")
    values = sample(inputs, dims)
    want = numeric_gradient(
        autodiff(graph([total(parts[1])], inputs, list(dims))).results[0], w, dims, values
    )
    for form in (after, simpler):
        np.testing.assert_allclose(run(form, dims, values).results[0], 3 * want, rtol=1e-6)


def test_limited_condition_is_differentiated() -> None:
    """As `while x < 5 limit 6:`: turns after the end keep the values."""
    x, s = inp("x"), carry("s")
    going = comp(op("lt", load(s), Const("f64", 5.0)))
    new = comp(select(load(going), mul(load(s), op("exp", load(x))), load(s)))
    (last,) = loop("$t.0", 6, [(s, x, new)])
    check_gradients(last, [x], [x], values={"x": np.array(0.9)})


def test_forward_and_backward_of_a_recurrent_cell() -> None:
    parts, inputs = rnn()
    dims = {"B": 2, "T": 3}
    forward, backward, wrt = forward_backward(graph([total(parts[1])], inputs, list(dims)))
    verify(forward, "split")
    verify(backward, "split")
    assert wrt == tuple(i.name for i in inputs)
    assert [n.reverse for n in loops_of(forward)] == [False]
    assert [n.reverse for n in loops_of(backward)] == [True]
    values = sample(inputs, dims)
    done = run(forward, dims, values).results
    later = {**values, "d.0": np.ones(()), **{f"saved.{i}": v for i, v in enumerate(done[1:])}}
    got = run(backward, dims, {i.name: later[i.name] for i in backward.inputs}).results
    for i, d in zip(inputs, got, strict=True):
        want = numeric_gradient(total(parts[1]), i, dims, values)
        np.testing.assert_allclose(d, want, rtol=1e-6, atol=1e-8)


def test_products_with_inputs_stand_before_the_loop() -> None:
    parts, inputs = rnn()
    before = graph(parts, inputs, ["B", "T"])
    after = simplify(autodiff(before))
    (made,) = loops_of(after)
    assert sum(bool(n.op) for n in made.body if isinstance(n, Compute)) == 1
    dims = {"B": 2, "T": 3}
    values = sample(inputs, dims)
    for a, b in zip(
        run(before, dims, values).results, run(after, dims, values).results, strict=True
    ):
        np.testing.assert_array_equal(a, b)
    x, w = inp("x", "T", 3), inp("w", 3)  # nothing is recurrent here: no stacks
    s = carry("s")
    one = comp(mul(load(x, "$t.0", "$i"), load(w, "$i")), (), "sum", axes(i=3))
    losses = loop("$t.0", "T", [(s, number(0), comp(add(load(s), load(one))))])
    (made,) = loops_of(simplify(autodiff(graph(losses, [x, w], ["T"]))))
    assert len(made.body) == 2


def test_loops_of_one_name_become_different() -> None:
    x = inp("x", "T")
    parts = [replace(p, source=replace(source([p]), var="$t.0")) for p in summed(x)[:1]]
    more = [replace(p, source=replace(source([p]), var="$t.0")) for p in summed(x)[:1]]
    after = autodiff(graph([*parts, *more], [x], ["T"]))
    verify(after, "autodiff")
    assert {n.var for n in loops_of(after)} == {"$t.0", "$t.1"}


def test_condition_has_no_derivative_in_reverse() -> None:
    v, x = carry("v"), inp("x")
    cond = comp(op("le", load(v), Const("f64", 100.0)))
    parts = loop("$t.0", 1000, [(v, x, comp(add(load(v), load(v))))], cond=cond)
    with pytest.raises(AssertionError, match="no derivative"):
        autodiff(graph(grads(parts[0], x), [x]))


# ---- random loops -------------------------------------------------------------------------

randoms = st.randoms(use_true_random=False)
quick = settings(
    max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


@quick
@given(randoms, st.integers(1, 5), st.integers(0, 99))
def test_random_gradients(random: Random, length: int, seed: int) -> None:
    check_slope(*random_graph(random, length, loops=True), seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3000))
def test_many_random_gradients(seed: int) -> None:
    check_slope(*random_graph(Random(seed), 1 + seed % 6, loops=True), seed)


@quick
@given(randoms, st.integers(1, 5))
def test_simplify_changes_no_bit(random: Random, length: int) -> None:
    g, y = random_graph(random, length, loops=True)
    after = autodiff(graph([y, *grads(y, *floats(g))], g.inputs, g.dims))
    verify(after, "autodiff")
    simple = simplify(after)
    verify(simple, "simplify")
    values = sample(g.inputs, SIZES)
    for a, b in zip(
        run(after, SIZES, values).results, run(simple, SIZES, values).results, strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert print_graph(simplify(simple)) == print_graph(simple)


@settings(quick, max_examples=15)
@given(randoms, st.integers(1, 3))
def test_random_second_derivatives(random: Random, length: int) -> None:
    g, y = random_graph(random, length, loops=True)
    (dx,) = grads(y, g.inputs[0])
    check_slope(g, autodiff(graph([total(dx)], g.inputs, g.dims)).results[0], 5)


@settings(quick, max_examples=20)
@given(randoms, st.integers(1, 4))
def test_random_forward_and_backward(random: Random, length: int) -> None:
    g, y = random_graph(random, length, loops=True)
    forward, backward, wrt = forward_backward(g)
    verify(forward, "split")
    verify(backward, "split")
    values = sample(g.inputs, SIZES)
    done = run(forward, SIZES, values).results
    later = {**values, "d.0": np.ones(()), **{f"saved.{i}": v for i, v in enumerate(done[1:])}}
    got = run(backward, SIZES, {i.name: later[i.name] for i in backward.inputs}).results
    parts = grads(y, *(i for i in g.inputs if i.name in wrt))
    want = run(autodiff(graph(parts, g.inputs, g.dims)), SIZES, values).results
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)
