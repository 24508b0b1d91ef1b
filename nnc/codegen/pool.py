"""The process-wide worker pool, as LLVM IR text.

Compiled once per process; models reference its symbols as externals. The code must never be
unloaded: sleeping workers stand in it.

    void nnrt_run(ptr fn, ptr arg, i32 nthreads)  fn(arg, tid, nthreads) on up to nthreads threads
    void nnrt_team(ptr team, i32 tid, i32 nthreads)  inside fn, first of all; team: 64 bytes
    i32 nnrt_next(ptr team, i32 parts)  the next part of the present step to run, -1: no more;
                                        parts: 1, or as many as there are threads
    void nnrt_barrier(ptr team)  waits until every part of the steps since the last barrier is done
    i1 nnrt_late(ptr team)  whether others have passed the next barrier already

* All threads go through the same steps and barriers, but nobody waits for a thread: parts are
  claimed one by one, and a barrier waits for parts, not for threads. A thread that the system has
  put aside finds its parts done by others and walks past them. What a part computes may depend on
  its number only. A thread claims the part of its own number first: what it wrote in the step
  before is in its cache.
* A step of one part is serial: the first thread that asks in the segment between two barriers runs
  all serial steps of that segment, in order.
* Decisions that all threads must make alike come from sizes, or from memory that nobody writes
  before the next barrier; who is late by then (nnrt_late) must return instead of deciding.
* The caller is thread 0 of a run; worker w is thread w. Workers are started on demand, at most 63,
  with all signals blocked, and never end; a run does not wait for workers that have not come.
  `nthreads` is clamped to 1..64; one thread calls `fn` directly. Should the system refuse a thread,
  the run goes on with fewer: `fn` must believe its own third argument.
* A worker that sleeps is not woken on the caller's CPU, where it would wait behind the caller.
* One run at a time: a second caller waits. `fn` must not call nnrt_run.
* After a fork the child sees another pid and starts a pool of its own.
* Every wait spins (a short while only when there are more threads than CPUs), then yields the CPU a
  few times, then sleeps in a futex. "Sleepers" counts let the waker skip the system call: a sleeper
  counts itself and then lets the kernel compare the word; the waker changes the word and then reads
  the count; all four are sequentially consistent, so one of the two sees the other.

Files: here the state and `nnrt_run`; `pool_workers`: waiting, and the workers; `pool_team`: the
functions that `fn` calls.
"""

from __future__ import annotations

from dataclasses import dataclass

from nnc.codegen.pool_team import TEAM
from nnc.codegen.pool_workers import WAITING, WORKER


@dataclass(frozen=True)
class _System:
    """What differs between Linux processors; another system needs another `nnrt_sleep/wake`."""

    futex: int  # system call numbers
    gettid: int
    pause: str  # spin-wait hint


_SYSTEMS = {
    "x86_64": _System(202, 186, "call void @llvm.x86.sse2.pause()"),
    "aarch64": _System(98, 178, "call void @llvm.aarch64.hint(i32 1)"),
}
_PAUSE_DECLARATIONS = {
    "x86_64": "declare void @llvm.x86.sse2.pause()",
    "aarch64": "declare void @llvm.aarch64.hint(i32)",
}

FUNCTIONS = ("nnrt_run", "nnrt_team", "nnrt_next", "nnrt_barrier", "nnrt_late")
DECLARATIONS = """\
declare void @nnrt_run(ptr, ptr, i32)
declare void @nnrt_team(ptr, i32, i32)
declare i32 @nnrt_next(ptr, i32)
declare void @nnrt_barrier(ptr)
declare i1 @nnrt_late(ptr)
"""

_STATE = """\
; One cache line pair per word that one side spins on while the other writes.
%line = type { i32, i32, [120 x i8] }        ; word, sleepers
; Worker w runs when the word of ticket w changes.
@tickets = internal global [64 x %line] zeroinitializer, align 128
@gate = internal global %line zeroinitializer, align 128     ; 1: open; 2 for each that came in
@exited = internal global %line zeroinitializer, align 128   ; of those
@segment = internal global [16 x i64] zeroinitializer, align 128   ; barriers passed in this run
; Of so many parallel steps part p has been claimed.
@claimed = internal global [64 x [16 x i64]] zeroinitializer, align 128
@finished = internal global %line zeroinitializer, align 128 ; parts done in this run
@serial = internal global [16 x i64] zeroinitializer, align 128  ; segments with serial steps taken
@job = internal global { ptr, ptr, i32 } zeroinitializer, align 128  ; fn, arg, nthreads
@owner = internal global i32 0, align 128     ; pid the state belongs to; -1 while being reset
@started = internal global i32 0              ; workers alive
@cpus = internal global i32 0                 ; CPUs this process may use
@patience = internal global i32 0             ; spins before a wait yields, for this run
@ids = internal global [64 x i32] zeroinitializer, align 128     ; of the workers, for the system
@placed = internal global [64 x i32] zeroinitializer, align 128  ; workers kept off a CPU
@allowed = internal global [16 x i64] zeroinitializer, align 128 ; the CPUs they get back
; pthread_mutex_t; all zero is its initial value
@mutex = internal global [64 x i8] zeroinitializer, align 64

declare i64 @syscall(i64, ...)
declare i32 @getpid()
declare i32 @sched_yield()
declare i32 @sched_getaffinity(i32, i64, ptr)
declare i32 @sched_setaffinity(i32, i64, ptr)
declare i32 @sched_getcpu()
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
declare i64 @llvm.vector.reduce.or.v16i64(<16 x i64>)
declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_detach(i64)
declare i32 @pthread_sigmask(i32, ptr, ptr)
declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
declare i64 @llvm.ctpop.i64(i64)
declare i32 @llvm.smin.i32(i32, i32)
"""

_RUN = """\
define void @nnrt_run(ptr %fn, ptr %arg, i32 %n) {
entry:
  %alone = icmp sle i32 %n, 1
  br i1 %alone, label %serial, label %check
serial:
  call void %fn(ptr %arg, i32 0, i32 1)
  ret void
check:
  %pid = call i32 @getpid()
  %owner = load atomic i32, ptr @owner acquire, align 4
  %ours = icmp eq i32 %owner, %pid
  br i1 %ours, label %lock, label %reset
reset:
  call void @nnrt_reset(i32 %pid, i32 %owner)
  br label %lock
lock:
  call i32 @pthread_mutex_lock(ptr @mutex)
  %wanted = call i32 @llvm.smin.i32(i32 %n, i32 64)
  %workers = load i32, ptr @started
  %missing = sub i32 %wanted, 1
  %ready = icmp sge i32 %workers, %missing
  br i1 %ready, label %publish, label %start
start:
  %alive = call i32 @nnrt_start(i32 %wanted)
  br label %publish
publish:
  %parts = phi i32 [ %wanted, %lock ], [ %alive, %start ]
  store ptr %fn, ptr @job
  store ptr %arg, ptr getelementptr ({ ptr, ptr, i32 }, ptr @job, i64 0, i32 1)
  store i32 %parts, ptr getelementptr ({ ptr, ptr, i32 }, ptr @job, i64 0, i32 2)
  %cpus = load i32, ptr @cpus
  %crowded = icmp sgt i32 %parts, %cpus
  %spins = select i1 %crowded, i32 CROWDED, i32 SPINS
  store atomic i32 %spins, ptr @patience monotonic, align 4
  %cells = zext i32 %parts to i64
  %bytes = shl i64 %cells, 7
  call void @llvm.memset.p0.i64(ptr @claimed, i8 0, i64 %bytes, i1 false)
  store atomic i64 0, ptr @segment monotonic, align 8
  store atomic i32 0, ptr @finished monotonic, align 4
  store atomic i64 0, ptr @serial monotonic, align 8
  store atomic i32 0, ptr @exited monotonic, align 4
  store atomic i32 1, ptr @gate seq_cst, align 4
  %none = icmp eq i32 %parts, 1
  br i1 %none, label %mine, label %call
call:
  %w = phi i32 [ 1, %publish ], [ %w.next, %called ]
  %w.wide = zext i32 %w to i64
  %ticket = getelementptr [64 x %line], ptr @tickets, i64 0, i64 %w.wide
  atomicrmw add ptr %ticket, i32 1 seq_cst
  %lying.at = getelementptr %line, ptr %ticket, i64 0, i32 1
  %lying = load atomic i32, ptr %lying.at seq_cst, align 4
  %awake = icmp eq i32 %lying, 0
  br i1 %awake, label %called, label %place
place:
  br i1 %crowded, label %wake, label %choose
choose:
  call void @nnrt_place(i64 %w.wide)
  br label %wake
wake:
  call void @nnrt_wake(ptr %ticket)
  br label %called
called:
  %w.next = add i32 %w, 1
  %more = icmp slt i32 %w.next, %parts
  br i1 %more, label %call, label %mine
mine:
  call void %fn(ptr %arg, i32 0, i32 %parts)
  %last = atomicrmw and ptr @gate, i32 -2 seq_cst
  %came = lshr i32 %last, 1
  br label %join
join:
  %gone = load atomic i32, ptr @exited acquire, align 4
  %joined = icmp eq i32 %gone, %came
  br i1 %joined, label %unlock, label %wait
wait:
  call void @nnrt_wait(ptr @exited, i32 %gone)
  br label %join
unlock:
  call i32 @pthread_mutex_unlock(ptr @mutex)
  ret void
}
"""


def pool_module(arch: str = "x86_64") -> str:
    """The IR text of the pool for Linux on `arch` ("x86_64" or "aarch64")."""
    system = _SYSTEMS[arch]
    text = "\n".join((_STATE + _PAUSE_DECLARATIONS[arch], WAITING, WORKER, _RUN, TEAM))
    # A pause is 40-50 ns on recent x86: 10000 are about 0.4 ms, the Python code between two calls.
    constants = {
        "FUTEX": str(system.futex),
        "GETTID": str(system.gettid),
        "PAUSE": system.pause,
        "YIELDS": "16",
        "CROWDED": "20",
        "SPINS": "10000",
    }
    for name, value in constants.items():
        for end in (",", "\n", ")"):
            text = text.replace(f" {name}{end}", f" {value}{end}")
    return text
