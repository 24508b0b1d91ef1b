"""Simplification: small rewrite rules, applied operands first until none fires.

Those on expressions are in `nnc.passes.rules`. Equal nodes and expressions become one, constants
are folded, dead nodes are no longer reached. Nothing here may change a bit of any result.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from operator import is_

from nnc.ir.bounds import axis_ranges, demands, loop_facts, turn_facts
from nnc.ir.expr import Const, Expr, Idx, Load, children, walk, with_children
from nnc.ir.form import Result, emptied, head_of, names_of
from nnc.ir.graph import (
    Axis,
    Compute,
    Constant,
    Grad,
    Graph,
    Input,
    Loop,
    Node,
    Part,
    Update,
    all_nodes,
    exprs_of,
)
from nnc.ir.rewrite import replace_operands, with_exprs, with_form, with_roots
from nnc.ir.share import Interner, node_key
from nnc.lang.dims import Facts
from nnc.passes.loops import tidy
from nnc.passes.rules import Scope, is_zero, rewritten


def simplify(graph: Graph) -> Graph:
    """The same function, simpler. Simplifying again changes nothing."""
    while True:
        graph = tidy(graph)
        work = _Simplifier(graph)
        work.block(graph.order, Around(graph.facts))
        graph = tidy(with_roots(graph, [work.new[r] for r in graph.roots]))
        if not work.again:
            return graph


@dataclass(frozen=True)
class Around:
    """What is known where a node stands: facts, and the run-time loops around it."""

    facts: Facts
    loops: tuple[Axis, ...] = ()

    def inside(self, loop: Loop) -> Around:
        return Around(turn_facts(loop, self.facts), (*self.loops, Axis(loop.var, loop.trip)))


class _Simplifier:
    """Rebuilds a graph operands first. `again`: a second round may find more."""

    def __init__(self, graph: Graph) -> None:
        # What a gradient is asked for keeps its identity: merged with an equal node it would get
        # more.
        self.kept = {w for n in all_nodes(graph) if isinstance(n, Grad) for w in n.wrt}
        self.fixed: set[Node] = set()
        self.first: dict[Hashable, Node] = {}
        self.new: dict[Node, Node] = {}
        self.results: dict[Loop, list[Node]] = {}
        self.again = False

    def block(self, order: Iterable[Node], around: Around) -> None:
        """The nodes of one scope; as deep as loops are nested."""
        for node in order:
            match node:
                case Loop():
                    self.results[node] = self._loop(node, around)
                case Part(source=Loop() as loop, index=index):
                    made = self.results[loop][index]
                    if isinstance(made, Part):
                        made = replace(node, source=made.source, index=made.index)
                    self.new[node] = self._shared(made, node in self.kept)
                case _:
                    moved = replace_operands(node, self.new.__getitem__)
                    made = _node(moved, around, self.fixed, node in self.kept)
                    self.new[node] = self._shared(made, node in self.kept)

    def _shared(self, made: Node, kept: bool) -> Node:
        if kept:
            self.fixed.add(made)
        elif not isinstance(made, Input):
            made = self.first.setdefault(node_key(made), made)
        return made

    def _loop(self, loop: Loop, around: Around) -> list[Node]:
        """What stands for the results: a carried value that never changes is its init."""
        new = self.new
        carried = []
        for i, c in enumerate(loop.carries):
            if loop.next[i] in (c, loop.init[i]) and c not in self.kept:
                new[c] = new[loop.init[i]]
            else:
                new[c] = c
                carried.append(i)
        self.block(loop.body, around.inside(loop))
        yields = tuple(dict.fromkeys(new[y] for y in loop.yields))
        made = replace(
            loop,
            carries=tuple(loop.carries[i] for i in carried),
            init=tuple(new[loop.init[i]] for i in carried),
            next=tuple(new[loop.next[i]] for i in carried),
            yields=yields,
            cond=None if loop.cond is None else new[loop.cond],
            after=tuple(dict.fromkeys(new[a] for a in loop.after)),
        )
        pairs = zip(made.carries, made.init, made.next, strict=True)
        self.again |= any(end in (c, start) and c not in self.kept for c, start, end in pairs)
        if not made.results:
            return [new[i] for i in loop.init]
        made = replace(made, type=made.results[0])
        places = [carried.index(i) if i in carried else None for i in range(len(loop.carries))]
        places += [len(carried) + yields.index(new[y]) for y in loop.yields]
        return [
            new[loop.init[i]] if at is None else Part.of(made, at) for i, at in enumerate(places)
        ]


def _node(node: Node, around: Around, fixed: set[Node], kept: bool) -> Node:
    if isinstance(node, Compute | Update):
        node = _formula(node, around, fixed)
    for rule in () if kept else NODE_RULES:
        node = rule(node) or node
    return node


def _formula(node: Compute | Update, around: Around, fixed: set[Node]) -> Compute | Update:
    """The node with the rules applied to its expressions: to those of one form once."""
    raxes = node.raxes if isinstance(node, Compute) else ()
    of, axes = node.formed, (*node.axes, *raxes)
    if any(_seen_through(t) for t in of.tensors):  # type: ignore[arg-type]
        roots = exprs_of(node)
        made = _exprs(roots, axes, around, fixed)
        same = all(map(is_, made, roots))
        return node if same else with_exprs(node, made, None)
    head = node.head if isinstance(node, Compute) else node.axes
    key = ("simplified", around, head, of.telling)
    found = of.form.memo.get(key)
    if found is None:
        empty = emptied(exprs_of(node), of)
        made = _exprs(empty, axes, around, set())
        same = all(map(is_, made, empty))
        found = of.form.memo[key] = Result.of(None if same else made, of)
    assert isinstance(found, Result)
    return node if found.made is None else with_form(node, found.at(of))


def _seen_through(node: Node) -> bool:
    """Whether a rule may look at what a tensor is."""
    match node:
        case Constant(data=data):
            return len(data) == 1
        case Compute(op="") if head_of(node.formed.form) == "const":
            return True
        case Compute(op="") if head_of(node.formed.form) == "load":
            return any("." in n for n in names_of(node.formed.form))
    return False


# ---- rules of nodes -----------------------------------------------------------------------


def copy(node: Node) -> Node | None:
    """y[i, j] = x[i, j] is x"""
    match node:
        case Compute(op="") if head_of(node.formed.form) == "load":
            body = node.body
            if not isinstance(body, Load) or body.other is not None or body.check is not None:
                return None
            bare = [e.dim.name if isinstance(e, Idx) else None for e in body.index]
            if bare == [a.var for a in node.axes] and body.tensor.type == node.type:
                return body.tensor  # type: ignore[return-value]
    return None


def sum_of_zeros(node: Node) -> Node | None:
    """sum[k] 0 = 0"""
    match node:
        case Compute(op="sum") if head_of(node.formed.form) == "const" and is_zero(node.body):
            return replace(node, op="", raxes=())
    return None


def constant_guard(node: Node) -> Node | None:
    """x with [i] = v if true is x with [i] = v; x with [i] = v if false is x"""
    match node:
        case Update(guard=Const(value=value), base=base):
            return replace(node, guard=None) if value else base
    return None


NODE_RULES: tuple[Callable[[Node], Node | None], ...] = (copy, sum_of_zeros, constant_guard)


# ---- expressions --------------------------------------------------------------------------


def _exprs(
    roots: tuple[Expr, ...], axes: tuple[Axis, ...], around: Around, fixed: set[Node]
) -> tuple[Expr, ...]:
    """Applies the rules operands first until none fires; shares what is equal."""
    inside, ranges = loop_facts(axes, around.facts), axis_ranges((*around.loops, *axes))
    known, intern, tied = demands(roots), Interner(), frozenset(fixed)
    new: dict[int, Expr] = {}
    for e in walk(*roots):
        scope = Scope(inside.plus(*known[id(e)]), ranges, tied)
        made = intern(with_children(e, tuple(new[id(c)] for c in children(e))))
        new[id(e)] = intern(rewritten(made, scope))
    return tuple(new[id(r)] for r in roots)
