"""`nnc.quantize`: the same exports with weights stored in fewer bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nnc
from nnc import compiler
from nnc.cli import main
from nnc.passes.stored import held, stored_as, weights
from nnc.quantization import to_bf16
from tests.endtoend import built
from tests.native import run

NET = """\
from std.nn import Linear, relu

module Net(I=37, H=70, C=5):
    param table: real[9, I] = normal(1)
    a = Linear(I, H)
    b = Linear(H, C)
    def forward(x: real[B, I], t: i32[B]) -> real[B, C]:
        y[n, i] = x[n, i] + table[t[n], i]
        return b(relu(a(y)))

export def logits(net: Net, x: f32[B, 37], t: i32[B]) -> f32[B, 5]:
    return net(x, t)

export def classes(net: Net, x: f32[B, 37], t: i32[B]) -> i32[B]:
    return argmax(net(x, t), over=1)

export def slope(net: Net, x: f32[B, 37], t: i32[B]) -> f32[B, 37]:
    return grad(net(x, t)[0, 0], x)

export def step(inout net: Net, x: f32[B, 37]):
    net.table[0] := x[0]
"""


def halves(x: np.ndarray) -> np.ndarray:
    """f32 rounded to bf16, as f32."""
    return (to_bf16(x).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "net.nn"
    file.write_text(NET)
    return file


def data(rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, 37), dtype=np.float32)
    return {"x": x, "t": rng.integers(0, 9, rows).astype(np.int32)}


def test_bf16_is_the_model_of_rounded_weights(path: Path) -> None:
    """Only matrices that are multiplied are stored as bf16, and nothing else is rounded."""
    model = nnc.load(path)
    net = model.Net.init(seed=3)
    q = nnc.quantize(path, net, "logits", data=[data(4), data(1)])
    assert q.keys == ("a.weight", "b.weight")
    rounded = net.copy()
    for key in q.keys:
        rounded[key] = halves(net[key])
    for rows in (1, 2, 13, 40):
        want = model.logits(rounded, **data(rows))
        assert (q.model.logits(q.net, **data(rows)) == want).all()
    (error,) = q.differences
    assert 0 < error.largest < 0.02 * error.scale and 0 < error.rms < 0.02
    assert q.bytes[1] < q.bytes[0]


def test_what_writes_or_differentiates_is_left_out(path: Path) -> None:
    q = nnc.quantize(path, nnc.load(path).Net.init(), "classes", data=data(7))
    assert list(q.model.exports) == ["logits", "classes"]
    assert q.left_out == {"slope": "it takes a gradient", "step": "it writes `net`"}
    assert "agree" in str(q)


def test_saved_and_loaded_again(path: Path, tmp_path: Path) -> None:
    q = nnc.quantize(path, nnc.load(path).Net.init(seed=1))
    q.save(tmp_path / "out", "net.bf16")
    again = nnc.load(tmp_path / "out" / "net.bf16.json")
    file = tmp_path / "out" / "net.bf16.safetensors"
    net = again.Net.init(files={"weights": file})
    x = data(5)
    assert (again.logits(net, **x) == q.model.logits(q.net, **x)).all()
    with pytest.raises(nnc.ArgumentError, match="weights"):
        again.Net.init()


def test_wrong_use(path: Path) -> None:
    net = nnc.load(path).Net.init()
    with pytest.raises(nnc.ArgumentError, match="a format is one of"):
        nnc.quantize(path, net, to="int3")
    with pytest.raises(nnc.ArgumentError, match="say which"):
        nnc.quantize(path, net, data=data(1))
    with pytest.raises(nnc.ArgumentError, match="no argument 'y'"):
        nnc.quantize(path, net, "logits", data={**data(1), "y": 3})
    with pytest.raises(nnc.ArgumentError, match="left out"):
        nnc.quantize(path, net, "slope", data=data(1))


FORMS = """\
module W():
    param w: f32[23, 19] = normal(1)
    param v: f32[23, 19] = normal(1)
    param d: f32[23, 19] = normal(1)
    param e: f32[23, 19] = normal(1)
export def f(net: W, x: f32[M, 19], n: f32[M, 23]) -> (f32[M, 23], f32[M, 19], f32[23], f32[23, 19]):
    a = x @ net.w.T
    b[m, j] = sum[i](n[m, i] * net.v[i, j])
    c[i] = sum[j](net.e[i, j + 1 else 0] * x[0, j])
    return a, b, c, net.d
"""


def test_only_factors_that_are_read_by_element() -> None:
    """Both layouts, through a transposed view; not a result, not a read with `else`."""
    graph = compiler.optimise(built(FORMS)["f"].graph)
    names = weights(graph) - set(held(graph))
    assert names == {"net.w", "net.v"}
    stored = stored_as(graph, names, "bf16")
    program = compiler.schedule(compiler.optimise(stored))
    rng = np.random.default_rng(0)
    for m in (1, 2, 31):
        arrays = [rng.standard_normal((23, 19)).astype(np.float32) for _ in range(4)]
        arrays += [rng.standard_normal((m, k)).astype(np.float32) for k in (19, 23)]
        given = [to_bf16(a).view(np.uint16) if i < 2 else a for i, a in enumerate(arrays)]
        shapes = [(m, 23), (m, 19), (23,), (23, 19)]
        out = run(program, [*given, *(np.zeros(s, np.float32) for s in shapes)], {"M": m})
        w, v = (halves(a).astype(np.float64) for a in arrays[:2])
        x, n = (a.astype(np.float64) for a in arrays[4:])
        np.testing.assert_allclose(out[6], x @ w.T, atol=1e-4)
        np.testing.assert_allclose(out[7], n @ v, atol=1e-4)


def test_command(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nnc.load(path).Net.init(seed=2).save(tmp_path / "w.safetensors")
    np.savez(tmp_path / "x.npz", **data(3))
    files = ["--weights", str(tmp_path / "w.safetensors"), "--data", str(tmp_path / "x.npz")]
    out = tmp_path / "out"
    assert main(["quantize", str(path), "logits", *files, "-o", str(out)]) == 0
    assert "differs by" in capsys.readouterr().out
    assert (out / "net.bf16.json").exists() and (out / "net.bf16.safetensors").exists()
    assert main(["quantize", str(path), "logit", *files, "-o", str(out)]) == 2
    assert "did you mean" in capsys.readouterr().err
