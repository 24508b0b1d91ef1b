"""Scalar expressions: the body of a `Compute`, shared by Graph and Program.

An `Expr` is a DAG compared by identity; sharing is by reference. Integer polynomials over sizes and
loop variables are `Idx`, so the dim algebra does all affine reasoning. Loop variables are names
with a leading `$`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Protocol

from nnc.diagnostics import Span
from nnc.lang.dims import Dim
from nnc.lang.types import DType, TensorType


class Tensor(Protocol):
    """What can be loaded from: a Graph node or a Program buffer."""

    @property
    def type(self) -> TensorType: ...


@dataclass(frozen=True, eq=False)
class Const:
    """A number (bool for dtype bool); inf and nan are legal floats."""

    dtype: DType
    value: float | int | bool


@dataclass(frozen=True, eq=False)
class Idx:
    """An integer polynomial over dims and loop variables, as an i64 number."""

    dim: Dim
    dtype: DType = "i64"


@dataclass(frozen=True, eq=False)
class Var:
    """A scalar named by an enclosing `Let` or `Reduce` of the Program (never in Graph)."""

    dtype: DType
    name: str


@dataclass(frozen=True, eq=False)
class Load:
    """`tensor[index...]`.

    `other`: value when an index lies outside (`else v`); evaluated only then, no access happens.
    `check`: where a data-dependent index comes from; it is compared with the extent at run time and
    an index outside is reported (line, index, extent), never accessed. None: proved inside.
    """

    dtype: DType
    tensor: Tensor
    index: tuple[Expr, ...]
    other: Expr | None = None
    check: Span | None = None


@dataclass(frozen=True, eq=False)
class Op:
    """A scalar function of the table (`nnc.ir.scalar`) applied to operands; `cast` converts to
    `dtype`."""

    dtype: DType
    fn: str
    args: tuple[Expr, ...]


@dataclass(frozen=True, eq=False)
class Select:
    """`a if cond else b`, lazy: the untaken side is not evaluated (its loads do not happen)."""

    dtype: DType
    cond: Expr
    a: Expr
    b: Expr


Expr = Const | Idx | Var | Load | Op | Select


def children(e: Expr) -> tuple[Expr, ...]:
    """Direct operands; the indices of a load are operands too."""
    kind = type(e)
    if kind is Op:
        return e.args  # type: ignore[union-attr]
    if kind is Load:
        assert isinstance(e, Load)
        return e.index if e.other is None else (*e.index, e.other)
    if kind is Select:
        assert isinstance(e, Select)
        return (e.cond, e.a, e.b)
    return ()


def with_children(e: Expr, new: tuple[Expr, ...]) -> Expr:
    """The same expression over other operands (itself when nothing changed)."""
    if all(map(is_, children(e), new)):
        return e
    match e:
        case Load(index=index, other=other):
            n = len(index)
            return Load(e.dtype, e.tensor, new[:n], None if other is None else new[n], e.check)
        case Op(dtype=dtype, fn=fn):
            return Op(dtype, fn, new)
        case Select(dtype=dtype):
            return Select(dtype, *new)
    return e


def walk(*roots: Expr) -> Iterator[Expr]:
    """Every sub-expression once, operands before users."""
    if len(roots) == 1:
        return iter(_order(roots[0]))
    once = {id(e): e for root in roots for e in _order(root)}
    return iter(once.values())


def _order(root: Expr) -> tuple[Expr, ...]:
    """The sub-expressions (explicit stack: chains may be long), kept with the root."""
    known: tuple[Expr, ...] | None = root.__dict__.get("_order")
    if known is None:
        known = (root,) if not children(root) else tuple(_postorder(root))
        root.__dict__["_order"] = known
    return known


def keep_order(exprs: tuple[Expr, ...]) -> None:
    """Notes that these are the sub-expressions of the last one, in the order of `walk`."""
    exprs[-1].__dict__["_order"] = exprs


def _postorder(root: Expr) -> Iterator[Expr]:
    done: set[int] = set()
    stack: list[tuple[Expr, tuple[Expr, ...]]] = [(root, children(root))]
    while stack:
        e, below = stack.pop()
        if id(e) in done:
            continue
        if below:
            stack.append((e, ()))
            stack += [(c, children(c)) for c in reversed(below) if id(c) not in done]
        else:
            done.add(id(e))
            yield e


def rewrite(root: Expr, fn: Callable[[Expr], Expr]) -> Expr:
    """Rebuilds bottom-up: `fn` sees each expression with its operands already rewritten."""
    new: dict[int, Expr] = {}
    for e in _order(root):
        below = children(e)
        made = with_children(e, tuple([new[id(c)] for c in below])) if below else e
        new[id(e)] = fn(made)
    return new[id(root)]


def subst(root: Expr, env: Mapping[str, Dim]) -> Expr:
    """Replaces loop variables and dims in every `Idx`."""

    def one(e: Expr) -> Expr:
        if isinstance(e, Idx) and e.dim.names & env.keys():
            return Idx(e.dim.subst(env))
        return e

    return rewrite(root, one)


def subst_exprs(root: Expr, env: Mapping[str, Expr]) -> Expr:
    """As `subst`, for loop variables that become arbitrary integer expressions.

    A polynomial over such a variable becomes integer arithmetic on i64 operands.
    """
    dims = {k: v.dim for k, v in env.items() if isinstance(v, Idx)}
    hard = {k: v for k, v in env.items() if not isinstance(v, Idx)}

    def one(e: Expr) -> Expr:
        if not isinstance(e, Idx):
            return e
        return _arith(e.dim, dims, hard) if e.dim.names & hard.keys() else Idx(e.dim.subst(dims))

    return rewrite(root, one)


def _arith(d: Dim, dims: Mapping[str, Dim], hard: Mapping[str, Expr]) -> Expr:
    out: Expr | None = None
    for mono, c in d.terms:
        term: Expr | None = None
        plain = Dim.of(c)
        for atom, n in mono:
            if isinstance(atom, str) and atom not in hard:
                plain = plain * dims.get(atom, Dim.of(atom)) ** n
                continue
            if isinstance(atom, str):
                factor: Expr = as_dtype(hard[atom], "i64")
            else:
                fn = {"floor": "floordiv", "div": "floordiv"}.get(atom.kind, atom.kind)
                sides = (_arith(atom.a, dims, hard), _arith(atom.b, dims, hard))
                factor = Op("i64", fn, sides)
            for _ in range(n):
                term = factor if term is None else Op("i64", "mul", (term, factor))
        if term is None:
            term = Idx(plain)
        elif plain.const != 1:
            term = Op("i64", "mul", (term, Idx(plain)))
        out = term if out is None else Op("i64", "add", (out, term))
    return out if out is not None else Idx(Dim.of(0))


def as_dtype(e: Expr, dtype: DType) -> Expr:
    """`e` converted; constants convert at once."""
    if e.dtype == dtype:
        return e
    return Op(dtype, "cast", (e,))


def guards(body: Expr, other: float = 0) -> tuple[list[Expr], Expr]:
    """The conditions, in order, without which the expression is zero (`other`), and its value
    else."""
    found: list[Expr] = []
    while isinstance(body, Select) and isinstance(body.b, Const) and body.b.value == other:
        found += conjuncts(body.cond)
        body = body.a
    return found, body


def index_number(e: Expr) -> int | None:
    """The number that an index is, if it is one."""
    return e.dim.const if isinstance(e, Idx) else None


def never_meet(a: Sequence[Expr], b: Sequence[Expr], loops: Iterable[str]) -> bool:
    """Whether two elements differ along an axis where neither depends on these loops: whatever
    iterations they belong to."""
    inner = frozenset(loops)
    return any(
        (i.dim - j.dim).const not in (None, 0) and not i.dim.names & inner
        for i, j in zip(a, b, strict=True)
        if isinstance(i, Idx) and isinstance(j, Idx)
    )


def conjuncts(cond: Expr) -> list[Expr]:
    """What holds, from left to right, where `cond` does."""
    return joined_by("and", cond)


def joined_by(fn: str, root: Expr) -> list[Expr]:
    """What a tree of one function of two operands joins, from left to right."""
    out: list[Expr] = []
    stack = [root]
    while stack:
        e = stack.pop()
        if isinstance(e, Op) and e.fn == fn:
            stack += reversed(e.args)
        else:
            out.append(e)
    return out


def loads(root: Expr) -> Iterator[Load]:
    """All loads in it, each once."""
    return (e for e in walk(root) if isinstance(e, Load))


def names(roots: Iterable[Expr]) -> frozenset[str]:
    """All dims and loop variables used."""
    out: set[str] = set()
    for e in walk(*roots):
        if isinstance(e, Idx):
            out |= e.dim.names
    return frozenset(out)
