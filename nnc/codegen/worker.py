"""A process that compiles: IR texts come in, objects go out (`nnc.codegen.child`).

First it sends its machine (JSON of a Target), then for each request (a Target, a text) an object,
or 1 and a traceback. It ends when its input ends, and after `IDLE` seconds without work: others can
use its memory then.
"""

from __future__ import annotations

import json
import traceback
from dataclasses import asdict

from nnc.codegen import objects
from nnc.codegen.child import pipes, receive, send, waiting
from nnc.codegen.target import Target, host

IDLE = 10.0  # seconds


def main() -> None:
    requests, answers = pipes()
    try:
        send(answers, json.dumps(asdict(host())).encode())
        for _ in waiting(requests, IDLE):
            target = Target(**json.loads(receive(requests)))
            send(answers, _answer(receive(requests).decode(), target))
    except (EOFError, OSError):
        pass  # the process that asked has ended


def _answer(text: str, target: Target) -> bytes:
    try:
        return b"\0" + objects.compile_object(text, target)
    except Exception:
        return b"\1" + traceback.format_exc().encode()
