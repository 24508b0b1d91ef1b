"""Exports: an exported function becomes a Graph and a signature; modules in use get initializers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

from nnc.diagnostics import Diagnostics, Span
from nnc.ir.graph import Graph, Input, Node, Write
from nnc.ir.signature import ArgSig, ExportSig, Leaf, ModuleSig, ResultSig
from nnc.lang import ast
from nnc.lang.dims import Dim, Facts
from nnc.lang.elaborate import calls, modules
from nnc.lang.elaborate.builtins import _rng
from nnc.lang.elaborate.context import Context, Frame, Mistake, Poisoned, fail
from nnc.lang.elaborate.engine import (
    Overrides,
    add_leaves,
    check_unit,
    context,
    initial,
    symbolic_where,
    tensor_param,
    warn_imports,
    warn_unused,
)
from nnc.lang.elaborate.values import (
    Instance,
    Module,
    ModuleType,
    Nothing,
    Origin,
    Stored,
    Tensor,
    Tree,
    Tuple,
    Unknown,
    Value,
    of_node,
)
from nnc.lang.types import TensorType
from nnc.lang.units import Loader, Unit


@dataclass(frozen=True)
class Built:
    """One export: its Graph and what the runtime must know of it."""

    graph: Graph
    signature: ExportSig
    instances: tuple[Instance, ...] = ()


@dataclass(eq=False)
class Elaborated:
    """A checked file: its exports, its module types with initializers, its tests."""

    unit: Unit
    exports: list[Built] = field(default_factory=list)
    modules: list[tuple[ModuleSig, Graph | None]] = field(default_factory=list)
    tests: list[tuple[str, Graph, tuple[ast.Assert, ...]]] = field(default_factory=list)


def elaborate(
    loader: Loader,
    unit: Unit,
    overrides: Overrides | None = None,
    own_units: list[Unit] | None = None,
) -> Elaborated:
    """Checks every definition of the file (and of the user's files it imports), then builds the exports."""
    out = Elaborated(unit)
    diagnostics = loader.diagnostics
    for each in own_units or [unit]:
        check_unit(loader, each)
    broken = bool(diagnostics.errors)
    for func, module in exported(unit, diagnostics, loader):
        built = _guarded(loader, unit, overrides, func, module, broken)
        if built is not None:
            out.exports.append(built)
    warn_imports(diagnostics, unit)
    if not diagnostics.errors:
        _modules(loader, unit, overrides, out)
        _tests(loader, unit, overrides, out)
    return out


def exported(
    unit: Unit, diagnostics: Diagnostics, loader: Loader
) -> Iterator[tuple[ast.FuncDef, ModuleType | None]]:
    """The exported functions; without any, the methods of the one outermost module."""
    funcs = [d for d in unit.defs.values() if isinstance(d, ast.FuncDef) and d.exported]
    if funcs:
        yield from ((f, None) for f in funcs)
        return
    outer = _outermost(unit)
    if len(outer) == 1:
        which = ModuleType(unit, outer[0])
        for m in outer[0].members:
            if isinstance(m, ast.FuncDef):
                yield m, which


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
    """Builds one export. After mistakes in definitions, follow-up mistakes inside them are not reported."""
    cx = context(loader, unit, False, overrides)
    count = len(loader.diagnostics.items)
    try:
        built = build(cx, unit, func, module)
    except Mistake as mistake:
        cx.report(mistake)
        built = None
    except Poisoned:
        built = None
    if broken:
        items = loader.diagnostics.items
        own = [d for d in items[count:] if _within(d.span, func.span) and module is None]
        items[count:] = own
    return built


def _within(inner: Span, outer: Span) -> bool:
    return inner.source is outer.source and outer.line <= inner.line <= outer.end_line


@dataclass(eq=False)
class _Abi:
    """The flattened arguments of an export, as they are collected."""

    inputs: list[Input] = field(default_factory=list)
    args: list[ArgSig] = field(default_factory=list)
    instances: list[Instance] = field(default_factory=list)


def build(cx: Context, unit: Unit, func: ast.FuncDef, module: ModuleType | None) -> Built:
    """Elaborates an exported function (or, with `module`, a method) into a Graph."""
    frame = Frame(unit, func, exported=True, train=False, path=func.name)
    abi = _Abi()
    if module is not None:
        with cx.in_frame(frame):
            inst = cx.instantiate(module, [], module.defn.name_span)
        frame.owner = Module(inst, "net", "net")
        frame.instance = inst
        _module_arg(cx, abi, "net", inst, True, func.name_span, inst.id)
    with cx.in_frame(frame):
        for p in func.params:
            _argument(cx, frame, p, abi)
        _determined(cx, frame, func)
        symbolic_where(cx, frame, func)
        cx.execute(func.body)
        result = calls.finish(cx, func, func.name_span)
        warn_unused(cx, func)
    if isinstance(result, Unknown):
        raise Poisoned
    return _assemble(cx, func, frame, abi, result)


def _assemble(cx: Context, func: ast.FuncDef, frame: Frame, abi: _Abi, result: Value) -> Built:
    results, shown = _results(cx, result)
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
    signature = ExportSig(
        func.name,
        f"nn_{func.name}",
        tuple(abi.args),
        tuple(shown),
        isinstance(result, Tuple),
        dims,
        tuple(cx.checks),
        func.doc or "",
        f"{func.span.source.name}:{func.span.line}",
        signature_text(func),
    )
    return Built(graph, signature, tuple(abi.instances))


def _size_names(frame: Frame) -> Iterator[str]:
    for name, dim in frame.dims.items():
        if dim.name == name:
            yield name
    for pack in frame.packs.values():
        yield from (d.name for d in pack if d.name)


def _argument(cx: Context, frame: Frame, p: ast.Param, abi: _Abi) -> None:
    place = f"{p.span.source.name}:{p.span.line}"
    text = p.type.span.text if p.type is not None else ""
    frame.var_spans[p.name] = p.name_span
    default = _default(cx, p)
    match calls._kind(p):
        case "dim":
            frame.dims[p.name] = Dim.of(p.name)
            frame.dim_spans[p.name] = Origin(f"argument {p.name}", p.name_span)
            cx.facts = Facts(cx.facts.zero | {p.name}, cx.facts.nonneg)
            abi.args.append(ArgSig(p.name, "dim", default=default, place=place, text=text))
        case "tensor":
            assert isinstance(p.type, ast.TensorTypeExpr)
            value = tensor_param(cx, frame, p, p.type)
            frame.vars[p.name] = value
            node = cx.store[value.key].input if isinstance(value, Stored) else None
            if isinstance(value, Tensor):
                assert isinstance(value.node, Input)
                node = value.node
            assert node is not None
            packs = tuple(i for i, d in enumerate(p.type.dims or ()) if isinstance(d, ast.Rest))
            abi.inputs.append(node)
            abi.args.append(
                ArgSig(p.name, "tensor", node.type, "", p.inout, default, packs, place, text)
            )
        case "params":
            _tree_arg(cx, frame, p, abi, place, text)
        case "module":
            inst = calls.module_type(cx, p.type)
            assert inst is not None
            frame.vars[p.name] = Module(inst, p.name, p.name)
            _module_arg(cx, abi, p.name, inst, p.inout, p.span, text)
        case kind:
            raise fail(
                "E0315",
                f"an exported function cannot take a `{kind}`",
                p.span,
                help="tensors, sizes (`n: dim`), modules and `params(M)` can be passed in",
            )


def _default(cx: Context, p: ast.Param) -> float | int | bool | None:
    match p.default:
        case ast.Num(value=v):
            return v
        case ast.Bool(value=b):
            return b
        case ast.Unary(op="-", operand=ast.Num(value=v)):
            return -v
        case None:
            return None
    raise fail("E0315", "the default of an exported argument is a number", p.default.span)


def _module_arg(
    cx: Context, abi: _Abi, name: str, inst: Instance, inout: bool, span: Span, text: str
) -> None:
    abi.inputs.extend(add_leaves(cx, inst, name, inout))
    abi.instances.append(inst)
    place = f"{span.source.name}:{span.line}"
    abi.args.append(ArgSig(name, "module", None, inst.id, inout, None, (), place, text))


def _tree_arg(cx: Context, frame: Frame, p: ast.Param, abi: _Abi, place: str, text: str) -> None:
    assert isinstance(p.type, ast.AppliedTypeExpr)
    of = modules.tree_argument(cx, p.type)
    if not isinstance(of, Instance):
        raise fail("E0315", "the module of this tree is not known", p.span)
    if p.inout:
        raise fail("E0901", "an `inout` tree argument is not compiled yet", p.span)
    found: dict[str, Value] = {}
    for leaf in modules.leaves(of):
        if leaf.storage == "param":
            assert leaf.type is not None
            node = Input(type=leaf.type, span=p.span, name=f"{p.name}.{leaf.key}")
            abi.inputs.append(node)
            found[leaf.key] = of_node(node)
    frame.vars[p.name] = Tree(found, of)
    abi.instances.append(of)
    abi.args.append(ArgSig(p.name, "tree", None, of.id, False, None, (), place, text))


def _determined(cx: Context, frame: Frame, func: ast.FuncDef) -> None:
    """Every size must be solvable from the arguments' shapes."""
    known = {p.name for p in func.params if calls._kind(p) == "dim"}
    shapes = [n.type.shape for n in _tensor_inputs(cx, frame)]
    patterns = [d for shape in shapes for d in shape]
    for _ in range(len(patterns) + 1):
        for d in patterns:
            open_ = [n for n in d.names if n not in known and n in frame.dims | _pack_names(frame)]
            if len(open_) == 1 and d.linear_in(open_[0]) is not None:
                known.add(open_[0])
    for p in func.params:
        if not isinstance(p.type, ast.TensorTypeExpr):
            continue
        for size in p.type.dims or ():
            if isinstance(size, ast.Rest):
                continue
            for name in sorted(cx.eval_dim(size).names - known):
                raise fail(
                    "E0309",
                    f"`{name}` is not determined by the arguments",
                    size.span,
                    help=f"some argument needs an axis that is `{name}` alone",
                )


def _pack_names(frame: Frame) -> dict[str, Dim]:
    return {d.name: d for pack in frame.packs.values() for d in pack if d.name}


def _tensor_inputs(cx: Context, frame: Frame) -> Iterator[Input]:
    for value in frame.vars.values():
        if isinstance(value, Stored):
            yield cx.store[value.key].input
        elif isinstance(value, Tensor) and isinstance(value.node, Input):
            yield value.node


def _results(cx: Context, result: Value) -> tuple[list[Node], list[ResultSig]]:
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
            case _:
                raise Poisoned
    return nodes, shown


def _packs_of(kind: TensorType) -> tuple[int, ...]:
    return tuple(i for i, d in enumerate(kind.shape) if (d.name or "").startswith(".."))


def signature_text(func: ast.FuncDef) -> str:
    """`predict(net: MLP, x: f32[B, 64]) -> i32[B]`."""
    params = ", ".join(
        ("inout " if p.inout else "") + f"{p.name}: {p.type.span.text if p.type else ''}"
        for p in func.params
    )
    returns = f" -> {func.returns.span.text}" if func.returns is not None else ""
    return f"{func.name}({params}){returns}"


# ---- modules and their initial values -----------------------------------------------------------------


def _modules(loader: Loader, unit: Unit, overrides: Overrides | None, out: Elaborated) -> None:
    seen: dict[str, Instance] = {}
    for built in out.exports:
        for inst in built.instances:
            seen.setdefault(inst.id, inst)
            for tree in inst.trees.values():
                seen.setdefault(tree.id, tree)
    for inst in seen.values():
        cx = context(loader, unit, False, overrides)
        try:
            out.modules.append(_module(cx, inst))
        except Mistake as mistake:
            cx.report(mistake)
        except Poisoned:
            continue


def _module(cx: Context, inst: Instance) -> tuple[ModuleSig, Graph | None]:
    found = list(modules.leaves(inst))
    stored: list[Leaf] = []
    for leaf in found:
        assert leaf.type is not None, leaf
        place = f"{leaf.decl.span.source.name}:{leaf.decl.span.line}"
        stored.append(Leaf(leaf.key, leaf.type, leaf.storage, place))
    keys = [leaf.key for leaf in stored]
    for leaf in found:
        if keys.count(leaf.key) > 1:
            raise fail(
                "E0807", f"two tensors of {inst.id} have the key `{leaf.key}`", leaf.decl.span
            )
    symbol = "nn_init_" + "".join(c if c.isalnum() else "_" for c in inst.id)
    values: list[Node] = []
    for leaf in found:
        value = initial(cx, leaf)
        assert isinstance(value, Tensor) and value.node is not None, value
        values.append(value.node)
    seed, step = _rng(cx)
    graph = Graph(
        symbol.removeprefix("nn_"), (), (seed, step), tuple(values), (), cx.facts, inst.defn.span
    )
    sig = ModuleSig(
        inst.id,
        inst.defn.name,
        tuple(stored),
        dict(inst.given),
        {n: t.id for n, t in inst.trees.items()},
        dict(inst.defaults),
        symbol if stored else "",
        f"{inst.defn.span.source.name}:{inst.defn.span.line}",
    )
    return sig, graph if stored else None


# ---- tests ----------------------------------------------------------------------------------------------


def _tests(loader: Loader, unit: Unit, overrides: Overrides | None, out: Elaborated) -> None:
    """Each `test` block as a Graph whose results are its assertions."""
    for test in unit.tests:
        cx = context(loader, unit, False, overrides)
        frame = Frame(unit, exported=True, train=False, path=f"test {test.title}")
        with cx.in_frame(frame):
            cx.execute(test.body)
        inputs = cx.rng or ()
        name = f"test_{len(out.tests)}"
        nodes = tuple(n for n, _ in cx.asserted)
        graph = Graph(name, (), tuple(inputs), nodes, (), cx.facts, test.span)
        out.tests.append((test.title, graph, tuple(a for _, a in cx.asserted)))


__all__ = ["Built", "Elaborated", "build", "elaborate", "signature_text"]
