"""The parser: all programs, the tree's shapes, every message, damaged texts, printing."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnc.diagnostics import Diagnostics, Source, render_all
from nnc.lang import ast, build, layout, mistakes, stop, syntax, tables
from nnc.lang.format import format_source
from nnc.lang.printer import print_expr, print_file
from nnc.lang.syntax import parse
from tests import fuzz_source
from tests.conftest import Golden

MODELS = sorted((Path(__file__).parent.parent / "models").glob("*.nn"))
STD = sorted((Path(__file__).parent.parent / "nnc" / "std").glob("*.nn"))
ERRORS = sorted((Path(__file__).parent / "errors" / "syntax").glob("*.nn"))


def read(text: str, name: str = "test.nn") -> ast.File:
    diagnostics = Diagnostics()
    file = parse(Source(name, text), diagnostics)
    assert file is not None and not diagnostics.items, render_all(diagnostics.items)
    return file


def reprinted(file: ast.File) -> str:
    text = print_file(file)
    return print_file(read(text)) if text else ""


def errors(text: str) -> list[tuple[str, int, int]]:
    """Code, line and column of each message."""
    diagnostics = Diagnostics()
    assert parse(Source("test.nn", text), diagnostics) is None
    assert diagnostics.errors
    return [(d.code, d.span.line, d.span.column) for d in diagnostics.items]


def function(*rows: str) -> ast.FuncDef:
    body = "".join(f"    {row}\n" for row in rows)
    (decl,) = read(f"def f(x: real[B]) -> real[B]:\n{body}").decls
    assert isinstance(decl, ast.FuncDef)
    return decl


def expr(text: str) -> Any:
    (stmt,) = function(f"y = {text}").body
    assert isinstance(stmt, ast.Assign)
    return stmt.values[0]


def shape(text: str) -> str:
    """An expression with all its brackets, to see what binds to what."""

    def show(e: Any) -> str:
        match e:
            case ast.Binary(op, a, b):
                return f"({show(a)}{op}{show(b)})"
            case ast.Unary(op, a):
                return f"({op} {show(a)})"
            case ast.IfExpr(c, a, b):
                return f"({show(a)} if {show(c)} else {show(b)})"
            case ast.Compare(first, rest):
                return "(" + show(first) + "".join(op + show(b) for op, b in rest) + ")"
        return print_expr(e)

    return show(expr(text))


# ---- programs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", MODELS + STD, ids=lambda p: p.name)
def test_programs_parse_and_print(path: Path) -> None:
    file = read(path.read_text("utf-8"), path.name)
    assert reprinted(file) == print_file(file)


def test_every_construct_parses_and_prints() -> None:
    text = (Path(__file__).parent / "syntax_all.nn").read_text("utf-8")
    file = read(text)
    assert reprinted(file) == print_file(file)
    kinds = {type(decl) for decl in file.decls}
    assert kinds == set(ast.Decl.__args__)


def test_grammar_has_no_conflicts_and_every_rule_a_callback(caplog: Any) -> None:
    import logging

    import lark

    lark.logger.setLevel(logging.DEBUG)
    made = tables.made(debug=True)
    lark.logger.setLevel(logging.CRITICAL)
    assert "conflict" not in caplog.text.lower()
    names = {r.alias or r.origin.name for r in made.rules if not r.origin.name.startswith("_")}
    silent = {r.origin.name for r in made.rules if r.options.expand1}
    assert names - silent <= set(build._callbacks)
    assert set(build._callbacks) <= names
    terminals = {t.name for t in made.terminals} - {"NAME", "NUMBER", "STRING"}
    assert terminals == set(layout.TYPES.values())


def test_kept_tables_parse_alike() -> None:
    kept: dict[str, bytes] = {}

    def fetch(key: str, make: Callable[[], bytes]) -> bytes:
        return kept[key] if key in kept else kept.setdefault(key, make())

    text = "export def f(x: f32[N]) -> f32[N]:\n    return 2 * x\n"
    want = print_file(read(text))
    for _ in range(2):
        syntax.keep_tables(fetch)
        syntax._lark.cache_clear()
        assert print_file(read(text)) == want
        assert len(kept) == 1
    syntax._kept.clear()
    syntax._lark.cache_clear()


# ---- shapes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a + b * c ** d", "(a+(b*(c**d)))"),
        ("-a ** 2", "(- (a**2))"),
        ("2 ** -a ** b", "(2**(- (a**b)))"),
        ("a - b - c", "((a-b)-c)"),
        ("a / b // c % d @ e", "((((a/b)//c)%d)@e)"),
        ("not a and b or c", "(((not a)andb)orc)"),
        ("not a == b", "(not (a==b))"),
        ("a if c else b if d else e", "(a if c else (b if d else e))"),
        ("a + b if c < d else e", "((a+b) if (c<d) else e)"),
        ("0 <= a < n", "(0<=a<n)"),
        ("where(x >= 0, 1, -1)", "where(x >= 0, 1, -1)"),
        ("mean[..n](z[..n] - 1)", "mean[..n](z[..n] - 1)"),
        ("x[i*s - p else 0]", "x[i * s - p else 0]"),
        ("x[..., -1]", "x[..., -1]"),
        ("x[:, None, a:b, :c, d:]", "x[:, None, a:b, :c, d:]"),
        ("z[b, (k:4, u:H)]", "z[b, (k:4, u:H)]"),
        ("uniform!([..N])", "uniform!([..N])"),
        ("net.head.forward!(x, keep=true)", "net.head.forward!(x, keep=true)"),
        ("[Block(D) for l in L]", "[Block(D) for l in L]"),
        ("1_000 + .5 + 1e-5 + 3.", "(((1000+0.5)+1e-05)+3.0)"),
    ],
)
def test_precedence(text: str, expected: str) -> None:
    assert shape(text) == expected


def test_reduction_is_a_call_of_an_index() -> None:
    call = expr("sum[i, j:N](x[i, j])")
    assert isinstance(call, ast.Call) and isinstance(call.func, ast.Index)
    assert isinstance(call.func.items[1], ast.Slice)


def test_spans() -> None:
    value = expr("relu(a + b) * (c - d)")
    assert isinstance(value, ast.Binary)
    assert value.span.text == "relu(a + b) * (c - d)"
    assert value.op_span.text == "*"
    assert value.right.span.text == "(c - d)"
    assert (value.span.line, value.span.column) == (2, 9)
    assert isinstance(value.left, ast.Call) and value.left.args[0].span.text == "a + b"


def test_spans_of_declarations() -> None:
    f = function("return x")
    assert f.span.line == 1 and f.span.end_line == 2 and f.span.end_column == 13
    assert f.name_span.text == "f" and f.params[0].name_span.text == "x"
    assert f.params[0].span.text == "x: real[B]" and f.returns is not None
    assert f.returns.span.text == "real[B]"


def test_lines_join_in_brackets_after_operators_and_in_where() -> None:
    text = """
def f(x: real[B, T],
        # a remark
      y: real[B]) -> real[B] where
        T <= 1024,   # another
        Y = T//2:
    z = x +
        y
    return z and
        y

def g(x: real[B]) -> real[B] =
    2 * x
"""
    f, g = read(text).decls
    assert isinstance(f, ast.FuncDef) and len(f.where) == 2 and len(f.body) == 2
    assert isinstance(g, ast.FuncDef) and isinstance(g.body[0], ast.Return)


def test_a_signature_goes_on_with_an_arrow_or_where() -> None:
    text = """
def f(x: real[B, T])
        -> real[B]
        where T > 1:
    return x
"""
    (f,) = read(text).decls
    assert isinstance(f, ast.FuncDef) and f.returns and f.where and len(f.body) == 1


def test_a_body_may_be_one_line() -> None:
    text = """
def f(x: real) -> real: return x
adjoint f(x; y, dy): return dy
def g(x: real[N]) -> real[N]:
    y = for n in N: yield x[n]
    return y
"""
    assert len(read(text).decls) == 3


def test_a_dangling_operator_does_not_take_the_next_statement() -> None:
    assert errors("def f(x: real) -> real:\n    y = x +\n    return y\n") == [("E0100", 2, 12)]


def test_a_file_of_comments_declares_nothing() -> None:
    assert read("# to be written\n").decls == ()
    assert errors(" \n\n") == [("E0126", 1, 1)]


def test_docs() -> None:
    text = '"a file"\nmodule M:\n    "a module"\n'
    text += 'def f(x: f32) -> f32:\n    "a function"\n    return x\n'
    file = read(text)
    module, f = file.decls
    assert isinstance(module, ast.ModuleDef) and isinstance(f, ast.FuncDef)
    assert (file.doc, module.doc, f.doc) == ("a file", "a module", "a function")
    assert len(f.body) == 1


@pytest.mark.parametrize("end", ["\r\n", "\r", "\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_and_bom(end: str, start: str, last: bool) -> None:
    text = "def f(x: f32) -> f32:\n    # remark\n\n    return x" + "\n" * last
    (decl,) = read(start + text.replace("\n", end)).decls
    assert decl.span.end_line == 4


# ---- limits -----------------------------------------------------------------------------------


def test_long_chains() -> None:
    plus = expr(" + ".join(["x"] * 5000))
    length = 0
    while isinstance(plus, ast.Binary):
        plus, length = plus.left, length + 1
    assert length == 4999
    body = [f"y = {op.join(['x'] * 5000)}" for op in (" and ", " * ", " < ", ", ")]
    file = read("def f(x: f32) -> f32:\n    " + "\n    ".join(body) + "\n")
    assert print_file(read(print_file(file))) == print_file(file)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("(", ")"), ("x[", "]"), ("f(", ")"), ("[", "]"), ("-", ""), ("not ", ""), ("x**", ""),
        ("x if c else ", ""), ("", ".a"), ("", "[0]"), ("", "(x)"),
    ],
)  # fmt: skip
def test_nesting_limit(before: str, after: str) -> None:
    def text(depth: int) -> str:
        return f"def f(x: f32) -> f32:\n    y = {before * depth}x{after * depth}\n"

    assert print_file(read(text(250)))
    assert [code for code, _, _ in errors(text(300))] == ["E0112"]


def test_nesting_limit_of_blocks_and_branches() -> None:
    def blocks(depth: int) -> str:
        rows = [" " * (i + 1) + "if c:\n" for i in range(depth)]
        return "def f(x: f32) -> f32:\n" + "".join(rows) + " " * (depth + 1) + "pass\n"

    def branches(depth: int) -> str:
        rows = "    elif c:\n        pass\n" * depth
        return "def f(x: f32) -> f32:\n    if c:\n        pass\n" + rows

    for text in (blocks, branches):
        assert print_file(read(print_file(read(text(240)))))
        assert [code for code, _, _ in errors(text(300))] == ["E0112"]


_GARBAGE = {
    "brackets": "(" * 1_000_000,
    "closing": ")" * 1_000_000,
    "pairs": "([{" * 300_000 + "}])" * 30_000,
    "names": "a " * 500_000,
    "rows": "a b\n" * 250_000,
    "rows in a function": "def f(x: f32) -> f32:\n" + "    a b\n" * 125_000,
    "one string": '"' * 1_000_000,
    "quotes": '"""' + "x" * 1_000_000,
    "digits": "9" * 1_000_000,
    "greek": "α" * 1_000_000,
    "spaces": " " * 1_000_000 + "x",
    "blank rows": "\n" * 1_000_000,
    "blank rows in brackets": "def f(" + "\n" * 1_000_000,
    "rising": "".join(" " * i + "x\n" for i in range(1400)),
    "dots": "." * 1_000_000,
    "tabs": "\tx\n" * 300_000,
    "continued": "x +\n" * 250_000,
    "operators": "def f(x: f32) -> f32 = " + "+" * 1_000_000,
    "backslashes": "\\\n" * 500_000,
    "random": "".join(chr(33 + (i * i * 7919 + i * 104729) % 93) for i in range(1_000_000)),
}


@pytest.mark.parametrize("name", _GARBAGE)
def test_a_megabyte_of_garbage_is_refused_quickly(name: str) -> None:
    text = _GARBAGE[name]
    parse(Source("warm.nn", "def f(x: f32) -> f32 = x\n"), Diagnostics())
    start = time.process_time()
    found = errors(text)
    assert time.process_time() - start < 5.0
    assert len(found) <= syntax.ERROR_LIMIT


def test_a_statement_has_a_limit() -> None:
    text = "def f(x: f32) -> f32 = x" + " + x" * layout.STATEMENT_LIMIT + "\n"
    assert [code for code, _, _ in errors(text)] == ["E0128"]


# ---- messages ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ERRORS, ids=lambda p: p.stem)
def test_messages(path: Path, golden: Golden) -> None:
    diagnostics = Diagnostics()
    with path.open(encoding="utf-8", newline="") as file:
        assert parse(Source(path.name, file.read()), diagnostics) is None
    golden(path.with_suffix(".txt"), render_all(diagnostics.items))


def test_every_code_has_a_golden() -> None:
    texts = "".join(path.with_suffix(".txt").read_text("utf-8") for path in ERRORS)
    assert [code for code in stop.CODES if f"[{code}]" not in texts] == ["E0128"]
    assert len(ERRORS) >= 35


@pytest.mark.parametrize("word", sorted(layout.KEYWORDS - {"where"}))
def test_reserved_words_are_no_names(word: str) -> None:
    assert errors(f"def {word}(x: f32) -> f32 = x\n") == [("E0113", 1, 5)]


def test_several_independent_mistakes() -> None:
    text = """
def f(x: real[B]) -> real[B]
    y = x x
    return y

module M(D):
    fc = Linear(D D)
    def forward(x: real[B, D]) -> real[B, D]:
        y = fc(x)
        return y +

    w: real[D] = 0

test "t":
    assert 1 = 1
"""
    assert errors(text) == [
        ("E0109", 2, 29), ("E0100", 3, 11), ("E0100", 7, 19), ("E0100", 10, 19), ("E0123", 12, 5),
        ("E0114", 15, 14),
    ]  # fmt: skip


# ---- formatting -------------------------------------------------------------------------------


def formatted(text: str) -> str:
    result = format_source(Source("test.nn", text), Diagnostics())
    assert result is not None
    return result


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.name)
def test_programs_are_formatted(path: Path) -> None:
    text = path.read_text("utf-8")
    assert formatted(text) == text


def test_formatting() -> None:
    text = """\ufeff
# a function
def f(x: real[B],
      y: real[B]) -> real[B]:   \r
  # first
  z = (x +
       y)


  if z > 0:
   # inner
   z = 1
   # still inner
  # outer
  return z
  # the end
# very end
def g(x: f32) -> f32 = x


"""
    expected = """# a function
def f(x: real[B],
      y: real[B]) -> real[B]:
    # first
    z = (x +
         y)

    if z > 0:
        # inner
        z = 1
        # still inner
    # outer
    return z
    # the end
# very end
def g(x: f32) -> f32 = x
"""
    assert formatted(text) == expected
    assert formatted(expected) == expected
    assert print_file(read(expected)) == print_file(read(text))


# ---- damaged texts ----------------------------------------------------------------------------


def check(text: str) -> None:
    """A tree or an error, never both or neither, and every message can be shown."""
    diagnostics = Diagnostics()
    file = parse(Source("fuzz.nn", text), diagnostics)
    assert (file is None) == bool(diagnostics.errors)
    assert render_all(diagnostics.items) or file is not None
    for d in diagnostics.items:
        for span in (d.span, *(label.span for label in d.labels)):
            assert 1 <= span.line <= span.end_line <= max(len(span.source.lines), 1)
            assert span.column <= len((span.source.lines or [""])[span.line - 1]) + 1
    if file is not None:
        again = format_source(Source("fuzz.nn", text), diagnostics)
        assert again is not None and format_source(Source("f.nn", again), diagnostics) == again
        assert print_file(read(again)) == print_file(file)
        assert reprinted(file) == print_file(file)


def test_damaged_texts() -> None:
    assert fuzz_source.run(check, fuzz_source.mutants(200)) == []


@pytest.mark.slow
def test_many_damaged_texts() -> None:
    assert fuzz_source.run(check, fuzz_source.mutants(2000, first_seed=1000)) == []


def test_the_fuzzer_notices_a_planted_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    generic = mistakes.generic

    def planted(stop: stop.Stop) -> Any:
        if stop.token.text == ")":
            raise KeyError("planted")
        return generic(stop)

    monkeypatch.setattr(mistakes, "generic", planted)
    found = fuzz_source.run(check, fuzz_source.mutants(200))
    assert found and all("planted" in failure.reason for failure in found)


def test_the_fuzzer_notices_a_hang() -> None:
    def slow(text: str) -> None:
        time.sleep(0.02)

    assert len(fuzz_source.run(slow, fuzz_source.mutants(2), seconds=0.01)) == 2
