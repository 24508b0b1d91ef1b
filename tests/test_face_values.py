"""From Python: numbers that do not fit, tensors that are taken for attributes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnc
from nnc.runtime import tensorfile

TEXT = """
from std.nn import Linear
module Net():
    fc = Linear(2, 2)
    param gain: real = 1
    def forward(x: real[B, 2]) -> real[B, 2] = gain * fc(x)
export def f(net: Net, x: f32[B, 2]) -> f32[B, 2] = net(x)
export def g(net: Linear(3, 2), x: f32[B, 3]) -> f32[B, 2] = net(x)
export def two(x: f32[N]) -> (f32[N], f32[N]) = (2 * x, x**2)
export def shaken(x: f32[N], i: i32[M]) -> f32[M]:
    y[m] = x[i[m]]
    return y * uniform!([M])
export def scaled(x: f32[N], s: f32) -> f32[N] = s * x
export def wide(x: f64[N], s: f64) -> f64[N] = s * x
export def half(x: f16[N], s: f16) -> f16[N] = s * x
export def brain(x: f32[N], s: bf16) -> f32[N] = f32(s) * x
"""
X = np.ones(3, np.float32)


@pytest.fixture(scope="module")
def m(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path: Path = tmp_path_factory.mktemp("values") / "v.nn"
    path.write_text(TEXT)
    return nnc.load(path)


@pytest.mark.parametrize(
    ("name", "dtype", "largest", "number"),
    [
        ("scaled", "f4", 3.4028235e38, 3.5e38),
        ("scaled", "f4", 3.4028235e38, 10**400),
        ("scaled", "f4", -3.4028235e38, -(10**300)),
        ("wide", "f8", 1.7e308, 10**400),
        ("half", "f2", 65504, 65520),
        ("brain", "f4", 3.3895e38, 3.4e38),
    ],
)
def test_a_number_never_becomes_infinite(
    m: Any, name: str, dtype: str, largest: float, number: float
) -> None:
    """Neither in the first call nor in one that is like the one before."""
    call, x = m.exports[name], X.astype(dtype)
    for _ in range(3):
        assert np.isfinite(call(x, largest)).all()
        assert np.isinf(call(x, float("inf"))).all()
        with pytest.raises(nnc.DtypeError, match="does not fit"):
            call(x, number)


def test_a_tensor_is_no_attribute(m: Any) -> None:
    """`net.gain = x` would change nothing."""
    net = m.Net.init()
    for write in (
        lambda: setattr(net, "gain", X),
        lambda: setattr(net, "other", X),
        lambda: setattr(net.fc, "weight", X),
        lambda: net.gain,
        lambda: net.fc.weight,
    ):
        with pytest.raises(nnc.AttributeError):
            write()
    with pytest.raises(nnc.ShapeError, match="= 0 fills it"):
        net["fc.bias"] = 0
    net["gain"] = 2
    assert net["gain"] == 2


def test_seeds_from_numpy(m: Any) -> None:
    m.seed(np.int64(3))
    one, other = m.Net.init(seed=np.int32(3)), m.Net.init(seed=3)
    assert np.array_equal(one["fc.weight"], other["fc.weight"])
    with pytest.raises(nnc.ArgumentError, match="a seed is an integer"):
        m.seed(np.float32(3))


def test_numbers_of_a_module_are_named(m: Any) -> None:
    with pytest.raises(nnc.ArgumentError, match=r"by name: Linear\(I=3, O=2\)"):
        m.Linear(3, 2)
    assert m.Linear(I=3, O=2).init()["weight"].shape == (2, 3)


def test_a_failed_call_draws_nothing(m: Any) -> None:
    """Neither the random numbers nor their counter show that there was one."""
    right, wrong = np.zeros(4, np.int32), np.full(4, 9, np.int32)
    m.seed(1)
    want = [m.shaken(X, right) for _ in range(2)]
    m.seed(1)
    got = []
    for _ in range(2):
        with pytest.raises(nnc.IndexError):
            m.shaken(X, wrong)
        with pytest.raises(nnc.IndexError):
            m.shaken.forward(X, wrong)
        got.append(m.shaken(X, right))
    assert np.array_equal(want, got) and m.calls == 2


def test_a_list_of_derivatives(m: Any) -> None:
    run = m.two.forward(X)
    assert np.array_equal(run.backward([X, X]).x, run.backward(X, X).x)


def test_paths(m: Any, tmp_path: Path) -> None:
    net = m.Net.init(0)
    for call in (net.save, net.load, m.restore, nnc.load):
        with pytest.raises(nnc.Error):
            call(3)
    with pytest.raises(nnc.ArgumentError, match="rename is a table"):
        net.load(tmp_path / "n", rename=["a"])
    with pytest.raises(nnc.ArgumentError, match="checkpoint saves modules"):
        m.checkpoint(tmp_path / "n")
    with pytest.raises(nnc.ArgumentError, match='did you mean "threads"'):
        nnc.load(tmp_path / "v.nn", thread=2)


def test_files_of_other_kinds(m: Any, tmp_path: Path) -> None:
    """What to do with them is said; nothing of them is read."""
    net = m.Net.init(0)
    np.savez(tmp_path / "a", x=X)
    np.save(tmp_path / "a", X)
    for name, what in (("a.npz", "an archive, as of torch.save"), ("a.npy", "an array of np.save")):
        with pytest.raises(nnc.LoadError, match=f"it is {what}[^$]*save_file"):
            net.load(tmp_path / name)


def test_weights_of_another_dtype_name_the_cast(m: Any, tmp_path: Path) -> None:
    net = m.Net.init(0)
    rows = [(k, "f16", v.astype(np.float16)) for k, v in net.items()]
    tensorfile.write(tmp_path / "half", rows)
    with pytest.raises(nnc.LoadError, match=r"help: .*tensor.to\(torch.float32\)"):
        net.load(tmp_path / "half")
