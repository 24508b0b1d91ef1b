"""What a name means."""

from __future__ import annotations

from nnc.diagnostics import Span
from nnc.lang import ast
from nnc.lang.dims import Dim
from nnc.lang.elaborate.context import Context, Mistake, fail
from nnc.lang.elaborate.members import member, member_names
from nnc.lang.elaborate.values import (
    Bool,
    Function,
    Module,
    ModuleType,
    Pack,
    UnitRef,
    Value,
    integer,
    number,
)
from nnc.lang.units import Unit, nearest

NUMBERS = {"pi": 3.141592653589793, "inf": float("inf"), "nan": float("nan")}


def lookup(cx: Context, name: str) -> Value | None:
    """What a name means here: index, variable, size, member, definition of the file, prelude."""
    frame = cx.frame
    if name in frame.binders:
        binder = frame.binders[name]
        return integer(Dim.of(binder.vars[0])) if len(binder.vars) == 1 else None
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


def in_file(cx: Context, unit: Unit, name: str) -> Value | None:
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
    raise fail("E0901", "`extern` functions are not compiled yet", definition.span)


def _constant(name: str) -> Value | None:
    if name in NUMBERS:
        return number(NUMBERS[name])
    return None


def undefined(cx: Context, name: str, span: Span) -> Mistake:
    """An unknown name, with the nearest known one or the import line as help."""
    frame = cx.frame
    known = [*frame.binders, *frame.vars, *frame.dims, *frame.unit.names]
    if frame.module is not None:
        known += [*frame.module.args, *member_names(frame.module)]
    near = nearest(name, known) or nearest(name, cx.prelude_names)
    homes = cx.std_homes.get(name, [])
    help = None
    if len(homes) == 1:
        help = f"`from {homes[0]} import {name}`"
    elif name == "self":
        help = "there is no `self`: members are used by their bare names"
    elif near:
        help = f"did you mean `{near}`?"
    elif name in ("np", "numpy", "torch", "tf", "keras", "F", "jnp"):
        help = "the functions of .nn files need no library: `exp(x)`, `sum(x, over=1)`, ..."
    return fail("E0801", f"`{name}` is not defined", span, help=help)
