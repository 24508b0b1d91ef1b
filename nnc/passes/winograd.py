"""Windows of 3 x 3 with stride 1 by fewer products: Winograd's F(m x m, 3 x 3), an option.

A contraction `y[o, n, i, j] = sum[c, u, v] w[o, c, u, v] * x[c, n, i + u, j + v]` becomes, for
tiles of m x m elements of y and (m + 2) x (m + 2) of x (A. Lavin, S. Gray: Fast algorithms for
convolutional neural networks, 2016):

    U[p]  = (G w G')[p]           from the weights alone: kept from call to call
    V[p]  = (B' x B)[p]           of each tile
    M[p]  = sum[c] U[p] * V[p]    for each of (m + 2)^2 points p
    y     = A' M A                with the epilogue of the contraction

These are 36 products for 16 elements in place of 144 with m = 4, 16 for 4 in place of 36 with
m = 2. The sums are others than those of the direct form: results differ by some 1e-6 of their size
and more with many channels; a value of x that is infinite or NaN reaches all elements of its tile.

Here the contraction gets its U; `nnc.codegen.winograd` has the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from nnc.ir.expr import Const, Expr, Idx, Load, Op, Var, subst
from nnc.ir.graph import Axis
from nnc.ir.loop import (
    SLAB,
    SLAB_K,
    Buffer,
    Contract,
    For,
    Kernel,
    Let,
    Program,
    Step,
    Stmt,
    Store,
    free_name,
)
from nnc.ir.sliding import WINDOW, Sliding, sliding
from nnc.lang.dims import ZERO, Dim, dim_prod
from nnc.lang.types import TensorType

# Products of input and output channels. Fewer: the transforms cost more than they save. With many
# the maps are small, and U comes from memory: four times the weights with m = 4, 1.8 times with 2.
FEWEST, LARGE, MOST = 1 << 9, 1 << 16, 1 << 20

Rows = tuple[tuple[float, ...], ...]
G: dict[int, Rows] = {
    4: (
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
    2: ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
}


def winograd(program: Program, constant: frozenset[str]) -> Program:
    """The program with such contractions in this form; `constant`: as for `panels`."""
    made = _Made({b.name for b in (*program.args, *program.buffers)}, constant)
    steps = [made.step(step) for step in program.steps]
    return replace(
        program,
        steps=(*made.prologue, *steps),
        buffers=(*program.buffers, *made.buffers),
        prologue=program.prologue + len(made.prologue),
    )


def side_of(f: Sliding) -> int | None:
    """m, or None where the direct form is better."""
    channels, own = f.c.extent.const, f.o.extent.const
    if channels is None or own is None or not FEWEST <= channels * own <= MOST:
        return None
    return 4 if channels * own <= LARGE else 2


@dataclass
class _Made:
    taken: set[str]
    constant: frozenset[str]
    buffers: list[Buffer] = field(default_factory=list)
    prologue: list[Kernel] = field(default_factory=list)

    def step(self, step: Step) -> Step:
        match step:
            case Kernel(body=(Contract(panels=None) as c,)) if (f := self.found(c)) is not None:
                m = side_of(f)
                if m is not None:
                    return self.changed(step, c, f, m)
        return step

    def found(self, c: Contract) -> Sliding | None:
        f = sliding(c)
        return None if f is None or f.w.tensor.name not in self.constant else f  # type: ignore[attr-defined]

    def changed(self, kernel: Kernel, c: Contract, f: Sliding, m: int) -> Kernel:
        u = self.buffer(f"{kernel.name}.u", f, m, c)
        self.prologue += _weights(kernel, f, m, u)
        first = Load(u.type.dtype, u, (Idx(ZERO),) * 4)
        text = f"{kernel.reason}; {m + 2} x {m + 2} for {m} x {m} (winograd)"
        return replace(kernel, body=(replace(c, points=first),), reason=text)

    def buffer(self, name: str, f: Sliding, m: int, like: Contract) -> Buffer:
        own = free_name(name, self.taken)
        o, c = f.o.extent.const, f.c.extent.const
        assert o is not None and c is not None, like
        shape = (-(-o // SLAB), (m + 2) ** 2, -(-c // SLAB_K) * SLAB_K, SLAB)
        type_ = TensorType(like.a.dtype, tuple(map(Dim.of, shape)))
        self.buffers.append(Buffer(own, type_, "arena", span=like.span, kept="value"))
        return self.buffers[-1]


def _weights(kernel: Kernel, f: Sliding, m: int, to: Buffer) -> Iterator[Kernel]:
    """U in slabs of output channels, the last one with zeros behind them."""
    o = f.o.extent.const
    assert o is not None, f
    whole, rest = divmod(o, SLAB)
    name, work = f"{kernel.name}_weights", dim_prod(to.type.shape)
    reason = f"weights of {kernel.name}, {m + 2} x {m + 2} for {m} x {m}, for all calls (winograd)"
    if whole:
        slab = Axis("$p", Dim.of(whole))
        body: tuple[Stmt, ...] = (_slab(f, m, to, Dim.of("$p"), SLAB),)
        body = (For(slab, "parallel", (For(f.c, "parallel", body),)),)
        yield Kernel(name, body, kernel.span, reason, work)
    if rest:
        zeros = [
            Store(to, (_n(whole), _n(p), _at(f.c), Idx(Dim.of("$z") + rest)), Const("f32", 0))
            for p in range((m + 2) ** 2)
        ]
        behind = For(Axis("$z", Dim.of(SLAB - rest)), "vector", tuple(zeros))
        body = (_slab(f, m, to, Dim.of(whole), rest), behind)
        yield Kernel(f"{name}_rest", (For(f.c, "parallel", body),), kernel.span, reason, work)


def _slab(f: Sliding, m: int, to: Buffer, slab: Dim, columns: int) -> For:
    """One channel of a slab: the lanes are output channels."""
    u, v = (s.u for s in f.sides)
    own = slab * SLAB + Dim.of("$q")
    w = [
        [subst(f.w, {f.o.var: own, u.var: Dim.of(p), v.var: Dim.of(q)}) for q in range(WINDOW)]
        for p in range(WINDOW)
    ]
    lane = Axis("$q", Dim.of(columns))
    stmts, points = _both(G[m], w)
    stores = (Store(to, (Idx(slab), _n(p), _at(f.c), _at(lane)), e) for p, e in enumerate(points))
    return For(lane, "vector", (*stmts, *stores))


def _both(rows: Rows, square: Sequence[Sequence[Expr]]) -> tuple[list[Stmt], list[Expr]]:
    """`rows * square * rows'`: the names of each step, and the results by rows."""
    stmts: list[Stmt] = []

    def named(name: str, e: Expr) -> Expr:
        stmts.append(Let(name, e))
        return Var(e.dtype, name)

    half: list[list[Expr]] = []
    for q in range(WINDOW):
        column = [named(f"w{p}{q}", line[q]) for p, line in enumerate(square)]
        half.append([named(f"wh{r}{q}", _combined(row, column)) for r, row in enumerate(rows)])
    return stmts, [
        named(f"wy{r}{s}", _combined(row, [h[r] for h in half]))
        for r in range(len(rows))
        for s, row in enumerate(rows)
    ]


def _combined(factors: Sequence[float], values: Sequence[Expr]) -> Expr:
    """The sum of factor * value."""
    out: Expr | None = None
    for f, x in zip(factors, values, strict=True):
        if f:
            term = x if f == 1 else Op(x.dtype, "mul", (Const(x.dtype, f), x))
            out = term if out is None else Op(x.dtype, "add", (out, term))
    assert out is not None, factors
    return out


def _at(a: Axis) -> Idx:
    return Idx(Dim.of(a.var))


def _n(number: int) -> Idx:
    return Idx(Dim.of(number))
