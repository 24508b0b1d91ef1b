"""The syntax tree as canonical source text: `parse(print_file(parse(x)))` prints the same again.

Printing keeps a stack of pieces still to be written, so no tree is too deep or too long for it.
Brackets appear where the precedences of nnc/grammar.lark need them; comments are not in the tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nnc.lang import ast

# A piece is a text, or a node with the least precedence it may have without brackets (an
# expression) or with its depth of indentation (a statement or declaration).
Piece = str | tuple[ast.Syntax, int]

_CHOICE, _OR, _AND, _NOT, _COMPARE, _SUM, _TERM, _FACTOR, _POWER, _POSTFIX, _ATOM = range(11)
_BINARY = {
    "or": _OR, "and": _AND, "+": _SUM, "-": _SUM, "*": _TERM, "/": _TERM, "//": _TERM, "%": _TERM,
    "@": _TERM, "**": _POWER,
}  # fmt: skip


def print_file(file: ast.File) -> str:
    """The file as canonical text, ending with a line break."""
    first, rest = file.decls[:1], file.decls[1:]
    if not first or not isinstance(first[0], ast.Edition):
        first, rest = (), file.decls
    pieces: list[Piece] = [(decl, 0) for decl in first]
    pieces += [f'"{file.doc}"\n'] if file.doc is not None else []
    for decl in rest:
        if pieces and not (isinstance(decl, ast.Import) and decl is not rest[0]):
            pieces.append("\n")
        pieces.append((decl, 0))
    return _write(pieces)


def print_expr(expr: ast.Expr) -> str:
    """One expression on one line."""
    return _write([(expr, _CHOICE)])


def _write(pieces: list[Piece]) -> str:
    out: list[str] = []
    stack = pieces[::-1]
    while stack:
        piece = stack.pop()
        if isinstance(piece, str):
            out.append(piece)
        else:
            stack.extend(reversed(_expand(*piece)))
    return "".join(out)


def _expand(node: ast.Syntax, context: int) -> list[Piece]:
    """The pieces of a node: its own words, and its parts."""
    if isinstance(node, _LINES):
        return _line(node, context)
    if isinstance(node, ast.TensorTypeExpr | ast.AppliedTypeExpr | ast.TupleTypeExpr):
        return _type(node)
    own, pieces = _expression(node)
    return pieces if own >= context else ["(", *pieces, ")"]


def _commas(pieces: Iterable[Sequence[Piece]]) -> list[Piece]:
    out: list[Piece] = []
    for group in pieces:
        out += [", ", *group] if out else group
    return out


def _exprs(nodes: Iterable[ast.Syntax]) -> list[Piece]:
    return _commas([(node, _CHOICE)] for node in nodes)


def _args(args: Iterable[ast.Arg | ast.WeightsArg]) -> list[Piece]:
    return _commas([f"{a.name}=" if a.name else "", (a.value, _CHOICE)] for a in args)


# ---- expressions and types --------------------------------------------------------------------


def _expression(node: ast.Syntax) -> tuple[int, list[Piece]]:
    """The precedence of an expression and its pieces."""
    match node:
        case ast.Name(id):
            return _ATOM, [id]
        case ast.Num(value):
            return _ATOM, [repr(value)]
        case ast.Str(value):
            return _ATOM, [f'"{value}"']
        case ast.Bool(value):
            return _ATOM, ["true" if value else "false"]
        case ast.NoneLit():
            return _ATOM, ["None"]
        case ast.Rest(name):
            return _ATOM, [name if name == "..." else f"..{name}"]
        case ast.Tuple(items):
            return _ATOM, ["(", *_exprs(items), ")"]
        case ast.ListLit(items):
            return _ATOM, ["[", *_exprs(items), "]"]
        case ast.ListComp(element, var, iterable=iterable):
            return _ATOM, ["[", (element, 0), f" for {var} in ", (iterable, 0), "]"]
        case ast.DictLit(pairs):
            return _ATOM, ["{", ", ".join(f'"{k}": "{v}"' for k, v in pairs), "}"]
        case ast.Slice(lower, upper):
            return _ATOM, [
                *_exprs([lower] if lower else []),
                ":",
                *_exprs([upper] if upper else []),
            ]
        case _:
            return _operation(node)


def _operation(node: ast.Syntax) -> tuple[int, list[Piece]]:
    match node:
        case ast.IfExpr(cond, then, orelse):
            return _CHOICE, [(then, _OR), " if ", (cond, _OR), " else ", (orelse, _CHOICE)]
        case ast.Unary("not", operand):
            return _NOT, ["not ", (operand, _NOT)]
        case ast.Unary(op, operand):
            return _FACTOR, [op, (operand, _FACTOR)]
        case ast.Binary("**", left, right):
            return _POWER, [(left, _POSTFIX), "**", (right, _FACTOR)]
        case ast.Binary(op, left, right):
            level = _BINARY[op]
            return level, [(left, level), f" {op} ", (right, level + 1)]
        case ast.Compare(first, rest):
            tail: list[Piece] = []
            for op, operand in rest:
                tail += [f" {op} ", (operand, _SUM)]
            return _COMPARE, [(first, _SUM), *tail]
        case ast.Call(func, args, bang):
            return _POSTFIX, [(func, _POSTFIX), "!(" if bang else "(", *_args(args), ")"]
        case ast.Index(value, items, orelse):
            otherwise: list[Piece] = [" else ", (orelse, _CHOICE)] if orelse else []
            return _POSTFIX, [(value, _POSTFIX), "[", *_exprs(items), *otherwise, "]"]
        case ast.Attr(ast.Num() as value, name):
            return _POSTFIX, ["(", (value, _ATOM), f").{name}"]
        case ast.Attr(value, name):
            return _POSTFIX, [(value, _POSTFIX), f".{name}"]
    raise AssertionError(f"no expression: {node}")


def _type(node: ast.TypeExpr) -> list[Piece]:
    match node:
        case ast.TensorTypeExpr(name, None):
            return [name]
        case ast.TensorTypeExpr(name, dims):
            return [f"{name}[", *_exprs(dims or ()), "]"]
        case ast.AppliedTypeExpr(name, args):
            return [f"{name}(", *_args(args), ")"]
        case ast.TupleTypeExpr(items):
            return ["(", *_exprs(items), ")"]


# ---- lines ------------------------------------------------------------------------------------


def _block(lines: Iterable[ast.Syntax], level: int) -> list[Piece]:
    return [":\n", *((line, level + 1) for line in lines)]


def _line(node: ast.Syntax, level: int) -> list[Piece]:
    """A statement, member or declaration with its indentation and its blocks.

    A negative level is the complement of the real one: an `if` that follows `el` on its line.
    """
    indent, level = "    " * level, max(level, ~level)
    for write in (_statement, _control, _member, _declaration):
        pieces = write(node, level)
        if pieces is not None:
            return [indent, *pieces]
    raise AssertionError(f"no line: {node}")


def _statement(node: ast.Syntax, level: int) -> list[Piece] | None:
    match node:
        case ast.Assign(targets, values):
            return [*_exprs(targets), " = ", *_exprs(values), "\n"]
        case ast.Update(targets, values):
            return [*_exprs(targets), " := ", *_exprs(values), "\n"]
        case ast.Return(values):
            return ["return", " " if values else "", *_exprs(values), "\n"]
        case ast.Yield(values):
            return ["yield ", *_exprs(values), "\n"]
        case ast.Assert(cond, message):
            return ["assert ", (cond, 0), "\n" if message is None else f', "{message}"\n']
        case ast.Probe(names):
            return ["probe ", *_exprs(names), "\n"]
        case ast.ExprStmt(value):
            return [(value, 0), "\n"]
        case ast.Pass():
            return ["pass\n"]
    return None


def _control(node: ast.Syntax, level: int) -> list[Piece] | None:
    match node:
        case ast.For(vars, iterable, body, targets):
            collect: list[Piece] = [*_exprs(targets), " = "] if targets else []
            return [*collect, f"for {', '.join(vars)} in ", (iterable, 0), *_block(body, level)]
        case ast.While(cond, limit, body):
            bound: list[Piece] = [" limit ", (limit, 0)] if limit else []
            return ["while ", (cond, 0), *bound, *_block(body, level)]
        case ast.If(cond, then, orelse):
            head: list[Piece] = ["if ", (cond, 0), *_block(then, level)]
            if len(orelse) == 1 and isinstance(orelse[0], ast.If):
                return [*head, "    " * level, "el", (orelse[0], ~level)]
            tail: list[Piece] = ["    " * level, "else", *_block(orelse, level)] if orelse else []
            return head + tail
    return None


def _member(node: ast.Syntax, level: int) -> list[Piece] | None:
    match node:
        case ast.ParamDecl(name, type, init, key, when):
            cond: list[Piece] = [" when ", (when, 0)] if when else []
            return [f"param {name}: ", (type, 0), *_default(init), _key(key), *cond, "\n"]
        case ast.StateDecl(name, type, init, key):
            return [f"state {name}: ", (type, 0), *_default(init), _key(key), "\n"]
        case ast.MemberDecl(name, value, weights):
            load: list[Piece] = []
            if weights:
                rest = [", ", *_args(weights.args)] if weights.args else []
                load = [f' from weights("{weights.slot}"', *rest, ")"]
            return [f"{name} = ", (value, 0), *load, "\n"]
    return None


def _default(value: ast.Expr | None) -> list[Piece]:
    return [" = ", (value, 0)] if value else []


def _key(key: str | None) -> str:
    return f' as "{key}"' if key is not None else ""


def _declaration(node: ast.Syntax, level: int) -> list[Piece] | None:
    match node:
        case ast.ExternDef(symbol=symbol, name=name, params=params, returns=returns, where=where):
            assert returns is not None
            head = f'extern "{symbol}" def {name}('
            return [head, *_params(params), ") -> ", (returns, 0), *_where(where), "\n"]
        case ast.FuncDef():
            return _function(node, level)
        case ast.ModuleDef(name, params, members, doc):
            head = f"module {name}"
            listed: list[Piece] = ["(", *_params(params), ")"] if params else []
            empty: list[Piece] = [] if members or doc is not None else ["    pass\n"]
            return [head, *listed, ":\n", *_doc(doc, level), *empty, *_members(members, level)]
        case ast.ConstDef(name, type, value):
            typed: list[Piece] = [": ", (type, 0)] if type else []
            return [f"const {name}", *typed, *_default(value), "\n"]
        case ast.AdjointDef(name, inputs, outputs, meant, body):
            names = [", ".join(n.id for n in group) for group in (inputs, outputs)]
            mark = f' test "{meant}"' if meant is not None else ""
            return [f"adjoint {name}({names[0]}; {names[1]}){mark}", *_block(body, level)]
        case ast.TestDef(title, body):
            return [f'test "{title}"', *_block(body, level)]
        case ast.Specialize(name, args):
            return [f"specialize {name}(", *_args(args), ")\n"]
        case ast.Import(module, (), alias):
            return [f"import {module} as {alias}\n" if alias else f"import {module}\n"]
        case ast.Import(module, names):
            return [f"from {module} import {', '.join(n.id for n in names)}\n"]
        case ast.Edition(number):
            return [f"edition {number}\n"]
    return None


def _members(members: tuple[ast.Member, ...], level: int) -> list[Piece]:
    out: list[Piece] = []
    for member in members:
        if isinstance(member, ast.FuncDef) and member is not members[0]:
            out.append("\n")
        out.append((member, level + 1))
    return out


def _function(node: ast.FuncDef, level: int) -> list[Piece]:
    export = "export " if node.exported else ""
    result: list[Piece] = [" -> ", (node.returns, 0)] if node.returns else []
    params = _params(node.params)
    head = [f"{export}def {node.name}(", *params, ")", *result, *_where(node.where)]
    match node.body:
        case (ast.Return((value,), span=span),) if span == value.span:
            return [*head, " = ", (value, 0), "\n"]  # it was written `= e`
    return [*head, ":\n", *_doc(node.doc, level), *((line, level + 1) for line in node.body)]


def _doc(doc: str | None, level: int) -> list[Piece]:
    return [] if doc is None else ["    " * (level + 1), f'"{doc}"\n']


def _params(params: Iterable[ast.Param]) -> list[Piece]:
    return _commas(_param(p) for p in params)


def _param(param: ast.Param) -> list[Piece]:
    typed: list[Piece] = [": ", (param.type, 0)] if param.type else []
    gap = " = " if param.type else "="
    default: list[Piece] = [gap, (param.default, 0)] if param.default else []
    return ["inout " if param.inout else "", param.name, *typed, *default]


def _where(where: Sequence[ast.Expr | ast.WhereDef]) -> list[Piece]:
    if not where:
        return []
    return [" where ", *_commas(_clause(clause) for clause in where)]


def _clause(clause: ast.Expr | ast.WhereDef) -> list[Piece]:
    if isinstance(clause, ast.WhereDef):
        return [f"{clause.name} = ", (clause.value, 0)]
    return [(clause, 0)]


_LINES = (
    ast.Assign, ast.Update, ast.Return, ast.Yield, ast.Assert, ast.Probe, ast.ExprStmt, ast.Pass,
    ast.For, ast.While, ast.If, ast.ParamDecl, ast.StateDecl, ast.MemberDecl, ast.FuncDef,
    ast.ModuleDef, ast.ConstDef, ast.ExternDef, ast.AdjointDef, ast.TestDef, ast.Specialize,
    ast.Import, ast.Edition,
)  # fmt: skip
