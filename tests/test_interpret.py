"""The oracle and the printer on small graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnc.diagnostics import Source, Span
from nnc.ir.expr import Const, Expr, Idx, Load, Op, Select
from nnc.ir.graph import Graph, Stop, Write
from nnc.ir.interpret import BLOCK, IndexFault, convert, run
from nnc.ir.printer import print_expr, print_graph
from nnc.ir.scalar import add, cast, const, mul, op, select
from nnc.lang.dims import Dim, Facts
from tests.conftest import Golden
from tests.graphs import axes, comp, d, grads, graph, idx, inp, load, total, update

GOLDEN = Path(__file__).parent / "golden" / "graph.txt"


def one(node: object, dims: dict[str, int] | None = None, **inputs: object) -> np.ndarray:
    return run(graph([node]), dims or {}, inputs).results[0]  # type: ignore[list-item]


def matmul() -> tuple[Graph, dict[str, np.ndarray]]:
    x, w = inp("x", "B", 4), inp("w", 3, 4)
    body = mul(load(x, "$b", "$i"), load(w, "$o", "$i"))
    y = comp(body, axes(b="B", o=3), "sum", axes(i=4))
    rng = np.random.default_rng(0)
    return graph([y], [x, w], ["B"]), {"x": rng.normal(size=(5, 4)), "w": rng.normal(size=(3, 4))}


def test_contraction() -> None:
    g, values = matmul()
    np.testing.assert_allclose(run(g, {"B": 5}, values).results[0], values["x"] @ values["w"].T)


def test_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    g, values = matmul()
    whole = run(g, {"B": 5}, values).results[0]
    for block in (1, 5, 30):
        monkeypatch.setattr("nnc.ir.interpret.BLOCK", block)
        np.testing.assert_array_equal(run(g, {"B": 5}, values).results[0], whole)
    assert BLOCK > 1000


def test_other_pads_and_is_lazy() -> None:
    x = inp("x", 3)
    y = comp(load(x, d("$i") - 1, other=-1.0), axes(i=5))
    np.testing.assert_array_equal(one(y, x=[1, 2, 3]), [-1, 1, 2, 3, -1])


def test_select_does_not_load_in_the_untaken_branch() -> None:
    x = inp("x", 3)
    inside = op("ge", idx("$i"), idx(2))
    y = comp(select(inside, load(x, d("$i") - 2), const(9, "f64")), axes(i=5))
    np.testing.assert_array_equal(one(y, x=[1, 2, 3]), [9, 9, 1, 2, 3])


def test_other_is_evaluated_only_outside() -> None:
    x, z = inp("x", 3), inp("z", 1)
    y = comp(load(x, "$i", other=load(z, d("$i") - 3)), axes(i=4))
    np.testing.assert_array_equal(one(y, x=[1, 2, 3], z=[8]), [1, 2, 3, 8])


def test_index_fault_names_place_index_and_extent() -> None:
    w, t = inp("w", 4, 2), inp("t", 3, dtype="i32")
    y = comp(load(w, load(t, "$b"), "$j", check=True), axes(b=3, j=2))
    values = {"w": np.ones((4, 2)), "t": [0, 4, -1]}
    with pytest.raises(IndexFault) as caught:
        one(y, **values)
    assert (caught.value.axis, caught.value.index, caught.value.extent) == (0, 4, 4)


def test_index_fault_only_where_needed() -> None:
    w, t = inp("w", 4), inp("t", 3, dtype="i32")
    taken = op("lt", load(t, "$b"), const(4, "i32"))
    y = comp(select(taken, load(w, load(t, "$b"), check=True), const(0, "f64")), axes(b=3))
    np.testing.assert_array_equal(one(y, w=[1, 2, 3, 4], t=[3, 9, 0]), [4, 0, 1])


@pytest.mark.parametrize("op_, empty", [("sum", 0), ("prod", 1), ("max", -np.inf), ("min", np.inf)])
def test_empty_reductions(op_: str, empty: float) -> None:
    x = inp("x", "N")
    g = graph([comp(load(x, "$i"), (), op_, axes(i="N"))], [x], ["N"])
    assert run(g, {"N": 0}, {"x": np.zeros(0)}).results[0] == empty


@pytest.mark.parametrize("op_, empty", [("any", False), ("all", True)])
def test_empty_logic(op_: str, empty: bool) -> None:
    x = inp("x", "N", dtype="bool")
    g = graph([comp(load(x, "$i"), (), op_, axes(i="N"))], [x], ["N"])
    assert run(g, {"N": 0}, {"x": np.zeros(0, bool)}).results[0] == empty


REDUCED = {
    "sum": np.sum,
    "prod": np.prod,
    "max": np.max,
    "min": np.min,
    "argmax": np.argmax,
    "argmin": np.argmin,
}


@pytest.mark.parametrize("op_", REDUCED)
@pytest.mark.parametrize("dtype", ["f64", "i32", "i8", "u8"])
def test_reductions(op_: str, dtype: str) -> None:
    x = inp("x", 4, 6, dtype=dtype)
    value = np.random.default_rng(1).integers(0, 5, (4, 6)).astype(float)
    want = REDUCED[op_](value, axis=1)
    if dtype == "u8":
        want = want.astype(np.int64) % 256
    elif dtype == "i8":
        want = want.astype(np.int64).astype(np.int8)
    got = one(comp(load(x, "$i", "$j"), axes(i=4), op_, axes(j=6)), x=value)
    np.testing.assert_array_equal(got, want)


def test_nan_is_extremal() -> None:
    x = inp("x", 4)
    value = np.array([1, np.nan, 3, np.nan])
    for name, want in (("max", np.nan), ("min", np.nan), ("argmax", 1), ("argmin", 1)):
        got = one(comp(load(x, "$i"), (), name, axes(i=4)), x=value)
        np.testing.assert_array_equal(got, want)


def test_casts_saturate() -> None:
    x = np.array([np.nan, np.inf, -np.inf, 1e30, -2.9, 300.0, -1.0])
    np.testing.assert_array_equal(convert(x, "u8"), [0, 255, 0, 255, 0, 255, 0])
    top, low = 2**31 - 1, -(2**31)
    np.testing.assert_array_equal(convert(x, "i32"), [0, top, low, top, -2, 300, -1])
    big = np.array([2.0**63, -(2.0**63), 2.0**62])
    np.testing.assert_array_equal(convert(big, "i64"), [2**63 - 1, -(2**63), 2**62])
    np.testing.assert_array_equal(convert(np.array([300, -1]), "i8"), [44, -1])


def test_integers_wrap() -> None:
    x = inp("x", 2, dtype="i8")
    y = comp(mul(load(x, "$i"), const(2, "i8")), axes(i=2))
    np.testing.assert_array_equal(one(y, x=[100, -128]), [-56, 0])


def test_update_sets_and_accumulates() -> None:
    x, v, t = inp("x", 4), inp("v", 3), inp("t", 3, dtype="i32")
    values = {"x": [1.0, 1, 1, 1], "v": [1.0, 2, 3], "t": [2, 0, 2]}
    where = [load(t, "$i")]
    y = update(x, axes(i=3), where, load(v, "$i"), accumulate="add", check=_span(1))
    np.testing.assert_array_equal(one(y, **values), [3, 1, 5, 1])
    y = update(x, axes(i=3), [d("$i") + 1], load(v, "$i"))
    np.testing.assert_array_equal(one(y, **values), [1, 1, 2, 3])
    guard = op("ne", load(t, "$i"), const(2, "i32"))
    y = update(x, axes(i=3), where, load(v, "$i"), guard=guard, check=_span(1))
    np.testing.assert_array_equal(one(y, **values), [2, 1, 1, 1])
    y = update(x, axes(i=3), [add(load(t, "$i"), const(3, "i32"))], load(v, "$i"), check=_span(1))
    with pytest.raises(IndexFault):
        one(y, **values)


def test_writes_and_scalars() -> None:
    x = inp("x", kind="state")
    y = comp(add(load(x), const(1, "f64")))
    got = run(graph([], [x], writes=[Write(x, y)]), {}, {"x": 2.0})
    assert got.writes["x"] == 3 and got.values[x] == 2


def test_index_arithmetic() -> None:
    dims = {"H": 3, "K": 4}
    m = d("$m")
    y = comp(Idx(m // d("K") * 100 + m % d("K")), axes(m=d("H") * d("K")))
    np.testing.assert_array_equal(
        run(graph([y], [], list(dims)), dims, {}).results[0],
        [i // 4 * 100 + i % 4 for i in range(12)],
    )


# ---- printing ----------------------------------------------------------------------------


def _span(line: int) -> Span:
    return Span(Source("mlp.nn", ""), line, 1, line, 2)


def test_print_graph(golden: Golden) -> None:
    x, w = inp("x", "B", 64, dtype="f32"), inp("net.fc1.weight", 128, 64, dtype="f32", kind="param")
    t = inp("t", "B", dtype="i32")
    body = mul(load(x, "$b", "$i"), load(w, "$o", "$i"))
    h = comp(body, axes(b="B", o=128), "sum", axes(i=64))
    z = load(h, "$b", "$o")
    half = mul(z, const(0.5, "f32"))
    inner = mul(half, add(const(1, "f32"), op("erf", half)))
    act = comp(inner, axes(b="B", o=128))
    picked = comp(load(act, "$b", load(t, "$b"), check=True), axes(b="B"))
    shifted = load(picked, d("$b") * 2 - 1, other=0.0)
    guard = op("and", op("ge", idx("$b"), idx(1)), op("not", op("lt", idx("$b"), idx("B"))))
    lazy = comp(Select("f32", guard, shifted, Const("f32", float("-inf"))), axes(b="B"))
    loss = comp(load(lazy, "$b"), (), "max", axes(b="B"))
    (dw,) = grads(loss, w)
    step = update(
        w, axes(o=128, i=64), ["$o", "$i"], op("neg", load(dw, "$o", "$i")), accumulate="add"
    )
    facts = Facts(frozenset(), (d("B") - 2,))
    g = graph([Stop(type=loss.type, source=loss)], [x, w, t], ["B"], [Write(w, step)], facts)
    golden(GOLDEN, print_graph(g))


@pytest.mark.parametrize(
    "e, text",
    [
        (op("sub", idx("a"), op("sub", idx("b"), idx("c"))), "a - (b - c)"),
        (op("sub", op("sub", idx("a"), idx("b")), idx("c")), "a - b - c"),
        (op("mul", op("add", idx("a"), idx("b")), idx("c")), "(a + b) * c"),
        (op("mul", idx(d("a") + 1), idx("c")), "(a+1) * c"),
        (op("neg", op("neg", idx("a"))), "--a"),
        (op("mul", op("neg", idx("a")), idx("b")), "-a * b"),
        (op("powi", op("neg", idx("a")), Const("i32", 2)), "(-a)**2"),
        (op("not", op("eq", idx("a"), idx("b"))), "not a == b"),
        (op("and", op("or", idx("a"), idx("b")), idx("c")), "(a or b) and c"),
        (cast(op("max", idx("$i"), idx("b")), "f32"), "f32(max(i, b))"),
        (Const("f32", float("inf")), "inf"),
        (Const("bool", True), "true"),
        (Idx((d("H") + 2 * Dim.of("p") - d("k")) // d("s") + 1), "(H+2*p-k)//s+1"),
    ],
)
def test_print_expr(e: Expr, text: str) -> None:
    assert print_expr(e) == text


def test_long_expressions_print_in_pieces() -> None:
    x = inp("x", 3)
    e: Expr = load(x, "$i")
    for _ in range(20_000):
        e = Op("f64", "exp", (e,))
    text = print_graph(graph([comp(e, axes(i=3))], [x]))
    assert max(map(len, text.splitlines())) < 400


def test_load_is_comparable_by_identity_only() -> None:
    x = inp("x", 3)
    assert Load("f64", x, (idx("$i"),)) != Load("f64", x, (idx("$i"),))
    assert total(x).type.rank == 0
