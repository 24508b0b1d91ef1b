"""Where the code of a function goes: nested loops with hoisting, values with their level.

Level 0 is the function's entry. Each loop (or part of one that runs at least once) opens a scope;
code for a value that is known further out is put before that loop, by `at`. Values are remembered
for as long as they dominate what follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from nnc.codegen import flow, quotient
from nnc.codegen.emit import Emitter
from nnc.codegen.registers import REGISTER, literal, splat
from nnc.codegen.scalars import Scalars
from nnc.codegen.target import Target
from nnc.lang.dims import ZERO, Dim, Facts, Range
from nnc.lang.types import DType

# What every kernel gets: eight bytes each. `dims` and `args` are arrays, and `places`: pointers
# into the arena; `scratch` is the running thread's own, `each` its bytes.
FRAME = {
    "ctx": "ptr",
    "dims": "ptr",
    "args": "ptr",
    "scratch": "ptr",
    "each": "i64",
    "places": "ptr",
}


@dataclass(frozen=True)
class Value:
    """An operand: one number (`lanes` 1) or one for each lane; known at level `depth`.

    `reads`: names of buffers written by this kernel that it was loaded from.
    """

    text: str
    dtype: DType
    lanes: int = 1
    depth: int = 0
    reads: frozenset[str] = frozenset()

    @property
    def const(self) -> bool:
        return self.lanes == 1 and not self.text.startswith(("%", "@"))


@dataclass
class Scope:
    """`before`: code put in front of the loop; `memo`: values found since it was opened."""

    before: list[str] = field(default_factory=list)
    memo: dict[object, Value] = field(default_factory=dict)
    guards: dict[object, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Held:
    """Elements of a local buffer, from `start`, that were stored and still are in registers."""

    start: int
    value: Value
    branches: tuple[int, ...]  # where that was

    @property
    def places(self) -> range:
        return range(self.start, self.start + self.value.lanes)


def integer(value: int) -> Value:
    return Value(str(value), "i64")


class Scopes:
    """The state of one function being emitted."""

    def __init__(self, target: Target, facts: Facts, sizes: tuple[str, ...]) -> None:
        self.em = Emitter()
        self.target, self.facts, self.sizes = target, facts, sizes
        self.ops = Scalars(self.em, target)
        self.scopes = [Scope()]
        self.held: dict[str, tuple[Held, ...]] = {}
        self.hoisted: dict[str, list[str]] = {}
        self.prologue: list[str] = []
        self.fields: dict[str, str] = {}
        self.names: dict[
            str, Value
        ] = {}  # sizes and loop variables (of the vector variable: lane 0)
        self.outer_names: frozenset[str] = frozenset()  # variables of loops around the kernel
        self.ranges: dict[str, Range] = {}
        self.proved: dict[Dim, bool] = {}
        self.split: dict[str, Dim] = {}  # variables of a merged axis in terms of the merged one
        self.vector: str | None = None
        self.lanes = 1
        self.ahead = 0  # bytes from what is read to what is read next, for prefetches

    # ---- scopes ---------------------------------------------------------------------------------

    @property
    def depth(self) -> int:
        return len(self.scopes) - 1

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Opens a scope at this place of the code, which must run whenever the code inside does."""
        scope = Scope()
        marker = f";{self.em.fresh('before')}"
        self.hoisted[marker] = scope.before
        self.em.lines.append(marker)
        self.scopes.append(scope)
        yield
        self.scopes.pop()

    @contextmanager
    def counted(self, lo: str, hi: str, step: str = "1") -> Iterator[str]:
        """`for (i = lo; i < hi; i += step)`; hoisted code runs when the loop runs at all."""
        em = self.em
        x, y, s = flow.const(lo), flow.const(hi), flow.const(step)
        if x is not None and y is not None and s is not None and x < y <= x + s:
            with self.scope():
                yield lo
            return
        with flow.when(em, flow.compare(em, "slt", lo, hi)), self.scope():
            enter, body, latch, done = (em.fresh(t) for t in ("enter", "body", "latch", "done"))
            index, follow = f"%{em.fresh('i')}", f"%{em.fresh('next')}"
            em.line(f"br label %{enter}")
            em.label(enter)
            em.line(f"br label %{body}")
            em.label(body)
            em.line(f"{index} = phi i64 [ {lo}, %{enter} ], [ {follow}, %{latch} ]")
            with em.branch():
                yield index
            em.line(f"br label %{latch}")
            em.label(latch)
            em.line(f"{follow} = add nsw i64 {index}, {step}")
            em.line(f"br i1 {flow.compare(em, 'slt', follow, hi)}, label %{body}, label %{done}")
            em.label(done)

    @contextmanager
    def at(self, depth: int) -> Iterator[None]:
        """Code emitted inside goes where values of level `depth` are known."""
        if depth >= self.depth:
            yield
            return
        lines, self.em.lines = self.em.lines, self.scopes[depth + 1].before
        yield
        self.em.lines = lines

    def find(self, key: object) -> Value | None:
        for scope in reversed(self.scopes):
            value = scope.memo.get(key)
            if value is not None:
                return value
        return None

    def keep(self, key: object, value: Value) -> Value:
        self.scopes[min(value.depth + 1, self.depth)].memo[key] = value
        return value

    def forget(self, buffer: str) -> None:
        """Drops what was loaded from the buffer of that name, or stored there."""
        self.held.pop(buffer, None)
        for scope in self.scopes:
            stale = [k for k, v in scope.memo.items() if buffer in v.reads]
            for key in stale:
                del scope.memo[key]

    def alloca(self, type_: str, align: int = 64) -> str:
        name = f"%{self.em.fresh('slot')}"
        self.prologue.append(f"  {name} = alloca {type_}, align {align}")
        return name

    def body(self) -> str:
        """The function's text after the label `entry`, with hoisted code in its place."""
        out: list[str] = []
        stack = [iter(self.em.lines)]
        while stack:
            line = next(stack[-1], None)
            if line is None:
                stack.pop()
            elif line in self.hoisted:
                stack.append(iter(self.hoisted[line]))
            else:
                out.append(line)
        return "\n".join((*self.prologue, *out))

    # ---- lanes ----------------------------------------------------------------------------------

    def spread(self, v: Value, lanes: int) -> str:
        """The operand as a vector."""
        if v.lanes == lanes:
            return v.text
        assert v.lanes == 1, v
        if v.const:
            return splat(self.em, REGISTER[v.dtype], v.text, lanes)
        key = ("splat", v.text, lanes)
        found = self.find(key)
        if found is None:
            with self.at(v.depth):
                text = splat(self.em, REGISTER[v.dtype], v.text, lanes)
            found = self.keep(key, Value(text, v.dtype, lanes, v.depth, v.reads))
        return found.text

    def join(self, *values: Value) -> tuple[int, int, frozenset[str]]:
        """Lanes, level and buffers read of something computed from the values."""
        lanes = max((v.lanes for v in values), default=1)
        depth = max((v.depth for v in values), default=0)
        reads: frozenset[str] = frozenset().union(*(v.reads for v in values))
        return lanes, depth, reads

    def compute(self, fn: str, dtype: DType, source: DType, values: Sequence[Value]) -> Value:
        """A scalar function of the table on values, where they are known."""
        lanes, depth, reads = self.join(*values)
        if fn == "div" and dtype in ("f32", "f64") and lanes > 1 == values[1].lanes:
            return self.divided(dtype, values[0], values[1])
        texts = [self.spread(v, lanes) for v in values]
        with self.at(depth):
            text = self.ops.apply(fn, dtype, source, texts, lanes)
        return Value(text, dtype, lanes, depth, reads)

    def divided(self, dtype: DType, x: Value, c: Value) -> Value:
        """A vector divided by one number."""
        lanes, depth, reads = self.join(x, c)
        exact = quotient.power_of_two(c.text)
        if not self.target.fma or exact is not None:
            fn = "div" if exact is None else "mul"
            by = c if exact is None else Value(literal(dtype, exact), dtype)
            with self.at(depth):
                texts = [self.spread(v, lanes) for v in (x, by)]
                text = self.ops.apply(fn, dtype, dtype, texts, lanes)
            return Value(text, dtype, lanes, depth, reads)
        key = ("divisor", dtype, c.text)
        found = self.find(key)
        if found is None:
            with self.at(c.depth):
                r, ok = quotient.divisor(self.em, dtype, c.text)
            found = self.keep(key, Value(f"{r} {ok}", dtype, 1, c.depth, c.reads))
        r, ok = found.text.split()
        number, inverse = (
            self.spread(Value(t, dtype, 1, c.depth, c.reads), lanes) for t in (c.text, r)
        )
        with self.at(depth):
            text = quotient.quotient(self.ops, dtype, x.text, (number, inverse, ok), lanes)
        return Value(text, dtype, lanes, depth, reads)

    def i64(self, fn: str, a: Value, b: Value) -> Value:
        """i64 arithmetic, folded on constants."""
        if a.lanes > 1 or b.lanes > 1:
            return self.compute(fn, "i64", "i64", (a, b))
        depth = max(a.depth, b.depth)
        folded = {"add": flow.add, "sub": flow.sub, "mul": flow.mul}
        with self.at(depth):
            text = folded[fn](self.em, a.text, b.text)
        return Value(text, "i64", 1, depth, a.reads | b.reads)

    # ---- variables ------------------------------------------------------------------------------

    @contextmanager
    def bound(self, name: str, text: str, extent: Dim) -> Iterator[None]:
        """`name` stands for a loop variable of this level, within 0 .. extent - 1."""
        outer = self.names.get(name), self.ranges.get(name)
        self.names[name] = Value(text, "i64", 1, self.depth)
        self.ranges[name] = (ZERO, extent - 1)
        yield
        del self.names[name], self.ranges[name]
        if outer[0] is not None and outer[1] is not None:
            self.names[name], self.ranges[name] = outer[0], outer[1]

    @property
    def inside_names(self) -> frozenset[str]:
        """Variables of the kernel's own loops."""
        return frozenset(n for n in self.names if n not in self.outer_names) - {*self.sizes}

    def name(self, name: str) -> Value:
        """A loop variable, or a size, read from the frame once."""
        if name not in self.names:
            assert name in self.sizes, f"{name} is not a loop variable or size here"
            self.names[name] = Value(self.frame_item("dims", self.sizes.index(name), "i64"), "i64")
        return self.names[name]

    def frame_item(self, field: str, index: int, type_: str) -> str:
        """Element `index` of an array of the frame, at the function's entry."""
        with self.in_prologue():
            place = self.em.op(f"getelementptr {type_}, ptr {self.frame_field(field)}, i64 {index}")
            return self.em.op(f"load {type_}, ptr {place}", field)

    def frame_field(self, field: str) -> str:
        if field not in self.fields:
            type_ = FRAME[field]
            at = list(FRAME).index(field)
            with self.in_prologue():
                place = self.em.op(f"getelementptr i64, ptr %frame, i64 {at}")
                self.fields[field] = self.em.op(f"load {type_}, ptr {place}", field)
        return self.fields[field]

    @contextmanager
    def in_prologue(self) -> Iterator[None]:
        lines, self.em.lines = self.em.lines, self.prologue
        yield
        self.em.lines = lines
