"""Random well-typed programs in index notation, as source text: every read is inside by construction."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

SIZES = ("A", "B", "C")
UNARY = ("tanh", "sigmoid", "sin", "cos", "abs", "exp", "erf", "sqrt", "log1p")
REDUCTIONS = ("sum", "sum", "sum", "mean", "max", "min", "logsumexp", "prod")
LETTERS = "ijkuvw"


@dataclass
class Tensor:
    name: str
    shape: tuple[str, ...]


@dataclass
class Program:
    """Source lines under construction."""

    rng: random.Random
    tensors: list[Tensor] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def shape(self) -> tuple[str, ...]:
        return tuple(self.rng.choice(SIZES) for _ in range(self.rng.choice((0, 1, 1, 2, 2, 3))))

    def letters(self, n: int, taken: str = "") -> list[str]:
        return self.rng.sample([c for c in LETTERS if c not in taken], n)

    # ---- expressions ----------------------------------------------------------------------------
    def read(self, bound: dict[str, str]) -> str:
        """A read of some tensor at the bound indices (letter -> size), or a number."""
        t = self.rng.choice(self.tensors)
        items, guard = [], ""
        for size in t.shape:
            fitting = [i for i, s in bound.items() if s == size]
            if fitting and self.rng.random() < 0.75:
                i = self.rng.choice(fitting)
                kind = self.rng.random()
                if kind < 0.7:
                    items.append(i)
                elif kind < 0.8:
                    items.append(f"{size} - 1 - {i}")
                else:
                    other = self.rng.choice(list(bound))
                    items.append(f"{i} + {other} - {self.rng.randint(0, 2)}")
                    guard = f" else {self.rng.choice(('0', '1.5', '-0.5'))}"
            elif bound and self.rng.random() < 0.4:
                items.append(f"{self.rng.choice(list(bound))} * 2 - 1")
                guard = " else 0"
            else:
                items.append("0")
        return f"{t.name}[{', '.join(items)}{guard}]" if items else t.name

    def expr(self, bound: dict[str, str], depth: int) -> str:
        roll = self.rng.random()
        if depth == 0 or roll < 0.2:
            return self.read(bound)
        if roll < 0.55:
            op = self.rng.choice(("+", "-", "*", "*", "/"))
            a, b = self.expr(bound, depth - 1), self.expr(bound, depth - 1)
            return f"({a}) / (2 + abs({b}))" if op == "/" else f"({a}) {op} ({b})"
        if roll < 0.75:
            return self.unary(self.rng.choice(UNARY), self.expr(bound, depth - 1))
        if roll < 0.85:
            return self.conditional(bound, depth)
        return self.reduction(bound, depth)

    def unary(self, f: str, x: str) -> str:
        if f == "exp":
            return f"exp(tanh({x}))"
        if f == "sqrt":
            return f"sqrt(1 + ({x})**2)"
        if f == "log1p":
            return f"log1p(abs({x}))"
        return f"{f}({x})"

    def conditional(self, bound: dict[str, str], depth: int) -> str:
        a, b = self.expr(bound, depth - 1), self.expr(bound, depth - 1)
        if bound and self.rng.random() < 0.6:
            i, j = self.rng.choice(list(bound)), self.rng.choice(list(bound))
            cond = f"{i} <= {j} + {self.rng.randint(0, 2)}"
        else:
            cond = f"{self.read(bound)} > 0.1"
        return f"(({a}) if {cond} else ({b}))"

    def reduction(self, bound: dict[str, str], depth: int) -> str:
        free = [c for c in LETTERS if c not in bound]
        if not free:
            return self.read(bound)
        chosen = self.rng.sample(free, min(len(free), self.rng.choice((1, 1, 2))))
        inner = {i: self.rng.choice(SIZES) for i in chosen}
        names = ", ".join(f"{i}:{s}" for i, s in inner.items())
        op = self.rng.choice(REDUCTIONS)
        body = self.expr({**bound, **inner}, depth - 1)
        if op == "prod":
            body = f"1 + 0.1 * tanh({body})"
        return f"{op}[{names}]({body})"

    # ---- statements -----------------------------------------------------------------------------
    def statement(self, number: int) -> None:
        shape = self.shape()
        name = f"t{number}"
        if not shape:
            self.lines.append(f"{name} = {self.scalar()}")
        else:
            letters = self.letters(len(shape))
            bound = dict(zip(letters, shape, strict=True))
            left = ", ".join(f"{i}:{s}" for i, s in bound.items())
            self.lines.append(f"{name}[{left}] = {self.expr(bound, 3)}")
        self.tensors.append(Tensor(name, shape))

    def scalar(self) -> str:
        return f"tanh({self.reduction({}, 3)})"


def generate(rng: random.Random) -> str:
    """An export `f(x, y, z)` that returns a loss, its gradients, and the last tensor."""
    p = Program(rng)
    inputs = [Tensor("x", ("A", "B")), Tensor("y", ("B", "C")), Tensor("z", ("C", "A"))]
    p.tensors = list(inputs)
    for number in range(rng.randint(1, 4)):
        p.statement(number)
    last = p.tensors[-1]
    total = " + ".join(f"mean({t.name})" for t in p.tensors)
    args = ", ".join(f"{t.name}: f32[{', '.join(t.shape)}]" for t in inputs)
    out = f"f32[{', '.join(last.shape)}]" if last.shape else "f32"
    grads = ", ".join(f"f32[{', '.join(t.shape)}]" for t in inputs)
    lines = [f"export def f({args}) -> (f32, {grads}, {out}):"]
    lines += [f"    {line}" for line in p.lines]
    lines.append(f"    loss = {total}")
    lines.append("    gx, gy, gz = grad(loss, [x, y, z])")
    lines.append(f"    return loss, gx, gy, gz, {last.name}")
    return "\n".join(lines) + "\n"
