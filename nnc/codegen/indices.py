"""Sizes and indices: polynomials of the dim algebra as i64 values, along the lanes too."""

from __future__ import annotations

from nnc.codegen import flow
from nnc.codegen.registers import REGISTER, iota, wide
from nnc.codegen.scopes import Scopes, Value, integer
from nnc.lang.dims import ONE, Dim, Func, Mono, prove_nonneg


class Indices(Scopes):
    """Scopes, and arithmetic on sizes and loop variables."""

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
        slow = self._slow(f) if lanes else None
        if slow is not None:
            return self._quotient(f, slow) if f.kind == "floor" else self._rest(f, slow)
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
        if d not in self.proved:
            self.proved[d] = prove_nonneg(d, self.facts, self.ranges)
        return self.proved[d]

    # Division of slowly growing numbers (by at most one from lane to lane): the number in lane 0 is
    # divided once; each lane only needs how often the remainder has wrapped since.

    def _slow(self, f: Func) -> Value | None:
        """How far each lane of f's dividend is from lane 0 (i32, below the number of lanes)."""
        if f.kind not in ("floor", "mod") or self.vector is None or self.vector in f.b.names:
            return None
        if not self.nonneg(f.a):
            return None
        form = f.a.linear_in(self.vector)
        if form is not None:
            return Value(iota("i32", self.lanes), "i32", self.lanes) if form[0] == ONE else None
        inner = f.a.functions
        if len(inner) != 1 or inner[0].kind != "floor" or f.a != Dim.of(inner[0]):
            return None
        growth = self._slow(inner[0])
        return None if growth is None else self._wraps(inner[0], growth)

    def _quotient(self, f: Func, growth: Value) -> Value:
        first = self.uniform(Dim.of(Func("floor", f.a, f.b)))
        return self.i64("add", first, self._sext(self._wraps(f, growth)))

    def _rest(self, f: Func, growth: Value) -> Value:
        first, size = self.uniform(Dim.of(Func("mod", f.a, f.b))), self.uniform(f.b)
        wraps, known = self._wraps(f, growth), flow.const(size.text)
        if known is not None and known < 2**31:
            back = self.compute("mul", "i32", "i32", (wraps, Value(str(known), "i32")))
            moved = self.compute("sub", "i32", "i32", (growth, back))
            return self.i64("add", first, self._sext(moved))
        back = self.i64("mul", size, self._sext(wraps))
        return self.i64("sub", self.i64("add", first, self._sext(growth)), back)

    def _sext(self, x: Value) -> Value:
        return self.compute("cast", "i64", "i32", (x,))

    def _wraps(self, f: Func, growth: Value) -> Value:
        """(first + growth) // size for first below size, in i32."""
        key = ("wraps", f.a, f.b)
        return self.find(key) or self.keep(key, self._new_wraps(f, growth))

    def _new_wraps(self, f: Func, growth: Value) -> Value:
        """A comparison where the size is not below the lanes, else a quotient of small floats."""
        first, size = self.uniform(Dim.of(Func("mod", f.a, f.b))), self.uniform(f.b)
        lanes, known = integer(self.lanes), flow.const(size.text)
        left = self.compute("min", "i64", "i64", (self.i64("sub", size, first), lanes))
        left = self.compute("cast", "i32", "i64", (left,))
        once = self.compute("ge", "bool", "i32", (growth, left))
        once = self.compute("cast", "i32", "bool", (once,))
        if known is not None and known >= self.lanes:
            return once
        small = [self.compute("cast", "f32", d, (x,)) for x, d in ((first, "i64"), (growth, "i32"))]
        # Half a unit keeps the product with the rounded reciprocal away from whole numbers.
        middle = self.compute("add", "f32", "f32", (small[0], Value("0x3FE0000000000000", "f32")))
        middle = self.compute("add", "f32", "f32", (middle, small[1]))
        one = Value("0x3FF0000000000000", "f32")
        size_float = self.compute("cast", "f32", "i64", (size,))
        inverse = self.compute("div", "f32", "f32", (one, size_float))
        often = self.compute("mul", "f32", "f32", (middle, inverse))
        with self.at(often.depth):
            text = self.ops.convert("fptosi", often.text, "float", "i32", often.lanes)
        often = Value(text, "i32", often.lanes, often.depth)
        if known is not None:
            return often
        return self.select(self.compute("lt", "bool", "i64", (size, lanes)), often, once)

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
