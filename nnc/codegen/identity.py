"""What object code depends on beside its text, known without loading LLVM."""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from hashlib import blake2b
from pathlib import Path

from nnc.codegen.target import Target

_WORDS = ("vendor_id", "cpu family", "model", "stepping", "flags", "CPU part", "Features")


@cache
def llvm_version() -> str:
    """Of llvmlite: other versions may make other code."""
    found = importlib.util.find_spec("llvmlite")
    assert found is not None and found.origin is not None, "llvmlite is not installed"
    return Path(found.origin).with_name("_version.py").read_text()


def object_key(text: str, target: Target) -> str:
    """Identifies an object file by its IR text, the target and the LLVM version."""
    parts = (text, target.triple, target.cpu, target.features, llvm_version())
    return blake2b("\0".join(parts).encode(), digest_size=24).hexdigest()


@cache
def processor() -> tuple[str, ...]:
    """The first processor as the system describes it: equal ones get equal code from LLVM."""
    first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    rows = (line.partition(":") for line in first.splitlines())
    return os.uname().machine, *(f"{n}:{v}" for n, _, v in rows if n.strip() in _WORDS)
