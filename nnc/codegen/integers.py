"""The scalar functions on integers and truth values."""

from __future__ import annotations

from collections.abc import Sequence

from nnc.codegen.emit import Emitter
from nnc.codegen.instructions import Instructions
from nnc.codegen.registers import vtype, wide
from nnc.lang.types import DTYPES, DType

_LOGIC = {"and": "and", "or": "or", "bitand": "and", "bitor": "or", "bitxor": "xor"}
SMALL_POWER = 4  # powers up to this one are written out


class Integers(Instructions):
    """Emits functions of integers; none of them traps."""

    def int_op(self, fn: str, dtype: DType, args: Sequence[str], lanes: int) -> str:
        a = args[0]
        unsigned = DTYPES[dtype].kind != "i"
        match fn:
            case "add" | "sub" | "mul":
                return self.two(fn, dtype, a, args[1], lanes)
            case "neg":
                return self.two("sub", dtype, self.lit(dtype, 0, lanes), a, lanes)
            case "powi":
                return self.powi_int(dtype, a, args[1], lanes)
            case "floordiv" | "mod":
                return self.divide(fn, dtype, a, args[1], lanes)
            case "min" | "max":
                return self.intrinsic(f"{'u' if unsigned else 's'}{fn}", dtype, lanes, a, args[1])
            case "eq" | "ne":
                return self.two(f"icmp {fn}", dtype, a, args[1], lanes)
            case "lt" | "le" | "gt" | "ge":
                return self.two(f"icmp {'u' if unsigned else 's'}{fn}", dtype, a, args[1], lanes)
            case "and" | "or" | "bitand" | "bitor" | "bitxor":
                return self.two(_LOGIC[fn], dtype, a, args[1], lanes)
            case "not":
                return self.two("xor", dtype, a, self.lit(dtype, True, lanes), lanes)
            case "isfinite":
                return self.lit("bool", True, lanes)
            case "shl" | "shr":
                return self.shift(fn, dtype, a, args[1], lanes)
            case "dot4":
                return self.dot4(a, args[1], lanes)
            case "abs" | "sign":
                return self.magnitude(fn, dtype, a, lanes)
        raise AssertionError(f"{fn} of {dtype}")

    def divide(self, fn: str, dtype: DType, a: str, b: str, lanes: int) -> str:
        """Floor semantics, 0 for a divisor of 0; 0 and -1 never reach the instruction."""
        zero, one = self.lit(dtype, 0, lanes), self.lit(dtype, 1, lanes)
        known = integer_constant(b)
        by_zero = self.two("icmp eq", dtype, b, zero, lanes)
        if DTYPES[dtype].kind == "u":
            safe = self.choose(by_zero, one, b, dtype, lanes)
            out = self.two("udiv" if fn == "floordiv" else "urem", dtype, a, safe, lanes)
            return out if known else self.choose(by_zero, zero, out, dtype, lanes)
        minus = self.two("icmp eq", dtype, b, self.lit(dtype, -1, lanes), lanes)
        special = self.two("or", "bool", by_zero, minus, lanes)
        safe = b if known is not None and known > 0 else self.choose(special, one, b, dtype, lanes)
        r = self.two("srem", dtype, a, safe, lanes)
        differ = self.two("icmp slt", dtype, self.two("xor", dtype, r, safe, lanes), zero, lanes)
        inexact = self.two("icmp ne", dtype, r, zero, lanes)
        off = self.two("and", "bool", differ, inexact, lanes)
        if fn == "mod":
            out = self.choose(off, self.two("add", dtype, r, safe, lanes), r, dtype, lanes)
            return out if safe is b else self.choose(special, zero, out, dtype, lanes)
        q = self.two("sdiv", dtype, a, safe, lanes)
        q = self.choose(off, self.two("sub", dtype, q, one, lanes), q, dtype, lanes)
        if safe is b:
            return q
        q = self.choose(minus, self.two("sub", dtype, zero, a, lanes), q, dtype, lanes)
        return self.choose(by_zero, zero, q, dtype, lanes)

    def shift(self, fn: str, dtype: DType, a: str, b: str, lanes: int) -> str:
        bits = DTYPES[dtype].bits
        inside = self.two("icmp ult", dtype, b, self.lit(dtype, bits, lanes), lanes)
        zero = self.lit(dtype, 0, lanes)
        safe = self.choose(inside, b, zero, dtype, lanes)
        if fn == "shl":
            return self.choose(inside, self.two("shl", dtype, a, safe, lanes), zero, dtype, lanes)
        if DTYPES[dtype].kind == "u":
            return self.choose(inside, self.two("lshr", dtype, a, safe, lanes), zero, dtype, lanes)
        last = self.choose(inside, b, self.lit(dtype, bits - 1, lanes), dtype, lanes)
        return self.two("ashr", dtype, a, last, lanes)

    def dot4(self, a: str, b: str, lanes: int) -> str:
        """Four products of bytes: a's without sign, b's with."""
        return dot4(self.em, a, b, lanes)

    def magnitude(self, fn: str, dtype: DType, a: str, lanes: int) -> str:
        zero, one = self.lit(dtype, 0, lanes), self.lit(dtype, 1, lanes)
        if DTYPES[dtype].kind != "i":
            if fn == "abs":
                return a
            return self.intrinsic("umin", dtype, lanes, a, one)
        if fn == "sign":
            low = self.intrinsic("smax", dtype, lanes, a, self.lit(dtype, -1, lanes))
            return self.intrinsic("smin", dtype, lanes, low, one)
        negative = self.two("icmp slt", dtype, a, zero, lanes)
        return self.choose(negative, self.two("sub", dtype, zero, a, lanes), a, dtype, lanes)

    def powi_int(self, dtype: DType, x: str, n: str, lanes: int) -> str:
        power = integer_constant(n)
        if power is None or power > SMALL_POWER:
            positive = self.intrinsic("smax", "i32", lanes, n, self.lit("i32", 0, lanes))
            return self.product_loop(dtype, x, positive, lanes)
        out = self.lit(dtype, 1, lanes)
        for _ in range(max(power, 0)):
            out = self.two("mul", dtype, out, x, lanes)
        return out

    def product_loop(self, dtype: DType, x: str, n: str, lanes: int) -> str:
        """x**n by squaring over the bits of n."""
        em, ty, ity = self.em, vtype(dtype, lanes), vtype("i32", lanes)
        before, body, done = (em.fresh(s) for s in ("pow", "square", "powered"))
        nb, nx, nn, ni = (f"%{em.fresh('next')}" for _ in range(4))
        em.line(f"br label %{before}")
        em.label(before)
        em.line(f"br label %{body}")
        em.label(body)
        b = em.op(f"phi {ty} [ {self.lit(dtype, 1, lanes)}, %{before} ], [ {nb}, %{body} ]")
        y = em.op(f"phi {ty} [ {x}, %{before} ], [ {nx}, %{body} ]")
        m = em.op(f"phi {ity} [ {n}, %{before} ], [ {nn}, %{body} ]")
        i = em.op(f"phi i32 [ 0, %{before} ], [ {ni}, %{body} ]")
        bit = em.op(f"trunc {ity} {m} to {wide('i1', lanes)}")
        taken = self.two("mul", dtype, b, y, lanes)
        em.line(f"{nb} = select {wide('i1', lanes)} {bit}, {ty} {taken}, {ty} {b}")
        em.line(f"{nx} = mul {ty} {y}, {y}")
        em.line(f"{nn} = lshr {ity} {m}, {self.lit('i32', 1, lanes)}")
        em.line(f"{ni} = add i32 {i}, 1")
        more = em.op(f"icmp ult i32 {ni}, 32")
        em.line(f"br i1 {more}, label %{body}, label %{done}")
        em.label(done)
        return nb


def dot4(em: Emitter, a: str, b: str, lanes: int) -> str:
    """The sum of products of four bytes in every lane: a's without sign, b's with."""
    ty, out = wide("i32", lanes), ""

    def op(name: str, x: str, n: int) -> str:
        return em.op(f"{name} {ty} {x}, {n if lanes == 1 else f'splat (i32 {n})'}", "byte")

    for shift in (0, 8, 16, 24):
        x = op("and", op("lshr", a, shift), 255)
        y = op("ashr", op("shl", b, 24 - shift), 24)
        one = em.op(f"mul {ty} {x}, {y}", "product")
        out = em.op(f"add {ty} {out}, {one}", "dot") if out else one
    return out


def integer_constant(x: str) -> int | None:
    """The integer in a constant operand."""
    text = x.removeprefix("splat (").removesuffix(")").rsplit(" ", 1)[-1]
    return int(text) if text.lstrip("-").isdigit() else None
