"""`adjoint f(inputs; outputs, doutputs)`: checked against the function that it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from nnc.diagnostics import Label, Span
from nnc.ir.graph import Custom, Input, Node, Part
from nnc.lang import ast
from nnc.lang.elaborate.arguments import near_help
from nnc.lang.elaborate.arith import adapt
from nnc.lang.elaborate.context import Context, Frame
from nnc.lang.elaborate.declared import kind_of, opaque_type
from nnc.lang.elaborate.lifting import Lifted, ranges_of_call
from nnc.lang.elaborate.mistakes import Mistake, Poisoned, fail
from nnc.lang.elaborate.signatures import symbolic_param, symbolic_where
from nnc.lang.elaborate.values import Module, Tensor, Tuple, Unknown, Value
from nnc.lang.elaborate.walks import syntax
from nnc.lang.elaborate.words import counted, describe
from nnc.lang.types import TensorType, is_float


def check_adjoint(cx: Context, d: ast.AdjointDef) -> None:
    """Names, numbers and types of an adjoint; its body is checked as a function's."""
    func = cx.frame.unit.defs.get(d.name)
    if not isinstance(func, ast.FuncDef):
        names = [n for n, f in cx.frame.unit.defs.items() if isinstance(f, ast.FuncDef)]
        text = f"there is no function `{d.name}` in this file"
        modules = [m for m in cx.frame.unit.defs.values() if isinstance(m, ast.ModuleDef)]
        methods = {m.name for defn in modules for m in defn.members if isinstance(m, ast.FuncDef)}
        help = near_help(d.name, names)
        if d.name in methods:
            help = "an adjoint belongs to a function of the file: move the method's body into one"
        raise fail("E0801", text, d.name_span, help=help)
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
    _warn_unread(cx, d)


def _warn_unread(cx: Context, d: ast.AdjointDef) -> None:
    """A gradient is linear in the derivative of each result: one that is not read is forgotten."""
    read = {n.id for n in syntax(d.body) if isinstance(n, ast.Name)}
    for name in d.outputs[len(d.outputs) // 2 :]:
        if name.id not in read and not name.id.startswith("_"):
            text = f"`{name.id}` is not used: the gradient is a multiple of it"
            cx.warn("W0002", text, name.span)


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
    help = None
    if isinstance(got, Tensor) and not got.shape:
        shown += " (a scalar)"
    elif isinstance(got, Tensor) and isinstance(p.type, ast.TensorTypeExpr) and not p.type.dims:
        help = f"`total({span.text})` is one number"
    declared = p.type.span.text if p.type is not None else ""
    place = p.type.span if p.type is not None else p.span
    label = Label(place, f"so its gradient must be {declared}")
    text = f"the adjoint of `{d.name}` returns the wrong type for `{p.name}`"
    return fail("E0602", text, span, shown, (label,), help=help)


def with_adjoint(
    cx: Context, frame: Frame, d: ast.AdjointDef, run: Callable[[], Value], span: Span
) -> Value:
    """A call (`run`, its arguments bound in `frame`) with the derivative that the adjoint gives.

    In index notation arguments and results are tensors over the index names that the arguments
    use, so that one derivative serves all elements.
    """
    outer = ranges_of_call(cx, _tensor_arguments(cx, frame), frame.dims)
    lifted = Lifted(cx, outer, span)
    inputs = _arguments(lifted, frame)
    given = dict(frame.vars)
    result = run()
    if isinstance(result, Unknown):
        return result
    parts = result.items if isinstance(result, Tuple) else (result,)
    tensors = [p for p in parts if isinstance(p, Tensor)]
    if len(tensors) != len(parts):
        text = f"an adjoint of `{d.name}`, whose results are not all tensors, is not compiled yet"
        raise fail("E0901", text, span)
    values = [lifted.node(t) for t in tensors]
    if not inputs or not any(is_float(v.type.dtype) for v in values):
        return result
    douts = [
        Input(type=v.type, span=d.span, name=n.id, kind="cotangent")
        for v, n in zip(values, d.outputs[len(values) :], strict=True)
    ]
    outputs = zip(d.outputs, (lifted.read(n) for n in (*values, *douts)), strict=True)
    grads = _gradients(cx, d, frame, given, {n.id: v for n, v in outputs}, inputs, lifted)
    pairs = list(zip(values, douts, strict=True))
    custom = Custom(
        type=values[0].type,
        span=cx.at(span),
        source=values[0],
        inputs=tuple(inputs),
        dout=douts[0],
        grads=tuple(grads),
        others=tuple(pairs[1:]),
        meant=d.meant or "",
        regions=cx.regions,
    )
    made = [lifted.result(_value(custom, i, cx.at(span)), t) for i, t in enumerate(tensors)]
    return Tuple(tuple(made)) if isinstance(result, Tuple) else made[0]


def _value(custom: Custom, index: int, span: Span) -> Node:
    """One of the values of a function with an adjoint."""
    if not custom.others:
        return custom
    value = custom.sources[index]
    return Part(type=value.type, span=span, source=custom, index=index, regions=custom.regions)


def _gradients(
    cx: Context,
    d: ast.AdjointDef,
    frame: Frame,
    given: Mapping[str, Value],
    outputs: Mapping[str, Value],
    inputs: list[Node],
    lifted: Lifted,
) -> list[Node]:
    """What the adjoint returns, one node of the type of each input."""
    func = frame.func
    assert func is not None
    inner = replace(frame, vars={}, result=None, returned=False)
    for p, n in zip(func.params, d.inputs, strict=True):
        if p.name in given:
            inner.vars[n.id] = given[p.name]
        if p.name in frame.dims:
            inner.dims = {**inner.dims, n.id: frame.dims[p.name]}
    inner.vars |= outputs
    saved, cx.conds = cx.conds, []  # the cotangent is zero where a branch is not taken
    try:
        with cx.in_frame(inner):
            cx.execute(d.body[:-1])
            last = d.body[-1]
            assert isinstance(last, ast.Return), last
            values = [cx.eval(v) for v in last.values]
            if len(values) == 1 and isinstance(values[0], Tuple):
                values = list(values[0].items)
            if len(values) != len(inputs):
                raise Poisoned  # reported where the adjoint is checked by itself
            pairs = zip(values, inputs, strict=True)
            return [_cotangent(cx, v, node, last.span, lifted) for v, node in pairs]
    finally:
        cx.conds = saved


def _cotangent(cx: Context, value: Value, of: Node, span: Span, lifted: Lifted) -> Node:
    """A returned gradient as a node of the input's type (numbers fill it)."""
    tensor = adapt(cx, value, of.type.dtype, span)
    if not isinstance(tensor, Tensor):
        raise Poisoned
    shape = of.type.shape[len(lifted.outer) :]
    if not tensor.shape and shape:
        one = tensor
        tensor = Tensor(TensorType(one.dtype, shape), lambda i: one.at(()))
    return lifted.node(tensor)


def _arguments(lifted: Lifted, frame: Frame) -> list[Node]:
    """The differentiable arguments as nodes; the frame reads them from there."""
    out: list[Node] = []
    for name, t in _tensor_arguments(lifted.cx, frame).items():
        if is_float(t.dtype):
            out.append(lifted.node(t))
            if lifted.outer:
                read = lifted.read(out[-1])
                frame.vars[name] = replace(read, origins=t.origins, place=t.place)
            elif t.node is None:
                frame.vars[name] = replace(t, node=out[-1])
    return out


def _tensor_arguments(cx: Context, frame: Frame) -> dict[str, Tensor]:
    assert frame.func is not None
    found = ((p.name, frame.vars.get(p.name)) for p in frame.func.params)
    values = ((n, cx.tensor(v)) for n, v in found if v is not None)
    return {n: t for n, t in values if isinstance(t, Tensor)}
