"""Forms: expressions without the tensors, large numbers and places in the source that they hold.

The layers of a network are many nodes of few forms. What is found out about a form, or made of it,
is remembered with it, and holds for all of them: `Form.memo`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from operator import is_

from nnc.diagnostics import Span
from nnc.ir.expr import (
    Const,
    Expr,
    Idx,
    Load,
    Op,
    Select,
    Tensor,
    Var,
    children,
    keep_order,
    walk,
)
from nnc.ir.scalar import SCALARS
from nnc.lang.dims import Dim
from nnc.lang.types import TensorType

LARGE = 1 << 31  # from here on numbers are not part of the form
KEPT = 1 << 14  # forms


@dataclass(frozen=True, eq=False)
class Slot:
    """Stands for the tensor number `number`."""

    type: TensorType
    number: int


@dataclass(frozen=True, eq=False)
class Form:
    """`key`: its text. Equal forms are one object, as long as they are in use."""

    key: tuple[Hashable, ...]
    memo: dict[Hashable, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Formed:
    """A form, and what stands in it, each once, in order of first use."""

    form: Form
    tensors: tuple[Tensor, ...]
    numbers: tuple[int, ...] = ()
    checks: tuple[Span, ...] = ()

    @property
    def telling(self) -> tuple[int, ...]:
        """The numbers, if something may follow from them: nothing does from random streams."""
        return () if not self.numbers or _only_streams(self.form) else self.numbers

    def without_tensors(self) -> Formed:
        """So that what is remembered keeps no graphs in memory."""
        return replace(self, tensors=())

    def over(self, tensors: Sequence[Tensor]) -> Formed | None:
        """With other tensors; None where some became one, which is another form."""
        distinct = len(set(tensors)) == len(tensors)
        return Formed(self.form, tuple(tensors), self.numbers, self.checks) if distinct else None


@lru_cache(maxsize=KEPT)
def _form(key: tuple[Hashable, ...]) -> Form:
    return Form(key)


def _only_streams(form: Form) -> bool:
    """Whether all large numbers are operands of random numbers."""
    found = form.memo.get("only streams")
    if found is None:
        large = {i for i, t in enumerate(form.key) if isinstance(t, tuple) and t[0] == "number"}
        uses = (t for t in form.key if not _draws(t))
        found = form.memo["only streams"] = not any(_uses(t, large) for t in uses)
    return bool(found)


def _draws(token: Hashable) -> bool:
    return isinstance(token, tuple) and token[1] in SCALARS and SCALARS[token[1]].rule == "random"


def _uses(token: Hashable, numbers: set[int]) -> bool:
    match token:
        case int():
            return token in numbers
        case ("idx" | "const" | "var" | "number", *_):
            return False
        case ("load", _, _, _, tuple(index), other, _):
            return not numbers.isdisjoint((*index, other))
        case (_, _, *operands):
            return not numbers.isdisjoint(operands)
    raise AssertionError(token)


def head_of(form: Form) -> Hashable:
    """What the last of its expressions is: `load`, `const`, the dtype of an `Op`, ..."""
    root: tuple[Hashable, ...] = form.key[form.key[-1]]  # type: ignore[call-overload]
    return root[0]


def names_of(form: Form) -> frozenset[str]:
    """Dims and loop variables in its expressions."""
    found = form.memo.get("names")
    if found is None:
        dims = (t[2] for t in form.key if isinstance(t, tuple) and t[0] == "idx")
        found = frozenset(n for d in dims for n in d.names)
        form.memo["names"] = found
    assert isinstance(found, frozenset)
    return found


def functions_of(form: Form) -> frozenset[str]:
    """The scalar functions in its expressions."""
    found = form.memo.get("functions")
    if found is None:
        tokens = (t for t in form.key if isinstance(t, tuple))
        found = form.memo["functions"] = frozenset(t[1] for t in tokens if t[1] in SCALARS)
    assert isinstance(found, frozenset)
    return found


def formed(roots: Sequence[Expr]) -> Formed:
    """Of expressions of one node."""
    work = _Work()
    for e in walk(*roots):
        work.add(e)
    key = (*work.key, *(work.done[id(r)] for r in roots))
    return Formed(_form(key), tuple(work.tensors), tuple(work.numbers), tuple(work.checks.values()))


def positional(form: Form, loops: tuple[str, ...]) -> Form:
    """With loop variables by their positions, and what is equal once; checks are all alike."""
    known = ("positional", loops)
    found = form.memo.get(known)
    if found is None:
        found = form.memo[known] = _form(_positional(form.key, loops))
    assert isinstance(found, Form)
    return found


def _positional(key: tuple[Hashable, ...], loops: tuple[str, ...]) -> tuple[Hashable, ...]:
    env = {var: Dim.of(f"$#{i}") for i, var in enumerate(loops)}
    numbers: dict[Hashable, int] = {}
    new: list[int] = []  # for each expression the number of the first that equals it
    roots = []
    for token in key:
        match token:
            case int():
                roots.append(new[token])
                continue
            case ("idx", dtype, Dim() as dim):
                token = ("idx", dtype, dim.subst(env))
            case ("load", dtype, number, type_, index, other, check):
                assert isinstance(index, tuple)
                at = tuple(new[i] for i in index)
                rest = None if other is None else new[other]  # type: ignore[call-overload]
                token = ("load", dtype, number, type_, at, rest, check is None)
            case ("const" | "var" | "number", *_):
                pass
            case (head, fn, *operands):  # "select", its dtype; or the dtype and function of an Op
                token = (head, fn, *(new[i] for i in operands))  # type: ignore[call-overload]
        new.append(numbers.setdefault(token, len(numbers)))
    return (*numbers, *roots)


@dataclass
class _Work:
    key: list[Hashable] = field(default_factory=list)
    done: dict[int, int] = field(default_factory=dict)
    tensors: dict[Tensor, int] = field(default_factory=dict)
    numbers: dict[int, int] = field(default_factory=dict)
    checks: dict[int, Span] = field(default_factory=dict)

    def add(self, e: Expr) -> None:
        self.key.append(self.token(e))
        self.done[id(e)] = len(self.done)

    def token(self, e: Expr) -> Hashable:
        done = self.done
        kind = type(e)
        if kind is Idx:
            return ("idx", e.dtype, e.dim)  # type: ignore[union-attr]
        if kind is Op:
            return (e.dtype, e.fn, *[done[id(a)] for a in e.args])  # type: ignore[union-attr]
        match e:
            case Load():
                return self.load(e)
            case Const(dtype=dtype, value=value):
                if dtype == "i64" and abs(value) >= LARGE:
                    return ("number", self.numbers.setdefault(int(value), len(self.numbers)))
                return ("const", dtype, repr(value))
            case Var(dtype=dtype, name=name):
                return ("var", dtype, name)
            case Select(dtype=dtype, cond=c, a=a, b=b):
                return ("select", dtype, done[id(c)], done[id(a)], done[id(b)])
        raise AssertionError(e)

    def load(self, e: Load) -> Hashable:
        number = self.tensors.setdefault(e.tensor, len(self.tensors))
        check = None
        if e.check is not None:
            self.checks.setdefault(id(e.check), e.check)
            check = list(self.checks).index(id(e.check))
        index = tuple([self.done[id(i)] for i in e.index])
        other = None if e.other is None else self.done[id(e.other)]
        return ("load", e.dtype, number, e.tensor.type, index, other, check)


def reloaded(roots: Sequence[Expr], tensors: Mapping[Tensor, Tensor]) -> tuple[Expr, ...]:
    """The expressions with loads from other tensors; those not in the table stay."""
    return _moved(roots, tensors, {}, {})


def emptied(roots: Sequence[Expr], of: Formed) -> tuple[Expr, ...]:
    """The same expressions over `Slot`s."""
    return _moved(roots, {t: Slot(t.type, i) for i, t in enumerate(of.tensors)}, {}, {})


@dataclass(frozen=True)
class _Sample:
    """Expressions over slots. `order`: as `walk` gives them; `moving`: those of `order` that are
    others in another instance of the form."""

    roots: tuple[Expr, ...]
    slots: tuple[Slot, ...]
    given: Formed
    order: tuple[Expr, ...]
    moving: tuple[Expr, ...]


def keep_sample(roots: Sequence[Expr], of: Formed) -> None:
    """Keeps expressions with their form, as a pattern for others of it (see `instance`)."""
    if "sample" not in of.form.memo:
        slots = tuple(Slot(t.type, i) for i, t in enumerate(of.tensors))
        empty = _moved(roots, dict(zip(of.tensors, slots, strict=True)), {}, {})
        order = tuple(walk(*empty))
        moving = _moving(order, set(of.numbers))
        of.form.memo["sample"] = _Sample(empty, slots, of.without_tensors(), order, moving)


def _moving(order: Sequence[Expr], numbers: set[int]) -> tuple[Expr, ...]:
    found: dict[int, Expr] = {}
    for e in order:
        large = type(e) is Const and e.dtype == "i64" and e.value in numbers
        if type(e) is Load or large or any(id(c) in found for c in children(e)):
            found[id(e)] = e
    return tuple(found.values())


def has_sample(of: Formed) -> bool:
    """Whether `instance` can be asked."""
    return "sample" in of.form.memo


def sample(of: Formed) -> tuple[Expr, ...]:
    """The expressions of a form of which a sample is kept, over slots."""
    found = of.form.memo["sample"]
    assert isinstance(found, _Sample), of
    return found.roots


def sample_loads(of: Formed) -> tuple[tuple[int, Load], ...]:
    """The loads of the sample, in order, each with the number of its tensor."""
    found = of.form.memo.get("loads")
    if found is None:
        loads = [e for e in walk(*sample(of)) if type(e) is Load]
        found = tuple((e.tensor.number, e) for e in loads)  # type: ignore[attr-defined]
        of.form.memo["loads"] = found
    return found  # type: ignore[return-value]


def instance(of: Formed) -> tuple[Expr, ...]:
    """The expressions of a form of which a sample is kept, over the tensors of `of`."""
    sample = of.form.memo["sample"]
    assert isinstance(sample, _Sample), of
    given = sample.given
    checks = {id(a): b for a, b in zip(given.checks, of.checks, strict=True)}
    numbers = dict(zip(given.numbers, of.numbers, strict=True))
    tensors: dict[Tensor, Tensor] = dict(zip(sample.slots, of.tensors, strict=True))
    new: dict[int, Expr] = {}
    for e in sample.moving:
        new[id(e)] = _move(e, new, tensors, numbers, checks)
    if len(sample.roots) == 1:
        keep_order(tuple([new.get(id(e), e) for e in sample.order]))
    return tuple([new.get(id(r), r) for r in sample.roots])


@dataclass(frozen=True)
class Result:
    """What a pass makes of a form: another one, over slots of the first; None: the same."""

    made: Formed | None
    given: Formed | None = None  # that of which it was made, for its numbers and checks

    @staticmethod
    def of(roots: tuple[Expr, ...] | None, given: Formed) -> Result:
        """`roots`: over the slots of `given`."""
        if roots is None:
            return Result(None)
        made = formed(roots)
        keep_sample(roots, made)
        return Result(made, given.without_tensors())

    @staticmethod
    def over(roots: Sequence[Expr], given: Formed) -> Result:
        """Of expressions over the tensors of `given`, with its checks."""
        return Result.of(emptied(roots, given), given)

    def at(self, of: Formed) -> Formed:
        """The result for another instance of the form; its expressions: `instance`."""
        made, given = self.made, self.given
        assert made is not None and given is not None
        checks = {id(a): b for a, b in zip(given.checks, of.checks, strict=True)}
        numbers = dict(zip(given.numbers, of.numbers, strict=True))
        return Formed(
            made.form,
            tuple([of.tensors[t.number] for t in made.tensors]),  # type: ignore[attr-defined]
            tuple([numbers.get(n, n) for n in made.numbers]),
            tuple([checks.get(id(c), c) for c in made.checks]),
        )


def _moved(
    roots: Sequence[Expr],
    tensors: Mapping[Tensor, Tensor],
    numbers: Mapping[int, int],
    checks: Mapping[int, Span],
) -> tuple[Expr, ...]:
    new: dict[int, Expr] = {}
    for e in walk(*roots):
        new[id(e)] = _move(e, new, tensors, numbers, checks)
    if len(roots) == 1:
        keep_order(tuple(new.values()))
    return tuple([new[id(r)] for r in roots])


def _move(
    e: Expr,
    new: Mapping[int, Expr],
    tensors: Mapping[Tensor, Tensor],
    numbers: Mapping[int, int],
    checks: Mapping[int, Span],
) -> Expr:
    """The expression over operands from `new` (those that are not there stay)."""
    kind = type(e)
    if kind is Load:
        assert isinstance(e, Load)
        index = tuple([new.get(id(i), i) for i in e.index])
        other = None if e.other is None else new.get(id(e.other), e.other)
        check = e.check if e.check is None else checks.get(id(e.check), e.check)
        return Load(e.dtype, tensors.get(e.tensor, e.tensor), index, other, check)
    if kind is Op:
        assert isinstance(e, Op)
        args = tuple([new.get(id(a), a) for a in e.args])
        return e if all(map(is_, args, e.args)) else Op(e.dtype, e.fn, args)
    if kind is Select:
        assert isinstance(e, Select)
        return Select(e.dtype, *[new.get(id(c), c) for c in (e.cond, e.a, e.b)])
    if kind is Const and numbers and e.dtype == "i64":
        assert isinstance(e, Const)
        return Const("i64", numbers[int(e.value)]) if e.value in numbers else e
    return e
