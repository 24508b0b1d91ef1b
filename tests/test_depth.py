"""Compile time hardly grows with depth: what the layers of a network do is worked out once."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnc import compiler
from nnc.codegen import llvm
from nnc.codegen.target import x86
from nnc.ir import form
from nnc.ir.graph import Graph
from nnc.passes import simplify, verify_loop

GPT2 = str(Path(__file__).parent.parent / "models" / "gpt2.nn")
SMALL = {"V": 97, "N": 40, "D": 48, "H": 4}


def graphs(layers: int) -> list[Graph]:
    """The forward function and the initialisation of a network of so many layers."""
    checked = compiler.check(GPT2, {"GPT2": {**SMALL, "L": layers}})
    assert checked.elaborated is not None and not checked.errors
    found = checked.elaborated
    inits = [init for _, init in found.modules if init is not None]
    return [compiler.optimise(g) for g in (*(b.graph for b in found.exports), *inits)]


def kernels_of(text: str) -> list[str]:
    """The functions of kernels, in order, without the names of parameters' modules."""
    parts = text.split("define internal void @f.k")[1:]
    return [p[: p.index("\n}\n")].split("(", 1)[1] for p in parts]


def test_more_layers_are_the_same_functions() -> None:
    for few, many in zip(graphs(3), graphs(9), strict=True):
        texts = [llvm.emit(compiler.schedule(g), x86("avx2"), "f").text for g in (few, many)]
        less, more = (kernels_of(t) for t in texts)
        # Small values of all layers share kernels, as many as fit into one.
        assert len(less) <= len(more) <= len(less) + 2


def counted(m: pytest.MonkeyPatch, owner: object, name: str) -> list[int]:
    """Counts the calls of a function."""
    right, calls = getattr(owner, name), [0]

    def counting(*args: object, **kwargs: object) -> object:
        calls[0] += 1
        return right(*args, **kwargs)

    m.setattr(owner, name, counting)
    return calls


def test_layers_cost_no_further_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules are applied, kernels are checked and code is emitted for one layer of many.

    (All of them, but for what reads the layer's own slice of a tensor at a fixed index.)
    """
    form._form.cache_clear()
    work = [
        counted(monkeypatch, simplify, "rewritten"),
        counted(monkeypatch, verify_loop, "obligations"),
        counted(monkeypatch, llvm._Kernel, "emit"),
    ]
    seen = []
    for layers in (3, 4, 12):
        for g in graphs(layers):
            llvm.emit(compiler.schedule(g), x86("avx2"), "f")
        seen.append([calls[0] for calls in work])
    first, second, third = seen
    for all_of_three, four, twelve in zip(first, second, third, strict=True):
        assert (twelve - four) / 8 < all_of_three / 2


def test_the_same_text_however_much_was_compiled_before() -> None:
    again = [
        [llvm.emit(compiler.schedule(g), x86("avx2"), "f").text for g in graphs(2)]
        for _ in range(2)
    ]
    assert again[0] == again[1]
