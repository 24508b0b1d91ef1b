"""What stands on a line of a file, for `nnc explain`: computations, declarations, imports."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from nnc.diagnostics import Diagnostics, Span
from nnc.ir.graph import Input
from nnc.lang import ast
from nnc.lang.elaborate.values import Instance, Sub, SubList
from nnc.lang.elaborate.walks import nested
from nnc.lang.syntax import parse


@dataclass(frozen=True)
class Place:
    """A line of a file, as messages call it; with a header the lines of its body.

    `module` and `member`: when the line declares a member; `says`: what the line is, if it computes
    nothing itself; `library`: the file of an import.
    """

    file: str
    line: int
    end: int
    module: ast.ModuleDef | None = None
    member: str = ""
    says: str = ""
    library: str = ""

    def holds(self, span: Span) -> bool:
        """Whether the line itself computes this."""
        if span.source.name != self.file:
            return False
        return span.line <= self.end and self.line <= span.end_line

    def reached(self, span: Span) -> bool:
        """Whether the line computes this, itself or through a call."""
        return not self.library and any(self.holds(s) for s in span.trail)

    def declares(self, tensor: Input, paths: Sequence[str]) -> bool:
        """Whether this argument's or module's tensor comes from the line; `paths`: of the member
        that it declares."""
        if any(tensor.name.startswith(f"{p}.") for p in paths):
            return True
        return self.line == self.end and self.holds(tensor.span)

    def paths(self, roots: Iterable[tuple[str, Instance]]) -> list[str]:
        """Where in the modules `roots` (by argument) the member of the line stands."""
        out: list[str] = []
        waiting = list(roots) if self.module is not None else []
        while waiting:
            path, inst = waiting.pop()
            if self.member and _same(inst.defn, self.module):
                out.append(f"{path}.{self.member}")
            waiting += _below(path, inst)
        return out

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def _same(one: ast.ModuleDef, other: ast.ModuleDef | None) -> bool:
    """Whether these are one definition (the texts are parsed anew here)."""
    return other is not None and one.name == other.name and one.span.place == other.span.place


def _below(path: str, inst: Instance) -> Iterator[tuple[str, Instance]]:
    """The sub-modules of a module with their paths."""
    for name, member in inst.members.items():
        match member:
            case Sub(inst=one):
                yield f"{path}.{name}", one
            case SubList(items=items):
                yield from ((f"{path}.{name}.{i}", one) for i, one in enumerate(items or ()))


def about(place: Place, spans: Sequence[Span]) -> Place:
    """The place with what the text says there. `spans`: of all that is computed."""
    sources = {s.source.name: s.source for span in spans for s in span.trail}
    source = sources.get(place.file)
    file = None if source is None else parse(source, Diagnostics())
    if file is None:
        return place
    for module, node in _nodes(file):
        span = node.name_span if hasattr(node, "name_span") else node.span
        if span.line <= place.line <= span.end_line and span.source.name == place.file:
            return _meaning(place, module, node, spans)
        if isinstance(node, ast.FuncDef) and node.span.line <= place.line <= node.span.end_line:
            return _block(place, node)
    return place


def _block(place: Place, func: ast.FuncDef) -> Place:
    """The header of a loop or an `if` stands for all of it."""
    for stmt in nested(func.body):
        if isinstance(stmt, ast.For | ast.While | ast.If) and stmt.span.line == place.line:
            return replace(place, end=stmt.span.end_line)
    return place


def _nodes(file: ast.File) -> Iterator[tuple[ast.ModuleDef | None, ast.Syntax]]:
    """Definitions and members of modules, each with its module."""
    for decl in file.decls:
        yield None, decl
        if isinstance(decl, ast.ModuleDef):
            yield from ((decl, m) for m in decl.members)


def _meaning(
    place: Place, module: ast.ModuleDef | None, node: ast.Syntax, spans: Sequence[Span]
) -> Place:
    match node:
        case ast.Import(module=file, names=names, alias=alias):
            what = ", ".join(f"`{n.id}`" for n in names) or f"`{alias or module}`"
            return _imported(place, file, what, spans)
        case ast.ModuleDef(name=name):
            says = f"{place} begins the module `{name}`, which computes"
            return replace(place, end=node.span.end_line, says=says)
        case ast.FuncDef(name=name):
            says = f"{place} begins `{name}`, which computes"
            return replace(place, end=node.span.end_line, says=says)
        case ast.ParamDecl(name=name) | ast.StateDecl(name=name) | ast.MemberDecl(name=name):
            kind = "a sub-module" if isinstance(node, ast.MemberDecl) else "a stored tensor"
            says = f"{place} declares `{name}`, {kind}"
            member = name if isinstance(node, ast.MemberDecl) else ""
            return replace(place, module=module, member=member, says=says)
        case ast.Edition() | ast.Specialize() | ast.ConstDef() | ast.TestDef():
            return replace(place, says=f"{place} computes nothing in an export: `{_first(node)}`")
    return place


def _first(node: ast.Syntax) -> str:
    return node.span.source.lines[node.span.line - 1].strip()


def _imported(place: Place, module: str, what: str, spans: Sequence[Span]) -> Place:
    """An import computes nothing; the lines that use the file do."""
    shown = module.replace(".", "/") + ".nn"
    file = next((n for s in spans for x in s.trail if (n := x.source.name).endswith(shown)), shown)
    lines = {
        outer.line
        for s in spans
        for inner, outer in zip(s.trail, s.trail[1:], strict=False)
        if inner.source.name == file and outer.source.name == place.file
    }
    says = f"{place} imports {what} from {file} and computes nothing itself"
    if lines:
        says += f"\n  lines that compute with that file: {', '.join(map(str, sorted(lines)))}"
    return replace(place, says=says, library=file)


def described(place: Place) -> list[str]:
    return [place.says] if place.says else []
