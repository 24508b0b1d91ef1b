"""Random expressions of index notation, valid by construction: every read is inside or has an `else`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")
UNARY = (
    "abs",
    "tanh",
    "sigmoid",
    "sin",
    "cos",
    "erf",
    "exp",
    "sqrt",
    "log1p",
    "rsqrt",
    "square",
    "atan",
    "log",
    "expm1",
)
REDUCTIONS = (
    "sum",
    "sum",
    "sum",
    "mean",
    "max",
    "min",
    "logsumexp",
    "prod",
    "argmax",
    "argmin",
    "any",
    "all",
)
LETTERS = "ijkuvw"
INTEGERS = ("i32", "i64", "u8", "i8")


@dataclass(frozen=True)
class Value:
    """Something with a name in scope. `limit`: integers lie in 0 ... limit - 1."""

    name: str
    dtype: str
    shape: tuple[str, ...]
    limit: str | None = None
    letters: tuple[str, ...] = ()


@dataclass
class Draw:
    """Choices; the first alternative is the simplest, so that hypothesis shrinks towards it."""

    rng: random.Random

    def pick(self, options: Sequence[T]) -> T:
        return options[self.rng.randrange(len(options))]

    def chance(self, p: float) -> bool:
        return self.rng.random() > 1 - p

    def number(self, low: int, high: int) -> int:
        return self.rng.randint(low, high)

    def several(self, options: Sequence[T], n: int) -> list[T]:
        rest, out = list(options), []
        for _ in range(min(n, len(rest))):
            out.append(rest.pop(self.rng.randrange(len(rest))))
        return out


def applied(fn: str, x: str) -> str:
    """A scalar function on a domain where it is smooth and bounded."""
    match fn:
        case "exp" | "expm1":
            return f"{fn}(tanh({x}))"
        case "sqrt" | "rsqrt" | "log":
            return f"{fn}(1 + ({x})**2)"
        case "log1p":
            return f"log1p(abs({x}))"
        case "square":
            return f"tanh({x})**2"
    return f"{fn}({x})"


@dataclass
class Elements:
    """Expressions for one element. `bound`: each index and its size; packs as `..n` of `..N`."""

    draw: Draw
    values: Sequence[Value]
    dtype: str
    sizes: Sequence[str]
    positive: frozenset[str] = field(default_factory=frozenset)  # sizes known to be at least 1

    def readable(self, bound: dict[str, str]) -> list[Value]:
        packs = set(bound.values())
        return [v for v in self.values if v.dtype == self.dtype and self._fits(v, packs)]

    def _fits(self, v: Value, packs: set[str]) -> bool:
        return all(not s.startswith("..") or s in packs for s in v.shape)

    def read(self, bound: dict[str, str], value: Value | None = None) -> str:
        options = self.readable(bound)
        if value is None:
            if not options:
                return self.draw.pick(("0.5", "1.5", "-0.25"))
            value = self.draw.pick(options)
        items: list[str] = []
        guarded = False
        for size in value.shape:
            item, inside = self.item(size, bound)
            items.append(item)
            guarded |= not inside
        if not items:
            return value.name
        otherwise = f" else {self.draw.pick(('0', '1.5', '-0.5'))}" if guarded else ""
        return f"{value.name}[{', '.join(items)}{otherwise}]"

    def item(self, size: str, bound: dict[str, str]) -> tuple[str, bool]:
        """An index into an axis, and whether it is provably inside."""
        if size.startswith(".."):
            return next(i for i, s in bound.items() if s == size), True
        fits = [i for i, s in bound.items() if s == size and not i.startswith("..")]
        plain = [i for i in bound if not i.startswith("..")]
        if fits and self.draw.chance(0.85):
            i = self.draw.pick(fits)
            return (f"{size} - 1 - {i}", True) if self.draw.chance(0.12) else (i, True)
        if special := self._composite(size, bound):
            return special
        if plain and self.draw.chance(0.5):
            return self._affine(size, plain)
        if size == "1" or size in self.positive or size.isdigit():
            return "0", True
        return "0", False

    def _composite(self, size: str, bound: dict[str, str]) -> tuple[str, bool] | None:
        """`T + 1` read at `t + c`, `2*B` at `2*b + c` or as two digits."""
        for i, s in bound.items():
            if size == f"{s} + 1":
                return f"{i} + {self.draw.number(0, 1)}", True
            if size == f"2*{s}":
                return self.draw.pick(
                    (f"2*{i}", f"2*{i} + 1", f"({self.draw.number(0, 1)}, {i}:{s})", f"{i} + {s}")
                ), True
        return None

    def _affine(self, size: str, plain: list[str]) -> tuple[str, bool]:
        whole = [v for v in self.values if v.dtype == "i32" and not v.shape]
        a, b = self.draw.pick(plain), self.draw.pick(plain)
        options = [
            f"{a} + {b} - {self.draw.number(0, 2)}",
            f"{a} - {self.draw.number(1, 2)}",
            f"2*{a} - 1",
        ]
        if whole:
            options.append(self.draw.pick(whole).name)
        vectors = [
            v
            for v in self.values
            if v.dtype == "i32" and len(v.shape) == 1 and not v.shape[0].startswith("..")
        ]
        known = [v for v in vectors if v.limit == size]
        if known and self.draw.chance(0.8):
            v = self.draw.pick(known)
            return f"{v.name}[0]" if v.shape[0].isdigit() else f"{v.name}[0 else 0]", True
        return self.draw.pick(options), False

    def gather(self, bound: dict[str, str]) -> str | None:
        """A read at an index from data that lies inside by its limit."""
        indices = [
            v
            for v in self.values
            if v.limit and v.dtype in ("i32", "i64") and self._direct(v, bound)
        ]
        options = [(v, k) for v in self.readable(bound) for k in indices if k.limit in v.shape]
        if not options:
            return None
        v, k = self.draw.pick(options)
        at = v.shape.index(k.limit or "")
        row = [self.item(s, bound) for s in v.shape]
        pieces = [self.direct(k, bound) if n == at else text for n, (text, _) in enumerate(row)]
        guard = " else 0.5" if any(not ok for n, (_, ok) in enumerate(row) if n != at) else ""
        return f"{v.name}[{', '.join(pieces)}{guard}]"

    def _direct(self, v: Value, bound: dict[str, str]) -> bool:
        return all(s in bound.values() for s in v.shape)

    def direct(self, v: Value, bound: dict[str, str]) -> str:
        """A read at bare indices only."""
        items = [next(i for i, b in bound.items() if b == s) for s in v.shape]
        return f"{v.name}[{', '.join(items)}]" if items else v.name

    # ---- expressions ----------------------------------------------------------------------------

    def expr(self, bound: dict[str, str], depth: int) -> str:
        if depth == 0 or self.draw.chance(0.2):
            return self.read(bound)
        form = self.draw.pick(
            (
                self.binary,
                self.function,
                self.conditional,
                self.reduction,
                self.reduction,
                self.leaf,
            )
        )
        return form(bound, depth - 1)

    def binary(self, bound: dict[str, str], depth: int) -> str:
        op = self.draw.pick(("+", "-", "*", "*", "/", "max", "**", "same"))
        a, b = self.expr(bound, depth), self.expr(bound, depth)
        match op:
            case "/":
                return f"({a}) / (2 + abs({b}))"
            case "max":
                return f"{self.draw.pick(('max', 'min'))}({a}, {b})"
            case "same":  # what must not be simplified where it is not finite
                return self.draw.pick((f"({a}) - ({a})", f"0 * ({a})", f"({a}) + 0.5 - ({a})"))
            case "**":
                return f"tanh({a})**{self.draw.number(2, 3)}"
        return f"({a}) {op} ({b})"

    def function(self, bound: dict[str, str], depth: int) -> str:
        return applied(self.draw.pick(UNARY), self.expr(bound, depth))

    def conditional(self, bound: dict[str, str], depth: int) -> str:
        return f"(({self.expr(bound, depth)}) if {self.condition(bound)} else ({self.expr(bound, depth)}))"

    def condition(self, bound: dict[str, str]) -> str:
        plain = [i for i in bound if not i.startswith("..")]
        one = f"{self.read(bound)} > 0.1"
        if plain and self.draw.chance(0.6):
            one = f"{self.draw.pick(plain)} {self.draw.pick(('<=', '<', '!=', '=='))} {self.draw.pick(plain)} + {self.draw.number(0, 2)}"
        flags = [v for v in self.values if v.dtype == "bool" and self._direct(v, bound)]
        if flags and self.draw.chance(0.5):
            one = self.draw.pick(("{}", "not {}")).format(self.direct(self.draw.pick(flags), bound))
        if self.draw.chance(0.2):
            return f"({one}) {self.draw.pick(('and', 'or'))} not ({self.read(bound)} < 0.3)"
        return one

    def leaf(self, bound: dict[str, str], depth: int) -> str:
        """What is not a plain read: an index as a number, a gather, an integer tensor."""
        plain = [i for i in bound if not i.startswith("..")]
        found = self.gather(bound)
        if found and self.draw.chance(0.6):
            return found
        integers = [
            v for v in self.values if v.dtype in (*INTEGERS, "bool") and self._direct(v, bound)
        ]
        if integers and self.draw.chance(0.6):
            v = self.draw.pick(integers)
            k = self.direct(v, bound)
            if v.dtype == "i32" and self.draw.chance(0.5):
                k = self.draw.pick(
                    (
                        f"{k} // 2",
                        f"{k} % 3",
                        f"{k} * 3 - 1",
                        f"min({k}, 2)",
                        f"bitand({k}, 3)",
                        f"abs({k})",
                    )
                )
            return f"0.1 * {self.dtype}({k})"
        if plain:
            return f"0.1 * {self.dtype}({self.draw.pick(plain)} + 1)"
        return self.read(bound)

    def reduction(self, bound: dict[str, str], depth: int) -> str:
        free = [c for c in LETTERS if c not in bound]
        if not free or not self.sizes:
            return self.read(bound)
        chosen = self.draw.several(free, self.draw.pick((1, 1, 2)))
        op = self.draw.pick(REDUCTIONS)
        inner = {
            i: self.draw.pick(self.sizes) for i in (chosen[:1] if op.startswith("arg") else chosen)
        }
        names = ", ".join(f"{i}:{s}" for i, s in inner.items())
        everything = {**bound, **inner}
        if op in ("any", "all"):
            return f"{self.dtype}(0.7 if {op}[{names}]({self.condition(everything)}) else -0.2)"
        body = self.expr(everything, depth)
        if op in ("argmax", "argmin"):
            return f"0.1 * {self.dtype}({op}[{names}]({body}))"
        if op == "prod":
            body = f"1 + 0.1 * tanh({body})"
        if op == "sum":
            body = self.draw.pick(
                (f"0.3 * ({body})", f"({self.expr(everything, 0)}) * ({self.expr(everything, 0)})")
            )
        return f"{op}[{names}]({body})"
