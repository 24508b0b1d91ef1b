"""Members: `net.fc1`, `x.T`, and messages for what other libraries have there."""

from __future__ import annotations

from nnc.diagnostics import Label, Span
from nnc.lang import ast
from nnc.lang.elaborate.context import Context, Mistake, Poisoned, fail
from nnc.lang.elaborate.members import member, member_names
from nnc.lang.elaborate.names import in_file
from nnc.lang.elaborate.values import (
    Module,
    ModuleList,
    ModuleType,
    Seq,
    Tensor,
    UnitRef,
    Unknown,
    Value,
    Weak,
    WeakTensor,
    describe,
)
from nnc.lang.units import nearest


def attribute(cx: Context, e: ast.Attr) -> Value:
    base = cx.tensor(cx.eval(e.value))
    match base:
        case Unknown():
            raise Poisoned
        case UnitRef(unit=unit):
            found = in_file(cx, unit, e.name) or cx.prelude(e.name)
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
        case Tensor() | Weak() | WeakTensor():
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
