"""Fusion and lowering of whole programs: the right numbers in the right number of kernels."""

from __future__ import annotations

import numpy as np
import pytest

from nnc.diagnostics import NOWHERE
from nnc.ir.expr import Const, Expr, Idx, Load, Op, Select, walk
from nnc.ir.graph import Compute, Input, Node, Write
from nnc.ir.interpret_loop import ProgramFault, run_program
from nnc.ir.loop import Commit
from nnc.ir.scalar import add, cast, const, div, mul, neg, op, sub
from nnc.passes.fuse import fuse
from tests.graphs import axes, comp, d, graph, idx, inp, load, update
from tests.lowering import check, compile_graph, contractions, loops, reasons

SIZES = {"B": 3, "T": 5}


def cells(t: Node, *names: str) -> Expr:
    return load(t, *(f"${n}" for n in names))


def matmul(x: Node, w: Node, transposed: bool = True) -> Compute:
    """`x[b, i] * w[o, i]` (or `w[i, o]`) summed over i."""
    b, i = x.type.shape
    o = w.type.shape[0 if transposed else 1]
    weight = cells(w, "o", "i") if transposed else cells(w, "i", "o")
    return comp(mul(cells(x, "b", "i"), weight), axes(b=b, o=o), "sum", axes(i=i))


def linear(x: Node, w: Node, b: Node) -> Compute:
    y = matmul(x, w)
    return comp(add(cells(y, "b", "o"), cells(b, "o")), y.axes)


def relu(x: Node) -> Compute:
    return pointwise(x, lambda e: op("max", e, const(0, e)))


def pointwise(x: Node, fn, *more: Node) -> Compute:
    over = axes(**{f"i{j}": n for j, n in enumerate(x.type.shape)})
    names = [a.var[1:] for a in over]
    return comp(fn(*(cells(t, *names) for t in (x, *more))), over)


def softmax(x: Node) -> tuple[Compute, Compute, Compute, Compute]:
    b, t = x.type.shape
    m = comp(cells(x, "b", "t"), axes(b=b), "max", axes(t=t))
    e = comp(op("exp", sub(cells(x, "b", "t"), cells(m, "b"))), axes(b=b, t=t))
    s = comp(cells(e, "b", "t"), axes(b=b), "sum", axes(t=t))
    return m, e, s, comp(div(cells(e, "b", "t"), cells(s, "b")), axes(b=b, t=t))


# ---- contractions and epilogues -----------------------------------------------------------------


def test_matmul_bias_relu_is_one_kernel() -> None:
    x, w, b = inp("x", "B", 6), inp("w", 4, 6), inp("b", 4)
    p = check(graph([relu(linear(x, w, b))], [x, w, b], ["B"]), SIZES, kernels=1)
    assert reasons(p) == ["contraction m=[b] n=[o] k=[i], epilogue: add max"]
    assert not p.arena.terms


def test_layouts_of_both_operands() -> None:
    x, w = inp("x", "B", 6), inp("w", 6, 4)
    p = check(graph([matmul(x, w, transposed=False)], [x, w], ["B"]), SIZES, kernels=1)
    assert len(contractions(p)) == 1


def test_the_columns_of_the_output_are_n() -> None:
    x, w = inp("x", "B", 6), inp("w", 4, 6)
    y = comp(mul(cells(x, "b", "i"), cells(w, "o", "i")), axes(o=4, b="B"), "sum", axes(i=6))
    (c,) = contractions(check(graph([y], [x, w], ["B"]), SIZES, kernels=1))
    assert [a.var for a in c.n] == ["$b"] and [a.var for a in c.m] == ["$o"]


def test_batch_and_merged_axes() -> None:
    x, w = inp("x", "B", "T", 6), inp("w", 4, 6)
    y = comp(
        mul(cells(x, "b", "t", "i"), cells(w, "o", "i")), axes(b="B", t="T", o=4), "sum", axes(i=6)
    )
    (c,) = contractions(check(graph([y], [x, w], ["B", "T"]), SIZES, kernels=1))
    assert [a.extent for a in c.m] == [d("B") * d("T")]
    q, k = inp("q", "B", "T", 4), inp("k", "B", "T", 4)
    s = comp(
        mul(cells(q, "b", "t", "e"), cells(k, "b", "j", "e")),
        axes(b="B", t="T", j="T"),
        "sum",
        axes(e=4),
    )
    scaled = pointwise(s, lambda e: mul(e, const(0.5, e)))
    (c,) = contractions(check(graph([scaled], [q, k], ["B", "T"]), SIZES, kernels=1))
    assert [a.var for a in c.batch] == ["$b"] and [a.var for a in c.m] == ["$t"]


def test_an_epilogue_may_store_several_values() -> None:
    x, w, b = inp("x", "B", 6), inp("w", 4, 6), inp("b", 4)
    y = linear(x, w, b)
    g = pointwise(y, lambda e: op("tanh", e))
    p = check(graph([y, g], [x, w, b], ["B"]), SIZES, kernels=1)
    assert len(contractions(p)[0].epilogue) == 4


def test_a_costly_function_is_not_repeated_in_an_operand() -> None:
    x, w, v = inp("x", "B", 6), inp("w", 4, 6), inp("v", 5, 4)
    y = matmul(pointwise(matmul(x, w), lambda e: op("tanh", e)), v)
    p = check(graph([y], [x, w, v], ["B"]), SIZES, kernels=2)
    assert reasons(p)[0].endswith("epilogue: tanh")
    direct = matmul(pointwise(x, lambda e: op("exp", e)), w)
    check(graph([direct], [x, w], ["B"]), SIZES, kernels=2)


def test_a_cheap_function_becomes_a_prologue() -> None:
    x, w = inp("x", "B", 6, dtype="u8"), inp("w", 4, 6)
    y = matmul(pointwise(x, lambda e: div(cast(e, "f64"), Const("f64", 255.0))), w)
    check(graph([y], [x, w], ["B"]), SIZES, kernels=1)


def test_short_sums_and_vectors_are_not_contractions() -> None:
    x, w, v = inp("x", "B", 2), inp("w", 4, 2), inp("v", 16)
    assert not contractions(check(graph([matmul(x, w)], [x, w], ["B"]), SIZES, kernels=1))
    a = inp("a", "B", 16)
    y = comp(mul(cells(a, "b", "i"), cells(v, "i")), axes(b="B"), "sum", axes(i=16))
    p = check(graph([y], [a, v], ["B"]), SIZES, kernels=1)
    assert not contractions(p) and loops(p.kernels[0]) == [("parallel", "$b")]


def test_convolution_as_a_contraction() -> None:
    x, w = inp("x", "B", 2, 6, 6), inp("w", 3, 2, 3, 3)
    body = mul(
        load(x, "$b", "$c", d("$i") + d("$u") - 1, d("$j") + d("$v") - 1, other=0.0),
        cells(w, "o", "c", "u", "v"),
    )
    y = comp(body, axes(b="B", o=3, i=6, j=6), "sum", axes(c=2, u=3, v=3))
    (c,) = contractions(check(graph([y], [x, w], ["B"]), {"B": 2}, kernels=1))
    assert [a.var for a in c.m] == ["$o"]
    pool = comp(
        load(x, "$b", "$c", d("$i") * 2 + d("$u"), d("$j") * 2 + d("$v")),
        axes(b="B", c=2, i=3, j=3),
        "max",
        axes(u=2, v=2),
    )
    p = check(graph([pool], [x], ["B"]), {"B": 2}, kernels=1)
    assert loops(p.kernels[0])[-1] == ("vector", "$j")


def test_gradient_of_a_strided_convolution_of_size_one() -> None:
    """The guards keep the index of the weight at 0, which is all there is."""
    dy, w = inp("dy", "B", 8, 3, 3), inp("w", 8, 4, 1, 1)
    even = op("eq", idx(d("$i") % 2), idx(0))
    both = op("and", even, op("eq", idx(d("$j") % 2), idx(0)))
    product = mul(
        load(dy, "$b", "$o", d("$i") // 2, d("$j") // 2),
        load(w, "$o", "$c", d("$i") % 2, d("$j") % 2),
    )
    body = Select("f64", both, product, Const("f64", 0.0))
    dx = comp(body, axes(b="B", c=4, i=6, j=6), "sum", axes(o=8))
    (c,) = contractions(check(graph([dx], [dy, w], ["B"]), SIZES))
    assert not c.batch and [a.var for a in c.m] == ["$c"]


def test_the_lanes_of_a_channel_sum_run_along_memory() -> None:
    x, w, m = inp("x", "B", 4, "T"), inp("w", 4), inp("m", 4)
    body = mul(mul(cells(x, "b", "c", "t"), cells(w, "c")), cells(m, "c"))
    s = comp(body, axes(c=4), "sum", axes(b="B", t="T"))
    p = check(graph([s], [x, w, m], ["B", "T"]), SIZES)
    assert ("vector", "$c") not in loops(p.kernels[0])


def test_a_window_of_relu_keeps_its_guard() -> None:
    x, w = inp("x", "B", 2, 6), inp("w", 3, 2, 3)
    for fn, simple in (
        (lambda e: op("max", e, const(0, e)), True),
        (lambda e: add(e, const(1, e)), False),
    ):
        h = pointwise(x, fn)
        at = load(h, "$b", "$c", d("$i") + d("$u") - 1, other=0.0)
        y = comp(mul(at, cells(w, "o", "c", "u")), axes(b="B", o=3, i=6), "sum", axes(c=2, u=3))
        (c,) = contractions(check(graph([y], [x, w], ["B"]), SIZES, kernels=1))
        guarded = [e for e in walk(c.b) if isinstance(e, Load) and e.other is not None]
        assert bool(guarded) == simple


def test_merged_heads() -> None:
    """`a[b, t, (h, e)] = sum[j] p[b, h, t, j] * v[b, h, j, e]`."""
    p, v = inp("p", "B", 2, "T", "T"), inp("v", "B", 2, "T", 4)
    h, e = d("$x") // 4, d("$x") % 4
    body = mul(load(p, "$b", h, "$t", "$j"), load(v, "$b", h, "$j", e))
    a = comp(body, axes(b="B", t="T", x=8), "sum", axes(j="T"))
    (c,) = contractions(check(graph([a], [p, v], ["B", "T"]), SIZES, kernels=1))
    assert len(c.batch) == 2 and len(c.m) == len(c.n) == 1


# ---- training -----------------------------------------------------------------------------------


def mlp_step(dims_facts: bool = True):
    """Two layers, mean of squares, gradients by hand, in-place steps of momentum."""
    x, y, lr = inp("x", "B", 6), inp("y", "B", 3), inp("lr")
    shapes = {"w1": (5, 6), "b1": (5,), "w2": (3, 5), "b2": (3,)}
    leaf = {n: inp(n, *s, kind="param") for n, s in shapes.items()}
    mom = {n: inp("m." + n, *s, kind="state") for n, s in shapes.items()}
    z = linear(x, leaf["w1"], leaf["b1"])
    h = relu(z)
    out = linear(h, leaf["w2"], leaf["b2"])
    diff = pointwise(out, sub, y)
    loss = comp(mul(cells(diff, "b", "o"), cells(diff, "b", "o")), (), "sum", axes(b="B", o=3))
    dout = pointwise(diff, lambda e: mul(e, const(2, e)))
    dh = matmul(dout, leaf["w2"], transposed=False)
    dz = pointwise(dh, lambda e, f: Select("f64", op("gt", f, const(0, f)), e, const(0, e)), z)

    def column(g: Node) -> Compute:
        b, o = g.type.shape
        return comp(cells(g, "b", "o"), axes(o=o), "sum", axes(b=b))

    def outer(g: Node, a: Node) -> Compute:
        (b, o), i = g.type.shape, a.type.shape[1]
        body = mul(cells(g, "b", "o"), cells(a, "b", "i"))
        return comp(body, axes(o=o, i=i), "sum", axes(b=b))

    grads = {"w1": outer(dz, x), "b1": column(dz), "w2": outer(dout, h), "b2": column(dout)}
    writes = []
    for n in shapes:
        new = pointwise(mom[n], lambda m, g: add(mul(m, const(0.9, m)), g), grads[n])
        step = pointwise(leaf[n], lambda p, m: sub(p, mul(load(lr), m)), new)
        writes += [Write(mom[n], new), Write(leaf[n], step)]
    inputs = [x, y, lr, *leaf.values(), *mom.values()]
    return graph([loss], inputs, ["B"], writes)


def test_mlp_step() -> None:
    p = check(mlp_step(), SIZES)
    print(reasons(p))
    # 2 layers, loss, and for each layer: input gradient, weight and bias each with its steps.
    assert len(p.kernels) == 8
    assert all("copy" not in k.name for k in p.kernels)


def test_optimizer_is_one_kernel_in_place() -> None:
    names = ("p", "m", "v", "g")
    p, m, v, g = (inp(n, "B", 6, kind="param") for n in names)
    m2 = pointwise(m, lambda a, b: add(mul(a, const(0.9, a)), mul(b, const(0.1, b))), g)
    v2 = pointwise(v, lambda a, b: add(mul(a, const(0.99, a)), mul(mul(b, b), const(0.01, b))), g)
    p2 = pointwise(p, lambda a, b, c: sub(a, div(b, op("sqrt", c))), m2, v2)
    writes = [Write(p, p2), Write(m, m2), Write(v, v2)]
    rng = np.random.default_rng(0)
    values = {n: rng.uniform(0.5, 1, (3, 6)) for n in names}
    program = check(graph([], [p, m, v, g], ["B"], writes), SIZES, kernels=1, inputs=values)
    assert not program.arena.terms
    assert [k for k, _ in loops(program.kernels[0])] == ["parallel", "vector"]


# ---- rows ---------------------------------------------------------------------------------------


def test_softmax_is_one_kernel() -> None:
    x = inp("x", "B", "T")
    p = check(graph([softmax(x)[-1]], [x], ["B", "T"]), SIZES, kernels=1)
    assert reasons(p) == ["row-fused over b: max over t, sub exp, sum over t, div"]
    x = inp("x", "B", 7)
    p = check(graph([softmax(x)[-1]], [x], ["B"]), SIZES, kernels=1)
    assert not p.arena.terms


def test_cross_entropy() -> None:
    x, y = inp("x", "B", 7), inp("y", "B", dtype="i32")
    m, _, s, p = softmax(x)
    picked = load(x, "$b", cells(y, "b"), check=True)
    row = comp(sub(add(op("log", cells(s, "b")), cells(m, "b")), picked), axes(b="B"))
    loss = comp(cells(row, "b"), (), "sum", axes(b="B"))
    mean = comp(div(load(loss), cast(idx("B"), "f64")))
    hit = op("eq", idx("$t"), cast(cells(y, "b"), "i64"))
    one = Select("f64", hit, Const("f64", 1.0), Const("f64", 0.0))
    grad = comp(div(sub(cells(p, "b", "t"), one), cast(idx("B"), "f64")), axes(b="B", t=7))
    check(graph([mean, grad], [x, y], ["B"]), SIZES, kernels=2)


@pytest.mark.parametrize("keep", [False, True])
def test_layer_norm(keep: bool) -> None:
    x, g, b = inp("x", "B", "T", 8), inp("g", 8), inp("b", 8)
    over = axes(b="B", t="T", k=1) if keep else axes(b="B", t="T")
    at: tuple[object, ...] = ("$b", "$t", 0) if keep else ("$b", "$t")

    def mean(e: Expr) -> Compute:
        total = comp(e, over, "sum", axes(d=8))
        return comp(div(load(total, *(a.var for a in over)), Const("f64", 8.0)), over)

    u = mean(cells(x, "b", "t", "d"))
    diff = sub(cells(x, "b", "t", "d"), load(u, *at))
    s = mean(mul(diff, diff))
    r = comp(op("rsqrt", add(load(s, *(a.var for a in over)), Const("f64", 1e-5))), over)
    scaled = mul(mul(diff, load(r, *at)), cells(g, "d"))
    y = comp(add(scaled, cells(b, "d")), axes(b="B", t="T", d=8))
    p = check(graph([y], [x, g, b], ["B", "T"]), SIZES, kernels=1)
    assert loops(p.kernels[0]) == [("parallel", "$bt"), ("vector", "$d_3")]


def test_scalar_mean_and_epilogue_of_a_scalar() -> None:
    x = inp("x", "B", "T")
    s = comp(cells(x, "b", "t"), (), "sum", axes(b="B", t="T"))
    mean = comp(div(load(s), cast(idx(d("B") * d("T")), "f64")))
    check(graph([mean], [x], ["B", "T"]), SIZES, kernels=2)
    x = inp("x", "B")
    s = comp(cells(x, "b"), (), "sum", axes(b="B"))
    mean = comp(div(load(s), cast(idx("B"), "f64")))
    check(graph([mean], [x], ["B"]), SIZES, kernels=1)


# ---- views, updates, results --------------------------------------------------------------------


def test_views_own_nothing() -> None:
    x, w = inp("x", 6, "B"), inp("w", 4, 6)
    t = comp(load(x, "$j", "$i"), axes(i="B", j=6))
    cut = comp(load(t, "$i", d("$j") + 1), axes(i="B", j=5))
    small = comp(load(w, "$o", d("$j") + 1), axes(o=4, j=5))
    check(graph([matmul(cut, small)], [x, w], ["B"]), SIZES, kernels=1)


def test_gather_and_scatter() -> None:
    table, ids = inp("table", 9, 4), inp("ids", "B", "T", dtype="i32")
    row = cells(ids, "b", "t")
    x = comp(load(table, row, "$e", check=True), axes(b="B", t="T", e=4))
    zero = comp(Const("f64", 0.0), axes(r=9, e=4))
    grad = update(
        zero, axes(b="B", t="T", e=4), (row, "$e"), cells(x, "b", "t", "e"), accumulate="add"
    )
    new = pointwise(table, sub, grad)
    p = check(graph([x], [table, ids], ["B", "T"], [Write(table, new)]), SIZES)
    assert sum(isinstance(s, Commit) for s in p.steps) == 1


@pytest.mark.parametrize(("shift", "made"), [(0, True), (1, False)])
def test_the_same_part_of_a_tensor_is_checked_once(shift: int, made: bool) -> None:
    """`embed[text[:, :-1]]` and its gradient: what is written need not wait for the second check."""
    table, ids = inp("table", 9, 4), inp("ids", "B", d("T") + 1, dtype="i32")
    n = inp("n", kind="state")
    over = axes(b="B", t="T", e=4)
    x = comp(load(table, cells(ids, "b", "t"), "$e", check=True), over)
    zero = comp(Const("f64", 0.0), axes(r=9, e=4))
    row = load(ids, "$b", d("$t") + shift)
    back = update(zero, over, (row, "$e"), cells(x, "b", "t", "e"), accumulate="add", check=NOWHERE)
    more = comp(add(load(n), Const("f64", 1.0)))
    g = graph([x, back], [table, ids, n], ["B", "T"], [Write(n, more)])
    assert (len(fuse(g).checks) == 1) is made
    check(g, SIZES)


def test_an_index_error_leaves_storage_alone() -> None:
    table, ids, n = inp("table", 4, 2), inp("ids", "B", dtype="i32"), inp("n", kind="state")
    x = comp(load(table, cells(ids, "b"), "$e", check=True), axes(b="B", e=2))
    s = comp(cells(x, "b", "e"), (), "sum", axes(b="B", e=2))
    more = comp(add(load(n), Const("f64", 1.0)))
    scaled = pointwise(table, lambda e: mul(e, Const("f64", 2.0)))
    g = graph([s], [table, ids, n], ["B"], [Write(n, more), Write(table, scaled)])
    program = compile_graph(g)
    arrays = [np.ones((4, 2)), np.array([1, 7, 0]), np.zeros(())]
    with pytest.raises(ProgramFault) as fault:
        run_program(program, {"B": 3}, arrays)
    for a, b in zip(arrays, fault.value.arguments, strict=False):
        np.testing.assert_array_equal(a, b)
    check(g, SIZES)


def test_indexed_write_in_place() -> None:
    """A cache: `kv[P + t, e] := x[t, e]`, then read."""
    kv, x = inp("kv", 10, 4, kind="state"), inp("x", "B", 4)
    new = update(kv, axes(t="B", e=4), (d("$t") + 2, "$e"), cells(x, "t", "e"))
    s = comp(mul(load(new, "$j", "$e"), cells(x, "t", "e")), axes(t="B", j=10), "sum", axes(e=4))
    from nnc.lang.dims import Facts

    facts = Facts().plus(d(8) - d("B"))
    p = check(graph([s], [kv, x], ["B"], [Write(kv, new)], facts), SIZES, kernels=2)
    assert not p.arena.terms
    old = comp(cells(kv, "j", "e"), (), "sum", axes(j=10, e=4))
    check(graph([s, old], [kv, x], ["B"], [Write(kv, new)], facts), SIZES, kernels=3)
    # Nobody may see the write if the storage is not written.
    check(graph([s], [kv, x], ["B"], [], facts), SIZES, kernels=3)


def test_swapped_storage() -> None:
    a, b = inp("a", 3, kind="state"), inp("b", 3, kind="state")
    check(graph([], [a, b], [], [Write(a, b), Write(b, a)]), {})


def test_results_that_are_inputs_constants_or_equal() -> None:
    from nnc.ir.graph import Constant
    from nnc.lang.types import TensorType

    x = inp("x", 3, kind="state")
    c = Constant(type=TensorType("f64", (d(2),)), data=(1.0, 2.0))
    y = pointwise(x, lambda e: mul(e, e))
    check(graph([x, c, y, y, x], [x], [], [Write(x, y)]), {})


def test_reading_the_old_version_elsewhere_keeps_it() -> None:
    x = inp("x", 6, kind="state")
    turned = comp(load(x, d(5) - d("$i")), axes(i=6))
    check(graph([], [x], [], [Write(x, turned)]), {})
    s = comp(load(x, "$i"), (), "sum", axes(i=6))
    scaled = comp(mul(load(x, "$i"), load(s)), axes(i=6))
    check(graph([], [x], [], [Write(x, scaled)]), {}, kernels=2)


def test_units_and_radix_reductions() -> None:
    x = inp("x", "B", 1, 6)
    s = comp(load(x, "$b", "$u", "$i"), axes(b="B", u=1), "sum", axes(i=6))
    first = comp(load(x, "$b", "$u", 0), axes(b="B"), "argmax", axes(u=1))
    check(graph([s, first], [x], ["B"]), SIZES)
    split = comp(load(x, "$b", 0, d("$i") // 2 * 2 + d("$i") % 2), axes(b="B", i=6))
    check(graph([split], [x], ["B"]), SIZES, kernels=1)


_ = (Input, Idx, Op, neg)


def test_layers_of_one_storage_are_written_in_place() -> None:
    """Versions that are read later, but elsewhere than the next update writes."""
    kv = comp(Const("f64", 0.0), axes(l=3, t="B", e=4))
    x: Node = inp("x", "B", 4)
    first, versions = x, []
    state: Node = kv
    for layer in range(3):
        twice = mul(cells(x, "t", "e"), Const("f64", 2.0))  # a plain copy would be forwarded
        state = update(state, axes(t="B", e=4), (layer, "$t", "$e"), twice)
        s = comp(
            mul(load(state, layer, "$j", "$e"), cells(x, "t", "e")),
            axes(t="B", j="B"),
            "sum",
            axes(e=4),
        )
        x = comp(
            mul(cells(s, "t", "j"), load(state, layer, "$j", "$e")),
            axes(t="B", e=4),
            "sum",
            axes(j="B"),
        )
        versions.append((state, layer))
    back = [
        comp(mul(load(v, i, "$t", "$e"), cells(x, "t", "e")), (), "sum", axes(t="B", e=4))
        for v, i in versions
    ]
    p = check(graph([x, *back], [first], ["B"]), SIZES)
    assert not any("copy" in k.name for k in p.kernels)
    body = mul(load(versions[0][0], "$l", "$t", "$e"), cells(x, "t", "e"))
    whole = comp(body, (), "sum", axes(l=3, t="B", e=4))
    p = check(graph([x, whole], [first], ["B"]), SIZES)
    assert sum("copy" in k.name for k in p.kernels) == 1


def test_sums_of_slices_are_updates() -> None:
    """The gradient of `kv[l]` for all l: no tensor that is zero but for a slice."""
    p, q = inp("p", 3, "B", "T"), inp("q", 3, "T", 4)
    base = inp("base", 3, "B", 4)
    total: Node = pointwise(base, lambda e: op("exp", e))
    seen = []
    for layer in range(3):
        product = mul(load(p, layer, "$b", "$t"), load(q, layer, "$t", "$e"))
        here = op("eq", idx(d("$l") - layer), idx(0))
        body = Select("f64", here, product, Const("f64", 0.0))
        part = comp(body, axes(l=3, b="B", e=4), "sum", axes(t="T"))
        total = comp(add(cells(total, "l", "b", "e"), cells(part, "l", "b", "e")), part.axes)
        seen.append(comp(load(total, layer, "$b", "$e"), axes(b="B", e=4)))
    result = pointwise(seen[0], lambda e, f, g: add(mul(e, f), g), *seen[1:])
    g = check(graph([result], [p, q, base], ["B", "T"]), SIZES)
    names = [k.name.split("_")[1] for k in g.kernels]
    assert names.count("contract") == 3 and names.count("update") == 3
    assert "copy" not in names
    assert all(len(c.batch) == 0 for c in contractions(g))


def test_a_slice_on_its_own() -> None:
    x = inp("x", "B", 4)
    here = op("eq", idx("$l"), idx(2))
    body = Select("f64", here, cells(x, "b", "e"), Const("f64", 0.0))
    s = comp(body, axes(l=3, e=4), "sum", axes(b="B"))
    check(graph([s], [x], ["B"]), SIZES)
    wide = comp(body, axes(l=3, b="B", e=4))
    check(graph([wide], [x], ["B"]), SIZES, kernels=1)


def test_one_element_that_may_be_missed() -> None:
    """An axis of one element, read at a run-time index with a value for outside."""
    x, ids = inp("x", 1), inp("ids", "B", dtype="i32")
    (i, b) = axes(i=1, b="B")
    y = comp(op("sin", load(x, "$i")), (i,))
    z = comp(load(y, load(ids, 0), other=0.5))
    w = comp(load(y, load(ids, "$b"), other=0.5), (b,))
    check(graph([y, z, w], [x, ids], ["B"]), {"B": 3}, inputs={"x": [2.0], "ids": [1, 0, 2]})
