"""Calls: matching arguments to declared types, solving sizes, inlining (or typing by signature)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from nnc.diagnostics import Label, Span
from nnc.ir.graph import Input
from nnc.lang import ast
from nnc.lang.dims import ONE, Dim, exact_div
from nnc.lang.elaborate import builtins
from nnc.lang.elaborate import index as indexing
from nnc.lang.elaborate.arith import Operand, adapt, module_tree, settle
from nnc.lang.elaborate.builtins import Given, resolve_axis
from nnc.lang.elaborate.context import Context, Frame, Mistake, Poisoned, fail
from nnc.lang.elaborate.modules import comparison_facts, leaves, tree_argument
from nnc.lang.elaborate.values import (
    UNKNOWN,
    AxisRef,
    Bool,
    Builtin,
    Fill,
    Function,
    Instance,
    Module,
    ModuleType,
    Nothing,
    Origin,
    Stored,
    Tensor,
    Tree,
    Tuple,
    Unknown,
    Value,
    Weak,
    describe,
    integer,
    of_node,
)
from nnc.lang.types import DTYPES, DType, TensorType, is_float
from nnc.lang.units import nearest

# ---- dispatch -----------------------------------------------------------------------------------


def call_expr(cx: Context, e: ast.Call) -> Value:
    """`f(...)`, `f!(...)`, `M(...)`, `sum[i](...)`."""
    if id(e) in cx.memo:
        return cx.memo[id(e)]
    if isinstance(e.func, ast.Index) and isinstance(e.func.value, ast.Name):
        base = cx.lookup(e.func.value.id)
        if isinstance(base, Builtin) and base.name in indexing.NAMES:
            return indexing.reduce_indexed(cx, base.name, e, e.func.items)
    func = cx.eval(e.func)
    match func:
        case Unknown():
            for arg in e.args:
                _ignore(cx, arg.value)
            raise Poisoned
        case Builtin(name=name):
            return builtins.call(cx, name, e)
        case Function():
            return call_function(cx, func, e, arguments(cx, e))
        case Module():
            forward = func.inst.methods.get("forward")
            if forward is None:
                raise fail("E0803", f"{func.inst.id} has no `forward`", e.func.span)
            method = Function(func.inst.unit, forward, func)
            return call_function(cx, method, e, arguments(cx, e))
        case ModuleType():
            inst = cx.instantiate(func, e.args, e.span)
            return Module(inst, "")
    help = "did you forget an operator, or brackets `[...]`?" if isinstance(func, Tensor) else None
    raise fail("E0803", f"{describe(func)} cannot be called", e.func.span, help=help)


def _ignore(cx: Context, e: ast.Expr) -> None:
    """Arguments of an unknown function are still checked, for their own mistakes."""
    try:
        cx.eval(e)
    except (Mistake, Poisoned):
        return


def arguments(cx: Context, e: ast.Call) -> list[Given]:
    return [Given(a.name, a.value, a.value.span, a.name_span) for a in e.args]


# ---- binding ------------------------------------------------------------------------------------


@dataclass(eq=False)
class Binding:
    """A call being matched: the callee's frame, and what is still to be solved."""

    cx: Context
    func: ast.FuncDef
    frame: Frame
    call: ast.Call
    pending: list[tuple[Dim, ast.Expr, Span, ast.Param]]
    owner_name: str

    @property
    def shown(self) -> str:
        return self.owner_name or self.func.name


def call_function(cx: Context, fn: Function, e: ast.Call, given: Sequence[Given]) -> Value:
    """A user's function: types are matched, then its body is inlined (generic: typed by signature)."""
    func = fn.defn
    paired = _pair(fn, e, given)
    owner = fn.owner
    name = (owner.name or owner.inst.id) if owner is not None else func.name
    bang = bool(e.bang)
    if bang and not (cx.generic or cx.frame.train or cx.frame.exported or cx.frame.train is None):
        raise fail(
            "E0502",
            "`!` inside a function that was called without `!`",
            e.span,
            help="call it with `!` as well",
        )
    frame = Frame(
        fn.unit,
        func,
        owner,
        train=None if cx.generic else bool(cx.frame.train or bang),
        path=_path(cx, e, fn),
        real=owner.inst.real if owner is not None else cx.frame.real,
    )
    b = Binding(cx, func, frame, e, [], name)
    values = [(p, _evaluate(cx, p, g)) for p, g in paired]
    if owner is None:
        frame.real = _real_of(cx, func, values)
    for p, value in values:
        _bind(b, p, value, dict((q.name, g) for q, g in paired).get(p.name))
    _solve_pending(b)
    _clauses(b)
    if cx.generic:
        return _opaque(b)
    return _inline(b, fn)


def _path(cx: Context, e: ast.Call, fn: Function) -> str:
    label = (fn.owner.name or fn.owner.inst.id) if fn.owner else fn.defn.name
    stem = f"{cx.frame.path}/{label}"
    n = cx.counters.get(stem, 0)
    cx.counters[stem] = n + 1
    return stem if n == 0 else f"{stem}#{n}"


def _pair(
    fn: Function, e: ast.Call, given: Sequence[Given]
) -> list[tuple[ast.Param, Given | None]]:
    params = list(fn.defn.params)
    names = [p.name for p in params]
    place = (Label(fn.defn.name_span, "declared here"),)
    by: dict[str, Given] = {}
    for i, g in enumerate(given):
        if g.name is None and i >= len(names):
            what = f"`{fn.defn.name}` takes {len(names)} argument{'s' * (len(names) != 1)}"
            raise fail("E0802", f"{what}, {len(given)} are given", g.span, labels=place)
        name = g.name or names[i]
        if name not in names:
            near = nearest(name, names)
            raise fail(
                "E0802",
                f"`{fn.defn.name}` has no argument `{name}`",
                g.name_span or g.span,
                labels=place,
                help=f"did you mean `{near}`?" if near else None,
            )
        if name in by:
            raise fail("E0802", f"`{name}` is given twice", g.span)
        by[name] = g
    missing = [p.name for p in params if p.name not in by and p.default is None]
    if missing:
        what = ", ".join(f"`{m}`" for m in missing)
        raise fail("E0802", f"`{fn.defn.name}` needs {what}", e.span, labels=place)
    return [(p, by.get(p.name)) for p in params]


def _evaluate(cx: Context, p: ast.Param, g: Given | None) -> Value | None:
    """The argument's value; None: the default, which is evaluated in the callee."""
    if g is None:
        return None
    if _kind(p) == "axis":
        return UNKNOWN  # resolved against the tensor argument, by _bind
    value = cx.eval(g.value)
    if isinstance(value, Unknown):
        raise Poisoned
    return value


def _kind(p: ast.Param) -> str:
    match p.type:
        case ast.TensorTypeExpr(name=name, dims=dims):
            if name in DTYPES or dims is not None:
                return "tensor"
            return name if name in ("dim", "tree", "axis") else "module"
        case ast.AppliedTypeExpr(name="params"):
            return "params"
        case ast.AppliedTypeExpr():
            return "module"
    return "tuple"


def _real_of(
    cx: Context, func: ast.FuncDef, values: Sequence[tuple[ast.Param, Value | None]]
) -> DType:
    """`real` of a function call: the float dtype of the first argument declared `real`."""
    for p, value in values:
        if isinstance(p.type, ast.TensorTypeExpr) and p.type.name == "real" and value is not None:
            v = cx.tensor(value)
            if isinstance(v, Tensor) and is_float(v.dtype):
                return v.dtype
    return "real" if cx.generic and cx.frame.real == "real" else cx.frame.real


def _bind(b: Binding, p: ast.Param, value: Value | None, g: Given | None) -> None:
    cx, frame = b.cx, b.frame
    span = g.span if g is not None else p.span
    if value is None:
        assert p.default is not None
        if _kind(p) == "axis":
            frame.vars[p.name] = _axis(b, p.default)
            return
        with cx.in_frame(frame), cx.outside_loops():
            value = cx.eval(p.default)
    frame.var_spans[p.name] = p.name_span
    frame.used.add(p.name)
    match _kind(p):
        case "axis":
            assert g is not None
            frame.vars[p.name] = _axis(b, g.value)
        case "dim":
            frame.dims[p.name] = _dim_argument(b, value, span)
        case "tensor":
            assert isinstance(p.type, ast.TensorTypeExpr)
            frame.vars[p.name] = _tensor_argument(b, p, p.type, value, span)
        case "tree" | "params":
            frame.vars[p.name] = _tree_argument(b, p, value, span)
        case "module":
            frame.vars[p.name] = _module_argument(b, p, value, span)
        case _:
            frame.vars[p.name] = value


def _axis(b: Binding, e: ast.Expr) -> Value:
    tensor = next((v for v in b.frame.vars.values() if isinstance(v, Tensor)), None)
    if tensor is None:
        raise fail("E0306", "an axis argument needs a tensor argument before it", e.span)
    return AxisRef(resolve_axis(b.cx, tensor, e))


def _dim_argument(b: Binding, value: Value, span: Span) -> Dim:
    if isinstance(value, Weak) and value.dim is not None:
        return value.dim
    raise fail("E0309", "a size must be an integer", span, describe(value))


def _tensor_argument(
    b: Binding, p: ast.Param, t: ast.TensorTypeExpr, value: Value, span: Span
) -> Value:
    cx, frame = b.cx, b.frame
    dtype = frame.real if t.name == "real" else t.name
    if dtype not in DTYPES:
        raise fail("E0805", f"`{t.name}` is no dtype", t.name_span)
    if isinstance(value, Bool) and dtype == "bool":
        return value
    if isinstance(value, Module):
        raise fail("E0301", f"`{b.shown}` takes a tensor, this is a module", span, value.inst.id)
    current = settle(cx, Operand(value, span), "a tensor")
    if isinstance(current, Tree):
        if list(current.leaves) == [""]:
            current = settle(cx, Operand(current.leaves[""], span))
        else:
            raise fail("E0301", f"`{b.shown}` takes a tensor, this is a tree", span)
    if isinstance(current, Tensor) and current.dtype != dtype:
        raise _wrong_dtype(b, p, current, dtype, span)
    tensor = adapt(cx, current, dtype, span)
    assert isinstance(tensor, Tensor)
    _match_shape(b, p, t, tensor, span)
    if p.inout:
        return _inout(b, value, span, p)
    return tensor


def _wrong_dtype(b: Binding, p: ast.Param, v: Tensor, dtype: DType, span: Span) -> Mistake:
    origin = v.origin(0)
    text = str(v.type) + (f"   {origin.show(span)}" if origin else "")
    return fail(
        "E0201",
        f"`{b.shown}` takes {dtype}, this is {v.dtype}",
        span,
        text,
        (Label(p.span, f"declared {_written(p)}"),),
        help=f"`{dtype}({span.text})`",
    )


def _written(p: ast.Param) -> str:
    return p.type.span.text if p.type is not None else ""


def _inout(b: Binding, value: Value, span: Span, p: ast.Param) -> Value:
    cx = b.cx
    if not isinstance(value, Stored):
        if isinstance(value, Tensor | Fill):  # a local: the callee works on its own version
            tensor = cx.tensor(value)
            key = f"{b.frame.path}.{p.name}"
            assert isinstance(tensor, Tensor | Fill)
            return _local_storage(cx, key, tensor, span, b.frame.real)
        raise fail("E0503", f"`{p.name}` is `inout`: it needs a variable that can be written", span)
    if not cx.store[value.key].writable:
        raise fail(
            "E0501",
            f"this call would write to `{value.key}`, which is read-only here",
            span,
            help="declare the argument `inout`",
        )
    return value


def _local_storage(cx: Context, key: str, value: Tensor | Fill, span: Span, real: DType) -> Stored:
    tensor = adapt(cx, value, value.dtype if isinstance(value, Tensor) else real, span)
    assert isinstance(tensor, Tensor)
    node = Input(type=tensor.type, name=key, span=span, kind="local")
    cx.add_storage(node, True, key)
    cx.store[key].now = tensor
    return Stored(key)


# ---- shapes -------------------------------------------------------------------------------------


def quantified(cx: Context, frame: Frame, e: ast.Expr) -> list[str]:
    """The names of a size expression that the signature still has to determine."""
    out: list[str] = []
    stack: list[object] = [e]
    while stack:
        node = stack.pop()
        if isinstance(node, tuple):
            stack.extend(node)
        elif isinstance(node, ast.Name):
            with cx.in_frame(frame):
                if cx.lookup(node.id) is None and node.id not in out:
                    out.append(node.id)
        elif isinstance(node, ast.Call):
            stack.append(tuple(a.value for a in node.args))
        elif isinstance(node, ast.Syntax):
            stack.extend(getattr(node, f.name) for f in fields(node) if f.name != "span")
    return out


def _match_shape(b: Binding, p: ast.Param, t: ast.TensorTypeExpr, v: Tensor, span: Span) -> None:
    patterns = t.dims or ()
    packs = [i for i, d in enumerate(patterns) if isinstance(d, ast.Rest)]
    fixed = len(patterns) - len(packs)
    rank = len(v.shape)
    if (not packs and rank != fixed) or rank < fixed:
        raise _wrong_rank(b, p, t, v, span)
    axis = 0
    for pattern in patterns:
        if isinstance(pattern, ast.Rest):
            n = rank - fixed
            _match_pack(b, p, pattern, v, axis, n, span)
            axis += n
            continue
        _match_axis(b, p, pattern, v.shape[axis], span, v, axis)
        axis += 1


def _match_pack(
    b: Binding, p: ast.Param, pattern: ast.Rest, v: Tensor, axis: int, n: int, span: Span
) -> None:
    mine = v.shape[axis : axis + n]
    bound = b.frame.packs.get(pattern.name)
    if bound is None:
        b.frame.packs[pattern.name] = mine
        return
    if bound != mine:
        raise fail(
            "E0301",
            f"`{b.shown}` needs the same axes for `..{pattern.name}`",
            span,
            str(v.type),
            (
                Label(
                    p.span,
                    f"`..{pattern.name}` is [{', '.join(map(str, bound))}] from an argument before",
                ),
            ),
        )


def _match_axis(
    b: Binding, p: ast.Param, pattern: ast.Expr, size: Dim, span: Span, v: Tensor, axis: int
) -> None:
    frame = b.frame
    if isinstance(pattern, ast.Name) and pattern.id not in frame.dims:
        with b.cx.in_frame(frame):
            known = b.cx.lookup(pattern.id)
        if known is None:
            frame.dims[pattern.id] = size
            origin = v.origin(axis)
            if origin is not None:
                frame.dim_spans[pattern.id] = origin
            return
    open_ = quantified(b.cx, frame, pattern)
    if len(open_) > 1:
        b.pending.append((size, pattern, span, p))
        return
    if open_:
        _solve(b, open_[0], pattern, size, span)
        return
    with b.cx.in_frame(frame):
        want = b.cx.eval_dim(pattern)
    if want != size:
        raise _wrong_size(b, p, pattern, want, size, span, v, axis)


def _solve(b: Binding, name: str, pattern: ast.Expr, size: Dim, span: Span) -> None:
    """`T + 1`, `4*H`: the name from a linear form."""
    probe = "?" + name
    b.frame.dims[name] = Dim.of(probe)
    with b.cx.in_frame(b.frame):
        form = b.cx.eval_dim(pattern).linear_in(probe)
    del b.frame.dims[name]
    if form is None or not form[0].terms:
        raise fail(
            "E0309",
            f"`{name}` cannot be found from this size",
            pattern.span,
            help="some argument needs an axis that is `{name}` alone",
        )
    a, rest = form
    if a != ONE:
        from_size = size - rest
        if from_size.const is not None and a.const is not None and from_size.const % a.const:
            raise fail(
                "E0301",
                f"`{b.shown}` needs an axis that is a multiple of {a}",
                span,
                str(size),
                (Label(pattern.span, "declared here"),),
            )
        if from_size.const is None:
            b.cx.require(from_size % a, True, f"{from_size} % {a} == 0", span)
    b.frame.dims[name] = exact_div(size - rest, a)


def _solve_pending(b: Binding) -> None:
    for _ in range(2):
        waiting, b.pending = b.pending, []
        for size, pattern, span, p in waiting:
            open_ = quantified(b.cx, b.frame, pattern)
            if len(open_) > 1:
                b.pending.append((size, pattern, span, p))
            elif open_:
                _solve(b, open_[0], pattern, size, span)
            else:
                with b.cx.in_frame(b.frame):
                    want = b.cx.eval_dim(pattern)
                if want != size:
                    raise fail("E0301", f"`{b.shown}` needs {want} here, this is {size}", span)
    if b.pending:
        _, pattern, _, _ = b.pending[0]
        names = quantified(b.cx, b.frame, pattern)
        raise fail("E0309", f"`{names[0]}` is not determined by the arguments", pattern.span)


def _wrong_rank(b: Binding, p: ast.Param, t: ast.TensorTypeExpr, v: Tensor, span: Span) -> Mistake:
    want = len([d for d in t.dims or () if not isinstance(d, ast.Rest)])
    help = None
    if len(v.shape) == want + 1 and want >= 1:
        help = None
    more = "at least " if any(isinstance(d, ast.Rest) for d in t.dims or ()) else ""
    axes = f"{more}{want} ax{'is' if want == 1 else 'es'}"
    return fail(
        "E0308",
        f"`{b.shown}` takes {axes}, this has {len(v.shape)}",
        span,
        _typed(v, span),
        (Label(p.span, f"takes {t.span.text}"),),
        help=help or _flatten_help(v, want, span),
    )


def _flatten_help(v: Tensor, want: int, span: Span) -> str | None:
    if want == 2 and len(v.shape) > 2:
        letters = "bcijkl"[: len(v.shape)]
        rest = ", ".join(letters[1:])
        return f"flatten first: `y[{letters[0]}, ({rest})] = x[{', '.join(letters)}]`"
    return None


def _typed(v: Tensor, seen: Span) -> str:
    origin = v.origin(len(v.shape) - 1) if v.shape else None
    return str(v.type) + (f"   {origin.show(seen)}" if origin else "")


def _wrong_size(
    b: Binding,
    p: ast.Param,
    pattern: ast.Expr,
    want: Dim,
    size: Dim,
    span: Span,
    v: Tensor,
    axis: int,
) -> Mistake:
    cx = b.cx
    given, takes = _number(cx, size), _number(cx, want)
    if given == takes:
        given, takes = str(size), str(want)
    last = axis == len(v.shape) - 1
    noun = "features" if last and b.frame.owner is not None else f"on axis {axis}"
    message = f"`{b.shown}` is given {given} {noun} but takes {takes}"
    labels = [Label(p.span, f"takes {_written(p)}" + _where_size(cx, pattern, want, b))]
    made = _made_at(cx, b)
    if made is not None:
        labels.append(
            Label(
                made,
                f"takes {_written(p)}, {pattern.span.text} = {want}" + _declared_at(cx, want, made),
            )
        )
        labels = labels[1:]
    origin = v.origin(axis)
    text = f"{v.type}"
    known = _declared_at(cx, size, span)
    if known:
        text += f"   {known.lstrip(', ')}"
    elif origin is not None:
        text += f"   {size} = {origin.show(span)}"
    return fail("E0301", message, span, text, labels, help=_suggestion(cx, b, want, size))


def _where_size(cx: Context, pattern: ast.Expr, want: Dim, b: Binding) -> str:
    if pattern.span.text == str(want):
        return ""
    origin = b.frame.dim_spans.get(pattern.span.text)
    place = f" from {origin.show(b.call.span)}" if origin is not None else ""
    return f", {pattern.span.text} = {want}{place}"


def _number(cx: Context, d: Dim) -> str:
    """The size with the module's defaults put in, when that gives a number."""
    inst = cx.frame.module
    if inst is None or d.const is not None:
        return str(d)
    env: dict[str, Dim] = {}
    for p in inst.defn.params:
        match p.default:
            case ast.Num(value=int(n)):
                env[p.name] = Dim.of(n)
    return str(d.subst(env))


def _declared_at(cx: Context, d: Dim, seen: Span) -> str:
    inst = cx.frame.module
    if inst is None or d.name is None:
        return ""
    for p in inst.defn.params:
        if p.name == d.name:
            value = _number(cx, d)
            shown = f"{d} = {value}" if value != str(d) else str(d)
            return f", {shown}, declared on {p.name_span.line_in(seen)}"
    return ""


def _made_at(cx: Context, b: Binding) -> Span | None:
    """Where the sub-module that is called was made, in the module that is being checked."""
    inst = cx.frame.module
    owner = b.frame.owner
    if inst is None or owner is None:
        return None
    for m in inst.defn.members:
        if isinstance(m, ast.MemberDecl) and m.name == owner.name:
            return m.value.span
    return None


def _suggestion(cx: Context, b: Binding, want: Dim, size: Dim) -> str | None:
    """`fc2 = Linear(H, C)`: the declaration with the wrong size replaced, when that is one word."""
    inst, owner = cx.frame.module, b.frame.owner
    if inst is None or owner is None or size.name is None:
        return None
    for m in inst.defn.members:
        if isinstance(m, ast.MemberDecl) and m.name == owner.name and isinstance(m.value, ast.Call):
            words = [a.span.text for a in m.value.args]
            hits = [i for i, w in enumerate(words) if w == str(want)]
            if len(hits) >= 1:
                words[hits[0]] = str(size)
                return f"did you mean `{m.name} = {m.value.func.span.text}({', '.join(words)})`?"
    return None


# ---- trees and modules ----------------------------------------------------------------------------


def _tree_argument(b: Binding, p: ast.Param, value: Value, span: Span) -> Value:
    cx = b.cx
    match value:
        case Module():
            tree: Tree = module_tree(cx, value)
        case Tree():
            tree = value
        case _ if _kind(p) == "tree":
            leaf = settle(cx, Operand(value, span), "a tree")
            tree = Tree({"": leaf}, None)
        case _:
            raise fail(
                "E0301",
                f"`{b.shown}` takes a tree, this is {describe(value)}",
                span,
                labels=(Label(p.span, _written(p)),),
            )
    if isinstance(p.type, ast.AppliedTypeExpr) and not cx.generic:
        with cx.in_frame(b.frame):
            want = tree_argument(cx, p.type)
        if isinstance(want, Instance) and not _same_tree(want, tree):
            got = tree.of.id if isinstance(tree.of, Instance) else "another tree"
            raise fail(
                "E0301",
                f"`{b.shown}` takes params({want.id}), this is params({got})",
                span,
                labels=(Label(p.span, _written(p)),),
            )
    return tree


def _same_tree(inst: Instance, tree: Tree) -> bool:
    return [x.key for x in leaves(inst) if x.storage == "param"] == list(tree.leaves)


def _module_argument(b: Binding, p: ast.Param, value: Value, span: Span) -> Value:
    cx = b.cx
    if not isinstance(value, Module):
        raise fail(
            "E0301",
            f"`{b.shown}` takes a module, this is {describe(value)}",
            span,
            labels=(Label(p.span, _written(p)),),
        )
    with cx.in_frame(b.frame):
        want = module_type(cx, p.type)
    if want is not None and want.id != value.inst.id and not cx.generic:
        raise fail(
            "E0301",
            f"`{b.shown}` takes {want.id}, this is {value.inst.id}",
            span,
            labels=(Label(p.span, _written(p)),),
        )
    return value


def module_type(cx: Context, t: ast.TypeExpr | None) -> Instance | None:
    """The instance that a module type names: `MLP`, `SGD(MLP)`, `AdamW(Flowers.head)`."""
    match t:
        case ast.TensorTypeExpr(name=name, dims=None):
            value = cx.lookup(name)
            args: tuple[ast.Arg, ...] = ()
        case ast.AppliedTypeExpr(name=name, args=args):
            value = cx.lookup(name)
        case _:
            return None
    if isinstance(value, ModuleType):
        with cx.outside_loops():
            return cx.instantiate(value, args, t.span)
    if value is None:
        known = [*cx.frame.unit.names, *(d for d in DTYPES if d != "real"), "real", "dim", "tree"]
        near = nearest(name, known)
        homes = cx.std_homes.get(name, [])
        help = f"did you mean `{near}`?" if near else None
        if len(homes) == 1:
            help = f"`from {homes[0]} import {name}`"
        raise fail("E0801", f"there is no type `{name}`", t.name_span, help=help)
    if isinstance(value, Unknown):
        raise Poisoned
    raise fail("E0801", f"`{name}` is {describe(value)}, not a type", t.name_span)


# ---- where clauses --------------------------------------------------------------------------------


def _clauses(b: Binding) -> None:
    """`where Y = ...` defines; `where T <= S` must follow from what the caller knows."""
    for clause in b.func.where:
        if isinstance(clause, ast.WhereDef):
            with b.cx.in_frame(b.frame):
                value = b.cx.eval_dim(clause.value)
            known = b.frame.dims.get(clause.name)
            if known is not None and known != value:
                raise fail(
                    "E0311",
                    f"`{b.shown}` needs {clause.name} = {value}",
                    b.call.span,
                    f"{clause.name} is {known}",
                    (Label(clause.span, "required here"),),
                )
            b.frame.dims[clause.name] = value
            continue
        for fact, equal, text in constraint(b.cx, b.frame, clause):
            _proved(b, fact, equal, text, clause.span)


def constraint(cx: Context, frame: Frame, clause: ast.Expr) -> Iterator[tuple[Dim, bool, str]]:
    """A where constraint as dims that must be >= 0 (or == 0)."""
    if not isinstance(clause, ast.Compare):
        raise fail("E0311", "a where clause compares or defines sizes", clause.span)
    left = clause.first
    for op, right in clause.rest:
        with cx.in_frame(frame):
            a, c = cx.eval_dim(left), cx.eval_dim(right)
        text = f"{left.span.text} {op} {right.span.text}"
        if op == "==":
            yield a - c, True, text
        elif op == "!=":
            raise fail("E0311", "`!=` cannot be required of sizes", clause.span)
        else:
            for fact in comparison_facts(op, a, c):
                yield fact, False, text
        left = right


def _proved(b: Binding, fact: Dim, equal: bool, text: str, place: Span) -> None:
    cx = b.cx
    fine = fact == Dim(()) if equal else cx.proves(fact)
    if fine:
        return
    false = cx.proves(-fact - 1) or (equal and fact.const is not None)
    says = "does not hold" if false else "does not follow from what is known here"
    clause = f"{fact} {'==' if equal else '>='} 0"
    raise fail(
        "E0311",
        f"`{b.shown}` needs {text}, which {says}",
        b.call.span,
        f"here: {clause}",
        (Label(place, "required here"),),
        help=None if false else "add it to the `where` of this function",
    )


# ---- results --------------------------------------------------------------------------------------


def _opaque(b: Binding) -> Value:
    """Generic check: a value of the declared result type."""
    cx = b.cx
    if b.func.returns is None:
        return Nothing()
    with cx.in_frame(b.frame):
        return opaque_type(cx, b.func.returns, b.call.span, b.func.name)


def opaque_type(cx: Context, t: ast.TypeExpr, span: Span, name: str) -> Value:
    match t:
        case ast.TupleTypeExpr(items=items):
            return Tuple(tuple(opaque_type(cx, i, span, name) for i in items))
        case ast.TensorTypeExpr(name=dtype, dims=dims) if dtype in DTYPES:
            real = cx.frame.real if dtype == "real" else dtype
            shape = shape_of(cx, dims or ())
            node = Input(type=TensorType(real, shape), span=span, name=name)
            origins = tuple(Origin(f"`-> {t.span.text}`", t.span) for _ in shape)
            return of_node(node, (), origins)
        case ast.TensorTypeExpr(name="dim"):
            return integer(Dim.of(name))
        case ast.TensorTypeExpr(name="tree"):
            for v in cx.frame.vars.values():
                if isinstance(v, Tree):
                    return v
        case ast.AppliedTypeExpr(name="params"):
            return Tree({}, tree_argument(cx, t))
    return UNKNOWN


def shape_of(cx: Context, dims: Sequence[ast.Expr]) -> tuple[Dim, ...]:
    out: list[Dim] = []
    for d in dims:
        if isinstance(d, ast.Rest):
            pack = cx.frame.packs.get(d.name)
            if pack is None:
                raise fail("E0309", f"`..{d.name}` is not determined by the arguments", d.span)
            out.extend(pack)
        else:
            out.append(cx.eval_dim(d))
    return tuple(out)


def _inline(b: Binding, fn: Function) -> Value:
    cx, func = b.cx, b.func
    if any(f is func for f, _ in cx.calls) and len(cx.calls) > 200:
        raise fail(
            "E0809",
            f"`{func.name}` calls itself",
            b.call.span,
            help="there is no recursion; `for` and lists of modules repeat",
        )
    if func.name in fn.unit.adjoints and fn.owner is None:
        raise fail("E0901", f"the adjoint of `{func.name}` is not compiled yet", b.call.span)
    cx.calls.append((func, b.call.span))
    try:
        with cx.in_frame(b.frame):
            cx.execute(func.body)
            return finish(cx, func, b.call.span)
    finally:
        cx.calls.pop()


def finish(cx: Context, func: ast.FuncDef, span: Span) -> Value:
    """The function's result, compared with the declared type."""
    frame = cx.frame
    value = frame.result
    if value is None:
        if func.returns is None or (not frame.returned and _poisoned(frame)):
            return Nothing() if func.returns is None else UNKNOWN
        raise fail(
            "E0810",
            f"`{func.name}` ends without `return`",
            func.name_span,
            labels=(Label(func.returns.span, "declared here"),),
        )
    if func.returns is None:
        return value
    return conform(cx, value, func.returns, func, _return_span(func))


def _poisoned(frame: Frame) -> bool:
    return any(isinstance(v, Unknown) for v in frame.vars.values())


def _return_span(func: ast.FuncDef) -> Span:
    for stmt in reversed(func.body):
        if isinstance(stmt, ast.Return):
            if len(stmt.values) == 1:
                return stmt.values[0].span
            return stmt.values[0].span.to(stmt.values[-1].span) if stmt.values else stmt.span
    return func.name_span


def conform(cx: Context, value: Value, t: ast.TypeExpr, func: ast.FuncDef, span: Span) -> Value:
    """A result as its declared type."""
    match t:
        case ast.TupleTypeExpr(items=items):
            if not isinstance(value, Tuple) or len(value.items) != len(items):
                if isinstance(value, Unknown):
                    return value
                n = len(value.items) if isinstance(value, Tuple) else 1
                raise fail(
                    "E0303",
                    f"`{func.name}` returns {n} values, {len(items)} are declared",
                    span,
                    labels=(Label(t.span, "declared here"),),
                )
            spans = _value_spans(func, len(items), span)
            return Tuple(
                tuple(
                    conform(cx, v, i, func, s)
                    for v, i, s in zip(value.items, items, spans, strict=True)
                )
            )
        case ast.TensorTypeExpr(name=dtype, dims=dims) if dtype in DTYPES:
            return _conform_tensor(cx, value, t, dtype, dims, func, span)
        case ast.AppliedTypeExpr() | ast.TensorTypeExpr(name="tree"):
            current = cx.tensor(value)
            if isinstance(current, Module):
                return module_tree(cx, current)
            if isinstance(current, Tree) and list(current.leaves) == [""]:
                return current.leaves[""]
            if isinstance(current, Tree | Unknown):
                return current
            raise fail(
                "E0303",
                f"`{func.name}` returns {describe(current)}, a tree is declared",
                span,
                labels=(Label(t.span, "declared here"),),
            )
        case ast.TensorTypeExpr(name="dim"):
            return value
    raise fail("E0801", f"there is no result type `{t.span.text}`", t.span)


def _value_spans(func: ast.FuncDef, n: int, span: Span) -> list[Span]:
    for stmt in reversed(func.body):
        if isinstance(stmt, ast.Return) and len(stmt.values) == n:
            return [v.span for v in stmt.values]
    return [span] * n


def _conform_tensor(
    cx: Context,
    value: Value,
    t: ast.TensorTypeExpr,
    dtype: DType,
    dims: tuple[ast.Expr, ...] | None,
    func: ast.FuncDef,
    span: Span,
) -> Value:
    if isinstance(value, Unknown):
        return value
    if isinstance(value, Tuple):
        raise fail(
            "E0303",
            f"`{func.name}` returns {len(value.items)} values, one is declared",
            span,
            labels=(Label(t.span, "declared here"),),
        )
    want_dtype = cx.frame.real if dtype == "real" else dtype
    settled = settle(cx, Operand(value, span), "a tensor")
    if isinstance(settled, Tree):
        raise fail("E0303", f"`{func.name}` returns a tree, {t.span.text} is declared", span)
    want = TensorType(want_dtype, shape_of(cx, dims or ()))
    got = (
        settled.type
        if isinstance(settled, Tensor)
        else TensorType(want_dtype, settled.shape if isinstance(settled, Fill) else ())
    )
    label = (Label(t.span, "declared here"),)
    if got.shape != want.shape:
        raise fail(
            "E0303",
            f"`{func.name}` returns {_shown(got)}, {t.span.text} is declared",
            span,
            _typed(settled, span) if isinstance(settled, Tensor) else str(got),
            label,
            _axis_notes(got, want),
            help=_return_help(got, want, span),
        )
    if got.dtype != want.dtype:
        raise fail(
            "E0204",
            f"`{func.name}` returns {got.dtype}, {want.dtype} is declared",
            span,
            str(got),
            label,
            help=f"`{want.dtype}({span.text})`",
        )
    tensor = adapt(cx, settled, want_dtype, span)
    assert isinstance(tensor, Tensor)
    origins = tuple(Origin(f"`-> {t.span.text}`", t.span) for _ in want.shape)
    return Tensor(tensor.type, tensor.at, tensor.node, (), origins)


def _shown(t: TensorType) -> str:
    return str(t)


def _axis_notes(got: TensorType, want: TensorType) -> tuple[str, ...]:
    if len(got.shape) != len(want.shape):
        return (f"{len(got.shape)} axes, {len(want.shape)} are declared",)
    pairs = enumerate(zip(got.shape, want.shape, strict=True))
    return tuple(f"axis {i}: {g} is not {w}" for i, (g, w) in pairs if g != w)[:3]


def _return_help(got: TensorType, want: TensorType, span: Span) -> str | None:
    if len(got.shape) == len(want.shape) + 1 and got.shape[-1] == ONE:
        return f"`({span.text})[..., 0]` drops the last axis"
    if len(got.shape) == 2 and got.shape[::-1] == want.shape:
        return f"`({span.text}).T`"
    return None


__all__ = ["call_expr", "call_function", "conform", "finish", "module_type", "opaque_type"]
