"""Members of modules: stored leaves with canonical keys, sub-modules, methods."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nnc.diagnostics import Label, Span
from nnc.lang import ast
from nnc.lang.elaborate.arith import convert
from nnc.lang.elaborate.assertions import asserted_facts
from nnc.lang.elaborate.context import Context, Frame
from nnc.lang.elaborate.habits import TYPES
from nnc.lang.elaborate.mistakes import Mistake, Poisoned, fail
from nnc.lang.elaborate.values import (
    UNKNOWN,
    Bool,
    Function,
    Instance,
    LeafDecl,
    Module,
    ModuleList,
    ModuleType,
    Operand,
    Seq,
    Stored,
    Sub,
    SubList,
    Tensor,
    Tree,
    TreeParam,
    Tuple,
    Unknown,
    Value,
)
from nnc.lang.elaborate.words import describe
from nnc.lang.types import DTYPES, TensorType
from nnc.lang.units import STD


@dataclass(frozen=True)
class StoredLeaf:
    """One tensor that an instance stores; a type of None is not known yet."""

    key: str
    type: TensorType | None
    storage: str
    decl: ast.ParamDecl | ast.StateDecl
    inst: Instance  # the instance that declares it
    mirror: StoredLeaf | None = None  # the param whose shape a tree state copies


def elaborate_members(cx: Context, inst: Instance) -> None:
    """Fills leaves, members and methods of an instance, in order of declaration."""
    frame = Frame(inst.unit, instance=inst, real=inst.real)
    with cx.in_frame(frame), cx.outside_loops():
        for m in inst.defn.members:
            if isinstance(m, ast.FuncDef):
                _fresh(inst, m.name, m.name_span)
                inst.methods[m.name] = m
        for m in inst.defn.members:
            try:
                _member(cx, inst, m)
            except Mistake as mistake:
                if mistake.diagnostic.code == "E0807" and not isinstance(m, ast.Assert):
                    inst.leaves.pop(m.name, None)
                    inst.members[m.name] = UNKNOWN
                if elsewhere := _from_library(cx, inst, mistake):
                    raise elsewhere from None
                cx.report(mistake)
                _fail(inst, m)
            except Poisoned:
                _fail(inst, m)


def _fail(inst: Instance, m: ast.Member) -> None:
    """After a mistake the member stands for anything."""
    if isinstance(m, ast.MemberDecl | ast.ParamDecl | ast.StateDecl):
        inst.members.setdefault(m.name, UNKNOWN)


def _from_library(cx: Context, inst: Instance, mistake: Mistake) -> Mistake | None:
    """A mistake inside the library is one of the user's line that builds the library's module."""
    d = mistake.diagnostic
    library = Path(inst.unit.path).resolve().is_relative_to(STD)
    users = [(i, s) for i, s in cx.building if s.source is not d.span.source]
    if not library or not users:
        return None
    which, span = users[-1]
    label = Label(d.span, d.text or "here")
    text = f"{which.id} cannot be built: {d.message}"
    return fail(d.code, text, span, labels=(label,), notes=d.notes, help=d.help)


def _fresh(inst: Instance, name: str, span: Span) -> None:
    if name in inst.leaves or name in inst.members or name in inst.methods or name in inst.args:
        spans = [
            m.name_span
            for m in inst.defn.members
            if not isinstance(m, ast.Assert) and m.name == name
        ]
        spans += [p.name_span for p in inst.defn.params if p.name == name]
        first = tuple(Label(s, "first declared here") for s in spans if s != span)
        text = f"`{name}` is declared twice in {inst.defn.name}"
        raise fail("E0807", text, span, labels=first[:1])


def _member(cx: Context, inst: Instance, m: ast.Member) -> None:
    match m:
        case ast.ParamDecl() | ast.StateDecl():
            _fresh(inst, m.name, m.name_span)
            leaf = _leaf(cx, m)
            if leaf is not None:
                inst.leaves[m.name] = leaf
        case ast.MemberDecl():
            _fresh(inst, m.name, m.name_span)
            inst.members[m.name] = _declared(cx.eval_static(m.value), m.value.span)
        case ast.Assert(cond=cond, message=message):
            _assertion(cx, inst, cond, message)


def _buried(value: Seq | Tuple) -> bool:
    """Whether modules stand in a tuple, or deeper than in one list: they would have no names."""
    groups: list[Value | None] = [value]
    if isinstance(value, Seq):
        groups = list(value.items) if value.items is not None else [value.like]
    found = [g.items or () for g in groups if isinstance(g, Seq | Tuple)]
    found += [(g.like,) for g in groups if isinstance(g, Seq) and g.like is not None]
    return any(isinstance(i, Module) for items in found for i in items)


def _declared(value: Value, span: Span) -> Value | Sub | SubList:
    match value:
        case Module(inst=sub):
            return Sub(sub, span)
        case ModuleType():
            needed = [p.name for p in value.defn.params if p.default is None]
            help = f"`{span.text}({', '.join(needed)})` makes a sub-module"
            raise fail("E0802", f"`{value.defn.name}` is a module type", span, help=help)
        case Seq() | Tuple() if _buried(value):
            text = "a member is a module, or one list of modules"
            help = "a list for each: `a = [...]`, `b = [...]`, and `for i in L: x = b[i](a[i](x))`"
            raise fail(
                "E0203", text, span, "modules inside of a list's items or a tuple", help=help
            )
        case Seq(items=None, like=like):
            return SubList(None, like.inst if isinstance(like, Module) else None, span)
        case Seq(items=items) if items is not None and all(isinstance(i, Module) for i in items):
            insts = tuple(i.inst for i in items if isinstance(i, Module))
            return SubList(insts, insts[0] if insts else None, span)
    return value


def _assertion(cx: Context, inst: Instance, cond: ast.Expr, message: str | None) -> None:
    value = cx.eval(cond)
    if isinstance(value, Bool) and value.value is False:
        raise fail(
            "E0311",
            message or "this assertion does not hold",
            cond.span,
            inst.id,
            cx.instance_labels(cond.span),
        )
    if cx.generic:
        inst.facts += asserted_facts(cx, cond)


def _leaf(cx: Context, m: ast.ParamDecl | ast.StateDecl) -> LeafDecl | None:
    if isinstance(m, ast.ParamDecl) and m.when is not None:
        when = cx.eval(m.when)
        if isinstance(when, Bool) and when.value is False:
            return None
    storage = "param" if isinstance(m, ast.ParamDecl) else "state"
    if m.key is not None and (not all(m.key.split(".")) or m.key == "__metadata__"):
        help = f'for example `as "{m.name}.weight"`'
        raise fail("E0807", f'no tensor can have the key "{m.key}"', m.span, help=help)
    if m.init is None:
        first = "normal(0.02)" if storage == "param" else "0"
        help = f"`{storage} {m.name}: {m.type.span.text} = {first}`"
        says = f"the {storage} `{m.name}` has no initial value"
        raise fail("E0813", says, m.name_span, help=help)
    if isinstance(m.type, ast.AppliedTypeExpr) and m.type.name == "params":
        return LeafDecl(m.name, m, None, tree_argument(cx, m.type), storage, m.key)
    if not isinstance(m.type, ast.TensorTypeExpr) or m.type.name not in DTYPES:
        meant = TYPES.get(getattr(m.type, "name", ""), "").partition("[")[0]
        help = f"`{meant}`" if meant else "`real[D]`, `f32[H, W]`"
        raise fail("E0308", f"a {storage} is a tensor", m.type.span, help=help)
    dtype = cx.frame.real if m.type.name == "real" else m.type.name
    shape = tuple(cx.eval_dim(d) for d in m.type.dims or ())
    for d, text in zip(shape, m.type.dims or (), strict=True):
        if d.const is not None and d.const < 1:
            where = cx.instance_labels(text.span)
            raise fail("E0309", f"an axis of size {d}", text.span, labels=where)
    total = TensorType(dtype, shape).bytes.const
    if total is not None and total > 2**63 - 1:
        says = f"{TensorType(dtype, shape)}, that is {total:.2e} bytes"
        raise fail("E0314", f"`{m.name}` is larger than 2^63 - 1 bytes", m.type.span, says)
    return LeafDecl(m.name, m, TensorType(dtype, shape), None, storage, m.key)


def tree_argument(cx: Context, t: ast.AppliedTypeExpr) -> Instance | TreeParam:
    """The module of `params(M)`."""
    if len(t.args) != 1:
        raise fail("E0802", "`params` takes one module", t.span)
    cx.static_depth += 1
    try:
        value = cx.eval(t.args[0].value)
    finally:
        cx.static_depth -= 1
    match value:
        case Module(inst=inst):
            return inst
        case ModuleType():
            return cx.instantiate(value, [], t.span)
        case Tree(of=of) if of is not None:
            return of
        case Unknown():
            raise Poisoned
    raise fail("E0802", f"{describe(value)} has no params", t.args[0].span)


def same_tree(inst: Instance, tree: Tree) -> bool:
    """Whether a tree has the leaves of `params(M)`."""
    want = [(x.key, x.type) for x in leaves(inst) if x.storage == "param"]
    if [key for key, _ in want] != list(tree.leaves):
        return False
    pairs = zip(want, tree.leaves.values(), strict=True)
    return all(not isinstance(v, Tensor) or v.shape == t.shape for (_, t), v in pairs if t)


def leaves(inst: Instance) -> Iterator[StoredLeaf]:
    """All stored tensors with canonical keys, in order of declaration."""
    for m in inst.defn.members:
        if isinstance(m, ast.ParamDecl | ast.StateDecl) and m.name in inst.leaves:
            yield from _own(inst, inst.leaves[m.name])
        elif isinstance(m, ast.MemberDecl):
            for name, sub in subs(m.name, inst.members.get(m.name)):
                for leaf in leaves(sub):
                    key = f"{name}.{leaf.key}"
                    yield StoredLeaf(
                        key, leaf.type, leaf.storage, leaf.decl, leaf.inst, leaf.mirror
                    )


def _own(inst: Instance, leaf: LeafDecl) -> Iterator[StoredLeaf]:
    name = leaf.key or leaf.name
    match leaf.tree:
        case None:
            yield StoredLeaf(name, leaf.type, leaf.storage, leaf.decl, inst)
        case TreeParam():
            yield StoredLeaf(f"{name}.*", None, leaf.storage, leaf.decl, inst)
        case Instance() as tree:
            for p in leaves(tree):
                if p.storage == "param":
                    key = f"{name}.{p.key}"
                    yield StoredLeaf(key, p.type, leaf.storage, leaf.decl, inst, p)


def subs(name: str, m: Value | Sub | SubList | None) -> Iterator[tuple[str, Instance]]:
    match m:
        case Sub(inst=inst):
            yield name, inst
        case SubList(items=items) if items is not None:
            for i, inst in enumerate(items):
                yield f"{name}.{i}", inst


def member_names(inst: Instance) -> list[str]:
    return [*inst.leaves, *inst.members, *inst.methods]


def member(cx: Context, owner: Module, name: str) -> Value | None:
    """A member of a module in use."""
    inst = owner.inst
    if name in inst.leaves:
        return _stored(cx, owner, inst.leaves[name])
    if name in inst.methods:
        return Function(inst.unit, inst.methods[name], owner)
    found = inst.members.get(name)
    prefix = f"{owner.path}." if owner.path else ""
    match found:
        case None:
            declared = {m.name for m in inst.defn.members if isinstance(m, ast.ParamDecl)}
            return UNKNOWN if inst.generic and name in declared else None
        case Sub(inst=sub):
            return owner.sub(sub, prefix + name, name)
        case SubList(items=items, like=like):
            stand_in = owner.sub(like, f"{prefix}{name}.*", name) if like else None
            if items is None:
                return ModuleList(None, stand_in)
            mods = tuple(
                owner.sub(i, f"{prefix}{name}.{k}", f"{name}[{k}]") for k, i in enumerate(items)
            )
            return ModuleList(mods, stand_in)
    return found


def _stored(cx: Context, owner: Module, leaf: LeafDecl) -> Value:
    prefix = f"{owner.path}." if owner.path else ""
    base = prefix + (leaf.key or leaf.name)
    if leaf.tree is None:
        if base not in cx.store:
            return UNKNOWN
        real = isinstance(leaf.decl.type, ast.TensorTypeExpr) and leaf.decl.type.name == "real"
        if owner.cast is not None and real:
            return convert(cx, Operand(Stored(base), leaf.decl.span), owner.cast, leaf.decl.span)
        return Stored(base)
    found = {k[len(base) + 1 :]: Stored(k) for k in cx.store if k.startswith(base + ".")}
    values: dict[str, Value] = {k: cx.tensor(v) for k, v in found.items()}
    return Tree(values, leaf.tree)
