"""Bad input from Python: numbers that are none, indices outside, wrong arguments."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnc
from tests.endtoend import built, compare

# ---- NaN and infinity -----------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
ROWS = np.array(
    [
        [1, NAN, 3, 2, NAN],
        [-INF] * 5,
        [INF, 1, INF, 2, -INF],
        [NAN, NAN, 1, INF, 0],
        [-INF, 0.5, -INF, 2, 1],
        [-0.0, 0.0, -0.0, 0.0, -1],
    ],
    np.float32,
)
SPECIAL = """
from std.nn import relu
export def f(x: f32[B, N]) -> (i32[B], i32[B], f32[B], f32[B], f32[B], f32[B], f32[B, N], f32[B]):
    return argmax(x, over=1), argmin(x, over=1), max(x, over=1), min(x, over=1), sum(x, over=1), prod(x, over=1), softmax(x, over=1), logsumexp(x, over=1)
export def g(x: f32[B, N]) -> (f32[B, N], f32[B, N], f32[B, N], f32[B, N], bool[B, N], bool[B]):
    return relu(x), min(max(x, -1.0), 1.0), max(x, 0.5), sign(x) * sqrt(abs(x)), x != x, any(x > 1.0, over=1)
export def d(x: f32[B, N]) -> (f32[B, N], f32[B, N]):
    return grad(total(max(x, over=1)), x), grad(total(relu(x)), x)
"""


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", ["f", "g", "d"])
@pytest.mark.parametrize("width", [5, 3, 70])
def test_special_values_are_those_of_the_interpreter(name: str, width: int) -> None:
    """Short rows, and rows over vector registers and their tails; 1, 2 and 3 threads."""
    x = np.tile(ROWS, (1, -(-width // 5)))[:, :width]
    compare(built(SPECIAL)[name].graph, {"B": 6, "N": width}, {"x": np.ascontiguousarray(x)})


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rules_of_nan() -> None:
    """Those of docs/language.md."""
    x = {"x": ROWS}
    first, last, most, least, _, _, soft, log = compare(
        built(SPECIAL)["f"].graph, {"B": 6, "N": 5}, x
    )
    assert first.tolist() == [1, 0, 0, 0, 3, 0]
    assert last.tolist() == [1, 0, 4, 0, 0, 4]
    np.testing.assert_array_equal(most, np.max(ROWS, 1))
    np.testing.assert_array_equal(least, np.min(ROWS, 1))
    assert np.isnan(soft[:4]).all() and np.isfinite(soft[4:]).all()
    assert soft[4, 0] == soft[4, 2] == 0
    assert log[1] == -INF
    relu, clip, *_ = compare(built(SPECIAL)["g"].graph, {"B": 6, "N": 5}, x)
    assert np.array_equal(np.isnan(relu), np.isnan(ROWS))
    assert np.array_equal(np.isnan(clip), np.isnan(ROWS))


# ---- indices --------------------------------------------------------------------------------------

READS = """
export def read(x: f32[N], k: i64[M]) -> f32[M]:
    y[i] = x[k[i]]
    return y
export def scatter(x: f32[N], k: i64[M]) -> f32[N]:
    y[i] = x[k[i]]
    return grad(total(y**2), x)
export def write(inout x: f32[N], k: i64[M]):
    x[k[i]] := x[k[i]] + 1
export def late(inout x: f32[N], k: i64[M], z: f32[N]) -> f32:
    x := x + 1
    s = sum[i](z[k[i]])
    return s
export def turns(x: f32[N], k: i64[T]) -> f32:
    s = 0.0
    for t in T:
        s = s + x[k[t]]
    return s
export def back(x: f32[N], k: i64[T]) -> f32[N]:
    s = 0.0
    for t in T:
        s = s + x[k[t]]**2
    return grad(s, x)
export def carried(x: f32[N], k: i64[T]) -> f32:
    j = k[0]
    for t in T:
        j = k[t]
    return x[j]
"""
LINES = {"read": 3, "scatter": 6, "write": 9, "late": 12, "turns": 17, "back": 22, "carried": 28}
OUTSIDE = [5, -1, 2**31, 2**32, -(2**31) - 1, 2**63 - 1, -(2**63)]


@pytest.fixture(scope="module")
def reads(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("reads") / "reads.nn"
    path.write_text(READS)
    return nnc.load(path)


@pytest.mark.parametrize("index", OUTSIDE)
@pytest.mark.parametrize("name", LINES)
def test_indices_outside(reads: Any, name: str, index: int) -> None:
    """The line, the index, the extent; storage is untouched."""
    x = np.arange(5, dtype=np.float32)
    more = [x.copy()] if name == "late" else []
    given = x.copy()
    for k in ([0, index, 1], [1, 0, index]):
        if name == "carried" and k[2] != index:
            continue
        with pytest.raises(nnc.IndexError) as met:
            getattr(reads, name)(given, np.array(k, np.int64), *more)
        assert f"index {index} is outside 0 ... 4" in str(met.value)
        assert f"reads.nn:{LINES[name]}:" in str(met.value)
        assert np.array_equal(given, x)


# ---- arguments ------------------------------------------------------------------------------------

CALLS = """
export def f(x: f32[B, 4], n: dim) -> f32[B, n]:
    y[b, j:n] = x[b, 0]
    return y
export def two(inout a: f32[N], inout b: f32[N]):
    a := a + 1
    b := b + 2
export def sizes(x: f32[B, T + 1], y: f32[B, 2*T]) -> f32 where T <= 8 = total(x) + total(y)
"""
OK = np.ones((2, 4), np.float32)


class Frame:
    """Like a table of pandas."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return OK


class Sparse:
    """Like a matrix of scipy.sparse."""

    shape, dtype = (2, 4), OK.dtype

    def toarray(self) -> Any:
        return OK


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("calls") / "calls.nn"
    path.write_text(CALLS)
    return nnc.load(path)


WRONG: dict[str, tuple[Any, type[nnc.Error], str]] = {
    "list": ([[1.0] * 4], nnc.ArgumentError, "got a list"),
    "ragged": ([[1.0], [2.0, 3.0]], nnc.ArgumentError, "got a list"),
    "none": (None, nnc.ArgumentError, "got a NoneType"),
    "text": ("x", nnc.ArgumentError, "got a str"),
    "function": (len, nnc.ArgumentError, "got a builtin_function_or_method"),
    "type": (np.ndarray, nnc.ArgumentError, "got a type"),
    "table": (Frame(), nnc.ArgumentError, "help: np.asarray(x, dtype=np.float32)"),
    "sparse": (Sparse(), nnc.ArgumentError, "help: x.toarray()"),
    "masked": (np.ma.masked_array(OK, OK == 1), nnc.ArgumentError, "help: x.filled(0)"),
    "number": (3.0, nnc.ShapeError, "x needs 2 axes, got 0"),
    "rank 0": (np.float32(3), nnc.ShapeError, "x needs 2 axes, got 0"),
    "rank 3": (OK[None], nnc.ShapeError, "x needs 2 axes, got 3"),
    "empty": (OK[:0], nnc.ShapeError, "axis 0 of x is empty"),
    "narrow": (OK[:, :3], nnc.ShapeError, "axis 1 of x needs 4, got 3"),
    "f64": (OK.astype(np.float64), nnc.DtypeError, "help: x.astype(np.float32)"),
    "f16": (OK.astype(np.float16), nnc.DtypeError, "the given array is float16"),
    "i32": (OK.astype(np.int32), nnc.DtypeError, "the given array is int32"),
    "big-endian": (OK.astype(">f4"), nnc.DtypeError, "float32 in foreign byte order"),
    "complex": (OK.astype(complex), nnc.DtypeError, "complex128"),
    "objects": (OK.astype(object), nnc.DtypeError, "object"),
    "times": (OK.astype("M8[s]"), nnc.DtypeError, "datetime64"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arrays(calls: Any, case: str) -> None:
    value, error, text = WRONG[case]
    with pytest.raises(error) as met:
        calls.f(value, 2)
    assert text in str(met.value)
    assert ("help: np.asarray" in str(met.value)) == (case in ("list", "table"))


@pytest.mark.parametrize("size", [2.0, True, None, "2", -1, 1 << 62, np.float32(2)])
def test_wrong_sizes(calls: Any, size: Any) -> None:
    with pytest.raises(nnc.Error):
        calls.f(OK, size)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda m: m.f(), "f is missing x, n"),
        (lambda m: m.f(OK), "f is missing n"),
        (lambda m: m.f(OK, 2, 3), "f takes 2 arguments, got 3"),
        (lambda m: m.f(OK, 2, x=OK), "f takes 2 arguments|f got 'x' twice"),
        (lambda m: m.f(OK, x=OK), "f got 'x' twice"),
        (lambda m: m.f(X=OK, n=2), "f has no argument 'X'"),
        (lambda m: m.f(2, OK), "is a size, an integer|x needs 2 axes"),
    ],
)
def test_wrong_calls(calls: Any, call: Callable[[Any], Any], text: str) -> None:
    with pytest.raises(nnc.Error, match=text):
        call(calls)


def test_readable_arrays_are_read(calls: Any) -> None:
    """Any strides, unaligned, read-only, of torch."""
    torch = pytest.importorskip("torch")
    odd = np.frombuffer(b"\0" + OK.tobytes(), np.uint8)[1:].view(np.float32).reshape(2, 4)
    frozen = OK.copy()
    frozen.flags.writeable = False
    for x in (
        np.asfortranarray(OK),
        OK[::-1],
        odd,
        frozen,
        torch.ones(2, 4),
        np.broadcast_to(OK[0], (2, 4)),
    ):
        assert calls.f(x, 3).tolist() == [[1.0] * 3] * 2


def test_what_is_written_in_place_may_not_overlap(calls: Any) -> None:
    a = np.zeros(8, np.float32)
    for pair in ((a, a), (a[:5], a[3:]), (a[1:5], a[:4])):
        with pytest.raises(nnc.ArgumentError, match=r"share memory|not contiguous"):
            calls.two(*pair)
    frozen = a.copy()
    frozen.flags.writeable = False
    for other in (frozen, a[::2], a[::-1], np.broadcast_to(np.float32(1), (8,))):
        with pytest.raises(nnc.ArgumentError, match=r"in place, but the given array is"):
            calls.two(other, np.zeros(len(other), np.float32))
    assert not a.any()
    calls.two(a[:4], a[4:])
    assert a.tolist() == [1] * 4 + [2] * 4


@pytest.mark.parametrize(
    ("x", "y", "text"),
    [
        ((2, 5), (2, 7), "x and y disagree on 2*T: 8 and 7"),
        ((2, 5), (3, 8), "x and y disagree on B: 2 and 3"),
        ((2, 1), (2, 8), "axis 1 of x (T+1) must be at least 2, got 1"),
        ((2, 10), (2, 18), "needs T <= 8, got T = 9"),
    ],
)
def test_sizes_of_several_arguments(calls: Any, x: Any, y: Any, text: str) -> None:
    with pytest.raises(nnc.ShapeError) as met:
        calls.sizes(np.ones(x, np.float32), np.ones(y, np.float32))
    assert text in str(met.value)
    assert "x: f32[B, T + 1] was given an array of shape" in str(met.value)
    assert "calls.nn:8" in str(met.value)


@pytest.mark.parametrize("name", ["calls", "exports", "_watch"])
def test_an_export_with_a_name_of_the_model(tmp_path: Path, name: str) -> None:
    path = tmp_path / "f.nn"
    path.write_text(f"export def {name}(x: f32[N]) -> f32[N]:\n    probe x\n    return 2 * x\n")
    with pytest.warns(UserWarning, match=rf"m\.exports\['{name}'\]"):
        m = nnc.load(path)
    assert np.array_equal(m.exports[name](np.ones(2, np.float32)), [2, 2])
    with m.probe("x") as seen:
        m.exports[name](np.ones(3, np.float32))
    assert np.array_equal(seen.value, [1, 1, 1]) and m.calls == 0


def test_an_export_may_be_called_step(tmp_path: Path) -> None:
    (tmp_path / "f.nn").write_text("export def step(x: f32[N]) -> f32[N] = 2 * x\n")
    m = nnc.load(tmp_path / "f.nn")
    assert np.array_equal(m.step(np.ones(2, np.float32)), [2, 2])


def test_signature_of_an_exported_method(tmp_path: Path) -> None:
    text = "module Net(D=2):\n    param w: real[D] = 1\n"
    text += "    def forward(x: real[B, D], a: real) -> real[B, D] = a * x * w\n"
    (tmp_path / "net.nn").write_text(text)
    m = nnc.load(tmp_path / "net.nn")
    assert "forward(net: Net, x: real[B, D], a: real) -> real[B, D]" in repr(m)
    with pytest.raises(nnc.ArgumentError, match="a needs a number, got a str"):
        m.forward(m.Net.init(), np.ones((1, 2), np.float32), "1")
    with pytest.raises(nnc.CompileError, match="help: Net has D"):
        nnc.load(tmp_path / "net.nn", Net={"Q": 3})


def test_copies_and_pickles(tmp_path: Path) -> None:
    path = tmp_path / "c.nn"
    path.write_text(
        "module M():\n    param w: real = 1\nexport def f(m: M, x: f32[N]) -> f32[N] = m.w * x\n"
    )
    m = nnc.load(path)
    net = m.M.init(seed=0)
    other = copy.deepcopy({"net": net, "f": m.f})
    other["net"]["w"][...] = 5
    assert net["w"] == 1 and other["f"] is m.f
    with pytest.raises(nnc.Error, match="neither copied nor pickled"):
        copy.deepcopy(m)
    for thing in (m, net, m.f):
        with pytest.raises(nnc.Error, match="pickled"):
            pickle.dumps(thing)


def test_module_parameters_from_numpy(tmp_path: Path) -> None:
    path = tmp_path / "c.nn"
    path.write_text("module M(D=2, p=0.5):\n    def forward(x: real[D]) -> real[D] = p * x\n")
    m = nnc.load(path, M={"D": np.int64(3), "p": np.float32(0.25)})
    assert m.forward(m.M.init(), np.ones(3, np.float32)).tolist() == [0.25] * 3
    with pytest.raises(nnc.Error, match=r"M\.D is a number or a bool, got '3'"):
        nnc.load(path, M={"D": "3"})


def test_an_optimizer_of_a_part(tmp_path: Path) -> None:
    path = tmp_path / "c.nn"
    path.write_text("""
from std.nn import Linear
from std.optim import SGD
module Net(K=3):
    body = Linear(4, 4)
    head = Linear(4, K)
    def forward(x: real[B, 4]) -> real[B, K] = head(tanh(body(x)))
export def step(inout net: Net, inout opt: SGD(Net.head), x: f32[B, 4]) -> f32:
    loss = mean(net(x)**2)
    net.head := opt!(net.head, grad(loss, net.head), 0.1)
    return loss
""")
    m = nnc.load(path)
    net = m.Net.init()
    opt = m.SGD(net.head).init()
    assert opt["m.weight"].shape == (3, 4)
    m.step(net, opt, np.ones((2, 4), np.float32))
    with pytest.raises(nnc.Error, match=r"no SGD\(Net.body\)"):
        m.SGD(net.body)
