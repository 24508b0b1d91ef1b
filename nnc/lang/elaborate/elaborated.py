"""What the elaborator gives: a checked file."""

from __future__ import annotations

from dataclasses import dataclass, field

from nnc.diagnostics import Span
from nnc.ir.graph import Graph, Node
from nnc.ir.signature import ExportSig, ModuleSig
from nnc.lang import ast
from nnc.lang.elaborate.values import Instance
from nnc.lang.units import Unit


@dataclass(frozen=True)
class Built:
    """One export: its Graph and what the runtime must know of it.

    `probes`: the values of `signature.probes`, which are no results.
    """

    graph: Graph
    signature: ExportSig
    instances: tuple[Instance, ...] = ()
    probes: tuple[Node, ...] = ()


@dataclass(frozen=True)
class Special:
    """`specialize`: an export compiled once more with numbers for some run-time sizes."""

    export: str
    sizes: tuple[tuple[str, int], ...]
    span: Span

    @property
    def name(self) -> str:
        return f"{self.export}({', '.join(f'{n}={v}' for n, v in self.sizes)})"


@dataclass(eq=False)
class Elaborated:
    """A checked file: its exports, its module types with initializers, its tests."""

    unit: Unit
    exports: list[Built] = field(default_factory=list)
    modules: list[tuple[ModuleSig, Graph | None]] = field(default_factory=list)
    tests: list[tuple[str, Graph, tuple[ast.Assert, ...]]] = field(default_factory=list)
    specials: list[Special] = field(default_factory=list)
