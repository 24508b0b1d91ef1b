"""`nnc.quantize`: the same exports with weights stored in fewer bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import nnc
from nnc import compiler
from nnc.cli import main
from nnc.ir.expr import Op, walk
from nnc.ir.graph import Compute, Graph, Input, Node, all_nodes
from nnc.ir.interpret import run as interpret
from nnc.lang.types import TensorType
from nnc.passes.quantize import quantized, sites
from nnc.passes.stored import held, stored_as, weights
from nnc.quantization import in_bytes, to_bf16
from tests.endtoend import built, compare, run_native, sample
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

export def scaled(p: params(Net), net: Net, x: f32[B, 37], t: i32[B]) -> f32[B, 5]:
    return net(x, t) * norm(p)

export def same(p: params(Net)) -> params(Net):
    return 2 * p

export def turn(inout net: Net, x: f32[B, 37]):
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
    tree = "it takes or returns parameters as a tree"
    reasons = {"slope": "it takes a gradient", "turn": "it writes `net`"}
    assert q.left_out == reasons | {"scaled": tree, "same": tree}
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


# ---- int8 --------------------------------------------------------------------------------------


def reference(x: np.ndarray, w: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """x @ w.T with x in 255 steps of the range seen and each row of w in +-127."""
    low, high = min(0.0, float(seen.min())), max(0.0, float(seen.max()))
    step = (high - low) / 255
    zero = round(-low / step)
    q = np.clip(np.rint(x.astype(np.float64) / step) + zero, 0, 255)
    steps = np.abs(w.astype(np.float64)).max(1) / 127
    return (q - zero) @ np.rint(w / steps[:, None]).T * step * steps


def test_int8_is_the_model_of_rounded_numbers(path: Path) -> None:
    net = nnc.load(path).Net.init(seed=3)
    given = data(40)
    q = nnc.quantize(path, net, "logits", to="int8", data=given)
    assert q.keys == ("a.weight", "b.weight") and "table" in q.net and "a.weight" not in q.net
    y = given["x"] + net["table"][given["t"]]
    h = np.maximum(reference(y, net["a.weight"], y) + net["a.bias"], 0)
    exact = np.maximum(y @ net["a.weight"].T + net["a.bias"], 0)
    want = reference(h, net["b.weight"], exact) + net["b.bias"]
    got = q.model.logits(q.net, **given)
    np.testing.assert_allclose(got, want, atol=2e-3)  # a tie may fall to the other side
    assert (q.differences[0].rms < 0.03) and q.bytes[1] < 0.5 * q.bytes[0]
    assert (q.model.classes(q.net, **given) == got.argmax(1)).all()


def test_int8_needs_data(path: Path) -> None:
    net = nnc.load(path).Net.init()
    with pytest.raises(nnc.ArgumentError, match="needs data"):
        nnc.quantize(path, net, "logits", to="int8")
    bad = data(3)
    bad["x"][1, 2] = np.inf
    with pytest.raises(nnc.ArgumentError, match="not finite"):
        nnc.quantize(path, net, "logits", to="int8", data=bad)
    with pytest.raises(nnc.ArgumentError, match="left out"):
        nnc.quantize(path, net, "slope", to="int8", data=data(3))


SITES = """\
from std.nn import Conv2d
module N():
    param row: f32[23, 19] = normal(1)
    param column: f32[23, 19] = normal(1)
    param few: f32[23, 3] = normal(1)
    param each: f32[19, 23] = normal(1)
    param tied: f32[23, 19] = normal(1)
    a = Conv2d(19, 7, 3, pad=1)
    b = Conv2d(7, 6, 5, stride=2, pad=3)
    c = Conv2d(6, 5, 2)
    d = Conv2d(64, 64, 3, pad=1)
    e = Conv2d(64, 80, 3, stride=2, pad=1)
    r = Conv2d(64, 64, 1)
    s = Conv2d(3, 20, 7, stride=2, pad=3)
    t = Conv2d(20, 40, 3, pad=1)
    u = Conv2d(40, 96, 2)
export def f(net: N, x: f32[M, 19], y: f32[M, 23]) -> (f32[M, 23], f32[M, 19], f32[M, 23], f32[M, 19], f32[M, 23]):
    few[m, o] = sum[i:3](x[m, i] * net.few[o, i])
    each[m, i] = sum[o](y[m, o] * net.each[i, o] * x[m, i])
    return x @ net.row.T, y @ net.column, few, each, x @ net.tied.T + net.tied[0, 0]
export def g(net: N, x: f32[B, 19, H, W]) -> f32[B, 5, (H + 1)//2, (W + 1)//2]:
    return net.c(net.b(net.a(x)))
export def h(net: N, x: f32[B, 64, H, W]) -> f32[B, 80, (H + 1)//2, (W + 1)//2]:
    y[b, c, i, j] = max(net.d(x)[b, c, i, j], 0)
    z[b, c, i, j] = net.r(y)[b, c, i, j] + y[b, c, i, j]
    return net.e(z)
export def k(net: N, x: f32[B, 3, H, W]) -> f32[B, 96, (H - 1)//4, (W - 1)//4]:
    y[b, c, i:(H+3)//4, j:(W+3)//4] = max[u:3, v:3](net.s(x)[b, c, 2*i + u - 1, 2*j + v - 1 else -inf])
    return net.u(net.t(y))
"""


def on_bytes(name: str, rng: np.random.Generator) -> tuple[Graph, dict[str, np.ndarray]]:
    """An export of SITES on bytes; weights for it, such that bytes are exact in f32."""
    graph = compiler.optimise(built(SITES)[name].graph)
    more: dict[str, Input] = {}

    def new(key: str, type_: TensorType) -> Input:
        return more.setdefault(key, Input(name=key, type=type_, kind="param"))

    made = quantized(graph, {s.weight.name for s in sites(graph)}, new)
    made = replace(made, inputs=(*made.inputs, *more.values()))
    weights = {}
    for s in sites(graph):
        w = rng.standard_normal([d.const for d in s.weight.type.shape]).astype(np.float32)
        leaves = in_bytes(w, s, (-4.0, 11.9375))  # steps of 1/16
        leaves["scale"] = 2.0 ** np.round(np.log2(leaves["scale"])).astype(np.float32)
        weights |= {f"{s.weight.name}.{k}": v for k, v in leaves.items()}
    return made, weights


def sixteenths(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.integers(-80, 200, shape) / 16).astype(np.float32)


def test_contractions_by_structure() -> None:
    """Views, both layouts, a factor that leaves the sum; not short sums. A parameter with another use
    stays beside its bytes."""
    rng = np.random.default_rng(0)
    graph = compiler.optimise(built(SITES)["f"].graph)
    names = [s.weight.name for s in sites(graph)]
    assert names == ["net.row", "net.column", "net.each", "net.tied"]
    made, weights = on_bytes("f", rng)
    for m in (1, 5, 64):
        given = weights | {"x": sixteenths(rng, m, 19), "y": sixteenths(rng, m, 23)}
        given |= sample(made, {"M": m}, rng) | given
        compare(made, {"M": m}, given)


def test_convolutions_on_bytes_are_exact() -> None:
    """Ragged channels, padding, strides: the same bits as the interpreter, for all threads."""
    rng = np.random.default_rng(1)
    made, _ = on_bytes("g", rng)
    assert sum(n.type.dtype == "i32" for n in all_nodes(made) if isinstance(n, Compute)) == 6
    exact("g", 19, rng)


def test_channels_that_fill_steps_are_exact() -> None:
    """Rows of windows whose channels fill vectors; a residual, read as its byte."""
    rng = np.random.default_rng(2)
    made, _ = on_bytes("h", rng)
    bytes_ = [n for n in all_nodes(made) if n.type.dtype == "u8"]
    assert len(bytes_) == 5 and all(n.type.shape[-1].const == 64 for n in bytes_)
    exact("h", 64, rng)


def test_few_channels_and_a_maximum_are_exact() -> None:
    """A pixel is a word; rows of windows are copied by runs shorter than a vector; bytes are made
    before the maximum."""
    rng = np.random.default_rng(4)
    made, _ = on_bytes("k", rng)
    (largest,) = (n for n in all_nodes(made) if isinstance(n, Compute) and n.op == "max")
    assert largest.type.dtype == "u8" and largest.type.shape[-1].const == 20
    exact("k", 3, rng, [(1, 5, 5), (2, 9, 6), (1, 19, 33)])


Sizes = list[tuple[int, int, int]]
SIZES = [(1, 1, 1), (2, 5, 4), (1, 9, 17)]


def exact(name: str, channels: int, rng: np.random.Generator, sizes: Sizes = SIZES) -> None:
    """The bits of the first sum, and all that follows from it, at some sizes."""
    made, weights = on_bytes(name, rng)
    sums = [n for n in all_nodes(made) if isinstance(n, Compute) and n.op == "sum"]
    for b, h, w in sizes:
        dims = {"B": b, "H": h, "W": w}
        given = sample(made, dims, rng) | weights | {"x": sixteenths(rng, b, channels, h, w)}
        given |= {k: np.zeros_like(v) for k, v in given.items() if k.endswith(".bias")}
        graph = replace(made, results=tuple(sums))
        got, _ = run_native(graph, dims, given)
        want = interpret(graph, dims, given).results
        assert all((x == y).all() for x, y in zip(got[:1], want[:1], strict=True))
        compare(made, dims, given, 1e-5)


CHAINS = """\
from std.nn import Linear, BatchNorm
module N():
    a = Linear(20, 24)
    b = Linear(24, 24, use_bias=false)
    n = BatchNorm(24)
    c = Linear(24, 24)
    d = Linear(24, 24)
    e = Linear(24, 5)
export def f(net: N, x: f32[B, 20]) -> f32[B, 5]:
    y[n, i] = min(max(net.a(x)[n, i], 0), 6)
    h = net.b(y)
    z[n, i] = max((h[n, i] - net.n.running_mean[i]) * rsqrt(net.n.running_var[i] + 1) + y[n, i], -1)
    u[n, i] = 2 - max(-0.5 * net.c(z)[n, i], net.n.bias[i])
    v[n, i] = tanh(net.d(u)[n, i]) * 3 + u[n, i]
    return net.e(v)
"""


def test_what_follows_a_sum_is_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of the channels, residuals, limits, a negative factor: what was meant, in fewer
    steps."""
    graph = compiler.optimise(built(CHAINS)["f"].graph)
    rng = np.random.default_rng(3)

    def made() -> Graph:
        more: dict[str, Input] = {}

        def new(key: str, type_: TensorType) -> Input:
            return more.setdefault(key, Input(name=key, type=type_, kind="param"))

        out = quantized(graph, {s.weight.name for s in sites(graph)}, new)
        return replace(out, inputs=(*out.inputs, *more.values()))

    given = {"x": sixteenths(rng, 9, 20)}
    for s in sites(graph):
        w = rng.standard_normal([d.const for d in s.weight.type.shape]) / 8
        leaves = in_bytes(w, s, (-4.0, 11.9375))
        given |= {f"{s.weight.name}.{k}": v for k, v in leaves.items()}
    short = made()
    given = sample(short, {"B": 9}, rng) | given
    compare(short, {"B": 9}, given, 0.05)  # a tie may fall to the other side
    monkeypatch.setattr("nnc.passes.quantize.folded", lambda graph, *_: graph)
    long = made()
    assert [sum(map(_fused, all_nodes(g))) for g in (short, long)] == [9, 0]
    a, b = (interpret(g, {"B": 9}, given).results[0] for g in (short, long))
    np.testing.assert_allclose(a, b, atol=1e-6)


def _fused(node: Node) -> int:
    """Its multiply-adds."""
    if not isinstance(node, Compute):
        return 0
    return sum(isinstance(e, Op) and e.fn == "fma" for e in walk(node.body))


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


def test_int8_command(path: Path, tmp_path: Path) -> None:
    model = nnc.load(path)
    net = model.Net.init(seed=2)
    net.save(tmp_path / "w.safetensors")
    np.savez(tmp_path / "x.npz", **data(9))
    files = ["--weights", str(tmp_path / "w.safetensors"), "--data", str(tmp_path / "x.npz")]
    out = tmp_path / "out"
    assert main(["quantize", str(path), "logits", *files, "--to", "int8", "-o", str(out)]) == 0
    again = nnc.load(out / "net.int8.json")
    small = again.Net.init(files={"weights": out / "net.int8.safetensors"})
    got, want = again.logits(small, **data(9)), model.logits(net, **data(9))
    assert 0 < abs(got - want).max() < 0.05 * abs(want).max()
