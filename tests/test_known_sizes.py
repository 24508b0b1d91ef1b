"""What is known of sizes and places: parity, and cases of `min` and `max`."""

from __future__ import annotations

import numpy as np
import pytest

from nnc.lang.dims import ONE, Dim, Facts, dim_max, dim_min, prove_nonneg, whole_multiples
from tests.endtoend import built, compare, sample

RNG = np.random.default_rng(3)

REFLECTED = """
export def f(x: f32[N], p: dim) -> f32[N + 2*p] where p < N:
    y[i:N + 2*p] = x[{index}]
    return y
"""


@pytest.mark.parametrize(
    "index",
    [
        "max(min(i - p, 2*(N - 1) - (i - p)), -(i - p))",
        "min(max(i - p, p - i), 2*(N - 1) - max(i - p, p - i))",
    ],
)
def test_reflection(index):
    graph = built(REFLECTED.format(index=index))["f"].graph
    x = RNG.standard_normal(5).astype(np.float32)
    for p in range(5):
        (y,) = compare(graph, {"N": 5, "p": p}, {"x": x, "p": np.int64(p)})
        np.testing.assert_array_equal(y, np.pad(x, p, mode="reflect"))


def test_reflection_that_goes_too_far_is_refused():
    with pytest.raises(AssertionError, match="E0402"):
        built(REFLECTED.format(index="max(i - p, p - i)"))
    with pytest.raises(AssertionError, match="E0402"):
        text = REFLECTED.format(index="max(min(i - p, 2*(N - 1) - (i - p)), -(i - p))")
        built(text.replace("p < N", "p <= N"))


def test_windows_with_reflected_edges():
    text = """
export def f(x: f32[H, W], k: f32[3, 3]) -> (f32[H, W], f32[H, W]) where 2 <= H, 2 <= W:
    y[i:H, j:W] = sum[u:3, v:3](x[min(max(i + u - 1, 1 - i - u), 2*H - 1 - i - u), min(max(j + v - 1, 0), W - 1)] * k[u, v])
    return y, grad(sum(y**2), x)
"""
    graph = built(text)["f"].graph
    for h, w in ((2, 2), (3, 17), (9, 33)):
        compare(graph, {"H": h, "W": w}, sample(graph, {"H": h, "W": w}, RNG))


def test_choices_are_looked_at_case_by_case():
    i, n, p = (Dim.of(x) for x in ("$i", "N", "p"))
    facts = Facts(frozenset({"p"}), (n - 1 - p,))
    box = {"$i": (Dim.of(0), n + 2 * p - 1)}
    near = dim_max(i - p, p - i)
    assert prove_nonneg(dim_min(near, 2 * n - 2 - near), facts, box)
    assert not prove_nonneg(dim_min(near, 2 * n - 3 - near), facts, box)
    assert not prove_nonneg(n - 1 - near, facts, box)


EVEN = """
def half(x: f32[K]) -> f32[2*(K//2)]:
    y[i:2*(K//2)] = x[i]
    return y

module M(K):
    assert K % 2 == 0
    def forward(x: real[K]) -> real[2*(K//2)] = x

export def f(x: f32[K], y: f32[K//2], m: M(6)) -> (f32[K], f32[K], f32[K//2], f32[K]) where K % 2 == 0:
    z[(a:K//2, b:2)] = x[(a, b)] * y[a]
    w[i:K] = z[i + 1 if i < K - 1 else 0]
    return half(x) + x, w, x[:K//2] * y + x[K//2:], grad(sum(w**2), x)
"""


def test_a_size_that_is_known_to_be_even():
    graph = built(EVEN)["f"].graph
    for k in (2, 6, 34):
        compare(graph, {"K": k}, sample(graph, {"K": k}, RNG))


def test_a_size_that_is_not():
    with pytest.raises(AssertionError, match="E0302"):
        built(EVEN.replace(" where K % 2 == 0", "").replace("    assert K % 2 == 0\n", ""))
    with pytest.raises(AssertionError, match="E030"):
        built(EVEN.replace("where K % 2 == 0", "where K % 3 == 0"))


def test_whole_multiples():
    k, n = Dim.of("K"), Dim.of("N")
    f = (k // 2).functions[0]
    for p, want in (
        (2 * (k // 2), k),
        (k - k // 2, k // 2),
        (3 * n * (k // 2), n * k + n * (k // 2)),
        (n - k // 2, n - k // 2),
        (k // 2 + ONE, k // 2 + 1),
    ):
        assert whole_multiples(p, f) == want, p
