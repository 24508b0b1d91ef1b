"""Ranges of index names: from the bare uses `x[.., i, ..]` of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from nnc.diagnostics import Span
from nnc.lang import ast
from nnc.lang.dims import ONE, Dim
from nnc.lang.elaborate.bases import Read, indexed
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.mistakes import Mistake, Poisoned
from nnc.lang.elaborate.walks import syntax

REDUCING = ("sum", "max", "min", "mean", "prod", "any", "all", "argmax", "argmin", "logsumexp")


@dataclass(frozen=True)
class Use:
    """A bare use `x[.., i, ..]`: the sizes of its axes, where, and which axis of what."""

    sizes: tuple[Dim, ...]
    span: Span
    base: ast.Expr
    axis: int


@dataclass
class Range:
    """One index name to bind: an explicit extent, or candidates found at its bare uses."""

    name: str
    span: Span
    pack: bool
    explicit: tuple[Dim, ...] | None = None
    found: list[Use] = field(default_factory=list)

    @property
    def known(self) -> tuple[Dim, ...] | None:
        return (
            self.explicit
            if self.explicit is not None
            else (self.found[0].sizes if self.found else None)
        )


def infer_ranges(cx: Context, ranges: dict[str, Range], scope: Sequence[ast.Expr]) -> None:
    """Every bare use `x[.., i, ..]` in `scope` contributes the size of that axis; one that a
    static condition may not select only where there is no other."""
    uses, others = indexed(cx, scope)
    every = _reduced(cx, scope) | ranges if _has_tuple(uses + others) else ranges
    _infer(cx, every, uses)
    if others:
        decided = {n: list(r.found) for n, r in ranges.items() if r.found}
        _infer(cx, every, uses + others)
        for name, found in decided.items():
            ranges[name].found = found


def _has_tuple(reads: Sequence[Read]) -> bool:
    return any(isinstance(item, ast.Tuple) for node, _ in reads for item in node.items)


def _reduced(cx: Context, scope: Sequence[ast.Expr]) -> dict[str, Range]:
    """The index names of reductions: digits of tuples of which another one is to be found."""
    out: dict[str, Range] = {}
    for name, span, upper in reduced_names(syntax(*scope)):
        try:
            out[name] = Range(name, span, False, None if upper is None else (cx.eval_dim(upper),))
        except (Mistake, Poisoned):
            continue
    return out


def reduced_names(nodes: Iterable[object]) -> Iterator[tuple[str, Span, ast.Expr | None]]:
    """Index names that reductions such as `sum[k]` bind, with explicit ranges."""
    for node in nodes:
        if isinstance(node, ast.Index) and isinstance(node.value, ast.Name):
            for item in node.items if node.value.id in REDUCING else ():
                match item:
                    case ast.Name(id=name):
                        yield name, item.span, None
                    case ast.Slice(lower=ast.Name(id=name), upper=upper):
                        yield name, item.span, upper


def _infer(cx: Context, ranges: dict[str, Range], uses: Sequence[Read]) -> None:
    for _ in range(2):  # the second round solves tuples whose other sizes the first one found
        for r in ranges.values():
            r.found.clear()
        for node, shape in uses:
            _collect(cx, ranges, node, shape)
        for node, shape in uses:
            _collect_tuples(cx, ranges, node, shape)


def slots(
    cx: Context, items: Sequence[ast.Expr], rank: int, ranges: dict[str, Range]
) -> Iterator[tuple[ast.Expr, int, int]]:
    """Each item with the first axis and the number of axes that it covers."""
    fixed = sum(1 for i in items if not isinstance(i, ast.Rest | ast.NoneLit))
    for i in items:
        if isinstance(i, ast.Rest) and i.name in cx.frame.binders:
            fixed += len(cx.frame.binders[i.name].vars)
    free = max(rank - fixed, 0)
    axis = 0
    for item in items:
        if isinstance(item, ast.NoneLit):
            continue
        n = 1
        if isinstance(item, ast.Rest):
            bound = cx.frame.binders.get(item.name)
            n = len(bound.vars) if bound else free
        yield item, axis, n
        axis += n


def _collect(
    cx: Context, ranges: dict[str, Range], node: ast.Index, shape: tuple[Dim, ...]
) -> None:
    for item, axis, n in slots(cx, node.items, len(shape), ranges):
        match item:
            case ast.Name(id=name) if name in ranges and axis < len(shape):
                ranges[name].found.append(Use((shape[axis],), item.span, node.value, axis))
            case ast.Rest(name=name) if name in ranges:
                sizes = shape[axis : axis + n]
                ranges[name].found.append(Use(sizes, item.span, node.value, axis))
            case ast.Tuple(items=digits):
                for digit in digits:
                    match digit:
                        case ast.Slice(lower=ast.Name(id=name), upper=upper) if (
                            name in ranges and upper is not None
                        ):
                            digits_ = (cx.eval_dim(upper),)
                            use = Use(digits_, digit.span, digit, 0)
                            ranges[name].found.append(use)


def _collect_tuples(
    cx: Context, ranges: dict[str, Range], node: ast.Index, shape: tuple[Dim, ...]
) -> None:
    """`x[b, (h, e)]`: the one size left is the quotient of the axis by the others."""
    for item, axis, _ in slots(cx, node.items, len(shape), ranges):
        if not isinstance(item, ast.Tuple) or axis >= len(shape):
            continue
        open_: list[tuple[str, Span]] = []
        rest = ONE
        for digit in item.items:
            match digit:
                case ast.Slice(upper=upper) if upper is not None:
                    rest = rest * cx.eval_dim(upper)
                case ast.Name(id=name) if name in ranges and ranges[name].known is None:
                    open_.append((name, digit.span))
                case ast.Name(id=name):
                    size = size_of(cx, ranges, name)
                    if size is None:
                        open_ = []
                        break
                    rest = rest * size
        if len(open_) == 1:
            name, span = open_[0]
            quotient = (cx.divided(shape[axis], rest),)
            ranges[name].found.append(Use(quotient, span, node.value, axis))


def size_of(cx: Context, ranges: dict[str, Range], name: str) -> Dim | None:
    if name in ranges:
        known = ranges[name].known
        return known[0] if known is not None and len(known) == 1 else None
    if name in cx.frame.binders and len(cx.frame.binders[name].vars) == 1:
        return cx.ranges.get(cx.frame.binders[name].vars[0])
    return None
