"""Where a number in a condition on sizes comes from: `1024 is N, the rows of wpe (gpt2.nn:45)`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from nnc.ir.signature import Check
from nnc.lang import ast
from nnc.lang.elaborate.values import Instance, Module, Value, Weak
from nnc.lang.elaborate.words import axis_word

_SMALLEST = 4  # smaller numbers stand for themselves


def explained(checks: Sequence[Check], given: Sequence[Value]) -> tuple[Check, ...]:
    """Checks with notes: numbers that one size parameter of the modules among `given` has."""
    modules = [v.inst for v in given if isinstance(v, Module)]
    return tuple(replace(c, note=_note(c.text, modules)) for c in checks)


def _note(text: str, modules: Sequence[Instance]) -> str:
    for number in map(int, re.findall(r"(?<![\w.])\d+(?![\w.])", text)):
        found = [x for inst in modules for x in _named(inst, number)] if number >= _SMALLEST else []
        if len(found) == 1:
            return f"{number} is {found[0]}"
    return ""


def _named(inst: Instance, number: int) -> Iterator[str]:
    """Size parameters of a module with this value, and where they appear first."""
    for name, value in inst.args.items():
        if isinstance(value, Weak) and value.number == number:
            place = f"{inst.defn.span.source.name}:{inst.defn.span.line}"
            yield f"{name}, " + (_axis(inst, name) or f"a parameter of {inst.defn.name} ({place})")


def _axis(inst: Instance, name: str) -> str:
    for m in inst.defn.members:
        if isinstance(m, ast.ParamDecl | ast.StateDecl) and isinstance(m.type, ast.TensorTypeExpr):
            dims = m.type.dims or ()
            for i, d in enumerate(dims):
                if isinstance(d, ast.Name) and d.id == name:
                    at = f"{m.span.source.name}:{m.span.line}"
                    return f"the {axis_word(len(dims), i, m.name)} ({at})"
    return ""
