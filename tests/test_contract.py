"""The contraction leaf against float64, on guard pages, with equal bits for all thread counts."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import re
from dataclasses import dataclass, replace
from functools import cache

import llvmlite.binding as llvm
import numpy as np
import pytest

from nnc.codegen import contract as leaf
from nnc.codegen import flow, tile_kernels, tiles, vectors
from nnc.codegen.contract_types import block_columns
from nnc.codegen.emit import Emitter
from nnc.codegen.operands import computed
from nnc.codegen.target import LLVM_TYPE, Target, host, x86
from tests.guard import guarded
from tests.jit import assembly, build

NUMPY = {"f32": np.float32, "f64": np.float64}
WORDS = {"dot4": np.int32, "dot4r": np.int32}  # of four bytes
EPS = {"f32": 2.0**-24, "f64": 2.0**-53}
TARGETS = {"avx512": host()} if host().isa == "avx512" else {}
TARGETS |= {i: x86(i) for i in ("avx2", "portable") if i == "portable" or host().isa != "portable"}

if host().matrix:
    without = ",".join(f for f in host().features.split(",") if not f.startswith("+amx"))
    WORD_TARGETS = {**TARGETS, "vectors": replace(host(), features=without)}
else:
    WORD_TARGETS = TARGETS

SIZES = ("m", "n", "k", "ar", "ac", "br", "bc", "cr", "cc")
PARAMETERS = (
    "ptr %a, ptr %b, ptr %c, ptr %bias, ptr %scratch, "
    + ", ".join(f"i64 %{s}" for s in SIZES)
    + ", i32 %tid, i32 %nt"
)
PROTOTYPE = ctypes.CFUNCTYPE(
    None, *[ctypes.c_void_p] * 5, *[ctypes.c_int64] * len(SIZES), ctypes.c_int32, ctypes.c_int32
)


@dataclass(frozen=True)
class Case:
    """Layouts are "row" (columns contiguous), "col" (rows contiguous), "any" (run-time strides),
    "computed" (x + 1 with a vector form along columns), "computed0" (along rows), "scalar"
    (without a vector form), "packed" and "packed col" (B only, from those layouts); "half row", "half col" and "packed half col" are stored
    as bf16."""

    dtype: str = "f32"
    isa: str = "avx512"
    a: str = "row"
    b: str = "row"
    c: str = "row"
    epilogue: bool = False
    careless: bool = False
    direct: bool = False
    constant: tuple[int, int, int] | None = None


def symbols(dtype: str, target: Target) -> None:
    """Makes the shared kernels of a target the ones that later modules link to."""
    for name, address in kernels(dtype, target).items():
        llvm.add_symbol(name, address)


@cache
def kernels(dtype: str, target: Target) -> dict[str, int]:
    e = build(leaf.support_module(dtype, target), target=target, level=0)
    functions, data = leaf.support_symbols(dtype, target)
    return {n: e.get_function_address(n) for n in functions} | {
        n: e.get_global_value_address(n) for n in data
    }


def operand(case: Case, name: str, layout: str, t: tiles.Tile) -> leaf.Strided | leaf.Computed:
    base, rs, cs = f"%{name}", f"%{name}r", f"%{name}c"
    stored = "bf16" if layout.startswith("half") else ""
    layout = layout.removeprefix("half ")
    if layout in ("row", "col", "any"):
        strides = "1" if layout == "col" else rs, "1" if layout == "row" else cs
        return leaf.Strided(base, *strides, stored)
    axis = 0 if layout == "computed0" else 1
    inner = computed(t, leaf.Strided(base, rs, "1") if axis else leaf.Strided(base, "1", cs))
    ones = "<" + ", ".join([f"{t.type} 1.0"] * t.lanes) + ">"

    def load(em: Emitter, row: str, col: str) -> str:
        return em.op(f"fadd {t.type} {inner.load(em, row, col)}, 1.0")

    def vector(em: Emitter, row: str, col: str, mask: str | None) -> str:
        assert inner.vector is not None
        return em.op(f"fadd {t.vector} {inner.vector(em, row, col, mask)}, {ones}")

    return leaf.Computed(load, None if layout == "scalar" else vector, axis)


def values(rng: np.random.Generator, shape: tuple[int, int], dtype: type) -> np.ndarray:
    if dtype == np.int32:
        return rng.integers(-(2**31), 2**31, shape).astype(np.int32)
    return rng.standard_normal(shape).astype(dtype)


def products_of_bytes(case: Case, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    signs = (np.uint8, np.int8) if case.dtype == "dot4" else (np.int8, np.uint8)
    x, y = a.view(signs[0]), np.ascontiguousarray(b.T).view(signs[1])
    return (x.astype(np.int64) @ y.astype(np.int64).T).astype(np.int32)


def halved(x: np.ndarray) -> np.ndarray:
    """Numbers of bf16."""
    return (x.view(np.uint32) & 0xFFFF0000).view(np.float32)


def unpacked(layout: str) -> str:
    return layout.removeprefix("packed").strip() or "row"


def store(case: Case, target: Target, t: tiles.Tile) -> leaf.Store:
    col_stride = "1" if case.c == "row" else "%cc"
    plain = leaf.strided_store(case.dtype, target, "%c", "%cr", col_stride)
    if not case.epilogue:
        return plain

    def bias_relu(em: Emitter, row: str, col: str, value: str, mask: str | None) -> None:
        mask = None if case.careless else mask
        bias = vectors.load_vector(em, t, flow.offset(em, "%bias", col, t.type), mask)
        x = em.op(f"fadd {t.vector} {value}, {bias}")
        positive = em.op(f"fcmp ogt {t.vector} {x}, zeroinitializer")
        choice = f"<{t.lanes} x i1> {positive}, {t.vector} {x}, {t.vector} zeroinitializer"
        plain(em, row, col, em.op(f"select {choice}"), mask)

    return bias_relu


def module(case: Case) -> str:
    target = WORD_TARGETS[case.isa]
    t = tiles.tile(case.dtype, target)
    m, n, k = map(str, case.constant) if case.constant else ("%m", "%n", "%k")
    em = Emitter()
    em.label("entry")
    b = leaf.Packed("%b") if "packed" in case.b else operand(case, "b", case.b, t)
    a = operand(case, "a", case.a, t)
    done = store(case, target, t)
    c = leaf.Contraction(case.dtype, target, m, n, k, a, b, done, "%scratch")
    if case.direct:
        c = replace(c, result=leaf.Strided("%c", "%cr", "1"))
    leaf.emit_contraction(em, c)
    em.line("ret void")
    text = f"define void @f({PARAMETERS}) {{\n{em.text()}\n}}\n"
    em = Emitter()
    em.label("entry")
    source = operand(case, "b", unpacked(case.b), t)
    leaf.emit_prepack(em, case.dtype, target, source, n, k, "%c")
    em.line("ret void")
    text += f"define void @prepack({PARAMETERS}) {{\n{em.text()}\n}}\n"
    lines = set(leaf.declarations(case.dtype, target))
    if "half" in case.a + case.b:
        lines |= set(leaf.declarations(leaf.support_kind(case.dtype, "bf16"), target))
    return "\n".join((*sorted(lines), text))


@cache
def compiled(case: Case) -> tuple[object, object]:
    target = WORD_TARGETS[case.isa]
    symbols(case.dtype, target)
    if "half" in case.a + case.b:
        symbols(leaf.support_kind(case.dtype, "bf16"), target)
    engine = build(module(case), target=target)
    return tuple(PROTOTYPE(engine.get_function_address(f)) for f in ("f", "prepack"))  # type: ignore


def aligned(alloc, size: int) -> np.ndarray:
    """Poisoned scratch on guard pages, of a multiple of 64 bytes."""
    return alloc((-(-size // 64) * 64,), np.uint8)


def laid(alloc, values: np.ndarray, layout: str) -> tuple[np.ndarray, int, int]:
    """The matrix in memory with its strides in elements."""
    rows, cols = values.shape
    if layout.startswith("half"):
        return laid(alloc, (values.view(np.uint32) >> 16).astype(np.uint16), layout[5:])
    match layout:
        case "col" | "computed0":
            x = alloc((cols, rows), values.dtype, values.T)
            return x, 1, max(rows, 1)
        case "any":
            nan = 0x7FC0 if values.dtype.kind in "iu" else np.nan
            wide = np.full((max(rows * 2 - 1, 0), max(cols * 3 - 2, 0)), nan, values.dtype)
            wide[::2, ::3] = values
            x = alloc(wide.shape, values.dtype, wide)
            return x, 2 * wide.shape[1], 3
    return alloc((rows, cols), values.dtype, values), max(cols, 1), 1


def run(case: Case, sizes: tuple[int, int, int], threads: int = 1, side: str = "end") -> np.ndarray:
    """Runs the parts of all threads one after another; checks what may be written; returns C."""
    m, n, k = sizes
    np_type, target = (NUMPY | WORDS)[case.dtype], WORD_TARGETS[case.isa]
    f, prepack = compiled(case)
    rng = np.random.default_rng(m * 1000003 + n * 1009 + k)
    a, b = (values(rng, shape, np_type) for shape in ((m, k), (k, n)))
    a, b = (halved(x) if "half" in y else x for x, y in ((a, case.a), (b, case.b)))
    bias = rng.standard_normal(n).astype(np_type)
    with guarded(side) as alloc:
        pa, ar, ac = laid(alloc, a, case.a)
        pb, br, bc = laid(alloc, b, unpacked(case.b))
        bias_ = alloc((n,), np_type, bias)
        shape = (n, m) if case.c == "col" else (m, n)
        pc = alloc(shape, np_type)
        cr, cc = (1, m) if case.c == "col" else (n, 1)
        rest = (bias_.ctypes.data,)
        strides = (m, n, k, ar, ac, br, bc, cr, cc)
        if "packed" in case.b:
            packed = aligned(alloc, leaf.packed_bytes(case.dtype, target, n, k))
            room = aligned(alloc, 1024)
            for tid in range(threads):
                args = (pa.ctypes.data, pb.ctypes.data, packed.ctypes.data, 0, room.ctypes.data)
                prepack(*args, *strides, tid, threads)
            pb = packed
        for tid in range(threads):
            scratch = aligned(alloc, leaf.scratch_bytes(case.dtype, target))
            args = (pa.ctypes.data, pb.ctypes.data, pc.ctypes.data, *rest, scratch.ctypes.data)
            f(*args, *strides, tid, threads)
        got = (pc.T if case.c == "col" else pc).copy()
    check(case, got, a, b, bias)
    return got


def check(case: Case, got: np.ndarray, a: np.ndarray, b: np.ndarray, bias: np.ndarray) -> None:
    if case.dtype in WORDS:
        assert (got == products_of_bytes(case, a, b)).all()
        return
    a = a + np.array(1, a.dtype) if case.a in ("computed", "computed0", "scalar") else a
    b = b + np.array(1, b.dtype) if "computed" in case.b or case.b == "scalar" else b
    exact = np.float64 if case.dtype == "f32" else np.longdouble
    x, y = a.astype(exact), b.astype(exact)
    want = x @ y
    bound = (a.shape[1] + 4) * EPS[case.dtype] * (abs(x) @ abs(y)) + 1e-300
    if case.epilogue:
        want = want + bias
        bound += EPS[case.dtype] * 2 * (abs(want) + abs(bias))
        want = np.maximum(want, 0)
    assert got.shape == want.shape
    assert (abs(got - want) <= bound).all()  # NaN, the poison, fails too


def ragged(t: tiles.Tile) -> list[tuple[int, int, int]]:
    r, p, b = t.rows, t.panel, t.block
    return [
        (1, 1, 1),
        (0, 3, 2),
        (3, 0, 2),
        (3, 5, 0),
        (r, p, 16),
        (r + 1, p + 1, 17),
        (r - 1, p - 1, 15),
        (2 * r + 1, t.lanes, 3),
        (1, 4 * p + 3, 31),
        (3, 3 * p + t.lanes + 1, 7),
        (37, 41, 43),
        (5, p + t.lanes, b - 1),
        (r + 2, 3, b),
        (2, p + 2, b + 1),
        (31, 2 * p - 1, 2 * b + 5),
    ]


LAYOUTS = [
    ("row", "row"),
    ("row", "col"),
    ("col", "row"),
    ("col", "col"),
    ("any", "any"),
    ("computed", "computed0"),
    ("computed0", "computed"),
    ("scalar", "scalar"),
    ("row", "packed"),
    ("row", "packed col"),
    ("row", "packed computed0"),
]
ALL = [(i, d) for i in TARGETS for d in NUMPY]


@pytest.mark.parametrize(("isa", "dtype"), ALL)
@pytest.mark.parametrize(
    ("a", "b"),
    LAYOUTS,
)
def test_layouts_at_ragged_sizes(isa: str, dtype: str, a: str, b: str) -> None:
    case = Case(dtype, isa, a, b, epilogue=a in ("row", "computed"))
    t = tiles.tile(dtype, TARGETS[isa])
    for number, sizes in enumerate(ragged(t)):
        run(case, sizes, side=("end", "start")[number % 2])
        run(case, sizes, side=("start", "end")[number % 2])


@pytest.mark.parametrize("isa", TARGETS)
def test_every_height_and_width(isa: str) -> None:
    t = tiles.tile("f32", TARGETS[isa])
    for m in range(1, 2 * t.rows + 2):
        for n in (1, t.lanes, t.lanes + 1, t.panel, 3 * t.panel - 1, 8 * t.panel):
            run(Case(isa=isa), (m, n, 9))
            run(Case(isa=isa, b="packed"), (m, n, 9))


@pytest.mark.parametrize(("isa", "dtype"), ALL)
def test_blocks_and_threads_give_equal_bits(isa: str, dtype: str) -> None:
    """Sizes beyond all blocks: columns, partial sums, k; the splits change nothing."""
    t = tiles.tile(dtype, TARGETS[isa])
    wide = block_columns(t) + t.panel + 1
    for sizes in [(520, 40, t.block + 1), (30, wide, t.block), (1, wide, 30), (90, 5, 700)]:
        case = Case(dtype, isa)
        want = run(case, sizes)
        for threads in (2, 3, 4, 5):
            assert (run(case, sizes, threads) == want).all()
        for b in ("packed", "any"):
            assert (run(Case(dtype, isa, b=b), sizes, 2) == want).all()


@pytest.mark.parametrize(("isa", "dtype"), ALL)
def test_tiles_stored_at_once_have_the_same_bits(isa: str, dtype: str) -> None:
    t = tiles.tile(dtype, TARGETS[isa])
    case = Case(dtype, isa, direct=True)
    for sizes in [*ragged(t), (520, t.panel + 1, t.block + 1), (30, 2 * t.panel, 2 * t.block + 3)]:
        want = run(replace(case, direct=False), sizes)
        assert (run(case, sizes) == want).all()
        assert (run(case, sizes, 2) == want).all()
    m, k = 1030, t.block + 2
    for n in (2 * t.panel, 2 * t.panel - t.lanes):
        constant = replace(case, constant=(m, n, k))
        assert (run(constant, (m, n, k), 2) == run(Case(dtype, isa), (m, n, k))).all()


@pytest.mark.parametrize("isa", WORD_TARGETS)
@pytest.mark.parametrize("dtype", WORDS)
def test_words_of_bytes(isa: str, dtype: str) -> None:
    """Exact on every target, for all bytes, layouts and threads."""
    sizes = [*ragged(tiles.tile(dtype, WORD_TARGETS[isa])), (1, 37, 400)]
    layouts = [x for x in LAYOUTS if not any("computed" in y or y == "scalar" for y in x)]
    for number, size in enumerate(sizes):
        for a, b in layouts:
            run(Case(dtype, isa, a, b), size, 1 + number % 3, ("end", "start")[number % 2])


HALVES = [("half row", "row"), ("half col", "row"), ("row", "half row"), ("half any", "half any")]
HALVES += [("row", "half col"), ("col", "packed half row"), ("row", "packed half col")]


@pytest.mark.parametrize("isa", TARGETS)
@pytest.mark.parametrize(("a", "b"), HALVES)
def test_bf16_in_memory(isa: str, a: str, b: str) -> None:
    """It becomes f32 where it is read: the bits are those of the same numbers stored as f32."""
    for number, sizes in enumerate([*ragged(tiles.tile("f32", TARGETS[isa])), (1, 37, 400)]):
        for side in ("end", "start")[:: 1 if number % 2 else -1]:
            run(Case("f32", isa, a, b), sizes, 1 + number % 3, side)
    plain = run(Case("f32", isa, "row", "half col"), (1, 70, 900))
    assert (run(Case("f32", isa, "row", "half row"), (1, 70, 900), 2) == plain).all()
    assert (run(Case("f32", isa, "row", "packed half row"), (1, 70, 900), 2) == plain).all()


def _random_runs(count: int, seed: int) -> None:
    """Equal bits for every layout of B and for any threads, on guard pages, at random sizes."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        isa, dtype = ALL[rng.integers(len(ALL))]
        a, b = LAYOUTS[rng.integers(len(LAYOUTS))]
        sizes = tuple(int(x) for x in 2 ** rng.uniform(0, [7.5, 8.5, 9.5]))
        want = run(Case(dtype, isa, a, b), sizes, side=("end", "start")[rng.integers(2)])
        got = run(Case(dtype, isa, a, b), sizes, int(rng.integers(2, 9)))
        assert (want == got).all(), (isa, dtype, a, b, sizes)


def test_random_sizes() -> None:
    _random_runs(60, 0)


@pytest.mark.slow
def test_many_random_sizes() -> None:
    _random_runs(5000, 1)


def test_position_does_not_matter() -> None:
    """A row alone gives the same bits as the row in a batch."""
    case = Case()
    f, _ = compiled(case)
    rng = np.random.default_rng(1)
    m, n, k = 45, 70, 800
    a = rng.standard_normal((m, k)).astype(np.float32)
    b = rng.standard_normal((k, n)).astype(np.float32)
    room = np.zeros(leaf.scratch_bytes("f32", TARGETS[case.isa]) + 64, np.uint8)
    scratch = room.ctypes.data + -room.ctypes.data % 64
    whole, row = np.zeros((m, n), np.float32), np.zeros((1, n), np.float32)

    def call(x: np.ndarray, out: np.ndarray, rows: int) -> None:
        sizes = (rows, n, k, k, 1, n, 1, n, 1)
        f(x.ctypes.data, b.ctypes.data, out.ctypes.data, 0, scratch, *sizes, 0, 1)

    call(a, whole, m)
    for i in (0, 13, 14, 44):
        call(a[i : i + 1], row, 1)
        assert (row[0] == whole[i]).all()


def test_constant_sizes_give_the_same_bits() -> None:
    for sizes in [(64, 10, 100), (13, 33, 400), (512, 32, 16), (29, 64, 768)]:
        want = run(Case(), sizes)
        for b in ("row", "packed", "col"):
            assert (run(Case(constant=sizes, b=b), sizes, 2) == want).all()


def test_transposed_result() -> None:
    for sizes in [(5, 7, 3), (40, 33, 20)]:
        run(Case(c="col"), sizes, 2)


@pytest.mark.skipif("avx512" not in TARGETS, reason="needs AVX-512")
def test_instruction_sets_with_fma_agree() -> None:
    sizes = (33, 70, 1000)
    assert (run(Case(isa="avx512"), sizes) == run(Case(isa="avx2"), sizes)).all()


def test_ignoring_the_mask_is_a_fault() -> None:
    """The control of the guard pages: a store of whole vectors at the edge must die."""
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        run(Case(epilogue=True, careless=True), (5, 5, 5))
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_infinities_and_nan_stay_in_their_row_and_column() -> None:
    case = Case()
    f, _ = compiled(case)
    m, n, k = 17, 35, 5
    a, b = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
    a[3, 2], b[1, 34] = np.inf, np.nan
    c = np.zeros((m, n), np.float32)
    room = np.zeros(leaf.scratch_bytes("f32", TARGETS[case.isa]) + 64, np.uint8)
    scratch = room.ctypes.data + -room.ctypes.data % 64
    f(a.ctypes.data, b.ctypes.data, c.ctypes.data, 0, scratch, m, n, k, k, 1, n, 1, n, 1, 0, 1)
    assert np.isnan(c[:, 34]).all()
    assert np.isposinf(c[3, :34]).all()
    assert (np.delete(c, 3, 0)[:, :34] == k).all()


STACK_TRAFFIC = re.compile(r"[xyz]mm\d+.*\(%r[sb]p|\(%r[sb]p.*[xyz]mm")


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
@pytest.mark.parametrize("dtype", [*NUMPY, *WORDS])
def test_tiles_fit_the_registers(isa: str, dtype: str) -> None:
    target = x86(isa)
    t = tiles.tile(dtype, target)
    lines = tile_kernels.line_definitions(t, target) if dtype in NUMPY else ""
    text = "\n".join(
        (*tile_kernels.kernel_declarations(t, target), tile_kernels.definitions(t, target), lines)
    )
    text = assembly(text, target, level=0)
    assert not STACK_TRAFFIC.findall(text)
    assert "call" not in text  # an fma that the target lacks


@pytest.mark.parametrize("dtype", WORDS)
def test_tiles_of_words_fit_the_registers(dtype: str) -> None:
    target = replace(x86("avx512"), features="+avx512vnni")
    t = tiles.tile(dtype, target)
    text = "\n".join(
        (*tile_kernels.kernel_declarations(t, target), tile_kernels.definitions(t, target))
    )
    text = assembly(text, target, level=0)
    assert "vpdpbusd" in text and "pmul" not in text
    assert not STACK_TRAFFIC.findall(text)


@pytest.mark.parametrize("dtype", WORDS)
def test_rows_of_words_use_the_matrix_unit(dtype: str) -> None:
    target = replace(x86("avx512"), features="+avx512vnni,+amx-tile,+amx-int8")
    t = tiles.tile(dtype, target)
    text = "\n".join(
        (*tile_kernels.kernel_declarations(t, target), tile_kernels.definitions(t, target))
    )
    text = assembly(text, target, level=0)
    assert {"dot4": "tdpbusd", "dot4r": "tdpbsud"}[dtype] in text
    assert not STACK_TRAFFIC.findall(text)


def test_one_row_too_many_would_spill() -> None:
    """The control of the test above."""
    target = x86("avx2")
    t = tiles.tile("f32", target)
    kernel = tile_kernels.kernel_text(t, target, 8, 2)
    text = assembly(
        "\n".join((*tile_kernels.kernel_declarations(t, target), kernel)), target, level=0
    )
    assert STACK_TRAFFIC.search(text)


def test_transpose_in_registers() -> None:
    for isa, target in TARGETS.items():
        t = tiles.tile("f32", target)
        em = Emitter()
        em.label("entry")
        rows = [
            vectors.load_vector(em, t, flow.offset(em, "%x", str(i * t.lanes), t.type), None)
            for i in range(t.lanes)
        ]
        for i, r in enumerate(vectors.transpose(em, t, rows)):
            vectors.store_vector(em, t, r, flow.offset(em, "%y", str(i * t.lanes), t.type), None)
        em.line("ret void")
        engine = build(f"define void @f(ptr %x, ptr %y) {{\n{em.text()}\n}}", target=target)
        f = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(
            engine.get_function_address("f")
        )
        x = np.arange(t.lanes**2, dtype=np.float32).reshape(t.lanes, t.lanes)
        y = np.zeros_like(x)
        f(x.ctypes.data, y.ctypes.data)
        assert (y == x.T).all(), isa
        assert LLVM_TYPE["f32"] == t.type
