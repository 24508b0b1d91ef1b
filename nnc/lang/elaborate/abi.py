"""The flattened arguments of an export."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from nnc.diagnostics import Span
from nnc.ir.graph import Input
from nnc.ir.signature import ArgSig
from nnc.lang import ast
from nnc.lang.dims import Dim, Facts
from nnc.lang.elaborate.context import Context, Frame
from nnc.lang.elaborate.declared import kind_of, module_type
from nnc.lang.elaborate.members import leaves, tree_argument
from nnc.lang.elaborate.mistakes import fail
from nnc.lang.elaborate.module_sizes import module_names
from nnc.lang.elaborate.signatures import add_leaves, tensor_param
from nnc.lang.elaborate.values import Instance, Module, Origin, Stored, Tensor, Tree, Value, of_node


@dataclass(eq=False)
class Abi:
    """The flattened arguments of an export, as they are collected."""

    inputs: list[Input] = field(default_factory=list)
    args: list[ArgSig] = field(default_factory=list)
    instances: list[Instance] = field(default_factory=list)


def argument(cx: Context, frame: Frame, p: ast.Param, abi: Abi) -> None:
    place = f"{p.span.source.name}:{p.span.line}"
    text = p.type.span.text if p.type is not None else ""
    frame.var_spans[p.name] = p.name_span
    if p.inout:
        frame.inout[p.name] = p.span
    default = _default(cx, p)
    match kind_of(p):
        case "dim":
            frame.dims[p.name] = Dim.of(p.name)
            frame.dim_spans[p.name] = Origin(f"argument {p.name}", p.name_span)
            cx.facts = Facts(cx.facts.zero | {p.name}, cx.facts.nonneg)
            abi.args.append(ArgSig(p.name, "dim", default=default, place=place, text=text))
        case "tensor":
            assert isinstance(p.type, ast.TensorTypeExpr)
            value = tensor_param(cx, frame, p, p.type)
            frame.vars[p.name] = value
            node = cx.store[value.key].input if isinstance(value, Stored) else None
            if isinstance(value, Tensor):
                assert isinstance(value.node, Input)
                node = value.node
            assert node is not None
            packs = tuple(i for i, d in enumerate(p.type.dims or ()) if isinstance(d, ast.Rest))
            abi.inputs.append(node)
            abi.args.append(
                ArgSig(p.name, "tensor", node.type, "", p.inout, default, packs, place, text)
            )
        case "params":
            _tree_arg(cx, frame, p, abi, place, text)
        case "module":
            inst = module_type(cx, p.type)
            assert inst is not None
            frame.vars[p.name] = Module(inst, p.name, p.name)
            module_arg(cx, abi, p.name, inst, p.inout, p.span, text)
        case kind:
            raise fail(
                "E0315",
                f"an exported function cannot take `{kind}`",
                p.span,
                help="tensors, sizes (`n: dim`), modules and `params(M)` can be passed in",
            )


def _default(cx: Context, p: ast.Param) -> float | int | bool | None:
    match p.default:
        case ast.Num(value=v):
            return v
        case ast.Bool(value=b):
            return b
        case ast.Unary(op="-", operand=ast.Num(value=v)):
            return -v
        case None:
            return None
    help = "leave the default out and give the argument in the call"
    raise fail(
        "E0315", "the default of an exported argument is a number", p.default.span, help=help
    )


def module_arg(
    cx: Context, abi: Abi, name: str, inst: Instance, inout: bool, span: Span, text: str
) -> None:
    abi.inputs.extend(add_leaves(cx, inst, name, inout, span))
    abi.instances.append(inst)
    place = f"{span.source.name}:{span.line}"
    abi.args.append(ArgSig(name, "module", None, inst.id, inout, None, (), place, text))


def _tree_arg(cx: Context, frame: Frame, p: ast.Param, abi: Abi, place: str, text: str) -> None:
    assert isinstance(p.type, ast.AppliedTypeExpr)
    of = tree_argument(cx, p.type)
    if not isinstance(of, Instance):
        raise fail("E0315", "the module of this tree is not known", p.span)
    found: dict[str, Value] = {}
    for leaf in leaves(of):
        if leaf.storage == "param":
            assert leaf.type is not None
            node = Input(type=leaf.type, span=p.span, name=f"{p.name}.{leaf.key}")
            abi.inputs.append(node)
            found[leaf.key] = of_node(node)
            if p.inout:
                cx.add_storage(node, True, p.name, (), None, p.span)
                found[leaf.key] = Stored(node.name)
    (frame.trees if p.inout else frame.vars)[p.name] = Tree(found, of)
    abi.instances.append(of)
    abi.args.append(ArgSig(p.name, "tree", None, of.id, p.inout, None, (), place, text))


def determined(cx: Context, frame: Frame, func: ast.FuncDef) -> None:
    """Every size must be solvable from the arguments' shapes."""
    known = {p.name for p in func.params if kind_of(p) == "dim"}
    known |= {n for p in func.params for n in module_names(p)}
    shapes = [n.type.shape for n in _tensor_inputs(cx, frame)]
    patterns = [d for shape in shapes for d in shape]
    for _ in range(len(patterns) + 1):
        for d in patterns:
            open_ = [n for n in d.names if n not in known and n in frame.dims | _pack_names(frame)]
            if len(open_) == 1 and d.linear_in(open_[0]) is not None:
                known.add(open_[0])
    for p in func.params:
        if not isinstance(p.type, ast.TensorTypeExpr):
            continue
        for size in p.type.dims or ():
            if isinstance(size, ast.Rest):
                continue
            for name in sorted(cx.eval_dim(size).names & frame.dims.keys() - known):
                raise fail(
                    "E0309",
                    f"`{name}` is not determined by the arguments",
                    size.span,
                    help=f"some argument needs an axis that is `{name}` alone",
                )


def _pack_names(frame: Frame) -> dict[str, Dim]:
    return {d.name: d for pack in frame.packs.values() for d in pack if d.name}


def _tensor_inputs(cx: Context, frame: Frame) -> Iterator[Input]:
    for value in frame.vars.values():
        if isinstance(value, Stored):
            yield cx.store[value.key].input
        elif isinstance(value, Tensor) and isinstance(value.node, Input):
            yield value.node
