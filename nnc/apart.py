"""The compiler in a process of its own: what it takes of memory is given back when it has compiled.

It compiles what this process would compile, with the same messages. Where no process can be
started, or one has failed, this one compiles (`Unavailable`).
"""

from __future__ import annotations

import atexit
import os
import pickle
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnc.codegen.child import Child, pipes, receive, send, waiting
from nnc.errors import Error

IDLE = 2.0  # seconds: programs that are loaded one after the other are compiled by one process
_PACKAGES = ("llvmlite", "lark", "numpy", "ml_dtypes")
_ENVIRONMENT = ("HOME", "XDG_CACHE_HOME")  # where the cache is


class Unavailable(Exception):
    """No process has answered."""


@dataclass(frozen=True)
class Request:
    """What is to be compiled: see `nnc.compiler.compile_file`. `limit`: bytes, at these sizes.

    `key`: identifies the texts and all else that the result depends on. `export`: whose forward and
    backward are asked for, "" for the file.
    """

    key: str
    path: str
    overrides: Mapping[str, Mapping[str, object]]
    limit: tuple[int, Mapping[str, int]] | None = None
    winograd: bool = False
    export: str = ""


@dataclass(frozen=True)
class _Place:
    """What else a compilation depends on."""

    folder: str
    environment: Mapping[str, str | None]
    processors: frozenset[int]


_lock = threading.Lock()
_children: list[tuple[int, Child]] = []  # none, or the process and whose it is


def compiled(request: Request) -> bytes:
    """The bytes of `nnc.runtime.packed`. Error when the file has mistakes; Unavailable."""
    with _lock:
        try:
            child = _child()
            child.start()
            child.send(pickle.dumps((request, _here())))
            answer = child.receive()
        except (OSError, EOFError):
            _close()
            raise Unavailable from None
        except BaseException:
            _close()  # its answer would be taken for that to the next request
            raise
    if answer[:1] == b"\0":
        return answer[1:]
    if answer[:1] == b"\1":
        error: Error = pickle.loads(answer[1:])
        raise error
    raise Unavailable


def _here() -> _Place:
    environment = {name: os.environ.get(name) for name in _ENVIRONMENT}
    return _Place(os.getcwd(), environment, frozenset(os.sched_getaffinity(0)))


def _child() -> Child:
    if not _children or _children[0][0] != os.getpid():  # a fork has its parent's pipes
        _children[:] = [(os.getpid(), Child(__name__, _PACKAGES))]
        atexit.register(_close)
    return _children[0][1]


def _close() -> None:
    for owner, child in _children:
        if owner == os.getpid():
            child.close()


# ---- in the process itself ----------------------------------------------------------------------


def main() -> None:
    from nnc.codegen import workers

    workers.start()  # while the compiler is imported
    from nnc.runtime.cache import fetch

    workers.start(fetch)
    requests, answers = pipes()
    last: dict[str, Any] = {}
    try:
        for _ in waiting(requests, IDLE):
            request, place = pickle.loads(receive(requests))
            send(answers, _answer(request, place, last))
    except (EOFError, OSError):
        pass  # the process that asked has ended


def _answer(request: Request, place: _Place, last: dict[str, Any]) -> bytes:
    """0 and the bytes, 1 and the error, or 2: the process that asks shall see for itself."""
    try:
        _go(place)
        return b"\0" + _compiled(request, last)
    except Error as error:
        return _told(error)
    except Exception:
        return b"\2"


def _told(error: Error) -> bytes:
    try:
        return b"\1" + pickle.dumps(error)
    except Exception:  # places behind very many calls
        return b"\2"


def _go(place: _Place) -> None:
    os.chdir(place.folder)
    os.sched_setaffinity(0, place.processors)
    for name, value in place.environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def _compiled(request: Request, last: dict[str, Any]) -> bytes:
    """`last`: what was compiled last, by its key."""
    from nnc import compiler
    from nnc.budget import Budget
    from nnc.runtime.cache import fetch
    from nnc.runtime.packed import packed

    if request.key not in last:
        last.clear()
        last[request.key] = compiler.compile_file(
            request.path,
            request.overrides,
            cache=fetch,
            budget=None if request.limit is None else Budget(*request.limit),
            winograd=request.winograd,
        )
    made = last[request.key]
    if request.export:
        made = made.lazy(request.export)
        return packed(made, made.objects, made.support)
    return packed(made.manifest, made.objects, made.support)
