"""Wires the rooms of the elaborator together, and the generic check of every definition of a file."""

from __future__ import annotations

from collections.abc import Mapping

from nnc.diagnostics import Diagnostics, Label, Source
from nnc.ir.graph import Constant, Input
from nnc.lang import ast
from nnc.lang.dims import Dim, Facts
from nnc.lang.elaborate import builtins, calls, expressions, modules, statements
from nnc.lang.elaborate.arith import adapt, declared_origins
from nnc.lang.elaborate.calls import conform
from nnc.lang.elaborate.context import Context, Frame, Mistake, Poisoned, fail
from nnc.lang.elaborate.modules import generic_instance, leaves
from nnc.lang.elaborate.values import (
    UNKNOWN,
    AxisRef,
    Bool,
    Builtin,
    Fill,
    Function,
    Instance,
    Module,
    ModuleType,
    Origin,
    Seq,
    Stored,
    Tensor,
    Tree,
    TreeParam,
    Unknown,
    Value,
    Weak,
    of_node,
)
from nnc.lang.types import DTYPES, TensorType
from nnc.lang.units import STD, Loader, Unit

PRELUDE_STD = {"softmax": "nn"}
Overrides = Mapping[str, Mapping[str, object]]


def std_unit(loader: Loader, name: str) -> Unit:
    """A file of the standard library."""
    path = (STD / f"{name}.nn").resolve()
    if path in loader.units:
        return loader.units[path]
    source = Source(f"std/{name}.nn", path.read_text(encoding="utf-8"))
    unit = loader.load(path, f"std.{name}", source)
    assert unit is not None, loader.diagnostics.items
    return unit


def std_homes(loader: Loader) -> dict[str, list[str]]:
    """For each name that std defines, the modules that define it."""
    out: dict[str, list[str]] = {}
    for path in sorted(STD.glob("*.nn")):
        for name in std_unit(loader, path.stem).defs:
            out.setdefault(name, []).append(f"std.{path.stem}")
    return out


def context(
    loader: Loader, unit: Unit, generic: bool, overrides: Overrides | None = None
) -> Context:
    """A context for one definition or export."""

    def prelude(name: str) -> Value | None:
        if name in builtins.NAMES:
            return Builtin(name)
        if name in PRELUDE_STD:
            home = std_unit(loader, PRELUDE_STD[name])
            defn = home.defs[name]
            assert isinstance(defn, ast.FuncDef)
            return Function(home, defn)
        return None

    frame = Frame(unit, real="real" if generic else "f32")
    cx = Context(loader, prelude, generic, frame, overrides=overrides or {})
    cx.lookup = lambda name: expressions.lookup(cx, name)
    cx.eval = lambda e: expressions.evaluate(cx, e)
    cx.eval_dim = lambda e: expressions.eval_dim(cx, e)
    cx.eval_static = lambda e: modules.static(cx, e)
    cx.execute = lambda body: statements.execute(cx, body)
    cx.call_expr = lambda e: calls.call_expr(cx, e)
    cx.constant = lambda where, d: constant(cx, where, d)
    cx.instantiate = lambda which, args, span: modules.instantiate(cx, which, args, span)
    cx.prelude_names = [*builtins.NAMES, *PRELUDE_STD]
    cx.std_homes = std_homes(loader)
    return cx


def constant(cx: Context, where: Unit, d: ast.ConstDef) -> Value:
    """`const name: T = value`: a number, a size, or a tensor of literals."""
    with cx.in_frame(Frame(where, real=cx.frame.real)), cx.outside_loops():
        value = cx.eval(d.value)
        if d.type is None or isinstance(value, Unknown):
            return value
        if isinstance(d.type, ast.TensorTypeExpr) and d.type.name == "dim":
            return value
        if isinstance(value, Seq):
            value = _table(cx, value, d)
        func = ast.FuncDef(d.name, (), d.type, (), (), False, None, d.name_span, span=d.span)
        return conform(cx, value, d.type, func, d.value.span)


def _table(cx: Context, value: Seq, d: ast.ConstDef) -> Value:
    """Nested lists of literals as a constant tensor."""
    if not isinstance(d.type, ast.TensorTypeExpr) or d.type.name not in DTYPES:
        assert d.type is not None
        raise fail("E0308", "a constant table is a tensor", d.type.span, help="`f32[3]`")
    dtype = cx.frame.real if d.type.name == "real" else d.type.name
    data: list[float | int | bool] = []
    shape: list[int] = []

    def walk(v: Value, depth: int) -> None:
        match v:
            case Seq(items=items) if items is not None:
                if depth == len(shape):
                    shape.append(len(items))
                if shape[depth] != len(items):
                    raise fail("E0203", "the rows of this table differ in length", d.value.span)
                for item in items:
                    walk(item, depth + 1)
            case Weak(number=n) if n is not None:
                data.append(float(n) if DTYPES[dtype].kind == "f" else int(n))
            case Bool(value=b) if b is not None:
                data.append(b)
            case _:
                raise fail("E0203", "a constant holds numbers", d.value.span)

    walk(value, 0)
    kind = TensorType(dtype, tuple(Dim.of(n) for n in shape))
    node = Constant(type=kind, span=d.span, name=d.name, data=tuple(data))
    return of_node(node, (), declared_origins(d.name, kind.shape, d.name_span))


# ---- the generic check ----------------------------------------------------------------------------


def check_unit(loader: Loader, unit: Unit) -> None:
    """Checks every module and every function that is not exported, with sizes as names."""
    for defn in unit.defs.values():
        match defn:
            case ast.ModuleDef():
                _guarded(loader, unit, lambda cx, d=defn: _check_module(cx, unit, d))
            case ast.FuncDef(exported=False):
                _guarded(loader, unit, lambda cx, d=defn: check_function(cx, d, None))
            case ast.ConstDef():
                _guarded(loader, unit, lambda cx, d=defn: constant(cx, unit, d))
    for adjoint in unit.adjoints.values():
        d = fail("E0901", "`adjoint` is not compiled yet", adjoint.name_span).diagnostic
        loader.diagnostics.add(d)


def _guarded(loader: Loader, unit: Unit, job: object) -> None:
    cx = context(loader, unit, True)
    try:
        job(cx)  # type: ignore[operator]
    except Mistake as mistake:
        cx.report(mistake)
    except Poisoned:
        return


def _check_module(cx: Context, unit: Unit, defn: ast.ModuleDef) -> None:
    inst = generic_instance(cx, ModuleType(unit, defn))
    cx.facts = Facts(cx.facts.zero, (*cx.facts.nonneg, *inst.facts))
    base = cx.facts
    self_ = Module(inst, "self", "self")
    add_leaves(cx, inst, "self", True)
    for leaf in leaves(inst):
        if leaf.inst is inst and leaf.type is not None and leaf.decl.init is not None:
            try:
                initial(cx, leaf)
            except Mistake as mistake:
                cx.report(mistake)
            except Poisoned:
                pass
    for method in inst.methods.values():
        cx.facts = base
        saved = {k: s.now for k, s in cx.store.items()}
        try:
            check_function(cx, method, self_)
        except Mistake as mistake:
            cx.report(mistake)
        except Poisoned:
            pass
        for k, now in saved.items():
            cx.store[k].now = now


def add_leaves(cx: Context, inst: Instance, root: str, writable: bool) -> list[Input]:
    """Inputs for all stored tensors of a module argument, as storage."""
    out: list[Input] = []
    for leaf in leaves(inst):
        kind = leaf.type
        if kind is None:
            kind = TensorType(inst.real, (Dim.of(f"..{leaf.key.removesuffix('.*')}"),))
        node = Input(type=kind, span=leaf.decl.span, name=f"{root}.{leaf.key}", kind=leaf.storage)
        name = leaf.decl.name
        cx.add_storage(node, writable, root, _leaf_origins(leaf, kind, name))
        out.append(node)
    return out


def _leaf_origins(leaf: modules.StoredLeaf, kind: TensorType, name: str) -> tuple[Origin, ...]:
    return tuple(o for o in declared_origins(name, kind.shape, leaf.decl.name_span) if o)


def check_function(cx: Context, func: ast.FuncDef, owner: Module | None) -> None:
    """One function with its declared types, sizes as names, calls typed by signature."""
    frame = Frame(cx.frame.unit, func, owner, train=None, real="real")
    with cx.in_frame(frame):
        for p in func.params:
            _symbolic_param(cx, frame, p)
        symbolic_where(cx, frame, func)
        if func.returns is not None:
            _check_result_names(cx, frame, func)
        cx.execute(func.body)
        calls.finish(cx, func, func.name_span)
        warn_unused(cx, func)


def _check_result_names(cx: Context, frame: Frame, func: ast.FuncDef) -> None:
    stack = [func.returns]
    while stack:
        t = stack.pop()
        if isinstance(t, ast.TupleTypeExpr):
            stack.extend(t.items)
        elif isinstance(t, ast.TensorTypeExpr):
            if t.name not in DTYPES and t.name not in ("dim", "tree") and t.dims is not None:
                raise fail("E0801", f"there is no dtype `{t.name}`", t.name_span)
            for d in t.dims or ():
                if not isinstance(d, ast.Rest):
                    for name in calls.quantified(cx, frame, d):
                        raise fail(
                            "E0309",
                            f"`{name}` is not determined by the arguments",
                            d.span,
                            help=f"`where {name} = ...` defines it, or take it from an argument",
                        )


def symbolic_where(cx: Context, frame: Frame, func: ast.FuncDef) -> None:
    """Where clauses as definitions and facts, when a function is elaborated by itself."""
    for clause in func.where:
        if isinstance(clause, ast.WhereDef):
            frame.dims[clause.name] = cx.eval_dim(clause.value)
            continue
        for fact, equal, text in calls.constraint(cx, frame, clause):
            more = (fact, -fact) if equal else (fact,)
            cx.facts = cx.facts.plus(*more)
            cx.require(fact, equal, text, clause.span)


def _symbolic_param(cx: Context, frame: Frame, p: ast.Param) -> None:
    frame.var_spans[p.name] = p.name_span
    match calls._kind(p):
        case "axis":
            frame.vars[p.name] = AxisRef(None)
        case "dim":
            frame.dims[p.name] = Dim.of(p.name)
            frame.dim_spans[p.name] = Origin(f"argument {p.name}", p.name_span)
            cx.facts = Facts(cx.facts.zero | {p.name}, cx.facts.nonneg)
        case "tensor":
            assert isinstance(p.type, ast.TensorTypeExpr)
            frame.vars[p.name] = tensor_param(cx, frame, p, p.type)
        case "tree":
            frame.vars[p.name] = _opaque_tree(cx, p.name, TreeParam(p.name))
        case "params":
            assert isinstance(p.type, ast.AppliedTypeExpr)
            of = modules.tree_argument(cx, p.type)
            frame.vars[p.name] = _opaque_tree(cx, p.name, of)
        case "module":
            inst = calls.module_type(cx, p.type)
            frame.vars[p.name] = Module(inst, p.name, p.name) if inst else UNKNOWN
            if inst is not None:
                add_leaves(cx, inst, p.name, p.inout)
        case _:
            raise fail("E0308", "an argument is a tensor, module, tree or size", p.span)


def _opaque_tree(cx: Context, name: str, of: Instance | TreeParam) -> Value:
    if isinstance(of, Instance) and not of.generic:
        found = {
            x.key: of_node(Input(type=x.type, name=f"{name}.{x.key}"))
            for x in leaves(of)
            if x.storage == "param" and x.type is not None
        }
        return Tree(dict(found), of)
    pack = of.name if isinstance(of, TreeParam) else name
    node = Input(type=TensorType("real", (Dim.of(f"..{pack}"),)), name=name)
    return Tree({"*": of_node(node)}, of)


def tensor_param(cx: Context, frame: Frame, p: ast.Param, t: ast.TensorTypeExpr) -> Value:
    """A declared tensor argument: names in its shape become sizes, a pack one axis."""
    dtype = frame.real if t.name == "real" else t.name
    if dtype not in DTYPES:
        raise fail(
            "E0801",
            f"there is no dtype `{t.name}`",
            t.name_span,
            help=f"{', '.join(d for d in DTYPES)}",
        )
    shape = tuple(_declared_size(cx, frame, d, p) for d in t.dims or ())
    origins = declared_origins(f"{p.name}", shape, p.name_span)
    node = Input(type=TensorType(dtype, shape), span=p.span, name=p.name)
    frame.read_only[p.name] = p.span
    if p.inout:
        cx.add_storage(node, True, p.name, origins)
        del frame.read_only[p.name]
        return Stored(p.name)
    return of_node(node, (), origins)


def _declared_size(cx: Context, frame: Frame, d: ast.Expr, p: ast.Param) -> Dim:
    if isinstance(d, ast.Rest):
        if d.name not in frame.packs:
            frame.packs[d.name] = (Dim.of(f"..{d.name}"),)
        return frame.packs[d.name][0]
    if isinstance(d, ast.Str | ast.Slice | ast.ListLit):
        raise fail("E0309", "a size is expected here", d.span)
    for name in calls.quantified(cx, frame, d):
        if name in DTYPES:
            raise fail("E0309", f"`{name}` is a dtype, a size is expected here", d.span)
        frame.dims[name] = Dim.of(name)
        frame.dim_spans[name] = Origin(f"a size of {p.name}", d.span)
        frame.used.add(name)
    return cx.eval_dim(d)


def warn_unused(cx: Context, func: ast.FuncDef) -> None:
    """Arguments and variables that nothing reads."""
    frame = cx.frame
    params = {p.name for p in func.params}
    for name, span in frame.var_spans.items():
        if name in frame.used or name.startswith("_"):
            continue
        if name in params:
            cx.warn("W0002", f"argument `{name}` is not used", span)
        elif name in frame.vars:
            cx.warn("W0002", f"`{name}` is not used", span)


def warn_imports(diagnostics: Diagnostics, unit: Unit) -> None:
    for name, (_, _, place) in unit.imports.items():
        if name not in unit.used:
            d = fail("W0001", f"`{name}` is imported and not used", place.span).diagnostic
            diagnostics.add(type(d)(d.code, d.message, d.span, severity="warning"))


# ---- initial values ---------------------------------------------------------------------------------


def initial(cx: Context, leaf: modules.StoredLeaf) -> Value:
    """The initial value of a stored tensor, from its declaration in the module's scope."""
    assert leaf.type is not None
    real = leaf.type.dtype if DTYPES[leaf.type.dtype].kind == "f" else cx.frame.real
    frame = Frame(
        leaf.inst.unit,
        instance=leaf.inst,
        real=real,
        train=True,
        initializing=True,
        path=f"init/{leaf.key}",
    )
    init = leaf.decl.init
    template = Fill(leaf.type.shape, 0.0)
    with cx.in_frame(frame):
        if init is None:
            return adapt(cx, template, leaf.type.dtype, leaf.decl.span)
        called = _initializer(cx, init)
        if called is not None:
            fn, call = called
            frame.vars["initial value"] = template
            value = calls.call_function(cx, fn, call, calls.arguments(cx, call))
        else:
            value = cx.eval(init)
            if isinstance(value, Unknown):
                raise Poisoned
        return _filled(cx, value, leaf, init)


def _initializer(cx: Context, init: ast.Expr) -> tuple[Function, ast.Call] | None:
    """`f(args)` whose first parameter is left open: f is called with the tensor before the arguments."""
    if not isinstance(init, ast.Call) or not isinstance(init.func, ast.Name):
        return None
    value = cx.lookup(init.func.id)
    if not isinstance(value, Function):
        found = std_unit(cx.loader, "init").defs.get(init.func.id)
        if not isinstance(found, ast.FuncDef):
            return None
        value = Function(std_unit(cx.loader, "init"), found)
    params = value.defn.params
    given = {a.name for a in init.args if a.name} | {
        p.name for p in params[1 : 1 + sum(a.name is None for a in init.args)]
    }
    open_ = [p.name for p in params if p.name not in given and p.default is None]
    if not params or open_ != [params[0].name]:
        if value.unit.name == "std.init":
            raise fail(
                "E0802",
                f"`{init.func.id}` takes {', '.join(p.name for p in params[1:]) or 'nothing'}",
                init.span,
            )
        return None
    place = init.func.span
    first = ast.Arg(None, ast.Name("initial value", span=place), span=place)
    return value, ast.Call(init.func, (first, *init.args), True, span=init.span)


def _filled(cx: Context, value: Value, leaf: modules.StoredLeaf, init: ast.Expr) -> Value:
    assert leaf.type is not None
    want = leaf.type
    tensor = adapt(cx, value, want.dtype, init.span)
    if isinstance(tensor, Tensor) and not tensor.shape and want.shape:
        one = tensor
        return cx.compute(want.shape, lambda i: one.at(()), init.span)
    if isinstance(tensor, Tensor) and tensor.shape != want.shape:
        raise fail(
            "E0303",
            f"the initial value of `{leaf.decl.name}` has another shape",
            init.span,
            str(tensor.type),
            (Label(leaf.decl.type.span, "declared here"),),
        )
    return tensor


__all__ = ["check_unit", "constant", "context", "initial", "std_unit"]
