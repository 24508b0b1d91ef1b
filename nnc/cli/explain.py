"""`nnc explain`: what a line became and why; what an error code means."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from nnc import driver
from nnc.cli.options import overrides
from nnc.compiler import Scheduled
from nnc.diagnostics import Span
from nnc.errors import ArgumentError
from nnc.ir.graph import Constant, Input, Loop, Node, Part, all_nodes, operands
from nnc.ir.loop import Kernel
from nnc.lang.codes import explain as explain_code
from nnc.passes.fuse import Fused, Group

_CODE = re.compile(r"[EWew]\d+")
_LINE = re.compile(r"(.+):(\d+)")


@dataclass(frozen=True)
class Place:
    """A line of a file, as messages call it."""

    file: str
    line: int

    def holds(self, span: Span) -> bool:
        return span.source.name == self.file and span.line <= self.line <= span.end_line

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def explain(args: argparse.Namespace) -> int:
    """Prints the entry of a code, or the kernels of a file, of a line, of a line of the library."""
    if _CODE.fullmatch(args.what):
        try:
            print(explain_code(args.what))
        except LookupError as error:
            raise ArgumentError(str(error.args[0])) from None
        return 0
    path, place = _place(args.what)
    if args.at is not None:
        _, place = _place(args.at)
        if place is None:
            raise ArgumentError(f"--at {args.at}: it is --at FILE:LINE, like std/nn.nn:7")
    found = driver.schedule_file(path, overrides(args.define))
    blocks = [block for each in found if (block := _export(each, place))]
    if place is not None and not blocks:
        raise ArgumentError(_nothing_at(place, found))
    texts = ["\n".join(block) for block in blocks]
    print("\n\n".join(texts) or f"{path} exports nothing: there is nothing to compile")
    return 0


def _place(text: str) -> tuple[str, Place | None]:
    match = _LINE.fullmatch(text)
    return (match[1], Place(match[1], int(match[2]))) if match else (text, None)


def _nothing_at(place: Place, found: Sequence[Scheduled]) -> str:
    spans = [n.span for s in found for _, group in kernels(s) for n in members(group)]
    own = sorted({s.line for s in spans if s.source.name == place.file})
    others = sorted({f"{s.source.name}:{s.line}" for s in spans if s.source.name != place.file})
    lines = [f"nothing is computed at {place}"]
    if own:
        lines.append(f"  lines of {place.file} that are: {', '.join(map(str, own))}")
    if others:
        more = ", ..." if len(others) > 8 else ""
        lines.append(
            f"  what a call computes stands at the lines of its definition: "
            f"{', '.join(others[:8])}{more}\n  help: nnc explain MODEL --at {others[0]}"
        )
    return "\n".join(lines)


# ---- kernels and what they compute --------------------------------------------------------------


def kernels(scheduled: Scheduled) -> list[tuple[Kernel, Group | None]]:
    """Every kernel with the group of values that it computes (None: a copy)."""
    groups = list(_groups(scheduled.fused))
    out: list[tuple[Kernel, Group | None]] = []
    for kernel in scheduled.program.kernels:
        group = groups[0] if groups else None
        if group and kernel.reason == group.reason and kernel.span == group.nodes[0].span:
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


def _export(scheduled: Scheduled, place: Place | None) -> list[str]:
    """The lines about one export; none when it computes nothing at `place`."""
    rows = list(enumerate(kernels(scheduled)))
    values = _values(scheduled, place, rows) if place is not None else []
    if place is not None:
        rows = [(i, (k, g)) for i, (k, g) in rows if any(map(place.holds, _spans(k, g)))]
    if place is not None and not rows and not values:
        return []
    lines = [f"{scheduled.name} ({where(scheduled.built.graph.span)})"]
    for i, (kernel, group) in rows:
        lines += _kernel(i, kernel, group)
    return [*lines, *values]


def _spans(kernel: Kernel, group: Group | None) -> list[Span]:
    return [n.span for n in members(group)] or [kernel.span]


def _kernel(number: int, kernel: Kernel, group: Group | None) -> list[str]:
    lines = [f"  kernel {number}  {where(kernel.span)}  {kernel.reason}"]
    lines.append(f"    work: about {kernel.work} operations")
    spans = dict.fromkeys(_spans(kernel, group))
    if len(spans) > 1 or len(members(group)) > 1:
        lines.append("    one kernel computes:")
        width = max(len(where(s)) for s in spans)
        lines += [f"      {where(s):{width}}  {text(s)}" for s in spans]
    return lines


def _values(
    scheduled: Scheduled,
    place: Place,
    rows: Sequence[tuple[int, tuple[Kernel, Group | None]]],
) -> list[str]:
    """Where each value of the line ended."""
    homes: dict[Span, list[int]] = {}
    for i, (_, group) in rows:
        for span in dict.fromkeys(n.span for n in members(group)):
            homes.setdefault(span, []).append(i)
    readers = _readers(scheduled.graph.roots, all_nodes(scheduled.graph))
    here = (n for n in all_nodes(scheduled.built.graph) if place.holds(n.span))
    spans = dict.fromkeys(n.span for n in here if not isinstance(n, Input | Constant | Part))
    lines = [f"    {text(s)}: {_home(s, homes, readers)}" for s in spans]
    return ["  values of this line:", *lines] if lines else []


def _readers(roots: Iterable[Node], nodes: Sequence[Node]) -> dict[Span, set[Span]]:
    out: dict[Span, set[Span]] = {r.span: set() for r in roots}
    for node in nodes:
        for operand in operands(node):
            out.setdefault(operand.span, set()).add(node.span)
    return out


def _home(span: Span, homes: dict[Span, list[int]], readers: dict[Span, set[Span]]) -> str:
    if span in homes:
        return f"kernel {_numbers(homes[span])}"
    if span not in readers:
        return "simplified away"
    seen, waiting, found = {span}, [span], set()
    while waiting:
        for reader in readers.get(waiting.pop(), ()):
            if reader in homes:
                found |= set(homes[reader])
            elif reader not in seen:
                seen.add(reader)
                waiting.append(reader)
    if not found:
        return "simplified away"
    return f"computed where it is read, in kernel {_numbers(sorted(found))}"


def _numbers(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def where(span: Span) -> str:
    """`file:line`."""
    return f"{span.source.name}:{span.line}"


def text(span: Span) -> str:
    row = " ".join(span.text.split())
    return row if len(row) <= 72 else f"{row[:69]}..."
