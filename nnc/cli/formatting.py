"""`nnc fmt`: a file in its standard layout."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnc import driver
from nnc.diagnostics import Diagnostics
from nnc.errors import CompileError
from nnc.lang.format import format_source
from nnc.runtime.tensorfile import atomic


def fmt(args: argparse.Namespace) -> int:
    """Rewrites the file if its layout differs; with `--check` only says so (exit code 1)."""
    source = driver.read_file(args.model)
    diagnostics = Diagnostics()
    text = format_source(source, diagnostics)
    if text is None:
        raise CompileError(diagnostics.items)
    if text == source.text:
        return 0
    if args.check:
        print(f"{args.model} is not formatted: nnc fmt {args.model}")
        return 1
    atomic(Path(args.model), [text.encode()])
    print(args.model)
    return 0
