"""What an expression can be while a program is elaborated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from nnc.diagnostics import Span
from nnc.ir.expr import Const, Expr, Idx, Load, Op, index_number
from nnc.ir.graph import Axis, Node
from nnc.ir.scalar import cast
from nnc.lang import ast
from nnc.lang.dims import Dim
from nnc.lang.types import DType, TensorType
from nnc.lang.units import Unit


@dataclass(frozen=True)
class Origin:
    """Where a size comes from, in the reader's words: `columns of w`, and the place."""

    text: str
    span: Span
    whole: bool = False  # the text says the size itself: `first 2 of the 10 columns of x`

    def show(self, seen_from: Span) -> str:
        return f"{self.text} ({self.span.line_in(seen_from)})"

    def at(self, seen_from: Span) -> str:
        return f"{self.text}, {self.span.line_in(seen_from)}"


Origins = tuple[Origin | None, ...]


@dataclass(frozen=True)
class Over:
    """A node with index names as its first axes."""

    node: Node
    outer: tuple[Axis, ...]


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor: its type and how to get an element. `node` when it is a value of the Graph.

    `letters`: the index names of the statement that defined it (only on variables);
    `origins`: of the sizes, one for each axis; `place`: of the tensor (`argument x`); `over`: in
    index notation, the node whose part at the index names in force it is.
    """

    type: TensorType
    at: Callable[[tuple[Expr, ...]], Expr]
    node: Node | None = None
    letters: tuple[str, ...] = ()
    origins: Origins = ()
    place: Origin | None = None
    over: Over | None = None

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.type.shape

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    def origin(self, axis: int) -> Origin | None:
        return self.origins[axis] if 0 <= axis < len(self.origins) else None


@dataclass(frozen=True, eq=False)
class Weak:
    """A number that adapts to its context: literal, size, loop variable, or a function of these.

    `dim`: when it is an integer polynomial; `number`: when it is known now;
    `make(dtype)`: its expression.
    """

    kind: str  # "int" or "float"
    make: Callable[[DType], Expr]
    dim: Dim | None = None
    number: float | int | None = None


@dataclass(frozen=True)
class Known:
    """What a side of a static condition may assume: sizes that are >= 0 there; `open`: it may hold
    more equalities, which only the numbers of an instance show."""

    facts: tuple[Dim, ...] = ()
    open: bool = True


@dataclass(frozen=True, eq=False)
class Bool:
    """A static bool; None while it is not known (generic check)."""

    value: bool | None
    yes: Known = Known()
    no: Known = Known()


@dataclass(frozen=True, eq=False)
class Text:
    value: str


@dataclass(frozen=True, eq=False)
class Nothing:
    """`None`."""


@dataclass(frozen=True, eq=False)
class WeakTensor:
    """A tensor of literals (`zeros[n]`, `where(m, 1, -1)`): its dtype comes from its use.

    `kind`: "int" (i32 when free), "float" or "any" (real when free); `at(dtype, index)`.
    """

    shape: tuple[Dim, ...]
    kind: str
    at: Callable[[DType, tuple[Expr, ...]], Expr]


@dataclass(frozen=True, eq=False)
class Tuple:
    items: tuple[Value, ...]


@dataclass(frozen=True, eq=False)
class Seq:
    """A static list; `items` None: unknown length, every item like `like` (generic check)."""

    items: tuple[Value, ...] | None
    like: Value | None = None


@dataclass(frozen=True, eq=False)
class Pack:
    """`..N` or a pack's name as a value: sizes of some axes."""

    dims: tuple[Dim, ...]


@dataclass(frozen=True, eq=False)
class AxisRef:
    """An axis argument, resolved against a tensor: counted from the left; None: unknown."""

    axis: int | None


@dataclass(frozen=True, eq=False)
class Function:
    """A function of a file, or a method bound to `owner`."""

    unit: Unit
    defn: ast.FuncDef
    owner: Module | None = None


@dataclass(frozen=True, eq=False)
class Builtin:
    name: str


@dataclass(frozen=True, eq=False)
class ModuleType:
    """A module definition, to be called with its parameters."""

    unit: Unit
    defn: ast.ModuleDef


@dataclass(frozen=True, eq=False)
class UnitRef:
    """`import a as b`."""

    unit: Unit


@dataclass(eq=False)
class LeafDecl:
    """A stored tensor (or tree of tensors, when `tree`) of a module instance."""

    name: str
    decl: ast.ParamDecl | ast.StateDecl
    type: TensorType | None
    tree: Instance | TreeParam | None
    storage: str  # param, state
    key: str | None


@dataclass(eq=False)
class TreeParam:
    """A `tree` parameter that is not known yet (generic check): one leaf of any shape."""

    name: str


@dataclass(eq=False)
class Instance:
    """A module definition with all its parameters bound."""

    unit: Unit
    defn: ast.ModuleDef
    args: dict[str, Value]
    id: str
    given: dict[str, str]
    trees: dict[str, Instance]
    defaults: dict[str, str]
    real: DType = "f32"
    generic: bool = False
    leaves: dict[str, LeafDecl] = field(default_factory=dict)
    members: dict[str, Value | Sub | SubList] = field(default_factory=dict)
    methods: dict[str, ast.FuncDef] = field(default_factory=dict)
    facts: list[Dim] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Sub:
    """A sub-module declaration inside an instance."""

    inst: Instance
    span: Span


@dataclass(frozen=True, eq=False)
class SubList:
    """A list of sub-modules; `items` None: unknown (generic check), then `like` stands for each."""

    items: tuple[Instance, ...] | None
    like: Instance | None
    span: Span


@dataclass(frozen=True, eq=False)
class Module:
    """A module in use: instance, and where its storage lives (`net.fc1`).

    An empty path: it has no storage (a type used as a value). `cast`: its `real` leaves are read
    as this dtype (`cast(net, bf16)`); `inst.real` is that dtype then.
    """

    inst: Instance
    path: str
    name: str = ""
    cast: DType | None = None

    def sub(self, inst: Instance, path: str, name: str) -> Module:
        """A sub-module, seen through the same cast."""
        seen = inst if self.cast is None else replace(inst, real=self.cast)
        return Module(seen, path, name, self.cast)


@dataclass(frozen=True, eq=False)
class ModuleList:
    items: tuple[Module, ...] | None
    like: Module | None


@dataclass(frozen=True, eq=False)
class Tree:
    """Values under leaf keys; `of` is the instance whose params they mirror."""

    leaves: dict[str, Value]
    of: Instance | TreeParam | None


@dataclass(frozen=True, eq=False)
class View:
    """A part of a stored tensor, `kv[l]`: its shape, and the whole's index for an index of it."""

    shape: tuple[Dim, ...]
    at: Callable[[tuple[Expr, ...]], tuple[Expr, ...]]
    origins: Origins = ()

    def apart(self, other: View) -> bool:
        """Whether two views of one tensor surely share no element: some fixed indices differ."""
        pairs = zip(self._fixed(), other._fixed(), strict=True)
        return any(x is not None and y is not None and x != y for x, y in pairs)

    def _fixed(self) -> list[int | None]:
        index = self.at(tuple(Idx(Dim.of(f"$?{k}")) for k in range(len(self.shape))))
        return [index_number(e) for e in index]


@dataclass(frozen=True, eq=False)
class Stored:
    """A name of storage (an `inout` tensor, a state, a part of one): means its last version."""

    key: str
    view: View | None = None


@dataclass(frozen=True, eq=False)
class Unknown:
    """After a mistake, or not decidable generically: absorbs everything silently."""


Value = (
    Tensor
    | Weak
    | Bool
    | Text
    | Nothing
    | WeakTensor
    | Tuple
    | Seq
    | Pack
    | AxisRef
    | Function
    | Builtin
    | ModuleType
    | UnitRef
    | Module
    | ModuleList
    | Tree
    | Stored
    | Unknown
)

UNKNOWN = Unknown()


# ---- making values ----------------------------------------------------------------------------


def integer(dim: Dim | int) -> Weak:
    """A size or index as a number."""
    d = Dim.of(dim)
    return Weak("int", lambda dtype: cast(Idx(d), dtype), d, d.const)


def number(x: float | int) -> Weak:
    """A literal."""
    if isinstance(x, int) and not isinstance(x, bool):
        return integer(x)
    return Weak("float", lambda dtype: Const(dtype, float(x)), None, float(x))


def of_node(node: Node, letters: Sequence[str] = (), origins: Origins = ()) -> Tensor:
    """A Graph value as a tensor."""

    def at(index: tuple[Expr, ...]) -> Expr:
        return Load(node.type.dtype, node, index)

    return Tensor(node.type, at, node, tuple(letters), origins)


def scalar(e: Expr) -> Tensor:
    """A rank-0 tensor inside index notation."""
    return Tensor(TensorType(e.dtype), lambda index: e)


def weak_op(fn: str, *args: Weak, kind: str) -> Weak:
    """A scalar function of weak numbers, still weak."""
    return Weak(kind, lambda dtype: Op(dtype, fn, tuple(a.make(dtype) for a in args)))


def named(value: Tensor, letters: tuple[str, ...]) -> Tensor:
    return replace(value, letters=letters)


@dataclass(frozen=True)
class Operand:
    """A value with its place in the text."""

    value: Value
    span: Span
