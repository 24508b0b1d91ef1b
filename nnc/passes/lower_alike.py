"""Groups alike: nodes of the same forms, over tensors that lie in memory in the same way.

Only the first of them is lowered; the kernels of the others are copies of its kernel over other
buffers (and with other large numbers).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from nnc.ir.expr import Const, Expr, Idx, Load, Op, Select, Tensor, walk
from nnc.ir.form import Formed, formed
from nnc.ir.graph import Compute, Node, Update
from nnc.ir.loop import Alike, Buffer, Kernel, Pattern, Stmt, Store, kernel_like
from nnc.ir.statements import exprs_in, loaded_from, map_stmts, stores_in
from nnc.lang.dims import Dim
from nnc.passes.fuse import Fused, Group
from nnc.passes.lower_starts import TARGET, Start, common, start_of, starts, without
from nnc.passes.regions import Region, Side
from nnc.passes.storage import Storage


@dataclass(frozen=True)
class Part:
    """Expressions of a member of the group (or of its region); `rank`: of an update's target."""

    node: Compute | Update | None
    of: Formed
    rank: int


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
    starts: dict[str, Start] = field(default_factory=dict)  # of buffers, by name

    def group(self, group: Group) -> bool:
        """Adds a group; False where it is of a kind that is lowered on its own."""
        if group.band is not None:
            return False
        self.tokens += (group.kind, group.rows, group.reason)
        parts: list[Part] = []
        for node in group.nodes:
            if not isinstance(node, Compute | Update) or node in self.storage.copied:
                return False
            if isinstance(node, Update) and node.check is not None:
                return False
            rank = len(node.target) if isinstance(node, Update) else 0
            parts.append(Part(node, node.formed, rank))
        if group.region is not None:
            sides = _sides(group.region)
            if any(s.divisor is not None and s.divisor.of not in self.members for s in sides):
                return False
            parts += [Part(None, formed(_exprs(s)), 0) for s in sides]
        if any(p.of.checks for p in parts):
            return False
        for p in parts:
            self.begin(p)
        done = all(map(self.part, parts))
        if done and group.region is not None:
            self.region(group.region)
        return done

    def begin(self, p: Part) -> None:
        """Finds out about fixed leading indices."""
        found = starts(p.of.form, p.rank)
        for t, number in zip(p.of.tensors, range(len(p.of.tensors)), strict=True):
            self.start(t, found.get(number, ()))
        if p.node is not None:
            self.start(p.node, found.get(TARGET, ()))

    def start(self, t: Tensor, start: Start) -> None:
        name = self.home(t)
        if name is not None:
            self.starts[name] = common(self.starts.get(name, start), start)

    def home(self, t: Tensor) -> str | None:
        """The name of its buffer, which other kernels know too."""
        place = self.storage.places.get(t)  # type: ignore[call-overload]
        return None if place is None else place.buffer.name

    def length(self, t: Tensor) -> int:
        name = self.home(t)
        return 0 if name is None else len(self.starts[name])

    def part(self, p: Part) -> bool:
        node, of, target = p.node, p.of, 0
        match node:
            case Compute():
                self.tokens += (node.raxes, node.op)
            case Update():
                self.tokens += (node.accumulate, node.guard is None)
                target = self.length(node)
        if node is not None:
            tail = node.name.rsplit(".", 1)[-1]
            self.tokens += (node.axes, node.type, tail, node in self.storage.private)
        code = without(of.form, tuple(map(self.length, of.tensors)), target)
        self.tokens += (code, of.telling)
        self.tokens += [self.numbers.setdefault(n, len(self.numbers)) for n in of.numbers]
        return all(map(self.tensor, of.tensors if node is None else (*of.tensors, node)))

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

    def positions(self, buffers: Iterable[Buffer]) -> tuple[int, ...]:
        """Of those that are not the kernel's own, each once."""
        known = (self.slots[b.name] for b in buffers if b.name in self.slots)
        return tuple(dict.fromkeys(known))

    # ---- regions ------------------------------------------------------------------------------

    def region(self, r: Region) -> None:
        self.tokens += (r.outer, r.row, r.col, r.mask)
        for node in r.nodes:
            env, value = tuple(r.env[node].items()), r.values.get(node)
            known = None if value is None else self.members[value]
            self.tokens += (self.members[node], r.roles[node], env, known)
            side = r.sides.get(node)
            if side is not None:
                of = None if side.divisor is None else self.members[side.divisor.of]
                self.tokens += (side.rest, len(side.masks), of)

    # ---- what is free ---------------------------------------------------------------------------

    def alike(self, pattern: Pattern) -> Alike:
        places = tuple([self.starts.get(name, ()) for name in self.buffers])
        return Alike(pattern, tuple(self.buffers.values()), tuple(self.numbers), places)


def _sides(r: Region) -> list[Side]:
    return [r.sides[n] for n in r.nodes if n in r.sides]


def _exprs(side: Side) -> list[Expr]:
    late = [] if side.divisor is None else [side.divisor.by]
    return [side.strip, side.other, *side.masks, *late]


@dataclass(frozen=True, eq=False)
class _Template:
    """A body, its expressions (operands first) and the buffers that stand in it."""

    body: tuple[Stmt, ...]
    number: str  # of its kernel
    free: Alike
    order: tuple[Expr, ...]
    named: tuple[Buffer, ...]  # all in it, other shapes and those of its own too

    def make(self, kernel: Kernel) -> tuple[Stmt, ...]:
        """The body over a kernel's buffers and numbers."""
        alike = kernel.alike
        assert alike is not None, kernel.name
        free = self.free
        homes = {a.name: b for a, b in zip(free.buffers, alike.buffers, strict=True)}
        moved: dict[Tensor, Tensor] = {}
        for b in self.named:
            home = homes.get(b.name)
            if home is None:  # the kernel's own
                assert b.scope == "local" and b.name.startswith(f"strip{self.number}."), b
                own = f"strip{_number(kernel)}.{b.name.split('.', 1)[1]}"
                moved[b] = replace(b, name=own)
            else:
                moved[b] = home if home.type == b.type else replace(home, type=b.type)
        numbers = {x: y for x, y in zip(free.numbers, alike.numbers, strict=True) if x != y}
        begins = {
            b.name: tuple(Idx(Dim.of(n)) for n in new)
            for b, old, new in zip(alike.buffers, free.starts, alike.starts, strict=True)
            if old != new
        }
        new = _moved(self.order, moved, numbers, begins)

        def place(s: Store) -> tuple[Buffer, tuple[Expr, ...]]:
            home = moved[s.buffer]
            assert isinstance(home, Buffer)
            begin = begins.get(home.name, ())
            return home, (*begin, *[new[id(i)] for i in s.index[len(begin) :]])

        return map_stmts(self.body, lambda e: new[id(e)], place)


def _number(kernel: Kernel) -> str:
    return kernel.name.split("_", 1)[0][1:]


class Kernels:
    """The kernels of a Program so far, by what they do."""

    def __init__(self) -> None:
        self.known: dict[Hashable, Kernel] = {}

    def key(self, fused: Fused, storage: Storage, group: Group) -> Key | None:
        """None: the group is lowered on its own."""
        out = Key(fused, storage, {n: i for i, n in enumerate(group.nodes)})
        return out if out.group(group) else None

    def like(self, key: Key, number: int) -> Kernel | None:
        """A kernel that does the same as an earlier one, as kernel number `number`."""
        found = self.known.get(tuple(key.tokens))
        if found is None:
            return None
        assert found.alike is not None, found
        name = f"k{number}_{found.name.split('_', 1)[1]}"
        alike = key.alike(found.alike.pattern)
        return kernel_like(found, alike, name=name, span=next(iter(key.members)).span)

    def keep(self, key: Key, kernel: Kernel) -> Kernel:
        """Remembers a kernel that was lowered."""
        body, places = kernel.body, [(e.tensor, e.index) for e in _loads(kernel.body)]
        places += [(s.buffer, s.index) for s in stores_in(body)]
        for b, index in places:
            begin = key.starts.get(b.name, ())  # type: ignore[attr-defined]
            if start_of(index)[: len(begin)] != begin:
                return kernel
        order = tuple(walk(*exprs_in(body)))
        loaded, stored = loaded_from(body), {s.buffer: None for s in stores_in(body)}
        pattern = Pattern(key.positions(loaded), key.positions(stored))
        alike = key.alike(pattern)
        pattern.make = _Template(body, _number(kernel), alike, order, (*loaded, *stored)).make
        kernel = kernel_like(kernel, alike, body=body)
        self.known[tuple(key.tokens)] = kernel
        return kernel


def _loads(body: tuple[Stmt, ...]) -> list[Load]:
    return [e for e in walk(*exprs_in(body)) if isinstance(e, Load)]


def _moved(
    order: Sequence[Expr],
    tensors: dict[Tensor, Tensor],
    numbers: dict[int, int],
    begins: dict[str, tuple[Idx, ...]],
) -> dict[int, Expr]:
    """By the ids of expressions, those over other tensors, from other places and with other large
    numbers."""
    new: dict[int, Expr] = {}
    for e in order:
        kind = type(e)
        if kind is Load:
            assert isinstance(e, Load)
            index = tuple([new[id(i)] for i in e.index])
            home = tensors[e.tensor]
            begin = begins.get(home.name) if begins else None  # type: ignore[attr-defined]
            if begin is not None:
                index = (*begin, *index[len(begin) :])
            other = None if e.other is None else new[id(e.other)]
            new[id(e)] = Load(e.dtype, home, index, other, e.check)
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
