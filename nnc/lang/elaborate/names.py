"""What a name means."""

from __future__ import annotations

from nnc.diagnostics import Label, Span
from nnc.lang import ast
from nnc.lang.dims import Dim
from nnc.lang.elaborate.context import Context, Frame
from nnc.lang.elaborate.habits import LIBRARIES, NAMES, RENAMED, layer_help
from nnc.lang.elaborate.members import member, member_names
from nnc.lang.elaborate.mistakes import Mistake, fail
from nnc.lang.elaborate.values import (
    UNKNOWN,
    Bool,
    Function,
    Module,
    ModuleType,
    Pack,
    Tensor,
    Tree,
    UnitRef,
    Value,
    integer,
    number,
)
from nnc.lang.elaborate.walks import assigned, nested
from nnc.lang.units import Unit, nearest

NUMBERS = {"pi": 3.141592653589793, "inf": float("inf"), "nan": float("nan")}


def lookup(cx: Context, name: str) -> Value | None:
    """What a name means here: index, variable, size, member, definition of the file, prelude."""
    frame = cx.frame
    if name in frame.binders:
        binder = frame.binders[name]
        return integer(Dim.of(binder.vars[0])) if len(binder.vars) == 1 else None
    if name in frame.trees:  # its present version
        frame.used.add(name)
        tree = frame.trees[name]
        return Tree({k: cx.tensor(v) for k, v in tree.leaves.items()}, tree.of)
    if name in frame.vars:
        frame.used.add(name)
        return frame.vars[name]
    if name in frame.dims:
        frame.used.add(name)
        return integer(frame.dims[name])
    if name in frame.packs:
        return Pack(frame.packs[name])
    if name == "train" and frame.func is not None:
        return Bool(frame.train)
    found = _in_module(cx, name)
    if found is not None:
        return found
    return in_file(cx, frame.unit, name) or _constant(name) or cx.prelude(name)


def _in_module(cx: Context, name: str) -> Value | None:
    frame = cx.frame
    inst = frame.module
    if inst is None:
        return None
    if name in inst.args:
        return inst.args[name]
    owner = frame.owner or Module(inst, "")
    return member(cx, owner, name)


def dotted(cx: Context, path: str) -> Value | None:
    """`nn.Linear` and `std.nn.Linear` by the files that are imported."""
    unit, _, name = path.rpartition(".")
    found = cx.frame.unit.aliases.get(unit)
    return in_file(cx, found, name) if found is not None else None


def in_file(cx: Context, unit: Unit, name: str) -> Value | None:
    if name in unit.failed:
        return UNKNOWN
    found = unit.find(name)
    if found is None:
        return UnitRef(unit.aliases[name]) if name in unit.aliases else None
    where, definition = found
    match definition:
        case ast.FuncDef():
            return Function(where, definition)
        case ast.ModuleDef():
            return ModuleType(where, definition)
        case ast.ConstDef():
            return cx.constant(where, definition)


def _constant(name: str) -> Value | None:
    if name in NUMBERS:
        return number(NUMBERS[name])
    return None


def _assigned_later(func: ast.FuncDef | None, name: str, span: Span) -> Span | None:
    """The statement further down that defines a name."""
    for stmt in nested(func.body) if func is not None else ():
        if isinstance(stmt, ast.Assign) and name in assigned([stmt]) and stmt.span.line > span.line:
            return stmt.targets[0].span
    return None


def _argument_types(frame: Frame) -> dict[str, str]:
    params = frame.func.params if frame.func is not None else ()
    return {p.name: p.type.span.text for p in params if p.type is not None}


def _in_export(frame: Frame) -> bool:
    return frame.func is not None and frame.func.exported


def undefined(cx: Context, name: str, span: Span) -> Mistake:
    """An unknown name, with the nearest known one or the import line as help."""
    frame = cx.frame
    if name in frame.half:
        where = Label(frame.half[name], "assigned here")
        text = f"`{name}` is assigned in one branch only"
        both = "assign it before the `if`, or in both branches"
        return fail("E0801", text, span, labels=(where,), help=both)
    if name in frame.looped:
        label = (Label(frame.looped[name], "assigned here, in the loop"),)
        text, first = f"`{name}` is assigned in a loop only", "assign it before the loop as well"
        return fail("E0801", text, span, labels=label, help=first)
    for m in frame.module.defn.members if frame.module is not None else ():
        if isinstance(m, ast.ParamDecl) and m.name == name and m.when is not None:
            text = f"`{name}` is there only when `{m.when.span.text}`"
            label = (Label(m.name_span, "declared here"),)
            guarded = f"`{name} if {m.when.span.text} else 0`"
            return fail("E0801", text, span, labels=label, help=guarded)
    if frame.func is None and frame.module is not None and name[:1].isupper():
        help = layer_help(name, cx.std_homes, set()) or NAMES.get(name)
        near = nearest(name, [*frame.module.args, *frame.unit.names])
        names = ", ".join([*(p.span.text for p in frame.module.defn.params), f"{name}=..."])
        also = f"a size of the module is its parameter: `module {frame.module.defn.name}({names})`"
        help = help or (f"did you mean `{near}`?" if near else also)
        once = ("undefined", span.source.name, name)
        return fail("E0801", f"`{name}` is not defined", span, help=help, once=once)
    lettered = [n for n, v in frame.vars.items() if isinstance(v, Tensor) and name in v.letters]
    if lettered and not frame.binders and len(name) < 3:
        value = frame.vars[lettered[-1]]
        letters = ", ".join(value.letters) if isinstance(value, Tensor) else name
        help = f"an index ends with its statement; begin another: `y[{letters}] = ...`"
        return fail("E0801", f"`{name}` is not defined", span, help=help)
    later = _assigned_later(frame.func, name, span)
    if later is not None:
        label = (Label(later, "assigned only here"),)
        help = "move this line up; statements run in order"
        return fail("E0801", f"`{name}` is not defined yet", span, labels=label, help=help)
    known = [*frame.binders, *frame.vars, *frame.dims, *frame.unit.names]
    if frame.module is not None:
        known += [*frame.module.args, *member_names(frame.module)]
    help = layer_help(name, cx.std_homes, set(cx.prelude_names)) or NAMES.get(name)
    near = nearest(name, known) or nearest(name, cx.prelude_names)
    if help is None and name in LIBRARIES:
        help = "layers and functions need no prefix: `from std.nn import Linear`, `exp(x)`"
    elif help is None and name in RENAMED:
        help = f"it is called `{RENAMED[name]}`"
    elif help is None and cx.static_depth and name in (types := _argument_types(frame)):
        help = f"`{name}` is an argument, and a type stands here: `{types[name]}`"
    elif help is None and cx.static_depth and name[:1].isupper() and _in_export(frame):
        help = "modules of an exported function have numbers, or their defaults: `Linear(64, 10)`"
    elif help is None and near:
        help = f"did you mean `{near}`?"
    elif help is None and name[:1].isupper() and len(name) < 3:
        help = "a size is a name in the shape of an argument; a parameter of a module is a number"
    once = ("undefined", span.source.name, name)
    return fail("E0801", f"`{name}` is not defined", span, help=help, once=once)
