"""Why two sizes are not equal, and what would make them so."""

from __future__ import annotations

from collections.abc import Sequence

from nnc.lang import ast
from nnc.lang.dims import ONE, Dim
from nnc.lang.elaborate.assertions import wanted
from nnc.lang.elaborate.context import Context


def unequal(cx: Context, a: Dim, b: Dim) -> str:
    """`5 is not 2`, or `(H-1)//s+1 equals H only when s = 1`."""
    long, short = (a, b) if len(str(a)) > len(str(b)) else (b, a)
    if (need := _needed(cx, a, b)) is not None:
        return f"{long} equals {short} where {need}"
    for p in cx.frame.module.defn.params if cx.frame.module is not None else ():
        one = {p.name: ONE}
        if p.name in long.names and long.subst(one) == short.subst(one):
            other = _instance_with(cx, p)
            return f"{long} equals {short} only when {p.name} = 1{other}"
    return f"{a} is not {b}"


def assert_help(cx: Context, pairs: Sequence[tuple[Dim, Dim]]) -> str | None:
    """What the module can say of its parameters so that all sizes are equal."""
    needs = {_needed(cx, a, b) for a, b in pairs}
    need = needs.pop() if len(needs) == 1 else None
    return f"`assert {need}` in the module" if need is not None else None


def equal_help(cx: Context, pairs: Sequence[tuple[Dim, Dim]]) -> str | None:
    """For two parameters: where the code is right."""
    params = cx.frame.module.args if cx.generic and cx.frame.module is not None else ()
    match list(dict.fromkeys(pairs)):
        case [(a, b)] if a.name in params and b.name in params:
            return f"where they are equal: `if {a} == {b}:`; or `assert {a} == {b}` in the module"
    return None


def _needed(cx: Context, a: Dim, b: Dim) -> str | None:
    """For the sizes of windows over a run-time size."""
    params = cx.frame.module.args if cx.generic and cx.frame.module is not None else ()
    return wanted(a, b, params) if not (a.names | b.names) <= set(params) else None


def _instance_with(cx: Context, p: ast.Param) -> str:
    """`; layer2.0 uses s = 2 (line 21)`: an instance of the module that gives another number."""
    defn = cx.frame.module.defn if cx.frame.module is not None else None
    units = [d for u in cx.loader.units.values() for d in u.defs.values()]
    members = [m for d in units if isinstance(d, ast.ModuleDef) for m in d.members]
    for m in members:
        value = m.value if isinstance(m, ast.MemberDecl) else None
        items = value.items if isinstance(value, ast.ListLit) else (value,)
        for i, call in enumerate(items):
            given = _given(call, defn, p)
            if isinstance(m, ast.MemberDecl) and isinstance(given, ast.Num) and given.value != 1:
                path = f"{m.name}.{i}" if value is not call else m.name
                place = given.span.line_in(p.name_span)
                return f"; {path} uses {p.name} = {given.value} ({place})"
    return ""


def _given(call: object, defn: ast.ModuleDef | None, p: ast.Param) -> ast.Expr | None:
    """The argument of `M(...)` for a parameter."""
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or defn is None:
        return None
    names = [q.name for q in defn.params]
    for i, a in enumerate(call.args):
        if call.func.id == defn.name and (a.name or (names[i] if i < len(names) else "")) == p.name:
            return a.value
    return None
