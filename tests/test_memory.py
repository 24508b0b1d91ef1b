"""Places in the arena: reuse, alignment, and what the checker catches."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nnc.ir.graph import Node
from nnc.ir.loop import Buffer, Program
from nnc.ir.scalar import mul, op, sub
from nnc.lang.dims import Facts
from nnc.passes.memory import at_least, lifetimes, rounded
from nnc.passes.verify_loop import verify
from tests.graphs import axes, comp, d, graph, inp, load
from tests.lowering import check, compile_graph


def chain(layers: int, width: object = "B") -> Program:
    """Matrix products one after the other."""
    x = inp("x", "B", 8, dtype="f32")
    w = inp("w", 8, 8, dtype="f32")
    h: Node = x
    for _ in range(layers):
        body = mul(load(h, "$b", "$i"), load(w, "$o", "$i"))
        h = comp(body, axes(b="B", o=8), "sum", axes(i=8))
    return compile_graph(graph([h], [x, w], ["B"]))


def arena(p: Program) -> list[Buffer]:
    return [b for b in p.buffers if b.scope == "arena"]


def test_two_places_serve_a_chain() -> None:
    p = chain(6)
    assert len(arena(p)) == 5
    assert len({b.offset for b in arena(p)}) == 2
    assert p.arena == rounded(d("B") * 32) * 2


def test_a_smaller_value_takes_the_place_of_a_larger() -> None:
    x = inp("x", "B", 8, dtype="f32")
    w, v = inp("w", 32, 8, dtype="f32"), inp("v", 8, 32, dtype="f32")

    def product(a: Node, b: Node) -> Node:
        k, o = a.type.shape[1], b.type.shape[0]
        body = mul(load(a, "$b", "$i"), load(b, "$o", "$i"))
        return comp(body, axes(b="B", o=o), "sum", axes(i=k))

    wide = product(product(product(product(x, w), v), w), v)
    p = check(graph([wide], [x, w, v], ["B"]), {"B": 3})
    assert len({b.offset for b in arena(p)}) == 2


def test_sizes_are_rounded() -> None:
    assert rounded(d(1)).const == 64 and rounded(d(64)).const == 64
    assert rounded(d("B") * 64) == d("B") * 64
    assert rounded(d("B") * 4).evaluate({"B": 17}) == 128


def test_unknown_sizes_do_not_share() -> None:
    x, y = inp("x", "B", 8), inp("y", "T", 8)
    t = comp(op("exp", load(x, "$b", "$i")), axes(b="B", i=8))
    s = comp(mul(load(t, "$a", "$i"), load(t, "$b", "$i")), axes(a="B", b="B"), "sum", axes(i=8))
    u = comp(op("exp", load(y, "$b", "$i")), axes(b="T", i=8))
    r = comp(mul(load(u, "$a", "$i"), load(u, "$b", "$i")), axes(a="T", b="T"), "sum", axes(i=8))
    total = comp(mul(load(s, "$a", 0), load(r, "$b", 0)), axes(a="B", b="T"))
    for facts in (Facts(), Facts().plus(d("B") - d("T"))):
        check(graph([total], [x, y], ["B", "T"], facts=facts), {"B": 5, "T": 3})


def test_buffers_that_share_while_alive_are_caught() -> None:
    p = chain(4)
    moved = {b.name: replace(b, offset=d(0)) for b in arena(p)}
    broken = replace(p, buffers=tuple(moved.get(b.name, b) for b in p.buffers))
    with pytest.raises(AssertionError, match="share memory"):
        verify(broken, "planting")
    shifted = {b.name: replace(b, offset=b.offset + 4) for b in arena(p)}
    broken = replace(p, buffers=tuple(shifted.get(b.name, b) for b in p.buffers))
    with pytest.raises(AssertionError, match="lies at"):
        verify(broken, "planting")


def test_lifetimes() -> None:
    p = chain(3)
    assert sorted(lifetimes(p).values()) == [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2)]


def test_quotients_are_compared() -> None:
    half, quarter = (d("H") + 1) // 2, (d("H") + 3) // 4
    assert at_least(half * half * 256, quarter * half * 256, Facts())
    assert not at_least(quarter, half, Facts())
    assert at_least(rounded(half * d("B") * 4), rounded(quarter * d("B") * 4), Facts())


def test_a_row_takes_the_place_of_the_result() -> None:
    x = inp("x", "B", "T")
    m = comp(load(x, "$b", "$t"), axes(b="B"), "max", axes(t="T"))
    e = comp(op("exp", sub(load(x, "$b", "$t"), load(m, "$b"))), axes(b="B", t="T"))
    s = comp(load(e, "$b", "$t"), axes(b="B"), "sum", axes(t="T"))
    y = comp(op("div", load(e, "$b", "$t"), load(s, "$b")), axes(b="B", t="T"))
    p = check(graph([y], [x], ["B", "T"]), {"B": 3, "T": 5}, kernels=1)
    assert not p.arena.terms
