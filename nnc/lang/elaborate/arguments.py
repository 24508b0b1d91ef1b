"""Call arguments as written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nnc.diagnostics import Span
from nnc.lang import ast
from nnc.lang.elaborate.context import Context, fail
from nnc.lang.units import nearest


def arguments(cx: Context, e: ast.Call) -> list[Given]:
    return [Given(a.name, a.value, a.value.span, a.name_span) for a in e.args]


@dataclass(frozen=True)
class Given:
    """A call argument as written."""

    name: str | None
    value: ast.Expr
    span: Span
    name_span: Span | None


def take(e: ast.Call, name: str, names: Sequence[str], optional: int = 0) -> list[ast.Expr]:
    """Arguments by position or name; `optional` of the last may be missing."""
    out: dict[str, ast.Expr] = {}
    for i, a in enumerate(e.args):
        key = a.name if a.name is not None else (names[i] if i < len(names) else None)
        if key is None or key not in names or key in out:
            near = nearest(a.name, list(names)) if a.name else None
            raise fail(
                "E0802",
                f"`{name}` takes {', '.join(names)}",
                a.span,
                help=f"did you mean `{near}`?" if near else None,
            )
        out[key] = a.value
    need = names[: len(names) - optional]
    missing = [n for n in need if n not in out]
    if missing:
        raise fail("E0802", f"`{name}` needs {', '.join(missing)}", e.span)
    return [out[n] for n in names if n in out]
