"""Contractions with a parameter computed on bytes: activations of 8 bits without sign, weights of 8
bits with, sums of 32 bits.

`y[n, o] = sum[i] x[n, i] * w[o, i]` becomes four nodes (`p` stands for the parameter's name):

    u[n, i]   = the byte round(x[n, i] * p.input[0] + p.input[1])
    q[n, k]   = four u[n, 4*k + j], a word
    s[n, o]   = sum[k] dot4(q[n, k], p.int8[k, o])
    y[n, o]   = f32(s[n, o] - p.offset[o]) * p.scale[o]

`p.input` holds 1 / (the step of x), the byte that stands for 0, and the step; `p.scale` the step
times that of the output channel's weights, `p.offset` the byte of 0 times the sum of the channel's
weights. They are inputs like the parameter itself: the code knows no number of them. Where `x` is
read with `else 0`, `u` holds the bytes of 0 around it, so that the sum has no condition. The axis
along which bytes make words is the last of `u`: a word is what lies in memory there. Where `x` is
read again at the same element once such a sum is known (a residual), it is read as its byte: else
four times as many bytes would go through memory for that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from nnc.ir.expr import Const, Expr, Idx, Load, Op, index_number, names, subst_exprs
from nnc.ir.graph import Axis, Compute, Graph, Input, Node, toposort
from nnc.ir.rewrite import replace_operands, with_roots
from nnc.lang.dims import ONE, ZERO, Dim, dim_prod
from nnc.lang.types import TensorType
from nnc.passes.layout import ordered, reads_own_element
from nnc.passes.linear import folded
from nnc.passes.maxima import before_maxima
from nnc.passes.schedule.words import WORD, word

LEAST = 16  # products in a sum: fewer are not worth it

Inputs = Callable[[str, TensorType], Input]


@dataclass(frozen=True)
class Site:
    """A contraction with a parameter. `index`: the variable of each of the parameter's axes (""
    where the only index is 0); `channels`: those that are kept; `packed`: the axis of the parameter
    four of whose elements share a word, and `at` the one of what `x` reads."""

    node: Compute
    weight: Input
    index: tuple[str, ...]
    channels: tuple[int, ...]
    packed: int
    x: Load
    at: int

    @property
    def source(self) -> Node:
        """The activations."""
        return self.x.tensor  # type: ignore[return-value]

    @property
    def reduced(self) -> tuple[int, ...]:
        """The parameter's axes that are summed over."""
        return tuple(d for d in range(len(self.index)) if d not in self.channels)

    @property
    def order(self) -> tuple[int, ...]:
        """The parameter's axes as its words have them: summed ones, the packed one, channels."""
        return (*(d for d in self.reduced if d != self.packed), self.packed, *self.channels)

    @property
    def leaves(self) -> dict[str, TensorType]:
        """The inputs in the parameter's place, by what follows its name."""
        shape = self.weight.type.shape
        words = tuple(
            Dim.of(-(-_number(shape[d]) // WORD)) if d == self.packed else shape[d]
            for d in self.order
        )
        channels = tuple(shape[d] for d in self.channels)
        return {
            "int8": TensorType("i32", words),
            "scale": TensorType("f32", channels),
            "offset": TensorType("i32", channels),
            "input": TensorType("f32", (Dim.of(3),)),
        }


def _number(d: Dim) -> int:
    assert d.const is not None, d
    return d.const


# ---- finding -----------------------------------------------------------------------------------


def sites(graph: Graph) -> Iterator[Site]:
    """The contractions that can be computed on bytes. (None inside of run-time loops.)"""
    for node in toposort(graph.roots):
        if isinstance(node, Compute) and (found := site(node)) is not None:
            yield found


def site(node: Compute) -> Site | None:
    """The node as a contraction with a parameter, if it is one."""
    match node.body:
        case Op(fn="mul", args=(Load() as a, Load() as b)) if node.op == "sum":
            if node.type.dtype != "f32":
                return None
            return _site(node, a, b) or _site(node, b, a)
    return None


def _site(node: Compute, x: Load, w: Load) -> Site | None:
    w = _through_views(w)
    weight, index = w.tensor, _bare(w)
    if not isinstance(weight, Input) or weight.kind != "param" or index is None:
        return None
    if weight.type.dtype != "f32" or any(n.const is None for n in weight.type.shape):
        return None
    kept, reduced = {a.var for a in node.axes}, {a.var for a in node.raxes}
    used = frozenset(n for i in x.index if isinstance(i, Idx) for n in i.dim.names)
    channels = tuple(d for d, v in enumerate(index) if v in kept)
    plain = all(isinstance(i, Idx) for i in x.index) and x.check is None
    zero = x.other is None or (isinstance(x.other, Const) and x.other.value == 0)
    count = dim_prod(a.extent for a in node.raxes).const
    if not plain or not zero or count is None or count < LEAST or not channels:
        return None
    if reduced - set(index) or reduced - used or any(index[d] in used for d in channels):
        return None
    found = _packed(x, index, {a.var: _number(a.extent) for a in node.raxes})
    if found is None or (x.other is not None and _margins(node, x) is None):
        return None
    return Site(node, weight, index, channels, found[0], x, found[1])


def _through_views(e: Load) -> Load:
    """The load behind nodes that only move elements."""
    while isinstance(e.tensor, Compute) and not e.tensor.raxes and e.other is None:
        body = e.tensor.body
        if not isinstance(body, Load) or body.other is not None or body.check is not None:
            break
        env = {a.var: i for a, i in zip(e.tensor.axes, e.index, strict=True)}
        moved = subst_exprs(body, env)
        assert isinstance(moved, Load), moved
        e = moved
    return e


def _bare(w: Load) -> tuple[str, ...] | None:
    """The variables of the indices, each one alone and once."""
    if w.other is not None or w.check is not None:
        return None
    out: list[str] = []
    for i, n in zip(w.index, w.tensor.type.shape, strict=True):
        if not isinstance(i, Idx):
            return None
        name = i.dim.name
        if name is None and not (i.dim == ZERO and n == ONE):
            return None
        out.append(name or "")
    named = [v for v in out if v]
    return tuple(out) if len(set(named)) == len(named) else None


def _packed(x: Load, index: tuple[str, ...], reduced: Mapping[str, int]) -> tuple[int, int] | None:
    """The axes of weights and activations along which four elements make a word: the longest that
    both read by a variable alone."""
    found: list[tuple[int, int, int]] = []
    for at, i in enumerate(x.index):
        var = i.dim.name if isinstance(i, Idx) else None
        others = (j for d, j in enumerate(x.index) if d != at and isinstance(j, Idx))
        alone = var in reduced and var in index and not any(var in j.dim.names for j in others)
        if var is not None and alone and x.tensor.type.shape[at].const == reduced[var]:
            found.append((reduced[var], -index.index(var), at))
    if not found:
        return None
    _, d, at = max(found)
    return -d, at


def _margins(node: Compute, x: Load) -> list[tuple[Dim, Dim]] | None:
    """The least index of each axis of x, and how many there are; None: not known."""
    extents = {a.var: a.extent for a in (*node.axes, *node.raxes)}
    out = []
    for i in x.index:
        assert isinstance(i, Idx), x
        low, high = i.dim, i.dim
        for var in sorted(i.dim.names & extents.keys()):
            form = i.dim.linear_in(var)
            if form is None or form[0].const is None:
                return None
            last = extents[var] - 1
            up = form[0].const > 0
            low = low.subst({var: ZERO if up else last})
            high = high.subst({var: last if up else ZERO})
        out.append((low, high - low + 1))
    return out


# ---- rewriting ---------------------------------------------------------------------------------


def quantized(graph: Graph, names: Collection[str], inputs: Inputs) -> Graph:
    """The graph with the contractions with these parameters on bytes, intermediate values in the
    order in which these are read.

    `inputs` gives the input of a name and type; the graph's list of inputs is left as it is.
    """
    new: dict[Node, Node] = {}
    # By what they are of, and their last axis: the ranges of one value are equal.
    bytes_: dict[tuple[Node, int], Made] = {}
    for node in toposort(graph.roots):
        made = replace_operands(node, new.__getitem__)
        found = site(made) if isinstance(made, Compute) else None
        if found is not None and found.weight.name in names:
            made = _rewritten(found, inputs, bytes_)
        new[node] = made
    whole = _read_again(with_roots(graph, [new[r] for r in graph.roots]), bytes_)
    given = {by for _, by in bytes_.values()}
    positive = partial(_positive, given)
    whole = before_maxima(whole, positive)
    return ordered(folded(whole, _starts(whole), positive))


def _positive(given: Collection[Node], e: Load) -> bool:
    """Whether a load is a step, or 1 / it."""
    return e.tensor in given and index_number(e.index[0]) in (0, 2)


def _starts(graph: Graph) -> dict[Node, frozenset[int]]:
    """The sums of words, and which of their axes are channels; bytes."""
    out: dict[Node, frozenset[int]] = {}
    for node in graph.order:
        match node:
            case Compute(op="sum", body=Op(fn="dot4", args=(_, Load() as w))):
                used = names([w])
                out[node] = frozenset(d for d, a in enumerate(node.axes) if a.var in used)
            case Compute(body=Op("u8", "cast")):
                out[node] = frozenset()
    return out


Made = tuple[Compute, Input]  # bytes, and the numbers by which they were made


def _read_again(graph: Graph, bytes_: Mapping[tuple[Node, int], Made]) -> Graph:
    """Residuals read a value as its byte, if nothing else needs its memory."""
    replaced: dict[tuple[Node, Node], tuple[int, Made]] = {}
    for (source, at), made in bytes_.items():
        if isinstance(source, Compute) and source not in graph.roots:
            readers = _residuals(graph, source, made[0])
            replaced |= {(r, source): (at, made) for r in readers}
    new: dict[Node, Node] = {}

    def operand(node: Node, of: Node) -> Node:
        found = replaced.get((node, of))
        if found is None:
            return new[of]
        at, (made, given) = found
        assert isinstance(of, Compute)
        return _value(of, at, new[made], given)

    for node in graph.order:
        new[node] = replace_operands(node, partial(operand, node))
    return with_roots(graph, [new[r] for r in graph.roots])


def _residuals(graph: Graph, source: Node, made: Node) -> list[Node]:
    """The readers of a value besides `made`, if all come after `made` was used and read it at their
    own element."""
    late, found = {made}, []
    for node in graph.order:
        if not late.isdisjoint(node.read):
            late.add(node)
        if source in node.read and node is not made:
            if node not in late or not reads_own_element(node, source):
                return []
            found.append(node)
    return found


def _value(of: Compute, at: int, made: Node, given: Input) -> Compute:
    """What the bytes stand for."""
    axes = tuple(Axis(f"$q{d}", n) for d, n in enumerate(of.type.shape))
    index = [Idx(Dim.of(a.var)) for a in axes]
    index.append(index.pop(at))
    zero, step = (Load("f32", given, (Idx(Dim.of(i)),)) for i in (1, 2))
    byte = Op("f32", "cast", (Load("u8", made, tuple(index)),))
    body = Op("f32", "mul", (Op("f32", "sub", (byte, zero)), step))
    return Compute(type=of.type, span=of.span, name=of.name, axes=axes, body=body)


def _rewritten(s: Site, inputs: Inputs, bytes_: dict[tuple[Node, int], Made]) -> Node:
    node, name = s.node, s.weight.name
    given = {k: inputs(f"{name}.{k}", t) for k, t in s.leaves.items()}
    low, words = _operand(s, given["input"], bytes_)
    var = s.index[s.packed]
    reduced = sorted(node.raxes, key=lambda a: a.var == var)
    raxes = tuple(Axis(a.var, words.type.shape[-1]) if a.var == var else a for a in reduced)
    moved = [Idx(i.dim - low[d]) for d, i in enumerate(s.x.index) if isinstance(i, Idx)]
    moved.append(moved.pop(s.at))
    own = (Dim.of(v) if (v := s.index[d]) else ZERO for d in s.order)
    weight = Load("i32", given["int8"], tuple(map(Idx, own)))
    product = Op("i32", "dot4", (Load("i32", words, tuple(moved)), weight))
    total = replace(
        node, type=node.type.with_dtype("i32"), raxes=raxes, body=product, name=_named(node, "sum")
    )
    here = Load("i32", total, tuple(Idx(Dim.of(a.var)) for a in node.axes))
    channel = tuple(Idx(Dim.of(s.index[d])) for d in s.channels)
    shifted = Op("i32", "sub", (here, Load("i32", given["offset"], channel)))
    scale = Load("f32", given["scale"], channel)
    body = Op("f32", "mul", (Op("f32", "cast", (shifted,)), scale))
    return replace(node, raxes=(), op="", body=body)


def _operand(
    s: Site, given: Input, bytes_: dict[tuple[Node, int], Made]
) -> tuple[list[Dim], Compute]:
    """The activations as words, and where each of their axes begins."""
    shape = s.source.type.shape
    margins = _margins(s.node, s.x) if s.x.other is not None else None
    ranges = margins or [(ZERO, n) for n in shape]
    length = _number(shape[s.at])
    whole = -(-length // WORD) * WORD
    ranges[s.at] = (ZERO, Dim.of(whole))
    low = [a for a, _ in ranges]
    if length <= WORD:
        return low, _single_words(s, given, ranges)
    key = s.source, s.at
    if key not in bytes_:
        bytes_[key] = _bytes(s, given), given
    made, by = bytes_[key]
    if margins is not None or whole != length:
        made = _padded(s, by, made, ranges)
    return low, _words(made)


def _single_words(s: Site, given: Input, ranges: list[tuple[Dim, Dim]]) -> Compute:
    """Words of all bytes that there are at a place: made at once, for there is little along their
    axis to go by. Where no byte is, weights are 0."""
    ranges = [(a, ONE if d == s.at else n) for d, (a, n) in enumerate(ranges)]
    axes = tuple(Axis(f"$p{d}", n) for d, n in enumerate(_last(s, [n for _, n in ranges])))
    *index, _ = (
        Dim.of(a.var) + b for a, b in zip(axes, _last(s, [a for a, _ in ranges]), strict=True)
    )

    def byte(j: int) -> Expr:
        at = (*index[: s.at], Dim.of(j), *index[s.at :])
        x = Load("f32", s.source, tuple(map(Idx, at)), Const("f32", 0.0))
        return Op("i32", "cast", (_byte(x, given),))

    body = byte(0)
    for j in range(1, _number(s.source.type.shape[s.at])):
        part = Op("i32", "shl", (byte(j), Const("i32", 8 * j)))
        body = Op("i32", "bitor", (body, part))
    return Compute(
        type=TensorType("i32", tuple(a.extent for a in axes)),
        span=s.node.span,
        name=_named(s.source, "words"),
        axes=axes,
        body=body,
    )


def _named(node: Node, what: str) -> str:
    return f"{node.name}.{what}" if node.name else what


def _last(s: Site, of: list[Dim]) -> tuple[Dim, ...]:
    """What there is of each axis of the activations, that of the words last."""
    return (*of[: s.at], *of[s.at + 1 :], of[s.at])


def _bytes(s: Site, given: Input) -> Compute:
    """The activations as bytes: a quarter of what they are when they go through memory."""
    shape = s.source.type.shape
    axes = [Axis(f"$q{d}", n) for d, n in enumerate(shape)]
    x = Load("f32", s.source, tuple(Idx(Dim.of(a.var)) for a in axes))
    axes.append(axes.pop(s.at))
    return Compute(
        type=TensorType("u8", tuple(a.extent for a in axes)),
        span=s.node.span,
        name=_named(s.source, "bytes"),
        axes=tuple(axes),
        body=_byte(x, given),
    )


def _padded(s: Site, given: Input, made: Compute, ranges: list[tuple[Dim, Dim]]) -> Compute:
    """The bytes with those of 0 around them, so many that they make words."""
    axes = tuple(Axis(f"$p{d}", n) for d, n in enumerate(_last(s, [n for _, n in ranges])))
    begins = _last(s, [a for a, _ in ranges])
    index = tuple(Idx(Dim.of(a.var) + b) for a, b in zip(axes, begins, strict=True))
    return Compute(
        type=TensorType("u8", tuple(a.extent for a in axes)),
        span=s.node.span,
        name=_named(s.source, "padded"),
        axes=axes,
        body=Load("u8", made, index, _byte(Const("f32", 0.0), given)),
    )


def _words(made: Compute) -> Compute:
    """Four bytes each, as they lie in memory (see `nnc.passes.schedule.words`)."""
    *rest, length = made.type.shape
    shape = (*rest, Dim.of(_number(length) // WORD))
    axes = tuple(Axis(f"$w{d}", n) for d, n in enumerate(shape))
    first = [Dim.of(a.var) for a in axes]
    first[-1] = first[-1] * WORD
    return Compute(
        type=TensorType("i32", shape),
        span=made.span,
        name=_named(made, "words"),
        axes=axes,
        body=word(made, first),
    )


def _byte(x: Expr, given: Input) -> Expr:
    """0 ... 255: casts saturate (NaN is 0)."""
    step, zero = (Load("f32", given, (Idx(Dim.of(i)),)) for i in (0, 1))
    y: Expr = Op("f32", "add", (Op("f32", "mul", (x, step)), zero))
    return Op("u8", "cast", (Op("f32", "round", (y,)),))
