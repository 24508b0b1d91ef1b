"""Members: `net.fc1`, `x.T`, and messages for what other libraries have there."""

from __future__ import annotations

from collections.abc import Sequence

from nnc.diagnostics import Label, Span
from nnc.lang import ast
from nnc.lang.elaborate.arguments import near_help
from nnc.lang.elaborate.broadcasting import bare, typed
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.habits import (
    CASTS,
    FUNCTIONS,
    LIBRARIES,
    METHODS,
    MODULE_METHODS,
    NAMES,
    layer_help,
)
from nnc.lang.elaborate.members import member, member_names
from nnc.lang.elaborate.mistakes import Mistake, Poisoned, fail
from nnc.lang.elaborate.names import in_file
from nnc.lang.elaborate.values import (
    UNKNOWN,
    Instance,
    Module,
    ModuleList,
    ModuleType,
    Seq,
    Sub,
    SubList,
    Tensor,
    Tree,
    TreeParam,
    UnitRef,
    Unknown,
    Value,
    Weak,
    WeakTensor,
)
from nnc.lang.elaborate.words import describe


def attribute(cx: Context, e: ast.Attr) -> Value:
    """`net.fc1`, `file.name`, `x.T`."""
    if isinstance(e.value, ast.Name) and cx.lookup(e.value.id) is None:
        unit = cx.frame.unit.aliases.get(f"{e.value.id}.{e.name}")
        if unit is not None:
            return UnitRef(unit)
    if isinstance(e.value, ast.Name) and e.value.id in LIBRARIES and cx.lookup(e.value.id) is None:
        raise _library(cx, e.value, e.name)
    if isinstance(e.value, ast.Name) and cx.lookup(e.value.id) is None:
        inst = cx.frame.module
        if inst is not None and e.name in member_names(inst):
            scope = f"the members of a module are in scope: `{e.name}`"
            raise fail("E0801", f"`{e.value.id}` is not defined", e.value.span, help=scope)
    base = cx.tensor(cx.eval(e.value))
    match base:
        case Unknown():
            raise Poisoned
        case UnitRef(unit=unit):
            found = in_file(cx, unit, e.name) or cx.prelude(e.name)
            if found is not None:
                return found
            raise _no_member(e, f"`{unit.name}` has no `{e.name}`", unit.names)
        case Module():
            found = member(cx, base, e.name) or base.inst.args.get(e.name)
            if found is not None:
                return found
            names = [*member_names(base.inst), *base.inst.args]
            text = f"`{e.value.span.text}`, a {base.inst.id}, has no member `{e.name}`"
            raise _no_member(e, text, names, MODULE_METHODS.get(e.name))
        case ModuleType(defn=defn):
            inst = cx.instantiate(base, [], e.value.span)
            found = member(cx, Module(inst, ""), e.name)
            if found is not None:
                return found
            raise _no_member(e, f"{defn.name} has no member `{e.name}`", member_names(inst))
        case Tensor() if e.name == "T":
            return transpose(cx, base, e.span)
        case Tensor() | Weak() | WeakTensor():
            raise _no_attribute(e, base)
        case Seq() | ModuleList():
            if isinstance(e.value, ast.Name) and e.value.id in cx.frame.vars:
                cx.frame.vars[e.value.id] = UNKNOWN
            help = NAMES.get(e.name)
            raise fail("E0804", f"a list has no `{e.name}`", e.name_span, help=help)
        case Tree():
            return _leaf(e, base)
    raise fail("E0804", f"{describe(base)} has no `{e.name}`", e.name_span)


def _leaf(e: ast.Attr, tree: Tree) -> Value:
    """`g.fc1`, `g.fc1.weight` of a tree of params: what stands under that member's keys."""
    if isinstance(tree.of, TreeParam):
        raise fail("E0804", f"{describe(tree)} has no `{e.name}`: it may be any tree", e.name_span)
    sub = _member_tree(tree.of, e.name) if tree.of is not None else None
    if "*" in tree.leaves and isinstance(tree.of, Instance):  # in the generic check
        own = tree.of.leaves.get(e.name)
        if sub is None and (own is None or own.storage != "param"):
            text = f"{tree.of.defn.name} has no param `{e.name}`"
            raise _no_member(e, text, [*tree.of.leaves, *tree.of.members])
        return UNKNOWN
    key = tree.of.leaves[e.name].key or e.name if tree.of and e.name in tree.of.leaves else e.name
    if key in tree.leaves:
        return tree.leaves[key]
    below = {k[len(key) + 1 :]: v for k, v in tree.leaves.items() if k.startswith(f"{key}.")}
    if not below:
        names = list(dict.fromkeys(k.partition(".")[0] for k in tree.leaves))
        raise _no_member(e, f"{describe(tree)} has no `{e.name}`", names)
    return Tree(below, sub)


def _member_tree(inst: Instance, name: str) -> Instance | None:
    match inst.members.get(name):
        case Sub(inst=sub):
            return sub
        case SubList(like=like):
            return like
    return None


def _library(cx: Context, base: ast.Name, name: str) -> Mistake:
    """`nn.Linear`, `np.exp`."""
    inside = set(cx.prelude_names)
    help = layer_help(name, cx.std_homes, inside) or NAMES.get(name)
    if name in inside:
        help = f"functions need no prefix: `{name}(...)`"
    elif help is not None and help.startswith("`from"):
        help = f"no prefix is needed: {help}"
    return fail("E0801", f"`{base.id}` is not defined", base.span, help=help)


def _no_member(e: ast.Attr, text: str, names: Sequence[str], help: str | None = None) -> Mistake:
    has = f"it has {', '.join(names)}" if 0 < len(names) < 9 else None
    help = help or near_help(e.name, names) or has
    return fail("E0804", text, e.name_span, help=help, once=_once(e))


def _once(e: ast.Attr) -> tuple[str, ...]:
    """`zero_grad`, `backward`, `step` are one mistake."""
    parts = ("zero_grad", "backward", "step", "train", "eval")
    return ("training step", e.span.source.name) if e.name in parts else ()


def _no_attribute(e: ast.Attr, base: Value) -> Mistake:
    help = METHODS.get(e.name) or NAMES.get(e.name)
    if e.name == "shape" and isinstance(base, Tensor) and base.shape:
        help = f"sizes have names, here {', '.join(f'`{d}`' for d in base.shape)}: use these"
    if e.name in FUNCTIONS:
        help = f"`{e.name}({bare(e.value.span.text)})`"
    if e.name in CASTS:
        help = f"`{CASTS[e.name]}({e.value.span.text})`"
    if e.name in ("to", "type", "astype"):
        help = f"`f32({e.value.span.text})`"
    if e.name == "detach":
        help = f"`stop({e.value.span.text})`"
    shown = typed(base, e.span) if isinstance(base, Tensor) else describe(base)
    place = Label(e.value.span, shown)
    text = f"a tensor has no `{e.name}`"
    return fail("E0804", text, e.name_span, labels=(place,), help=help, once=_once(e))


def transpose(cx: Context, x: Tensor, span: Span) -> Tensor:
    if len(x.shape) != 2:
        help = "index it: `y[b, j, i] = x[b, i, j]`"
        if 2 < len(x.shape) < 7:
            text = span.text.removesuffix(".T")
            free = [c for c in "bhnmuv" if c != text][: len(x.shape) - 2]
            names = [*free, *[c for c in "ijk" if c != text][:2]]
            left = ", ".join([*names[:-2], names[-1], names[-2]])
            help = f"index it: `y[{left}] = {text}[{', '.join(names)}]`"
        raise fail("E0308", f"`.T` is for rank 2, this is {x.type}", span, help=help)
    origins = (x.origin(1), x.origin(0))
    return cx.compute(x.shape[::-1], lambda i: x.at((i[1], i[0])), span, origins=origins)
