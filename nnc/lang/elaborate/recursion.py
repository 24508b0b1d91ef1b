"""What the text alone shows: functions that call themselves, parameters with one name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nnc.diagnostics import Diagnostic, Label, Span
from nnc.lang import ast
from nnc.lang.elaborate.walks import syntax
from nnc.lang.units import Unit


def recursive_functions(unit: Unit) -> Iterator[tuple[list[ast.FuncDef], Diagnostic]]:
    """Each cycle of calls among the functions of a file, or of one module, with its message."""
    functions = {n: d for n, d in unit.defs.items() if isinstance(d, ast.FuncDef)}
    yield from _cycles(functions)
    for module in unit.defs.values():
        if isinstance(module, ast.ModuleDef):
            yield from _cycles({m.name: m for m in module.members if isinstance(m, ast.FuncDef)})


def _cycles(
    functions: Mapping[str, ast.FuncDef],
) -> Iterator[tuple[list[ast.FuncDef], Diagnostic]]:
    calls = {name: _calls(f, functions) for name, f in functions.items()}
    done: set[str] = set()
    for start in functions:
        path: list[str] = []
        stack: list[tuple[str, Iterator[tuple[str, Span]]]] = []
        if start not in done:
            path, stack = [start], [(start, iter(calls[start]))]
        while stack:
            name, rest = stack[-1]
            found = next(rest, None)
            if found is None:
                stack.pop()
                path.pop()
                done.add(name)
            elif found[0] in path:
                cycle = path[path.index(found[0]) :]
                yield [functions[n] for n in cycle], _recursive([*cycle, found[0]], found[1])
            elif found[0] not in done:
                path.append(found[0])
                stack.append((found[0], iter(calls[found[0]])))


def _calls(func: ast.FuncDef, functions: Mapping[str, ast.FuncDef]) -> list[tuple[str, Span]]:
    """The functions of the same scope that `func` calls by name, with the first place."""
    own = {p.name for p in func.params}
    out: dict[str, Span] = {}
    for node in syntax(func.body):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in functions and name not in own:
                out.setdefault(name, node.span)
    return list(out.items())


def _recursive(names: list[str], span: Span) -> Diagnostic:
    text = f"`{names[0]}` calls itself"
    notes = (" calls ".join(names),) if len(names) > 2 else ()
    help = "there is no recursion; `for` and lists of modules repeat"
    return Diagnostic("E0809", text, span, notes=notes, help=help)


def doubled_names(unit: Unit) -> Iterator[Diagnostic]:
    """Parameters of one definition that have the same name."""
    for node in syntax(unit.file.decls):
        if isinstance(node, ast.FuncDef | ast.ModuleDef | ast.ExternDef):
            seen: dict[str, ast.Param] = {}
            for p in node.params:
                first = seen.setdefault(p.name, p)
                if first is not p:
                    label = (Label(first.name_span, "the first"),)
                    text = f"two parameters of `{node.name}` are called `{p.name}`"
                    yield Diagnostic("E0807", text, p.name_span, labels=label)
