"""Models whose weights are stored in fewer bits: `nnc.quantize` and `nnc quantize`.

The weights of one module, those that contractions read, are stored as bf16, or as bytes that are
multiplied by bytes. Exports that only read the module are compiled again for such weights; those
that write it or differentiate are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnc import compiler, driver
from nnc.codegen.target import host
from nnc.errors import ArgumentError, CompileError, nearest
from nnc.ir.expr import Idx, Load
from nnc.ir.graph import Axis, Compute, Grad, Graph, Input, Node, all_nodes
from nnc.ir.signature import Leaf, ModuleSig, Slot
from nnc.lang.dims import Dim
from nnc.lang.elaborate.elaborated import Built, Elaborated
from nnc.lang.types import TensorType
from nnc.passes.quantize import Site, quantized, sites
from nnc.passes.stored import held, stored_as, weights
from nnc.runtime import artifact
from nnc.runtime.cache import fetch
from nnc.runtime.export import Export
from nnc.runtime.leaves import Module, Tree
from nnc.runtime.memory import Array, human, numpy_dtype
from nnc.runtime.model import Model
from nnc.runtime.modules import initialised
from nnc.runtime.watch import Widened

Overrides = Mapping[str, Mapping[str, object]]
Data = Mapping[str, Any]
FORMATS = ("bf16", "int8")
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
    call or several, at which both models are compared. For `to="int8"` they also give the ranges of
    the activations.
    """
    if to not in FORMATS:
        raise ArgumentError(f"to={to!r}: a format is one of {', '.join(FORMATS)}")
    calls = [data] if isinstance(data, Mapping) else list(data)
    if calls and function is None:
        raise ArgumentError("data are arguments of a function: say which, function=...")
    if to == "int8" and not calls:
        raise ArgumentError("to int8 needs data: the ranges of what is multiplied are those seen")
    found = _elaborated(path, modules)
    original = _model(driver.compile_file(path, modules, cache=cache), threads)
    own = _module(original, net, function)
    work = _Exports(found, own.sig)
    form: _Bf16 | _Int8 = _Bf16(work)
    if to == "int8" and function is not None:
        form = _Int8(work, function, _ranges(original, work, function, own, calls))
    store = fetch if cache else None
    made = compiler.compile_found(str(path), work.elaborated(form), cache=store)
    model = _model(made, threads)
    sig = next(m for m in made.manifest.modules if m.id == own.sig.id)
    converted = Module(sig, model._program)
    form.fill(own, converted)
    sizes = own.layout.nbytes, converted.layout.nbytes
    seen: tuple[Difference, ...] = ()
    if function is not None and calls:
        seen = _compared(original, model, function, own, converted, calls)
    return Quantized(model, converted, made, tuple(sorted(form.keys)), work.left_out, sizes, seen)


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


# ---- the exports -------------------------------------------------------------------------------


class _Exports:
    """The exports of a file that only read a module, optimised."""

    def __init__(self, found: Elaborated, module: ModuleSig) -> None:
        self.found, self.module = found, module
        self.left_out: dict[str, str] = {}
        kept = [b for b in found.exports if self.keeps(b)]
        self.kept = [replace(b, graph=compiler.optimise(b.graph)) for b in kept]
        if not any(self.arguments(b) for b in self.kept):
            raise ArgumentError(f"no export only reads a {module.id}: there is nothing to quantize")

    def keeps(self, b: Built) -> bool:
        """Whether it only reads the module; notes why not."""
        mine = [a for a in b.signature.args if a.module == self.module.id]
        trees = [a.kind for a in mine] + [r.kind for r in b.signature.results if r.module]
        why = next((f"it writes `{a.name}`" for a in mine if a.inout), "")
        if any(isinstance(n, Grad) for n in all_nodes(b.graph)):
            why = why or "it takes a gradient"
        if "tree" in trees:
            why = why or "it takes or returns parameters as a tree"
        if why:
            self.left_out[b.graph.name] = why
        return not why

    def arguments(self, b: Built) -> tuple[str, ...]:
        """The names under which an export takes the module."""
        args = b.signature.args
        return tuple(a.name for a in args if a.kind == "module" and a.module == self.module.id)

    def names(self, b: Built, keys: Iterable[str]) -> set[str]:
        """Those of an export's inputs for some leaves."""
        keys = tuple(keys)
        return {f"{a}.{k}" for a in self.arguments(b) for k in keys}

    def named(self, which: Callable[[Graph], Iterable[str]]) -> set[str]:
        """The module's leaves among some inputs of any export."""
        keys = [leaf.key for leaf in self.module.leaves]
        out = set()
        for b in self.kept:
            names = set(which(b.graph))
            out |= {k for k in keys for a in self.arguments(b) if f"{a}.{k}" in names}
        return out

    def elaborated(self, form: _Bf16 | _Int8) -> Elaborated:
        """The file with the module as it is stored; its leaves come from a file."""
        plain = (replace(b.signature, probes=()) for b in self.kept)
        exports = [
            Built(form.graph(b), s, b.instances) for b, s in zip(self.kept, plain, strict=True)
        ]
        slot = Slot(SLOT, "", place=self.module.place)
        own = replace(self.module, leaves=form.leaves, init="", slots=(slot,))
        used = {a.module for b in exports for a in b.signature.args}
        used |= {r.module for b in exports for r in b.signature.results}
        modules = [(m, g) for m, g in self.found.modules if m.id in used and m != self.module]
        names = {b.graph.name for b in exports}
        specials = [s for s in self.found.specials if s.export in names]
        return replace(
            self.found,
            exports=exports,
            modules=[(own, None), *modules],
            tests=[],
            specials=specials,
        )


class _Bf16:
    """Weights stored as bf16."""

    def __init__(self, work: _Exports) -> None:
        self.work = work
        self.keys = work.named(weights) - work.named(held)
        self.leaves = tuple(
            replace(leaf, type=leaf.type.with_dtype("bf16")) if leaf.key in self.keys else leaf
            for leaf in work.module.leaves
        )

    def graph(self, b: Built) -> Graph:
        return stored_as(b.graph, self.work.names(b, self.keys), "bf16")

    def fill(self, own: Module, to: Module) -> None:
        for key, array in own.arrays.items():
            to.arrays[key][...] = to_bf16(array) if key in self.keys else array


class _Int8:
    """Contractions on bytes: of the weights that `function` contracts with its activations."""

    def __init__(self, work: _Exports, function: str, seen: Mapping[str, Range]) -> None:
        self.work = work
        b = next(b for b in work.kept if b.graph.name == function)
        found = {k: s for s in sites(b.graph) for k in seen if s.weight.name in work.names(b, [k])}
        self.sites, self.seen, self.keys = found, seen, set(seen)
        self.graphs = {b.graph.name: self.made(b) for b in work.kept}
        self.leaves = tuple(x for leaf in work.module.leaves for x in self.in_place(leaf))

    def made(self, b: Built) -> tuple[Graph, dict[str, Input]]:
        """The export on bytes, and its inputs beside those that it has."""
        more: dict[str, Input] = {}

        def new(name: str, type_: TensorType) -> Input:
            return more.setdefault(name, Input(name=name, type=type_, kind="param"))

        return quantized(b.graph, self.work.names(b, self.keys), new), more

    def in_place(self, leaf: Leaf) -> Iterator[Leaf]:
        """What stands for a leaf; it stays where an export also reads it in another way."""
        read = any(
            isinstance(n, Input) and n.name in self.work.names(b, [leaf.key])
            for b in self.work.kept
            for n in all_nodes(self.graphs[b.graph.name][0])
        )
        if leaf.key not in self.keys or read:
            yield leaf
        if leaf.key in self.keys:
            for what, type_ in self.sites[leaf.key].leaves.items():
                yield replace(leaf, key=f"{leaf.key}.{what}", type=type_)

    def graph(self, b: Built) -> Graph:
        """With an input for every leaf."""
        made, more = self.graphs[b.graph.name]
        old = {i.name: i for i in made.inputs}
        mine = {
            f"{a}.{leaf.key}" for a in self.work.arguments(b) for leaf in self.work.module.leaves
        }
        inputs: list[Input] = []
        done = set()
        for i in made.inputs:
            if i.name not in mine:
                inputs.append(i)
                continue
            arg = next(a for a in self.work.arguments(b) if i.name in self.work_names(a))
            if arg in done:
                continue
            done.add(arg)
            for leaf in self.leaves:
                name = f"{arg}.{leaf.key}"
                known = old.get(name) or more.get(name)
                inputs.append(known or Input(name=name, type=leaf.type, kind=leaf.storage))
        return replace(made, inputs=tuple(inputs))

    def work_names(self, arg: str) -> set[str]:
        return {f"{arg}.{leaf.key}" for leaf in self.work.module.leaves}

    def fill(self, own: Module, to: Module) -> None:
        for key, array in own.arrays.items():
            if key in to.arrays:
                to.arrays[key][...] = array
        for key, s in self.sites.items():
            made = in_bytes(own.arrays[key], s, self.seen[key])
            for what, array in made.items():
                to.arrays[f"{key}.{what}"][...] = array


Range = tuple[float, float]


def in_bytes(w: Array, site: Site, seen: Range) -> dict[str, Array]:
    """The leaves in the place of a weight (`nnc.passes.quantize`): symmetric in each channel.

    `seen`: the range of the activations.
    """
    w = w.astype(np.float64)
    steps = np.abs(w).max(axis=site.reduced, keepdims=True) / 127
    steps[steps == 0] = 1.0
    q = np.clip(np.rint(w / steps), -127, 127).astype(np.int8)
    low, high = min(0.0, seen[0]), max(0.0, seen[1])
    step = (high - low) / 255 or 1.0
    zero = round(-low / step)
    last = np.moveaxis(q, site.packed, -1)
    words = np.zeros((*last.shape[:-1], -(-last.shape[-1] // 4) * 4), np.int8)
    words[..., : last.shape[-1]] = last
    sums = q.sum(axis=site.reduced, dtype=np.int64)
    return {
        "int8": np.moveaxis(words.view(np.int32), -1, site.packed).transpose(site.order),
        "scale": (steps.reshape(sums.shape) * step).astype(np.float32),
        "offset": (sums * zero).astype(np.int32),
        "input": np.array([1 / step, zero, step], np.float32),
    }


def _ranges(
    original: Model, work: _Exports, function: str, own: Module, calls: Sequence[Data]
) -> dict[str, Range]:
    """The range of what is multiplied by each weight, over all calls."""
    b = next((b for b in work.kept if b.graph.name == function), None)
    if b is None:
        raise ArgumentError(f"{function} is left out: {work.left_out.get(function)}")
    keys = {f"{a}.{leaf.key}": leaf.key for a in work.arguments(b) for leaf in work.module.leaves}
    found = [s for s in sites(b.graph) if s.weight.name in keys]
    if not found:
        raise ArgumentError(
            f"{function} has no contraction of activations and weights of {own.sig.id}"
        )
    extremes = [_extreme(s.source, op) for s in found for op in ("min", "max")]
    variant = compiler.widened(b, b.graph, extremes, "ranges", host(), fetch)
    out: dict[str, Range] = {}

    def take(values: tuple[Array, ...]) -> None:
        pairs = zip(found, values[::2], values[1::2], strict=True)
        for s, low, high in pairs:
            if not np.isfinite(low) or not np.isfinite(high):
                raise ArgumentError(f"{s.node.span.place}: what is multiplied is not finite")
            old = out.get(key := keys[s.weight.name], (0.0, 0.0))
            out[key] = min(old[0], float(low)), max(old[1], float(high))

    export = original.exports[function]
    watched = Widened(export.sig, export.program, variant, take)
    for data in calls:
        watched(**_arguments(export, own, data))
    return out


def _extreme(node: Node, op: str) -> Node:
    axes = tuple(Axis(f"$e{d}", n) for d, n in enumerate(node.type.shape))
    body = Load("f32", node, tuple(Idx(Dim.of(a.var)) for a in axes))
    return Compute(type=TensorType("f32"), axes=(), raxes=axes, op=op, body=body, span=node.span)


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
    return tuple(difference(name, pairs) for name, pairs in rows.items())


def _arguments(export: Export, net: Module, data: Data) -> dict[str, Any]:
    """Of a call; arrays that it writes are copied."""
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
    return given


def _results(export: Export, net: Module, data: Data) -> dict[str, Array]:
    result = export(**_arguments(export, net, data))
    items = result if isinstance(result, tuple) else (result,)
    names = [f"result{i}" if len(items) > 1 else "result" for i in range(len(items))]
    return {n: np.asarray(x) for n, x in zip(names, items, strict=True) if not isinstance(x, Tree)}


def difference(name: str, pairs: Sequence[tuple[Array, Array]]) -> Difference:
    """What two computations of a result, in one or several calls, differ by."""
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
