"""Merging adjacent axes that every access walks through together: loops become long and simple."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from nnc.ir.expr import Expr, Idx, Load, children, walk, with_children
from nnc.ir.graph import Axis
from nnc.ir.loop import Buffer, Store
from nnc.ir.statements import Stmts, map_stmts
from nnc.lang.dims import ONE, Dim, Func, dim_min
from nnc.lang.types import TensorType


class Views:
    """Buffers under other types; one object for each name and type."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, TensorType], Buffer] = {}

    def view(self, buffer: Buffer, shape: tuple[Dim, ...]) -> Buffer:
        return self.as_type(buffer, TensorType(buffer.type.dtype, shape))

    def as_type(self, buffer: Buffer, type_: TensorType) -> Buffer:
        key = (buffer.name, type_)
        if key not in self.known:
            self.known[key] = replace(buffer, type=type_)
        return self.known[key]


def merge(
    axes: Sequence[Axis], stmts: Stmts, exprs: Sequence[Expr], views: Views, taken: Iterable[str]
) -> tuple[tuple[Axis, ...], Stmts, tuple[Expr, ...]]:
    """The axes with neighbours merged where possible, and the code over them rewritten."""
    out = list(axes)
    used = set(taken)
    exprs = tuple(exprs)
    at = len(out) - 2
    while at >= 0:
        p, q = out[at], out[at + 1]
        z = Axis(_name(p.var, q.var, used), _product(p.extent, q.extent))
        attempt = _Merge(p, q, z.var, views)
        done = attempt.run(stmts, exprs)
        if done is not None:
            stmts, exprs = done
            out[at : at + 2] = [z]
            used.add(z.var)
        at -= 1
    return tuple(out), stmts, exprs


def _name(p: str, q: str, used: set[str]) -> str:
    name = base = p + q[1:]
    n = 1
    while name in used:
        n += 1
        name = f"{base}{n}"
    return name


def _product(p: Dim, q: Dim) -> Dim:
    """`p * q`, inside the `min` of a loop that is cut into pieces."""
    match p.functions:
        case [Func(kind="min", a=a, b=b) as f] if p == Dim.of(f):
            return dim_min(a * q, b * q)
    return p * q


class _Fails(Exception):
    """The two axes are not used together everywhere."""


class _Merge:
    """Rewrites code over `p` (outer) and `q` (inner) into code over one variable `z`."""

    def __init__(self, p: Axis, q: Axis, z: str, views: Views) -> None:
        self.p, self.q, self.z, self.views = p, q, z, views
        self.pair = frozenset((p.var, q.var))

    def run(self, stmts: Stmts, exprs: tuple[Expr, ...]) -> tuple[Stmts, tuple[Expr, ...]] | None:
        try:
            done = map_stmts(stmts, self.expr, self.store, self.axis)
            return done, tuple(map(self.expr, exprs))
        except _Fails:
            return None

    def axis(self, a: Axis) -> Axis:
        if self.pair & a.extent.names:
            raise _Fails
        return a

    def expr(self, root: Expr) -> Expr:
        new: dict[int, Expr | None] = {}
        for e in walk(root):
            if isinstance(e, Idx):
                new[id(e)] = self.idx(e)
                continue
            if isinstance(e, Load) and (d := self.together(e.index, e.tensor)) is not None:  # type: ignore[arg-type]
                new[id(e)] = self.load(e, d, new)
                continue
            parts = [new[id(c)] for c in children(e)]
            good = tuple(x for x in parts if x is not None)
            new[id(e)] = with_children(e, good) if len(good) == len(parts) else None
        out = new[id(root)]
        if out is None:
            raise _Fails
        return out

    def idx(self, e: Idx) -> Expr | None:
        """`a*n*p + a*q + c`, n the size of q, is `a*z + c`."""
        if not self.pair & e.dim.names:
            return e
        over_q = e.dim.linear_in(self.q.var)
        over_p = None if over_q is None else over_q[1].linear_in(self.p.var)
        if over_q is None or over_p is None or over_p[0] != over_q[0] * self.q.extent:
            return None
        return Idx(over_q[0] * Dim.of(self.z) + over_p[1], e.dtype)

    def together(self, index: tuple[Expr, ...], buffer: Buffer) -> int | None:
        """The place d where the index is `..., x + p, q, ...` and nothing else holds p or q."""
        d = next((d for d, i in enumerate(index) if self.start(i) is not None), None)
        if d is None or d + 1 == len(index) or not _bare(index[d + 1], self.q.var):
            return None
        return d if buffer.type.shape[d + 1] == self.q.extent else None

    def load(self, e: Load, d: int, new: dict[int, Expr | None]) -> Expr | None:
        inside = self.whole(e.index[d], e.tensor.type.shape[d])
        if (e.other is not None or e.check is not None) and not inside:
            return None
        rest = [new[id(i)] for i in (*e.index[:d], *e.index[d + 2 :])]
        other = None if e.other is None else new[id(e.other)]
        if any(x is None for x in rest) or (e.other is not None and other is None):
            return None
        index = self.joined(e.index, tuple(x for x in rest if x is not None), d)
        return replace(e, tensor=self.joined_buffer(e.tensor, d), index=index, other=other)  # type: ignore[arg-type]

    def whole(self, e: Expr, size: Dim) -> bool:
        """Whether the component runs exactly over its axis."""
        return _bare(e, self.p.var) and size == self.p.extent

    def start(self, e: Expr) -> Dim | None:
        """x of `x + p`."""
        form = e.dim.linear_in(self.p.var) if isinstance(e, Idx) else None
        if form is None or form[0] != ONE or self.q.var in form[1].names:
            return None
        return form[1]

    def joined(self, index: tuple[Expr, ...], rest: tuple[Expr, ...], d: int) -> tuple[Expr, ...]:
        x = self.start(index[d])
        assert x is not None
        return (*rest[:d], Idx(x * self.q.extent + self.z), *rest[d:])

    def joined_buffer(self, buffer: Buffer, d: int) -> Buffer:
        shape = buffer.type.shape
        return self.views.view(buffer, (*shape[:d], shape[d] * shape[d + 1], *shape[d + 2 :]))

    def store(self, s: Store) -> tuple[Buffer, tuple[Expr, ...]]:
        d = self.together(s.index, s.buffer)
        if d is None or (
            s.check is not None and not self.whole(s.index[d], s.buffer.type.shape[d])
        ):
            return s.buffer, tuple(map(self.expr, s.index))
        rest = tuple(self.expr(i) for i in (*s.index[:d], *s.index[d + 2 :]))
        return self.joined_buffer(s.buffer, d), self.joined(s.index, rest, d)


def _bare(e: Expr, var: str) -> bool:
    return isinstance(e, Idx) and e.dim.name == var
