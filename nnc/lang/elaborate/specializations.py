"""`specialize f(T=1)`: which exports are compiled once more, with numbers for which sizes."""

from __future__ import annotations

from collections.abc import Mapping

from nnc.diagnostics import Label
from nnc.ir.signature import ExportSig
from nnc.lang import ast
from nnc.lang.dims import Dim
from nnc.lang.elaborate.context import Context, Frame
from nnc.lang.elaborate.elaborated import Built, Special
from nnc.lang.elaborate.mistakes import Mistake, fail
from nnc.lang.units import Unit, nearest


def specialization(
    cx: Context, unit: Unit, d: ast.Specialize, exports: Mapping[str, Built], seen: list[Special]
) -> Special:
    """One declaration, checked."""
    built = exports.get(d.name)
    if built is None:
        raise _no_export(unit, d, exports)
    if not d.args:
        raise fail("E0814", "this says no size", d.span, help=_example(built.signature))
    sizes: dict[str, int] = {}
    for arg in d.args:
        name, value = _size(cx, unit, built.signature, arg)
        if name in sizes:
            raise fail("E0814", f"`{name}` is given twice", arg.span)
        sizes[name] = value
    _possible(built.signature, sizes, d)
    for other in seen:
        if other.export == d.name and dict(other.sizes) == sizes:
            label = Label(other.span, "the same")
            raise fail("E0814", "this variant is there already", d.span, labels=(label,))
    return Special(d.name, tuple(sizes.items()), d.span)


def _no_export(unit: Unit, d: ast.Specialize, exports: Mapping[str, Built]) -> Mistake:
    defn = unit.defs.get(d.name)
    if isinstance(defn, ast.FuncDef):
        label = Label(defn.name_span, "not exported")
        text = f"only exported functions are specialized, `{d.name}` is not"
        return fail("E0814", text, d.name_span, labels=(label,), help=f"`export def {d.name}(...)`")
    near = nearest(d.name, list(exports))
    has = ", ".join(f"`{n}`" for n in list(exports)[:6])
    help = f"did you mean `{near}`?" if near else f"the file exports {has}" if has else None
    return fail("E0814", f"there is no export `{d.name}`", d.name_span, help=help)


def _example(sig: ExportSig) -> str | None:
    dims = [n for n in sig.dims if not n.startswith("..")]
    return f"`specialize {sig.name}({dims[0]}=1)`" if dims else None


def _size(cx: Context, unit: Unit, sig: ExportSig, arg: ast.Arg) -> tuple[str, int]:
    if arg.name is None:
        text = "sizes are given by name"
        raise fail("E0814", text, arg.span, help=_example(sig))
    if arg.name not in sig.dims or arg.name.startswith(".."):
        names = [n for n in sig.dims if not n.startswith("..")]
        known = ", ".join(f"`{n}`" for n in names)
        near = nearest(arg.name, names)
        text = f"`{arg.name}` is no run-time size of `{sig.name}`"
        help = f"did you mean `{near}`?" if near else None
        notes = (f"it has {known}" if known else "it has none: all its sizes are numbers",)
        raise fail("E0814", text, arg.span, notes=notes, help=help)
    with cx.in_frame(Frame(unit)):
        dim = cx.eval_dim(arg.value)
    least = 0 if any(a.kind == "dim" and a.name == arg.name for a in sig.args) else 1
    if dim.const is None:
        raise fail("E0814", "a size is specialized to a number", arg.value.span, str(dim))
    if dim.const < least or dim.const >= 1 << 63:
        text = f"`{arg.name}` is at least {least}, and a number of 64 bits"
        raise fail("E0814", text, arg.value.span, str(dim))
    return arg.name, dim.const


def _possible(sig: ExportSig, sizes: Mapping[str, int], d: ast.Specialize) -> None:
    """Some call can have these sizes, as far as it is seen at once."""
    env = {n: Dim.of(v) for n, v in sizes.items()}
    for check in sig.checks:
        value = check.dim.subst(env).const
        if value is not None and (value < 0 or (check.equal and value != 0)):
            given = ", ".join(f"{n} = {v}" for n, v in sizes.items())
            notes = (f"it needs {check.text} ({check.place})",)
            text = f"`{sig.name}` cannot be called with {given}"
            raise fail("E0814", text, d.span, notes=notes)
