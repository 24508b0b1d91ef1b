"""Right operands of contractions that are used again are packed once: copied into the order in
which register tiles read them, slabs of SLAB columns, in each of them all of k.

* What no turn of a run-time loop changes is packed before the loop: a recurrent network multiplies
  by the same weights in every turn.
* What no call changes, the weights of a module that is only read, is packed in the program's
  prologue and kept between calls (docs/decisions/0012-prepared-values.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from nnc.ir.expr import Const, Expr, Idx, Load, loads, names, subst
from nnc.ir.form import formed
from nnc.ir.graph import Axis
from nnc.ir.loop import (
    FEW,
    SLAB,
    SLAB_K,
    Buffer,
    Contract,
    For,
    Kernel,
    Program,
    Repeat,
    Step,
    Store,
    free_name,
    kernels_of,
)
from nnc.ir.statements import stores_in
from nnc.lang.dims import ZERO, Dim, dim_prod
from nnc.lang.types import DTYPES, TensorType
from nnc.passes.schedule.merge import Views
from nnc.passes.schedule.nest import nest

MOST = 1 << 23  # elements that are worth the memory
LEAST = 1 << 12
LARGE = 1 << 20  # elements of a left operand
# Bytes of copies that a program keeps for ever. They make products of some rows about 8 % faster
# (of few rows with k contiguous: much faster); where all of them take more, there are none.
KEPT = 64 << 20


def panels(program: Program, constant: frozenset[str] = frozenset()) -> Program:
    """The program with packed copies before its loops and in its prologue.

    `constant`: names of the arguments that are leaves of modules that are only read.
    """
    packing = _Packing({b.name for b in (*program.args, *program.buffers)}, constant)
    if any(isinstance(s, Repeat) for s in program.steps):
        steps = packing.steps(program.steps)
        program = packing.added(replace(program, steps=steps))
    copying = replace(packing, prologue=[], buffers=[], size=0)
    new: list[Step] = []
    for step in program.steps:
        new.append(copying.copied(step))
        if copying.size > KEPT:
            return program
    copying.size = 0
    turned = [copying.turned(step) for step in new]
    return copying.added(replace(program, steps=tuple(turned)))


@dataclass
class _Packing:
    taken: set[str]
    constant: frozenset[str]
    views: Views = field(default_factory=Views)
    buffers: list[Buffer] = field(default_factory=list)
    prologue: list[Kernel] = field(default_factory=list)
    kept: dict[object, Load] = field(default_factory=dict)
    size: int = 0  # bytes of the buffers

    def added(self, program: Program) -> Program:
        """With the buffers and the prologue made so far."""
        return replace(
            program,
            steps=(*self.prologue, *program.steps),
            buffers=(*program.buffers, *self.buffers),
            prologue=program.prologue + len(self.prologue),
        )

    def steps(self, steps: Sequence[Step]) -> tuple[Step, ...]:
        # As deep as loops are nested.
        out: list[Step] = []
        for step in steps:
            if isinstance(step, Repeat):
                turns = _Turns(self, step)
                done = turns.of(step)
                out += turns.before
                step = replace(done, steps=self.steps(done.steps))
            out.append(step)
        return tuple(out)

    def copied(self, step: Step) -> Step:
        """A contraction outside of loops, with a kept copy of its right operand if it can be."""
        if isinstance(step, Kernel) and not _contracts(step):
            return step
        match step:
            case Kernel(body=(Contract(panels=None, points=None) as c,)) if self.fits(c):
                return replace(step, body=(replace(c, panels=self.keep(c, step, "copy")),))
        return step

    def turned(self, step: Step) -> Step:
        """A contraction with a kept copy of its left operand, if that is large: with the roles
        exchanged, few columns leave no lanes idle. As far as there is memory left."""
        if isinstance(step, Kernel) and not _contracts(step):
            return step
        match step:
            case Kernel(body=(Contract(panels=None, points=None, fn="mul", part=None) as c,)) if (
                c.m and c.n
            ):
                back = replace(c, m=c.n, n=c.m, a=c.b, b=c.a)
                size = dim_prod(a.extent for a in (*c.m, *c.k)).const or 0
                room = self.size + size * DTYPES[c.a.dtype].bytes <= KEPT
                columns = dim_prod(a.extent for a in c.n).const or 1
                if size >= LARGE and columns <= FEW and room and self.fits(back):
                    copy = self.keep(back, step, "copy")
                    return replace(step, body=(replace(c, turned=copy),))
        return step

    def fits(self, c: Contract) -> bool:
        n, k = (dim_prod(a.extent for a in axes).const for axes in (c.n, c.k))
        if n is None or k is None or not self.is_constant(c):
            return False
        rows = dim_prod(a.extent for a in (*c.batch, *c.m)).const
        return n >= SLAB and n * k >= LEAST and rows != 1

    def is_constant(self, c: Contract) -> bool:
        """Whether the right operand depends on modules that are only read, and on nothing else."""
        read = list(loads(c.b))
        return (
            bool(read)
            and names([c.b]) <= {a.var for a in (*c.n, *c.k)}
            and all(
                isinstance(e.tensor, Buffer)
                and e.tensor.name in self.constant
                and (e.dtype, e.check) == (c.b.dtype, None)
                for e in read
            )
        )

    def keep(self, c: Contract, kernel: Kernel, kind: str) -> Load:
        """The copy, made in the prologue."""
        return self.copy(c, kernel, self.kept, self.prologue, kind)

    def copy(
        self,
        c: Contract,
        kernel: Kernel,
        known: dict[object, Load],
        to: list[Kernel],
        kept: str = "",
    ) -> Load:
        """The first element of the copy; unless it is `known`, adds the kernels that make it."""
        n, k = (dim_prod(a.extent for a in axes) for axes in (c.n, c.k))
        column = Dim.of("$p") * SLAB + Dim.of("$c")
        value = subst(c.b, _digits(column, c.n) | _digits(Dim.of("$k"), c.k))
        key = (_key(value), n, k)
        if key not in known:
            assert n.const is not None and k.const is not None, c
            target = self.buffer(c, n.const, k.const, kept)
            to += _kernels(kernel, value, n.const, k.const, target, self.views)
            known[key] = Load(target.type.dtype, target, (Idx(ZERO), Idx(ZERO), Idx(ZERO)))
        return known[key]

    def buffer(self, c: Contract, n: int, k: int, kept: str = "") -> Buffer:
        name = free_name(f"{c.name}.panels", self.taken)
        shape = (Dim.of(-(-n // SLAB)), Dim.of(-(-k // SLAB_K) * SLAB_K), Dim.of(SLAB))
        out = Buffer(name, TensorType(c.b.dtype, shape), "arena", span=c.span, kept=kept)
        self.buffers.append(out)
        self.size += out.bytes.evaluate({})
        return out


def _contracts(kernel: Kernel) -> bool:
    """Whether it is a contraction, found once for all kernels alike."""
    memo = {} if kernel.alike is None else kernel.alike.pattern.memo
    if "contracts" not in memo:
        memo["contracts"] = isinstance(kernel.body[0], Contract)
    return bool(memo["contracts"])


class _Turns:
    """The contractions of one loop, and of the loops inside of it."""

    def __init__(self, packing: _Packing, loop: Repeat) -> None:
        self.packing, self.before = packing, list[Kernel]()
        self.known: dict[object, Load] = {}
        kernels = list(kernels_of((loop,)))
        self.changed = {s.buffer.name for k in kernels for s in stores_in(k.body)}
        self.vars = set(_variables(loop))

    def of(self, loop: Repeat) -> Repeat:
        # As deep as loops are nested.
        return replace(loop, steps=tuple(map(self.step, loop.steps)))

    def step(self, step: Step) -> Step:
        match step:
            case Repeat():
                return self.of(step)
            case Kernel(body=(Contract(panels=None) as c,)) if self.fits(c):
                return replace(step, body=(replace(c, panels=self.packed(c, step)),))
        return step

    def fits(self, c: Contract) -> bool:
        """Whether the right operand is the same in all turns, not too large and not too small."""
        n, k = (dim_prod(a.extent for a in axes).const for axes in (c.n, c.k))
        if n is None or k is None or not c.n or dim_prod(a.extent for a in c.m).const == 1:
            return False
        used, read = names([c.b]), list(loads(c.b))
        batch = {a.var for a in c.batch}
        return (
            LEAST <= n * k <= MOST
            and n >= SLAB
            and not used & (self.vars | batch)
            and not any(e.tensor.name in self.changed or e.check is not None for e in read)  # type: ignore[attr-defined]
        )

    def packed(self, c: Contract, kernel: Kernel) -> Load:
        if self.packing.is_constant(c):
            return self.packing.keep(c, kernel, "value")
        return self.packing.copy(c, kernel, self.known, self.before)


def _variables(loop: Repeat) -> Iterator[str]:
    # As deep as loops are nested.
    yield loop.var
    for step in (*loop.before, *loop.steps):
        if isinstance(step, Repeat):
            yield from _variables(step)


def _key(value: Expr) -> object:
    """Equal for equal operands."""
    of = formed((value,))
    read = tuple((t.name, t.type.shape) for t in of.tensors if isinstance(t, Buffer))
    return (of.form, read, of.numbers)


def _digits(index: Dim, axes: Sequence[Axis]) -> dict[str, Dim]:
    """Each axis as a function of the row-major number."""
    out: dict[str, Dim] = {}
    for axis in reversed(axes[1:]):
        out[axis.var] = index % axis.extent
        index = index // axis.extent
    return out | {axes[0].var: index}


def _kernels(
    kernel: Kernel, value: Expr, n: int, k: int, to: Buffer, views: Views
) -> Iterator[Kernel]:
    """The copy: whole slabs, and the last one with zeros behind its columns."""
    whole, rest = divmod(n, SLAB)
    rows, at = Axis("$k", Dim.of(k)), Idx(Dim.of("$k"))
    reason = f"right operand of {kernel.name}, packed for all {'calls' if to.kept else 'turns'}"
    name, work = f"{kernel.name}_panels", Dim.of(n * k)

    def store(slab: Dim, column: Dim, e: Expr) -> Store:
        return Store(to, (Idx(slab), at, Idx(column)), e)

    if whole:
        axes = (Axis("$p", Dim.of(whole)), rows, Axis("$c", Dim.of(SLAB)))
        body = nest(axes, (store(Dim.of("$p"), Dim.of("$c"), value),), views)
        yield Kernel(name, body, kernel.span, reason, work)
    if rest:
        last = subst(value, {"$p": Dim.of(whole)})
        columns = For(
            Axis("$c", Dim.of(rest)), "vector", (store(Dim.of(whole), Dim.of("$c"), last),)
        )
        zero = store(Dim.of(whole), Dim.of("$c") + rest, Const(value.dtype, 0))
        zeros = For(Axis("$c", Dim.of(SLAB - rest)), "vector", (zero,))
        body = (For(rows, "parallel", (columns, zeros)),)
        yield Kernel(f"{name}_rest", body, kernel.span, reason, work)
