"""Arguments matched with the declared types of a function."""

from __future__ import annotations

from nnc.diagnostics import Span
from nnc.lang import ast
from nnc.lang.dims import Dim
from nnc.lang.elaborate.arguments import Given
from nnc.lang.elaborate.arith import adapt, module_tree, settle
from nnc.lang.elaborate.axes import resolve_axis
from nnc.lang.elaborate.binding import Binding
from nnc.lang.elaborate.broadcasting import same_dtype
from nnc.lang.elaborate.declared import kind_of, module_type
from nnc.lang.elaborate.members import same_tree, tree_argument
from nnc.lang.elaborate.mismatches import declared, wrong_dtype
from nnc.lang.elaborate.mistakes import fail
from nnc.lang.elaborate.module_sizes import is_open, match_sizes
from nnc.lang.elaborate.shape_matching import match_shape
from nnc.lang.elaborate.values import (
    AxisRef,
    Bool,
    Instance,
    Module,
    Operand,
    Stored,
    Tensor,
    Tree,
    Value,
    Weak,
)
from nnc.lang.elaborate.words import describe
from nnc.lang.types import DTYPES


def bind_argument(b: Binding, p: ast.Param, value: Value | None, g: Given | None) -> None:
    """One argument, or the default evaluated in the callee, becomes a name of the callee."""
    cx, frame = b.cx, b.frame
    span = g.span if g is not None else p.span
    if value is None:
        assert p.default is not None
        if kind_of(p) == "axis":
            frame.vars[p.name] = _axis(b, p.default)
            return
        with cx.in_frame(frame), cx.outside_loops():
            value = cx.eval(p.default)
    frame.var_spans[p.name] = p.name_span
    frame.used.add(p.name)
    match kind_of(p):
        case "axis":
            assert g is not None
            frame.vars[p.name] = _axis(b, g.value)
        case "dim":
            frame.dims[p.name] = _dim_argument(b, value, span)
        case "tensor":
            assert isinstance(p.type, ast.TensorTypeExpr)
            frame.vars[p.name] = _tensor_argument(b, p, p.type, value, span)
        case "tree" | "params":
            tree = _tree_argument(b, p, value, span)
            if p.inout and not cx.generic:
                assert isinstance(tree, Tree), tree
                frame.trees[p.name] = tree
            else:
                frame.vars[p.name] = tree
            if p.inout:
                frame.inout[p.name] = p.span
        case "module":
            frame.vars[p.name] = _module_argument(b, p, value, span)
            if p.inout:
                frame.inout[p.name] = p.span
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
    number = isinstance(value, Tensor) and not value.shape
    help = (
        f"declare it as a size: `{span.text}: dim`" if number and span.text.isidentifier() else None
    )
    raise fail("E0309", "a size must be an integer", span, describe(value), help=help)


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
    if isinstance(current, Tensor) and not same_dtype(current.dtype, dtype):
        raise wrong_dtype(b, p, current, dtype, span)
    tensor = adapt(cx, current, dtype, span)
    assert isinstance(tensor, Tensor)
    match_shape(b, p, t, tensor, span)
    if p.inout:
        assert isinstance(value, Stored), value
        b.frame.inout[p.name] = p.span
        return _writable(b, p, value, span)
    b.frame.read_only[p.name] = p.span
    return tensor


def _writable(b: Binding, p: ast.Param, stored: Stored, span: Span) -> Stored:
    """An argument for `inout`: storage that this function may write."""
    slot = b.cx.store[stored.key]
    if not slot.writable:
        raise fail(
            "E0501",
            f"this call would write to `{slot.root}`, which is read-only here",
            span,
            labels=(declared(p),),
            help=f"declare `{slot.root}` as `inout`",
        )
    return stored


def _tree_argument(b: Binding, p: ast.Param, value: Value, span: Span) -> Value:
    cx = b.cx
    match value:
        case Module():
            tree: Tree = module_tree(cx, value)
        case Tree():
            tree = value
        case _ if kind_of(p) == "tree":
            leaf = settle(cx, Operand(value, span), "a tree")
            tree = Tree({"": leaf}, None)
        case _:
            text = f"`{b.shown}` takes a tree, this is {describe(value)}"
            scalar = isinstance(value, Tensor) and not value.shape
            help = f"a gradient? `grad({span.text}, net)`" if scalar else None
            raise fail("E0301", text, span, labels=(declared(p),), help=help)
    if isinstance(p.type, ast.AppliedTypeExpr) and isinstance(tree.of, Instance):
        match_sizes(b, p, tree.of, span)
    if isinstance(p.type, ast.AppliedTypeExpr) and not cx.generic and not is_open(b, p):
        with cx.in_frame(b.frame):
            want = tree_argument(cx, p.type)
        if isinstance(want, Instance) and not same_tree(want, tree):
            got = tree.of.id if isinstance(tree.of, Instance) else "another tree"
            raise fail(
                "E0301",
                f"`{b.shown}` takes params({want.id}), this is params({got})",
                span,
                labels=(declared(p),),
                help=_made_for(b, got) if isinstance(tree.of, Instance) else None,
            )
    return tree


def _made_for(b: Binding, got: str) -> str | None:
    """The module type for this tree: `SGD(Net)`."""
    owner = b.frame.owner
    trees = owner.inst.trees if owner is not None else {}
    if owner is None or not trees:
        return None
    return f"one for these parameters has the type `{owner.inst.defn.name}({got})`"


def _module_argument(b: Binding, p: ast.Param, value: Value, span: Span) -> Value:
    cx = b.cx
    if not isinstance(value, Module):
        raise fail(
            "E0301",
            f"`{b.shown}` takes a module, this is {describe(value)}",
            span,
            labels=(declared(p),),
        )
    match_sizes(b, p, value.inst, span)
    if is_open(b, p):
        return value
    with cx.in_frame(b.frame):
        want = module_type(cx, p.type)
    if want is not None and want.id != value.inst.id and not cx.generic:
        raise fail(
            "E0301",
            f"`{b.shown}` takes {want.id}, this is {value.inst.id}",
            span,
            labels=(declared(p),),
        )
    return value
