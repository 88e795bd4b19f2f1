"""Which jobs a command is about: filters, pages of them, and the one that somebody names."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import click

if TYPE_CHECKING:
    import asyncpg

    from worker.db.pool import Database

STATES = ("available", "running", "completed", "cancelled", "discarded")
STAGES = ("fetch", "parse", "chunk", "embed", "publish")
_PAGE = 1000
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LONGEST_DAYS = 36_500
F = TypeVar("F", bound=Callable[..., Any])


def ago(_ctx: click.Context, _param: click.Parameter, value: str | None) -> timedelta | None:
    """Read a span like 30m, 2h or 3d before now, or a past moment in UTC."""
    if value is None:
        return None
    past: timedelta | None = None
    if span := re.fullmatch(r"(\d{1,7})([smhdw])", value):
        past = timedelta(seconds=int(span[1]) * _UNITS[span[2]])
    else:
        with contextlib.suppress(ValueError):
            said = datetime.fromisoformat(value)
            past = datetime.now(UTC) - (said if said.tzinfo else said.replace(tzinfo=UTC))
    if past is None or not timedelta(0) <= past <= timedelta(days=_LONGEST_DAYS):
        raise click.BadParameter(f"{value!r} is no time. Give 30m, 2h, 3d, 1w, or a past moment in UTC: 2026-11-27.")
    return past


@dataclass(frozen=True, slots=True)
class Selection:
    """Filters, all of which must hold; none of them is every job."""

    states: tuple[str, ...] = ()
    tenant: UUID | None = None
    document: str | None = None
    code: str | None = None
    since: timedelta | None = None
    stage: str | None = None

    @property
    def narrow(self) -> bool:
        """Whether any filter is set."""
        return self != Selection()

    async def page(self, db: Database, before: int | None, limit: int) -> list[asyncpg.Record]:
        """Return up to `limit` jobs with ids below `before`, the newest first."""
        document = _uuid(self.document)
        name = self.document if document is None else None
        return await db.fetch(
            "list_jobs", list(self.states) or None, self.tenant, document, name, self.code, self.since, self.stage,
            before, limit,
        )  # fmt: skip

    async def all(self, db: Database, most: int) -> list[asyncpg.Record]:
        """Return up to `most` jobs, page by page."""
        found: list[asyncpg.Record] = []
        while len(found) < most:
            rows = await self.page(db, found[-1]["id"] if found else None, min(_PAGE, most - len(found)))
            found += rows
            if len(rows) < _PAGE:
                break
        return found


def filters(*states: str) -> Callable[[F], F]:
    """Add the options that make a Selection; `states` are those that the command can be about."""
    options = (
        click.option(
            "--state", "states", multiple=True, type=click.Choice(states), help="Only in this state; repeatable."
        ),
        click.option("--tenant", type=click.UUID, help="Only this tenant's."),
        click.option(
            "--document", metavar="NAME|ID", help="Only of this file: its name, the last part of it, or its id."
        ),
        click.option("--code", help="Only with this code, like embedding_key."),
        click.option(
            "--since",
            callback=ago,
            metavar="AGO",
            help="Only made, begun or ended since: 30m, 2h, 3d, or a moment in UTC.",
        ),
        click.option("--stage", type=click.Choice(STAGES), help="Only in this stage."),
    )

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


async def resolve(db: Database, reference: str) -> tuple[int | None, UUID | None]:
    """Return the job and the document that are meant: by the job's id, the document's, or the file's name.

    The newest job of a document, None where it has none; an object without a document stands for one. Ends with 1
    when there is nothing, with 2 when several files have that name.
    """
    if reference.isascii() and reference.isdigit() and len(reference) < 19:
        return int(reference), None
    document = _uuid(reference)
    asked = document, None if document else reference
    found = [(row["job_id"], row["document_id"], row["name"]) for row in await db.fetch("find_documents", *asked)]
    # An object without a document: asked about above all when nothing comes of an upload.
    found = found or [(None, row["object_id"], row["name"]) for row in await db.fetch("find_objects", *asked)]
    if not found:
        raise click.ClickException(f"There is no job and no file {reference}. sluice jobs list shows what there is.")
    if len(found) > 1:
        several = "\n".join(f"  {one}  {name!a}" for _, one, name in found)
        raise click.UsageError(f"Several files are named so; give the id of one:\n{several}")
    return found[0][0], found[0][1]


def _uuid(text: str | None) -> UUID | None:
    try:
        return UUID(text) if text else None
    except ValueError:
        return None
