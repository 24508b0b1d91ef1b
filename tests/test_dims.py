"""The dim algebra: normal forms mean what the expression means; what is proved is true."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnc.lang.dims import (
    ONE,
    ZERO,
    Dim,
    Facts,
    apply,
    dim_max,
    dim_min,
    divides,
    exact_div,
    extremes,
    from_json,
    polynomial_quotient,
    prove_nonneg,
)

B, D, H, K, T, S, P, s = (Dim.of(n) for n in ("B", "D", "H", "K", "T", "S", "P", "s"))
NAMES = ("B", "D", "H", "T")
Env = dict[str, int]
Term = tuple[Dim, Callable[[Env], int]]


def leaf() -> st.SearchStrategy[Term]:
    numbers = st.integers(-6, 6).map(lambda n: (Dim.of(n), lambda e: n))
    names = st.sampled_from(NAMES).map(lambda n: (Dim.of(n), lambda e: e[n]))
    return names | numbers


def positive() -> st.SearchStrategy[Term]:
    """Divisors: a name, a number above 0, or a product of two of these."""
    numbers = st.integers(1, 6).map(lambda n: (Dim.of(n), lambda e: n))
    names = st.sampled_from(NAMES).map(lambda n: (Dim.of(n), lambda e: e[n]))
    one = names | numbers
    return one | st.tuples(one, one).map(lambda p: combined("*", *p))


def combined(op: str, x: Term, y: Term) -> Term:
    (p, f), (q, g) = x, y
    match op:
        case "+":
            return p + q, lambda e: f(e) + g(e)
        case "-":
            return p - q, lambda e: f(e) - g(e)
        case "*":
            return p * q, lambda e: f(e) * g(e)
        case "//":
            return p // q, lambda e: f(e) // g(e)
        case "%":
            return p % q, lambda e: f(e) % g(e)
        case "min":
            return dim_min(p, q), lambda e: min(f(e), g(e))
    return dim_max(p, q), lambda e: max(f(e), g(e))


def grown(inner: st.SearchStrategy[Term]) -> st.SearchStrategy[Term]:
    free = st.tuples(st.sampled_from(["+", "-", "*", "min", "max"]), inner, inner)
    divided = st.tuples(st.sampled_from(["//", "%"]), inner, positive())
    return (free | divided).map(lambda row: combined(*row))


terms = st.recursive(leaf(), grown, max_leaves=7)
environments = st.fixed_dictionaries({n: st.integers(1, 9) for n in NAMES})


@settings(max_examples=200, deadline=None)
@given(terms, environments)
def test_a_normal_form_has_the_value_of_its_expression(term: Term, env: Env) -> None:
    dim, value = term
    assert dim.evaluate(env) == value(env)


@settings(max_examples=200, deadline=None)
@given(terms, environments)
def test_substitution_agrees_with_evaluation(term: Term, env: Env) -> None:
    dim, value = term
    known = {n: Dim.of(v) for n, v in env.items()}
    assert dim.subst(known).const == value(env)
    assert dim.subst({"B": Dim.of("D") + 1}).evaluate(env) == value({**env, "B": env["D"] + 1})


@settings(max_examples=100, deadline=None)
@given(terms)
def test_json_comes_back(term: Term) -> None:
    assert from_json(term[0].json()) == term[0]


@settings(max_examples=200, deadline=None)
@given(terms, terms, terms)
def test_rings(a: Term, b: Term, c: Term) -> None:
    x, y, z = a[0], b[0], c[0]
    assert x + y == y + x and x * y == y * x and x - x == ZERO
    assert (x + y) + z == x + (y + z)
    assert hash(x + y) == hash(y + x)


@settings(max_examples=200, deadline=None)
@given(terms, st.lists(terms, max_size=2))
def test_what_is_proved_is_true(term: Term, facts: list[Term]) -> None:
    dim = term[0]
    given_facts = Facts(nonneg=tuple(f for f, _ in facts))
    if not prove_nonneg(dim, given_facts):
        return
    for values in product((1, 2, 3, 7), repeat=len(NAMES)):
        env = dict(zip(NAMES, values, strict=True))
        if all(f(env) >= 0 for _, f in facts):
            assert term[1](env) >= 0, (dim, env)


@settings(max_examples=200, deadline=None)
@given(st.integers(-3, 3), st.integers(-3, 3), leaf(), environments)
def test_extremes_bound_affine_indices(a: int, b: int, c: Term, env: Env) -> None:
    i, j = Dim.of("$i"), Dim.of("$j")
    ranges = {"$i": (ZERO, B - 1), "$j": (ONE, T)}
    ends = extremes(a * i + b * j + c[0], Facts(), ranges)
    assert ends is not None
    values = [a * x + b * y + c[1](env) for x in range(env["B"]) for y in range(1, env["T"] + 1)]
    assert ends[0].evaluate(env) == min(values)
    assert ends[1].evaluate(env) == max(values)


# ---- the rules that programs lean on ------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((H + 2 * 1 - 3) // 1 + 1, H),
        ((H + 2 * 3 - 7) // 2 + 1, (H - 1) // 2 + 1),
        (((H - 1) // 2 + 1 - 1) // 2 + 1, (H - 1) // 4 + 1),
        (H * exact_div(D, H), D),
        (exact_div(4 * D, 2 * H), exact_div(2 * D, H)),
        (exact_div(D * H, H), D),
        (2 * exact_div(D, Dim.of(2)), D),
        (D - exact_div(D, Dim.of(2)), exact_div(D, Dim.of(2))),
        (2 * exact_div(exact_div(D, H), Dim.of(2)), exact_div(D, H)),
        (H * exact_div(D, 2 * H) * 2, D),
        ((2 * B + 1) % 2, ONE),
        ((B * T) // T, B),
        ((B * T + T - 1) // T, B + (T - 1) // T),
        (dim_min(B, B + 1), B),
        (dim_max(B - 1, B), B),
        ((B + 1) ** 2, B * B + 2 * B + 1),
        (6 * B // (4 * T), 3 * B // (2 * T)),
    ],
)
def test_equal_means_identical(left: Dim, right: Dim) -> None:
    assert left == right


def test_different_sizes_stay_different() -> None:
    assert len({B, T, B + 1, 2 * B, B * T, B // 2, B % 2, dim_min(B, T), exact_div(B, T)}) == 9


@pytest.mark.parametrize(
    ("dim", "text"),
    [
        (B - 1, "B-1"),
        (-1 * B + T, "T-B"),
        ((H - 1) // s + 1, "(H-1)//s+1"),
        (2 * B * T, "2*B*T"),
        (exact_div(D, H), "D/H"),
        (dim_min(B, T + 1), "min(B, T+1)"),
        (B * B, "B**2"),
        (ZERO, "0"),
        (B % 3, "B%3"),
    ],
)
def test_how_sizes_are_shown(dim: Dim, text: str) -> None:
    assert str(dim) == text


@pytest.mark.parametrize(
    ("dim", "facts"),
    [
        (S - T, (S - P - T, P)),  # P + T <= S
        (Dim.of(1024) - P - T, (S - P - T, Dim.of(1024) - S)),
        (B * T - 1, ()),
        ((H + 1) // 2 - 1, ()),
        (H - (H - 1) // s * s - 1, ()),
        ((H + 2 * B) // 3 - 1, ()),
        (2 - B % 3, ()),
        (B - dim_min(B, T), ()),
        (dim_max(B, T) - T, ()),
    ],
)
def test_proofs(dim: Dim, facts: tuple[Dim, ...]) -> None:
    assert prove_nonneg(dim, Facts(zero=frozenset({"P"}), nonneg=facts))


@pytest.mark.parametrize("dim", [B - 2, B - T, -1 * B, B % 2 - 1, (B - 3) // 2, P - 1])
def test_what_is_not_so_is_not_proved(dim: Dim) -> None:
    assert not prove_nonneg(dim, Facts(zero=frozenset({"P"})))


def test_linear_forms() -> None:
    assert (3 * T + 1).linear_in("T") == (Dim.of(3), ONE)
    assert (B * T + D).linear_in("T") == (B, D)
    assert (T * T).linear_in("T") is None
    assert (T // 2).linear_in("T") is None
    assert B.linear_in("T") == (ZERO, B)


def test_division() -> None:
    assert polynomial_quotient(B * T + B, T + 1) == B
    assert polynomial_quotient(B + 1, T) is None
    assert divides(Dim.of(768), Dim.of(12)) is True
    assert divides(Dim.of(768), Dim.of(10)) is False
    assert divides(D, H) is None and divides(D * H, H) is True
    with pytest.raises(ZeroDivisionError):
        _ = B // 0


@pytest.mark.parametrize("kind", ["floor", "mod", "min", "max", "div"])
def test_functions_by_name(kind: str) -> None:
    assert apply(kind, Dim.of(12), Dim.of(4)).const in (3, 0, 4, 12)


def test_a_quotient_under_a_fact() -> None:
    """`a//q + r >= 0` is `a + q*r >= 0`; `r - a//q >= 0` is `q*r + q - 1 - a >= 0`."""
    i, n = Dim.of("$i"), Dim.of("N")
    inside = Facts().plus(i - 1, 2 * n - i)
    assert prove_nonneg((i + 1) // 2 - 1, inside, {"$i": (Dim.of(0), 2 * n + 1)})
    assert prove_nonneg(n - (i + 1) // 2, inside, {"$i": (Dim.of(0), 2 * n + 1)})
    assert not prove_nonneg((i + 1) // 2 - 2, inside, {"$i": (Dim.of(0), 2 * n + 1)})


def test_multiples_of_facts() -> None:
    """What conditions say of digits bounds the number that they make up."""
    c, i, j, u, v = (Dim.of(n) for n in ("$c", "$i", "$j", "$u", "$v"))
    rows, columns = (i - u, H - 1 - i + u), (j - v, D - 1 - j + v)
    loops = {"$c": (ZERO, T - 1), "$i": (ZERO, H), "$j": (ZERO, D), "$u": (ZERO, ONE)}
    loops["$v"] = (ZERO, ONE)
    place = c * H * D + (i - u) * D + j - v
    facts = Facts(nonneg=(*rows, *columns))
    assert prove_nonneg(place, facts, loops)
    assert prove_nonneg(T * H * D - 1 - place, facts, loops)
    assert not prove_nonneg(place - 1, facts, loops)
    assert not prove_nonneg(T * H * D - 2 - place, facts, loops)
    assert not prove_nonneg(place, Facts(nonneg=columns), loops)


def test_a_quotient_beside_a_loop_under_facts() -> None:
    """`w + (i + 7)//8 - 3` where w >= 2 and i >= 1."""
    w, i = Dim.of("$w"), Dim.of("$i")
    loops = {"$w": (ZERO, T - 1), "$i": (ZERO, T - 1)}
    facts = Facts().plus(w - 2, i - 1)
    assert prove_nonneg(w + (i + 7) // 8 - 3, facts, loops)
    assert not prove_nonneg(w + (i + 7) // 8 - 4, facts, loops)
