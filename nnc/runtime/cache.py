"""The cache of object code: native code that will be run, so nobody else may write it.

One file an entry, named by a hash of the key: 32 bytes (SHA-256 of the rest), then the data. The
directory is the user's alone (0700, owner checked); without such a directory nothing is cached.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

LIMIT = 512 << 20  # bytes kept; the entries used longest ago go first
_SUFFIX = ".o"


def directory() -> Path:
    """`$XDG_CACHE_HOME/nnc` or `~/.cache/nnc`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "nnc"


def fetch(key: str, make: Callable[[], bytes], where: Path | None = None) -> bytes:
    """The data under `key`, made and kept when it is not there. A broken cache only costs time."""
    found = get(key, where)
    if found is not None:
        return found
    data = make()
    put(key, data, where)
    return data


def get(key: str, where: Path | None = None) -> bytes | None:
    """The data, when it is there and whole."""
    folder = _trusted(where)
    if folder is None:
        return None
    path = folder / _name(key)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            info = os.fstat(descriptor)
            if info.st_uid != os.geteuid() or not stat.S_ISREG(info.st_mode):
                return None
            content = file.read()
    except OSError:
        return None
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        _remove(path)
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return content[32:]


def put(key: str, data: bytes, where: Path | None = None) -> None:
    """Keeps the data; the entry appears whole or not at all, also when processes race."""
    folder = _trusted(where)
    if folder is None:
        return
    temporary = folder / f".{os.urandom(8).hex()}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(hashlib.sha256(data).digest() + data)
        os.replace(temporary, folder / _name(key))
    except OSError:
        _remove(temporary)
    _shrink(folder)


def clear(where: Path | None = None) -> None:
    """Removes every entry."""
    folder = _trusted(where)
    for path in [] if folder is None else folder.glob(f"*{_SUFFIX}"):
        _remove(path)


def _name(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest() + _SUFFIX


def _trusted(where: Path | None) -> Path | None:
    """The directory, made when missing; None unless it is the user's own and closed to others."""
    folder = where or directory()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = folder.lstat()
    except (OSError, RuntimeError):
        return None
    mine = stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid()
    return folder if mine and not info.st_mode & 0o077 else None


def _shrink(folder: Path) -> None:
    """Removes the entries used longest ago until the rest is below the limit."""
    with contextlib.suppress(OSError):
        rows = []
        for entry in os.scandir(folder):
            if entry.name.endswith((_SUFFIX, ".tmp")):
                with contextlib.suppress(OSError):
                    info = entry.stat(follow_symlinks=False)
                    rows.append((info.st_mtime, info.st_size, entry.path))
        total = sum(size for _, size, _ in rows)
        for _, size, path in sorted(rows):
            if total <= LIMIT:
                break
            _remove(Path(path))
            total -= size


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
