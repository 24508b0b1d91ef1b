"""What the generated code runs on: triple, CPU, feature string and vector width."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

# dot4 and dot4r: words of four bytes (`nnc.codegen.tiles`)
DTYPE_BYTES = {"f32": 4, "f64": 8, "i32": 4, "dot4": 4, "dot4r": 4}
LLVM_TYPE = {"f32": "float", "f64": "double", "i32": "i32", "dot4": "i32", "dot4r": "i32"}

_ISA_BYTES = {"avx512": 64, "avx2": 32, "portable": 16}
_ISA_NEEDS = (
    ("avx512", ("avx512f", "avx512vl", "avx512dq", "avx512bw", "fma")),
    ("avx2", ("avx2", "fma")),
)


@dataclass(frozen=True)
class Target:
    """An LLVM target and the instruction set that the tile tables are keyed by.

    `isa` is "avx512", "avx2" or "portable"; `vector_bytes` is the register width that it implies.
    """

    triple: str
    cpu: str
    features: str
    vector_bytes: int
    isa: str

    def lanes(self, dtype: str) -> int:
        """Elements of `dtype` ("f32" or "f64") in one vector register."""
        return self.vector_bytes // DTYPE_BYTES[dtype]

    @property
    def fma(self) -> bool:
        """Whether `llvm.fma` is one instruction here (otherwise it would become a libm call)."""
        return self.isa != "portable" or not self.triple.startswith("x86_64")

    @property
    def vnni(self) -> bool:
        """Whether products of bytes are summed up by one instruction on whole registers."""
        return self.isa == "avx512" and "+avx512vnni" in self.features.split(",")

    @property
    def matrix(self) -> bool:
        """Whether there is a unit that multiplies tiles of bytes (AMX), and a way to ask for it."""
        there = {"+amx-tile", "+amx-int8"} <= set(self.features.split(","))
        return self.vnni and there and "linux" in self.triple

    @property
    def vector_registers(self) -> int:
        return 32 if self.isa == "avx512" or self.triple.startswith("aarch64") else 16

    def machine(self, opt: int = 2, *, jit: bool = True) -> Any:
        """An LLVM TargetMachine; position-independent code unless `jit`."""
        import llvmlite.binding as llvm

        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        return llvm.Target.from_triple(self.triple).create_target_machine(
            cpu=self.cpu,
            features=self.features,
            opt=opt,
            reloc="static" if jit else "pic",
            codemodel="jitdefault" if jit else "default",
            jit=jit,
        )


@cache
def host() -> Target:
    """The machine this process runs on. (Loads LLVM: see `workers.host`.)"""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    isa = next((n for n, need in _ISA_NEEDS if all(features.get(f) for f in need)), "portable")
    return Target(
        triple=llvm.get_default_triple(),
        cpu=llvm.get_host_cpu_name(),
        features=features.flatten(),
        vector_bytes=_ISA_BYTES[isa],
        isa=isa,
    )


def x86(isa: str) -> Target:
    """The plainest x86-64 Linux target of an instruction set, whatever the host is."""
    cpu = {"avx512": "skylake-avx512", "avx2": "haswell", "portable": "x86-64"}[isa]
    return Target("x86_64-unknown-linux-gnu", cpu, "", _ISA_BYTES[isa], isa)
