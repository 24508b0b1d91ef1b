"""Kernels alike: the same code over other buffers, other slices of them, other large numbers.

One function serves them all. What differs is passed as parameters: where the buffers (or the fixed
slices of them) begin, and numbers that do not fit into an instruction.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from nnc.diagnostics import Span
from nnc.ir.expr import Const, Expr, Idx, Load, Op, Select, Var, children, index_number, walk
from nnc.ir.graph import Axis
from nnc.ir.loop import Buffer, Contract, For, Let, Reduce, Stmt, Store
from nnc.lang.dims import Dim

Token = Hashable
Place = tuple[Buffer, Dim]  # a buffer, the element at which what is read or written begins
Start = Callable[[Buffer, Sequence[Expr]], Dim]  # that element, of an access
LARGE = 1 << 31  # numbers from here on are no immediate operands


@dataclass
class Outline:
    """What a kernel does (`key`) but for the `places` and `numbers` that it does it with.

    Both are in order of first use, so that kernels with one key have them at the same positions.
    """

    start: Start
    key: list[Token] = field(default_factory=list)
    places: dict[tuple[str, Dim], Place] = field(default_factory=dict)
    numbers: dict[int, int] = field(default_factory=dict)
    buffers: dict[str, int] = field(default_factory=dict)
    done: dict[int, int] = field(default_factory=dict)  # expressions by id
    known: dict[Token, int] = field(default_factory=dict)  # those that differ
    first: list[Expr] = field(default_factory=list)

    # ---- statements -----------------------------------------------------------------------------

    def block(self, stmts: Sequence[Stmt]) -> bool:
        """Adds statements; False where one is of a kind that is never shared."""
        # As deep as loops are nested.
        for s in stmts:
            match s:
                case For(axis=axis, kind=kind, body=body):
                    self.key += ("for", kind, *_axis(axis))
                    if not self.block(body):
                        return False
                case Let(name=name, value=value):
                    self.key += ("let", name, self.expr(value))
                case Reduce(name=name, op=op, axes=axes, vector=vector):
                    loops = tuple(x for a in axes for x in _axis(a))
                    self.key += ("reduce", name, s.best, op, loops, vector, self.expr(s.value))
                case Store():
                    self.store(s)
                case Contract(name=name, epilogue=epilogue):
                    groups = tuple(tuple(map(_axis, g)) for g in (s.batch, s.m, s.n, s.k))
                    part = None if s.part is None else (s.part.var, s.part.start, s.part.extent)
                    packed = None if s.panels is None else (self.expr(s.panels), s.copied)
                    turned = None if s.turned is None else self.expr(s.turned)
                    points = None if s.points is None else self.expr(s.points)
                    operands = self.expr(s.a), self.expr(s.b), packed, turned, points
                    self.key += ("contract", name, s.fn, groups, part, *operands)
                    if not self.block(epilogue):
                        return False
                case _:
                    return False
            self.key.append(";")
        return True

    def store(self, s: Store) -> None:
        value = self.expr(s.value)
        guard = None if s.guard is None else self.expr(s.guard)
        index = tuple(self.access(s.buffer, s.index, s.check is None))
        self.key += ("store", index, value, s.accumulate, guard, _check(s.check))

    # ---- expressions ----------------------------------------------------------------------------

    def expr(self, root: Expr) -> Token:
        """Adds an expression; equal ones once, whether they are one object or not."""
        done, known = self.done, self.known
        for e in walk(root):
            if id(e) not in done and index_number(e) is None:
                token = self.token(e)
                number = done[id(e)] = known.setdefault(token, len(known))
                if number == len(self.first):
                    self.key.append(token)
                    self.first.append(e)
        return self.ref(root)

    def same(self, e: Expr) -> Expr:
        """The first expression of the kernel that equals this one."""
        number = self.done.get(id(e))
        return e if number is None else self.first[number]

    def ref(self, e: Expr) -> Token:
        """How others refer to an expression: fixed numbers are part of the code."""
        number = index_number(e)
        return self.done[id(e)] if number is None else ("fixed", number)

    def token(self, e: Expr) -> Token:
        match e:
            case Const(dtype=dtype, value=value):
                if dtype == "i64" and abs(value) >= LARGE:
                    return ("number", self.numbers.setdefault(int(value), len(self.numbers)))
                return ("const", dtype, repr(value))
            case Idx(dim=dim, dtype=dtype):
                return ("idx", dtype, dim)
            case Var(name=name):
                return ("var", e.dtype, name)
            case Op(dtype=dtype, fn=fn, args=args):
                return ("op", dtype, fn, *map(self.ref, args))
            case Select(dtype=dtype):
                return ("select", dtype, *map(self.ref, children(e)))
            case Load(dtype=dtype, tensor=tensor, index=index, other=other, check=check):
                assert isinstance(tensor, Buffer), e
                plain = other is None and check is None
                rest = None if other is None else self.ref(other)
                return ("load", dtype, *self.access(tensor, index, plain), rest, _check(check))
        raise AssertionError(e)

    def access(self, buffer: Buffer, index: Sequence[Expr], plain: bool) -> Iterator[Token]:
        """A buffer and an index. `plain`: components that are fixed only move the place."""
        yield self.buffers.setdefault(buffer.name, len(self.buffers))
        yield buffer.type
        start = None if buffer.scope == "local" else self.start(buffer, index)
        yield None if start is None else self.place(buffer, start)
        near = start is None or (not start.terms and any(map(index_number, index)))
        for i in index:
            number = index_number(i)
            if number is None:
                yield self.done[id(i)] if id(i) in self.done else self.expr(i)
            else:
                yield ("fixed", number) if near or not plain else "fixed"

    def place(self, buffer: Buffer, start: Dim) -> int:
        key = (buffer.name, start)
        self.places.setdefault(key, (buffer, start))
        return list(self.places).index(key)


def _axis(a: Axis) -> tuple[str, Dim]:
    return (a.var, a.extent)


def _check(span: Span | None) -> Token:
    """Run-time checks have numbers of their own: only those of one place are alike."""
    return None if span is None else id(span)
