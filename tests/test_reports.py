"""What run-time messages say of the text: where numbers come from, what a module leaves out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import nnc

TEXT = """\
from std.nn import Linear, Embedding

module Body(C=4, N=32):
    param wpe: real[N, 4] = normal(0.02)
    fc1 = Linear(4, 8, use_bias=false)
    fc2 = Linear(8, C)
    def forward(x: real[T, 4]) -> real[T, C] where T <= N:
        return fc2(fc1(x + wpe[:T]))

module Net(C=3):
    body = Body(C) from weights("body")
    def forward(x: real[T, 4]) -> real[T, C] where T <= 32 = body(x)

export def run(net: Body, x: f32[T, 4]) -> f32[T, 4] where T <= 32 = net(x)
export def whole(net: Net, x: f32[T, 4]) -> f32[T, 3] where T <= 32 = net(x)
"""


@pytest.fixture(scope="module")
def m(tmp_path_factory: pytest.TempPathFactory) -> nnc.Model:
    path = tmp_path_factory.mktemp("reports") / "net.nn"
    path.write_text(TEXT)
    return nnc.load(path)


def test_a_number_in_a_condition_is_named(m: nnc.Model) -> None:
    net = m.Body.init()
    with pytest.raises(nnc.ShapeError) as raised:
        m.run(net, np.zeros((33, 4), np.float32))
    text = str(raised.value)
    assert "run needs T <= 32, got T = 33" in text
    assert "net.nn:14; 32 is N, the rows of wpe (" in text and "net.nn:4)" in text


def test_what_a_file_has_beside_the_model(m: nnc.Model, tmp_path: Path) -> None:
    tensors = {k: np.asarray(v) for k, v in m.Body.init().items()}
    tensors |= {"fc1.bias": np.zeros(8, np.float32), "fc2.weight": np.zeros((9, 8), np.float32)}
    path = tmp_path / "old.safetensors"
    save_file(tensors, path)
    with pytest.raises(nnc.LoadError) as raised:
        m.Net.init(files={"body": path})
    text = str(raised.value)
    assert "unused   fc1.bias f32[8]   the model declares fc1 with use_bias=false (" in text
    assert 'help: weights("body", skip=[' in text
    with pytest.raises(nnc.LoadError, match=r"help: load\(path, skip="):
        m.Body.init().load(path)
