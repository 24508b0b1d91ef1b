"""A hand-made program for tests of the runtime: manifest and LLVM IR, no compiler."""

from __future__ import annotations

from functools import cache
from typing import Any

import llvmlite.binding as llvm

from nnc.ir.signature import (
    ArgSig,
    Check,
    Differentiated,
    ExportSig,
    Leaf,
    Manifest,
    ModuleSig,
    Native,
    ResultSig,
)
from nnc.lang.dims import ZERO, Dim
from nnc.lang.types import TensorType

B, N, T = Dim.of("B"), Dim.of("N"), Dim.of("T")


def tensor(dtype: str, *shape: Dim | int | str) -> TensorType:
    return TensorType(dtype, tuple(Dim.of(s) for s in shape))


def arg(text: str, type_: TensorType, **more: Any) -> ArgSig:
    name, _, written = text.partition(": ")
    return ArgSig(name, "tensor", type_, text=written, place="fake.nn:9", **more)


def result(type_: TensorType, packs: tuple[int, ...] = ()) -> ResultSig:
    return ResultSig("tensor", type_, packs=packs)


NET = ModuleSig(
    "Net",
    "Net",
    (
        Leaf("fc.weight", tensor("f32", 3), "param", "fake.nn:2"),
        Leaf("fc.bias", tensor("f32"), "param", "fake.nn:3"),
        Leaf("count", tensor("i32"), "state", "fake.nn:4"),
    ),
    init="net_init",
    place="fake.nn:1",
)
SGD = ModuleSig(
    "SGD(Net)",
    "SGD",
    (
        Leaf("m.fc.weight", tensor("f32", 3), "state"),
        Leaf("m.fc.bias", tensor("f32"), "state"),
    ),
    args={"P": "Net"},
    trees={"P": "Net"},
    defaults={"momentum": "0.0", "decay": "0.0"},
    place="std/optim.nn:1",
)

# Loops run over a flat counter; all tensors are contiguous.
IR = """
define i32 @net_init(ptr %c, ptr %d, ptr %a) {
  %seed.p = load ptr, ptr %a
  %seed = load i64, ptr %seed.p
  %f = sitofp i64 %seed to float
  %w.at = getelementptr ptr, ptr %a, i64 2
  %w = load ptr, ptr %w.at
  store float %f, ptr %w
  %w1 = getelementptr float, ptr %w, i64 1
  store float 1.0, ptr %w1
  %w2 = getelementptr float, ptr %w, i64 2
  store float 2.0, ptr %w2
  %b.at = getelementptr ptr, ptr %a, i64 3
  %b = load ptr, ptr %b.at
  store float 0.5, ptr %b
  %n.at = getelementptr ptr, ptr %a, i64 4
  %n = load ptr, ptr %n.at
  store i32 0, ptr %n
  ret i32 0
}

; y := y + a*x, result the number of elements; args a, x, y, result
define i32 @axpy(ptr %c, ptr %d, ptr %args) {
entry:
  %n = load i64, ptr %d
  %a.p = load ptr, ptr %args
  %a = load float, ptr %a.p
  %x.at = getelementptr ptr, ptr %args, i64 1
  %x = load ptr, ptr %x.at
  %y.at = getelementptr ptr, ptr %args, i64 2
  %y = load ptr, ptr %y.at
  %r.at = getelementptr ptr, ptr %args, i64 3
  %r = load ptr, ptr %r.at
  store i64 %n, ptr %r
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %i1, %loop ]
  %xi = getelementptr float, ptr %x, i64 %i
  %yi = getelementptr float, ptr %y, i64 %i
  %xv = load float, ptr %xi
  %yv = load float, ptr %yi
  %p = fmul float %a, %xv
  %s = fadd float %p, %yv
  store float %s, ptr %yi
  %i1 = add i64 %i, 1
  %more = icmp slt i64 %i1, %n
  br i1 %more, label %loop, label %done
done:
  ret i32 0
}

; r = a*x for any number of axes, through the workspace; args x, a, r
define i32 @scale(ptr %c, ptr %d, ptr %args) {
entry:
  %n = load i64, ptr %d
  %ws = load ptr, ptr %c
  %x = load ptr, ptr %args
  %a.at = getelementptr ptr, ptr %args, i64 1
  %a.p = load ptr, ptr %a.at
  %a = load float, ptr %a.p
  %r.at = getelementptr ptr, ptr %args, i64 2
  %r = load ptr, ptr %r.at
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %i1, %loop ]
  %xi = getelementptr float, ptr %x, i64 %i
  %ti = getelementptr float, ptr %ws, i64 %i
  %ri = getelementptr float, ptr %r, i64 %i
  %xv = load float, ptr %xi
  %p = fmul float %a, %xv
  store float %p, ptr %ti
  %t = load float, ptr %ti
  store float %t, ptr %ri
  %i1 = add i64 %i, 1
  %more = icmp slt i64 %i1, %n
  br i1 %more, label %loop, label %done
done:
  ret i32 0
}

; dx = a*dy, da = sum(x*dy); args x, a, dy, dx, da
define i32 @scale_back(ptr %c, ptr %d, ptr %args) {
entry:
  %n = load i64, ptr %d
  %x = load ptr, ptr %args
  %a.at = getelementptr ptr, ptr %args, i64 1
  %a.p = load ptr, ptr %a.at
  %a = load float, ptr %a.p
  %dy.at = getelementptr ptr, ptr %args, i64 2
  %dy = load ptr, ptr %dy.at
  %dx.at = getelementptr ptr, ptr %args, i64 3
  %dx = load ptr, ptr %dx.at
  %da.at = getelementptr ptr, ptr %args, i64 4
  %da = load ptr, ptr %da.at
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %i1, %loop ]
  %sum = phi float [ 0.0, %entry ], [ %sum1, %loop ]
  %xi = getelementptr float, ptr %x, i64 %i
  %dyi = getelementptr float, ptr %dy, i64 %i
  %dxi = getelementptr float, ptr %dx, i64 %i
  %xv = load float, ptr %xi
  %dyv = load float, ptr %dyi
  %p = fmul float %a, %dyv
  store float %p, ptr %dxi
  %q = fmul float %xv, %dyv
  %sum1 = fadd float %sum, %q
  %i1 = add i64 %i, 1
  %more = icmp slt i64 %i1, %n
  br i1 %more, label %loop, label %done
done:
  store float %sum1, ptr %da
  ret i32 0
}

; r[b] = fc.weight . x[b] + fc.bias; args weight, bias, count, x, r; dims B
define i32 @predict(ptr %c, ptr %d, ptr %args) {
entry:
  %n = load i64, ptr %d
  %w = load ptr, ptr %args
  %b.at = getelementptr ptr, ptr %args, i64 1
  %b = load ptr, ptr %b.at
  %x.at = getelementptr ptr, ptr %args, i64 3
  %x = load ptr, ptr %x.at
  %r.at = getelementptr ptr, ptr %args, i64 4
  %r = load ptr, ptr %r.at
  %bias = load float, ptr %b
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %i1, %loop ]
  %row = mul i64 %i, 3
  %x0 = getelementptr float, ptr %x, i64 %row
  %x1 = getelementptr float, ptr %x0, i64 1
  %x2 = getelementptr float, ptr %x0, i64 2
  %w1 = getelementptr float, ptr %w, i64 1
  %w2 = getelementptr float, ptr %w, i64 2
  %a0 = load float, ptr %x0
  %a1 = load float, ptr %x1
  %a2 = load float, ptr %x2
  %b0 = load float, ptr %w
  %b1 = load float, ptr %w1
  %b2 = load float, ptr %w2
  %p0 = fmul float %a0, %b0
  %p1 = fmul float %a1, %b1
  %p2 = fmul float %a2, %b2
  %s0 = fadd float %p0, %bias
  %s1 = fadd float %s0, %p1
  %s2 = fadd float %s1, %p2
  %ri = getelementptr float, ptr %r, i64 %i
  store float %s2, ptr %ri
  %i1 = add i64 %i, 1
  %more = icmp slt i64 %i1, %n
  br i1 %more, label %loop, label %done
done:
  ret i32 0
}

; x[i] with a check; args x, i, r
define i32 @pick(ptr %c, ptr %d, ptr %args) {
entry:
  %n = load i64, ptr %d
  %x = load ptr, ptr %args
  %i.at = getelementptr ptr, ptr %args, i64 1
  %i.p = load ptr, ptr %i.at
  %i = load i32, ptr %i.p
  %wide = sext i32 %i to i64
  %inside = icmp ult i64 %wide, %n
  br i1 %inside, label %read, label %fail
read:
  %r.at = getelementptr ptr, ptr %args, i64 2
  %r = load ptr, ptr %r.at
  %xi = getelementptr float, ptr %x, i64 %wide
  %v = load float, ptr %xi
  store float %v, ptr %r
  ret i32 0
fail:
  %site = getelementptr i64, ptr %c, i64 2
  store i64 1, ptr %site
  %value = getelementptr i64, ptr %c, i64 3
  store i64 %wide, ptr %value
  %extent = getelementptr i64, ptr %c, i64 4
  store i64 %n, ptr %extent
  ret i32 1
}

; seed*1000 + step; count of net += 1; args weight, bias, count, seed, step, r
define i32 @draw(ptr %c, ptr %d, ptr %args) {
  %n.at = getelementptr ptr, ptr %args, i64 2
  %n.p = load ptr, ptr %n.at
  %n = load i32, ptr %n.p
  %n1 = add i32 %n, 1
  store i32 %n1, ptr %n.p
  %seed.at = getelementptr ptr, ptr %args, i64 3
  %seed.p = load ptr, ptr %seed.at
  %seed = load i64, ptr %seed.p
  %step.at = getelementptr ptr, ptr %args, i64 4
  %step.p = load ptr, ptr %step.at
  %step = load i64, ptr %step.p
  %t = mul i64 %seed, 1000
  %s = add i64 %t, %step
  %r.at = getelementptr ptr, ptr %args, i64 5
  %r = load ptr, ptr %r.at
  store i64 %s, ptr %r
  ret i32 0
}

; T - 1 elements of an i32[B, T + 1] argument, and P; args tokens, r
define i32 @sizes(ptr %c, ptr %d, ptr %args) {
  %b = load i64, ptr %d
  %t.at = getelementptr i64, ptr %d, i64 1
  %t = load i64, ptr %t.at
  %p.at = getelementptr i64, ptr %d, i64 2
  %p = load i64, ptr %p.at
  %x = mul i64 %b, 10000
  %y = mul i64 %t, 100
  %z = add i64 %x, %y
  %s = add i64 %z, %p
  %r.at = getelementptr ptr, ptr %args, i64 1
  %r = load ptr, ptr %r.at
  store i64 %s, ptr %r
  ret i32 0
}
"""

F32 = tensor("f32")
EXPORTS = (
    ExportSig(
        "axpy",
        "axpy",
        (
            arg("a: f32", F32, default=2.0),
            arg("x: f32[N]", tensor("f32", N)),
            arg("y: f32[N]", tensor("f32", N), inout=True),
        ),
        (result(tensor("i64")),),
        False,
        ("N",),
        place="fake.nn:10",
        text="export def axpy(a: f32 = 2.0, x: f32[N], inout y: f32[N]) -> i64",
    ),
    ExportSig(
        "scale",
        "scale",
        (arg("x: f32[..N]", tensor("f32", N), packs=(0,)), arg("a: f32", F32)),
        (result(tensor("f32", N), (0,)),),
        False,
        ("N",),
        place="fake.nn:14",
        text="export def scale(x: f32[..N], a: f32) -> f32[..N]",
    ),
    ExportSig(
        "predict",
        "predict",
        (
            ArgSig("net", "module", module="Net", text="Net", place="fake.nn:18"),
            arg("x: f32[B, 3]", tensor("f32", B, 3)),
        ),
        (result(tensor("f32", B)),),
        False,
        ("B",),
        place="fake.nn:18",
        text="export def predict(net: Net, x: f32[B, 3]) -> f32[B]",
    ),
    ExportSig(
        "pick",
        "pick",
        (arg("x: f32[N]", tensor("f32", N)), arg("i: i32", tensor("i32"))),
        (result(F32),),
        False,
        ("N",),
        place="fake.nn:22",
        text="export def pick(x: f32[N], i: i32) -> f32",
    ),
    ExportSig(
        "draw",
        "draw",
        (
            ArgSig("net", "module", module="Net", inout=True, text="Net", place="fake.nn:26"),
            ArgSig("seed", "rng", tensor("i64")),
            ArgSig("step", "rng", tensor("i64")),
        ),
        (result(tensor("i64")),),
        True,
        (),
        place="fake.nn:26",
        text="export def draw(inout net: Net) -> (i64,)",
    ),
    ExportSig(
        "sizes",
        "sizes",
        (arg("tokens: i32[B, T + 1]", tensor("i32", B, T + 1)), ArgSig("P", "dim", text="dim")),
        (result(tensor("i64")),),
        False,
        ("B", "T", "P"),
        checks=(
            Check(Dim.of(1024) - T, False, "T <= 1024", "gpt2_run.nn:9", "1024 is N (gpt2.nn:45)"),
            Check(Dim.of("B") % 2, True, "B % 2 == 0", "gpt2_run.nn:9"),
        ),
        place="fake.nn:30",
        text="export def sizes(tokens: i32[B, T + 1], P: dim) -> i64",
    ),
    ExportSig(
        "make",
        "make",
        (ArgSig("opt", "module", module="SGD(Net)", inout=True, text="SGD(Net)"),),
        (),
        False,
        (),
        place="fake.nn:34",
        text="export def make(inout opt: SGD(Net))",
    ),
)


def native(symbol: str, dims: tuple[str, ...] = (), arena: Dim = ZERO, **more: Any) -> Native:
    return Native(symbol, 0, dims, arena, Dim.of(64), Dim.of(10), **more)


MANIFEST = Manifest(
    "fake.nn",
    "",
    (NET, SGD),
    EXPORTS,
    (
        native("net_init"),
        native("axpy", ("N",)),
        native("scale", ("N",), N * 4),
        native("predict", ("B",)),
        native("pick", ("N",), sites=(("fake.nn:23:12", "x[i]"),)),
        native("draw"),
        native("sizes", ("B", "T", "P")),
        native("make"),
    ),
)


def lazy(name: str) -> Differentiated:
    assert name == "scale"
    return Differentiated(
        native("scale", ("N",), N * 4),
        native("scale_back", ("N",)),
        (),
        ("x", "a", "d.0"),
        ("x", "a"),
    )


@cache
def object_code() -> bytes:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(IR)
    module.verify()
    machine = llvm.Target.from_default_triple().create_target_machine(reloc="pic", jit=True)
    code: bytes = machine.emit_object(module)
    return code
