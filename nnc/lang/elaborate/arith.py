"""Whole-tensor arithmetic: element-wise application, adapting and casting, lifting over trees."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nnc.diagnostics import Label, Span
from nnc.ir.expr import Const, Expr, Idx, Load, Op
from nnc.ir.graph import Constant
from nnc.ir.scalar import SCALARS, cast
from nnc.lang.dims import ONE, ZERO, Dim
from nnc.lang.elaborate.broadcasting import (
    SYMBOLS,
    broadcast,
    common_dtype,
    fits,
    free_dtype,
    grouped,
    same_dtype,
    typed,
)
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.mistakes import Mistake, Poisoned, fail
from nnc.lang.elaborate.values import (
    AxisRef,
    Bool,
    Instance,
    Module,
    Operand,
    Seq,
    Tensor,
    Tree,
    Unknown,
    Value,
    Weak,
    WeakTensor,
)
from nnc.lang.elaborate.words import describe
from nnc.lang.types import DType, TensorType, is_float, is_int

Arithmetic = Tensor | Weak | Tree | WeakTensor


def as_tensor(cx: Context, v: Tensor | Weak | WeakTensor, span: Span) -> Tensor:
    """A tensor whose dtype, when free, is the one that literals have by themselves."""
    if isinstance(v, Tensor):
        return v
    out = adapt(cx, v, free_dtype(cx, [v]), span)
    assert isinstance(out, Tensor)
    return out


def settle(cx: Context, operand: Operand, what: str = "a number") -> Arithmetic:
    """The operand as something that arithmetic takes."""
    value = cx.tensor(operand.value)
    match value:
        case Tensor() | Weak() | Tree() | WeakTensor():
            return value
        case Module():
            return module_tree(cx, value)
        case Unknown() | AxisRef(axis=None):
            raise Poisoned
        case Bool(value=None):
            raise Poisoned
        case Bool(value=b):
            return Tensor(TensorType("bool"), lambda i: Const("bool", bool(b)))
        case Seq(items=items) if items is not None:
            return literal_tensor(items, operand.span)
    raise fail("E0203", f"{describe(value)} is not {what}", operand.span)


def module_tree(cx: Context, module: Module) -> Tree:
    """The params of a module as a tree, in their current versions."""
    prefix = module.path + "."
    leaves: dict[str, Value] = {
        key[len(prefix) :]: s.now
        for key, s in cx.store.items()
        if key.startswith(prefix) and s.kind == "param"
    }
    tree = Tree(leaves, module.inst)
    if module.cast is None:
        return tree
    cast = convert(cx, Operand(tree, module.inst.defn.span), module.cast, module.inst.defn.span)
    assert isinstance(cast, Tree)
    return cast


def literal_tensor(items: Sequence[Value], span: Span) -> WeakTensor:
    """`[0.1, 0.2]` as a tensor of rank 1 that adapts to its use."""
    data = [i.number for i in items if isinstance(i, Weak) and i.number is not None]
    if len(data) != len(items) or not items:
        raise fail("E0203", "a list of numbers is expected here", span)
    kind = "float" if any(isinstance(i, Weak) and i.kind == "float" for i in items) else "int"
    shape = (Dim.of(len(data)),)
    nodes: dict[DType, Constant] = {}

    def at(dtype: DType, index: tuple[Expr, ...]) -> Expr:
        if dtype not in nodes:
            row = tuple(float(x) if is_float(dtype) else int(x) for x in data)
            nodes[dtype] = Constant(type=TensorType(dtype, shape), span=span, data=row)
        return Load(dtype, nodes[dtype], index)

    return WeakTensor(shape, kind, at)


def lift(
    cx: Context, fn: Callable[..., Value], operands: Sequence[Operand], span: Span
) -> Value | None:
    """Applies `fn` leaf by leaf when an operand is a tree (all alike); None when there is none."""
    settled = [
        module_tree(cx, v) if isinstance(v := cx.tensor(o.value), Module) else v for o in operands
    ]
    trees = [v for v in settled if isinstance(v, Tree)]
    if not trees:
        return None
    for o, v in zip(operands, settled, strict=True):
        if isinstance(v, Tensor | WeakTensor) and v.shape:
            raise _tree_and_tensor(cx, operands, o, v)
    keys = list(trees[0].leaves)
    for other, operand in zip(settled, operands, strict=True):
        if isinstance(other, Tree) and list(other.leaves) != keys:
            raise _other_leaves(cx, trees[0], other, operand.span)
    leaves: dict[str, Value] = {}
    for key in keys:
        row = [
            Operand(v.leaves[key] if isinstance(v, Tree) else v, o.span)
            for v, o in zip(settled, operands, strict=True)
        ]
        leaves[key] = fn(*row)
    return Tree(leaves, trees[0].of)


def _tree_and_tensor(
    cx: Context, operands: Sequence[Operand], o: Operand, v: Tensor | WeakTensor
) -> Mistake:
    """A tree has many shapes: only numbers spread over its leaves."""
    tree = next(p for p in operands if isinstance(cx.tensor(p.value), Tree | Module))
    module = cx.tensor(tree.value)
    shown = describe(v)
    if isinstance(module, Module):
        text = f"`{tree.span.text}` is a module, not a tensor"
        label = Label(o.span, shown)
        help = f"call it: `{tree.span.text}({o.span.text})`"
        part = part_alike(cx, module, v)
        if part is not None:
            help = f"`{tree.span.text}.{part}` is its part of this shape"
        return fail("E0203", text, tree.span, module.inst.id, (label,), help=help)
    text = "a tree and a tensor do not combine; numbers spread over the leaves"
    alike = _alike(module, v) if isinstance(module, Tree) else None
    cure = f"`{grouped(tree.span.text)}.{alike}` is its part of this shape" if alike else None
    return fail("E0203", text, o.span, shown, (Label(tree.span, "a tree"),), help=cure)


def part_alike(cx: Context, module: Module, v: Tensor | WeakTensor) -> str | None:
    """The path of the only parameter of a module that has the shape of `v`."""
    return _alike(module_tree(cx, module), v)


def _alike(tree: Tree, v: Tensor | WeakTensor) -> str | None:
    found = [k for k, p in tree.leaves.items() if isinstance(p, Tensor) and p.shape == v.shape]
    return found[0] if len(found) == 1 else None


def _other_leaves(cx: Context, a: Tree, b: Tree, span: Span) -> Exception:
    """In the generic check trees of modules that are not known yet may well be alike."""
    known = [isinstance(t.of, Instance) and not t.of.generic for t in (a, b)]
    if cx.generic and not all(known):
        return Poisoned()
    names = [t.of.id if isinstance(t.of, Instance) else "another tree" for t in (a, b)]
    what = f"params({names[0]}) and params({names[1]})"
    return fail("E0313", "these trees have different leaves", span, what)


def element(value: Value, dtype: DType, shape: tuple[Dim, ...], index: tuple[Expr, ...]) -> Expr:
    """The operand's element for a result index, under broadcasting."""
    if isinstance(value, Weak):
        return value.make(dtype)
    assert isinstance(value, Tensor | WeakTensor), value
    own = index[len(index) - len(value.shape) :] if value.shape else ()
    offset = len(shape) - len(value.shape)
    own = tuple(
        Idx(ZERO) if d == ONE and shape[offset + i] != ONE else x
        for i, (d, x) in enumerate(zip(value.shape, own, strict=True))
    )
    return value.at(own) if isinstance(value, Tensor) else value.at(dtype, own)


Make = Callable[[DType, tuple[Expr, ...]], Expr]


def elementwise(
    cx: Context, fn: str, operands: Sequence[Operand], span: Span, make: Make | None = None
) -> Value:
    """`fn` of the scalar table (or `make`) applied to operands of one dtype under broadcasting."""
    lifted = lift(cx, lambda *row: elementwise(cx, fn, row, span, make), operands, span)
    if lifted is not None:
        return lifted
    values: list[Arithmetic] = [settle(cx, o) for o in operands]
    if SCALARS[fn].rule == "logic":
        for o, v in zip(operands, values, strict=True):
            if not isinstance(v, Tensor) or v.dtype != "bool":
                raise _not_bool(fn, o, v)
    dtype = common_dtype(cx, operands, values, span)
    if fn == "div" and is_int(dtype):
        dtype = cx.frame.real
        values = [as_real(cx, v, o.span) for v, o in zip(values, operands, strict=True)]
    check_rule(fn, dtype, operands, values, cx.frame.real)
    shape, origins = broadcast(cx, operands, values, span, fn)
    compares = SCALARS[fn].rule in ("compare", "logic")

    def at(as_dtype: DType, index: tuple[Expr, ...]) -> Expr:
        row = tuple(element(v, as_dtype, shape, index) for v in values)
        if make is not None:
            return make(as_dtype, row)
        return Op("bool" if compares else as_dtype, fn, row)

    if not compares and not any(isinstance(v, Tensor) for v in values):
        return WeakTensor(shape, weak_kind(values, SCALARS[fn].rule == "float"), at)
    return cx.compute(shape, lambda i: at(dtype, i), span, origins=origins)


def _not_bool(fn: str, o: Operand, v: Arithmetic) -> Mistake:
    text = typed(v, o.span) if isinstance(v, Tensor) else describe(v)
    what = f"`{fn}` needs a bool, this is {v.dtype if isinstance(v, Tensor) else describe(v)}"
    return fail("E0203", what, o.span, text, help=f"compare: `{o.span.text} != 0`")


def weak_kind(values: Sequence[Value], real: bool = False) -> str:
    """The kind of a function of weak operands only."""
    kinds = {v.kind for v in values if isinstance(v, Weak | WeakTensor)}
    if real or "float" in kinds:
        return "float"
    return "any" if "any" in kinds else "int"


def as_real(cx: Context, value: Arithmetic, span: Span) -> Arithmetic:
    """`/` is real division: integers become `real` first."""
    if isinstance(value, Tensor):
        converted = convert(cx, Operand(value, span), cx.frame.real, span)
        assert isinstance(converted, Tensor)
        return converted
    return value


WANTED = {"float": "a float", "integer": "integers", "logic": "a bool", "number": "numbers"}


def _obeys(rule: str, dtype: DType) -> bool:
    match rule:
        case "float":
            return is_float(dtype)
        case "integer":
            return is_int(dtype)
        case "logic":
            return dtype == "bool"
    return dtype != "bool" or rule not in ("number", "power")


def check_rule(
    fn: str, dtype: DType, operands: Sequence[Operand], values: Sequence[Value], real: DType
) -> None:
    """The function's dtype rule: float functions want floats, and so on."""
    rule = SCALARS[fn].rule
    strong = [o for o, v in zip(operands, values, strict=True) if isinstance(v, Tensor)]
    if _obeys(rule, dtype) or (not strong and rule == "float"):
        return
    name = {"floordiv": "//", "mod": "%", "powi": "**", "pow": "**"}.get(fn, SYMBOLS.get(fn, fn))
    place = (strong or operands)[0].span
    help = None
    if rule in ("float", "number", "power"):
        help = f"`{real}({place.text})`"
    elif fn in ("floordiv", "mod") and len(operands) == 2:
        a, b = (grouped(o.span.text) for o in operands)
        whole = f"floor({a} / {b})"
        help = f"`{whole}`" if fn == "floordiv" else f"`{a} - {b} * {whole}`"
    elif rule == "logic" and dtype != "bool":
        help = f"compare: `{place.text} != 0`"
    want = WANTED.get(rule, "numbers")
    raise fail("E0203", f"`{name}` needs {want}, this is {dtype}", place, dtype, help=help)


def adapt(cx: Context, value: Value, dtype: DType, span: Span) -> Tensor | Tree:
    """A value as a tensor of the given dtype (weak ones adapt; others must have it)."""
    settled = settle(cx, Operand(value, span))
    match settled:
        case Tree():
            return settled
        case Tensor():
            if same_dtype(settled.dtype, dtype):
                return settled
            raise fail(
                "E0204",
                f"this is {settled.dtype}, {dtype} is needed here",
                span,
                str(settled.type),
                help=f"`{dtype}({span.text})`",
            )
    fits(settled, dtype, span)
    if isinstance(settled, Weak):
        number = settled
        return cx.compute((), lambda i: number.make(dtype), span)
    weak = settled
    return cx.compute(weak.shape, lambda i: weak.at(dtype, i), span)


def convert(cx: Context, operand: Operand, dtype: DType, span: Span) -> Value:
    """`f32(x)`: the cast by dtype name."""
    lifted = lift(cx, lambda o: convert(cx, o, dtype, span), [operand], span)
    if lifted is not None:
        return lifted
    source = settle(cx, operand)
    assert not isinstance(source, Tree)
    if not isinstance(source, Tensor):
        if dtype != "bool" and (source.kind != "float" or is_float(dtype)):
            return adapt(cx, source, dtype, span)
        source = as_tensor(cx, source, span)
    if source.dtype == dtype:
        return source
    kept = source
    return cx.compute(kept.shape, lambda i: cast(kept.at(i), dtype), span, origins=kept.origins)
