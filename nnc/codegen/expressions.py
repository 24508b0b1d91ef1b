"""Expressions: each is emitted once, at the outermost level where its operands are known.

The evaluator is a trampoline over generators, so that chains of any length need no Python
recursion. Both arms of a `Select` are computed; loads in an arm are made under the arm's condition,
as are those in the `else` of a guarded load.
"""

from __future__ import annotations

from collections.abc import Generator

from nnc.codegen.alike import LARGE
from nnc.codegen.guards import Guard
from nnc.codegen.interleave import Interleaved
from nnc.codegen.memory import Part, strides
from nnc.codegen.registers import literal
from nnc.codegen.scalars import small
from nnc.codegen.scopes import Value
from nnc.ir.expr import Const, Expr, Idx, Load, Op, Select, Var, children, walk
from nnc.ir.graph import Axis
from nnc.ir.loop import Buffer
from nnc.lang.dims import ZERO, Dim

Task = Generator[tuple[Expr, Guard], Value, Value]


class Expressions(Interleaved):
    """Memory, and scalar expressions over it."""

    def start(self) -> None:
        self.variables: dict[str, Value] = {}
        self.groups: dict[str, tuple[Axis, ...]] = {}  # merged axis -> the axes it stands for
        self.touching: dict[Expr, bool] = {}
        # Buffers to fetch ahead what is loaded from them at the next value of a loop's variable.
        self.next: tuple[str, frozenset[str]] = ("", frozenset())

    def touches(self, root: Expr) -> bool:
        """Whether it holds a load."""
        if root not in self.touching:
            for e in walk(root):
                if e not in self.touching:
                    inner = any(self.touching[c] for c in children(e))
                    self.touching[e] = inner or isinstance(e, Load)
        return self.touching[root]

    def number(self, value: int) -> Value:
        """A number that is a parameter of the kernel."""
        raise NotImplementedError

    def same(self, e: Expr) -> Expr:
        """One of the expressions that equal this one, always the same."""
        return e

    # ---- evaluation -----------------------------------------------------------------------------

    def value(self, root: Expr, guard: Guard | None = None) -> Value:
        """The expression's value here (under the guard of the statement)."""
        wanted: tuple[Expr, Guard] = (root, guard or self.guard)
        stack: list[tuple[Expr, Guard, Task]] = []
        result: Value | None = None
        while True:
            if result is None:
                wanted = (self.same(wanted[0]), wanted[1])
                result = self.remembered(*wanted)
                if result is None:
                    stack.append((*wanted, self.task(*wanted)))
            if not stack:
                assert result is not None
                return result
            e, g, task = stack[-1]
            try:
                wanted = next(task) if result is None else task.send(result)
                result = None
            except StopIteration as stop:
                stack.pop()
                result = stop.value
                assert result is not None
                self.keep((e, g if self.touches(e) else None), result)
                if not stack:
                    return result

    def remembered(self, e: Expr, guard: Guard) -> Value | None:
        """What was found under the same or a weaker guard."""
        if not self.touches(e):
            return self.find((e, None))
        g: Guard | None = guard
        while g is not None:
            found = self.find((e, g))
            if found is not None:
                return found
            g = g.parent
        return None

    def task(self, e: Expr, g: Guard) -> Task:
        match e:
            case Const(dtype="i64", value=value) if abs(value) >= LARGE:
                return self.number(int(value))
            case Const(dtype=dtype, value=value):
                return Value(literal(dtype, value), dtype)
            case Idx(dim=dim):
                return self.dim(dim)
            case Var(name=name):
                return self.variables[name]
            case Op(fn="cast", dtype=dtype, args=(Op(fn="round", args=(x,)),)) if small(dtype):
                return self.compute("rounded", dtype, x.dtype, ((yield (x, g)),))
            case Op(args=args):
                values: list[Value] = []
                for a in args:
                    values.append((yield a, g))
                return self.compute(e.fn, e.dtype, args[0].dtype, tuple(values))
            case Select():
                return (yield from self.choice(e, g))
            case Load():
                return (yield from self.load(e, g))
        raise AssertionError(e)

    def choice(self, e: Select, g: Guard) -> Task:
        cond = yield e.cond, g
        if cond.text in ("true", "false"):
            return (yield (e.a if cond.text == "true" else e.b), g)
        a = yield e.a, (self.narrowed(g, cond, True) if self.touches(e.a) else g)
        b = yield e.b, (self.narrowed(g, cond, False) if self.touches(e.b) else g)
        return self.select(cond, a, b)

    def narrowed(self, g: Guard, cond: Value, holds: bool) -> Guard:
        """One Guard for each condition, so that values under it are found again."""
        key = (g, cond.text, holds)
        for scope in reversed(self.scopes):
            found: Guard | None = scope.guards.get(key)
            if found is not None:
                return found
        made = self.under(g, cond, holds)
        self.scopes[min(made.depth + 1, self.depth)].guards[key] = made
        return made

    # ---- loads ----------------------------------------------------------------------------------

    def load(self, e: Load, g: Guard) -> Task:
        buffer = e.tensor
        assert isinstance(buffer, Buffer), e
        data: list[Value] = []
        for i in e.index:
            if not isinstance(i, Idx):
                index = yield i, g
                data.append(self.compute("cast", "i64", i.dtype, (index,)))
        inner, ok = self.checked(e, g, data)
        affine, parts = self.element(buffer, e.index, data)
        if ok is not None and ok.text == "false":
            assert e.other is not None
            return (yield e.other, g)
        found = None if parts else self.from_registers(buffer, self.merged(affine))
        if found is not None:
            return (
                found if e.other is None or ok is None else (yield from self.other(e, g, ok, found))
            )
        place = self.place(buffer, affine, parts)
        found = None if parts else self.read_sorted(buffer, e.index, affine, place, inner)
        loaded = found or self.read(buffer, place, inner)
        var, names = self.next
        if buffer.name in names and place.kind == "unit" and inner.mask is None:
            self.fetch_ahead(buffer, place, affine, var)
        if e.other is None or ok is None:
            return loaded
        return (yield from self.other(e, g, ok, loaded))

    def other(self, e: Load, g: Guard, ok: Value, loaded: Value) -> Task:
        """What was loaded, or `e.other` where it lies outside."""
        assert e.other is not None
        other = yield e.other, (self.narrowed(g, ok, False) if self.touches(e.other) else g)
        return self.select(ok, loaded, other)

    def element(
        self, buffer: Buffer, index: tuple[Expr, ...], data: list[Value]
    ) -> tuple[Dim, tuple[Part, ...]]:
        """The element's number: its affine part, and data-dependent indices with their strides."""
        affine, parts, left = ZERO, [], iter(data)
        for i, stride in zip(index, strides(buffer), strict=True):
            if isinstance(i, Idx):
                affine = affine + i.dim * stride
            else:
                parts.append((next(left), stride))
        return self.collapsed(affine), tuple(parts)

    def collapsed(self, d: Dim) -> Dim:
        """Axes of a merged group whose strides follow each other become the merged axis again."""
        for merged, axes in self.groups.items():
            if not d.names & {a.var for a in axes}:
                continue
            forms = [d.linear_in(a.var) for a in axes]
            if any(f is None for f in forms):
                continue
            slopes = [f[0] for f in forms if f is not None]
            steps = zip(slopes, slopes[1:], axes[1:], strict=False)
            if all(outer == inner * axis.extent for outer, inner, axis in steps):
                rest = d.subst({a.var: ZERO for a in axes})
                d = rest + slopes[-1] * Dim.of(merged)
        return d

    def checked(self, e: Load, g: Guard, data: list[Value]) -> tuple[Guard, Value | None]:
        """The guard for the access, and whether the index is inside (None: it always is)."""
        left = iter(data)
        conds: list[Value] = []
        for i, size in zip(e.index, e.tensor.type.shape, strict=True):
            known = isinstance(i, Idx)
            if known and (e.other is None or self.always_inside(i, size)):
                continue
            if e.other is None and e.check is None:
                next(left)
                continue
            index = self.dim(i.dim) if isinstance(i, Idx) else next(left)
            extent = self.dim(size)
            ok = self.inside(index, extent)
            if e.other is None and e.check is not None:
                self.report(ok, index, extent, g, e.check)
            conds.append(ok)
        if not conds:
            return g, None
        ok = self.conjunction(*conds)
        return self.narrowed(g, ok, True), ok

    def always_inside(self, i: Expr, size: Dim) -> bool:
        assert isinstance(i, Idx)
        return self.nonneg(i.dim) and self.nonneg(size - 1 - i.dim)
