"""`nnc train`: resume bit for bit, schedules, data sets, evaluation, interruption, mistakes."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnc
from nnc.runtime import data, train
from nnc.runtime.evaluate import evaluator
from nnc.runtime.progress import Reporter
from nnc.runtime.roles import fitted, make_modules, roles
from nnc.runtime.train import Options, learning_rate

SOURCE = """\
from std.nn import Linear, relu
from std.loss import cross_entropy
from std.optim import AdamW

module Net(I=6, H=16, C=3):
    fc1 = Linear(I, H)
    fc2 = Linear(H, C)

    def forward(x: real[B, I]) -> real[B, C]:
        return fc2(relu(fc1(x)))

export def predict(net: Net, x: f32[B, 6]) -> i32[B]:
    return argmax(net(x), over=1)

export def logits(net: Net, x: f32[B, 6]) -> f32[B, 3]:
    return net(x)

export def loss(net: Net, x: f32[B, 6], y: i32[B]) -> f32:
    return cross_entropy(net(x), y)

export def train_step(inout net: Net, inout opt: AdamW(Net), x: f32[B, 6], y: i32[B],
                      lr: f32, scale: f32 = 1.0) -> f32:
    noise = 0.01 * normal!([B, 6])
    loss = scale * cross_entropy(net!(x + noise), y)
    net := opt!(net, grad(loss, net), lr)
    return loss

export def average_step(inout net: Net, inout ema: Net, x: f32[B, 6], y: i32[B], lr: f32) -> f32:
    loss = cross_entropy(net!(x), y)
    net := net - lr * grad(loss, net)
    ema := 0.9 * ema + 0.1 * net
    return loss
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with net.nn and blobs.npz (three separable classes, int64 labels, f64 x)."""
    folder = tmp_path_factory.mktemp("train")
    (folder / "net.nn").write_text(SOURCE)
    random = np.random.default_rng(0)
    y = random.integers(0, 3, 250)
    x = random.normal(size=(250, 6)) + 3 * np.eye(6)[y]
    np.savez(folder / "blobs.npz", x=x, y=y)
    return folder


@pytest.fixture(scope="module")
def model(place: Path) -> Any:
    return nnc.load(place / "net.nn")


@pytest.fixture
def options(place: Path, tmp_path: Path) -> Options:
    return Options(data=str(place / "blobs.npz"), epochs=4, batch=32, lr=0.01, out=tmp_path / "a")


def run(model: Any, options: Options) -> tuple[int, str]:
    text = io.StringIO()
    return train.train(model, options, Reporter(text)), text.getvalue()


def saved(folder: Path) -> bytes:
    return (folder / "net.safetensors").read_bytes()


# ---- whole runs ---------------------------------------------------------------------------------


def test_it_learns_and_leaves_its_files(model: Any, options: Options, tmp_path: Path) -> None:
    code, text = run(model, replace(options, epochs=8, lr=0.02))
    assert code == 0 and "epoch 8/8" in text and "accuracy" in text
    names = {p.name for p in (tmp_path / "a").iterdir()}
    assert {"net.safetensors", "net.ckpt.safetensors", "net.jsonl"} <= names
    rows = [json.loads(line) for line in (tmp_path / "a" / "net.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in rows] == list(range(1, 9))
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"] and rows[-1]["accuracy"] > 0.9
    net = model.Net.init()
    net.load(tmp_path / "a" / "net.safetensors")
    assert (tmp_path / "a" / "net.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("schedule", ["constant", "step"])
def test_resume_equals_an_uninterrupted_run(
    model: Any, options: Options, tmp_path: Path, schedule: str
) -> None:
    """Dropout-like noise makes it depend on the random stream, AdamW on the optimizer's state."""
    options = replace(options, schedule=schedule, every=3)
    run(model, replace(options, epochs=10))
    parts = replace(options, out=tmp_path / "b")
    run(model, replace(parts, epochs=5))
    model.seed(99)
    code, text = run(model, replace(parts, epochs=10, resume=True))
    assert code == 0 and "after epoch 5, batch 0" in text and "epoch  6/10" in text
    assert saved(tmp_path / "a") == saved(tmp_path / "b")
    logs = [(tmp_path / d / "net.jsonl").read_text().splitlines() for d in "ab"]
    losses = [[json.loads(line)["loss"] for line in log] for log in logs]
    assert losses[0] == losses[1]


def test_resume_from_the_middle_of_an_epoch(
    model: Any, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(model, options)
    real, steps = train._step, [0]

    def interrupted(*args: Any) -> float:
        steps[0] += 1
        if steps[0] == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(train, "_step", interrupted)
    parts = replace(options, out=tmp_path / "b")
    code, text = run(model, parts)
    assert code == 130 and "--resume" in text
    assert not (tmp_path / "b" / "net.safetensors").exists()
    code, text = run(model, replace(parts, resume=True))
    assert code == 0 and "after epoch 1, batch 3" in text
    assert saved(tmp_path / "a") == saved(tmp_path / "b")


def test_the_control_another_seed_gives_other_weights(
    model: Any, options: Options, tmp_path: Path
) -> None:
    run(model, options)
    run(model, replace(options, seed=1, out=tmp_path / "b"))
    assert saved(tmp_path / "a") != saved(tmp_path / "b")


def test_the_control_a_forgotten_random_stream_is_noticed(
    model: Any, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(model, options)
    parts = replace(options, out=tmp_path / "b")
    run(model, replace(parts, epochs=2))
    real = train._restore

    def forgetful(run_: Any, path: Path) -> None:
        real(run_, path)
        run_.model.seed(0)

    monkeypatch.setattr(train, "_restore", forgetful)
    run(model, replace(parts, resume=True))
    assert saved(tmp_path / "a") != saved(tmp_path / "b")


def test_a_damaged_checkpoint_falls_back_loudly(
    model: Any, options: Options, tmp_path: Path
) -> None:
    run(model, replace(options, epochs=3))
    newest = tmp_path / "a" / "net.ckpt.safetensors"
    data_ = bytearray(newest.read_bytes())
    data_[-5] ^= 4
    newest.write_bytes(data_)
    code, text = run(model, replace(options, resume=True))
    assert code == 0 and "warning" in text and "damaged" in text and "after epoch 2" in text
    newest.unlink()
    newest.with_name("net.ckpt.previous.safetensors").write_bytes(b"junk")
    with pytest.raises(nnc.LoadError):
        run(model, replace(options, resume=True))


def test_two_nets_are_saved_apart_and_copies_start_equal(
    model: Any, options: Options, tmp_path: Path
) -> None:
    run(model, replace(options, export="average_step"))
    assert (tmp_path / "a" / "net.ema.safetensors").exists()
    export = model.average_step
    found = roles(export, data.load(options.data), {})
    modules = make_modules(export, found, 0, None)
    assert np.array_equal(modules["net"]["fc1.weight"], modules["ema"]["fc1.weight"])


# ---- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"export": "train_stp"}, 'did you mean "train_step"'),
        ({"epochs": 0}, "--epochs"),
        ({"batch": 0}, "--batch"),
        ({"lr": float("nan")}, "--lr"),
        ({"schedule": "magic"}, "--schedule"),
        ({"data": "nothing"}, "no data set"),
        ({"evaluate": "predic"}, 'did you mean "predict"'),
        ({"metric": "mse"}, "not mse"),
        ({"args": {"scal": 1.0}}, "no number 'scal'"),
    ],
)
def test_mistakes_are_named(model: Any, options: Options, change: Any, text: str) -> None:
    with pytest.raises(nnc.ArgumentError) as met:
        run(model, replace(options, **change))
    assert text in str(met.value)


def test_resume_of_another_run_or_of_nothing(model: Any, options: Options) -> None:
    with pytest.raises(nnc.LoadError, match="no checkpoint"):
        run(model, replace(options, resume=True))
    run(model, options)
    with pytest.raises(nnc.ArgumentError, match="--batch 32, this one says 16"):
        run(model, replace(options, batch=16, resume=True))


def test_a_loss_that_explodes_stops_the_run(model: Any, options: Options) -> None:
    with pytest.raises(nnc.Error, match="smaller --lr"):
        run(model, replace(options, args={"scale": float("inf")}))


# ---- schedules ----------------------------------------------------------------------------------


def test_schedules() -> None:
    base = Options(data="", epochs=10, lr=1.0)

    def rates(**more: Any) -> list[float]:
        options = replace(base, **more)
        return [learning_rate(options, e, b, 4) for e in range(10) for b in range(4)]

    assert rates() == [1.0] * 40
    wave = rates(schedule="cosine", min_lr=0.1)
    assert wave[0] == 1 and wave[20] == pytest.approx(0.55) and 0.1 < wave[-1] < 0.11
    stairs = rates(schedule="step", every=5, gamma=0.5)
    assert stairs[:20] == [1.0] * 20 and stairs[20:] == [0.5] * 20
    ramp = rates(schedule="linear-warmup", warmup=4)
    assert ramp[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and ramp[-1] == 1
    assert rates(schedule="linear-warmup")[0] == pytest.approx(1 / 3)  # 5 % of the steps


# ---- data ---------------------------------------------------------------------------------------


def test_digits_split_is_fixed() -> None:
    pytest.importorskip("sklearn")
    found = data.load("digits")
    assert found.arrays[0].shape == (1438, 64) and found.held_out[0].shape == (359, 64)
    assert found.arrays[0].dtype == np.float32 and found.arrays[1].dtype == np.int32
    assert found.arrays[0].min() >= 0 and found.arrays[0].max() == 1
    assert found.held_out[1][:8].tolist() == data.load("digits").held_out[1][:8].tolist()


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(nnc.Error) as met:
        data.load("digits")
    assert str(met.value) == "the digits need scikit-learn: pip install 'nnc[train]'"


@pytest.mark.parametrize(
    "arrays",
    [
        {"y": np.zeros(3)},
        {"x": np.zeros((3, 2)), "y": np.zeros(4)},
        {"x": np.zeros((0, 2))},
        {"x": np.zeros(())},
        {"x": np.array([{}], dtype=object)},
        {"x": np.zeros(3), "y": np.zeros(3), "x_test": np.zeros(2)},
    ],
)
def test_wrong_npz_files(tmp_path: Path, arrays: dict[str, Any]) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    with pytest.raises(nnc.LoadError, match=r"a\.npz"):
        data.load(str(path))


NAMED = """\
export def train_step(inout net: Net, tokens: f32[B, 6], label: i32[B], weight: f32[B]) -> f32:
    loss = mean(weight * (logsumexp(net(tokens), over=1) - picked(net(tokens), label)))
    net := net - 0.1 * grad(loss, net)
    return loss

def picked(x: f32[B, C], label: i32[B]) -> f32[B]:
    y[b] = x[b, label[b]]
    return y

export def predict(net: Net, tokens: f32[B, 6]) -> i32[B] = argmax(net(tokens), over=1)
"""


def test_arrays_are_found_by_name(place: Path, tmp_path: Path) -> None:
    (tmp_path / "named.nn").write_text(SOURCE.partition("export")[0] + NAMED)
    model = nnc.load(tmp_path / "named.nn")
    given = np.load(place / "blobs.npz")
    rows = {"label": given["y"], "weight": np.ones(250), "tokens": given["x"], "classes": "abc"}
    np.savez(tmp_path / "named.npz", **rows)
    found = data.load(str(tmp_path / "named.npz"))
    assert found.names == ("label", "weight", "tokens")
    arrays = dict(roles(model.exports["train_step"], found, {}).samples)
    assert {a.name: i for a, i in arrays.items()} == {"tokens": 2, "label": 0, "weight": 1}
    np.savez(tmp_path / "other.npz", image=given["x"], label=given["y"])
    with pytest.raises(nnc.ArgumentError, match=r"other\.npz has image, label: give one of them"):
        roles(model.exports["train_step"], data.load(str(tmp_path / "other.npz")), {})
    options = Options(data=str(tmp_path / "named.npz"), epochs=3, batch=32, out=tmp_path / "a")
    _, text = run(model, options)
    assert "accuracy" in text


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04junk", b"\x93NUMPY", b"text"])
def test_files_that_are_no_npz(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(nnc.LoadError, match=r"a\.npz"):
        data.load(str(path))


def test_a_given_test_set_is_used(tmp_path: Path, model: Any) -> None:
    x, y = np.zeros((8, 6), np.float32), np.arange(8) % 3
    np.savez(tmp_path / "a.npz", x=x, y=y, x_test=x[:3], y_test=y[:3])
    found = data.load(str(tmp_path / "a.npz"))
    assert found.size == 8 and len(found.held_out[0]) == 3


# ---- roles and evaluation -----------------------------------------------------------------------


def test_samples_are_converted_only_when_nothing_is_lost(model: Any) -> None:
    step = model.train_step
    x, y = np.zeros((4, 6)), np.arange(4)
    good = data.Data("d", (x, y), (x, y))
    out = fitted(roles(step, good, {}), good.arrays)
    assert [a.dtype for a in out] == [np.float32, np.int32]
    for bad in ((x, y.astype(float)), (x, y + 2**40), (x.astype(complex), y)):
        wrong = data.Data("d", bad, bad)
        with pytest.raises(nnc.DtypeError):
            fitted(roles(step, wrong, {}), wrong.arrays)


def test_flat_samples_become_images() -> None:
    from nnc.ir.signature import ArgSig
    from nnc.runtime.roles import _reshaped
    from tests.fake import tensor

    x = np.zeros((5, 64), np.float32)
    for shape, want in [
        (("B", 1, 8, 8), (5, 1, 8, 8)),
        (("B", 1, "H", "W"), (5, 1, 8, 8)),
        (("B", "H", "W"), (5, 8, 8)),
        (("B", "D"), (5, 64)),
        (("B", 8, "W"), (5, 8, 8)),
        (("B", 3, "H", "W"), (5, 64)),
    ]:
        assert _reshaped(ArgSig("x", "tensor", tensor("f32", *shape)), x).shape == want


@pytest.mark.parametrize(
    ("name", "metric"), [("predict", "accuracy"), ("logits", "accuracy"), ("loss", "loss")]
)
def test_metrics(model: Any, options: Options, name: str, metric: str) -> None:
    modules = {"net": model.Net.init(seed=0)}
    found = data.load(options.data)
    scores = []
    for batch in (7, 50):
        judge = evaluator(model.exports, modules, found, batch, name)
        assert judge is not None and judge.metric == metric
        scores.append(judge())
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_training_in_a_thread_leaves_signals_alone(model: Any, options: Options) -> None:
    old = signal.getsignal(signal.SIGINT)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(run(model, options)[0]))
    thread.start()
    while thread.is_alive():
        time.sleep(0.01)
    assert codes == [0] and signal.getsignal(signal.SIGINT) is old
