"""Checks a Program after a pass; a fault is an assertion with the pass and the kernel."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nnc.ir.bounds import Obligation, axis_ranges, loop_facts, obligations, strides
from nnc.ir.expr import (
    Const,
    Expr,
    Idx,
    Load,
    Select,
    Tensor,
    Var,
    names,
    never_meet,
    rewrite,
    walk,
)
from nnc.ir.form import formed
from nnc.ir.graph import Axis
from nnc.ir.loop import (
    Alike,
    Buffer,
    Call,
    Contract,
    For,
    Kernel,
    Let,
    Program,
    Reduce,
    Repeat,
    Step,
    Stmt,
    Store,
)
from nnc.ir.print_loop import print_kernel
from nnc.ir.printer import print_expr
from nnc.lang.dims import ONE, ZERO, Dim, Facts, evaluated, prove_nonneg
from nnc.passes.memory import ALIGN, lifetimes

Faults = Iterator[str]
SAMPLES = (1, 2, 3, 5, 16, 33, 100)  # sizes at which places in the arena are compared


def verify(program: Program, after: str) -> None:
    """Asserts that names are bound, accesses are inside, memory is written before it is read,
    threads write different elements, and that live buffers do not overlap.

    `after`: the pass that made this program.
    """
    written = {b.name for b in program.args} - {b.name for b in _results(program)}
    written |= {b.name for b in program.buffers if b.scope == "const"}
    for text in _step_faults(program, program.steps, written, ()):
        raise AssertionError(f"after {after}: {text}")
    for text in (*_unwritten(program, written), *_overlaps(program)):
        raise AssertionError(f"after {after}: {text} in {program.name}")


def _step_faults(
    program: Program, steps: Sequence[Step], written: set[str], turns: tuple[Repeat, ...]
) -> Faults:
    # As deep as loops are nested.
    for s in steps:
        match s:
            case Kernel():
                yield from _kernel_faults(program, s, written, turns)
            case Repeat():
                yield from _repeat_faults(program, s, turns)
                inside = (*turns, s)
                yield from _step_faults(program, s.before, written, inside)
                if s.cond is not None and s.cond.name not in written:
                    yield f"nothing writes the condition {s.cond.name}"
                yield from _step_faults(program, s.steps, written, inside)


def _kernel_faults(
    program: Program, kernel: Kernel, written: set[str], turns: tuple[Repeat, ...]
) -> Faults:
    """One of each form is looked at: what is asked depends on the shapes of the buffers, on which
    of them are one, and on which are written before."""
    if kernel.alike is not None:
        yield from _alike_faults(program, kernel, kernel.alike, written, turns)
        return
    yield from _formed_faults(program, kernel, written, turns)


def _alike_faults(
    program: Program,
    kernel: Kernel,
    alike: Alike,
    written: set[str],
    turns: tuple[Repeat, ...],
) -> Faults:
    """One of each pattern is looked at."""
    ready = tuple([b.name in written for b in alike.buffers])
    key = ("verified", program.dims, program.facts, ready, _starts(alike))
    if not turns and key in alike.pattern.memo:
        written |= {b.name for b in alike.stored}
        return
    yield from _formed_faults(program, kernel, written, turns)
    alike.pattern.memo[key] = True


def _starts(alike: Alike) -> Hashable:
    """The fixed leading indices of buffers, where they are not plainly inside."""
    places = [
        p
        for b, s in zip(alike.buffers, alike.starts, strict=True)
        for p in zip(s, b.type.shape, strict=False)
    ]
    inside = all(n.const is not None and 0 <= i < n.const for i, n in places)
    return None if inside else alike.starts


def _formed_faults(
    program: Program, kernel: Kernel, written: set[str], turns: tuple[Repeat, ...]
) -> Faults:
    outline = _Outline()
    if not outline.block(kernel.body):
        yield from _Checker(program, kernel, written, turns).faults()
        return
    of = formed(outline.roots)
    around = (program.dims, program.facts, *((t.var, t.trip) for t in turns))
    buffers = [*of.tensors, *outline.stored]
    key = (*outline.key, of.telling, around, *_roles(program, buffers, written))
    unbound = kernel.work.names - {*program.dims, *(t.var for t in turns)}
    if unbound or key not in of.form.memo:
        for text in _Checker(program, kernel, written, turns).faults():
            yield f"{text}\n{print_kernel(kernel)}"
        of.form.memo[key] = True
    written |= {b.name for b in outline.stored}


def _roles(program: Program, buffers: Sequence[Tensor], written: set[str]) -> Iterator[Hashable]:
    first: dict[str, int] = {}
    for b in buffers:
        assert isinstance(b, Buffer), b
        yield (first.setdefault(b.name, len(first)), b.type, b.scope == "local")
    for name in first:
        yield (program.shapes.get(name), name in written)


@dataclass
class _Outline:
    """The statements of a kernel without their expressions and buffers."""

    key: list[Hashable] = field(default_factory=list)
    roots: list[Expr] = field(default_factory=list)
    stored: list[Buffer] = field(default_factory=list)

    def block(self, stmts: Sequence[Stmt]) -> bool:
        """False where a statement is of another kind."""
        # As deep as loops are nested.
        for s in stmts:
            inner: Sequence[Stmt] = ()
            match s:
                case For(axis=axis, kind=kind, body=inner):
                    self.key += (kind, axis)
                case Let(name=name, value=value):
                    self.add(("let", name), value)
                case Reduce(name=name, op=op, axes=axes, vector=vector, value=value):
                    self.add((op, name, s.best, axes, vector), value)
                case Store(index=index, value=value):
                    guards = () if s.guard is None else (s.guard,)
                    flags = (s.accumulate, s.guard is None, s.check is None)
                    self.add(("store", len(index), flags), *index, value, *guards)
                    self.stored.append(s.buffer)
                case Contract(epilogue=inner):
                    self.add(("contract", s.name, s.batch, s.m, s.n, s.k), s.a, s.b)
                case _:
                    return False
            if inner and not self.block(inner):
                return False
            self.key.append(len(inner))
        return True

    def add(self, token: Hashable, *roots: Expr) -> None:
        self.key.append(token)
        self.roots += roots


def _repeat_faults(program: Program, s: Repeat, turns: tuple[Repeat, ...]) -> Faults:
    known = {*program.dims, *(t.var for t in turns)}
    if s.var in known or not s.trip.names <= known:
        yield f"repeat {s.var} : {s.trip} inside of {', '.join(sorted(known))}"
    if s.cond is not None and (s.cond.type.dtype != "bool" or s.cond.type.rank):
        yield f"a condition of type {s.cond.type}"
    if s.before and s.cond is None:
        yield "a test without a condition"


def _results(program: Program) -> tuple[Buffer, ...]:
    return program.args[len(program.args) - program.results :]


def _unwritten(program: Program, written: set[str]) -> Faults:
    for b in _results(program):
        if b.name not in written and b.type.elements.const != 0:
            yield f"nothing writes {b.name}"


# ---- one kernel ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scope:
    """What surrounds a statement: loops (cut ones made whole again) and scalars."""

    axes: tuple[Axis, ...] = ()
    shared: frozenset[str] = frozenset()  # loops whose iterations run at the same time
    names: frozenset[str] = frozenset()
    scalars: frozenset[str] = frozenset()
    cut: tuple[Axis, ...] = ()  # the loops as they are

    def loops(self, axes: Sequence[Axis], parallel: bool) -> _Scope:
        new = frozenset(a.var for a in axes)
        beside = frozenset(a.var for a in axes if a.extent.const != 1)  # one turn has none
        shared = self.shared | beside if parallel else self.shared
        return replace(self, axes=(*self.axes, *axes), shared=shared, names=self.names | new)


class _Checker:
    def __init__(
        self, program: Program, kernel: Kernel, written: set[str], turns: tuple[Repeat, ...] = ()
    ) -> None:
        self.kernel, self.written = kernel, written
        around = (f for t in turns for f in (t.trip - 1, t.trip - 1 - Dim.of(t.var)))
        self.facts = program.facts.plus(*around)
        self.dims = frozenset(program.dims) | {t.var for t in turns}
        self.program = program
        self.whole: dict[str, Dim] = {}  # inner variables of cut loops
        self.stores: list[tuple[Store, tuple[Expr, ...], _Scope]] = []
        self.loads: list[tuple[Load, _Scope]] = []

    def faults(self) -> Faults:
        if not self.kernel.work.names <= self.dims:
            yield f"unbound names in the work {self.kernel.work}"
        yield from self.block(self.kernel.body, _Scope())
        yield from self.races()

    def block(self, stmts: Sequence[Stmt], scope: _Scope) -> Faults:
        # As deep as loops are nested.
        for s in stmts:
            match s:
                case For():
                    if not s.axis.extent.names <= self.dims | scope.names:
                        yield f"unbound names in the extent {s.axis.extent}"
                    inner = self.enter(s.axis, scope, s.kind in ("parallel", "vector"))
                    yield from self.block(s.body, inner)
                case Let(name=name, value=value):
                    yield from self.exprs((value,), scope)
                    scope = replace(scope, scalars=scope.scalars | {name})
                case Reduce(name=name, axes=axes, value=value):
                    inner = scope
                    for a in axes:
                        inner = self.enter(a, inner, False)
                    yield from self.exprs((value,), inner)
                    scope = replace(scope, scalars=scope.scalars | {name, s.best})
                case Store():
                    yield from self.store(s, scope)
                case Contract():
                    yield from self.contract(s, scope)
                case Call():
                    yield from self.call(s)

    def enter(self, axis: Axis, scope: _Scope, parallel: bool) -> _Scope:
        """The inner loop of a cut one counts as the whole loop: `$i` is `$i' - 1024*$o`."""
        scope = replace(scope, cut=(*scope.cut, axis))
        axis = Axis(axis.var, axis.extent.subst(self.whole))
        found = _cut(axis, scope)
        if found is None:
            return scope.loops((axis,), parallel)
        outer, step, length = found
        whole = f"{axis.var}'"
        self.whole[axis.var] = Dim.of(whole) - step * Dim.of(outer)
        rest = tuple(a for a in scope.axes if a.var != outer)
        scope = replace(scope, axes=rest, shared=scope.shared - {outer})
        inside = scope.loops((Axis(whole, length),), parallel)
        return replace(inside, names=inside.names | {axis.var})

    def enter_all(self, axes: Sequence[Axis], scope: _Scope) -> _Scope:
        for a in axes:
            scope = self.enter(a, scope, True)
        return scope

    def contract(self, s: Contract, scope: _Scope) -> Faults:
        a = self.enter_all((*s.batch, *s.m, *s.k), scope)
        b = self.enter_all((*s.batch, *s.n, *s.k), scope)
        yield from self.exprs((s.a,), a)
        yield from self.exprs((s.b,), b)
        yield from self.exprs(s.copies, scope)
        if not s.k or s.a.dtype != s.b.dtype:
            yield "a contraction without k, or of two dtypes"
        inner = self.enter_all((*s.batch, *s.m, *s.n), scope)
        yield from self.block(s.epilogue, replace(inner, scalars=inner.scalars | {s.name}))

    def call(self, s: Call) -> Faults:
        unbound = frozenset(n for d in s.sizes for n in d.names) - self.dims
        unbound |= names([*s.inputs, *s.result.index]) - self.dims
        if unbound:
            yield f"unbound {', '.join(sorted(unbound))} in a call of {s.symbol}"
        self.written.add(s.result.buffer.name)

    def store(self, s: Store, scope: _Scope) -> Faults:
        place = Load(s.buffer.type.dtype, s.buffer, s.index, check=s.check)
        if len(s.index) != s.buffer.type.rank or s.value.dtype != s.buffer.type.dtype:
            yield f"a store of {s.value.dtype} with {len(s.index)} indices to {s.buffer.type}"
            return
        yield from self.exprs((s.value,), scope, s.guard)
        yield from self.exprs((place,), scope, s.guard, store=True)
        index = tuple(self.joined(i) for i in s.index)
        self.stores.append((s, index, scope))
        self.written.add(s.buffer.name)

    def exprs(
        self, roots: Sequence[Expr], scope: _Scope, guard: Expr | None = None, store: bool = False
    ) -> Faults:
        for e in walk(*roots, *(() if guard is None else (guard,))):
            if isinstance(e, Var) and e.name not in scope.scalars:
                yield f"unbound scalar {e.name}"
            if isinstance(e, Load):
                yield from self.load(e, scope, store and e in roots)
        unbound = names(roots) - self.dims - scope.names
        if unbound:
            yield f"unbound {', '.join(sorted(unbound))} in {print_expr(roots[0])}"
            return
        yield from self.inside(roots, scope, guard)

    def load(self, e: Load, scope: _Scope, store: bool) -> Faults:
        assert isinstance(e.tensor, Buffer), e
        if len(e.index) != e.tensor.type.rank:
            yield f"{len(e.index)} indices for {e.tensor.name}: {e.tensor.type}"
        if not store:
            self.loads.append((replace(e, index=tuple(map(self.joined, e.index))), scope))
            if e.tensor.name not in self.written:
                yield f"{e.tensor.name} is read before it is written"

    def inside(self, roots: Sequence[Expr], scope: _Scope, guard: Expr | None) -> Faults:
        whole = [self.joined(r) for r in roots]
        if guard is not None:
            g = self.joined(guard)
            whole = [Select(r.dtype, g, r, Const(r.dtype, 0)) for r in whole]
        for o in obligations(whole, scope.axes, self.facts):
            if o.ok or o.load.check is not None:
                continue
            if not self.as_cut(o, roots, scope) and not self.by_strides(o, whole, scope):
                yield f"index {o.index} of {print_expr(o.load)} may leave 0..{o.extent - 1}"

    def as_cut(self, o: Obligation, roots: Sequence[Expr], scope: _Scope) -> bool:
        """Proves an index by the loops as they are: that of a strip in local memory."""
        assert isinstance(o.load.tensor, Buffer), o
        if not self.whole or o.load.tensor.scope != "local":
            return False
        name, number = o.load.tensor.name, o.axis
        plain = obligations(roots, scope.cut, self.facts)
        mine = [p for p in plain if p.axis == number and p.load.tensor.name == name]  # type: ignore[attr-defined]
        return bool(mine) and all(p.ok for p in mine)

    def by_strides(self, o: Obligation, roots: Sequence[Expr], scope: _Scope) -> bool:
        """Proves an index of merged axes: facts about one axis, times the sizes of those within."""
        assert isinstance(o.load.tensor, Buffer), o
        shape = self.program.shapes.get(o.load.tensor.name, o.load.tensor.type.shape)
        more = [f * s for f in self.facts.nonneg for s in strides(shape) if s != ONE]
        again = obligations(roots, scope.axes, self.facts.plus(*more)) if more else []
        return any(p.ok for p in again if p.load is o.load and p.axis == o.axis)

    def joined(self, root: Expr) -> Expr:
        """Over whole loops in place of cut ones."""
        if not self.whole:
            return root

        def one(e: Expr) -> Expr:
            return Idx(e.dim.subst(self.whole), e.dtype) if isinstance(e, Idx) else e

        return rewrite(root, one)

    # ---- threads ------------------------------------------------------------------------------

    def races(self) -> Faults:
        """Iterations that run at the same time write different elements and read none of others."""
        mine: dict[str, tuple[tuple[Expr, ...], _Scope]] = {}
        for s, index, scope in self.stores:
            if s.buffer.scope == "local":
                continue
            mine[s.buffer.name] = (index, scope)
            distinct = s.accumulate or all(isinstance(i, Idx) for i in index)
            if distinct and not self.injective(index, scope):
                yield f"iterations may store to one element of {s.buffer.name}"
        for e, here in self.loads:
            assert isinstance(e.tensor, Buffer), e
            if e.tensor.name in mine:
                index, scope = mine[e.tensor.name]
                inner = scope.names | here.names
                if not _same_place(e.index, index, scope.shared & here.shared) and not never_meet(
                    e.index, index, inner
                ):
                    yield f"{print_expr(e)} may be written by another iteration"

    def injective(self, index: Sequence[Expr], scope: _Scope) -> bool:
        """Whether no two iterations of the shared loops have one index."""
        ranges = axis_ranges(scope.axes)
        facts = loop_facts(scope.axes, self.facts)
        extents = {a.var: a.extent for a in scope.axes}
        found: set[str] = set()
        order = {a.var: n for n, a in enumerate(scope.axes)}
        for i in index:
            if isinstance(i, Idx):
                used = sorted(i.dim.names & extents.keys())
                # A serial loop stands still while the loops inside of it run.
                first = min((order[v] for v in used if v in scope.shared), default=0)
                used = [v for v in used if v in scope.shared or order[v] > first]
                if _separate(i.dim, used, extents, facts):
                    found |= set(used)
        return {v for v in scope.shared if v in ranges} <= found


def _cut(axis: Axis, scope: _Scope) -> tuple[str, Dim, Dim] | None:
    """`(outer variable, step, length)` where the extent is `min(step, length - step*outer)`."""
    funcs = axis.extent.functions
    if len(funcs) != 1 or funcs[0].kind != "min" or len(axis.extent.terms) != 1:
        return None
    for step, left in ((funcs[0].a, funcs[0].b), (funcs[0].b, funcs[0].a)):
        for v in left.names & scope.names:
            form = left.linear_in(v)
            if form is not None and form[0] == -step:
                return v, step, form[1]
    return None


def _separate(d: Dim, used: Sequence[str], extents: Mapping[str, Dim], facts: Facts) -> bool:
    """Whether different values of the variables give different values of an affine index."""
    left = {}
    for v in used:
        form = d.linear_in(v)
        if form is None or form[0].names & extents.keys():
            return False
        left[v] = form[0]
    reach = ZERO
    while left:
        for v in sorted(left, key=lambda v: (_at_a_sample(left[v]), v)):
            size = next(
                (c for c in (left[v], -left[v]) if prove_nonneg(c - 1 - reach, facts)), None
            )
            if size is not None:
                reach = reach + size * (extents[v] - 1)
                del left[v]
                break
        else:
            return False
    return True


def _at_a_sample(d: Dim) -> int:
    """About how large it is: small steps are looked at before large ones."""
    return abs(d.evaluate(dict.fromkeys(d.names, 97)))


def _same_place(read: Sequence[Expr], write: Sequence[Expr], shared: frozenset[str]) -> bool:
    """Whether a read is at the writer's own place as far as the loops around both go."""
    fixed: set[str] = set()
    for r, w in zip(read, write, strict=False):
        if isinstance(r, Idx) and isinstance(w, Idx) and r.dim == w.dim:
            fixed |= r.dim.names
    return shared <= fixed


# ---- memory -------------------------------------------------------------------------------------


def _overlaps(program: Program) -> Faults:
    """Arena buffers that are alive at the same time and share bytes, at some sizes."""
    arena = [b for b in program.buffers if b.scope == "arena"]
    if not program.arena.terms or not arena:
        return
    spans, bytes_ = lifetimes(program), [b.bytes for b in arena]
    dims = dict.fromkeys((*bytes_, *(b.offset for b in arena)))
    for n in SAMPLES:
        sizes = {d: n + i for i, d in enumerate(program.dims)}
        if any(f.evaluate(sizes) < 0 for f in program.facts.nonneg):
            continue
        end = program.arena.evaluate(sizes)
        found = evaluated(dims, sizes)
        placed = [(b, found[b.offset], found[size]) for b, size in zip(arena, bytes_, strict=True)]
        for b, at, size in placed:
            if at % ALIGN or at + size > end:
                yield f"{b.name} lies at {at}..{at + size} of {end} bytes with sizes {sizes}"
        yield from _sweep(placed, spans)


def _sweep(
    placed: Sequence[tuple[Buffer, int, int]], spans: Mapping[str, tuple[int, int]]
) -> Faults:
    events = []
    for b, at, size in placed:
        if b.name in spans and size:
            first, last = spans[b.name]
            events += [(first, 0, at, size, b.name), (last, 1, at, size, b.name)]
    alive: list[tuple[int, int, str]] = []
    for _, dies, at, size, name in sorted(events):
        item = (at, at + size, name)
        if dies:
            del alive[bisect_left(alive, item)]
            continue
        i = bisect_left(alive, item)
        for other in alive[max(i - 1, 0) : i + 1]:
            if other[0] < at + size and at < other[1]:
                yield f"{name} and {other[2]} share memory"
        insort(alive, item)
