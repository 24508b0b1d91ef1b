"""`python -m bench [workload ...]`: prints each workload's table; writes bench/results/cpu.json."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench import contraction, digits_step
from bench.measure import Result, save, show

WORKLOADS = {"digits_step": digits_step.run, "contraction": contraction.run}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("workloads", nargs="*", choices=[[], *WORKLOADS], help="default: all")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each workload")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cpu.json")
    args = parser.parse_args()
    results: list[Result] = []
    for name in args.workloads or WORKLOADS:
        for result in WORKLOADS[name](seconds=args.seconds):
            print(show(result), flush=True)
            results.append(result)
    save(results, args.out)


if __name__ == "__main__":
    main()
