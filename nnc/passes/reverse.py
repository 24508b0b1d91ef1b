"""The derivative of a run-time loop: a loop that goes through the turns backwards.

The loop is asked to yield what its turns were: values carried in, and what is dear to compute
again. The backward loop carries the cotangents of the carried values and computes the rest of a
turn again. What a turn contributes to the cotangent of an outside tensor takes one of three ways:

* sliced: each turn reads its own slice `x[t, ...]`: the turn yields the cotangent of that slice;
* later: the contribution is taken out of the loop, which becomes one more axis: it yields the
  operands, and the sum over all turns is one contraction (or one scatter) after the loop;
* accumulated: carried along as a sum, where that is the least memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from nnc.ir.bounds import as_dim, turn_facts
from nnc.ir.dependence import sources
from nnc.ir.expr import (
    Idx,
    Load,
    names,
    subst,
    walk,
)
from nnc.ir.graph import Axis, Input, Loop, Node, Part, Region, operands, toposort
from nnc.ir.printer import print_node
from nnc.ir.rewrite import renamed, replace_operands
from nnc.lang.dims import Dim, Facts
from nnc.lang.types import TensorType
from nnc.passes.adjoint import Guard, Term
from nnc.passes.gather import solve
from nnc.passes.loops import Fresh
from nnc.passes.tables import is_part
from nnc.passes.turns import Outward, axis_of, direct, is_dear, is_view, slice_of
from nnc.passes.vjp import Reader, Share, fill, is_zero, name_of, node_of, read, total

Shares = list[Node | Share]
Sweep = Callable[
    [
        Sequence[tuple[Node, Node | None]],
        set[Node],
        frozenset[Node],
        Facts,
        Fresh,
        frozenset[Region],
    ],
    tuple[dict[Node, Node], dict[Node, Shares]],
]
X = TypeVar("X")
STACKED = 4  # elements of a turn kept for one of a sum that every turn would read and write
TYPICAL = 64  # what a size of which nothing is known counts as


def pull_loop(
    loop: Loop,
    cotangents: dict[int, Node],
    touched: set[Node],
    facts: Facts,
    fresh: Fresh,
    sweep: Sweep,
) -> Iterator[tuple[Node, Node | Share]]:
    """The contributions of a loop to the cotangents of its init values and captures.

    `cotangents`: by index of the result. `touched`: nodes (in the body too) with a derivative.
    """
    assert loop.cond is None, f"no derivative of a loop with a condition: {print_node(loop)}"
    carried = _carried(loop, cotangents, touched)
    if not carried and not any(i >= len(loop.carries) for i in cotangents):
        return
    seeds = {i: _placeholder(loop.carries[i]) for i in carried}
    ys: list[tuple[Node, Node | None]] = [(loop.next[i], s) for i, s in seeds.items()]
    given = _slices(loop, cotangents)
    ys += [(loop.yields[k], node) for k, node in given.items()]
    leaves = frozenset((*loop.carries, *loop.captures))
    around = frozenset(loop.regions)
    _, parts = sweep(ys, touched, leaves, turn_facts(loop, facts), fresh, around)
    turn = _Turn(loop, facts, seeds, frozenset(given.values()))
    ends = {i: _ended(loop.carries[i], parts) for i in carried}
    outside = {n: parts[n] for n in loop.captures if n in parts}
    yield from _Backward(turn, ends, cotangents, fresh).contributions(outside)


def _carried(loop: Loop, cotangents: dict[int, Node], touched: set[Node]) -> list[int]:
    """The carried values that get a cotangent."""
    n = len(loop.carries)
    wanted = {i for i in cotangents if i < n and loop.carries[i] in touched}
    yielded = [loop.yields[i - n] for i in cotangents if i >= n]
    while True:
        below = _below([*yielded, *(loop.next[i] for i in wanted)], touched)
        more = wanted | {i for i, c in enumerate(loop.carries) if c in below}
        if more == wanted:
            return sorted(wanted)
        wanted = more


def _below(roots: Sequence[Node], touched: set[Node]) -> set[Node]:
    """The nodes that a cotangent of the roots can reach."""
    stack, out = list(roots), set[Node]()
    while stack:
        node = stack.pop()
        if node not in out and (node in touched or isinstance(node, Loop)):
            out.add(node)
            stack += sources(node)
    return out


def _placeholder(like: Node) -> Input:
    return Input(type=like.type, span=like.span, name=name_of(like), kind="carry")


def _slices(loop: Loop, cotangents: dict[int, Node]) -> dict[int, Node]:
    """For each yield with a cotangent its slice of this turn."""
    n = len(loop.carries)
    return {i - n: slice_of(g, loop.var) for i, g in cotangents.items() if i >= n}


def _ended(carry: Input, parts: dict[Node, Shares]) -> Node:
    """The cotangent of a carried value at the start of the turn."""
    return total(carry, [node_of(p) for p in parts[carry]]) if carry in parts else fill(carry, 0)


# ---- one turn, before it is taken apart into two loops ------------------------------------


@dataclass(frozen=True)
class _Turn:
    """A turn of the loop with its derivative.

    `seeds`: placeholders for the cotangents of carried values; `given`: slices of those of yields.
    """

    loop: Loop
    facts: Facts  # outside
    seeds: dict[int, Input]
    given: frozenset[Node]

    def parts(self, roots: Iterable[Node]) -> tuple[set[Node], set[Node]]:
        """What depends on the turn: what the forward loop could compute, and what is backward."""
        ahead: set[Node] = set(self.loop.carries)
        back: set[Node] = {*self.seeds.values(), *self.given}
        for node in toposort(roots):
            reads = operands(node)
            if node in back or any(o in back for o in reads):
                back.add(node)
            elif self.loop.var in node.used or any(o in ahead for o in reads):
                ahead.add(node)
        return ahead, back

    def saved(self, roots: Sequence[Node], wanted: Collection[Node]) -> dict[Node, None]:
        """What the forward loop yields so that the backward one can compute the roots.

        `wanted` is saved in any case; then what is dear to compute again, or instead of several
        dear values that only one cheap value reads, that one.
        """
        ahead, back = self.parts(roots)
        saved = dict.fromkeys(wanted)

        def dear(n: Node) -> bool:
            return is_dear(n) or is_part(n)

        met = _reached(roots, lambda n: n in saved or (n in ahead and dear(n)), ahead | back)
        needed = [n for n in toposort(roots) if n in met and n in ahead and n not in saved]
        readers: dict[Node, list[Node | None]] = {r: [None] for r in roots}
        for node in met:
            for o in operands(node):
                readers.setdefault(o, []).append(node)
        chosen = dict.fromkeys(n for n in needed if dear(n))
        for node in needed:
            mine = [o for o in operands(node) if o in chosen and readers[o] == [node]]
            worth = not dear(node) and not is_view(node)  # a view gains nothing over its source
            if mine and worth and sum(map(size, mine)) >= size(node):
                chosen = {n: None for n in (*chosen, node) if n not in mine}
        saved |= chosen
        met = _reached(roots, lambda n: n in saved, ahead | back)
        whole = {c for c in self.loop.carries if c in met}  # and so their parts
        saved = {
            n: None for n in saved if n in wanted or not is_part(n) or whole.isdisjoint(n.read)
        }
        return {n: None for n in (*self.loop.carries, *saved) if n in met or n in saved}


def _reached(
    roots: Iterable[Node], stop: Callable[[Node], bool], inside: set[Node]
) -> dict[Node, None]:
    """The nodes of `inside` below the roots, down to where it stops."""
    stack, met = list(roots), dict[Node, None]()
    while stack:
        node = stack.pop()
        if node in inside and node not in met:
            met[node] = None
            stack += () if stop(node) else operands(node)
    return met


def size(node: Node) -> int:
    """About how many elements."""
    out = 1
    for d in node.type.shape:
        out *= d.evaluate(dict.fromkeys(d.names, TYPICAL))
    return out


# ---- out of the loop ----------------------------------------------------------------------


def _all_turns(s: Share, outward: Outward, facts: Facts) -> Share:
    """The contributions of all turns, after the loop."""
    guard: Guard | None = None
    for g in reversed(s.term.guard.chain() if s.term.guard else ()):
        guard = Guard(guard, outward(g.cond), g.holds)
    reader = replace(s.reader, axes=(outward.axis, *s.reader.axes), facts=facts)
    load = outward(s.load)
    assert isinstance(load, Load)
    return Share(reader, load, Term(guard, outward(s.term.value)), outward(s.g))


def _all_tensors(s: Share) -> dict[Node, None]:
    """What a contribution reads."""
    guards = s.term.guard.chain() if s.term.guard else []
    roots = (*s.load.index, s.term.value, s.g, *(g.cond for g in guards))
    return {e.tensor: None for e in walk(*roots) if isinstance(e, Load)}  # type: ignore[misc]


def _tensors(s: Share, inside: set[Node]) -> dict[Node, None]:
    """Values of the turn that it reads, other than slices of outside tensors."""
    found = _all_tensors(s)
    return {t: None for t in found if t in inside and direct(t, inside) is None}


# ---- the backward loop --------------------------------------------------------------------


@dataclass(frozen=True)
class _Slices:
    """The part of a tensor that one turn reads: some components of the index are `at`."""

    tensor: Node
    at: tuple[tuple[int, Dim], ...]  # (axis, index)

    def rest(self, xs: Sequence[X]) -> tuple[X, ...]:
        """The entries for the other axes."""
        fixed = {j for j, _ in self.at}
        return tuple(x for j, x in enumerate(xs) if j not in fixed)


@dataclass
class _Backward:
    """Sorts the contributions to outside tensors by the way they take, and builds the loop."""

    turn: _Turn
    ends: dict[int, Node]  # the cotangents of carried values at the start of the turn
    cotangents: dict[int, Node]
    fresh: Fresh
    sliced: dict[_Slices, list[Node]] = field(default_factory=dict)
    later: list[tuple[Node, Share]] = field(default_factory=list)
    summed: dict[Node, list[Node]] = field(default_factory=dict)
    stacked: dict[Node, None] = field(default_factory=dict)

    def contributions(self, outside: dict[Node, Shares]) -> Iterator[tuple[Node, Node | Share]]:
        inside = self._sort(outside)
        turn, loop = self.turn, self.turn.loop
        sums = {c: _placeholder(c) for c in self.summed}
        ends = [self.ends[i] for i in turn.seeds]
        ends += [total(c, [sums[c], *parts]) for c, parts in self.summed.items()]
        slices = [total(parts[0], parts) for parts in self.sliced.values()]
        _, back = turn.parts([*ends, *slices, *self.stacked])
        given = [n for n in self.stacked if n in back]
        saved = turn.saved([*ends, *slices, *given], [n for n in self.stacked if n not in back])
        stacks = _stacks(loop, saved)
        made = self._loop([*turn.seeds.values(), *sums.values()], ends, [*slices, *given], stacks)
        parts = [] if made is None else [Part.of(made, i) for i in range(len(made.results))]
        yield from zip((loop.init[i] for i in turn.seeds), parts, strict=False)
        yield from zip(sums, parts[len(turn.seeds) :], strict=False)
        yielded = parts[len(ends) :]
        for key, stack in zip(self.sliced, yielded, strict=False):
            yield key.tensor, self._whole(key, stack)
        stacks |= zip(given, yielded[len(slices) :], strict=True)
        for tensor, share in self.later:
            axis = axis_of(loop, share.reader.axes)
            outward = Outward(loop.var, axis, inside, stacks.__getitem__)
            yield tensor, _all_turns(share, outward, turn.facts)

    def _loop(
        self,
        carries: Sequence[Input],
        ends: Sequence[Node],
        yields: Sequence[Node],
        stacks: dict[Node, Node],
    ) -> Loop | None:
        """The turns backwards, with what the forward loop knew read from `stacks`."""
        if not carries and not yields:
            return None
        loop = self.turn.loop
        var = self.fresh(loop.var)
        moved = _moved([*ends, *yields], loop.var, var, stacks)
        init = [self.cotangents.get(i) or fill(s, 0) for i, s in self.turn.seeds.items()]
        out = replace(
            loop,
            name=name_of(loop),
            regions=(),
            after=(),
            var=var,
            carries=tuple(carries),
            init=(*init, *(fill(c, 0) for c in self.summed)),
            next=tuple(moved[e] for e in ends),
            yields=tuple(moved[y] for y in yields),
            reverse=not loop.reverse,
        )
        return replace(out, type=out.results[0])

    def _sort(self, outside: dict[Node, Shares]) -> set[Node]:
        """Decides the way of each contribution; gives all nodes of the turn met so far."""
        every = [(c, p) for c, parts in outside.items() for p in parts]
        read = [n for _, p in every for n in (_all_tensors(p) if isinstance(p, Share) else (p,))]
        ahead, back = self.turn.parts([*self.ends.values(), *read])
        inside = ahead | back
        for c, p in sorted(every, key=lambda e: -size(e[0])):  # big ones may pay for small ones
            if isinstance(p, Share):
                self._sort_share(c, p, inside)
            elif not is_zero(p):
                self.summed.setdefault(c, []).append(p)
        return inside

    def _sort_share(self, tensor: Node, share: Share, inside: set[Node]) -> None:
        reads = _tensors(share, inside)
        known = {*self.stacked, *self.turn.loop.yields}
        known |= {parts[0] for parts in self.sliced.values() if len(parts) == 1}
        cost = sum(size(n) for n in reads if n not in known)
        key = self._slice(tensor, share) if cost else None
        again = any(n.after for n in reads)  # of all turns it would be kept after all
        if key is not None:
            self.sliced.setdefault(key, []).append(self._of_slice(key, share))
        elif not again and self._is_later(share, cost):
            self.stacked |= reads
            self.later.append((tensor, share))
        else:
            self.summed.setdefault(tensor, []).append(share.node())

    def _is_later(self, share: Share, cost: int) -> bool:
        axes = share.reader.axes
        axis = axis_of(self.turn.loop, axes)
        load = subst(share.load, {self.turn.loop.var: Dim.of(axis.var)})
        assert isinstance(load, Load)
        way = solve(load, (axis, *axes), self.turn.facts)
        if way is None or axis not in way.raxes or not cost:
            return True
        return len(way.raxes) > 1 and cost <= STACKED * size(share.load.tensor)  # type: ignore[arg-type]

    def _slice(self, tensor: Node, share: Share) -> _Slices | None:
        """The part of the tensor that only this turn reads."""
        if share.load.other is not None:
            return None
        var, loops = self.turn.loop.var, {a.var for a in share.reader.axes}
        mine = [e for e in share.load.index if var in names((e,))]
        at = as_dim(mine[0]) if len(mine) == 1 else None
        form = at.linear_in(var) if at is not None else None
        if form is None or not form[0].is_const:
            return None
        places = [(j, as_dim(e)) for j, e in enumerate(share.load.index)]
        fixed = tuple((j, d) for j, d in places if d is not None and not d.names & loops)
        return _Slices(tensor, fixed) if at in [d for _, d in fixed] else None

    def _of_slice(self, key: _Slices, share: Share) -> Node:
        """The contribution to the slice."""
        kind = TensorType(key.tensor.type.dtype, key.rest(key.tensor.type.shape))
        part = Input(type=kind, name=key.tensor.name)
        load = replace(share.load, tensor=part, index=key.rest(share.load.index))
        return replace(share, load=load).node()

    def _whole(self, key: _Slices, stack: Node) -> Share:
        """The contribution to the tensor, given those to all slices."""
        axes = tuple(Axis(f"$i{j}", e) for j, e in enumerate(stack.type.shape))
        fixed = {j: d.subst({self.turn.loop.var: Dim.of(axes[0].var)}) for j, d in key.at}
        rest = iter(Dim.of(a.var) for a in axes[1:])
        rank = range(key.tensor.type.rank)
        index = tuple(Idx(fixed[j] if j in fixed else next(rest)) for j in rank)
        load = Load(stack.type.dtype, key.tensor, index)
        term = Term(None, read(stack, axes))
        reader = Reader(axes, load, term, self.turn.facts, self.turn.loop.span)
        return Share(reader, load, term, term.value)


def _stacks(loop: Loop, saved: Iterable[Node]) -> dict[Node, Node]:
    """For each saved value of a turn those of all turns."""
    yields = (*loop.yields, *(n for n in saved if n not in loop.yields))
    out = loop
    if len(yields) > len(loop.yields):
        out = replace(loop, yields=yields)
        out = replace(out, type=out.results[0])
    n, outside = len(loop.carries), set(loop.captures)
    return {y: Part.of(out, n + yields.index(y)) for y in yields if y not in outside}


def _moved(roots: Sequence[Node], old: str, new: str, stacks: dict[Node, Node]) -> dict[Node, Node]:
    """The roots (and all below) as values of a turn over the variable `new`."""
    moved: dict[Node, Node] = {}
    env = {old: Dim.of(new)}
    for node in toposort(roots, lambda n: () if n in stacks else operands(n)):
        if node in stacks:
            moved[node] = slice_of(stacks[node], new)
        else:
            moved[node] = renamed(replace_operands(node, moved.__getitem__), env)
    return moved
