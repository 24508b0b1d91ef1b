"""A loaded program: its exports, its module types, its random state."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, NoReturn

from nnc.errors import ArgumentError, AttributeError, Error, LoadError, nearest
from nnc.ir.signature import Differentiated, Manifest, Support
from nnc.runtime import checkpoint
from nnc.runtime.available import cpu_count
from nnc.runtime.boundary import boundary
from nnc.runtime.checkpoint import Wanted
from nnc.runtime.cpu import Code, find_externs, library
from nnc.runtime.export import Export
from nnc.runtime.gradient import Differentiable
from nnc.runtime.leaves import Module
from nnc.runtime.modules import Constructor, Program, seed_number
from nnc.runtime.trap import Trapped, Watch
from nnc.runtime.watch import Compile, Probe, Watching

Lazy = Callable[[str], Differentiated]
Dump = Callable[[str, str], str]


class Model:
    """What `nnc.load` returns.

    `m.predict(net, x)` calls an export, `m.MLP.init(seed=0)` makes a module, `m.exports` lists the
    exports by name. `m.threads` is the number of threads that calls may use. An export with the
    name of an attribute (`step`) is `m.exports["step"]`; loading it warns.
    """

    def __init__(
        self,
        manifest: Manifest,
        objects: Sequence[bytes],
        support: Sequence[Support] = (),
        lazy: Lazy | None = None,
        dump: Dump | None = None,
        probed: Compile | None = None,
        watch: Callable[[str], Watch] | None = None,
    ) -> None:
        """`support`: shared code that the objects refer to; `lazy`: an export's name -> its
        forward and backward; `dump`: (function, stage) -> text; `probed`: (export, paths) -> the
        variant that gives the probed values; `watch`: for `trap`."""
        self.manifest = manifest
        self._program = Program(
            code=Code(objects, support),
            modules={m.id: m for m in manifest.modules},
            natives={n.symbol: n for n in manifest.natives},
            exports={},
            threads=cpu_count(),
        )
        self._dump = dump
        self.exports: dict[str, Export] = self._program.exports
        for sig in manifest.exports:
            self.exports[sig.name] = Differentiating(sig, self._program, lazy)
        self._watching = Watching(probed, self.exports)
        self._watch = watch
        self._name_exports()

    def _name_exports(self) -> None:
        """`m.predict`, found without `__getattr__`. A model's own names keep their meaning."""
        for name, export in self.exports.items():
            if not hasattr(type(self), name) and name not in vars(self):
                vars(self)[name] = export
                continue
            text = f"`m.{name}` belongs to every model: call the export as `m.exports[{name!r}]`"
            warnings.warn(f"{self.manifest.source}: {text}", stacklevel=3)

    @boundary
    def __reduce_ex__(self, protocol: object) -> NoReturn:
        source = self.manifest.source
        raise ArgumentError(
            f"a loaded program is neither copied nor pickled\n  help: nnc.load({source!r}) again"
        )

    @property
    def code(self) -> Code:
        """The loaded object code."""
        return self._program.code

    def link(self, libraries: Sequence[str | Path] = ()) -> Model:
        """Takes C functions (`extern`) from these shared libraries, then from the process.

        LoadError for a library that cannot be loaded, and for a function that none of them has.
        """
        found = tuple(library(path) for path in libraries)
        find_externs(self.manifest.natives, found)
        self._program.code.libraries = found
        return self

    def __repr__(self) -> str:
        rows = [f"  {e.sig.text or e.sig.name}" for e in self.exports.values()]
        return "\n".join([f"<nnc model {self.manifest.source}>", *rows])

    def __dir__(self) -> list[str]:
        names = {m.name for m in self.manifest.modules if m.name.isidentifier()}
        return sorted({*super().__dir__(), *self.exports, *names})

    @boundary
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("exports", "manifest"):
            raise AttributeError(name)
        if name in self.exports:
            return self.exports[name]
        variants = [m for m in self.manifest.modules if m.name == name]
        if variants:
            return Constructor(self._program, name, variants, self.manifest.exports)
        known = [*self.exports, *(m.name for m in self.manifest.modules)]
        raise AttributeError(f"{self.manifest.source} exports no {name!r}{nearest(name, known)}")

    @property
    def threads(self) -> int:
        return self._program.threads

    @threads.setter
    def threads(self, count: int) -> None:
        """At least 1, at most as many as the process has CPUs; results do not depend on it."""
        if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
            raise ArgumentError(f"threads must be a positive integer, got {count!r}")
        self._program.threads = min(int(count), cpu_count())
        for export in self.exports.values():
            export.forget_plans()

    @property
    def calls(self) -> int:
        """How many calls have drawn random numbers since `seed`. (`step` is left to exports.)"""
        return self._program.step

    @boundary
    def seed(self, seed: int, step: int = 0) -> None:
        """Sets the seed of the random numbers, and the counter of the calls that draw them."""
        seed, step = seed_number(seed), seed_number(step)
        with self._program.lock:
            self._program.seed, self._program.step = seed, step

    @boundary
    def ir(self, function: str, stage: str = "graph") -> str:
        """The text of one export at a stage: syntax graph autodiff simplify fuse loops llvm asm.

        `function`: its name, or that of a variant made by `specialize`: `f(T=1)`.
        """
        if self._dump is None:
            raise Error("this model was loaded from an artifact: dumps need its source")
        known = [*self.exports, *(v for e in self.exports.values() for v in e.variants)]
        if function not in known:
            hint = nearest(function, known)
            raise AttributeError(f"{self.manifest.source} exports no {function!r}{hint}")
        return self._dump(function, stage)

    @property
    def probes(self) -> dict[str, tuple[str, ...]]:
        """The path of every `probe` statement's value, with the exports that compute it."""
        return self._watching.paths

    @boundary
    def probe(self, *paths: str) -> Probe:
        """Makes the values of `probe` statements visible, from now on.

            with m.probe("h.3.attn.p") as seen:
                m.predict(net, x)
            seen.value                 # of the last call; seen[path] when several were asked for

        Without `with` it goes on until `seen.close()`. Meanwhile calls `m.predict(...)` run a
        variant of the export, compiled when first asked for. KeyError for an unknown path.
        """

        if any(isinstance(e, Trapped) for e in self.exports.values()):
            raise Error("this model was loaded with nan_trap: load it again to probe it")
        return self._watching.open(paths, self._replaced)

    def _replaced(self, name: str, export: Export) -> None:
        """From now on this export takes the calls of that name."""
        if vars(self).get(name) is self.exports[name]:
            vars(self)[name] = export
        self.exports[name] = export

    @boundary
    def trap(self) -> Model:
        """Every call stops at the first value that is NaN or infinite: NonFiniteError names the
        line. An infinity that the program writes down (`-inf` in a mask) is none of these."""
        if self._watch is None:
            raise Error("this model was loaded from an artifact: nan_trap needs its source")
        for name, export in list(self.exports.items()):
            self._replaced(name, Trapped(export.sig, self._program, self._watch(name)))
        return self

    # ---- everything in one file -----------------------------------------------------------

    @boundary
    def checkpoint(
        self, path: str | Path, metadata: Mapping[str, str] | None = None, /, **modules: Module
    ) -> None:
        """Saves modules, seed and step to one file: `m.checkpoint("run.st", net=net, opt=opt)`.

        The first module's tensors stand under their own keys, the others' under `opt.<key>`.
        """
        if not modules:
            raise ArgumentError(
                "checkpoint saves modules, given by name: checkpoint(path, net=net)"
            )
        state = {"nnc.seed": str(self._program.seed), "nnc.step": str(self._program.step)}
        tensors = combined(modules)
        checkpoint.save(path, tensors, {**(metadata or {}), **state}, checksum=True)

    @boundary
    def restore(self, path: str | Path, /, **modules: Module) -> dict[str, str]:
        """Loads what `checkpoint` saved, all or nothing; returns the metadata."""
        names = " and ".join(f"`{m.sig.id}`" for m in modules.values())
        metadata = checkpoint.metadata_of(path)
        try:
            seed, step = int(metadata["nnc.seed"]), int(metadata["nnc.step"])
        except (ValueError, LookupError):
            raise LoadError(f"{path} is no checkpoint: it has no seed and step") from None
        call = f"{next(iter(modules))}.load(path" if len(modules) == 1 else ""
        metadata = checkpoint.load(path, combined(modules), checkpoint.Owner(names, call))
        for module in modules.values():
            module.version += 1
        self.seed(seed, step)
        return metadata


def combined(modules: Mapping[str, Module]) -> dict[str, Wanted]:
    """The tensors of several modules under distinct keys."""
    out: dict[str, Wanted] = {}
    for i, (name, module) in enumerate(modules.items()):
        if not isinstance(module, Module):
            raise ArgumentError(f"{name} must be a module, got a {type(module).__name__}")
        for key, wanted in module.tensors(f"{name}." if i else "").items():
            if key in out:
                raise ArgumentError(f"two modules have a tensor {key!r}: give {name} another name")
            out[key] = wanted
    return out


class Differentiating(Export):
    """An export with `forward`."""

    def __init__(self, sig: Any, program: Program, lazy: Lazy | None = None) -> None:
        super().__init__(sig, program)
        self._lazy = lazy
        self._differentiable: Differentiable | None = None

    @boundary
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the export and keeps what `backward` needs."""
        if self._differentiable is None:
            if self._lazy is None:
                raise Error("this model was loaded from an artifact: forward needs its source")
            native = self._lazy(self.sig.name)
            self._differentiable = Differentiable(self, native, self.program.code)
        return self._differentiable.forward(args, kwargs)
