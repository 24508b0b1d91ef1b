"""PyTorch's side of the bigger models, with the parameter names of the .nn files."""

from __future__ import annotations

from typing import Any

from bench.peers import need

torch: Any = need("torch")
nn: Any = torch.nn
F: Any = torch.nn.functional


class BasicBlock(nn.Module):  # type: ignore[misc]
    expansion = 1

    def __init__(self, i: int, m: int, s: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(i, m, 3, s, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(m)
        self.conv2 = nn.Conv2d(m, m, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(m)
        self.downsample = _downsample(i, m, s)

    def forward(self, x: Any) -> Any:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):  # type: ignore[misc]
    expansion = 4

    def __init__(self, i: int, m: int, s: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(i, m, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(m)
        self.conv2 = nn.Conv2d(m, m, 3, s, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(m)
        self.conv3 = nn.Conv2d(m, 4 * m, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * m)
        self.downsample = _downsample(i, 4 * m, s)

    def forward(self, x: Any) -> Any:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def _downsample(i: int, o: int, s: int) -> Any:
    if s == 1 and i == o:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(i, o, 1, s, bias=False), nn.BatchNorm2d(o))


class ResNet(nn.Module):  # type: ignore[misc]
    def __init__(self, block: Any, depths: tuple[int, ...], classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        i = 64
        for n, depth in enumerate(depths):
            m = 64 << n
            blocks = []
            for b in range(depth):
                blocks.append(block(i, m, 2 if n and not b else 1))
                i = m * block.expansion
            setattr(self, f"layer{n + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(i, classes)

    def forward(self, x: Any) -> Any:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def resnet18() -> Any:
    return ResNet(BasicBlock, (2, 2, 2, 2))


def resnet50() -> Any:
    return ResNet(Bottleneck, (3, 4, 6, 3))


class CNN(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.fc1 = nn.Linear(9216, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Any) -> Any:
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class Conv1D(nn.Module):  # type: ignore[misc]
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(i, o))
        self.bias = nn.Parameter(torch.empty(o))

    def forward(self, x: Any) -> Any:
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


class Attention(nn.Module):  # type: ignore[misc]
    def __init__(self, d: int, h: int) -> None:
        super().__init__()
        self.h = h
        self.c_attn = Conv1D(d, 3 * d)
        self.c_proj = Conv1D(d, d)

    def forward(self, x: Any, past: Any = None) -> Any:
        """`past`: keys and values [2, B, H, P, K] before this block."""
        b, t, d = x.shape
        q, k, v = (y.view(b, t, self.h, -1).transpose(1, 2) for y in self.c_attn(x).split(d, dim=2))
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        return self.c_proj(y.transpose(1, 2).reshape(b, t, d)), k, v


class MLP(nn.Module):  # type: ignore[misc]
    def __init__(self, d: int) -> None:
        super().__init__()
        self.c_fc = Conv1D(d, 4 * d)
        self.c_proj = Conv1D(4 * d, d)

    def forward(self, x: Any) -> Any:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):  # type: ignore[misc]
    def __init__(self, d: int, h: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(d)
        self.attn = Attention(d, h)
        self.ln_2 = nn.LayerNorm(d)
        self.mlp = MLP(d)

    def forward(self, x: Any, past: Any = None) -> Any:
        a, k, v = self.attn(self.ln_1(x), past)
        x = x + a
        return x + self.mlp(self.ln_2(x)), k, v


class GPT2(nn.Module):  # type: ignore[misc]
    """Logits of all positions; with `last`, of the last one, and the new keys and values."""

    def __init__(
        self, v: int = 50257, n: int = 1024, d: int = 768, h: int = 12, layers: int = 12,
        last: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.wte = nn.Embedding(v, d)
        self.wpe = nn.Embedding(n, d)
        self.h = nn.ModuleList(Block(d, h) for _ in range(layers))
        self.ln_f = nn.LayerNorm(d)
        self.last = last

    def forward(self, tokens: Any, past: Any = None) -> Any:
        """`past` [L, 2, B, H, P, K]: keys and values of the positions before."""
        start = 0 if past is None else past.shape[4]
        where = torch.arange(start, start + tokens.shape[1])
        x = self.wte(tokens) + self.wpe(where)
        keys = []
        for i, block in enumerate(self.h):
            x, k, v = block(x, None if past is None else past[i])
            keys += [k[:, :, start:], v[:, :, start:]]
        if not self.last:
            return self.ln_f(x) @ self.wte.weight.T
        return F.linear(self.ln_f(x[:, -1]), self.wte.weight), torch.stack(keys)


class CharLSTM(nn.Module):  # type: ignore[misc]
    def __init__(self, v: int = 96, h: int = 256) -> None:
        super().__init__()
        self.embed = nn.Embedding(v, h)
        self.lstm = nn.LSTM(h, h, 2, batch_first=True)
        self.out = nn.Linear(h, v, bias=False)

    def forward(self, text: Any) -> Any:
        return self.out(self.lstm(self.embed(text))[0])


RENAMED = {
    "wte": "wte.weight",
    "wpe": "wpe.weight",
    "embed": "embed.weight",
    "out": "out.weight",
    **{
        f"l{i}.{k}": f"lstm.{k}_l{i}"
        for i in (0, 1)
        for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    },
}


def with_weights(module: Any, weights: dict[str, Any]) -> Any:
    """The module with nnc's tensors; every parameter must be there."""
    state = {RENAMED.get(k, k): torch.from_numpy(v.copy()) for k, v in weights.items()}
    for key, value in module.state_dict().items():
        if key.endswith("num_batches_tracked"):
            state[key] = value
    module.load_state_dict(state, strict=True)
    return module
