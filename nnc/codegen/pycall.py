"""The road from Python's call protocol to a native entry, as LLVM IR text.

    PyObject *nnrt_call(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *names)

One function for all exports (METH_FASTCALL | METH_KEYWORDS). `self` is a NumPy array of machine
words, the *table*, in which `nnc.runtime.fastcall` has written what the last call was like: when
the arguments are like that again (same module, same shapes and dtypes), the entry is called at
once; when anything differs, the call goes to the Python function `SLOW`. Names of Python's and
NumPy's C interfaces are not referred to: their addresses stand in the table, so the object has no
undefined symbol. The layouts that it knows are fixed by the stable parts of CPython's and NumPy's
ABI: an object's type, a tuple's items, a float's value, an array's data, rank, shape, dtype, flags.
"""

from __future__ import annotations

from nnc.codegen import kept
from nnc.ir.calltable import (
    MAKE,
    MAX_VALUES,
    NOTHING,
    NUMBER,
    OBJECT,
    RECORD,
    RIGHT,
    SIZE,
    Input,
    Output,
    Word,
)


class _Text:
    """Lines of IR with numbered temporaries."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._count = 0

    def put(self, line: str) -> None:
        self.lines.append(f"  {line}")

    def label(self, name: str) -> None:
        self.lines.append(f"{name}:")

    @property
    def ended(self) -> bool:
        """Whether the present block has its last instruction."""
        return self.lines[-1].startswith(("  br ", "  ret ", "  switch "))

    def let(self, value: str) -> str:
        self._count += 1
        self.put(f"%v{self._count} = {value}")
        return f"%v{self._count}"

    def at(self, base: str, offset: int) -> str:
        return self.let(f"getelementptr i8, ptr {base}, i64 {offset}")

    def load(self, kind: str, base: str, offset: int = 0) -> str:
        return self.let(f"load {kind}, ptr {self.at(base, offset)}")

    def word(self, which: Word, kind: str = "ptr") -> str:
        return self.load(kind, "%table", 8 * which)

    def field(self, record: str, which: Input | Output, kind: str = "i64") -> str:
        return self.load(kind, record, 8 * which)

    def element(self, kind: str, base: str, index: str) -> str:
        return self.let(f"getelementptr {kind}, ptr {base}, i64 {index}")

    def item(self, kind: str, base: str, index: str) -> str:
        return self.load(kind, self.element(kind, base, index))

    def record(self, base: str, index: str) -> str:
        return self.element(f"[{RECORD} x i64]", base, index)

    def jump(self, condition: str, yes: str, no: str) -> None:
        self.put(f"br i1 {condition}, label %{yes}, label %{no}")

    def unless(self, condition: str, away: str, on: str) -> None:
        """Goes on at `on` (which begins here) when the condition holds, else leaves to `away`."""
        self.jump(condition, on, away)
        self.label(on)

    def set(self, which: Word, value: str) -> None:
        self.put(f"store i64 {value}, ptr {self.at('%table', 8 * which)}")

    def call(self, which: Word, result: str, args: str) -> str:
        function = self.word(which)
        if result == "void":
            self.put(f"call void {function}({args})")
            return ""
        return self.let(f"call {result} {function}({args})")


class _Loop:
    """`for i in range(count)`: the body between `with`; `next` jumps to the next turn."""

    def __init__(self, text: _Text, name: str, count: str, start: str = "0") -> None:
        self.text, self.name, self.count, self.start = text, name, count, start
        self.index = f"%{name}.i"
        self.next = f"{name}.next"

    def __enter__(self) -> _Loop:
        t, name = self.text, self.name
        t.put(f"br label %{name}.entry")
        t.label(f"{name}.entry")
        t.put(f"br label %{name}.head")
        t.label(f"{name}.head")
        t.put(
            f"{self.index} = phi i64 [ {self.start}, %{name}.entry ], [ %{name}.n, %{self.next} ]"
        )
        t.jump(t.let(f"icmp slt i64 {self.index}, {self.count}"), f"{name}.body", f"{name}.done")
        t.label(f"{name}.body")
        return self

    def __exit__(self, *_: object) -> None:
        t, name = self.text, self.name
        if not t.ended:
            t.put(f"br label %{self.next}")
        t.label(self.next)
        t.put(f"%{name}.n = add i64 {self.index}, 1")
        t.put(f"br label %{name}.head")
        t.label(f"{name}.done")


def pycall_module() -> str:
    """The module with `nnrt_call`."""
    t = _Text()
    t.label("entry")
    t.put(f"%values = alloca ptr, i64 {MAX_VALUES}")
    t.put(f"%results = alloca ptr, i64 {MAX_VALUES}")
    t.put("%data = getelementptr i8, ptr %self, i64 16")
    t.put("%table = load ptr, ptr %data")
    t.unless(t.let(f"icmp ne i64 {t.word(Word.READY, 'i64')}, 0"), "slow", "idle")
    t.unless(t.let(f"icmp eq i64 {t.word(Word.BUSY, 'i64')}, 0"), "slow", "ready")
    _bind(t)
    _match(t)
    _disjoint(t)
    _allocate(t)
    _run(t)
    _results(t)
    t.label("slow")
    t.put(f"ret ptr {t.call(Word.VECTORCALL, 'ptr', f'ptr {t.word(Word.SLOW)}, {_GIVEN}')}")
    t.label("failed")
    _release(t, "failed", "%outputs")
    t.put(f"ret ptr {t.call(Word.VECTORCALL, 'ptr', f'ptr {t.word(Word.FAIL)}, {_NOTHING}')}")
    head = "define ptr @nnrt_call(ptr %self, ptr %args, i64 %n, ptr %names) {"
    return "\n".join([head, *t.lines, "}", ""])


_GIVEN = "ptr %args, i64 %n, ptr %names"
_NOTHING = "ptr null, i64 0, ptr null"


def _bind(t: _Text) -> None:
    """`values[i]`: what was given for argument i, by position or by name."""
    t.put(f"%inputs = {_copy(t.word(Word.INPUTS, 'i64'))}")
    t.put(f"%input = getelementptr i8, ptr {t.word(Word.INPUT)}, i64 0")
    named = t.let("icmp ne ptr %names, null")
    t.jump(named, "named", "bound")
    t.label("named")
    t.put(f"%extra = {_copy(t.load('i64', '%names', 16))}")
    t.put("br label %bound")
    t.label("bound")
    t.put("%keywords = phi i64 [ 0, %ready ], [ %extra, %named ]")
    t.put("%given = add i64 %n, %keywords")
    t.unless(t.let("icmp eq i64 %given, %inputs"), "slow", "counted")
    with _Loop(t, "plain", "%n") as i:
        value = t.item("ptr", "%args", i.index)
        t.put(f"store ptr {value}, ptr {t.element('ptr', '%values', i.index)}")
    with _Loop(t, "keyword", "%keywords") as k:
        name = t.item("ptr", t.at("%names", 24), k.index)
        with _Loop(t, "search", "%inputs", "%n") as i:
            declared = t.field(t.record("%input", i.index), Input.NAME, "ptr")
            t.jump(t.let(f"icmp eq ptr {name}, {declared}"), "found", i.next)
        t.put("br label %slow")  # no such name
        t.label("found")
        value = t.item("ptr", "%args", t.let(f"add i64 %n, {k.index}"))
        t.put(f"store ptr {value}, ptr {t.element('ptr', '%values', '%search.i')}")


def _copy(value: str) -> str:
    return f"add i64 {value}, 0"


def _match(t: _Text) -> None:
    """Whether each argument is like the last call's; the pointers of those that were given."""
    t.put(f"%pointers = getelementptr i8, ptr {t.word(Word.ARGS)}, i64 0")
    with _Loop(t, "match", "%inputs") as i:
        t.put(f"%record = getelementptr i8, ptr {t.record('%input', i.index)}, i64 0")
        t.put(f"%value = load ptr, ptr {t.element('ptr', '%values', i.index)}")
        t.put(f"%type = load ptr, ptr {t.at('%value', 8)}")
        cases = f"i64 {OBJECT}, label %object i64 {SIZE}, label %size i64 {NUMBER}, label %number"
        t.put(f"switch i64 {t.field('%record', Input.KIND)}, label %tensor [ {cases} ]")
        _tensor(t, i)
        t.label("object")
        same = t.let(f"icmp eq ptr %value, {t.field('%record', Input.EXPECT, 'ptr')}")
        t.unless(same, "slow", "known")
        state = t.field("%record", Input.STATE, "ptr")
        t.jump(t.let(f"icmp eq ptr {state}, null"), i.next, "kept")
        t.label("kept")
        pairs = ((0, Input.VERSION), (8, Input.LENDINGS))
        equal = [
            t.let(f"icmp eq i64 {t.load('i64', state, at)}, {t.field('%record', was)}")
            for at, was in pairs
        ]
        t.jump(t.let(f"and i1 {equal[0]}, {equal[1]}"), i.next, "slow")
        t.label("size")
        t.unless(t.let(f"icmp eq ptr %type, {t.word(Word.LONG_TYPE)}"), "slow", "integer")
        number = t.call(Word.LONG_AS_LONG, "i64", "ptr %value")
        t.jump(t.let(f"icmp eq i64 {number}, {t.field('%record', Input.EXPECT)}"), i.next, "other")
        t.label("other")
        t.call(Word.ERR_CLEAR, "void", "")  # it may be too big for a long
        t.put("br label %slow")
        _number(t, i)


def _tensor(t: _Text, i: _Loop) -> None:
    t.label("tensor")
    t.unless(t.let(f"icmp eq ptr %type, {t.word(Word.ARRAY_TYPE)}"), "slow", "array")
    dtype = t.field("%record", Input.EXPECT, "ptr")
    t.unless(t.let(f"icmp eq ptr {t.load('ptr', '%value', 56)}, {dtype}"), "slow", "dtype")
    rank = t.field("%record", Input.RANK)
    own = t.let(f"sext i32 {t.load('i32', '%value', 24)} to i64")
    t.unless(t.let(f"icmp eq i64 {own}, {rank}"), "slow", "rank")
    need = t.field("%record", Input.FLAGS)
    flags = t.let(f"zext i32 {t.load('i32', '%value', 64)} to i64")
    t.unless(t.let(f"icmp eq i64 {t.let(f'and i64 {flags}, {need}')}, {need}"), "slow", "flags")
    shape, wanted = t.load("ptr", "%value", 32), t.field("%record", Input.SHAPE, "ptr")
    with _Loop(t, "axis", rank) as axis:
        mine = t.item("i64", shape, axis.index)
        theirs = t.item("i64", wanted, axis.index)
        t.jump(t.let(f"icmp eq i64 {mine}, {theirs}"), axis.next, "slow")
    data = t.load("i64", "%value", 16)
    t.put(f"store i64 {data}, ptr {t.at('%record', 8 * Input.START)}")
    _point(t, data)
    t.put(f"br label %{i.next}")


def _number(t: _Text, i: _Loop) -> None:
    t.label("number")
    t.unless(t.let(f"icmp eq ptr %type, {t.word(Word.FLOAT_TYPE)}"), "slow", "float")
    value, cell = t.load("double", "%value", 16), t.field("%record", Input.CELL, "ptr")
    single = t.let(f"icmp eq i64 {t.field('%record', Input.WIDTH)}, 4")
    t.jump(single, "single", "double")
    t.label("single")
    short = t.let(f"fptrunc double {value} to float")
    for compare, infinity in (("olt", "0x7FF0000000000000"), ("ogt", "0xFFF0000000000000")):
        t.unless(t.let(f"fcmp {compare} float {short}, {infinity}"), "slow", f"finite.{compare}")
    t.put(f"store float {short}, ptr {cell}")
    t.put("br label %placed")
    t.label("double")
    t.put(f"store double {value}, ptr {cell}")
    t.put("br label %placed")
    t.label("placed")
    _point(t, t.field("%record", Input.CELL))


def _point(t: _Text, address: str) -> None:
    position = t.field("%record", Input.POSITION)
    t.put(f"store i64 {address}, ptr {t.element('i64', '%pointers', position)}")


def _disjoint(t: _Text) -> None:
    """Leaves to the slow road (and its message) when memory that is written is named twice."""
    t.jump(t.let(f"icmp ne i64 {t.word(Word.WRITES, 'i64')}, 0"), "writes", "allocate")
    t.label("writes")
    with _Loop(t, "left", "%inputs") as i:
        a = t.record("%input", i.index)
        t.jump(t.let(f"icmp ne i64 {t.field(a, Input.WRITTEN)}, 0"), "written", i.next)
        t.label("written")
        start = t.field(a, Input.START)
        end = t.let(f"add i64 {start}, {t.field(a, Input.BYTES)}")
        with _Loop(t, "right", "%inputs") as j:
            t.jump(t.let(f"icmp eq i64 {i.index}, {j.index}"), j.next, "pair")
            t.label("pair")
            b = t.record("%input", j.index)
            first = t.field(b, Input.START)
            last = t.let(f"add i64 {first}, {t.field(b, Input.BYTES)}")
            below = t.let(f"icmp ult i64 {start}, {last}")
            above = t.let(f"icmp ult i64 {first}, {end}")
            t.unless(t.let(f"xor i1 {t.let(f'and i1 {below}, {above}')}, true"), "slow", "apart")
    t.put("br label %allocate")


def _allocate(t: _Text) -> None:
    t.label("allocate")
    t.put(f"%outputs = {_copy(t.word(Word.OUTPUTS, 'i64'))}")
    t.put(f"%output = getelementptr i8, ptr {t.word(Word.OUTPUT)}, i64 0")
    with _Loop(t, "make", "%outputs") as i:
        record = t.record("%output", i.index)
        dtype = t.field(record, Output.DTYPE, "ptr")
        t.call(Word.INCREF, "void", f"ptr {dtype}")  # which the call below gives away
        rank = t.let(f"trunc i64 {t.field(record, Output.RANK)} to i32")
        shape = t.field(record, Output.SHAPE, "ptr")
        made = t.call(Word.ARRAY_EMPTY, "ptr", f"i32 {rank}, ptr {shape}, ptr {dtype}, i32 0")
        t.jump(t.let(f"icmp ne ptr {made}, null"), "made", "exhausted")
        t.label("made")
        t.put(f"store ptr {made}, ptr {t.element('ptr', '%results', i.index)}")
        position = t.field(record, Output.POSITION)
        data = t.load("ptr", made, 16)
        t.put(f"store ptr {data}, ptr {t.element('ptr', '%pointers', position)}")
    t.put("br label %run")
    t.label("exhausted")
    t.call(Word.ERR_CLEAR, "void", "")
    _release(t, "spare", "%make.i")
    t.put("br label %slow")


def _release(t: _Text, name: str, count: str) -> None:
    with _Loop(t, f"{name}.free", count) as i:
        result = t.item("ptr", "%results", i.index)
        t.call(Word.DECREF, "void", f"ptr {result}")


def _run(t: _Text) -> None:
    t.label("run")
    context, dims = t.word(Word.CONTEXT), t.word(Word.DIMS)
    t.put(f"%keep = {_copy(t.word(Word.KEEP, 'i64'))}")
    t.put(f"store i64 %keep, ptr {t.at(context, 8 * kept.WORD)}")
    call = f"ptr {context}, ptr {dims}, ptr %pointers"
    t.jump(t.let(f"icmp ne i64 {t.word(Word.RELEASE, 'i64')}, 0"), "releasing", "holding")
    t.label("releasing")
    t.set(Word.BUSY, "1")
    thread = t.call(Word.SAVE_THREAD, "ptr", "")
    alone = t.call(Word.ENTRY, "i32", call)
    t.call(Word.RESTORE_THREAD, "void", f"ptr {thread}")
    t.set(Word.BUSY, "0")
    t.put("br label %ran")
    t.label("holding")
    held = t.call(Word.ENTRY, "i32", call)
    t.put("br label %ran")
    t.label("ran")
    status = t.let(f"phi i32 [ {alone}, %releasing ], [ {held}, %holding ]")
    failed = t.let(f"icmp ne i32 {status}, 0")
    # Made, it is there; after a failure it is made again.
    keeping = t.let(f"icmp ne i64 %keep, {NOTHING}")
    after = t.let(f"select i1 {failed}, i64 {MAKE}, i64 {RIGHT}")
    t.set(Word.KEEP, t.let(f"select i1 {keeping}, i64 {after}, i64 {NOTHING}"))
    t.jump(failed, "failed", "fine")
    t.label("fine")
    counters = t.word(Word.VERSION)
    with _Loop(t, "version", t.word(Word.VERSIONS, "i64")) as i:
        counter = t.item("ptr", counters, i.index)
        count = t.let(f"add i64 {t.load('i64', counter)}, 1")
        t.put(f"store i64 {count}, ptr {counter}")


def _results(t: _Text) -> None:
    t.jump(t.let(f"icmp ne i64 {t.word(Word.TUPLE, 'i64')}, 0"), "tuple", "plain.result")
    t.label("tuple")
    made = t.call(Word.TUPLE_NEW, "ptr", "i64 %outputs")
    t.jump(t.let(f"icmp ne ptr {made}, null"), "items", "lost")
    t.label("lost")  # Python says that memory is exhausted
    _release(t, "lost", "%outputs")
    t.put("ret ptr null")
    t.label("items")
    with _Loop(t, "item", "%outputs") as i:
        result = t.item("ptr", "%results", i.index)
        seen = t.call(Word.ARRAY_RETURN, "ptr", f"ptr {result}")
        t.call(Word.TUPLE_SET, "i32", f"ptr {made}, i64 {i.index}, ptr {seen}")
    t.put(f"ret ptr {made}")
    t.label("plain.result")
    t.jump(t.let("icmp eq i64 %outputs, 0"), "none", "one")
    t.label("none")
    nothing = t.word(Word.NONE)
    t.call(Word.INCREF, "void", f"ptr {nothing}")
    t.put(f"ret ptr {nothing}")
    t.label("one")
    result = t.load("ptr", "%results")
    t.put(f"ret ptr {t.call(Word.ARRAY_RETURN, 'ptr', f'ptr {result}')}")
