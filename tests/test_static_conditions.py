"""Sizes under conditions that instances decide, and under assertions about parameters."""

from __future__ import annotations

import numpy as np
import pytest

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
