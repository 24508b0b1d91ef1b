"""What a compiled file offers, as data: modules with their leaves, exports with argument types.

It is built by the compiler, written to the artifact's json, and all that the runtime knows of a
program.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nnc.lang.dims import ZERO, Dim
from nnc.lang.types import TensorType


@dataclass(frozen=True)
class Leaf:
    """One stored tensor of a module; `key`: its safetensors key (canonical path, `as` applied)."""

    key: str
    type: TensorType  # every size a number
    storage: str  # "param" or "state"
    place: str = ""  # file:line of its declaration


@dataclass(frozen=True)
class Slot:
    """Leaves that `init` fills from a file: `from weights(name, rename=..., skip=...)`."""

    name: str
    prefix: str  # "body." (with the dot), "" for the whole module; the file's keys lack it
    rename: dict[str, str] = field(default_factory=dict)
    skip: tuple[str, ...] = ()
    place: str = ""


@dataclass(frozen=True)
class ModuleSig:
    """One module type with its arguments, e.g. `MLP`, `GPT2(L=2)`, `SGD(MLP)`.

    `args`: the arguments that differ from the defaults and every tree argument, in the reader's
    words (`{"P": "MLP"}`, `{"L": "2"}`); `trees`: those that name another module type -> its `id`.
    `init`: the symbol of the hidden export that computes all leaves (results in leaf order) from
    (seed: i64, step: i64), or "" when there are no leaves. `absent`: keys of params whose condition
    (`when`) does not hold, and where the reader's text says so.
    """

    id: str
    name: str
    leaves: tuple[Leaf, ...]
    args: dict[str, str] = field(default_factory=dict)
    trees: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, str] = field(default_factory=dict)  # every other parameter and its value
    init: str = ""
    place: str = ""
    slots: tuple[Slot, ...] = ()
    absent: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ArgSig:
    """One argument of an export.

    `kind`: "tensor" (scalars have rank 0), "dim" (a Python integer: the run-time size `name`),
    "module" (all leaves of `module`, in order, each one native argument), "tree" (params(module):
    its param leaves), "rng" (supplied by the runtime: name `seed` or `step`, i64 scalars).
    `packs`: axis positions of `type` that stand for any number of axes (`..N`), merged into one.
    """

    name: str
    kind: str
    type: TensorType | None = None
    module: str = ""
    inout: bool = False
    default: float | int | bool | None = None
    packs: tuple[int, ...] = ()
    place: str = ""
    text: str = ""  # the type as written


@dataclass(frozen=True)
class ResultSig:
    """One result: a tensor, or a tree ("tree": one native result per param leaf of `module`)."""

    kind: str
    type: TensorType | None = None
    module: str = ""
    packs: tuple[int, ...] = ()


@dataclass(frozen=True)
class Check:
    """A condition checked at entry: `dim` >= 0 (or == 0 when `equal`). `text`: as written."""

    dim: Dim
    equal: bool
    text: str
    place: str
    note: str = ""  # where a number in it comes from


@dataclass(frozen=True)
class ExportSig:
    """One exported function. Native results are passed as pointers after the arguments.

    Sizes are solved from the argument shapes (an axis that is linear in one unknown name) and `dim`
    arguments. Every axis-determined size must be >= 1; `dim` arguments >= 0.
    """

    name: str
    symbol: str
    args: tuple[ArgSig, ...]
    results: tuple[ResultSig, ...]
    returns_tuple: bool
    dims: tuple[str, ...]  # ABI order
    checks: tuple[Check, ...] = ()
    doc: str = ""
    place: str = ""
    text: str = ""  # the signature as written
    probes: tuple[str, ...] = ()  # paths of values that can be asked for


@dataclass(frozen=True)
class Extern:
    """A C function that native code calls: `prototype` as C declares it, `place` of a call."""

    symbol: str
    prototype: str
    place: str


@dataclass(frozen=True)
class Copy:
    """What a native entry keeps at byte `start` of its workspace, made from modules alone.

    `reads`: of contractions, each of which may read it where its number is not negative (none:
    every call reads it). `leaf`: the number of the argument that none of them reads where the
    numbers of `alone` are not negative, -1: it is read all the same. Elements of that argument are
    `strides` apart along axes of `extents`; the copy has the first `columns` of these as columns,
    the rest as rows, in slabs (see `nnc.runtime.away.Slabs`).
    """

    start: int
    reads: tuple[Dim, ...] = ()
    alone: tuple[Dim, ...] = ()
    leaf: int = -1
    extents: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    columns: int = 0

    def needed(self, env: Mapping[str, int]) -> bool:
        """Whether a call with these sizes reads it."""
        return not self.reads or any(d.evaluate(env) >= 0 for d in self.reads)

    def replaces(self, env: Mapping[str, int]) -> bool:
        """Whether it reads nothing of the leaf but the copy."""
        return self.leaf >= 0 and all(d.evaluate(env) >= 0 for d in self.alone)


@dataclass(frozen=True)
class Special:
    """A variant inside a native entry, for calls with these sizes: its workspace."""

    sizes: tuple[tuple[str, int], ...]
    arena: Dim
    scratch: Dim
    kept: Dim = ZERO  # see `Native`
    copies: tuple[Copy, ...] = ()

    @property
    def text(self) -> str:
        """As it is written: `T=1`."""
        return ", ".join(f"{n}={v}" for n, v in self.sizes)

    def fits(self, env: Mapping[str, int]) -> bool:
        return all(env[n] == v for n, v in self.sizes)


@dataclass(frozen=True)
class Use:
    """Bytes of the arena for one purpose, and the largest value among them with its line."""

    label: str
    bytes: Dim
    name: str
    place: str
    largest: Dim


@dataclass(frozen=True)
class Native:
    """One native entry point: the export's code as an object file and what it needs to run."""

    symbol: str
    object: int  # index of the object file
    dims: tuple[str, ...]
    arena: Dim  # bytes, a polynomial in the dims
    scratch: Dim  # bytes for each thread, after the arena
    work: Dim  # about how many scalar operations
    sites: tuple[tuple[str, str], ...] = ()  # of run-time index checks: (file:line:column, text)
    externs: tuple[Extern, ...] = ()
    specials: tuple[Special, ...] = ()  # in the order in which they are tried
    uses: tuple[Use, ...] = ()  # of the arena when it is fullest
    kept: Dim = ZERO  # with how many rows it multiplies what it can keep; 0: it keeps nothing
    parts: tuple[int, ...] = ()  # further objects, with functions that the first one calls
    copies: tuple[Copy, ...] = ()  # what it can keep, each made by the number that it has here

    def keeps(self, env: Mapping[str, int]) -> tuple[int, int]:
        """Which variant runs, and with how many rows it multiplies what it can keep."""
        for i, special in enumerate(self.specials):
            if special.fits(env):
                return i + 1, special.kept.evaluate(env)
        return 0, self.kept.evaluate(env)

    def copies_at(self, env: Mapping[str, int]) -> tuple[Copy, ...]:
        """Those of the variant that runs."""
        variant, _ = self.keeps(env)
        return self.specials[variant - 1].copies if variant else self.copies

    def arena_at(self, env: Mapping[str, int]) -> int:
        """Bytes of the arena of a call, `scratch` being the largest of all variants."""
        for special in self.specials:
            if special.fits(env):
                return special.arena.evaluate(env)
        return self.arena.evaluate(env)


@dataclass(frozen=True)
class Manifest:
    """Everything about one compiled file but the code."""

    source: str
    target: str
    modules: tuple[ModuleSig, ...]
    exports: tuple[ExportSig, ...]
    natives: tuple[Native, ...]


@dataclass(frozen=True)
class Differentiated:
    """`forward` and `backward` of one export, compiled on first use.

    `forward` takes the export's native arguments; its results are the export's native results,
    then one for each of `saved`. `backward` takes, in the order of `inputs`: original arguments by
    native name (`x`, `net.fc1.weight`, `seed`, `step`; an `inout` argument as `forward` left it),
    `saved.N`, and `d.N`, the derivative of the N-th native result (float results only). Its results
    are the gradients of `gradients`, native names of float arguments that are not `inout` (of
    modules and trees the param leaves), each of its argument's type.
    """

    forward: Native
    backward: Native
    saved: tuple[TensorType, ...]
    inputs: tuple[str, ...]
    gradients: tuple[str, ...]
    objects: tuple[bytes, ...] = ()  # what the natives' `object` counts
    support: tuple[Support, ...] = ()


@dataclass(frozen=True)
class Variant:
    """An export compiled once more, with further results behind its own; on demand."""

    native: Native
    results: tuple[TensorType, ...]  # of the further results
    objects: tuple[bytes, ...] = ()
    support: tuple[Support, ...] = ()


@dataclass(frozen=True)
class Support:
    """Object code that models share: the worker pool, the micro-kernels of a dtype.

    Loaded once per process (`name` identifies it); `functions` and `tables` are the symbols that
    models refer to.
    """

    name: str
    data: bytes
    functions: tuple[str, ...]
    tables: tuple[str, ...] = ()
