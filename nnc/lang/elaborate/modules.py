"""Module types with their parameters bound: members, stored leaves and their canonical keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nnc.diagnostics import Label, Span
from nnc.lang import ast
from nnc.lang.dims import Dim
from nnc.lang.elaborate.context import Context, Frame, Mistake, Poisoned, fail
from nnc.lang.elaborate.values import (
    UNKNOWN,
    Bool,
    Builtin,
    Function,
    Instance,
    LeafDecl,
    Module,
    ModuleList,
    ModuleType,
    Origin,
    Seq,
    Stored,
    Sub,
    SubList,
    Tensor,
    Text,
    Tree,
    TreeParam,
    Unknown,
    Value,
    Weak,
    describe,
    integer,
    number,
)
from nnc.lang.types import DTYPES, TensorType
from nnc.lang.units import nearest


@dataclass(frozen=True)
class StoredLeaf:
    """One tensor that an instance stores: canonical key, type (None: unknown), class, declaration."""

    key: str
    type: TensorType | None
    storage: str
    decl: ast.ParamDecl | ast.StateDecl
    inst: Instance  # the instance that declares it
    mirror: StoredLeaf | None = None  # the param whose shape a tree state copies


# ---- instances ------------------------------------------------------------------------------------


def instantiate(cx: Context, which: ModuleType, args: Sequence[ast.Arg], span: Span) -> Instance:
    """`M(args)`: binds parameters (defaults, overrides) and elaborates the members."""
    defn = which.defn
    given = _match(cx, defn, args, span)
    frame = Frame(which.unit, real=cx.frame.real)
    values: dict[str, Value] = {}
    words: dict[str, str] = {}
    defaults: dict[str, str] = {}
    trees: dict[str, Instance] = {}
    forced = cx.overrides.get(defn.name, {})
    inst = Instance(which.unit, defn, values, "", words, trees, defaults, frame.real, cx.generic)
    frame.instance = inst
    for p in defn.params:
        value, default = _parameter(cx, frame, p, given.get(p.name), forced, span, defn)
        values[p.name] = value
        if isinstance(value, ModuleType | Module):
            tree = value.inst if isinstance(value, Module) else instantiate(cx, value, [], span)
            values[p.name], trees[p.name] = Module(tree, ""), tree
            words[p.name] = tree.id
        elif default:
            defaults[p.name] = _word(value)
        else:
            words[p.name] = _word(value)
    _drop_defaults(cx, frame, defn, inst)
    shown = [w if n in trees else f"{n}={w}" for n, w in words.items()]
    inst.id = defn.name + (f"({', '.join(shown)})" if shown else "")
    return _cached(cx, inst, span)


def _cached(cx: Context, inst: Instance, span: Span) -> Instance:
    key = f"{inst.unit.path}:{inst.id}:{inst.real}"
    if not cx.generic and key in cx.instances:
        return cx.instances[key]
    if any(i.defn is inst.defn and i.id == inst.id for i, _ in cx.building):
        names = " builds ".join([*(i.id for i, _ in cx.building), inst.id])
        raise fail("E0809", f"{inst.id} contains itself", span, notes=(names,))
    if len(cx.building) > 64:
        raise fail("E0809", "modules are nested more than 64 deep", span)
    cx.instances[key] = inst
    cx.building.append((inst, span))
    try:
        elaborate_members(cx, inst)
    finally:
        cx.building.pop()
    return inst


def _match(
    cx: Context, defn: ast.ModuleDef, args: Sequence[ast.Arg], span: Span
) -> dict[str, ast.Arg]:
    given: dict[str, ast.Arg] = {}
    names = [p.name for p in defn.params]
    place = (Label(defn.name_span, f"`{defn.name}` is declared here"),)
    for i, arg in enumerate(args):
        if arg.name is None and i >= len(names):
            raise fail(
                "E0802", f"`{defn.name}` takes {len(names)} parameters", arg.span, labels=place
            )
        name = arg.name if arg.name is not None else names[i]
        if name not in names:
            near = nearest(name, names)
            help = f"did you mean `{near}`?" if near else f"it has {', '.join(names) or 'none'}"
            raise fail(
                "E0802",
                f"`{defn.name}` has no parameter `{name}`",
                arg.span,
                labels=place,
                help=help,
            )
        if name in given:
            raise fail("E0802", f"`{name}` is given twice", arg.span)
        given[name] = arg
    return given


def _parameter(
    cx: Context,
    frame: Frame,
    p: ast.Param,
    arg: ast.Arg | None,
    forced: object,
    span: Span,
    defn: ast.ModuleDef,
) -> tuple[Value, bool]:
    if arg is not None:
        return static(cx, arg.value), False
    if isinstance(forced, dict) and p.name in forced:
        return from_python(forced[p.name], span), False
    if p.default is None:
        raise fail(
            "E0802",
            f"`{defn.name}` needs `{p.name}`",
            span,
            labels=(Label(p.name_span, "it has no default"),),
        )
    with cx.in_frame(frame), cx.outside_loops():
        return static(cx, p.default), True


def _drop_defaults(cx: Context, frame: Frame, defn: ast.ModuleDef, inst: Instance) -> None:
    """An argument that equals the default is not part of the type's name."""
    for p in defn.params:
        if p.name in inst.given and p.name not in inst.trees and p.default is not None:
            try:
                with cx.in_frame(frame), cx.outside_loops():
                    same = _word(static(cx, p.default)) == inst.given[p.name]
            except (Mistake, Poisoned):
                same = False
            if same:
                inst.defaults[p.name] = inst.given.pop(p.name)


def static(cx: Context, e: ast.Expr) -> Value:
    """A static value; `D/H` of sizes is exact."""
    match e:
        case ast.Binary(op="/", left=left, right=right):
            a, b = static(cx, left), static(cx, right)
            if isinstance(a, Weak) and isinstance(b, Weak) and a.dim is not None:
                literal = isinstance(left, ast.Num) and isinstance(right, ast.Num)
                if b.dim is not None and not literal:
                    return integer(cx.eval_dim(e))
    value = cx.eval(e)
    if isinstance(value, Tensor):
        raise fail(
            "E0309", "a module parameter must be known at compile time", e.span, describe(value)
        )
    return value


def from_python(x: object, span: Span) -> Value:
    """A parameter given from Python or the command line."""
    if isinstance(x, bool):
        return Bool(x)
    if isinstance(x, int | float):
        return number(x)
    raise fail("E0802", f"a module parameter is a number or a bool, not {x!r}", span)


def _word(value: Value) -> str:
    match value:
        case Weak(dim=dim) if dim is not None:
            return str(dim)
        case Weak(number=n) if n is not None:
            return repr(n)
        case Bool(value=b):
            return str(b).lower()
        case Function(defn=defn):
            return defn.name
        case Builtin(name=name):
            return name
        case Text(value=s):
            return repr(s)
        case Module(inst=inst):
            return inst.id
        case ModuleType(defn=d):
            return d.name
    return "?"


def generic_instance(cx: Context, which: ModuleType) -> Instance:
    """The module with its parameters as names, for the check of its definition."""
    defn = which.defn
    values: dict[str, Value] = {}
    inst = Instance(which.unit, defn, values, defn.name, {}, {}, {}, "real", True)
    frame = Frame(which.unit, instance=inst, real="real")
    for p in defn.params:
        values[p.name] = _symbolic(cx, frame, p)
        cx.frame.dim_spans.setdefault(p.name, Origin(p.name, p.name_span))
    elaborate_members(cx, inst)
    return inst


def _symbolic(cx: Context, frame: Frame, p: ast.Param) -> Value:
    kind = p.type.name if isinstance(p.type, ast.TensorTypeExpr) else None
    if kind == "tree":
        return Tree({}, TreeParam(p.name))
    if kind == "bool":
        return Bool(None)
    if p.default is None:
        if kind in DTYPES:
            return Weak("float", lambda dt: number(1.0).make(dt))
        return integer(Dim.of(p.name))
    with cx.in_frame(frame):
        default = static(cx, p.default)
    match default:
        case Weak(kind="int", dim=dim) if dim is not None and dim.const is not None:
            if dim.const == 0:
                cx.facts = type(cx.facts)(cx.facts.zero | {p.name}, cx.facts.nonneg)
            return integer(Dim.of(p.name))
        case Weak(kind="int"):
            return default
        case Weak():
            return Weak("float", default.make)
        case Bool():
            return Bool(None)
    return default


# ---- members ----------------------------------------------------------------------------------------


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
                cx.report(mistake)
                if isinstance(m, ast.MemberDecl):
                    inst.members[m.name] = UNKNOWN
            except Poisoned:
                if isinstance(m, ast.MemberDecl):
                    inst.members[m.name] = UNKNOWN


def _fresh(inst: Instance, name: str, span: Span) -> None:
    if name in inst.leaves or name in inst.members or name in inst.methods or name in inst.args:
        raise fail("E0807", f"`{name}` is declared twice in {inst.defn.name}", span)


def _member(cx: Context, inst: Instance, m: ast.Member) -> None:
    match m:
        case ast.ParamDecl() | ast.StateDecl():
            _fresh(inst, m.name, m.name_span)
            leaf = _leaf(cx, m)
            if leaf is not None:
                inst.leaves[m.name] = leaf
        case ast.MemberDecl():
            _fresh(inst, m.name, m.name_span)
            if m.weights is not None and not cx.generic:
                cx.slots[m.weights.slot] = m.weights
            inst.members[m.name] = _declared(cx.eval_static(m.value), m.value.span)
        case ast.Assert(cond=cond, message=message):
            _assertion(cx, inst, cond, message)


def _declared(value: Value, span: Span) -> Value | Sub | SubList:
    match value:
        case Module(inst=sub):
            return Sub(sub, span)
        case ModuleType():
            raise fail(
                "E0802",
                f"`{value.defn.name}` is a module type",
                span,
                help=f"`{span.text}()` makes a sub-module",
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
    if isinstance(cond, ast.Compare) and len(cond.rest) == 1 and cx.generic:
        op, right = cond.rest[0]
        inst.facts += comparison_facts(op, cx.eval_dim(cond.first), cx.eval_dim(right))


def comparison_facts(op: str, a: Dim, b: Dim) -> list[Dim]:
    """The inequalities (`>= 0`) that `a op b` states."""
    match op:
        case "<=":
            return [b - a]
        case "<":
            return [b - a - 1]
        case ">=":
            return [a - b]
        case ">":
            return [a - b - 1]
        case "==":
            return [a - b, b - a]
    return []


def _leaf(cx: Context, m: ast.ParamDecl | ast.StateDecl) -> LeafDecl | None:
    if isinstance(m, ast.ParamDecl) and m.when is not None:
        when = cx.eval(m.when)
        if isinstance(when, Bool) and when.value is False:
            return None
    storage = "param" if isinstance(m, ast.ParamDecl) else "state"
    if isinstance(m.type, ast.AppliedTypeExpr) and m.type.name == "params":
        return LeafDecl(m.name, m, None, tree_argument(cx, m.type), storage, m.key)
    if not isinstance(m.type, ast.TensorTypeExpr) or m.type.name not in DTYPES:
        raise fail("E0308", f"a {storage} is a tensor", m.type.span, help="`real[D]`, `f32[H, W]`")
    dtype = cx.frame.real if m.type.name == "real" else m.type.name
    shape = tuple(cx.eval_dim(d) for d in m.type.dims or ())
    for d, text in zip(shape, m.type.dims or (), strict=True):
        if d.const is not None and d.const < 1:
            raise fail("E0309", f"an axis of size {d}", text.span)
    total = TensorType(dtype, shape).bytes.const
    if total is not None and total > 2**63 - 1:
        raise fail("E0314", f"`{m.name}` has {total} bytes, more than 2^63 - 1", m.type.span)
    return LeafDecl(m.name, m, TensorType(dtype, shape), None, storage, m.key)


def tree_argument(cx: Context, t: ast.AppliedTypeExpr) -> Instance | TreeParam:
    """The module of `params(M)`."""
    if len(t.args) != 1:
        raise fail("E0802", "`params` takes one module", t.span)
    value = cx.eval(t.args[0].value)
    match value:
        case Module(inst=inst):
            return inst
        case ModuleType():
            return instantiate(cx, value, [], t.span)
        case Tree(of=of) if of is not None:
            return of
        case Unknown():
            raise Poisoned
    raise fail("E0802", f"{describe(value)} has no params", t.args[0].span)


# ---- leaves and access ------------------------------------------------------------------------------


def leaves(inst: Instance) -> Iterator[StoredLeaf]:
    """All stored tensors with canonical keys, in order of declaration."""
    for m in inst.defn.members:
        if isinstance(m, ast.ParamDecl | ast.StateDecl) and m.name in inst.leaves:
            yield from _own(inst, inst.leaves[m.name])
        elif isinstance(m, ast.MemberDecl):
            for name, sub in _subs(m.name, inst.members.get(m.name)):
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


def _subs(name: str, m: Value | Sub | SubList | None) -> Iterator[tuple[str, Instance]]:
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
            return Module(sub, prefix + name, name)
        case SubList(items=items, like=like):
            stand_in = Module(like, f"{prefix}{name}.*", name) if like else None
            if items is None:
                return ModuleList(None, stand_in)
            mods = tuple(
                Module(i, f"{prefix}{name}.{k}", f"{name}[{k}]") for k, i in enumerate(items)
            )
            return ModuleList(mods, stand_in)
    return found


def _stored(cx: Context, owner: Module, leaf: LeafDecl) -> Value:
    prefix = f"{owner.path}." if owner.path else ""
    base = prefix + (leaf.key or leaf.name)
    if leaf.tree is None:
        if base in cx.store:
            return Stored(base)
        return UNKNOWN
    found = {k[len(base) + 1 :]: Stored(k) for k in cx.store if k.startswith(base + ".")}
    values: dict[str, Value] = {k: cx.tensor(v) for k, v in found.items()}
    return Tree(values, leaf.tree)


__all__ = ["StoredLeaf", "generic_instance", "instantiate", "leaves", "member", "member_names"]
