"""What `nnc compile` writes, `<model>.a`, `.so`, `.h`, `.json`, and how Python loads it again."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from nnc.errors import DeviceError, LoadError, SaveError
from nnc.ir.signature import Manifest, Support
from nnc.runtime.available import processor
from nnc.runtime.c_header import header
from nnc.runtime.elf import Object
from nnc.runtime.manifest import of_json, to_json
from nnc.runtime.model import Model
from nnc.runtime.tensorfile import atomic

FORMAT = 1


def write(
    folder: Path,
    name: str,
    manifest: Manifest,
    objects: Sequence[bytes],
    support: Sequence[Support],
) -> list[Path]:
    """Writes the three files and returns their paths. SaveError naming path and reason."""
    import llvmlite.binding as llvm

    by_object = [
        tuple(s.name for s in Object(data).symbols if s.shared and s.section) for data in objects
    ]
    members = [(f"{name}.{i}.o", data) for i, data in enumerate(objects)]
    members += [(f"nnrt.{i}.o", s.data) for i, s in enumerate(support)]
    symbols = [*by_object, *((*s.functions, *s.tables) for s in support)]
    library, offsets = archive(members, symbols)
    triple = llvm.get_default_triple()
    features = sorted(k for k, on in llvm.get_host_cpu_features().items() if on)
    table = {
        "nnc": FORMAT,
        "library": f"{name}.a",
        "triple": triple,
        "features": features,
        "machine": _machine(triple, features),
        "objects": [
            {"offset": at, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for at, (_, data) in zip(offsets, members, strict=True)
        ],
        "support": [
            {"name": s.name, "functions": s.functions, "tables": s.tables} for s in support
        ],
        "manifest": to_json(manifest),
    }
    paths = [folder / f"{name}{suffix}" for suffix in (".a", ".h", ".json")]
    text = json.dumps(table, indent=1) + "\n"
    for path, data in zip(
        paths, (library, header(name, manifest).encode(), text.encode()), strict=True
    ):
        atomic(path, [data])
    return paths


_LINKERS = (  # command, how it takes a linker's options
    ("gcc", "-Wl,"),
    ("clang", "-Wl,"),
    ("cc", "-Wl,"),
    ("ld", ""),
    ("ld.lld", ""),
)


def link(library: Path) -> Path | None:
    """`<model>.so` beside `<model>.a`; None when the machine has no linker."""
    found = next(((p, o) for c, o in _LINKERS if (p := shutil.which(c))), None)
    if found is None:
        return None
    program, option = found
    shared = library.with_suffix(".so")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / shared.name
        parts = [program, "-shared", "-o", str(made), f"{option}-Bsymbolic", f"{option}-soname"]
        parts += [f"{option}{shared.name}", f"{option}-znoexecstack", f"{option}--whole-archive"]
        parts += [str(library.resolve()), f"{option}--no-whole-archive"]
        parts += ["-Wl,--as-needed", "-lm"] if option else []
        done = subprocess.run(parts, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SaveError(f"{program} cannot make {shared}: {done.stderr.strip()}")
        atomic(shared, [made.read_bytes()])
    return shared


def load(path: str | Path) -> Model:
    """A model from its `.json`; the library beside it must be the one that was written with it."""
    path = Path(path)
    try:
        table = json.loads(path.read_bytes())
        manifest = of_json(table["manifest"])
        if table["nnc"] != FORMAT:
            raise ValueError(f"format {table['nnc']} (this nnc reads {FORMAT})")
        library = Path(table["library"])
        rows = [(int(r["offset"]), int(r["size"]), str(r["sha256"])) for r in table["objects"]]
        shared = [
            (str(r["name"]), tuple(map(str, r["functions"])), tuple(map(str, r["tables"])))
            for r in table["support"]
        ]
        if len(shared) > len(rows):
            raise ValueError("objects are missing")
        triple, features = str(table["triple"]), [str(f) for f in table["features"]]
        machine = table.get("machine")
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise LoadError(f"{path} was not written by nnc compile: {error}") from None
    if library.name != str(library):
        raise LoadError(f"{path} names a library outside its directory: {library}")
    if machine != _machine(triple, features):
        _check_machine(path, triple, features)
    objects = _objects(path.parent / library, rows)
    own = len(objects) - len(shared)
    support = [
        Support(name, data, functions, tables)
        for (name, functions, tables), data in zip(shared, objects[own:], strict=True)
    ]
    return Model(manifest, objects[:own], support)


def _machine(triple: str, features: Sequence[str]) -> str:
    """Identifies this processor as one for which LLVM says so, without loading LLVM (40 MB)."""
    return hashlib.sha256("\0".join([triple, *features, *processor()]).encode()).hexdigest()


def _check_machine(path: Path, triple: str, features: Sequence[str]) -> None:
    import llvmlite.binding as llvm

    if triple != llvm.get_default_triple():
        raise DeviceError(f"{path} was compiled for {triple}, this is {llvm.get_default_triple()}")
    have = llvm.get_host_cpu_features()
    lacking = [f for f in features if not have.get(f)]
    if lacking:
        raise DeviceError(
            f"{path} was compiled for a CPU with {', '.join(lacking[:8])}, which this one lacks\n"
            "  help: compile the model again on this machine"
        )


def _objects(path: Path, rows: Sequence[tuple[int, int, str]]) -> list[bytes]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error.strerror}") from None
    out = []
    for at, size, expected in rows:
        part = data[at : at + size] if at >= 0 and size >= 0 else b""
        if hashlib.sha256(part).hexdigest() != expected:
            raise LoadError(f"{path} is damaged or is not the library of this .json")
        out.append(part)
    return out


# ---- the library ------------------------------------------------------------------------------


def archive(
    members: Sequence[tuple[str, bytes]], symbols: Sequence[Sequence[str]]
) -> tuple[bytes, list[int]]:
    """An `ar` archive with a symbol index (System V form), and where each member's data begins."""
    names = b"".join(s.encode() + b"\0" for row in symbols for s in row)
    long_names = b"".join(f"{name}/\n".encode() for name, _ in members)
    count = sum(len(row) for row in symbols)
    index_size = 4 + 4 * count + len(names)
    at = 8 + 60 + _even(index_size) + 60 + _even(len(long_names))
    starts: list[int] = []
    for _, data in members:
        starts.append(at)
        at += 60 + _even(len(data))
    index = count.to_bytes(4, "big") + b"".join(
        start.to_bytes(4, "big") for start, row in zip(starts, symbols, strict=True) for _ in row
    )
    out = b"!<arch>\n" + _member("/", index + names) + _member("//", long_names)
    name_at = 0
    for name, data in members:
        out += _member(f"/{name_at}", data)
        name_at += len(name.encode()) + 2
    return out, [start + 60 for start in starts]


def _even(size: int) -> int:
    return size + size % 2


def _member(name: str, data: bytes) -> bytes:
    head = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()
    return head + data + b"\n" * (len(data) % 2)
