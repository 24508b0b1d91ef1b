"""The safetensors format: a reader that believes nothing and a writer that loses nothing.

A file is 8 bytes (header length, little endian), the header (JSON: name -> dtype, shape,
data_offsets; `__metadata__`: text -> text), and the data, tensors in header order without gaps.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from nnc.errors import LoadError, SaveError, as_path
from nnc.lang.types import DTYPES
from nnc.runtime.memory import Array, raw_bytes

MAX_HEADER = 100_000_000  # bytes; the limit of the format's own library
_SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2}
_SIZES |= {"U16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
_NAMES = {info.safetensors: name for name, info in DTYPES.items() if name != "real"}


@dataclass(frozen=True)
class Entry:
    """One tensor in a file; `begin`, `end`: bytes from the start of the data."""

    dtype: str  # the format's name, e.g. F32
    shape: tuple[int, ...]
    begin: int
    end: int

    def __str__(self) -> str:
        """As a type of the language: `f32[64, 3]`."""
        name = _NAMES.get(self.dtype, self.dtype)
        return name + (f"[{', '.join(map(str, self.shape))}]" if self.shape else "")


@dataclass(frozen=True)
class Header:
    entries: dict[str, Entry]
    metadata: dict[str, str]
    start: int  # of the data


# How files of other kinds begin.
_SAVE = "safetensors.torch.save_file(tensors, path) makes one"
_OTHERS = {
    b"PK\3\4": "an archive, as of torch.save or np.savez",
    b"\x80\2": "a pickle",
    b"\x80\4": "a pickle",
    b"\x80\5": "a pickle",
    b"\x93NUMPY": "an array of np.save",
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF file",
}


# ---- reading ----------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[tuple[BinaryIO, Header]]:
    """The file and its validated header. LoadError naming what is wrong."""
    try:
        # Not blocking: a FIFO must give the error below, not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError, TypeError) as error:
        raise LoadError(_cannot_read(path, error)) from None
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode):
        os.close(descriptor)
        raise LoadError(f"{path} is not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        try:
            header = _header(file, info.st_size)
        except _BadError as bad:
            raise LoadError(f"{path} is not a valid safetensors file: {bad}") from None
        except OSError as error:
            raise LoadError(_cannot_read(path, error)) from None
        yield file, header


def read_into(file: BinaryIO, header: Header, entry: Entry, array: Array, path: object) -> None:
    """Fills a C-contiguous array of the entry's size. LoadError when the file became shorter."""
    view = raw_bytes(array)
    try:
        file.seek(header.start + entry.begin)
        done = 0
        while done < len(view):
            count = file.readinto(view[done:])  # type: ignore[attr-defined]
            if not count:
                raise LoadError(f"{path} became shorter while it was read")
            done += count
    except OSError as error:
        raise LoadError(_cannot_read(path, error)) from None
    if entry.dtype == "BOOL" and any(x > 1 for x in set(view)):
        raise LoadError(f"{path} holds a bool that is neither 0 nor 1")


class _BadError(Exception):
    pass


def _cannot_read(path: object, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"cannot read {path}: {reason}"


def _header(file: BinaryIO, size: int) -> Header:
    prefix = file.read(8)
    if len(prefix) < 8:
        raise _BadError(f"it has {size} bytes")
    (length,) = struct.unpack("<Q", prefix)
    if length > MAX_HEADER:
        other = next((what for magic, what in _OTHERS.items() if prefix.startswith(magic)), None)
        if other is not None:
            raise _BadError(f"it is {other}\n  help: {_SAVE}")
        raise _BadError(f"a header of {length} bytes (at most {MAX_HEADER})")
    if 8 + length > size:
        raise _BadError(f"a header of {length} bytes in a file of {size}")
    text = file.read(length)
    if len(text) != length:
        raise _BadError("it became shorter while it was read")
    table = _parse(text)
    metadata = _metadata(table.pop("__metadata__", {}))
    entries = {name: _entry(name, row) for name, row in table.items()}
    _contiguous(entries, size - 8 - length)
    return Header(entries, metadata, 8 + length)


def _parse(text: bytes) -> dict[str, Any]:
    if not text.startswith(b"{"):
        raise _BadError("the header is not JSON")
    try:
        table = json.loads(
            text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except (ValueError, RecursionError, MemoryError) as error:
        raise _BadError(f"the header is not JSON ({str(error)[:80]})") from None
    if not isinstance(table, dict):
        raise _BadError("the header is not an object")
    return table


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise _BadError(f"{shown(twice)} stands there twice")
    return out


def _no_constant(name: str) -> None:
    raise _BadError(f"{name} in the header")


def _metadata(table: Any) -> dict[str, str]:
    if not isinstance(table, dict) or not all(isinstance(v, str) for v in table.values()):
        raise _BadError("__metadata__ is not a table of texts")
    return table


def _entry(name: str, row: Any) -> Entry:
    if not isinstance(row, dict) or row.keys() != {"dtype", "shape", "data_offsets"}:
        raise _BadError(f"{shown(name)} lacks dtype, shape or data_offsets, or has more")
    dtype, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise _BadError(f"{shown(name)} has the unknown dtype {shown(str(dtype))}")
    if not _sizes(shape) or len(shape) > 64:
        raise _BadError(f"{shown(name)} has a shape that is not a list of sizes")
    if not _sizes(offsets) or len(offsets) != 2:
        raise _BadError(f"{shown(name)} has data_offsets that are not two positions")
    begin, end = offsets
    if end - begin != prod(shape) * _SIZES[dtype]:
        raise _BadError(f"{shown(name)} takes {end - begin} bytes but its shape needs another size")
    return Entry(dtype, tuple(shape), begin, end)


def _sizes(x: Any) -> bool:
    return isinstance(x, list) and all(type(i) is int and 0 <= i < 1 << 62 for i in x)


def _contiguous(entries: Mapping[str, Entry], size: int) -> None:
    at = 0
    for name, entry in sorted(entries.items(), key=lambda t: (t[1].begin, t[1].end)):
        if entry.begin != at:
            fault = "overlaps another tensor" if entry.begin < at else "leaves a gap before it"
            raise _BadError(f"{shown(name)} {fault}")
        if entry.end > size:
            raise _BadError(f"{shown(name)} ends after the end of the file (cut off?)")
        at = entry.end
    if at != size:
        raise _BadError(f"{size - at} bytes of data belong to no tensor")


def shown(name: str) -> str:
    """A name from a file, made safe to print."""
    return repr(name if len(name) <= 100 else name[:97] + "...")


# ---- writing ----------------------------------------------------------------------------------


def write(
    path: str | Path,
    tensors: Sequence[tuple[str, str, Array]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Replaces `path` as a whole or not at all; when this returns, the file outlives a power cut.

    `tensors`: (name, dtype of the language, C-contiguous array). SaveError names path and reason.
    """
    path = as_path(path)
    atomic(path, [_header_bytes(tensors, metadata or {}), *(raw_bytes(a) for _, _, a in tensors)])


def atomic(path: Path, chunks: Sequence[bytes | memoryview]) -> None:
    """Writes a temporary file beside `path`, syncs it, renames it, syncs the directory."""
    if path.is_dir():
        raise SaveError(f"cannot save to {path}: it is a directory")
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.{os.getpid()}.tmp")
    if "\0" in str(path):
        raise SaveError(f"cannot save to {str(path)!r}: not a path")
    try:
        # Exclusive: never through a link that somebody else put there.
        with open(temporary, "xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except OSError as error:
        raise SaveError(_cannot_write(path, error)) from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def remove_litter(path: Path) -> None:
    """Removes temporary files of `path` whose writers are dead."""
    for litter in path.parent.glob(f".{path.name}.*.tmp"):
        pid = litter.name.split(".")[-2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            with contextlib.suppress(OSError):
                litter.unlink()


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(path: Path, error: OSError) -> str:
    cures = {
        errno.ENOSPC: "free some space or save elsewhere",
        errno.EDQUOT: "free some space or save elsewhere",
        errno.ENOENT: f"make the directory {path.parent} first",
        errno.EACCES: "save where you may write",
        errno.EPERM: "save where you may write",
        errno.EROFS: "save where you may write",
    }
    cure = cures.get(error.errno or 0)
    kept = "; the old file is as it was" if path.exists() else ""
    return f"cannot save to {path}: {error.strerror}{kept}" + (f"\n  help: {cure}" if cure else "")


def _header_bytes(tensors: Sequence[tuple[str, str, Array]], metadata: Mapping[str, str]) -> bytes:
    table: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, dtype, array in tensors:
        end = at + array.nbytes
        row = {"dtype": DTYPES[dtype].safetensors, "shape": list(array.shape)}
        table[name] = row | {"data_offsets": [at, end]}
        at = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
