"""`nnc test`: the `test` blocks of a file, and its derivatives against differences of values."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np

from nnc import driver
from nnc.cli.options import overrides
from nnc.compiler import Compiled, TestCase
from nnc.errors import CompileError, Error, ShapeError
from nnc.ir.dependence import active
from nnc.ir.graph import Custom, Graph, Stop, all_nodes
from nnc.ir.signature import ArgSig
from nnc.lang.types import is_float
from nnc.runtime.cpu import Code, Entry
from nnc.runtime.export import Export
from nnc.runtime.leaves import Module, Tree
from nnc.runtime.memory import aligned, numpy_dtype
from nnc.runtime.model import Model
from nnc.runtime.modules import initialised

_STEPS = (1e-1, 1e-2, 1e-3)  # relative sizes of the differences that are tried
_SMALL = 1e-2
_DIRECTIONS = 5
_ELEMENTS = 16  # of a direction
_TOLERANCE = 2e-2
_BEND = 5e-2  # how much of a slope one direction may owe to the two sides' different slopes
_MEANT = ": they differ"
_SIZES = (3, 2, 4, 1, 6, 8)  # run-time sizes that are tried


def test(args: argparse.Namespace) -> int:
    """Prints one line for each test; 1 when one failed."""
    compiled = driver.compile_file(args.model, overrides(args.define), tests=True)
    model = driver.model_of(compiled, args.library)
    code = model.code
    failures = count = 0
    for case in compiled.tests:
        problems = _block(case, code)
        failures, count = failures + bool(problems), count + 1
        print(f"{'FAIL' if problems else 'ok'}    test {case.title!r}")
        for problem in problems:
            print(f"        {problem}")
    for name, verdict, good in () if args.no_gradients else _gradients(model, compiled):
        failures, count = failures + (not good), count + 1
        print(f"{'ok' if good else 'FAIL'}    gradient of {name}: {verdict}")
    print(f"{count - failures} passed, {failures} failed")
    return 1 if failures else 0


def _block(case: TestCase, code: Code) -> list[str]:
    """The assertions of one block that do not hold."""
    draws = 2 if getattr(case, "draws", False) else 0
    entry = Entry(case.native, code, draws + len(case.assertions))
    results = [aligned(64) for _ in case.assertions]
    entry.args[:draws] = entry.rng_pointers[:draws]
    entry.args[draws : draws + len(results)] = [r.ctypes.data for r in results]
    try:
        entry.run(case.native.arena.evaluate({}), 1)
    except Error as error:
        return [str(error)]
    pairs = zip(case.assertions, results, strict=True)
    return [f"{place}: {text}" for (place, text), r in pairs if not r[0]]


# ---- gradients --------------------------------------------------------------------------------


def _gradients(model: Model, compiled: Compiled) -> Iterator[tuple[str, str, bool]]:
    """(what, verdict, good) for every float argument of every export that writes nothing."""
    for export in model.exports.values():
        floats = any(r.type is None or is_float(r.type.dtype) for r in export.sig.results)
        if export.writes or not floats:
            continue
        if _coarse(export):
            yield export.sig.name, "not checked: differences of 16-bit floats say little", True
            continue
        values = _inputs(model, export)
        if values is None:
            continue
        graph = compiled.built[export.sig.name].graph
        try:
            for label, verdict, good in _check(model, export, values):
                why = "" if good else _differs(graph, label) or _rounded(graph)
                name = f"{export.sig.name} by {label}"
                yield name, f"{verdict}{why}", good or why.startswith(_MEANT)
        except CompileError as error:
            yield export.sig.name, f"not checked: {error.diagnostics[0].message}", True
        except Error as error:
            yield export.sig.name, str(error).strip().splitlines()[0], False


def _coarse(export: Export) -> bool:
    types = [a.type for a in export.args] + [r.type for r in export.sig.results]
    return any(t is not None and t.dtype in ("f16", "bf16") for t in types)


def _differs(graph: Graph, label: str) -> str:
    """Why the derivatives by an input may differ from differences, by intent (`_MEANT`) or not."""
    inputs = [i for i in graph.inputs if i.name == label]
    known, nodes = active(graph.results, inputs), all_nodes(graph)
    stops = [n for n in nodes if isinstance(n, Stop) and n.source in known]
    for place in (n.span.place for n in stops if not n.span.source.library):
        return f"{_MEANT} by the `stop` at {place}"
    own = [n for n in nodes if isinstance(n, Custom) and known.intersection(n.inputs)]
    for node in own:
        if node.meant:
            return f"{_MEANT} by the adjoint used at {node.span.place}: {node.meant}"
    if any(n.meant is not None for n in own):
        return '; is the adjoint meant to differ? `adjoint f(x; y, dy) test "straight through":`'
    return ""


def _rounded(graph: Graph) -> str:
    """The reason, if 16-bit floats stand in between: differences say little of them."""
    dtypes = {getattr(n.type, "dtype", "") for n in all_nodes(graph)}
    return f"{_MEANT} by the rounding of 16-bit floats" if dtypes & {"f16", "bf16"} else ""


def _inputs(model: Model, export: Export) -> dict[str, Any] | None:
    """Random arguments of sizes that the export accepts; None when none are found."""
    random = np.random.default_rng(0)
    modules = export.program.modules
    fixed: dict[str, Any] = {}
    for arg in export.args:
        if arg.kind == "module" and modules[arg.module].slots:
            return None
        if arg.kind == "module":
            fixed[arg.name] = initialised(export.program, modules[arg.module], 1)
        if arg.kind == "tree":
            fixed[arg.name] = Tree(modules[arg.module])
            _randomize(fixed[arg.name], random)
    for sizes in list(product(_SIZES, repeat=min(len(export.sig.dims), 4)))[:400]:
        env = dict.fromkeys(export.sig.dims, 2) | dict(zip(export.sig.dims, sizes, strict=False))
        values = fixed | {
            a.name: _value(a, env, random) for a in export.args if a.name not in fixed
        }
        try:
            model.seed(0)
            export(**values)
        except (ShapeError, IndexError):
            continue
        return values
    return None


def _value(arg: ArgSig, env: dict[str, int], random: np.random.Generator) -> Any:
    if arg.kind == "dim":
        return env[arg.name]
    assert arg.type is not None, arg
    shape = tuple(d.evaluate(env) for d in arg.type.shape)
    if is_float(arg.type.dtype):
        return np.asarray(random.normal(size=shape)).astype(numpy_dtype(arg.type.dtype))
    return np.asarray(random.integers(0, 2, shape)).astype(numpy_dtype(arg.type.dtype))


def _randomize(tree: Tree, random: np.random.Generator) -> None:
    for array in tree.arrays.values():
        array[...] = random.normal(size=array.shape)


def _check(model: Model, export: Any, values: dict[str, Any]) -> Iterator[tuple[str, str, bool]]:
    random = np.random.default_rng(1)
    model.seed(0)
    run = export.forward(**values)
    results = run.value if isinstance(run.value, tuple) else (run.value,)
    if any(isinstance(r, Tree) for r in results):
        return
    floats = [i for i, r in enumerate(results) if np.asarray(r).dtype.kind == "f"]
    weights = [np.asarray(random.normal(size=np.shape(results[i]))) for i in floats]
    casted = [w.astype(np.asarray(results[i]).dtype) for i, w in zip(floats, weights, strict=True)]

    def value() -> float:
        model.seed(0)
        out = export(**values)
        out = out if isinstance(out, tuple) else (out,)
        rows = zip(floats, casted, strict=True)
        return float(sum((np.asarray(out[i], np.float64) * w).sum() for i, w in rows))

    start = value()
    if not np.isfinite(start):
        arguments = ", ".join(run.backward(*casted))
        yield arguments, f"not checked: the result is {start} for random arguments", True
        return
    grads = run.backward(*casted)
    for name in grads:
        for label, array, gradient in _arrays(name, values, grads[name]):
            yield label, *_compare(value, array, gradient, random)


def _arrays(name: str, values: dict[str, Any], gradient: Any) -> Iterator[tuple[str, Any, Any]]:
    """(label, the array that is moved, its gradient)."""
    if isinstance(values[name], Module | Tree):
        for key in gradient:
            yield f"{name}.{key}", values[name].arrays[key], gradient[key]
    else:
        yield name, values[name], gradient


def _compare(
    value: Callable[[], float], array: Any, gradient: Any, random: np.random.Generator
) -> tuple[str, bool]:
    """Slopes along random directions, a few elements each, against the gradient.

    The median decides: a direction may cross a kink (relu), a wrong derivative is wrong in all.
    Many elements may cross many kinks: then single ones are tried.
    """
    for elements in (_ELEMENTS, 1):
        rows = [_slopes(value, array, gradient, random, elements) for _ in range(_DIRECTIONS)]
        rows.sort(key=lambda row: row[0])
        error, slope, measured = rows[len(rows) // 2]
        if error <= _TOLERANCE:
            break
    return f"{slope:.5g}, by differences {measured:.5g}", error <= _TOLERANCE


def _slopes(
    value: Callable[[], float],
    array: Any,
    gradient: Any,
    random: np.random.Generator,
    elements: int,
) -> tuple[float, float, float]:
    """(relative error, slope by gradient, slope by differences) for the best step size."""
    direction = np.zeros(array.size)
    chosen = random.choice(array.size, min(array.size, elements), replace=False)
    direction[chosen] = random.normal(size=len(chosen))
    direction = direction.reshape(array.shape)
    slope = float((np.asarray(gradient, np.float64) * direction).sum())
    before, middle = array.copy(), value()
    scale = max(float(np.abs(before.astype(np.float64)).mean()), 0.1)
    tried = []
    for step in _STEPS:
        ends = []
        for sign in (1, -1):
            array[...] = before + sign * step * scale * direction
            ends.append(value())
        array[...] = before
        up, down = (ends[0] - middle) / (step * scale), (middle - ends[1]) / (step * scale)
        sides = (up, down) if step <= _SMALL else ()  # at a kink, max(x, 0) at 0, one side's
        for measured in ((up + down) / 2, *sides):
            size = max(abs(measured), abs(slope), 1e-2)
            error = abs(measured - slope) - min(abs(up - down) / 2, _BEND * size)
            tried.append((max(error, 0.0) / size, measured))
    error, measured = min(tried)
    return error, slope, measured
