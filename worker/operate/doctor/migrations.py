"""The migrations that this version of the code was written for, and the rights that they give to the worker.

An installed package carries them as worker/migrations; in a checkout they are read where they stand.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

_ROOT = Path(__file__).resolve().parents[2]
_PLACES = (_ROOT / "migrations", _ROOT.parent / "supabase" / "migrations")
_FILE = re.compile(r"(\d{14})_\w+\.sql")
_RIGHT = re.compile(
    r"^(?P<verb>grant|revoke)\s+(?P<what>[^;]*?)\s+on\s+(?P<on>[^;]*?)\s+(?:to|from)\s+(?P<whom>[^;]*?);",
    re.MULTILINE | re.DOTALL | re.IGNORECASE,
)
_COMMENT = re.compile(r"--[^\n]*")
_NAME = re.compile(r"[a-z_]+\.[a-z_]\w*")
_PRIVILEGE = re.compile(r"(?P<name>[a-z]+)\s*(?:\((?P<columns>[^)]*)\))?")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rights:
    """What a role was granted by name: functions to execute, and (relation, privilege, column or nothing)."""

    functions: frozenset[str]
    relations: frozenset[tuple[str, str, str]]


@cache
def files() -> Mapping[str, str]:
    """Return every migration's text by its version, in order; empty where the package came without them."""
    for place in _PLACES:
        found = {match[1]: path for path in sorted(place.glob("*.sql")) if (match := _FILE.fullmatch(path.name))}
        if found:
            return {version: path.read_text(encoding="utf-8") for version, path in found.items()}
    return {}


def digest(text: str) -> str:
    """Return what ingest.applied_migrations() makes of the same text."""
    return hashlib.sha256(re.sub(r"[ \t\r\n;]+", "", text).encode()).hexdigest()


@cache
def rights(role: str) -> Rights:
    """Return what the migrations grant to a role, less what later ones revoke."""
    functions: set[str] = set()
    relations: set[tuple[str, str, str]] = set()
    for text in files().values():
        for match in _RIGHT.finditer(_COMMENT.sub("", text)):
            if role not in re.split(r"[\s,]+", match["whom"]):
                continue
            what, on = match["what"].lower(), re.sub(r"\([^)]*\)", "", match["on"])
            if on.startswith("schema "):
                continue
            if what == "execute":
                _apply(match["verb"], functions, _NAME.findall(on))
            else:
                _apply(match["verb"], relations, [(n, *p) for n in _NAME.findall(on) for p in _privileges(what)])
    return Rights(frozenset(functions), frozenset(relations))


def _apply(verb: str, held: set[T], named: Iterable[T]) -> None:
    (held.update if verb.lower() == "grant" else held.difference_update)(named)


def _privileges(what: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for match in _PRIVILEGE.finditer(what):
        columns = match["columns"]
        found += (
            [(match["name"], column.strip()) for column in columns.split(",")] if columns else [(match["name"], "")]
        )
    return found
