"""The C header of a compiled file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nnc.ir.signature import ArgSig, Manifest, Native
from nnc.lang.dims import Dim, Func

_PREAMBLE = """\
/* {name}.h: written by nnc compile; link {name}.a (and -lpthread -lm). */
#ifndef NN_{guard}_H
#define NN_{guard}_H
#include <stdint.h>

#ifndef NN_CTX
#define NN_CTX
/* workspace: f_bytes(dims, threads) bytes, aligned to 64. A function f returns 0, or 1 when an
   index was outside its axis: then site (1-based), value and extent say which. */
typedef struct {{ void *workspace; int64_t threads, site, value, extent; }} nn_ctx;
static inline int64_t nn_floor(int64_t a, int64_t b) {{
    return a / b - (a % b != 0 && (a < 0) != (b < 0));
}}
static inline int64_t nn_mod(int64_t a, int64_t b) {{ return a - b * nn_floor(a, b); }}
static inline int64_t nn_min(int64_t a, int64_t b) {{ return a < b ? a : b; }}
static inline int64_t nn_max(int64_t a, int64_t b) {{ return a > b ? a : b; }}
#endif
#ifdef __cplusplus
extern "C" {{
#endif
"""


def header(name: str, manifest: Manifest) -> str:
    """C declarations of every export and module initialiser, with the order of dims and args."""
    natives = {n.symbol: n for n in manifest.natives}
    modules = {m.id: m for m in manifest.modules}
    guard = "".join(c if c.isalnum() else "_" for c in name).upper()
    parts = [_PREAMBLE.format(name=name, guard=guard)]
    for export in manifest.exports:
        rows = [row for a in export.args for row in _arg_rows(a, modules)]
        rows += [row for i, r in enumerate(export.results) for row in _result_rows(i, r, modules)]
        parts.append(_declaration(export.text or export.name, natives[export.symbol], rows))
    for module in manifest.modules:
        if module.init:
            rows = ["seed: i64", "step: i64", *(f"{x.key}: {x.type}" for x in module.leaves)]
            parts.append(_declaration(f"{module.id}.init", natives[module.init], rows))
    parts.append("#ifdef __cplusplus\n}\n#endif\n#endif\n")
    return "\n".join(parts)


def _declaration(title: str, native: Native, rows: Sequence[str]) -> str:
    comment = [title, f"dims: {', '.join(native.dims) or 'none'}", "args: pointers to"]
    comment += [f"  {i}  {row}" for i, row in enumerate(rows)]
    text = "\n   ".join(line.replace("*/", "* /") for line in comment)
    env = {n: f"d[{i}]" for i, n in enumerate(native.dims)}
    size = c_expression((native.arena + 63) // 64 * 64, env)
    symbol = native.symbol
    return (
        f"/* {text} */\n"
        f"int32_t {symbol}(nn_ctx *ctx, const int64_t *dims, void *const *args);\n"
        f"static inline int64_t {symbol}_bytes(const int64_t *d, int64_t threads) {{\n"
        f"    (void)d;\n    return {size} + threads * {native.scratch};\n}}\n"
    )


def _arg_rows(arg: ArgSig, modules: Mapping[str, Any]) -> list[str]:
    match arg.kind:
        case "dim":
            return []
        case "module":
            return [f"{arg.name}.{x.key}: {x.type}" for x in modules[arg.module].leaves]
        case "tree":
            leaves = modules[arg.module].leaves
            return [f"{arg.name}.{x.key}: {x.type}" for x in leaves if x.storage == "param"]
    return [("inout " if arg.inout else "") + f"{arg.name}: {arg.type}"]


def _result_rows(i: int, result: Any, modules: Mapping[str, Any]) -> list[str]:
    if result.kind == "tensor":
        return [f"result {i}: {result.type}"]
    leaves = modules[result.module].leaves
    return [f"result {i}.{x.key}: {x.type}" for x in leaves if x.storage == "param"]


def c_expression(dim: Dim, env: Mapping[str, str]) -> str:
    """A dim as C on int64_t."""
    terms = []
    for mono, factor in dim.terms:
        atoms = [_c_atom(atom, env) for atom, power in mono for _ in range(power)]
        terms.append(" * ".join([f"INT64_C({factor})", *atoms]))
    return "(" + (" + ".join(terms) or "0") + ")"


def _c_atom(atom: str | Func, env: Mapping[str, str]) -> str:
    if isinstance(atom, str):
        return env[atom]
    name = {"floor": "nn_floor", "div": "nn_floor", "mod": "nn_mod"}.get(
        atom.kind, f"nn_{atom.kind}"
    )
    return f"{name}({c_expression(atom.a, env)}, {c_expression(atom.b, env)})"
