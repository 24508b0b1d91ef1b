"""`nnc profile`: where the time of one call goes, by source line.

Operations are those of the kernels' expressions (a product and a sum are two), bytes the buffers
that a kernel touches, each once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnc import compiler, driver
from nnc.cli.explain import kernels, members, where
from nnc.cli.inputs import arguments, sizes_for
from nnc.cli.options import overrides, sizes
from nnc.cli.plan import check_sizes, chosen
from nnc.codegen.profile import BETWEEN, FIRST
from nnc.codegen.spmd import at_most, enclosing
from nnc.compiler import Scheduled
from nnc.ir.expr import Expr, Op, walk
from nnc.ir.graph import Compute, Node, Update
from nnc.ir.loop import Kernel, Repeat
from nnc.lang.dims import ONE, ZERO, Dim, dim_prod, dim_sum
from nnc.passes.memory import touched
from nnc.runtime.cpu import Code, Entry
from nnc.runtime.export import Export
from nnc.runtime.memory import Array
from nnc.runtime.model import Model

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


def profile(args: argparse.Namespace) -> int:
    """Prints a table of the kernels, slowest first, and one of the lines."""
    given = sizes(args.sizes)
    found = chosen(args.model, args.function, overrides(args.define))
    model = driver.model_of(driver.compile_file(args.model, overrides(args.define)), args.library)
    if args.threads is not None:
        model.threads = args.threads
    export = model.exports[args.function]
    env = sizes_for(model, export, given) if given or not export.sig.dims else {}
    check_sizes(found.built.signature, tuple(export.sig.dims), env)
    rows, between, threads = measured(found, model, export, env)
    print("\n".join(_report(found.name, env, rows, between, threads)))
    return 0


def measured(
    found: Scheduled, model: Model, export: Export, env: Mapping[str, int]
) -> tuple[list[Row], float, int]:
    """Every kernel, the seconds between kernels, and the number of threads."""
    native, objects, support = compiler.profiled(found)
    values = arguments(export, env)
    export(**values)  # reports what is wrong with them
    count = len(found.program.kernels)
    table = np.zeros(FIRST + count, np.int64)
    entry = Entry(native, Code(objects, support, model.code.libraries), export.pointer_count())
    entry.record_times(table)
    export.native, export._entry = native, entry
    export.forget_plans()
    threads = export.bind((), values).plan.threads
    times = np.array(list(_calls(export, values, table)))
    ns = np.median(times, axis=0)
    rows = []
    all_turns = enclosing(found.program.steps)
    for i, ((kernel, group), turns) in enumerate(zip(kernels(found), all_turns, strict=True)):
        ops = dim_sum(_operations(n) for n in members(group))
        bytes_ = dim_sum(b.bytes for b in touched(kernel.body) if b.scope != "local")
        work = (_times(d, turns).evaluate(env) for d in (ops, bytes_))
        rows.append(Row(i, kernel, float(ns[FIRST + i]) / 1e9, *work))
    return rows, float(ns[BETWEEN]) / 1e9, threads


def _calls(export: Export, values: Mapping[str, Any], table: Array) -> Iterator[Array]:
    export(**values)
    least, most = _CALLS
    end = time.perf_counter() + _SECONDS
    for i in range(most):
        table[:] = 0
        table[0] = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
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
            return dim_prod(a.extent for a in axes) * (_count(value) + accumulate)
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


# ---- the report -------------------------------------------------------------------------------


def _report(
    name: str, env: Mapping[str, int], rows: list[Row], between: float, threads: int
) -> list[str]:
    total = sum(r.seconds for r in rows) + between
    sizes_ = " ".join(f"--{n} {v}" for n, v in env.items())
    used = "1 thread" if threads == 1 else f"{threads} threads"
    out = [f"{name} {sizes_}".rstrip() + f", {used}: {_us(total)} us", ""]
    table = [("us", "%", "GFLOP/s", "GB/s", "kernel", "line", "")]
    for r in sorted(rows, key=lambda r: -r.seconds):
        rate = r.seconds * 1e9 or 1.0
        speed = (f"{r.operations / rate:.1f}", f"{r.nbytes / rate:.1f}")
        place = (str(r.number), where(r.kernel.span), r.kernel.reason)
        table.append((_us(r.seconds), _share(r.seconds, total), *speed, *place))
    table.append((_us(between), _share(between, total), "", "", "", "", "between kernels"))
    out += _columns(table, 5)
    lines: dict[str, float] = {}
    for r in rows:
        lines[where(r.kernel.span)] = lines.get(where(r.kernel.span), 0.0) + r.seconds
    by_line = sorted(lines.items(), key=lambda row: -row[1])
    return [*out, "", *_columns([(_us(s), _share(s, total), place) for place, s in by_line], 2)]


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
