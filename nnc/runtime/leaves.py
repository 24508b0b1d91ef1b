"""Stored tensors: all leaves of a module (or tree) in one 64-byte aligned buffer."""

from __future__ import annotations

import threading
import weakref
import zlib
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from nnc.errors import ArgumentError, AttributeError, DtypeError, KeyError, ShapeError, nearest
from nnc.ir.signature import ArgSig, Leaf, ModuleSig
from nnc.lang.types import DTYPES, DType, TensorType
from nnc.runtime import checkpoint
from nnc.runtime.arrays import tensor_argument
from nnc.runtime.away import LEAST, Slabs, give_back
from nnc.runtime.boundary import boundary
from nnc.runtime.checkpoint import Wanted
from nnc.runtime.memory import Array, aligned, cast_help, human, numpy_dtype, pointer, rounded

_RETURNS = 2  # so often leaves come back before they stay


class Layout:
    """Where each leaf lies: offsets are multiples of 64."""

    def __init__(self, leaves: tuple[Leaf, ...]) -> None:
        self.leaves = leaves
        self.shapes = tuple(leaf_shape(leaf) for leaf in leaves)
        self.offsets: list[int] = []
        self.nbytes = self.elements = 0
        self.places: dict[str, tuple[Leaf, tuple[int, ...], int]] = {}
        at = 0
        for leaf, shape in zip(leaves, self.shapes, strict=True):
            self.offsets.append(at)
            self.places[leaf.key] = leaf, shape, at
            count = int(np.prod(shape, dtype=object))
            self.elements += count if leaf.storage == "param" else 0
            self.nbytes += count * DTYPES[leaf.type.dtype].bytes
            at += rounded(count * DTYPES[leaf.type.dtype].bytes)
        self.size = at

    def views(self, buffer: Array) -> dict[str, Array]:
        return {key: self.view(buffer, key) for key in self.places}

    def view(self, buffer: Array, key: str) -> Array:
        leaf, shape, at = self.places[key]
        return np.ndarray(shape, numpy_dtype(leaf.type.dtype), buffer.data, at)


def leaf_shape(leaf: Leaf) -> tuple[int, ...]:
    return tuple(d.evaluate({}) for d in leaf.type.shape)


@lru_cache(256)
def layout_of(leaves: tuple[Leaf, ...]) -> Layout:
    return Layout(leaves)


class _Loan:
    """The memory of a Store as it is handed out: every array made from it, however indirectly,
    keeps this object alive."""

    def __init__(self, memory: Array) -> None:
        self.memory = memory
        self.__array_interface__ = memory.__array_interface__


class Witness:
    """Whether a Store holds the numbers that it held when this was made.

    Writes through nnc are counted. A view may be written to at any time: the numbers are looked at
    when there is one already, or before the first is handed out, and again when asked.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._version = store.version
        self._seen: int | None = None
        store._witnesses.add(self)
        if store.lent:
            self.look()

    def look(self) -> None:
        """Remembers the numbers, if they are still what they were."""
        if self._seen is None and self.store.version == self._version:
            self._seen = self.store.fingerprint()

    @property
    def changed(self) -> bool:
        store = self.store
        if store.version != self._version:
            return True
        return self._seen is not None and self._seen != store.fingerprint()


class Store:
    """Named arrays: `s[key]` is a writable view (bf16: see `memory.numpy_dtype`).

    Who holds a view may write at any time. So that nobody relies on numbers that may have changed
    (`nnc.runtime.kept`), the Store knows whether views are about (`lent`), and its `state` changes
    when one is handed out and when something is written through nnc.

    A Mapping by registration only: `isinstance(x, Store)` is asked in every call and is ten times
    as slow for a subclass of Mapping.
    """

    def __init__(self, sig: ModuleSig, leaves: tuple[Leaf, ...]) -> None:
        self.sig = sig
        self.layout = layout_of(leaves)
        self._buffer = aligned(max(self.layout.size, 1))
        self._arrays = self.layout.views(self._buffer)
        base = self._buffer.ctypes.data
        self.span = (base, base + self._buffer.nbytes)  # addresses
        self.addresses = np.array([base + at for at in self.layout.offsets], np.uintp)
        self._param_addresses = self.addresses
        self._away: dict[str, Slabs] = {}  # leaves that are only in memory as these copies
        self._user: weakref.ref[object] | None = None  # the only one whose copies count
        self._shared, self._returns = False, 0
        self._lock = threading.RLock()  # around `_away`, and what is written here or lent
        self._version: Array = np.zeros(2, np.int64)  # changes; those of other kinds, and lendings
        self.counter = pointer(self._version)  # native code counts here too
        self._loans: set[weakref.ref[_Loan]] = set()
        self._witnesses: weakref.WeakSet[Witness] = weakref.WeakSet()

    @property
    def pointers(self) -> Array:
        """The addresses of all leaves, for any code: they are and stay in memory."""
        self.stay()
        return self.addresses

    @property
    def param_pointers(self) -> Array:
        """Those of the parameters."""
        self.stay()
        return self._param_addresses

    def addresses_for(self, user: object) -> Array:
        """The addresses of all leaves for one that says `come_back` before it reads what it has
        asked to `give_back`. With a second one they stay in memory."""
        if not self._shared:
            with self._lock:
                before = None if self._user is None else self._user()
                if before is None:
                    self.come_back()
                    self._user = weakref.ref(user)
                elif before is not user:
                    self.stay()
        return self.addresses

    def stay(self) -> None:
        """All leaves are in memory from now on."""
        if not self._shared:
            with self._lock:
                self._shared = True
                self.come_back()

    def come_back(self) -> None:
        """All leaves are in memory."""
        with self._lock:
            self._returns += bool(self._away)
            for key, slabs in self._away.items():
                slabs.write(self._arrays[key])
            self._away.clear()

    def give_back(self, leaf: int, slabs: Slabs, state: object) -> bool:
        """Leaves only a copy of a leaf in memory, if it can be had from that: nobody else reads it,
        and the copy was made in this `state`."""
        key = self.layout.leaves[leaf].key
        with self._lock:
            often = self._shared or self._returns >= _RETURNS
            if often or self._loans or self.state() != state or key in self._away:
                return False
            array = self._arrays[key]
            if array.nbytes < LEAST or not give_back(array):
                return False
            self._away[key] = slabs
            return True

    @property
    def version(self) -> int:
        """Counts changes that go through nnc."""
        return int(self._version[0])

    @version.setter
    def version(self, count: int) -> None:
        self._version[0] = count
        self._version[1] += 1

    def state(self) -> tuple[int, int]:
        """Equal to an earlier one only if nothing was written through nnc or lent since; the two
        words at `counter`."""
        return int(self._version[0]), int(self._version[1])

    def fingerprint(self) -> int:
        """A checksum of all bytes; one number written over another always shows."""
        self.come_back()
        return zlib.crc32(self._buffer.data)

    @property
    def lent(self) -> bool:
        """Whether somebody holds a view."""
        return bool(self._loans)

    @property
    def buffer(self) -> Array:
        """All bytes."""
        for witness in list(self._witnesses):
            witness.look()
        with self._lock:
            self.come_back()
            loan = _Loan(self._buffer)
            self._loans.add(weakref.ref(loan, self._loans.discard))
            self._version[1] += 1  # after the loan is known, before anybody has it
        return np.asarray(loan)

    @property
    def arrays(self) -> dict[str, Array]:
        """All views."""
        return self.layout.views(self.buffer)

    def tensors(self, prefix: str = "") -> dict[str, Wanted]:
        dtypes = (leaf.type.dtype for leaf in self.layout.leaves)
        pairs = zip(self.arrays.items(), dtypes, strict=True)
        return {prefix + key: Wanted(dtype, array) for (key, array), dtype in pairs}

    @boundary
    def __getitem__(self, key: str) -> Array:
        return self.layout.view(self.buffer, self._known(key))

    @boundary
    def __setitem__(self, key: str, value: Any) -> None:
        array = self._arrays[self._known(key)]
        leaf, _, _ = self.layout.places[key]
        given = _fitting(key, leaf.type.dtype, array, value)
        with self._lock:
            self.come_back()
            array[...] = given
            self.version += 1

    @boundary
    def __setattr__(self, name: str, value: object) -> None:
        if name not in _ATTRIBUTES and not name.startswith("_"):
            raise AttributeError(_no_attribute(self._title(), name, self._arrays))
        object.__setattr__(self, name, value)

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __contains__(self, key: object) -> bool:
        return key in self._arrays

    def keys(self) -> KeysView[str]:
        return self._arrays.keys()

    def values(self) -> ValuesView[Array]:
        return self.arrays.values()

    def items(self) -> ItemsView[str, Array]:
        return self.arrays.items()

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self._arrays else default

    def __repr__(self) -> str:
        count, size = self.layout.elements, human(self.layout.nbytes)
        return f"<{self._title()}: {count:,} parameters, {len(self)} tensors, {size}>"

    def _title(self) -> str:
        return self.sig.id

    def _known(self, key: str) -> str:
        if key not in self._arrays:
            raise KeyError(f"{self._title()} has no {key!r}{nearest(str(key), self._arrays)}")
        return key


Mapping.register(Store)
_ATTRIBUTES = frozenset(("sig", "layout", "span", "addresses", "counter", "version"))


def _no_attribute(owner: str, name: str, keys: Iterable[str]) -> str:
    """Tensors are items, not attributes."""
    if name in keys:
        return f"a tensor of {owner} is reached by its key\n  help: [{name!r}] for .{name}"
    return f"{owner} has no attribute {name!r}{nearest(name, keys)}"


def _fitting(key: str, dtype: DType, array: Array, value: Any) -> Any:
    """The value when it may be stored in `array`."""
    if array.ndim == 0 and isinstance(value, bool | int | float):
        return tensor_argument("assignment", ArgSig(key, "tensor", TensorType(dtype)), value)
    if isinstance(value, bool | int | float):
        raise ShapeError(
            f"{key} has the shape {array.shape}, given was the number {value}\n"
            f"  help: [{key!r}][...] = {value} fills it"
        )
    given = np.asarray(value)
    if given.dtype != array.dtype:
        cure = cast_help("value", given, dtype, value)
        text = f"{key} is {dtype}, the given array is {given.dtype}"
        raise DtypeError(text + (f"\n  help: {cure}" if cure else ""))
    if given.shape != array.shape:
        raise ShapeError(f"{key} has the shape {array.shape}, the given array {given.shape}")
    return given


def param_leaves(sig: ModuleSig) -> tuple[Leaf, ...]:
    return tuple(leaf for leaf in sig.leaves if leaf.storage == "param")


class Tree(Store):
    """A value of type `params(M)`: gradients, averages; `t[key]` as for the module."""

    def __init__(self, sig: ModuleSig) -> None:
        super().__init__(sig, param_leaves(sig))

    def _title(self) -> str:
        return f"params({self.sig.id})"


class Module(Store):
    """One module with its parameters and state.

    `net["fc1.weight"]` is a writable NumPy view; `net["fc1.weight"] = array` checks shape, dtype.
    """

    def __init__(self, sig: ModuleSig, model: Any) -> None:
        super().__init__(sig, sig.leaves)
        self._model = model
        params = [leaf.storage == "param" for leaf in sig.leaves]
        self._param_addresses = self.addresses[np.array(params, bool)]

    @boundary
    def save(self, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
        """Writes a safetensors file, as a whole or not at all. SaveError naming path and reason."""
        checkpoint.save(path, self.tensors(), metadata)

    @boundary
    def load(
        self,
        path: str | Path,
        rename: Mapping[str, str] | None = None,
        skip: Sequence[str] = (),
    ) -> None:
        """Reads all leaves from a safetensors file, strictly; a failed load changes nothing.

        `rename={"norm": "bn"}` changes the file's keys, `skip=["fc.*"]` leaves keys alone.
        """
        owner = checkpoint.Owner(self._owner(), absent=self.sig.absent)
        checkpoint.load(path, self.tensors(), owner, rename, skip)
        self.version += 1

    def copy(self) -> Module:
        """Another module with the same numbers."""
        other = Module(self.sig, self._model)
        with self._lock:
            self.come_back()
            other._buffer[...] = self._buffer
        return other

    def __copy__(self) -> Module:
        return self.copy()

    def __deepcopy__(self, memo: dict[int, object]) -> Module:
        return self.copy()

    @boundary
    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise ArgumentError(
            f"a {self.sig.id} cannot be pickled\n  help: save(path) and load(path) keep its numbers"
        )

    @boundary
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`net(x)`: the export `forward` of this module's type."""
        method = self._method("forward")
        if method is None:
            raise ArgumentError(f"the program exports no `forward` of {self.sig.id}{self._hint()}")
        return method(self, *args, **kwargs)

    @boundary
    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        method = self._method(name)
        if method is not None:
            return lambda *args, **kwargs: method(self, *args, **kwargs)
        if any(key.startswith(f"{name}.") for key in self._arrays):
            return Part(self, name)
        if name in self._arrays:
            raise AttributeError(_no_attribute(self.sig.id, name, self._arrays))
        raise AttributeError(f"{self.sig.id} has no member {name!r}{self._hint()}")

    def __dir__(self) -> list[str]:
        heads = {key.split(".")[0] for key in self._arrays if "." in key}
        return sorted({*super().__dir__(), *heads, *self._methods()})

    def _method(self, name: str) -> Any:
        return self._methods().get(name)

    def _methods(self) -> dict[str, Any]:
        """Exports whose first argument is a module of this type."""
        exports = self._model.exports if self._model is not None else {}
        return {n: e for n, e in exports.items() if e.takes_first(self.sig.id)}

    def _hint(self) -> str:
        names = ", ".join(self._methods())
        return f"\n  help: exported for it: {names}" if names else ""

    def _owner(self) -> str:
        return f"`{self.sig.id}`" + (f" ({self.sig.place})" if self.sig.place else "")


class Part(Mapping[Any, Any]):
    """A sub-module of a module: the leaves below one path, with keys relative to it."""

    def __init__(self, module: Module, path: str) -> None:
        self.module, self.path = module, path

    @boundary
    def __getitem__(self, key: str | int) -> Any:
        """A tensor by its key; one of a list of modules by its number."""
        path = f"{self.path}.{key}"
        if isinstance(key, int) and any(k.startswith(f"{path}.") for k in self.module):
            return Part(self.module, path)
        return self.module[path]

    @boundary
    def __setitem__(self, key: str, value: Any) -> None:
        self.module[f"{self.path}.{key}"] = value

    def __iter__(self) -> Iterator[str]:
        start = f"{self.path}."
        return (key.removeprefix(start) for key in self.module if key.startswith(start))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @boundary
    def __getattr__(self, name: str) -> Part:
        if not name.startswith("_") and any(key.startswith(f"{name}.") for key in self):
            return Part(self.module, f"{self.path}.{name}")
        if name in set(self):
            raise AttributeError(_no_attribute(self.name, name, set(self)))
        raise AttributeError(f"{self.name} has no member {name!r}")

    @boundary
    def __setattr__(self, name: str, value: object) -> None:
        if name not in ("module", "path"):
            raise AttributeError(_no_attribute(self.name, name, set(self)))
        object.__setattr__(self, name, value)

    @property
    def name(self) -> str:
        """In the words of a type: `Flowers.head`."""
        return f"{self.module.sig.name}.{self.path}"

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<{self.name}: {sum(a.size for a in self.values()):,} numbers>"
