"""Leaves that `init` fills from files: `body = ResNet18() from weights("resnet18", ...)`.

And the leaves that a module could have, for what a file holds beside its own.
"""

from __future__ import annotations

from collections.abc import Iterator

from nnc.ir.signature import Slot
from nnc.lang import ast
from nnc.lang.elaborate.members import subs
from nnc.lang.elaborate.mistakes import fail
from nnc.lang.elaborate.values import Instance
from nnc.lang.elaborate.walks import syntax


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


def absent(
    inst: Instance, prefix: str = "", made: ast.MemberDecl | None = None
) -> Iterator[tuple[str, str]]:
    """Keys of params whose condition does not hold, and why; `made`: the module's declaration."""
    for m in inst.defn.members:
        if isinstance(m, ast.ParamDecl) and m.name not in inst.leaves:
            yield f"{prefix}{m.key or m.name}", _reason(inst, m, made)
        elif isinstance(m, ast.MemberDecl):
            for name, sub in subs(m.name, inst.members.get(m.name)):
                yield from absent(sub, f"{prefix}{name}.", m)


def _reason(inst: Instance, p: ast.ParamDecl, made: ast.MemberDecl | None) -> str:
    """`the model declares conv1 with use_bias=false (resnet.nn:17)`."""
    used = {n.id for n in syntax(p.when) if isinstance(n, ast.Name)}
    calls = [c for c in syntax(made) if isinstance(c, ast.Call)] if made is not None else []
    for call in calls:
        params = zip(call.args, inst.defn.params, strict=False)
        given = [a.span for a, q in params if (a.name or q.name) in used]
        if made is not None and given and call.func.span.text.endswith(inst.defn.name):
            place = f"{given[0].source.name}:{given[0].line}"
            words = ", ".join(s.text for s in given)
            return f"the model declares {made.name} with {words} ({place})"
    where = f"{p.span.source.name}:{p.span.line}"
    return f"the model has it when {p.when.span.text if p.when else ''} ({where})"
