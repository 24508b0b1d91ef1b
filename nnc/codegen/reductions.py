"""The reduction leaf, in one documented order.

Without a vector axis every lane adds up serially. Along a vector axis there are four accumulators
of 16 lanes (8 for 64-bit numbers) on every target: element e goes to accumulator (e // lanes) % 4,
lane e % lanes; further axes run serially outside and keep the accumulators. At the end accumulators
0 and 2, 1 and 3, then both sums, then the halves of the lanes are combined. Accumulators that no
element reaches hold the operation's identity, which changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product

from nnc.codegen.loops import Loops, weight
from nnc.codegen.registers import computes_in, vtype, wide
from nnc.codegen.scopes import Value
from nnc.ir.expr import Op
from nnc.ir.graph import Axis
from nnc.ir.loop import Reduce
from nnc.lang.dims import ZERO, Dim
from nnc.lang.types import DTYPES, DType, is_float

_COMBINE = {"sum": "add", "prod": "mul", "max": "max", "min": "min", "any": "or", "all": "and"}
_LAST = 2**31 - 1  # a position after all others
SLOTS = 4
_WINDOW, _WRITTEN = 16, 256  # places of a window, and instructions, that are written out


@dataclass(frozen=True)
class Fold:
    """What is accumulated: a number, or for argmax and argmin a number and its position.

    `dot` is a sum of products in one chain of fused multiply-adds, as contractions make it.
    """

    op: str
    dtype: DType

    @property
    def positions(self) -> bool:
        return self.op in ("argmax", "argmin")

    @property
    def parts(self) -> tuple[DType, ...]:
        return (self.dtype, "i32") if self.positions else (self.dtype,)

    @property
    def identity(self) -> tuple[float, ...]:
        match self.op:
            case "sum" | "any" | "dot":
                return (0,)
            case "prod" | "all":
                return (1,)
        low, high = _limits(self.dtype)
        best = low if self.op in ("max", "argmax") else high
        return (best, _LAST) if self.positions else (best,)


def _limits(dtype: DType) -> tuple[float, float]:
    if is_float(dtype):
        return float("-inf"), float("inf")
    bits = DTYPES[dtype].bits
    if DTYPES[dtype].kind == "i":
        return -(1 << bits - 1), (1 << bits - 1) - 1
    return 0, (1 << bits) - 1


def fold_of(op: str, dtype: DType) -> Fold:
    if op in ("any", "all"):
        return Fold(op, "i32")
    return Fold(op, computes_in(dtype))


def unrolls(leaf: Reduce) -> bool:
    """Whether a window is so small that its places are written out."""
    turns = math.prod(a.extent.const or _WINDOW + 1 for a in leaf.axes)
    return turns <= _WINDOW and turns * weight(leaf.value) <= _WRITTEN


State = tuple[str, ...]
Action = Callable[[], None]


class Reductions(Loops):
    """Loops, and the reduction leaf."""

    def reduce(self, leaf: Reduce) -> None:
        """A reduction that every lane does for itself."""
        assert leaf.vector is None, leaf
        fold = fold_of(leaf.op, leaf.value.dtype)
        self.finish(leaf, fold, self.reduce_serial(leaf, fold), self.lanes)

    def finish(self, leaf: Reduce, fold: Fold, state: State, lanes: int) -> None:
        """Names the result."""
        dtype: DType = leaf.value.dtype
        text = state[-1] if fold.positions else state[0]
        if leaf.op in ("any", "all"):
            text = self.ops.cast(text, "i32", "bool", lanes)
        elif not fold.positions:
            text = self.ops.rounded(text, dtype, lanes)
        if leaf.best:
            best = self.ops.rounded(state[0], dtype, lanes)
            self.variables[leaf.best] = Value(best, dtype, lanes, self.depth)
        dtype = "i32" if fold.positions else dtype
        self.variables[leaf.name] = Value(text, dtype, lanes, self.depth)

    # ---- serial ---------------------------------------------------------------------------------

    def reduce_serial(self, leaf: Reduce, fold: Fold) -> State:
        if unrolls(leaf):
            return self.reduce_window(leaf, fold)
        slots = self.slots(fold, self.lanes)
        self.nest(leaf.axes, lambda: self.take(leaf, fold, slots, self.lanes, None))
        return self.read_slots(fold, slots, self.lanes)

    def reduce_window(self, leaf: Reduce, fold: Fold) -> State:
        items: list[State] = []
        self.unrolled_nest(leaf.axes, lambda: items.append(self.item(leaf, fold, self.lanes)))
        if fold.op in ("max", "min") and is_float(fold.dtype):
            return (self.ops.extreme(fold.op, fold.dtype, [x for (x,) in items], self.lanes),)
        state = self.start_of(fold, self.lanes)
        for item in items:
            state = self.combined(fold, state, item, self.lanes)
        return state

    def unrolled_nest(self, axes: tuple[Axis, ...], inner: Action) -> None:
        """As `nest`, without loops: what depends on the place in a window is known then."""
        sizes = [range(a.extent.const or 0) for a in axes]
        for place in product(*sizes):
            with self.scope(), ExitStack() as stack:
                for a, i in zip(axes, place, strict=True):
                    stack.enter_context(self.bound(a.var, str(i), a.extent))
                inner()

    def nest(self, axes: tuple[Axis, ...], inner: Action) -> None:
        if not axes:
            inner()
            return
        n = self.uniform(self.merged(axes[0].extent)).text
        with self.counted("0", n) as i, self.bound(axes[0].var, i, axes[0].extent):
            self.nest(axes[1:], inner)

    def take(self, leaf: Reduce, fold: Fold, slots: State, lanes: int, mask: str | None) -> None:
        """Adds the value at the present indices to the accumulator in `slots`."""
        item = self.item(leaf, fold, lanes)
        old = self.read_slots(fold, slots, lanes)
        self.write_slots(fold, slots, self.combined(fold, old, item, lanes, mask), lanes)

    def item(self, leaf: Reduce, fold: Fold, lanes: int) -> State:
        if leaf.op == "dot":
            assert isinstance(leaf.value, Op), leaf.value
            return tuple(self.spread(self.value(e), lanes) for e in leaf.value.args)
        value = self.value(leaf.value)
        text = self.spread(value, lanes)
        if leaf.op in ("any", "all"):
            return (self.ops.cast(text, "bool", "i32", lanes),)
        if not fold.positions:
            return (text,)
        number = ZERO
        for a in leaf.axes:
            number = number * a.extent + Dim.of(a.var)
        position = self.compute("cast", "i32", "i64", (self.dim(number),))
        return (text, self.spread(position, lanes))

    def combined(
        self, fold: Fold, a: State, b: State, lanes: int, mask: str | None = None
    ) -> State:
        if fold.positions:
            new = self.better(fold, a, b, lanes)
        elif fold.op == "dot":
            new = (self.multiply_add(fold.dtype, b[0], b[1], a[0], lanes),)
        else:
            new = (self.ops.apply(_COMBINE[fold.op], fold.dtype, fold.dtype, (a[0], b[0]), lanes),)
        if mask is None:
            return new
        return tuple(
            self.ops.choose(mask, x, y, d, lanes)
            for x, y, d in zip(new, a, fold.parts, strict=True)
        )

    def multiply_add(self, dtype: DType, x: str, y: str, s: str, lanes: int) -> str:
        if self.target.fma:
            return self.ops.intrinsic("fma", dtype, lanes, x, y, s)
        return self.ops.two("fadd", dtype, s, self.ops.two("fmul", dtype, x, y, lanes), lanes)

    def better(self, fold: Fold, a: State, b: State, lanes: int) -> State:
        """The more extreme of two, NaN above all, the first among equals."""
        ops, (x, i), (y, j), d = self.ops, a, b, fold.dtype

        def test(fn: str, p: str, q: str, dtype: DType = d) -> str:
            return ops.apply(fn, "bool", dtype, (p, q), lanes)

        wins = test("gt" if fold.op == "argmax" else "lt", y, x)
        equal, earlier = test("eq", y, x), test("lt", j, i, "i32")
        if is_float(d):
            x_nan, y_nan = test("ne", x, x), test("ne", y, y)
            new_nan = ops.two("icmp ugt", "bool", y_nan, x_nan, lanes)
            wins = test("or", wins, new_nan, "bool")
            equal = test("or", equal, test("and", x_nan, y_nan, "bool"), "bool")
        wins = test("or", wins, test("and", equal, earlier, "bool"), "bool")
        return ops.choose(wins, y, x, d, lanes), ops.choose(wins, j, i, "i32", lanes)

    # ---- accumulators ---------------------------------------------------------------------------

    def slots(self, fold: Fold, lanes: int) -> State:
        slots = tuple(self.alloca(vtype(d, lanes)) for d in fold.parts)
        self.write_slots(fold, slots, self.start_of(fold, lanes), lanes)
        return slots

    def start_of(self, fold: Fold, lanes: int) -> State:
        """An accumulator that no element has reached."""
        pairs = zip(fold.parts, fold.identity, strict=True)
        return tuple(self.ops.lit(d, v, lanes) for d, v in pairs)

    def read_slots(self, fold: Fold, slots: State, lanes: int) -> State:
        return tuple(
            self.em.op(f"load {vtype(d, lanes)}, ptr {s}, align 8", "sum")
            for d, s in zip(fold.parts, slots, strict=True)
        )

    def write_slots(self, fold: Fold, slots: State, state: State, lanes: int) -> None:
        for d, s, x in zip(fold.parts, slots, state, strict=True):
            self.em.line(f"store {vtype(d, lanes)} {x}, ptr {s}, align 8")

    # ---- the end --------------------------------------------------------------------------------

    def tree(self, fold: Fold, states: list[State], lanes: int) -> State:
        while len(states) > 1:
            half = -(-len(states) // 2)
            states = [
                self.combined(fold, s, states[i + half], lanes) if i + half < len(states) else s
                for i, s in enumerate(states[:half])
            ]
        state = states[0]
        while lanes > 1:
            lanes //= 2
            halves = [self.half(fold, state, lanes, h) for h in (0, lanes)]
            state = self.combined(fold, halves[0], halves[1], lanes)
        return state

    def half(self, fold: Fold, state: State, lanes: int, start: int) -> State:
        out = []
        for d, x in zip(fold.parts, state, strict=True):
            ty = vtype(d, 2 * lanes)
            if lanes == 1:
                out.append(self.em.op(f"extractelement {ty} {x}, i64 {start}"))
                continue
            which = ", ".join(f"i32 {start + i}" for i in range(lanes))
            out.append(
                self.em.op(f"shufflevector {ty} {x}, {ty} poison, {wide('i32', lanes)} <{which}>")
            )
        return tuple(out)
