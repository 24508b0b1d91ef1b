"""Program to LLVM IR: the kernels, and all functions together as the text of a module.

The function that every thread runs is in `spmd` (and `table`), the exported ones in `entry`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nnc.codegen import contract, external, flow, pool, vecmath
from nnc.codegen.alike import Outline
from nnc.codegen.entry import Entry, Sizes, dispatch
from nnc.codegen.indices import Indices
from nnc.codegen.loops import written
from nnc.codegen.memory import flat, strides
from nnc.codegen.regions import Regions
from nnc.codegen.registers import MEMORY, literal, round_bf16
from nnc.codegen.scopes import Value
from nnc.codegen.spmd import MANY, Launch, Spmd, constant_name, enclosing
from nnc.codegen.table import Tabled
from nnc.codegen.target import Target
from nnc.diagnostics import Span
from nnc.ir.expr import Expr, Idx
from nnc.ir.loop import Alike, Buffer, Call, Contract, Kernel, Pattern, Program, Repeat, Stmt
from nnc.lang.dims import ZERO, Dim, Facts, dim_max, dim_sum, prove_nonneg
from nnc.lang.types import DType

_ON_STACK = 16 << 10  # bytes: larger local buffers live in scratch
_PART = 120_000  # characters: about 0.1 s of LLVM's time

_RUNTIME = """\
@nn_zeros = internal constant [512 x i8] zeroinitializer, align 64
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
!0 = !{!"branch_weights", i32 1, i32 2000}

define internal void @nn_index_error(ptr %ctx, i64 %site, i64 %value, i64 %extent) noinline cold {
  %place = getelementptr i64, ptr %ctx, i64 2
  %swap = cmpxchg ptr %place, i64 0, i64 %site monotonic monotonic
  %first = extractvalue { i64, i1 } %swap, 1
  br i1 %first, label %record, label %done
record:
  %value.place = getelementptr i64, ptr %ctx, i64 3
  store i64 %value, ptr %value.place
  %extent.place = getelementptr i64, ptr %ctx, i64 4
  store i64 %extent, ptr %extent.place
  br label %done
done:
  ret void
}
"""


_Text = tuple[str, str, frozenset[vecmath.Request]]  # of a kernel: name, text, functions called


@dataclass(frozen=True)
class Module:
    """LLVM IR of one Program.

    `sites`: of the index checks, in order of their numbers; `scratches`: bytes for each thread,
    of the Program and of each case; `externals`: undefined symbols; `contractions`: dtypes whose
    `contract.support_module` must be linked; `parts`: the same as several texts, the first with
    the entry, which can be compiled side by side.
    """

    text: str
    symbol: str
    sites: tuple[Span, ...]
    scratches: tuple[Dim, ...]
    externals: tuple[str, ...]
    contractions: tuple[DType, ...]
    parts: tuple[str, ...]

    @property
    def scratch(self) -> Dim:
        """Bytes for each thread that are enough for every case."""
        return largest(self.scratches, Facts())


@dataclass(frozen=True)
class Case:
    """A Program for calls with these sizes; it has the dims and arguments of the general one."""

    sizes: Sizes
    program: Program


def emit(
    program: Program,
    target: Target,
    symbol: str,
    spmd: type[Spmd] = Spmd,
    more: str = "",
    cases: Sequence[Case] = (),
) -> Module:
    """The module of a Program, exporting `symbol` and `symbol`_bytes.

    `spmd`: how the kernels are called; `more`: functions that this needs; `cases`: Programs that
    are run instead, the first whose sizes are those of the call.
    """
    own = f"{symbol}.0" if cases else symbol
    general = _Emission(program, target, own, spmd, more)
    others = [
        _Emission(c.program, target, f"{symbol}.{i + 1}", spmd, "", general.sites)
        for i, c in enumerate(cases)
    ]
    return _module(symbol, [general, *others], cases)


def _module(symbol: str, parts: Sequence[_Emission], cases: Sequence[Case]) -> Module:
    """The general program (first) and its cases as one module."""
    general = parts[0]
    linkage = "internal " if cases else ""
    kernels = [(name, text, p.calls[name]) for p in parts for text, name in p.named.items()]
    functions = [f for p in parts for f in p.functions(linkage)]
    if cases:
        functions += dispatch(symbol, general.program.dims, [c.sizes for c in cases])
    externs = set[str]().union(*(p.externs for p in parts))
    dtypes = sorted({d for p in parts for d in p.contractions})
    for dtype in dtypes:
        externs |= set(contract.declarations(dtype, general.target))
    constants = [
        f"{name} = internal constant {x}" for p in parts for name, x in p.constants.items()
    ]
    triple = f'target triple = "{general.target.triple}"'
    head = (triple, _RUNTIME, pool.DECLARATIONS, *sorted(externs))

    def text(own: Sequence[_Text], linkage: str, rest: Sequence[str]) -> str:
        wide = general.target.isa == "avx512"
        math, declares = vecmath.closure({c for _, _, calls in own for c in calls}, wide)
        defined = [f"define {linkage} void {name}{text}" for name, text, _ in own]
        return "\n".join((*head, *sorted(declares - externs), math, *defined, *rest))

    rest = (general.more, *constants, *functions)
    whole, groups = text(kernels, "internal", rest), _groups(kernels)
    texts = [whole]
    if len(groups) > 1:
        heads = [(name, t[: t.index(")") + 1]) for name, t, _ in kernels]
        declared = [f"declare hidden void {name}{head} nounwind" for name, head in heads]
        texts = [text((), "", (*declared, *rest)), *(text(g, "hidden", ()) for g in groups)]
    return Module(
        whole,
        symbol,
        tuple(span for _, span in general.sites.values()),
        tuple(p.scratch for p in parts),
        _externals(dtypes, general.target),
        tuple(dtypes),
        tuple(texts),
    )


def _groups(kernels: Sequence[_Text]) -> list[list[_Text]]:
    """Neighbours together, about `_PART` characters in each group."""
    out: list[list[_Text]] = []
    size = _PART
    for each in kernels:
        if size >= _PART:
            out.append([])
            size = 0
        out[-1].append(each)
        size += len(each[1])
    return out


def _externals(dtypes: Sequence[DType], target: Target) -> tuple[str, ...]:
    names = {*pool.FUNCTIONS}
    for dtype in dtypes:
        for group in contract.support_symbols(dtype, target):
            names |= set(group)
    return tuple(sorted(names))


class _Kernel(Regions):
    """One kernel's function."""

    def __init__(self, outer: _Emission, kernel: Kernel, turns: tuple[Repeat, ...]) -> None:
        p = outer.program
        super().__init__(outer.target, p.facts, p.dims)
        self.turns = turns
        for i, t in enumerate(turns):
            self.names[t.var] = Value(f"%turn{i}", "i64")
            self.ranges[t.var] = (ZERO, t.trip - 1)
        self.outer_names = frozenset(t.var for t in turns)
        self.outer = outer
        self.local: dict[str, str] = {}  # places of local buffers
        self.places: dict[tuple[str, Dim], tuple[Buffer, Dim]] = {}  # those of the parameters
        self.numbers: dict[int, str] = {}  # large ones: parameters too
        self.outline = Outline(self.first)
        self.used = ZERO
        self.checks = False
        self.start()
        self.stored = written(kernel.body)

    def site(self, span: Span) -> int:
        self.checks = True
        return self.outer.site(span)

    def number(self, value: int) -> Value:
        return Value(self.numbers.setdefault(value, f"%number{len(self.numbers)}"), "i64")

    def same(self, e: Expr) -> Expr:
        return self.outline.same(e)

    def first(self, b: Buffer, index: Sequence[Expr]) -> Dim:
        """The element of a buffer at which what an access touches begins."""
        inner = (n for i in index if isinstance(i, Idx) for n in i.dim.names if n.startswith("$"))
        return self.fixed_part(b, flat(b, index), frozenset(inner) - self.outer_names)[0]

    def base(self, b: Buffer, start: Dim) -> str:
        """Element `start` of a buffer: a parameter of the kernel, or local memory."""
        if b.scope == "local":
            if b.name not in self.local:
                self.local[b.name] = self.local_memory(b)
            return self.local[b.name]
        self.places.setdefault((b.name, start), (b, start))
        return f"%buffer{list(self.places).index((b.name, start))}"

    def local_memory(self, b: Buffer) -> str:
        size = b.bytes.const
        if size is not None and size <= _ON_STACK:
            return self.alloca(f"[{size} x i8]")
        return self.scratch(b.bytes)

    def scratch(self, size: Dim) -> str:
        """So many bytes (a formula of sizes) for this thread, for the whole kernel."""
        mine = self.frame_field("scratch")
        start, self.used = self.used, self.used + (size + 63) // 64 * 64
        for name in sorted(start.names):
            self.name(name)
        with self.in_prologue():
            at = self.entry_value(start)
            return flow.offset(self.em, mine, at, "i8")

    def entry_value(self, d: Dim) -> str:
        """A formula of sizes, in the function's entry."""
        scopes, self.scopes = self.scopes, self.scopes[:1]
        memo, self.scopes[0].memo = self.scopes[0].memo, {}
        text = self.uniform(d).text
        self.scopes[0].memo = memo
        self.scopes = scopes
        return text

    def emit(self, body: tuple[Stmt, ...]) -> str:
        """The function's text behind its name: the same for kernels that do the same elsewhere."""
        match body:
            case (Contract() as c,):
                self.contraction(c)
            case (Call() as c,):
                self.outer.externs |= {external.declaration(c)}
                external.emit(self, c)
            case _:
                self.kernel(body)
        parameters = [f", i64 %turn{i}" for i in range(len(self.turns))]
        parameters += [f", i64 {n}" for n in self.numbers.values()]
        parameters += [f", ptr %buffer{i}" for i in range(len(self.places))]
        return (
            f"(ptr %frame, i32 %tid, i32 %nt{''.join(parameters)}) nounwind noinline {{\n"
            "entry:\n  %tid64 = zext i32 %tid to i64\n  %nt64 = zext i32 %nt to i64\n"
            f"{self.body()}\n  ret void\n}}\n"
        )


Sites = dict[tuple[Span, int], tuple[int, Span]]


@dataclass(frozen=True)
class _Function:
    """`places`, `numbers`: which of a kernel's outline are its parameters."""

    name: str
    checks: bool
    places: tuple[int, ...] = ()
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Shared:
    """The function of a pattern. `places`, `numbers`: positions among what kernels fill in, of
    places with how far behind the fixed leading indices they begin."""

    name: str
    checks: bool
    places: tuple[tuple[int, Dim], ...]
    numbers: tuple[int, ...]


def _start(of: Alike, i: int) -> Dim:
    """The element of a buffer where what the kernel knows of it begins."""
    pairs = zip(of.starts[i], strides(of.buffers[i]), strict=False)
    return dim_sum(stride * n for n, stride in pairs)


class _Emission:
    """The functions of one Program: `named` those of kernels, and `launches`, how to call them, as
    soon as it is made."""

    def __init__(
        self,
        program: Program,
        target: Target,
        symbol: str,
        spmd: type[Spmd],
        more: str,
        sites: Sites | None = None,
    ) -> None:
        self.program, self.target, self.symbol = program, target, symbol
        self.spmd, self.more = spmd, more
        self.sites: Sites = {} if sites is None else sites
        self.constants: dict[str, str] = {}
        self.calls: dict[str, frozenset[vecmath.Request]] = {}  # by kernel
        self.contractions: set[str] = set()
        self.externs: set[str] = set()  # declarations of C functions
        self.named: dict[str, str] = {}  # text behind a kernel's name -> the name
        self.alike: dict[Hashable, _Function] = {}  # by outline
        self.patterns: dict[Pattern, _Shared] = {}
        self.scratch = ZERO
        turns = enclosing(program.steps)
        self.launches = [self.kernel(k, turns[i]) for i, k in enumerate(program.kernels)]

    def site(self, span: Span) -> int:
        """The number of a check: one for each place and call that led there."""
        number, _ = self.sites.setdefault((span, id(span.caller)), (len(self.sites) + 1, span))
        return number

    def constant(self, b: Buffer) -> None:
        self.constants.setdefault(constant_name(self.symbol, b), _constant(b))

    def functions(self, linkage: str) -> list[str]:
        """The functions around the kernels; `linkage`: of those that are called from outside."""
        p, many = self.program, len(self.launches) > MANY
        kind = Tabled if self.spmd is Spmd and many else self.spmd
        scopes = Indices(self.target, p.facts, p.dims)
        spmd = kind(scopes, self.symbol, self.launches, p.buffers)
        text = spmd.emit(p.steps, p.prologue)
        outer = Entry(p, self.target, self.symbol, self.scratch, linkage)
        return [text, outer.run(tuple(spmd.offsets)), outer.size()]

    def kernel(self, kernel: Kernel, turns: tuple[Repeat, ...]) -> Launch:
        """How to call its function, which is emitted once for all kernels of a pattern."""
        of = kernel.alike
        if of is None or turns:
            return self.launch(self.outlined(kernel, turns))
        if of.pattern not in self.patterns:
            found = self.outlined(kernel, turns)
            order = {b.name: i for i, b in enumerate(of.buffers)}
            numbers = tuple(of.numbers.index(n) for n in found.numbers)
            places = tuple(
                (order[b.name], at - _start(of, order[b.name])) for b, at in found.places
            )
            self.patterns[of.pattern] = _Shared(found.name, found.checks, places, numbers)
        shared = self.patterns[of.pattern]
        return self.launch(
            Launch(
                shared.name,
                tuple([(of.buffers[i], at + _start(of, i)) for i, at in shared.places]),
                shared.checks,
                tuple([of.numbers[i] for i in shared.numbers]),
            )
        )

    def outlined(self, kernel: Kernel, turns: tuple[Repeat, ...]) -> Launch:
        """Emits its function, unless there is one of a kernel alike (or with the same text)."""
        k = _Kernel(self, kernel, turns)
        outline = k.outline
        shared = outline.block(kernel.body)
        key = (*((t.var, t.trip) for t in turns), *outline.key)
        body = self.alike.get(key) if shared else None
        if body is None:
            body = self.function(k, kernel)
            if not shared:
                return Launch(body.name, tuple(k.places.values()), k.checks, tuple(k.numbers))
            self.alike[key] = body = replace(
                body,
                places=tuple(list(outline.places).index(p) for p in k.places),
                numbers=tuple(list(outline.numbers).index(n) for n in k.numbers),
            )
        places, numbers = list(outline.places.values()), list(outline.numbers)
        return Launch(
            body.name,
            tuple(places[i] for i in body.places),
            body.checks,
            tuple(numbers[i] for i in body.numbers),
        )

    def function(self, k: _Kernel, kernel: Kernel) -> _Function:
        text = k.emit(kernel.body)
        name = self.named.setdefault(text, f"@{self.symbol}.k{len(self.named)}")
        self.calls[name] = frozenset(k.ops.calls)
        self.contractions |= k.contractions
        self.scratch = largest((self.scratch, k.used), self.program.facts)
        return _Function(name, k.checks)

    def launch(self, found: Launch) -> Launch:
        for b, _ in found.places:
            if b.scope == "const":
                self.constant(b)
        return found


def largest(dims: Sequence[Dim], facts: Facts) -> Dim:
    """The maximum, without those that are known to be no larger than another."""
    out = ZERO
    for d in dims:
        if prove_nonneg(d - out, facts):
            out = d
        elif not prove_nonneg(out - d, facts):
            out = dim_max(out, d)
    return out


def _constant(b: Buffer) -> str:
    """Initialiser of a constant buffer, in memory form."""
    dtype = b.type.dtype
    element = MEMORY[dtype]
    items = ", ".join(f"{element} {_item(dtype, x)}" for x in b.data)
    return f"[{len(b.data)} x {element}] [{items}], align 64"


def _item(dtype: DType, x: float | int | bool) -> str:
    match dtype:
        case "bool":
            return str(int(x))
        case "bf16":
            return str(int(np.float32(round_bf16(float(x))).view(np.uint32)) >> 16)
        case "f16":
            return str(int(np.float16(x).view(np.uint16)))
    return literal(dtype, x)
