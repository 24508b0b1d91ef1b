"""Messages for wrong programs: goldens, one message a mistake, and helps that help."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnc.diagnostics import Diagnostic, Label, Source, Span, render, screen_width
from nnc.lang.codes import CODES
from tests.conftest import Golden
from tests.frontend import front

ERRORS = sorted((Path(__file__).parent / "errors" / "semantic").glob("*.nn"))

# Programs with several mistakes, each of which has its message.
SEVERAL = {
    "branches": 2,
    "const_of_wrong_type": 2,
    "init_shape": 2,
    "call_of_tensor": 3,
    "dtypes": 2,
    "float_size": 2,
    "huge_literal": 2,
    "if_on_tensor": 2,
    "index_count": 2,
    "module_arguments": 2,
    "over_unknown": 3,
    "position_outside": 2,
    "return_count": 2,
    "torch_keywords": 2,
    "undefined_type": 2,
    "unknown_import": 2,
    "unknown_module_file": 2,
    "unpacking": 2,
    "where_clause": 2,
    "python_import": 2,
    "extern_types": 7,
    "specialize": 11,
}
WARNINGS = {"unused": 6, "recompute_without_effect": 1, "adjoint_without_dy": 1}


@pytest.mark.parametrize("path", ERRORS, ids=lambda p: p.stem)
def test_messages(path: Path, golden: Golden) -> None:
    done = front(path.read_text("utf-8"), path)
    golden(path.with_suffix(".txt"), done.text)


@pytest.mark.parametrize("path", ERRORS, ids=lambda p: p.stem)
def test_one_message_a_mistake(path: Path) -> None:
    done = front(path.read_text("utf-8"), path)
    if path.stem in WARNINGS:
        assert not done.diagnostics.errors
        assert len(done.diagnostics.items) == WARNINGS[path.stem]
        return
    assert len(done.diagnostics.errors) == SEVERAL.get(path.stem, 1), done.text
    assert done.diagnostics.items == done.diagnostics.errors


def test_messages_as_json(golden: Golden) -> None:
    path = next(p for p in ERRORS if p.stem == "layer_size")
    (item,) = front(path.read_text("utf-8"), path).diagnostics.items
    golden(path.with_suffix(".json"), json.dumps(item.json(), indent=2))


def test_every_code_is_known() -> None:
    shown = {p.with_suffix(".txt").read_text("utf-8") for p in ERRORS}
    codes = {word[1:-1] for text in shown for word in text.split() if _is_code(word)}
    assert codes <= set(CODES)


def _is_code(word: str) -> bool:
    return len(word) == 7 and word[0] == "[" and word[1] in "EW" and word[2:6].isdigit()


# ---- the help, when followed, works -------------------------------------------------------------

FOLLOWED = [
    ("transposed", "x @ w", "x @ w.T"),
    ("transposed_left", "x @ y", "x.T @ y"),
    ("two_shapes", "x @ w + x[:, :2]", "x @ w + x[:, :5]"),
    ("layer_size", "fc2 = Linear(I, C)", "fc2 = Linear(H, C)"),
    ("broadcast", "d(x) - y", "d(x)[:, 0] - y"),
    ("column_against_vector", "p - y", "p[:, 0] - y"),
    ("row_against_column", "x * s", "x * s[:, None]"),
    ("flatten", "return fc(y)", "flat[b, (i, j, k)] = y[b, i, j, k]\n        return fc(flat)"),
    ("flatten_sizes", "fc = Linear(512, 10)", "fc = Linear(288, 10)"),
    ("channel_order", " = conv(x)",
     ":\n        y[b, k, i, j] = x[b, i, j, k]\n        return conv(y)"),
    ("missing_bang_random", "normal(", "normal!("),
    ("missing_bang_caller", "noisy(x)\n", "noisy!(x)\n"),
    ("superfluous_bang", "exp!(x)", "exp(x)"),
    ("hidden_state", "net!(x)", "net(x)"),
    ("unbound_index", "k[b, h, j, d]", "k[b, h, j, e]"),
    ("which_axis", "over=T", "over=j"),
    ("window", "x[b, t + 1]", "x[b, t + 1 else 0]"),
    ("radix", "real[B, D]", "real[B, 64*H]"),
    ("heads_generic", "D//H", "D/H"),
    ("slice_may_leave", "real[B, 10] =", "real[B, 10] where T-10 >= 0 ="),
    ("labels_as_floats", "cross_entropy(x, y)", "cross_entropy(x, i32(y))"),
    ("images_as_bytes", "net(x)", "net(f32(x))"),
    ("integers_and_floats", "n * w", "real(n) * w"),
    ("exp_of_integers", "exp(n)", "exp(real(n))"),
    ("mean_of_bools", "mean(p == t)", "mean(real(p == t))"),
    ("bool_of_floats", "any(x)", "any(x != 0)"),
    ("where_of_numbers", "where(x, ", "where(x != 0, "),
    ("integer_division", "n / 2", "n // 2"),
    ("float_index", "x[:, i]", "x[:, i32(i)]"),
    ("return_rank", "fc(x)", "fc(x)[..., 0]"),
    ("return_dtype", "argmax(x, over=C)", "real(argmax(x, over=C))"),
    ("return_undeclared", "f(x: real[B])", "f(x: real[B]) -> real[B]"),
    ("linear_without_import", "module Net", "from std.nn import Linear\n\nmodule Net"),
    ("method_call", "x.mean()", "mean(x)"),
    ("keyword_typo", "padding", "pad"),
    ("undefined", "weigth", "weight"),
    ("argument_written", "(x: real", "(inout x: real"),
    ("inout_assigned", "x = 2 * x", "x := 2 * x"),
    ("state_assigned", "n = n + 1", "n := n + 1"),
    ("read_only_module", "(net:", "(inout net:"),
    ("gradient_of_tensor", "grad(y, net)", "grad(mean(y), net)"),
    ("gradient_unrelated", "grad(loss, w)", "grad(loss, w, missing=zero)"),
    ("gradient_by_expression", "loss = mean(exp(x)**2)\n    return grad(loss, exp(x))",
     "y = exp(x)\n    loss = mean(y**2)\n    return grad(loss, y)"),
    ("conditional_param", "x * w + b", "x * w + (b if use_bias else 0)"),
    ("duplicate_targets", "h[k[i]] := x[i]", "h[k[i]] := h[k[i]] + x[i]"),
    ("argmax_of_all", "-> i32 = argmax(x)", "-> i32[B] = argmax(x, over=C)"),
    ("module_as_tensor", "x + fc", "x + fc(x)"),
    ("member_not_made", "fc = Linear\n", "fc = Linear(D, D)\n"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new"), FOLLOWED, ids=[row[0] for row in FOLLOWED])
def test_the_help_helps(name: str, old: str, new: str) -> None:
    path = next(p for p in ERRORS if p.stem == name)
    text = path.read_text("utf-8")
    assert text.count(old) >= 1
    wrong, right = front(text, path), front(text.replace(old, new), path)
    assert wrong.diagnostics.errors
    assert not right.diagnostics.errors, right.text


# ---- rendering ----------------------------------------------------------------------------------


def shown(text: str, column: int, end: int, label: str = "here") -> list[str]:
    source = Source("a.nn", text)
    span = Span(source, 1, column, 1, end)
    return render(Diagnostic("E0801", "m", span, label)).splitlines()


def test_control_characters_are_escaped_and_underlined_in_place() -> None:
    rows = shown("a\x1b[31m + b", 10, 11)
    assert rows[3:] == ["1 | a\\x1b[31m + b", "  | " + " " * 12 + "^ here"]


def test_wide_letters_take_two_columns() -> None:
    rows = shown('f("変数") + b', 11, 12)
    assert screen_width('f("変数") + ') == 12
    assert rows[4] == "  | " + " " * 12 + "^ here" and "\x1b" not in "".join(rows)


def test_second_parts_of_labels_stand_in_a_column() -> None:
    source = Source("a.nn", "xx + y")
    labels = (Label(Span(source, 1, 1, 1, 3), "long type   first"),)
    text = render(Diagnostic("E0302", "m", Span(source, 1, 6, 1, 7), "t   second", labels))
    rows = text.splitlines()
    assert rows[4].index("second") == rows[5].index("first")


def test_several_rows_of_one_expression_are_joined() -> None:
    span = Span(Source("a.nn", "f(x,\n  y)"), 1, 1, 2, 5)
    assert span.text == "f(x, y)"
