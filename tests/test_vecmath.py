"""The vector math library: accuracy against longer formats, special values, lanes, symbols."""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Callable
from functools import cache

import llvmlite.binding as llvm
import numpy as np
import pytest

from nnc.codegen import vecmath
from nnc.codegen.target import Target, host
from nnc.codegen.vecmath_vec import vector_type
from tests.jit import build, optimise
from tests.wide import REFERENCE, WIDE, Array, ulp_error

FLOAT = {"f32": np.float32, "f64": np.float64}
ALL = [(fn, dtype) for fn in vecmath.FUNCTIONS for dtype in ("f32", "f64")]
UNARY = [(fn, dtype) for fn, dtype in ALL if vecmath.FUNCTIONS[fn] == 1]
INF, NAN = math.inf, math.nan
X86_64_V3 = Target("x86_64-unknown-linux-gnu", "x86-64-v3", "", 32, "avx2")

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


# ------------------------------------------------------------------------------------- kernels


def wrapper(fn: str, dtype: str, lanes: int, name: str = "kernel") -> str:
    """void name(x, y, out, n): out[i] = fn(x[i], y[i]) for n a multiple of `lanes`."""
    kinds = [dtype, "i32" if fn == "powi" else dtype][: vecmath.FUNCTIONS[fn]]
    loads, operands = [], []
    for kind, array in zip(kinds, "xy", strict=False):
        ty = vector_type(kind, lanes)
        scalar = vector_type(kind, 1)
        loads += [
            f"  %{array}.at = getelementptr {scalar}, ptr %{array}, i64 %i",
            f"  %{array}.v = load {ty}, ptr %{array}.at, align 4",
        ]
        operands.append(f"{ty} %{array}.v")
    ty = vector_type(dtype, lanes)
    body = "\n".join(loads)
    return f"""
define void @{name}(ptr %x, ptr %y, ptr %out, i64 %n) {{
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
{body}
  %value = call {ty} {vecmath.symbol(fn, dtype, lanes)}({", ".join(operands)})
  %out.at = getelementptr {vector_type(dtype, 1)}, ptr %out, i64 %i
  store {ty} %value, ptr %out.at, align 4
  %next = add i64 %i, {lanes}
  %more = icmp ult i64 %next, %n
  br i1 %more, label %loop, label %done
done:
  ret void
}}
"""


@cache
def kernel(fn: str, dtype: str, lanes: int, target: Target | None = None) -> Callable[..., Array]:
    """fn over arrays of any length, compiled for this machine or another that it can run."""
    text, declares = vecmath.closure([(fn, dtype, lanes)])
    ir = "\n".join([text, wrapper(fn, dtype, lanes), *sorted(declares)])
    engine = build(ir, target=target, level=2)
    pointer = ctypes.c_void_p
    address = engine.get_function_address("kernel")
    call = ctypes.CFUNCTYPE(None, pointer, pointer, pointer, ctypes.c_int64)(address)

    def run(x: Array, y: Array | None = None) -> Array:
        padding = -len(x) % lanes
        x = np.pad(x, (0, padding))
        y = x if y is None else np.pad(y, (0, padding))
        out = np.empty_like(x)
        call(x.ctypes.data, y.ctypes.data, out.ctypes.data, len(x))
        return out[: len(out) - padding]

    return run


# ------------------------------------------------------------------------------------- samples


def specials(dtype: str) -> Array:
    info = np.finfo(FLOAT[dtype])
    tiny, least, most = float(info.tiny), float(info.smallest_subnormal), float(info.max)
    edges = [88.72, 88.73, 89.4, 89.5, 103.9, 104.1, 709.78, 709.79, 710.47, 710.48, 744.4, 745.2]
    edges += [0.4, 0.5, 1.0, 1.5, 2.0, 2.5, 3.93, 8.0, 10.7, 26.5, 27.2, 28.0, 35.04, 36.1]
    edges += [tiny, tiny * 1.5, least, least * 3, most, most * 0.75, 2.0**30, 1e22, 1e38]
    values = np.array([0.0, *edges, INF])
    return np.concatenate([values, -values, [NAN]]).astype(FLOAT[dtype])


def samples(dtype: str, count: int = 30_000) -> Array:
    """All magnitudes, dense where functions change, near zeros of sin and poles of lgamma."""
    rng = np.random.default_rng(7)
    if dtype == "f32":
        patterns = rng.integers(0, 1 << 32, count, dtype=np.uint32).view(np.float32)
    else:
        patterns = rng.integers(0, 1 << 64, count, dtype=np.uint64).view(np.float64)
    near = np.ldexp(rng.uniform(-1, 1, count), -rng.integers(0, 53, count))
    limit = 110 if dtype == "f32" else 760
    parts = [
        rng.uniform(-1, 1, count),
        rng.uniform(-9, 9, count),
        rng.uniform(-30, 30, count),
        rng.uniform(-limit, limit, count),
        1 + near,
        near,
        rng.integers(-(10**6), 10**6, count) * (math.pi / 2),
        rng.uniform(0, 1, count) * float(np.finfo(FLOAT[dtype]).tiny),
    ]
    dense = np.concatenate(parts).astype(FLOAT[dtype])
    return np.concatenate([specials(dtype), patterns, dense])


def pairs(fn: str, dtype: str, count: int = 40_000) -> tuple[Array, Array]:
    """Arguments of the binary functions; for pow also results near the ends of the range."""
    rng = np.random.default_rng(8)
    limit = 87 if dtype == "f32" else 709
    base = np.exp(rng.uniform(-limit, limit, count))
    near = 1 + np.ldexp(rng.uniform(-1, 1, count), -rng.integers(0, 20, count))
    exponents = rng.uniform(-1.05 * limit, 1.05 * limit, (2, count))
    x = [samples(dtype)[:count], base, near, -np.exp(rng.uniform(-3, 3, count)), base[::-1]]
    y = [samples(dtype)[:count][::-1], exponents[0] / np.log(base), exponents[1] / np.log(near)]
    y += [rng.integers(-200, 200, count), rng.normal(size=count)]
    left = np.concatenate([v.astype(FLOAT[dtype]) for v in x])
    right = np.concatenate([v.astype(FLOAT[dtype]) for v in y])
    if fn != "powi":
        return left, right
    n = rng.integers(-12, 13, len(left)).astype(np.int32)
    n[::7] = rng.integers(-(2**31), 2**31, len(n[::7]))
    n[:2] = -(2**31), 2**31 - 1
    return left, n


def reference(fn: str, *arguments: Array) -> Array:
    """The value with more digits than the dtype of the first argument."""
    f32 = arguments[0].dtype == np.float32
    exact = fn in ("erf", "erfc", "sigmoid", "lgamma") or not f32
    wide = [a.astype(WIDE if exact else np.float64) for a in arguments]
    value = REFERENCE[fn](*wide)
    return value.astype(np.float64) if f32 else value.astype(WIDE)


def check(fn: str, dtype: str, got: Array, *arguments: Array) -> None:
    expected = reference(fn, *arguments)
    error = ulp_error(got, expected)
    if (fn, dtype) == ("lgamma", "f64"):
        # 1e-13 relative, and absolute about the zeros on the negative axis.
        error = error * 2.0**-52 / 1e-13
        negative = (arguments[0] < 0) & (np.abs(expected) < 1)
        error = np.where(negative, np.abs(got - expected) / 1e-13, error)
        bound = 1.0
    else:
        bound = vecmath.ULP[fn, dtype]
    worst = int(np.argmax(error))
    where = [a[worst] for a in arguments]
    assert error[worst] <= bound, (fn, dtype, where, got[worst], expected[worst], error[worst])


# --------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize(("fn", "dtype"), UNARY)
def test_accuracy_of_one_argument(fn: str, dtype: str) -> None:
    x = samples(dtype)
    check(fn, dtype, kernel(fn, dtype, 8)(x), x)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("fn", ["pow", "atan2", "powi"])
def test_accuracy_of_two_arguments(fn: str, dtype: str) -> None:
    x, y = pairs(fn, dtype)
    check(fn, dtype, kernel(fn, dtype, 8)(x, y), x, y)


SPECIAL_VALUES: dict[str, list[tuple[float, float]]] = {
    "exp": [(0.0, 1.0), (-0.0, 1.0), (INF, INF), (-INF, 0.0), (800.0, INF), (-800.0, 0.0)],
    "expm1": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -1.0), (800.0, INF), (-100.0, -1.0)],
    "log": [(0.0, -INF), (-0.0, -INF), (1.0, 0.0), (-1.0, NAN), (-INF, NAN), (INF, INF)],
    "log1p": [(0.0, 0.0), (-0.0, -0.0), (-1.0, -INF), (-1.5, NAN), (-INF, NAN), (INF, INF)],
    "log2": [(0.0, -INF), (-1.0, NAN), (1.0, 0.0), (8.0, 3.0), (2.0**-120, -120.0), (INF, INF)],
    "sin": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN), (-INF, NAN)],
    "cos": [(0.0, 1.0), (-0.0, 1.0), (INF, NAN), (-INF, NAN)],
    "tan": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN), (-INF, NAN)],
    "asin": [(0.0, 0.0), (-0.0, -0.0), (1.0, math.pi / 2), (-1.0, -math.pi / 2), (1.5, NAN)],
    "acos": [(1.0, 0.0), (-1.0, math.pi), (0.0, math.pi / 2), (-1.5, NAN), (INF, NAN)],
    "atan": [(0.0, 0.0), (-0.0, -0.0), (INF, math.pi / 2), (-INF, -math.pi / 2), (1, math.pi / 4)],
    "sinh": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -INF), (800.0, INF), (-800.0, -INF)],
    "cosh": [(0.0, 1.0), (-0.0, 1.0), (INF, INF), (-INF, INF), (800.0, INF), (-800.0, INF)],
    "tanh": [(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (30.0, 1.0), (-30.0, -1.0)],
    "sigmoid": [(0.0, 0.5), (-0.0, 0.5), (INF, 1.0), (-INF, 0.0), (50.0, 1.0), (-800.0, 0.0)],
    "erf": [(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (7.0, 1.0), (-7.0, -1.0)],
    "erfc": [(0.0, 1.0), (-0.0, 1.0), (INF, 0.0), (-INF, 2.0), (30.0, 0.0), (-7.0, 2.0)],
    "lgamma": [(0.0, INF), (-0.0, INF), (1.0, 0.0), (2.0, 0.0), (-3.0, INF), (INF, INF)],
    "rsqrt": [(0.0, INF), (-0.0, -INF), (4.0, 0.5), (-1.0, NAN), (INF, 0.0), (-INF, NAN)],
}


def same(got: Array, expected: Array) -> Array:
    """Equal bits, signs of zeros included; all NaNs are one."""
    equal = (got == expected) & (np.signbit(got) == np.signbit(expected))
    return equal | (np.isnan(got) & np.isnan(expected))


@pytest.mark.parametrize(("fn", "dtype"), UNARY)
def test_special_values(fn: str, dtype: str) -> None:
    table = [*SPECIAL_VALUES[fn], (NAN, NAN)]
    x, expected = np.array(table).T.astype(FLOAT[dtype])
    got = kernel(fn, dtype, 8)(x)
    assert same(got, expected).all(), list(zip(x, got, expected, strict=True))


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("fn", ["pow", "atan2"])
def test_conventions_of_two_arguments(fn: str, dtype: str) -> None:
    """C's, which numpy follows: every pair of zeros, infinities, NaN, odd, even and half powers."""
    some = [0.0, 1.0, 0.5, 2.0, 3.0, 1.5, 1e30, 2.0**24, 2.0**24 + 2, 1e-40, INF]
    some = np.array([*some, *(-v for v in some), NAN], FLOAT[dtype])
    x, y = (v.ravel() for v in np.meshgrid(some, some))
    got = kernel(fn, dtype, 8)(x, y)
    expected = REFERENCE[fn](x.astype(np.float64), y.astype(np.float64)).astype(FLOAT[dtype])
    exact = same(got, expected) | (np.isfinite(expected) & (expected != 0))
    assert exact.all(), [(a, b) for a, b in zip(x[~exact], y[~exact], strict=True)]
    check(fn, dtype, got, x, y)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_conventions_of_powi(dtype: str) -> None:
    bases = np.array([0.0, -0.0, 1, -1, 2, -3, 0.5, INF, -INF, NAN, 1e30, -1e-30], FLOAT[dtype])
    counts = np.array([0, 1, 2, 3, 8, 9, -1, -2, -3, -9, 2**31 - 1, -(2**31)], np.int32)
    x, n = (v.ravel() for v in np.meshgrid(bases, counts))
    got = kernel("powi", dtype, 8)(x, n)
    expected = np.power(x.astype(np.float64), n.astype(np.float64)).astype(FLOAT[dtype])
    exact = same(got, expected) | (np.isfinite(expected) & (expected != 0))
    assert exact.all(), [(a, b) for a, b in zip(x[~exact], n[~exact], strict=True)]
    check("powi", dtype, got, x, n)


@pytest.mark.parametrize(("fn", "dtype"), ALL)
def test_lane_count_and_instruction_set_do_not_change_bits(fn: str, dtype: str) -> None:
    if vecmath.FUNCTIONS[fn] == 1:
        arguments = [samples(dtype, 500)]
    else:
        arguments = [v[::50] for v in pairs(fn, dtype, 4000)]
    arguments = [np.ascontiguousarray(a) for a in arguments]
    one, eight, sixteen = (kernel(fn, dtype, lanes)(*arguments) for lanes in (1, 8, 16))
    assert same(one, eight).all()
    assert same(one, sixteen).all()
    if host().isa == "avx512":
        assert same(one, kernel(fn, dtype, 8, X86_64_V3)(*arguments)).all()


def undefined_symbols(elf: bytes) -> list[str]:
    """Names of the undefined symbols of an ELF64 little-endian object."""
    assert elf[:6] == b"\x7fELF\x02\x01"
    start, count = struct.unpack_from("<Q", elf, 40)[0], struct.unpack_from("<H", elf, 60)[0]
    sections = [struct.unpack_from("<IIQQQQIIQQ", elf, start + 64 * i) for i in range(count)]
    names = []
    for _, kind, _, _, offset, size, link, *_ in sections:
        if kind != 2:  # SHT_SYMTAB
            continue
        strings = sections[link][4]
        for at in range(offset + 24, offset + size, 24):
            name, _, _, section = struct.unpack_from("<IBBH", elf, at)
            if section == 0:
                end = elf.index(b"\0", strings + name)
                names.append(elf[strings + name : end].decode())
    return names


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("target", [host(), X86_64_V3], ids=["host", "x86-64-v3"])
def test_no_undefined_symbols(target: Target, level: int) -> None:
    if target.isa == "portable" or "linux" not in target.triple:
        pytest.skip("needs FMA instructions and ELF objects")
    requests = [(fn, dtype, lanes) for fn, dtype in ALL for lanes in (1, 16)]
    text, declares = vecmath.closure(requests)
    wrappers = [wrapper(*r, name="_".join(map(str, ("k", *r)))) for r in requests]
    module = llvm.parse_assembly("\n".join([text, *wrappers, *sorted(declares)]))
    module.verify()
    machine = target.machine(level, jit=False)
    optimise(module, machine, level)
    assert undefined_symbols(machine.emit_object(module)) == []


def test_closure_is_a_function_of_the_set() -> None:
    requests = [("lgamma", "f32", 8), ("sin", "f64", 8), ("powi", "f64", 1), ("sin", "f64", 8)]
    text, declares = vecmath.closure(requests)
    assert (text, declares) == vecmath.closure(reversed(requests))
    for called in ("@nn.sin.f64.8(", "@nn.log.f64.8(", "@nn.pow.f64.1("):
        assert (
            text.count(
                f"define internal {'<8 x double>' if '8' in called[-3:] else 'double'} " + called
            )
            == 1
        )
    assert vecmath.define("sin", "f64", 8) in text
    assert all(line.startswith("declare ") for line in declares)


def test_no_fast_math_and_no_library_calls_in_the_text() -> None:
    text, _ = vecmath.closure((fn, dtype, 4) for fn, dtype in ALL)
    for word in (" fast ", " nnan ", " ninf ", " contract ", " reassoc ", " afn ", " arcp "):
        assert word not in text
    called = {line.split("@")[1].split(".")[0] for line in text.splitlines() if " call " in line}
    assert called == {"llvm", "nn"}


@pytest.mark.slow
@pytest.mark.parametrize("fn", ["exp", "tanh"])
def test_every_f32(fn: str) -> None:
    """All 2**32 arguments."""
    run, chunk = kernel(fn, "f32", 16), 1 << 22
    worst = (0.0, 0.0)
    for start in range(0, 1 << 32, chunk):
        x = np.arange(start, start + chunk, dtype=np.uint64).astype(np.uint32).view(np.float32)
        got = run(x)
        expected = REFERENCE[fn](x.astype(np.float64))
        error = ulp_error(got, expected)
        at = int(np.argmax(error))
        worst = max(worst, (float(error[at]), float(x[at])))
        assert (np.signbit(got) == np.signbit(expected))[expected == 0].all()
    print(f"{fn}: at most {worst[0]:.4f} ulp, at {worst[1].hex()}")
    assert worst[0] <= vecmath.ULP[fn, "f32"], worst
