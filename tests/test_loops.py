"""Run-time loops in the Graph IR: printing, the oracle, verify, gradients, simplification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from nnc.ir.expr import Const
from nnc.ir.graph import Axis, Graph, Input, Loop, Node, Part
from nnc.ir.interpret import run
from nnc.ir.printer import print_graph
from nnc.ir.scalar import add, op
from nnc.lang.dims import Dim, DimLike
from nnc.lang.types import TensorType
from nnc.passes.verify import verify
from tests.graphs import axes, comp, graph, idx, inp, load


def carry(name: str, *shape: DimLike, dtype: str = "f64") -> Input:
    return inp(name, *shape, dtype=dtype, kind="carry")


def loop(
    var: str,
    trip: DimLike,
    carried: Sequence[tuple[Input, Node, Node]] = (),
    yields: Sequence[Node] = (),
    **more: object,
) -> tuple[Part, ...]:
    """All results of a loop; `carried`: placeholder, init, next."""
    first = carried[0][0].type if carried else None
    node = Loop(
        type=first or TensorType(yields[0].type.dtype, (Dim.of(trip), *yields[0].type.shape)),
        var=var,
        trip=Dim.of(trip),
        carries=tuple(c for c, _, _ in carried),
        init=tuple(i for _, i, _ in carried),
        next=tuple(n for _, _, n in carried),
        yields=tuple(yields),
        **more,  # type: ignore[arg-type]
    )
    return tuple(Part.of(node, i) for i in range(len(node.results)))


def number(value: float) -> Node:
    return comp(Const("f64", float(value)))


def summed(x: Input, **more: object) -> tuple[Part, ...]:
    """The sum of x and the sums so far."""
    s = carry("s")
    new = comp(add(load(s), load(x, "$t.0")))
    return loop("$t.0", "T", [(s, number(0), new)], [new], **more)


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


def powers() -> tuple[Part, ...]:
    """Doubles until more than 100, at most 1000 times; and counts."""
    v, n = carry("v"), carry("n", dtype="i32")
    cond = comp(op("le", load(v), Const("f64", 100.0)))
    more = comp(add(load(v), load(v))), comp(add(load(n), Const("i32", 1)))
    start = comp(Const("i32", 0))
    carried = [(v, number(3), more[0]), (n, start, more[1])]
    return loop("$t.0", 1000, carried, cond=cond)


def test_while() -> None:
    g = graph(powers())
    verify(g, "building")
    assert [float(x) for x in run(g, {}, {}).results] == [192, 6]


def matrix_sum(x: Input) -> Part:
    """A loop in a loop: the sum of all x[i, j]."""
    outer, inner = carry("a"), carry("a")
    within = comp(add(load(inner), load(x, "$i.0", "$j.0")))
    (row,) = loop("$j.0", "M", [(inner, outer, within)])
    return loop("$i.0", "N", [(outer, number(0), row)])[0]


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


def source(parts: Sequence[Part], **more: object) -> Loop:
    found = parts[0].source
    assert isinstance(found, Loop)
    return replace(found, **more)  # type: ignore[arg-type]


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
