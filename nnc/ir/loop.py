"""Program, the loop IR: buffers, kernels in launch order, loop nests with kinds, and leaf
operations.

Expressions are those of `nnc.ir.expr` with `Load.tensor` a `Buffer`. Everything a back end needs is
explicit: codegen never decides what to fuse, where a buffer lives or how a loop runs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from nnc.diagnostics import NOWHERE, Span
from nnc.ir.expr import Expr, Load, Op
from nnc.ir.graph import Axis
from nnc.lang.dims import ZERO, Dim, Facts
from nnc.lang.types import DTYPES, TensorType


@dataclass(frozen=True, eq=False)
class Buffer:
    """Memory for one tensor, row-major and contiguous.

    `scope`: "arg" (the caller's pointer number `slot`; results are arguments too), "arena" (at byte
    `offset` of the call's arena, 64-byte aligned), "const" (`data` lies in the object), "local"
    (one row strip or tile, private to one iteration of its kernel's parallel loops; lives on the
    stack or in thread scratch; its sizes hold no loop variables).

    Two Buffers of one `name` are views of the same memory: all but `type.shape` agree, and the
    number of elements is equal (adjacent axes that are only used together are merged into one); or
    one is of u8, and the other reads four of its bytes as an i32. Look up by name.

    `kept`: in an arena, the value stays there from call to call, since it depends on read-only
    modules alone. Only the program's prologue writes it. "value": every call needs it; "copy": of
    something else, which may be read in its place.
    """

    name: str
    type: TensorType
    scope: str
    slot: int = -1
    offset: Dim = ZERO
    data: tuple[float | int | bool, ...] = ()
    span: Span = NOWHERE
    kept: str = ""

    @property
    def bytes(self) -> Dim:
        return self.type.elements * DTYPES[self.type.dtype].bytes


@dataclass(frozen=True, eq=False)
class For:
    """A loop. `kind`: parallel (split over threads), vector (lanes; innermost), serial, unroll.

    Parallel loops are outermost and adjacent; their joint iteration space is split evenly over the
    threads. The extent of a serial or vector loop may hold variables of enclosing loops: `min(1024,
    N-1024*$o)` is the inner part of a loop of N cut into pieces (indices are then `1024*$o + $i`).
    Lets may stand before the parallel loops; a kernel without parallel loops runs on one thread.
    """

    axis: Axis
    kind: str
    body: tuple[Stmt, ...]


@dataclass(frozen=True, eq=False)
class Let:
    """Names a scalar for the following statements of the block."""

    name: str
    value: Expr


@dataclass(frozen=True, eq=False)
class Store:
    """`buffer[index] = value`, or `op= value` by `accumulate` ("add", "max", "min"; in serial loops
    only)."""

    buffer: Buffer
    index: tuple[Expr, ...]
    value: Expr
    accumulate: str = ""
    guard: Expr | None = None
    check: Span | None = None


@dataclass(frozen=True, eq=False)
class Reduce:
    """Leaf: `name = op over axes of value`, in the documented order (`docs/overview.md`).

    `vector`: the reduced axis that runs over the lanes, or None when the lanes run over an
    enclosing vector loop (or there are none). For argmax/argmin `name` is the i32 position along
    the axes (row-major), else it has the dtype of `value`; with `best` that names the value found
    there. An extent may hold variables of enclosing loops that are not vector.
    """

    name: str
    op: str
    axes: tuple[Axis, ...]
    value: Expr
    vector: str | None
    span: Span = NOWHERE
    best: str = ""


FEW = 128  # columns for which `Contract.turned` is used
SLAB, SLAB_K = 32, 16  # see `Contract.panels`; a multiple of the panel of every target


@dataclass(frozen=True)
class Part:
    """Iterations `start`, `start + 1`, ... of an axis of `extent`; `start` is a multiple of 64."""

    var: str
    start: Dim
    extent: Dim


REVERSED = {"mul": "mul", "dot4": "dot4r", "dot4r": "dot4"}  # of `Contract.fn`, a and b exchanged


@dataclass(frozen=True, eq=False)
class Contract:
    """Leaf: for all batch, m, n: `name = sum over k of a * b`, then `epilogue` (Stores and Lets
    over batch, m, n).

    `a` depends on (batch, m, k) only, `b` on (batch, n, k) only; each is a Load or a computed
    prologue. Groups may hold several axes (row-major); m or n may be empty (matrix-vector), batch
    may be empty. As the whole body of its kernel it is tiled, packed and split (batch, m, n) over
    threads. Inside of loops (not of vector loops; `batch` is empty there) one thread does it.
    `a`, `b` and `name` are all f32 or all f64, or all i32, words of four bytes whose product is
    `dot4(a, b)` or, with `fn` "dot4r", `dot4(b, a)`. `n` holds the axis with unit stride in the
    Stores. Adjacent axes of a group are already merged where all accesses allow it.

    `part`: the only axis of n (or of k) is a part of a longer one, on which alone `b` depends: then
    the innermost parallel loop around may pack all of it once.

    `points`: the first element of kept transformed weights, by which Winograd's form is computed
    (`nnc.passes.winograd`), [m/SLAB][points][k's channels rounded up to SLAB_K][SLAB].

    `panels`: the first element of a copy of `b` as [n/SLAB][k rounded up to SLAB_K][SLAB], both
    row-major over their axes; a back end may read it in place of `b` (of a kept copy: where the
    call has one).
    """

    name: str
    batch: tuple[Axis, ...]
    m: tuple[Axis, ...]
    n: tuple[Axis, ...]
    k: tuple[Axis, ...]
    a: Expr
    b: Expr
    epilogue: tuple[Stmt, ...]
    span: Span = NOWHERE
    part: Part | None = None
    panels: Load | None = None
    turned: Load | None = None
    points: Load | None = None
    fn: str = "mul"  # or dot4, dot4r

    @property
    def copies(self) -> tuple[Load, ...]:
        """What may be read in the place of operands."""
        return tuple(e for e in (self.panels, self.turned, self.points) if e is not None)

    @property
    def copied(self) -> bool:
        """Whether `panels` are a kept copy, which a call may be without (as `turned` is)."""
        return (
            self.panels is not None
            and isinstance(b := self.panels.tensor, Buffer)
            and b.kept == "copy"
        )

    @property
    def product(self) -> Expr:
        """What is summed."""
        a, b = (self.b, self.a) if self.fn == "dot4r" else (self.a, self.b)
        return Op(a.dtype, "mul" if self.fn == "mul" else "dot4", (a, b))


@dataclass(frozen=True, eq=False)
class Call:
    """Leaf: calls the C function `symbol`, on one thread; it is the whole body of its kernel.

    `void symbol(const int64_t *sizes, inputs..., T *result)`; `inputs` are the first elements of
    tensors, or (rank 0, `scalars`) numbers passed by value; `result` says where the first element
    of the result lies (its value has no meaning). With `each`, `T symbol(inputs...)` gives each of
    `each` elements from those at the same place of the inputs.
    """

    symbol: str
    prototype: str
    sizes: tuple[Dim, ...]
    inputs: tuple[Load, ...]
    scalars: tuple[bool, ...]
    result: Store
    each: Dim | None = None


Stmt = For | Let | Store | Reduce | Contract | Call


class Pattern:
    """What kernels alike do. `loaded`, `stored`: the positions of the buffers that it reads and
    writes. `memo`: what was found out about it holds for all. `make` gives the body of one."""

    def __init__(self, loaded: tuple[int, ...], stored: tuple[int, ...]) -> None:
        self.loaded, self.stored = loaded, stored
        self.memo: dict[Hashable, object] = {}
        self.make: Callable[[Kernel], tuple[Stmt, ...]]


@dataclass(frozen=True)
class Alike:
    """A kernel's pattern, and what stands in the places of it that are free: buffers (all but local
    ones made for the kernel) and large numbers, each once, in one order; for each buffer the
    fixed components that all indices of it begin with.

    Equal patterns have buffers of equal types and scopes at the same positions."""

    pattern: Pattern
    buffers: tuple[Buffer, ...]
    numbers: tuple[int, ...]
    starts: tuple[tuple[int, ...], ...]

    @property
    def loaded(self) -> list[Buffer]:
        return [self.buffers[i] for i in self.pattern.loaded]

    @property
    def stored(self) -> list[Buffer]:
        return [self.buffers[i] for i in self.pattern.stored]


class _Body:
    """The body of a kernel that was made from its pattern: found when somebody looks at it."""

    def __get__(self, kernel: Kernel | None, owner: type[Kernel]) -> tuple[Stmt, ...]:
        if kernel is None:
            raise AttributeError  # so that the field has no default
        assert kernel.alike is not None, kernel.name
        body = kernel.__dict__["body"] = kernel.alike.pattern.make(kernel)
        return body


@dataclass(frozen=True, eq=False)
class Kernel:
    """One launch. `reason` says in one line what it is and why it is not part of another kernel.

    `work`: about how many scalar operations (to choose the number of threads). `reads`/`writes` are
    derived. `alike`: of kernels outside of loops (`kernel_like`); one that is made by `replace` has
    none.
    """

    name: str
    body: tuple[Stmt, ...] = _Body()  # type: ignore[assignment]
    span: Span = NOWHERE
    reason: str = ""
    work: Dim = ZERO
    alike: Alike | None = field(default=None, init=False)


def kernel_like(kernel: Kernel, alike: Alike, **fields: object) -> Kernel:
    """A kernel with what the other has but `fields`; its body is that of its pattern."""
    made: Kernel = object.__new__(Kernel)
    known = {k: v for k, v in kernel.__dict__.items() if k != "body"}
    made.__dict__.update(known | fields | {"alike": alike})
    return made


@dataclass(frozen=True, eq=False)
class Commit:
    """Between kernels: if an index error was recorded so far, leave with the error (nothing is
    written yet)."""


@dataclass(frozen=True, eq=False)
class Repeat:
    """Runs `steps` in order for `var` = 0 ... trip - 1; the variable is free in the steps'
    expressions.

    `cond`: a bool scalar buffer that `before` (run at the start of every turn) computes; the loop
    ends at the first turn at which it holds false. A kernel of one turn sees what all kernels of
    the turn before wrote.
    """

    var: str
    trip: Dim
    steps: tuple[Step, ...]
    before: tuple[Step, ...] = ()
    cond: Buffer | None = None
    span: Span = NOWHERE


Step = Kernel | Commit | Repeat


@dataclass(frozen=True)
class Program:
    """One exported function: `args` in ABI order (inputs, then results), kernels, the arena's size
    in bytes.

    The first `prologue` steps are kernels that write kept buffers and nothing else. These lie at
    the start of the arena, in `kept` bytes, whatever the sizes.
    """

    name: str
    dims: tuple[str, ...]
    args: tuple[Buffer, ...]
    buffers: tuple[Buffer, ...]  # arena and const buffers
    steps: tuple[Step, ...]
    arena: Dim = ZERO
    facts: Facts = Facts()  # noqa: RUF009
    span: Span = NOWHERE
    results: int = 0  # how many of `args`, at the end, are results
    prologue: int = 0
    kept: int = 0

    @cached_property
    def shapes(self) -> dict[str, tuple[Dim, ...]]:
        """Of the buffers, by name."""
        return {b.name: b.type.shape for b in (*self.args, *self.buffers)}

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """All kernels, those in loops too, in order."""
        return tuple(kernels_of(self.steps))


def kernels_of(steps: Iterable[Step]) -> Iterator[Kernel]:
    """All kernels, those in loops too, in order."""
    for s in steps:
        if isinstance(s, Kernel):
            yield s
        elif isinstance(s, Repeat):
            yield from kernels_of((*s.before, *s.steps))


def free_name(base: str, taken: set[str]) -> str:
    """`base`, or with the first number (from 2) with which it is none of the names in use; then it
    is one of them."""
    name, n = base, 1
    while name in taken:
        n += 1
        name = f"{base}_{n}"
    taken.add(name)
    return name
