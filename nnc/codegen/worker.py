"""A process that compiles: IR texts come in on its standard input, objects go out on the output.

A message is its length (8 bytes) and the data. First it sends its machine (JSON of a Target), then
for each request (a Target, a text) a byte, 0 for an object or 1 for a traceback, and that. It ends
when its input ends, and after `IDLE` seconds without work: others can use its memory then.
"""

from __future__ import annotations

import json
import os
import select
import struct
import traceback
from dataclasses import asdict
from typing import IO

from nnc.codegen import objects
from nnc.codegen.target import Target, host

IDLE = 10.0  # seconds
_SIZE = struct.Struct("<Q")


def send(pipe: IO[bytes], data: bytes) -> None:
    """OSError when nobody reads any more."""
    pipe.write(_SIZE.pack(len(data)) + data)
    pipe.flush()


def receive(pipe: IO[bytes]) -> bytes:
    """EOFError when the other side has ended."""
    (size,) = _SIZE.unpack(_exactly(pipe, _SIZE.size))
    return _exactly(pipe, size)


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data


def main() -> None:
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what LLVM may print is no answer
    try:
        send(answers, json.dumps(asdict(host())).encode())
        while select.select([requests], [], [], IDLE)[0]:
            target = Target(**json.loads(receive(requests)))
            send(answers, _answer(receive(requests).decode(), target))
    except (EOFError, OSError):
        pass  # the process that asked has ended


def _answer(text: str, target: Target) -> bytes:
    try:
        return b"\0" + objects.compile_object(text, target)
    except Exception:
        return b"\1" + traceback.format_exc().encode()
