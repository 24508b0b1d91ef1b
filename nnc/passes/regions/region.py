"""What a region is: its nodes with their roles, and how each contraction reads a strip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nnc.ir.expr import Expr
from nnc.ir.graph import Axis, Compute, Node
from nnc.lang.dims import Dim


@dataclass(frozen=True)
class Side:
    """A contraction with a strip: its factor over the strip's axes, and the other one."""

    strip: Expr
    other: Expr
    rest: tuple[Axis, ...]  # kept axes of the other factor only
    masks: tuple[Expr, ...] = ()
    divisor: Divisor | None = None


@dataclass(frozen=True, eq=False)
class Divisor:
    """What a value is divided by at the end, in place of every element of a strip `of` it."""

    of: Node
    by: Expr  # in the variables of that strip


@dataclass(frozen=True, eq=False)
class Region:
    """Nodes (operands first) with their roles.

    `strip`: a matrix; `row`: one value for each row; `value`, `column`: contractions of strips;
    `after`: an element-wise function of a value.
    `env`: the variables of members that are `outer`, `row` and `col`, by the names they have here.
    `mask`: dims of `row`, `col` and sizes that are >= 0 at all columns that count.
    """

    outer: tuple[Axis, ...]
    row: Axis
    col: Axis
    nodes: tuple[Compute, ...]
    roles: Mapping[Node, str]
    env: Mapping[Node, Mapping[str, str]]
    sides: Mapping[Node, Side]
    values: Mapping[Node, Node]  # of each `after`; its `env` has the variables of that value
    mask: tuple[Dim, ...]

    @property
    def by_columns(self) -> bool:
        """Whether it adds up over rows: then one thread does all rows of an outer iteration."""
        return "column" in self.roles.values()
