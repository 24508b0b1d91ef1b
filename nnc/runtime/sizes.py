"""Run-time sizes: solved from the shapes of the arguments, checked at entry (E11 in the manual)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nnc.errors import ShapeError
from nnc.ir.signature import ArgSig, Check, ExportSig
from nnc.lang.dims import Dim
from nnc.lang.types import TensorType

Shape = tuple[int, ...]
Given = Shape | int  # the shape of an array, or the value of a `dim` argument


@dataclass
class Sizes:
    """What one call's shapes determine."""

    env: dict[str, int] = field(default_factory=dict)
    packs: dict[str, Shape] = field(default_factory=dict)  # pack name -> its axes
    source: dict[str, str] = field(default_factory=dict)  # size name -> argument that gave it


def solve(export: ExportSig, given: Sequence[Given]) -> Sizes:
    """All sizes of a call; `given` has one item for each tensor and dim argument, in order.

    ShapeError in the words of the signature: rank, empty axes, sizes that disagree, failed checks.
    """
    args = [a for a in export.args if a.kind in ("tensor", "dim")]
    call = _Call(export, dict(zip((a.name for a in args), given, strict=True)))
    pending: list[tuple[ArgSig, int, Dim, int]] = []
    for arg in args:
        value = call.given[arg.name]
        if isinstance(value, int):
            call.dim_argument(arg, value)
        else:
            pending += call.axes(arg, value)
    while pending:
        later = [row for row in pending if not call.axis(*row)]
        assert len(later) < len(pending), (export.name, later)
        pending = later
    for check in export.checks:
        call.check(check)
    return call.sizes


def axis_count(type_: TensorType, packs: Sequence[int], rank: int) -> list[int]:
    """How many real axes each declared axis stands for; raises ValueError when impossible."""
    extra = rank - type_.rank
    if (extra and not packs) or extra < -1:
        raise ValueError
    return [1 + extra if i in packs else 1 for i in range(type_.rank)]


def result_shapes(type_: TensorType, packs: Sequence[int], sizes: Sizes) -> tuple[Shape, Shape]:
    """The native shape of a result and the shape that the caller sees."""
    native = tuple(d.evaluate(sizes.env) for d in type_.shape)
    seen: list[int] = []
    for i, size in enumerate(native):
        name = type_.shape[i].name
        known = i in packs and name is not None and name in sizes.packs
        seen += sizes.packs[name] if known and name is not None else (size,)
    return native, tuple(seen)


@dataclass
class _Call:
    export: ExportSig
    given: dict[str, Given]
    sizes: Sizes = field(default_factory=Sizes)

    def dim_argument(self, arg: ArgSig, value: int) -> None:
        if value < 0:
            raise ShapeError(f"{self.export.name}: {arg.name} must be at least 0, got {value}")
        self.sizes.env[arg.name] = value
        self.sizes.source[arg.name] = arg.name

    def axes(self, arg: ArgSig, shape: Shape) -> list[tuple[ArgSig, int, Dim, int]]:
        """The equations `dim = size` of one array, packs merged."""
        assert arg.type is not None, arg
        try:
            counts = axis_count(arg.type, arg.packs, len(shape))
        except ValueError:
            raise ShapeError(self._rank(arg, len(shape))) from None
        if 0 in shape:
            self._fail(
                f"axis {shape.index(0)} of {arg.name} is empty: every size is at least 1", arg
            )
        rows: list[tuple[ArgSig, int, Dim, int]] = []
        at = 0
        for i, (dim, count) in enumerate(zip(arg.type.shape, counts, strict=True)):
            part = shape[at : at + count]
            size = 1
            for s in part:
                size *= s
            if i in arg.packs and dim.name is not None:
                self._pack(arg, dim.name, part)
            rows.append((arg, at, dim, size))
            at += count
        return rows

    def axis(self, arg: ArgSig, axis: int, dim: Dim, size: int) -> bool:
        """Uses one equation; False when it must wait for other sizes."""
        env = self.sizes.env
        unknown = dim.names - env.keys()
        if not unknown:
            if dim.evaluate(env) != size:
                self._mismatch(arg, axis, dim, size)
            return True
        if len(unknown) > 1:
            return False
        (name,) = unknown
        form = dim.linear_in(name)
        assert form is not None, (self.export.name, arg.name, dim)
        slope, rest = form[0].evaluate(env), form[1].evaluate(env)
        value = (size - rest) // slope if slope else 0
        if value * slope + rest != size or value < 1:
            self._unsolvable(arg, axis, dim, size, slope, rest)
        env[name] = value
        self.sizes.source[name] = arg.name
        return True

    def check(self, check: Check) -> None:
        try:
            value = check.dim.evaluate(self.sizes.env)
        except ZeroDivisionError:
            value = -1
        if value == 0 if check.equal else value >= 0:
            return
        names = sorted(check.dim.names)
        got = ", ".join(f"{n} = {self.sizes.env[n]}" for n in names)
        lines = [f"{self.export.name} needs {check.text}" + (f", got {got}" if got else "")]
        sources = dict.fromkeys(self.sizes.source[n] for n in names if n in self.sizes.source)
        lines += [self._was_given(self._arg(source)) for source in sources]
        note = f"; {check.note}" if check.note else ""
        lines.append(f"  required at {check.place}{note}" if check.place else note.lstrip("; "))
        raise ShapeError("\n".join(line for line in lines if line))

    # ---- messages -----------------------------------------------------------------------------

    def _arg(self, name: str) -> ArgSig:
        return next(a for a in self.export.args if a.name == name)

    def _was_given(self, arg: ArgSig) -> str:
        value = self.given[arg.name]
        if isinstance(value, int):
            return f"  {arg.name} was given {value}"
        found = [n for n, source in self.sizes.source.items() if source == arg.name]
        derived = ", ".join(f"{n} = {self.sizes.env[n]}" for n in found)
        so = f", so {derived}" if derived else ""
        return f"  {arg.name}: {arg.text or arg.type} was given an array of shape {value}{so}"

    def _fail(self, what: str, *args: ArgSig) -> None:
        lines = [f"{self.export.name}: {what}", *(self._was_given(a) for a in args)]
        place = args[0].place or self.export.place
        raise ShapeError("\n".join([*lines, *([f"  declared at {place}"] if place else [])]))

    def _rank(self, arg: ArgSig, rank: int) -> str:
        assert arg.type is not None, arg
        least = f"at least {arg.type.rank - len(arg.packs)}" if arg.packs else str(arg.type.rank)
        try:
            self._fail(f"{arg.name} needs {least} {_axes(least)}, got {rank}", arg)
        except ShapeError as error:
            return str(error) + _hint(arg.type, rank, self.given[arg.name])
        return ""

    def _pack(self, arg: ArgSig, name: str, part: Shape) -> None:
        known = self.sizes.packs.setdefault(name, part)
        if known != part:
            first = self._arg(self.sizes.source.get(f"..{name}", arg.name))
            what = f"{first.name} and {arg.name} disagree on ..{name}: {known} and {part}"
            self._fail(what, first, arg)
        self.sizes.source.setdefault(f"..{name}", arg.name)

    def _mismatch(self, arg: ArgSig, axis: int, dim: Dim, size: int) -> None:
        if dim.const is not None:
            self._fail(f"axis {axis} of {arg.name} needs {dim}, got {size}", arg)
        value = dim.evaluate(self.sizes.env)
        sources = dict.fromkeys(
            self.sizes.source[n] for n in sorted(dim.names) if n in self.sizes.source
        )
        others = [self._arg(s) for s in sources if s != arg.name]
        if not others:
            self._fail(f"axis {axis} of {arg.name} needs {dim} = {value}, got {size}", arg)
        names = " and ".join([*(a.name for a in others), arg.name])
        self._fail(f"{names} disagree on {dim}: {value} and {size}", *others, arg)

    def _unsolvable(
        self, arg: ArgSig, axis: int, dim: Dim, size: int, slope: int, rest: int
    ) -> None:
        if slope > 1 and (size - rest) % slope:
            want = f"a multiple of {slope}" + (f" plus {rest}" if rest else "")
        else:
            want = f"at least {slope + rest}"
        self._fail(f"axis {axis} of {arg.name} ({dim}) must be {want}, got {size}", arg)


def _axes(count: str) -> str:
    return "axis" if count.endswith("1") and len(count.split()[-1]) == 1 else "axes"


def _hint(type_: TensorType, rank: int, given: Given) -> str:
    """A cure for the commonest mistake: one sample instead of a batch of one."""
    if type_.rank == rank + 1 and isinstance(given, tuple) and type_.shape[0].name is not None:
        tail = [d.const for d in type_.shape[1:]]
        if all(c is None or c == s for c, s in zip(tail, given, strict=True)):
            return "\n  help: for one sample add the batch axis: x[None]"
    return ""
