"""What the options of the command line mean."""

from __future__ import annotations

import argparse
from typing import Any

from nnc.errors import ArgumentError

Overrides = dict[str, dict[str, object]]


def overrides(define: list[str]) -> Overrides:
    """`-D GPT2.L=2` as a table."""
    out: Overrides = {}
    for text in define:
        name, equals, value = text.partition("=")
        module, dot, parameter = name.partition(".")
        if not (equals and dot and module and parameter):
            raise ArgumentError(f"-D {text}: it is -D MODULE.PARAMETER=VALUE")
        out.setdefault(module, {})[parameter] = number(value, f"-D {text}")
    return out


def number(text: str, where: str, other: str = "") -> int | float | bool:
    """A number or true, false; `other`: what else it is not."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise ArgumentError(f"{where}: {text!r} is no number{other}")


def pairs(flag: str, texts: list[str]) -> dict[str, str]:
    """`NAME=VALUE` options as a table."""
    out: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (equals and name and value):
            raise ArgumentError(f"{flag} {text}: it is {flag} NAME=VALUE")
        if name in out:
            raise ArgumentError(f"{flag} {name} is given twice")
        out[name] = value
    return out


def load_model(args: argparse.Namespace) -> Any:
    from nnc.api import load

    if getattr(args, "threads", None) is not None and args.threads < 1:
        raise ArgumentError("--threads must be at least 1")
    modules: dict[str, Any] = dict(overrides(args.define))
    return load(
        args.model,
        threads=getattr(args, "threads", None),
        libraries=args.library,
        nan_trap=getattr(args, "nan_trap", False),
        **modules,
    )


def sizes(rest: list[str]) -> dict[str, int]:
    """`--B 8 --T=1024` as a table."""
    out: dict[str, int] = {}
    items = list(rest)
    while items:
        flag, equals, value = items.pop(0).partition("=")
        name = flag.removeprefix("--")
        if not flag.startswith("--") or not name.isidentifier():
            raise ArgumentError(f"unrecognized argument {flag!r}: a size is --NAME NUMBER")
        if not equals:
            value = items.pop(0) if items else ""
        whole = value.isascii() and value.isdecimal()
        if whole and len(value) > 18:
            raise ArgumentError(f"--{name} {value}: a size has at most 18 digits")
        if not whole:
            raise ArgumentError(f"--{name} {value}: a size is a whole number, like --{name} 8")
        if name in out:
            raise ArgumentError(f"--{name} is given twice")
        out[name] = int(value)
    return out
