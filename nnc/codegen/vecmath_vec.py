"""Vectors of the function being emitted, with operators: the notation of the vector math.

A `Vec` is one SSA value of a fixed kind ("f32", "f64", "i32", "i64", "i1") and lane count (1 is the
scalar type). An operator emits one instruction and accepts Python numbers, which become splat
constants of the kind of the other operand. Nothing is contracted: an FMA is written `fma`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nnc.codegen.emit import Emitter

SCALAR_TYPES = {"f32": "float", "f64": "double", "i32": "i32", "i64": "i64", "i1": "i1"}


@dataclass(frozen=True)
class Format:
    """Numbers of an IEEE binary format that the bit manipulations need."""

    bits: str  # the integer kind of the same width
    mantissa: int  # stored bits of the significand
    bias: int
    tiny: float  # smallest normal number
    ln2: tuple[float, float]  # ln 2 as an unevaluated sum
    log2e: tuple[float, float]

    @property
    def sign_bit(self) -> int:
        return 1 << (32 if self.bits == "i32" else 64) - 1

    @property
    def magic(self) -> float:
        """Adding 1.5 * 2**mantissa rounds to an integer, which the low bits then hold."""
        return 1.5 * 2.0**self.mantissa


F32 = Format(
    "i32",
    23,
    127,
    2.0**-126,
    (0.693147182464599609375, -1.9046542121259336e-09),
    (1.4426950216293335, 1.925963033500011e-08),
)
F64 = Format(
    "i64",
    52,
    1023,
    2.0**-1022,
    (0.6931471805599453, 2.3190468138462996e-17),
    (1.4426950408889634, 2.0355273740931033e-17),
)
FORMATS = {"f32": F32, "f64": F64}


def vector_type(kind: str, lanes: int) -> str:
    scalar = SCALAR_TYPES[kind]
    return scalar if lanes == 1 else f"<{lanes} x {scalar}>"


def constant(kind: str, lanes: int, value: float) -> str:
    """The operand text of a splat constant; floats are rounded to the kind first."""
    if kind in FORMATS:
        rounded = struct.unpack("<f", struct.pack("<f", value))[0] if kind == "f32" else value
        text = f"0x{struct.unpack('<Q', struct.pack('<d', rounded))[0]:016X}"
    else:
        width = 64 if kind == "i64" else 32
        signed = (int(value) + (1 << width - 1)) % (1 << width) - (1 << width - 1)
        text = str(signed)
    return text if lanes == 1 else f"splat ({SCALAR_TYPES[kind]} {text})"


@dataclass
class Body:
    """The LLVM function being emitted and what it refers to."""

    lanes: int
    scalef: bool = False  # the target has AVX-512
    emitter: Emitter = field(default_factory=Emitter)
    block: str = "entry"
    calls: set[tuple[str, str, int]] = field(default_factory=set)
    declares: set[str] = field(default_factory=set)
    tables: set[str] = field(default_factory=set)  # names of constant arrays

    def __post_init__(self) -> None:
        self.emitter.label("entry")

    def op(self, kind: str, text: str) -> Vec:
        return Vec(self, kind, self.emitter.op(text))

    def number(self, kind: str, value: float) -> Vec:
        return Vec(self, kind, constant(kind, self.lanes, value))

    def label(self, name: str) -> None:
        self.emitter.label(name)
        self.block = name

    def intrinsic(self, name: str, *args: Vec) -> Vec:
        """llvm.<name> on arguments of one kind, with a result of that kind."""
        kind = args[0].kind
        suffix = f"{kind}" if self.lanes == 1 else f"v{self.lanes}{kind}"
        parameters = ", ".join(a.type for a in args)
        self.declares.add(f"declare {args[0].type} @llvm.{name}.{suffix}({parameters})")
        operands = ", ".join(a.text for a in args)
        return self.op(kind, f"call {args[0].type} @llvm.{name}.{suffix}({operands})")

    def scaled(self, p: Vec, n: Vec) -> Vec:
        """p * 2**n, rounded once; n is a whole float. For vectors of 32 or 64 bytes only."""
        bits = self.lanes * (32 if p.kind == "f32" else 64)
        name = f"@llvm.x86.avx512.mask.scalef.p{'s' if p.kind == 'f32' else 'd'}.{bits}"
        mask = f"i{max(self.lanes, 8)}"
        rest = ", i32" if bits == 512 else ""
        self.declares.add(f"declare {p.type} {name}({p.type}, {p.type}, {p.type}, {mask}{rest})")
        how = ", i32 4" if bits == 512 else ""  # as rounding is set
        given = f"{p.text}, {n.text}, {p.text}, {mask} -1{how}"
        return self.op(p.kind, f"call {p.type} {name}({given})")

    def any(self, mask: Vec) -> str:
        """Whether a lane of the mask holds, as an i1 operand."""
        if self.lanes == 1:
            return mask.ref
        name = f"@llvm.vector.reduce.or.v{self.lanes}i1"
        self.declares.add(f"declare i1 {name}({mask.type})")
        return self.emitter.op(f"call i1 {name}({mask.text})")


@dataclass(frozen=True)
class Vec:
    """One SSA value of `body`; see the module's docstring."""

    body: Body
    kind: str
    ref: str

    @property
    def type(self) -> str:
        return vector_type(self.kind, self.body.lanes)

    @property
    def text(self) -> str:
        """The operand with its type."""
        return f"{self.type} {self.ref}"

    @property
    def format(self) -> Format:
        return FORMATS[self.kind]

    def lift(self, other: Vec | float) -> Vec:
        value = other if isinstance(other, Vec) else self.body.number(self.kind, other)
        assert value.kind == self.kind, (self, other)
        return value

    def _binary(self, float_op: str, int_op: str, other: Vec | float, swap: bool = False) -> Vec:
        opcode = float_op if self.kind in FORMATS else int_op
        assert opcode, (self, other)
        a, b = (self.lift(other), self) if swap else (self, self.lift(other))
        return self.body.op(self.kind, f"{opcode} {a.text}, {b.ref}")

    def __add__(self, other: Vec | float) -> Vec:
        return self._binary("fadd", "add", other)

    def __radd__(self, other: float) -> Vec:
        return self._binary("fadd", "add", other, swap=True)

    def __sub__(self, other: Vec | float) -> Vec:
        return self._binary("fsub", "sub", other)

    def __rsub__(self, other: float) -> Vec:
        return self._binary("fsub", "sub", other, swap=True)

    def __mul__(self, other: Vec | float) -> Vec:
        return self._binary("fmul", "mul", other)

    def __rmul__(self, other: float) -> Vec:
        return self._binary("fmul", "mul", other, swap=True)

    def __truediv__(self, other: Vec | float) -> Vec:
        return self._binary("fdiv", "", other)

    def __rtruediv__(self, other: float) -> Vec:
        return self._binary("fdiv", "", other, swap=True)

    def __neg__(self) -> Vec:
        if self.kind in FORMATS:
            return self.body.op(self.kind, f"fneg {self.text}")
        return 0 - self

    def __and__(self, other: Vec | int) -> Vec:
        return self._binary("", "and", other)

    def __or__(self, other: Vec | int) -> Vec:
        return self._binary("", "or", other)

    def __xor__(self, other: Vec | int) -> Vec:
        return self._binary("", "xor", other)

    def __lshift__(self, other: int) -> Vec:
        return self._binary("", "shl", other)

    def __rshift__(self, other: int) -> Vec:
        """The logical shift: zeros come in."""
        return self._binary("", "lshr", other)

    def __invert__(self) -> Vec:
        assert self.kind == "i1", self
        return self ^ self.body.number("i1", -1)

    def _compare(self, predicate: str, other: Vec | float) -> Vec:
        opcode = "fcmp" if self.kind in FORMATS else "icmp"
        return self.body.op("i1", f"{opcode} {predicate} {self.text}, {self.lift(other).ref}")

    # Ordered comparisons (false for NaN); signed for integers.
    def lt(self, other: Vec | float) -> Vec:
        return self._compare("olt" if self.kind in FORMATS else "slt", other)

    def gt(self, other: Vec | float) -> Vec:
        return self._compare("ogt" if self.kind in FORMATS else "sgt", other)

    def ge(self, other: Vec | float) -> Vec:
        return self._compare("oge" if self.kind in FORMATS else "sge", other)

    def eq(self, other: Vec | float) -> Vec:
        return self._compare("oeq" if self.kind in FORMATS else "eq", other)

    def ne(self, other: Vec | float) -> Vec:
        """Unequal; true for NaN."""
        return self._compare("une" if self.kind in FORMATS else "ne", other)

    def unordered(self, other: Vec | float) -> Vec:
        return self._compare("uno", other)

    def to(self, kind: str) -> Vec:
        """Conversion between f32 and f64, or from i32."""
        match self.kind, kind:
            case ("f32", "f64"):
                opcode = "fpext"
            case ("f64", "f32"):
                opcode = "fptrunc"
            case ("i32", "f32" | "f64"):
                opcode = "sitofp"
            case _:
                raise AssertionError((self, kind))
        target = vector_type(kind, self.body.lanes)
        return self.body.op(kind, f"{opcode} {self.text} to {target}")

    def bits(self) -> Vec:
        """The same bits as an integer."""
        kind = self.format.bits
        target = vector_type(kind, self.body.lanes)
        return self.body.op(kind, f"bitcast {self.text} to {target}")

    def as_float(self) -> Vec:
        """The same bits as a floating-point number."""
        kind = {"i32": "f32", "i64": "f64"}[self.kind]
        target = vector_type(kind, self.body.lanes)
        return self.body.op(kind, f"bitcast {self.text} to {target}")


def fma(a: Vec, b: Vec | float, c: Vec | float) -> Vec:
    return a.body.intrinsic("fma", a, a.lift(b), a.lift(c))


def select(mask: Vec, yes: Vec | float, no: Vec | float) -> Vec:
    """Lane-wise `yes if mask else no`; one of the two must be a Vec."""
    some = yes if isinstance(yes, Vec) else no
    assert isinstance(some, Vec), (mask, yes, no)
    a, b = some.lift(yes), some.lift(no)
    return mask.body.op(some.kind, f"select {mask.text}, {a.text}, {b.text}")


def absolute(x: Vec) -> Vec:
    return x.body.intrinsic("fabs", x)


def rint(x: Vec) -> Vec:
    """To the nearest integer, ties to even."""
    return x.body.intrinsic("rint", x)


def copysign(magnitude: Vec, sign: Vec | float) -> Vec:
    return magnitude.body.intrinsic("copysign", magnitude, magnitude.lift(sign))


def clamp(x: Vec, low: float | None, high: float | None) -> Vec:
    """x held to [low, high]; NaN stays NaN."""
    if low is not None:
        x = select(x.lt(low), low, x)
    if high is not None:
        x = select(x.gt(high), high, x)
    return x


def horner(x: Vec, coefficients: Sequence[float]) -> Vec:
    """The polynomial with these coefficients, lowest order first."""
    value = x.lift(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = fma(value, x, coefficient)
    return value


def two_sum(a: Vec, b: Vec) -> tuple[Vec, Vec]:
    """a + b as a rounded sum and its exact error."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def fast_two_sum(a: Vec, b: Vec) -> tuple[Vec, Vec]:
    """`two_sum` for |a| >= |b| or a = 0."""
    total = a + b
    return total, b - (total - a)


def call(fn: str, *args: Vec) -> Vec:
    """Another function of the library on arguments of one kind."""
    body, kind = args[0].body, args[0].kind
    body.calls.add((fn, kind, body.lanes))
    operands = ", ".join(a.text for a in args)
    return body.op(kind, f"call {args[0].type} @nn.{fn}.{kind}.{body.lanes}({operands})")


def rarely(mask: Vec, usual: Sequence[Vec], unusual: Callable[[], Sequence[Vec]]) -> list[Vec]:
    """`usual`, replaced in the lanes of `mask` by `unusual()`, run only if there is such a lane."""
    body, emitter = mask.body, mask.body.emitter
    rare, join, before = emitter.fresh("rare"), emitter.fresh("join"), body.block
    emitter.line(f"br i1 {body.any(mask)}, label %{rare}, label %{join}")
    body.label(rare)
    values = [select(mask, new, old) for new, old in zip(unusual(), usual, strict=True)]
    after = body.block
    emitter.line(f"br label %{join}")
    body.label(join)
    return [
        body.op(new.kind, f"phi {new.type} [ {new.ref}, %{after} ], [ {old.ref}, %{before} ]")
        for new, old in zip(values, usual, strict=True)
    ]
