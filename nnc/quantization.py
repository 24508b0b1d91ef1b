"""Models whose weights are stored in fewer bits: `nnc.quantize` and `nnc quantize`.

The weights of one module, those that contractions read, are stored as bf16. Exports that only read
the module are compiled again for such weights; those that write it or differentiate are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnc import compiler, driver
from nnc.errors import ArgumentError, CompileError, nearest
from nnc.ir.graph import Grad, Graph, all_nodes
from nnc.ir.signature import ModuleSig, Slot
from nnc.lang.elaborate.elaborated import Built, Elaborated
from nnc.passes.stored import held, stored_as, weights
from nnc.runtime import artifact
from nnc.runtime.cache import fetch
from nnc.runtime.export import Export
from nnc.runtime.leaves import Module, Tree
from nnc.runtime.memory import Array, human, numpy_dtype
from nnc.runtime.model import Model
from nnc.runtime.modules import initialised

Overrides = Mapping[str, Mapping[str, object]]
Data = Mapping[str, Any]
FORMATS = ("bf16",)
SLOT = "weights"


@dataclass(frozen=True)
class Difference:
    """One result of the quantized export beside the original's, over all data.

    `largest`: absolute difference; `scale`: largest magnitude of the original; `rms`: root of the
    mean squared difference, relative to that of the original; `agree`: share of equal elements.
    Integers and bools have only `agree`.
    """

    name: str
    agree: float
    largest: float = 0.0
    scale: float = 0.0
    rms: float = 0.0
    floating: bool = False

    def __str__(self) -> str:
        if not self.floating:
            return f"{self.name}: {self.agree:.2%} of the elements agree"
        share = self.largest / self.scale if self.scale else 0.0
        return (
            f"{self.name}: differs by {self.largest:.3g} at most ({share:.2%} of the largest "
            f"element, {self.scale:.3g}); rms {self.rms:.2%}"
        )


@dataclass(frozen=True)
class Quantized:
    """A model with the same exports, its module filled, and what is known of its error."""

    model: Model
    net: Module
    compiled: compiler.Compiled
    keys: tuple[str, ...]  # leaves that are stored in fewer bits
    left_out: dict[str, str]  # exports that the model lacks: why
    bytes: tuple[int, int]  # of the module, before and after
    differences: tuple[Difference, ...] = ()

    def save(self, folder: str | Path, name: str) -> list[Path]:
        """Writes name.a .h .json (and .so) for `nnc.load`, and name.safetensors."""
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArgumentError(f"{folder}: {error.strerror}") from None
        made = self.compiled
        paths = artifact.write(folder, name, made.manifest, made.objects, made.support)
        shared = artifact.link(paths[0])
        file = folder / f"{name}.safetensors"
        self.net.save(file)
        return [*paths, *([shared] if shared else []), file]

    def __str__(self) -> str:
        before, after = self.bytes
        rows = [f"{self.net.sig.id}: {human(before)}, now {human(after)}"]
        rows[0] += f" ({len(self.keys)} of {len(self.net)} tensors in fewer bits)"
        rows += [f"left out: {name} ({why})" for name, why in self.left_out.items()]
        return "\n".join([*rows, *map(str, self.differences)])


def quantize(
    path: str | Path,
    net: Module | str | Path,
    function: str | None = None,
    *,
    to: str = "bf16",
    data: Data | Sequence[Data] = (),
    threads: int | None = None,
    cache: bool = True,
    **modules: Mapping[str, object],
) -> Quantized:
    """The model of a `.nn` file with the weights of one module stored in fewer bits.

    `net`: the module with its weights, made by a model of this file, or a safetensors file for the
    module that `function` (or the only export) takes. `data`: arguments of `function` by name, one
    call or several, at which both models are compared.
    """
    if to not in FORMATS:
        raise ArgumentError(f"to={to!r}: a format is one of {', '.join(FORMATS)}")
    calls = [data] if isinstance(data, Mapping) else list(data)
    if calls and function is None:
        raise ArgumentError("data are arguments of a function: say which, function=...")
    found = _elaborated(path, modules)
    original = _model(driver.compile_file(path, modules, cache=cache), threads)
    own = _module(original, net, function)
    work = _Work(found, own.sig)
    made = compiler.compile_found(str(path), work.elaborated(), cache=fetch if cache else None)
    model = _model(made, threads)
    sig = next(m for m in made.manifest.modules if m.id == own.sig.id)
    converted = Module(sig, model._program)
    for key, array in own.arrays.items():
        converted.arrays[key][...] = array if key not in work.keys else to_bf16(array)
    sizes = own.layout.nbytes, converted.layout.nbytes
    seen: tuple[Difference, ...] = ()
    if function is not None and calls:
        seen = _compared(original, model, function, own, converted, calls)
    return Quantized(model, converted, made, tuple(sorted(work.keys)), work.left_out, sizes, seen)


def to_bf16(x: Array) -> Array:
    """f32 rounded to the nearest bf16, in NumPy's dtype for it."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    out = np.where(np.isnan(x), (bits >> 16) | 0x40, rounded).astype(np.uint16)
    return out.view(numpy_dtype("bf16")).reshape(x.shape)


def _elaborated(path: str | Path, modules: Overrides) -> Elaborated:
    checked = driver.check_file(path, modules)
    if checked.errors or checked.elaborated is None:
        raise CompileError(checked.diagnostics)
    return checked.elaborated


def _model(made: compiler.Compiled, threads: int | None) -> Model:
    model = driver.model_of(made)
    if threads is not None:
        model.threads = threads
    return model


def _module(model: Model, net: Module | str | Path, function: str | None) -> Module:
    """The module to quantize, of this model."""
    program = model._program
    if isinstance(net, Module):
        sig = program.modules.get(net.sig.id)
        if sig is None or sig.leaves != net.sig.leaves:
            raise ArgumentError(f"{model.manifest.source} has no such {net.sig.id}")
        return net
    if function is not None and function not in model.exports:
        hint = nearest(function, model.exports)
        raise ArgumentError(f"{model.manifest.source} exports no {function!r}{hint}")
    exports = [model.exports[function]] if function else list(model.exports.values())
    found = {a.module for e in exports for a in e.args if a.kind == "module" and not a.inout}
    if len(found) != 1:
        which = " or ".join(sorted(found)) or "no module"
        raise ArgumentError(f"the weights of {which}? Say which export takes the module, read-only")
    made = Module(program.modules[found.pop()], program)
    made.load(net)
    return made


# ---- the graphs --------------------------------------------------------------------------------


class _Work:
    """What becomes of a file's exports when one of its modules is stored as bf16."""

    def __init__(self, found: Elaborated, module: ModuleSig) -> None:
        self.found, self.module = found, module
        self.left_out: dict[str, str] = {}
        self.kept = [b for b in found.exports if self.keeps(b)]
        self.graphs = {b.graph.name: compiler.optimise(b.graph) for b in self.kept}
        if not any(self.arguments(b) for b in self.kept):
            raise ArgumentError(f"no export only reads a {module.id}: there is nothing to quantize")
        self.keys = self.named(weights) - self.named(held)

    def keeps(self, b: Built) -> bool:
        for arg in b.signature.args:
            if arg.module == self.module.id and arg.inout:
                self.left_out[b.graph.name] = f"it writes `{arg.name}`"
                return False
        if any(isinstance(n, Grad) for n in all_nodes(b.graph)):
            self.left_out[b.graph.name] = "it takes a gradient"
            return False
        return True

    def arguments(self, b: Built) -> tuple[str, ...]:
        """The names under which an export takes the module."""
        args = b.signature.args
        return tuple(a.name for a in args if a.kind == "module" and a.module == self.module.id)

    def named(self, which: Callable[[Graph], Iterable[str]]) -> set[str]:
        """The module's leaves among some inputs of any export."""
        keys = {leaf.key for leaf in self.module.leaves}
        out = set()
        for b in self.kept:
            names = set(which(self.graphs[b.graph.name]))
            out |= {k for k in keys for a in self.arguments(b) if f"{a}.{k}" in names}
        return out

    def elaborated(self) -> Elaborated:
        """The exports that are kept, for the module as it is stored."""
        exports = [self.built(b) for b in self.kept]
        names = {b.graph.name for b in exports}
        used = {a.module for b in exports for a in b.signature.args}
        used |= {r.module for b in exports for r in b.signature.results}
        modules = [(m, g) for m, g in self.found.modules if m.id in used and m != self.module]
        specials = [s for s in self.found.specials if s.export in names]
        own = (self.signature(), None)
        return replace(
            self.found, exports=exports, modules=[own, *modules], tests=[], specials=specials
        )

    def built(self, b: Built) -> Built:
        names = {f"{a}.{k}" for a in self.arguments(b) for k in self.keys}
        graph = stored_as(self.graphs[b.graph.name], names, "bf16")
        return replace(b, graph=graph, signature=replace(b.signature, probes=()), probes=())

    def signature(self) -> ModuleSig:
        """Its leaves come from a file, `files={"weights": path}`."""
        leaves = tuple(
            replace(leaf, type=leaf.type.with_dtype("bf16")) if leaf.key in self.keys else leaf
            for leaf in self.module.leaves
        )
        slot = Slot(SLOT, "", place=self.module.place)
        return replace(self.module, leaves=leaves, init="", slots=(slot,))


# ---- the error ---------------------------------------------------------------------------------


def _compared(
    original: Model,
    model: Model,
    function: str,
    own: Module,
    converted: Module,
    calls: Sequence[Data],
) -> tuple[Difference, ...]:
    if function not in model.exports:
        raise ArgumentError(f"{function} is left out: it has no error to print")
    rows: dict[str, list[tuple[Array, Array]]] = {}
    for data in calls:
        one = _results(original.exports[function], own, data)
        other = _results(model.exports[function], converted, data)
        for name, want in one.items():
            rows.setdefault(name, []).append((want, other[name]))
    return tuple(_difference(name, pairs) for name, pairs in rows.items())


def _results(export: Export, net: Module, data: Data) -> dict[str, Array]:
    """The results of a call; arrays that it writes are copied first."""
    given: dict[str, Any] = {}
    for arg in export.args:
        if arg.kind == "module" and arg.module == net.sig.id:
            given[arg.name] = net
        elif arg.name in data:
            value = data[arg.name]
            given[arg.name] = np.copy(value) if arg.inout else value
        elif arg.kind == "module" and arg.default is None:
            given[arg.name] = initialised(export.program, export.program.modules[arg.module])
    unknown = [n for n in data if n not in export.names]
    if unknown:
        hint = nearest(unknown[0], export.names)
        raise ArgumentError(f"{export.sig.name} has no argument {unknown[0]!r}{hint}")
    result = export(**given)
    items = result if isinstance(result, tuple) else (result,)
    names = [f"result{i}" if len(items) > 1 else "result" for i in range(len(items))]
    return {n: np.asarray(x) for n, x in zip(names, items, strict=True) if not isinstance(x, Tree)}


def _difference(name: str, pairs: Sequence[tuple[Array, Array]]) -> Difference:
    want = np.concatenate([a.ravel() for a, _ in pairs])
    got = np.concatenate([b.ravel() for _, b in pairs])
    same = (want == got) | ((want != want) & (got != got))
    agree = float(np.mean(same)) if want.size else 1.0
    if not np.issubdtype(want.dtype, np.floating):
        return Difference(name, agree)
    x, y = want.astype(np.float64), got.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.where(same, 0.0, np.abs(x - y))
    finite = np.abs(x[np.isfinite(x)])
    scale = float(finite.max(initial=0.0))
    power = float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0
    rms = float(np.sqrt(np.mean(gap**2))) / power if power else 0.0
    return Difference(name, agree, float(gap.max(initial=0.0)), scale, rms, True)
