"""Windows of 3 x 3 with stride 1 by fewer products: Winograd's F(4 x 4, 3 x 3), an option.

A contraction `y[o, n, i, j] = sum[c, u, v] w[o, c, u, v] * x[c, n, i + u, j + v]` becomes, for
tiles of 4 x 4 elements of y and 6 x 6 of x (A. Lavin, S. Gray: Fast algorithms for convolutional
neural networks, 2016):

    U[r, s]  = (G w G')[r, s]         from the weights alone: kept from call to call
    V[r, s]  = (B' x B)[r, s]         of each tile
    M[r, s]  = sum[c] U[r, s] * V[r, s]      36 contractions
    y        = A' M A                 with the epilogue of the contraction

These are 36 products for 16 elements in place of 144. The sums are others than those of the direct
form: results differ by some 1e-6 of their size and more with many channels; a value of x that is
infinite or NaN reaches all elements of its tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nnc.ir.expr import Const, Expr, Idx, Load, Op, Var, names, rewrite, subst
from nnc.ir.graph import Axis
from nnc.ir.loop import Buffer, Contract, For, Kernel, Let, Program, Step, Stmt, Store
from nnc.lang.dims import ONE, Dim, dim_prod
from nnc.lang.types import TensorType

TILE, WINDOW = 4, 3
SIDE = TILE + WINDOW - 1
POINTS = SIDE * SIDE
# Products of input and output channels. Fewer: the transforms cost more than they save. More: such
# maps are small, and the transformed weights, four times as large, come from memory.
FEWEST, MOST = 1 << 9, 1 << 16

Rows = tuple[tuple[float, ...], ...]
B: Rows = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
G: Rows = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
A: Rows = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)


def winograd(program: Program, constant: frozenset[str]) -> Program:
    """The program with such contractions in this form; `constant`: as for `panels`."""
    made = _Made({b.name for b in (*program.args, *program.buffers)})
    steps = [new for step in program.steps for new in _steps(made, step, constant)]
    return replace(
        program,
        steps=(*made.prologue, *steps),
        buffers=(*program.buffers, *made.buffers),
        prologue=program.prologue + len(made.prologue),
    )


def _steps(made: _Made, step: Step, constant: frozenset[str]) -> Iterator[Step]:
    match step:
        case Kernel(body=(Contract() as c,)) if (found := _window(c, constant)) is not None:
            yield from _Kernels(made, step, found).steps()
        case _:
            yield step


# ---- finding -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Window:
    """A contraction of this form. `map`: the axes i, j of its result, `window`: u, v, `c`: of the
    channels that are summed, `o`: of the others, `rest`: further axes of the result."""

    of: Contract
    w: Load
    x: Load
    o: Axis
    c: Axis
    window: tuple[Axis, Axis]
    map: tuple[Axis, Axis]
    rest: tuple[Axis, ...]

    @property
    def tiles(self) -> tuple[Axis, Axis]:
        """For each of i, j."""
        i, j = ((a.extent + (TILE - 1)) // TILE for a in self.map)
        return Axis("$ti", i), Axis("$tj", j)

    @property
    def count(self) -> Dim:
        """All tiles."""
        return dim_prod(a.extent for a in (*self.rest, *self.tiles))


def _window(c: Contract, constant: frozenset[str]) -> _Window | None:
    if c.batch or len(c.m) != 1 or c.fn != "mul" or c.a.dtype != "f32" or c.panels is not None:
        return None
    w, x = c.a, c.b
    if not isinstance(w, Load) or not isinstance(x, Load) or len(c.k) != WINDOW:
        return None
    if not _plain(w) or w.other is not None or w.tensor.name not in constant:  # type: ignore[attr-defined]
        return None
    if not _plain(x) or not (x.other is None or isinstance(x.other, Const)):
        return None
    if not all(isinstance(s, Let) or _simple(s) for s in c.epilogue):
        return None
    pairs = [p for k in c.k if (p := _slides(x, k, c.n)) is not None]
    rest_k = [k for k in c.k if not any(k is p[0] for p in pairs)]
    if len(pairs) != 2 or len(rest_k) != 1 or pairs[0][1] is pairs[1][1]:
        return None
    (u, i), (v, j) = sorted(pairs, key=lambda p: c.n.index(p[1]))
    channels, own = rest_k[0].extent.const, c.m[0].extent.const
    if channels is None or own is None or not FEWEST <= channels * own <= MOST:
        return None
    rest = tuple(a for a in c.n if a is not i and a is not j)
    if names([w]) != {c.m[0].var, *(a.var for a in c.k)}:
        return None
    return _Window(c, w, x, c.m[0], rest_k[0], (u, v), (i, j), rest)


def _plain(e: Load) -> bool:
    return (
        isinstance(e.tensor, Buffer)
        and e.check is None
        and all(isinstance(i, Idx) for i in e.index)
    )


def _simple(s: Stmt) -> bool:
    return isinstance(s, Store) and not s.accumulate and s.guard is None and s.check is None


def _slides(x: Load, k: Axis, n: Sequence[Axis]) -> tuple[Axis, Axis] | None:
    """The axis of the result along which the window's axis `k` lies: index i + u + a number."""
    found = [i.dim for i in x.index if isinstance(i, Idx) and k.var in i.dim.names]
    if k.extent.const != WINDOW or len(found) != 1:
        return None
    for a in n:
        alone = sum(a.var in i.dim.names for i in x.index if isinstance(i, Idx)) == 1
        if alone and (found[0] - Dim.of(k.var) - Dim.of(a.var)).const is not None:
            return k, a
    return None


# ---- kernels -----------------------------------------------------------------------------------


@dataclass
class _Made:
    taken: set[str]
    buffers: list[Buffer] = field(default_factory=list)
    prologue: list[Kernel] = field(default_factory=list)

    def buffer(self, name: str, shape: tuple[Dim, ...], like: Contract, kept: str = "") -> Buffer:
        number, own = 1, name
        while own in self.taken:
            number += 1
            own = f"{name}_{number}"
        self.taken.add(own)
        type_ = TensorType(like.a.dtype, shape)
        self.buffers.append(Buffer(own, type_, "arena", span=like.span, kept=kept))
        return self.buffers[-1]


class _Kernels:
    """The kernels in the place of one."""

    def __init__(self, made: _Made, kernel: Kernel, found: _Window) -> None:
        self.kernel, self.f, self.made = kernel, found, made
        o, c, n, t = found.o.extent, found.c.extent, found.count, Dim.of(POINTS)
        name = kernel.name
        self.u = made.buffer(f"{name}.u", (t, o, c), found.of, "value")
        side = (d.extent * TILE + (SIDE - TILE) for d in found.tiles)
        outer = (c, *(a.extent for a in found.rest))
        self.x = made.buffer(f"{name}.x", (*outer, *side), found.of)
        self.v = made.buffer(f"{name}.v", (t, c, n), found.of)
        self.m = made.buffer(f"{name}.m", (t, o, n), found.of)

    def steps(self) -> Iterator[Kernel]:
        self.made.prologue.append(self.weights())
        yield self.around()
        yield self.input()
        yield self.products()
        yield self.output()

    def named(self, what: str, body: tuple[Stmt, ...], reason: str, work: Dim) -> Kernel:
        text = f"{reason} of {self.kernel.name}, 6 x 6 for 4 x 4 (winograd)"
        return Kernel(f"{self.kernel.name}_{what}", body, self.kernel.span, text, work)

    def weights(self) -> Kernel:
        f, (u, v) = self.f, self.f.window
        names_: dict[str, Expr] = {}
        w = [
            [subst(f.w, {u.var: Dim.of(p), v.var: Dim.of(q)}) for q in range(WINDOW)]
            for p in range(WINDOW)
        ]
        stmts: list[Stmt] = list(_both(G, w, "w", names_))
        at = (_at(f.o), _at(f.c))
        stmts += [Store(self.u, (_n(t), *at), e) for t, e in enumerate(names_.values())]
        body = _nest((f.o,), f.c, stmts)
        return self.named("weights", body, "weights", dim_prod(self.u.type.shape))

    def around(self) -> Kernel:
        """What whole tiles read, with what stands around it: so the rest has no conditions."""
        f, (i, j), (u, v) = self.f, self.f.map, self.f.window
        rows, columns = (
            Axis(n, d) for n, d in zip(("$p", "$q"), self.x.type.shape[-2:], strict=True)
        )
        zero = {u.var: Dim.of(0), v.var: Dim.of(0)}
        moved = subst(f.x, {i.var: Dim.of(rows.var), j.var: Dim.of(columns.var), **zero})
        assert isinstance(moved, Load), moved
        value = replace(moved, other=moved.other or Const(moved.dtype, 0))
        to = tuple(map(_at, (f.c, *f.rest, rows, columns)))
        body = _nest((f.c, *f.rest, rows), columns, [Store(self.x, to, value)])
        return self.named("around", body, "tiles", dim_prod(self.x.type.shape))

    def input(self) -> Kernel:
        f, (ti, tj) = self.f, self.f.tiles
        names_: dict[str, Expr] = {}

        def tile(p: int, q: int) -> Expr:
            at = (*map(_at, (f.c, *f.rest)), Idx(_first(ti) + p), Idx(_first(tj) + q))
            return Load(f.x.dtype, self.x, at)

        x = [[tile(p, q) for q in range(SIDE)] for p in range(SIDE)]
        stmts: list[Stmt] = list(_both(B, x, "x", names_))
        shape = (Dim.of(POINTS), f.c.extent, *(a.extent for a in (*f.rest, ti, tj)))
        to = _view(self.v, shape)
        at = tuple(map(_at, (f.c, *f.rest, ti, tj)))
        stmts += [Store(to, (_n(t), *at), e) for t, e in enumerate(names_.values())]
        body = _nest((f.c, *f.rest, ti), tj, stmts)
        return self.named("input", body, "input", dim_prod(self.v.type.shape) * 4)

    def products(self) -> Kernel:
        f = self.f
        t, n = Axis("$t", Dim.of(POINTS)), Axis("$n", f.count)
        dtype, name = f.of.a.dtype, f.of.name
        a = Load(dtype, self.u, (_at(t), _at(f.o), _at(f.c)))
        b = Load(dtype, self.v, (_at(t), _at(f.c), _at(n)))
        store = Store(self.m, (_at(t), _at(f.o), _at(n)), Var(dtype, name))
        body = Contract(name, (t,), (f.o,), (n,), (f.c,), a, b, (store,), f.of.span)
        work = dim_prod((Dim.of(POINTS), f.o.extent, f.c.extent, f.count))
        return replace(self.kernel, body=(body,), work=work)

    def output(self) -> Kernel:
        f, (ti, tj) = self.f, self.f.tiles
        names_: dict[str, Expr] = {}
        shape = (Dim.of(POINTS), f.o.extent, *(a.extent for a in (*f.rest, ti, tj)))
        read, at = _view(self.m, shape), tuple(map(_at, (f.o, *f.rest, ti, tj)))
        dtype = f.of.a.dtype
        m = [[Load(dtype, read, (_n(SIDE * p + q), *at)) for q in range(SIDE)] for p in range(SIDE)]
        stmts: list[Stmt] = list(_both(A, m, "m", names_))
        for number, value in enumerate(names_.values()):
            stmts += self.epilogue(*divmod(number, TILE), value)
        body = _nest((f.o, *f.rest, ti), tj, stmts)
        return self.named("output", body, "output", dim_prod(self.m.type.shape) * 4)

    def epilogue(self, p: int, q: int, value: Expr) -> Iterator[Stmt]:
        """What the contraction does with its sums, for one element of each tile."""
        f, (i, j), (ti, tj) = self.f, self.f.map, self.f.tiles
        at = {i.var: _first(ti) + p, j.var: _first(tj) + q}
        inside: Expr | None = None
        for axis, start, number in ((i, ti, p), (j, tj, q)):
            here = Op("bool", "lt", (Idx(_first(start) + number), Idx(axis.extent)))
            inside = here if inside is None else Op("bool", "and", (inside, here))
        known: dict[str, Expr] = {f.of.name: value}
        for s in f.of.epilogue:
            if isinstance(s, Let):
                known[s.name] = _moved(s.value, at, known)
            else:
                assert isinstance(s, Store), s
                index = tuple(_moved(e, at, known) for e in s.index)
                yield Store(s.buffer, index, _moved(s.value, at, known), guard=inside)


def _moved(e: Expr, at: Mapping[str, Dim], known: Mapping[str, Expr]) -> Expr:
    """At other indices, with the values of names; what may lie outside then reads 0."""

    def one(x: Expr) -> Expr:
        if isinstance(x, Var):
            return known.get(x.name, x)
        if isinstance(x, Load) and x.other is None and names(x.index) & moving:
            return replace(x, other=Const(x.dtype, 0))
        return x

    moving = frozenset(n for d in at.values() for n in d.names)
    return rewrite(subst(e, at), one)


def _both(
    rows: Rows, square: Sequence[Sequence[Expr]], name: str, out: dict[str, Expr]
) -> Iterator[Let]:
    """`rows * square * rows'`, named step by step; the results, by rows, go to `out`."""
    half: list[list[Expr]] = [[] for _ in rows]
    for q in range(len(square)):
        column: list[Expr] = []
        for p in range(len(square)):
            yield Let(f"{name}{p}{q}", square[p][q])
            column.append(Var(square[p][q].dtype, f"{name}{p}{q}"))
        for r, row in enumerate(rows):
            e = _combined(row, column)
            yield Let(f"{name}h{r}{q}", e)
            half[r].append(Var(e.dtype, f"{name}h{r}{q}"))
    for r in range(len(rows)):
        for s, row in enumerate(rows):
            e = _combined(row, half[r])
            yield Let(f"{name}y{r}{s}", e)
            out[f"{name}y{r}{s}"] = Var(e.dtype, f"{name}y{r}{s}")


def _combined(factors: Sequence[float], values: Sequence[Expr]) -> Expr:
    """The sum of factor * value, those of 1 first."""
    out: Expr | None = None
    pairs = sorted(
        ((f, x) for f, x in zip(factors, values, strict=True) if f), key=lambda p: p[0] != 1
    )
    for f, x in pairs:
        dtype = x.dtype
        if out is None:
            out = x if f == 1 else Op(dtype, "mul", (Const(dtype, f), x))
        elif f in (1, -1):
            out = Op(dtype, "add" if f == 1 else "sub", (out, x))
        else:
            fn = "add" if f > 0 else "sub"
            out = Op(dtype, fn, (out, Op(dtype, "mul", (Const(dtype, abs(f)), x))))
    assert out is not None
    return out


def _nest(outer: Sequence[Axis], lane: Axis, stmts: Sequence[Stmt]) -> tuple[Stmt, ...]:
    body: tuple[Stmt, ...] = (For(lane, "vector", tuple(stmts)),)
    for a in reversed([a for a in outer if a.extent != ONE]):
        body = (For(a, "parallel", body),)
    return body


def _view(b: Buffer, shape: tuple[Dim, ...]) -> Buffer:
    return replace(b, type=TensorType(b.type.dtype, shape))


def _at(a: Axis) -> Idx:
    return Idx(Dim.of(0) if a.extent == ONE else Dim.of(a.var))


def _first(tile: Axis) -> Dim:
    return _at(tile).dim * TILE


def _n(number: int) -> Idx:
    return Idx(Dim.of(number))
