"""Run-time loops by hand, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nnc.ir.expr import Const, Expr
from nnc.ir.graph import Graph, Input, Loop, Node, Part, all_nodes
from nnc.ir.scalar import add, mul, op
from nnc.lang.dims import Dim, DimLike
from nnc.lang.types import TensorType
from tests.graphs import axes, comp, inp, load, total


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


def powers() -> tuple[Part, ...]:
    """Doubles until more than 100, at most 1000 times; and counts."""
    v, n = carry("v"), carry("n", dtype="i32")
    cond = comp(op("le", load(v), Const("f64", 100.0)))
    more = comp(add(load(v), load(v))), comp(add(load(n), Const("i32", 1)))
    start = comp(Const("i32", 0))
    carried = [(v, number(3), more[0]), (n, start, more[1])]
    return loop("$t.0", 1000, carried, cond=cond)


def matrix_sum(x: Input) -> Part:
    """A loop in a loop: the sum of all x[i, j]."""
    outer, inner = carry("a"), carry("a")
    within = comp(add(load(inner), load(x, "$i.0", "$j.0")))
    (row,) = loop("$j.0", "M", [(inner, outer, within)])
    return loop("$i.0", "N", [(outer, number(0), row)])[0]


def source(parts: Sequence[Part], **more: object) -> Loop:
    found = parts[0].source
    assert isinstance(found, Loop)
    return replace(found, **more)  # type: ignore[arg-type]


def loops_of(g: Graph) -> list[Loop]:
    return [n for n in all_nodes(g) if isinstance(n, Loop)]


def together(*nodes: Node) -> Node:
    """A scalar that depends on all."""
    body: Expr = load(total(nodes[0]))
    for n in nodes[1:]:
        body = add(body, load(total(n)))
    return comp(body)


def rnn(width: DimLike = 4) -> tuple[tuple[Part, ...], list[Input]]:
    """`h = tanh(x[b, t] @ w + h @ u + b)`: the last h and all."""
    x, w = inp("x", "B", "T", 3), inp("w", width, 3, kind="param")
    u, b = inp("u", width, width, kind="param"), inp("b", width, kind="param")
    h0, h = inp("h0", "B", width), carry("h", "B", width)
    over = axes(b="B", o=width)
    zx = mul(load(x, "$b", "$t.0", "$i"), load(w, "$o", "$i"))
    zh = mul(load(h, "$b", "$i"), load(u, "$o", "$i"))
    parts = [comp(zx, over, "sum", axes(i=3)), comp(zh, over, "sum", axes(i=width))]
    z = add(add(load(parts[0], "$b", "$o"), load(parts[1], "$b", "$o")), load(b, "$o"))
    new = comp(op("tanh", load(comp(z, over), "$b", "$o")), over)
    return loop("$t.0", "T", [(h, h0, new)], [new]), [x, w, u, b, h0]


def lstm(width: int) -> tuple[tuple[Part, ...], list[Input], Input]:
    """As char_rnn: embedded characters; the last h, the last c, all h."""
    e, text = inp("e", 3, 5, kind="param"), inp("text", "B", "T", dtype="i32")
    w, u = inp("w", 4 * width, 5, kind="param"), inp("u", 4 * width, width, kind="param")
    b = inp("b", 4 * width, kind="param")
    starts = [inp("h0", "B", width), inp("c0", "B", width)]
    h, c = carry("h", "B", width), carry("c", "B", width)
    over = axes(b="B", o=4 * width)
    x = comp(load(e, load(text, "$b", "$t.0"), "$i", check=True), axes(b="B", i=5))
    zx = comp(mul(load(x, "$b", "$i"), load(w, "$o", "$i")), over, "sum", axes(i=5))
    zh = comp(mul(load(h, "$b", "$i"), load(u, "$o", "$i")), over, "sum", axes(i=width))
    z = comp(add(add(load(zx, "$b", "$o"), load(zh, "$b", "$o")), load(b, "$o")), over)
    cell = axes(b="B", u=width)

    def at(n: Node) -> Expr:
        return load(n, "$b", "$u")

    fns = ("sigmoid", "sigmoid", "tanh", "sigmoid")
    i, f, g, o = (
        comp(op(fn, load(z, "$b", Dim.of("$u") + k * width)), cell) for k, fn in enumerate(fns)
    )
    c2 = comp(add(mul(at(f), at(c)), mul(at(i), at(g))), cell)
    h2 = comp(mul(at(o), op("tanh", at(c2))), cell)
    made = loop("$t.0", "T", [(h, starts[0], h2), (c, starts[1], c2)], [h2])
    return made, [e, w, u, b, *starts], text
