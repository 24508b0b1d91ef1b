"""The scalar functions as LLVM instructions, on scalars and on vectors of any number of lanes.

Functions of 16-bit floats are computed in f32 and rounded once more. Nothing here traps, whatever
the operands: integer division by zero gives 0, `min // -1` wraps, shifts beyond the width give 0 or
the sign.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from nnc.codegen import philox, vecmath
from nnc.codegen.emit import Emitter
from nnc.codegen.integers import SMALL_POWER, Integers, integer_constant
from nnc.codegen.registers import HALVES, REGISTER, Halves, computes_in, vtype
from nnc.codegen.target import Target
from nnc.lang.types import DTYPES, DType, is_float

MATH = frozenset(
    [
        "exp",
        "expm1",
        "log",
        "log1p",
        "log2",
        "sin",
        "cos",
        "tan",
        "asin",
        "acos",
        "atan",
        "atan2",
        "sinh",
        "cosh",
        "tanh",
        "sigmoid",
        "erf",
        "erfc",
        "lgamma",
        "pow",
    ]
)
_EXACT = frozenset(
    ["min", "max", "neg", "abs", "sign", "floor", "ceil", "round"]
)  # no rounding for 16-bit floats


class Scalars(Integers):
    """Emits scalar functions."""

    def __init__(self, em: Emitter, target: Target) -> None:
        super().__init__(em, target)
        self.halves = Halves(em, target)
        self.has_rounding = target.isa != "portable" or not target.triple.startswith("x86")

    # ---- the table ------------------------------------------------------------------------------

    def apply(self, fn: str, dtype: DType, source: DType, args: Sequence[str], lanes: int) -> str:
        """`fn` with a result of `dtype` on operands whose first has dtype `source`."""
        if fn == "cast":
            return self.cast(args[0], source, dtype, lanes)
        if fn == "rounded":
            return self._round_to_small(args[0], source, dtype, lanes)
        if fn.startswith("random_"):
            made = philox.emit(self, fn, computes_in(dtype), args, lanes)
            return self.rounded(made, dtype, lanes)
        if dtype in HALVES:
            out = self.apply(fn, "f32", "f32", args, lanes)
            return out if fn in _EXACT else self.halves.round(dtype, out, lanes)
        source = computes_in(source)
        if is_float(source):
            return self.float_op(fn, source, args, lanes)
        return self.int_op(fn, source, args, lanes)

    def rounded(self, x: str, dtype: DType, lanes: int) -> str:
        return self.halves.round(dtype, x, lanes) if dtype in HALVES else x

    def float_op(self, fn: str, dtype: DType, args: Sequence[str], lanes: int) -> str:
        a = args[0]
        match fn:
            case "add" | "sub" | "mul" | "div":
                return self.two(f"f{fn}", dtype, a, args[1], lanes)
            case "neg":
                return self.em.op(f"fneg {vtype(dtype, lanes)} {a}")
            case "fma":
                return self.fma(dtype, a, args[1], args[2], lanes)
            case "powi":
                return self.powi_float(dtype, a, args[1], lanes)
            case "min" | "max":
                return self.extremum(fn, dtype, a, args[1], lanes)
            case "ne":
                return self.two("fcmp une", dtype, a, args[1], lanes)
            case "eq" | "lt" | "le" | "gt" | "ge":
                return self.two(f"fcmp o{fn}", dtype, a, args[1], lanes)
            case "isfinite":
                inf = self.lit(dtype, float("inf"), lanes)
                return self.two(
                    "fcmp olt", dtype, self.intrinsic("fabs", dtype, lanes, a), inf, lanes
                )
            case "abs":
                return self.intrinsic("fabs", dtype, lanes, a)
            case "sign":
                return self.sign_float(dtype, a, lanes)
            case "floor" | "ceil" | "round":
                return self.to_whole(fn, dtype, a, lanes)
            case "sqrt":
                return self.intrinsic("sqrt", dtype, lanes, a)
            case "rsqrt":
                root = self.intrinsic("sqrt", dtype, lanes, a)
                return self.two("fdiv", dtype, self.lit(dtype, 1, lanes), root, lanes)
            case "digamma":
                return self.digamma(dtype, a, lanes)
        assert fn in MATH, fn
        return self.call(fn, dtype, lanes, *args)

    # ---- floats ---------------------------------------------------------------------------------

    def extremum(self, fn: str, dtype: DType, a: str, b: str, lanes: int) -> str:
        """NaN if either is NaN. x86's maxps gives its second operand when one is NaN."""
        compare = "fcmp ogt" if fn == "max" else "fcmp olt"
        if _is_number(b):
            a, b = b, a
        best = self.choose(self.two(compare, dtype, a, b, lanes), a, b, dtype, lanes)
        if _is_number(a):
            return best
        # (`a` in place of a constant would be joined with the choice above: no maxps then.)
        nan = self.lit(dtype, float("nan"), lanes)
        return self.choose(self.two("fcmp uno", dtype, a, a, lanes), nan, best, dtype, lanes)

    def extreme(self, fn: str, dtype: DType, xs: Sequence[str], lanes: int) -> str:
        """Of several, in order, with one search for NaN in each pair."""
        level = list(xs)
        while len(level) > 1:
            pairs = zip(level[::2], level[1::2], strict=False)
            compare = "fcmp ogt" if fn == "max" else "fcmp olt"
            best = [
                self.choose(self.two(compare, dtype, a, b, lanes), a, b, dtype, lanes)
                for a, b in pairs
            ]
            level = [*best, *level[len(level) & ~1 :]]
        numbers: str | None = None
        for i in range(0, len(xs), 2):
            ok = self.two("fcmp ord", dtype, xs[i], xs[min(i + 1, len(xs) - 1)], lanes)
            numbers = ok if numbers is None else self.two("and", "bool", numbers, ok, lanes)
        assert numbers is not None
        return self.choose(numbers, level[0], self.lit(dtype, math.nan, lanes), dtype, lanes)

    def sign_float(self, dtype: DType, a: str, lanes: int) -> str:
        """Zeros and NaN are their own sign."""
        zero, one = self.lit(dtype, 0, lanes), self.lit(dtype, 1, lanes)
        signed = self.intrinsic("copysign", dtype, lanes, one, a)
        nonzero = self.two("fcmp one", dtype, a, zero, lanes)
        return self.choose(nonzero, signed, a, dtype, lanes)

    def to_whole(self, fn: str, dtype: DType, a: str, lanes: int) -> str:
        if self.has_rounding:
            return self.intrinsic("roundeven" if fn == "round" else fn, dtype, lanes, a)
        # Adding and subtracting 2**23 (2**52) rounds smaller numbers; larger ones are whole.
        size = self.intrinsic("fabs", dtype, lanes, a)
        big = self.lit(dtype, 2.0**23 if dtype == "f32" else 2.0**52, lanes)
        near = self.two("fsub", dtype, self.two("fadd", dtype, size, big, lanes), big, lanes)
        near = self.intrinsic("copysign", dtype, lanes, near, a)
        if fn != "round":
            off = self.two(f"fcmp {'ogt' if fn == 'floor' else 'olt'}", dtype, near, a, lanes)
            step = self.lit(dtype, -1.0 if fn == "floor" else 1.0, lanes)
            moved = self.two("fadd", dtype, near, step, lanes)
            near = self.choose(off, moved, near, dtype, lanes)
            near = self.intrinsic("copysign", dtype, lanes, near, a)
        whole = self.two("fcmp olt", dtype, size, big, lanes)
        return self.choose(whole, near, a, dtype, lanes)

    def fma(self, dtype: DType, a: str, b: str, c: str, lanes: int) -> str:
        if self.target.fma:
            return self.intrinsic("fma", dtype, lanes, a, b, c)
        if dtype == "f64":
            return self.soft_fma(a, b, c, lanes)
        # The product is exact in f64; the sum is rounded to odd there, so that f32 rounds it once.
        x, y, z = (self.convert("fpext", v, "float", "double", lanes) for v in (a, b, c))
        product = self.two("fmul", "f64", x, y, lanes)
        total, error = self.two_sum(product, z, lanes)
        return self.convert("fptrunc", self.odd(total, error, lanes), "double", "float", lanes)

    def two_sum(self, a: str, b: str, lanes: int) -> tuple[str, str]:
        """Knuth: s + e = a + b exactly."""

        def op(name: str, x: str, y: str) -> str:
            return self.two(name, "f64", x, y, lanes)

        s = op("fadd", a, b)
        t = op("fsub", s, a)
        return s, op("fadd", op("fsub", a, op("fsub", s, t)), op("fsub", b, t))

    def odd(self, s: str, error: str, lanes: int) -> str:
        """s + error rounded to odd: where the sum is inexact its last bit becomes 1."""
        bits = self.convert("bitcast", s, "double", "i64", lanes)
        zero = self.lit("f64", 0, lanes)
        last = self.two("and", "i64", bits, self.lit("i64", 1, lanes), lanes)
        even = self.two("icmp eq", "i64", last, self.lit("i64", 0, lanes), lanes)
        inexact = self.two("fcmp one", "f64", error, zero, lanes)
        change = self.two("and", "bool", even, inexact, lanes)
        up = self.two("fcmp ogt", "f64", error, zero, lanes)
        positive = self.two("icmp sge", "i64", bits, self.lit("i64", 0, lanes), lanes)
        away = self.two("icmp eq", "bool", up, positive, lanes)
        step = self.choose(
            away, self.lit("i64", 1, lanes), self.lit("i64", -1, lanes), "i64", lanes
        )
        moved = self.convert(
            "bitcast", self.two("add", "i64", bits, step, lanes), "i64", "double", lanes
        )
        return self.choose(change, moved, s, "f64", lanes)

    def soft_fma(self, a: str, b: str, c: str, lanes: int) -> str:
        """Boldo and Melquiond's fma by exact products and sums, unless parts over- or underflow."""

        def op(name: str, x: str, y: str) -> str:
            return self.two(name, "f64", x, y, lanes)

        def halves(x: str) -> tuple[str, str]:
            t = op("fmul", x, self.lit("f64", 134217729.0, lanes))
            high = op("fsub", t, op("fsub", t, x))
            return high, op("fsub", x, high)

        p = op("fmul", a, b)
        (a1, a2), (b1, b2) = halves(a), halves(b)
        e = op("fsub", op("fmul", a1, b1), p)
        e = op("fadd", op("fadd", e, op("fmul", a1, b2)), op("fmul", a2, b1))
        e = op("fadd", e, op("fmul", a2, b2))
        t1, t2 = self.two_sum(c, e, lanes)
        v1, v2 = self.two_sum(p, t1, lanes)
        z = self.odd(*self.two_sum(t2, v2, lanes), lanes)
        exact = op("fadd", v1, z)
        plain = op("fadd", p, c)
        bad = op("fcmp uno", exact, exact)
        return self.choose(bad, plain, exact, "f64", lanes)

    def powi_float(self, dtype: DType, x: str, n: str, lanes: int) -> str:
        power = integer_constant(n)
        if power is not None and abs(power) <= SMALL_POWER:
            return self.small_power(dtype, x, power, lanes)
        self.calls.add(("powi", dtype, lanes))
        ty, symbol = vtype(dtype, lanes), vecmath.symbol("powi", dtype, lanes)
        return self.em.op(f"call {ty} {symbol}({ty} {x}, {vtype('i32', lanes)} {n})")

    def small_power(self, dtype: DType, x: str, n: int, lanes: int) -> str:
        one = self.lit(dtype, 1, lanes)
        out = one if n == 0 else x
        if abs(n) >= 2:
            out = self.two("fmul", dtype, x, x, lanes)
        if abs(n) >= 3:
            out = self.two("fmul", dtype, out, x if abs(n) == 3 else out, lanes)
        return self.two("fdiv", dtype, one, out, lanes) if n < 0 else out

    def digamma(self, dtype: DType, x: str, lanes: int) -> str:
        """Recurrence to 10 or more, asymptotic series, reflection below 1/2; in f64."""
        if dtype == "f32":
            y = self.digamma("f64", self.convert("fpext", x, "float", "double", lanes), lanes)
            return self.convert("fptrunc", y, "double", "float", lanes)

        def op(name: str, a: str, b: str) -> str:
            return self.two(name, "f64", a, b, lanes)

        def lit(v: float) -> str:
            return self.lit("f64", v, lanes)

        reflect = op("fcmp olt", x, lit(0.5))
        z = self.choose(reflect, op("fsub", lit(1), x), x, "f64", lanes)
        out = lit(0)
        for _ in range(10):
            small = op("fcmp olt", z, lit(10))
            out = self.choose(small, op("fsub", out, op("fdiv", lit(1), z)), out, "f64", lanes)
            z = self.choose(small, op("fadd", z, lit(1)), z, "f64", lanes)
        i = op("fdiv", lit(1), op("fmul", z, z))
        series = lit(1 / 132)
        for c in (1 / 240, 1 / 252, 1 / 120, 1 / 12):
            series = op("fsub", lit(c), op("fmul", i, series))
        series = op("fmul", i, series)
        out = op("fadd", out, self.call("log", "f64", lanes, z))
        out = op("fsub", op("fsub", out, op("fdiv", lit(0.5), z)), series)
        # cot has period 1 here: the distance to the nearest integer keeps the argument exact.
        near = op("fsub", x, self.to_whole("round", "f64", x, lanes))
        tan = self.call("tan", "f64", lanes, op("fmul", near, lit(3.141592653589793)))
        mirrored = op("fsub", out, op("fdiv", lit(3.141592653589793), tan))
        return self.choose(reflect, mirrored, out, "f64", lanes)

    # ---- conversion -----------------------------------------------------------------------------

    def cast(self, x: str, source: DType, to: DType, lanes: int) -> str:
        """Floats to integers saturate, integers wrap, other numbers than 0 are true."""
        if source == to:
            return x
        if to == "bool":
            compare = "fcmp une" if is_float(source) else "icmp ne"
            return self.two(compare, source, x, self.lit(source, 0, lanes), lanes)
        if is_float(source):
            made = self._float_to_float if is_float(to) else self._float_to_int
            return made(x, source, to, lanes)
        signed = DTYPES[source].kind == "i"
        if is_float(to):
            op = "sitofp" if signed else "uitofp"
            return self.rounded(
                self.convert(op, x, REGISTER[source], REGISTER[to], lanes), to, lanes
            )
        have, want = (1 if d == "bool" else DTYPES[d].bits for d in (source, to))
        if have == want:
            return x
        op = "trunc" if want < have else "sext" if signed else "zext"
        return self.convert(op, x, REGISTER[source], REGISTER[to], lanes)

    def _float_to_float(self, x: str, source: DType, to: DType, lanes: int) -> str:
        if to == "f64":
            return self.convert("fpext", x, "float", "double", lanes)
        if source == "f64":
            x = self.convert("fptrunc", x, "double", "float", lanes)
        return self.rounded(x, to, lanes)

    def _round_to_small(self, x: str, source: DType, to: DType, lanes: int) -> str:
        """`cast(round(x))`: with 1.5 * 2**23 (2**52) added, the low bits are the whole number."""
        if source in HALVES:
            return self.cast(self.apply("round", source, source, [x], lanes), source, to, lanes)
        x = self._clamped(x, source, *_range(to), lanes)
        big = self.lit(source, 1.5 * (2.0**23 if source == "f32" else 2.0**52), lanes)
        word = "i32" if source == "f32" else "i64"
        bits = self.convert(
            "bitcast", self.two("fadd", source, x, big, lanes), REGISTER[source], word, lanes
        )
        return self.convert("trunc", bits, word, REGISTER[to], lanes)

    def _clamped(self, x: str, source: DType, low: int, high: float, lanes: int) -> str:
        """Between two numbers; NaN becomes 0."""
        if low:  # else NaN, which is not above it, becomes `low`
            number = self.two("fcmp ord", source, x, x, lanes)
            x = self.choose(number, x, self.lit(source, 0, lanes), source, lanes)
        bottom, top = self.lit(source, low, lanes), self.lit(source, high, lanes)
        above = self.two("fcmp ogt", source, x, bottom, lanes)
        x = self.choose(above, x, bottom, source, lanes)
        below = self.two("fcmp olt", source, x, top, lanes)
        return self.choose(below, x, top, source, lanes)

    def _float_to_int(self, x: str, source: DType, to: DType, lanes: int) -> str:
        """By hand: LLVM's saturating conversion of vectors goes lane by lane, with branches."""
        source = computes_in(source)
        bits = max(DTYPES[to].bits, 32)
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if bits == DTYPES[to].bits else _range(to)
        # The largest number below `high` where that itself does not fit.
        inexact = bits == DTYPES[to].bits
        top = _before(high, source) if inexact else float(high)
        clamped = self._clamped(x, source, low, top, lanes)
        over = self.two("fcmp oge", source, x, self.lit(source, high, lanes), lanes)
        wide_int = "i64" if bits == 64 else "i32"
        out = self.convert("fptosi", clamped, REGISTER[source], wide_int, lanes)
        if inexact:
            return self.choose(over, self.lit(to, high - 1, lanes), out, wide_int, lanes)
        return self.convert("trunc", out, "i32", REGISTER[to], lanes)


def small(dtype: DType) -> bool:
    """Whether it is an integer of at most 16 bits."""
    return DTYPES[dtype].kind in "iu" and DTYPES[dtype].bits <= 16


def _range(to: DType) -> tuple[int, int]:
    info = DTYPES[to]
    below = 1 << info.bits - 1 if info.kind == "i" else 0
    return -below, (1 << info.bits) - 1 - below


def _before(value: float, dtype: DType) -> float:
    """The float next below a power of two."""
    return value * (1 - (2.0**-24 if dtype == "f32" else 2.0**-53))


def _is_number(x: str) -> bool:
    """Whether a float operand is a constant other than NaN."""
    text = x.removeprefix("splat (").removesuffix(")").rsplit(" ", 1)[-1]
    if not text.startswith("0x"):
        return False
    value: float = struct.unpack("<d", struct.pack("<Q", int(text, 16)))[0]
    return value == value
