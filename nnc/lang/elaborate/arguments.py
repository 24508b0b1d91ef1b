"""Call arguments as written, and paired with parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nnc.diagnostics import Label, Span
from nnc.lang import ast
from nnc.lang.elaborate.mistakes import Mistake, fail
from nnc.lang.elaborate.words import counted
from nnc.lang.units import nearest


@dataclass(frozen=True)
class Given:
    """A call argument as written."""

    name: str | None
    value: ast.Expr
    span: Span
    name_span: Span | None


def arguments(e: ast.Call) -> list[Given]:
    return [Given(a.name, a.value, a.value.span, a.name_span) for a in e.args]


def paired(
    func: ast.FuncDef, shown: str, e: ast.Call, given: Sequence[Given]
) -> list[tuple[ast.Param, Given | None]]:
    """Each parameter with its argument (None: its default)."""
    names = [p.name for p in func.params]
    place = (Label(func.name_span, f"takes {', '.join(names) or 'nothing'}"),)
    by: dict[str, Given] = {}
    for i, g in enumerate(given):
        if g.name is None and i >= len(names):
            what = f"`{shown}` takes {counted(len(names), 'argument')}, {len(given)} are given"
            raise fail("E0802", what, g.span, labels=place)
        name = g.name or names[i]
        if name not in names:
            text, help = f"`{shown}` has no argument `{name}`", near_help(name, names)
            raise fail("E0802", text, g.name_span or g.span, labels=place, help=help)
        if name in by:
            raise fail("E0802", f"`{name}` is given twice", g.span)
        by[name] = g
    missing = [f"`{p.name}`" for p in func.params if p.name not in by and p.default is None]
    if missing:
        raise fail("E0802", f"`{shown}` needs {', '.join(missing)}", e.span, labels=place)
    return [(p, by.get(p.name)) for p in func.params]


def bang_text(call: ast.Call) -> str:
    """The call with `!`."""
    return f"{call.func.span.text}!({', '.join(a.span.text for a in call.args)})"


def near_help(name: str, names: Sequence[str]) -> str | None:
    near = nearest(name, list(names))
    return f"did you mean `{near}`?" if near else None


def take(e: ast.Call, name: str, names: Sequence[str], optional: int = 0) -> list[ast.Expr]:
    """Arguments by position or name; `optional` of the last may be missing."""
    out: dict[str, ast.Expr] = {}
    for i, a in enumerate(e.args):
        key = a.name if a.name is not None else (names[i] if i < len(names) else None)
        if key is None or key not in names:
            raise _surplus(a, name, names)
        if key in out:
            raise fail("E0802", f"`{key}` is given twice", a.span)
        out[key] = a.value
    missing = [n for n in names[: len(names) - optional] if n not in out]
    if missing:
        what = f"`{name}` takes {', '.join(names)}; {', '.join(missing)} missing"
        raise fail("E0802", what, e.span)
    return [out[n] for n in names if n in out]


KERAS = {"axis": "over", "dim": "over", "keepdims": "keep", "keepdim": "keep"}


def _surplus(a: ast.Arg, name: str, names: Sequence[str]) -> Mistake:
    if a.name is None:
        return fail("E0802", f"`{name}` takes {', '.join(names)}", a.span)
    other = KERAS.get(a.name)
    help = f"`{other}={a.value.span.text}`" if other in names else near_help(a.name, names)
    place = a.name_span or a.span
    return fail("E0802", f"`{name}` has no argument `{a.name}`", place, help=help)
