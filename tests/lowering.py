"""Runs a Graph through fuse, lower and memory, and compares the Program with the interpreter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nnc.ir.graph import Graph
from nnc.ir.interpret import run
from nnc.ir.interpret_loop import run_program
from nnc.ir.loop import Contract, For, Kernel, Program, Stmt
from nnc.ir.print_loop import print_program
from nnc.passes.fuse import fuse
from nnc.passes.lower import lower
from nnc.passes.memory import memory
from nnc.passes.verify import verify
from nnc.passes.verify_loop import verify as verify_program
from tests.graphs import sample


def compile_graph(graph: Graph) -> Program:
    """The checked Program of a Graph."""
    verify(graph, "test")
    fused = fuse(graph)
    verify(fused.graph, "fuse")
    program = lower(fused)
    verify_program(program, "lower")
    program = memory(program)
    verify_program(program, "memory")
    return program


def check(
    graph: Graph,
    dims: Mapping[str, int],
    kernels: int | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> Program:
    """Asserts that the Program computes what the Graph means, in so many kernels."""
    inputs = inputs or sample(graph.inputs, dims)
    want = run(graph, dims, inputs)
    program = compile_graph(graph)
    try:
        got = run_program(program, dims, [inputs[i.name] for i in graph.inputs])
        n = len(graph.inputs)
        for value, expected in zip(got[n:], want.results, strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-12)
        for i, value in zip(graph.inputs, got, strict=False):
            expected = want.writes.get(i.name, np.asarray(inputs[i.name]))
            np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-12, err_msg=i.name)
        if kernels is not None:
            assert len(program.kernels) == kernels
    except AssertionError as e:
        e.add_note(print_program(program))
        raise
    return program


def reasons(program: Program) -> list[str]:
    return [k.reason for k in program.kernels]


def contractions(program: Program) -> list[Contract]:
    return [s for k in program.kernels for s in k.body if isinstance(s, Contract)]


def loops(kernel: Kernel) -> list[tuple[str, str]]:
    """Kinds and variables of all loops, outermost first."""
    out: list[tuple[str, str]] = []

    def visit(stmts: tuple[Stmt, ...]) -> None:
        for s in stmts:
            if isinstance(s, For):
                out.append((s.kind, s.axis.var))
                visit(s.body)

    visit(kernel.body)
    return out
