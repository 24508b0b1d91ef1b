"""The rooms of the house: who may import whom. Imports point only down, and there is no cycle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
    for p in sorted((ROOT / "nnc").rglob("*.py"))
}

# A file may import from lower layers; within a layer, from its own room only.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("nnc.diagnostics", "nnc.errors"),
    ("nnc.lang.dims", "nnc.lang.types"),
    ("nnc.ir",),
    ("nnc.lang", "nnc.passes", "nnc.codegen", "nnc.runtime"),
    ("nnc.budget",),
    ("nnc.compiler",),
    ("nnc.nantrap",),
    ("nnc.driver",),
    ("nnc.apart",),
    ("nnc.loading",),
    ("nnc.quantization", "nnc.api"),
    ("nnc.cli",),
    ("nnc.golden",),
    ("nnc.__main__", "nnc"),
)
EXCEPTIONS = {
    ("nnc.errors", "nnc.diagnostics"),  # CompileError carries Diagnostics
    ("nnc.lang.types", "nnc.lang.dims"),
    ("nnc.cli", "nnc"),  # the version
}

# Imports inside functions: only to keep `import nnc` and `nnc --help` fast, or what may be missing.
LOCAL = {
    "nnc": {"nnc"},
    "nnc.cli": {"nnc"},
    "nnc.cli.commands": {"nnc"},
    "nnc.cli.options": {"nnc"},
    "nnc.golden": {"nnc"},  # pytest loads it for every project
    "nnc.apart": {"nnc"},  # the process that asks never imports the compiler
    "nnc.loading": {"nnc"},  # what is taken from the cache never imports the compiler
    "nnc.api": {"nnc"},  # what loads a compiled artifact never imports the compiler
    "nnc.cli.profile_view": {"matplotlib"},
    "nnc.codegen.objects": {"llvmlite"},  # 40 MB: LLVM works in other processes
    "nnc.codegen.target": {"llvmlite"},
    "nnc.codegen.workers": {"nnc"},  # they start before
    "nnc.runtime.artifact": {"llvmlite"},
    "nnc.runtime.data": {"sklearn"},
    "nnc.runtime.progress": {"matplotlib", "rich"},
}


@dataclass(frozen=True)
class Import:
    """`importer` names `target` on `line`; `local`: inside a function."""

    importer: str
    target: str
    line: int
    local: bool

    def __str__(self) -> str:
        return f"{FILES[self.importer].relative_to(ROOT)}:{self.line} imports {self.target}"


def imports_of(name: str, path: Path) -> Iterator[Import]:
    """Every import of a file; `from package import module` is an import of the module."""
    stack: list[tuple[ast.AST, bool]] = [(ast.parse(path.read_text("utf-8")), False)]
    while stack:
        node, local = stack.pop()
        match node:
            case ast.Import():
                yield from (Import(name, a.name, node.lineno, local) for a in node.names)
            case ast.ImportFrom():
                assert node.level == 0 and node.module, f"{path}:{node.lineno}: a relative import"
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    target = full if full in FILES else node.module
                    yield Import(name, target, node.lineno, local)
        inside = local or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        stack.extend((child, inside) for child in ast.iter_child_nodes(node))


IMPORTS = tuple(i for name, path in FILES.items() for i in imports_of(name, path))


def room(name: str) -> tuple[int, str]:
    """(layer, room) of a module; the most specific entry of LAYERS counts."""
    found = [
        (len(entry), level, entry)
        for level, entries in enumerate(LAYERS)
        for entry in entries
        if name == entry or (name.startswith(entry + ".") and entry != "nnc")
    ]
    assert found, f"{name} belongs to no room of tests/test_layering.py"
    _, level, entry = max(found)
    return level, entry


def allowed(importer: str, target: str) -> bool:
    if (importer, target) in EXCEPTIONS:
        return True
    if target in ("nnc.lang", "nnc.ir"):  # their __init__ is empty
        return True
    (here, own), (there, other) = room(importer), room(target)
    return there < here or (there == here and own == other)


def test_every_file_has_a_room() -> None:
    for name in FILES:
        room(name)


def test_imports_point_down() -> None:
    wrong = [
        str(i)
        for i in IMPORTS
        if i.target.split(".")[0] == "nnc" and not allowed(i.importer, i.target)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_cycles() -> None:
    """Kahn's algorithm; what remains lies on a cycle or above one."""
    needs: dict[str, set[str]] = {name: set() for name in FILES}
    for i in IMPORTS:
        if i.target in FILES and i.target != i.importer and i.importer != "nnc":
            needs[i.importer].add(i.target)
    while ready := [name for name, left in needs.items() if not left]:
        for name in ready:
            del needs[name]
        for left in needs.values():
            left.difference_update(ready)
    assert not needs, f"on or above an import cycle: {sorted(needs)}"


def test_local_imports_are_listed() -> None:
    wrong = []
    for i in IMPORTS:
        granted = LOCAL.get(i.importer, set())
        if i.local and "*" not in granted and i.target.split(".")[0] not in granted:
            wrong.append(str(i))
    assert not wrong, "move these imports to the top:\n" + "\n".join(wrong)


@pytest.mark.parametrize("word", ["TYPE_CHECKING", "import_module"])
def test_no_dodges(word: str) -> None:
    """By name import `nnc` itself, to be quick, and what uses ml_dtypes where it is there."""
    granted = {("nnc", "import_module"), ("nnc.runtime.memory", "import_module")}
    for name, path in FILES.items():
        names = {
            n.id if isinstance(n, ast.Name) else n.attr
            for n in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(n, ast.Name | ast.Attribute)
        }
        assert word not in names or (name, word) in granted, path


@pytest.mark.parametrize(
    ("importer", "target"),
    [
        ("nnc.passes.fuse", "nnc.codegen.llvm"),
        ("nnc.runtime.model", "nnc.compiler"),
        ("nnc.ir.graph", "nnc.lang.ast"),
        ("nnc.lang.dims", "nnc.ir.expr"),
        ("nnc.compiler", "nnc.api"),
        ("nnc.diagnostics", "nnc.errors"),
    ],
)
def test_the_rule_refuses(importer: str, target: str) -> None:
    assert not allowed(importer, target)


def test_options_are_arguments() -> None:
    """No environment variable changes what is compiled: only the runtime (cache) may read any."""
    rooms = ("nnc.lang", "nnc.ir", "nnc.passes", "nnc.codegen", "nnc.compiler", "nnc.diagnostics")
    for name, path in FILES.items():
        if name.startswith(rooms):
            text = path.read_text("utf-8")
            assert "environ" not in text and "getenv" not in text, path
