"""`grad` and `stop`."""

from __future__ import annotations

from nnc.diagnostics import Label, Span
from nnc.ir.dependence import depends
from nnc.ir.expr import Expr, Load, rewrite
from nnc.ir.graph import Grad, Node, Part, Stop
from nnc.lang import ast
from nnc.lang.elaborate.arguments import take
from nnc.lang.elaborate.arith import lift, module_tree, settle
from nnc.lang.elaborate.context import Context, Poisoned, fail
from nnc.lang.elaborate.values import (
    Module,
    Operand,
    Seq,
    Tensor,
    Tree,
    Tuple,
    Unknown,
    Value,
    describe,
    of_node,
)
from nnc.lang.types import is_float


def stop(cx: Context, e: ast.Call) -> Value:
    (arg,) = take(e, "stop", ["x"])
    operand = Operand(cx.eval(arg), arg.span)
    if isinstance(operand.value, Tuple):
        return Tuple(tuple(_stopped(cx, Operand(v, arg.span)) for v in operand.value.items))
    return _stopped(cx, operand)


def _stopped(cx: Context, operand: Operand) -> Value:
    lifted = lift(cx, lambda o: _stopped(cx, o), [operand], operand.span)
    if lifted is not None:
        return lifted
    t = settle(cx, operand)
    if isinstance(t, Tensor) and t.node is not None:
        node = Stop(type=t.type, span=operand.span, source=t.node)
        return of_node(node, t.letters, t.origins)
    if isinstance(t, Tensor):
        return _stopped_lazily(cx, t, operand.span)
    return t


def _stopped_lazily(cx: Context, t: Tensor, span: Span) -> Value:
    """Inside index notation: the reads themselves are cut."""

    def cut(x: Expr) -> Expr:
        if isinstance(x, Load) and is_float(x.dtype):
            source: Node = x.tensor  # type: ignore[assignment]
            stopped = Stop(type=source.type, span=span, source=source)
            return Load(x.dtype, stopped, x.index, x.other, x.check)
        return x

    return Tensor(t.type, lambda i: rewrite(t.at(i), cut), None, t.letters, t.origins)


def grad(cx: Context, e: ast.Call) -> Value:
    """`grad(y, x)`: y a float scalar of this function body, x a variable, module, or list of them."""
    missing = next((a.value for a in e.args if a.name == "missing"), None)
    zero = isinstance(missing, ast.Name) and missing.id == "zero"
    args = [a.value for a in e.args if a.name != "missing"]
    if len(args) != 2:
        raise fail(
            "E0802",
            "`grad` takes a scalar and what to differentiate by",
            e.span,
            help="`grad(loss, net)`",
        )
    y_ast, x_ast = args
    y = settle(cx, Operand(cx.eval(y_ast), y_ast.span), "a scalar")
    if not isinstance(y, Tensor):
        raise fail("E0601", "this does not depend on anything", y_ast.span, describe(y))
    if y.shape:
        raise fail(
            "E0603",
            "the gradient of a tensor is not a gradient: a scalar is needed",
            y_ast.span,
            str(y.type),
            help=f"`total({y_ast.span.text})` or `mean(...)`",
        )
    if not is_float(y.dtype):
        raise fail("E0604", f"{y.dtype} has no gradient", y_ast.span, str(y.type))
    if y.node is None:
        raise fail("E0901", "`grad` inside index notation is not compiled yet", e.span)
    x = cx.eval(x_ast)
    if isinstance(x, Seq):
        spans = [i.span for i in x_ast.items] if isinstance(x_ast, ast.ListLit) else []
        items = x.items or ()
        return Tuple(
            tuple(
                _grad_one(cx, y, v, s, e, zero)
                for v, s in zip(items, spans or [x_ast.span] * len(items), strict=True)
            )
        )
    return _grad_one(cx, y, x, x_ast.span, e, zero)


def _grad_one(cx: Context, y: Tensor, x: Value, span: Span, e: ast.Call, zero: bool) -> Value:
    assert y.node is not None
    current = cx.tensor(x)
    if isinstance(current, Module):
        current = module_tree(cx, current)
    match current:
        case Tree(leaves=found):
            if cx.generic:
                return current
            keys = [k for k, v in found.items() if isinstance(v, Tensor) and is_float(v.dtype)]
            tensors = [v for k in keys if isinstance(v := found[k], Tensor)]
        case Tensor():
            if not is_float(current.dtype):
                raise fail("E0604", f"{current.dtype} has no gradient", span, str(current.type))
            keys, tensors = [""], [current]
        case Unknown():
            raise Poisoned
        case _:
            raise fail("E0604", f"{describe(current)} has no gradient", span)
    wrt: list[Node] = []
    for t in tensors:
        if t.node is None:
            raise fail(
                "E0605",
                "`grad` is by a variable",
                span,
                help="give the expression a name first, and use that name for the loss",
            )
        wrt.append(t.node)
    if not cx.generic and not zero and not any(depends(y.node, w) for w in wrt):
        raise _independent(cx, x, span, e)
    node = Grad(type=y.type, span=e.span, y=y.node, wrt=tuple(wrt))
    parts = [
        of_node(Part(type=t.type, span=e.span, source=node, index=i), (), t.origins)
        for i, t in enumerate(tensors)
    ]
    if isinstance(current, Tree):
        return Tree(dict(zip(keys, parts, strict=True)), current.of)
    return parts[0]


def _independent(cx: Context, x: Value, span: Span, e: ast.Call) -> Exception:
    loss, name = e.args[0].span.text, span.text
    changed = None
    if isinstance(x, Module):
        changed = next((s for k, s in cx.written_at.items() if k.startswith(x.path)), None)
    text, labels, help = "", [], None
    if changed is not None:
        labels = [Label(changed, f"{name} changes here")]
        text = f"the new {name}; {loss} was computed from the old one"
        help = f"compute `grad({loss}, {name})` before {changed.line_in(span)} and use it twice"
    else:
        help = "`missing=zero` gives zeros"
    return fail(
        "E0601", f"`{loss}` does not depend on this `{name}`", span, text, labels, help=help
    )
