"""The LALR callbacks: what each rule of nnc/grammar.lark becomes in the syntax tree.

A callback gets the span of its rule and the rule's children: tokens that carry a text of their
own (`KEPT`), finished nodes, and `Group`s of them; brackets, commas and keywords are dropped. A
callback that refuses what the grammar let through raises `Fault`; only those that complete before
the end of their line may, since the parser goes back by lines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from nnc.diagnostics import Diagnostic, Span
from nnc.lang import ast
from nnc.lang.layout import Token, words
from nnc.lang.stop import reserved_word

KEPT = words("NAME NUMBER STRING PM MD POW CMP AND OR NOT EXPORT INOUT TRUE FALSE")
_LAYOUT = frozenset(("_NL", "_INDENT", "_DEDENT"))

Callback = Callable[[list[Any]], Any]
_callbacks: dict[str, Callback] = {}


class Fault(Exception):
    """The text parses but is no program; carries the message."""

    def __init__(self, diagnostic: Diagnostic) -> None:
        super().__init__(diagnostic.message)
        self.diagnostic = diagnostic


@dataclass(frozen=True, slots=True)
class Group:
    """Several children as one; `span` is None when the rule matched nothing."""

    items: tuple[Any, ...]
    span: Span | None


def callbacks() -> SimpleNamespace:
    """All callbacks under the names of their rules, as lark takes them."""
    return SimpleNamespace(**_callbacks)


def rule(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers `build(span, *children)` for rules, without the tokens that say nothing more."""

    def register(build: Callable[..., Any]) -> Callable[..., Any]:
        def callback(children: list[Any]) -> Any:
            kept = [c for c in children if type(c) is not Token or c.type in KEPT]
            return build(_span(children), *kept)

        for name in names:
            _callbacks[name] = callback
        return build

    return register


def raw(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers `build(span, children)` with every token."""

    def register(build: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            _callbacks[name] = lambda children: build(_span(children), children)
        return build

    return register


def _span(children: Sequence[Any]) -> Span | None:
    """From the first to the last child that has a place in the text."""
    first = next(filter(None, map(_place, children)), None)
    last = next(filter(None, map(_place, reversed(children))), None)
    return first if first is None or last is None or first is last else first.to(last)


def _place(child: Any) -> Span | None:
    if child is None or (type(child) is Token and child.type in _LAYOUT):
        return None
    span: Span | None = child.span
    return span


def fault(code: str, message: str, span: Span, text: str = "", help: str | None = None) -> Fault:
    return Fault(Diagnostic(code, message, span, text, help=help))


def _group(span: Span | None, *items: Any) -> Group:
    return Group(items, span)


def _optional(span: Span | None, *items: Any) -> Any:
    return items[0] if items else None


for _name in sorted(
    words("names params module_params dims exprs args items members dict start where")
):
    rule(_name)(_group)
for _name in sorted(words("annotation default returns key when otherwise alias meant")):
    rule(_name)(_optional)
_callbacks["member_pass"] = lambda children: None
_callbacks["member_assert"] = lambda children: children[0]


def _text(token: Token | None) -> str | None:
    """The inside of a string literal."""
    return None if token is None else token.text[1:-1]


# ---- declarations -----------------------------------------------------------------------------


@rule("edition")
def _edition(span: Span, number: Token) -> ast.Edition:
    return ast.Edition(int(number.text), span=span)


@rule("dotted")
def _dotted(span: Span, *parts: Token) -> ast.Name:
    return ast.Name(".".join(part.text for part in parts), span=span)


@rule("module_path")
def _module_path(span: Span, *parts: Token) -> ast.Name:
    module = ast.Name(".".join(part.text for part in parts), span=span)
    _no_python(module)
    return module


@rule("from_import")
def _from_import(span: Span, module: ast.Name, names: Group) -> ast.Import:
    return ast.Import(module.id, _names(names), None, module.span, span=span)


@rule("module_import")
def _module_import(span: Span, module: ast.Name, alias: Token | None) -> ast.Import:
    return ast.Import(module.id, (), alias.text if alias else None, module.span, span=span)


_PYTHON = words(
    """collections cupy flax functools haiku itertools jax jaxlib keras math matplotlib numpy os
    pandas random scipy sklearn sys tensorflow tinygrad torch torchvision typing"""
)


def _no_python(module: ast.Name) -> None:
    if module.id.split(".")[0] in _PYTHON:
        message = f"`{module.id}` is a Python package, and .nn programs import only .nn modules"
        help = "the library is `std`, for example `from std.nn import Linear, relu`"
        raise fault("E0116", message, module.span, help=help)


def _names(group: Group) -> tuple[ast.Name, ...]:
    return tuple(ast.Name(token.text, span=token.span) for token in group.items)


@rule("const")
def _const(span: Span, name: Token, type: Any, value: Any) -> ast.ConstDef:
    return ast.ConstDef(name.text, type, value, name.span, span=span)


@rule("specialize")
def _specialize(span: Span, name: Token, args: Group) -> ast.Specialize:
    return ast.Specialize(name.text, args.items, name.span, span=span)


@rule("extern")
def _extern(
    span: Span, symbol: Token, name: Token, params: Group, returns: Any, where: Group
) -> ast.ExternDef:
    parts = (name.text, params.items, returns, where.items, (), False, None, name.span)
    return ast.ExternDef(*parts, symbol.text[1:-1], span=span)


@rule("adjoint")
def _adjoint(
    span: Span, name: Token, inputs: Group, outputs: Group, meant: Token | None, body: Group
) -> ast.AdjointDef:
    ins, outs = _names(inputs), _names(outputs)
    return ast.AdjointDef(name.text, ins, outs, _text(meant), body.items, name.span, span=span)


@rule("test")
def _test(span: Span, title: Token, body: Group) -> ast.TestDef:
    return ast.TestDef(title.text[1:-1], body.items, span=span)


@rule("doc", "string")
def _string(span: Span, token: Token) -> ast.Str:
    return ast.Str(token.text[1:-1], span=span)


# ---- modules ----------------------------------------------------------------------------------


@rule("module")
def _module(span: Span, name: Token, params: Group, members: Group) -> ast.ModuleDef:
    kept = [m for m in members.items if m is not None]
    doc = kept.pop(0).value if kept and isinstance(kept[0], ast.Str) else None
    return ast.ModuleDef(name.text, params.items, tuple(kept), doc, name.span, span=span)


@rule("module_param")
def _module_param(span: Span, name: Token, type: Any, default: Any) -> ast.Param:
    return ast.Param(name.text, type, default, False, name.span, span=span)


@rule("param")
def _param(
    span: Span, name: Token, type: Any, init: Any, key: Token | None, when: Any
) -> ast.ParamDecl:
    return ast.ParamDecl(name.text, type, init, _text(key), when, name.span, span=span)


@rule("state")
def _state(span: Span, name: Token, type: Any, init: Any, key: Token | None) -> ast.StateDecl:
    return ast.StateDecl(name.text, type, init, _text(key), name.span, span=span)


@rule("let")
def _let(span: Span, name: Token, value: Any, weights: ast.Weights | None) -> ast.MemberDecl:
    return ast.MemberDecl(name.text, value, weights, name.span, span=span)


@rule("load")
def _load(
    span: Span | None,
    word: Token | None = None,
    slot: Token | None = None,
    *args: ast.WeightsArg,
) -> ast.Weights | None:
    if span is None or word is None or slot is None:
        return None
    if word.text != "weights":
        message = 'after `from` comes `weights("slot")`'
        raise fault("E0100", message, word.span, help='body = ResNet18() from weights("resnet18")')
    return ast.Weights(slot.text[1:-1], args, span=word.span.to(span))


@rule("load_arg")
def _load_arg(span: Span, *parts: Any) -> ast.WeightsArg:
    if len(parts) == 1:
        return ast.WeightsArg(None, parts[0], span=span)
    name, value = parts
    if isinstance(value, Group):
        assert value.span is not None
        value = ast.DictLit(tuple(item.items for item in value.items), span=value.span)
    return ast.WeightsArg(name.text, value, name.span, span=span)


@rule("dict_item")
def _dict_item(span: Span, key: Token, value: Token) -> Group:
    return Group((key.text[1:-1], value.text[1:-1]), span)


# ---- functions and types ----------------------------------------------------------------------


@rule("func")
def _func(span: Span, *parts: Any) -> ast.FuncDef:
    exported = parts[0].type == "EXPORT"
    name, params, returns, where, body = parts[1:] if exported else parts
    doc, stmts = _doc(body.items)
    return ast.FuncDef(
        name.text, params.items, returns, where.items, stmts, exported, doc, name.span, span=span
    )


def _doc(body: tuple[Any, ...]) -> tuple[str | None, tuple[Any, ...]]:
    if body and isinstance(body[0], ast.ExprStmt) and isinstance(body[0].value, ast.Str):
        return body[0].value.value, body[1:]
    return None, body


@rule("func_param")
def _func_param(span: Span, *parts: Any) -> ast.Param:
    inout = parts[0].type == "INOUT"
    name, type, default = parts[1:] if inout else parts
    return ast.Param(name.text, type, default, inout, name.span, span=span)


@rule("where_def")
def _where_def(span: Span, name: Token, value: Any) -> ast.WhereDef:
    return ast.WhereDef(name.text, value, span=span)


@rule("body")
def _body(span: Span, body: Any) -> Group:
    """A block, or `= e`: a Return with the span of its value."""
    if isinstance(body, Group):
        return body
    return Group((ast.Return((body,), span=body.span),), body.span)


@raw("tensor_type")
def _tensor_type(span: Span, children: list[Any]) -> ast.TensorTypeExpr:
    name, dims = children
    items = None if dims.span is None else dims.items
    return ast.TensorTypeExpr(name.id, items, name.span, span=span)


@rule("applied_type")
def _applied_type(span: Span, name: ast.Name, args: Group) -> ast.AppliedTypeExpr:
    return ast.AppliedTypeExpr(name.id, args.items, name.span, span=span)


@rule("tuple_type")
def _tuple_type(span: Span, *items: Any) -> ast.TupleTypeExpr:
    return ast.TupleTypeExpr(items, span=span)


# ---- statements -------------------------------------------------------------------------------

rule("block")(_group)


@rule("assign")
def _assign(span: Span, targets: Group, values: Group) -> ast.Assign:
    _check_targets(targets, (ast.Name, ast.Index), "`=`")
    return ast.Assign(targets.items, values.items, span=span)


@rule("update")
def _update(span: Span, targets: Group, values: Group) -> ast.Update:
    _check_targets(targets, (ast.Name, ast.Index, ast.Attr), "`:=`")
    return ast.Update(targets.items, values.items, span=span)


def _check_targets(targets: Group, kinds: tuple[type, ...], sign: str) -> None:
    for target in targets.items:
        if isinstance(target, kinds):
            continue
        if isinstance(target, ast.Bool | ast.NoneLit):
            raise Fault(reserved_word(target.span.text, target.span))
        if isinstance(target, ast.Attr):
            advice = "storage is written with `:=`, and only in an `inout` argument or a state"
            raise fault("E0122", "`=` cannot write to a member", target.span, help=advice)
        wanted = "a name or `name[indices]`"
        unpacked = "several targets stand without brackets: `a, b = f(x)`"
        if len(targets.items) > 1:
            unpacked = "take it apart in the next line: `p, q = f(x)`, then `a, b = p`"
        help = unpacked if isinstance(target, ast.Tuple) else None
        raise fault("E0122", f"{wanted} stands left of {sign}", target.span, help=help)


@rule("return")
def _return(span: Span, values: Group | None = None) -> ast.Return:
    return ast.Return(values.items if values else (), span=span)


@rule("yield")
def _yield(span: Span, values: Group) -> ast.Yield:
    return ast.Yield(values.items, span=span)


@rule("assert")
def _assert(span: Span, cond: Any, message: Token | None = None) -> ast.Assert:
    return ast.Assert(cond, _text(message), span=span)


@rule("probe")
def _probe(span: Span, names: Group) -> ast.Probe:
    return ast.Probe(_names(names), span=span)


@rule("expr_stmt")
def _expr_stmt(span: Span, value: Any) -> ast.ExprStmt:
    return ast.ExprStmt(value, span=span)


@rule("pass")
def _pass(span: Span) -> ast.Pass:
    return ast.Pass(span=span)


@rule("for_targets")
def _for_targets(span: Span, targets: Group) -> Group:
    _check_targets(targets, (ast.Name,), "`= for`")
    return targets


@rule("for_yield")
def _for_yield(span: Span, targets: Group, names: Group, over: Any, body: Group) -> ast.For:
    return ast.For(_ids(names), over, body.items, targets.items, span=span)


@rule("for")
def _for(span: Span, names: Group, over: Any, body: Group) -> ast.For:
    return ast.For(_ids(names), over, body.items, span=span)


def _ids(names: Group) -> tuple[str, ...]:
    return tuple(token.text for token in names.items)


@rule("while")
def _while(span: Span, cond: Any, limit: Any, body: Group) -> ast.While:
    return ast.While(cond, limit, body.items, span=span)


@rule("limit")
def _limit(span: Span | None, word: Token | None = None, value: Any = None) -> Any:
    if word is not None and word.text != "limit":
        message = f"expected `limit` or `:` here, found `{word.text}`"
        raise fault("E0100", message, word.span, help="while err > tol limit 100:")
    return value


@rule("if")
def _if(span: Span, cond: Any, then: Group, *rest: Any) -> ast.If:
    *elifs, orelse = rest
    tail: tuple[Any, ...] = orelse.items
    for arm in reversed(elifs):
        tail = (ast.If(arm.items[0], arm.items[1].items, tail, span=arm.span),)
    return ast.If(cond, then.items, tail, span=span)


rule("elif")(_group)


@rule("else")
def _else(span: Span | None, block: Group | None = None) -> Group:
    return Group(block.items if block else (), span)


# ---- expressions ------------------------------------------------------------------------------


@rule("if_expr")
def _if_expr(span: Span, then: Any, cond: Any, orelse: Any) -> ast.IfExpr:
    return ast.IfExpr(cond, then, orelse, span=span)


@rule("binary")
def _binary(span: Span, left: Any, op: Token, right: Any) -> ast.Binary:
    return ast.Binary(op.text, left, right, op.span, span=span)


@rule("unary")
def _unary(span: Span, op: Token, operand: Any) -> ast.Unary:
    return ast.Unary(op.text, operand, span=span)


@rule("compare")
def _compare(span: Span, first: Any, *rest: Any) -> ast.Compare:
    pairs = tuple((rest[i].text, rest[i + 1]) for i in range(0, len(rest), 2))
    return ast.Compare(first, pairs, span=span)


@rule("call")
def _call(span: Span, func: Any, args: Group) -> ast.Call:
    return ast.Call(func, args.items, span=span)


@rule("bang")
def _bang(span: Span, func: Any, args: Group) -> ast.Call:
    return ast.Call(func, args.items, True, span=span)


@rule("arg")
def _arg(span: Span, value: Any) -> ast.Arg:
    return ast.Arg(None, value, span=span)


@rule("kwarg")
def _kwarg(span: Span, name: Token, value: Any) -> ast.Arg:
    return ast.Arg(name.text, value, name.span, span=span)


@rule("index")
def _index(span: Span, value: Any, items: Group, orelse: Any) -> ast.Index:
    return ast.Index(value, items.items, orelse, span=span)


@raw("slice")
def _slice(span: Span, children: list[Any]) -> ast.Slice:
    at = next(i for i, c in enumerate(children) if type(c) is Token and c.type == "COLON")
    lower = children[0] if at else None
    upper = children[at + 1] if at + 1 < len(children) else None
    return ast.Slice(lower, upper, span=span)


@rule("digit")
def _digit(span: Span, lower: Any, upper: Any) -> ast.Slice:
    return ast.Slice(lower, upper, span=span)


@raw("rest")
def _rest(span: Span, children: list[Any]) -> ast.Rest:
    return ast.Rest(children[-1].text, span=span)


@rule("attr")
def _attr(span: Span, value: Any, name: Token) -> ast.Attr:
    return ast.Attr(value, name.text, name.span, span=span)


@raw("name")
def _name_of(span: Span, children: list[Any]) -> ast.Name:
    return ast.Name(children[0].text, span=span)


@rule("number")
def _number(span: Span, token: Token) -> ast.Num:
    text = token.text.replace("_", "")
    return ast.Num(int(text) if text.isdigit() else float(text), span=span)


@rule("bool")
def _bool(span: Span, token: Token) -> ast.Bool:
    return ast.Bool(token.type == "TRUE", span=span)


@rule("none")
def _none(span: Span) -> ast.NoneLit:
    return ast.NoneLit(span=span)


@raw("paren")
def _paren(span: Span, children: list[Any]) -> Any:
    """`(e)` groups: the expression itself, its span widened to the brackets."""
    items = tuple(c for c in children if type(c) is not Token)
    if len(items) > 1:
        return ast.Tuple(items, span=span)
    if isinstance(items[0], ast.Slice) or len(children) > 3:
        message = "a tuple has at least two parts"
        raise fault("E0127", message, span, help="`(e)` only groups; without brackets it is one")
    return replace(items[0], span=span)


@rule("list")
def _list(span: Span, *items: Any) -> ast.ListLit:
    return ast.ListLit(items, span=span)


@rule("list_comp")
def _list_comp(span: Span, element: Any, var: Token, iterable: Any) -> ast.ListComp:
    return ast.ListComp(element, var.text, var.span, iterable, span=span)
