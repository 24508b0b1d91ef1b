"""Sweeps: loops over the lanes and reductions of one row that walk along it together.

A loop over the lanes and the reductions after it, of the same length, are one sweep where each
element needs only what the loop stores at that element: softmax writes the exponentials and adds
them up. The order of each sum is that of `reductions`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from nnc.codegen import flow
from nnc.codegen.loops import cheap, weight
from nnc.codegen.reductions import SLOTS, Fold, Reductions, State, fold_of
from nnc.codegen.registers import vtype
from nnc.ir.expr import Expr, Idx, Load, Var, walk
from nnc.ir.graph import Axis
from nnc.ir.loop import Buffer, For, Let, Reduce, Stmt, Store
from nnc.lang.dims import Dim
from nnc.lang.types import DTYPES

_REPEATED = 64  # operations of a sweep whose code is there four times


@dataclass(frozen=True)
class Sweep:
    """`loop` (if any), then reductions over the same number of elements."""

    loop: For | None
    leaves: tuple[Reduce, ...]

    @property
    def extent(self) -> Dim:
        return self.loop.axis.extent if self.loop else along(self.leaves[0]).extent

    @property
    def variables(self) -> tuple[str, ...]:
        own = () if self.loop is None else (self.loop.axis.var,)
        return tuple(dict.fromkeys((*own, *(along(s).var for s in self.leaves))))

    @property
    def exprs(self) -> list[Expr]:
        body = () if self.loop is None else self.loop.body
        values = [s.value for s in body if isinstance(s, Let | Store)]
        return [*values, *(s.value for s in self.leaves)]


def along(leaf: Reduce) -> Axis:
    return next(a for a in leaf.axes if a.var == leaf.vector)


def lanes_of(fold: Fold) -> int:
    """Of an accumulator, on every target."""
    return 8 if max(DTYPES[d].bytes for d in fold.parts) == 8 else 16


def sweeps(body: Sequence[Stmt]) -> Iterator[Stmt | Sweep]:
    """The statements, those that can run together as one."""
    pending: Sweep | For | None = None
    for s in body:
        longer = _joined(pending, s) if isinstance(s, Reduce) and s.vector else None
        if longer is not None:
            pending = longer
            continue
        if pending is not None:
            yield pending
        pending = None
        if isinstance(s, For) and _simple(s):
            pending = s
        elif isinstance(s, Reduce) and s.vector:
            pending = Sweep(None, (s,))
        else:
            yield s
    if pending is not None:
        yield pending


def _simple(loop: For) -> bool:
    """Whether it is a loop over the lanes that stores floats, each where its element is."""
    if loop.kind != "vector" or not all(isinstance(s, Let | Store) for s in loop.body):
        return False
    kept = [s for s in loop.body if isinstance(s, Store)]
    plain = all(s.guard is None and s.check is None and not s.accumulate for s in kept)
    names = [s.buffer.name for s in kept]
    return plain and len(set(names)) == len(names)


def _joined(before: Sweep | For | None, leaf: Reduce) -> Sweep | None:
    """The sweep `before` and the reduction after it, if they can run together."""
    if before is None or len(leaf.axes) > 1:
        return None
    sweep = Sweep(before, ()) if isinstance(before, For) else before
    if sweep.extent != along(leaf).extent or any(len(s.axes) > 1 for s in sweep.leaves):
        return None
    lanes = lanes_of(fold_of(leaf.op, leaf.value.dtype))
    if any(lanes_of(fold_of(s.op, s.value.dtype)) != lanes for s in sweep.leaves):
        return None
    made = {name for s in sweep.leaves for name in (s.name, s.best)}
    if any(isinstance(e, Var) and e.name in made for e in walk(leaf.value)):
        return None
    if sweep.loop is not None and not _reads_own(sweep.loop, leaf, lanes):
        return None
    return Sweep(sweep.loop, (*sweep.leaves, leaf))


def _reads_own(loop: For, leaf: Reduce, lanes: int) -> bool:
    """Whether of what the loop stores, the reduction reads each element at its own turn."""
    kept = {s.buffer.name: s for s in loop.body if isinstance(s, Store)}
    if any(DTYPES[s.buffer.type.dtype].bytes * lanes != 64 for s in kept.values()):
        return False
    env = {along(leaf).var: Dim.of(loop.axis.var)}
    for e in walk(leaf.value):
        if not isinstance(e, Load):
            continue
        assert isinstance(e.tensor, Buffer), e
        store = kept.get(e.tensor.name)
        if store is not None and not _same(e.index, store.index, env):
            return False
    return True


def _same(a: Sequence[Expr], b: Sequence[Expr], env: dict[str, Dim]) -> bool:
    """Whether two indices are one element's when variables of `a` are renamed."""
    return all(
        isinstance(i, Idx) and isinstance(j, Idx) and i.dim.subst(env) == j.dim
        for i, j in zip(a, b, strict=True)
    )


def _statements(run: Stmt | Sweep) -> tuple[Stmt, ...]:
    if not isinstance(run, Sweep):
        return (run,)
    return run.leaves if run.loop is None else (run.loop, *run.leaves)


def _loaded(stmts: Sequence[Stmt]) -> Iterator[str]:
    """Names of the buffers that statements load from."""
    stack = list(stmts)
    while stack:
        match stack.pop():
            case For(body=body):
                stack += body
            case Let(value=value) | Store(value=value) | Reduce(value=value):
                tensors = (e.tensor for e in walk(value) if isinstance(e, Load))
                yield from (b.name for b in tensors if isinstance(b, Buffer))
            case _:
                pass


class Sweeps(Reductions):
    """Reductions along the lanes."""

    def block(self, body: tuple[Stmt, ...]) -> None:
        if self.vector is not None:
            super().block(body)
            return
        for run in sweeps(body):
            if isinstance(run, Sweep):
                self.sweep(run)
            else:
                super().block((run,))

    def turn(self, loop: For) -> None:
        """What is read of a row is fetched for the next one while the last sweep over it runs.

        (Between rows the hardware would start anew; and while it computes, memory would wait.)
        """
        runs = list(sweeps(loop.body))
        if sum(isinstance(r, Sweep | For) for r in runs) < 2:
            super().turn(loop)
            return
        last = {name: r for r in runs for name in _loaded(_statements(r))}
        for r in runs:
            names = frozenset(n for n, at in last.items() if at is r) - self.stored
            self.next = (loop.axis.var, names)
            self.block(_statements(r))
        self.next = ("", frozenset())

    def sweep(self, w: Sweep) -> None:
        if w.loop is not None:
            for s in w.loop.body:
                if isinstance(s, Store):
                    self.forget(s.buffer.name)
        folds = [fold_of(s.op, s.value.dtype) for s in w.leaves]
        lanes = lanes_of(folds[0])
        size = w.extent.const
        turns = SLOTS if size is None else -(-size // lanes)
        light = all(map(cheap, w.exprs))
        few = turns <= SLOTS and size is not None and (turns == 1 or light)
        count = turns if few else SLOTS
        slots = [[self.slots(f, lanes) for _ in range(count)] for f in folds]
        outer = tuple(a for s in w.leaves for a in s.axes if a.var != s.vector)
        run = _Run(self, w, folds, slots, lanes)
        self.lanes = lanes
        if few:
            assert size is not None
            self.nest(outer, lambda: run.few_turns(size))
        elif sum(map(weight, w.exprs)) <= _REPEATED:
            self.nest(outer, run.many_turns)
        else:
            self.nest_long(run, outer)
        self.vector, self.lanes = None, 1
        for leaf, f, own in zip(w.leaves, folds, slots, strict=True):
            state = self.tree(f, [self.read_slots(f, x, lanes) for x in own], lanes)
            self.finish(leaf, f, state, 1)

    def nest_long(self, run: _Run, outer: tuple[Axis, ...]) -> None:
        """A long body: one by one under a mask, the accumulators in memory."""
        rings = [
            tuple(self.alloca(f"[{SLOTS} x {vtype(d, run.lanes)}]") for d in f.parts)
            for f in run.folds
        ]
        run.copy(rings, True)
        self.nest(outer, lambda: run.long_turns(rings))
        run.copy(rings, False)


@dataclass(frozen=True)
class _Run:
    """A sweep being emitted; `slots`: of each reduction the accumulators."""

    code: Sweeps
    sweep: Sweep
    folds: list[Fold]
    slots: list[list[State]]
    lanes: int

    def step(self, slots: Sequence[State], mask: str | None) -> None:
        """One vector of elements; `slots`: an accumulator of each reduction."""
        code, w = self.code, self.sweep
        if w.loop is not None:
            code.vector = w.loop.axis.var
            code.block(w.loop.body)
        for leaf, fold, s in zip(w.leaves, self.folds, slots, strict=True):
            code.vector = leaf.vector
            code.take(leaf, fold, s, self.lanes, mask)
        code.vector = None

    @contextmanager
    def at(self, index: str) -> Iterator[None]:
        """The sweep's variables stand for the elements from `index`."""
        with self.code.scope(), ExitStack() as stack:
            for name in self.sweep.variables:
                stack.enter_context(self.code.bound(name, index, self.sweep.extent))
            yield

    def masked(self, index: str, slots: Sequence[State], count: str) -> None:
        with self.at(index), self.code.edge(count, self.lanes):
            assert self.code.guard.mask is not None
            self.step(slots, self.code.guard.mask.text)

    def few_turns(self, size: int) -> None:
        for j in range(-(-size // self.lanes)):
            start = j * self.lanes
            slots = [s[j] for s in self.slots]
            if size - start >= self.lanes:
                with self.at(str(start)):
                    self.step(slots, None)
            else:
                self.masked(str(start), slots, str(size - start))

    def many_turns(self) -> None:
        """Four whole vectors a turn; then up to four under a mask."""
        code, em, lanes = self.code, self.code.em, self.lanes
        n = code.uniform(self.sweep.extent).text
        stride = str(lanes * SLOTS)
        done = flow.sub(em, n, flow.rem(em, n, stride))
        with code.counted("0", done, stride) as i:
            for j in range(SLOTS):
                with self.at(flow.add(em, i, str(j * lanes))):
                    self.step([s[j] for s in self.slots], None)
        with ExitStack() as stack:
            for j in range(SLOTS):
                at = flow.add(em, done, str(j * lanes))
                left = flow.compare(em, "slt", at, n)
                if left == "false":
                    break
                stack.enter_context(flow.when(em, left))
                stack.enter_context(code.scope())
                self.masked(at, [s[j] for s in self.slots], flow.sub(em, n, at))

    def long_turns(self, rings: list[State]) -> None:
        code, em, lanes = self.code, self.code.em, self.lanes
        n = code.uniform(self.sweep.extent).text
        with code.counted("0", n, str(lanes)) as i:
            number = em.op(f"and i64 {flow.div(em, i, str(lanes))}, {SLOTS - 1}", "slot")
            at_slot = [
                tuple(
                    em.op(f"getelementptr {vtype(d, lanes)}, ptr {r}, i64 {number}", "slot")
                    for d, r in zip(f.parts, ring, strict=True)
                )
                for f, ring in zip(self.folds, rings, strict=True)
            ]
            self.masked(i, at_slot, flow.sub(em, n, i))

    def copy(self, rings: list[State], to_ring: bool) -> None:
        """Between the separate accumulators (in registers) and the arrays of them."""
        code, lanes = self.code, self.lanes
        for fold, slots, ring in zip(self.folds, self.slots, rings, strict=True):
            for j, s in enumerate(slots):
                at = tuple(
                    code.em.op(f"getelementptr {vtype(d, lanes)}, ptr {r}, i64 {j}")
                    for d, r in zip(fold.parts, ring, strict=True)
                )
                source, to = (s, at) if to_ring else (at, s)
                code.write_slots(fold, to, code.read_slots(fold, source, lanes), lanes)
