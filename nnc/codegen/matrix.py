"""Register tiles of words of four bytes by x86's matrix unit (AMX): up to 32 rows at once.

    void nnrt_matrix_<dtype>_begin(height)
    void nnrt_matrix_<dtype>(a, b, b_k, kc, tile, add, height, vectors)
    void nnrt_matrix_<dtype>_end()

are a micro-kernel as `nnc.codegen.tile_kernels` has them, of height 15 to 32 and one or two
vectors, and what stands around the kernels of one height (it takes as long as several steps of k).
Steps of 16 words of k go through the unit, what is left of k through the vector kernels; integers
wrap, so the bits are the same. The unit is asked of the system once in a process; where that is
refused the vector kernels do it all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nnc.codegen import flow
from nnc.codegen.emit import Emitter

ROWS = 32
_STEP = 16  # words of k, rows and columns in a tile
_PANEL = 128  # bytes between k of packed panels
_AHEAD = 2 * _STEP * _PANEL  # bytes from what is read of them to what is fetched
_PARAMETERS = "ptr %a, ptr %b, i64 %b_k, i64 %kc, ptr %tile, i32 %add, i64 %height, i64 %vectors"
_ASK = 158, 0x1023, 18  # arch_prctl, "request permission", the tile data


def _config(height: int) -> str:
    """The memory that sets up the unit: sums in 0 to 3, A in 4 and 5, B in 6 and 7."""
    top, low = min(height, _STEP), max(height - _STEP, 0)
    rows = (top, top, low, low, top, low, _STEP, _STEP)
    columns = [b for r in rows for b in ((64 if r else 0), 0)]
    data = [1, *[0] * 15, *columns, *[0] * 16, *rows, *[0] * 8]
    return "[64 x i8] [" + ", ".join(f"i8 {x}" for x in data) + "]"


def _load(tile: int, place: str, apart: str) -> str:
    return f"call void @llvm.x86.tileloadd64(i8 {tile}, ptr {place}, i64 {apart})"


def _sums(verb: str, low: bool, wide: bool) -> str:
    """Clears the sums, or moves them from or to memory."""
    lines = []
    for tile in [n for n in range(4) if (low or n < 2) and (wide or n % 2 == 0)]:
        place = ("%tile", "%tile.right", "%below", "%below.right")[tile]
        if verb == "tilezero":
            lines.append(f"call void @llvm.x86.tilezero(i8 {tile})")
        else:
            lines.append(f"call void @llvm.x86.{verb}64(i8 {tile}, ptr {place}, i64 %apart)")
    return "\n  ".join(lines)


def _products(instruction: str, name: str, low: bool, wide: bool) -> str:
    """One step of k."""

    def product(sums: int, a: int, b: int) -> str:
        return f"call void @llvm.x86.{instruction}(i8 {sums}, i8 {a}, i8 {b})"

    lines = [_load(4, f"%{name}.a", "%a_k"), _load(6, f"%{name}.b", "%b_k"), product(0, 4, 6)]
    if wide:
        right = f"%{name}.right = getelementptr i8, ptr %{name}.b, i64 64"
        lines += [right, _load(7, f"%{name}.right", "%b_k"), product(1, 4, 7)]
    if low:
        below = f"%{name}.below = getelementptr i8, ptr %{name}.a, i64 %a.skip"
        lines += [below, _load(5, f"%{name}.below", "%a_k"), product(2, 5, 6)]
    if low and wide:
        lines.append(product(3, 5, 7))
    return "\n  ".join(lines)


def _fetch(name: str, wide: bool) -> str:
    """Asks for the part of a packed panel that is read two steps later."""
    lines = [f"%{name}.far = getelementptr i8, ptr %{name}.b, i64 %ahead"]
    for at in range(0, _STEP * _PANEL, 64 if wide else _PANEL):
        line = f"%{name}.line.{at}"
        lines.append(f"{line} = getelementptr i8, ptr %{name}.far, i64 {at}")
        lines.append(f"call void @llvm.prefetch.p0(ptr {line}, i32 0, i32 3, i32 1)")
    return "\n  ".join(lines)


def _variant(dtype: str, low: bool, wide: bool) -> str:
    name = f"v{int(low)}{int(wide)}"
    # Which operand has a sign.
    instruction = "tdpbusd" if dtype == "dot4" else "tdpbsud"
    return f"""\
{name}:
  br i1 %fresh, label %{name}.zero, label %{name}.load
{name}.zero:
  {_sums("tilezero", low, wide)}
  br label %{name}.run
{name}.load:
  {_sums("tileloadd", low, wide)}
  br label %{name}.run
{name}.run:
  %{name}.a = phi ptr [ %a, %{name}.zero ], [ %a, %{name}.load ], [ %{name}.a.next, %{name}.run ]
  %{name}.b = phi ptr [ %b, %{name}.zero ], [ %b, %{name}.load ], [ %{name}.b.next, %{name}.run ]
  %{name}.left = phi i64 [ %steps, %{name}.zero ], [ %steps, %{name}.load ],
                         [ %{name}.less, %{name}.run ]
  {_products(instruction, name, low, wide)}
  {_fetch(name, wide)}
  %{name}.a.next = getelementptr i8, ptr %{name}.a, i64 64
  %{name}.b.next = getelementptr i8, ptr %{name}.b, i64 %b_step
  %{name}.less = sub i64 %{name}.left, 1
  %{name}.more = icmp ne i64 %{name}.less, 0
  br i1 %{name}.more, label %{name}.run, label %{name}.done
{name}.done:
  {_sums("tilestored", low, wide)}
  br label %finish
"""


def definitions(dtype: str, a_row: int, vector_rows: int) -> str:
    """The kernel, `a_row` words between rows of A; vector kernels have `vector_rows` rows."""
    configs = ", ".join(_config(h) for h in range(1, ROWS + 1))
    variants = "".join(
        _variant(dtype, low, wide) for low in (False, True) for wide in (False, True)
    )
    call, leaf, what = _ASK
    return f"""\
@nnrt_matrix_{dtype}_set_up = internal constant [{ROWS} x [64 x i8]] [{configs}], align 64
@nnrt_matrix_{dtype}_asked = internal global i32 0

define internal i1 @nnrt_matrix_{dtype}_granted() nounwind {{
entry:
  %known = load atomic i32, ptr @nnrt_matrix_{dtype}_asked monotonic, align 4
  %new = icmp eq i32 %known, 0
  br i1 %new, label %ask, label %done
ask:
  %refused = call i64 (i64, ...) @syscall(i64 {call}, i64 {leaf}, i64 {what})
  %bad = icmp ne i64 %refused, 0
  %answer = select i1 %bad, i32 2, i32 1
  store atomic i32 %answer, ptr @nnrt_matrix_{dtype}_asked monotonic, align 4
  br label %done
done:
  %now = phi i32 [ %known, %entry ], [ %answer, %ask ]
  %granted = icmp eq i32 %now, 1
  ret i1 %granted
}}

define internal void @nnrt_matrix_{dtype}_rows({_PARAMETERS}) nounwind noinline {{
entry:
  %kind = sub i64 %vectors, 1
  %width = mul i64 %vectors, 64
  br label %next
next:
  %at = phi i64 [ 0, %entry ], [ %end, %next ]
  %left = sub i64 %height, %at
  %few = icmp ult i64 %left, {vector_rows}
  %some = select i1 %few, i64 %left, i64 {vector_rows}
  %index = sub i64 %some, 1
  %place = getelementptr [3 x ptr], ptr @nnrt_tiles_{dtype}, i64 %index, i64 %kind
  %kernel = load ptr, ptr %place
  %a.skip = mul i64 %at, {4 * a_row}
  %a.here = getelementptr i8, ptr %a, i64 %a.skip
  %tile.skip = mul i64 %at, %width
  %tile.here = getelementptr i8, ptr %tile, i64 %tile.skip
  call void %kernel(ptr %a.here, ptr %b, i64 %b_k, i64 0, i64 %kc, ptr %tile.here, i32 %add)
  %end = add i64 %at, %some
  %more = icmp ult i64 %end, %height
  br i1 %more, label %next, label %done
done:
  ret void
}}

define void @nnrt_matrix_{dtype}_begin(i64 %height) nounwind {{
entry:
  %granted = call i1 @nnrt_matrix_{dtype}_granted()
  br i1 %granted, label %matrix, label %done
matrix:
  %number = sub i64 %height, 1
  %config = getelementptr [64 x i8], ptr @nnrt_matrix_{dtype}_set_up, i64 %number
  call void @llvm.x86.ldtilecfg(ptr %config)
  br label %done
done:
  ret void
}}

define void @nnrt_matrix_{dtype}_end() nounwind {{
entry:
  %granted = call i1 @nnrt_matrix_{dtype}_granted()
  br i1 %granted, label %matrix, label %done
matrix:
  call void @llvm.x86.tilerelease()
  br label %done
done:
  ret void
}}

define void @nnrt_matrix_{dtype}({_PARAMETERS}) nounwind {{
entry:
  %steps = udiv i64 %kc, {_STEP}
  %any = icmp ne i64 %steps, 0
  br i1 %any, label %ask, label %vector
ask:
  %granted = call i1 @nnrt_matrix_{dtype}_granted()
  br i1 %granted, label %matrix, label %vector
vector:
  call void @nnrt_matrix_{dtype}_rows({_PARAMETERS})
  ret void
matrix:
  %packed = icmp eq i64 %b_k, {_PANEL}
  %ahead = select i1 %packed, i64 {_AHEAD}, i64 0
  %a_k = add i64 0, {4 * a_row}
  %a.skip = mul i64 %a_k, {_STEP}
  %b_step = mul i64 %b_k, {_STEP}
  %apart = mul i64 %vectors, 64
  %below.skip = mul i64 %apart, {_STEP}
  %below = getelementptr i8, ptr %tile, i64 %below.skip
  %tile.right = getelementptr i8, ptr %tile, i64 64
  %below.right = getelementptr i8, ptr %below, i64 64
  %fresh = icmp eq i32 %add, 0
  %low = icmp ugt i64 %height, {_STEP}
  %wide = icmp eq i64 %vectors, 2
  %low.bit = select i1 %low, i32 2, i32 0
  %wide.bit = zext i1 %wide to i32
  %which = or i32 %low.bit, %wide.bit
  switch i32 %which, label %v11 [ i32 0, label %v00 i32 1, label %v01 i32 2, label %v10 ]
{variants}finish:
  %rest = urem i64 %kc, {_STEP}
  %over = icmp ne i64 %rest, 0
  br i1 %over, label %tail, label %done
tail:
  %k.done = sub i64 %kc, %rest
  %a.done = mul i64 %k.done, 4
  %a.tail = getelementptr i8, ptr %a, i64 %a.done
  %b.done = mul i64 %k.done, %b_k
  %b.tail = getelementptr i8, ptr %b, i64 %b.done
  call void @nnrt_matrix_{dtype}_rows(ptr %a.tail, ptr %b.tail, i64 %b_k, i64 %rest, ptr %tile,
                                      i32 1, i64 %height, i64 %vectors)
  br label %done
done:
  ret void
}}
"""


def outer_declarations(dtype: str) -> tuple[str, ...]:
    """Lines for a module that calls the kernels."""
    return (
        f"declare void @nnrt_matrix_{dtype}_begin(i64)",
        f"declare void @nnrt_matrix_{dtype}_end()",
    )


def set_up(em: Emitter, dtype: str, height: str, vector_rows: int, state: str) -> None:
    """Before kernels of one height. `state`: memory for the height it is set up for (0: none)."""
    if not vector_rows:
        return
    high = flow.compare(em, "sgt", height, str(vector_rows))
    known = em.op(f"load i64, ptr {state}", "known")
    other = flow.compare(em, "ne", known, height)
    with flow.when(em, flow.conjunction(em, high, other)):
        em.line(f"call void @nnrt_matrix_{dtype}_begin(i64 {height})")
        em.line(f"store i64 {height}, ptr {state}")


@contextmanager
def used(em: Emitter, dtype: str, vector_rows: int, state: str) -> Iterator[None]:
    """Code inside may set up the unit."""
    if not vector_rows:
        yield
        return
    em.line(f"store i64 0, ptr {state}")
    yield
    known = em.op(f"load i64, ptr {state}", "known")
    with flow.when(em, flow.compare(em, "ne", known, "0")):
        em.line(f"call void @nnrt_matrix_{dtype}_end()")


def kernel(name: str, dtype: str, height: int, vectors: int) -> str:
    """A micro-kernel of one height and width."""
    em = Emitter()
    em.label("entry")
    sizes = f"i64 {height}, i64 {vectors}"
    em.line(
        f"tail call void @nnrt_matrix_{dtype}(ptr %a, ptr %b, i64 %b_k, i64 %kc, ptr %tile, "
        f"i32 %add, {sizes})"
    )
    em.line("ret void")
    head = f"define void @{name}(ptr %a, ptr %b, i64 %b_k, i64 %b_panel, i64 %kc, "
    return f"{head}ptr %tile, i32 %add) nounwind {{\n{em.text()}\n}}\n"


def declarations(dtype: str) -> tuple[str, ...]:
    """Lines for a module that holds `definitions`."""
    instruction = "tdpbusd" if dtype == "dot4" else "tdpbsud"
    return (
        "declare i64 @syscall(i64, ...)",
        "declare void @llvm.x86.ldtilecfg(ptr)",
        "declare void @llvm.x86.tilerelease()",
        "declare void @llvm.x86.tilezero(i8)",
        "declare void @llvm.x86.tileloadd64(i8, ptr, i64)",
        "declare void @llvm.x86.tilestored64(i8, ptr, i64)",
        f"declare void @llvm.x86.{instruction}(i8, i8, i8)",
    )
