"""The worker pool: parts run once, barriers order memory, callers take turns, forks live."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from nnc.codegen.pool import DECLARATIONS, pool_module
from tests.jit import build, pool

RUN = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)

# arg: { rounds, mistakes, out[64], slots[64] } of i64. Every thread adds 1 to its `out`; then, for
# each round, writes the round to its slot, waits, and adds up all slots: else it is wrong.
BODY = """
define void @body(ptr %arg, i32 %tid, i32 %n) {
entry:
  %t = zext i32 %tid to i64
  %nn = zext i32 %n to i64
  %rounds = load i64, ptr %arg
  %bad.at = getelementptr i64, ptr %arg, i64 1
  %outs = getelementptr i64, ptr %arg, i64 2
  %slots = getelementptr i64, ptr %arg, i64 66
  %out = getelementptr i64, ptr %outs, i64 %t
  %x = load i64, ptr %out
  %x1 = add i64 %x, 1
  store i64 %x1, ptr %out
  %slot = getelementptr i64, ptr %slots, i64 %t
  %go = icmp sgt i64 %rounds, 0
  br i1 %go, label %round, label %done
round:
  %r = phi i64 [ 0, %entry ], [ %r1, %next ]
  store i64 %r, ptr %slot
  call void @nnrt_barrier(i32 %tid, i32 %n)
  br label %sum
sum:
  %i = phi i64 [ 0, %round ], [ %i1, %sum ]
  %s = phi i64 [ 0, %round ], [ %s1, %sum ]
  %p = getelementptr i64, ptr %slots, i64 %i
  %v = load i64, ptr %p
  %s1 = add i64 %s, %v
  %i1 = add i64 %i, 1
  %m = icmp slt i64 %i1, %nn
  br i1 %m, label %sum, label %check
check:
  call void @nnrt_barrier(i32 %tid, i32 %n)
  %want = mul i64 %r, %nn
  %wrong = icmp ne i64 %s1, %want
  %w = zext i1 %wrong to i64
  %ignored = atomicrmw add ptr %bad.at, i64 %w monotonic
  br label %next
next:
  %r1 = add i64 %r, 1
  %more = icmp slt i64 %r1, %rounds
  br i1 %more, label %round, label %done
done:
  ret void
}
define void @empty(ptr %arg, i32 %tid, i32 %n) {
  ret void
}
"""


@cache
def bodies() -> tuple[int, int]:
    pool()
    engine = build(DECLARATIONS + BODY)
    return engine.get_function_address("body"), engine.get_function_address("empty")


def run(body: int, argument: np.ndarray, threads: int) -> None:
    RUN(pool()[0])(body, argument.ctypes.data, threads)


def argument(rounds: int) -> np.ndarray:
    a = np.zeros(130, np.int64)
    a[0] = rounds
    return a


def test_text_is_complete() -> None:
    assert not {"FUTEX", "PAUSE", "YIELDS", "CROWDED", "SPINS"} & set(pool_module().split())


@pytest.mark.parametrize("threads", [1, 2, 3, 8, 64])
def test_each_part_runs_once(threads: int) -> None:
    a = argument(0)
    for _ in range(20):
        run(bodies()[0], a, threads)
    assert a[2 : 2 + threads].tolist() == [20] * threads
    assert not a[2 + threads : 66].any()


def test_changing_thread_counts() -> None:
    a = argument(1)
    want = np.zeros(64, np.int64)
    for i in range(300):
        threads = 1 + (i * 7) % 6
        run(bodies()[0], a, threads)
        want[:threads] += 1
    assert a[1] == 0
    assert (a[2:66] == want).all()


def test_too_many_threads_are_clamped() -> None:
    a = argument(2)
    run(bodies()[0], a, 1000)
    assert a[1] == 0
    assert (a[2:66] == 1).all()


@pytest.mark.parametrize(("threads", "rounds"), [(2, 20000), (3, 300), (8, 100)])
def test_barrier_orders_memory(threads: int, rounds: int) -> None:
    a = argument(rounds)
    run(bodies()[0], a, threads)
    assert a[1] == 0


def test_a_missing_barrier_is_noticed() -> None:
    """The control of the test above."""
    pool()
    empty = "define internal void @nnrt_barrier(i32 %t, i32 %n) {\n  fence seq_cst\n  ret void\n}\n"
    engine = build(empty + BODY)
    a = argument(200000)
    run(engine.get_function_address("body"), a, 2)
    assert a[1] > 0


def test_workers_wake_from_sleep() -> None:
    a = argument(3)
    for _ in range(3):
        run(bodies()[0], a, 3)
        time.sleep(0.02)
    assert a[1] == 0
    assert a[2:5].tolist() == [3, 3, 3]


def test_concurrent_callers() -> None:
    arguments = [argument(5) for _ in range(4)]

    def call(a: np.ndarray) -> None:
        for _ in range(50):
            run(bodies()[0], a, 2)

    threads = [threading.Thread(target=call, args=(a,)) for a in arguments]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for a in arguments:
        assert a[1] == 0
        assert a[2:4].tolist() == [50, 50]


def in_child(check: Callable[[], bool]) -> None:
    """Passes when the check is true in a forked child, within 20 s."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    deadline = time.monotonic() + 20
    while (done := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            pytest.fail("the forked child hangs")
        time.sleep(0.005)
    assert os.waitstatus_to_exitcode(done[1]) == 0


def with_refused_threads() -> None:
    """In a process of its own, which has no stacks of ended threads to use again."""
    body = bodies()[0]
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = pages * resource.getpagesize() + 30 * 2**20  # for about three stacks
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    a = argument(3)
    run(body, a, 20)
    parts = int(a[2:66].sum())
    assert a[1] == 0
    assert 1 <= parts < 20
    assert a[2 : 2 + parts].all()


def test_refused_threads_leave_fewer_parts() -> None:
    code = "from tests import test_pool; test_pool.with_refused_threads()"
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=60)


def test_fork_gets_its_own_pool() -> None:
    a = argument(5)
    run(bodies()[0], a, 3)

    def check() -> bool:
        run(bodies()[0], a, 3)
        return a[1] == 0 and a[2:5].tolist() == [2, 2, 2]

    in_child(check)
    run(bodies()[0], a, 3)
    assert a[2:5].tolist() == [2, 2, 2]


def test_crowded_barriers_stay_cheap() -> None:
    """Pure spinning with 8 threads on 2 CPUs would cost about 4 ms a barrier."""
    a = argument(100)
    run(bodies()[0], a, 8)
    begin = time.perf_counter()
    run(bodies()[0], a, 8)
    assert (time.perf_counter() - begin) / 200 < 2e-3
