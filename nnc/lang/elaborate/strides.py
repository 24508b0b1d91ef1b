"""Help for a sum of what a strided layer made and what went past it."""

from __future__ import annotations

from collections.abc import Sequence

from nnc.lang import ast
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.values import ModuleType, Tensor, Value


def stride_help(cx: Context, a: Value, b: Value, axis: int) -> str | None:
    """For a sum beside a strided layer: the same layer with a kernel of one element."""
    defn = cx.frame.module.defn if cx.frame.module is not None else None
    sizes = [v.shape[axis] for v in (a, b) if isinstance(v, Tensor)]
    strided = any(d.functions for d in sizes)
    if not strided and any(d.name is None and d.const is None for d in sizes):
        return None
    origins = [v.origin(axis) for v in (a, b) if isinstance(v, Tensor)]
    places = [o.span for o in origins if o is not None]
    for m in defn.members if defn is not None else ():
        if (
            isinstance(m, ast.MemberDecl)
            and m.name_span in places
            and isinstance(m.value, ast.Call)
        ):
            layer = cx.lookup(m.value.func.span.text)
            params = [p.name for p in layer.defn.params] if isinstance(layer, ModuleType) else []
            words = [_thin(a, params, i) for i, a in enumerate(m.value.args)]
            if "k" in params and "stride" in params:
                made = f"{m.value.func.span.text}({', '.join(w for w in words if w)})"
                return f"{'stride' if strided else 'project'} the skip path too: `{made}`"
    return None


def _thin(a: ast.Arg, params: Sequence[str], i: int) -> str:
    """An argument of a layer whose kernel becomes one element wide."""
    name = a.name or (params[i] if i < len(params) else "")
    if name == "k":
        return "1" if a.name is None else "k=1"
    if name == "pad":
        return "" if a.name is not None else "0"
    return a.span.text
