"""From source text to native results on guard pages, beside the float64 interpreter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nnc import compiler
from nnc.diagnostics import Source, render_all
from nnc.ir.graph import Graph
from nnc.ir.interpret import run as interpret
from nnc.lang.elaborate.exports import Built
from tests import native

NUMPY = {"f32": np.float32, "f64": np.float64, "i32": np.int32, "i64": np.int64, "bool": np.bool_}
NUMPY |= {"u8": np.uint8, "i8": np.int8, "f16": np.float16}


def built(text: str, path: str = "test.nn") -> dict[str, Built]:
    """The exports of a source text; an assertion with the messages when it has mistakes."""
    checked = compiler.check(path, source=Source(path, text))
    assert not checked.errors, render_all(checked.errors)
    assert checked.elaborated is not None
    return {b.graph.name: b for b in checked.elaborated.exports}


def from_file(path: Path) -> dict[str, Built]:
    return built(path.read_text(), str(path))


def sample(graph: Graph, dims: Mapping[str, int], rng: np.random.Generator) -> dict[str, Any]:
    """Random inputs: floats of a normal distribution, integers 0 ... 2."""
    out: dict[str, Any] = {}
    for i in graph.inputs:
        shape = tuple(d.evaluate(dims) for d in i.type.shape)
        dtype = NUMPY[i.type.dtype]
        if i.kind == "rng":
            out[i.name] = np.int64(rng.integers(0, 100))
        elif np.issubdtype(dtype, np.floating):
            out[i.name] = rng.standard_normal(shape).astype(dtype)
        else:
            out[i.name] = rng.integers(0, 2 if i.type.dtype == "bool" else 3, shape).astype(dtype)
    return out


def run_native(
    graph: Graph, dims: Mapping[str, int], inputs: Mapping[str, Any], winograd: bool = False
) -> tuple[list[Any], dict[str, Any]]:
    """Results and final storage of the compiled graph: 1, 2 and 3 threads with equal bits, guard pages."""
    stored = {i.name for i in graph.inputs if i.kind in ("param", "state")}
    constant = frozenset(stored - {w.target.name for w in graph.writes})
    program = compiler.schedule(compiler.optimise(graph), None, constant, winograd)
    arrays = [_bytes(np.asarray(inputs[i.name])) for i in graph.inputs]
    for r in graph.results:
        shape = tuple(d.evaluate(dims) for d in r.type.shape)
        arrays.append(_bytes(np.zeros(shape, NUMPY[r.type.dtype])))
    out = native.run(program, arrays, dims)
    n = len(graph.inputs)
    written = {w.target.name for w in graph.writes}
    names = [i.name for i in graph.inputs]
    for name, before, after in zip(names, arrays[:n], out[:n], strict=True):
        assert name in written or before.tobytes() == after.tobytes(), f"{name} was written"
    return out[n:], {w: out[names.index(w)] for w in written}


def _bytes(a: Any) -> Any:
    return a.astype(np.uint8) if a.dtype == np.bool_ else a


def compare(
    graph: Graph,
    dims: Mapping[str, int],
    inputs: Mapping[str, Any],
    tolerance: float = 2e-4,
    winograd: bool = False,
) -> list[Any]:
    """Native results against the interpreter before and after every pass; returns the native results."""
    results, written = run_native(graph, dims, inputs, winograd)
    stage, wanted = graph, None
    for name, run_pass in compiler.GRAPH_PASSES:
        stage = run_pass(stage)
        want = interpret(stage, dims, inputs)
        if wanted is not None:
            for a, b in zip(wanted.results, want.results, strict=True):
                close(a, b, 1e-9, f"after {name}")
        wanted = want
    assert wanted is not None
    for got, want_one in zip(results, wanted.results, strict=True):
        close(got, want_one, tolerance, "native result")
    for name, got in written.items():
        close(got, wanted.writes[name], tolerance, f"native write of {name}")
    return results


def close(got: Any, want: Any, tolerance: float, what: str) -> None:
    """Equal within `tolerance` of the largest magnitude (NaN and inf in the same places)."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, (what, got.shape, want.shape)
    finite = want[np.isfinite(want)]
    scale = max(1.0, float(np.abs(finite).max())) if finite.size else 1.0
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * scale, err_msg=what)
