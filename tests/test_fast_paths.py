"""Every fast path on every instruction set: the interpreter's results on guard pages at ragged
sizes, equal bits for 1, 3 and 8 threads, no undefined symbols, no spills."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from textwrap import dedent
from typing import Any

import numpy as np
import pytest

from nnc import compiler
from nnc.codegen import contract, objects, points, row, tiles
from nnc.codegen.llvm import Module, emit
from nnc.codegen.target import host, x86
from nnc.ir.graph import Graph
from nnc.ir.interpret import run as interpret
from nnc.ir.loop import Program
from nnc.passes.stored import stored_as
from nnc.quantization import to_bf16
from tests import test_keyed, test_prefixes, test_products, test_strips, test_winograd
from tests.endtoend import NUMPY, built, close, sample
from tests.jit import pool
from tests.native import Native, engine_of, support
from tests.test_codegen import undefined
from tests.test_quantize import on_bytes, sixteenths

ISAS = ("avx512", "avx2", "portable")
HERE = ISAS[ISAS.index(host().isa) :] if host().triple.startswith("x86_64") else ()


def window(o: int, c: int) -> str:
    return test_winograd.conv(o, c, "i+u-1, j+v-1 else 0", " + m.b[o]")


# Texts with one export, sizes. (int8 and bf16: `case`.)
PATHS: dict[str, tuple[str, dict[str, int]]] = {
    "functions": (
        """
    export def f(x: f32[N], y: f64[N]) -> (f32[N], f64[N]):
        return exp(x) + tanh(x) * round(x) + erf(x) + floor(x), log(y * y + 1) * sin(y)
    """,
        {"N": 131},
    ),
    "products": (
        """
    export def f(x: f32[M, K], w: f32[K, N], v: f32[L, N], b: f32[N]) -> f32[M, L]:
        return tanh(x @ w + b) @ v.T
    """,
        {"M": 31, "K": 391, "N": 67, "L": 33},
    ),
    "one row": (
        """
    export def f(x: f32[1, K], w: f32[K, N], v: f32[N, K]) -> (f32[1, N], f32[1, N]):
        return x @ w, x @ v.T
    """,
        {"K": 401, "N": 397},
    ),
    "doubles": (
        """
    export def f(x: f64[M, K], w: f64[K, N], r: f64[1, K]) -> (f64[M, N], f64[1, N]):
        return x @ w, r @ w
    """,
        {"M": 17, "K": 261, "N": 211},
    ),
    "strips": (test_strips.plane(), {"B": 5, "C": 20, "H": 9, "W": 11, "O": 9}),
    "phases": (test_strips.plane(k=3, s=2), {"B": 2, "C": 9, "H": 23, "W": 19, "O": 15}),
    "one filter for each channel": (
        """
    export def f(x: f32[B, C, H, W], w: f32[C, 3, 3]) -> f32[B, C, H, W]:
        y[b, c, i:H, j:W] = sum[u, v](x[b, c, i + u - 1, j + v - 1 else 0] * w[c, u, v])
        return y
    """,
        {"B": 2, "C": 5, "H": 13, "W": 18},
    ),
    "one filter for each channel, channels last": (
        """
    export def f(x: f32[B, C, H, W], w: f32[C, 5, 5]) -> f32[B, H, W, C]:
        y[b, i:H, j:W, c] = sum[u, v](x[b, c, i + u - 2, j + v - 2 else 0] * w[c, u, v])
        return y
    """,
        {"B": 2, "C": 5, "H": 13, "W": 18},
    ),
    "one row by phases": (
        """
    export def f(x: f32[B, C, H, W], w: f32[9, 4, 4], C: dim) -> f32[B, 2*H, 2*W] where C >= 9:
        y[b, (i:H, p:2), (j:W, r:2)] = sum[c:9, u:2, v:2](
            x[b, c, i + p - u, j + r - v else 0] * w[c, 1 - p + 2*u, 1 - r + 2*v])
        return y
    """,
        {"B": 2, "C": 11, "H": 13, "W": 18},
    ),
    "rows that choose a matrix": (
        """
    export def f(x: f32[N, D], w: f32[5, D, F], v: f32[5, F, D], k: i32[N]) -> (f32[N, F], f32[N, F]):
        a[n, f] = sum[d](x[n, d] * w[k[n], d, f])
        b[n, f] = sum[d](exp(x[n, d]) * v[k[n], f, d])
        return tanh(a), b
    """,
        {"N": 71, "D": 97, "F": 83},
    ),
    "matrices of pictures": (
        """
    export def f(x: f32[B, C, H, W], w: f32[O, C]) -> f32[B, O, H, W]:
        y[b, o, i, j] = sum[c](x[b, c, i, j] * w[o, c])
        return y
    """,
        {"B": 2, "C": 37, "H": 21, "W": 31, "O": 29},
    ),
    "winograd of 4 x 4": (window(40, 24), {"B": 2, "H": 21, "W": 5}),
    "winograd of 2 x 2": (window(260, 256), {"B": 1, "H": 4, "W": 9}),
    "interleaved": (
        """
    export def f(x: f32[H, 3*W]) -> f32[H, 2*W]:
        y[i, j:W] = max[u:3](x[i, (j, u)])
        z[i, (j, u:2)] = y[i, j] if u == 0 else y[i, W - 1 - j]
        return z
    """,
        {"H": 3, "W": 37},
    ),
    "attention": (
        """
    from std.nn import softmax
    export def f(q: f32[B, T, D], k: f32[B, T, D], v: f32[B, T, D]) -> f32[B, T, D]:
        s[b, i, j] = sum[d](q[b, i, d] * k[b, j, d]) / sqrt(D) if j <= i else -inf
        p = softmax(s, over=j)
        y[b, i, d] = sum[j](p[b, i, j] * v[b, j, d])
        return y
    """,
        {"B": 2, "T": 41, "D": 19},
    ),
    "recurrence": (
        """
    export def f(x: f32[T, B, K], w: f32[K, K]) -> f32[B, K]:
        h = zeros[B, K]
        for t in T:
            h = tanh(x[t] + 0.1 * h @ w.T)
        return h
    """,
        {"T": 5, "B": 7, "K": 67},
    ),
    "keyed": (test_keyed.PROGRAMS["the one of a key"], {"N": 19, "O": 5, "E": 37}),
    "prefixes": (test_prefixes.PROGRAMS["to and from each place"], {"B": 3, "T": 37}),
    "products of many": (
        test_products.PROGRAMS["under a mask"],
        {"B": 2, "T": 13, "D": 9, "E": 5},
    ),
}
STORED = """
module W():
    param w: f32[67, 41] = normal(1)
    param v: f32[41, 67] = normal(1)
export def f(net: W, x: f32[M, 41]) -> (f32[M, 67], f32[M, 67]):
    return x @ net.w.T, x @ net.v
"""
NAMES = (*PATHS, "bf16", "bf16, one row", "int8, channels last", "int8")


@dataclass(frozen=True)
class Case:
    program: Program
    dims: Mapping[str, int]
    arrays: list[Any]
    want: list[Any]  # the interpreter's


@cache
def case(name: str) -> Case:
    rng = np.random.default_rng(5)
    match name:
        case "bf16" | "bf16, one row":
            return _stored({"M": 1 if "row" in name else 31}, rng)
        case "int8, channels last":
            return _bytes("h", 64, rng)
        case "int8":
            return _bytes("g", 19, rng)
    text, dims = PATHS[name]
    graph = next(iter(built(dedent(text)).values())).graph
    inputs = sample(graph, dims, rng)
    return _case(graph, dims, inputs, interpret(graph, dims, inputs).results)


def _case(graph: Graph, dims: Mapping[str, int], inputs: Mapping[str, Any], want: Any) -> Case:
    constant = frozenset(i.name for i in graph.inputs if i.kind == "param")
    program = compiler.schedule(compiler.optimise(graph), None, constant, True)
    shapes = [tuple(d.evaluate(dims) for d in r.type.shape) for r in graph.results]
    results = [np.zeros(s, NUMPY[r.type.dtype]) for s, r in zip(shapes, graph.results, strict=True)]
    arrays = [np.asarray(inputs[i.name]) for i in graph.inputs]
    return Case(program, dims, [*arrays, *results], list(want))


def _stored(dims: Mapping[str, int], rng: np.random.Generator) -> Case:
    graph = compiler.optimise(built(STORED)["f"].graph)
    given = sample(graph, dims, rng)
    words = {n: to_bf16(given[n]).view(np.uint16) for n in ("net.w", "net.v")}
    rounded = {n: (w.astype(np.uint32) << 16).view(np.float32) for n, w in words.items()}
    want = interpret(graph, dims, given | rounded).results
    return _case(stored_as(graph, set(words), "bf16"), dims, given | words, want)


def _bytes(name: str, channels: int, rng: np.random.Generator) -> Case:
    """Convolutions whose sums are exact in f32 up to the first."""
    graph, weights = on_bytes(name, rng)
    dims = {"B": 2, "H": 5, "W": 7}
    given = sample(graph, dims, rng) | weights | {"x": sixteenths(rng, 2, channels, 5, 7)}
    given |= {k: np.zeros_like(v) for k, v in given.items() if k.endswith(".bias")}
    return _case(graph, dims, given, interpret(graph, dims, given).results)


@cache
def compiled(name: str, isa: str) -> tuple[Module, bytes]:
    module = emit(case(name).program, x86(isa), "nn_test")
    return module, objects.compile_object(module.text, x86(isa))


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("name", NAMES)
def test_the_same_results(name: str, isa: str) -> None:
    pool()
    c, (module, code) = case(name), compiled(name, isa)
    for kind in module.contractions:
        support(kind, x86(isa))
    native = Native(module, engine_of(code), c.program)
    one, *others = (native.run(c.arrays, c.dims, threads=t) for t in (1, 3, 8))
    assert all(x.tobytes() == y.tobytes() for o in others for x, y in zip(one, o, strict=True))
    for got, want in zip(one[-len(c.want) :], c.want, strict=True):
        close(got, want, 2e-4, name)


def test_these_are_the_fast_paths() -> None:
    """Of the support modules each is needed by one."""
    used = {k for name in NAMES for k in compiled(name, "avx512")[0].contractions}
    t = tiles.tile("f32", x86("avx512"))
    lines, half = (contract.support_kind("f32", s) for s in (contract.LINES, "bf16"))
    assert {"f32", "f64", "dot4r", lines, half, points.kind(t, 2), points.kind(t, 4)} <= used


# ---- objects ------------------------------------------------------------------------------------

FOREIGN = {"fma", "fmaf", "rint", "rintf", "floor", "floorf", "ceil", "ceilf", "trunc", "truncf"}
KINDS = ["f32", "f64", "f32 lines", "f64 lines", "f32 bf16", "f32 points2", "f32 points4"]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_undefined(name: str, isa: str) -> None:
    """But for the pool and the support modules (x86-64 without FMA and SSE4.1: functions of C)."""
    module, code = compiled(name, isa)
    known = set(module.externals) | (FOREIGN if isa == "portable" else set())
    assert undefined(code) <= known


CALL = re.compile(r"call [^@\n]*@(nnrt_\w+)\((.*)\)")
DECLARED = re.compile(r"^declare [^@\n]*@(nnrt_\w+)\((.*)\)", re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_calls_give_what_is_declared(name: str) -> None:
    """LLVM takes any call of any function: what is not given is what a register held."""
    text = compiled(name, "avx512")[0].text
    declared = {f: types.count(",") for f, types in DECLARED.findall(text)}
    calls = {(f, given.count(",")) for f, given in CALL.findall(text) if f in declared}
    assert not {(f, n) for f, n in calls if n != declared[f]}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", [*KINDS, "dot4", "dot4r"])
def test_support_needs_nothing(kind: str, isa: str) -> None:
    target = x86(isa)
    assert not undefined(objects.compile_object(contract.support_module(kind, target), target))


SPILL = re.compile(r"[xyz]mm\d+.*\(%rsp\)|\(%rsp\).*[xyz]mm")


def spills(kind: str, isa: str) -> dict[str, int]:
    """By function, how many times a vector goes to the stack or comes from there."""
    text = objects.assembly(contract.support_module(kind, x86(isa)), x86(isa))
    functions = [f for f in re.split(r"\n(?=nnrt_\w+:)", text) if f.startswith("nnrt_")]
    assert functions
    found = {f.partition(":")[0]: len(SPILL.findall(f)) for f in functions}
    return {name: n for name, n in found.items() if n}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS[:5])
def test_nothing_spills(kind: str, isa: str) -> None:
    """Tiles, copies and lines, packing, joins, single rows."""
    assert not spills(kind, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("m", [2, 4])
def test_transforms_go_through_the_stack_once(m: int, isa: str) -> None:
    """Between its two passes a transform holds (m + 2)^2 vectors, or (m + 2) * m on the way back:
    what the registers do not hold is written and read once."""
    t = tiles.tile("f32", x86(isa))
    found = spills(points.kind(t, m), isa)
    side = m + 2
    most = {f"nnrt_points{m}_in_f32": 2 * side * side, f"nnrt_points{m}_out_f32": 2 * side * m}
    assert all(n <= most.get(name, 0) for name, n in found.items()), found
    if x86(isa).vector_registers == 32 and m == 2:
        assert not found


def test_a_row_too_wide_would_spill(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    monkeypatch.setattr(row, "_widest", lambda *_: 16)
    assert spills("f32", "avx2").keys() == {"nnrt_row_f32_1"}
