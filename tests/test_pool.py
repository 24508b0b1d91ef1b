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

# arg: { rounds, mistakes, threads, order, out[64], slots[64], serial[64] } of i64. In each round
# every part of n adds 1 to its `out` and writes the round to its slot; after a barrier every part
# adds up all slots: else it is wrong. Before the round two serial steps each count `order` up.
BODY = """
define void @body(ptr %arg, i32 %tid, i32 %n) {
entry:
  %team = alloca [8 x i64], align 64
  call void @nnrt_team(ptr %team, i32 %tid, i32 %n)
  %nn = zext i32 %n to i64
  %rounds = load i64, ptr %arg
  %bad.at = getelementptr i64, ptr %arg, i64 1
  %threads.at = getelementptr i64, ptr %arg, i64 2
  %order.at = getelementptr i64, ptr %arg, i64 3
  %outs = getelementptr i64, ptr %arg, i64 4
  %slots = getelementptr i64, ptr %arg, i64 68
  %ignored.threads = atomicrmw max ptr %threads.at, i64 %nn monotonic
  %go = icmp sgt i64 %rounds, 0
  br i1 %go, label %round, label %done
round:
  %r = phi i64 [ 0, %entry ], [ %r1, %next ]
  br label %first
first:
  %s1 = call i32 @nnrt_next(ptr %team, i32 1)
  %has1 = icmp sge i32 %s1, 0
  br i1 %has1, label %first.run, label %second
first.run:
  %o1 = load i64, ptr %order.at
  %o1.next = add i64 %o1, 1
  store i64 %o1.next, ptr %order.at
  br label %first
second:
  %s2 = call i32 @nnrt_next(ptr %team, i32 1)
  %has2 = icmp sge i32 %s2, 0
  br i1 %has2, label %second.run, label %write
second.run:
  %o2 = load i64, ptr %order.at
  %o2.next = add i64 %o2, 1
  store i64 %o2.next, ptr %order.at
  br label %second
write:
  %p1 = call i32 @nnrt_next(ptr %team, i32 %n)
  %more1 = icmp sge i32 %p1, 0
  br i1 %more1, label %write.part, label %wait1
write.part:
  %t1 = zext i32 %p1 to i64
  %out = getelementptr i64, ptr %outs, i64 %t1
  %x = load i64, ptr %out
  %x1 = add i64 %x, 1
  store i64 %x1, ptr %out
  %slot = getelementptr i64, ptr %slots, i64 %t1
  store i64 %r, ptr %slot
  br label %write
wait1:
  BARRIER
  br label %read
read:
  %p2 = call i32 @nnrt_next(ptr %team, i32 %n)
  %more2 = icmp sge i32 %p2, 0
  br i1 %more2, label %sum, label %wait2
sum:
  %i = phi i64 [ 0, %read ], [ %i1, %sum ]
  %s = phi i64 [ 0, %read ], [ %s.next, %sum ]
  %p = getelementptr i64, ptr %slots, i64 %i
  %v = load i64, ptr %p
  %s.next = add i64 %s, %v
  %i1 = add i64 %i, 1
  %m = icmp slt i64 %i1, %nn
  br i1 %m, label %sum, label %check
check:
  %want = mul i64 %r, %nn
  %wrong = icmp ne i64 %s.next, %want
  %w = zext i1 %wrong to i64
  %ignored = atomicrmw add ptr %bad.at, i64 %w monotonic
  br label %read
wait2:
  BARRIER
  br label %next
next:
  %r1 = add i64 %r, 1
  %more = icmp slt i64 %r1, %rounds
  br i1 %more, label %round, label %done
done:
  ret void
}
"""
BARRIER = "call void @nnrt_barrier(ptr %team)"
OUT = slice(4, 68)


@cache
def body() -> int:
    pool()
    engine = build(DECLARATIONS + BODY.replace("BARRIER", BARRIER))
    return engine.get_function_address("body")


def run(argument: np.ndarray, threads: int) -> None:
    RUN(pool())(body(), argument.ctypes.data, threads)


def argument(rounds: int) -> np.ndarray:
    a = np.zeros(140, np.int64)
    a[0] = rounds
    return a


def right(a: np.ndarray, runs: int, threads: int) -> bool:
    """No mistakes; every part and serial step of every round ran once in each run."""
    times = runs * int(a[0])
    parts = np.array([times] * threads + [0] * (64 - threads))
    return a[1] == 0 and a[3] == 2 * times and bool((a[OUT] == parts).all())


def test_text_is_complete() -> None:
    assert not {"FUTEX", "PAUSE", "YIELDS", "CROWDED", "SPINS"} & set(pool_module().split())


@pytest.mark.parametrize("threads", [1, 2, 3, 8, 64])
def test_each_part_runs_once(threads: int) -> None:
    a = argument(3)
    for _ in range(20):
        run(a, threads)
    assert right(a, 20, threads)


def test_changing_thread_counts() -> None:
    a = argument(1)
    want = np.zeros(64, np.int64)
    for i in range(300):
        threads = 1 + (i * 7) % 6
        run(a, threads)
        want[:threads] += 1
    assert a[1] == 0
    assert (a[OUT] == want).all()


def test_too_many_threads_are_clamped() -> None:
    a = argument(2)
    run(a, 1000)
    assert right(a, 1, 64)


@pytest.mark.parametrize(("threads", "rounds"), [(2, 20000), (3, 300), (8, 100)])
def test_barriers_order_memory(threads: int, rounds: int) -> None:
    a = argument(rounds)
    run(a, threads)
    assert right(a, 1, threads)


def test_a_missing_barrier_is_noticed() -> None:
    """The control of the test above: what is in the barrier's place lets parts run too early."""
    pool()
    slow = "call i32 @sched_yield()\n  store i64 %r, ptr %slot"
    text = BODY.replace("BARRIER", "fence seq_cst").replace("store i64 %r, ptr %slot", slow)
    engine = build(DECLARATIONS + "declare i32 @sched_yield()\n" + text)
    a = argument(20000)
    RUN(pool())(engine.get_function_address("body"), a.ctypes.data, 3)
    assert a[1] > 0


def test_workers_wake_from_sleep() -> None:
    a = argument(3)
    for _ in range(3):
        run(a, 3)
        time.sleep(0.02)
    assert right(a, 3, 3)


def test_concurrent_callers() -> None:
    arguments = [argument(5) for _ in range(4)]

    def call(a: np.ndarray) -> None:
        for _ in range(50):
            run(a, 2)

    threads = [threading.Thread(target=call, args=(a,)) for a in arguments]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(right(a, 50, 2) for a in arguments)


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
    body()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = pages * resource.getpagesize() + 30 * 2**20  # for about three stacks
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    a = argument(3)
    run(a, 20)
    assert 1 <= a[2] < 20
    assert right(a, 1, int(a[2]))


def test_refused_threads_leave_fewer_parts() -> None:
    code = "from tests import test_pool; test_pool.with_refused_threads()"
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=60)


def test_fork_gets_its_own_pool() -> None:
    a = argument(5)
    run(a, 3)

    def check() -> bool:
        run(a, 3)
        return right(a, 2, 3)

    in_child(check)
    run(a, 3)
    assert right(a, 2, 3)


def test_crowded_barriers_stay_cheap() -> None:
    """Waiting for 8 threads on 2 CPUs would cost some milliseconds a barrier."""
    a = argument(100)
    run(a, 8)
    begin = time.perf_counter()
    run(a, 8)
    assert (time.perf_counter() - begin) / 200 < 2e-3


def test_nobody_waits_for_a_thread_that_is_put_aside() -> None:
    """Beside processes that take all the CPUs, two threads are not slower than a few times one."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        a = argument(200)
        times = []
        for threads in (1, 2):
            begin = time.perf_counter()
            for _ in range(100):
                run(a, threads)
            times.append(time.perf_counter() - begin)
        assert a[1] == 0
        assert times[1] < 2.0
    finally:
        for p in busy:
            p.kill()
            p.wait()
