"""`if` on run-time conditions: early returns, assignments, writes, nested and in loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnc
from tests.endtoend import built, compare, run_native, sample

DIMS = {"N": 5, "T": 3, "B": 2}


def run(text: str, **given: Any) -> list[Any]:
    graph = built(text)["f"].graph
    dims = {n: DIMS[n] for n in graph.dims}
    inputs = sample(graph, dims, np.random.default_rng(0))
    return compare(graph, dims, inputs | {k: np.asarray(v) for k, v in given.items()})


X = np.arange(5, dtype=np.float32)


@pytest.mark.parametrize("c", [-1, 0.5, 2])
def test_return_in_both_branches(c: float) -> None:
    text = """
def g(x: f32[N], c: f32) -> f32[N]:
    if c > 1:
        return x * 2
    elif c > 0:
        return x * 3
    else:
        y = x + 1
        return y
export def f(x: f32[N], c: f32) -> f32[N] = g(x, c)
"""
    want = X * 2 if c > 1 else X * 3 if c > 0 else X + 1
    np.testing.assert_array_equal(run(text, x=X, c=np.float32(c))[0], want)


@pytest.mark.parametrize("c", [-1, 0.5, 2])
def test_an_early_return(c: float) -> None:
    text = """
export def f(x: f32[N], c: f32) -> (f32[N], f32):
    scale = 1.0
    if c > 0:
        scale = 2.0
        if c > 1:
            return x, scale
        scale = scale * 3
    y = x * scale
    if total(y) > 100:
        return y, 0
    return y + 1, scale
"""
    y, s = run(text, x=X, c=np.float32(c))
    want = (X, 2) if c > 1 else (X * 6 + 1, 6) if c > 0 else (X + 1, 1)
    np.testing.assert_array_equal(y, want[0])
    assert s == want[1]


@pytest.mark.parametrize("c", [-1, 0.5, 2])
def test_a_return_in_a_static_loop_ends_it(c: float) -> None:
    text = """
def g(x: f32[N], c: f32) -> f32[N]:
    for k in 3:
        x = 2 * x
        if c > k:
            return x + k
    return -x
export def f(x: f32[N], c: f32) -> f32[N] = g(x, c)
"""
    want = X * 2 if c > 0 else -X * 8
    np.testing.assert_array_equal(run(text, x=X, c=np.float32(c))[0], want)


@pytest.mark.parametrize("c", [-1, 1])
def test_gradients_take_the_side_that_ran(c: float) -> None:
    text = """
def g(x: f32[N], c: f32) -> f32:
    if c > 0:
        return total(sqrt(x))
    return total(x**2)
export def f(x: f32[N], c: f32) -> f32[N]:
    y = g(x, c)
    return grad(y, x)
"""
    x = X if c < 0 else X + 1
    want = 2 * x if c < 0 else 0.5 / np.sqrt(x)
    np.testing.assert_allclose(run(text, x=x, c=np.float32(c))[0], want, rtol=1e-6)


@pytest.mark.parametrize("c", [-1, 1])
@pytest.mark.parametrize("other", ["", "    else:\n        s[0] := -1\n        s[1] := s[0]\n"])
def test_writes_happen_when_the_condition_holds(c: float, other: str) -> None:
    text = f"""
def put(inout s: f32[5], v: f32):
    s[2] := v
export def f(inout s: f32[5], x: f32[5], c: f32) -> f32[5]:
    before = s
    if c > 0:
        s[i] := s[i] + x[i]
        put(s, 7)
        if x[1] > 0:
            s[3] := 0
{other}
    return s - before
"""
    graph = built(text)["f"].graph
    s = np.ones(5, np.float32)
    inputs = {"s": s.copy(), "x": X, "c": np.float32(c)}
    compare(graph, {}, inputs)
    _, written = run_native(graph, {}, inputs)
    want = s + X if c > 0 else s.copy()
    if c > 0:
        want[2], want[3] = 7, 0
    elif other:
        want[:2] = -1
    np.testing.assert_array_equal(written["s"], want)


@pytest.mark.parametrize("c", [-1, 1])
def test_whole_writes_of_storage(c: float) -> None:
    text = """
export def f(inout s: f32[N], x: f32[N], c: f32) -> f32:
    if c > 0:
        s := s + x
        return 1
    return total(s)
"""
    graph = built(text)["f"].graph
    inputs = {"s": np.ones(5, np.float32), "x": X, "c": np.float32(c)}
    (r,), written = run_native(graph, {"N": 5}, inputs)
    assert r == (1 if c > 0 else 5)
    np.testing.assert_array_equal(written["s"], 1 + X if c > 0 else 1)


def test_in_a_run_time_loop() -> None:
    text = """
export def f(x: f32[T, N], inout s: f32[T]) -> (f32[N], f32):
    h, n = zeros[N], 0.0
    for t in T:
        m = total(x[t])
        if m > 0:
            h = h + x[t]
            n = n + 1
            if n > 1:
                s[t] := m
        else:
            h = -h
    return h, n
"""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((3, 5)).astype(np.float32)
    h, n = np.zeros(5), 0
    for t in range(3):
        if x[t].sum() > 0:
            h, n = h + x[t], n + 1
        else:
            h = -h
    got = run(text, x=x)
    np.testing.assert_allclose(got[0], h, rtol=1e-6)
    assert got[1] == n


@pytest.mark.parametrize("i", [1, 9])
def test_a_side_that_is_not_taken_reads_nothing(i: int) -> None:
    text = """
export def f(x: f32[N], i: i32, inout s: f32[N]) -> f32:
    y = -1.0
    if i < 5:
        y = x[i] + 1
        s[i] := 2
    return y
"""
    assert run(text, x=X, i=np.int32(i))[0] == (2 if i == 1 else -1)


def test_a_side_that_is_taken_checks_its_indices(tmp_path: Path) -> None:
    path = tmp_path / "m.nn"
    path.write_text("""
export def f(x: f32[N], i: i32) -> f32:
    if i < 10:
        return x[i]
    return 0
""")
    m = nnc.load(path)
    assert m.f(X, 12) == 0
    with pytest.raises(nnc.IndexError, match="index 9 is outside"):
        m.f(X, 9)


def test_a_while_loop_of_a_side_that_is_not_taken_does_not_turn() -> None:
    text = """
export def f(c: f32) -> f32:
    y = 1.0
    if c > 0:
        while y > 0.5:
            y = y * c
    return y
"""
    assert run(text, c=np.float32(-3))[0] == 1
    assert run(text, c=np.float32(0.25))[0] == 0.25


def test_trees_and_several_results() -> None:
    text = """
from std.nn import Linear
def step(net: params(Linear(2, 3)), c: f32) -> (params(Linear(2, 3)), f32):
    if c > 0:
        return net * 2, 1
    return net, 0
export def f(net: params(Linear(2, 3)), c: f32) -> (params(Linear(2, 3)), f32):
    a, b = step(net, c)
    return a, b
"""
    assert run(text, c=np.float32(1))[-1] == 1
    assert run(text, c=np.float32(-1))[-1] == 0


def test_for_each_element() -> None:
    text = """
def soft(x: f32, c: f32) -> f32:
    if x > c:
        return x - c
    if x < -c:
        return x + c
    return 0
export def f(x: f32[N], c: f32) -> (f32[N], f32[N]):
    y[i] = soft(x[i], c)
    loss = total(y**2)
    return y, grad(loss, x)
"""
    x = np.array([-2, -0.5, 0, 0.5, 2], np.float32)
    y, g = run(text, x=x, c=np.float32(1))
    np.testing.assert_array_equal(y, [-1, 0, 0, 0, 1])
    np.testing.assert_array_equal(g, [-2, 0, 0, 0, 2])


@pytest.mark.parametrize("n", [1, 2, 7])
def test_conditions_on_turns_and_sizes_guard_what_a_side_reads(n: int) -> None:
    text = """
export def f(x: f32[T], k: dim) -> (f32[T], f32, f32[T], f32[T]):
    h = 0.0
    s = 0.0
    w = zeros[T]
    ys = for t in T:
        p = 0.0
        if t > 0 and x[t] > 0:
            p = x[t-1] * 2
        else:
            p = x[t] + (x[t+1] if t + 1 < T else 0)
        if t == 0:
            q = x[t]
        else:
            q = x[t-1:t][0]
            w[t-1] := x[t] * q
        h = h + p + q
        yield h
    if k < T:
        s = x[k]
    return ys, s, w, grad(sum(ys**2) + s, x)
"""
    graph = built(text)["f"].graph
    for k in (0, n - 1, n, n + 3):
        compare(graph, {"T": n, "k": k}, sample(graph, {"T": n, "k": k}, np.random.default_rng(k)))


def test_a_condition_guards_its_own_side_only() -> None:
    text = """
export def f(x: f32[T]) -> f32[T]:
    ys = for t in T:
        p = 0.0
        if {cond}:
            p = x[t]
        else:
            p = x[t-1]
        yield p
    return ys
"""
    assert built(text.format(cond="t == 0"))
    with pytest.raises(AssertionError, match="E0402"):
        built(text.format(cond="t > 0"))
    with pytest.raises(AssertionError, match="E0402"):
        built(text.format(cond="t == 1"))


def test_sizes_do_not_lean_on_a_condition() -> None:
    text = """
export def f(x: f32[T]) -> f32:
    s = 0.0
    if T > 3:
        s = sum(x[3:])
    return s
"""
    with pytest.raises(AssertionError, match="E0402"):
        built(text)


def test_conditions_of_many_steps_guard_what_a_side_reads() -> None:
    steps = "\n".join(f"        c = c and (c or x[t] > {k})" for k in range(300))
    text = f"""
export def f(x: f32[T]) -> f32[T]:
    ys = for t in T:
        c = t > 0
{steps}
        p = 0.0
        if c:
            p = x[t-1]
        yield p
    return ys
"""
    assert built(text)
