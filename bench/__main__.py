"""`python -m bench`: every workload beside the installed peers, as tables and as JSON.

python -m bench --only mlp_b64,tiny --peers torch,ort --quick --threads 1
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import time
from pathlib import Path

from bench import measure, peak, peers
from bench.workload import Context, Figure
from nnc.codegen.roof import flops


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default="*", help="names or patterns, comma separated")
    parser.add_argument("--peers", default="", help=f"of {','.join(peers.NAMES)}; none: only nnc")
    parser.add_argument("--threads", type=int, default=peers.cores(), help="of each candidate")
    parser.add_argument("--seconds", type=float, default=6.0, help="of timing for each workload")
    parser.add_argument("--quick", action="store_true", help="1.5 seconds for each workload")
    parser.add_argument(
        "--cpu", action="store_true", help="CPU time, on a busy machine; with --threads 1 only"
    )
    parser.add_argument(
        "--cap", type=float, default=120, help="seconds in which a peer must be ready (120)"
    )
    parser.add_argument(
        "--prepare",
        action="store_true",
        help="compile and compare results, without timing: a run after it finds torch.compile's cache filled",
    )
    parser.add_argument("--list", action="store_true", help="print the names")
    parser.add_argument("--out", type=Path, help="JSON (default: bench/results/TIME.json)")
    args = parser.parse_args()
    peers.limit_environment(args.threads)
    from bench.workloads import FIGURES, WORKLOADS

    names = [n for n in [*WORKLOADS, *FIGURES] if chosen(n, args.only.split(","))]
    if args.list:
        print("\n".join(names))
        return
    if not names:
        parser.error(f"no workload is called {args.only}; see --list")
    wanted = (
        args.peers.split(",") if args.peers else [p for p in peers.NAMES if p not in peers.SLOW]
    )
    if args.cpu and args.threads != 1:
        parser.error("--cpu needs --threads 1: CPU time of several threads counts their waiting")
    seconds = 0 if args.prepare else 1.5 if args.quick else args.seconds
    context = Context(args.threads, seconds, args.cpu, args.cap)
    run(names, context, wanted, args.out)


def chosen(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, p) for p in patterns)


def run(names: list[str], context: Context, wanted: list[str], out: Path | None) -> None:
    from bench.workloads import FIGURES

    peers.limit_threads(context.threads)
    roof = measure.Roof(flops(context.threads, 30), peak.bandwidth(context.threads))
    machine = {**measure.machine(), **{f"version {k}": v for k, v in peers.versions().items()}}
    print("; ".join(f"{k}: {v}" for k, v in machine.items()))
    print(
        f"roof, {measure.threads_text(context.threads)}: {roof.flop / 1e9:.0f} GFLOP/s, {roof.read / 1e9:.1f} GB/s read\n"
    )
    results: list[measure.Result | Figure] = []
    out = out or Path(__file__).parent / "results" / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    for name in names:
        result = (
            FIGURES[name](context, wanted) if name in FIGURES else one(name, context, wanted, roof)
        )
        print(result if isinstance(result, str) else shown(name, result), "\n", flush=True)
        if not isinstance(result, str):
            results.append(result)
        document = {"machine": machine, "roof": {"flop": roof.flop, "read": roof.read}}
        measure.save(document, results, out)
    print(summary([r for r in results if isinstance(r, measure.Result)]))
    print(f"\n{os.path.relpath(out)}")


def one(name: str, context: Context, wanted: list[str], roof: measure.Roof) -> measure.Result | str:
    """A workload's result, or why its program could not be prepared."""
    from bench.workloads import WORKLOADS

    try:
        case = WORKLOADS[name](context)
    except Exception as e:
        return f"{name}: nnc: {type(e).__name__}: {e}"
    peers.forget_compiled()
    found = measure.prepare(case, wanted, context.cap)
    clock = time.process_time if context.cpu else time.perf_counter
    idle = measure.IDLE if context.threads > 1 else 0.0
    if not context.seconds:
        return f"{name}: {measure.ready(found)}"
    samples = (
        measure.alternate(found.calls, context.seconds, case.calls, idle, clock)
        if found.calls
        else {}
    )
    return measure.summarise(name, case, context.threads, samples, found, roof)


def shown(name: str, result: measure.Result | Figure) -> str:
    if isinstance(result, Figure):
        return show_figure(name, result)
    return measure.show(result)


def summary(results: list[measure.Result]) -> str:
    """One line a workload: milliseconds of each candidate."""
    who = [
        n for n in ("nnc", *peers.NAMES) if any(r.candidate == n for x in results for r in x.rows)
    ]
    head = "".join(f"{w:>13}" for w in who)
    lines = [
        f"{'workload (ms)':18}{head}{'best peer':>11}{'quiet':>8}{'roof':>7}{'demand':>8}{'aim':>6}"
    ]
    for x in results:
        cells = {r.candidate: r.seconds * 1e3 for r in x.rows}
        row = "".join(f"{cells[w]:>13.4g}" if w in cells else f"{'-':>13}" for w in who)
        share = f"{100 * x.roof:.0f} %" if x.roof else "-"
        lines.append(
            f"{x.name:18}{row}{x.best:>10.2f}x{x.quiet:>7.2f}x{share:>7}{x.demand:>8g}{x.aim:>6g}"
        )
    return "\n".join(lines)


def show_figure(name: str, figure: Figure) -> str:
    lines = [f"{name}: {figure.title}"]
    lines += [f"  {who:14}{value:>12.3f} {figure.unit}" for who, value in figure.values.items()]
    lines += [f"  {who:14}{why[:120]}" for who, why in figure.missing.items()]
    tail = "; ".join(t for t in (figure.demand and f"demand {figure.demand}", figure.note) if t)
    return "\n".join([*lines, f"  = {tail}"] if tail else lines)


if __name__ == "__main__":
    main()
