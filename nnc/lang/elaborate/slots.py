"""Leaves that `init` fills from files: `body = ResNet18() from weights("resnet18", ...)`."""

from __future__ import annotations

from collections.abc import Iterator

from nnc.ir.signature import Slot
from nnc.lang import ast
from nnc.lang.elaborate.members import subs
from nnc.lang.elaborate.mistakes import fail
from nnc.lang.elaborate.values import Instance


def slots(inst: Instance, prefix: str = "") -> Iterator[Slot]:
    """The slots of a module and of its sub-modules, in order of declaration."""
    for m in inst.defn.members:
        if not isinstance(m, ast.MemberDecl):
            continue
        found = list(subs(m.name, inst.members.get(m.name)))
        if m.weights is not None:
            if not found:
                raise fail("E0701", f"`{m.name}` has no tensors to load", m.weights.span)
            yield _slot(m.weights, f"{prefix}{m.name}.")
        for name, sub in found:
            yield from slots(sub, f"{prefix}{name}.")


def _slot(w: ast.Weights, prefix: str) -> Slot:
    rename: dict[str, str] = {}
    skip: tuple[str, ...] = ()
    for arg in w.args:
        match arg.name, arg.value:
            case "rename", ast.DictLit(items=items):
                rename = dict(items)
            case "skip", ast.ListLit(items=items) if all(isinstance(i, ast.Str) for i in items):
                skip = tuple(i.value for i in items if isinstance(i, ast.Str))
            case _:
                raise fail(
                    "E0802",
                    "`weights` takes a slot, `rename` and `skip`",
                    arg.span,
                    help='`weights("slot", rename={"old": "new"}, skip=["fc.*"])`',
                )
    return Slot(w.slot, prefix, rename, skip, f"{w.span.source.name}:{w.span.line}")
