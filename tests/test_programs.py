"""Every program of models/ agrees with PyTorch: values, gradients, training steps."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnc
from nnc.ir import scalar

torch = pytest.importorskip("torch", reason="torch==2.13.0 is not installed: programs not compared")

from tests import torch_models as tm  # noqa: E402

MODELS = Path(__file__).parent.parent / "models"
Edits = Mapping[str, str]
Load = Callable[..., Any]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads a program of models/ from a copy with some text replaced, or with more text."""

    def make(name: str, edits: Edits | None = None, more: str = "", **modules: Any) -> Any:
        for path in MODELS.glob("*.nn"):
            shutil.copy(path, tmp_path)
        path = tmp_path / name
        text = path.read_text() if path.exists() else ""
        for old, new in (edits or {}).items():
            assert old in text, old
            text = text.replace(old, new)
        path.write_text(text + more)
        return nnc.load(path, **modules)

    return make


def random(net: Any, seed: int = 7, scale: float = 0.1) -> Any:
    """Every parameter away from its initial value, so that biases and gains count."""
    rng = np.random.default_rng(seed)
    for _, value in net.items():
        if value.dtype == np.float32:
            value += scale * rng.standard_normal(value.shape).astype(np.float32)
    return net


def close(got: Any, want: Any, tolerance: float, what: str = "") -> None:
    """Within `tolerance` of the largest magnitude."""
    want = want.detach().numpy() if isinstance(want, torch.Tensor) else np.asarray(want)
    got = np.asarray(got, np.float64)
    assert got.shape == want.shape, what
    apart = np.abs(got - want).max() / max(np.abs(want).max(), 1e-30)
    assert apart < tolerance, f"{what}: {apart:.2e}"


def distance(got: Any, want: Any) -> float:
    """The relative difference in the Euclidean norm."""
    want = want.detach().numpy()
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def same_moments(opt: Any, p: Mapping[str, Any], tolerance: float, share: float = 0.1) -> None:
    """The first moments after the first step, which are `share` of the gradients."""
    largest = max(float(v.grad.abs().max()) for v in tm.trained(p).values())
    for key, value in tm.trained(p).items():
        got, want = np.asarray(opt[f"m.{key}"]) / share, value.grad.numpy()
        # a gradient that is zero but for rounding is compared with the others' size
        scale = max(float(np.abs(want).max()), 1e-3 * largest)
        assert np.abs(got - want).max() < tolerance * scale, key


def same_parameters(net: Any, p: Mapping[str, Any], lr: float, steps: int) -> None:
    """Adam divides by the gradient's size: where it is all rounding error, so is the update."""
    for key, value in p.items():
        apart = np.abs(np.asarray(net[key], np.float64) - value.detach().numpy())
        assert np.quantile(apart, 0.97) < 0.03 * lr * steps + 1e-6, key
        assert apart.max() < 2.1 * lr * steps + 1e-5, key


def curve(mine: list[float], theirs: list[float], tolerance: float = 2e-4) -> None:
    np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=1e-5)


def drawn(kind: str, path: str, step: int, shape: tuple[int, ...], seed: int = 0) -> Any:
    """The random numbers of one call path, by NumPy."""
    digest = blake2b(f"{path}/{kind}#0".encode(), digest_size=8).digest()
    stream = int.from_bytes(digest, "little", signed=True)
    a, b = scalar.philox(seed, stream, step, np.arange(np.prod(shape)))
    u1, u2 = (a >> np.uint64(8)).astype(float) * 2.0**-24, (b >> np.uint64(8)) * 2.0**-24
    if kind == "normal":
        u1 = np.sqrt(-2 * np.log(u1 + 2.0**-24)) * np.cos(2 * np.pi * u2)
    return torch.tensor(u1.reshape(shape))


# ---- GPT-2 ----------------------------------------------------------------------------------------

SMALL = {"V": 101, "N": 40, "D": 48, "H": 4, "L": 3}
TOKENS = np.random.default_rng(0).integers(0, 101, (2, 17)).astype(np.int32)


def test_gpt2_full_pass_and_cached_decode(load: Load) -> None:
    m = load("gpt2.nn", GPT2=SMALL)
    net = random(m.GPT2.init(seed=1))
    want = tm.gpt2(tm.table(net), torch.tensor(TOKENS).long(), 4)
    kv = np.zeros((3, 2, 2, 4, 40, 12), np.float32)
    full = m.forward(net, TOKENS, kv, 0)
    close(full, want, 1e-5, "full pass")
    kv = np.zeros_like(kv)
    parts = [m.forward(net, TOKENS[:, :9], kv, 0)]
    parts += [m.forward(net, TOKENS[:, t : t + 1], kv, t) for t in range(9, 17)]
    close(np.concatenate(parts, 1), want, 1e-5, "prefill and decode")


def test_gpt2_is_transformers_gpt2(load: Load) -> None:
    transformers = pytest.importorskip("transformers")
    m = load("gpt2.nn", GPT2=SMALL)
    net = random(m.GPT2.init(seed=1))
    config = transformers.GPT2Config(vocab_size=101, n_positions=40, n_embd=48, n_head=4, n_layer=3)
    other = transformers.GPT2LMHeadModel(config).eval()
    left = other.transformer.load_state_dict({k: torch.tensor(v) for k, v in net.items()})
    assert not left.missing_keys and not left.unexpected_keys
    with torch.no_grad():
        want = other(torch.tensor(TOKENS).long()).logits
    kv = np.zeros((3, 2, 2, 4, 17, 12), np.float32)
    close(m.forward(net, TOKENS, kv, 0), want, 1e-5)


def small_run(v: int, n: int, d: int, h: int, layers: int) -> Edits:
    """gpt2_run.nn with other sizes."""
    return {
        "f32[12, 2, B, 12, S, 64]": f"f32[{layers}, 2, B, {h}, S, {d // h}]",
        "empty[12, 2, B, 12, T, 64]": f"empty[{layers}, 2, B, {h}, T, {d // h}]",
        "50257": str(v),
        "1024": str(n),
    }


def gpt2_steps(m: Any, tokens: Any, heads: int, steps: int, lr: float) -> None:
    """`steps` AdamW steps with clipping, beside torch."""
    net = random(m.GPT2.init(seed=2), scale=0.02)
    opt = m.train_step.init("opt", net)
    p = tm.table(net)
    other = tm.adam(p, lr, 0.01)
    mine, theirs = [], []
    x = torch.tensor(tokens).long()
    for step in range(steps):
        mine.append(float(m.train_step(net, opt, tokens, lr=lr)))
        logits = tm.gpt2(p, x[:, :-1], heads)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten())
        theirs.append(tm.descend(other, loss, lambda: tm.clip(p, 1.0)))
        if step == 0:
            same_moments(opt, p, 1e-4)
    curve(mine, theirs)
    same_parameters(net, p, lr, steps)


def test_gpt2_training(load: Load) -> None:
    m = load("gpt2_run.nn", small_run(101, 40, 48, 4, 2), GPT2=SMALL | {"L": 2})
    gpt2_steps(m, TOKENS, 4, 5, 3e-3)


def test_gpt2_run_logits(load: Load) -> None:
    m = load("gpt2_run.nn", small_run(101, 40, 48, 4, 2), GPT2=SMALL | {"L": 2})
    net = random(m.GPT2.init(seed=3))
    kv = np.zeros((2, 2, 2, 4, 40, 12), np.float32)
    m.logits(net, kv, TOKENS[:, :16], 0)
    last = m.logits(net, kv, TOKENS[:, 16:], 16)
    close(last, tm.gpt2(tm.table(net), torch.tensor(TOKENS).long(), 4)[:, -1], 1e-5)


@pytest.mark.slow
def test_gpt2_training_at_full_size(load: Load) -> None:
    tokens = np.random.default_rng(1).integers(0, 50257, (1, 33)).astype(np.int32)
    gpt2_steps(load("gpt2_run.nn"), tokens, 12, 2, 1e-4)


# ---- ResNet-18 ------------------------------------------------------------------------------------

RESNET = """
from resnet import ResNet18
from std.loss import cross_entropy
from std.optim import SGD

export def logits(net: ResNet18, x: f32[B, 3, H, W]) -> f32[B, 10] = net(x)

export def train_step(inout net: ResNet18, inout opt: SGD(ResNet18), x: f32[B, 3, H, W], y: i32[B], lr: f32) -> f32:
    loss = cross_entropy(net!(x), y)
    net := opt!(net, grad(loss, net), lr)
    return loss
"""


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("resnet")
    shutil.copy(MODELS / "resnet.nn", folder)
    (folder / "run.nn").write_text(RESNET)
    return nnc.load(folder / "run.nn", ResNet18={"C": 10})


def image(*shape: int) -> Any:
    return np.random.default_rng(4).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("size", [32, 45])
def test_resnet_inference(resnet: Any, size: int) -> None:
    net = resnet.ResNet18.init(seed=1)
    for key, value in net.items():
        if key.endswith("running_var"):
            value[...] = np.linspace(0.5, 2, value.size)
    x = image(3, 3, size, size)
    close(resnet.logits(net, x), tm.resnet(tm.table(net), torch.tensor(x).double(), False), 1e-5)


def test_resnet_has_torchvision_keys(resnet: Any) -> None:
    keys = [k for k, _ in resnet.ResNet18.init().items()]
    assert len(keys) == 102 and {"conv1.weight", "fc.bias", "bn1.running_var"} <= set(keys)
    assert (
        "layer2.0.downsample.1.running_mean" in keys and "layer1.0.downsample.0.weight" not in keys
    )


def resnet_loss(p: Mapping[str, Any], x: Any) -> Any:
    logits = tm.resnet(dict(p), torch.tensor(x, dtype=p["fc.bias"].dtype), True)
    return torch.nn.functional.cross_entropy(logits, torch.arange(len(x)))


def resnet_steps(m: Any, x: Any, steps: int, lr: float, tolerance: float) -> None:
    """Some pixels lie at the corner of a relu, where float32 and float64 go different ways: torch's
    own float32 gradients are as far from float64 as these, so norms are compared."""
    net = m.ResNet18.init(seed=1)
    opt = m.train_step.init("opt", net)
    y = np.arange(len(x), dtype=np.int32)
    p = tm.table(net)
    other = torch.optim.SGD(tm.trained(p).values(), lr=lr)
    mine, theirs = [], []
    for step in range(steps):
        mine.append(float(m.train_step(net, opt, x, y, lr=lr)))
        theirs.append(tm.descend(other, resnet_loss(p, x)))
        if step == 0:
            for key, value in tm.trained(p).items():
                assert distance(opt[f"m.{key}"], value.grad) < tolerance, key
            for key, value in p.items():
                statistic = key.endswith(tm.STATISTICS)
                assert distance(net[key], value) < (1e-4 if statistic else tolerance), key
    curve(mine, theirs, 1e-2)


def test_resnet_training(resnet: Any) -> None:
    resnet_steps(resnet, image(4, 3, 32, 32), 3, 0.01, 1e-3)


@pytest.mark.slow
def test_resnet_training_at_full_size(resnet: Any) -> None:
    resnet_steps(resnet, image(2, 3, 224, 224), 2, 0.01, 3e-2)


# ---- VAE, WGAN-GP -----------------------------------------------------------------------------------


def test_vae_training(load: Load) -> None:
    m = load("vae.nn")
    net = m.VAE.init(seed=1)
    opt = m.train_step.init("opt", net)
    p = tm.table(net)
    other = tm.adam(p, 1e-3)
    x = np.random.default_rng(5).random((9, 784)).astype(np.float32)
    mine, theirs = [], []
    m.seed(11)
    for step in range(5):
        mine.append(float(m.train_step(net, opt, x, lr=1e-3)))
        noise = drawn("normal", "train_step/net", step, (9, 20), seed=11)
        theirs.append(tm.descend(other, tm.elbo(p, torch.tensor(x).double(), noise)))
        if step == 0:
            same_moments(opt, p, 1e-4)
    curve(mine, theirs)
    same_parameters(net, p, 1e-3, 5)


def test_wgan_training(load: Load) -> None:
    m = load("wgan_gp.nn")
    gen, d = m.Generator.init(seed=1), m.Critic.init(seed=2)
    g_opt, d_opt = m.generator_step.init("opt", gen), m.critic_step.init("opt", d)
    pg, pd = tm.table(gen), tm.table(d)
    g_other, d_other = tm.adam(pg, 1e-3), tm.adam(pd, 1e-3)
    x = np.random.default_rng(6).standard_normal((8, 784)).astype(np.float32)
    mine, theirs = [], []
    for step in range(0, 10, 2):
        mine.append(float(m.critic_step(gen, d, d_opt, x, lr=1e-3)))
        z = drawn("normal", "critic_step", step, (8, 64))
        eps = drawn("uniform", "critic_step", step, (8, 1))
        loss = tm.critic_loss(pg, pd, torch.tensor(x).double(), z, eps)
        theirs.append(tm.descend(d_other, loss))
        mine.append(float(m.generator_step(gen, d, g_opt, 8, lr=1e-3)))
        z = drawn("normal", "generator_step", step + 1, (8, 64))
        theirs.append(tm.descend(g_other, -tm.critic(pd, tm.generator(pg, z)).mean()))
        if step == 0:
            same_moments(g_opt, pg, 1e-3)
    curve(mine, theirs, 1e-3)
    same_parameters(d, pd, 1e-3, 5)
    same_parameters(gen, pg, 1e-3, 5)


def test_wgan_gradient_through_a_gradient(load: Load) -> None:
    m = load("wgan_gp.nn")
    gen, d = m.Generator.init(seed=1), m.Critic.init(seed=2)
    opt = m.critic_step.init("opt", d)
    pg, pd = tm.table(gen), tm.table(d)
    x = np.random.default_rng(6).standard_normal((8, 784)).astype(np.float32)
    m.critic_step(gen, d, opt, x, lr=1e-3)
    z, eps = drawn("normal", "critic_step", 0, (8, 64)), drawn("uniform", "critic_step", 0, (8, 1))
    tm.critic_loss(pg, pd, torch.tensor(x).double(), z, eps).backward()
    same_moments(opt, pd, 1e-4)


# ---- novel_ops --------------------------------------------------------------------------------------

NOVEL = """
from novel_ops import conv2d, deform_conv, local_attention

export def conv(x: f32[B, C, H, W], w: f32[O, C, U, V], s: dim, p: dim, d: dim) -> f32[B, O, Y, X] where s >= 1, d >= 1, H + 2*p - d*(U-1) - 1 >= 0, W + 2*p - d*(V-1) - 1 >= 0, Y = (H + 2*p - d*(U-1) - 1)//s + 1, X = (W + 2*p - d*(V-1) - 1)//s + 1:
    return conv2d(x, w, s, p, d)

export def deform(x: f32[B, C, H, W], off: f32[B, 2, U, V, H, W], w: f32[O, C, U, V]) -> f32[B, O, H, W]:
    return deform_conv(x, off, w)

export def attend(q: f32[B, H, T, K], k: f32[B, H, T, K], v: f32[B, H, T, K], bias: f32[H, R]) -> f32[B, H, T, K]:
    return local_attention(q, k, v, bias)
"""


@pytest.fixture(scope="module")
def novel(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("novel")
    shutil.copy(MODELS / "novel_ops.nn", folder)
    (folder / "run.nn").write_text(NOVEL)
    return nnc.load(folder / "run.nn")


def compare(
    export: Any, reference: Callable[..., Any], arrays: Mapping[str, Any], *more: int
) -> None:
    """Value and all gradients of an export against a torch function."""
    tensors = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in arrays.values()]
    want = reference(*tensors, *more)
    run = export.forward(*arrays.values(), *more)
    close(run.value, want, 1e-5, "value")
    dy = np.random.default_rng(8).standard_normal(want.shape).astype(np.float32)
    want.backward(torch.tensor(dy).double())
    grads = run.backward(dy)
    for name, tensor in zip(arrays, tensors, strict=True):
        close(getattr(grads, name), tensor.grad, 2e-5, f"gradient of {name}")


@pytest.mark.parametrize("s, p, d", [(1, 1, 1), (2, 3, 2), (3, 0, 1), (1, 2, 3)])
def test_novel_conv2d(novel: Any, s: int, p: int, d: int) -> None:
    arrays = {"x": image(2, 3, 12, 10), "w": image(4, 3, 3, 2)}

    def conv(x: Any, w: Any, s: int, p: int, d: int) -> Any:
        return torch.nn.functional.conv2d(x, w, None, s, p, d)

    compare(novel.conv, conv, arrays, s, p, d)


def test_novel_deform_conv(novel: Any) -> None:
    off = 1.5 * image(2, 2, 3, 3, 7, 6)
    arrays = {"x": image(2, 3, 7, 6), "off": off, "w": image(4, 3, 3, 3)}
    compare(novel.deform, tm.deform_conv, arrays)


def test_novel_local_attention(novel: Any) -> None:
    q, k, v = np.split(image(6, 3, 11, 8), 3)
    compare(novel.attend, tm.local_attention, {"q": q, "k": k, "v": v, "bias": image(3, 4)})


# ---- transfer ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transfer(tmp_path_factory: pytest.TempPathFactory, resnet: Any) -> tuple[Any, Any, Path]:
    """The program, a module, and the file of body weights that it was made from."""
    folder = tmp_path_factory.mktemp("transfer")
    for name in ("transfer.nn", "resnet.nn"):
        shutil.copy(MODELS / name, folder)
    body = folder / "resnet18.safetensors"
    resnet.ResNet18.init(seed=9).save(body)
    m = nnc.load(folder / "transfer.nn", Flowers={"C": 5})
    return m, m.Flowers.init(seed=1, files={"resnet18": body}), body


PHOTOS = np.random.default_rng(10).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
LABELS = np.array([0, 1, 2, 4], np.int32)


def test_transfer_takes_weights_from_a_file(transfer: Any, resnet: Any) -> None:
    m, net, _ = transfer
    for key, value in resnet.ResNet18.init(seed=9).items():
        if not key.startswith("fc."):
            np.testing.assert_array_equal(net[f"body.{key}"], value)
    assert net["body.fc.weight"].shape == (1000, 512)  # skipped: it keeps its initial values
    with pytest.raises(nnc.Error, match=r'files={"resnet18": path}'):
        m.Flowers.init()


def flowers_step(m: Any, net: Any, name: str, lr: float) -> tuple[dict[str, Any], Any]:
    """One step beside torch: the tensors before, and torch's after."""
    before = {k: np.array(v) for k, v in net.items()}
    p = tm.table(net)
    finetune = name == "finetune"
    logits = tm.flowers(p, torch.tensor(PHOTOS).double(), finetune)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(LABELS).long())
    head = {k: v for k, v in p.items() if k.startswith("head.")}
    body = {k: v for k, v in p.items() if k.startswith("body.") and not k.startswith("body.fc.")}
    others = [tm.adam(head, lr, 0.01)] + ([tm.adam(body, lr / 10, 0.01)] if finetune else [])
    loss.backward()
    for other in others:
        other.step()
    opts = (
        [m.finetune.init(o, net) for o in ("ob", "oh")]
        if finetune
        else [m.train_head.init("opt", net)]
    )
    mine = getattr(m, name)(net, *opts, PHOTOS, LABELS, lr=lr)
    assert float(mine) == pytest.approx(loss.item(), rel=1e-4)
    same_moments(opts[-1], tm.part(head, "head."), 1e-3)
    if finetune:
        same_moments(opts[0], tm.part(body, "body."), 2e-3)
    return before, p


def test_transfer_train_head_changes_only_the_head(transfer: Any) -> None:
    m, net, _ = transfer
    before, p = flowers_step(m, net, "train_head", 1e-3)
    changed = {k for k, v in net.items() if not np.array_equal(v, before[k])}
    assert changed == {"head.weight", "head.bias"}
    same_parameters(net, p, 1e-3, 1)


def test_transfer_finetune_changes_all(transfer: Any) -> None:
    m, net, _ = transfer
    before, p = flowers_step(m, net, "finetune", 1e-3)
    same = {k for k, v in net.items() if np.array_equal(v, before[k])}
    assert same <= {"body.fc.weight", "body.fc.bias"}
    statistics = {k: v for k, v in p.items() if k.endswith(tm.STATISTICS)}
    for key, value in statistics.items():
        close(net[key], value, 1e-3, key)


# ---- char_rnn, big_step -----------------------------------------------------------------------------


def test_char_rnn_training(load: Load) -> None:
    m = load("char_rnn.nn", {"H=512": "H=40", "512": "40"})
    net = random(m.CharRNN.init(seed=1))
    opt = m.train_step.init("opt", net)
    p = tm.table(net)
    other = tm.adam(p, 2e-3)
    text = np.random.default_rng(12).integers(0, 96, (3, 17)).astype(np.int32)
    h, c = np.zeros((3, 40), np.float32), np.zeros((3, 40), np.float32)
    h2, c2 = torch.zeros(3, 40, dtype=torch.float64), torch.zeros(3, 40, dtype=torch.float64)
    tokens = torch.tensor(text).long()
    mine, theirs = [], []
    for step in range(5):
        mine.append(float(m.train_step(net, opt, h, c, text, lr=2e-3)))
        logits, h2, c2 = tm.char_rnn(p, tokens[:, :-1], h2.detach(), c2.detach())
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        theirs.append(tm.descend(other, loss, lambda: tm.clip(p, 5.0)))
        if step == 0:
            same_moments(opt, p, 1e-4)
        close(h, h2, 1e-3, "h")
        close(c, c2, 1e-3, "c")
    curve(mine, theirs)
    same_parameters(net, p, 2e-3, 5)


def test_char_rnn_samples_repeat_by_seed(load: Load) -> None:
    m = load("char_rnn.nn", {"H=512": "H=40", "512": "40"})
    net = m.CharRNN.init(seed=1)
    first = np.array([1, 2, 3], np.int32)
    texts = []
    for seed in (5, 5, 6):
        m.seed(seed)
        texts.append(m.sample(net, first, 20, 1.0))
    assert texts[0].shape == (20, 3) and texts[0].min() >= 0 and texts[0].max() < 96
    np.testing.assert_array_equal(texts[0], texts[1])
    assert not np.array_equal(texts[0], texts[2]) and len(np.unique(texts[0])) > 15


def test_big_step(load: Load) -> None:
    """Accumulation, bf16 (so within 3 %), clipping, EMA; nothing changes when a gradient is NaN."""
    edits = {"empty[12, 2, B, 12, T, 64]": "empty[2, 2, B, 4, T, 12]", "1024": "40"}
    m = load("big_step.nn", edits, GPT2=SMALL | {"L": 2})
    net, ema = random(m.GPT2.init(seed=1), scale=0.02), m.GPT2.init(seed=1)
    opt = m.train_step.init("opt", net)
    tokens = np.random.default_rng(13).integers(0, 101, (3, 2, 17)).astype(np.int32)
    p = tm.table(net)
    old = {k: np.array(v) for k, v in ema.items()}
    x = torch.tensor(tokens).long().flatten(0, 1)
    want = torch.nn.functional.cross_entropy(
        tm.gpt2(p, x[:, :-1], 4).flatten(0, 1), x[:, 1:].flatten()
    )
    want.backward()
    norm = float(torch.cat([v.grad.flatten() for v in p.values()]).norm())
    loss, gn = m.train_step(net, ema, opt, tokens, lr=1e-3)
    assert float(loss) == pytest.approx(want.item(), rel=1e-2)
    assert float(gn) == pytest.approx(norm, rel=3e-2) and norm > 1
    tm.clip(p, 1.0)
    same_moments(opt, p, 3e-2)
    for key, value in net.items():
        close(ema[key], 0.999 * old[key] + 0.001 * value, 1e-6, key)

    net["wte.weight"][3] = np.inf
    old = {k: np.array(v) for part in (net, ema, opt) for k, v in part.items()}
    _, gn = m.train_step(net, ema, opt, tokens, lr=1e-3)
    assert not np.isfinite(gn)
    now = {k: v for part in (net, ema, opt) for k, v in part.items()}
    assert all(np.array_equal(now[k], v) for k, v in old.items())
