"""Loads `queries.sql` and `operate.sql`: a mapping from each call's name to its text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

_NAME = re.compile(r"^-- name: ([a-z][a-z0-9_]*)\n", re.MULTILINE)
_FILES = ("queries.sql", "operate.sql")


@cache
def load() -> Mapping[str, str]:
    """Return every named call; raises ValueError when a name stands twice."""
    queries: dict[str, str] = {}
    for file in _FILES:
        parts = _NAME.split(files(__package__).joinpath(file).read_text(encoding="utf-8"))
        for name, text in zip(parts[1::2], parts[2::2], strict=True):
            if name in queries:
                raise ValueError(f"{file} names {name}, which stands there or in another file already")
            queries[name] = text.strip().removesuffix(";")
    return MappingProxyType(queries)
