"""The text form of a Graph: the same in dumps, goldens, docs and assertion messages.

    def predict(B):
      x: f32[B, 64]                                                 # arg, mlp.nn:12
      %0: f32[b:B, o:128] = sum[i:64] x[b, i] * fc1.weight[o, i]    # mlp.nn:9
      return %0

Loop variables are written without their `$`; a sub-expression used more than once gets a `let`.
A run-time loop is a block; `_` stands for a result that nothing reads:

      %2: f32[B], _ = loop t.0:T carry h = %0, c = %1:
        %3: f32[b:B] = h[b] * x[t.0, b]
        next %3, c
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from nnc.diagnostics import NOWHERE, Span
from nnc.ir.expr import Const, Expr, Idx, Load, Op, Select, Tensor, Var, children, walk
from nnc.ir.graph import (
    Axis,
    Compute,
    Constant,
    Custom,
    External,
    Grad,
    Graph,
    Input,
    Loop,
    Node,
    Part,
    Stop,
    Update,
    Value,
    all_nodes,
    toposort,
)
from nnc.lang.dims import Dim

NameOf = Callable[[Tensor], str]
COLUMN = 72  # where source places stand
LONG = 160  # a longer text becomes a `let`

INFIX = {
    "or": (1, " or "),
    "and": (2, " and "),
    "eq": (4, " == "),
    "ne": (4, " != "),
    "lt": (4, " < "),
    "le": (4, " <= "),
    "gt": (4, " > "),
    "ge": (4, " >= "),
    "bitor": (5, " | "),
    "bitxor": (6, " ^ "),
    "bitand": (7, " & "),
    "shl": (8, " << "),
    "shr": (8, " >> "),
    "add": (9, " + "),
    "sub": (9, " - "),
    "mul": (10, " * "),
    "div": (10, " / "),
    "floordiv": (10, " // "),
    "mod": (10, " % "),
    "powi": (12, "**"),
}
CONDITION, NOT, COMPARE, NEGATE, POWER, ATOM = 0, 3, 4, 11, 12, 13
Text = tuple[str, int]  # the text and how tightly it binds


def print_graph(graph: Graph) -> str:
    """One line for each node in topological order: inputs first, results and writes last."""
    naming = _named(graph)
    names = naming.names

    def name_of(t: Tensor) -> str:
        return names[t]  # type: ignore[index]

    lines = [_header(graph)]
    lines += [_line(f"{i.name}: {i.type}", i.kind, i.span) for i in graph.inputs]
    lines += _block(toposort(graph.roots), naming, name_of)
    if graph.results:
        lines.append("  return " + ", ".join(names[r] for r in graph.results))
    lines += [f"  write {w.target.name} = {names[w.value]}" for w in graph.writes]
    return "\n".join(lines) + "\n"


def _block(order: Sequence[Node], naming: _Naming, name_of: NameOf) -> list[str]:
    lines: list[str] = []
    for node in order:
        match node:
            case Input() | Part(source=Loop()):
                continue
            case Loop():
                n = len(node.test)
                body = [_block(part, naming, name_of) for part in (node.body[:n], node.body[n:])]
                lines += _loop_lines(node, naming.results[node], body, name_of)
            case _:
                lines += _node_lines(node, naming.names[node], name_of)
    return lines


def print_expr(e: Expr, name_of: NameOf | None = None) -> str:
    """One line; tensors by `name_of`, else by their own names."""
    return texts((e,), name_of or plain_name, lets=False)[1][0]


def print_node(node: Node) -> str:
    """One node on its own, for messages; operands by their names."""
    return "\n".join(_node_lines(node, plain_name(node), plain_name)).strip()


def plain_name(t: Tensor) -> str:
    return str(getattr(t, "name", "")) or "%"


def print_dim(d: Dim) -> str:
    return str(d).replace("$", "")


def node_names(graph: Graph) -> dict[Node, str]:
    """The names that `print_graph` gives to nodes."""
    return _named(graph).names


@dataclass
class _Naming:
    """Names of nodes, and the heads of loops: names and types of their results."""

    used: set[tuple[Value, int]]  # results of loops that something reads
    names: dict[Node, str] = field(default_factory=dict)
    results: dict[Loop, list[str]] = field(default_factory=dict)
    count: int = 0

    def next(self) -> str:
        self.count += 1
        return f"%{self.count - 1}"

    def visit(self, order: Iterable[Node]) -> None:
        """Names in the order of printing; as deep as loops are nested."""
        for node in order:
            match node:
                case Input():
                    self.names.setdefault(node, node.name)
                case Loop():
                    self._loop(node)
                case Part(source=Loop() as loop, index=index):
                    self.names[node] = f"{self.names[loop]}.{index}"
                case _:
                    self.names[node] = self.next()

    def _loop(self, loop: Loop) -> None:
        self.names[loop] = self.next()
        taken = set(self.names.values())
        for c in loop.carries:
            base = name = c.name or "carry"
            n = 1
            while name in taken:
                n += 1
                name = f"{base}.{n}"
            taken.add(name)
            self.names[c] = name
        parts = [
            f"{self.names[loop]}.{i}: {t}" if (loop, i) in self.used else "_"
            for i, t in enumerate(loop.results)
        ]
        self.results[loop] = parts
        self.visit(loop.body)


def _named(graph: Graph) -> _Naming:
    read = all_nodes(graph)
    naming = _Naming({(n.source, n.index) for n in read if isinstance(n, Part)})
    naming.names.update((i, i.name) for i in graph.inputs)
    naming.visit(toposort(graph.roots))
    return naming


def _header(graph: Graph) -> str:
    known = [f"{d} >= 0" for d in graph.facts.nonneg]
    known += [f"{d} may be 0" for d in sorted(graph.facts.zero)]
    where = f" where {', '.join(known)}" if known else ""
    return f"def {graph.name}({', '.join(graph.dims)}){where}:"


def place(span: Span) -> str:
    """`file:line`, or nothing for what was made by the compiler."""
    return "" if span is NOWHERE else f"{span.source.name}:{span.line}"


def _line(text: str, remark: str, span: Span) -> str:
    remarks = ", ".join(r for r in (remark, place(span)) if r)
    text = f"  {text}"
    return f"{text:<{COLUMN - 2}}  # {remarks}" if remarks else text


def _node_lines(node: Node, name: str, name_of: NameOf) -> list[str]:
    match node:
        case Compute():
            return _compute_lines(node, name, name_of)
        case Update():
            return _update_lines(node, name, name_of)
        case Constant(data=data):
            shown = ", ".join(map(_number, data[:8]))
            more = f", ... {len(data)} values" if len(data) > 8 else ""
            text = f"constant [{shown}{more}]"
        case Grad(y=y, wrt=wrt, seed=seed):
            of = ", ".join(name_of(w) for w in wrt)
            text = f"grad({name_of(y)}, [{of}]"
            text += ")" if seed is None else f", seed={name_of(seed)})"
        case Part(source=source, index=index):
            text = f"part {index} of {name_of(source)}"
        case Stop(source=source):
            text = f"stop({name_of(source)})"
        case Custom(inputs=inputs, grads=grads):
            pairs = zip(inputs, grads, strict=True)
            rules = ", ".join(f"d{name_of(i)} = {name_of(g)}" for i, g in pairs)
            text = f"custom({', '.join(map(name_of, node.sources))}; {rules})"
        case External(symbol=symbol, sizes=sizes, inputs=inputs):
            given = ", ".join([*map(print_dim, sizes), *map(name_of, inputs)])
            text = f'extern "{symbol}"({given})' + (" for each element" if node.each else "")
        case Input(kind=kind):
            text = kind
        case Loop():
            return _loop_lines(node, [name], ((), ()), name_of)
    return [_line(f"{name}: {node.type} = {text}", "", node.span)]


def _loop_lines(
    loop: Loop, results: Sequence[str], body: Sequence[Sequence[str]], name_of: NameOf
) -> list[str]:
    """`results`: names and types; `body`: the lines of the test and of the rest."""
    test, rest = body
    pairs = zip(loop.carries, loop.init, strict=False)  # a planted fault is printed too
    carried = [f"{name_of(c)} = {name_of(i)}" for c, i in pairs]
    word = "loop back" if loop.reverse else "loop"
    word += f" {_axes((Axis(loop.var, loop.trip),))}" + (" carry " if carried else "")
    *some, last = results
    items = [*(f"{r}, " for r in some), f"{last} = {word}", *_commas(carried)]
    head, *more = _wrapped([*items[:-1], f"{items[-1]}:"])

    def listed(word: str, some: Sequence[Node]) -> list[str]:
        return [f"    {x}" for x in _wrapped([f"{word} ", *_commas(map(name_of, some))]) if some]

    return [
        _line(head, "", loop.span),
        *(f"  {line}" for line in more),
        *(f"  {line}" for line in test),
        *listed("while", () if loop.cond is None else (loop.cond,)),
        *(f"  {line}" for line in rest),
        *listed("next", loop.next),
        *listed("yield", loop.yields),
    ]


def _commas(items: Iterable[str]) -> list[str]:
    some = list(items)
    return [*(f"{s}, " for s in some[:-1]), *some[-1:]]


def _wrapped(items: Sequence[str]) -> list[str]:
    """The items one behind the other, in lines of at most LONG characters."""
    lines = [""]
    for item in items:
        if len(lines[-1]) + len(item) > LONG and lines[-1]:
            lines.append("    ")
        lines[-1] += item
    return [line.rstrip() for line in lines]


def _axes(axes: Iterable[Axis]) -> str:
    return ", ".join(f"{print_dim(Dim.of(a.var))}:{print_dim(a.extent)}" for a in axes)


def _compute_lines(node: Compute, name: str, name_of: NameOf) -> list[str]:
    lets, (body,) = texts((node.body,), name_of)
    shape = f"[{_axes(node.axes)}]" if node.axes else ""
    head = f"{name}: {node.type.dtype}{shape} ="
    body = f"{node.op}[{_axes(node.raxes)}] {body}" if node.op else body
    return _with_lets(head, lets, body, node)


def sign_of(accumulate: str) -> str:
    """How a write joins with what is there."""
    return {"": "=", "add": "+="}.get(accumulate, f"{accumulate}=")


def _update_lines(node: Update, name: str, name_of: NameOf) -> list[str]:
    guards = () if node.guard is None else (node.guard,)
    lets, parts = texts((*node.target, node.value, *guards), name_of)
    n = len(node.target)
    inside = ", ".join(parts[:n]) + (" check" if node.check else "")
    sign = sign_of(node.accumulate)
    guard = f" if {parts[n + 1]}" if guards else ""
    loops = f" for {_axes(node.axes)}" if node.axes else ""
    head = f"{name}: {node.type} = {name_of(node.base)} with"
    return _with_lets(head, lets, f"[{inside}] {sign} {parts[n]}{guard}{loops}", node)


def _with_lets(head: str, lets: Sequence[str], body: str, node: Value) -> list[str]:
    if not lets:
        return [_line(f"{head} {body}", "", node.span)]
    return [_line(head, "", node.span), *(f"    {text}" for text in lets), f"    {body}"]


# ---- expressions ------------------------------------------------------------------------------


def texts(roots: Sequence[Expr], name_of: NameOf, lets: bool = True) -> tuple[list[str], list[str]]:
    """`let` lines for what is shared, and the text of each root."""
    uses: dict[int, int] = {}
    order = list(walk(*roots))
    for e in order:
        for c in children(e):
            uses[id(c)] = uses.get(id(c), 0) + 1
    done: dict[int, Text] = {}
    lines: list[str] = []
    for e in order:
        text, level = _text(e, done, name_of)
        if lets and isinstance(e, Op | Select) and (uses.get(id(e), 0) > 1 or len(text) > LONG):
            lines.append(f"let t{len(lines)} = {text}")
            text, level = f"t{len(lines) - 1}", ATOM
        done[id(e)] = (text, level)
    return lines, [done[id(r)][0] for r in roots]


def _text(e: Expr, done: Mapping[int, Text], name_of: NameOf) -> Text:
    match e:
        case Const(value=value):
            text = _number(value)
            return text, NEGATE if text.startswith("-") else ATOM
        case Idx(dim=dim):
            return print_dim(dim), ATOM if dim.name or (
                dim.const is not None and dim.const >= 0
            ) else 9
        case Var(name=name):
            return name, ATOM
        case Load():
            return _load(e, done, name_of), ATOM
        case Select(cond=c, a=a, b=b):
            a_text, c_text = (_inside(x, CONDITION + 1, done) for x in (a, c))
            return f"{a_text} if {c_text} else {_inside(b, CONDITION, done)}", CONDITION
        case Op():
            return _op(e, done)


def _number(x: float) -> str:
    if isinstance(x, bool):
        return str(x).lower()
    return repr(x)


def _inside(e: Expr, least: int, done: Mapping[int, Text]) -> str:
    text, level = done[id(e)]
    return text if level >= least else f"({text})"


def _load(e: Load, done: Mapping[int, Text], name_of: NameOf) -> str:
    inside = ", ".join(done[id(i)][0] for i in e.index)
    inside += f" else {done[id(e.other)][0]}" if e.other is not None else ""
    inside += " check" if e.check is not None else ""
    return f"{name_of(e.tensor)}[{inside}]" if inside else name_of(e.tensor)


def _op(e: Op, done: Mapping[int, Text]) -> Text:
    if e.fn in INFIX:
        level, sign = INFIX[e.fn]
        left, right = e.args
        a, b = _inside(left, level + (level == COMPARE), done), _inside(right, level + 1, done)
        return f"{a}{sign}{b}", level
    if e.fn == "neg":
        return "-" + _inside(e.args[0], NEGATE, done), NEGATE
    if e.fn == "not":
        return "not " + _inside(e.args[0], NOT, done), NOT
    args = ", ".join(done[id(a)][0] for a in e.args)
    return f"{e.dtype if e.fn == 'cast' else e.fn}({args})", ATOM
