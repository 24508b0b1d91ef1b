"""What native code keeps in its workspace from call to call, and whether it is still right.

Kept values depend on modules that are only read. They are right as long as the modules are the same
objects, nobody has written to them since, and the workspace and the variant of the code are the
same. Modules count what is written through nnc (`Store.version`, by native code too) and know the
views that they have lent (`Store.lent`); whoever holds one may write at any time: nothing is kept
meanwhile.

Copies cost about as much to make as they save in a call, so the first call after a change does
without them.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from nnc.ir.calltable import MAKE, NOTHING, RIGHT
from nnc.runtime.leaves import Store


class Kept:
    """The state of one workspace; used under its entry's lock."""

    def __init__(self) -> None:
        self._variant = 0
        self._seen: tuple[tuple[weakref.ref[Store], object], ...] = ()
        self._made = False

    def forget(self) -> None:
        """The workspace is another, or was left in the middle of a call."""
        self._seen, self._made = (), False

    def before(self, variant: int, rows: int, modules: Sequence[Store]) -> int:
        """The word for a call of a variant with these modules.

        One row does not read copies: they are left as they are.
        """
        if rows <= 1 and variant == self._variant:
            return NOTHING
        states = [m.state() for m in modules]
        # In this order: a view lent after its module's state was read changes the state.
        if any(m.lent for m in modules):
            self.forget()
            return NOTHING
        if not self._same(variant, modules, states):
            self._variant, self._made = variant, False
            self._seen = tuple(zip(map(weakref.ref, modules), states, strict=True))
            return NOTHING
        return RIGHT if self._made else MAKE

    def _same(self, variant: int, modules: Sequence[Store], states: Sequence[object]) -> bool:
        return (
            variant == self._variant
            and len(self._seen) == len(modules) > 0
            and all(
                ref() is m and old == new
                for (ref, old), m, new in zip(self._seen, modules, states, strict=True)
            )
        )

    def made(self) -> None:
        """A call with MAKE has ended well."""
        self._made = True
