"""The vector math library: LLVM IR of scalar functions, written for any lane count.

`closure` gives the functions that a module calls. They use no libm, no fast-math flags and, on any
x86-64 with FMA and SSE4.1, leave no undefined symbols. A result does not depend on the lane count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from nnc.codegen import vecmath_exp as ex
from nnc.codegen import vecmath_special as special
from nnc.codegen import vecmath_trig as trig
from nnc.codegen.vecmath_vec import FORMATS, Body, Vec, vector_type

Implementation = Callable[..., Vec]
Request = tuple[str, str, int]


def _rsqrt(x: Vec) -> Vec:
    return 1.0 / x.body.intrinsic("sqrt", x)


def _through_f64(function: Implementation, **options: bool) -> Implementation:
    """The f32 function that computes in f64; an i32 argument stays as it is."""

    def body(*arguments: Vec) -> Vec:
        wide = (a.to("f64") if a.kind == "f32" else a for a in arguments)
        return function(*wide, **options).to("f32")

    return body


def _both(function: Implementation) -> dict[str, Implementation]:
    return {"f32": function, "f64": function}


def _wide(function: Implementation) -> dict[str, Implementation]:
    return {"f32": _through_f64(function, single=True), "f64": function}


_BODIES: dict[str, dict[str, Implementation]] = {
    "exp": _both(ex.exp),
    "expm1": _both(ex.expm1),
    "log": _both(ex.log),
    "log1p": _both(ex.log1p),
    "log2": _both(ex.log2),
    "sin": {"f32": trig.sin_f32, "f64": trig.sin},
    "cos": {"f32": trig.cos_f32, "f64": trig.cos},
    "tan": _wide(trig.tan),
    "asin": _wide(trig.asin),
    "acos": _wide(trig.acos),
    "atan": _wide(trig.atan),
    "sinh": _both(ex.sinh),
    "cosh": _both(ex.cosh),
    "tanh": _both(ex.tanh),
    "sigmoid": _both(ex.sigmoid),
    "erf": {"f32": special.erf_f32, "f64": special.erf_f64},
    "erfc": _wide(special.erfc),
    "lgamma": {"f32": _through_f64(special.lgamma), "f64": special.lgamma},
    "rsqrt": _both(_rsqrt),
    "pow": _wide(ex.pow_),
    "atan2": _wide(trig.atan2),
    "powi": _wide(ex.powi),
}

FUNCTIONS: Mapping[str, int] = MappingProxyType(
    {fn: 2 if fn in ("pow", "atan2", "powi") else 1 for fn in _BODIES}
)
"""Name -> number of arguments. The second argument of powi is an i32 vector."""

_INLINE = frozenset({"exp", "expm1", "log", "log1p", "tanh", "sigmoid", "rsqrt"})

# Largest error in units of the last place of the dtype over the whole range; the tests hold it.
# lgamma in f64: 1e-13 relative, except near its zeros on the negative axis (1e-13 absolute there).
_ULP_F32 = dict.fromkeys(FUNCTIONS, 1.0) | {
    "exp": 1.5,
    "expm1": 2.0,
    "log": 2.0,
    "log1p": 2.0,
    "log2": 2.0,
    "tanh": 2.0,
    "sigmoid": 2.0,
    "erf": 2.0,
    "sinh": 3.0,
    "cosh": 3.0,
    "rsqrt": 1.5,
}
_ULP_F64 = dict.fromkeys(FUNCTIONS, 4.0)
ULP: Mapping[tuple[str, str], float] = MappingProxyType(
    {(fn, "f32"): ulp for fn, ulp in _ULP_F32.items()}
    | {(fn, "f64"): ulp for fn, ulp in _ULP_F64.items()}
)


def symbol(fn: str, dtype: str, lanes: int) -> str:
    """The name of a function, as `@nn.exp.f32.16`."""
    assert fn in FUNCTIONS and dtype in FORMATS and lanes >= 1, (fn, dtype, lanes)
    return f"@nn.{fn}.{dtype}.{lanes}"


def _emit(fn: str, dtype: str, lanes: int, scalef: bool) -> tuple[str, Body]:
    """The text of a function, and its body for what it refers to."""
    body = Body(lanes, scalef)
    kinds = [dtype, "i32" if fn == "powi" else dtype][: FUNCTIONS[fn]]
    arguments = [Vec(body, kind, f"%{name}") for kind, name in zip(kinds, "xy", strict=False)]
    result = _BODIES[fn][dtype](*arguments)
    assert result.kind == dtype, (fn, dtype, result)
    body.emitter.line(f"ret {result.text}")
    inline = "alwaysinline " if fn in _INLINE or (fn, dtype) == ("erf", "f32") else ""
    parameters = ", ".join(a.text for a in arguments)
    head = f"define internal {vector_type(dtype, lanes)} {symbol(fn, dtype, lanes)}({parameters})"
    text = f"{head} {inline}nounwind willreturn memory(none) {{\n{body.emitter.text()}\n}}\n"
    return text, body


def define(fn: str, dtype: str, lanes: int) -> str:
    """The text of one function; what it calls is in `closure`."""
    return _emit(fn, dtype, lanes, False)[0]


def closure(requests: Iterable[Request], scalef: bool = False) -> tuple[str, set[str]]:
    """The text of the functions and all that they call, each once, and the declares they need.

    `scalef`: with the instruction of AVX-512 that multiplies by powers of two; the same results.

    The text is in sorted order and depends on the set of requests only.
    """
    texts: dict[Request, str] = {}
    declares: set[str] = set()
    tables: set[str] = set()
    pending = list(requests)
    while pending:
        request = pending.pop()
        if request in texts:
            continue
        texts[request], body = _emit(*request, scalef)
        declares |= body.declares
        tables |= body.tables
        pending.extend(body.calls)
    constants = [text for name, text in trig.tables().items() if name in tables]
    return "\n".join([*constants, *(texts[key] for key in sorted(texts))]), declares
