"""Modules of a program: which variants there are, and making one."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

from nnc.errors import ArgumentError
from nnc.ir.signature import ExportSig, ModuleSig, Native, Slot
from nnc.runtime import checkpoint
from nnc.runtime.boundary import boundary
from nnc.runtime.cpu import Code, Entry
from nnc.runtime.leaves import Module, Part

SERIAL = 20_000  # scalar operations below which waking threads costs more than it gains


@dataclass
class Program:
    """What the exports and modules of one model share."""

    code: Code
    modules: dict[str, ModuleSig]  # by id
    natives: dict[str, Native]  # by symbol
    exports: dict[str, Any]
    threads: int
    seed: int = 0
    step: int = 0

    def __post_init__(self) -> None:
        self.lock = threading.Lock()

    def draw(self) -> tuple[int, int]:
        """Seed and call number for one call that draws random numbers."""
        with self.lock:
            step = self.step
            self.step += 1
            return self.seed, step

    def take_back(self, drawn: tuple[int, int] | None) -> None:
        """After a failed call: the next one is what it would have been."""
        with self.lock:
            if drawn is not None and (self.seed, self.step) == (drawn[0], drawn[1] + 1):
                self.step -= 1


def native_threads(native: Native, env: Mapping[str, int], limit: int) -> int:
    """One thread for little work, else `limit`; results do not depend on it."""
    return 1 if native.work.evaluate(env) < SERIAL else limit


def seed_number(seed: Any) -> int:
    """A seed as it is given from outside."""
    whole = isinstance(seed, Integral) and not isinstance(seed, bool)
    if not whole or not -(1 << 63) <= int(seed) < 1 << 63:
        raise ArgumentError(f"a seed is an integer of 64 bits, got {seed!r}")
    return int(seed)


def initialised(
    program: Program, sig: ModuleSig, seed: int = 0, files: Mapping[str, str | Path] | None = None
) -> Module:
    """A new module with its declared initial values; `files`: a path for each `weights("slot")`."""
    seed = seed_number(seed)
    paths = _slot_paths(sig, files or {})
    module = Module(sig, program)
    if sig.init:
        native = program.natives[sig.init]
        entry = Entry(native, program.code, 2 + len(sig.leaves))
        with entry.lock:
            entry.rng[:] = seed, 0
            entry.args[:2] = entry.rng_pointers
            entry.args[2:] = module.addresses
            entry.run(native.arena.evaluate({}), native_threads(native, {}, program.threads))
    for slot, path in paths:
        _load_slot(module, slot, path)
    return module


def _slot_paths(sig: ModuleSig, files: Mapping[str, str | Path]) -> list[tuple[Slot, str | Path]]:
    names = [slot.name for slot in sig.slots]
    for name in files:
        if name not in names:
            raise ArgumentError(
                f"{sig.id} has no weights({name!r})"
                + (f"; it has {', '.join(names)}" if names else "")
            )
    for slot in sig.slots:
        if slot.name not in files:
            table = ", ".join(f'"{n}": path' for n in names)
            raise ArgumentError(
                f"{sig.id} takes weights({slot.name!r}) from a file ({slot.place})\n"
                f"  help: init(files={{{table}}}); on the command line --file {slot.name}=FILE"
            )
    return [(slot, files[slot.name]) for slot in sig.slots]


def _load_slot(module: Module, slot: Slot, path: str | Path) -> None:
    tensors = {
        key.removeprefix(slot.prefix): wanted
        for key, wanted in module.tensors().items()
        if key.startswith(slot.prefix)
    }
    part = slot.prefix.rstrip(".") or "the module"
    owner = f'weights("{slot.name}") of `{part}`' + (f" ({slot.place})" if slot.place else "")
    n = len(slot.prefix)
    absent = {k[n:]: why for k, why in module.sig.absent.items() if k.startswith(slot.prefix)}
    named = checkpoint.Owner(owner, f'weights("{slot.name}"', absent)
    checkpoint.load(path, tensors, named, slot.rename, slot.skip)


class Constructor:
    """A module's name in a model: `m.MLP.init(seed=0)`, `m.SGD(net, momentum=0.9).init()`."""

    def __init__(
        self,
        program: Program,
        name: str,
        variants: Sequence[ModuleSig],
        exports: Sequence[ExportSig],
    ) -> None:
        self.name = name
        self.variants = tuple(variants)
        self._program = program
        self._exports = tuple(exports)

    def __repr__(self) -> str:
        return " or ".join(_shown(v) for v in self.variants)

    @boundary
    def __call__(self, *trees: Any, **args: Any) -> Constructor:
        """The variant with these arguments, as some export declares it."""
        found = [v for v in self.variants if _matches(v, trees, args, self._spelled(v))]
        if not found:
            raise ArgumentError(self._no_such(trees, args))
        return Constructor(self._program, self.name, found, self._exports)

    @boundary
    def init(self, seed: int = 0, *, files: Mapping[str, str | Path] | None = None) -> Module:
        """A new module with its declared initial values."""
        return initialised(self._program, self.sig, seed, files)

    @property
    def sig(self) -> ModuleSig:
        """The one type that this names; ArgumentError when there are several."""
        plain = [v for v in self.variants if not v.args]
        if len(self.variants) > 1 and len(plain) != 1:
            which = "\n".join(f"  {_shown(v)}{self._user(v)}" for v in self.variants)
            raise ArgumentError(
                f"this program uses several {self.name}; say which by its arguments:\n{which}"
            )
        return plain[0] if plain else self.variants[0]

    def _spelled(self, sig: ModuleSig) -> frozenset[str]:
        """The words with which exports name this type: `SGD(Net.head)` has `Net.head`."""
        texts = (a.text for e in self._exports for a in e.args if a.module == sig.id)
        return frozenset(w for text in texts for w in re.findall(r"[\w.]+", text))

    def _no_such(self, trees: Sequence[Any], args: Mapping[str, Any]) -> str:
        words = [_tree_name(t) for t in trees] + [f"{k}={_spelled(v)}" for k, v in args.items()]
        given = f"{self.name}({', '.join(words)})"
        lines = [f"this program has no {given}; it declares"]
        lines += [f"  {_shown(v)}{self._user(v)}" for v in self.variants]
        if all(isinstance(t, Module | Part | Constructor) for t in trees):
            lines.append(f"  help: declare the argument of the export as {given}")
        else:
            lines.append(f"  help: all but modules by name: {_shown(self.variants[0])}")
        return "\n".join(lines)

    def _user(self, sig: ModuleSig) -> str:
        """Where an export takes it."""
        for export in self._exports:
            for arg in export.args:
                if arg.kind == "module" and arg.module == sig.id:
                    place = arg.place or export.place
                    return f"   ({export.name}, argument {arg.name}" + (
                        f", {place})" if place else ")"
                    )
        return ""


def _matches(
    sig: ModuleSig, trees: Sequence[Any], args: Mapping[str, Any], words: frozenset[str]
) -> bool:
    """Whether a user's arguments are those of `sig`; what is not a default must be given.

    `words`: with which exports name the type."""
    names = [n for n in sig.args if n in sig.trees]
    if len(trees) > len(names):
        return False
    given = {**dict(zip(names, trees, strict=False)), **args}
    for name, value in given.items():
        if name in sig.trees:
            if not _same_tree(sig, name, value, words):
                return False
        elif not _same_value(sig.args.get(name, sig.defaults.get(name)), value):
            return False
    return all(n in given or n in sig.trees for n in sig.args)


def _same_tree(sig: ModuleSig, name: str, value: Any, words: frozenset[str]) -> bool:
    match value:
        case Module():
            return value.sig.id == sig.trees[name]
        case Part():
            return value.name in words
        case Constructor():
            return any(v.id == sig.trees[name] for v in value.variants)
    return False


def _same_value(declared: str | None, value: Any) -> bool:
    if declared is None:
        return False
    if isinstance(value, bool):
        return declared == str(value).lower()
    try:
        return float(declared) == float(value)
    except (TypeError, ValueError):
        return declared == str(getattr(value, "__name__", value))


def _tree_name(value: Any) -> str:
    match value:
        case Module():
            return value.sig.id
        case Part() | Constructor():
            return value.name
    return repr(value)


def _spelled(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _shown(sig: ModuleSig) -> str:
    words = [f"{v}" if n in sig.trees else f"{n}={v}" for n, v in sig.args.items()]
    return f"{sig.name}({', '.join(words)})" if words else sig.name
