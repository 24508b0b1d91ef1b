"""Calls that do not fit are refused before they begin, with what would fit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nnc
from nnc.cli.plan import at_peak, chosen, memory_plan
from nnc.lang.dims import Dim
from nnc.runtime import available, memory
from nnc.runtime.cpu import largest_sizes

TEXT = """
from std.nn import Linear, Dropout

module Net(D=16):
    fc = Linear(D, 64)
    drop = Dropout(0.5)
    def forward(x: real[B, D]) -> real[B, 64] = drop(exp(fc(x)))

export def update(inout net: Net, x: f32[B, 16]) -> f32:
    loss = mean(net!(x)**2)
    net.fc.weight := net.fc.weight - 0.1 * grad(loss, net.fc.weight)
    return loss

export def grow(x: f32[N], M: dim) -> f32[N, M]:
    y[i, j:M] = x[i]
    return y
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "m.nn"
    file.write_text(TEXT)
    return file


def test_what_is_free_is_less_than_the_machine_has() -> None:
    assert 0 < available.available() <= available.physical()


def test_refused_calls_change_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters, random numbers and the versions for `backward` are as they were."""
    m = nnc.load(path)
    net, other = m.Net.init(seed=0), m.Net.init(seed=0)
    x = np.ones((3000, 16), np.float32)
    run = m.update
    with monkeypatch.context() as patch:
        patch.setattr(available, "SMALL", 0)
        patch.setattr(memory, "fits", lambda n: n < 100_000)
        with pytest.raises(
            nnc.DeviceError, match=r"update at B = 3000: workspace \d[\s\S]*largest: "
        ):
            run(net, x)
    assert all(np.array_equal(net[k], other[k]) for k in net)
    fresh = nnc.load(path)
    assert run(net, x) == fresh.update(other, x)


def test_the_largest_size_that_fits() -> None:
    b, t = Dim.of("B"), Dim.of("T")
    need = b * t * 4 + t * t
    assert largest_sizes(need, {"B": 100, "T": 64}, 10_000) == [("B", 23), ("T", 23)]
    most = dict(largest_sizes(need, {"B": 100, "T": 64}, 10_000))
    for name, size in most.items():
        env = {"B": 100, "T": 64}
        assert memory.rounded(need.evaluate({**env, name: size})) <= 10_000
        assert memory.rounded(need.evaluate({**env, name: size + 1})) > 10_000
    assert largest_sizes(need, {"B": 2, "T": 10**6}, 3) == []


LIMITED = """
import resource, sys
import numpy as np, nnc
m = nnc.load(sys.argv[1])
net = m.Net.init(seed=0)
x = np.ones((8, 16), np.float32)
m.update(net, x)
before = {k: net[k].copy() for k in net}
pages = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (pages + (200 << 20), -1))
big = np.ones((1 << 21, 16), np.float32)
for call in (lambda: m.update(net, big), lambda: m.grow(x[:, 0].copy(), 1 << 25)):
    try:
        call()
        print("no error")
    except nnc.DeviceError as error:
        print(error)
print(all(np.array_equal(before[k], net[k]) for k in net))
print(m.update(net, x) > 0)
"""


def test_exhausted_memory(path: Path) -> None:
    """Under a limit of the process: an error of nnc, parameters unchanged, and it goes on."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    *_, same, goes_on = done.stdout.splitlines()
    assert (same, goes_on) == ("True", "True")
    assert "no error" not in done.stdout
    assert "are free" in done.stdout and "help: fits with B <= " in done.stdout


def test_sizes_beyond_63_bits(path: Path) -> None:
    m = nnc.load(path)
    x = np.ones(1 << 20, np.float32)
    for size in (1 << 45, (1 << 62) - 1):
        with pytest.raises(nnc.ShapeError, match=r"beyond 2\^63 bytes"):
            m.grow(x, size)
    with pytest.raises(nnc.Error):
        m.grow(x, 1 << 70)


def test_the_plan_is_what_a_call_allocates(path: Path) -> None:
    """Arguments, results and workspace: to the byte."""
    m = nnc.load(path, threads=1)
    net = m.Net.init(seed=0)
    x = np.ones((777, 16), np.float32)
    m.update(net, x)
    found = chosen(str(path), "update", {})
    memory_of = memory_plan(found)
    entry = m.update._entry
    assert entry is not None and entry._workspace.nbytes == memory_of.workspace(1).evaluate(
        {"B": 777}
    )
    given = x.nbytes + sum(a.nbytes for a in net.values()) + 16  # seed and step
    assert memory_of.arguments.evaluate({"B": 777}) == given
    assert memory_of.results.evaluate({"B": 777}) == 4
    alive = sum(b.bytes.evaluate({"B": 777}) for b in at_peak(memory_of, {"B": 777}).alive)
    assert alive <= memory_of.arena.evaluate({"B": 777}) <= 1.5 * alive + 1024
