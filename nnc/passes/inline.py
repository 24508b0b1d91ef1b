"""Inlining: which values own a buffer; all others are evaluated inside their users' expressions.

A value is inlined when that repeats no costly work: it is read at one place that needs each element
at most once, or it is cheap and reads no more than its own result would be (a view, a cast, a
broadcast). The decision looks at structure only, never at names.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import copysign, nan

import numpy as np

from nnc.ir.bounds import axis_ranges
from nnc.ir.expr import Const, Expr, Idx, Load, Op, Select, Tensor, rewrite, subst_exprs, walk
from nnc.ir.form import KEPT, Formed, Result
from nnc.ir.graph import (
    Axis,
    Compute,
    External,
    Graph,
    Loop,
    Node,
    Part,
    Stop,
    Update,
    all_nodes,
    exprs_of,
    operands,
    users,
)
from nnc.ir.rewrite import (
    deep,
    pattern,
    reads_of,
    rebuilt,
    transform,
    with_base,
    with_exprs,
    with_form,
    with_roots,
)
from nnc.ir.scalar import SCALARS, cast
from nnc.lang.dims import ONE, ZERO, Dim, Facts, Range, dim_prod, prove_nonneg
from nnc.lang.types import DTYPES
from nnc.passes.schedule.words import is_words

EXACT = {
    "add",
    "sub",
    "mul",
    "div",
    "max",
    "min",
    "abs",
    "cast",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
}
MAX_ONCE = 120  # expressions of a body that is inlined at its only place
MAX_SHARED = 24  # expressions of a body that is inlined at several


def inline(graph: Graph) -> Graph:
    """The same function with fewer nodes: cheap and single-use values inside users, no `Stop`."""
    if any(isinstance(n, Stop) for n in all_nodes(graph)):
        graph = transform(graph, lambda n: n.source if isinstance(n, Stop) else n)
    state = _Inliner(graph)
    for node in state.users:
        state.visit(node)
    return with_roots(graph, [state.new[r] for r in graph.roots])


@dataclass
class _Inliner:
    graph: Graph
    new: dict[Node, Node] = field(default_factory=dict)
    inlined: set[Node] = field(default_factory=set)  # original nodes
    source: dict[Node, Node] = field(default_factory=dict)  # a reduction whose epilogue it may be

    ranges: dict[str, Range] = field(default_factory=dict)  # of the node being rebuilt

    def __post_init__(self) -> None:
        self.users = users(self.graph.roots)
        self.sites: dict[Node, list[tuple[Node, Load]]] = {}
        self.pinned: set[Node] = set(self.graph.roots)
        for node in all_nodes(self.graph):
            if isinstance(node, Update):
                self.pinned.add(node.base)
            if isinstance(node, Loop):
                self.pinned |= {*node.init, *node.outs}
            if isinstance(node, External):
                self.pinned |= set(node.inputs)
            if isinstance(node, Compute) and is_words(node):
                self.pinned |= set(node.read)
            for tensor, load in reads_of(node):
                self.sites.setdefault(tensor, []).append((node, load))
                if load.check is not None or not all(isinstance(i, Idx) for i in load.index):
                    self.pinned.add(tensor)

    def visit(self, node: Node) -> None:
        new = self.new[node] = self.rebuild(node)
        if isinstance(new, Compute) and not new.raxes and node not in self.pinned:
            self.note_source(node)
            if self.worth(node, new):
                self.inlined.add(node)

    def rebuild(self, node: Node) -> Node:
        """The node over the rebuilt operands, those that are inlined substituted."""
        ops = operands(node)
        changed: Node
        if all(self.new[o] is o and o not in self.inlined for o in ops):
            changed = node
        else:
            match node:
                case Compute():
                    changed = self.substituted(node)
                case Update():
                    changed = with_base(self.substituted(node), self.new[node.base])
                case Part(source=source):
                    changed = replace(node, source=self.new[source])  # type: ignore[arg-type]
                case Loop():
                    changed = self.loop(node)
                case External(inputs=inputs):
                    changed = replace(node, inputs=tuple(self.new[i] for i in inputs))
                case _:
                    raise AssertionError(node)
        if node.after and changed is not node:
            changed = replace(changed, after=self.order(node.after))
        return _shared(changed) if isinstance(changed, Compute) else changed

    def substituted(self, node: Compute | Update) -> Compute | Update:
        """The node with its operands replaced or substituted: those of one form alike."""
        order, key = self.outline(node)
        memo = node.formed.form.memo
        found = memo.get(key)
        if found is None:
            self.ranges, known = _ranges(node), dict[object, Expr]()
            made = tuple(self.expand(e, known) for e in exprs_of(node))
            if isinstance(node, Compute):
                made = tuple(map(share, made))
            memo[key] = Result.over(made, order)
            return with_exprs(node, made, None)
        assert isinstance(found, Result), found
        return with_form(node, found.at(order))

    def outline(self, node: Compute | Update) -> tuple[Formed, Hashable]:
        """What the new expressions hold, and what they depend on besides."""
        of = node.formed
        tensors: list[Tensor] = []
        parts: list[Hashable] = []
        checks, numbers = list(of.checks), list(of.numbers)
        for t in of.tensors:
            new: Node = self.new.get(t, t)  # type: ignore[call-overload]
            if t not in self.inlined:
                tensors.append(new)
                parts.append(None)
                continue
            assert isinstance(new, Compute), new
            tensors += new.formed.tensors
            checks += new.formed.checks
            numbers += new.formed.numbers
            parts.append((new.formed.form, new.formed.telling, new.head))
        head = node.head if isinstance(node, Compute) else node.axes
        own = (of.telling, head, self.graph.facts)
        order = dict.fromkeys(tensors)
        same = (_pattern(map(id, tensors)), _pattern(map(id, checks)), _pattern(numbers))
        key = ("inlined", own, tuple(parts), same)
        return Formed(of.form, tuple(order), tuple(numbers), tuple(checks)), key

    def order(self, after: Iterable[Node]) -> tuple[Node, ...]:
        """What stands for nodes that come before another."""
        found = (operands(self.new[a]) if a in self.inlined else (self.new[a],) for a in after)
        return tuple(dict.fromkeys(n for nodes in found for n in nodes))

    def loop(self, node: Loop) -> Node:
        """The loop over the rebuilt captures; its body is not changed otherwise."""
        init = tuple(self.new[i] for i in node.init)

        def one(n: Node) -> Node:
            return self.inside(n) if isinstance(n, Compute | Update) else n

        def capture(n: Node) -> Node:
            return n if n in self.inlined else self.new[n]

        return rebuilt(replace(node, init=init), capture, deep(one))

    def inside(self, node: Compute | Update) -> Node:
        """A node of a loop's body with the captures that are inlined substituted."""
        if not any(tensor in self.inlined for tensor in node.formed.tensors):
            return node
        memo: dict[object, Expr] = {}
        self.ranges = _ranges(node)
        if isinstance(node, Compute):
            return replace(node, body=self.expand(node.body, memo))
        return replace(
            node,
            target=tuple(self.expand(t, memo) for t in node.target),
            value=self.expand(node.value, memo),
            guard=None if node.guard is None else self.expand(node.guard, memo),
        )

    def expand(self, body: Expr, memo: dict[object, Expr]) -> Expr:
        def one(e: Expr) -> Expr:
            if not isinstance(e, Load):
                return e
            tensor: Node = e.tensor  # type: ignore[assignment]
            if tensor not in self.inlined:
                new = self.new.get(tensor, tensor)
                return e if new is tensor else replace(e, tensor=new)
            key = (tensor, *(i.dim if isinstance(i, Idx) else i for i in e.index), e.other)
            if key not in memo:
                memo[key] = self.inlined_at(tensor, e)
            return memo[key]

        return rewrite(body, one)

    def inlined_at(self, tensor: Node, load: Load) -> Expr:
        source = self.new[tensor]
        assert isinstance(source, Compute), source
        env = {a.var: i for a, i in zip(source.axes, load.index, strict=True)}
        body = subst_exprs(source.body, env)
        if load.other is None:
            return body
        zero = load.other
        if isinstance(zero, Const) and _keeps_zero(source, zero):

            def else_zero(e: Expr) -> Expr:
                return replace(e, other=cast(zero, e.dtype)) if isinstance(e, Load) else e

            return rewrite(body, else_zero)
        inside = _inside(load.index, source.axes, self.ranges, self.graph.facts)
        return body if inside is None else Select(load.dtype, inside, body, load.other)

    # ---- the decision -------------------------------------------------------------------------

    def note_source(self, node: Node) -> None:
        """Whether it is element-wise over a reduction that nobody else reads."""
        for o in node.read:
            if len(self.users[o]) > 1 or not isinstance(o, Compute):
                continue
            reduction = o if o.raxes else self.source.get(o)
            if reduction is not None and o not in self.pinned and self.elementwise(node, o):
                self.source[node] = reduction

    def elementwise(self, node: Node, o: Node) -> bool:
        """Whether every read of `o` in `node` is at the iteration's own element, each once."""
        assert isinstance(node, Compute)
        axes = {a.var for a in node.axes if a.extent != ONE}
        for user, load in self.sites[o]:
            names = [i.dim.name for i in load.index if isinstance(i, Idx) and i.dim != ZERO]
            if user is node and (set(names) != axes or len(names) != len(axes)):
                return False
        return True

    def worth(self, node: Node, new: Compute) -> bool:
        facts, (body,) = self.graph.facts, pattern(new)
        exprs = list(walk(body))
        sites = self.sites.get(node, [])
        loads = [e for e in exprs if isinstance(e, Load)]
        if any(user not in self.users for user, _ in sites):  # every turn would do it again
            return _plain_view(body) or (not loads and len(exprs) <= 8 and _cheap(exprs))
        if isinstance(body, Const) or (not loads and len(exprs) <= 8 and _cheap(exprs)):
            return True
        if len(loads) > 1 and any(_is_padded(user, load) for user, load in sites):
            return False
        if any(map(_divides, loads)) and any(_is_window(user, load) for user, load in sites):
            return False
        if not new.axes and len(exprs) <= MAX_SHARED and all(e.check is None for e in loads):
            return True  # a number of its own: computed once in every kernel that needs it
        if is_words(new):
            return True
        if _narrows(new, loads) and (len(sites) > 1 or any(map(_is_beyond, sites))):
            return False
        once = len(sites) == 1 and len(exprs) <= MAX_ONCE and _once(node, sites[0][0], facts)
        view = isinstance(body, Load) and body.check is None
        if node in self.source and not view:
            user = sites[0][0] if sites else node
            return once and isinstance(user, Compute) and not user.raxes
        if once or (len(exprs) <= MAX_SHARED and _cheap(exprs) and _light(new, loads)):
            return True
        # Random numbers and the like: a function of scalars is computed again, not stored.
        small = len(exprs) <= MAX_SHARED and all(not e.index for e in loads)
        return bool(new.axes) and small and all(_once(node, user, facts) for user, _ in sites)


def _narrows(new: Compute, loads: list[Load]) -> bool:
    """Whether it is of fewer bytes than what it is made from: less goes through memory."""
    large = [e for e in loads if len(e.index) == len(new.axes) > 0]
    own = DTYPES[new.type.dtype].bytes
    return any(DTYPES[e.dtype].bytes > own for e in large)


def _is_beyond(site: tuple[Node, Load]) -> bool:
    """Whether what is computed is read with more around it: it may be done where its operand is."""
    return site[1].other is not None


def _shared(node: Compute) -> Compute:
    """The node with equal expressions shared; most share them already."""
    form = node.formed.form
    known = form.memo.get("shared")
    if known is None:
        known = form.memo["shared"] = len(set(form.key)) == len(form.key)
    return node if known else replace(node, body=share(node.body))


def _pattern(xs: Iterable[Hashable]) -> tuple[int, ...]:
    """Which of them are equal."""
    first: dict[Hashable, int] = {}
    return tuple(first.setdefault(x, len(first)) for x in xs)


def _ranges(node: Node) -> dict[str, Range]:
    """The loop variables of a node."""
    if not isinstance(node, Compute | Update):
        return {}
    return axis_ranges((*node.axes, *(node.raxes if isinstance(node, Compute) else ())))


def _is_padded(user: Node, load: Load) -> bool:
    """Whether a sum reads it through a window: conditions around several loads cost more there."""
    return load.other is not None and isinstance(user, Compute) and user.op == "sum"


def _is_window(user: Node, load: Load) -> bool:
    """Whether a sum reads it at sums of kept and summed variables: elements many times."""
    if not isinstance(user, Compute) or user.op != "sum":
        return False
    kept, summed = {a.var for a in user.axes}, {a.var for a in user.raxes}
    dims = (i.dim.names for i in load.index if isinstance(i, Idx))
    return any(names & kept and names & summed for names in dims)


def _divides(load: Load) -> bool:
    """Whether it reads at quotients or remainders of variables: costly places in a window."""
    dims = (i.dim for i in load.index if isinstance(i, Idx))
    return any(f.kind in ("floor", "mod") for d in dims for f in d.functions)


def _plain_view(body: Expr) -> bool:
    return isinstance(body, Load) and body.check is None and body.other is None


def _once(node: Node, user: Node, facts: Facts) -> bool:
    """Whether the loops of `user` are not longer than `node` has elements."""
    assert isinstance(user, Compute | Update), user
    raxes = user.raxes if isinstance(user, Compute) else ()
    return _not_longer((*user.axes, *raxes), node.type.shape, facts)


@lru_cache(maxsize=KEPT)
def _not_longer(loops: tuple[Axis, ...], shape: tuple[Dim, ...], facts: Facts) -> bool:
    count, elements = dim_prod(a.extent for a in loops), dim_prod(shape)
    return count == elements or prove_nonneg(elements - count, facts, depth=1)


def _cheap(exprs: Iterable[Expr]) -> bool:
    return all(_cheap_op(e) for e in exprs if isinstance(e, Op))


def _cheap_op(e: Op) -> bool:
    if e.fn in ("div", "powi"):
        last = e.args[1]
        return isinstance(last, Const) and (e.fn == "div" or abs(last.value) <= 4)
    return not SCALARS[e.fn].costly


def _light(new: Compute, loads: list[Load]) -> bool:
    """At most one load as large as the result, a few smaller ones, none data-dependent."""
    full = {a.var for a in new.axes if a.extent != ONE}
    large = 0
    for load in loads:
        if load.check is not None or not all(isinstance(i, Idx) for i in load.index):
            return False
        used = {n for i in load.index if isinstance(i, Idx) for n in i.dim.names}
        large += full <= used and bool(full)
    return large <= 1 and len(loads) <= 4


def _keeps_zero(source: Compute, other: Const) -> bool:
    """Whether the node is a function of one element that is zero at zero, and `other` is zero.

    Then the guard of a load of it can be that of the load inside: windows stay simple.
    """
    found = [e for e in walk(source.body) if isinstance(e, Load)]
    if other.value != 0 or len(found) != 1 or found[0].other or found[0].check:
        return False
    here = [i.dim.name if isinstance(i, Idx) else None for i in found[0].index]
    if here != [a.var for a in source.axes] or found[0].tensor.type.shape != source.type.shape:
        return False
    values: dict[int, float] = {id(found[0]): 0.0}
    for e in walk(source.body):
        match e:
            case Const(value=value):
                values[id(e)] = value
            case Select(cond=c, a=a, b=b) if id(c) in values:
                values[id(e)] = values.get(id(a if values[id(c)] else b), nan)
            case Op(fn=fn, args=args) if fn in EXACT and all(id(x) in values for x in args):
                with np.errstate(all="ignore"):
                    values[id(e)] = float(SCALARS[fn].numpy(*(values[id(x)] for x in args)))
    value = values.get(id(source.body), nan)
    return value == 0 and copysign(1, value) > 0


def _inside(
    index: tuple[Expr, ...], axes: tuple[Axis, ...], ranges: Mapping[str, Range], facts: Facts
) -> Expr | None:
    """The condition that an index lies inside a space, as far as it is not known."""
    tests: list[Expr] = []
    for i, a in zip(index, axes, strict=True):
        at = i.dim if isinstance(i, Idx) else None
        if at is None or not prove_nonneg(at, facts, ranges, depth=1):
            tests.append(Op("bool", "ge", (i, Idx(Dim.of(0)))))
        if at is None or not prove_nonneg(a.extent - 1 - at, facts, ranges, depth=1):
            tests.append(Op("bool", "lt", (i, Idx(a.extent))))
    if not tests:
        return None
    out = tests[0]
    for t in tests[1:]:
        out = Op("bool", "and", (out, t))
    return out


def share(root: Expr) -> Expr:
    """Equal sub-expressions become one object."""
    known: dict[object, Expr] = {}

    def one(e: Expr) -> Expr:
        match e:
            case Const(dtype=dtype, value=value):
                key: object = ("c", dtype, repr(value))
            case Idx(dim=dim, dtype=dtype):
                key = ("i", dim, dtype)
            case Load(tensor=tensor, index=index, other=other, check=check):
                key = ("l", id(tensor), tuple(map(id, index)), id(other), check is None)
            case Op(dtype=dtype, fn=fn, args=args):
                key = ("o", dtype, fn, tuple(map(id, args)))
            case Select(cond=c, a=a, b=b):
                key = ("s", id(c), id(a), id(b))
            case _:
                return e
        return known.setdefault(key, e)

    return rewrite(root, one)
