"""Module types with their parameters bound."""

from __future__ import annotations

from collections.abc import Sequence

from nnc.diagnostics import Label, Span
from nnc.lang import ast
from nnc.lang.dims import Dim
from nnc.lang.elaborate.arguments import named_help
from nnc.lang.elaborate.assertions import apply_equations
from nnc.lang.elaborate.context import Context, Frame
from nnc.lang.elaborate.members import elaborate_members
from nnc.lang.elaborate.mistakes import Mistake, Poisoned, fail
from nnc.lang.elaborate.sizes import forced_size
from nnc.lang.elaborate.values import (
    Bool,
    Builtin,
    Function,
    Instance,
    Module,
    ModuleType,
    Origin,
    Tensor,
    Text,
    Tree,
    TreeParam,
    Unknown,
    Value,
    Weak,
    WeakTensor,
    integer,
    number,
)
from nnc.lang.elaborate.words import counted, describe
from nnc.lang.types import DTYPES


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
            defaults[p.name] = word(value)
        else:
            words[p.name] = word(value)
    _drop_defaults(cx, frame, defn, inst)
    shown = [w if n in trees else f"{n}={w}" for n, w in words.items() if n != w]
    inst.id = defn.name + (f"({', '.join(shown)})" if shown else "")
    return _cached(cx, inst, span)


def _cached(cx: Context, inst: Instance, span: Span) -> Instance:
    key = f"{inst.unit.path}:{inst.id}:{inst.real}"
    if not cx.generic and key in cx.instances:
        return cx.instances[key]
    if any(i.defn is inst.defn for i, _ in cx.building):
        raise _contains_itself(cx, inst, span)
    if len(cx.building) > 64:
        once = ("modules nested", span.source.name)
        raise fail("E0809", "modules are nested more than 64 deep", span, once=once)
    cx.instances[key] = inst
    cx.building.append((inst, span))
    try:
        elaborate_members(cx, inst)
    finally:
        cx.building.pop()
    return inst


def _contains_itself(cx: Context, inst: Instance, span: Span) -> Exception:
    """One message for a cycle of modules, wherever it is met first."""
    chain = [i.defn for i, _ in cx.building]
    chain = chain[chain.index(inst.defn) :]
    if cx.loader.cyclic & set(chain):
        return Poisoned()
    cx.loader.cyclic |= set(chain)
    names = " builds ".join([*(d.name for d in chain), inst.defn.name])
    text = f"a {inst.defn.name} contains a {inst.defn.name}"
    return fail("E0809", text, span, notes=(names,), help="a list repeats: `[Block(D) for l in L]`")


def _match(
    cx: Context, defn: ast.ModuleDef, args: Sequence[ast.Arg], span: Span
) -> dict[str, ast.Arg]:
    given: dict[str, ast.Arg] = {}
    names = [p.name for p in defn.params]
    place = (Label(defn.name_span, f"takes {', '.join(names) or 'nothing'}"),)
    for i, arg in enumerate(args):
        if arg.name is None and i >= len(names):
            what = f"`{defn.name}` takes {counted(len(names), 'parameter')}, {len(args)} are given"
            raise fail("E0802", what, arg.span, labels=place)
        name = arg.name if arg.name is not None else names[i]
        if name not in names:
            text, help = f"`{defn.name}` has no parameter `{name}`", _named_help(defn, name, arg)
            raise fail("E0802", text, arg.name_span or arg.span, labels=place, help=help)
        if name in given:
            raise fail("E0802", f"`{name}` is given twice", arg.span)
        given[name] = arg
    return given


def _named_help(defn: ast.ModuleDef, name: str, arg: ast.Arg) -> str | None:
    """A parameter that is not known may be an argument of the call."""
    forwards = [m for m in defn.members if isinstance(m, ast.FuncDef) and m.name == "forward"]
    if forwards and any(p.name == name for p in forwards[0].params):
        takes = ", ".join(p.name for p in forwards[0].params)
        return f"`{name}` is given at each call: `forward({takes})`"
    return named_help(name, arg.value, [p.name for p in defn.params])


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
        value = static(cx, arg.value)
        if isinstance(p.type, ast.TensorTypeExpr) and p.type.name == "tree":
            _a_module(cx, p, arg.value, value)
        bare = p.default is None and p.type is None
        if bare and not isinstance(value, Unknown) and getattr(value, "dim", None) is None:
            if (forced_by := forced_size(cx, arg.value)) is not None:
                raise forced_by
            text = f"`{p.name}` of `{defn.name}` is a size"
            kind = {Weak: "real", Bool: "bool"}.get(type(value))
            mine = kind is not None and defn.name_span.source is span.source
            help = f"declare it so: `{p.name}: {kind}`" if mine else None
            raise fail("E0309", text, arg.value.span, describe(value), (_declared(p),), help=help)
        return value, False
    if isinstance(forced, dict) and p.name in forced:
        return from_python(forced[p.name], span), False
    if p.default is None:
        raise fail(
            "E0802",
            f"`{defn.name}` needs `{p.name}`",
            span,
            labels=(Label(p.name_span, "it has no default"),),
            help=_whose(defn, p),
        )
    with cx.in_frame(frame), cx.outside_loops():
        return static(cx, p.default), True


def _whose(defn: ast.ModuleDef, p: ast.Param) -> str | None:
    if isinstance(p.type, ast.TensorTypeExpr) and p.type.name == "tree":
        return f"say of which module: `{defn.name}(Net)`"
    return None


def _a_module(cx: Context, p: ast.Param, e: ast.Expr, value: Value) -> None:
    """A `tree` is all that a module stores: not one of its tensors."""
    base = cx.tensor(cx.eval(e.value)) if isinstance(e, ast.Attr) else None
    inst = base.inst if isinstance(base, Module) else None
    if isinstance(base, ModuleType):
        inst = cx.instantiate(base, [], e.span)
    stored = isinstance(e, ast.Attr) and inst is not None and e.name in inst.leaves
    if stored or not isinstance(value, Module | ModuleType | Tree | Unknown):
        text = f"`{p.name}` stands for the parameters of a module"
        shown = "one tensor" if stored else describe(value)
        help = f"give `{e.name}` a module of its own" if isinstance(e, ast.Attr) else None
        raise fail("E0802", text, e.span, shown, (_declared(p),), help=help)


def _declared(p: ast.Param) -> Label:
    return Label(p.name_span, "declared here")


def _drop_defaults(cx: Context, frame: Frame, defn: ast.ModuleDef, inst: Instance) -> None:
    """An argument that equals the default is not part of the type's name."""
    for p in defn.params:
        if p.name in inst.given and p.name not in inst.trees and p.default is not None:
            try:
                with cx.in_frame(frame), cx.outside_loops():
                    same = word(static(cx, p.default)) == inst.given[p.name]
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
    cx.static_depth += 1
    try:
        value = cx.eval(e)
    finally:
        cx.static_depth -= 1
    if isinstance(value, Tensor | WeakTensor):
        help = "a tensor that is trained is a `param w: real[D] = 0`, one that is saved a `state`"
        text = "a module parameter must be known at compile time"
        raise fail("E0309", text, e.span, describe(value), help=help)
    return value


def from_python(x: object, span: Span) -> Value:
    """A parameter given from Python or the command line."""
    if isinstance(x, bool):
        return Bool(x)
    if isinstance(x, int | float):
        return number(x)
    raise fail("E0802", f"a module parameter is a number or a bool, not {x!r}", span)


def word(value: Value) -> str:
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
    with cx.in_frame(frame):
        apply_equations(cx, defn, values)
    elaborate_members(cx, inst)
    return inst


def _symbolic(cx: Context, frame: Frame, p: ast.Param) -> Value:
    kind = p.type.name if isinstance(p.type, ast.TensorTypeExpr) else None
    if p.type is not None and kind not in (*DTYPES, "tree", "dim"):
        help = "a parameter is a size, a number, a `bool`, a `tree`, or a function by its default"
        text = f"a module parameter cannot be a `{p.type.span.text}`"
        raise fail("E0308", text, p.type.span, help=help)
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
