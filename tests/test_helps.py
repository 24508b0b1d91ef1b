"""Newcomers' mistakes: one message each with the right code, and the help, applied, compiles.

A row is a wrong program, with `<<...>>` around the place that the message must name, the code, and
how the help is taken: its first text in backquotes replaces the place (`here`),
or what the row says (another text of the program); an import goes to the top.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from nnc.diagnostics import Diagnostic
from tests.frontend import front

NET = """
module Net(D=4):
    fc = Linear(D, 2)
    def forward(x: real[B, D]) -> real[B, 2] = fc(x)
"""
LINEAR = "from std.nn import Linear\n"
STEP = """from mlp import MLP
from std.optim import SGD
from std.loss import cross_entropy
export def step(inout net: MLP, inout opt: SGD(MLP), x: f32[B, 64], y: i32[B], lr: f32) -> f32:
    loss = cross_entropy(net!(x), y)
"""


@dataclass(frozen=True)
class Case:
    """A wrong program; `take`: what of the program the help replaces."""

    name: str
    code: str
    text: str
    take: str = "here"


def f(name: str, code: str, signature: str, body: str, take: str = "here", top: str = "") -> Case:
    """A case that is one function."""
    rows = "".join(f"    {row}\n" for row in body.splitlines())
    return Case(name, code, f"{top}def f({signature}:\n{rows}", take)


CASES = [
    f("relu as a method", "E0804", "x: real[B]) -> real[B]", "return x.<<relu>>()", "x.relu()",
      "from std.nn import relu\n"),
    f("torch.exp", "E0801", "x: real[B]) -> real[B]", "return <<torch>>.exp(x)", "torch.exp(x)"),
    f("np.mean", "E0801", "x: real[B, D]) -> real[B]", "return <<np>>.mean(x, axis=1)",
      "np.mean(x, axis=1)"),
    f("F.softmax", "E0801", "x: real[B, D]) -> real[B, D]", "return <<F>>.softmax(x, dim=-1)",
      "F.softmax(x, dim=-1)"),
    f("sum by dim", "E0804", "x: real[B, D]) -> real[B]", "return x.<<sum>>(dim=1)",
      "x.sum(dim=1)"),
    f("mean by position", "E0804", "x: real[B, D]) -> real[B]", "return x.<<mean>>(1)",
      "x.mean(1)"),
    f("dim for over", "E0802", "x: real[B, D]) -> real[B]", "return sum(x, <<dim>>=1)", "dim=1"),
    f("keepdims", "E0802", "x: real[B, D]) -> real[B, 1]",
      "return sum(x, over=D, <<keepdims>>=true)", "keepdims=true"),
    f("softmax without axis", "E0802", "x: real[B, D]) -> real[B, D]", "return <<softmax(x)>>"),
    f("matmul", "E0801", "x: real[B, D], w: real[D, C]) -> real[B, C]",
      "return <<matmul>>(x, w)", "matmul(x, w)"),
    f("clamp", "E0801", "x: real[B]) -> real[B]", "return <<clamp>>(x, 0, 1)", "clamp(x, 0, 1)"),
    f("pow", "E0804", "x: real[B]) -> real[B]", "return x.<<pow>>(2)", "x.pow(2)"),
    f("square", "E0801", "x: real[B]) -> real[B]", "return <<np>>.square(x)", "np.square(x)"),
    f("maximum", "E0801", "x: real[B]) -> real[B]", "return <<np>>.maximum(x, 0)",
      "np.maximum(x, 0)"),
    f("ln", "E0801", "x: real[B]) -> real[B]", "return <<ln>>(x)", "ln(x)"),
    f("std", "E0801", "x: real[B, D]) -> real[B]", "return <<std>>(x, axis=1)", "std(x, axis=1)"),
    f("cat", "E0801", "x: real[B], y: real[C]) -> real[B+C]",
      "return <<torch>>.cat([x, y], dim=0)", "torch.cat([x, y], dim=0)"),
    f("concat of a list", "E0802", "x: real[B], y: real[C]) -> real[B+C]",
      "return <<concat([x, y], over=0)>>"),
    f("zeros as a call", "E0802", "x: real[B]) -> real[B]", "return x + <<zeros(B)>>"),
    f("torch.zeros", "E0801", "x: real[B]) -> real[B]", "return x + <<torch>>.zeros(B)",
      "torch.zeros(B)"),
    f("randn", "E0801", "x: real[B]) -> real[B]", "return x + <<randn>>(B)", "randn(B)"),
    f("shape not a list", "E0802", "x: real[B]) -> real[B]", "return x + normal!(<<B>>)"),
    f("length", "E0801", "x: real[B]) -> real", "return sum(x) / <<len>>(x)", "len(x)"),
    f("size method", "E0804", "x: real[B, D]) -> real", "return sum(x) / x.<<size>>(1)",
      "x.size(1)"),
    f("shape", "E0804", "x: real[B]) -> real", "return sum(x) / x.<<shape>>[0]", "x.shape[0]"),
    f("float()", "E0801", "n: i32[B]) -> real[B]", "return <<float>>(n)", "float(n)"),
    f("astype", "E0804", "n: i32[B]) -> f32[B]", "return n.<<astype>>(f32)", "n.astype(f32)"),
    f("unsqueeze", "E0804", "x: real[B, D]) -> real[B, 1, D]", "return x.<<unsqueeze>>(1)",
      "x.unsqueeze(1)"),
    f("squeeze", "E0804", "x: real[B, 1]) -> real[B]", "return x.<<squeeze>>(-1)",
      "x.squeeze(-1)"),
    f("caret", "E0115", "x: real[B]) -> real[B]", "return x <<^>> 2"),
    f("and", "E0115", "x: real) -> real", "return x if x > 0 <<&&>> x < 1 else 0"),
    f("True", "E0116", "x: real[B]) -> real[B]", "return x * 2 if <<True>> else x"),
    f("sum of bools", "E0203", "x: real[B]) -> real", "return sum(<<x > 0>>)"),
    f("mask times", "E0201", "x: real[B]) -> real[B]", "return <<(x > 0) * x>>", "(x > 0)"),
    f("integer times float", "E0201", "n: i32[B], x: real[B]) -> real[B]", "return <<x * n>>",
      "n\n"),
    f("sqrt of integers", "E0203", "n: i32[B]) -> real[B]", "return sqrt(<<n>>)"),
    f("condition of a tensor", "E0203", "x: real[B]) -> real[B]", "return x if <<x > 0>> else -x",
      "x if x > 0 else -x"),
    f("number as condition", "E0203", "x: real, n: i32) -> real", "if <<n>>:\n    x = 2 * x\nreturn x"),
    f("== for =", "E0114", "x: real[B]) -> real[B]", "<<y == exp(x)>>\nreturn y"),
    f("column", "E0304", "x: real[B, 1], y: real[B]) -> real[B]", "return <<x - y>>"),
    f("row", "E0302", "x: real[B, D], s: real[B]) -> real[B, D]", "return <<x * s>>", "s\n"),
    f("star for matmul", "E0302", "x: real[B, D], w: real[D, C]) -> real[B, C]",
      "return <<x * w>>"),
    f("transposed weights", "E0307", "x: real[B, D], w: real[C, D]) -> real[B, C]",
      "return <<x @ w>>"),
    f("batched product", "E0307", "q: real[B, T, C], k: real[B, T, C]) -> real[B, T, T]",
      "return <<q @ k>>", "return q @ k"),
    f("transposing three axes", "E0308", "x: real[B, C, D]) -> real[B, D, C]", "return <<x.T>>",
      "return x.T"),
    f("flatten", "E0804", "x: real[B, C, D]) -> real[B, C*D]", "return x.<<view>>(B, -1)",
      "return x.view(B, -1)"),
    f("permute", "E0804", "x: real[B, H, W, C]) -> real[B, C, H, W]",
      "return x.<<permute>>(0, 3, 1, 2)", "return x.permute(0, 3, 1, 2)"),
    f("one-hot", "E0801", "t: i32[B]) -> real[B, 10]", "return <<one_hot>>(t, 10)",
      "return one_hot(t, 10)"),
    f("window", "E0402", "x: real[T]) -> real[T]", "y[t] = x[t] - x[<<t-1>>]\nreturn y", "x[t-1]"),
    f("convolution", "E0401", "x: real[T], k: real[K]) -> real[T-K+1]",
      "y[<<t>>] = sum[j](x[t+j] * k[j])\nreturn y"),
    f("pooling", "E0401", "x: real[T]) -> real[T//2]",
      "y[<<t>>] = max(x[2*t], x[2*t+1])\nreturn y"),
    f("mistyped index", "E0401", "x: real[B, D]) -> real[B]",
      "y[b] = sum[d](x[b, <<e>>])\nreturn y"),
    f("index of -1", "E0401", "x: real[B, D]) -> real[B, D]",
      "y[b, <<d>>] = x[b, -1]\nreturn y"),
    f("lower-case size", "E0309", "x: real[B, <<n>>]) -> real[B]", "return sum(x, over=1)"),
    f("any axes", "E0309", "x: real[<<...>>]) -> real", "return sum(x)"),
    f("forgotten return", "E0810", "x: real[B]) -> real[B]", "exp(x)", "exp(x)"),
    f("mistyped variable", "E0801", "x: real[B]) -> real[B]", "hidden = exp(x)\nreturn <<hiden>>"),
    f("mistyped function", "E0801", "x: real[B]) -> real[B]", "return <<sigmod>>(x)"),
    f("two positions", "E0811", "x: real[2, B]) -> real[B]", "a, b = <<x>>\nreturn a + b"),
    f("two results", "E0802", "x: real[B], y: real[B]) -> real[B]",
      "s = sum(x * y)\na, b = <<grad(s, x, y)>>\nreturn a + b"),
    f("tuple in grad", "E0605", "x: real[B], y: real[B]) -> real[B]",
      "s = sum(x * y)\na, b = grad(s, <<(x, y)>>)\nreturn a + b"),
    f("vector in grad", "E0603", "x: real[B]) -> real[B]", "y = x * x\nreturn grad(<<y>>, x)"),
    f("range", "E0801", "x: real[B]) -> real[B]",
      "for i in <<range>>(10):\n    x = 0.5 * x\nreturn x", "for i in range(10):"),
    f("range of other languages", "E0116", "x: real[T, B]) -> real[B]",
      "h = zeros[B]\nfor t in 0<<..>>T:\n    h = h + x[t]\nreturn h", "for t in 0..T:"),
    f("increment", "E0115", "x: real[B], T: dim) -> i32", "n = 0\nfor t in T:\n    n<<++>>\nreturn n",
      "n++"),
    Case("Linear without import", "E0801", NET.replace("Linear", "<<Linear>>"), "import"),
    Case("nn.Linear", "E0801", LINEAR + NET.replace("Linear", "<<nn>>.Linear"), "nn.Linear(D, 2)"),
    Case("bias", "E0802", LINEAR + NET.replace("2)\n", "2, <<bias>>=false)\n"), "bias=false"),
    Case("in_features", "E0802", LINEAR + NET.replace("(D, 2)", "(<<in_features>>=D, O=2)"),
         "in_features=D"),
    Case("no initial value", "E0813",
         "module M:\n    param <<w>>: f32[3]\n    def forward(x: f32[3]) -> f32[3] = x * w\n",
         "param w: f32[3]"),
    Case("no initial state", "E0813",
         "module M:\n    state <<n>>: i32\n    def forward(x: f32[3]) -> f32[3] = x * f32(n)\n",
         "state n: i32"),
    Case("mean and deviation", "E0802",
         "module M:\n    param w: f32[3] = <<normal(0, 0.1)>>\n"
         "    def forward(x: f32[3]) -> f32[3] = x * w\n"),
    Case("optimizer without !", "E0502", STEP +
         "    net := <<opt>>(net, grad(loss, net), lr)\n    return loss\n",
         "opt(net, grad(loss, net), lr)"),
    Case("net with =", "E0503", STEP +
         "    <<net>> = opt!(net, grad(loss, net), lr)\n    return loss\n", "net ="),
    Case("read-only optimizer", "E0501", STEP.replace("inout opt", "opt") +
         "    net := <<opt>>!(net, grad(loss, net), lr)\n    return loss\n", "opt: SGD(MLP)"),
    Case("labels first", "E0201", STEP.replace("(net!(x), y)", "(<<y>>, net!(x))") +
         "    net := opt!(net, grad(loss, net), lr)\n    return loss\n",
         "cross_entropy(y, net!(x))"),
    Case("one-hot labels", "E0201",
         STEP.replace("y: i32[B]", "y: f32[B, 10]").replace("!(x), y)", "!(x), <<y>>)") +
         "    net := opt!(net, grad(loss, net), lr)\n    return loss\n"),
    Case("prediction in a column", "E0301", LINEAR + "from std.loss import mse\n"
         "export def f(net: Linear(4, 1), x: f32[B, 4], y: f32[B]) -> f32 = mse(net(x), <<y>>)\n",
         "net(x)"),
    Case("a channel is missing", "E0308", "from std.nn import Conv2d\nmodule M:\n"
         "    conv = Conv2d(1, 8, 3)\n"
         "    def forward(x: real[B, 28, 28]) -> real[B, 8, 26, 26] = conv(<<x>>)\n"),
    Case("noise without !", "E0502", "def noisy(x: real[B]) -> real[B] = x + normal!([B])\n"
         "export def f(x: f32[B]) -> f32[B] = <<noisy>>(x)\n", "= noisy(x)"),
]  # fmt: skip


def marked(text: str) -> tuple[str, tuple[int, int] | None]:
    """The program without marks, and the line and column of the marked place."""
    before, mark, _ = text.partition("<<")
    place = (before.count("\n") + 1, len(before) - before.rfind("\n")) if mark else None
    return text.replace("<<", "").replace(">>", ""), place


def followed(case: Case, text: str, d: Diagnostic) -> str:
    """The program with the help taken."""
    assert d.help is not None, d
    new = re.findall(r"`([^`]*)`", d.help)[0]
    if case.take == "import":
        return f"{new}\n{text}"
    if case.take == "here":
        rows = text.split("\n")
        row = rows[d.at.line - 1]
        rows[d.at.line - 1] = row[: d.at.column - 1] + new + row[d.at.end_column - 1 :]
        return "\n".join(rows)
    old = case.take.removesuffix("\n").removeprefix("= ")
    if re.match(r"\w+(\[[^=]*\])? = ", new) and old.startswith("return "):
        name = new.partition("[")[0]
        return text.replace(old, f"{new}\n    return {name}")
    assert text.count(old) >= 1
    at = (
        text.rfind(old)
        if case.take.startswith("= ") or case.take.endswith("\n")
        else text.find(old)
    )
    return text[:at] + new.removesuffix(" ...") + text[at + len(old) :]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_one_message_at_the_place(case: Case) -> None:
    text, place = marked(case.text)
    done = front(text)
    (d,) = done.diagnostics.errors
    assert d.code == case.code, done.text
    assert place is None or (d.at.line, d.at.column) == place, done.text


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_the_help_is_a_program(case: Case) -> None:
    text, _ = marked(case.text)
    (d,) = front(text).diagnostics.errors
    right = followed(case, text, d)
    after = front(right)
    assert not after.diagnostics.errors, f"{d}\n\n{right}\n\n{after.text}"
