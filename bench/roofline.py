"""`python -m bench.roofline`: the kernel families under the machine's roof, at several sizes.

One thread, CPU time, the shortest of many calls; `--write` puts the table into docs/speed.md.
Intensity: operations for each byte of arguments and results, each counted once.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import measure, peak
from bench.table import ROOT, replaced, row, seconds, table
from nnc.codegen.roof import flops

HEAD = "| family, one thread"
PROGRAM = """\
from std.nn import Conv2d, LayerNorm

export def product(a: f32[M, K], b: f32[K, N]) -> f32[M, N] = a @ b

module Dense(I=768, O=3072):
    param weight: real[I, O] = normal(0.02)
    def forward(x: real[..N, I]) -> real[..N, O] = x @ weight

export def dense(net: Dense, x: f32[M, 768]) -> f32[M, 3072] = net(x)

export def conv3(net: Conv2d(64, 64, 3, pad=1), x: f32[B, 64, H, W]) -> f32[B, 64, H, W] = net(x)
export def conv1(net: Conv2d(64, 256, 1), x: f32[B, 64, H, W]) -> f32[B, 256, H, W] = net(x)
export def deep(net: Conv2d(512, 512, 3, pad=1), x: f32[B, 512, H, W]) -> f32[B, 512, H, W] = net(x)

export def norm(net: LayerNorm(D=1024), x: f32[N, 1024]) -> f32[N, 1024] = net(x)
export def rows(x: f32[N, M]) -> f32[N, M] = softmax(x, over=1)
export def chain(x: f32[N, M], b: f32[M], s: f32[M]) -> f32[N, M]:
    y = x + b
    return 0.5 * y * (1 + tanh(sqrt(2/pi) * (y + 0.044715 * y**3))) * s

export def causal(q: f32[H, T, E], k: f32[H, T, E], v: f32[H, T, E]) -> f32[H, T, E]:
    s[h, t, j:T] = sum[e](q[h, t, e] * k[h, j, e]) / sqrt(E) if j <= t else -inf
    p = softmax(s, over=j)
    a[h, t, e] = sum[j](p[h, t, j] * v[h, j, e])
    return a
"""


@dataclass(frozen=True)
class Point:
    """`flop`: of one call; 0: only memory counts. `nbytes`: read and written, each once."""

    family: str
    what: str
    call: Callable[[], Any]
    flop: float
    nbytes: float


def points(m: Any) -> Iterator[Point]:
    for n in (64, 256, 512, 1024, 2048):
        a, b = _random(n, n), _random(n, n)
        yield _point("sums of products", f"{n} x {n} x {n}", 2.0 * n**3, m.product, a, b)
    dense = m.Dense.init(seed=0)
    for n in (1, 8, 32, 128, 512):
        what = f"{n} x 768 x 3072, weights"
        yield _point(
            "sums of products", what, 2.0 * n * 768 * 3072, m.dense, dense, _random(n, 768)
        )
    shapes = (("conv3", 64, 64, 9, 56), ("conv1", 64, 256, 1, 56), ("deep", 512, 512, 9, 7))
    for name, i, o, taps, side in shapes:
        net = m.exports[name].init("net", seed=0)
        for batch in (1, 8):
            flop = 2.0 * batch * i * o * taps * side * side
            what = f"{i} to {o} channels, {taps} taps, {batch} x {side} x {side}"
            x = _random(batch, i, side, side)
            yield _point("windows", what, flop, m.exports[name], net, x)
    net = m.norm.init("net")
    for n in (64, 1024, 16384):
        yield _point("rows", f"layer norm, {n} x 1024", 0, m.norm, net, _random(n, 1024))
        yield _point("rows", f"softmax, {n} x 1024", 0, m.rows, _random(n, 1024))
    for n in (64, 4096):
        x, b, s = _random(n, 4096), _random(4096), _random(4096)
        yield _point("rows", f"gelu(x + b) * s, {n} x 4096", 0, m.chain, x, b, s)
    for t in (128, 512, 1024, 2048):
        given = (_random(12, t, 64), _random(12, t, 64), _random(12, t, 64))
        flop = 12 * 4.0 * 64 * t * (t + 1) / 2
        yield _point("attention", f"causal, 12 x {t} x 64", flop, m.causal, *given)


def _random(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _point(family: str, what: str, flop: float, export: Any, *given: Any) -> Point:
    call = lambda: export(*given)  # noqa: E731
    sizes = [v.nbytes if hasattr(v, "nbytes") else sum(a.nbytes for a in v.values()) for v in given]
    return Point(family, what, call, flop, float(sum(sizes) + export(*given).nbytes))


def shortest(call: Callable[[], Any], spent: float) -> float:
    """CPU seconds of a call, the shortest window in `spent` of them."""
    for _ in range(3):
        call()
    start = time.process_time()
    call()
    count = max(1, int(2e-3 / max(time.process_time() - start, 1e-6)))
    best, end = float("inf"), time.process_time() + spent
    while time.process_time() < end:
        start = time.process_time()
        for _ in range(count):
            call()
        best = min(best, (time.process_time() - start) / count)
    return best


def rows(m: Any, spent: float) -> Iterator[str]:
    roof = measure.Roof(flops(1, 30), peak.bandwidth(1))
    yield from table([HEAD[2:], "intensity (FLOP/byte)", "time", "reached", "of the roof"])
    for p in points(m):
        took = shortest(p.call, spent)
        reached = (
            f"{p.flop / took / 1e9:.0f} GFLOP/s" if p.flop else f"{p.nbytes / took / 1e9:.1f} GB/s"
        )
        intensity = f"{p.flop / p.nbytes:.1f}" if p.flop else ""
        share = f"{100 * roof.seconds(p.flop, p.nbytes) / took:.0f} %"
        yield row(f"{p.family}: {p.what}", intensity, seconds(took), reached, share)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.roofline", description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into docs/speed.md")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each point")
    args = parser.parse_args()
    import nnc

    load: Any = nnc.load
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "families.nn"
        path.write_text(PROGRAM)
        lines = []
        for line in rows(load(path, threads=1), args.seconds):
            print(line, flush=True)
            lines.append(line)
    if args.write:
        page = ROOT / "docs" / "speed.md"
        page.write_text(replaced(page.read_text(), HEAD, lines))


if __name__ == "__main__":
    main()
