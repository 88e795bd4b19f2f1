"""`sluice models`: the embedding models that the database knows, and the one that search uses."""

from __future__ import annotations

import json

import asyncpg
import click
from rich.console import Console
from rich.table import Table

from worker.db.pool import Database
from worker.operate.terminal import ask
from worker.settings import Settings


@click.group()
def models() -> None:
    """The embedding models that the database knows.

    DATABASE_URL must be an operator's, the owner postgres: the worker's own login may not change them.

    One model is active: search compares with its vectors only, and workers that embed with another one
    refuse to start. A document that was embedded with an earlier model stays searchable by its words; by
    meaning it is found again when it was uploaded again.
    """


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
def list_models(as_json: bool) -> None:
    """Show every model, and how many published documents lack vectors of it."""
    rows = ask(_list)
    if as_json:
        click.echo(json.dumps([dict(row) for row in rows]))
        return
    table = Table(caption="lacking: published documents without vectors of this model")
    for name in ("id", "provider", "name", "dimensions", "active", "lacking"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(
            str(row["id"]), row["provider"], row["name"], str(row["dimensions"]), "yes" if row["active"] else "",
            str(row["documents_without_vectors"]),
        )  # fmt: skip
    Console().print(table)


@models.command("add")
@click.argument("provider")
@click.argument("name")
@click.argument("dimensions", type=click.IntRange(1, 4000))
@click.option("--activate", is_flag=True, help="Let search use it from now on.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def add_model(provider: str, name: str, dimensions: int, activate: bool, as_json: bool) -> None:
    """Register a model, as `sluice models add openai text-embedding-3-small 1536`.

    One that is registered already stays as it is.
    """

    async def add(db: Database, _: Settings) -> list[asyncpg.Record]:
        added = await db.fetchval("add_model", provider, name, dimensions)
        if activate:
            await db.fetchval("activate_model", added)
        return [row for row in await _list(db) if row["id"] == added]

    _tell(ask(add)[0], as_json)


@models.command("activate")
@click.argument("model", type=int)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def activate_model(model: int, as_json: bool) -> None:
    """Let search use MODEL (its id) from now on.

    Says how many published documents lack vectors of it: they are found by their words only, until they
    are uploaded again. Workers that embed with another model must be started anew with this one.

    Exit codes: 0 done; 1 it failed; 2 there is no such model.
    """

    async def activate(db: Database, _: Settings) -> list[asyncpg.Record]:
        if model not in [row["id"] for row in await _list(db)]:
            raise click.UsageError(f"There is no embedding model {model}. `sluice models list` shows them.")
        await db.fetchval("activate_model", model)
        return [row for row in await _list(db) if row["id"] == model]

    _tell(ask(activate)[0], as_json)


async def _list(db: Database, _: Settings | None = None) -> list[asyncpg.Record]:
    return await db.fetch("list_models")


def _tell(row: asyncpg.Record, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(dict(row)))
        return
    state = "active" if row["active"] else "registered, not active"
    click.echo(f"{row['id']}  {row['provider']}/{row['name']} with {row['dimensions']} dimensions: {state}.")
    if row["active"] and row["documents_without_vectors"]:
        click.echo(
            f"{row['documents_without_vectors']} published documents have no vectors of it: they are found by their "
            "words only, until they are uploaded again."
        )
