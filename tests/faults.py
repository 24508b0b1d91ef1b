"""Faults planted in passes and code generation, for the harness of random programs to find.

`python -m tests.faults NAME SEED ...` plants one in a process of its own (it may crash) and prints
what finds it. A fault is a function that patches `nnc`; the docstring says what is wrong.
"""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from pytest import MonkeyPatch

from nnc.codegen import flow
from nnc.ir.expr import Const, Idx, Load, Op, Select
from nnc.ir.graph import Compute, Update
from nnc.ir.scalar import SCALARS, const, mul
from nnc.lang.dims import Dim
from tests.oracle import Disagreement, examine
from tests.random_language import program

Plant = Callable[[MonkeyPatch], None]
FAULTS: dict[str, Plant] = {}


def fault(plant: Plant) -> Plant:
    FAULTS[plant.__name__] = plant
    return plant


def everywhere(m: MonkeyPatch, old: Any, new: Any) -> None:
    """Replaces a function in every module of nnc that knows it."""
    for module in [x for n, x in sys.modules.items() if n.startswith("nnc")]:
        for name, value in list(vars(module).items()):
            if value is old:
                m.setattr(module, name, new)


def derivative(m: MonkeyPatch, fn: str, change: Callable[[Any], Any]) -> None:
    row = SCALARS[fn]
    assert row.partials is not None
    right = row.partials
    m.setitem(SCALARS, fn, replace(row, partials=lambda a, y: change(right(a, y))))


# ---- derivatives --------------------------------------------------------------------------------


@fault
def tanh_slope(m: MonkeyPatch) -> None:
    """The derivative of tanh is one percent too large."""
    derivative(m, "tanh", lambda d: (mul(const(1.01, d[0]), d[0]),))


@fault
def product_rule(m: MonkeyPatch) -> None:
    """The second factor of a product gets no gradient."""
    derivative(m, "mul", lambda d: (d[0], None))


@fault
def quotient_sign(m: MonkeyPatch) -> None:
    """The derivative by a divisor has the wrong sign."""
    derivative(m, "div", lambda d: (d[0], mul(const(-1, d[1]), d[1])))


@fault
def lost_contribution(m: MonkeyPatch) -> None:
    """Of several contributions to a cotangent the last is lost."""
    from nnc.passes import vjp

    right = vjp.total
    everywhere(m, right, lambda node, parts: right(node, parts[:-1] if len(parts) > 1 else parts))


@fault
def other_extremum(m: MonkeyPatch) -> None:
    """The gradient of max goes to the least element."""
    from nnc.passes import vjp

    right = vjp._is_extremum
    other = {"max": "min", "min": "max"}
    m.setattr(vjp, "_is_extremum", lambda node: right(replace(node, op=other[node.op])))


@fault
def untaken_branch(m: MonkeyPatch) -> None:
    """The gradient of a lazy branch flows where the other was taken."""
    from nnc.passes import adjoint

    right = adjoint._pull

    def wrong(e: Any, value: Any, term: Any) -> Any:
        for operand, t in right(e, value, term):
            turned = isinstance(e, Select) and t.guard is not term.guard
            yield (
                operand,
                replace(t, guard=replace(t.guard, holds=not t.guard.holds)) if turned else t,
            )

    m.setattr(adjoint, "_pull", wrong)


@fault
def unlimited_gather(m: MonkeyPatch) -> None:
    """A read turned round forgets the range of the variable it solves for."""
    from nnc.passes import gather

    m.setattr(gather._Search, "_require", lambda self, value, loop: None)


@fault
def wrong_digits(m: MonkeyPatch) -> None:
    """Turning round an affine read takes any term for the leading digit."""
    from nnc.passes import gather

    m.setattr(gather._Search, "_is_leading", lambda self, top, terms: True)


@fault
def overwriting_scatter(m: MonkeyPatch) -> None:
    """Contributions of data-dependent reads replace each other."""
    from nnc.passes import vjp

    right = vjp._update
    m.setattr(vjp, "_update", lambda *a: replace(right(*a), accumulate=""))


@fault
def transposed_slices(m: MonkeyPatch) -> None:
    """What is saved for the turns backwards is read one turn early."""
    from nnc.passes import turns

    right = turns.slice_of
    everywhere(
        m,
        right,
        lambda stack, var: (
            right(stack, var) if stack.type.rank > 2 else _first(stack, right(stack, var))
        ),
    )


def _first(stack: Any, right: Compute) -> Compute:
    assert isinstance(right.body, Load)
    return replace(right, body=replace(right.body, index=(Idx(Dim.of(0)), *right.body.index[1:])))


# ---- rules and sharing ----------------------------------------------------------------------------


def rule(m: MonkeyPatch, wrong: Callable[[Any, Any], Any]) -> None:
    from nnc.passes import rules

    m.setattr(rules, "RULES", (wrong, *rules.RULES))


@fault
def difference_is_zero(m: MonkeyPatch) -> None:
    """x - x = 0, whatever x is."""

    def wrong(e: Any, scope: Any) -> Any:
        match e:
            case Op(fn="sub", args=(a, b)) if a is b:
                return Const(e.dtype, 0.0)
        return None

    rule(m, wrong)


@fault
def product_with_zero(m: MonkeyPatch) -> None:
    """A select between a value and zero becomes a product with zero or one."""

    def wrong(e: Any, scope: Any) -> Any:
        match e:
            case Select(cond=c, a=a, b=Const(value=0)) if e.dtype == "f32":
                return mul(a, Op(e.dtype, "cast", (c,)))
        return None

    rule(m, wrong)


@fault
def negated_select(m: MonkeyPatch) -> None:
    """a if not c else b = a if c else b."""

    def wrong(e: Any, scope: Any) -> Any:
        match e:
            case Select(cond=Op(fn="not", args=(c,)), a=a, b=b):
                return Select(e.dtype, c, a, b)
        return None

    rule(m, wrong)


@fault
def else_forgotten(m: MonkeyPatch) -> None:
    """x[i else v] = x[i] where i is at least 0."""
    from nnc.ir.bounds import as_dim, prove

    def wrong(e: Any, scope: Any) -> Any:
        if isinstance(e, Load) and e.other is not None:
            dims = [as_dim(i) for i in e.index]
            if all(d is not None and prove(d, scope.facts, scope.ranges) for d in dims):
                return replace(e, other=None)
        return None

    rule(m, wrong)


@fault
def exponential(m: MonkeyPatch) -> None:
    """exp is one part in a thousand too large."""
    from nnc.codegen.scalars import Scalars

    right = Scalars.apply

    def wrong(self: Any, fn: str, dtype: Any, source: Any, args: Any, lanes: int) -> str:
        found = right(self, fn, dtype, source, args, lanes)
        if fn != "exp" or dtype not in ("f32", "f64"):
            return found
        return self.two("fmul", dtype, found, self.lit(dtype, 1.001, lanes), lanes)

    m.setattr(Scalars, "apply", wrong)


@fault
def versions_ignored(m: MonkeyPatch) -> None:
    """Two writes to versions of one type at the same places count as one value."""
    from nnc.ir import share

    right = share.node_key

    def wrong(node: Any) -> Any:
        if isinstance(node, Update):
            return ("update", node.type, node.target and len(node.axes))
        return right(node)

    everywhere(m, right, wrong)


@fault
def loops_renamed(m: MonkeyPatch) -> None:
    """Equal nodes are found without regard to which loop stands where."""
    from nnc.ir import share

    right = share.node_key

    def wrong(node: Any) -> Any:
        key = right(node)
        return (*key[:3], *key[4:]) if isinstance(node, Compute) and not node.op else key

    def head(e: Any) -> Any:
        return ("idx",) if isinstance(e, Idx) else old(e)

    def position(form: Any, loops: Any) -> Any:
        key = positional(form, loops).key
        return tuple(("idx",) if isinstance(t, tuple) and t[0] == "idx" else t for t in key)

    old, positional = share._head, share.positional
    m.setattr(share, "_head", head)
    m.setattr(share, "positional", position)
    everywhere(m, right, wrong)


# ---- kernels and memory ---------------------------------------------------------------------------


@fault
def window_without_else(m: MonkeyPatch) -> None:
    """A value inlined into a window is read outside too."""
    from nnc.passes import inline

    m.setattr(inline, "_inside", lambda *a: None)


@fault
def padded_with_zero(m: MonkeyPatch) -> None:
    """Every function counts as zero at zero where a window pads with zero."""
    from nnc.passes import inline

    m.setattr(inline, "_keeps_zero", lambda source, other: other.value == 0)


@fault
def update_in_place(m: MonkeyPatch) -> None:
    """Every update works in the memory of what it updates."""
    from nnc.passes import storage

    m.setattr(storage._Assigner, "in_place", lambda self, node: True)


@fault
def claimed_too_early(m: MonkeyPatch) -> None:
    """A written value is computed over the old one, read or not."""
    from nnc.passes import storage

    m.setattr(storage._Assigner, "may_overwrite", lambda self, node, target: True)


@fault
def rows_overwritten(m: MonkeyPatch) -> None:
    """Rows of a kernel share memory although they are read again."""
    from nnc.passes import storage

    m.setattr(storage._Assigner, "overwrites", lambda self, reader, node: True)


@fault
def carried_over(m: MonkeyPatch) -> None:
    """A loop starts in the memory of a value that is needed later."""
    from nnc.passes import storage

    m.setattr(storage._Assigner, "last_reader", lambda self, value, loop: True)


@fault
def lifetimes(m: MonkeyPatch) -> None:
    """Every place of the arena counts as free."""
    from nnc.passes import memory

    m.setattr(memory._Slot, "is_free", lambda self, span: True)


@fault
def lifetimes_by_one(m: MonkeyPatch) -> None:
    """A value's place is free for the kernel that reads it last."""
    from nnc.passes import memory

    right = memory._Slot.is_free
    m.setattr(memory._Slot, "is_free", lambda self, s: right(self, (min(s[0] + 1, s[1]), s[1])))


@fault
def small_places(m: MonkeyPatch) -> None:
    """The places of the arena are half as large as they should be."""
    from nnc.passes import memory

    right = memory.rounded
    m.setattr(memory, "rounded", lambda size: right(size // 2 + 1))


@fault
def storage_not_written(m: MonkeyPatch) -> None:
    """A value that was not computed in its storage is not copied there."""
    from nnc.passes import storage

    right = storage._Assigner.run

    def wrong(self: Any) -> Any:
        out = right(self)
        out.final.clear()
        return out

    m.setattr(storage._Assigner, "run", wrong)


# ---- code -----------------------------------------------------------------------------------------


@fault
def identity_of_max(m: MonkeyPatch) -> None:
    """The maximum starts at zero."""
    from nnc.codegen import reductions

    m.setattr(reductions, "_limits", lambda dtype: (0.0, 0.0))


@fault
def masked_sums(m: MonkeyPatch) -> None:
    """Lanes behind the end of a reduction are added up too."""
    from nnc.codegen import reductions

    right = reductions.Reductions.combined
    m.setattr(
        reductions.Reductions,
        "combined",
        lambda self, f, a, b, n, mask=None: right(self, f, a, b, n),
    )


@fault
def tail_of_a_vector(m: MonkeyPatch) -> None:
    """The mask of a vector's tail has one lane too many."""
    from nnc.codegen import registers

    right = registers.tail_mask

    def wrong(em: Any, count: str, lanes: int) -> str:
        return str(right(em, flow.add(em, count, "1"), lanes))

    everywhere(m, right, wrong)


@fault
def tail_lost(m: MonkeyPatch) -> None:
    """The last lane of a vector's tail is left out."""
    from nnc.codegen import registers

    right = registers.tail_mask
    everywhere(m, right, lambda em, count, lanes: right(em, flow.sub(em, count, "1"), lanes))


@fault
def missing_barrier(m: MonkeyPatch) -> None:
    """Threads do not wait for each other between kernels."""
    from nnc.codegen import barriers

    m.setattr(barriers.Plan, "conflict", lambda self, a, before: False)


@fault
def shares_of_threads(m: MonkeyPatch) -> None:
    """Every thread but the last stops one item early."""
    from nnc.codegen import loops

    right = loops.Loops.share

    def wrong(self: Any, total: str) -> tuple[str, str]:
        lo, hi = right(self, total)
        more = flow.compare(self.em, "slt", hi, total)
        return lo, flow.select(self.em, more, "i64", flow.sub(self.em, hi, "1"), hi)

    m.setattr(loops.Loops, "share", wrong)


@fault
def random_counter(m: MonkeyPatch) -> None:
    """The counter of random numbers takes the call for the element."""
    from nnc.codegen import philox

    right = philox.philox
    m.setattr(philox, "philox", lambda ops, a, lanes: right(ops, (a[0], a[1], a[3], a[2]), lanes))


@fault
def nan_lost_in_max(m: MonkeyPatch) -> None:
    """max of a NaN and a number is the number."""
    from nnc.codegen.scalars import Scalars

    def wrong(self: Any, fn: str, dtype: Any, a: str, b: str, lanes: int) -> str:
        return str(self.intrinsic("maxnum" if fn == "max" else "minnum", dtype, lanes, a, b))

    m.setattr(Scalars, "extremum", wrong)


@fault
def truncating_division(m: MonkeyPatch) -> None:
    """Integer division rounds towards zero."""
    from nnc.codegen.integers import Integers

    def wrong(self: Any, fn: str, dtype: Any, a: str, b: str, lanes: int) -> str:
        return str(self.two("sdiv" if fn == "floordiv" else "srem", dtype, a, b, lanes))

    m.setattr(Integers, "divide", wrong)


@fault
def edge_of_a_contraction(m: MonkeyPatch) -> None:
    """The last row of a contraction's tile is not stored."""
    from nnc.codegen.contract_tile import RowTiles

    right = RowTiles.epilogue

    def wrong(self: Any, part: Any, *rest: Any) -> None:
        short = flow.maximum(self.em, flow.sub(self.em, part.size, "1"), "1")
        right(self, replace(part, size=short), *rest)

    m.setattr(RowTiles, "epilogue", wrong)


@fault
def accumulation_lost(m: MonkeyPatch) -> None:
    """An accumulating write replaces."""
    from nnc.codegen import loops

    right = loops.Loops.store
    m.setattr(loops.Loops, "store", lambda self, s: right(self, replace(s, accumulate="")))


@fault
def guard_of_a_store(m: MonkeyPatch) -> None:
    """Conditional writes are made always."""
    from nnc.codegen import loops

    right = loops.Loops.store
    m.setattr(loops.Loops, "store", lambda self, s: right(self, replace(s, guard=None)))


@fault
def endless_while(m: MonkeyPatch) -> None:
    """A loop with a condition makes all its turns."""
    from nnc.codegen import spmd

    def wrong(self: Any, more: str, done: str) -> None:
        inside = self.em.fresh("turn")
        self.em.line(f"br label %{inside}")
        self.em.label(inside)

    names = [c for c in vars(spmd).values() if isinstance(c, type) and "go_on" in vars(c)]
    m.setattr(names[0], "go_on", wrong)


@fault
def brackets(m: MonkeyPatch) -> None:
    """The printer leaves out the brackets of a right operand."""
    from nnc.lang import printer

    m.setattr(printer, "_expand", lambda node, context, old=printer._expand: old(node, 0))


def plant_and_look(name: str, seeds: list[int]) -> str:
    """The first seed at which the fault shows, and how; empty if at none."""
    if name != "nothing":
        FAULTS[name](MonkeyPatch())
    for seed in seeds:
        try:
            with np.errstate(all="ignore"):
                signal.alarm(60)
                examine(program(random.Random(seed)), seed)
        except Disagreement as e:
            return f"{seed} {str(e).splitlines()[0][:150]}"
        except Exception as e:
            return f"{seed} {type(e).__name__}: {str(e).splitlines()[0][:150] if str(e) else ''}"
        print(f"{seed} passed", flush=True)
    return ""


if __name__ == "__main__":
    print("found at", plant_and_look(sys.argv[1], [int(s) for s in sys.argv[2:]]), flush=True)
