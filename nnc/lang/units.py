"""Source files and their imports: which name means which definition."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from nnc.diagnostics import Diagnostic, Diagnostics, Label, Source, Span
from nnc.lang import ast
from nnc.lang.elaborate.habits import LAYERS, NAMES
from nnc.lang.syntax import parse

STD = Path(__file__).resolve().parent.parent / "std"
Definition = ast.ModuleDef | ast.FuncDef | ast.ConstDef | ast.ExternDef
BUILT_IN = {"std.random": ("uniform", "normal")}  # may be imported, like the rest of their family


@dataclass(eq=False)
class Unit:
    """One file: its definitions, what it imports, and its adjoints, tests and specialisations."""

    name: str  # dotted, as imported
    file: ast.File
    path: Path
    defs: dict[str, Definition] = field(default_factory=dict)
    imports: dict[str, tuple[Unit, Definition, ast.Name]] = field(default_factory=dict)
    aliases: dict[str, Unit] = field(default_factory=dict)
    adjoints: dict[str, ast.AdjointDef] = field(default_factory=dict)
    tests: list[ast.TestDef] = field(default_factory=list)
    specializations: list[ast.Specialize] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)  # names whose import is a reported mistake

    def find(self, name: str) -> tuple[Unit, Definition] | None:
        """The definition that `name` means at the top of this file."""
        if name in self.defs:
            return self, self.defs[name]
        if name in self.imports:
            self.used.add(name)
            unit, definition, _ = self.imports[name]
            return unit, definition
        return None

    @property
    def names(self) -> list[str]:
        return [*self.defs, *self.imports, *self.aliases]


@cache
def _library(name: str, text: str) -> ast.File | None:
    """A file of the standard library, read once in a process; None when it has mistakes."""
    diagnostics = Diagnostics()
    file = parse(Source(name, text, library=True), diagnostics)
    return None if diagnostics.items else file


@dataclass(eq=False)
class Loader:
    """Reads and links files; every file once. Mistakes go to `diagnostics`."""

    diagnostics: Diagnostics
    units: dict[Path, Unit] = field(default_factory=dict)
    loading: list[tuple[Path, str]] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    cyclic: set[Definition] = field(default_factory=set)  # modules reported to contain themselves

    def load(self, path: Path, name: str, source: Source) -> Unit | None:
        """Parses and links one file; None when it does not parse."""
        key = path.resolve()
        file = _library(source.name, source.text) if key.is_relative_to(STD) else None
        if file is None:
            file = parse(source, self.diagnostics)
        self.sources.append(source if file is None else file.source)
        if file is None:
            return None
        unit = Unit(name, file, path)
        self.units[key] = unit
        self.loading.append((key, name))
        for decl in file.decls:
            self._declare(unit, decl)
        self.loading.pop()
        return unit

    def _declare(self, unit: Unit, decl: ast.Decl) -> None:
        match decl:
            case ast.ModuleDef() | ast.FuncDef() | ast.ConstDef() | ast.ExternDef():
                self._define(unit, decl)
            case ast.Import():
                self._import(unit, decl)
            case ast.AdjointDef():
                first = unit.adjoints.setdefault(decl.name, decl)
                if first is not decl:
                    label = Label(first.name_span, "the first")
                    text = f"`{decl.name}` has two adjoints"
                    self._error("E0807", text, decl.name_span, labels=(label,))
            case ast.TestDef():
                unit.tests.append(decl)
            case ast.Specialize():
                unit.specializations.append(decl)
            case ast.Edition(number=number) if number != 1:
                self._error("E0812", f"edition {number} is not known", decl.span, help="edition 1")

    def _define(self, unit: Unit, decl: Definition) -> None:
        old = unit.defs.get(decl.name)
        if old is None:
            unit.defs[decl.name] = decl
            return
        label = Label(old.name_span, "first defined here")
        unit.failed.add(decl.name)
        what = "two exports" if _exported(old) and _exported(decl) else "two definitions"
        self._error(
            "E0807",
            f"{what} of `{decl.name}`",
            decl.name_span,
            labels=(label,),
            help="rename one of them",
        )

    def _import(self, unit: Unit, decl: ast.Import) -> None:
        target = self._find(unit, decl)
        if target is None:
            last = decl.alias or decl.module.split(".")[-1]
            unit.failed |= {n.id for n in decl.names} or {last}
            return
        if not decl.names:
            names = [decl.alias] if decl.alias else [decl.module, decl.module.split(".")[-1]]
            unit.aliases |= dict.fromkeys(names, target)
        for name in decl.names:
            if name.id in BUILT_IN.get(decl.module, ()):
                continue
            found = target.defs.get(name.id)
            if found is None:
                near = LAYERS.get(name.id) or nearest(name.id, target.defs)
                near = near if near in target.defs else None
                text = f"did you mean `{near}`?" if near else NAMES.get(name.id) or _offer(target)
                homes = _homes(name.id)
                if not near and len(homes) == 1:
                    text = f"`from {homes[0]} import {name.id}`"
                self._error("E0806", f"`{decl.module}` has no `{name.id}`", name.span, help=text)
                unit.failed.add(name.id)
                continue
            old = unit.imports.get(name.id)
            if old is not None and old[1] is not found:
                label = Label(old[2].span, "the first")
                text = f"two imports are called `{name.id}`"
                self._error("E0807", text, name.span, labels=(label,), help=_both(decl, name.id))
            unit.imports[name.id] = (target, found, name)

    def _find(self, unit: Unit, decl: ast.Import) -> Unit | None:
        parts = decl.module.split(".")
        if parts[0] == "std":
            path = STD.joinpath(*parts[1:]).with_suffix(".nn")
            known = [f"std.{p.stem}" for p in sorted(STD.glob("*.nn"))]
            shown = "/".join(["std", *parts[1:]]) + ".nn"
        else:
            path = unit.path.parent.joinpath(*parts).with_suffix(".nn")
            known = [p.stem for p in sorted(unit.path.parent.glob("*.nn"))]
            known += [f"std.{p.stem}" for p in sorted(STD.glob("*.nn"))]
            beside = Path(unit.file.source.name).parent
            shown = str(beside.joinpath(*parts).with_suffix(".nn"))
        if not path.is_file():
            self._missing(decl, known, shown)
            return None
        key = path.resolve()
        cycle = [k for k, _ in self.loading]
        if key in cycle:
            names = [n for _, n in self.loading[cycle.index(key) :]]
            note = " imports ".join([*names, decl.module])
            self._error(
                "E0808",
                "these files import each other",
                decl.module_span,
                notes=(note,),
                help="move what both need into a third file",
            )
            return None
        if key in self.units:
            return self.units[key]
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            self._error("E0805", f"cannot read {shown}: {error}", decl.module_span)
            return None
        return self.load(path, decl.module, Source(shown, text, library=parts[0] == "std"))

    def _missing(self, decl: ast.Import, known: list[str], shown: str) -> None:
        near = nearest(decl.module, known)
        text = f"did you mean `{near}`?" if near else f"nnc looks for {shown}"
        if decl.module.split(".")[0] == "std":
            text = f"the library has {', '.join(k for k in known if k.startswith('std.'))}"
        if decl.module == "std" and not decl.names:
            text = "one of its files: `import std.nn`"
        if decl.module == "std" and decl.names and all(f"std.{n.id}" in known for n in decl.names):
            text = " and ".join(f"`import std.{n.id}`" for n in decl.names)
        homes = [h for n in decl.names for h in _homes(n.id)]
        if len(homes) == len(decl.names) > 0 and len(set(homes)) == 1:
            text = f"`from {homes[0]} import {', '.join(n.id for n in decl.names)}`"
        self._error("E0805", f"there is no file for `{decl.module}`", decl.module_span, help=text)

    def _error(
        self,
        code: str,
        message: str,
        span: Span,
        labels: tuple[Label, ...] = (),
        notes: tuple[str, ...] = (),
        help: str | None = None,
    ) -> None:
        self.diagnostics.add(Diagnostic(code, message, span, labels=labels, notes=notes, help=help))


def _exported(d: Definition) -> bool:
    return isinstance(d, ast.FuncDef) and d.exported


def _offer(unit: Unit) -> str:
    return f"it defines {', '.join(unit.defs)}" if unit.defs else "it defines nothing"


def _both(decl: ast.Import, name: str) -> str:
    return f"`import {decl.module}`, and `{decl.module.split('.')[-1]}.{name}`"


def _homes(name: str) -> list[str]:
    """The modules of the standard library that define a name."""
    out = []
    for path in sorted(STD.glob("*.nn")):
        file = _library(f"std/{path.name}", path.read_text(encoding="utf-8"))
        names = {getattr(d, "name", None) for d in file.decls} if file is not None else set()
        if name in names:
            out.append(f"std.{path.stem}")
    return out


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a slip of typing makes `name` of, if there is one."""
    near = {k: slips(name.lower(), k.lower()) for k in known if k != name}
    found = min(near, key=lambda k: near[k], default=None)
    most = max(1, min(len(name), len(found)) // 3) if found is not None else 0
    if found is None or near[found] > most or (len(name) < 2 and near[found]):
        return None
    return found


def slips(a: str, b: str) -> int:
    """How many letters are missing, surplus, wrong, or swapped with their neighbour."""
    if abs(len(a) - len(b)) > len(a) // 2 + 1:
        return len(a) + len(b)
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        older, before, row = before, row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y)))
            if i > 1 and j > 1 and x == b[j - 2] and y == a[i - 2]:
                row[j] = min(row[j], older[j - 2] + 1)
    return row[-1]
