"""A compiled file from the cache: without the compiler, when nothing has changed.

The key holds the texts of the file and of all that it imports, the overrides, nnc's own files and
the machine. What is compiled on demand later (forward and backward, dumps) brings in the compiler.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping
from functools import cache as once
from functools import partial
from pathlib import Path
from typing import Any

from nnc.codegen.identity import llvm_version
from nnc.errors import ArgumentError, Error
from nnc.ir.signature import Differentiated, Manifest, Variant
from nnc.runtime import cache
from nnc.runtime.available import processor
from nnc.runtime.manifest import decode
from nnc.runtime.model import Model
from nnc.runtime.packed import differentiated, packed, parts

Overrides = Mapping[str, Mapping[str, object]]
_IMPORT = re.compile(r"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import|import[ \t]+([\w.]+))", re.M)
_PACKAGE = Path(__file__).resolve().parent


Limit = tuple[int, Mapping[str, int]]  # bytes, at these sizes


def load_model(
    path: str,
    overrides: Overrides,
    use_cache: bool = True,
    limit: Limit | None = None,
    winograd: bool = False,
    here: bool = False,
) -> Model:
    """Compiles a file, or takes what is in the cache. CompileError, LoadError.

    `limit` of memory: DeviceError when it cannot be kept. `here`: in this process, which will need
    more of the compiler than code.
    """
    options = (overrides, limit, winograd)
    key = source_key(path, *options) if use_cache else None

    def changed() -> None:
        if key is not None and source_key(path, *options) != key:
            raise Error(f"{path} has changed since it was loaded: load it again")

    @once
    def compiled() -> Any:
        """By this process: the Compiled."""
        from nnc.codegen import workers

        workers.start(cache.fetch if use_cache else None)  # while the compiler is imported
        from nnc import driver

        changed()
        budget = None if limit is None else driver.Budget(*limit)
        return driver.compile_file(
            path, overrides, cache=use_cache, budget=budget, winograd=winograd
        )

    def made(key: str, export: str = "") -> bytes:
        """The bytes of `packed`; by another process, unless the compiler is in this one."""
        if not here and "nnc.compiler" not in sys.modules:
            from nnc import apart

            changed()
            with contextlib.suppress(apart.Unavailable):
                request = apart.Request(key, path, overrides, limit, winograd, export)
                return apart.compiled(request)
        own = compiled().lazy(export) if export else compiled()
        return packed(own if export else own.manifest, own.objects, own.support)

    def lazy(name: str) -> Differentiated:
        if key is None:
            found: Differentiated = compiled().lazy(name)
            return found
        return differentiated(cache.fetch(f"{key} {name}", partial(made, key, name)))

    def dump(name: str, stage: str) -> str:
        from nnc import driver

        return driver.dump(compiled(), name, stage)

    def probed(name: str, paths: tuple[str, ...]) -> Variant:
        found: Variant = compiled().probed(name, paths)
        return found

    def watch(name: str) -> Any:
        from nnc import driver

        return driver.watch(compiled())(name)

    later = (lazy, dump, probed, watch)
    if key is None:
        own = compiled()
        return Model(own.manifest, own.objects, own.support, *later)
    manifest, objects, support = parts(cache.fetch(key, partial(made, key)))
    return Model(decode(Manifest, manifest), objects, support, *later)


# ---- the key ----------------------------------------------------------------------------------


def source_key(
    path: str, overrides: Overrides, limit: Limit | None = None, winograd: bool = False
) -> str | None:
    """Identifies all that a compilation depends on; None when the file cannot be read."""
    texts: dict[str, str] = {}
    if not _read(Path(path), texts):
        return None
    try:
        set_ = json.dumps(overrides, sort_keys=True)
    except TypeError:
        raise ArgumentError("module parameters are numbers, true, false or texts") from None
    if limit is not None:
        set_ += f" {limit[0]} {sorted(limit[1].items())}"
    if winograd:
        set_ += " winograd"
    machine = (*processor(), llvm_version())
    parts = (str(path), json.dumps(texts, sort_keys=True), set_, _own_files(), *machine)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _read(path: Path, texts: dict[str, str]) -> bool:
    """Collects a hash of each file that the text at `path` may import; `std` is nnc's own."""
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if str(file) in texts:
            continue
        try:
            data = b"" if file.is_fifo() else file.read_bytes()
            names = {a or b for a, b in _IMPORT.findall(data.decode("utf-8"))}
        except (OSError, ValueError):
            texts[str(file)] = "missing"
            continue
        texts[str(file)] = hashlib.sha256(data).hexdigest()
        users = [n.strip(".").split(".") for n in sorted(names)]
        waiting += [file.parent.joinpath(*n).with_suffix(".nn") for n in users if n[0] != "std"]
    return texts.get(str(path), "missing") != "missing"


@once
def _own_files() -> str:
    """nnc's files by size and time: a changed compiler compiles again."""
    rows, folders = [], [""]
    while folders:
        folder = folders.pop()
        with os.scandir(_PACKAGE / folder) as entries:
            for entry in entries:
                name = f"{folder}{entry.name}"
                if name.endswith((".py", ".nn", ".lark")):
                    info = entry.stat()
                    rows.append((name, info.st_size, info.st_mtime_ns))
                elif entry.name != "__pycache__" and entry.is_dir():
                    folders.append(f"{name}/")
    return hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()
