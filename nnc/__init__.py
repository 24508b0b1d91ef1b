"""nnc: a compiler from a textual neural-network language to native kernels.

    import nnc
    m = nnc.load("mlp.nn")            # checks and compiles; every export is a function
    net = m.MLP.init(seed=0)
    y = m.predict(net, x)             # NumPy in, NumPy out

Everything is imported on first use: `import nnc` takes a few milliseconds.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_PLACES = {
    "load": "nnc.api",
    "quantize": "nnc.quantization",
    "Quantized": "nnc.quantization",
    "Model": "nnc.runtime.model",
    "Module": "nnc.runtime.leaves",
    "Tree": "nnc.runtime.leaves",
    "Diagnostic": "nnc.diagnostics",
    "Error": "nnc.errors",
    "ArgumentError": "nnc.errors",
    "AttributeError": "nnc.errors",
    "CompileError": "nnc.errors",
    "DeviceError": "nnc.errors",
    "DtypeError": "nnc.errors",
    "IndexError": "nnc.errors",
    "KeyError": "nnc.errors",
    "LoadError": "nnc.errors",
    "NonFiniteError": "nnc.errors",
    "SaveError": "nnc.errors",
    "ShapeError": "nnc.errors",
}


def __getattr__(name: str) -> object:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'nnc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*_PLACES, "__version__"]
