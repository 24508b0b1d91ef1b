"""The syntax tree: what the text says, nothing more. Every node has its span."""

from __future__ import annotations

from dataclasses import dataclass

from nnc.diagnostics import Source, Span


@dataclass(frozen=True, eq=False, kw_only=True)
class Syntax:
    span: Span


# ---- expressions ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Name(Syntax):
    id: str


@dataclass(frozen=True, eq=False)
class Num(Syntax):
    value: int | float  # int for `3`, float for `3.0` and `1e-5`


@dataclass(frozen=True, eq=False)
class Str(Syntax):
    value: str


@dataclass(frozen=True, eq=False)
class Bool(Syntax):
    value: bool  # `true`, `false`


@dataclass(frozen=True, eq=False)
class NoneLit(Syntax):
    """`None`, a literal-1 axis in an index list."""


@dataclass(frozen=True, eq=False)
class Unary(Syntax):
    op: str  # "-" "+" "not"
    operand: Expr


@dataclass(frozen=True, eq=False)
class Binary(Syntax):
    op: str  # + - * / // % @ ** and or
    left: Expr
    right: Expr
    op_span: Span


@dataclass(frozen=True, eq=False)
class Compare(Syntax):
    """`first op1 e1 op2 e2 ...`, chained as in Python."""

    first: Expr
    rest: tuple[tuple[str, Expr], ...]


@dataclass(frozen=True, eq=False)
class IfExpr(Syntax):
    cond: Expr
    then: Expr
    orelse: Expr


@dataclass(frozen=True, eq=False)
class Arg(Syntax):
    """A call argument or a named argument (`over=T`)."""

    name: str | None
    value: Expr
    name_span: Span | None = None


@dataclass(frozen=True, eq=False)
class Call(Syntax):
    """`f(a, k=v)`, or `f!(...)` when `bang`. `bang_span` covers `!`."""

    func: Expr
    args: tuple[Arg, ...]
    bang: bool = False


@dataclass(frozen=True, eq=False)
class Slice(Syntax):
    """`a:b` inside brackets; on a left side or in a reduction `i:N` is a binder with a range."""

    lower: Expr | None
    upper: Expr | None


@dataclass(frozen=True, eq=False)
class Rest(Syntax):
    """`..n` / `..N`; a bare `...` has the name `...`."""

    name: str


@dataclass(frozen=True, eq=False)
class Index(Syntax):
    """`value[items]`, with `else orelse` inside the brackets.

    Items: Expr, Slice, Rest, NoneLit, and Tuple for an axis made of several.
    """

    value: Expr
    items: tuple[Expr, ...]
    orelse: Expr | None = None


@dataclass(frozen=True, eq=False)
class Attr(Syntax):
    value: Expr
    name: str
    name_span: Span


@dataclass(frozen=True, eq=False)
class Tuple(Syntax):
    """`(a, b)`; in an index position a merged axis whose items may be Slice digits (`k:4`)."""

    items: tuple[Expr, ...]


@dataclass(frozen=True, eq=False)
class ListLit(Syntax):
    items: tuple[Expr, ...]


@dataclass(frozen=True, eq=False)
class ListComp(Syntax):
    """`[element for var in iterable]`."""

    element: Expr
    var: str
    var_span: Span
    iterable: Expr


Expr = (
    Name
    | Num
    | Str
    | Bool
    | NoneLit
    | Unary
    | Binary
    | Compare
    | IfExpr
    | Call
    | Slice
    | Rest
    | Index
    | Attr
    | Tuple
    | ListLit
    | ListComp
)


# ---- types ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TensorTypeExpr(Syntax):
    """`real[B, T, ..N]` (dims: Expr or Rest), or a bare word.

    Bare words are dtypes, `dim`, `tree`, `axis` and modules, also `gpt2.GPT2`.
    """

    name: str
    dims: tuple[Expr, ...] | None  # None: no brackets
    name_span: Span


@dataclass(frozen=True, eq=False)
class AppliedTypeExpr(Syntax):
    """`SGD(MLP)`, `params(M)`, `AdamW(Flowers.head)`."""

    name: str
    args: tuple[Arg, ...]
    name_span: Span


@dataclass(frozen=True, eq=False)
class TupleTypeExpr(Syntax):
    items: tuple[TypeExpr, ...]


TypeExpr = TensorTypeExpr | AppliedTypeExpr | TupleTypeExpr


# ---- statements -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Assign(Syntax):
    """`targets = values`; an index statement when a target is an Index."""

    targets: tuple[Expr, ...]
    values: tuple[Expr, ...]


@dataclass(frozen=True, eq=False)
class Update(Syntax):
    """`targets := values`."""

    targets: tuple[Expr, ...]
    values: tuple[Expr, ...]


@dataclass(frozen=True, eq=False)
class For(Syntax):
    """`for vars in iterable: body`; `targets = for ...` with `yield` when targets is not empty."""

    vars: tuple[str, ...]
    iterable: Expr
    body: tuple[Stmt, ...]
    targets: tuple[Expr, ...] = ()


@dataclass(frozen=True, eq=False)
class While(Syntax):
    cond: Expr
    limit: Expr | None
    body: tuple[Stmt, ...]


@dataclass(frozen=True, eq=False)
class If(Syntax):
    """`elif` is an If alone in `orelse`."""

    cond: Expr
    then: tuple[Stmt, ...]
    orelse: tuple[Stmt, ...]


@dataclass(frozen=True, eq=False)
class Return(Syntax):
    values: tuple[Expr, ...]


@dataclass(frozen=True, eq=False)
class Yield(Syntax):
    values: tuple[Expr, ...]


@dataclass(frozen=True, eq=False)
class Assert(Syntax):
    cond: Expr
    message: str | None


@dataclass(frozen=True, eq=False)
class Probe(Syntax):
    names: tuple[Name, ...]


@dataclass(frozen=True, eq=False)
class ExprStmt(Syntax):
    value: Expr


@dataclass(frozen=True, eq=False)
class Pass(Syntax):
    pass


Stmt = Assign | Update | For | While | If | Return | Yield | Assert | Probe | ExprStmt | Pass


# ---- declarations -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Param(Syntax):
    """A function argument: `inout x: T = default`. `type` is None only in module parameters."""

    name: str
    type: TypeExpr | None
    default: Expr | None
    inout: bool
    name_span: Span


@dataclass(frozen=True, eq=False)
class FuncDef(Syntax):
    """`def` inside or outside a module. `def f(x) -> T = e` has one Return in `body`.

    `where` items are Compare (a constraint) or WhereDef. The span runs to the end of the body. A
    Return that was written `= e` has the span of its value.
    """

    name: str
    params: tuple[Param, ...]
    returns: TypeExpr | None
    where: tuple[Expr | WhereDef, ...]
    body: tuple[Stmt, ...]
    exported: bool
    doc: str | None
    name_span: Span


@dataclass(frozen=True, eq=False)
class WhereDef(Syntax):
    name: str
    value: Expr


@dataclass(frozen=True, eq=False)
class ParamDecl(Syntax):
    """`param name: type = init as "key" when cond`."""

    name: str
    type: TypeExpr
    init: Expr | None
    key: str | None
    when: Expr | None
    name_span: Span


@dataclass(frozen=True, eq=False)
class StateDecl(Syntax):
    name: str
    type: TypeExpr
    init: Expr | None
    key: str | None
    name_span: Span


@dataclass(frozen=True, eq=False)
class DictLit(Syntax):
    """`{"norm": "bn"}`, only as an argument of `weights(...)`."""

    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False)
class WeightsArg(Syntax):
    name: str | None
    value: Expr | DictLit
    name_span: Span | None = None


@dataclass(frozen=True, eq=False)
class Weights(Syntax):
    """`weights("slot", rename={...}, skip=[...])`."""

    slot: str
    args: tuple[WeightsArg, ...]


@dataclass(frozen=True, eq=False)
class MemberDecl(Syntax):
    """`name = M(...)`, a list of modules, or a static value."""

    name: str
    value: Expr
    weights: Weights | None
    name_span: Span


Member = ParamDecl | StateDecl | MemberDecl | Assert | FuncDef


@dataclass(frozen=True, eq=False)
class ModuleDef(Syntax):
    name: str
    params: tuple[Param, ...]
    members: tuple[Member, ...]
    doc: str | None
    name_span: Span


@dataclass(frozen=True, eq=False)
class ConstDef(Syntax):
    name: str
    type: TypeExpr | None
    value: Expr
    name_span: Span


@dataclass(frozen=True, eq=False)
class Import(Syntax):
    """`from a.b import X, Y` (names), or `import a.b as c` (names empty)."""

    module: str
    names: tuple[Name, ...]
    alias: str | None
    module_span: Span


@dataclass(frozen=True, eq=False)
class Edition(Syntax):
    number: int


@dataclass(frozen=True, eq=False)
class ExternDef(FuncDef):
    """`extern "symbol" def f(...) -> T`: a function without a body."""

    symbol: str


@dataclass(frozen=True, eq=False)
class AdjointDef(Syntax):
    """`adjoint f(inputs; outputs, doutputs): body`; `meant`: of `test "..."` before the colon, why
    it is meant to be another derivative than that of f."""

    name: str
    inputs: tuple[Name, ...]
    outputs: tuple[Name, ...]  # outputs and their cotangents, in order
    meant: str | None
    body: tuple[Stmt, ...]
    name_span: Span


@dataclass(frozen=True, eq=False)
class TestDef(Syntax):
    title: str
    body: tuple[Stmt, ...]


@dataclass(frozen=True, eq=False)
class Specialize(Syntax):
    name: str
    args: tuple[Arg, ...]
    name_span: Span


Decl = (
    ModuleDef
    | FuncDef
    | ConstDef
    | Import
    | Edition
    | ExternDef
    | AdjointDef
    | TestDef
    | Specialize
)


@dataclass(frozen=True, eq=False)
class File(Syntax):
    source: Source
    decls: tuple[Decl, ...]
    doc: str | None
