"""The whole pipeline on one page: model.nn -> checked -> Graph -> Program -> LLVM IR -> object."""

from __future__ import annotations

import errno
import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from nnc.budget import Budget, Choice, within
from nnc.codegen import contract, kept, llvm, objects, replaced
from nnc.codegen.identity import object_key
from nnc.codegen.pool import FUNCTIONS, pool_module
from nnc.codegen.profile import profiled as profiling
from nnc.codegen.pycall import pycall_module
from nnc.codegen.spmd import Spmd, total_work
from nnc.codegen.target import Target
from nnc.codegen.workers import Cache, compiled, host
from nnc.diagnostics import Diagnostic, Diagnostics, Source, Span
from nnc.errors import CompileError
from nnc.ir.dependence import opaque
from nnc.ir.graph import Graph, Node
from nnc.ir.loop import Call, Program
from nnc.ir.print_loop import print_program
from nnc.ir.printer import print_graph
from nnc.ir.signature import (
    Copy,
    Differentiated,
    Extern,
    Manifest,
    Native,
    Special,
    Support,
    Variant,
)
from nnc.lang import ast
from nnc.lang.ast import ModuleDef
from nnc.lang.dims import Dim
from nnc.lang.elaborate.elaborated import Built, Elaborated
from nnc.lang.elaborate.elaborated import Special as Specialized
from nnc.lang.elaborate.exports import elaborate
from nnc.lang.printer import print_file
from nnc.lang.syntax import keep_tables
from nnc.lang.types import DType, is_float
from nnc.lang.units import STD, Loader, Unit, nearest
from nnc.passes.autodiff import autodiff
from nnc.passes.fuse import Fused, fuse, print_fused
from nnc.passes.keyed import keyed
from nnc.passes.lower import lower
from nnc.passes.memory import memory
from nnc.passes.narrow import narrow
from nnc.passes.panels import panels
from nnc.passes.peak import uses
from nnc.passes.prefixes import prefixes
from nnc.passes.products import products
from nnc.passes.simplify import simplify
from nnc.passes.specialize import specialized
from nnc.passes.split import differentiable_inputs, forward_backward
from nnc.passes.verify import verify
from nnc.passes.verify_loop import verify as verify_program
from nnc.passes.winograd import winograd as by_tiles
from nnc.runtime.available import cpu_count

Overrides = Mapping[str, Mapping[str, object]]


def _again(graph: Graph) -> Graph:
    """With sums of many products in two, and sums up to a place carried along."""
    made = prefixes(products(graph))
    return graph if made is graph else simplify(made)


GRAPH_PASSES: tuple[tuple[str, Callable[[Graph], Graph]], ...] = (
    ("autodiff", lambda graph: autodiff(keyed(graph))),
    ("simplify", lambda graph: _again(simplify(graph))),
    ("narrow", narrow),
)
STAGES = ("syntax", "graph", "autodiff", "simplify", "fuse", "loops", "llvm", "asm")


@dataclass(frozen=True)
class Checked:
    """A checked file. `elaborated` is None when it does not parse."""

    path: str
    diagnostics: list[Diagnostic]
    elaborated: Elaborated | None

    @property
    def errors(self) -> list[Diagnostic]:
        return [d for d in self.diagnostics if d.severity == "error"]


@dataclass(frozen=True)
class TestCase:
    """A `test` block as a native function whose results are its assertions."""

    title: str
    native: Native
    assertions: tuple[tuple[str, str], ...]  # (place, what a failure says)
    draws: bool = False  # its native takes seed and step


@dataclass(frozen=True)
class Compiled:
    """Everything native about one file.

    `lazy(name)` compiles an export's forward and backward, `probed(name, paths)` its variant that
    also gives the values of `probe` statements.
    """

    manifest: Manifest
    objects: tuple[bytes, ...]
    support: tuple[Support, ...]
    lazy: Callable[[str], Differentiated]
    dump: Callable[[str, str], str]
    probed: Callable[[str, tuple[str, ...]], Variant]
    tests: tuple[TestCase, ...] = ()
    built: Mapping[str, Built] = field(default_factory=dict)
    cache: Cache | None = None
    choices: tuple[Choice, ...] = ()


@contextmanager
def uncollected() -> Iterator[None]:
    """Without searches for cycles of garbage: nearly all that a compiler makes stays alive."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# ---- front end --------------------------------------------------------------------------------


def read(path: str) -> Source:
    """The text of a file; raises OSError or UnicodeDecodeError."""
    if Path(path).is_fifo():
        raise OSError(errno.ESPIPE, "it is a pipe, and files are read more than once")
    return Source(path, Path(path).read_text(encoding="utf-8-sig"))


@uncollected()
def check(path: str, overrides: Overrides | None = None, source: Source | None = None) -> Checked:
    """Parses, links and checks a file and everything it imports."""
    diagnostics = Diagnostics()
    loader = Loader(diagnostics)
    unit = loader.load(Path(path), Path(path).stem, source or read(path))
    if unit is None:
        return Checked(path, diagnostics.items, None)
    _known_overrides(diagnostics, loader, unit, overrides or {})
    own = [u for p, u in loader.units.items() if not p.is_relative_to(STD.resolve())]
    elaborated = elaborate(loader, unit, overrides, own)
    return Checked(path, diagnostics.items, elaborated)


def _known_overrides(
    diagnostics: Diagnostics, loader: Loader, unit: Unit, overrides: Overrides
) -> None:
    known = {n: d for u in loader.units.values() for n, d in u.defs.items()}
    for module, params in overrides.items():
        defn = known.get(module)
        names = [p.name for p in getattr(defn, "params", ())]
        for param in params:
            if defn is not None and param in names:
                continue
            what = f"{module}.{param}"
            near = nearest(param, names) if defn is not None else nearest(module, list(known))
            diagnostics.add(
                Diagnostic(
                    "E0802",
                    f"there is no module parameter `{what}` to set",
                    unit.file.span if defn is None else defn.name_span,
                    help=f"did you mean `{near}`?" if near else _settable(module, names, unit),
                )
            )


def _settable(module: str, names: Sequence[str], unit: Unit) -> str | None:
    """What an override may name instead."""
    if names:
        return f"{module} has {', '.join(names)}"
    modules = [n for n, d in unit.defs.items() if isinstance(d, ModuleDef) and d.params]
    return f"the file has {', '.join(modules)}" if modules else None


# ---- middle -----------------------------------------------------------------------------------


def optimise(graph: Graph) -> Graph:
    """Runs the Graph passes, verifying after each."""
    verify(graph, "elaborate")
    for name, run in GRAPH_PASSES:
        before, graph = graph, run(graph)
        if graph is not before:
            verify(graph, name)
    return graph


def schedule(
    graph: Graph,
    fused: Fused | None = None,
    constant: frozenset[str] = frozenset(),
    winograd: bool = False,
) -> Program:
    """A Graph without gradients as a Program with its memory planned; `fused`: if at hand.

    `constant`: inputs on which values may be kept from call to call (see `read_only`). `winograd`:
    windows of 3 x 3 over such weights by fewer products, which rounds otherwise.
    """
    program = lower(fused or fuse(graph, winograd=winograd))
    verify_program(program, "lower")
    pairs = zip(graph.inputs, program.args, strict=False)
    leaves = frozenset(b.name for x, b in pairs if x.name in constant)
    if winograd:
        program = by_tiles(program, leaves)
        verify_program(program, "winograd")
    program = panels(program, leaves)
    verify_program(program, "panels")
    program = memory(program)
    verify_program(program, "memory")
    return program


def read_only(built: Built, choice: Choice | None = None) -> frozenset[str]:
    """The inputs of an export that are leaves of modules that it only reads.

    None where memory is limited: what is kept takes more.
    """
    modules = {a.name for a in built.signature.args if a.kind == "module" and not a.inout}
    if choice is not None:
        return frozenset()
    return frozenset(
        x.name
        for x in built.graph.inputs
        if x.kind in ("param", "state") and x.name.split(".")[0] in modules
    )


@dataclass(frozen=True)
class Scheduled:
    """One export with its kernels: what `nnc explain`, `plan` and `profile` report about."""

    built: Built
    graph: Graph  # simplified
    fused: Fused
    program: Program
    special: Specialized | None = None  # of a variant
    choice: Choice | None = None  # to keep a limit of memory

    @property
    def name(self) -> str:
        return self.built.graph.name


def limited(checked: Checked, budget: Budget | None) -> tuple[Elaborated, tuple[Choice, ...]]:
    """What was checked, with what is computed again to keep a limit of memory.

    CompileError with all diagnostics; DeviceError when the limit cannot be kept.
    """
    if checked.errors or checked.elaborated is None:
        raise CompileError(checked.diagnostics)
    if budget is None:
        return checked.elaborated, ()

    def scratch(program: Program) -> Dim:
        return llvm.emit(program, host(), "nn_scratch").scratch * cpu_count()

    return within(checked.elaborated, budget, lambda g: schedule(optimise(g)), scratch)


def scheduled(
    path: str,
    overrides: Overrides | None = None,
    budget: Budget | None = None,
    winograd: bool = False,
) -> list[Scheduled]:
    """Every export of a file, then the variants, up to the Program.

    CompileError with all diagnostics; DeviceError when the limit of memory cannot be kept.
    """
    found, choices = limited(check(path, overrides), budget)
    chosen = {c.name: c for c in choices}
    out = []
    plain = [(None, b) for b in found.exports]
    for special, built in [*plain, *variants(found)]:
        graph = optimise(built.graph)
        fused = fuse(graph, winograd=winograd)
        choice = chosen.get(built.graph.name)
        program = schedule(graph, fused, read_only(built, choice), winograd)
        out.append(Scheduled(built, graph, fused, program, special, choice))
    return out


# ---- back end ---------------------------------------------------------------------------------


@dataclass
class _Objects:
    """Object files, made by other processes side by side, through the cache."""

    target: Target
    cache: Cache | None
    winograd: bool = False
    coming: list[Future[bytes]] = field(default_factory=list)
    shared: dict[DType, Future[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # What every program needs comes first, while there is nothing else to compile yet.
        self.pool, self.call = self.compile(pool_module()), self.compile(pycall_module())

    def native(
        self,
        graph: Graph,
        symbol: str,
        cases: Sequence[llvm.Case] = (),
        constant: frozenset[str] = frozenset(),
    ) -> Native:
        """Compiles an optimised Graph to one native entry; `cases`: its variants."""
        program = schedule(graph, constant=constant, winograd=self.winograd)
        return self.emitted(program, symbol, cases=cases)

    def emitted(
        self,
        program: Program,
        symbol: str,
        profile: bool = False,
        cases: Sequence[llvm.Case] = (),
    ) -> Native:
        """Compiles a Program; `profile`: so that it takes the times of its kernels."""
        more = profiling if profile else (Spmd, "")
        module = llvm.emit(program, self.target, symbol, *more, cases)
        first = len(self.coming)
        self.coming += [self.compile(text) for text in module.parts]
        for dtype in sorted({*module.contractions} - self.shared.keys()):
            self.shared[dtype] = self.compile(contract.support_module(dtype, self.target), dtype)
        return Native(
            symbol,
            first,
            program.dims,
            program.arena,
            module.scratch,
            work_of(program),
            tuple(_site(s) for s in module.sites),
            externs_of(program),
            tuple(
                Special(c.sizes, c.program.arena, n, kept.rows(c.program), self.copies(c.program))
                for c, n in zip(cases, module.scratches[1:], strict=True)
            ),
            uses(program),
            kept.rows(program),
            tuple(range(first + 1, len(self.coming))),
            self.copies(program),
        )

    def copies(self, program: Program) -> tuple[Copy, ...]:
        return replaced.copies(program, self.target) if program.prologue else ()

    def compile(self, text: str, ahead: str = "") -> Future[bytes]:
        return compiled(text, self.target, self.cache, ahead)

    @property
    def made(self) -> tuple[bytes, ...]:
        """The objects that natives refer to by their numbers."""
        return tuple(coming.result() for coming in self.coming)

    def support(self) -> tuple[Support, ...]:
        """The shared code that what was made refers to."""
        key = object_key("", self.target)
        out = [
            Support("pool", self.pool.result(), FUNCTIONS),
            Support("call", self.call.result(), ("nnrt_call",)),
        ]
        for dtype, coming in sorted(self.shared.items()):
            functions, tables = contract.support_symbols(dtype, self.target)
            name = f"contraction {dtype} {key}"
            out.append(Support(name, coming.result(), functions, tables))
        return tuple(out)


def _site(check: Span) -> tuple[str, str]:
    """Place and text of a run-time check: the reader's line, then the library's."""
    if check.own is check:
        return check.place, check.text
    return check.own.place, f"{check.own.text}\n  in {check.place}: {check.text}"


def profiled(found: Scheduled) -> tuple[Native, tuple[bytes, ...], tuple[Support, ...]]:
    """An export that takes the times of its kernels: native, objects, support."""
    out = _Objects(host(), None)
    native = out.emitted(found.program, found.built.signature.symbol, profile=True)
    return native, out.made, out.support()


def externs_of(program: Program) -> tuple[Extern, ...]:
    """The C functions that a program calls, each once."""
    found = {
        s.symbol: Extern(s.symbol, s.prototype, k.span.place)
        for k in program.kernels
        if k.alike is None
        for s in k.body
        if isinstance(s, Call)
    }
    return tuple(found.values())


def work_of(program: Program) -> Dim:
    """About how many scalar operations a run takes."""
    return total_work(program.steps)


@uncollected()
def compile_file(
    path: str,
    overrides: Overrides | None = None,
    target: Target | None = None,
    cache: Cache | None = None,
    tests: bool = False,
    budget: Budget | None = None,
    winograd: bool = False,
) -> Compiled:
    """Compiles every export of a file; CompileError with all diagnostics when it has mistakes.

    DeviceError when the limit of memory cannot be kept.
    """
    if cache is not None:
        keep_tables(cache)
    found, choices = limited(check(path, overrides), budget)
    return compile_found(path, found, target, cache, tests, choices, winograd)


@uncollected()
def compile_found(
    path: str,
    found: Elaborated,
    target: Target | None = None,
    cache: Cache | None = None,
    tests: bool = False,
    choices: tuple[Choice, ...] = (),
    winograd: bool = False,
) -> Compiled:
    """Compiles what a file was elaborated to; `winograd`: see `schedule`."""
    out, chosen = _Objects(target or host(), cache, winograd), {c.name: c for c in choices}
    graphs = {b.graph.name: optimise(b.graph) for b in found.exports}
    natives = [
        out.native(
            graphs[b.graph.name],
            b.signature.symbol,
            _cases(found, b, chosen.get(b.graph.name), winograd),
            read_only(b, chosen.get(b.graph.name)),
        )
        for b in found.exports
    ]
    for module, init in found.modules:
        if init is not None:
            natives.append(out.native(optimise(init), module.init))
    cases = tuple(_tests(found, out)) if tests else ()
    manifest = Manifest(
        path,
        out.target.triple + " " + out.target.cpu,
        tuple(m for m, _ in found.modules),
        tuple(b.signature for b in found.exports),
        tuple(natives),
    )
    built = {b.graph.name: b for b in found.exports}

    def lazy(name: str) -> Differentiated:
        return differentiate(built[name], out.target, cache)

    return Compiled(
        manifest,
        out.made,
        out.support(),
        lazy,
        lambda name, stage: dump_stage(found, name, stage, out.target),
        lambda name, paths: probed(built[name], paths, out.target, cache),
        cases,
        built,
        cache,
        choices,
    )


def variant(built: Built, special: Specialized) -> Built:
    """An export with numbers for the sizes of a `specialize`."""
    graph = specialized(built.graph, special.name, dict(special.sizes))
    return replace(built, graph=graph, probes=())


def variants(found: Elaborated, only: str | None = None) -> list[tuple[Specialized, Built]]:
    """All variants, or those of one export, in the order in which they are tried: those with most
    sizes first."""
    exports = {b.graph.name: b for b in found.exports}
    order = sorted(found.specials, key=lambda s: -len(s.sizes))
    return [(s, variant(exports[s.export], s)) for s in order if only in (None, s.export)]


def _cases(
    found: Elaborated, built: Built, choice: Choice | None, winograd: bool
) -> list[llvm.Case]:
    """The variants of an export as Programs."""
    return [
        llvm.Case(s.sizes, schedule(optimise(b.graph), None, read_only(b, choice), winograd))
        for s, b in variants(found, built.graph.name)
    ]


def _tests(found: Elaborated, out: _Objects) -> Iterable[TestCase]:
    for title, graph, asserts in found.tests:
        native = out.native(optimise(graph), f"nn_{graph.name}")
        places = tuple((a.span.place, _failure(a)) for a in asserts)
        yield TestCase(title, native, places, bool(graph.inputs))


def _failure(a: ast.Assert) -> str:
    return f"{a.cond.span.text} is false" + (f": {a.message}" if a.message else "")


@uncollected()
def differentiate(built: Built, target: Target, cache: Cache | None) -> Differentiated:
    """Forward and backward of one export. CompileError where no derivative is known."""
    _check_derivatives(built.graph)
    forward, backward, gradients = forward_backward(built.graph)
    out = _Objects(target, cache)
    symbol = built.signature.symbol
    natives = [
        out.native(optimise(forward), f"{symbol}_forward"),
        out.native(optimise(backward), f"{symbol}_backward"),
    ]
    n = len(built.graph.results)
    return Differentiated(
        natives[0],
        natives[1],
        tuple(r.type for r in forward.results[n:]),
        tuple(i.name for i in backward.inputs),
        tuple(gradients),
        out.made,
        out.support(),
    )


def _check_derivatives(graph: Graph) -> None:
    """CompileError for a C function without an adjoint between a result and an argument."""
    wrt = differentiable_inputs(graph)
    for result in graph.results:
        for node in opaque(result, wrt) if is_float(result.type.dtype) else ():
            text = f"the gradient goes through the extern function `{node.name}`"
            help = f"write its derivative: `adjoint {node.name}(...; y, dy): return ...`"
            raise CompileError([Diagnostic("E0607", text, node.span, help=help)])


def probed(built: Built, paths: tuple[str, ...], target: Target, cache: Cache | None) -> Variant:
    """An export with the values of some probes as further results."""
    values = dict(zip(built.signature.probes, built.probes, strict=True))
    return widened(built, built.graph, [values[p] for p in paths], "probed", target, cache)


def widened(
    built: Built,
    graph: Graph,
    more: Sequence[Node],
    what: str,
    target: Target,
    cache: Cache | None,
) -> Variant:
    """A version of an export's graph with further results."""
    out = _Objects(target, cache)
    whole = optimise(replace(graph, results=(*graph.results, *more)))
    native = out.native(whole, f"{built.signature.symbol}_{what}")
    types = tuple(n.type for n in more)
    return Variant(native, types, out.made, out.support())


# ---- dumps ------------------------------------------------------------------------------------


def dump(path: str, name: str, stage: str, overrides: Overrides | None = None) -> str:
    """The text of one stage of one export, or of a variant, `f(T=1)`."""
    checked = check(path, overrides)
    if stage == "syntax" and checked.elaborated is not None:
        return print_file(checked.elaborated.unit.file)
    if checked.errors or checked.elaborated is None:
        raise CompileError(checked.diagnostics)
    return dump_stage(checked.elaborated, name, stage, host())


def dump_stage(found: Elaborated, name: str, stage: str, target: Target) -> str:
    """Raises KeyError for an unknown export, ValueError for an unknown stage."""
    if stage not in STAGES:
        raise ValueError(stage)
    if stage == "syntax":
        return print_file(found.unit.file)
    every = (*found.exports, *(b for _, b in variants(found)))
    built = next((b for b in every if b.graph.name == name), None)
    if built is None:
        raise KeyError(name)
    graph = built.graph
    if stage == "graph":
        return print_graph(graph)
    for passed, run in GRAPH_PASSES:
        graph = run(graph)
        if stage == passed:
            return print_graph(graph)
    if stage == "fuse":
        return print_fused(fuse(graph))
    program = schedule(graph, constant=read_only(built))
    if stage == "loops":
        return print_program(program)
    text = llvm.emit(program, target, built.signature.symbol).text
    return text if stage == "llvm" else objects.assembly(text, target)
