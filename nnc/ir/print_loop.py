"""The text form of a Program: buffers, steps, loop nests; stable, for dumps and goldens."""

from __future__ import annotations

from nnc.ir.expr import Expr
from nnc.ir.graph import Axis
from nnc.ir.loop import (
    Buffer,
    Call,
    Commit,
    Contract,
    For,
    Kernel,
    Let,
    Program,
    Reduce,
    Repeat,
    Step,
    Stmt,
    Store,
)
from nnc.ir.printer import place, plain_name, print_dim, print_expr, sign_of, texts
from nnc.lang.dims import Dim


def print_program(program: Program) -> str:
    """One exported function as text."""
    lines = [f"program {program.name}({', '.join(program.dims)})"]
    lines += [f"  arg {b.slot} {b.name}: {b.type}" for b in program.args]
    lines += [f"  {_buffer(b)}" for b in program.buffers]
    if program.arena.terms:
        lines.append(f"  arena {program.arena} bytes")
    lines += _steps(program.steps, "  ")
    return "\n".join(lines) + "\n"


def _steps(steps: tuple[Step, ...], pad: str) -> list[str]:
    # As deep as loops are nested.
    out: list[str] = []
    for step in steps:
        match step:
            case Commit():
                out.append(f"{pad}commit")
            case Kernel():
                out += _kernel(step, pad)
            case Repeat():
                out.append(f"{pad}repeat {_axis(Axis(step.var, step.trip))}")
                if step.cond is not None:
                    out += _steps(step.before, pad + "  ")
                    out.append(f"{pad}  while {step.cond.name}")
                out += _steps(step.steps, pad + "  ")
    return out


def _buffer(b: Buffer) -> str:
    if b.scope == "const":
        shown = ", ".join(map(str, b.data[:4])) + (", ..." if len(b.data) > 4 else "")
        return f"const {b.name}: {b.type} = {shown}"
    kept = f", kept {b.kept}" if b.kept else ""
    return f"{b.scope} {b.name}: {b.type} at {b.offset}{kept}"


def print_kernel(k: Kernel) -> str:
    """One kernel as text."""
    return "\n".join(_kernel(k, "  "))


def _kernel(k: Kernel, pad: str) -> list[str]:
    where = ", ".join(x for x in (k.reason, place(k.span)) if x)
    return [f"{pad}kernel {k.name}  # {where}", *_stmts(k.body, pad + "  ")]


def _stmts(stmts: tuple[Stmt, ...], pad: str) -> list[str]:
    # Nests are as deep as tensors have axes.
    out: list[str] = []
    for s in stmts:
        match s:
            case For():
                out.append(f"{pad}for {_axis(s.axis)} {s.kind}")
                out += _stmts(s.body, pad + "  ")
            case Let():
                out += _named(s.value, pad, f"{s.name} = ")
            case Store():
                target = f"{s.buffer.name}[{', '.join(print_expr(i) for i in s.index)}]"
                check = " checked" if s.check is not None else ""
                guard = "" if s.guard is None else f" if {print_expr(s.guard)}"
                sign = sign_of(s.accumulate)
                out += _named(s.value, pad, f"{target}{check} {sign} ", guard)
            case Reduce():
                axes = ", ".join(
                    _axis(a) + (" vector" if a.var == s.vector else "") for a in s.axes
                )
                out += _named(s.value, pad, f"{s.best and s.best + ', '}{s.name} = {s.op}[{axes}] ")
            case Contract():
                out += _contract(s, pad)
            case Call():
                given = [*(print_dim(d) for d in s.sizes), *map(print_expr, s.inputs)]
                head = f"{s.result.buffer.name} = " if s.each is None else "for each "
                out.append(f'{pad}{head}extern "{s.symbol}"({", ".join(given)})')
    return out


def _contract(s: Contract, pad: str) -> list[str]:
    groups = {"batch": s.batch, "m": s.m, "n": s.n, "k": s.k}
    text = " ".join(f"{n}=[{', '.join(map(_axis, x))}]" for n, x in groups.items() if x)
    return [
        f"{pad}contract {s.name} {text}" + (f" by {s.fn}" if s.fn != "mul" else ""),
        *_named(s.a, pad + "  ", "a = "),
        *_named(s.b, pad + "  ", "b = "),
        *([] if s.panels is None else _named(s.panels, pad + "  ", "packed from ")),
        *([] if s.turned is None else _named(s.turned, pad + "  ", "few columns: packed from ")),
        *([] if s.points is None else _named(s.points, pad + "  ", "by points, weights ")),
        *_stmts(s.epilogue, pad + "  "),
    ]


def _axis(a: Axis) -> str:
    return f"{print_dim(Dim.of(a.var))}:{print_dim(a.extent)}"


def _named(root: Expr, pad: str, head: str, tail: str = "") -> list[str]:
    """An expression after `head`; parts used more than once are named in lines before."""
    lets, (text,) = texts((root,), plain_name)
    return [*(f"{pad}{line}" for line in lets), f"{pad}{head}{text}{tail}"]
