"""The C header of a compiled file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nnc.ir.signature import ArgSig, Leaf, Manifest, ModuleSig, Native, ResultSig
from nnc.lang.dims import Dim, Func
from nnc.lang.types import TensorType

_I64 = TensorType("i64", ())

_PREAMBLE = """\
/* {name}.h: written by nnc compile; link {name}.a (and -lpthread -lm). */
#ifndef NN_{guard}_H
#define NN_{guard}_H
#include <stdint.h>

#ifndef NN_CTX
#define NN_CTX
/* workspace: f_bytes(dims, threads) bytes, aligned to 64. A function f returns 0, or 1 when an
   index was outside its axis: then site, value and extent say which; f_site(site) is its place.
   kept: 0; else what the start of the workspace holds of an earlier call, see docs/deploy.md.
   Of args, f_args in number: f_arg_name(i), f_arg_bytes(dims, i). */
typedef struct {{ void *workspace; int64_t threads, site, value, extent, kept; }} nn_ctx;
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


@dataclass(frozen=True)
class _Pointer:
    """One item of `args`: what it is, and how many bytes lie there."""

    name: str
    type: TensorType
    note: str = ""

    @staticmethod
    def of(leaf: Leaf, prefix: str) -> _Pointer:
        return _Pointer(f"{prefix}{leaf.key}", leaf.type)


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
            rows = [_Pointer("seed", _I64), _Pointer("step", _I64)]
            rows += [_Pointer.of(x, "") for x in module.leaves]
            parts.append(_declaration(f"{module.id}.init", natives[module.init], rows))
    parts.append("#ifdef __cplusplus\n}\n#endif\n#endif\n")
    return "\n".join(parts)


def _declaration(title: str, native: Native, rows: Sequence[_Pointer]) -> str:
    needs = [e.prototype for e in native.externs]
    comment = [title, *(["calls, to be linked:", *(f"  {n}" for n in needs)] if needs else [])]
    comment += [f"dims: {', '.join(native.dims) or 'none'}", "args: pointers to"]
    comment += [f"  {i}  {row.note}{row.name}: {row.type}" for i, row in enumerate(rows)]
    text = "\n   ".join(line.replace("*/", "* /") for line in comment)
    env = {n: f"d[{i}]" for i, n in enumerate(native.dims)}
    size = _bytes(native.arena, native.scratch, env)
    cases = [
        f"    if ({' && '.join(f'{env[n]} == {v}' for n, v in s.sizes)}) "
        f"return {_bytes(s.arena, s.scratch, env)};\n"
        for s in native.specials
    ]
    sizes = [c_expression(row.type.bytes, env) for row in rows]
    symbol = native.symbol
    return (
        f"/* {text} */\n"
        f"int32_t {symbol}(nn_ctx *ctx, const int64_t *dims, void *const *args);\n"
        f"enum {{ {symbol}_dims = {len(native.dims)}, {symbol}_args = {len(rows)} }};\n"
        f"static inline int64_t {symbol}_bytes(const int64_t *d, int64_t threads) {{\n"
        f"    (void)d;\n{''.join(cases)}    return {size};\n}}\n"
        + _lookup(f"int64_t {symbol}_arg_bytes(const int64_t *d, int i)", "const int64_t", sizes)
        + _lookup(f"const char *{symbol}_arg_name(int i)", "static const char *const", _names(rows))
        + _lookup(
            f"const char *{symbol}_site(int64_t i)",
            "static const char *const",
            ['"no check"', *(c_text(f"{place}: {text}") for place, text in native.sites)],
        )
    )


def _bytes(arena: Dim, scratch: Dim, env: Mapping[str, str]) -> str:
    whole, each = (c_expression(d, env) for d in ((arena + 63) // 64 * 64, scratch))
    return f"{whole} + threads * ({each})"


def _lookup(head: str, kind: str, items: Sequence[str]) -> str:
    """A function of an index into a table."""
    used = "    (void)d;\n" if "int64_t *d," in head else ""
    rows = "".join(f"        {item},\n" for item in items or ["0"])
    return (
        f"static inline {head} {{\n{used}    {kind} t[] = {{\n{rows}    }};\n    return t[i];\n}}\n"
    )


def _names(rows: Sequence[_Pointer]) -> list[str]:
    return [c_text(row.name) for row in rows]


def c_text(text: str) -> str:
    """A C string literal."""
    safe = (
        chr(b) if 32 <= b < 127 and b not in b'"\\?' else f"\\{b:03o}" for b in text.encode("utf-8")
    )
    return '"' + "".join(safe) + '"'


def _arg_rows(arg: ArgSig, modules: Mapping[str, ModuleSig]) -> list[_Pointer]:
    match arg.kind:
        case "dim":
            return []
        case "module":
            return [_Pointer.of(x, f"{arg.name}.") for x in modules[arg.module].leaves]
        case "tree":
            leaves = modules[arg.module].leaves
            return [_Pointer.of(x, f"{arg.name}.") for x in leaves if x.storage == "param"]
    assert arg.type is not None, arg
    return [_Pointer(arg.name, arg.type, "inout " if arg.inout else "")]


def _result_rows(i: int, result: ResultSig, modules: Mapping[str, ModuleSig]) -> list[_Pointer]:
    if result.type is not None:
        return [_Pointer(f"result {i}", result.type)]
    leaves = modules[result.module].leaves
    return [_Pointer.of(x, f"result {i}.") for x in leaves if x.storage == "param"]


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
