"""Loops, branches and folded 64-bit arithmetic over an `Emitter`.

Operands are text: an SSA name or a decimal constant. Arithmetic on two constants is folded here, so
that code for constant sizes stays small without help from LLVM's middle end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nnc.codegen.emit import Emitter


def const(x: str) -> int | None:
    """The value of a constant operand, None for an SSA name."""
    return None if x.startswith("%") else int(x)


def add(em: Emitter, a: str, b: str) -> str:
    x, y = const(a), const(b)
    if x is not None and y is not None:
        return str(x + y)
    if x == 0 or y == 0:
        return b if x == 0 else a
    return em.op(f"add nsw i64 {a}, {b}", "add")


def sub(em: Emitter, a: str, b: str) -> str:
    x, y = const(a), const(b)
    if x is not None and y is not None:
        return str(x - y)
    return a if y == 0 else em.op(f"sub nsw i64 {a}, {b}", "sub")


def mul(em: Emitter, a: str, b: str) -> str:
    x, y = const(a), const(b)
    if x is not None and y is not None:
        return str(x * y)
    if x == 0 or y == 0:
        return "0"
    if x == 1 or y == 1:
        return b if x == 1 else a
    return em.op(f"mul nsw i64 {a}, {b}", "mul")


def div(em: Emitter, a: str, b: str) -> str:
    """The quotient of two non-negative numbers."""
    x, y = const(a), const(b)
    if x is not None and y is not None:
        return str(x // y)
    return a if y == 1 else em.op(f"udiv i64 {a}, {b}", "div")


def rem(em: Emitter, a: str, b: str) -> str:
    """The remainder of two non-negative numbers."""
    x, y = const(a), const(b)
    if x is not None and y is not None:
        return str(x % y)
    return "0" if y == 1 else em.op(f"urem i64 {a}, {b}", "rem")


def ceil_div(em: Emitter, a: str, b: str) -> str:
    return div(em, add(em, a, sub(em, b, "1")), b)


def round_up(em: Emitter, a: str, b: str) -> str:
    return mul(em, ceil_div(em, a, b), b)


def minimum(em: Emitter, a: str, b: str) -> str:
    x, y = const(a), const(b)
    if x is not None and y is not None:
        return str(min(x, y))
    return em.op(f"call i64 @llvm.smin.i64(i64 {a}, i64 {b})", "min")


def maximum(em: Emitter, a: str, b: str) -> str:
    x, y = const(a), const(b)
    if x is not None and y is not None:
        return str(max(x, y))
    return em.op(f"call i64 @llvm.smax.i64(i64 {a}, i64 {b})", "max")


_COMPARE = {"slt": int.__lt__, "sle": int.__le__, "sge": int.__ge__, "sgt": int.__gt__}
_COMPARE |= {"eq": int.__eq__, "ne": int.__ne__}


def compare(em: Emitter, predicate: str, a: str, b: str) -> str:
    """An i1 operand: "true" or "false" where both sides are constants."""
    x, y = const(a), const(b)
    if x is not None and y is not None:
        return "true" if _COMPARE[predicate](x, y) else "false"
    return em.op(f"icmp {predicate} i64 {a}, {b}", "cmp")


def select(em: Emitter, condition: str, type_: str, a: str, b: str) -> str:
    match condition:
        case "true":
            return a
        case "false":
            return b
    return a if a == b else em.op(f"select i1 {condition}, {type_} {a}, {type_} {b}", "sel")


def offset(em: Emitter, pointer: str, elements: str, type_: str) -> str:
    """`pointer` moved by a number of elements."""
    if elements == "0":
        return pointer
    return em.op(f"getelementptr {type_}, ptr {pointer}, i64 {elements}", "p")


def share(em: Emitter, total: str, part: str, parts: str) -> str:
    """The start of part number `part` when `total` is cut into `parts` nearly equal ranges."""
    return div(em, mul(em, total, part), parts)


@dataclass
class Stepping:
    """A loop being emitted: set `step` in the body when it is not known before."""

    index: str
    step: str


@contextmanager
def stepping(em: Emitter, lo: str, hi: str, step: str = "1") -> Iterator[Stepping]:
    """Emits the body between as `for (i = lo; i < hi; i += step)`."""
    pre, body, latch, done = (em.fresh(x) for x in ("pre", "body", "latch", "done"))
    index, follow = f"%{em.fresh('i')}", f"%{em.fresh('next')}"
    em.line(f"br label %{pre}")
    em.label(pre)
    em.line(f"br i1 {compare(em, 'slt', lo, hi)}, label %{body}, label %{done}")
    em.label(body)
    em.line(f"{index} = phi i64 [ {lo}, %{pre} ], [ {follow}, %{latch} ]")
    state = Stepping(index, step)
    with em.branch():
        yield state
    em.line(f"br label %{latch}")
    em.label(latch)
    em.line(f"{follow} = add nsw i64 {index}, {state.step}")
    again = em.op(f"icmp slt i64 {follow}, {hi}", "again")
    em.line(f"br i1 {again}, label %{body}, label %{done}")
    em.label(done)


@contextmanager
def loop(em: Emitter, lo: str, hi: str, step: str = "1") -> Iterator[str]:
    """As `stepping`, giving the index; a loop known to run once is emitted straight."""
    x, y, s = const(lo), const(hi), const(step)
    if x is not None and y is not None and s is not None and x < y <= x + s:
        yield lo
        return
    with stepping(em, lo, hi, step) as state:
        yield state.index


@contextmanager
def when(em: Emitter, condition: str) -> Iterator[None]:
    """Emits the body under a condition (no code for it when the condition is "true")."""
    if condition == "true":
        yield
        return
    then, done = em.fresh("then"), em.fresh("done")
    em.line(f"br i1 {condition}, label %{then}, label %{done}")
    em.label(then)
    with em.branch():
        yield
    em.line(f"br label %{done}")
    em.label(done)


def ways(em: Emitter, condition: str) -> Iterator[bool]:
    """`for yes in ways(...)`: emits the body for each way that the condition may go."""
    if condition != "false":
        with when(em, condition):
            yield True
    other = negate(em, condition)
    if other != "false":
        with when(em, other):
            yield False


def negate(em: Emitter, condition: str) -> str:
    match condition:
        case "true":
            return "false"
        case "false":
            return "true"
    return em.op(f"xor i1 {condition}, true", "not")


def conjunction(em: Emitter, a: str, b: str) -> str:
    if "false" in (a, b):
        return "false"
    if a == "true":
        return b
    return a if b == "true" else em.op(f"and i1 {a}, {b}", "and")


def disjunction(em: Emitter, a: str, b: str) -> str:
    return negate(em, conjunction(em, negate(em, a), negate(em, b)))


# Lines that a module using this file needs; callers join the lines of all parts without repetition.
DECLARATIONS = (
    "declare i64 @llvm.smin.i64(i64, i64)",
    "declare i64 @llvm.smax.i64(i64, i64)",
    "declare i32 @llvm.cttz.i32(i32, i1)",
)
