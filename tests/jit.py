"""Compiles IR texts in this process: the least that the tests of codegen need."""

from __future__ import annotations

import ctypes
from functools import cache

import llvmlite.binding as llvm

from nnc.codegen.pool import FUNCTIONS, pool_module
from nnc.codegen.target import Target, host

llvm.initialize_native_target()
llvm.initialize_native_asmprinter()
_alive: list[object] = []  # code must outlive every pointer into it


def optimise(module: llvm.ModuleRef, machine: llvm.TargetMachine, level: int) -> None:
    options = llvm.create_pipeline_tuning_options(speed_level=level)
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)


def build(*texts: str, target: Target | None = None, level: int = 1) -> llvm.ExecutionEngine:
    """One engine holding the modules; externals resolve among them and in the process.

    `level` is that of the middle end: 0 leaves it out.
    """
    machine = (target or host()).machine()
    engine = None
    for text in texts:
        module = llvm.parse_assembly(text)
        module.verify()
        if level:
            optimise(module, machine, level)
        if engine is None:
            engine = llvm.create_mcjit_compiler(module, machine)
        else:
            engine.add_module(module)
    assert engine is not None
    engine.finalize_object()
    _alive.append(engine)
    return engine


def assembly(text: str, target: Target, level: int = 1) -> str:
    machine = target.machine()
    module = llvm.parse_assembly(text)
    module.verify()
    if level:
        optimise(module, machine, level)
    return machine.emit_assembly(module)


def function(engine: llvm.ExecutionEngine, name: str, result: object, *arguments: object) -> object:
    return ctypes.CFUNCTYPE(result, *arguments)(engine.get_function_address(name))  # type: ignore[arg-type]


@cache
def pool() -> int:
    """The address of nnrt_run of this process's only pool, whose functions become known."""
    engine = build(pool_module())
    for name in FUNCTIONS:
        llvm.add_symbol(name, engine.get_function_address(name))
    return int(engine.get_function_address("nnrt_run"))
