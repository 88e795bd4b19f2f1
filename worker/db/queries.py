"""Loads the `.sql` files beside this: a mapping from each call's name to its text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

_NAME = re.compile(r"^-- name: ([a-z][a-z0-9_]*)\n", re.MULTILINE)


@cache
def load() -> Mapping[str, str]:
    """Return every named call; raises ValueError when a name stands twice."""
    queries: dict[str, str] = {}
    for file in files(__package__).iterdir():
        if not file.name.endswith(".sql"):
            continue
        parts = _NAME.split(file.read_text(encoding="utf-8"))
        for name, text in zip(parts[1::2], parts[2::2], strict=True):
            if name in queries:
                raise ValueError(f"{file.name} names {name}, which stands elsewhere too")
            queries[name] = text.strip().removesuffix(";")
    return MappingProxyType(queries)
