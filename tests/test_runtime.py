"""The runtime on a hand-made program (tests/fake.py): calls, sizes, errors, modules, gradients."""

from __future__ import annotations

import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnc
from nnc.ir.signature import Manifest
from nnc.runtime import artifact
from nnc.runtime.cache import fetch, get, put
from nnc.runtime.export import Export
from nnc.runtime.manifest import of_json, to_json
from nnc.runtime.model import Model
from tests import fake

F = np.float32


@pytest.fixture
def m() -> Model:
    return Model(fake.MANIFEST, [fake.object_code()], lazy=fake.lazy)


@pytest.fixture
def net(m: Model) -> Any:
    return m.Net.init(seed=3)


def ones(*shape: int, dtype: Any = F) -> Any:
    return np.ones(shape, dtype)


# ---- calls ------------------------------------------------------------------------------------


def test_calls_by_position_keyword_and_default(m: Model) -> None:
    x, y = np.arange(4, dtype=F), ones(4)
    assert m.axpy(2.0, x, y) == 4
    assert y.tolist() == [1, 3, 5, 7]
    m.axpy(x=x, y=y)
    assert y.tolist() == [1, 5, 9, 13]


def test_scalar_results_are_numpy_scalars(m: Model) -> None:
    got = m.pick(np.arange(5, dtype=F), 3)
    assert isinstance(got, np.float32) and float(got) == 3.0


def test_tuples_come_back_as_tuples(m: Model, net: Any) -> None:
    assert m.draw(net) == (0,)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 3)])
def test_packs_take_any_number_of_axes(m: Model, shape: tuple[int, ...]) -> None:
    got = m.scale(np.full(shape, 2, F), 3.0)
    assert np.shape(got) == shape and np.all(got == 6)


def test_strided_misaligned_and_foreign_inputs(m: Model) -> None:
    wide = np.arange(24, dtype=F).reshape(4, 6)
    assert np.array_equal(m.scale(wide[::2, ::-1], 1), wide[::2, ::-1])
    raw = np.zeros(17, np.uint8)[1:].view(F)
    assert np.array_equal(m.scale(raw, 1), raw)

    class Foreign:
        __array_interface__ = wide.__array_interface__
        keep = wide

    assert np.array_equal(m.scale(Foreign(), 1), wide)


def test_torch_tensors_are_read_and_written_in_place(m: Model) -> None:
    torch = pytest.importorskip("torch")
    y = torch.ones(4)
    m.axpy(2.0, torch.arange(4.0), y)
    assert y.tolist() == [1, 3, 5, 7]
    with pytest.raises(nnc.ArgumentError, match=r"\.detach\(\)"):
        m.scale(torch.ones(3, requires_grad=True), 1)
    with pytest.raises(nnc.DtypeError, match=r"help: x\.to\(torch\.float32\)$"):
        m.scale(torch.ones(3, dtype=torch.float64), 1)


def test_read_only_inputs_are_fine(m: Model) -> None:
    x = ones(4)
    x.flags.writeable = False
    assert np.array_equal(m.scale(x, 2), 2 * x)


def test_special_numbers_pass_unchanged(m: Model) -> None:
    x = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45], F)
    got = m.scale(x, 1.0)
    assert np.array_equal(got.view(np.uint32), x.view(np.uint32))


def test_threads_call_at_once(m: Model) -> None:
    """Every export has one workspace: calls must not mix."""
    wrong: list[float] = []

    def work(value: float) -> None:
        for _ in range(200):
            got = m.scale(np.full(500, value, F), 2)
            if not np.all(got == 2 * value):
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


# ---- refusals ---------------------------------------------------------------------------------

TOKENS = np.zeros((8, 1537), np.int32)
REFUSED = {
    "dtype": (
        lambda m, n: m.predict(n, ones(2, 3, dtype=np.float64)),
        nnc.DtypeError,
        "x is f32, the given array is float64",
        "x.astype(np.float32)",
    ),
    "byte order": (
        lambda m, n: m.predict(n, ones(2, 3, dtype=">f4")),
        nnc.DtypeError,
        "foreign byte order",
        "x.astype(np.float32)",
    ),
    "rank": (lambda m, n: m.predict(n, ones(3)), nnc.ShapeError, "needs 2 axes, got 1", "x[None]"),
    "constant axis": (
        lambda m, n: m.predict(n, ones(2, 4)),
        nnc.ShapeError,
        "axis 1 of x needs 3, got 4",
        "declared at fake.nn:9",
    ),
    "repeated size": (
        lambda m, n: m.axpy(1, ones(3), ones(4)),
        nnc.ShapeError,
        "x and y disagree on N: 3 and 4",
        "so N = 3",
    ),
    "empty": (lambda m, n: m.scale(ones(0), 1), nnc.ShapeError, "axis 0 of x is empty", "at least"),
    "check": (
        lambda m, n: m.sizes(TOKENS, 5),
        nnc.ShapeError,
        "sizes needs T <= 1024, got T = 1536\n"
        "  tokens: i32[B, T + 1] was given an array of shape (8, 1537), so B = 8, T = 1536\n"
        "  required at gpt2_run.nn:9; 1024 is N (gpt2.nn:45)",
        "",
    ),
    "equation": (lambda m, n: m.sizes(TOKENS[:7, :9], 5), nnc.ShapeError, "B % 2 == 0", "B = 7"),
    "linear": (lambda m, n: m.sizes(TOKENS[:, :1], 5), nnc.ShapeError, "at least 2, got 1", "T+1"),
    "negative size": (lambda m, n: m.sizes(TOKENS, -1), nnc.ShapeError, "P must be at least 0", ""),
    "size kind": (lambda m, n: m.sizes(TOKENS, 1.5), nnc.ArgumentError, "an integer; got 1.5", ""),
    "missing": (lambda m, n: m.predict(n), nnc.ArgumentError, "is missing x", "export def predict"),
    "unexpected": (lambda m, n: m.predict(n, ones(2, 3), 1), nnc.ArgumentError, "takes 2", ""),
    "unknown": (
        lambda m, n: m.axpy(xs=1),
        nnc.ArgumentError,
        "no argument 'xs'",
        "export def axpy",
    ),
    "twice": (lambda m, n: m.predict(n, net=n), nnc.ArgumentError, "got 'net' twice", ""),
    "list": (
        lambda m, n: m.predict(n, [[1, 2, 3]]),
        nnc.ArgumentError,
        "needs an array, got a list",
        "np.asarray(x, dtype=np.float32)",
    ),
    "masked": (lambda m, n: m.scale(np.ma.ones(3), 1), nnc.ArgumentError, "needs an array", ""),
    "no module": (
        lambda m, n: m.predict(dict(n), ones(2, 3)),
        nnc.ArgumentError,
        "net must be a Net, got a dict",
        "m.Net.init()",
    ),
    "other module": (
        lambda m, n: m.predict(m.SGD.init(), ones(2, 3)),
        nnc.ArgumentError,
        "net must be a Net, got SGD(Net)",
        "it has no fc.weight f32[3]",
    ),
    "inout strided": (
        lambda m, n: m.axpy(1, ones(4), ones(8)[::2]),
        nnc.ArgumentError,
        "not contiguous",
        "np.ascontiguousarray(y)",
    ),
    "inout scalar kind": (
        lambda m, n: m.axpy(True, ones(4), ones(4)),
        nnc.DtypeError,
        "a is f32",
        "",
    ),
    "float for int": (lambda m, n: m.pick(ones(4), 1.0), nnc.DtypeError, "i is i32", "int(i)"),
    "too big": (lambda m, n: m.pick(ones(4), 2**40), nnc.DtypeError, "does not fit i32", ""),
    "complex": (lambda m, n: m.scale(ones(4), 1j), nnc.DtypeError, "a is f32", ""),
    "index": (
        lambda m, n: m.pick(ones(4), -1),
        nnc.IndexError,
        "index -1 is outside 0 ... 3 at fake.nn:23:12",
        "x[i]",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_fault_and_the_cure(m: Model, net: Any, name: str) -> None:
    call, kind, fault, cure = REFUSED[name]
    with pytest.raises(kind) as met:
        call(m, net)
    text = str(met.value)
    assert fault in text and cure in text
    builtin = {nnc.ShapeError: ValueError, nnc.IndexError: IndexError}.get(kind, TypeError)
    assert isinstance(met.value, builtin) and isinstance(met.value, nnc.Error)


@pytest.mark.parametrize("name", REFUSED)
def test_a_traceback_shows_the_nn_file_and_none_of_ours(m: Model, net: Any, name: str) -> None:
    call, kind, _, _ = REFUSED[name]
    with pytest.raises(kind) as met:
        call(m, net)
    files = [f.filename for f in traceback.extract_tb(met.value.__traceback__)]
    ours = str(Path(nnc.__file__).parent)
    assert not [f for f in files if f.startswith(ours)], files
    assert met.value.__context__ is None and met.value.__cause__ is None
    assert files[-1] == "fake.nn" or name == "other module"


def test_read_only_and_overlapping_inout(m: Model, net: Any) -> None:
    y = ones(4)
    with pytest.raises(nnc.ArgumentError, match=r"share memory.*\n.*np.copy\(x\)"):
        m.axpy(1, y, y)
    both = ones(8)
    m.axpy(1, both[:4], both[4:])
    with pytest.raises(nnc.ArgumentError, match="share memory"):
        m.axpy(1, both[2:6], both[4:])
    y.flags.writeable = False
    with pytest.raises(nnc.ArgumentError, match=r"read-only\n  help: y = y.copy\(\)"):
        m.axpy(1, ones(4), y)


def test_an_index_error_comes_before_any_write(m: Model) -> None:
    assert m.pick(ones(4), 3) == 1  # and the export still works after one
    with pytest.raises(IndexError):
        m.pick(ones(4), 4)
    assert m.pick(ones(4), 3) == 1


def test_sizes_in_abi_order(m: Model) -> None:
    assert m.sizes(np.zeros((8, 10), np.int32), 7) == 8 * 10000 + 9 * 100 + 7


# ---- modules ----------------------------------------------------------------------------------


def test_leaves_are_aligned_writable_views(net: Any) -> None:
    assert net["fc.weight"].tolist() == [3, 1, 2]
    net["fc.weight"][0] = 7
    net["fc.bias"] = 1.5
    net["count"] = np.int32(4)
    assert net["fc.weight"][0] == 7 and net["fc.bias"] == 1.5 and net["count"] == 4
    assert all(a.ctypes.data % 64 == 0 and a.base is not None for a in net.values())
    assert list(net) == ["fc.weight", "fc.bias", "count"] and len(net) == 3
    assert "fc.bias" in net and "fc" not in net and net.get("x") is None
    assert "4 parameters" in repr(net)


def test_wrong_keys_and_values(net: Any) -> None:
    with pytest.raises(KeyError, match=r'did you mean "fc\.weight"') as met:
        net["fc.weigth"]
    assert isinstance(met.value, nnc.KeyError)
    with pytest.raises(nnc.DtypeError, match=r"np\.float32"):
        net["fc.weight"] = np.ones(3)
    with pytest.raises(nnc.DtypeError, match=r"count is i32, got 1\.5"):
        net["count"] = 1.5
    with pytest.raises(nnc.ShapeError, match=r"\(3,\)"):
        net["fc.weight"] = ones(4)
    with pytest.raises(AttributeError, match="predict, draw"):
        net.nothing  # noqa: B018
    assert not hasattr(net, "nothing")


def test_methods_parts_and_copies(m: Model, net: Any) -> None:
    assert net.predict(ones(2, 3)).tolist() == m.predict(net, ones(2, 3)).tolist()
    assert list(net.fc) == ["weight", "bias"] and net.fc["bias"] == 0.5
    other = net.copy()
    other["fc.bias"] = 9.0
    assert net["fc.bias"] == 0.5 and m.predict(other, ones(1, 3))[0] == 15
    with pytest.raises(nnc.ArgumentError, match="no `forward`"):
        net(1)


def test_constructors_choose_a_declared_variant(m: Model, net: Any) -> None:
    for opt in (m.SGD(net).init(), m.SGD(m.Net).init(), m.make.init("opt", net), m.SGD.init()):
        assert list(opt) == ["m.fc.weight", "m.fc.bias"]
    assert m.SGD(net, momentum=0).init().sig is m.SGD.sig
    with pytest.raises(nnc.ArgumentError) as met:
        m.SGD(net, momentum=0.9)
    assert "no SGD(Net, momentum=0.9)" in str(met.value) and "make, argument opt" in str(met.value)
    with pytest.raises(nnc.ArgumentError, match="no argument 'optt'"):
        m.make.init("optt")
    with pytest.raises(nnc.ArgumentError, match="seed"):
        m.Net.init(seed="a")


def test_seed_and_step(m: Model, net: Any) -> None:
    m.seed(5)
    assert [m.draw(net)[0] for _ in range(3)] == [5000, 5001, 5002]
    assert m.calls == 3 and net["count"] == 3
    m.seed(5, step=1)
    assert m.draw(net) == (5001,)


def test_the_model_tells_what_it_offers(m: Model) -> None:
    assert list(m.exports) == ["axpy", "scale", "predict", "pick", "draw", "sizes", "make"]
    assert {"axpy", "Net", "SGD", "seed"} <= set(dir(m))
    assert "export def predict(net: Net, x: f32[B, 3]) -> f32[B]" in repr(m)
    assert isinstance(m.exports["axpy"], Export)
    with pytest.raises(AttributeError, match='did you mean "predict"'):
        m.predicts  # noqa: B018
    with pytest.raises(nnc.ArgumentError):
        m.threads = 0


# ---- forward and backward -----------------------------------------------------------------------


def test_backward_of_values_and_scalars(m: Model) -> None:
    x = np.arange(6, dtype=F).reshape(2, 3)
    run = m.scale.forward(x, 3.0)
    assert np.array_equal(run.value, 3 * x)
    grads = run.backward(ones(2, 3))
    assert np.array_equal(grads.x, np.full((2, 3), 3, F)) and grads.a == 15
    assert list(grads) == ["x", "a"] and grads["a"] == 15
    again = run.backward((2 * ones(2, 3),))
    assert again.a == 30 and grads.a == 15


def test_backward_refuses_wrong_derivatives(m: Model) -> None:
    run = m.scale.forward(ones(2, 3), 3.0)
    for given, kind in [((ones(3),), TypeError), ((), TypeError), ((1, 2), TypeError)]:
        with pytest.raises(kind):
            run.backward(*given)
    with pytest.raises(nnc.DtypeError):
        run.backward(np.ones((2, 3)))
    with pytest.raises(AttributeError, match="there are x, a"):
        run.backward(ones(2, 3)).b  # noqa: B018


# ---- manifest, artifact, cache ------------------------------------------------------------------


def test_manifest_survives_json() -> None:
    import json

    again = of_json(json.loads(json.dumps(to_json(fake.MANIFEST))))
    assert again == fake.MANIFEST
    for bad in ({}, [], {"source": 1}, {"source": "a", "target": "b"}, None):
        with pytest.raises(ValueError):
            of_json(bad)


def test_artifact_loads_and_detects_damage(tmp_path: Any) -> None:
    paths = artifact.write(tmp_path, "fake", fake.MANIFEST, [fake.object_code()], [])
    assert [p.name for p in paths] == ["fake.a", "fake.h", "fake.json"]
    loaded = nnc.load(paths[2])
    assert loaded.pick(ones(3), 1) == 1
    assert "int32_t scale(nn_ctx" in paths[1].read_text()
    library = bytearray(paths[0].read_bytes())
    library[-100] ^= 1
    paths[0].write_bytes(library)
    with pytest.raises(nnc.LoadError, match="damaged"):
        nnc.load(paths[2])
    text = paths[2].read_text()
    paths[2].write_text(text.replace('"features": [', '"features": ["quantum",'))
    with pytest.raises(nnc.DeviceError, match="quantum"):
        nnc.load(paths[2])
    paths[2].write_text(text.replace('"fake.a"', '"../fake.a"'))
    with pytest.raises(nnc.LoadError, match="outside"):
        nnc.load(paths[2])
    for bad in ("", "{}", "[1]", text[:200], text.replace('"natives"', '"n"')):
        paths[2].write_text(bad)
        with pytest.raises(nnc.LoadError, match="not written by nnc"):
            nnc.load(paths[2])


def test_where_it_was_compiled_llvm_is_not_loaded(tmp_path: Any) -> None:
    path = artifact.write(tmp_path, "fake", fake.MANIFEST, [fake.object_code()], [])[2]
    code = f"import sys, nnc; nnc.load({str(path)!r}); print('llvmlite' in sys.modules)"
    for text, loads in ((path.read_text(), "False"), (_elsewhere(path.read_text()), "True")):
        path.write_text(text)
        command = [sys.executable, "-c", code]
        assert subprocess.run(command, capture_output=True, check=True).stdout.split() == [
            loads.encode()
        ]


def _elsewhere(text: str) -> str:
    return text.replace('"machine": "', '"machine": "0')


def test_the_archive_links_with_a_c_program(tmp_path: Any) -> None:
    import shutil
    import subprocess

    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    artifact.write(tmp_path, "fake", fake.MANIFEST, [fake.object_code()], [])
    (tmp_path / "main.c").write_text(
        '#include "fake.h"\n'
        "int main(void) { float x[3] = {1, 2, 3}, a = 2, r[3]; int64_t d[1] = {3};\n"
        "  _Alignas(64) char space[1024]; nn_ctx c = {space, 1, 0, 0, 0};\n"
        "  void *args[3] = {x, &a, r};\n"
        "  if (scale_bytes(d, 1) > 1024 || scale(&c, d, args)) return 1;\n"
        "  return r[2] == 6 ? 0 : 2; }\n"
    )
    command = ["cc", "-Wall", "-Werror", "main.c", "fake.a", "-o", "main"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert subprocess.run([tmp_path / "main"], check=False).returncode == 0


def test_cache_trusts_only_its_own_files(tmp_path: Any) -> None:
    where = tmp_path / "cache"
    assert get("a", where) is None
    put("a", b"code", where)
    assert get("a", where) == b"code" and where.stat().st_mode & 0o777 == 0o700
    (file,) = where.glob("*.o")
    file.write_bytes(file.read_bytes()[:-1] + b"X")
    assert get("a", where) is None and not file.exists()
    made: list[int] = []
    for _ in range(2):
        assert fetch("b", lambda: made.append(1) or b"new", where) == b"new"
    assert made == [1]
    where.chmod(0o755)
    assert get("b", where) is None
    where.chmod(0o700)
    assert get("b", where) == b"new"
    link = tmp_path / "link"
    link.symlink_to(where)
    assert get("b", link) is None


def test_cache_survives_racing_processes(tmp_path: Any) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from nnc.runtime.cache import fetch\n"
        "for i in range(60):\n"
        "    data = str(i).encode() * 20000\n"
        "    assert fetch(str(i), lambda: data, Path(sys.argv[1])) == data\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "c")]
    children = [subprocess.Popen(command) for _ in range(4)]
    assert [c.wait() for c in children] == [0] * 4
    assert not list((tmp_path / "c").glob("*.tmp"))


def test_manifest_type_is_the_contract() -> None:
    assert isinstance(fake.MANIFEST, Manifest)


# ---- with the compiler ------------------------------------------------------------------------

SOURCE = """\
from std.nn import Linear, relu
from std.optim import SGD

module Net(I=4, H=8, O=3):
    fc1 = Linear(I, H)
    fc2 = Linear(H, O)

    def forward(x: real[B, I]) -> real[B, O]:
        return fc2(relu(fc1(x)))

export def logits(net: Net, x: f32[B, 4]) -> (f32[B, 3], i32[B]):
    y = net(x)
    return y, argmax(y, over=1)

export def slope(net: Net, x: f32[B, 4]) -> params(Net):
    return grad(mean(net(x)**2), net)

export def apply(inout net: Net, g: params(Net), lr: f32) -> f32:
    net := net - lr * g
    return norm(g)

export def noise(n: dim, s: f32) -> f32[n]:
    return s * normal!([n])

export def pick(x: f32[N, D], i: i32[B]) -> f32[B, D]:
    y[b, d] = x[i[b], d]
    return y

export def halves(x: f32[2*H, D]) -> f32[H, D] where D <= 5:
    return x[:H]
"""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("real") / "net.nn"
    path.write_text(SOURCE)
    return nnc.load(path)


def test_backward_of_a_module(real: Any) -> None:
    net = real.Net.init(seed=1)
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(F)
    run = real.logits.forward(net, x)
    y, _ = real.logits(net, x)
    assert isinstance(run.value, tuple) and np.allclose(run.value[0], y)
    grads = run.backward((2 * y / y.size).astype(F))
    expected = real.slope(net, x)
    assert list(grads.net) == list(net) == list(expected)
    for key in net:
        assert np.allclose(grads.net[key], expected[key], atol=1e-6)
    assert grads.x.shape == (6, 4)


def test_backward_after_a_change_is_refused(real: Any) -> None:
    net = real.Net.init(seed=1)
    x = ones(2, 4)
    run = real.logits.forward(net, x)
    run.backward(ones(2, 3))
    real.apply(net, real.slope(net, x), 0.1)
    with pytest.raises(nnc.Error, match="net was changed after this forward"):
        run.backward(ones(2, 3))
    again = real.logits.forward(net, x)
    net["fc1.bias"] = np.zeros(8, F)
    with pytest.raises(nnc.Error, match="was changed"):
        again.backward(ones(2, 3))


@pytest.mark.parametrize("before", [True, False])
def test_backward_after_a_write_through_a_view_is_refused(real: Any, before: bool) -> None:
    net = real.Net.init(seed=1)
    view = net["fc1.bias"] if before else None
    run = real.logits.forward(net, ones(2, 4))
    view = net["fc1.bias"] if view is None else view
    first = run.backward(ones(2, 3))  # a view that nobody writes to is no change
    assert np.array_equal(run.backward(ones(2, 3)).x, first.x)
    view[3] += 0.5
    with pytest.raises(nnc.Error, match="net was changed after this forward"):
        run.backward(ones(2, 3))
    view[3] -= 0.5
    del view
    net["fc1.bias"][...] = 1
    with pytest.raises(nnc.Error, match="was changed"):
        run.backward(ones(2, 3))


def test_trees_go_out_and_in(real: Any) -> None:
    net = real.Net.init(seed=1)
    before = net.copy()
    g = real.slope(net, ones(2, 4))
    norm = real.apply(net, g, 0.5)
    assert norm == pytest.approx(np.sqrt(sum((a**2).sum() for a in g.values())), rel=1e-5)
    assert all(np.allclose(net[k], before[k] - 0.5 * g[k]) for k in net)
    with pytest.raises(nnc.ArgumentError, match=r"g must be a params\(Net\), got a dict"):
        real.apply(net, dict(g), 0.5)


def test_random_numbers_follow_seed_and_step(real: Any) -> None:
    real.seed(7)
    first, second = real.noise(50, 1.0), real.noise(50, 1.0)
    assert not np.array_equal(first, second)
    real.seed(7)
    assert np.array_equal(real.noise(50, 1.0), first)
    real.seed(7, step=1)
    assert np.array_equal(real.noise(50, 1.0), second)
    real.seed(8)
    assert not np.array_equal(real.noise(50, 1.0), first)
    a, b = real.Net.init(seed=1), real.Net.init(seed=2)
    assert not np.array_equal(a["fc1.weight"], b["fc1.weight"])
    assert np.array_equal(a["fc1.weight"], real.Net.init(seed=1)["fc1.weight"])


def test_threads_do_not_change_a_bit(real: Any) -> None:
    net = real.Net.init(seed=1)
    x = np.random.default_rng(0).normal(size=(5000, 4)).astype(F)
    old, found = real.threads, []
    for count in (1, 2, 64):
        real.threads = count
        found.append((real.logits(net, x)[0], real.slope(net, x)["fc1.weight"].copy()))
    real.threads = old
    for y, g in found[1:]:
        assert np.array_equal(y, found[0][0]) and np.array_equal(g, found[0][1])


def test_an_index_outside_names_the_line(real: Any) -> None:
    x = np.arange(6, dtype=F).reshape(3, 2)
    assert real.pick(x, np.array([2, 0], np.int32)).tolist() == [[4, 5], [0, 1]]
    for bad in (3, -1, 2**31 - 1, -(2**31)):
        with pytest.raises(nnc.IndexError) as met:
            real.pick(x, np.array([0, bad], np.int32))
        assert f"index {bad} is outside 0 ... 2" in str(met.value)
        assert "net.nn:26:" in str(met.value)


def test_multiples_and_where_clauses(real: Any) -> None:
    assert real.halves(ones(6, 5)).shape == (3, 5)
    with pytest.raises(nnc.ShapeError, match="must be a multiple of 2, got 5"):
        real.halves(ones(5, 5))
    with pytest.raises(nnc.ShapeError, match="halves needs D <= 5, got D = 6"):
        real.halves(ones(6, 6))


def test_a_bare_network_file_is_callable(tmp_path: Any) -> None:
    path = tmp_path / "bare.nn"
    path.write_text(SOURCE.split("export")[0].replace("from std.optim import SGD\n", ""))
    bare = nnc.load(path)
    net = bare.Net.init(seed=0)
    assert net(ones(2, 4)).shape == net.forward(ones(2, 4)).shape == (2, 3)
    assert np.array_equal(net(ones(2, 4)), bare.forward(net, ones(2, 4)))


def test_nothing_leaks(real: Any) -> None:
    """Memory after 4000 calls is that after 1000, to 1 MB."""
    import resource

    net, x = real.Net.init(seed=0), ones(64, 4)

    def calls(count: int) -> int:
        for _ in range(count):
            real.logits(net, x)
            real.slope(net, x)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    assert calls(3000) - calls(1000) < 1024


def test_every_dtype_passes(tmp_path: Any) -> None:
    path = tmp_path / "d.nn"
    kinds = ["bool", "u8", "i8", "i32", "i64", "f16", "bf16", "f32", "f64"]
    path.write_text(
        "".join(
            f"export def {k}_(x: {k}[N], s: {k}) -> ({k}[N], {k}):\n    return x, s\n"
            for k in kinds
        )
    )
    model = nnc.load(path)
    values: dict[str, Any] = {"bool": [True, False], "bf16": [0x3FC0, 0xC000]}
    scalars: dict[str, Any] = {"bool": True, "bf16": 1.5}
    for kind in kinds:
        x = np.array(values.get(kind, [1, 2]), nnc.runtime.memory.numpy_dtype(kind))
        if kind == "bf16" and x.dtype != np.uint16:
            x = np.array([1.5, -2], x.dtype)
        y, s = getattr(model, f"{kind}_")(x, scalars.get(kind, 1))
        assert y.dtype == x.dtype and np.array_equal(y, x) and s == x[0]
    if nnc.runtime.memory.numpy_dtype("bf16") == np.uint16:
        with pytest.raises(nnc.DtypeError, match=r"view\(np.uint32\) >> 16"):
            model.bf16_(ones(2), 1.0)


def test_a_process_ends_while_workers_still_wait(tmp_path: Path) -> None:
    """They wait in code that must not be unloaded before them."""
    file = tmp_path / "m.nn"
    file.write_text("export def f(x: f32[N, N]) -> f32[N, N] = x @ x\n")
    text = "import nnc, numpy as np, sys; m = nnc.load(sys.argv[1], threads=2)\n"
    text += "x = np.ones((300, 300), np.float32); [m.f(x) for _ in range(5)]"
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", text, str(file)], check=False)
        assert done.returncode == 0
