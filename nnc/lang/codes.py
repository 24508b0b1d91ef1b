"""Every error and warning code: a title, and what it means and what to do.

`docs/errors.md` is `manual()`; tests/test_docs.py compares it, and holds this table against the
codes that the sources raise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches

from nnc.lang.stop import CODES as SYNTAX


@dataclass(frozen=True)
class Code:
    """One code. `text` is a short paragraph."""

    code: str
    title: str
    text: str


GROUPS = {
    "E01": "Reading the text",
    "E02": "Dtypes and kinds of values",
    "E03": "Shapes and sizes",
    "E04": "Index notation",
    "E05": "Storage and effects",
    "E06": "Gradients",
    "E07": "Weights",
    "E08": "Names, calls and files",
    "E09": "Limits of this version",
    "W00": "Warnings",
}

# A code with its title (those of E01 stand in nnc/lang/stop.py), then its text, indented.
_TABLE = """
E0100
    The line stops being a program at the marked word. The message lists what could stand there,
    or names the construct that was probably meant.
E0101
    Programs are written in ASCII apart from texts and comments: the marked character is none of
    the language. Typographic quotes and dashes usually come from a word processor.
E0102
    The file holds a character that no editor shows. Delete it; it often arrives by copying from
    a web page.
E0103
    A text begins and ends with `"` on one line.
E0104
    Numbers are written `42`, `0.5`, `1e-3`, `1_000`. There are no suffixes and no base but ten,
    and a product needs its `*`.
E0105
    Indent with spaces. Tabs look different in every editor, so they are refused in the
    indentation. Four spaces a block are the custom.
E0106
    A line that ends a block must be indented exactly as one of the blocks around it.
E0107
    Only a line that ends in `:` opens a block. To continue a long line, end it with an operator
    or put it in brackets.
E0108
    A line that ends in `:` is followed by at least one deeper line; `pass` does nothing.
E0109
    `module`, `def`, `for`, `if`, `else`, `while`, `test` and `adjoint` lines end in `:`.
E0110
    The marked bracket is still open at the end of the file or of the block.
E0111
    This closing bracket belongs to another kind than the last one opened.
E0112
    Deeper nesting is refused, so that no text can exhaust the compiler. Give parts of the
    expression names.
E0113
    Reserved words are reserved everywhere. Choose another name.
E0114
    `=` defines and `:=` writes storage; equality is `==`.
E0115
    The operator is one of another language; the help names the one of this language (`**` is
    the power, `//` the integer quotient, `and or not` the logic).
E0116
    The construct is one of another language; the help names what does its work here.
E0117
    Every argument of a function has a type: `x: real[B, D]`.
E0118
    A function states its result: `-> real[B, D]`. A `param` or `state` states its type.
E0119
    Only the body of a `def` or `adjoint` returns.
E0120
    `yield` stacks values in a loop that is given a name: `ys = for t in T: ... yield y`.
E0121
    Writing storage is a statement, never a part of an expression.
E0122
    The left side of `=` is a name or `name[indices]`, or several of them; the left side of `:=`
    is storage or elements of it.
E0123
    Files hold imports, constants, modules, functions and tests; modules hold parameters, state,
    sub-modules and functions; functions hold statements.
E0124
    `edition 1`, where it is written, is the first line of the file.
E0125
    `else` and `elif` stand directly under the block of an `if`, equally indented.
E0126
    A file holds at least one definition.
E0127
    Brackets around one thing group it; a tuple has two or more elements.
E0128
    The statement has too many words for one line. Give parts of it names.
E0201 two dtypes in one operation
    Stored tensors never convert by themselves: rounding should be visible. Write the cast of
    one side, as in `f32(x) + y`; the help shows the wider choice. Plain numbers, sizes and
    indices adapt to their context and need no cast.
E0202 a number that does not fit the dtype it meets
    `i32 + 0.5` has no exact meaning, and a number is not a condition. Write an integer, or cast
    the tensor to a float.
E0203 a value of the wrong kind
    The operation wants a float, an integer, a bool, one number, or a tensor, and was given
    something else; the message says which. Integers become floats by `real(n)`, numbers become
    conditions by a comparison, tensors of conditions by `all(...)` or `any(...)`.
E0204 the dtype is not the one that is declared
    A result, parameter or assignment has another dtype than its declaration. Cast it where it
    is made: `f32(...)`.
E0301 an argument does not fit the declared type
    A function or sub-module takes other sizes, or another kind of thing, than it is given. Both
    places are shown, with the origin of each size.
E0302 two shapes cannot be combined
    Element-wise operations take equal shapes, or a literal 1 that is stretched, or a shorter
    shape that equals the last axes of the longer one. The note names the axis that differs.
E0303 a value does not have the declared shape
    A result, an initial value, or what is written to storage must have exactly the declared
    shape and number of values. Nothing is broadcast into a declaration.
E0304 an accidental broadcast
    `[B, 1] - [B]` would be `[B, B]` by the rules of NumPy, which is hardly ever meant. Shapes
    of different rank match on their last axes only, and then exactly. Index the column, `x[:,
    0]`, or add the axis, `y[:, None]`.
E0305 which axis is meant?
    `over=` names an axis by its size, and several axes have this size (or one is named twice).
    Use the index name of the statement that defined the tensor, or the number of the axis.
E0306 there is no such axis
    `over=` takes an index name of the variable's definition, a size that occurs once in the
    shape, or the number of an axis from 0 (negative from the end).
E0307 the operands of `@` do not fit
    `a @ b` sums over the last axis of `a` and the first (or second to last) of `b`; these must
    be equal, and so must leading axes. Index notation, `sum[k](a[i, k] * b[j, k])`, says any
    other product.
E0308 the wrong number of axes
    A tensor of another rank is needed here. `..N` in a signature takes any number of axes.
E0309 a size that cannot be used here
    Sizes are integers made of size names, numbers and `+ - * / // % min max`. Every size in a
    signature must be found from the arguments: some axis is the bare name (or an invertible
    form as `T + 1`), or a `where` clause defines it. Module parameters are known at compile
    time.
E0310 a quotient of sizes that is not exact
    `D/H` promises that `H` divides `D`. Use `//` for the quotient rounded down, or change the
    numbers; the help lists divisors.
E0311 a condition on sizes does not hold
    A `where` clause or an `assert` is false, or cannot be proved from what is known at the
    call. If it is true for reasons the compiler cannot see, state them in the `where` of the
    calling function: exported functions check theirs at entry.
E0312 the branches of an `if` disagree
    After a run-time `if` a variable has one type, so both branches must give it the same dtype
    and shape.
E0313 two trees have different leaves
    Arithmetic on trees goes leaf by leaf; both sides must be trees of the same module, or of
    equal structure.
E0314 a tensor too large for any machine
    The declared sizes need more than 2^63 - 1 bytes, which is nearly always a slip in a size.
E0315 an argument that cannot cross into an exported function
    Python and C pass tensors, numbers, sizes (`n: dim`), modules and `params(M)`. Anything else
    belongs inside the program.
E0316 a variable that changes its type in a loop
    What a run-time loop carries from turn to turn keeps dtype and shape: the machine code of the
    loop is the same in every turn. Give it its final type before the loop, or another name inside.
E0317 a `return` inside a run-time loop
    A loop ends when its turns are done. Assign a variable and return it after the loop.
E0318 a loop that never ends
    The condition of `while` is true for ever. It must depend on something that the body changes.
E0319 a loop that yields nothing, or more than once
    `ys = for t in T:` stacks one value (or tuple) a turn: exactly one `yield` in its body.
E0320 a probe in a loop without a limit
    What is probed in a loop is kept for every turn, so there must be a bound on the turns:
    write `while c limit N:`, or probe the value after the loop.
E0321 another number of turns for each index
    In a function called in index notation a loop makes its turns for all elements together. Count
    in a variable: `t = 0`, `while t < n limit N:`, `t = t + 1` stops each element at its own n.
E0401 an index without a range
    Every index on the right is bound on the left or by a reduction such as `sum[k]`, and takes
    its range from a bare use (`x[i]`) or from `i:N`. There is no implied sum: this is often a
    mistyped letter.
E0402 an index can leave its tensor
    The compiler could not prove that the index stays inside. Give what lies outside (`x[i - 1
    else 0]`), test it in the condition of an `if` around the read, or state the missing fact in
    a `where` clause.
E0403 an index runs over axes of different sizes
    Bare uses of one index must agree on its range. Say which with `i:N`, or use two letters.
E0404 an index name that is taken
    Index names may not hide a variable, a size, or an index of an outer reduction. Use another
    letter.
E0405 indices that do not fit the tensor
    A tensor of rank n takes n indices (slices may take fewer, from the left); indices are
    integers; lists take one index known at compile time.
E0406 digits that do not make up the axis
    In `x[(h:H, e:K)]` the axis is read as H blocks of K: the product of the sizes must be the
    axis, at most one size may be left open, and every digit stays below its size.
E0407 an index statement that is not well formed
    The left side of `y[i, j] = ...` names one new index for each axis and there is one value;
    `y[...] := ...` writes into a tensor that exists; `argmax` and `argmin` take one axis.
E0408 one element may be written twice
    Two turns of the statement could write the same element, and the result would depend on
    their order. Where the values are to be added, write `y[k[i]] := y[k[i]] + ...`.
E0501 a call would write something read-only
    The call updates state (running statistics, an optimizer, a cache) of an argument that is
    not `inout`. Declare it `inout`, or call without `!` to use the stored values.
E0502 an effect without `!`
    Drawing random numbers and writing state need `!` at the call, and at every call above it,
    so that effects are visible where they happen: `net := opt!(net, grad(loss, net), lr)`.
E0503 this cannot be written
    `=` defines names; `:=` writes `state`, `param` and `inout` storage. Plain arguments are
    read-only.
E0504 `!` without an effect
    The function neither writes state nor draws random numbers; leave the mark out, so that it
    keeps its meaning.
E0601 no dependence
    The loss was not computed from this version of the variable, so its gradient would be zero
    everywhere. Usually the variable was written in between: take the gradient first.
E0602 an adjoint that does not fit its function
    An `adjoint` names every input, the results and their derivatives, and returns one value for
    each differentiable input, of the input's type.
E0603 the gradient of something that is not one number
    `grad(y, x)` needs one float `y`. Reduce the tensor first: `mean(...)` or `total(...)`.
E0604 something without a gradient
    Only floats have gradients. Integers, bools and conditions are constants to `grad`.
E0605 `grad` by an expression
    The second argument is a variable, a module or a member of one, or a list of these. Give the
    expression a name and compute the loss from that name.
E0606 the gradient of an unlimited loop
    Going back through a loop needs to know how many turns there can be: write
    `while c limit N:`.
E0607 the gradient of an extern function
    Nothing is known of what C computes. Write its derivative, `adjoint f(x; y, dy): return dx`,
    or say by `stop(...)` that none is wanted.
E0701 weights that do not fit the model
    Loading is strict: every tensor of the model must be in the file with its dtype and shape,
    and every tensor of the file must be used. `rename=` and `skip=` bridge differences; after a
    failed load nothing has changed. Python raises it as `nnc.LoadError`.
E0801 a name that is not defined
    The name is no variable, size, module or function here. If one library module defines it,
    the help shows the import.
E0802 arguments that do not fit the definition
    Too many, too few, unknown or repeated arguments. The definition is shown.
E0803 something that cannot be used in this way
    Only functions and modules with `forward` are called, tensors, lists and trees indexed,
    lists and sizes iterated over.
E0804 there is no such member
    Neither the module nor the file has this name.
E0805 a file or dtype that does not exist
    `from gpt2 import GPT2` reads `gpt2.nn` beside the file; `std.*` is the library inside the
    package.
E0806 an import of a name that the file has not
    The file exists but defines no such name.
E0807 two definitions of one name
    Names are unique in a file and in a module, and so are the keys of the stored tensors.
E0808 files that import each other
    Move what both need into a third file.
E0809 endless nesting
    Functions do not call themselves and modules do not contain themselves: everything is laid
    out when the program is compiled. Repeat by `for` and by lists of modules.
E0810 a function that ends without `return`
    A function with a result returns on every way to its end.
E0811 names and values do not match
    `a, b = f(x)` needs as many names as there are values, and names that may be assigned.
E0812 an edition that is not known
    This nnc knows `edition 1`.
E0813 storage without an initial value
    `param w: real[D] = normal(0.02)` and `state n: i32 = 0` say what is stored before anything
    is trained or loaded.
E0814 a specialization that fits no call
    `specialize f(T=1)` names an exported function and gives numbers for some of its run-time
    sizes. Sizes of modules are numbers already.
E0815 an extern function that C cannot have
    `extern "symbol" def f(...) -> T` takes tensors, numbers and sizes of stated types and
    returns one tensor or number; docs/language.md shows the declaration in C.
E0901 not compiled yet
    The construct is part of the language, is read and formatted, but this version makes no code
    for it. `docs/language.md` lists what is missing.
W0001 an import that is not used
    Delete it.
W0002 a variable or argument that is not used
    Delete it, or use it.
W0003 a value that is not used
    The statement computes something and drops it; functions without `!` have no other effect.
W0004 statements that are never reached
    They stand after a `return`.
W0005 a `recompute` without effect
    `recompute(e)` computes again what `e` computes on the way. A name holds a value that is there
    already: write the call inside, `x = recompute(f(x))`.
"""


def _read(table: str) -> Iterator[Code]:
    code, title, text = "", "", ""
    for line in [*table.strip().splitlines(), ""]:
        if line.startswith(" "):
            text = f"{text} {line.strip()}".strip()
            continue
        if code:
            yield Code(code, title or SYNTAX[code], text)
        (code, _, title), text = line.partition(" "), ""


CODES: dict[str, Code] = {entry.code: entry for entry in _read(_TABLE)}
assert len(CODES) == len(list(_read(_TABLE))), "a code stands twice in the table"


def explain(code: str) -> str:
    """The entry of one code as text; raises LookupError with the nearest known code."""
    entry = CODES.get(code.upper())
    if entry is None:
        near = get_close_matches(code.upper(), CODES, 1, 0)
        raise LookupError(f"there is no code {code}; did you mean {near[0]}?")
    return f"{entry.code}: {entry.title}\n\n{entry.text}"


def manual() -> str:
    """All codes as a page of Markdown."""
    out = [
        "# Error codes",
        "",
        "Generated from `nnc/lang/codes.py`; `pytest --bless` rewrites it.",
    ]
    for prefix, name in GROUPS.items():
        out += ["", f"## {name}"]
        for entry in (c for c in CODES.values() if c.code.startswith(prefix)):
            out += ["", f"### {entry.code}: {entry.title}", "", entry.text]
    return "\n".join(out) + "\n"
