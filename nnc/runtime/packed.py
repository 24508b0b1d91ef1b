"""What was compiled as one string of bytes: a JSON line, then the objects and the support's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from nnc.ir.signature import Differentiated, Support
from nnc.runtime.manifest import decode, encode


def packed(about: object, objects: Sequence[bytes], support: Sequence[Support]) -> bytes:
    """`about`: a Manifest, or a Differentiated (whose objects are given once more)."""
    table = encode(about)
    table.pop("objects", None), table.pop("support", None)
    head = {
        "about": table,
        "objects": [len(o) for o in objects],
        "support": [(s.name, s.functions, s.tables, len(s.data)) for s in support],
    }
    line = json.dumps(head).encode() + b"\n"
    return b"".join([line, *objects, *(s.data for s in support)])


def parts(data: bytes) -> tuple[Any, tuple[bytes, ...], tuple[Support, ...]]:
    """The plain JSON of what it is about, the objects, the support."""
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


def differentiated(data: bytes) -> Differentiated:
    about, objects, support = parts(data)
    found: Differentiated = decode(Differentiated, {**about, "objects": [], "support": []})
    fields = (found.forward, found.backward, found.saved, found.inputs, found.gradients)
    return Differentiated(*fields, objects, support)
