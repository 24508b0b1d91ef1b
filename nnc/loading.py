"""A compiled file from the cache: without the compiler, when nothing has changed.

The key holds the texts of the file and of all that it imports, the overrides, nnc's own files and
the machine. What is compiled on demand later (forward and backward, dumps) brings in the compiler.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache as once
from pathlib import Path
from typing import Any

from nnc.codegen.identity import llvm_version, processor
from nnc.errors import ArgumentError, Error
from nnc.ir.signature import Differentiated, Manifest, Support, Variant
from nnc.runtime import cache
from nnc.runtime.manifest import decode, encode
from nnc.runtime.model import Model

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
) -> Model:
    """Compiles a file, or takes what is in the cache. CompileError, LoadError.

    `limit` of memory: DeviceError when it cannot be kept.
    """
    options = (overrides, limit, winograd)
    key = source_key(path, *options) if use_cache else None

    @once
    def compiled() -> Any:
        from nnc.codegen import workers

        workers.start(cache.fetch if use_cache else None)  # while the compiler is imported
        from nnc import driver

        if key is not None and source_key(path, *options) != key:
            raise Error(f"{path} has changed since it was loaded: load it again")
        budget = None if limit is None else driver.Budget(*limit)
        return driver.compile_file(
            path, overrides, cache=use_cache, budget=budget, winograd=winograd
        )

    def lazy(name: str) -> Differentiated:
        found = None if key is None else cache.get(f"{key} {name}")
        if found is not None:
            return _unpacked(Differentiated, found)
        made: Differentiated = compiled().lazy(name)
        if key is not None:
            cache.put(f"{key} {name}", _packed(made, made.objects, made.support))
        return made

    def dump(name: str, stage: str) -> str:
        from nnc import driver

        return driver.dump(compiled(), name, stage)

    def probed(name: str, paths: tuple[str, ...]) -> Variant:
        made: Variant = compiled().probed(name, paths)
        return made

    def watch(name: str) -> Any:
        from nnc import driver

        return driver.watch(compiled())(name)

    found = None if key is None else cache.get(key)
    if found is not None:
        manifest, objects, support = _parts(found)
        return Model(decode(Manifest, manifest), objects, support, lazy, dump, probed, watch)
    made = compiled()
    if key is not None:
        cache.put(key, _packed(made.manifest, made.objects, made.support))
    return Model(made.manifest, made.objects, made.support, lazy, dump, probed, watch)


# ---- what is kept -----------------------------------------------------------------------------


def _packed(about: object, objects: Sequence[bytes], support: Sequence[Support]) -> bytes:
    """One JSON line, then the objects and the support's objects."""
    table = encode(about)
    table.pop("objects", None), table.pop("support", None)
    head = {
        "about": table,
        "objects": [len(o) for o in objects],
        "support": [(s.name, s.functions, s.tables, len(s.data)) for s in support],
    }
    line = json.dumps(head).encode() + b"\n"
    return b"".join([line, *objects, *(s.data for s in support)])


def _parts(data: bytes) -> tuple[Any, tuple[bytes, ...], tuple[Support, ...]]:
    at = data.index(b"\n") + 1
    head = json.loads(data[:at])

    def take(size: int) -> bytes:
        nonlocal at
        at += size
        return data[at - size : at]

    objects = tuple(take(size) for size in head["objects"])
    rows = head["support"]
    support = tuple(Support(n, take(size), tuple(f), tuple(t)) for n, f, t, size in rows)
    return head["about"], objects, support


def _unpacked(kind: type[Differentiated], data: bytes) -> Differentiated:
    about, objects, support = _parts(data)
    found: Differentiated = decode(kind, {**about, "objects": [], "support": []})
    fields = (found.forward, found.backward, found.saved, found.inputs, found.gradients)
    return Differentiated(*fields, objects, support)


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
            data = file.read_bytes()
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
    rows = []
    for file in sorted(_PACKAGE.rglob("*")):
        if file.suffix in (".py", ".nn", ".lark"):
            info = file.stat()
            rows.append((str(file.relative_to(_PACKAGE)), info.st_size, info.st_mtime_ns))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
