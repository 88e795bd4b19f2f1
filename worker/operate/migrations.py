"""`sluice migrations`: whether the database has what this version of the worker calls."""

from __future__ import annotations

import asyncio
import json
import sys
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import click

from worker.db.pool import Database
from worker.errors import IngestError
from worker.operate.cli import read_settings

_TOLD = 10


@click.group()
def migrations() -> None:
    """The database's migrations, and those of this version."""


@migrations.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(as_json: bool) -> None:
    """Say whether the database has every migration of this version; changes nothing.

    Run it before new workers start: it ends a deploy whose workers would call what is not there. A
    database that has more passes: migrations are applied before the workers that need them start.

    Exit codes: 0 it has them all; 1 it lacks some, or did not answer; 2 wrong settings.
    """
    names = carried()
    try:
        there = asyncio.run(applied(read_settings().database_url.get_secret_value()))
    except IngestError as exc:
        raise click.ClickException(f"{exc.public_message}" + (f"\n({exc.detail})" if exc.detail else "")) from exc
    missing = lacking(names, there)
    if as_json:
        click.echo(json.dumps({"carried": len(names), "applied": len(there), "lacking": missing}))
    elif not missing:
        click.echo(f"The database has all {len(names)} migrations of this version.")
    if missing:
        click.echo(_complaint(missing, len(names)), err=True)
        sys.exit(1)


def carried() -> list[str]:
    """Return the names of this version's migrations, oldest first: the file names without their ending."""
    return sorted(file.name.removesuffix(".sql") for file in _folder().iterdir() if file.name.endswith(".sql"))


def lacking(names: list[str], applied: list[str]) -> list[str]:
    """Return those of `names` that are not among the applied ones, in their order."""
    return [name for name in names if name not in set(applied)]


async def applied(url: str) -> list[str]:
    """Return the names of the migrations that the database has; raises Misconfigured when it cannot be asked."""
    db = await Database.open(url, size=1)
    try:
        return [row[0] for row in await db.fetch("list_applied_migrations")]
    finally:
        await db.close()


def _folder() -> Traversable:
    packed = files("worker").joinpath("migrations")
    # In a checkout they are where the Supabase CLI wants them; the wheel carries a copy.
    return packed if packed.is_dir() else Path(__file__).parents[2] / "supabase" / "migrations"


def _complaint(missing: list[str], all_of_them: int) -> str:
    shown = "\n".join(f"  {name}" for name in missing[:_TOLD])
    more = f"\n  and {len(missing) - _TOLD} more" if len(missing) > _TOLD else ""
    return (
        f"The database lacks {len(missing)} of the {all_of_them} migrations of this version:\n{shown}{more}\n"
        "Apply them with scripts/deploy, or `supabase db push`, then deploy again."
    )
