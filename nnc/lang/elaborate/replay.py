"""Calls alike are elaborated once: what the first computes is copied for the others.

The layers of a network call the same functions with values of the same types. What a call computes
is a function of its definition, the types and static values of its arguments and the calls around
it (`_key`); it reads nodes of the Graph without looking at them. So a later call gets copies of
the nodes of the first, over its own arguments, stored tensors and regions. A fixed position of a
part that is `inout`, the `l` of `kv[l]`, is a name while such a call is elaborated, and put in at
the end.

Random numbers are a function of the call path: copies get streams of their own. Calls that do
anything besides are elaborated each time: probes, assertions, messages, written states, gradients,
run-time loops.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from nnc.diagnostics import Span
from nnc.ir.expr import Expr, Idx
from nnc.ir.form import formed
from nnc.ir.graph import (
    Node,
)
from nnc.lang import ast
from nnc.lang.dims import Dim
from nnc.lang.elaborate.binding import Binding
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.copies import Part
from nnc.lang.elaborate.declared import result_origins, result_place
from nnc.lang.elaborate.members import leaves
from nnc.lang.elaborate.mistakes import Mistake, Poisoned
from nnc.lang.elaborate.values import (
    AxisRef,
    Bool,
    Module,
    Nothing,
    Stored,
    Tensor,
    Text,
    Tuple,
    Value,
    View,
    Weak,
    of_node,
)
from nnc.lang.types import DTYPES


def replayed(b: Binding, run: Callable[[], Value]) -> Value:
    """The result of a call whose arguments are bound; `run` elaborates its body."""
    cx = b.cx
    given = _given(b)
    if given is None:
        return run()
    key = _key(b, given)
    if key not in cx.replays:
        cx.replays[key] = clean = _Watch(cx, given)
        value = run()
        clean.close(value)
        return value
    known = cx.replays[key]
    if isinstance(known, _Watch):  # the second call
        known = _recorded(b, given, run) if known.clean else None
        cx.replays[key] = known
    return known.again(b, given) if isinstance(known, _Recorded) else run()


# ---- what a call is given ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Given:
    """The nodes that a call may read, and what it is told about them."""

    nodes: tuple[Node, ...]
    signature: tuple[Hashable, ...]
    written: Mapping[str, Stored]  # `inout` arguments
    fixed: Mapping[str, Dim]  # by the name that stands for it: fixed positions of parts


def _given(b: Binding) -> _Given | None:
    """None: a call that is not repeated."""
    cx, frame = b.cx, b.frame
    busy = cx.ranges or cx.conds or cx.branches or cx.turns
    if (
        busy
        or frame.trees
        or frame.outer
        or frame.wrt
        or frame.initializing
        or not _plain(b.func.returns)
    ):
        return None
    nodes: list[Node] = []
    signature: list[Hashable] = []
    written: dict[str, Stored] = {}
    fixed: dict[str, Dim] = {}
    for name, value in frame.vars.items():
        now: Value = value
        if isinstance(value, Stored):
            now = cx.store[value.key].now
            found = _part(f"$?{len(cx.calls)}{name}", value, fixed)
            written[name] = value
        else:
            found = "tensor" if isinstance(value, Tensor) else _static(value)
        if isinstance(now, Tensor):
            if now.node is None or now.over is not None:
                return None
            nodes.append(now.node)
            signature.append((now.type, now.letters))
        if found is None:
            return None
        signature.append((name, found))
    for key in _stored(cx, frame.owner):
        leaf = cx.store[key].now if key in cx.store else None
        if leaf is None or leaf.node is None:
            return None
        nodes.append(leaf.node)
    return _Given(tuple(nodes), tuple(signature), written, fixed)


def _plain(t: ast.TypeExpr | None) -> bool:
    """Whether a result is a tensor or a tuple of tensors."""
    match t:
        case ast.TupleTypeExpr(items=items):
            return all(map(_plain, items))
        case ast.TensorTypeExpr(name=name):
            return name in DTYPES
    return False


def _static(value: Value) -> Hashable:
    """All that an argument is which is no tensor; None: not known."""
    match value:
        case Weak(kind=kind, dim=dim, number=number, make=make):
            of = formed((make("f32"),))
            known = ("number", kind, dim, repr(number), of.form.key, of.numbers)
            return None if of.tensors else known
        case Bool(value=known) if known is not None:
            return ("bool", known)
        case Text(value=text):
            return ("text", text)
        case AxisRef(axis=axis) if axis is not None:
            return ("axis", axis)
        case Nothing():
            return "nothing"
    return None


def _part(name: str, stored: Stored, fixed: dict[str, Dim]) -> Hashable:
    """What is known of storage: which part it is, but for fixed positions, named by `name`."""
    if stored.view is None:
        return "whole"
    out: list[Hashable] = [stored.view.shape]
    for k, e in enumerate(_index(stored.view)):
        if not isinstance(e, Idx):
            return None
        if e.dim.const is None:
            out.append(e.dim)
        else:
            fixed[f"{name}.{k}"] = e.dim
            out.append("fixed")
    return tuple(out)


def _index(view: View) -> tuple[Expr, ...]:
    return view.at(tuple(Idx(Dim.of(f"$?{d}")) for d in range(len(view.shape))))


def _stored(cx: Context, owner: Module | None) -> Iterator[str]:
    """The keys of what a module stores."""
    if owner is None:
        return
    inst = owner.inst
    names = cx.leaf_names.get((inst.unit.path, inst.id))
    if names is None:
        names = tuple(leaf.key for leaf in leaves(inst))
        cx.leaf_names[inst.unit.path, inst.id] = names
    for name in names:
        yield f"{owner.path}.{name}" if owner.path else name


def _key(b: Binding, given: _Given) -> Hashable:
    cx, frame, owner = b.cx, b.frame, b.frame.owner
    first = {n: i for i, n in reversed(list(enumerate(given.nodes)))}
    keys = [s.key for s in given.written.values()]
    return (
        id(b.func),
        None if owner is None else (owner.inst.unit.path, owner.inst.id, owner.inst.real),
        None if owner is None else owner.cast,
        given.signature,
        tuple(first[n] for n in given.nodes),  # which are the same
        tuple(keys.index(k) for k in keys),
        tuple(frame.dims.items()),
        tuple(frame.packs.items()),
        (frame.real, frame.train, frame.bang, frame.exported),
        cx.facts,
        (len(cx.calls), len(cx.regions), cx.calls[-1].at.trail),
    )


# ---- the first call ------------------------------------------------------------------------------


@dataclass(eq=False)
class _Watch:
    """Whether a call does nothing but compute its result and write its `inout` arguments."""

    cx: Context
    given: _Given
    clean: bool = False

    def __post_init__(self) -> None:
        self.before = self.effects()
        self.now = {key: slot.now for key, slot in self.cx.store.items()}
        self.steps = self.cx.steps

    def effects(self) -> tuple[int, ...]:
        cx = self.cx
        return (len(cx.probes), len(cx.asserted), len(cx.checks), len(cx.diagnostics.items))

    def close(self, value: Value) -> None:
        """After the call. A Watch that stays keeps nothing of it."""
        written = {s.key for s in self.given.written.values()}
        slots = self.cx.store
        others = all(slots[k].now is now for k, now in self.now.items() if k not in written)
        self.clean = others and self.effects() == self.before and _is_made(value)
        self.steps = self.cx.steps - self.steps
        self.now = {}


def _is_made(value: Value) -> bool:
    if isinstance(value, Tuple):
        return all(map(_is_made, value.items))
    return isinstance(value, Tensor) and value.node is not None and value.over is None


# ---- the second call -----------------------------------------------------------------------------


def _recorded(b: Binding, given: _Given, run: Callable[[], Value]) -> _Recorded | None:
    """Elaborates a call with names for its fixed positions; leaves all as it was before."""
    cx, frame = b.cx, b.frame
    saved, watch = _Saved(b), _Watch(cx, given)
    for name, stored in given.written.items():
        if stored.view is not None:
            named = _named(f"$?{len(cx.calls)}{name}", stored.view)
            frame.vars[name] = Stored(stored.key, named)
    try:
        value = run()
    except (Mistake, Poisoned):
        saved.restore()
        return None
    watch.close(value)
    writes = {n: cx.store[s.key].now for n, s in given.written.items()}
    spans = {n: cx.written_at.get(s.key) for n, s in given.written.items()}
    saved.restore()
    if not watch.clean or any(t.node is None for t in writes.values()):
        return None
    made = _Recorded(given.nodes, value, writes, spans, len(cx.regions), watch.steps, frame.path)
    return made if made.part.possible else None


class _Saved:
    """What the elaboration of a call may change."""

    def __init__(self, b: Binding) -> None:
        cx = b.cx
        self.cx, self.frame = cx, b.frame
        self.now = {key: slot.now for key, slot in cx.store.items()}
        self.of_frame = _copies(vars(b.frame))
        kept = ("counters", "written_at", "sizes", "probes", "checks", "asserted", "steps")
        self.of_context = _copies({name: getattr(cx, name) for name in kept})
        self.diagnostics = list(cx.diagnostics.items)

    def restore(self) -> None:
        for key, slot in list(self.cx.store.items()):
            if key in self.now:
                slot.now = self.now[key]
            else:
                del self.cx.store[key]
        vars(self.frame).update(self.of_frame)
        vars(self.cx).update(self.of_context)
        self.cx.diagnostics.items[:] = self.diagnostics


def _copies(values: Mapping[str, object]) -> dict[str, object]:
    return {k: v.copy() if isinstance(v, dict | list | set) else v for k, v in values.items()}


def _named(name: str, view: View) -> View:
    """The part with names for its fixed positions."""
    fixed = [isinstance(e, Idx) and e.dim.const is not None for e in _index(view)]

    def at(index: tuple[Expr, ...]) -> tuple[Expr, ...]:
        pairs = enumerate(zip(view.at(index), fixed, strict=True))
        return tuple(Idx(Dim.of(f"{name}.{k}")) if f else e for k, (e, f) in pairs)

    return View(view.shape, at, view.origins)


# ---- all others ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Recorded:
    """What a call computes from `given`, and what its `inout` arguments hold then."""

    given: tuple[Node, ...]
    value: Value
    writes: Mapping[str, Tensor]
    spans: Mapping[str, Span | None]
    depth: int  # of regions around the call
    steps: int
    path: str

    @cached_property
    def part(self) -> Part:
        roots = [*_nodes(self.value), *(n for t in self.writes.values() for n in _nodes(t))]
        return Part(self.given, roots)

    def again(self, b: Binding, given: _Given) -> Value:
        """The same for another call."""
        cx = b.cx
        new: dict[Node, Node] = dict(zip(self.given, given.nodes, strict=True))
        numbers = self.part.streams(cx, self.path, b.frame.path)
        self.part.copied(new, cx.regions, self.depth, given.fixed, numbers)
        for name, stored in given.written.items():
            slot, (last,) = cx.store[stored.key], _nodes(self.writes[name])
            if new[last] is not slot.now.node:
                slot.now = of_node(new[last], slot.now.letters, slot.now.origins)
                span = self.spans[name]
                if span is not None:
                    cx.written_at.setdefault(stored.key, span)
        cx.steps += self.steps
        cx.step(b.call.span)
        cx.steps -= 1
        assert b.func.returns is not None
        return _result(b, self.value, b.func.returns, new)


def _nodes(value: Value) -> Iterator[Node]:
    if isinstance(value, Tuple):
        for item in value.items:
            yield from _nodes(item)
    elif isinstance(value, Tensor) and value.node is not None:
        yield value.node


def _result(b: Binding, value: Value, t: ast.TypeExpr, new: Mapping[Node, Node]) -> Value:
    """The value over other nodes, with the places of this call."""
    if isinstance(value, Tuple):
        assert isinstance(t, ast.TupleTypeExpr), t
        pairs = zip(value.items, t.items, strict=True)
        return Tuple(tuple(_result(b, v, i, new) for v, i in pairs))
    assert isinstance(value, Tensor) and value.node is not None, value
    assert isinstance(t, ast.TensorTypeExpr), t
    place = result_place(t, b.cx.calls[-1].span, b.frame)
    origins = result_origins(b.frame, t.dims or (), value.shape)
    out = of_node(new[value.node], (), origins)
    return replace(out, place=place)
