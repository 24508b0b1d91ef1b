"""`python -m bench.table FILE.json`: puts a run's figures into docs/speed.md and README.md.

Tables are found by their header lines; a workload that the run lacks keeps no row in docs/speed.md
and its old figure in README.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NAMES = {
    "numpy": "NumPy",
    "torch": "PyTorch",
    "compile": "torch.compile",
    "max-autotune": "max-autotune",
    "jax": "JAX",
    "ort": "ONNX Runtime",
    "openvino": "OpenVINO",
}

Run = Mapping[str, Any]


def main() -> None:
    path = Path(sys.argv[1]).resolve()
    run = json.loads(path.read_text())
    speed, readme = ROOT / "docs" / "speed.md", ROOT / "README.md"
    text = speed.read_text()
    for head, rows in (
        ("| workload, ", workloads(run)),
        ("| peer / nnc", peers(run)),
        ("| before the first result", figures(run)),
    ):
        text = replaced(text, head, rows)
    start, end = text.index("Medians on "), text.index("\n\n", text.index("Medians on "))
    speed.write_text(text[:start] + machine(run, path) + text[end:])
    readme.write_text(shortened(readme.read_text(), run))


def timed(run: Run) -> list[Mapping[str, Any]]:
    return [r for r in run["results"] if "rows" in r and any(x["ratio"] for x in r["rows"])]


def rows_of(result: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Mapping[str, Any]]]:
    """nnc's row, and the peers' by name."""
    rows = {x["candidate"]: x for x in result["rows"]}
    return rows.pop("nnc"), {k: rows[k] for k in NAMES if k in rows}


def best_peer(result: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The fastest peer of a workload: its name, its row."""
    others = rows_of(result)[1]
    best = min(others, key=lambda k: others[k]["ratio"])
    return NAMES[best], others[best]


def workloads(run: Run) -> list[str]:
    threads = timed(run)[0]["threads"]
    head = ("nnc", "best peer", "best peer / nnc", "of the roof", "demanded")
    out = table([f"workload, {threads} threads", *head])
    for r in timed(run):
        own, (name, other) = rows_of(r)[0], best_peer(r)
        roof = f"{100 * r['roof']:.0f} %" if r["roof"] else ""
        peer = f"{name} {seconds(other['seconds'])}"
        demand = f"{r['demand']:g}x" if r["demand"] else ""
        out.append(row(r["title"], seconds(own["seconds"]), peer, ratio(r["best"]), roof, demand))
    return out


def peers(run: Run) -> list[str]:
    """All peers side by side, in the rows of `workloads`."""
    shown = [k for k in NAMES if any(k in rows_of(r)[1] for r in timed(run))]
    out = table(["peer / nnc", *(NAMES[k] for k in shown)])
    for r in timed(run):
        others = rows_of(r)[1]
        out.append(
            row(r["title"], *(ratio(others[k]["ratio"]) if k in others else "" for k in shown))
        )
    return out


def figures(run: Run) -> list[str]:
    found = [r for r in run["results"] if "values" in r]
    shown = [k for k in NAMES if any(k in r["values"] for r in found)]
    out = table(["before the first result", "nnc", "from its cache", *(NAMES[k] for k in shown)])
    for r in found:
        v = r["values"]
        cells = [amount(v.get(k), r["unit"]) for k in ("nnc", "nnc, cached", *shown)]
        out.append(row(r["title"], *cells))
    return out


def machine(run: Run, path: Path) -> str:
    m = run["machine"]
    where = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    kept = [w for w in m["command"].split() if not w.startswith("/")]
    command = " ".join(w for w in kept if w != "--out")
    known = {
        "torch": "PyTorch",
        "jax": "JAX",
        "onnxruntime": "ONNX Runtime",
        "openvino": "OpenVINO",
        "numpy": "NumPy",
    }
    versions = ", ".join(
        f"{name} {m[f'version {key}'].split('+')[0]}"
        for key, name in known.items()
        if f"version {key}" in m
    )
    there = {name for r in timed(run) for name in rows_of(r)[1]} & {"compile", "max-autotune"}
    compiled = "runs beside it" if there else "was left out of this run"
    roof = f"{run['roof']['flop'] / 1e9:.0f} GFLOP/s and {run['roof']['read'] / 1e9:.0f} GB/s"
    return (
        f"Medians on {m['cores']} virtual cores of an {m['cpu']} ({m.get('isa', '')}; roof {roof}), {m['date'][:10]}, f32,\n"
        f"`{command}` ([JSON](../{where})). Above 1x nnc is faster. Peers: {versions};\n"
        "PyTorch is the fastest of its eager set-ups (inference mode; with convolutions channels-last or contiguous); `torch.compile`\n"
        f"{compiled}. The machine is shared: ratios of another run differ by some percent. Losses are shown as they are."
    )


def shortened(text: str, run: Run) -> str:
    """README.md with the new ratios in the rows that it has."""
    new = {}
    for r in timed(run):
        new[r["title"]] = row(r["title"], f"{ratio(r['best'])} ({best_peer(r)[0]})")
    lines = text.splitlines()
    for i, line in enumerate(lines):
        if line.startswith("| "):
            lines[i] = new.get(line.split("|")[1].strip(), line)
    return "\n".join(lines) + "\n"


# ---- text ---------------------------------------------------------------------------------------


def replaced(text: str, head: str, rows: Sequence[str]) -> str:
    """The text with another table in the place of the one whose first line begins with `head`."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith(head)), None)
    if start is None:
        raise SystemExit(f"no table begins with {head!r}")
    end = start
    while end < len(lines) and lines[end].startswith("|"):
        end += 1
    return "\n".join([*lines[:start], *rows, *lines[end:]]) + "\n"


def table(head: Sequence[str]) -> list[str]:
    return [row(*head), "|" + "---|" * len(head)]


def row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def ratio(x: float) -> str:
    return f"{x:.2f}x" if x < 10 else f"{x:.0f}x"


def seconds(x: float) -> str:
    return f"{x * 1e6:.3g} us" if x < 1e-3 else f"{x * 1e3:.3g} ms"


def amount(x: float | None, unit: str) -> str:
    if x is None:
        return ""
    return f"{x:.0f} {unit}" if unit == "MB" else f"{x:.2g} {unit}"


if __name__ == "__main__":
    main()
