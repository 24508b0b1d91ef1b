"""Random numbers: a function of seed, call path, step and element."""

from __future__ import annotations

from hashlib import blake2b

from nnc.ir.expr import Const, Expr, Idx, Load, Op, as_dtype
from nnc.ir.graph import Input
from nnc.lang import ast
from nnc.lang.dims import ZERO, Dim
from nnc.lang.elaborate.arguments import bang_text, take
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.mistakes import fail
from nnc.lang.elaborate.places import without_bang
from nnc.lang.elaborate.values import Value
from nnc.lang.types import TensorType


def random_tensor(cx: Context, name: str, e: ast.Call) -> Value:
    """`uniform!([B, T])`, `normal!([B, T])`: functions of seed, call path, step and element."""
    frame = cx.frame
    if not e.bang:
        text, help = f"`{name}` draws random numbers: the call needs `!`", f"`{bang_text(e)}`"
        raise fail("E0502", text, e.func.span, help=help)
    if not (frame.train or frame.exported or frame.train is None or frame.initializing):
        raise without_bang(cx, "draws random numbers", e.func.span)
    if len([a for a in e.args if not isinstance(a.value, ast.ListLit)]) > 1:
        help = "standard numbers: `low + (high - low) * uniform!([B])`, `mean + std * normal!([B])`"
        raise fail("E0802", f"`{name}!` takes one shape", e.span, help=help)
    (arg,) = take(e, name, ["shape"])
    shape = shape_list(cx, arg)
    seed, step = rng_inputs(cx)
    stem = f"{frame.path}/{name}"
    n = cx.counters.get(stem, 0)
    cx.counters[stem] = n + 1
    stream = stream_of(f"{stem}#{n}")
    cx.streams[stream] = f"{stem}#{n}"
    real = frame.real
    around = tuple((cx.turns | cx.ranges).items())  # each turn and index has numbers of its own

    def body(i: tuple[Expr, ...]) -> Expr:
        index = (*(Idx(Dim.of(var)) for var, _ in around), *i)
        flat = _flat(index, (*(n for _, n in around), *shape))
        args = (Load("i64", seed, ()), Const("i64", stream), Load("i64", step, ()), flat)
        return Op(real, f"random_{name}", args)

    return cx.compute(shape, body, e.span)


def stream_of(path: str) -> int:
    """The stream of random numbers of a call path."""
    return int.from_bytes(blake2b(path.encode(), digest_size=8).digest(), "little", signed=True)


def _flat(index: tuple[Expr, ...], shape: tuple[Dim, ...]) -> Expr:
    """The position of an element in row-major order, as i64."""
    out: Expr = Idx(ZERO)
    for x, n in zip(index, shape, strict=True):
        if isinstance(out, Idx) and isinstance(x, Idx):
            out = Idx(out.dim * n + x.dim)
        else:
            out = Op("i64", "add", (Op("i64", "mul", (out, Idx(n))), as_dtype(x, "i64")))
    return out


def shape_list(cx: Context, arg: ast.Expr) -> tuple[Dim, ...]:
    if not isinstance(arg, ast.ListLit):
        raise fail("E0802", "the shape is a list", arg.span, help=f"`[{arg.span.text}]`")
    out: list[Dim] = []
    for item in arg.items:
        if isinstance(item, ast.Rest):
            if item.name not in cx.frame.packs:
                raise fail("E0801", f"`..{item.name}` is not defined", item.span)
            out.extend(cx.frame.packs[item.name])
        else:
            out.append(cx.eval_dim(item))
    return tuple(out)


def rng_inputs(cx: Context) -> tuple[Input, Input]:
    if cx.rng is None:
        kind = TensorType("i64")
        cx.rng = (
            Input(type=kind, name="seed", kind="rng"),
            Input(type=kind, name="step", kind="rng"),
        )
    return cx.rng
