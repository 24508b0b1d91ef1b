"""Loads and stores of buffers: addresses, masks, gathers, scatters.

No memory is touched for a lane that is not active. Vector accesses are masked; a scalar access
under a condition reads a constant block of zeros instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from nnc.codegen import flow
from nnc.codegen.guards import Guard, Guards
from nnc.codegen.registers import (
    HALVES,
    MEMORY,
    REGISTER,
    iota,
    suffix,
    wide,
)
from nnc.codegen.scopes import Value, integer
from nnc.ir.expr import Expr, Idx
from nnc.ir.loop import Buffer
from nnc.lang.dims import ONE, ZERO, Dim, dim_prod, dim_sum
from nnc.lang.types import DTYPES, DType

_NEAR = 1024  # elements: a constant below stays in the instruction
ZEROS = "@nn_zeros"  # 512 readable bytes
_STEPS, _SPAN = 4, 512  # elements apart, and bytes in all, that are read by vectors with gaps
Part = tuple[Value, Dim]  # a data-dependent index and its stride in elements


@dataclass(frozen=True)
class Place:
    """Where lanes lie: from `pointer`, at consecutive elements ("unit"), at one ("same"), or at
    `offsets` (in elements) from it ("any"); `step`: how far apart, where that is a little."""

    kind: str
    pointer: Value
    offsets: Value | None = None
    step: int = 0


class Memory(Guards):
    """Guards, and access to the buffers of a Program."""

    stored: frozenset[str]  # names of the buffers written here

    def base(self, b: Buffer, start: Dim) -> str:
        """Pointer to element `start` of a buffer."""
        raise NotImplementedError

    # ---- addresses ------------------------------------------------------------------------------

    def place(self, buffer: Buffer, affine: Dim, parts: tuple[Part, ...]) -> Place:
        """Of element `affine + sum of parts` (in elements of the row-major buffer)."""
        affine = self.merged(affine)
        vector = self.vector
        varying = vector is not None and vector in affine.names
        form = affine.linear_in(vector) if varying and vector is not None else (ZERO, affine)
        moving = tuple(p for p in parts if p[0].lanes > 1)
        if form is not None and not moving:
            pointer = self.pointer(buffer, affine, parts)
            if form[0] == ZERO or form[0] == ONE:
                return Place("same" if form[0] == ZERO else "unit", pointer)
            ramp = Value(iota("i64", self.lanes), "i64", self.lanes)
            apart = self._near_step(buffer.type.dtype, form[0])
            return Place("any", pointer, self.i64("mul", self.uniform(form[0]), ramp), apart)
        fixed = tuple(p for p in parts if p[0].lanes == 1)
        start, rest = self.fixed_part(buffer, affine) if varying else (affine, ZERO)
        pointer = self.pointer(buffer, start, fixed)
        offsets = self.dim(rest) if varying else None
        for value, stride in moving:
            step = self.i64("mul", self.dim(stride), value)
            offsets = step if offsets is None else self.i64("add", offsets, step)
        return Place("any", pointer, offsets)

    def _near_step(self, dtype: DType, slope: Dim) -> int:
        """The slope, where whole vectors under a mask are faster than element by element."""
        step, size = slope.const or 0, DTYPES[dtype].bytes
        fits = size >= 4 and self.lanes * step * size <= _SPAN and self.native_mask(dtype)
        return step if 1 < step <= _STEPS and fits else 0

    def pointer(self, buffer: Buffer, affine: Dim, parts: tuple[Part, ...]) -> Value:
        """In lane 0: what is known further out is added further out."""
        key = (
            "pointer",
            buffer.name,
            buffer.type.dtype,
            affine,
            tuple((p[0].text, p[1]) for p in parts),
        )
        found = self.find(key)
        if found is not None:
            return found
        start, rest = self.fixed_part(buffer, affine)
        terms = [self._term(m, c, False) for m, c in rest.terms]
        terms += [self.i64("mul", v, self.uniform(stride)) for v, stride in parts]
        out = Value(self.base(buffer, start), "ptr")
        element = MEMORY[buffer.type.dtype]
        for depth in sorted({t.depth for t in terms}):
            total = integer(0)
            for term in terms:
                if term.depth == depth:
                    total = self.i64("add", total, term)
            depth = max(depth, out.depth)
            with self.at(depth):
                text = flow.offset(self.em, out.text, total.text, element)
            out = Value(text, "ptr", 1, depth, out.reads | total.reads)
        return self.keep(key, out)

    def fixed_part(
        self, buffer: Buffer, affine: Dim, inside: frozenset[str] | None = None
    ) -> tuple[Dim, Dim]:
        """What of an address is the same in the whole kernel (no small constants), and the rest.
        The caller adds it: so kernels that differ in it alone are one function.

        `inside`: variables of the kernel's own loops, those around this place if not given.
        """
        if buffer.scope == "local":
            return ZERO, affine
        own = self.inside_names if inside is None else inside
        start = dim_sum(t for t in (Dim((x,)) for x in affine.terms) if not t.names & own)
        if start.const is not None and abs(start.const) < _NEAR:
            start = ZERO
        return start, affine - start

    # ---- reading --------------------------------------------------------------------------------

    def read(self, buffer: Buffer, place: Place, guard: Guard) -> Value:
        """The elements, in register form; inactive lanes hold anything."""
        lanes = 1 if place.kind == "same" else self.lanes
        depth = max(place.pointer.depth, place.offsets.depth if place.offsets else 0, guard.depth)
        volatile = frozenset({buffer.name}) & self.stored
        if volatile:
            depth = self.depth
        reads = place.pointer.reads | guard.reads | volatile
        if place.offsets is not None:
            reads |= place.offsets.reads
        dtype = buffer.type.dtype
        if place.kind == "same":
            text = self._read_scalar(dtype, place.pointer, self.some(guard), depth)
        else:
            text = self._read_lanes(dtype, place, guard, depth)
        with self.at(depth):
            text = self.to_register(dtype, text, lanes)
        return Value(text, dtype, lanes, depth, reads)

    def _or_zeros(self, pointer: Value, cond: Value | None) -> str:
        if cond is None:
            return pointer.text
        with self.at(max(pointer.depth, cond.depth)):
            return self.em.op(f"select i1 {cond.text}, ptr {pointer.text}, ptr {ZEROS}", "safe")

    def _read_scalar(self, dtype: DType, pointer: Value, cond: Value | None, depth: int) -> str:
        safe = self._or_zeros(pointer, cond)
        with self.at(depth):
            size = DTYPES[dtype].bytes
            return self.em.op(f"load {MEMORY[dtype]}, ptr {safe}, align {size}", "x")

    def _read_lanes(self, dtype: DType, place: Place, guard: Guard, depth: int) -> str:
        safe = self._or_zeros(place.pointer, guard.scalar)
        mask = None if guard.mask is None else guard.mask.text
        if place.offsets is None:
            with self.at(depth):
                self._fetch_columns(place.pointer)
                return self._load_vector(dtype, safe, mask)
        if place.step:
            with self.at(depth):
                return self._load_step(dtype, safe, place.step, mask)
        offsets = place.offsets.text
        if guard.scalar is not None:
            with self.at(depth):
                zero = self.spread(integer(0), self.lanes)
                ty = wide("i64", self.lanes)
                offsets = self.em.op(f"select i1 {guard.scalar.text}, {ty} {offsets}, {ty} {zero}")
        with self.at(depth):
            return self._gather(dtype, safe, offsets, mask)

    def _fetch_columns(self, pointer: Value) -> None:
        """Rows of a tile lie far apart: no hardware foresees what its next columns read."""
        if self.ahead and pointer.depth == self.depth:
            place = self.em.op(f"getelementptr i8, ptr {pointer.text}, i64 {self.ahead}", "ahead")
            self.em.line(f"call void @llvm.prefetch.p0(ptr {place}, i32 0, i32 3, i32 1)")

    def native_mask(self, dtype: DType) -> bool:
        """Whether masked accesses of this dtype are instructions."""
        size = DTYPES[dtype].bytes
        return self.target.isa == "avx512" or (self.target.isa == "avx2" and size >= 4)

    def _load_vector(self, dtype: DType, pointer: str, mask: str | None) -> str:
        em, lanes, size = self.em, self.lanes, DTYPES[dtype].bytes
        ty = wide(MEMORY[dtype], lanes)
        if mask is None:
            return em.op(f"load {ty}, ptr {pointer}, align {size}", "x")
        if not self.native_mask(dtype):
            return self._load_each(dtype, pointer, iota("i64", lanes), mask)
        name = f"llvm.masked.load.{suffix(MEMORY[dtype], lanes)}.p0"
        return em.op(
            f"call {ty} @{name}(ptr align {size} {pointer}, <{lanes} x i1> {mask}, "
            f"{ty} zeroinitializer)",
            "x",
        )

    def _load_step(self, dtype: DType, pointer: str, step: int, mask: str | None) -> str:
        """Lanes `step` elements apart; the gaps are not read."""
        em, lanes, element = self.em, self.lanes, MEMORY[dtype]
        ty, size = wide(element, lanes * step), DTYPES[dtype].bytes
        name = f"llvm.masked.load.{suffix(element, lanes * step)}.p0"
        where = self._with_gaps("i1", mask or "splat (i1 true)", step)
        x = em.op(
            f"call {ty} @{name}(ptr align {size} {pointer}, {where}, {ty} zeroinitializer)", "x"
        )
        some = ", ".join(f"i32 {i * step}" for i in range(lanes))
        return em.op(f"shufflevector {ty} {x}, {ty} poison, <{lanes} x i32> <{some}>", "x")

    def _with_gaps(self, element: str, x: str, step: int) -> str:
        """Typed: every `step`th lane from x, zeros between."""
        lanes, ty = self.lanes, wide(element, self.lanes)
        picked = (f"i32 {i // step if i % step == 0 else lanes}" for i in range(lanes * step))
        which = f"<{lanes * step} x i32> <{', '.join(picked)}>"
        x = self.em.op(f"shufflevector {ty} {x}, {ty} zeroinitializer, {which}", "gaps")
        return f"{wide(element, lanes * step)} {x}"

    def _store_step(self, dtype: DType, pointer: str, step: int, x: str, mask: str | None) -> None:
        element, size = MEMORY[dtype], DTYPES[dtype].bytes
        apart = self._with_gaps(element, self.to_memory(dtype, x, self.lanes), step)
        where = self._with_gaps("i1", mask or "splat (i1 true)", step)
        name = f"llvm.masked.store.{suffix(element, self.lanes * step)}.p0"
        self.em.line(f"call void @{name}({apart}, ptr align {size} {pointer}, {where})")

    def _gather(self, dtype: DType, pointer: str, offsets: str, mask: str | None) -> str:
        lanes, size = self.lanes, DTYPES[dtype].bytes
        if size < 4 or not self.native_mask(dtype):
            return self._load_each(dtype, pointer, offsets, mask)
        element = MEMORY[dtype]
        ty, index = wide(element, lanes), wide("i64", lanes)
        places = self.em.op(f"getelementptr {element}, ptr {pointer}, {index} {offsets}", "places")
        active = mask or "splat (i1 true)"
        name = f"llvm.masked.gather.{suffix(element, lanes)}.{suffix('ptr', lanes)}"
        return self.em.op(
            f"call {ty} @{name}(<{lanes} x ptr> align {size} {places}, "
            f"<{lanes} x i1> {active}, {ty} zeroinitializer)",
            "x",
        )

    def _load_each(self, dtype: DType, pointer: str, offsets: str, mask: str | None) -> str:
        """Lane by lane, inactive ones from the zeros."""
        em, lanes, element = self.em, self.lanes, MEMORY[dtype]
        size = DTYPES[dtype].bytes
        ptrs = wide("ptr", lanes)
        places = em.op(f"getelementptr {element}, ptr {pointer}, {wide('i64', lanes)} {offsets}")
        if mask is not None:
            zeros = f"splat (ptr {ZEROS})"
            places = em.op(f"select <{lanes} x i1> {mask}, {ptrs} {places}, {ptrs} {zeros}")
        ty, out = wide(element, lanes), "poison"
        for i in range(lanes):
            p = em.op(f"extractelement {ptrs} {places}, i64 {i}")
            x = em.op(f"load {element}, ptr {p}, align {size}")
            out = em.op(f"insertelement {ty} {out}, {element} {x}, i64 {i}")
        return out

    def fetch_ahead(self, buffer: Buffer, place: Place, affine: Dim, var: str) -> None:
        """Asks for what lies here at the next value of a variable; past the end it does nothing."""
        form = self.merged(affine).linear_in(var)
        if form is None or form[0] == ZERO:
            return
        step = self.uniform(form[0])
        with self.at(max(place.pointer.depth, step.depth)):
            at = flow.offset(self.em, place.pointer.text, step.text, MEMORY[buffer.type.dtype])
            self.em.line(f"call void @llvm.prefetch.p0(ptr {at}, i32 0, i32 3, i32 1)")

    # ---- representation -------------------------------------------------------------------------

    def to_register(self, dtype: DType, x: str, lanes: int) -> str:
        if dtype in HALVES:
            return self.ops.halves.unpack(dtype, x, lanes)
        if dtype == "bool":
            zero = "0" if lanes == 1 else "zeroinitializer"
            return self.em.op(f"icmp ne {wide('i8', lanes)} {x}, {zero}")
        return x

    def to_memory(self, dtype: DType, x: str, lanes: int) -> str:
        if dtype in HALVES:
            return self.ops.halves.pack(dtype, x, lanes)
        if dtype == "bool":
            return self.em.op(f"zext {wide('i1', lanes)} {x} to {wide('i8', lanes)}")
        return x

    # ---- writing --------------------------------------------------------------------------------

    def write(self, buffer: Buffer, place: Place, value: Value, join: str, guard: Guard) -> None:
        """`element = value`, or joined with it by `join`; lanes that may coincide one by one."""
        lanes = self.lanes if self.vector is not None else 1
        condition = guard.scalar.text if guard.scalar is not None else "true"
        mask = None if guard.mask is None else guard.mask.text
        dtype = buffer.type.dtype
        text = self.spread(value, lanes)
        offsets = self._distinct(place, join)
        with flow.when(self.em, condition):
            if lanes == 1:
                self._write_scalar(dtype, place.pointer.text, text, join)
            elif place.kind == "unit":
                self._write_unit(dtype, place.pointer.text, text, mask, join)
            elif place.step and not join:
                self._store_step(dtype, place.pointer.text, place.step, text, mask)
            elif offsets is not None:
                self._write_each(dtype, place.pointer.text, offsets, text, mask, join)
            else:
                assert place.offsets is not None
                self._scatter(dtype, place.pointer.text, place.offsets.text, text, mask)
        self.forget(buffer.name)

    def _distinct(self, place: Place, join: str) -> str | None:
        """Offsets of lanes that must be written one by one, None where they need not."""
        if place.kind == "same" and self.vector is not None:
            return "zeroinitializer"
        if place.kind == "any" and join:
            assert place.offsets is not None
            return place.offsets.text
        return None

    def _joined(self, join: str, dtype: DType, old: str, x: str, lanes: int) -> str:
        old = self.to_register(dtype, old, lanes)
        return self.ops.apply(join, dtype, dtype, (old, x), lanes)

    def _write_scalar(self, dtype: DType, pointer: str, x: str, join: str) -> None:
        element, size = MEMORY[dtype], DTYPES[dtype].bytes
        if join:
            old = self.em.op(f"load {element}, ptr {pointer}, align {size}", "old")
            x = self._joined(join, dtype, old, x, 1)
        x = self.to_memory(dtype, x, 1)
        self.em.line(f"store {element} {x}, ptr {pointer}, align {size}")

    def _write_unit(self, dtype: DType, pointer: str, x: str, mask: str | None, join: str) -> None:
        lanes, size = self.lanes, DTYPES[dtype].bytes
        if join:
            x = self._joined(join, dtype, self._load_vector(dtype, pointer, mask), x, lanes)
        x = self.to_memory(dtype, x, lanes)
        ty = wide(MEMORY[dtype], lanes)
        if mask is None:
            self.em.line(f"store {ty} {x}, ptr {pointer}, align {size}")
            return
        name = f"llvm.masked.store.{suffix(MEMORY[dtype], lanes)}.p0"
        self.em.line(
            f"call void @{name}({ty} {x}, ptr align {size} {pointer}, <{lanes} x i1> {mask})"
        )

    def _scatter(self, dtype: DType, pointer: str, offsets: str, x: str, mask: str | None) -> None:
        lanes, element, size = self.lanes, MEMORY[dtype], DTYPES[dtype].bytes
        x = self.to_memory(dtype, x, lanes)
        index = wide("i64", lanes)
        places = self.em.op(f"getelementptr {element}, ptr {pointer}, {index} {offsets}", "places")
        self.em.line(
            f"call void @llvm.masked.scatter.{suffix(element, lanes)}.{suffix('ptr', lanes)}("
            f"{wide(element, lanes)} {x}, <{lanes} x ptr> align {size} {places}, "
            f"<{lanes} x i1> {mask or 'splat (i1 true)'})"
        )

    def _write_each(
        self, dtype: DType, pointer: str, offsets: str, x: str, mask: str | None, join: str
    ) -> None:
        em, lanes = self.em, self.lanes
        ty = wide(REGISTER[dtype], lanes)
        for i in range(lanes):
            active = "true"
            if mask is not None:
                active = em.op(f"extractelement <{lanes} x i1> {mask}, i64 {i}")
            with flow.when(em, active):
                at = em.op(f"extractelement {wide('i64', lanes)} {offsets}, i64 {i}")
                p = em.op(f"getelementptr {MEMORY[dtype]}, ptr {pointer}, i64 {at}")
                one = em.op(f"extractelement {ty} {x}, i64 {i}")
                self._write_scalar(dtype, p, one, join)


def flat(buffer: Buffer, index: Sequence[Expr]) -> Dim:
    """The affine part of an element's number."""
    pairs = zip(index, strides(buffer), strict=True)
    return dim_sum(i.dim * stride for i, stride in pairs if isinstance(i, Idx))


def strides(buffer: Buffer) -> tuple[Dim, ...]:
    """In elements, row-major."""
    return _strides(buffer.type.shape)


@lru_cache(maxsize=4096)
def _strides(shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    return tuple(dim_prod(shape[i + 1 :]) for i in range(len(shape)))
