"""Statements: loop nests, vector loops with their edges, stores, and the split over threads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from nnc.codegen import flow
from nnc.codegen.expressions import Expressions
from nnc.codegen.guards import Guard
from nnc.codegen.interleave import Turns
from nnc.codegen.registers import tail_mask
from nnc.codegen.scalars import MATH
from nnc.codegen.scopes import Value
from nnc.ir.expr import Expr, Idx, Load, Op, walk
from nnc.ir.loop import Call, Contract, For, Let, Reduce, Stmt, Store
from nnc.ir.statements import exprs_in, loaded_from, stores_in
from nnc.lang.types import DTYPES, is_float

_CHEAP = 24  # operations: dearer bodies are not repeated four times
_SOME, _MANY = 1 << 17, 1 << 20  # random numbers that are worth 15 and 50 ms more of LLVM's time
INLINED, LONG = 25, 1000  # instructions of a function of vecmath that is inlined, of others
_INLINE = {"exp", "log", "tanh", "sigmoid", "expm1", "log1p"}
_DRAWN = {"random_uniform", "random_normal"}
_DEAR = MATH | _DRAWN | {"powi", "digamma", "floordiv", "mod"}


class Loops(Expressions):
    """Expressions, and the statements around them."""

    tid = "%tid64"
    nt = "%nt64"

    def reduce(self, leaf: Reduce) -> None:
        raise NotImplementedError

    def nested(self, c: Contract) -> None:
        raise NotImplementedError

    def block(self, body: tuple[Stmt, ...]) -> None:
        for s in body:
            match s:
                case Let(name=name, value=value):
                    self.variables[name] = self.value(value)
                case Store():
                    self.store(s)
                case Reduce():
                    self.reduce(s)
                case For():
                    self.loop(s)
                case Contract():
                    self.nested(s)
                case Call():
                    raise AssertionError(f"{s} is not the whole body of its kernel")

    def store(self, s: Store) -> None:
        guard = self.guard
        if s.guard is not None:
            cond = self.value(s.guard)
            if cond.text == "false":
                return
            guard = guard if cond.text == "true" else self.narrowed(guard, cond, True)
        data: list[Value] = []
        for i, size in zip(s.index, s.buffer.type.shape, strict=True):
            if isinstance(i, Idx):
                continue
            index = self.as_i64(i, guard)
            data.append(index)
            if s.check is not None:
                ok = self.inside(index, self.dim(size))
                self.report(ok, index, self.dim(size), guard, s.check)
                guard = self.narrowed(guard, ok, True)
        value = self.value(s.value, guard)
        assert value.dtype == s.buffer.type.dtype, (s.buffer, s.value)
        affine, parts = self.element(s.buffer, s.index, data)
        held = self.held.get(s.buffer.name, ())
        place = self.place(s.buffer, affine, parts)
        if self.waits(s, affine, place, value):
            return
        self.write(s.buffer, place, value, s.accumulate, guard)
        if s.buffer.scope == "local" and self.holds(s):
            self.hold(s.buffer, self.merged(affine), value, held)

    def holds(self, s: Store) -> bool:
        """Whether a store is of a whole row, and of numbers that registers hold as memory does."""
        plain = s.guard is None and not s.accumulate and self.guard.scalar is None
        return plain and s.buffer.type.dtype in ("f32", "f64", "i32")

    def as_i64(self, e: Expr, guard: Guard) -> Value:
        return self.compute("cast", "i64", e.dtype, (self.value(e, guard),))

    # ---- loops ----------------------------------------------------------------------------------

    def loop(self, loop: For) -> None:
        for s in stores_in(loop.body):
            self.forget(s.buffer.name)
        n = self.uniform(self.merged(loop.axis.extent))
        size = flow.const(n.text)
        if loop.kind == "vector" and self.vector is None and size != 1:
            self.vector_loop(loop, "0", n.text)
        elif loop.kind == "unroll" or size == 1:
            assert size is not None, f"unrolled loop of {loop.axis.extent}"
            self.unrolled(loop, size)
        else:
            with self.counted("0", n.text) as i, self.bound(loop.axis.var, i, loop.axis.extent):
                self.block(loop.body)

    def unrolled(self, loop: For, size: int) -> None:
        before = self.turns_of
        waiting = frozenset() if self.vector is None else _waiting(loop.body)
        turns = self.turns_of = Turns(loop.axis.var, size, waiting)
        for i in range(size):
            for s in stores_in(loop.body):
                self.forget(s.buffer.name)
            with self.scope(), self.bound(loop.axis.var, str(i), loop.axis.extent):
                self.block(loop.body)
        self.turns_of = before
        self.write_waiting(turns)

    def vector_loop(self, loop: For, lo: str, hi: str) -> None:
        """Whole vectors from `lo` to `hi` (of several registers, if that is faster), then the rest,
        register by register, under a mask."""
        em, one, lanes = self.em, *self.loop_lanes(loop)
        size = flow.sub(em, hi, lo)
        if flow.const(size) is not None:
            lanes = min(lanes, 1 << (int(size) - 1).bit_length())
            one = lanes if int(size) <= lanes else min(one, lanes)
        with flow.when(em, flow.compare(em, "slt", lo, hi)), self.scope():
            full = flow.sub(em, hi, flow.rem(em, size, str(lanes)))
            if flow.compare(em, "slt", lo, full) != "false":
                self.vector, self.lanes = loop.axis.var, lanes
                with (
                    self.counted(lo, full, str(lanes)) as i,
                    self.bound(loop.axis.var, i, loop.axis.extent),
                ):
                    self.block(loop.body)
            self.vector, self.lanes = loop.axis.var, one
            rest = flow.compare(em, "slt", full, hi)
            if rest != "false" and one < lanes:
                with self.counted(full, hi, str(one)) as i:
                    self.last(loop, i, flow.minimum(em, flow.sub(em, hi, i), str(one)))
            elif rest != "false":
                with flow.when(em, rest):
                    self.last(loop, full, flow.sub(em, hi, full))
        self.vector, self.lanes = None, 1

    def last(self, loop: For, start: str, count: str) -> None:
        with self.edge(count, self.lanes), self.bound(loop.axis.var, start, loop.axis.extent):
            self.block(loop.body)

    @contextmanager
    def edge(self, count: str, lanes: int) -> Iterator[None]:
        """Only the first `count` lanes are active (at least one)."""
        with self.scope():
            mask = tail_mask(self.em, count, lanes)
            outer = self.guard
            self.guard = Guard(None, Value(mask, "bool", lanes, self.depth), True, outer)
            yield
            self.guard = outer

    def loop_lanes(self, loop: For) -> tuple[int, int]:
        """A register of the widest float stored (or the widest number, where no float is), and how
        many lanes run together.

        Several registers where one would wait for itself: four in a chain of additions, up to four,
        as there are many of them, in the ten rounds that a random number takes (long to compile).
        """
        stores = stores_in(loop.body)
        dtypes = [s.buffer.type.dtype for s in stores]
        floats = [d for d in dtypes if is_float(d)]
        widest = max((DTYPES[d].bytes for d in floats or dtypes), default=4)
        lanes = self.target.vector_bytes // max(widest, 4)
        reduces = [s for s in loop.body if isinstance(s, Reduce)]
        chains = all(cheap(s.value) and not s.op.startswith("arg") for s in reduces)
        if reduces:
            return lanes, lanes * 4 if chains else lanes
        if widest > 4 or not draws(loop.body):
            return lanes, lanes
        count = max(s.buffer.type.elements.const or _SOME for s in stores)
        return lanes, lanes * (4 if count >= _MANY else 2 if count >= _SOME else 1)

    # ---- threads --------------------------------------------------------------------------------

    def kernel(self, body: tuple[Stmt, ...]) -> None:
        """The whole body: parallel loops are split, the rest is done by one thread."""
        for s in body:
            match s:
                case For(kind="parallel"):
                    self.parallel(s)
                case Let() | Reduce():
                    self.block((s,))
                case _:
                    only = flow.compare(self.em, "eq", self.tid, "0")
                    with flow.when(self.em, only), self.scope():
                        self.block((s,))

    def share(self, total: str) -> tuple[str, str]:
        """This thread's range of `total` items."""
        em = self.em
        lo = flow.share(em, total, self.tid, self.nt)
        return lo, flow.share(em, total, flow.add(em, self.tid, "1"), self.nt)

    def parallel(self, loop: For) -> None:
        """Splits the joint space of the adjacent parallel loops into even contiguous ranges."""
        em = self.em
        nest, body = [loop], loop.body
        while len(body) == 1 and isinstance(body[0], For) and body[0].kind == "parallel":
            if body[0].axis.extent.names & {f.axis.var for f in nest}:
                break
            nest.append(body[0])
            body = body[0].body
        for s in stores_in(body):
            self.forget(s.buffer.name)
        sizes = [self.uniform(f.axis.extent).text for f in nest]
        total = "1"
        for n in sizes:
            total = flow.mul(em, total, n)
        lo, hi = self.share(total)
        with flow.when(em, flow.compare(em, "slt", lo, hi)), self.scope():
            first, last = self.digits(lo, sizes), self.digits(flow.sub(em, hi, "1"), sizes)
            self.part(nest, sizes, first, last, "true", "true")

    def turn(self, loop: For) -> None:
        """One turn of the innermost parallel loop."""
        self.block(loop.body)

    def digits(self, x: str, sizes: list[str]) -> list[str]:
        """x as indices of a row-major space."""
        out: list[str] = []
        for n in reversed(sizes[1:]):
            out.append(flow.rem(self.em, x, n))
            x = flow.div(self.em, x, n)
        return [x, *reversed(out)]

    def part(
        self,
        nest: list[For],
        sizes: list[str],
        first: list[str],
        last: list[str],
        at_first: str,
        at_last: str,
    ) -> None:
        """The loops from index vector `first` to `last`; `at_first`: outer indices are equal."""
        em, loop = self.em, nest[0]
        lo = flow.select(em, at_first, "i64", first[0], "0")
        end = flow.add(em, last[0], "1")
        hi = flow.select(em, at_last, "i64", end, sizes[0])
        with self.counted(lo, hi) as i, self.bound(loop.axis.var, i, loop.axis.extent):
            if len(nest) == 1:
                self.turn(loop)
                return
            is_first = flow.conjunction(em, at_first, flow.compare(em, "eq", i, first[0]))
            is_last = flow.conjunction(em, at_last, flow.compare(em, "eq", i, last[0]))
            self.part(nest[1:], sizes[1:], first[1:], last[1:], is_first, is_last)


def _waiting(body: tuple[Stmt, ...]) -> frozenset[int]:
    """The plain stores of a turn that nothing after them reads, or writes again."""
    out, touched = set[int](), set[str]()
    for s in reversed(body):
        if isinstance(s, Store) and not s.accumulate and s.guard is None and s.check is None:
            out |= set() if s.buffer.name in touched else {id(s)}
        touched |= {b.name for b in loaded_from((s,))} | {t.buffer.name for t in stores_in((s,))}
    return frozenset(out)


def written(body: Iterable[Stmt]) -> frozenset[str]:
    """Names of the buffers stored to."""
    return frozenset(s.buffer.name for s in stores_in(body))


def cheap(e: Expr) -> bool:
    """Whether repeating the code of `e` four times costs little."""
    return weight(e) <= _CHEAP


def draws(body: Iterable[Stmt]) -> bool:
    """Whether `body` draws random numbers and does little else."""
    parts = [e for root in exprs_in(body) for e in walk(root)]
    others = [e for e in parts if not (isinstance(e, Op) and e.fn in _DRAWN)]
    return len(others) < len(parts) and sum(map(_weight, others)) <= _CHEAP


def weight(e: Expr) -> int:
    """About how many instructions `e` is."""
    return sum(map(_weight, walk(e)))


def _weight(e: Expr) -> int:
    match e:
        case Op(fn=fn):
            return INLINED if fn in _INLINE else LONG if fn in _DEAR else 1
        case Load() if e.other or e.check:
            return 6
    return 1
