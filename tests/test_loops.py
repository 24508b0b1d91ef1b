"""Run-time loops in the Graph IR: the oracle, the text, verify, simplification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from nnc.ir.expr import Const, Op
from nnc.ir.graph import Axis, Graph, Input, Node, Part
from nnc.ir.interpret import run
from nnc.ir.printer import print_graph
from nnc.ir.scalar import add, mul, op
from nnc.lang.dims import Dim, DimLike
from nnc.lang.types import TensorType
from nnc.passes.simplify import simplify
from nnc.passes.verify import verify
from tests.graphs import (
    axes,
    comp,
    graph,
    idx,
    inp,
    load,
    sample,
)
from tests.turns import (
    carry,
    loop,
    loops_of,
    matrix_sum,
    number,
    powers,
    source,
    summed,
)

# ---- the oracle ---------------------------------------------------------------------------


def test_sum_and_sums_so_far() -> None:
    x = inp("x", "T")
    g = graph(summed(x), [x], ["T"])
    verify(g, "building")
    values = np.array([1.0, 2.0, 4.0])
    total, so_far = run(g, {"T": 3}, {"x": values}).results
    assert total == 7
    np.testing.assert_array_equal(so_far, [1, 3, 7])
    total, so_far = run(g, {"T": 0}, {"x": values[:0]}).results
    assert total == 0 and so_far.shape == (0,)


def test_backwards() -> None:
    x = inp("x", "T")
    g = graph(summed(x, reverse=True), [x], ["T"])
    verify(g, "building")
    total, so_far = run(g, {"T": 3}, {"x": np.array([1.0, 2.0, 4.0])}).results
    assert total == 7
    np.testing.assert_array_equal(so_far, [7, 6, 4])


def test_while() -> None:
    g = graph(powers())
    verify(g, "building")
    assert [float(x) for x in run(g, {}, {}).results] == [192, 6]


def test_nested() -> None:
    x = inp("x", "N", "M")
    g = graph([matrix_sum(x)], [x], ["N", "M"])
    verify(g, "building")
    assert run(g, {"N": 2, "M": 3}, {"x": np.arange(6.0).reshape(2, 3)}).results[0] == 15


# ---- the text -----------------------------------------------------------------------------


def test_text() -> None:
    x = inp("x", "N", "M")
    assert print_graph(graph([matrix_sum(x)], [x], ["N", "M"])) == (
        "def f(N, M):\n"
        "  x: f64[N, M]                                                          # arg\n"
        "  %0: f64 = 0.0\n"
        "  %1.0: f64 = loop i.0:N carry a = %0:\n"
        "    %2.0: f64 = loop j.0:M carry a.2 = a:\n"
        "      %3: f64 = a.2 + x[i.0, j.0]\n"
        "      next %3\n"
        "    next %2.0\n"
        "  return %1.0\n"
    )
    v = inp("v", "T")
    text = print_graph(graph(summed(v, reverse=True)[1:], [v], ["T"]))
    assert "  _, %1.1: f64[T] = loop back t.0:T carry s = %0:\n" in text
    assert "    yield %2\n" in text
    assert "    while %3\n" in print_graph(graph(powers()))


# ---- verify -------------------------------------------------------------------------------


def planted(**more: object) -> Graph:
    x = inp("x", "T")
    made = source(summed(x), **more)
    return graph([Part(type=made.type, source=made, index=0)], [x], ["T"])


def outside() -> Graph:
    x = inp("x", "T")
    parts = summed(x)
    made = source(parts)
    return graph([*parts, comp(load(made.carries[0]))], [x], ["T"])


def reads(at: DimLike) -> Graph:
    x, s = inp("x", "T"), carry("s")
    new = comp(add(load(s), load(x, at)))
    return graph(loop("$t.0", "T", [(s, number(0), new)]), [x], ["T"])


def same_name_inside() -> Graph:
    s = carry("s")
    clash = comp(load(s), (Axis("$t.0", Dim.of("T")),))
    new = comp(load(clash, 0))
    return graph(loop("$t.0", "T", [(s, number(0), new)]), [], ["T"])


def wrong_kind() -> Graph:
    x, s = inp("x", "T"), inp("s")
    new = comp(add(load(s), load(x, "$t.0")))
    return graph(loop("$t.0", "T", [(s, number(0), new)]), [x, s], ["T"])


def nested_same_name() -> Graph:
    x = inp("x", "N", "N")
    outer, inner = carry("a"), carry("b")
    within = comp(add(load(inner), load(x, "$i.0", "$i.0")))
    (row,) = loop("$i.0", "N", [(inner, outer, within)])
    return graph(loop("$i.0", "N", [(outer, number(0), row)]), [x], ["N"])


def twice() -> Graph:
    x = inp("x", "T")
    a, b = summed(x), summed(x)
    return graph([a[0], b[0]], [x], ["T"])


def shared_placeholder() -> Graph:
    x = inp("x", "T")
    a = source(summed(x))
    b = replace(a, var="$u.0", next=(comp(add(load(a.carries[0]), load(x, "$u.0"))),), yields=())
    return graph([Part.of(a, 0), Part.of(b, 0)], [x], ["T"])


def part(index: int, *shape: DimLike) -> Graph:
    x = inp("x", "T")
    made = source(summed(x))
    kind = TensorType("f64", tuple(map(Dim.of, shape)))
    return graph([Part(type=kind, source=made, index=index)], [x], ["T"])


def sized_by_turn() -> Graph:
    x = inp("x", "T")
    return graph(loop("$t.0", "T", [], [comp(load(x, "$i"), axes(i="$t.0"))]), [x], ["T"])


PLANTED: dict[str, tuple[Callable[[], Graph], str]] = {
    "no dollar": (lambda: planted(var="t"), "has no $"),
    "trip": (lambda: planted(trip=Dim.of("N")), "unknown dims in the number of turns"),
    "init": (lambda: planted(init=(comp(idx(1)),)), "starts as i64"),
    "next": (lambda: planted(next=(comp(idx(1)),)), "becomes i64"),
    "kind": (wrong_kind, "is of kind arg"),
    "count": (lambda: planted(init=()), "not one init"),
    "type": (lambda: planted(type=TensorType("f32", ())), "first result"),
    "nothing": (lambda: planted(carries=(), init=(), next=(), yields=()), "without results"),
    "cond": (lambda: planted(cond=number(1), yields=()), "a condition of f64"),
    "cond yields": (lambda: planted(cond=comp(Const("bool", True))), "that yields"),
    "outside": (outside, "outside of its loop"),
    "above": (lambda: reads(Dim.of("$t.0") + 1), "above T-1"),
    "below": (lambda: reads(Dim.of("$t.0") - 1), "below 0"),
    "unbound": (lambda: reads("$u.0"), "unbound $u.0"),
    "axis": (same_name_inside, "two axes have one name"),
    "nested": (nested_same_name, "that of a loop around"),
    "twice": (twice, "two loops over $t.0"),
    "placeholder": (shared_placeholder, "a placeholder of two loops"),
    "part index": (lambda: part(2), "part 2"),
    "part type": (lambda: part(1, "T", "T"), "part 1"),
    "turn in a shape": (sized_by_turn, "unknown dims"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_fault_is_caught(fault: str) -> None:
    make, text = PLANTED[fault]
    with pytest.raises(AssertionError, match="after planting: ") as caught:
        verify(make(), after="planting")
    assert text in str(caught.value)


# ---- simplification -----------------------------------------------------------------------


def simple(*results: Node, inputs: Sequence[Input] = ()) -> Graph:
    before = graph(results, inputs, ["T"])
    verify(before, "building")
    after = simplify(before)
    verify(after, "simplify")
    values = sample(inputs, {"T": 3})
    for a, b in zip(
        run(before, {"T": 3}, values).results, run(after, {"T": 3}, values).results, strict=True
    ):
        np.testing.assert_array_equal(a, b)
    return after


def test_unused_yields_and_carried_values_go() -> None:
    x, a, b, c = inp("x", "T"), carry("a"), carry("b"), carry("c")
    fed = comp(add(load(b), load(x, "$t.0")))  # b is needed by a, c by nothing but itself
    new = comp(mul(load(a), load(fed)))
    self_fed = comp(op("exp", load(c)))
    carried = [(a, number(1), new), (b, number(2), fed), (c, number(3), self_fed)]
    parts = loop("$t.0", "T", carried, [new, self_fed, fed])
    (made,) = loops_of(simple(parts[0], parts[5], inputs=[x]))
    assert [n.name for n in made.carries] == ["a", "b"] and len(made.yields) == 1


def test_a_carried_value_that_never_changes_is_its_init() -> None:
    x, a, b, w = inp("x", "T"), carry("a"), carry("b"), inp("w")
    same = comp(mul(load(b), Const("f64", 1.0)))  # b, after a rule
    new = comp(add(load(a), mul(load(x, "$t.0"), load(same))))
    parts = loop("$t.0", "T", [(a, number(1), new), (b, w, same)])
    g = simple(*parts, inputs=[x, w])
    (made,) = loops_of(g)
    assert [n.name for n in made.carries] == ["a"] and g.results[1] is w


def test_a_loop_that_does_nothing_goes() -> None:
    a, w = carry("a"), inp("w")
    (last,) = loop("$t.0", "T", [(a, w, a)])
    assert simple(last, inputs=[w]).results == (w,)


def test_what_does_not_depend_on_the_turn_is_outside() -> None:
    x, a, w = inp("x", "T"), carry("a"), inp("w")
    turn = Op("f64", "cast", (op("mul", idx("$t.0"), idx(0)),))  # 0, after a rule
    new = comp(add(load(a), op("exp", add(load(w), turn))))
    (made,) = loops_of(simple(*loop("$t.0", "T", [(a, w, new)]), inputs=[x, w]))
    assert made.body == made.next
    still = comp(op("sin", op("add", load(w), turn)))
    again = comp(add(load(a), load(still)))
    (made,) = loops_of(simple(*loop("$t.0", "T", [(a, w, again)]), inputs=[x, w]))
    assert len(made.body) == 1


def test_equal_nodes_become_one_inside_a_loop_and_not_across() -> None:
    x, a = inp("x", "T"), carry("a")
    one = comp(op("exp", load(x, "$t.0")))
    same = comp(op("exp", load(x, "$t.0")))
    other = comp(op("exp", load(x, "$i")), axes(i="T"))
    new = comp(add(add(load(a), load(one)), load(same)))
    parts = loop("$t.0", "T", [(a, number(0), new)], [one, same])
    g = simple(*parts, other, inputs=[x])
    (made,) = loops_of(g)
    assert len(made.body) == 2 and len(made.yields) == 1


def test_a_window_at_the_turn_needs_no_padding() -> None:
    x, a = inp("x", "T"), carry("a")
    new = comp(add(load(a), load(x, "$t.0", other=0.5)))
    g = simple(*loop("$t.0", "T", [(a, number(0), new)]), inputs=[x])
    assert "else" not in print_graph(g)


def test_slices_are_read_where_they_are() -> None:
    x, a = inp("x", "T", 3), carry("a", 3)
    row = comp(load(x, "$t.0", "$i"), axes(i=3))
    new = comp(add(load(a, "$k"), load(row, 2 - Dim.of("$k"))), axes(k=3))
    zero = comp(Const("f64", 0.0), axes(i=3))
    (made,) = loops_of(simple(*loop("$t.0", "T", [(a, zero, new)]), inputs=[x]))
    assert len(made.body) == 1


def test_conditions_are_kept() -> None:
    g = simple(powers()[1])
    (made,) = loops_of(g)
    assert len(made.carries) == 2 and made.cond is not None
