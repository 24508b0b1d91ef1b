"""Random programs of the whole language, valid by construction, from a `random.Random`.

`program(rng)` writes modules, functions with and without derivatives of their own, and one export
`f`. Drawn by hypothesis (`st.randoms(use_true_random=False)`) programs shrink towards short ones.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.random_bodies import Body, Callee, Names
from tests.random_elements import Draw, Value

OPTIMIZERS = ("SGD", "Adam", "AdamW")


@dataclass(frozen=True)
class Program:
    """A text, sizes to run it with, limits of its integer arguments, whether differences may be taken."""

    text: str
    dims: tuple[Mapping[str, int], ...]
    limits: Mapping[str, str]
    smooth: bool


@dataclass
class Writer:
    """A file under construction. `modules`: what a call of an instance takes and gives."""

    draw: Draw
    names: Names = field(default_factory=Names)
    top: list[str] = field(default_factory=list)
    functions: list[Callee] = field(default_factory=list)
    blocks: list[str] = field(
        default_factory=list
    )  # modules of one parameter D: [..N, D] -> [..N, D]
    smooth: bool = True

    # ---- functions ------------------------------------------------------------------------------

    def function(self) -> None:
        """A function over packs, over sizes with a `where`, or with an adjoint."""
        self.draw.pick((self.plain, self.windowed, self.pair, self.adjoint, self.written))()

    def body(self, values: list[Value], sizes: list[str], **more: object) -> Body:
        more = {"functions": tuple(self.functions), "dtype": "real"} | more
        return Body(self.draw, self.names, values, sizes, **more)  # type: ignore[arg-type]

    def plain(self) -> None:
        name = self.names.fresh("fn")
        shape = self.draw.pick((("A",), ("A", "C"), ("..N", "C")))
        body = self.body([Value("x", "real", shape)], [s for s in shape if not s.startswith("..")])
        body.statements(self.draw.number(1, 2))
        self.smooth &= body.smooth
        self.top += [
            f"def {name}(x: real[{', '.join(shape)}], scale: real = 0.5) -> real[{', '.join(shape)}]:"
        ]
        self.top += [*body.lines, f"    return {body.of(shape)} * scale", ""]
        self.functions.append(Callee(name, len(shape), shape[0] == "..N"))

    def windowed(self) -> None:
        name = self.names.fresh("window")
        k = self.draw.number(1, 2)
        self.top += [
            f"def {name}(x: real[..N, L], n: dim = {k}) -> real[..N, L - n + 1] where n >= 1, L >= n:",
            "    y[..i, t:L - n + 1] = mean[u:n](x[..i, t + u])",
            f"    return {self.draw.pick(('y', 'tanh(y)', 'y * y'))}",
            "",
        ]
        self.functions.append(Callee(name, 1, True, shrinks=k - 1))

    def pair(self) -> None:
        name = self.names.fresh("pair")
        self.top += [
            f"def {name}(x: real[..N]) -> (real[..N], real):",
            f"    y = {self.draw.pick(('tanh(x)', 'x * 0.5', 'sin(x) + 0.1 * x'))}",
            f"    return y, {self.draw.pick(('mean(y)', 'mean(y * x)', 'max(y)'))}",
            "",
        ]
        self.functions.append(Callee(name, 0, True, pair=True))

    def adjoint(self) -> None:
        name = self.names.fresh("own")
        body, slope, smooth = self.draw.pick(
            (
                ("tanh(x)", "dy * (1 - y**2)", True),
                ("x * abs(x)", "2 * abs(x) * dy", True),
                ("where(x >= 0, 1, -1)", "where(abs(x) <= 1, dy, 0)", False),
            )
        )
        self.smooth &= smooth
        self.top += [f"def {name}(x: real[..N]) -> real[..N] = {body}", ""]
        self.top += [f"adjoint {name}(x; y, dy):", f"    return {slope}", ""]
        self.functions.append(Callee(name, 0, True))

    def written(self) -> None:
        name = self.names.fresh("fill")
        self.top += [
            f"def {name}(inout c: real[A, C], v: real[C]) -> real:",
            f"    c[a, k] := {self.draw.pick(('v[k]', 'c[a, k] + v[k]', 'c[a, k] * 0.5'))}",
            "    return mean(c)",
            "",
        ]
        self.functions.append(Callee(name, 2, False, inout=True))

    # ---- modules --------------------------------------------------------------------------------

    def module(self) -> str:
        """A module `[..N, D] -> [..N, D]` of one size; gives its name."""
        kind = self.draw.pick(
            (
                self.feed_forward,
                self.free,
                self.stack,
                self.statistics,
                self.recurrent,
                self.attention,
            )
        )
        name = kind(self.names.fresh("M").upper())
        self.blocks.append(name)
        return name

    def feed_forward(self, name: str) -> str:
        layer = self.draw.pick(
            ("Linear(D, H)", "Linear(D, H, use_bias=false)", "Linear(D, H, use_bias=wide)")
        )
        act = self.draw.pick(("tanh", "relu", "gelu", "silu", "softplus", "elu", "leaky_relu"))
        rows = [f"module {name}(D, H={self.draw.pick(('3', '2*D', '5'))}, wide=true, act={act}):"]
        rows += [f"    up = {layer}", "    down = Linear(H, D)"]
        norm = self.draw.chance(0.5)
        drop = self.draw.chance(0.4)
        rows += ["    norm = LayerNorm(D)"] * norm + ["    drop = Dropout(0.3)"] * drop
        rows += ["    param gain: real[D] = 1 when wide"]
        rows += ["    def forward(x: real[..N, D]) -> real[..N, D]:"]
        rows += [f"        y = down(act(up({'norm(x)' if norm else 'x'})))"]
        rows += ["        y = drop(y)"] * drop
        rows += [
            "        if wide:",
            "            y = y * gain",
            "        else:",
            "            y = 2 * y",
        ]
        self.top += [*rows, "        return x + 0.5 * y", ""]
        return name

    def free(self, name: str) -> str:
        """Parameters and a random body."""
        shape = self.draw.pick((("..N", "D"), ("B", "D"), ("B", "D")))
        values = [
            Value("x", "real", shape),
            Value("kern", "real", ("D", "D")),
            Value("bias", "real", ("D",)),
        ]
        self.top += [f"module {name}(D, shift=0.1):", "    param kern: real[D, D] = normal(0.3)"]
        self.top += ["    param bias: real[D] = uniform(0.5)"]
        body = self.body(values, [s for s in shape if s != "..N"], level=2)
        body.statements(self.draw.number(1, 3))
        self.smooth &= body.smooth
        typed = f"real[{', '.join(shape)}]"
        self.top += [f"    def forward(x: {typed}) -> {typed}:", *body.lines]
        self.top += [f"        return {body.of(shape)} + shift * tanh(x @ kern + bias)", ""]
        if shape[0] == "B":
            self.names.rank_two.add(name)
        return name

    def stack(self, name: str) -> str:
        inner = (
            self.draw.pick(self.blocks)
            if self.blocks
            else self.feed_forward(self.names.fresh("M").upper())
        )
        shape = "B" if inner in self.names.rank_two else "..N"
        if shape == "B":
            self.names.rank_two.add(name)
        lists = self.draw.pick(
            (
                f"[{inner}(D) for l in L]",
                f"[{inner}(D) for l in L] if L > 0 else []",
                f"[{inner}(D), {inner}(D)]",
            )
        )
        rows = [
            f"module {name}(D, L={self.draw.number(1, 3)}, tied=false):",
            f"    items = {lists}",
        ]
        rows += [
            "    param scale: real = 0.7",
            "    param head: real[D, D] = xavier_uniform() when not tied",
        ]
        rows += [
            f"    def forward(x: real[{shape}, D]) -> real[{shape}, D]:",
            "        for item in items:",
        ]
        rows += [
            "            x = item(x)"
            if self.draw.chance(0.6)
            else "            x = scale * item(x) + 0.1 * x"
        ]
        rows += [
            "        if not tied:",
            "            x = tanh(x @ head)",
            "        return x * scale",
            "",
        ]
        self.top += rows
        return name

    def statistics(self, name: str) -> str:
        self.names.rank_two.add(name)
        self.top += [
            f"module {name}(D, rate=0.1):",
            "    state mean_: f32[D] = 0",
            "    state seen: i32 = 0",
            "    param gain: real[D] = 1",
            "    def forward(x: real[B, D]) -> real[B, D]:",
            "        c = real(mean_)",
            "        if train:",
            "            c = mean(x, over=0)"
            if self.draw.chance(0.5)
            else "            c[d] = mean[b](x[b, d])",
            "            mean_ := (1 - rate) * mean_ + rate * stop(f32(c))",
            "            seen := seen + 1",
            f"        return tanh(gain * (x - c){self.draw.pick(('', ' + 0.1 * normal!([B, D]) if train else gain * x'))})",
            "",
        ]
        return name

    def recurrent(self, name: str) -> str:
        self.names.rank_two.add(name)
        self.top += [
            f"module {name}(D, H=3):",
            "    param u: real[H, H] = normal(0.3)",
            "    param e: real[H] = uniform(0.5)",
            "    out = Linear(H, D)",
            "    def forward(x: real[B, D]) -> real[B, D]:",
            f"        h = {self.draw.pick(('zeros[H]', 'e'))}",
            "        ys = for t in B:",
            f"            h = tanh(h @ u + e * mean(x[{self.draw.pick(('t', 'B - 1 - t'))}]))",
            f"            yield {self.draw.pick(('h', 'h * h', 'h + 0.1 * t'))}",
            "        return out(ys) + 0.1 * mean(h)",
            "",
        ]
        return name

    def attention(self, name: str) -> str:
        self.names.rank_two.add(name)
        causal = self.draw.pick(("", " if j <= t else -inf", " if j <= t + 1 else -inf"))
        self.top += [
            f"module {name}(D, H=1, K=D/H):",
            "    qkv = Linear(D, 3*D)",
            "    param gain: real[H, K] = 0.5",
            "    def forward(x: real[B, D]) -> real[B, D]:",
            "        q[c, h, t, e] = qkv(x)[t, (c:3, h:H, e:K)]",
            f"        s[h:H, t, j] = sum[e](q[0, h, t, e] * q[1, h, j, e]) / sqrt(K){causal}",
            f"        p = {self.draw.pick(('softmax(s, over=j)', 'softmax(s, over=-1)'))}",
            "        y[t, (h, e)] = sum[j](p[h, t, j] * q[2, h, j, e]) * gain[h, e]",
            "        return y",
            "",
        ]
        return name

    # ---- the export -----------------------------------------------------------------------------

    def export(self) -> Program:
        return Export(self).write()


DTYPES = ("f32", "f32", "f32", "f64", "f32")
KEPT = ("x", "h", "h2", "zm", "zs", "rows", "ce")  # always part of the loss
LARGE = (7, 9, 13, 16, 17, 24, 33)


@dataclass
class Export:
    """The export `f`: arguments, a body, a loss, gradients, storage, results."""

    file: Writer
    args: list[str] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    limits: dict[str, str] = field(default_factory=dict)
    results: list[tuple[str, str]] = field(default_factory=list)  # type, expression
    embedded: bool = False

    def write(self) -> Program:
        draw = self.file.draw
        self.width = str(draw.pick((2, 3, 4, 5, 8)))
        self.dtype = draw.pick(DTYPES)
        self.module = draw.chance(0.6) and self.dtype == "f32"
        self.image = self.dtype == "f32" and not self.module and draw.chance(0.25)
        self.arguments()
        body = Body(
            draw, self.file.names, self.values, ["B", "T", self.width], dtype=self.dtype,
            functions=tuple(self.file.functions), bang=True, positive=frozenset(("B", "T")),
        )  # fmt: skip
        inner = self.prepare(body)
        body.statements(draw.number(1, 4))
        self.ending(body, inner)
        return self.finish(body)

    def arguments(self) -> None:
        draw, d = self.file.draw, self.dtype
        self.tensor("x", d, ("B", self.width))
        self.tensor(
            "y", d, draw.pick((("B",), ("T", self.width), ("B", "T"), ("T + 1",), ("2*B", "T")))
        )
        if draw.chance(0.7):
            self.tensor(
                "at",
                "i32",
                draw.pick((("B",), ("T",), ("B", "T"))),
                draw.pick(("B", "T", self.width)),
            )
        if not any("T" in a for a in self.args):
            self.tensor("z", d, ("T",))
        if draw.chance(0.5):
            self.tensor(
                "extra",
                draw.pick(("bool", "u8", "i64", "i8", "bf16", "i32")),
                draw.pick((("B",), ("B", "T"))),
            )
        if draw.chance(0.3):
            self.tensor("buf", d, draw.pick((("B", self.width), ("T",))), inout=True)

    def tensor(
        self,
        name: str,
        dtype: str,
        shape: tuple[str, ...],
        limit: str | None = None,
        inout: bool = False,
    ) -> None:
        self.args.append(f"{'inout ' * inout}{name}: {dtype}[{', '.join(shape)}]")
        self.values.append(Value(name, dtype, shape, limit))
        if limit:
            self.limits[name] = limit

    def prepare(self, body: Body) -> str | None:
        """Calls of the module; gives the expression of its parameters' type."""
        draw = self.file.draw
        if buf := next((v for v in self.values if v.name == "buf"), None):
            body.storage.append(buf)
        if self.image:
            self.picture(body)
        if self.dtype == "f32" and draw.chance(0.25):
            self.table(body)
        if not self.module:
            return None
        self.net = f"{draw.pick(self.file.blocks)}({self.width})"
        self.args.insert(0, f"inout net: {self.net}")
        self.low = draw.chance(0.2)
        if self.low:
            body.add("low = cast(net, bf16)")
            body.assign("h", "f32(low!(bf16(x)))", "f32", ("B", self.width))
        else:
            body.assign(
                "h", draw.pick(("net!(x)", "net!(x)", "net!(tanh(x))")), "f32", ("B", self.width)
            )
        if not self.low and draw.chance(0.3):
            body.assign("h2", "net(h)", "f32", ("B", self.width))
            self.file.smooth &= not any(
                "stop(" in row for row in self.file.top
            )  # of what it reads again
        return self.net

    def table(self, body: Body) -> None:
        """Rows of a table, and the cross entropy of classes."""
        self.args += [f"inout emb: Embedding(6, {self.width})", "ids: i32[B]"]
        self.limits["ids"] = "6"
        body.assign("rows", "emb(ids)", "f32", ("B", self.width))
        body.add(f"ce = cross_entropy(rows + x, ids % {self.width})")
        body.keep(Value("ce", "f32", ()))
        self.embedded = True

    def picture(self, body: Body) -> None:
        """A small convolutional stretch of the library."""
        draw = self.file.draw
        stride, pad, k = draw.number(1, 2), draw.number(0, 1), draw.number(1, 3)
        self.args += [
            f"inout conv: Conv2d(2, 3, {k}, stride={stride}, pad={pad})",
            "inout bn: BatchNorm(3)",
            "img: f32[B, 2, T + 4, 6]",
        ]
        body.add("maps = bn!(conv!(img))")
        pool = draw.pick((None, "max_pool2d", "avg_pool2d"))
        if pool and k + 3 * stride - 2 * pad <= 6:
            body.add(f"maps = {pool}(relu(maps), 2, stride=1)")
        body.assign("zm", "mean(maps, over=3)[:, 0, 0]", "f32", ("B",))
        body.assign("zs", "mean(maps * maps)", "f32", ())

    def ending(self, body: Body, net: str | None) -> None:
        """The loss, its gradients, an optimizer, results."""
        draw = self.file.draw
        floats = [v for v in body.values if v.dtype == self.dtype]
        chosen = [v for v in floats if v.name in KEPT] + draw.several(
            [v for v in floats if v.name not in KEPT], 4
        )
        terms = [
            f"{draw.pick(('', '0.5 * '))}mean({draw.pick(('{0}', '{0} * {0}', 'tanh({0})')).format(v.name)})"
            for v in chosen
        ]
        body.add(f"loss = {' + '.join(terms)}")
        self.results.append((self.dtype, "loss"))
        self.gradients(body, net)
        last = draw.several([v for v in body.values if v.name != "extra"], 3)
        for v in last:
            self.results.append(
                (f"{v.dtype}[{', '.join(v.shape)}]" if v.shape else v.dtype, v.name)
            )

    def gradients(self, body: Body, net: str | None) -> None:
        draw = self.file.draw
        if self.embedded:
            body.add("ge, gs = grad(loss, [emb, x])")
            body.add("emb := emb - 0.1 * ge")
            self.results.append((f"f32[B, {self.width}]", "gs * 0.5"))
        if net:
            self.training(body, net)
        match draw.number(0, 4):
            case 1:
                body.add("gx = grad(loss, x)")
                self.results.append((f"{self.dtype}[B, {self.width}]", "gx"))
            case 2:
                y = next(v for v in self.values if v.name == "y")
                body.add("gx, gy = grad(loss, [x, y], missing=zero)")
                self.results.append((f"{self.dtype}[{', '.join(y.shape)}]", "gy + 0.0"))
                self.results.append((f"{self.dtype}[B, {self.width}]", "gx"))
            case 3:
                body.add("g1 = grad(loss, x)")
                body.add("slope = mean(g1 * g1) + mean(x * tanh(g1))")
                body.add("g2 = grad(slope, x)")
                self.results.append((f"{self.dtype}[B, {self.width}]", "g2"))
            case 4:
                inner = draw.pick(
                    [v for v in body.values if v.dtype == self.dtype and v.name not in ("x", "buf")]
                )
                body.add(f"gi = grad(loss, {inner.name}, missing=zero)")
                self.results.append(
                    (f"{self.dtype}[{', '.join(inner.shape)}]" if inner.shape else self.dtype, "gi")
                )

    def training(self, body: Body, net: str) -> None:
        draw = self.file.draw
        style = draw.number(0, 4)
        if style == 0:
            body.add("gn = norm(grad(loss, net))")
            self.file.smooth = False  # a gradient that cancels to zero is the corner of the norm
            self.results.append(("f32", "gn"))
            return
        body.add("g = grad(loss, net)")
        if style == 1:
            body.add("net := net - 0.1 * g")
            return
        opt = f"{draw.pick(OPTIMIZERS)}({net})"
        self.args.insert(1, f"inout opt: {opt}")
        self.args.append("lr: f32")
        step = draw.pick(("g", "clip_norm(g, 1.0)", "0.5 * g + 0.01 * net"))
        if style == 2:
            body.add(f"net := opt!(net, {step}, 0.01 * tanh(lr))")
        elif style == 3:
            body.rows("if finite(g):", [f"net := opt!(net, {step}, 0.01)"])
        else:
            body.add("acc = zeros_like(net)")
            body.rows("for a in 2:", ["acc = acc + (a + 1) * g"])
            body.add("net := opt!(net, acc / 3, 0.01)")

    def finish(self, body: Body) -> Program:
        types = ", ".join(t for t, _ in self.results)
        returned = ", ".join(e for _, e in self.results)
        types = f"({types})" if len(self.results) > 1 else types
        where = " where T > 2" if body.needs else ""
        rows = [
            f"export def f({', '.join(self.args)}) -> {types}{where}:",
            *body.lines,
            f"    return {returned}",
        ]
        text = "\n".join([*IMPORTS, "", *self.file.top, *rows]) + "\n"
        draw = self.file.draw
        small = {"B": draw.number(2, 4), "T": draw.number(3, 6)}
        large = {"B": draw.pick(LARGE), "T": draw.pick(LARGE)}
        return Program(text, (small, large), self.limits, self.file.smooth and body.smooth)


IMPORTS = (
    "from std.nn import Linear, LayerNorm, BatchNorm, Conv2d, Embedding, Dropout",
    "from std.nn import relu, gelu, silu, softplus, elu, leaky_relu, max_pool2d, avg_pool2d",
    "from std.loss import cross_entropy, mse, mae, bce_with_logits",
    "from std.optim import SGD, Adam, AdamW, clip_norm",
)


def program(rng: random.Random) -> Program:
    """One random program."""
    file = Writer(Draw(rng))
    for _ in range(file.draw.number(0, 2)):
        file.function()
    for _ in range(file.draw.number(1, 2)):
        file.module()
    return file.export()
