"""The process-wide worker pool, as LLVM IR text.

Compiled once per process; models reference its symbols as externals. The code must never be
unloaded: sleeping workers stand in it.

    void nnrt_run(ptr fn, ptr arg, i32 nthreads)  fn(arg, tid, nthreads) on nthreads threads at once
    void nnrt_barrier(i32 tid, i32 nthreads)      inside fn: every thread of the run waits for all

* The caller is thread 0 of a run; worker w is thread w. Workers are started on demand, at most 63,
  with all signals blocked, and never end. `nthreads` is clamped to 1..64; one thread calls `fn`
  directly. Should the system refuse a thread, the run goes on with fewer: `fn` must believe its own
  third argument, and its results may not depend on it.
* One run at a time: a second caller waits. `fn` must not call nnrt_run.
* After a fork the child sees another pid and starts a pool of its own.
* Every wait spins (a short while only when there are more threads than CPUs), then yields the CPU a
  few times, then sleeps in a futex. "Sleepers" counts let the waker skip the system call: a sleeper
  counts itself and then lets the kernel compare the word; the waker changes the word and then reads
  the count; all four are sequentially consistent, so one of the two sees the other.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_THREADS = 64


@dataclass(frozen=True)
class _System:
    """What differs between Linux processors; another system needs another `nnrt_sleep/wake`."""

    futex: int  # system call number
    pause: str  # spin-wait hint


_SYSTEMS = {
    "x86_64": _System(202, "call void @llvm.x86.sse2.pause()"),
    "aarch64": _System(98, "call void @llvm.aarch64.hint(i32 1)"),
}
_PAUSE_DECLARATIONS = {
    "x86_64": "declare void @llvm.x86.sse2.pause()",
    "aarch64": "declare void @llvm.aarch64.hint(i32)",
}

DECLARATIONS = """\
declare void @nnrt_run(ptr, ptr, i32)
declare void @nnrt_barrier(i32, i32)
"""

_STATE = """\
; One cache line pair per word that one side spins on while the other writes.
%line = type { i32, i32, [120 x i8] }        ; word, sleepers
; Worker w runs when the word of ticket w changes.
@tickets = internal global [64 x %line] zeroinitializer, align 128
@pending = internal global %line zeroinitializer, align 128  ; workers of this run not yet done
@turn = internal global %line zeroinitializer, align 128     ; barriers passed
@arrived = internal global %line zeroinitializer, align 128  ; threads in the present barrier
@job = internal global { ptr, ptr, i32 } zeroinitializer, align 128  ; fn, arg, nthreads
@owner = internal global i32 0, align 128     ; pid the state belongs to; -1 while being reset
@started = internal global i32 0              ; workers alive
@cpus = internal global i32 0                 ; CPUs this process may use
@patience = internal global i32 0             ; spins before a wait yields, for this run
; pthread_mutex_t; all zero is its initial value
@mutex = internal global [64 x i8] zeroinitializer, align 64

declare i64 @syscall(i64, ...)
declare i32 @getpid()
declare i32 @sched_yield()
declare i32 @sched_getaffinity(i32, i64, ptr)
declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_detach(i64)
declare i32 @pthread_sigmask(i32, ptr, ptr)
declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
declare i64 @llvm.ctpop.i64(i64)
declare i32 @llvm.smin.i32(i32, i32)
"""

_WAITING = """\
; Sleeps while the word equals %old; may return early. (FUTEX_WAIT_PRIVATE)
define internal void @nnrt_sleep(ptr %word, i32 %old) noinline {
  call i64 (i64, ...) @syscall(i64 FUTEX, ptr %word, i64 128, i32 %old, ptr null)
  ret void
}

; Wakes all sleepers of a line, if it has any. (FUTEX_WAKE_PRIVATE)
define internal void @nnrt_wake(ptr %line) {
  %counter = getelementptr %line, ptr %line, i64 0, i32 1
  %sleepers = load atomic i32, ptr %counter seq_cst, align 4
  %any = icmp ne i32 %sleepers, 0
  br i1 %any, label %wake, label %done
wake:
  call i64 (i64, ...) @syscall(i64 FUTEX, ptr %line, i64 129, i64 2147483647)
  br label %done
done:
  ret void
}

; Returns when the word of the line is not %old, with acquire ordering.
define internal void @nnrt_wait(ptr %line, i32 %old) {
entry:
  %counter = getelementptr %line, ptr %line, i64 0, i32 1
  %patience = load atomic i32, ptr @patience monotonic, align 4
  br label %spin
spin:
  %turns = phi i32 [ 0, %entry ], [ %turns.next, %spun ]
  %seen.spin = load atomic i32, ptr %line acquire, align 4
  %changed.spin = icmp ne i32 %seen.spin, %old
  br i1 %changed.spin, label %done, label %spun
spun:
  PAUSE
  %turns.next = add i32 %turns, 1
  %spin.more = icmp slt i32 %turns.next, %patience
  br i1 %spin.more, label %spin, label %yield
yield:
  %yields = phi i32 [ 0, %spun ], [ %yields.next, %yielded ]
  %seen.yield = load atomic i32, ptr %line acquire, align 4
  %changed.yield = icmp ne i32 %seen.yield, %old
  br i1 %changed.yield, label %done, label %yielded
yielded:
  call i32 @sched_yield()
  %yields.next = add i32 %yields, 1
  %yield.more = icmp slt i32 %yields.next, YIELDS
  br i1 %yield.more, label %yield, label %lie.down
lie.down:
  atomicrmw add ptr %counter, i32 1 seq_cst
  br label %asleep
asleep:
  %seen = load atomic i32, ptr %line seq_cst, align 4
  %changed = icmp ne i32 %seen, %old
  br i1 %changed, label %get.up, label %sleep
sleep:
  call void @nnrt_sleep(ptr %line, i32 %old)
  br label %asleep
get.up:
  atomicrmw sub ptr %counter, i32 1 seq_cst
  br label %done
done:
  ret void
}
"""

_WORKER = """\
; Thread function of worker %id (an integer passed as a pointer). Its ticket was 0 at its start.
define internal ptr @nnrt_worker(ptr %id) {
entry:
  %w = ptrtoint ptr %id to i64
  %tid = trunc i64 %w to i32
  %ticket = getelementptr [64 x %line], ptr @tickets, i64 0, i64 %w
  br label %idle
idle:
  %old = phi i32 [ 0, %entry ], [ %now, %finished ]
  call void @nnrt_wait(ptr %ticket, i32 %old)
  %now = load atomic i32, ptr %ticket acquire, align 4
  %fn = load ptr, ptr @job
  %arg = load ptr, ptr getelementptr ({ ptr, ptr, i32 }, ptr @job, i64 0, i32 1)
  %n = load i32, ptr getelementptr ({ ptr, ptr, i32 }, ptr @job, i64 0, i32 2)
  call void %fn(ptr %arg, i32 %tid, i32 %n)
  %before = atomicrmw sub ptr @pending, i32 1 seq_cst
  %last = icmp eq i32 %before, 1
  br i1 %last, label %tell, label %finished
tell:
  call void @nnrt_wake(ptr @pending)
  br label %finished
finished:
  br label %idle
}

; Starts workers until %n threads (with the caller) exist; returns how many exist. Holds the mutex.
define internal i32 @nnrt_start(i32 %n) noinline {
entry:
  %thread = alloca i64
  %all = alloca [16 x i64]
  %saved = alloca [16 x i64]
  call void @llvm.memset.p0.i64(ptr %all, i8 -1, i64 128, i1 false)
  ; SIG_SETMASK: the process's signals stay with the threads it knows.
  call i32 @pthread_sigmask(i32 2, ptr %all, ptr %saved)
  %alive = load i32, ptr @started
  br label %next
next:
  %have = phi i32 [ %alive, %entry ], [ %id, %born ]
  %id = add i32 %have, 1
  %enough = icmp sge i32 %id, %n
  br i1 %enough, label %done, label %create
create:
  %id.wide = zext i32 %id to i64
  %id.ptr = inttoptr i64 %id.wide to ptr
  %rc = call i32 @pthread_create(ptr %thread, ptr null, ptr @nnrt_worker, ptr %id.ptr)
  %failed = icmp ne i32 %rc, 0
  br i1 %failed, label %done, label %born
born:
  %handle = load i64, ptr %thread
  call i32 @pthread_detach(i64 %handle)
  br label %next
done:
  store i32 %have, ptr @started
  call i32 @pthread_sigmask(i32 2, ptr %saved, ptr null)
  %threads = add i32 %have, 1
  ret i32 %threads
}

; Makes the state that of a process without workers. One thread does it; others wait.
define internal void @nnrt_reset(i32 %pid, i32 %old) noinline {
entry:
  %mask = alloca [128 x i64]
  %busy = icmp eq i32 %old, -1
  br i1 %busy, label %wait, label %claim
claim:
  %claimed = cmpxchg ptr @owner, i32 %old, i32 -1 seq_cst seq_cst
  %mine = extractvalue { i32, i1 } %claimed, 1
  br i1 %mine, label %clear, label %wait
clear:
  call void @llvm.memset.p0.i64(ptr @tickets, i8 0, i64 8192, i1 false)
  call void @llvm.memset.p0.i64(ptr @pending, i8 0, i64 128, i1 false)
  call void @llvm.memset.p0.i64(ptr @turn, i8 0, i64 128, i1 false)
  call void @llvm.memset.p0.i64(ptr @arrived, i8 0, i64 128, i1 false)
  call void @llvm.memset.p0.i64(ptr @mutex, i8 0, i64 64, i1 false)
  store i32 0, ptr @started
  call void @llvm.memset.p0.i64(ptr %mask, i8 0, i64 1024, i1 false)
  call i32 @sched_getaffinity(i32 0, i64 1024, ptr %mask)
  br label %count
count:
  %i = phi i64 [ 0, %clear ], [ %i.next, %count ]
  %cpus = phi i64 [ 0, %clear ], [ %cpus.next, %count ]
  %word = getelementptr i64, ptr %mask, i64 %i
  %bits = load i64, ptr %word
  %ones = call i64 @llvm.ctpop.i64(i64 %bits)
  %cpus.next = add i64 %cpus, %ones
  %i.next = add i64 %i, 1
  %counted = icmp eq i64 %i.next, 128
  br i1 %counted, label %publish, label %count
publish:
  %cpus.small = trunc i64 %cpus.next to i32
  store i32 %cpus.small, ptr @cpus
  store atomic i32 %pid, ptr @owner release, align 4
  ret void
wait:
  call i32 @sched_yield()
  %now = load atomic i32, ptr @owner acquire, align 4
  %ready = icmp eq i32 %now, %pid
  br i1 %ready, label %done, label %wait
done:
  ret void
}
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
  %others = sub i32 %parts, 1
  store atomic i32 %others, ptr @pending monotonic, align 4
  %none = icmp eq i32 %others, 0
  br i1 %none, label %mine, label %call
call:
  %w = phi i32 [ 1, %publish ], [ %w.next, %call ]
  %w.wide = zext i32 %w to i64
  %ticket = getelementptr [64 x %line], ptr @tickets, i64 0, i64 %w.wide
  atomicrmw add ptr %ticket, i32 1 seq_cst
  call void @nnrt_wake(ptr %ticket)
  %w.next = add i32 %w, 1
  %more = icmp slt i32 %w.next, %parts
  br i1 %more, label %call, label %mine
mine:
  call void %fn(ptr %arg, i32 0, i32 %parts)
  br label %join
join:
  %left = load atomic i32, ptr @pending acquire, align 4
  %joined = icmp eq i32 %left, 0
  br i1 %joined, label %unlock, label %wait
wait:
  call void @nnrt_wait(ptr @pending, i32 %left)
  br label %join
unlock:
  call i32 @pthread_mutex_unlock(ptr @mutex)
  ret void
}

define void @nnrt_barrier(i32 %tid, i32 %n) {
entry:
  %alone = icmp sle i32 %n, 1
  br i1 %alone, label %done, label %arrive
arrive:
  ; Read before arriving: the turn cannot change until this thread is counted.
  %turn = load atomic i32, ptr @turn monotonic, align 4
  %before = atomicrmw add ptr @arrived, i32 1 acq_rel
  %count = add i32 %before, 1
  %last = icmp eq i32 %count, %n
  br i1 %last, label %open, label %wait
open:
  store atomic i32 0, ptr @arrived monotonic, align 4
  atomicrmw add ptr @turn, i32 1 seq_cst
  call void @nnrt_wake(ptr @turn)
  br label %done
wait:
  call void @nnrt_wait(ptr @turn, i32 %turn)
  br label %done
done:
  ret void
}
"""


def pool_module(arch: str = "x86_64") -> str:
    """The IR text of the pool for Linux on `arch` ("x86_64" or "aarch64")."""
    system = _SYSTEMS[arch]
    text = "\n".join((_STATE + _PAUSE_DECLARATIONS[arch], _WAITING, _WORKER, _RUN))
    # A pause is 40-50 ns on recent x86: 2000 are about 0.1 ms.
    constants = {"FUTEX": str(system.futex), "PAUSE": system.pause, "YIELDS": "16"}
    constants |= {"CROWDED": "20", "SPINS": "2000"}
    for name, value in constants.items():
        text = text.replace(f" {name},", f" {value},").replace(f" {name}\n", f" {value}\n")
    return text
