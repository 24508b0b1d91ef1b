"""Random statements: whole tensors, index notation, loops, branches, storage, gradients inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tests.random_elements import INTEGERS, LETTERS, Draw, Elements, Value, applied

Shape = tuple[str, ...]
WHOLE = ("tanh", "sigmoid", "sin", "cos", "abs", "exp", "sqrt", "log1p", "erf", "square")


@dataclass(frozen=True)
class Callee:
    """A function: the rank of its argument (with `pack`: at least), what else it takes or gives."""

    name: str
    rank: int
    pack: bool
    shrinks: int | None = None  # how much shorter the last axis of the result is
    pair: bool = False
    inout: bool = False


@dataclass
class Names:
    """Fresh names; modules that take exactly two axes."""

    counts: dict[str, int] = field(default_factory=dict)
    rank_two: set[str] = field(default_factory=set)

    def fresh(self, stem: str) -> str:
        self.counts[stem] = self.counts.get(stem, 0) + 1
        return f"{stem}{self.counts[stem]}"


@dataclass
class Body:
    """Lines under construction. `bang`: random numbers may be drawn. `needs`: T > 2 was used."""

    draw: Draw
    names: Names
    values: list[Value]
    sizes: list[str]
    dtype: str = "f32"
    functions: tuple[Callee, ...] = ()
    bang: bool = False
    positive: frozenset[str] = frozenset()
    level: int = 1
    storage: list[Value] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    smooth: bool = True
    needs: bool = False
    nested: int = 0

    # ---- writing --------------------------------------------------------------------------------

    def add(self, row: str) -> None:
        self.lines.append("    " * self.level + row)

    def rows(self, head: str, rows: Sequence[str]) -> None:
        self.add(head)
        for row in rows:
            self.lines.append("    " * (self.level + 1) + row)

    def assign(self, name: str, text: str, dtype: str, shape: Shape, **more: str) -> Value:
        self.add(f"{name} = {text}")
        return self.keep(Value(name, dtype, shape, **more))  # type: ignore[arg-type]

    def keep(self, value: Value) -> Value:
        self.values = [v for v in self.values if v.name != value.name] + [value]
        return value

    def fresh(self) -> str:
        return self.names.fresh("t")

    # ---- choosing -------------------------------------------------------------------------------

    def floats(self, shape: Shape | None = None) -> list[Value]:
        return [v for v in self.values if v.dtype == self.dtype and shape in (None, v.shape)]

    def some(self, rank: int = 0) -> Value | None:
        options = [v for v in self.floats() if len(v.shape) >= rank]
        return self.draw.pick(options) if options else None

    def of(self, shape: Shape) -> str:
        """An expression of that shape, of a value late in the text if there is one."""
        found = self.floats(shape)
        return found[-1].name if found else self.stretched(shape)

    def stretched(self, shape: Shape) -> str:
        """Anything stretched to a shape."""
        if not shape:
            v = self.some()
            return f"mean({v.name})" if v else "0.5"
        return f"({self.partner(shape)} + zeros[{', '.join(shape)}])"

    def partner(self, shape: Shape) -> str:
        """Something that combines with a shape: its end, a scalar, a literal 1."""
        ends = [
            v.name
            for v in self.floats()
            if len(v.shape) < len(shape) and v.shape == shape[len(shape) - len(v.shape) :]
        ]
        ends += [
            f"mean({v.name}, over={n}, keep=true)"
            for v in self.floats(shape)
            for n in self._single(shape)
        ]
        ends += [
            f"{v.name}[:, None]"
            for v in self.floats()
            if len(shape) == 2 and v.shape == shape[:1] and shape[0][0] != "."
        ]
        return self.draw.pick(ends) if ends else self.draw.pick(("0.5", "1.5"))

    def _single(self, shape: Shape) -> list[int]:
        """Axes that can be named by number: a pack has no number."""
        return [] if any(s.startswith("..") for s in shape) else list(range(len(shape)))

    # ---- whole tensors --------------------------------------------------------------------------

    def whole(self, shape: Shape, depth: int) -> str:
        same = self.floats(shape)
        if depth == 0 or not same or self.draw.chance(0.2):
            return self.draw.pick(same).name if same else self.stretched(shape)
        a = self.whole(shape, depth - 1)
        match self.draw.number(0, 6):
            case 0:
                return f"({a} {self.draw.pick(('+', '-', '*'))} {self.whole(shape, depth - 1)})"
            case 1:
                return applied(self.draw.pick(WHOLE), a)
            case 2:
                return f"({a} {self.draw.pick(('+', '-', '*'))} {self.partner(shape)})"
            case 3:
                return f"{a} / (2 + abs({self.whole(shape, depth - 1)}))"
            case 4:
                op = self.draw.pick(("<", ">=", "!="))
                return f"where({a} {op} {self.partner(shape)}, {self.whole(shape, depth - 1)}, {self.draw.pick(('0', '0.5', a))})"
            case 5:
                self.smooth = False
                return f"({a} + stop({self.whole(shape, depth - 1)}))"
        return f"{self.draw.pick(('max', 'min'))}({a}, {self.partner(shape)})"

    # ---- statements -----------------------------------------------------------------------------

    def statements(self, count: int) -> None:
        for _ in range(count):
            self.statement()

    def statement(self) -> None:
        forms = [
            self.elementwise,
            self.indexed,
            self.indexed,
            self.indexed,
            self.reduced,
            self.sliced,
            self.product,
        ]
        forms += [
            self.integers,
            self.cast,
            self.loop,
            self.branch,
            self.written,
            self.called,
            self.called,
        ]
        forms += [
            self.static_loop,
            self.bounded,
            self.inner_gradient,
            self.random,
            self.split,
            self.joined,
        ]
        self.draw.pick(forms)()

    def elementwise(self) -> None:
        if v := self.some():
            self.assign(self.fresh(), self.whole(v.shape, 2), self.dtype, v.shape)

    def elements(self) -> Elements:
        return Elements(self.draw, self.values, self.dtype, self.sizes, self.positive)

    def indexed(self) -> None:
        """`t[i:N, j] = ...`, sometimes with a pack or a window."""
        packs = [v for v in self.floats() if v.shape[:1] == ("..N",)]
        shape: list[str] = (
            self.draw.several(self.sizes, self.draw.number(0, 2)) if self.sizes else []
        )
        if packs and self.draw.chance(0.6):
            shape = ["..N", *self.draw.pick(packs).shape[1:]]
        letters = self.draw.several(list(LETTERS), len(shape))
        bound = {("..n" if s == "..N" else i): s for i, s in zip(letters, shape, strict=True)}
        name = self.fresh()
        if not bound:
            self.assign(
                name, f"{self.dtype}(tanh({self.elements().reduction({}, 2)}))", self.dtype, ()
            )
            return
        if (
            self.draw.chance(0.15)
            and self.dtype != "real"
            and "T" in shape
            and shape.count("T") == 1
        ):
            self.window(name)
            return
        left = ", ".join(i if i == "..n" else f"{i}:{s}" for i, s in bound.items())
        text = self.elements().expr(bound, 3)
        if shape[0] == "..N":  # a pack has its range from a bare use
            like = next(v for v in packs if set(v.shape) <= {*shape})
            text = f"0.1 * {self.elements().direct(like, bound)} + ({text})"
        self.add(f"{name}[{left}] = {f'f64({text})' if self.dtype == 'f64' else text}")
        self.keep(Value(name, self.dtype, tuple(shape)))

    def window(self, name: str) -> None:
        options = [v for v in self.floats() if v.shape[:1] == ("T",)]
        if not options:
            return
        self.needs = True
        v = self.draw.pick(options)
        rest = self.draw.several(list("jkw"), len(v.shape) - 1)
        at = "".join(f", {i}" for i in rest)
        self.add(
            f"{name}[i:T - 2{at}] = {self.draw.pick(('sum', 'max', 'mean'))}[u:3](0.5 * {v.name}[i + u{at}])"
        )
        self.keep(Value(name, self.dtype, ("T - 2", *v.shape[1:])))

    def reduced(self) -> None:
        v = self.some(1)
        if v is None:
            return
        op = self.draw.pick(
            ("sum", "mean", "max", "min", "var", "logsumexp", "prod", "argmax", "argmin")
        )
        axes = self._single(v.shape)
        if not axes or self.draw.chance(0.2):
            self.assign(
                self.fresh(),
                f"{self.draw.pick(('mean', 'max', 'min', 'var', 'logsumexp'))}({v.name})",
                self.dtype,
                (),
            )
            return
        n = self.draw.pick(axes)
        rest = v.shape[:n] + v.shape[n + 1 :]
        if op.startswith("arg"):
            self.assign(self.fresh(), f"{op}({v.name}, over={n})", "i32", rest, limit=v.shape[n])
            return
        body = {"prod": f"1 + 0.2 * tanh({v.name})", "sum": f"0.3 * {v.name}"}.get(op, v.name)
        over = (
            v.shape[n]
            if v.shape.count(v.shape[n]) == 1 and v.shape[n].isalpha() and self.draw.chance(0.5)
            else str(n)
        )
        keep = self.draw.chance(0.2)
        text = f"{op}({body}, over={over}{', keep=true' * keep})"
        if keep:
            self.assign(self.fresh(), f"{v.name} - {text}", self.dtype, v.shape)
        else:
            self.assign(self.fresh(), text, self.dtype, rest)

    def sliced(self) -> None:
        v = self.some(1)
        if v is None or v.shape[0].startswith(".."):
            return
        size, rest = v.shape[0], v.shape[1:]
        known = size in self.positive or size.isdigit()
        match self.draw.number(0, 3):
            case 0 if known:
                self.assign(
                    self.fresh(), f"{v.name}[{self.draw.pick(('0', '-1'))}]", self.dtype, rest
                )
            case 1 if rest:
                self.assign(
                    self.fresh(), f"{v.name}[:, None] * 0.5", self.dtype, (size, "1", *rest)
                )
            case 2 if size == "T + 1":
                self.assign(
                    self.fresh(),
                    f"{v.name}[{self.draw.pick((':-1', '1:', ':T'))}]",
                    self.dtype,
                    ("T", *rest),
                )
            case 3 if size.isdigit() and int(size) > 1:
                self.assign(
                    self.fresh(), f"{v.name}[1:{size}]", self.dtype, (str(int(size) - 1), *rest)
                )
            case _ if known and rest and not rest[-1].startswith(".."):
                self.assign(
                    self.fresh(),
                    f"{v.name}[..., {'0' if rest[-1] in self.positive or rest[-1].isdigit() else ':'}]",
                    self.dtype,
                    v.shape[:-1] if rest[-1] in self.positive or rest[-1].isdigit() else v.shape,
                )

    def product(self) -> None:
        """Matrix products, of what fits."""
        pairs = [
            (a, b)
            for a in self.floats()
            for b in self.floats()
            if len(a.shape) == 2 and len(b.shape) == 2 and a.shape[0][0] != "."
        ]
        fits = [
            (f"{a.name} @ {b.name}", (a.shape[0], b.shape[1]))
            for a, b in pairs
            if a.shape[1] == b.shape[0]
        ]
        fits += [
            (f"{a.name} @ {b.name}.T", (a.shape[0], b.shape[0]))
            for a, b in pairs
            if a.shape[1] == b.shape[1]
        ]
        fits += [
            (f"{a.name}.T @ {b.name}", (a.shape[1], b.shape[1]))
            for a, b in pairs
            if a.shape[0] == b.shape[0]
        ]
        if not fits:
            return self.elementwise()
        text, shape = self.draw.pick(fits)
        text = self.draw.pick((f"0.5 * ({text})", f"tanh({text})", text))
        self.assign(self.fresh(), text, self.dtype, shape)

    def integers(self) -> None:
        """Arithmetic of integers and bools."""
        options = [v for v in self.values if v.dtype in INTEGERS]
        if not options:
            if v := self.some(1):
                self.assign(
                    self.fresh(), f"{v.name} > {self.draw.pick(('0', '0.3'))}", "bool", v.shape
                )
            return
        v = self.draw.pick(options)
        forms = (
            "{0} * 3 + 1",
            "{0} // 2",
            "{0} % 3",
            "max({0}, 1)",
            "bitxor({0}, 5)",
            "shl({0}, 1)",
            "{0} - {0} // 3",
            "abs({0})",
            "{0} * {0}",
        )
        if self.draw.chance(0.3):
            self.assign(
                self.fresh(),
                self.draw.pick(("{0} > 1", "{0} == 2", "{0} % 2 == 0")).format(v.name),
                "bool",
                v.shape,
            )
        else:
            self.assign(self.fresh(), self.draw.pick(forms).format(v.name), v.dtype, v.shape)

    def cast(self) -> None:
        options = [v for v in self.values if v.dtype != self.dtype and v.dtype != "real"]
        if options and self.draw.chance(0.7):
            v = self.draw.pick(options)
            self.assign(self.fresh(), f"0.2 * {self.dtype}({v.name})", self.dtype, v.shape)
        elif v := self.some():
            to = self.draw.pick(("bf16", "f64", "f16", "i32")) if self.dtype != "real" else "f32"
            inner = f"floor(3 * tanh({v.name}))" if to == "i32" else f"tanh({v.name})"
            self.assign(self.fresh(), f"{self.dtype}({to}({inner}))", self.dtype, v.shape)

    def joined(self) -> None:
        """concat, and an axis read as two digits or merged from two."""
        v = self.some(1)
        if v is None or v.shape[0].startswith(".."):
            return
        if self.draw.chance(0.5) or len(v.shape) < 2 or not v.shape[1].isdigit():
            same = self.draw.pick(self.floats(v.shape))
            if v.shape[0].isalpha():
                self.assign(
                    self.fresh(),
                    f"concat({v.name}, {same.name}, over=0)",
                    self.dtype,
                    (f"2*{v.shape[0]}", *v.shape[1:]),
                )
            return
        name, n = self.fresh(), int(v.shape[1])
        rest = "".join(f", {c}" for c in "uvw"[: len(v.shape) - 2])
        self.add(f"{name}[(i, j){rest}] = {v.name}[i, j{rest}] * 0.5")
        merged = Value(name, self.dtype, (f"{n}*{v.shape[0]}", *v.shape[2:]))
        again = self.fresh()
        self.add(f"{again}[i:{v.shape[0]}, j:{n}{rest}] = {name}[(i, j){rest}] + 0.1")
        self.keep(merged if n == 2 else Value(again, self.dtype, v.shape))
        self.keep(Value(again, self.dtype, v.shape))

    # ---- calls ----------------------------------------------------------------------------------

    def called(self) -> None:
        if not self.functions:
            return self.reduced()
        f = self.draw.pick(self.functions)
        if f.inout and not self.bang:  # its callers would need a `!` too
            return self.elementwise()
        options = [
            v
            for v in self.floats()
            if (len(v.shape) >= f.rank if f.pack else len(v.shape) == f.rank)
        ]
        if f.shrinks is not None:
            options = [v for v in options if v.shape[-1].isdigit() and int(v.shape[-1]) > f.shrinks]
        if not options:
            return self.elementwise()
        v = self.draw.pick(options)
        if f.inout:
            return self._fill(f, v)
        if f.shrinks is not None:
            last = str(int(v.shape[-1]) - f.shrinks)
            self.assign(self.fresh(), f"{f.name}({v.name})", self.dtype, (*v.shape[:-1], last))
        elif f.pair:
            a, b = self.fresh(), self.fresh()
            self.add(f"{a}, {b} = {f.name}({v.name})")
            self.keep(Value(a, self.dtype, v.shape))
            self.keep(Value(b, self.dtype, ()))
        else:
            self.assign(self.fresh(), f"{f.name}({v.name})", self.dtype, v.shape)

    def _fill(self, f: Callee, v: Value) -> None:
        row = self.floats(v.shape[1:])
        if not row:
            return
        name, mean = self.fresh(), self.fresh()
        self.assign(name, f"{v.name} * 1.0", self.dtype, v.shape)
        self.assign(mean, f"{f.name}!({name}, {self.draw.pick(row).name})", self.dtype, ())

    def split(self) -> None:
        """Two names at once, exchanged."""
        v = self.some()
        if v is None:
            return
        a, b = self.fresh(), self.fresh()
        self.add(f"{a}, {b} = {self.whole(v.shape, 1)}, {self.whole(v.shape, 1)}")
        self.keep(Value(a, self.dtype, v.shape))
        self.keep(Value(b, self.dtype, v.shape))
        if self.draw.chance(0.5):
            self.add(f"{a}, {b} = {b}, 0.5 * {a}")

    def random(self) -> None:
        v = self.some()
        if v is None or not self.bang or any(s.startswith("..") for s in v.shape):
            return self.elementwise()
        drawn = f"{self.draw.pick(('uniform', 'normal'))}!([{', '.join(v.shape)}])"
        if v.shape and self.draw.chance(0.3):
            self.assign(self.fresh(), f"where({drawn} < 0.4, 0, {v.name})", self.dtype, v.shape)
        else:
            self.assign(
                self.fresh(), f"{v.name} + 0.1 * {self.dtype}({drawn})", self.dtype, v.shape
            )

    # ---- control --------------------------------------------------------------------------------

    def inner(self) -> Body:
        return replace(
            self, values=list(self.values), lines=[], level=self.level + 1, nested=self.nested + 1
        )

    def absorb(self, inner: Body) -> None:
        self.lines += inner.lines
        self.smooth &= inner.smooth
        self.needs |= inner.needs

    def loop(self) -> None:
        """A run-time loop with a carried value, perhaps with a yield."""
        trips = [s for s in self.sizes if s.isalpha()]
        v = self.some()
        if not trips or v is None or self.nested > 1:
            return self.elementwise()
        trip, t = self.draw.pick(trips), "tuv"[self.nested] + "0"
        carry = self.assign(
            self.fresh(), self.draw.pick((v.name, f"0.5 * {v.name}")), self.dtype, v.shape
        )
        inner = self.inner()
        rows = [
            r
            for r in self.floats()
            if r.shape[:1] == (trip,) and len(r.shape) > 0 and r.name != carry.name
        ]
        if rows and self.draw.chance(0.7):
            r = self.draw.pick(rows)
            inner.assign(
                inner.fresh(),
                f"{r.name}[{self.draw.pick((t, f'{trip} - 1 - {t}'))}]",
                self.dtype,
                r.shape[1:],
            )
        if self.draw.chance(0.4):
            inner.assign(inner.fresh(), f"{carry.name} * 0.1 * ({t} + 1)", self.dtype, v.shape)
        inner.statements(self.draw.number(0, 2))
        if self.draw.chance(0.2):
            inner.add(f"if mean({carry.name}) > 0:")
            inner.add(f"    {carry.name} = 0.5 * {carry.name}")
        inner.add(
            f"{carry.name} = tanh({self.draw.pick(('0.5', '0.9'))} * {carry.name} + 0.3 * {inner.whole(v.shape, 1)})"
        )
        self._close_loop(inner, trip, t)

    def _close_loop(self, inner: Body, trip: str, t: str) -> None:
        y = inner.some()
        if self.draw.chance(0.5) or y is None or any(s.startswith("..") for s in y.shape):
            self.add(f"for {t} in {trip}:")
            self.absorb(inner)
            return
        name = self.fresh()
        self.add(f"{name} = for {t} in {trip}:")
        inner.add(f"yield {y.name}")
        self.absorb(inner)
        self.keep(Value(name, self.dtype, (trip, *y.shape)))

    def bounded(self) -> None:
        """`while c limit N`."""
        v = self.some()
        if v is None or self.nested > 0:
            return self.elementwise()
        c = self.assign(self.fresh(), f"1.0 * {v.name}", self.dtype, v.shape)
        inner = self.inner()
        inner.statements(self.draw.number(0, 1))
        inner.add(
            f"{c.name} = {self.draw.pick(('0.6 * {0}', 'tanh({0}) * 0.8', '0.5 * {0} + 0.05')).format(c.name)}"
        )
        self.add(
            f"while {self.draw.pick(('max(abs({0}))', 'mean({0} * {0})')).format(c.name)} > 0.31 limit {self.draw.number(1, 6)}:"
        )
        self.absorb(inner)

    def branch(self) -> None:
        """A run-time `if` that assigns, or a static one."""
        v = self.some()
        if v is None:
            return
        test = self.draw.pick(
            (f"mean({self.draw.pick(self.floats()).name}) > 0.05", "train", f"max({v.name}) < 1.5")
        )
        name = self.fresh()
        self.assign(name, self.whole(v.shape, 1), self.dtype, v.shape)
        self.add(f"if {test}:")
        first = self.inner()
        first.statements(self.draw.number(0, 1))
        first.add(f"{name} = {first.whole(v.shape, 2)}")
        self.absorb(first)
        if self.draw.chance(0.5):
            self.add("else:")
            second = self.inner()
            second.add(f"{name} = {second.whole(v.shape, 2)}")
            self.absorb(second)

    def static_loop(self) -> None:
        v = self.some()
        if v is None:
            return
        name = self.assign(self.fresh(), f"0.5 * {v.name}", self.dtype, v.shape).name
        inner = self.inner()
        inner.add(
            f"{name} = {self.draw.pick(('tanh({0} + 0.1 * l)', '{0} * 0.7 + l', '0.5 * {0} + 0.2 * {1}')).format(name, v.name)}"
        )
        self.add(f"for l in {self.draw.number(1, 3)}:")
        self.absorb(inner)

    # ---- storage --------------------------------------------------------------------------------

    def written(self) -> None:
        """`:=` on a local value or storage: everywhere, a row, scattered, accumulated."""
        if self.storage and self.draw.chance(0.6):
            v = self.draw.pick(self.storage)
        else:
            source = self.some(1)
            if source is None or any(s.startswith("..") for s in source.shape):
                return self.elementwise()
            v = self.assign(self.fresh(), f"1.0 * {source.name}", self.dtype, source.shape)
        letters = list("ijkw"[: len(v.shape)])
        bound = dict(zip(letters, v.shape, strict=True))
        at = ", ".join(letters)
        vectors = [
            k
            for k in self.values
            if k.dtype == "i32" and k.limit == v.shape[0] and len(k.shape) == 1
        ]
        value = replace(self.elements(), values=[u for u in self.values if u.name != v.name]).expr(
            bound, 2
        )
        match self.draw.number(0, 4):
            case 0:
                self.add(f"{v.name}[{at}] := tanh({value})")
            case 1:
                self.add(f"{v.name}[{at}] := {v.name}[{at}] + tanh({value})")
            case 2 if v.shape[0] in self.positive or v.shape[0].isdigit():
                rest, row = letters[1:], dict(list(bound.items())[1:])
                value = replace(
                    self.elements(), values=[u for u in self.values if u.name != v.name]
                ).expr(row, 2)
                self.add(
                    f"{v.name}[{', '.join([self.draw.pick(('0', v.shape[0] + ' - 1')), *rest])}] := {value}"
                )
            case 3 if vectors:
                k = self.draw.pick(vectors)
                row = {"u": k.shape[0], **dict(list(bound.items())[1:])}
                value = replace(
                    self.elements(), values=[u for u in self.values if u.name != v.name]
                ).expr(row, 2)
                target = f"{v.name}[{', '.join([f'{k.name}[u]', *letters[1:]])}]"
                self.add(f"{target} := {target} {self.draw.pick(('+', '-'))} 0.3 * ({value})")
            case _:
                self.add(f"{v.name}[{at}] := 0.5 * {v.name}[{at}]")

    # ---- gradients ------------------------------------------------------------------------------

    def inner_gradient(self) -> None:
        """The gradient of something by something before it, as a value."""
        v = self.some()
        if v is None or (self.dtype == "real" and self.draw.chance(0.5)):
            return self.elementwise()
        name = self.fresh()
        self.add(
            f"{name} = mean({self.whole(v.shape, 2)})"
            if self.draw.chance(0.5)
            else f"{name} = mean({v.name} * {v.name})"
        )
        self.keep(Value(name, self.dtype, ()))
        self.assign(
            self.fresh(), f"tanh(grad({name}, {v.name}, missing=zero))", self.dtype, v.shape
        )
