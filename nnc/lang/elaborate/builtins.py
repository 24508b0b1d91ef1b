"""The prelude: scalar functions, reductions, tree functions, `grad`, `stop`, casts, random numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from nnc.diagnostics import Label, Span
from nnc.ir.dependence import depends
from nnc.ir.expr import Const, Expr, Idx, Load, Op, Select, rewrite
from nnc.ir.graph import Grad, Input, Node, Part, Stop
from nnc.ir.scalar import SCALARS
from nnc.lang import ast
from nnc.lang.dims import ONE, ZERO, Dim, apply, dim_prod, dim_sum
from nnc.lang.elaborate import index as indexing
from nnc.lang.elaborate.arith import (
    Operand,
    adapt,
    broadcast,
    common_dtype,
    convert,
    element,
    elementwise,
    lift,
    module_tree,
    settle,
)
from nnc.lang.elaborate.context import Context, Poisoned, fail
from nnc.lang.elaborate.values import (
    AxisRef,
    Bool,
    Fill,
    Module,
    Pack,
    Seq,
    Tensor,
    Tree,
    Tuple,
    Unknown,
    Value,
    Weak,
    describe,
    integer,
    number,
    of_node,
    weak_op,
)
from nnc.lang.types import DTYPES, TensorType, is_float
from nnc.lang.units import nearest


@dataclass(frozen=True)
class Given:
    """A call argument as written."""

    name: str | None
    value: ast.Expr
    span: Span
    name_span: Span | None


RANDOM = ("uniform", "normal", "bernoulli", "categorical")
CASTS = tuple(d for d in DTYPES)
SHAPES = ("zeros", "ones", "empty", "zeros_like")
TREES = ("total", "norm", "finite", "rank", "size")
OTHERS = ("where", "concat", "grad", "stop", "cast", "recompute", "softmax")
SCALAR_NAMES = tuple(n for n, s in SCALARS.items() if s.user)
NAMES = frozenset(
    (*SCALAR_NAMES, *indexing.NAMES, *RANDOM, *CASTS, *SHAPES, *TREES, *OTHERS, "isnan")
) - {"softmax"}


def call(cx: Context, name: str, e: ast.Call) -> Value:
    """A built-in applied."""
    if e.bang and name not in RANDOM:
        raise fail(
            "E0504",
            f"`{name}` neither writes state nor draws random numbers",
            e.func.span,
            help=f"`{name}(...)` without `!`",
        )
    if name in ("max", "min") and sum(a.name is None for a in e.args) == 2:
        return _scalar(cx, name, e)
    if name in indexing.NAMES:
        return _reduction(cx, name, e)
    if name in SCALAR_NAMES:
        return _scalar(cx, name, e)
    if name in CASTS:
        (arg,) = _args(e, name, ["x"])
        dtype = cx.frame.real if name == "real" else name
        return convert(cx, Operand(cx.eval(arg), arg.span), dtype, e.span)
    table: dict[str, Callable[[Context, ast.Call], Value]] = {
        "where": _where,
        "concat": _concat,
        "grad": _grad,
        "stop": _stop,
        "total": _total,
        "norm": _norm,
        "finite": _finite,
        "rank": _rank,
        "size": _size,
        "zeros_like": _zeros_like,
    }
    if name in table:
        return table[name](cx, e)
    if name in ("uniform", "normal"):
        return _random(cx, name, e)
    if name in ("zeros", "ones", "empty"):
        raise fail(
            "E0802",
            f"`{name}` takes its sizes in brackets",
            e.span,
            help=f"`{name}[{', '.join(a.span.text for a in e.args)}]`",
        )
    raise fail("E0901", f"`{name}` is not compiled yet", e.func.span)


def _args(e: ast.Call, name: str, names: Sequence[str], optional: int = 0) -> list[ast.Expr]:
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


# ---- scalar functions and reductions ----------------------------------------------------------------


def _scalar(cx: Context, name: str, e: ast.Call) -> Value:
    entry = SCALARS[name]
    for a in e.args:
        if a.name is not None:
            raise fail("E0802", f"`{name}` has no argument `{a.name}`", a.span)
    if len(e.args) != entry.arity:
        plural = "s" if entry.arity != 1 else ""
        raise fail("E0802", f"`{name}` takes {entry.arity} number{plural}", e.span)
    operands = [Operand(cx.eval(a.value), a.value.span) for a in e.args]
    if all(isinstance(o.value, Weak) for o in operands):
        return _weak_scalar(name, [o.value for o in operands if isinstance(o.value, Weak)])
    return elementwise(cx, name, operands, e.span)


def _weak_scalar(name: str, args: list[Weak]) -> Weak:
    known = [a.number for a in args]
    kind = (
        "float" if SCALARS[name].rule == "float" or any(a.kind == "float" for a in args) else "int"
    )
    dims = [a.dim for a in args]
    if name in ("min", "max") and all(d is not None for d in dims):
        return integer(apply(name, *[d for d in dims if d is not None]))
    if all(n is not None for n in known):
        with np.errstate(all="ignore"):
            result = float(SCALARS[name].numpy(*[np.float64(n) for n in known if n is not None]))
        if kind == "int":
            return integer(int(result))
        return number(result)
    return weak_op(name, *args, kind=kind)


def _reduction(cx: Context, name: str, e: ast.Call) -> Value:
    args = _args(e, name, ["x", "over", "keep"], 2)
    named = {a.name: a.value for a in e.args if a.name}
    x = cx.tensor(cx.eval(args[0]))
    over = named.get("over") or (args[1] if len(args) > 1 and "keep" not in named else None)
    if len(args) == 3:
        over = args[1]
    keep_ast = named.get("keep") or (args[2] if len(args) == 3 else None)
    keep = cx.eval(keep_ast) if keep_ast is not None else Bool(False)
    if isinstance(x, Module):
        x = module_tree(cx, x)
    if isinstance(x, Tree):
        raise fail(
            "E0203",
            f"`{name}` reduces one tensor, this is a tree",
            args[0].span,
            help="`total(t)`, `norm(t)` and `finite(t)` reduce all leaves",
        )
    tensor = settle(cx, Operand(x, args[0].span), "a tensor")
    if isinstance(tensor, Weak | Fill):
        tensor = _as_tensor(cx, tensor, args[0].span)
    if not isinstance(tensor, Tensor) or not isinstance(keep, Bool):
        raise Poisoned
    axes = None if over is None else resolve_axes(cx, tensor, over)
    operand = Operand(tensor, args[0].span)
    return indexing.reduce_whole(cx, name, operand, axes, bool(keep.value), e.span)


def _as_tensor(cx: Context, v: Weak | Fill, span: Span) -> Tensor:
    out = adapt(cx, v, cx.frame.real, span)
    assert isinstance(out, Tensor)
    return out


def resolve_axes(cx: Context, x: Tensor, e: ast.Expr) -> list[int]:
    """`over=`: one axis or a tuple of them."""
    items = e.items if isinstance(e, ast.Tuple | ast.ListLit) else (e,)
    found = [resolve_axis(cx, x, i) for i in items]
    out = [a for a in found if a is not None]
    if len(out) != len(found):
        raise Poisoned
    if len(set(out)) != len(out):
        raise fail("E0305", "`over` names one axis twice", e.span)
    return out


def resolve_axis(cx: Context, x: Tensor, e: ast.Expr) -> int | None:
    """An axis argument: an index name of the variable, a size that occurs once, or a number."""
    rank = len(x.shape)
    if isinstance(e, ast.Name) and e.id in x.letters:
        return x.letters.index(e.id)
    negative = isinstance(e, ast.Unary) and e.op == "-"
    if isinstance(e, ast.Name) and cx.lookup(e.id) is None:
        raise _no_axis(x, e)
    value = cx.eval(e)
    match value:
        case AxisRef(axis=None) | Unknown():
            return None
        case AxisRef(axis=axis) if axis is not None:
            return axis
        case Weak(number=n) if n is not None and not isinstance(e, ast.Name):
            axis = int(n) + (rank if negative else 0)
            if 0 <= axis < rank:
                return axis
            raise fail("E0306", f"there is no axis {int(n)}", e.span, f"{x.type} has {rank}")
        case Weak(dim=dim) if dim is not None:
            hits = [i for i, d in enumerate(x.shape) if d == dim]
            if len(hits) == 1:
                return hits[0]
            if hits:
                raise _which(x, e, hits)
        case Pack(dims=(one,)):
            hits = [i for i, d in enumerate(x.shape) if d == one]
            if len(hits) == 1:
                return hits[0]
    raise _no_axis(x, e)


def _no_axis(x: Tensor, e: ast.Expr) -> Exception:
    names = [s for s in x.letters if s]
    help = f"it has the index names {' '.join(names)}" if names else "say the axis by its number"
    return fail(
        "E0306", f"no axis of this tensor is `{e.span.text}`", e.span, str(x.type), help=help
    )


def _which(x: Tensor, e: ast.Expr, hits: Sequence[int]) -> Exception:
    names = [x.letters[i] for i in hits if i < len(x.letters) and x.letters[i]]
    if len(names) == len(hits):
        says = " or ".join(f"`over={n}`" for n in names)
        help = f"its axes have index names: say {says}"
    else:
        help = "say which by number: " + " or ".join(f"`over={i}`" for i in hits)
    return fail(
        "E0305", f"`over={e.span.text}` could mean {len(hits)} axes", e.span, str(x.type), help=help
    )


# ---- whole-tensor functions -------------------------------------------------------------------------


def _where(cx: Context, e: ast.Call) -> Value:
    c, a, b = _args(e, "where", ["cond", "a", "b"])
    cond = cx.tensor(cx.eval(c))
    x, y = Operand(cx.eval(a), a.span), Operand(cx.eval(b), b.span)
    if isinstance(cond, Bool):
        if cond.value is None:
            raise Poisoned
        return x.value if cond.value else y.value
    test = Operand(cond, c.span)

    def one(t: Operand, p: Operand, q: Operand) -> Value:
        mask = settle(cx, t)
        if not isinstance(mask, Tensor) or mask.dtype != "bool":
            raise fail("E0203", "`where` needs a bool condition", c.span, describe(mask))
        left, right = settle(cx, p), settle(cx, q)
        dtype = common_dtype(cx, [p, q], [left, right], e.span, "where")
        shape, origins = broadcast(cx, [t, p, q], [mask, left, right], e.span, "where")

        def body(i: tuple[Expr, ...]) -> Expr:
            m = element(mask, "bool", shape, i)
            return Select(dtype, m, element(left, dtype, shape, i), element(right, dtype, shape, i))

        return cx.compute(shape, body, e.span, origins=origins)

    lifted = lift(cx, one, [test, x, y], e.span)
    return lifted if lifted is not None else one(test, x, y)


def _concat(cx: Context, e: ast.Call) -> Value:
    over = next((a.value for a in e.args if a.name == "over"), None)
    parts = [a for a in e.args if a.name is None]
    if over is None or len(parts) < 2:
        raise fail("E0802", "`concat` takes two or more tensors and `over=`", e.span)
    operands = [Operand(settle(cx, Operand(cx.eval(a.value), a.span)), a.span) for a in parts]
    dtype = common_dtype(cx, operands, [o.value for o in operands], e.span, "concat")
    tensors: list[Tensor] = []
    for o in operands:
        t = adapt(cx, o.value, dtype, o.span)
        if not isinstance(t, Tensor):
            raise fail("E0203", "`concat` joins tensors", o.span, describe(t))
        tensors.append(t)
    axis = resolve_axis(cx, tensors[0], over)
    if axis is None:
        raise Poisoned
    first = tensors[0]
    for t, o in zip(tensors[1:], operands[1:], strict=True):
        rest = [d for i, d in enumerate(t.shape) if i != axis]
        if rest != [d for i, d in enumerate(first.shape) if i != axis]:
            raise fail(
                "E0302",
                "these shapes cannot be joined",
                o.span,
                str(t.type),
                [Label(operands[0].span, str(first.type))],
            )
    total = dim_sum(t.shape[axis] for t in tensors)
    shape = (*first.shape[:axis], total, *first.shape[axis + 1 :])

    def body(i: tuple[Expr, ...]) -> Expr:
        at = i[axis]
        assert isinstance(at, Idx)
        end = total - tensors[-1].shape[axis]
        out = _shift(tensors[-1], i, axis, end)
        for t in reversed(tensors[:-1]):
            before = end - t.shape[axis]
            out = Select(dtype, Op("bool", "lt", (at, Idx(end))), _shift(t, i, axis, before), out)
            end = before
        return out

    return cx.compute(shape, body, e.span)


def _shift(t: Tensor, i: tuple[Expr, ...], axis: int, start: Dim) -> Expr:
    at = i[axis]
    assert isinstance(at, Idx)
    return t.at((*i[:axis], Idx(at.dim - start), *i[axis + 1 :]))


def _zeros_like(cx: Context, e: ast.Call) -> Value:
    (arg,) = _args(e, "zeros_like", ["x"])
    operand = Operand(cx.eval(arg), arg.span)

    def one(o: Operand) -> Value:
        t = settle(cx, o)
        if isinstance(t, Tensor):
            zero = Const(t.dtype, False if t.dtype == "bool" else 0)
            return cx.compute(t.shape, lambda i: zero, e.span)
        return number(0)

    lifted = lift(cx, one, [operand], e.span)
    return lifted if lifted is not None else one(operand)


# ---- trees ------------------------------------------------------------------------------------------


def _leaves(cx: Context, e: ast.Call, name: str) -> list[Tensor]:
    (arg,) = _args(e, name, ["t"])
    value = settle(cx, Operand(cx.eval(arg), arg.span), "a tree")
    items = list(value.leaves.values()) if isinstance(value, Tree) else [value]
    out: list[Tensor] = []
    for item in items:
        t = settle(cx, Operand(item, arg.span))
        if isinstance(t, Weak | Fill):
            t = _as_tensor(cx, t, arg.span)
        if isinstance(t, Tensor):
            out.append(t)
    if not out:
        raise Poisoned
    return out


def _fold(cx: Context, fn: str, parts: Sequence[Value], span: Span) -> Value:
    out = parts[0]
    for p in parts[1:]:
        out = elementwise(cx, fn, [Operand(out, span), Operand(p, span)], span)
    return out


def _total(cx: Context, e: ast.Call) -> Value:
    """Sum of all elements of all leaves."""
    sums = [_sum(cx, t, e.span) for t in _leaves(cx, e, "total")]
    return _fold(cx, "add", sums, e.span)


def _sum(cx: Context, t: Tensor, span: Span) -> Value:
    return indexing.reduce_whole(cx, "sum", Operand(t, span), None, False, span)


def _norm(cx: Context, e: ast.Call) -> Value:
    """Square root of the sum of squares over all leaves."""
    squares: list[Value] = []
    for t in _leaves(cx, e, "norm"):
        o = Operand(t, e.span)
        squares.append(_sum_of(cx, elementwise(cx, "mul", [o, o], e.span), e.span))
    total = _fold(cx, "add", squares, e.span)
    return elementwise(cx, "sqrt", [Operand(total, e.span)], e.span)


def _sum_of(cx: Context, value: Value, span: Span) -> Value:
    assert isinstance(value, Tensor)
    return _sum(cx, value, span)


def _finite(cx: Context, e: ast.Call) -> Value:
    """Whether every element of every leaf is finite."""
    flags: list[Value] = []
    for t in _leaves(cx, e, "finite"):
        ok = elementwise(cx, "isfinite", [Operand(t, e.span)], e.span)
        flags.append(indexing.reduce_whole(cx, "all", Operand(ok, e.span), None, False, e.span))
    return _fold(cx, "and", flags, e.span)


def _rank(cx: Context, e: ast.Call) -> Value:
    (arg,) = _args(e, "rank", ["t"])
    value = settle(cx, Operand(cx.eval(arg), arg.span))

    def one(o: Operand) -> Value:
        t = settle(cx, o)
        if (
            cx.generic
            and isinstance(t, Tensor)
            and any(n.startswith("..") for d in t.shape for n in d.names)
        ):
            return integer(Dim.of("rank"))
        return integer(len(t.shape) if isinstance(t, Tensor | Fill) else 0)

    lifted = lift(cx, one, [Operand(value, arg.span)], e.span)
    return lifted if lifted is not None else one(Operand(value, arg.span))


def _size(cx: Context, e: ast.Call) -> Value:
    (arg,) = _args(e, "size", ["t"])
    raw = cx.eval(arg)
    if isinstance(raw, Pack):
        return integer(dim_prod(raw.dims))
    value = settle(cx, Operand(raw, arg.span))

    def one(o: Operand) -> Value:
        t = settle(cx, o)
        return integer(dim_prod(t.shape) if isinstance(t, Tensor | Fill) else ONE)

    lifted = lift(cx, one, [Operand(value, arg.span)], e.span)
    return lifted if lifted is not None else one(Operand(value, arg.span))


# ---- gradients ----------------------------------------------------------------------------------------


def _stop(cx: Context, e: ast.Call) -> Value:
    (arg,) = _args(e, "stop", ["x"])
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


def _grad(cx: Context, e: ast.Call) -> Value:
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


# ---- random numbers -------------------------------------------------------------------------------------


def _random(cx: Context, name: str, e: ast.Call) -> Value:
    """`uniform!([B, T])`, `normal!([B, T])`: numbers that are a function of seed, call path, step, element."""
    frame = cx.frame
    if not e.bang and frame.train is False:
        raise fail(
            "E0502",
            f"`{name}` draws random numbers: the call needs `!`",
            e.func.span,
            help=f"`{name}!(...)`",
        )
    if not (frame.train or frame.exported or frame.train is None or frame.initializing):
        raise fail(
            "E0502",
            "random numbers in a function that was called without `!`",
            e.func.span,
            help="call the function with `!`",
        )
    (arg,) = _args(e, name, ["shape"])
    shape = _shape_list(cx, arg)
    seed, step = _rng(cx)
    stem = f"{frame.path}/{name}"
    n = cx.counters.get(stem, 0)
    cx.counters[stem] = n + 1
    stream = int.from_bytes(
        blake2b(f"{stem}#{n}".encode(), digest_size=8).digest(), "little", signed=True
    )
    real = frame.real
    if cx.ranges:
        raise fail(
            "E0901",
            "random numbers inside index notation are not compiled yet",
            e.span,
            help="draw them before, as a tensor",
        )

    def body(i: tuple[Expr, ...]) -> Expr:
        flat = ZERO
        for x, d in zip(i, shape, strict=True):
            assert isinstance(x, Idx)
            flat = flat * d + x.dim
        args = (Load("i64", seed, ()), Const("i64", stream), Load("i64", step, ()), Idx(flat))
        return Op(real, f"random_{name}", args)

    return cx.compute(shape, body, e.span)


def _shape_list(cx: Context, arg: ast.Expr) -> tuple[Dim, ...]:
    if not isinstance(arg, ast.ListLit):
        raise fail("E0802", "the shape is a list", arg.span, help="`normal!([B, T])`")
    out: list[Dim] = []
    for item in arg.items:
        if isinstance(item, ast.Rest):
            if item.name not in cx.frame.packs:
                raise fail("E0801", f"`..{item.name}` is not defined", item.span)
            out.extend(cx.frame.packs[item.name])
        else:
            out.append(cx.eval_dim(item))
    return tuple(out)


def _rng(cx: Context) -> tuple[Input, Input]:
    if cx.rng is None:
        kind = TensorType("i64")
        cx.rng = (
            Input(type=kind, name="seed", kind="rng"),
            Input(type=kind, name="step", kind="rng"),
        )
    return cx.rng


__all__ = ["NAMES", "Given", "call", "resolve_axis"]
