"""Loads object code into this process and calls it."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from nnc.errors import DeviceError, IndexError, LoadError
from nnc.ir.calltable import NOTHING, ONE
from nnc.ir.signature import Native, Support, Use
from nnc.lang.dims import Dim
from nnc.runtime.available import available
from nnc.runtime.elf import Loaded, process_symbol
from nnc.runtime.kept import Keeps, Kept
from nnc.runtime.leaves import Store
from nnc.runtime.memory import Array, aligned, human, pointer, rounded

_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
_shared: dict[str, Loaded] = {}  # never unloaded: workers stand in the pool's code
_symbols: dict[str, int] = {}  # of what is shared
_shared_lock = threading.Lock()


def install(support: Support) -> None:
    """Loads shared code, once per process; models refer to its symbols."""
    with _shared_lock:
        if support.name in _shared:
            return
        loaded = _loaded(support.data, (), {})
        loaded.stay()  # workers spin in it when the interpreter ends
        _symbols.update({n: loaded.symbols[n] for n in (*support.functions, *support.tables)})
        _shared[support.name] = loaded


def shared_symbol(name: str) -> int | None:
    """The address of a function of the shared code that was installed."""
    return _symbols.get(name)


def library(path: str | Path) -> ctypes.CDLL:
    """A shared library with functions that programs call. LoadError when it cannot be loaded."""
    try:
        return ctypes.CDLL(os.path.abspath(path) if os.path.exists(path) else str(path))
    except OSError as error:
        raise LoadError(f"cannot load the library {path}: {error}") from None


def extern_symbol(name: str, libraries: Sequence[ctypes.CDLL]) -> int:
    """The address of a C function, of the first library that has it, else of this process.

    LookupError when there is none.
    """
    for each in libraries:
        function = getattr(each, name, None)
        found = None if function is None else ctypes.cast(function, ctypes.c_void_p).value
        if found:
            return found
    return process_symbol(name)


def _loaded(data: bytes, libraries: Sequence[ctypes.CDLL], parts: Mapping[str, int]) -> Loaded:
    """`parts`: functions of other objects of the same code."""

    def resolve(name: str) -> int:
        return parts.get(name) or _symbols.get(name) or extern_symbol(name, libraries)

    try:
        return Loaded(data, resolve)
    except LookupError as error:
        raise LoadError(f"this code calls a function that no library has: {error}") from None
    except ValueError as error:
        raise DeviceError(f"this object code cannot be loaded: {error}") from None


def find_externs(natives: Sequence[Native], libraries: Sequence[ctypes.CDLL]) -> None:
    """LoadError, with the cure, unless every C function that the natives call is there."""
    for each in dict.fromkeys(e for n in natives for e in n.externs):
        try:
            extern_symbol(each.symbol, libraries)
        except LookupError:
            raise LoadError(
                f"no library has `{each.symbol}`, which is called at {each.place}\n"
                f"  declared in C: {each.prototype}\n"
                '  help: nnc.load(..., libraries=["./lib.so"]) with the library that defines it; '
                "make one by `gcc -O2 -shared -fPIC -o lib.so lib.c`"
            ) from None


class Code:
    """The object files of one model; each is loaded when one of its functions is asked for."""

    def __init__(
        self,
        objects: Sequence[bytes],
        support: Sequence[Support] = (),
        libraries: Sequence[ctypes.CDLL] = (),
    ) -> None:
        """`libraries`: where C functions are looked for, before the process itself."""
        self.libraries = tuple(libraries)
        self.objects = tuple(objects)
        self.support = tuple(support)
        self._loaded: dict[int, Loaded] = {}
        self._lock = threading.Lock()

    def address(self, native: Native) -> int:
        with self._lock:
            if native.object not in self._loaded:
                for each in self.support:
                    install(each)
                symbols: dict[str, int] = {}
                for i in (*native.parts, native.object):
                    loaded = _loaded(self.objects[i], self.libraries, symbols)
                    self._loaded[i] = loaded
                    symbols |= loaded.symbols
            return self._loaded[native.object].symbols[native.symbol]


class Entry:
    """One native function with the memory of its calls: context, sizes, pointers, workspace.

    One call at a time, under `lock`: fill `dims`, `args` and `rng`, then `run`.
    """

    def __init__(self, native: Native, code: Code, args: int) -> None:
        self.native = native
        self.lock = threading.Lock()
        self.dims: Array = np.zeros(max(len(native.dims), 1), np.int64)
        self.args: Array = np.zeros(max(args, 1), np.uintp)
        self.rng: Array = np.zeros(2, np.int64)  # seed, step
        self.rng_pointers = (pointer(self.rng), pointer(self.rng) + 8)
        self._context: Array = np.zeros(7, np.int64)
        self._kept = Kept()
        self._workspace: Array = np.zeros(0, np.uint8)
        self._size = 0
        self._last: dict[int, Array] = {}  # the pointers that stand at a position
        self._last_dims: Array | None = None
        self.address = code.address(native)
        self.pointers = tuple(pointer(a) for a in (self._context, self.dims, self.args))
        self._function = _FUNCTION(self.address)
        self._code = code

    def record_times(self, table: Array) -> None:
        """Where code that takes times adds them up (`nnc.codegen.profile`)."""
        self._times = table  # lives as long as the code may write to it
        self._context[6] = pointer(table)

    def set_dims(self, dims: Array) -> None:
        if dims is not self._last_dims:
            self.dims[: len(dims)] = dims
            self._last_dims = dims

    def set_pointers(self, position: int, pointers: Array) -> int:
        """Writes the pointers of a module or tree; returns the position after them."""
        if self._last.get(position) is not pointers:
            self.args[position : position + len(pointers)] = pointers
            self._last[position] = pointers
        return position + len(pointers)

    def run(self, arena: int, threads: int) -> None:
        """Calls with the present `dims` and `args`; `arena`: workspace bytes but the threads'."""
        self.prepare(arena, threads)
        if self._function(*self.pointers):
            raise self.index_error()

    @contextmanager
    def keeping(self, keeps: Keeps | None, modules: Sequence[Store]) -> Iterator[None]:
        """Around a run, after `prepare` and with all arguments: what earlier runs kept is used if
        it is still right, and made if that is worth it.

        `keeps`: None: nothing is to be kept, and the workspace is another's.
        """
        word = NOTHING
        try:
            if keeps is None:
                self._kept.forget()
            else:
                word, missing = self._kept.before(keeps, modules)
                for copy in missing:
                    self._context[5] = ONE + copy
                    self._function(*self.pointers)
                    self._kept.made(copy, keeps, modules, self._workspace)
            self._context[5] = word
            yield
        except BaseException:
            self._kept.forget()
            raise

    def prepare(self, arena: int, threads: int) -> None:
        """Workspace for a call of `threads` threads."""
        need = rounded(arena) + threads * self.scratch()
        context = self._context
        if need > self._size:
            self._size = 0
            self._kept.forget()
            try:
                self._workspace = aligned(need, zero=False)
            except DeviceError as error:
                raise DeviceError(f"{error}\n{self._plan(need, threads)}") from None
            self._size = need
            context[0] = pointer(self._workspace)
        context[1] = threads

    def scratch(self) -> int:
        """Bytes for each thread, with the present `dims`."""
        each = self.native.scratch.const
        if each is not None:
            return each
        env = {n: int(d) for n, d in zip(self.native.dims, self.dims, strict=False)}
        return self.native.scratch.evaluate(env)

    def _plan(self, need: int, threads: int) -> str:
        """Which call asks for how much, what would fit, and the command that shows more."""
        env = {n: int(d) for n, d in zip(self.native.dims, self.dims, strict=False)}
        at = ", ".join(f"{n} = {d}" for n, d in env.items())
        name = self.native.symbol.removeprefix("nn_")
        lines = [f"  {name}" + (f" at {at}" if at else "") + f": workspace {human(need)}"]
        rows = [
            (u.label, human(u.bytes.evaluate(env)), self._use(u, env)) for u in self.native.uses
        ]
        rows.append(("threads", human(threads * self.scratch()), f"{threads} x scratch"))
        width, digits = (max(len(row[i]) for row in rows) for i in (0, 1))
        lines += [f"    {a:{width}}  {b:>{digits}}   {c}" for a, b, c in rows]
        largest = largest_sizes(self.native.arena, env, available() - threads * self.scratch())
        if largest:
            lines.append("  help: fits with " + ", or ".join(f"{n} <= {d}" for n, d in largest))
        flags = "".join(f" --{n} {d}" for n, d in env.items())
        lines.append(f"  help: `nnc plan MODEL.nn {name}{flags}` lists it by source line;")
        lines.append("        `recompute(...)` or nnc.load(..., max_memory=...) needs less")
        return "\n".join(lines)

    def _use(self, use: Use, env: Mapping[str, int]) -> str:
        size = human(use.largest.evaluate(env))
        return f"= {use.bytes} bytes; largest: {use.name}, {use.place}, {size}"

    def index_error(self) -> IndexError:
        """Why the last call was refused."""
        site, value, extent = (int(x) for x in self._context[2:5])
        place, text = self.native.sites[site - 1] if site else ("?", "?")
        return IndexError(f"index {value} is outside 0 ... {extent - 1} at {place}\n  {text}")


def largest_sizes(need: Dim, env: Mapping[str, int], most: int) -> list[tuple[str, int]]:
    """For each size how large it may be, the others as they are, so that `need` bytes are there."""
    out = []
    for name in need.names:
        low, high = 0, env[name]
        while high - low > 1:
            middle = (low + high) // 2
            fitting = rounded(need.evaluate({**env, name: middle})) <= most
            low, high = (middle, high) if fitting else (low, middle)
        out += [(name, low)] if low else []
    return sorted(out)
