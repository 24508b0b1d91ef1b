"""Memory: places of arena buffers as functions of the sizes, used again when a value is dead."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from nnc.ir.expr import Expr, Load, rewrite
from nnc.ir.loop import Buffer, Kernel, Program, Repeat, Step, Store, kernel_like
from nnc.ir.statements import Stmts, loaded_from, map_stmts, stores_in
from nnc.lang.dims import ZERO, Atom, Dim, Facts, dim_max, prove_nonneg

ALIGN = 64  # bytes
Span = tuple[int, int]  # the first and the last moment
TRIES = 4  # free places that are tried for a value
ALTERNATIVES = 4  # sizes of which none is known to be the largest, in one place
SAMPLE = 64  # what a size is taken to be where only an estimate is needed


def memory(program: Program) -> Program:
    """The program with offsets of arena buffers and the size of the arena; unused buffers go."""
    spans = lifetimes(program)
    slots = _Slots(program.facts, {d: SAMPLE + i for i, d in enumerate(program.dims)})
    place: dict[str, int] = {}
    kept, start = _kept(program)
    sizes = {b.name: rounded(b.bytes) for b in program.buffers if b.scope == "arena" and not b.kept}
    order = sorted(
        (n for n in spans if n in sizes), key=lambda n: (-slots.guess(sizes[n]), spans[n])
    )
    for name in order:
        place[name] = slots.take(sizes[name], spans[name])
    offsets = kept | {n: slots.offset(p) + start for n, p in place.items()}
    return _placed(replace(program, kept=start), offsets, slots.total + start, spans)


def _kept(program: Program) -> tuple[dict[str, Dim], int]:
    """What stays from call to call lies first and shares nothing: places, bytes in all."""
    places, at = dict[str, Dim](), 0
    for b in program.buffers:
        if b.kept:
            places[b.name] = Dim.of(at)
            size = rounded(b.bytes).const
            assert size is not None, b
            at += size
    return places, at


def lifetimes(program: Program) -> dict[str, tuple[int, int]]:
    """For each buffer's name the first and the last moment that touches it.

    Moments are the steps in order, those in loops counted once. What a loop shares with the outside
    lives for all of the loop; the rest of its buffers is written anew in every turn.
    """
    out: dict[str, tuple[int, int]] = {}
    loops: list[tuple[int, int]] = []
    for i, names in enumerate(_moments(program.steps, 0, loops)):
        for n in names:
            out[n] = (out.get(n, (i, i))[0], i)
    for lo, hi in loops:  # the innermost first
        for n, (first, last) in out.items():
            if first < lo <= last or first <= hi < last:
                out[n] = (min(first, lo), max(last, hi))
    end = max((last for _, last in out.values()), default=0)
    return out | {b.name: (0, end) for b in program.buffers if b.kept}


def _moments(
    steps: Sequence[Step], start: int, loops: list[tuple[int, int]]
) -> Iterator[list[str]]:
    """The names of the buffers that each moment touches; adds when loops begin and end."""
    # As deep as loops are nested.
    at = start
    for step in steps:
        if isinstance(step, Repeat):
            test = [] if step.cond is None else [[step.cond.name]]
            before = list(_moments(step.before, at, loops))
            inner = [*before, *test]
            inner += _moments(step.steps, at + len(inner), loops)
            loops.append((at, at + len(inner) - 1))
            yield from inner
            at += len(inner)
        else:
            yield [b.name for b in _touched(step)] if isinstance(step, Kernel) else []
            at += 1


def touched(stmts: Stmts) -> dict[Buffer, None]:
    """Buffers loaded from or stored to, in order."""
    return loaded_from(stmts) | {s.buffer: None for s in stores_in(stmts)}


def _touched(kernel: Kernel) -> Iterable[Buffer]:
    of = kernel.alike
    return touched(kernel.body) if of is None else (*of.loaded, *of.stored)


def rounded(size: Dim) -> Dim:
    return (size + (ALIGN - 1)) // ALIGN * ALIGN


@dataclass
class _Slot:
    """A place: as large as the largest of `sizes`, none of which is known to be within another."""

    sizes: list[Dim]
    guess: int  # bytes at sample sizes
    spans: list[Span] = field(default_factory=list)  # when it is taken, in order

    def is_free(self, span: Span) -> bool:
        at = bisect_left(self.spans, span)
        after = at == len(self.spans) or self.spans[at][0] > span[1]
        return after and (at == 0 or self.spans[at - 1][1] < span[0])

    @property
    def size(self) -> Dim:
        out = self.sizes[0]
        for s in self.sizes[1:]:
            out = dim_max(out, s)
        return out


@dataclass
class _Slots:
    """Places of the arena one behind the other; they may grow until offsets are asked for.

    Values come by size, the largest first, so that small ones that live long do not keep the place
    of a large one. Which free place a value takes is decided at sample sizes (one of nearly its
    size); that it is large enough is then made sure for all sizes.
    """

    facts: Facts
    sample: dict[str, int]
    slots: list[_Slot] = field(default_factory=list)
    offsets: list[Dim] = field(default_factory=list)
    proved: dict[Dim, bool] = field(default_factory=dict)
    exact: dict[Dim, list[int]] = field(default_factory=dict)  # places of just one size
    by_guess: dict[int, list[int]] = field(default_factory=dict)
    guesses: list[int] = field(default_factory=list)  # in order

    def take(self, size: Dim, span: Span) -> int:
        guess = self.guess(size)
        free = (p for p in self.near(size, guess) if self.slots[p].is_free(span))
        for place in islice(free, TRIES):
            if self.grow(place, size, guess):
                insort(self.slots[place].spans, span)
                return place
        self.slots.append(_Slot([size], guess, [span]))
        self.note(len(self.slots) - 1)
        return len(self.slots) - 1

    def near(self, size: Dim, guess: int) -> Iterator[int]:
        """Equal places first, then the smallest that is large enough, then the largest."""
        exact = self.exact.get(size, [])
        yield from exact
        equal, at = set(exact), bisect_left(self.guesses, guess)
        for g in (*self.guesses[at:], *reversed(self.guesses[:at])):
            yield from (p for p in self.by_guess[g] if p not in equal)

    def note(self, place: int) -> None:
        """Puts a place where `near` finds it."""
        slot = self.slots[place]
        if len(slot.sizes) == 1:
            insort(self.exact.setdefault(slot.sizes[0], []), place)
        if slot.guess not in self.by_guess:
            insort(self.guesses, slot.guess)
        insort(self.by_guess.setdefault(slot.guess, []), place)

    def forget(self, place: int) -> None:
        slot = self.slots[place]
        if len(slot.sizes) == 1:
            self.exact[slot.sizes[0]].remove(place)
        self.by_guess[slot.guess].remove(place)

    def guess(self, size: Dim) -> int:
        return size.evaluate(self.sample)

    def grow(self, place: int, size: Dim, guess: int) -> bool:
        """Makes a place hold so many bytes; False when its size would be too long a formula."""
        slot = self.slots[place]
        if any(self.fits(size, s) for s in slot.sizes):
            return True
        rest = [s for s in slot.sizes if not self.fits(s, size)]
        if len(rest) >= ALTERNATIVES:
            return False
        self.forget(place)
        slot.sizes = [*rest, size]
        slot.guess = max(slot.guess, guess)
        self.note(place)
        return True

    def fits(self, small: Dim, large: Dim) -> bool:
        key = large - small
        if key not in self.proved:
            self.proved[key] = at_least(large, small, self.facts)
        return self.proved[key]

    def offset(self, place: int) -> Dim:
        if not self.offsets:
            at = ZERO
            for slot in self.slots:
                self.offsets.append(at)
                at = at + slot.size
        return self.offsets[place]

    @property
    def total(self) -> Dim:
        return self.offset(len(self.slots) - 1) + self.slots[-1].size if self.slots else ZERO


def at_least(a: Dim, b: Dim, facts: Facts) -> bool:
    """Whether a >= b is known. Products of rounded quotients are compared factor by factor."""
    if prove_nonneg(a - b, facts, depth=1):
        return True
    if len(a.terms) != 1 or len(b.terms) != 1:
        return False
    (mono_a, x), (mono_b, y) = a.terms[0], b.terms[0]
    if not x >= y > 0:
        return False
    left = [f for f, n in mono_a for _ in range(n)]
    for factor in (f for f, n in mono_b for _ in range(n)):
        found = next((f for f in left if f == factor), None)
        if found is None:
            found = next((f for f in left if _factor_at_least(f, factor, facts)), None)
        if found is None:
            return False
        left.remove(found)
    return all(prove_nonneg(Dim.of(f) - 1, facts, depth=1) or _positive(f, facts) for f in left)


def _factor_at_least(f: Atom, g: Atom, facts: Facts) -> bool:
    """`ceil(p/q) >= ceil(r/s)` where p >= r >= 0 and q <= s."""
    if isinstance(f, str) or isinstance(g, str) or (f.kind, g.kind) != ("floor", "floor"):
        return prove_nonneg(Dim.of(f) - Dim.of(g), facts, depth=1)
    q, s = f.b.const, g.b.const
    if q is None or s is None or q > s:
        return False
    p, r = f.a - q + 1, g.a - s + 1
    x, y = (dict(d.terms).get((), 0) for d in (f.a, g.a))
    if q == s and x >= y and at_least(f.a - x, g.a - y, facts):
        return True
    return prove_nonneg(p - r, facts, depth=1) and prove_nonneg(r, facts, depth=1)


def _positive(f: Atom, facts: Facts) -> bool:
    """Whether a quotient is at least 1."""
    return (
        not isinstance(f, str)
        and f.kind == "floor"
        and prove_nonneg(f.a - f.b, facts, depth=1)
        and prove_nonneg(f.b - 1, facts, depth=1)
    )


def _placed(
    program: Program, offsets: dict[str, Dim], total: Dim, spans: dict[str, tuple[int, int]]
) -> Program:
    moved: dict[Buffer, Buffer] = {}

    def move(b: Buffer) -> Buffer:
        if b.name not in offsets or b.scope != "arena":
            return b
        if b not in moved:
            moved[b] = replace(b, offset=offsets[b.name])
        return moved[b]

    def expr(root: Expr) -> Expr:
        return rewrite(root, one)

    def one(e: Expr) -> Expr:
        if isinstance(e, Load) and (new := move(e.tensor)) is not e.tensor:  # type: ignore[arg-type]
            return replace(e, tensor=new)
        return e

    def place(s: Store) -> tuple[Buffer, tuple[Expr, ...]]:
        return move(s.buffer), tuple(map(expr, s.index))

    def step(s: Step) -> Step:
        if isinstance(s, Kernel) and s.alike is not None:
            return kernel_like(s, replace(s.alike, buffers=tuple(map(move, s.alike.buffers))))
        if isinstance(s, Kernel):
            return replace(s, body=map_stmts(s.body, expr, place))
        if isinstance(s, Repeat):
            inner, before = tuple(map(step, s.steps)), tuple(map(step, s.before))
            cond = None if s.cond is None else move(s.cond)
            return replace(s, steps=inner, before=before, cond=cond)
        return s

    steps = tuple(map(step, program.steps))
    buffers = tuple(move(b) for b in program.buffers if b.name in spans)
    return replace(program, steps=steps, buffers=buffers, arena=total)
