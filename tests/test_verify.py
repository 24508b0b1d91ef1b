"""Planted faults: each must be caught, and the pass named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from nnc.ir.bounds import obligations, simplify_dim
from nnc.ir.expr import Const, Expr, Op, Select
from nnc.ir.graph import Axis, Compute, Constant, Graph, Part, Write
from nnc.ir.scalar import add, const, op, select
from nnc.lang.dims import Dim, Facts
from nnc.lang.types import TensorType
from nnc.passes.verify import verify
from tests.graphs import axes, comp, d, grads, graph, idx, inp, load, total, update

X = inp("x", "B", 4)
V = inp("v", 4)


def good(body: Expr, **more: object) -> Graph:
    return graph([comp(body, axes(b="B", i=4))], [X, V], ["B"], **more)  # type: ignore[arg-type]


def raw(**more: object) -> Compute:
    fields: dict[str, object] = {
        "type": TensorType("f64", (d("B"), d(4))),
        "axes": axes(b="B", i=4),
        "body": load(X, "$b", "$i"),
    }
    return Compute(**(fields | more))  # type: ignore[arg-type]


def cyclic() -> Graph:
    first = comp(load(V, "$i"), axes(i=4))
    second = comp(load(first, "$i"), axes(i=4))
    object.__setattr__(first, "body", load(second, "$i"))
    return graph([second], [V])


PLANTED: dict[str, tuple[Callable[[], Graph], str]] = {
    "shape": (
        lambda: graph([raw(type=TensorType("f64", (d("B"), d(5))))], [X], ["B"]),
        "extents are not the shape",
    ),
    "dtype": (
        lambda: graph([raw(type=TensorType("f32", (d("B"), d(4))))], [X], ["B"]),
        "a body of",
    ),
    "unbound": (lambda: good(load(X, "$b", "$j")), "unbound"),
    "outside": (lambda: good(load(X, "$b", d("$i") + 1)), "above 3"),
    "below": (lambda: good(load(X, d("$b") - 1, "$i")), "below 0"),
    "rank": (lambda: good(load(X, "$b")), "1 indices for"),
    "op dtype": (lambda: good(Op("f64", "add", (load(X, "$b", "$i"), idx("$b")))), "add of"),
    "op arity": (lambda: good(Op("f64", "exp", (load(V, "$i"),) * 2)), "2 operands"),
    "op name": (lambda: good(Op("f64", "exq", (load(V, "$i"),))), "unknown function"),
    "select": (
        lambda: good(Select("f64", load(V, "$i"), load(V, "$i"), load(V, "$i"))),
        "a select of",
    ),
    "const": (lambda: good(Const("i32", 1.5)), "constant"),
    "axes twice": (
        lambda: graph([raw(axes=(Axis("$b", d("B")), Axis("$b", d(4))))], [X], ["B"]),
        "one name",
    ),
    "no reduction": (lambda: graph([raw(raxes=axes(j=3))], [X], ["B"]), "without a reduction"),
    "reduction": (
        lambda: graph([comp(load(V, "$i"), (), "median", axes(i=4))], [V]),
        "unknown reduction",
    ),
    "arg over two": (
        lambda: graph([comp(load(X, "$b", "$i"), (), "argmax", axes(b="B", i=4))], [X], ["B"]),
        "argmax over 2",
    ),
    "input": (lambda: graph([raw()], [V], ["B"]), "not an input"),
    "dim": (lambda: graph([raw()], [X], []), "unknown dims"),
    "write": (lambda: graph([], [X, V], ["B"], [Write(V, raw())]), "a write of"),
    "update": (
        lambda: graph([update(V, axes(i=4), [d("$i") + 1], const(1, "f64"))], [V]),
        "above 3",
    ),
    "constant": (
        lambda: graph([Constant(type=TensorType("f64", (d(3),)), data=(1.0, 2.0))]),
        "2 numbers",
    ),
    "part": (
        lambda: graph([replace(grads(total(V), V)[0], type=TensorType("f64", (d(5),)))], [V]),
        "part 0",
    ),
    "cycle": (cyclic, "a cycle"),
    "float index": (lambda: good(load(V, load(V, "$i"))), "not an integer"),
    "else branch": (
        lambda: good(
            select(op("ge", idx("$i"), idx(1)), const(0, "f64"), load(V, d("$i") - 1)),
        ),
        "below 0",
    ),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_fault_is_caught(fault: str) -> None:
    make, text = PLANTED[fault]
    with pytest.raises(AssertionError, match="after planting: ") as caught:
        verify(make(), after="planting")
    assert text in str(caught.value)


def test_good_graphs_pass() -> None:
    back = load(V, d("$i") - 1)
    verify(good(load(X, "$b", "$i")), "x")
    verify(good(select(op("ge", idx("$i"), idx(1)), back, const(0, "f64"))), "x")
    verify(good(select(op("lt", idx("$i"), idx(1)), const(0, "f64"), back)), "x")
    both = op("and", op("ge", idx("$i"), idx(1)), op("ge", idx("$b"), idx(2)))
    verify(good(select(both, add(back, load(X, d("$b") - 2, "$i")), const(0, "f64"))), "x")
    verify(good(load(V, d("$i") - 1, other=0.0)), "x")
    verify(good(load(X, 0, "$i")), "x")
    part = grads(total(X), X)
    assert isinstance(part[0], Part)
    verify(graph(part, [X], ["B"]), "x")


def test_causal_condition_proves_a_window() -> None:
    k = inp("k", "T")
    body = select(op("le", idx("$r"), idx("$t")), load(k, d("$t") - d("$r")), const(0, "f64"))
    verify(graph([comp(body, axes(t="T", r="R"))], [k], ["T", "R"]), "x")


def test_facts_of_the_entry() -> None:
    w = inp("w", "S")
    y = comp(load(w, d("P") + d("$t")), axes(t="T"))
    facts = Facts(frozenset({"P"}), (d("S") - d("P") - d("T"),))
    verify(graph([y], [w], ["S", "P", "T"], facts=facts), "x")
    with pytest.raises(AssertionError):
        verify(graph([y], [w], ["S", "P", "T"]), "x")


def test_shared_load_needs_its_weakest_condition() -> None:
    inside = load(V, d("$i") - 1)
    cond = op("ge", idx("$i"), idx(1))
    verify(good(select(cond, inside, const(0, "f64"))), "x")
    with pytest.raises(AssertionError):
        verify(good(add(select(cond, inside, const(0, "f64")), inside)), "x")


def test_obligations_give_extremes() -> None:
    bad = load(V, d("$i") * 2 - 1)
    (found,) = obligations([bad], axes(i="N"), Facts())
    assert (found.low_ok, found.high_ok) == (False, False)
    assert (found.low, found.high) == (Dim.of(-1), d("N") * 2 - 3)


def test_merged_axis_is_inside() -> None:
    q = inp("q", "C", "H", "K")
    m, h, k = d("$m"), d("H"), d("K")
    body = load(q, m // (h * k), m // k % h, m % k)
    verify(graph([comp(body, axes(m=d("C") * h * k))], [q], ["C", "H", "K"]), "x")


def test_simplify_dim() -> None:
    ranges = {"$c": (Dim.of(0), d("C") - 1), "$e": (Dim.of(0), d("K") - 1)}
    m = d("$c") * d("K") + d("$e")
    assert simplify_dim(m // d("K"), Facts(), ranges) == d("$c")
    assert simplify_dim(m % d("K"), Facts(), ranges) == d("$e")
