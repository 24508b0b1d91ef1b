"""Manifest and its like as JSON and back: dataclasses become objects, dims their own JSON form."""

from __future__ import annotations

import dataclasses
import types
import typing
from functools import cache
from typing import Any, cast

from nnc.ir.signature import Manifest
from nnc.lang.dims import Dim, from_json


def to_json(manifest: Manifest) -> dict[str, Any]:
    """Plain lists, dicts, texts and numbers; fields at their defaults are left out."""
    out: dict[str, Any] = encode(manifest)
    return out


def of_json(data: Any) -> Manifest:
    """The inverse of `to_json`; ValueError for anything else."""
    try:
        out: Manifest = decode(Manifest, data)
    except (TypeError, KeyError, IndexError, AssertionError, RecursionError) as error:
        raise ValueError(f"not a manifest: {error}") from None
    return out


def encode(x: Any) -> Any:
    """Plain JSON of dataclasses, tuples, dicts, dims and numbers."""
    match x:
        case Dim():
            return x.json()
        case tuple():
            return [encode(i) for i in x]
        case dict():
            return {k: encode(v) for k, v in x.items()}
    if not dataclasses.is_dataclass(x):
        return x
    return {
        f.name: encode(getattr(x, f.name))
        for f in dataclasses.fields(x)
        if f.default is dataclasses.MISSING or getattr(x, f.name) != f.default
    }


def decode(kind: Any, data: Any) -> Any:
    """A value of the type `kind`; TypeError or KeyError when it is not one."""
    if kind is Dim:
        return from_json(data)
    if dataclasses.is_dataclass(kind):
        _must_be(dict, data)
        hints = _hints(cast(Any, kind))
        fields = {k: decode(hints[k], v) for k, v in data.items()}
        return kind(**fields)  # type: ignore[operator]
    origin = typing.get_origin(kind)
    if origin is tuple:
        return _decode_tuple(typing.get_args(kind), data)
    if origin is dict:
        _must_be(dict, data)
        return {str(k): decode(typing.get_args(kind)[1], v) for k, v in data.items()}
    if origin is types.UnionType:
        return _decode_union(typing.get_args(kind), data)
    _must_be(kind, data)
    return data


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _must_be(kind: type, data: Any) -> None:
    if not isinstance(data, kind) or (kind is int and isinstance(data, bool)):
        raise TypeError(f"{data!r} is no {kind.__name__}")


def _decode_tuple(kinds: tuple[Any, ...], data: Any) -> tuple[Any, ...]:
    _must_be(list, data)
    if kinds[-1] is Ellipsis:
        return tuple(decode(kinds[0], x) for x in data)
    return tuple(decode(k, x) for k, x in zip(kinds, data, strict=True))


def _decode_union(kinds: tuple[Any, ...], data: Any) -> Any:
    """`X | None` and unions of plain numbers."""
    if data is None and type(None) in kinds:
        return None
    others = [k for k in kinds if k is not type(None)]
    return data if type(data) in others else decode(others[0], data)
