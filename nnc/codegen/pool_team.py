"""What threads do inside a run, as LLVM IR text: claim parts of steps, and wait at barriers.

Part of the module of `pool`, whose state they use and which explains it.
"""

TEAM = """\
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
