"""Graphs made from Graphs: nodes over other operands, with other expressions, renamed.

A node whose expressions keep their form (`nnc.ir.form`) is made without looking at them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import is_

from nnc.ir.expr import Expr, Load, Tensor, subst
from nnc.ir.form import Formed, has_sample, instance, keep_sample, reloaded, sample, sample_loads
from nnc.ir.graph import (
    Compute,
    Custom,
    External,
    Formula,
    Grad,
    Graph,
    Loop,
    Node,
    Part,
    Stop,
    Update,
    exprs_of,
    operands,
)
from nnc.lang.dims import Dim


def replace_operands(node: Node, new: Callable[[Node], Node]) -> Node:
    """The node over other operands (itself when nothing changed)."""
    if type(node) is Compute and not node.after:
        return reread(node, new)
    if all(new(o) is o for o in operands(node)):
        return node
    if node.after:
        after = tuple(dict.fromkeys(map(new, node.after)))
        node = revised(node, after=after)
    match node:
        case Compute():
            return reread(node, new)
        case Update(base=base):
            made = reread(node, new)
            return made if new(base) is base else with_base(made, new(base))
        case Grad(y=y, wrt=wrt, seed=seed):
            seed = None if seed is None else new(seed)
            return replace(node, y=new(y), wrt=tuple(new(w) for w in wrt), seed=seed)
        case Part(source=source):
            moved = new(source)
            assert isinstance(moved, Grad | Loop | Custom), moved
            return replace(node, source=moved)
        case Stop(source=source):
            return replace(node, source=new(source))
        case Custom(source=source, inputs=inputs, grads=grads, others=others):
            return replace(
                node,
                source=new(source),
                inputs=tuple(new(i) for i in inputs),
                grads=tuple(new(g) for g in grads),
                others=tuple((new(s), d) for s, d in others),
            )
        case External(inputs=inputs):
            return replace(node, inputs=tuple(new(i) for i in inputs))
        case Loop(init=init):
            return rebuilt(replace(node, init=tuple(new(i) for i in init)), new)
    return node


def rebuilt(
    loop: Loop, new: Callable[[Node], Node], fn: Callable[[Node], Node] = lambda n: n
) -> Loop:
    """The loop with its captures replaced by `new` and every body node passed through `fn`."""
    moved: dict[Node, Node] = {c: c for c in loop.carries}

    def get(node: Node) -> Node:
        return moved[node] if node in moved else new(node)

    for node in loop.body:
        moved[node] = fn(replace_operands(node, get))
    return with_outs(loop, [get(o) for o in loop.outs])


def with_outs(loop: Loop, outs: Sequence[Node]) -> Loop:
    """The loop with other roots of the body (in the order of `loop.outs`)."""
    n, m = len(loop.next), len(loop.next) + len(loop.yields)
    cond = None if loop.cond is None else outs[m]
    return replace(loop, next=tuple(outs[:n]), yields=tuple(outs[n:m]), cond=cond)


def renamed(node: Node, env: Mapping[str, Dim]) -> Node:
    """The node with free names replaced in its expressions (those of a loop's body too)."""
    if not node.used & env.keys():
        return node
    match node:
        case Compute(body=body):
            return replace(node, body=subst(body, env))
        case Update(target=target, value=value, guard=guard):
            guard = None if guard is None else subst(guard, env)
            target = tuple(subst(t, env) for t in target)
            return replace(node, target=target, value=subst(value, env), guard=guard)
        case External(sizes=sizes):
            return replace(node, sizes=tuple(d.subst(env) for d in sizes))
        case Loop():
            return rebuilt(node, lambda n: n, lambda n: renamed(n, env))
    return node


def with_exprs(node: Formula, roots: Sequence[Expr], form: Formed | None) -> Formula:
    """The node with other expressions (in the order of `exprs_of`); `form`: theirs, if known."""
    made: Formula
    if isinstance(node, Compute):
        made = replace(node, body=roots[0])
    else:
        n = len(node.target)
        guard = None if node.guard is None else roots[n + 1]
        made = replace(node, target=tuple(roots[:n]), value=roots[n], guard=guard)
    if form is not None:
        made.__dict__["formed"] = form
    return made


def pattern(node: Formula) -> tuple[Expr, ...]:
    """As `exprs_of`, over slots instead of tensors: the same for all nodes of one form."""
    if not has_sample(node.formed):
        keep_sample(exprs_of(node), node.formed)
    return sample(node.formed)


def reads_of(node: Node) -> list[tuple[Node, Load]]:
    """What a node loads from, and the loads, of its pattern."""
    if not isinstance(node, Compute | Update):
        return []
    pattern(node)
    tensors = node.formed.tensors
    return [(tensors[k], e) for k, e in sample_loads(node.formed)]  # type: ignore[misc]


def with_form(node: Formula, of: Formed) -> Formula:
    """The node with the expressions of a form of which a sample is kept."""
    if isinstance(node, Compute):
        return _formed_like(node, of)
    return with_exprs(node, instance(of), of)


def with_base(node: Formula, base: Node) -> Update:
    """An update of another tensor."""
    assert isinstance(node, Update), node
    made = replace(node, base=base)
    made.__dict__["formed"] = node.formed
    return made


def revised(node: Node, **fields: object) -> Node:
    """The node with other fields than those that say what it computes."""
    if not isinstance(node, Compute):
        return replace(node, **fields)  # type: ignore[arg-type]
    made: Compute = object.__new__(Compute)
    made.__dict__.update(node.__dict__ | fields)
    made.__dict__.pop("needs", None)
    return made


_HEAD = ("type", "span", "name", "regions", "after", "axes", "raxes", "op")


def _formed_like(node: Compute, of: Formed) -> Compute:
    made: Compute = object.__new__(Compute)
    known = node.__dict__
    made.__dict__.update({name: known[name] for name in _HEAD})
    made.__dict__["head"] = node.head
    made.__dict__["formed"] = of
    return made


def reread(
    node: Formula, new: Callable[[Node], Node], numbers: Mapping[int, int] | None = None
) -> Formula:
    """The node with loads from other tensors and other large numbers (`base`, `after` stay)."""
    of = node.formed
    tensors: list[Tensor] = [new(t) for t in of.tensors]  # type: ignore[arg-type]
    others = numbers and not numbers.keys().isdisjoint(of.numbers)
    if not others and all(map(is_, of.tensors, tensors)):
        return node
    form = of.over(tensors)
    if form is None:
        assert not others, node
        roots = reloaded(exprs_of(node), dict(zip(of.tensors, tensors, strict=True)))
        return with_exprs(node, roots, None)
    if not has_sample(of):
        keep_sample(exprs_of(node), of)
    if numbers and others:
        form = replace(form, numbers=tuple(numbers.get(n, n) for n in of.numbers))
    made = with_form(node, form)
    if "used" in node.__dict__:
        made.__dict__["used"] = node.used
    return made


def transform(graph: Graph, fn: Callable[[Node], Node]) -> Graph:
    """Rebuilds the graph operands first; `fn` sees each node with its operands already rebuilt.

    The nodes of loop bodies are passed through `fn` too (innermost first), then their loop.
    """
    new: dict[Node, Node] = {}

    for node in graph.order:
        if isinstance(node, Loop):
            init, after = (tuple(new[n] for n in some) for some in (node.init, node.after))
            moved = replace(node, init=init, after=after)
            new[node] = fn(rebuilt(moved, new.__getitem__, deep(fn)))
        else:
            new[node] = fn(replace_operands(node, lambda o: new[o]))
    return with_roots(graph, [new[r] for r in graph.roots])


def deep(fn: Callable[[Node], Node]) -> Callable[[Node], Node]:
    """`fn` that goes into the bodies of loops first."""

    def one(node: Node) -> Node:
        return fn(rebuilt(node, lambda o: o, one) if isinstance(node, Loop) else node)

    return one


def with_roots(graph: Graph, roots: list[Node]) -> Graph:
    """The same function with other result and write values (in the order of `graph.roots`)."""
    n = len(graph.results)
    writes = tuple(replace(w, value=v) for w, v in zip(graph.writes, roots[n:], strict=True))
    return replace(graph, results=tuple(roots[:n]), writes=writes)
