"""Files by the last word of their name, by the whole path, by another name; choices of tuples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nnc
from tests.endtoend import built, compare, sample

TEXT = """
{imports}
export def f(inout net: {nn}.Linear(3, 2), inout opt: {optim}.SGD({nn}.Linear(3, 2)), x: f32[B, 3]) -> f32:
    loss = mean(net({nn}.relu(x))**2)
    net := opt!(net, grad(loss, net), 0.1)
    return loss
"""


@pytest.mark.parametrize(
    ("imports", "nn", "optim"),
    [
        ("import std.nn\nimport std.optim", "nn", "optim"),
        ("import std.nn\nimport std.optim", "std.nn", "std.optim"),
        ("import std.nn as layers\nimport std.optim as o", "layers", "o"),
    ],
)
def test_paths(imports: str, nn: str, optim: str) -> None:
    graph = built(TEXT.format(imports=imports, nn=nn, optim=optim))["f"].graph
    compare(graph, {"B": 2}, sample(graph, {"B": 2}, np.random.default_rng(0)))


def test_a_choice_of_tuples() -> None:
    text = """
def pair(x: real[N], c: bool) -> (real[N], real) = (x, mean(x)) if c else (2 * x, 1.0)
export def f(x: f32[N], c: bool) -> (f32[N], f32, f32[N]):
    p, q = pair(x, c)
    a, b = (p, q) if q > 0 else (q * p, -q)
    return a, b, grad(total(a) * b, x)
"""
    graph = built(text)["f"].graph
    for seed in range(4):
        compare(graph, {"N": 3}, sample(graph, {"N": 3}, np.random.default_rng(seed)))


def test_two_files_with_one_name(tmp_path: Path) -> None:
    """The second import would hide the first."""
    (tmp_path / "mine.nn").write_text("def relu(x: real[..N]) -> real[..N] = x\n")
    head = "from std.nn import relu\n{}from mine import relu\n"
    text = "export def f(x: f32[N]) -> f32[N] = relu(x)\n"
    path = tmp_path / "m.nn"
    path.write_text(head.format("") + text)
    with pytest.raises(nnc.CompileError, match="two imports are called `relu`"):
        nnc.load(path)
    path.write_text(
        f"from std.nn import relu\nimport mine\n{text.replace('relu(x)', 'mine.relu(relu(x))')}"
    )
    assert nnc.load(path).f(np.array([-1, 2], np.float32)).tolist() == [0, 2]
