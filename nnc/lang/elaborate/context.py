"""What is known while elaborating: the running function, storage versions, loop variables."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from nnc.diagnostics import NOWHERE, Diagnostic, Diagnostics, Label, Span
from nnc.ir.bounds import condition_facts
from nnc.ir.expr import Const, Expr, Idx, Load, Op, Select, loads, names
from nnc.ir.graph import Axis, Compute, Input, Node, Region
from nnc.ir.signature import Check
from nnc.lang import ast
from nnc.lang.dims import ZERO, Dim, Facts, Range, exact_div, prove_nonneg, whole_multiples
from nnc.lang.elaborate.limits import MOST_STEPS, fits_memory
from nnc.lang.elaborate.mistakes import Exhausted, Mistake, fail
from nnc.lang.elaborate.values import (
    Instance,
    Module,
    ModuleType,
    Origin,
    Origins,
    Stored,
    Tensor,
    Tree,
    Value,
    of_node,
)
from nnc.lang.types import DType, TensorType
from nnc.lang.units import Loader, Unit

LETTERS = "ijklmnpqrstuvwxyz"


@dataclass(frozen=True)
class Binder:
    """An index name: its loop variables (several for `..n`), and where it was bound."""

    vars: tuple[str, ...]
    span: Span
    where: str  # what binds it: `left side`, `sum`


@dataclass(eq=False)
class Frame:
    """One running function (or module header): names, sizes, mode."""

    unit: Unit
    func: ast.FuncDef | None = None
    owner: Module | None = None
    dims: dict[str, Dim] = field(default_factory=dict)
    packs: dict[str, tuple[Dim, ...]] = field(default_factory=dict)
    vars: dict[str, Value] = field(default_factory=dict)
    var_spans: dict[str, Span] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    binders: dict[str, Binder] = field(default_factory=dict)
    real: DType = "f32"
    train: bool | None = False
    bang: bool = False
    exported: bool = False
    path: str = ""
    instance: Instance | None = None
    result: Value | None = None
    returned: bool = False
    dim_spans: dict[str, Origin] = field(default_factory=dict)
    pack_origins: dict[str, Origins] = field(default_factory=dict)
    read_only: dict[str, Span] = field(default_factory=dict)  # arguments that are not `inout`
    inout: dict[str, Span] = field(default_factory=dict)
    trees: dict[str, Tree] = field(default_factory=dict)  # `inout` trees: their leaves are Stored
    initializing: bool = False
    after: list[Callable[[], None]] = field(default_factory=list)  # what follows, innermost last
    continued: bool = False  # what follows has run inside of a branch
    yields: list[list[tuple[Value, Span]]] | None = None  # of the turn of a loop being run
    half: dict[str, Span] = field(default_factory=dict)  # assigned in one branch of an `if` only
    looped: dict[str, Span] = field(default_factory=dict)  # assigned in a run-time loop only
    older: dict[str, list[Value]] = field(default_factory=dict)  # values that `=` has replaced
    made: Span | None = None  # where the sub-module that is called is declared
    outer: tuple[Axis, ...] = ()  # with `wrt`: the index names that the call depends on
    wrt: frozenset[str] = frozenset()  # called in index notation: what `grad` in it is by

    @property
    def module(self) -> Instance | None:
        return self.instance if self.owner is None else self.owner.inst


@dataclass(eq=False)
class Storage:
    """A root argument's leaf: its input, its current version, whether it may be written."""

    input: Input
    now: Tensor
    writable: bool
    root: str
    kind: str  # param, state, arg, local
    declared: Span | None = None  # of the argument


@dataclass(frozen=True)
class Active:
    """A call that is being inlined; `path`: the module whose method it is; `at`: the call, with
    the calls around it."""

    func: ast.FuncDef
    path: str | None
    call: ast.Call
    at: Span

    @property
    def span(self) -> Span:
        return self.call.span


@dataclass(eq=False)
class Context:
    """The elaboration of one definition or export."""

    loader: Loader
    prelude: Callable[[str], Value | None]
    generic: bool
    frame: Frame
    store: dict[str, Storage] = field(default_factory=dict)
    ranges: dict[str, Dim] = field(default_factory=dict)  # active loop variables
    conds: list[Expr] = field(default_factory=list)  # of enclosing lazy branches
    branches: list[Expr] = field(default_factory=list)  # of enclosing `if` statements
    facts: Facts = field(default_factory=Facts)
    turns: dict[str, Dim] = field(default_factory=dict)  # variables of enclosing run-time loops
    calls: list[Active] = field(default_factory=list)
    constants: list[ast.ConstDef] = field(default_factory=list)  # that are being evaluated
    depth: int = 0  # of expressions being evaluated
    sizes: set[Dim] = field(default_factory=set)  # known to be at least 0, or checked at entry
    regions: tuple[Region, ...] = ()  # of recomputation, around what is evaluated
    steps: int = 0  # statements executed, calls inlined, items of lists made
    static_depth: int = 0  # inside the arguments of a module type
    counters: dict[str, int] = field(default_factory=dict)
    rng: tuple[Input, Input] | None = None
    streams: dict[int, str] = field(default_factory=dict)  # of random numbers: their call paths
    instances: dict[str, Instance] = field(default_factory=dict)
    written_at: dict[str, Span] = field(default_factory=dict)
    versions: dict[Node, tuple[str, Span]] = field(default_factory=dict)
    overrides: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    building: list[tuple[Instance, Span]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    root: str = ""  # the path of the module whose method is exported
    probes: dict[str, Node] = field(default_factory=dict)  # of `probe p`: path -> value
    asserted: list[tuple[Node, ast.Assert]] = field(default_factory=list)
    replays: dict[Hashable, object] = field(default_factory=dict)  # see elaborate.replay
    leaf_names: dict[Hashable, tuple[str, ...]] = field(default_factory=dict)  # of instances
    # wired by elaborate.engine, so that the rooms need not import each other
    lookup: Callable[[str], Value | None] = field(init=False)
    eval: Callable[[ast.Expr], Value] = field(init=False)
    eval_dim: Callable[[ast.Expr], Dim] = field(init=False)
    eval_static: Callable[[ast.Expr], Value] = field(init=False)
    execute: Callable[[Sequence[ast.Stmt]], None] = field(init=False)
    call_expr: Callable[[ast.Call], Value] = field(init=False)
    constant: Callable[[Unit, ast.ConstDef], Value] = field(init=False)
    instantiate: Callable[[ModuleType, Sequence[ast.Arg], Span], Instance] = field(init=False)
    prelude_names: list[str] = field(default_factory=list)
    std_homes: dict[str, list[str]] = field(default_factory=dict)

    # ---- reporting ----------------------------------------------------------------------------
    @property
    def diagnostics(self) -> Diagnostics:
        return self.loader.diagnostics

    def report(self, mistake: Mistake) -> None:
        self.diagnostics.add(self._at_home(mistake.diagnostic))

    def _at_home(self, d: Diagnostic) -> Diagnostic:
        """A mistake that shows inside the library is one of the reader's call."""
        own = [c for c in self.calls if not c.span.source.name.startswith("std/")]
        if not d.span.source.name.startswith("std/") or not own:
            return d
        inner = Label(d.span, d.text or "here")
        func = own[-1].call.func.span
        text = f"in `{func.text}`: {d.message}"
        return replace(d, message=text, span=own[-1].span, text="", labels=(inner,), whole=None)

    def step(self, span: Span) -> None:
        """Counts work that a program can multiply by loops and calls."""
        self.steps += 1
        if self.steps > MOST_STEPS:
            text = f"more than {MOST_STEPS} statements and calls when unrolled: not compiled yet"
            raise Exhausted("E0901", text, span)

    def warn(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        self.diagnostics.add(Diagnostic(code, message, span, help=help, severity="warning"))

    def at(self, span: Span) -> Span:
        """A place in the running function, with the calls that led there."""
        return span.through(self.calls[-1].at) if self.calls else span

    # ---- frames and loops ---------------------------------------------------------------------
    @contextmanager
    def in_frame(self, frame: Frame) -> Iterator[Frame]:
        saved = self.frame
        self.frame = frame
        try:
            yield frame
        finally:
            self.frame = saved

    @contextmanager
    def bound(self, binders: Mapping[str, Binder], extents: Mapping[str, Dim]) -> Iterator[None]:
        """Index names and their loop variables, for the extent of one index expression."""
        saved_names, saved_ranges = dict(self.frame.binders), dict(self.ranges)
        self.frame.binders.update(binders)
        self.ranges.update(extents)
        try:
            yield
        finally:
            self.frame.binders, self.ranges = saved_names, saved_ranges

    @contextmanager
    def under(self, cond: Expr) -> Iterator[None]:
        """Inside the branch of a lazy `if`."""
        self.conds.append(cond)
        try:
            yield
        finally:
            self.conds.pop()

    @contextmanager
    def on_branch(self, cond: Expr) -> Iterator[None]:
        """Inside one side of an `if` on a run-time condition, outside of index notation."""
        self.branches.append(cond)
        try:
            yield
        finally:
            self.branches.pop()

    @property
    def branch(self) -> Expr | None:
        """Whether the statements that are run are reached at run time; None: always."""
        out: Expr | None = None
        for c in self.branches:
            out = c if out is None else Op("bool", "and", (out, c))
        return out

    @contextmanager
    def assuming(self, facts: Sequence[Dim]) -> Iterator[None]:
        """Where these sizes are >= 0."""
        saved = self.facts
        self.facts = saved.plus(*facts)
        try:
            yield
        finally:
            self.facts = saved

    @contextmanager
    def in_region(self, span: Span, asked: bool) -> Iterator[None]:
        """What is computed may be computed again for a gradient (`asked`: will be)."""
        saved = self.regions
        self.regions = (*saved, Region(self.at(span), asked))
        try:
            yield
        finally:
            self.regions = saved

    @contextmanager
    def outside_loops(self) -> Iterator[None]:
        """Evaluates something that does not depend on the loop variables."""
        saved = self.ranges, self.conds
        self.ranges, self.conds = {}, []
        try:
            yield
        finally:
            self.ranges, self.conds = saved

    def fresh_var(self, name: str, taken: Sequence[str] = ()) -> str:
        var, n = f"${name}", 1
        while var in self.ranges or var in self.turns or var in taken:
            n += 1
            var = f"${name}{n}"
        return var

    def box(self) -> dict[str, Range]:
        return {v: (ZERO, extent - 1) for v, extent in (self.turns | self.ranges).items()}

    def cond_facts(self) -> tuple[Dim, ...]:
        return tuple(f for c in self.conds for f in condition_facts(c, True))

    def proves(self, p: Dim, branches: bool = False) -> bool:
        """Whether p >= 0 under all facts, loop ranges and conditions in force.

        `branches`: those of `on_branch` too. What is proved so must not be evaluated elsewhere.
        """
        known = self.cond_facts()
        if branches:
            known += tuple(f for c in self.branches for f in condition_facts(c, True))
        return prove_nonneg(p, self.facts.plus(*known), self.box())

    def settled(self, d: Dim) -> Dim:
        """A size with K for `2*(K//2)`, and `K//2` for `K - K//2`, where K is known to be even."""
        if any(f.kind == "mod" for g in self.facts.nonneg for f in g.functions):
            for f in d.functions:
                if f.kind == "floor" and f.b.const and self.proves(-(f.a % f.b)):
                    d = whole_multiples(d, f)
        return d

    def divided(self, total: Dim, part: Dim) -> Dim:
        """The exact quotient: 2 of K by `K//2`, where K is known to be even."""
        for f in part.functions:
            if f.kind == "floor" and f.b.const and self.settled(part * f.b) == total:
                return f.b
        return exact_div(total, part)

    # ---- values -------------------------------------------------------------------------------
    def tensor(self, value: Value) -> Value:
        """The current version when `value` names storage."""
        if not isinstance(value, Stored):
            return value
        now, view = self.store[value.key].now, value.view
        if view is None:
            return now
        kind = TensorType(now.dtype, view.shape)
        part = Tensor(kind, lambda i: now.at(view.at(i)), None, (), view.origins)
        return part if self.ranges else self.materialized(part, NOWHERE)

    def as_node(self, t: Tensor, span: Span) -> Node:
        """The tensor as a node of the Graph."""
        node = self.materialized(t, span).node
        assert node is not None, t
        return node

    def materialized(self, t: Tensor, span: Span) -> Tensor:
        """The tensor as a value of the Graph (over the active loops that it depends on)."""
        if t.node is not None:
            return t
        own: list[str] = []
        for k in range(len(t.shape)):
            own.append(self.fresh_var(LETTERS[k % len(LETTERS)], own))
        body = t.at(tuple(Idx(Dim.of(v)) for v in own))
        axes = tuple(zip(own, t.shape, strict=True))
        out = self.node(axes, (), "", body, span, t.origins, hoist=True)
        return replace(out, letters=t.letters, place=t.place)

    def compute(
        self,
        shape: Sequence[Dim],
        body: Callable[[tuple[Expr, ...]], Expr],
        span: Span,
        *,
        reduce: tuple[str, Sequence[Dim], Callable[[tuple[Expr, ...], tuple[Expr, ...]], Expr]]
        | None = None,
        origins: Origins = (),
        dtype: DType | None = None,
        name: str = "",
    ) -> Tensor:
        """A new value of the given shape: `body` gives an element (`reduce`: op over further axes).

        Under loop variables the node gets those that its body uses as leading axes, and the result
        reads it there.
        """
        taken: list[str] = []

        def fresh(n: int) -> tuple[str, ...]:
            out = []
            for _ in range(n):
                var = self.fresh_var(LETTERS[len(taken) % len(LETTERS)], taken)
                taken.append(var)
                out.append(var)
            return tuple(out)

        own = fresh(len(shape))
        index: tuple[Expr, ...] = tuple(Idx(Dim.of(v)) for v in own)
        op, rvars, extents = "", tuple[str, ...](), tuple[Dim, ...]()
        if reduce is None:
            if self.ranges and not shape:
                e = body(())
                return Tensor(TensorType(dtype or e.dtype), lambda i: e, None, (), origins)
            if self.ranges:
                probe = body(index)
                return Tensor(TensorType(probe.dtype, tuple(shape)), body, None, (), origins)
            element = body(index)
        else:
            op, extents, f = reduce[0], tuple(reduce[1]), reduce[2]
            rvars = fresh(len(extents))
            element = f(index, tuple(Idx(Dim.of(v)) for v in rvars))
        return self.node(
            tuple(zip(own, shape, strict=True)),
            tuple(zip(rvars, extents, strict=True)),
            op,
            element,
            span,
            origins,
            name,
        )

    def node(
        self,
        axes: Sequence[tuple[str, Dim]],
        raxes: Sequence[tuple[str, Dim]],
        op: str,
        body: Expr,
        span: Span,
        origins: Origins = (),
        name: str = "",
        hoist: bool = False,
    ) -> Tensor:
        """A Compute node over the active loop variables that its body uses, then `axes`."""
        if self.conds and (op or hoist):
            body = self.guarded(body)
        if self.branches and any(e.check is not None for e in loads(body)):
            zero = Const(body.dtype, False if body.dtype == "bool" else 0)
            body = Select(body.dtype, self.branch, body, zero)  # type: ignore[arg-type]
        used = names([body]) if self.ranges else frozenset()
        outer = [(v, n) for v, n in self.ranges.items() if v in used]
        outer = [(v, n) for v, n in outer if v not in {a for a, _ in (*axes, *raxes)}]
        every = (*outer, *axes)
        fits_memory([n for _, n in every], body.dtype, span)
        for _, n in (*every, *raxes):
            self.not_negative(n, span)
        dtype = "i32" if op in ("argmax", "argmin") else body.dtype
        result = Compute(
            type=TensorType(dtype, tuple(n for _, n in every)),
            span=self.at(span),
            name=name,
            axes=tuple(Axis(v, n) for v, n in every),
            raxes=tuple(Axis(v, n) for v, n in raxes),
            op=op,
            body=body,
            regions=self.regions,
        )
        if not outer:
            return of_node(result, (), origins)
        prefix = tuple(Idx(Dim.of(v)) for v, _ in outer)
        shape = tuple(n for _, n in axes)

        def at(index: tuple[Expr, ...]) -> Expr:
            return Load(dtype, result, (*prefix, *index))

        return Tensor(TensorType(dtype, shape), at, None, (), origins)

    def guarded(self, body: Expr, over: Collection[str] | None = None) -> Expr:
        """A hoisted value keeps the laziness of the branches that it stands in (`over`: of those
        whose conditions use these loop variables only)."""
        conds = self.conds
        if over is not None:
            conds = [c for c in conds if not self.ranges.keys() & names([c]) - {*over}]
        if not conds:
            return body
        cond = conds[0]
        for c in conds[1:]:
            cond = Op("bool", "and", (cond, c))
        zero = Const(body.dtype, False if body.dtype == "bool" else 0)
        return Select(body.dtype, cond, body, zero)

    # ---- storage ------------------------------------------------------------------------------
    def add_storage(
        self,
        node: Input,
        writable: bool,
        root: str,
        origins: Origins = (),
        place: Origin | None = None,
        declared: Span | None = None,
    ) -> None:
        """Storage under the name of its input; `root`: the argument it belongs to."""
        now = replace(of_node(node, (), origins), place=place)
        self.store[node.name] = Storage(node, now, writable, root, node.kind, declared)

    def require(self, dim: Dim, equal: bool, text: str, span: Span) -> None:
        """A condition on run-time sizes, checked at entry."""
        if not self.generic:
            place = f"{span.source.name}:{span.line}"
            self.checks.append(Check(dim, equal, text, place))

    def not_negative(self, size: Dim, span: Span) -> None:
        """A size is at least 0, or checked to be at entry."""
        if size.const is None and (self.generic or size.name or size in self.sizes):
            return
        self.sizes.add(size)
        if prove_nonneg(size, self.facts, self.box()):
            return
        shown = str(size).replace("$", "")
        if size.const is not None or size.names & (self.turns.keys() | self.ranges.keys()):
            raise fail("E0309", f"a size of {shown}", span, "it can be negative")
        self.require(size, False, f"{shown} >= 0", span)

    def instance_labels(self, span: Span) -> list[Label]:
        """Where the instance that is being built comes from."""
        return [Label(s, f"{i.id} is built here") for i, s in self.building if s != span][-1:]
