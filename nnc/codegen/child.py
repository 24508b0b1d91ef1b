"""Processes of nnc's own that answer requests: their memory goes with them.

A message is its length (8 bytes) and the data. Requests come in on the process's standard input,
answers go out on its output: a byte, 0 for what was asked for or another, and the data.
"""

from __future__ import annotations

import importlib.util
import os
import select
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

_SIZE = struct.Struct("<Q")


def send(pipe: IO[bytes], data: bytes) -> None:
    """OSError when nobody reads any more."""
    pipe.write(_SIZE.pack(len(data)))
    pipe.write(data)
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


class Child:
    """One process; used by one thread at a time."""

    def __init__(self, module: str, packages: Sequence[str]) -> None:
        """`module`: whose `main` it runs; `packages`: what it imports beside nnc."""
        self.process: subprocess.Popen[bytes] | None = None
        self._module, self._packages = module, packages

    def start(self) -> None:
        """Unless it runs; does not wait until it has started. OSError when it cannot be started."""
        if self.process is not None and self.process.poll() is None:
            return
        self.close()
        if not sys.executable or getattr(sys, "frozen", False):
            raise OSError("this program is no Python that could be started again")
        text = f"import sys; sys.path[:0] = sys.argv[1:]; from {self._module} import main; main()"
        command = [sys.executable, "-I", "-S", *["-B"] * sys.dont_write_bytecode, "-c", text]
        command += _places(self._packages)
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)

    def send(self, data: bytes) -> None:
        """OSError when it has ended."""
        assert self.process is not None and self.process.stdin is not None
        send(self.process.stdin, data)

    def receive(self) -> bytes:
        """EOFError when it has ended."""
        assert self.process is not None and self.process.stdout is not None
        return receive(self.process.stdout)

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.process = None


def _places(packages: Sequence[str]) -> list[str]:
    """Where Python finds this package and others."""
    found = [importlib.util.find_spec(name) for name in packages]
    files = [Path(__file__).parents[1]]
    files += [Path(spec.origin).parent for spec in found if spec is not None and spec.origin]
    return list(dict.fromkeys(str(f.parent) for f in files))


# ---- in the process itself ----------------------------------------------------------------------


def pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Requests, answers. What is printed meanwhile is no answer."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return requests, answers


def waiting(requests: IO[bytes], idle: float) -> Iterator[None]:
    """Until the input ends (EOFError), or `idle` seconds have passed without a request."""
    while select.select([requests], [], [], idle)[0]:
        yield
