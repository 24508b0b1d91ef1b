"""Code generation for the CPU: expressions, loops and reductions against NumPy, on guard pages."""

from __future__ import annotations

import zlib
from fractions import Fraction
from itertools import pairwise
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest

from nnc.codegen import objects
from nnc.codegen.target import x86
from nnc.diagnostics import Source, Span
from nnc.ir.expr import Op
from nnc.ir.loop import Commit, Contract, Let, Repeat
from nnc.ir.scalar import SCALARS
from nnc.lang.dims import Dim, dim_min
from tests.native import (
    NUMPY,
    IndexFailure,
    axis,
    buffer,
    cast,
    emit,
    host,
    idx,
    kernel,
    load,
    native,
    nest,
    num,
    op,
    pick,
    program,
    reduce,
    run,
    store,
    var,
)

FLOATS = ("f32", "f64", "f16", "bf16")
INTS = ("i8", "u8", "i32", "i64")
N = 37


def rng(*key: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def to_bf16(x: np.ndarray) -> np.ndarray:
    bits = np.asarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16)


def encode(dtype: str, x: Any) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return to_bf16(np.asarray(x)) if dtype == "bf16" else np.asarray(x).astype(NUMPY[dtype])


def decode(dtype: str, x: np.ndarray) -> np.ndarray:
    if dtype == "bf16":
        return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return x.astype(bool) if dtype == "bool" else x


EPS = {"f32": 2.0**-23, "f64": 2.0**-52, "f16": 2.0**-10, "bf16": 2.0**-7}
TINY = {"f32": 2.0**-149, "f64": 5e-324, "f16": 2.0**-24, "bf16": 2.0**-133}


def close(dtype: str, got: np.ndarray, want: np.ndarray, ulp: float) -> None:
    """Within so many units in the last place; NaN and infinities must agree."""
    got, want = decode(dtype, got).astype(np.float64), np.asarray(want, np.float64)
    want = decode(dtype, encode(dtype, want)).astype(np.float64) if ulp == 0 else want
    rounded = decode(dtype, encode(dtype, want)).astype(np.float64)
    with np.errstate(all="ignore"):
        unit = np.maximum(np.abs(want) * EPS[dtype], TINY[dtype])
        good = (got == rounded) | (np.isnan(got) & np.isnan(rounded))
        good |= np.abs(got - want) <= (ulp + 0.51) * unit
    bad = ~good
    assert not bad.any(), (got[bad][:5], want[bad][:5])


# ---- scalar functions ---------------------------------------------------------------------------

SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 1.5, np.inf, -np.inf, np.nan, 3.0, 100.0, -100.0]


def float_operands(fn: str, dtype: str, count: int) -> list[np.ndarray]:
    r = rng(fn, dtype)
    plain = r.normal(0, 3, (count, N))
    plain[:, : len(SPECIAL)] = [r.permutation(SPECIAL) for _ in range(count)]
    if fn in ("asin", "acos"):
        plain[0] = np.clip(r.uniform(-1, 1, N), -1, 1)
    if fn == "digamma":
        plain[0] = np.abs(plain[0]) + 2.0
    if fn in ("lgamma",):
        plain[0] = np.abs(plain[0]) + 2.5
    if fn in ("sin", "cos", "tan", "pow", "atan2"):
        plain = np.where(np.isfinite(plain), plain, 1.25)
    if fn == "pow":
        plain[0] = np.abs(plain[0]) + 0.1
    return [decode(dtype, encode(dtype, x)).astype(np.float64) for x in plain]


def exact_fma(a: float, b: float, c: float) -> float:
    if not np.isfinite([a, b, c]).all():
        return a * b + c
    exact = float(Fraction(a) * Fraction(b) + Fraction(c))
    return exact if exact else a * b + c


def reference(fn: str, args: list[np.ndarray]) -> np.ndarray:
    with np.errstate(all="ignore"):
        if fn == "fma":
            return np.vectorize(exact_fma, otypes=[np.float64])(*args)
        return np.asarray(SCALARS[fn].numpy(*args))


FLOAT_FUNCTIONS = [
    s for s in SCALARS.values() if s.rule in ("float", "number", "compare") and s.name != "isfinite"
]


def elementwise(fns: list[tuple[str, list[Any], Any]], position: str) -> Any:
    """A program with one kernel for each function: (name, argument buffers, result buffer)."""
    args, steps = [], []
    for name, ins, out in fns:
        args += [*ins, out]
        value = op(name, *(load(b, "$i") for b in ins))
        kind = [(axis("i", "N"), "vector" if position == "vector" else "serial")]
        steps.append(kernel(nest(kind, store(out, ("$i",), value))))
    return program(args, *steps, dims=("N",))


@pytest.mark.parametrize("position", ["vector", "scalar"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_float_functions(dtype: str, position: str) -> None:
    fns, arrays, checks = [], [], []
    for s in FLOAT_FUNCTIONS:
        slot = len(arrays)
        operands = float_operands(s.name, dtype, s.arity)
        ins = [buffer(f"{s.name}{i}", dtype, "N", slot=slot + i) for i in range(s.arity)]
        kind = "bool" if s.rule == "compare" else dtype
        fns.append((s.name, ins, buffer(s.name, kind, "N", slot=slot + s.arity)))
        arrays += [encode(dtype, x) for x in operands]
        arrays.append(np.zeros(N, NUMPY[kind]))
        checks.append((s, kind, operands, slot + s.arity))
    outs = run(elementwise(fns, position), arrays, {"N": N})
    for s, kind, operands, slot in checks:
        want = reference(s.name, operands)
        if kind == "bool":
            assert np.array_equal(outs[slot].astype(bool), want), s.name
            continue
        ulp = max(s.ulp, 4.0) if dtype == "f64" and s.ulp else s.ulp
        if dtype == "f64" and "gamma" in s.name:
            ulp = 500
        if dtype in ("f16", "bf16"):
            ulp = 0.5
        try:
            close(dtype, outs[slot], want, ulp)
        except AssertionError as e:
            raise AssertionError(f"{s.name} {dtype}: {e}") from e


INT_FUNCTIONS = [s for s in SCALARS.values() if s.rule in ("number", "compare", "integer")]


def int_reference(fn: str, dtype: str, args: list[np.ndarray]) -> np.ndarray:
    info = np.iinfo(NUMPY[dtype])
    if fn in ("floordiv", "mod"):
        safe = np.where(args[1] == 0, 1, args[1]).astype(object)
        out = getattr(args[0].astype(object), "__floordiv__" if fn == "floordiv" else "__mod__")(
            safe
        )
        out = np.where(args[1] == 0, 0, out)
    elif fn in ("shl", "shr"):
        count = np.where((args[1] < 0) | (args[1] >= info.bits), info.bits, args[1]).astype(object)
        out = (
            args[0].astype(object) * 2**count if fn == "shl" else args[0].astype(object) // 2**count
        )
    else:
        with np.errstate(all="ignore"):
            return np.asarray(SCALARS[fn].numpy(*args))
    mask = (1 << info.bits) - 1
    wrapped = np.array([int(v) & mask for v in out], dtype=object)
    signed = [v - (1 << info.bits) if info.min < 0 and v >> (info.bits - 1) else v for v in wrapped]
    return np.array(signed).astype(NUMPY[dtype])


@pytest.mark.parametrize("position", ["vector", "scalar"])
@pytest.mark.parametrize("dtype", INTS)
def test_int_functions(dtype: str, position: str) -> None:
    fns, arrays, checks = [], [], []
    info = np.iinfo(NUMPY[dtype])
    for s in INT_FUNCTIONS:
        r = rng(s.name, dtype)
        slot = len(arrays)
        operands = [
            r.integers(info.min, info.max, N, NUMPY[dtype], endpoint=True) for _ in range(s.arity)
        ]
        for x in operands[1:]:
            x[:10] = np.array([0, 1, 2, 3, 7, 5, 8, 31, 4, 9])
            x[10] = -1 if info.min < 0 else 255
        operands[0][10:13] = [info.min, info.max, 0]
        ins = [buffer(f"{s.name}{i}", dtype, "N", slot=slot + i) for i in range(s.arity)]
        kind = "bool" if s.rule == "compare" else dtype
        fns.append((s.name, ins, buffer(s.name, kind, "N", slot=slot + s.arity)))
        arrays += [*operands, np.zeros(N, NUMPY[kind])]
        checks.append((s.name, operands, slot + s.arity))
    outs = run(elementwise(fns, position), arrays, {"N": N})
    for name, operands, slot in checks:
        want = int_reference(name, dtype, operands)
        assert np.array_equal(outs[slot], want.astype(outs[slot].dtype)), name


@pytest.mark.parametrize("position", ["vector", "scalar"])
def test_logic_and_isfinite(position: str) -> None:
    a, b, x = (
        buffer("a", "bool", "N", slot=0),
        buffer("b", "bool", "N", slot=1),
        buffer("x", "f32", "N", slot=2),
    )
    outs = [buffer(f"o{i}", "bool", "N", slot=3 + i) for i in range(5)]
    la, lb = load(a, "$i"), load(b, "$i")
    values = [
        op("and", la, lb),
        op("or", la, lb),
        op("not", la),
        op("isfinite", load(x, "$i")),
        op("eq", la, lb),
    ]
    body = [store(o, ("$i",), v) for o, v in zip(outs, values, strict=True)]
    kind = "vector" if position == "vector" else "serial"
    p = program([a, b, x, *outs], kernel(nest([(axis("i", "N"), kind)], *body)), dims=("N",))
    r = rng(1)
    av, bv = r.integers(0, 2, N).astype(np.uint8), r.integers(0, 2, N).astype(np.uint8)
    xv = np.resize(np.float32([1, np.nan, np.inf, -np.inf, 0]), N)
    got = run(p, [av, bv, xv, *[np.zeros(N, np.uint8)] * 5], {"N": N})[3:]
    want = [av & bv, av | bv, 1 - av, np.isfinite(xv), av == bv]
    for g, w in zip(got, want, strict=True):
        assert np.array_equal(g, w.astype(np.uint8))


@pytest.mark.parametrize("position", ["vector", "scalar"])
@pytest.mark.parametrize("source", [*FLOATS, *INTS, "bool"])
def test_casts(source: str, position: str) -> None:
    r = rng(source)
    if source in FLOATS:
        x = encode(
            source,
            np.resize(
                [
                    0.0,
                    -0.0,
                    1.5,
                    -1.5,
                    2.5,
                    300,
                    -300,
                    1e5,
                    7e4,
                    3e9,
                    1e20,
                    -1e20,
                    np.inf,
                    -np.inf,
                    np.nan,
                    127.9,
                    0.3,
                ],
                N,
            ),
        )
    elif source == "bool":
        x = r.integers(0, 2, N).astype(np.uint8)
    else:
        info = np.iinfo(NUMPY[source])
        x = r.integers(info.min, info.max, N, NUMPY[source], endpoint=True)
        x[:3] = [0, info.max, info.min]
    targets = [*FLOATS, *INTS, "bool"]
    b = buffer("x", source, "N", slot=0)
    outs = [buffer(f"to_{t}", t, "N", slot=1 + i) for i, t in enumerate(targets)]
    body = [store(o, ("$i",), cast(load(b, "$i"), o.type.dtype)) for o in outs]
    kind = "vector" if position == "vector" else "serial"
    p = program([b, *outs], kernel(nest([(axis("i", "N"), kind)], *body)), dims=("N",))
    got = run(p, [x, *(np.zeros(N, NUMPY[t]) for t in targets)], {"N": N})[1:]
    value = decode(source, x)
    for t, g in zip(targets, got, strict=True):
        want = cast_reference(source, t, value)
        if t in FLOATS:
            # f64 and i64 go to 16 bits through f32, which may round twice.
            twice = t in ("f16", "bf16") and source in ("f64", "i64", "i32")
            mid = want.astype(np.float32).astype(np.float64) if twice else want
            with np.errstate(over="ignore"):
                expected = decode(t, encode(t, mid)).astype(np.float64)
            assert np.array_equal(decode(t, g).astype(np.float64), expected, equal_nan=True), t
        else:
            assert np.array_equal(g, want.astype(g.dtype)), (t, value, g, want)


def cast_reference(source: str, to: str, x: np.ndarray) -> np.ndarray:
    if to in FLOATS:
        return x.astype(np.float64)
    if to == "bool":
        return x != 0
    info = np.iinfo(NUMPY[to])
    if source in FLOATS:
        clean = np.where(np.isnan(x), 0, x).astype(np.float64)
        exact = [
            info.max if v >= info.max else info.min if v <= info.min else int(v) for v in clean
        ]
        return np.array(exact, dtype=object).astype(NUMPY[to])
    with np.errstate(over="ignore"):
        return x.astype(NUMPY[to])


def test_powi() -> None:
    powers = [0, 1, 2, 3, 4, 5, 9, -1, -2, -7]
    x, n = buffer("x", "f32", "N", slot=0), buffer("n", "i32", "N", slot=1)
    y, k = buffer("y", "f64", "N", slot=2), buffer("k", "i64", "N", slot=3)
    outs = [buffer(f"p{i}", "f32", "N", slot=4 + i) for i in range(len(powers) + 1)]
    outs += [
        buffer("q", "f64", "N", slot=len(outs) + 4),
        buffer("r", "i64", "N", slot=len(outs) + 5),
    ]
    body = [
        store(o, ("$i",), Op("f32", "powi", (load(x, "$i"), num(p, "i32"))))
        for o, p in zip(outs, powers, strict=False)
    ]
    body.append(store(outs[-3], ("$i",), Op("f32", "powi", (load(x, "$i"), load(n, "$i")))))
    body.append(store(outs[-2], ("$i",), Op("f64", "powi", (load(y, "$i"), load(n, "$i")))))
    body.append(store(outs[-1], ("$i",), Op("i64", "powi", (load(k, "$i"), load(n, "$i")))))
    p = program([x, n, y, k, *outs], kernel(nest([(axis("i", "N"), "vector")], *body)), dims=("N",))
    r = rng("powi")
    xv, nv = r.normal(0, 2, N).astype(np.float32), r.integers(-9, 10, N).astype(np.int32)
    yv, kv = r.normal(0, 2, N), r.integers(-5, 6, N)
    zeros = [np.zeros(N, NUMPY[o.type.dtype]) for o in outs]
    got = run(p, [xv, nv, yv, kv, *zeros], {"N": N})[4:]
    for g, e in zip(got, powers, strict=False):
        close("f32", g, xv.astype(np.float64) ** e, 4)
    close("f32", got[-3], xv.astype(np.float64) ** nv, 4)
    close("f64", got[-2], yv ** nv.astype(np.float64), 8)
    assert np.array_equal(got[-1], kv ** np.maximum(nv, 0))


@pytest.mark.parametrize("position", ["vector", "scalar"])
def test_random(position: str) -> None:
    size = 1000
    u, g = buffer("u", "f32", "N", slot=0), buffer("g", "f32", "N", slot=1)
    d = buffer("d", "f64", "N", slot=2)
    args = (num(-7, "i64"), idx("S"), num(3, "i64"), idx("$i"))
    values = [
        Op("f32", "random_uniform", args),
        Op("f32", "random_normal", args),
        Op("f64", "random_normal", args),
    ]
    body = [store(o, ("$i",), v) for o, v in zip((u, g, d), values, strict=True)]
    kind = "vector" if position == "vector" else "serial"
    p = program([u, g, d], kernel(nest([(axis("i", "N"), kind)], *body)), dims=("N", "S"))
    zeros = [np.zeros(size, np.float32), np.zeros(size, np.float32), np.zeros(size)]
    stream = 2**40 + 12345
    uv, gv, dv = run(p, zeros, {"N": size, "S": stream})
    want = [-7, stream, 3, np.arange(size)]
    assert np.array_equal(uv, SCALARS["random_uniform"].numpy(*want).astype(np.float32))
    normal = SCALARS["random_normal"].numpy(*want)
    close("f32", gv, normal, 16)
    assert np.allclose(dv, normal, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("size", [53, 2**17 + 53, 2**20 + 53])
def test_random_numbers_together(size: int) -> None:
    """One register at a time, two or four: the same numbers, from any place on."""
    begin = 2**32 - 2**19
    u, g = buffer("u", "f32", size, slot=0), buffer("g", "f32", size, slot=1)
    args = (
        num(5, "i64"),
        num(9, "i64"),
        num(2**33, "i64"),
        op("add", idx("$i"), num(begin, "i64")),
    )
    values = Op("f32", "random_uniform", args), Op("f32", "random_normal", args)
    stores = [store(b, ("$i",), v) for b, v in zip((u, g), values, strict=True)]
    kernels = [kernel(nest([(axis("i", size), "vector")], s)) for s in stores]
    uv, gv = run(
        program([u, g], *kernels), [np.zeros(size, np.float32), np.zeros(size, np.float32)]
    )
    want = [5, 9, 2**33, np.arange(begin, begin + size)]
    assert np.array_equal(uv, SCALARS["random_uniform"].numpy(*want).astype(np.float32))
    close("f32", gv, SCALARS["random_normal"].numpy(*want), 8)


# ---- loops, loads, stores -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f32", "f64", "bf16", "u8", "bool"])
def test_vector_tails(dtype: str) -> None:
    x, y = buffer("x", dtype, "N", slot=0), buffer("y", dtype, "N", slot=1)
    value = op("not", load(x, "$i")) if dtype == "bool" else op("add", load(x, "$i"), load(x, "$i"))
    p = native(
        program(
            [x, y],
            kernel(nest([(axis("i", "N"), "vector")], store(y, ("$i",), value))),
            dims=("N",),
        )
    )
    for n in (*range(1, 34), 64, 65):
        for side in ("start", "end"):
            v = encode(dtype, rng(n).integers(0, 2 if dtype == "bool" else 50, n))
            got = p.run([v, np.zeros(n, v.dtype)], {"N": n}, side=side)[1]
            want = 1 - v if dtype == "bool" else encode(dtype, 2 * decode(dtype, v))
            assert np.array_equal(got, want), n


def test_constant_vector_extents() -> None:
    for n in (1, 2, 3, 8, 15, 16, 17, 32, 33):
        x, y = buffer("x", "f32", n, slot=0), buffer("y", "f32", n, slot=1)
        body = store(y, ("$i",), op("mul", load(x, "$i"), num(3.0)))
        v = rng(n).normal(size=n).astype(np.float32)
        got = run(
            program([x, y], kernel(nest([(axis("i", n), "vector")], body))), [v, np.zeros_like(v)]
        )
        assert np.array_equal(got[1], v * 3)


def test_layouts_and_broadcast() -> None:
    """Transposed, strided, reversed and broadcast loads; a strided store."""
    x, r = buffer("x", "f32", "N", "M", slot=0), buffer("r", "f32", "M", slot=1)
    outs = [buffer(f"o{i}", "f32", "M", "N", slot=2 + i) for i in range(3)]
    wide = buffer("w", "f32", "M", Dim.of("N") * 2, slot=5)
    i, j = axis("i", "M"), axis("j", "N")
    body = [
        store(outs[0], ("$i", "$j"), load(x, "$j", "$i")),
        store(
            outs[1],
            ("$i", "$j"),
            op("add", load(x, Dim.of("N") - 1 - Dim.of("$j"), "$i"), load(r, "$i")),
        ),
        store(
            outs[2], ("$i", "$j"), cast(idx(Dim.of("$j") * 3 + Dim.of("$i") * Dim.of("M")), "f32")
        ),
        store(wide, ("$i", Dim.of("$j") * 2), load(x, "$j", "$i")),
    ]
    p = program(
        [x, r, *outs, wide], kernel(nest([(i, "parallel"), (j, "vector")], *body)), dims=("N", "M")
    )
    n, m = 21, 5
    xv, rv = rng(0).normal(size=(n, m)).astype(np.float32), rng(1).normal(size=m).astype(np.float32)
    zeros = [np.zeros((m, n), np.float32)] * 3 + [np.zeros((m, 2 * n), np.float32)]
    got = run(p, [xv, rv, *zeros], {"N": n, "M": m})[2:]
    assert np.array_equal(got[0], xv.T)
    assert np.array_equal(got[1], xv.T[:, ::-1] + rv[:, None])
    assert np.array_equal(got[2], (np.arange(n) * 3 + np.arange(m)[:, None] * m).astype(np.float32))
    assert np.array_equal(got[3][:, ::2], xv.T) and not got[3][:, 1::2].any()


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 3, 4), (1, 7, 2), (5, 1, 1), (3, 2, 5)])
def test_parallel_nest(sizes: tuple[int, int, int]) -> None:
    dims = ("A", "B", "C")
    y = buffer("y", "i64", *dims, 3, slot=0)
    loops = [(axis(d.lower(), d), "parallel") for d in dims]
    value = idx(Dim.of("$a") * 10000 + Dim.of("$b") * 100 + Dim.of("$c"))
    body = nest(
        [(axis("v", 3), "unroll")], store(y, ("$a", "$b", "$c", "$v"), op("add", value, idx("$v")))
    )
    p = program([y], kernel(nest(loops, body)), dims=dims)
    got = run(p, [np.zeros((*sizes, 3), np.int64)], dict(zip(dims, sizes, strict=True)))[0]
    a, b, c, v = np.indices((*sizes, 3))
    assert np.array_equal(got, a * 10000 + b * 100 + c + v)


def test_split_loop_and_triangle() -> None:
    """The inner part of a loop cut into pieces, and an extent that depends on an outer index."""
    x, y = buffer("x", "f32", "N", slot=0), buffer("y", "f32", "N", slot=1)
    t = buffer("t", "f32", "T", "T", slot=2)
    o, i = (
        axis("o", (Dim.of("N") + 9) // 10),
        axis("i", dim_min(Dim.of(10), Dim.of("N") - Dim.of("$o") * 10)),
    )
    at_i = Dim.of("$o") * 10 + Dim.of("$i")
    r, c = axis("r", "T"), axis("c", Dim.of("$r") + 1)
    p = program(
        [x, y, t],
        kernel(nest([(o, "parallel"), (i, "vector")], store(y, (at_i,), op("neg", load(x, at_i))))),
        kernel(nest([(r, "parallel"), (c, "vector")], store(t, ("$r", "$c"), num(1.0)))),
        dims=("N", "T"),
    )
    for n, m in ((1, 1), (10, 5), (37, 20)):
        v = rng(n).normal(size=n).astype(np.float32)
        got = run(p, [v, np.zeros_like(v), np.zeros((m, m), np.float32)], {"N": n, "T": m})
        assert np.array_equal(got[1], -v)
        assert np.array_equal(got[2], np.tril(np.ones((m, m))))


SPAN = Span(Source("model.nn", "y = x[i]\n"), 1, 5, 1, 9)


@pytest.mark.parametrize("kind", ["vector", "serial"])
@pytest.mark.parametrize("dtype", ["f32", "f64", "u8", "i64", "f16"])
def test_gather_checked(dtype: str, kind: str) -> None:
    x, i = buffer("x", dtype, "V", 3, slot=0), buffer("i", "i32", "N", slot=1)
    y = buffer("y", dtype, "N", slot=2)
    value = load(x, load(i, "$n"), 1, check=SPAN)
    p = program(
        [x, i, y], kernel(nest([(axis("n", "N"), kind)], store(y, ("$n",), value))), dims=("V", "N")
    )
    v, n = 11, 21
    xv = encode(dtype, rng(0).integers(0, 100, (v, 3)))
    iv = rng(1).integers(0, v, n).astype(np.int32)
    sizes = {"V": v, "N": n}
    assert np.array_equal(run(p, [xv, iv, np.zeros(n, xv.dtype)], sizes)[2], xv[iv, 1])
    for bad in (-1, v, 2**31 - 1, -(2**31)):
        wrong = iv.copy()
        wrong[13] = bad
        with pytest.raises(IndexFailure) as e:
            native(p).run([xv, wrong, np.zeros(n, xv.dtype)], sizes, threads=2)
        assert (e.value.span, e.value.value, e.value.extent) == (SPAN, bad, v)


@pytest.mark.parametrize("kind", ["vector", "serial"])
def test_guarded_window(kind: str) -> None:
    """`x[i + k - 2] else -1`, with an `else` that itself is a load."""
    x, f, y = (buffer(n, "f32", "N", slot=s) for s, n in enumerate(("x", "f", "y")))
    shifted = [load(x, Dim.of("$i") + k, other=num(-1.0)) for k in (-2, 3)]
    deep = load(x, Dim.of("$i") * 2, other=load(f, "$i"))
    value = op(
        "add", op("add", shifted[0], op("mul", shifted[1], num(10.0))), op("mul", deep, num(100.0))
    )
    p = program(
        [x, f, y], kernel(nest([(axis("i", "N"), kind)], store(y, ("$i",), value))), dims=("N",)
    )
    for n in (1, 2, 5, 16, 40):
        xv, fv = (
            rng(n).integers(0, 9, n).astype(np.float32),
            rng(n, 1).integers(0, 9, n).astype(np.float32),
        )
        got = run(p, [xv, fv, np.zeros_like(xv)], {"N": n})[2]
        pad = lambda j: xv[j] if 0 <= j < n else -1  # noqa: B023, E731
        want = [
            pad(j - 2) + 10 * pad(j + 3) + 100 * (xv[2 * j] if 2 * j < n else fv[j])
            for j in range(n)
        ]
        assert np.array_equal(got, np.float32(want))


@pytest.mark.parametrize("kind", ["vector", "serial"])
def test_lazy_select(kind: str) -> None:
    """The untaken arm is out of range, its index check fails, it holds NaN: nothing happens."""
    x, i, y = (
        buffer("x", "f32", "V", slot=0),
        buffer("i", "i64", "N", slot=1),
        buffer("y", "f32", "N", slot=2),
    )
    flag = buffer("flag", "bool", slot=3)
    cond = op("lt", idx("$n"), idx("V"))
    inside = pick(cond, load(x, "$n"), num(0.0))
    ok = op("lt", load(i, "$n"), num(100, "i64"))
    checked = pick(ok, load(x, load(i, "$n"), check=SPAN), num(7.0))
    uniform = pick(load(flag), load(x, Dim.of("V") + 10**6), num(3.0))
    logs = pick(op("gt", inside, num(0.0)), op("log", inside), num(-1.0))
    value = op("add", op("add", inside, checked), op("add", uniform, logs))
    p = program(
        [x, i, y, flag],
        kernel(nest([(axis("n", "N"), kind)], store(y, ("$n",), value))),
        dims=("V", "N"),
    )
    for v, n in ((1, 1), (3, 20), (17, 40)):
        xv = rng(n).normal(size=v).astype(np.float32)
        iv = np.where(rng(n, 2).integers(0, 2, n), rng(n, 3).integers(0, v, n), 10**9)
        got = run(p, [xv, iv, np.zeros(n, np.float32), np.zeros((), np.uint8)], {"V": v, "N": n})[2]
        a = np.array([xv[j] if j < v else 0 for j in range(n)], np.float32)
        b = np.array([xv[j] if j < 100 else 7 for j in iv], np.float32)
        with np.errstate(all="ignore"):
            c = np.where(a > 0, np.log(a), -1)
        assert np.allclose(got, a + b + 3 + c, rtol=1e-6, atol=1e-6)


def test_scatter_add_and_guard() -> None:
    """`y[i[t], d] += x[t, d]` in order of t; rows that the guard excludes are left."""
    x, i = buffer("x", "f32", "T", "D", slot=0), buffer("i", "i32", "T", slot=1)
    y, z = buffer("y", "f32", "V", "D", slot=2), buffer("z", "f32", "V", slot=3)
    row = load(i, "$t")
    p = program(
        [x, i, y, z],
        kernel(
            nest(
                [(axis("t", "T"), "serial"), (axis("d", "D"), "vector")],
                store(
                    y,
                    (row, "$d"),
                    load(x, "$t", "$d"),
                    accumulate="add",
                    check=SPAN,
                    guard=op("ne", row, num(2, "i32")),
                ),
            )
        ),
        kernel(
            nest(
                [(axis("t", "T"), "vector")],
                store(z, (row,), load(x, "$t", 0), accumulate="add", check=SPAN),
            )
        ),
        dims=("T", "D", "V"),
    )
    t, d, v = 50, 19, 4
    xv, iv = (
        rng(0).normal(size=(t, d)).astype(np.float32),
        rng(1).integers(0, v, t).astype(np.int32),
    )
    zeros = [np.zeros((v, d), np.float32), np.zeros(v, np.float32)]
    sizes = {"T": t, "D": d, "V": v}
    got = run(p, [xv, iv, *zeros], sizes)
    want, first = np.zeros((v, d), np.float32), np.zeros(v, np.float32)
    for k in range(t):
        first[iv[k]] += xv[k, 0]
        if iv[k] != 2:
            want[iv[k]] += xv[k]
    assert np.array_equal(got[2], want) and np.array_equal(got[3], first)
    iv[7] = 4
    with pytest.raises(IndexFailure):
        native(p).run([xv, iv, *zeros], sizes)


def test_hoisting_does_not_cross_stores() -> None:
    """A load of a buffer that the loop itself changes."""
    x = buffer("x", "f32", "N", slot=0)
    body = store(x, (Dim.of("$i") + 1,), op("add", load(x, "$i"), load(x, 0)))
    twice = store(x, (0,), op("mul", load(x, 0), num(0.5)))
    p = program(
        [x], kernel(nest([(axis("i", Dim.of("N") - 1), "serial")], body, twice)), dims=("N",)
    )
    v = np.arange(1, 20, dtype=np.float32)
    want = v.copy()
    for i in range(len(v) - 1):
        want[i + 1] = want[i] + want[0]
        want[0] *= np.float32(0.5)
    assert np.array_equal(run(p, [v], {"N": len(v)})[0], want)


def test_flattened_axis_lanes() -> None:
    """i // W and i % W along the lanes, W below and above the lanes, constant or not."""
    y, z = buffer("y", "i64", "N", slot=0), buffer("z", "i64", "N", slot=1)
    i = Dim.of("$i")
    terms = [(i // 3) * 1000 + i % 3, (i // 20) * 1000 + i % 20]
    dynamic = ((i + 2) // Dim.of("W")) * 1000 + (i + 2) % Dim.of("W")
    body = [
        store(y, ("$i",), op("add", idx(terms[0]), op("mul", idx(terms[1]), num(10**6, "i64")))),
        store(z, ("$i",), idx(dynamic)),
    ]
    p = program([y, z], kernel(nest([(axis("i", "N"), "vector")], *body)), dims=("N", "W"))
    for w in (1, 2, 5, 7, 8, 9, 31):
        n = np.arange(40)
        got = run(p, [np.zeros(40, np.int64)] * 2, {"N": 40, "W": w})
        assert np.array_equal(got[0], n // 3 * 1000 + n % 3 + 10**6 * (n // 20 * 1000 + n % 20))
        assert np.array_equal(got[1], (n + 2) // w * 1000 + (n + 2) % w)


# ---- reductions ---------------------------------------------------------------------------------


def serial(fn: str, x: np.ndarray, ax: Any) -> np.ndarray:
    table: dict[str, Any] = {"sum": np.sum, "prod": np.prod, "max": np.max, "min": np.min}
    table |= {"any": np.any, "all": np.all, "argmax": np.argmax, "argmin": np.argmin}
    return np.asarray(table[fn](x, axis=ax))


REDUCTIONS = ("sum", "prod", "max", "min", "argmax", "argmin")


@pytest.mark.parametrize("dtype", ["f32", "f64", "f16", "bf16", "i8", "u8", "i32", "i64"])
def test_reductions(dtype: str) -> None:
    """Over the inner axis by lanes, over the outer axis in the lanes, and serially."""
    x = buffer("x", dtype, "R", "C", slot=0)
    outs, steps = [], []
    r, c = axis("r", "R"), axis("c", "C")
    for fn in REDUCTIONS:
        kind = "i32" if fn.startswith("arg") else dtype
        by_row = [buffer(f"{fn}{v}", kind, "R", slot=1 + len(outs) + v) for v in (0, 1)]
        outs += by_row
        by_col = buffer(f"{fn}c", kind, "C", slot=1 + len(outs))
        outs.append(by_col)
        value = load(x, "$r", "$c")
        for out, vector in zip(by_row, (c, None), strict=True):
            steps.append(
                kernel(
                    nest(
                        [(r, "parallel")],
                        reduce("s", fn, [c], value, vector),
                        store(out, ("$r",), var("s", kind)),
                    )
                )
            )
        steps.append(
            kernel(
                nest(
                    [(c, "vector")],
                    reduce("s", fn, [r], value),
                    store(by_col, ("$c",), var("s", kind)),
                )
            )
        )
    p = native(program([x, *outs], *steps, dims=("R", "C")))
    for rows, cols in ((1, 1), (3, 5), (2, 16), (4, 37), (2, 64), (3, 200)):
        if dtype in FLOATS:
            raw = rng(rows, cols, dtype).normal(1, 0.2, (rows, cols))
        else:
            raw = rng(rows, cols, dtype).integers(-3 if dtype[0] == "i" else 0, 4, (rows, cols))
        xv = encode(dtype, raw)
        zeros = [
            np.zeros(rows if o.type.shape[0] == Dim.of("R") else cols, NUMPY[o.type.dtype])
            for o in outs
        ]
        got = [p.run([xv, *zeros], {"R": rows, "C": cols}, threads=t)[1:] for t in (1, 2)]
        assert all(a.tobytes() == b.tobytes() for a, b in zip(*got, strict=True))
        exact = decode(dtype, xv)
        for k, o in enumerate(outs):
            fn, ax = REDUCTIONS[k // 3], 0 if k % 3 == 2 else 1
            if o.type.dtype != dtype or fn in ("max", "min"):
                assert np.array_equal(decode(o.type.dtype, got[0][k]), serial(fn, exact, ax)), (
                    fn,
                    k,
                )
            elif dtype in FLOATS:
                want = serial(fn, exact.astype(np.float64), ax)
                assert np.allclose(
                    decode(dtype, got[0][k]).astype(np.float64), want, rtol=EPS[dtype] * 40, atol=0
                ), fn
            else:
                with np.errstate(over="ignore"):
                    want = serial(fn, exact.astype(np.int64), ax).astype(NUMPY[dtype])
                assert np.array_equal(got[0][k], want), fn


def test_reduction_order() -> None:
    """The documented order, bit for bit: four accumulators of 16 lanes and a tree."""
    x = buffer("x", "f32", "R", "N", slot=0)
    s, e, f = (buffer(n, "f32", slot=1 + k) for k, n in enumerate("sef"))
    r, n = axis("r", "R"), axis("n", "N")
    value = load(x, "$r", "$n")
    dear = op("sub", op("add", value, op("exp", value)), op("exp", value))
    fixed = buffer("fixed", "f32", 50, slot=4)
    p = native(
        program(
            [x, s, e, f, fixed],
            kernel(reduce("a", "sum", [r, n], value, n), store(s, (), var("a"))),
            kernel(reduce("a", "sum", [r, n], dear, n), store(e, (), var("a"))),
            kernel(
                reduce("a", "sum", [axis("k", 50)], load(fixed, "$k"), axis("k", 50)),
                store(f, (), var("a")),
            ),
            dims=("R", "N"),
        )
    )

    def order(rows: np.ndarray) -> np.float32:
        acc = np.zeros((4, 16), np.float32)
        for row in rows:
            for k in range(len(row)):
                acc[k // 16 % 4, k % 16] += row[k]
        v = (acc[0] + acc[2]) + (acc[1] + acc[3])
        while len(v) > 1:
            v = v[: len(v) // 2] + v[len(v) // 2 :]
        return v[0]

    fv = rng("f").normal(size=50).astype(np.float32)
    for shape in ((1, 1), (1, 20), (1, 64), (3, 77), (2, 1000)):
        xv = rng(shape).normal(size=shape).astype(np.float32)
        zero = np.zeros((), np.float32)
        got = p.run([xv, zero, zero, zero, fv], {"R": shape[0], "N": shape[1]})
        assert got[1] == order(xv)
        assert got[3] == order(fv[None])
        with np.errstate(all="ignore"):
            assert np.isclose(got[2], xv.sum(dtype=np.float64), rtol=1e-3, atol=1e-3)


def test_nan_in_reductions() -> None:
    x = buffer("x", "f32", "N", slot=0)
    names = ("max", "min", "argmax", "argmin")
    outs = [
        buffer(f"{n}{v}", "i32" if n[0] == "a" else "f32", slot=1 + 2 * k + v)
        for k, n in enumerate(names)
        for v in (0, 1)
    ]
    n = axis("n", "N")
    steps = [
        kernel(
            reduce("s", o.name[:-1], [n], load(x, "$n"), n if o.name[-1] == "0" else None),
            store(o, (), var("s", o.type.dtype)),
        )
        for o in outs
    ]
    p = native(program([x, *outs], *steps, dims=("N",)))
    zeros = [np.zeros((), NUMPY[o.type.dtype]) for o in outs]
    cases = [
        [np.nan],
        [1, np.nan, 3, np.nan],
        [-np.inf] * 20,
        [np.inf] * 3,
        [1] * 70 + [np.nan] + [2] * 40 + [np.nan],
        [2, 2, 1, 1] * 30,
    ]
    for case in cases:
        xv = np.float32(case)
        got = p.run([xv, *zeros], {"N": len(case)})[1:]
        for o, g in zip(outs, got, strict=True):
            assert np.array_equal(g, serial(o.name[:-1], xv, 0), equal_nan=True), (o.name, case)


def test_any_all() -> None:
    x = buffer("x", "bool", "R", "N", slot=0)
    outs = [
        buffer(n + v, "bool", "R", slot=1 + k)
        for k, (n, v) in enumerate((n, v) for n in ("any", "all") for v in "01")
    ]
    r, n = axis("r", "R"), axis("n", "N")
    steps = [
        kernel(
            nest(
                [(r, "parallel")],
                reduce("s", o.name[:3], [n], load(x, "$r", "$n"), n if o.name[3] == "1" else None),
                store(o, ("$r",), var("s", "bool")),
            )
        )
        for o in outs
    ]
    p = program([x, *outs], *steps, dims=("R", "N"))
    for n_ in (1, 30, 100):
        xv = rng(n_).integers(0, 2, (6, n_)).astype(np.uint8)
        xv[0], xv[1] = 0, 1
        got = run(p, [xv, *[np.zeros(6, np.uint8)] * 4], {"R": 6, "N": n_})[1:]
        for o, g in zip(outs, got, strict=True):
            assert np.array_equal(g.astype(bool), serial(o.name[:3], xv, 1))


# ---- contractions --------------------------------------------------------------------------------


def contraction_error(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A bound for the error of a f32 sum of products a[m, k] b[k, n] in any order."""
    k = a.shape[-1]
    return (k + 2) * 2.0**-24 * (
        np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64)
    ) + 1e-30


@pytest.mark.parametrize("layout", ["nn", "nt", "tn", "tt"])
def test_contraction_layouts(layout: str) -> None:
    """Both operands in both layouts, an epilogue with a bias, batches shared by both."""
    ta, tb = layout[0] == "t", layout[1] == "t"
    x = buffer("x", "f32", "B", *(("K", "M") if ta else ("M", "K")), slot=0)
    w = buffer("w", "f32", *(("N", "K") if tb else ("K", "N")), slot=1)
    bias, y = buffer("bias", "f32", "N", slot=2), buffer("y", "f32", "B", "M", "N", slot=3)
    a = load(x, "$b", *(("$k", "$m") if ta else ("$m", "$k")))
    b = load(w, *(("$n", "$k") if tb else ("$k", "$n")))
    value = op("max", op("add", var("s"), load(bias, "$n")), num(0.0))
    leaf = Contract(
        "s",
        (axis("b", "B"),),
        (axis("m", "M"),),
        (axis("n", "N"),),
        (axis("k", "K"),),
        a,
        b,
        (Let("r", value), store(y, ("$b", "$m", "$n"), var("r"))),
    )
    p = native(program([x, w, bias, y], kernel(leaf), dims=("B", "M", "N", "K")))
    for nb, m, n, k in ((1, 1, 1, 1), (3, 5, 33, 7), (2, 40, 70, 130), (5, 3, 16, 300)):
        r = rng(layout, m)
        xv, wv = (
            r.normal(size=(nb, m, k)).astype(np.float32),
            r.normal(size=(k, n)).astype(np.float32),
        )
        bv = r.normal(size=n).astype(np.float32)
        stored = [xv.swapaxes(1, 2).copy() if ta else xv, wv.T.copy() if tb else wv]
        sizes = {"B": nb, "M": m, "N": n, "K": k}
        zero = np.zeros((nb, m, n), np.float32)
        outs = [p.run([*stored, bv, zero], sizes, threads=t)[3] for t in (1, 2, 3)]
        assert outs[0].tobytes() == outs[1].tobytes() == outs[2].tobytes()
        want = np.maximum(xv.astype(np.float64) @ wv + bv, 0)
        assert (np.abs(outs[0] - want) <= contraction_error(xv, wv) + 1e-6).all()


def test_contraction_groups() -> None:
    """Attention-like: heads split out of merged axes, two axes in each group, gathered rows."""
    x = buffer("x", "f32", "T", 3, 4, slot=0)
    w, i = buffer("w", "f32", 3, 4, "H", 5, slot=1), buffer("i", "i32", "T", slot=2)
    y, z = buffer("y", "f32", "H", "T", 5, slot=3), buffer("z", "f32", "T", "H", 5, slot=4)
    m, n = (axis("t", "T"),), (axis("h", "H"), axis("e", 5))
    k = (axis("p", 3), axis("q", 4))
    b = load(w, "$p", "$q", "$h", "$e")
    plain, gathered = (
        load(x, "$t", "$p", "$q"),
        op("exp", load(x, load(i, "$t"), "$p", "$q", check=SPAN)),
    )
    p = program(
        [x, w, i, y, z],
        kernel(Contract("s", (), m, n, k, plain, b, (store(y, ("$h", "$t", "$e"), var("s")),))),
        kernel(Contract("s", (), m, n, k, gathered, b, (store(z, ("$t", "$h", "$e"), var("s")),))),
        dims=("T", "H"),
    )
    for t, h in ((1, 1), (7, 3), (40, 8)):
        r = rng(t)
        xv, wv = (
            r.normal(size=(t, 3, 4)).astype(np.float32),
            r.normal(size=(3, 4, h, 5)).astype(np.float32),
        )
        iv = r.integers(0, t, t).astype(np.int32)
        zeros = [np.zeros((h, t, 5), np.float32), np.zeros((t, h, 5), np.float32)]
        got = run(p, [xv, wv, iv, *zeros], {"T": t, "H": h})
        want = np.einsum("tpq,pqhe->the", xv.astype(np.float64), wv)
        assert np.allclose(got[3], want.transpose(1, 0, 2), rtol=1e-4, atol=1e-5)
        want = np.einsum("tpq,pqhe->the", np.exp(xv[iv].astype(np.float64)), wv)
        assert np.allclose(got[4], want, rtol=1e-4, atol=1e-4)
    iv[-1] = -3
    with pytest.raises(IndexFailure):
        native(p).run([xv, wv, iv, *zeros], {"T": t, "H": h})


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_tiny_contraction_has_the_bits_of_tiles(dtype: str) -> None:
    """Few rows are done by plain loops, many by tiles: the first rows agree."""
    x, w = buffer("x", dtype, "B", "M", 30, slot=0), buffer("w", dtype, 21, 30, slot=1)
    y = buffer("y", dtype, "B", "M", 21, slot=2)
    leaf = Contract(
        "s",
        (axis("b", "B"),),
        (axis("m", "M"),),
        (axis("n", 21),),
        (axis("k", 30),),
        load(x, "$b", "$m", "$k"),
        load(w, "$n", "$k"),
        (store(y, ("$b", "$m", "$n"), op("tanh", var("s", dtype))),),
    )
    p = program([x, w, y], kernel(leaf), dims=("B", "M"))
    xv, wv = rng(1).normal(size=(2, 50, 30)), rng(2).normal(size=(21, 30))
    xv, wv = xv.astype(NUMPY[dtype]), wv.astype(NUMPY[dtype])
    many = run(p, [xv, wv, np.zeros((2, 50, 21), xv.dtype)], {"B": 2, "M": 50})[2]
    few = run(p, [xv[:, :3], wv, np.zeros((2, 3, 21), xv.dtype)], {"B": 2, "M": 3})[2]
    assert np.array_equal(few, many[:, :3])
    assert np.allclose(many, np.tanh(xv @ wv.T), atol=1e-5)


@pytest.mark.parametrize("layout", ["kn", "nk"])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_one_row_has_the_bits_of_tiles(dtype: str, layout: str) -> None:
    shape = ("K", "N") if layout == "kn" else ("N", "K")
    x, w = buffer("x", dtype, "M", "K", slot=0), buffer("w", dtype, *shape, slot=1)
    y = buffer("y", dtype, "M", "N", slot=2)
    b = load(w, *(("$k", "$n") if layout == "kn" else ("$n", "$k")))
    axes = ((axis("m", "M"),), (axis("n", "N"),), (axis("k", "K"),))
    value = op("add", var("s", dtype), num(1.0, dtype))
    leaf = Contract("s", (), *axes, load(x, "$m", "$k"), b, (store(y, ("$m", "$n"), value),))
    p = program([x, w, y], kernel(leaf), dims=("M", "N", "K"))
    for n, k in ((1, 1), (17, 40), (333, 500), (70, 1203)):
        xv, wv = rng(n).normal(size=(5, k)), rng(k).normal(size=(n, k))
        xv, wv = xv.astype(NUMPY[dtype]), wv.astype(NUMPY[dtype])
        stored = wv.T.copy() if layout == "kn" else wv
        many = run(p, [xv, stored, np.zeros((5, n), xv.dtype)], {"M": 5, "N": n, "K": k})[2]
        one = run(p, [xv[:1], stored, np.zeros((1, n), xv.dtype)], {"M": 1, "N": n, "K": k})[2]
        assert np.array_equal(one, many[:1])


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution(stride: int) -> None:
    """A padded window as the right operand: pixels are columns, filters rows."""
    oh, ow = "H", "W"
    x = buffer("x", "f32", "B", 3, Dim.of(oh) * stride, Dim.of(ow) * stride, slot=0)
    w, y = buffer("w", "f32", "O", 3, 3, 3, slot=1), buffer("y", "f32", "B", "O", oh, ow, slot=2)
    row, col = Dim.of("$h") * stride + Dim.of("$u") - 1, Dim.of("$w") * stride + Dim.of("$v") - 1
    a = load(w, "$o", "$c", "$u", "$v")
    b = load(x, "$b", "$c", row, col, other=num(0.0))
    leaf = Contract(
        "s",
        (axis("b", "B"),),
        (axis("o", "O"),),
        (axis("h", oh), axis("w", ow)),
        (axis("c", 3), axis("u", 3), axis("v", 3)),
        a,
        b,
        (store(y, ("$b", "$o", "$h", "$w"), var("s")),),
    )
    p = program([x, w, y], kernel(leaf), dims=("B", "O", oh, ow))
    for nb, o, h, wd in ((1, 1, 1, 1), (2, 4, 5, 7), (1, 17, 9, 20)):
        r = rng(h)
        xv = r.normal(size=(nb, 3, h * stride, wd * stride)).astype(np.float32)
        wv = r.normal(size=(o, 3, 3, 3)).astype(np.float32)
        got = run(
            p, [xv, wv, np.zeros((nb, o, h, wd), np.float32)], {"B": nb, "O": o, oh: h, ow: wd}
        )[2]
        padded = np.pad(xv.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
        want = np.zeros_like(got, np.float64)
        for u in range(3):
            for v in range(3):
                part = padded[:, :, u : u + h * stride : stride, v : v + wd * stride : stride]
                want += np.einsum("bchw,oc->bohw", part, wv[:, :, u, v])
        assert np.allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_matrix_vector(dtype: str) -> None:
    x, v, y = (
        buffer("x", dtype, "M", "K", slot=0),
        buffer("v", dtype, "K", slot=1),
        buffer("y", dtype, "M", slot=2),
    )
    args = ((axis("m", "M"),), (), (axis("k", "K"),), load(x, "$m", "$k"), load(v, "$k"))
    p = program(
        [x, v, y],
        kernel(Contract("s", (), *args, (store(y, ("$m",), var("s", dtype)),))),
        dims=("M", "K"),
    )
    for m, k in ((1, 1), (9, 40), (70, 500)):
        xv, vv = (
            rng(m).normal(size=(m, k)).astype(NUMPY[dtype]),
            rng(k).normal(size=k).astype(NUMPY[dtype]),
        )
        got = run(p, [xv, vv, np.zeros(m, xv.dtype)], {"M": m, "K": k})[2]
        assert np.allclose(got, xv.astype(np.float64) @ vv, rtol=1e-3, atol=1e-4)


# ---- kernels together ---------------------------------------------------------------------------


def softmax_rows(rows: str, cols: Any, local: Any) -> Any:
    """Row soft-max: a local strip, two reductions, three sweeps."""
    x, y = buffer("x", "f32", rows, cols, slot=0), buffer("y", "f32", rows, cols, slot=1)
    r, c = axis("r", rows), axis("c", cols)
    value = op("exp", op("sub", load(x, "$r", "$c"), var("m")))
    body = [
        reduce("m", "max", [c], load(x, "$r", "$c"), c),
        nest([(c, "vector")], store(local, ("$c",), value)),
        reduce("s", "sum", [c], load(local, "$c"), c),
        Let("i", op("div", num(1.0), var("s"))),
        nest([(c, "vector")], store(y, ("$r", "$c"), op("mul", load(local, "$c"), var("i")))),
    ]
    return program([x, y], kernel(nest([(r, "parallel")], *body)), dims=(rows,))


@pytest.mark.parametrize("cols", [10, 100, 5000])
def test_row_fusion(cols: int) -> None:
    local = buffer("strip", "f32", cols, scope="local")
    xv = rng(cols).normal(size=(7, cols)).astype(np.float32)
    got = run(softmax_rows("R", cols, local), [xv, np.zeros_like(xv)], {"R": 7})[1]
    e = np.exp(xv.astype(np.float64) - xv.max(1, keepdims=True))
    assert np.allclose(got, e / e.sum(1, keepdims=True), rtol=2e-6)


def test_chain_of_kernels() -> None:
    """Arena buffers, small and large kernels in a row, barriers, constants."""
    x, y = buffer("x", "f32", "N", slot=0), buffer("y", "f32", "N", slot=1)
    size = (Dim.of("N") * 4 + 63) // 64 * 64
    t = [buffer(f"t{k}", "f32", "N", scope="arena", offset=size * (k % 2)) for k in range(6)]
    table = buffer("c", "f32", 3, scope="const", data=(1.0, 2.0, 3.0))
    steps = []
    o, v = axis("o", 4), axis("v", Dim.of("N") // 4)
    place = Dim.of("$o") * (Dim.of("N") // 4) + Dim.of("$v")
    for k, (a, b) in enumerate(pairwise([x, *t, y])):
        # Reversed, so that every thread needs what another one wrote.
        value = op("add", load(a, Dim.of("N") - 1 - place), load(table, k % 3))
        loops = nest([(o, "parallel"), (v, "vector")], store(b, (place,), value))
        steps.append(kernel(loops, work=10 if k in (2, 3) else 1 << 20))
    p = program([x, y], *steps, dims=("N",), buffers=[*t, table], arena=size * 2)
    xv = rng(9).normal(size=400).astype(np.float32)
    for _ in range(5):
        got = run(p, [xv, np.zeros_like(xv)], {"N": 400})[1]
        want = xv
        for k in range(7):
            want = want[::-1] + np.float32([1, 2, 3][k % 3])
        assert np.array_equal(got, want)


def test_repeat() -> None:
    """Turns that read what those before wrote, a nested loop, a condition."""
    x, y = buffer("x", "i64", "N", slot=0), buffer("y", "i64", "T", "N", slot=1)
    size = (Dim.of("N") * 8 + 63) // 64 * 64
    t = buffer("t", "i64", "N", scope="arena")
    go = buffer("go", "bool", scope="arena", offset=size)
    i, n = axis("i", "N"), Dim.of("N")
    swap = op("add", load(x, n - 1 - Dim.of("$i")), idx(Dim.of("$t") + Dim.of("$s")))
    inner = Repeat(
        "$s",
        Dim.of("$t") + 1,
        (
            kernel(nest([(i, "parallel")], store(t, ("$i",), swap))),
            kernel(nest([(i, "parallel")], store(x, ("$i",), load(t, "$i")))),
        ),
    )
    record = kernel(nest([(i, "parallel")], store(y, ("$t", "$i"), load(x, "$i"))), work=5)
    test = kernel(store(go, (), op("lt", load(x, 0), num(40, "i64"))))
    outer = Repeat("$t", Dim.of("T"), (inner, record), (test,), go)
    last = kernel(nest([(i, "parallel")], store(x, ("$i",), op("neg", load(x, "$i")))))
    p = program([x, y], outer, last, dims=("N", "T"), buffers=[t, go], arena=size + 64)

    def turns(x: np.ndarray, y: np.ndarray) -> None:
        for k in range(len(y)):
            if x[0] >= 40:
                break
            for s in range(k + 1):
                x[:] = x[::-1] + k + s
            y[k] = x
        x[:] = -x

    for sizes in ((1, 1), (8, 3), (30, 9), (5, 30)):
        xv, yv = rng(sizes).integers(0, 20, sizes[0]), np.zeros(sizes[::-1], np.int64)
        want = [xv.copy(), yv.copy()]
        turns(*want)
        for _ in range(3):
            got = run(p, [xv, yv], {"N": sizes[0], "T": sizes[1]})
            assert np.array_equal(got[0], want[0]) and np.array_equal(got[1], want[1])


def test_commit_stops_before_writing() -> None:
    x, i, y = (
        buffer("x", "f32", "N", slot=0),
        buffer("i", "i32", "N", slot=1),
        buffer("y", "f32", "N", slot=2),
    )
    t = buffer("t", "f32", "N", scope="arena")
    n = axis("n", "N")
    p = native(
        program(
            [x, i, y],
            kernel(nest([(n, "parallel")], store(t, ("$n",), load(x, load(i, "$n"), check=SPAN)))),
            Commit(),
            kernel(nest([(n, "parallel")], store(y, ("$n",), load(t, "$n")))),
            dims=("N",),
            buffers=[t],
            arena=Dim.of("N") * 4,
        )
    )
    xv, iv = rng(1).normal(size=9).astype(np.float32), np.arange(9, dtype=np.int32)[::-1].copy()
    for threads in (1, 2):
        assert np.array_equal(
            p.run([xv, iv, np.zeros_like(xv)], {"N": 9}, threads=threads)[2], xv[::-1]
        )
    iv[4] = 77
    with pytest.raises(IndexFailure):
        p.run([xv, iv, np.zeros_like(xv)], {"N": 9}, threads=2)


# ---- objects ------------------------------------------------------------------------------------


def undefined(code: bytes) -> set[str]:
    """Undefined symbols of an ELF object, by its symbol table."""
    import struct

    table = struct.unpack_from("<Q", code, 0x28)[0]
    count = struct.unpack_from("<H", code, 0x3C)[0]
    sections = [struct.unpack_from("<IIQQQQIIQQ", code, table + 64 * k) for k in range(count)]
    names = set()
    for s in sections:
        if s[1] == 2:
            strings = sections[s[6]][4]
            for at_ in range(s[4] + 24, s[4] + s[5], 24):
                name, _, _, section = struct.unpack_from("<IBBH", code, at_)
                if section == 0 and name:
                    names.add(code[strings + name : code.index(b"\0", strings + name)].decode())
    return names


def everything(dtype: str) -> Any:
    """All float functions of a dtype, conversions, random numbers and a reduction."""
    args, steps = [], []
    for kind in ("vector", "serial"):
        x, y = (
            buffer(f"x{kind}", dtype, "N", slot=len(args)),
            buffer(f"y{kind}", dtype, "N", slot=len(args) + 1),
        )
        args += [x, y]
        total = load(x, "$i")
        for s in SCALARS.values():
            if s.rule in ("float", "number") and s.name != "neg":
                total = op("add", total, op(s.name, *([load(x, "$i")] * s.arity)))
        for to in (*FLOATS, *INTS, "bool"):
            total = op("add", total, cast(cast(load(x, "$i"), to), dtype))
        random = Op(
            dtype, "random_normal", (num(1, "i64"), num(2, "i64"), num(3, "i64"), idx("$i"))
        )
        total = op("add", total, random)
        steps.append(kernel(nest([(axis("i", "N"), kind)], store(y, ("$i",), total))))
    n = axis("i", "N")
    steps.append(
        kernel(
            reduce("s", "sum", [n], load(args[0], "$i"), n), store(args[1], (0,), var("s", dtype))
        )
    )
    return program(args, *steps, dims=("N",))


@pytest.mark.parametrize("isa", ["avx512", "avx2"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_no_undefined_symbols(dtype: str, isa: str) -> None:
    target = x86(isa)
    module = emit(everything(dtype), target, "nn_test")
    assert undefined(objects.compile_object(module.text, target)) <= set(module.externals)


def test_same_bits_on_other_targets() -> None:
    """AVX2 code gives the bits of AVX-512 code."""
    if host().isa != "avx512":
        pytest.skip("needs AVX-512")
    local = buffer("strip", "f32", 200, scope="local")
    p = softmax_rows("R", 200, local)
    xv = rng(5).normal(size=(6, 200)).astype(np.float32)
    outs = [native(p, t).run([xv, np.zeros_like(xv)], {"R": 6})[1] for t in (host(), x86("avx2"))]
    assert outs[0].tobytes() == outs[1].tobytes()


def test_text_is_deterministic() -> None:
    assert emit(everything("f32"), host(), "a").text == emit(everything("f32"), host(), "a").text
    llvm.parse_assembly(emit(everything("f32"), host(), "a").text).verify()
