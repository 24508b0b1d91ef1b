"""`nnc quantize`: a model whose weights are stored in fewer bits, with its error."""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from nnc.cli.options import overrides
from nnc.errors import ArgumentError, LoadError
from nnc.quantization import quantize as quantized


def quantize(args: argparse.Namespace) -> int:
    """Writes the model and its weights, and prints how far its results are off."""
    data = [_arrays(path) for path in args.data]
    modules: dict[str, Any] = dict(overrides(args.define))
    made = quantized(args.model, args.weights, args.function, to=args.to, data=data, **modules)
    print(made)
    if not data:
        print("no --data: the error is not known")
    name = f"{Path(args.model).stem}.{args.to}"
    for path in made.save(args.out, name):
        print(path)
    return 0


def _arrays(path: str) -> dict[str, Any]:
    """The arguments of one call."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ArgumentError(f"--data {path}: an .npz file holds arguments by name")
            return dict(file)
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise LoadError(f"{path} is not an .npz file of plain arrays: {error}") from None
