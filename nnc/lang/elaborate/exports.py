"""Exports: an exported function becomes a Graph and a signature."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from functools import partial

from nnc.diagnostics import Diagnostics, Span
from nnc.ir.graph import Graph, Node, Write
from nnc.ir.signature import ArgSig, ExportSig, ResultSig
from nnc.lang import ast
from nnc.lang.elaborate.abi import Abi, argument, determined, module_arg
from nnc.lang.elaborate.attempts import attempt, deep_recursion
from nnc.lang.elaborate.check_notes import explained
from nnc.lang.elaborate.context import Context, Frame
from nnc.lang.elaborate.elaborated import Built, Elaborated
from nnc.lang.elaborate.engine import Overrides, context
from nnc.lang.elaborate.generic import check_unit, warn_imports, warn_unused
from nnc.lang.elaborate.inits import module_inits, test_graphs
from nnc.lang.elaborate.mistakes import Mistake, Poisoned, fail
from nnc.lang.elaborate.probes import shown as shown_probes
from nnc.lang.elaborate.results import finish
from nnc.lang.elaborate.signatures import check_defaults, equations, symbolic_where
from nnc.lang.elaborate.specializations import specialization
from nnc.lang.elaborate.values import (
    Instance,
    Module,
    ModuleType,
    Nothing,
    Tensor,
    Tree,
    Tuple,
    Unknown,
    Value,
    Weak,
)
from nnc.lang.elaborate.walks import syntax
from nnc.lang.types import TensorType
from nnc.lang.units import Loader, Unit


def elaborate(
    loader: Loader,
    unit: Unit,
    overrides: Overrides | None = None,
    own_units: list[Unit] | None = None,
) -> Elaborated:
    """Checks every definition of the user's files, then builds the exports of this one."""
    with deep_recursion():
        return _elaborate(loader, unit, overrides, own_units or [unit])


def _elaborate(
    loader: Loader, unit: Unit, overrides: Overrides | None, own_units: list[Unit]
) -> Elaborated:
    out = Elaborated(unit)
    diagnostics = loader.diagnostics
    for each in own_units:
        check_unit(loader, each)
    broken = bool(diagnostics.errors)
    for func, module in exported(unit, diagnostics, loader):
        built = _guarded(loader, unit, overrides, func, module, broken)
        if built is not None:
            out.exports.append(built)
    _specialize(loader, unit, overrides, out)
    warn_imports(diagnostics, unit)
    if not diagnostics.errors:
        module_inits(loader, unit, overrides, out)
        test_graphs(loader, unit, overrides, out)
    if diagnostics.errors:  # what is not used may only seem so
        diagnostics.items[:] = diagnostics.errors
    files = list(dict.fromkeys(d.at.source for d in diagnostics.items))
    diagnostics.items.sort(key=lambda d: (files.index(d.at.source), d.at.line, d.at.column))
    return out


def _specialize(loader: Loader, unit: Unit, overrides: Overrides | None, out: Elaborated) -> None:
    """The variants of exports; those of exports with mistakes are not looked at."""
    exports = {b.graph.name: b for b in out.exports}
    methods = not any(_is_export(unit, n) for n in unit.defs) and loader.diagnostics.errors
    for d in unit.specializations:
        if d.name in exports or not (methods or _is_export(unit, d.name)):
            cx = context(loader, unit, False, overrides)
            job = partial(specialization, cx, unit, d, exports, out.specials)
            special = attempt(cx, job, d.span)
            out.specials += [] if special is None else [special]


def _is_export(unit: Unit, name: str) -> bool:
    defn = unit.defs.get(name)
    return isinstance(defn, ast.FuncDef) and defn.exported


def exported(
    unit: Unit, diagnostics: Diagnostics, loader: Loader
) -> Iterator[tuple[ast.FuncDef, ModuleType | None]]:
    """The exported functions; without any, the methods of the one outermost module."""
    funcs = [d for d in unit.defs.values() if isinstance(d, ast.FuncDef) and d.exported]
    outer = _outermost(unit)
    whole = len(outer) == 1 and all(p.default is not None for p in outer[0].params)
    own = outer[0] if whole and not funcs else None
    for d in unit.defs.values():
        if isinstance(d, ast.ModuleDef) and d is not own:
            _refuse_exports(d, diagnostics)
    yield from ((f, None) for f in funcs)
    if own is not None:
        which = ModuleType(unit, own)
        for m in own.members:
            if isinstance(m, ast.FuncDef):
                yield m, which


def _refuse_exports(d: ast.ModuleDef, diagnostics: Diagnostics) -> None:
    """A method is exported only with all others, when a file has one module and no export."""
    for m in d.members:
        if isinstance(m, ast.FuncDef) and m.exported:
            text = "a method is not exported by itself"
            help = f"a function of the file that calls it: `export def f(net: {d.name}, ...)`"
            diagnostics.add(fail("E0123", text, m.name_span, help=help).diagnostic)


def _outermost(unit: Unit) -> list[ast.ModuleDef]:
    """Modules of the file that no other module of the file uses."""
    defs = [d for d in unit.defs.values() if isinstance(d, ast.ModuleDef)]
    used: set[str] = set()
    for d in defs:
        for m in d.members:
            if isinstance(m, ast.MemberDecl):
                used |= {n.id for n in _names(m.value)}
    return [d for d in defs if d.name not in used]


def _names(e: object) -> Iterator[ast.Name]:
    stack = [e]
    while stack:
        node = stack.pop()
        if isinstance(node, tuple):
            stack.extend(node)
        elif isinstance(node, ast.Name):
            yield node
        elif isinstance(node, ast.Syntax):
            stack.extend(getattr(node, f.name) for f in fields(node) if f.name != "span")


def _guarded(
    loader: Loader,
    unit: Unit,
    overrides: Overrides | None,
    func: ast.FuncDef,
    module: ModuleType | None,
    broken: bool,
) -> Built | None:
    """Builds one export. After mistakes in definitions only mistakes in itself are reported."""
    cx = context(loader, unit, False, overrides)
    count = len(loader.diagnostics.items)
    built = attempt(cx, lambda: build(cx, unit, func, module), func.name_span)
    if built is None and not loader.diagnostics.errors:
        text = f"`{func.name}` holds something that is not compiled yet"
        cx.report(fail("E0901", text, func.name_span))
    if broken:
        items = loader.diagnostics.items
        own = [d for d in items[count:] if _within(d.span, func.span) and module is None]
        items[count:] = own
    return built


def _within(inner: Span, outer: Span) -> bool:
    return inner.source is outer.source and outer.line <= inner.line <= outer.end_line


def _writes(method: ast.FuncDef) -> bool:
    """Whether a method may change its module: it updates storage, or calls something with `!`."""
    return any(
        isinstance(s, ast.Update) or (isinstance(s, ast.Call) and s.bang)
        for s in syntax(method.body)
    )


def build(cx: Context, unit: Unit, func: ast.FuncDef, module: ModuleType | None) -> Built:
    """Elaborates an exported function (or, with `module`, a method) into a Graph."""
    frame = Frame(unit, func, exported=True, train=False, path=func.name)
    abi = Abi()
    if module is not None:
        with cx.in_frame(frame):
            inst = cx.instantiate(module, [], module.defn.name_span)
        frame.owner, cx.root = Module(inst, "net", "net"), "net"
        frame.instance = inst
        module_arg(cx, abi, "net", inst, _writes(func), func.name_span, inst.id)
    with cx.in_frame(frame):
        equations(cx, frame, func)
        for p in func.params:
            argument(cx, frame, p, abi)
        determined(cx, frame, func)
        check_defaults(cx, func)
        symbolic_where(cx, frame, func)
        cx.execute(func.body)
        result = finish(cx, func)
        warn_unused(cx, func)
    if isinstance(result, Unknown):
        raise Poisoned
    return _assemble(cx, func, frame, abi, result)


def _assemble(cx: Context, func: ast.FuncDef, frame: Frame, abi: Abi, result: Value) -> Built:
    results, shown = _results(cx, result, func)
    if cx.rng is not None:
        abi.inputs.extend(cx.rng)
        abi.args.extend(ArgSig(i.name, "rng", i.type) for i in cx.rng)
    writes = tuple(
        Write(s.input, s.now.node)
        for s in cx.store.values()
        if s.kind != "local" and s.now.node is not None and s.now.node is not s.input
    )
    dims = tuple(dict.fromkeys(_size_names(frame)))
    graph = Graph(func.name, dims, tuple(abi.inputs), tuple(results), writes, cx.facts, func.span)
    probes = shown_probes(cx.probes, [a.name for a in abi.args if a.kind == "module"])
    signature = ExportSig(
        func.name,
        f"nn_{func.name}",
        tuple(abi.args),
        tuple(shown),
        isinstance(result, Tuple),
        dims,
        explained(cx.checks, [*frame.vars.values(), *([frame.owner] if frame.owner else [])]),
        func.doc or "",
        f"{func.span.source.name}:{func.span.line}",
        signature_text(func, next((a for a in abi.args if frame.owner is not None), None)),
        tuple(probes),
    )
    return Built(graph, signature, tuple(abi.instances), tuple(probes.values()))


def _size_names(frame: Frame) -> Iterator[str]:
    for name, dim in frame.dims.items():
        if dim.name == name:
            yield name
    for pack in frame.packs.values():
        yield from (d.name for d in pack if d.name)


def _results(cx: Context, result: Value, func: ast.FuncDef) -> tuple[list[Node], list[ResultSig]]:
    items = result.items if isinstance(result, Tuple) else (result,)
    nodes: list[Node] = []
    shown: list[ResultSig] = []
    for item in items:
        value = cx.tensor(item)
        match value:
            case Tensor(node=node, type=kind) if node is not None:
                nodes.append(node)
                shown.append(ResultSig("tensor", kind, "", _packs_of(kind)))
            case Tree(leaves=found, of=of) if isinstance(of, Instance):
                for leaf in found.values():
                    t = cx.tensor(leaf)
                    assert isinstance(t, Tensor) and t.node is not None, t
                    nodes.append(t.node)
                shown.append(ResultSig("tree", None, of.id))
            case Nothing():
                continue
            case Tuple() | Weak():
                raise _kept_inside(func)
            case _:
                raise Poisoned
    return nodes, shown


def _kept_inside(func: ast.FuncDef) -> Mistake:
    """Python and C get one row of tensors and trees."""
    t = func.returns
    items = t.items if isinstance(t, ast.TupleTypeExpr) else (t,)
    for item in items:
        if isinstance(item, ast.TupleTypeExpr) and t is not None:
            flat = re.sub(r"[()]", "", t.span.text)
            what = "a tuple inside of a tuple cannot leave an exported function"
            return fail("E0315", what, item.span, help=f"one tuple: `-> ({flat})`")
        if isinstance(item, ast.TensorTypeExpr) and item.name == "dim":
            what = "a size cannot leave an exported function"
            return fail("E0315", what, item.span, help="a number can: `i64`")
    raise AssertionError(func)


def _packs_of(kind: TensorType) -> tuple[int, ...]:
    return tuple(i for i, d in enumerate(kind.shape) if (d.name or "").startswith(".."))


def signature_text(func: ast.FuncDef, owner: ArgSig | None = None) -> str:
    """`predict(net: MLP, x: f32[B, 64]) -> i32[B]`; `owner`: the module of an exported method."""
    rows = [(p.inout, p.name, p.type.span.text if p.type else "") for p in func.params]
    if owner is not None:
        rows = [(owner.inout, owner.name, owner.module), *rows]
    params = ", ".join(("inout " if inout else "") + f"{name}: {of}" for inout, name, of in rows)
    returns = f" -> {func.returns.span.text}" if func.returns is not None else ""
    return f"{func.name}({params}){returns}"
