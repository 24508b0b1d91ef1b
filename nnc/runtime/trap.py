"""`nnc.load(..., nan_trap=True)`: calls that stop at the first value that is not finite.

The compiler says what to run and what happened (`Watch`); here the calls are made, and made again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from nnc.errors import NonFiniteError
from nnc.ir.signature import ArgSig, ExportSig, Variant
from nnc.lang.types import is_float
from nnc.runtime.export import Call
from nnc.runtime.leaves import Store
from nnc.runtime.memory import Array
from nnc.runtime.modules import Program
from nnc.runtime.watch import Widened

Run = Callable[[Variant], tuple[Array, ...]]


class Watch(Protocol):
    """What the compiler knows of one export.

    `variant`: with further results, whether anything was not finite, then norms of gradients;
    `fault`: what it was, by repeating the call in other variants, and after which norms (None:
    nothing was made that is not finite).
    """

    @property
    def variant(self) -> Variant: ...

    def fault(self, run: Run, dims: Mapping[str, int], before: Sequence[float]) -> str | None: ...


class Trapped(Widened):
    """An export that raises NonFiniteError; what it was given is then as before the call."""

    def __init__(self, sig: ExportSig, program: Program, watch: Watch) -> None:
        super().__init__(sig, program, watch.variant, self._note)
        self.watch = watch
        self.count = 0
        self._raised = False
        self._norms: tuple[float, ...] = ()

    def _note(self, more: tuple[Array, ...]) -> None:
        self._raised = bool(more[0])
        if not self._raised:
            self._norms = tuple(float(n) for n in more[1:])

    def call(self, *args: Any, **kwargs: Any) -> Any:
        call = self.bind(args, kwargs)
        kept = [_kept(a, v) for a, v in zip(self.args, call.values, strict=True)]
        step = self.program.step
        result = super().call(*call.values)
        self.count += 1
        if not self._raised:
            return result

        def back() -> None:
            for value, copy in zip(call.values, kept, strict=True):
                if copy is not None:
                    _memory(value)[...] = copy
            self.program.step = step

        back()
        text = _given(self, call)
        if text is None:
            text = self.watch.fault(
                lambda v: self._again(v, call, back), call.plan.sizes.env, self._norms
            )
        if text is None:  # infinities that were meant
            return super().call(*call.values)
        self.mark_written(call.values)
        step_ = f", call {self.count}" if self.count > 1 or self.writes else ""
        more = "\n  what the call would have written is as before it" if self.writes else ""
        raise NonFiniteError(
            f"nan-trap: {self.sig.name}{step_}: first non-finite value\n{text}{more}"
        )

    def _again(self, variant: Variant, call: Call, back: Callable[[], None]) -> tuple[Array, ...]:
        """The further results of another variant, from the same state."""
        found: list[tuple[Array, ...]] = []
        again = Widened(self.returned, self.program, variant, found.append)
        try:
            again.call(*call.values)
        finally:
            back()
        return tuple(np.asarray(a) for a in found[0])


def _kept(arg: ArgSig, value: Any) -> Array | None:
    return _memory(value).copy() if arg.inout else None


def _memory(value: Any) -> Array:
    memory: Array = value.buffer if isinstance(value, Store) else value
    return memory


def _given(export: Trapped, call: Call) -> str | None:
    """Arguments that hold NaN already."""
    rows = []
    for arg, value in zip(export.args, call.values, strict=True):
        for name, array in _arrays(arg, value):
            bad = np.isnan(array)
            if bad.any():
                at = [int(i) for i in np.unravel_index(int(np.argmax(bad)), bad.shape)]
                more = f" and {int(bad.sum()) - 1} more" if bad.sum() > 1 else ""
                where = f"[{', '.join(map(str, at))}]" if at else ""
                rows.append(f"  {name}{where} is nan{more}: it was given so ({arg.place})")
    return "\n".join(rows[:8]) or None


def _arrays(arg: ArgSig, value: Any) -> Sequence[tuple[str, Array]]:
    if isinstance(value, Store):
        found = [(f"{arg.name}.{k}", a, value) for k, a in value.arrays.items()]
        return [
            (n, _numbers(a)) for n, a, _ in found if a.dtype.kind == "f" or a.dtype == np.uint16
        ]
    if arg.type is None or not is_float(arg.type.dtype):
        return []
    return [(arg.name, _numbers(value))]


def _numbers(array: Any) -> Array:
    """bf16 as numbers."""
    array = np.asarray(array)
    if array.dtype == np.uint16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    out: Array = array
    return out
