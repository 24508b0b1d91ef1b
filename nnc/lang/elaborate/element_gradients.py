"""`grad` in index notation: a gradient for each value of the index names.

y has a value for each index in force that it uses. What it is differentiated by is over index
names too (an argument or variable of a function that is called in index notation, an element
`x[i]`), or is one thing for all (a whole tensor, a module). With the same index names on both sides
each y depends on its own x only, so that the gradient of all y is what each has. For the other
index names of y there is a loop of gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nnc.diagnostics import Span
from nnc.ir.dependence import depends
from nnc.ir.expr import Const, Expr, Idx, Load, Op, Select, as_dtype, names, subst
from nnc.ir.graph import Axis, Compute, Grad, Input, Loop, Node, Part
from nnc.lang import ast
from nnc.lang.dims import Dim
from nnc.lang.elaborate.context import Context, Frame
from nnc.lang.elaborate.lifting import (
    Lifted,
    at_ranges,
    own_index,
    ranges_of,
    ranges_of_call,
    used_ranges,
)
from nnc.lang.elaborate.reads import read
from nnc.lang.elaborate.values import Tensor, Value, of_node
from nnc.lang.elaborate.walks import syntax
from nnc.lang.types import TensorType, is_float

# ---- functions that are called in index notation ----------------------------------------------


def prepare(cx: Context, frame: Frame, func: ast.FuncDef, effects: bool) -> None:
    """Before the body of a function is run in index notation: what `grad` in it is by becomes a
    tensor over the index names, arguments now and variables when they are assigned.

    Random numbers (`effects`) are others for each index.
    """
    frame.wrt = _targets(func)
    if frame.wrt:
        used = ranges_of_call(cx, frame.vars, frame.dims)
        also = names(cx.conds)  # values that stand in lazy branches use their names too
        every = (Axis(v, n) for v, n in cx.ranges.items())
        frame.outer = tuple(a for a in every if effects or a in used or a.var in also)
        for name in frame.wrt & frame.vars.keys():
            value = cx.tensor(frame.vars[name])
            frame.vars[name] = over_names(cx, frame, name, value, func.span)


def _targets(func: ast.FuncDef) -> frozenset[str]:
    """The names that `grad` in a function is by."""
    out: set[str] = set()
    for e in syntax(func.body):
        if isinstance(e, ast.Call) and isinstance(e.func, ast.Name) and e.func.id == "grad":
            for item in (i for a in e.args[1:2] for i in items_of(a.value)):
                base = item.value if isinstance(item, ast.Index) else item
                out |= {base.id} if isinstance(base, ast.Name) else set()
    return frozenset(out)


def items_of(e: ast.Expr) -> Sequence[ast.Expr]:
    return e.items if isinstance(e, ast.ListLit) else (e,)


def over_names(cx: Context, frame: Frame, name: str, value: Value, span: Span) -> Value:
    """The value of a variable; of one that `grad` is by, as a tensor over the index names."""
    if name not in frame.wrt or not isinstance(value, Tensor) or not is_float(value.dtype):
        return value
    outer = {*frame.outer, *ranges_of(cx, [value])}
    ordered = tuple(a for v, n in cx.ranges.items() if (a := Axis(v, n)) in outer)
    return Lifted(cx, ordered, span).of(value) if ordered else value


# ---- one gradient -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """A gradient of `y` in index notation, asked for at `span`; `checked` reports what has none."""

    cx: Context
    y: Tensor
    span: Span
    checked: Callable[[Node, list[Node]], None]

    def by(self, x: Tensor) -> Tensor:
        """By a variable: it has index names of its own, or none."""
        node, outer = _variable(self.cx, x, self.span)
        return self._parts([node], outer)[0]

    def by_all(self, xs: Sequence[Tensor]) -> list[Tensor]:
        """By tensors that are the same for all indices."""
        lifted = Lifted(self.cx, (), self.span)
        return self._parts([lifted.node(x) for x in xs], ())

    def by_part(self, e: ast.Index, x: Tensor, again: Callable[[Tensor], Tensor]) -> Tensor | None:
        """By `e`, a part of x such as `x[i]`; None: not one that can be told from the others.

        `again` gives y with another value of x. There the part is read from a tensor of its own,
        so that all gradients are one; unless y was made from x before this expression.
        """
        cx, value = self.cx, self.cx.eval(e)
        part = Place.of(cx, x, e)
        if part is None or not isinstance(value, Tensor):
            return None
        node, outer = _variable(cx, x, self.span)
        lifted = Lifted(cx, ranges_of(cx, [self.y, value]), self.span)
        own = lifted.node(value)
        other = Wanted(cx, again(part.apart(x, lifted.read(own))), self.span, self.checked)
        made = lifted.node(other.y)
        if depends(made, own) and not depends(made, node, without=own):
            return other.by(lifted.read(own))
        if {*part.outer(cx)} <= {*ranges_of(cx, [self.y])}:
            return self._parts([node], outer, part)[0]
        whole = self.by(x)
        return Tensor(value.type, lambda i: whole.at(part.index(i)), origins=value.origins)

    def _parts(
        self, wrt: list[Node], outer: tuple[Axis, ...], pick: Place | None = None
    ) -> list[Tensor]:
        """The gradients of each y by nodes over the index names `outer` (`pick`: a part of it)."""
        cx = self.cx
        more = tuple(a for a in ranges_of(cx, [self.y]) if a not in outer)
        turns = {a.var: Dim.of(cx.fresh_var(f"{a.var[1:]}turn")) for a in more}
        guarded = cx.guarded(self.y.at(()), {a.var for a in (*more, *outer)})
        y = self._compute(outer, subst(guarded, turns))
        self.checked(y, wrt)
        seed = self._compute(outer, Const(y.type.dtype, 1.0)) if outer else None
        place = cx.at(self.span)
        grad = Grad(type=y.type, span=place, y=y, wrt=tuple(wrt), seed=seed, regions=cx.regions)
        parts: list[Node] = [
            Part(type=w.type, span=place, source=grad, index=i) for i, w in enumerate(wrt)
        ]
        if pick is not None:
            index = own_index(cx, pick.shape)
            axes = tuple(Axis(str(i.dim.name), n) for i, n in zip(index, pick.shape, strict=True))
            read = at_ranges(parts[0], outer).at(pick.index(index))
            parts = [self._compute((*outer, *axes), subst(read, turns))]
        for a in reversed(more):
            parts = self._stacked(parts, str(turns[a.var].name), a.extent)
        return [at_ranges(p, (*more, *outer)) for p in parts]

    def _compute(self, axes: tuple[Axis, ...], body: Expr) -> Compute:
        kind = TensorType(body.dtype, tuple(a.extent for a in axes))
        place = self.cx.at(self.span)
        return Compute(type=kind, span=place, axes=axes, body=body, regions=self.cx.regions)

    def _stacked(self, values: list[Node], turn: str, trip: Dim) -> list[Node]:
        """The values of all turns."""
        loop = Loop(
            type=values[0].type.stacked(trip),
            span=self.cx.at(self.span),
            var=turn,
            trip=trip,
            yields=tuple(values),
            regions=self.cx.regions,
        )
        return [Part.of(loop, k) for k in range(len(values))]


def _variable(cx: Context, x: Tensor, span: Span) -> tuple[Node, tuple[Axis, ...]]:
    """A variable as a node, and its index names."""
    if x.node is None and x.over is not None:
        return x.over.node, x.over.outer
    outer = ranges_of(cx, [x]) if x.node is None else ()
    return Lifted(cx, outer, span).node(x), outer


@dataclass(frozen=True)
class Place:
    """A part of a tensor in index notation, `x[i]` or `x[b]`: `index(own)` is the place in x of
    its element `own`; `kept`: for each axis of x that of the part, or None."""

    shape: tuple[Dim, ...]
    index: Callable[[tuple[Expr, ...]], tuple[Expr, ...]]
    kept: tuple[int | None, ...]

    @staticmethod
    def of(cx: Context, x: Tensor, e: ast.Index) -> Place | None:
        """None: a slice, or with a value outside."""
        whole = Input(type=x.type, name="$part")
        part = read(cx, of_node(whole), e)
        if not isinstance(part, Tensor):
            return None
        own = own_index(cx, part.shape)
        found = part.at(own)
        if not isinstance(found, Load) or found.other is not None or found.tensor is not whole:
            return None
        bare = {o.dim: k for k, o in enumerate(own)}
        kept = tuple(bare.get(i.dim) if isinstance(i, Idx) else None for i in found.index)
        if len({k for k in kept if k is not None}) < len(own):
            return None

        def index(own: tuple[Expr, ...]) -> tuple[Expr, ...]:
            place = part.at(own)
            assert isinstance(place, Load), place
            return place.index

        return Place(part.shape, index, kept)

    def outer(self, cx: Context) -> tuple[Axis, ...]:
        """The index names in force that the place uses."""
        return used_ranges(cx, list(self.index(own_index(cx, self.shape))))

    def apart(self, x: Tensor, part: Tensor) -> Tensor:
        """x, with this part of it read from `part`."""

        def at(index: tuple[Expr, ...]) -> Expr:
            rows = [(index[a], k) for a, k in enumerate(self.kept) if k is not None]
            own = tuple(i for i, _ in sorted(rows, key=lambda row: row[1]))
            here: Expr | None = None
            for a, b, k in zip(index, self.index(own), self.kept, strict=True):
                apart = _difference(a, b) if k is None else 0
                if apart is None:
                    same = Op("bool", "eq", (as_dtype(a, "i64"), as_dtype(b, "i64")))
                    here = same if here is None else Op("bool", "and", (here, same))
                elif apart:
                    return x.at(index)
            inside = part.at(own)
            return inside if here is None else Select(x.dtype, here, inside, x.at(index))

        return Tensor(x.type, at, None, x.letters, x.origins, x.place)


def _difference(a: Expr, b: Expr) -> int | None:
    """a - b, when it is known."""
    if isinstance(a, Idx) and isinstance(b, Idx):
        return (a.dim - b.dim).const
    return 0 if a is b else None
