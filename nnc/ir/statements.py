"""What statements of the loop IR hold: expressions, stores, loads; and statements over others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from nnc.ir.expr import Expr, Idx, Load, rewrite, walk
from nnc.ir.graph import Axis
from nnc.ir.loop import Buffer, Call, Contract, For, Let, Reduce, Stmt, Store
from nnc.lang.dims import Dim

Stmts = tuple[Stmt, ...]


def map_stmts(
    stmts: Stmts,
    fn: Callable[[Expr], Expr],
    place: Callable[[Store], tuple[Buffer, tuple[Expr, ...]]] | None = None,
    axis: Callable[[Axis], Axis] = lambda a: a,
) -> Stmts:
    """The statements with every expression replaced.

    `place`: of stores, buffer and index; `axis`: of loops and reductions inside.
    """
    out: list[Stmt] = []
    for s in stmts:
        match s:
            case For():
                out.append(For(axis(s.axis), s.kind, map_stmts(s.body, fn, place, axis)))
            case Let():
                out.append(replace(s, value=fn(s.value)))
            case Reduce():
                out.append(replace(s, axes=tuple(map(axis, s.axes)), value=fn(s.value)))
            case Store():
                guard = None if s.guard is None else fn(s.guard)
                buffer, index = place(s) if place else (s.buffer, tuple(map(fn, s.index)))
                out.append(replace(s, buffer=buffer, index=index, value=fn(s.value), guard=guard))
            case Contract():
                epilogue = map_stmts(s.epilogue, fn, place, axis)
                copies = [None if e is None else fn(e) for e in (s.panels, s.turned, s.points)]
                panels, turned, points = (e if isinstance(e, Load) else None for e in copies)
                assert [panels, turned, points] == copies, s
                new = replace(s, a=fn(s.a), b=fn(s.b), epilogue=epilogue)
                out.append(replace(new, panels=panels, turned=turned, points=points))
            case Call():
                (result,) = map_stmts((s.result,), fn, place, axis)
                inputs = tuple(e for i in s.inputs if isinstance(e := fn(i), Load))
                assert isinstance(result, Store) and len(inputs) == len(s.inputs), s
                out.append(replace(s, inputs=inputs, result=result))
    return tuple(out)


def exprs_in(stmts: Iterable[Stmt]) -> list[Expr]:
    """Every root expression of the statements."""
    out: list[Expr] = []
    stack = list(reversed(list(stmts)))
    while stack:
        s = stack.pop()
        match s:
            case For():
                stack += reversed(s.body)
            case Let() | Reduce():
                out.append(s.value)
            case Store():
                out += [*s.index, s.value, *(() if s.guard is None else (s.guard,))]
            case Contract():
                out += [s.a, s.b, *s.copies]
                stack += reversed(s.epilogue)
            case Call():
                out += s.inputs
                stack.append(s.result)
    return out


def substitute(stmts: Stmts, env: dict[str, Dim]) -> Stmts:
    """Loop variables replaced in every expression and extent."""

    def one(e: Expr) -> Expr:
        return (
            Idx(e.dim.subst(env), e.dtype) if isinstance(e, Idx) and e.dim.names & env.keys() else e
        )

    def axis(a: Axis) -> Axis:
        return Axis(a.var, a.extent.subst(env))

    return map_stmts(stmts, lambda root: rewrite(root, one), axis=axis)


def stores_in(stmts: Iterable[Stmt]) -> list[Store]:
    """Every store of the statements."""
    out: list[Store] = []
    stack = list(reversed(list(stmts)))
    while stack:
        match stack.pop():
            case For(body=body) | Contract(epilogue=body):
                stack += reversed(body)
            case Call(result=s) | (Store() as s):
                out.append(s)
    return out


def loaded_from(stmts: Iterable[Stmt]) -> dict[Buffer, None]:
    """Every buffer that is loaded from, in order."""
    out: dict[Buffer, None] = {}
    for e in walk(*exprs_in(stmts)):
        if isinstance(e, Load):
            assert isinstance(e.tensor, Buffer), e
            out[e.tensor] = None
    return out
