"""Groups alike: nodes of the same forms, over tensors that lie in memory in the same way.

Only the first of them is lowered; the kernels of the others are copies of its kernel over other
buffers (and with other large numbers).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from nnc.ir.expr import Const, Expr, Load, Op, Select, Tensor, walk
from nnc.ir.form import formed
from nnc.ir.graph import Compute, Node, Update
from nnc.ir.loop import Alike, Buffer, Kernel, Pattern, Store
from nnc.passes.fuse import Fused, Group
from nnc.passes.regions import Region, Side
from nnc.passes.schedule.merge import Views, exprs_in, loaded_from, map_stmts, stores_in
from nnc.passes.storage import Storage


@dataclass
class Key:
    """What lowering a group depends on (`tokens`), but for the buffers and large numbers in it."""

    fused: Fused
    storage: Storage
    members: dict[Node, int]
    tokens: list[Hashable] = field(default_factory=list)
    nodes: dict[Tensor, int] = field(default_factory=dict)
    buffers: dict[str, Buffer] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    numbers: dict[int, int] = field(default_factory=dict)

    def group(self, group: Group) -> bool:
        """Adds a group; False where it is of a kind that is lowered on its own."""
        self.tokens += (group.kind, group.rows, group.reason)
        for node in group.nodes:
            if not isinstance(node, Compute | Update) or not self.node(node):
                return False
        return group.region is None or self.region(group.region)

    def node(self, node: Compute | Update) -> bool:
        of = node.formed
        if of.checks or node in self.storage.copied:
            return False
        kind: tuple[Hashable, ...] = ()
        if isinstance(node, Compute):
            kind = (node.raxes, node.op)
        elif node.check is not None:
            return False
        else:
            kind = (node.accumulate, node.guard is None)
        tail = node.name.rsplit(".", 1)[-1]
        private = node in self.storage.private
        self.tokens += (kind, node.axes, node.type, tail, private, of.form, of.telling)
        self.tokens += [self.numbers.setdefault(n, len(self.numbers)) for n in of.numbers]
        return all(map(self.tensor, (*of.tensors, node)))

    def tensor(self, t: Tensor) -> bool:
        """Adds which tensor it is and, at its first mention, where it lies."""
        number = self.nodes.get(t)
        if number is not None:
            self.tokens.append(number)
            return True
        self.tokens.append(self.nodes.setdefault(t, len(self.nodes)))
        self.tokens.append(self.members.get(t))  # type: ignore[call-overload]
        place = self.storage.places.get(t)  # type: ignore[call-overload]
        strip = self.storage.strips.get(t)  # type: ignore[call-overload]
        if place is not None and place.lead:
            return False
        self.buffer(strip)
        self.buffer(None if place is None else place.buffer)
        return True

    def buffer(self, b: Buffer | None) -> None:
        if b is None:
            self.tokens.append(None)
            return
        self.buffers.setdefault(b.name, b)
        self.tokens += (self.slots.setdefault(b.name, len(self.slots)), b.scope, b.type)

    # ---- regions ------------------------------------------------------------------------------

    def region(self, r: Region) -> bool:
        self.tokens += (r.outer, r.row, r.col, r.mask)
        for node in r.nodes:
            env, value = tuple(r.env[node].items()), r.values.get(node)
            known = None if value is None else self.members[value]
            self.tokens += (self.members[node], r.roles[node], env, known)
            side = r.sides.get(node)
            if side is not None and not self.side(side):
                return False
        return True

    def side(self, side: Side) -> bool:
        roots, divisor = [side.strip, side.other, *side.masks], side.divisor
        if divisor is not None:
            self.tokens.append(self.members[divisor.of])
            roots.append(divisor.by)
        of = formed(roots)
        self.tokens += (side.rest, len(side.masks), divisor is None, of.form, of.telling)
        return not of.checks and all(map(self.tensor, of.tensors))


@dataclass(frozen=True)
class _Template:
    """A kernel, its expressions (operands first) and the buffers that stand in it."""

    kernel: Kernel
    pattern: Pattern
    buffers: tuple[Buffer, ...]  # in the order of the key
    numbers: tuple[int, ...]
    order: tuple[Expr, ...]
    named: tuple[Buffer, ...]  # all in it, other shapes and those of its own too


class Kernels:
    """The kernels of a Program so far, by what they do."""

    def __init__(self, views: Views) -> None:
        self.views = views
        self.known: dict[Hashable, _Template] = {}

    def key(self, fused: Fused, storage: Storage, group: Group) -> Key | None:
        """None: the group is lowered on its own."""
        out = Key(fused, storage, {n: i for i, n in enumerate(group.nodes)})
        return out if out.group(group) else None

    def like(self, key: Key, number: int) -> Kernel | None:
        """A copy of an earlier kernel that does the same, as kernel number `number`."""
        found = self.known.get(tuple(key.tokens))
        return None if found is None else _copy(found, key, number, self.views)

    def keep(self, key: Key, kernel: Kernel) -> Kernel:
        """Remembers a kernel that was lowered."""
        pattern, body = Pattern(), kernel.body
        order = tuple(walk(*exprs_in(body)))
        named = dict.fromkeys(chain(loaded_from(body), (s.buffer for s in stores_in(body))))
        kernel = replace(kernel, alike=Alike(pattern, tuple(key.buffers), tuple(key.numbers)))
        buffers, numbers = tuple(key.buffers.values()), tuple(key.numbers)
        made = _Template(kernel, pattern, buffers, numbers, order, tuple(named))
        self.known[tuple(key.tokens)] = made
        return kernel


def _copy(of: _Template, key: Key, number: int, views: Views) -> Kernel:
    homes = {a.name: b for a, b in zip(of.buffers, key.buffers.values(), strict=True)}
    first = of.kernel.name.split("_", 1)[0][1:]
    moved: dict[Tensor, Tensor] = {}
    for b in of.named:
        home = homes.get(b.name)
        if home is None:  # the kernel's own
            assert b.scope == "local" and b.name.startswith(f"strip{first}."), b
            own = f"strip{number}.{b.name.split('.', 1)[1]}"
            moved[b] = replace(b, name=own)
        else:
            moved[b] = home if home.type is b.type else views.view(home, b.type.shape)
    numbers = {x: y for x, y in zip(of.numbers, key.numbers, strict=True) if x != y}
    new = _moved(of.order, moved, numbers)

    def place(s: Store) -> tuple[Buffer, tuple[Expr, ...]]:
        home = moved[s.buffer]
        assert isinstance(home, Buffer)
        return home, tuple([new[id(i)] for i in s.index])

    body = map_stmts(of.kernel.body, lambda e: new[id(e)], place)
    name = f"k{number}_{of.kernel.name.split('_', 1)[1]}"
    node = next(iter(key.members))
    alike = Alike(of.pattern, tuple(key.buffers), tuple(key.numbers))
    return Kernel(name, body, node.span, of.kernel.reason, of.kernel.work, alike)


def _moved(
    order: Sequence[Expr], tensors: dict[Tensor, Tensor], numbers: dict[int, int]
) -> dict[int, Expr]:
    """By the ids of expressions, those over other tensors and with other large numbers."""
    new: dict[int, Expr] = {}
    for e in order:
        kind = type(e)
        if kind is Load:
            assert isinstance(e, Load)
            index = tuple([new[id(i)] for i in e.index])
            other = None if e.other is None else new[id(e.other)]
            new[id(e)] = Load(e.dtype, tensors[e.tensor], index, other, e.check)
        elif kind is Op:
            assert isinstance(e, Op)
            new[id(e)] = Op(e.dtype, e.fn, tuple([new[id(a)] for a in e.args]))
        elif kind is Select:
            assert isinstance(e, Select)
            new[id(e)] = Select(e.dtype, new[id(e.cond)], new[id(e.a)], new[id(e.b)])
        elif numbers and isinstance(e, Const) and e.dtype == "i64" and e.value in numbers:
            new[id(e)] = Const("i64", numbers[int(e.value)])
        else:
            new[id(e)] = e
    return new
