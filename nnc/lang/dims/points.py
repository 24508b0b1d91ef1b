"""Claims about short loops, looked at point by point."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from math import prod

from nnc.lang.dims.algebra import Dim

POINTS = 64  # of a box of loops that is looked at


def holds_at_every_point(
    p: Dim, facts: Iterable[Dim], ranges: Mapping[str, tuple[Dim, Dim]]
) -> bool:
    """Whether p >= 0 at all points of a small box of loops at which the facts about them hold.

    False where p depends on more than loops between numbers, or the box is not small.
    """
    names = sorted(p.names)
    if not names or any(n not in ranges for n in names):
        return False
    ends = [(ranges[n][0].const, ranges[n][1].const) for n in names]
    loops = [range(a, b + 1) for a, b in ends if a is not None and b is not None]
    if len(loops) < len(names) or prod(map(len, loops)) > POINTS:
        return False
    known = [f for f in facts if f.names and f.names <= p.names]
    for point in product(*loops):
        env = dict(zip(names, point, strict=True))
        if p.evaluate(env) < 0 and all(f.evaluate(env) >= 0 for f in known):
            return False
    return True
