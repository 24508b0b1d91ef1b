"""Register tiles: their shapes, one for each dtype and target, and the products they are made of.

A tile is so many rows of A by a few vectors of B; its sums stay in registers over one block of k.
`tile_kernels` has the micro-kernels.

The kernels "dot4" multiply words of four bytes: sums of four products, those of A without sign,
those of B with ("dot4r": the other way round), wrapping, the same bits in any order.
"""

from __future__ import annotations

from dataclasses import dataclass

from nnc.codegen import matrix
from nnc.codegen.emit import Emitter
from nnc.codegen.integers import dot4
from nnc.codegen.target import DTYPE_BYTES, LLVM_TYPE, Target

UNROLL = 2  # k steps in a turn of the loop; 4 is no faster, and its scheduling can spill
_ROWS = {"avx512": 14, "avx2": 6, "portable": 4}
_ROWS_OF_WORDS = {"avx512": 11, "avx2": 3, "portable": 3}  # without VNNI: operands take two
VECTORS = 2  # vectors in a panel
_BLOCK = {
    "f32": 384,
    "f64": 256,
    "i32": 384,
    "dot4": 384,
    "dot4r": 384,
}  # k in a block: a row panel of A in L1, panels of B in L2


@dataclass(frozen=True)
class Tile:
    """The shape of the register tile: `rows` x `panel` elements. `parts`: registers for a vector of
    an operand."""

    dtype: str
    lanes: int
    rows: int
    registers: int
    parts: int = 1
    vector_rows: int = 0  # above it the matrix unit works; 0: there is none

    @property
    def size(self) -> int:
        """Bytes of an element."""
        return DTYPE_BYTES[self.dtype]

    @property
    def block(self) -> int:
        """The most k in a block. The same on every target, so that sums are too."""
        return _BLOCK[self.dtype]

    @property
    def a_row(self) -> int:
        """Elements between rows of a packed panel of A: the block, and room for overshoot."""
        return self.block + 16

    @property
    def fetches(self) -> bool:
        """Whether kernels fetch what their list behind the panel of A says."""
        return self.type in ("float", "double")

    @property
    def copying(self) -> range:
        """The heights of kernels that copy B: of one panel, as the widest of that height are."""
        high = range(-(-2 * self.rows // 3), self.rows + 1) if self.fetches else range(0)
        return high if all(self.wide(h) == self.panel for h in high) else range(0)

    @property
    def panel_bytes(self) -> int:
        """Bytes of a panel of A, from where on its list is."""
        return -(-self.rows // self.lanes) * self.lanes * self.a_row * self.size

    @property
    def list_bytes(self) -> int:
        """Bytes of the list."""
        return self.block * self.size

    @property
    def type(self) -> str:
        return LLVM_TYPE[self.dtype]

    @property
    def vector(self) -> str:
        return f"<{self.lanes} x {self.type}>"

    @property
    def panel(self) -> int:
        """Columns of a panel of B."""
        return VECTORS * self.lanes

    def wide(self, height: int) -> int:
        """Columns of the widest kernel: low tiles take more panels, to have enough chains.

        Accumulators, one row of B and a broadcast must fit the registers: one too many costs 20 %.
        """
        fits = (p for p in (4, 3, 2) if self._used(VECTORS * p, height) <= self.registers)
        return self.panel * next(fits, 1)

    def _used(self, vectors: int, height: int) -> int:
        """Registers; taking operands apart needs a mask and two for products."""
        return vectors * (height + self.parts) + self.parts + 3 * (self.parts - 1)

    def vectors(self, height: int) -> tuple[int, int, int]:
        """Vectors of the three kernels of a height: one vector, one panel, the widest."""
        return 1, VECTORS, self.wide(height) // self.lanes


def tile(dtype: str, target: Target) -> Tile:
    lanes, registers = target.lanes(dtype), target.vector_registers
    if dtype in ("dot4", "dot4r") and not target.vnni:
        return Tile(dtype, lanes, _ROWS_OF_WORDS[target.isa], registers, 2)
    if dtype in ("dot4", "dot4r") and target.matrix:
        return Tile(dtype, lanes, matrix.ROWS, registers, vector_rows=_ROWS[target.isa])
    return Tile(dtype, lanes, _ROWS[target.isa], registers)


def suffix(t: Tile) -> str:
    """The vector type in an intrinsic's name, such as "v16f32"."""
    return f"v{t.lanes}{'i32' if t.type == 'i32' else t.dtype}"


def multiply_add(em: Emitter, t: Tile, target: Target, x: str, y: str, s: str) -> str:
    """s + x * y; x comes from A, y from B."""
    v = t.vector
    if t.type == "i32":
        return _dot(em, t, target, *((x, y) if t.dtype == "dot4" else (y, x)), s)
    if not target.fma:
        return add(em, t, s, em.op(f"fmul {v} {x}, {y}", "m"))
    return em.op(f"call {v} @llvm.fma.{suffix(t)}({v} {x}, {v} {y}, {v} {s})", "s")


def _dot(em: Emitter, t: Tile, target: Target, x: str, y: str, s: str) -> str:
    """s + dot4(x, y)."""
    if not target.vnni:
        pairs = pair_products(target)
        whole = dot4(em, x, y, t.lanes) if pairs is None else _by_pairs(em, t, pairs, x, y)
        return add(em, t, s, whole)
    quads = f"<{4 * t.lanes} x i8>"
    x, y = (em.op(f"bitcast {t.vector} {z} to {quads}", "bytes") for z in (x, y))
    call = f"call {t.vector} @llvm.x86.avx512.vpdpbusd.512"
    return em.op(f"{call}({t.vector} {s}, {quads} {x}, {quads} {y})", "s")


_PAIRS = {"avx512": "avx512.pmaddw.d.512", "avx2": "avx2.pmadd.wd", "portable": "sse2.pmadd.wd"}


def pair_products(target: Target) -> str | None:
    """x86's instruction for the sums of two products of 16 bits."""
    return f"@llvm.x86.{_PAIRS[target.isa]}" if target.triple.startswith("x86_64") else None


def _by_pairs(em: Emitter, t: Tile, pairs: str, x: str, y: str) -> str:
    """dot4(x, y) by products of bytes 0 and 2, and of 1 and 3. Backends share equal parts."""
    halves = f"<{2 * t.lanes} x i16>"
    x, y = (em.op(f"bitcast {t.vector} {z} to {halves}", "halves") for z in (x, y))

    def op(name: str, z: str, n: int) -> str:
        return em.op(f"{name} {halves} {z}, splat (i16 {n})", "part")

    xs = op("and", x, 255), op("lshr", x, 8)
    ys = op("ashr", op("shl", y, 8), 8), op("ashr", y, 8)
    sums = [
        em.op(f"call {t.vector} {pairs}({halves} {a}, {halves} {b})", "pairs")
        for a, b in zip(xs, ys, strict=True)
    ]
    return add(em, t, *sums)


def add(em: Emitter, t: Tile, a: str, b: str) -> str:
    """The sum of two vectors."""
    return em.op(f"{'add' if t.type == 'i32' else 'fadd'} {t.vector} {a}, {b}", "s")
