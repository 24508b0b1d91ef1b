"""What native code keeps in its workspace from call to call, and whether it is still right.

Kept values depend on modules that are only read. They are right as long as the modules are the same
objects, nobody has written to them since, and the workspace and the variant of the code are the
same. Modules count what is written through nnc (`Store.version`, by native code too) and know the
views that they have lent (`Store.lent`); whoever holds one may write at any time: nothing is kept
meanwhile.

Copies cost about as much to make as they save in a call, so the first call after a change does
without them. They are made one by one, and where a call reads nothing of a leaf but its copy, the
leaf's memory is given back before the next one is made.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nnc.ir.calltable import NOTHING, RIGHT
from nnc.runtime.away import Slabs
from nnc.runtime.leaves import Store
from nnc.runtime.memory import Array


@dataclass(frozen=True)
class Replaced:
    """A leaf that a call does not read where it has copy number `copy`: `module` among those that
    are only read, `leaf` among its leaves."""

    copy: int
    module: int
    leaf: int
    slabs: Callable[[Array], Slabs]  # of a workspace


@dataclass(frozen=True)
class Keeps:
    """What calls of one plan can keep: the variant of the code, with how many rows it multiplies,
    which copies it reads."""

    variant: int
    rows: int
    copies: tuple[int, ...]
    replaced: tuple[Replaced, ...] = ()


class Kept:
    """The state of one workspace; used under its entry's lock."""

    def __init__(self) -> None:
        self._variant = 0
        self._seen: tuple[tuple[weakref.ref[Store], object], ...] = ()
        self._made: set[int] = set()
        # Modules with leaves of which only copies are here, by the copies' numbers.
        self._away: dict[int, weakref.ref[Store]] = {}

    def forget(self) -> None:
        """The workspace is another, or was left in the middle of a call."""
        self.bring_back()
        self._seen = ()
        self._made.clear()

    def bring_back(self) -> None:
        """All leaves are in memory again; the copies stay what they are."""
        for ref in self._away.values():
            module = ref()
            if module is not None:
                module.come_back()
        self._away.clear()

    def before(self, keeps: Keeps, modules: Sequence[Store]) -> tuple[int, tuple[int, ...]]:
        """The word for a call with these modules, and the copies that are to be made before it.

        One row does not read copies: they are left as they are.
        """
        variant, states = keeps.variant, [m.state() for m in modules]
        # In this order: a view lent after its module's state was read changes the state.
        if any(m.lent for m in modules):
            self.forget()
        elif keeps.rows <= 1 and variant == self._variant:
            self.bring_back()
        elif self._same(variant, modules, states):
            if self._away.keys() - {r.copy for r in keeps.replaced}:
                self.bring_back()
            return RIGHT, tuple(n for n in keeps.copies if n not in self._made)
        else:
            self.forget()
            self._variant = variant
            self._seen = tuple(zip(map(weakref.ref, modules), states, strict=True))
        return NOTHING, ()

    def _same(self, variant: int, modules: Sequence[Store], states: Sequence[object]) -> bool:
        return (
            variant == self._variant
            and len(self._seen) == len(modules) > 0
            and all(
                ref() is m and old == new
                for (ref, old), m, new in zip(self._seen, modules, states, strict=True)
            )
        )

    def made(self, copy: int, keeps: Keeps, modules: Sequence[Store], workspace: Array) -> None:
        """A copy is there: gives back what it replaces."""
        self._made.add(copy)
        for r in keeps.replaced:
            if r.copy == copy:
                _, state = self._seen[r.module]
                module = modules[r.module]
                if module.give_back(r.leaf, r.slabs(workspace), state):
                    self._away[copy] = weakref.ref(module)
