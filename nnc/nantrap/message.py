"""What `nan_trap` says: the line, the element, and what it was made from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nnc.diagnostics import Diagnostic, Span, quoted
from nnc.ir.expr import Expr, Idx, Load, Op, Select, children, walk
from nnc.ir.graph import Compute, Input, Node
from nnc.ir.interpret import evaluated
from nnc.lang.types import is_float
from nnc.passes.observe import Sight
from nnc.runtime.memory import numpy_dtype

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Fault:
    """The first value that is not finite, at one element. `turns`: of the loops around it."""

    sight: Sight
    turns: tuple[int, ...]
    index: tuple[int, ...]
    value: float


def turns_of(sight: Sight, turns: tuple[int, ...]) -> dict[str, int]:
    return {loop.var: t for loop, t in zip(sight.loops, turns, strict=True)}


def message(
    fault: Fault,
    values: Mapping[Node, Array],
    dims: Mapping[str, int],
    more: Sequence[str] = (),
) -> str:
    """The report; `more`: its last lines."""
    node, at = fault.sight.node, fault.sight.node.span
    if isinstance(node, Input) and node.kind in ("arg", "param", "state"):
        shown = f"{_number(fault.value)} at {_index(node, fault.index)}"
        return quoted(_diagnostic(at, shown, [f"`{node.name}` was given so"]))
    notes: list[str] = []
    culprit: Op | None = None
    if isinstance(node, Compute):
        culprit, notes = _reasons(node, fault, values, dims)
    places = [f"{_plain(n)} = {t}" for n, t in turns_of(fault.sight, fault.turns).items()]
    turns = f" in turn {', '.join(places)}" if places else ""
    here = _narrowed(at, culprit)
    shown = f"{_number(fault.value)} at {_index(node, fault.index)}{turns}".replace(" at []", "")
    if here.own is not here:
        notes.insert(0, f"in {here.place}: {' '.join(here.text.split())}")
    if node.name.startswith("d."):
        notes.insert(0, "in the gradient of this expression")
    return quoted(_diagnostic(here.own, shown, [*notes, *more]))


def _diagnostic(at: Span, shown: str, notes: Sequence[str]) -> Diagnostic:
    return Diagnostic("", "first non-finite value", at, shown, notes=tuple(notes))


def _reasons(
    node: Compute, fault: Fault, values: Mapping[Node, Array], dims: Mapping[str, int]
) -> tuple[Op | None, list[str]]:
    """The operation that made it, and its operands' values at the element."""
    parts = evaluated(node, fault.index, dims, {n: np.asarray(v) for n, v in values.items()})
    if node.op:
        terms = np.asarray(parts[node.body])
        bad = np.argwhere(~np.isfinite(terms.astype(numpy_dtype(node.body.dtype))))
        if not len(bad):
            largest = float(np.abs(terms).max()) if terms.size else 0.0
            return None, [f"{node.op} of {terms.size} terms, the largest of size {largest:.4g}"]
        at = tuple(int(i) for i in bad[0][len(node.axes) :])
    else:
        at = ()
    env = dict(zip((a.var for a in (*node.axes, *node.raxes)), (*fault.index, *at), strict=True))
    notes, culprit = [], None
    for e in _reached(node.body, parts, len(node.axes), at):
        value = _at(parts[e], len(node.axes), at)
        if isinstance(e, Op) and culprit is None and _made(e, parts, len(node.axes), at):
            culprit = e
        if isinstance(e, Load) and is_float(e.dtype):
            notes.append(_operand(e, value, {**dims, **env}, parts, len(node.axes), at, node.span))
    return culprit, list(dict.fromkeys(notes))[:6]


def _reached(body: Expr, parts: Mapping[Expr, Any], kept: int, at: tuple[int, ...]) -> list[Expr]:
    """What is evaluated at this element, operands first."""
    needed, stack = {body}, [body]
    while stack:
        e = stack.pop()
        below = children(e)
        if isinstance(e, Select):
            below = (e.cond, e.a if _at(parts[e.cond], kept, at) else e.b)
        elif isinstance(e, Load):
            below = e.index
        stack += [c for c in below if c not in needed]
        needed.update(below)
    return [e for e in walk(body) if e in needed]


def _at(array: Any, kept: int, at: tuple[int, ...]) -> float:
    array = np.asarray(array)
    if array.ndim == 0:
        return float(array)
    place = [0] * kept + list(at)
    clipped = tuple(min(i, n - 1) for i, n in zip(place, array.shape, strict=True))
    return float(array[clipped])


def _made(e: Op, parts: Mapping[Expr, Any], kept: int, at: tuple[int, ...]) -> bool:
    """Whether this operation gives something not finite from finite operands (or NaN from none)."""
    if not is_float(e.dtype):
        return False
    with np.errstate(all="ignore"):
        result = float(np.float64(_at(parts[e], kept, at)).astype(_like(e)))
    operands_ = [_at(parts[a], kept, at) for a in e.args]
    if np.isnan(result):
        return not np.isnan(operands_).any()
    return bool(np.isinf(result) and np.isfinite(operands_).all())


def _like(e: Expr) -> np.dtype[Any]:
    return np.dtype(np.float32) if e.dtype == "bf16" else numpy_dtype(e.dtype)


def _operand(
    e: Load,
    value: float,
    env: Mapping[str, int],
    parts: Mapping[Expr, Any],
    kept: int,
    at: tuple[int, ...],
    seen_from: Span,
) -> str:
    node: Node = e.tensor  # type: ignore[assignment]
    index = [
        i.dim.evaluate(env) if isinstance(i, Idx) else int(_at(parts[i], kept, at)) for i in e.index
    ]
    where = f"[{', '.join(map(str, index))}]" if index else ""
    if isinstance(node, Input) and node.kind in ("arg", "param", "state"):
        return f"{node.name}{where} = {_number(value)}"
    own = node.span.own
    name, text = _name(node), " ".join(own.text.split())
    text = text if len(text) <= 60 else f"{text[:57]}..."
    origin = f", from {text} ({own.line_in(seen_from.own)})"
    if not name:
        return f"{text}{where} = {_number(value)} ({own.line_in(seen_from.own)})"
    return f"{name}{where} = {_number(value)}" + (origin if text != name else "")


_ASSIGNED = re.compile(r"\s*(\w+)(?:\[[^=]*\])?\s*=\s*")


def _name(node: Node) -> str:
    """The variable that the reader's line gives the value to, if it is all of the line."""
    own = node.span.own
    if own.source.library or own.line != own.end_line or own.line > len(own.source.lines):
        return node.name if node.name.isidentifier() else ""
    row = own.source.lines[own.line - 1]
    match = _ASSIGNED.match(row)
    rest = row[own.end_column - 1 :].split("#")[0].strip()
    if match and own.column - 1 <= match.end() and not rest:
        return match[1]
    return node.name if node.name.isidentifier() else ""


def _narrowed(span: Span, culprit: Op | None) -> Span:
    """The call of a scalar function inside the expression, if that is plain to see."""
    if culprit is None or span.line != span.end_line:
        return span
    row = span.source.lines[span.line - 1]
    found = [
        m
        for m in re.finditer(rf"\b{culprit.fn}\s*\(", row)
        if span.column - 1 <= m.start() < span.end_column - 1
    ]
    if len(found) != 1:
        return span
    depth, end = 0, found[0].end() - 1
    while end < len(row):
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(row[end], 0)
        end += 1
        if depth == 0:
            return replace(span, column=found[0].start() + 1, end_column=end + 1)
    return span


def _index(node: Node, index: Sequence[int]) -> str:
    """`[b=17, z=3]`: the axes by their sizes' or index names."""
    axes = node.axes if isinstance(node, Compute) else ()
    names = []
    for k, dim in enumerate(node.type.shape):
        letter = _plain(axes[k].var) if k < len(axes) else ""
        names.append(dim.name.lower() if dim.name and dim.name.isidentifier() else letter)
    if len(set(names)) < len(names):
        names = [_plain(a.var) for a in axes] or [""] * len(names)
    return (
        "["
        + ", ".join(f"{n}={i}" if n else str(i) for n, i in zip(names, index, strict=True))
        + "]"
    )


def _plain(var: str) -> str:
    """A loop variable as the reader wrote it."""
    return var.lstrip("$").split(".")[0]


def _number(value: float) -> str:
    return f"{value:.4g}"
