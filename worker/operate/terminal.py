"""What the commands for operators share: one connection, tables for eyes and lines for pipes, and an orderly Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import sys
import unicodedata
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import click

from worker.errors import IngestError
from worker.operate.cli import complaint, read_settings
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.db.pool import Database

T = TypeVar("T")
INTERRUPTED = 130


def ask(
    work: Callable[[Database, Settings], Awaitable[T]], *, interrupted: Callable[[], None] | None = None, size: int = 1
) -> T:
    """Connect as DATABASE_URL says and do `work`.

    Ends the process with a message: 1 when the database refuses or does not answer, 2 for wrong settings, 130 after
    Ctrl-C, when `interrupted` is called first.
    """
    settings = read_settings()

    async def asked() -> T:
        # Imported here: `--help` has no use for the database's client.
        from worker.db.pool import Database

        db = await Database.open(settings.database_url.get_secret_value(), size=size, pooler=settings.database_pooler)
        try:
            return await work(db, settings)
        finally:
            await db.close()

    try:
        return asyncio.run(asked())
    except IngestError as exc:
        raise complaint(exc) from exc
    except KeyboardInterrupt:
        if interrupted is not None:
            interrupted()
        raise click.exceptions.Exit(INTERRUPTED) from None


def confirmed(question: str) -> bool:
    """Ask on stderr and return whether the answer was yes; no answer is no, and Ctrl-C ends with 130.

    click's own question makes one exception of Ctrl-C and of an end of the input.
    """
    click.echo(f"{question} [y/N] ", nl=False, err=True)
    try:
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        click.echo(err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    return answer.strip().lower() in ("y", "yes")


def show(columns: Sequence[str], rows: Sequence[Sequence[object]], *, none: str) -> None:
    """Print a table on a terminal and lines with tabs in a pipe; `none` says that there are no rows."""
    if not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join(visible(cell) for cell in row))
        if not rows:
            click.echo(none, err=True)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, show_header=any(columns))
    for row in rows:
        # As Text: in a plain string, [brackets] of a file's name would be markup.
        table.add_row(*(Text(visible(cell)) for cell in row))
    Console().print(table if rows else none)


def visible(cell: object) -> str:
    """Write a value on one line, without what moves a terminal's cursor or turns the reading direction."""
    if cell is None:
        return ""
    if isinstance(cell, datetime):
        return f"{cell:%Y-%m-%d %H:%M:%S}"
    return "".join(
        f"\\u{ord(sign):04x}" if unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp") else sign
        for sign in str(cell)
    )


def say_json(told: Mapping[str, Any]) -> None:
    """Print one JSON object on one line, at once."""
    click.echo(json.dumps(told, default=_plain, ensure_ascii=True))
    sys.stdout.flush()


def _plain(value: object) -> object:
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no place in JSON")
