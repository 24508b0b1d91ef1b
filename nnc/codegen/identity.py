"""What object code depends on beside its text, known without loading LLVM."""

from __future__ import annotations

import importlib.util
from functools import cache
from hashlib import blake2b
from pathlib import Path

from nnc.codegen.target import Target


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
