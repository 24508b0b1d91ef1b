"""Wires the rooms of the elaborator together."""

from __future__ import annotations

from collections.abc import Mapping

from nnc.diagnostics import Source
from nnc.lang import ast
from nnc.lang.elaborate.builtins import NAMES
from nnc.lang.elaborate.calls import call_expr
from nnc.lang.elaborate.constants import constant
from nnc.lang.elaborate.context import Context, Frame
from nnc.lang.elaborate.expressions import evaluate
from nnc.lang.elaborate.instances import instantiate, static
from nnc.lang.elaborate.names import lookup
from nnc.lang.elaborate.sizes import eval_dim
from nnc.lang.elaborate.statements import execute
from nnc.lang.elaborate.values import Builtin, Function, Value
from nnc.lang.units import STD, Loader, Unit

PRELUDE_STD = {"softmax": "nn", "bernoulli": "random", "categorical": "random"}


Overrides = Mapping[str, Mapping[str, object]]


def std_unit(loader: Loader, name: str) -> Unit:
    """A file of the standard library."""
    path = (STD / f"{name}.nn").resolve()
    if path in loader.units:
        return loader.units[path]
    source = Source(f"std/{name}.nn", path.read_text(encoding="utf-8"), library=True)
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
        if name in NAMES:
            return Builtin(name)
        if name in PRELUDE_STD:
            home = std_unit(loader, PRELUDE_STD[name])
            defn = home.defs[name]
            assert isinstance(defn, ast.FuncDef)
            return Function(home, defn)
        return None

    frame = Frame(unit, real="real" if generic else "f32")
    cx = Context(loader, prelude, generic, frame, overrides=overrides or {})
    cx.lookup = lambda name: lookup(cx, name)
    cx.eval = lambda e: evaluate(cx, e)
    cx.eval_dim = lambda e: eval_dim(cx, e)
    cx.eval_static = lambda e: static(cx, e)
    cx.execute = lambda body: execute(cx, body)
    cx.call_expr = lambda e: call_expr(cx, e)
    cx.constant = lambda where, d: constant(cx, where, d)
    cx.instantiate = lambda which, args, span: instantiate(cx, which, args, span)
    cx.prelude_names = [*NAMES, *PRELUDE_STD]
    cx.std_homes = std_homes(loader)
    return cx
