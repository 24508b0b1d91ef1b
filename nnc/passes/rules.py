"""The rules of simplification on expressions: each an equation that is exact in IEEE arithmetic.

Nothing here may change a bit of any result: `x + 0` is not `x` (for -0), `x * 0` is not 0 (for NaN
and inf).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from nnc.ir.bounds import Ranges, as_dim, decide, prove, simplify_dim
from nnc.ir.expr import Const, Expr, Idx, Load, Op, Select
from nnc.ir.graph import Compute, Constant, Node
from nnc.ir.interpret import convert, numpy_dtype
from nnc.ir.scalar import SCALARS, neg, op, select
from nnc.lang.dims import Dim, Facts, dim_max, dim_min
from nnc.lang.types import DTYPES, DType, is_float, is_int


@dataclass(frozen=True)
class Scope:
    """What is known where an expression stands. `fixed`: nodes that must stay as they are."""

    facts: Facts
    ranges: Ranges
    fixed: frozenset[Node] = frozenset()


Rule = Callable[[Expr, Scope], Expr | None]


def rewritten(e: Expr, scope: Scope) -> Expr:
    """An expression over simple operands with the rules applied until none fires."""
    while True:
        for rule in RULES:
            made = rule(e, scope)
            if made is not None:
                e = made
                break
        else:
            return e


def is_zero(e: Expr) -> bool:
    """The number +0 (not -0)."""
    return isinstance(e, Const) and repr(e.value) in ("0", "0.0")


def _is(e: Expr, value: float) -> bool:
    """A constant of this value (and sign)."""
    if not isinstance(e, Const) or isinstance(e.value, bool):
        return False
    return repr(float(e.value)) == repr(float(value))


EXACT = frozenset(
    (
        *("add", "sub", "mul", "div", "neg", "min", "max", "eq", "ne", "lt", "le", "gt", "ge"),
        *("and", "or", "not", "isfinite", "abs", "sign", "floor", "ceil", "round", "sqrt"),
        *("bitand", "bitor", "bitxor", "floordiv", "mod"),
    )
)


def constants(e: Expr, scope: Scope) -> Expr | None:
    """f(1, 2) is its value, where f is exactly rounded"""
    if not isinstance(e, Op) or e.fn not in EXACT:
        return None
    values = [a for a in e.args if isinstance(a, Const)]
    if len(values) < len(e.args) or any(DTYPES[a.dtype].numpy == "" for a in values):
        return None
    if e.fn in ("floordiv", "mod") and values[1].value == 0:
        return None
    with np.errstate(all="ignore"):
        args = [np.asarray(a.value).astype(DTYPES[a.dtype].numpy) for a in values]
        value = np.asarray(SCALARS[e.fn].numpy(*args)).astype(DTYPES[e.dtype].numpy)
    return Const(e.dtype, value.item())


def constant_cast(e: Expr, scope: Scope) -> Expr | None:
    """f32(2) = 2.0"""
    match e:
        case Op(fn="cast", args=(Const() as a,)) if DTYPES[e.dtype].numpy or is_int(a.dtype):
            return Const(e.dtype, _converted(a.value, a.dtype, e.dtype))
        case Op(fn="cast", args=(Idx(dim=dim),)) if dim.const is not None:
            return Const(e.dtype, _converted(dim.const, "i64", e.dtype))
    return None


def _converted(value: float, old: DType, new: DType) -> float | int | bool:
    with np.errstate(all="ignore"):
        x = convert(np.asarray(value).astype(numpy_dtype(old)), new)
        out: float | int | bool = x.astype(DTYPES[new].numpy or "float64").item()
    return out


def index_arithmetic(e: Expr, scope: Scope) -> Expr | None:
    """i + 1 of indices is the index i+1"""
    if not isinstance(e, Op) or e.dtype != "i64" or not any(isinstance(a, Idx) for a in e.args):
        return None
    dims = [as_dim(a) for a in e.args]
    if any(d is None for d in dims):
        return None
    p, q = dims[0] or Dim.of(0), dims[-1] or Dim.of(0)
    match e.fn:
        case "add":
            return Idx(p + q)
        case "sub":
            return Idx(p - q)
        case "mul":
            return Idx(p * q)
        case "neg":
            return Idx(-p)
        case "min":
            return Idx(dim_min(p, q))
        case "max":
            return Idx(dim_max(p, q))
        case "floordiv" | "mod" if prove(q - 1, scope.facts, scope.ranges):
            return Idx(p // q if e.fn == "floordiv" else p % q)
    return None


def index_ranges(e: Expr, scope: Scope) -> Expr | None:
    """(8*c + e)//8 = c, where 0 <= e < 8"""
    if isinstance(e, Idx) and e.dim.functions:
        dim = simplify_dim(e.dim, scope.facts, scope.ranges)
        return None if dim == e.dim else Idx(dim)
    return None


def decided(e: Expr, scope: Scope) -> Expr | None:
    """i < N is true, where i runs over N"""
    value = decide(e, scope.facts, scope.ranges)
    return None if value is None else Const("bool", value)


def one(e: Expr, scope: Scope) -> Expr | None:
    """x * 1 = x; 1 * x = x; x / 1 = x; x**1 = x; x**0 = 1"""
    match e:
        case Op(fn="mul" | "div" | "powi", args=(x, c)) if _is(c, 1):
            return x
        case Op(fn="mul", args=(c, x)) if _is(c, 1):
            return x
        case Op(fn="powi", dtype=dtype, args=(_, c)) if _is(c, 0):
            return Const(dtype, 1.0 if is_float(dtype) else 1)
    return None


def nothing_added(e: Expr, scope: Scope) -> Expr | None:
    """x - 0 = x; x + -0 = x; -0 + x = x; for integers x + 0 = x and 0 + x = x"""
    if not isinstance(e, Op) or e.fn not in ("add", "sub"):
        return None
    x, y = e.args
    zero = -0.0 if is_float(e.dtype) and e.fn == "add" else 0.0
    if _is(y, zero):
        return x
    return y if e.fn == "add" and _is(x, zero) else None


def signs(e: Expr, scope: Scope) -> Expr | None:
    """--x = x; x * -1 = -x; x / -1 = -x; a + -b = a - b; a - -b = a + b"""
    match e:
        case Op(fn="neg", args=(Op(fn="neg", args=(x,)),)):
            return x
        case Op(fn="mul" | "div", args=(x, c)) if _is(c, -1) and e.dtype != "u8":
            return neg(x)
        case Op(fn="mul", args=(c, x)) if _is(c, -1) and e.dtype != "u8":
            return neg(x)
        case Op(fn="add", args=(a, Op(fn="neg", args=(b,)))):
            return op("sub", a, b)
        case Op(fn="sub", args=(a, Op(fn="neg", args=(b,)))):
            return op("add", a, b)
    return None


def integer_zero(e: Expr, scope: Scope) -> Expr | None:
    """x * 0 = 0 for integers"""
    match e:
        case Op(fn="mul", dtype=dtype, args=(a, b)) if is_int(dtype):
            return a if _is(a, 0) else b if _is(b, 0) else None
    return None


def casts(e: Expr, scope: Scope) -> Expr | None:
    """f32(x) = x for f32; f32(f64(x)) = x for f32"""
    match e:
        case Op(fn="cast", args=(x,)) if x.dtype == e.dtype:
            return x
        case Op(fn="cast", args=(Op(fn="cast", args=(x,)) as middle,)) if x.dtype == e.dtype:
            return x if (x.dtype, middle.dtype) in WIDER else None
    return None


WIDER = frozenset(
    [("f32", "f64"), ("f16", "f32"), ("f16", "f64"), ("bf16", "f32"), ("bf16", "f64")]
    + [("i32", "i64"), ("i8", "i32"), ("i8", "i64"), ("u8", "i32"), ("u8", "i64"), ("i32", "f64")]
    + [("bool", d) for d in ("i8", "u8", "i32", "i64", "f16", "bf16", "f32", "f64")]
    + [(i, f) for i in ("i8", "u8") for f in ("f16", "bf16", "f32", "f64")]
)


def selects(e: Expr, scope: Scope) -> Expr | None:
    """a if true else b = a; a if c else a = a; a if not c else b = b if c else a"""
    match e:
        case Select(cond=Const(value=value), a=a, b=b):
            return a if value else b
        case Select(a=a, b=b) if a is b or _same_constant(a, b):
            return a
        case Select(cond=Op(fn="not", args=(c,)), a=a, b=b):
            return select(c, b, a)
        case Select(cond=c, dtype="bool", a=Const(value=True), b=Const(value=False)):
            return c
    return None


def _same_constant(a: Expr, b: Expr) -> bool:
    return isinstance(a, Const) and isinstance(b, Const) and repr(a.value) == repr(b.value)


def nested_selects(e: Expr, scope: Scope) -> Expr | None:
    """(a if c else b) if c else d = a if c else d; a if c else (b if c else d) = a if c else d"""
    match e:
        case Select(cond=c, a=Select(cond=inner, a=a), b=d) if inner is c:
            return select(c, a, d)
        case Select(cond=c, a=a, b=Select(cond=inner, b=d)) if inner is c:
            return select(c, a, d)
    return None


def logic(e: Expr, scope: Scope) -> Expr | None:
    """x and true = x; x or false = x; x and x = x; not not x = x (and their like)"""
    match e:
        case Op(fn="not", args=(Op(fn="not", args=(x,)),)):
            return x
        case Op(fn="and" | "or", args=(x, y)) if x is y:
            return x
        case Op(fn="and" | "or" as fn, args=(x, y)):
            for this, other in ((x, y), (y, x)):
                if isinstance(this, Const):
                    return other if this.value == (fn == "and") else this
    return None


def load_of_constant(e: Expr, scope: Scope) -> Expr | None:
    """x[i] = 2, where x[i] = 2 everywhere"""
    match e:
        case Load(tensor=Compute(op="", body=Const() as body) as tensor, other=None, check=None):
            return None if tensor in scope.fixed else body
        case Load(tensor=Constant(data=(value,)), dtype=dtype, other=None, check=None):
            return Const(dtype, value)
    return None


def load_of_slice(e: Expr, scope: Scope) -> Expr | None:
    """y[i] = x[t, i], where y[i] = x[t, i] for the turn t of a loop"""
    match e:
        case Load(tensor=Compute(op="", body=Load(other=None, check=None) as whole) as part):
            loops = {a.var: i for a, i in zip(part.axes, e.index, strict=True)}
            if part in scope.fixed or not _is_slice(part, whole):
                return None
            index = [loops.get(i.dim.name or "", i) for i in whole.index if isinstance(i, Idx)]
            return replace(e, tensor=whole.tensor, index=tuple(index))
    return None


def _is_slice(part: Compute, whole: Load) -> bool:
    """Whether the components are the axes in their order, or places fixed in a turn."""
    extents = {a.var: a.extent for a in part.axes}
    shape, bare, turns = whole.tensor.type.shape, list[str](), False
    for i, extent in zip(whole.index, shape, strict=True):
        if not isinstance(i, Idx):
            return False
        if extents.get(i.dim.name or "") == extent:
            bare.append(i.dim.name or "")
        elif i.dim.names & extents.keys():
            return False
        turns |= any("." in name for name in i.dim.names)
    return turns and bare == list(extents)


def other_never_read(e: Expr, scope: Scope) -> Expr | None:
    """x[i else v] = x[i], where 0 <= i < N"""
    if not isinstance(e, Load) or e.other is None:
        return None
    for i, extent in zip(e.index, e.tensor.type.shape, strict=True):
        d = as_dim(i)
        if d is None or not prove(d, scope.facts, scope.ranges):
            return None
        if not prove(extent - d - 1, scope.facts, scope.ranges):
            return None
    return replace(e, other=None)


RULES: tuple[Rule, ...] = (
    constants,
    constant_cast,
    index_arithmetic,
    index_ranges,
    decided,
    one,
    nothing_added,
    signs,
    integer_zero,
    casts,
    selects,
    nested_selects,
    logic,
    load_of_constant,
    load_of_slice,
    other_never_read,
)
