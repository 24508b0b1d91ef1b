"""Calls through generated code: the same answers and the same refusals as through Python."""

from __future__ import annotations

import gc
import sys
import threading
import time
import traceback
import weakref
from pathlib import Path
from types import BuiltinFunctionType
from typing import Any

import numpy as np
import pytest

import nnc
from nnc.ir.calltable import Word

TEXT = """
from std.nn import Linear, relu

module Net:
    fc = Linear(3, 2)
    def forward(x: real[B, 3]) -> real[B, 2]:
        return relu(fc(x))

export def predict(net: Net, x: f32[B, 3]) -> f32[B, 2]:
    return net(x)

export def axpy(a: f32, x: f32[N], inout y: f32[N]) -> f32:
    y := a * x + y
    return sum(y)

export def pick(x: f32[N], i: i32[K]) -> (f32[K], i32):
    y[k] = x[i[k]]
    return y, i[0]

export def rows(x: f32[N], n: dim) -> f32[n, N]:
    y[i:n, j] = x[j]
    return y

export def bump(inout net: Net, s: f32):
    net := net * s
"""
CALLS = 4  # after which a call is remembered


@pytest.fixture(scope="module")
def m(tmp_path_factory: Any) -> Any:
    path = Path(tmp_path_factory.mktemp("fast")) / "net.nn"
    path.write_text(TEXT)
    return nnc.load(path)


def warm(export: Any, *args: Any, **kwargs: Any) -> None:
    """Repeats a call until it goes through generated code."""
    for _ in range(200):
        export(*args, **kwargs)
        fast = export._fast
        if fast is not None and fast._table[2]:
            slow = export._calls
            export(*args, **kwargs)
            if export._calls == slow:
                return
    raise AssertionError("this call never becomes fast")


def ones(*shape: int) -> Any:
    return np.ones(shape, np.float32)


def test_results_are_fresh_and_equal(m: Any) -> None:
    net, x = m.Net.init(seed=1), np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    before = m.predict(net, x)
    warm(m.predict, net, x)
    assert isinstance(type(m.predict).__call__, BuiltinFunctionType)
    after = m.predict(net, x)
    assert after.tobytes() == before.tobytes()
    assert after is not m.predict(net, x)


def test_weights_are_read_where_they_stand(m: Any) -> None:
    net, x = m.Net.init(seed=1), ones(4, 3)
    warm(m.predict, net, x)
    net["fc.bias"] = np.array([5, -1e9], np.float32)
    assert (m.predict(net, x)[:, 1] == 0).all()


def test_names_in_any_order(m: Any) -> None:
    net, x = m.Net.init(seed=1), ones(2, 3)
    warm(m.predict, x=x, net=net)
    assert m.predict(net, x=x).tobytes() == m.predict(x=x, net=net).tobytes()


def test_written_arrays_and_numbers(m: Any) -> None:
    x, y = ones(5), ones(5)
    warm(m.axpy, 0.0, x, y)
    assert y.tolist() == [1] * 5
    got = m.axpy(0.5, x, y)
    assert y.tolist() == [1.5] * 5
    assert type(got) is np.float32 and got == 7.5
    assert m.axpy(a=2, x=x, y=y) == 17.5  # an integer: through Python
    assert m.axpy(np.float32(1), x, y) == 22.5


def test_other_shapes_and_modules(m: Any) -> None:
    net, other = m.Net.init(seed=1), m.Net.init(seed=2)
    warm(m.predict, net, ones(4, 3))
    assert m.predict(net, ones(7, 3)).shape == (7, 2)
    np.testing.assert_array_equal(m.predict(other, ones(4, 3))[:1], m.predict(other, ones(1, 3)))


def test_sizes_as_integers(m: Any) -> None:
    warm(m.rows, ones(3), 2)
    assert m.rows(ones(3), 2).shape == (2, 3)
    assert m.rows(ones(3), 4).shape == (4, 3)
    with pytest.raises(nnc.Error):
        m.rows(ones(3), 1 << 80)


def test_tuples_and_refused_indices(m: Any) -> None:
    x, i = np.arange(4, dtype=np.float32), np.array([3, 0], np.int32)
    warm(m.pick, x, i)
    y, first = m.pick(x, i)
    assert y.tolist() == [3, 0] and first == 3
    i[1] = 4
    with pytest.raises(nnc.IndexError, match=r"index 4 is outside 0 ... 3 at .*net.nn:17"):
        m.pick(x, i)
    with pytest.raises(nnc.IndexError) as met:
        m.pick(x, i)
    frames = traceback.extract_tb(met.value.__traceback__)
    assert [Path(f.filename).name for f in frames[1:]] == ["net.nn"]
    i[1] = 1
    assert m.pick(x, i)[0].tolist() == [3, 1]


@pytest.mark.parametrize(
    "args",
    {
        "dtype": (0.0, ones(5), np.ones(5)),
        "shape": (0.0, ones(5), ones(4)),
        "kind": (0.0, ones(5), [1.0] * 5),
        "count": (0.0, ones(5)),
        "none": (0.0, None, ones(5)),
    }.values(),
    ids=["dtype", "shape", "kind", "count", "none"],
)
def test_refusals_stay_the_same(m: Any, args: tuple[Any, ...]) -> None:
    with pytest.raises(nnc.Error) as cold:
        m.axpy.call(*args)
    warm(m.axpy, 0.0, ones(5), ones(5))
    with pytest.raises(nnc.Error) as hot:
        m.axpy(*args)
    assert str(hot.value) == str(cold.value)
    with pytest.raises(nnc.Error):
        m.axpy(0.0, ones(5), ones(5), z=1)


def test_overlap_and_read_only(m: Any) -> None:
    x, both = ones(5), ones(8)
    warm(m.axpy, 0.0, x, ones(5))
    with pytest.raises(nnc.ArgumentError, match="share memory"):
        m.axpy(1.0, both[:5], both[3:])
    y = ones(5)
    y.flags.writeable = False
    with pytest.raises(nnc.ArgumentError, match="read-only"):
        m.axpy(1.0, x, y)
    assert m.axpy(1.0, ones(10)[::2], ones(5)) == 10


def test_what_is_written_counts(m: Any) -> None:
    net = m.Net.init(seed=1)
    warm(m.bump, net, 1.0)
    before = net.version
    m.bump(net, 1.0)
    assert net.version == before + 1


def test_a_dead_module_is_forgotten(m: Any) -> None:
    net = m.Net.init(seed=1)
    warm(m.predict, net, ones(4, 3))
    alive = weakref.ref(net)
    del net
    gc.collect()
    assert alive() is None
    assert not m.predict._fast._table[2]
    other = m.Net.init(seed=2)
    assert m.predict(other, ones(4, 3)).shape == (4, 2)


def test_objects_do_not_leak(m: Any) -> None:
    net, x = m.Net.init(seed=1), ones(4, 3)
    warm(m.predict, net, x)
    counts = sys.getrefcount(x), sys.getrefcount(x.dtype), sys.getrefcount(None)
    for _ in range(1000):
        m.predict(net, x)
    after = sys.getrefcount(x), sys.getrefcount(x.dtype), sys.getrefcount(None)
    assert all(abs(a - b) < 50 for a, b in zip(counts, after, strict=True))


LONGER = """
export def product(x: f32[N, 256], w: f32[256, 256]) -> f32[N, 256] = tanh(x @ w)

export def steps(x: f32[8], N: dim) -> f32[8] where N >= 0:
    for n in N:
        x = x * 0.999 + 0.001
    return x
"""


@pytest.fixture(scope="module")
def longer(tmp_path_factory: Any) -> Any:
    """Exports during whose calls other threads run."""
    path = Path(tmp_path_factory.mktemp("longer")) / "longer.nn"
    path.write_text(LONGER)
    return nnc.load(path, threads=1)


def test_python_threads_that_call_at_once(longer: Any) -> None:
    """While one thread is inside, those of others go through Python."""
    rng = np.random.default_rng(0)
    f, w = longer.product, rng.standard_normal((256, 256), dtype=np.float32) / 16
    inputs = [rng.standard_normal((150, 256), dtype=np.float32) for _ in range(4)]
    warm(f, inputs[0], w)
    assert f._fast._table[Word.RELEASE]
    want = [f.call(x, w).tobytes() for x in inputs]
    assert len(set(want)) == len(inputs)
    right = [0] * len(inputs)

    def work(i: int) -> None:
        for _ in range(50):
            right[i] += f(inputs[i], w).tobytes() == want[i]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert right == [50] * len(inputs)
    assert not f._fast._table[Word.BUSY]


def test_other_python_threads_go_on(longer: Any) -> None:
    """Nothing but the call lets them: threads do not take turns here."""
    f, x, n = longer.steps, np.ones(8, np.float32), 1 << 19
    warm(f, x, n)
    assert f._fast._table[Word.RELEASE]
    inside, seen, done = False, threading.Event(), threading.Event()

    def watch() -> None:
        while not done.is_set():
            if inside:
                seen.set()
            time.sleep(0)

    interval = sys.getswitchinterval()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        sys.setswitchinterval(1000)
        for _ in range(50):
            f._calls = 0  # stays with what is remembered
            inside = True
            f(x, n)
            inside = False
            if seen.is_set():
                break
        assert f._calls == 0, "this call went through Python"
    finally:
        sys.setswitchinterval(interval)
        done.set()
        watcher.join()
    assert seen.is_set()
