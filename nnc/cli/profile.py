"""`nnc profile`: where the time of one call goes, by source line.

Operations are those of the kernels' expressions (a product and a sum are two), bytes the buffers
that a kernel touches, each once.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnc import compiler, driver
from nnc.cli.explain import kernels, members, where
from nnc.cli.inputs import arguments, sizes_for
from nnc.cli.options import overrides, sizes
from nnc.cli.plan import check_sizes, chosen
from nnc.cli.profile_view import Event, Line, write_picture, write_trace
from nnc.cli.winograd import errors
from nnc.codegen.profile import BETWEEN, FIRST
from nnc.codegen.roof import Roof
from nnc.codegen.roof import measured as measured_roof
from nnc.codegen.spmd import at_most, enclosing
from nnc.compiler import Scheduled
from nnc.diagnostics import Span
from nnc.ir.expr import Expr, Op, walk
from nnc.ir.graph import Compute, Node, Update
from nnc.ir.loop import Kernel, Repeat
from nnc.lang.dims import ONE, ZERO, Dim, dim_prod, dim_sum
from nnc.lang.types import is_float
from nnc.passes.fuse import Group
from nnc.passes.memory import touched
from nnc.runtime.cpu import Code, Entry
from nnc.runtime.export import Export
from nnc.runtime.memory import Array, human
from nnc.runtime.model import Model

SMALL = 1e-3
_SECONDS = 1.0  # of measuring
_CALLS = (3, 200)  # at least, at most


@dataclass(frozen=True)
class Row:
    """One kernel of one call: seconds (median), operations, bytes."""

    number: int
    kernel: Kernel
    seconds: float
    operations: int
    nbytes: int
    parts: tuple[tuple[Span, float], ...]  # what it computes, with its part of the operations


def profile(args: argparse.Namespace) -> int:
    """Prints a table of the kernels, slowest first, and one of the lines."""
    given = sizes(args.sizes)
    modules = overrides(args.define)
    found = chosen(args.model, args.function, modules, winograd=args.winograd)
    compiled = driver.compile_file(args.model, modules, winograd=args.winograd)
    model = driver.model_of(compiled, args.library)
    if args.threads is not None:
        model.threads = args.threads
    export = model.exports[args.function]
    env = sizes_for(model, export, given) if given or not export.sig.dims else {}
    check_sizes(found.built.signature, tuple(export.sig.dims), env)
    rows, between, threads = measured(found, model, export, env)
    roof = measured_roof(threads, _working_set(found, env))
    lines = by_line(rows, roof)
    title = _title(found.name, env, threads, sum(r.seconds for r in rows) + between)
    print("\n".join(_report(title, rows, between, lines, roof)))
    if args.winograd:
        print("", errors(args.model, compiled, modules, env, args.function), sep="\n")
    if args.trace is not None:
        write_trace(args.trace, title, events(rows, roof))
    if args.picture is not None:
        waiting = "threads wait for each other" if threads > 1 else "loops and conditions"
        rest = Line("between kernels", waiting, between, 0, 0, 0)
        every = sorted([*lines, rest], key=lambda x: -x.seconds)
        write_picture(args.picture, title, every, events(rows, roof), roof)
    return 0


def _working_set(found: Scheduled, env: Mapping[str, int]) -> int:
    """Bytes of arguments, results and workspace."""
    program = found.program
    return dim_sum([*(b.bytes for b in program.args), program.arena]).evaluate(env)


def measured(
    found: Scheduled, model: Model, export: Export, env: Mapping[str, int]
) -> tuple[list[Row], float, int]:
    """Every kernel, the seconds between kernels, and the number of threads."""
    native, objects, support = compiler.profiled(found)
    values = arguments(export, env) | _small_numbers(export)
    export(**values)  # reports what is wrong with them
    count = len(found.program.kernels)
    table = np.zeros(FIRST + count, np.int64)
    entry = Entry(native, Code(objects, support, model.code.libraries), export.pointer_count())
    entry.record_times(table)
    export.native, export._entry = native, entry
    export.forget_plans()
    export._patience = sys.maxsize  # no shorter way: that is to the code without times
    threads = export.bind((), values).plan.threads
    times = np.array(list(_calls(export, values, table)))
    ns = np.median(times, axis=0)
    rows, first = [], found.program.prologue
    all_turns = enclosing(found.program.steps)
    for i, ((kernel, group), turns) in enumerate(zip(kernels(found), all_turns, strict=True)):
        ops = dim_sum(_operations(n) for n in members(group))
        if i < first:
            continue  # what it makes is kept from the calls before
        read = (b for b in touched(kernel.body) if b.scope != "local" and not b.kept)
        bytes_ = dim_sum(b.bytes for b in read)
        done, moved = (_times(d, turns).evaluate(env) for d in (ops, bytes_))
        parts = _parts(kernel, group, env)
        rows.append(Row(i - first, kernel, float(ns[FIRST + i]) / 1e9, done, moved, parts))
    return rows, float(ns[BETWEEN]) / 1e9, threads


def _small_numbers(export: Export) -> dict[str, float]:
    """Values for float arguments of rank 0: a learning rate with which a training step is repeated
    and stays what it is (weights that explode, or denormals, are slow)."""
    return {
        a.name: SMALL
        for a in export.args
        if a.kind not in ("module", "tree", "dim")
        and a.default is None
        and a.type is not None
        and not a.type.shape
        and is_float(a.type.dtype)
    }


def _parts(
    kernel: Kernel, group: Group | None, env: Mapping[str, int]
) -> tuple[tuple[Span, float], ...]:
    """The spans of a kernel's values, weighed by their operations."""
    inside = [name for n in members(group) for name in n.used]
    known = dict.fromkeys(inside, 0) | dict(env)  # turns of loops: 0
    weights = [(n.span, max(_operations(n).evaluate(known), 1)) for n in members(group)]
    total = sum(w for _, w in weights)
    return tuple((s, w / total) for s, w in weights) or ((kernel.span, 1.0),)


def _calls(export: Export, values: Mapping[str, Any], table: Array) -> Iterator[Array]:
    export(**values)
    least, most = _CALLS
    end = time.perf_counter() + _SECONDS
    for i in range(most):
        table[:] = 0
        export(**values)
        yield table.copy()
        if i + 1 >= least and time.perf_counter() > end:
            return


def _operations(node: Node) -> Dim:
    """Arithmetic of one member of a kernel."""
    match node:
        case Compute(axes=axes, raxes=raxes, body=body):
            return dim_prod(a.extent for a in (*axes, *raxes)) * (_count(body) + bool(raxes))
        case Update(axes=axes, value=value, accumulate=accumulate):
            return dim_prod(a.extent for a in axes) * (_count(value) + bool(accumulate))
    return ZERO


def _count(body: Expr) -> int:
    return sum(1 for e in walk(body) if isinstance(e, Op) and e.fn != "cast")


def _times(once: Dim, turns: tuple[Repeat, ...]) -> Dim:
    """In all turns of the loops around, at most."""
    out, times = at_most(once, {t.var for t in turns}), ONE
    for t in reversed(turns):
        last = {t.var: t.trip - 1}
        out, times = out.subst(last), times.subst(last) * t.trip
    return out * times


# ---- by line ------------------------------------------------------------------------------------


def by_line(rows: Sequence[Row], roof: Roof) -> list[Line]:
    """Time, operations and bytes of each of the reader's lines, slowest first.

    A kernel that computes values of several lines is divided by their operations.
    """
    found: dict[str, list[float]] = {}
    spans: dict[str, Span] = {}
    for row in rows:
        for span, part in row.parts:
            place = where(span.own)
            spans.setdefault(place, span.own)
            sums = found.setdefault(place, [0.0, 0.0, 0.0, 0.0])
            least = roof.seconds(row.operations, row.nbytes)
            for k, whole in enumerate((row.seconds, row.operations, row.nbytes, least)):
                sums[k] += whole * part
    lines = [
        Line(place, source_line(spans[place]), s, ops, size, least / s if s else 0.0)
        for place, (s, ops, size, least) in found.items()
    ]
    return sorted(lines, key=lambda x: -x.seconds)


def source_line(span: Span) -> str:
    lines = span.source.lines
    return lines[span.line - 1].strip() if 1 <= span.line <= len(lines) else ""


def events(rows: Sequence[Row], roof: Roof) -> list[Event]:
    return [
        Event(
            f"kernel {r.number}",
            where(r.kernel.span.own),
            detail(r.kernel.span),
            r.kernel.reason,
            r.seconds,
            r.operations,
            r.nbytes,
            _of_roof(r, roof),
        )
        for r in rows
    ]


def detail(span: Span) -> str:
    """The library's line, when the reader's is another."""
    return "" if span.own is span else where(span)


def _of_roof(r: Row, roof: Roof) -> float:
    return roof.seconds(r.operations, r.nbytes) / r.seconds if r.seconds else 0.0


# ---- the report -------------------------------------------------------------------------------


def _report(
    title: str, rows: Sequence[Row], between: float, lines: Sequence[Line], roof: Roof
) -> list[str]:
    total = sum(r.seconds for r in rows) + between
    rates = f"{roof.flops / 1e9:.0f} GFLOP/s, {roof.bandwidth / 1e9:.1f} GB/s"
    out = [title, f"roof: {rates} (read, over {human(roof.size)})", ""]
    table: list[tuple[str, ...]] = [
        ("us", "%", "GFLOP/s", "GB/s", "% roof", "kernel", "line", "in", "")
    ]
    for r in sorted(rows, key=lambda r: -r.seconds):
        rate = r.seconds * 1e9 or 1.0
        speed = (
            f"{r.operations / rate:.1f}",
            f"{r.nbytes / rate:.1f}",
            _percent(_of_roof(r, roof)),
        )
        place = (str(r.number), where(r.kernel.span.own), detail(r.kernel.span), r.kernel.reason)
        table.append((_us(r.seconds), _share(r.seconds, total), *speed, *place))
    blank = ("",) * 6
    table.append((_us(between), _share(between, total), *blank, "between kernels"))
    out += _columns(table, 6)
    by = [("us", "%", "MFLOP", "MB", "% roof", "line", "")]
    for x in lines:
        sizes_ = (f"{x.operations / 1e6:.3f}", f"{x.nbytes / 1e6:.3f}", _percent(x.share))
        by.append((_us(x.seconds), _share(x.seconds, total), *sizes_, x.place, x.text))
    if any(_of_roof(r, roof) > 1 for r in rows):
        note = "over 100 % of the roof: these data were nearer than the call's whole working set is"
        return [*out, "", *_columns(by, 5), "", note]
    return [*out, "", *_columns(by, 5)]


def _title(name: str, env: Mapping[str, int], threads: int, seconds: float) -> str:
    sizes_ = " ".join(f"--{n} {v}" for n, v in env.items())
    used = "1 thread" if threads == 1 else f"{threads} threads"
    return f"{name} {sizes_}".rstrip() + f", {used}: {_us(seconds)} us"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}"


def _columns(rows: list[Any], numbers: int) -> list[str]:
    """Aligned; the first `numbers` columns to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    out = []
    for row in rows:
        cells = [c.rjust(w) for c, w in zip(row[:numbers], widths, strict=False)]
        cells += [c.ljust(w) for c, w in zip(row[numbers:], widths[numbers:], strict=True)]
        out.append("  ".join(cells).rstrip())
    return out


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.1f}"


def _share(part: float, total: float) -> str:
    return f"{100 * part / total:.1f}" if total else "0.0"
