"""`probe p`: values that are results of an export when somebody asks for them.

A probe costs nothing in the graph of an export: it only remembers which node holds the value. In a
run-time loop the loop yields it, which is dropped again where nothing reads it.
"""

from __future__ import annotations

from collections.abc import Iterator

from nnc.ir.graph import Node
from nnc.lang import ast
from nnc.lang.elaborate.arith import adapt
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.lifting import Lifted, ranges_of
from nnc.lang.elaborate.mistakes import Poisoned, fail
from nnc.lang.elaborate.values import (
    Bool,
    Tensor,
    Tree,
    Tuple,
    Unknown,
    Value,
    Weak,
    WeakTensor,
)
from nnc.lang.elaborate.words import describe


def run_probe(cx: Context, stmt: ast.Probe) -> None:
    for name in stmt.names:
        value = cx.tensor(cx.eval(name))
        parts = list(_tensors(cx, name, name.id, value))
        if cx.generic:
            continue
        for path, tensor in parts:  # in index notation the value of every element
            outer = ranges_of(cx, [tensor])
            _record(cx, path, Lifted(cx, outer, name.span).node(tensor))


def _tensors(cx: Context, name: ast.Name, path: str, value: Value) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a value consists of, each with its path."""
    match value:
        case Unknown():
            raise Poisoned
        case Tensor():
            yield path, value
        case Weak() | WeakTensor() | Bool():
            integral = isinstance(value, Weak) and value.kind == "int"
            made = adapt(cx, value, "i32" if integral else cx.frame.real, name.span)
            if isinstance(made, Tensor):
                yield path, made
        case Tuple(items=items):
            for i, item in enumerate(items):
                yield from _tensors(cx, name, f"{path}.{i}", cx.tensor(item))
        case Tree(leaves=leaves):
            for key, leaf in leaves.items():
                yield from _tensors(cx, name, f"{path}.{key}", cx.tensor(leaf))
        case _:
            help = "a tensor, a tuple or a tree of tensors can be probed"
            raise fail("E0203", f"{describe(value)} is no tensor", name.span, help=help)


def _record(cx: Context, name: str, node: Node) -> None:
    path = f"{prefix}.{name}" if (prefix := _path(cx)) else name
    full, n = path, 1
    while full in cx.probes:
        n += 1
        full = f"{path}#{n}"
    cx.probes[full] = node


def _path(cx: Context) -> str:
    """The running module's path, then the functions called from it."""
    parts: list[str] = []
    for call in reversed(cx.calls):
        if call.path is not None:
            return ".".join([call.path, *reversed(parts)])
        parts.append(call.func.name)
    return ".".join([*([cx.root] if cx.root else []), *reversed(parts)])


def shown(probes: dict[str, Node], roots: list[str]) -> dict[str, Node]:
    """By the paths that users write: without the argument's name where that is unambiguous."""
    short = {full: _without(full, roots) for full in probes}
    taken = list(short.values())
    return {s if taken.count(s) == 1 else full: probes[full] for full, s in short.items()}


def _without(path: str, roots: list[str]) -> str:
    head, dot, rest = path.partition(".")
    return rest if dot and head in roots else path
