"""Calls alike are copied: the Graph is the one that elaborating each of them gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nnc.compiler import check
from nnc.ir.graph import toposort
from nnc.ir.printer import print_graph
from nnc.lang.elaborate import calls, initial, replay
from nnc.lang.elaborate.binding import Binding
from nnc.lang.elaborate.copies import Part
from nnc.lang.elaborate.values import Value

LINEAR = "from std.nn import Linear, relu, LayerNorm, dropout\n"

REPEATED = {
    "layers": """
module Block(D):
    norm = LayerNorm(D)
    fc = Linear(D, D)
    def forward(x: real[..N, D]) -> real[..N, D] = x + relu(fc(norm(x)))

module Net(D=4, L=5):
    h = [Block(D) for l in L]
    def forward(x: real[B, D]) -> real[B, D]:
        for l in L: x = h[l](x)
        return x

export def f(net: Net, x: f32[B, 4]) -> f32[B, 4] = net(x)
""",
    "parts that are written": """
def push(x: f32[B, 4], inout kv: f32[2, B, 4], k: dim) -> (f32[B, 4], f32[B]) where k < 2:
    kv[k, b, i] := kv[k, b, i] + x[b, i]
    last = kv[1] * 2
    return last + x, sum(kv[0], over=-1)

export def f(x: f32[B, 4], inout kv: f32[5, 2, B, 4]) -> f32[B]:
    s = zeros[B]
    for l in 5:
        x, t = push(x, kv[l], 1)
        s = s + t
    for l in 5:
        x, t = push(x, kv[l], 0)
        s = s + t
    return s
""",
    "two parts of one tensor": """
def swap(inout a: f32[N], inout b: f32[N]) -> f32[N]:
    c = a * 1
    a := b * 2
    b := c
    return a + b

export def f(inout x: f32[6, N]) -> f32[N]:
    s = zeros[N]
    for l in 5: s = s + swap(x[l], x[l + 1])
    return s
""",
    "one value twice": """
def g(a: f32[N], b: f32[N]) -> f32[N] = a * b + a

export def f(x: f32[N], y: f32[N]) -> f32[N]:
    for l in 4: x = g(x, y)
    for l in 4: x = g(x, x)
    return x
""",
    "random numbers, states and probes": """
module Block(D):
    state seen: f32[D] = 0
    fc = Linear(D, D)
    def forward(x: real[B, D]) -> real[B, D]:
        y = fc(x)
        probe y
        if train: seen := seen + y[0]
        return dropout(relu(y), 0.5) if not train else dropout!(relu(y), 0.5)

module Net(D=4):
    h = [Block(D) for l in 4]
    def forward(x: real[B, D]) -> real[B, D]:
        for l in 4: x = h[l](x)
        return x

export def f(net: Net, x: f32[B, 4]) -> f32[B, 4] = net(x)
export def step(inout net: Net, x: f32[B, 4]) -> f32[B, 4] = net!(x)
""",
    "random numbers below": """
def drop(x: real[..N], p: real) -> real[..N] = dropout!(x, p) + dropout!(x, p) if train else x

module Block(D):
    param w: real[D, D] = normal(0.1)
    param b: real[D] = uniform(2.0)
    def forward(x: real[B, D]) -> real[B, D] = drop!(drop!(x @ w, 0.5), 0.25) + b if train else x @ w

module Net(D=4):
    h = [Block(D) for l in 5]
    def forward(x: real[B, D]) -> real[B, D]:
        for l in 5: x = h[l]!(x) if train else h[l](x)
        return x

export def f(net: Net, x: f32[B, 4]) -> f32[B, 4] = net!(x) + net!(x) + net(x)
""",
    "checks, defaults and static values": """
def pick(t: f32[V, D], i: i32[B], scale: real = 2.0, twice: bool = false, n: dim = 1) -> f32[B, D]:
    y[b, d] = t[i[b], d] * scale * n
    return y + y if twice else y

export def f(t: f32[V, D], i: i32[B]) -> f32[B, D]:
    s = zeros[B, D]
    for l in 4: s = s + pick(t, i)
    for l in 4: s = s + pick(t, i, scale=l + 0.5)
    for l in 4: s = s + pick(t, i, twice=l > 1, n=l)
    return s
""",
    "gradients, loops and branches inside": """
def g(x: f32[N], T: dim) -> f32[N]:
    y = x * x
    for t in T: y = y * 0.5 + x
    z = total(y * y)
    return grad(z, x) if T > 2 else y

export def f(x: f32[N], T: dim) -> f32[N]:
    for l in 4: x = g(x, 3)
    for l in 4: x = g(x, 2)
    return x
""",
}


def everything(path: Path) -> list[object]:
    checked = check(str(path))
    assert not checked.errors, checked.errors
    assert checked.elaborated is not None
    out: list[object] = []
    out += [print_graph(g) for _, g in checked.elaborated.modules if g is not None]
    for built in checked.elaborated.exports:
        nodes = toposort(built.graph.roots)
        regions: dict[int, int] = {}
        out += [print_graph(built.graph), repr(built.signature), list(built.signature.probes)]
        out.append([[s.place for s in n.span.trail] for n in nodes])
        out.append([[regions.setdefault(id(r), len(regions)) for r in n.regions] for n in nodes])
    return out


@pytest.mark.parametrize("what", REPEATED)
def test_copies_are_what_elaborating_gives(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "repeated.nn"
    path.write_text(LINEAR + REPEATED[what])
    found = everything(path)
    monkeypatch.setattr(calls, "replayed", each)
    monkeypatch.setattr(initial, "Part", Never)
    assert everything(path) == found


class Never(Part):
    """Nothing is copied."""

    @property
    def possible(self) -> bool:
        return False


def each(b: Binding, run: Callable[[], Value]) -> Value:
    return run()


def test_from_the_third_call_on_nothing_is_elaborated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0
    again = replay._Recorded.again

    def counted(*args: object) -> Value:
        nonlocal made
        made += 1
        return again(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(replay._Recorded, "again", counted)
    path = tmp_path / "layers.nn"
    path.write_text(LINEAR + REPEATED["parts that are written"])
    everything(path)
    assert made == 8  # of 5 + 5 calls of two kinds
