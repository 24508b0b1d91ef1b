"""`grad` and `stop`."""

from __future__ import annotations

from nnc.diagnostics import Label, Span
from nnc.ir.dependence import active, depends, opaque
from nnc.ir.expr import Expr, Load, rewrite
from nnc.ir.graph import Grad, Loop, Node, Part, Stop, toposort
from nnc.lang import ast
from nnc.lang.elaborate.arguments import take
from nnc.lang.elaborate.arith import lift, module_tree, settle
from nnc.lang.elaborate.broadcasting import typed
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.element_gradients import Wanted, items_of
from nnc.lang.elaborate.mistakes import Mistake, Poisoned, fail
from nnc.lang.elaborate.values import (
    Function,
    Module,
    Operand,
    Stored,
    Tensor,
    Tree,
    Tuple,
    Unknown,
    Value,
    Weak,
    WeakTensor,
    of_node,
)
from nnc.lang.elaborate.words import describe
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
        node = Stop(type=t.type, span=cx.at(operand.span), source=t.node, regions=cx.regions)
        return of_node(node, t.letters, t.origins)
    if isinstance(t, Tensor):
        return _stopped_lazily(cx, t, operand.span)
    return t


def _stopped_lazily(cx: Context, t: Tensor, span: Span) -> Value:
    """Inside index notation: the reads themselves are cut."""

    def cut(x: Expr) -> Expr:
        if isinstance(x, Load) and is_float(x.dtype):
            source: Node = x.tensor  # type: ignore[assignment]
            stopped = Stop(type=source.type, span=span, source=source, regions=cx.regions)
            return Load(x.dtype, stopped, x.index, x.other, x.check)
        return x

    return Tensor(t.type, lambda i: rewrite(t.at(i), cut), None, t.letters, t.origins)


def grad(cx: Context, e: ast.Call) -> Value:
    """`grad(y, x)`: y a float scalar of this body, x a variable, module, or list of them."""
    missing = next((a.value for a in e.args if a.name == "missing"), None)
    zero = isinstance(missing, ast.Name) and missing.id == "zero"
    args = [a.value for a in e.args if a.name != "missing"]
    if len(args) != 2:
        texts = [a.span.text for a in args]
        help = f"`grad({texts[0] if texts else 'loss'}, net)`"
        if len(args) > 2:
            help = f"several stand in a list: `grad({texts[0]}, [{', '.join(texts[1:])}])`"
        what = "`grad` takes a scalar and what to differentiate by"
        raise fail("E0802", what, e.span, help=help)
    y_ast, x_ast = args
    value = cx.eval(y_ast)
    if isinstance(value, Function):
        called = ", ".join(p.name for p in value.defn.params)
        help = (
            f"call it first: `y = {y_ast.span.text}({called})`, then `grad(y, {x_ast.span.text})`"
        )
        raise fail("E0603", "a gradient is of a number, this is a function", y_ast.span, help=help)
    y = settle(cx, Operand(value, y_ast.span), "a scalar")
    if isinstance(y, Tree):
        help = f"`total({y_ast.span.text})` is the sum of its leaves"
        other = cx.tensor(cx.eval(x_ast)) if isinstance(x_ast, ast.Name) else None
        if isinstance(other, Tensor) and not other.shape:
            help = f"the number comes first: `grad({x_ast.span.text}, {y_ast.span.text})`"
        raise fail("E0603", "a gradient is of one number, this is a tree", y_ast.span, help=help)
    if not isinstance(y, Tensor):
        raise fail("E0601", "this does not depend on anything", y_ast.span, describe(y))
    if y.shape:
        raise fail(
            "E0603",
            "a gradient is of one number, this is a tensor",
            y_ast.span,
            typed(y, y_ast.span),
            help=f"`mean({y_ast.span.text})` or `total({y_ast.span.text})`",
            once=("not a scalar", y_ast.span.source.name, y_ast.span.text),
        )
    if not is_float(y.dtype):
        raise fail("E0604", f"{y.dtype} has no gradient", y_ast.span, str(y.type))
    if cx.ranges:
        found = [_grad_of_each(cx, y, i, e, zero) for i in items_of(x_ast)]
        return Tuple(tuple(found)) if isinstance(x_ast, ast.ListLit) else found[0]
    y = cx.materialized(y, y_ast.span)
    if isinstance(x_ast, ast.ListLit):
        return Tuple(tuple(_grad_one(cx, y, i, e, zero) for i in x_ast.items))
    return _grad_one(cx, y, x_ast, e, zero)


def _grad_of_each(cx: Context, y: Tensor, x: ast.Expr, e: ast.Call, zero: bool) -> Value:
    """In index notation; there `x[i]` may stand for a variable."""

    def checked(node: Node, wrt: list[Node]) -> None:
        if not zero and not any(depends(node, w) for w in wrt):
            raise _independent(cx, x, e, node)
        _bounded(node, wrt, e)
        _transparent(node, wrt, e)

    gradient = Wanted(cx, y, e.span, checked)
    base = cx.tensor(cx.eval(x.value)) if isinstance(x, ast.Index) else None
    if isinstance(x, ast.Index) and isinstance(base, Tensor) and is_float(base.dtype):
        if cx.generic:
            return cx.eval(x)
        found = gradient.by_part(x, base, lambda other: _again(cx, e.args[0].value, x, other))
        if found is not None:
            return found
    current = _by(cx, x)
    if cx.generic:
        return current
    if isinstance(current, Tensor):
        return gradient.by(current)
    leaves = {
        k: v for k, v in current.leaves.items() if isinstance(v, Tensor) and is_float(v.dtype)
    }
    return Tree(dict(zip(leaves, gradient.by_all([*leaves.values()]), strict=True)), current.of)


def _again(cx: Context, y: ast.Expr, x: ast.Index, other: Tensor) -> Tensor:
    """y once more, with another value of the variable x."""
    saved, counters, checks = dict(cx.frame.vars), dict(cx.counters), len(cx.checks)
    probes = dict(cx.probes)
    if isinstance(x.value, ast.Name):
        cx.frame.vars[x.value.id] = other
    value = settle(cx, Operand(cx.eval(y), y.span), "a scalar")
    assert isinstance(value, Tensor), value
    cx.frame.vars, cx.counters, cx.probes = saved, counters, probes
    del cx.checks[checks:]
    return value


def _named(e: ast.Expr) -> bool:
    """Whether an expression only names something: `x`, `net.fc`, `net.h[0]`."""
    while isinstance(e, ast.Attr | ast.Index):
        if isinstance(e, ast.Index) and not all(isinstance(i, ast.Num | ast.Name) for i in e.items):
            return False
        e = e.value
    return isinstance(e, ast.Name)


def _by(cx: Context, e: ast.Expr) -> Tree | Tensor:
    """What is differentiated by: a tree of params, or a float tensor."""
    x = cx.eval(e)
    current = module_tree(cx, x) if isinstance(x, Module) else cx.tensor(x)
    if isinstance(current, Unknown):
        raise Poisoned
    part = isinstance(e, ast.Index) and isinstance(current, Tensor)
    if isinstance(current, Tensor) and not is_float(current.dtype):
        text = typed(current, e.span)
        help = f"`z = {cx.frame.real}({e.span.text})`: a loss computed from z has one by z"
        raise fail("E0604", f"{current.dtype} has no gradient", e.span, text, help=help)
    if not _named(e) or part:
        help = "give the expression a name first, and use that name for the loss"
        if cx.ranges:
            help = _name_first(cx, e)
        if isinstance(e, ast.Tuple):
            help = f"several stand in a list: `[{', '.join(i.span.text for i in e.items)}]`"
        raise fail("E0605", "`grad` is by a variable", e.span, "an expression", help=help)
    if isinstance(x, Stored) and cx.store[x.key].kind == "state":
        raise fail("E0604", f"`{e.span.text}` is a state, which has no gradient", e.span)
    literal = isinstance(current, Weak) and isinstance(e, ast.Name) and e.id in cx.frame.vars
    if isinstance(current, WeakTensor) or literal:
        text = f"`{e.span.text}` has no dtype of its own, so nothing depends on it"
        help = f"give it one where it is defined: `{e.span.text} = f32(...)`"
        raise fail("E0604", text, e.span, describe(current), help=help)
    if not isinstance(current, Tree | Tensor):
        raise fail("E0604", f"{describe(current)} has no gradient", e.span)
    return current


def _name_first(cx: Context, e: ast.Expr) -> str:
    """In index notation: the statement that gives an expression a name."""
    name = next((n for n in "tuvwz" if cx.lookup(n) is None), "t")
    rows = [(n, b.vars[0]) for n, b in cx.frame.binders.items() if len(b.vars) == 1]
    left = ", ".join(f"{n}:{cx.ranges[v]}" for n, v in rows)
    read = ", ".join(n for n, _ in rows)
    return f"name it first, `{name}[{left}] = {e.span.text}`, and use `{name}[{read}]`"


def _grad_one(cx: Context, y: Tensor, x: ast.Expr, e: ast.Call, zero: bool) -> Value:
    assert y.node is not None
    current = _by(cx, x)
    if isinstance(current, Tree):
        if cx.generic:
            return current
        found = current.leaves
        keys = [k for k, v in found.items() if isinstance(v, Tensor) and is_float(v.dtype)]
        tensors = [v for k in keys if isinstance(v := found[k], Tensor)]
    else:
        keys, tensors = [""], [current]
    wrt = [cx.as_node(t, x.span) for t in tensors]
    if not cx.generic and not zero and not any(depends(y.node, w) for w in wrt):
        raise _independent(cx, x, e, y.node)
    _bounded(y.node, wrt, e)
    _transparent(y.node, wrt, e)
    span = cx.at(e.span)
    node = Grad(type=y.type, span=span, y=y.node, wrt=tuple(wrt), regions=cx.regions)
    parts = [
        of_node(Part(type=t.type, span=span, source=node, index=i), (), t.origins)
        for i, t in enumerate(tensors)
    ]
    if isinstance(current, Tree):
        return Tree(dict(zip(keys, parts, strict=True)), current.of)
    return parts[0]


def _bounded(y: Node, wrt: list[Node], e: ast.Call) -> None:
    """A loop whose number of turns has no bound keeps nothing to go back by."""
    for node in active([y], wrt):
        if isinstance(node, Part) and isinstance(node.source, Loop) and node.source.cond:
            label = Label(node.source.span, "this loop has no limit")
            text = "the gradient goes through a `while` without a limit"
            raise fail("E0606", text, e.span, labels=(label,), help="`while c limit N:` bounds it")


def _replaced(cx: Context, x: ast.Expr, y: Node) -> Span | None:
    """Where `=` gave the variable a new value, if y depends on an older one."""
    older = cx.frame.older.get(x.id, []) if isinstance(x, ast.Name) else []
    nodes = [v.node for v in older if isinstance(v, Tensor) and v.node is not None]
    return cx.frame.var_spans.get(x.span.text) if any(depends(y, n) for n in nodes) else None


def _transparent(y: Node, wrt: list[Node], e: ast.Call) -> None:
    """Every C function on the way has an adjoint."""
    for node in opaque(y, wrt)[:1]:
        label = Label(node.span, "no derivative is known of this")
        text = f"the gradient goes through the extern function `{node.name}`"
        help = (
            f"write its derivative: `adjoint {node.name}(...; y, dy): return ...`, or `stop(...)`"
        )
        raise fail("E0607", text, e.span, labels=(label,), help=help)


def _nodes(cx: Context, value: Value) -> list[Node]:
    """What a variable, a leaf or a module holds now."""
    match value:
        case Tensor(node=node) if node is not None:
            return [node]
        case Stored(key=key):
            return _nodes(cx, cx.store[key].now)
        case Module():
            leaves = module_tree(cx, value).leaves.values()
            return [n for leaf in leaves for n in _nodes(cx, leaf)]
    return []


def _independent(cx: Context, x: ast.Expr, e: ast.Call, y: Node) -> Mistake:
    loss, name, span = e.args[0].span.text, x.span.text, x.span
    value = cx.eval(x)
    path = value.path if isinstance(value, Module) else None
    path = value.key if isinstance(value, Stored) else path
    changed = next((s for k, s in cx.written_at.items() if path and k.startswith(path)), None)
    changed = changed or _replaced(cx, x, y)
    if changed is None:
        what = f"`{loss}` does not depend on `{name}`"
        help = f"`grad({loss}, {name}, missing=zero)` gives zeros"
        cut = any(n in toposort([y]) for n in _nodes(cx, value))
        note = (
            "it is made from it only through integers, comparisons or `stop`: these have no slope"
        )
        return fail("E0601", what, span, notes=(note,) if cut else (), help=help)
    computed = cx.frame.var_spans.get(loss)
    where = f" on {computed.line_in(span)}" if computed is not None else ""
    return fail(
        "E0601",
        f"`{loss}` does not depend on this `{name}`",
        span,
        f"the new {name}; {loss} was computed from the old one{where}",
        [Label(changed, f"{name} changes here")],
        help=f"compute `g = grad({loss}, {name})` before {changed.line_in(span)} and use it twice",
    )
