"""Sizes under conditions that instances decide, and under assertions about parameters."""

from __future__ import annotations

from textwrap import dedent

import numpy as np
import pytest

from nnc.lang.dims import Dim, Facts, prove_nonneg
from tests.endtoend import built, compare, sample
from tests.frontend import front
from tests.test_elaborate import run

BLOCK = """
from std.nn import Conv2d, relu
module Block(I, O, s=1, k=3, p=1, res=true):
    both = s == 1 and I == O
    conv = Conv2d(I, O, k, stride=s, pad={pad}, use_bias=false)
    skip = Conv2d(I, O, 1, stride=s)
    def forward(x: real[B, I, H, W]) -> real[B, O, Y, X] where Y = (H + 2*({pad}) - k)//s + 1, X = (W + 2*({pad}) - k)//s + 1:
        y = conv(x)
{body}
"""
USE = """
export def f(a: Block(4, 4), b: Block(4, 6, s=2, res=false), x: f32[B, 4, H, W]) -> (f32[B, 4, H, W], f32[B, 6, (H + 1)//2, (W + 1)//2]):
    return a(x), b(x)
"""


def program(body: str, pad: str = "k//2") -> str:
    lines = "\n".join(f"        {line}" for line in body.strip("\n").split("\n"))
    return BLOCK.format(pad=pad, body=lines)


ACCEPTED = [
    "if s == 1 and I == O:\n    y = y + x\nreturn y",
    "return y + x if s == 1 and I == O else y",
    "return (y + x if I == O else y) if s == 1 else y",
    "z = x if s == 1 and I == O else skip(x)\nreturn y + z",
    "if s != 1 or I != O:\n    y = relu(y)\nelse:\n    y = y + x\nreturn y",
    "if not (s == 1 and I == O):\n    return relu(y)\nreturn y + x",
    "if res:\n    y = y + x\nreturn y",
    "if both:\n    y = x - y\nreturn y",
    "if s == 1 and res:\n    return y + x\nelse:\n    return y",
    "if s == 2:\n    y = relu(y)\nelif I == O:\n    y = y + x\nreturn y",
    "if s == 1 and I == O:\n    y[b, c, i, j] = y[b, c, i, j] * x[b, c, i, j]\nreturn y",
    "y[b, c, i, j] = y[b, c, i, j] + (x[b, c, i, j] if s == 1 and I == O else 0)\nreturn y",
    "z[b, (c, e:1), i, j] = y[b, (c, e), i, j] + (x[b, (c, e), i, j] if both else 0)\nreturn z",
]


@pytest.mark.parametrize("body", ACCEPTED)
@pytest.mark.parametrize("pad", ["k//2", "p"])
def test_numbers_of_instances_decide(body: str, pad: str) -> None:
    assert "error" not in front(program(body, pad) + USE).text
    assert "error" not in front(program(body, pad)).text


REFUSED = [
    "if s == 1 and I == O:\n    return y\nreturn y + x",
    "if s == 1 and I == O:\n    y = y + x[:, 1:]\nreturn y",
    "if res:\n    y = y + x[:, :, 1:]\nreturn y",
    "if I != O:\n    y = y + x\nreturn y",
]


@pytest.mark.parametrize("body", REFUSED)
def test_what_no_instance_can_mean_is_a_mistake_of_the_definition(body: str) -> None:
    assert "E0302" in front(program(body)).codes


def test_an_instance_whose_numbers_do_not_fit_is_refused() -> None:
    text = program("if s == 1 and I == O:\n    y = y + x\nreturn y") + USE
    assert "E0302" in front(text.replace("Block(4, 4)", "Block(4, 4, k=4)")).codes


def test_a_branch_that_is_not_selected_gives_no_range() -> None:
    text = """
    module Block(I, O):
        param w: real[O, I] = 1
        def forward(x: real[B, I]) -> real[B, O]:
            y = x @ w.T
            y[b, c] = y[b, c] + (x[b, c] if I == O else 1)
            return y
    export def f(a: Block(2, 2), b: Block(2, 3), x: f32[B, 2]) -> f32[B, 3] = b(a(x))
    """
    x = np.array([[1.0, 2.0]])
    out = run(text, x=x, a_w=np.eye(2), b_w=np.ones((3, 2)))
    assert np.allclose(out.results[0], [[7, 7, 7]])


@pytest.mark.parametrize("said, pad", [("k % 2 == 1", "k//2"), ("k == 2*p + 1 and p >= 1", "p")])
def test_assertions_about_parameters_enter_the_proofs(said: str, pad: str) -> None:
    text = f"""
from std.nn import Conv2d
module Same(C, k=3, p=1):
    assert {said}
    conv = Conv2d(C, C, k, pad={pad})
    def forward(x: real[B, C, H, W]) -> real[B, C, H, W]:
        return x + conv(x)
"""
    assert "error" not in front(text).text
    without = front(text.replace(f"    assert {said}\n", "")).text
    assert (
        f"`assert {said.partition(' and')[0].replace('2*p + 1', '2*p+1')}` in the module" in without
    )


def test_a_power_of_parameters_is_a_size() -> None:
    text = """
    module Layer(C, d):
        param w: real[2, C] = 1
        def forward(x: real[B, C, T]) -> real[B, C, T]:
            y[b, c, t:T] = sum[u](x[b, c, t - d*(1 - u) else 0] * w[u, c])
            return y
    module Net(C, L):
        layers = [Layer(C, 2**l) for l in L]
        param all: real[2**L, 3**(L - 1)] = 0
        def forward(x: real[B, C, T]) -> real[B, C, T]:
            for layer in layers:
                x = layer(x)
            return x + total(all)
    export def f(net: Net(1, 3), x: f32[B, 1, T]) -> f32[B, 1, T] = net(x)
    """
    x = np.ones((1, 1, 9), np.float32)
    weights = {f"net_layers_{k}_w": np.ones((2, 1)) for k in range(3)}
    out = run(text, x=x, **weights, net_all=np.zeros((8, 9)))
    assert np.allclose(out.results[0], [[[1, 2, 3, 4, 5, 6, 7, 8, 8]]])


def test_halves_of_what_is_asserted_to_be_even() -> None:
    text = """
    module Split(D, H, K=D/H):
        assert K % 2 == 0 and D % 2 == 0
        def swap(x: real[B, D]) -> real[B, D]:
            return concat(x[:, D//2:], x[:, :D//2], over=1)
        def forward(x: real[B, H, K]) -> real[B, H, K]:
            y[b, h, (s:2, e:K//2)] = x[b, h, (1 - s, e)]
            return y
    export def f(net: Split(8, 2), x: f32[B, 2, 4]) -> (f32[B, 2, 4], f32[B, 8]):
        y[b, (h, k)] = x[b, h, k]
        return net(x), net.swap(y)
    """
    out = run(text, x=np.arange(8).reshape(1, 2, 4))
    assert np.allclose(out.results[0], [[[2, 3, 0, 1], [6, 7, 4, 5]]])
    assert np.allclose(out.results[1], [[4, 5, 6, 7, 0, 1, 2, 3]])


def test_members_of_a_tree_of_gradients() -> None:
    text = """
    module Part(D):
        param w: real[D] = 1 as "scale"
        param b: real[D] = 0
        def forward(x: real[D]) -> real[D] = w * x + b
    module Net(D=2):
        a = Part(D)
        c = Part(D)
        def forward(x: real[D]) -> real[D] = c(a(x))
    def moved(net: Net, g: params(Net), x: real[2]) -> real:
        return total((net.a.w - 0.5 * g.a.w) * x) + total(g.c.b)
    export def f(net: Net, x: f32[2]) -> (f32, f32):
        g = grad(total(net(x)), net)
        return moved(net, g, x), norm(g.a)
    """
    one = {f"net_{p}_scale": np.ones(2) for p in "ac"}
    out = run(text, x=np.array([3.0, 4.0]), **one)
    assert np.allclose(out.results[0], 7 - 0.5 * 25 + 2)
    assert np.allclose(out.results[1], np.sqrt(25 + 2))


def test_heads_in_groups() -> None:
    text = """
    module Grouped(H, G):
        assert H % G == 0
        def forward(q: real[B, H], k: real[B, G]) -> real[B, H]:
            y[b, h] = q[b, h] * k[b, h//(H//G)]
            return y
    export def f(net: Grouped(6, 2), q: f32[B, 6], k: f32[B, 2]) -> f32[B, 6] = net(q, k)
    """
    out = run(text, q=np.ones((1, 6)), k=np.array([[2, 3]]))
    assert np.allclose(out.results[0], [[2, 2, 2, 3, 3, 3]])


def test_claims_about_short_loops_point_by_point() -> None:
    e, m = Dim.of("$e"), Dim.of("$m")
    box = {"$e": (Dim.of(0), Dim.of(1)), "$m": (Dim.of(0), Dim.of(3))}
    where = (e + m) // 2 - m + 1
    index = e + 2 * where
    assert prove_nonneg(index, Facts(nonneg=(where,)), box)
    assert prove_nonneg(3 - index, Facts(nonneg=(where,)), box)
    assert not prove_nonneg(2 - index, Facts(nonneg=(where,)), box)


def test_the_gradient_of_halves_that_change_places() -> None:
    text = """
export def f(x: f32[B, 4], c: f32[B, 4]) -> (f32, f32[B, 4]):
    y[b, (s:2, e:2)] = (2*s - 1) * x[b, (1 - s, e)] * c[b, (s, e)]
    z = total(y * y)
    return z, grad(z, x)
"""
    graph = built(text)["f"].graph
    rng = np.random.default_rng(0)
    compare(graph, {"B": 5}, sample(graph, {"B": 5}, rng))


def test_a_size_may_be_called_as_a_module_or_function_of_the_file() -> None:
    text = """
    module D(X=2):
        param w: real[X] = 1
        def forward(x: real[B, X]) -> real[B] = x @ w
    def T(x: real[N]) -> real[N] = 2 * x
    def use(net: D, x: real[B, 2]) -> real[B] = T(net(x))
    def scaled(x: real[D, T]) -> real[T, D] = x.T * T
    export def f(x: f32[D, T]) -> f32[T, D] = scaled(x)
    """
    out = run(text, "f", x=np.ones((2, 3)))
    assert np.allclose(out.results[0], 3 * np.ones((3, 2)))


def test_the_open_digit_of_a_tuple_beside_those_of_a_reduction() -> None:
    text = """
    export def f(x: f32[B, 4*T], w: f32[4]) -> (f32[B, T], f32[B, T], f32[T]):
        y[b, t] = sum[k:4](x[b, (t, k)])
        z[b, t] = max[k](x[b, (t, k)] * w[k])
        m[t] = mean[b, k:4](x[b, (t, k)])
        return y, z, m
    """
    x = np.arange(16.0).reshape(2, 8)
    out = run(text, x=x, w=np.ones(4), T=2, B=2)
    assert np.allclose(out.results[0], x.reshape(2, 2, 4).sum(2))
    assert np.allclose(out.results[1], x.reshape(2, 2, 4).max(2))
    assert np.allclose(out.results[2], x.reshape(2, 2, 4).mean((0, 2)))


def test_lists_of_modules_of_different_sizes() -> None:
    text = """
    module Lin(I, O):
        param w: real[O, I] = 1
        def forward(x: real[B, I]) -> real[B, O] = x @ w.T
    module Stage(I, O, n):
        parts = [Lin(I if i == 0 else O, O) for i in n]
        def forward(x: real[B, I]) -> real[B, O]:
            for part in parts:
                x = part(x)
            return x
    module Net(C, L, wide=false):
        head = Lin(2*C if wide else C, C)
        stages = [Stage(C*2**i, C*2**(i + 1), i + 1) for i in L]
        def forward(x: real[B, C]) -> real[B, C*2**L]:
            x = head(concat(x, x, over=1) if wide else x)
            for stage in stages:
                x = stage(x)
            return x
    export def f(net: Net(1, 2), two: Net(1, 2, wide=true), x: f32[B, 1]) -> f32[B, 4]:
        return net(x) + two(x)
    """
    text = dedent(text)
    assert "error" not in front(text).text
    wrong = front(text.replace("C*2**(i + 1)", "C*2**i + 1"))
    assert "E0303" in wrong.codes  # of an instance


def test_a_conditional_size_is_between_its_sides() -> None:
    text = """
    module Part(D, wide=true):
        assert D >= 3
        def forward(x: real[B, D]) -> real[B]:
            return sum(x[:, :3 if wide else 1], over=1) + x[:, D - 1 if wide else 0]
        def rest(x: real[B, D]) -> real[B]:
            n = 2 if wide else D
            y[b, i:n] = x[b, i]
            return sum(y, over=1)
    export def f(a: Part(4), b: Part(4, wide=false), x: f32[B, 4]) -> (f32[B], f32[B]):
        return a(x) + 10 * b(x), a.rest(x) + 10 * b.rest(x)
    """
    out = run(text, x=np.array([[1, 2, 3, 4]]))
    assert np.allclose(out.results[0], [6 + 4 + 10 * (1 + 1)])
    assert np.allclose(out.results[1], [3 + 100])
