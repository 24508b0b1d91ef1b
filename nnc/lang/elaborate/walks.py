"""Walks over syntax."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields

from nnc.lang import ast


def syntax(
    *roots: object, selected: Callable[[ast.IfExpr], Sequence[ast.Expr] | None] | None = None
) -> Iterator[ast.Syntax]:
    """Every node below the roots, outer ones first, in order of the text. `selected`: what to look
    at in `a if c else b` instead of all (None: all)."""
    stack: list[object] = list(reversed(roots))
    while stack:
        node = stack.pop()
        if isinstance(node, tuple):
            stack.extend(reversed(node))
        elif isinstance(node, ast.Syntax):
            yield node
            parts = (
                selected(node) if selected is not None and isinstance(node, ast.IfExpr) else None
            )
            if parts is not None:
                stack.extend(reversed(parts))
                continue
            stack.extend(getattr(node, f.name) for f in reversed(fields(node)) if f.name != "span")


def nested(body: Sequence[ast.Stmt]) -> Iterator[ast.Stmt]:
    """All statements, those inside blocks too."""
    stack = list(reversed(body))
    while stack:
        stmt = stack.pop()
        yield stmt
        match stmt:
            case ast.If(then=then, orelse=orelse):
                stack.extend(reversed((*then, *orelse)))
            case ast.For(body=inner) | ast.While(body=inner):
                stack.extend(reversed(inner))


def always_returns(stmt: ast.Stmt) -> bool:
    """Whether nothing after it is reached, whatever its conditions are."""
    open_ = [stmt]
    while open_:
        match open_.pop():
            case ast.Return():
                pass
            case ast.If(then=(*_, a), orelse=(*_, b)):
                open_ += [a, b]
            case _:
                return False
    return True


def assigned(body: Sequence[ast.Stmt]) -> list[str]:
    """The names that statements define by `=`."""
    out: list[str] = []
    for stmt in nested(body):
        if isinstance(stmt, ast.Assign | ast.For):
            for target in stmt.targets:
                name = target.value if isinstance(target, ast.Index) else target
                if isinstance(name, ast.Name):
                    out.append(name.id)
    return list(dict.fromkeys(out))
