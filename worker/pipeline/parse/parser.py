"""What every parser offers, local or remote: submit the bytes, then poll for their pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeAlias

from worker.errors import Transient
from worker.model import Parsed, Source

JsonValue: TypeAlias = str | int | float | bool | list["JsonValue"] | dict[str, "JsonValue"] | None


class Webhook(Protocol):
    """Where a service may say that a parse has ended; losing the call only delays the work.

    Both are secrets: `url` holds an unguessable token, for services that cannot sign; `signing_secret` is
    for those that can.
    """

    @property
    def url(self) -> str:
        """Return the https address, of less than 200 characters."""
        ...

    @property
    def signing_secret(self) -> str | None:
        """Return what signs the calls, or None."""
        ...


class Lost(Transient):
    """The service knows nothing of the reference any more, or broke on it: submitted again, once."""


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

    @property
    def remote(self) -> bool:
        """Say whether a service reads the file: jobs sleep meanwhile, and the reference outlives this process."""
        ...

    async def submit(self, source: Source, webhook: Webhook | None = None) -> str:
        """Hand the source over and return a reference, which may be stored before the first poll.

        For a remote parser this is what costs money: it is sent once, and never again by the adapter itself.
        """
        ...

    async def poll(self, reference: str) -> Parsed | None:
        """Return the pages, or None while they are pending; raises the errors of errors.py on failure.

        Rejected means that the file can never be read, Lost that it must be submitted again; after any other
        error the reference may be polled again.
        """
        ...

    async def aclose(self) -> None:
        """Release what the parser holds."""
        ...
