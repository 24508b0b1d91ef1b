"""Calls as other libraries spell them, and how the same reads here.

`translated` puts the reader's own arguments into the answer, so that it can be copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nnc.lang import ast
from nnc.lang.dims import ONE, Dim
from nnc.lang.elaborate.broadcasting import grouped
from nnc.lang.elaborate.context import Context
from nnc.lang.elaborate.habits import CASTS, LAYERS, LIBRARIES, RENAMED
from nnc.lang.elaborate.mistakes import Mistake, Poisoned
from nnc.lang.elaborate.values import Builtin, Function, Tensor, WeakTensor
from nnc.lang.types import DTYPES

KEYWORDS = {
    "axis": "over",
    "axes": "over",
    "dim": "over",
    "dims": "over",
    "keepdims": "keep",
    "keepdim": "keep",
    "negative_slope": "slope",
    "kernel_size": "k",
    "padding": "pad",
}
REDUCING = (
    "sum", "mean", "max", "min", "prod", "any", "all", "argmax", "argmin", "logsumexp", "var",
    "softmax", "log_softmax",
)  # fmt: skip


@dataclass(frozen=True)
class Foreign:
    """`F.softmax(x, dim=1)` or `x.softmax(1)`: the name, and the arguments with the receiver."""

    cx: Context
    name: str
    args: tuple[ast.Expr, ...]
    named: dict[str, ast.Expr]

    def text(self, i: int) -> str:
        return self.args[i].span.text

    def word(self, i: int) -> str:
        """An argument that a suffix or an operator may follow."""
        return grouped(self.text(i))

    def shape(self, i: int = 0) -> Sequence[Dim] | None:
        """The sizes of an argument, when it is a tensor."""
        if i >= len(self.args):
            return None
        try:
            value = self.cx.tensor(self.cx.eval(self.args[i]))
        except (Mistake, Poisoned):
            return None
        return value.shape if isinstance(value, Tensor | WeakTensor) else None

    def axis(self, e: ast.Expr, rank: int) -> int | None:
        """A literal axis number, counted from 0."""
        match e:
            case ast.Num(value=int(n)):
                return n
            case ast.Unary(op="-", operand=ast.Num(value=int(n))):
                return rank - n
        return None


def translated(cx: Context, e: ast.Call) -> str | None:
    """The help for a call whose function is not defined here, or None."""
    match e.func:
        case ast.Attr(value=ast.Name(id=base)) if base in LIBRARIES and cx.lookup(base) is None:
            name, before = e.func.name, tuple[ast.Expr, ...]()
        case ast.Attr(value=receiver):
            name, before = e.func.name, (receiver,)
        case ast.Name(id=name):
            before = ()
        case _:
            return None
    args = (*before, *(a.value for a in e.args if a.name is None))
    call = Foreign(cx, name, args, {a.name: a.value for a in e.args if a.name is not None})
    if before and call.shape() is None:
        return None
    rule = _RULES.get(name)
    if rule is not None:
        return rule(call)
    return _same_function(call)


def _same_function(c: Foreign) -> str | None:
    """A function of the prelude or the library under its own or another name."""
    name = RENAMED.get(c.name, LAYERS.get(c.name, c.name))
    found = c.cx.lookup(name)
    homes = c.cx.std_homes.get(name, [])
    if not c.args or not (isinstance(found, Builtin | Function) or len(homes) == 1):
        return None
    if found is None and not name[0].islower():
        return None
    rest = [*map(_argument(c, name), range(1, len(c.args)))]
    rest += [f"{KEYWORDS.get(k, k)}={v.span.text}" for k, v in c.named.items()]
    text = f"`{name}({', '.join([c.text(0), *rest])})`"
    return text if found is not None else f"{text}, with `from {homes[0]} import {name}`"


def _argument(c: Foreign, name: str) -> Callable[[int], str]:
    axis = name in REDUCING and not c.name.endswith("imum") and c.shape(1) is None
    return lambda i: f"over={c.text(i)}" if axis and i == 1 else c.text(i)


# ---- one by one -------------------------------------------------------------------------------


def _product(c: Foreign) -> str | None:
    return f"`{c.word(0)} @ {c.word(1)}`" if len(c.args) == 2 else None


def _joined(c: Foreign) -> str | None:
    over = c.named.get("dim") or c.named.get("axis") or c.named.get("over")
    parts = c.args
    if len(parts) == 2 and isinstance(parts[0], ast.ListLit | ast.Tuple):
        over = over or parts[1]
    if parts and isinstance(parts[0], ast.ListLit | ast.Tuple):
        parts = parts[0].items
    if len(parts) < 2:
        return None
    where = over.span.text if over is not None else "0"
    return f"`concat({', '.join(p.span.text for p in parts)}, over={where})`"


def _limited(c: Foreign) -> str | None:
    low = c.args[1] if len(c.args) > 1 else c.named.get("min")
    high = c.args[2] if len(c.args) > 2 else c.named.get("max")
    text = c.text(0) if c.args else ""
    text = f"max({text}, {low.span.text})" if low is not None and text else text
    return f"`min({text}, {high.span.text})`" if high is not None and text else f"`{text}`"


def _power(c: Foreign) -> str | None:
    return f"`{c.word(0)}**{c.word(1)}`" if len(c.args) == 2 else None


def _square(c: Foreign) -> str | None:
    return f"`{c.word(0)}**2`" if len(c.args) == 1 else None


def _letters(rank: int, text: str) -> list[str]:
    return [x for x in "bijkluvw" if x != text][:rank]


def _flat(c: Foreign) -> str | None:
    """`x.view(-1, 400)`, `x.flatten(1)`: all axes but the first become one."""
    shape = c.shape()
    if shape is None or not 2 < len(shape) <= 6 or (c.name != "flatten" and len(c.args) != 3):
        return None
    names = _letters(len(shape), c.text(0))
    left = f"{names[0]}, ({', '.join(names[1:])})"
    return f"axes are merged by a tuple: `flat[{left}] = {c.word(0)}[{', '.join(names)}]`"


def _reordered(c: Foreign) -> str | None:
    shape = c.shape()
    if shape is None or not 1 < len(shape) <= 6:
        return None
    rank, args = len(shape), c.args[1:]
    if len(args) == 1 and isinstance(args[0], ast.ListLit | ast.Tuple):
        args = args[0].items
    order = [n for a in args if (n := c.axis(a, rank)) is not None]
    if c.name in ("transpose", "swapaxes", "t") and rank == 2:
        return f"`{c.word(0)}.T`"
    if c.name in ("transpose", "swapaxes") and len(order) == 2 and max(order) < rank:
        full = list(range(rank))
        full[order[0]], full[order[1]] = order[1], order[0]
        order = full
    names = _letters(rank, c.text(0))
    if sorted(order) != list(range(rank)):
        return None
    left = ", ".join(names[n] for n in order)
    return f"index it: `y[{left}] = {c.word(0)}[{', '.join(names)}]`"


def _new_axis(c: Foreign) -> str | None:
    shape, given = c.shape(), c.args[1] if len(c.args) > 1 else c.named.get("axis")
    if shape is None or given is None:
        return None
    axis = c.axis(given, len(shape) + 1)
    if axis is None or axis > len(shape):
        return None
    return f"`{c.word(0)}[{', '.join([':'] * axis + ['None'])}]` adds an axis of 1"


def _dropped(c: Foreign) -> str | None:
    shape = c.shape()
    if not shape:
        return None
    given = c.args[1] if len(c.args) > 1 else c.named.get("axis")
    axis = c.axis(given, len(shape)) if given is not None else None
    ones = [i for i, d in enumerate(shape) if d == ONE]
    axis = ones[0] if axis is None and len(ones) == 1 else axis
    if axis is None or axis >= len(shape):
        return None
    return f"`{c.word(0)}[{', '.join([':'] * axis + ['0'])}]` drops the axis"


def _drawn(c: Foreign) -> str | None:
    if c.cx.frame.func is None:  # the value of a `param`
        return "`normal(0.02)` or `uniform(0.1)` initializes a parameter"
    kind = "normal" if "randn" in c.name else "uniform"
    if c.name.endswith("_like"):
        shape = c.shape()
        return f"`{kind}!([{', '.join(map(str, shape))}])`" if shape is not None else None
    items = c.args[0].items if c.args and isinstance(c.args[0], ast.ListLit | ast.Tuple) else c.args
    return f"`{kind}!([{', '.join(i.span.text for i in items)}])`" if items else None


def _filled(c: Foreign) -> str | None:
    """`torch.zeros(B, D)`, `zeros([B, D])`."""
    items = c.args[0].items if c.args and isinstance(c.args[0], ast.ListLit | ast.Tuple) else c.args
    return f"`{c.name}[{', '.join(i.span.text for i in items)}]`" if items else None


def _turns(c: Foreign) -> str | None:
    """`range(n)`, `range(a, b)`."""
    if len(c.args) == 1:
        last = c.args[0].value - 1 if isinstance(c.args[0], ast.Num) else f"{c.word(0)} - 1"
        return f"a size counts by itself: `for i in {c.text(0)}:` runs over 0 ... {last}"
    if len(c.args) == 2:
        n = f"{c.word(1)} - {c.word(0)}"
        return f"`for i in {n}:` runs over 0 ...; `{c.text(0)} + i` is what `range` gives"
    return None


def _length(c: Foreign) -> str | None:
    """`len(x)`, `x.size(1)`."""
    shape = c.shape()
    axis = c.axis(c.args[1], len(shape)) if shape and len(c.args) > 1 else 0
    if not shape or axis is None or axis >= len(shape):
        return None
    return f"the size has a name: write `{shape[axis]}`"


def _cast(c: Foreign) -> str | None:
    word = c.args[1].span.text if len(c.args) > 1 else ""
    meant = word.rpartition(".")[2].strip('"')
    dtype = CASTS.get(meant, meant)
    if dtype in DTYPES:
        return f"`{dtype}({c.text(0)})`"
    return "a program runs on the device that it is loaded for; delete the call"


def _hot(c: Foreign) -> str | None:
    if len(c.args) != 2 or not (shape := c.shape()) or len(shape) > 2:
        return None
    names = ", ".join(_letters(len(shape), c.text(0)))
    label = f"{c.word(0)}[{names}]"
    return f"index it: `hot[{names}, c:{c.text(1)}] = 1.0 if c == {label} else 0.0`"


def _deviation(c: Foreign) -> str | None:
    given = next((v for k, v in c.named.items() if KEYWORDS.get(k, k) == "over"), None)
    over = f", over={given.span.text}" if given is not None else ""
    return f"`sqrt(var({c.text(0)}{over}))`" if c.args else None


def _masked(c: Foreign) -> str | None:
    if len(c.args) != 3:
        return None
    value = "-inf" if "inf" in c.text(2) else c.text(2)
    return f"`where({c.text(1)}, {value}, {c.text(0)})`"


def _counted(c: Foreign) -> str | None:
    return f"count beside the list: `for i in L: x = {c.word(0)}[i](x)`" if c.args else None


def _together(c: Foreign) -> str | None:
    """`zip(fs, gs)` over lists of modules."""
    if len(c.args) != 2 or c.shape(0) is not None:
        return None
    return f"count: `for i in L: x = {c.word(1)}[i]({c.word(0)}[i](x))`"


_RULES: dict[str, Callable[[Foreign], str | None]] = {
    **dict.fromkeys(("matmul", "mm", "bmm", "dot", "mv"), _product),
    **dict.fromkeys(("cat", "concatenate", "concat", "hstack", "vstack"), _joined),
    **dict.fromkeys(("clamp", "clip", "clip_by_value"), _limited),
    **dict.fromkeys(("pow", "power"), _power),
    "square": _square,
    **dict.fromkeys(("view", "reshape", "flatten", "Flatten"), _flat),
    **dict.fromkeys(("permute", "transpose", "swapaxes", "t"), _reordered),
    **dict.fromkeys(("unsqueeze", "expand_dims"), _new_axis),
    "squeeze": _dropped,
    **dict.fromkeys(("randn", "rand", "randn_like", "rand_like"), _drawn),
    **dict.fromkeys(("zeros", "ones", "empty"), _filled),
    **dict.fromkeys(("range", "arange"), _turns),
    **dict.fromkeys(("len", "size"), _length),
    **dict.fromkeys(("to", "type", "astype"), _cast),
    "one_hot": _hot,
    **dict.fromkeys(("masked_fill", "masked_fill_"), _masked),
    "std": _deviation,
    "enumerate": _counted,
    "zip": _together,
}
