"""A recurrent loop of several layers becomes one loop for each, one behind the other.

`h0 = cell(x[t], h0); h1 = cell(h0, h1); yield h1 @ out`: h1 does not feed h0, so a first loop
computes h0 of all turns and a second one reads them (loop distribution). What is then computed from
the first loop's values alone, `h0 @ w`, is one contraction for all turns (`nnc.passes.hoist`), and
so is what no turn needs, `h1 @ out`. Each loop reads fewer weights: they stay in the cache.

That is done only where a contraction with a tensor that no turn changes is gained, and the values
of all turns that must be kept for it are not many more than it makes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from nnc.ir.expr import Load, names, walk
from nnc.ir.graph import Compute, Loop, Node, Part, operands
from nnc.ir.rewrite import renamed, replace_operands
from nnc.lang.dims import Dim
from nnc.passes.hoist import all_turns, hoist
from nnc.passes.loops import Fresh
from nnc.passes.reverse import size
from nnc.passes.turns import slice_of

RATIO = 8  # of the elements kept to those computed, and the other way round, at most


def distribute(loop: Loop, fresh: Fresh) -> tuple[Loop, list[Node]]:
    """The results of a loop by index, and the last of the loops that compute them.

    `fresh` names new loops.
    """
    found: dict[int, Node] = {}
    places = list(range(len(loop.results)))  # of the results of what is left
    while (cut := _cut(loop)) is not None:
        first, own, rest, after = cut.apart(fresh)
        found |= {places[i]: Part.of(first, k) for k, i in enumerate(own)}
        found |= {places[i]: node for i, node in after.items()}
        if rest is None:
            loop = first
            break
        loop, places = rest, [p for p in places if p not in found]
    else:
        found |= {p: Part.of(loop, k) for k, p in enumerate(places)}
    return loop, [found[i] for i in range(len(found))]


@dataclass(frozen=True)
class _Cut:
    """`first`: the carries of the first loop, by index; `crossing`: the values of nodes of the turn
    below them that the rest reads."""

    loop: Loop
    first: tuple[int, ...]
    crossing: tuple[Node, ...]
    rest: tuple[Node, ...]  # the nodes of the turn that the second loop computes

    def apart(self, fresh: Fresh) -> tuple[Loop, list[int], Loop | None, dict[int, Node]]:
        """The first loop with the indices of its first results in those of the whole; the second
        loop, or without one what is computed for all turns."""
        loop, n = self.loop, len(self.loop.carries)
        outside = {k for k, y in enumerate(loop.yields) if y not in self.rest}
        kept = tuple(loop.yields[k] for k in sorted(outside))
        more = tuple(c for c in self.crossing if c not in kept)
        made = _over(loop, self.first, (*kept, *more))
        own = [*self.first, *(n + k for k in sorted(outside))]
        at = {y: len(self.first) + k for k, y in enumerate((*kept, *more))}
        stacks: dict[Node, Node] = {c: Part.of(made, at[c]) for c in self.crossing}
        left = [i for i in range(n) if i not in self.first]
        yields = {n + k: y for k, y in enumerate(loop.yields) if k not in outside}
        if left:
            return made, own, self._second(left, list(yields.values()), stacks, fresh), {}
        inside = {*loop.body, *loop.carries}
        for node in self.rest:
            assert isinstance(node, Compute), node
            stacks[node] = all_turns(node, loop, inside, stacks)
        return made, own, None, {i: stacks[y] for i, y in yields.items()}

    def _second(
        self, left: Sequence[int], yields: Sequence[Node], stacks: dict[Node, Node], fresh: Fresh
    ) -> Loop:
        loop, var = self.loop, fresh(self.loop.var)
        new: dict[Node, Node] = {node: slice_of(s, var) for node, s in stacks.items()}

        def get(node: Node) -> Node:
            return new.get(node, node)

        for node in self.rest:
            new[node] = renamed(replace_operands(node, get), {loop.var: Dim.of(var)})
        over = _over(loop, left, yields)
        over = replace(over, var=var, next=tuple(map(get, over.next)))
        over = replace(over, yields=tuple(map(get, over.yields)))
        return hoist(replace(over, type=over.results[0]))


def _over(loop: Loop, carried: Sequence[int], yields: Sequence[Node]) -> Loop:
    """The loop with some of its carries and other yields."""
    out = replace(
        loop,
        carries=tuple(loop.carries[i] for i in carried),
        init=tuple(loop.init[i] for i in carried),
        next=tuple(loop.next[i] for i in carried),
        yields=tuple(yields),
    )
    return replace(out, type=out.results[0])


def _cut(loop: Loop) -> _Cut | None:
    """Where the loop is cut, nearest to its start."""
    if loop.cond is not None or any(_stays_whole(n, loop) for n in loop.body):
        return None
    turn = _Turn(loop)
    for carried in sorted(turn.candidates(), key=int.bit_count):
        cut = turn.cut(carried)
        if cut is not None:
            return cut
    return None


def _stays_whole(node: Node, loop: Loop) -> bool:
    """Whether a turn with this node is not taken apart: loops in it, and what is computed again."""
    return isinstance(node, Loop) or bool(node.after) or len(node.regions) > len(loop.regions)


@dataclass
class _Turn:
    """The carries that each node of a turn depends on, as bits."""

    loop: Loop
    depends: dict[Node, int] = field(default_factory=dict)
    closed: list[int] = field(default_factory=list)  # for each carry all that it is computed from

    def __post_init__(self) -> None:
        loop = self.loop
        self.depends |= {c: 1 << i for i, c in enumerate(loop.carries)}
        for node in loop.body:
            bits = 0
            for o in operands(node):
                bits |= self.depends.get(o, 0)
            self.depends[node] = bits
        self.closed = [self.depends.get(n, 0) | 1 << i for i, n in enumerate(loop.next)]
        changed = True
        while changed:
            before = list(self.closed)
            self.closed = [self.below(bits) for bits in self.closed]
            changed = self.closed != before

    def below(self, bits: int) -> int:
        out = bits
        for i in _ones(bits):
            out |= self.closed[i]
        return out

    def candidates(self) -> dict[int, None]:
        """Sets of carries such that a contraction is computed from these alone."""
        found = (n for n in self.loop.body if self.depends[n] and self.has_weight(n))
        return dict.fromkeys(self.below(self.depends[n]) for n in found)

    def cut(self, carried: int) -> _Cut | None:
        """The loop cut behind these carries, if that is worth it."""
        loop, first = self.loop, tuple(_ones(carried))
        body, start = set(loop.body), {loop.carries[i] for i in first}
        needed = _below([loop.next[i] for i in first], body)
        known = start | {n for n in needed if self.depends[n]}
        outs = [n for i, n in enumerate(loop.next) if i not in first]
        outs += [y for y in loop.yields if y not in known]
        mine = _below(outs, body - known)
        rest = tuple(n for n in loop.body if n in mine)
        gained = self.gained(rest, known)
        read = dict.fromkeys([o for n in rest for o in operands(n)] + outs)
        crossing = tuple(n for n in read if n in known)
        alone = len(first) == len(loop.carries)
        if not gained or not all(isinstance(n, Compute) for n in rest if alone):
            return None
        if not alone and not any(self.is_slow(n, ~carried) for n in rest):
            return None
        kept, made = sum(map(size, crossing)), sum(map(size, gained))
        shown = sum(size(y) for y in loop.yields if y in mine)
        if kept > RATIO * made or made > RATIO * (kept + shown):
            return None
        return _Cut(loop, first, crossing, rest)

    def gained(self, rest: Sequence[Node], known: set[Node]) -> list[Node]:
        """The contractions that are next to the first loop's values."""
        near, out = set(known), list[Node]()
        for node in rest:
            if all(o in near for o in operands(node) if o in self.depends):
                if isinstance(node, Compute) and not node.op:
                    near.add(node)
                elif self.depends[node] and self.has_weight(node):
                    out.append(node)
        return out

    def is_slow(self, node: Node, bits: int) -> bool:
        """Whether it is a reduction of values that hang on these carries."""
        return isinstance(node, Compute) and bool(node.op and self.depends[node] & bits)

    def has_weight(self, node: Node) -> bool:
        """Whether it sums products with a matrix that is the same in all turns."""
        if not isinstance(node, Compute) or node.op != "sum":
            return False
        kept, summed = ({a.var for a in axes} for axes in (node.axes, node.raxes))
        for e in walk(node.body):
            if isinstance(e, Load) and e.tensor not in self.depends:
                used = names(e.index)
                if used & kept and used & summed and self.loop.var not in used:
                    return True
        return False


def _ones(bits: int) -> Iterator[int]:
    return (i for i in range(bits.bit_length()) if bits >> i & 1)


def _below(roots: Sequence[Node], inside: set[Node]) -> set[Node]:
    stack, out = list(roots), set[Node]()
    while stack:
        node = stack.pop()
        if node in inside and node not in out:
            out.add(node)
            stack += operands(node)
    return out
