"""Each rewrite rule alone, on random operands with the awkward numbers; and whole graphs."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from nnc.ir.expr import Const, Expr, Idx, Load, Op
from nnc.ir.graph import Compute, Constant, Graph, Node, Update, Write, nodes
from nnc.ir.interpret import run
from nnc.ir.printer import print_expr, print_graph
from nnc.ir.scalar import add, cast, const, mul, neg, op, select, sub
from nnc.lang.types import TensorType
from nnc.passes.autodiff import autodiff
from nnc.passes.rules import RULES
from nnc.passes.simplify import NODE_RULES, simplify
from nnc.passes.split import forward_backward
from nnc.passes.verify import verify
from tests.graphs import axes, comp, d, grads, graph, idx, inp, load, sample, update

AWKWARD = [0.0, -0.0, 1.0, -1.5, np.inf, -np.inf, np.nan, 1e-310]
X, Y = inp("x", "N"), inp("y", "N")
P, Q, R = inp("p", "N", dtype="i32"), inp("q", "N", dtype="bool"), inp("r", "N", dtype="bool")
M = inp("m", d("t.0") + 1, "N")  # `t.0`: as the turn of a loop
INPUTS = [M, X, Y, P, Q, R]


def x() -> Load:
    return load(X, "$i")


def y() -> Load:
    return load(Y, "$i")


def p() -> Load:
    return load(P, "$i")


def q() -> Load:
    return load(Q, "$i")


def f(v: float) -> Const:
    return const(v, "f64")


def n(v: int) -> Const:
    return Const("i32", v)


def b(v: bool) -> Const:
    return Const("bool", v)


def twice(make: Callable[[Expr], Expr]) -> Expr:
    """`make` of a shared operand."""
    return make(q())


# rule -> expressions over x, y: f64[i:N], p: i32, q: bool, and what they must become
CASES: dict[str, list[tuple[Expr, str]]] = {
    "constants": [
        (op("mul", x(), op("add", f(1), f(2))), "x[i] * 3.0"),
        (op("lt", f(1), f(2)), "true"),
        (op("add", n(2**31 - 1), n(1)), "-2147483648"),
        (op("div", f(1), f(0)), "inf"),
        (op("neg", f(0)), "-0.0"),
    ],
    "constant_cast": [
        (Op("f64", "cast", (n(3),)), "3.0"),
        (Op("f64", "cast", (idx(7),)), "7.0"),
        (Op("i32", "cast", (f(-2.5),)), "-2"),
    ],
    "index_arithmetic": [
        (op("add", idx("$i"), op("mul", idx(2), idx("$i"))), "3*i"),
        (op("sub", idx("$i"), Const("i64", 1)), "i-1"),
        (op("floordiv", op("add", idx("$i"), idx(4)), idx(4)), "i//4+1"),
    ],
    "index_ranges": [(Idx((d("$i") + d("N") * 3) // d("N")), "3")],
    "decided": [
        (op("lt", idx("$i"), idx("N")), "true"),
        (op("lt", idx("$i"), idx(0)), "false"),
        (op("eq", idx("$i"), idx("N")), "false"),
    ],
    "one": [
        (op("mul", x(), f(1)), "x[i]"),
        (op("mul", f(1), x()), "x[i]"),
        (op("div", x(), f(1)), "x[i]"),
        (op("powi", x(), n(1)), "x[i]"),
        (op("powi", x(), n(0)), "1.0"),
        (op("div", f(1), x()), "1.0 / x[i]"),
    ],
    "nothing_added": [
        (op("sub", x(), f(0)), "x[i]"),
        (op("add", x(), f(-0.0)), "x[i]"),
        (op("add", x(), f(0)), "x[i] + 0.0"),
        (op("sub", x(), f(-0.0)), "x[i] - -0.0"),
        (op("add", n(0), p()), "p[i]"),
        (op("add", p(), n(0)), "p[i]"),
    ],
    "signs": [
        (neg(neg(x())), "x[i]"),
        (op("mul", x(), f(-1)), "-x[i]"),
        (op("add", x(), neg(y())), "x[i] - y[i]"),
        (op("sub", x(), neg(y())), "x[i] + y[i]"),
        (op("mul", x(), f(0)), "x[i] * 0.0"),
    ],
    "integer_zero": [(op("mul", p(), n(0)), "0")],
    "casts": [
        (Op("f64", "cast", (x(),)), "x[i]"),
        (Op("i32", "cast", (Op("i64", "cast", (p(),)),)), "p[i]"),
        (Op("f64", "cast", (Op("f32", "cast", (x(),)),)), "f64(f32(x[i]))"),
    ],
    "selects": [
        (select(b(True), x(), y()), "x[i]"),
        (select(b(False), x(), y()), "y[i]"),
        (select(q(), x(), x()), "x[i]"),
        (select(op("not", q()), x(), y()), "y[i] if q[i] else x[i]"),
        (select(q(), b(True), b(False)), "q[i]"),
        (select(q(), f(0), f(-0.0)), "0.0 if q[i] else -0.0"),
    ],
    "nested_selects": [
        (twice(lambda c: select(c, select(c, x(), y()), f(2))), "x[i] if q[i] else 2.0"),
        (twice(lambda c: select(c, x(), select(c, f(2), y()))), "x[i] if q[i] else y[i]"),
    ],
    "logic": [
        (op("and", q(), b(True)), "q[i]"),
        (op("and", b(False), q()), "false"),
        (op("or", q(), b(True)), "true"),
        (op("or", b(False), q()), "q[i]"),
        (op("not", op("not", q())), "q[i]"),
        (op("or", q(), q()), "q[i]"),
    ],
    "load_of_constant": [
        (mul(x(), load(comp(f(2), axes(k="N")), "$i")), "x[i] * 2.0"),
        (load(comp(f(2))), "2.0"),
        (load(Constant(type=TensorType("f64", (d(1),)), data=(5.0,)), 0), "5.0"),
        (load(comp(f(2), axes(k="N")), p(), check=True), "%[p[i] check]"),
    ],
    "load_of_slice": [
        (neg(load(comp(load(M, "t.0", "$k"), axes(k="N")), "$i")), "-m[t.0, i]"),
        (load(comp(load(M, "t.0", "$k"), axes(k="N")), p(), check=True), "m[t.0, p[i] check]"),
        (neg(load(comp(load(M, 0, "$k"), axes(k="N")), "$i")), "-%[i]"),
        (neg(load(comp(load(M, "t.0", d("N") - 1 - d("$k")), axes(k="N")), "$i")), "-%[i]"),
    ],
    "other_never_read": [
        (load(X, "$i", other=3.0), "x[i]"),
        (load(X, d("$i") - 1, other=3.0), "x[i-1 else 3.0]"),
    ],
}
ALL = [(rule, e, text) for rule, cases in CASES.items() for e, text in cases]


def test_every_rule_has_cases() -> None:
    assert {r.__name__ for r in RULES} == set(CASES)
    assert all(r.__doc__ for r in (*RULES, *NODE_RULES))


def simplified(e: Expr) -> tuple[Graph, Graph]:
    before = graph([comp(e, axes(i="N"))], INPUTS, ["N", "t.0"])
    verify(before, "building")
    after = simplify(before)
    verify(after, "simplify")
    return before, after


@pytest.mark.parametrize("rule, e, text", ALL, ids=[f"{r}-{t}" for r, _, t in ALL])
def test_rule(rule: str, e: Expr, text: str) -> None:
    _, after = simplified(e)
    node = after.results[0]
    got = print_expr(node.body) if isinstance(node, Compute) else f"{node.name}[i]"
    assert got == text


@pytest.mark.parametrize("rule, e, text", ALL, ids=[f"{r}-{t}" for r, _, t in ALL])
def test_rule_changes_no_bit(rule: str, e: Expr, text: str) -> None:
    before, after = simplified(e)
    pairs = np.array(list(itertools.product(AWKWARD, AWKWARD))).T
    m = pairs.shape[1]
    rng = np.random.default_rng(0)
    values = {
        "x": pairs[0],
        "y": pairs[1],
        "p": rng.integers(0, m, m),
        "q": rng.integers(0, 2, m).astype(bool),
        "r": rng.integers(0, 2, m).astype(bool),
        "m": rng.uniform(size=(2, m)),
    }
    old, new = (run(g, {"N": m, "t.0": 1}, values).results[0] for g in (before, after))
    assert old.dtype == new.dtype
    if old.dtype.kind == "f":
        nan = np.isnan(old)
        np.testing.assert_array_equal(nan, np.isnan(new))
        np.testing.assert_array_equal(old[~nan], new[~nan])
        np.testing.assert_array_equal(np.signbit(old[~nan]), np.signbit(new[~nan]))
    np.testing.assert_array_equal(old, new)


# ---- nodes


def count(g: Graph) -> int:
    return sum(isinstance(m, Compute | Update) for m in nodes(g))


def test_copies_are_bypassed() -> None:
    c = comp(load(X, "$k"), axes(k="N"))
    g = simplify(graph([comp(op("exp", load(c, "$i")), axes(i="N")), c], [X], ["N"]))
    assert count(g) == 1 and g.results[1] is X


def test_transposes_and_casts_are_not_copies() -> None:
    z = inp("z", 3, 3)
    t = comp(load(z, "$j", "$i"), axes(i=3, j=3))
    c = comp(cast(load(z, "$i", "$j"), "f32"), axes(i=3, j=3))
    assert count(simplify(graph([t, c], [z]))) == 2


def test_equal_nodes_become_one() -> None:
    first = comp(op("exp", load(X, "$a")), axes(a="N"))
    again = comp(op("exp", load(X, "$b")), axes(b="N"))
    other = comp(op("exp", load(Y, "$b")), axes(b="N"))
    body = add(add(load(first, "$i"), load(again, "$i")), load(other, "$i"))
    assert count(simplify(graph([comp(body, axes(i="N"))], [X, Y], ["N"]))) == 3


def test_order_of_reduced_axes_distinguishes() -> None:
    z = inp("z", 3, 4)
    one = comp(load(z, "$i", "$j"), (), "sum", axes(i=3, j=4))
    two = comp(load(z, "$i", "$j"), (), "sum", axes(j=4, i=3))
    g = simplify(graph([one, two], [z]))
    assert g.results[0] is not g.results[1]


def test_sum_of_zeros_and_guards() -> None:
    zero = comp(f(0), axes(i="N"), "sum", axes(k=4))
    kept = comp(f(-0.0), axes(i="N"), "sum", axes(k=4))
    g = simplify(graph([zero, kept], [], ["N"]))
    assert [r.op for r in g.results if isinstance(r, Compute)] == ["", "sum"]
    never = update(X, axes(i="N"), ["$i"], f(1), guard=op("lt", idx("$i"), idx(0)))
    always = update(X, axes(i="N"), ["$i"], f(1), guard=op("ge", idx("$i"), idx(0)))
    g = simplify(graph([never, always], [X], ["N"]))
    assert g.results[0] is X
    assert isinstance(g.results[1], Update) and g.results[1].guard is None


def test_what_a_gradient_is_asked_for_stays_apart() -> None:
    one = comp(f(2))
    two = comp(f(2))
    copied = comp(load(X, "$i"), axes(i="N"))
    y = comp(
        mul(mul(load(one), load(two)), mul(load(copied, "$i"), load(X, "$i"))),
        (),
        "sum",
        axes(i="N"),
    )
    parts = grads(y, one, copied)
    values = {"x": [1.0, 3.0]}
    g = graph(parts, [X], ["N"])
    for first in (g, simplify(g)):
        got = run(autodiff(first), {"N": 2}, values).results
        np.testing.assert_array_equal(got[0], 20)
        np.testing.assert_array_equal(got[1], [4, 12])


def big_graph() -> Graph:
    """A model in small: table, window, merged axis, soft-max, loss, gradient, step."""
    w, t = inp("w", 5, 4), inp("t", "B", dtype="i32")
    e = comp(load(w, load(t, "$b"), "$d", check=True), axes(b="B", d=4))
    h = comp(
        mul(load(e, "$b", d("$i") + d("$u") - 1, other=0.0), load(w, "$u", "$o")),
        axes(b="B", o=4, i=4),
        "sum",
        axes(u=3),
    )
    m = comp(load(h, "$b", d("$m") // 4, d("$m") % 4), axes(b="B", m=16))
    top = comp(load(m, "$b", "$m"), axes(b="B"), "max", axes(m=16))
    p_ = comp(op("exp", sub(load(m, "$b", "$m"), load(top, "$b"))), axes(b="B", m=16))
    z = comp(load(p_, "$b", "$m"), axes(b="B"), "sum", axes(m=16))
    nll = comp(sub(op("log", load(z, "$b")), load(m, "$b", load(t, "$b"), check=True)), axes(b="B"))
    loss = comp(load(nll, "$b"), (), "sum", axes(b="B"))
    (dw,) = grads(loss, w)
    step = comp(
        sub(load(w, "$i", "$j"), mul(f(0.1), load(dw, "$i", "$j"))), axes(i=5, j=4), name="w"
    )
    return graph([loss, step], [w, t], ["B"])


def test_simplify_is_idempotent_and_keeps_values() -> None:
    g = autodiff(big_graph())
    once = simplify(g)
    verify(once, "simplify")
    assert print_graph(simplify(once)) == print_graph(once)
    values = {**sample(g.inputs, {"B": 3}), "t": np.array([4, 0, 4])}
    for a, c in zip(
        run(g, {"B": 3}, values).results, run(once, {"B": 3}, values).results, strict=True
    ):
        np.testing.assert_array_equal(a, c)
    assert count(once) <= count(g)


def test_redundant_guards_vanish() -> None:
    """Conditions that follow from the enclosing ones are decided."""
    inner = select(op("ge", idx("$i"), idx(0)), load(X, d("$i") - 1, other=9.0), f(3))
    body = select(op("ge", idx("$i"), idx(1)), inner, f(0))
    _, after = simplified(body)
    node = after.results[0]
    assert isinstance(node, Compute)
    assert print_expr(node.body) == "x[i-1] if i >= 1 else 0.0"


def test_long_chains() -> None:
    e: Expr = x()
    for _ in range(5000):
        e = op("mul", op("add", e, f(1)), f(1))
    _, after = simplified(e)
    node: Node = comp(x(), axes(i="N"))
    for _ in range(2000):
        node = comp(op("mul", load(node, "$i"), f(1)), axes(i="N"))
    assert simplify(graph([node], [X], ["N"])).results[0] is X
    assert after.results[0].type.rank == 1


# ---- forward and backward


def test_forward_backward() -> None:
    x_, w, t = inp("x", "B", 4), inp("w", 3, 4, kind="param"), inp("t", "B", dtype="i32")
    s = inp("s", 3, kind="state")
    h = comp(mul(load(x_, "$b", "$i"), load(w, "$o", "$i")), axes(b="B", o=3), "sum", axes(i=4))
    act = comp(op("tanh", add(load(h, "$b", "$o"), load(s, "$o"))), axes(b="B", o=3))
    picked = comp(mul(load(act, "$b", load(t, "$b"), check=True), f(3)), axes(b="B"))
    arg = comp(load(act, "$b", "$o"), axes(b="B"), "argmax", axes(o=3))
    moved = comp(mul(load(s, "$o"), f(0.5)), axes(o=3))
    whole = graph([picked, arg, act], [x_, w, t, s], ["B"], [Write(s, moved)])
    forward, backward, wrt = forward_backward(whole)
    verify(forward, "split")
    verify(backward, "split")
    assert wrt == ("x", "w")
    assert not {"s"} & {i.name for i in backward.inputs} and backward.writes == ()
    assert [i.name for i in backward.inputs if i.name.startswith("d.")] == ["d.0", "d.2"]
    dims = {"B": 5}
    values = sample(whole.inputs, dims, 2)
    done = run(forward, dims, values)
    saved = {f"saved.{i}": v for i, v in enumerate(done.results[3:])}
    rng = np.random.default_rng(0)
    d0, d2 = rng.normal(size=5), rng.normal(size=(5, 3))
    later = {**values, **saved, "d.0": d0, "d.2": d2}
    got = run(backward, dims, {i.name: later[i.name] for i in backward.inputs}).results
    z = np.tanh(values["x"] @ values["w"].T + values["s"])
    dz = d2.copy()
    dz[np.arange(5), values["t"]] += 3 * d0
    dh = dz * (1 - z * z)
    np.testing.assert_allclose(got[0], dh @ values["w"])
    np.testing.assert_allclose(got[1], dh.T @ values["x"])


def test_backward_of_one_result_and_of_none() -> None:
    g = graph([comp(op("exp", x()), axes(i="N")), comp(neg(y()), axes(i="N"))], [X, Y], ["N"])
    _, backward, wrt = forward_backward(g, 0)
    assert wrt == ("x", "y") and [i.name for i in backward.inputs][-1] == "d.0"
    verify(backward, "split")
    unused = graph([comp(p(), axes(i="N"))], [P], ["N"])
    forward, backward, wrt = forward_backward(unused)
    assert wrt == () and backward.results == () and len(forward.results) == 1


def test_overwritten_input_is_saved() -> None:
    s, z = inp("s", 3, kind="state"), inp("z", 3)
    r = comp(mul(load(s, "$i"), load(z, "$i")), axes(i=3))
    g = graph([r], [s, z], writes=[Write(s, comp(neg(load(s, "$i")), axes(i=3)))])
    forward, backward, wrt = forward_backward(g)
    assert wrt == ("z",) and forward.results[1] is s
    assert [i.name for i in backward.inputs] == ["saved.0", "d.0"]
