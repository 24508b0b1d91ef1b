"""What newcomers write out of habit from PyTorch, Keras and NumPy, and what to write here."""

from __future__ import annotations

LAYERS = {
    "Dense": "Linear",
    "Conv2D": "Conv2d",
    "BatchNorm1d": "BatchNorm",
    "BatchNorm2d": "BatchNorm",
    "BatchNormalization": "BatchNorm",
    "LayerNormalization": "LayerNorm",
    "ReLU": "relu",
    "LeakyReLU": "leaky_relu",
    "GELU": "gelu",
    "SiLU": "silu",
    "swish": "silu",
    "Softmax": "softmax",
    "MaxPool2d": "max_pool2d",
    "MaxPooling2D": "max_pool2d",
    "AvgPool2d": "avg_pool2d",
    "CrossEntropyLoss": "cross_entropy",
    "MSELoss": "mse",
    "mse_loss": "mse",
    "L1Loss": "mae",
}

NAMES = {
    "Sequential": "layers are called one after another: `fc2(relu(fc1(x)))`",
    "ModuleList": "a list of modules: `blocks = [Block(D) for l in L]`",
    "Flatten": "axes are merged by a tuple: `flat[b, (c, i, j)] = x[b, c, i, j]`",
    "flatten": "axes are merged by a tuple: `flat[b, (c, i, j)] = x[b, c, i, j]`",
    "reshape": "axes are split and merged by tuples: `y[b, h, e] = x[b, (h, e:K)]`",
    "view": "axes are split and merged by tuples: `y[b, h, e] = x[b, (h, e:K)]`",
    "transpose": "`x.T`, or index it: `y[b, j, i] = x[b, i, j]`",
    "permute": "index it: `y[b, j, i] = x[b, i, j]`",
    "einsum": "index notation says it: `y[b, o] = sum[i](x[b, i] * w[i, o])`",
    "matmul": "`a @ b`",
    "dot": "`a @ b`",
    "cat": "`concat(a, b, over=1)`",
    "concatenate": "`concat(a, b, over=1)`",
    "stack": "index it: `y[i, n] = a[n] if i == 0 else b[n]`",
    "clip": "`min(max(x, low), high)`",
    "clamp": "`min(max(x, low), high)`",
    "power": "`x**k`",
    "range": "`for i in N:` runs over 0 ... N-1",
    "arange": "index it: `y[i:N] = i`",
    "len": "sizes have names: declare them, `x: real[B, T]`, and use `B`",
    "shape": "sizes have names: declare them, `x: real[B, T]`, and use `B`",
    "print": "a program has no output but its results; `return` what you want to see",
    "Parameter": "`param w: real[D] = 0` declares a parameter",
    "tensor": "numbers in brackets: `[0.5, 1.5]`, or `zeros[B, D]`",
    "array": "numbers in brackets: `[0.5, 1.5]`, or `zeros[B, D]`",
    "randn": "`normal!([B, D])`",
    "rand": "`uniform!([B, D])`",
    "no_grad": "`stop(x)` cuts a gradient; without `grad` there is none",
    "super": "a module has no parent and no constructor: its members are declared",
    "True": "`true`",
    "False": "`false`",
    "exp2": "`2.0**x`",
    "square": "`x**2`",
    "argsort": "there is no sorting",
    "sort": "there is no sorting",
}

LIBRARIES = (
    "nn",
    "F",
    "np",
    "numpy",
    "torch",
    "tf",
    "keras",
    "jax",
    "jnp",
    "layers",
    "optim",
    "math",
)

TYPES = {
    "float": "f32",
    "double": "f64",
    "half": "f16",
    "int": "i32",
    "long": "i64",
    "float32": "f32",
    "float64": "f64",
    "int32": "i32",
    "int64": "i64",
    "uint8": "u8",
    "Tensor": "real[B, D]",
    "tensor": "real[B, D]",
    "scalar": "real",
    "integer": "i32",
}

METHODS = {
    "shape": "sizes have names: declare them, `x: real[B, T]`, and use `B`",
    "size": "sizes have names: declare them, `x: real[B, T]`, and use `B`",
    "ndim": "`rank(x)`",
    "view": "axes are split and merged by tuples: `y[b, h, e] = x[b, (h, e:K)]`",
    "reshape": "axes are split and merged by tuples: `y[b, h, e] = x[b, (h, e:K)]`",
    "flatten": "axes are merged by a tuple: `y[b, (c, i, j)] = x[b, c, i, j]`",
    "transpose": "`x.T`, or index it: `y[b, j, i] = x[b, i, j]`",
    "t": "`x.T`",
    "permute": "index it: `y[b, j, i] = x[b, i, j]`",
    "unsqueeze": "`x[:, None]` adds an axis of 1",
    "expand": "an axis of 1 stretches by itself: `x[:, None] * y`",
    "repeat": "index it: `y[i, j:N] = x[i]`",
    "squeeze": "`x[:, 0]` drops an axis",
    "backward": "the gradient is an expression: `g = grad(loss, net)`",
    "grad": "the gradient is an expression: `g = grad(loss, net)`",
    "item": "a scalar is used as it is",
    "numpy": "a result is a NumPy array when Python gets it",
    "cpu": "a program runs on the device that it is loaded for",
    "cuda": "a program runs on the device that it is loaded for",
    "dtype": "the dtype is part of the declared type; `f32(x)` converts",
    "contiguous": "every tensor is",
}
FUNCTIONS = [
    "sum",
    "mean",
    "max",
    "min",
    "exp",
    "log",
    "abs",
    "sqrt",
    "prod",
    "argmax",
    "argmin",
    "var",
    "any",
    "all",
    "softmax",
    "sigmoid",
    "tanh",
    "sin",
    "cos",
]
CASTS = {
    "float": "f32",
    "int": "i32",
    "half": "f16",
    "double": "f64",
    "long": "i64",
    "bool": "bool",
}

MODULE_METHODS = {
    "fit": "a training step is a function: `net := opt!(net, grad(loss, net), lr)`",
    "compile": "a program is compiled when it is loaded",
    "predict": "a module is called: `net(x)`",
    "train": "`net!(x)` runs with `train` true, `net(x)` with false",
    "eval": "`net!(x)` runs with `train` true, `net(x)` with false",
    "parameters": "a module stands for its parameters: `grad(loss, net)`, `norm(net)`",
    "zero_grad": "there is nothing to clear: `grad(loss, net)` is an expression",
    "step": "`net := opt!(net, grad(loss, net), lr)`",
    "state_dict": 'Python saves: `net.save("net.safetensors")`',
    "cuda": "a program runs on the device that it is loaded for",
    "to": "a program runs on the device that it is loaded for",
    "backward": "the gradient is an expression: `g = grad(loss, net)`",
}


def layer_help(name: str, homes: dict[str, list[str]], inside: set[str]) -> str | None:
    """The import of a layer or function that `name` means; `inside`: names that need no import."""
    meant = LAYERS.get(name, name)
    where = homes.get(meant, [])
    if meant in inside:
        return f"it is called `{meant}`" if meant != name else None
    if len(where) != 1:
        return None
    line = f"`from {where[0]} import {meant}`"
    return line if meant == name else f"it is called `{meant}`: {line}"
