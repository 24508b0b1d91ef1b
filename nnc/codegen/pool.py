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
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_THREADS = 64


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
  %id.at = getelementptr [64 x i32], ptr @ids, i64 0, i64 %w
  %placed = getelementptr [64 x i32], ptr @placed, i64 0, i64 %w
  %self = call i64 (i64, ...) @syscall(i64 GETTID)
  %self.word = trunc i64 %self to i32
  store atomic i32 %self.word, ptr %id.at monotonic, align 4
  br label %idle
idle:
  %old = phi i32 [ 0, %entry ], [ %now, %enter ], [ %now, %left ]
  call void @nnrt_wait(ptr %ticket, i32 %old)
  %now = load atomic i32, ptr %ticket acquire, align 4
  %bound = load atomic i32, ptr %placed monotonic, align 4
  %free = icmp eq i32 %bound, 0
  br i1 %free, label %enter, label %release
release:
  store atomic i32 0, ptr %placed monotonic, align 4
  call i32 @sched_setaffinity(i32 0, i64 128, ptr @allowed)
  br label %enter
enter:
  %state = load atomic i32, ptr @gate acquire, align 4
  %open = and i32 %state, 1
  %shut = icmp eq i32 %open, 0
  br i1 %shut, label %idle, label %try
try:
  %one.more = add i32 %state, 2
  %swap = cmpxchg ptr @gate, i32 %state, i32 %one.more seq_cst seq_cst
  %inside = extractvalue { i32, i1 } %swap, 1
  br i1 %inside, label %job, label %enter
job:
  %fn = load ptr, ptr @job
  %arg = load ptr, ptr getelementptr ({ ptr, ptr, i32 }, ptr @job, i64 0, i32 1)
  %n = load i32, ptr getelementptr ({ ptr, ptr, i32 }, ptr @job, i64 0, i32 2)
  %wanted = icmp slt i32 %tid, %n
  br i1 %wanted, label %work, label %left
work:
  call void %fn(ptr %arg, i32 %tid, i32 %n)
  br label %left
left:
  atomicrmw add ptr @exited, i32 1 seq_cst
  call void @nnrt_wake(ptr @exited)
  br label %idle
}

; Before worker %w is woken: takes the caller's CPU from those that it may run on, until it does run
; (then it gets them back). Left alone, the system may wake it there, behind the caller.
define internal void @nnrt_place(i64 %w) noinline {
entry:
  %mask = alloca [16 x i64]
  %rc = call i32 @sched_getaffinity(i32 0, i64 128, ptr @allowed)
  %cpu = call i32 @sched_getcpu()
  %known = icmp ult i32 %cpu, 1024
  br i1 %known, label %others, label %done
others:
  call void @llvm.memcpy.p0.p0.i64(ptr %mask, ptr @allowed, i64 128, i1 false)
  %number = lshr i32 %cpu, 6
  %at = zext i32 %number to i64
  %word = getelementptr [16 x i64], ptr %mask, i64 0, i64 %at
  %bit = and i32 %cpu, 63
  %bit.wide = zext i32 %bit to i64
  %one = shl i64 1, %bit.wide
  %rest = xor i64 %one, -1
  %bits = load i64, ptr %word
  %left = and i64 %bits, %rest
  store i64 %left, ptr %word
  %all = load <16 x i64>, ptr %mask, align 8
  %any = call i64 @llvm.vector.reduce.or.v16i64(<16 x i64> %all)
  %none = icmp eq i64 %any, 0
  br i1 %none, label %done, label %bind
bind:
  %id.at = getelementptr [64 x i32], ptr @ids, i64 0, i64 %w
  %id = load atomic i32, ptr %id.at monotonic, align 4
  %placed = getelementptr [64 x i32], ptr @placed, i64 0, i64 %w
  store atomic i32 1, ptr %placed monotonic, align 4
  call i32 @sched_setaffinity(i32 %id, i64 128, ptr %mask)
  br label %done
done:
  ret void
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
  call void @llvm.memset.p0.i64(ptr @gate, i8 0, i64 128, i1 false)
  call void @llvm.memset.p0.i64(ptr @exited, i8 0, i64 128, i1 false)
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

_TEAM = """\
; What one thread knows of the run: the segment it is in, the parallel steps behind it, the parts of
; all steps so far, its number, the number of threads, the last segment (+ 1) in which it asked for
; the serial steps, whether they are its own, whether it runs a part.
%team = type { i64, i64, i32, i32, i32, i64, i32, i32 }

define void @nnrt_team(ptr %team, i32 %tid, i32 %n) {
  store %team zeroinitializer, ptr %team
  %tid.at = getelementptr %team, ptr %team, i64 0, i32 3
  store i32 %tid, ptr %tid.at
  %n.at = getelementptr %team, ptr %team, i64 0, i32 4
  store i32 %n, ptr %n.at
  ret void
}

define i32 @nnrt_next(ptr %team, i32 %parts) {
entry:
  %step.at = getelementptr %team, ptr %team, i64 0, i32 1
  %sum.at = getelementptr %team, ptr %team, i64 0, i32 2
  %tid.at = getelementptr %team, ptr %team, i64 0, i32 3
  %n.at = getelementptr %team, ptr %team, i64 0, i32 4
  %asked.at = getelementptr %team, ptr %team, i64 0, i32 5
  %mine.at = getelementptr %team, ptr %team, i64 0, i32 6
  %running.at = getelementptr %team, ptr %team, i64 0, i32 7
  %n = load i32, ptr %n.at
  %running = load i32, ptr %running.at
  %was = icmp ne i32 %running, 0
  %alone = icmp sle i32 %n, 1
  br i1 %alone, label %single, label %several
single:
  %flip = xor i32 %running, 1
  store i32 %flip, ptr %running.at
  %only = sub i32 0, %running
  ret i32 %only
several:
  %segment = load i64, ptr %team
  br i1 %was, label %finish, label %choose
finish:
  store i32 0, ptr %running.at
  atomicrmw add ptr @finished, i32 1 seq_cst
  call void @nnrt_wake(ptr @finished)
  br label %choose
choose:
  %is.serial = icmp eq i32 %parts, 1
  br i1 %is.serial, label %one, label %claim
one:
  br i1 %was, label %over, label %whose
whose:
  %this = add i64 %segment, 1
  %asked = load i64, ptr %asked.at
  %known = icmp eq i64 %asked, %this
  br i1 %known, label %recall, label %ask
recall:
  %mine.before = load i32, ptr %mine.at
  br label %decide
ask:
  store i64 %this, ptr %asked.at
  %s.ask = load atomic i64, ptr @segment acquire, align 8
  %on.time = icmp eq i64 %s.ask, %segment
  %taken = load atomic i64, ptr @serial monotonic, align 8
  %free = icmp ult i64 %taken, %this
  %may = and i1 %on.time, %free
  br i1 %may, label %take, label %answer
take:
  %took = cmpxchg ptr @serial, i64 %taken, i64 %this seq_cst seq_cst
  %won = extractvalue { i64, i1 } %took, 1
  br label %answer
answer:
  %own = phi i1 [ false, %ask ], [ %won, %take ]
  %own.word = zext i1 %own to i32
  store i32 %own.word, ptr %mine.at
  br label %decide
decide:
  %mine = phi i32 [ %mine.before, %recall ], [ %own.word, %answer ]
  %is.mine = icmp ne i32 %mine, 0
  br i1 %is.mine, label %run.it, label %over
run.it:
  store i32 1, ptr %running.at
  ret i32 0
over:
  %sum.one = load i32, ptr %sum.at
  %sum.more = add i32 %sum.one, 1
  store i32 %sum.more, ptr %sum.at
  ret i32 -1
claim:
  %step = load i64, ptr %step.at
  %step.next = add i64 %step, 1
  %tid = load i32, ptr %tid.at
  br label %look
look:
  %part = phi i32 [ %tid, %claim ], [ %part.next, %other ]
  %seen = phi i32 [ 1, %claim ], [ %seen.next, %other ]
  %part.wide = zext i32 %part to i64
  %cell = getelementptr [64 x [16 x i64]], ptr @claimed, i64 0, i64 %part.wide
  %last = load atomic i64, ptr %cell acquire, align 8
  %untaken = icmp ule i64 %last, %step
  br i1 %untaken, label %grab, label %other
grab:
  %swap = cmpxchg ptr %cell, i64 %last, i64 %step.next seq_cst seq_cst
  %got = extractvalue { i64, i1 } %swap, 1
  br i1 %got, label %run.part, label %other
run.part:
  store i32 1, ptr %running.at
  ret i32 %part
other:
  %after = add i32 %part, 1
  %wraps = icmp eq i32 %after, %n
  %part.next = select i1 %wraps, i32 0, i32 %after
  %seen.next = add i32 %seen, 1
  %more = icmp sle i32 %seen.next, %n
  br i1 %more, label %look, label %done
done:
  store i64 %step.next, ptr %step.at
  %sum = load i32, ptr %sum.at
  %sum.next = add i32 %sum, %n
  store i32 %sum.next, ptr %sum.at
  ret i32 -1
}

define void @nnrt_barrier(ptr %team) {
entry:
  %n.at = getelementptr %team, ptr %team, i64 0, i32 4
  %n = load i32, ptr %n.at
  %alone = icmp sle i32 %n, 1
  br i1 %alone, label %out, label %start
start:
  %sum.at = getelementptr %team, ptr %team, i64 0, i32 2
  %sum = load i32, ptr %sum.at
  %segment = load i64, ptr %team
  %follow = add i64 %segment, 1
  br label %look
look:
  %s = load atomic i64, ptr @segment acquire, align 8
  %present = icmp eq i64 %s, %segment
  br i1 %present, label %count, label %pass
count:
  %finished = load atomic i32, ptr @finished acquire, align 4
  %all = icmp eq i32 %finished, %sum
  br i1 %all, label %open, label %wait
open:
  %swap = cmpxchg ptr @segment, i64 %segment, i64 %follow seq_cst seq_cst
  br label %pass
wait:
  call void @nnrt_wait(ptr @finished, i32 %finished)
  br label %look
pass:
  store i64 %follow, ptr %team
  br label %out
out:
  ret void
}

define i1 @nnrt_late(ptr %team) {
entry:
  %n.at = getelementptr %team, ptr %team, i64 0, i32 4
  %n = load i32, ptr %n.at
  %alone = icmp sle i32 %n, 1
  br i1 %alone, label %no, label %look
look:
  fence acquire
  %segment = load i64, ptr %team
  %s = load atomic i64, ptr @segment acquire, align 8
  %late = icmp ne i64 %s, %segment
  ret i1 %late
no:
  ret i1 false
}
"""


def pool_module(arch: str = "x86_64") -> str:
    """The IR text of the pool for Linux on `arch` ("x86_64" or "aarch64")."""
    system = _SYSTEMS[arch]
    text = "\n".join((_STATE + _PAUSE_DECLARATIONS[arch], _WAITING, _WORKER, _RUN, _TEAM))
    # A pause is 40-50 ns on recent x86: 10000 are about 0.4 ms, the Python code between two calls.
    constants = {
        "FUTEX": str(system.futex),
        "GETTID": str(system.gettid),
        "PAUSE": system.pause,
        "YIELDS": "16",
    }
    constants |= {"CROWDED": "20", "SPINS": "10000"}
    for name, value in constants.items():
        for end in (",", "\n", ")"):
            text = text.replace(f" {name}{end}", f" {value}{end}")
    return text
