"""A call being matched."""

from __future__ import annotations

from dataclasses import dataclass

from nnc.diagnostics import Span
from nnc.lang import ast
from nnc.lang.dims import Dim
from nnc.lang.elaborate.context import Context, Frame
from nnc.lang.elaborate.values import Tensor


@dataclass(eq=False)
class Binding:
    """A call being matched: the callee's frame, and what is still to be solved."""

    cx: Context
    func: ast.FuncDef
    frame: Frame
    call: ast.Call
    pending: list[tuple[Dim, ast.Expr, Span, ast.Param]]
    owner_name: str
    real_from: tuple[str, Tensor] | None = None  # the parameter that decided what `real` is

    @property
    def shown(self) -> str:
        return self.owner_name or self.func.name
