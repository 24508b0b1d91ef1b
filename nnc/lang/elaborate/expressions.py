"""Expressions: names, operators, conditionals, members, indexing, sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from nnc.diagnostics import Label, Span
from nnc.ir.expr import Expr, Op, Select
from nnc.lang import ast
from nnc.lang.dims import Dim, apply, divides, exact_div
from nnc.lang.elaborate import index as indexing
from nnc.lang.elaborate.arith import (
    Operand,
    broadcast,
    common_dtype,
    element,
    elementwise,
    lift,
    settle,
)
from nnc.lang.elaborate.context import Context, Mistake, Poisoned, fail
from nnc.lang.elaborate.modules import member, member_names
from nnc.lang.elaborate.values import (
    UNKNOWN,
    Bool,
    Builtin,
    Fill,
    Function,
    Module,
    ModuleList,
    ModuleType,
    Nothing,
    Pack,
    Seq,
    Tensor,
    Text,
    Tree,
    Tuple,
    UnitRef,
    Unknown,
    Value,
    Weak,
    describe,
    integer,
    number,
    weak_op,
)
from nnc.lang.units import Unit, nearest

ARITHMETIC = {"+": "add", "-": "sub", "*": "mul", "/": "div", "//": "floordiv", "%": "mod"}
COMPARISONS = {"==": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}
NUMBERS = {"pi": 3.141592653589793, "inf": float("inf"), "nan": float("nan")}


# ---- names --------------------------------------------------------------------------------------


def lookup(cx: Context, name: str) -> Value | None:
    """What a name means here: index, variable, size, member, definition of the file, prelude."""
    frame = cx.frame
    if name in frame.binders:
        binder = frame.binders[name]
        return integer(Dim.of(binder.vars[0])) if len(binder.vars) == 1 else None
    if name in frame.vars:
        frame.used.add(name)
        return frame.vars[name]
    if name in frame.dims:
        frame.used.add(name)
        return integer(frame.dims[name])
    if name in frame.packs:
        return Pack(frame.packs[name])
    if name == "train" and frame.func is not None:
        return Bool(frame.train)
    found = _in_module(cx, name)
    if found is not None:
        return found
    return _in_file(cx, frame.unit, name) or _constant(name) or cx.prelude(name)


def _in_module(cx: Context, name: str) -> Value | None:
    frame = cx.frame
    inst = frame.module
    if inst is None:
        return None
    if name in inst.args:
        return inst.args[name]
    owner = frame.owner or Module(inst, "")
    return member(cx, owner, name)


def _in_file(cx: Context, unit: Unit, name: str) -> Value | None:
    found = unit.find(name)
    if found is None:
        return UnitRef(unit.aliases[name]) if name in unit.aliases else None
    where, definition = found
    match definition:
        case ast.FuncDef():
            return Function(where, definition)
        case ast.ModuleDef():
            return ModuleType(where, definition)
        case ast.ConstDef():
            return cx.constant(where, definition)
    raise fail("E0901", "`extern` functions are not compiled yet", definition.span)


def _constant(name: str) -> Value | None:
    if name in NUMBERS:
        return number(NUMBERS[name])
    return None


def undefined(cx: Context, name: str, span: Span) -> Mistake:
    """An unknown name, with the nearest known one or the import line as help."""
    frame = cx.frame
    known = [*frame.binders, *frame.vars, *frame.dims, *frame.unit.names]
    if frame.module is not None:
        known += [*frame.module.args, *member_names(frame.module)]
    near = nearest(name, known) or nearest(name, cx.prelude_names)
    homes = cx.std_homes.get(name, [])
    help = None
    if len(homes) == 1:
        help = f"`from {homes[0]} import {name}`"
    elif name == "self":
        help = "there is no `self`: members are used by their bare names"
    elif near:
        help = f"did you mean `{near}`?"
    elif name in ("np", "numpy", "torch", "tf", "keras", "F", "jnp"):
        help = "the functions of .nn files need no library: `exp(x)`, `sum(x, over=1)`, ..."
    return fail("E0801", f"`{name}` is not defined", span, help=help)


# ---- evaluation ---------------------------------------------------------------------------------


def evaluate(cx: Context, e: ast.Expr) -> Value:
    """The value of an expression; Unknown operands give Unknown."""
    try:
        return _evaluate(cx, e)
    except Poisoned:
        return UNKNOWN


def _evaluate(cx: Context, e: ast.Expr) -> Value:
    match e:
        case ast.Name(id=name):
            value = lookup(cx, name)
            if value is None:
                raise undefined(cx, name, e.span)
            return value
        case ast.Num(value=v):
            return number(v)
        case ast.Bool(value=b):
            return Bool(b)
        case ast.Str(value=s):
            return Text(s)
        case ast.NoneLit():
            return Nothing()
        case ast.Binary():
            return _binary_chain(cx, e)
        case ast.Unary():
            return _unary(cx, e)
        case ast.Compare():
            return _compare(cx, e)
        case ast.IfExpr():
            return _conditional(cx, e)
        case ast.Call():
            return cx.call_expr(e)
        case ast.Index():
            return _index(cx, e)
        case ast.Attr():
            return attribute(cx, e)
        case ast.Tuple(items=items):
            if len(items) == 1:
                return cx.eval(items[0])
            return Tuple(tuple(cx.eval(i) for i in items))
        case ast.ListLit(items=items):
            return Seq(tuple(_list_item(cx, i) for i in items))
        case ast.ListComp():
            return _comprehension(cx, e)
    raise fail("E0803", "this cannot stand here", e.span)


def _list_item(cx: Context, item: ast.Expr) -> Value:
    if isinstance(item, ast.Rest):
        if item.name in cx.frame.packs:
            return Pack(cx.frame.packs[item.name])
        raise undefined(cx, item.name, item.span)
    return cx.eval(item)


def _comprehension(cx: Context, e: ast.ListComp) -> Value:
    items = iteration(cx, cx.eval(e.iterable), e.iterable.span)
    saved = cx.frame.vars.get(e.var)
    out: list[Value] = []
    known = items if items is not None else [integer(Dim.of(e.var))]
    for item in known:
        cx.frame.vars[e.var] = item
        out.append(cx.eval(e.element))
    cx.frame.vars.pop(e.var, None)
    if saved is not None:
        cx.frame.vars[e.var] = saved
    return Seq(tuple(out)) if items is not None else Seq(None, out[0])


def iteration(cx: Context, value: Value, span: Span) -> list[Value] | None:
    """The items of a static iterable; None when their number is not known (generic check)."""
    match value:
        case Weak(kind="int", dim=dim) if dim is not None:
            if dim.const is not None:
                return [integer(k) for k in range(dim.const)]
            return None
        case Seq(items=items) | ModuleList(items=items):
            return None if items is None else list(items)
        case Tuple(items=items):
            return list(items)
        case Unknown():
            raise Poisoned
    raise fail(
        "E0803",
        f"{describe(value)} cannot be iterated over",
        span,
        help="`for i in N:` runs over 0 ... N-1; `for f in modules:` over a list",
    )


# ---- operators ----------------------------------------------------------------------------------


def _binary_chain(cx: Context, e: ast.Binary) -> Value:
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
            return _logic(cx, e, left)
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
            return weak_binary(op, x, y, b.span)
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


def weak_binary(op: str, x: Weak, y: Weak, span: Span) -> Weak:
    """Arithmetic of literals and sizes, folded when known."""
    if op == "@":
        raise fail("E0307", "`@` needs tensors", span)
    both = x.kind == y.kind == "int"
    if both and x.dim is not None and y.dim is not None and op in ("+", "-", "*", "//", "%"):
        if op in ("//", "%") and y.dim.const == 0:
            raise fail("E0203", "division by zero", span)
        return integer(_dim_op(op, x.dim, y.dim))
    if both and op == "**" and x.dim is not None and y.dim is not None and y.dim.const is not None:
        if y.dim.const >= 0:
            return integer(x.dim**y.dim.const)
    if x.number is not None and y.number is not None:
        return number(_fold(op, float(x.number), float(y.number), span))
    if op == "**":
        fn = "powi" if y.kind == "int" else "pow"
        if fn == "powi":
            return Weak("float", lambda dt: Op(dt, "powi", (x.make(dt), y.make("i32"))))
        return weak_op("pow", x, y, kind="float")
    kind = "float" if op == "/" or "float" in (x.kind, y.kind) else "int"
    return weak_op(ARITHMETIC[op], x, y, kind=kind)


def _dim_op(op: str, a: Dim, b: Dim) -> Dim:
    match op:
        case "+":
            return a + b
        case "-":
            return a - b
        case "*":
            return a * b
        case "//":
            return a // b
    return a % b


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
    dtype = base.dtype if isinstance(base, Tensor) else common_dtype(cx, [a], [base], span, "pow")
    shape, origins = broadcast(cx, [a, b], [base, n], span, "pow")

    def body(i: tuple[Expr, ...]) -> Expr:
        k = element(n, n.dtype, shape, i)
        power_of = Op("i32", "cast", (k,)) if k.dtype != "i32" else k
        return Op(dtype, "powi", (element(base, dtype, shape, i), power_of))

    return cx.compute(shape, body, span, origins=origins)


def matmul(cx: Context, a: Operand, b: Operand, span: Span) -> Value:
    """`x @ w`: the last axis of x with the first of the last two of w; further axes of both are equal."""
    x, w = settle(cx, a, "a tensor"), settle(cx, b, "a tensor")
    for o, v in ((a, x), (b, w)):
        if not isinstance(v, Tensor) or not v.shape:
            raise fail("E0307", "`@` needs tensors with at least one axis", o.span, describe(v))
    assert isinstance(x, Tensor) and isinstance(w, Tensor)
    dtype = common_dtype(cx, [a, b], [x, w], span, "@")
    inner = 0 if len(w.shape) == 1 else len(w.shape) - 2
    batch = w.shape[:inner] if len(w.shape) > 2 else ()
    if x.shape[-1] != w.shape[inner]:
        raise _matmul_mistake(a, b, x, w, inner)
    if batch and x.shape[: len(x.shape) - 2] != batch:
        raise fail(
            "E0307",
            "the leading axes of `@` differ",
            b.span,
            str(w.type),
            [Label(a.span, str(x.type))],
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
        origin = v.origin(axis)
        return f"{v.type}" + (f"   {v.shape[axis]} = {origin.show(b.span)}" if origin else "")

    help = None
    if len(w.shape) == 2 and x.shape[-1] == w.shape[1]:
        help = f"`{a.span.text} @ {b.span.text}.T`"
    elif len(x.shape) == 2 and x.shape[0] == w.shape[inner]:
        help = f"`{a.span.text}.T @ {b.span.text}`"
    return fail(
        "E0307",
        f"`@` sums over {x.shape[-1]} on the left and {w.shape[inner]} on the right",
        b.span,
        side(w, inner),
        [Label(a.span, side(x, len(x.shape) - 1))],
        help=help,
    )


def _unary(cx: Context, e: ast.Unary) -> Value:
    value = cx.tensor(cx.eval(e.operand))
    operand = Operand(value, e.operand.span)
    if e.op == "not":
        if isinstance(value, Bool):
            return Bool(None if value.value is None else not value.value)
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


def _logic(cx: Context, e: ast.Binary, left: Value) -> Value:
    if isinstance(left, Bool) and left.value is not None and left.value == (e.op == "or"):
        return left
    right = cx.tensor(cx.eval(e.right))
    left = cx.tensor(left)
    match left, right:
        case Bool(value=None), Bool() | Unknown():
            return Bool(None)
        case Bool(), Bool():
            return right
        case Bool(value=b), _ if b is not None:
            return right
        case _, Bool(value=b) if b is not None and isinstance(left, Tensor):
            return left if b == (e.op == "and") else right
    return elementwise(cx, e.op, [Operand(left, e.left.span), Operand(right, e.right.span)], e.span)


def _compare(cx: Context, e: ast.Compare) -> Value:
    left, out = Operand(cx.eval(e.first), e.first.span), None
    for op, right_ast in e.rest:
        right = Operand(cx.eval(right_ast), right_ast.span)
        one = comparison(cx, op, left, right, e.span)
        out = one if out is None else _both(cx, out, one, e.span)
        left = right
    assert out is not None
    return out


def _both(cx: Context, a: Value, b: Value, span: Span) -> Value:
    if isinstance(a, Bool) and isinstance(b, Bool):
        if a.value is False or b.value is False:
            return Bool(False)
        return Bool(None if a.value is None or b.value is None else True)
    if isinstance(a, Bool) and a.value is not None:
        return b if a.value else a
    if isinstance(b, Bool) and b.value is not None:
        return a if b.value else b
    return elementwise(cx, "and", [Operand(a, span), Operand(b, span)], span)


def comparison(cx: Context, op: str, a: Operand, b: Operand, span: Span) -> Value:
    lifted = lift(cx, lambda p, q: comparison(cx, op, p, q, span), [a, b], span)
    if lifted is not None:
        return lifted
    x, y = cx.tensor(a.value), cx.tensor(b.value)
    match x, y:
        case Weak(), Weak():
            return _compare_weak(cx, op, x, y, span)
        case (Text(value=p), Text(value=q)):
            return Bool((p == q) == (op == "=="))
        case (Nothing(), _) | (_, Nothing()):
            same = isinstance(x, Nothing) and isinstance(y, Nothing)
            return Bool(same == (op == "=="))
        case (Unknown(), _) | (_, Unknown()):
            return Bool(None)
        case (Bool(value=p), Bool(value=q)):
            return Bool(None if p is None or q is None else (p == q) == (op == "=="))
    return elementwise(cx, COMPARISONS[op], [a, b], span)


def _compare_weak(cx: Context, op: str, x: Weak, y: Weak, span: Span) -> Value:
    if x.number is not None and y.number is not None:
        table: dict[str, bool] = {
            "==": x.number == y.number,
            "!=": x.number != y.number,
            "<": x.number < y.number,
            "<=": x.number <= y.number,
            ">": x.number > y.number,
            ">=": x.number >= y.number,
        }
        return Bool(table[op])
    if x.dim is not None and y.dim is not None:
        if cx.generic and not cx.ranges:
            return Bool((op == "==") if x.dim == y.dim and op in ("==", "!=") else None)
        fn = COMPARISONS[op]
        dx, dy = x, y
        return cx.compute((), lambda i: Op("bool", fn, (dx.make("i64"), dy.make("i64"))), span)
    fn = COMPARISONS[op]
    dtype = "i64" if x.kind == y.kind == "int" else cx.frame.real
    if cx.generic and not cx.ranges:
        return Bool(None)
    return cx.compute((), lambda i: Op("bool", fn, (x.make(dtype), y.make(dtype))), span)


# ---- conditionals -------------------------------------------------------------------------------


def _conditional(cx: Context, e: ast.IfExpr) -> Value:
    cond = cx.tensor(cx.eval(e.cond))
    match cond:
        case Bool(value=True):
            return cx.eval(e.then)
        case Bool(value=False):
            return cx.eval(e.orelse)
        case Bool() | Unknown():
            return _either(cx, e)
        case Tree():
            return _per_leaf(cx, e, cond)
        case Tensor(dtype="bool", shape=()):
            return _select(cx, e, cond)
        case Tensor(dtype="bool"):
            raise fail(
                "E0203",
                "`if` takes one condition, this is a tensor of them",
                e.cond.span,
                str(cond.type),
                help=f"`where({e.cond.span.text}, {e.then.span.text}, {e.orelse.span.text})`",
            )
    raise fail("E0203", "a condition must be a bool", e.cond.span, describe(cond))


def _either(cx: Context, e: ast.IfExpr) -> Value:
    """A static condition that is not known yet: both sides are checked; they may differ in type."""
    a, b = cx.tensor(cx.eval(e.then)), cx.tensor(cx.eval(e.orelse))
    match a, b:
        case Tensor(), Tensor():
            return a if a.type == b.type else UNKNOWN
        case Tensor(), Weak():
            return a
        case Weak(), Tensor():
            return b
        case Weak(), Weak():
            kind = "float" if "float" in (a.kind, b.kind) else "int"
            return Weak(kind, a.make)
        case Seq(), Seq():
            return Seq(None, None)
    return UNKNOWN


def _per_leaf(cx: Context, e: ast.IfExpr, cond: Tree) -> Value:
    a, b = cx.eval(e.then), cx.eval(e.orelse)
    out: dict[str, Value] = {}
    for key, c in cond.leaves.items():
        side_a = a.leaves[key] if isinstance(a, Tree) else a
        side_b = b.leaves[key] if isinstance(b, Tree) else b
        match c:
            case Bool(value=None) | Unknown():
                out[key] = side_a if isinstance(side_a, Weak) else UNKNOWN
            case Bool(value=v):
                out[key] = side_a if v else side_b
            case _:
                raise fail("E0203", "this condition differs from leaf to leaf", e.cond.span)
    return Tree(out, cond.of)


def _select(cx: Context, e: ast.IfExpr, cond: Tensor) -> Value:
    """`a if c else b`: in index notation each side is evaluated only where it is taken."""
    test = cond.at(())
    negated = Op("bool", "not", (test,))
    if cx.ranges:
        with cx.under(test):
            a = cx.eval(e.then)
        with cx.under(negated):
            b = cx.eval(e.orelse)
    else:
        a, b = cx.eval(e.then), cx.eval(e.orelse)
    return select(cx, test, Operand(a, e.then.span), Operand(b, e.orelse.span), e.span)


def select(cx: Context, test: Expr, a: Operand, b: Operand, span: Span) -> Value:
    """One of two values by a scalar run-time condition."""

    def again(p: Operand, q: Operand) -> Value:
        return select(cx, test, p, q, span)

    lifted = lift(cx, again, [a, b], span)
    if lifted is not None:
        return lifted
    x, y = settle(cx, a), settle(cx, b)
    dtype = common_dtype(cx, [a, b], [x, y], span, "if")
    shape, origins = broadcast(cx, [a, b], [x, y], span, "if")

    def body(i: tuple[Expr, ...]) -> Expr:
        return Select(dtype, test, element(x, dtype, shape, i), element(y, dtype, shape, i))

    return cx.compute(shape, body, span, origins=origins)


# ---- members and indices --------------------------------------------------------------------------


def attribute(cx: Context, e: ast.Attr) -> Value:
    base = cx.tensor(cx.eval(e.value))
    match base:
        case Unknown():
            raise Poisoned
        case UnitRef(unit=unit):
            found = _in_file(cx, unit, e.name) or cx.prelude(e.name)
            if found is None:
                near = nearest(e.name, unit.names)
                raise fail(
                    "E0804",
                    f"`{unit.name}` has no `{e.name}`",
                    e.name_span,
                    help=f"did you mean `{near}`?" if near else None,
                )
            return found
        case Module():
            found = member(cx, base, e.name) or base.inst.args.get(e.name)
            if found is not None:
                return found
            near = nearest(e.name, [*member_names(base.inst), *base.inst.args])
            raise fail(
                "E0804",
                f"{base.inst.id} has no member `{e.name}`",
                e.name_span,
                help=f"did you mean `{near}`?" if near else None,
            )
        case ModuleType():
            inst = cx.instantiate(base, [], e.value.span)
            found = member(cx, Module(inst, ""), e.name)
            if found is not None:
                return found
        case Tensor() if e.name == "T":
            return transpose(cx, base, e.span)
        case Tensor() | Weak() | Fill():
            raise _no_attribute(e, base)
        case Seq() | ModuleList():
            raise fail("E0804", f"a list has no `{e.name}`", e.name_span)
    raise fail("E0804", f"{describe(base)} has no `{e.name}`", e.name_span)


METHODS = {
    "shape": "sizes have names: declare them, `x: real[B, T]`, and use `B`",
    "size": "sizes have names: declare them, `x: real[B, T]`, and use `B`",
    "view": "an axis is split by a tuple: `y[b, h, e] = x[b, (h, e:K)]`",
    "reshape": "an axis is split by a tuple: `y[b, h, e] = x[b, (h, e:K)]`",
    "flatten": "axes are merged by a tuple: `y[b, (c, i, j)] = x[b, c, i, j]`",
    "transpose": "`x.T`, or index it: `y[i, j] = x[j, i]`",
    "permute": "index it: `y[i, k, j] = x[i, j, k]`",
    "unsqueeze": "`x[:, None]` adds an axis of 1",
    "squeeze": "`x[:, 0]` drops an axis",
    "backward": "`grad(loss, net)` is an expression",
    "detach": "`stop(x)`",
    "item": "a scalar is used as it is",
    "dtype": "`f32(x)` converts; the dtype is part of the declared type",
}


def _no_attribute(e: ast.Attr, base: Value) -> Mistake:
    help = METHODS.get(e.name)
    functions = ("sum", "mean", "max", "min", "exp", "log", "abs", "sqrt", "prod", "argmax", "var")
    if e.name in functions:
        help = f"`{e.name}({e.value.span.text})`"
    if e.name in ("float", "int", "half", "double", "to", "type", "astype"):
        help = f"`f32({e.value.span.text})`"
    return fail(
        "E0804",
        f"a tensor has no `{e.name}`",
        e.name_span,
        labels=((Label(e.value.span, describe(base)),)),
        help=help,
    )


def transpose(cx: Context, x: Tensor, span: Span) -> Tensor:
    if len(x.shape) != 2:
        raise fail(
            "E0308",
            f"`.T` is for rank 2, this is {x.type}",
            span,
            help="index it: `y[b, j, i] = x[b, i, j]`",
        )
    origins = (x.origin(1), x.origin(0))
    return cx.compute(x.shape[::-1], lambda i: x.at((i[1], i[0])), span, origins=origins)


def _index(cx: Context, e: ast.Index) -> Value:
    if isinstance(e.value, ast.Name):
        base = lookup(cx, e.value.id)
        if base is None:
            raise undefined(cx, e.value.id, e.value.span)
    else:
        base = cx.eval(e.value)
    if isinstance(base, Builtin) and base.name in ("zeros", "ones", "empty"):
        return _fill(cx, base.name, e)
    base = cx.tensor(base)
    match base:
        case Unknown():
            raise Poisoned
        case Seq() | Tuple() | ModuleList():
            return indexing.read_list(cx, base, e)
        case Tensor():
            return indexing.read(cx, base, e)
        case Fill():
            raise fail("E0405", "read a constant tensor by its number", e.span)
        case Builtin(name=name) if name in indexing.NAMES:
            raise fail(
                "E0802",
                f"`{name}[...]` needs an expression in parentheses",
                e.span,
                help=f"`{name}[i](x[i])`",
            )
    raise fail(
        "E0803",
        f"{describe(base)} cannot be indexed",
        e.value.span,
        help="module parameters are given in parentheses" if isinstance(base, ModuleType) else None,
    )


def _fill(cx: Context, name: str, e: ast.Index) -> Value:
    return Fill(tuple(dims_of(cx, e.items)), 1.0 if name == "ones" else 0.0)


def dims_of(cx: Context, items: tuple[ast.Expr, ...]) -> Iterator[Dim]:
    """Sizes written as a list, packs included."""
    for item in items:
        if isinstance(item, ast.Rest):
            if item.name not in cx.frame.packs:
                raise undefined(cx, item.name, item.span)
            yield from cx.frame.packs[item.name]
        else:
            yield cx.eval_dim(item)


# ---- sizes ----------------------------------------------------------------------------------------


def eval_dim(cx: Context, e: ast.Expr) -> Dim:
    """An expression in a size position: an integer polynomial; `/` is exact."""
    match e:
        case ast.Binary(op="/", left=left, right=right):
            return quotient(cx, eval_dim(cx, left), eval_dim(cx, right), e)
        case ast.Binary(op="+" | "-" | "*" | "//" | "%" as op, left=left, right=right):
            a, b = eval_dim(cx, left), eval_dim(cx, right)
            if op in ("//", "%") and b.const == 0:
                raise fail("E0310", "division by zero", e.span)
            return _dim_op(op, a, b)
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
    raise fail("E0309", "a size must be an integer", e.span, describe(value))


def quotient(cx: Context, p: Dim, q: Dim, e: ast.Expr) -> Dim:
    """`p / q` in a size: must be exact."""
    exact = divides(p, q) if q.const != 0 else False
    if exact is False:
        notes = ()
        n = p.const or 0
        divisors = [str(k) for k in range(1, min(n, 4096) + 1) if n % k == 0][:14]
        more = " ..." if len(divisors) == 14 else ""
        help = f"{n} divides by {' '.join(divisors)}{more}" if n > 0 else None
        raise fail(
            "E0310",
            f"{e.span.text} is not exact: {p} / {q}",
            e.span,
            notes=notes,
            help=help,
            labels=tuple(cx.instance_labels(e.span)),
        )
    if exact is None:
        cx.require(p % q, True, f"{p} % {q} == 0", e.span)
    return exact_div(p, q)


__all__ = ["attribute", "binary", "comparison", "eval_dim", "evaluate", "lookup", "select"]
