"""`extern "symbol" def f(...) -> T`: a function of C, called with sizes and pointers.

Between tensors it is `void symbol(const int64_t *sizes, const T *x, ..., T *result)`: one size for
each name of a size in the signature, in order (a pack `..N` gives the number of its elements);
tensors are contiguous and row-major, numbers are passed by value. Of numbers only it is
`T symbol(T x, ...)`, and may stand in index notation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields

from nnc.diagnostics import Label, Span
from nnc.ir.graph import External, Node
from nnc.lang import ast
from nnc.lang.dims import Dim, dim_prod
from nnc.lang.elaborate.context import Context, Frame
from nnc.lang.elaborate.declared import kind_of, shape_of
from nnc.lang.elaborate.lifting import at_ranges, over_ranges, used_ranges
from nnc.lang.elaborate.mistakes import Mistake, Poisoned, fail
from nnc.lang.elaborate.values import Tensor, Value, of_node
from nnc.lang.types import DTYPES, TensorType
from nnc.lang.units import Unit

_C = {"f32": "float", "f64": "double", "f16": "uint16_t", "bf16": "uint16_t", "i8": "int8_t"}
_C |= {"u8": "uint8_t", "i32": "int32_t", "i64": "int64_t", "bool": "bool"}
_OURS = ("nn_", "nnrt_", "llvm.")


def check_extern(cx: Context, unit: Unit, d: ast.ExternDef) -> None:
    """The types that C can have, one declaration of each symbol, sizes that the arguments give."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", d.symbol) or d.symbol.startswith(_OURS):
        raise fail("E0815", f"`{d.symbol}` cannot be the name of a C function here", d.span)
    for p in d.params:
        _check_param(p)
    assert d.returns is not None
    if not _is_tensor(d.returns):
        text = f"`{d.name}` returns one tensor or number"
        raise fail("E0815", text, d.returns.span, help="split it into one function for each result")
    _check_type(d.returns, by_value=_of_numbers(d))
    for other in unit.defs.values():
        if not isinstance(other, ast.ExternDef) or other.span.line >= d.span.line:
            continue
        if other.symbol == d.symbol and _kinds(other) != _kinds(d):
            label = Label(other.span, "declared here with other types")
            text = f"`{d.symbol}` is declared twice"
            raise fail("E0815", text, d.span, labels=(label,))


def _check_param(p: ast.Param) -> None:
    if p.inout:
        help = "return the new value, and write it where the function is called"
        raise fail("E0815", "an extern function does not write its arguments", p.span, help=help)
    if kind_of(p) == "dim":
        return
    if not _is_tensor(p.type):
        raise fail("E0815", "an extern function takes tensors, numbers and sizes", p.span)
    _check_type(p.type, by_value=not getattr(p.type, "dims", ()))


def _is_tensor(t: ast.TypeExpr | None) -> bool:
    return isinstance(t, ast.TensorTypeExpr) and t.name in DTYPES | {"real": None}


def _check_type(t: ast.TypeExpr | None, by_value: bool) -> None:
    assert isinstance(t, ast.TensorTypeExpr)
    if t.name == "real":
        text = "an extern function says which float type it takes"
        raise fail("E0815", text, t.span, help=f"`f32{t.span.text.removeprefix('real')}`")
    if by_value and t.name in ("f16", "bf16"):
        text = f"C has no {t.name} that could be passed by value"
        raise fail("E0815", text, t.span, help="take f32, or a tensor of one element")


def _of_numbers(d: ast.ExternDef) -> bool:
    """Whether it is `T symbol(T x, ...)`."""
    every = [*(p.type for p in d.params), d.returns]
    return bool(d.params) and all(_is_tensor(t) and not getattr(t, "dims", ()) for t in every)


def _kinds(d: ast.ExternDef) -> list[tuple[object, bool]]:
    every = [*(p.type for p in d.params), d.returns]
    return [(getattr(t, "name", None), bool(getattr(t, "dims", ()))) for t in every]


def prototype(d: ast.ExternDef, unit: Unit) -> str:
    """The declaration in C, names included."""
    assert isinstance(d.returns, ast.TensorTypeExpr)
    result = _C[d.returns.name]
    given = []
    for p in d.params:
        if isinstance(p.type, ast.TensorTypeExpr) and kind_of(p) == "tensor":
            kind = _C[p.type.name]
            given.append(f"const {kind} *{p.name}" if p.type.dims else f"{kind} {p.name}")
    if _of_numbers(d):
        return f"{result} {d.symbol}({', '.join(given)});"
    listed = ", ".join(_size_names(d, unit))
    sizes = f"const int64_t *sizes /* {listed} */" if listed else "const int64_t *sizes /* none */"
    return f"void {d.symbol}({', '.join([sizes, *given, f'{result} *result'])});"


def _size_names(d: ast.ExternDef, unit: Unit) -> Iterator[str]:
    """Names of sizes in order of their first appearance; a pack has dots."""
    seen = dict[str, None]()
    for p in d.params:
        if kind_of(p) == "dim":
            seen[p.name] = None
        elif p.type is not None:
            seen |= dict.fromkeys(_in_type(p.type))
    assert d.returns is not None
    seen |= dict.fromkeys(_in_type(d.returns))
    yield from (n for n in seen if unit.find(n) is None)


def _in_type(t: ast.TypeExpr) -> Iterator[str]:
    stack: list[object] = [t]
    while stack:
        node = stack.pop()
        match node:
            case ast.Rest(name=name):
                yield f"..{name}"
            case ast.Name(id=name):
                yield name
            case tuple():
                stack.extend(reversed(node))
            case ast.Syntax():
                parts = [getattr(node, f.name) for f in fields(node) if f.name != "span"]
                stack.extend(reversed(parts))


def call_extern(cx: Context, frame: Frame, d: ast.ExternDef, span: Span) -> Value:
    """The call, its arguments bound in `frame`."""
    given = [v for p in d.params if (v := frame.vars.get(p.name)) is not None]
    tensors = [t for v in given if isinstance(t := cx.tensor(v), Tensor)]
    if len(tensors) != len(given):
        raise Poisoned
    if _of_numbers(d) and cx.ranges:
        return _for_each(cx, frame, d, tensors, span)
    if any(name == "real" for name, _ in _kinds(d)):
        raise Poisoned  # reported at the declaration
    inputs = tuple(_whole(cx, d, t, span) for t in tensors)
    assert isinstance(d.returns, ast.TensorTypeExpr)
    with cx.in_frame(frame):
        shape = shape_of(cx, d.returns.dims or ())
    sizes = tuple(_size(frame, n) for n in _size_names(d, frame.unit))
    kind = TensorType(d.returns.name, shape)
    node = External(
        type=kind,
        span=cx.at(span),
        name=d.name,
        symbol=d.symbol,
        prototype=prototype(d, frame.unit),
        sizes=() if _of_numbers(d) else sizes,
        inputs=inputs,
        each=_of_numbers(d),
        regions=cx.regions,
    )
    return of_node(node)


def _size(frame: Frame, name: str) -> Dim:
    if name.startswith(".."):
        return dim_prod(frame.packs[name[2:]])
    return frame.dims[name]


def _whole(cx: Context, d: ast.ExternDef, t: Tensor, span: Span) -> Node:
    """An argument as a tensor in memory."""
    found = cx.materialized(t, span).node
    if found is None:
        raise _per_element(d, span)
    return found


def _per_element(d: ast.ExternDef, span: Span) -> Mistake:
    return fail(
        "E0815",
        f"`{d.name}` takes whole tensors, here its argument is different for each index",
        span,
        help=f"call it in a loop, `ys = for i in N:`, and below `yield {d.name}(x[i])`",
    )


def _for_each(
    cx: Context, frame: Frame, d: ast.ExternDef, given: list[Tensor], span: Span
) -> Value:
    """In index notation: for all values of the index names that the arguments use."""
    assert isinstance(d.returns, ast.TensorTypeExpr)
    bodies = [t.at(()) for t in given]
    outer = used_ranges(cx, bodies)
    inputs = tuple(over_ranges(cx, b, outer, span) for b in bodies)
    kind = TensorType(d.returns.name, tuple(a.extent for a in outer))
    node = External(
        type=kind,
        span=cx.at(span),
        name=d.name,
        symbol=d.symbol,
        prototype=prototype(d, frame.unit),
        sizes=(),
        inputs=inputs,
        each=True,
        regions=cx.regions,
    )
    return at_ranges(node, outer)
