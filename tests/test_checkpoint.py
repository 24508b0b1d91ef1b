"""Checkpoints: strict, atomic loading; hostile files; saving that survives kill and full disk."""

from __future__ import annotations

import builtins
import errno
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import nnc
from nnc.runtime import tensorfile
from nnc.runtime.model import Model
from tests import fake

F = np.float32


@pytest.fixture
def m() -> Model:
    return Model(fake.MANIFEST, [fake.object_code()])


@pytest.fixture
def net(m: Model) -> Any:
    return m.Net.init(seed=3)


def tensors(**more: Any) -> dict[str, Any]:
    out = {"fc.weight": np.arange(3, dtype=F), "fc.bias": F(9), "count": np.int32(7)}
    return {k: np.asarray(v) for k, v in (out | more).items()}


# ---- interchange --------------------------------------------------------------------------------


def test_files_are_those_of_the_safetensors_library(net: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    net.save(path)
    assert {k: v.tolist() for k, v in load_file(path).items()} == {
        "fc.weight": [3, 1, 2],
        "fc.bias": 0.5,
        "count": 0,
    }
    save_file(tensors(), path)
    net.load(path)
    assert net["fc.weight"].tolist() == [0, 1, 2] and net["fc.bias"] == 9 and net["count"] == 7


def test_combined_checkpoint_holds_seed_and_step(m: Model, net: Any, tmp_path: Path) -> None:
    opt = m.SGD(net).init()
    opt["m.fc.bias"] = 4.0
    m.seed(11)
    m.draw(net)
    path = tmp_path / "run.safetensors"
    m.checkpoint(path, {"note": "x"}, net=net, opt=opt)
    assert set(load_file(path)) == {*net, "opt.m.fc.weight", "opt.m.fc.bias"}
    other, spare = m.Net.init(), m.SGD(net).init()
    m.seed(0)
    assert m.restore(path, net=other, opt=spare)["note"] == "x"
    assert (m.draw(other)[0], spare["m.fc.bias"], other["count"]) == (11001, 4.0, 2)
    with pytest.raises(nnc.LoadError, match="unused"):
        other.load(path)
    other.load(path, skip=["opt.*"])


# ---- fit ----------------------------------------------------------------------------------------


def test_another_dtype_is_no_other_shape(net: Any, tmp_path: Path) -> None:
    path = tmp_path / "wide.safetensors"
    save_file({k: np.asarray(net[k]).astype(np.float64) for k in net}, path)
    with pytest.raises(nnc.LoadError) as met:
        net.load(path)
    assert "   dtype    fc.weight   file f64[3], model f32[3]" in str(met.value)
    assert "shape" not in str(met.value)


def test_a_misfit_is_explained_and_nothing_is_loaded(net: Any, tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    given = {"lin.weight": np.zeros(3, F), "lin.bias": F(1), "count": np.zeros(2, np.int32)}
    save_file({k: np.asarray(v) for k, v in given.items()} | {"x.y": np.zeros(1)}, path)
    with pytest.raises(nnc.LoadError) as met:
        net.load(path)
    assert str(met.value) == (
        f"E0701: {path} does not fit `Net` (fake.nn:1); nothing was loaded\n"
        "   missing  fc.weight f32[3]   the file has lin.weight f32[3]"
        "; 1 more differ the same way\n"
        "   shape    count   file i32[2], model i32\n"
        "   unused   x.y f64[1]\n"
        '   help: load(path, rename={"lin": "fc"}, skip=["count", "x.*"])'
    )
    assert net["fc.weight"].tolist() == [3, 1, 2]
    net.load(path, rename={"lin": "fc"}, skip=["count", "x.*"])
    assert net["fc.bias"] == 1 and net["count"] == 0


@pytest.mark.parametrize(
    ("given", "rename"),
    [
        ({"module.fc.weight": 0, "module.fc.bias": 1, "module.count": 2}, {"module.": ""}),
        ({"fc.w": 0, "fc.bias": 1, "count": 2}, {"w": "weight"}),
    ],
)
def test_rename_is_offered_when_it_works(
    net: Any, tmp_path: Path, given: dict[str, int], rename: dict[str, str]
) -> None:
    values = list(tensors().values())
    path = tmp_path / "a.safetensors"
    save_file({k: values[i] for k, i in given.items()}, path)
    with pytest.raises(nnc.LoadError) as met:
        net.load(path)
    words = ", ".join(f'"{a}": "{b}"' for a, b in rename.items())
    assert f"help: load(path, rename={{{words}}})" in str(met.value)
    net.load(path, rename=rename)


def test_no_help_when_nothing_would_help(net: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"other": np.zeros(5)}, path)
    with pytest.raises(nnc.LoadError) as met:
        net.load(path)
    assert "help:" not in str(met.value) and "missing  fc.weight" in str(met.value)


def test_two_tensors_for_one_key(net: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(tensors(**{"xfc.bias": F(1)}), path)
    with pytest.raises(nnc.LoadError, match=r"twice    fc\.bias"):
        net.load(path, rename={"xfc": "fc"})


@pytest.mark.parametrize("rules", [{"rename": {1: "a"}}, {"skip": [3]}])
def test_wrong_rules(net: Any, tmp_path: Path, rules: Any) -> None:
    with pytest.raises(nnc.ArgumentError):
        net.load(tmp_path / "x", **rules)


# ---- hostile files ------------------------------------------------------------------------------


def raw(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: Any = "F32", shape: Any = (3,), offsets: Any = (0, 12)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


GOOD = {
    "fc.weight": entry(),
    "fc.bias": entry(shape=[], offsets=[12, 16]),
    "count": entry("I32", [], [16, 20]),
}
DATA = bytes(20)
HOSTILE = {
    "empty": b"",
    "short": b"1234567",
    "text": b"hello, this is a text file and no tensors\n",
    "pickle": b"\x80\x04\x95" + bytes(200),
    "header beyond file": raw(b"{}", length=1000),
    "huge header": raw(b"{}", length=2**62),
    "negative header": b"\xff" * 8 + b"{}",
    "array header": raw(b"[]"),
    "number header": raw(b"1"),
    "not utf-8": raw(b'{"\xff": 1}'),
    "deep": raw(b"{" + b'"a":[' * 50_000),
    "long number": raw(b'{"a": ' + b"9" * 10_000 + b"}"),
    "nan": raw(b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}', bytes(4)),
    "twice": raw(
        b'{"fc.bias":{"dtype":"F32","shape":[],"data_offsets":[0,4]},'
        b'"fc.bias":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}',
        bytes(4),
    ),
    "overlap": raw(GOOD | {"count": entry("I32", [], [12, 16])}, DATA),
    "gap": raw(GOOD | {"count": entry("I32", [], [20, 24])}, bytes(24)),
    "beyond": raw(GOOD | {"count": entry("I32", [], [16, 20])}, DATA[:-1]),
    "trailing": raw(GOOD, DATA + b"x"),
    "giant shape": raw(GOOD | {"fc.weight": entry(shape=[2**61, 2**61])}, DATA),
    "overflowing shape": raw(GOOD | {"fc.weight": entry(shape=[2**63, 2])}, DATA),
    "0 x 2^62": raw(GOOD | {"z": entry(shape=[0, 2**62 - 1], offsets=[20, 20])}, DATA),
    "negative shape": raw(GOOD | {"fc.weight": entry(shape=[-3])}, DATA),
    "bool shape": raw(GOOD | {"fc.weight": entry(shape=[True])}, DATA),
    "float shape": raw(GOOD | {"fc.weight": entry(shape=[3.0])}, DATA),
    "text shape": raw(GOOD | {"fc.weight": entry(shape="3")}, DATA),
    "backwards": raw(GOOD | {"fc.weight": entry(offsets=[12, 0])}, DATA),
    "three offsets": raw(GOOD | {"fc.weight": entry(offsets=[0, 12, 12])}, DATA),
    "wrong dtype": raw(GOOD | {"fc.bias": entry("I32", [], [12, 16])}, DATA),
    "unknown dtype": raw(GOOD | {"fc.bias": entry("OBJECT", [], [12, 16])}, DATA),
    "list dtype": raw(GOOD | {"fc.bias": entry(["F32"], [], [12, 16])}, DATA),
    "wrong shape": raw(GOOD | {"fc.weight": entry(shape=[1, 3])}, DATA),
    "missing field": raw(GOOD | {"fc.bias": {"dtype": "F32", "shape": []}}, DATA),
    "more fields": raw(GOOD | {"fc.bias": {**GOOD["fc.bias"], "url": "http://x"}}, DATA),
    "entry is text": raw(GOOD | {"x": "y"}, DATA),
    "path as name": raw(GOOD | {"../../etc/passwd": entry(shape=[0], offsets=[20, 20])}, DATA),
    "control characters": raw(GOOD | {"\x1b[2J": entry(shape=[0], offsets=[20, 20])}, DATA),
    "metadata numbers": raw(GOOD | {"__metadata__": {"a": 1}}, DATA),
    "metadata list": raw(GOOD | {"__metadata__": []}, DATA),
    "many empty": raw({f"t{i}": entry(shape=[0], offsets=[0, 0]) for i in range(20_000)}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_give_a_load_error(net: Any, tmp_path: Path, name: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(HOSTILE[name])
    before = net.buffer.copy()
    with pytest.raises(nnc.LoadError) as met:
        net.load(path)
    assert str(path) in str(met.value) and "\x1b" not in str(met.value)
    assert len(str(met.value)) < 3000
    assert np.array_equal(before, net.buffer)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.safetensors"]


def test_the_good_file_of_the_hostile_ones_loads(net: Any, tmp_path: Path) -> None:
    """The control: the files above are refused for their one fault."""
    path = tmp_path / "good.safetensors"
    path.write_bytes(raw(GOOD, DATA))
    net.load(path)
    assert not net.buffer.any()


def test_mutated_files_never_do_worse_than_a_load_error(net: Any, tmp_path: Path) -> None:
    net.save(tmp_path / "a")
    good = (tmp_path / "a").read_bytes()
    choose = random.Random(1)
    path = tmp_path / "b"
    loaded = 0
    for _ in range(600):
        data = bytearray(good)
        for _ in range(choose.randint(1, 4)):
            at = choose.randrange(len(data))
            match choose.randint(0, 2):
                case 0:
                    data[at] = choose.randrange(256)
                case 1:
                    del data[at : at + choose.randint(1, 9)]
                case _:
                    data[at:at] = good[at : at + choose.randint(1, 9)]
            if not data:
                break
        path.write_bytes(data)
        try:
            net.load(path)
            loaded += 1
        except nnc.LoadError:
            pass
    assert 0 < loaded < 200  # flipped data bytes load; most mutations do not


@pytest.mark.parametrize("kind", ["directory", "fifo", "missing", "nul", "none", "device"])
def test_what_is_not_a_file(net: Any, tmp_path: Path, kind: str) -> None:
    path: Any = tmp_path / "x"
    if kind == "directory":
        path.mkdir()
    if kind == "fifo":
        os.mkfifo(path)
    if kind == "device":
        path = "/dev/zero"
    with pytest.raises(nnc.LoadError):
        net.load({"nul": "a\0b", "none": None}.get(kind, path))


def test_a_bool_that_is_neither(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(raw({"b": entry("BOOL", [2], [0, 2])}, b"\x01\x02"))
    with tensorfile.opened(path) as (file, header), pytest.raises(nnc.LoadError, match="bool"):
        tensorfile.read_into(file, header, header.entries["b"], np.zeros(2, bool), path)


def test_a_checksum_finds_a_flipped_bit(m: Model, net: Any, tmp_path: Path) -> None:
    path = tmp_path / "a"
    m.checkpoint(path, net=net)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(nnc.LoadError, match="checksum"):
        m.restore(path, net=net)
    net.save(path)
    with pytest.raises(nnc.LoadError, match="no seed and step"):
        m.restore(path, net=net)


# ---- saving -------------------------------------------------------------------------------------


def test_where_saving_is_impossible(net: Any, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no" / "a", Path("/proc/a"), "a\0b"):
        with pytest.raises(nnc.SaveError):
            net.save(path)
    assert not list(tmp_path.iterdir())


CALLS = ["open", "write", "flush", "fsync", "replace", "fsync directory"]


@pytest.mark.parametrize("fails", CALLS)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failure_at_any_call_keeps_the_old_file(
    net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str, number: int
) -> None:
    path = tmp_path / "a.safetensors"
    net.save(path)
    old = path.read_bytes()
    net["fc.bias"] = 77.0
    with monkeypatch.context() as patch:
        _inject(patch, fails, OSError(number, os.strerror(number)))
        with pytest.raises(nnc.SaveError) as met:
            net.save(path)
    assert str(path) in str(met.value) and os.strerror(number) in str(met.value)
    assert ("free some space" in str(met.value)) == (number == errno.ENOSPC)
    if fails != "fsync directory":  # by then the new file is there, whole
        assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def _inject(patch: pytest.MonkeyPatch, fails: str, error: OSError) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise error

    real_open, real_fsync = builtins.open, os.fsync
    match fails:
        case "open":
            patch.setattr(builtins, "open", broken)
        case "write" | "flush":

            def opened(*args: Any, **kwargs: Any) -> Any:
                file = real_open(*args, **kwargs)

                class Wrapped:
                    def __enter__(self) -> Any:
                        return self

                    def __exit__(self, *args: object) -> None:
                        file.close()

                    def __getattr__(self, name: str) -> Any:
                        return broken if name == fails else getattr(file, name)

                return Wrapped()

            patch.setattr(builtins, "open", opened)
        case "fsync":
            patch.setattr(os, "fsync", broken)
        case "replace":
            patch.setattr(os, "replace", broken)
        case _:
            count = [0]

            def second(descriptor: int) -> None:
                count[0] += 1
                if count[0] == 2:
                    raise error
                real_fsync(descriptor)

            patch.setattr(os, "fsync", second)


def test_a_really_full_disk(net: Any, tmp_path: Path) -> None:
    """/dev/full refuses every write; the writer's temporary file is a link to it."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with pytest.raises(OSError, match="space"), open("/dev/full", "wb") as file:
        file.write(bytes(1 << 16))


SAVER = """
import sys
import numpy as np
from nnc.runtime import tensorfile
path, naive = sys.argv[1], sys.argv[2] == "naive"
i = 0
while True:
    i += 1
    a = np.full(400_000, i, np.float32)
    if naive:
        tensorfile.atomic = lambda p, chunks: open(p, "wb").writelines(chunks)
    tensorfile.write(path, [("a", "f32", a), ("b", "f32", a)], {})
    print(i, flush=True)
"""


def _killed(path: Path, kind: str, delay: float) -> tuple[int, int | None]:
    """(last acknowledged save, what the file holds or None when it is torn)."""
    command = [sys.executable, "-c", SAVER, str(path), kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        seen = [int(line) for line in child.stdout.read().split()]
    try:
        with tensorfile.opened(path) as (file, header):
            found = []
            for key in ("a", "b"):
                array = np.zeros(400_000, F)
                tensorfile.read_into(file, header, header.entries[key], array, path)
                found += [array.min(), array.max()]
    except (nnc.LoadError, KeyError):
        return max(seen, default=1), None
    return max(seen, default=1), int(found[0]) if len(set(found)) == 1 else None


def test_kill_while_saving_loses_nothing(tmp_path: Path) -> None:
    choose = random.Random(2)
    for i in range(6):
        acknowledged, held = _killed(tmp_path / f"{i}", "atomic", choose.uniform(0, 0.08))
        assert held is not None and held >= acknowledged


@pytest.mark.slow
def test_kill_60_times_with_the_naive_writer_as_control(tmp_path: Path) -> None:
    choose = random.Random(3)
    torn = 0
    for i in range(60):
        acknowledged, held = _killed(tmp_path / f"{i}", "atomic", choose.uniform(0, 0.1))
        assert held is not None and held >= acknowledged
        torn += _killed(tmp_path / f"n{i}", "naive", choose.uniform(0, 0.1))[1] is None
    assert torn >= 18


def test_litter_of_dead_writers_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    dead = subprocess.Popen(["true"])
    dead.wait()
    old = tmp_path / f".a.0123.{dead.pid}.tmp"
    mine = tmp_path / f".a.0123.{os.getpid()}.tmp"
    other = tmp_path / ".b.0123.1.tmp"
    for file in (old, mine, other):
        file.touch()
    tensorfile.remove_litter(path)
    assert not old.exists() and mine.exists() and other.exists()
