"""`adjoint f(inputs; outputs, doutputs)`: checked against the function that it belongs to."""

from __future__ import annotations

from dataclasses import replace

from nnc.diagnostics import Label, Span
from nnc.ir.graph import Custom, Input, Node
from nnc.lang import ast
from nnc.lang.elaborate.arguments import near_help
from nnc.lang.elaborate.arith import adapt
from nnc.lang.elaborate.context import Context, Frame
from nnc.lang.elaborate.declared import kind_of, opaque_type
from nnc.lang.elaborate.mistakes import Mistake, Poisoned, fail
from nnc.lang.elaborate.signatures import symbolic_param, symbolic_where
from nnc.lang.elaborate.values import Module, Tensor, Tuple, Unknown, Value, of_node
from nnc.lang.elaborate.words import counted, describe
from nnc.lang.types import is_float


def check_adjoint(cx: Context, d: ast.AdjointDef) -> None:
    """Names, numbers and types of an adjoint; its body is checked as a function's."""
    func = cx.frame.unit.defs.get(d.name)
    if not isinstance(func, ast.FuncDef):
        names = [n for n, f in cx.frame.unit.defs.items() if isinstance(f, ast.FuncDef)]
        text = f"there is no function `{d.name}` in this file"
        raise fail("E0801", text, d.name_span, help=near_help(d.name, names))
    _check_names(func, d)
    frame = Frame(cx.frame.unit, None, None, train=None, real="real")
    with cx.in_frame(frame):
        for p, name in zip(func.params, d.inputs, strict=True):
            symbolic_param(cx, frame, p)
            _rename(frame, p.name, name.id)
        symbolic_where(cx, frame, func)
        assert func.returns is not None
        result = opaque_type(cx, func.returns, func.returns.span, d.name)
        parts = result.items if isinstance(result, Tuple) else (result,)
        for name, value in zip(d.outputs, (*parts, *parts), strict=True):
            frame.vars[name.id], frame.used = value, {*frame.used, name.id}
        wanted = [
            (p, frame.vars[n.id])
            for p, n in zip(func.params, d.inputs, strict=True)
            if kind_of(p) not in ("dim", "axis")
        ]
        cx.execute(d.body[:-1])
        _check_gradients(cx, d, wanted)


def _rename(frame: Frame, old: str, new: str) -> None:
    if old != new and old in frame.vars:
        frame.vars[new] = frame.vars.pop(old)
    frame.used.add(new)


def _check_names(func: ast.FuncDef, d: ast.AdjointDef) -> None:
    place = (Label(func.name_span, "declared here"),)
    n, want = len(d.inputs), len(func.params)
    if n != want:
        text = f"the adjoint names {counted(n, 'input')}, `{d.name}` takes {want}"
        help = f"`adjoint {d.name}({', '.join(p.name for p in func.params)}; ...)`"
        raise fail("E0602", text, d.name_span, labels=place, help=help)
    if func.returns is None:
        raise fail("E0602", f"`{d.name}` has no result to differentiate", d.name_span, labels=place)
    outs = len(func.returns.items) if isinstance(func.returns, ast.TupleTypeExpr) else 1
    if len(d.outputs) != 2 * outs:
        text = f"`{d.name}` has {counted(outs, 'result')}"
        names = "y, dy" if outs == 1 else "y1, y2, dy1, dy2"
        help = f"the results, then their derivatives: `; {names}`"
        raise fail("E0602", text, d.name_span, labels=place, help=help)


def _check_gradients(cx: Context, d: ast.AdjointDef, wanted: list[tuple[ast.Param, Value]]) -> None:
    """One value for each differentiable input, of the input's type."""
    last = d.body[-1]
    if not isinstance(last, ast.Return):
        raise fail("E0810", f"the adjoint of `{d.name}` ends without `return`", d.name_span)
    inputs = [(p, t) for p, v in wanted if (t := _differentiable(cx, v)) is not None]
    values = [cx.eval(v) for v in last.values]
    if len(values) == 1 and isinstance(values[0], Tuple):
        values = list(values[0].items)
    if len(values) != len(inputs):
        names = ", ".join(f"`{p.name}`" for p, _ in inputs)
        text = f"the adjoint of `{d.name}` returns {counted(len(values), 'value')}"
        raise fail("E0602", f"{text}, one is due for each of {names}", last.span)
    spans = [v.span for v in last.values]
    for i, ((p, want), value) in enumerate(zip(inputs, values, strict=True)):
        got = cx.tensor(value)
        if isinstance(got, Unknown) or (isinstance(got, Tensor) and got.type == want.type):
            continue
        if isinstance(got, Tensor) or want.shape:
            cx.report(_wrong(d, p, got, spans[min(i, len(spans) - 1)]))


def _differentiable(cx: Context, value: Value) -> Tensor | None:
    current = cx.tensor(value)
    if isinstance(current, Tensor) and is_float(current.dtype) and not isinstance(value, Module):
        return current
    return None


def _wrong(d: ast.AdjointDef, p: ast.Param, got: Value, span: Span) -> Mistake:
    shown = describe(got)
    if isinstance(got, Tensor) and not got.shape:
        shown += " (a scalar)"
    declared = p.type.span.text if p.type is not None else ""
    label = Label(p.span, f"so its gradient must be {declared}")
    text = f"the adjoint of `{d.name}` returns the wrong type for `{p.name}`"
    return fail("E0602", text, span, shown, (label,))


def with_adjoint(cx: Context, frame: Frame, d: ast.AdjointDef, result: Value, span: Span) -> Value:
    """The result of a call with the derivative that the adjoint gives. `frame`: of the call."""
    func = frame.func
    assert func is not None
    if isinstance(result, Unknown):
        return result
    if not isinstance(result, Tensor) or cx.ranges:
        what = "of several results" if isinstance(result, Tuple) else "inside index notation"
        raise fail("E0901", f"an adjoint {what} is not compiled yet", span)
    value = cx.materialized(result, span)
    assert value.node is not None
    dout = Input(type=value.type, span=d.span, name=d.outputs[1].id, kind="cotangent")
    inner = replace(frame, vars=dict(frame.vars), result=None, returned=False)
    given = {n.id: frame.vars.get(p.name) for p, n in zip(func.params, d.inputs, strict=True)}
    inner.vars = {n: v for n, v in given.items() if v is not None}
    inner.vars |= {d.outputs[0].id: value, d.outputs[1].id: of_node(dout)}
    inputs: list[Node] = []
    for v in given.values():
        t = None if v is None else _differentiable(cx, v)
        if t is not None:
            node = cx.materialized(t, span).node
            assert node is not None
            inputs.append(node)
    grads: list[Node] = []
    probed = len(cx.probes)
    with cx.in_frame(inner):
        cx.execute(d.body[:-1])
        last = d.body[-1]
        assert isinstance(last, ast.Return), last
        values = [cx.eval(v) for v in last.values]
        if len(values) == 1 and isinstance(values[0], Tuple):
            values = list(values[0].items)
        for v, node in zip(values, inputs, strict=True):
            grads.append(_cotangent(cx, v, node, last.span))
    if len(cx.probes) > probed:
        raise fail("E0901", "`probe` in an adjoint is not compiled yet", d.name_span)
    custom = Custom(
        type=value.type,
        span=cx.at(span),
        source=value.node,
        inputs=tuple(inputs),
        dout=dout,
        grads=tuple(grads),
        regions=cx.regions,
    )
    return replace(of_node(custom), letters=result.letters, origins=result.origins)


def _cotangent(cx: Context, value: Value, of: Node, span: Span) -> Node:
    """A returned gradient as a node of the input's type (numbers fill it)."""
    tensor = adapt(cx, value, of.type.dtype, span)
    if not isinstance(tensor, Tensor):
        raise Poisoned
    if not tensor.shape and of.type.shape:
        one = tensor
        tensor = cx.compute(of.type.shape, lambda i: one.at(()), span)
    node = cx.materialized(tensor, span).node
    assert node is not None
    return node
