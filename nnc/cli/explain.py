"""`nnc explain`: what a line became and why; what an error code means."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from nnc import driver
from nnc.cli.lines import Place, about, described
from nnc.cli.options import overrides
from nnc.compiler import Scheduled
from nnc.diagnostics import Span
from nnc.errors import ArgumentError
from nnc.ir.graph import Constant, Grad, Input, Loop, Node, Part, all_nodes, operands
from nnc.ir.loop import Kernel
from nnc.lang.codes import explain as explain_code
from nnc.passes.fuse import Fused, Group

_CODE = re.compile(r"[EWew]\d+")
_LINE = re.compile(r"(.+):(\d+)")
MOST = 12  # values listed, kernels named

Key = tuple[Span, int]  # a place through one chain of calls


def explain(args: argparse.Namespace) -> int:
    """Prints the entry of a code, or the kernels of a file, of a line, of a line of the library."""
    if _CODE.fullmatch(args.what):
        try:
            print(explain_code(args.what))
        except LookupError as error:
            raise ArgumentError(str(error.args[0])) from None
        return 0
    path, line = _place(args.what)
    if args.at is not None:
        path, line = args.what, _place(args.at)[1]
        if line is None:
            raise ArgumentError(f"--at {args.at}: it is --at FILE:LINE, like std/nn.nn:7")
    found = driver.schedule_file(path, overrides(args.define))
    if line is None:
        texts = ["\n".join(_export(each, None)) for each in found]
        print("\n\n".join(texts) or f"{path} exports nothing: there is nothing to compile")
        return 0
    file = path if args.at is None else _place(args.at)[0]
    place = about(Place(file, line, line), [s for each in found for s in _all_spans(each)])
    blocks = [block for each in found if (block := _export(each, place))]
    texts = [*described(place), *("\n".join(block) for block in blocks)]
    if not texts:
        raise ArgumentError(_nothing_at(place, found))
    print("\n\n".join(texts))
    return 0


def _place(text: str) -> tuple[str, int | None]:
    match = _LINE.fullmatch(text)
    return (match[1], int(match[2])) if match else (text, None)


def _all_spans(scheduled: Scheduled) -> list[Span]:
    return [n.span for n in (*scheduled.built.graph.inputs, *all_nodes(scheduled.built.graph))]


def _nothing_at(place: Place, found: Sequence[Scheduled]) -> str:
    lines = {
        s.line for f in found for n in _all_spans(f) for s in n.trail if s.source.name == place.file
    }
    out = f"nothing is computed at {place}"
    if lines:
        near = sorted(sorted(lines, key=lambda x: abs(x - place.line))[:MOST])
        out += f"\n  lines of {place.file} near it that are: {', '.join(map(str, near))}"
    return out


# ---- kernels and what they compute --------------------------------------------------------------


def kernels(scheduled: Scheduled) -> list[tuple[Kernel, Group | None]]:
    """Every kernel with the group of values that it computes (None: a copy)."""
    groups = list(_groups(scheduled.fused))
    out: list[tuple[Kernel, Group | None]] = []
    for kernel in scheduled.program.kernels:
        group = groups[0] if groups else None
        named = group is not None and kernel.reason.startswith(group.reason)
        if group and named and kernel.span == group.nodes[0].span:
            out.append((kernel, groups.pop(0)))
        else:
            out.append((kernel, None))
    assert not groups, groups
    return out


def _groups(fused: Fused) -> Iterator[Group]:
    # As deep as loops are nested.
    for group in fused.groups:
        node = group.nodes[0]
        if isinstance(node, Loop):
            turn = fused.turns[node]
            if turn.test is not None:
                yield from _groups(turn.test)
            yield from _groups(turn.rest)
        else:
            yield group


def members(group: Group | None) -> tuple[Node, ...]:
    return () if group is None else group.nodes


@dataclass(frozen=True)
class _Row:
    """One kernel: its number, itself, and the places of what it computes."""

    number: int
    kernel: Kernel
    group: Group | None

    @property
    def spans(self) -> list[Span]:
        """Distinct places, as they are reached through calls."""
        found = [n.span for n in members(self.group)] or [self.kernel.span]
        return list({_key(s): s for s in found}.values())

    @property
    def likeness(self) -> tuple[object, ...]:
        """Equal for kernels that say the same: the blocks of a deep network, say."""
        return (self.kernel.reason, *((where(s.own), s.own.text, s) for s in self.spans))


def _key(span: Span) -> Key:
    return span, id(span.caller)


def _export(scheduled: Scheduled, place: Place | None) -> list[str]:
    """The lines about one export; none when it computes nothing at `place`."""
    first = scheduled.program.prologue
    rows = [_Row(i, k, g) for i, (k, g) in enumerate(kernels(scheduled)[first:])]
    values = [] if place is None else _values(scheduled, place, rows)
    stored = [] if place is None else _stored(scheduled, place, rows)
    if place is not None:
        rows = [r for r in rows if any(place.reached(s) for s in r.spans)]
        if not rows and not values and not stored:
            return []
    alike: dict[tuple[object, ...], list[_Row]] = {}
    for r in rows:
        alike.setdefault(r.likeness, []).append(r)
    lines = [f"{scheduled.name} ({where(scheduled.built.graph.span)})", *stored]
    for same in alike.values():
        lines += _kernel(same)
    return [*lines, *values]


def _kernel(same: Sequence[_Row]) -> list[str]:
    row = same[0]
    names = f"kernel {row.number}" if len(same) == 1 else f"kernels {_numbers(same)}"
    lines = [f"  {names}: {row.kernel.reason}"]
    each = "" if len(same) == 1 else " each"
    lines.append(f"    work: about {row.kernel.work} operations{each}")
    shown = [
        (where(s.own), text(s.own), "" if s.own is s else f"{where(s)}  {text(s)}")
        for s in row.spans
    ]
    width = max(len(place) for place, _, _ in shown)
    previous = ""
    for place, own, inner in dict.fromkeys(shown):
        if f"{place} {own}" != previous:
            lines.append(f"      {place:{width}}  {own}")
        previous = f"{place} {own}"
        if inner:
            lines.append(f"      {'':{width}}    in {inner}")
    return lines


def _numbers(same: Iterable[_Row]) -> str:
    numbers = [r.number for r in same]
    few = ", ".join(map(str, numbers[:MOST]))
    return few if len(numbers) <= MOST else f"{few} ... ({len(numbers)} alike)"


# ---- where the values of a line ended -----------------------------------------------------------


def _values(scheduled: Scheduled, place: Place, rows: Sequence[_Row]) -> list[str]:
    """Where each value of the line ended: stored by a kernel, or part of another value."""
    homes: dict[Key, list[_Row]] = {}
    for row in rows:
        for span in row.spans:
            homes.setdefault(_key(span), []).append(row)
    readers = _readers(all_nodes(scheduled.graph))
    final = {_key(r.span) for r in scheduled.graph.roots}
    here = [n for n in all_nodes(scheduled.built.graph) if place.holds(n.span)]
    alike: dict[str, dict[Key, None]] = {}
    for node in here:
        if not isinstance(node, Input | Constant | Part):
            alike.setdefault(text(node.span), {})[_key(node.span)] = None
    gradients = {text(n.span) for n in here if isinstance(n, Grad)}
    told = "the derivatives of the lines that lead to it; nothing itself"
    found = [
        f"    {name}: {told if name in gradients else _home(keys, homes, readers, final)}"
        for name, keys in alike.items()
    ]
    more = [f"    ... and {len(found) - MOST} more"] if len(found) > MOST else []
    return ["  values of this line:", *found[:MOST], *more] if found else []


def _readers(nodes: Sequence[Node]) -> dict[Key, set[Key]]:
    out: dict[Key, set[Key]] = {}
    for node in nodes:
        out.setdefault(_key(node.span), set())
        for operand in operands(node):
            out.setdefault(_key(operand.span), set()).add(_key(node.span))
    return out


def _home(
    keys: Iterable[Key], homes: dict[Key, list[_Row]], readers: dict[Key, set[Key]], final: set[Key]
) -> str:
    """`keys`: one value, as often as it is computed."""
    own = _rows(homes, keys)
    if own:
        later = _rows(homes, (r for k in keys for r in readers.get(k, ())))
        others = [r for r in later if r not in own]
        result = f"kernel {_numbers(own)}"
        if any(k in final for k in keys):
            return f"{result}, a result"
        return f"{result}, stored for kernel {_numbers(others)}" if others else result
    seen, waiting, found = set(keys), list(keys), dict[Key, None]()
    while waiting:
        for reader in readers.get(waiting.pop(), ()):
            if reader in homes:
                found[reader] = None
            elif reader not in seen:
                seen.add(reader)
                waiting.append(reader)
    if not found:
        return "simplified away"
    return f"computed where it is read, in kernel {_numbers(_rows(homes, found))}"


def _rows(homes: dict[Key, list[_Row]], keys: Iterable[Key]) -> list[_Row]:
    """The kernels that compute any of these, in order."""
    found = {r.number: r for k in keys for r in homes.get(k, ())}
    return [r for _, r in sorted(found.items())]


def _stored(scheduled: Scheduled, place: Place, rows: Sequence[_Row]) -> list[str]:
    """The stored tensors that a line declares, with the kernels that read and write them."""
    built = scheduled.built
    named = [a.name for a in built.signature.args if a.kind in ("module", "tree")]
    paths = place.paths(zip(named, built.instances, strict=True))
    inputs = [i for i in built.graph.inputs if i.kind != "rng" and place.declares(i, paths)]
    if not inputs:
        return []
    written = {w.target: w.value for w in scheduled.graph.writes}
    reading: dict[Node, list[_Row]] = {}
    writing: dict[Node, list[_Row]] = {}
    for row in rows:
        for node in members(row.group):
            for operand in operands(node):
                reading.setdefault(operand, []).append(row)
            writing.setdefault(node, []).append(row)
    by_name = {i.name: i for i in scheduled.fused.graph.inputs}
    final = {w.target.name: w.value for w in scheduled.fused.graph.writes}
    out = []
    for i in inputs[:MOST]:
        node = by_name.get(i.name, i)
        said = _use("read by", reading.get(node, ())) or "read by no kernel of its own"
        if i in written or i.name in final:
            said += "; " + (_use("written by", writing.get(final.get(i.name, i), ())) or "written")
        out.append(f"  {i.name}: {i.type}, {said}")
    more = [f"  ... and {len(inputs) - MOST} more"] if len(inputs) > MOST else []
    return [*out, *more]


def _use(verb: str, rows: Iterable[_Row]) -> str:
    found = list({r.number: r for r in rows}.values())
    return f"{verb} kernel {_numbers(found)}" if found else ""


def where(span: Span) -> str:
    """`file:line`."""
    return f"{span.source.name}:{span.line}"


def text(span: Span) -> str:
    row = " ".join(span.text.split())
    return row if len(row) <= 72 else f"{row[:69]}..."
