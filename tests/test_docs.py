"""The documentation tells the truth: every block is compiled, run or generated from the sources.

Blocks of a page, by the word after the fence:

    nnc                  a program, checked and lowered; after `<!-- file PATH -->` it is that file
    nnc-error            a wrong program; the `text` block after it is its messages
    nnc-dump FILE FUNC STAGE [from="..." to="..."]...
                         a dump, or its lines from the first that holds `from` up to, without it,
                         the next that holds `to` ("" is the end); FILE `above` is the last `nnc`
                         block of the page
    python               run, the blocks of a page one after the other, in a copy of models/

`pytest --bless tests/test_docs.py` rewrites what is generated.
"""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import pytest

from nnc.cli import _parser
from nnc.codegen.target import x86
from nnc.compiler import Checked, check, dump_stage, optimise, schedule
from nnc.diagnostics import Source, render_all
from nnc.lang.codes import CODES, GROUPS, explain, manual
from tests.conftest import Golden

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
TARGET = x86("avx2")  # dumps do not depend on the machine that runs the tests


# ---- pages -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A fenced block; `lines` without the fences. A `Block` of kind None is prose."""

    kind: str | None
    info: str
    lines: tuple[str, ...]
    line: int

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    def printed(self) -> list[str]:
        if self.kind is None:
            return list(self.lines)
        return [f"```{self.info}", *self.lines, "```"]


def blocks(text: str) -> Iterator[Block]:
    """The page in pieces, prose and fenced blocks in turn."""
    rows: list[str] = []
    info, start = None, 1
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("```"):
            rows.append(line)
            continue
        kind = None if info is None else (info.split() or [""])[0]
        yield Block(kind, info or "", tuple(rows), start)
        info, rows, start = (line[3:] if info is None else None), [], number + 1
    assert info is None, f"a block is not closed: {info}"
    yield Block(None, "", tuple(rows), start)


@dataclass
class Writer:
    """Goes through a page and renews what is generated."""

    name: str
    out: list[Block] = field(default_factory=list)
    program: str = ""  # the last `nnc` block
    messages: str | None = None  # of the `nnc-error` block just before

    def take(self, block: Block) -> None:
        match block.kind:
            case "nnc":
                block = self.included(block)
                self.program = block.text
                checked_program(self.program, f"{self.name}:{block.line}")
            case "nnc-error":
                checked = checked_text(block.text)
                assert checked.errors, f"{self.name}:{block.line}: this program is right"
                self.messages = render_all(checked.errors)
            case "text" if self.messages is not None:
                block = replace(block, lines=tuple(self.messages.splitlines()))
                self.messages = None
            case "nnc-dump":
                block = replace(block, lines=tuple(self.dump(block)))
        assert block.kind is None or self.messages is None or block.kind == "nnc-error", block
        self.out.append(block)

    def included(self, block: Block) -> Block:
        before = next((x for x in reversed(self.out[-1].lines) if x.strip()), "")
        found = re.fullmatch(r"<!-- file (\S+) -->", before)
        if not found:
            return block
        return replace(block, lines=tuple((ROOT / found[1]).read_text("utf-8").splitlines()))

    def dump(self, block: Block) -> list[str]:
        _, file, function, stage, *parts = shlex.split(block.info)
        checked = checked_text(self.program) if file == "above" else checked_file(file)
        assert checked.elaborated is not None and not checked.errors, block
        text = dump_stage(checked.elaborated, function, stage, TARGET)
        return excerpt(text.rstrip().splitlines(), parts, block)


def excerpt(rows: list[str], parts: list[str], block: Block) -> list[str]:
    """The lines that `from=` and `to=` choose, with `...` between stretches."""
    if not parts:
        return rows
    out: list[str] = []
    marks = [p.split("=", 1) for p in parts]
    for (a, start), (b, stop) in zip(marks[::2], marks[1::2], strict=True):
        assert (a, b) == ("from", "to"), block
        first = next((i for i, row in enumerate(rows) if start in row), None)
        assert first is not None, f"no line with {start!r}: {block.info}"
        after = range(first + 1, len(rows))
        last = next((i for i in after if stop and stop in rows[i]), len(rows))
        assert last < len(rows) or not stop, f"no {stop!r} after {start!r}: {block.info}"
        out += [*(["  ..."] if out else []), *(row.rstrip() for row in rows[first:last])]
    return out


def checked_text(text: str) -> Checked:
    return check(str(ROOT / "docs" / "example.nn"), source=Source("example.nn", text))


@cache
def checked_file(path: str) -> Checked:
    return check(str(ROOT / path), source=Source(path, (ROOT / path).read_text("utf-8")))


def checked_program(text: str, place: str) -> None:
    """A program without errors whose exports become Programs."""
    checked = checked_text(text)
    assert not checked.diagnostics, f"{place}\n{render_all(checked.diagnostics)}"
    assert checked.elaborated is not None
    for built in checked.elaborated.exports:
        schedule(optimise(built.graph))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_page(page: Path, golden: Golden) -> None:
    writer = Writer(str(page.relative_to(ROOT)))
    for block in blocks(page.read_text("utf-8")):
        writer.take(block)
    golden(page, "\n".join(line for b in writer.out for line in b.printed()))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = [b for b in blocks(page.read_text("utf-8")) if b.kind == "python"]
    shutil.copytree(ROOT / "models", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in code:
        exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links(page: Path) -> None:
    for b in blocks(page.read_text("utf-8")):
        for target in re.findall(r"\]\(([^)\s]+)\)", "\n".join(b.lines)) if b.kind is None else ():
            if target.startswith("http"):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{page.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.MULTILINE)
                assert anchor in {slug(h) for h in headings}, f"{page.name}: {target}"


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def test_short_recipe() -> None:
    """The promise of adding-a-scalar.md: it fits on a screen."""
    assert len((ROOT / "docs/adding-a-scalar.md").read_text("utf-8").splitlines()) < 20


# ---- commands --------------------------------------------------------------------------------


def test_commands_exist() -> None:
    """Every `nnc COMMAND --option` of the pages is one of the command line."""
    (actions,) = (a.choices for a in _parser()._actions if a.dest == "command")
    assert actions is not None
    for page in PAGES:
        for command, rest in re.findall(r"\bnnc ([a-z]+)\b((?: [^\s`|]+)*)", code_of(page)):
            known = dict(actions).get(command)
            assert known is not None, f"{page.name}: nnc {command}"
            for option in re.findall(r"(?<!\S)--?[a-zA-Z][-a-z]*", rest):
                assert option in known._option_string_actions, f"nnc {command} {option}"


def code_of(page: Path) -> str:
    """What stands in backquotes and in shell blocks."""
    out = []
    for b in blocks(page.read_text("utf-8")):
        if b.kind is None:
            out += re.findall(r"`([^`\n]+)`", "\n".join(b.lines))
        elif b.kind == "sh":
            out += [line.split("#")[0] for line in b.lines]
    return "\n".join(out)


def test_readme_commands_are_those_of_ci() -> None:
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    assert "pip install -e '.[dev]' && pytest -n auto" in (ROOT / "README.md").read_text("utf-8")
    for words in ("ruff check", "ruff format --check", "mypy", "pytest", "[dev,train]"):
        assert words in script, words


# ---- the tree --------------------------------------------------------------------------------


def tree() -> list[Path]:
    """The files of the repository, or of the directory where there is no git."""
    run = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode == 0 and run.stdout:
        return [ROOT / name for name in run.stdout.splitlines() if (ROOT / name).is_file()]
    return [p for p in ROOT.rglob("*") if p.is_file() and "build" not in p.parts]


def test_no_machine_paths() -> None:
    """Nothing refers to the places of one machine."""
    pattern = re.compile(rb"(?<![\w.<-])/(?:" + b"|".join([b"work", b"root", b"home"]) + rb")/\w")
    for path in tree():
        found = pattern.search(path.read_bytes())
        assert not found, f"{path.relative_to(ROOT)}: {found and found[0]!r}"


# ---- error codes -----------------------------------------------------------------------------


def codes_in_sources() -> dict[str, str]:
    """Every code that stands in a text of the sources (docstrings apart), with one place."""
    out: dict[str, str] = {}
    for path in sorted((ROOT / "nnc").rglob("*.py")):
        if path.name == "codes.py":
            continue
        module = ast.parse(path.read_text("utf-8"))
        docs = {id(n.value) for n in ast.walk(module) if isinstance(n, ast.Expr)}
        for node in ast.walk(module):
            if isinstance(node, ast.Constant) and id(node) not in docs:
                for code in re.findall(r"\b[EW]\d{4}\b", str(node.value)):
                    out.setdefault(code, f"{path.relative_to(ROOT)}:{node.lineno}")
    return out


def test_every_code_is_explained() -> None:
    raised = codes_in_sources()
    missing = {code: place for code, place in raised.items() if code not in CODES}
    assert not missing, f"no entry in nnc/lang/codes.py: {missing}"
    unused = sorted(CODES.keys() - raised.keys())
    assert not unused, f"in nnc/lang/codes.py and raised nowhere: {unused}"


def test_entries_are_whole() -> None:
    for code, entry in CODES.items():
        assert any(code.startswith(prefix) for prefix in GROUPS), code
        assert entry.title and entry.text.endswith((".", ")")), code


def test_error_manual(golden: Golden) -> None:
    golden(ROOT / "docs" / "errors.md", manual())


def test_explain() -> None:
    assert explain("e0302").startswith("E0302: two shapes cannot be combined\n\n")
    with pytest.raises(LookupError, match="did you mean E03"):
        explain("E0399")
