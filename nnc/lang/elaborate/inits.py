"""Initializers of the modules in use, and tests, as Graphs."""

from __future__ import annotations

from functools import partial

from nnc.diagnostics import Diagnostic, Label
from nnc.ir.graph import Graph, Node
from nnc.ir.signature import Leaf, ModuleSig
from nnc.lang.elaborate.attempts import attempt
from nnc.lang.elaborate.context import Context, Frame
from nnc.lang.elaborate.elaborated import Elaborated
from nnc.lang.elaborate.engine import Overrides, context
from nnc.lang.elaborate.initial import initial
from nnc.lang.elaborate.members import leaves
from nnc.lang.elaborate.mistakes import fail
from nnc.lang.elaborate.randoms import rng_inputs
from nnc.lang.elaborate.slots import absent, slots
from nnc.lang.elaborate.values import Instance, Tensor
from nnc.lang.units import Loader, Unit


def module_inits(loader: Loader, unit: Unit, overrides: Overrides | None, out: Elaborated) -> None:
    """An initializer for every module type that an export takes."""
    seen: dict[str, Instance] = {}
    for built in out.exports:
        for inst in (i for one in built.instances for i in (one, *one.trees.values())):
            first = seen.setdefault(inst.id, inst)
            if first.defn is not inst.defn:
                label = Label(first.defn.name_span, "the other")
                text = f"two module types are called `{inst.id}`"
                d = Diagnostic("E0807", text, inst.defn.name_span, labels=(label,))
                loader.diagnostics.add(d)
    for inst in seen.values():
        cx = context(loader, unit, False, overrides)
        made = attempt(cx, partial(_module, cx, inst), inst.defn.name_span)
        if made is not None:
            out.modules.append(made)


def _module(cx: Context, inst: Instance) -> tuple[ModuleSig, Graph | None]:
    found = list(leaves(inst))
    stored: list[Leaf] = []
    for leaf in found:
        assert leaf.type is not None, leaf
        place = f"{leaf.decl.span.source.name}:{leaf.decl.span.line}"
        stored.append(Leaf(leaf.key, leaf.type, leaf.storage, place))
    keys = [leaf.key for leaf in stored]
    for leaf in found:
        if keys.count(leaf.key) > 1:
            raise fail(
                "E0807", f"two tensors of {inst.id} have the key `{leaf.key}`", leaf.decl.span
            )
    symbol = "nn_init_" + "".join(c if c.isalnum() else "_" for c in inst.id)
    values: list[Node] = []
    for leaf in found:
        value = initial(cx, leaf)
        assert isinstance(value, Tensor) and value.node is not None, value
        values.append(value.node)
    seed, step = rng_inputs(cx)
    graph = Graph(
        symbol.removeprefix("nn_"), (), (seed, step), tuple(values), (), cx.facts, inst.defn.span
    )
    sig = ModuleSig(
        inst.id,
        inst.defn.name,
        tuple(stored),
        dict(inst.given),
        {n: t.id for n, t in inst.trees.items()},
        dict(inst.defaults),
        symbol if stored else "",
        f"{inst.defn.span.source.name}:{inst.defn.span.line}",
        tuple(slots(inst)),
        dict(absent(inst)),
    )
    return sig, graph if stored else None


def test_graphs(loader: Loader, unit: Unit, overrides: Overrides | None, out: Elaborated) -> None:
    """Each `test` block as a Graph whose results are its assertions."""
    for test in unit.tests:
        cx = context(loader, unit, False, overrides)
        frame = Frame(unit, exported=True, train=False, path=f"test {test.title}")
        with cx.in_frame(frame):
            attempt(cx, partial(cx.execute, test.body), test.span)
        inputs = cx.rng or ()
        name = f"test_{len(out.tests)}"
        nodes = tuple(n for n, _ in cx.asserted)
        graph = Graph(name, (), tuple(inputs), nodes, (), cx.facts, test.span)
        out.tests.append((test.title, graph, tuple(a for _, a in cx.asserted)))
