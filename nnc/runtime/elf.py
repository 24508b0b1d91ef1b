"""Loads one ELF object (x86-64, as LLVM writes it) into this process.

Code, constants and data lie in one block, so that relative addresses reach: LLVM's own loader maps
sections one by one, and aborts the process when gigabytes of arrays lie between two of them.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

PAGE = mmap.PAGESIZE
WRITE, ALLOC, EXEC = 1, 2, 4  # flags of sections
SYMTAB, RELA, NOBITS, UNWIND = 2, 4, 8, 0x70000001  # types of sections
ABS64, PC32, PLT32, GOTPCREL, GOTPCRELX, REX_GOTPCRELX = 1, 2, 4, 9, 41, 42
GOT = (GOTPCREL, GOTPCRELX, REX_GOTPCRELX)
JUMP = b"\xff\x25\x02\x00\x00\x00\x00\x00"  # jmp *2(%rip), filled up to 8 bytes; then the address
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


@dataclass(frozen=True)
class Section:
    name: int
    type: int
    flags: int
    addr: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry: int

    @property
    def loaded(self) -> bool:
        """No exception passes through this code: its unwind tables stay behind."""
        return bool(self.flags & ALLOC) and self.type != UNWIND

    @property
    def group(self) -> int:
        """Sections with the same access lie together: 0 code, 1 constants, 2 data."""
        return 0 if self.flags & EXEC else 2 if self.flags & WRITE else 1


@dataclass(frozen=True)
class Symbol:
    name: str
    section: int  # 0: somewhere else
    value: int
    shared: bool = False  # known to other objects


@dataclass(frozen=True)
class Relocation:
    offset: int
    type: int
    symbol: int
    addend: int


@dataclass(frozen=True)
class Object:
    """The parts of an object file; ValueError when it is none for this machine."""

    data: bytes

    def __post_init__(self) -> None:
        if self.data[:6] != b"\x7fELF\x02\x01" or self.data[16:20] != b"\x01\x00\x3e\x00":
            raise ValueError("it is no x86-64 object file")

    @cached_property
    def sections(self) -> list[Section]:
        (start,) = struct.unpack_from("<Q", self.data, 0x28)
        (count,) = struct.unpack_from("<H", self.data, 0x3C)
        read = struct.Struct("<IIQQQQIIQQ")
        found = [Section(*read.unpack_from(self.data, start + 64 * i)) for i in range(count)]
        for s in found:
            if s.type != NOBITS and s.offset + s.size > len(self.data):
                raise ValueError("it is cut off")
        return found

    @cached_property
    def symbols(self) -> list[Symbol]:
        (table,) = (s for s in self.sections if s.type == SYMTAB)
        names = self.sections[table.link].offset
        out = []
        for at in range(table.offset, table.offset + table.size, 24):
            name, info, _, section, value, _ = struct.unpack_from("<IBBHQQ", self.data, at)
            end = self.data.index(b"\0", names + name)
            text = self.data[names + name : end].decode()
            out.append(Symbol(text, section, value, bool(info >> 4)))
        return out

    def relocations(self) -> Iterator[tuple[int, Relocation]]:
        """(section, what to write there), for the sections that are loaded."""
        for s in self.sections:
            if s.type == RELA and self.sections[s.info].loaded:
                for at in range(s.offset, s.offset + s.size, 24):
                    offset, info, addend = struct.unpack_from("<QQq", self.data, at)
                    yield s.info, Relocation(offset, info & 0xFFFFFFFF, info >> 32, addend)


class Loaded:
    """An object in memory, for as long as this lives. `resolve`: the address of a foreign name.

    ValueError when the data is no such object, or `resolve` raises LookupError.
    """

    def __init__(self, data: bytes, resolve: Callable[[str], int]) -> None:
        self._object = Object(data)
        self._resolve = resolve
        self._places: dict[int, int] = {}  # section -> offset
        self._slots: dict[int, int] = {}  # foreign symbol -> offset of its jump and address
        try:
            groups = self._layout()
            self._memory = mmap.mmap(-1, groups[-1], flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
            self._fill()
            for section, r in self._object.relocations():
                self._relocate(self._places[section] + r.offset, r)
        except (LookupError, struct.error) as error:
            raise ValueError(str(error)) from None
        self._protect(groups)
        found = [s for s in self._object.symbols if s.section in self._places]
        self.symbols = {s.name: self._address(s) for s in found}

    def stay(self) -> None:
        """Keeps it in memory to the very end of the process, after Python has thrown all away."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._memory))

    def _layout(self) -> tuple[int, ...]:
        """Places everything; returns where code, constants and data end."""
        at, ends = 0, []
        for group in range(3):
            for i, s in enumerate(self._object.sections):
                if s.loaded and s.group == group:
                    at = _rounded(at, s.align)
                    self._places[i] = at
                    at += s.size
            if group == 0:
                at = _rounded(at, 16)
                for _, r in self._object.relocations():
                    if self._foreign(r) and r.symbol not in self._slots:
                        self._slots[r.symbol] = at
                        at += 16
            at = _rounded(at, PAGE)
            ends.append(at)
        return tuple(ends)

    def _foreign(self, r: Relocation) -> bool:
        return r.type in GOT or self._object.symbols[r.symbol].section == 0

    def _fill(self) -> None:
        for i, at in self._places.items():
            s = self._object.sections[i]
            if s.type != NOBITS:
                self._memory[at : at + s.size] = self._object.data[s.offset : s.offset + s.size]
        for symbol, at in self._slots.items():
            address = self._address(self._object.symbols[symbol])
            self._memory[at : at + 16] = JUMP + struct.pack("<Q", address)

    def _address(self, symbol: Symbol) -> int:
        if symbol.section == 0:
            return self._resolve(symbol.name)
        return self._base + self._places[symbol.section] + symbol.value

    def _relocate(self, at: int, r: Relocation) -> None:
        symbol = self._object.symbols[r.symbol]
        if r.type == ABS64:
            struct.pack_into("<Q", self._memory, at, self._address(symbol) + r.addend)
            return
        if r.type in GOT:
            target = self._base + self._slots[r.symbol] + 8
        elif r.type == PLT32 and symbol.section == 0:
            target = self._base + self._slots[r.symbol]
        elif r.type in (PC32, PLT32) and symbol.section != 0:
            target = self._address(symbol)
        else:
            raise ValueError(f"relocation {r.type} of {symbol.name} is not supported")
        struct.pack_into("<i", self._memory, at, target + r.addend - (self._base + at))

    def _protect(self, ends: tuple[int, ...]) -> None:
        """Code can run, constants can be read; neither can be written."""
        starts = (0, *ends)
        for i, access in enumerate((mmap.PROT_READ | mmap.PROT_EXEC, mmap.PROT_READ)):
            size = ends[i] - starts[i]
            if size and _libc.mprotect(self._base + starts[i], size, access):
                raise OSError(ctypes.get_errno(), "this system lets no new code run")


def process_symbol(name: str) -> int:
    """The address of a function of the C library; LookupError when there is none."""
    try:
        found = ctypes.cast(getattr(_libc, name), ctypes.c_void_p).value
    except AttributeError:
        found = None
    if not found:
        raise LookupError(f"nothing is called {name}")
    return found


def _rounded(n: int, to: int) -> int:
    return -(-n // max(to, 1)) * max(to, 1)
