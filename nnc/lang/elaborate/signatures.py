"""Declared arguments as symbolic values."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import replace

from nnc.diagnostics import Label, Span
from nnc.ir.graph import Input
from nnc.lang import ast
from nnc.lang.dims import ZERO, Dim, Facts
from nnc.lang.elaborate.clauses import constraint
from nnc.lang.elaborate.context import Context, Frame
from nnc.lang.elaborate.declared import kind_of, module_type, opaque_tree
from nnc.lang.elaborate.habits import TYPES
from nnc.lang.elaborate.members import StoredLeaf, leaves, tree_argument
from nnc.lang.elaborate.mistakes import Mistake, fail
from nnc.lang.elaborate.module_sizes import declare_sizes
from nnc.lang.elaborate.results import conform
from nnc.lang.elaborate.sizes import quantified
from nnc.lang.elaborate.values import (
    UNKNOWN,
    AxisRef,
    Instance,
    Module,
    Origin,
    Stored,
    TreeParam,
    Value,
    Weak,
    of_node,
)
from nnc.lang.elaborate.words import declared_origins
from nnc.lang.types import DTYPES, TensorType
from nnc.lang.units import nearest


def add_leaves(
    cx: Context, inst: Instance, root: str, writable: bool, declared: Span | None = None
) -> list[Input]:
    """Inputs for all stored tensors of a module argument, as storage."""
    out: list[Input] = []
    for leaf in leaves(inst):
        kind = leaf.type
        if kind is None:
            assert isinstance(leaf.decl.type, ast.AppliedTypeExpr), leaf  # params(P), P not known
            kind = TensorType(inst.real, (Dim.of(f"..{leaf.decl.type.args[0].span.text}"),))
        node = Input(type=kind, span=leaf.decl.span, name=f"{root}.{leaf.key}", kind=leaf.storage)
        name = leaf.decl.name
        origins = _leaf_origins(leaf, kind, name)
        cx.add_storage(node, writable, root, origins, None, declared)
        out.append(node)
    return out


def _leaf_origins(leaf: StoredLeaf, kind: TensorType, name: str) -> tuple[Origin, ...]:
    return tuple(o for o in declared_origins(name, kind.shape, leaf.decl.name_span) if o)


def equations(cx: Context, frame: Frame, func: ast.FuncDef) -> None:
    """Sizes of arguments that a `where` clause gives as an equation are that, everywhere.

    Called before the arguments are declared; without such clauses these declare the sizes.
    """
    names = _argument_sizes(cx, frame, func)
    given = {n: e for n, e in _equations(func, names) if n in names}
    if not given:
        return
    for p in func.params:
        if kind_of(p) == "dim":
            frame.dims[p.name] = Dim.of(p.name)
    for name, (span, p) in names.items():
        if name not in given:
            _new_size(frame, name, span, p)
    for _ in range(len(given)):
        for name, value in list(given.items()):
            if not quantified(cx, frame, value):
                frame.dims[name] = cx.eval_dim(value)
                frame.used.add(name)
                del given[name]
    for name in given:  # they define each other
        _new_size(frame, name, *names[name])


def _argument_sizes(
    cx: Context, frame: Frame, func: ast.FuncDef
) -> dict[str, tuple[Span, ast.Param]]:
    own = {p.name for p in func.params}
    out: dict[str, tuple[Span, ast.Param]] = {}
    for p in func.params:
        dims = p.type.dims or () if isinstance(p.type, ast.TensorTypeExpr) else ()
        for d in dims:
            if not isinstance(d, ast.Rest | ast.Str | ast.Slice | ast.ListLit):
                for name in quantified(cx, frame, d):
                    if name not in own:
                        out.setdefault(name, (d.span, p))
    return out


def _equations(func: ast.FuncDef, names: Container[str]) -> Iterator[tuple[str, ast.Expr]]:
    for clause in func.where:
        match clause:
            case ast.WhereDef(name=name, value=value):
                yield name, value
            case ast.Compare(first=first, rest=(("==", ast.Name(id=name)),)) if name in names:
                yield name, first
            case ast.Compare(first=ast.Name(id=name), rest=(("==", value),)):
                yield name, value


def symbolic_where(cx: Context, frame: Frame, func: ast.FuncDef) -> None:
    """Where clauses as definitions and facts, when a function is elaborated by itself."""
    for clause in func.where:
        if isinstance(clause, ast.WhereDef):
            value = cx.eval_dim(clause.value)
            known = frame.dims.setdefault(clause.name, value)
            if known != value:
                text = f"{clause.name} == {clause.value.span.text}"
                _fact(cx, known - value, True, text, clause.span)
            continue
        for fact, equal, text in constraint(cx, frame, clause):
            _fact(cx, fact, equal, text, clause.span)


def _fact(cx: Context, fact: Dim, equal: bool, text: str, span: Span) -> None:
    if fact != ZERO:
        if cx.proves(-fact - 1) or (equal and cx.proves(fact - 1)):
            raise fail("E0311", f"`{text}` can never hold", span)
        cx.facts = cx.facts.plus(*((fact, -fact) if equal else (fact,)))
        cx.require(fact, equal, text, span)


def symbolic_param(cx: Context, frame: Frame, p: ast.Param) -> None:
    frame.var_spans[p.name] = p.name_span
    if p.inout and kind_of(p) != "tensor":
        frame.inout[p.name] = p.span
    if isinstance(p.default, ast.NoneLit):
        help = f"every argument is there: write a second function, without `{p.name}`"
        raise fail("E0203", "an argument cannot be `None`", p.default.span, help=help)
    match kind_of(p):
        case "axis":
            frame.vars[p.name] = AxisRef(None)
        case "dim":
            frame.dims[p.name] = Dim.of(p.name)
            frame.dim_spans[p.name] = Origin(f"argument {p.name}", p.name_span)
            cx.facts = Facts(cx.facts.zero | {p.name}, cx.facts.nonneg)
        case "tensor":
            assert isinstance(p.type, ast.TensorTypeExpr)
            frame.vars[p.name] = tensor_param(cx, frame, p, p.type)
        case "tree":
            frame.vars[p.name] = opaque_tree(p.name, TreeParam(p.name))
        case "params":
            assert isinstance(p.type, ast.AppliedTypeExpr)
            declare_sizes(cx, frame, p)
            of = tree_argument(cx, p.type)
            frame.vars[p.name] = opaque_tree(p.name, of)
        case "module":
            declare_sizes(cx, frame, p)
            inst = module_type(cx, p.type)
            frame.vars[p.name] = Module(inst, p.name, p.name) if inst else UNKNOWN
            if inst is not None:
                add_leaves(cx, inst, p.name, p.inout, p.span)
        case _:
            raise fail("E0308", "an argument is a tensor, module, tree or size", p.span)


def check_defaults(cx: Context, func: ast.FuncDef) -> None:
    """A default is a value of the declared type."""
    for p in func.params:
        if p.default is None or p.type is None or kind_of(p) not in ("tensor", "dim"):
            continue
        with cx.outside_loops():
            value = cx.eval(p.default)
        value = conform(cx, value, p.type, f"the default of `{p.name}` is", p.default.span)
        if isinstance(value, Weak) and value.dim is not None and (value.dim.const or 0) < 0:
            raise fail("E0309", "a size is at least 0", p.default.span)


def tensor_param(cx: Context, frame: Frame, p: ast.Param, t: ast.TensorTypeExpr) -> Value:
    """A declared tensor argument: names in its shape become sizes, a pack one axis."""
    dtype = frame.real if t.name == "real" else t.name
    if dtype not in DTYPES:
        raise no_dtype(t)
    packs = [d for d in t.dims or () if isinstance(d, ast.Rest)]
    if len(packs) > 1:
        first = (Label(packs[0].span, "the first"),)
        raise fail("E0308", "a type has at most one pack of axes", packs[1].span, labels=first)
    shape = tuple(_declared_size(cx, frame, d, p) for d in t.dims or ())
    origins = declared_origins(f"{p.name}", shape, p.name_span)
    node = Input(type=TensorType(dtype, shape), span=p.span, name=p.name)
    place = Origin(f"argument {p.name}", p.span)
    if p.inout:
        cx.add_storage(node, True, p.name, origins, place, p.span)
        frame.inout[p.name] = p.span
        return Stored(p.name)
    frame.read_only[p.name] = p.span
    return replace(of_node(node, (), origins), place=place)


def no_dtype(t: ast.TensorTypeExpr) -> Mistake:
    """An unknown word before `[...]`."""
    meant = TYPES.get(t.name, "").partition("[")[0]
    help = f"`{meant}`" if meant else f"the dtypes are {' '.join(DTYPES)}"
    return fail("E0801", f"there is no dtype `{t.name}`", t.name_span, help=help)


def _declared_size(cx: Context, frame: Frame, d: ast.Expr, p: ast.Param) -> Dim:
    if isinstance(d, ast.Rest):
        if d.name == "...":
            raise fail("E0309", "axes of any number have a name", d.span, help="`..N`")
        if d.name not in frame.packs:
            frame.packs[d.name] = (Dim.of(f"..{d.name}"),)
        return frame.packs[d.name][0]
    if isinstance(d, ast.Str | ast.Slice | ast.ListLit):
        raise fail("E0309", "a size is expected here", d.span)
    negative = isinstance(d, ast.Unary) and isinstance(d.operand, ast.Num)
    if isinstance(d, ast.NoneLit) or negative:
        help = f"a size that may be any has a name: `{p.name}: real[B, 10]`"
        raise fail("E0309", f"`{d.span.text}` is no size", d.span, help=help)
    for name in quantified(cx, frame, d):
        if name in DTYPES:
            raise fail("E0309", f"`{name}` is a dtype, a size is expected here", d.span)
        if name[0].islower():
            raise _no_size(cx, name, d.span)
        _new_size(frame, name, d.span, p)
    return cx.eval_dim(d)


def _no_size(cx: Context, name: str, span: Span) -> Mistake:
    """A word in lower case that is no parameter: a slip, or a size without its capital."""
    frame = cx.frame
    params = frame.module.args if frame.module is not None else {}
    near = nearest(name, [*params, *frame.dims])
    help = (
        f"did you mean `{near}`?" if near else f"`{name[0].upper()}`, or an argument `{name}: dim`"
    )
    text = f"`{name}` is not defined; sizes that the arguments determine begin with a capital"
    once = ("undefined", span.source.name, name)
    return fail("E0309", text, span, help=help, once=once)


def _new_size(frame: Frame, name: str, span: Span, p: ast.Param) -> None:
    frame.dims[name] = Dim.of(name)
    frame.dim_spans[name] = Origin(f"a size of {p.name}", span)
    frame.used.add(name)
