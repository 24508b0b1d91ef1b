"""Initial values of stored tensors."""

from __future__ import annotations

from dataclasses import dataclass

from nnc.diagnostics import Label
from nnc.ir.expr import Idx
from nnc.ir.graph import Node
from nnc.ir.scalar import cast
from nnc.lang import ast
from nnc.lang.dims import ZERO
from nnc.lang.elaborate.arguments import arguments
from nnc.lang.elaborate.arith import adapt
from nnc.lang.elaborate.calls import call_function
from nnc.lang.elaborate.context import Context, Frame
from nnc.lang.elaborate.copies import Part
from nnc.lang.elaborate.engine import std_unit
from nnc.lang.elaborate.members import StoredLeaf
from nnc.lang.elaborate.mistakes import Poisoned, fail
from nnc.lang.elaborate.values import (
    Function,
    Module,
    Tensor,
    Tree,
    Unknown,
    Value,
    WeakTensor,
    of_node,
)
from nnc.lang.elaborate.words import counted, describe
from nnc.lang.types import DTYPES


@dataclass(frozen=True)
class _First:
    """The initial value of the first tensor that one declaration stores."""

    path: str
    root: Node
    part: Part


def initial(cx: Context, leaf: StoredLeaf) -> Value:
    """The initial value of a stored tensor, from its declaration in the module's scope.

    For tensors of one declaration, in instances alike, it differs in the random numbers only.
    """
    key, path = ("initial", id(leaf.decl), id(leaf.inst), leaf.type), f"init/{leaf.key}"
    first = cx.replays.get(key)
    if isinstance(first, _First):
        new: dict[Node, Node] = {}
        first.part.copied(new, numbers=first.part.streams(cx, first.path, path))
        return of_node(new[first.root])
    known = len(cx.diagnostics.items), len(cx.checks)
    value = _evaluated(cx, leaf, path)
    clean = known == (len(cx.diagnostics.items), len(cx.checks))
    if clean and isinstance(value, Tensor) and value.node is not None:
        part = Part((), [value.node])
        if part.possible:
            cx.replays[key] = _First(path, value.node, part)
    return value


def _evaluated(cx: Context, leaf: StoredLeaf, path: str) -> Value:
    assert leaf.type is not None
    real = leaf.type.dtype if DTYPES[leaf.type.dtype].kind == "f" else cx.frame.real
    frame = Frame(
        leaf.inst.unit,
        instance=leaf.inst,
        real=real,
        train=True,
        initializing=True,
        path=path,
    )
    init = leaf.decl.init
    template = WeakTensor(leaf.type.shape, "any", lambda dt, i: cast(Idx(ZERO), dt))
    with cx.in_frame(frame):
        if init is None:
            return adapt(cx, template, leaf.type.dtype, leaf.decl.span)
        called = _initializer(cx, init)
        if called is not None:
            fn, call = called
            frame.vars["initial value"] = template
            value = call_function(cx, fn, call, arguments(call))
        else:
            value = cx.eval(init)
            if isinstance(value, Unknown):
                raise Poisoned
        if isinstance(value, Module | Tree):
            text = "an initial value is a number or a tensor"
            raise fail("E0203", text, init.span, describe(value))
        return _filled(cx, value, leaf, init)


def _initializer(cx: Context, init: ast.Expr) -> tuple[Function, ast.Call] | None:
    """`f(args)` whose first parameter is left open: f is called with the tensor before them."""
    if not isinstance(init, ast.Call) or not isinstance(init.func, ast.Name):
        return None
    value = cx.lookup(init.func.id)
    if not isinstance(value, Function):
        found = std_unit(cx.loader, "init").defs.get(init.func.id)
        if not isinstance(found, ast.FuncDef):
            return None
        value = Function(std_unit(cx.loader, "init"), found)
    params = value.defn.params
    given = {a.name for a in init.args if a.name} | {
        p.name for p in params[1 : 1 + sum(a.name is None for a in init.args)]
    }
    open_ = [p.name for p in params if p.name not in given and p.default is None]
    surplus = len(init.args) > len(params) - 1 and value.unit.name == "std.init"
    if not params or open_ != [params[0].name] or surplus:
        if value.unit.name == "std.init":
            takes = ", ".join(p.name for p in params[1:]) or "nothing"
            text = f"`{init.func.id}` takes {takes}; {counted(len(init.args), 'argument')} given"
            name = init.func.id
            numbers = [a.span.text for a in init.args]
            help = (
                f"`{name}({numbers[-1]})`" if numbers and takes != "nothing" else f"`{name}(0.02)`"
            )
            raise fail("E0802", text, init.span, help=help if takes != "nothing" else None)
        return None
    place = init.func.span
    first = ast.Arg(None, ast.Name("initial value", span=place), span=place)
    return value, ast.Call(init.func, (first, *init.args), True, span=init.span)


def _filled(cx: Context, value: Value, leaf: StoredLeaf, init: ast.Expr) -> Value:
    assert leaf.type is not None
    want = leaf.type
    tensor = adapt(cx, value, want.dtype, init.span)
    if isinstance(tensor, Tensor) and not tensor.shape and want.shape:
        one = tensor
        return cx.compute(want.shape, lambda i: one.at(()), init.span)
    if isinstance(tensor, Tensor) and tensor.shape != want.shape:
        raise fail(
            "E0303",
            f"the initial value of `{leaf.decl.name}` has another shape",
            init.span,
            str(tensor.type),
            (Label(leaf.decl.type.span, "declared here"),),
        )
    return tensor
