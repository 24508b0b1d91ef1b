"""Arithmetic and logical operators."""

from __future__ import annotations

from collections.abc import Callable

from nnc.diagnostics import Label, Span
from nnc.ir.expr import Expr, Op
from nnc.lang import ast
from nnc.lang.dims import Dim
from nnc.lang.elaborate.arith import adapt, element, elementwise, lift, settle
from nnc.lang.elaborate.broadcasting import (
    bare,
    broadcast,
    common_dtype,
    grouped,
    size_origin,
    typed,
)
from nnc.lang.elaborate.conditions import conjunction, disjunction
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.mistakes import Mistake, Poisoned, fail
from nnc.lang.elaborate.sizes import dim_op
from nnc.lang.elaborate.values import (
    UNKNOWN,
    Bool,
    ModuleList,
    Operand,
    Seq,
    Tensor,
    Tree,
    Unknown,
    Value,
    Weak,
    WeakTensor,
    integer,
    number,
    weak_op,
)
from nnc.lang.elaborate.words import describe
from nnc.lang.types import is_float

ARITHMETIC = {"+": "add", "-": "sub", "*": "mul", "/": "div", "//": "floordiv", "%": "mod"}


def binary_chain(cx: Context, e: ast.Binary) -> Value:
    """Left-deep chains may be long: operands from the left without recursion."""
    spine: list[ast.Binary] = []
    left: ast.Expr = e
    while isinstance(left, ast.Binary):
        spine.append(left)
        left = left.left
    value = cx.eval(left)
    for node in reversed(spine):
        value = _one_binary(cx, node, value)
    return value


def _one_binary(cx: Context, e: ast.Binary, left: Value) -> Value:
    try:
        if e.op in ("and", "or"):
            return logic(cx, e, left)
        right = cx.eval(e.right)
        return binary(cx, e.op, Operand(left, e.left.span), Operand(right, e.right.span), e.span)
    except Poisoned:
        return UNKNOWN


def binary(cx: Context, op: str, a: Operand, b: Operand, span: Span) -> Value:
    """An arithmetic operator on any operands."""
    lifted = lift(cx, lambda p, q: binary(cx, op, p, q, span), [a, b], span)
    if lifted is not None:
        return lifted
    x, y = cx.tensor(a.value), cx.tensor(b.value)
    match x, y:
        case Weak(), Weak():
            return weak_binary(cx, op, x, y, b.span)
        case (Seq() | ModuleList(), Seq() | ModuleList()) if op == "+":
            return _concatenated(x, y)
        case (Unknown(), _) | (_, Unknown()):
            raise Poisoned
    if op == "@":
        return matmul(cx, a, b, span)
    if op == "**":
        return power(cx, a, b, span)
    return elementwise(cx, ARITHMETIC[op], [a, b], span)


def _concatenated(x: Value, y: Value) -> Value:
    if isinstance(x, ModuleList) and isinstance(y, ModuleList):
        if x.items is None or y.items is None:
            return ModuleList(None, None)
        return ModuleList((*x.items, *y.items), x.like or y.like)
    assert isinstance(x, Seq | ModuleList) and isinstance(y, Seq | ModuleList)
    if x.items is None or y.items is None:
        return Seq(None)
    return Seq((*x.items, *y.items))


def weak_binary(cx: Context, op: str, x: Weak, y: Weak, span: Span) -> Weak:
    """Arithmetic of literals and sizes, folded when known."""
    if op == "@":
        raise fail("E0307", "`@` needs tensors", span)
    both = x.kind == y.kind == "int"
    if both and x.dim is not None and y.dim is not None and op in ("+", "-", "*", "//", "%"):
        return integer(dim_op(cx, op, x.dim, y.dim, span))
    n = y.dim.const if both and op == "**" and y.dim is not None else None
    if n is not None and n >= 0 and x.dim is not None:
        return integer(_dim_power(x.dim, n, span))
    if both and op == "**" and (named := _power_of_parameters(cx, x, y)) is not None:
        return integer(named)
    if x.number is not None and y.number is not None:
        return number(_fold(op, float(x.number), float(y.number), span))
    if op == "**":
        fn = "powi" if y.kind == "int" else "pow"
        if fn == "powi":
            return Weak("float", lambda dt: Op(dt, "powi", (x.make(dt), y.make("i32"))))
        return weak_op("pow", x, y, kind="float")
    kind = "float" if op == "/" or "float" in (x.kind, y.kind) else "int"
    return weak_op(ARITHMETIC[op], x, y, kind=kind)


def _power_of_parameters(cx: Context, x: Weak, y: Weak) -> Dim | None:
    """`2**l` in the generic check: a size of its own, which is a number in each instance."""
    if not cx.generic or x.dim is None or y.dim is None or (x.dim.const or 0) < 1:
        return None
    if not y.dim.names or any(name[0] == "$" for name in y.dim.names):
        return None
    return Dim.of(f"{x.dim}**{y.dim}" if y.dim.name else f"{x.dim}**({y.dim})")


def _dim_power(a: Dim, n: int, span: Span) -> Dim:
    bits = n * max(a.const.bit_length(), 1) if a.const is not None else n * 256
    if bits > 4096:
        raise fail("E0202", "this power is too large", span)
    return Dim.of(a.const**n) if a.const is not None else a**n


def _fold(op: str, a: float, b: float, span: Span) -> float:
    table: dict[str, Callable[[float, float], float]] = {
        "+": lambda p, q: p + q,
        "-": lambda p, q: p - q,
        "*": lambda p, q: p * q,
        "/": lambda p, q: p / q,
        "//": lambda p, q: p // q,
        "%": lambda p, q: p % q,
        "**": lambda p, q: p**q,
    }
    try:
        out = table[op](a, b)
    except ZeroDivisionError:
        raise fail("E0203", "division by zero", span) from None
    except OverflowError:
        return float("inf")
    if isinstance(out, complex):
        raise fail("E0203", "a negative number to a fractional power", span)
    return float(out)


def power(cx: Context, a: Operand, b: Operand, span: Span) -> Value:
    """`x**k`: an integer k is the integer power (`0**0 = 1`), a real one is `pow`."""
    lifted = lift(cx, lambda p, q: power(cx, p, q, span), [a, b], span)
    if lifted is not None:
        return lifted
    exponent = cx.tensor(b.value)
    match exponent:
        case Weak(kind="int") as w:
            base = cx.tensor(a.value)
            negative = w.dim is not None and (w.dim.const or 0) < 0
            if negative and isinstance(base, Tensor) and not is_float(base.dtype):
                help = f"`{cx.frame.real}({bare(a.span.text)})**{b.span.text}`"
                text = "an integer has no negative power"
                raise fail("E0203", text, b.span, describe(base), help=help)
            return elementwise(
                cx, "powi", [a], span, lambda dt, row: Op(dt, "powi", (row[0], w.make("i32")))
            )
        case Tensor(dtype=dtype) if dtype in ("i32", "i64", "i8", "u8"):
            return _integer_power(cx, a, b, exponent, span)
    return elementwise(cx, "pow", [a, b], span)


def _integer_power(cx: Context, a: Operand, b: Operand, n: Tensor, span: Span) -> Value:
    base = settle(cx, a)
    if isinstance(base, Tree):
        raise Poisoned
    dtype = base.dtype if isinstance(base, Tensor) else common_dtype(cx, [a], [base], span)
    shape, origins = broadcast(cx, [a, b], [base, n], span, "pow")

    def body(i: tuple[Expr, ...]) -> Expr:
        k = element(n, n.dtype, shape, i)
        power_of = Op("i32", "cast", (k,)) if k.dtype != "i32" else k
        return Op(dtype, "powi", (element(base, dtype, shape, i), power_of))

    return cx.compute(shape, body, span, origins=origins)


def matmul(cx: Context, a: Operand, b: Operand, span: Span) -> Value:
    """`x @ w`: the last axis of x with the last but one of w; further axes of both are equal."""
    x, w = settle(cx, a, "a tensor"), settle(cx, b, "a tensor")
    for o, v in ((a, x), (b, w)):
        if not isinstance(v, Tensor | WeakTensor) or not v.shape:
            help = f"`{grouped(a.span.text)} * {grouped(b.span.text)}`"
            what = "`@` needs tensors with at least one axis"
            raise fail("E0307", what, o.span, describe(v), help=help)
    dtype = common_dtype(cx, [a, b], [x, w], span)
    x, w = adapt(cx, x, dtype, a.span), adapt(cx, w, dtype, b.span)
    assert isinstance(x, Tensor) and isinstance(w, Tensor)
    inner = 0 if len(w.shape) == 1 else len(w.shape) - 2
    batch = w.shape[:inner] if len(w.shape) > 2 else ()
    if x.shape[-1] != w.shape[inner]:
        raise _matmul_mistake(a, b, x, w, inner)
    if batch and x.shape[: len(x.shape) - 2] != batch:
        raise fail(
            "E0307",
            "the leading axes of `@` differ",
            b.span,
            typed(w, b.span),
            [Label(a.span, typed(x, b.span))],
        )
    head = x.shape[:-1]
    tail = () if len(w.shape) == 1 else w.shape[-1:]
    n = len(head)

    def body(i: tuple[Expr, ...], k: tuple[Expr, ...]) -> Expr:
        left = x.at((*i[:n], k[0]))
        right = w.at((*(i[: len(batch)] if batch else ()), k[0], *i[n:]))
        return Op(dtype, "mul", (left, right))

    origins = (
        *(x.origin(j) for j in range(n)),
        *([w.origin(len(w.shape) - 1)] if tail else []),
    )
    reduce = ("sum", (x.shape[-1],), body)
    return cx.compute((*head, *tail), lambda i: i[0], span, reduce=reduce, origins=origins)


def _matmul_mistake(a: Operand, b: Operand, x: Tensor, w: Tensor, inner: int) -> Mistake:
    def side(v: Tensor, axis: int) -> str:
        return f"{v.type}{size_origin(v, axis, b.span)}"

    left, right, help = grouped(a.span.text), grouped(b.span.text), None
    if len(w.shape) == 2 and x.shape[-1] == w.shape[1]:
        turned = right.removesuffix(".T") if right.endswith(".T") else f"{right}.T"
        help = f"`{left} @ {turned}`"
    elif len(x.shape) == 2 and x.shape[0] == w.shape[inner]:
        help = f"`{left}.T @ {right}`"
    elif len(w.shape) > 2 and len(x.shape) == len(w.shape) and x.shape[-1] == w.shape[-1]:
        free = [c for c in "bhijekmnuv" if c not in (a.span.text, b.span.text)]
        head, (i, j, k) = free[: len(w.shape) - 2], free[len(w.shape) - 2 :][:3]
        lead = ", ".join(head)
        product = f"{left}[{lead}, {i}, {k}] * {right}[{lead}, {j}, {k}]"
        help = f"index it: `y[{lead}, {i}, {j}] = sum[{k}]({product})`"
    return fail(
        "E0307",
        f"`@` sums over {x.shape[-1]} on the left and {w.shape[inner]} on the right",
        b.span,
        side(w, inner),
        [Label(a.span, side(x, len(x.shape) - 1))],
        help=help,
        whole=a.span.to(b.span),
    )


def unary(cx: Context, e: ast.Unary) -> Value:
    value = cx.tensor(cx.eval(e.operand))
    operand = Operand(value, e.operand.span)
    if e.op == "not":
        if isinstance(value, Bool):
            return Bool(None if value.value is None else not value.value, value.no, value.yes)
        return elementwise(cx, "not", [operand], e.span)
    if e.op == "+":
        return value
    if isinstance(value, Weak):
        if value.dim is not None:
            return integer(-value.dim)
        if value.number is not None:
            return number(-value.number)
        return weak_op("neg", value, kind=value.kind)
    return elementwise(cx, "neg", [operand], e.span)


def logic(cx: Context, e: ast.Binary, left: Value) -> Value:
    if isinstance(left, Bool) and left.value is not None and left.value == (e.op == "or"):
        return left
    right = cx.tensor(cx.eval(e.right))
    left = cx.tensor(left)
    match left, right:
        case Bool(value=None), Bool(value=b) if b != (e.op == "or"):
            return conjunction(left, right) if e.op == "and" else disjunction(left, right)
        case Bool(value=None), Bool() | Unknown():
            return Bool(None)
        case Bool(), Bool():
            return right
        case Bool(value=b), _ if b is not None:
            return right
        case _, Bool(value=b) if b is not None and isinstance(left, Tensor):
            return left if b == (e.op == "and") else right
    return elementwise(cx, e.op, [Operand(left, e.left.span), Operand(right, e.right.span)], e.span)
