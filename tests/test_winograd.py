"""Windows of 3 x 3 by tiles: the same results but for rounding, recognised by structure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnc
from nnc import compiler
from nnc.cli import main
from nnc.codegen import winograd
from tests.endtoend import built, compare, sample

SIZES = [(1, 1, 1), (2, 4, 4), (2, 7, 6), (3, 9, 8), (1, 3, 66)]


def conv(o: int, c: int, read: str, rest: str = "", size: str = "H, W", out: str = "H, W") -> str:
    """`y[o, i, j] = sum[c, u, v] w * x`, with `read` for the indices of x and `rest` behind."""
    return f"""
module M:
    param w: f32[{o}, {c}, 3, 3] = normal(0.2)
    param b: f32[{o}] = normal(1.0)
export def f(m: M, x: f32[B, {c}, {size}], r: f32[B, {o}, {out}]) -> f32[B, {o}, {out}]:
    y[n, o, i:{out.split(", ")[0]}, j:{out.split(", ")[1]}] = sum[c, u, v](m.w[o, c, u, v] * x[n, c, {read}]){rest}
    return y
"""


PADDED = conv(40, 50, "i+u-1, j+v-1 else 0")
FORMS = {
    "padded": PADDED,
    "bias, residual, relu": PADDED.replace("else 0])", "else 0]) + m.b[o] + r[n, o, i, j]"),
    "another value around": conv(64, 64, "i+u-1, j+v-1 else 1.5"),
    "not padded": conv(20, 64, "i+u, j+v", size="H+2, W+2"),
    "padded by 2": conv(64, 33, "i+u-2, j+v-2 else 0", out="H+2, W+2"),
    "exchanged": conv(24, 32, "j+u-1, i+v-1 else 0"),
    "turned window": conv(16, 48, "i+v-1, j+u-1 else 0"),
}


def program(text: str) -> Any:
    found = built(text)["f"]
    graph = compiler.optimise(found.graph)
    return compiler.schedule(graph, None, compiler.read_only(found), True)


def has_tiles(text: str) -> bool:
    return any("winograd" in k.reason for k in program(text).kernels)


@pytest.mark.parametrize("name", FORMS)
def test_forms(name: str) -> None:
    text = FORMS[name]
    assert has_tiles(text)
    graph, rng = built(text)["f"].graph, np.random.default_rng(0)
    for b, h, w in SIZES:
        dims = {"B": b, "H": h, "W": w}
        compare(graph, dims, sample(graph, dims, rng), winograd=True)


@pytest.mark.parametrize(
    ("o", "c", "size"),
    [(176, 400, (2, 5, 3)), (260, 256, (1, 4, 9)), (33, 400, (1, 9, 10)), (40, 24, (2, 21, 5))],
    ids=["small tiles, channels in two parts", "small tiles", "two parts", "many tiles"],
)
def test_channels(o: int, c: int, size: tuple[int, int, int]) -> None:
    graph = built(conv(o, c, "i+u-1, j+v-1 else 0", " + m.b[o]"))["f"].graph
    dims = dict(zip("BHW", size, strict=True))
    compare(graph, dims, sample(graph, dims, np.random.default_rng(0)), winograd=True)


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 5, 3), (1, 9, 2), (5, 2, 7)])
def test_maps_that_are_better_computed_directly(
    size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd._Plan, "worth", lambda *_: "true")
    graph = built(FORMS["bias, residual, relu"])["f"].graph
    dims = dict(zip("BHW", size, strict=True))
    compare(graph, dims, sample(graph, dims, np.random.default_rng(0)), winograd=True)


@pytest.mark.parametrize(
    "text",
    [
        conv(16, 32, "2*i+u, 2*j+v", size="2*H+1, 2*W+1"),
        conv(16, 32, "i+2*u, j+2*v", size="H+4, W+4"),
        conv(3, 4, "i+u-1, j+v-1 else 0"),
        conv(2048, 1024, "i+u-1, j+v-1 else 0"),
        conv(16, 32, "i+u-1, j+v-1 else 0").replace("m: M", "inout m: M"),
        conv(16, 32, "i+u-1, i+v-1 else 0"),
        conv(16, 32, "i+u-1, j+v-1 else 0").replace("3, 3]", "3, 5]"),
    ],
    ids=["stride", "dilation", "few channels", "many", "written", "diagonal", "3 x 5"],
)
def test_other_windows_stay_as_they_are(text: str) -> None:
    assert not has_tiles(text)


def test_weights_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "m.nn"
    file.write_text(FORMS["bias, residual, relu"])
    rng = np.random.default_rng(0)
    x, r = (rng.standard_normal((4, n, 56, 57), dtype=np.float32) for n in (50, 40))
    direct = nnc.load(file)
    for threads in (1, 2):
        m = nnc.load(file, winograd=True, threads=threads)
        net = m.M.init(seed=0)
        for _ in range(4):
            np.testing.assert_allclose(m.f(net, x, r), direct.f(net, x, r), rtol=1e-4, atol=1e-4)
        assert m.f._entry._context[5] == 1
        net["w"] = np.ones((40, 50, 3, 3), np.float32)
        np.testing.assert_allclose(m.f(net, x, r), direct.f(net, x, r), rtol=1e-4, atol=1e-3)


def test_the_error_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "m.nn"
    file.write_text(PADDED)
    command = ["compile", str(file), "--winograd", "-o", str(tmp_path)]
    assert main(command) == 0
    assert "not known without sizes: --at B=8 --at H=8 --at W=8" in capsys.readouterr().out
    sizes = ["--at", "B=1", "--at", "H=12", "--at", "W=9"]
    assert main([*command, *sizes]) == 0
    out = capsys.readouterr().out
    assert "f with winograd, result 0: differs by" in out and "rms" in out
    file.write_text("export def f(x: f32[N]) -> f32[N] = x + 1\n")
    assert main(command) == 0
    assert "no contraction of this file" in capsys.readouterr().out
