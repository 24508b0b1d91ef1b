"""Sizes that a function takes from the modules it is given: `net: Linear(D, D)`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nnc.diagnostics import Span
from nnc.lang import ast
from nnc.lang.dims import Dim
from nnc.lang.elaborate.binding import Binding
from nnc.lang.elaborate.context import Context, Frame
from nnc.lang.elaborate.mismatches import declared
from nnc.lang.elaborate.mistakes import fail
from nnc.lang.elaborate.shape_matching import solve_size
from nnc.lang.elaborate.sizes import quantified
from nnc.lang.elaborate.values import Instance, Origin, Weak
from nnc.lang.elaborate.walks import syntax


def declare_sizes(cx: Context, frame: Frame, p: ast.Param) -> None:
    """Names in a module's type that nothing else gives are sizes, when a function is elaborated by
    itself."""
    for e in _arguments(p):
        for name in _open(cx, frame, e):
            frame.dims[name] = Dim.of(name)
            frame.dim_spans[name] = Origin(f"a size of {p.name}", e.span)
            frame.used.add(name)


def match_sizes(b: Binding, p: ast.Param, inst: Instance, span: Span) -> None:
    """Solves them from the module that is given; E0301 where it has others than are known."""
    for e, size in _sizes(p, inst):
        names = _open(b.cx, b.frame, e)
        if len(names) > 1:
            b.pending.append((size, e, span, p))
        elif names:
            solve_size(b, names[0], e, size, span)
            b.frame.dim_spans.setdefault(names[0], Origin(f"a size of {span.text}", span))
        else:
            _same(b, p, e, size, inst, span)


def module_names(p: ast.Param) -> set[str]:
    """The names in a module's type."""
    nodes = (n for e in _arguments(p) for n in syntax(e))
    return {n.id for n in nodes if isinstance(n, ast.Name)}


def is_open(b: Binding, p: ast.Param) -> bool:
    """Whether later arguments are still to say a size of the type."""
    return any(_open(b.cx, b.frame, e) for e in _arguments(p))


def _same(b: Binding, p: ast.Param, e: ast.Expr, size: Dim, inst: Instance, span: Span) -> None:
    with b.cx.in_frame(b.frame):
        want = b.cx.eval_dim(e)
    if want == size or (want.const is not None and not b.cx.generic):
        return  # the types are compared as a whole
    origin = b.frame.dim_spans.get(e.id) if isinstance(e, ast.Name) else None
    known = f"{e.span.text} = {want}" if e.span.text != str(want) else str(want)
    shown = f"{known}, {origin.show(b.call.span)}" if origin is not None else known
    text = f"`{b.shown}` takes a module with {known} here, this has {size}"
    raise fail("E0301", text, span, inst.id, (declared(p, shown),), sizes=((size, want),))


def _open(cx: Context, frame: Frame, e: ast.Expr) -> list[str]:
    """Capitalised names that have no meaning yet."""
    if isinstance(e, ast.Attr | ast.Str):
        return []
    with cx.in_frame(frame):
        return [n for n in quantified(cx, frame, e) if n[0].isupper() and cx.lookup(n) is None]


def _applied(p: ast.Param) -> Sequence[ast.Arg]:
    """The arguments of the module's type: of `M(..)`, also in `params(M(..))`."""
    if not isinstance(p.type, ast.AppliedTypeExpr):
        return ()
    args = p.type.args
    inner = args[0].value if p.type.name == "params" and len(args) == 1 else None
    if p.type.name == "params":
        return inner.args if isinstance(inner, ast.Call) else ()
    return args


def _arguments(p: ast.Param) -> Iterator[ast.Expr]:
    stack = list(reversed(_applied(p)))
    while stack:
        value = stack.pop().value
        if isinstance(value, ast.Call) and not _is_size(value):
            stack.extend(reversed(value.args))
        else:
            yield value


def _sizes(p: ast.Param, inst: Instance) -> Iterator[tuple[ast.Expr, Dim]]:
    """The arguments with the sizes that the module has there."""
    stack = [(list(_applied(p)), inst)]
    while stack:
        args, module = stack.pop()
        names = [q.name for q in module.defn.params]
        for i, arg in enumerate(args):
            name = arg.name or (names[i] if i < len(names) else "")
            value = module.args.get(name)
            if isinstance(value, Weak) and value.dim is not None:
                yield arg.value, value.dim
            elif isinstance(arg.value, ast.Call) and name in module.trees:
                stack.append((list(arg.value.args), module.trees[name]))


def _is_size(e: ast.Call) -> bool:
    return isinstance(e.func, ast.Name) and e.func.id in ("min", "max")
