"""Gradients against finite differences in float64, case by case; and the forms they must take."""

from __future__ import annotations

import numpy as np
import pytest

from nnc import compiler
from nnc.diagnostics import NOWHERE
from nnc.ir.dependence import depends
from nnc.ir.expr import Const, Expr, Select
from nnc.ir.graph import Compute, Grad, Graph, Node, Part, Stop, Update, nodes
from nnc.ir.interpret import run
from nnc.ir.printer import print_expr
from nnc.ir.scalar import add, cast, const, mul, neg, op, select, sub
from nnc.lang.dims import Dim, Facts
from nnc.passes.autodiff import autodiff
from nnc.passes.fuse import fuse
from nnc.passes.verify import verify
from tests import endtoend
from tests.graphs import (
    axes,
    check_gradients,
    comp,
    d,
    grads,
    graph,
    idx,
    inp,
    load,
    sample,
    total,
    update,
)


def updates(g: Graph) -> int:
    return sum(isinstance(n, Update) for n in nodes(g))


def gradient_of(g: Graph, index: int = 0) -> Compute:
    node = g.results[index]
    assert isinstance(node, Compute), node
    return node


# ---- A: bare variables


def test_contraction() -> None:
    x, w = inp("x", "B", 4), inp("w", 3, 4)
    body = mul(load(x, "$b", "$i"), load(w, "$o", "$i"))
    y = comp(body, axes(b="B", o=3), "sum", axes(i=4))
    g = check_gradients(y, [x, w], [x, w], {"B": 5})
    dx, dw = gradient_of(g), gradient_of(g, 1)
    assert [a.var for a in (*dx.axes, *dx.raxes)] == ["$b", "$i", "$o"] and dx.op == "sum"
    assert [a.var for a in (*dw.axes, *dw.raxes)] == ["$o", "$i", "$b"]


def test_broadcast_and_transpose() -> None:
    x, b = inp("x", 3, "N"), inp("b", "N")
    y = comp(mul(load(x, "$i", "$j"), load(b, "$j")), axes(j="N", i=3))
    g = check_gradients(y, [x, b], [x, b], {"N": 4})
    assert not gradient_of(g).raxes and gradient_of(g, 1).op == "sum"


def test_one_tensor_read_twice() -> None:
    x = inp("x", 4)
    y = comp(mul(load(x, "$i"), load(x, "$j")), axes(i=4, j=4))
    check_gradients(y, [x], [x])


def test_same_index_shares_one_contribution() -> None:
    x = inp("x", 4)
    y = comp(mul(load(x, "$i"), op("exp", load(x, "$i"))), axes(i=4))
    g = check_gradients(y, [x], [x])
    assert len([n for n in nodes(g) if isinstance(n, Compute)]) == 2  # weights, gradient


def test_copy_passes_the_cotangent_itself() -> None:
    x = inp("x", 4)
    y = comp(load(x, "$i"), axes(i=4))
    assert len([n for n in nodes(check_gradients(y, [x], [x])) if isinstance(n, Compute)]) == 1


def test_diagonal() -> None:
    x = inp("x", 4, 4)
    g = check_gradients(comp(load(x, "$i", "$i"), axes(i=4)), [x], [x])
    assert updates(g) == 0


def test_constant_index_and_slices() -> None:
    x = inp("x", 3, "N")
    facts = Facts(frozenset(), (d("N") - 3,))
    body = mul(load(x, 1, "$j"), load(x, 2, d("$j") + 1))
    g = check_gradients(comp(body, axes(j=d("N") - 1)), [x], [x], {"N": 5}, facts=facts)
    assert updates(g) == 0


def test_scalars() -> None:
    x, s = inp("x", "N"), inp("s")
    y = comp(mul(load(x, "$i"), op("exp", load(s))), axes(i="N"))
    check_gradients(y, [x, s], [x, s], {"N": 3})


# ---- B: affine components


@pytest.mark.parametrize("s", [1, 2, 3])
@pytest.mark.parametrize("p", [0, 1, 2])
@pytest.mark.parametrize("dl", [1, 2])
def test_convolution(s: int, p: int, dl: int) -> None:
    x, w = inp("x", "B", 2, 7, 6), inp("w", 3, 2, 3, 2)
    i, j, u, v = (d(f"${n}") for n in "ijuv")
    image = load(x, "$b", "$c", i * s + u * dl - p, j * s + v * dl - p, other=0.0)
    rows, columns = (7 + 2 * p - 2 * dl - 1) // s + 1, (6 + 2 * p - dl - 1) // s + 1
    y = comp(
        mul(image, load(w, "$o", "$c", "$u", "$v")),
        axes(b="B", o=3, i=rows, j=columns),
        "sum",
        axes(c=2, u=3, v=2),
    )
    g = check_gradients(y, [x, w], [x, w], {"B": 1}, tolerance=1e-5)
    assert updates(g) == 0
    dx = gradient_of(g)
    if s == 1:  # a window again: no condition stays in the body
        assert [a.var for a in dx.raxes] == ["$o", "$u", "$v"]
        assert not isinstance(dx.body, Select)


def test_convolution_with_symbolic_sizes() -> None:
    x, w = inp("x", "H"), inp("w", "U")
    s, p = d("s"), d("p")
    rows = (d("H") + 2 * p - d("U")) // s + 1
    image = load(x, d("$i") * s + d("$u") - p, other=0.0)
    y = comp(mul(image, load(w, "$u")), axes(i=rows), "sum", axes(u="U"))
    facts = Facts(frozenset("p"), (d("H") + 2 * p - d("U"),))
    g = check_gradients(y, [x, w], [x, w], {"H": 9, "U": 3, "s": 2, "p": 1}, facts=facts)
    assert updates(g) == 0


def test_reversed_axis() -> None:
    x = inp("x", "N")
    g = check_gradients(comp(load(x, d("N") - 1 - d("$i")), axes(i="N")), [x], [x], {"N": 5})
    assert updates(g) == 0 and not isinstance(gradient_of(g).body, Select)


def test_strided_slice() -> None:
    x = inp("x", 10)
    g = check_gradients(comp(load(x, d("$i") * 3 + 1), axes(i=3)), [x], [x])
    assert updates(g) == 0 and not gradient_of(g).raxes


def test_local_attention_reads_backwards() -> None:
    q, k = inp("q", "T", 2), inp("k", "T", 2)
    body = mul(load(q, "$t", "$e"), load(k, d("$t") - d("$r"), "$e", other=0.0))
    y = comp(body, axes(t="T", r="R"), "sum", axes(e=2))
    g = check_gradients(y, [q, k], [q, k], {"T": 5, "R": 3})
    assert updates(g) == 0 and len(gradient_of(g, 1).raxes) == 1


def test_padding_reads_another_tensor() -> None:
    x, z = inp("x", 4), inp("z", 2)
    outside = load(z, d("$i") - 3, other=0.5)
    y = comp(op("exp", load(x, d("$i") - 1, other=outside)), axes(i=6))
    check_gradients(y, [x, z], [x, z])


def test_max_pool_with_overlapping_windows_and_ties() -> None:
    x = inp("x", 7, 7)
    i, j, u, v = (d(f"${n}") for n in "ijuv")
    body = load(x, i * 2 + u - 1, j * 2 + v - 1, other=float("-inf"))
    y = comp(body, axes(i=4, j=4), "max", axes(u=3, v=3))
    assert updates(check_gradients(y, [x], [x])) == 0
    tied = autodiff(graph(grads(total(y), x), [x]))
    got = run(tied, {}, {"x": np.zeros((7, 7))}).results[0]
    weights = np.sin(1 + 3 * np.arange(4)[:, None] + 5 * np.arange(4)[None, :])
    np.testing.assert_allclose(got.sum(), weights.sum())
    np.testing.assert_allclose(got[1, 1], weights[1, 1])  # the first position of its window


# ---- C: radix forms


def test_radix_read_is_determined() -> None:
    x = inp("x", "B", d("C") * d("H") * d("K"))
    at = d("$c") * d("H") * d("K") + d("$h") * d("K") + d("$e")
    y = comp(load(x, "$b", at), axes(b="B", h="H", c="C", e="K"))
    g = check_gradients(y, [x], [x], {"B": 2, "C": 3, "H": 2, "K": 2})
    dx = gradient_of(g)
    assert updates(g) == 0 and not dx.raxes and not isinstance(dx.body, Select)


def test_merged_axis() -> None:
    x = inp("x", "H", "T", "K")
    m, k = d("$m"), d("K")
    y = comp(load(x, m // k, "$t", m % k), axes(t="T", m=d("H") * k))
    g = check_gradients(y, [x], [x], {"H": 2, "T": 3, "K": 4})
    dx = gradient_of(g)
    assert updates(g) == 0 and not dx.raxes and not isinstance(dx.body, Select)


def test_merged_axis_of_three() -> None:
    x = inp("x", "H", "T", "K")
    m, k, t = d("$m"), d("K"), d("T")
    y = comp(load(x, m // (k * t), m // k % t, m % k), axes(m=d("H") * t * k))
    g = check_gradients(y, [x], [x], {"H": 2, "T": 3, "K": 4})
    assert updates(g) == 0 and not gradient_of(g).raxes


@pytest.mark.parametrize("size", [8, 7])
def test_nearest_upsampling(size: int) -> None:
    x = inp("x", 4)
    g = check_gradients(comp(load(x, d("$i") // 2), axes(i=size)), [x], [x])
    assert updates(g) == 0 and gradient_of(g).op == "sum"


def test_non_overlapping_pool_has_no_loops_left() -> None:
    x = inp("x", 7)
    y = comp(load(x, d("$i") * 2 + d("$u")), axes(i=3), "sum", axes(u=2))
    assert not gradient_of(check_gradients(y, [x], [x])).raxes


def test_gaps_between_digits() -> None:
    x = inp("x", 12)
    y = comp(load(x, d("$i") * 4 + d("$u")), axes(i=3, u=2))
    assert not gradient_of(check_gradients(y, [x], [x])).raxes


def test_window_inside_a_radix_form() -> None:
    x = inp("x", 3 * 8)
    at = d("$c") * 8 + d("$i") * 2 + d("$u")
    y = comp(load(x, at), axes(c=3, i=3, u=3))
    g = check_gradients(y, [x], [x])
    assert updates(g) == 0 and len(gradient_of(g).raxes) == 1


# ---- D: data-dependent


def test_picked_element_is_a_gather() -> None:
    x, t = inp("x", "B", 5), inp("t", "B", dtype="i32")
    y = comp(op("exp", load(x, "$b", load(t, "$b"), check=True)), axes(b="B"))
    g = check_gradients(y, [x], [x, t], {"B": 4}, {"t": [0, 4, 2, 2]})
    assert updates(g) == 0


def test_table_is_a_segmented_sum() -> None:
    w, t = inp("w", 5, "D"), inp("t", "B", "T", dtype="i32")
    y = comp(load(w, load(t, "$b", "$t"), "$d", check=True), axes(b="B", t="T", d="D"))
    tokens = np.array([[0, 4, 2], [2, 2, 0]])
    g = check_gradients(y, [w], [w, t], {"B": 2, "T": 3, "D": 2}, {"t": tokens})
    (found,) = [n for n in nodes(g) if isinstance(n, Update)]
    assert found.accumulate and found.check is NOWHERE and len(found.axes) == 3


def test_table_under_a_contraction_is_summed_first() -> None:
    w, t, x = inp("w", 5, 3), inp("t", "B", dtype="i32"), inp("x", 3, 4)
    body = mul(load(w, load(t, "$b"), "$k", check=True), load(x, "$k", "$d"))
    y = comp(body, axes(b="B", d=4), "sum", axes(k=3))
    g = check_gradients(y, [w, x], [w, t, x], {"B": 3}, {"t": [1, 4, 1]})
    (found,) = [n for n in nodes(g) if isinstance(n, Update)]
    assert [a.var for a in found.axes] == ["$b", "$k"]


def test_bilinear_sampling_outside_gives_nothing() -> None:
    x, t = inp("x", 4, 4), inp("t", 6, dtype="i32")
    y = comp(op("exp", load(x, load(t, "$i"), "$j", other=0.0)), axes(i=6, j=4))
    check_gradients(y, [x], [x, t], values={"t": [-1, 0, 3, 4, 0, 9]})


def test_permuted_rows() -> None:
    x, t = inp("x", 3, 4), inp("t", 4, dtype="i32")
    y = comp(load(x, "$i", load(t, "$j"), check=True), axes(i=3, j=4))
    check_gradients(y, [x], [x, t], values={"t": [3, 0, 0, 1]})


# ---- Select


def test_untaken_branch_gives_no_nan() -> None:
    x = inp("x", 4)
    positive = op("gt", load(x, "$i"), const(0, "f64"))
    y = comp(select(positive, op("log", load(x, "$i")), const(0, "f64")), axes(i=4))
    g = autodiff(graph(grads(total(y), x), [x]))
    got = run(g, {}, {"x": [0.0, 2.0, -1.0, 0.5]}).results[0]
    assert np.isfinite(got).all() and got[0] == 0 and got[2] == 0 and got[1] != 0
    check_gradients(y, [x], [x], values={"x": [0.3, 2.0, -1.0, 0.5]})


def test_sqrt_of_zero_behind_a_maximum() -> None:
    x = inp("x", 3)
    y = comp(op("max", const(0.25, "f64"), op("sqrt", load(x, "$i"))), axes(i=3))
    got = run(autodiff(graph(grads(total(y), x), [x])), {}, {"x": [0.0, 1.0, 0.01]}).results[0]
    assert got[0] == 0 and got[2] == 0 and got[1] != 0


def test_shared_value_in_both_branches() -> None:
    x, c = inp("x", 4), inp("c", 4)
    e = op("exp", load(x, "$i"))
    cond = op("gt", load(c, "$i"), const(0, "f64"))
    y = comp(select(cond, mul(e, e), neg(e)), axes(i=4))
    check_gradients(y, [x], [x, c])


def test_shared_value_in_branches_of_several_selects() -> None:
    x, c = inp("x", 5), inp("c", 5)
    log = op("log", load(x, "$i"))
    a = op("gt", load(x, "$i"), const(0, "f64"))
    b = op("and", a, op("gt", load(c, "$i"), const(0, "f64")))
    first = select(a, mul(log, log), const(0, "f64"))
    second = select(b, log, select(a, neg(log), const(1, "f64")))
    y = comp(add(first, mul(second, const(3, "f64"))), axes(i=5))
    values = {"x": [0.5, 2.0, 1.5, 0.25, 3.0], "c": [1.0, -1.0, 1.0, -1.0, 1.0]}
    check_gradients(y, [x], [x, c], values=values)
    zero = {"x": [0.0, -1.0, 1.5, 0.0, 3.0], "c": [1.0, -1.0, 1.0, -1.0, 1.0]}
    got = run(autodiff(graph(grads(total(y), x), [x, c])), {}, zero).results[0]
    assert np.isfinite(got).all() and got[0] == got[1] == got[3] == 0


def test_long_chain_of_selects_stays_small() -> None:
    x = inp("x", 3)
    e: Expr = load(x, "$i")
    for k in range(60):
        cond = op("gt", load(x, "$i"), const(k * 0.01 - 0.3, "f64"))
        e = select(cond, op("sin", e), mul(e, const(0.9, "f64")))
    check_gradients(comp(e, axes(i=3)), [x], [x], tolerance=1e-5)


def test_causal_mask() -> None:
    k = inp("k", "T")
    inside = op("le", idx("$r"), idx("$t"))
    window = op("exp", load(k, d("$t") - d("$r")))
    y = comp(select(inside, window, const(0, "f64")), axes(t="T", r="R"))
    assert updates(check_gradients(y, [k], [k], {"T": 5, "R": 3})) == 0


# ---- reductions


@pytest.mark.parametrize("reduce", ["sum", "prod", "max", "min"])
def test_reductions_over_one_and_two_axes(reduce: str) -> None:
    x = inp("x", 3, "M", 4)
    body = op("sin", load(x, "$i", "$j", "$k"))
    over_two = comp(body, axes(i=3), reduce, axes(j="M", k=4))
    over_one = comp(body, axes(k=4, i=3), reduce, axes(j="M"))
    for y in (over_two, over_one):
        check_gradients(y, [x], [x], {"M": 2})


@pytest.mark.parametrize("zeros", [1, 2])
def test_product_with_zeros(zeros: int) -> None:
    x = inp("x", 4)
    y = comp(load(x, "$i"), (), "prod", axes(i=4))
    check_gradients(y, [x], [x], values={"x": [1.5, 0.0, -2.0, 0.0 if zeros == 2 else 0.5]})


def test_nan_is_extremal() -> None:
    x = inp("x", 3)
    y = comp(load(x, "$i"), (), "max", axes(i=3))
    g = autodiff(graph(grads(y, x), [x]))
    np.testing.assert_array_equal(run(g, {}, {"x": [1, np.nan, 9]}).results[0], [0, 1, 0])


def test_soft_max_and_layer_norm() -> None:
    x = inp("x", "B", 5)
    top = comp(load(x, "$b", "$i"), axes(b="B"), "max", axes(i=5))
    e = comp(op("exp", sub(load(x, "$b", "$i"), load(top, "$b"))), axes(b="B", i=5))
    z = comp(load(e, "$b", "$i"), axes(b="B"), "sum", axes(i=5))
    p = comp(op("div", load(e, "$b", "$i"), load(z, "$b")), axes(b="B", i=5))
    check_gradients(p, [x], [x], {"B": 3})


def test_log_sum_exp_of_one_body() -> None:
    x, w = inp("x", 3, 4), inp("w", 4)
    body = op("exp", mul(load(x, "$i", "$j"), load(w, "$j")))
    total_ = comp(body, axes(i=3), "sum", axes(j=4))
    check_gradients(comp(op("log", load(total_, "$i")), axes(i=3)), [x, w], [x, w])


# ---- Update


def test_update_sets() -> None:
    x, v = inp("x", 5), inp("v", 3)
    y = update(x, axes(i=3), [d("$i") + 1], op("exp", load(v, "$i")))
    check_gradients(y, [x, v], [x, v])


def test_update_accumulates() -> None:
    x, v, t = inp("x", 5), inp("v", 4), inp("t", 4, dtype="i32")
    value = mul(load(v, "$i"), load(v, "$i"))
    y = update(x, axes(i=4), [load(t, "$i")], value, accumulate="add", check=NOWHERE)
    check_gradients(y, [x, v], [x, v, t], values={"t": [4, 1, 1, 0]})


def test_update_with_guard() -> None:
    x, v = inp("x", 5), inp("v", 5)
    guard = op("gt", load(v, "$i"), const(0, "f64"))
    y = update(x, axes(i=5), ["$i"], op("log", load(v, "$i")), guard=guard)
    check_gradients(y, [x, v], [x, v], values={"v": [0.5, -1.0, 2.0, -0.5, 1.0]})


# ---- nesting, dependence


def second(y: Node, x: Node) -> Part:
    (first,) = grads(y, x)
    return grads(total(first), x)[0]


def second_numeric(y: Node, x: Node, values: dict[str, np.ndarray]) -> np.ndarray:
    from tests.graphs import numeric_gradient

    (first,) = grads(y, x)
    explicit = autodiff(graph([total(first)]))
    return numeric_gradient(explicit.results[0], x, {}, values, 1e-5)  # type: ignore[arg-type]


def test_second_derivative_of_a_contraction_chain() -> None:
    x, w = inp("x", 4), inp("w", 3, 4)
    h = comp(mul(load(w, "$o", "$i"), load(x, "$i")), axes(o=3), "sum", axes(i=4))
    y = comp(op("tanh", load(h, "$o")), (), "sum", axes(o=3))
    values = sample([x, w], {})
    g = autodiff(graph([second(y, x)], [x, w]))
    verify(g, "autodiff")
    got = run(g, {}, values).results[0]
    np.testing.assert_allclose(got, second_numeric(y, x, values), rtol=1e-4, atol=1e-6)


def test_second_derivative_of_windows_pools_and_tables() -> None:
    x, t = inp("x", 8), inp("t", 3, dtype="i32")
    windows = comp(
        mul(load(x, d("$i") * 2 + d("$u") - 1, other=0.0), load(x, "$u")),
        axes(i=4),
        "sum",
        axes(u=3),
    )
    cubes = comp(op("powi", load(windows, "$i"), Const("i32", 3)), axes(i=4))
    top = comp(load(cubes, d("$j") * 2 + d("$v")), axes(j=2), "max", axes(v=2))
    rows = comp(mul(load(cubes, load(t, "$k"), check=True), load(x, "$k")), axes(k=3))
    product = comp(load(rows, "$k"), (), "prod", axes(k=3))
    y = comp(add(load(top, 0), mul(load(top, 1), load(product))))
    values = sample([x], {}, 3) | {"t": np.array([1, 3, 1])}
    got = run(autodiff(graph([second(y, x)], [x, t])), {}, values).results[0]
    np.testing.assert_allclose(got, second_numeric(y, x, values), rtol=2e-4, atol=1e-5)


def test_third_derivative() -> None:
    x = inp("x")
    y: Node = comp(op("exp", mul(load(x), load(x))))
    for _ in range(3):
        (y,) = grads(y, x)
    v = 0.7
    got = run(autodiff(graph([y], [x])), {}, {"x": v}).results[0]
    np.testing.assert_allclose(got, np.exp(v * v) * (8 * v**3 + 12 * v))


def test_gradient_of_an_intermediate_counts_all_paths() -> None:
    x = inp("x")
    h = comp(mul(load(x), load(x)))
    y = comp(mul(load(h), load(x)))
    dh, dx = grads(y, h, x)
    got = run(autodiff(graph([dh, dx], [x])), {}, {"x": 2.0}).results
    assert [float(v) for v in got] == [2.0, 12.0]


def test_stop_cuts_and_disappears() -> None:
    x = inp("x", 3)
    stopped = Stop(type=x.type, source=x)
    y = comp(mul(load(stopped, "$i"), load(x, "$i")), axes(i=3))
    g = autodiff(graph([*grads(comp(load(y, "$i"), (), "sum", axes(i=3)), x), stopped], [x]))
    got = run(g, {}, {"x": [1.0, 2.0, 3.0]}).results[0]
    np.testing.assert_array_equal(got, [1, 2, 3])
    assert not any(isinstance(n, Stop) for n in nodes(g))


def test_no_influence_gives_zeros() -> None:
    x, w = inp("x", 3), inp("w", 2)
    g = autodiff(graph(grads(total(x), w), [x, w]))
    np.testing.assert_array_equal(run(g, {}, {"x": [1, 2, 3]}).results[0], [0, 0])


def test_gradient_of_the_variable_itself() -> None:
    x = inp("x")
    assert run(autodiff(graph(grads(x, x), [x])), {}, {"x": 4.0}).results[0] == 1


def test_seed_is_the_cotangent() -> None:
    x, s = inp("x", 3), inp("s", 3)
    y = comp(op("exp", load(x, "$i")), axes(i=3))
    g = Grad(type=y.type, y=y, wrt=(x,), seed=s)
    part = Part(type=x.type, source=g, index=0)
    verify(graph([part], [x, s]), "x")
    got = run(autodiff(graph([part], [x, s])), {}, {"x": [0, 1, 2], "s": [1, 2, 0]}).results[0]
    np.testing.assert_allclose(got, np.exp([0, 1, 2]) * [1, 2, 0])


def test_result_is_read_not_computed_again() -> None:
    x = inp("x", 3)
    y = comp(op("exp", load(x, "$i")), axes(i=3))
    g = autodiff(graph(grads(total(y, weights=False), x), [x]))
    assert g.results[0] is y
    y = comp(op("tanh", load(x, "$i")), axes(i=3))
    g = autodiff(graph(grads(total(y, weights=False), x), [x]))
    assert "tanh" not in print_expr(gradient_of(g).body)


def test_cotangent_has_the_dtype_of_its_tensor() -> None:
    x, w = inp("x", 3, dtype="bf16"), inp("w", 3, dtype="f32")
    y = comp(mul(cast(load(x, "$i"), "f32"), load(w, "$i")), (), "sum", axes(i=3))
    g = autodiff(graph(grads(y, x, w), [x, w]))
    verify(g, "autodiff")
    assert [r.type.dtype for r in g.results] == ["bf16", "f32"]


def test_depends() -> None:
    x, c = inp("x", 3), inp("c", 3)
    cond = op("gt", load(c, "$i"), const(0, "f64"))
    y = comp(select(cond, load(x, "$i"), const(0, "f64")), axes(i=3))
    assert depends(y, x) and not depends(y, c)
    assert not depends(Stop(type=y.type, source=y), x)
    floor = comp(op("floor", load(x, "$i")), axes(i=3))
    arg = comp(load(x, "$i"), (), "argmax", axes(i=3))
    assert not depends(floor, x) and not depends(arg, x)
    (g,) = grads(total(y), x)
    assert depends(comp(load(g, "$i"), axes(i=3)), x)


def test_deep_graphs() -> None:
    x = inp("x")
    y: Node = x
    for _ in range(3000):
        y = comp(mul(load(y), const(1.0001, "f64")))
    got = run(autodiff(graph(grads(y, x), [x])), {}, {"x": 1.0}).results[0]
    np.testing.assert_allclose(got, 1.0001**3000)


def test_deep_bodies() -> None:
    x = inp("x")
    e: Expr = load(x)
    for _ in range(3000):
        e = add(mul(e, const(1.0001, "f64")), const(1e-9, "f64"))
    got = run(autodiff(graph(grads(comp(e), x), [x])), {}, {"x": 1.0}).results[0]
    np.testing.assert_allclose(got, 1.0001**3000)


def test_dim_names_may_be_symbolic_everywhere() -> None:
    x = inp("x", "N")
    y = comp(load(x, Dim.of("N") - d("$i") - 1), axes(i="N"))
    check_gradients(y, [x], [x], {"N": 3})


def test_gradients_of_casts_are_not_rounded_term_by_term() -> None:
    """Products of 16-bit floats are summed as they are: a contraction, as exact as its factors."""
    text = """
export def f(x: f32[B, 24], w: f32[40, 24], t: f32[B, 40]) -> (f32[40, 24], f32[40, 24]):
    h, d = bf16(x), bf16(t)
    y[b, o] = sum[i](h[b, i] * bf16(w[o, i]))
    dw = grad(sum(f32(y) * f32(d)), w)
    want[o, i] = sum[b](f32(d[b, o]) * f32(h[b, i]))
    return dw, want
"""
    (found,) = endtoend.built(text).values()
    groups = fuse(compiler.optimise(found.graph)).groups
    assert all(
        g.kind == "contraction"
        for g in groups
        if any(n.type.rank == 2 and getattr(n, "op", "") == "sum" for n in g.nodes)
    )
    rng = np.random.default_rng(3)
    inputs = endtoend.sample(found.graph, {"B": 70}, rng)
    (got, want), _ = endtoend.run_native(found.graph, {"B": 70}, inputs)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
