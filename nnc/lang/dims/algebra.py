"""The dim algebra: polynomials over atoms in one normal form, so that *equal* means *identical*.

An atom is a name (`B`; loop variables start with `$`) or a `Func`: `floor(p/q)`, `mod(p, q)`,
`min`, `max`, or the exact quotient `div(p, q)` (which carries the obligation `p % q == 0`; in
products `H * (D/H)` is `D`). Sizes are integers; divisors are taken to be positive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import gcd, prod
from typing import Union

Atom = Union[str, "Func"]
Mono = tuple[tuple[Atom, int], ...]
DimLike = Union["Dim", int, str, "Func"]
Terms = dict[Mono, int]


@dataclass(frozen=True)
class Func:
    """A non-polynomial atom; `kind` is floor, mod, min, max or div."""

    kind: str
    a: Dim
    b: Dim

    @cached_property
    def _hash(self) -> int:
        return hash((self.kind, self.a, self.b))

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        if self.kind in ("min", "max"):
            return f"{self.kind}({self.a}, {self.b})"
        op = {"floor": "//", "mod": "%", "div": "/"}[self.kind]
        return f"{_factor(self.a)}{op}{_factor(self.b)}"


@dataclass(frozen=True)
class Dim:
    """A polynomial with integer coefficients in normal form (terms sorted, no zero coefficient)."""

    terms: tuple[tuple[Mono, int], ...]

    def __hash__(self) -> int:
        found: int | None = self.__dict__.get("_hash")
        if found is None:
            found = self.__dict__["_hash"] = hash(self.terms)
        return found

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Dim) and self.terms == other.terms)

    # ---- making -------------------------------------------------------------------------------
    @staticmethod
    def of(x: DimLike) -> Dim:
        match x:
            case Dim():
                return x
            case str():
                return _named(x)
            case Func():
                return Dim(((((x, 1),), 1),))
            case _:
                return Dim((((), int(x)),)) if x else ZERO

    # ---- looking ------------------------------------------------------------------------------
    @cached_property
    def const(self) -> int | None:
        """The value when this is a number."""
        if not self.terms:
            return 0
        if len(self.terms) == 1 and self.terms[0][0] == ():
            return self.terms[0][1]
        return None

    @property
    def is_const(self) -> bool:
        return self.const is not None

    @cached_property
    def name(self) -> str | None:
        """The name when this is one bare name."""
        if len(self.terms) == 1:
            mono, c = self.terms[0]
            if c == 1 and len(mono) == 1 and mono[0][1] == 1 and isinstance(mono[0][0], str):
                return mono[0][0]
        return None

    @cached_property
    def names(self) -> frozenset[str]:
        """All names in it, those inside functions too."""
        out: set[str] = set()
        for mono, _ in self.terms:
            for atom, _ in mono:
                out |= {atom} if isinstance(atom, str) else atom.a.names | atom.b.names
        return frozenset(out)

    @cached_property
    def functions(self) -> tuple[Func, ...]:
        """The functions among the atoms, outermost only."""
        return tuple(a for mono, _ in self.terms for a, _ in mono if isinstance(a, Func))

    def all_functions(self) -> list[Func]:
        """All functions in it, nested ones after those around them."""
        out: list[Func] = []
        stack = [*self.functions]
        while stack:
            f = stack.pop()
            out.append(f)
            stack += (*f.a.functions, *f.b.functions)
        return out

    def linear_in(self, name: str) -> tuple[Dim, Dim] | None:
        """`(a, b)` with self = a*name + b, neither holding `name`; None when not of that form."""
        return _linear(self, name)

    # ---- arithmetic ---------------------------------------------------------------------------
    def __add__(self, other: DimLike) -> Dim:
        q = other if isinstance(other, Dim) else Dim.of(other)
        if not q.terms:
            return self
        return _added(self, q) if self.terms else q

    def __neg__(self) -> Dim:
        return Dim(tuple((m, -c) for m, c in self.terms))

    def __sub__(self, other: DimLike) -> Dim:
        q = other if isinstance(other, Dim) else Dim.of(other)
        return _subtracted(self, q) if q.terms else self

    def __mul__(self, other: DimLike) -> Dim:
        return _multiplied(self, other if isinstance(other, Dim) else Dim.of(other))

    __radd__ = __add__
    __rmul__ = __mul__

    def __rsub__(self, other: DimLike) -> Dim:
        return Dim.of(other) - self

    def __pow__(self, n: int) -> Dim:
        out = ONE
        for _ in range(n):
            out = out * self
        return out

    def __floordiv__(self, other: DimLike) -> Dim:
        p, q = self, Dim.of(other)
        if (q.const or 0) < 0 or (q.terms and q.terms[0][1] < 0 and not q.const):
            p, q = -p, -q
        p, q = _reduced(p, q)
        if p.const is not None and q.const is not None:
            return Dim.of(p.const // q.const)
        whole, rest = _split(p, q)
        if not rest.terms:
            return whole
        if q == ONE:
            return whole + rest
        if rest.const is not None and q.const is not None:
            return whole + rest.const // q.const
        if rest.const == -1:  # divisors are positive
            return whole - 1
        inner = _nested_floor(rest, q)
        return whole + (inner if inner is not None else _func("floor", rest, q))

    def __mod__(self, other: DimLike) -> Dim:
        q = Dim.of(other)
        if self.const is not None and q.const is not None:
            return Dim.of(self.const % q.const)
        _, rest = _split(_congruent(self, q), q)
        if rest.const is not None and q.const is not None:
            return Dim.of(rest.const % q.const)
        if not rest.terms or q == ONE:
            return ZERO
        return _func("mod", rest, q)

    def __str__(self) -> str:
        return _show(self)

    def __repr__(self) -> str:
        return f"Dim({_show(self)})"

    # ---- evaluation and substitution ----------------------------------------------------------
    def evaluate(self, env: Mapping[str, int]) -> int:
        """The number under `env`; raises KeyError for a name that is not there."""
        total = 0
        for mono, c in self.terms:
            total += c * prod(_atom_value(a, env) ** n for a, n in mono)
        return total

    def subst(self, env: Mapping[str, Dim]) -> Dim:
        """Replaces names by dims and normalises again."""
        if not (self.names & env.keys()):
            return self
        return self.mapped(lambda atom: _atom_subst(atom, env))

    def mapped(self, fn: Callable[[Atom], Dim]) -> Dim:
        """Replaces atoms by dims and normalises again."""
        out = ZERO
        for mono, c in self.terms:
            term = Dim.of(c)
            for atom, n in mono:
                term = term * fn(atom) ** n
            out = out + term
        return out

    def json(self) -> object:
        """A number, a name, or nested lists; `from_json` reads it back."""
        if self.const is not None:
            return self.const
        if self.name is not None:
            return self.name
        return [
            "+",
            *([c, *(_atom_json(a) for a, n in m for _ in range(n))] for m, c in self.terms),
        ]


@lru_cache(maxsize=1 << 12)
def _named(name: str) -> Dim:
    return Dim(((((name, 1),), 1),))


def evaluated(dims: Iterable[Dim], env: Mapping[str, int]) -> dict[Dim, int]:
    """The number of each under `env`; what they have in common is evaluated once."""
    known: dict[Mono, int] = {}
    out: dict[Dim, int] = {}
    for d in dims:
        total = 0
        for mono, c in d.terms:
            value = known.get(mono)
            if value is None:
                value = known[mono] = prod([_atom_value(a, env) ** n for a, n in mono])
            total += c * value
        out[d] = total
    return out


def from_json(x: object) -> Dim:
    if isinstance(x, int | str):
        return Dim.of(x)
    assert isinstance(x, list), x
    if x[0] == "+":
        return dim_sum(dim_prod([from_json(f) for f in term]) for term in x[1:])
    return apply(str(x[0]), from_json(x[1]), from_json(x[2]))


def apply(kind: str, a: Dim, b: Dim) -> Dim:
    """`kind` of floor, mod, min, max, div applied with normalisation."""
    match kind:
        case "floor":
            return a // b
        case "mod":
            return a % b
        case "min":
            return dim_min(a, b)
        case "max":
            return dim_max(a, b)
    return exact_div(a, b)


def dim_sum(xs: Iterable[DimLike]) -> Dim:
    out = ZERO
    for x in xs:
        out = out + x
    return out


def dim_prod(xs: Iterable[DimLike]) -> Dim:
    out = ONE
    for x in xs:
        out = out * x
    return out


def dim_min(a: Dim, b: Dim) -> Dim:
    diff = (a - b).const
    if diff is not None:
        return a if diff <= 0 else b
    return _func("min", *sorted((a, b), key=str))


def dim_max(a: Dim, b: Dim) -> Dim:
    diff = (a - b).const
    if diff is not None:
        return a if diff >= 0 else b
    return _func("max", *sorted((a, b), key=str))


def choices(p: Dim) -> list[Func]:
    """All min and max in it, inner ones before those around them."""
    return [f for f in reversed(p.all_functions()) if f.kind in ("min", "max")]


def map_functions(d: Dim, fn: Callable[[Func], Dim | None]) -> Dim:
    """Replaces functions for which `fn` gives a dim (outermost first), inside others too."""

    def one(atom: Atom) -> Dim:
        if isinstance(atom, str):
            return Dim.of(atom)
        new = fn(atom)
        if new is not None:
            return new
        return apply(atom.kind, map_functions(atom.a, fn), map_functions(atom.b, fn))

    return d.mapped(one) if d.functions else d


def whole_multiples(p: Dim, f: Func) -> Dim:
    """p where f, a floor by a number, leaves no rest: as few of f as possible."""
    part = Dim.of("$whole")
    inside = map_functions(p, {f: part}.get)
    if f.a.name is not None:
        inside = inside.subst({f.a.name: part * f.b})
    form, q = inside.linear_in("$whole"), f.b.const
    if form is None or not q:
        return p
    times = make({m: int(c / q) for m, c in form[0].terms})
    return form[1] + times * f.a + (form[0] - times * q) * f


def exact_div(p: Dim, q: Dim) -> Dim:
    """`p / q`: the polynomial quotient when there is one, else the atom `div(p, q)`.

    Two numbers that do not divide give floor division: the caller checks `divides` first.
    """
    quotient = polynomial_quotient(p, q)
    if quotient is not None:
        return quotient
    p, q = _reduced(p, q)
    if p.const is not None and q.const is not None:
        return Dim.of(p.const // q.const)
    return _func("div", p, q)


def divides(p: Dim, q: Dim) -> bool | None:
    """Whether q divides p: True/False when known for all sizes, None when it depends on them."""
    if p.const is not None and q.const is not None:
        return q.const != 0 and p.const % q.const == 0
    return True if polynomial_quotient(p, q) is not None else None


def polynomial_quotient(p: Dim, q: Dim) -> Dim | None:
    """The polynomial r with p = q*r, or None."""
    if not q.terms:
        return None
    lead_mono, lead_c = _leading(q)
    out = ZERO
    for _ in range(64):
        if not p.terms:
            return out
        mono, c = _leading(p)
        ratio = _mono_div(mono, lead_mono)
        if ratio is None or c % lead_c:
            return None
        step = make({ratio: c // lead_c})
        out, p = out + step, p - step * q
    return None


# ---- arithmetic, remembered -------------------------------------------------------------------


@lru_cache(maxsize=1 << 15)
def _linear(p: Dim, name: str) -> tuple[Dim, Dim] | None:
    a: Terms = {}
    b: Terms = {}
    for mono, c in p.terms:
        power = dict(mono).get(name, 0)
        rest = tuple(m for m in mono if m[0] != name)
        if power > 1:
            return None
        (a if power else b)[rest] = c
    pa, pb = make(a), make(b)
    return None if name in pa.names | pb.names else (pa, pb)


@lru_cache(maxsize=1 << 15)
def _added(p: Dim, q: Dim) -> Dim:
    out = dict(p.terms)
    for mono, c in q.terms:
        out[mono] = out.get(mono, 0) + c
    return make(out)


@lru_cache(maxsize=1 << 15)
def _subtracted(p: Dim, q: Dim) -> Dim:
    return p + (-q)


@lru_cache(maxsize=1 << 15)
def _multiplied(p: Dim, q: Dim) -> Dim:
    out: Terms = {}
    again = ZERO
    for m1, c1 in p.terms:
        for m2, c2 in q.terms:
            mono, left = _times(m1, m2)
            if left is None:
                out[mono] = out.get(mono, 0) + c1 * c2
            else:
                again = again + make({mono: c1 * c2}) * left
    return make(out) + again


# ---- normal form ------------------------------------------------------------------------------


@lru_cache(maxsize=1 << 16)
def _key(mono: Mono) -> tuple[int, str]:
    return (-sum(n for _, n in mono), "*".join(f"{a}^{n}" for a, n in mono))


def make(terms: Terms) -> Dim:
    """The normal form of a sum of monomials."""
    kept = [(m, c) for m, c in terms.items() if c]
    for mono, c in kept:
        whole = _whole_part(mono, c)
        if whole is not None:
            rest, part = whole
            return make({**terms, mono: rest}) + part
    if len(kept) > 1:
        kept.sort(key=lambda t: _key(t[0]))
    return Dim(tuple(kept))


def _leading(p: Dim) -> tuple[Mono, int]:
    return p.terms[0]


def _times(a: Mono, b: Mono) -> tuple[Mono, Dim | None]:
    """Product of monomials; `q * div(p, q)` becomes `p`, returned as a further factor."""
    if not a or not b:
        return a or b, None
    powers: dict[Atom, int] = dict(a)
    for atom, n in b:
        powers[atom] = powers.get(atom, 0) + n
    for atom in powers:
        if isinstance(atom, Func) and atom.kind == "div" and len(atom.b.terms) == 1:
            divisor = dict(atom.b.terms[0][0])
            if atom.b.terms[0][1] == 1 and all(powers.get(x, 0) >= n for x, n in divisor.items()):
                for x, n in ((atom, 1), *divisor.items()):
                    powers[x] -= n
                return _sorted(powers), atom.a
    return _sorted(powers), None


def _whole_part(mono: Mono, c: int) -> tuple[int, Dim] | None:
    """Takes whole multiples out of `c * div(p, 2)`, so that `K - K/2` is `K/2` and `2*(K/2)` is K.

    (what remains of c, the rest as a Dim); None when there is nothing to take.
    """
    for atom, _ in mono:
        if isinstance(atom, Func) and atom.kind == "div" and len(atom.b.terms) == 1:
            divisor, n = atom.b.terms[0]
            others = _mono_div(mono, ((atom, 1), *divisor))
            if n > 1 and others is not None and c // n:
                return c % n, make({others: c // n}) * atom.a
    return None


def _sorted(powers: dict[Atom, int]) -> Mono:
    return tuple(sorted(((a, n) for a, n in powers.items() if n), key=lambda t: str(t[0])))


def _mono_div(a: Mono, b: Mono) -> Mono | None:
    powers = dict(a)
    for atom, n in b:
        if powers.get(atom, 0) < n:
            return None
        powers[atom] -= n
    return _sorted(powers)


def _reduced(p: Dim, q: Dim) -> tuple[Dim, Dim]:
    """Divides both by their common integer factor and common atoms."""
    g = gcd(*(c for _, c in p.terms), *(c for _, c in q.terms))
    shared: Mono = q.terms[0][0] if q.terms else ()
    for mono, _ in (*q.terms, *p.terms):
        powers = dict(mono)
        shared = tuple((a, min(n, powers[a])) for a, n in shared if a in powers)
    if (g <= 1 and not shared) or not p.terms or not q.terms:
        return p, q

    def cut(d: Dim) -> Dim:
        return make({_mono_div(m, shared) or (): c // max(g, 1) for m, c in d.terms})

    return cut(p), cut(q)


def _congruent(p: Dim, q: Dim) -> Dim:
    """p with `a` for `a % q`, which is as far from multiples of q."""
    for mono, c in p.terms:
        match mono:
            case ((Func(kind="mod", a=a, b=b), 1),) if b == q:
                return _congruent(p - make({mono: c}) + c * a, q)
    return p


def _split(p: Dim, q: Dim) -> tuple[Dim, Dim]:
    """`(w, r)` with p = q*w + r, taking whole multiples of q out of p."""
    if not q.terms:
        raise ZeroDivisionError
    exact = polynomial_quotient(p, q)
    if exact is not None:
        return exact, ZERO
    if len(q.terms) > 1:
        return ZERO, p
    mono_q, cq = q.terms[0]
    whole: Terms = {}
    rest: Terms = {}
    for mono, c in p.terms:
        ratio = _mono_div(mono, mono_q)
        if ratio is None:
            rest[mono] = c
            continue
        whole[ratio] = whole.get(ratio, 0) + c // cq
        rest[mono] = rest.get(mono, 0) + c % cq
    return make(whole), make(rest)


def _nested_floor(p: Dim, q: Dim) -> Dim | None:
    """`((a // m) + r) // q` is `(a + m*r) // (m*q)`."""
    for mono, c in p.terms:
        if c == 1 and len(mono) == 1 and mono[0][1] == 1 and isinstance(mono[0][0], Func):
            f = mono[0][0]
            if f.kind == "floor":
                rest = p - make({mono: 1})
                return (f.a + f.b * rest) // (f.b * q)
    return None


def _func(kind: str, a: Dim, b: Dim) -> Dim:
    return Dim.of(Func(kind, a, b))


def _atom_value(atom: Atom, env: Mapping[str, int]) -> int:
    if isinstance(atom, str):
        return env[atom]
    a, b = atom.a.evaluate(env), atom.b.evaluate(env)
    match atom.kind:
        case "min":
            return min(a, b)
        case "max":
            return max(a, b)
        case "mod":
            return a % b
    return a // b


def _atom_subst(atom: Atom, env: Mapping[str, Dim]) -> Dim:
    if isinstance(atom, str):
        return env.get(atom) or (ZERO if atom in env else Dim.of(atom))
    return apply(atom.kind, atom.a.subst(env), atom.b.subst(env))


def _atom_json(atom: Atom) -> object:
    return atom if isinstance(atom, str) else [atom.kind, atom.a.json(), atom.b.json()]


# ---- printing ---------------------------------------------------------------------------------


def _factor(p: Dim) -> str:
    text = _show(p)
    simple = text.replace("_", "a").lstrip(".$").isalnum()
    return text if simple else f"({text})"


def _show(p: Dim) -> str:
    if not p.terms:
        return "0"
    out = ""
    positive_first = sorted(p.terms, key=lambda t: (t[0] == (), t[1] < 0))
    for mono, c in positive_first:
        alone = len(mono) == 1 and abs(c) == 1
        factors = [_show_power(a, n, alone) for a, n in mono]
        if abs(c) != 1 or not factors:
            factors.insert(0, str(abs(c)))
        sign = "-" if c < 0 else ("+" if out else "")
        out += sign + "*".join(factors)
    return out


def _show_power(atom: Atom, n: int, alone: bool) -> str:
    text = str(atom)
    if not alone and isinstance(atom, Func) and atom.kind in ("floor", "mod", "div"):
        text = f"({text})"
    return text if n == 1 else f"{text}**{n}"


ZERO = Dim(())
ONE = Dim((((), 1),))
