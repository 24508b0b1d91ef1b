"""The pool's workers, as LLVM IR text: how they wait, where they are woken, start and fork.

Part of the module of `pool`, whose state they use and which explains it. Words in capitals are
constants that `pool.pool_module` puts in.
"""

WAITING = """\
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

WORKER = """\
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
  call void @llvm.memset.p0.i64(ptr @finished, i8 0, i64 128, i1 false)
  call void @llvm.memset.p0.i64(ptr @placed, i8 0, i64 256, i1 false)
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
