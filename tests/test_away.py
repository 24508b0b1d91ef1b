"""Leaves of which only a packed copy is in memory: nobody sees a difference, and the memory is free."""

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
from nnc.cli.plan import chosen, memory_plan
from nnc.runtime import leaves

F = np.float32
N, M = 320, 416
LARGE = 1040  # x 9 * 128: more elements than exchanged roles need
TEXT = f"""
module Net:
    param w: f32[{N}, {M}] = normal(0.1)
    param t: f32[{N}, {M}] = normal(0.1)
    param c: f32[{LARGE}, 128, 3, 3] = normal(0.1)
    param b: f32[{M}] = normal(0.1)

export def apply(net: Net, x: f32[B, {N}]) -> f32[B, {N}] = ((x @ net.w) + net.b) @ net.t.T
export def twice(net: Net, x: f32[B, {N}]) -> f32[B, {M}] = x @ net.w + net.w[0]
export def maps(net: Net, x: f32[B, 128, H, W]) -> f32[B, {LARGE}, H, W]:
    y[b, o, i:H, j:W] = sum[c, u, v](x[b, c, i + u - 1, j + v - 1 else 0] * net.c[o, c, u, v])
    return y
export def pictures(net: Net, x: f32[B, T, {N}]) -> f32[B, T, {M}] = x @ net.w
export def turned(net: Net, x: f32[B, T, {N}]) -> f32[B, {M}, T]:
    y[b, o, t] = sum[k](x[b, t, k] * net.w[k, o])
    return y
export def step(inout net: Net, x: f32[B, {N}]) -> f32:
    net.w := net.w * 0.5
    return sum(x)
specialize apply(B=40)
"""


@pytest.fixture(scope="module")
def m(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    file = tmp_path_factory.mktemp("away") / "m.nn"
    file.write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nnc.runtime.export.LONG", 0)  # calls through Python
        patch.setattr("nnc.runtime.export.SMALL", 0)
        yield nnc.load(file, threads=2)


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was given back is NaN: whoever reads it shows."""
    real = leaves.give_back

    def poisoned(memory: Any) -> bool:
        assert real(memory)
        memory[...] = np.nan
        return True

    monkeypatch.setattr(leaves, "give_back", poisoned)


@pytest.fixture
def x() -> Any:
    return np.random.default_rng(0).standard_normal((64, N), dtype=F)


def picture(*shape: int) -> Any:
    return np.random.default_rng(1).standard_normal(shape, dtype=F)


def away(net: Any) -> set[str]:
    return set(net._away)


def test_calls_read_copies_alone(m: Any, x: Any) -> None:
    net = m.Net.init(seed=1)
    want = m.apply(net, x)
    for _ in range(4):
        assert np.array_equal(m.apply(net, x), want)
    assert away(net) == {"w", "t"}


def test_exchanged_roles_read_copies_alone(m: Any) -> None:
    for sizes in ((1, 128, 7, 7), (2, 128, 3, 5), (1, 128, 1, 3), (1, 128, 2, 1)):
        net, p = m.Net.init(seed=1), picture(*sizes)
        want = m.maps(net.copy(), p)
        for _ in range(4):
            assert np.array_equal(m.maps(net, p), want)
        assert away(net) == {"c"}
    many = picture(1, 128, 12, 12)
    for _ in range(3):  # beyond the columns for which roles are exchanged
        assert np.array_equal(m.maps(net, many), m.maps(net.copy(), many))
        assert not away(net)


@pytest.mark.parametrize("name", ["pictures", "turned"])
def test_axes_that_become_batches(name: str, m: Any) -> None:
    for b, t in ((1, 60), (60, 1), (7, 8), (1, 1), (3, 90), (64, 64)):
        net, p = m.Net.init(seed=1), picture(b, t, N)
        want = m.exports[name](net.copy(), p)
        for _ in range(4):
            assert np.array_equal(m.exports[name](net, p), want)


def test_leaves_come_back_bit_for_bit(m: Any, x: Any) -> None:
    net = m.Net.init(seed=1)
    want = {k: v.copy() for k, v in net.items()}
    want["w"][3, 5], want["w"][0, 1] = -0.0, 1e-45
    net["w"] = want["w"]
    for _ in range(3):
        m.apply(net, x)
    assert away(net)
    for key, array in want.items():
        assert np.array_equal(net[key].view(np.int32), array.view(np.int32))


WAYS: dict[str, Callable[[Any, Any, Path], Any]] = {
    "view": lambda m, net, _: net["w"],
    "assignment": lambda m, net, _: net.__setitem__("b", np.zeros(M, F)),
    "copy": lambda m, net, _: net.copy(),
    "save": lambda m, net, path: net.save(path / "n.safetensors"),
    "checkpoint": lambda m, net, path: m.checkpoint(path / "n.st", net=net),
    "fingerprint": lambda m, net, _: net.fingerprint(),
    "step": lambda m, net, _: m.step(net, np.ones((64, N), F)),
    "another export": lambda m, net, _: m.twice(net, np.ones((64, N), F)),
    "one row": lambda m, net, _: m.apply(net, np.ones((1, N), F)),
    "variant": lambda m, net, _: m.apply(net, np.ones((40, N), F)),
    "backward": lambda m, net, _: m.apply.forward(net, np.ones((2, N), F)).backward(
        np.ones((2, N), F)
    ),
}


@pytest.mark.parametrize("name", WAYS)
def test_who_needs_them_gets_them(name: str, m: Any, x: Any, tmp_path: Path) -> None:
    net = m.Net.init(seed=1)
    whole = net.copy()
    for _ in range(3):
        m.apply(net, x)
    assert away(net)
    WAYS[name](m, net, tmp_path)
    assert not away(net)
    gc.collect()
    WAYS[name](m, whole, tmp_path)
    for _ in range(4):
        assert np.array_equal(m.apply(net, x), m.apply(whole.copy(), x))
    assert all(np.array_equal(net[k], whole[k]) for k in net)


def test_another_module_takes_the_workspace(m: Any, x: Any) -> None:
    nets = [m.Net.init(seed=s) for s in range(3)]
    want = [m.apply(n.copy(), x) for n in nets]
    for _ in range(4):
        for net, y in zip(nets, want, strict=True):
            for _ in range(3):
                assert np.array_equal(m.apply(net, x), y)


def test_a_larger_workspace(m: Any, x: Any) -> None:
    net = m.Net.init(seed=1)
    big = np.concatenate([x] * 40)
    for rows in (x, x, x, big, big, big, x):
        assert np.array_equal(m.apply(net, rows), m.apply(net.copy(), rows))


def test_views_that_are_held_keep_them_in_memory(m: Any, x: Any) -> None:
    net = m.Net.init(seed=1)
    view = net["w"]
    for _ in range(4):
        m.apply(net, x)
    assert not away(net)
    view[...] = 0
    assert np.array_equal(m.apply(net, x), m.apply(net.copy(), x))


def test_they_come_back_a_few_times_only(m: Any, x: Any) -> None:
    net = m.Net.init(seed=1)
    seen = []
    for _ in range(5):
        for _ in range(3):
            m.apply(net, x)
        seen.append(bool(away(net)))
        net["b"][...] += 1
        gc.collect()
    assert seen == [True] * leaves._RETURNS + [False] * (5 - leaves._RETURNS)


def test_anything_in_any_order(m: Any, x: Any, tmp_path: Path) -> None:
    rng = random.Random(3)
    for seed in range(6):
        net, whole = m.Net.init(seed=seed), m.Net.init(seed=seed)
        for _ in range(25):
            if rng.random() < 0.15:
                way = WAYS[rng.choice(list(WAYS))]
                way(m, net, tmp_path), way(m, whole, tmp_path)
            else:
                rows = x[: rng.choice((64, 64, 64, 40, 1))]
                assert np.array_equal(m.apply(net, rows), m.apply(whole.copy(), rows))


def test_threads(m: Any, x: Any) -> None:
    net = m.Net.init(seed=1)
    want, wrong = m.apply(net.copy(), x), []

    def call() -> None:
        wrong.extend(i for i in range(20) if not np.array_equal(m.apply(net, x), want))

    def look() -> None:
        whole = net.copy()["w"]
        wrong.extend(i for i in range(20) if not np.array_equal(net["w"], whole))

    threads = [threading.Thread(target=f) for f in (call, look, call)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_the_memory_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    def resident(array: Any) -> int:
        """Bytes of the pages around an array that are in memory, from the process's page map."""
        begin, end = array.ctypes.data // 4096, (array.ctypes.data + array.nbytes) // 4096
        with open("/proc/self/pagemap", "rb") as f:
            f.seek(8 * begin)
            pages = np.frombuffer(f.read(8 * (end - begin)), np.uint64)
        return 4096 * int(np.count_nonzero(pages >> np.uint64(63)))

    side = 1024
    text = f"module M:\n    param w: f32[{side}, {side}] = normal(0.1)\n"
    text += f"export def f(m: M, x: f32[B, {side}]) -> f32[B, {side}] = x @ m.w\n"
    (tmp_path / "m.nn").write_text(text)
    m = nnc.load(tmp_path / "m.nn")
    net, x = m.M.init(seed=0), np.ones((900, side), F)
    leaf = net._arrays["w"]
    m.f(net, x)
    assert resident(leaf) > 3.9e6
    m.f(net, x), m.f(net, x)
    assert resident(leaf) < 1e4
    hold = net["w"]
    assert resident(leaf) > 3.9e6 and hold.std() > 0


def test_the_plan_says_what_is_given_back(tmp_path: Path, m: Any, x: Any) -> None:
    file = tmp_path / "m.nn"
    file.write_text(TEXT)
    plan = memory_plan(chosen(str(file), "apply", {}))
    net = m.Net.init(seed=1)
    for _ in range(3):
        m.apply(net, x)
    size = sum(net._arrays[key].nbytes for key in away(net))
    assert plan.replaced({"B": 64})[0].startswith(f"{size:,} bytes")
    assert plan.replaced({"B": 1}) == []
