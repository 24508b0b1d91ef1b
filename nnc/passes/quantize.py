"""Contractions with a parameter computed on bytes: activations of 8 bits without sign, weights of 8
bits with, sums of 32 bits.

`y[n, o] = sum[i] x[n, i] * w[o, i]` becomes four nodes (`p` stands for the parameter's name):

    u[n, i]   = the byte round(x[n, i] * p.input[0] + p.input[1])
    q[n, k]   = four u[n, 4*k + j], a word
    s[n, o]   = sum[k] dot4(q[n, k], p.int8[o, k])
    y[n, o]   = f32(s[n, o] - p.offset[o]) * p.scale[o]

`p.input` holds 1 / (the step of x) and the byte that stands for 0, `p.scale` the step of x times
that of the output channel's weights, `p.offset` the byte of 0 times the sum of the channel's
weights. They are inputs like the parameter itself: the code knows no number of them. Where `x` is
read with `else 0`, `q` holds the bytes of 0 around it, so that the sum has no condition.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from nnc.ir.expr import Const, Expr, Idx, Load, Op, subst_exprs
from nnc.ir.graph import Axis, Compute, Graph, Input, Node, toposort
from nnc.ir.rewrite import replace_operands, with_roots
from nnc.lang.dims import ONE, ZERO, Dim, dim_prod
from nnc.lang.types import TensorType

LEAST = 16  # products in a sum: fewer are not worth it
WORD = 4  # bytes

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
    def leaves(self) -> dict[str, TensorType]:
        """The inputs in the parameter's place, by what follows its name."""
        shape = self.weight.type.shape
        words = tuple(
            -(-_number(n) // WORD) if d == self.packed else n for d, n in enumerate(shape)
        )
        channels = tuple(shape[d] for d in self.channels)
        return {
            "int8": TensorType("i32", tuple(map(Dim.of, words))),
            "scale": TensorType("f32", channels),
            "offset": TensorType("i32", channels),
            "input": TensorType("f32", (Dim.of(2),)),
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
    """The graph with the contractions with these parameters on bytes.

    `inputs` gives the input of a name and type; the graph's list of inputs is left as it is.
    """
    new: dict[Node, Node] = {}
    bytes_: dict[Node, Compute] = {}  # by what they are of: the ranges of one value are equal
    for node in toposort(graph.roots):
        made = replace_operands(node, new.__getitem__)
        found = site(made) if isinstance(made, Compute) else None
        if found is not None and found.weight.name in names:
            made = _rewritten(found, inputs, bytes_)
        new[node] = made
    return with_roots(graph, [new[r] for r in graph.roots])


def _rewritten(s: Site, inputs: Inputs, bytes_: dict[Node, Compute]) -> Node:
    node, name = s.node, s.weight.name
    given = {k: inputs(f"{name}.{k}", t) for k, t in s.leaves.items()}
    made = bytes_.setdefault(s.source, _bytes(s, given["input"]))
    low, words = _words(s, given["input"], made)
    var = s.index[s.packed]
    raxes = tuple(Axis(a.var, words.type.shape[s.at]) if a.var == var else a for a in node.raxes)
    moved = [Idx(i.dim - low[d]) for d, i in enumerate(s.x.index) if isinstance(i, Idx)]
    weight = Load("i32", given["int8"], tuple(Idx(Dim.of(v) if v else ZERO) for v in s.index))
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


def _named(node: Node, what: str) -> str:
    return f"{node.name}.{what}" if node.name else what


def _words(s: Site, given: Input, made: Compute) -> tuple[list[Dim], Compute]:
    """The activations as words, and where each axis of them begins."""
    source, shape = s.source, s.source.type.shape
    margins = _margins(s.node, s.x) if s.x.other is not None else None
    ranges = margins or [(ZERO, n) for n in shape]
    length = _number(shape[s.at])
    ranges[s.at] = (ZERO, Dim.of(-(-length // WORD)))
    axes = tuple(Axis(f"$q{d}", n) for d, (_, n) in enumerate(ranges))
    low = [a for a, _ in ranges]

    def element(j: int) -> Expr:
        index = [Dim.of(a.var) + low[d] for d, a in enumerate(axes)]
        index[s.at] = Dim.of(axes[s.at].var) * WORD + j
        inside = margins is None and (length % WORD == 0 or j < length % WORD)
        other = None if inside else _byte(Const("f32", 0.0), given)
        return Op("i32", "cast", (Load("u8", made, tuple(map(Idx, index)), other),))

    body: Expr = element(0)
    for j in range(1, WORD):
        moved = Op("i32", "shl", (element(j), Const("i32", 8 * j)))
        body = Op("i32", "bitor", (body, moved))
    return low, Compute(
        type=TensorType("i32", tuple(a.extent for a in axes)),
        span=s.node.span,
        name=_named(source, "words"),
        axes=axes,
        body=body,
    )


def _bytes(s: Site, given: Input) -> Compute:
    """The activations as bytes: a quarter of what they are when they go through memory."""
    axes = tuple(Axis(f"$q{d}", n) for d, n in enumerate(s.source.type.shape))
    x = Load("f32", s.source, tuple(Idx(Dim.of(a.var)) for a in axes))
    return Compute(
        type=TensorType("u8", s.source.type.shape),
        span=s.node.span,
        name=_named(s.source, "bytes"),
        axes=axes,
        body=_byte(x, given),
    )


def _byte(x: Expr, given: Input) -> Expr:
    """0 ... 255 (NaN is 0)."""
    step, zero = (Load("f32", given, (Idx(Dim.of(i)),)) for i in (0, 1))
    y: Expr = Op("f32", "add", (Op("f32", "mul", (x, step)), zero))
    y = Op("f32", "round", (y,))
    y = Op("f32", "min", (Op("f32", "max", (y, Const("f32", 0.0))), Const("f32", 255.0)))
    return Op("u8", "cast", (y,))
