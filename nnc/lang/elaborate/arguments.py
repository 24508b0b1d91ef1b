"""Call arguments as written, and paired with parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nnc.diagnostics import Label, Span
from nnc.lang import ast
from nnc.lang.elaborate.habits import PARAMETERS
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
        if g.name is None and any(h.name is not None for h in given[:i]):
            raise fail("E0802", "named arguments come last", g.span, help=_name_it(g, names, given))
        name = g.name or names[i]
        if name not in names:
            text, help = f"`{shown}` has no argument `{name}`", named_help(name, g.value, names)
            raise fail("E0802", text, g.name_span or g.span, labels=place, help=help)
        if name in by:
            raise fail("E0802", f"`{name}` is given twice", g.span)
        by[name] = g
    missing = [p for p in func.params if p.name not in by and p.default is None]
    if missing:
        what = f"`{shown}` needs {', '.join(f'`{p.name}`' for p in missing)}"
        raise fail("E0802", what, e.span, labels=place, help=_missing_help(e, missing))
    return [(p, by.get(p.name)) for p in func.params]


def _name_it(g: Given, names: Sequence[str], given: Sequence[Given]) -> str | None:
    free = [n for n in names if n not in {h.name for h in given}]
    return f"`{free[0]}={g.span.text}`, or put it first" if free else None


def _missing_help(e: ast.Call, missing: Sequence[ast.Param]) -> str | None:
    """`softmax(x, over=-1)` where only the axis is missing."""
    axes = [p for p in missing if isinstance(p.type, ast.TensorTypeExpr) and p.type.name == "axis"]
    if not axes or len(missing) > 1 or not e.args:
        return None
    args = [*(a.span.text for a in e.args), f"{axes[0].name}=-1"]
    return f"say which axis; the last is `{e.func.span.text}({', '.join(args)})`"


def bang_text(call: ast.Call) -> str:
    """The call with `!`."""
    return f"{call.func.span.text}!({', '.join(a.span.text for a in call.args)})"


def near_help(name: str, names: Sequence[str]) -> str | None:
    near = nearest(name, list(names))
    return f"did you mean `{near}`?" if near else None


def named_help(name: str, value: ast.Expr, names: Sequence[str]) -> str | None:
    """Help for an argument name that is not known: the one of this language, or a near one."""
    other = PARAMETERS.get(name)
    if other in names:
        return f"`{other}={value.span.text}`"
    if name in ("training", "train"):
        return "a call with `!`, `net!(x)`, runs with `train` true, one without with false"
    if name == "dtype":
        return "a value takes its dtype from its use; `f32(x)` converts"
    return near_help(name, names)


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


def _surplus(a: ast.Arg, name: str, names: Sequence[str]) -> Mistake:
    if a.name is None:
        few = counted(len(names), "argument")
        return fail("E0802", f"`{name}` takes {few}: {', '.join(names)}", a.span, "one too many")
    help = named_help(a.name, a.value, names)
    place = a.name_span or a.span
    return fail("E0802", f"`{name}` has no argument `{a.name}`", place, help=help)
