"""What every parser offers, local or remote: submit the bytes, then poll for their pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeAlias

from worker.model import Parsed, Source

JsonValue: TypeAlias = str | int | float | bool | list["JsonValue"] | dict[str, "JsonValue"] | None


class Parser(Protocol):
    """Turns one source into pages of Markdown.

    A parse is reused for the same tenant, bytes, sniffed type, `name`, `version` and `options`: the
    version changes whenever the output may.
    """

    @property
    def name(self) -> str:
        """Return the name under which parses are kept."""
        ...

    @property
    def version(self) -> str:
        """Return what changes whenever the same bytes may give other pages."""
        ...

    @property
    def options(self) -> Mapping[str, JsonValue]:
        """Return what besides the bytes decides the output."""
        ...

    async def submit(self, source: Source) -> str:
        """Hand the source over and return a reference, which may be stored before the first poll."""
        ...

    async def poll(self, reference: str) -> Parsed | None:
        """Return the pages, or None while they are pending; raises the errors of errors.py on failure."""
        ...

    async def aclose(self) -> None:
        """Release what the parser holds."""
        ...
