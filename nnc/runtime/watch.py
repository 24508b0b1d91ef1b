"""`m.probe(...)`: values inside an export, seen at its calls.

While somebody watches, calls of the exports that hold a probed value go to a variant of the export
that has these values as further results. Without a watcher there is no trace of a probe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nnc.errors import ArgumentError, Error, KeyError, nearest
from nnc.ir.signature import ExportSig, ResultSig, Variant
from nnc.lang.types import TensorType
from nnc.runtime.boundary import boundary
from nnc.runtime.cpu import Code, Entry
from nnc.runtime.export import Call, Export
from nnc.runtime.memory import Array
from nnc.runtime.modules import Program

Compile = Callable[[str, tuple[str, ...]], Variant]  # export, paths -> its variant


class Widened(Export):
    """An export with further results; `more` gets them as arrays after each call."""

    def __init__(
        self,
        sig: ExportSig,
        program: Program,
        variant: Variant,
        more: Callable[[tuple[Array, ...]], None],
    ) -> None:
        self.own = len(sig.results)
        self.returned = sig
        self.more = more
        further = (ResultSig("tensor", t, "", _packs(t)) for t in variant.results)
        results = (*sig.results, *further)
        super().__init__(replace(sig, results=results, returns_tuple=True), program)
        self.native = variant.native
        code = Code(variant.objects, variant.support, program.code.libraries)
        self._entry = Entry(variant.native, code, self.pointer_count())

    def call(self, *args: Any, **kwargs: Any) -> Any:
        results = super().call(*args, **kwargs)
        self.more(results[self.own :])
        if self.returned.returns_tuple:
            return results[: self.own]
        return results[0] if self.own else None

    def _remember(self, call: Call) -> None:
        """Calls of this kind always come this way."""

    @boundary
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Refuses: its code is another one."""
        name = self.sig.name
        raise ArgumentError(
            f"{name} is being watched (probe or nan_trap), which `forward` is not made for\n"
            f"  help: call m.{name}(...), close the probe, or load without nan_trap"
        )


def _packs(type_: TensorType) -> tuple[int, ...]:
    return tuple(i for i, d in enumerate(type_.shape) if (d.name or "").startswith(".."))


class Probe(Mapping[str, Array]):
    """Probed values of the last call: `seen[path]`, or `seen.value` when there is one.

    It watches from its making until `close()`, or to the end of its `with` block.
    """

    def __init__(self, paths: tuple[str, ...], close: Callable[[Probe], None]) -> None:
        self.paths = paths
        self._close = close
        self._values: dict[str, Array] = {}

    @property
    def value(self) -> Array:
        """The one probed value. ArgumentError when several were asked for."""
        if len(self.paths) != 1:
            raise ArgumentError(f"several values are probed: take one of {', '.join(self.paths)}")
        return self[self.paths[0]]

    @boundary
    def __getitem__(self, path: str) -> Array:
        if path not in self.paths:
            raise KeyError(f"{path!r} is not probed here{nearest(path, self.paths)}")
        if path not in self._values:
            raise Error(f"no call has computed {path!r} since it was asked for")
        return self._values[path]

    def __iter__(self) -> Iterator[str]:
        return iter([p for p in self.paths if p in self._values])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops watching; what was seen stays."""
        self._close(self)

    def take(self, path: str, value: Array) -> None:
        """Called by a variant after each of its calls."""
        self._values[path] = value

    def __repr__(self) -> str:
        return f"<probe of {', '.join(self.paths)}>"


class Watching:
    """Who watches what in one model."""

    def __init__(self, compile_: Compile | None, exports: Mapping[str, Export]) -> None:
        self._compile = compile_
        self._plain = dict(exports)
        self._open: list[Probe] = []
        self._made: dict[tuple[str, tuple[str, ...]], Variant] = {}

    @property
    def paths(self) -> dict[str, tuple[str, ...]]:
        """Every path that can be probed, with the exports that compute it."""
        out: dict[str, tuple[str, ...]] = {}
        for name, export in self._plain.items():
            for path in export.sig.probes:
                out[path] = (*out.get(path, ()), name)
        return out

    def open(self, paths: Sequence[str], changed: Callable[[str, Export], None]) -> Probe:
        """A new watcher; `changed` is told which export now takes an export's calls."""
        known = self.paths
        if not paths:
            raise ArgumentError(f"say what to probe{_listed(known)}")
        for path in paths:
            if path not in known:
                raise KeyError(f"there is no probe {path!r}{nearest(path, known)}{_listed(known)}")
        if self._compile is None:
            raise Error("this model was loaded from an artifact: probes need its source")

        def close(probe: Probe) -> None:
            if probe in self._open:
                self._open.remove(probe)
                self._settle(probe.paths, changed)

        probe = Probe(tuple(dict.fromkeys(paths)), close)
        self._open.append(probe)
        try:
            self._settle(probe.paths, changed)
        except BaseException:
            self._open.remove(probe)
            raise
        return probe

    def _settle(self, paths: Sequence[str], changed: Callable[[str, Export], None]) -> None:
        """Puts the right variant of every export that computes one of the paths in its place."""
        for name, export in self._plain.items():
            if set(paths) & set(export.sig.probes):
                asked = {p for probe in self._open for p in probe.paths}
                wanted = tuple(p for p in export.sig.probes if p in asked)
                changed(name, self._variant(export, wanted) if wanted else export)

    def _variant(self, export: Export, paths: tuple[str, ...]) -> Export:
        assert self._compile is not None
        key = (export.sig.name, paths)
        if key not in self._made:
            self._made[key] = self._compile(*key)

        def tell(values: tuple[Array, ...]) -> None:
            for path, value in zip(paths, values, strict=True):
                for probe in self._open:
                    if path in probe.paths:
                        probe.take(path, value)

        return Widened(export.sig, export.program, self._made[key], tell)


def _listed(known: Mapping[str, object]) -> str:
    if not known:
        return "; this program has no `probe` statement"
    names = list(known)
    return f"\n  probes: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
