"""Random programs of the whole language: text, graphs after every pass, gradients and native code agree."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.oracle import examine
from tests.random_language import Program, program


def check(found: Program, seed: int) -> None:
    try:
        with np.errstate(all="ignore"):
            examine(found, seed)
    except Exception as e:
        e.add_note(f"seed {seed}, {found.dims}\n{found.text}")
        raise


@settings(max_examples=18, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False), st.integers(0, 1000))
def test_random_programs_agree(rng: random.Random, seed: int) -> None:
    check(program(rng), seed)


@pytest.mark.parametrize("seed", (*range(12), 10915))  # 10915: rows that need the end of their pass
def test_programs_of_a_seed_agree(seed: int) -> None:
    check(program(random.Random(seed)), seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 3000, 20))
def test_two_thousand_programs_agree(first: int) -> None:
    for seed in range(first, first + 20):
        check(program(random.Random(seed)), seed)


# ---- what random programs have found: the shortest program of each mistake ------------------------

SIZES = ({"B": 3, "T": 4}, {"B": 8, "T": 17})
FOUND = {
    "twice a dim is not negative where the dim is not": """
export def f(x: f64[B, 4], y: f64[T], inout buf: f64[B, 4]) -> (f64, f64[T]):
    t = tanh(y)
    buf[i, j] := tanh(log(1 + ((t[j + i else 0]) + (t[j + j else 1.5]))**2))
    loss = mean(x) + mean(buf * buf)
    return loss, grad(loss, y)
""",
    "a quotient whose multiple is read says nothing of its remainder": """
export def f(x: f64[B, 3], y: f64[B, T]) -> (f64, f64[B, 3]):
    t = log(sum[k:3](exp(x[0, 2*k - 1 else -0.5])))
    loss = mean(x) + mean(t*t)
    return loss, grad(loss, x)
""",
    "a reduction is cut short by what stands outside of its loops only": """
export def f(x: f32[T, 3], y: f32[3]) -> f32[3]:
    c = mean(y**2)
    t = mean[k:3, w:T](x[2*w - 1, k else 1.5] + (c if k < w + 1 else x[w, k]))
    return grad(t**2, y)
""",
    "a scatter keeps the condition that makes its target valid": """
export def f(x: f32[B, 8]) -> f32[B, 8]:
    a = prod[k:B, w:B](1 + 0.1 * tanh(sum[i:8](x[k, i] * x[w, 2*k - 1 else 0])))
    g = grad(a, x)
    return grad(mean(x * tanh(g)), x)
""",
    "a condition that is evaluated lazily proves bounds": """
export def f(x: f32[B, 5], y: f32[T]) -> f32[B, 5]:
    a[i:B] = sum[k:T](x[2*i - 1, 0 else 0] * y[k] if k >= i else 0.0)
    g = grad(total(a**3), x)
    return grad(mean(x * tanh(g)), x)
""",
    "loops of the derivative have other names than those of what is written": """
export def f(inout b: f32[3], x: f32[T, 3]) -> f32:
    h = zeros[3]
    for t in T:
        h = tanh(h + x[t])
    y = mean(h * h)
    b := grad(y, x)[0]
    return y
""",
    "a slice is added to a constant that is not zero": """
export def f(x: f32[B, 3]) -> f32[B, 3]:
    a = logsumexp(x, over=0)
    return grad(mean(a) + a[0]**2, x)
""",
    "a condition that reads data keeps the conditions of its index": """
export def f(x: f32[B, T]) -> f32[T]:
    at = argmax(x, over=0)
    z[u:T] = x[2*u - 1, at[u] else 0.5]
    return z
""",
    "a reduction that would end before it begins": """
export def f(x: f32[B, T]) -> f32[B]:
    y[j:B] = sum[i:T](x[0, i + j] * x[j, i] if i + j < T else 0)
    return y
""",
    "a digit that is zero under the condition": """
export def f(x: f32[B, 5]) -> f32[B]:
    a[(i, j)] = x[i, j] * 0.5
    b[i:B, j:5] = a[(i, j)] + 0.1
    c[j:B] = sum[i:5](b[j, i + j else 0])
    return c
""",
    "a condition that holds where another does not": """
export def f(x: f32[B, 4]) -> f32[B, 4]:
    a = argmax(x, over=1)
    y[i:B] = rsqrt(1 + (0.5 if x[i, a[0]] > 0.1 else x[i - 2, a[0] else 1.5])**2)
    return grad(mean(y * y), x)
""",
    "a function with an adjoint before autodiff": """
def own(x: real[..N]) -> real[..N] = tanh(x)

adjoint own(x; y, dy):
    return dy * (1 - y**2)

export def f(x: f32[B]) -> f32[B] = own(x)
""",
    "the zero outside of a tensor has the dtype of that tensor": """
export def f(x: f32[B, 4]) -> bf16[B, 4]:
    h = bf16(x)
    y[w:B, u:4] = sum[i:B](h[i + u - 2, u else 0])
    return y
""",
    "whether a read is inside is asked where its index is": """
export def f(x: f32[B, 4], at: i32[T]) -> f32[B, 4]:
    y = zeros[T]
    y[i] := x[i - 1, at[i] else 0.5]**2
    return grad(mean(y * y), x)
""",
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_found(name: str) -> None:
    check(Program(FOUND[name], SIZES, {}, True), 1)
