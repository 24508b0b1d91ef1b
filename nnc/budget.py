"""A limit of memory: which calls are computed again for the gradient so that an export keeps it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from nnc.diagnostics import Span
from nnc.errors import ArgumentError, DeviceError
from nnc.ir.graph import Grad, Graph, all_nodes
from nnc.ir.loop import Program
from nnc.lang.dims import Dim, dim_sum
from nnc.lang.elaborate.elaborated import Built, Elaborated
from nnc.passes.budget import Candidate, candidates, outermost
from nnc.passes.recompute import ask
from nnc.runtime.memory import human

LOG = logging.getLogger("nnc")
Planned = Callable[[Graph], Program]
Scratch = Callable[[Program], Dim]


@dataclass(frozen=True)
class Budget:
    """At most so many bytes of arguments, results and workspace at these sizes.

    `only`: the export that is asked about; else all with a gradient.
    """

    bytes: int
    sizes: Mapping[str, int]
    only: str | None = None


@dataclass(frozen=True)
class Choice:
    """What an export computes again, and its bytes without and with that."""

    name: str
    places: tuple[Span, ...]
    before: int
    after: int

    def __str__(self) -> str:
        if not self.places:
            return f"{self.name}: {human(self.before)}, nothing is computed again"
        head = f"{self.name}: {human(self.before)} without recompute, {human(self.after)} with"
        return "\n".join([head, *(f"  recompute({s.text})  {s.place}" for s in self.places)])


def within(
    found: Elaborated, budget: Budget, planned: Planned, scratch: Scratch
) -> tuple[Elaborated, tuple[Choice, ...]]:
    """The exports with calls to be computed again so that each keeps the limit.

    Exports without a gradient are left as they are. `planned`: a graph with its memory planned;
    `scratch`: the bytes that its threads take beside the arena.
    DeviceError when a limit cannot be kept, ArgumentError when a size is missing.
    """
    done = [_export(b, budget, planned, scratch) for b in found.exports]
    choices = tuple(c for _, c in done if c is not None)
    for choice in choices:
        LOG.info("%s", choice)
    return replace(found, exports=[b for b, _ in done]), choices


def _export(
    built: Built, budget: Budget, planned: Planned, scratch: Scratch
) -> tuple[Built, Choice | None]:
    graph = built.graph
    if budget.only not in (None, graph.name) or not _has_gradient(graph):
        return built, None
    missing = [d for d in graph.dims if d not in budget.sizes]
    if missing:
        text = ", ".join(missing)
        raise ArgumentError(f"max_memory needs the sizes of {graph.name}: {text} is missing")

    first = planned(graph)
    env = {d: budget.sizes[d] for d in first.dims}
    threads = scratch(first).evaluate(env)  # what packs blocks of matrices: alike for all choices

    def peak(some: Sequence[Candidate]) -> int:
        return peak_of(planned(ask(graph, outermost(some))), budget.sizes) + threads

    before = peak_of(first, budget.sizes) + threads
    if before <= budget.bytes:
        return built, Choice(graph.name, (), before, before)
    order = candidates(graph, budget.sizes)
    count, after = _fewest(order, peak, budget.bytes)
    places = outermost(order[:count])
    if after > budget.bytes:
        raise _beyond(graph.name, budget, places, before, after)
    whole = replace(graph, results=(*graph.results, *built.probes))
    new = ask(whole, places)
    n = len(graph.results)
    own = replace(new, results=new.results[:n])
    choice = Choice(graph.name, _sorted(places), before, after)
    return replace(built, graph=own, probes=new.results[n:]), choice


def _has_gradient(graph: Graph) -> bool:
    return any(isinstance(n, Grad) for n in all_nodes(graph))


def _fewest(
    order: Sequence[Candidate], peak: Callable[[Sequence[Candidate]], int], limit: int
) -> tuple[int, int]:
    """How many of the best candidates keep the limit, and the bytes then.

    If none do: the number with the fewest bytes among those tried.
    """
    tried = {len(order): peak(order)}
    low, high = 0, len(order)
    if tried[high] > limit:  # calls around others may cost more than they save
        for n in range(1, len(order)):
            tried[n] = peak(order[:n])
            if tried[n] <= limit:
                return n, tried[n]
        best = min(tried, key=lambda n: (tried[n], n))
        return best, tried[best]
    while high - low > 1:
        middle = (low + high) // 2
        tried[middle] = peak(order[:middle])
        low, high = (low, middle) if tried[middle] <= limit else (middle, high)
    return high, tried[high]


def peak_of(program: Program, sizes: Mapping[str, int]) -> int:
    """Bytes of arguments, results and arena."""
    env = {d: sizes[d] for d in program.dims}
    return (dim_sum(b.bytes for b in program.args) + program.arena).evaluate(env)


def _sorted(places: frozenset[Span]) -> tuple[Span, ...]:
    return tuple(sorted(places, key=lambda s: (s.source.name, s.line, s.column)))


def _beyond(
    name: str, budget: Budget, places: frozenset[Span], before: int, after: int
) -> DeviceError:
    sizes = ", ".join(f"{n} = {v}" for n, v in budget.sizes.items())
    best = Choice(name, _sorted(places), before, after)
    text = f"{name} at {sizes} cannot be held to {human(budget.bytes)}; reached: {human(after)}"
    return DeviceError(f"{text}\n{best}")
