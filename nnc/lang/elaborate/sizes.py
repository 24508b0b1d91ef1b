"""Expressions in size positions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from nnc.diagnostics import Label, Span
from nnc.lang import ast
from nnc.lang.dims import Dim, apply, divides, exact_div
from nnc.lang.elaborate.context import Context, Frame
from nnc.lang.elaborate.mistakes import Mistake, Poisoned, fail
from nnc.lang.elaborate.names import undefined
from nnc.lang.elaborate.values import Function, ModuleType, Pack, Tensor, UnitRef, Unknown, Weak
from nnc.lang.elaborate.walks import syntax
from nnc.lang.elaborate.words import describe

NO_SIZES = ModuleType | Function | UnitRef  # what a file names may also be the name of a size


def quantified(cx: Context, frame: Frame, e: ast.Expr) -> list[str]:
    """The names of a size expression that the signature still has to determine."""
    out: list[str] = []
    stack: list[object] = [e]
    while stack:
        node = stack.pop()
        if isinstance(node, tuple):
            stack.extend(node)
        elif isinstance(node, ast.Name):
            with cx.in_frame(frame):
                known = cx.lookup(node.id)
                if isinstance(known, NO_SIZES | None) and node.id not in out:
                    out.append(node.id)
        elif isinstance(node, ast.Call):
            stack.append(tuple(a.value for a in node.args))
        elif isinstance(node, ast.Syntax):
            stack.extend(getattr(node, f.name) for f in fields(node) if f.name != "span")
    return out


def dim_op(cx: Context, op: str, a: Dim, b: Dim, span: Span) -> Dim:
    """`+ - * // %` of sizes; a divisor must be at least 1."""
    match op:
        case "+":
            return a + b
        case "-":
            return a - b
        case "*":
            return a * b
    if b.const == 0:
        raise fail("E0310", "division by zero", span)
    positive(cx, b, span)
    return a // b if op == "//" else a % b


def positive(cx: Context, d: Dim, span: Span) -> None:
    """A divisor: at least 1, or checked to be at entry."""
    if d.const is not None or cx.generic or cx.proves(d - 1):
        return
    shown = str(d).replace("$", "")
    if d.names & (cx.ranges.keys() | cx.turns.keys()):
        raise fail("E0310", "this divisor can be 0 or less", span, shown)
    cx.require(d - 1, False, f"{shown} >= 1", span)


def dims_of(cx: Context, items: tuple[ast.Expr, ...]) -> Iterator[Dim]:
    """Sizes written as a list, packs included."""
    for item in items:
        if isinstance(item, ast.Rest):
            if item.name not in cx.frame.packs:
                raise undefined(cx, item.name, item.span)
            yield from cx.frame.packs[item.name]
        else:
            yield cx.eval_dim(item)


def eval_dim(cx: Context, e: ast.Expr) -> Dim:
    """An expression in a size position: an integer polynomial; `/` is exact."""
    spine: list[ast.Binary] = []
    while isinstance(e, ast.Binary) and e.op in ("+", "-", "*", "/", "//", "%"):
        spine.append(e)
        e = e.left
    out = _size(cx, e)
    for node in reversed(spine):
        right = eval_dim(cx, node.right)
        if node.op == "/":
            out = quotient(cx, out, right, node)
        else:
            out = dim_op(cx, node.op, out, right, node.span)
    return cx.settled(out)


def _size(cx: Context, e: ast.Expr) -> Dim:
    match e:
        case ast.Call(func=ast.Name(id="min" | "max" as kind), args=(a, b)):
            return apply(kind, eval_dim(cx, a.value), eval_dim(cx, b.value))
    value = cx.tensor(cx.eval(e))
    match value:
        case Weak(dim=dim) if dim is not None:
            return dim
        case Weak(number=n) if n is not None and float(n).is_integer():
            return Dim.of(int(n))
        case Pack(dims=(one,)):
            return one
        case Unknown():
            raise Poisoned
        case Tensor(shape=()):
            raise fail(
                "E0309",
                "a size cannot be a computed number",
                e.span,
                str(value.type),
                help="an argument `n: dim` may be used as a size",
            )
    if (forced := forced_size(cx, e)) is not None:
        raise forced
    once = ("no size", e.span.source.name, e.span.text)
    raise fail("E0309", "a size must be an integer", e.span, describe(value), once=once)


def forced_size(cx: Context, e: ast.Expr) -> Mistake | None:
    """The mistake of a module parameter that is given from outside, is no whole number and stands
    in a size."""
    inst = cx.frame.module
    if inst is None:
        return None
    given = cx.overrides.get(inst.defn.name, {})
    for p in inst.defn.params:
        used = any(isinstance(n, ast.Name) and n.id == p.name for n in syntax(e))
        if used and type(given.get(p.name, 0)) is not int:
            text = f"`{p.name}` of `{inst.defn.name}` is a size, {given[p.name]!r} is given"
            label = Label(e.span, "a size")
            once = ("forced size", inst.defn.name, p.name)
            help = "a whole number (`-D`, `nnc.load`)"
            return fail("E0309", text, p.name_span, labels=(label,), help=help, once=once)
    return None


def quotient(cx: Context, p: Dim, q: Dim, e: ast.Binary) -> Dim:
    """`p / q` in a size: must be exact."""
    exact = divides(p, q) if q.const != 0 else False
    if q.const != 0:
        positive(cx, q, e.span)
    if exact is False:
        raise _not_exact(cx, p, q, e)
    if exact is None:
        cx.require(p % q, True, f"{p} % {q} == 0", e.span)
    return exact_div(p, q)


def _not_exact(cx: Context, p: Dim, q: Dim, e: ast.Binary) -> Mistake:
    n = p.const or 0
    divisors = [str(k) for k in range(1, min(n, 4096) + 1) if n % k == 0]
    shown = " ".join(divisors[:14]) + (" ..." if len(divisors) > 14 else "")
    notes = [
        f"{x.span.text} = {d} {origin}"
        for x, d in ((e.left, p), (e.right, q))
        if (origin := _given(cx, x, d))
    ]
    help = f"{n} divides by {shown}" if n > 0 else None
    text = f"{e.span.text} is not exact: {p} / {q}"
    once = ("not exact", f"{p} / {q}")
    return fail("E0310", text, e.span, notes=notes, help=help, once=once)


def _given(cx: Context, e: ast.Expr, value: Dim) -> str:
    """`comes from the default of Tiny (line 13), through Block (line 14)`."""
    if not isinstance(e, ast.Name) or not cx.building:
        return ""
    (outer, span), *inner = cx.building
    sources = [p for p in outer.defn.params if outer.args.get(p.name) is not None]
    for p in sources:
        given = outer.args[p.name]
        if isinstance(given, Weak) and given.dim == value:
            default = p.name not in outer.given
            shown = f"the default of {outer.defn.name}" if default else f"`{outer.id}`"
            place = p.span if default else span
            steps = [f"{i.defn.name} ({s.line_in(e.span)})" for i, s in inner]
            through = f", through {', '.join(steps)}" if steps else ""
            return f"comes from {shown} ({place.line_in(e.span)}){through}"
    return ""
