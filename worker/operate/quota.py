"""`sluice quota`: how much a tenant may keep, have read a month, and have running at once."""

from __future__ import annotations

import json
import re
from typing import Any
from uuid import UUID

import asyncpg
import click
from rich.console import Console
from rich.table import Table

from worker.db.pool import Database
from worker.errors import Transient
from worker.operate.terminal import ask
from worker.settings import Settings

_LIMITS = ("bytes", "files", "pages_month", "running")
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_MOST = 2**31 - 1
_MOST_BYTES = 2**53


class _Limit(click.ParamType[int]):
    """A whole number, or none for no limit; bytes may end with K, M, G or T, which are powers of 1024."""

    name = "number"

    def __init__(self, least: int, *, units: bool = False) -> None:
        self._least = least
        self._units = units

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if value == "none":
            return -1
        found = re.fullmatch(r"(\d{1,16})([KMGT]?)", value)
        if not found or (found[2] and not self._units):
            self.fail('Give a whole number, or "none" for no limit.', param, ctx)
        number = int(found[1]) * _UNITS[found[2]]
        most = _MOST_BYTES if self._units else _MOST
        if not self._least <= number <= most:
            self.fail(f"{number} is not between {self._least} and {most}.", param, ctx)
        return number


@click.group()
def quota() -> None:
    """Set and list how much each tenant may keep, have read a month, and have running at once.

    What is beyond a quota is refused at the upload, or its file ends as quota_exceeded and comes back by itself when
    there is room.
    """


@quota.command("set")
@click.argument("tenant", type=click.UUID, required=False)
@click.option("--everybody", is_flag=True, help="Of every tenant without a quota of its own.")
@click.option("--bytes", "bytes_", type=_Limit(0, units=True), metavar="N", help="What its files may hold: 500M, 10G.")
@click.option("--files", type=_Limit(0), metavar="N", help="How many files it may keep.")
@click.option("--pages-month", type=_Limit(0), metavar="N", help="How many pages it may have read a month (UTC).")
@click.option("--running", type=_Limit(1), metavar="N", help="How many of its files are worked on at once.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def set_quota(
    tenant: UUID | None, everybody: bool, bytes_: int | None, files: int | None, pages_month: int | None,
    running: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Set limits of TENANT, or with --everybody of all tenants without a quota of their own.

    N is a whole number, or "none" for no limit. What is not named stays as it is; a tenant's first quota begins with
    no limits. Files that were refused and fit now come back.

    Exit codes: 0 done; 1 the database refused it or did not answer; 2 wrong usage or settings.
    """
    if (tenant is not None) == everybody:
        raise click.UsageError("Give a tenant's id, or --everybody.")
    given = dict(zip(_LIMITS, (bytes_, files, pages_month, running), strict=True))
    if all(limit is None for limit in given.values()):
        raise click.UsageError("Name what is to be set: --bytes, --files, --pages-month or --running.")

    async def change(db: Database, _: Settings) -> tuple[dict[str, int | None], int]:
        rows = await db.fetch("list_quotas")
        before = next((row for row in rows if row["tenant_id"] == tenant), None)
        limits = {name: _merged(limit, before[name] if before else None) for name, limit in given.items()}
        try:
            return limits, await db.fetchval("set_quota", tenant, *limits.values())
        except Transient as exc:
            if exc.detail and exc.detail.startswith("23503"):  # the foreign key to the tenants
                raise click.ClickException(
                    f"There is no tenant {tenant}. Its id is the first folder of its files."
                ) from exc
            raise

    limits, back = ask(change)
    if as_json:
        click.echo(json.dumps({"tenant": tenant and str(tenant), **limits, "came_back": back}))
        return
    whose = f"Tenant {tenant}" if tenant else "Every tenant without a quota of its own"
    click.echo(f"{whose} may have: {_said(limits)}.")
    if back:
        click.echo(f"{back} files that were refused come back.")


@quota.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_quotas(as_json: bool) -> None:
    """List the quotas, and what is used of them now.

    Exit codes: 0 done; 1 the database did not answer; 2 wrong settings.
    """
    rows = ask(lambda db, _: db.fetch("list_quotas"))
    if as_json:
        click.echo(json.dumps({"quotas": [_as_json(row) for row in rows]}))
        return
    table = Table("whose", "bytes", "files", "pages this month", "running")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        used = (row["bytes_kept"], row["files_kept"], row["pages_read"], row["running_now"])
        table.add_row(
            str(row["tenant_id"] or "everybody else"),
            *(_used(amount, row[name]) for name, amount in zip(_LIMITS, used, strict=True)),
        )
    Console().print(table)


def _merged(given: int | None, before: int | None) -> int | None:
    if given is None:
        return before
    return None if given < 0 else given


def _as_json(row: asyncpg.Record) -> dict[str, Any]:
    return {"tenant": row["tenant_id"] and str(row["tenant_id"])} | {
        name: row[name] for name in (*_LIMITS, "bytes_kept", "files_kept", "pages_read", "running_now")
    }


def _said(limits: dict[str, int | None]) -> str:
    names = {"bytes": "bytes", "files": "files", "pages_month": "pages a month", "running": "running at once"}
    return ", ".join(f"{'any number of' if limit is None else f'{limit:,}'} {names[k]}" for k, limit in limits.items())


def _used(amount: int | None, limit: int | None) -> str:
    of = "no limit" if limit is None else f"{limit:,}"
    return of if amount is None else f"{amount:,} of {of}"
