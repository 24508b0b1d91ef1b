"""LLVM in processes of their own: one for each CPU, side by side, and their memory goes with them.

(llvmlite lets one thread of a process at a time into LLVM.) What they compile is what this process
would compile: where no process can be started, or one has ended, this one does it.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import cache as once

from nnc.codegen import objects
from nnc.codegen import target as targets
from nnc.codegen.child import Child
from nnc.codegen.identity import object_key
from nnc.codegen.target import Target

MOST = 4  # processes: more wait for the Python that writes the texts

Cache = Callable[[str, Callable[[], bytes]], bytes]  # (key, make) -> object


class _Child(Child):
    """One process; used by one thread at a time."""

    def __init__(self) -> None:
        super().__init__("nnc.codegen.worker", ["llvmlite"])
        self.machine: Target | None = None

    def host(self) -> Target:
        """Its machine. OSError, EOFError when it has ended."""
        if self.machine is None:
            self.machine = Target(**json.loads(self.receive()))
        return self.machine

    def compile(self, text: str, target: Target) -> bytes:
        """OSError, EOFError when it has ended."""
        self.start()
        self.host()
        self.send(json.dumps(vars(target)).encode())
        self.send(text.encode())
        answer = self.receive()
        if answer[:1] != b"\0":
            raise RuntimeError(answer[1:].decode())
        return answer[1:]

    def close(self) -> None:
        super().close()
        self.machine = None


class _Crew:
    """The processes of this process, started when first needed, again after they have ended."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.children = [_Child() for _ in range(min(len(os.sched_getaffinity(0)), MOST))]
        self.idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        for child in self.children:
            self.idle.put(child)
        self.threads = ThreadPoolExecutor(len(self.children), "nnc-compile")
        self.ahead: dict[str, Future[bytes]] = {}  # by dtype: micro-kernels that were not asked for

    def compile(self, text: str, target: Target) -> bytes:
        child = self.idle.get()
        try:
            return child.compile(text, target)
        except (OSError, EOFError):
            child.close()
        finally:
            self.idle.put(child)
        return objects.compile_object(text, target)

    def start(self) -> None:
        waiting: list[_Child] = []
        with suppress(queue.Empty):
            while True:
                waiting.append(self.idle.get_nowait())
        for child in waiting:
            with suppress(OSError):  # `compile` does without
                child.start()
            self.idle.put(child)

    def host(self) -> Target:
        child = self.idle.get()
        try:
            child.start()
            return child.host()
        except (OSError, EOFError):
            child.close()
            return targets.host()
        finally:
            self.idle.put(child)

    def close(self) -> None:
        if self.owner == os.getpid():
            for child in self.children:
                child.close()


_lock = threading.Lock()
_crews: list[_Crew] = []  # none, or this process's


def _crew() -> _Crew:
    with _lock:
        if not _crews or _crews[0].owner != os.getpid():  # a fork has its parent's pipes
            _crews[:] = [_Crew()]
            atexit.register(_crews[0].close)
        return _crews[0]


def start(cache: Cache | None = None) -> None:
    """Something will be compiled soon: the processes start meanwhile.

    With more than one, the first compiles the micro-kernels of f32 while the program is read: it
    takes as long, and hardly a program does without them. (Once: they are in the cache then.)
    """
    crew = _crew()
    crew.start()
    if cache is None or len(crew.children) == 1 or "f32" in crew.ahead:
        return

    def make() -> bytes:
        from nnc.codegen import contract  # not before the processes start

        target = crew.host()
        text = contract.support_module("f32", target)
        return cache(object_key(text, target), lambda: crew.compile(text, target))

    crew.ahead["f32"] = crew.threads.submit(make)


def host() -> Target:
    """The machine that programs are compiled for, without loading LLVM into this process."""
    return targets.host() if "llvmlite.binding" in sys.modules else _asked()


@once
def _asked() -> Target:
    return _crew().host()


def compiled(
    text: str, target: Target, cache: Cache | None = None, ahead: str = ""
) -> Future[bytes]:
    """The object of a text, as soon as it is there; through the cache, if any.

    `ahead`: the name under which `start` may be making it already.
    """
    crew = _crew()

    def made() -> bytes:
        if cache is None:
            return crew.compile(text, target)
        if ahead in crew.ahead:
            wait([crew.ahead[ahead]])  # it came first: it has a thread
        return cache(object_key(text, target), lambda: crew.compile(text, target))

    return crew.threads.submit(made)
