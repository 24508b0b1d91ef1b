"""Declared types: what kind they are, and values of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nnc.diagnostics import Span
from nnc.ir.graph import Input
from nnc.lang import ast
from nnc.lang.dims import Dim
from nnc.lang.elaborate.context import Context, Frame
from nnc.lang.elaborate.habits import TYPES
from nnc.lang.elaborate.members import leaves, tree_argument
from nnc.lang.elaborate.mistakes import Poisoned, fail
from nnc.lang.elaborate.names import dotted
from nnc.lang.elaborate.values import (
    UNKNOWN,
    Instance,
    ModuleType,
    Origin,
    Origins,
    Tensor,
    Tree,
    TreeParam,
    Tuple,
    Unknown,
    Value,
    integer,
    of_node,
)
from nnc.lang.elaborate.words import describe
from nnc.lang.types import DTYPES, TensorType
from nnc.lang.units import nearest


def kind_of(p: ast.Param) -> str:
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


def _named(cx: Context, name: str) -> Value | None:
    return dotted(cx, name) if "." in name else cx.lookup(name)


def module_type(cx: Context, t: ast.TypeExpr | None) -> Instance | None:
    """The instance that a module type names: `MLP`, `SGD(MLP)`, `AdamW(Flowers.head)`."""
    match t:
        case ast.TensorTypeExpr(name=name, dims=None):
            value = _named(cx, name)
            args: tuple[ast.Arg, ...] = ()
        case ast.AppliedTypeExpr(name=name, args=args):
            value = _named(cx, name)
        case _:
            return None
    if isinstance(value, ModuleType):
        with cx.outside_loops():
            return cx.instantiate(value, args, t.span)
    if value is None:
        known = [*cx.frame.unit.names, *(d for d in DTYPES if d != "real"), "real", "dim", "tree"]
        near = nearest(name, known)
        last = name.rpartition(".")[2]
        homes = cx.std_homes.get(last, [])
        help = f"did you mean `{near}`?" if near else None
        if len(homes) == 1:
            help = f"`from {homes[0]} import {last}`"
        if name in TYPES:
            help = f"`{TYPES[name]}`"
        if name in ("str", "string", "text", "list", "dict", "tuple", "object", "any", "Any"):
            help = "arguments are tensors, sizes, modules and trees"
        if name in ("fn", "function", "callable", "Callable"):
            help = "a parameter of a module may be a function: `module M(D, act=relu):`"
        if name.partition(".")[0] in cx.frame.unit.failed:
            raise Poisoned
        once = ("undefined", t.span.source.name, name)
        raise fail("E0801", f"there is no type `{name}`", t.name_span, help=help, once=once)
    if isinstance(value, Unknown):
        raise Poisoned
    help = None
    if name in DTYPES and isinstance(t, ast.AppliedTypeExpr):
        help = f"sizes stand in brackets: `{name}[{', '.join(a.span.text for a in t.args)}]`"
    raise fail("E0801", f"`{name}` is {describe(value)}, not a type", t.name_span, help=help)


def opaque_type(cx: Context, t: ast.TypeExpr, span: Span, name: str) -> Value:
    match t:
        case ast.TupleTypeExpr(items=items):
            return Tuple(tuple(opaque_type(cx, i, span, name) for i in items))
        case ast.TensorTypeExpr(name=dtype, dims=dims) if dtype in DTYPES:
            real = cx.frame.real if dtype == "real" else dtype
            shape = shape_of(cx, dims or ())
            node = Input(type=TensorType(real, shape), span=span, name=name)
            place = result_place(t, span, cx.frame)
            origins = result_origins(cx.frame, dims or (), shape)
            return replace(of_node(node, (), origins), place=place)
        case ast.TensorTypeExpr(name="dim"):
            return integer(Dim.of(name))
        case ast.TensorTypeExpr(name="tree"):
            for v in cx.frame.vars.values():
                if isinstance(v, Tree):
                    return v
        case ast.AppliedTypeExpr(name="params"):
            return opaque_tree(name, tree_argument(cx, t))
    return UNKNOWN


def result_place(t: ast.TypeExpr, call: Span, frame: Frame) -> Origin:
    """Where a result comes from: the declaration in the same file, else the call."""
    if call.source is t.span.source:
        return Origin(f"`-> {t.span.text}`", t.span)
    owner = frame.owner.name if frame.owner is not None else ""
    name = owner or (frame.func.name if frame.func is not None else "")
    return Origin(f"result of {name}", call)


def opaque_tree(name: str, of: Instance | TreeParam) -> Tree:
    """A tree that is an argument or result: its leaves when the module is known, else one."""
    if isinstance(of, Instance) and not of.generic:
        found: dict[str, Value] = {
            x.key: of_node(Input(type=x.type, name=f"{name}.{x.key}"))
            for x in leaves(of)
            if x.storage == "param" and x.type is not None
        }
        return Tree(found, of)
    pack = of.name if isinstance(of, TreeParam) else of.id
    return Tree(
        {"*": of_node(Input(type=TensorType("real", (Dim.of(f"..{pack}"),)), name=name))}, of
    )


def result_origins(frame: Frame, dims: Sequence[ast.Expr], shape: tuple[Dim, ...] = ()) -> Origins:
    """Where the sizes of a result (`shape`) come from, as far as the arguments say it."""
    out: list[Origin | None] = []
    for d in dims:
        match d:
            case ast.Rest(name=name):
                axes = frame.packs.get(name, ())
                known = frame.pack_origins.get(name, ())
                out += [*known, *([None] * (len(axes) - len(known)))]
            case ast.Name(id=name):
                out.append(frame.dim_spans.get(name))
            case _:
                out.append(None)
    sizes = (*shape, *([None] * (len(out) - len(shape))))
    return tuple(o or _size_origin(frame, d) for o, d in zip(out, sizes, strict=False))


def _size_origin(frame: Frame, size: Dim | None) -> Origin | None:
    """A size that an argument has comes from there, another from the sub-module that is called."""
    if size is None or size.const is not None or frame.func is None:
        return None
    given = [v for p in frame.func.params if isinstance(v := frame.vars.get(p.name), Tensor)]
    for v in given:
        for axis, n in enumerate(v.shape):
            if n == size and (origin := v.origin(axis)) is not None:
                return origin
    if frame.made is None or frame.owner is None:
        return None
    word = "strided by" if "//" in str(size) else "a size made by"
    return Origin(f"{word} {frame.owner.name}", frame.made, whole=True)


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
