"""An extreme value over a window is found along its last axis after the others.

`max[u, v](x[i*s + u, j*s + v])` is `max[v](t[i, j*s + v])` with `t[i, w] = max[u](x[i*s + u, w])`:
for 3 x 3 places six reads in place of nine, three of them of elements that follow each other. `t`
is a row that stays in the cache. (A sum would be added in another order.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nnc.ir.expr import Expr, Idx, Load, names
from nnc.ir.graph import Axis, Compute, Graph, Node
from nnc.ir.rewrite import replace_operands, with_roots
from nnc.ir.scalar import is_const
from nnc.lang.dims import Dim
from nnc.lang.types import TensorType
from nnc.passes.schedule.space import NEUTRAL

_PLACES = ("argmax", "argmin")
_STORED = 2  # reads that an element of `t` costs beyond those of its window


@dataclass(frozen=True)
class _Window:
    """`load`, whose last index moves by `step` with the last kept axis, and with `last`."""

    load: Load
    others: tuple[Axis, ...]
    last: Axis
    step: int


def separate(graph: Graph) -> Graph:
    """The same function with such windows as two reductions."""
    if not any(_may(n) for n in graph.order):
        return graph
    placed = {o for n in graph.order if isinstance(n, Compute) and n.op in _PLACES for o in n.read}
    new: dict[Node, Node] = {}
    for node in graph.order:
        moved = replace_operands(node, new.__getitem__)
        if isinstance(moved, Compute) and _may(moved) and placed.isdisjoint(node.read):
            found = _window(moved)
            if found is not None and _pays(found):
                moved = _two(moved, found)
        new[node] = moved
    return with_roots(graph, [new[r] for r in graph.roots])


def _may(node: Node) -> bool:
    return isinstance(node, Compute) and node.op in ("max", "min") and len(node.raxes) > 1


def _window(node: Compute) -> _Window | None:
    e = node.body
    if not isinstance(e, Load) or e.check is not None or not _plain(e.index) or not node.axes:
        return None
    if not (e.other is None or is_const(e.other, NEUTRAL[node.op])):
        return None
    *before, end = e.index
    assert isinstance(end, Idx), e
    kept = node.axes[-1]
    mine = [a for a in node.raxes if a.var in end.dim.names]
    form = end.dim.linear_in(kept.var)
    if len(mine) != 1 or form is None or names(before) & {kept.var, mine[0].var}:
        return None
    along = form[1].linear_in(mine[0].var)
    step = form[0].const
    if step is None or step < 1 or along is None or along[1].const is None:
        return None
    others = tuple(a for a in node.raxes if a is not mine[0])
    return _Window(e, others, mine[0], step)


def _plain(index: Sequence[Expr]) -> bool:
    return bool(index) and all(isinstance(i, Idx) for i in index)


def _pays(w: _Window) -> bool:
    """Counted for each result; elements `step` apart cost twice as much."""
    others, last = math.prod(a.extent.const or 0 for a in w.others), w.last.extent.const or 0
    apart = 1 if w.step == 1 else 2
    return others * last * apart > others * w.step + last * apart + _STORED


def _two(node: Compute, w: _Window) -> Compute:
    row = replace(node.axes[-1], extent=w.load.tensor.type.shape[-1])
    axes = (*node.axes[:-1], row)
    *before, end = w.load.index
    whole = replace(w.load, index=(*before, Idx(Dim.of(row.var))))
    kind = TensorType(node.type.dtype, tuple(a.extent for a in axes))
    rows = replace(node, type=kind, axes=axes, raxes=w.others, body=whole)
    index = (*(Idx(Dim.of(a.var)) for a in node.axes[:-1]), end)
    return replace(node, raxes=(w.last,), body=Load(kind.dtype, rows, index, w.load.other))
