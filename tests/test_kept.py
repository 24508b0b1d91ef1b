"""What is kept from call to call is used only while it is right, whoever writes to a module."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnc
from nnc import compiler
from nnc.cli.plan import chosen, memory_plan
from nnc.ir.calltable import NOTHING, RIGHT
from nnc.passes.panels import KEPT
from tests.endtoend import built

F = np.float32
N = 96
TEXT = f"""
module Layer(N={N}):
    param w: f32[N, N] = normal(0.1)

module Net(N={N}):
    a = Layer(N)
    param b: f32[N, N] = normal(0.1)

export def apply(net: Net, x: f32[B, {N}]) -> f32[B, {N}] = (x @ net.a.w) @ net.b.T
export def step(inout net: Net, x: f32[B, {N}]) -> f32:
    net.a.w := net.a.w * 0.5
    net.b := net.b + 1
    return sum(x)

export def both(p: Net, q: Net, x: f32[B, {N}]) -> f32[B, {N}] = x @ p.b - x @ q.b
specialize apply(B=40)
"""


@pytest.fixture(scope="module", params=["python", "generated"])
def m(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Calls through Python, or through generated code as soon as that is possible."""
    file = tmp_path_factory.mktemp("kept") / "m.nn"
    file.write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        # Programs of less work keep nothing.
        patch.setattr("nnc.runtime.export.SMALL", 1 << 18)
        patch.setattr("nnc.runtime.export._PATIENCE", 4)
        if request.param == "python":
            patch.setattr("nnc.runtime.export.LONG", 0)
        yield nnc.load(file, threads=2)


@pytest.fixture(scope="module")
def x() -> Any:
    return np.random.default_rng(0).standard_normal((64, N), dtype=F)


@pytest.fixture
def few_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnc.runtime.export.SMALL", 1 << 18)


def entries(export: Any) -> list[Any]:
    fast = export._fast
    return [export._entry, *([fast.entry] if fast else [])]


def word(export: Any) -> int:
    """What the last call was told, if the others have been forgotten."""
    return max(words(export))


def words(export: Any) -> set[int]:
    return {int(e._context[5]) for e in entries(export)}


def expected(net: Any, x: Any) -> Any:
    """By another module with the same numbers, of which nothing is kept."""
    other = net.copy()
    hold = other.buffer
    del hold
    return x @ other["a.w"] @ other["b"].T


def check(m: Any, net: Any, x: Any) -> None:
    if m.apply._entry is not None:
        for e in entries(m.apply):
            e._context[5] = -1
    np.testing.assert_allclose(m.apply(net, x), expected(net, x), rtol=1e-3, atol=1e-4)


def keep(m: Any, net: Any, x: Any) -> None:
    for _ in range(3):
        check(m, net, x)
    assert word(m.apply) != NOTHING  # or copies are made, once more for generated code
    for _ in range(10 if m.apply._fast else 0):
        check(m, net, x)
    assert m.apply._fast is None or m.apply._fast.entry._context[5] == RIGHT


def _held(make: Callable[[Any], Any]) -> Callable[[Any], Callable[[], None]]:
    """Writes 7 by what `make` gives, which is held from the start."""

    def way(net: Any) -> Callable[[], None]:
        view = make(net)

        def write() -> None:
            view[...] = 7

        return write

    return way


def _bytes(net: Any) -> Callable[[], None]:
    raw = memoryview(net["b"]).cast("B")

    def write() -> None:
        raw[:] = bytes(len(raw))

    return write


WAYS: dict[str, Callable[[Any], Callable[[], None]]] = {
    "view": _held(lambda net: net["b"]),
    "part of a view": _held(lambda net: net["b"][3:][:, 5:]),
    "flat": _held(lambda net: np.asarray(net["b"]).ravel()),
    "transposed": _held(lambda net: net["b"].T.T.view(np.int32)),
    "part": _held(lambda net: net.a["w"]),
    "values": _held(lambda net: list(net.values())[1]),
    "items": _held(lambda net: dict(net.items())["a.w"]),
    "get": _held(lambda net: net.get("b")),
    "tensors": _held(lambda net: net.tensors()["b"].array),
    "arrays": _held(lambda net: net.arrays["b"]),
    "buffer": _held(lambda net: net.buffer[1000:]),
    "dlpack": _held(lambda net: np.from_dlpack(net["b"])),
    "memoryview": _bytes,
    "iterator": lambda net: _later(iter([net["b"]])),
}


def _later(found: Iterator[Any]) -> Callable[[], None]:
    def write() -> None:
        next(found)[...] = 7

    return write


@pytest.mark.parametrize("name", WAYS)
def test_views_that_are_held(name: str, m: Any, x: Any) -> None:
    net = m.Net.init(seed=1)
    keep(m, net, x)
    write = WAYS[name](net)
    for _ in range(3):
        check(m, net, x)
        assert word(m.apply) != RIGHT
    write()
    check(m, net, x)
    del write
    gc.collect()
    keep(m, net, x)


@pytest.mark.parametrize("name", WAYS)
def test_views_that_are_gone(name: str, m: Any, x: Any) -> None:
    net = m.Net.init(seed=1)
    keep(m, net, x)
    WAYS[name](net)()
    keep(m, net, x)


def test_writes_by_nnc(m: Any, x: Any, tmp_path: Path) -> None:
    net, other = m.Net.init(seed=1), m.Net.init(seed=2)
    other.save(tmp_path / "n.safetensors")
    m.checkpoint(tmp_path / "n.st", net=other)
    values = np.array(other["b"])

    def assign() -> None:
        net["b"] = values

    def assign_part() -> None:
        net.a["w"] = values

    ways = [
        assign,
        assign_part,
        lambda: net.load(tmp_path / "n.safetensors"),
        lambda: m.step(net, x),
        lambda: m.step(net, x[:1]),
        lambda: m.restore(tmp_path / "n.st", net=net),
    ]
    for way in ways:
        keep(m, net, x)
        way()
        check(m, net, x)


def test_small_calls_that_write_count_too(m: Any, x: Any) -> None:
    """Generated code calls them; it counts what it writes."""
    net = m.Net.init(seed=1)
    for _ in range(20):
        m.step(net, x[:1])
        for _ in range(3):
            check(m, net, x)


def test_modules_in_turns(m: Any, x: Any) -> None:
    p, q = m.Net.init(seed=1), m.Net.init(seed=2)
    for _ in range(3):
        for net in (p, q, q, q, p.copy(), p, p):
            check(m, net, x)
    for _ in range(3):
        for a, b in ((p, q), (q, p), (p, p)):
            want = x @ a["b"] - x @ b["b"]
            for _ in range(3):
                np.testing.assert_allclose(m.both(a, b, x), want, rtol=1e-3, atol=1e-4)


def test_a_module_where_another_was(m: Any, x: Any) -> None:
    for seed in range(5):
        net = m.Net.init(seed=seed)
        keep(m, net, x)
        del net


def test_sizes_and_variants_in_turns(m: Any) -> None:
    net, rng = m.Net.init(seed=1), np.random.default_rng(0)
    for rows in (64, 65, 40, 1, 300, 2, 40, 40, 40, 64, 64, 64, 1, 1, 64, 900):
        check(m, net, rng.standard_normal((rows, N), dtype=F))


def test_anything_in_any_order(m: Any, x: Any) -> None:
    rng = random.Random(5)
    nets = [m.Net.init(seed=s) for s in range(2)]
    held = list[Any]()
    for _ in range(400):
        net = rng.choice(nets)
        match rng.randrange(9):
            case 0:
                held.append(net[rng.choice(["b", "a.w"])])
            case 1 if held:
                held.pop(rng.randrange(len(held)))
            case 2 if held:
                rng.choice(held)[rng.randrange(N)] = rng.random()
            case 3:
                net["b"] = np.full((N, N), rng.random(), F)
            case 4:
                m.step(net, x[: rng.choice((1, 64))])
                net["b"][...] = rng.random()
                net["a.w"][...] = rng.random()
            case _:
                for _ in range(rng.randrange(4)):
                    check(m, net, x[: rng.choice((64, 64, 40, 1))])


def test_threads(m: Any, x: Any) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        net = m.Net.init(seed=seed)
        for i in range(30):
            if i % 5 == 0:
                net["b"] = np.full((N, N), i + seed, F)
            want = expected(net, x)
            if not np.allclose(m.apply(net, x), want, rtol=1e-3, atol=1e-3):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(s,)) for s in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_a_refused_call_keeps_nothing(tmp_path: Path) -> None:
    file = tmp_path / "r.nn"
    file.write_text(
        f"""
module Net(N={N}):
    param w: f32[N, N] = normal(0.1)
export def f(net: Net, x: f32[B, {N}], i: i32[B]) -> f32[B, {N}]:
    y = x @ net.w
    z[b, n] = y[i[b], n]
    return z
"""
    )
    m = nnc.load(file)
    net, good = m.Net.init(seed=0), np.arange(64, dtype=np.int32)
    x = np.ones((64, N), F)
    first = m.f(net, x, good)
    for i in (good + 1, good, good + 1, good, good, good):
        try:
            assert np.array_equal(m.f(net, x, i), first)
        except nnc.IndexError:
            assert i[0] == 1


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_copies_give_the_same_bits(threads: int, tmp_path: Path) -> None:
    """Of columns and k that fill no slab, with k contiguous or not."""
    shapes = [(129, 33), (67, 500), (401, 64), (64, 97)]
    weights = "".join(
        f"    param w{i}: f32[{k}, {n}] = normal(0.1)\n    param t{i}: f32[{n}, {k}] = normal(0.1)\n"
        for i, (k, n) in enumerate(shapes)
    )
    exports = "".join(
        f"export def f{i}(m: M, x: f32[B, {k}]) -> f32[B, {n}] = x @ m.w{i} + x @ m.t{i}.T\n"
        for i, (k, n) in enumerate(shapes)
    )
    file = tmp_path / "m.nn"
    file.write_text(f"module M:\n{weights}{exports}")
    m = nnc.load(file, threads=threads)
    net, rng = m.M.init(seed=0), np.random.default_rng(0)
    for i, (k, _) in enumerate(shapes):
        export = m.exports[f"f{i}"]
        for rows in (60, 61, 90):
            x = rng.standard_normal((rows, k), dtype=F)
            want = export(net, x)
            told = set[int]()
            for _ in range(5):
                assert np.array_equal(export(net, x), want)
                told |= words(export)
            assert RIGHT in told


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_exchanged_roles_give_the_same_bits(threads: int, tmp_path: Path) -> None:
    """Convolutions whose weights are large, over maps of few places and of many."""
    file = tmp_path / "m.nn"
    file.write_text(
        """module M:
    param w: f32[531, 221, 3, 3] = normal(0.1)
    param v: f32[40, 531] = normal(0.1)
    param scale: f32[531] = normal(1)
export def f(m: M, x: f32[B, 221, H, W], skip: f32[B, 531, H, W]) -> f32[B, 40, (H + 1)//2, (W + 1)//2]:
    y[b, o, i:H, j:W] = max(skip[b, o, i, j] + m.scale[o] * sum[c, u, v](
        x[b, c, i + u - 1, j + v - 1 else 0] * m.w[o, c, u, v]), 0)
    z[b, o, i:(H + 1)//2, j:(W + 1)//2] = sum[c](y[b, c, 2*i, 2*j] * m.v[o, c])
    return z
"""
    )
    m = nnc.load(file, threads=threads)
    net, rng = m.M.init(seed=0), np.random.default_rng(0)
    for sizes in ((1, 7, 7), (2, 5, 9), (1, 1, 1), (1, 1, 2), (1, 3, 40), (1, 12, 13)):
        b, h, w = sizes
        x = rng.standard_normal((b, 221, h, w), dtype=F)
        skip = rng.standard_normal((b, 531, h, w), dtype=F)
        want = m.f(net, x, skip)
        told = set[int]()
        for _ in range(5):
            assert np.array_equal(m.f(net, x, skip), want), sizes
            told |= words(m.f)
        if b * h * w > 2:
            assert RIGHT in told


# ---- what is kept, and where --------------------------------------------------------------------


def scheduled(text: str, name: str = "f") -> Any:
    found = built(text)[name]
    graph = compiler.optimise(found.graph)
    return compiler.schedule(graph, constant=compiler.read_only(found))


def test_only_of_modules_that_are_read() -> None:
    head = "module M:\n    param w: f32[64, 64] = normal(0.1)\n"
    read = head + "export def f(m: M, x: f32[B, 64]) -> f32[B, 64] = x @ m.w\n"
    written = read.replace("m: M", "inout m: M")
    argument = "export def f(w: f32[64, 64], x: f32[B, 64]) -> f32[B, 64] = x @ w\n"
    assert scheduled(read).kept == 64 * 64 * 4
    assert scheduled(written).kept == scheduled(argument).kept == 0


def test_large_models_keep_no_copies() -> None:
    side = 64 * (int((KEPT / 4) ** 0.5) // 64 + 1)
    text = f"module M:\n    param w: f32[{side}, {side}] = normal(0.1)\n"
    text += f"export def f(m: M, x: f32[B, {side}]) -> f32[B, {side}] = x @ m.w\n"
    assert scheduled(text).kept == 0


def test_weights_in_loops_are_packed_once_for_all_calls() -> None:
    text = "module M:\n    param w: f32[64, 64] = normal(0.1)\n"
    text += """export def f(m: M, x: f32[T, B, 64]) -> f32[B, 64]:
    h = zeros[B, 64]
    for t in T:
        h = tanh(h @ m.w + x[t])
    return h
"""
    program = scheduled(text)
    assert program.prologue == 1 and program.kept == 64 * 64 * 4


def test_the_plan_counts_what_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "m.nn"
    file.write_text(TEXT)
    found = chosen(str(file), "apply", {})
    plan = memory_plan(found)
    kept = [b for b in plan.values if b.kept]
    assert sum(b.bytes.evaluate({}) for b in kept) == found.program.kept == 2 * N * N * 4
    m = nnc.load(file, threads=1)
    net, x = m.Net.init(seed=0), np.ones((64, N), F)
    for _ in range(3):
        m.apply(net, x)
    entry = m.apply._entry
    assert entry._size == plan.workspace(1).evaluate({"B": 64})
