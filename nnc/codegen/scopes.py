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

from nnc.codegen import flow
from nnc.codegen.emit import Emitter
from nnc.codegen.registers import REGISTER, iota, splat, wide
from nnc.codegen.scalars import Scalars
from nnc.codegen.target import Target
from nnc.lang.dims import ONE, ZERO, Dim, Facts, Func, Mono, Range, prove_nonneg
from nnc.lang.types import DType

# What every kernel gets: eight bytes each. `dims` and `args` are arrays.
FRAME = {
    "ctx": "ptr",
    "dims": "ptr",
    "args": "ptr",
    "arena": "ptr",
    "scratch": "ptr",
    "each": "i64",
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


def integer(value: int) -> Value:
    return Value(str(value), "i64")


class Scopes:
    """The state of one function being emitted."""

    def __init__(self, target: Target, facts: Facts, sizes: tuple[str, ...]) -> None:
        self.em = Emitter()
        self.target, self.facts, self.sizes = target, facts, sizes
        self.ops = Scalars(self.em, target)
        self.scopes = [Scope()]
        self.hoisted: dict[str, list[str]] = {}
        self.prologue: list[str] = []
        self.fields: dict[str, str] = {}
        self.names: dict[
            str, Value
        ] = {}  # sizes and loop variables (of the vector variable: lane 0)
        self.ranges: dict[str, Range] = {}
        self.split: dict[str, Dim] = {}  # variables of a merged axis in terms of the merged one
        self.vector: str | None = None
        self.lanes = 1

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
        """Drops remembered values that were loaded from the buffer of that name."""
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
        texts = [self.spread(v, lanes) for v in values]
        with self.at(depth):
            text = self.ops.apply(fn, dtype, source, texts, lanes)
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

    # ---- sizes and indices ----------------------------------------------------------------------

    def merged(self, d: Dim) -> Dim:
        return d.subst(self.split) if self.split and d.names & self.split.keys() else d

    def dim(self, d: Dim) -> Value:
        """A polynomial as i64, a vector when it holds the vector variable."""
        d = self.merged(d)
        if self.vector is None or self.vector not in d.names:
            return self.uniform(d)
        key = ("lanes", d)
        return self.find(key) or self.keep(key, self._vector_dim(d))

    def uniform(self, d: Dim) -> Value:
        """As `dim`, in lane 0."""
        if d.const is not None:
            return integer(d.const)
        if d.name is not None:
            return self.name(d.name)
        key = ("dim", d)
        found = self.find(key)
        if found is not None:
            return found
        total = integer(0)
        for term in sorted((self._term(m, c, False) for m, c in d.terms), key=lambda v: v.depth):
            total = self.i64("add", total, term)
        return self.keep(key, total)

    def _term(self, mono: Mono, c: int, lanes: bool) -> Value:
        factors = [self._atom(a, lanes) for a, n in mono for _ in range(n)]
        out = integer(c)
        for f in sorted(factors, key=lambda v: (v.lanes, v.depth)):
            out = self.i64("mul", out, f)
        return out

    def _atom(self, atom: str | Func, lanes: bool) -> Value:
        if isinstance(atom, str):
            vector = lanes and atom == self.vector
            return self._linear(ONE, Dim.of(atom)) if vector else self.name(atom)
        return self._func(atom, lanes)

    def _vector_dim(self, d: Dim) -> Value:
        assert self.vector is not None
        form = d.linear_in(self.vector)
        if form is not None:
            return self._linear(form[0], d)
        total = integer(0)
        for mono, c in d.terms:
            total = self.i64("add", total, self._term(mono, c, True))
        return total

    def _linear(self, slope: Dim, d: Dim) -> Value:
        """d in lane 0, and `slope` more in each further lane."""
        lanes, first, step = self.lanes, self.uniform(d), self.uniform(slope)
        ramp = Value(iota("i64", lanes), "i64", lanes)
        if step.text != "1":
            ramp = self.i64("mul", step, ramp)
        return self.i64("add", first, ramp)

    def _func(self, f: Func, lanes: bool) -> Value:
        key = ("func", f, lanes)
        return self.find(key) or self.keep(key, self._new_func(f, lanes))

    def _new_func(self, f: Func, lanes: bool) -> Value:
        if lanes and f.kind in ("floor", "mod") and self.vector not in f.b.names:
            form = f.a.linear_in(self.vector or "")
            if form is not None and form[0] == ONE and self.nonneg(f.a):
                quotient, rest = self._lane_divmod(f)
                return quotient if f.kind == "floor" else rest
        a, b = (self.dim(x) if lanes else self.uniform(x) for x in (f.a, f.b))
        if f.kind in ("min", "max"):
            return self.compute(f.kind, "i64", "i64", (a, b))
        if a.lanes == b.lanes == 1 and self.nonneg(f.a):
            op = flow.rem if f.kind == "mod" else flow.div
            depth = max(a.depth, b.depth)
            with self.at(depth):
                text = op(self.em, a.text, b.text)
            return Value(text, "i64", 1, depth, a.reads | b.reads)
        fn = "mod" if f.kind == "mod" else "floordiv"
        if b.const and self.nonneg(f.a) and self.nonneg(Dim.of(2**31 - 1) - f.a):
            # Division of i32 lanes by a constant is a multiplication; of i64 lanes it is not.
            narrow = [self.compute("cast", "i32", "i64", (x,)) for x in (a, b)]
            return self.compute("cast", "i64", "i32", (self.compute(fn, "i32", "i32", narrow),))
        return self.compute(fn, "i64", "i64", (a, b))

    def nonneg(self, d: Dim) -> bool:
        return prove_nonneg(d, self.facts, self.ranges)

    def _lane_divmod(self, f: Func) -> tuple[Value, Value]:
        """Quotient and remainder of consecutive numbers, from those in lane 0 without division."""
        lanes, size = self.lanes, self.uniform(f.b)
        q0, r0 = (self.uniform(Dim(((((Func(k, f.a, f.b), 1),), 1),))) for k in ("floor", "mod"))
        ramp = Value(iota("i64", lanes), "i64", lanes)
        r = self.i64("add", r0, ramp)
        wraps = self._wraps(r, size)
        quotient = self.i64("add", q0, wraps)
        return quotient, self.i64("sub", r, self.i64("mul", size, wraps))

    def _wraps(self, r: Value, size: Value) -> Value:
        """r // size for r below size + lanes: a comparison, or a quotient of small floats."""
        known = flow.const(size.text)
        once = self.compute("cast", "i64", "bool", (self.compute("ge", "bool", "i64", (r, size)),))
        if known is not None and known >= self.lanes:
            return once
        small = [self.compute("cast", "f32", "i64", (x,)) for x in (r, size)]
        often = self.compute("div", "f32", "f32", (small[0], small[1]))
        often = self.compute("cast", "i64", "i32", (self.compute("cast", "i32", "f32", (often,)),))
        if known is not None:
            return often
        is_small = self.compute("lt", "bool", "i64", (size, integer(self.lanes)))
        return self.select(is_small, often, once)

    def select(self, cond: Value, a: Value, b: Value) -> Value:
        """Both are computed; a uniform condition picks whole vectors."""
        if cond.text in ("true", "false"):
            return a if cond.text == "true" else b
        lanes, depth, reads = self.join(cond, a, b)
        ty = wide(REGISTER[a.dtype], lanes)
        x, y = self.spread(a, lanes), self.spread(b, lanes)
        with self.at(depth):
            text = self.em.op(f"select {wide('i1', cond.lanes)} {cond.text}, {ty} {x}, {ty} {y}")
        return Value(text, a.dtype, lanes, depth, reads)

    # ---- variables ------------------------------------------------------------------------------

    @contextmanager
    def bound(self, name: str, text: str, extent: Dim) -> Iterator[None]:
        """`name` stands for a loop variable of this level, within 0 .. extent - 1."""
        self.names[name] = Value(text, "i64", 1, self.depth)
        self.ranges[name] = (ZERO, extent - 1)
        yield
        del self.names[name], self.ranges[name]

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
